"""Tests of tars to write, and of folders into which somebody unpacked one."""

import os
import tarfile

import pytest
from checks import one_line
from synthetic import entry, make_image_id, member_name, pack

from data import tars
from generators import list_members
from utils import ExpectedError

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
    listed = tars.list_unpacked(folder)
    assert [(m.offset, m.size) for m in members] == [(f.offset, f.size) for f in listed]
    for member in members:
        data = tars.read_unpacked(folder, member.offset, member.size)
        assert data == contents[f"{member.image_id:016x}"]
    assert tars.read_unpacked(folder, 17, 4) == b""
    assert tars.unpacked_size(folder) == members[-1].offset + members[-1].size


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
    assert [file.name for file in tars.list_unpacked(folder)] == [member_name(IDS[0])]


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
