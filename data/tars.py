"""Tars as this project writes them, and folders into which somebody unpacked one.

Kaggle unpacks the tars of an uploaded data set. Such a folder is read as the tar that it would be
with its members in the order of their names.
"""

import io
import os
import re
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path

from utils import ExpectedError, atomic_write

MEMBER_NAME = re.compile(r"([0-9a-f])/([0-9a-f])/([0-9a-f])/(\1\2\3[0-9a-f]{13})\.jpg")


def member_name(image_id):
    """Gives the name of an image (an int) in its tar, a/b/c/<id>.jpg."""
    text = f"{image_id:016x}"
    return f"{text[0]}/{text[1]}/{text[2]}/{text}.jpg"


def open_new(path):
    """Opens a tar to write into, for `add_image`."""
    return tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)


def add_image(tar, image_id, data):
    """Adds an image (its id an int, its bytes) to a tar; the same images give the same tar."""
    _add(tar, member_name(image_id), len(data), io.BytesIO(data))


def _add(tar, name, size, content):
    info = tarfile.TarInfo(name)  # its time is 0, its owner 0, its mode 0644
    info.size = size
    tar.addfile(info, content)


# --------------------------------------------------------------------------- unpacked into a folder


@dataclass(frozen=True)
class UnpackedFile:
    """A file of an unpacked tar: its name in the tar, its path, and where the tar would have it."""

    name: str
    path: Path
    offset: int
    size: int


def list_unpacked(folder):
    """Lists the images of an unpacked tar by name; links and anything else are left alone.

    Args:
        folder: holds a/b/c/<id>.jpg.

    Returns:
        list of `UnpackedFile`.

    Raises:
        ExpectedError: the folder cannot be read, or holds no image.
    """
    found, offset = [], 0
    try:
        for name, path in sorted(_walk(folder)):
            facts = os.lstat(path)
            if MEMBER_NAME.fullmatch(name) and stat.S_ISREG(facts.st_mode):
                offset += tarfile.BLOCKSIZE  # its header
                found.append(UnpackedFile(name, Path(path), offset, facts.st_size))
                offset += -(-facts.st_size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    except OSError as error:
        raise ExpectedError(
            f"{folder}: cannot be read ({error.strerror}); expected an unpacked tar", "source"
        ) from error
    if not found:
        raise ExpectedError(
            f"{folder}: no image in it; expected an unpacked tar, with files a/b/c/<id>.jpg",
            "skip_bad_shards",
        )
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
    files = list_unpacked(folder)
    with atomic_write(path) as temporary, open_new(temporary) as tar:
        for file in files:
            with open(file.path, "rb") as content:
                _add(tar, file.name, file.size, content)


def unpacked_size(folder):
    """Gives the bytes of the tar that an unpacked one would be, but for its end."""
    last = list_unpacked(folder)[-1]
    return last.offset + last.size


def read_unpacked(folder, offset, size_bytes):
    """Reads the image that the tar would have at `offset`; b"" where it has none there."""
    for file in list_unpacked(folder):
        if file.offset == offset:
            return file.path.read_bytes()[:size_bytes]
    return b""
