"""The machines of one run: they find one another, agree, and notice when one is gone.

Every machine but the first listens at its address, the first connects to all of them; JSON lines
go to and fro. Nothing here knows Keras or JAX.
"""

import contextlib
import json
import os
import queue
import socket
import threading
import time

from utils import ExpectedError, say

PATIENCE_S = 300.0  # for the other machines at the start
BEAT_S = 5.0  # between signs of life
LOST_AFTER_S = 120.0  # without a sign of life; compiling a step may hold it up for a minute
GRACE_S = 15.0  # to end cleanly; a step that waits for a lost machine may never end
MAX_LINE_BYTES = 64 << 20
NOWHERE = "nowhere"


class Peer:
    """A connection to another machine: its socket, what to read from, and what came."""

    def __init__(self, connection):
        self.connection = connection
        self.file = connection.makefile("r", encoding="utf-8")
        self.messages = queue.Queue()


class Machines:
    """The machines of a run, seen from one of them.

    Args:
        addresses: tuple of str, `HOST:PORT` of each machine.
        number: of this one, its place in `addresses`.

    Raises:
        ExpectedError: this machine's port is taken, another machine did not come, or was started
            with other addresses.
    """

    def __init__(self, addresses, number):
        self.addresses, self.number = tuple(addresses), number
        self.lost = None  # why the run cannot go on
        self._loss = None  # ... in short, as the others are told it
        self._has_lost = threading.Event()
        self._is_closed = False
        self._stderr = os.dup(2)  # which the main thread may have muted when it is needed
        self._lock = threading.Lock()
        if (
            number == 0
        ):  # JAX will listen there, and says in many lines, after minutes, if it cannot
            self._open_port().close()
        others = range(1, len(addresses)) if number == 0 else [0]
        self._peers = {}
        deadline = time.monotonic() + PATIENCE_S
        for other in others:
            connect = self._call if number == 0 else self._listen
            connection = connect(other, deadline)
            self._peers[other] = Peer(connection)
            self._greet(other)
        for work in (self._beat, *(lambda o=other: self._read(o) for other in others)):
            threading.Thread(target=work, name="machines", daemon=True).start()

    def __len__(self):
        return len(self.addresses)

    def name(self, number):
        """Names a machine for a message."""
        return f"machine {number} ({self.addresses[number]})"

    def exchange(self, value):
        """Gives what all machines say, in their order; all of them must call it.

        Args:
            value: anything that JSON can hold.

        Raises:
            ExpectedError: one of them failed or is gone.
        """
        if self.number:
            self._send(0, {"value": value})
            return self._receive(0)["values"]
        values = [value, *(self._receive(other)["value"] for other in self._peers)]
        for other in self._peers:
            self._send(other, {"values": values})
        return values

    def finish(self):
        """Waits until all have come to the end."""
        self.exchange("finished")
        self._is_closed = True

    def fail(self, reason):
        """Tells the others that this machine ends, and why; they end, too."""
        told = self._loss or f"{self.name(self.number)} ended: {reason}"
        for other in self._peers:
            self._send(other, {"failed": told})
        self._is_closed = True

    def is_lost(self, timeout_s):
        """Tells whether a machine is gone, which may show in other errors a little earlier."""
        return self._has_lost.wait(timeout_s)

    # ------------------------------------------------------------------------- the connections

    def _call(self, other, deadline):
        """Connects to another machine."""
        host, _, port = self.addresses[other].rpartition(":")
        say(f"waiting for {self.name(other)}")
        while True:
            try:
                return socket.create_connection((host, int(port)), timeout=LOST_AFTER_S)
            except OSError as error:
                if time.monotonic() > deadline:
                    raise self._absent(other, error) from error
                time.sleep(0.2)

    def _listen(self, other, deadline):
        """Waits for another machine to connect."""
        with self._open_port() as server:
            say(f"waiting for {self.name(other)}")
            server.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                connection, _ = server.accept()
            except TimeoutError as error:
                raise self._absent(other, error) from error
        connection.settimeout(LOST_AFTER_S)
        return connection

    def _open_port(self):
        """Listens at this machine's address."""
        host, _, port = self.addresses[self.number].rpartition(":")
        try:
            return socket.create_server((host, int(port)))
        except OSError as error:
            raise ExpectedError(
                f"{self.name(self.number)}: cannot listen there ({error.strerror or error}); "
                "expected a free port of this machine",
                setting="machines",
            ) from error

    def _greet(self, other):
        """Makes sure that the other side is of this run."""
        hello = {"machines": list(self.addresses), "number": other}
        self._send(other, hello)
        try:
            answer = json.loads(self._peers[other].file.readline(MAX_LINE_BYTES) or "{}")
        except (OSError, ValueError) as error:
            answer = str(error)
        if answer != hello | {"number": self.number}:
            raise ExpectedError(
                f"{self.name(other)}: answers {json.dumps(answer)[:200]}; expected the same list "
                "of machines everywhere, and another number on each",
                setting="machines",
            )

    def _absent(self, other, error):
        return ExpectedError(
            f"{self.name(other)}: did not come within {PATIENCE_S:.0f} s ({error}); expected the "
            f"same command there with --machine {other}; start it on all machines"
        )

    def _send(self, other, message):
        with contextlib.suppress(OSError), self._lock:  # the reader notices that it is gone
            self._peers[other].connection.sendall(json.dumps(message).encode() + b"\n")

    def _receive(self, other):
        while True:
            if self.lost:
                raise ExpectedError(self.lost)
            with contextlib.suppress(queue.Empty):
                message = self._peers[other].messages.get(timeout=0.5)
                if message:
                    return message

    def _beat(self):
        while True:
            for other in self._peers:
                self._send(other, {"alive": True})
            time.sleep(BEAT_S)

    def _read(self, other):
        """Takes in what another machine says, until it says no more."""
        peer = self._peers[other]
        while True:
            try:
                message = json.loads(peer.file.readline(MAX_LINE_BYTES))
            except (OSError, ValueError):  # also at the end, where nothing is read
                break
            if "failed" in message:
                self._lose(message["failed"])
            elif "alive" not in message:
                peer.messages.put(message)
        self._lose(f"{self.name(other)} is gone")

    def _lose(self, reason):
        """Ends the run on this machine, and lets the first machine tell the others."""
        if self._is_closed or self.lost:
            return
        self._loss = reason
        self.lost = (
            f"{reason}; expected all {len(self)} machines to the end; run the same command again "
            "to continue, with those that are there"
        )
        self._has_lost.set()
        for other, peer in self._peers.items():
            peer.messages.put(None)
            if self.number == 0:
                self._send(other, {"failed": reason})
        timer = threading.Timer(GRACE_S, self._give_up)
        timer.daemon = True
        timer.start()

    def _give_up(self):
        """Ends the process: its main thread waits inside of a step, where nothing reaches it."""
        if not self._is_closed:
            os.write(self._stderr, f"error: {self.lost}\n".encode())
            os._exit(1)


def require_name(address):
    """Makes sure that the name of this machine leads where others reach it.

    It is what Gloo tells the others, by which JAX connects processors; on Debian and Ubuntu it
    leads to 127.0.1.1 at first.

    Args:
        address: `HOST:PORT` of this machine.

    Raises:
        ExpectedError: it leads to this machine alone, or nowhere.
    """
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


def open_door(address):
    """Opens a port of this machine that leads to an address, and stays open when that is gone.

    JAX ends a process, with a page of its own, as soon as its connection to the first machine
    breaks; this one does not.

    Args:
        address: `HOST:PORT`.

    Returns:
        The door's own `HOST:PORT`.
    """
    host, _, port = address.rpartition(":")
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            inner, _ = server.accept()
            try:
                outer = socket.create_connection((host, int(port)))
            except OSError:  # not yet there: asked again
                inner.close()
                continue
            for pair in ((inner, outer), (outer, inner)):
                threading.Thread(target=_copy, args=pair, name="door", daemon=True).start()

    threading.Thread(target=serve, name="door", daemon=True).start()
    return f"127.0.0.1:{server.getsockname()[1]}"


def _copy(source, target):
    """Copies what comes from a socket to another until the end, which is not passed on."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
