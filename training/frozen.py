"""The run on a frozen backbone: one pass over the stream, then neck and head in minutes.

Every train image is described once by the backbone, as its shard streams by; the picture is
discarded, its pooled vector is kept. Neck and head are then trained on the vectors of all shards,
shuffled together, for as many epochs as the recipe says, and joined with the backbone in the end.
Imports Keras, via `model`.
"""

import math
import time
from dataclasses import dataclass
from functools import partial

import numpy as np

import model
from data.arrays import Column, check_arrays, digest_of, load_arrays
from data.landmarks import format_image_id
from data.sources import Shard, digest_of_shards
from descriptors.describe import describe_shards
from descriptors.descriptions import concatenate
from generators import Batch, ShardEnd
from network.devices import choose_devices
from network.heads import KEPT, count_kept
from runs.session import CHECKPOINT, features_name
from training import loop
from training.history import ALL_SHARDS
from training.loop import Pace, train_mini_epoch
from utils import ExpectedError, format_duration, require_free_space, say

MAX_LOOKED_AT = 65_536  # train images whose axes of spread are found


@dataclass(frozen=True)
class Described:
    """What a shard's file holds."""

    image_ids: np.ndarray  # (n,) uint64
    vectors: np.ndarray  # (n, views, channels) float16
    bad_image_ids: np.ndarray  # (m,) uint64, images that could not be described


@dataclass(frozen=True)
class Vectors:
    """The vectors of images, one row each, all in memory."""

    values: np.ndarray  # (n, views, channels) float16
    image_ids: np.ndarray  # (n,) uint64
    class_indices: np.ndarray  # (n,) int32
    num_bad: int  # images that could not be described
    left_out: list  # shards that could not be read
    digest: str  # 32 hex characters that differ for other images or other files of the shards


class Describer:
    """The backbone up to the pooling, which never changes; `describe.describe_shards` runs it."""

    problem = "left out"
    name_of = staticmethod(features_name)

    def __init__(self, recipe, devices):
        network, self.data = recipe.network, recipe.data
        self.batch_size = recipe.training.batch_size
        self.devices = devices
        self.pooled = model.build_pooled(recipe)
        self.predictor = model.build_views(self.pooled, self.data.augment)
        self.shape = self.predictor.output.shape[1:]  # (views, channels)
        self.digest = model.digest_of_variables(self.pooled.weights, network.backbone)
        self.fingerprint = {
            "backbone": self.digest,
            "pooling": [network.pooling, network.gem_p],
            "image_size": self.data.image_size,
            "keeps_aspect": self.data.keep_aspect,
            "mirrored_too": self.data.augment,
            "precision": model.precision(),
        }

    def fingerprint_for(self, source, shards, image_ids):
        """Gives the fingerprint of a shard's file that describes these images."""
        facts = {"images": digest_of(image_ids), "shard": digest_of_shards(source, shards)}
        return self.fingerprint | facts

    def prepare(self, session, missing, image_ids):
        """Says what disk and time it will take; raises ExpectedError without that disk."""
        pixels = np.zeros((self.batch_size, *self.pooled.input.shape[1:]), np.uint8)
        self.devices.predict_on_batch(self.predictor, pixels)  # compiles it
        begin = time.perf_counter()
        self.devices.predict_on_batch(self.predictor, pixels)
        image_s = (time.perf_counter() - begin) / self.batch_size
        num_images = len(missing) * len(image_ids) / session.source.count_shards("train")
        disk_bytes = num_images * 2 * math.prod(self.shape)
        say(
            f"to describe: about {num_images:,.0f} images of {len(missing)} shards; "
            f"{disk_bytes / 1e9:.2f} GB on disk, and in memory as many for all shards; the network "
            f"alone takes {format_duration(num_images * image_s)}"
        )
        folder = session.path(features_name(missing[0])).parent
        require_free_space(folder, disk_bytes, "the vectors of the train images")

    def allocate(self, num_images):
        """Allocates `Described` of so many images, not yet filled in."""
        ids = np.empty(num_images, np.uint64)
        return Described(ids, np.empty((num_images, *self.shape), np.float16), ids[:0])

    def describe(self, batch, shard):
        """Describes one `Batch`; a vector that float16 does not hold is left out."""
        ids = batch.image_ids
        (vectors,) = self.devices.predict_on_batch(self.predictor, batch.images)
        with np.errstate(over="ignore"):
            vectors = vectors[: len(ids)].astype(np.float16)  # the rest only fills the batch
        is_finite = np.isfinite(vectors).all(axis=(1, 2))
        for image_id in ids[~is_finite].tolist():
            image = f"{shard.path}: image {format_image_id(image_id)}"
            say(f"{image} left out: not finite in float16")
        return Described(ids[is_finite], vectors[is_finite], ids[~is_finite])

    def join(self, pieces, shard_end):
        """Joins what `describe` gave of the batches of a shard."""
        unread = np.array([image_id for image_id, _ in shard_end.bad_images], np.uint64)
        nothing = self.allocate(0)
        return concatenate([Described(nothing.image_ids, nothing.vectors, unread), *pieces])

    def load(self, path):
        """Reads and checks a shard's file: (`Described`, fingerprint)."""
        arrays, fingerprint = load_arrays(path)
        columns = {
            "image_ids": Column("uint64", ("images",)),
            "vectors": Column("float16", ("images", *self.shape)),
            "bad_image_ids": Column("uint64", ("bad images",)),
        }
        check_arrays(path, arrays, columns)
        return Described(**arrays), fingerprint

    def load_ids(self, path):
        """Reads and checks as `load` does: (image ids alone, fingerprint)."""
        described, fingerprint = self.load(path)
        return described.image_ids, fingerprint


