"""Folders of photos become a data set: what stays together, where it goes, what is told."""

import csv
import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from checks import one_line
from PIL import Image

import gather
from data.landmarks import read_image_ids, read_landmark_names, read_train_labels
from data.sources import CATEGORY_CSV, INDEX_CSV, TEST_CSV, TRAIN_CSV, Source
from data.submissions import read_recognition_solution, read_retrieval_solution
from data.tars import list_members
from gathering import division, folders
from utils import ExpectedError

KIND = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "bmp": "BMP"}


def photo(seed, kind="jpg", when=None, size=(48, 40)):
    """Draws a picture that looks like no other: bytes of a file."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (8, 9, 3), np.uint8)).resize(size)
    file, options = io.BytesIO(), {}
    if when:
        exif = Image.Exif()
        exif[0x0110], exif[0x0132] = "Camera", when
        options = {"exif": exif}
    image.save(file, KIND[kind], **options)
    return file.getvalue()


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name.replace("__", ".")).write_bytes(data)


@pytest.fixture
def photos(tmp_path):
    """Three landmarks, one of them with a single photo, and a folder of others."""
    folder = tmp_path / "my photos"
    for number, name in enumerate(("01.Stone Bridge", "Tour_Eiffel é", "Ü tower")):
        for one in range((12, 12, 1)[number]):
            write(folder / name / f"day {one % 2}", **{f"{one}__jpg": photo((number, one))})
    for one in range(4):
        write(tmp_path / "others", **{f"{one}__png": photo((9, one), "png")})
    return folder


def read_alone(path, pixels):
    found = folders.Photo(path, "")
    return found, folders.read(found, pixels)


def run(folder, output, *options):
    gather.main([str(folder), "--output", str(output), *map(str, options)])
    return Source([output], output.parent / "scratch")


def files_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def ids_in(source):
    """Reads the image ids of each split from the tars: split -> set of int."""
    return {
        split: {
            member.image_id
            for shard in source.select_shards(split)
            for member in list_members(Path(source.places[0].location) / shard.path)
        }
        for split in ("train", "index", "test")
    }


def test_folders_become_shards_tables_and_truth_that_agree(photos, tmp_path, capsys):
    source = run(photos, tmp_path / "out", "--non-landmarks", tmp_path / "others")
    ids = ids_in(source)
    assert sum(map(len, ids.values())) == 12 + 12 + 1 + 4
    names = read_landmark_names(source.fetch(CATEGORY_CSV))
    assert names == {0: "Stone Bridge", 1: "Tour Eiffel é", 2: "Ü tower"}
    class_table, labels = read_train_labels(source.fetch(TRAIN_CSV), 1)
    assert class_table.landmark_ids.tolist() == [0, 1, 2]  # that of one photo is trained on
    assert set(labels.image_ids.tolist()) == ids["train"]
    assert set(read_image_ids(source.fetch(INDEX_CSV)).tolist()) == ids["index"]
    assert set(read_image_ids(source.fetch(TEST_CSV)).tolist()) == ids["test"]
    truth = read_recognition_solution(source.fetch("ground_truth/recognition_solution_v2.1.csv"))
    assert len(truth) == len(ids["test"]) and len(ids["test"]) >= 4
    truth = read_retrieval_solution(source.fetch("ground_truth/retrieval_solution_v2.1.csv"))
    assert {bool(one.image_ids) for one in truth.values()} == {True, False}
    assert all((one.usage == "Ignored") == (not one.image_ids) for one in truth.values())
    assert os.name == "nt" or (tmp_path / "out").stat().st_mode & 0o777 == 0o755
    told = capsys.readouterr()
    assert told.out == f"{tmp_path / 'out'}\n"
    assert "3 landmarks; " in told.err and "4 without a landmark" in told.err


def test_the_same_photos_give_the_same_bytes(photos, tmp_path):
    run(photos, tmp_path / "a")
    run(photos, tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    run(photos, tmp_path / "a")  # an earlier one is replaced
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_every_file_left_out_has_its_line_and_its_reason(photos, tmp_path):
    bridge = photos / "01.Stone Bridge"
    write(bridge, broken__jpg=b"no picture", copy__jpg=photo((0, 0)), _hidden=b"")
    write(photos, loose__jpg=photo(77))
    write(photos / "Ü tower", both__jpg=photo((1, 3)))
    (bridge / "_hidden").rename(bridge / ".hidden.jpg")
    run(photos, tmp_path / "out")
    with open(tmp_path / "out" / "left_out.csv", encoding="utf-8", newline="") as file:
        reasons = {Path(row["file"]).name: row["reason"] for row in csv.DictReader(file)}
    assert reasons.pop("3.jpg") == "shown as Tour Eiffel é and Ü tower"
    assert reasons.pop("0.jpg") == f"the same picture as {bridge / 'copy.jpg'}"
    assert reasons.pop("both.jpg").startswith("the same picture as ")
    assert reasons == {
        "broken.jpg": "not an image",
        ".hidden.jpg": "hidden",
        "loose.jpg": "not in the folder of a landmark",
    }
    counts = json.loads((tmp_path / "out" / "gathered.json").read_text())
    assert counts["left_out"] == 6 and sum(counts["photos"].values()) == 24


def test_photos_that_a_person_divided_stay_divided(tmp_path):
    for split, seeds in (("train", range(8)), ("test", range(8, 11))):
        for place in range(2):
            files = {f"{seed}__jpg": photo((place, seed)) for seed in seeds}
            write(tmp_path / "in" / split / f"{place:02}.Place {place}", **files)
    ids = ids_in(run(tmp_path / "in", tmp_path / "out"))
    paths = (tmp_path / "in" / "test").rglob("*.jpg")
    of_test = [read_alone(path, 64)[0].image_id for path in paths]
    assert ids["test"] == set(of_test)
    assert len(ids["index"]) == 2 and len(ids["train"]) == 14


def of(look, camera="", taken=None):
    return SimpleNamespace(image_id=look, look=look, camera=camera, taken=taken)


def test_photos_that_look_alike_or_were_taken_in_a_row_are_a_group():
    far = [0x0F0F0F0F0F0F0F0F, 0xFF00FF00FF00FF00, 0x00000000FFFFFFFF, 0x123456789ABCDEF0]
    alike = [of(far[0]), of(far[0] ^ 0b111111)]  # 6 bits
    others = [of(far[1], "A", 100.0), of(far[2], "A", 160.0), of(far[3], "B", 130.0)]
    assert sorted(division.group([*alike, *others])) == [[0, 1], [2, 3], [4]]
    assert len(division.group([of(far[0]), of(far[0] ^ 0b1111111)])) == 2  # 7 bits
    assert len(division.group([of(far[0], "A", 0.0), of(far[1], "A", 61.0)])) == 2


def test_most_photos_train_and_a_group_is_never_divided():
    assert (
        division.split_groups([1] * 20, True, True) == ["test"] * 3 + ["index"] * 3 + ["train"] * 14
    )
    assert division.split_groups([5], True, True) == ["train"]
    assert division.split_groups([1, 1], True, True) == ["test", "train"]
    assert division.split_groups([1, 1, 1], True, True) == ["test", "index", "train"]
    assert division.split_groups([2, 30], False, True) == ["index", "train"]


def test_camera_and_time_are_read_from_exif_and_leave_the_picture(tmp_path):
    write(tmp_path, a__jpg=photo(1, when="2020:05:01 10:00:00"))
    write(tmp_path, b__jpg=photo(2, when="2020:05:01 10:00:30"))
    (a, jpeg), (b, _) = (read_alone(tmp_path / f"{name}.jpg", 32) for name in "ab")
    assert (a.camera, b.taken - a.taken) == ("Camera", 30.0)
    with Image.open(io.BytesIO(jpeg)) as small:
        assert small.size == (38, 32) and not small.getexif()


def test_the_held_out_shard_has_no_landmarks_largest_group(photos, tmp_path):
    source = run(photos, tmp_path / "out")
    _, labels = read_train_labels(source.fetch(TRAIN_CSV), 1)
    held_out = {m.image_id for m in list_members(tmp_path / "out" / "train" / "images_000.tar")}
    trained = {labels.find(image_id) for image_id in labels.image_ids.tolist()
               if image_id not in held_out}  # fmt: skip
    assert held_out and trained == {0, 1, 2}


def test_landmarks_of_one_group_each_are_all_trained_on_and_shard_0_is_there(tmp_path, capsys):
    for number in range(3):
        for minute in range(2):
            when = f"2024:01:0{number + 1} 10:00:0{minute}"  # in a row
            write(
                tmp_path / "in" / f"L{number}",
                **{f"{minute}__jpg": photo((number, minute), when=when)},
            )
    source = run(tmp_path / "in", tmp_path / "out")
    numbers = [len(list_members(source.fetch_shard(s))) for s in source.select_shards("train")]
    assert numbers == [0, 4, 2]
    assert (
        f"next: python recognition.py train --source {tmp_path / 'out'} " in capsys.readouterr().err
    )


@pytest.mark.parametrize("others", ["missing", "empty"])
def test_a_folder_of_non_landmarks_without_pictures_is_told(others, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExpectedError) as caught:
        run(photos, tmp_path / "out", "--non-landmarks", tmp_path / others)
    assert one_line(caught.value).startswith(f"{tmp_path / others}: ")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: None, "No such file or directory"),
        (lambda folder: write(folder, a__jpg=photo(1)), "no folder with photos in it"),
        (lambda folder: write(folder / "One", a__jpg=photo(1)), "1 landmarks with 1 photos"),
    ],
    ids=["nothing", "photos without folders", "one landmark"],
)
def test_what_cannot_become_a_data_set_is_told_in_one_line(make, told, tmp_path):
    make(tmp_path / "in")
    with pytest.raises(ExpectedError) as caught:
        run(tmp_path / "in", tmp_path / "out")
    assert told in one_line(caught.value)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_a_foreign_folder_is_not_replaced(photos, tmp_path):
    write(tmp_path / "out", thesis__txt=b"years of work")
    with pytest.raises(ExpectedError) as caught:
        run(photos, tmp_path / "out")
    assert "it holds thesis.txt" in one_line(caught.value)
    assert (tmp_path / "out" / "thesis.txt").exists()
