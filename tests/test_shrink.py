"""Tests of shrink.py: small pictures in the same layout, whole or not there, resumed, in parts."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from checks import one_line
from fault_server import Fault, FaultServer
from PIL import Image
from synthetic import encode, entry, make_image_id, make_source, member_name, pack, write_shard

import shrink
from data.images import decode_image
from data.sources import (
    CATEGORY_CSV,
    INDEX_CSV,
    RECOGNITION_SOLUTION,
    RETRIEVAL_SOLUTION,
    TABLES,
    TEST_CSV,
    TRAIN_CLEAN_CSV,
    TRAIN_CSV,
    Shard,
    Source,
)
from data.tars import list_members
from generators import Reading, ShardEnd, stream_batches
from recipes import Data
from runs import kernel
from runs.session import Session, manifest_name
from shrinking import slices, small_shards
from shrinking.manifests import find_done, read_page, write_page
from utils import ExpectedError, StoppedError, file_md5

ROOT = Path(shrink.__file__).resolve().parent
PIXELS = 32  # the synthetic pictures are 48x36
SPLITS = ("train", "index", "test")
NUM_SHARDS = {"train": 4, "index": 1, "test": 2}
SHARDS = [Shard(split, number) for split in SPLITS for number in range(NUM_SHARDS[split])]
draw_picture = small_shards.draw_picture
PICTURES = {"shrunk.png", "shrink.csv"}  # what differs from run to run


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Without waits, and without the picture, which takes longer than all else."""
    monkeypatch.setattr("data.connections.Connections.pause", lambda *_: None)
    monkeypatch.setattr(small_shards, "draw_picture", lambda *args, **options: None)


def run(source, output, *arguments):
    """Runs the script; gives its output folder."""
    places = [source] if isinstance(source, (str, Path)) else source
    words = [word for place in places for word in ("--source", str(place))]
    shrink.main([*words, "--output", str(output), "--pixels", str(PIXELS), *map(str, arguments)])
    return Path(output)


@pytest.fixture(scope="module")
def whole(data_set, tmp_path_factory):
    """The synthetic data set, shrunk in one run, with its picture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_shards, "draw_picture", draw_picture)
        return run(data_set.folder, tmp_path_factory.mktemp("whole") / "output")


def refusal(*args):
    with pytest.raises(ExpectedError) as caught:
        run(*args)
    return one_line(caught.value)


def images_of(path):
    """Reads a tar: dict, image id -> bytes, in its order."""
    data = Path(path).read_bytes()
    return {
        f"{member.image_id:016x}": data[member.offset : member.offset + member.size]
        for member in list_members(path)
    }


def contents(folder):
    """Gives the files of a data set: dict, name -> bytes; without what differs from run to run."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.name not in PICTURES and "scratch" not in path.parts
    }


def data_of(folder):
    """Gives the tars, md5 files, pages and tables of a data set, without the pages of parts."""
    return {name: data for name, data in contents(folder).items() if "/" in name}


# ---------------------------------------------------------------------------------- the data set


def test_every_tar_has_its_images_under_their_names_in_their_order(whole, data_set):
    for shard in SHARDS:
        before = images_of(data_set.folder / shard.path)
        after = images_of(whole / shard.path)
        assert list(after) == list(before) == data_set.image_ids[shard]
        for data in after.values():
            with Image.open(io.BytesIO(data)) as image:
                assert (image.size, image.format, image.mode) == ((43, PIXELS), "JPEG", "RGB")


def test_a_small_picture_looks_like_its_original(whole, data_set):
    before = images_of(data_set.folder / SHARDS[0].path)
    for image_id, data in images_of(whole / SHARDS[0].path).items():
        direct = decode_image(before[image_id], PIXELS).astype(float)
        assert np.abs(decode_image(data, PIXELS) - direct).mean() < 6


def test_the_output_is_a_source_with_its_md5_files_and_tables(whole, data_set, tmp_path, capsys):
    source = Source(whole, tmp_path / "scratch")
    assert {split: source.count_shards(split) for split in SPLITS} == NUM_SHARDS
    for shard in SHARDS:
        assert source.fetch_shard(shard) == whole / shard.path
        assert source.version_of(shard) == file_md5(whole / shard.path)
    for name in TABLES:
        assert (whole / name).read_bytes() == (data_set.folder / name).read_bytes()
    assert capsys.readouterr().err == ""


def test_the_output_streams_the_same_images_as_the_source(whole, data_set, tmp_path):
    reading = Reading(Data(image_size=PIXELS), 8, lambda image_id: 0, is_training=True)
    plan = [(0, Shard("train", 1))]
    streams = [
        list(stream_batches(Source(folder, tmp_path), plan, reading))
        for folder in (whole, data_set.folder)
    ]
    ours, theirs = (
        [item.image_ids.tolist() for item in items if not isinstance(item, ShardEnd)]
        for items in streams
    )
    assert ours == theirs


