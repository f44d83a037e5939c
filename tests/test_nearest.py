"""Tests of `nearest.py` as a person uses it: parts, votes, files, wrong uses, other kernels."""

import inspect
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from checks import one_line
from synthetic import RARE_LANDMARK
from tiny_network import in_place_of_backbones

import nearest
import retrieval
from data.arrays import load_arrays, save_arrays
from data.sources import RECOGNITION_SOLUTION, TRAIN_CLEAN_CSV, TRAIN_CSV, Shard, Source
from data.submissions import read_recognition_submission
from descriptors.descriptions import load_descriptions, load_queries, unit_length
from metrics import format_scores, score_file
from report import write
from runs import kernel as kernel_side
from runs.command_line import run_command_line
from runs.session import Session
from search import exact, gallery_parts, on_gpu
from search.gallery import find_neighbors, merge_neighbors
from utils import ExpectedError

pytestmark = pytest.mark.usefixtures("tiny_models")

PAIR = ("--parts", 2)


def run(*arguments):
    """Runs the command line in this process; gives its exit code."""
    try:
        run_command_line(lambda: nearest.main([str(argument) for argument in arguments]))
    except SystemExit as end:
        return end.code
    return 0


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def error_of(captured):
    """Gives the error of a run, which must be its last line and the only one that says so."""
    lines = captured.err.splitlines()
    assert lines[-1].startswith("error: ")
    assert captured.err.count("error: ") == 1
    assert "Traceback" not in captured.err
    return lines[-1]


def submission_of(output):
    return (output / "recognition_submission.csv").read_bytes()


@pytest.fixture(scope="module")
def common(data_set):
    return ["--source", data_set.folder, "--batch-size", 8]


@pytest.fixture(scope="module")
def recognised(recognition_run, tmp_path_factory):
    """A folder with the model, the queries and the submission of recognition.py."""
    folder = tmp_path_factory.mktemp("recognised")
    for name in ("model.keras", "queries.npz", "recognition_submission.csv"):
        shutil.copy(recognition_run.output / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def named(common, recognised, tmp_path_factory):
    """The output folder of a run in 2 parts."""
    output = shutil.copytree(recognised, tmp_path_factory.mktemp("nearest") / "output")
    with pytest.MonkeyPatch.context() as patch, in_place_of_backbones():
        patch.setattr(write, "render", lambda all_facts: "")
        assert run(*common, "--output", output, *PAIR) == 0
    return output


@pytest.fixture(autouse=True)
def no_page(monkeypatch, tiny_backbones):
    """Draws no report, since tests/test_report.py does."""
    monkeypatch.setattr(write, "render", lambda all_facts: "")


def test_the_report_has_what_the_votes_say(named):
    facts = json.loads((named / "report.json").read_text())["nearest"]
    assert [score["name"] for score in facts["scores"]] == ["GAP of the head", "GAP of the votes"]
    assert facts["curve"]["gap"][-1] == pytest.approx(facts["scores"][1]["usages"]["all"], abs=1e-4)


@pytest.fixture
def resumed(named, tmp_path):
    """A copy of the output folder that a test may change."""
    return shutil.copytree(named, tmp_path / "resumed")


@pytest.fixture
def fetched(monkeypatch):
    """List of the shards that are read."""
    shards, real = [], Source.fetch_shard

    def fetch_shard(source, shard, *more):
        shards.append(shard)
        return real(source, shard, *more)

    monkeypatch.setattr(Source, "fetch_shard", fetch_shard)
    return shards


# ------------------------------------------------------------------------------- the whole job


def test_a_run_writes_every_file_that_is_promised_and_no_other(named):
    assert files_of(named) == {
        "model.keras",
        "queries.npz",
        "recognition_submission.csv",
        "names.npz",
        "report.json",
        "report.html",
        *(f"descriptors/train_00{number}.npz" for number in range(4)),
        *(f"gallery-part-{number}-of-2.npz" for number in (0, 1)),
    }


def test_stdout_has_the_paths_and_both_scores_and_whose_submission_it_is_is_told(
    common, data_set, named, recognised, tmp_path, capsys
):
    output = shutil.copytree(named, tmp_path / "again")
    shutil.copy(recognised / "recognition_submission.csv", output)
    assert run(*common, "--output", output, *PAIR) == 0
    solution = data_set.folder / RECOGNITION_SOLUTION
    of_head = score_file("recognition", recognised / "recognition_submission.csv", solution)
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        *(str(output / f"gallery-part-{number}-of-2.npz") for number in (0, 1)),
        str(output / "names.npz"),
        format_scores("GAP of the head", of_head),
        format_scores(
            "GAP of the votes",
            score_file("recognition", output / "recognition_submission.csv", solution),
        ),
        str(output / "recognition_submission.csv"),
        str(output / "report.html"),
    ]
    assert "recognition_submission.csv: names of the votes; the head's stay in" in captured.err
    assert submission_of(output) == submission_of(named) != submission_of(recognised)


