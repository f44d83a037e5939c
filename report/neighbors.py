"""neighbors.png: some queries with their nearest index images, right ones framed green."""

import functools
from collections import namedtuple
from dataclasses import dataclass

import numpy as np

from data.images import BadImageError, make_thumbnail
from data.landmarks import format_image_id, name_landmark
from data.sources import Shard
from metrics import average_precision
from utils import ExpectedError, say

NUM_SHOWN = 10  # nearest images in a row
NUM_ROWS_EACH = 2  # best, median and worst queries
# By is_right: the frame's color, and a mark for those who do not tell colors apart.
LOOKS = {True: ("#1a9641", "✓ "), False: ("#d7191c", "✗ "), None: ("#9a9a9a", "")}


@dataclass(frozen=True)
class Picture:
    """An image of the source and what is written about it."""

    image_id: str  # 16 hex characters
    shard: Shard  # that holds it
    location: tuple  # its (offset, size) in bytes there
    caption: str = ""  # lines to write under it
    is_right: bool | None = None  # it shows what the query shows; None where nobody knows


# A `Picture`, a title such as `best: AP 1.00`, and a tuple of the nearest images' `Picture`s.
NeighborRow = namedtuple("NeighborRow", "query title nearest")


def choose_rows(parts, ranking, scored, categories, truths):
    """Chooses the best, median and worst queries by average precision: list of `NeighborRow`.

    Takes `merging.Part`s, their `Ranking`, the list of `score_queries` (evenly spaced queries where
    it is empty), and dicts of `read_categories` and `read_recognition_solution`, maybe empty.
    """
    begins = np.concatenate([[0], ranking.row_ends])

    def make_row(query, title="", relevant=None):
        nearest = []
        for rank in range(begins[query], min(begins[query] + NUM_SHOWN, begins[query + 1])):
            part, position = parts[ranking.parts[rank]], ranking.positions[rank]
            image_id, place = ranking.image_ids[rank], part.index_places[position]
            named = name(part.index_landmarks[position])
            caption = f"{ranking.distances[rank]:.4g}, named\n{named}"
            is_right = relevant and format_image_id(image_id) in relevant
            nearest.append(make_picture("index", image_id, place, caption, is_right))
        image_id = ranking.query_ids[query]
        truth = truths.get(format_image_id(image_id))
        if truth and truth.landmark_ids:
            caption = f"query\n{name(min(truth.landmark_ids))}"
        else:
            caption = f"query, named\n{name(parts[0].query_landmarks[query])}"
        asked = make_picture("test", image_id, parts[0].query_places[query], caption)
        return NeighborRow(asked, title, tuple(nearest))

    def name(landmark_id):
        return name_landmark(int(landmark_id), categories)[:24]

    if not scored:
        num_queries = len(ranking.query_ids)
        chosen = np.linspace(0, num_queries - 1, min(num_queries, 3 * NUM_ROWS_EACH)).astype(int)
        return list(map(make_row, chosen))
    middle = max(0, (len(scored) - NUM_ROWS_EACH) // 2)
    begins_of_kind = {"best": 0, "median": middle, "worst": max(0, len(scored) - NUM_ROWS_EACH)}
    return [
        make_row(query, f"{kind}: AP {precision:.2f}", relevant)
        for kind, first in begins_of_kind.items()
        for precision, query, relevant in scored[first : first + NUM_ROWS_EACH]
    ]


def score_queries(query_ids, retrieved, solution):
    """Lists (average precision, query, relevant image ids) of the scored queries, best first."""
    scored = []
    for query, image_id in enumerate(map(format_image_id, query_ids)):
        if image_id in solution and (relevant := solution[image_id].image_ids):
            scored.append((average_precision(retrieved[image_id], relevant), query, relevant))
    return sorted(scored, key=lambda row: (-row[0], row[1]))


def picture_of(split, images, row):
    """Gives the `Picture` of a row of `Descriptions`."""
    place = np.append(images.shard_numbers[row], images.locations[row])
    return make_picture(split, images.image_ids[row], place)


def make_picture(split, image_id, place, *told):
    """Gives the `Picture` of an image at (shard number, offset, size), and what is told of it."""
    number, offset, size = place.tolist()
    return Picture(format_image_id(image_id), Shard(split, number), (offset, size), *told)


def draw_neighbors(source, rows):
    """Draws `NeighborRow`s, see `read_thumbnail`; gives a matplotlib Figure."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(18, 2.25 * len(rows) + 0.4), layout="constrained")
    grid = figure.subplots(len(rows), NUM_SHOWN + 1, squeeze=False) if rows else []
    for row, line in zip(rows, grid, strict=True):
        line[0].set_title(row.title, fontsize=10, fontweight="bold")
        looks = [("black", ""), *(LOOKS[picture.is_right] for picture in row.nearest)]
        pictures = zip(line, (row.query, *row.nearest), looks, strict=False)
        for axes, picture, (color, mark) in pictures:
            axes.imshow(read_thumbnail(source, picture))
            axes.set(xticks=[], yticks=[])
            axes.set_xlabel(mark + picture.caption, fontsize=8)
            for spine in axes.spines.values():
                spine.set(color=color, linewidth=3.5)
        for axes in line[len(looks) :]:
            axes.axis("off")
    figure.suptitle(
        "each query with its landmark, and its nearest index images: ✓ the same one, ✗ another; "
        "below, the squared distance after the rerank and the landmark that the network names"
    )
    return figure


@functools.lru_cache(256)  # drawn here, the same pictures are in the report
def read_thumbnail(source, picture):
    """Reads a `Picture` by byte range as a PIL image of at most 256 x 256 pixels.

    Raises ExpectedError if the source does not give it, or it cannot be decoded.
    """
    try:
        return make_thumbnail(source.read_range(picture.shard, *picture.location), 256)
    except (BadImageError, MemoryError, OverflowError) as error:  # of an impossible size, too
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ExpectedError(
            f"{picture.shard.path}: image {picture.image_id}: {reason}; expected a picture at byte "
            f"{picture.location[0]}; take another copy of the shard, or search it again"
        ) from error


def find_thumbnail(source, picture, told):
    """Reads as `read_thumbnail` does; where that fails, it says so and gives None."""
    try:
        return read_thumbnail(source, picture)
    except (ExpectedError, OSError) as error:
        say(f"{error}: {told}")
        return None
