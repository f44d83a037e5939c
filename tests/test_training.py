"""Tests of the training run: it learns, stops, continues, and refuses what does not go together."""

import csv
import math
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from synthetic import make_source, write_shard
from tiny_network import in_place_of_backbones

from cluster.machines import Machines
from data.arrays import load_arrays, save_arrays
from data.landmarks import ClassTable, TrainLabels, read_train_labels
from data.sources import TRAIN_CSV, Shard, Source
from generators import Batch
from model import build_predictor, load_recogniser, save_recogniser, to_numpy
from network import heads
from network.devices import OneDevice
from recipes import Recipe
from runs.command_line import explain
from runs.session import Session
from training import checkpoints, history, loop
from training.checkpoints import find_checkpoint, load_checkpoint, save_checkpoint
from training.history import HISTORY_COLUMNS, describe_progress
from training.loop import TrainImages
from utils import ExpectedError, Stop, StoppedError, format_duration

SETTINGS = Recipe().settings() | {
    "backbone": "mobilenet_v2",
    "weights": "none",
    "image_size": 32,
    "batch_size": 8,
    "epochs": 2,
    "learning_rate": 0.03,
    "min_images": 5,
    "train_shards": (1, 4),
}
RECIPE = Recipe.of(SETTINGS)
STRONG_SETTINGS = {
    **{"epochs": 6, "erase": 0.3, "geometry": 0.3, "pooling": "gem"},
    **{"neck": 8, "loss": "arcface", "sub_centers": 2, "dynamic_margin": True},
    **{"margin_ramp": 0.5, "class_weights": True},
    **{"optimizer": "adamw", "learning_rate": 0.02, "schedule": "cosine", "warm_up": 0.1},
    **{"weight_decay": 0.01, "backbone_rate": 0.5, "frozen_share": 0.2},
}
STRONG = Recipe.of(SETTINGS | STRONG_SETTINGS)  # everything on
NUM_MINI_EPOCHS, BATCHES_PER_SHARD = 6, 3  # 2 epochs of 3 shards of 20 images
TIMES = {"seconds", "waited_s", "images_per_s"}  # columns of the history that no two runs share


class StopAfter(Stop):
    """Asks to stop after a number of steps, or when a number of mini-epochs is saved."""

    def __init__(self, monkeypatch, steps=math.inf, mini_epochs=math.inf):
        super().__init__()
        self.steps_left, self.mini_epochs_left = steps, mini_epochs
        real_step, real_save = keras.Model.train_on_batch, checkpoints.save_checkpoint

        def train_on_batch(*args, **kwargs):
            self.steps_left -= 1
            return real_step(*args, **kwargs)

        def save_checkpoint(*args, **kwargs):
            real_save(*args, **kwargs)
            self.mini_epochs_left -= 1

        monkeypatch.setattr(keras.Model, "train_on_batch", train_on_batch)
        monkeypatch.setattr(loop, "save_checkpoint", save_checkpoint)

    def requested(self, needed_s=0.0):
        return self.steps_left <= 0 or self.mini_epochs_left <= 0

    def reason(self):
        return "the test"


def recipe_with(**settings):
    """Gives the recipe of these tests with some settings changed."""
    return Recipe.of(SETTINGS | settings)


def images_of(source, recipe=RECIPE):
    """Finds the images to train on as recognition.py does, and holds out shard 0."""
    table, labels = read_train_labels(source.fetch(TRAIN_CSV), recipe.data.min_images)
    shards = source.select_shards("train", *recipe.data.train_shards)
    return TrainImages(table, labels, shards, source.select_shards("train", 0, 1))


def session_at(output, folder, stop=None, skips_bad_shards=False):
    return Session(output, Source(folder, output / "scratch"), stop or Stop(), skips_bad_shards)


def run(folder, output, stop=None, recipe=RECIPE, valid_every=2, skips_bad_shards=False):
    """Trains on a folder as recognition.py does; gives the network."""
    session = session_at(output, folder, stop, skips_bad_shards)
    return loop.train(session, recipe, images_of(session.source, recipe), valid_every)


def run_until(monkeypatch, folder, output, recipe=RECIPE, **limit):
    """Trains until a number of steps or mini_epochs is done; gives what the stop said."""
    with monkeypatch.context() as patch, pytest.raises(StoppedError) as caught:
        run(folder, output, StopAfter(patch, **limit), recipe)
    return str(caught.value)


def begin(session, recipe, images):
    """Builds the network and restores the checkpoint, as training does: (network, rows)."""
    build = partial(loop.model.build_network, recipe, len(images.class_table), 10)
    return loop.begin(session, recipe, images, build)


def checkpoint_of(output):
    return output / "checkpoint" / "training.npz"


def load(output):
    return load_checkpoint(Session(output, None, None))


def history_of(output):
    """Reads the rows that a checkpoint keeps, without the columns of time."""
    _, _, page = load(output)
    return [{key: row[key] for key in row.keys() - TIMES} for row in page["history"]]


def assert_same_state(network, other):
    """Checks that two networks have every bit in common that training goes on from."""
    ours, theirs = (
        [to_numpy(v) for v in (*each.variables, *each.optimizer.variables)]
        for each in (network, other)
    )
    assert len(ours) > 20
    for one, its_twin in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, its_twin)


