"""Tests of the edge of every script: exit codes, one-line errors, help."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runs.command_line import CommandLine, run_command_line
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


def test_ctrl_c_is_one_line_and_exit_code_130(capsys):
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
        "error: unrecognized arguments: --epo 2; see tool.py --help\n"
    )


def test_the_help_shows_defaults(capsys):
    parser = CommandLine(prog="tool.py")
    parser.add_argument("--epochs", type=int, default=17, help="passes over the data")
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--help"])
    assert caught.value.code == 0
    assert "passes over the data (default: 17)" in capsys.readouterr().out
