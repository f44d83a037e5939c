"""Tests of `retrieval.py` as a person uses it: parts, merge, files, wrong uses, other kernels."""

import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from synthetic import (
    LANDMARKS,
    RARE_LANDMARK,
    Synthetic,
    draw,
    encode,
    entry,
    make_image_id,
    make_source,
    member_name,
    pack,
    write_shard,
)
from tiny_network import in_place_of_backbones

import retrieval
import utils
from data.arrays import load_arrays, save_arrays
from data.landmarks import format_image_id
from data.sources import INDEX_CSV, RETRIEVAL_SOLUTION, TEST_CSV, Shard, Source
from data.submissions import RecognitionTruth, read_retrieval_solution, read_retrieval_submission
from data.tars import list_members
from demo.server import serve
from descriptors.descriptions import concatenate, load_descriptions
from metrics import format_scores, score_file
from report import neighbors, write
from report.neighbors import draw_neighbors
from runs import kernel as kernel_side
from runs.command_line import run_command_line
from search.merging import load_parts, merge_parts
from search.reranks import RERANKS
from utils import ExpectedError

pytestmark = pytest.mark.usefixtures("tiny_models")

NUM_SHARDS, PER_SHARD = 7, 20  # of the index: 140 images, more than are retrieved
BAD_QUERY, BAD_INDEX = (Shard("test", 0), 3), (Shard("index", 4), 5)
NOWHERE = "0123456789abcdef"  # an id of index.csv and test.csv that is in no shard


def run(*arguments):
    """Runs the command line in this process; gives its exit code."""
    try:
        run_command_line(lambda: retrieval.main([str(argument) for argument in arguments]))
    except SystemExit as end:
        return end.code
    return 0


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def make_world(folder):
    """Writes a data set whose index has several shards, duplicates, and what goes wrong.

    Every picture of an index shard has a twin, byte for byte, in a later shard; one index image and
    one query cannot be decoded; `NOWHERE` is in the tables alone, the last image of the first index
    shard in its tar alone.
    """
    made = make_source(folder, replaced={BAD_QUERY: b"not an image"})
    rng = np.random.default_rng(7)
    known = [*LANDMARKS, RARE_LANDMARK, None]
    image_ids = {s: ids for s, ids in made.image_ids.items() if s.split != "index"}
    landmark_of, earlier = dict(made.landmark_of), []
    for number in range(NUM_SHARDS):
        shard, entries = Shard("index", number), []
        image_ids[shard] = []
        for position in range(PER_SHARD):
            image_id = make_image_id("retrieval", number, position)
            if number > 3 and position % 2:
                landmark_id, data = earlier.pop(0)
            else:
                landmark_id = known[rng.integers(len(known))]
                data = encode(draw(landmark_id, rng), quality=90)
                earlier.append((landmark_id, data))
            if (shard, position) == BAD_INDEX:
                data = b"<html>404</html>"
            entries.append(entry(member_name(image_id), data))
            image_ids[shard].append(image_id)
            landmark_of[image_id] = landmark_id
        write_shard(folder, shard, pack(entries))
    made = Synthetic(folder, image_ids, landmark_of)
    index, test = made.of_split("index"), made.of_split("test")
    index.remove(image_ids[Shard("index", 0)][-1])
    rows = []
    for number, image_id in enumerate(test):
        found = [i for i in index if landmark_of[i] == landmark_of[image_id] is not None]
        usage = "Public" if number % 3 else "Private"
        rows.append(
            f"{image_id},{' '.join(found)},{usage}" if found else f"{image_id},None,Ignored"
        )
    rows.append(f"{NOWHERE},{index[0]},Private")
    tables = {
        INDEX_CSV: ["id", *sorted(index), NOWHERE],
        TEST_CSV: ["id", *test[::-1], NOWHERE],
        RETRIEVAL_SOLUTION: ["id,images,Usage", *rows],
    }
    for name, lines in tables.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    return made


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A data set with an index of several shards, which no test changes."""
    return make_world(tmp_path_factory.mktemp("retrieval-data") / "source")


@pytest.fixture(scope="module")
def model(recognition_run):
    return recognition_run.output / "model.keras"


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    """A recogniser with random weights."""
    from model import build_classifier, build_network, save_model
    from recipes import Loss, Recipe

    path = tmp_path_factory.mktemp("other") / "other.keras"
    with in_place_of_backbones():
        network = build_network(Recipe.of({"weights": "none", "image_size": 32}), 4, 10)
    save_model(build_classifier(network, Loss()), path, {"landmark_ids": sorted(LANDMARKS)})
    return path


@pytest.fixture(scope="module")
def searched(world, model, tmp_path_factory):
    """The output folder of a run in the 6 parts of the default."""
    output = tmp_path_factory.mktemp("retrieval") / "output"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbors, "draw_neighbors", lambda *_: Figure((1, 1)))
        patch.setattr(write, "render", lambda all_facts: "")
        assert run(*common(world, model), "--output", output) == 0
    return output


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Draws nothing, since that takes longer than all the rest."""
    monkeypatch.setattr(neighbors, "draw_neighbors", lambda *_: Figure((1, 1)))
    monkeypatch.setattr(write, "render", lambda all_facts: "")


@pytest.fixture
def fetched(monkeypatch):
    """List of the shards that are read."""
    shards, real = [], Source.fetch_shard

    def fetch_shard(source, shard, *more):
        shards.append(shard)
        return real(source, shard, *more)

    monkeypatch.setattr(Source, "fetch_shard", fetch_shard)
    return shards


@pytest.fixture
def resumed(searched, tmp_path):
    """A copy of the output folder that a test may change."""
    return shutil.copytree(searched, tmp_path / "resumed")


def common(world, model):
    return ["--source", world.folder, "--model", model, "--batch-size", 8]


def submission_of(output):
    return (output / "retrieval_submission.csv").read_bytes()


def error_of(captured):
    """Gives the error of a run, which must be its last line and the only one that says so."""
    lines = captured.err.splitlines()
    assert lines[-1].startswith("error: ")
    assert captured.err.count("error: ") == 1
    assert "Traceback" not in captured.err
    return lines[-1]


# ------------------------------------------------------------------------------- the whole job


def test_a_run_writes_every_file_that_is_promised_and_no_other(searched):
    assert files_of(searched) == {
        "queries.npz",
        *(f"descriptors/index_{number:03d}.npz" for number in range(NUM_SHARDS)),
        *(f"part-{number}-of-6.npz" for number in range(6)),
        "retrieval_submission.csv",
        "neighbors.png",
        "report.json",
        "report.html",
    }


def test_stdout_has_the_paths_and_both_scores_and_nothing_else(world, model, tmp_path, capsys):
    assert run(*common(world, model), "--parts", 2, "--output", tmp_path) == 0
    captured = capsys.readouterr()
    solution = world.folder / RETRIEVAL_SOLUTION
    scores = score_file("retrieval", tmp_path / "retrieval_submission.csv", solution)
    lines = captured.out.splitlines()
    assert lines[:3] + lines[4:] == [
        str(tmp_path / "part-0-of-2.npz"),
        str(tmp_path / "part-1-of-2.npz"),
        str(tmp_path / "retrieval_submission.csv"),
        format_scores("mAP@100", scores),
        str(tmp_path / "neighbors.png"),
        str(tmp_path / "report.html"),
    ]
    number = r"[01]\.\d{4}"
    assert re.fullmatch(
        rf"mAP@100 without the rerank: Public {number}  Private {number}  all {number}", lines[3]
    )
    told = captured.err.splitlines()
    for done in ("test/images_001.tar: 9 images described (2/2), ", "index/images_000.tar: 19 "):
        assert any(line.startswith(done) for line in told)
    assert "part 0 of 2: 17 queries, 79 index images" in told
    assert "part 1 of 2: 17 queries, 59 index images" in told
    assert told[-1] == "17 of 19 test images have neighbors"


