"""Verified downloads that continue after a fault: one file, several attempts, atomic at the end."""

import hashlib
import http.client
import random
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

from utils import CHUNK_BYTES, ExpectedError, MissingFileError, atomic_write, say

# Answers that another attempt can change; every other 4xx is final (S3 says 403 or 404 where a key
# is missing).
TEMPORARY_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504, 509})


@dataclass(frozen=True)
class Patience:
    """How long a download waits for a bad network before it gives up.

    Attributes:
        attempts: tries per file; the waits between them double from `first_wait_s` up to
            `longest_wait_s`, each shortened by up to half at random (jitter).
        timeout_s: seconds without a connection or without a byte.
        stall_s, stall_bytes: a transfer of fewer bytes than this in so many seconds has stalled.
    """

    attempts: int = 5
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    timeout_s: float = 30.0
    stall_s: float = 60.0
    stall_bytes: int = 600_000


PATIENCE = Patience()
SHARD_PATIENCE = Patience(attempts=10)  # 2 to 4 minutes of waits: hours of training depend on it


class _RetryError(Exception):
    """An attempt failed in a way that another attempt may mend."""

    def __init__(self, reason, wait_s=0.0):
        super().__init__(reason)
        self.wait_s = wait_s


class _Transfer:
    """One download over several attempts: the file written so far, its digest and its origin."""

    def __init__(self, url, file, patience):
        self.url, self.file, self.patience = url, file, patience
        self.validator = self.total_bytes = None
        self.restart()

    def restart(self):
        """Forgets what has arrived, so that the next attempt begins at byte 0."""
        self.file.seek(0)
        self.file.truncate()
        self.num_bytes = 0
        self.digest = hashlib.md5(usedforsecurity=False)

    def attempt(self):
        """Fetches the rest of the file, or raises _RetryError."""
        request = urllib.request.Request(self.url, headers={"Accept-Encoding": "identity"})
        if self.num_bytes:
            request.add_header("Range", f"bytes={self.num_bytes}-")
            if self.validator:
                request.add_header("If-Range", self.validator)
        try:
            with urllib.request.urlopen(request, timeout=self.patience.timeout_s) as response:
                self._accept(response)
                self._receive(response)
        except urllib.error.HTTPError as error:
            with error:  # it holds the connection
                self._refuse(error)
        except (OSError, urllib.error.URLError, http.client.HTTPException) as error:
            raise _RetryError(getattr(error, "reason", None) or error) from error
        if self.total_bytes is not None and self.num_bytes != self.total_bytes:
            raise _RetryError(f"got {self.num_bytes} of {self.total_bytes} bytes")

    def _accept(self, response):
        """Decides from the answer's head whether it continues the file or begins it again."""
        headers = response.headers
        content_range = headers.get("Content-Range", "")
        begins_here = content_range.startswith(f"bytes {self.num_bytes}-")
        length = headers.get("Content-Length")
        length = int(length) if length and length.isdigit() else None
        validator = headers.get("ETag") or headers.get("Last-Modified")
        if validator and validator.startswith("W/"):
            validator = None  # a weak validator does not promise equal bytes
        if response.status == 206 and (not begins_here or validator != self.validator):
            self.restart()
            raise _RetryError("the file changed on the server")
        if response.status != 206:  # a server that ignores ranges, or a changed file
            self.restart()
        self.validator = validator
        self.total_bytes = None if length is None else self.num_bytes + length

    def _receive(self, response):
        """Appends the body to the file while it arrives; a trickle counts as a failed attempt."""
        window_start, window_bytes = time.monotonic(), 0
        while chunk := response.read1(CHUNK_BYTES):
            self._write(chunk)
            window_bytes += len(chunk)
            elapsed_s = time.monotonic() - window_start
            if elapsed_s > self.patience.stall_s:
                if window_bytes < self.patience.stall_bytes:
                    raise _RetryError(f"stalled at {window_bytes / elapsed_s:.0f} bytes/s")
                window_start, window_bytes = time.monotonic(), 0

    def _write(self, chunk):
        try:
            rest = memoryview(chunk)
            while rest:  # on a nearly full disk, a write takes only what fits
                rest = rest[self.file.write(rest) :]
        except OSError as error:
            raise ExpectedError(
                f"{self.file.name}: cannot be written ({error.strerror}); expected free space for "
                f"{self.url}; free some space or choose another --scratch"
            ) from error
        self.digest.update(chunk)
        self.num_bytes += len(chunk)

    def _refuse(self, error):
        """Sorts an HTTP error into worth another attempt (_RetryError) or final (ExpectedError)."""
        if error.code == 416:
            self.restart()
            raise _RetryError("the server refused the range") from error
        if error.code not in TEMPORARY_STATUSES:
            reason = " ".join(str(error.reason).split())  # a redirect loop's has several lines
            raise MissingFileError(
                f"{self.url}: HTTP {error.code} {reason}; expected a file; check --source"
            ) from error
        raise _RetryError(f"HTTP {error.code}", _retry_after_s(error)) from error


