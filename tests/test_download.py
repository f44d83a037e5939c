"""Tests of the verified download against a server that truncates, stalls, corrupts and refuses."""

import errno
import gzip
import hashlib
import random
import resource
import socket
from types import SimpleNamespace

import pytest
from checks import names_in, one_line
from fault_server import Fault, FaultServer

import data.download
from data.connections import Connections
from data.download import Patience, download, download_range, online_size
from utils import ExpectedError, MissingFileError, in_background

DATA = random.Random(1).randbytes(300_000)
OTHER = random.Random(2).randbytes(250_000)
MD5 = hashlib.md5(DATA).hexdigest()
PATH = "/train/images_000.tar"
PATIENT = Patience(attempts=5, first_wait_s=0.001, longest_wait_s=0.002, timeout_s=20)


@pytest.fixture
def server():
    with FaultServer({PATH: DATA}) as server:
        yield server


@pytest.fixture
def waits(monkeypatch):
    """Records what the download would have slept, in seconds."""
    waits = []
    monkeypatch.setattr(Connections, "pause", lambda _, seconds: waits.append(seconds))
    return waits


def fetch(server, tmp_path, *faults, md5=MD5, patience=PATIENT):
    """Downloads PATH past `faults`; checks that only the finished file is left."""
    server.faults[PATH] = list(faults)
    download(server.address + PATH[1:], tmp_path / "images.tar", md5, patience)
    assert names_in(tmp_path) == ["images.tar"]
    return (tmp_path / "images.tar").read_bytes()


def fail(server, tmp_path, *faults, expected=ExpectedError, **options):
    """Downloads PATH in vain; checks that nothing is left and gives the one-line message."""
    with pytest.raises(expected) as caught:
        fetch(server, tmp_path, *faults, **options)
    assert names_in(tmp_path) == []
    return one_line(caught.value)


def ranges(server):
    return [request.range for request in server.requests]


# ----------------------------------------------------------------------------------- what goes well


def test_a_healthy_download_takes_one_request(server, tmp_path):
    assert fetch(server, tmp_path) == DATA
    assert ranges(server) == [None]


def test_an_empty_file_arrives_empty(server, tmp_path):
    server.files[PATH] = b""
    assert fetch(server, tmp_path, md5=None) == b""


def test_the_folder_of_the_file_is_made(server, tmp_path):
    download(server.address + PATH[1:], tmp_path / "new" / "folder" / "a.tar", MD5, PATIENT)
    assert (tmp_path / "new" / "folder" / "a.tar").read_bytes() == DATA


def test_a_download_replaces_an_older_file(server, tmp_path):
    (tmp_path / "images.tar").write_bytes(b"old")
    assert fetch(server, tmp_path) == DATA


# --------------------------------------------------------------------------------- broken transfers


def test_a_broken_transfer_continues_where_it_broke(server, tmp_path):
    assert fetch(server, tmp_path, Fault(close_after=100_000), Fault(close_after=50_000)) == DATA
    assert ranges(server) == [None, "bytes=100000-", "bytes=150000-"]


def test_a_broken_transfer_continues_only_if_the_file_is_the_same(server, tmp_path):
    assert fetch(server, tmp_path, Fault(close_after=100_000)) == DATA
    assert server.requests[1].if_range == f'"{MD5}"'


def test_a_reset_connection_continues_where_it_broke(server, tmp_path):
    assert fetch(server, tmp_path, Fault(reset_after=100_000)) == DATA
    assert len(server.requests) == 2
    received = server.requests[1].range  # a reset may drop what was under way
    assert received is None or 0 < int(received[len("bytes=") : -1]) <= 100_000


def test_a_connection_closed_before_the_header_is_tried_again(server, tmp_path):
    assert fetch(server, tmp_path, Fault(raw=b"")) == DATA
    assert ranges(server) == [None, None]


def test_an_answer_that_is_not_http_is_tried_again(server, tmp_path):
    assert fetch(server, tmp_path, Fault(raw=b"nonsense\r\n\r\n")) == DATA


