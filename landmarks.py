"""Facts and files of Google Landmarks Dataset v2: shards, metadata, the class table.

Source of the layout: https://github.com/cvdfoundation/google-landmark
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from download import SHARD_PATIENCE, download, download_range, online_size
from utils import ExpectedError, MissingFileError, file_md5, require_free_space, say

pa.enable_signal_handlers(False)  # else Ctrl-C while a table is read is an error of Arrow's

CVDF_URL = "https://s3.amazonaws.com/google-landmark/"
NUM_CVDF_SHARDS = {"train": 500, "index": 100, "test": 20}

TRAIN_CSV = "metadata/train.csv"
TRAIN_CLEAN_CSV = "metadata/train_clean.csv"
INDEX_CSV = "metadata/index.csv"
TEST_CSV = "metadata/test.csv"
CATEGORY_CSV = "metadata/train_label_to_category.csv"
RECOGNITION_SOLUTION = "ground_truth/recognition_solution_v2.1.csv"
RETRIEVAL_SOLUTION = "ground_truth/retrieval_solution_v2.1.csv"

LANDMARK_LEFT_OUT_IN_2019 = 138982  # its author does not say why
MIN_IMAGES = 20  # the 2019 recipe's threshold; it leaves ~55k of 203,094 landmarks

# ------------------------------------------------------------------------------ shards and sources


@dataclass(frozen=True, order=True)
class Shard:
    """One tar of a split.

    Attributes:
        split: "train", "index" or "test".
        number: from 0.
    """

    split: str
    number: int

    @property
    def path(self):
        """The tar's place in the layout, e.g. `train/images_037.tar`."""
        return f"{self.split}/images_{self.number:03d}.tar"

    @property
    def md5_path(self):
        """The md5 file's place in the layout, e.g. `md5sum/train/md5.images_037.txt`."""
        return f"md5sum/{self.split}/md5.images_{self.number:03d}.txt"


