"""The machines of one run, by JAX's distributed runtime: it connects them and watches them.

Its key-value store carries small facts, its heartbeats notice a machine that is gone. Ours is what
it lacks: shards for each machine, a stop that all follow, and one line where a machine is lost.
"""

import atexit
import contextlib
import dataclasses
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np

from generators import Batch, ShardEnd
from network.loading import stdout_to_stderr
from utils import ExpectedError, StoppedError, os_errors_as, say

PATIENCE_S = 300  # for the other machines at the start
LOST_AFTER_S = 60  # without a sign of life; JAX then ends the others
LAST_WORDS_S = 3.0  # until all others know that a machine ends
LEAVE_TOGETHER_S = 10.0  # for all to come to the end; a step that waits may never do

# Where JAX ends a process it does so in native code, with a page; this reads what comes from there.
NATIVE_READER = """
import sys
told = sys.stdin.buffer.read()
if b"Terminating process because the JAX distributed service" in told:
    told = sys.argv[1].encode()
sys.stderr.buffer.write(told)
"""


class LostError(ExpectedError):
    """Another machine ended or is gone."""

    def __init__(self, reason, count):
        super().__init__(
            f"{reason}; expected all {count} machines to the end; run the same command again to "
            "continue, with those that are there"
        )
        self.reason = reason