@pytest.mark.parametrize(
    "status_line",
    [
        b"nonsense\r\n\r\n",
        b"two\x85words\x0bof \x1b[31mnonsense\r\n\r\n",
        b"HTTP/1.1 404 not\x85here \x1b[31m\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 404 " + 60_000 * b"x" + b"\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 404\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 " + 70_000 * b"x" + b"\r\n\r\n",
    ],
)
def test_a_garbage_status_line_is_told_in_one_short_line(server, tmp_path, capsys, status_line):
    message = fail(server, tmp_path, *[Fault(raw=status_line)] * 5)
    lines = [message, *capsys.readouterr().err.split("\n")]
    assert all(line.isprintable() and len(line) < 400 for line in lines)
    with pytest.raises(ExpectedError) as caught:
        server.faults[PATH] = [Fault(raw=status_line)] * 5
        online_size(server.address + PATH[1:], PATIENT)
    assert one_line(caught.value).isprintable()


def test_a_broken_chunked_transfer_continues_where_it_broke(server, tmp_path):
    head = f'HTTP/1.1 200 OK\r\nETag: "{MD5}"\r\nTransfer-Encoding: chunked\r\n\r\n'
    raw = head.encode() + b"3e8\r\n" + DATA[:1000] + b"\r\n3e8\r\n"
    assert fetch(server, tmp_path, Fault(raw=raw)) == DATA
    assert ranges(server) == [None, "bytes=1000-"]


def test_a_chunk_of_malformed_length_is_a_broken_transfer(server, tmp_path):
    head = f'HTTP/1.1 200 OK\r\nETag: "{MD5}"\r\nTransfer-Encoding: chunked\r\n\r\n'
    raw = head.encode() + b"3e8\r\n" + DATA[:1000] + b"\r\nmany\r\n" + DATA
    assert fetch(server, tmp_path, Fault(raw=raw)) == DATA
    assert ranges(server) == [None, "bytes=1000-"]


def test_a_length_beside_chunks_is_left_alone(server, tmp_path):
    head = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
    fault = Fault(raw=head.encode() + b"3e8\r\n" + DATA[:1000] + b"\r\n0\r\n\r\n")
    assert fetch(server, tmp_path, fault, md5=None) == DATA[:1000]


def test_a_length_that_is_told_twice_counts_once(server, tmp_path):
    head = "HTTP/1.1 200 OK\r\nContent-Length: 1000, 1000\r\n\r\n"
    fault = Fault(raw=head.encode() + DATA[:1000])
    assert fetch(server, tmp_path, fault, md5=None) == DATA[:1000]


def test_a_trickle_counts_as_a_broken_transfer(server, tmp_path, capsys):
    server.files[PATH] = DATA[:100]  # five seconds of dripping at most
    patience = Patience(5, 0.001, 0.002, timeout_s=20, stall_s=0.2, stall_bytes=1000)
    dripping = Fault(drip_after=0)
    assert fetch(server, tmp_path, dripping, md5=None, patience=patience) == DATA[:100]
    assert 0 < int(server.requests[1].range[len("bytes=") : -1]) < 100
    assert "stalled at" in capsys.readouterr().err


def test_a_silent_connection_times_out_and_continues(server, tmp_path):
    patience = Patience(5, 0.001, 0.002, timeout_s=0.5)
    assert fetch(server, tmp_path, Fault(silence_after=1000), patience=patience) == DATA
    assert server.requests[1].range == "bytes=1000-"


def test_a_slow_start_over_the_stall_limit_is_no_stall(server, tmp_path):
    patience = Patience(1, 0.001, 0.002, timeout_s=20, stall_s=0.0, stall_bytes=1)
    assert fetch(server, tmp_path, patience=patience) == DATA