def download(url, path, md5=None, patience=PATIENCE):
    """Downloads `url` to `path`, verified and atomic: `path` exists only when the file is whole.

    A broken transfer continues where it broke (byte range), a wrong one begins again.

    Args:
        url: http or https address.
        path: the final file; its folder is made.
        md5: the expected 32 hex characters, or None to check the length alone.
        patience: `Patience`.

    Raises:
        ExpectedError: the file is not there, or did not arrive right after all attempts, or the
            disk is full.
    """
    with atomic_write(path) as temporary, open(temporary, "wb", buffering=0) as file:
        transfer = _Transfer(url, file, patience)
        for attempt in range(1, patience.attempts + 1):
            try:
                transfer.attempt()
                if md5 is None or transfer.digest.hexdigest() == md5:
                    return
                transfer.restart()
                raise _RetryError(f"md5 differs (expected {md5})")
            except _RetryError as failure:
                reason = failure
                if md5 is None and transfer.validator is None:
                    transfer.restart()  # nothing would tell if the rest were of another file
            if attempt < patience.attempts:
                _wait_before(attempt + 1, url, reason, patience)
        raise ExpectedError(
            f"{url}: {reason} after {patience.attempts} attempts; expected a whole file; "
            "check the network and --source, then run the same command again"
        )


def _retry_after_s(error):
    after = error.headers.get("Retry-After", "") if error.headers else ""
    return float(after) if after.isdigit() else 0.0


def _wait_before(attempt, url, reason, patience):
    doubled_s = min(patience.longest_wait_s, patience.first_wait_s * 2 ** (attempt - 2))
    # The server's Retry-After wins over our own wait, but never holds a kernel for more than that.
    wait_s = max(doubled_s * random.uniform(0.5, 1.0), min(reason.wait_s, 5 * 60.0))
    say(f"{url}: {reason}; attempt {attempt} of {patience.attempts} in {wait_s:.1f} s")
    time.sleep(wait_s)


def download_range(url, offset, size_bytes, patience=PATIENCE):
    """Downloads `size_bytes` bytes from `offset` on of a file.

    Raises:
        ExpectedError: the server cannot be reached or does not serve ranges.
    """

    def receive(response):
        content_range = response.headers.get("Content-Range", "")
        return response.read() if content_range.startswith(f"bytes {offset}-") else b""

    headers = {"Range": f"bytes={offset}-{offset + size_bytes - 1}"}
    data = _ask_patiently(urllib.request.Request(url, headers=headers), receive, patience)
    if len(data) != size_bytes:
        raise ExpectedError(
            f"{url}: {len(data)} of {size_bytes} bytes from {offset} on; expected a server of byte "
            "ranges; check --source"
        )
    return data


def online_size(url, patience=PATIENCE):
    """Asks how large the file at `url` is.

    Returns:
        Its size in bytes; 0 where the server does not say.

    Raises:
        MissingFileError: there is no such file.
        ExpectedError: the server cannot be reached.
    """

    def receive(response):
        length = response.headers.get("Content-Length") or ""
        return int(length) if length.isdigit() else 0

    return _ask_patiently(urllib.request.Request(url, method="HEAD"), receive, patience)


def _ask_patiently(request, receive, patience):
    """Gives `receive(response)`, with further attempts while server or network have a bad time."""
    url = request.full_url
    for attempt in range(1, patience.attempts + 1):
        try:
            with urllib.request.urlopen(request, timeout=patience.timeout_s) as response:
                return receive(response)
        except urllib.error.HTTPError as error:
            error.close()  # it holds the connection
            if error.code not in TEMPORARY_STATUSES:
                reason = " ".join(str(error.reason).split())
                raise MissingFileError(
                    f"{url}: HTTP {error.code} {reason}; expected a file; check --source"
                ) from error
            reason = _RetryError(f"HTTP {error.code}", _retry_after_s(error))
        except (OSError, http.client.HTTPException) as error:
            reason = _RetryError(getattr(error, "reason", None) or error)
        if attempt < patience.attempts:
            _wait_before(attempt + 1, url, reason, patience)
    raise ExpectedError(
        f"{url}: {reason} after {patience.attempts} attempts; expected a reachable host; "
        "check the network and --source"
    )