def test_the_score_without_the_rerank_is_that_of_the_submission_without_it(
    world, resumed, model, capsys
):
    arguments = [*common(world, model), "--output", resumed]
    assert run(*arguments) == 0
    with_both = capsys.readouterr().out.splitlines()
    before = submission_of(resumed)
    assert run(*arguments, "--rerank-divisor", 1) == 0
    alone = capsys.readouterr().out.splitlines()
    assert submission_of(resumed) != before
    assert with_both[7].replace(" without the rerank", "") == alone[7]
    assert not any("without the rerank" in line for line in alone)
    assert len(alone) == len(with_both) - 1


def oracle(world, output, divisor=1.5, top=100):
    """Ranks all index images for each query, straight from the descriptors of the files."""
    queries, _ = load_descriptions(output / "queries.npz")
    files = sorted((output / "descriptors").glob("index_*.npz"))
    index = concatenate([load_descriptions(file)[0] for file in files])
    unit = [
        (d / np.maximum(np.linalg.norm(d, axis=1, keepdims=True), 1e-12)).astype(np.float64)
        for d in (queries.descriptors, index.descriptors)
    ]
    rows = {image_id: [] for image_id in [*world.of_split("test"), NOWHERE]}
    for image_id, landmark_id, descriptor in zip(
        queries.image_ids, queries.landmark_ids, unit[0], strict=True
    ):
        squared = ((unit[1] - descriptor) ** 2).sum(axis=1).astype(np.float32).astype(np.float64)
        squared[index.landmark_ids == landmark_id] /= divisor
        order = np.lexsort((index.image_ids, squared))[:top]
        rows[format_image_id(image_id)] = [format_image_id(i) for i in index.image_ids[order]]
    return rows


def test_the_submission_is_a_rescoring_of_all_index_images(world, searched):
    submission = read_retrieval_submission(searched / "retrieval_submission.csv")
    assert submission == oracle(world, searched)
    assert sorted({len(row) for row in submission.values()}) == [0, 100]


def test_the_submission_has_the_test_images_in_the_order_of_test_csv(world, searched):
    lines = submission_of(searched).decode().splitlines()
    assert lines[0] == "id,images"
    assert [line.partition(",")[0] for line in lines[1:]] == [
        *reversed(world.of_split("test")),
        NOWHERE,
    ]


def test_the_index_has_ties_that_only_the_image_id_decides(world, searched):
    """Twins lie in different shards, so that the parts must agree on their order."""
    rows = read_retrieval_submission(searched / "retrieval_submission.csv").values()
    data = {}
    for shard in world.image_ids:
        if shard.split == "index":
            tar = (world.folder / shard.path).read_bytes()
            for member in list_members(world.folder / shard.path):
                jpeg = tar[member.offset : member.offset + member.size]
                data[format_image_id(member.image_id)] = jpeg
    num_twins = 0
    for row in rows:
        for left, right in zip(row, row[1:], strict=False):
            if data[left] == data[right]:
                num_twins += 1
                assert left < right
    assert num_twins > 100


# --------------------------------------------------------------------------- any number of parts


@pytest.mark.parametrize("num_parts", [1, 2, 7, 9])
def test_any_number_of_parts_gives_the_same_bytes(world, model, searched, resumed, num_parts):
    assert run(*common(world, model), "--output", resumed, "--parts", num_parts) == 0
    assert submission_of(resumed) == submission_of(searched)
    assert len(list(resumed.glob(f"part-*-of-{num_parts}.npz"))) == num_parts


def test_more_parts_than_shards_leave_some_empty_and_every_shard_in_one(
    world, model, resumed, capsys
):
    assert run(*common(world, model), "--output", resumed, "--parts", 9) == 0
    told = capsys.readouterr().err
    counts = [int(n) for n in re.findall(r"part \d of 9: 17 queries, (\d+) index images", told)]
    assert counts == [19, 20, 20, 20, 19, 20, 20, 0, 0]


@pytest.mark.parametrize("options", [["--no-normalise"], ["--descriptor-dtype", "float16"]])
def test_other_descriptors_give_the_same_bytes_in_parts_too(world, model, tmp_path, options):
    arguments = [*common(world, model), "--output", tmp_path, *options]
    assert run(*arguments, "--parts", 1) == 0
    whole = submission_of(tmp_path)
    assert run(*arguments, "--parts", 3) == 0
    assert submission_of(tmp_path) == whole


def test_fewer_images_than_100_are_asked_for_with_top(world, model, searched, resumed):
    assert run(*common(world, model), "--output", resumed, "--top", 7) == 0
    cut = read_retrieval_submission(resumed / "retrieval_submission.csv")
    whole = read_retrieval_submission(searched / "retrieval_submission.csv")
    assert cut == {image_id: row[:7] for image_id, row in whole.items()}


def test_parts_of_different_kernels_merge_in_any_order_to_the_same_bytes(
    world, model, searched, tmp_path, capsys
):
    """Each part in an output folder of its own, describing the queries for itself."""
    files = []
    for part in range(6):
        output = tmp_path / f"kernel-{part}"
        assert run(*common(world, model), "--output", output, "--part", part) == 0
        files.append(output / f"part-{part}-of-6.npz")
        assert capsys.readouterr().out.splitlines() == [str(files[-1])]
        assert not (output / "retrieval_submission.csv").exists()
    for order in (files, files[::-1], files[3:] + files[:3]):
        output = tmp_path / "merged"
        assert run("merge", *order, "--source", world.folder, "--output", output) == 0
        assert submission_of(output) == submission_of(searched)
        assert files_of(output) == {
            *("retrieval_submission.csv", "neighbors.png", "report.json", "report.html")
        }
        shutil.rmtree(output)


def test_part_files_may_follow_the_options(world, searched, tmp_path):
    files = sorted(searched.glob("part-*"))
    assert run("merge", "--source", world.folder, "--output", tmp_path, *files) == 0
    assert submission_of(tmp_path) == submission_of(searched)


def test_merge_alone_takes_the_parts_of_the_output(world, searched, resumed, fetched):
    (resumed / "retrieval_submission.csv").unlink()
    assert run("merge", "--source", world.folder, "--output", resumed) == 0
    assert submission_of(resumed) == submission_of(searched)
    assert fetched == []


def test_over_http_the_submission_is_the_same_and_no_shard_stays(
    world, model, searched, tmp_path, capsys
):
    with serve(world.folder) as address:
        arguments = ["--source", address, "--model", model, "--batch-size", 8]
        assert run(*arguments, "--output", tmp_path, "--parts", 2) == 0
    assert submission_of(tmp_path) == submission_of(searched)
    assert not list((tmp_path / "scratch").iterdir())


# --------------------------------------------------------------------------------------- queries