def test_a_server_that_breaks_each_time_ends_in_one_line(server, tmp_path):
    message = fail(server, tmp_path, *[Fault(close_after=10)] * 5)
    url = server.address + PATH[1:]
    assert message == (
        f"{url}: got 50 of 300000 bytes after 5 attempts; expected a whole file over a working "
        "network; check --source"
    )
    assert len(server.requests) == 5


def test_a_failed_download_keeps_the_older_file(server, tmp_path):
    (tmp_path / "images.tar").write_bytes(b"old")
    with pytest.raises(ExpectedError):
        fetch(server, tmp_path, *[Fault(raw=b"")] * 5)
    assert (tmp_path / "images.tar").read_bytes() == b"old"
    assert names_in(tmp_path) == ["images.tar"]


# ---------------------------------------------------------------------------- wrong lengths, ranges


def test_a_content_length_too_long_is_found_out_and_the_file_begins_again(server, tmp_path):
    assert fetch(server, tmp_path, Fault(length_error=10), md5=None) == DATA
    assert ranges(server) == [None, "bytes=300000-", None]  # the second is answered 416


def test_a_content_length_that_stays_too_long_is_an_error(server, tmp_path):
    faults = [Fault(length_error=10, ignore_range=True)] * 5
    assert "got 300000 of 300010 bytes" in fail(server, tmp_path, *faults)


def test_a_content_length_too_short_is_found_out_by_the_md5(server, tmp_path):
    assert fetch(server, tmp_path, Fault(length_error=-10)) == DATA
    assert ranges(server) == [None, None]


@pytest.mark.parametrize("value", ["9" * 5000, "\xb2", "-5", "ten", ""])
def test_a_content_length_that_is_no_number_is_left_alone(server, tmp_path, value):
    fault = Fault(headers={"Content-Length": value})
    assert fetch(server, tmp_path, fault) == DATA
    server.faults[PATH] = [fault]
    assert online_size(server.address + PATH[1:], PATIENT) == 0


def test_a_range_that_ends_too_early_is_not_taken_for_the_whole_rest(server, tmp_path):
    faults = [Fault(close_after=1000), Fault(longest_range=500)]
    assert fetch(server, tmp_path, *faults, md5=None) == DATA
    assert ranges(server) == [None, "bytes=1000-", "bytes=1500-"]


def test_a_range_of_a_smaller_file_than_what_came_is_no_whole_file(server, tmp_path):
    smaller = Fault(headers={"Content-Range": "bytes 1000-299999/200000"})
    assert fetch(server, tmp_path, Fault(close_after=1000), smaller, md5=None) == DATA
    assert ranges(server) == [None, "bytes=1000-", "bytes=300000-", None]  # the third: 416


@pytest.mark.parametrize("status", [201, 204, 205, 300, 304])
def test_a_status_that_brings_no_file_is_told_at_once(server, tmp_path, status):
    assert f": HTTP {status}" in fail(server, tmp_path, Fault(status=status), md5=None)
    assert len(server.requests) == 1


def test_a_server_that_ignores_ranges_makes_the_file_begin_again(server, tmp_path):
    assert fetch(server, tmp_path, Fault(close_after=1000), Fault(ignore_range=True)) == DATA
    assert ranges(server) == [None, "bytes=1000-"]


def test_a_range_that_begins_elsewhere_is_thrown_away(server, tmp_path):
    faults = [Fault(close_after=1000), Fault(offset_error=7)]
    assert fetch(server, tmp_path, *faults, md5=None) == DATA
    assert ranges(server) == [None, "bytes=1000-", None]


def test_a_refused_range_makes_the_file_begin_again(server, tmp_path):
    assert fetch(server, tmp_path, Fault(close_after=1000), Fault(status=416)) == DATA
    assert ranges(server) == [None, "bytes=1000-", None]


# ------------------------------------------------------------------------------------ wrong content


def test_a_corrupt_byte_makes_the_file_begin_again(server, tmp_path):
    assert fetch(server, tmp_path, Fault(corrupt_at=123_456)) == DATA
    assert ranges(server) == [None, None]


