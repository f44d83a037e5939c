"""The training run: mini-epochs over a stream of shards, and validation.

Imports Keras, via `model`.
"""

import hashlib
import math
import time
from dataclasses import dataclass
from functools import partial

import numpy as np

import model
from cluster.machines import ALONE, Machines
from data.landmarks import ClassTable, TrainLabels
from generators import NextShard, Reading, ShardEnd, stream_batches, tell_problems
from network import heads
from network.devices import choose_devices
from network.optimizers import set_rates, steps_taken
from recipes import Recipe, learning_rate_at
from runs.session import CHECKPOINT, PREVIOUS_CHECKPOINT
from training import checkpoints
from training.checkpoints import save_checkpoint, size_on_disk, variables_of
from training.history import describe_progress, write_history
from utils import ExpectedError, Progress, StoppedError, format_duration, require_free_space, say

MAX_VALID_IMAGES = 4096  # kept decoded in memory: 453 MB at 192 pixels


@dataclass(frozen=True)
class TrainImages:
    """What there is to train on."""

    class_table: ClassTable  # of the source
    labels: TrainLabels
    shards: list  # of train `Shard`, one epoch
    held_out: list  # of train `Shard` to validate on

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


def train(session, recipe, images, valid_every, machines=ALONE):
    """Trains shard after shard, from the checkpoint if there is one; gives the trained network.

    Args:
        images: `TrainImages`.
        valid_every: mini-epochs between validations.
        machines: `Machines` that train together.

    Raises:
        StoppedError: the session was asked to stop; the checkpoint holds what is done.
    """
    policy = model.set_up_keras(recipe.training.seed, recipe.training.bfloat16)
    plan = [(epoch, shard) for epoch in range(recipe.training.epochs) for shard in images.shards]
    devices = choose_devices(recipe.training.batch_size)
    num_steps = count_steps(session, recipe, images)
    with devices.scope():
        build = partial(model.build_network, recipe, len(images.class_table), num_steps)
        network, rows = begin(session, recipe, images, build)
    facts = recipe.settings() | {"the digest of labels and shards": images.fingerprint}
    rows = machines.follow_first(variables_of(network), rows, facts)
    run = Run(session, recipe, images, devices, network, rows, len(plan), machines=machines)
    if run.is_complete():
        return network
    run.introduce(policy)
    valid = load_valid_images(session, recipe, images, run.done())
    stream = open_stream(session, machines, recipe, images, rows, plan)

    def train_group(stop):
        """Trains the next shard, or with several machines as many shards; gives their rows."""
        group = plan[len(rows) : len(rows) + machines.count]
        pace = Pace(recipe, network, len(rows), len(plan), num_steps / len(plan), len(group))
        trained = train_mini_epoch(devices, network, stream, pace, stop, run.done())
        together = zip(group, machines.collect(trained, len(group)), strict=True)
        new = [{"epoch": epoch + 1} | row for (epoch, _), row in together]
        require_good_shards(session, images, [*rows, *new])
        return new

    run.train(train_group, lambda: valid, valid_every)
    return network


def begin(session, recipe, images, build, backbone=None):
    """Builds and compiles the network, and restores the checkpoint if there is one.

    `build` takes `restored` as `model.build_network` does; `backbone` is the digest of a frozen one
    that is not in the network. Gives (compiled keras.Model, list of history rows).
    """
    saved = checkpoints.find_checkpoint(session, recipe, images, backbone)
    network = build("" if saved else None)
    model.compile_network(network, recipe, images.class_sizes)
    network.optimizer.build(network.trainable_variables)
    return network, checkpoints.restore(saved, network) if saved else []


