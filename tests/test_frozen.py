"""Tests of training on a frozen backbone: described once, resumed, joined, refused."""

import csv
import json
import math
import re
import shutil
import zipfile
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from matplotlib.figure import Figure
from synthetic import make_source, write_shard
from test_training import history_of, images_of, load, session_at

import model
import recognition
from data.arrays import load_arrays, save_arrays
from data.sources import TRAIN_CSV, Shard
from descriptors.descriptions import load_descriptions
from generators import Batch, Reading, ShardEnd, stream_batches
from network import backbones
from network.devices import OneDevice
from recipes import Recipe
from runs.command_line import explain
from training import checkpoints, frozen, history, loop
from training.history import HISTORY_COLUMNS
from utils import ExpectedError, Stop, StoppedError

SETTINGS = Recipe().settings() | {
    "backbone": "mobilenet_v2",
    "weights": "none",
    "image_size": 32,
    "min_images": 5,
    "train_shards": (1, 4),
    "frozen_backbone": True,
    "pooling": "average",
    "neck": 8,
    "kept": 4,
    "loss": "arcface",
    "scale": 16.0,
    "margin": 0.2,
    "batch_size": 8,
    "epochs": 12,
    "learning_rate": 0.01,
    "schedule": "cosine",
}
RECIPE = Recipe.of(SETTINGS)
NUM_SHARDS, NUM_BATCHES, NUM_EPOCHS = 4, 12, 12  # the first with the held-out one, 3 batches each


def recipe_with(**settings):
    """Gives the recipe of these tests with some settings changed."""
    return Recipe.of(SETTINGS | settings)


def run(folder, output, stop=None, recipe=RECIPE, skips_bad_shards=False):
    """Trains on a folder as recognition.py does; gives the joined network."""
    session = session_at(output, folder, stop, skips_bad_shards)
    return frozen.train(session, recipe, images_of(session.source, recipe), valid_every=3)


class StopAfter(Stop):
    """Asks to stop after so many batches are described, or so many steps of the head are done."""

    def __init__(self, monkeypatch, batches=math.inf, steps=math.inf):
        super().__init__()
        self.batches_left, self.steps_left = batches, steps
        real_describe, real_step = frozen.Describer.describe, keras.Model.train_on_batch

        def describe(*args):
            self.batches_left -= 1
            return real_describe(*args)

        def train_on_batch(*args, **kwargs):
            self.steps_left -= 1
            return real_step(*args, **kwargs)

        monkeypatch.setattr(frozen.Describer, "describe", describe)
        monkeypatch.setattr(keras.Model, "train_on_batch", train_on_batch)

    def requested(self, needed_s=0.0):
        return self.batches_left <= 0 or self.steps_left <= 0

    def reason(self):
        return "the test"


def run_until(monkeypatch, folder, output, **limit):
    """Trains until a number of batches or steps is done; gives what the stop said."""
    with monkeypatch.context() as patch, pytest.raises(StoppedError) as caught:
        run(folder, output, StopAfter(patch, **limit))
    return str(caught.value)


def count_described(monkeypatch, folder, output, recipe=RECIPE, **options):
    """Runs to the end; gives the number of batches that were described for that."""
    with monkeypatch.context() as patch:
        stop = StopAfter(patch, batches=10**6)
        run(folder, output, stop, recipe, **options)
    return 10**6 - stop.batches_left


def features_of(output):
    return {path.name: path.read_bytes() for path in sorted((output / "features").iterdir())}


def start_afresh(output):
    """Removes the head, as --fresh does; the vectors stay."""
    checkpoints.forget(session_at(output, output))


def assert_same_values(ours, others):
    """Checks that two lists of variables or arrays have every bit in common."""
    assert len(ours) >= 10
    for one, its_twin in zip(ours, others, strict=True):
        np.testing.assert_array_equal(one, its_twin)


