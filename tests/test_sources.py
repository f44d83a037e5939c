"""Tests of where a data set comes from: shards, folders, addresses, md5 files."""

import hashlib
import random

import numpy as np
import pytest
from checks import one_line
from fault_server import Fault, FaultServer

from data.sources import CVDF_URL, Shard, Source, share_of
from data.tars import list_members
from utils import ExpectedError, MissingFileError

TAR = random.Random(3).randbytes(50_000)
SHARD = Shard("train", 0)


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr("data.connections.Connections.pause", lambda *_: None)


@pytest.fixture
def server():
    with FaultServer() as server:
        yield server


@pytest.fixture
def online(server, tmp_path):
    """A source over HTTP with its scratch in `tmp_path`."""
    return Source(server.address, tmp_path / "scratch")


@pytest.fixture
def folder(tmp_path):
    """An empty folder for a source; `add` fills it."""
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def add(folder, path, content=b""):
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(content)


def md5_line(content, name="images_000.tar"):
    return f"{hashlib.md5(content).hexdigest()}  {name}\n".encode()


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ------------------------------------------------------------------------------------------ shards


def test_a_shard_knows_its_place_in_the_layout():
    assert Shard("train", 37).path == "train/images_037.tar"
    assert Shard("train", 37).md5_path == "md5sum/train/md5.images_037.txt"
    assert Shard("test", 0).path == "test/images_000.tar"
    assert Shard("index", 1234).path == "index/images_1234.tar"


def test_shards_sort_by_split_and_number():
    shards = [Shard("train", 2), Shard("index", 10), Shard("train", 1)]
    assert sorted(shards) == [shards[1], shards[2], shards[0]]


# ----------------------------------------------------------------------------------------- sources


def test_a_source_that_is_neither_folder_nor_address_is_an_expected_error(tmp_path):
    with pytest.raises(ExpectedError) as caught:
        Source(tmp_path / "nothing", tmp_path)
    assert one_line(caught.value) == (
        f"{tmp_path}/nothing: no such folder; expected a folder or http(s) address in the CVDF "
        "layout; check --source"
    )
    with pytest.raises(ExpectedError):
        Source("ftp://example.org/", tmp_path)


@pytest.mark.parametrize("address", ["http://[::1", "http://[x]/", "http://", "http://host:port/"])
def test_a_malformed_address_is_told_before_anything_is_asked(tmp_path, address):
    with pytest.raises(ExpectedError) as caught:
        Source(address, tmp_path)
    assert one_line(caught.value).startswith(f"{address}: not a valid address (")
    assert one_line(caught.value).endswith("; check --source")


def test_an_address_has_one_slash_at_its_end(tmp_path):
    for address in ("http://host/data", "http://host/data/", "http://host/data//"):
        assert str(Source(address, tmp_path)) == "http://host/data/"


def test_a_folder_is_read_in_place(folder, tmp_path):
    add(folder, "metadata/test.csv", b"id\n")
    source = Source(str(folder), tmp_path / "scratch")
    assert source.fetch("metadata/test.csv") == folder / "metadata/test.csv"
    assert source.exists("metadata/test.csv")
    assert not source.exists("metadata/index.csv")
    assert not source.exists("metadata")
    assert not (tmp_path / "scratch").exists()


def test_a_file_that_the_folder_lacks_is_told(folder, tmp_path):
    with pytest.raises(MissingFileError) as caught:
        Source(folder, tmp_path).fetch("metadata/test.csv")
    assert one_line(caught.value).startswith(f"{folder}/metadata/test.csv: no such file; ")


def test_a_file_is_fetched_once_over_http(server, online, tmp_path):
    server.files["/metadata/test.csv"] = b"id\n"
    assert online.fetch("metadata/test.csv") == tmp_path / "scratch" / "metadata/test.csv"
    assert online.fetch("metadata/test.csv").read_bytes() == b"id\n"
    assert len(server.requests) == 1
    assert online.exists("metadata/test.csv")
    assert not online.exists("metadata/index.csv")


def test_a_file_that_the_server_lacks_is_told(server, online):
    with pytest.raises(MissingFileError) as caught:
        online.fetch("metadata/test.csv")
    assert one_line(caught.value).startswith(f"{server.address}metadata/test.csv: HTTP 404")