def test_the_queries_of_another_part_are_taken_without_reading_a_test_shard(
    world, model, searched, tmp_path, fetched, capsys
):
    queries = searched / "queries.npz"
    arguments = [*common(world, model), "--output", tmp_path, "--part", 5]
    assert run(*arguments, "--queries", queries) == 0
    assert fetched == [Shard("index", 6)]
    assert f"{queries}: 17 queries" in capsys.readouterr().err.splitlines()
    assert files_of(tmp_path) == {"part-5-of-6.npz", "descriptors/index_006.npz"}
    ours, theirs = (load_arrays(f / "part-5-of-6.npz") for f in (tmp_path, searched))
    assert ours[1] == theirs[1]
    for name, column in theirs[0].items():
        np.testing.assert_array_equal(ours[0][name], column)


def test_recognitions_queries_serve_retrieval(recognition_run, data_set, tmp_path, fetched):
    shutil.copytree(recognition_run.output, tmp_path / "output")
    arguments = ["--source", data_set.folder, "--batch-size", 8]
    assert run(*arguments, "--output", tmp_path / "output", "--parts", 1) == 0
    assert fetched == [Shard("index", 0)]


@pytest.mark.parametrize("option", [("--batch-size", 4), ("--flipped-too",), ("--model", None)])
def test_queries_of_another_model_or_setting_are_refused(
    world, model, other_model, searched, tmp_path, option, capsys
):
    queries = searched / "queries.npz"
    option = ["--model", other_model] if option[0] == "--model" else option
    arguments = [*common(world, model), "--output", tmp_path, "--queries", queries, *option]
    assert run(*arguments) == 1
    error = error_of(capsys.readouterr())
    assert error.startswith(f'error: {queries}: its queries are of {{"model": ')
    assert error.endswith(
        "; give the file of this model, this test.csv and these settings, or leave out --queries"
    )
    assert files_of(tmp_path) == set()


def test_queries_of_another_test_set_are_refused(data_set, model, searched, tmp_path, capsys):
    other = make_source(tmp_path / "source", seed=1)
    arguments = [*common(other, model), "--queries", searched / "queries.npz"]
    assert run(*arguments, "--output", tmp_path / "output") == 1
    assert "this test.csv" in error_of(capsys.readouterr())


def test_queries_of_another_model_in_the_output_are_described_again(
    world, other_model, resumed, fetched, capsys
):
    assert run(*common(world, other_model), "--output", resumed, "--part", 0) == 0
    assert fetched[:2] == [Shard("test", 0), Shard("test", 1)]
    assert (
        f"{resumed / 'queries.npz'}: of another model or other settings: not used"
        in capsys.readouterr().err.splitlines()
    )


def test_damaged_queries_in_the_output_are_described_again(
    world, model, searched, resumed, fetched, capsys
):
    queries = resumed / "queries.npz"
    queries.write_bytes(queries.read_bytes()[:-100])
    assert run(*common(world, model), "--output", resumed, "--parts", 3) == 0
    assert fetched == [Shard("test", 0), Shard("test", 1)]
    assert f"{queries}: " in capsys.readouterr().err
    assert submission_of(resumed) == submission_of(searched)


def test_damaged_queries_that_were_named_are_an_error(world, model, searched, tmp_path, capsys):
    queries = tmp_path / "queries.npz"
    queries.write_bytes((searched / "queries.npz").read_bytes()[:-100])
    arguments = [*common(world, model), "--output", tmp_path / "output", "--queries", queries]
    assert run(*arguments) == 1
    assert error_of(capsys.readouterr()).startswith(f"error: {queries}: ")


# ------------------------------------------------------------------------- images that are missing


def test_a_query_that_cannot_be_decoded_has_an_empty_cell(world, model, tmp_path, capsys):
    shard, position = BAD_QUERY
    image_id = world.image_ids[shard][position]
    assert run(*common(world, model), "--output", tmp_path, "--parts", 1) == 0
    rows = read_retrieval_submission(tmp_path / "retrieval_submission.csv")
    assert [key for key, row in rows.items() if not row] == [image_id, NOWHERE]
    told = capsys.readouterr().err.splitlines()
    assert f"{shard.path}: image {image_id} left empty: not an image" in told
    wrong = world.image_ids[BAD_INDEX[0]][BAD_INDEX[1]]
    assert f"{BAD_INDEX[0].path}: image {wrong} left empty: not an image" in told


def test_only_readable_images_of_index_csv_are_retrieved(world, searched):
    retrieved = set()
    for row in read_retrieval_submission(searched / "retrieval_submission.csv").values():
        retrieved |= set(row)
    index = set(world.of_split("index"))
    not_to_be_had = {
        world.image_ids[BAD_INDEX[0]][BAD_INDEX[1]],
        world.image_ids[Shard("index", 0)][-1],
    }
    assert retrieved <= index - not_to_be_had
    assert len(retrieved) > 120
    assert NOWHERE not in retrieved


def test_an_index_of_fewer_than_100_images_is_retrieved_whole(data_set, model, tmp_path):
    assert run(*common(data_set, model), "--output", tmp_path, "--parts", 2) == 0
    rows = read_retrieval_submission(tmp_path / "retrieval_submission.csv")
    assert len(rows) == 18
    assert all(sorted(row) == sorted(data_set.of_split("index")) for row in rows.values())


def test_of_the_pictures_of_an_id_the_best_counts_in_any_number_of_parts(
    world, model, tmp_path, capsys
):
    """Shard 7 has other pictures under the ids of shard 1, and twice under one of shard 0."""
    source, rng = shutil.copytree(world.folder, tmp_path / "source"), np.random.default_rng(3)
    ids = [*world.image_ids[Shard("index", 1)], *2 * world.image_ids[Shard("index", 0)][:1]]
    pictures = [encode(draw([*LANDMARKS][n % 3], rng), quality=90) for n in range(len(ids))]
    entries = [entry(member_name(i), data) for i, data in zip(ids, pictures, strict=True)]
    write_shard(source, Shard("index", 7), pack(entries))
    (source / RETRIEVAL_SOLUTION).unlink()
    common_words = ["--source", source, "--output", tmp_path / "output"]
    search = ["--model", model, "--batch-size", 8, "--top", 5, "--rerank", "agreement"]
    found = {}
    for parts in (1, 2, 6):
        assert run(*common_words, *search, "--parts", parts) == 0
        for rerank in RERANKS:
            assert run("merge", *common_words, "--parts", parts, "--rerank", rerank) == 0
            submission = submission_of(tmp_path / "output")
            assert found.setdefault(rerank, submission) == submission
    rows = read_retrieval_submission(tmp_path / "output" / "retrieval_submission.csv").values()
    assert {len(row) for row in rows} == {0, 5} and all(len(set(row)) == len(row) for row in rows)
    num_known = len(world.of_split("index"))
    assert f"{num_known - 2} of {num_known} index images searched" in capsys.readouterr().err


def test_a_test_set_without_an_image_in_its_shards_is_refused(world, model, tmp_path, capsys):
    source = shutil.copytree(world.folder, tmp_path / "source")
    (source / TEST_CSV).write_text(f"id\n{NOWHERE}\n")
    arguments = ["--source", source, "--model", model, "--batch-size", 8]
    assert run(*arguments, "--output", tmp_path / "output", "--parts", 2) == 1
    told = f"error: {source}: none of the 1 test images is in its 2 test shards; expected "
    assert error_of(capsys.readouterr()).startswith(told)