@pytest.fixture(autouse=True)
def quick(tiny_backbones, monkeypatch):
    """All networks of this file are tiny, and none draws its history."""
    monkeypatch.setattr(history, "draw_history", lambda rows: Figure((1, 1)))


@pytest.fixture(scope="module")
def whole_run(data_set, tmp_path_factory):
    """A run that nothing interrupts: (joined network, output folder)."""
    from tiny_network import in_place_of_backbones

    output = tmp_path_factory.mktemp("frozen") / "output"
    with in_place_of_backbones(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(history, "draw_history", lambda rows: Figure((1, 1)))
        return run(data_set.folder, output), output


def head_of(folder, output):
    """Builds the head of a checkpoint as a session that continues does: (head, `Describer`)."""
    session = session_at(output, folder)
    model.set_up_keras(RECIPE.training.seed)
    describer = frozen.Describer(RECIPE, OneDevice())
    images = images_of(session.source)

    def build(weights):
        return model.build_head(RECIPE, describer.shape[1], len(images.class_table), 10)

    return loop.begin(session, RECIPE, images, build, describer.digest)[0], describer


# ------------------------------------------------------------------------------------ learning


def test_the_head_learns_to_tell_the_landmarks_apart(whole_run):
    rows = history_of(whole_run[1])
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    assert rows[-1]["accuracy"] > 0.8
    assert rows[-1]["valid_accuracy"] > 0.6


def test_the_history_has_a_row_for_each_pass_over_the_vectors(whole_run):
    with open(whole_run[1] / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == HISTORY_COLUMNS
    numbers = [str(number) for number in range(1, NUM_EPOCHS + 1)]
    assert [row["mini_epoch"] for row in rows] == [row["epoch"] for row in rows] == numbers
    assert {(row["shard"], row["images"], row["bad_images"]) for row in rows} == {("-1", "60", "0")}
    validated = [number for number, row in zip(numbers, rows, strict=True) if row["valid_loss"]]
    assert validated == ["3", "6", "9", "12"]
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.01 / 100


def test_the_backbone_stays_as_it_was(data_set, whole_run):
    _, describer = head_of(data_set.folder, whole_run[1])
    kept = describer.pooled.weights
    assert_same_values(whole_run[0].weights[: len(kept)], kept)


def test_without_a_neck_the_pooled_vector_is_the_descriptor(data_set, tmp_path):
    network = run(data_set.folder, tmp_path, recipe=recipe_with(neck=0, loss="softmax", epochs=1))
    assert network.get_layer("descriptor").output.shape[1:] == (16,)
    assert network.output.shape[1:] == (4,)


# --------------------------------------------------------------------------------- the joining


def test_half_of_a_cosine_is_of_the_pooled_vectors_principal_components(data_set, whole_run):
    network, (head, describer) = whole_run[0], head_of(data_set.folder, whole_run[1])
    session = session_at(whole_run[1], data_set.folder)
    vectors, _ = frozen.describe(session, describer, images_of(session.source))
    descriptors = keras.Model(head.input, head.get_layer("descriptor").output)
    rows = vectors.values.reshape(-1, describer.shape[1]).astype(np.float64)
    found = keras.ops.convert_to_numpy(descriptors(rows.astype(np.float32)))
    assert found.shape == (len(rows), 8 + 4)
    centered = rows - rows.mean(axis=0)
    left, spread, _ = np.linalg.svd(centered, full_matrices=False)
    expected = left[:, :4] * spread[:4]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found[:, 8:] @ found[:, 8:].T, expected @ expected.T / 2, atol=1e-3)
    np.testing.assert_allclose(np.sum(found[:, :8] ** 2, axis=1), 0.5, atol=1e-5)
    assert network.get_layer("kept").trainable_weights == []


def test_the_joined_network_says_of_an_image_what_the_head_says_of_its_vector(data_set, whole_run):
    network, output = whole_run
    head, describer = head_of(data_set.folder, output)
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    vectors = describer.pooled.predict_on_batch(images)
    expected = head.predict_on_batch(vectors)
    np.testing.assert_allclose(network.predict_on_batch(images), expected, rtol=0, atol=1e-6)
    described = keras.Model(head.input, head.get_layer("descriptor").output)
    ours = keras.Model(network.input, network.get_layer("descriptor").output)
    np.testing.assert_allclose(
        ours.predict_on_batch(images), described.predict_on_batch(vectors), rtol=0, atol=1e-6
    )


def test_the_joined_network_has_the_layers_of_one_that_is_trained_as_a_whole(whole_run):
    whole = model.build_network(RECIPE, 4, 100)
    joined = whole_run[0]
    assert (joined.name, joined.output.shape) == (whole.name, whole.output.shape)
    assert [type(layer) for layer in joined.layers] == [type(layer) for layer in whole.layers]
    names = {layer.name for layer in joined.layers}
    assert names >= {"pooling", "neck", "neck_norm", "kept", "descriptor", "logits"}
    assert [v.path for v in joined.variables] == [v.path for v in whole.variables]


def test_vectors_are_those_of_the_image_and_of_its_mirror_image(data_set, whole_run):
    _, describer = head_of(data_set.folder, whole_run[1])
    arrays, _ = load_arrays(whole_run[1] / "features" / "train_001.npz")
    session = session_at(whole_run[1], data_set.folder)
    reading = Reading(RECIPE.data, 20, images_of(session.source).labels.find)
    batch, _ = stream_batches(session.source, [(0, Shard("train", 1))], reading)
    assert arrays["image_ids"].tolist() == batch.image_ids.tolist()
    assert (arrays["vectors"].dtype, arrays["vectors"].shape) == (np.float16, (20, 2, 16))
    for view, images in enumerate((batch.images, batch.images[:, :, ::-1])):
        expected = describer.pooled.predict_on_batch(images)
        np.testing.assert_allclose(arrays["vectors"][:, view], expected, rtol=1e-3, atol=1e-4)
    assert np.abs(arrays["vectors"][:, 0] - arrays["vectors"][:, 1]).max() > 1e-3


def test_without_augmentation_there_are_no_mirror_images(data_set, tmp_path):
    run(data_set.folder, tmp_path, recipe=recipe_with(augment=False, epochs=1))
    arrays, _ = load_arrays(tmp_path / "features" / "train_001.npz")
    assert arrays["vectors"].shape == (20, 1, 16)


# ------------------------------------------------------------------------ stopping, continuing


def test_a_run_that_is_stopped_again_and_again_ends_as_one_that_never_was(
    data_set, whole_run, tmp_path, monkeypatch
):
    assert run_until(monkeypatch, data_set.folder, tmp_path, batches=5) == (
        "stopped by the test: 1 of 4 train shards described; run the same command again to continue"
    )
    assert list(features_of(tmp_path)) == ["train_001.npz"]
    assert load(tmp_path) is None
    assert run_until(monkeypatch, data_set.folder, tmp_path, steps=20) == (
        "stopped by the test: 2 of 12 mini-epochs done; run the same command again to continue"
    )
    assert run_until(monkeypatch, data_set.folder, tmp_path, steps=9) == (
        "stopped by the test: 3 of 12 mini-epochs done; run the same command again to continue"
    )
    network = run(data_set.folder, tmp_path)
    assert history_of(tmp_path) == history_of(whole_run[1])
    assert features_of(tmp_path) == features_of(whole_run[1])
    states = [load(output)[1] for output in (tmp_path, whole_run[1])]  # optimizer and all
    assert_same_values(*(list(state.values()) for state in states))
    assert_same_values(network.variables, whole_run[0].variables)


def test_an_epoch_that_would_not_fit_into_the_time_is_not_begun(data_set, tmp_path):
    class ShortOfTime(Stop):
        def requested(self, needed_s=0.0):
            return needed_s > 0

    with pytest.raises(StoppedError, match="stopped by the time limit: 1 of 12 mini-epochs done"):
        run(data_set.folder, tmp_path, ShortOfTime())


def test_a_run_that_is_complete_needs_no_vector(data_set, whole_run, monkeypatch, capsys):
    monkeypatch.setattr(frozen, "describe", lambda *_: pytest.fail("describes"))
    network = run(data_set.folder, whole_run[1])
    assert capsys.readouterr().err == "training is complete: 12 mini-epochs\n"
    assert_same_values(network.variables, whole_run[0].variables)


def test_the_vectors_of_an_earlier_kernel_are_taken_up(
    data_set, whole_run, tmp_path, monkeypatch, capsys
):
    def find_inputs(name):
        return [whole_run[1] / name] if name.startswith("features/") else []

    monkeypatch.setattr("runs.kernel.find_inputs", find_inputs)
    assert count_described(monkeypatch, data_set.folder, tmp_path) == 0
    assert "to describe" not in capsys.readouterr().err
    assert history_of(tmp_path) == history_of(whole_run[1])


# ------------------------------------------------------------------- vectors that fit, or do not


@pytest.fixture(scope="module")
def described_once(tmp_path_factory, tiny_models):
    folder = tmp_path_factory.mktemp("described")
    make_source(folder / "source")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history, "draw_history", lambda rows: Figure((1, 1)))
        run(folder / "source", folder / "output", recipe=recipe_with(epochs=1))
    start_afresh(folder / "output")
    return folder


