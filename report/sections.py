"""What is in each section of the report: facts -> HTML; None where there is nothing to say."""

from data.landmarks import name_of_category
from recipes import Recipe
from report.charts import histogram, line_chart
from report.markup import join, table, tag
from search.reranks import RERANKS
from utils import format_duration

NUM_GLDV2_TESTS = 117_577
MAX_LEFT_OUT = 200  # lines of what was left out
# Re-scored on ground truth v2.1, in percent: (name, private, public).
# Source: Weyand et al., arXiv:2004.01804
RESCORED_2019 = {
    "GAP": (
        ("smlyaka", 69.39, 65.85), ("JL", 66.53, 61.86), ("Cookpad", 33.66, 31.12),
        ("ods.ai", 24.02, 22.28),
    ),
    "mAP@100": (
        ("smlyaka", 37.14, 35.63), ("imagesearch", 34.38, 32.04), ("VRG Prague", 25.48, 23.71),
        ("JL", 24.98, 22.73),
    ),
}  # fmt: skip
MEANINGS = {
    "GAP": (
        "Global average precision: all predictions are ranked by confidence, and each right one "
        "earns the precision down to its rank. 1 is perfect. A landmark named with confidence "
        "where there is none costs everything ranked below it."
    ),
    "mAP@100": (
        "Mean average precision of the 100 nearest index images of each query that has any. "
        "1 is perfect: all images of its landmark come first."
    ),
}
USAGES = ("Public", "Private", "all")
SPREAD_COLORS = {"named rightly": "green", "named wrongly": "orange", "no landmark in it": "blue"}


def tiles(all_facts):
    """Writes the last score of each run, large."""
    tiles = []
    for facts in all_facts.values():
        for score in facts.get("scores", [])[-1:]:
            usages = score["usages"]
            others = ", ".join(f"{usage} {value:.4f}" for usage, value in usages.items()
                               if usage != "all")  # fmt: skip
            for chance in facts.get("chance", {}).values():
                others += f"; by chance {chance['all']:.4f}"
            tiles.append(tag("li", score["name"], tag("b", f"{usages['all']:.4f}"),
                             tag("span", others, class_="quiet")))  # fmt: skip
    return tag("ul", *tiles, class_="tiles") if tiles else None


def scores(all_facts):
    """Writes the table of all scores and what they mean."""
    rows = [score for facts in all_facts.values() for score in facts.get("scores", [])]
    if not rows:
        return tag("p", "The source has no ground truth, so that nothing is scored.")
    by_chance = {
        f"{name} by chance": usages
        for facts in all_facts.values()
        for name, usages in facts.get("chance", {}).items()
    }
    lines = [
        [name, *(f"{usages[u]:.4f}" if u in usages else "-" for u in USAGES)]
        for name, usages in [*((row["name"], row["usages"]) for row in rows), *by_chance.items()]
    ]
    names = {score["name"].split()[0] for score in rows}
    meanings = (
        tag("p", tag("b", name), ": ", meaning)
        for name, meaning in MEANINGS.items()
        if name in names
    )
    return join(
        table(["score", *USAGES], lines, numeric=(1, 2, 3)),
        *meanings,
        _counts(all_facts),
        _rescored(all_facts, names),
    )


def _counts(all_facts):
    """Says how many test images each leaderboard has."""
    lines = []
    for facts in all_facts.values():
        if "usages" in facts:
            counts = [
                f"{rows:,} {usage} ({answers:,} of them with an answer)"
                for usage, (rows, answers) in facts["usages"].items()
                if rows
            ]
            lines.append(f"{facts['title']}: {', '.join(counts)}.")
    leaderboards = (
        "Public and Private are the two leaderboards of the challenge; test images that are marked "
        "Ignored count for neither."
    )
    return tag("p", " ".join([leaderboards, *lines]), class_="quiet")