@dataclass(frozen=True)
class Run:
    """A training run, mini-epoch after mini-epoch, whatever it trains on."""

    session: object
    recipe: Recipe
    images: TrainImages
    devices: object  # how batches run, of `choose_devices`
    network: object  # compiled keras.Model
    rows: list  # the history; what is done
    num_mini_epochs: int  # of the whole run
    backbone: str | None = None  # digest of a frozen backbone that is not in the network
    machines: Machines = ALONE  # that train together

    def done(self):
        """Says how far the run came, for a person who may continue it."""
        return f"{len(self.rows)} of {self.num_mini_epochs} mini-epochs done"

    def is_complete(self):
        """Tells whether nothing is left to train, and says so."""
        if len(self.rows) < self.num_mini_epochs:
            return False
        say(f"training is complete: {self.num_mini_epochs} mini-epochs")
        write_history(self.session, self.rows, True)  # that session wrote to another folder
        return True

    def introduce(self, how):
        """Says what is trained; raises ExpectedError unless two checkpoints fit on the disk."""
        say(
            f"{self.recipe.network.backbone}, {how}, {self.recipe.data.image_size} pixels, "
            f"{len(self.images.class_table):,} landmarks"
        )
        paths = (self.session.path(CHECKPOINT), self.session.path(PREVIOUS_CHECKPOINT))
        present_bytes = sum(path.stat().st_size for path in paths if path.exists())
        needed_bytes = 2 * size_on_disk(self.network) - present_bytes
        require_free_space(paths[0].parent, needed_bytes, "two checkpoints")

    def train(self, train_next, valid, valid_every):
        """Trains to the end; what is done is saved after each step.

        `train_next`, of a `Stop`, trains one mini-epoch or more and gives the rows; `valid` gives
        the `Batch`es to validate on.
        """
        rows, machines = self.rows, self.machines
        stop = machines.common(self.session.stop)
        while (num_before := len(rows)) < self.num_mini_epochs:
            # A mini-epoch that would not fit into the time is not begun.
            longest_s = max((row["seconds"] for row in rows[-10:]), default=0)
            if stop.requested(longest_s * machines.count):
                raise StoppedError(stop, self.done())
            for row in train_next(stop):
                rows.append({"mini_epoch": len(rows) + 1} | row)
            is_milestone = len(rows) // valid_every > num_before // valid_every
            is_milestone = is_milestone or len(rows) == self.num_mini_epochs
            if is_milestone:
                scale = heads.scale_of(self.recipe.loss, len(self.images.class_table))
                rows[-1] |= validate(self.devices, self.network, valid(), scale)
            if machines.number == 0:
                save_checkpoint(
                    self.session, self.network, self.recipe, self.images, rows, self.backbone
                )
                write_history(self.session, rows, is_milestone)
                say(describe_progress(rows, self.num_mini_epochs))


def open_stream(session, machines, recipe, images, rows, plan):
    """Opens the stream of the shards of the plan that no row of the history is of."""
    settings, num_skippable = recipe.training, session.num_skippable(len(images.shards))
    reading = Reading(
        recipe.data, settings.batch_size, images.labels.find, is_training=True, seed=settings.seed
    )
    num_skippable -= sum(bool(row["problem"]) for row in rows)

    def stream(plan, reading):
        return stream_batches(session.source, plan, reading, session.stop.requested, num_skippable)

    return machines.share_shards(stream, plan[len(rows) :], reading)


def count_steps(session, recipe, images):
    """Estimates the training steps of a whole run, from the share of the shards that it reads."""
    share = len(images.shards) / session.source.count_shards("train")
    return round(len(images.labels) * share * recipe.training.epochs / recipe.training.batch_size)


def require_good_shards(session, images, rows):
    """Raises ExpectedError if too many shards were left out, or an epoch had no image.

    Each machine's stream counts its own; here those of all machines count together.
    """
    problems = [row["problem"] for row in rows if row["problem"]]
    if len(problems) > session.num_skippable(len(images.shards)):
        raise ExpectedError(problems[-1], setting="skip_bad_shards")
    if len(rows) >= len(images.shards) and not any(row["images"] for row in rows):
        raise no_images(images)


def no_images(images):
    """Makes the ExpectedError of an epoch without an image to train on."""
    return ExpectedError(
        f"{len(images.shards)} shards held no image of the {len(images.labels):,} to train on; "
        "expected the train table to name images of these shards; check the source and the choice "
        "of train shards"
    )