@pytest.fixture
def described(described_once, tmp_path):
    """A data set of its own and its finished run: (source folder, output folder)."""
    folder = shutil.copytree(described_once, tmp_path / "described")
    return folder / "source", folder / "output"


def test_another_head_is_trained_on_the_same_vectors(described, monkeypatch):
    seeds, shuffle = [], frozen.shuffle

    def recorded(vectors, batch_size, seed):
        seeds.append(seed)
        return shuffle(vectors, batch_size, seed)

    monkeypatch.setattr(frozen, "shuffle", recorded)
    other = recipe_with(epochs=2, neck=4, loss="cosface", learning_rate=0.02, batch_size=16)
    assert count_described(monkeypatch, *described, recipe=other) == 0
    assert len(history_of(described[1])) == 2
    assert seeds == [[other.training.seed, 0], [other.training.seed, 1]]  # another order each time


def test_other_labels_of_the_same_images_are_learnt_from_the_same_vectors(described, monkeypatch):
    path = described[0] / TRAIN_CSV
    path.write_text(path.read_text().replace(",90001\n", ",17\n"))
    assert count_described(monkeypatch, *described) == 0


def test_vectors_of_other_weights_are_made_again(described, monkeypatch):
    recipe = recipe_with(epochs=1, seed=1)  # of random weights
    assert count_described(monkeypatch, *described, recipe=recipe) >= NUM_BATCHES