class Source:
    """A data set in the CVDF layout: a folder, or a web address that serves one.

    Args:
        location: path of the folder, or http(s) address.
        scratch: folder for what must be downloaded.

    Raises:
        ExpectedError: `location` is neither an address nor a folder.
    """

    def __init__(self, location, scratch):
        self.scratch = Path(scratch)
        self.is_online = urlsplit(str(location)).scheme in ("http", "https")
        self.location = str(location).rstrip("/") + "/" if self.is_online else Path(location)
        if not self.is_online and not self.location.is_dir():
            raise ExpectedError(
                f"{location}: no such folder; expected a folder or http(s) address in the CVDF "
                "layout; check --source"
            )
        self._fetched = {}
        self._splits_without_md5 = set()

    def __str__(self):
        return str(self.location)

    def exists(self, path):
        """Tells whether the source has the file `path` (relative, as in the layout)."""
        if not self.is_online:
            return (self.location / path).is_file()
        try:
            online_size(self.location + path)
        except MissingFileError:
            return False
        return True

    def fetch(self, path):
        """Gives a local copy of a small file of the layout; fetched once by each Source.

        Args:
            path: relative, as in the layout, e.g. `metadata/test.csv`.

        Returns:
            The local `pathlib.Path`.

        Raises:
            MissingFileError: the source does not have it.
        """
        if path not in self._fetched:
            if self.is_online:
                local = self.scratch / path
                download(self.location + path, local)
            else:
                local = self.location / path
                if not local.is_file():
                    raise MissingFileError(
                        f"{local}: no such file; expected the CVDF layout below {self.location}; "
                        "check --source"
                    )
            self._fetched[path] = local
        return self._fetched[path]

    def fetch_shard(self, shard):
        """Gives a verified local copy of a shard; `discard_shard` removes it again.

        Raises:
            ExpectedError: the shard is not there or differs from its md5.
        """
        md5 = self._expected_md5(shard)
        if self.is_online:
            local = self.scratch / shard.path
            download(self.location + shard.path, local, md5, SHARD_PATIENCE)
            return local
        local = self.fetch(shard.path)
        if md5 is not None and file_md5(local) != md5:
            raise ExpectedError(
                f"{local}: md5 differs (expected {md5}); expected the file that {shard.md5_path} "
                "names; copy it again, or leave it out with the shard options"
            )
        return local

    def require_space(self, shard):
        """Raises ExpectedError unless scratch has room for two shards, the most that are there."""
        if self.is_online:
            size_bytes = 2.1 * online_size(self.location + shard.path)  # shards differ a little
            require_free_space(self.scratch, size_bytes, "two shards")

    def discard_shard(self, shard):
        """Removes the local copy of a shard that was downloaded; a folder's own file stays."""
        self._fetched.pop(shard.path, None)
        if self.is_online:
            (self.scratch / shard.path).unlink(missing_ok=True)

    def read_range(self, shard, offset, size_bytes):
        """Reads some bytes of a shard without fetching the rest of it."""
        if self.is_online:
            return download_range(self.location + shard.path, offset, size_bytes)
        local = self.fetch(shard.path)
        with open(local, "rb") as file:
            file.seek(offset)
            data = file.read(size_bytes)
        if len(data) != size_bytes:
            raise ExpectedError(
                f"{local}: {len(data)} of {size_bytes} bytes from {offset} on; expected the whole "
                "shard; copy it again"
            )
        return data

    def _expected_md5(self, shard):
        try:
            path = self.fetch(shard.md5_path)
        except MissingFileError:
            if shard.split not in self._splits_without_md5:
                say(
                    f"{self}: no md5 file for {shard.path}; such shards are checked by length alone"
                )
            self._splits_without_md5.add(shard.split)
            return None
        if not (match := re.match(r"[0-9a-f]{32}\b", path.read_text(errors="replace"))):
            raise ExpectedError(
                f"{path}: no md5 in it; expected 32 hex characters and a file name; check --source"
            )
        return match.group()

    def count_shards(self, split):
        """Counts the shards of a split: images_000.tar, images_001.tar, ... to the last one."""
        if str(self.location) == CVDF_URL:
            return NUM_CVDF_SHARDS[split]
        if not self.is_online:
            names = (path.name for path in (self.location / split).glob("images_*.tar"))
            numbers = (re.fullmatch(r"images_(\d{3})\.tar", name) for name in names)
            return max((int(number[1]) + 1 for number in numbers if number), default=0)

        def has(number):
            return self.exists(Shard(split, number).path)

        upper = 1
        while has(upper - 1):
            upper *= 2
        lower = upper // 2  # the shards below `lower` are there, `upper - 1` is not
        while lower < upper - 1:
            middle = (lower + upper) // 2
            lower, upper = (middle, upper) if has(middle - 1) else (lower, middle)
        return lower

    def select_shards(self, split, first=0, stop=None, option=None):
        """Lists the shards `first` to `stop - 1` of a split; `option` is what a person changes.

        Raises:
            ExpectedError: the source has no such shards.
        """
        option = option or f"--{split}-shards"
        num_shards = self.count_shards(split)
        stop = num_shards if stop is None else stop
        if not 0 <= first < stop <= num_shards:
            raise ExpectedError(
                f"{self}: {split} shards {first}:{stop} asked for; expected a range within "
                f"0:{num_shards}, which is what the source has; change {option}"
                if num_shards
                else f"{self}: no {split}/images_000.tar; expected shards in the CVDF layout; "
                "check --source"
            )
        return [Shard(split, number) for number in range(first, stop)]


# -------------------------------------------------------------------------------------- image ids


_HEX_VALUES = np.full(256, 255, np.uint8)
_HEX_VALUES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