@dataclass(frozen=True)
class Pace:
    """What changes from step to step, learning rates and margin; it follows from the position."""

    recipe: Recipe
    network: object  # compiled keras.Model
    mini_epoch: int  # counted from 0
    num_mini_epochs: int  # of the whole run
    steps_of_shard: float  # that it is expected to have; no step is known to be the last
    num_together: int = 1  # mini-epochs that several machines train together

    def progress(self):
        """Makes the `Progress` of this mini-epoch, in images."""
        num_images = round(self.steps_of_shard * self.recipe.training.batch_size)
        what = f"mini-epoch {self.mini_epoch + 1}/{self.num_mini_epochs}"
        return Progress(what, num_images * self.num_together)

    def describe(self, loss, progress):
        """Says the loss, and how long the whole run still takes."""
        rate = progress.rate(progress.updated)
        if not rate:
            return f"loss {loss:.3f}"
        left = (self.num_mini_epochs - self.mini_epoch) * progress.total / self.num_together
        left_s = max(0.0, left - progress.done) / rate
        return f"loss {loss:.3f}, {format_duration(left_s)} to go in all"

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
            self.network.get_layer(heads.LOGITS).margin_share.assign(min(1.0, progress / ramp))
        return rate


def train_mini_epoch(devices, network, stream, pace, stop, done):
    """Trains on the batches of one shard; gives the part of a history row that is known here.

    StoppedError, with what is `done`, if `stop` asks for it: this mini-epoch will be trained again.
    """
    begin, losses, accuracies = time.perf_counter(), [], []
    rate, steps_before = pace.set_for(0), steps_taken(network.optimizer)
    batches = NextShard(stream, stop, done)
    with pace.progress() as progress:
        for batch in batches:
            if not losses:
                progress.note("in its first step, which takes longest")
            rate = pace.set_for(len(losses))
            loss, accuracy = devices.train_on_batch(
                network, batch.images, batch.class_indices, batch.weight
            )
            losses.append(loss)
            accuracies.append(accuracy)
            if not math.isfinite(loss):
                raise ExpectedError(
                    f"the loss is {loss} in batch {len(losses)} of a mini-epoch; expected a finite "
                    "number; run again from the last checkpoint, or start over with a lower "
                    "learning rate"
                )
            progress.update(len(batch.images), pace.describe(loss, progress))
    devices.settle(network)
    end, seconds = batches.end, time.perf_counter() - begin
    tell_problems(end, "left out")
    return {
        "shard": end.shard.number,
        "images": end.num_images,
        "bad_images": len(end.bad_images),
        "loss": float(np.mean(losses)) if losses else None,  # a shard without images of a class
        "accuracy": float(np.mean(accuracies)) if losses else None,
        "learning_rate": rate,
        "skipped_steps": len(losses) - (steps_taken(network.optimizer) - steps_before),
        "images_per_s": end.num_images / seconds,
        "waited_s": batches.waited_s,
        "seconds": seconds,
        "problem": end.problem,
    }


def load_valid_images(session, recipe, images, done):
    """Decodes the held-out shards once, up to MAX_VALID_IMAGES, in the tar's order and uncropped.

    Gives a list of `Batch`; `done` is what to say is done, if the session is asked to stop here.
    """
    reading = Reading(recipe.data, recipe.training.batch_size, images.labels.find)
    plan = [(0, shard) for shard in images.held_out]
    names = ", ".join([*(shard.path for shard in images.held_out[:3]), "..."][: len(plan)])
    say(f"reading {len(plan)} held-out shard{'s' * (len(plan) > 1)} to validate on: {names}")
    batches, num_images = [], 0
    with Progress("held-out images") as progress:
        for item in stream_batches(session.source, plan, reading, session.stop.requested):
            if session.stop.requested():
                raise StoppedError(session.stop, done)
            if num_images >= MAX_VALID_IMAGES:
                break
            if not isinstance(item, ShardEnd):
                batches.append(item)
                num_images += len(item.image_ids)
                progress.update(len(item.image_ids))
    return batches


def validate(devices, network, batches, scale=1.0):
    """Measures loss and accuracy on the held-out images; the history row's valid_ columns.

    A margin is left out: it would make a landmark harder to name than it is.
    """
    losses, hits = [], []
    for batch in batches:
        (logits,) = devices.predict_on_batch(network, batch.images)
        logits = logits[: len(batch.image_ids)]  # the rest only fills the batch
        hits.append(logits.argmax(axis=1) == batch.class_indices)
        logits = scale * logits
        logits -= logits.max(axis=1, keepdims=True)
        right = logits[np.arange(len(logits)), batch.class_indices]
        losses.append(np.log(np.exp(logits).sum(axis=1)) - right)
    if not losses:
        return {}
    loss, accuracy = (float(np.mean(np.concatenate(each))) for each in (losses, hits))
    return {"valid_loss": loss, "valid_accuracy": accuracy}
