"""A slice of a data set: the images that a person asks for, and tables cut to these."""

import filecmp
import re

import numpy as np

from data import sources
from data.landmarks import (
    format_image_ids,
    parse_image_ids,
    read_image_ids,
    read_landmark_names,
    read_train_labels,
)
from data.tables import read_header, read_table, write_table
from utils import ExpectedError, copy_file, require_file, say

SPLIT_OF = dict.fromkeys((sources.TRAIN_CSV, sources.TRAIN_CLEAN_CSV), "train")
SPLIT_OF |= {sources.INDEX_CSV: "index", sources.TEST_CSV: "test"}
SPLIT_OF |= dict.fromkeys((sources.RECOGNITION_SOLUTION, sources.RETRIEVAL_SOLUTION), "test")
NO_IDS = np.empty(0, np.uint64)


def choose_images(source, splits, labels, images=None, landmarks=None):
    """Chooses the images of a slice; gives a dict, split -> (n,) uint64, ascending, one or more.

    Args:
        labels: "full" or "clean", the train images that there are.
        images: a CSV with a column `id`, or None.
        landmarks: a file that names landmarks, whose train images are wanted, too, or None.
    """
    ids = read_image_ids(images) if images else NO_IDS
    train, there = NO_IDS, {}
    if "train" in splits:
        table = sources.TRAIN_CLEAN_CSV if labels == "clean" else sources.TRAIN_CSV
        classes, known = read_train_labels(source.fetch(table), min_images=1)
        there["train"] = known.image_ids
        if landmarks:
            chosen = np.isin(classes.landmark_ids, _read_landmarks(source, landmarks))
            train = known.image_ids[chosen[known.class_indices]]
    for split, name in (("index", sources.INDEX_CSV), ("test", sources.TEST_CSV)):
        if images and split in splits:
            there[split] = read_image_ids(source.fetch(name))
    kept = {split: np.intersect1d(ids, known) for split, known in there.items()}
    if num_missing := len(ids) - sum(map(len, kept.values())):
        say(f"{images}: {num_missing:,} of its {len(ids):,} images are not in the tables; left out")
    kept["train"] = np.union1d(kept.get("train", NO_IDS), train)
    if not any(map(len, kept.values())):
        raise ExpectedError(
            f"{' and '.join(str(one) for one in (images, landmarks) if one)}: no {labels} image of "
            f"{', '.join(splits)}; expected images of {source}; check the file and --split"
        )
    return {split: ids for split, ids in kept.items() if len(ids)}


def _read_landmarks(source, path):
    """Reads the landmark ids that a file names: a line each, an id or a name, * for any letters."""
    names, chosen = read_landmark_names(source.fetch(sources.CATEGORY_CSV)), set()
    require_file(path, "a text file, a landmark a line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise ExpectedError(
            f"{path}: {error}; expected a text file, a landmark a line; check --landmarks"
        ) from error
    for number, line in enumerate(map(str.strip, lines), start=1):
        pattern = re.compile(re.escape(line).replace(r"\*", ".*"), re.IGNORECASE)
        found = {one for one, name in names.items() if line and pattern.fullmatch(name)}
        found |= {one for one in names if str(one) == line}
        if line and not found:
            raise ExpectedError(
                f"{path}: line {number}, {line[:80]!r}, is no landmark of {sources.CATEGORY_CSV}; "
                "expected an id, a name, or a name with * for what may differ; check the file"
            )
        chosen |= found
    return sorted(chosen)


def copy_tables(session, splits, is_clean, kept=None):
    """Copies metadata and ground truth that the source has, where they are not there as they are.

    train.csv is not for a clean data set, which lacks most of its images. Those of a slice are cut
    to its images, `kept` of `choose_images`; one without a row is left out.
    """
    train = (sources.TRAIN_CSV, sources.TRAIN_CLEAN_CSV)
    left_out = train[:is_clean] if "train" in splits else train
    names = [one for one in sources.TABLES if one not in left_out and session.source.exists(one)]
    landmark_ids = set()
    for name in sorted(names, key=(*SPLIT_OF, sources.CATEGORY_CSV).index):  # the names come last
        new, path = session.source.fetch(name), session.path(name)
        if kept is None:
            if not (path.exists() and filecmp.cmp(new, path, shallow=False)):
                copy_file(new, path)
            continue
        table = _cut_table(name, new, kept, landmark_ids)
        if SPLIT_OF.get(name) == "train":
            landmark_ids |= set(table["landmark_id"])
        if len(table):
            write_table(path, table)


def _cut_table(name, path, kept, landmark_ids):
    """Cuts a table to the images of a slice: DataFrame of text, perhaps without a row."""
    table = read_table(path, **dict.fromkeys(read_header(path, ("id",)), str))
    if name == sources.CATEGORY_CSV:
        return table[table["landmark_id"].isin(landmark_ids)]
    if name == sources.TRAIN_CLEAN_CSV:
        table["images"] = _cut_cells(table["images"], kept.get("train", NO_IDS))
        return table[table["images"] != ""]
    ids = parse_image_ids(table["id"], path)
    table = table[np.isin(ids, kept.get(SPLIT_OF[name], NO_IDS))].copy()
    if name == sources.RETRIEVAL_SOLUTION:
        table["images"] = _cut_cells(table["images"], kept.get("index", NO_IDS))
        is_empty = table["images"] == ""  # as the ground truth has queries without an answer
        table.loc[is_empty, "images"] = "None"
        table.loc[is_empty, "Usage"] = "Ignored"
    return table


def _cut_cells(cells, ids):
    """Keeps of each cell, which is a list of image ids, those that are in (n,) uint64."""
    known = set(format_image_ids(ids).astype(str).tolist())
    return [" ".join(one for one in cell.split() if one in known) for cell in cells]
