"""What the report says of a recognition: facts that JSON can hold."""

import itertools
from collections import Counter

import numpy as np

from data.landmarks import categories_of, format_image_id, read_image_ids
from data.sources import TEST_CSV
from metrics import LEADERBOARDS
from report.chance import gap_by_chance
from report.neighbors import picture_of
from report.run import count_usages, encode_pictures, read_history

MAX_LANDMARKS = 500  # in the table, those with the most test images
MAX_PAIRS = 8  # confused landmarks, three pictures each
MAX_FALSE = 8  # pictures without a landmark that got the highest confidences
NUM_POINTS = 300  # of a curve
NUM_BINS = 25


def gather(session, describer, found, calibration, scores, solution):
    """Gathers the facts of a prediction, `Descriptions`: a dict; scores as of `scores.score`."""
    source, num_landmarks = session.source, len(describer.class_table)
    num_missing = len(read_image_ids(source.fetch(TEST_CSV))) - len(found)
    empty_shards = set(range(source.count_shards("test"))) - set(found.shard_numbers.tolist())
    return {
        "title": "Recognition",
        "model": describer.fingerprint["model"],
        "num_landmarks": num_landmarks,
        "recipe": describer.recipe.settings(),
        "history": read_history(session),
        "empty_shards": sorted(empty_shards),
        "left_out": [f"{num_missing:,} test images could not be described."] if num_missing else [],
        "calibration": vars(calibration) if calibration else None,
        "scores": [{"name": name, "usages": usages} for name, usages in scores.items()],
    } | judge(session, found, solution, num_landmarks)


def judge(session, found, solution, num_landmarks):
    """Gathers what is right and wrong in predictions; gives a dict, empty where nobody knows."""
    if not solution:
        return {}
    rows = Rows(found, solution)
    facts = {
        "usages": count_usages(solution),
        "curve": rows.curve(),
        "spread": rows.spread(),
        "landmarks": rows.landmarks(),
        "num_truths": len(rows.num_true),
        "chance": {"GAP": gap_by_chance(solution, num_landmarks)},
        "pairs": rows.confused(),
        "false_alarms": rows.false_alarms(),
    }
    pictures = [picture_of("test", found, row) for row in rows.shown]
    facts["pictures"] = encode_pictures(session.source, pictures)
    named = {row["landmark"] for row in facts["landmarks"]}
    named |= {pair[kind] for pair in facts["pairs"] for kind in ("shown", "named")}
    named |= {row["named"] for row in facts["false_alarms"]}
    known = categories_of(session.source)
    facts["categories"] = {str(one): known[one] for one in sorted(named & known.keys())}
    return facts


class Rows:
    """Predictions, `Descriptions`, of scored test images, the surest first, and what is true."""

    def __init__(self, found, solution):
        self.image_ids = list(map(format_image_id, found.image_ids))
        self.shown = set()  # rows of `found` whose pictures are wanted
        truths = [solution[image_id] for image_id in self.image_ids]
        # As GAP ranks: by confidence, ties by image id, which the rows ascend by.
        order = np.argsort(-found.confidences, kind="stable").tolist()
        self.rows = [row for row in order if truths[row].usage in LEADERBOARDS]
        self.truths = [truths[row].landmark_ids for row in self.rows]
        self.named = found.landmark_ids[self.rows].tolist()
        self.confidences = found.confidences[self.rows].astype(float)
        pairs = zip(self.named, self.truths, strict=True)
        self.is_right = np.array([named in truth for named, truth in pairs], bool)
        self.shows_none = np.array([not truth for truth in self.truths], bool)
        scored = [t.landmark_ids for t in solution.values() if t.usage in LEADERBOARDS]
        self.num_true = Counter(landmark for truth in scored for landmark in truth)
        self.num_landmark_images = sum(map(bool, scored))

    def curve(self):
        """Gives precision and the GAP collected by the predictions down to a confidence."""
        num_rows = len(self.rows)
        precision = np.cumsum(self.is_right) / np.arange(1, num_rows + 1)
        gap = np.cumsum(self.is_right * precision) / max(1, self.num_landmark_images)
        places = np.unique(np.linspace(0, num_rows - 1, min(NUM_POINTS, num_rows)).astype(int))
        curves = {"confidence": self.confidences, "precision": precision, "gap": gap}
        return {name: _rounded(values[places]) for name, values in curves.items()}

    def spread(self):
        """Gives histograms of the confidences of the three kinds of predictions."""
        limits = self.confidences.min(initial=0), self.confidences.max(initial=1)  # of a cosine
        edges = np.linspace(*limits, NUM_BINS + 1)
        kinds = {
            "named rightly": self.is_right,
            "named wrongly": ~self.is_right & ~self.shows_none,
            "no landmark in it": self.shows_none,
        }
        counts = {kind: np.histogram(self.confidences[rows], edges)[0].tolist()
                  for kind, rows in kinds.items()}  # fmt: skip
        return {"edges": _rounded(edges), "counts": counts}

    def landmarks(self):
        """Lists the landmarks with the most test images: what was found of them."""
        named, confidences = Counter(self.named), Counter()
        right = Counter(itertools.compress(self.named, self.is_right))
        for landmark, confidence in zip(self.named, self.confidences.tolist(), strict=True):
            confidences[landmark] += confidence
        chosen = sorted(self.num_true, key=lambda one: (-self.num_true[one], one))[:MAX_LANDMARKS]
        return [
            {"landmark": one, "images": self.num_true[one], "named": named[one],
             "right": right[one],
             "confidence": round(confidences[one] / named[one], 4) if named[one] else None}
            for one in chosen
        ]  # fmt: skip

    def confused(self):
        """Lists the pairs (shown, named) that were mistaken most often, with pictures."""
        counts, places, right = Counter(), {}, {}  # the surest place of a pair, of a right name
        for place, (named, truth) in enumerate(zip(self.named, self.truths, strict=True)):
            if named in truth:
                right.setdefault(named, place)
            for shown in sorted(truth) if named not in truth else ():
                counts[shown, named] += 1
                places.setdefault((shown, named), place)
        pairs = []
        for (shown, named), times in counts.most_common(MAX_PAIRS):  # of equal ones the surest
            place = places[shown, named]
            pictures = {"mistaken": place, "shown": right.get(shown), "named": right.get(named)}
            pictures = {kind: self._show(place) for kind, place in pictures.items()}
            pairs.append({"shown": shown, "named": named, "times": times,
                          "confidence": self.confidences[place], "pictures": pictures})  # fmt: skip
        return pairs

    def false_alarms(self):
        """Lists the pictures without a landmark that were named surest."""
        return [
            {"picture": self._show(place), "named": self.named[place],
             "confidence": self.confidences[place]}
            for place in np.flatnonzero(self.shows_none)[:MAX_FALSE].tolist()
        ]  # fmt: skip

    def _show(self, place):
        """Notes that a picture is wanted; gives its image id, or None of no place."""
        if place is None:
            return None
        self.shown.add(self.rows[place])
        return self.image_ids[self.rows[place]]


def _rounded(values):
    return [round(value, 5) for value in values.tolist()]
