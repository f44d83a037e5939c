"""Tests of tars: hostile and damaged ones, those we write, folders into which one was unpacked."""

import gzip
import os
import re
import tarfile

import numpy as np
import pytest
from checks import one_line
from synthetic import draw, encode, entry, make_image_id, member_name, pack

from data import tars
from data.tars import list_members
from utils import ExpectedError

JPEG = encode(draw(17, np.random.default_rng(0)), quality=95)
HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
IDS = sorted(make_image_id("tars", number) for number in range(9))


def unpack(folder, contents):
    """Writes image id -> bytes as a folder of files."""
    for image_id, data in contents.items():
        path = folder / member_name(image_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def read_tar(path):
    with tarfile.open(path) as tar:
        return [(info.name, tar.extractfile(info).read()) for info in tar]


def test_a_member_has_the_name_of_its_image():
    assert tars.member_name(0x0012AB) == "0/0/0/00000000000012ab.jpg"
    assert tars.member_name(int(IDS[3], 16)) == member_name(IDS[3])


def test_a_tar_is_the_same_bytes_at_any_time_and_for_any_user(tmp_path, monkeypatch):
    for name, clock in (("a", 0), ("b", 10**9)):
        monkeypatch.setattr("time.time", lambda clock=clock: clock)
        monkeypatch.setattr("os.getuid", lambda clock=clock: clock)
        with tars.open_new(tmp_path / name) as tar:
            tars.add_image(tar, int(IDS[0], 16), b"picture")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with tarfile.open(tmp_path / "a") as tar:
        (info,) = tar
    assert (info.name, info.mtime, info.uid, info.gid, info.mode, info.uname) == (
        *(member_name(IDS[0]), 0, 0, 0, 0o644),
        "",
    )


@pytest.mark.parametrize("size", [1, 511, 512, 513, 5000])
def test_an_unpacked_tar_is_packed_again_in_the_order_of_names(tmp_path, size):
    contents = {image_id: os.urandom(size + n) for n, image_id in enumerate(reversed(IDS))}
    folder = unpack(tmp_path / "images_000", contents)
    tars.pack_again(folder, tmp_path / "again.tar")
    assert read_tar(tmp_path / "again.tar") == [(member_name(i), contents[i]) for i in IDS]
    members = list_members(tmp_path / "again.tar")
    assert tars.list_unpacked(folder) == members
    for member in members:
        data = tars.read_unpacked(folder, member.offset, member.size)
        assert data == contents[f"{member.image_id:016x}"]
    assert tars.read_unpacked(folder, 17, 4) == b""


def test_links_and_other_files_of_an_unpacked_tar_are_left_alone(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    folder = unpack(tmp_path / "images_000", {IDS[0]: b"picture"})
    for name in (member_name(IDS[1]), "0/0/0/notes.txt", f"{IDS[2]}.jpg", "0/0/0/0/x.jpg"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(secret) if IDS[1] in name else path.write_bytes(b"x")
    link = folder / "f"
    assert not link.exists()
    link.symlink_to(unpack(tmp_path / "elsewhere", {"ffff" + IDS[3][4:]: b"x"}) / "f")
    assert [file.image_id for file in tars.list_unpacked(folder)] == [int(IDS[0], 16)]


def test_a_folder_without_images_is_no_unpacked_tar(tmp_path):
    (tmp_path / "images_000").mkdir()
    with pytest.raises(ExpectedError) as caught:
        tars.list_unpacked(tmp_path / "images_000")
    assert one_line(caught.value).startswith(f"{tmp_path}/images_000: no image in it; expected ")


def test_a_tar_without_images_is_read_as_one(tmp_path):
    with tars.open_new(tmp_path / "none.tar"):
        pass
    assert list_members(tmp_path / "none.tar") == []


def test_what_is_written_is_what_a_tar_of_the_data_set_is(tmp_path):
    with tars.open_new(tmp_path / "ours.tar") as tar:
        for image_id in IDS:
            tars.add_image(tar, int(image_id, 16), image_id.encode() * 40)
    theirs = pack([entry(member_name(i), i.encode() * 40) for i in IDS])
    assert (tmp_path / "ours.tar").read_bytes() == theirs


# ------------------------------------------------------------------------------- hostile tars

GOOD_ID = make_image_id("good")
OTHER_ID = make_image_id("other")
ESCAPED = f"../../../{GOOD_ID}.jpg"

LEFT_ALONE = {
    "a name that leads out": entry(ESCAPED, JPEG),
    "a name that leads out and in again": entry(f"../{member_name(GOOD_ID)}", JPEG),
    "an absolute name": entry(f"/{member_name(GOOD_ID)}", JPEG),
    "a name with two dots": entry(f"././{member_name(GOOD_ID)}", JPEG),
    "a name without folders": entry(f"{GOOD_ID}.jpg", JPEG),
    "a folder too deep": entry(f"train/{member_name(GOOD_ID)}", JPEG),
    "a folder that is another id's": entry(f"0/0/0/f{GOOD_ID[1:]}.jpg", JPEG),
    "capitals": entry(member_name(GOOD_ID).upper().replace("JPG", "jpg"), JPEG),
    "another suffix": entry(member_name(GOOD_ID) + ".txt", JPEG),
    "an id too long": entry(member_name(GOOD_ID + "0"), JPEG),
    "a line break at the end": entry(member_name(GOOD_ID) + "\n", JPEG),
    "a symbolic link": entry(member_name(GOOD_ID), type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a hard link": entry(member_name(GOOD_ID), type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    "a character device": entry(member_name(GOOD_ID), type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    "a block device": entry(member_name(GOOD_ID), type=tarfile.BLKTYPE, devmajor=8),
    "a fifo": entry(member_name(GOOD_ID), type=tarfile.FIFOTYPE),
    "a folder": entry(member_name(GOOD_ID), type=tarfile.DIRTYPE, mode=0o777),
    "an index of the shard": entry("index.html", HTML),
}


@pytest.mark.parametrize("odd", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_anything_but_a_regular_image_at_its_place_is_left_alone(odd, tmp_path):
    path = tmp_path / "shard.tar"
    path.write_bytes(pack([odd, entry(member_name(OTHER_ID), JPEG), odd]))
    assert [member.image_id for member in list_members(path)] == [int(OTHER_ID, 16)]


def test_of_an_id_that_appears_twice_the_first_is_read(tmp_path):
    path = tmp_path / "shard.tar"
    path.write_bytes(
        pack([entry(member_name(GOOD_ID), b"first"), entry(member_name(GOOD_ID), b"second one")])
    )
    (member,) = list_members(path)
    assert path.read_bytes()[member.offset :][: member.size] == b"first"


def test_a_member_is_found_where_it_lies_whatever_stands_before_it(tmp_path):
    path = tmp_path / "shard.tar"
    data = {make_image_id(n): bytes([n]) * (n * 300) for n in range(8)}
    entries = [entry(member_name(image_id), content) for image_id, content in data.items()]
    path.write_bytes(pack([*LEFT_ALONE.values(), *entries], tarfile.PAX_FORMAT))
    tar = path.read_bytes()
    found = {f"{m.image_id:016x}": tar[m.offset :][: m.size] for m in list_members(path)}
    assert found == data


OTHERS = {
    "2 a hard link": entry(member_name(GOOD_ID), type=tarfile.LNKTYPE, linkname="x"),
    "2 a link or device": entry(member_name(GOOD_ID), type=tarfile.SYMTYPE, linkname="x"),
    "2 below another folder": entry(f"train/{member_name(GOOD_ID)}", JPEG),
    "2 of another name": entry("index.html", HTML),
    "2 of an id that is there already": entry(member_name(OTHER_ID), JPEG),
}


@pytest.mark.parametrize(("told", "other"), OTHERS.items(), ids=OTHERS)
def test_what_is_left_alone_is_counted_and_told(told, other, tmp_path, capsys):
    path = tmp_path / "shard.tar"
    path.write_bytes(
        pack([entry(member_name(OTHER_ID), JPEG), other, other, entry("x", type=b"5")])
    )
    assert len(list_members(path)) == 1
    first = other[0].name
    assert capsys.readouterr().err == (
        f"{path}: 1 images; of its 3 files left alone: {told}; the first is {first!r}\n"
    )


def test_a_tar_made_of_a_folder_with_a_dot_is_read(tmp_path, capsys):
    path = tmp_path / "shard.tar"
    folder = entry("./", type=tarfile.DIRTYPE)
    path.write_bytes(pack([folder, *(entry(f"./{member_name(i)}", b"x") for i in IDS)]))
    assert [f"{member.image_id:016x}" for member in list_members(path)] == IDS
    assert capsys.readouterr().err == ""


def test_a_tar_of_files_of_which_none_is_an_image_is_refused(tmp_path):
    path = tmp_path / "shard.tar"
    path.write_bytes(pack([entry(f"train/{member_name(i)}", JPEG) for i in IDS]))
    with pytest.raises(ExpectedError) as caught:
        list_members(path)
    assert one_line(caught.value) == (
        f"{path}: none of its 9 files is an image (9 below another folder; the first is "
        f"'train/{member_name(IDS[0])}'); expected names a/b/c/<id>.jpg; check the shard, or leave "
        "it out with --skip-bad-shards"
    )


# ------------------------------------------------------------------------------- damaged tars

THREE = pack([entry(member_name(make_image_id(n)), bytes(700)) for n in range(3)])
MEMBER_BYTES = 1536  # a header of 512 bytes and 700 bytes of data, filled up to blocks


def assert_refused(path, data):
    path.write_bytes(data)
    with pytest.raises(ExpectedError) as caught:
        list_members(path)
    message = one_line(caught.value)
    assert re.fullmatch(
        rf"{re.escape(str(path))}: .+; expected a whole uncompressed tar; "
        "check the shard, or leave it out with --skip-bad-shards",
        message,
    ), message
    return message


def test_three_whole_members_are_listed(tmp_path):
    path = tmp_path / "shard.tar"
    path.write_bytes(THREE)
    assert [m.offset for m in list_members(path)] == [512, 512 + 1536, 512 + 2 * 1536]


def damaged_header(place, content):
    """THREE with other bytes in the second member's header, its checksum put right."""
    header = bytearray(THREE[MEMBER_BYTES : MEMBER_BYTES + 512])
    header[place : place + len(content)] = content
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return THREE[:MEMBER_BYTES] + bytes(header) + THREE[MEMBER_BYTES + 512 :]


def base_256(value):
    """A size as tar writes numbers too large for octal digits, or negative."""
    return (value % 256**12 | (0x80 << 88 if value >= 0 else 0)).to_bytes(12, "big")


SIZE_FIELD, TYPE_FIELD = 124, 156

DAMAGED = {
    "an empty file": b"",
    "a short file": b"x",
    "a page of HTML": HTML * 20,
    "a compressed tar": gzip.compress(THREE),
    "a JPEG": JPEG * 3,
    "cut within the first header": THREE[:300],
    "cut after the first header": THREE[:512],
    "cut within data": THREE[: MEMBER_BYTES + 800],
    "cut where the data ends, before its block does": THREE[: 2 * MEMBER_BYTES + 512 + 700],
    "cut within a later header": THREE[: 2 * MEMBER_BYTES + 100],
    "cut between two members": THREE[: 2 * MEMBER_BYTES],
    "cut before the end blocks": THREE[: 3 * MEMBER_BYTES],
    "a header with a wrong checksum": THREE.replace(make_image_id(1).encode(), b"x" * 16),
    "garbage for a header": THREE[:MEMBER_BYTES] + b"\xa5" * 512 + THREE[MEMBER_BYTES + 512 :],
    "two tars joined": THREE + THREE,
    "a word after the end blocks": THREE + b"more",
    "garbage at the end": THREE[: 3 * MEMBER_BYTES] + b"\xa5" * 1024,
    "zeros in the place of all after the first member": THREE[:MEMBER_BYTES] + bytes(30_000),
    "zeros alone": bytes(30_000),
    "a size beyond the end": damaged_header(SIZE_FIELD, b"00000777777\0"),
    "a size of no digits": damaged_header(SIZE_FIELD, b"abcdefghijk\0"),
    "a size that leads back": damaged_header(SIZE_FIELD, base_256(-2 * MEMBER_BYTES)),
    "a size that leads before the file": damaged_header(SIZE_FIELD, base_256(-(1 << 40))),
    "a size of 2**87": damaged_header(SIZE_FIELD, base_256(1 << 87)),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_a_file_that_is_no_whole_tar_is_refused_in_one_line(data, tmp_path):
    assert_refused(tmp_path / "shard.tar", data)


def test_a_tar_cut_anywhere_before_its_end_blocks_is_refused(tmp_path):
    for cut in range(0, 3 * MEMBER_BYTES + 1, 97):
        assert_refused(tmp_path / "shard.tar", THREE[:cut])


def test_an_extended_header_of_an_absurd_size_is_refused(tmp_path):
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        for size in (1 << 87, -1024):
            header = bytearray(damaged_header(SIZE_FIELD, base_256(size)))
            block = header[MEMBER_BYTES : MEMBER_BYTES + 512]
            block[TYPE_FIELD : TYPE_FIELD + 1] = kind
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
            header[MEMBER_BYTES : MEMBER_BYTES + 512] = block
            assert_refused(tmp_path / "shard.tar", bytes(header))
