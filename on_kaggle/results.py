"""Results of finished kernels: downloaded, checked, handed in."""

import os
from functools import partial
from pathlib import Path

from data import submissions
from data.landmarks import parse_image_ids
from on_kaggle.client import NetworkError, ask_once, download, patiently, printable
from on_kaggle.packing import REPORT
from on_kaggle.states import look, read_report
from runs import session
from runs.folders import scratch_folder
from utils import ExpectedError, atomic_write, file_md5, say

CHALLENGES = {  # challenge -> (its submission, the competition of 2019)
    "recognition": (session.RECOGNITION_SUBMISSION, "landmark-recognition-2019"),
    "retrieval": (session.RETRIEVAL_SUBMISSION, "landmark-retrieval-2019"),
}
NOT_COLLECTED = (f"{session.CHECKPOINTS}/", f"{session.DESCRIPTORS}/", session.QUERIES)


def find_submitters(built):
    """Lists by challenge the kernels that write its submission; the last one's counts."""
    return {
        challenge: [name for name, one in built.items() if one.kernel.result == result]
        for challenge, (result, _) in CHALLENGES.items()
    }


def collect(built, output):
    """Downloads outputs, without checkpoints and descriptors, where they are not there already."""
    for name, one in built.items():
        state, folder = look(one), Path(output, name)
        if not state.report:
            raise ExpectedError(
                f"{one.id}: no output ({state.status}); expected a complete session with its "
                f"{REPORT}; start it with: python kernels.py run"
            )
        wanted = {
            path: size for path, size in state.report["files"].items()
            if path != REPORT and not path.startswith(NOT_COLLECTED)
        }  # fmt: skip
        for path in wanted:  # who made it is not known, nor what lies here
            if not path.isprintable() or folder.resolve() not in (folder / path).resolve().parents:
                raise ExpectedError(
                    f"{one.id}: its {REPORT} names {path!r}; expected files below {folder}, "
                    "without links; see its page"
                )
        if not state.is_finished:
            say(f"{one.id}: its last session is not finished; this is what there is")
        if read_report(folder / REPORT) != state.report or _sizes_of(folder, wanted) != wanted:
            _fetch(one, wanted, folder)
        for path in wanted:
            print(folder / path)


def _fetch(built, wanted, folder):
    """Downloads files (dict, path -> size) of a kernel and its report into a folder."""

    def attempt():
        download(built.id, temporary, [*wanted, REPORT])
        for path, size in _sizes_of(temporary, wanted).items():
            if size != wanted[path]:
                told = f"{path} came with {size} bytes; expected {wanted[path]}; collect again"
                raise NetworkError(f"{built.id}: {told}")

    with scratch_folder(folder.parent / "scratch", "output") as temporary:
        patiently(attempt)
        for path in [*wanted, REPORT]:  # last what says that all is there
            with atomic_write(folder / path) as target:
                os.replace(temporary / path, target)


def _sizes_of(folder, paths):
    """Gives the sizes of files: dict, path -> bytes, or None where it is not there."""
    files = {path: folder / path for path in paths}
    are_there = {path: file.is_file() and not file.is_symlink() for path, file in files.items()}
    return {path: files[path].stat().st_size if are_there[path] else None for path in paths}


def submit(built, output, challenges):
    """Checks the submissions that `collect` has in its output, and hands them in once each."""
    submitters = find_submitters(built)
    paths = {name: Path(output, submitters[name][-1], CHALLENGES[name][0]) for name in challenges}
    ids = None
    if path := paths.get("recognition"):
        ids = parse_image_ids(list(submissions.read_recognition_submission(path)), path)
    if path := paths.get("retrieval"):  # which must answer the same test images
        if ids is None:
            ids = parse_image_ids(list(submissions.read_retrieval_submission(path)), path)
        submissions.check_retrieval_submission(path, ids)
    say(f"{', '.join(map(str, paths.values()))}: {len(ids):,} test images")
    for name, path in paths.items():
        told = patiently(partial(_submit_once, CHALLENGES[name][1], path))
        print(f"{CHALLENGES[name][1]}: {path} {told}")


def _submit_once(competition, path):
    """Hands a file in unless Kaggle has it: after a lost answer, too. Says which it was."""
    words = f"landmarks {file_md5(path)[:8]}"  # to know the file by
    listed = ask_once("competition_submissions", competition) or []
    if any(words in (one.description or "") for one in listed):
        return f"is submitted already ({words})"
    options = {"quiet": True, "timeout_s": 3600}
    answer = ask_once("competition_submit", str(path), words, competition, **options)
    if "successfully submitted" not in answer.message.lower():
        raise ExpectedError(
            f"{competition}: {printable(answer.message)}; expected Kaggle to take {path}; "
            "see that its rules are accepted on its page, and submit again"
        )
    return f"submitted ({words})"
