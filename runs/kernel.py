"""What a script needs inside of a Kaggle kernel: folders, mounts, missing packages."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from utils import ExpectedError, say

# Where a kernel's folders are; the variable lets a kernel be tried out on another machine.
FOLDER = Path(os.environ.get("KAGGLE_PREFIX", "/kaggle"))
MAX_HOURS = 11.0  # a kernel is cut after 12 hours, and its output lost
MAX_OUTPUT_GB = 20.0  # what Kaggle keeps of a session


def is_kernel():
    """Tells whether this process runs inside of a Kaggle kernel."""
    return "KAGGLE_KERNEL_RUN_TYPE" in os.environ


def find_inputs(name):
    """Lists files of other kernels and data sets, wherever Kaggle mounts them, newest first.

    The name is a path below a kernel's output, perhaps with wildcards. Empty outside Kaggle.
    """
    # The mounts moved in 2026; the last pattern finds any other place, but may have to walk far.
    for mounts in (("notebooks/*/*", "datasets/*/*", "*"), ("**",)) if is_kernel() else ():
        matches = {path for mount in mounts for path in (FOLDER / "input").glob(f"{mount}/{name}")}
        if found := sorted(path for path in matches if path.is_file()):
            return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
    return []


def list_inputs():
    """Lists for a message what is mounted."""
    there = sorted(str(path) for path in (FOLDER / "input").glob("*/*/*"))
    return ", ".join(there[:8]) or "nothing"


def find_data_sets():
    """Lists the folders of mounted data sets; ExpectedError, with what is there, if none."""
    folders = sorted({path.parent.parent for path in find_inputs("metadata/*.csv")})
    if not folders:
        raise ExpectedError(
            f"{FOLDER / 'input'}: no data set among {list_inputs()}; expected one with metadata/ "
            "and its shards; add it as an input of the kernel",
            setting="source",
        )
    return folders


def require_package(module, package):
    """Raises ExpectedError unless a module can be imported; in a kernel it is installed first."""
    if importlib.util.find_spec(module):
        return
    if is_kernel():
        say(f"installing {package}, which this image does not have")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        wheels = (FOLDER / "input").glob(f"**/{package.replace('-', '_')}-*.whl")
        if folders := sorted({wheel.parent for wheel in wheels}):  # the internet may be off
            command += ["--no-index", *(f"--find-links={folder}" for folder in folders)]
        command += [package]
        installed = subprocess.run(command, check=False).returncode == 0
        importlib.invalidate_caches()
        if installed and importlib.util.find_spec(module):
            return
    raise ExpectedError(
        f"{module} is missing; expected the package {package}; pip install {package} (a Kaggle "
        "kernel does so by itself when its internet is on, or its wheel is in a data set)"
    )
