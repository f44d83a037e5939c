"""How many shards are downloaded at once: as many as keep their user busy and the server bears."""

import contextlib
import math
import statistics
import threading
import time
from collections import deque
from concurrent.futures import CancelledError

MAX_CONNECTIONS = 8
SPARE = 1.3  # a download may take so many times as long as those before it
NUM_REMEMBERED = 4  # downloads and uses whose times count
NUM_QUIET = 8  # shards used without a refusal, after which one connection more is tried


class Connections:
    """The connections of the downloads that run for one stream of shards.

    A download holds a connection while it receives, not while it waits for its next attempt. The
    number at most doubles from one shard to the next, and falls by one. A refusal halves it; from
    there it grows by one at a time, up to the limit.
    """

    def __init__(self, limit=1, number=1):
        self.limit = self._bearable = limit
        self.number = min(number, limit)  # connections now
        self.stopped = threading.Event()  # once it is set, all downloads end
        self._changed = threading.Condition()
        self._num_held = self._num_cuts = self._num_quiet = 0
        self._download_s = deque(maxlen=NUM_REMEMBERED)
        self._use_s = deque(maxlen=NUM_REMEMBERED)

    @contextlib.contextmanager
    def hold(self):
        """Waits for a free connection, and holds it during the block: one attempt.

        Yields a function that notes that the server refused this attempt; CancelledError where the
        stream has stopped.
        """
        with self._changed:
            while self._num_held >= self.number and not self.stopped.is_set():
                self._changed.wait(0.1)  # the Event wakes nobody here
            self.check()
            self._num_held += 1
            num_cuts = self._num_cuts
        begin = time.monotonic()
        try:
            yield lambda: self._cut(num_cuts)
            self._download_s.append(time.monotonic() - begin)
        finally:
            with self._changed:
                self._num_held -= 1
                self._changed.notify_all()

    def check(self):
        """Raises CancelledError once the stream has stopped."""
        if self.stopped.is_set():
            raise CancelledError

    def pause(self, seconds):
        """Waits so long, or until the stream stops."""
        self.stopped.wait(seconds)

    def _cut(self, num_cuts):
        with self._changed:
            if num_cuts == self._num_cuts:  # else it was sent before the number was cut
                self.number = self._bearable = max(1, self.number // 2)
                self._num_cuts += 1
                self._num_quiet = 0

    def adapt(self, use_s):
        """Sets the number, by the seconds for which a shard was used: before the next is."""
        with self._changed:
            self._use_s.append(use_s)
            self._num_quiet += 1
            if self._num_quiet >= NUM_QUIET:
                self._num_quiet, self._bearable = 0, min(self.limit, self._bearable + 1)
            if not self._download_s:  # all shards lie in folders
                return
            use_s = max(statistics.median(self._use_s), 1e-9)
            needed = math.ceil(SPARE * max(self._download_s) / use_s)
            most = min(2 * self.number, self._bearable)
            self.number = min(max(needed, self.number - 1, 1), most)
            self._changed.notify_all()