def test_a_pass_has_a_step_for_the_vectors_that_fill_no_batch(monkeypatch):
    paces, count = [], 60
    monkeypatch.setattr(frozen, "Pace", lambda *args: paces.append(args))
    monkeypatch.setattr(frozen, "train_mini_epoch", lambda *args: {})
    ids = np.arange(count, dtype=np.uint64)
    vectors = frozen.Vectors(np.zeros((count, 1, 2), np.float16), ids, ids, 0, [], "digest")
    asked = SimpleNamespace(
        rows=[], recipe=recipe_with(kept=0), network=None, devices=None, done=str,
        train=lambda train_epoch, *others: train_epoch(None),
    )  # fmt: skip
    frozen._train_head(asked, vectors, vectors, 1)
    ((*_, num_steps),) = paces
    assert num_steps == 8 == len(list(frozen.shuffle(vectors, 8, [0]))) - 1


def test_a_shard_whose_file_was_replaced_or_whose_vectors_are_damaged_is_described_again(
    described, monkeypatch, capsys
):
    source, output = described
    other = make_source(output / "other", seed=0, replaced={(Shard("train", 2), 0): b"no image"})
    path = Shard("train", 2).path
    write_shard(source, Shard("train", 2), (other.folder / path).read_bytes())
    damaged = output / "features" / "train_003.npz"
    damaged.write_bytes(damaged.read_bytes()[:500])
    assert count_described(monkeypatch, source, output) == 6
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith(f"{damaged}: ") and line.endswith(": not used") for line in lines)
    assert {row["images"] for row in history_of(output)} == {59}


