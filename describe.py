"""One forward pass over a split: the landmark, its confidence and the descriptor of every image.

Recognition takes the landmarks, retrieval all of it. Imports Keras, by way of `model`.
"""

import numpy as np

import model
from descriptions import (
    Descriptions,
    concatenate,
    description_path,
    is_described,
    load_descriptions,
    save_descriptions,
)
from generators import Reading, ShardEnd, stream_batches, tell_problems
from replicas import set_up_replicas
from session import find_inputs
from utils import StoppedError, say


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

    def describe(self, batch, shard):
        """Describes one `Batch` of a shard."""
        n = len(batch.image_ids)
        class_indices, confidences, descriptors = self.replicas.predict_on_batch(
            self.predictor, batch.images
        )
        return Descriptions(
            batch.image_ids,
            self.recogniser.class_table.landmark_ids[class_indices[:n]],
            confidences[:n].astype(np.float32),
            descriptors[:n].astype(self.dtype),
            np.full(n, shard.number, np.int16),
            batch.locations,
        )

    def empty(self):
        """Gives `Descriptions` of no image."""
        width = self.predictor.output[2].shape[-1]
        return Descriptions(
            np.empty(0, np.uint64),
            np.empty(0, np.int64),
            np.empty(0, np.float32),
            np.empty((0, width), self.dtype),
            np.empty(0, np.int16),
            np.empty((0, 2), np.int64),
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
        list of the files of all shards that could be described.

    Raises:
        StoppedError: the session was asked to stop; the shards described so far are saved.
        ExpectedError: data, network or disk fail.
    """
    paths = {shard: description_path(session.output, shard) for shard in shards}
    for shard, path in paths.items():  # an earlier session of this kernel may have begun
        if not path.exists() and (earlier := find_inputs(f"descriptors/{path.name}")):
            paths[shard] = earlier[0]
    missing = [shard for shard in shards if not is_described(paths[shard], describer.fingerprint)]
    paths |= {shard: description_path(session.output, shard) for shard in missing}
    size = describer.recogniser.image_size
    reading = Reading(size, describer.batch_size, image_ids=frozenset(image_ids.tolist()))
    plan = [(0, shard) for shard in missing]
    stop = session.stop
    stream = stream_batches(session.source, plan, reading, stop.requested, num_skippable)
    for left, shard in enumerate(missing):
        pieces = [describer.empty()]
        while not isinstance(item := next(stream), ShardEnd):
            if stop.requested():
                num_done = len(shards) - len(missing) + left
                done = f"{num_done} of {len(shards)} {shard.split} shards described"
                raise StoppedError(stop, done)
            pieces.append(describer.describe(item, shard))
        tell_problems(item, "left empty")
        if item.problem:  # not saved, so that a later run tries it again
            del paths[shard]
            continue
        say(f"{shard.path}: {item.num_images:,} images described ({left + 1}/{len(missing)})")
        save_descriptions(paths[shard], concatenate(pieces), describer.fingerprint)
    return list(paths.values())


def describe_split(session, describer, shards, image_ids, path, num_skippable=0):
    """Describes all shards of a split and gathers them in one file.

    Args:
        session, describer, num_skippable: as for `describe_shards`.
        shards: list of all `Shard`s of the split.
        image_ids: (n,) uint64, the images to describe.
        path: the file; the shards' own files are removed when it is whole.

    Returns:
        `Descriptions` by ascending image id.
    """
    files = describe_shards(session, describer, shards, image_ids, num_skippable)
    descriptions = gather(files, describer)
    save_descriptions(path, descriptions, describer.fingerprint)
    for shard in shards:
        description_path(session.output, shard).unlink(missing_ok=True)
    return descriptions


def gather(files, describer):
    """Joins the files of shards into `Descriptions` by ascending image id."""
    pieces = [describer.empty(), *(load_descriptions(file)[0] for file in files)]
    return concatenate(pieces).sorted()
