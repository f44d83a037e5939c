"""Shards with small pictures in the same layout: shard after shard, each whole or not there.

A small page beside each tar says what it was made from and how; a shard with a right page is done,
wherever an earlier session left it.
"""

import contextlib
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
from data.sources import TABLES
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
from shrinking.manifests import find_done, write_page
from utils import (
    ExpectedError,
    MissingFileError,
    Progress,
    StoppedError,
    atomic_write,
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
OF_PAGE = {name: name for name in ("shard", "images", "bad_images")}  # column -> where it is from
OF_PAGE |= {"bytes_before": "source_bytes", "bytes_after": "bytes"}
HISTORY_COLUMNS = (*OF_PAGE, "images_per_s", "seconds")


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
        if digest := self._digests.get(shard.split):
            page |= {"images": digest} if self.is_slice else {"labels": f"clean {digest}"}
        return page


@dataclass(frozen=True)
class Share:
    """What one run shrinks."""

    shards: list  # list of `Shard`
    num_parts: int  # that share the data set
    max_bytes: float  # of the output
    copies_earlier: bool  # copy what earlier sessions of this part made into the output


def shrink(session, settings, share, run=None):
    """Shrinks all shards of a share: dict, `Shard` -> its page, without those that are broken.

    `run`, a function of shards, yields what `shrink_in_order` does, in any order; None is that.

    Raises:
        StoppedError: the session was asked to stop; the shards shrunk so far stay.
        ExpectedError: data, network or disk fail, or the output would become too large.
    """
    pages = find_done(session, share.shards, settings.page_of, share.copies_earlier)
    write_history(session, pages, {})
    # In parts, or in any order, what another has is not known.
    is_known = settings.is_slice and run is None and share.num_parts == 1
    sought = Sought(session, settings.kept if is_known else {}, pages)
    missing = [one for one in share.shards if one not in pages and not sought.is_over(one)]
    left, num_broken = list(missing), 0
    sizes = _ask_sizes(session.source, missing)
    if missing:
        _tell_cost(settings, sizes)
    check_room(session, share, pages, sizes, left, looks_ahead=not settings.is_slice)
    begin = time.perf_counter()
    run = run or partial(shrink_in_order, session, settings, is_over=sought.is_over)
    try:
        with contextlib.closing(run(missing)) as results:
            for page, seconds, end in results:
                left.remove(end.shard)
                tell_problems(end, "left out")
                num_done = len(missing) - len(left)
                if page:
                    pages[end.shard] = page
                    sought.strike_off(end.shard, page)
                    write_history(session, pages, {end.shard: seconds})
                    left_s = (time.perf_counter() - begin) / num_done * len(left)
                    _tell_progress(page, seconds, left_s, f"{num_done}/{len(missing)}")
                elif (num_broken := num_broken + 1) > session.num_skippable(len(share.shards)):
                    raise ExpectedError(end.problem, setting="skip_bad_shards")
                # At first for all that is left; later the limit itself counts, no estimate.
                is_early = num_done < 2 and not settings.is_slice
                check_room(session, share, pages, sizes, left, looks_ahead=is_early)
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
    """The images that are not found yet; of splits that `kept` has not, all shards are wanted."""

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
    size_mb, until = sum(sizes.values()) / 1e6, ""
    if settings.is_slice:
        counts = [f"{len(ids):,} {split}" for split, ids in settings.kept.items()]
        until = f", or fewer if its {' and '.join(counts)} images are found before"
    say(
        f"to read: {len(sizes)} shards, {size_mb / 1000:.3g} GB{until}; "
        f"{format_duration(size_mb / ROUND_MB_S)} at {ROUND_MB_S} MB/s"
    )


def shrink_in_order(session, settings, shards, is_over=lambda shard: False):
    """Shrinks shards until one `is_over`; yields (page, None if broken; seconds; `ShardEnd`)."""
    longest_s = 0
    for _, group in itertools.groupby(shards, key=lambda shard: shard.split):
        plan = [(0, shard) for shard in group]
        stream = stream_shards(
            session.source, plan, partial(_read_small, settings),
            is_stopped=session.stop.requested, num_skippable=session.num_skippable(len(shards)),
        )  # fmt: skip
        with contextlib.closing(stream):
            for _, shard in plan:
                if is_over(shard):
                    break
                if session.stop.requested(longest_s):
                    raise StoppedError(session.stop, f"{shard.path} is next")
                result = _write_shard(session, settings, shard, stream)
                longest_s = max(longest_s, result[1])
                yield result


def _tell_progress(page, seconds, left_s, position):
    bad = f", {len(page['bad_images'])} bad" if page["bad_images"] else ""
    say(
        f"{page['shard']}: {page['images']:,} images{bad}, {page['source_bytes'] / 1e6:.1f} -> "
        f"{page['bytes'] / 1e6:.1f} MB, {page['images'] / seconds:.0f} images/s, "
        f"{format_duration(left_s)} to go ({position})"
    )


@dataclass(frozen=True)
class ShrunkEnd(ShardEnd):
    """A `ShardEnd` that knows the bytes of the shard's tar."""

    source_bytes: int = 0


class _BrokenShardError(Exception):
    """A shard cannot be read and may be left out."""


def _read_small(settings, shard, path, members, epoch, pool):
    """Yields (image id, its bytes before, its bytes after) in the tar's order, then the end."""
    bad_images = []
    if shard.split in settings.kept:
        ids = np.array([member.image_id for member in members], np.uint64)
        members = list(itertools.compress(members, np.isin(ids, settings.kept[shard.split])))
    with open(path, "rb") as file:

        def make_small(member):
            try:
                before = read_member(file.fileno(), member)
                return before, shrink_image(before, settings.pixels, settings.quality)
            except BadImageError as error:
                return error

        results = map_ahead(pool, make_small, members, NUM_AHEAD)
        for member, result in zip(members, results, strict=True):
            if isinstance(result, BadImageError):
                bad_images.append((member.image_id, str(result)))
            else:
                yield member.image_id, *result
    check_bad_images(shard, bad_images, len(members))
    source_bytes = Path(path).stat().st_size
    yield ShrunkEnd(shard, len(members) - len(bad_images), tuple(bad_images), "", source_bytes)


def _write_shard(session, settings, shard, stream):
    """Writes the tar of the stream's next shard, its md5 file, then its page."""
    begin = time.perf_counter()
    path, md5_path, page_path = (
        session.path(name) for name in (shard.path, shard.md5_path, manifest_name(shard))
    )
    page_path.unlink(missing_ok=True)  # of another file of this shard
    pairs, kept_bytes, pictures = [], 0, NextShard(stream, session.stop, f"{shard.path} is next")
    with contextlib.suppress(_BrokenShardError), atomic_write(path) as temporary:
        with open_new(temporary) as tar, Progress(f"{shard.path} shrunk") as progress:
            for image_id, before, after in pictures:
                add_image(tar, image_id, after)
                kept_bytes += len(before)
                progress.update()
                if len(pairs) < NUM_PAIRS:
                    pairs.append((before, after))
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
        "shard": shard.path, "settings": settings.page_of(shard),
        "source": session.source.version_of(shard), "source_bytes": end.source_bytes,
        "kept_bytes": kept_bytes, "images": end.num_images, "bytes": size_bytes, "md5": md5,
        "bad_images": [[format_image_id(i), reason] for i, reason in end.bad_images],
    }  # fmt: skip
    write_page(page_path, page)
    if pairs and not session.path(SHRINK_PICTURE).exists():
        draw_picture(session.path(SHRINK_PICTURE), lambda: draw_pairs(page, pairs), dpi=80)
    return page, time.perf_counter() - begin, end


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

    def total(name, split=None):
        return sum(page[name] for one, page in pages.items() if split in (None, one.split))

    if not total("kept_bytes"):
        return 0
    shrinkage, kept_bytes = total("bytes") / total("kept_bytes"), 0
    for shard in shards:
        source_bytes = total("source_bytes", shard.split)  # 0 where none of its split is done
        kept_share = total("kept_bytes", shard.split) / source_bytes if source_bytes else 1
        kept_bytes += kept_share * sizes[shard]
    return shrinkage * kept_bytes