@pytest.mark.parametrize("part", [np.s_[:, 0], np.s_[:, :1], np.s_[:, :, :4], np.s_[1:]])
def test_a_file_with_other_arrays_is_refused_and_described_again(described, part):
    path = described[1] / "features" / "train_001.npz"
    arrays, page = load_arrays(path)
    describer = SimpleNamespace(shape=arrays["vectors"].shape[1:])
    assert frozen.Describer.load(describer, path)[1] == page
    save_arrays(path, page, **(arrays | {"vectors": arrays["vectors"][part]}))
    with pytest.raises(ExpectedError, match="vectors has the shape"):  # which is passed over
        frozen.Describer.load(describer, path)


def test_a_checkpoint_on_other_backbone_weights_is_refused(data_set, whole_run, monkeypatch):
    real = backbones.build

    def build(*args):
        built = real(*args)
        layer = keras.Model(keras.utils.get_source_inputs(built), built).layers[-2]
        layer.gamma.assign(layer.gamma + 1)
        return built

    monkeypatch.setattr(backbones, "build", build)
    with pytest.raises(ExpectedError) as caught:
        run(data_set.folder, whole_run[1])
    path = whole_run[1] / "checkpoint" / "training.npz"
    assert explain(caught.value) == (
        f"{path}: the frozen backbone has other weights now; expected those that its vectors came "
        "from; continue with the same weights, or start over with --fresh"
    )


def test_a_checkpoint_on_vectors_of_other_images_is_refused(tmp_path, monkeypatch):
    made = make_source(tmp_path / "source")
    run_until(monkeypatch, tmp_path / "source", tmp_path / "output", steps=20)
    other = make_source(tmp_path / "other", replaced={(Shard("train", 2), 0): b"no image"})
    data = (other.folder / Shard("train", 2).path).read_bytes()
    write_shard(made.folder, Shard("train", 2), data)
    with pytest.raises(ExpectedError, match="training.npz: its vectors were of other images or "):
        run(tmp_path / "source", tmp_path / "output")


@pytest.mark.parametrize("name", ["erase", "geometry"])
def test_what_a_frozen_backbone_cannot_follow_is_refused(data_set, tmp_path, name):
    with pytest.raises(ExpectedError) as caught:
        run(data_set.folder, tmp_path, recipe=recipe_with(**{name: 0.5}))
    assert explain(caught.value) == (
        f"{name} 0.5: a frozen backbone describes every image once, as it is; expected 0, or a "
        f"backbone that is trained; change --{name}"
    )


# ---------------------------------------------------------------------------------------- data


def test_bad_images_are_counted_and_named(tmp_path, capsys):
    shard = Shard("train", 2)
    replaced = {(shard, 5): b"not an image", (shard, 7): b""}
    made = make_source(tmp_path / "source", replaced=replaced)
    for _ in range(2):  # the second time from the file
        run(tmp_path / "source", tmp_path / "output", recipe=recipe_with(epochs=1))
        (row,) = history_of(tmp_path / "output")
        assert (row["images"], row["bad_images"]) == (58, 2)
        start_afresh(tmp_path / "output")
    lines = capsys.readouterr().err.splitlines()
    prefix = "train/images_002.tar: image"
    assert f"{prefix} {made.image_ids[shard][5]} left out: not an image" in lines
    told = [line for line in lines if "images described" in line]
    assert len(told) == NUM_SHARDS
    assert re.fullmatch(
        r"train/images_002\.tar: 18 images described \(2/4\), \d+ images/s, \d+% waiting for data, "
        r"\d+ s to go",
        told[1],
    )


