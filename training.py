"""The training run: mini-epochs over a stream of shards, validation, checkpoint, history.

Imports Keras, via `model`.
"""

import dataclasses
import hashlib
import math
import os
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import model
from arrays import load_arrays, save_arrays
from generators import Reading, ShardEnd, stream_batches, tell_problems
from images import Augmentation
from landmarks import ClassTable, TrainLabels
from optimizers import set_rates, steps_taken
from recipes import Recipe, learning_rate_at
from replicas import set_up_replicas
from session import CHECKPOINT, HISTORY, HISTORY_PICTURE, MODEL, PREVIOUS_CHECKPOINT
from tables import write_table
from utils import (
    ExpectedError,
    StoppedError,
    atomic_write,
    format_duration,
    require_free_space,
    say,
)

ALL_SHARDS = -1  # in the place of a shard's number, where a mini-epoch is a pass over all vectors
MAX_VALID_IMAGES = 4096  # kept decoded in memory: 453 MB at 192 pixels
HISTORY_COLUMNS = (
    "mini_epoch", "epoch", "shard", "images", "bad_images", "loss", "accuracy", "valid_loss",
    "valid_accuracy", "learning_rate", "skipped_steps", "images_per_s", "waited_s", "seconds",
    "problem",
)  # fmt: skip


@dataclass(frozen=True)
class TrainImages:
    """What there is to train on.

    Attributes:
        class_table, labels: `ClassTable` and `TrainLabels` of the source.
        shards: list of train `Shard`, one epoch.
        held_out: list of train `Shard` to validate on.
    """

    class_table: ClassTable
    labels: TrainLabels
    shards: list
    held_out: list

    @property
    def class_sizes(self):
        """(num_classes,) int64, the train images of each landmark."""
        return np.bincount(self.labels.class_indices, minlength=len(self.class_table))

    @property
    def fingerprint(self):
        """Words that differ for other landmarks, other labels of images, or other shards."""
        shards = " ".join(shard.path for shard in self.shards)
        facts = f"{self.class_table.fingerprint} {self.labels.fingerprint} {shards}"
        return hashlib.sha256(facts.encode()).hexdigest()[:12]


# ------------------------------------------------------------------------------- the whole run


def train(session, recipe, images, valid_every):
    """Trains shard after shard, from the checkpoint if there is one.

    Args:
        session: `Session`.
        recipe: `Recipe`.
        images: `TrainImages`.
        valid_every: mini-epochs between validations.

    Returns:
        The trained network.

    Raises:
        StoppedError: the session was asked to stop; the checkpoint holds what is done.
        ExpectedError: data, network or disk fail, or the loss is no longer finite.
    """
    policy = model.set_up_keras(recipe.training.seed, recipe.training.bfloat16)
    plan = [(epoch, shard) for epoch in range(recipe.training.epochs) for shard in images.shards]
    replicas = set_up_replicas(recipe.training.batch_size)
    with replicas.scope():
        network, rows = begin_or_continue(session, recipe, images)
    facts = recipe.settings() | {"the digest of labels and shards": images.fingerprint}
    rows = replicas.follow_first(network, rows, facts)
    if len(rows) == len(plan):
        say(f"training is complete: {len(plan)} mini-epochs")
        write_history(session, rows, True)  # that session wrote to another folder
        return network
    say(
        f"{recipe.network.backbone}, {policy}, {recipe.data.image_size} pixels, "
        f"{len(images.class_table):,} landmarks"
    )
    require_space(session, network)
    valid = load_valid_images(session, recipe, images, describe_done(rows, plan))
    num_classes = len(images.class_table)
    steps_of_shard = count_steps(session, recipe, images) / len(plan)
    stream = open_stream(session, replicas, recipe, images, rows, plan)
    stop = replicas.common(session.stop)
    while len(rows) < len(plan):
        done = describe_done(rows, plan)
        # A mini-epoch that would not fit into the time is not begun.
        longest_s = max((row["seconds"] for row in rows[-10:]), default=0)
        if stop.requested(longest_s * replicas.num_machines):
            raise StoppedError(stop, done)
        group = plan[len(rows) : len(rows) + replicas.num_machines]
        pace = Pace(recipe, network, len(rows), len(plan), steps_of_shard, len(group))
        trained = train_mini_epoch(replicas, network, stream, pace, stop, done)
        trained = replicas.collect(trained, len(group))
        for (epoch, _), row in zip(group, trained, strict=True):
            rows.append({"mini_epoch": len(rows) + 1, "epoch": epoch + 1} | row)
        is_milestone = len(rows) % valid_every < len(group) or len(rows) == len(plan)
        if is_milestone:
            rows[-1] |= validate(replicas, network, valid, model.scale_of(recipe.loss, num_classes))
        if replicas.is_first:
            save_checkpoint(session, network, recipe, images, rows)
            write_history(session, rows, is_milestone)
            say(describe_progress(rows, len(plan)))
        if len(rows) >= len(images.shards) and not any(row["images"] for row in rows):
            raise no_images(images)
    return network