def test_without_ground_truth_nothing_is_scored(world, model, resumed, tmp_path, capsys):
    source = shutil.copytree(world.folder, tmp_path / "source")
    shutil.rmtree(source / "ground_truth")
    before = submission_of(resumed)
    assert run("merge", "--source", source, "--output", resumed) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        str(resumed / "retrieval_submission.csv"),
        str(resumed / "neighbors.png"),
        str(resumed / "report.html"),
    ]
    assert (
        f"{source}: no {RETRIEVAL_SOLUTION}; the submission is not scored"
        in captured.err.splitlines()
    )
    assert submission_of(resumed) == before


# -------------------------------------------------------------------------------------- resuming


def test_running_again_reads_no_shard_and_gives_the_same(world, model, searched, resumed, fetched):
    assert run(*common(world, model), "--output", resumed) == 0
    assert fetched == []
    assert submission_of(resumed) == submission_of(searched)


def test_another_search_of_the_same_descriptors_reads_no_shard(world, model, resumed, fetched):
    assert run(*common(world, model), "--output", resumed, "--no-normalise", "--parts", 3) == 0
    assert fetched == []


def test_a_part_reads_only_the_shards_that_are_missing(world, model, searched, resumed, fetched):
    for number in (1, 2):
        (resumed / "descriptors" / f"index_00{number}.npz").unlink()
    arguments = [*common(world, model), "--output", resumed, "--parts", 2]
    assert run(*arguments, "--part", 0) == 0
    assert fetched == [Shard("index", 1), Shard("index", 2)]
    assert run(*arguments) == 0
    assert fetched == [Shard("index", 1), Shard("index", 2)]
    assert submission_of(resumed) == submission_of(searched)


def test_a_part_that_failed_continues_at_the_shard_where_it_was(
    world, model, searched, tmp_path, monkeypatch, fetched, capsys
):
    arguments = [*common(world, model), "--output", tmp_path, "--parts", 1]
    real = Source.fetch_shard

    def fetch_shard(source, shard, *more):
        if shard == Shard("index", 3):
            raise ExpectedError("the network is gone")
        return real(source, shard, *more)

    with monkeypatch.context() as patch:
        patch.setattr(Source, "fetch_shard", fetch_shard)
        assert run(*arguments) == 1
    assert error_of(capsys.readouterr()) == "error: the network is gone"
    assert files_of(tmp_path) == {
        "queries.npz", *(f"descriptors/index_00{number}.npz" for number in range(3))
    }  # fmt: skip
    del fetched[:]
    assert run(*arguments) == 0
    assert fetched == [Shard("index", number) for number in range(3, NUM_SHARDS)]
    assert submission_of(tmp_path) == submission_of(searched)


def test_a_part_that_ran_out_of_time_says_how_far_it_came_and_continues(
    world, model, searched, tmp_path, monkeypatch, capsys
):
    arguments = [*common(world, model), "--output", tmp_path, "--parts", 1]
    saved, real = [], utils.Stop.requested

    def requested(stop, needed_s=0.0):
        saved[:] = (tmp_path / "descriptors").glob("index_*.npz")
        return len(saved) >= 2 or real(stop, needed_s)

    with monkeypatch.context() as patch:
        patch.setattr(utils.Stop, "requested", requested)
        assert run(*arguments) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == (
        "stopped by the time limit: 2 of 7 index shards described; run the same command again to "
        "continue"
    )
    assert run(*arguments) == 0
    assert submission_of(tmp_path) == submission_of(searched)


DAMAGES = {
    "empty": lambda data: b"",
    "cut in half": lambda data: data[: len(data) // 2],
    "a byte changed": lambda data: data[:1500] + bytes([data[1500] ^ 255]) + data[1501:],
    "text": lambda data: b"no arrays",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_of_descriptors_is_described_again(
    world, model, searched, resumed, fetched, capsys, damage
):
    path = resumed / "descriptors" / "index_002.npz"
    path.write_bytes(damage(path.read_bytes()))
    assert run(*common(world, model), "--output", resumed, "--parts", 2) == 0
    assert fetched == [Shard("index", 2)]
    assert re.search(rf"{path}: .*: not used\n", capsys.readouterr().err)
    assert submission_of(resumed) == submission_of(searched)


def test_a_damaged_part_is_searched_again(world, model, searched, resumed, fetched, capsys):
    path = resumed / "part-3-of-6.npz"
    path.write_bytes(path.read_bytes()[:-50])
    assert run(*common(world, model), "--output", resumed) == 0
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"{path}:")]
    assert told.endswith(": not used")  # not: describing it
    assert fetched == []
    assert submission_of(resumed) == submission_of(searched)


@pytest.mark.parametrize("csv", [INDEX_CSV, TEST_CSV])
def test_what_was_described_for_another_table_of_images_is_described_again(
    world, model, searched, tmp_path, csv
):
    source = shutil.copytree(world.folder, tmp_path / "source")
    lines = (source / csv).read_text().splitlines()
    (source / csv).write_text("\n".join(lines[:30]) + "\n")
    (source / RETRIEVAL_SOLUTION).unlink()
    output, options = tmp_path / "output", common(world, model)[2:]
    assert run("--source", source, "--output", output, *options) == 0
    rows = read_retrieval_submission(output / "retrieval_submission.csv")
    assert csv == TEST_CSV or {i for row in rows.values() for i in row} <= set(lines[1:30])
    assert run("--source", world.folder, "--output", output, *options) == 0
    assert submission_of(output) == submission_of(searched)


@pytest.mark.parametrize("split", ["index", "test"])
def test_shards_that_were_replaced_are_described_again(world, model, tmp_path, split):
    source = shutil.copytree(world.folder, tmp_path / "source")
    arguments = ["--source", source, *common(world, model)[2:], "--parts", 2, "--output"]
    assert run(*arguments, tmp_path / "output") == 0
    rng, shard = np.random.default_rng(1), Shard(split, 0)
    entries = [
        entry(member_name(image_id), encode(draw(min(LANDMARKS), rng), quality=90))
        for image_id in world.image_ids[shard]
    ]
    write_shard(source, shard, pack(entries))
    assert run(*arguments, tmp_path / "output") == 0
    assert run(*arguments, tmp_path / "fresh") == 0
    assert submission_of(tmp_path / "output") == submission_of(tmp_path / "fresh")


@pytest.mark.parametrize("options", [["--no-normalise"], ["--descriptor-dtype", "float16"]])
def test_a_changed_setting_searches_the_same_parts_again(
    world, model, searched, resumed, tmp_path, options
):
    assert run(*common(world, model), "--output", resumed, *options) == 0
    assert run(*common(world, model), "--output", tmp_path / "fresh", *options) == 0
    for part in range(6):
        arrays, _ = load_arrays(resumed / f"part-{part}-of-6.npz")
        expected, _ = load_arrays(tmp_path / "fresh" / f"part-{part}-of-6.npz")
        before, _ = load_arrays(searched / f"part-{part}-of-6.npz")
        np.testing.assert_array_equal(arrays["distances"], expected["distances"])
        assert not np.array_equal(arrays["distances"], before["distances"])


