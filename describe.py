"""One forward pass over a split: the landmark, its confidence and the descriptor of every image.

Recognition takes the landmarks, retrieval all of it. Imports Keras, by way of `model`.
"""

from dataclasses import fields

import numpy as np

import model
from descriptions import (
    Descriptions,
    concatenate,
    description_path,
    digest_of,
    load_descriptions,
    load_image_ids,
    save_descriptions,
)
from generators import Reading, ShardEnd, stream_batches, tell_problems
from landmarks import format_image_id
from on_kaggle.kernel import find_inputs
from replicas import set_up_replicas
from utils import StoppedError, copy_file, say


class Describer:
    """The network in the form that describes, with the settings that shape its rows.

    Args:
        model_path: the recogniser's file.
        read_2019_classes: as for `model.load_recogniser`.
        batch_size: images in a step.
        flipped_too: average with the mirrored image.
        dtype: of the stored descriptors, "float32" or "float16".
    """

    def __init__(
        self, model_path, read_2019_classes, batch_size, flipped_too=False, dtype="float32"
    ):
        self.replicas = set_up_replicas(batch_size)
        with self.replicas.scope():
            recogniser = model.load_recogniser(model_path, read_2019_classes)
            self.predictor = model.build_predictor(recogniser.classifier, flipped_too)
        self.recogniser = recogniser
        self.batch_size, self.dtype = batch_size, dtype
        # Two files of descriptions go together only if all of this is equal.
        self.fingerprint = {
            "model": recogniser.fingerprint,
            "batch_size": batch_size,
            "flipped_too": flipped_too,
            "descriptor_dtype": dtype,
        }

    def fingerprint_for(self, image_ids):
        """Gives the fingerprint of a file that describes those of these images that it finds."""
        return self.fingerprint | {"images": digest_of(image_ids)}

    def describe(self, batch, shard):
        """Describes one `Batch` of a shard."""
        n = len(batch.image_ids)
        class_indices, confidences, descriptors = self.replicas.predict_on_batch(
            self.predictor, batch.images
        )
        descriptors, confidences = descriptors[:n].astype(self.dtype), confidences[:n]
        is_finite = np.isfinite(descriptors).all(axis=1) & np.isfinite(confidences)
        for image_id in batch.image_ids[~is_finite].tolist():
            say(f"{shard.path}: image {format_image_id(image_id)} left empty: beyond {self.dtype}")
        return Descriptions(
            batch.image_ids[is_finite],
            self.recogniser.class_table.landmark_ids[class_indices[:n][is_finite]],
            confidences[is_finite].astype(np.float32),
            descriptors[is_finite],
            np.full(is_finite.sum(), shard.number, np.int16),
            batch.locations[is_finite],
        )

    def allocate(self, num_images):
        """Allocates `Descriptions` of so many images, not yet filled in."""
        width = self.predictor.output[2].shape[-1]
        return Descriptions(
            np.empty(num_images, np.uint64),
            np.empty(num_images, np.int64),
            np.empty(num_images, np.float32),
            np.empty((num_images, width), self.dtype),
            np.empty(num_images, np.int16),
            np.empty((num_images, 2), np.int64),
        )


def describe_shards(session, describer, shards, image_ids, num_skippable=0):
    """Describes the images of some shards, each shard saved as it ends, so that nothing is redone.

    Args:
        session: `Session`; the files go to `<output>/descriptors/`.
        describer: `Describer`.
        shards: list of `Shard`.
        image_ids: (n,) uint64, the images to describe; an unreadable one gets no row.
        num_skippable: broken shards to leave out before one more is an error.

    Returns:
        (dict of file -> image ids, of all shards that could be described; list of the numbers of
        the shards that were left out).

    Raises:
        StoppedError: the session was asked to stop; the shards described so far are saved.
        ExpectedError: data, network or disk fail.
    """
    fingerprint = describer.fingerprint_for(image_ids)
    paths = {shard: description_path(session.output, shard) for shard in shards}
    described = {shard: load_image_ids(paths[shard], fingerprint) for shard in shards}
    for shard, path in paths.items():  # an earlier session of this kernel may have begun
        for earlier in [] if path.exists() else find_inputs(f"descriptors/{path.name}")[:1]:
            described[shard] = load_image_ids(earlier, fingerprint)
            if described[shard] is not None:
                copy_file(earlier, path)  # a third session has the output of the second alone
    missing = [shard for shard in shards if described[shard] is None]
    size = describer.recogniser.image_size
    reading = Reading(size, describer.batch_size, image_ids=frozenset(image_ids.tolist()))
    plan = [(0, shard) for shard in missing]
    stop = session.stop
    stream = stream_batches(session.source, plan, reading, stop.requested, num_skippable)
    for left, shard in enumerate(missing):
        pieces = [describer.allocate(0)]
        while not isinstance(item := next(stream), ShardEnd):
            if stop.requested():
                num_done = len(shards) - len(missing) + left
                done = f"{num_done} of {len(shards)} {shard.split} shards described"
                raise StoppedError(stop, done)
            pieces.append(describer.describe(item, shard))
        tell_problems(item, "left empty")
        if item.problem:  # not saved, so that a later run tries it again
            continue
        descriptions = concatenate(pieces)
        save_descriptions(paths[shard], descriptions, fingerprint)
        described[shard] = descriptions.image_ids
        say(f"{shard.path}: {item.num_images:,} images described ({left + 1}/{len(missing)})")
    found = {paths[shard]: ids for shard, ids in described.items() if ids is not None}
    return found, [shard.number for shard, ids in described.items() if ids is None]


def describe_split(session, describer, shards, image_ids, path, num_skippable=0):
    """Describes all shards of a split and gathers them in one file.

    Args:
        session, describer, num_skippable: as for `describe_shards`.
        shards: list of all `Shard`s of the split.
        image_ids: (n,) uint64, the images to describe.
        path: the file, whose fingerprint says which shards were left out. The shards' own files are
            removed if none was.

    Returns:
        `Descriptions` by ascending image id.
    """
    found, left_out = describe_shards(session, describer, shards, image_ids, num_skippable)
    descriptions = gather(found, describer)
    fingerprint = describer.fingerprint_for(image_ids) | {"left_out": left_out}
    save_descriptions(path, descriptions, fingerprint)
    if not left_out:
        for shard in shards:
            description_path(session.output, shard).unlink(missing_ok=True)
    return descriptions


def gather(found, describer):
    """Joins the files of shards into `Descriptions` by ascending image id.

    File after file goes to its place, so that the descriptors are in memory once, not twice. Where
    an id stands twice, its first image counts.

    Args:
        found: dict of file -> image ids, as of `describe_shards`.
        describer: `Describer`.
    """
    ids = np.concatenate([np.empty(0, np.uint64), *found.values()])
    _, first_rows = np.unique(ids, return_index=True)
    places = np.full(len(ids), -1)
    places[first_rows] = np.arange(len(first_rows))
    descriptions = describer.allocate(len(first_rows))
    begin = 0
    for path, image_ids in found.items():
        piece = load_descriptions(path)[0]
        of_piece = places[begin : begin + len(image_ids)]
        begin += len(image_ids)
        for field in fields(piece):
            column = getattr(piece, field.name)[of_piece >= 0]
            getattr(descriptions, field.name)[of_piece[of_piece >= 0]] = column
    return descriptions
