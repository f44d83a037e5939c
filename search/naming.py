"""Who says which landmarks test and index images show: the head, the nearest train images, or both.

Index images are named as the test images are. The nearest train images are those of nearest.py,
whose parts and descriptors are taken from the output or from other kernels.
"""

import re
from dataclasses import dataclass

from data.arrays import digest_of_rows
from runs.session import gallery_part_name
from search.gallery import Gallery, GalleryNeighbors, find_neighbors, merge_neighbors
from search.gallery_parts import load_parts, open_gallery
from search.reranks import NUM_NAMING, name_by_both, name_by_head, name_by_neighbors
from utils import ExpectedError, say

# Facts of a gallery that must be those of the index; how its descriptors are stored need not.
OF_THE_NETWORK = ("model", "flipped_too", "keeps_aspect")


@dataclass(frozen=True)
class Namer:
    """Names the landmarks of images."""

    gallery: Gallery | None = None  # None where the head alone names
    of_queries: GalleryNeighbors | None = None  # of the test images in it
    facts: dict | None = None  # for a fingerprint; another gallery has another one

    def name(self, images, are_queries=False):
        """Gives the `reranks.SoftLabels` of images, `Descriptions` of length 1."""
        of_head = name_by_head(images.landmark_ids, images.confidences)
        if self.gallery is None:
            return of_head
        near = self.of_queries
        if not are_queries:
            near = find_neighbors(self.gallery, images.descriptors, NUM_NAMING)
        return name_by_both(of_head, name_by_neighbors(near.landmark_ids, near.cosines))


def find_namer(session, describer_facts, queries, named_by=None):
    """Makes the `Namer` that a person wants, or the best one that there are files for.

    A gallery of another model than the `Describer`'s does not serve; the queries have length 1.
    `named_by` is one of `reranks.NAMED_BY`: None takes both where there is a gallery, and "both" is
    an ExpectedError where there is none.
    """
    if named_by == "head":
        return Namer()
    expected = digest_of_rows(queries.image_ids, queries.descriptors)
    reasons = []
    for paths in _find_galleries(session):
        try:
            parts, shared = load_parts(paths)
            described = shared["described"]
            is_ours = all(described.get(key) == describer_facts.get(key) for key in OF_THE_NETWORK)
            if not is_ours or shared["queries"] != expected:
                raise ExpectedError(f"{paths[0]}: of another model or other test images")
            gallery = open_gallery(session, parts)
        except ExpectedError as error:
            reasons.append(str(error))
            continue
        named_by = named_by or "both"
        say(f"{paths[0]}: {len(gallery.image_ids):,} train images name landmarks ({named_by})")
        neighbors = merge_neighbors([part.neighbors for part, _ in parts], NUM_NAMING)
        files = {file for _, facts in parts for file in facts["files"].items()}
        versions = sorted(map(list, files))  # as JSON gives them back
        facts = {"named_by": named_by, "labels": shared["labels"], "gallery": versions}
        return Namer(gallery, neighbors, facts)
    if named_by:
        reason = reasons[0] if reasons else f"{session.output}: no gallery there"
        raise ExpectedError(f"{reason}; expected the parts of nearest.py; run that first", "names")
    for reason in reasons:
        say(f"{reason}: not used")
    say("the head alone names landmarks, since there is no gallery of nearest.py")
    return Namer()


def _find_galleries(session):
    """Lists the part files of each gallery there is, by its number of parts."""
    galleries = {}
    for path in session.find_all(gallery_part_name("*", "*")):
        num_parts = re.search(r"-of-(\d+)\.npz$", path.name)[1]
        galleries.setdefault(int(num_parts), {}).setdefault(path.name, path)
    return [list(paths.values()) for _, paths in sorted(galleries.items())]
