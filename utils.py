"""Nothing about landmarks: one-line errors, files, stopping in time, background work."""

import contextlib
import functools
import hashlib
import math
import multiprocessing
import os
import queue
import re
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
import weakref
from collections import deque
from concurrent.futures import Future
from pathlib import Path

CHUNK_BYTES = 1 << 20
# What an address carries to log in: a user with a password, a query with a token.
SECRETS = re.compile(
    r"([a-z][a-z0-9+.-]*://)\S*@|(https?://[^\s?]*\?)\S*?(?=[,:;)]*(?:\s|$))", re.I
)
LAST_WORDS_S = 1.0  # for what is to be put in order after a second Ctrl-C
INTERRUPTED = "error: interrupted by Ctrl-C; run the same command again to continue"
HALF_WRITTEN = ".writing-"  # begins the names of files that are not whole yet
_one_reader = threading.Lock()


class ExpectedError(Exception):
    """A failure of network, file or data that a person can act on, told in one line.

    The message reads `<what, with the value>; <what was expected>; <what to do>`. Where a setting
    is to be changed, e.g. `learning_rate`, `command_line` adds the last part: it knows the flags.
    """

    def __init__(self, message, setting=None):
        super().__init__(masked(message))
        self.setting = setting


class MissingFileError(ExpectedError):
    """The source does not have the file that was asked for."""


class StoppedError(Exception):
    """A `Stop` was asked for, and it is done so far, e.g. `12 of 490 mini-epochs done`."""

    def __init__(self, stop, done):
        told = f"stopped by {stop.reason()}: {done}; run the same command again to continue"
        super().__init__(told)
        self.exit_code = 130 if stop.signal_number == signal.SIGINT else 0


def masked(text):
    """Puts *** in the place of passwords and tokens of the addresses in a text."""
    return SECRETS.sub(lambda found: f"{found[1]}***@" if found[1] else f"{found[2]}***", str(text))


def say(text):
    """Writes one line of progress to stderr, which keeps stdout for results."""
    _clear_line()
    _line["told"] = time.monotonic()
    # In one write, since threads say things, too.
    print(f"{masked(text)}\n", end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def os_errors_as(what, expected, setting=None):
    """Tells an OSError of the block in one line: what, why in brackets, what was expected."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
        raise ExpectedError(f"{what} ({reason}); expected {expected}", setting) from error


@contextlib.contextmanager
def atomic_write(path, setting="output"):
    """Yields a temporary path beside `path` that takes its name only when the block succeeds.

    Its suffix is the same. The folder is made. ExpectedError: it cannot be written.
    """
    path = Path(path)
    # Random, because other processes and machines may write the same file.
    temporary = path.with_name(f"{HALF_WRITTEN}{secrets.token_hex(4)}-{path.name}")
    expected = "a writable folder with free space"
    try:
        with os_errors_as(f"{path}: cannot be written", expected, setting):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # not there, or its folder is none
            temporary.unlink()


def copy_file(source, path):
    """Copies a file; `path` exists only when the copy is whole."""
    with atomic_write(path) as temporary:
        shutil.copyfile(source, temporary)


def file_md5(path):
    """Computes the md5 of a file as 32 hex characters."""
    new = functools.partial(hashlib.md5, usedforsecurity=False)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, new).hexdigest()


def read_at(descriptor, num_bytes, offset):
    """Reads bytes of an open file; threads may do so at the same time."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, num_bytes, offset)
    with _one_reader:  # Windows knows no reading at a place
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, num_bytes)


def require_file(path, what):
    """Raises ExpectedError for a pipe or a device, whose reading may never end or begin again."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise ExpectedError(f"{path}: not a file; expected {what}; write it to a file first")


def require_free_space(folder, size_bytes, purpose):
    """Raises ExpectedError if the disk of `folder` has less than `size_bytes` free."""
    expected = f"a folder with space for {purpose}; choose another folder"
    with os_errors_as(f"{folder}: cannot be made", expected):
        Path(folder).mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(folder).free
    if free_bytes < size_bytes:
        raise ExpectedError(
            f"{folder}: {_format_gb(free_bytes)} free; expected {_format_gb(size_bytes)} or more "
            f"for {purpose}; free some space or choose another folder"
        )


def _format_gb(size_bytes):
    return f"{size_bytes / 1e9:.{2 if size_bytes >= 1e8 else 6}f} GB"


def format_duration(seconds):
    """Writes seconds as a person reads them, e.g. `2 h 05 min` or `3 min 20 s`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


