"""The run on a frozen backbone: one pass over the stream, then neck and head in minutes.

Every train image is described once by the backbone, as its shard streams by; the picture is
discarded, its pooled vector is kept. Neck and head are then trained on the vectors of all shards,
shuffled together, for as many epochs as the recipe says, and joined with the backbone in the end.
Imports Keras, via `model`.
"""

import math
import time
from dataclasses import dataclass

import numpy as np

import model
from data.arrays import Column, check_arrays, digest_of, load_arrays, save_arrays
from data.landmarks import format_image_id
from data.sources import Shard, digest_of_shards
from generators import Batch, Reading, ShardEnd, stream_batches, tell_problems
from network import heads
from network.devices import choose_devices
from recipes import Recipe
from runs.session import CHECKPOINT, Session, features_name
from training import loop
from training.checkpoints import begin_or_continue, save_checkpoint
from training.history import ALL_SHARDS, describe_progress, write_history
from training.loop import Pace, TrainImages, describe_done
from utils import ExpectedError, StoppedError, format_duration, require_free_space, say

# Of a shard's file, beside its vectors.
COLUMNS = {
    "image_ids": Column("uint64", ("images",)),
    "bad_image_ids": Column("uint64", ("bad images",)),
}


@dataclass(frozen=True)
class Vectors:
    """The vectors of images, one row each, all in memory.

    Attributes:
        values: (n, views, channels) float16.
        image_ids: (n,) uint64.
        class_indices: (n,) int32.
        num_bad: images that could not be described.
        left_out: list of the shards that could not be read.
        digest: 32 hex characters that differ for other images or other files of the shards.
    """

    values: np.ndarray
    image_ids: np.ndarray
    class_indices: np.ndarray
    num_bad: int
    left_out: list
    digest: str


class Describer:
    """The backbone up to the pooling, which never changes.

    Args:
        recipe: `Recipe`.
    """

    def __init__(self, recipe):
        data, network = recipe.data, recipe.network
        self.recipe = recipe
        self.pooled = model.build_pooled(recipe)
        self.predictor = model.build_views(self.pooled, data.augment)
        self.shape = self.predictor.output.shape[1:]  # (views, channels)
        self.digest = model.digest_of_variables(self.pooled.weights, network.backbone)
        self.fingerprint = {
            "backbone": self.digest,
            "pooling": [network.pooling, network.gem_p],
            "image_size": data.image_size,
            "keeps_aspect": data.keep_aspect,
            "mirrored_too": data.augment,
            "precision": model.precision(),
        }

    def fingerprints_for(self, source, shards, image_ids):
        """Gives the fingerprint of each shard's file that describes these images: dict of shard."""
        known = self.fingerprint | {"images": digest_of(image_ids)}
        return {shard: known | {"shard": digest_of_shards(source, [shard])} for shard in shards}

    def describe(self, devices, batch):
        """Describes one `Batch`: (n, views, channels) float16."""
        (vectors,) = devices.predict_on_batch(self.predictor, batch.images)
        vectors = vectors[: len(batch.image_ids)]  # the rest only fills the batch
        with np.errstate(over="ignore"):  # looked at when the shard is saved
            return vectors.astype(np.float16)

    def build_head(self, recipe, num_classes, num_steps, restored=None):
        """Builds what is trained, as `checkpoints.begin_or_continue` asks for it."""
        return model.build_head(recipe, self.shape[1], num_classes, num_steps)


# ------------------------------------------------------------------------------- the whole run


def train(session, recipe, images, valid_every):
    """Describes the train images, and trains neck and head on that, from the checkpoint if any.

    Args, Returns, Raises: as in `loop.train`; a mini-epoch is a pass over all vectors.
    """
    _check(recipe)
    policy = model.set_up_keras(recipe.training.seed, recipe.training.bfloat16)
    num_epochs = recipe.training.epochs
    devices = choose_devices(recipe.training.batch_size)
    with devices.scope():
        describer = Describer(recipe)
        head, rows = begin_or_continue(
            session,
            recipe,
            images,
            loop.count_steps(session, recipe, images),
            describer.build_head,
            describer.digest,
        )
    if len(rows) == num_epochs:
        say(f"training is complete: {num_epochs} mini-epochs")
        write_history(session, rows, True)  # that session wrote to another folder
    else:
        say(
            f"{recipe.network.backbone}, frozen, {policy}, {recipe.data.image_size} pixels, "
            f"{len(images.class_table):,} landmarks"
        )
        loop.require_space(session, head)
        train, held_out = describe(session, describer, devices, images)
        head_run = HeadRun(session, recipe, images, devices, head, train, held_out)
        head_run.train(rows, valid_every, describer.digest)
    with devices.scope():
        return model.join_head(describer.pooled, head, recipe)


