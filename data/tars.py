"""Tars to read and to write, and folders into which somebody unpacked one.

A tar is untrusted input: its images are found where they lie, nothing is extracted by its name.

Kaggle unpacks the tars of an uploaded data set. Such a folder is read as the tar that it would be
with its members in the order of their names.
"""

import io
import os
import re
import stat
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data.images import BadImageError
from utils import CHUNK_BYTES, ExpectedError, atomic_write, read_at, say

MEMBER_NAME = re.compile(r"([0-9a-f])/([0-9a-f])/([0-9a-f])/(\1\2\3[0-9a-f]{13})\.jpg")
MAX_END_BYTES = 2 * tarfile.RECORDSIZE  # a tar ends within a record of 10 KB
MAX_MEMBER_BYTES = 64 << 20  # the largest JPEGs of the data set are a few MB


@dataclass(frozen=True)
class Member:
    """Where an image lies in a tar: `size` bytes at `offset`."""

    image_id: int
    offset: int
    size: int
    class_index: int | None = None


def list_members(path):
    """Lists the images of an uncompressed tar as `Member`s, in its order; says what else is in it.

    Only regular files named a/b/c/<id>.jpg or ./a/b/c/<id>.jpg count. Of an id that appears twice,
    the first image does. ExpectedError where it is not one whole tar, or its files are no images.
    """
    members, others, first_other = {}, Counter(), ""
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                if info.size < 0:  # would lead back, in circles
                    raise tarfile.ReadError(f"negative size at byte {info.offset}")
                match = MEMBER_NAME.fullmatch(info.name.removeprefix("./"))
                image_id = int(match[4], 16) if match and info.isreg() else None
                if image_id is not None and image_id not in members:
                    members[image_id] = Member(image_id, info.offset_data, info.size)
                elif not info.isdir():
                    others[_kind_of(info, match)] += 1
                    first_other = first_other or info.name
            _check_end(tar)
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
        raise ExpectedError(
            f"{path}: {error}; expected a whole uncompressed tar", setting="skip_bad_shards"
        ) from error
    num_images, num_files = len(members), len(members) + others.total()
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in others.items())
    what = f"{kinds}; the first is {first_other!r:.80}"
    if others and not members:
        problem = f"{path}: none of its {num_files:,} files is an image ({what})"
        raise ExpectedError(f"{problem}; expected names a/b/c/<id>.jpg", "skip_bad_shards")
    if others:
        say(f"{path}: {num_images:,} images; of its {num_files:,} files left alone: {what}")
    return list(members.values())


def _kind_of(info, match):
    """Names what a member of a tar is that is not read as an image."""
    if not info.isreg():
        return "a hard link" if info.islnk() else "a link or device"
    if match:
        return "of an id that is there already"
    is_below = MEMBER_NAME.fullmatch("/".join(info.name.split("/")[-4:]))
    return "below another folder" if is_below else "of another name"


def _check_end(tar):
    """Raises ReadError unless the tar ends as tars do, and the file with it."""
    # tarfile takes damage for the end, and knows nothing of a second tar behind the first.
    tar.fileobj.seek(tar.offset)
    end = tar.fileobj.read(tarfile.BLOCKSIZE)
    if end.strip(b"\0") or not end:
        raise tarfile.ReadError(f"damaged or cut off at byte {tar.offset}")
    num_zeros = len(end)
    while more := tar.fileobj.read(CHUNK_BYTES):
        num_zeros += len(more)
        if more.strip(b"\0"):
            raise tarfile.ReadError(
                f"more after its end at byte {tar.offset}, perhaps a second tar"
            )
    if num_zeros > MAX_END_BYTES:  # a download that got its length, but not its bytes
        raise tarfile.ReadError(f"nothing but zeros from byte {tar.offset} on")


def read_member(descriptor, member):
    """Reads the bytes of a `Member` of an open tar; raises BadImageError for a huge one."""
    if member.size > MAX_MEMBER_BYTES:
        raise BadImageError(f"{member.size} bytes")
    return read_at(descriptor, member.size, member.offset)


def member_name(image_id):
    """Gives the name of an image (an int) in its tar, a/b/c/<id>.jpg."""
    text = f"{image_id:016x}"
    return f"{text[0]}/{text[1]}/{text[2]}/{text}.jpg"


def open_new(path):
    """Opens a tar to write into, for `add_image`."""
    return tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)


def add_image(tar, image_id, data):
    """Adds an image (its id an int, its bytes) to a tar; the same images give the same tar."""
    info = tarfile.TarInfo(member_name(image_id))  # its time is 0, its owner 0, its mode 0644
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def list_unpacked(folder):
    """Lists the images of an unpacked tar as `Member`s, where the tar would have them.

    Links and anything but a/b/c/<id>.jpg are left alone.
    """
    found, offset = [], 0
    try:
        for name, path in sorted(_walk(folder)):
            facts, match = os.lstat(path), MEMBER_NAME.fullmatch(name)
            if match and stat.S_ISREG(facts.st_mode):
                offset += tarfile.BLOCKSIZE  # its header
                found.append(Member(int(match[4], 16), offset, facts.st_size))
                offset += -(-facts.st_size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    except OSError as error:
        raise ExpectedError(
            f"{folder}: cannot be read ({error.strerror}); expected an unpacked tar", "source"
        ) from error
    if not found:
        expected = "expected an unpacked tar, with files a/b/c/<id>.jpg"
        raise ExpectedError(f"{folder}: no image in it; {expected}", "skip_bad_shards")
    return found


def _walk(folder, depth=3):
    """Yields (name, path) of what is three folders deep; follows no links."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not depth:
                yield entry.name, entry.path
            elif len(entry.name) == 1 and entry.is_dir(follow_symlinks=False):
                for name, path in _walk(entry.path, depth - 1):
                    yield f"{entry.name}/{name}", path


def pack_again(folder, path):
    """Writes an unpacked tar as a tar, atomically."""
    members = list_unpacked(folder)
    with atomic_write(path) as temporary, open_new(temporary) as tar:
        for member in members:
            add_image(tar, member.image_id, _read_file(folder, member))


def read_unpacked(folder, offset, size_bytes):
    """Reads the image that the tar would have at `offset`; b"" where it has none there."""
    found = [_read_file(folder, one) for one in list_unpacked(folder) if one.offset == offset]
    return found[0][:size_bytes] if found else b""


def _read_file(folder, member):
    return Path(folder, member_name(member.image_id)).read_bytes()
