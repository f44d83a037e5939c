"""Files of NumPy arrays with a page of facts: atomic, with a digest, checked when they are read."""

import hashlib
import json
import os
import zipfile
from dataclasses import dataclass, field, fields

import numpy as np

from utils import ExpectedError, atomic_write

PAGE_MEMBER = "page.npy"  # in every .npz file of this project
BLOCK_ROWS = 4096  # looked at at a time, where the answer takes memory of its own
MAX_COMPRESSED_BYTES = 64 << 20  # what the small members of an archive may hold unpacked


def save_arrays(path, page, **arrays):
    """Writes NumPy arrays and a page of facts as one atomic .npz file, with a digest of both.

    The page is a dict that JSON can hold, without the key "digest".
    """
    with atomic_write(path) as temporary:
        np.savez(temporary, **arrays)
        with zipfile.ZipFile(temporary, "a") as archive:
            page = page | {"digest": _digest_of(page, archive)}
            with archive.open(PAGE_MEMBER, "w") as member:
                np.lib.format.write_array(member, np.array(json.dumps(page)))


def _digest_of(page, archive):
    """Gives 32 hex characters that differ for another page or other arrays."""
    # The checksum of each array is verified whenever it is read; this binds them together.
    members = [info for info in archive.infolist() if info.filename != PAGE_MEMBER]
    facts = sorted((info.filename, info.file_size, info.CRC) for info in members)
    return hashlib.md5(json.dumps([page, facts]).encode(), usedforsecurity=False).hexdigest()


def digest_of(values):
    """Gives 32 hex characters that differ for another set of image ids or words, an array."""
    return hashlib.md5(np.sort(values).tobytes(), usedforsecurity=False).hexdigest()


def digest_of_rows(image_ids, descriptors):
    """Gives 32 hex characters that differ for other images or other descriptors of them."""
    digest = hashlib.md5(np.ascontiguousarray(image_ids), usedforsecurity=False)
    digest.update(np.ascontiguousarray(descriptors))
    return digest.hexdigest()


def load_page(path):
    """Reads the page alone of what `save_arrays` wrote: (None, page); raises as `load_arrays`."""
    return None, load_arrays(path, only_page=True)[1]


def load_arrays(path, only_page=False):
    """Reads what `save_arrays` wrote: (dict of arrays, page).

    All of it is read, so that damage and edits show here: as ExpectedError.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            require_true_sizes(file.zip)
            names = [name for name in file.files if name != "page" and not only_page]
            arrays, page = {name: file[name] for name in names}, json.loads(str(file["page"]))
            if not isinstance(page, dict):
                raise ValueError(f"its page is {json.dumps(page)[:80]}, not a table of facts")
            digest = page.pop("digest", None)  # older files have none
            if digest not in (None, _digest_of(page, file.zip)):
                raise ValueError("it was changed after it was written (its digest differs)")
        return arrays, page
    except Exception as error:  # a damaged file or one of another kind can fail anywhere
        reason = str(getattr(error, "strerror", None) or error or type(error).__name__)
        reason = reason.splitlines()[0]
        reason = "not an .npz file" if "pickle" in reason else reason  # NumPy's guess
        expected = "a whole file written by this project; write or copy it again"
        raise ExpectedError(f"{path}: {reason}; expected {expected}") from error


def require_true_sizes(archive):
    """Raises BadZipFile for an archive whose members would fill the memory, before any is read.

    Large members (weights, arrays) are stored as they are; small ones may be compressed.
    """
    archive.fp.seek(0, os.SEEK_END)
    file_bytes = archive.fp.tell()
    claimed_bytes = sum(info.file_size for info in archive.infolist())
    if claimed_bytes > 2 * file_bytes + MAX_COMPRESSED_BYTES:
        raise zipfile.BadZipFile(
            f"{file_bytes / 1e6:.1f} MB that claim to hold {claimed_bytes / 1e6:,.1f} MB"
        )


@dataclass(frozen=True)
class Column:
    """What an array of a file must be."""

    dtypes: str  # names of the dtypes that it may have, separated by spaces
    shape: tuple  # tuple of a number or a name for each axis; axes of one name are of one length
    at_least: float | None = None  # its lowest value; floats are finite anyway
    below: str | None = None  # its values are below the length of the axes of this name
    order: str | None = None  # "ascending" (repetitions may be) or "increasing", of one dimension


def column(dtypes, *shape, **limits):
    """Declares a field of a dataclass as an array of a file, see `Column`."""
    return field(metadata={"column": Column(dtypes, shape, **limits)})


def columns_of(kind):
    """Gives what a dataclass of arrays declares: dict, name -> `Column`."""
    declared = {one.name: one.metadata.get("column") for one in fields(kind)}
    return {name: column for name, column in declared.items() if column}


def save_table(path, table, page):
    """Writes a dataclass of arrays and a page of facts, see `save_arrays`."""
    save_arrays(path, page, **{one.name: getattr(table, one.name) for one in fields(table)})


def check_arrays(path, arrays, columns):
    """Raises ExpectedError unless arrays that were read from `path` are what their columns say.

    Both are dicts by name, `columns` of `Column`.
    """
    try:
        if arrays.keys() != columns.keys():
            raise ValueError(f"it holds {', '.join(sorted(arrays))[:80] or 'nothing'}")
        lengths = {}
        for name, column in columns.items():
            _check_shape(name, arrays[name], column, lengths)
        for name, column in columns.items():
            _check_values(name, arrays[name], column, lengths)
    except ValueError as error:
        expected = f"{', '.join(columns)} as this project writes them"
        advice = "write it again, or give another file"
        raise ExpectedError(f"{path}: {error}; expected {expected}; {advice}") from error


def _check_shape(name, array, column, lengths):
    if array.dtype.name not in column.dtypes.split():
        raise ValueError(f"{name} is {array.dtype}, not {column.dtypes.replace(' ', ' or ')}")
    if array.ndim == len(column.shape):
        wanted = [
            lengths.setdefault(axis, length) if isinstance(axis, str) else axis
            for axis, length in zip(column.shape, array.shape, strict=True)
        ]
    else:
        wanted = [lengths.get(axis, axis) for axis in column.shape]
    if list(array.shape) != wanted:
        found, expected = (", ".join(map(str, shape)) for shape in (array.shape, wanted))
        raise ValueError(f"{name} has the shape ({found}), not ({expected})")


def _check_values(name, array, column, lengths):
    blocks = range(0, len(array), BLOCK_ROWS) if array.dtype.kind == "f" else ()
    if not all(np.isfinite(array[begin : begin + BLOCK_ROWS]).all() for begin in blocks):
        raise ValueError(f"{name} has values that are no finite numbers")
    if column.at_least is not None and array.size and array.min() < column.at_least:
        raise ValueError(f"{name} has {array.min()}, not {column.at_least} or more")
    if column.below is not None and array.size and array.max() >= lengths[column.below]:
        raise ValueError(
            f"{name} has {array.max()}, not numbers below the {lengths[column.below]} of "
            f"{column.below}"
        )
    if column.order:
        is_right = np.less if column.order == "increasing" else np.less_equal
        if not is_right(array[:-1], array[1:]).all():
            raise ValueError(f"{name} is not {column.order}")
