"""What the report says of a recognition: facts that JSON can hold."""

from collections import Counter, defaultdict

import numpy as np

from data.landmarks import format_image_id, read_categories, read_image_ids
from data.sources import CATEGORY_CSV, TEST_CSV
from metrics import LEADERBOARDS
from report.chance import gap_by_chance
from report.neighbors import picture_of
from report.run import count_usages, encode_pictures, read_history

MAX_LANDMARKS = 500  # in the table, those with the most test images
MAX_PAIRS = 8  # confused landmarks, three pictures each
MAX_FALSE = 8  # pictures without a landmark that got the highest confidences
NUM_POINTS = 300  # of a curve
NUM_BINS = 25
KINDS = ("named rightly", "named wrongly", "no landmark in it")


def gather(session, describer, found, calibration, scores, solution):
    """Gathers the facts of a prediction that is written: a dict.

    Args:
        found: `Descriptions` of the test images.
        calibration: `Calibration`, or None.
        scores, solution: as of `scores.score`.
    """
    source, recipe = session.source, describer.recipe
    num_missing = len(read_image_ids(source.fetch(TEST_CSV))) - len(found)
    empty_shards = sorted(set(range(source.count_shards("test"))) - set(found.shard_numbers))
    facts = {
        "title": "Recognition",
        "model": describer.fingerprint["model"],
        "num_landmarks": len(describer.class_table),
        "recipe": recipe.settings(),
        "history": read_history(session),
        "empty_shards": [int(number) for number in empty_shards],
        "left_out": [f"{num_missing:,} test images could not be described."] if num_missing else [],
        "calibration": vars(calibration) if calibration else None,
    }
    facts["scores"] = [{"name": name, "usages": usages} for name, usages in scores.items()]
    return facts | judge(session, found, solution, len(describer.class_table))


def judge(session, found, solution, num_landmarks):
    """Gathers what is right and wrong in predictions; gives a dict, empty where nobody knows.

    Args:
        found: `Descriptions` of the test images that are named.
        solution: dict of `read_recognition_solution`.
        num_landmarks: that could be named.
    """
    if not solution:
        return {}
    rows = Rows(found, solution)
    facts = {
        "usages": count_usages(solution, lambda truth: truth.landmark_ids),
        "curve": rows.curve(),
        "spread": rows.spread(),
        "landmarks": rows.landmarks(),
        "num_truths": len(rows.num_true),
        "chance": {"GAP": gap_by_chance(solution, num_landmarks)},
    }
    pairs, false = rows.confused(), rows.false_alarms()
    wanted = {row for pair in pairs for row in pair["rows"].values()} | {row for row, _ in false}
    pictures = {row: picture_of("test", found, row) for row in wanted if row is not None}
    facts["pictures"] = encode_pictures(session.source, pictures.values())
    for pair in pairs:
        pair["pictures"] = {kind: row is not None and format_image_id(found.image_ids[row])
                            for kind, row in pair.pop("rows").items()}  # fmt: skip
    facts["pairs"] = pairs
    facts["false_alarms"] = [
        {"picture": format_image_id(found.image_ids[row]), "named": int(found.landmark_ids[row]),
         "confidence": float(found.confidences[row])}
        for row, _ in false
    ]  # fmt: skip
    facts["categories"] = _categories(session, facts)
    return facts


def _categories(session, facts):
    """Gives the categories of the landmarks that the facts name: dict, id as text -> address."""
    if not session.source.exists(CATEGORY_CSV):
        return {}
    known = read_categories(session.source.fetch(CATEGORY_CSV))
    named = {row["landmark"] for row in facts["landmarks"]}
    named |= {pair[kind] for pair in facts["pairs"] for kind in ("shown", "named")}
    named |= {row["named"] for row in facts["false_alarms"]}
    return {str(landmark): known[landmark] for landmark in sorted(named) if landmark in known}


