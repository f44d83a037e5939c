"""Tests of the miniature world: its bytes, its layout, its truth, and the server in front of it."""

import csv
import dataclasses
import hashlib
import http.client
import io
import tarfile
from collections import Counter
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from data.landmarks import MIN_IMAGES
from data.sources import (
    CATEGORY_CSV,
    INDEX_CSV,
    RECOGNITION_SOLUTION,
    RETRIEVAL_SOLUTION,
    SPLITS,
    TEST_CSV,
    TRAIN_CLEAN_CSV,
    TRAIN_CSV,
)
from demo import art, overview, start
from demo import world as worlds
from demo.__main__ import main
from demo.generated import KINDS, generate_landmarks
from demo.photos import choose_pictures, write_photos
from demo.plan import WorldSize, plan_world
from demo.server import serve
from demo.world import build_world, view_of
from utils import ExpectedError

TINY = WorldSize(
    num_landmarks=3,
    num_rare=1,
    num_unknown=1,
    train_images=(20, 22),
    index_images=(3, 4),
    test_images=(3, 4),
    rare_train_images=(5, 6),
    rare_index_images=(2, 2),
    rare_test_images=(1, 1),
    unknown_index_images=(1, 1),
    unknown_test_images=(1, 1),
    index_distractors=5,
    test_non_landmarks=5,
    two_landmark_queries=2,
    ignored_queries=1,
    train_shards=3,
    index_shards=2,
    test_shards=2,
    wrong_share=0.1,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build_world(tmp_path_factory.mktemp("demo") / "world", 0, TINY, num_workers=1)


def test_photos_of_the_world_are_test_pictures_named_by_what_they_show(world, tmp_path):
    paths = write_photos(world, tmp_path)
    members = dict(read_members(world, "test"))
    truth = {row["id"]: row["landmarks"] for row in read_rows(world, RECOGNITION_SOLUTION)}
    by_start = {image_id[:6]: image_id for image_id in truth}
    assert paths and len(set(paths)) == len(paths)
    for path in paths:
        name, _, start = path.stem.rpartition("-")
        image_id = by_start[start]
        assert path.read_bytes() == members["/".join([*image_id[:3], f"{image_id}.jpg"])]
        assert (name == "no_landmark") == (truth[image_id] == "")


def test_the_photos_of_the_demo_are_easy_ones_of_four_landmarks_and_of_none():
    world = plan_world(0, WorldSize())
    chosen = [picture for _, _, picture in choose_pictures(world)]
    assert [len(picture.labels) for picture in chosen] == [1, 1, 1, 1, 0, 0]
    assert len({picture.labels for picture in chosen[:4]}) == 4
    for picture in chosen:
        _, places, scene = view_of(world, picture)
        assert (scene.hard, scene.light, scene.weather) == (False, "day", "clear")
        assert not any(map(art.is_slender, places))


def read_rows(folder, name):
    with open(folder / name, newline="") as file:
        return list(csv.DictReader(file))


def read_members(folder, split):
    """Lists (member name, bytes) of all tars of a split."""
    members = []
    for path in sorted((folder / split).glob("images_*.tar")):
        with tarfile.open(path) as tar:
            members += [(member.name, tar.extractfile(member).read()) for member in tar]
    return members


def all_bytes(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# ------------------------------------------------------------------------------------- building


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(world, tmp_path):
    again = build_world(tmp_path / "again", 0, TINY, num_workers=2)
    assert all_bytes(again) == all_bytes(world)


def test_another_seed_gives_other_pictures_and_other_ids(world, tmp_path):
    other = build_world(tmp_path / "other", 1, TINY, num_workers=1)
    assert not {name for name, _ in read_members(world, "test")} & {
        name for name, _ in read_members(other, "test")
    }
    assert not {jpeg for _, jpeg in read_members(world, "test")} & {
        jpeg for _, jpeg in read_members(other, "test")
    }


def test_a_complete_world_is_reused_without_drawing(world, monkeypatch):
    monkeypatch.setattr(worlds, "draw_shards", lambda *_: pytest.fail("drew again"))
    before = all_bytes(world)
    assert build_world(world, 0, TINY) == world
    assert all_bytes(world) == before


def test_an_interrupted_build_leaves_no_world_and_is_done_again(world, tmp_path, monkeypatch):
    folder = tmp_path / "world"

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(worlds, "write_tables", interrupt)
        build_world(folder, 0, TINY, num_workers=1)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".world.partial-killed" / "train").mkdir(parents=True)  # as a killed run leaves it
    assert all_bytes(build_world(folder, 0, TINY, num_workers=1)) == all_bytes(world)


def test_an_incomplete_world_is_replaced(world, tmp_path):
    folder = build_world(tmp_path / "world", 0, TINY, num_workers=1)
    (folder / "train" / "images_001.tar").write_bytes(b"cut off")
    build_world(folder, 0, TINY, num_workers=1)
    assert all_bytes(folder) == all_bytes(world)
    assert [path.name for path in tmp_path.iterdir()] == ["world"]


def test_a_folder_with_something_else_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "holiday.txt").write_text("mine")
    with pytest.raises(ExpectedError, match="holds holiday.txt, which is not the demo's"):
        build_world(tmp_path, 0, TINY)
    assert (tmp_path / "holiday.txt").read_text() == "mine"


