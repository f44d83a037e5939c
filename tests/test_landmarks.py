"""Tests of the metadata: image ids, the class table, its labels, names."""

import random

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from checks import one_line

from data import landmarks
from data.landmarks import (
    ClassTable,
    TrainLabels,
    format_image_id,
    format_image_ids,
    parse_image_ids,
    read_2019_classes,
    read_image_ids,
    read_landmark_names,
    read_train_labels,
)
from utils import ExpectedError

# --------------------------------------------------------------------------------------- image ids


def column_of(ids):
    """Makes a column of text, as tables are read."""
    return pd.Series(ids, dtype=pd.ArrowDtype(pa.string()))


def test_image_ids_become_numbers_that_sort_the_same_way():
    ids = ["0000000000000000", "ffffffffffffffff", "0123456789abcdef", "fedcba9876543210"]
    numbers = parse_image_ids(ids, "x.csv")
    assert numbers.dtype == np.uint64
    assert numbers.tolist() == [0, 2**64 - 1, 0x0123456789ABCDEF, 0xFEDCBA9876543210]
    assert [ids[place] for place in np.argsort(numbers)] == sorted(ids)
    assert [format_image_id(number) for number in numbers] == ids
    assert [word.decode() for word in format_image_ids(numbers)] == ids


def test_random_image_ids_survive_the_way_to_numbers_and_back():
    rng = random.Random(4)
    ids = [f"{rng.getrandbits(64):016x}" for _ in range(1000)]
    numbers = parse_image_ids(ids, "x.csv")
    assert numbers.tolist() == [int(image_id, 16) for image_id in ids]
    assert [word.decode() for word in format_image_ids(numbers)] == ids


def test_no_image_ids_are_no_numbers():
    for column in ([], column_of([])):
        numbers = parse_image_ids(column, "x.csv")
        assert (numbers.dtype, numbers.shape) == (np.uint64, (0,))
    assert format_image_ids(np.empty(0, np.uint64)).tolist() == []


def test_image_ids_are_read_from_any_part_of_a_column():
    whole = column_of([f"{number:016x}" for number in range(10)])
    assert parse_image_ids(whole, "x.csv").tolist() == list(range(10))
    assert parse_image_ids(whole[3:7], "x.csv").tolist() == [3, 4, 5, 6]
    joined = pd.concat([whole[8:], whole[:0], whole[2:4]])
    assert parse_image_ids(joined, "x.csv").tolist() == [8, 9, 2, 3]


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "0123456789abcde",
        "0123456789abcdef0",
        "0123456789ABCDEF",
        "0123456789abcdeg",
        " 123456789abcdef",
        "0123456789abcde\n",
        "äääääääää",
        "éééééééé",  # 16 bytes in UTF-8
        None,
    ],
)
def test_an_image_id_that_is_not_16_hex_characters_is_named(wrong):
    right = "0123456789abcdef"
    for column in ([wrong], [right, wrong, right], column_of([right, right, wrong])):
        with pytest.raises(ExpectedError) as caught:
            parse_image_ids(column, "x.csv")
        assert one_line(caught.value) == (
            f"x.csv: image id {wrong!r}; expected 16 lower-case hex characters; check the file"
        )


def test_two_ids_of_wrong_length_do_not_make_up_for_each_other():
    with pytest.raises(ExpectedError, match="image id '0123456789abcde'"):
        parse_image_ids(["0123456789abcde", "0123456789abcdef0"], "x.csv")


def test_the_ids_of_a_csv_keep_their_order(tmp_path):
    (tmp_path / "test.csv").write_text("id\n00000000000000ff\n000000000000000a\n")
    assert read_image_ids(tmp_path / "test.csv").tolist() == [255, 10]
    (tmp_path / "more.csv").write_text("url,id\nhttp://x,00000000000000ff\n")
    assert read_image_ids(tmp_path / "more.csv").tolist() == [255]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name\nx\n", "no column 'id' in 'name'; "),
        (b"id\n", "no row after the header; "),
        (b"id\n00000000000000ff\n" * 2, "image id 'id'"),
        (b"id\n00000000000000ff\n00000000000000ff\n", "id '00000000000000ff' appears twice; "),
        (b"id\n00000000000000fg\n", "image id '00000000000000fg'"),
        (b"id\nNA\n", "image id 'NA'"),
        (b"id\n\xff\xfe00000000000000\n", "invalid UTF8 data; expected a CSV in UTF-8"),
        (b"id,url\n00000000000000ff\n", "line 2: Expected 2 columns, got 1"),
    ],
)
def test_a_csv_without_right_ids_is_an_error(tmp_path, content, message):
    (tmp_path / "test.csv").write_bytes(content)
    with pytest.raises(ExpectedError) as caught:
        read_image_ids(tmp_path / "test.csv")
    assert message in one_line(caught.value)
    assert one_line(caught.value).startswith(f"{tmp_path}/test.csv: ")