def test_a_mount_that_unpacked_the_tars_streams_the_same_images(whole, tmp_path):
    mount = shutil.copytree(whole, tmp_path / "mount")
    for shard in SHARDS:
        (mount / shard.path).unlink()
        folder = (mount / shard.path).with_suffix("")
        for image_id, data in images_of(whole / shard.path).items():
            path = folder / member_name(image_id)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    reading = Reading(Data(image_size=PIXELS), 8, lambda image_id: 0, is_training=True)
    plan = [(0, Shard("train", 0)), (0, Shard("train", 1)), (1, Shard("train", 0))]
    streams = []
    for scratch in ("first", "second"):
        items = stream_batches(Source(mount, tmp_path / scratch), plan, reading)
        streams.append([item for item in items if not isinstance(item, ShardEnd)])
    for one, other in zip(*streams, strict=True):
        assert one.image_ids.tolist() == other.image_ids.tolist()
        assert (one.images == other.images).all()
    seen = {f"{image_id:016x}" for batch in streams[0] for image_id in batch.image_ids.tolist()}
    assert seen == set(images_of(whole / plan[0][1].path)) | set(images_of(whole / plan[1][1].path))


def test_a_page_beside_each_tar_says_what_it_was_made_from(whole, data_set):
    shard = Shard("train", 1)
    page = read_page(whole / "train" / "images_001.json")
    kept = sum(map(len, images_of(data_set.folder / shard.path).values()))
    assert page == {
        "shard": "train/images_001.tar",
        "settings": {"pixels": PIXELS, "quality": 85, "labels": "full"},
        "source": file_md5(data_set.folder / shard.path),
        "source_bytes": (data_set.folder / shard.path).stat().st_size,
        "kept_bytes": kept,
        "images": 20,
        "bytes": (whole / shard.path).stat().st_size,
        "md5": file_md5(whole / shard.path),
        "bad_images": [],
    }


def test_a_history_a_picture_and_a_page_of_it_all_come_with_it(whole):
    with open(whole / "shrink.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["shard"] for row in rows] == sorted(shard.path for shard in SHARDS)
    assert all(float(row["images_per_s"]) > 0 for row in rows)
    assert sum(int(row["images"]) for row in rows) == 20 * 4 + 3 + 11 + 18
    page = json.loads((whole / "shrunk-0-of-1.json").read_text())
    assert (page["shards"], page["images"], page["left_out"]) == (7, 112, [])
    with Image.open(whole / "shrunk.png") as picture:
        assert picture.width > 500


def test_it_says_for_each_shard_how_many_and_how_large_before_and_after(data_set, tmp_path, capsys):
    run(data_set.folder, tmp_path / "output", "--split", "test")
    told = capsys.readouterr()
    lines = told.err.splitlines()
    assert lines[0].endswith(": 2 shards, 32 pixels, quality 85, full labels")
    size = sum((data_set.folder / f"test/images_00{n}.tar").stat().st_size for n in (0, 1))
    assert lines[1] == f"to read: 2 shards, {size / 1e9:.3g} GB; 0 s at 50 MB/s"
    assert re.fullmatch(
        r"test/images_000.tar: 9 images, 0\.0 -> 0\.0 MB, \d+ images/s, \d+ s to go \(1/2\)",
        lines[2],
    )
    assert lines[4].startswith("2 shards, 18 images, 0 bad, ")
    assert told.out.splitlines() == [str(tmp_path / "output" / "shrunk-0-of-1.json")]


def test_clean_keeps_only_the_images_of_the_clean_table_and_leaves_the_others_table_out(
    data_set, tmp_path
):
    source = shutil.copytree(data_set.folder, tmp_path / "source")
    lines = (source / TRAIN_CLEAN_CSV).read_text().splitlines()
    kept = [line.split(",") for line in lines[1:3]]
    (source / TRAIN_CLEAN_CSV).write_text("\n".join(lines[:3]) + "\n")
    output = run(source, tmp_path / "output", "--labels", "clean")
    clean_ids = {image_id for _, ids in kept for image_id in ids.split(" ")}
    for shard in SHARDS:
        expected = data_set.image_ids[shard]
        if shard.split == "train":
            expected = [image_id for image_id in expected if image_id in clean_ids]
            assert 0 < len(expected) < 20
        assert list(images_of(output / shard.path)) == expected
    assert not (output / TRAIN_CSV).exists() and (output / TRAIN_CLEAN_CSV).exists()
    (source / TRAIN_CLEAN_CSV).write_text("\n".join(lines) + "\n")
    told = refusal(source, output, "--labels", "clean")
    assert "shrunk with labels clean" in told and "expected the same settings" in told


def test_clean_images_of_which_none_is_there_are_told(data_set, tmp_path):
    source = shutil.copytree(data_set.folder, tmp_path / "source")
    (source / TRAIN_CLEAN_CSV).write_text(f"landmark_id,images\n17,{make_image_id('none')}\n")
    words = (source, tmp_path / "output", "--labels", "clean", "--split", "train")
    for _ in range(2):  # what is done says so, too
        assert refusal(*words) == (
            f"{source}: none of the 1 train images to keep is in its 4 train shards; expected the "
            "images that the table names; check that table and shards belong together; check "
            "--source"
        )
    assert not (tmp_path / "output/shrunk-0-of-1.json").exists()


# -------------------------------------------------------------------- threads, parts, several runs


def test_any_number_of_threads_gives_the_same_bytes(data_set, whole, tmp_path, monkeypatch):
    stream = small_shards.stream_shards
    for num_threads in (1, 4):

        def with_threads(*args, num_threads=num_threads, **kwargs):
            return stream(*args, num_threads=num_threads, **kwargs)

        monkeypatch.setattr(small_shards, "stream_shards", with_threads)
        output = run(data_set.folder, tmp_path / str(num_threads))
        assert contents(output) == contents(whole)


def test_parts_in_outputs_of_their_own_are_the_whole_byte_for_byte(data_set, whole, tmp_path):
    outputs = [
        run(data_set.folder, tmp_path / str(part), "--part", part, "--parts", 3)
        for part in range(3)
    ]
    tars = [{name for name in contents(one) if name.endswith(".tar")} for one in outputs]
    assert sum(map(len, tars)) == len(SHARDS) and all(tars)
    assert not (outputs[0] / "train/images_003.tar").exists()
    joined = {}
    for output in outputs:
        joined |= data_of(output)
    assert joined == data_of(whole)
    source = Source(outputs, tmp_path / "scratch")
    assert source.count_shards("train") == 4
    for shard in SHARDS:
        assert source.fetch_shard(shard).read_bytes() == (whole / shard.path).read_bytes()


def test_parts_may_share_an_output(data_set, whole, tmp_path):
    for part in (1, 0):
        output = run(data_set.folder, tmp_path / "output", "--part", part, "--parts", 2)
    assert data_of(output) == data_of(whole)
    assert len((output / "shrink.csv").read_text().splitlines()) == 1 + len(SHARDS)
    assert {"shrunk-0-of-2.json", "shrunk-1-of-2.json"} <= set(os.listdir(output))


def test_a_shrunk_data_set_shrinks_to_itself(whole, tmp_path):
    again = run(whole, tmp_path / "again")
    for shard in SHARDS:
        assert (again / shard.path).read_bytes() == (whole / shard.path).read_bytes()


def test_a_finished_run_does_nothing_again(data_set, whole, tmp_path, capsys, monkeypatch):
    output = shutil.copytree(whole, tmp_path / "output")
    monkeypatch.setattr(small_shards, "shrink_image", None)  # would be called
    capsys.readouterr()
    run(data_set.folder, output)
    assert contents(output) == contents(whole)
    assert len(capsys.readouterr().err.splitlines()) == 2


def spoil_page(folder):
    path = folder / "train/images_001.json"
    path.write_text(path.read_text().replace('"images": 20', '"images": 21'))


def cut_page(folder):
    path = folder / "train/images_001.json"
    path.write_text(path.read_text()[:60])


def cut_tar(folder):
    os.truncate(folder / "train/images_001.tar", 1000)


def lose_md5(folder):
    (folder / "md5sum/train/md5.images_001.txt").unlink()


def another_md5(folder):
    path = folder / "md5sum/train/md5.images_001.txt"
    path.write_text("0" * 32 + path.read_text()[32:])


def lose_page(folder):
    (folder / "train/images_001.json").unlink()


@pytest.mark.parametrize("spoil", [spoil_page, cut_page, cut_tar, lose_md5, another_md5, lose_page])
def test_a_shard_that_is_not_whole_with_its_page_is_shrunk_again(
    data_set, whole, tmp_path, spoil, capsys
):
    output = shutil.copytree(whole, tmp_path / "output")
    spoil(output)
    capsys.readouterr()
    run(data_set.folder, output)
    assert contents(output) == contents(whole)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "/1)" in line][0].startswith("train/images_001.tar: 20 ")