def _rescored(all_facts, names):
    num_tests = max(sum(rows for rows, _ in facts.get("usages", {}).values())
                    for facts in all_facts.values())  # fmt: skip
    compares = "The same test set as here."
    if num_tests != NUM_GLDV2_TESTS:
        compares = (
            f"They are of Google Landmarks v2 and its {NUM_GLDV2_TESTS:,} test images; this run "
            f"had {num_tests:,} others, so that its scores do not compare with them."
        )
    rows = [
        [team, name, f"{public / 100:.4f}", f"{private / 100:.4f}"]
        for name, teams in RESCORED_2019.items() if name in names
        for team, private, public in teams
    ]  # fmt: skip
    header = ["team of 2019", "score", "Public", "Private"]
    return tag(
        "details",
        tag("summary", "The teams of 2019, scored again on the same ground truth v2.1"),
        tag("p", compares, " Source: Weyand et al., arXiv:2004.01804.", class_="quiet"),
        table(header, rows, numeric=(2, 3)),
        open=num_tests == NUM_GLDV2_TESTS,
    )


def training(facts):
    """Writes the curves of the training."""
    history = facts.get("history")
    if not history or not history["mini_epoch"]:
        return None
    steps = history["mini_epoch"]

    def curve(name, label, color, marker=None):
        points = [(x, y) for x, y in zip(steps, history[name], strict=True) if y is not None]
        return label, color, [x for x, _ in points], [y for _, y in points], marker

    charts = [
        line_chart(title, ("mini-epoch", title.lower()), [
            curve(title.lower(), "train", "blue"),
            curve(f"valid_{title.lower()}", "held out", "orange", "o"),
        ], counts=True, ylim=limits)
        for title, limits in (("Loss", (0, None)), ("Accuracy", (0, 1)))
    ]  # fmt: skip
    charts.append(line_chart("Images a second", ("mini-epoch", "images/s"), [
        curve("images_per_s", "images/s", "green")
    ], counts=True, ylim=(0, None)))  # fmt: skip
    seconds, waited = (sum(filter(None, history[name])) for name in ("seconds", "waited_s"))
    held_out = [value for value in history["valid_accuracy"] if value is not None]
    held_out = f" At the end {held_out[-1]:.1%} of the held-out images were named rightly." if (
        held_out) else ""  # fmt: skip
    text = (
        f"{len(steps):,} mini-epochs, {sum(history['images']):,} images in "
        f"{format_duration(seconds)}, of which {waited / max(seconds, 1e-9):.0%} was waiting for "
        f"data.{held_out}"
    )
    if facts["recipe"]["loss"] in ("arcface", "cosface"):
        text += (
            " The margin makes the loss of the train images larger than that of the held-out ones."
        )
    return join(tag("p", text), tag("div", *charts, class_="charts"))


def confidence(facts):
    """Writes how far confidences can be trusted."""
    curve = facts.get("curve")
    if not curve or not curve["confidence"]:
        return None
    x = curve["confidence"]
    charts = [
        line_chart(
            "Precision down to a confidence", ("confidence of the prediction", "share"),
            [("precision", "blue", x, curve["precision"], None),
             ("GAP collected", "green", x, curve["gap"], None)],
            xlim=(max(x), min(x)) if max(x) > min(x) else None, ylim=(0, 1),
        ),
    ]  # fmt: skip
    calibration, spread = facts.get("calibration"), facts["spread"]
    line = (calibration["threshold"], "threshold") if calibration else None
    groups = [(f"{kind} ({sum(counts):,})", SPREAD_COLORS[kind], (spread["edges"], counts))
              for kind, counts in spread["counts"].items()]  # fmt: skip
    charts.append(histogram("Landmarks and non-landmarks", ("confidence", "share of its kind"),
                            groups, line))  # fmt: skip
    text = (
        "The first chart goes from the surest prediction downwards: how many so far are right, and "
        "how much of the GAP they have earned. Where the green line is flat, predictions add "
        "nothing. The second shows the confidences of what was named rightly, of what was named "
        "wrongly, and of what shows no landmark."
    )
    return join(tag("p", text), tag("div", *charts, class_="charts"), _calibration(calibration))