def open_stream(session, replicas, recipe, images, rows, plan):
    """Opens the stream of the shards to come.

    Args:
        session, recipe, images: as for `train`.
        replicas: how batches run, of `set_up_replicas`.
        rows: of the history, one for each shard that is done.
        plan: list of (epoch, `Shard`), the whole run.

    Returns:
        Iterator of `Batch` and `ShardEnd`.
    """
    num_skippable = session.num_skippable(len(images.shards))
    num_skippable -= sum(bool(row["problem"]) for row in rows)

    def stream(plan, reading):
        return stream_batches(session.source, plan, reading, session.stop.requested, num_skippable)

    return replicas.keep_step(stream, plan[len(rows) :], reading_of(recipe, images.labels))


def describe_done(rows, plan):
    """Says how far the run came, for a person who may continue it."""
    return f"{len(rows)} of {len(plan)} mini-epochs done"


def reading_of(recipe, labels):
    """Gives the `Reading` of train images: shuffled, augmented, every batch full."""
    return Reading(
        recipe.data.image_size,
        recipe.training.batch_size,
        labels.find,
        is_shuffled=True,
        fills_batches=True,
        keeps_aspect=recipe.data.keep_aspect,
        augmentation=Augmentation(recipe.data.augment, recipe.data.geometry, recipe.data.erase),
        seed=recipe.training.seed,
    )


def count_steps(session, recipe, images):
    """Estimates the training steps of a whole run, from the share of the shards that it reads."""
    share = len(images.shards) / session.source.count_shards("train")
    return round(len(images.labels) * share * recipe.training.epochs / recipe.training.batch_size)


def no_images(images):
    """Makes the ExpectedError of an epoch without an image to train on."""
    return ExpectedError(
        f"{len(images.shards)} shards held no image of the {len(images.labels):,} to train on; "
        "expected the train table to name images of these shards; check the source and the choice "
        "of train shards",
    )


def require_space(session, network):
    """Raises ExpectedError unless two checkpoints fit on the disk."""
    paths = (session.path(CHECKPOINT), session.path(PREVIOUS_CHECKPOINT))
    present_bytes = sum(path.stat().st_size for path in paths if path.exists())
    needed_bytes = 2 * size_on_disk(network) - present_bytes
    require_free_space(paths[0].parent, needed_bytes, "two checkpoints")


@dataclass(frozen=True)
class Pace:
    """What changes from step to step, learning rates and margin; it follows from the position.

    Attributes:
        recipe: `Recipe`.
        network: compiled keras.Model.
        mini_epoch: counted from 0.
        num_mini_epochs: of the whole run.
        steps_of_shard: how many steps a shard is expected to have; no step is known to be the last.
        num_together: mini-epochs that several machines train together, one after another otherwise.
    """

    recipe: Recipe
    network: object
    mini_epoch: int
    num_mini_epochs: int
    steps_of_shard: float
    num_together: int = 1

    def set_for(self, step):
        """Sets the rates of a step of this mini-epoch, counted from 0; gives the learning rate."""
        share = (step + 0.5) / max(self.steps_of_shard, 1)
        passed = min(int(share), self.num_together - 1)
        mini_epoch, share = self.mini_epoch + passed, min(share - passed, 1.0)
        progress = (mini_epoch + share) / self.num_mini_epochs
        training, ramp = self.recipe.training, self.recipe.loss.margin_ramp
        rate = learning_rate_at(training, mini_epoch, share, self.num_mini_epochs)
        # A last shard longer than expected has steps at progress 1.
        is_frozen = progress < training.frozen_share or training.frozen_share == 1
        set_rates(self.network.optimizer, rate, 0.0 if is_frozen else training.backbone_rate)
        if ramp and self.recipe.loss.loss != "softmax":
            head = self.network.get_layer(model.LOGITS)
            head.margin_share.assign(min(1.0, progress / ramp))
        return rate