def test_a_corrupt_byte_before_a_break_is_found_at_the_end(server, tmp_path):
    assert fetch(server, tmp_path, Fault(corrupt_at=10, close_after=1000)) == DATA
    assert ranges(server) == [None, "bytes=1000-", None]


def test_a_wrong_md5_each_time_is_an_error_after_all_attempts(server, tmp_path):
    message = fail(server, tmp_path, md5="0" * 32)
    assert f"md5 differs (expected {'0' * 32}) after 5 attempts" in message
    assert ranges(server) == [None] * 5


def test_a_file_that_changes_between_attempts_begins_again(server, tmp_path):
    faults = [Fault(close_after=1000), Fault(new_content=OTHER)]
    assert fetch(server, tmp_path, *faults, md5=None) == OTHER
    assert ranges(server) == [None, "bytes=1000-"]  # If-Range makes the answer a whole file


def test_a_changed_file_is_found_where_the_server_ignores_if_range(server, tmp_path):
    faults = [Fault(close_after=1000), Fault(new_content=OTHER, ignore_if_range=True)]
    assert fetch(server, tmp_path, *faults, md5=None) == OTHER
    assert ranges(server) == [None, "bytes=1000-", None]


@pytest.mark.parametrize("etag", ["weak", None])
def test_a_transfer_without_a_strong_etag_continues_under_the_md5(tmp_path, etag):
    with FaultServer({PATH: DATA}, etag) as server:
        assert fetch(server, tmp_path, Fault(close_after=1000)) == DATA
        assert ranges(server) == [None, "bytes=1000-"]
        assert server.requests[1].if_range is None


@pytest.mark.parametrize("etag", ["weak", None])
def test_a_change_that_no_etag_tells_is_found_by_the_md5(tmp_path, etag):
    with FaultServer({PATH: OTHER}, etag) as server:
        faults = [Fault(close_after=1000), Fault(new_content=DATA)]
        assert fetch(server, tmp_path, *faults) == DATA
        assert ranges(server) == [None, "bytes=1000-", None]


@pytest.mark.parametrize("etag", ["weak", None])
def test_a_transfer_with_neither_etag_nor_md5_never_mixes_two_files(tmp_path, etag):
    with FaultServer({PATH: DATA}, etag) as server:
        faults = [Fault(close_after=1000), Fault(new_content=OTHER)]
        assert fetch(server, tmp_path, *faults, md5=None) == OTHER


@pytest.mark.parametrize(
    "page",
    [
        b"<!DOCTYPE html><title>Log in</title>",
        b"\xef\xbb\xbf\r\n <!-- sorry -->\n<HTML lang='en'>",
        b"<html>",
        b'<?xml version="1.0"?><!doctype HTML PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN">',
    ],
)
@pytest.mark.parametrize("md5", [None, MD5])
def test_a_web_page_in_place_of_a_file_is_called_so_at_once(server, tmp_path, page, md5):
    server.files[PATH] = page
    message = fail(server, tmp_path, md5=md5)
    assert message.startswith(f"{server.address}train/images_000.tar: an HTML page; expected ")
    assert len(server.requests) == 1


def test_a_gzipped_file_is_called_so_at_once(server, tmp_path):
    server.files[PATH] = gzip.compress(b"id,url\n")
    message = fail(server, tmp_path, md5=None)
    assert message.startswith(f"{server.address}train/images_000.tar: compressed with gzip; ")
    assert len(server.requests) == 1


@pytest.mark.parametrize("content", [b"", b"<", b"id\n<html>\n", b"<htmlx", b"html", b"<a>" * 999])
def test_what_only_resembles_a_web_page_is_taken_as_it_is(server, tmp_path, content):
    server.files[PATH] = content
    assert fetch(server, tmp_path, md5=None) == content