def parse_image_ids(column, path):
    """Turns image ids of 16 hex characters into numbers, which sort the same way.

    Args:
        column: pyarrow string array (chunked or not), or a list of str.
        path: file named in the error.

    Returns:
        (n,) uint64.

    Raises:
        ExpectedError: an id is not 16 hex characters.
    """
    column = pa.array(column, pa.string()) if isinstance(column, list) else column
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    ids = np.concatenate([np.empty(0, np.uint64), *(_parse_chunk(chunk) for chunk in chunks)])
    if len(ids) != len(column):
        right = pc.match_substring_regex(pc.fill_null(column, ""), "^[0-9a-f]{16}$")
        wrong = pc.filter(column, pc.invert(right))[0].as_py()
        raise ExpectedError(
            f"{path}: image id {wrong!r}; expected 16 hex characters; check the file"
        )
    return ids


def _parse_chunk(chunk):
    """Parses one pyarrow array, or returns fewer numbers than rows if an id is malformed."""
    none = np.empty(0, np.uint64)
    if (
        len(chunk) == 0
        or chunk.null_count
        or not pc.all(pc.equal(pc.binary_length(chunk), 16)).as_py()
    ):
        return none
    first_byte = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset]
    characters = np.frombuffer(chunk.buffers()[2], np.uint8, len(chunk) * 16, first_byte)
    nibbles = _HEX_VALUES[characters]
    if nibbles.max() > 15:
        return none
    pairs = nibbles[0::2] << 4 | nibbles[1::2]
    return pairs.view(">u8").astype(np.uint64)


def format_image_id(image_id):
    """Writes a number as the image id's 16 hex characters."""
    return f"{int(image_id):016x}"


def format_image_ids(image_ids):
    """Writes many image ids at once: (n,) uint64 -> (n,) bytes of 16 hex characters."""
    nibbles = np.repeat(image_ids.astype(">u8").view(np.uint8), 2)
    nibbles[0::2] >>= 4
    nibbles[1::2] &= 15
    return np.frombuffer(b"0123456789abcdef", np.uint8)[nibbles].view("S16")


# -------------------------------------------------------------------------------- metadata to read


def _read_columns(path, **types):
    """Reads the named columns of a CSV as a pyarrow table."""
    try:
        return pa.csv.read_csv(
            path,
            convert_options=pa.csv.ConvertOptions(
                include_columns=list(types), column_types=types, null_values=[]
            ),
            parse_options=pa.csv.ParseOptions(newlines_in_values=False),
        )
    except (pa.ArrowInvalid, KeyError) as error:
        reason = str(error.args[0]).splitlines()[0]
        raise ExpectedError(
            f"{path}: {reason}; expected a CSV with the columns {', '.join(types)}; check the file"
        ) from error


def read_image_ids(path):
    """Reads the column `id` of index.csv or test.csv, in the file's order, as (n,) uint64."""
    image_ids = parse_image_ids(_read_columns(path, id=pa.string())["id"], path)
    if len(np.unique(image_ids)) != len(image_ids):
        raise ExpectedError(f"{path}: an id stands twice; expected each once; check the file")
    return image_ids


def read_landmark_names(path):
    """Reads train_label_to_category.csv: landmark id -> name, e.g. `Berlin Cathedral`."""
    table = _read_columns(path, landmark_id=pa.int64(), category=pa.string()).to_pydict()
    names = (url.rpartition("Category:")[2].replace("_", " ") for url in table["category"])
    return dict(zip(table["landmark_id"], names, strict=True))


@dataclass(frozen=True)
class ClassTable:
    """The landmarks that a network knows; a landmark's class index is its place in the table.

    Attributes:
        landmark_ids: (num_classes,) int64, ascending, so that the order depends on nothing else
            (the model published in 2019 has its own order).
    """

    landmark_ids: np.ndarray

    def __len__(self):
        return len(self.landmark_ids)

    @property
    def fingerprint(self):
        """12 hex characters that differ for tables of other landmarks or another order."""
        return hashlib.sha256(self.landmark_ids.astype("<i8").tobytes()).hexdigest()[:12]


