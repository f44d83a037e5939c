"""The described pictures that earlier runs left, and those nearest to one photo."""

from dataclasses import dataclass

import numpy as np

from data.landmarks import format_image_id
from data.sources import Shard
from descriptors.descriptions import load_descriptions, unit_length
from report.neighbors import Picture
from runs.session import DESCRIPTORS
from utils import ExpectedError, say

SPLITS = ("train", "index")  # the test pictures are what is asked about


@dataclass(frozen=True)
class GalleryShard:
    """The described pictures of one shard.

    Attributes:
        split: "train" or "index".
        model: fingerprint of the recogniser.
        image_ids: (n,) uint64.
        landmark_ids: (n,) int64, as the recogniser names them.
        descriptors: (n, d) float32 or float16, of length 1.
        places: (n, 3) int64, as of `Descriptions`.
    """

    split: str
    model: str
    image_ids: np.ndarray
    landmark_ids: np.ndarray
    descriptors: np.ndarray
    places: np.ndarray

    def picture(self, row):
        """Gives the `Picture` of a row."""
        number, offset, size = self.places[row].tolist()
        image_id = format_image_id(self.image_ids[row])
        return Picture(image_id, Shard(self.split, number), (offset, size), "")


@dataclass(frozen=True)
class Gallery:
    """All shards that are searched, a list of `GalleryShard`, and how many pictures are wanted."""

    shards: list
    num_nearest: int

    def of_model(self, fingerprint):
        """Gives the gallery without the shards of other models."""
        kept = [shard for shard in self.shards if shard.model == fingerprint]
        if num_others := len(self.shards) - len(kept):
            say(f"{num_others} files of {DESCRIPTORS}/ are of another model, not searched")
        return Gallery(kept, self.num_nearest)

    def find_nearest(self, descriptor):
        """Finds the nearest pictures, exactly: those of each shard, merged.

        Args:
            descriptor: (d,) float, of any length.

        Returns:
            list of (`Picture`, squared L2 distance between descriptors of length 1, landmark id),
            nearest first, equal distances by image id.
        """
        if not self.shards:
            return []
        query, found = unit_length(descriptor[None].astype(np.float32)), []
        for shard in self.shards:
            rows, distances = _search(query, shard.descriptors, self.num_nearest)
            found += [
                (float(distance), int(shard.image_ids[row]), int(row), shard)
                for row, distance in zip(rows[0], distances[0], strict=True)
                if row >= 0
            ]
        found.sort(key=lambda near: near[:2])
        return [
            (shard.picture(row), distance, int(shard.landmark_ids[row]))
            for distance, _, row, shard in found[: self.num_nearest]
        ]


def _search(query, descriptors, num_nearest):
    from search import exact  # loads faiss, which a photo without a gallery does not need

    return exact.nearest(query, descriptors, num_nearest)


def load_gallery(session, num_nearest):
    """Loads all descriptions of train and index pictures that earlier runs left.

    All of it is in memory: 6.2 GB for the index of Google Landmarks v2 with 2048 values in float32.

    Args:
        session: `Session`.
        num_nearest: pictures wanted for a photo; for 0 nothing is loaded.

    Returns:
        `Gallery`; a damaged file is named and left out.
    """
    shards = []
    for split in SPLITS if num_nearest else ():
        for path in session.find_all(f"{DESCRIPTORS}/{split}_*.npz"):
            try:
                found, fingerprint = load_descriptions(path)
            except ExpectedError as error:
                say(f"{error}: not searched")
                continue
            shards.append(
                GalleryShard(
                    split,
                    fingerprint.get("model"),
                    found.image_ids,
                    found.landmark_ids,
                    unit_length(found.descriptors),
                    found.places,
                )
            )
    return Gallery(shards, num_nearest)