def test_descriptors_of_another_model_are_made_again(world, model, other_model, resumed, fetched):
    arguments = ["--output", resumed, "--parts", 7, "--part", 3]
    assert run(*common(world, other_model), *arguments) == 0
    assert fetched == [Shard("test", 0), Shard("test", 1), Shard("index", 3)]


def test_a_broken_index_shard_can_be_left_out(world, model, tmp_path, capsys):
    source = shutil.copytree(world.folder, tmp_path / "source")
    (source / Shard("index", 2).path).write_bytes(b"not what the md5 says")
    arguments = ["--source", source, "--model", model, "--batch-size", 8, "--parts", 1]
    arguments += ["--output", tmp_path / "output"]
    assert run(*arguments) == 1
    assert "index/images_002.tar: md5 differs" in error_of(capsys.readouterr())
    assert run(*arguments, "--skip-bad-shards") == 0
    assert "index/images_002.tar left empty: " in capsys.readouterr().err
    rows = read_retrieval_submission(tmp_path / "output" / "retrieval_submission.csv")
    assert not {i for row in rows.values() for i in row} & set(world.image_ids[Shard("index", 2)])


@pytest.mark.parametrize(
    "shard", [Shard("index", 2), Shard("test", 1)], ids=lambda shard: shard.split
)
def test_a_shard_that_was_left_out_is_tried_again_by_the_next_run(
    world, model, searched, tmp_path, fetched, shard
):
    source = shutil.copytree(world.folder, tmp_path / "source")
    (source / shard.path).write_bytes(b"not what the md5 says")
    output = tmp_path / "output"
    arguments = [*common(world, model)[2:], "--source", source, "--output", output, "--parts", 2]
    assert run(*arguments, "--skip-bad-shards") == 0
    assert submission_of(output) != submission_of(searched)
    fetched.clear()
    assert run(*arguments) == 1  # nobody said that it may be left out for good
    assert set(fetched) == {shard}
    shutil.copyfile(world.folder / shard.path, source / shard.path)
    fetched.clear()
    assert run(*arguments) == 0
    assert fetched == [shard]
    assert submission_of(output) == submission_of(searched)


def test_queries_of_another_run_serve_without_the_shards_that_it_left_out(
    world, model, tmp_path, fetched, capsys
):
    source = shutil.copytree(world.folder, tmp_path / "source")
    (source / Shard("test", 1).path).write_bytes(b"not what the md5 says")
    arguments = [*common(world, model)[2:], "--source", source, "--part", 6, "--parts", 7]
    assert run(*arguments, "--output", tmp_path / "one", "--skip-bad-shards") == 0
    capsys.readouterr()
    fetched.clear()
    queries = tmp_path / "one" / "queries.npz"
    assert run(*arguments, "--output", tmp_path / "other", "--queries", queries) == 0
    assert f"{queries}: 8 queries, without test shards [1]\n" in capsys.readouterr().err
    assert fetched == [Shard("index", 6)]


@pytest.mark.parametrize(
    ("left_out", "is_own", "is_taken"), [([], True, True), ([1], True, False), ([1], False, True)]
)
def test_queries_without_a_shard_are_made_again_only_where_they_were_made(
    left_out, is_own, is_taken
):
    from search import parts

    own, path = Path("own"), Path("own" if is_own else "of another kernel")
    found = path, ([], left_out)
    session = SimpleNamespace(path=lambda name: own, find_fitting=lambda *args: found)
    assert (parts._load_usable(session, {}) is not None) == is_taken


# ---------------------------------------------------------------------------------------- errors


def test_a_part_of_another_model_is_refused(
    world, other_model, searched, resumed, tmp_path, capsys
):
    assert run(*common(world, other_model), "--output", tmp_path, "--part", 2) == 0
    odd = tmp_path / "part-2-of-6.npz"
    files = [odd if path.name == odd.name else path for path in sorted(searched.glob("part-*"))]
    before = submission_of(resumed)
    assert run("merge", *files, "--source", world.folder, "--output", resumed) == 1
    was, now = (load_arrays(path)[1]["model"] for path in (files[0], odd))
    assert error_of(capsys.readouterr()) == (
        f"error: {odd}: model is {now}, but {was} in {files[0]}; expected parts of one search; "
        "search the odd one again, with the same queries.npz"
    )
    assert submission_of(resumed) == before


def test_parts_of_a_model_that_was_trained_anew_since_are_refused(world, resumed, capsys):
    arrays, page = load_arrays(resumed / "queries.npz")
    save_arrays(resumed / "queries.npz", page | {"model": "of today"}, **arrays)
    before = submission_of(resumed)
    assert run("merge", "--source", world.folder, "--output", resumed) == 1
    assert error_of(capsys.readouterr()) == (
        f"error: {resumed / 'part-0-of-6.npz'}: of another model than {resumed / 'queries.npz'}; "
        "expected parts of the model that predicts; search the parts again, or choose another "
        "--output"
    )
    assert submission_of(resumed) == before


def test_a_part_that_is_cut_off_is_refused_by_merge(world, resumed, capsys):
    path = resumed / "part-3-of-6.npz"
    path.write_bytes(path.read_bytes()[:-50])
    assert run("merge", "--source", world.folder, "--output", resumed) == 1
    error = error_of(capsys.readouterr())
    assert error.startswith(f"error: {path}: ")
    assert error.endswith("expected a whole file written by this project; write or copy it again")


def test_a_part_that_is_missing_is_named_with_the_command_that_makes_it(world, resumed, capsys):
    (resumed / "part-3-of-6.npz").unlink()
    assert run("merge", "--source", world.folder, "--output", resumed) == 1
    assert error_of(capsys.readouterr()) == (
        "error: part 3 of 6 is missing; expected all parts of the search; search part 3 of 6 first"
    )


def test_parts_of_another_test_set_are_refused(resumed, tmp_path, capsys):
    other = make_source(tmp_path / "source", seed=1)
    before = submission_of(resumed)
    assert run("merge", "--source", other.folder, "--output", resumed) == 1
    assert error_of(capsys.readouterr()) == (
        f"error: {resumed / 'part-0-of-6.npz'}: it has queries that are not in metadata/test.csv "
        f"of {other.folder}; expected parts of this source; check --source"
    )
    assert submission_of(resumed) == before


def test_queries_that_are_missing_are_told_before_keras_is_loaded(world, tmp_path, capsys):
    unread = tmp_path / "model.keras"
    unread.touch()
    arguments = ["--source", world.folder, "--model", unread, "--output", tmp_path / "output"]
    assert run(*arguments, "--queries", tmp_path / "none.npz") == 1
    assert error_of(capsys.readouterr()).startswith(f"error: {tmp_path / 'none.npz'}: no such file")


def test_an_output_without_parts_is_told(world, tmp_path, capsys):
    assert run("merge", "--source", world.folder, "--output", tmp_path) == 1
    assert error_of(capsys.readouterr()) == (
        f"error: {tmp_path}: no part-*-of-6.npz there; expected the files of all parts; search the "
        "parts first, or name the files"
    )


def test_a_model_without_its_class_table_is_refused(world, model, tmp_path, capsys):
    bare = tmp_path / "bare.keras"
    with zipfile.ZipFile(model) as whole, zipfile.ZipFile(bare, "w") as archive:
        for name in whole.namelist():
            if name != "landmarks.json":
                archive.writestr(name, whole.read(name))
    assert run(*common(world, bare), "--output", tmp_path / "output") == 1
    assert error_of(capsys.readouterr()).startswith(f"error: {bare}: no class table in it; ")


