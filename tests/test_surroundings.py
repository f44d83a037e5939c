"""Tests of scripts in odd places: another system, closed streams, no home, Ctrl-C at any moment."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checks import one_line
from synthetic import make_source

from network import loading
from utils import ExpectedError

ROOT = Path(__file__).parent.parent
SCRIPTS = (
    "recognition",
    "retrieval",
    "nearest",
    "shrink",
    "identify",
    "kernels",
    "metrics",
    "gather",
)
UNIX_ALONE = ("fcntl", "pwd", "grp", "resource", "termios", "tty", "pty", "syslog", "posix_ipc")

# Runs a script where what only Unix has is hidden, with a network that compiles in a second.
ANOTHER_SYSTEM = f"""
import os, runpy, signal, sys
for name in {UNIX_ALONE!r}:
    sys.modules[name] = None
for name in ("pread", "mkfifo", "getuid", "geteuid", "sysconf"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGPIPE"):
    delattr(signal, name)
script, sys.argv = sys.argv[1], sys.argv[1:]
if "--help" in sys.argv:
    runpy.run_path(script, run_name="__main__")
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from tiny_network import in_place_of_backbones
with in_place_of_backbones():
    runpy.run_path(script, run_name="__main__")
"""


def run(*words, code=None, environment=None, **options):
    """Runs a script, or code with arguments, from the project's folder."""
    command = [sys.executable, *(("-c", code) if code else ()), *map(str, words)]
    environment = {**os.environ, **(environment or {})}
    environment = {name: value for name, value in environment.items() if value is not None}
    options = {"capture_output": True, "text": True, "timeout": 300} | options
    return subprocess.run(command, cwd=ROOT, env=environment, check=False, **options)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_source(tmp_path_factory.mktemp("source") / "source").folder


def tiny_job(source, output):
    return [
        *("--source", source, "--output", output, "--train-shards", "1:3"),
        *("--valid-shards", "0:1", "--min-images", "5", "--backbone", "mobilenet_v2"),
        *("--weights", "none", "--image-size", "32", "--batch-size", "8", "--epochs", "1"),
    ]


# ----------------------------------------------------------------------------------- another system


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_help_needs_no_unix_no_docstrings_and_no_path(script):
    done = run("-OO", "-P", "-c", ANOTHER_SYSTEM, f"{script}.py", "--help")
    assert done.stdout.startswith("usage: ") and (done.returncode, done.stderr) == (0, "")


# --------------------------------------------------------------------------------------- odd places


def test_a_run_without_home_temporary_folder_streams_or_letters_is_done(source, tmp_path):
    """All at once, without what only Unix has, as a service may start it after a notebook.

    But for stderr and for where Keras keeps its settings: the launcher loads Keras before the
    script can do anything about either.
    """
    odd = {
        "HOME": None, "LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
        "PYTHONSAFEPATH": "1", "TMPDIR": "/nowhere", "MPLCONFIGDIR": None, "XDG_CACHE_HOME": None,
        "MPLBACKEND": "module://none.such", "KERAS_HOME": str(tmp_path / "keras"),
    }  # fmt: skip
    output = tmp_path / "demo"
    lines = ANOTHER_SYSTEM.splitlines()
    lines.insert(-1, "    import tempfile; tempfile.tempdir = None")
    lines.insert(-1, "    tempfile._candidate_tempdir_list = lambda: ['/nowhere']")
    no_tmp = "\n".join(lines)
    command = [sys.executable, "-OO", "-c", no_tmp, "recognition.py", *tiny_job(source, output)]
    closed = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" <&- >&-', "sh", *map(str, command)],
        cwd=ROOT, env={k: v for k, v in (os.environ | odd).items() if v is not None}, timeout=300,
        check=False,
    )  # fmt: skip
    assert closed.returncode == 0
    facts = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert facts["recognition"]["scores"] and (output / "report.html").is_file()
    assert (output / "history.png").stat().st_size > 1000


def test_what_a_language_has_no_letters_for_is_escaped():
    code = (
        "from runs import command_line; from utils import ExpectedError\n"
        "def main():\n    print('\\u00e9')\n    raise ExpectedError('\\u4e2d')\n"
        "command_line.run_command_line(main)"
    )
    language = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run("-c", code, environment=language)
    assert (done.returncode, done.stdout, done.stderr) == (1, "\\xe9\n", "error: \\u4e2d\n")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_is_taken_for_a_closed_stream(tmp_path, closed):
    code = (
        "import os\nfrom runs import command_line\ndef main():\n"
        f"    file = open({str(tmp_path / 'file')!r}, 'w')\n    os.write(1, b'o')\n"
        "    os.write(2, b'e')\n    print('o')\n    assert file.fileno() > 2\n"
        "command_line.run_command_line(main)"
    )
    command = ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make here")