def test_votes_that_score_less_do_not_replace_the_names_of_the_head(
    common, named, recognised, tmp_path, capsys, monkeypatch
):
    output = shutil.copytree(named, tmp_path / "again")
    vote = nearest.vote

    def vote_wrongly(neighbors, *others):
        landmark_ids, confidences = vote(neighbors, *others)
        return np.roll(landmark_ids, 1), confidences

    monkeypatch.setattr(nearest, "vote", vote_wrongly)
    assert run("vote", *common, "--output", output, "--parts", "2") == 0
    assert submission_of(output) == submission_of(recognised)
    assert "recognition_submission.csv: the head's names, whose public score is higher" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("num_parts", [1, 3])
def test_the_number_of_parts_changes_nothing(common, named, recognised, tmp_path, num_parts):
    output = shutil.copytree(recognised, tmp_path / "output")
    shutil.copytree(named / "descriptors", output / "descriptors")
    assert run(*common, "--output", output, "--parts", num_parts) == 0
    assert submission_of(output) == submission_of(named)
    found, expected = (load_arrays(folder / "names.npz")[0] for folder in (output, named))
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


def test_rare_landmarks_are_in_the_gallery_under_their_true_name(data_set, named):
    parts, _ = gallery_parts.load_parts(sorted(named.glob("gallery-part-*")))
    of_image = {}
    for part, _ in parts:
        ids, landmarks = part.gallery_ids.tolist(), part.gallery_landmarks.tolist()
        of_image |= dict(zip(ids, landmarks, strict=True))
    expected = {int(i, 16): data_set.landmark_of[i] for i in data_set.of_split("train")}
    assert of_image == expected
    assert RARE_LANDMARK in of_image.values()


def test_names_and_votes_are_those_of_brute_force(data_set, named):
    """One formula after the other in float64, on all images at once."""
    queries = load_queries(named / "queries.npz")[0]
    q = unit_length(queries.descriptors).astype(np.float64)
    pieces = [load_descriptions(named / f"descriptors/train_00{n}.npz")[0] for n in range(4)]
    ids = np.concatenate([piece.image_ids for piece in pieces])
    rows = np.concatenate([piece.descriptors for piece in pieces])[np.argsort(ids)]
    ids = np.sort(ids)
    x = unit_length(rows.astype(np.float32)).astype(np.float64)
    landmarks = np.array([data_set.landmark_of[f"{i:016x}"] for i in ids])
    cosines = 1 - ((q[:, None] - x[None]) ** 2).sum(axis=2) / 2
    others = q[np.argsort(cosines.max(axis=1), kind="stable")[: round(0.2 * len(q))]]
    names = load_arrays(named / "names.npz")[0]
    assert np.array_equal(names["image_ids"], queries.image_ids)
    submission = read_recognition_submission(named / "recognition_submission.csv")
    for row, image_id in enumerate(queries.image_ids):
        order = np.lexsort((ids, -cosines[row]))[:10]
        assert np.allclose(names["cosines"][row], cosines[row, order], atol=1e-6)
        to_others = [cosine for cosine in q[row] @ others.T if cosine < 1 - 1e-6]
        likeness = np.mean(sorted(to_others)[-10:])
        votes = {}
        for place in order[:3]:
            landmark = int(landmarks[place])
            votes[landmark] = votes.get(landmark, 0) + min(max(cosines[row, place], 0), 1) ** 8
        found_landmark, confidence = submission[f"{image_id:016x}"]
        assert votes[found_landmark] == pytest.approx(max(votes.values()), abs=1e-5)
        of_head = int(queries.landmark_ids[row]) == found_landmark
        sure = max(votes.values()) ** 0.125 + 0.1 * of_head * float(queries.confidences[row])
        assert confidence == pytest.approx(sure - likeness, abs=1e-5)


