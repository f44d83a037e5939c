"""The benchmarks run, on inputs too small to measure anything; what they print is not judged."""

import importlib.util
import sys
from pathlib import Path

import pytest

from sources import RECOGNITION_SOLUTION, Source
from submissions import read_recognition_solution

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

    monkeypatch.setattr(small_pictures, "PIXELS", (256,))
    arguments = ("--images", 2, "--shard-images", 4, "--rounds", 1)
    out = run(monkeypatch, capsys, small_pictures, *arguments)
    assert "| 256 | **85** |" in out and "| 192 | " in out
    assert "a shard of 4 pictures: " in out


def test_search_speed_runs(monkeypatch, capsys):
    import search_speed

    out = run(
        monkeypatch, capsys, search_speed, "--rounds", 1, "--index", 150, 300, "--queries", 40
    )
    assert "| 300 | ours, float16 stored |" in out
    assert "time grows as n^" in out


def test_demo_size_writes_settings_as_the_command_line_takes_them():
    import demo_size

    import demo
    import recognition

    settings = demo.DEFAULTS | {"augment": False}
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


def test_the_heads_that_are_timed_are_recipes():
    import heads

    recipes = {name: heads.recipe_of(name) for name in heads.HEADS}
    assert len(set(recipes.values())) == len(recipes)
    assert recipes[heads.LARGEST].loss.sub_centers == 3
