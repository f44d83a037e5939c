"""The files that Kaggle judges and judges by: submissions and the released ground truth."""

import csv
import math
from collections import namedtuple

import numpy as np

from landmarks import format_image_id, format_image_ids
from utils import ExpectedError, atomic_write

USAGES = ("Public", "Private", "Ignored")  # the two leaderboards, and rows that are not scored
MAX_RETRIEVED = 100  # ids in one row of a retrieval submission

csv.field_size_limit(1 << 27)  # a query of the retrieval ground truth can have thousands of images


RecognitionTruth = namedtuple("RecognitionTruth", "landmark_ids usage")
RetrievalTruth = namedtuple("RetrievalTruth", "image_ids usage")


def _read_rows(path, *columns):
    """Yields the named cells of each row of a CSV, with its line number first."""
    try:
        file = open(path, newline="", encoding="utf-8")  # noqa: SIM115 - closed by `with` below
    except OSError as error:
        raise ExpectedError(
            f"{path}: {error.strerror}; expected a CSV with the columns {', '.join(columns)}; "
            "check the path"
        ) from error
    with file:
        reader = csv.reader(file)
        try:
            header = next(reader, [])
            missing = [column for column in columns if column not in header]
            if missing:
                raise ExpectedError(
                    f"{path}: no column {missing[0]!r} in {','.join(header)[:80]!r}; expected the "
                    f"columns {', '.join(columns)}; check the file"
                )
            places = [header.index(column) for column in columns]
            seen = set()
            for row in reader:
                if len(row) != len(header):
                    raise ExpectedError(
                        f"{path}: line {reader.line_num} has {len(row)} cells; expected "
                        f"{len(header)}; check the file"
                    )
                if row[places[0]] in seen:
                    raise ExpectedError(
                        f"{path}: line {reader.line_num} repeats the id {row[places[0]]!r}; "
                        "expected each id once; check the file"
                    )
                seen.add(row[places[0]])
                if columns[-1] == "Usage" and row[places[-1]] not in USAGES:
                    raise ExpectedError(
                        f"{path}: line {reader.line_num} has the usage {row[places[-1]]!r}; "
                        f"expected {', '.join(USAGES)}; check the file"
                    )
                yield reader.line_num, *(row[place] for place in places)
        except (UnicodeDecodeError, csv.Error) as error:
            raise ExpectedError(
                f"{path}: {error}; expected a CSV in UTF-8; check the file"
            ) from error


def read_recognition_submission(path):
    """Reads a recognition submission.

    Returns:
        dict, image id (str) -> (landmark id, confidence), or None where the cell is empty.

    Raises:
        ExpectedError: the file is no such submission.
    """
    predictions = {}
    for line, image_id, cell in _read_rows(path, "id", "landmarks"):
        words = cell.split()
        try:
            prediction = (int(words[0]), float(words[1])) if words else None
            if len(words) not in (0, 2) or prediction and not math.isfinite(prediction[1]):
                raise ValueError(cell)
        except (ValueError, IndexError) as error:
            raise ExpectedError(
                f"{path}: line {line} has {cell[:60]!r}; expected `<landmark id> <confidence>` or "
                "an empty cell; check the file"
            ) from error
        predictions[image_id] = prediction
    return predictions


def write_recognition_submission(path, test_ids, image_ids, landmark_ids, confidences):
    """Writes a recognition submission: a row for each test image, empty where none was predicted.

    Args:
        path: the CSV, written atomically.
        test_ids: (num_queries,) uint64, in the order to write.
        image_ids: (n,) uint64, the predicted images, in any order.
        landmark_ids: (n,) int64.
        confidences: (n,) float32; written so that they read back equal.
    """
    cells = {
        image_id: f"{landmark_id} {confidence:.9g}"
        for image_id, landmark_id, confidence in zip(
            image_ids.tolist(), landmark_ids.tolist(), confidences.tolist(), strict=True
        )
    }
    rows = (f"{image_id:016x},{cells.get(image_id, '')}\n" for image_id in test_ids.tolist())
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write("id,landmarks\n")
        file.writelines(rows)


