"""Nothing about landmarks: one-line errors, atomic files, background work, stopping in time."""

import contextlib
import glob
import hashlib
import json
import os
import queue
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from concurrent.futures import Future
from pathlib import Path

import numpy as np

CHUNK_BYTES = 1 << 20


class ExpectedError(Exception):
    """A failure of network, file or data that a person can act on, told in one line.

    The message reads `<what, with the value>; <what was expected>; <what to do>`. Where a setting
    is to be changed, the last part is left to `command_line`, which alone knows the flags.

    Args:
        message: the line.
        setting: the setting to change, e.g. `source` or `learning_rate`.
    """

    def __init__(self, message, setting=None):
        super().__init__(message)
        self.setting = setting


class MissingFileError(ExpectedError):
    """The source does not have the file that was asked for."""


class StoppedError(Exception):
    """The run was asked to stop and did so in good order.

    Args:
        stop: the `Stop` that asked.
        done: what is done, e.g. `12 of 490 mini-epochs done`.
    """

    def __init__(self, stop, done):
        super().__init__(
            f"stopped by {stop.reason()}: {done}; run the same command again to continue"
        )
        self.exit_code = 130 if stop.signal_number == signal.SIGINT else 0


def say(text):
    """Writes one line of progress to stderr, which keeps stdout for results."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def atomic_write(path):
    """Gives a temporary path beside `path` that takes its name only when the block succeeds.

    Args:
        path: the final file. Its folder is made.

    Yields:
        The temporary `pathlib.Path`, with the same suffix as `path`.

    Raises:
        ExpectedError: the file could not be written (full disk, no permission).
    """
    path = Path(path)
    host = socket.gethostname()  # machines may share the folder
    temporary = path.with_name(f".writing-{os.getpid()}-{host}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        same_file = glob.escape(f"-{host}-{path.name}")
        for leftover in path.parent.glob(f".writing-*{same_file}"):
            if not _is_running(leftover.name.split("-")[1]):  # its process was killed
                leftover.unlink(missing_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
        raise ExpectedError(
            f"{path}: cannot be written ({reason}); expected a writable folder with free space; "
            "free some space or choose another --output"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # not there, or its folder is none
            temporary.unlink()


def save_arrays(path, page, **arrays):
    """Writes NumPy arrays and a page of facts as one atomic .npz file.

    Args:
        path: the file, ending in .npz.
        page: dict that JSON can hold.
        arrays: name -> array.
    """
    with atomic_write(path) as temporary:
        np.savez(temporary, page=json.dumps(page), **arrays)


def load_arrays(path):
    """Reads what `save_arrays` wrote, all of it, so that damage shows here.

    Returns:
        (dict of arrays, page).

    Raises:
        ExpectedError: no such file, a damaged one, or another kind of file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return arrays, json.loads(str(arrays.pop("page")))
    except (
        *(OSError, EOFError, zipfile.BadZipFile, zlib.error),  # damaged
        *(ValueError, LookupError, TypeError, AttributeError, RuntimeError),  # of another kind
    ) as error:
        reason = str(getattr(error, "strerror", None) or error).splitlines()[0]
        reason = "not an .npz file" if "pickle" in reason else reason  # NumPy's guess
        raise ExpectedError(
            f"{path}: {reason}; expected a whole file written by this project; "
            "write or copy it again"
        ) from error


def copy_file(source, path):
    """Copies a file; `path` exists only when the copy is whole."""
    with atomic_write(path) as temporary:
        shutil.copyfile(source, temporary)


def file_md5(path):
    """Computes the md5 of a file as 32 hex characters."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def require_free_space(folder, size_bytes, purpose):
    """Raises ExpectedError if the disk of `folder` has less than `size_bytes` free."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        stats = os.statvfs(folder)
    except OSError as error:
        raise ExpectedError(
            f"{folder}: cannot be made ({error.strerror}); expected a folder with space for "
            f"{purpose}; choose another folder"
        ) from error
    free_bytes = stats.f_bavail * stats.f_frsize
    if free_bytes < size_bytes:
        raise ExpectedError(
            f"{folder}: {free_bytes / 1e9:.2f} GB free; expected {size_bytes / 1e9:.2f} GB or more "
            f"for {purpose}; free some space or choose another folder"
        )


