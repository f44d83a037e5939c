"""The confidence below which a photo probably shows no landmark, and its file calibration.json.

It is chosen on the Public rows of the released ground truth and checked on the Private ones. No
submission depends on it: it only says how `identify.py` words an answer.
"""

import json
from dataclasses import asdict, dataclass, fields

import numpy as np

from data.landmarks import format_image_id
from metrics import LEADERBOARDS
from utils import ExpectedError, atomic_write

LEAST_KEPT = 0.75  # of the photos named rightly, among those that the threshold is chosen on
# Of each number in the file. A cosine or a probability is 1 at most; the threshold may be above.
LIMITS = {"threshold": (-2, 2), "num_chosen_on": (0, 1e9), "num_checked_on": (0, 1e9),
          "kept": (0, 1), "refused": (0, 1)}  # fmt: skip


@dataclass(frozen=True)
class Calibration:
    """A threshold, and what it does to photos that it was not chosen on."""

    model: str  # fingerprint of the recogniser
    threshold: float  # the least confidence of what is called a landmark
    num_chosen_on: int  # photos that it was chosen on
    num_checked_on: int  # photos that the two shares are of
    kept: float  # share of the photos named rightly that are called a landmark
    refused: float  # share of the photos without a landmark that are not


def calibrate(model, found, solution):
    """Chooses the threshold on the Public images, and checks it on the Private ones.

    It maximises the mean of `kept` and `refused`, so that it does not depend on how many of the
    images happen to show a landmark, and keeps `LEAST_KEPT` of the right names or more. Images
    whose landmark is named wrongly do not count: either answer to them is wrong.

    Gives the `Calibration` of a model of this fingerprint, whose `Descriptions` were found; None
    where a leaderboard lacks either kind of image.
    """
    groups = {usage: ([], []) for usage in LEADERBOARDS}  # named rightly, without a landmark
    columns = (found.image_ids, found.landmark_ids.tolist(), found.confidences.tolist())
    for image_id, landmark_id, confidence in zip(*columns, strict=True):
        shown, usage = solution[format_image_id(image_id)]
        if usage in groups and (not shown or landmark_id in shown):
            groups[usage][not shown].append(confidence)
    if not all(kind for group in groups.values() for kind in group):
        return None
    (right, without), others = groups["Public"], groups["Private"]
    confidences = np.array(right + without)
    threshold = choose_threshold(confidences, np.arange(len(confidences)) < len(right))
    kept, refused = np.array(others[0]) >= threshold, np.array(others[1]) < threshold
    nums = len(confidences), len(kept) + len(refused)
    return Calibration(model, threshold, *nums, float(kept.mean()), float(refused.mean()))


def choose_threshold(confidences, is_kept):
    """Chooses the threshold with the best mean of the shares kept rightly and refused rightly.

    It is in the middle between two confidences. `is_kept`, (n,) bool, of both kinds, says which
    should be at or above it.
    """
    order = np.argsort(confidences)
    ordered, is_kept = confidences[order].astype(np.float64), is_kept[order]
    num_kept, num_others = is_kept.sum(), (~is_kept).sum()
    # With the threshold above each photo; in whole numbers, so that ties go to the lowest one.
    worth = (num_kept - np.cumsum(is_kept)) * num_others + np.cumsum(~is_kept) * num_kept
    keeps_enough = num_kept - np.cumsum(is_kept) >= LEAST_KEPT * num_kept
    is_gap = keeps_enough & np.append(ordered[1:] > ordered[:-1], False)
    if not is_gap.any():
        return float(ordered[0])
    best = int(np.argmax(np.where(is_gap, worth, -1)))
    return float((ordered[best] + ordered[best + 1]) / 2)


def save_calibration(path, calibration):
    """Writes a `Calibration` as JSON, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(asdict(calibration), indent=1) + "\n", encoding="utf-8")


def load_calibration(path):
    """Reads what `save_calibration` wrote; raises ExpectedError if it is none, or impossible."""
    try:
        page = json.loads(path.read_text(encoding="utf-8"))
        found = Calibration(*(page[field.name] for field in fields(Calibration)))
        for name, (lowest, highest) in LIMITS.items():
            value = page[name]
            if type(value) not in (int, float) or not lowest <= value <= highest:
                raise ValueError(f"{name} is {json.dumps(value)[:40]}")
        return found
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        reason = f"no {reason} in it" if isinstance(error, KeyError) else reason
        what = f"{path}: {reason[:160]}; expected a calibration that recognition.py wrote"
        raise ExpectedError(f"{what}; predict again, or remove it") from error