@dataclass(frozen=True)
class TrainLabels:
    """The class of every train image whose landmark is in the class table.

    Attributes:
        image_ids: (n,) uint64, ascending.
        class_indices: (n,) int32.
    """

    image_ids: np.ndarray
    class_indices: np.ndarray

    def __len__(self):
        return len(self.image_ids)

    def find(self, image_id):
        """Gives the class index of an image, or None for an image of no class."""
        place = np.searchsorted(self.image_ids, np.uint64(image_id))
        if place == len(self.image_ids) or self.image_ids[place] != image_id:
            return None
        return int(self.class_indices[place])


def read_train_labels(path, min_images=MIN_IMAGES):
    """Reads train.csv or train_clean.csv into the class table and the labels of its images.

    Args:
        path: a CSV with the columns id and landmark_id, or landmark_id and images.
        min_images: a landmark with fewer images is left out.

    Returns:
        (ClassTable, TrainLabels).

    Raises:
        ExpectedError: a column is missing, an id is malformed or stands twice, or no landmark has
            enough images.
    """
    image_ids, landmark_of_image = _read_train_csv(path)
    # Numbers the landmarks by hashing, not by sorting 4 million rows.
    encoded = pa.array(landmark_of_image).dictionary_encode()
    landmark_ids, ranks = encoded.dictionary.to_numpy(), encoded.indices.to_numpy()
    counts = np.bincount(ranks, minlength=len(landmark_ids))
    kept = counts >= min_images
    if not kept.any():
        raise ExpectedError(
            f"{path}: no landmark has {min_images} images (the most is {counts.max(initial=0)}); "
            "expected at least one class; lower --min-images"
        )
    order = np.argsort(image_ids, kind="stable")
    image_ids = image_ids[order]
    repeated = np.flatnonzero(image_ids[1:] == image_ids[:-1])
    if len(repeated):
        raise ExpectedError(
            f"{path}: image {format_image_id(image_ids[repeated[0]])} stands twice; "
            "expected each image once; check the file"
        )
    classes = np.sort(landmark_ids[kept])
    class_of_rank = np.where(kept, np.searchsorted(classes, landmark_ids), -1).astype(np.int32)
    class_indices = class_of_rank[ranks[order]]
    chosen = class_indices >= 0
    return ClassTable(classes), TrainLabels(image_ids[chosen], class_indices[chosen])


def read_2019_classes(path):
    """Reads the `ClassTable` of the model published in 2019 from train.csv.

    Its classes are the landmarks with at least 20 images by their first row in train.csv, without
    landmark 138982. Source: mayukh18/Google-Landmark-Recognition-Retrieval-2019, recognition.py
    """
    _, landmark_of_image = _read_train_csv(path)
    landmark_ids, first_rows, counts = np.unique(
        landmark_of_image, return_index=True, return_counts=True
    )
    kept = (counts >= MIN_IMAGES) & (landmark_ids != LANDMARK_LEFT_OUT_IN_2019)
    by_first_row = np.argsort(first_rows[kept])
    return ClassTable(landmark_ids[kept][by_first_row])


def _read_train_csv(path):
    """Reads either layout into (image_ids (n,) uint64, landmark_ids (n,) int64)."""
    with open(path, encoding="utf-8", errors="replace") as file:
        columns = file.readline().strip().split(",")
    if "images" not in columns:
        table = _read_columns(path, id=pa.string(), landmark_id=pa.int64())
        return parse_image_ids(table["id"], path), table["landmark_id"].to_numpy()
    table = _read_columns(path, landmark_id=pa.int64(), images=pa.string())
    images = pc.split_pattern(table["images"], " ")
    landmark_ids = np.repeat(table["landmark_id"].to_numpy(), pc.list_value_length(images))
    return parse_image_ids(pc.list_flatten(images), path), landmark_ids
