"""Tests of what is drawn beside a run: in a style of its own, and never at the run's cost."""

import sys
from types import SimpleNamespace

import matplotlib
import pytest
from matplotlib.figure import Figure
from PIL import Image

from runs.pictures import draw_picture
from training import history
from utils import StoppedError

ROW = dict.fromkeys(history.HISTORY_COLUMNS, 1.0)


@pytest.fixture
def session(tmp_path):
    return SimpleNamespace(path=lambda name: tmp_path / name)


def test_a_matplotlibrc_that_asks_for_latex_does_no_harm(session, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")  # no LaTeX
    with matplotlib.rc_context({"text.usetex": True, "savefig.format": "nonsense"}):
        history.write_history(session, [ROW], with_picture=True)
        assert matplotlib.rcParams["text.usetex"]  # it is somebody else's
    with Image.open(tmp_path / "history.png") as picture:
        assert picture.width > 500
    assert capsys.readouterr().err == ""


def test_a_history_that_cannot_be_drawn_is_told_and_written(session, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(history, "draw_history", lambda rows: 1 / 0)
    history.write_history(session, [ROW], with_picture=True)
    assert (tmp_path / "history.csv").exists()
    told = f"{tmp_path / 'history.png'}: not drawn: ZeroDivisionError: division by zero\n"
    assert capsys.readouterr().err == told


def test_without_matplotlib_there_is_no_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not draw_picture(tmp_path / "a.png", Figure)
    assert "a.png: not drawn: ModuleNotFoundError: " in capsys.readouterr().err


def test_a_dollar_in_a_name_is_a_dollar(tmp_path):
    def draw():
        figure = Figure()
        figure.suptitle("$\\nonsense$")
        return figure

    assert draw_picture(tmp_path / "a.png", draw)


def test_a_stop_is_no_failure_of_a_picture(tmp_path):
    stop = SimpleNamespace(reason=lambda: "SIGTERM", signal_number=None)

    def draw():
        raise StoppedError(stop, "")

    with pytest.raises(StoppedError):
        draw_picture(tmp_path / "a.png", draw)
