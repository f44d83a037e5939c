"""Shards with small pictures in the same layout: shard after shard, each whole or not there.

A small page beside each tar says what it was made from and how; a shard with a right page is done,
wherever an earlier session left it.
"""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from data.arrays import digest_of
from data.images import BadImageError, decode_whole, shrink_image
from data.landmarks import format_image_id, read_train_labels
from data.sources import TABLES, TRAIN_CLEAN_CSV, TRAIN_CSV, share_of
from data.tables import read_table, write_table
from data.tars import add_image, list_members, open_new, read_member
from generators import (
    NUM_CORES,
    ShardEnd,
    check_bad_images,
    stream_shards,
    tell_problems,
)
from runs.session import SHRINK_HISTORY, SHRINK_PICTURE, manifest_name
from shrinking.manifests import find_done, write_page
from utils import (
    ExpectedError,
    MissingFileError,
    StoppedError,
    atomic_write,
    copy_file,
    file_md5,
    format_duration,
    map_ahead,
    require_free_space,
    say,
)

NUM_AHEAD = 4 * NUM_CORES  # pictures that are worked on or wait for their place in the tar
NUM_QUESTIONS = 8  # at once, for the sizes of shards
NUM_PAIRS = 6  # pictures in shrunk.png
ROOM_TO_SPARE = 0.95  # of what is allowed, when a number of parts is proposed
HISTORY_COLUMNS = (
    "shard", "images", "bad_images", "bytes_before", "bytes_after", "images_per_s", "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """How pictures are made small, and which.

    Attributes:
        pixels: of the shorter side, which is never enlarged.
        quality: of the JPEG.
        clean_ids: (n,) uint64, ascending, the train images to keep; None keeps all.
    """

    pixels: int
    quality: int
    clean_ids: np.ndarray | None = None

    @cached_property
    def _clean_digest(self):
        return digest_of(self.clean_ids)

    def page_of(self, shard):
        """Gives what of this shapes a shard, as its page has it."""
        is_cleaned = shard.split == "train" and self.clean_ids is not None
        page = {"pixels": self.pixels, "quality": self.quality}
        return page | {"labels": f"clean {self._clean_digest}" if is_cleaned else "full"}

    def choose(self, shard, members):
        """Keeps the members of a shard that are wanted."""
        if shard.split != "train" or self.clean_ids is None:
            return members
        ids = np.array([member.image_id for member in members], np.uint64)
        is_wanted = np.isin(ids, self.clean_ids)
        return [member for member, wanted in zip(members, is_wanted, strict=True) if wanted]


@dataclass(frozen=True)
class Share:
    """What one run shrinks.

    Attributes:
        shards: list of `Shard`.
        num_parts: that share the data set.
        max_bytes: of the output, or None.
        copies_earlier: copy what earlier sessions of this part made into the output.
    """

    shards: list
    num_parts: int
    max_bytes: float | None
    copies_earlier: bool


def choose_shards(source, splits, part, num_parts):
    """Lists the shards of a part: its share of each split, so that parts come out equally large."""
    shards = []
    # Of none at all the first one's absence is told.
    for split in [split for split in splits if source.count_shards(split)] or splits[:1]:
        shards += share_of(source.select_shards(split), part, num_parts)
    return shards


def read_clean_ids(path):
    """Reads the image ids of train_clean.csv: (n,) uint64, ascending."""
    return read_train_labels(path, min_images=1)[1].image_ids


def copy_tables(session, splits, is_clean):
    """Copies metadata and ground truth that the source has, unless they are there.

    train.csv is not for a clean data set, which lacks most of its images.
    """
    left_out = set() if "train" in splits else {TRAIN_CSV, TRAIN_CLEAN_CSV}
    left_out |= {TRAIN_CSV} if is_clean else set()
    for name in TABLES:
        path = session.path(name)
        if name not in left_out and not path.exists() and session.source.exists(name):
            copy_file(session.source.fetch(name), path)


# ------------------------------------------------------------------------------- the whole run


def shrink(session, settings, share):
    """Shrinks all shards of a share that are not done yet.

    Args:
        session: `Session`.
        settings: `Settings`.
        share: `Share`.

    Returns:
        dict, `Shard` -> its page (a dict); without the shards that were left out as broken.

    Raises:
        StoppedError: the session was asked to stop; the shards shrunk so far stay.
        ExpectedError: data, network or disk fail, or the output would become too large.
    """
    pages = find_done(session, share.shards, settings.page_of, share.copies_earlier)
    missing = [shard for shard in share.shards if shard not in pages]
    sizes = _ask_sizes(session.source, missing)
    stream = stream_shards(
        session.source, [(0, shard) for shard in missing], reader_of(settings),
        is_stopped=session.stop.requested, num_skippable=session.num_skippable(len(share.shards)),
    )  # fmt: skip
    durations = []
    for position, shard in enumerate(missing):
        done = f"{len(pages)} of {len(share.shards)} shards shrunk"
        if session.stop.requested(max(durations[-10:], default=0)):
            raise StoppedError(session.stop, done)
        # At first for all that is left; later the limit itself counts, and no longer an estimate.
        check_room(session, share, pages, sizes, missing[position:], looks_ahead=position < 2)
        begin = time.perf_counter()
        try:
            pages[shard] = page = _write_shard(session, settings, shard, stream, done)
        except _BrokenShardError as broken:
            tell_problems(broken.shard_end, "left out")
            continue
        durations.append(time.perf_counter() - begin)
        write_history(session, page, durations[-1])
        say(_describe_progress(page, durations, position + 1, len(missing)))
    check_room(session, share, pages, sizes, [], looks_ahead=False)
    return pages


def shrink_apart(session, settings, share, run):
    """Shrinks as `shrink` does, with each shard made by `shrink_one`, somewhere and in any order.

    Args:
        session, settings, share: as for `shrink`.
        run: function of (shards, function of (shard, what `shrink_one` gave)), which it calls here
            as each shard is done.

    Returns:
        As `shrink`.
    """
    pages = find_done(session, share.shards, settings.page_of, share.copies_earlier)
    missing = [shard for shard in share.shards if shard not in pages]
    sizes, left, broken = _ask_sizes(session.source, missing), list(missing), []
    check_room(session, share, pages, sizes, left, looks_ahead=True)

    def add(shard, result):
        page, seconds, shard_end = result
        left.remove(shard)
        if page:
            pages[shard] = page
            write_history(session, page, seconds)
        else:
            broken.append(shard)
            if len(broken) > session.num_skippable(len(share.shards)):
                raise ExpectedError(shard_end.problem, setting="skip_bad_shards")
            tell_problems(shard_end, "left out")
        is_early = len(missing) - len(left) < 2
        check_room(session, share, pages, sizes, left, looks_ahead=is_early)

    run(missing, add)
    return pages


def shrink_one(session, settings, shard):
    """Shrinks one shard: (its page or None, seconds, `ShardEnd` of a broken one or None)."""
    begin = time.perf_counter()
    stream = stream_shards(
        session.source, [(0, shard)], reader_of(settings),
        is_stopped=session.stop.requested, num_skippable=session.num_skippable(1),
    )  # fmt: skip
    try:
        page, problem = _write_shard(session, settings, shard, stream, "0 of 1 shards shrunk"), None
    except _BrokenShardError as broken:
        page, problem = None, broken.shard_end
    return page, time.perf_counter() - begin, problem


def _describe_progress(page, durations, num_done, num_missing):
    left_s = np.median(durations[-10:]) * (num_missing - num_done)
    bad = f", {len(page['bad_images'])} bad" if page["bad_images"] else ""
    return (
        f"{page['shard']}: {page['images']:,} images{bad}, {page['source_bytes'] / 1e6:.1f} -> "
        f"{page['bytes'] / 1e6:.1f} MB, {page['images'] / durations[-1]:.0f} images/s, "
        f"{format_duration(left_s)} to go ({num_done}/{num_missing})"
    )


# ---------------------------------------------------------------------------------- one shard


@dataclass(frozen=True)
class Shrunk:
    """One picture: the image's id, its bytes before, its bytes after."""

    image_id: int
    before: bytes
    after: bytes


@dataclass(frozen=True)
class ShrunkEnd(ShardEnd):
    """A `ShardEnd` that knows the bytes of the shard's tar."""

    source_bytes: int = 0


class _BrokenShardError(Exception):
    """A shard that cannot be read and may be left out; `shard_end` says why."""

    def __init__(self, shard_end):
        super().__init__(shard_end.problem)
        self.shard_end = shard_end


def reader_of(settings):
    """Makes the function that `stream_shards` calls: it yields `Shrunk`, in the tar's order."""

    def read(shard, path, epoch, pool):
        members = settings.choose(shard, list_members(path))
        bad_images, num_good = [], 0
        with open(path, "rb") as file:

            def make_small(member):
                try:
                    before = read_member(file.fileno(), member)
                    after = shrink_image(before, settings.pixels, settings.quality)
                    return Shrunk(member.image_id, before, after)
                except BadImageError as error:
                    return error

            results = map_ahead(pool, make_small, members, NUM_AHEAD)
            for member, result in zip(members, results, strict=True):
                if isinstance(result, Shrunk):
                    num_good += 1
                    yield result
                else:
                    bad_images.append((member.image_id, str(result)))
        check_bad_images(shard, bad_images, len(members))
        yield ShrunkEnd(shard, num_good, tuple(bad_images), source_bytes=Path(path).stat().st_size)

    return read


def _write_shard(session, settings, shard, stream, done):
    """Writes the tar of one shard, then its md5 file, then its page, which it gives."""
    path, page_path = session.path(shard.path), session.path(manifest_name(shard))
    page_path.unlink(missing_ok=True)  # of another file of this shard
    pairs, kept_bytes = [], 0
    with atomic_write(path) as temporary:
        with open_new(temporary) as tar:
            while not isinstance(item := next(stream), ShardEnd):
                if session.stop.requested():
                    raise StoppedError(session.stop, done)
                add_image(tar, item.image_id, item.after)
                kept_bytes += len(item.before)
                pairs += [item] if len(pairs) < NUM_PAIRS else []
        if item.problem:
            raise _BrokenShardError(item)
        md5, size_bytes = file_md5(temporary), temporary.stat().st_size
    with atomic_write(session.path(shard.md5_path)) as temporary:
        temporary.write_text(f"{md5}  {path.name}\n")
    tell_problems(item, "left out")
    page = {
        "shard": shard.path,
        "settings": settings.page_of(shard),
        "source": session.source.version_of(shard),
        "source_bytes": item.source_bytes,
        "kept_bytes": kept_bytes,
        "images": item.num_images,
        "bytes": size_bytes,
        "md5": md5,
        "bad_images": [[format_image_id(i), reason] for i, reason in item.bad_images],
    }
    write_page(page_path, page)
    if pairs and not session.path(SHRINK_PICTURE).exists():
        draw_pairs(session, page, pairs)
    return page


# ------------------------------------------------------------------------------- room for it all


def _ask_sizes(source, shards):
    """Asks for the bytes of each shard's tar: dict; where nobody says, they are as the others."""

    def ask(shard):
        try:
            return source.size_of(shard)
        except MissingFileError:  # told when it is its turn, if it may not be left out
            return 0

    with ThreadPoolExecutor(NUM_QUESTIONS) as pool:
        sizes = list(pool.map(ask, shards))
    mean = sum(sizes) / max(1, np.count_nonzero(sizes))
    return {shard: size or mean for shard, size in zip(shards, sizes, strict=True)}


def estimate_bytes(pages, sizes, shards):
    """Estimates how large shards become, from those that are done.

    Args:
        pages: dict, `Shard` -> page, of at least one shard with pictures.
        sizes: dict, `Shard` -> bytes before.
        shards: list of `Shard` to estimate.

    Returns:
        Bytes; 0 where nothing is known yet.
    """
    kept_bytes = sum(page["kept_bytes"] for page in pages.values())
    if not kept_bytes:
        return 0
    shrinkage = sum(page["bytes"] for page in pages.values()) / kept_bytes
    expected = 0
    for shard in shards:
        of_split = [page for other, page in pages.items() if other.split == shard.split]
        source_bytes = sum(page["source_bytes"] for page in of_split)
        kept_share = 1.0  # of a split of which no shard is done: all its pictures
        if source_bytes:
            kept_share = sum(page["kept_bytes"] for page in of_split) / source_bytes
        expected += shrinkage * kept_share * sizes[shard]
    return expected


def check_room(session, share, pages, sizes, left, looks_ahead):
    """Raises ExpectedError if the disk or the limit of the output cannot hold what comes.

    Args:
        session, share: `Session` and `Share`.
        pages: dict, `Shard` -> page, of the shards that are done.
        sizes: dict, `Shard` -> bytes before.
        left: list of `Shard` to come.
        looks_ahead: at all of them, and not at the next one alone.
    """
    expected = estimate_bytes(pages, sizes, left if looks_ahead else left[:1])
    require_free_space(session.output, expected, f"{len(left)} more shards")
    if share.max_bytes is None:
        return
    names = [*TABLES, *(shard.path for shard in pages)]
    paths = [session.path(name) for name in names]
    present = sum(path.stat().st_size for path in paths if path.exists())
    if present + expected > share.max_bytes:
        total = present + estimate_bytes(pages, sizes, left)
        num_parts = math.ceil(share.num_parts * total / (ROOM_TO_SPARE * share.max_bytes))
        raise ExpectedError(
            f"{session.output}: {total / 1e9:.3g} GB in the end, as far as can be told; expected "
            f"at most {share.max_bytes / 1e9:.3g} GB, which takes {max(2, num_parts)} parts, each "
            "in an output of its own",
            setting="parts",
        )


# ------------------------------------------------------------------------- history and picture


def write_history(session, page, seconds):
    """Writes the row of one shard into shrink.csv."""
    import pandas as pd  # slow to import, and --help must answer at once

    path = session.path(SHRINK_HISTORY)
    row = {name: page[name] for name in ("shard", "images")} | {
        "bad_images": len(page["bad_images"]),
        "bytes_before": page["source_bytes"],
        "bytes_after": page["bytes"],
        "images_per_s": f"{page['images'] / seconds:.1f}",
        "seconds": f"{seconds:.1f}",
    }
    rows = pd.DataFrame([row], columns=HISTORY_COLUMNS).astype(str)
    if path.exists():
        earlier = read_table(path, **dict.fromkeys(HISTORY_COLUMNS, str))
        rows = pd.concat([earlier[earlier["shard"] != page["shard"]], rows])
    write_table(path, rows.sort_values("shard"))


def draw_pairs(session, page, pairs):
    """Draws shrunk.png: a few pictures of a shard, before and after."""
    from matplotlib.figure import Figure  # slow to import, and --help must answer at once

    figure = Figure(figsize=(3 * NUM_PAIRS, 5.4), layout="constrained")
    for number, pair in enumerate(pairs):
        for row, data in enumerate((pair.before, pair.after)):
            axes = figure.add_subplot(2, NUM_PAIRS, row * NUM_PAIRS + number + 1)
            picture = decode_whole(data)
            height, width = picture.shape[:2]
            axes.imshow(picture)
            axes.set_xlabel(f"{width}x{height}, {len(data) / 1000:.1f} KB")
            axes.set(xticks=[], yticks=[])
    settings = page["settings"]
    figure.suptitle(
        f"{page['shard']}, before and after: {page['source_bytes'] / 1e6:.1f} -> "
        f"{page['bytes'] / 1e6:.1f} MB, {settings['pixels']} pixels, quality {settings['quality']}"
    )
    with atomic_write(session.path(SHRINK_PICTURE)) as temporary:
        figure.savefig(temporary, dpi=80)
