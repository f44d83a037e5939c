"""Tests of the merge: any number of parts equals one flat search, and the rerank is exact."""

import numpy as np
import pytest
from checks import one_line
from synthetic import squared_distances

from data.arrays import columns_of, load_arrays, save_arrays, save_table
from descriptors.descriptions import Descriptions
from search import merging
from search.exact import Candidates, find_candidates
from search.merging import Part, load_parts, merge_parts
from utils import ExpectedError

FINGERPRINT = {
    "model": "0123abcd",
    "batch_size": 8,
    "flipped_too": False,
    "descriptor_dtype": "float32",
    "top": 5,
    "normalise": True,
    "queries": "aa",
    "index": "bb",
}


class World:
    """Random queries and index images with duplicates among them, to be searched in parts.

    Args:
        seed: of everything.
        num_index, num_queries, num_landmarks: how many.
        num_different: different descriptors; fewer than images make ties.
        num_nearest: images wanted per query.
    """

    def __init__(
        self, seed, num_index=90, num_queries=15, num_landmarks=4, num_different=60, num_nearest=10
    ):
        rng = np.random.default_rng(seed)
        different = rng.integers(-3, 4, (num_different, 5)).astype(np.float32)
        different += rng.choice([0, 1e-3], different.shape).astype(np.float32)
        self.num_nearest = num_nearest
        self.index = different[rng.integers(num_different, size=num_index)]
        self.queries = different[rng.integers(num_different, size=num_queries)] + 0.5
        ids = rng.permutation(2**12)[: num_index + num_queries]
        ids = ids.astype(np.uint64) << np.uint64(52)  # large ones too, in no order
        self.index_ids, self.query_ids = ids[:num_index], np.sort(ids[num_index:])
        self.index_landmarks = rng.integers(num_landmarks, size=num_index)
        self.query_landmarks = rng.integers(num_landmarks + 1, size=num_queries)

    def part(self, rows):
        """Searches some rows of the index, as one part."""
        rows = rows[np.argsort(self.index_ids[rows])]
        found = find_candidates(
            self.queries,
            self.query_landmarks,
            self.index[rows],
            self.index_landmarks[rows],
            self.num_nearest,
        )
        return make_part(self, rows, found)

    def parts(self, num_parts):
        """Searches the index in so many parts, some of which may be empty."""
        return [self.part(rows) for rows in np.array_split(np.arange(len(self.index)), num_parts)]

    def brute_force(self, divisor):
        """Scores ALL index images for each query: divide, sort, cut.

        Returns:
            list of lists of (image id, distance).
        """
        rankings = []
        for query, landmark in zip(self.queries, self.query_landmarks, strict=True):
            squared = squared_distances(query, self.index).astype(np.float64)
            squared[self.index_landmarks == landmark] /= divisor
            order = np.lexsort((self.index_ids, squared))[: self.num_nearest]
            ids, distances = self.index_ids[order].tolist(), squared[order].tolist()
            rankings.append(list(zip(ids, distances, strict=True)))
        return rankings


def make_part(world, rows, found):
    places = np.zeros((len(world.query_ids), 3), np.int64)
    return Part(
        query_ids=world.query_ids,
        query_landmarks=world.query_landmarks,
        query_places=places,
        index_ids=world.index_ids[rows],
        index_landmarks=world.index_landmarks[rows],
        index_places=np.stack([rows, rows, rows], axis=1),
        row_ends=found.row_ends,
        positions=found.positions,
        distances=found.distances,
    )


def columns_of_part(part):
    return {name: part[name] for name in columns_of(Part)}


