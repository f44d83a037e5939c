"""Per-image network outputs and their files."""

import hashlib
from dataclasses import dataclass, fields, replace

import numpy as np

from utils import Column, ExpectedError, check_arrays, load_arrays, save_arrays, say

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


COLUMNS = {
    "image_ids": Column("uint64", ("images",)),
    "landmark_ids": Column("int64", ("images",)),
    "confidences": Column("float32", ("images",), at_least=0),
    "descriptors": Column("float32 float16", ("images", "channels")),
    "shard_numbers": Column("int16", ("images",), at_least=0),
    "locations": Column("int64", ("images", 2), at_least=0),
}


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
    """Reads and checks what `save_descriptions` wrote: (`Descriptions`, fingerprint)."""
    return _load(path, COLUMNS)


def load_queries(path):
    """Reads and checks descriptions whose image ids ascend: (`Descriptions`, fingerprint)."""
    in_order = replace(COLUMNS["image_ids"], order="increasing")
    return _load(path, COLUMNS | {"image_ids": in_order})


def _load(path, columns):
    arrays, fingerprint = load_arrays(path)
    if arrays.keys() != columns.keys():
        raise ExpectedError(
            f"{path}: it holds {', '.join(sorted(arrays))[:80]}; expected descriptions; "
            f"give a {QUERIES} or a file of descriptors/"
        )
    check_arrays(path, arrays, columns)
    return Descriptions(**arrays), fingerprint


def load_if_of(path, fingerprint, load=load_arrays):
    """Gives what a whole file of this fingerprint holds, or None; logs why if it is damaged.

    Args:
        path: the file; it need not be there.
        fingerprint: dict.
        load: function of the path that gives (contents, fingerprint), or raises ExpectedError.
    """
    if not path.exists():
        return None
    try:
        contents, found = load(path)
    except ExpectedError as error:
        say(f"{error}: making it again")
        return None
    return contents if found == fingerprint else None


def load_image_ids(path, fingerprint):
    """Reads the image ids of a whole file of descriptions of this fingerprint, or gives None."""
    descriptions = load_if_of(path, fingerprint, load_descriptions)
    return None if descriptions is None else descriptions.image_ids