def check_recognition_submission(path, test_ids, class_table):
    """Checks that a submission has every test id exactly once and only known landmarks.

    Args:
        path: the CSV.
        test_ids: (num_queries,) uint64.
        class_table: `ClassTable`.

    Returns:
        The number of test images with a prediction.

    Raises:
        ExpectedError: what is wrong first.
    """
    predictions = read_recognition_submission(path)
    _check_ids(path, predictions, test_ids)
    predicted = [prediction[0] for prediction in predictions.values() if prediction]
    unknown = np.setdiff1d(predicted, class_table.landmark_ids)
    if len(unknown):
        raise ExpectedError(
            f"{path}: landmark {unknown[0]:.0f}; expected a landmark of the class table; "
            "predict again with the model of this source"
        )
    return len(predicted)


def _check_ids(path, rows, test_ids):
    expected = {format_image_id(image_id) for image_id in test_ids}
    for wrong, problem in ((expected - rows.keys(), "missing"), (rows.keys() - expected, "extra")):
        if wrong:
            raise ExpectedError(
                f"{path}: {len(wrong)} {problem} ids, first {min(wrong)!r}; expected exactly the "
                f"{len(expected)} ids of test.csv; write the submission again for this source"
            )


def read_recognition_solution(path):
    """Reads the recognition ground truth.

    Returns:
        dict, image id (str) -> RecognitionTruth(landmark_ids, a set of int; usage).
    """
    solution = {}
    for line, image_id, cell, usage in _read_rows(path, "id", "landmarks", "Usage"):
        try:
            landmark_ids = {int(word) for word in cell.split()}
        except ValueError as error:
            raise ExpectedError(
                f"{path}: line {line} has {cell[:60]!r}; expected landmark ids; check the file"
            ) from error
        solution[image_id] = RecognitionTruth(landmark_ids, usage)
    return solution


def write_retrieval_submission(path, test_ids, query_ids, row_ends, image_ids):
    """Writes a retrieval submission: a row for each test image, empty where nothing was retrieved.

    Args:
        path: the CSV, written atomically.
        test_ids: (num_tests,) uint64, in the order to write.
        query_ids: (num_queries,) uint64, the queries that were searched.
        row_ends: (num_queries,) int64, where each query's images end in `image_ids`.
        image_ids: (n,) uint64, index images, query after query, best first.
    """
    words = format_image_ids(image_ids)
    begins = np.concatenate([[0], row_ends[:-1]]) if len(row_ends) else row_ends
    spans = dict(
        zip(query_ids.tolist(), zip(begins.tolist(), row_ends.tolist(), strict=True), strict=True)
    )
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(b"id,images\n")
        for test_id in test_ids.tolist():
            begin, end = spans.get(test_id, (0, 0))
            file.write(b"%016x,%s\n" % (test_id, b" ".join(words[begin:end].tolist())))


def check_retrieval_submission(path, test_ids):
    """Checks that a submission has every test id once and at most 100 different images for each.

    Args:
        path: the CSV.
        test_ids: (num_queries,) uint64.

    Returns:
        The number of test images with at least one retrieved image.

    Raises:
        ExpectedError: what is wrong first.
    """
    retrieved = read_retrieval_submission(path)
    _check_ids(path, retrieved, test_ids)
    for image_id, images in retrieved.items():
        if len(images) > MAX_RETRIEVED or len(set(images)) < len(images):
            raise ExpectedError(
                f"{path}: {image_id} has {len(images)} images, {len(set(images))} different; "
                f"expected at most {MAX_RETRIEVED}, none twice; merge the parts again"
            )
    return sum(bool(images) for images in retrieved.values())


def read_retrieval_submission(path):
    """Reads a retrieval submission: dict, image id (str) -> list of index image ids (str)."""
    return {image_id: cell.split() for _, image_id, cell in _read_rows(path, "id", "images")}


def read_retrieval_solution(path):
    """Reads the retrieval ground truth.

    Returns:
        dict, image id (str) -> RetrievalTruth(image_ids, a set of str; usage). The set is empty for
        an ignored query ("None").
    """
    return {
        image_id: RetrievalTruth(set() if cell == "None" else set(cell.split()), usage)
        for _, image_id, cell, usage in _read_rows(path, "id", "images", "Usage")
    }