def train(session, recipe, images, valid_every):
    """Describes the train images, and trains neck and head on that, from the checkpoint if any.

    Args, Returns, Raises: as in `loop.train`; a mini-epoch is a pass over all vectors.
    """
    for name in ("erase", "geometry"):
        if value := getattr(recipe.data, name):
            problem = f"{name} {value}: a frozen backbone describes every image once, as it is"
            raise ExpectedError(f"{problem}; expected 0, or a backbone that is trained", name)
    policy = model.set_up_keras(recipe.training.seed, recipe.training.bfloat16)
    devices = choose_devices(recipe.training.batch_size)
    num_steps = loop.count_steps(session, recipe, images)
    with devices.scope():
        describer = Describer(recipe, devices)
        facts = recipe, describer.shape[1], len(images.class_table), num_steps
        build = partial(model.build_head, *facts)
        head, rows = loop.begin(session, recipe, images, build, describer.digest)
    run = loop.Run(
        session, recipe, images, devices, head, rows, recipe.training.epochs, describer.digest
    )
    if not run.is_complete():
        run.introduce(f"frozen, {policy}")
        _train_head(run, *describe(session, describer, images), valid_every)
    with devices.scope():
        return model.join_head(describer.pooled, head, recipe)


def describe(session, describer, images):
    """Describes all images of the shards: (train `Vectors`, held-out `Vectors`).

    Each shard is saved as it ends, so that nothing is redone.
    """
    groups = (images.shards, images.held_out)
    found, _ = describe_shards(session, describer, sum(groups, []), images.labels.image_ids)
    train, held_out = (gather(session, describer, images.labels, g, found) for g in groups)
    if not len(train.image_ids):
        raise loop.no_images(images)
    return train, held_out


def gather(session, describer, labels, shards, found):
    """Joins the files of shards into `Vectors`, file after file: they are in memory once."""
    paths = {shard: session.path(features_name(shard)) for shard in shards}
    there = {shard: path for shard, path in paths.items() if path in found}
    image_ids = np.concatenate([np.empty(0, np.uint64), *(found[p] for p in there.values())])
    values, begin = np.empty((len(image_ids), *describer.shape), np.float16), 0
    facts, num_bad = [], 0
    for shard, path in there.items():
        described, _ = describer.load(path)
        values[begin : begin + len(described.vectors)] = described.vectors
        begin += len(described.vectors)
        num_bad += len(described.bad_image_ids)
        version = digest_of_shards(session.source, [shard])
        facts.append(f"{shard.path} {version} {digest_of(found[path])}")
    return Vectors(
        values,
        image_ids,
        class_indices=labels.class_indices[np.searchsorted(labels.image_ids, image_ids)],
        num_bad=num_bad,
        left_out=[shard for shard in shards if shard not in there],
        digest=digest_of(np.array(facts, "U")),
    )


def _train_head(run, vectors, held_out, valid_every):
    """Trains neck and head, pass after pass over all vectors."""
    rows, settings = run.rows, run.recipe.training
    if rows and rows[-1]["vectors"] != vectors.digest:
        raise ExpectedError(
            f"{run.session.path(CHECKPOINT)}: its vectors were of other images or files of shards; "
            "expected the same shards, with the same ones left out; continue with those",
            setting="fresh",
        )
    if not rows and count_kept(run.recipe.network, vectors.values.shape[2]):
        set_kept(run.network.get_layer(KEPT), vectors.values)
    num_steps = math.ceil(len(vectors.image_ids) / settings.batch_size)
    left_out = ", ".join(f"{shard.path} left out" for shard in vectors.left_out)

    def train_epoch(stop):
        epoch = len(rows)
        pace = Pace(run.recipe, run.network, epoch, settings.epochs, num_steps)
        stream = shuffle(vectors, settings.batch_size, [settings.seed, epoch])
        row = {"epoch": epoch + 1}
        row |= train_mini_epoch(run.devices, run.network, stream, pace, stop, run.done())
        row |= {"bad_images": vectors.num_bad, "problem": left_out}
        return [row | {"vectors": vectors.digest}]  # in the checkpoint alone

    run.train(train_epoch, lambda: in_order(held_out, settings.batch_size), valid_every)


def set_kept(layer, values):
    """Sets what of the pooled vector stays in the descriptor: its principal components.

    The neck learns the train landmarks by heart where they have few images; what tells other
    pictures apart, the pooled vector still knows. `values`: (n, views, channels) float16 of the
    train images.
    """
    step = -(-len(values) // MAX_LOOKED_AT)
    rows = values[::step].reshape(-1, values.shape[2]).astype(np.float64)
    mean = rows.mean(axis=0)
    rows -= mean
    axes = np.linalg.eigh(rows.T @ rows)[1][:, ::-1]  # the largest spread first
    kernel = axes[:, : layer.units]
    layer.set_weights([kernel, -mean @ kernel])


def shuffle(vectors, batch_size, seed):
    """Yields all vectors once as `Batch`es of one size, then a `ShardEnd`.

    Of an image and its mirror image one is drawn. The last batch is filled up with the first ones.
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
    """Gathers rows of vectors into a `Batch`, (batch_size, channels) float32; the first count."""
    values = vectors.values[rows, views].astype(np.float32)
    counted = rows[:num_counted]
    return Batch(values, vectors.image_ids[counted], vectors.class_indices[counted], None)
