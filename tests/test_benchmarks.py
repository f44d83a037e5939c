"""The benchmarks run, on inputs too small to measure anything; what they print is not judged."""

import sys
from pathlib import Path

import pytest

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


def test_connections_runs(monkeypatch, capsys):
    import connections

    arguments = ("--rate", 20, "--shards", 2, "--rounds", 1, "--images", 4, "--use", 0.01)
    out = run(monkeypatch, capsys, connections, *arguments)
    assert out.count(f"| {connections.ADAPTIVE} |") == 2


def test_overlap_runs(monkeypatch, capsys):
    import overlap

    words = ("--unit", 0.02, "--mini-epochs", 2, "--images", 4, "--rounds", 1)
    out = run(monkeypatch, capsys, overlap, *words)
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
    for way in ("search", "none and divide", "agreement", "queries expanded"):
        assert f"| {way} |" in out


def test_what_a_gpu_item_cannot_do_is_one_line_and_costs_no_other(monkeypatch, capsys, tmp_path):
    """No backend of this name is installed; the second item finds no time left."""
    import json
    import time

    import on_a_gpu

    clock = iter([0, 0, 61])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(on_a_gpu, "BACKENDS", ("none",))
    monkeypatch.setattr(on_a_gpu, "call_item", lambda *_: on_a_gpu.guarded(int, "one\ntwo"))
    words = ("--minutes", 1, "--items", "step", "demo", "--backends", "none")
    run(monkeypatch, capsys, on_a_gpu, *words, "--output", tmp_path / "gpu.json")
    page = json.loads((tmp_path / "gpu.json").read_text())
    assert page["step"]["none"].startswith("failed: ValueError: invalid literal")
    assert page["demo"]["none"] == "left out: no time left"


def test_names_and_ranks_scores_a_scene_where_the_right_answer_is_known():
    """Each of three landmarks has a direction; the head, which says 9, is always wrong."""
    import names_and_ranks
    import numpy as np

    from descriptors.descriptions import Descriptions

    def describe(directions):
        num = len(directions)
        columns = np.arange(num, dtype=np.uint64), np.full(num, 9), np.full(num, 0.5, np.float32)
        return Descriptions(*columns, np.eye(8)[directions], np.zeros(num), np.zeros((num, 2)))

    queries, index = describe([0, 1, 2, 6, 7]), describe([0, 0, 1, 1, 2, 5])
    relevant = [{0, 1}, {2, 3}, {4}, set(), set()]
    truths = [{0}, {1}, {2}, set(), set(), set()]
    scene = names_and_ranks.Scene(
        np.eye(8)[[0, 1, 2]], np.arange(3), queries, index, truths, relevant, [2, 2, 1, 0, 0]
    )
    scores = names_and_ranks.score_names(scene, 0) | names_and_ranks.score_rankings(scene)
    assert {way: score for (name, way), score in scores.items() if name == "GAP, all"} == {
        way: float(way != "the head") for name, way in scores if name == "GAP, all"
    }
    assert scores["GAP, train", "1 nearest, power 1"] == 0  # each landmark has one image
    assert scores["mAP@100", "none"] == scores["mAP@100", "cos + 4 agreement, both"] == 1


def test_the_estimate_counts_sessions_and_hours_of_the_strong_chain(monkeypatch, capsys):
    """Training alone, by hand: 4 epochs x 500 shards of 1,000 MB at 33 MB/s, and the test set.

    Over enough connections the step binds: 800 images/s at 192 pixels, which are 450 at 256.
    """
    import epoch_estimate

    rates = {"step": 400, "decode": 354, "search": 305, "shrink": 236}
    words = [f"--{name}-rate={rate}" for name, rate in rates.items()]
    words += ["--overlap=1", "--small-times=1.7", "--step-source=none"]
    hours = (4 * 1_580_470 + 117_577) / 450 / 3600
    out = run(monkeypatch, capsys, epoch_estimate, *words)
    assert "**step, 400 images/s per GPU, 2 GPUs**" in out
    assert "download over 4 connections of 33 MB/s" in out  # 1.3 x 30.3 s / 10.3 s
    assert f"| recognition | 1 | T4 x2 | {hours:.2f} | {hours:.2f} |" in out
    out = run(monkeypatch, capsys, epoch_estimate, *words, "--connections=1")
    originals, small = out.split("strong chain, cleaned labels, read from ")[1:]
    hours = (4 * 500 * 1000 + 20 * 500) / 33 / 3600
    assert f"| recognition | 2 | T4 x2 | {hours:.1f} | {hours:.1f} |" in originals
    assert "| recognition | 1 | T4 x2 |" in small
    for table in (originals, small):
        assert "| gallery-0 to -1 | 2 | T4 x2 |" in table and "| vote | 1 | CPU |" in table