class Machines:
    """The machines of a run (`HOST:PORT` of each; none: alone), seen from one; `join` makes it.

    Its number is its place among them; the first writes what is kept. The client is that of JAX's
    coordination service.
    """

    def __init__(self, addresses=(), number=0, client=None):
        self.addresses, self.number = addresses, number
        self.count = max(1, len(addresses))  # that train together; each has a shard of its own
        self._client, self._turn = client, 0

    def name(self, number):
        return f"machine {number} ({self.addresses[number]})"

    def exchange(self, value):
        """Gives what all machines say, in their order; LostError if one ended. All must call it."""
        if self.count == 1:
            return [value]
        self._say(self._turn, {"value": value})
        said = [self._hear(number) for number in range(self.count)]
        if self._turn:  # all have read what was said before, as they speak again
            self._client.key_value_delete(self._key(self._turn - 1, self.number))
        self._turn += 1
        return [each["value"] for each in said]

    def _say(self, turn, message):
        key, text = self._key(turn, self.number), json.dumps(message)
        self._client.key_value_set(key, text, allow_overwrite=True)

    def _hear(self, number, patience_s=math.inf):
        deadline = time.monotonic() + patience_s
        while True:
            try:  # in pieces of a second: Ctrl-C is answered between them
                said = self._client.blocking_key_value_get(self._key(self._turn, number), 1000)
            except RuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
                if time.monotonic() > deadline:
                    raise LostError(
                        f"{self.name(number)} is gone or does not answer", self.count
                    ) from error
                continue
            said = json.loads(said)
            if said.get("failed"):
                raise LostError(said["failed"], self.count)
            return said

    def _key(self, turn, number):
        return f"landmarks/{turn}/{number}"

    def follow_first(self, variables, rows, facts):
        """Takes variables of the network and rows of the history from the first machine.

        Gives the rows. Raises ExpectedError unless the facts (a dict) are equal on all machines.
        """
        if self.count == 1:
            return rows
        import jax
        from jax.experimental import multihost_utils

        devices = jax.local_devices()
        kind = f"{len(devices)} {devices[0].platform}"
        self.require_equal(facts | {"the number and kind of devices": kind})
        for variable in variables:
            variable.assign(multihost_utils.broadcast_one_to_all(np.asarray(variable)))
        return self.exchange(None if self.number else rows)[0]

    def require_equal(self, facts):
        facts = json.loads(json.dumps(facts))  # as others come
        for number, others in enumerate(self.exchange(facts)):
            for name in facts:
                if others[name] != facts[name]:
                    raise ExpectedError(
                        f"{self.name(number)}: {name} is {others[name]}, here it is "
                        f"{facts[name]}; expected the same command and data on all machines"
                    )

    def share_shards(self, stream, plan, reading):
        """Gives `stream(plan, reading)` of every n-th shard on each machine, 1/n of each batch.

        Where a shard ends before those of other machines, its last batch is repeated with a weight
        of 0: each image counts once. Plan, a list of (epoch, `Shard`), and `Reading` are those of
        all machines together.
        """
        if self.count == 1:
            yield from stream(plan, reading)
            return
        size = reading.batch_size // self.count
        reading = dataclasses.replace(reading, batch_size=size)
        items = stream(plan[self.number :: self.count], reading)
        pixels = np.zeros((size, *[reading.data.image_size] * 2, 3), np.uint8)
        none = np.empty(0, np.uint64)
        filler = Batch(pixels, none, np.zeros(size, np.int32), none)
        for begin in range(0, len(plan), self.count):
            # The last group may have no shard for this machine.
            is_over = begin + self.number >= len(plan)
            end = ShardEnd(plan[begin][1], 0, ()) if is_over else None
            while True:
                item = end or next(items)
                end = item if isinstance(item, ShardEnd) else None
                num_active = sum(self.exchange(end is None))
                if not num_active:
                    break
                filler = filler if end else item
                weight = 0.0 if end else self.count / num_active
                yield dataclasses.replace(filler, weight=weight)
            yield end

    def common(self, stop):
        """Gives a `Stop` that all machines follow together."""
        return stop if self.count == 1 else CommonStop(stop, self)

    def collect(self, row, num_shards):
        """Gives the rows of so many shards, which were trained together, from each machine's."""
        return [
            row
            | {name: row[name] / num_shards for name in ("waited_s", "seconds")}
            | {"images_per_s": row["images_per_s"] * num_shards}
            for row in self.exchange(row)[:num_shards]
        ]

    def end(self, error):
        """Tells the others that this machine ends, and leaves together with them where it can.

        Gives what to raise: the error, None at the end of the run, or why another machine is its
        reason.
        """
        if error is None:
            self.exchange("finished")
        else:
            error = self._fail(error)
        try:
            self._client.wait_at_barrier("end", round(LEAVE_TOGETHER_S * 1000))
        except RuntimeError:
            if self.number == 0:  # with which the store goes, and JAX would end those who read it
                time.sleep(LAST_WORDS_S)
            # JAX would wait for the others at the exit.
            atexit.register(os._exit, getattr(error, "exit_code", 1))
        else:
            import jax

            jax.distributed.shutdown()
        return error

    def _fail(self, error):
        """Says why this machine ends; gives the error, or what other machine is the reason."""
        reason = ""  # for what fails within a step, on all machines, when one of them is lost
        if isinstance(error, LostError):
            reason = error.reason
        elif isinstance(error, ExpectedError | StoppedError | KeyboardInterrupt):
            text = str(error).partition("\n")[0] or type(error).__name__
            reason = f"{self.name(self.number)} ended: {text}"
        for turn in (self._turn, self._turn + 1):  # others may have come one further
            self._say(turn, {"failed": reason})
        try:
            for number in range(0 if reason else self.count):
                self._hear(number, LAST_WORDS_S)
        except LostError as lost:
            return lost
        return error


ALONE = Machines()


class CommonStop:
    """A `Stop` of several machines: what stops one stops all, after the same step."""

    def __init__(self, stop, machines):
        self.stop, self.machines, self.said = stop, machines, ""

    @property
    def signal_number(self):
        return self.stop.signal_number

    def requested(self, needed_s=0.0):
        """Tells whether to stop now; all machines must ask together."""
        own = self.stop.reason() if self.stop.requested(needed_s) else ""
        reasons = self.machines.exchange(own)
        self.said = next((f"{r} on machine {k}" for k, r in enumerate(reasons) if r), "")
        return bool(self.said)

    def reason(self):
        """Names what asked for the stop, and where."""
        return self.said


