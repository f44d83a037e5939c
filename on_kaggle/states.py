"""What Kaggle says of the kernels that were built: the states of their last sessions."""

import contextlib
import json
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from on_kaggle.client import ClientError, ask_once, download, patiently, printable
from on_kaggle.packing import CHAIN_FILE, REPORT
from on_kaggle.plan import Kernel
from utils import ExpectedError, say

MALFORMED = (AttributeError, KeyError, RecursionError, TypeError, ValueError)  # JSON, of anybody


@dataclass(frozen=True)
class Built:
    """A built kernel: its `Kernel`, folder, `owner/slug`, and what tells builds apart."""

    kernel: Kernel
    folder: Path
    id: str
    build: str


@dataclass(frozen=True)
class State:
    """What Kaggle says of a kernel's last session."""

    status: str  # "absent", "QUEUED", "RUNNING", "COMPLETE", "ERROR" and so on
    message: str = ""  # why it failed, if it did
    # the session's kernel.json; empty where there is none
    report: dict = field(default_factory=dict)
    build: str = ""  # which one it was, as far as known

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
        for row in json.loads(path.read_text(encoding="utf-8")):
            kernel = Kernel(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()})
            path = Path(folder, kernel.name, "kernel-metadata.json")
            metadata = json.loads(path.read_text(encoding="utf-8"))
            found[kernel.name] = Built(kernel, path.parent, metadata["id"], metadata["build"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExpectedError(
            f"{path}: {getattr(error, 'strerror', None) or 'not as build wrote it'}; expected "
            "built kernels; write them with: python kernels.py build --user NAME"
        ) from error
    return found


def look(built):
    """Asks Kaggle for a kernel's `State`."""
    try:
        answer = patiently(lambda: ask_once("kernels_status", built.id))
        status = answer.status.name
    except ClientError as error:
        if error.status not in (401, 403, 404):  # Kaggle may deny access to what is not there
            raise
        status = "NEW_SCRIPT"
    if status == "NEW_SCRIPT":
        return State("absent")
    if status not in ("COMPLETE", "ERROR"):
        return State(status)
    with tempfile.TemporaryDirectory() as folder:
        patiently(lambda: download(built.id, folder, [REPORT]))
        report, log = read_report(Path(folder, REPORT)), ""
        with contextlib.suppress(OSError):
            log = Path(folder, f"{built.kernel.slug}.log").read_text("utf-8", errors="replace")
        with contextlib.suppress(*MALFORMED):
            log = "".join(line["data"] for line in json.loads(log))
    if status == "COMPLETE":
        return State(status, report=report, build=report.get("build", ""))
    ran = re.search(r"\bbuild ([0-9a-f]{12}): ", log)
    told = re.findall(r"^error: (.*)", log, re.MULTILINE)
    last_line = log.strip().rpartition("\n")[2]
    message = told[-1] if told else answer.failure_message or last_line or "no log"
    return State(status, printable(message), build=ran[1] if ran else "")


def read_report(path):
    """Reads a kernel.json: dict, empty unless one of our kernels may have written it."""
    with contextlib.suppress(OSError, *MALFORMED):
        report = json.loads(path.read_text(encoding="utf-8"))
        if (
            re.fullmatch("[0-9a-f]{12}", report["build"])
            and isinstance(report["ended"] - report["started"], (int, float))
            and isinstance(report["finished"], bool)
            and isinstance(report["error"], str)
            and all(isinstance(size, int) for size in report["files"].values())
        ):
            return report
    return {}


def print_status(built):
    """Prints a table: kernel, status of its last session, its build, its outputs."""
    print(f"{'kernel':<12} {'status':<20} {'build':<14} outputs")
    for name, one in built.items():
        state = look(one)
        status = "UNFINISHED" if state.report.get("finished") is False else state.status
        mark = " *" if state.build == one.build else ""
        files = state.report.get("files", {}).items()
        outputs = [f"{path} {size / 1e6:.1f} MB" for path, size in files if "/" not in path]
        told = state.message or printable(", ".join(outputs))
        print(f"{name:<12} {status:<20} {state.build + mark:<14} {told}".rstrip())
    say(f"* = as built here; on Kaggle: https://www.kaggle.com/{built['merge'].id.split('/')[0]}")
