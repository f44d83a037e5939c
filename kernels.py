"""The Kaggle side: packs the scripts into kernels, pushes them in order, collects and submits.

    python kernels.py build --user NAME    write kernels/: eight folders, ready to push
    python kernels.py run                  push all in order, wait, collect (and --submit)
    python kernels.py push part-3          push one again, whatever became of it before
    python kernels.py status               what Kaggle has of each
    python kernels.py collect              download the results of the last sessions
    python kernels.py submit               check both submissions and hand them in

`run` can be stopped and started again at any point: Kaggle is asked what is there. All but `build`
call the official client (pip install kaggle six).
"""

import argparse
import ast
import base64
import contextlib
import csv
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from utils import CommandLine, ExpectedError, atomic_write, file_md5, run_command_line, say

ROOT = Path(__file__).resolve().parent
NUM_PARTS = 6
REPORT = "kernel.json"  # what a kernel leaves beside its results, to know it by
NOT_COLLECTED = ("checkpoint/", "descriptors/", "queries.npz")
CHALLENGES = {  # challenge -> (kernel, its submission, the competition of 2019)
    "recognition": ("recognition", "recognition_submission.csv", "landmark-recognition-2019"),
    "retrieval": ("merge", "retrieval_submission.csv", "landmark-retrieval-2019"),
}
BUILD_OPTIONS = ("recognition_args", "retrieval_args", "dataset")
RETRY_PAUSES_S = (5, 20, 60, 300, 900)  # after a failure of the network
SETTLING_LOOKS = 5  # Kaggle may tell of the session before for a while


@dataclass(frozen=True)
class Kernel:
    """One kernel of the chain.

    Attributes:
        name: short name on our command line.
        title: Kaggle's title; the slug follows from it.
        entry: script to run.
        arguments: tuple, what makes the script do this kernel's share.
        result: the output file that a finished session has, and an unfinished one has not.
        inputs: tuple of the kernels whose outputs it reads. With itself among them, a session
            continues the one before.
        has_gpu: whether it asks for GPUs.
    """

    name: str
    title: str
    entry: str
    arguments: tuple
    result: str
    inputs: tuple
    has_gpu: bool = True

    @property
    def slug(self):
        return self.title.lower().replace(" ", "-")


PARTS = tuple(f"part-{part}" for part in range(NUM_PARTS))
_CHAIN = (
    Kernel(
        "recognition", "Landmark recognition", "recognition", (), "recognition_submission.csv",
        inputs=("recognition",),
    ),
    *(
        Kernel(
            name, f"Landmark retrieval part {part}", "retrieval",
            ("--part", str(part), "--parts", str(NUM_PARTS)), f"part-{part}-of-{NUM_PARTS}.npz",
            inputs=("recognition", name),
        )
        for part, name in enumerate(PARTS)
    ),
    Kernel(
        "merge", "Landmark retrieval merge", "retrieval", ("merge",), "retrieval_submission.csv",
        inputs=PARTS, has_gpu=False,
    ),
)  # fmt: skip
KERNELS = {kernel.name: kernel for kernel in _CHAIN}  # in the order to push

# ----------------------------------------------------------------------------------------- build

SCRIPT = '''\
"""$title$: built by kernels.py; change the sources and build again."""

import base64
import importlib
import io
import json
import sys
import tempfile
import time
import zipfile
from pathlib import Path

FACTS = $facts$


def run():
    """Unpacks the modules outside of the output folder, runs the script and reports on it."""
    facts, output, started = FACTS, Path.cwd(), time.time()
    command = " ".join([facts["entry"] + ".py", *facts["arguments"]])
    print(
        f"kernel {facts['kernel']}, source {facts['source']}, build {facts['build']}: {command}",
        file=sys.stderr,
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="landmarks-") as folder:
        zipfile.ZipFile(io.BytesIO(base64.b64decode(ARCHIVE))).extractall(folder)
        sys.path.insert(0, folder)
        entry, utils = map(importlib.import_module, (facts["entry"], "utils"))
        try:
            utils.run_command_line(lambda: entry.main(facts["arguments"]))
        except SystemExit as stop:
            if stop.code:  # a stop in good order is none
                raise
    paths = sorted(path for path in output.rglob("*") if path.is_file())
    files = {path.relative_to(output).as_posix(): path.stat().st_size for path in paths}
    files.pop("$report$", None)
    report = {
        **facts,
        "started": started,
        "ended": time.time(),
        "finished": facts["result"] in files,
        "files": files,
    }
    Path(output, "$report$").write_text(json.dumps(report, indent=2) + "\\n")


ARCHIVE = """
$archive$
"""

if __name__ == "__main__":
    run()
'''


