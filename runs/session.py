"""Session: the one owner of a run's output, source, scratch and time.

Every file name of the output is here, and so is what an earlier session left of it: a Kaggle kernel
finds that below /kaggle/input.
"""

import contextlib
import math
import os
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from data.sources import Source
from runs import kernel
from runs.folders import hold_folder, scratch_folder
from utils import ExpectedError, Stop, copy_file, say

# The output folder, as written by recognition.py ...
CHECKPOINTS = "checkpoint"  # a folder
CHECKPOINT = f"{CHECKPOINTS}/training.npz"
PREVIOUS_CHECKPOINT = f"{CHECKPOINTS}/previous-training.npz"  # the one before, if that is damaged
MODEL = "model.keras"
HISTORY = "history.csv"
HISTORY_COLUMNS = (
    "mini_epoch", "epoch", "shard", "images", "bad_images", "loss", "accuracy", "valid_loss",
    "valid_accuracy", "learning_rate", "skipped_steps", "images_per_s", "waited_s", "seconds",
    "problem",
)  # fmt: skip
HISTORY_PICTURE = "history.png"
FEATURES = "features"  # a folder: the vectors of a frozen backbone, a file for each train shard
QUERIES = "queries.npz"  # the described test images
RECOGNITION_SUBMISSION = "recognition_submission.csv"
# ... and by retrieval.py
DESCRIPTORS = "descriptors"  # a folder: a file for each shard
EXPANDED_QUERIES = "expanded_queries.npz"  # with --expand-queries
RETRIEVAL_SUBMISSION = "retrieval_submission.csv"
NEIGHBORS_PICTURE = "neighbors.png"
# ... and by shrink.py, besides a data set in the layout of `sources`
MANIFESTS = "*/images_*.json"  # all of `manifest_name`
SHRINK_HISTORY = "shrink.csv"
SHRINK_PICTURE = "shrunk.png"
# ... and by nearest.py, which names landmarks in RECOGNITION_SUBMISSION too
NAMES = "names.npz"  # the nearest train images of every test image, and the landmark they name
DEMO_PICTURE = "demo.png"
DEMO_OUTPUT = Path("output/demo")  # where --demo writes and reads by default
DEMO_WORLD = "demo-world"  # in the scratch folder
# ... and to look at: what the runs found, and what it takes to name a photo
REPORT = "report.html"
REPORT_FACTS = "report.json"  # what is in it, so that the next script adds to it
CATEGORIES = "landmarks.csv"  # names of the model's landmarks
CALIBRATION = "calibration.json"  # below which confidence a photo probably shows no landmark
IDENTIFIED_PICTURE = "identify.png"
DEMO_PHOTOS = "photos"  # a folder: some test pictures of the demo's world

MAX_SKIPPED_SHARE = 0.02  # of the shards; more means that something else is wrong


def descriptions_name(shard):
    """Gives the name of a shard's descriptions, e.g. `descriptors/index_007.npz`."""
    return f"{DESCRIPTORS}/{shard.split}_{shard.number:03d}.npz"


def features_name(shard):
    """Gives the name of a shard's vectors, e.g. `features/train_007.npz`."""
    return f"{FEATURES}/{shard.split}_{shard.number:03d}.npz"


def manifest_name(shard):
    """Gives the name of the page beside a shrunk shard, e.g. `train/images_007.json`."""
    return shard.path.removesuffix(".tar") + ".json"


def shrunk_name(part, num_parts):
    """Gives the name of the page that says that a part is shrunk as a whole."""
    return f"shrunk-{part}-of-{num_parts}.json"


def part_name(part, num_parts):
    """Gives the name of a part's candidates; `*` for the part gives a pattern of all."""
    return f"part-{part}-of-{num_parts}.npz"


def gallery_part_name(part, num_parts):
    """Gives the name of what was found in a part of the gallery; `*` gives a pattern of all."""
    return f"gallery-part-{part}-of-{num_parts}.npz"


