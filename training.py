"""The training run: mini-epochs over a stream of shards, validation, checkpoint, history.

Imports Keras, by way of `model`.
"""

import csv
import dataclasses
import math
import os
import time
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

import model
from generators import Reading, ShardEnd, stream_batches, tell_problems
from replicas import set_up_replicas
from utils import (
    ExpectedError,
    StoppedError,
    atomic_write,
    load_arrays,
    require_free_space,
    save_arrays,
    say,
)

MAX_VALID_IMAGES = 4096  # kept decoded in memory: 453 MB at 192 pixels
HISTORY_COLUMNS = (
    "mini_epoch", "epoch", "shard", "images", "bad_images", "loss", "accuracy", "valid_loss",
    "valid_accuracy", "learning_rate", "images_per_s", "waited_s", "seconds", "problem",
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Everything that shapes the trained weights; it must not change when a run continues."""

    backbone: str
    weights: str
    image_size: int
    batch_size: int
    epochs: int
    learning_rate: float
    min_images: int
    train_shards: tuple
    clean: bool
    augment: bool
    bfloat16: bool
    seed: int

    @classmethod
    def from_args(cls, args):
        """Picks the recipe's settings from a parsed command line."""
        return cls(**{field.name: getattr(args, field.name) for field in dataclasses.fields(cls)})


# ------------------------------------------------------------------------------- the whole run


def train(
    session,
    recipe,
    class_table,
    labels,
    shards,
    valid_shards,
    valid_every,
    num_skippable,
    checkpoint,
):
    """Trains shard after shard, from the checkpoint if there is one.

    Args:
        session: `Session`.
        recipe: `Recipe`.
        class_table, labels: `ClassTable` and `TrainLabels` of the source.
        shards: list of train `Shard` of one epoch.
        valid_shards: list of held-out train `Shard`.
        valid_every: mini-epochs between validations.
        num_skippable: broken shards to leave out before one more is an error.
        checkpoint: path of the checkpoint, written after every mini-epoch.

    Returns:
        The trained network.

    Raises:
        StoppedError: the session was asked to stop; the checkpoint holds what is done.
        ExpectedError: data, network or disk fail, or the loss is no longer finite.
    """
    policy = model.set_up_keras(recipe.seed, recipe.bfloat16)
    share = len(shards) / session.source.count_shards("train")
    num_steps = round(len(labels) * share * recipe.epochs / recipe.batch_size)
    replicas = set_up_replicas(recipe.batch_size)
    with replicas.scope():
        network, rows = begin_or_continue(recipe, class_table, num_steps, checkpoint)
    plan = [(epoch, shard) for epoch in range(recipe.epochs) for shard in shards]
    if len(rows) == len(plan):
        say(f"training is complete: {len(plan)} mini-epochs")
        write_history(session.output, rows, True)  # an earlier session's lies elsewhere
        return network
    say(f"{recipe.backbone}, {policy}, {recipe.image_size} pixels, {len(class_table):,} landmarks")
    reading = Reading(
        recipe.image_size, recipe.batch_size, labels.find, augment=recipe.augment, seed=recipe.seed
    )
    present = (path for path in (checkpoint, previous_checkpoint(checkpoint)) if path.exists())
    needed = 2 * size_on_disk(network) - sum(path.stat().st_size for path in present)
    require_free_space(checkpoint.parent, needed, "two checkpoints")
    done = f"{len(rows)} of {len(plan)} mini-epochs done"
    valid = load_valid_images(session, valid_shards, reading, done)
    num_skippable -= sum(bool(row["problem"]) for row in rows)
    stream = stream_batches(
        session.source, plan[len(rows) :], reading, session.stop.requested, num_skippable
    )
    for mini_epoch in range(len(rows), len(plan)):
        done = f"{mini_epoch} of {len(plan)} mini-epochs done"
        # A mini-epoch that would not fit into the time is not begun.
        if session.stop.requested(max((row["seconds"] for row in rows[-10:]), default=0)):
            raise StoppedError(session.stop, done)
        rate = model.learning_rate_at(mini_epoch, len(plan), recipe.learning_rate)
        network.optimizer.learning_rate = rate
        row = {"mini_epoch": mini_epoch + 1, "epoch": plan[mini_epoch][0] + 1}
        row |= train_mini_epoch(replicas, network, stream, session.stop, done)
        row |= {"learning_rate": rate}
        is_milestone = (mini_epoch + 1) % valid_every == 0 or mini_epoch + 1 == len(plan)
        if is_milestone:
            row |= validate(replicas, network, valid)
        rows.append(row)
        save_checkpoint(checkpoint, network, recipe, class_table, rows)
        write_history(session.output, rows, is_milestone)
        say(describe_progress(rows, len(plan)))
        if mini_epoch + 1 == len(shards) and not any(row["images"] for row in rows):
            raise ExpectedError(
                f"{len(shards)} shards held no image of the {len(labels):,} to train on; expected "
                "train.csv to name images of these shards; check --source and --train-shards"
            )
    return network


def train_mini_epoch(replicas, network, stream, stop, done):
    """Trains on the batches of one shard.

    Args:
        replicas: how batches run, of `set_up_replicas`.
        network: compiled keras.Model.
        stream: iterator of `Batch` and `ShardEnd`.
        stop: `Stop`.
        done: what to say is done, if `stop` asks to stop here.

    Returns:
        dict, the part of a history row that is known here.

    Raises:
        StoppedError: `stop` asked to; this mini-epoch will be trained again.
        ExpectedError: the loss is not finite.
    """
    begin, waited_s, losses, accuracies = time.perf_counter(), 0.0, [], []
    while True:
        asked = time.perf_counter()
        item = next(stream)
        waited_s += time.perf_counter() - asked
        if isinstance(item, ShardEnd):
            break
        if stop.requested():
            raise StoppedError(stop, done)
        loss, accuracy = replicas.train_on_batch(network, item.images, item.class_indices)
        if not math.isfinite(loss):
            raise ExpectedError(
                f"the loss is {loss} in batch {len(losses) + 1} of a mini-epoch; expected a finite "
                "number; run again from the last checkpoint, or --fresh with a lower "
                "--learning-rate"
            )
        losses.append(loss)
        accuracies.append(accuracy)
    tell_problems(item, "left out")
    seconds = time.perf_counter() - begin
    return {
        "shard": item.shard.number,
        "images": item.num_images,
        "bad_images": len(item.bad_images),
        "loss": float(np.mean(losses)) if losses else None,  # a shard without images of a class
        "accuracy": float(np.mean(accuracies)) if losses else None,
        "images_per_s": item.num_images / seconds,
        "waited_s": waited_s,
        "seconds": seconds,
        "problem": item.problem,
    }


# ---------------------------------------------------------------------------------- validation


def load_valid_images(session, shards, reading, done):
    """Decodes the held-out shards once, up to MAX_VALID_IMAGES, without crops or mirroring.

    Returns:
        list of `Batch`.
    """
    reading = dataclasses.replace(reading, augment=False)
    plan = [(0, shard) for shard in shards]
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


def validate(replicas, network, batches):
    """Measures loss and accuracy on the held-out images; the history row's valid_ columns."""
    losses, seen = {}, {}
    for batch in batches:
        (logits,) = replicas.predict_on_batch(network, batch.images)
        rows = np.arange(len(logits))
        shifted = logits - logits.max(axis=1, keepdims=True)
        loss = np.log(np.exp(shifted).sum(axis=1)) - shifted[rows, batch.class_indices]
        # By image, so that those which fill up the last batch do not count twice.
        losses |= dict(zip(batch.image_ids.tolist(), loss.tolist(), strict=True))
        is_right = logits.argmax(axis=1) == batch.class_indices
        seen |= dict(zip(batch.image_ids.tolist(), is_right.tolist(), strict=True))
    if not seen:
        return {}
    return {
        "valid_loss": float(np.mean(list(losses.values()))),
        "valid_accuracy": float(np.mean(list(seen.values()))),
    }


# ---------------------------------------------------------------------------------- checkpoint


def save_checkpoint(path, network, recipe, class_table, rows):
    """Writes weights, optimizer, settings, class table and history as one atomic file.

    The checkpoint before it stays as a second one, in case that this one is damaged later.

    Raises:
        ExpectedError: the weights are not finite, or the disk is full.
    """
    page = {
        "landmarks": class_table.fingerprint,
        "precision": model.precision(),
        "recipe": dataclasses.asdict(recipe),
        "history": rows,
    }
    variables = {f"v{i:05d}": model.to_numpy(v) for i, v in enumerate(_variables(network))}
    # The loss of a batch is that before its step: the last step of a shard shows here alone.
    if not all(np.isfinite(values).all() for values in variables.values()):
        raise ExpectedError(
            f"mini-epoch {len(rows)}: its weights are not finite; expected finite numbers; run "
            "again from the last checkpoint, or --fresh with a lower --learning-rate"
        )
    if path.exists():
        os.replace(path, previous_checkpoint(path))
    save_arrays(path, page, **variables)


def size_on_disk(network):
    """Estimates the bytes of a checkpoint."""
    return sum(4 * math.prod(variable.shape) for variable in _variables(network))


def previous_checkpoint(path):
    """Gives the name of the checkpoint before `path`."""
    return path.with_name(f"previous-{path.name}")


def _variables(network):
    """Lists all that training changes, in an order that depends on the architecture alone."""
    return [*network.variables, *network.optimizer.variables]


def load_checkpoint(path):
    """Reads the checkpoint, or the one before where it is damaged or missing.

    Returns:
        (dict of arrays, page dict), or None where there is no checkpoint.

    Raises:
        ExpectedError: there are checkpoints, and all are damaged.
    """
    present = [file for file in (path, previous_checkpoint(path)) if file.exists()]
    failure = None
    for file in present:
        try:
            saved = load_arrays(file)
            if not {"recipe", "precision", "landmarks", "history"} <= saved[1].keys():
                raise ExpectedError(
                    f"{file}: not a checkpoint of this version; expected one that recognition.py "
                    "wrote; remove it"
                )
        except ExpectedError as error:
            failure = error
            say(f"{error}; trying the checkpoint before it")
            continue
        if file != path:
            path.unlink(missing_ok=True)  # else the next save would put it in this one's place
        return saved
    if failure:
        raise ExpectedError(f"{failure}, or start over with --fresh") from failure
    return None


def begin_or_continue(recipe, class_table, num_steps, checkpoint):
    """Builds the network, and restores the checkpoint if there is one.

    Returns:
        (compiled keras.Model, list of history rows).

    Raises:
        ExpectedError: the checkpoint belongs to other settings or other landmarks.
    """
    saved = load_checkpoint(checkpoint)
    if saved:
        _check_recipe(checkpoint, saved[1]["recipe"], recipe)
        if saved[1]["precision"] != model.precision():
            raise ExpectedError(
                f"{checkpoint}: trained in {saved[1]['precision']}, here it is "
                f"{model.precision()}; expected the same kind of processor; continue with or "
                "without a GPU as before, or --fresh to start over"
            )
        if saved[1]["landmarks"] != class_table.fingerprint:
            raise ExpectedError(
                f"{checkpoint}: its landmarks are not the {len(class_table)} of this source; "
                "expected the same class table; give the same --source, or --fresh to start over"
            )
    network = model.build_network(
        len(class_table),
        recipe.image_size,
        recipe.backbone,
        "none" if saved else recipe.weights,
        num_steps,
    )
    model.compile_network(network, recipe.learning_rate)
    network.optimizer.build(network.trainable_variables)
    if not saved:
        return network, []
    arrays, page = saved
    for variable, name in zip(_variables(network), sorted(arrays), strict=True):
        variable.assign(arrays[name])
    return network, page["history"]


def _check_recipe(checkpoint, was, recipe):
    for name, value in dataclasses.asdict(recipe).items():
        if was.get(name) != (list(value) if isinstance(value, tuple) else value):
            raise ExpectedError(
                f"{checkpoint}: it has {name} = {was.get(name)}, now it is {value}; expected the "
                "same settings to continue; give them again, or --fresh to start over"
            )


# ------------------------------------------------------------------------------------- history


def write_history(output, rows, with_picture):
    """Writes history.csv, a row per mini-epoch, and history.png if asked to."""
    path = output / "history.csv"
    with atomic_write(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, HISTORY_COLUMNS, restval="")
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()}
            )
    if with_picture:
        with atomic_write(output / "history.png") as temporary:
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
    learned = ""
    if row["loss"] is not None:
        learned = f", loss {row['loss']:.3f}, accuracy {row['accuracy']:.3f}"
    return (
        f"mini-epoch {row['mini_epoch']}/{num_mini_epochs} (train shard {row['shard']:03d}): "
        f"{row['images']:,} images{bad}{learned}{valid}, {row['images_per_s']:.0f} images/s, "
        f"{row['waited_s'] / row['seconds']:.0%} waiting for data, {format_duration(left_s)} to go"
    )


def format_duration(seconds):
    """Writes seconds as a person reads them, e.g. `2 h 05 min` or `3 min 20 s`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