# ---------------------------------------------------------------------------------- the class table

# Landmark 7 has three images, 40 two, 5 two and 9 one.
TRAIN_ROWS = {
    "00000000000000c1": 40,
    "00000000000000a1": 7,
    "00000000000000b1": 5,
    "00000000000000a3": 7,
    "00000000000000d1": 9,
    "00000000000000a2": 7,
    "00000000000000b2": 5,
    "00000000000000c2": 40,
}


def write_train_csv(path, rows):
    lines = [f"{image_id},http://x/{image_id}.jpg,{mark}" for image_id, mark in rows.items()]
    path.write_text("\n".join(["id,url,landmark_id", *lines]) + "\n")
    return path


def write_train_clean_csv(path, rows):
    images = {}
    for image_id, landmark_id in rows.items():
        images.setdefault(landmark_id, []).append(image_id)
    lines = [f"{landmark_id},{' '.join(ids)}" for landmark_id, ids in images.items()]
    path.write_text("\n".join(["landmark_id,images", *lines]) + "\n")
    return path


LAYOUTS = [write_train_csv, write_train_clean_csv]


@pytest.mark.parametrize("write", LAYOUTS)
def test_the_class_table_is_ascending_and_leaves_rare_landmarks_out(tmp_path, write):
    table, labels = read_train_labels(write(tmp_path / "train.csv", TRAIN_ROWS), min_images=2)
    assert table.landmark_ids.tolist() == [5, 7, 40]
    assert table.landmark_ids.dtype == np.int64
    assert len(table) == 3
    assert [format_image_id(image_id)[-2:] for image_id in labels.image_ids] == [
        "a1",
        "a2",
        "a3",
        "b1",
        "b2",
        "c1",
        "c2",
    ]
    assert labels.class_indices.tolist() == [1, 1, 1, 0, 0, 2, 2]
    assert (labels.image_ids.dtype, labels.class_indices.dtype) == (np.uint64, np.int32)
    assert len(labels) == 7


@pytest.mark.parametrize(
    ("min_images", "landmark_ids"), [(1, [5, 7, 9, 40]), (2, [5, 7, 40]), (3, [7])]
)
@pytest.mark.parametrize("write", LAYOUTS)
def test_a_landmark_needs_min_images(tmp_path, write, min_images, landmark_ids):
    table, labels = read_train_labels(write(tmp_path / "train.csv", TRAIN_ROWS), min_images)
    assert table.landmark_ids.tolist() == landmark_ids
    assert len(labels) == sum(mark in landmark_ids for mark in TRAIN_ROWS.values())


def test_the_default_threshold_is_the_recipes(tmp_path):
    rows = {f"{number:016x}": 1 for number in range(landmarks.MIN_IMAGES)}
    rows |= {f"{number:016x}": 2 for number in range(100, 100 + landmarks.MIN_IMAGES - 1)}
    table, _ = read_train_labels(write_train_csv(tmp_path / "train.csv", rows))
    assert table.landmark_ids.tolist() == [1]


def test_the_columns_may_come_in_any_order(tmp_path):
    (tmp_path / "a.csv").write_text("landmark_id,id\n7,00000000000000a1\n")
    (tmp_path / "b.csv").write_text("images,landmark_id\n00000000000000a1,7\n")
    (tmp_path / "c.csv").write_bytes(b"\xef\xbb\xbfimages,landmark_id\r\n00000000000000a1,7\r\n")
    for name in ("a.csv", "b.csv", "c.csv"):
        table, labels = read_train_labels(tmp_path / name, min_images=1)
        assert (table.landmark_ids.tolist(), labels.image_ids.tolist()) == ([7], [0xA1])


def test_a_landmark_on_two_lines_of_the_clean_layout_is_one_class(tmp_path):
    path = tmp_path / "train_clean.csv"
    path.write_text("landmark_id,images\n7,00000000000000a1\n7,00000000000000a2\n")
    table, labels = read_train_labels(path, min_images=2)
    assert (table.landmark_ids.tolist(), labels.class_indices.tolist()) == ([7], [0, 0])