def test_a_negative_seed_is_refused(tmp_path):
    with pytest.raises(ExpectedError, match="seed -1 is negative; expected 0 or more"):
        build_world(tmp_path / "world", -1, TINY)


# --------------------------------------------------------------------------------------- layout


def test_the_files_are_those_of_the_cvdf_layout(world):
    tars = {"train": 3, "index": 2, "test": 2}
    wanted = {f"{s}/images_{n:03d}.tar" for s, count in tars.items() for n in range(count)}
    wanted |= {f"md5sum/{s}/md5.images_{n:03d}.txt" for s, c in tars.items() for n in range(c)}
    wanted |= {TRAIN_CSV, TRAIN_CLEAN_CSV, INDEX_CSV, TEST_CSV, CATEGORY_CSV}
    wanted |= {RECOGNITION_SOLUTION, RETRIEVAL_SOLUTION, "world.json"}
    assert set(all_bytes(world)) == wanted


def test_every_md5_file_names_its_tar_and_has_its_md5(world):
    for path in sorted(world.glob("*/images_*.tar")):
        line = (world / "md5sum" / path.parent.name / f"md5.{path.stem}.txt").read_text()
        assert line == f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.name}\n"


@pytest.mark.parametrize(
    ("split", "table"), [("train", TRAIN_CSV), ("index", INDEX_CSV), ("test", TEST_CSV)]
)
def test_every_id_of_a_table_is_in_exactly_one_tar_under_its_name(world, split, table):
    ids = [row["id"] for row in read_rows(world, table)]
    assert len(set(ids)) == len(ids) > 0
    assert all(len(i) == 16 and set(i) <= set("0123456789abcdef") for i in ids)
    names = [name for name, _ in read_members(world, split)]
    assert sorted(names) == sorted(f"{i[0]}/{i[1]}/{i[2]}/{i}.jpg" for i in ids)


def test_every_picture_is_a_small_jpeg(world):
    for _, jpeg in read_members(world, "train"):
        image = Image.open(io.BytesIO(jpeg))
        image.load()
        assert image.format == "JPEG" and image.mode == "RGB"
        assert image.size in ((256, 192), (192, 256))


def test_the_pictures_of_a_shard_are_not_sorted_by_landmark(world):
    labels = {row["id"]: row["landmark_id"] for row in read_rows(world, TRAIN_CSV)}
    with tarfile.open(world / "train" / "images_000.tar") as tar:
        found = [labels[name[-20:-4]] for name in tar.getnames()]
    assert len(set(found)) > 2
    assert sum(a != b for a, b in zip(found, found[1:], strict=False)) > len(set(found))


