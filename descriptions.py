"""What the network says of images, and the files that keep it."""

import hashlib
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


def concatenate(pieces):
    """Joins a non-empty list of `Descriptions`."""
    return Descriptions(
        *(
            np.concatenate([getattr(piece, field.name) for piece in pieces])
            for field in fields(pieces[0])
        )
    )


def digest_of(image_ids):
    """Gives 32 hex characters that differ for another set of image ids."""
    return hashlib.md5(np.sort(image_ids).tobytes(), usedforsecurity=False).hexdigest()


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


def load_if_of(path, fingerprint):
    """Reads the arrays of a whole file of this fingerprint, or gives None; says why, where odd."""
    if not path.exists():
        return None
    try:
        arrays, found = load_arrays(path)
    except ExpectedError as error:
        say(f"{error}: describing it again")
        return None
    return arrays if found == fingerprint else None


def load_image_ids(path, fingerprint):
    """Reads the image ids of a whole file of descriptions of this fingerprint, or gives None."""
    arrays = load_if_of(path, fingerprint)
    return None if arrays is None else arrays["image_ids"]