@pytest.mark.parametrize("write", LAYOUTS)
def test_the_labels_are_those_of_a_naive_reading(tmp_path, write):
    rng = random.Random(5)
    rows = {  # more than one of pyarrow's blocks of 1 MB
        f"{rng.getrandbits(64):016x}": int(rng.paretovariate(0.4)) for _ in range(70_000)
    }
    path = write(tmp_path / "train.csv", rows)
    assert path.stat().st_size > 1 << 20

    counts = {}
    for landmark_id in rows.values():
        counts[landmark_id] = counts.get(landmark_id, 0) + 1
    kept = sorted(landmark_id for landmark_id, count in counts.items() if count >= 3)
    expected = {
        int(image_id, 16): kept.index(landmark_id)
        for image_id, landmark_id in rows.items()
        if counts[landmark_id] >= 3
    }
    assert 10 < len(kept) < len(counts)

    table, labels = read_train_labels(path, min_images=3)
    assert table.landmark_ids.tolist() == kept
    assert labels.image_ids.tolist() == sorted(expected)
    found = dict(zip(labels.image_ids.tolist(), labels.class_indices.tolist(), strict=True))
    assert found == expected


def test_find_gives_the_class_of_an_image_or_none():
    labels = TrainLabels(
        np.array([0, 10, 20, 2**64 - 1], np.uint64), np.array([3, 0, 2, 1], np.int32)
    )
    assert [labels.find(image_id) for image_id in (0, 10, 20, 2**64 - 1)] == [3, 0, 2, 1]
    assert [labels.find(image_id) for image_id in (1, 9, 11, 21, 2**64 - 2)] == [None] * 5
    assert labels.find(np.uint64(10)) == 0
    assert type(labels.find(10)) is int
    none = TrainLabels(np.empty(0, np.uint64), np.empty(0, np.int32))
    assert none.find(10) is None


def test_the_fingerprint_changes_with_the_content_and_nothing_else():
    def fingerprint(*landmark_ids, dtype=np.int64):
        return ClassTable(np.array(landmark_ids, dtype)).fingerprint

    assert fingerprint(5, 7, 40) == fingerprint(5, 7, 40, dtype=">i8")
    others = {fingerprint(5, 7), fingerprint(5, 7, 41), fingerprint(7, 5, 40), fingerprint()}
    assert len(others | {fingerprint(5, 7, 40)}) == 5
    assert len(fingerprint(5, 7, 40)) == 12
    assert fingerprint(5, 7, 40) == "b755bcb6bef1"  # checkpoints hold it: it must not move


def test_the_labels_have_a_fingerprint_of_images_and_classes():
    def fingerprint(image_ids, class_indices, byte_order="<"):
        return TrainLabels(
            np.array(image_ids, f"{byte_order}u8"), np.array(class_indices, f"{byte_order}i4")
        ).fingerprint

    labels = fingerprint([10, 20, 30], [0, 1, 1])
    assert labels == fingerprint([10, 20, 30], [0, 1, 1], byte_order=">")
    others = {
        fingerprint([10, 20, 30], [1, 0, 1]),  # two swapped: the same landmarks, as often
        fingerprint([10, 20, 31], [0, 1, 1]),
        fingerprint([10, 20], [0, 1]),
        fingerprint([], []),
    }
    assert len(others | {labels}) == 5
    assert labels == "5c9d8d3bd4f1"  # checkpoints hold it: it must not move


def test_labels_swapped_between_landmarks_change_the_fingerprint_of_the_labels_alone(tmp_path):
    swapped = TRAIN_ROWS | {"00000000000000a1": 40, "00000000000000c1": 7}
    (table, labels), (table_again, labels_again) = (
        read_train_labels(write_train_csv(tmp_path / "train.csv", rows), min_images=2)
        for rows in (TRAIN_ROWS, swapped)
    )
    assert table.fingerprint == table_again.fingerprint
    assert labels.fingerprint != labels_again.fingerprint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no column 'id' in ''; expected a CSV with the columns id, landmark_id; "),
        ("url,landmark_id\nx,7\n", "no column 'id' in 'url,landmark_id'; "),
        ("images,url\nx,7\n", "no column 'landmark_id' in 'images,url'; "),
        ("id,landmark_id\n", "no row after the header; "),
        ("landmark_id,images\n", "no row after the header; "),
        ("id,landmark_id\n00000000000000a1,seven\n", "line 2: "),
        ("landmark_id,images\n,00000000000000a1\n", "line 2: "),
        ("id,landmark_id\n00000000000000A1,7\n", "image id '00000000000000A1'"),
        ("id,landmark_id\n,7\n", "image id ''"),
        ("landmark_id,images\n7,\n", "image id ''"),
        ("landmark_id,images\n7,00000000000000a1 short\n", "image id 'short'"),
        (
            "id,landmark_id\n00000000000000a1,-7\n",
            "landmark id -7; expected landmark ids from 0 up",
        ),
        (
            "id,landmark_id\n00000000000000a1,7\n00000000000000a1,8\n",
            "image id '00000000000000a1' appears twice; ",
        ),
        (
            "landmark_id,images\n7,00000000000000a1 00000000000000a1\n",
            "image id '00000000000000a1' appears twice; ",
        ),
    ],
)
def test_a_malformed_train_csv_is_an_error(tmp_path, content, message):
    (tmp_path / "train.csv").write_text(content)
    with pytest.raises(ExpectedError) as caught:
        read_train_labels(tmp_path / "train.csv", min_images=1)
    assert message in one_line(caught.value)
    assert one_line(caught.value).startswith(f"{tmp_path}/train.csv: ")


