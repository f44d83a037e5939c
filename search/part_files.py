"""All the parts of one search or gallery: complete, none twice, none of another one."""

import numpy as np

from utils import ExpectedError

OF_A_PART = ("part", "shards", "left_out", "files")  # facts that parts do not share


def is_part(fingerprint):
    """Tells whether a page of facts says which part it is, of how many."""
    number, num_parts = fingerprint.get("part"), fingerprint.get("parts")
    return type(number) is int and type(num_parts) is int and 0 <= number < num_parts


def load_all(paths, load, columns, images, whole):
    """Reads part files and checks that they belong together, are all, and hold an image.

    Args:
        load: function of a path that gives (part, its fingerprint).
        columns: names of the attributes that all parts share.
        images: name of the attribute with the images that were searched.
        whole: what they are parts of, e.g. `search`.

    Returns:
        (list of (part, its fingerprint) by number, dict of the facts that all share).
    """
    parts, first = {}, None
    for path in paths:
        part, fingerprint = load(path)
        shared = {key: fact for key, fact in fingerprint.items() if key not in OF_A_PART}
        first = first or (path, part, shared)
        _require_one(path, part, shared, first, columns, whole)
        number = fingerprint["part"]
        if number in parts:
            raise ExpectedError(
                f"{path}: part {number} is given twice; expected each part once; leave one out"
            )
        parts[number] = part, fingerprint
    shared = first[2]
    if missing := sorted(set(range(shared["parts"])) - parts.keys()):
        raise ExpectedError(
            f"part {', '.join(map(str, missing))} of {shared['parts']} is missing; expected all "
            f"parts of the {whole}; search part {missing[0]} of {shared['parts']} first"
        )
    if not any(len(getattr(part, images)) for part, _ in parts.values()):
        raise ExpectedError(
            f"{first[0]}: no image is in any of the {shared['parts']} parts of the {whole}; "
            "expected the images that the source's table names; check that table and shards "
            "belong together, and search again"
        )
    return [parts[number] for number in sorted(parts)], shared


def _require_one(path, part, shared, first, columns, whole):
    """Raises ExpectedError if a part does not belong to the first one."""
    first_path, first_part, first_shared = first
    advice = f"expected parts of one {whole}; search the odd one again, with the same queries.npz"
    for key in shared.keys() | first_shared.keys():
        if shared.get(key) != first_shared.get(key):
            raise ExpectedError(
                f"{path}: {key} is {shared.get(key)}, but {first_shared.get(key)} in "
                f"{first_path}; {advice}"
            )
    for name in columns:
        if not np.array_equal(getattr(part, name), getattr(first_part, name)):
            raise ExpectedError(f"{path}: its {name} are not those of {first_path}; {advice}")
