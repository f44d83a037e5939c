"""The metadata of Google Landmarks Dataset v2: image ids, names, the class table, its labels."""

import contextlib
import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data.sources import CATEGORY_CSV, TRAIN_CLEAN_CSV, TRAIN_CSV
from data.tables import read_header, read_table, write_table
from utils import ExpectedError

LANDMARK_LEFT_OUT_IN_2019 = 138982  # its author does not say why
MIN_IMAGES = 20  # the 2019 recipe's threshold; it leaves ~55k of 203,094 landmarks


def parse_image_ids(column, path):
    """Turns image ids of 16 lower-case hex characters into (n,) uint64, which sort the same way.

    The column is a Series of text as `read_table` gives it, or a list of str.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    ids = pa.array(column, pa.string())
    ids = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    if len(ids) == 0:
        return np.empty(0, np.uint64)
    if pc.all(pc.equal(pc.binary_length(ids), 16), skip_nulls=False).as_py():
        # All bytes at once: many times as fast as a Python int for each of 4 million ids.
        begin = np.frombuffer(ids.buffers()[1], np.int32)[ids.offset]
        text = bytes(ids.buffers()[2][begin : begin + 16 * len(ids)])
        with contextlib.suppress(ValueError):
            numbers = bytes.fromhex(text.decode("ascii"))
            if numbers.hex().encode() == text:  # neither upper case nor spaces
                return np.frombuffer(numbers, ">u8").astype(np.uint64)
    is_right = pc.match_substring_regex(pc.fill_null(ids, ""), "^[0-9a-f]{16}$")
    wrong = pc.filter(ids, pc.invert(is_right))[0].as_py()
    raise ExpectedError(
        f"{path}: image id {wrong!r}; expected 16 lower-case hex characters; check the file"
    )


def check_unique(image_ids, path):
    """Raises ExpectedError if one of (n,) uint64 image ids appears twice; `path` is named in it."""
    ordered = np.sort(image_ids)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated):
        problem = f"image id {format_image_id(repeated[0])!r} appears twice"
        raise ExpectedError(f"{path}: {problem}; expected each image once; check the file")


def format_image_id(image_id):
    """Writes a number as the image id's 16 hex characters."""
    return f"{int(image_id):016x}"


def format_image_ids(image_ids):
    """Writes many image ids at once: (n,) uint64 -> (n,) bytes of 16 hex characters."""
    return np.frombuffer(image_ids.astype(">u8").tobytes().hex().encode(), "S16")


def read_image_ids(path):
    """Reads the column `id` of index.csv or test.csv, in the file's order, as (n,) uint64."""
    image_ids = parse_image_ids(read_table(path, id=str)["id"], path)
    check_unique(image_ids, path)
    return image_ids


def read_landmark_names(path):
    """Reads train_label_to_category.csv: landmark id -> name, e.g. `Berlin Cathedral`."""
    return {key: name_of_category(address) for key, address in read_categories(path).items()}


def read_categories(path):
    """Reads train_label_to_category.csv: landmark id -> address of its category on Commons."""
    table = read_table(path, landmark_id=int, category=str)
    repeated = table["landmark_id"][table["landmark_id"].duplicated()]
    if len(repeated):
        problem = f"landmark {repeated.iloc[0]} appears twice"
        raise ExpectedError(f"{path}: {problem}; expected each landmark once; check the file")
    return dict(zip(table["landmark_id"].tolist(), table["category"].tolist(), strict=True))


def categories_of(source):
    """Reads the categories that a source has, as `read_categories`; there may be none."""
    return read_categories(source.fetch(CATEGORY_CSV)) if source.exists(CATEGORY_CSV) else {}


def write_categories(path, categories, class_table):
    """Writes the categories of a network's landmarks, a dict, as `read_categories` reads them."""
    import pandas as pd

    known = [one for one in class_table.landmark_ids.tolist() if one in categories]
    addresses = [categories[one] for one in known]
    write_table(path, pd.DataFrame({"landmark_id": known, "category": addresses}))


def name_of_category(address):
    """Gives the name in the address of a category, e.g. `Berlin Cathedral`."""
    return address.rpartition("Category:")[2].replace("_", " ")


def name_landmark(landmark_id, categories):
    """Gives the name in the address of a landmark's category; of a dict of them, maybe empty."""
    return name_of_category(categories.get(landmark_id, "")) or f"landmark {landmark_id}"