def test_no_model_is_told_with_the_place_where_it_should_be(world, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no demo has left a model
    assert run("--source", world.folder, "--output", tmp_path) == 1
    assert error_of(capsys.readouterr()) == (
        f"error: model.keras: not in {tmp_path}; expected it from recognition.py; run that first, "
        "or name the file with --model"
    )


def test_an_index_without_shards_is_told(world, model, tmp_path, capsys):
    source = shutil.copytree(world.folder, tmp_path / "source")
    shutil.rmtree(source / "index")
    arguments = ["--source", source, "--model", model, "--output", tmp_path / "output"]
    assert run(*arguments) == 1
    assert error_of(capsys.readouterr()) == (
        f"error: {source}: no index/images_000.tar; expected shards in the CVDF layout; "
        "check --source"
    )


def test_a_gap_among_the_index_shards_is_told(world, model, tmp_path, capsys):
    source = shutil.copytree(world.folder, tmp_path / "source")
    (source / Shard("index", 3).path).unlink()
    arguments = ["--source", source, "--model", model, "--output", tmp_path / "output"]
    assert run(*arguments, "--parts", 1) == 1
    assert "index/images_003.tar" in error_of(capsys.readouterr())


def test_a_shard_that_goes_missing_on_the_way_is_told(world, model, tmp_path, monkeypatch, capsys):
    source = shutil.copytree(world.folder, tmp_path / "source")
    real = Source.select_shards

    def select_shards(self, split, *args):
        shards = real(self, split, *args)
        (source / Shard("index", 5).path).unlink(missing_ok=True)
        return shards

    monkeypatch.setattr(Source, "select_shards", select_shards)
    arguments = ["--source", source, "--model", model, "--output", tmp_path / "output"]
    (tmp_path / "output").mkdir()
    assert run(*arguments, "--part", 4) == 1
    assert error_of(capsys.readouterr()).startswith(
        f"error: {source / Shard('index', 5).path}: no such file; "
    )


WRONG_USES = {
    "part = parts": (["--part", 6], "argument --part: 6; expected 0 to 5 of --parts"),
    "part above parts": (
        ["--part", 3, "--parts", 2],
        "argument --part: 3; expected 0 to 1 of --parts",
    ),
    "negative part": (["--part", -1], "argument --part: '-1'; expected a number from 0 up"),
    "no parts": (["--parts", 0], "argument --parts: '0'; expected a number from 1 up"),
    "too many retrieved": (["--top", 101], "argument --top: 101; expected at most 100"),
    "a divisor below 1": (
        ["--rerank-divisor", 0.5],
        "argument --rerank-divisor: '0.5'; expected a number from 1 up",
    ),
    "a divisor that is no number": (
        ["--rerank-divisor", "nan"],
        "argument --rerank-divisor: 'nan'; expected a number from 1 up",
    ),
    "a rerank of raw descriptors": (
        ["--rerank", "agreement", "--no-normalise"],
        "--rerank compares descriptors of length 1; expected no --no-normalise",
    ),
    "an expansion of raw descriptors": (
        ["--augment-index", 10, "--no-normalise"],
        "--augment-index compares descriptors of length 1; expected no --no-normalise",
    ),
    "files without merge": (
        ["all", "part-0-of-6.npz"],
        "part-0-of-6.npz: part files go with `retrieval.py merge`",
    ),
    "a part to merge": (
        ["merge", "--part", 0],
        "--part goes with a search; expected `retrieval.py merge` alone or with files",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG_USES.values(), ids=WRONG_USES)
def test_a_wrong_use_is_one_line_and_exit_code_2(tmp_path, capsys, arguments, message):
    assert run("--output", tmp_path / "output", *arguments) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: {message}; see retrieval.py --help\n"
    assert captured.out == ""
    assert not (tmp_path / "output").exists()


def test_files_without_the_word_merge_are_a_wrong_use(capsys):
    assert run("part-0-of-6.npz", "part-1-of-6.npz") == 2
    assert "part-0-of-6.npz" in capsys.readouterr().err


def test_help_tells_every_option_with_its_default(capsys):
    assert run("--help-all") == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "--part K search part K alone, counted from 0",
        "--parts N parts of the index (default: 6)",
        "--top N images retrieved for a query, at most 100 (default: 100)",
        "1 = off (default: 1.5)",
    ):
        assert words in text


# --------------------------------------------------------------------------------------- reranks

OF_2019 = {
    *("query_ids", "query_landmarks", "query_places", "index_ids", "index_landmarks"),
    *("index_places", "row_ends", "positions", "distances"),
}


@pytest.fixture(scope="module")
def for_all_reranks(world, model, searched, tmp_path_factory):
    """The output folder of a search whose parts serve every rerank."""
    output = shutil.copytree(searched, tmp_path_factory.mktemp("reranks") / "output")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbors, "draw_neighbors", lambda *_: Figure((1, 1)))
        assert run(*common(world, model), "--output", output, "--rerank", "agreement") == 0
    return output


@pytest.fixture
def reranked(for_all_reranks, tmp_path):
    """A copy of that folder that a test may change."""
    return shutil.copytree(for_all_reranks, tmp_path / "reranked")


@pytest.fixture(scope="module")
def cosine_model(tmp_path_factory):
    """A recogniser with a cosine head and random weights, some of whose confidences are below 0."""
    import keras

    from data.landmarks import ClassTable
    from model import build_network, save_recogniser
    from recipes import RECIPES

    path = tmp_path_factory.mktemp("cosine") / "cosine.keras"
    recipe = RECIPES["strong"].changed(weights="none", image_size=32, neck=8)
    keras.utils.set_random_seed(3)
    with in_place_of_backbones():
        network = build_network(recipe, 4, 10)
    save_recogniser(network, path, ClassTable(np.array(sorted(LANDMARKS))), recipe)
    return path


def oracle_by_head(world, output):
    """Ranks all index images by what the head says, straight from the descriptors of the files."""
    queries, _ = load_descriptions(output / "queries.npz")
    files = sorted((output / "descriptors").glob("index_*.npz"))
    index = concatenate([load_descriptions(file)[0] for file in files])
    unit = [
        (d / np.maximum(np.linalg.norm(d, axis=1, keepdims=True), 1e-12)).astype(np.float64)
        for d in (queries.descriptors, index.descriptors)
    ]
    rows = {image_id: [] for image_id in [*world.of_split("test"), NOWHERE]}
    for query, image_id in enumerate(queries.image_ids):
        squared = ((unit[1] - unit[0][query]) ** 2).sum(axis=1)
        agrees = index.landmark_ids == queries.landmark_ids[query]
        sure = np.maximum(index.confidences.astype(np.float64), 0)
        of_query = max(0.0, float(queries.confidences[query]))
        agreements = np.where(agrees, sure * of_query, 0)
        keys = squared.astype(np.float32).astype(np.float64) - 8 * agreements
        order = np.lexsort((index.image_ids, keys))[:100]
        rows[format_image_id(image_id)] = [format_image_id(i) for i in index.image_ids[order]]
    return rows


def test_a_rerank_is_a_rescoring_of_all_index_images(world, reranked):
    arguments = ["--source", world.folder, "--output", reranked, "--rerank", "agreement"]
    assert run("merge", *arguments) == 0
    submission = read_retrieval_submission(reranked / "retrieval_submission.csv")
    assert submission == oracle_by_head(world, reranked)