def _check(recipe):
    """Raises ExpectedError for settings that a frozen backbone cannot follow."""
    data, network = recipe.data, recipe.network
    for name, value in (
        ("erase", data.erase), ("geometry", data.geometry), ("gem_learnt", network.gem_learnt),
    ):  # fmt: skip
        if value:
            raise ExpectedError(
                f"{name} {value}: a frozen backbone describes every image once, as it is; expected "
                f"{type(value)()}, or a backbone that is trained",
                setting=name,
            )


# --------------------------------------------------------------------------------- description


def describe(session, describer, devices, images):
    """Describes all images of the shards, each shard saved as it ends, so that nothing is redone.

    Args:
        session: `Session`.
        describer: `Describer`.
        devices: how batches run, of `choose_devices`.
        images: `TrainImages`.

    Returns:
        (train `Vectors`, held-out `Vectors`).

    Raises:
        StoppedError: the session was asked to stop; the shards described so far are saved.
        ExpectedError: data, network or disk fail, or no image is there to train on.
    """
    shards = [*images.shards, *images.held_out]
    fingerprints = describer.fingerprints_for(session.source, shards, images.labels.image_ids)
    found = _find_described(session, fingerprints, describer.shape)
    if missing := [shard for shard in shards if shard not in found]:
        _tell_cost(session, describer, devices, images, len(missing))
        for shard, arrays in _describe_shards(session, describer, devices, images, found):
            save_arrays(session.path(features_name(shard)), fingerprints[shard], **arrays)
            found[shard] = arrays["image_ids"], len(arrays["bad_image_ids"])
    train, held_out = (
        gather(session, images.labels, describer.shape, versions, found)
        for versions in (
            {shard: fingerprints[shard]["shard"] for shard in group}
            for group in (images.shards, images.held_out)
        )
    )
    if not len(train.image_ids):
        raise loop.no_images(images)
    return train, held_out


def _find_described(session, fingerprints, shape):
    """Finds the shards that are described already, by vectors of a shape.

    Returns:
        dict of shard -> (image ids, number of bad images).
    """

    def load(path):
        arrays, fingerprint = _load(path, shape)
        return (arrays["image_ids"], len(arrays["bad_image_ids"])), fingerprint

    found = {}
    for shard, fingerprint in fingerprints.items():
        if fitting := session.find_fitting(features_name(shard), fingerprint, load, copied=True):
            found[shard] = fitting[1]
    return found


def _load(path, shape):
    """Reads and checks a shard's file, of (views, channels) an image: (arrays, fingerprint)."""
    arrays, fingerprint = load_arrays(path)
    check_arrays(path, arrays, COLUMNS | {"vectors": Column("float16", ("images", *shape))})
    return arrays, fingerprint


def _tell_cost(session, describer, devices, images, num_missing):
    """Says what disk, memory and time it will take; raises ExpectedError without that disk."""
    batch_size, size = describer.recipe.training.batch_size, describer.recipe.data.image_size
    pixels = np.zeros((batch_size, size, size, 3), np.uint8)
    devices.predict_on_batch(describer.predictor, pixels)  # compiles it
    begin = time.perf_counter()
    devices.predict_on_batch(describer.predictor, pixels)
    batch_s = time.perf_counter() - begin

    of_shard = len(images.labels) / session.source.count_shards("train")
    shard_bytes = of_shard * 2 * math.prod(describer.shape)
    disk_bytes, memory_bytes = num_missing * shard_bytes, len(images.shards) * shard_bytes
    say(
        f"to describe: about {num_missing * of_shard:,.0f} images of {num_missing} shards; "
        f"{disk_bytes / 1e9:.2f} GB on disk, then {memory_bytes / 1e9:.2f} GB of memory; the "
        f"network alone takes {format_duration(num_missing * of_shard / batch_size * batch_s)}"
    )
    folder = session.path(features_name(images.shards[0])).parent
    require_free_space(folder, disk_bytes, "the vectors of the train images")