class Stop:
    """Asks a long job to stop cleanly: so many hours from now, on SIGTERM, or on Ctrl-C.

    A second Ctrl-C interrupts at once.
    """

    def __init__(self, max_hours=None):
        self.deadline = time.monotonic() + 3600 * (math.inf if max_hours is None else max_hours)
        self.signal_number = None

    def __enter__(self):
        self._undo = contextlib.ExitStack()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._undo.callback(signal.signal, number, signal.signal(number, self._on_signal))
            watched, waking = socket.socketpair()
            waking.setblocking(False)
            self._undo.callback(waking.close)
            self._undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(waking.fileno()))
            threading.Thread(target=_end_at_second_ctrl_c, args=[watched], daemon=True).start()
        return self

    def __exit__(self, *exception):
        self._undo.close()

    def _on_signal(self, number, frame):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.signal_number = signal.Signals(number)
        say(f"{self.reason()}: stopping after this batch")

    def requested(self, needed_s=0.0):
        """Tells whether to stop now, given that the next step takes `needed_s` seconds."""
        return bool(self.signal_number) or time.monotonic() + needed_s > self.deadline

    def reason(self):
        """Names what asked for the stop."""
        return self.signal_number.name if self.signal_number else "the time limit"


def _end_at_second_ctrl_c(signals):
    """Ends the process soon after a second Ctrl-C, until no more signals can come.

    Python's own handlers wait for the main thread, and that may be in a library for a minute, as
    where a network is compiled. The socket gets a byte for each signal, its number.
    """
    with signals:
        for _ in range(2):
            while (byte := signals.recv(1)) not in (b"", bytes([signal.SIGINT])):
                pass
            if not byte:
                return
        signals.settimeout(LAST_WORDS_S)
        with contextlib.suppress(TimeoutError):
            while signals.recv(1):  # until the block ends
                pass
            return
    say(INTERRUPTED)
    _end_now()


def end_soon():
    """Ends an interrupted process within seconds, whatever it still waits for."""
    timer = threading.Timer(0.3, _end_now)
    timer.daemon = True
    timer.start()


def _end_now():
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(130)


_workers = weakref.WeakKeyDictionary()  # thread -> function that asks it to stop


def in_background(function, *args, ask_to_stop=lambda: None):
    """Starts `function(*args)` in a thread that never keeps the process alive; gives its Future."""
    future = Future()

    def run():
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    worker = threading.Thread(target=run, name=function.__name__, daemon=True)
    _workers[worker] = ask_to_stop
    worker.start()
    return future


def stop_workers(timeout_s):
    """Ends all background work, as far as it ends within so many seconds."""
    deadline = time.monotonic() + timeout_s
    workers = dict(_workers)
    for ask_to_stop in workers.values():
        ask_to_stop()
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))


def run_ahead(make_iterator, num_ahead, is_stopped=lambda: False, leave=lambda: None):
    """Yields what a generator yields while a thread keeps up to `num_ahead` items ready.

    One more item may wait for its place. `make_iterator()` is called in the thread. While
    `is_stopped()` and nothing is ready, None is yielded; `leave()` is called when nobody will ask
    for more.
    """
    items, stopped, end = queue.Queue(num_ahead), threading.Event(), object()

    def put(item):
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                return items.put(item, timeout=0.1)

    def produce():
        try:
            with contextlib.closing(make_iterator()) as iterator:
                for item in iterator:
                    put(item)
                    if stopped.is_set():
                        return
        finally:
            put(end)

    def stop():
        stopped.set()
        leave()

    produced = in_background(produce, ask_to_stop=stop)
    try:
        while True:
            try:
                item = items.get(timeout=0.2)
            except queue.Empty:
                if is_stopped():
                    yield None
                continue
            if item is end:
                return produced.result()  # which raises what was raised there
            yield item
    finally:
        stop()


def map_ahead(pool, function, items, num_ahead):
    """Yields `function(item)` for each item, in order; a pool works on so many items ahead."""
    futures = deque()
    try:
        for item in items:
            futures.append(pool.submit(function, item))
            if len(futures) > num_ahead:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
    finally:
        for future in futures:
            future.cancel()


LEAST_S, MOST_S = 10.0, 25.0  # between two lines of progress where nothing moves
TICK_S = 0.5
_jobs = []  # the `Progress` that are at work, the innermost last
_starting = threading.Lock()
_line = {"told": 0.0, "width": 0}  # when something was told last; of the line that moves


