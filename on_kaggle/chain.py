"""Kernel states on Kaggle, via the official client: push in order, collect, submit."""

import contextlib
import csv
import json
import os
import re
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from landmarks import parse_image_ids
from on_kaggle.client import (
    ClientError,
    NetworkError,
    ask_client,
    call_client,
    last_line,
    patiently,
)
from on_kaggle.packing import CHAIN_FILE, REPORT, Kernel, read_chain
from session import (
    CHECKPOINTS,
    DESCRIPTORS,
    QUERIES,
    RECOGNITION_SUBMISSION,
    RETRIEVAL_SUBMISSION,
)
from submissions import (
    check_retrieval_submission,
    read_recognition_submission,
    read_retrieval_submission,
)
from utils import ExpectedError, file_md5, say

CHALLENGES = {  # challenge -> (its submission, the competition of 2019)
    "recognition": (RECOGNITION_SUBMISSION, "landmark-recognition-2019"),
    "retrieval": (RETRIEVAL_SUBMISSION, "landmark-retrieval-2019"),
}
NOT_COLLECTED = (f"{CHECKPOINTS}/", f"{DESCRIPTORS}/", QUERIES)
POLL_S = 60  # between two looks at Kaggle
GPU_SESSIONS = 2  # at once; Kaggle refuses more
MAX_SESSIONS = 4  # of one kernel in a run
SETTLING_LOOKS = 5  # Kaggle may tell of the session before for a while

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
    path, found = Path(folder, CHAIN_FILE), {}
    try:
        for name, kernel in read_chain(folder).items():
            path = Path(folder, name, "kernel-metadata.json")
            metadata = json.loads(path.read_text(encoding="utf-8"))
            found[name] = Built(kernel, path.parent, metadata["id"], metadata["build"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExpectedError(
            f"{path}: {getattr(error, 'strerror', None) or 'not as build wrote it'}; expected "
            "built kernels; write them with: python kernels.py build --user NAME"
        ) from error
    return found


def find_submitters(built):
    """Gives which kernels write a challenge's submission: dict, challenge -> names in order.

    The last one counts: with a gallery, that of recognition is the head's alone.
    """
    return {
        challenge: [name for name, one in built.items() if one.kernel.result == result]
        for challenge, (result, _) in CHALLENGES.items()
    }


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
            f"kaggle kernels status {built.id}: {last_line(text)}; expected its status; renew the "
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
    message = told[-1] if told else reason[1] if reason else last_line(log) if log else "no log"
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
        any_build: take what other builds finished.
    """

    def __init__(self, built, any_build=False):
        self.built, self.any_build = built, any_build
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
            time.sleep(POLL_S)

    def push_again(self, names):
        """Pushes these kernels whatever the state of their last sessions."""
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
                time.sleep(POLL_S)
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
        if state.status != "COMPLETE":
            self._require_pushable(name, is_other_build, again)
            return False
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
                f"{built.build}, which is in {built.folder}",
                setting="any_build",
            )
        return True

    def _require_pushable(self, name, is_other_build, again):
        """Raises ExpectedError unless a kernel that is not complete may be pushed."""
        built, state = self.built[name], self.states[name]
        if state.status == "absent":
            if self.num_pushes[name]:
                raise ExpectedError(
                    f"{built.id}: it was pushed, but Kaggle does not know it; expected it on "
                    "kaggle.com under this owner",
                    setting="user",
                )
        elif is_other_build:
            say(f"{name}: {state.status} was of another build; pushing this one")
        else:
            raise ExpectedError(
                f"{built.id}: {state.status} ({state.message or 'no reason given'}); expected it "
                f"to complete; see `kaggle kernels logs {built.id}`; mend it and build, or {again}"
            )

    def try_push(self, name):
        """Pushes a kernel if a session is free for it; tells whether it did."""
        built, before = self.built[name], self.states[name]
        active = [other for other, state in self.states.items() if state.is_active]
        num_gpus = sum(self.built[other].kernel.has_gpu for other in active)
        if self.is_full or (built.kernel.has_gpu and num_gpus >= GPU_SESSIONS):
            return False
        reason = before.report.get("error", "")
        if self.num_pushes[name] >= MAX_SESSIONS:
            raise ExpectedError(
                f"{built.id}: not finished after {MAX_SESSIONS} sessions"
                f"{reason and f', the last: {reason}'}; expected fewer; see "
                f"`kaggle kernels logs {built.id}`, and run again to go on"
            )
        if not push(built, before):
            if not self.was_full:
                say(f"{name}: Kaggle has no session free; waiting")
            self.is_full = self.was_full = True
            return False
        if reason:
            say(f"{name}: continued after a session that failed: {reason}")
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
            f"{built.id}: {dropped[0] if dropped else last_line(text)}; expected a push with all "
            "its sources; "
            + ("stop its session on its page, and see that the sources exist" if dropped else
               "mend what Kaggle names, then run the command again")
        )  # fmt: skip
    say(f"{time.strftime('%H:%M')} {built.kernel.name}: {last_line(text)}")
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


def submit(built, output, challenges):
    """Checks collected submissions, all of them first, and hands them in once each.

    Args:
        built: dict, name -> `Built`, the whole chain.
        output: folder of `collect`.
        challenges: list of keys of `CHALLENGES`.
    """
    submitters = find_submitters(built)
    paths = {name: Path(output, submitters[name][-1], CHALLENGES[name][0]) for name in challenges}
    check_submissions(paths)
    for name, path in paths.items():
        competition = CHALLENGES[name][1]
        words = f"landmarks {file_md5(path)[:8]}"  # to know the file by
        listed = ask_client("competitions", "submissions", competition, "--format", "csv")
        if any(words in row for row in csv.reader(listed.splitlines())):
            print(f"{competition}: {path} is submitted already ({words})")
            continue
        arguments = ("competitions", "submit", "-c", competition, "-f", str(path), "-m", words)
        text = call_client(*arguments, timeout_s=3600)
        if "successfully submitted" not in text.lower():
            raise ExpectedError(
                f"{competition}: {last_line(text)}; expected Kaggle to take {path}; "
                "see that its rules are accepted on its page, and submit again"
            )
        print(f"{competition}: {path} submitted ({words})")


def check_submissions(paths):
    """Checks submissions (dict, challenge -> path), and that they answer the same test images."""
    ids = None
    if path := paths.get("recognition"):
        ids = parse_image_ids(list(read_recognition_submission(path)), path)
    if path := paths.get("retrieval"):
        if ids is None:
            ids = parse_image_ids(list(read_retrieval_submission(path)), path)
        check_retrieval_submission(path, ids)
    say(f"{', '.join(map(str, paths.values()))}: {len(ids):,} test images")