@pytest.mark.parametrize("path", ["metadata/train.csv", SHARD.path, SHARD.md5_path])
def test_a_web_page_in_place_of_a_file_is_called_so(server, online, folder, tmp_path, path):
    page = b"<!DOCTYPE html>\n<html><title>Log in</title></html>\n"
    server.files |= {f"/{SHARD.path}": TAR, f"/{path}": page}
    add(folder, SHARD.path, TAR)
    add(folder, path, page)
    for source in (online, Source(folder, tmp_path)):
        with pytest.raises(ExpectedError) as caught:
            source.fetch(path) if path.endswith(".csv") else source.fetch_shard(SHARD)
        assert one_line(caught.value) == (
            f"{source if source is online else f'{folder}/'}{path}: an HTML page; "
            "expected the file itself and not, say, a login page; check --source"
        )


def test_a_file_of_a_folder_that_cannot_be_read_is_told(folder, tmp_path, monkeypatch):
    add(folder, "metadata/test.csv", b"id\n")

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ExpectedError) as caught:
        Source(folder, tmp_path).fetch("metadata/test.csv")
    assert "test.csv: cannot be read (Permission denied); expected " in one_line(caught.value)


# ---------------------------------------------------------------------------------- counting shards


@pytest.mark.parametrize("num_shards", range(10))
def test_the_shards_of_a_folder_are_counted(folder, tmp_path, num_shards):
    for number in range(num_shards):
        add(folder, Shard("index", number).path)
    add(folder, "train/images_000.tar")  # another split
    assert Source(folder, tmp_path).count_shards("index") == num_shards


@pytest.mark.parametrize("num_shards", range(10))
def test_the_shards_of_a_server_are_counted_with_few_questions(server, online, num_shards):
    server.files |= {f"/{Shard('index', number).path}": b"x" for number in range(num_shards)}
    assert online.count_shards("index") == num_shards
    assert len(server.requests) <= 8
    assert {request.method for request in server.requests} == {"HEAD"}


def test_a_hundred_shards_are_counted_with_few_questions(server, online):
    server.files |= {f"/{Shard('index', number).path}": b"x" for number in range(100)}
    assert online.count_shards("index") == 100
    assert len(server.requests) <= 15


@pytest.mark.parametrize("num_shards", [511, 512, 513, 999, 1000])
def test_many_shards_are_counted_with_few_questions(server, online, num_shards):
    server.files |= {f"/{Shard('index', number).path}": b"x" for number in range(num_shards)}
    assert online.count_shards("index") == num_shards
    assert len(server.requests) <= 21


class _AnswersAll(dict):
    """Files of a server that answers every address with the same page."""

    def get(self, path, default=None):
        return b"<html>Please log in</html>"


def test_a_server_that_answers_to_every_name_is_told_after_few_questions(server, online):
    server.files = _AnswersAll()
    with pytest.raises(ExpectedError) as caught:
        online.select_shards("train")
    assert one_line(caught.value) == (
        f"{server.address}: there are train/images_000.tar to train/images_1000.tar and more; "
        "expected at most 1000 shards, and not an address that answers to every name; "
        "check --source"
    )
    assert len(server.requests) <= 11


@pytest.mark.parametrize("address", [CVDF_URL, CVDF_URL.rstrip("/")])
def test_the_shards_of_the_real_data_set_are_known(tmp_path, address):
    source = Source(address, tmp_path)
    counts = [source.count_shards(split) for split in ("train", "index", "test")]
    assert counts == [500, 100, 20]
    assert source.select_shards("train", 10, 12) == [Shard("train", 10), Shard("train", 11)]


def test_shards_are_selected_as_a_half_open_range(folder, tmp_path):
    for number in range(5):
        add(folder, Shard("train", number).path)
    source = Source(folder, tmp_path)
    assert source.select_shards("train") == [Shard("train", number) for number in range(5)]
    assert source.select_shards("train", 3) == [Shard("train", 3), Shard("train", 4)]
    assert source.select_shards("train", 1, 3) == [Shard("train", 1), Shard("train", 2)]
    assert source.select_shards("train", 4, 5) == [Shard("train", 4)]