def test_a_shard_of_which_the_source_has_another_file_is_shrunk_again(data_set, whole, tmp_path):
    source = shutil.copytree(data_set.folder, tmp_path / "source")
    output = shutil.copytree(whole, tmp_path / "output")
    image_id = make_image_id("another")
    jpeg = encode(Image.new("RGB", (50, 40), "red"))
    write_shard(source, Shard("train", 1), pack([entry(member_name(image_id), jpeg)]))
    run(source, output)
    assert list(images_of(output / "train/images_001.tar")) == [image_id]
    changed = {name for name, data in data_of(output).items() if data != data_of(whole)[name]}
    assert changed == {
        "train/images_001.tar", "train/images_001.json", "md5sum/train/md5.images_001.txt",
    }  # fmt: skip


def test_a_table_that_changed_at_the_source_is_taken_anew(data_set, whole, tmp_path):
    source = shutil.copytree(data_set.folder, tmp_path / "source")
    output = shutil.copytree(whole, tmp_path / "output")
    relabelled = (source / TRAIN_CSV).read_text().replace(",17\n", ",402\n")
    (source / TRAIN_CSV).write_text(relabelled)
    run(source, output)
    assert (output / TRAIN_CSV).read_text() == relabelled != (whole / TRAIN_CSV).read_text()


def test_of_a_shard_that_is_left_out_no_older_file_stays(data_set, whole, tmp_path):
    source = shutil.copytree(data_set.folder, tmp_path / "source")
    output = shutil.copytree(whole, tmp_path / "output")
    write_shard(source, Shard("train", 1), b"no tar")
    run(source, output, "--skip-bad-shards")
    assert sorted(path.name for path in (output / "train").glob("*1.*")) == []
    assert not (output / "md5sum/train/md5.images_001.txt").exists()


def test_a_row_that_a_kill_prevented_follows_from_its_page(data_set, whole, tmp_path):
    output = shutil.copytree(whole, tmp_path / "output")
    lines = (output / "shrink.csv").read_text().splitlines()
    (output / "shrink.csv").write_text("\n".join(lines[:2] + lines[3:]) + "\n")
    run(data_set.folder, output)
    after = (output / "shrink.csv").read_text().splitlines()
    assert after[:2] + after[3:] == lines[:2] + lines[3:]  # the others keep their seconds
    assert after[2] == ",".join([*lines[2].split(",")[:5], "", ""])