def test_a_vector_that_float16_does_not_hold_is_left_out(capsys):
    class Overflowing(OneDevice):
        def predict_on_batch(self, network, images):
            return [np.array([[[1, 2]], [[1e6, 2]], [[3, 4]], [[0, 0]]], np.float32)]

    describer = frozen.Describer(recipe_with(augment=False), Overflowing())
    describer.shape = (1, 2)
    batch = Batch(None, np.array([5, 6, 7], np.uint64), None, None)
    shard = Shard("train", 1)
    pieces = [describer.allocate(0), describer.describe(batch, shard)]
    found = describer.join(pieces, ShardEnd(shard, 3, ((9, "empty"),)))
    assert found.image_ids.tolist() == [5, 7]
    assert found.vectors.tolist() == [[[1, 2]], [[3, 4]]]
    assert found.bad_image_ids.tolist() == [9, 6]
    assert "image 0000000000000006 left out: not finite in float16\n" in capsys.readouterr().err


def test_a_broken_shard_is_left_out_where_it_may_be_and_tried_again_later(
    tmp_path, monkeypatch, capsys
):
    source, output, shard = tmp_path / "source", tmp_path / "output", Shard("train", 2)
    make_source(source)
    good = (source / shard.path).read_bytes()
    write_shard(source, shard, b"not a tar")
    with pytest.raises(ExpectedError, match="expected a whole uncompressed tar"):
        run(source, tmp_path / "strict")
    skipping = {"recipe": recipe_with(epochs=1), "skips_bad_shards": True}
    run(source, output, **skipping)
    (row,) = history_of(output)
    assert (row["images"], row["problem"]) == (40, "train/images_002.tar left out")
    assert f"{shard.path} left out: " in capsys.readouterr().err
    start_afresh(output)
    write_shard(source, shard, good)
    assert count_described(monkeypatch, source, output, **skipping) == 3
    (row,) = history_of(output)
    assert (row["images"], row["problem"]) == (60, "")


def test_shards_without_an_image_to_train_on_are_an_error(tmp_path):
    source = make_source(tmp_path / "source").folder
    lines = (source / TRAIN_CSV).read_text().splitlines()
    others = [f"{'f' * 11}{number:05x},u,{line.split(',')[2]}" for number, line in enumerate(lines)]
    (source / TRAIN_CSV).write_text("\n".join([lines[0], *others[1:]]) + "\n")
    with pytest.raises(ExpectedError, match="^3 shards held no image of the .* to train on; "):
        run(source, tmp_path / "output")


def test_disk_and_time_are_told_beforehand_and_a_full_disk_is_an_error(
    data_set, tmp_path, monkeypatch, capsys
):
    def full(folder, size_bytes, purpose):
        if "vectors" in purpose:
            assert size_bytes == 80 * 2 * 16 * 2  # images, views, channels, bytes
            raise ExpectedError("full")

    monkeypatch.setattr(frozen, "require_free_space", full)
    with pytest.raises(ExpectedError, match="full"):
        run(data_set.folder, tmp_path)
    assert re.fullmatch(
        r"to describe: about 80 images of 4 shards; 0\.00 GB on disk, and in memory as many "
        r"for all shards; the network alone takes \d+ s",
        capsys.readouterr().err.splitlines()[-1],
    )


# ------------------------------------------------------------------------------------- batches


def vectors_of(num_images, num_views=2):
    """Makes vectors of 3 values that tell image and view: 10 times the image, plus the view."""
    rows, views = np.arange(num_images)[:, None, None], np.arange(num_views)[None, :, None]
    values = np.broadcast_to(10 * rows + views, (num_images, num_views, 3)).astype(np.float16)
    ids = np.arange(num_images, dtype=np.uint64)
    return frozen.Vectors(values, ids, np.arange(num_images, dtype=np.int32) % 4, 0, [], "")


