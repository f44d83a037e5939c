"""Tests of what surrounds the import of Keras: chatter is muted, Ctrl-C and settings are heard."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from network import loading
from network.loading import loading_keras, muted_stderr
from utils import Stop, in_background

ROOT = Path(__file__).parent.parent

# ------------------------------------------------------------------------------------ muted stderr


def test_native_chatter_is_swallowed(capfd):
    with muted_stderr():
        os.write(2, b"chatter\n")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_native_chatter_is_shown_when_the_block_fails(capfd):
    with pytest.raises(ImportError), muted_stderr():
        os.write(2, b"why it failed\n")
        raise ImportError("no")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "why it failed\nafter\n"


def test_muting_leaves_stdout_alone(capfd):
    with muted_stderr():
        os.write(1, b"result\n")
    assert capfd.readouterr().out == "result\n"


def test_ctrl_c_interrupts_a_muted_block_at_once_inside_of_a_stop_too(capfd):
    with Stop() as stop:
        handler = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), muted_stderr():
            os.write(2, b"chatter\n")
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is handler
        assert not stop.requested()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("error", [None, ImportError])
def test_ctrl_c_that_a_library_swallows_interrupts_at_the_end_of_the_muted_block(capfd, error):
    with pytest.raises(KeyboardInterrupt), muted_stderr():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            if error:
                raise error("cannot import it") from None
    assert capfd.readouterr().err == ""


def test_muting_in_a_thread_leaves_the_signals_alone():
    def mute():
        with muted_stderr():
            return signal.getsignal(signal.SIGINT)

    assert in_background(mute).result(timeout=30) is signal.getsignal(signal.SIGINT)


def test_ctrl_c_while_keras_is_imported_is_one_line(data_set, tmp_path):
    """With a stand-in for Keras that takes for ever, and swallows what interrupts it."""
    (tmp_path / "keras.py").write_text(
        "import time\nprint('importing', flush=True)\n"
        "try:\n    time.sleep(600)\nexcept BaseException:\n    pass\n"
    )
    process = subprocess.Popen(
        [
            *(sys.executable, "recognition.py", "--source", str(data_set.folder)),
            *("--output", str(tmp_path / "output")),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert stdout == "" and stderr.splitlines()[1:] == [  # the first says what is held out
        "error: interrupted by Ctrl-C; run the same command again to continue"
    ]
    assert process.returncode == 130


# ------------------------------------------------------------------------------------------- Keras


def test_keras_is_loaded_with_onednn_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    with loading_keras():
        assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == "1"
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    with loading_keras():
        assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == "0"


@pytest.mark.parametrize(
    "module", ["model", "network.devices", "training.loop", "descriptors.describe"]
)
def test_the_setting_is_there_before_a_module_imports_keras(module, tmp_path):
    (tmp_path / "keras.py").write_text(
        "import os\nprint(os.environ['TF_ENABLE_ONEDNN_OPTS'], flush=True)\nos._exit(0)\n"
    )
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {module}"
    clean = {k: v for k, v in os.environ.items() if k != "TF_ENABLE_ONEDNN_OPTS"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=clean, capture_output=True, text=True
    )
    assert done.stdout == "1\n", done.stderr


def test_a_home_that_nobody_knows_leaves_no_folder_here(monkeypatch, tmp_path):
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.delenv("KERAS_HOME", raising=False)
    loading.require_backend()
    assert Path(os.environ.pop("KERAS_HOME")).is_absolute()
