"""The page beside each shrunk tar: what it was made from, how, and what came out of it."""

import hashlib
import json
from collections import Counter

from data.sources import Shard
from runs.session import MANIFESTS, SHRINK_HISTORY, manifest_name
from utils import ExpectedError, atomic_write, copy_file, file_md5, say

FIELDS = {
    "shard",  # e.g. train/images_000.tar
    "settings",  # dict, as of `Settings.page_of`
    "source",  # the md5 of the tar it was made from, as of `Source.version_of`
    "source_bytes",  # of that tar
    "kept_bytes",  # of those of its pictures that were kept
    "images",  # how many
    "bytes", "md5",  # of the new tar
    "bad_images",  # list of [image id, reason]
}  # fmt: skip


def write_page(path, page):
    """Writes a page, a dict of FIELDS, atomically and with a digest."""
    _write(path, page | {"digest": _digest_of(page)})


def _write(path, page):
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(page, indent=1) + "\n", encoding="utf-8")


def read_page(path):
    """Reads what `write_page` wrote; ExpectedError if it is unreadable, damaged or edited."""
    try:
        page = json.loads(path.read_text(encoding="utf-8"))
        digest = page.pop("digest")
        if page.keys() != FIELDS:
            raise ValueError(f"it has {', '.join(page)[:80]}")
        if digest != _digest_of(page):
            raise ValueError("it was changed after it was written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ExpectedError(
            f"{path}: {reason}; expected a page that shrink.py wrote; shrink this shard again"
        ) from error
    return page


def _digest_of(page):
    text = json.dumps(page, sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def require_same_settings(session, splits, settings_of):
    """Raises ExpectedError if the output has shards of other settings or of another slice.

    Splits other than these, which are shrunk now, may be of other labels.
    """
    for path in sorted(session.output.glob(MANIFESTS)):
        split, number = path.parent.name, path.stem.removeprefix("images_")
        try:
            was = read_page(path)["settings"]
            now = settings_of(Shard(split, int(number)))
        except (ExpectedError, ValueError):  # damaged, or nobody's
            continue
        names = was.keys() | now.keys() if split in splits else {"pixels", "quality", "images"}
        for name in sorted(names):
            if was.get(name) != now.get(name):
                raise ExpectedError(
                    f"{path}: shrunk with {name} {was.get(name)}, now it is {now.get(name)}; "
                    "expected the same settings in one output; give them again, or choose another "
                    "folder"
                )


def find_done(session, shards, settings_of, copies_earlier):
    """Finds what is shrunk already, here and by earlier sessions: dict, `Shard` -> its page.

    Args:
        settings_of: function, `Shard` -> dict, the settings that it must have been shrunk with.
        copies_earlier: copy what is not in the output into it, with the history.
    """
    if copies_earlier:
        session.copy_earlier(SHRINK_HISTORY)
    wanted, pages, places = {manifest_name(shard): shard for shard in shards}, {}, Counter()
    for path in session.find_all(MANIFESTS):
        shard, folder = wanted.get(f"{path.parent.name}/{path.name}"), path.parent.parent
        if shard is None or shard in pages:
            continue
        page = _read_usable(session, shard, path, settings_of(shard))
        if page and folder != session.output and copies_earlier:
            page = _copy(session, shard, folder, page)
        elif page and folder != session.output:
            places[folder] += 1
        if page:
            pages[shard] = page
    for folder, num_there in places.items():
        say(f"{folder}: {num_there} shards were shrunk there; it belongs to this data set")
    return pages


def _read_usable(session, shard, path, settings):
    """Reads the page of a shard that need not be shrunk again, or gives None."""
    try:
        page = read_page(path)
    except ExpectedError as error:
        is_own = path == session.path(manifest_name(shard))
        say(f"{error}: shrinking it again" if is_own else f"{error}: not used")
        return None
    if page["settings"] != settings:
        return None
    if page["source"] != session.source.version_of(shard):
        say(f"{path}: made from another file than {shard.path} of {session.source}, not used")
        return None
    tar, md5_file = (path.parent.parent / name for name in (shard.path, shard.md5_path))
    is_whole = tar.is_file() and tar.stat().st_size == page["bytes"]
    is_whole = is_whole or tar.is_dir() or tar.with_suffix("").is_dir()  # unpacked by a mount
    md5 = md5_file.read_bytes()[:32] if md5_file.is_file() else b""
    if not is_whole or md5 != page["md5"].encode():
        say(f"{path}: its tar or md5 file is not there as written, not used")
        return None
    return page


def _copy(session, shard, folder, page):
    """Copies a shard that an earlier session made, its page last; gives it, None if not whole."""
    if not (folder / shard.path).is_file():
        return None
    copy_file(folder / shard.path, session.path(shard.path))
    if file_md5(session.path(shard.path)) != page["md5"]:
        say(f"{folder / shard.path}: its md5 differs; shrinking it again")
        return None
    copy_file(folder / shard.md5_path, session.path(shard.md5_path))
    write_page(session.path(manifest_name(shard)), page)
    return page


def write_summary(path, shards, pages):
    """Writes the page of a whole part; gives a line that says what it is."""
    totals = ("images", "source_bytes", "bytes")
    total = {name: sum(page[name] for page in pages.values()) for name in totals}
    total["bad_images"] = sum(len(page["bad_images"]) for page in pages.values())
    left_out = [shard.path for shard in shards if shard not in pages]
    _write(path, {"shards": len(pages), **total, "left_out": left_out})
    line = (
        f"{len(pages)} shards, {total['images']:,} images, {total['bad_images']} bad, "
        f"{total['source_bytes'] / 1e9:.3g} -> {total['bytes'] / 1e9:.3g} GB"
    )
    return line + (f"; left out: {', '.join(left_out)}" if left_out else "")