def test_shuffled_batches_have_every_image_once_in_one_shape_and_both_views():
    *batches, end = frozen.shuffle(vectors_of(50), 16, [0, 0])
    assert end.num_images == 50
    assert {batch.images.shape for batch in batches} == {(16, 3)}
    assert {batch.images.dtype for batch in batches} == {np.dtype(np.float32)}
    ids = np.concatenate([batch.image_ids for batch in batches])
    assert sorted(ids[:50].tolist()) == list(range(50))
    assert ids[50:].tolist() == ids[:14].tolist()
    values = np.concatenate([batch.images for batch in batches])
    assert (values[:, 0] // 10).tolist() == ids.tolist()
    assert set(values[:, 0] % 10) == {0, 1}
    classes = np.concatenate([batch.class_indices for batch in batches])
    assert classes.tolist() == (ids % 4).tolist()


def test_order_and_views_follow_from_the_seed_alone():
    def values(*seed):
        return np.concatenate(
            [item.images for item in list(frozen.shuffle(vectors_of(50), 16, list(seed)))[:-1]]
        )

    np.testing.assert_array_equal(values(0, 1), values(0, 1))
    assert (values(0, 1) != values(0, 2)).any()
    assert (values(0, 1) != values(1, 1)).any()


def test_fewer_images_than_a_batch_holds_repeat():
    batch, end = frozen.shuffle(vectors_of(3), 8, [0])
    assert sorted(set(batch.image_ids.tolist())) == [0, 1, 2]
    assert (batch.images.shape, end.num_images) == ((8, 3), 3)


def test_held_out_vectors_come_in_order_unmirrored_and_only_once():
    batches = list(frozen.in_order(vectors_of(10), 8))
    assert [batch.images.shape for batch in batches] == [(8, 3), (8, 3)]
    assert [batch.image_ids.tolist() for batch in batches] == [list(range(8)), [8, 9]]
    assert batches[1].images[:, 0].tolist() == [80, 90, 0, 10, 20, 30, 40, 50]
    assert [len(batch.class_indices) for batch in batches] == [8, 2]
    assert list(frozen.in_order(vectors_of(0), 8)) == []


# ---------------------------------------------------------------------------------- the script


def test_recognition_trains_a_head_on_a_frozen_backbone_and_predicts(data_set, tmp_path, capsys):
    arguments = [
        *("--source", str(data_set.folder), "--output", str(tmp_path), "--frozen-backbone"),
        *("--train-shards", "1:4", "--valid-shards", "0:1", "--min-images", "5"),
        *("--backbone", "mobilenet_v2", "--weights", "none", "--image-size", "32"),
        *("--batch-size", "8", "--epochs", "2", "--neck", "8", "--loss", "arcface"),
    ]
    recognition.main(arguments)
    captured = capsys.readouterr()
    paths = [str(tmp_path / name) for name in ("model.keras", "recognition_submission.csv")]
    assert captured.out.splitlines()[:2] == paths
    assert captured.out.splitlines()[2].startswith("GAP: ")
    assert "mini-epoch 2/2 (vectors): 60 images, loss " in captured.err
    queries, _ = load_descriptions(tmp_path / "queries.npz")
    assert queries.descriptors.shape == (18, 8)
    np.testing.assert_allclose(np.linalg.norm(queries.descriptors, axis=1), 1, atol=1e-5)
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        page = json.loads(archive.read("landmarks.json"))
    assert Recipe.of(page["recipe"]).network.frozen_backbone


def test_several_devices_would_be_asked_for_the_vectors(data_set, tmp_path, monkeypatch):
    asked = []

    class Noting(OneDevice):
        def predict_on_batch(self, network, images):
            asked.append(network.name)
            return super().predict_on_batch(network, images)

    monkeypatch.setattr(frozen, "choose_devices", lambda batch_size: Noting())
    run(data_set.folder, tmp_path, recipe=recipe_with(epochs=1))
    assert asked.count("views") == NUM_BATCHES + 2  # two to tell the time