def test_the_headers_are_those_of_the_published_files(world):
    first = {name: (world / name).read_text().splitlines()[0] for name in HEADERS}
    assert first == HEADERS


HEADERS = {
    TRAIN_CSV: "id,url,landmark_id",
    TRAIN_CLEAN_CSV: "landmark_id,images",
    INDEX_CSV: "id",
    TEST_CSV: "id",
    CATEGORY_CSV: "landmark_id,category",
    RECOGNITION_SOLUTION: "id,landmarks,Usage",
    RETRIEVAL_SOLUTION: "id,images,Usage",
}


# ---------------------------------------------------------------------------------------- truth


def count_train_images(folder):
    counts = {}
    for row in read_rows(folder, TRAIN_CSV):
        counts[row["landmark_id"]] = counts.get(row["landmark_id"], 0) + 1
    return counts


def test_some_landmarks_reach_the_threshold_and_some_stay_below_it(world):
    counts = sorted(count_train_images(world).values())
    assert counts[0] in (5, 6) and all(count >= MIN_IMAGES for count in counts[1:])
    assert len(counts) == 4


def test_the_clean_list_is_a_part_of_the_train_list(world):
    labels = {row["id"]: row["landmark_id"] for row in read_rows(world, TRAIN_CSV)}
    clean = [
        (image_id, row["landmark_id"])
        for row in read_rows(world, TRAIN_CLEAN_CSV)
        for image_id in row["images"].split(" ")
    ]
    assert all(labels[image_id] == landmark_id for image_id, landmark_id in clean)
    assert 0 < len(clean) < len(labels)


def test_every_landmark_has_a_name(world):
    rows = read_rows(world, CATEGORY_CSV)
    assert {row["landmark_id"] for row in rows} == set(count_train_images(world))
    prefix = "http://commons.wikimedia.org/wiki/Category:"
    assert f"{prefix}Aldermoor_Clock_Tower" in {row["category"] for row in rows}


def test_the_recognition_truth_has_one_two_and_no_landmarks(world):
    rows = read_rows(world, RECOGNITION_SOLUTION)
    assert [row["id"] for row in rows] == [row["id"] for row in read_rows(world, TEST_CSV)]
    assert {len(row["landmarks"].split()) for row in rows} == {0, 1, 2}
    known = set(count_train_images(world))
    assert all(set(row["landmarks"].split()) <= known for row in rows)
    assert {row["Usage"] for row in rows} == {"Public", "Private", "Ignored"}


def test_the_retrieval_truth_names_index_pictures_and_ignores_the_rest(world):
    index = {row["id"] for row in read_rows(world, INDEX_CSV)}
    rows = read_rows(world, RETRIEVAL_SOLUTION)
    assert [row["id"] for row in rows] == [row["id"] for row in read_rows(world, TEST_CSV)]
    for row in rows:
        assert (row["images"] == "None") == (row["Usage"] == "Ignored")
        assert row["images"] == "None" or set(row["images"].split(" ")) <= index
    assert {row["Usage"] for row in rows} == {"Public", "Private", "Ignored"}
    named = {i for row in rows for i in row["images"].split(" ")} - {"None"}
    assert named and index - named  # what nobody looks for is in the index, too


def test_a_query_with_two_landmarks_finds_the_pictures_of_both(world):
    landmarks = {
        row["id"]: row["landmarks"].split() for row in read_rows(world, RECOGNITION_SOLUTION)
    }
    found = {row["id"]: set(row["images"].split()) for row in read_rows(world, RETRIEVAL_SOLUTION)}
    double = [i for i, names in landmarks.items() if len(names) == 2]
    for image_id in double:
        singles = [
            found[i]
            for i, names in landmarks.items()
            if names in [[n] for n in landmarks[image_id]]
        ]
        assert found[image_id] == set().union(*singles)
    assert len(double) == 2