# -------------------------------------------------------------------------------- statuses, waiting


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_missing_file_is_told_at_once(server, tmp_path, waits, status):
    message = fail(server, tmp_path, Fault(status=status), expected=MissingFileError)
    assert message.startswith(f"{server.address}train/images_000.tar: HTTP {status} ")
    assert message.endswith("; expected a file; check --source")
    assert (len(server.requests), waits) == (1, [])


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_temporary_status_is_tried_again(server, tmp_path, status):
    assert fetch(server, tmp_path, Fault(status=status)) == DATA
    assert len(server.requests) == 2


def test_a_temporary_status_that_stays_is_an_error(server, tmp_path):
    message = fail(server, tmp_path, *[Fault(status=503)] * 5)
    assert "HTTP 503 after 5 attempts" in message
    assert len(server.requests) == 5


def test_a_temporary_status_keeps_what_has_arrived(server, tmp_path):
    assert fetch(server, tmp_path, Fault(close_after=1000), Fault(status=503)) == DATA
    assert ranges(server) == [None, "bytes=1000-", "bytes=1000-"]


def test_waits_double_up_to_the_longest_and_jitter_shortens_them_by_half_at_most(
    server, tmp_path, waits
):
    patience = Patience(attempts=6, first_wait_s=1.0, longest_wait_s=5.0)
    fail(server, tmp_path, *[Fault(status=503)] * 6, patience=patience)
    longest = [1, 2, 4, 5, 5]
    assert len(waits) == 5
    assert all(top / 2 <= wait <= top for wait, top in zip(waits, longest, strict=True))


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured(server, tmp_path, waits, status):
    fetch(server, tmp_path, Fault(status=status, headers={"Retry-After": "7"}))
    assert waits == [7.0]


def test_retry_after_never_waits_longer_than_five_minutes(server, tmp_path, waits):
    fetch(server, tmp_path, Fault(status=503, headers={"Retry-After": "86400"}))
    assert waits == [300.0]


def test_retry_after_never_shortens_the_own_wait(server, tmp_path, waits):
    patience = Patience(first_wait_s=40.0)
    fetch(server, tmp_path, Fault(status=503, headers={"Retry-After": "1"}), patience=patience)
    assert 20 <= waits[0] <= 40


@pytest.mark.parametrize("value", ["Fri, 31 Dec 2027 23:59:59 GMT", "soon", "-5", "\xb2", ""])
def test_a_retry_after_without_seconds_is_left_alone(server, tmp_path, waits, value):
    fetch(server, tmp_path, Fault(status=503, headers={"Retry-After": value}))
    assert len(waits) == 1 and waits[0] <= PATIENT.longest_wait_s


def test_each_new_attempt_is_told_in_one_line(server, tmp_path, capsys):
    fetch(server, tmp_path, Fault(status=503))
    url = server.address + PATH[1:]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{url}: HTTP 503; attempt 2 of 5 in 0.0 s")


def test_a_redirect_is_followed_with_its_range(server, tmp_path):
    server.files["/moved.tar"] = DATA
    server.faults["/moved.tar"] = [Fault(close_after=1000)]
    moved = Fault(status=302, headers={"Location": "/moved.tar"})
    assert fetch(server, tmp_path, moved, moved) == DATA
    assert [(request.path, request.range) for request in server.requests] == [
        (PATH, None),
        ("/moved.tar", None),
        (PATH, "bytes=1000-"),
        ("/moved.tar", "bytes=1000-"),
    ]


def test_a_redirect_loop_ends_in_one_line(server, tmp_path, waits):
    around = Fault(status=302, headers={"Location": PATH})
    assert "HTTP 302" in fail(server, tmp_path, *[around] * 50)
    assert waits == []
    assert len(server.requests) <= 11


@pytest.mark.parametrize(
    "location",
    ["file:///etc/hostname", "ftp://127.0.0.1/a", "http://[::1", "http://a:99999/", "x:"],
)
def test_a_redirect_to_no_web_address_ends_in_one_line(server, tmp_path, waits, location):
    fault = Fault(status=302, headers={"Location": location})
    assert fail(server, tmp_path, fault).startswith(server.address)
    server.faults[PATH] = [fault]
    with pytest.raises(ExpectedError) as caught:
        online_size(server.address + PATH[1:], PATIENT)
    assert one_line(caught.value).startswith(server.address)
    assert (len(server.requests), waits) == (2, [])


