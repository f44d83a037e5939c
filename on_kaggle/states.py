"""What Kaggle says of the kernels that were built: the states of their last sessions."""

import contextlib
import json
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from on_kaggle.client import ClientError, NetworkError, ask_client, last_line
from on_kaggle.packing import CHAIN_FILE, REPORT, read_chain
from on_kaggle.plan import Kernel
from utils import ExpectedError, say


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
