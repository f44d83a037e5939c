"""The described pictures that earlier runs left, and those nearest to one photo."""

from dataclasses import dataclass, replace

import numpy as np

from descriptors.descriptions import load_descriptions, unit_length
from report.neighbors import picture_of
from runs.session import DESCRIPTORS
from utils import ExpectedError, say

SPLITS = ("train", "index")  # the test pictures are what is asked about


@dataclass(frozen=True)
class DescribedPictures:
    """The pictures that are searched for those near a photo.

    Attributes:
        files: list of (split, fingerprint of the recogniser, `Descriptions` of length 1).
        num_nearest: how many are wanted.
    """

    files: list
    num_nearest: int

    def of_model(self, fingerprint):
        """Gives those without the files of other models."""
        kept = [file for file in self.files if file[1] == fingerprint]
        if num_others := len(self.files) - len(kept):
            say(f"{num_others} files of {DESCRIPTORS}/ are of another model, not searched")
        return replace(self, files=kept)

    def find_nearest(self, descriptor):
        """Finds the nearest pictures, exactly: those of each file, merged.

        Args:
            descriptor: (d,) float, of any length.

        Returns:
            list of (`Picture`, squared L2 distance between descriptors of length 1, landmark id),
            nearest first, equal distances by image id.
        """
        if not self.files:
            return []
        from search import exact  # loads faiss, which a photo alone does not need

        query, found = unit_length(descriptor[None].astype(np.float32)), []
        for split, _, images in self.files:
            (rows,), (distances,) = exact.nearest(query, images.descriptors, self.num_nearest)
            for row, distance in zip(rows[rows >= 0], distances[rows >= 0].tolist(), strict=True):
                picture = picture_of(split, images, row)
                found.append((picture, distance, int(images.landmark_ids[row])))
        found.sort(key=lambda near: (near[1], near[0].image_id))
        return found[: self.num_nearest]


def load_described(session, num_nearest):
    """Loads all descriptions of train and index pictures that earlier runs left.

    All of it is in memory: 6.2 GB for the index of Google Landmarks v2 with 2048 values in float32.

    Args:
        session: `Session`.
        num_nearest: pictures wanted for a photo; for 0 nothing is loaded.

    Returns:
        `DescribedPictures`; a damaged file is named and left out.
    """
    files = []
    for split in SPLITS if num_nearest else ():
        for path in session.find_all(f"{DESCRIPTORS}/{split}_*.npz"):
            try:
                images, fingerprint = load_descriptions(path)
            except ExpectedError as error:
                say(f"{error}: not searched")
                continue
            images = replace(images, descriptors=unit_length(images.descriptors))
            files.append((split, fingerprint.get("model"), images))
    return DescribedPictures(files, num_nearest)