def train_mini_epoch(replicas, network, stream, pace, stop, done):
    """Trains on the batches of one shard.

    Args:
        replicas: how batches run, of `set_up_replicas`.
        network: compiled keras.Model.
        stream: iterator of `Batch` and `ShardEnd`.
        pace: `Pace`.
        stop: `Stop`.
        done: what to say is done, if `stop` asks to stop here.

    Returns:
        dict, the part of a history row that is known here.

    Raises:
        StoppedError: `stop` asked to; this mini-epoch will be trained again.
        ExpectedError: the loss is not finite.
    """
    begin, waited_s, losses, accuracies = time.perf_counter(), 0.0, [], []
    rate, steps_before = pace.set_for(0), steps_taken(network.optimizer)
    while True:
        asked = time.perf_counter()
        item = next(stream)
        waited_s += time.perf_counter() - asked
        if isinstance(item, ShardEnd):
            break
        if stop.requested():
            raise StoppedError(stop, done)
        rate = pace.set_for(len(losses))
        loss, accuracy = replicas.train_on_batch(network, item.images, item.class_indices)
        if not math.isfinite(loss):
            raise ExpectedError(
                f"the loss is {loss} in batch {len(losses) + 1} of a mini-epoch; expected a finite "
                "number; run again from the last checkpoint, or start over with a lower learning "
                "rate"
            )
        losses.append(loss)
        accuracies.append(accuracy)
    replicas.settle(network)
    tell_problems(item, "left out")
    seconds = time.perf_counter() - begin
    return {
        "shard": item.shard.number,
        "images": item.num_images,
        "bad_images": len(item.bad_images),
        "loss": float(np.mean(losses)) if losses else None,  # a shard without images of a class
        "accuracy": float(np.mean(accuracies)) if losses else None,
        "learning_rate": rate,
        "skipped_steps": len(losses) - (steps_taken(network.optimizer) - steps_before),
        "images_per_s": item.num_images / seconds,
        "waited_s": waited_s,
        "seconds": seconds,
        "problem": item.problem,
    }


# ---------------------------------------------------------------------------------- validation


def load_valid_images(session, recipe, images, done):
    """Decodes the held-out shards once, up to MAX_VALID_IMAGES, in the tar's order and uncropped.

    Args:
        session, recipe, images: as for `train`.
        done: what to say is done, if the session is asked to stop here.

    Returns:
        list of `Batch`.
    """
    reading = dataclasses.replace(
        reading_of(recipe, images.labels),
        is_shuffled=False,
        fills_batches=False,
        augmentation=Augmentation(),
    )
    plan = [(0, shard) for shard in images.held_out]
    batches, num_images = [], 0
    for item in stream_batches(session.source, plan, reading, session.stop.requested):
        if session.stop.requested():
            raise StoppedError(session.stop, done)
        if num_images >= MAX_VALID_IMAGES:
            break
        if not isinstance(item, ShardEnd):
            batches.append(item)
            num_images += len(item.image_ids)
    return batches


def validate(replicas, network, batches, scale=1.0):
    """Measures loss and accuracy on the held-out images; the history row's valid_ columns.

    A margin is left out: it would make a landmark harder to name than it is.
    """
    losses, hits = [], []
    for batch in batches:
        (logits,) = replicas.predict_on_batch(network, batch.images)
        logits = logits[: len(batch.image_ids)]  # the rest only fills the batch
        losses.append(cross_entropy(scale * logits, batch.class_indices))
        hits.append(logits.argmax(axis=1) == batch.class_indices)
    if not losses:
        return {}
    return {
        "valid_loss": float(np.mean(np.concatenate(losses))),
        "valid_accuracy": float(np.mean(np.concatenate(hits))),
    }