@pytest.mark.parametrize(("first", "stop"), [(0, 6), (5, 6), (5, None), (3, 3), (4, 2), (-1, 2)])
def test_shards_that_are_not_there_cannot_be_selected(folder, tmp_path, first, stop):
    for number in range(5):
        add(folder, Shard("train", number).path)
    with pytest.raises(ExpectedError) as caught:
        Source(folder, tmp_path).select_shards("train", first, stop)
    assert one_line(caught.value) == (
        f"{folder}: train shards {first}:{5 if stop is None else stop} asked for; expected a range "
        "within 0:5, which is what the source has; change --train-shards"
    )


def test_the_setting_of_a_wrong_choice_of_shards_can_be_named(folder, tmp_path):
    add(folder, SHARD.path)
    with pytest.raises(ExpectedError) as caught:
        Source(folder, tmp_path).select_shards("train", 0, 2, "valid_shards")
    assert one_line(caught.value).endswith("; change --valid-shards")


def test_a_source_without_shards_says_so(folder, tmp_path):
    with pytest.raises(ExpectedError) as caught:
        Source(folder, tmp_path).select_shards("test")
    assert one_line(caught.value) == (
        f"{folder}: no test/images_000.tar; expected shards in the CVDF layout; check --source"
    )


# ---------------------------------------------------------------------------------- fetching shards


def test_a_right_shard_is_fetched_and_discarded(server, online, tmp_path, capsys):
    server.files |= {f"/{SHARD.path}": TAR, f"/{SHARD.md5_path}": md5_line(TAR)}
    local = online.fetch_shard(SHARD)
    assert local == tmp_path / "scratch" / SHARD.path
    assert local.read_bytes() == TAR
    online.discard_shard(SHARD)
    assert files_below(tmp_path / "scratch") == [SHARD.md5_path]
    assert capsys.readouterr().err == ""


def test_a_discarded_shard_can_be_fetched_again(server, online):
    server.files |= {f"/{SHARD.path}": TAR, f"/{SHARD.md5_path}": md5_line(TAR)}
    online.fetch_shard(SHARD)
    online.discard_shard(SHARD)
    online.discard_shard(SHARD)  # twice is no fault
    assert online.fetch_shard(SHARD).read_bytes() == TAR


def test_a_shard_with_the_wrong_md5_is_an_error_and_not_kept(server, online, tmp_path):
    server.files |= {f"/{SHARD.path}": TAR, f"/{SHARD.md5_path}": md5_line(b"another")}
    with pytest.raises(ExpectedError) as caught:
        online.fetch_shard(SHARD)
    assert f"md5 differs (expected {hashlib.md5(b'another').hexdigest()})" in one_line(caught.value)
    assert files_below(tmp_path / "scratch") == [SHARD.md5_path]


def test_a_shard_that_arrives_damaged_once_is_right_in_the_end(server, online):
    server.files |= {f"/{SHARD.path}": TAR, f"/{SHARD.md5_path}": md5_line(TAR)}
    server.faults[f"/{SHARD.path}"] = [Fault(corrupt_at=40_000), Fault(close_after=10_000)]
    assert online.fetch_shard(SHARD).read_bytes() == TAR


def test_a_missing_shard_is_told(server, online):
    server.files[f"/{SHARD.md5_path}"] = md5_line(TAR)
    with pytest.raises(MissingFileError) as caught:
        online.fetch_shard(SHARD)
    assert one_line(caught.value).startswith(f"{server.address}{SHARD.path}: HTTP 404")