def _calibration(calibration):
    if not calibration:
        return None
    text = (
        f"identify.py says “probably no landmark” below {calibration['threshold']:.3f}. That was "
        f"chosen on {calibration['num_chosen_on']:,} Public images. On "
        f"{calibration['num_checked_on']:,} Private ones it keeps {calibration['kept']:.0%} of "
        f"what is named rightly and refuses {calibration['refused']:.0%} of what shows no "
        "landmark. The submission does not depend on it."
    )
    return tag("p", text)


def mistakes(facts):
    """Writes what was mistaken most often, and most surely."""
    pairs, false = facts.get("pairs"), facts.get("false_alarms")
    if not pairs and not false:
        return None
    parts = []
    if pairs:
        parts += [tag("h3", "Landmarks taken for another most often"),
                  tag("div", *(_pair(facts, pair) for pair in pairs), class_="cards")]  # fmt: skip
    if false:
        pictures = [
            _picture(facts, one["picture"], f"named {_name(facts, one['named'])}",
                     f"{one['confidence']:.2f} {_name(facts, one['named'])}", "wrong")
            for one in false
        ]  # fmt: skip
        parts += [tag("h3", "No landmark in it, but named with the highest confidence"),
                  tag("div", *pictures, class_="pictures")]  # fmt: skip
    return join(*parts)


def _pair(facts, pair):
    shown, named = (_name(facts, pair[kind]) for kind in ("shown", "named"))
    times = f"{pair['times']} times" if pair["times"] > 1 else "once"
    pictures = [
        _picture(
            facts, pair["pictures"]["mistaken"], "the mistaken one",
            f"mistaken, {pair['confidence']:.2f}", "wrong",
        )
    ]  # fmt: skip
    for kind, name in (("shown", shown), ("named", named)):
        caption = f"{name}{'' if pair['pictures'][kind] else ', never named rightly'}"
        pictures.append(_picture(facts, pair["pictures"][kind], caption, caption, "right"))
    words = tag("p", tag("b", shown), " taken for ", tag("b", named), f" {times}")
    return tag("div", words, tag("div", *pictures, class_="pictures"), class_="card")


def _picture(facts, image_id, alt, caption, frame=""):
    data = facts.get("pictures", {}).get(image_id or "")
    if data:
        shown = tag("img", src=f"data:image/jpeg;base64,{data}", alt=f"image {image_id}: {alt}",
                    class_=f"frame {frame}".strip())  # fmt: skip
    else:
        shown = tag("div", "no picture", class_="frame missing")
    return tag("figure", shown, tag("figcaption", caption))


def _name(facts, landmark):
    category = facts.get("categories", {}).get(str(landmark))
    return name_of_category(category) if category else f"landmark {landmark}"


def queries(facts):
    """Writes the best, median and worst queries with what was found for them."""
    if not facts.get("rows"):
        return None
    measure = RERANKS.get(facts.get("rerank"), RERANKS["none"]).measure
    text = (
        "The query comes first, then its nearest index images. ✓ shows the same landmark, ✗ does "
        f"not. Below each: {measure}, and the "
        "landmark that it is said to show."
    )
    parts = [tag("p", text)]
    if spread := facts.get("spread"):
        group = (f"{sum(spread['counts']):,} queries", "blue", (spread["edges"], spread["counts"]))
        chart = histogram(
            "Average precision of the queries", ("average precision", "share"), [group]
        )
        parts.append(tag("div", chart, class_="charts"))
    for row in facts["rows"]:
        query = row["query"]
        pictures = [_picture(facts, query["picture"], "query", " ".join(query["caption"]), "query")]
        pictures += [_near(facts, near) for near in row["nearest"]]
        parts += [tag("h3", row["title"] or f"query {query['picture']}"),
                  tag("div", *pictures, class_="pictures")]  # fmt: skip
    return join(*parts)


def _near(facts, near):
    frame, alt, mark = {
        True: ("right", "same landmark", tag("span", "✓ ", class_="mark yes")),
        False: ("wrong", "another landmark", tag("span", "✗ ", class_="mark no")),
        None: ("", "neighbor", None),
    }[near["is_right"]]
    return _picture(facts, near["picture"], alt, join(mark, " ".join(near["caption"])), frame)