def test_a_gpu_proposes_in_every_search_of_the_gallery_with_the_same_bytes(
    common, named, resumed, tmp_path, monkeypatch
):
    """Parts, names of index images and expansions, with the processor as the GPU."""
    for name in ("gallery-part-*", "names.npz"):
        for path in resumed.glob(name):
            path.unlink()
    alone = shutil.copytree(named, tmp_path / "alone")
    asked, shared = set(), [*common, *PAIR, "--names", "both", "--expand-queries", 2]
    monkeypatch.setattr(exact, "MIN_SCORES", 0)

    def propose(queries, index, num_proposed):
        frames = {frame.function for frame in inspect.stack(context=0)}
        asked.update(frames & {"search_gallery_part", "name", "expand"})
        return on_gpu.propose(queries, index, num_proposed)

    for output, proposer in ((alone, None), (resumed, propose)):
        monkeypatch.setattr(on_gpu, "find_proposer", lambda proposer=proposer: proposer)
        assert run(*common, "--output", output, *PAIR) == 0
        options = [*shared, "--augment-index", 2, "--output", output]
        run_command_line(lambda options=options: retrieval.main(list(map(str, options))))
    assert asked == {"search_gallery_part", "name", "expand"}
    for name in (*(path.name for path in alone.glob("*part-*")), "retrieval_submission.csv"):
        assert (resumed / name).read_bytes() == (alone / name).read_bytes()


def test_any_descriptors_are_named_by_the_files_of_all_parts(common, named, resumed):
    parts, _ = gallery_parts.load_parts(sorted(named.glob("gallery-part-*")))
    opened = gallery_parts.open_gallery(Session(resumed, source=None, stop=None), parts)
    queries = load_queries(named / "queries.npz")[0]
    found = find_neighbors(opened, unit_length(queries.descriptors))
    merged = merge_neighbors([part.neighbors for part, _ in parts])
    assert all((getattr(found, k) == getattr(merged, k)).all() for k in vars(merged))


# ------------------------------------------------------------------------------------- continuing


def test_running_again_reads_no_shard_and_changes_nothing(common, resumed, fetched):
    before = {name: (resumed / name).stat().st_mtime_ns for name in files_of(resumed)}
    assert run(*common, "--output", resumed, *PAIR) == 0
    assert fetched == []
    changed = {n for n in before if (resumed / n).stat().st_mtime_ns != before[n]}
    assert changed == {*("names.npz", "recognition_submission.csv", "report.json", "report.html")}


def test_what_was_killed_between_shards_continues_there(common, named, resumed, fetched):
    (resumed / "gallery-part-1-of-2.npz").unlink()
    (resumed / "descriptors/train_003.npz").unlink()
    (resumed / "gallery-part-0-of-2.npz").write_bytes(b"half a file")
    assert run(*common, "--output", resumed, *PAIR) == 0
    assert fetched == [Shard("train", 3)]
    assert submission_of(resumed) == submission_of(named)


def test_a_part_whose_descriptors_were_lost_is_described_again(common, named, resumed, fetched):
    (resumed / "descriptors/train_000.npz").unlink()
    assert run(*common, "--output", resumed, *PAIR) == 0
    assert fetched == [Shard("train", 0)]
    for name in ("recognition_submission.csv", "gallery-part-0-of-2.npz"):
        assert (resumed / name).read_bytes() == (named / name).read_bytes()


def test_other_labels_describe_again(common, data_set, resumed, fetched, tmp_path):
    source = shutil.copytree(data_set.folder, tmp_path / "source")
    clean = source / "metadata/train_clean.csv"
    rows = [
        row for row in clean.read_text().splitlines() if not row.startswith(f"{RARE_LANDMARK},")
    ]
    clean.write_text("\n".join(rows) + "\n")
    arguments = ["--source", source, "--batch-size", 8, "--output", resumed, "--labels", "clean"]
    assert run(*arguments, *PAIR) == 0
    assert len(fetched) == 4
    parts, _ = gallery_parts.load_parts(sorted(resumed.glob("gallery-part-*")))
    landmarks = np.concatenate([part.gallery_landmarks for part, _ in parts])
    assert RARE_LANDMARK not in landmarks and len(np.unique(landmarks)) == 4


