"""The checkpoint of a training run: written, found again, restored, or refused.

Imports Keras, via `model`.
"""

import math
import os
import re
from itertools import zip_longest

import numpy as np

import model
from data.arrays import load_arrays, save_arrays
from recipes import Recipe, find_given_up
from runs.session import CHECKPOINT, MODEL, PREVIOUS_CHECKPOINT
from utils import ExpectedError, say


def save_checkpoint(session, network, recipe, images, rows, backbone=None):
    """Writes weights, optimizer, recipe, what was trained on, and history as one atomic file.

    The checkpoint before it stays as a second one, in case this one is damaged. `backbone` is the
    digest of a frozen backbone that is not in the network. ExpectedError for weights that are not
    finite.
    """
    page = {
        "landmarks": images.class_table.fingerprint,
        "labels": images.labels.fingerprint,
        "precision": model.precision(),
        "recipe": recipe.as_page(),
        "keras": model.keras.__version__,
        "variables": [_name_of(variable) for variable in variables_of(network)],
        "backbone": backbone,
        "history": rows,
    }
    variables = {f"v{i:05d}": model.to_numpy(v) for i, v in enumerate(variables_of(network))}
    # The loss of a batch is that before its step: the last step of a shard shows here alone.
    if not all(np.isfinite(values).all() for values in variables.values()):
        raise ExpectedError(
            f"mini-epoch {len(rows)}: its weights are not finite; expected finite numbers; run "
            "again from the last checkpoint, or start over with a lower learning rate"
        )
    path = session.path(CHECKPOINT)
    if path.exists():
        os.replace(path, session.path(PREVIOUS_CHECKPOINT))
    save_arrays(path, page, **variables)


def size_on_disk(network):
    """Estimates the bytes of a checkpoint."""
    return sum(4 * math.prod(variable.shape) for variable in variables_of(network))


def variables_of(network):
    """Lists all that training changes, in an order that depends on the architecture alone."""
    return [*network.variables, *network.optimizer.variables]


def _name_of(variable):
    """Gives a variable's path without numbers: those of Keras count all layers of the process."""
    return re.sub(r"_\d+", "", variable.path)


def forget(session):
    """Removes the results of training, so that it starts over."""
    for name in (CHECKPOINT, PREVIOUS_CHECKPOINT, MODEL):
        session.path(name).unlink(missing_ok=True)


def load_checkpoint(session):
    """Reads the checkpoint, or the one before where it is damaged or missing.

    Where the output has none, those of an earlier session are copied first. Gives (path, dict of
    arrays, page), or None where there is none; ExpectedError where all are damaged.
    """
    paths = [session.path(CHECKPOINT), session.path(PREVIOUS_CHECKPOINT)]
    if not any(path.exists() for path in paths):
        session.copy_earlier(CHECKPOINT)
        session.copy_earlier(PREVIOUS_CHECKPOINT)
    failure = None
    for path in [path for path in paths if path.exists()]:
        try:
            saved = load_arrays(path)
            if not {"recipe", "precision", "landmarks", "history"} <= saved[1].keys():
                expected = "one that recognition.py wrote; remove it"
                problem = f"{path}: not a checkpoint of this version; expected {expected}"
                raise ExpectedError(problem)
        except ExpectedError as error:
            failure = error
            say(f"{error}; trying the checkpoint before it")
            continue
        if path != paths[0]:
            paths[0].unlink(missing_ok=True)  # else the next save would put it in this one's place
        return path, *saved
    if failure:
        raise ExpectedError(str(failure), setting="fresh") from failure
    return None


def find_checkpoint(session, recipe, images, backbone=None):
    """Gives what `load_checkpoint` does; ExpectedError for other settings, labels or weights."""
    if saved := load_checkpoint(session):
        path, _, page = saved
        if problem := _find_difference(page, recipe, images, backbone):
            raise ExpectedError(f"{path}: {problem}", setting="fresh")
    return saved


def restore(saved, network):
    """Gives the variables of a network a checkpoint's values; gives the rows of its history.

    ExpectedError where they differ: another Keras may have other ones for the same recipe.
    """
    path, arrays, page = saved
    arrays, variables = [arrays[name] for name in sorted(arrays)], variables_of(network)
    wanted = [(_name_of(variable), tuple(variable.shape)) for variable in variables]
    names = page.get("variables") or [name for name, _ in wanted]  # older ones have none
    found = zip_longest(names, (each.dtype.kind in "fiub" and each.shape for each in arrays))
    for number, (theirs, ours) in enumerate(zip_longest(found, wanted)):
        if theirs != ours:
            theirs, ours = (f"{one[0]} {one[1]}" if one else "none" for one in (theirs, ours))
            here, writer = model.keras.__version__, page.get("keras", "3")
            expected = f"expected {ours}, as Keras {here} has it"
            remedy = f"continue with Keras {writer}, the version that wrote it"
            problem = f"{path}: its weight {number} is {theirs}; {expected}; {remedy}"
            raise ExpectedError(problem, "fresh")
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
    return page["history"]


def _find_difference(page, recipe, images, backbone):
    """Says what of a checkpoint's page keeps a run from continuing; None where nothing does."""
    try:
        was = Recipe.of(page["recipe"]).settings()
        given_up = find_given_up(page["recipe"])
    except ValueError as error:
        return f"{error}; expected a checkpoint that recognition.py wrote"
    if given_up:
        return (
            f"it was begun with {given_up}, which is no setting now; expected a run of this "
            "version; continue with the version that began it"
        )
    for name, value in recipe.settings().items():
        if was[name] != value:
            return (
                f"it has {name} = {was[name]}, now it is {value}; expected the same settings to "
                "continue; give them again"
            )
    here, of_labels = model.precision(), images.labels.fingerprint
    checks = (
        (page["precision"], here, f"trained in {page['precision']}, here it is {here}; expected "
         "the same kind of processor; continue with or without a GPU as before"),
        (page["landmarks"], images.class_table.fingerprint,
         f"its landmarks are not the {len(images.class_table)} of this source; expected the same "
         "class table; continue with the same source"),
        (page.get("labels", of_labels), of_labels, "it was trained with other labels of the same "
         "landmarks; expected the same train table; continue with the same source"),
        (page.get("backbone"), backbone, "the frozen backbone has other weights now; expected "
         "those that its vectors came from; continue with the same weights"),
    )  # fmt: skip
    return next((problem for theirs, ours, problem in checks if theirs != ours), None)
