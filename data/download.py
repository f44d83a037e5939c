"""Verified downloads that continue after a fault: one file, several attempts, atomic at the end."""

import contextlib
import hashlib
import ipaddress
import os
import random
import re
import time
from collections import deque
from dataclasses import dataclass
from urllib.parse import urlsplit

import requests
from requests.utils import get_environ_proxies, select_proxy
from urllib3.exceptions import HTTPError, NewConnectionError, ProxyError

from data.connections import Connections
from utils import CHUNK_BYTES, ExpectedError, MissingFileError, Progress, atomic_write, masked, say

# Answers that another attempt can change; every other 4xx is final (S3 says 403 or 404 where a key
# is missing).
TEMPORARY_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504, 509})
REFUSALS = frozenset({429, 503, 509})  # of one connection too many, as resets are
MAX_REDIRECTS = 10
# Where no server was ever met, the address is wrong or the network is off, and a person waits for
# the answer; in a Kaggle kernel nobody waits, and the network may take its time.
FIRST_ATTEMPTS = 99 if "KAGGLE_KERNEL_RUN_TYPE" in os.environ else 2
HEAD_REFUSED = frozenset({400, 403, 405, 501})  # answers to HEAD of servers that answer GET
GZIP_START = b"\x1f\x8b"
LONGEST_REASON = 200  # characters of what a server says that are told
HTML_START = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)?<(?:!doctype\s+html|html|head)[\s>]",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class Patience:
    """How long a download waits for a bad network before it gives up."""

    attempts: int = 5
    first_wait_s: float = 1.0  # doubles with each attempt, less up to half at random
    longest_wait_s: float = 60.0
    timeout_s: float = 30.0  # without a connection or without a byte
    stall_s: float = 60.0  # a transfer of fewer bytes than the next in so long has stalled
    stall_bytes: int = 600_000


PATIENCE = Patience()
SHARD_PATIENCE = Patience(attempts=10)  # 2 to 4 minutes of waits: hours of training depend on it


class _RetryError(Exception):
    """An attempt failed in a way that another attempt may mend."""

    def __init__(self, reason, wait_s=0.0, is_unreachable=False, is_refusal=False, anew=False):
        super().__init__(reason)
        self.wait_s, self.is_unreachable, self.is_refusal = wait_s, is_unreachable, is_refusal
        self.anew = anew  # nothing of what has arrived is of use


def download(url, path, md5=None, patience=PATIENCE, connections=None):
    """Downloads `url` to `path`, verified and atomic: `path` exists only when the file is whole.

    A broken transfer continues where it broke (byte range), a wrong one begins again.

    Without the expected md5 the length alone is checked. `Connections` are shared with the
    downloads beside it.

    Raises:
        ExpectedError: the file is not there or is a web page, or did not arrive right after all
            attempts, or the disk is full.
        CancelledError: `connections` were stopped.
    """
    connections = connections or Connections()
    with atomic_write(path) as temporary, open(temporary, "wb", buffering=0) as file:
        transfer = _Transfer(url, file, md5, patience, connections)
        _try_patiently(transfer.attempt, url, "a whole file", patience, connections)