def rankings_of(ranking):
    """Lists the (image id, distance) of every query."""
    pairs = list(zip(ranking.image_ids.tolist(), ranking.distances.tolist(), strict=True))
    ends = ranking.row_ends.tolist()
    return [pairs[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def assert_same_ranking(one, other):
    """Checks that two rankings are equal bit for bit, apart from where the images stand."""
    for name in ("query_ids", "row_ends", "image_ids", "distances"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert getattr(one, name).dtype == getattr(other, name).dtype


# ---------------------------------------------------------------------------------- by hand


def by_hand(divisor, num_nearest, landmarks=None):
    """Merges the candidates of two queries, of landmarks 7 and 8, that came from two parts."""

    def part_of(image_ids, row_ends, positions, distances):
        shown = [(landmarks or {}).get(image_id, 9) for image_id in image_ids]
        return Part(
            np.array([0, 1], np.uint64), np.array([7, 8]), np.zeros((2, 3), int),
            np.array(image_ids, np.uint64), np.array(shown), np.zeros((len(shown), 3), int),
            np.array(row_ends), np.array(positions), np.array(distances, np.float32),
        )  # fmt: skip

    parts = [
        part_of([20, 40], [2, 3], [1, 0, 0], [3, 6, 6]),
        part_of([10, 30, 50], [2, 3], [1, 0, 2], [2, 6, 6]),
    ]
    rankings = rankings_of(merge_parts(parts, divisor, num_nearest))
    return [(query, *found) for query, row in enumerate(rankings) for found in row]


def test_candidates_go_by_query_then_distance_then_image_id():
    assert by_hand(1, 100) == [
        (0, 30, 2), (0, 40, 3), (0, 10, 6), (0, 20, 6), (1, 20, 6), (1, 50, 6),
    ]  # fmt: skip


def test_each_query_is_cut_by_itself():
    assert by_hand(1, 1) == [(0, 30, 2), (1, 20, 6)]
    assert by_hand(1, 3) == [(0, 30, 2), (0, 40, 3), (0, 10, 6), (1, 20, 6), (1, 50, 6)]


def test_the_distance_is_divided_before_the_cut():
    assert by_hand(1.5, 2, {20: 7, 50: 8}) == [
        (0, 30, 2), (0, 40, 3), (1, 50, 4), (1, 20, 6),
    ]  # fmt: skip
    assert by_hand(6, 2, {20: 7, 50: 8}) == [
        (0, 20, 1), (0, 30, 2), (1, 50, 1), (1, 20, 6),
    ]  # fmt: skip


def test_distances_that_become_equal_go_by_image_id():
    assert by_hand(3, 4, {20: 7, 10: 7})[:3] == [(0, 10, 2), (0, 20, 2), (0, 30, 2)]


def test_the_image_at_rank_101_of_its_part_comes_in_when_it_shares_the_landmark():
    """150 images at the squared distances 1 to 150 from the query; the 120th shares its landmark.

    1.5 brings it from 120 to 80, a tie with the 80th, so that the 100th is out.
    """

    def found_in(numbers):
        numbers = np.array(numbers)
        shares = numbers == 120
        index = np.sqrt(numbers)[:, None].astype(np.float32)
        found = find_candidates(
            np.zeros((1, 1), np.float32), np.array([7]), index, np.where(shares, 7, 8), 100
        )
        return Part(
            np.array([9], np.uint64), np.array([7]), np.zeros((1, 3), int), numbers.astype(
                np.uint64), np.where(shares, 7, 8), np.zeros((len(numbers), 3), int),
            found.row_ends, found.positions, np.round(found.distances),
        )  # fmt: skip

    whole = found_in(range(1, 151))
    halves = [found_in(range(1, 151, 2)), found_in(range(2, 151, 2))]
    for parts in ([whole], halves, halves[::-1]):
        ranking = merge_parts(parts, 1.5, 100)
        assert ranking.image_ids.tolist() == [*range(1, 81), 120, *range(81, 100)]
        assert ranking.distances.tolist() == [*range(1, 81), 80, *range(81, 100)]
        without = merge_parts(parts, 1, 100)
        assert without.image_ids.tolist() == list(range(1, 101))


# ------------------------------------------------------------- any number of parts, brute force


@pytest.mark.parametrize("num_parts", [1, 2, 3, 6, 100])
@pytest.mark.parametrize("divisor", [1, 1.5, 100])
def test_any_number_of_parts_gives_what_one_flat_search_gives(num_parts, divisor):
    for seed in range(3 if num_parts < 90 else 1):  # of 90 images, 10 parts of 100 are empty
        world = World(seed)
        parts = world.parts(num_parts)
        assert len(parts) == num_parts
        ranking = merge_parts(parts, divisor, world.num_nearest)
        assert_same_ranking(
            ranking, merge_parts([world.part(np.arange(90))], divisor, world.num_nearest)
        )
        assert rankings_of(ranking) == world.brute_force(divisor)


def test_ties_within_and_between_parts_go_by_image_id():
    world = World(3, num_different=2)  # 90 images, two descriptors
    expected = world.brute_force(1.5)
    assert any(len({distance for _, distance in row}) == 1 for row in expected)
    for num_parts in (1, 2, 6, 100):
        assert rankings_of(merge_parts(world.parts(num_parts), 1.5, 10)) == expected


@pytest.mark.parametrize("divisor", [1, 1.2, 1.5, 3, 100, 1e9])
@pytest.mark.parametrize("num_landmarks", [1, 2, 30])
def test_the_rerank_equals_a_rescoring_of_all_index_images(divisor, num_landmarks):
    for seed in range(4, 8):
        world = World(seed, num_index=200, num_landmarks=num_landmarks, num_nearest=7)
        expected = world.brute_force(divisor)
        for num_parts in (1, 4):
            assert rankings_of(merge_parts(world.parts(num_parts), divisor, 7)) == expected


def test_the_rerank_brings_in_images_from_far_behind():
    """The random worlds do hold the case that this is all about."""
    world = World(4, num_index=200, num_landmarks=30, num_nearest=7)
    nearest = [dict(row) for row in world.brute_force(1)]
    reranked = [dict(row) for row in world.brute_force(1.5)]
    assert any(row.keys() - near.keys() for row, near in zip(reranked, nearest, strict=True))


@pytest.mark.parametrize("num_index", [0, 1, 6, 9])
def test_an_index_of_fewer_images_than_wanted_is_ranked_whole(num_index):
    world = World(8, num_index=num_index)
    for num_parts in (1, 3, 12):
        ranking = merge_parts(world.parts(num_parts), 1.5, 10)
        assert rankings_of(ranking) == world.brute_force(1.5)
        assert np.diff(ranking.row_ends, prepend=0).tolist() == [num_index] * 15


def test_no_queries_have_a_ranking_of_nothing():
    world = World(9, num_queries=0)
    ranking = merge_parts(world.parts(2), 1.5, 10)
    assert len(ranking.query_ids) == len(ranking.row_ends) == len(ranking.image_ids) == 0
    assert len(ranking.distances) == len(ranking.parts) == len(ranking.positions) == 0


@pytest.mark.parametrize("query_block", [1, 4, 15, 16])
def test_blocks_of_queries_change_nothing(monkeypatch, query_block):
    world = World(10)
    parts = world.parts(3)
    whole = merge_parts(parts, 1.5, 10)
    monkeypatch.setattr(merging, "QUERY_BLOCK", query_block)
    ranking = merge_parts(parts, 1.5, 10)
    assert_same_ranking(ranking, whole)
    np.testing.assert_array_equal(ranking.parts, whole.parts)
    np.testing.assert_array_equal(ranking.positions, whole.positions)


def test_only_a_block_of_queries_is_merged_at_a_time(monkeypatch):
    sizes, real = [], merging._keep_best

    def noting(rows, *args):
        sizes.append(len(set(rows.tolist())))
        return real(rows, *args)

    monkeypatch.setattr(merging, "_keep_best", noting)
    monkeypatch.setattr(merging, "QUERY_BLOCK", 4)
    merge_parts(World(10).parts(3), 1.5, 10)
    assert sizes == [4, 4, 4, 3]


def test_the_ranking_tells_where_every_image_stands():
    world = World(11)
    parts = world.parts(4)
    ranking = merge_parts(parts, 1.5, 10)
    for image_id, part, position in zip(
        ranking.image_ids, ranking.parts, ranking.positions, strict=True
    ):
        assert parts[part].index_ids[position] == image_id
        row = parts[part].index_places[position, 0]
        assert world.index_ids[row] == image_id
    assert set(ranking.parts.tolist()) == {0, 1, 2, 3}


# -------------------------------------------------------------- the same image in several parts


def test_an_image_in_two_parts_appears_once_where_it_is_nearest():
    world = World(12, num_index=40)
    everything = np.arange(40)
    twice = merge_parts([world.part(everything), world.part(everything[:25])], 1.5, 10)
    assert_same_ranking(twice, merge_parts([world.part(everything)], 1.5, 10))


def test_of_two_pictures_of_one_id_the_nearer_one_counts():
    def part_of(image_ids, distances):
        n = len(image_ids)
        return Part(
            np.array([9], np.uint64), np.array([7]), np.zeros((1, 3), int),
            np.array(image_ids, np.uint64), np.zeros(n, int), np.zeros((n, 3), int),
            np.array([n]), np.arange(n, dtype=np.int32), np.array(distances, np.float32),
        )  # fmt: skip

    parts = [part_of([1, 2, 3], [5, 4, 7]), part_of([1, 3, 4], [3, 8, 4])]
    ranking = merge_parts(parts, 1, 10)
    assert rankings_of(ranking) == [[(1, 3), (2, 4), (4, 4), (3, 7)]]
    assert ranking.parts.tolist() == [1, 0, 1, 0]
    assert ranking.positions.tolist() == [0, 1, 2, 2]
    assert merge_parts(parts, 1, 2).image_ids.tolist() == [1, 2]


# ---------------------------------------------------------------------------------- part files


def write_parts(folder, num_parts, **changed):
    """Writes the part files of a small search; gives their paths.

    Args:
        folder: where.
        num_parts: how many.
        changed: part-K=dict of what its fingerprint has in the place of the common one.
    """
    paths = []
    for number, part in enumerate(World(13, num_index=12).parts(num_parts)):
        path = folder / f"part-{number}-of-{num_parts}.npz"
        facts = FINGERPRINT | {"part": number, "parts": num_parts}
        save_arrays(path, facts | changed.get(f"part{number}", {}), **columns_of_part(part))
        paths.append(path)
    return paths


def refusal(paths):
    with pytest.raises(ExpectedError) as caught:
        load_parts(paths)
    return one_line(caught.value)


@pytest.mark.parametrize("num_parts", [1, 2, 11])
def test_parts_come_back_in_their_order_however_they_are_named(tmp_path, num_parts):
    paths = write_parts(tmp_path, num_parts)
    expected = World(13, num_index=12).parts(num_parts)
    for order in (paths, paths[::-1], paths[1::2] + paths[::2]):
        parts, fingerprint = load_parts(order)
        assert fingerprint == FINGERPRINT | {"parts": num_parts}
        for part, known in zip(parts, expected, strict=True):
            for name, column in columns_of_part(known).items():
                np.testing.assert_array_equal(getattr(part, name), column)
                assert getattr(part, name).dtype == column.dtype


def test_missing_parts_are_named(tmp_path):
    paths = write_parts(tmp_path, 6)
    assert refusal([paths[0], *paths[2:4], paths[5]]) == (
        "part 1, 4 of 6 is missing; expected all parts of the search; search part 1 of 6 first"
    )


def test_parts_without_an_image_are_told_and_one_of_them_is_enough(tmp_path):
    empty = World(13, num_index=12).part(np.arange(0))
    paths = write_parts(tmp_path, 2)
    for number in (0, 1):
        assert len(load_parts(paths)[0]) == 2
        facts = FINGERPRINT | {"part": number, "parts": 2}
        save_arrays(paths[number], facts, **columns_of_part(empty))
    assert refusal(paths).startswith(
        f"{paths[0]}: no image is in any of the 2 parts of the search; expected the images that "
    )


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_no_part_may_be_missing(tmp_path, missing):
    paths = write_parts(tmp_path, 3)
    del paths[missing]
    assert refusal(paths).startswith(f"part {missing} of 3 is missing;")


def test_a_part_that_is_given_twice_is_named(tmp_path):
    paths = write_parts(tmp_path, 3)
    again = tmp_path / "copy" / "part-1-of-3.npz"
    again.parent.mkdir()
    again.write_bytes(paths[1].read_bytes())
    assert refusal([*paths, again]) == (
        f"{again}: part 1 is given twice; expected each part once; leave one out"
    )
    assert refusal([paths[1], paths[1]]).startswith(f"{paths[1]}: part 1 is given twice;")


OTHERS = {
    "model": "ffff0000",
    "batch_size": 16,
    "flipped_too": True,
    "descriptor_dtype": "float16",
    "top": 100,
    "normalise": False,
    "queries": "cc",
    "index": "dd",
    "parts": 4,
}


def test_every_setting_of_a_part_is_among_those_tried():
    assert OTHERS.keys() == FINGERPRINT.keys() | {"parts"}


@pytest.mark.parametrize(("setting", "value"), OTHERS.items())
def test_a_part_of_another_search_is_named_with_its_setting(tmp_path, setting, value):
    paths = write_parts(tmp_path, 3, part1={setting: value})
    was = (FINGERPRINT | {"parts": 3})[setting]
    assert refusal(paths) == (
        f"{paths[1]}: {setting} is {value}, but {was} in {paths[0]}; expected parts of one search; "
        "search the odd one again, with the same queries.npz"
    )


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_part_that_is_cut_off_is_named(tmp_path, share):
    paths = write_parts(tmp_path, 2)
    data = paths[1].read_bytes()
    paths[1].write_bytes(data[: int(share * len(data))])
    message = refusal(paths)
    assert message.startswith(f"{paths[1]}: ")
    assert message.endswith(
        "; expected a whole file written by this project; write or copy it again"
    )


def test_a_part_with_a_changed_byte_is_named(tmp_path):
    paths = write_parts(tmp_path, 2)
    data = bytearray(paths[0].read_bytes())
    data[len(data) // 2] ^= 0xFF
    paths[0].write_bytes(data)
    assert refusal(paths).startswith(f"{paths[0]}: ")


def test_a_part_that_is_not_there_is_named(tmp_path):
    paths = write_parts(tmp_path, 2)
    assert refusal([paths[0], tmp_path / "nothing.npz"]).startswith(
        f"{tmp_path / 'nothing.npz'}: No such file or directory; "
    )


def test_descriptions_are_no_part(tmp_path):
    paths = write_parts(tmp_path, 2)
    queries = tmp_path / "queries.npz"
    empty = Descriptions(*(np.empty(0) for _ in range(6)))
    save_table(queries, empty, FINGERPRINT)
    assert refusal([queries, *paths]) == (
        f"{queries}: not a part of a search; expected a part-K-of-N.npz of retrieval.py; "
        "leave it out"
    )


def test_a_part_without_a_column_is_no_part(tmp_path):
    [path] = write_parts(tmp_path, 1)
    columns = columns_of_part(World(13, num_index=12).part(np.arange(12)))
    del columns["distances"]
    save_arrays(path, FINGERPRINT | {"part": 0, "parts": 1}, **columns)
    assert refusal([path]).startswith(f"{path}: not a part of a search;")


def test_text_is_no_part(tmp_path):
    path = tmp_path / "part-0-of-1.npz"
    path.write_text("id,images\n")
    assert refusal([path]).startswith(f"{path}: ")


def test_a_file_of_one_array_is_no_part(tmp_path):
    path = tmp_path / "part-0-of-1.npz"
    with open(path, "wb") as file:
        np.save(file, np.arange(3))
    assert refusal([path]).startswith(f"{path}: ")


def edited(name, change):
    """An edit of a part: `change` of the column of that name, in place or as a new one."""

    def edit(columns):
        column = columns[name].copy()
        changed = change(column)
        columns[name] = column if changed is None else changed

    return edit


def put(name, place, value):
    return edited(name, lambda column: column.__setitem__(place, value))


# told of it -> the edit; the parts have 15 queries, 6 index images and 90 candidates each
EDITS = {
    "distances has values that are no finite numbers": put("distances", 3, np.nan),
    "distances has values that are no finite numbers;": put("distances", 0, -np.inf),
    "distances has -1.0, not 0 or more": put("distances", -1, -1),
    "distances is float64, not float32": edited("distances", lambda a: a.astype(float)),
    "distances has the shape (90, 1), not (90)": edited("distances", lambda a: a[:, None]),
    "positions has -1, not 0 or more": put("positions", 4, -1),
    "positions has 6, not numbers below the 6 of index images": put("positions", 4, 6),
    "positions is float32, not int32": edited("positions", lambda a: a.astype(np.float32)),
    "row_ends has -5, not 0 or more": put("row_ends", 0, -5),
    "row_ends has the shape (14), not (15)": edited("row_ends", lambda a: a[:-1]),
    "row_ends is not ascending": edited("row_ends", lambda a: a[::-1]),
    "row_ends has the shape (), not (15)": edited("row_ends", lambda a: np.int64(90)),
    "its rows do not end with its 90 candidates": put("row_ends", -1, 89),
    "query_ids is not increasing": edited("query_ids", lambda a: a[::-1]),
    "query_ids is not increasing;": edited("query_ids", lambda a: np.full_like(a, 7)),
    "index_ids is int64, not uint64": edited("index_ids", lambda a: a.astype(np.int64)),
    "index_ids is not ascending": put("index_ids", 1, 0),
    "query_places has the shape (14, 3), not (15, 3)": edited("query_places", lambda a: a[:-1]),
    "index_places has -1, not 0 or more": put("index_places", (2, 1), -1),
    "index_landmarks has the shape (5), not (6)": edited("index_landmarks", lambda a: a[:-1]),
    "its query_ids are not those of": put("query_ids", 0, 0),
    "its query_landmarks are not those of": put("query_landmarks", 0, 99),
    "its query_places are not those of": put("query_places", (0, 0), 99),
}


@pytest.mark.parametrize(("told", "edit"), EDITS.items(), ids=EDITS)
def test_a_part_that_somebody_edited_and_wrote_anew_is_refused(tmp_path, told, edit):
    paths = write_parts(tmp_path, 2)
    arrays, page = load_arrays(paths[1])
    assert (len(arrays["index_ids"]), len(arrays["positions"])) == (6, 90)
    edit(arrays)
    save_arrays(paths[1], page, **arrays)
    assert refusal(paths).startswith(f"{paths[1]}: {told}")


@pytest.mark.parametrize(
    "facts", [{"part": 2}, {"part": -1}, {"part": "1"}, {"parts": None}, {"parts": 1.5}, {"top": 0}]
)
def test_a_part_of_impossible_facts_is_no_part(tmp_path, facts):
    paths = write_parts(tmp_path, 2, part1=facts)
    assert refusal(paths[1:]).startswith(f"{paths[1]}: not a part of a search;")


def test_parts_survive_their_files(tmp_path):
    paths = write_parts(tmp_path, 3)
    world = World(13, num_index=12)
    ranking = merge_parts(load_parts(paths)[0], 1.5, 10)
    assert rankings_of(ranking) == world.brute_force(1.5)


def test_a_part_gives_the_candidates_of_some_queries():
    found = Candidates(np.array([2, 2, 5]), np.arange(5, dtype=np.int32), np.arange(5, dtype="f"))
    part = make_part(World(14, num_queries=3), np.arange(9), found)
    for (first, last), (rows, positions) in {
        (0, 3): ([0, 0, 2, 2, 2], [0, 1, 2, 3, 4]),
        (0, 1): ([0, 0], [0, 1]),
        (1, 2): ([], []),
        (1, 3): ([2, 2, 2], [2, 3, 4]),
    }.items():
        of_rows = part.cut(first, last, "row_ends", "positions", "distances")
        assert of_rows[0].tolist() == rows
        assert of_rows[1].tolist() == of_rows[2].tolist() == positions
