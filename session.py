"""What every run has: an output folder, a source of shards, scratch space, a time to stop."""

import contextlib
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

from on_kaggle import kernel
from sources import Source
from utils import ExpectedError, Stop, scratch_folder

MAX_BATCH_SIZE = 8192  # 0.9 GB at 192 pixels
MAX_SKIPPED_SHARE = 0.02  # of the shards; more means that something else is wrong


@dataclass(frozen=True)
class Session:
    """One run of a script.

    Attributes:
        output: folder of the results.
        source: `sources.Source`.
        stop: `utils.Stop`.
    """

    output: Path
    source: Source
    stop: Stop


def find_result(output, name):
    """Finds a result in the output folder, or in that of another kernel.

    Raises:
        ExpectedError: it is nowhere; the message lists what is there.
    """
    found = [output / name] if (output / name).is_file() else kernel.find_inputs(name)
    if found:
        return found[0]
    places = f"{output}"
    if kernel.is_kernel():
        there = sorted(str(path) for path in (kernel.FOLDER / "input").glob("*/*/*"))[:8]
        places += f" or {kernel.FOLDER / 'input'}, where there is {', '.join(there) or 'nothing'}"
    raise ExpectedError(
        f"{name}: not in {places}; expected it from recognition.py; run that first, or name the "
        "file with --model"
    )


def num_skippable(args, shards):
    """Gives how many of these shards may be left out as broken."""
    return math.ceil(MAX_SKIPPED_SHARE * len(shards)) if args.skip_bad_shards else 0


@contextlib.contextmanager
def open_session(args):
    """Opens the session of a parsed command line; yields a `Session`."""
    # What Pillow warns of is a bad image, which is counted and named anyway.
    warnings.filterwarnings("ignore", module="PIL")
    with Stop(args.max_hours) as stop, scratch_folder(args.scratch) as scratch:
        if not args.demo:
            yield Session(args.output, Source(args.source, scratch), stop)
            return
        import demo

        with demo.open_world(args.scratch / "demo-world", args.output / "demo.png") as address:
            yield Session(args.output, Source(address, scratch), stop)
