"""The benchmarks run, on inputs too small to measure anything; what they print is not judged."""

import importlib.util
import sys
from pathlib import Path

import pytest

from data.sources import RECOGNITION_SOLUTION, Source
from data.submissions import read_recognition_solution

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def importable(monkeypatch, tmp_path):
    """The benchmarks' folder can be imported from, and keeps its cache with the test."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import common

    monkeypatch.setattr(common, "CACHE", tmp_path)


def run(monkeypatch, capsys, module, *arguments):
    """Runs a benchmark's command line; gives what it printed."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()
    return capsys.readouterr().out


def test_downloads_runs(monkeypatch, capsys):
    import downloads

    out = run(monkeypatch, capsys, downloads, "--megabytes", 2, "--rounds", 1)
    assert all(f"| {name} |" in out for name in downloads.WAYS)


def test_overlap_runs(monkeypatch, capsys):
    import overlap

    out = run(monkeypatch, capsys, overlap, "--unit", 0.02, "--mini-epochs", 2, "--images", 4)
    assert out.count("| simulated |") == len(overlap.PROPORTIONS)
    assert out.count("| real, ") == 2


def test_small_pictures_runs(monkeypatch, capsys):
    import small_pictures

    arguments = ("--images", 2, "--shard-images", 4, "--rounds", 1)
    out = run(monkeypatch, capsys, small_pictures, *arguments)
    assert "| 192 | " in out
    assert "a shard of 4 pictures: " in out


def test_search_speed_runs(monkeypatch, capsys):
    import search_speed

    out = run(
        monkeypatch, capsys, search_speed, "--rounds", 1, "--index", 150, 300, "--queries", 40
    )
    assert "| 300 | ours, float16 stored |" in out
    assert "float16: " in out


def test_demo_size_writes_settings_as_the_command_line_takes_them():
    import demo_size

    import recognition
    from demo import start

    settings = start.DEFAULTS | {"augment": False}
    flags = [str(word) for word in demo_size.flags_of(settings)]
    parsed = vars(recognition.parse_arguments(flags))
    assert {name: parsed[name] for name in settings} == settings


def test_identify_asks_about_private_rows_alone_and_counts_both_kinds(data_set, tmp_path):
    # By its path: a script of the project has the same name.
    spec = importlib.util.spec_from_file_location("of_photos", ROOT / "benchmarks" / "identify.py")
    of_photos = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(of_photos)
    solution = read_recognition_solution(data_set.folder / RECOGNITION_SOLUTION)
    source = Source(str(data_set.folder), tmp_path)
    truths = of_photos.extract(source, solution, tmp_path / "photos", 100)
    private = {f"{key}.jpg": row[0] for key, row in solution.items() if row.usage == "Private"}
    assert truths == private
    assert {path.name for path in (tmp_path / "photos").iterdir()} == set(private)
    answers = {name: {"landmark_id": 17, "is_landmark": bool(truth)}
               for name, truth in truths.items()}  # fmt: skip
    with_one = [truth for truth in truths.values() if truth]
    share = sum(17 in truth for truth in with_one) / len(with_one)
    assert of_photos.count(answers, truths) == [
        ("with a landmark", len(with_one), share, 0.0),
        ("without", len(truths) - len(with_one), 0.0, 1.0),
    ]


def test_every_variant_of_the_ablation_is_taken_by_recognition():
    import ablation

    import recognition

    for name, changes in ablation.VARIANTS.items():
        flags = [str(word) for word in ablation.flags_of(changes)]
        parsed = vars(recognition.parse_arguments(flags))
        assert {parsed[flag.replace("-", "_")] for flag in changes} == set(changes.values()), name


def test_search_cost_runs(monkeypatch, capsys):
    import search_cost

    few = ("--images", 300, "--queries", 50, "--index-queries", 20, "--width", 16, "--rounds", 1)
    out = run(monkeypatch, capsys, search_cost, *few)
    for way in ("search", "search with penalties", "none and divide", "agreement", "queries expanded"):
        assert f"| {way} |" in out


def test_votes_reads_scores_of_a_scene_where_the_right_answer_is_known(tmp_path):
    import numpy as np
    import votes

    from descriptors.descriptions import Descriptions, save_descriptions
    from search.gallery import Gallery

    def describe(ids, directions):
        num = len(ids)
        return Descriptions(
            np.array(ids, np.uint64), np.full(num, 9), np.full(num, 0.5, np.float32),
            np.eye(8, dtype=np.float32)[directions], np.zeros(num, np.int16),
            np.zeros((num, 2), np.int64),
        )  # fmt: skip

    save_descriptions(tmp_path / "train.npz", describe([1, 2, 3], [0, 1, 2]), {})
    known = Gallery({tmp_path / "train.npz": None}, np.array([1, 2, 3], np.uint64), np.arange(3))
    truths = {f"{i:016x}": {i - 11} if i < 14 else set() for i in range(11, 16)}
    queries = describe(range(11, 16), [0, 1, 2, 6, 7])
    scores = votes.score_all(votes.Scene(known, queries, describe([90], [7]), truths))
    assert scores["sum of 3, no penalty"] == 1
    assert scores["sum of 3, B and C, N = 20%"] == 1
    assert scores["the head alone"] == 0


def test_superglobal_ranks_what_is_near_the_query_and_its_neighbors(monkeypatch, tmp_path):
    """Index images on an arc, in steps of 0.1 radians; the query is the first of them."""
    import numpy as np
    import rerank_quality

    from descriptors.descriptions import Descriptions

    angles = np.arange(12) / 10
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    index = Descriptions(np.arange(12, dtype=np.uint64), *[np.zeros(12)] * 2, vectors, *[None] * 2)
    query = Descriptions(np.array([99], np.uint64), *[np.zeros(1)] * 2, vectors[:1], *[None] * 2)
    ranking = rerank_quality.rank_by_superglobal(query, index)
    assert ranking.row_ends.tolist() == [12]
    assert set(ranking.image_ids[-3:].tolist()) == {9, 10, 11}


def test_the_estimate_counts_sessions_and_hours_of_the_strong_chain(monkeypatch, capsys):
    """Training alone, by hand: 4 epochs x 500 shards of 1,000 MB at 33 MB/s, and the test set."""
    import epoch_estimate

    rates = {"step": 400, "decode": 354, "search": 305, "shrink": 236}
    words = [f"--{name}-rate={rate}" for name, rate in rates.items()]
    words += ["--overlap=1", "--small-times=1.7", "--step-source=none"]
    out = run(monkeypatch, capsys, epoch_estimate, *words)
    originals, small = out.split("strong chain, cleaned labels, read from ")[1:]
    hours = (4 * 500 * 1000 + 20 * 500) / 33 / 3600
    assert f"| recognition | 2 | T4 x2 | {hours:.1f} | {hours:.1f} |" in originals
    assert "| recognition | 1 | T4 x2 |" in small
    for table in (originals, small):
        assert "| gallery-0 to -1 | 2 | T4 x2 |" in table and "| vote | 1 | CPU |" in table
