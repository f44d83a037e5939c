"""The described pictures that earlier runs left, and those nearest to one photo."""

from dataclasses import replace

import numpy as np

from descriptors.descriptions import load_descriptions, unit_length
from report.neighbors import picture_of
from runs.session import DESCRIPTORS
from utils import ExpectedError, say

SPLITS = ("train", "index")  # the test pictures are what is asked about


def load_described(session):
    """Loads all descriptions of train and index pictures that earlier runs left.

    All of it is in memory: 6.2 GB for the index of Google Landmarks v2 with 2048 values in float32.
    A damaged file is named and left out.

    Returns:
        list of (split, fingerprint of the recogniser, `Descriptions` of length 1).
    """
    files = []
    for split in SPLITS:
        for path in session.find_all(f"{DESCRIPTORS}/{split}_*.npz"):
            try:
                images, fingerprint = load_descriptions(path)
            except ExpectedError as error:
                say(f"{error}: not searched")
                continue
            images = replace(images, descriptors=unit_length(images.descriptors))
            files.append((split, fingerprint.get("model"), images))
    return files


def of_model(files, fingerprint):
    """Gives those of `load_described` that are of a recogniser: list of (split, `Descriptions`)."""
    kept = [(split, images) for split, model, images in files if model == fingerprint]
    if num_others := len(files) - len(kept):
        say(f"{num_others} files of {DESCRIPTORS}/ are of another model, not searched")
    return kept


def find_nearest(files, descriptor, num_nearest):
    """Finds the pictures of files of `of_model` that are nearest to a descriptor (d,), exactly.

    Returns:
        list of (`Picture`, squared L2 distance between descriptors of length 1, landmark id),
        nearest first, equal distances by image id.
    """
    if not files:
        return []
    from search import exact  # loads faiss, which a photo alone does not need

    query, found = unit_length(descriptor[None].astype(np.float32)), []
    for split, images in files:
        (rows,), (distances,) = exact.nearest(query, images.descriptors, num_nearest)
        for row, distance in zip(rows[rows >= 0], distances[rows >= 0].tolist(), strict=True):
            landmark_id = int(images.landmark_ids[row])
            found.append((picture_of(split, images, row), distance, landmark_id))
    return sorted(found, key=lambda near: (near[1], near[0].image_id))[:num_nearest]