@pytest.mark.parametrize("write", LAYOUTS)
def test_a_threshold_that_no_landmark_reaches_is_an_error(tmp_path, write):
    with pytest.raises(ExpectedError) as caught:
        read_train_labels(write(tmp_path / "train.csv", TRAIN_ROWS), min_images=4)
    assert one_line(caught.value) == (
        f"{tmp_path}/train.csv: no landmark has 4 images (the most is 3); expected at least one "
        "class; lower --min-images"
    )


# The cleaned labels keep two images of landmark 7, one of 40 and one of 9.
CLEAN_ROWS = {
    "00000000000000a1": 7,
    "00000000000000a3": 7,
    "00000000000000c2": 40,
    "00000000000000d1": 9,
}


@pytest.mark.parametrize(
    ("min_images", "landmark_ids", "images"),
    [
        (1, [7, 9, 40], ["a1", "a2", "a3", "c1", "c2", "d1"]),  # 5 is not in the cleaned labels
        (2, [7, 40], ["a1", "a2", "a3", "c1", "c2"]),  # 40 has two, of which one is clean
        (3, [7], ["a1", "a2", "a3"]),
    ],
)
@pytest.mark.parametrize("write", LAYOUTS)
def test_all_images_of_the_landmarks_of_another_table_are_taken(
    tmp_path, write, min_images, landmark_ids, images
):
    path = write_train_csv(tmp_path / "train.csv", TRAIN_ROWS)
    clean = write(tmp_path / "train_clean.csv", CLEAN_ROWS)
    table, labels = read_train_labels(path, min_images, landmarks_of=clean)
    assert table.landmark_ids.tolist() == landmark_ids
    assert [format_image_id(image_id)[-2:] for image_id in labels.image_ids] == images
    found = table.landmark_ids[labels.class_indices].tolist()
    assert found == [TRAIN_ROWS[format_image_id(image_id)] for image_id in labels.image_ids]


def test_the_cleaned_labels_alone_have_fewer_images_of_the_same_landmarks(tmp_path):
    clean = write_train_clean_csv(tmp_path / "train_clean.csv", CLEAN_ROWS)
    table, labels = read_train_labels(clean, 1)
    assert table.landmark_ids.tolist() == [7, 9, 40]
    assert labels.class_indices.tolist() == [0, 0, 2, 1]


def test_tables_without_a_landmark_in_common_are_refused(tmp_path):
    path = write_train_csv(tmp_path / "train.csv", TRAIN_ROWS)
    other = write_train_clean_csv(tmp_path / "train_clean.csv", {"00000000000000a1": 8})
    with pytest.raises(ExpectedError) as caught:
        read_train_labels(path, 1, landmarks_of=other)
    assert one_line(caught.value) == (
        f"{path}: none of its landmarks is in {other}; expected tables of one data set; "
        "check --source"
    )


def test_the_names_of_landmarks_are_read_from_their_addresses(tmp_path):
    (tmp_path / "names.csv").write_text(
        "landmark_id,category\n"
        "0,http://commons.wikimedia.org/wiki/Category:Berlin_Cathedral\n"
        '9,"http://commons.wikimedia.org/wiki/Category:Tower,_Old"\n'
        "5,Plain name\n"
    )
    assert read_landmark_names(tmp_path / "names.csv") == {
        0: "Berlin Cathedral",
        9: "Tower, Old",
        5: "Plain name",
    }


def test_a_landmark_with_two_names_is_an_error(tmp_path):
    path = tmp_path / "names.csv"
    path.write_text("landmark_id,category\n7,a\n40,b\n7,c\n")
    with pytest.raises(ExpectedError) as caught:
        read_landmark_names(path)
    assert one_line(caught.value) == (
        f"{path}: landmark 7 appears twice; expected each landmark once; check the file"
    )


def test_a_landmark_of_20_images_had_a_class_in_2019_and_one_of_19_had_none(tmp_path):
    rows = {f"{number:016x}": 7 if number < 20 else 9 for number in range(39)}
    path = write_train_csv(tmp_path / "train.csv", rows)
    assert read_2019_classes(path).landmark_ids.tolist() == [7]