class Rows:
    """The predictions of the scored test images, and what is true of them.

    Args:
        found: `Descriptions` of the test images.
        solution: dict of `read_recognition_solution`.
    """

    def __init__(self, found, solution):
        self.found = found
        truths = [solution[format_image_id(image_id)] for image_id in found.image_ids]
        is_scored = np.array([truth.usage in LEADERBOARDS for truth in truths], bool)
        self.truths = [truth.landmark_ids for truth in truths]
        self.is_right = np.array(
            [landmark in truth for landmark, truth in
             zip(found.landmark_ids.tolist(), self.truths, strict=True)], bool,
        )  # fmt: skip
        self.shows_none = np.array([not truth for truth in self.truths], bool)
        # As GAP ranks: by confidence, ties by image id, which the rows ascend by.
        order = np.argsort(-found.confidences, kind="stable")
        self.order = order[is_scored[order]]
        scored = [t.landmark_ids for t in solution.values() if t.usage in LEADERBOARDS]
        self.num_true = Counter(landmark for truth in scored for landmark in truth)
        self.num_landmark_images = sum(map(bool, scored))

    def curve(self):
        """Gives precision and the GAP collected by the predictions down to a confidence."""
        is_right = self.is_right[self.order]
        precision = np.cumsum(is_right) / np.arange(1, len(is_right) + 1)
        gap = np.cumsum(is_right * precision) / max(1, self.num_landmark_images)
        places = np.unique(np.linspace(0, len(is_right) - 1, NUM_POINTS).astype(int))
        places = places if len(is_right) else []
        return {
            "confidence": _rounded(self.found.confidences[self.order][places]),
            "precision": _rounded(precision[places]),
            "gap": _rounded(gap[places]),
        }

    def spread(self):
        """Gives histograms of the confidences of the three kinds of predictions."""
        order = self.order
        confidences = self.found.confidences[order]
        lowest = min(0.0, float(confidences.min(initial=0)))  # a cosine may be below 0
        is_right, shows_none = self.is_right[order], self.shows_none[order]
        groups = (is_right, ~is_right & ~shows_none, shows_none)
        highest = max(1.0, float(confidences.max(initial=1)))
        edges = np.linspace(lowest, highest, NUM_BINS + 1)
        return {
            "edges": _rounded(edges),
            "counts": {
                kind: np.histogram(confidences[group], edges)[0].tolist()
                for kind, group in zip(KINDS, groups, strict=True)
            },
        }

    def landmarks(self):
        """Lists the landmarks with the most test images: what was found of them."""
        named, right, confidences = Counter(), Counter(), defaultdict(float)
        landmark_ids = self.found.landmark_ids
        for row in self.order.tolist():
            landmark = int(landmark_ids[row])
            named[landmark] += 1
            right[landmark] += int(self.is_right[row])
            confidences[landmark] += float(self.found.confidences[row])
        chosen = sorted(self.num_true, key=lambda one: (-self.num_true[one], one))[:MAX_LANDMARKS]
        return [
            {
                "landmark": one,
                "images": self.num_true[one],
                "named": named[one],
                "right": right[one],
                "confidence": round(confidences[one] / named[one], 4) if named[one] else None,
            }
            for one in chosen
        ]

    def confused(self):
        """Lists the pairs (shown, named) that were mistaken most often, with a row for pictures."""
        counts, rows, right_rows = Counter(), {}, {}
        for row in self.order.tolist():  # the most confident first
            named = int(self.found.landmark_ids[row])
            if self.is_right[row]:
                right_rows.setdefault(named, row)
            elif not self.shows_none[row]:
                for shown in sorted(self.truths[row]):
                    counts[shown, named] += 1
                    rows.setdefault((shown, named), row)
        pairs = sorted(counts, key=lambda pair: -counts[pair])  # stable: the surest first
        return [
            {
                "shown": shown,
                "named": named,
                "times": counts[shown, named],
                "confidence": float(self.found.confidences[rows[shown, named]]),
                "rows": {
                    "mistaken": rows[shown, named],
                    "shown": right_rows.get(shown),
                    "named": right_rows.get(named),
                },
            }
            for shown, named in pairs[:MAX_PAIRS]
        ]

    def false_alarms(self):
        """Lists (row, confidence) of the pictures without a landmark that were named surest."""
        rows = [row for row in self.order.tolist() if self.shows_none[row]][:MAX_FALSE]
        return [(row, float(self.found.confidences[row])) for row in rows]


def _rounded(values):
    return [round(value, 5) for value in np.asarray(values, float).tolist()]