def test_an_unreachable_host_ends_in_one_line(tmp_path):
    with pytest.raises(ExpectedError) as caught:
        download(f"http://127.0.0.1:{free_port()}/a.tar", tmp_path / "a.tar", MD5, PATIENT)
    assert "Connection refused" in one_line(caught.value)
    assert names_in(tmp_path) == []


def test_a_host_that_never_answered_is_tried_twice(waits):
    """A person waits for the answer; once a server was met, the network may come back."""
    with FaultServer({PATH: DATA}) as server:
        url = server.address + PATH[1:]
    with pytest.raises(ExpectedError, match="Connection refused after 2 attempts"):
        online_size(url, PATIENT)
    with FaultServer({PATH: DATA}) as server:
        url = server.address + PATH[1:]
        online_size(url, PATIENT)
    with pytest.raises(ExpectedError, match="Connection refused after 5 attempts"):
        online_size(url, PATIENT)


PROXIES = ("http_proxy", "https_proxy", "all_proxy")


@pytest.mark.parametrize("proxy", PROXIES)
def test_a_server_of_this_machine_is_not_asked_through_a_proxy(server, monkeypatch, proxy):
    monkeypatch.setenv(proxy, f"http://127.0.0.1:{free_port()}")
    for host in ("127.0.0.1", "localhost"):
        address = server.address.replace("127.0.0.1", host)
        assert online_size(address + PATH[1:], PATIENT) == len(DATA)


def test_a_proxy_that_fails_is_named_without_its_password(monkeypatch):
    port = free_port()
    monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{port}")
    with pytest.raises(ExpectedError) as caught:
        online_size("http://images.invalid/a.tar", PATIENT)
    assert one_line(caught.value).startswith(
        "http://images.invalid/a.tar: Connection refused, through the proxy "
        f"http://***@127.0.0.1:{port} of the environment after 2 attempts; "
    )


def test_a_proxy_that_takes_another_package_is_named(monkeypatch):
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:9")
    with pytest.raises(ExpectedError) as caught:
        online_size("http://images.invalid/a.tar", PATIENT)
    assert "through the proxy socks5://127.0.0.1:9 of the environment (SOCKS takes pip" in one_line(
        caught.value
    )


def test_a_login_of_netrc_that_is_refused_is_named(server, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr("data.download._is_this_machine", lambda url: False)
    server.faults[PATH] = [Fault(status=401)]
    with pytest.raises(MissingFileError) as caught:
        online_size(server.address + PATH[1:], PATIENT)
    assert "HTTP 401 Unauthorized, asked with the login of ~/.netrc; " in one_line(caught.value)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ---------------------------------------------------------------------------------------- the disk


class Disk:
    """Limits the size of the files that this process writes, as a full disk would."""

    def __init__(self, size_bytes):
        self.size_bytes = size_bytes

    def __enter__(self):
        self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size_bytes, self.limits[1]))

    def __exit__(self, *exception):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)


@pytest.mark.parametrize("size_bytes", [100_000, len(DATA) - 1])
def test_a_full_disk_is_told_at_once_and_leaves_nothing(server, tmp_path, size_bytes):
    with Disk(size_bytes):
        message = fail(server, tmp_path)
    assert "cannot be written (File too large)" in message
    assert "free some space" in message
    assert len(server.requests) == 1


def test_a_folder_that_cannot_be_made_is_told_in_one_line(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ExpectedError) as caught:
        download(server.address + PATH[1:], tmp_path / "file" / "a.tar", MD5, PATIENT)
    assert "cannot be written" in one_line(caught.value)
    assert server.requests == []


def test_a_disk_that_fails_in_the_middle_is_told_with_its_reason(server, tmp_path, monkeypatch):
    def fail_to_sync(number):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("utils.os.fsync", fail_to_sync)
    assert "cannot be written (Input/output error)" in fail(server, tmp_path)


