"""Tests of the edge of every script: exit codes, one-line errors, help."""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from checks import one_line

import gather
import identify
import kernels
import metrics
import nearest
import recognition
import retrieval
import shrink
from recipes import Recipe
from runs.command_line import CommandLine, number, run_command_line, session_settings
from runs.session import open_session
from utils import ExpectedError, MissingFileError, Stop, StoppedError

ROOT = Path(__file__).parent.parent


def leave(main):
    """Runs a command line that is expected to end the process; gives the exit code."""
    with pytest.raises(SystemExit) as caught:
        run_command_line(main)
    return caught.value.code


def raising(error):
    def main():
        raise error

    return main


def test_a_command_that_is_done_returns_without_a_word(capsys):
    assert run_command_line(lambda: None) is None
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [ExpectedError, MissingFileError])
def test_an_expected_error_is_one_line_and_exit_code_1(capsys, kind):
    assert leave(raising(kind("a.tar: gone; expected a file; check --source"))) == 1
    assert capsys.readouterr() == ("", "error: a.tar: gone; expected a file; check --source\n")


def test_ctrl_c_is_one_line_and_exit_code_130(capsys, monkeypatch):
    monkeypatch.setattr("runs.command_line.end_soon", lambda: None)  # of these tests
    assert leave(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr() == (
        "",
        "error: interrupted by Ctrl-C; run the same command again to continue\n",
    )


def test_a_run_that_stopped_at_its_time_limit_is_done(capsys):
    stop = Stop(max_hours=1)
    assert leave(raising(StoppedError(stop, "12 of 490 mini-epochs done"))) == 0
    assert capsys.readouterr() == (
        "",
        "stopped by the time limit: 12 of 490 mini-epochs done; run the same command again to "
        "continue\n",
    )


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_run_that_stopped_on_a_signal_tells_which(capsys, number, exit_code):
    with Stop() as stop:
        signal.raise_signal(number)
    assert leave(raising(StoppedError(stop, "nothing done"))) == exit_code
    assert f"stopped by {number.name}: nothing done; run " in capsys.readouterr().err


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command_line(lambda: 1 // 0)


def run_into_closed_pipe(code):
    """Runs code whose reader of stdout has left; gives (exit code, stderr)."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    environment = {name: os.environ[name] for name in os.environ if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=write_end,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=environment,
        timeout=60,
    )
    os.close(write_end)
    return done.returncode, done.stderr.decode()


def test_a_reader_that_leaves_early_ends_the_command_quietly():
    code = (
        "from runs import command_line; command_line.run_command_line(lambda: print('x' * 100_000))"
    )
    assert run_into_closed_pipe(code) == (1, "")


def test_a_reader_that_leaves_before_the_last_line_ends_the_command_quietly():
    code = "from runs import command_line; command_line.run_command_line(lambda: print('short'))"
    assert run_into_closed_pipe(code) == (1, "")


def test_a_path_of_any_bytes_can_be_printed():
    code = (
        "from runs import command_line; command_line.run_command_line(lambda: print('out\\udcff'))"
    )
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=ROOT, env=environment, check=True
    )
    assert done.stdout == b"out\\udcff\n"


def test_wrong_use_is_one_line_and_exit_code_2(capsys):
    parser = CommandLine(prog="tool.py")
    parser.add_argument("--epochs", type=int, default=1)
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--epochs", "many"])
    assert caught.value.code == 2
    assert capsys.readouterr() == (
        "",
        "error: argument --epochs: invalid int value: 'many'; see tool.py --help\n",
    )


def test_flags_are_not_abbreviated(capsys):
    parser = CommandLine(prog="tool.py")
    parser.add_argument("--epochs", type=int, default=1)
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--epo", "2"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "error: no option --epo (did you mean --epochs?); see tool.py --help\n"
    )


def test_a_mistyped_option_does_not_take_its_value_for_the_step(capsys):
    with pytest.raises(SystemExit):
        recognition.parse_arguments(["--epoch", "2"])
    assert capsys.readouterr().err == (
        "error: no option --epoch (did you mean --epochs?); see recognition.py --help\n"
    )


@pytest.mark.parametrize("flag", ["--help", "--help-all"])
def test_the_help_has_examples_and_defaults_as_one_types_them(capsys, flag):
    with pytest.raises(SystemExit) as caught:
        recognition.parse_arguments([flag])
    assert caught.value.code == 0
    told = capsys.readouterr().out
    lines = told.splitlines()
    assert lines[4].startswith("    python recognition.py --demo  ")
    assert "10:500" in told and "(10, 500)" not in told and "default: False" not in told
    is_whole = flag == "--help-all"
    assert ("--no-augment, --erase 0.0," in told) is not is_whole
    assert ("what the settings below are by default" in " ".join(told.split())) is is_whole


@pytest.mark.parametrize(
    "script", [gather, identify, kernels, metrics, nearest, recognition, retrieval, shrink]
)
def test_the_help_of_each_script_fits_a_screen_and_has_two_examples(script, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        script.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 45 and max(map(len, lines)) <= 100
    examples = [line for line in lines if line.startswith(f"    python {script.__name__}.py ")]
    assert len(examples) >= 2


def test_the_help_is_no_wider_than_the_terminal(monkeypatch):
    parser = CommandLine("Does it.", prog="tool.py")
    parser.add_argument("--model", help="word " * 40)
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, parser.format_help().splitlines())) <= 60


def test_the_help_has_no_examples_where_docstrings_are_dropped(capsys):
    assert CommandLine(None, prog="tool.py").format_help().startswith("usage: tool.py [-h]")


HOME = Path.home()


def test_the_home_folder_is_known_after_an_equals_sign():
    words = ["--output=~/x", "--scratch=~/y", "--source=~/z", "--model=~/m"]
    args = recognition.parse_arguments(["predict", *words])
    assert (args.output, args.scratch, args.model) == (HOME / "x", HOME / "y", HOME / "m")
    assert session_settings(args)["source"] == [str(HOME / "z")]


def test_a_person_limits_the_shards_that_are_downloaded_at_once(tmp_path):
    words = ["--source", str(tmp_path), "--output", str(tmp_path / "o"), "--connections", "3"]
    settings = session_settings(recognition.parse_arguments(words))
    with open_session("recognition", **settings) as session:
        assert session.source.max_connections == 3


# -------------------------------------------------------------------------------- the demo's folder


@pytest.mark.parametrize(
    ("script", "output"),
    [
        (recognition, "output/demo"),
        (retrieval, "output/demo"),
        (nearest, "output/demo"),
        (shrink, "output/demo/shrunk"),
    ],
)
def test_the_demo_has_an_output_of_its_own_and_one_world(script, output):
    args = script.parse_arguments(["--demo"])
    assert (args.output, args.scratch) == (Path(output), Path("output/demo/scratch"))
    args = script.parse_arguments(["--demo", "--output", "here"])
    assert (args.output, args.scratch) == (Path("here"), Path("here/scratch"))


@pytest.mark.parametrize(
    ("arguments", "pooling", "schedule", "epochs"),
    [([], "max", "steps", 1), (["--demo"], "average", "cosine", 3),
     (["--demo", "--recipe", "2019"], "average", "cosine", 3),
     (["--demo", "--pooling", "max"], "max", "cosine", 3),
     (["--demo", "--recipe", "strong"], "gem", "cosine", 4)],
)  # fmt: skip
def test_the_demo_learns_quicker_than_the_recipe_of_2019_and_leaves_the_others(
    arguments, pooling, schedule, epochs
):
    args = recognition.parse_arguments(arguments)
    assert (args.pooling, args.schedule, args.epochs) == (pooling, schedule, epochs)


def test_the_real_job_is_kept_out_of_the_folder_of_a_demo(tmp_path, capsys):
    (tmp_path / "scratch" / "demo-world").mkdir(parents=True)
    with pytest.raises(SystemExit) as caught:
        retrieval.parse_arguments(["merge", "--output", str(tmp_path)])
    assert caught.value.code == 2
    assert (
        f"error: {tmp_path} has the results of a demo; expected --demo" in capsys.readouterr().err
    )
    retrieval.parse_arguments(["merge", "--output", str(tmp_path), "--source", "here"])


MISSING = (
    "model.keras: not in output/demo; expected it from recognition.py; run that first, or name"
)


@pytest.mark.parametrize(
    ("script", "words", "told"),
    [
        (recognition, ["predict", "--demo"], MISSING),
        (retrieval, ["--demo"], MISSING),
        (nearest, ["--demo"], MISSING),
        (identify, ["--demo"], MISSING),
        (
            retrieval,
            ["--demo", "--model", "none.keras"],
            "none.keras: no such file; expected a model",
        ),
        (retrieval, ["merge", "--demo"], "output/demo: no part-*-of-6.npz there; "),
        (nearest, ["vote", "--demo"], "output/demo: no gallery-part-*-of-6.npz there; "),
    ],
)
def test_what_is_missing_is_told_before_a_world_is_drawn(
    script, words, told, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("demo.world.build_world", None)
    monkeypatch.setattr("demo.start.build_world", None)
    with pytest.raises(ExpectedError) as caught:
        script.main(words)
    assert one_line(caught.value).startswith(told)


def test_a_missing_model_where_a_demo_has_one_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("output/demo").mkdir(parents=True)
    Path("output/demo/model.keras").write_bytes(b"")
    with pytest.raises(ExpectedError) as caught:
        identify.main(["photo.jpg"])
    assert one_line(caught.value).endswith(
        "run that first, or add --demo, whose model is there; or name the file with --model"
    )


def test_a_long_run_says_what_it_fetches_before_it_begins(capsys, tmp_path):
    def source_of(shard_bytes, takes_scratch=True):
        place = SimpleNamespace(takes_scratch=lambda shard: takes_scratch)
        return SimpleNamespace(
            place_of=lambda shard: place, size_of=lambda shard: shard_bytes, scratch=tmp_path,
            max_connections=8,
        )  # fmt: skip

    shards, recipe = [None] * 490, Recipe.of({"epochs": 2})
    recognition.announce(source_of(1_000_000), shards, recipe)
    recognition.announce(source_of(1_000_000_000, takes_scratch=False), shards, recipe)
    assert capsys.readouterr().err == ""
    recognition.announce(source_of(1_000_000_000), shards, recipe)
    told = capsys.readouterr().err
    assert "490 train shards, about 490 GB, are fetched in each of 2 epochs into" in told
    assert f"{tmp_path}, where 9 are at most; 6.8 h over one connection of 20 MB/s, of " in told


def test_the_help_shows_defaults(capsys):
    parser = CommandLine(prog="tool.py")
    parser.add_argument("--epochs", type=int, default=17, help="passes over the data")
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--help"])
    assert caught.value.code == 0
    assert "passes over the data (default: 17)" in capsys.readouterr().out


def test_the_ends_of_a_range_of_numbers_are_in_it():
    parse = number(int, 0, 20)
    assert [parse("0"), parse("20")] == [0, 20]
    for text in ("-1", "21", "x", "1.5"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a number from 0 to 20"):
            parse(text)
