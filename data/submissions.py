"""Submission and ground-truth files: read, write, check."""

import math
from collections import namedtuple
from itertools import pairwise

import numpy as np

from data.landmarks import check_unique, format_image_id, format_image_ids, parse_image_ids
from data.tables import read_table, write_table
from utils import ExpectedError, atomic_write

USAGES = ("Public", "Private", "Ignored")  # the two leaderboards, and rows that are not scored
MAX_RETRIEVED = 100  # ids in one row of a retrieval submission

RecognitionTruth = namedtuple("RecognitionTruth", "landmark_ids usage")
RetrievalTruth = namedtuple("RetrievalTruth", "image_ids usage")


def _read_rows(path, *columns):
    """Reads columns of text as a DataFrame, whose `id` are image ids, each once."""
    rows = read_table(path, **dict.fromkeys(columns, str))
    check_unique(parse_image_ids(rows["id"], path), path)
    if "Usage" in columns:
        _parse_cells(rows["Usage"], USAGES.index, ", ".join(USAGES), path)
    return rows


def _parse_cells(cells, parse, expected, path):
    """Parses each cell of a column into a list; one of which `parse` raises ValueError is named."""
    parsed = []
    for line, cell in enumerate(cells.tolist(), start=2):
        try:
            parsed.append(parse(cell))
        except ValueError as error:
            problem = f"{path}: line {line} has {cell[:60]!r} as {cells.name}"
            raise ExpectedError(f"{problem}; expected {expected}; check the file") from error
    return parsed


def _check_image_ids(cells, path):
    """Raises ExpectedError if a cell (Series of text) holds anything but image ids."""
    is_right = cells.str.fullmatch("([0-9a-f]{16}( |$))*")  # of 200 MB in 0.3 s
    for cell in cells[~is_right]:
        parse_image_ids(cell.split(), path)


def read_recognition_submission(path):
    """Reads a submission: dict, image id (str) -> (landmark id, confidence), or None if empty."""
    rows = _read_rows(path, "id", "landmarks")
    expected = "`<landmark id> <confidence>` or an empty cell"
    predictions = _parse_cells(rows["landmarks"], _parse_prediction, expected, path)
    return dict(zip(rows["id"].tolist(), predictions, strict=True))


def _parse_prediction(cell):
    if not cell.strip():
        return None
    landmark_id, confidence = cell.split()
    if not math.isfinite(float(confidence)):
        raise ValueError(cell)
    return int(landmark_id), float(confidence)


def write_recognition_submission(path, test_ids, image_ids, landmark_ids, confidences):
    """Writes a recognition submission: a row for each test image, empty where none was predicted.

    In the order of `test_ids`; the other arrays are of the predicted images, in any order. The
    confidences, float32, are written so that they read back equal.
    """
    import pandas as pd

    named = zip(landmark_ids.tolist(), confidences.tolist(), strict=True)
    words = [f"{landmark_id} {confidence:.9g}" for landmark_id, confidence in named]
    cells = dict(zip(image_ids.tolist(), words, strict=True))
    landmarks = [cells.get(image_id, "") for image_id in test_ids.tolist()]
    ids = format_image_ids(test_ids).astype(str)
    write_table(path, pd.DataFrame({"id": ids, "landmarks": landmarks}))


def check_recognition_submission(path, test_ids, class_table):
    """Checks that a submission has every test id exactly once and only known landmarks.

    Gives the number of test images with a prediction; raises ExpectedError of what is wrong first.
    """
    predictions = read_recognition_submission(path)
    _check_ids(path, set(predictions), test_ids)
    predicted = [prediction[0] for prediction in predictions.values() if prediction]
    unknown = np.setdiff1d(predicted, class_table.landmark_ids)
    if len(unknown):
        expected = "a landmark of the class table; predict again with the model of this source"
        raise ExpectedError(f"{path}: landmark {unknown[0]:.0f}; expected {expected}")
    return len(predicted)


def _check_ids(path, found, test_ids):
    """Raises ExpectedError if the image ids found (a set of str) are not those of the test set."""
    expected = {format_image_id(image_id) for image_id in test_ids}
    for wrong, problem in ((expected - found, "missing"), (found - expected, "extra")):
        if wrong:
            raise ExpectedError(
                f"{path}: {len(wrong)} {problem} ids, first {min(wrong)!r}; expected exactly the "
                f"{len(expected)} ids of test.csv; write the submission again for this source"
            )


def read_recognition_solution(path):
    """Reads the ground truth: dict, image id (str) -> `RecognitionTruth` with a set."""
    rows = _read_rows(path, "id", "landmarks", "Usage")
    landmark_ids = _parse_cells(
        rows["landmarks"], lambda cell: set(map(int, cell.split())), "landmark ids", path
    )
    truths = map(RecognitionTruth, landmark_ids, rows["Usage"].tolist())
    return dict(zip(rows["id"].tolist(), truths, strict=True))


def write_retrieval_submission(path, test_ids, query_ids, row_ends, image_ids):
    """Writes a retrieval submission: a row for each test image, empty where nothing was retrieved.

    Args:
        test_ids: (num_tests,) uint64, in the order to write.
        query_ids: (num_queries,) uint64, the queries that were searched.
        row_ends: (num_queries,) int64, where each query's images end in `image_ids`.
        image_ids: (n,) uint64, index images, query after query, best first.
    """
    words = format_image_ids(image_ids)
    spans = dict(zip(query_ids.tolist(), pairwise([0, *row_ends.tolist()]), strict=True))
    # Without a DataFrame, which takes three times as long for 12 million ids.
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(b"id,images\n")
        for test_id in test_ids.tolist():
            begin, end = spans.get(test_id, (0, 0))
            file.write(b"%016x,%s\n" % (test_id, b" ".join(words[begin:end].tolist())))


def check_retrieval_submission(path, test_ids):
    """Checks that a submission has every test id once and at most 100 different images for each.

    Gives the number of test images with an image; raises ExpectedError of what is wrong first.
    """
    retrieved = read_retrieval_submission(path)
    _check_ids(path, set(retrieved), test_ids)
    for image_id, images in retrieved.items():
        if len(images) > MAX_RETRIEVED or len(set(images)) < len(images):
            raise ExpectedError(
                f"{path}: {image_id} has {len(images)} images, {len(set(images))} different; "
                f"expected at most {MAX_RETRIEVED}, each once; merge the parts again"
            )
    return sum(map(bool, retrieved.values()))


def read_retrieval_submission(path):
    """Reads a retrieval submission: dict, image id (str) -> list of index image ids (str)."""
    rows = _read_rows(path, "id", "images")
    _check_image_ids(rows["images"], path)
    return dict(zip(rows["id"], map(str.split, rows["images"]), strict=True))


def read_retrieval_solution(path):
    """Reads the ground truth: dict, image id (str) -> `RetrievalTruth` with a set.

    The set is empty for an ignored query ("None").
    """
    rows = _read_rows(path, "id", "images", "Usage")
    cells = rows["images"].replace("None", "")
    _check_image_ids(cells, path)
    truths = map(RetrievalTruth, [set(cell.split()) for cell in cells], rows["Usage"].tolist())
    return dict(zip(rows["id"].tolist(), truths, strict=True))
