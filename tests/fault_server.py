"""A loopback HTTP server for tests whose answers go wrong as a script says."""

import contextlib
import hashlib
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

DRIP_S = 0.05  # seconds between the bytes of a dripping answer


@dataclass(frozen=True)
class Fault:
    """What is wrong with one answer; by default nothing. Positions count bytes of its body.

    Attributes:
        raw: these bytes instead of an answer; b"" closes before the header.
        status: answers with this status and no file.
        headers: added to the healthy ones, or put in their place.
        new_content: from this answer on, the file is this (with another ETag).
        ignore_range: answers 200 with the whole file.
        ignore_if_range: answers 206 although the file has changed.
        offset_error: a 206 begins so many bytes too late.
        longest_range: a 206 has so many bytes at most.
        length_error: added to Content-Length.
        corrupt_at: flips the bits of this byte.
        close_after: closes the connection after so many bytes.
        reset_after: resets the connection after so many bytes.
        drip_after: sends the rest byte by byte.
        silence_after: sends nothing more, but keeps the connection open.
    """

    raw: bytes | None = None
    status: int | None = None
    headers: dict = field(default_factory=dict)
    new_content: bytes | None = None
    ignore_range: bool = False
    ignore_if_range: bool = False
    offset_error: int = 0
    longest_range: int | None = None
    length_error: int = 0
    corrupt_at: int | None = None
    close_after: int | None = None
    reset_after: int | None = None
    drip_after: int | None = None
    silence_after: int | None = None


class Request(NamedTuple):
    """A request as it came."""

    method: str
    path: str
    range: str | None
    if_range: str | None
    accept_encoding: str | None
    client_port: int


class FaultServer(ThreadingHTTPServer):
    """Serves `files` while a `with` block lasts.

    Attributes:
        files: dict, path (with leading slash) -> bytes.
        faults: dict, path -> list of Fault; each request takes the first, none left is healthy.
        requests: list of Request.
        address: http address with a slash at the end.

    Args:
        files: see above.
        etag: "strong", "weak", or None to send no validator.
        keep_alive: leaves a connection open for the next request.
    """

    daemon_threads = False  # so that closing waits for the last answer

    def __init__(self, files=(), etag="strong", keep_alive=False):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.etag, self.keep_alive = dict(files), etag, keep_alive
        self.connections = set()
        self.faults, self.requests = {}, []
        self.closing = threading.Event()
        self.address = f"http://127.0.0.1:{self.server_port}/"

    def __enter__(self):
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self.closing.set()
        self.shutdown()
        for connection in list(self.connections):  # kept alive: nothing more will be asked
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RD)
        self._thread.join()
        self.server_close()

    def process_request(self, request, client_address):
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address):
        """Stays quiet: a client that leaves early is what some tests are about."""

    def next_fault(self, path):
        """Takes the fault of this request off the script."""
        script = self.faults.get(path)
        fault = script.pop(0) if script else Fault()
        if fault.new_content is not None:
            self.files[path] = fault.new_content
        return fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):  # noqa: N802 - named by the standard library
        self.answer()

    def do_GET(self):  # noqa: N802
        self.answer()

    def answer(self):
        self.close_connection = True
        wanted = [self.headers.get(name) for name in ("Range", "If-Range", "Accept-Encoding")]
        port = self.client_address[1]
        self.server.requests.append(Request(self.command, self.path, *wanted, port))
        fault = self.server.next_fault(self.path)
        if fault.raw is not None:
            self.wfile.write(fault.raw)
            return
        status, headers, body = self.healthy_answer(fault)
        headers["Content-Length"] = len(body) + fault.length_error
        if self.server.keep_alive:
            self.close_connection = False
        else:
            headers["Connection"] = "close"
        self.send_response(status)
        for name, value in (headers | fault.headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.send_body(body, fault)

    def healthy_answer(self, fault):
        """Gives (status, headers, body), apart from what the fault does to the way there."""
        content = self.server.files.get(self.path)
        if fault.status is not None or content is None:
            return fault.status or 404, {}, b""
        headers = {}
        if self.server.etag:
            etag = f'"{hashlib.md5(content).hexdigest()}"'
            headers["ETag"] = etag if self.server.etag == "strong" else f"W/{etag}"
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if_range = self.headers.get("If-Range")
        changed = if_range is not None and if_range != headers.get("ETag")
        if not asked or fault.ignore_range or (changed and not fault.ignore_if_range):
            return 200, headers, content
        start = int(asked[1]) + fault.offset_error
        if start >= len(content):
            return 416, {"Content-Range": f"bytes */{len(content)}"}, b""
        stop = int(asked[2]) + 1 + fault.offset_error if asked[2] else len(content)
        stop = min(stop, len(content), start + (fault.longest_range or len(content)))
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return 206, headers, content[start:stop]

    def send_body(self, body, fault):
        if fault.corrupt_at is not None:
            wrong = bytes([body[fault.corrupt_at] ^ 0xFF])
            body = body[: fault.corrupt_at] + wrong + body[fault.corrupt_at + 1 :]
        self.close_connection |= fault.close_after is not None
        ends = (fault.close_after, fault.reset_after, fault.drip_after, fault.silence_after)
        end = next((end for end in ends if end is not None), len(body))
        self.wfile.write(body[:end])
        if fault.reset_after is not None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif fault.drip_after is not None:
            for place in range(end, len(body)):
                if self.server.closing.wait(DRIP_S):
                    return
                self.wfile.write(body[place : place + 1])
        elif fault.silence_after is not None:
            self.server.closing.wait(60)