# --------------------------------------------------------------------------- asking without a body


def test_the_size_of_a_file_is_asked_without_fetching_it(server):
    assert online_size(server.address + PATH[1:], PATIENT) == len(DATA)
    assert [request.method for request in server.requests] == ["HEAD"]


def test_a_server_that_does_not_say_the_size_makes_it_0(server):
    server.faults[PATH] = [Fault(raw=b"HTTP/1.1 200 OK\r\n\r\n")]
    assert online_size(server.address + PATH[1:], PATIENT) == 0


@pytest.mark.parametrize("status", [403, 404])
def test_a_missing_file_has_no_size(server, status):
    server.faults[PATH] = [Fault(status=status)] * 2
    with pytest.raises(MissingFileError) as caught:
        online_size(server.address + PATH[1:], PATIENT)
    assert f"HTTP {status} " in one_line(caught.value)


@pytest.mark.parametrize("status", [400, 403, 405, 501])
def test_a_server_that_refuses_head_is_asked_for_a_byte(server, status):
    server.faults[PATH] = [Fault(status=status)]
    assert online_size(server.address + PATH[1:], PATIENT) == len(DATA)
    assert [(one.method, one.range) for one in server.requests] == [
        ("HEAD", None), ("GET", "bytes=0-0"),
    ]  # fmt: skip
    server.faults[PATH] = [Fault(status=status), Fault(ignore_range=True)]
    assert online_size(server.address + PATH[1:], PATIENT) == len(DATA)
    server.files["/empty"] = b""
    server.faults["/empty"] = [Fault(status=status)]
    assert online_size(server.address + "empty", PATIENT) == 0


@pytest.mark.parametrize("fault", [Fault(status=503), Fault(raw=b""), Fault(raw=b"nonsense\r\n")])
def test_a_size_is_asked_for_again_after_a_temporary_fault(server, fault):
    server.faults[PATH] = [fault]
    assert online_size(server.address + PATH[1:], PATIENT) == len(DATA)
    assert len(server.requests) == 2


def test_a_question_to_a_server_that_always_fails_ends_in_one_line(server):
    server.faults[PATH] = [Fault(status=500)] * 5
    with pytest.raises(ExpectedError) as caught:
        online_size(server.address + PATH[1:], PATIENT)
    assert "HTTP 500 after 5 attempts; expected an answer over a working network" in one_line(
        caught.value
    )


def test_a_question_honours_retry_after(server, waits):
    server.faults[PATH] = [Fault(status=503, headers={"Retry-After": "7"})]
    assert online_size(server.address + PATH[1:], PATIENT) == len(DATA)
    assert waits == [7.0]


# ------------------------------------------------------------------------------- a part of a file


def test_a_range_of_a_file_is_what_lies_there(server):
    assert download_range(server.address + PATH[1:], 1000, 50, PATIENT) == DATA[1000:1050]
    assert ranges(server) == ["bytes=1000-1049"]


@pytest.mark.parametrize("fault", [Fault(status=503), Fault(raw=b"")])
def test_a_range_is_asked_for_again_after_a_temporary_fault(server, fault):
    server.faults[PATH] = [fault]
    assert download_range(server.address + PATH[1:], 1000, 50, PATIENT) == DATA[1000:1050]
    assert len(server.requests) == 2


@pytest.mark.parametrize("fault", [Fault(close_after=20), Fault(reset_after=0)])
def test_a_range_that_breaks_off_is_asked_for_again(server, fault):
    server.faults[PATH] = [fault]
    assert download_range(server.address + PATH[1:], 1000, 50, PATIENT) == DATA[1000:1050]


def test_a_range_that_begins_elsewhere_is_not_taken(server):
    server.faults[PATH] = [Fault(offset_error=7)] * 5
    with pytest.raises(ExpectedError) as caught:
        download_range(server.address + PATH[1:], 1000, 50, PATIENT)
    one_line(caught.value)