def test_a_picture_that_cannot_be_drawn_costs_nothing(
    data_set, whole, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(small_shards, "draw_picture", draw_picture)
    monkeypatch.setattr(small_shards, "draw_pairs", lambda *args: 1 / 0)
    output = run(data_set.folder, tmp_path / "output", "--split", "index")
    assert (output / "index/images_000.json").exists()
    assert f"{output / 'shrunk.png'}: not drawn: ZeroDivisionError: " in capsys.readouterr().err


def test_other_settings_in_the_same_output_are_refused(data_set, whole, tmp_path):
    output = shutil.copytree(whole, tmp_path / "output")
    told = refusal(data_set.folder, output, "--quality", 70)
    assert "images_000.json: shrunk with quality 85, now it is 70; expected the same" in told
    assert contents(output) == contents(whole)


def test_the_output_cannot_be_one_of_the_sources(data_set, tmp_path):
    told = refusal([data_set.folder, tmp_path], tmp_path)
    assert "it is the source, too" in told


# -------------------------------------------------------------------------------- bad images, tars


def test_bad_images_are_left_out_counted_and_named(tmp_path, capsys):
    shard = Shard("train", 1)
    good = encode(Image.new("RGB", (90, 60), "blue"), quality=95)
    made = make_source(
        tmp_path / "source",
        replaced={(shard, 2): b"<html>", (shard, 5): good[: len(good) // 2], (shard, 7): good},
    )
    output = run(made.folder, tmp_path / "output")
    ids = made.image_ids[shard]
    assert list(images_of(output / shard.path)) == [i for i in ids if i not in (ids[2], ids[5])]
    page = read_page(output / "train/images_001.json")
    assert page["images"] == 18 and [name for name, _ in page["bad_images"]] == [ids[2], ids[5]]
    told = capsys.readouterr().err
    assert f"train/images_001.tar: image {ids[2]} left out: not an image\n" in told
    assert "train/images_001.tar: 18 images, 2 bad, " in told
    rows = (output / "shrink.csv").read_text().splitlines()
    assert rows[5].startswith("train/images_001.tar,18,2,")


def test_a_shard_with_too_many_bad_images_fails_or_is_left_out(tmp_path, capsys):
    shard = Shard("train", 1)
    made = make_source(tmp_path / "source", replaced={(shard, n): b"bad" for n in range(4)})
    output = tmp_path / "output"
    assert "train/images_001.tar: 4 of 20 images cannot be read" in refusal(made.folder, output)
    assert sorted(path.name for path in (output / "train").iterdir()) == [
        "images_000.json", "images_000.tar",
    ]  # fmt: skip
    run(made.folder, output, "--skip-bad-shards")
    assert not (output / "train/images_001.tar").exists()
    assert (output / "train/images_003.tar").exists()
    assert "6 shards, " in capsys.readouterr().err.splitlines()[-1]
    page = json.loads((output / "shrunk-0-of-1.json").read_text())
    assert page["left_out"] == ["train/images_001.tar"]
    write_shard(made.folder, shard, pack([]))  # mended
    run(made.folder, output)
    assert json.loads((output / "shrunk-0-of-1.json").read_text())["left_out"] == []


def test_a_shard_that_is_missing_is_told_or_left_out(tmp_path):
    made = make_source(tmp_path / "source")
    (made.folder / "train/images_001.tar").unlink()
    output = tmp_path / "output"
    assert "train/images_001.tar: no such file" in refusal(made.folder, output)
    assert (output / "train/images_000.tar").exists()
    run(made.folder, output, "--skip-bad-shards")
    page = json.loads((output / "shrunk-0-of-1.json").read_text())
    assert page["left_out"] == ["train/images_001.tar"]


def test_a_source_without_a_shard_is_told_and_not_taken_for_done(tmp_path):
    (tmp_path / "source").mkdir()
    told = refusal(tmp_path / "source", tmp_path / "output")
    assert "no train/images_000.tar; expected shards in the CVDF layout" in told
    assert not (tmp_path / "output/shrunk-0-of-1.json").exists()


def test_of_a_hostile_tar_only_the_images_come_and_nothing_is_written(tmp_path):
    made = make_source(tmp_path / "source", test_shards=1)
    image_id = make_image_id("one")
    jpeg = encode(Image.new("RGB", (50, 40), "red"))
    hostile = [
        entry("../../escaped.jpg", jpeg),
        entry("/tmp/escaped.jpg", jpeg),
        entry(member_name(make_image_id(2)), type=b"2", linkname="/etc/passwd"),
        entry(f"{image_id}.jpg", jpeg),
        entry(member_name(image_id), jpeg),
        entry(member_name(image_id), b"the same id again"),
    ]
    write_shard(made.folder, Shard("test", 0), pack(hostile))
    output = run(made.folder, tmp_path / "output", "--split", "test")
    assert list(images_of(output / "test/images_000.tar")) == [image_id]
    assert not list(tmp_path.rglob("*escaped*")) and not Path("/tmp/escaped.jpg").exists()


def test_a_shard_without_a_wanted_image_is_an_empty_tar(tmp_path):
    made = make_source(tmp_path / "source", test_shards=1)
    write_shard(made.folder, Shard("test", 0), pack([]))
    output = run(made.folder, tmp_path / "output", "--split", "test")
    assert images_of(output / "test/images_000.tar") == {}
    assert Source(output, tmp_path / "scratch").fetch_shard(Shard("test", 0))


# ------------------------------------------------------------------------------------------ network


@pytest.fixture
def server(data_set):
    with FaultServer() as server:
        server.files |= {
            f"/{path.relative_to(data_set.folder).as_posix()}": path.read_bytes()
            for path in data_set.folder.rglob("*")
            if path.is_file()
        }
        yield server


def test_faults_of_the_network_change_nothing(server, whole, tmp_path):
    server.faults |= {
        "/train/images_000.tar": [Fault(), Fault(close_after=9000), Fault(corrupt_at=12_000)],
        "/train/images_001.tar": [Fault(), Fault(status=503), Fault(ignore_range=True)],
        "/test/images_001.tar": [Fault(), Fault(reset_after=5000)],
        "/metadata/train.csv": [Fault(close_after=100)],
        "/md5sum/index/md5.images_000.txt": [Fault(status=500)],
    }
    output = run(server.address, tmp_path / "output")
    assert contents(output) == contents(whole)
    assert list((tmp_path / "output" / "scratch").iterdir()) == []


def test_a_server_that_fails_for_good_leaves_whole_shards_only(server, whole, tmp_path):
    server.faults["/train/images_002.tar"] = [Fault()] + [Fault(close_after=5000)] * 10
    told = refusal(server.address, tmp_path / "output")
    assert "images_002.tar: " in told and "after 10 attempts" in told
    found = contents(tmp_path / "output")
    assert found.items() <= contents(whole).items()
    assert "train/images_001.json" in found and "train/images_002.tar" not in found
    # In this process another run's downloads may still end in a scratch folder of the same name.
    run(server.address, tmp_path / "output", "--scratch", tmp_path / "scratch")
    assert contents(tmp_path / "output") == contents(whole)


# ---------------------------------------------------------------------------------- kills and stops


# shrink.py as `python shrink.py` runs it, killed when it puts a file in its place, or in a tar.
LAUNCHER = f"""
import os, runpy, sys
sys.path.insert(0, {str(ROOT)!r})
name, when = sys.argv.pop(1).split()
def kill(path, at):
    if str(path).endswith(name) and at == when:
        os.kill(os.getpid(), 9)
replace = os.replace
def watched(source, target):
    kill(target, "before")
    replace(source, target)
    kill(target, "after")
os.replace = watched
from data import tars
add = tars.add_image
def add_watched(tar, *args):
    add(tar, *args)
    if tar.offset > 9000:
        kill(tar.name, "within")
tars.add_image = add_watched
sys.argv[0] = "shrink.py"
runpy.run_path({str(ROOT / "shrink.py")!r}, run_name="__main__")
"""


def launch(moment, source, output):
    words = ["--source", str(source), "--output", str(output), "--pixels", str(PIXELS)]
    output.mkdir(exist_ok=True)
    (output / "shrunk.png").touch()  # not drawn again, which takes seconds
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, moment, *words],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_kills_at_any_moment_leave_whole_shards_and_the_next_run_goes_on(data_set, whole, tmp_path):
    output, expected = tmp_path / "output", contents(whole)
    num_pages = []
    for moment in (
        "images_000.tar within",
        "train/images_001.tar before",
        "train/images_001.tar after",
        "train/md5.images_002.txt after",
        "test/images_000.json after",
    ):
        process = launch(moment, data_set.folder, output)
        process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL
        found = {name: d for name, d in contents(output).items() if ".writing-" not in name}
        found = {name: d for name, d in found.items() if not name.startswith(".")}
        assert found.items() <= expected.items()  # nothing half-written under its name
        num_pages.append(sum("images_" in name and ".json" in name for name in found))
    assert num_pages == [0, 1, 1, 2, 6]
    run(data_set.folder, output)
    left = contents(output)
    # A kill in the midst of a write leaves a file that only a later write of the same removes.
    assert {name: d for name, d in left.items() if not name.startswith(".")} == expected


def test_a_signal_ends_it_cleanly_and_says_what_remains(data_set, whole, tmp_path):
    with FaultServer() as server:
        server.files |= {
            f"/{path.relative_to(data_set.folder).as_posix()}": path.read_bytes()
            for path in data_set.folder.rglob("*")
            if path.is_file()
        }
        server.faults["/train/images_001.tar"] = [Fault(), Fault(), Fault(silence_after=5000)]
        output = tmp_path / "output"
        process = launch("nothing never", server.address, output)
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("train/images_000.tar: "):
                break
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=60)[1]
    assert process.returncode == 0, rest
    assert rest.splitlines()[-1] == (
        "stopped by SIGTERM: 1 of 7 shards shrunk; run the same command again to continue"
    )
    run(data_set.folder, output)
    assert contents(output) == contents(whole)


def test_a_shard_that_would_not_fit_into_the_time_is_not_begun(data_set, tmp_path, monkeypatch):
    seconds = iter(range(0, 10**6, 1800))  # each shard takes half an hour or more
    monkeypatch.setattr(small_shards.time, "perf_counter", lambda: next(seconds))
    with pytest.raises(StoppedError, match="the time limit: 1 of 7 shards shrunk"):
        run(data_set.folder, tmp_path / "output", "--max-hours", "0.4")


# ----------------------------------------------------------------------------------------- its room


def test_an_output_that_would_become_too_large_is_told_after_the_first_shard(
    data_set, whole, tmp_path
):
    size = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    told = refusal(data_set.folder, tmp_path / "output", "--max-gb", 0.6 * size / 1e9)
    assert re.search(r"GB in the end, .* which takes 2 parts, each in an output of its own", told)
    assert told.endswith("; change --parts")
    assert [p.name for p in (tmp_path / "output").rglob("*.tar")] == ["images_000.tar"]
    for part in range(2):
        output = tmp_path / f"part-{part}"
        words = ("--max-gb", 0.6 * size / 1e9, "--part", part, "--parts", 2)
        run(data_set.folder, output, *words)
        tables_and_tars = [path for path in output.rglob("*") if path.suffix in (".csv", ".tar")]
        assert sum(path.stat().st_size for path in tables_and_tars) < 0.6 * size


def test_the_limit_counts_while_it_runs_when_the_estimate_was_too_low(tmp_path):
    made = make_source(tmp_path / "source", test_shards=4)
    rng = np.random.default_rng(0)
    for number, height in enumerate((320, 320, 32, 320)):  # the third cannot become smaller
        noise = rng.integers(0, 255, (height, 22_400 // height, 3), np.uint8)
        jpeg = encode(Image.fromarray(noise), quality=95)
        images = [entry(member_name(make_image_id(number, n)), jpeg) for n in range(10)]
        write_shard(made.folder, Shard("test", number), pack(images))
    size = (made.folder / "test/images_002.tar").stat().st_size
    tables = sum(
        (made.folder / name).stat().st_size for name in set(TABLES) - {TRAIN_CSV, TRAIN_CLEAN_CSV}
    )
    output = tmp_path / "output"
    words = ("--split", "test", "--max-gb", (tables + size) / 1e9)
    told = refusal(made.folder, output, *words)
    assert "; change --parts" in told
    assert (output / "test/images_002.tar").exists()
    assert not (output / "test/images_003.tar").exists()


def test_tables_count_in_the_limit_too(tmp_path):
    session = SimpleNamespace(output=tmp_path, path=lambda name: tmp_path / name)
    (tmp_path / "metadata").mkdir()
    (tmp_path / TEST_CSV).write_bytes(bytes(1000))
    small_shards.check_room(session, small_shards.Share([], 1, 1000, False), {}, {}, [], True)
    with pytest.raises(ExpectedError, match="takes 3 parts"):
        small_shards.check_room(session, small_shards.Share([], 1, 500, False), {}, {}, [], True)


def test_a_shard_whose_size_nobody_says_counts_as_the_others():
    sizes = {SHARDS[0]: 300, SHARDS[1]: 0, SHARDS[2]: 500}
    source = type("Source", (), {"size_of": staticmethod(sizes.get)})
    assert small_shards._ask_sizes(source, SHARDS[:3]) == sizes | {SHARDS[1]: 400}
    assert small_shards._ask_sizes(source, []) == {}


def test_what_comes_is_estimated_from_the_pictures_that_were_kept():
    page = {"kept_bytes": 100, "source_bytes": 200, "bytes": 50}  # half were kept, and halved
    train, other, index = Shard("train", 0), Shard("train", 1), Shard("index", 0)
    sizes = {train: 200, other: 1000, index: 600}
    assert small_shards.estimate_bytes({train: page}, sizes, [other]) == 250
    assert small_shards.estimate_bytes({train: page}, sizes, [other, index]) == 250 + 300
    assert small_shards.estimate_bytes({}, sizes, [other]) == 0


def test_a_full_disk_is_told_before_it_is_full(data_set, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.shutil.disk_usage", lambda folder: SimpleNamespace(free=4096))
    told = refusal(data_set.folder, tmp_path / "output")
    assert "GB free; expected " in told and "for 6 more shards" in told


# ------------------------------------------------------------------------------------ on Kaggle


@pytest.fixture
def mounts(tmp_path, monkeypatch):
    """Plays a Kaggle kernel; gives the folder of mounted kernel outputs."""
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    monkeypatch.setattr(kernel, "FOLDER", tmp_path)
    folder = tmp_path / "input" / "notebooks" / "someone"
    folder.mkdir(parents=True)
    return folder


def earlier_session(whole, folder):
    """Leaves the first five shards as an earlier session would have."""
    shutil.copytree(whole, folder)
    for name in ("test/images_000", "test/images_001"):
        for suffix in (".tar", ".json"):
            (folder / f"{name}{suffix}").unlink()
    (folder / "shrunk-0-of-1.json").unlink()


def test_what_an_earlier_session_shrunk_is_done_and_not_copied(
    data_set, whole, mounts, tmp_path, capsys
):
    earlier_session(whole, mounts / "first")
    shrink.main(["--source", str(data_set.folder), "--pixels", str(PIXELS)])
    output = tmp_path / "working"
    assert sorted(path.name for path in output.rglob("*.tar")) == [
        "images_000.tar", "images_001.tar",
    ]  # fmt: skip
    told = capsys.readouterr().err
    assert f"{mounts / 'first'}: 5 shards were shrunk there; it belongs to this data set" in told
    source = Source([output, mounts / "first"], tmp_path / "scratch")
    for shard in SHARDS:
        assert source.fetch_shard(shard).read_bytes() == (whole / shard.path).read_bytes()


def test_what_an_earlier_session_shrunk_is_copied_where_the_output_replaces_its(
    data_set, whole, mounts, tmp_path
):
    earlier_session(whole, mounts / "first")
    damaged = mounts / "first" / "train/images_001.tar"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    words = ["--source", str(data_set.folder), "--pixels", str(PIXELS), "--copy-earlier"]
    shrink.main(words)
    assert contents(tmp_path / "working") == contents(whole)
    assert len((tmp_path / "working" / "shrink.csv").read_text().splitlines()) == 8


def test_the_own_page_of_a_shard_goes_before_that_of_an_earlier_session(
    data_set, whole, mounts, tmp_path
):
    shard, own, earlier = SHARDS[0], tmp_path / "working", mounts / "first"
    for folder in (own, earlier):
        shutil.copytree(whole, folder)
    name = manifest_name(shard)
    page = read_page(own / name)
    write_page(earlier / name, page | {"images": 999})
    session = Session(own, Source(str(data_set.folder), tmp_path / "scratch"), stop=None)
    settings = page["settings"]
    assert find_done(session, [shard], lambda one: settings, False) == {shard: page}


def test_an_earlier_session_with_other_settings_is_left_alone(data_set, whole, mounts, tmp_path):
    earlier_session(whole, mounts / "first")
    words = ["--source", str(data_set.folder), "--pixels", str(PIXELS), "--quality", "70"]
    shrink.main(words)
    assert len(list((tmp_path / "working").rglob("*.tar"))) == len(SHARDS)


def test_a_kernel_takes_all_that_it_has_mounted_for_one_source(data_set, whole, mounts, tmp_path):
    for part in range(2):
        words = ["--part", str(part), "--parts", "2", "--output", str(mounts / f"shrink-{part}")]
        shrink.main(["--source", str(data_set.folder), "--pixels", str(PIXELS), *words])
    (mounts / "model").mkdir()
    args = shrink.parse_arguments(["--source", "inputs"])
    assert shrink.session_settings(args)["source"] == [mounts / "shrink-0", mounts / "shrink-1"]
    output = run("inputs", tmp_path / "again")
    for shard in SHARDS:
        assert (output / shard.path).read_bytes() == (whole / shard.path).read_bytes()


def test_a_kernel_without_a_mounted_data_set_says_what_is_there(mounts):
    (mounts / "model").mkdir()
    told = refusal("inputs", mounts)
    assert told.startswith(f"{mounts.parent.parent}: no data set among {mounts / 'model'}; ")


# ------------------------------------------------------------------------------------ command line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--part", "2", "--parts", "2"], "argument --part: 2; expected 0 to 1 of --parts"),
        (["--quality", "96"], "'96'; expected a number from 1 to 95"),
        (["--max-gb", "0"], "'0'; expected a number from 1e-06 up"),
        (["--pixels", "8"], "'8'; expected a number from 32 to 4096"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(capsys, words, told):
    with pytest.raises(SystemExit) as caught:
        shrink.parse_arguments(words)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_the_demo_is_the_source_unless_there_is_another():
    for words, expected in (
        ([], ["https://s3.amazonaws.com/google-landmark/"]),
        (["--demo"], None),
        (["--demo", "--source", "a"], ["a"]),
        (["--source", "a", "--source", "b"], ["a", "b"]),
    ):
        args = shrink.parse_arguments(words)
        assert shrink.session_settings(args)["source"] == expected


# ------------------------------------------------------------------------------------------ slices


def slice_of(data_set, tmp_path, lines, *words, option="--images", source=None):
    path = tmp_path / "wanted.txt"
    path.write_text("\n".join(lines) + "\n")
    return run(source or data_set.folder, tmp_path / "output", option, path, *words)


def column(path, name="id"):
    with open(path, newline="") as file:
        return [row[name] for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def wanted(data_set):
    """Two train images, of the first shard and the third; an index and a test image."""
    shards = (Shard("train", 0), Shard("train", 2), Shard("index", 0), Shard("test", 0))
    return [data_set.image_ids[shard][4] for shard in shards]


def test_just_the_images_of_a_list_are_kept_and_no_shard_behind_them(data_set, wanted, tmp_path):
    output = slice_of(data_set, tmp_path, ["id", *wanted])
    found = {str(p.relative_to(output)): list(images_of(p)) for p in sorted(output.rglob("*.tar"))}
    assert found == {
        "index/images_000.tar": [wanted[2]], "test/images_000.tar": [wanted[3]],
        "train/images_000.tar": [wanted[0]], "train/images_001.tar": [],
        "train/images_002.tar": [wanted[1]],
    }  # fmt: skip
    assert Source(output, tmp_path / "scratch").count_shards("train") == 3


def test_a_wanted_image_that_cannot_be_read_is_not_looked_for_in_all_shards(tmp_path):
    shard = Shard("train", 0)
    made = make_source(tmp_path / "source", replaced={(shard, 4): b"no picture"})
    ids = made.image_ids[shard]
    output = slice_of(made, tmp_path, ["id", ids[4], ids[5]])
    assert [path.name for path in output.rglob("*.tar")] == ["images_000.tar"]
    assert list(images_of(output / shard.path)) == [ids[5]]


def test_a_query_of_a_slice_that_lost_all_its_answers_counts_for_no_leaderboard(tmp_path):
    ids, path = [f"{number:016x}" for number in range(4)], tmp_path / "solution.csv"
    path.write_text(
        f"id,images,Usage\n{ids[0]},{ids[2]} {ids[3]},Public\n{ids[1]},{ids[3]},Private\n"
    )
    kept = {"test": np.arange(2, dtype=np.uint64), "index": np.array([2], np.uint64)}
    table = slices._cut_table(RETRIEVAL_SOLUTION, path, kept, set())
    assert table.to_numpy().tolist() == [[ids[0], ids[2], "Public"], [ids[1], "None", "Ignored"]]


def test_the_tables_of_a_slice_name_its_images_alone(data_set, wanted, tmp_path):
    output = slice_of(data_set, tmp_path, ["id", *wanted])
    assert sorted(column(output / TRAIN_CSV)) == sorted(wanted[:2])
    landmarks = {data_set.landmark_of[one] for one in wanted[:2]}
    assert set(map(int, column(output / TRAIN_CSV, "landmark_id"))) == landmarks
    assert set(map(int, column(output / CATEGORY_CSV, "landmark_id"))) == landmarks
    assert set(" ".join(column(output / TRAIN_CLEAN_CSV, "images")).split()) <= set(wanted[:2])
    assert column(output / INDEX_CSV) == [wanted[2]]
    for name in (TEST_CSV, RECOGNITION_SOLUTION, RETRIEVAL_SOLUTION):
        assert column(output / name) == [wanted[3]]
    (images,) = column(output / RETRIEVAL_SOLUTION, "images")
    (usage,) = column(output / RETRIEVAL_SOLUTION, "Usage")
    assert (images, usage == "Ignored") in ((wanted[2], False), ("None", True))


def test_a_slice_goes_on_where_it_stopped_and_reads_nothing_once_it_is_whole(
    data_set, wanted, tmp_path, monkeypatch
):
    output = slice_of(data_set, tmp_path, ["id", *wanted])
    before = contents(output)
    (output / "train/images_001.json").unlink()
    slice_of(data_set, tmp_path, ["id", *wanted])
    assert contents(output) == before
    monkeypatch.setattr(small_shards, "stream_shards", None)  # would be called
    slice_of(data_set, tmp_path, ["id", *wanted])
    assert contents(output) == before


def test_another_slice_or_the_whole_in_the_same_output_is_refused(data_set, wanted, tmp_path):
    output = slice_of(data_set, tmp_path, ["id", *wanted])
    before = contents(output)
    for others in (wanted[1:], wanted[:2]):  # of the same splits, and of train alone
        with pytest.raises(ExpectedError, match="images_000.json: shrunk with images "):
            slice_of(data_set, tmp_path, ["id", *others])
    assert "shrunk with images " in refusal(data_set.folder, output)
    assert contents(output) == before


def test_parts_of_other_sizes_do_not_share_an_output(data_set, tmp_path):
    output = run(data_set.folder, tmp_path / "output", "--part", 0, "--parts", 2)
    told = refusal(data_set.folder, output, "--part", 1, "--parts", 2, "--pixels", 64)
    assert "images_000.json: shrunk with pixels 32, now it is 64; expected the same" in told


def test_what_a_slice_costs_is_told_before_it_begins(data_set, wanted, tmp_path, capsys):
    slice_of(data_set, tmp_path, ["id", *wanted, "00000000000000aa"])
    told = capsys.readouterr().err
    assert "wanted.txt: 1 of its 5 images are not in the tables; left out\n" in told
    assert re.search(
        r"to read: 7 shards, .* GB, or fewer if its 2 train and 1 index and 1 test images are "
        r"found before; 0 s at 50 MB/s\n",
        told,
    )


@pytest.fixture
def named_source(data_set, tmp_path):
    """The synthetic data set with names of two landmarks."""
    source = shutil.copytree(data_set.folder, tmp_path / "source")
    prefix = "http://commons.wikimedia.org/wiki/Category:"
    rows = [f"{key},{prefix}{name}" for key, name in ((17, "Old_Tower"), (402, "Tower_(Rome)"))]
    (source / CATEGORY_CSV).write_text("\n".join(["landmark_id,category", *rows]) + "\n")
    return source


@pytest.mark.parametrize(
    ("lines", "landmarks"),
    [(["402"], {402}), (["old tower"], {17}), (["*TOWER*", ""], {17, 402}), (["tower*"], {402})],
)
def test_landmarks_by_id_name_or_pattern_keep_their_train_images(
    data_set, named_source, tmp_path, lines, landmarks
):
    options = {"option": "--landmarks", "source": named_source}
    output = slice_of(data_set, tmp_path, lines, **options)
    expected = {one for one, landmark in data_set.landmark_of.items() if landmark in landmarks}
    found = [image for path in output.rglob("*.tar") for image in images_of(path)]
    assert set(found) == set(column(output / TRAIN_CSV)) <= expected and found
    assert {path.parent.name for path in output.rglob("*.tar")} == {"train"}


def test_a_line_that_is_no_landmark_is_named(data_set, named_source, tmp_path):
    options = {"option": "--landmarks", "source": named_source}
    with pytest.raises(ExpectedError, match="wanted.txt: line 2, 'Eiffel', is no landmark of "):
        slice_of(data_set, tmp_path, ["17", "Eiffel"], **options)


def test_a_list_of_images_that_are_not_there_is_refused(data_set, tmp_path):
    with pytest.raises(ExpectedError, match="no full image of train, index, test; expected images"):
        slice_of(data_set, tmp_path, ["id", "00000000000000aa"])


def test_a_slice_of_the_clean_images_is_smaller(data_set, tmp_path):
    ids = data_set.image_ids[Shard("train", 0)]
    source = shutil.copytree(data_set.folder, tmp_path / "source")
    line = f"{data_set.landmark_of[ids[0]]},{ids[0]}"
    (source / TRAIN_CLEAN_CSV).write_text(f"landmark_id,images\n{line}\n")
    output = slice_of(data_set, tmp_path, ["id", *ids], "--labels", "clean", source=source)
    assert list(images_of(output / "train/images_000.tar")) == ids[:1]
    assert (output / TRAIN_CLEAN_CSV).read_text() == f"landmark_id,images\n{line}\n"
    assert not (output / TRAIN_CSV).exists()