def find_modules():
    """Finds the modules that the scripts import, themselves included: dict, name -> source."""
    modules, waiting = {}, sorted({kernel.entry for kernel in KERNELS.values()})
    while waiting:
        name = waiting.pop()
        path = ROOT / f"{name}.py"
        if name in modules or not path.is_file():
            continue
        modules[name] = path.read_bytes()
        for node in ast.walk(ast.parse(modules[name])):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                waiting.append(node.module)
    return dict(sorted(modules.items()))


def source_version(modules):
    """Names the version of the modules: 12 characters of their hash, after the release if any."""
    digest = hashlib.sha256()
    for name, source in modules.items():
        digest.update(b"%s %d\n%s" % (name.encode(), len(source), source))
    changes = ROOT / "CHANGELOG.md"
    text = changes.read_text(encoding="utf-8") if changes.is_file() else ""
    release = re.search(r"^## *\[?v?(\d[\w.]*)", text, re.MULTILINE)
    return f"{release[1]}+{digest.hexdigest()[:12]}" if release else digest.hexdigest()[:12]


def pack(modules):
    """Packs modules as lines of base64; the same modules give the same text at any time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, source in modules.items():
            member = zipfile.ZipInfo(f"{name}.py", (1980, 1, 1, 0, 0, 0))
            member.create_system = 3
            archive.writestr(member, source, zipfile.ZIP_DEFLATED, 9)
    return textwrap.fill(base64.b64encode(buffer.getvalue()).decode(), 100)


def write_kernels(folder, user, extra_arguments, max_hours, datasets=()):
    """Writes a folder with metadata and script for each kernel.

    Args:
        folder: where to.
        user: the owner on Kaggle.
        extra_arguments: dict, script -> list of arguments more.
        max_hours: time budget of a GPU session.
        datasets: data sets to mount, as `owner/slug`.
    """
    modules = find_modules()
    archive, version = pack(modules), source_version(modules)
    for kernel in KERNELS.values():
        budget = ["--max-hours", f"{max_hours:g}"] if kernel.has_gpu else []
        facts = {
            "kernel": kernel.name,
            "entry": kernel.entry,
            "arguments": [*kernel.arguments, *budget, *extra_arguments[kernel.entry]],
            "result": kernel.result,
            "source": version,
        }
        key = json.dumps([facts, version.rpartition("+")[2]])
        facts["build"] = hashlib.sha256(key.encode()).hexdigest()[:12]
        script = SCRIPT.replace("$report$", REPORT).replace("$title$", kernel.title)
        script = script.replace("$facts$", _format_facts(facts)).replace("$archive$", archive)
        metadata = {
            "id": f"{user}/{kernel.slug}",
            "title": kernel.title,
            "code_file": f"{kernel.slug}.py",
            "language": "python",
            "kernel_type": "script",
            "is_private": True,
            "enable_gpu": kernel.has_gpu,
            **({"machine_shape": "NvidiaTeslaT4"} if kernel.has_gpu else {}),
            "enable_internet": True,
            "dataset_sources": list(datasets),
            "competition_sources": [],
            "kernel_sources": [f"{user}/{KERNELS[name].slug}" for name in kernel.inputs],
            "build": facts["build"],  # ours; the client ignores it
        }
        for name, text in (
            (metadata["code_file"], script),
            ("kernel-metadata.json", json.dumps(metadata, indent=2) + "\n"),
        ):
            with atomic_write(Path(folder, kernel.name, name)) as temporary:
                temporary.write_text(text, encoding="utf-8")
        print(Path(folder, kernel.name))
    say(f"source {version}, {len(modules)} modules; push with: python kernels.py run")


def _format_facts(facts):
    return "{\n" + "".join(f"    {key!r}: {value!r},\n" for key, value in facts.items()) + "}"


def parse_arguments(entry, text):
    """Splits more arguments for a script as a shell would, and lets its own parser check them.

    Raises:
        ExpectedError: the script does not take them.
    """
    flag = f"--{entry}-args"
    try:
        arguments = shlex.split(text)
    except ValueError as error:
        raise ExpectedError(
            f"{flag}: {error}; expected arguments as in a shell; check {text!r}"
        ) from error
    for word in arguments:
        if word.partition("=")[0] in ("--part", "--parts", "--max-hours"):
            raise ExpectedError(
                f"{flag}: {word} is set for each kernel; expected other options; leave it out "
                "(build has --max-hours)"
            )
    if not arguments:
        return []
    parse = f"import sys, {entry}; {entry}.make_parser().parse_args(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", parse, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        problem = (done.stderr.strip().splitlines() or ["it does not start"])[-1]
        raise ExpectedError(
            f"{flag}: {problem.removeprefix('error: ').partition('; see ')[0]}; expected options "
            f"of {entry}.py; see python {entry}.py --help"
        )
    return arguments


# ---------------------------------------------------------------------------------------- client


class ClientError(ExpectedError):
    """The client reported a failure; the answer as a whole is `text`."""

    text = ""


class NetworkError(ClientError):
    """A failure that may pass by itself."""


_PASSING = re.compile(
    r"\b(408|429|500|502|503|504)\b[^\n]*(Error|Too Many)|Connection(Error|Reset|Refused)|Timeout|"
    r"timed out|Max retries|Connection (aborted|broken)|RemoteDisconnected|IncompleteRead|SSLError"
)


def call_client(*arguments, timeout_s=600):
    """Calls the official client once.

    Returns:
        What it printed to stdout.

    Raises:
        NetworkError: a failure that may pass.
        ClientError: any other failure, in one line.
    """
    beside = Path(sys.executable).with_name("kaggle")
    client = str(beside) if beside.is_file() else shutil.which("kaggle")
    install = "install it with: pip install kaggle six"
    if client is None:
        raise ExpectedError(f"no command `kaggle`; expected Kaggle's official client; {install}")
    words = f"kaggle {' '.join(arguments[:2])}"
    try:
        done = subprocess.run(
            [client, *arguments], capture_output=True, text=True, errors="replace",
            stdin=subprocess.DEVNULL, timeout=timeout_s,
        )  # fmt: skip
        if done.returncode == 0:
            return done.stdout
        text = f"{done.stdout}\n{done.stderr}"
    except subprocess.TimeoutExpired:
        text = f"Timeout: no answer within {timeout_s} s"
    except OSError as error:
        raise ExpectedError(f"{client}: {error.strerror}; expected a program; {install}") from error
    problem = _last_line(text)
    kind, todo = ClientError, "run the command again, or look at kaggle.com"
    if "ModuleNotFoundError" in text:
        todo = install
    elif "Authentication required" in text:
        problem, todo = "no credentials", "log in with: kaggle auth login"
    elif "unrecognized arguments" in text:
        todo = "renew it with: pip install --upgrade kaggle"
    elif _PASSING.search(text):
        kind, todo = NetworkError, "run the command again when the network is back"
    error = kind(f"{words}: {problem}; expected an answer of Kaggle; {todo}")
    error.text = text
    raise error


def _last_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it failed without a word"


def patiently(attempt):
    """Gives what `attempt()` returns, and tries again after a pause when the network fails."""
    for pause_s in RETRY_PAUSES_S:
        try:
            return attempt()
        except NetworkError as error:
            say(f"{error}: next try in {pause_s} s")
            time.sleep(pause_s)
    return attempt()


def ask_client(*arguments, timeout_s=600):
    """Calls the client for something that can be asked twice; see `call_client`."""
    return patiently(lambda: call_client(*arguments, timeout_s=timeout_s))


# ------------------------------------------------------------------------------ what Kaggle says


@dataclass(frozen=True)
class Built:
    """A built kernel: its `Kernel`, folder, `owner/slug`, and what tells builds apart."""

    kernel: Kernel
    folder: Path
    id: str
    build: str


@dataclass(frozen=True)
class State:
    """What Kaggle says of a kernel's last session.

    Attributes:
        status: "absent", "QUEUED", "RUNNING", "COMPLETE", "ERROR" and so on.
        message: why it failed, if it did.
        report: dict, the session's kernel.json; empty where there is none.
        build: which one it was, as far as known.
    """

    status: str
    message: str = ""
    report: dict = field(default_factory=dict)
    build: str = ""

    @property
    def is_active(self):
        return self.status not in ("absent", "COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED")

    @property
    def is_finished(self):
        return self.status == "COMPLETE" and self.report.get("finished", False)


def read_built(folder):
    """Reads the folders that `build` wrote: dict, kernel name -> `Built`."""
    found = {}
    for name, kernel in KERNELS.items():
        path = Path(folder, name, "kernel-metadata.json")
        try:
            metadata = json.loads(path.read_text(encoding="utf-8"))
            found[name] = Built(kernel, path.parent, metadata["id"], metadata["build"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ExpectedError(
                f"{path}: {getattr(error, 'strerror', None) or 'not as build wrote it'}; expected "
                "built kernels; write them with: python kernels.py build --user NAME"
            ) from error
    return found


def look(built):
    """Asks Kaggle for a kernel's `State`."""
    try:
        text = ask_client("kernels", "status", built.id)
    except ClientError as error:
        is_absent = re.search(r"\b404\b|not found|Cannot access kernel", error.text, re.IGNORECASE)
        if isinstance(error, NetworkError) or not is_absent:
            raise
        return State("absent")
    status = re.search(r'has status "(?:KernelWorkerStatus\.)?(\w+)"', text)
    if not status:
        raise ExpectedError(
            f"kaggle kernels status {built.id}: {_last_line(text)}; expected its status; renew the "
            "client with: pip install --upgrade kaggle"
        )
    if status[1] == "NEW_SCRIPT":
        return State("absent")
    if status[1] not in ("COMPLETE", "ERROR"):
        return State(status[1])
    report, log = fetch_report(built)
    if status[1] == "COMPLETE":
        return State("COMPLETE", report=report, build=report.get("build", ""))
    ran = re.search(r"\bbuild ([0-9a-f]{12}): ", log)
    told = re.findall(r"^error: (.*)", log, re.MULTILINE)
    reason = re.search(r'Failure message: "(.*)"', text)
    message = told[-1] if told else reason[1] if reason else _last_line(log) if log else "no log"
    return State("ERROR", message, build=ran[1] if ran else "")