@pytest.fixture(autouse=True)
def quick(tiny_backbones, monkeypatch):
    """All networks of this file are tiny, and only `whole_run` draws its history."""
    monkeypatch.setattr(history, "draw_history", lambda rows: Figure((1, 1)))


@pytest.fixture(scope="module")
def whole_run(data_set, tmp_path_factory):
    """A run that nothing interrupts: (network, output folder)."""
    output = tmp_path_factory.mktemp("training") / "output"
    with in_place_of_backbones():
        return run(data_set.folder, output), output


# ------------------------------------------------------------------------------------ learning


def test_training_learns_to_tell_the_landmarks_apart(whole_run):
    rows = history_of(whole_run[1])
    assert len(rows) == NUM_MINI_EPOCHS
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    assert rows[-1]["accuracy"] > 0.7
    assert rows[-1]["valid_accuracy"] > 0.6
    assert rows[-1]["valid_loss"] < rows[1]["valid_loss"]


def test_the_history_tells_shard_epoch_and_images_of_each_mini_epoch(whole_run):
    rows = history_of(whole_run[1])
    assert [row["mini_epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["epoch"] for row in rows] == [1, 1, 1, 2, 2, 2]
    assert [row["shard"] for row in rows] == [1, 2, 3, 1, 2, 3]
    assert [row["images"] for row in rows] == [20] * 6  # without the rare landmark's
    assert [row["bad_images"] for row in rows] == [0] * 6
    assert [("valid_loss" in row) for row in rows] == [False, True] * 3


def test_the_optimizer_trains_at_the_rate_of_the_schedule(data_set, tmp_path, monkeypatch):
    rates, real = [], keras.Model.train_on_batch

    def noting(network, *args, **kwargs):
        rates.append(float(network.optimizer.learning_rate))
        return real(network, *args, **kwargs)

    monkeypatch.setattr(keras.Model, "train_on_batch", noting)
    run(data_set.folder, tmp_path)
    # 6 mini-epochs: 35% is the second, 70% the fourth, 80% the fifth
    expected = [0.03, 0.03, 0.015, 0.015, 0.006, 0.003]
    assert rates == pytest.approx([rate for rate in expected for _ in range(BATCHES_PER_SHARD)])
    assert [row["learning_rate"] for row in history_of(tmp_path)] == pytest.approx(expected)


def test_the_last_mini_epoch_is_validated_whatever_the_interval(data_set, tmp_path):
    run(data_set.folder, tmp_path, recipe=recipe_with(epochs=1), valid_every=100)
    assert [("valid_loss" in row) for row in history_of(tmp_path)] == [False, False, True]


def test_history_csv_has_a_row_for_each_mini_epoch(whole_run):
    output = whole_run[1]
    with open(output / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == HISTORY_COLUMNS
    kept = history_of(output)
    assert len(rows) == len(kept) == NUM_MINI_EPOCHS
    for row, known in zip(rows, kept, strict=True):
        assert float(row["loss"]) == pytest.approx(known["loss"], rel=1e-5)
        assert int(row["shard"]) == known["shard"]
        assert (row["valid_loss"] == "") == ("valid_loss" not in known)
        assert float(row["images_per_s"]) > 0
        assert 0 <= float(row["waited_s"]) <= float(row["seconds"])


def test_history_png_is_a_picture(whole_run):
    with Image.open(whole_run[1] / "history.png") as image:
        assert image.format == "PNG"
        assert image.width > 1000
        assert len(image.convert("RGB").resize((200, 60)).getcolors(1 << 16)) > 10


# -------------------------------------------------------------------------- with everything on


@pytest.fixture(scope="module")
def strong_run(data_set, tmp_path_factory):
    """A run of a recipe with everything on: (network, output folder)."""
    output = tmp_path_factory.mktemp("strong") / "output"
    with in_place_of_backbones():
        return run(data_set.folder, output, recipe=STRONG), output


def test_a_recipe_with_everything_on_learns(strong_run):
    rows = history_of(strong_run[1])
    assert len(rows) == 18
    assert rows[-1]["loss"] < rows[0]["loss"]  # though the margins have grown
    assert rows[-1]["valid_accuracy"] > 0.6
    assert rows[-1]["valid_loss"] < rows[1]["valid_loss"]
    assert rows[-1]["learning_rate"] < 0.001 < rows[0]["learning_rate"] < 0.02
    assert to_numpy(strong_run[0].get_layer("logits").margin_share) == 1
    # By the class sizes: 20, 20, 20 and 20 images.
    np.testing.assert_allclose(strong_run[0].loss.margins, [0.275] * 4, rtol=1e-6)
    np.testing.assert_allclose(strong_run[0].loss.class_weights, [1] * 4, rtol=1e-6)


def test_a_recipe_with_everything_on_that_is_stopped_ends_as_one_that_never_was(
    data_set, strong_run, tmp_path, monkeypatch
):
    run_until(monkeypatch, data_set.folder, tmp_path, STRONG, mini_epochs=3)  # still frozen
    run_until(monkeypatch, data_set.folder, tmp_path, STRONG, steps=5 * BATCHES_PER_SHARD + 1)
    assert len(history_of(tmp_path)) == 8  # within the ramp
    network = run(data_set.folder, tmp_path, recipe=STRONG)
    assert history_of(tmp_path) == history_of(strong_run[1])
    assert_same_state(network, strong_run[0])


def test_the_backbone_stays_as_it_is_for_its_share_of_the_run(data_set, tmp_path):
    frozen = {"epochs": 1, "frozen_share": 1.0, "backbone_rate": 1.0}
    network = run(data_set.folder, tmp_path, recipe=Recipe.of(STRONG.settings() | frozen))
    loop.model.set_up_keras(STRONG.training.seed)
    untrained = loop.model.build_network(STRONG, 4, 15)
    for layer, before in zip(network.layers, untrained.layers, strict=True):
        is_of_head = layer.name in heads.HEAD_LAYERS
        for now, was in zip(layer.trainable_weights, before.trainable_weights, strict=True):
            is_equal = np.array_equal(to_numpy(now), to_numpy(was))
            assert is_equal != is_of_head or layer.name == "neck_norm"


def test_the_model_of_a_strong_recipe_describes_and_is_as_sure_as_its_cosines(
    data_set, strong_run, tmp_path
):
    network, recipe = strong_run[0], STRONG
    table = images_of(Source(data_set.folder, tmp_path), recipe).class_table
    save_recogniser(network, tmp_path / "model.keras", table, recipe)
    recogniser = load_recogniser(tmp_path / "model.keras")
    assert recogniser.recipe == recipe
    pictures = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    best, confidences, descriptors = build_predictor(recogniser.classifier).predict_on_batch(
        pictures
    )
    cosines = network.predict_on_batch(pictures)
    assert best.tolist() == cosines.argmax(axis=1).tolist()
    np.testing.assert_allclose(confidences, cosines.max(axis=1), rtol=1e-5)
    assert descriptors.shape == (8, 8)
    np.testing.assert_allclose(np.linalg.norm(descriptors, axis=1), 1, rtol=1e-5)


def test_a_ramp_of_a_margin_that_the_loss_does_not_have_changes_nothing(data_set, tmp_path):
    run(data_set.folder, tmp_path, recipe=recipe_with(epochs=1, margin_ramp=0.5))
    assert len(history_of(tmp_path)) == 3


# ----------------------------------------------------------------------------------------- pace


class Unknown:
    """Stands for a network, and notes what is set."""

    def __init__(self):
        self.rates, self.shares = [], []
        self.optimizer = self.margin_share = self

    def get_layer(self, name):
        return self

    def assign(self, share):
        self.shares.append(share)


def paces(monkeypatch, settings, steps_of_shard, positions):
    """Notes the learning rate, the backbone's share and the margin's of (mini-epoch, step) pairs.

    The run has 10 mini-epochs.
    """
    network, recipe = Unknown(), recipe_with(learning_rate=1.0, loss="arcface", **settings)
    monkeypatch.setattr(loop, "set_rates", lambda _, *rates: network.rates.append(rates))
    for mini_epoch, step in positions:
        rate = loop.Pace(recipe, network, mini_epoch, 10, steps_of_shard).set_for(step)
        assert rate == network.rates[-1][0]
    return np.array(network.rates), network.shares


def test_the_margin_grows_with_the_run_to_its_full_size(monkeypatch):
    # Of 10 mini-epochs of 4 steps; a step counts from its middle.
    positions = [(0, 0), (0, 3), (2, 1), (4, 3), (5, 0), (9, 3)]
    _, shares = paces(monkeypatch, {"margin_ramp": 0.5}, 4, positions)
    assert shares == pytest.approx([0.0125 * 2, 0.0875 * 2, 0.2375 * 2, 0.4875 * 2, 1, 1])
    assert paces(monkeypatch, {}, 4, positions)[1] == []  # left at the full margin


def test_rates_follow_from_the_position_alone(monkeypatch):
    settings = {"schedule": "cosine", "warm_up": 0.1, "frozen_share": 0.25, "backbone_rate": 0.1}
    positions = [(mini_epoch, step) for mini_epoch in range(10) for step in range(4)]
    rates, _ = paces(monkeypatch, settings, 4, positions)
    again, _ = paces(monkeypatch, settings, 4, positions[::-1])
    np.testing.assert_array_equal(rates, again[::-1])
    assert rates[:4, 0] == pytest.approx([0.125, 0.375, 0.625, 0.875])
    assert np.all(np.diff(rates[4:, 0]) < 0)
    assert rates[:, 1].tolist() == [0.0] * 10 + [0.1] * 30


def test_a_shard_longer_than_expected_waits_for_the_next_and_a_shorter_one_jumps(monkeypatch):
    settings = {"schedule": "cosine", "margin_ramp": 1.0}
    positions = [(3, 3), (3, 4), (3, 9), (4, 0), (9, 3), (9, 4), (9, 9)]
    rates, shares = paces(monkeypatch, settings, 4, positions)
    assert shares == pytest.approx([0.3875, 0.4, 0.4, 0.4125, 0.9875, 1, 1])
    assert rates[:, 0] == pytest.approx((1 + np.cos(np.pi * np.array(shares))) / 2)
    _, shares = paces(monkeypatch, settings, 0.3, [(3, 0), (3, 1)])  # of less than a step
    assert shares == pytest.approx([0.35, 0.4])


def test_what_lasts_the_whole_run_lasts_to_its_last_step(monkeypatch):
    settings = {"frozen_share": 1.0, "warm_up": 1.0, "schedule": "cosine"}
    rates, _ = paces(monkeypatch, settings, 4, [(9, 3), (9, 4)])
    assert rates.tolist() == [[pytest.approx(0.9875), 0], [1, 0]]


# ------------------------------------------------------------------------ stopping, continuing


def test_a_run_that_is_stopped_again_and_again_ends_as_one_that_never_was(
    data_set, whole_run, tmp_path, monkeypatch
):
    run_until(monkeypatch, data_set.folder, tmp_path, steps=1)  # within the first mini-epoch
    assert load(tmp_path) is None
    run_until(monkeypatch, data_set.folder, tmp_path, mini_epochs=1)  # between two of them
    assert len(history_of(tmp_path)) == 1
    run_until(monkeypatch, data_set.folder, tmp_path, steps=2 * BATCHES_PER_SHARD + 1)
    assert len(history_of(tmp_path)) == 3
    network = run(data_set.folder, tmp_path)
    assert history_of(tmp_path) == history_of(whole_run[1])
    assert_same_state(network, whole_run[0])


def test_a_run_in_bfloat16_continues_as_one_that_was_never_stopped(
    data_set, whole_run, tmp_path, monkeypatch, float32_afterwards
):
    recipe = recipe_with(bfloat16=True)
    network = run(data_set.folder, tmp_path / "whole", recipe=recipe)
    assert network.get_layer("descriptor").compute_dtype == "bfloat16"
    rows = history_of(tmp_path / "whole")
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    assert rows != history_of(whole_run[1])
    run_until(monkeypatch, data_set.folder, tmp_path, recipe, mini_epochs=2)
    assert_same_state(run(data_set.folder, tmp_path, recipe=recipe), network)


def test_a_stop_says_how_far_the_run_came_and_what_to_do(data_set, tmp_path, monkeypatch):
    assert run_until(monkeypatch, data_set.folder, tmp_path, steps=4) == (
        "stopped by the test: 1 of 6 mini-epochs done; run the same command again to continue"
    )
    assert len(history_of(tmp_path)) == 1


def test_a_stop_before_the_first_batch_leaves_no_checkpoint(data_set, tmp_path, monkeypatch):
    run_until(monkeypatch, data_set.folder, tmp_path, steps=0)
    assert load(tmp_path) is None


def test_a_mini_epoch_that_would_not_fit_into_the_time_is_not_begun(data_set, tmp_path):
    class ShortOfTime(Stop):
        def requested(self, needed_s=0.0):
            return needed_s > 0

    with pytest.raises(StoppedError, match="stopped by the time limit: 1 of 6 mini-epochs done"):
        run(data_set.folder, tmp_path, ShortOfTime())  # how long the first takes is not known


def test_a_checkpoint_holds_all_that_mixed_precision_goes_on_from(
    data_set, tmp_path, float32_afterwards
):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("mixed_float16")  # as where there is a GPU
    session = session_at(tmp_path, data_set.folder)
    images = images_of(session.source)
    batch = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8), np.arange(8) % 2
    network, _ = begin(session, RECIPE, images)
    assert network.optimizer.name == "loss_scale_optimizer"
    network.optimizer.learning_rate = 0.01
    OneDevice().train_on_batch(network, *batch)
    save_checkpoint(session, network, RECIPE, images, [])
    again, _ = begin(session, RECIPE, images)
    assert_same_state(again, network)
    losses = [OneDevice().train_on_batch(each, *batch) for each in (again, network)]
    assert losses[0] == losses[1]
    assert_same_state(again, network)


def test_a_run_that_is_complete_reads_no_shard_again(data_set, whole_run, monkeypatch, capsys):
    monkeypatch.setattr(loop, "stream_batches", lambda *_: pytest.fail("reads a shard"))
    network = run(data_set.folder, whole_run[1])
    assert_same_state(network, whole_run[0])
    assert capsys.readouterr().err == "training is complete: 6 mini-epochs\n"


def test_a_checkpoint_is_said_to_take_four_bytes_for_each_value():
    layer, moment = SimpleNamespace(shape=(2, 3)), SimpleNamespace(shape=(4,))
    network = SimpleNamespace(variables=[layer], optimizer=SimpleNamespace(variables=[moment]))
    assert checkpoints.size_on_disk(network) == 40


def test_a_disk_that_runs_full_costs_no_checkpoint(data_set, whole_run, tmp_path, monkeypatch):
    real, saved = np.savez, []

    def savez(path, **arrays):
        saved.append(path)
        if len(saved) <= 2:
            return real(path, **arrays)
        path.write_bytes(b"half of a checkp")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", savez)
        with pytest.raises(ExpectedError, match="cannot be written .No space left on device."):
            run(data_set.folder, tmp_path)
    left = [path.name for path in checkpoint_of(tmp_path).parent.iterdir()]
    assert left == ["previous-training.npz"]
    assert history_of(tmp_path) == history_of(whole_run[1])[:2]


OTHER_SETTINGS = {
    "backbone": "resnet50",
    "weights": "imagenet",
    "image_size": 64,
    "batch_size": 4,
    "epochs": 3,
    "learning_rate": 0.031,
    "min_images": 6,
    "train_shards": (1, 3),
    "labels": "clean",
    "augment": False,
    "erase": 0.5,
    "geometry": 0.7,
    "keep_aspect": True,
    "pooling": "gem",
    "gem_p": 2.0,
    "neck": 8,
    "kept": 4,
    "frozen_backbone": True,
    "loss": "arcface",
    "scale": 10.0,
    "margin": 0.2,
    "dynamic_margin": True,
    "margin_ramp": 0.5,
    "sub_centers": 2,
    "class_weights": True,
    "optimizer": "sgd",
    "schedule": "cosine",
    "warm_up": 0.1,
    "weight_decay": 0.01,
    "backbone_rate": 0.5,
    "frozen_share": 0.3,
    "bfloat16": True,
    "seed": 1,
}


def test_every_setting_of_a_recipe_is_among_those_tried():
    assert OTHER_SETTINGS.keys() == Recipe().settings().keys()


@pytest.mark.parametrize(("name", "value"), OTHER_SETTINGS.items())
def test_a_changed_setting_is_named_and_refused(data_set, whole_run, name, value):
    session = session_at(whole_run[1], data_set.folder)
    with pytest.raises(ExpectedError) as caught:
        find_checkpoint(session, recipe_with(**{name: value}), images_of(session.source))
    assert explain(caught.value) == (
        f"{checkpoint_of(whole_run[1])}: it has {name} = {SETTINGS[name]}, now it is {value}; "
        "expected the same settings to continue; give them again, or start over with --fresh"
    )


@pytest.mark.parametrize(
    "landmark_ids", [[17, 402, 90_001], [17, 402, 90_001, 203_094], [402, 17, 90_001, 203_093]]
)
def test_another_class_table_is_refused(data_set, whole_run, landmark_ids):
    session = session_at(whole_run[1], data_set.folder)
    images = replace(images_of(session.source), class_table=ClassTable(np.array(landmark_ids)))
    with pytest.raises(ExpectedError) as caught:
        find_checkpoint(session, RECIPE, images)
    assert explain(caught.value) == (
        f"{checkpoint_of(whole_run[1])}: its landmarks are not the {len(landmark_ids)} of this "
        "source; expected the same class table; continue with the same source, or start over with "
        "--fresh"
    )


def test_a_checkpoint_from_before_a_setting_existed_continues_with_the_value_of_2019(
    data_set, tmp_path, monkeypatch
):
    recipe = recipe_with(epochs=1)
    run_until(monkeypatch, data_set.folder, tmp_path, recipe, mini_epochs=1)
    arrays, page = load_arrays(checkpoint_of(tmp_path))
    page["recipe"] = recipe.settings()  # as it was kept before there were groups
    assert page["recipe"].pop("bfloat16") is False
    save_arrays(checkpoint_of(tmp_path), page, **arrays)
    run(data_set.folder, tmp_path, recipe=recipe)
    assert len(history_of(tmp_path)) == 3


def test_swapped_labels_are_refused(data_set, whole_run):
    session = session_at(whole_run[1], data_set.folder)
    images = images_of(session.source)
    swapped = replace(images.labels, class_indices=3 - images.labels.class_indices)
    with pytest.raises(ExpectedError, match="trained with other labels of the same landmarks"):
        find_checkpoint(session, RECIPE, replace(images, labels=swapped))


DAMAGES = {
    "empty": lambda data: b"",
    "cut in half": lambda data: data[: len(data) // 2],
    "a byte changed": lambda data: data[:3000] + bytes([data[3000] ^ 255]) + data[3001:],
    "text": lambda data: b"not a checkpoint",
}


@pytest.fixture
def checkpoint(whole_run, tmp_path):
    """A copy of the last checkpoint and the one before it."""
    shutil.copytree(checkpoint_of(whole_run[1]).parent, tmp_path / "checkpoint")
    return checkpoint_of(tmp_path)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_in_the_place_of_a_damaged_checkpoint_the_one_before_it_is_taken(
    checkpoint, tmp_path, capsys, damage
):
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    assert len(history_of(tmp_path)) == NUM_MINI_EPOCHS - 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{checkpoint}: ")
    assert line.endswith("; trying the checkpoint before it")


def test_checkpoints_that_are_all_damaged_are_refused_in_one_line(checkpoint):
    for path in checkpoint.parent.iterdir():
        path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ExpectedError) as caught:
        load(checkpoint.parent.parent)
    assert "\n" not in str(caught.value)
    assert explain(caught.value).endswith("write or copy it again, or start over with --fresh")


@pytest.mark.parametrize("recipe", [3, ["adam"], {"epochs": "two"}, {"loss": {"scale": None}}])
def test_a_checkpoint_of_an_odd_recipe_is_refused_in_one_line(
    data_set, checkpoint, tmp_path, recipe
):
    arrays, page = load_arrays(checkpoint)
    save_arrays(checkpoint, page | {"recipe": recipe}, **arrays)
    session = session_at(tmp_path, data_set.folder)
    with pytest.raises(ExpectedError) as caught:
        find_checkpoint(session, RECIPE, images_of(session.source))
    message = explain(caught.value)
    assert message.startswith(f"{checkpoint}: recipe: ")
    assert "; expected a checkpoint that recognition.py wrote, or start over" in message


OTHER_ARRAYS = {
    "one too few": lambda arrays: {name: arrays[name] for name in sorted(arrays)[:-1]},
    "one too many": lambda arrays: arrays | {"v99999": np.zeros(3, np.float32)},
    "another shape": lambda arrays: arrays | {"v00000": arrays["v00000"][..., :1]},
    "text": lambda arrays: arrays | {"v00000": arrays["v00000"].astype(str)},
}


@pytest.mark.parametrize("change", OTHER_ARRAYS.values(), ids=OTHER_ARRAYS)
def test_a_checkpoint_of_other_variables_is_refused_in_one_line(
    data_set, checkpoint, tmp_path, change
):
    arrays, page = load_arrays(checkpoint)
    save_arrays(checkpoint, page, **change(arrays))
    session = session_at(tmp_path, data_set.folder)
    with pytest.raises(ExpectedError) as caught:
        begin(session, RECIPE, images_of(session.source))
    message = explain(caught.value)
    assert message.startswith(f"{checkpoint}: its ")
    assert message.endswith("the version that wrote it, or start over with --fresh")


def test_no_checkpoint_is_a_beginning(tmp_path):
    assert load(tmp_path) is None


# ------------------------------------------------------------------------------ data and losses


def test_a_loss_that_is_not_finite_stops_the_run(data_set, tmp_path, monkeypatch):
    real, num_steps = keras.Model.train_on_batch, []

    def train_on_batch(network, *args, **kwargs):
        num_steps.append(1)
        loss, accuracy = real(network, *args, **kwargs)
        return (math.nan if len(num_steps) == BATCHES_PER_SHARD + 2 else loss), accuracy

    monkeypatch.setattr(keras.Model, "train_on_batch", train_on_batch)
    with pytest.raises(ExpectedError) as caught:
        run(data_set.folder, tmp_path)
    assert str(caught.value) == (
        "the loss is nan in batch 2 of a mini-epoch; expected a finite number; "
        "run again from the last checkpoint, or start over with a lower learning rate"
    )
    assert len(history_of(tmp_path)) == 1


def test_steps_that_overflow_float16_are_skipped_counted_and_told(
    data_set, tmp_path, monkeypatch, tiny_backbones, float32_afterwards, capsys
):
    real = loop.begin

    def begin(*args):
        network, rows = real(*args)
        network.optimizer.dynamic_scale.assign(2.0**20)  # a step halves it
        return network, rows

    monkeypatch.setattr(loop, "begin", begin)
    monkeypatch.setattr(loop.model, "precision_here", lambda _: "mixed_float16")
    network = run(data_set.folder, tmp_path, recipe=STRONG)
    rows = history_of(tmp_path)
    skipped = [row["skipped_steps"] for row in rows]
    assert skipped[0] == BATCHES_PER_SHARD and skipped[-1] == 0
    assert int(network.optimizer.inner_optimizer.iterations) == 18 * BATCHES_PER_SHARD - sum(
        skipped
    )
    assert f", {BATCHES_PER_SHARD} steps skipped, " in capsys.readouterr().err
    assert all(math.isfinite(row["loss"]) for row in rows)


def test_weights_that_the_last_step_of_a_shard_spoilt_are_not_saved(
    data_set, tmp_path, monkeypatch
):
    real, num_steps = keras.Model.train_on_batch, []

    def train_on_batch(network, *args, **kwargs):
        num_steps.append(1)
        result = real(network, *args, **kwargs)
        if len(num_steps) == 2 * BATCHES_PER_SHARD:
            network.weights[0].assign(np.full(network.weights[0].shape, np.nan))
        return result

    monkeypatch.setattr(keras.Model, "train_on_batch", train_on_batch)
    with pytest.raises(ExpectedError, match="mini-epoch 2: its weights are not finite; expected "):
        run(data_set.folder, tmp_path)
    assert len(history_of(tmp_path)) == 1


def test_shards_without_an_image_to_train_on_are_an_error(data_set, tmp_path):
    source = shutil.copytree(data_set.folder, tmp_path / "source")
    lines = (source / TRAIN_CSV).read_text().splitlines()
    others = [f"{'f' * 11}{number:05x},u,{line.split(',')[2]}" for number, line in enumerate(lines)]
    (source / TRAIN_CSV).write_text("\n".join([lines[0], *others[1:]]) + "\n")
    with pytest.raises(ExpectedError, match="^3 shards held no image of the .* to train on; "):
        run(source, tmp_path / "output")


def test_after_a_damaged_checkpoint_the_good_one_is_never_the_first_to_go(
    data_set, tmp_path, monkeypatch
):
    run_until(monkeypatch, data_set.folder, tmp_path, mini_epochs=2)
    path = checkpoint_of(tmp_path)
    path.write_bytes(b"damaged")
    assert len(history_of(tmp_path)) == 1
    assert not path.exists()  # else the next save would put it in the good one's place


def test_a_checkpoint_of_another_precision_is_refused(
    data_set, tmp_path, monkeypatch, float32_afterwards
):
    run_until(monkeypatch, data_set.folder, tmp_path, mini_epochs=1)
    monkeypatch.setattr(loop.model, "precision", lambda: "mixed_float16")
    with pytest.raises(ExpectedError, match="trained in float32, here it is mixed_float16; "):
        run(data_set.folder, tmp_path)


def test_bad_images_are_counted_and_named(tmp_path, capsys):
    shard = Shard("train", 2)
    replaced = {(shard, 5): b"not an image", (shard, 7): b""}
    made = make_source(tmp_path / "source", replaced=replaced)
    run(tmp_path / "source", tmp_path / "output", recipe=recipe_with(epochs=1))
    rows = history_of(tmp_path / "output")
    assert [row["bad_images"] for row in rows] == [0, 2, 0]
    assert [row["images"] for row in rows] == [20, 18, 20]
    lines = capsys.readouterr().err.splitlines()
    prefix = "train/images_002.tar: image"
    assert f"{prefix} {made.image_ids[shard][5]} left out: not an image" in lines
    assert f"{prefix} {made.image_ids[shard][7]} left out: empty" in lines
    assert any("(train shard 002): 18 images, 2 bad, loss" in line for line in lines)


def test_a_shard_without_a_known_landmark_is_a_mini_epoch_without_a_loss(data_set, tmp_path):
    session = session_at(tmp_path, data_set.folder)
    images = images_of(session.source)
    in_shard = [int(image_id, 16) for image_id in data_set.image_ids[Shard("train", 1)]]
    kept = np.isin(images.labels.image_ids, np.array(in_shard, np.uint64))
    fewer = TrainLabels(images.labels.image_ids[kept], images.labels.class_indices[kept])
    shards = [Shard("train", 1), Shard("train", 2)]
    images = replace(images, labels=fewer, shards=shards, held_out=shards[1:])
    loop.train(session, recipe_with(epochs=1), images, 1)
    first, second = history_of(tmp_path)
    assert math.isfinite(first["loss"])
    assert (second["loss"], second["accuracy"]) == (None, None)
    assert second["images"] == 0
    assert "valid_loss" not in second  # the held-out shard has no known landmark either


def test_an_error_of_the_data_reaches_the_caller_and_keeps_the_checkpoint(tmp_path):
    folder = tmp_path / "source"
    make_source(folder)
    with open(folder / Shard("train", 2).path, "ab") as file:
        file.write(b"\0")
    with pytest.raises(ExpectedError, match=r"train/images_002\.tar: md5 differs"):
        run(folder, tmp_path / "output")
    assert len(history_of(tmp_path / "output")) == 1


def test_a_broken_shard_is_a_mini_epoch_with_a_problem_where_it_may_be_skipped(tmp_path, capsys):
    folder = tmp_path / "source"
    make_source(folder)
    path = write_shard(folder, Shard("train", 2), b"not a tar")
    run(folder, tmp_path / "output", recipe=recipe_with(epochs=1), skips_bad_shards=True)
    rows = history_of(tmp_path / "output")
    assert [row["images"] for row in rows] == [20, 0, 20]
    assert [row["loss"] is None for row in rows] == [False, True, False]
    assert [row["problem"] == "" for row in rows] == [True, False, True]
    assert rows[1]["problem"].startswith(f"{path}: ")
    assert f"train/images_002.tar left out: {rows[1]['problem']}" in capsys.readouterr().err
    with open(tmp_path / "output" / "history.csv", newline="") as file:
        cells = [row["problem"] for row in csv.DictReader(file)]
    assert cells == [row["problem"] for row in rows]


def test_one_more_broken_shard_than_may_be_skipped_is_an_error(tmp_path):
    folder = tmp_path / "source"
    make_source(folder)
    for number in (1, 3):
        write_shard(folder, Shard("train", number), b"not a tar")
    with pytest.raises(
        ExpectedError, match=r"images_003\.tar: .*expected a whole uncompressed tar"
    ):
        run(folder, tmp_path / "output", skips_bad_shards=True)
    assert len(history_of(tmp_path / "output")) == 2


def test_machines_together_leave_out_no_more_shards_than_one(tmp_path, data_set):
    """Each machine's stream counts its own; so two may come at the same time."""
    session = session_at(tmp_path, data_set.folder, skips_bad_shards=True)
    images = images_of(session.source)
    rows = [{"problem": "", "images": 9}, {"problem": "a.tar: broken; expected a tar"}]
    loop.require_good_shards(session, images, rows)
    with pytest.raises(ExpectedError, match="b.tar: broken") as caught:
        loop.require_good_shards(session, images, [*rows, {"problem": "b.tar: broken"}])
    assert caught.value.setting == "skip_bad_shards"


def test_a_skipped_shard_counts_in_the_sessions_after_it_too(tmp_path, monkeypatch):
    make_source(tmp_path / "source")
    write_shard(tmp_path / "source", Shard("train", 1), b"not a tar")
    one_of_three = {"skips_bad_shards": True, "recipe": recipe_with(epochs=1)}
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        stop = StopAfter(patch, mini_epochs=2)
        run(tmp_path / "source", tmp_path / "output", stop, **one_of_three)
    write_shard(tmp_path / "source", Shard("train", 3), b"not a tar")
    with pytest.raises(ExpectedError, match="images_003.tar"):
        run(tmp_path / "source", tmp_path / "output", **one_of_three)


def test_the_stream_is_read_as_the_recipe_says(data_set, tmp_path, monkeypatch):
    readings, real = [], loop.stream_batches

    def noting(source, plan, reading, *args):
        readings.append(reading)
        return real(source, plan, reading, *args)

    monkeypatch.setattr(loop, "stream_batches", noting)
    recipe = recipe_with(epochs=1, seed=7, erase=0.5)
    run(data_set.folder, tmp_path, recipe=recipe)
    held_out, train = readings
    assert train.data == held_out.data == recipe.data
    assert (train.is_training, train.seed) == (True, 7)
    assert not held_out.is_training


def test_machines_must_agree_on_settings_and_on_the_images_to_train_on(
    data_set, tmp_path, monkeypatch
):
    def follow_first(self, variables, rows, facts):
        raise StopIteration(facts)

    monkeypatch.setattr(Machines, "follow_first", follow_first)
    with pytest.raises(StopIteration) as caught:
        run(data_set.folder, tmp_path)
    facts = caught.value.value
    images = images_of(Source(data_set.folder, tmp_path))
    assert facts == SETTINGS | {"the digest of labels and shards": images.fingerprint}


def test_the_steps_to_come_are_those_of_the_shards_that_are_read(data_set, tmp_path):
    session = session_at(tmp_path, data_set.folder)
    recipe = recipe_with(train_shards=(1, 3), epochs=3, batch_size=4)
    images = images_of(session.source, recipe)
    assert len(images.labels) == 80  # in 4 shards; two of them, three times, 4 images a step
    assert loop.count_steps(session, recipe, images) == 30


def test_an_image_that_only_fills_a_batch_does_not_count_in_the_validation():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8]], np.float32))

    class Known:
        def predict_on_batch(self, network, images):
            return [logits]

    whole = Batch(None, np.arange(3), np.array([0, 1, 1]), None)
    partial = Batch(None, np.arange(1), np.array([2]), None)
    found = loop.validate(Known(), None, [whole, partial])
    expected = -np.log([0.5, 0.6, 0.1, 0.25]).mean()
    assert found == pytest.approx({"valid_loss": expected, "valid_accuracy": 0.5})
    logits /= 16  # cosines
    assert loop.validate(Known(), None, [whole, partial], scale=16) == pytest.approx(found)