def test_a_missing_md5_file_is_told_once_for_a_split(server, online, capsys):
    shards = [Shard("train", 0), Shard("train", 1), Shard("index", 0), Shard("index", 1)]
    server.files |= {f"/{shard.path}": TAR for shard in shards}
    for shard in shards:
        assert online.fetch_shard(shard).read_bytes() == TAR
    assert capsys.readouterr().err.splitlines() == [
        f"{server.address}: no md5 file for {split}/images_000.tar; such shards are checked by "
        "length alone"
        for split in ("train", "index")
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"0123456789abcdef  short",
        b"g" * 32,
        b"0" * 33,
        b"MD5 (images_000.tar) = 0123",
        b"SHA1 (images_000.tar) = " + b"0" * 40,
    ],
)
def test_a_malformed_md5_file_is_an_error(server, online, content):
    server.files |= {f"/{SHARD.path}": TAR, f"/{SHARD.md5_path}": content}
    with pytest.raises(ExpectedError) as caught:
        online.fetch_shard(SHARD)
    assert "no md5 in it; expected 32 hex characters" in one_line(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "{md5}",
        "{MD5}  images_000.tar\n",
        "{md5} *images_000.tar\r\n",
        "\ufeff{md5}  images_000.tar\n",
        "MD5 (images_000.tar) = {md5}\n",
        "MD5 (images (old).tar) = {MD5}\n",
        "MD5(images_000.tar)= {md5}\n",
    ],
)
def test_the_md5_is_found_however_it_is_written(server, online, folder, tmp_path, line):
    md5 = hashlib.md5(TAR).hexdigest()
    line = line.format(md5=md5, MD5=md5.upper()).encode()
    server.files |= {f"/{SHARD.path}": TAR, f"/{SHARD.md5_path}": line}
    assert online.fetch_shard(SHARD).read_bytes() == TAR
    add(folder, SHARD.path, TAR)
    add(folder, SHARD.md5_path, line)
    assert Source(folder, tmp_path).fetch_shard(SHARD) == folder / SHARD.path
    add(folder, SHARD.path, TAR[1:])
    with pytest.raises(ExpectedError, match=f"md5 differs .expected {md5}"):
        Source(folder, tmp_path).fetch_shard(SHARD)


def test_a_shard_of_a_folder_is_checked_and_stays(folder, tmp_path):
    add(folder, SHARD.path, TAR)
    add(folder, SHARD.md5_path, md5_line(TAR))
    source = Source(folder, tmp_path)
    assert source.fetch_shard(SHARD) == folder / SHARD.path
    source.discard_shard(SHARD)
    assert (folder / SHARD.path).read_bytes() == TAR


def test_a_shard_of_a_folder_that_is_its_own_scratch_stays(folder):
    add(folder, SHARD.path, TAR)
    source = Source(folder, folder)
    source.fetch_shard(SHARD)
    source.discard_shard(SHARD)
    assert (folder / SHARD.path).read_bytes() == TAR


def test_a_damaged_shard_of_a_folder_is_an_error(folder, tmp_path):
    add(folder, SHARD.path, TAR[:-1])
    add(folder, SHARD.md5_path, md5_line(TAR))
    with pytest.raises(ExpectedError) as caught:
        Source(folder, tmp_path).fetch_shard(SHARD)
    assert one_line(caught.value).startswith(f"{folder}/{SHARD.path}: md5 differs (expected ")
    assert one_line(caught.value).endswith("or leave it out with --skip-bad-shards")


def test_a_folder_without_md5_files_is_told_once(folder, tmp_path, capsys):
    add(folder, "train/images_000.tar", TAR)
    add(folder, "train/images_001.tar", TAR)
    source = Source(folder, tmp_path)
    assert source.fetch_shard(Shard("train", 0)) == folder / "train/images_000.tar"
    assert source.fetch_shard(Shard("train", 1)) == folder / "train/images_001.tar"
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_scratch_needs_room_for_two_shards(server, online, tmp_path):
    server.files[f"/{SHARD.path}"] = TAR
    online.require_space(SHARD)
    server.faults[f"/{SHARD.path}"] = [Fault(headers={"Content-Length": 10**17})]
    with pytest.raises(ExpectedError) as caught:
        online.require_space(SHARD)
    message = one_line(caught.value)
    assert message.startswith(f"{tmp_path}/scratch: ")
    assert "expected 210000000.00 GB or more for two shards; " in message
    assert [request.method for request in server.requests] == ["HEAD", "HEAD"]


def test_a_folder_needs_no_room(folder, tmp_path):
    Source(folder, tmp_path / "scratch").require_space(SHARD)
    assert not (tmp_path / "scratch").exists()


def test_a_part_of_a_shard_is_read_without_fetching_it(server, online, folder, tmp_path):
    server.files[f"/{SHARD.path}"] = TAR
    add(folder, SHARD.path, TAR)
    for source in (online, Source(folder, tmp_path)):
        assert source.read_range(SHARD, 1000, 24) == TAR[1000:1024]
    assert [request.range for request in server.requests] == ["bytes=1000-1023"]
    assert not (tmp_path / "scratch").exists()


