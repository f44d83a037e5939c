"""One forward pass over a split: the landmark, its confidence and the descriptor of every image.

Recognition takes the landmarks, retrieval all of it. Imports Keras, via `model`.
"""

import copy
import dataclasses
import os
import time
from pathlib import Path

import numpy as np

import model
from data.arrays import digest_of, save_table
from data.landmarks import format_image_id, read_2019_classes
from data.sources import TEST_CSV, TRAIN_CSV, digest_of_shards
from descriptors.descriptions import Descriptions, concatenate, load_descriptions, load_image_ids
from generators import NextShard, Reading, stream_batches, tell_problems
from model import load_recogniser
from network.devices import choose_devices
from runs.session import QUERIES, descriptions_name
from utils import ExpectedError, Progress, format_duration, say

_describers = {}  # the last one that `open_describer` made, by what it was made of


class Describer:
    """The network in the form that describes; averages with the mirrored image where wanted.

    The source's train.csv has the landmarks of the model published in 2019. Descriptors are stored
    as "float32" or "float16".
    """

    def __init__(self, source, model_path, batch_size, flipped_too=False, dtype="float32"):
        self.batch_size, self.dtype = batch_size, dtype
        self.devices = choose_devices(batch_size)
        with self.devices.scope():
            recogniser = load_recogniser(
                model_path, lambda: read_2019_classes(source.fetch(TRAIN_CSV))
            )
            self.predictor = model.build_predictor(recogniser.classifier, flipped_too)
        self.class_table = recogniser.class_table
        self.recipe = recogniser.recipe
        # As large as the file's network takes them, which may be somebody else's.
        self.data = dataclasses.replace(self.recipe.data, image_size=recogniser.image_size)
        # Two files of descriptions go together only if all of this is equal.
        self.fingerprint = {
            "model": recogniser.fingerprint, "batch_size": batch_size, "flipped_too": flipped_too,
            "descriptor_dtype": dtype, "keeps_aspect": self.data.keep_aspect,
        }  # fmt: skip

    # What `describe_shards` asks for besides; `training.frozen` has a describer of its own.
    problem = "left empty"  # what becomes of an image that cannot be described
    name_of = staticmethod(descriptions_name)
    load_ids = staticmethod(load_image_ids)

    def prepare(self, session, missing, image_ids):
        """Is called before the shards that are not described yet are read."""

    def join(self, pieces, shard_end):
        """Joins what `describe` gave of the batches of a shard."""
        return concatenate(pieces)

    def storing(self, dtype):
        """Gives the same network, which stores descriptors as another dtype."""
        other = copy.copy(self)
        other.dtype = dtype
        other.fingerprint = self.fingerprint | {"descriptor_dtype": dtype}
        return other

    def fingerprint_for(self, source, shards, image_ids):
        """Gives the fingerprint of a file that describes those of these images that it finds."""
        digests = {"images": digest_of(image_ids), "shards": digest_of_shards(source, shards)}
        return self.fingerprint | digests

    def describe(self, batch, shard):
        """Describes one `Batch` of a shard."""
        n, dtype = len(batch.image_ids), self.dtype
        outputs = self.devices.predict_on_batch(self.predictor, batch.images)
        class_indices, confidences, descriptors = (output[:n] for output in outputs)
        described = Descriptions(
            batch.image_ids, self.class_table.landmark_ids[class_indices],
            confidences.astype(np.float32), descriptors.astype(dtype),
            np.full(n, shard.number, np.int16), batch.locations,
        )  # fmt: skip
        is_finite = np.isfinite(described.descriptors).all(axis=1) & np.isfinite(confidences)
        for image_id in batch.image_ids[~is_finite].tolist():
            image = f"{shard.path}: image {format_image_id(image_id)}"
            say(f"{image} {self.problem}: not finite in {dtype}")
        return described.only(is_finite)

    def allocate(self, num_images):
        """Allocates `Descriptions` of so many images, not yet filled in."""
        dtypes = np.uint64, np.int64, np.float32, self.dtype, np.int16, np.int64
        widths = (), (), (), self.predictor.output[2].shape[-1:], (), (2,)
        columns = zip(widths, dtypes, strict=True)
        return Descriptions(*(np.empty((num_images, *width), dtype) for width, dtype in columns))


def open_describer(source, model_path, *settings):
    """Makes a `Describer`, once for all jobs of a worker while the model's file is the same."""
    facts = os.stat(model_path) if Path(model_path).is_file() else None  # which is told below
    key = source, model_path, settings, facts and (facts.st_mtime_ns, facts.st_size)
    if key not in _describers:
        _describers.clear()  # a network takes memory
        _describers[key] = Describer(source, model_path, *settings)
    return _describers[key]


