"""What every run has: an output folder, a source of shards, scratch space, a time to stop."""

import argparse
import contextlib
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import demo
from landmarks import CVDF_URL, Source
from utils import KAGGLE, ExpectedError, Stop, on_kaggle, scratch_folder

KAGGLE_HOURS = 11.0  # a kernel is cut after 12 hours, and its output lost
MAX_BATCH_SIZE = 8192  # 0.9 GB at 192 pixels
MAX_SKIPPED_SHARE = 0.02  # of the shards; more means that something else is wrong


@dataclass(frozen=True)
class Session:
    """One run of a script.

    Attributes:
        output: folder of the results.
        source: `landmarks.Source`.
        stop: `utils.Stop`.
    """

    output: Path
    source: Source
    stop: Stop


def number(kind, lowest, highest=math.inf):
    """Makes an argument type: a finite int or float from `lowest` to `highest`."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (lowest <= value <= highest and value < math.inf):
            upwards = "up" if highest == math.inf else f"to {highest}"
            raise argparse.ArgumentTypeError(f"{text!r}; expected a number from {lowest} {upwards}")
        return value

    return parse


def add_session_options(parser):
    """Adds the options that every script has to its command line."""
    parser.add_argument(
        "--source", default=CVDF_URL, help="web address or folder in the CVDF layout"
    )
    parser.add_argument(
        "--demo",
        action="store_true",
        help="draw the miniature landmark world, serve it on this machine and use it as the source",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=KAGGLE / "working" if on_kaggle() else Path("output"),
        help="folder for the results, which are continued if they are there",
    )
    parser.add_argument(
        "--scratch",
        type=Path,
        default=KAGGLE / "tmp" if on_kaggle() else None,
        help="folder for downloads, at most two shards at a time (default: <output>/scratch)",
    )
    parser.add_argument(
        "--max-hours",
        type=float,
        metavar="H",
        default=KAGGLE_HOURS if on_kaggle() else None,
        help="stop in good order after H hours",
    )
    parser.add_argument(
        "--skip-bad-shards",
        action="store_true",
        help=f"leave out shards that stay broken, up to {MAX_SKIPPED_SHARE:.0%}% (rounded up)",
    )


def find_inputs(name):
    """Finds files of other kernels and data sets below /kaggle/input, wherever Kaggle mounts them.

    Args:
        name: path below a kernel's output, e.g. `checkpoint/training.npz`; may have wildcards.

    Returns:
        list of paths, newest first; empty outside Kaggle.
    """
    if not on_kaggle():
        return []
    # The mounts moved in 2026; the last pattern finds any other place, but may have to walk far.
    for mounts in (("notebooks/*/*", "datasets/*/*", "*"), ("**",)):
        matches = {path for mount in mounts for path in (KAGGLE / "input").glob(f"{mount}/{name}")}
        found = sorted(path for path in matches if path.is_file())
        if found:
            return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
    return []


def find_result(output, name):
    """Finds a result in the output folder, or in that of another kernel.

    Raises:
        ExpectedError: it is nowhere; the message lists what is there.
    """
    found = [output / name] if (output / name).is_file() else find_inputs(name)
    if found:
        return found[0]
    places = f"{output}"
    if on_kaggle():
        there = sorted(str(path) for path in (KAGGLE / "input").glob("*/*/*"))[:8]
        places += f" or {KAGGLE / 'input'}, where there is {', '.join(there) or 'nothing'}"
    raise ExpectedError(
        f"{name}: not in {places}; expected it from recognition.py; run that first, or name the "
        "file with --model"
    )


def num_skippable(args, shards):
    """Gives how many of these shards may be left out as broken."""
    return math.ceil(MAX_SKIPPED_SHARE * len(shards)) if args.skip_bad_shards else 0


def parse_session(parser, argv):
    """Parses the command line; with --demo, the demo's settings become the defaults."""
    args = _parse(parser, argv)
    if args.demo:
        known = vars(args).keys()
        parser.set_defaults(**{key: demo.DEFAULTS[key] for key in demo.DEFAULTS.keys() & known})
        args = _parse(parser, argv)
    if args.scratch is None:
        args.scratch = args.output / "scratch"
    if args.max_hours is not None and not args.max_hours > 0:
        parser.error(f"argument --max-hours: {args.max_hours} hours; expected more than 0")
    return args


def _parse(parser, argv):
    """Parses; files may follow options too (argparse's own way to allow that spoils --help)."""
    args, rest = parser.parse_known_args(argv)
    if rest and ("files" not in args or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.files += map(Path, rest)
    return args


@contextlib.contextmanager
def open_session(args):
    """Opens the session of a parsed command line; yields a `Session`."""
    # What Pillow warns of is a bad image, which is counted and named anyway.
    warnings.filterwarnings("ignore", module="PIL")
    with Stop(args.max_hours) as stop, scratch_folder(args.scratch) as scratch:
        if not args.demo:
            yield Session(args.output, Source(args.source, scratch), stop)
            return
        world = demo.build_world(args.scratch / "demo-world")
        if not (args.output / demo.OVERVIEW).exists():
            demo.draw_overview(world, args.output / demo.OVERVIEW)
        with demo.serve(world) as address:
            yield Session(args.output, Source(address, scratch), stop)