def check_room(session, share, pages, sizes, left, looks_ahead):
    """Raises ExpectedError if disk or limit cannot hold the next shard, or all that are left."""
    expected = estimate_bytes(pages, sizes, left if looks_ahead else left[:1])
    require_free_space(session.output, expected, f"{len(left)} more shards")
    paths = map(session.path, [*TABLES, *(shard.path for shard in pages)])
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


def write_history(session, pages, seconds):
    """Writes shrink.csv: a row for each page in the output, and what parts beside this one wrote.

    The seconds are a dict, `Shard` -> what it took; those of others are in their rows, if anywhere.
    """
    import pandas as pd  # slow to import, and --help must answer at once

    path, rows = session.path(SHRINK_HISTORY), {}
    if path.exists():
        table = read_table(path, **dict.fromkeys(HISTORY_COLUMNS, str))
        rows = {row["shard"]: row for row in table.to_dict("records")}
    for shard, page in pages.items():
        if not session.path(manifest_name(shard)).exists():
            continue
        facts = page | {"bad_images": len(page["bad_images"])}
        row = {column: str(facts[name]) for column, name in OF_PAGE.items()}
        if shard in seconds:
            row["images_per_s"] = f"{page['images'] / seconds[shard]:.1f}"
            row["seconds"] = f"{seconds[shard]:.1f}"
        elif row.items() <= rows.get(shard.path, {}).items():
            continue
        rows[shard.path] = row  # without the seconds that a kill took with it
    if rows:
        ordered = [rows[name] for name in sorted(rows)]
        write_table(path, pd.DataFrame(ordered, columns=HISTORY_COLUMNS))


def draw_pairs(page, pairs):
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(3 * NUM_PAIRS, 5.4), layout="constrained")
    for number, pair in enumerate(pairs):
        for row, data in enumerate(pair):
            axes = figure.add_subplot(2, NUM_PAIRS, row * NUM_PAIRS + number + 1)
            picture = decode_whole(data)
            height, width = picture.shape[:2]
            axes.imshow(picture)
            axes.set(xlabel=f"{width}x{height}, {len(data) / 1000:.1f} KB", xticks=[], yticks=[])
    settings = page["settings"]
    figure.suptitle(
        f"{page['shard']}, before and after: {page['source_bytes'] / 1e6:.1f} -> "
        f"{page['bytes'] / 1e6:.1f} MB, {settings['pixels']} pixels, quality {settings['quality']}"
    )
    return figure
