"""Tests of the picture of neighbors: what it names when it cannot be drawn."""

from types import SimpleNamespace

import numpy as np
import pytest
from checks import one_line
from PIL import Image
from synthetic import encode

from data.sources import Shard
from report.neighbors import NeighborRow, Picture, choose_rows, draw_neighbors
from utils import ExpectedError


class Bytes:
    """A source whose shards are the same bytes everywhere."""

    def __init__(self, content):
        self.content = content

    def read_range(self, shard, offset, size_bytes):
        return self.content[offset : offset + size_bytes]


def test_the_median_queries_are_in_the_middle():
    parts = [SimpleNamespace(query_landmarks=np.zeros(7), query_places=np.zeros((7, 3), int))]
    ranking = SimpleNamespace(query_ids=np.arange(7), row_ends=np.zeros(7, int))
    scored = [(1 - place / 10, place, {"x"}) for place in range(7)]
    titles = [row.title for row in choose_rows(parts, ranking, scored, {}, {})]
    assert titles == [
        "best: AP 1.00", "best: AP 0.90", "median: AP 0.80", "median: AP 0.70",
        "worst: AP 0.50", "worst: AP 0.40",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not a picture", "not an image"),
        (b"", "empty"),
        (encode(Image.new("RGB", (9, 9)))[:-60], "runcated"),
    ],
)
def test_a_neighbor_that_cannot_be_decoded_is_named_with_its_shard(content, reason):
    picture = Picture("00000000000000ff", Shard("index", 7), (0, 999), "")
    with pytest.raises(ExpectedError) as caught:
        draw_neighbors(Bytes(content), [NeighborRow(picture, "", ())])
    message = one_line(caught.value)
    assert message.startswith("index/images_007.tar: image 00000000000000ff: ")
    assert reason in message


def test_a_neighbor_of_an_impossible_size_is_named_with_its_shard(data_set, tmp_path):
    from data.sources import Source

    picture = Picture("00000000000000ff", Shard("index", 0), (0, 2**62), "")
    with pytest.raises(ExpectedError, match="index/images_000.tar"):
        draw_neighbors(Source(str(data_set.folder), tmp_path), [NeighborRow(picture, "", ())])


def test_right_and_wrong_neighbors_differ_by_a_mark_too():
    content = encode(Image.new("RGB", (9, 9)))
    place = Shard("index", 7), (0, len(content))
    nearest = [Picture("00", *place, "0.25", is_right) for is_right in (True, False, None)]
    row = NeighborRow(Picture("01", *place, "query"), "", tuple(nearest))
    axes = draw_neighbors(Bytes(content), [row]).axes
    assert [one.get_xlabel() for one in axes[:4]] == ["query", "✓ 0.25", "✗ 0.25", "0.25"]
