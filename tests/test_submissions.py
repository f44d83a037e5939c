"""Tests of submissions and ground truth: what is written reads back, what is wrong is named."""

import random

import numpy as np
import pytest
from checks import one_line

from data.landmarks import ClassTable, format_image_id
from data.submissions import (
    check_recognition_submission,
    check_retrieval_submission,
    read_recognition_solution,
    read_recognition_submission,
    read_retrieval_solution,
    read_retrieval_submission,
    write_recognition_submission,
    write_retrieval_submission,
)
from utils import ExpectedError

A, B, C = (f"000000000000000{letter}" for letter in "abc")
TEST_IDS = np.array([0xC, 0xA, 0xB], np.uint64)
TABLE = ClassTable(np.array([5, 7, 40], np.int64))


@pytest.fixture
def csv_file(tmp_path):
    """Writes lines to a CSV; gives its path."""

    def write(*lines):
        path = tmp_path / "file.csv"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    return write


def error_of(function, path, *args):
    """Calls a reader that must fail; gives what its one line says after the path."""
    with pytest.raises(ExpectedError) as caught:
        function(path, *args)
    message = one_line(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


# -------------------------------------------------------------------------- recognition submissions


def write_recognition(path, test_ids, rows):
    """Writes rows of (image id, landmark id, confidence)."""
    image_ids, landmark_ids, confidences = zip(*rows, strict=True) if rows else ((), (), ())
    write_recognition_submission(
        path,
        test_ids,
        np.array(image_ids, np.uint64),
        np.array(landmark_ids, np.int64),
        np.array(confidences, np.float32),
    )


def test_a_recognition_submission_has_a_row_for_each_test_image_in_their_order(tmp_path):
    write_recognition(tmp_path / "s.csv", TEST_IDS, [(0xA, 7, 0.5), (0xC, 40, 0.25)])
    assert (tmp_path / "s.csv").read_text() == (
        f"id,landmarks\n{C},40 0.25\n{A},7 0.5\n{B},\n"  # b was not predicted
    )
    assert read_recognition_submission(tmp_path / "s.csv") == {C: (40, 0.25), A: (7, 0.5), B: None}


def test_a_submission_without_predictions_is_all_empty_cells(tmp_path):
    write_recognition(tmp_path / "s.csv", TEST_IDS, [])
    assert read_recognition_submission(tmp_path / "s.csv") == {A: None, B: None, C: None}


def test_the_extreme_image_ids_keep_their_zeros(tmp_path):
    test_ids = np.array([0, 2**64 - 1], np.uint64)
    write_recognition(tmp_path / "s.csv", test_ids, [(0, 1, 1.0), (2**64 - 1, 2, 0.0)])
    assert read_recognition_submission(tmp_path / "s.csv") == {
        "0" * 16: (1, 1.0),
        "f" * 16: (2, 0.0),
    }


def test_confidences_read_back_equal(tmp_path):
    bits = np.random.default_rng(6).integers(0, 0x3F800000, 2000, np.uint32)  # 0 to 1, all scales
    edges = [0.0, 1.0, 1e-45, 0.1, 1 / 3, np.nextafter(np.float32(1), np.float32(0)), 3.4e38]
    confidences = np.concatenate([bits.view(np.float32), np.array(edges, np.float32)])
    ids = np.arange(len(confidences), dtype=np.uint64)
    write_recognition_submission(
        tmp_path / "s.csv", ids, ids, np.ones(len(ids), np.int64), confidences
    )
    read = read_recognition_submission(tmp_path / "s.csv")
    again = np.array([confidence for _, confidence in read.values()], np.float32)
    assert (again.view(np.uint32) == confidences.view(np.uint32)).all()


def test_a_failed_write_keeps_the_older_submission(tmp_path):
    write_recognition(tmp_path / "s.csv", TEST_IDS, [(0xA, 7, 0.5)])
    before = (tmp_path / "s.csv").read_text()
    with pytest.raises(ValueError):  # one confidence too few
        write_recognition_submission(
            tmp_path / "s.csv", TEST_IDS, TEST_IDS, np.ones(3, np.int64), np.ones(2, np.float32)
        )
    assert (tmp_path / "s.csv").read_text() == before


@pytest.mark.parametrize(
    "cell", ["7", "7 0.5 8", "7 0.5 8 0.25", "seven 0.5", "7 high", "7.0 0.5", "7 nan", "7 -inf"]
)
def test_a_cell_that_is_no_prediction_is_named(csv_file, cell):
    path = csv_file("id,landmarks", f"{A},", f"{B},{cell}")
    assert error_of(read_recognition_submission, path) == (
        f"line 3 has {cell!r} as landmarks; expected `<landmark id> <confidence>` or an empty "
        "cell; check the file"
    )


def test_a_long_wrong_cell_is_cut_short(csv_file):
    path = csv_file("id,landmarks", f"{A},{'x' * 1000}")
    assert len(error_of(read_recognition_submission, path)) < 200


def test_a_submission_may_have_more_columns_in_another_order(csv_file):
    path = csv_file("landmarks,note,id", f"7 0.5,good,{A}")
    assert read_recognition_submission(path) == {A: (7, 0.5)}


# ----------------------------------------------------------------- what every reader of rows checks

READERS = [
    (read_recognition_submission, ("id", "landmarks")),
    (read_recognition_solution, ("id", "landmarks", "Usage")),
    (read_retrieval_submission, ("id", "images")),
    (read_retrieval_solution, ("id", "images", "Usage")),
]


@pytest.mark.parametrize(("read", "columns"), READERS)
def test_a_file_of_other_columns_is_named(csv_file, read, columns):
    for missing in columns:
        header = ",".join(column for column in columns if column != missing)
        assert error_of(read, csv_file(header)) == (
            f"no column {missing!r} in {header!r}; expected a CSV with the columns "
            f"{', '.join(columns)}; check the file"
        )


def fill(columns, image_id):
    """Writes a row with an image id and nothing else."""
    return ",".join([image_id, "", "Public"][: len(columns)])


@pytest.mark.parametrize(("read", "columns"), READERS)
def test_a_header_alone_is_an_error(csv_file, read, columns):
    assert error_of(read, csv_file(",".join(columns))).startswith("no row after the header; ")


@pytest.mark.parametrize(("read", "columns"), READERS)
def test_a_byte_order_mark_and_crlf_change_nothing(tmp_path, read, columns):
    lines = [",".join(columns), fill(columns, A), fill(columns, B)]
    (tmp_path / "plain.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "windows.csv").write_bytes("\r\n".join(["\ufeff" + lines[0], *lines[1:]]).encode())
    assert list(read(tmp_path / "windows.csv")) == [A, B]
    assert read(tmp_path / "windows.csv") == read(tmp_path / "plain.csv")


@pytest.mark.parametrize(("read", "columns"), READERS)
def test_a_repeated_id_is_named(csv_file, read, columns):
    path = csv_file(",".join(columns), *(fill(columns, image_id) for image_id in (A, B, A)))
    assert error_of(read, path) == (
        f"image id {A!r} appears twice; expected each image once; check the file"
    )


@pytest.mark.parametrize("wrong", [A.upper(), A[1:], "", "17"])
@pytest.mark.parametrize(("read", "columns"), READERS)
def test_an_id_that_is_not_16_lower_case_hex_characters_is_named(csv_file, read, columns, wrong):
    path = csv_file(",".join(columns), fill(columns, B), fill(columns, wrong))
    assert error_of(read, path) == (
        f"image id {wrong!r}; expected 16 lower-case hex characters; check the file"
    )


@pytest.mark.parametrize("cell", [A.upper(), f"{B} {A.upper()} {C}", f"{B}  x{A}", f"{B};{C}"])
@pytest.mark.parametrize("read", [read_retrieval_submission, read_retrieval_solution])
def test_a_retrieved_image_that_is_no_id_is_named(csv_file, read, cell):
    path = csv_file("id,images,Usage", f"{A},{B}  {C} ,Public", f"{B},{cell},Public")
    wrong = next(word for word in cell.split() if word not in (A, B, C))
    assert error_of(read, path).startswith(f"image id {wrong!r}; expected 16 lower-case hex ")


@pytest.mark.parametrize("read", [read_recognition_solution, read_retrieval_solution])
def test_an_unknown_usage_is_named(csv_file, read):
    column = "landmarks" if read is read_recognition_solution else "images"
    path = csv_file(f"id,{column},Usage", f"{A},,Public", f"{B},,public")
    assert error_of(read, path) == (
        "line 3 has 'public' as Usage; expected Public, Private, Ignored; check the file"
    )


# ------------------------------------------------------------------------ checking a submission


def test_a_right_recognition_submission_is_counted(tmp_path):
    write_recognition(tmp_path / "s.csv", TEST_IDS, [(0xA, 7, 0.5), (0xC, 40, 0.25)])
    assert check_recognition_submission(tmp_path / "s.csv", TEST_IDS, TABLE) == 2
    write_recognition(tmp_path / "s.csv", TEST_IDS, [])
    assert check_recognition_submission(tmp_path / "s.csv", TEST_IDS, TABLE) == 0


def check_recognition(path, test_ids=TEST_IDS):
    return check_recognition_submission(path, test_ids, TABLE)


@pytest.mark.parametrize(
    ("check", "column"), [(check_recognition, "landmarks"), (check_retrieval_submission, "images")]
)
def test_missing_and_extra_ids_are_named(csv_file, check, column):
    assert error_of(check, csv_file(f"id,{column}", f"{A},"), TEST_IDS) == (
        f"2 missing ids, first {B!r}; expected exactly the 3 ids of test.csv; write the submission "
        "again for this source"
    )
    path = csv_file(f"id,{column}", f"{A},", f"{B},", f"{C},", f"{'f' * 16},")
    assert error_of(check, path, TEST_IDS).startswith(f"1 extra ids, first {'f' * 16!r}; ")
    path = csv_file(f"id,{column}", f"{A},", f"{B},", f"{'f' * 16},")
    assert error_of(check, path, TEST_IDS).startswith(f"1 missing ids, first {C!r}; ")


@pytest.mark.parametrize("landmark_id", [6, 0, -7, 2**63])
def test_a_landmark_that_is_not_in_the_class_table_is_named(csv_file, landmark_id):
    path = csv_file("id,landmarks", f"{A},7 0.5", f"{B},{landmark_id} 0.5", f"{C},")
    assert error_of(check_recognition, path) == (
        f"landmark {landmark_id}; expected a landmark of the class table; predict again with the "
        "model of this source"
    )


# ---------------------------------------------------------------------------- retrieval submissions


def write_retrieval(path, test_ids, rows):
    """Writes rows of (query id, list of image ids)."""
    write_retrieval_submission(
        path,
        test_ids,
        np.array([query for query, _ in rows], np.uint64),
        np.cumsum([len(images) for _, images in rows], dtype=np.int64),
        np.array([image for _, images in rows for image in images], np.uint64),
    )


def test_a_retrieval_submission_has_a_row_for_each_test_image_in_their_order(tmp_path):
    rows = [(0xA, [2**64 - 1, 0, 0xF0]), (0xC, []), (0xB, [3])]
    write_retrieval(tmp_path / "s.csv", TEST_IDS, rows)
    assert (tmp_path / "s.csv").read_text() == (
        f"id,images\n{C},\n{A},{'f' * 16} {'0' * 16} 00000000000000f0\n{B},{3:016x}\n"
    )
    assert read_retrieval_submission(tmp_path / "s.csv") == {
        C: [],
        A: ["f" * 16, "0" * 16, "00000000000000f0"],
        B: [f"{3:016x}"],
    }


def test_a_query_that_was_not_searched_has_an_empty_cell(tmp_path):
    write_retrieval(tmp_path / "s.csv", TEST_IDS, [(0xB, [3])])
    assert read_retrieval_submission(tmp_path / "s.csv") == {A: [], B: [f"{3:016x}"], C: []}
    write_retrieval(tmp_path / "s.csv", TEST_IDS, [])
    assert read_retrieval_submission(tmp_path / "s.csv") == {A: [], B: [], C: []}


def test_a_random_retrieval_submission_reads_back_equal(tmp_path):
    rng = random.Random(7)
    rows = {rng.getrandbits(64): [rng.getrandbits(64) for _ in range(n)] for n in range(101)}
    test_ids = list(rows)
    rng.shuffle(test_ids)
    write_retrieval(tmp_path / "s.csv", np.array(test_ids, np.uint64), list(rows.items()))
    read = read_retrieval_submission(tmp_path / "s.csv")
    assert list(read) == [format_image_id(query) for query in test_ids]
    assert read == {
        format_image_id(query): [format_image_id(image) for image in images]
        for query, images in rows.items()
    }
    assert check_retrieval_submission(tmp_path / "s.csv", np.array(test_ids, np.uint64)) == 100


def test_more_than_100_images_for_a_query_are_named(csv_file):
    images = " ".join(f"{number:016x}" for number in range(101))
    path = csv_file("id,images", f"{A},{images}", f"{B},", f"{C},")
    assert error_of(check_retrieval_submission, path, TEST_IDS) == (
        f"{A} has 101 images, 101 different; expected at most 100, each once; merge the parts again"
    )


def test_an_image_retrieved_twice_is_named(csv_file):
    path = csv_file("id,images", f"{A},{B} {C} {B}", f"{B},", f"{C},")
    assert error_of(check_retrieval_submission, path, TEST_IDS) == (
        f"{A} has 3 images, 2 different; expected at most 100, each once; merge the parts again"
    )


# --------------------------------------------------------------------------------- the ground truth


def test_the_recognition_truth_has_empty_cells_and_several_landmarks(csv_file):
    path = csv_file("id,landmarks,Usage", f"{A},,Private", f"{B},7 40,Public", f"{C},5,Ignored")
    assert read_recognition_solution(path) == {
        A: (set(), "Private"),
        B: ({7, 40}, "Public"),
        C: ({5}, "Ignored"),
    }
    assert read_recognition_solution(path)[B].landmark_ids == {7, 40}
    assert read_recognition_solution(path)[B].usage == "Public"


@pytest.mark.parametrize("cell", ["seven", "7.5", "None", "7 0.5"])
def test_a_landmark_of_the_truth_that_is_no_number_is_named(csv_file, cell):
    path = csv_file("id,landmarks,Usage", f"{A},{cell},Public")
    assert error_of(read_recognition_solution, path) == (
        f"line 2 has {cell!r} as landmarks; expected landmark ids; check the file"
    )


def test_the_retrieval_truth_knows_ignored_queries(csv_file):
    path = csv_file("id,images,Usage", f"{A},None,Ignored", f"{B},{A} {C},Public", f"{C},,Private")
    assert read_retrieval_solution(path) == {
        A: (set(), "Ignored"),
        B: ({A, C}, "Public"),
        C: (set(), "Private"),
    }
    assert read_retrieval_solution(path)[B].image_ids == {A, C}


def test_a_query_with_thousands_of_images_can_be_read(csv_file):
    images = " ".join(f"{number:016x}" for number in range(20_000))  # 340 kB in one cell
    path = csv_file("id,images,Usage", f"{A},{images},Public")
    assert len(read_retrieval_solution(path)[A].image_ids) == 20_000