@contextlib.contextmanager
def join(addresses, number):
    """Joins the machines of a run, which then train as one; yields `Machines`.

    JAX listens at the first of the addresses; None is for this machine alone.

    Raises:
        ExpectedError: Keras does not run on JAX, a machine did not come, or is gone.
    """
    if not addresses:
        yield ALONE
        return
    _require_jax(addresses)
    machines = _connect(addresses, number)
    lost = LostError(f"another machine is gone, or silent for {LOST_AFTER_S} s", machines.count)
    with native_ends_in_one_line(lost):
        try:
            yield machines
            machines.end(None)
        except BaseException as error:
            reason = machines.end(error)
            if reason is error:
                raise
            raise reason from error


def _connect(addresses, number):
    import jax
    from jax._src import distributed  # the key-value store has no public name

    if number == 0:
        _require_free_port(addresses[0])
    _require_name(addresses[number])
    absent = ExpectedError(
        f"machine {number} ({addresses[number]}): the {len(addresses)} machines did not find one "
        f"another within {PATIENCE_S} s; expected the same list of machines everywhere, another "
        "number on each, and a way to the first; start the command on all"
    )
    say(f"waiting for {len(addresses)} machines at {addresses[0]}")
    with native_ends_in_one_line(absent):
        try:
            # Keras' own `initialize` lets JAX guess the devices: under Slurm the first GPU alone.
            jax.distributed.initialize(
                addresses[0], len(addresses), number, cluster_detection_method="deactivate",
                initialization_timeout=PATIENCE_S, heartbeat_timeout_seconds=LOST_AFTER_S,
            )  # fmt: skip
            machines = Machines(addresses, number, distributed.global_state.client)
            if machines.exchange(list(addresses)) != [list(addresses)] * len(addresses):
                raise absent
            jax.devices()  # waits for those of all machines
        except RuntimeError as error:
            raise absent from error
    # JAX takes SIGTERM for itself, which then stops nothing; Slurm sends it ahead of the end.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    return machines


@contextlib.contextmanager
def native_ends_in_one_line(error):
    """Puts an ExpectedError in the place of the page with which JAX ends a process in the block.

    What other native code writes to stdout and stderr shows where the block fails otherwise.
    """
    sys.stderr.flush()
    original, python_stderr = os.dup(2), sys.stderr
    command = [sys.executable, "-c", NATIVE_READER, f"error: {error}\n"]
    # A session of its own: it must outlive Ctrl-C.
    reader = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    os.dup2(reader.stdin.fileno(), 2)
    reader.stdin.close()
    sys.stderr = open(original, "w", buffering=1, closefd=False)  # noqa: SIM115
    try:
        with stdout_to_stderr():  # Gloo says there that it is connected
            yield
        reader.kill()
    except (ExpectedError, StoppedError, KeyboardInterrupt):
        reader.kill()
        raise
    finally:
        sys.stderr.flush()
        sys.stderr = python_stderr
        os.dup2(original, 2)
        os.close(original)
        reader.wait()


def _require_jax(addresses):
    import keras

    if keras.backend.backend() != "jax":
        raise ExpectedError(
            f"{len(addresses)} machines: Keras runs on {keras.backend.backend()}; expected JAX, "
            "which trains on several; set KERAS_BACKEND=jax"
        )


def _require_free_port(address):
    """Raises ExpectedError unless JAX can listen there: it says so in many lines, after minutes."""
    host, _, port = address.rpartition(":")
    what, expected = f"machine 0 ({address}): cannot listen there", "a free port of this machine"
    with os_errors_as(what, expected, "machines"):
        socket.create_server((host, int(port))).close()


def _require_name(address):
    """Raises ExpectedError unless the name of this machine leads to where others reach it."""
    # Gloo tells it to the others; on Debian and Ubuntu it leads to 127.0.1.1 at first.
    name = socket.gethostname()
    own, named = _look_up(address.rpartition(":")[0]), _look_up(name)
    if not own.startswith("127.") and named.startswith(("127.", "nowhere")):
        raise ExpectedError(
            f"{name}: the name of this machine leads to {named}; expected {own}, where the others "
            "reach it; change its line in /etc/hosts"
        )


def _look_up(host):
    try:
        return socket.gethostbyname(host)
    except OSError:
        return "nowhere"