class Progress:
    """How far a long job is: on a terminal one line that moves, elsewhere a plain line at times.

    Of several jobs the innermost is shown; one that `is_ahead` of need only while no other is.
    The rate counts from the second update on: the first step of a network takes long.

    The unit is `B` for bytes, empty where nothing can be counted. A download is ahead of need.
    """

    def __init__(self, what, total=None, unit="images", is_ahead=False):
        self.what, self.total, self.unit, self.is_ahead = what, total, unit, is_ahead
        self.done, self.facts, self.first, self.is_busy = 0, "", None, False
        self.began = self.updated = time.monotonic()

    def __enter__(self):
        if not _jobs:
            _line["told"] = time.monotonic()
        _jobs.append(self)
        with _starting:  # downloads begin together, and a cache does not wait
            _start_showing()
        return self

    def __exit__(self, *exception):
        _jobs.remove(self)
        _clear_line()

    def update(self, amount=1, facts=""):
        """Notes that so much more is done; facts are told beside it, e.g. the loss."""
        self.done, self.facts, self.updated = self.done + amount, facts, time.monotonic()
        self.first = self.first or (self.done, self.updated)
        self.is_busy = False

    def note(self, facts):
        """Tells what it is busy with, so that it waits for nothing until the next update."""
        self.facts, self.is_busy = facts, True

    def rate(self, now):
        """Gives what is done in a second; 0 where that is not known yet."""
        done, since = self.first or (0, now)
        return (self.done - done) / (now - since) if now > since else 0

    def describe(self, now):
        rate = self.rate(now)
        scale, unit, digits = (1e6, "MB", 1) if self.unit == "B" else (1, self.unit, 0)
        of_total = f" of {self.total / scale:,.0f}" if self.total else ""
        words = [f"{self.done / scale:,.0f}{of_total} {unit}"] if unit else []
        words += [self.facts] if self.facts else []
        if not rate:
            words.append(f"{format_duration(now - self.began)} so far")
        else:
            words.append(f"{rate / scale:,.{digits}f} {unit}/s")
            if self.total:
                words.append(f"{format_duration(max(0, self.total - self.done) / rate)} to go")
        return f"{self.what}: {', '.join(words)}"


@functools.cache
def _start_showing():
    """Starts the one thread that shows the innermost job, while there is one."""

    def show_jobs():
        while True:
            threading.Event().wait(TICK_S)  # no clock that a test may hold
            with contextlib.suppress(OSError, ValueError, IndexError):  # a closed stderr, no job
                _show(time.monotonic(), bool(sys.stderr and sys.stderr.isatty()))

    threading.Thread(target=show_jobs, name="progress", daemon=True).start()


def _show(now, is_terminal):
    jobs = list(_jobs)
    ahead = [job for job in jobs if job.is_ahead]
    job = ([job for job in jobs if not job.is_ahead] or ahead[:1])[-1]
    if job.is_ahead:
        text = _describe_ahead(ahead, now)
    else:
        text = job.describe(now)
        if ahead and not job.is_busy and now - job.updated > 2:
            text = job.what if is_terminal else text  # what it waits for must fit the line
            text = f"{text}; waiting for {_describe_ahead(ahead, now)}"
    if not is_terminal:
        silent_s = now - _line["told"]
        if silent_s >= MOST_S or (silent_s >= LEAST_S and job.updated > _line["told"]):
            say(text)
        return
    from tqdm import tqdm

    bar = "{percentage:3.0f}% |{bar:20}| "
    is_counted = job.total and job.done
    share = tqdm.format_meter(job.done, job.total, 0, bar_format=bar) if is_counted else ""
    text = f"{share}{masked(text)}"
    columns = shutil.get_terminal_size().columns - 1
    print(f"\r{text[:columns]:<{_line['width']}}", end="", file=sys.stderr, flush=True)
    _line["width"] = min(len(text), columns)


def _describe_ahead(jobs, now):
    """Describes the first of the downloads, and in a few words the others."""
    text = jobs[0].describe(now)
    if len(jobs) > 1:
        text += f"; {len(jobs) - 1} more on the way"
        rate = sum(job.rate(now) for job in jobs)
        text += f", {rate / 1e6:,.1f} MB/s in all" if rate else ""
    return text


def _clear_line():
    if _line["width"]:
        print(f"\r{'':<{_line['width']}}\r", end="", file=sys.stderr, flush=True)
        _line["width"] = 0