@dataclass(frozen=True)
class ClassTable:
    """The landmarks that a network knows; a landmark's class index is its place in the table."""

    # (num_classes,) int64, ascending; the model published in 2019 has an order of its own
    landmark_ids: np.ndarray

    def __len__(self):
        return len(self.landmark_ids)

    @property
    def fingerprint(self):
        """12 hex characters that differ for tables of other landmarks or another order."""
        return hashlib.sha256(self.landmark_ids.astype("<i8").tobytes()).hexdigest()[:12]


@dataclass(frozen=True)
class TrainLabels:
    """The class of every train image whose landmark is in the class table."""

    image_ids: np.ndarray  # (n,) uint64, ascending
    class_indices: np.ndarray  # (n,) int32

    def __len__(self):
        return len(self.image_ids)

    @cached_property
    def fingerprint(self):
        """12 hex characters that differ where an image has another class, or images differ."""
        digest = hashlib.sha256(self.image_ids.astype("<u8", copy=False))
        digest.update(self.class_indices.astype("<i4", copy=False))
        return digest.hexdigest()[:12]

    def find(self, image_id):
        """Gives the class index of an image, or None for an image of no class."""
        place = np.searchsorted(self.image_ids, np.uint64(image_id))
        if place == len(self.image_ids) or self.image_ids[place] != image_id:
            return None
        return int(self.class_indices[place])


def read_labels(source, labels, min_images=MIN_IMAGES):
    """Reads one of `recipes.LABELS` from a source: as `read_train_labels`."""
    path = source.fetch(TRAIN_CLEAN_CSV if labels == "clean" else TRAIN_CSV)
    landmarks_of = source.fetch(TRAIN_CLEAN_CSV) if labels == "all-of-clean" else None
    return read_train_labels(path, min_images, landmarks_of)


def read_train_labels(path, min_images=MIN_IMAGES, landmarks_of=None):
    """Reads train.csv or train_clean.csv into the class table and the labels of its images.

    Args:
        path: a CSV with the columns id and landmark_id, or landmark_id and images.
        min_images: a landmark with fewer images is left out; ExpectedError where all are.
        landmarks_of: another such CSV; landmarks that it lacks are left out, too.

    Returns:
        (ClassTable, TrainLabels).
    """
    images = _read_train_csv(path)
    if landmarks_of:
        known = read_table(landmarks_of, landmark_id=int)["landmark_id"]
        images = images[images["landmark_id"].isin(known)]
    counts = images["landmark_id"].value_counts()
    if len(counts) == 0:
        problem = f"{path}: none of its landmarks is in {landmarks_of}"
        raise ExpectedError(f"{problem}; expected tables of one data set", "source")
    if counts.max() < min_images:
        problem = f"{path}: no landmark has {min_images} images (the most is {counts.max()})"
        raise ExpectedError(f"{problem}; expected at least one class", "min_images")
    landmark_ids = counts.index[counts >= min_images].sort_values()
    # A landmark's place in the class table, -1 where it is not in it.
    class_indices = landmark_ids.get_indexer(images["landmark_id"]).astype(np.int32)
    image_ids = images["image_id"].to_numpy()
    chosen = np.flatnonzero(class_indices >= 0)
    chosen = chosen[np.argsort(image_ids[chosen])]  # a fourth of the time of DataFrame.sort_values
    labels = TrainLabels(image_ids[chosen], class_indices[chosen])
    return ClassTable(landmark_ids.to_numpy()), labels


def read_2019_classes(path):
    """Reads the `ClassTable` of the model published in 2019 from train.csv.

    Its classes are the landmarks with at least 20 images by their first row in train.csv, without
    landmark 138982. Source: mayukh18/Google-Landmark-Recognition-Retrieval-2019, recognition.py
    """
    counts = _read_train_csv(path).groupby("landmark_id", sort=False).size()  # by their first row
    kept = counts.index[counts >= MIN_IMAGES]
    return ClassTable(kept[kept != LANDMARK_LEFT_OUT_IN_2019].to_numpy())


def _read_train_csv(path):
    """Reads either layout into a DataFrame: image_id (uint64), landmark_id (int64)."""
    import pandas as pd

    if "images" in read_header(path, ("id", "landmark_id")):
        table = read_table(path, landmark_id=int, images=str)
        table = table.assign(id=table.pop("images").str.split(" ")).explode("id")
    else:
        table = read_table(path, id=str, landmark_id=int)
    image_ids, landmark_ids = parse_image_ids(table["id"], path), table["landmark_id"].to_numpy()
    check_unique(image_ids, path)
    if landmark_ids.min() < 0:  # of which no model is read
        problem = f"landmark id {landmark_ids.min()}"
        raise ExpectedError(f"{path}: {problem}; expected landmark ids from 0 up; check the file")
    return pd.DataFrame({"image_id": image_ids, "landmark_id": landmark_ids})
