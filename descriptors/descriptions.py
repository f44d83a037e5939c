"""Per-image outputs of the network, and their files."""

from dataclasses import dataclass, replace

import numpy as np

from data.arrays import check_arrays, column, columns_of, load_arrays

NORMALISED_ROWS = 4096  # at a time: float32 copies of more would not stay small


@dataclass(frozen=True)
class Descriptions:
    """What the network says of some images, one row each."""

    image_ids: np.ndarray = column("uint64", "images")
    landmark_ids: np.ndarray = column("int64", "images")  # the best landmark
    confidences: np.ndarray = column("float32", "images", at_least=-1)  # its probability or cosine
    # e.g. the 2048 values of ResNet50's pooling
    descriptors: np.ndarray = column("float32 float16", "images", "channels")
    # the shard that holds the image
    shard_numbers: np.ndarray = column("int16", "images", at_least=0)
    # offset and size in bytes of the image in that shard
    locations: np.ndarray = column("int64", "images", 2, at_least=0)

    def __len__(self):
        return len(self.image_ids)

    def only(self, rows):
        """Gives these rows alone."""
        return Descriptions(*(column[rows] for column in vars(self).values()))

    def of_unit_length(self):
        """Gives the same with descriptors of length 1."""
        return replace(self, descriptors=unit_length(self.descriptors))

    @property
    def places(self):
        """(n, 3) int64: shard number, offset and size, to find the pictures again."""
        return np.column_stack([self.shard_numbers, self.locations])


def concatenate(pieces):
    """Joins a non-empty list of `Descriptions`, or of another dataclass of arrays."""
    columns = zip(*(vars(piece).values() for piece in pieces), strict=True)
    return type(pieces[0])(*map(np.concatenate, columns))


def unit_length(descriptors):
    """Scales descriptors (n, d) to length 1, in a new array of the same dtype; zeros stay."""
    scaled = np.empty_like(descriptors)
    for begin in range(0, len(descriptors), NORMALISED_ROWS):
        rows = descriptors[begin : begin + NORMALISED_ROWS]
        lengths = np.linalg.norm(rows.astype(np.float32), axis=1, keepdims=True)
        scaled[begin : begin + NORMALISED_ROWS] = rows / np.maximum(lengths, 1e-12)
    return scaled


def load_descriptions(path, order=None):
    """Reads and checks what `save_table` wrote: (`Descriptions`, fingerprint).

    `order` is that of the image ids, see `Column`. Raises ExpectedError if it is damaged, or no
    file of descriptions.
    """
    arrays, fingerprint = load_arrays(path)
    columns = columns_of(Descriptions)
    columns["image_ids"] = replace(columns["image_ids"], order=order)
    check_arrays(path, arrays, columns)
    return Descriptions(**arrays), fingerprint


def load_queries(path):
    """Reads and checks descriptions whose image ids increase: (`Descriptions`, fingerprint)."""
    return load_descriptions(path, "increasing")


def load_image_ids(path):
    """Reads and checks as `load_descriptions` does: (image ids alone, fingerprint)."""
    descriptions, fingerprint = load_descriptions(path)
    return descriptions.image_ids, fingerprint
