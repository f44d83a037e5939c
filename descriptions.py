"""What the network says of images, and the files that keep it."""

from dataclasses import dataclass, fields

import numpy as np

from utils import ExpectedError, load_arrays, save_arrays, say

QUERIES = "queries.npz"  # the described test images, in the output folder


@dataclass(frozen=True)
class Descriptions:
    """What the network says of some images, one row each.

    Attributes:
        image_ids: (n,) uint64.
        landmark_ids: (n,) int64, the best landmark.
        confidences: (n,) float32, its probability.
        descriptors: (n, 2048) float32 or float16, the pooled vector (MobileNetV2: 1280).
        shard_numbers: (n,) int16, the shard that holds the image.
        locations: (n, 2) int64, offset and size in bytes of the image in that shard.
    """

    image_ids: np.ndarray
    landmark_ids: np.ndarray
    confidences: np.ndarray
    descriptors: np.ndarray
    shard_numbers: np.ndarray
    locations: np.ndarray

    def __len__(self):
        return len(self.image_ids)

    def sorted(self):
        """Gives the rows by ascending image id, the first one where an id stands twice."""
        _, rows = np.unique(self.image_ids, return_index=True)
        if np.array_equal(rows, np.arange(len(self))):
            return self
        return Descriptions(*(getattr(self, field.name)[rows] for field in fields(self)))


def concatenate(pieces):
    """Joins a non-empty list of `Descriptions`."""
    return Descriptions(
        *(
            np.concatenate([getattr(piece, field.name) for piece in pieces])
            for field in fields(pieces[0])
        )
    )


def description_path(output, shard):
    """Gives the place of a shard's descriptions."""
    return output / "descriptors" / f"{shard.split}_{shard.number:03d}.npz"


def save_descriptions(path, descriptions, fingerprint):
    """Writes descriptions and their fingerprint (a dict) as one atomic .npz file."""
    columns = {field.name: getattr(descriptions, field.name) for field in fields(descriptions)}
    save_arrays(path, fingerprint, **columns)


def load_descriptions(path):
    """Reads what `save_descriptions` wrote: (`Descriptions`, fingerprint)."""
    arrays, fingerprint = load_arrays(path)
    try:
        return Descriptions(**arrays), fingerprint
    except TypeError as error:
        raise ExpectedError(
            f"{path}: it holds {', '.join(sorted(arrays))[:80]}; expected descriptions; "
            "give a queries.npz or a file of descriptors/"
        ) from error


def is_described(path, fingerprint):
    """Tells whether a whole file of this fingerprint is there; says why a file is not used."""
    if not path.exists():
        return False
    try:
        _, found = load_arrays(path)
    except ExpectedError as error:
        say(f"{error}: describing it again")
        return False
    return found == fingerprint
