"""What surrounds the import of Keras and the start of its backend: settings, and their chatter."""

import contextlib
import os
import signal
import sys
import tempfile
import threading


@contextlib.contextmanager
def loading_keras():
    """Surrounds an `import keras`: TensorFlow with oneDNN, and without its start-up chatter.

    By itself TensorFlow takes oneDNN's kernels only on processors with AVX-512 or the like; on
    others they train 2.4 times as fast, at equal losses. A setting of the user's stays.
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # read once, when TensorFlow is imported
    with muted_stderr():
        yield


@contextlib.contextmanager
def muted_stderr():
    """Swallows what native libraries print to stderr in the block; shows it if the block fails.

    Ctrl-C ends the block at once, inside of a `Stop` too, whose answer nobody would see.
    """
    with _interruptible() as presses, tempfile.TemporaryFile() as buffer:
        sys.stderr.flush()
        original = os.dup(2)
        os.dup2(buffer.fileno(), 2)
        try:
            yield
        except BaseException:
            buffer.seek(0)
            if not presses:
                os.write(original, buffer.read())
            raise
        finally:
            os.dup2(original, 2)
            os.close(original)


@contextlib.contextmanager
def stdout_to_stderr():
    """Sends what native libraries print to stdout in the block to stderr: stdout is for results."""
    if sys.stdout:
        sys.stdout.flush()
    original = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        if sys.stdout:
            sys.stdout.flush()
        os.dup2(original, 1)
        os.close(original)


@contextlib.contextmanager
def _interruptible():
    """Lets Ctrl-C interrupt the block, even where a library swallows the exception.

    Yields:
        A list that is not empty once Ctrl-C was pressed.
    """
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