class _Transfer:
    """One download over several attempts: the file written so far, its digest and its origin."""

    def __init__(self, url, file, md5, patience, connections):
        self.url, self.file, self.md5, self.patience = url, file, md5, patience
        self.connections = connections
        self.validator = self.total_bytes = None
        self.restart()

    def restart(self):
        """Forgets what has arrived, so that the next attempt begins at byte 0."""
        self.file.seek(0)
        self.file.truncate()
        self.num_bytes = 0
        self.digest = hashlib.md5(usedforsecurity=False)

    def attempt(self):
        """Fetches the rest of the file and checks the whole, or raises _RetryError."""
        try:
            self._fetch_rest()
            refuse_disguised(self.file.name, self.url)
            if self.md5 is not None and self.digest.hexdigest() != self.md5:
                raise _RetryError(f"md5 differs (expected {self.md5})", anew=True)
        except _RetryError as error:
            # Without md5 and validator nothing would tell if the rest were of another file.
            if error.anew or (self.md5 is None and self.validator is None):
                self.restart()
            raise

    def _fetch_rest(self):
        headers = {}
        if self.num_bytes:
            headers["Range"] = f"bytes={self.num_bytes}-"
            if self.validator:
                headers["If-Range"] = self.validator
        with _answer("GET", self.url, headers, self.patience) as response:
            self._accept(response)
            response.raw.enforce_content_length = False  # the lengths are compared below
            self._receive(response.raw)
        if self.total_bytes is not None and self.num_bytes != self.total_bytes:
            raise _RetryError(f"got {self.num_bytes} of {self.total_bytes} bytes")

    def _accept(self, response):
        """Decides from the answer's head whether it continues the file or begins it again."""
        if response.status_code == 416:
            raise _RetryError("the server refused the range", anew=True)
        _check_status(response, self.url)
        first, total_bytes = _content_range(response)
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if validator and validator.startswith("W/"):
            validator = None  # a weak validator does not promise equal bytes
        is_range = response.status_code == 206
        if is_range and (first != self.num_bytes or validator != self.validator):
            raise _RetryError("the file changed on the server", anew=True)
        if not is_range:  # a server that ignores ranges, or a changed file
            self.restart()
        self.validator = validator
        length = response.raw.length_remaining
        self.end_bytes = None if length is None else self.num_bytes + length
        self.total_bytes = self.end_bytes if total_bytes is None else total_bytes

    def _receive(self, body):
        """Appends the body to the file while it arrives; a trickle counts as a failed attempt."""
        window_start, window_bytes = time.monotonic(), 0
        name = "/".join(urlsplit(self.url).path.split("/")[-2:])
        with Progress(name, self.end_bytes, "B", is_ahead=True) as progress:
            progress.done = self.num_bytes
            while self.num_bytes != self.end_bytes:
                self.connections.check()
                left = CHUNK_BYTES if self.end_bytes is None else self.end_bytes - self.num_bytes
                # read1 gives what is there; requests' iter_content waits until a chunk is full.
                chunk = body.read1(min(left, CHUNK_BYTES), decode_content=False)
                if not chunk:
                    return
                self._write(chunk)
                progress.update(len(chunk))
                window_bytes += len(chunk)
                elapsed_s = time.monotonic() - window_start
                if elapsed_s > self.patience.stall_s:
                    if window_bytes < self.patience.stall_bytes:
                        stalled = f"stalled at {window_bytes / elapsed_s:.0f} bytes/s"
                        raise _RetryError(stalled, is_refusal=True)
                    window_start, window_bytes = time.monotonic(), 0

    def _write(self, chunk):
        try:
            rest = memoryview(chunk)
            while rest:  # on a nearly full disk, a write takes only what fits
                rest = rest[self.file.write(rest) :]
        except OSError as error:
            problem = f"{self.file.name}: cannot be written ({error.strerror})"
            expected = f"expected free space for {self.url}"
            raise ExpectedError(f"{problem}; {expected}", "scratch") from error
        self.digest.update(chunk)
        self.num_bytes += len(chunk)


def refuse_disguised(path, name):
    """Raises ExpectedError, which calls a file `name`, if it is a web page or gzipped."""
    try:
        with open(path, "rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise ExpectedError(
            f"{name}: cannot be read ({error.strerror}); expected a readable file", "source"
        ) from error
    if HTML_START.match(head):
        problem = "an HTML page; expected the file itself and not, say, a login page"
    elif head.startswith(GZIP_START):
        problem = "compressed with gzip; expected the file itself, unpacked"
    else:
        return
    raise ExpectedError(f"{name}: {problem}", "source")


def download_range(url, offset, size_bytes, patience=PATIENCE):
    """Downloads some bytes of a file; ExpectedError where the server does not serve ranges."""
    headers = {"Range": f"bytes={offset}-{offset + size_bytes - 1}"}

    def attempt():
        with _answer("GET", url, headers, patience) as response:
            _check_status(response, url)
            if response.status_code != 206 or _content_range(response)[0] != offset:
                return b""
            data = response.raw.read(size_bytes, decode_content=False)
            if response.raw.length_remaining and len(data) < size_bytes:
                raise _RetryError(f"got {len(data)} of {size_bytes} bytes")
            return data

    data = _try_patiently(attempt, url, "an answer", patience, Connections())
    if len(data) != size_bytes:
        problem = f"{url}: {len(data)} of {size_bytes} bytes from {offset} on"
        raise ExpectedError(f"{problem}; expected a server of byte ranges", "source")
    return data


def online_size(url, patience=PATIENCE):
    """Asks how large a file is, in bytes: 0 where the server does not say, or MissingFileError."""

    def attempt():
        with _answer("HEAD", url, {}, patience) as response:
            if response.status_code not in HEAD_REFUSED:
                _check_status(response, url)
                return _number(response.headers.get("Content-Length")) or 0
        with _answer("GET", url, {"Range": "bytes=0-0"}, patience) as response:
            if response.status_code == 416:
                return 0  # an empty file
            _check_status(response, url)
            size_bytes = _number(response.headers.get("Content-Length"))
            return _content_range(response)[1] or size_bytes or 0

    return _try_patiently(attempt, url, "an answer", patience, Connections())


