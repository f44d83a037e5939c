"""What surrounds the import of Keras and the start of its backend: settings, and their chatter."""

import contextlib
import importlib.util
import json
import os
import signal
import sys
import tempfile
import threading

from utils import ExpectedError

BACKENDS = ("tensorflow", "jax", "torch")
FLOATS = ("float16", "float32", "float64")


@contextlib.contextmanager
def loading_keras():
    """Surrounds an `import keras`: TensorFlow with oneDNN, and without its start-up chatter.

    By itself TensorFlow takes oneDNN's kernels only on processors with AVX-512 or the like; on
    others they train 2.4 times as fast, at equal losses. A setting of the user's stays.
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # read once, when TensorFlow is imported
    require_backend()
    with muted_stderr():
        yield
    if keras := sys.modules.get("keras"):  # whatever an older Keras left in keras.json
        keras.config.set_image_data_format("channels_last")


def require_backend():
    """Raises ExpectedError unless Keras can be imported, which Keras finds out in a minute."""
    if not os.path.isabs(os.path.expanduser("~")):  # Keras would make a folder of that name here
        with contextlib.suppress(FileNotFoundError):  # a run makes a folder for what is temporary
            place = os.path.join(tempfile.gettempdir(), "landmarks-keras")
            os.environ.setdefault("KERAS_HOME", place)
    home = os.environ.get("KERAS_HOME") or os.path.join(os.path.expanduser("~"), ".keras")
    settings, path = {}, os.path.join(home, "keras.json")
    with contextlib.suppress(OSError, ValueError), open(path, encoding="utf-8") as file:
        settings = json.load(file)
    is_right = isinstance(settings, dict) and all(
        isinstance(settings.get(name, value), type(value))
        for name, value in (("floatx", ""), ("epsilon", 0.0), ("image_data_format", ""))
    )
    if not is_right or settings.get("floatx", "float32") not in FLOATS:
        raise ExpectedError(
            f"{path}: not what Keras 3 writes; expected floatx, epsilon and backend; remove it"
        )
    old = settings.get("backend")
    name = os.environ.get("KERAS_BACKEND") or (old if old in BACKENDS else BACKENDS[0])
    if name not in BACKENDS or not importlib.util.find_spec(name):
        what = "not installed" if name in BACKENDS else "no backend of this project"
        raise ExpectedError(
            f"KERAS_BACKEND={name}: {what}; expected one of {', '.join(BACKENDS)}; install it, or "
            "leave the variable out for tensorflow"
        )
    os.environ["KERAS_BACKEND"] = name


@contextlib.contextmanager
def muted_stderr():
    """Swallows what native libraries print to stderr in the block; shows it if the block fails.

    Ctrl-C ends the block at once, inside of a `Stop` too, whose answer nobody would see.
    """
    with (
        _interruptible() as presses,
        tempfile.TemporaryFile() as buffer,
        _redirected(2, sys.stderr, buffer.fileno()) as original,
    ):
        try:
            yield
        except BaseException:
            buffer.seek(0)
            if not presses:
                os.write(original, buffer.read())
            raise


@contextlib.contextmanager
def stdout_to_stderr():
    """Sends what native libraries print to stdout in the block to stderr: stdout is for results."""
    with _redirected(1, sys.stdout, 2):
        yield


@contextlib.contextmanager
def _redirected(descriptor, stream, target):
    """Sends what is printed in the block elsewhere; yields a descriptor of where it went before."""
    if stream:
        stream.flush()
    original = os.dup(descriptor)
    os.dup2(target, descriptor)
    try:
        yield original
    finally:
        if stream:
            stream.flush()
        os.dup2(original, descriptor)
        os.close(original)


@contextlib.contextmanager
def _interruptible():
    """Lets Ctrl-C interrupt the block, whatever a library swallows; yields the presses."""
    presses = []

    def interrupt(number, frame):
        presses.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield presses
        return
    handler = signal.signal(signal.SIGINT, interrupt)
    try:
        yield presses
    finally:
        signal.signal(signal.SIGINT, handler)
        if presses:
            raise KeyboardInterrupt