def test_the_held_out_images_are_plain_and_not_more_than_fit_into_memory(
    data_set, tmp_path, monkeypatch, capsys
):
    session = session_at(tmp_path, data_set.folder)
    images = images_of(session.source)
    batches = loop.load_valid_images(session, RECIPE, images, "")
    first = capsys.readouterr().err.splitlines()[0]  # before anything is fetched
    assert first == "reading 1 held-out shard to validate on: train/images_000.tar"
    ids = np.concatenate([batch.image_ids for batch in batches])
    assert [len(batch.image_ids) for batch in batches] == [8, 8, 4]
    in_tar = [int(image_id, 16) for image_id in data_set.image_ids[Shard("train", 0)]]
    assert ids.tolist() == in_tar
    plain = loop.Reading(RECIPE.data, 8, images.labels.find)
    *expected, _ = loop.stream_batches(session.source, [(0, Shard("train", 0))], plain)
    for batch, other in zip(batches, expected, strict=True):
        np.testing.assert_array_equal(batch.images, other.images)
    both = replace(images, held_out=[Shard("train", 0), Shard("train", 1)])
    for limit, num_batches in ((8, 1), (9, 2)):
        monkeypatch.setattr(loop, "MAX_VALID_IMAGES", limit)
        assert len(loop.load_valid_images(session, RECIPE, both, "")) == num_batches