def test_an_unknown_landmark_has_no_label_but_can_be_found(world):
    empty = {r["id"] for r in read_rows(world, RECOGNITION_SOLUTION) if not r["landmarks"]}
    found = {r["id"] for r in read_rows(world, RETRIEVAL_SOLUTION) if r["images"] != "None"}
    assert len(empty & found) == 1


def test_the_full_world_has_the_promised_size():
    plan = plan_world(0, WorldSize())
    counts = {split: len(plan.pictures(split)) for split in SPLITS}
    assert 1500 < counts["train"] < 1900 and 460 < counts["index"] < 570
    assert 240 < counts["test"] < 320
    per_place = worlds.group_by_label(plan.pictures("train"))
    assert sum(len(images) >= MIN_IMAGES for images in per_place.values()) == 20
    assert sum(len(images) < MIN_IMAGES for images in per_place.values()) == 14
    groups = [place.look_alikes for place in art.LANDMARKS if place.look_alikes]
    assert len(set(groups)) >= 4 and all(groups.count(name) >= 2 for name in groups)


def test_every_part_of_the_index_has_two_shards():
    assert WorldSize().index_shards == 2 * 6


def test_the_settings_of_the_demo_use_every_train_shard_and_hold_the_last_one_out():
    train, valid = start.DEFAULTS["train_shards"], start.DEFAULTS["valid_shards"]
    assert train == (0, valid[0]) and valid == (
        WorldSize().train_shards - 1,
        WorldSize().train_shards,
    )
    assert start.DEFAULTS["valid_every"] == train[1]  # after every epoch


# ----------------------------------------------------------------------- landmarks by the seed


def test_the_first_landmarks_of_a_seed_are_the_same_however_many_are_made_up():
    assert generate_landmarks(0, 30)[:10] == generate_landmarks(0, 10)
    assert generate_landmarks(1, 10) != generate_landmarks(0, 10)


def test_landmarks_have_names_and_looks_of_their_own():
    landmarks = (*art.LANDMARKS, *art.UNKNOWN_LANDMARKS, *generate_landmarks(0, 400))
    assert len({landmark.name for landmark in landmarks}) == len(landmarks)
    looks = {repr((landmark.draw.__name__, landmark.look)) for landmark in landmarks}
    assert len(looks) == len(landmarks)


def test_every_kind_of_landmark_is_made_up_equally_often_and_can_be_drawn():
    landmarks = generate_landmarks(0, 4 * len(KINDS))
    assert Counter(one.look_alikes for one in landmarks) == {kind.noun: 4 for kind in KINDS}
    assert any(one.draw is art.ensemble for one in landmarks)
    for landmark in landmarks:
        half_width, height = art.extent(landmark)
        assert 0 < half_width < 3 and 0.3 < height < 1.5


def test_the_parts_of_an_ensemble_are_drawn_smaller_and_aside():
    alone = art.Landmark("a", art.obelisk, (), {"stone": "#ffffff"})
    parts = ((art.obelisk, alone.look, 2.0, 0.5),)
    half_width, height = art.extent(alone)
    found = art.extent(art.Landmark("b", art.ensemble, (), {"parts": parts}))
    assert found == pytest.approx((2 + 0.5 * half_width, 0.5 * height))


def test_a_world_of_many_landmarks_has_enough_photographs_of_each_and_many_of_few():
    plan = plan_world(0, WorldSize.of(120))
    images = worlds.group_by_label(plan.pictures("train"))
    counts = sorted(map(len, images.values()))[-120:]
    assert counts[0] >= MIN_IMAGES and counts[-1] <= 50
    assert counts[60] < np.mean(counts) < 30
    assert set(images) == set(plan.landmark_ids) and len(plan.landmark_ids) == 120 + 14