def fetch_report(built):
    """Downloads kernel.json and the log of the last session: (dict, str), empty where missing."""
    with tempfile.TemporaryDirectory() as folder:
        ask_client("kernels", "output", built.id, "-p", folder, "--file-pattern", rf"{REPORT}$")
        report, log = read_report(Path(folder, REPORT)), ""
        with contextlib.suppress(OSError):
            log = Path(folder, f"{built.kernel.slug}.log").read_text(errors="replace")
        with contextlib.suppress(ValueError, KeyError, TypeError):
            log = "".join(line["data"] for line in json.loads(log))
    return report, log


def read_report(path):
    """Reads a kernel.json that one of our kernels left: dict, empty where there is none."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        report = json.loads(path.read_text(encoding="utf-8"))
        if {"build", "started", "ended", "finished", "files"} <= report.keys():
            return report
    return {}


def print_status(built):
    """Prints a table: kernel, status of its last session, its build, its outputs."""
    with ThreadPoolExecutor(4) as pool:
        states = dict(zip(built, pool.map(look, built.values()), strict=True))
    print(f"{'kernel':<12} {'status':<20} {'build':<14} outputs")
    for name, state in states.items():
        status = "UNFINISHED" if state.report.get("finished") is False else state.status
        mark = " *" if state.build == built[name].build else ""
        files = state.report.get("files", {}).items()
        outputs = ", ".join(
            f"{path} {size / 1e6:.1f} MB" for path, size in files if "/" not in path
        )
        print(
            f"{name:<12} {status:<20} {state.build + mark:<14} {state.message or outputs}".rstrip()
        )
    say(f"* = as built here; on Kaggle: https://www.kaggle.com/{built['merge'].id.split('/')[0]}")


# ----------------------------------------------------------------------------------------- chain


class Chain:
    """Pushes kernels when their inputs are finished and a GPU session is free.

    Args:
        built: dict, name -> `Built`.
        poll_s: seconds between two looks at Kaggle.
        gpu_sessions: GPU sessions at once.
        max_sessions: sessions of one kernel before giving up.
        any_build: take what other builds finished.
    """

    def __init__(self, built, poll_s, gpu_sessions, max_sessions, any_build):
        self.built, self.poll_s, self.gpu_sessions = built, poll_s, gpu_sessions
        self.max_sessions, self.any_build = max_sessions, any_build
        self.states = {}  # name -> State
        self.finished = {}  # name -> report
        self.before_push = {}  # name -> State
        self.num_doubts = dict.fromkeys(built, 0)
        self.num_pushes = dict.fromkeys(built, 0)
        self.is_full = self.was_full = False  # Kaggle refused a session since the last look, ever

    def advance(self, to_the_end=True):
        """Pushes all kernels that are not finished, in order, waiting in between.

        Args:
            to_the_end: whether to wait for the last session, too.
        """
        while True:
            self.look_at_all()
            for name in self.built:
                self.step(name)
            left = self.built.keys() - self.finished.keys()
            if not left or (not to_the_end and all(self.num_pushes[name] for name in left)):
                return
            time.sleep(self.poll_s)

    def push_again(self, names):
        """Pushes these kernels whatever became of their last sessions."""
        self.look_at_all()
        for name in [name for name in self.built if name in names]:
            state, kernel_id = self.states[name], self.built[name].id
            if state.is_active:
                raise ExpectedError(
                    f"{kernel_id}: its session is {state.status}; expected none before a new one; "
                    "wait for its end, or stop it on its page"
                )
            for other in self.inputs(name):
                if not self.states[other].is_finished:
                    raise ExpectedError(
                        f"{kernel_id}: its input {other} is not finished; expected that first; "
                        "push all in order with: python kernels.py run"
                    )
            while not self.try_push(name):
                time.sleep(self.poll_s)
                self.look_at_all()

    def inputs(self, name):
        """Lists the other kernels that a kernel reads."""
        return [other for other in self.built[name].kernel.inputs if other != name]

    def look_at_all(self):
        """Renews the states of the kernels that are new or active."""
        self.is_full = False
        for name, built in self.built.items():
            if name in self.states and not self.states[name].is_active:
                continue
            state = look(built)
            # For a while Kaggle may tell of the session before, or lack the last one's output.
            is_doubtful = state == self.before_push.get(name) or (
                state.status == "COMPLETE" and not state.report
            )
            if is_doubtful and self.num_doubts[name] < SETTLING_LOOKS:
                self.num_doubts[name] += 1
                state = State("SETTLING")
            else:
                self.num_doubts[name] = 0
                self.before_push.pop(name, None)
            if name not in self.states or state.status != self.states[name].status:
                say(f"{time.strftime('%H:%M')} {name}: {state.status}")
            self.states[name] = state

    def step(self, name):
        """Pushes a kernel if it is its turn."""
        if name in self.finished or self.states[name].is_active:
            return
        if any(other not in self.finished for other in self.inputs(name)):
            return
        if self.judge(name):
            self.finished[name] = self.states[name].report
        else:
            self.try_push(name)

    def judge(self, name):
        """Tells whether a kernel is finished (True) or to be pushed (False).

        Raises:
            ExpectedError: a person has to decide.
        """
        built, state = self.built[name], self.states[name]
        again = f"push it again with: python kernels.py push {name}"
        is_other_build = state.build not in ("", built.build)
        if state.status == "absent":
            if self.num_pushes[name]:
                raise ExpectedError(
                    f"{built.id}: it was pushed, but Kaggle does not know it; expected it under "
                    "this name; look for it on kaggle.com, and check --user"
                )
            return False
        if state.status != "COMPLETE":
            if is_other_build:
                say(f"{name}: {state.status} was of another build; pushing this one")
                return False
            raise ExpectedError(
                f"{built.id}: {state.status} ({state.message or 'no reason given'}); expected it "
                f"to complete; see `kaggle kernels logs {built.id}`; mend it and build, or {again}"
            )
        if not state.report:
            raise ExpectedError(
                f"{built.id}: its output has no {REPORT}; expected a kernel of this project; "
                f"if it may be replaced, {again}"
            )
        if not state.is_finished:
            if name in built.kernel.inputs:
                return False
            raise ExpectedError(
                f"{built.id}: it stopped without {built.kernel.result}; expected it to finish in "
                f"one session; see `kaggle kernels logs {built.id}`, and {again}"
            )
        if any(state.report["started"] < self.finished[o]["ended"] for o in self.inputs(name)):
            say(f"{name}: older than its inputs; pushing it again")
            return False
        if is_other_build and not self.any_build:
            raise ExpectedError(
                f"{built.id}: finished by build {state.build}; expected "
                f"{built.build}, which is in {built.folder}; {again}, or keep it with --any-build"
            )
        return True

    def try_push(self, name):
        """Pushes a kernel if a session is free for it; tells whether it did."""
        built, before = self.built[name], self.states[name]
        active = [other for other, state in self.states.items() if state.is_active]
        num_gpus = sum(self.built[other].kernel.has_gpu for other in active)
        if self.is_full or (built.kernel.has_gpu and num_gpus >= self.gpu_sessions):
            return False
        if self.num_pushes[name] >= self.max_sessions:
            raise ExpectedError(
                f"{built.id}: not finished after {self.max_sessions} sessions; expected fewer; see "
                f"`kaggle kernels logs {built.id}`, or raise --max-sessions"
            )
        if not push(built, before):
            if not self.was_full:
                say(f"{name}: Kaggle has no session free; waiting")
            self.is_full = self.was_full = True
            return False
        self.num_pushes[name] += 1
        self.before_push[name] = before
        self.states[name] = State("PUSHED")
        return True


def push(built, before):
    """Pushes a kernel.

    Args:
        built: `Built`.
        before: its `State`.

    Returns:
        True, or False when Kaggle has no session free now.

    Raises:
        ExpectedError: it was refused, or a source was dropped.
    """
    attempts = []

    def attempt():
        attempts.append(None)
        if len(attempts) > 1 and look(built).is_active:  # the answer was lost, not the push
            return "successfully pushed"
        return call_client("kernels", "push", "-p", str(built.folder))

    text = patiently(attempt)
    if "session count" in text:  # "Maximum batch GPU session count of 2 reached"
        return False
    dropped = [line for line in text.splitlines() if "not valid" in line]
    # Only at its very first push a kernel that continues itself does not exist as a source.
    if before.status == "absent" and all(
        "kernel sources" in line and re.findall("'(.*?)'", line) == [built.id] for line in dropped
    ):
        dropped = []
    if dropped or "successfully pushed" not in text:
        raise ExpectedError(
            f"{built.id}: {dropped[0] if dropped else _last_line(text)}; expected a push with all "
            "its sources; "
            + ("stop its session on its page, and see that the sources exist" if dropped else
               "mend what Kaggle names, then run the command again")
        )  # fmt: skip
    say(f"{time.strftime('%H:%M')} {built.kernel.name}: {_last_line(text)}")
    return True


# ----------------------------------------------------------------------------- collect and submit


def collect(built, output):
    """Downloads the outputs of finished kernels, without checkpoints and descriptors.

    Args:
        built: dict, name -> `Built`.
        output: folder; each kernel gets one in it. What is there already is not fetched again.
    """
    left_out = "|".join(re.escape(name) for name in NOT_COLLECTED)
    for name, one in built.items():
        state = look(one)
        if not state.report:
            raise ExpectedError(
                f"{one.id}: no output ({state.status}); expected a complete session; "
                "start it with: python kernels.py run"
            )
        wanted = {
            path: size for path, size in state.report["files"].items()
            if not path.startswith(NOT_COLLECTED)
        }  # fmt: skip
        if not state.is_finished:
            say(f"{one.id}: its last session is not finished; this is what there is")
        folder = Path(output, name)
        if read_report(folder / REPORT) != state.report:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".collecting-", dir=output) as temporary:
                patiently(partial(_download, one, Path(temporary), f"^(?!{left_out})", wanted))
                for path in [*wanted, REPORT]:  # the report last: it says that all is there
                    target = folder / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(Path(temporary, path), target)
        for path in wanted:
            print(folder / path)


def _download(built, folder, pattern, wanted):
    call_client(
        "kernels", "output", built.id, "-p", str(folder), "--force", "--file-pattern", pattern,
        timeout_s=7200,
    )  # fmt: skip
    for path, size in wanted.items():
        file = folder / path
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            raise NetworkError(
                f"{built.id}: {path} came with {found} bytes; expected {size}; collect again"
            )


def submit(output, competitions, message):
    """Checks the collected submissions, all of them first, and hands them in once each.

    Args:
        output: folder of `collect`.
        competitions: dict, challenge -> competition on Kaggle.
        message: description; the file's hash is added to know it by.
    """
    paths = {name: Path(output, *CHALLENGES[name][:2]) for name in competitions}
    check_submissions(paths)
    for challenge, competition in competitions.items():
        path = paths[challenge]
        words = f"{message} [{file_md5(path)[:8]}]"
        listed = ask_client("competitions", "submissions", competition, "--format", "csv")
        if any(words in row for row in csv.reader(listed.splitlines())):
            print(f"{competition}: {path} is submitted already ({words})")
            continue
        arguments = ("competitions", "submit", "-c", competition, "-f", str(path), "-m", words)
        text = call_client(*arguments, timeout_s=3600)
        if not re.search("successfully submitted", text, re.IGNORECASE):
            raise ExpectedError(
                f"{competition}: {_last_line(text)}; expected Kaggle to take {path}; "
                "see that its rules are accepted on its page, and submit again"
            )
        print(f"{competition}: {path} submitted ({words})")


def check_submissions(paths):
    """Checks submissions (dict, challenge -> path), and that they answer the same test images."""
    from landmarks import parse_image_ids
    from submissions import (
        check_retrieval_submission,
        read_recognition_submission,
        read_retrieval_submission,
    )

    ids = None
    if path := paths.get("recognition"):
        ids = parse_image_ids(list(read_recognition_submission(path)), path)
    if path := paths.get("retrieval"):
        if ids is None:
            ids = parse_image_ids(list(read_retrieval_submission(path)), path)
        check_retrieval_submission(path, ids)
    say(f"{', '.join(map(str, paths.values()))}: {len(ids):,} test images")


# ---------------------------------------------------------------------------------- command line


def positive(kind):
    """Makes an argument type: an int or float above 0."""

    def parse(text):
        with contextlib.suppress(ValueError):
            if 0 < (value := kind(text)) < 1e6:
                return value
        raise argparse.ArgumentTypeError(f"{text!r}; expected a number above 0")

    return parse


def kernel_name(text):
    """Parses the name of a kernel."""
    if text not in KERNELS:
        raise argparse.ArgumentTypeError(f"{text!r}; expected one of {', '.join(KERNELS)}")
    return text


def make_parser():
    """Makes the parser of the command line."""
    parser = CommandLine(prog="kernels.py", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    help_of = {
        "build": "write a folder for each kernel",
        "run": "push all in order, wait, collect; with --user, build first",
        "push": "push all in order, waiting only in between; or push the named ones again",
        "status": "show what Kaggle has of each kernel",
        "collect": "download outputs",
        "submit": "check the collected submissions and hand them in",
    }
    of = {name: commands.add_parser(name, help=text) for name, text in help_of.items()}
    for name, command in of.items():
        if name != "submit":
            command.add_argument(
                "--kernels", type=Path, default=Path("kernels"), help="folder of the built kernels"
            )
        if name in ("run", "collect", "submit"):
            command.add_argument(
                "--output", type=Path, default=Path("output/kaggle"), help="folder for collecting"
            )
        if name in ("push", "collect"):
            command.add_argument(
                "names", nargs="*", metavar="KERNEL", type=kernel_name, default=[],
                help=f"of {', '.join(KERNELS)}",
            )  # fmt: skip
    for name in ("build", "run"):
        _add_build_options(of[name], name == "build")
    for name in ("push", "run"):
        _add_chain_options(of[name])
    of["run"].add_argument("--submit", action="store_true", help="hand in both submissions")
    for name in ("submit", "run"):
        for challenge, (_, _, competition) in CHALLENGES.items():
            of[name].add_argument(
                f"--{challenge}-competition", default=competition, metavar="SLUG",
                help="where to submit; '' = not",
            )  # fmt: skip
        of[name].add_argument("--message", default="landmarks", help="description of submissions")
    return parser


def _add_build_options(command, is_required):
    command.add_argument("--user", required=is_required, metavar="NAME", help="owner on Kaggle")
    command.add_argument(
        "--max-hours", type=positive(float), default=11, metavar="H",
        help="time budget of a GPU session, hours; Kaggle cuts it off at 12",
    )  # fmt: skip
    for entry in ("recognition", "retrieval"):
        command.add_argument(
            f"--{entry}-args", default="", metavar="ARGS", help=f"more arguments for {entry}.py"
        )
    command.add_argument(
        "--dataset", action="append", default=[], metavar="OWNER/SLUG", help="data set to mount"
    )


def _add_chain_options(command):
    command.add_argument(
        "--poll-s", type=positive(float), default=60, metavar="S", help="seconds between two looks"
    )
    command.add_argument(
        "--gpu-sessions", type=positive(int), default=2, metavar="N", help="GPU sessions at once"
    )
    command.add_argument(
        "--max-sessions", type=positive(int), default=4, metavar="N",
        help="sessions of one kernel before giving up",
    )  # fmt: skip
    command.add_argument(
        "--any-build", action="store_true", help="keep what another build finished"
    )


def build(args):
    """Checks the options of a build and writes the kernels."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", args.user):
        raise ExpectedError(f"--user {args.user}; expected a name on Kaggle; check it")
    extra = {
        entry: parse_arguments(entry, getattr(args, f"{entry}_args"))
        for entry in ("recognition", "retrieval")
    }
    write_kernels(args.kernels, args.user, extra, args.max_hours, args.dataset)


