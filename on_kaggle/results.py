"""Results of finished kernels: downloaded, checked, handed in."""

import csv
import os
import re
import tempfile
from functools import partial
from pathlib import Path

from data.landmarks import parse_image_ids
from data.submissions import (
    check_retrieval_submission,
    read_recognition_submission,
    read_retrieval_submission,
)
from on_kaggle.client import NetworkError, ask_client, call_client, last_line, patiently
from on_kaggle.packing import REPORT
from on_kaggle.states import look, read_report
from runs.session import (
    CHECKPOINTS,
    DESCRIPTORS,
    QUERIES,
    RECOGNITION_SUBMISSION,
    RETRIEVAL_SUBMISSION,
)
from utils import ExpectedError, file_md5, say

CHALLENGES = {  # challenge -> (its submission, the competition of 2019)
    "recognition": (RECOGNITION_SUBMISSION, "landmark-recognition-2019"),
    "retrieval": (RETRIEVAL_SUBMISSION, "landmark-retrieval-2019"),
}
NOT_COLLECTED = (f"{CHECKPOINTS}/", f"{DESCRIPTORS}/", QUERIES)


def find_submitters(built):
    """Gives which kernels write a challenge's submission: dict, challenge -> names in order.

    The last one counts: with a gallery, that of recognition is the head's alone.
    """
    return {
        challenge: [name for name, one in built.items() if one.kernel.result == result]
        for challenge, (result, _) in CHALLENGES.items()
    }


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