@dataclass(frozen=True)
class Session:
    """One run of a script."""

    output: Path  # folder of the results
    source: Source
    stop: Stop
    skips_bad_shards: bool = False  # whether a few shards that stay broken may be left out
    is_demo: bool = False  # whether the source is the miniature landmark world
    started: float = field(default_factory=time.time)  # seconds since 1970

    def path(self, name):
        """Gives the path of a file of the output."""
        return self.output / name

    def find_all(self, name):
        """Finds files of a name or pattern: that of the output first, then the newest of others."""
        own = sorted(path for path in self.output.glob(name) if path.is_file())
        return [*own, *kernel.find_inputs(name)]

    def find_parts(self, pattern):
        """Finds files of parts, e.g. `part_name("*", 6)`, one for each name, or ExpectedError."""
        # A part of the output goes before the newest of other kernels.
        found = {path.name: path for path in reversed(self.find_all(pattern))}
        if not found:
            raise ExpectedError(
                f"{self.output}: no {pattern} there; expected the files of all parts; search the "
                "parts first, or name the files"
            )
        return sorted(found.values(), key=lambda path: path.name)

    def find(self, name):
        """Finds a result here or in another kernel's output; ExpectedError, with what is there."""
        if found := self.find_all(name):
            return found[0]
        there = f" or {kernel.FOLDER / 'input'}, where there is {kernel.list_inputs()}"
        is_demo_at_hand = name == MODEL and (DEMO_OUTPUT / MODEL).is_file()
        raise ExpectedError(
            f"{name}: not in {self.output}{there if kernel.is_kernel() else ''}; expected it from "
            "recognition.py; run that first",
            setting="demo_model" if is_demo_at_hand else "missing_model",
        )

    def find_fitting(self, name, facts, load, copied=False):
        """Finds a file from here or from an earlier session, if it fits: (path, contents) or None.

        The output's own goes first, then the newest. One that is damaged is told and passed over.
        `load(path)` gives (contents, facts), or raises ExpectedError. With `copied`, that of an
        earlier session is copied here, since the next one mounts only the output of this one.
        """
        for path in self._copies(name):
            try:
                contents, found = load(path)
            except ExpectedError as error:
                say(f"{error}: not used")
                continue
            if found == facts:
                return (self._copy(path, name) if copied else path), contents
        return None

    def _copies(self, name):
        """Yields where a file is: in the output, then in others, which it may take long to walk."""
        if self.path(name).is_file():
            yield self.path(name)
        yield from kernel.find_inputs(name)

    def _copy(self, path, name):
        """Copies a file into the output, unless it is there; gives its path."""
        own = self.path(name)
        if path != own:
            say(f"{path}: copied from an earlier session")
            copy_file(path, own)
        return own

    def copy_earlier(self, name):
        """Copies what an earlier session wrote into the output, unless there is such a file."""
        if (path := next(self._copies(name), None)) is not None:
            self._copy(path, name)

    def num_skippable(self, num_shards):
        """Gives how many of so many shards may be left out as broken."""
        return math.ceil(MAX_SKIPPED_SHARE * num_shards) if self.skips_bad_shards else 0


def mute_warnings():
    """Mutes what nobody can act on: a bad image is named anyway, a letter without a glyph drawn."""
    warnings.filterwarnings("ignore", module="PIL")
    warnings.filterwarnings("ignore", "Glyph .* missing from")


@contextlib.contextmanager
def open_session(
    name, source, output, scratch, max_hours=None, skips_bad_shards=False, **of_source
):
    """Opens a `Session`; ExpectedError if a run of its name, e.g. `recognition`, has the output.

    Args:
        source: list of folders and addresses of the data set; None draws the miniature landmark
            world, serves it, and takes that.
        of_source: further arguments of `Source`.
    """
    mute_warnings()
    if os.path.realpath(output) in map(os.path.realpath, source or ()):
        raise ExpectedError(
            f"{output}: it is the source, too; expected a folder of its own for the results",
            setting="own_output",
        )
    with contextlib.ExitStack() as stack:
        stop = Stop(max_hours)
        stack.enter_context(hold_folder(output, name))
        folder = stack.enter_context(scratch_folder(scratch))
        is_demo = source is None
        if is_demo:
            from demo.start import open_world  # a folder of its own: nobody else loads it

            world = open_world(scratch / DEMO_WORLD, output / DEMO_PICTURE)
            source = [stack.enter_context(world)]
        stack.enter_context(stop)  # from here on; Ctrl-C while a world is drawn ends that at once
        source = Source(source, folder, **of_source)
        yield Session(output, source, stop, skips_bad_shards, is_demo)