def test_the_landmarks_of_the_demo_are_planned_as_ever():
    # The figures of the README are of these pictures: with others, raise WORLD_VERSION.
    plan = plan_world(0, WorldSize.of(art.NUM_FREQUENT))
    words = [repr(dataclasses.astuple(p)) for split in SPLITS for p in plan.pictures(split)]
    words += [repr(sorted(plan.landmark_ids.items())), repr(sorted(plan.ignored))]
    assert hashlib.md5("".join(words).encode()).hexdigest() == "0cbe3a6f491686c561aaccbec302b1ef"


def test_made_up_landmarks_are_drawn_and_shown_alike_by_any_number_of_workers(tmp_path):
    few = {"train_images": (1, 1), "index_images": (1, 1), "test_images": (1, 1)}
    size = dataclasses.replace(TINY, num_landmarks=art.NUM_FREQUENT + 1, num_rare=0, **few)
    one, two = (build_world(tmp_path / str(n), 0, size, num_workers=n) for n in (1, 2))
    assert all_bytes(one) == all_bytes(two)
    name = generate_landmarks(0, 1)[0].name.replace(" ", "_")
    assert name in (one / CATEGORY_CSV).read_text()


def test_the_sheet_of_a_large_world_shows_a_few_look_alikes_of_each_kind():
    plan = plan_world(0, WorldSize.of(300))
    shown = overview.choose_shown(plan)
    assert len(shown) == overview.MOST_TILES
    assert all(len(row) == 1 and len(row[0]) == 4 for row in overview.arrange(plan.places, shown))


@pytest.mark.parametrize("count", [19, 10**6])
def test_fewer_landmarks_than_the_demo_has_or_too_many_are_refused(count):
    with pytest.raises(ExpectedError, match="expected 20 .the demo. to .*; change --landmarks"):
        WorldSize.of(count)


# ------------------------------------------------------------------------------------- overview


def test_the_overview_is_a_picture_of_at_most_1600_pixels_width(world, tmp_path):
    overview.draw_overview(world, tmp_path / "demo.png")
    image = Image.open(tmp_path / "demo.png")
    assert image.width <= 1600 and image.height > 300
    assert len(image.convert("RGB").getcolors(1 << 24)) > 1000


def test_the_overview_of_a_folder_without_a_world_is_an_expected_error(tmp_path):
    with pytest.raises(ExpectedError, match="holds no complete demo world"):
        overview.draw_overview(tmp_path, tmp_path / "demo.png")


def test_look_alikes_stand_side_by_side():
    rows = overview.arrange(art.LANDMARKS, range(len(art.LANDMARKS)))
    assert all(sum(map(len, row)) <= overview.COLUMNS for row in rows)
    groups = [[art.LANDMARKS[i].look_alikes for i in group] for row in rows for group in row]
    assert ["clock towers"] * 3 in groups and ["lighthouses"] * 2 in groups


# -------------------------------------------------------------------------------------- serving


@pytest.fixture
def site(tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "site" / "train").mkdir(parents=True)
    (tmp_path / "site" / "train" / "letters.tar").write_bytes(b"abcdefghij")
    with serve(tmp_path / "site") as url:
        yield url


