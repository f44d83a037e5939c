"""What stands for "no landmark": some of the queries, images by id, or a folder of pictures.

No label of an image is needed for it.
"""

from dataclasses import dataclass

import numpy as np

from data.landmarks import format_image_id
from descriptors.descriptions import load_descriptions, unit_length
from runs.session import DESCRIPTORS
from utils import ExpectedError, say


@dataclass(frozen=True)
class NonLandmarks:
    """Images that show no landmark, or count as such.

    Attributes:
        descriptors: (m, d) float32 of length 1; m may be 0.
        own_places: (num_queries,) int64, the row that is the query itself; -1 where none is.
    """

    descriptors: np.ndarray
    own_places: np.ndarray


def of_queries(queries, rows):
    """Takes these rows of the queries, `Descriptions` of length 1."""
    own_places = np.full(len(queries), -1)
    own_places[rows] = np.arange(len(rows))
    return NonLandmarks(queries.descriptors[rows].astype(np.float32), own_places)


def none(queries):
    """Takes nothing, which leaves the penalties out."""
    return of_queries(queries, np.empty(0, np.int64))


def of_ids(session, image_ids, queries, described_as):
    """Takes the images of these ids among the queries and the described index images.

    Args:
        session: `Session`; index images are described by retrieval.py, here or in other kernels.
        image_ids: (m,) uint64.
        queries: `Descriptions` of length 1.
        described_as: fingerprint of the gallery, as of `describe.Describer`.

    Raises:
        ExpectedError: none of them is described.
    """
    found = of_queries(queries, np.flatnonzero(np.isin(queries.image_ids, image_ids)))
    pieces, known = [found.descriptors], [queries.image_ids]
    same = ("model", "flipped_too", "keeps_aspect")
    if not np.isin(image_ids, queries.image_ids).all():
        for path in sorted(session.find_all(f"{DESCRIPTORS}/index_*.npz")):
            described, fingerprint = load_descriptions(path)
            if any(fingerprint.get(key) != described_as.get(key) for key in same):
                say(f"{path}: of another model or other settings, not used")
                continue
            # A file may be mounted twice.
            is_new = ~np.isin(described.image_ids, np.concatenate(known))
            known.append(described.image_ids)
            chosen = described.descriptors[is_new & np.isin(described.image_ids, image_ids)]
            pieces.append(unit_length(chosen.astype(np.float32)))
    missing = image_ids[~np.isin(image_ids, np.concatenate(known))]
    descriptors = np.concatenate(pieces)
    if not len(descriptors):
        raise ExpectedError(
            f"none of {len(image_ids):,} non-landmarks is described, {_first(missing)}; expected "
            "ids of test images, or of index images that retrieval.py described",
            setting="non_landmarks",
        )
    if len(missing):
        say(f"{len(missing):,} non-landmarks are not described and left out, {_first(missing)}")
    return NonLandmarks(descriptors, found.own_places)


def _first(image_ids):
    return f"first {format_image_id(image_ids[0])!r}"


def of_folder(describer, folder, queries):
    """Describes all pictures below a folder.

    Args:
        describer: `describe.Describer` of the queries' network.
        folder: `pathlib.Path`.
        queries: `Descriptions`; no picture counts as one of them.

    Raises:
        ExpectedError: there is no readable picture.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    descriptors = unit_length(describer.describe_pictures(paths).astype(np.float32))
    if not len(descriptors):
        raise ExpectedError(
            f"{folder}: no readable picture in {len(paths)} files; expected pictures that show no "
            "landmark",
            setting="non_landmarks",
        )
    return NonLandmarks(descriptors, np.full(len(queries), -1))
