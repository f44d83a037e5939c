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
from utils import ExpectedError, StoppedError, say

PATIENCE_S = 300  # for the other machines at the start
LOST_AFTER_S = 60  # without a sign of life; JAX then ends the others
LAST_WORDS_S = 3.0  # until all others know that a machine ends
LEAVE_TOGETHER_S = 10.0  # for all to come to the end; a step that waits may never do
NOWHERE = "nowhere"

# Where JAX ends a process it does so in native code, with a page; this reads what comes from there.
NATIVE_READER = """
import sys
told = sys.stdin.buffer.read()
if b"Terminating process because the JAX distributed service" in told:
    told = sys.argv[1].encode()
sys.stderr.buffer.write(told)
"""


class OneMachine:
    """A run on this machine alone, where nothing has to be agreed on.

    Attributes:
        count: machines that train together; each has a shard of its own.
        number: of this one; the first writes what is kept.
    """

    count = 1
    number = 0

    def follow_first(self, variables, rows, facts):
        """Takes weights and rows of the history from the first machine; gives the rows.

        Args:
            variables: list of keras.Variable, weights and moments of the network.
            rows: of the history, as far as this machine knows it.
            facts: dict that must be equal on all machines.
        """
        return rows

    def share_shards(self, stream, plan, reading):
        """Gives the stream of this machine's shards, with as many batches a group as the others'.

        Args:
            stream: function, (plan, `Reading`) -> iterator of `Batch` and `ShardEnd`.
            plan: list of (epoch, `Shard`), those of all machines.
            reading: `Reading` of batches as the recipe has them.
        """
        return stream(plan, reading)

    def common(self, stop):
        """Gives a `Stop` that all machines follow together."""
        return stop

    def collect(self, row, num_shards):
        """Gives the rows of a group of shards, which were trained together, in their order.

        Args:
            row: of the history, what this machine knows of its shard.
            num_shards: of the group.
        """
        return [row]


ALONE = OneMachine()


class LostError(ExpectedError):
    """Another machine ended or is gone."""

    def __init__(self, reason, count):
        super().__init__(
            f"{reason}; expected all {count} machines to the end; run the same command again to "
            "continue, with those that are there"
        )
        self.reason = reason


class Machines(OneMachine):
    """Several machines, seen from one of them; `join` makes it.

    Args:
        addresses: tuple of str, `HOST:PORT` of each machine.
        number: of this one, its place in `addresses`.
        client: of JAX's coordination service.
    """

    def __init__(self, addresses, number, client):
        self.addresses, self.number, self.count = addresses, number, len(addresses)
        self._client, self._turn = client, 0

    def name(self, number):
        """Names a machine for a message."""
        return f"machine {number} ({self.addresses[number]})"

    # ------------------------------------------------------------------------ what is agreed on

    def exchange(self, value):
        """Gives what all machines say, in their order; all of them must call it.

        Raises:
            LostError: one of them ended.
        """
        self._say(self._turn, {"value": value})
        said = [self._hear(number) for number in range(self.count)]
        if self._turn:  # all have read what was said before, as they speak again
            self._client.key_value_delete(self._key(self._turn - 1, self.number))
        self._turn += 1
        return [each["value"] for each in said]

    def _say(self, turn, message):
        key = self._key(turn, self.number)
        self._client.key_value_set(key, json.dumps(message), allow_overwrite=True)

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
        import jax
        from jax.experimental import multihost_utils

        devices = jax.local_devices()
        kind = f"{len(devices)} {devices[0].platform}"
        self.require_equal(facts | {"the number and kind of devices": kind})
        for variable in variables:
            variable.assign(multihost_utils.broadcast_one_to_all(np.asarray(variable)))
        return self.exchange(None if self.number else rows)[0]

    def require_equal(self, facts):
        """Raises ExpectedError unless all machines have the same facts."""
        facts = json.loads(json.dumps(facts))  # as others come
        for number, others in enumerate(self.exchange(facts)):
            for name in facts:
                if others[name] != facts[name]:
                    raise ExpectedError(
                        f"{self.name(number)}: {name} is {others[name]}, here it is "
                        f"{facts[name]}; expected the same command and data on all machines"
                    )

    def share_shards(self, stream, plan, reading):
        """Gives every n-th shard to each machine, which gives 1/n of each batch.

        Where a shard ends before those of other machines, its last batch is repeated with a weight
        of 0: each image counts once.
        """
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
        return CommonStop(stop, self)

    def collect(self, row, num_shards):
        rows = self.exchange(row)[:num_shards]
        times = ("waited_s", "seconds")
        return [
            row
            | {name: row[name] / num_shards for name in times}
            | {"images_per_s": row["images_per_s"] * num_shards}
            for row in rows
        ]

    # ----------------------------------------------------------------------------------- the end

    def end(self, error):
        """Tells the others that this machine ends, and leaves together with them where it can.

        Args:
            error: why; None at the end of the run.

        Returns:
            What to raise: the error, or why it came where another machine is the reason.
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


class CommonStop:
    """A `Stop` of several machines: what stops one stops all, after the same step.

    Args:
        stop: `Stop` of this machine.
    """

    def __init__(self, stop, machines):
        self.stop, self.machines = stop, machines
        self.said = ""

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


# ------------------------------------------------------------------------------ the connections


@contextlib.contextmanager
def join(addresses, number):
    """Joins the machines of a run, which then train as one.

    Args:
        addresses: tuple of str, `HOST:PORT` of each machine; None for this machine alone. JAX
            listens at the first one.
        number: of this machine.

    Yields:
        `OneMachine` or `Machines`.

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
    """Connects to the other machines; gives `Machines`."""
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
                addresses[0],
                len(addresses),
                number,
                cluster_detection_method="deactivate",
                initialization_timeout=PATIENCE_S,
                heartbeat_timeout_seconds=LOST_AFTER_S,
            )
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
    """Puts one line in the place of the page with which JAX ends a process in the block.

    What other native code writes to stdout and stderr shows where the block fails otherwise.

    Args:
        error: ExpectedError to tell instead.
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
    except (ExpectedError, StoppedError, KeyboardInterrupt):
        reader.kill()
        raise
    else:
        reader.kill()
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
    try:
        socket.create_server((host, int(port))).close()
    except OSError as error:
        raise ExpectedError(
            f"machine 0 ({address}): cannot listen there ({error.strerror or error}); expected a "
            "free port of this machine",
            setting="machines",
        ) from error


def _require_name(address):
    """Raises ExpectedError unless the name of this machine leads to where others reach it."""
    # Gloo tells it to the others; on Debian and Ubuntu it leads to 127.0.1.1 at first.
    host, name = address.rpartition(":")[0], socket.gethostname()
    own, named = _look_up(host), _look_up(name)
    if not own.startswith("127.") and (named == NOWHERE or named.startswith("127.")):
        raise ExpectedError(
            f"{name}: the name of this machine leads to {named}; expected {own}, where the others "
            "reach it; change its line in /etc/hosts"
        )


def _look_up(host):
    try:
        return socket.gethostbyname(host)
    except OSError:
        return NOWHERE
