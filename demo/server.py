"""Serves a folder over HTTP on this machine, as the mirror of the real data set does."""

import contextlib
import re
import socket
import sys
import threading
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class WorldHandler(BaseHTTPRequestHandler):
    """Answers GET and HEAD for the files of one folder, whole or one byte range of them."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    folder = None  # set by `serve`

    def do_GET(self):
        """Sends a file, or the range of it that is asked for."""
        path = self.find_file()
        if path is None:
            self.refuse(404)
            return
        status = path.stat()
        size_bytes, etag = status.st_size, f'"{status.st_mtime_ns:x}-{status.st_size:x}"'
        modified = formatdate(status.st_mtime, usegmt=True)
        headers = {"ETag": etag, "Last-Modified": modified, "Accept-Ranges": "bytes"}
        wanted = None
        # A range is only safe if the file is still the one that the client knows.
        if self.command == "GET" and self.headers.get("If-Range", etag) in (etag, modified):
            wanted = parse_range(self.headers.get("Range"), size_bytes)
        if wanted == "unsatisfiable":
            self.refuse(416, {"Content-Range": f"bytes */{size_bytes}"})
            return
        first, last = wanted or (0, size_bytes - 1)
        num_bytes = last - first + 1
        if wanted:
            headers["Content-Range"] = f"bytes {first}-{last}/{size_bytes}"
        headers |= {"Content-Length": num_bytes, "Content-Type": "application/octet-stream"}
        self.send_head(206 if wanted else 200, headers)
        if self.command == "GET" and num_bytes:
            self.send_bytes(path, first, num_bytes)

    do_HEAD = do_GET  # noqa: N815

    def send_bytes(self, path, first, num_bytes):
        """Sends `num_bytes` of a file from byte `first` on."""
        with open(path, "rb") as file:  # the kernel copies: the processor is left to the decoding
            self.connection.sendfile(file, first, num_bytes)

    def find_file(self):
        """Returns the file asked for, or None if there is none inside the folder."""
        name = unquote(urlsplit(self.path).path).lstrip("/")
        if "\0" in name:
            return None
        path = (self.folder / name).resolve()
        return path if path.is_relative_to(self.folder) and path.is_file() else None

    def send_head(self, status, headers):
        """Sends the status line and the headers."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    def refuse(self, status, headers=None):
        """Answers without a body."""
        self.send_head(status, {"Content-Length": 0, **(headers or {})})

    def log_message(self, *_):
        """Stays silent: the progress of the client is what one wants to read."""


def parse_range(header, size_bytes):
    """Reads a `Range` header.

    Args:
        header: its value or None.
        size_bytes: size of the file.

    Returns:
        (first, last) byte, both included; "unsatisfiable"; or None for the whole file, also for
        what is malformed or asks for several ranges, as RFC 9110 allows.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", (header or "").strip())
    if not match or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        suffix = min(int(last), size_bytes)
        return (size_bytes - suffix, size_bytes - 1) if suffix else "unsatisfiable"
    if last and int(last) < int(first):
        return None
    if int(first) >= size_bytes:
        return "unsatisfiable"
    return int(first), min(int(last), size_bytes - 1) if last else size_bytes - 1


class WorldServer(ThreadingHTTPServer):
    """A server that leaves nothing open and is quiet about clients that leave early."""

    daemon_threads = True

    def __init__(self, *args):
        super().__init__(*args)
        self.connections = set()

    def process_request(self, request, client_address):
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self.connections.discard(request)
        super().shutdown_request(request)

    def server_close(self):
        super().server_close()
        for connection in list(self.connections):  # kept alive by clients
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def serve(folder):
    """Serves a folder over HTTP on this machine only, until the `with` block ends.

    Args:
        folder: what to serve.

    Yields:
        The address, e.g. "http://127.0.0.1:40123/".
    """
    handler = type("Handler", (WorldHandler,), {"folder": Path(folder).resolve()})
    server = WorldServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