@pytest.mark.parametrize("fault", [Fault(ignore_range=True), Fault(status=416)])
def test_a_server_without_ranges_ends_in_one_line(server, fault):
    server.faults[PATH] = [fault] * 5
    with pytest.raises(ExpectedError) as caught:
        download_range(server.address + PATH[1:], 1000, 50, PATIENT)
    one_line(caught.value)


def test_a_range_of_a_missing_file_is_told_at_once(server):
    with pytest.raises(MissingFileError) as caught:
        download_range(server.address + "none.tar", 1000, 50, PATIENT)
    assert "HTTP 404" in one_line(caught.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "url", ["a b.tar", "\x01.tar", "http://[::1", "http://", "http:///a", "http://a:b/", "ftp://a/"]
)
def test_a_malformed_address_ends_in_one_line(server, tmp_path, waits, url):
    url = url if "://" in url else server.address + url
    for ask in (
        lambda: online_size(url, PATIENT),
        lambda: download(url, tmp_path / "a.tar", MD5, PATIENT),
        lambda: download_range(url, 0, 10, PATIENT),
    ):
        with pytest.raises(ExpectedError) as caught:
            ask()
        one_line(caught.value)
    assert waits == []


# ------------------------------------------------------------------------------------ connections


def test_one_connection_serves_questions_and_downloads(tmp_path):
    with FaultServer({PATH: DATA}, keep_alive=True) as server:
        url = server.address + PATH[1:]
        for _ in range(2):
            assert online_size(url, PATIENT) == len(DATA)
            assert fetch(server, tmp_path) == DATA
        in_background(download, url, tmp_path / "images.tar", MD5, PATIENT).result()
        assert len(server.requests) == 5
        assert len({request.client_port for request in server.requests}) == 1


def test_a_connection_that_broke_off_is_not_used_again(tmp_path):
    with FaultServer({PATH: DATA}, keep_alive=True) as server:
        assert fetch(server, tmp_path, Fault(close_after=1000), Fault(close_after=1000)) == DATA
        assert ranges(server) == [None, "bytes=1000-", "bytes=2000-"]
        assert len({request.client_port for request in server.requests}) == 3


def test_downloads_and_questions_at_the_same_time_do_not_mix(tmp_path):
    files = {f"/{number}": random.Random(number).randbytes(10_000 + number) for number in range(8)}
    with FaultServer(files, keep_alive=True) as server:

        def ask_and_download(number):
            url = server.address + str(number)
            for _ in range(10):
                assert online_size(url, PATIENT) == 10_000 + number
                download(url, tmp_path / str(number), patience=PATIENT)
                assert (tmp_path / str(number)).read_bytes() == files[f"/{number}"]

        for future in [in_background(ask_and_download, number) for number in range(8)]:
            future.result()
        assert len({request.client_port for request in server.requests}) <= 8


def test_a_file_arrives_as_it_lies_on_the_server(server, tmp_path):
    fault = Fault(headers={"Content-Encoding": "gzip"})  # though nothing but identity was accepted
    assert fetch(server, tmp_path, fault) == DATA
    assert server.requests[0].accept_encoding == "identity"


def test_a_transfer_that_was_fast_at_first_counts_as_broken_when_it_trickles(tmp_path, monkeypatch):
    clock = [0.0]

    def read1(size, decode_content):
        clock[0] += 40
        return b"x" * (9000 if clock[0] < 90 else clock[0] < 1000)

    monkeypatch.setattr(data.download.time, "monotonic", lambda: clock[0])
    patience = Patience(stall_s=60, stall_bytes=100)
    with open(tmp_path / "file", "wb", buffering=0) as file:
        transfer = data.download._Transfer("http://x/a", file, None, patience, Connections())
        transfer.end_bytes = None
        with pytest.raises(data.download._RetryError, match="stalled at 0 bytes/s"):
            transfer._receive(SimpleNamespace(read1=read1))
    assert clock[0] < 300