@pytest.mark.parametrize("num_parts", [1, 4])
def test_reranks_and_expansions_give_the_same_bytes_in_any_number_of_parts(
    world, model, reranked, num_parts
):
    arguments = [*common(world, model), "--output", reranked, "--rerank", "agreement"]
    expanded = ["--expand-queries", 4, "--augment-index", 3]
    for options in ([], expanded):
        assert run(*arguments, *options) == 0
        expected = submission_of(reranked)
        assert run(*arguments, *options, "--parts", num_parts) == 0
        assert submission_of(reranked) == expected
    assert run(*arguments) == 0
    assert submission_of(reranked) != expected


def test_parts_for_every_rerank_serve_those_of_2019_too(world, searched, reranked, fetched):
    arguments = ["merge", "--source", world.folder, "--output", reranked]
    assert run(*arguments) == 0  # the model's own
    assert submission_of(reranked) == submission_of(searched)
    assert run(*arguments, "--rerank", "none") == 0
    plain = submission_of(reranked)
    assert run(*arguments, "--rerank", "divide", "--rerank-divisor", 1) == 0
    assert submission_of(reranked) == plain != submission_of(searched)
    assert fetched == []


def test_the_parts_of_2019_are_as_they_were(searched):
    arrays, facts = load_arrays(searched / "part-0-of-6.npz")
    assert arrays.keys() == OF_2019
    assert not facts.keys() & {"rerank", "weight", "names", "expansion"}


def test_parts_of_2019_cannot_be_reranked_otherwise(world, resumed, capsys):
    before = submission_of(resumed)
    arguments = ["merge", "--source", world.folder, "--output", resumed]
    assert run(*arguments, "--rerank", "agreement") == 1
    assert error_of(capsys.readouterr()) == (
        f"error: {resumed / 'part-0-of-6.npz'}: it has no candidates of the rerank agreement; "
        "expected those of all reranks; search the parts with this --rerank again"
    )
    assert submission_of(resumed) == before


def test_candidates_of_another_weight_are_not_merged_but_searched_again(
    world, model, reranked, capsys
):
    arguments = ["--source", world.folder, "--output", reranked, "--rerank", "agreement"]
    assert run("merge", *arguments) == 0
    expected, path = submission_of(reranked), reranked / "part-0-of-6.npz"
    for part in reranked.glob("part-*-of-6.npz"):
        arrays, facts = load_arrays(part)
        save_arrays(part, facts | {"weight": 3}, **arrays)
    assert run("merge", *arguments) == 1
    assert error_of(capsys.readouterr()) == (
        f"error: {path}: it has no candidates of the rerank agreement; expected those of all "
        "reranks; search the parts with this --rerank again"
    )
    assert run("merge", "--source", world.folder, "--output", reranked, "--rerank", "none") == 0
    assert run(*common(world, model), "--output", reranked, "--rerank", "agreement") == 0
    assert submission_of(reranked) == expected


def test_a_cosine_head_is_reranked_by_agreement_unless_told_otherwise(
    world, cosine_model, tmp_path, capsys
):
    arguments = [*common(world, cosine_model), "--output", tmp_path, "--parts", 2]
    assert run(*arguments) == 0
    told = capsys.readouterr().err.splitlines()
    assert (load_descriptions(tmp_path / "queries.npz")[0].confidences < 0).any()
    assert "the head alone names landmarks, since there is no gallery of nearest.py" in told
    assert read_retrieval_submission(tmp_path / "retrieval_submission.csv") == oracle_by_head(
        world, tmp_path
    )
    assert run(*arguments, "--no-normalise") == 0
    assert load_arrays(tmp_path / "part-0-of-2.npz")[0].keys() == OF_2019


def test_the_gallery_names_as_soon_as_it_is_there(world, model, reranked, fetched, capsys):
    import nearest

    words = [str(word) for word in [*common(world, model), "--output", reranked, "--parts", 2]]
    for part in range(2):
        nearest.main([*words, "--part", str(part)])
    fetched.clear()
    capsys.readouterr()
    scores = []
    for names in ([], ["--names", "head"]):
        assert run(*words, "--rerank", "agreement", *names) == 0
        scores.append(submission_of(reranked))
        assert ("(both)" in capsys.readouterr().err) != bool(names)
    assert len(set(scores)) == 2
    assert fetched == []


def test_an_expansion_wants_the_descriptors_of_the_whole_index(
    world, model, searched, resumed, fetched, capsys
):
    arguments = [*common(world, model), "--output", resumed, "--part", 2, "--expand-queries", 5]
    assert run(*arguments) == 0
    assert fetched == []
    (resumed / "descriptors" / "index_003.npz").unlink()
    (resumed / "part-2-of-6.npz").unlink()
    assert run(*arguments) == 1
    assert error_of(capsys.readouterr()) == (
        f"error: descriptors/index_003.npz: not in {resumed}, nor in another kernel's output; "
        "expected the descriptors of the whole index, which an expansion sums up; search all parts "
        "without it first"
    )


def test_expanded_queries_are_kept(world, model, resumed, monkeypatch):
    arguments = [*common(world, model), "--output", resumed, "--expand-queries", 5]
    assert run(*arguments) == 0
    expected = submission_of(resumed)
    (resumed / "part-1-of-6.npz").unlink()
    monkeypatch.setattr("search.parts.expand", lambda *_: pytest.fail("expanded again"))
    assert run(*arguments) == 0
    assert submission_of(resumed) == expected


# --------------------------------------------------------------------------------------- looking


def test_neighbors_png_is_a_picture_with_frames_of_right_and_wrong(world, resumed, monkeypatch):
    monkeypatch.setattr(neighbors, "draw_neighbors", draw_neighbors)
    assert run("merge", "--source", world.folder, "--output", resumed) == 0
    with Image.open(resumed / "neighbors.png") as image:
        assert image.format == "PNG"
        assert image.width > 1000
        assert image.height > 800
        colours = {colour: count for count, colour in image.convert("RGB").getcolors(1 << 24)}
    assert colours[(0x1A, 0x96, 0x41)] > 1000
    assert colours[(0xD7, 0x19, 0x1C)] > 1000
    assert len(colours) > 1000  # photographs, not frames alone


def test_the_picture_reads_what_it_shows_by_byte_range(world, resumed, monkeypatch, fetched):
    monkeypatch.setattr(neighbors, "draw_neighbors", draw_neighbors)
    with serve(world.folder) as address:
        assert run("merge", "--source", address, "--output", resumed) == 0
    assert fetched == []