def describe_shards(session, describer, shards, image_ids):
    """Describes the images of some shards, each shard saved as it ends, so that nothing is redone.

    Args:
        shards: list of `Shard` of one split.
        image_ids: (n,) uint64, the images to describe; an unreadable one gets no row.

    Returns:
        (dict, file -> image ids of what could be described; list, numbers of shards left out).

    Raises:
        StoppedError: the session was asked to stop; the shards described so far are saved.
        ExpectedError: data, network or disk fail.
    """
    source = session.source
    facts = {shard: describer.fingerprint_for(source, [shard], image_ids) for shard in shards}
    names, described = {shard: describer.name_of(shard) for shard in shards}, {}
    for shard, name in names.items():
        if found := session.find_fitting(name, facts[shard], describer.load_ids, copied=True):
            described[shard] = found[1]
    if missing := [shard for shard in shards if shard not in described]:
        describer.prepare(session, missing, image_ids)
    reading = Reading(describer.data, describer.batch_size, image_ids=image_ids)
    limits = session.stop.requested, session.num_skippable(len(shards))
    stream = stream_batches(source, [(0, shard) for shard in missing], reading, *limits)
    times = []
    for shard in missing:
        done = f"{len(described)} of {len(shards)} {shard.split} shards described"
        begin = time.perf_counter()
        rows, waited_s = _describe_shard(describer, shard, stream, session.stop, done)
        times.append(time.perf_counter() - begin)
        if rows is None:  # a later run tries it again
            continue
        save_table(session.path(names[shard]), rows, facts[shard])
        described[shard] = rows.image_ids
        n, left_s = len(rows.image_ids), (len(missing) - len(times)) * np.median(times)
        say(
            f"{shard.path}: {n:,} images described ({len(times)}/{len(missing)}), "
            f"{n / times[-1]:.0f} images/s, {waited_s / times[-1]:.0%} waiting for data, "
            f"{format_duration(left_s)} to go"
        )
    found = {session.path(names[shard]): described[shard] for shard in shards if shard in described}
    return found, [shard.number for shard in shards if shard not in described]


def _describe_shard(describer, shard, stream, stop, done):
    """Describes the stream's next shard: (rows, None of a broken one; seconds waited for data)."""
    pieces, batches = [describer.allocate(0)], NextShard(stream, stop, done)
    with Progress(f"describing {shard.path}") as progress:
        for batch in batches:
            pieces.append(describer.describe(batch, shard))
            progress.update(len(batch.image_ids))
    tell_problems(batches.end, describer.problem)
    rows = None if batches.end.problem else describer.join(pieces, batches.end)
    return rows, batches.waited_s


def describe_queries(session, describer, image_ids):
    """Describes all test shards into queries.npz: `Descriptions` by ascending image id.

    Its fingerprint says which shards were left out. Their own files are removed if none was.
    """
    source, shards = session.source, session.source.select_shards("test")
    found, left_out = describe_shards(session, describer, shards, image_ids)
    joined = gather(found, describer)
    if not len(joined) and not left_out:
        what = f"none of the {len(image_ids):,} test images is in its {len(shards)} test shards"
        expected = f"the images that {TEST_CSV} names; check that table and shards belong together"
        raise ExpectedError(f"{source}: {what}; expected {expected}", "source")
    fingerprint = describer.fingerprint_for(source, shards, image_ids) | {"left_out": left_out}
    save_table(session.path(QUERIES), joined, fingerprint)
    for shard in () if left_out else shards:
        session.path(descriptions_name(shard)).unlink(missing_ok=True)
    return joined


def gather(found, describer, normalise=False, keeps_repeated=False):
    """Joins the files of shards, as of `describe_shards`, into `Descriptions` by image id.

    File after file goes to its place, so that the descriptors are in memory once, not twice. Of an
    id that appears twice the first picture is taken, or all of them.
    """
    ids = np.concatenate([np.empty(0, np.uint64), *found.values()])
    rows = np.argsort(ids, kind="stable")
    if not keeps_repeated:
        rows = np.unique(ids, return_index=True)[1]
    places = np.full(len(ids), -1)
    places[rows] = np.arange(len(rows))
    joined = describer.allocate(len(rows))
    for path, image_ids in found.items():
        of_piece, places = np.split(places, [len(image_ids)])
        piece = load_descriptions(path)[0]
        piece = piece.of_unit_length() if normalise else piece
        for name, column in vars(piece.only(of_piece >= 0)).items():
            getattr(joined, name)[of_piece[of_piece >= 0]] = column
    return joined