def main(argv=None):
    """Builds, pushes, shows, collects or submits, as the module's docstring shows."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for place, word in reversed(list(enumerate(argv[:-1]))):
        if re.fullmatch("--(recognition|retrieval)-args", word):  # its value may begin with --
            argv[place : place + 2] = [f"{word}={argv[place + 1]}"]
    parser = make_parser()
    args = parser.parse_args(argv)
    is_build = args.command == "build" or (args.command == "run" and args.user)
    if not is_build and any(vars(args).get(name) for name in BUILD_OPTIONS):
        parser.error("options of a build go with --user, which builds first")
    if args.command in ("submit", "run"):
        chosen = {name: getattr(args, f"{name}_competition") for name in CHALLENGES}
        competitions = {name: slug for name, slug in chosen.items() if slug}
        if not competitions:
            parser.error("no competition to submit to; expected one or both")
    if is_build:
        build(args)
    if args.command in ("push", "run", "status", "collect"):
        built = read_built(args.kernels)
    if args.command == "status":
        print_status(built)
    if args.command in ("push", "run"):
        options = args.poll_s, args.gpu_sessions, args.max_sessions, args.any_build
        chain = Chain(built, *options)
        if args.command == "push" and args.names:
            chain.push_again(args.names)
        else:
            chain.advance(to_the_end=args.command == "run")
    if args.command in ("collect", "run"):
        names = getattr(args, "names", []) or ("recognition", "merge")
        collect({name: built[name] for name in names}, args.output)
    if args.command == "submit" or (args.command == "run" and args.submit):
        submit(args.output, competitions, args.message)


if __name__ == "__main__":
    run_command_line(main)