def _stream_images(session, describer, images, shards):
    """Streams the batches of shards in their tars' order, without augmentation."""
    reading = Reading(
        describer.recipe.data.image_size,
        describer.recipe.training.batch_size,
        images.labels.find,
        keeps_aspect=describer.recipe.data.keep_aspect,
    )
    plan = [(0, shard) for shard in shards]
    num_skippable = session.num_skippable(len(images.shards) + len(images.held_out))
    return stream_batches(session.source, plan, reading, session.stop.requested, num_skippable)


def _describe_shards(session, describer, devices, images, found):
    """Yields (shard, dict of arrays) of those that are not yet found; says how it goes."""
    shards = [*images.shards, *images.held_out]
    missing, num_shards, times = [s for s in shards if s not in found], len(shards), []
    stream = _stream_images(session, describer, images, missing)
    for number, shard in enumerate(missing, start=1):
        begin = asked = time.perf_counter()
        waited_s = 0.0
        pieces = [(np.empty(0, np.uint64), np.empty((0, *describer.shape), np.float16))]
        while not isinstance(item := next(stream), ShardEnd):
            if session.stop.requested():
                raise StoppedError(session.stop, f"{len(found)} of {num_shards} shards described")
            waited_s += time.perf_counter() - asked
            pieces.append((item.image_ids, describer.describe(devices, item)))
            asked = time.perf_counter()
        tell_problems(item, "left out")
        if item.problem:  # not saved, so that a later run tries it again
            continue
        arrays = _as_arrays(item, *map(np.concatenate, zip(*pieces, strict=True)))
        yield shard, arrays
        times.append(time.perf_counter() - begin)
        num_images, num_bad = len(arrays["image_ids"]), len(arrays["bad_image_ids"])
        bad = f", {num_bad} bad" if num_bad else ""
        left_s = (len(missing) - number) * np.median(times)
        say(
            f"{shard.path}: {num_images:,} images described{bad} ({number}/{len(missing)}), "
            f"{num_images / times[-1]:.0f} images/s, {waited_s / times[-1]:.0%} waiting for data, "
            f"{format_duration(left_s)} to go"
        )


def _as_arrays(shard_end, image_ids, vectors):
    """Gives the arrays of a shard's file; a vector that float16 does not hold is left out."""
    is_finite = np.isfinite(vectors).all(axis=(1, 2))
    for image_id in image_ids[~is_finite].tolist():
        image = f"{shard_end.shard.path}: image {format_image_id(image_id)}"
        say(f"{image} left out: not finite in float16")
    unread = np.array([image_id for image_id, _ in shard_end.bad_images], np.uint64)
    return {
        "image_ids": image_ids[is_finite],
        "vectors": vectors[is_finite],
        "bad_image_ids": np.concatenate([unread, image_ids[~is_finite]]),
    }


def gather(session, labels, shape, versions, found):
    """Joins the files of shards into `Vectors`, file after file, so that they are in memory once.

    Args:
        session: `Session`.
        labels: `TrainLabels`, which name the classes.
        shape: (views, channels) of an image's vectors.
        versions: dict of shard -> words that differ for another file of it.
        found: dict of shard -> (image ids, number of bad images).
    """
    shards = [shard for shard in versions if shard in found]
    image_ids = np.concatenate([np.empty(0, np.uint64), *(found[shard][0] for shard in shards)])
    values, begin = np.empty((len(image_ids), *shape), np.float16), 0
    for shard in shards:
        vectors = _load(session.path(features_name(shard)), shape)[0]["vectors"]
        values[begin : begin + len(vectors)] = vectors
        begin += len(vectors)
    facts = [f"{shard.path} {versions[shard]} {digest_of(found[shard][0])}" for shard in shards]
    return Vectors(
        values,
        image_ids,
        class_indices=labels.class_indices[np.searchsorted(labels.image_ids, image_ids)],
        num_bad=sum(found[shard][1] for shard in shards),
        left_out=[shard for shard in versions if shard not in found],
        digest=digest_of(np.array(facts, "U")),
    )


