"""What the report says of any run: where, with what, how long; its history and pictures."""

import base64
import contextlib
import importlib.metadata
import io
import os
import platform
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data.submissions import USAGES
from report.neighbors import find_thumbnail
from runs.session import HISTORY, HISTORY_COLUMNS

PACKAGES = ("tensorflow", "jax", "torch", "keras", "keras-hub", "numpy", "pandas", "pillow",
            "faiss-cpu", "matplotlib")  # fmt: skip
SIDE = 240  # pixels, the longest side of a picture in the page, which shows them at 160 or more
JPEG_QUALITY = 72
NUM_READERS = 8  # pictures fetched at a time


def describe_run(session):
    """Tells where and when a run took place, and with which versions."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "source": "the miniature landmark world" if session.is_demo else str(session.source),
        "started": time.strftime("%Y-%m-%d %H:%M", time.localtime(session.started)),
        "seconds": round(time.time() - session.started, 1),
        "machine": describe_machine(),
        "versions": {"Python": platform.python_version()} | versions,
    }


def describe_machine():
    """Names processor, memory and GPUs, as far as the system tells."""
    words = [f"{os.cpu_count()} cores"]
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        if name := re.search(r"^model name\s*: *(.+)", text, re.MULTILINE):
            words[0] += f" of {name[1].strip()}"
    with contextlib.suppress(OSError, ValueError, AttributeError):  # Windows has no sysconf
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        words.append(f"{size / 1e9:.0f} GB of memory")
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        told = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        words += told.stdout.split("\n")[:8]
    return ", ".join(filter(None, words))


def read_history(session):
    """Reads history.csv: dict, column -> list of numbers or None; empty where there is none."""
    path = session.path(HISTORY)
    if not path.is_file():
        return {}
    import pandas as pd  # slow to import

    table = pd.read_csv(path).astype(object)
    if not set(HISTORY_COLUMNS) <= set(table):
        return {}
    return table.where(table.notna(), None)[list(HISTORY_COLUMNS)].to_dict("list")


def count_usages(solution):
    """Counts the rows of a ground truth by usage: dict, usage -> [rows, those with an answer]."""
    counts = {usage: [0, 0] for usage in USAGES}
    for answers, usage in solution.values():
        counts[usage][0] += 1
        counts[usage][1] += bool(answers)
    return counts


def encode_pictures(source, pictures):
    """Fetches `neighbors.Picture`s as small JPEGs: dict, image id -> base64, without what fails."""

    def encode(picture):
        image, buffer = find_thumbnail(source, picture, "not in the report"), io.BytesIO()
        if image is not None:
            image = image.copy()
            image.thumbnail((SIDE, SIDE))
            image.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
        return picture.image_id, base64.b64encode(buffer.getvalue()).decode()

    with ThreadPoolExecutor(NUM_READERS) as pool:
        return {image_id: text for image_id, text in pool.map(encode, pictures) if text}