def test_parts_of_other_kernels_vote(common, data_set, named, tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    monkeypatch.setattr(kernel_side, "FOLDER", tmp_path / "kaggle")
    mounts = tmp_path / "kaggle/input/notebooks/someone"
    for part, shards in enumerate(((0, 1), (2, 3))):
        folder = mounts / f"gallery-{part}"
        (folder / "descriptors").mkdir(parents=True)
        shutil.copy(named / f"gallery-part-{part}-of-2.npz", folder)
        for number in shards:
            shutil.copy(named / f"descriptors/train_00{number}.npz", folder / "descriptors")
    (mounts / "recognition").mkdir()
    shutil.copy(named / "queries.npz", mounts / "recognition")
    output = tmp_path / "working"
    assert run("vote", "--source", data_set.folder, "--output", output, *PAIR) == 0
    assert submission_of(output) == submission_of(named)


@pytest.fixture
def changed_source(data_set, tmp_path):
    """A copy of the data set whose train table alone a test may change."""
    source = shutil.copytree(data_set.folder, tmp_path / "source")
    (source / TRAIN_CLEAN_CSV).unlink()
    return source


def test_a_vote_notices_that_the_train_images_have_other_labels_now(
    common, changed_source, resumed, capsys
):
    before = submission_of(resumed)
    words = ("vote", "--source", changed_source, "--output", resumed, *PAIR)
    assert run(*words) == 0
    assert submission_of(resumed) == before
    path = changed_source / TRAIN_CSV
    path.write_text(path.read_text().replace(",17\n", ",402\n"))
    assert run(*words) == 1
    assert "searched with other labels than the train tables of " in error_of(capsys.readouterr())
    path.unlink()  # without a table there is nothing to compare with
    assert run(*words) == 0


def test_a_gallery_without_an_image_leaves_the_heads_submission_alone(
    changed_source, recognised, tmp_path, capsys
):
    output = shutil.copytree(recognised, tmp_path / "output")
    (changed_source / TRAIN_CSV).write_text(f"id,url,landmark_id\n{'0' * 16},,17\n")
    words = ("--source", changed_source, "--batch-size", 8, "--output", output, *PAIR)
    assert run(*words) == 1
    assert "no image is in any of the 2 parts of the gallery" in error_of(capsys.readouterr())
    assert submission_of(output) == submission_of(recognised)


def test_a_part_alone_does_not_vote(common, recognised, named, tmp_path, capsys):
    output = shutil.copytree(recognised, tmp_path / "output")
    assert run(*common, "--output", output, *PAIR, "--part", 1) == 0
    assert capsys.readouterr().out.split() == [str(output / "gallery-part-1-of-2.npz")]
    assert submission_of(output) == submission_of(recognised)
    found, expected = (load_arrays(f / "gallery-part-1-of-2.npz") for f in (output, named))
    assert found[1] == expected[1]
    assert run(*common, "vote", "--output", output, *PAIR) == 1
    assert "part 0 of 2 is missing" in error_of(capsys.readouterr())


def test_the_room_for_the_descriptors_of_a_part_is_asked_for(common, resumed, monkeypatch):
    size = 83 * 16 * 2  # train images x values x float16
    there = sum(path.stat().st_size for path in resumed.glob("descriptors/train_*.npz"))
    asked = []
    monkeypatch.setattr(nearest, "require_free_space", lambda *args: asked.append(args))
    assert run(*common, "--output", resumed, *PAIR) == 0
    assert run(*common, "--output", resumed, *PAIR, "--part", 0) == 0
    assert [size_bytes for _, size_bytes, _ in asked] == [size - there, size / 2 - there]


# -------------------------------------------------------------------------------------- wrong use


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--part", 6), "expected 0 to 5 of --parts"),
        (("vote", "--part", 0), "--part goes with a search"),
        (("all", "gallery-part-0-of-2.npz"), "part files go with `nearest.py vote`"),
        (("--scheduler", ""), "argument --scheduler: ''; expected the address"),
        (("--scheduler", "local:0"), "or local:N for N workers here"),
        (("--scheduler", "local:two"), "or local:N for N workers here"),
    ],
)
def test_wrong_use_ends_in_one_line(arguments, told, capsys):
    assert run(*arguments) == 2
    error = error_of(capsys.readouterr())
    assert told in error