def test_the_rows_are_the_best_the_median_and_the_worst(world, searched):
    parts, _ = load_parts(sorted(searched.glob("part-*")))
    ranking = merge_parts(parts, 1.5, 100)
    solution = read_retrieval_solution(world.folder / RETRIEVAL_SOLUTION)
    retrieved = ranking.as_rows(ranking.query_ids)
    rows = neighbors.choose_rows(
        parts, ranking, neighbors.score_queries(ranking.query_ids, retrieved, solution),
        {17: "Category:Green_Tower"},
        {query_id: RecognitionTruth({17}, "Public") for query_id in solution},
    )  # fmt: skip
    titles = [row.title for row in rows]
    kinds = [title.partition(":")[0] for title in titles]
    assert kinds == ["best", "best", "median", "median", "worst", "worst"]
    precisions = [float(title.rpartition(" ")[2]) for title in titles]
    assert precisions == sorted(precisions, reverse=True)
    for row in rows:
        assert row.query.shard.split == "test"
        assert row.query.is_right is None
        assert row.query.caption == "query\nGreen Tower"  # the truth, not what it is named
        assert len(row.nearest) == 10
        assert {picture.shard.split for picture in row.nearest} == {"index"}
        distances = [float(picture.caption.partition(", named")[0]) for picture in row.nearest]
        assert distances == sorted(distances)
        assert {picture.caption.splitlines()[1] for picture in row.nearest} <= {
            "Green Tower", "landmark 402", "landmark 90001", "landmark 203093"
        }  # fmt: skip
    right = [picture.is_right for row in rows[:2] for picture in row.nearest]
    assert right.count(True) > right.count(False)


def test_a_picture_that_cannot_be_drawn_does_not_cost_the_merge(
    world, searched, resumed, monkeypatch, capsys
):
    def fail(*_):
        raise ExpectedError("HTTP 503; expected a picture; try later")

    monkeypatch.setattr(neighbors, "draw_neighbors", fail)
    for name in ("retrieval_submission.csv", "neighbors.png"):
        (resumed / name).unlink()
    assert run("merge", "--source", world.folder, "--output", resumed) == 0
    assert f"{resumed / 'neighbors.png'}: not drawn: HTTP 503; " in capsys.readouterr().err
    assert submission_of(resumed) == submission_of(searched)
    assert not (resumed / "neighbors.png").exists()


def test_a_descriptor_that_is_not_finite_leaves_its_image_empty(
    world, model, tmp_path, monkeypatch, capsys
):
    from network.devices import OneDevice

    real = OneDevice.predict_on_batch

    def predict_on_batch(self, network, images):
        classes, confidences, descriptors = real(self, network, images)
        descriptors = descriptors.copy()
        descriptors[1] = np.inf  # the second of each batch
        confidences = confidences.copy()
        confidences[2] = np.nan
        return [classes, confidences, descriptors]

    monkeypatch.setattr(OneDevice, "predict_on_batch", predict_on_batch)
    assert run(*common(world, model), "--output", tmp_path, "--parts", 1) == 0
    told = capsys.readouterr().err
    rows = read_retrieval_submission(tmp_path / "retrieval_submission.csv")
    for image_id in world.image_ids[Shard("test", 0)][1:3]:
        assert f"image {image_id} left empty: not finite in float32" in told
        assert rows[image_id] == []
    assert {len(row) for row in rows.values()} == {0, 96}  # the index lacks two of each batch, too


def test_without_ground_truth_some_queries_are_shown_without_a_verdict(searched):
    parts, _ = load_parts(sorted(searched.glob("part-*")))
    rows = neighbors.choose_rows(parts, merge_parts(parts, 1.5, 100), [], {}, {})
    assert len(rows) == 6
    assert all(row.query.caption.startswith("query, named\nlandmark ") for row in rows)
    assert {row.title for row in rows} == {""}
    assert {picture.is_right for row in rows for picture in row.nearest} == {None}


# ---------------------------------------------------------------------------------------- Kaggle

MOUNTS = ("notebooks/someone/{}", "datasets/someone/{}", "{}")


@dataclass
class Kernel:
    """A pretended Kaggle kernel."""

    root: Path

    @property
    def working(self):
        return self.root / "working"

    def mount(self, layout, name, *files):
        """Mounts the output of another kernel."""
        folder = self.root / "input" / layout.format(name)
        folder.mkdir(parents=True)
        for file in files:
            shutil.copy(file, folder)


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    monkeypatch.setattr(kernel_side, "FOLDER", tmp_path / "kaggle")
    return Kernel(tmp_path / "kaggle")


@pytest.mark.parametrize("layout", MOUNTS)
def test_a_kernel_finds_model_and_queries_of_another_wherever_they_are_mounted(
    kernel, world, model, searched, layout, fetched
):
    kernel.mount(layout, "recognition", model, searched / "queries.npz")
    assert run("--source", world.folder, "--part", 5, "--batch-size", 8) == 0
    assert fetched == [Shard("index", 6)]
    assert files_of(kernel.working) == {"part-5-of-6.npz", "descriptors/index_006.npz"}
    assert not list((kernel.root / "tmp").iterdir())


@pytest.mark.parametrize("layout", MOUNTS)
def test_a_kernel_finds_the_parts_of_others_wherever_they_are_mounted(
    kernel, world, searched, layout
):
    for number, path in enumerate(sorted(searched.glob("part-*"))):
        kernel.mount(layout, f"part-{number}", path)
    assert run("merge", "--source", world.folder) == 0
    assert submission_of(kernel.working) == submission_of(searched)


def test_a_kernel_finds_parts_that_are_mounted_in_different_ways(kernel, world, searched):
    for number, path in enumerate(sorted(searched.glob("part-*"))):
        kernel.mount(MOUNTS[number % len(MOUNTS)], f"part-{number}", path)
    assert run("merge", "--source", world.folder) == 0
    assert submission_of(kernel.working) == submission_of(searched)


def test_a_kernel_merges_its_own_part_with_those_of_others(kernel, world, searched):
    paths = sorted(searched.glob("part-*"))
    for number, path in enumerate(paths[:5]):
        kernel.mount(MOUNTS[0], f"part-{number}", path)
    kernel.working.mkdir()
    shutil.copy(paths[5], kernel.working)
    assert run("merge", "--source", world.folder) == 0
    assert submission_of(kernel.working) == submission_of(searched)


def test_a_kernel_continues_the_descriptors_of_its_earlier_session(
    kernel, world, model, searched, fetched
):
    kernel.mount(MOUNTS[0], "recognition", model, searched / "queries.npz")
    earlier = kernel.root / "input" / "notebooks" / "someone" / "part-0" / "descriptors"
    earlier.mkdir(parents=True)
    shutil.copy(searched / "descriptors" / "index_000.npz", earlier)
    assert run("--source", world.folder, "--part", 0, "--batch-size", 8) == 0
    assert fetched == [Shard("index", 1)]
    # A third session has the output of this one alone.
    assert len(list((kernel.working / "descriptors").iterdir())) == 2


def test_a_damaged_file_of_another_kernel_is_described_again(
    kernel, world, model, searched, fetched
):
    kernel.mount(MOUNTS[0], "recognition", model)
    folder = kernel.root / "input" / "notebooks" / "someone" / "part-5"
    (folder / "descriptors").mkdir(parents=True)
    for name in ("queries.npz", "descriptors/index_006.npz"):
        (folder / name).write_bytes((searched / name).read_bytes()[:-10])
    assert run("--source", world.folder, "--part", 5, "--batch-size", 8) == 0
    assert fetched == [Shard("test", 0), Shard("test", 1), Shard("index", 6)]


def test_a_kernel_without_a_model_lists_what_is_mounted(kernel, world, searched, capsys):
    kernel.mount(MOUNTS[2], "some-data", searched / "queries.npz")
    assert run("--source", world.folder, "--part", 5) == 1
    error = error_of(capsys.readouterr())
    assert error.startswith(f"error: model.keras: not in {kernel.working} or ")