# ---------------------------------------------------------------------------------- what is said

DURATIONS = {
    0: "0 s",
    0.4: "0 s",
    59.4: "59 s",
    59.6: "1 min 00 s",
    200: "3 min 20 s",
    3599.4: "59 min 59 s",
    3599.5: "1 h 00 min",
    7500: "2 h 05 min",
    360_000: "100 h 00 min",
}


@pytest.mark.parametrize(("seconds", "text"), DURATIONS.items())
def test_a_duration_reads_as_a_person_says_it(seconds, text):
    assert format_duration(seconds) == text


def test_progress_is_one_line_with_all_that_matters():
    row = {
        "mini_epoch": 3, "shard": 12, "images": 7132, "bad_images": 2, "loss": 1.23456,
        "accuracy": 0.5, "valid_accuracy": 0.25, "images_per_s": 71.32, "waited_s": 5.0,
        "seconds": 100.0,
    }  # fmt: skip
    assert describe_progress([row], 10) == (
        "mini-epoch 3/10 (train shard 012): 7,132 images, 2 bad, loss 1.235, accuracy 0.500, held "
        "out 0.250, 71 images/s, 5% waiting for data, 15 min 00 s to go"
    )
    plain = row | {"bad_images": 0, "seconds": 50.0}
    del plain["valid_accuracy"]
    assert describe_progress([row] * 4 + [plain], 10) == (
        "mini-epoch 3/10 (train shard 012): 7,132 images, loss 1.235, accuracy 0.500, "
        "71 images/s, 10% waiting for data, 8 min 20 s to go"
    )