def test_a_part_beyond_the_end_of_a_shard_is_an_error(server, online, folder, tmp_path):
    server.files[f"/{SHARD.path}"] = TAR
    add(folder, SHARD.path, TAR)
    for source in (online, Source(folder, tmp_path)):
        with pytest.raises(ExpectedError) as caught:
            source.read_range(SHARD, len(TAR) - 10, 24)
        one_line(caught.value)


# ---------------------------------------------------------------------------------- several sources


@pytest.fixture
def second(tmp_path):
    """Another empty folder for a source."""
    (tmp_path / "second").mkdir()
    return tmp_path / "second"


def add_shard(folder, shard, content=TAR):
    add(folder, shard.path, content)
    add(folder, shard.md5_path, md5_line(content, shard.path.rpartition("/")[2]))


def test_a_file_comes_from_the_first_source_that_has_it(folder, second, tmp_path):
    source = Source([folder, second], tmp_path / "scratch")
    assert str(source) == f"{folder}, {second}"
    assert not source.exists("metadata/test.csv")
    add(second, "metadata/test.csv", b"id\n")
    assert source.exists("metadata/test.csv")
    assert source.fetch("metadata/test.csv") == second / "metadata/test.csv"
    add(folder, "metadata/test.csv", b"id\n")
    assert source.fetch("metadata/test.csv") == folder / "metadata/test.csv"


def test_a_file_or_shard_that_is_in_no_source_names_them_all(folder, second, server, tmp_path):
    source = Source([folder, second, server.address], tmp_path / "scratch")
    add_shard(second, Shard("train", 2))
    for ask in (
        lambda: source.fetch("train/images_001.tar"),
        lambda: source.fetch_shard(Shard("train", 1)),
        lambda: source.version_of(Shard("train", 1)),
    ):
        with pytest.raises(MissingFileError) as caught:
            ask()
        assert one_line(caught.value) == (
            f"train/images_001.tar: in none of {folder}, {second}, {server.address}; expected the "
            "CVDF layout, spread over these; check --source"
        )


def test_each_shard_comes_with_the_md5_file_of_its_own_source(folder, second, tmp_path):
    small = TAR[:1000]
    add_shard(folder, Shard("train", 0), small)
    add_shard(second, Shard("train", 0))
    add_shard(second, Shard("train", 1))
    add(folder, Shard("train", 1).md5_path, md5_line(b"of a tar that is not there"))
    source = Source([folder, second], tmp_path / "scratch")
    for shard, content, place in ((0, small, folder), (1, TAR, second)):
        shard = Shard("train", shard)
        assert source.fetch_shard(shard) == place / shard.path
        assert source.version_of(shard) == hashlib.md5(content).hexdigest()
        assert source.size_of(shard) == len(content)
        assert source.read_range(shard, 10, 5) == content[10:15]


def test_the_shards_of_several_folders_are_counted_together(folder, second, tmp_path):
    for number in (0, 1, 2):
        add_shard(folder, Shard("train", number))
    for number in (3, 4):
        add_shard(second, Shard("train", number))
    source = Source([folder, second], tmp_path)
    assert source.count_shards("train") == 5
    assert source.count_shards("index") == 0
    assert source.select_shards("train", 2, 4) == [Shard("train", 2), Shard("train", 3)]


@pytest.mark.parametrize(("here", "there"), [((0, 1, 2), (3, 4)), ((3, 4), (0, 1, 2)), ((), (0,))])
def test_shards_of_a_folder_and_an_address_are_counted_together(
    folder, server, tmp_path, here, there
):
    for number in here:
        add_shard(folder, Shard("train", number))
    server.files |= {f"/{Shard('train', number).path}": TAR for number in there}
    source = Source([folder, server.address], tmp_path / "scratch")
    assert source.count_shards("train") == len(here) + len(there)
    assert source.fetch_shard(Shard("train", 0)).read_bytes() == TAR


def test_a_folder_in_front_of_the_real_data_set_asks_it_nothing(folder, tmp_path, monkeypatch):
    add_shard(folder, SHARD)
    monkeypatch.setattr("data.sources.online_size", None)  # would be called
    source = Source([folder, CVDF_URL], tmp_path)
    assert source.count_shards("train") == 500
    assert source.fetch_shard(SHARD) == folder / SHARD.path