def _try_patiently(attempt, url, expected, patience, connections):
    """Gives `attempt()`, called again while it raises _RetryError; ExpectedError in the end."""
    number, attempts = 0, patience.attempts
    while number < attempts:
        number += 1
        try:
            with connections.hold() as refused:
                return attempt()
        except _RetryError as failure:
            reason = failure
        if reason.is_refusal:
            refused()
        if reason.is_unreachable and urlsplit(url).netloc not in _met:
            attempts = min(attempts, FIRST_ATTEMPTS)
        if number < attempts:
            doubled_s = min(patience.longest_wait_s, patience.first_wait_s * 2 ** (number - 1))
            # The server's Retry-After wins over our own wait, up to five minutes.
            wait_s = max(doubled_s * random.uniform(0.5, 1.0), min(reason.wait_s, 300.0))
            say(f"{url}: {reason}; attempt {number + 1} of {attempts} in {wait_s:.1f} s")
            connections.pause(wait_s)
    problem = f"{url}: {reason} after {attempts} attempts"
    raise ExpectedError(f"{problem}; expected {expected} over a working network", "source")


# Sessions keep connections open for the next request. A Session is for one thread at a time, and
# downloads run in threads that end, so each request borrows one (a deque's append and pop are
# atomic).
_idle_sessions = deque()
_met = set()  # hosts that have answered


@contextlib.contextmanager
def _answer(method, url, headers, patience):
    """Sends a request and yields the answer; the body of a GET is still to be read.

    Raises _RetryError where the network fails, also while the caller reads, and ExpectedError
    where an address, or one that it redirects to, is malformed.
    """
    try:
        session = _idle_sessions.pop()
    except IndexError:
        session = requests.Session()
        session.max_redirects = MAX_REDIRECTS
        session.headers["Accept-Encoding"] = "identity"  # the bytes that lie on the server
    session.trust_env = not _is_this_machine(url)  # no proxy knows its servers, nor does .netrc
    try:
        with _send(session, method, url, headers, patience.timeout_s) as response:
            _met.add(urlsplit(url).netloc)
            yield response
    except (OSError, HTTPError) as error:  # the latter while a body is read
        behind = getattr(error.args[0], "reason", None) if error.args else None
        is_new, reason = isinstance(behind, (NewConnectionError, ProxyError)), _reason(error)
        raise _RetryError(f"{reason}{_route(url)}", 0.0, is_new, is_refusal=True) from error
    finally:
        _idle_sessions.append(session)


def _send(session, method, url, headers, timeout_s):
    is_stream = method != "HEAD"  # an answer without a body leaves its connection free at once
    try:
        return session.request(method, url, headers=headers, timeout=timeout_s, stream=is_stream)
    except requests.TooManyRedirects as error:
        reason = f"HTTP {error.response.status_code}, more than {MAX_REDIRECTS} redirects"
        raise ExpectedError(f"{url}: {reason}; expected a file", "source") from error
    except ValueError as error:  # this address or that of a redirect is malformed, or not http(s)
        problem = f"{_reason(error)}{_route(url)}; expected a file at an http(s) address"
        raise ExpectedError(f"{url}: {problem}", "source") from error


def _is_this_machine(url):
    with contextlib.suppress(ValueError):
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    return False


def _route(url):
    """Names the proxy on the way to an address, for an error; empty where there is none."""
    proxy = None
    with contextlib.suppress(ValueError):
        proxy = None if _is_this_machine(url) else select_proxy(url, get_environ_proxies(url))
    socks = " (SOCKS takes pip install PySocks)" if proxy and proxy.startswith("socks") else ""
    return f", through the proxy {masked(proxy)} of the environment{socks}" if proxy else ""


def _check_status(response, url):
    """Sorts out answers that bring no file: try again (_RetryError), or final (ExpectedError)."""
    status = response.status_code
    if status in TEMPORARY_STATUSES:
        wait_s = _number(response.headers.get("Retry-After")) or 0.0
        raise _RetryError(f"HTTP {status}", wait_s, is_refusal=status in REFUSALS)
    if status not in (200, 203, 206):
        what = f"HTTP {status} {_one_line(response.reason or '')}".rstrip()
        if status in (403, 407):
            what += _route(url)
        if "Authorization" in response.request.headers and not urlsplit(url).username:
            what += ", asked with the login of ~/.netrc"
        raise MissingFileError(f"{url}: {what}; expected a file", "source")


def _content_range(response):
    """Gives (first byte, bytes of the whole file) of an answer with a range, None where unknown."""
    match = re.match(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    return (_number(match[1]), _number(match[2])) if match else (None, None)


def _number(text):
    """Reads a header's number of bytes or seconds; None where it is none, or beyond all reason."""
    return int(text) if re.fullmatch("[0-9]{1,18}", text or "") else None


def _reason(error):
    """Names what lies behind an error of requests, in one line."""
    while True:
        behind = (error.__cause__, getattr(error, "reason", None), *reversed(error.args))
        inner = next((each for each in behind if isinstance(each, Exception)), None)
        if inner is None:
            return _one_line(getattr(error, "strerror", None) or error) or type(error).__name__
        error = inner


def _one_line(text):
    """Makes what a server says fit to print: one line, no control characters, not too long."""
    text = "".join(char if char.isprintable() else " " for char in str(text))
    return " ".join(text.split())[:LONGEST_REASON]
