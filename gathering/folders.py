"""Photos found below folders that bear the names of landmarks, and read: small, upright, described.

my_photos/<landmark>/<any file>            or, divided already,
my_photos/train/<landmark>/<any file>      my_photos/test/<landmark>/<any file>
"""

import hashlib
import io
import os
import re
import stat
import unicodedata
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from data.images import PHOTO_FORMATS, BadImageError, read_photo, register_heic, shrink_image
from data.landmarks import format_image_id
from data.sources import Shard
from utils import ExpectedError, os_errors_as

SPLIT_OF = {  # folders above the landmarks' own
    "train": "train", "val": "train", "valid": "train", "validation": "train",
    "index": "index", "test": "test",
}  # fmt: skip
QUALITY = 90  # of the JPEGs: few photos, so that their bytes matter less than in shrink.py
LOOK_SIDE = 8  # of the look of a picture, see `_look`


@dataclass
class Photo:
    """A file that should be a photo, and what is known of it once it is read and divided."""

    path: Path  # of the file
    landmark: str  # name of what it shows; "" shows no landmark
    split: str | None = None  # "train", "index" or "test" where its folder says so, else None
    image_id: int = 0  # the first 64 bits of the SHA-256 of the file
    look: int = 0  # of 64 bits, alike for pictures that look alike
    camera: str = ""  # maker, model and serial number, "" where the file does not say
    # seconds, None where the file does not say; only differences mean something
    taken: float | None = None
    position: tuple = (0, 0)  # begin and end of its small picture in the spool
    shard: Shard | None = None  # where it goes

    @property
    def id(self):
        """The image id as tables have it."""
        return format_image_id(self.image_id)


def find_photos(folder, non_landmarks=None):
    """Finds all files below the folders of landmarks, or `train` and `test` above these.

    Gives (list of `Photo` by path, list of (path, reason) of what is left out unread).

    Raises:
        ExpectedError: no folder, or no landmarks in it.
    """
    register_heic()
    tops, left_out = [], []
    if non_landmarks is not None and not _list(non_landmarks):
        raise ExpectedError(
            f"{non_landmarks}: nothing in it; expected pictures that show no landmark; check "
            "--non-landmarks"
        )
    for path in _list(folder):
        split = SPLIT_OF.get(path.name.lower())
        if not (path.is_dir() and split and any(below.is_dir() for below in _list(path))):
            split = None
        for below in _list(path) if split else [path]:
            if not below.is_dir():
                left_out.append((below, "not in the folder of a landmark"))
            elif non_landmarks is None or not below.samefile(non_landmarks):
                tops.append((below, landmark_name(below.name), split))
    if non_landmarks is not None:
        tops.append((Path(non_landmarks), "", None))
    photos = []
    for top, landmark, split in tops:
        for path in _walk(top):
            if path.name.startswith("."):
                left_out.append((path, "hidden"))
            elif not stat.S_ISREG(path.lstat().st_mode):
                left_out.append((path, "not a file"))
            else:
                photos.append(Photo(path, landmark, split))
    if not any(photo.landmark for photo in photos):
        raise ExpectedError(
            f"{folder}: no folder with photos in it; expected one for each landmark; move "
            f"them to, say, {Path(folder) / 'Eiffel Tower' / 'IMG_1.jpg'}"
        )
    return photos, left_out


def _list(folder):
    """Lists a folder by name, without what is hidden."""
    with os_errors_as(f"{folder}: cannot be read", "a folder of photos; check its name"):
        return sorted(path for path in Path(folder).iterdir() if not path.name.startswith("."))


def _walk(folder):
    """Yields all files below a folder, by name; links to folders are not followed."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(names))


def landmark_name(folder_name):
    """Makes a landmark's name of a folder's: `03.Dresden_Zwinger` -> `Dresden Zwinger`."""
    name = unicodedata.normalize("NFC", folder_name).replace("_", " ")
    return " ".join(re.sub(r"^\d+[\s.\-]+(?=\S)", "", name).split())


def read(photo, pixels):
    """Reads a photo and notes what it is; gives its small picture as a JPEG, or BadImageError."""
    try:
        data = read_photo(photo.path)
        jpeg = shrink_image(data, pixels, QUALITY, PHOTO_FORMATS)
        photo.camera, photo.taken = _camera_and_time(data)
    except BadImageError:
        raise
    except Exception as error:  # a plugin of Pillow can fail anywhere; the others go on
        raise BadImageError(f"{type(error).__name__}: {error}") from error
    photo.image_id = int.from_bytes(hashlib.sha256(data).digest()[:8], "big")
    photo.look = _look(jpeg)
    return jpeg


def _look(jpeg):
    """Says in 64 bits where a picture gets brighter to the right (Krawetz' difference hash)."""
    with Image.open(io.BytesIO(jpeg)) as image:
        image.draft("L", (64, 64))
        grey = image.convert("L").resize((LOOK_SIDE + 1, LOOK_SIDE), Image.Resampling.BOX)
    pixels = np.asarray(grey, np.int16)
    return int.from_bytes(np.packbits(pixels[:, 1:] > pixels[:, :-1]).tobytes(), "big")


def _camera_and_time(data):
    """Reads from EXIF which camera took a picture, and when."""
    with Image.open(io.BytesIO(data)) as image:  # its format was checked
        try:
            exif = image.getexif()
            details = exif.get_ifd(ExifTags.IFD.Exif)
            camera = exif.get(ExifTags.Base.Make), exif.get(ExifTags.Base.Model)
            camera += (details.get(ExifTags.Base.BodySerialNumber),)
            when = details.get(ExifTags.Base.DateTimeOriginal) or exif.get(ExifTags.Base.DateTime)
            taken = datetime.strptime(str(when)[:19], "%Y:%m:%d %H:%M:%S")
        except Exception:  # damaged in any way: it is then a picture of an unknown time
            return "", None
    return " ".join(str(word).strip("\0 ") for word in camera if word), taken.timestamp()
