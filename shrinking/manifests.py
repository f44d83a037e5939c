"""The page beside each shrunk tar: what it was made from, how, and what came out of it."""

import hashlib
import json

from data.sources import Shard
from runs.session import MANIFESTS, SHRINK_HISTORY, manifest_name
from utils import ExpectedError, atomic_write, copy_file, file_md5, say

FIELDS = {
    "shard": str,  # e.g. train/images_000.tar
    "settings": dict,
    "source": str,  # the md5 of the tar it was made from, as of `Source.version_of`
    "source_bytes": int,  # of that tar
    "kept_bytes": int,  # of those of its pictures that were kept
    "images": int,
    "bytes": int,  # of the new tar
    "md5": str,  # of the new tar
    "bad_images": list,  # of [image id, reason]
}


def write_page(path, page):
    """Writes a page, a dict of FIELDS, atomically and with a digest."""
    with atomic_write(path) as temporary:
        text = json.dumps(page | {"digest": _digest_of(page)}, indent=1)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_page(path):
    """Reads and checks what `write_page` wrote.

    Raises:
        ExpectedError: it cannot be read, is damaged, or was edited.
    """
    try:
        page = json.loads(path.read_text(encoding="utf-8"))
        digest = page.pop("digest")
        if page.keys() != FIELDS.keys():
            raise ValueError(f"it has {', '.join(page)[:80]}")
        if digest != _digest_of(page) or not all(
            isinstance(page[name], kind) for name, kind in FIELDS.items()
        ):
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

    Args:
        session: `Session`.
        splits: names of those that are shrunk now; others may be of other labels.
        settings_of: as for `find_done`.
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
    """Finds the shards that are shrunk already, in the output and by earlier sessions.

    Args:
        shards: list of `Shard`.
        settings_of: function, `Shard` -> dict, the settings that it must have been shrunk with.
        copies_earlier: copy what is not in the output into it, with the history.

    Returns:
        dict, `Shard` -> its page.
    """
    if copies_earlier:
        session.copy_earlier(SHRINK_HISTORY)
    wanted, pages, places = {manifest_name(shard): shard for shard in shards}, {}, {}
    for path in session.find_all(MANIFESTS):
        shard = wanted.get(f"{path.parent.name}/{path.name}")
        if shard is None or shard in pages:
            continue
        page = _read_usable(session, shard, path, settings_of(shard))
        folder = path.parent.parent
        if page and folder != session.output and copies_earlier:
            page = page if _copy(session, shard, folder, page) else None
        elif page and folder != session.output:
            places.setdefault(folder, []).append(shard)
        if page:
            pages[shard] = page
    for folder, there in places.items():
        say(f"{folder}: {len(there)} shards were shrunk there; it belongs to this data set")
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
    if not _is_whole(path.parent.parent, shard, page):
        say(f"{path}: its tar or md5 file is not there as written, not used")
        return None
    return page


def _is_whole(folder, shard, page):
    """Tells whether tar and md5 file are those of the page; or the tar, unpacked by a mount."""
    tar, md5_file = folder / shard.path, folder / shard.md5_path
    is_unpacked = tar.is_dir() or tar.with_suffix("").is_dir()
    if not is_unpacked and not (tar.is_file() and tar.stat().st_size == page["bytes"]):
        return False
    return md5_file.is_file() and md5_file.read_bytes()[:32] == page["md5"].encode()


def _copy(session, shard, folder, page):
    """Copies a shard that an earlier session made, its page last; tells whether it was whole."""
    if not (folder / shard.path).is_file():
        return False
    copy_file(folder / shard.path, session.path(shard.path))
    if file_md5(session.path(shard.path)) != page["md5"]:
        say(f"{folder / shard.path}: its md5 differs; shrinking it again")
        return False
    copy_file(folder / shard.md5_path, session.path(shard.md5_path))
    write_page(session.path(manifest_name(shard)), page)
    return True


def write_summary(path, shards, pages):
    """Writes the page of a whole part, atomically; gives a line that says what it is.

    Args:
        path: of the page.
        shards: list of `Shard` of the part.
        pages: dict, `Shard` -> its page; without those that were left out as broken.
    """
    total = {
        name: sum(page[name] for page in pages.values())
        for name in ("images", "source_bytes", "bytes")
    }
    total["bad_images"] = sum(len(page["bad_images"]) for page in pages.values())
    left_out = [shard.path for shard in shards if shard not in pages]
    with atomic_write(path) as temporary:
        page = {"shards": len(pages), **total, "left_out": left_out}
        temporary.write_text(json.dumps(page, indent=1) + "\n", encoding="utf-8")
    line = (
        f"{len(pages)} shards, {total['images']:,} images, {total['bad_images']} bad, "
        f"{total['source_bytes'] / 1e9:.3g} -> {total['bytes'] / 1e9:.3g} GB"
    )
    return line + (f"; left out: {', '.join(left_out)}" if left_out else "")