def test_make_checks_python_before_it_installs_and_makes_an_environment_of_another_anew(tmp_path):
    for name, version in (("old", "3.10"), ("right", "3.12"), ("new", "3.14")):
        python = tmp_path / name
        # Stands for a Python: it tells its version, and makes an environment that tells it, too.
        python.write_text(
            f'#!/bin/sh\ncase "$1" in -c) echo {version};; '
            '-m) echo "$@" >> made; test "$2" = venv || exit 0; mkdir -p .venv/bin; '
            'cp "$0" .venv/bin/python;; esac\n'
        )
        python.chmod(0o755)
    (tmp_path / "requirements.txt").write_text("")

    def make(name):
        (tmp_path / ".venv" / ".installed").unlink(missing_ok=True)
        command = ["make", "-f", ROOT / "Makefile", ".venv/.installed", f"PYTHON=./{name}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        made = tmp_path / "made"
        lines = made.read_text().splitlines() if made.exists() else []
        made.unlink(missing_ok=True)
        return done, [line.split()[:2] for line in lines]

    for name, version in (("old", "3.10"), ("new", "3.14")):
        done, made = make(name)
        assert done.returncode and made == []
        assert f"error: ./{name} is Python {version}; expected 3.11 to 3.13; " in done.stdout
    assert make("right")[1] == [["-m", "venv"], ["-m", "pip"]]
    assert make("right")[1] == [["-m", "pip"]]  # it stays
    (tmp_path / ".venv" / "bin" / "python").write_text("#!/bin/sh\necho 3.10\n")
    assert make("right")[1] == [["-m", "venv"], ["-m", "pip"]]


# -------------------------------------------------------------------------------------------- Keras


@pytest.fixture
def keras_home(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    return tmp_path / "keras.json"


@pytest.mark.parametrize(
    ("backend", "told"), [("nonsense", "no backend of this project"), ("torch", "not installed")]
)
def test_a_backend_that_is_not_there_is_told_without_keras(keras_home, monkeypatch, backend, told):
    monkeypatch.setenv("KERAS_BACKEND", backend)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExpectedError) as caught:
        loading.require_backend()
    assert one_line(caught.value).startswith(f"KERAS_BACKEND={backend}: {told}; expected one of ")


def test_a_missing_backend_is_told_before_anything_else(tmp_path):
    done = run(
        "recognition.py", "--demo", "--output", tmp_path / "output",
        environment={"KERAS_BACKEND": "nonsense"},
    )  # fmt: skip
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("settings", "backend"),
    [
        (None, "tensorflow"),
        ({"backend": "theano", "image_dim_ordering": "th", "epsilon": 1e-7}, "tensorflow"),
        ({"backend": "jax"}, "jax"),
    ],
)
def test_the_keras_json_of_another_time_is_no_hindrance(keras_home, monkeypatch, settings, backend):
    if settings:
        keras_home.write_text(json.dumps(settings))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    loading.require_backend()
    assert os.environ["KERAS_BACKEND"] == backend


@pytest.mark.parametrize("settings", [[], {"floatx": "float99"}, {"epsilon": 1}, {"floatx": None}])
def test_a_keras_json_that_keras_refuses_is_named(keras_home, settings):
    keras_home.write_text(json.dumps(settings))
    with pytest.raises(ExpectedError) as caught:
        loading.require_backend()
    assert one_line(caught.value).startswith(f"{keras_home}: not what Keras 3 writes; ")


# ------------------------------------------------------------------------------------------- Ctrl-C


@contextlib.contextmanager
def started(*words, code=None):
    """A process in a group of its own, as a terminal's is; killed with all its group at the end."""
    command = [sys.executable, *(("-c", code) if code else ()), *map(str, words)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_ctrl_c_while_the_world_is_drawn_ends_all_processes(tmp_path):
    code = (
        "import os, signal\nos.cpu_count = lambda: 2\nfrom runs import command_line\n"
        # What starts the tests in the background, as nohup in a shell, hands on that it is ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from runs.session import open_session\nfrom pathlib import Path\n"
        f"output = Path({str(tmp_path)!r})\ndef main():\n"
        "    with open_session('x', None, output, output / 'scratch'):\n        pass\n"
        "if __name__ == '__main__':\n    command_line.run_command_line(main)"
    )
    with started(code=code) as process:
        assert process.stderr.readline().startswith("drawing the miniature landmark world")
        while not list(tmp_path.glob("scratch/.demo-world.partial-*/*/*.tar")):
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        told = process.communicate(timeout=60)[1].splitlines()  # on a slow machine progress, too
        assert told[-1] == "error: interrupted by Ctrl-C; run the same command again to continue"
        assert process.returncode == 130
        with contextlib.suppress(ProcessLookupError):
            while os.killpg(process.pid, 0) is None:  # until none of the group is left
                time.sleep(0.05)
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_second_ctrl_c_ends_what_does_not_come_back_from_a_library():
    """Python's own handlers would wait for minutes; the lock is freed by whoever ends first."""
    code = (
        "import hashlib\nfrom utils import Stop\nwith Stop():\n    print('in', flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha512', b'', b'', 2_000_000_000)\n"
    )
    with started(code=code) as process:
        assert process.stdout.readline() == "in\n"
        for _ in range(2):
            os.killpg(process.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
        told = process.communicate(timeout=60)[1]
        assert process.returncode == 130
        assert told.endswith(
            "error: interrupted by Ctrl-C; run the same command again to continue\n"
        )


def test_an_interrupted_process_ends_although_a_thread_does_not():
    code = (
        "import threading, time\nfrom runs import command_line\n"
        "def main():\n    threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "    raise KeyboardInterrupt\ncommand_line.run_command_line(main)"
    )
    done = run("-c", code, timeout=60)
    assert done.returncode == 130 and len(done.stderr.splitlines()) == 1
