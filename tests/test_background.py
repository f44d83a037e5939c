"""Tests of background work: results, exceptions, order, bounds, ends."""

import threading
import time

import pytest

import utils
from utils import ExpectedError, in_background, run_ahead, stop_workers


def test_background_work_gives_its_result():
    assert in_background(divmod, 17, 5).result(timeout=30) == (3, 2)


def test_background_work_gives_its_exception():
    future = in_background(divmod, 1, 0)
    with pytest.raises(ZeroDivisionError):
        future.result(timeout=30)


@pytest.mark.parametrize("num_ahead", [1, 2, 100])
def test_run_ahead_keeps_the_order(num_ahead):
    assert list(run_ahead(lambda: (n * n for n in range(50)), num_ahead)) == [
        n * n for n in range(50)
    ]


def test_run_ahead_takes_none_for_an_item():
    assert list(run_ahead(lambda: (item for item in (None, 1, None)), 2)) == [None, 1, None]


def test_run_ahead_of_nothing_is_nothing():
    assert list(run_ahead(lambda: (item for item in ()), 2)) == []


def test_an_exception_passes_through_run_ahead_after_the_items_before_it():
    def items():
        yield 1
        yield 2
        raise ExpectedError("third")

    received = []
    with pytest.raises(ExpectedError, match="third"):
        for item in run_ahead(items, 1):
            received.append(item)
    assert received == [1, 2]


def test_run_ahead_works_in_another_thread():
    def items():
        yield threading.current_thread()

    (thread,) = run_ahead(items, 1)
    assert thread is not threading.current_thread()


def test_run_ahead_closes_the_iterator_when_the_consumer_leaves_early():
    closed, made = threading.Event(), []

    def items():
        try:
            for item in range(1000):
                made.append(item)
                yield item
        finally:
            closed.set()

    ahead = run_ahead(items, 2)
    assert next(ahead) == 0
    assert not closed.is_set()
    ahead.close()
    assert closed.wait(timeout=30)
    assert len(made) <= 1 + 2 + 1


def test_run_ahead_closes_the_iterator_at_its_end():
    closed = threading.Event()

    def items():
        try:
            yield 1
        finally:
            closed.set()

    assert list(run_ahead(items, 2)) == [1]
    assert closed.wait(timeout=30)


def test_run_ahead_starts_nothing_before_the_first_item_is_asked_for():
    started = []
    ahead = run_ahead(lambda: started.append(1) or iter(()), 2)
    ahead.close()
    assert started == []


def test_run_ahead_is_bounded():
    made = []

    def items():
        for item in range(40):
            made.append(item)
            yield item

    for item in run_ahead(items, 3):
        time.sleep(0.002)  # time in which an unbounded thread would run away
        assert len(made) - (item + 1) <= 3 + 1  # those held, and one that waits for its place


def test_run_ahead_yields_none_when_stopped_with_nothing_ready():
    more, stopped = threading.Event(), threading.Event()

    def items():
        yield 1
        more.wait(30)
        yield 2

    ahead = run_ahead(items, 2, stopped.is_set)
    assert next(ahead) == 1
    stopped.set()
    assert [next(ahead), next(ahead)] == [None, None]
    more.set()
    assert [item for item in ahead if item is not None] == [2]


def test_run_ahead_waits_for_slow_items_unless_stopped():
    def items():
        for item in range(2):
            time.sleep(0.3)  # longer than it waits before it looks whether to stop
            yield item

    assert list(run_ahead(items, 2)) == [0, 1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_iterator_that_cannot_be_made_raises_in_the_consumer():
    def cannot():
        raise ExpectedError("no iterator")

    result = in_background(lambda: list(run_ahead(cannot, 1)))
    with pytest.raises(ExpectedError, match="no iterator"):
        result.result(timeout=2)


def test_all_workers_together_get_no_more_time_than_one(monkeypatch):
    clock, waits, asked = [100.0], [], []

    class Stuck:
        def join(self, timeout):
            waits.append(timeout)
            clock[0] += min(timeout, 2)

    monkeypatch.setattr(utils.time, "monotonic", lambda: clock[0])
    workers = {Stuck(): (lambda number=number: asked.append(number)) for number in range(4)}
    monkeypatch.setattr(utils, "_workers", workers)
    stop_workers(5)
    assert waits == [5, 3, 1, 0] and asked == [0, 1, 2, 3]