def landmarks(facts):
    """Writes the table of landmarks, which sorts where scripts run."""
    if not facts.get("landmarks"):
        return None
    rows = []
    for one in facts["landmarks"]:
        category = facts["categories"].get(str(one["landmark"]), "")
        name = _name(facts, one["landmark"])
        if category.startswith(("http://commons.wikimedia.org/", "https://commons.wikimedia.org/")):
            name = tag("a", name, href=category, rel="noreferrer")
        found, precise = one["right"] / one["images"], one["right"] / max(1, one["named"])
        rows.append([
            name, (one["images"], f"{one['images']:,}"), (one["right"], f"{one['right']:,}"),
            (found, f"{found:.0%}"), (one["named"], f"{one['named']:,}"),
            (precise if one["named"] else -1, f"{precise:.0%}" if one["named"] else "-"),
            (one["confidence"] if one["named"] else -9,
             f"{one['confidence']:.2f}" if one["named"] else "-"),
        ])  # fmt: skip
    header = ["landmark", "test images", "named rightly", "found", "named in all", "precision",
              "mean confidence"]  # fmt: skip
    shown = (
        f"the {len(rows):,} with the most test images of "
        if facts["num_truths"] > len(rows)
        else ""
    )
    text = (
        f"Of {shown}{facts['num_truths']:,} landmarks in the ground truth; "
        f"{facts.get('known_to', 'the network')} knows {facts['num_landmarks']:,}. An image with "
        "two landmarks counts for both."
    )
    whole = table(header, rows, numeric=range(1, 7), class_="sorts")
    return join(tag("p", text), tag("div", whole, class_="tall"))


def left_out(all_facts):
    """Writes what was bad or could not be read."""
    lines = []
    for facts in all_facts.values():
        history = facts.get("history") or {"bad_images": [], "problem": [], "shard": []}
        if num_bad := sum(filter(None, history["bad_images"])):
            lines.append(f"{num_bad:,} train images could not be read, counted in every epoch.")
        lines += [f"train shard {shard:03d}: {problem}"
                  for shard, problem in zip(history["shard"], history["problem"], strict=True)
                  if problem]  # fmt: skip
        lines += [f"test shard {number:03d}: none of its images is described."
                  for number in facts.get("empty_shards", [])]  # fmt: skip
        lines += facts.get("left_out", [])
    if not lines:
        return tag("p", "Nothing that these runs know of.")
    if (more := len(lines) - MAX_LEFT_OUT) > 0:
        lines[MAX_LEFT_OUT:] = [f"... and {more:,} more."]
    return tag("ul", *(tag("li", line) for line in lines))


def runs(all_facts):
    """Writes where, when, with what and how long each run went."""
    parts = []
    for facts in all_facts.values():
        run = facts["run"]
        versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        rows = [["began", run["started"]], ["took", format_duration(run["seconds"])],
                ["source", run["source"]], ["machine", run["machine"]],
                ["versions", versions], *facts.get("details", [])]  # fmt: skip
        parts += [tag("h3", facts["title"]), table(["", ""], rows)]
        if facts.get("recipe"):
            parts.append(_recipe(facts["recipe"]))
    return join(*parts)


def _recipe(settings):
    """Writes a recipe as a table, those settings first that are not those of 2019."""
    of_2019 = Recipe().settings()
    settings = {key: tuple(one) if isinstance(one, list) else one for key, one in settings.items()}
    changed = {key: value for key, value in settings.items() if of_2019.get(key) != value}
    lines = [
        [name, _shown(value), _shown(of_2019.get(name, "-"))] for name, value in changed.items()
    ]
    same = ", ".join(f"{name} {_shown(value)}" for name, value in settings.items()
                     if name not in changed)  # fmt: skip
    return join(
        tag("p", "The recipe, where it is not that of 2019:"),
        table(["setting", "here", "2019"], lines),
        tag("details", tag("summary", "What is as in 2019"), tag("p", same)),
    )


def _shown(value):
    if isinstance(value, tuple):
        return ":".join(map(str, value))
    return ("no", "yes")[value] if isinstance(value, bool) else value