# ------------------------------------------------------------------------------------ unpacked tars


PICTURES = {f"{number:03x}" + "0" * 13: bytes([number % 256]) * 600 for number in (7, 3, 0x1A2)}


def unpack(folder, name):
    for image_id, data in PICTURES.items():
        add(folder / name, "/".join([*image_id[:3], f"{image_id}.jpg"]), data)


@pytest.mark.parametrize("name", ["train/images_000.tar", "train/images_000"])
def test_a_tar_that_a_mount_unpacked_is_read_as_a_tar(folder, tmp_path, capsys, name):
    unpack(folder, name)
    add(folder, SHARD.md5_path, md5_line(TAR))
    source = Source(folder, tmp_path / "scratch")
    assert source.count_shards("train") == 1
    assert source.version_of(SHARD) == f"{hashlib.md5(TAR).hexdigest()} unpacked"
    source.require_space(SHARD)
    local = source.fetch_shard(SHARD)
    assert local == tmp_path / "scratch" / SHARD.path
    members = list_members(local)
    assert [f"{member.image_id:016x}" for member in members] == sorted(PICTURES)
    assert source.size_of(SHARD) == members[-1].offset + members[-1].size
    for member in members:
        data = source.read_range(SHARD, member.offset, member.size)
        assert data == PICTURES[f"{member.image_id:016x}"]
    with pytest.raises(ExpectedError, match="0 of 5 bytes from 3 on"):
        source.read_range(SHARD, 3, 5)
    source.discard_shard(SHARD)
    assert files_below(tmp_path / "scratch") == []
    assert files_below(folder / name)
    (told,) = capsys.readouterr().err.splitlines()
    assert told.endswith("train/images_000.tar is unpacked; the md5 of such shards is not checked")


def test_an_unpacked_tar_without_md5_is_known_by_its_size(folder, tmp_path):
    unpack(folder, "train/images_000")
    source = Source(folder, tmp_path)
    before = source.version_of(SHARD)
    add(folder, "train/images_000/f/f/f/" + "f" * 16 + ".jpg", b"one more")
    assert before.endswith(" unpacked") and source.version_of(SHARD) != before


def test_a_whole_tar_goes_before_an_unpacked_one(folder, tmp_path):
    unpack(folder, "train/images_000")
    add_shard(folder, SHARD)
    assert Source(folder, tmp_path).fetch_shard(SHARD) == folder / SHARD.path


@pytest.mark.parametrize("num_shards", [0, 1, 7, 100])
@pytest.mark.parametrize("num_parts", [1, 2, 6, 9])
def test_parts_share_the_shards_as_numpy_splits_a_list(num_shards, num_parts):
    shards = [Shard("index", number) for number in range(num_shards)]
    expected = [piece.tolist() for piece in np.array_split(np.array(shards, object), num_parts)]
    assert [share_of(shards, part, num_parts) for part in range(num_parts)] == expected


def test_a_query_of_the_address_follows_the_path_of_each_file(tmp_path, capsys):
    """As of Azure's shared access signatures; it is shown nowhere."""
    files = {"/set/test/images_000.tar": b"x" * 700, "/set/metadata/test.csv": b"id\n"}
    files = {f"{path}?sv=1&sig=secret%3D": content for path, content in files.items()}
    with FaultServer(files) as server:
        source = Source(server.address + "set?sv=1&sig=secret%3D", tmp_path)
        assert source.fetch("metadata/test.csv").read_bytes() == b"id\n"
        assert source.fetch_shard(Shard("test", 0)).stat().st_size == 700
        assert source.size_of(Shard("test", 0)) == 700
        assert source.read_range(Shard("test", 0), 3, 5) == b"xxxxx"
        assert not source.exists("metadata/train.csv")
        with pytest.raises(MissingFileError) as caught:
            source.fetch("metadata/train.csv")
        assert str(source) == f"{server.address}set/?***"
        assert "secret" not in one_line(caught.value) + capsys.readouterr().err


def test_a_password_of_the_address_is_not_shown(tmp_path):
    source = Source("http://me:secret@host/set", tmp_path)
    assert str(source) == str(source.places[0]) == "http://***@host/set/"