# ------------------------------------------------------------------------------------ the head


@dataclass(frozen=True)
class HeadRun:
    """The training of neck and head on vectors.

    Attributes:
        session, recipe, images: as for `train`.
        devices: how batches run, of `choose_devices`.
        head: compiled keras.Model of `model.build_head`.
        vectors, held_out: `Vectors` to train on and to validate on.
    """

    session: Session
    recipe: Recipe
    images: TrainImages
    devices: object
    head: object
    vectors: Vectors
    held_out: Vectors

    def train(self, rows, valid_every, backbone):
        """Trains epoch after epoch; `rows` of the history are appended."""
        session, num_epochs = self.session, self.recipe.training.epochs
        if rows and rows[-1]["vectors"] != self.vectors.digest:
            raise ExpectedError(
                f"{session.path(CHECKPOINT)}: its vectors were of other images or files of shards; "
                "expected the same shards, with the same ones left out; continue with those",
                setting="fresh",
            )
        while len(rows) < num_epochs:
            is_milestone = (len(rows) + 1) % valid_every == 0 or len(rows) + 1 == num_epochs
            row = self.train_epoch(rows, is_milestone)
            rows.append(row | {"vectors": self.vectors.digest})  # in the checkpoint alone
            save_checkpoint(session, self.head, self.recipe, self.images, rows, backbone=backbone)
            write_history(session, rows, is_milestone)
            say(describe_progress(rows, num_epochs))

    def train_epoch(self, rows, is_validated):
        """Trains one pass over the vectors; gives its row of the history."""
        epoch, settings, stop = len(rows), self.recipe.training, self.session.stop
        done = describe_done(rows, range(settings.epochs))
        # An epoch that would not fit into the time is not begun.
        if stop.requested(max((row["seconds"] for row in rows[-10:]), default=0)):
            raise StoppedError(stop, done)
        num_steps = math.ceil(len(self.vectors.image_ids) / settings.batch_size)
        pace = Pace(self.recipe, self.head, epoch, settings.epochs, num_steps)
        stream = shuffle(self.vectors, settings.batch_size, [settings.seed, epoch])
        row = {"mini_epoch": epoch + 1, "epoch": epoch + 1}
        row |= loop.train_mini_epoch(self.devices, self.head, stream, pace, stop, done)
        row |= {
            "bad_images": self.vectors.num_bad,
            "problem": ", ".join(f"{shard.path} left out" for shard in self.vectors.left_out),
        }
        if is_validated:
            scale = heads.scale_of(self.recipe.loss, len(self.images.class_table))
            valid = in_order(self.held_out, settings.batch_size)
            row |= loop.validate(self.devices, self.head, valid, scale)
        return row


def shuffle(vectors, batch_size, seed):
    """Yields all vectors once as batches of one size, then a `ShardEnd`.

    Of an image and its mirror image one is drawn. The last batch is filled up with the first ones.

    Args:
        vectors: `Vectors`, not empty.
        batch_size: vectors in a batch.
        seed: list of int.

    Yields:
        `Batch` whose images are vectors (batch_size, channels) float32.
    """
    rng = np.random.default_rng(seed)
    num_images, num_views, _ = vectors.values.shape
    rows = rng.permutation(num_images)
    views = rng.integers(num_views, size=num_images)
    for begin in range(0, num_images, batch_size):
        places = np.arange(begin, begin + batch_size) % num_images
        yield _batch(vectors, rows[places], views[places])
    yield ShardEnd(Shard("train", ALL_SHARDS), num_images, ())


def in_order(vectors, batch_size):
    """Yields the vectors of the images as they are, as batches of one size; filling has no id."""
    num_images = len(vectors.image_ids)
    for begin in range(0, num_images, batch_size):
        rows = np.arange(begin, begin + batch_size) % num_images
        yield _batch(vectors, rows, 0, min(batch_size, num_images - begin))


def _batch(vectors, rows, views, num_counted=None):
    """Gathers rows of vectors into a `Batch`, the first of which count."""
    values = vectors.values[rows, views].astype(np.float32)
    counted = rows[:num_counted]
    return Batch(values, vectors.image_ids[counted], vectors.class_indices[counted], None)
