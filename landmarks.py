"""The metadata of Google Landmarks Dataset v2: image ids, names, the class table, its labels."""

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from utils import ExpectedError

pa.enable_signal_handlers(False)  # else Ctrl-C while a table is read is an error of Arrow's

LANDMARK_LEFT_OUT_IN_2019 = 138982  # its author does not say why
MIN_IMAGES = 20  # the 2019 recipe's threshold; it leaves ~55k of 203,094 landmarks

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
