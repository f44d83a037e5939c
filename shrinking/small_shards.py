"""Shards with small pictures in the same layout: shard after shard, each whole or not there.

A small page beside each tar says what it was made from and how; a shard with a right page is done,
wherever an earlier session left it.
"""

import contextlib
import filecmp
import itertools
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from data.arrays import digest_of
from data.images import BadImageError, decode_whole, shrink_image
from data.landmarks import format_image_id
from data.sources import TABLES, TRAIN_CLEAN_CSV, TRAIN_CSV, share_of
from data.tables import read_table, write_table
from data.tars import add_image, list_members, open_new, read_member
from generators import (
    NUM_CORES,
    NextShard,
    ShardEnd,
    check_bad_images,
    stream_shards,
    tell_problems,
)
from runs.pictures import draw_picture
from runs.session import SHRINK_HISTORY, SHRINK_PICTURE, manifest_name
from shrinking import slices
from shrinking.manifests import find_done, write_page
from utils import (
    ExpectedError,
    MissingFileError,
    Progress,
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
ROUND_MB_S = 50  # to say what a download takes before anything is known; later it is measured
NUM_PAIRS = 6  # pictures in shrunk.png
ROOM_TO_SPARE = 0.95  # of what is allowed, when a number of parts is proposed
HISTORY_COLUMNS = (
    "shard", "images", "bad_images", "bytes_before", "bytes_after", "images_per_s", "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """How pictures are made small, and which."""

    pixels: int  # of the shorter side, which is never enlarged
    quality: int  # of the JPEG
    # split -> (n,) uint64, ascending, the images to keep; all of another split
    kept: dict = field(default_factory=dict)
    # a person chose these images, else `kept` has those of the clean train table
    is_slice: bool = False

    @cached_property
    def _digests(self):
        return {split: digest_of(ids) for split, ids in self.kept.items()}

    def page_of(self, shard):
        """Gives what of this shapes a shard, as its page has it."""
        page = {"pixels": self.pixels, "quality": self.quality, "labels": "full"}
        if shard.split not in self.kept:
            return page
        digest = self._digests[shard.split]
        return page | ({"images": digest} if self.is_slice else {"labels": f"clean {digest}"})

    def choose(self, shard, members):
        """Keeps the members of a shard that are wanted."""
        if shard.split not in self.kept:
            return members
        ids = np.array([member.image_id for member in members], np.uint64)
        is_wanted = np.isin(ids, self.kept[shard.split])
        return [member for member, wanted in zip(members, is_wanted, strict=True) if wanted]


@dataclass(frozen=True)
class Share:
    """What one run shrinks."""

    shards: list  # list of `Shard`
    num_parts: int  # that share the data set
    max_bytes: float | None  # of the output, or None
    copies_earlier: bool  # copy what earlier sessions of this part made into the output


def choose_shards(source, splits, part, num_parts):
    """Lists the shards of a part: its share of each split, so that parts come out equally large."""
    shards = []
    # Of none at all the first one's absence is told.
    for split in [split for split in splits if source.count_shards(split)] or splits[:1]:
        shards += share_of(source.select_shards(split), part, num_parts)
    return shards


def copy_tables(session, splits, is_clean, settings):
    """Copies metadata and ground truth that the source has, where they are not there as they are.

    train.csv is not for a clean data set, which lacks most of its images. Those of a slice are cut
    to its images.
    """
    left_out = set() if "train" in splits else {TRAIN_CSV, TRAIN_CLEAN_CSV}
    left_out |= {TRAIN_CSV} if is_clean else set()
    names = [one for one in TABLES if one not in left_out and session.source.exists(one)]
    if settings.is_slice:
        slices.cut_tables(session, names, settings.kept)
        return
    for name in names:
        new, path = session.source.fetch(name), session.path(name)
        if not (path.exists() and filecmp.cmp(new, path, shallow=False)):
            copy_file(new, path)


# ------------------------------------------------------------------------------- the whole run


def shrink(session, settings, share, run=None):
    """Shrinks all shards of a share: dict, `Shard` -> its page, without those that are broken.

    Args:
        run: function of (shards, function of (shard, what `shrink_one` gave)), which it calls here
            as each shard is done, in any order; None shrinks them here, one after another.

    Raises:
        StoppedError: the session was asked to stop; the shards shrunk so far stay.
        ExpectedError: data, network or disk fail, or the output would become too large.
    """
    pages = find_done(session, share.shards, settings.page_of, share.copies_earlier)
    write_history(session, pages)
    # In parts, or in any order, what another has is not known.
    is_known = settings.is_slice and run is None and share.num_parts == 1
    sought = Sought(session, settings.kept if is_known else {}, pages)
    missing = [one for one in share.shards if one not in pages and not sought.is_over(one)]
    left, num_skippable = list(missing), session.num_skippable(len(share.shards))
    sizes = _ask_sizes(session.source, missing)
    _tell_cost(settings, sizes)
    check_room(session, share, pages, sizes, left, looks_ahead=not settings.is_slice)
    begin = time.perf_counter()

    def add(shard, result):
        page, seconds, shard_end = result
        left.remove(shard)
        tell_problems(shard_end, "left out")
        num_done = len(missing) - len(left)
        if page:
            pages[shard] = page
            sought.strike_off(shard, page)
            write_history(session, pages, {shard: seconds})
            left_s = (time.perf_counter() - begin) / num_done * len(left)
            _tell_progress(page, seconds, left_s, f"{num_done}/{len(missing)}")
        elif num_done - sum(one in pages for one in missing) > num_skippable:
            raise ExpectedError(shard_end.problem, setting="skip_bad_shards")
        # At first for all that is left; later the limit itself counts, and no longer an estimate.
        is_early = num_done < 2 and not settings.is_slice
        check_room(session, share, pages, sizes, left, looks_ahead=is_early)

    run = run or partial(_shrink_in_order, session, settings, is_over=sought.is_over)
    try:
        run(missing, add)
    except StoppedError as stopped:
        done = f"{len(pages)} of {len(share.shards)} shards shrunk"
        raise StoppedError(session.stop, done) from stopped
    return pages


def require_found(source, settings, pages):
    """Raises ExpectedError if a whole data set has none of the images to keep of a split."""
    for split, ids in settings.kept.items():
        found = [page for shard, page in pages.items() if shard.split == split]
        if found and not any(page["images"] or page["bad_images"] for page in found):
            raise ExpectedError(
                f"{source}: none of the {len(ids):,} {split} images to keep is in its {len(found)} "
                f"{split} shards; expected the images that the table names; check that table and "
                "shards belong together",
                setting="source",
            )


class Sought:
    """The images of a slice that are not found yet.

    Args:
        kept: dict, split -> image ids; of splits that are not in it all shards are wanted.
        pages: dict, `Shard` -> page, of the shards that are done.
    """

    def __init__(self, session, kept, pages):
        self.session, self.last = session, {}  # split -> number of the last shard that is there
        self.ids = {split: set(ids.tolist()) for split, ids in kept.items()}
        for shard, page in pages.items():
            self.strike_off(shard, page)

    def strike_off(self, shard, page):
        """Takes away the images of a shard, as it lies in the output."""
        path = self.session.path(shard.path)
        self.last[shard.split] = max(shard.number, self.last.get(shard.split, -1))
        if shard.split in self.ids and path.is_file():
            bad = {int(image_id, 16) for image_id, _ in page["bad_images"]}
            self.ids[shard.split] -= bad | {member.image_id for member in list_members(path)}

    def is_over(self, shard):
        """Tells whether all images of its split are found, and no shard behind it is there."""
        is_behind = shard.number > self.last.get(shard.split, -1)
        return is_behind and not self.ids.get(shard.split, True)


def _tell_cost(settings, sizes):
    """Says what is to be read, a dict `Shard` -> bytes, and what that takes at a round rate."""
    if not sizes:
        return
    size_mb = sum(sizes.values()) / 1e6
    until = ""
    if settings.is_slice:
        counts = [f"{len(ids):,} {split}" for split, ids in settings.kept.items()]
        until = f", or fewer if its {' and '.join(counts)} images are found before"
    say(
        f"to read: {len(sizes)} shards, {size_mb / 1000:.3g} GB{until}; "
        f"{format_duration(size_mb / ROUND_MB_S)} at {ROUND_MB_S} MB/s"
    )


def _shrink_in_order(session, settings, shards, when_done, is_over):
    """Shrinks shards until `is_over(shard)`, reading the next ones of a split ahead."""
    longest_s = 0
    for _, group in itertools.groupby(shards, key=lambda shard: shard.split):
        group = list(group)
        with contextlib.closing(_open_stream(session, settings, group, len(shards))) as stream:
            for shard in group:
                if is_over(shard):
                    break
                if session.stop.requested(longest_s):
                    raise StoppedError(session.stop, f"{shard.path} is next")
                result = _write_shard(session, settings, shard, stream)
                longest_s = max(longest_s, result[1])
                when_done(shard, result)


def shrink_one(session, settings, shard):
    """Shrinks one shard: (its page or None for a broken one, seconds, its `ShardEnd`)."""
    with contextlib.closing(_open_stream(session, settings, [shard], 1)) as stream:
        return _write_shard(session, settings, shard, stream)


def _open_stream(session, settings, shards, num_shards):
    return stream_shards(
        session.source, [(0, shard) for shard in shards], reader_of(settings),
        is_stopped=session.stop.requested, num_skippable=session.num_skippable(num_shards),
    )  # fmt: skip


def _tell_progress(page, seconds, left_s, position):
    bad = f", {len(page['bad_images'])} bad" if page["bad_images"] else ""
    say(
        f"{page['shard']}: {page['images']:,} images{bad}, {page['source_bytes'] / 1e6:.1f} -> "
        f"{page['bytes'] / 1e6:.1f} MB, {page['images'] / seconds:.0f} images/s, "
        f"{format_duration(left_s)} to go ({position})"
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
    """A shard cannot be read and may be left out."""


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


def _write_shard(session, settings, shard, stream):
    """Writes the tar of the stream's next shard, its md5 file, then its page; as `shrink_one`."""
    begin = time.perf_counter()
    path, md5_path, page_path = (
        session.path(name) for name in (shard.path, shard.md5_path, manifest_name(shard))
    )
    page_path.unlink(missing_ok=True)  # of another file of this shard
    pairs, kept_bytes, pictures = [], 0, NextShard(stream, session.stop, f"{shard.path} is next")
    with contextlib.suppress(_BrokenShardError), atomic_write(path) as temporary:
        with open_new(temporary) as tar, Progress(f"{shard.path} shrunk") as progress:
            for picture in pictures:
                add_image(tar, picture.image_id, picture.after)
                kept_bytes += len(picture.before)
                progress.update()
                pairs += [picture] if len(pairs) < NUM_PAIRS else []
        if pictures.end.problem:
            raise _BrokenShardError
        md5, size_bytes = file_md5(temporary), temporary.stat().st_size
    end = pictures.end
    if end.problem:
        for old in (path, md5_path):  # of another file, too
            old.unlink(missing_ok=True)
        return None, time.perf_counter() - begin, end
    with atomic_write(md5_path) as temporary:
        temporary.write_text(f"{md5}  {path.name}\n")
    page = {
        "shard": shard.path,
        "settings": settings.page_of(shard),
        "source": session.source.version_of(shard),
        "source_bytes": end.source_bytes,
        "kept_bytes": kept_bytes,
        "images": end.num_images,
        "bytes": size_bytes,
        "md5": md5,
        "bad_images": [[format_image_id(i), reason] for i, reason in end.bad_images],
    }
    write_page(page_path, page)
    if pairs and not session.path(SHRINK_PICTURE).exists():
        draw_picture(session.path(SHRINK_PICTURE), lambda: draw_pairs(page, pairs), dpi=80)
    return page, time.perf_counter() - begin, end


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
    """Estimates how many bytes shards become, from those that are done; 0 where none is."""
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
    """Raises ExpectedError if disk or limit cannot hold the next shard, or all that are left."""
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


def write_history(session, pages, seconds=None):
    """Writes shrink.csv: a row for each page in the output, and what parts beside this one wrote.

    Args:
        pages: dict, `Shard` -> page.
        seconds: dict, `Shard` -> what it took; of others it is in their rows, if they have one.
    """
    import pandas as pd  # slow to import, and --help must answer at once

    path, rows = session.path(SHRINK_HISTORY), {}
    if path.exists():
        table = read_table(path, **dict.fromkeys(HISTORY_COLUMNS, str))
        rows = {row["shard"]: row for row in table.to_dict("records")}
    for shard, page in pages.items():
        if not session.path(manifest_name(shard)).exists():
            continue
        facts = (
            page["shard"], page["images"], len(page["bad_images"]), page["source_bytes"],
            page["bytes"],
        )  # fmt: skip
        row = dict(zip(HISTORY_COLUMNS, map(str, facts), strict=False))
        if shard in (seconds or {}):
            row["images_per_s"] = f"{page['images'] / seconds[shard]:.1f}"
            row["seconds"] = f"{seconds[shard]:.1f}"
        elif row.items() <= rows.get(shard.path, {}).items():
            continue
        rows[shard.path] = row  # without the seconds that a kill took with it
    if rows:
        ordered = [rows[name] for name in sorted(rows)]
        write_table(path, pd.DataFrame(ordered, columns=HISTORY_COLUMNS))


def draw_pairs(page, pairs):
    """Draws a few pictures of a shard as a matplotlib Figure, before and after."""
    from matplotlib.figure import Figure  # slow to import

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
    return figure
