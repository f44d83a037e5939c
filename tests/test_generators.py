"""Tests of the way from a shard to batches: bad images, batches, background work."""

import itertools
import re
import tarfile
import threading
import time
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
from checks import one_line
from synthetic import (
    draw,
    encode,
    entry,
    make_image_id,
    make_source,
    member_name,
    pack,
    write_shard,
)

from data import tars
from data.connections import Connections
from data.images import FILL, decode_image, draw_view
from data.sources import Shard, Source
from data.tars import MAX_MEMBER_BYTES
from demo.server import serve
from generators import Reading, ShardEnd, fetch_ahead, stream_batches
from recipes import Data
from utils import ExpectedError, read_at

GOOD_ID, OTHER_ID = make_image_id("good"), make_image_id("other")
HOSTILE = [
    entry(f"../../../{GOOD_ID}.jpg"),
    entry(f"/{member_name(GOOD_ID)}"),
    entry(member_name(GOOD_ID), type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    entry("index.html", b"<html>"),
]
JPEG = encode(draw(17, np.random.default_rng(0)), quality=95)
HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"

PLAIN = Data(image_size=24, augment=False)


def ids_array(image_ids):
    return np.array(list(image_ids), np.uint64)


def read_all(source, shard, data=PLAIN, **settings):
    """Reads one shard; gives (list of batches, ShardEnd)."""
    *batches, end = stream_batches(source, [(0, shard)], Reading(data, 4, **settings))
    return batches, end


# ------------------------------------------------------------------------------ tars as shards


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_a_shard_full_of_hostile_entries_gives_its_one_image_and_writes_nothing(
    tmp_path, tar_format
):
    folder, shard = tmp_path / "a" / "b" / "source", Shard("test", 0)
    wanted = ids_array([int(GOOD_ID, 16), int(OTHER_ID, 16)])
    write_shard(folder, shard, pack([*HOSTILE, entry(member_name(OTHER_ID), JPEG)], tar_format))
    before = tree(tmp_path)
    batches, end = read_all(Source(folder, tmp_path / "scratch"), shard, image_ids=wanted)
    assert [batch.image_ids.tolist() for batch in batches] == [[int(OTHER_ID, 16)]]
    assert end == ShardEnd(shard, 1, ())
    assert tree(tmp_path) == before


def test_ids_that_are_not_wanted_are_not_decoded(tmp_path):
    shard, ids = Shard("test", 0), [make_image_id(n) for n in range(4)]
    bad = [entry(member_name(image_id), HTML) for image_id in ids[:3]]
    write_shard(tmp_path, shard, pack([*bad, entry(member_name(ids[3]), JPEG)]))
    source = Source(tmp_path, tmp_path / "scratch")
    wanted = int(ids[3], 16)
    _, end = read_all(source, shard, image_ids=ids_array({wanted, 12345}))
    assert end == ShardEnd(shard, 1, ())
    _, end = read_all(source, shard, class_of={wanted: 7}.get)
    assert end == ShardEnd(shard, 1, ())


def test_a_huge_member_is_a_bad_image_and_is_not_read(tmp_path, monkeypatch):
    shard, path = Shard("test", 0), tmp_path / "test" / "images_000.tar"
    path.parent.mkdir()
    info, _ = entry(member_name(GOOD_ID))
    info.size = MAX_MEMBER_BYTES + 1
    with open(path, "wb") as file:  # a file with a hole: it takes no space on the disk
        file.write(info.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(512 + MAX_MEMBER_BYTES + 512 + 1024)
    monkeypatch.setattr(
        tars, "read_at", lambda *args: read_at(*args) if args[1] < 99_999 else 1 / 0
    )
    _, end = read_all(
        Source(tmp_path, tmp_path / "s"), shard, image_ids=ids_array({int(GOOD_ID, 16)})
    )
    assert end == ShardEnd(shard, 0, ((int(GOOD_ID, 16), f"{MAX_MEMBER_BYTES + 1} bytes"),))


@pytest.mark.parametrize("num_blocks", [1, 2, 20])
def test_a_tar_of_end_blocks_alone_is_an_empty_shard(num_blocks, tmp_path):
    shard = Shard("test", 0)
    write_shard(tmp_path, shard, bytes(512 * num_blocks))
    for settings in ({"class_of": {}.get}, {"image_ids": ids_array({1})}):
        batches, end = read_all(Source(tmp_path, tmp_path / "s"), shard, **settings)
        assert (batches, end) == ([], ShardEnd(shard, 0, ()))


# ------------------------------------------------------------------------------------- batches


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_source(tmp_path_factory.mktemp("generators") / "source")


@pytest.fixture
def source(made, tmp_path):
    return Source(made.folder, tmp_path / "scratch")


def class_of_all(made, split="train"):
    """Numbers the images of a split, so that each class index tells which image it belongs to."""
    return {int(image_id, 16): n for n, image_id in enumerate(made.of_split(split))}


def jpegs(made, shard):
    """Gives image id -> bytes of a shard, read by tarfile."""
    with tarfile.open(made.folder / shard.path) as tar:
        return {int(info.name[6:-4], 16): tar.extractfile(info).read() for info in tar}


@pytest.mark.parametrize(
    ("batch_size", "num_batches"), [(1, 20), (3, 7), (8, 3), (10, 2), (19, 2), (20, 1)]
)
def test_training_batches_are_all_full_and_hold_every_image(made, source, batch_size, num_batches):
    shard, classes = Shard("train", 0), class_of_all(made)
    reading = Reading(PLAIN, batch_size, classes.get, is_training=True)
    *batches, end = stream_batches(source, [(0, shard)], reading)
    assert end == ShardEnd(shard, 20, ())
    assert len(batches) == num_batches
    for batch in batches:
        assert batch.images.shape == (batch_size, 24, 24, 3)
        assert batch.images.dtype == np.uint8
        assert batch.image_ids.shape == batch.class_indices.shape == (batch_size,)
        assert batch.class_indices.dtype == np.int32
        assert batch.class_indices.tolist() == [classes[i] for i in batch.image_ids.tolist()]
    seen = np.concatenate([batch.image_ids for batch in batches])
    assert set(seen.tolist()) == {int(i, 16) for i in made.image_ids[shard]}
    assert len(set(seen[:20].tolist())) == 20
    assert seen[20:].tolist() == seen[: len(seen) - 20].tolist()  # filled up from the beginning


def test_every_row_of_a_batch_shows_the_image_of_its_id(made, source):
    shard, classes = Shard("train", 0), class_of_all(made)
    data = jpegs(made, shard)
    for settings in ({"class_of": classes.get}, {"image_ids": ids_array(classes)}):
        batches, _ = read_all(source, shard, **settings)
        for batch in batches:
            for image_id, pixels in zip(batch.image_ids.tolist(), batch.images, strict=False):
                np.testing.assert_array_equal(pixels, decode_image(data[image_id], 24))


def test_prediction_batches_follow_the_tar_and_the_filling_does_not_count(made, source):
    shard = Shard("test", 0)
    wanted = ids_array(class_of_all(made, "test"))
    batches, end = read_all(source, shard, image_ids=wanted)
    assert [len(batch.image_ids) for batch in batches] == [4, 4, 1]
    assert {batch.images.shape for batch in batches} == {(4, 24, 24, 3)}
    assert all(batch.class_indices is None for batch in batches)
    found = [f"{i:016x}" for batch in batches for i in batch.image_ids.tolist()]
    assert found == made.image_ids[shard]
    assert end == ShardEnd(shard, 9, ())


def test_held_out_batches_have_classes_in_the_order_of_the_tar_and_no_filling(made, source):
    shard, classes = Shard("train", 0), class_of_all(made)
    batches, _ = read_all(source, shard, class_of=classes.get)
    in_tar = [int(image_id, 16) for image_id in made.image_ids[shard]]
    assert [i for batch in batches for i in batch.image_ids.tolist()] == in_tar
    found = [index for batch in batches for index in batch.class_indices.tolist()]
    assert found == [classes[image_id] for image_id in in_tar]


def test_a_batch_tells_where_its_images_lie_in_the_tar(made, source):
    shard = Shard("test", 0)
    tar, data = (made.folder / shard.path).read_bytes(), jpegs(made, shard)
    batches, _ = read_all(source, shard, image_ids=ids_array(data))
    for batch in batches:
        rows = zip(batch.image_ids.tolist(), batch.locations.tolist(), strict=True)
        for image_id, (offset, size) in rows:
            assert tar[offset : offset + size] == data[image_id]


def test_a_shard_of_fewer_images_than_a_batch_repeats_its_own(made, source):
    shard = Shard("train", 0)
    chosen = {int(i, 16): n for n, i in enumerate(made.image_ids[shard][:3])}
    *batches, end = stream_batches(
        source, [(0, shard)], Reading(PLAIN, 8, chosen.get, is_training=True)
    )
    (batch,) = batches
    assert sorted(batch.class_indices[:3].tolist()) == [0, 1, 2]
    assert batch.class_indices[3:6].tolist() == batch.class_indices[:3].tolist()
    assert batch.class_indices[6:].tolist() == batch.class_indices[:2].tolist()
    np.testing.assert_array_equal(batch.images[3:6], batch.images[:3])
    assert end == ShardEnd(shard, 3, ())


def test_a_shard_without_a_wanted_image_has_an_end_and_no_batch(source):
    shards = [Shard("train", 0), Shard("train", 1)]
    items = list(stream_batches(source, [(0, s) for s in shards], Reading(PLAIN, 4, {}.get)))
    assert items == [ShardEnd(shard, 0, ()) for shard in shards]


# ----------------------------------------------------------------------- order and augmentation


EVERYTHING = Data(image_size=24, augment=True, geometry=0.7, erase=0.5)


def train_stream(source, made, plan, data=PLAIN, **settings):
    """Gives (image ids in order, all pixels) of a training plan."""
    reading = Reading(data, 5, class_of_all(made).get, is_training=True, **settings)
    items = list(stream_batches(source, plan, reading))
    batches = [item for item in items if not isinstance(item, ShardEnd)]
    ids = np.concatenate([batch.image_ids for batch in batches]).tolist()
    return ids, np.concatenate([batch.images for batch in batches])


PLAN = [(epoch, Shard("train", number)) for epoch in range(2) for number in range(2)]


def test_the_same_seed_gives_the_same_order_and_pixels_with_any_number_of_threads(made, source):
    ids, pixels = train_stream(source, made, PLAN, data=EVERYTHING, num_threads=1)
    for num_threads in (2, 5):
        again = train_stream(source, made, PLAN, data=EVERYTHING, num_threads=num_threads)
        assert again[0] == ids
        np.testing.assert_array_equal(again[1], pixels)


def test_what_a_shard_gives_depends_on_nothing_that_was_read_before_it(made, source):
    ids, pixels = train_stream(source, made, PLAN, data=EVERYTHING)
    last_ids, last_pixels = train_stream(source, made, PLAN[3:], data=EVERYTHING)
    assert ids[-20:] == last_ids
    np.testing.assert_array_equal(pixels[-20:], last_pixels)


def test_another_epoch_seed_or_shard_has_another_order(made, source):
    def places(epoch, number, seed):
        shard = Shard("train", number)
        ids, _ = train_stream(source, made, [(epoch, shard)], seed=seed)
        in_tar = made.image_ids[shard]
        return tuple(in_tar.index(f"{i:016x}") for i in ids)

    orders = [places(*key) for key in itertools.product((0, 1), (0, 1), (0, 1))]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len(set(orders)) == 8
    assert tuple(range(20)) not in orders


def test_augmentation_differs_between_epochs_and_seeds_and_is_absent_when_off(made, source):
    data = {i: d for n in range(2) for i, d in jpegs(made, Shard("train", n)).items()}

    def views(epoch, **settings):
        ids, pixels = train_stream(source, made, [(epoch, Shard("train", 0))], **settings)
        return {image_id: view.tobytes() for image_id, view in zip(ids, pixels, strict=True)}

    first = views(0, data=EVERYTHING)
    for other in (views(1, data=EVERYTHING), views(0, data=EVERYTHING, seed=1)):
        assert all(other[image_id] != first[image_id] for image_id in first)
    plain = {image_id: decode_image(data[image_id], 24).tobytes() for image_id in first}
    assert views(0) == views(1) == views(0, seed=1) == plain


def test_an_image_is_seen_as_seed_epoch_and_its_id_say(made, source):
    shard = Shard("train", 1)
    ids, pixels = train_stream(
        source, made, [(1, shard)], seed=3, data=replace(EVERYTHING, keep_aspect=True)
    )
    data = jpegs(made, shard)
    for image_id, found in zip(ids, pixels, strict=True):
        view = draw_view(EVERYTHING, np.random.default_rng([3, 1, image_id]))
        np.testing.assert_array_equal(found, decode_image(data[image_id], 24, True, view))


def test_a_fitted_picture_of_a_shard_has_bars_and_a_squashed_one_has_none(made, source):
    data = jpegs(made, Shard("test", 0))  # 48x36: 24x18 of the square, 3 rows above and below
    for keeps_aspect in (False, True):
        batches, _ = read_all(
            source,
            Shard("test", 0),
            image_ids=ids_array(data),
            data=replace(PLAIN, keep_aspect=keeps_aspect),
        )
        bars = np.concatenate([batch.images[:, [0, 1, 2, -3, -2, -1]] for batch in batches])
        assert (bars == FILL).all() == keeps_aspect


# --------------------------------------------------------------------------------- bad images


def bad_source(folder, num_bad, per_shard=20):
    """A source whose train shard 1 has `num_bad` unreadable images."""
    shard = Shard("train", 1)
    replaced = {(shard, n): HTML for n in range(num_bad)}
    made = make_source(folder, train_shards=3, per_train_shard=per_shard, replaced=replaced)
    return made, Source(folder, folder / "scratch"), shard


@pytest.mark.parametrize(("num_bad", "per_shard"), [(1, 20), (3, 20), (3, 4), (4, 80)])
def test_a_few_bad_images_are_reported_and_left_out(tmp_path, num_bad, per_shard):
    made, source, shard = bad_source(tmp_path, num_bad, per_shard)
    batches, end = read_all(source, shard, class_of=class_of_all(made).get)
    bad_ids = {int(image_id, 16) for image_id in made.image_ids[shard][:num_bad]}
    assert end.num_images == per_shard - num_bad
    assert dict(end.bad_images) == dict.fromkeys(bad_ids, "not an image")
    seen = {i for batch in batches for i in batch.image_ids.tolist()}
    assert seen == {int(i, 16) for i in made.image_ids[shard]} - bad_ids


@pytest.mark.parametrize(("num_bad", "per_shard"), [(4, 20), (4, 4), (5, 80)])
def test_too_many_bad_images_stop_the_stream_in_one_line(tmp_path, num_bad, per_shard):
    made, source, shard = bad_source(tmp_path, num_bad, per_shard)
    with pytest.raises(ExpectedError) as caught:
        read_all(source, shard, class_of=class_of_all(made).get)
    assert re.fullmatch(
        rf"train/images_001\.tar: {num_bad} of {per_shard} images cannot be read, first "
        r"[0-9a-f]{16} \(not an image\); expected at most 5%; check the shard, or leave it out "
        r"with --skip-bad-shards",
        one_line(caught.value),
    )


# ------------------------------------------------------------------------------ in the background


class RecordingSource:
    """Stands for a `Source`: notes what is fetched and discarded."""

    def __init__(self):
        self.on_disk, self.fetched = set(), []
        self.lock = threading.Lock()
        self.gate = None  # a Future that `fetch_shard` waits for

    def require_space(self, shard):
        pass

    def fetch_shard(self, shard, connections):
        if self.gate is not None:
            self.gate.result(timeout=60)
        with self.lock:
            self.fetched.append(shard)
            self.on_disk.add(shard)
        return shard.path

    def discard_shard(self, shard):
        with self.lock:
            self.on_disk.discard(shard)


def wait_until(condition):
    """Waits for something that happens in another thread; fails when it never does."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


SHARDS = [Shard("train", number) for number in range(5)]


def test_no_shards_are_no_work():
    assert list(fetch_ahead(RecordingSource(), [], Connections())) == []


def test_a_consumer_that_leaves_early_leaves_no_shard_it_has_seen():
    source = RecordingSource()
    paths = fetch_ahead(source, SHARDS[:1], Connections())
    next(paths)
    paths.close()
    assert source.on_disk == set()


@pytest.mark.parametrize("is_there", [True, False], ids=["there", "on its way"])
def test_a_consumer_that_leaves_early_leaves_no_shard_that_was_fetched_ahead(is_there):
    source = RecordingSource()
    paths = fetch_ahead(source, SHARDS, Connections())
    next(paths)
    if is_there:
        wait_until(lambda: len(source.fetched) == 2)
        paths.close()
    else:
        source.gate = Future()
        next(paths)  # shard 1 is in use, shard 2 waits at the gate
        paths.close()
        source.gate.set_result(None)
    wait_until(lambda: len(source.fetched) >= 2)
    time.sleep(0.1)
    assert source.on_disk == set()


@pytest.mark.parametrize("num_connections", [1, 2])
def test_over_http_shards_come_and_go_and_one_more_than_connections_is_there_at_most(
    made, tmp_path, num_connections
):
    with serve(made.folder) as address:
        source = Source(address, tmp_path, num_connections)
        source.open_connections().number = num_connections
        reading = Reading(PLAIN, 4, class_of_all(made).get)
        ids = []
        for item in stream_batches(source, [(0, shard) for shard in SHARDS[:4]], reading):
            assert len(list((tmp_path / "train").iterdir())) <= num_connections + 1
            if isinstance(item, ShardEnd):
                assert item.num_images in (20, 23)
            else:
                ids += item.image_ids.tolist()
    assert {f"{i:016x}" for i in ids} == set(made.of_split("train"))
    wait_until(lambda: list((tmp_path / "train").iterdir()) == [])


def test_a_consumer_that_leaves_early_ends_the_threads_behind_it(made, source):
    before = set(threading.enumerate())
    stream = stream_batches(source, PLAN, Reading(PLAIN, 4, class_of_all(made).get))
    next(stream)
    begun = set(threading.enumerate()) - before
    assert {thread.name.partition("_")[0] for thread in begun} >= {"produce", "decode"}
    stream.close()
    wait_until(lambda: not any(thread.is_alive() for thread in begun))


def test_an_error_in_a_later_shard_reaches_the_consumer_after_the_shards_before_it(tmp_path):
    made = make_source(tmp_path)
    write_shard(tmp_path, Shard("train", 1), pack([entry(member_name(GOOD_ID), JPEG)])[:900])
    stream = stream_batches(
        Source(tmp_path, tmp_path / "scratch"), PLAN, Reading(PLAIN, 20, class_of_all(made).get)
    )
    assert len(next(stream).image_ids) == 20
    assert next(stream) == ShardEnd(Shard("train", 0), 20, ())
    with pytest.raises(ExpectedError, match=r"train/images_001\.tar: .*whole uncompressed tar"):
        next(stream)


def test_a_shard_that_differs_from_its_md5_reaches_the_consumer(tmp_path):
    make_source(tmp_path)
    with open(tmp_path / Shard("train", 0).path, "ab") as file:
        file.write(b"\0")
    with pytest.raises(ExpectedError, match=r"train/images_000\.tar: md5 differs"):
        next(stream_batches(Source(tmp_path, tmp_path / "s"), PLAN, Reading(PLAIN, 4, {}.get)))


def test_a_shard_that_is_not_there_reaches_the_consumer(source):
    plan = [(0, Shard("train", 99))]
    with pytest.raises(ExpectedError, match=r"train/images_099\.tar: no such file"):
        next(stream_batches(source, plan, Reading(PLAIN, 4, {}.get)))


def test_a_bug_in_the_background_reaches_the_consumer_as_it_is(source):
    def broken(image_id):
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        next(stream_batches(source, PLAN, Reading(PLAIN, 4, broken)))