def test_queries_of_another_run_are_refused_at_the_vote(common, resumed, capsys):
    arrays, page = load_arrays(resumed / "queries.npz")
    arrays["descriptors"][0] *= -1
    save_arrays(resumed / "queries.npz", page, **arrays)
    assert run("vote", *common, "--output", resumed, *PAIR) == 1
    assert "not the queries that the parts were searched with" in error_of(capsys.readouterr())


def test_two_runs_on_one_output_are_refused(common, resumed, capsys):
    from runs.folders import hold_folder

    with hold_folder(resumed, "nearest"):
        assert run("vote", *common, "--output", resumed, *PAIR) == 1
    assert "in use by another run" in error_of(capsys.readouterr())


def edits():
    """Yields (what is done to a part file, function of its arrays and page)."""

    def put(name, change):
        def edit(arrays, page):
            arrays[name] = change(arrays[name])

        return edit

    def write(**facts):
        return lambda arrays, page: page.update(facts)

    yield "positions out of range", put("positions", lambda a: a + np.int32(10_000))
    yield "positions below -1", put("positions", lambda a: a - np.int32(10_000))
    yield "float positions", put("positions", lambda a: a.astype(np.float32))
    yield "distances not finite", put("distances", lambda a: a * np.float32(np.nan))
    yield "negative distances", put("distances", lambda a: -a - 1)
    yield "fewer columns", put("distances", lambda a: a[:, 1:])
    yield "ids in disorder", put("gallery_ids", lambda a: a[::-1].copy())
    yield "negative landmarks", put("gallery_landmarks", lambda a: a - 10**7)
    yield "queries twice", put("query_ids", lambda a: np.full_like(a, 7))
    yield "no such part", write(part=2)
    yield "part in words", write(part="0")
    yield "files of another folder", write(files={"../../etc/passwd": "x"})
    yield "files no table", write(files=["descriptors/train_000.npz"])
    yield "left out no list", write(left_out=None)
    yield "described no table", write(described="model")
    yield "another search", write(neighbors=3)
    yield "an array too many", lambda arrays, page: arrays.update(more=np.zeros(3))


EDITS = dict(edits())


@pytest.mark.parametrize("what", EDITS)
def test_an_edited_part_is_refused_in_one_line(named, tmp_path, what):
    paths = [Path(shutil.copy(path, tmp_path)) for path in sorted(named.glob("gallery-part-*"))]
    arrays, page = load_arrays(paths[0])
    EDITS[what](arrays, page)
    save_arrays(paths[0], json.loads(json.dumps(page)), **arrays)
    with pytest.raises(ExpectedError) as refused:
        gallery_parts.load_parts(paths[::-1])
    assert re.search(r"gallery-part-\d-of-2\.npz", one_line(refused.value))


def test_parts_given_twice_or_of_other_queries_are_refused(named, tmp_path):
    paths = [Path(shutil.copy(path, tmp_path)) for path in sorted(named.glob("gallery-part-*"))]
    with pytest.raises(ExpectedError, match="given twice"):
        gallery_parts.load_parts([paths[0], *paths])
    arrays, page = load_arrays(paths[1])
    save_arrays(paths[1], page, **arrays | {"query_ids": arrays["query_ids"] + np.uint64(1)})
    with pytest.raises(ExpectedError, match="query_ids are not those"):
        gallery_parts.load_parts(paths)


def test_descriptors_of_another_model_are_not_the_gallery(named, resumed, capsys):
    path = resumed / "descriptors/train_001.npz"
    arrays, page = load_arrays(path)
    save_arrays(path, page | {"model": "another"}, **arrays)
    parts, _ = gallery_parts.load_parts(sorted(resumed.glob("gallery-part-*")))
    with pytest.raises(ExpectedError, match="descriptors/train_001.npz: not in") as refused:
        gallery_parts.open_gallery(Session(resumed, source=None, stop=None), parts)
    one_line(refused.value)