def ask(url, path, method="GET", headers=None):
    """Sends the path as it is: urllib would tidy up `..` before the server saw it."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


LETTERS = "/train/letters.tar"


def test_a_file_is_served_whole(site):
    status, headers, body = ask(site, LETTERS)
    assert (status, headers["Content-Length"], body) == (200, "10", b"abcdefghij")
    assert headers["ETag"] and headers["Last-Modified"].endswith("GMT")
    assert headers["Accept-Ranges"] == "bytes"


def test_head_answers_like_get_without_the_body(site):
    status, headers, body = ask(site, LETTERS, "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "10", b"")
    assert headers["ETag"] == ask(site, LETTERS)[1]["ETag"]


@pytest.mark.parametrize(
    ("wanted", "body", "content_range"),
    [
        ("bytes=2-4", b"cde", "bytes 2-4/10"),
        ("bytes=7-", b"hij", "bytes 7-9/10"),
        ("bytes=-2", b"ij", "bytes 8-9/10"),
        ("bytes=8-99", b"ij", "bytes 8-9/10"),
        ("bytes=-99", b"abcdefghij", "bytes 0-9/10"),
    ],
)
def test_a_byte_range_is_served(site, wanted, body, content_range):
    status, headers, answer = ask(site, LETTERS, headers={"Range": wanted})
    assert (status, answer) == (206, body)
    assert headers["Content-Range"] == content_range
    assert headers["Content-Length"] == str(len(body))


@pytest.mark.parametrize("wanted", ["bytes=10-", "bytes=-0"])
def test_a_range_behind_the_end_is_416(site, wanted):
    status, headers, _ = ask(site, LETTERS, headers={"Range": wanted})
    assert (status, headers["Content-Range"]) == (416, "bytes */10")


@pytest.mark.parametrize("wanted", ["bytes=4-2", "bytes=-", "bytes=0-1,4-5", "letters=0-1"])
def test_a_range_that_is_not_understood_gives_the_whole_file(site, wanted):
    status, _, body = ask(site, LETTERS, headers={"Range": wanted})
    assert (status, body) == (200, b"abcdefghij")


def test_if_range_gives_the_range_of_the_same_file_and_the_whole_of_another(site):
    etag = ask(site, LETTERS)[1]["ETag"]
    same = ask(site, LETTERS, headers={"Range": "bytes=5-", "If-Range": etag})
    other = ask(site, LETTERS, headers={"Range": "bytes=5-", "If-Range": '"another"'})
    assert (same[0], same[2]) == (206, b"fghij")
    assert (other[0], other[2]) == (200, b"abcdefghij")


@pytest.mark.parametrize(
    "path",
    [
        "/missing.tar",
        "/",
        "/train",
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/train/..%2f..%2fsecret.txt",
        "//etc/passwd",
        "/train/letters.tar%00",
    ],
)
def test_what_is_no_file_of_the_folder_is_404(site, path):
    assert ask(site, path)[::2] == (404, b"")


def test_one_connection_can_ask_several_times(site):
    connection = http.client.HTTPConnection(urlsplit(site).netloc, timeout=10)
    for path, status in (("/missing", 404), (LETTERS, 200), (LETTERS, 200)):
        connection.request("GET", path)
        answer = connection.getresponse()
        assert (answer.status, answer.version, len(answer.read())) == (
            status,
            11,
            10 * (status < 300),
        )
    connection.close()


def test_nothing_is_served_after_the_block_and_nothing_is_printed(tmp_path, capfd):
    (tmp_path / "a").write_bytes(b"a")
    with serve(tmp_path) as url:
        assert url.startswith("http://127.0.0.1:") and url.endswith("/")
        open_connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
        open_connection.request("GET", "/a")
        assert open_connection.getresponse().read() == b"a"
    with pytest.raises(OSError):
        ask(url, "/a")
    assert open_connection.sock.recv(1) == b""  # closed by the server
    open_connection.close()
    assert capfd.readouterr() == ("", "")


# --------------------------------------------------------------------------------- command line


def test_the_command_line_builds_a_world_and_prints_where_it_is(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(WorldSize, "of", lambda num_landmarks: asked.append(num_landmarks) or TINY)
    monkeypatch.setattr(worlds.os, "cpu_count", lambda: 1)
    main(["--output", str(tmp_path / "world"), "--seed", "3", "--landmarks", "300"])
    assert capsys.readouterr().out == f"{tmp_path / 'world'}\n{tmp_path / 'world' / 'demo.png'}\n"
    assert (tmp_path / "world" / "demo.png").stat().st_size > 10_000
    assert asked == [300]
