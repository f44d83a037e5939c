"""Folders of a run: the output, held against other runs, and one for what is fetched meanwhile.

The system frees a lock when its process ends, however it ends. No process is judged by its number
and the name of its machine, which two containers may share.
"""

import contextlib
import errno
import os
import shutil
import tempfile
from pathlib import Path

from runs.kernel import require_package
from utils import HALF_WRITTEN, ExpectedError, os_errors_as, stop_workers

RUNNING = ".running-"  # and the name of the run: a lock in the folder that is held
LAST_WAIT_S = 1.0  # for background work at the end of a run; a download may take longer
# For a lock: another run that looks for leftovers holds each for a moment.
PATIENCE_S = 0.5
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what such network folders answer


@contextlib.contextmanager
def hold_folder(folder, name):
    """Keeps other runs of this name out of a folder; removes the half-written files of dead ones.

    Runs of different names, e.g. `recognition` and `part-3`, share the folder. ExpectedError: it is
    held, or cannot be written to.
    """
    path = Path(folder) / f"{RUNNING}{name}"
    with contextlib.ExitStack() as stack:
        with os_errors_as(f"{path}: cannot be written", "a writable folder", "own_output"):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(_locked(path))
            except TimeoutError as error:
                raise ExpectedError(
                    f"{folder}: in use by another run; expected one run at a time in a folder; "
                    "wait for its end, or choose another folder"
                ) from error
        _remove_half_written(path)
        yield


@contextlib.contextmanager
def _locked(path, patience_s=PATIENCE_S):
    """Locks a file for the block, and removes it at the end; yields whether its folder can lock."""
    require_package("filelock", "filelock")
    from filelock import FileLock

    lock = FileLock(path)
    try:
        lock.acquire(timeout=patience_s)
    except (NotImplementedError, OSError) as error:  # better unguarded than refused
        if getattr(error, "errno", errno.ENOSYS) not in WITHOUT_LOCKS:
            raise
    try:
        yield lock.is_locked
    finally:
        with contextlib.suppress(OSError):  # Windows removes no open file
            path.unlink()
        lock.release()


def _remove_half_written(own):
    """Removes what killed runs were writing, unless another run is in the folder of this lock."""
    folder = own.parent
    with contextlib.ExitStack() as stack:
        try:
            for other in folder.glob(f"{RUNNING}*"):
                if other != own and not stack.enter_context(_locked(other, 0)):
                    return
        except OSError:  # one is locked
            return
        for depth in ("", "*/", "*/*/"):
            for leftover in folder.glob(f"{depth}{HALF_WRITTEN}*"):
                with contextlib.suppress(OSError):
                    leftover.unlink()


@contextlib.contextmanager
def scratch_folder(parent, setting="scratch"):
    """Yields a folder of this run alone below `parent`, removed at the end.

    What killed runs left there is removed first.
    """
    parent = Path(parent)
    with contextlib.ExitStack() as stack:
        with os_errors_as(f"{parent}: cannot be made", "a folder to write to", setting):
            parent.mkdir(parents=True, exist_ok=True)
            for lock in parent.glob("run-*.lock"):
                with contextlib.suppress(OSError), _locked(lock, 0) as is_locked:
                    if is_locked:
                        shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            folder = Path(tempfile.mkdtemp(prefix="run-", dir=parent))
            stack.enter_context(_locked(folder.with_suffix(".lock")))
            folder.mkdir(exist_ok=True)  # another run may have found it before it was locked
            try:
                tempfile.gettempdir()
            except OSError:  # the system has none: libraries take this one
                os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
        try:
            yield folder
        finally:
            # What still arrives would be written into the folder while it is removed, and keep it.
            stop_workers(LAST_WAIT_S)
            shutil.rmtree(folder, ignore_errors=True)
