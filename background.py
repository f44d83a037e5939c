"""Work in threads that never keep the process alive: started, ahead of need, ended in time."""

import contextlib
import queue
import threading
import time
import weakref
from collections import deque
from concurrent.futures import Future

_workers = weakref.WeakKeyDictionary()  # thread -> function that asks it to stop


def in_background(function, *args):
    """Starts `function(*args)` in a thread that never keeps the process alive; gives its Future."""
    future = Future()

    def run():
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    _start_worker(run, function.__name__)
    return future


def _start_worker(run, name, ask_to_stop=lambda: None):
    """Starts a thread that never keeps the process alive."""
    worker = threading.Thread(target=run, name=name, daemon=True)
    _workers[worker] = ask_to_stop
    worker.start()


def stop_workers(timeout_s):
    """Ends all background work, as far as it ends within so many seconds."""
    deadline = time.monotonic() + timeout_s
    workers = dict(_workers)
    for ask_to_stop in workers.values():
        ask_to_stop()
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))


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

    _start_worker(run, "run_ahead", stopped.set)
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
