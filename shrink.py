"""Makes a data set small once, so that every later run reads it at the speed of the GPU.

    python shrink.py --demo                       the miniature landmark world, in seconds
    python shrink.py --labels clean               Google Landmarks v2: its clean train images,
                                                  the index and the test set, in output/shrunk
    python shrink.py --landmarks towers.txt       a slice: the train images of these landmarks
    python shrink.py --part 0 --parts 6           the first of six parts, for a disk of its own
    python recognition.py --source output/shrunk  trains on it

Each shard is downloaded, its pictures are made small and written into a tar of the same name. Run
the same command again and it continues where it stopped.
"""

import functools
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from cluster.dask_workers import open_workers
from data.sources import SPLITS, TRAIN_CLEAN_CSV, share_of
from runs import kernel
from runs.command_line import (
    CommandLine,
    add_session_options,
    any_path,
    number,
    parse_session,
    run_command_line,
    scheduler_address,
    session_settings,
)
from runs.session import SHRINK_PICTURE, open_session, shrunk_name
from shrinking.manifests import require_same_settings, write_summary
from utils import say


def make_parser():
    parser = CommandLine(__doc__, prog="shrink.py", usage="%(prog)s [options]")
    add_session_options(parser)
    if not kernel.is_kernel():
        parser.set_defaults(output=Path("output/shrunk"))
    add = parser.add_argument_group("pictures").add_argument
    # fmt: off
    add("--pixels", type=number(int, 32, 4096), default=256, metavar="N",
        help="shorter side of a picture; none is enlarged")
    add("--quality", type=number(int, 1, 95), default=85, metavar="Q", help="of the JPEGs")
    add("--labels", choices=("full", "clean"), default="full",
        help="train images to keep: all, or those of train_clean.csv")
    add("--split", choices=(*SPLITS, "all"), default="all", help="what of the data set to keep")
    add("--images", type=any_path, metavar="FILE",
        help="keep just the images of this CSV (column id), of any split")
    add("--landmarks", type=any_path, metavar="FILE",
        help="keep just the train images of these landmarks: ids or names, * for any letters, one "
        "a line")
    add = parser.add_argument_group("share").add_argument
    add("--part", type=number(int, 0), default=0, metavar="K", help="the part to make, from 0")
    add("--parts", type=number(int, 1), default=1, metavar="N", help="parts of the data set")
    add("--scheduler", type=scheduler_address, metavar="ADDRESS",
        help="shrink shards on the workers of this Dask scheduler, or of local:N")
    add("--max-gb", type=number(float, 1e-6), metavar="GB",
        default=kernel.MAX_OUTPUT_GB if kernel.is_kernel() else None,
        help="stop where the output would become larger")
    add("--copy-earlier", action="store_true",
        help="copy what earlier sessions made into the output, which replaces theirs")
    # fmt: on
    return parser


def parse_arguments(argv):
    return parse_session(make_parser(), argv)


def main(argv=None):
    """Makes one part of a data set small, as the module's docstring shows."""
    args = parse_arguments(argv)
    name = "shrink" if args.parts == 1 else f"shrink-{args.part}"
    with open_session(name, **session_settings(args)) as session:
        shrink(session, args)


def shrink(session, args):
    """Makes the shards of one part small and copies the tables; writes a page that says so."""
    from shrinking import slices, small_shards  # load pandas: not before arguments are valid

    source = session.source
    splits = SPLITS if args.split == "all" else (args.split,)
    files = tuple(one and one.resolve() for one in (args.images, args.landmarks))
    how = (args.pixels, args.quality, splits, args.labels, *files)
    settings = settings_of(source, *how)
    kept_splits = [one for one in splits if one in settings.kept or not settings.is_slice]
    shards = []  # its share of each split, so that parts come out equally large
    # Of none at all the first one's absence is told.
    for split in [one for one in kept_splits if source.count_shards(one)] or kept_splits[:1]:
        shards += share_of(source.select_shards(split), args.part, args.parts)
    max_bytes = 1e9 * (args.max_gb or math.inf)
    share = small_shards.Share(shards, args.parts, max_bytes, args.copy_earlier)
    say(
        f"{source}: {len(shards)} shards, {args.pixels} pixels, quality {args.quality}, "
        f"{args.labels} labels"
    )
    require_same_settings(session, kept_splits, settings.page_of)  # before a table is replaced
    kept = settings.kept if settings.is_slice else None
    slices.copy_tables(session, kept_splits, args.labels == "clean", kept)
    run = functools.partial(_shrink_on_workers, session, args, how) if args.scheduler else None
    pages = small_shards.shrink(session, settings, share, run)
    if share.num_parts == 1:
        small_shards.require_found(source, settings, pages)
    path = session.path(shrunk_name(args.part, args.parts))
    say(write_summary(path, shards, pages))
    print(path)
    if session.path(SHRINK_PICTURE).exists():
        print(session.path(SHRINK_PICTURE))


@functools.lru_cache(maxsize=1)
def settings_of(source, pixels, quality, splits, labels, images, landmarks):
    """Gives `small_shards.Settings`, once for all jobs of a worker; ids are read for them."""
    from data.landmarks import read_train_labels
    from shrinking import slices, small_shards

    kept, is_slice = {}, bool(images or landmarks)
    if is_slice:
        kept = slices.choose_images(source, splits, labels, images, landmarks)
    elif labels == "clean" and "train" in splits:
        kept["train"] = read_train_labels(source.fetch(TRAIN_CLEAN_CSV), 1)[1].image_ids
    return small_shards.Settings(pixels, quality, kept, is_slice)


def _shrink_on_workers(session, args, how, shards):
    """Yields as `small_shards.shrink_in_order` does, shard by shard as workers end them."""
    import shrink  # by this name, the workers find the function below

    with open_workers(args.scheduler, session, args.scratch) as workers:
        jobs = [(how, shard) for shard in shards]
        for _, result in workers.as_done(shrink.shrink_job, jobs, "shards shrunk"):
            yield result


def shrink_job(session, job):
    """Shrinks one shard, in a worker; the job is (what `settings_of` takes, `Shard`)."""
    from shrinking import small_shards

    how, shard = job
    settings = settings_of(session.source, *how)
    (result,) = small_shards.shrink_in_order(session, settings, [shard])
    return result


if __name__ == "__main__":
    run_command_line(main)