def cross_entropy(logits, class_indices):
    """Computes the loss of each image: (n, num_classes) and (n,) int -> (n,)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    right = shifted[np.arange(len(logits)), class_indices]
    return np.log(np.exp(shifted).sum(axis=1)) - right


# ---------------------------------------------------------------------------------- checkpoint


def save_checkpoint(session, network, recipe, images, rows, backbone=None):
    """Writes weights, optimizer, recipe, what was trained on, and history as one atomic file.

    The checkpoint before it stays as a second one, in case this one is damaged.

    Args:
        session, recipe, images: as for `train`.
        network: compiled keras.Model.
        rows: of the history.
        backbone: digest of a frozen backbone that is not in the network.

    Raises:
        ExpectedError: the weights are not finite, or the disk is full.
    """
    page = {
        "landmarks": images.class_table.fingerprint,
        "labels": images.labels.fingerprint,
        "precision": model.precision(),
        "recipe": recipe.as_page(),
        "backbone": backbone,
        "history": rows,
    }
    variables = {f"v{i:05d}": model.to_numpy(v) for i, v in enumerate(_variables(network))}
    # The loss of a batch is that before its step: the last step of a shard shows here alone.
    if not all(np.isfinite(values).all() for values in variables.values()):
        raise ExpectedError(
            f"mini-epoch {len(rows)}: its weights are not finite; expected finite numbers; run "
            "again from the last checkpoint, or start over with a lower learning rate"
        )
    path = session.path(CHECKPOINT)
    if path.exists():
        os.replace(path, session.path(PREVIOUS_CHECKPOINT))
    save_arrays(path, page, **variables)


def size_on_disk(network):
    """Estimates the bytes of a checkpoint."""
    return sum(4 * math.prod(variable.shape) for variable in _variables(network))


def _variables(network):
    """Lists all that training changes, in an order that depends on the architecture alone."""
    return [*network.variables, *network.optimizer.variables]


def forget(session):
    """Removes the results of training, so that it starts over."""
    for name in (CHECKPOINT, PREVIOUS_CHECKPOINT, MODEL):
        session.path(name).unlink(missing_ok=True)


def load_checkpoint(session):
    """Reads the checkpoint, or the one before where it is damaged or missing.

    Where the output has none, those of an earlier session are copied first.

    Returns:
        (path, dict of arrays, page dict), or None where there is no checkpoint.

    Raises:
        ExpectedError: there are checkpoints, and all are damaged.
    """
    paths = [session.path(CHECKPOINT), session.path(PREVIOUS_CHECKPOINT)]
    if not any(path.exists() for path in paths):
        session.take_up(CHECKPOINT)
        session.take_up(PREVIOUS_CHECKPOINT)
    failure = None
    for path in [path for path in paths if path.exists()]:
        try:
            saved = load_arrays(path)
            if not {"recipe", "precision", "landmarks", "history"} <= saved[1].keys():
                raise ExpectedError(
                    f"{path}: not a checkpoint of this version; expected one that recognition.py "
                    "wrote; remove it"
                )
        except ExpectedError as error:
            failure = error
            say(f"{error}; trying the checkpoint before it")
            continue
        if path != paths[0]:
            paths[0].unlink(missing_ok=True)  # else the next save would put it in this one's place
        return path, *saved
    if failure:
        raise ExpectedError(str(failure), setting="fresh") from failure
    return None


def begin_or_continue(session, recipe, images, build=model.build_network, backbone=None):
    """Builds the network, and restores the checkpoint if there is one.

    Args:
        session, recipe, images: as for `train`.
        build: function, as `model.build_network`.
        backbone: digest of a frozen backbone that is not in the network.

    Returns:
        (compiled keras.Model, list of history rows).

    Raises:
        ExpectedError: the checkpoint belongs to other settings, labels or versions of Keras.
    """
    saved = load_checkpoint(session)
    if saved:
        _check_continues(saved[0], saved[2], recipe, images)
        _check_backbone(saved[0], saved[2], backbone)
    num_steps = count_steps(session, recipe, images)
    network = build(recipe, len(images.class_table), num_steps, weights="none" if saved else None)
    model.compile_network(network, recipe, images.class_sizes)
    network.optimizer.build(network.trainable_variables)
    if not saved:
        return network, []
    path, arrays, page = saved
    _restore(path, network, [arrays[name] for name in sorted(arrays)])
    return network, page["history"]


def _restore(path, network, arrays):
    """Gives the variables of a network a checkpoint's values; raises ExpectedError if they differ.

    Another version of Keras may have others for the same recipe.
    """
    variables = _variables(network)
    shapes, wanted = ([tuple(each.shape) for each in group] for group in (arrays, variables))
    if shapes != wanted or not all(array.dtype.kind in "fiub" for array in arrays):
        raise ExpectedError(
            f"{path}: its {len(arrays)} arrays are not the {len(variables)} weights and moments of "
            "this network in their shapes; expected a checkpoint of this version of Keras; "
            "continue with the version that wrote it",
            setting="fresh",
        )
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def _check_continues(path, page, recipe, images):
    """Raises ExpectedError unless a checkpoint is of this recipe, precision and landmarks."""
    try:
        was = Recipe.of(page["recipe"]).settings()
    except ValueError as error:
        raise ExpectedError(
            f"{path}: {error}; expected a checkpoint that recognition.py wrote", setting="fresh"
        ) from error
    for name, value in recipe.settings().items():
        if was[name] != value:
            raise ExpectedError(
                f"{path}: it has {name} = {was[name]}, now it is {value}; expected the same "
                "settings to continue; give them again",
                setting="fresh",
            )
    if page["precision"] != model.precision():
        raise ExpectedError(
            f"{path}: trained in {page['precision']}, here it is {model.precision()}; expected the "
            "same kind of processor; continue with or without a GPU as before",
            setting="fresh",
        )
    if page["landmarks"] != images.class_table.fingerprint:
        raise ExpectedError(
            f"{path}: its landmarks are not the {len(images.class_table)} of this source; expected "
            "the same class table; continue with the same source",
            setting="fresh",
        )
    if page.get("labels", images.labels.fingerprint) != images.labels.fingerprint:
        raise ExpectedError(
            f"{path}: it was trained with other labels of the same landmarks; expected the same "
            "train table; continue with the same source",
            setting="fresh",
        )


def _check_backbone(path, page, backbone):
    """Raises ExpectedError unless a checkpoint is of this frozen backbone."""
    if page.get("backbone") != backbone:
        raise ExpectedError(
            f"{path}: the frozen backbone has other weights now; expected those that its vectors "
            "came from; continue with the same weights",
            setting="fresh",
        )


# ------------------------------------------------------------------------------------- history


def write_history(session, rows, with_picture):
    """Writes history.csv, a row per mini-epoch, and history.png if asked to."""
    write_table(session.path(HISTORY), pd.DataFrame(rows, columns=HISTORY_COLUMNS))
    if with_picture:
        with atomic_write(session.path(HISTORY_PICTURE)) as temporary:
            draw_history(rows).savefig(temporary, dpi=110)


def draw_history(rows):
    """Draws loss, accuracy and speed over the mini-epochs as a matplotlib Figure."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    loss, accuracy, speed = figure.subplots(1, 3)
    rows = [row for row in rows if row["loss"] is not None]
    steps = [row["mini_epoch"] for row in rows]
    valid = [row for row in rows if "valid_loss" in row]
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        axes.plot(steps, [row[name] for row in rows], label="train", color="tab:blue")
        axes.plot(
            [row["mini_epoch"] for row in valid],
            [row[f"valid_{name}"] for row in valid],
            label="held out", color="tab:orange", marker=".",
        )  # fmt: skip
        axes.set_title(name)
        axes.legend()
    accuracy.set_ylim(0, 1)
    speed.plot(steps, [row["images_per_s"] for row in rows], color="tab:green")
    speed.set_ylim(0)
    speed.set_title("images/s")
    for axes in (loss, accuracy, speed):
        axes.set_xlabel("mini-epoch")
        axes.grid(alpha=0.3)
    return figure


def describe_progress(rows, num_mini_epochs):
    """Writes the last mini-epoch as one line: loss, speed, share of waiting, time to go."""
    row, recent = rows[-1], rows[-10:]
    # The median: a session's first mini-epoch also compiles the network.
    left_s = (num_mini_epochs - len(rows)) * np.median([row["seconds"] for row in recent])
    valid = f", held out {row['valid_accuracy']:.3f}" if "valid_accuracy" in row else ""
    bad = f", {row['bad_images']} bad" if row["bad_images"] else ""
    skipped = f", {row['skipped_steps']} steps skipped" if row.get("skipped_steps") else ""
    learned = ""
    if row["loss"] is not None:
        learned = f", loss {row['loss']:.3f}, accuracy {row['accuracy']:.3f}"
    place = "vectors" if row["shard"] == ALL_SHARDS else f"train shard {row['shard']:03d}"
    return (
        f"mini-epoch {row['mini_epoch']}/{num_mini_epochs} ({place}): "
        f"{row['images']:,} images{bad}{learned}{valid}{skipped}, "
        f"{row['images_per_s']:.0f} images/s, "
        f"{row['waited_s'] / row['seconds']:.0%} waiting for data, {format_duration(left_s)} to go"
    )