# ------------------------------------------------------------------------- in the background


def in_background(function, *args):
    """Starts `function(*args)` in a thread that never keeps the process alive; gives its Future."""
    future = Future()

    def run():
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=function.__name__, daemon=True).start()
    return future


def run_ahead(make_iterator, num_ahead, is_stopped=lambda: False):
    """Yields what an iterator yields while a thread keeps up to `num_ahead` items ready.

    Args:
        make_iterator: function without arguments that gives a generator; called in the thread.
        num_ahead: items held at most, besides the one that waits for its place.
        is_stopped: function without arguments; while it says True and nothing is ready, None is
            yielded instead of waiting on.
    """
    items = queue.Queue(num_ahead)
    stopped = threading.Event()

    def put(item):
        while not stopped.is_set():
            try:
                return items.put(item, timeout=0.1)
            except queue.Full:
                continue

    def run():
        try:
            with contextlib.closing(make_iterator()) as iterator:
                for item in iterator:
                    put((item, None))
                    if stopped.is_set():
                        return
            put((None, StopIteration()))
        except BaseException as error:
            put((None, error))

    threading.Thread(target=run, name="run_ahead", daemon=True).start()
    try:
        while True:
            try:
                item, error = items.get(timeout=0.2)
            except queue.Empty:
                if is_stopped():
                    yield None
                continue
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stopped.set()


# --------------------------------------------------------------------------- stopping in time


class Stop:
    """Asks a long job to stop in good order: at a time limit, on SIGTERM, or on Ctrl-C.

    A second Ctrl-C interrupts at once.

    Args:
        max_hours: hours from now, or None for no limit.
    """

    def __init__(self, max_hours=None):
        self.deadline = None if max_hours is None else time.monotonic() + max_hours * 3600
        self.signal_number = None

    def __enter__(self):
        self._handlers = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number, frame):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.signal_number = number
        say(f"{signal.Signals(number).name}: stopping after this batch")

    def requested(self, needed_s=0.0):
        """Tells whether to stop now, given that the next step takes `needed_s` seconds."""
        if self.signal_number is not None:
            return True
        return self.deadline is not None and time.monotonic() + needed_s > self.deadline

    def reason(self):
        """Names what asked for the stop."""
        if self.signal_number is not None:
            return signal.Signals(self.signal_number).name
        return "--max-hours"


@contextlib.contextmanager
def scratch_folder(parent):
    """Gives a folder of this process alone below `parent`, removed at the end.

    What killed processes of this machine left there is removed first.

    Args:
        parent: folder for scratch; made where missing.

    Yields:
        `pathlib.Path`.
    """
    parent = Path(parent)
    for leftover in parent.glob(f"{socket.gethostname()}-*"):
        host, _, process_id = leftover.name.rpartition("-")
        if host == socket.gethostname() and not _is_running(process_id):
            shutil.rmtree(leftover, ignore_errors=True)
    folder = parent / f"{socket.gethostname()}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExpectedError(
            f"{parent}: cannot be made ({error.strerror}); expected a folder to write to; "
            "choose another --scratch"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_running(process_id):
    try:
        os.kill(int(process_id), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, ValueError, OverflowError):
        pass
    return True


@contextlib.contextmanager
def muted_stderr():
    """Swallows what native libraries print to stderr in the block; shows it if the block fails."""
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as buffer:
        os.dup2(buffer.fileno(), 2)
        try:
            yield
        except BaseException:
            buffer.seek(0)
            os.write(original, buffer.read())
            raise
        finally:
            os.dup2(original, 2)
            os.close(original)


@contextlib.contextmanager
def loading_keras():
    """Surrounds an `import keras`: TensorFlow with oneDNN, and without its start-up chatter.

    By itself TensorFlow takes oneDNN's kernels only on processors with AVX-512 or the like; on
    others they train 2.4 times as fast, at equal losses. A setting of the user's stays.
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # read once, when TensorFlow is imported
    with muted_stderr():
        yield
