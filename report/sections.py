"""What is in each section of the report: facts -> HTML; None where there is nothing to say."""

from data.landmarks import name_landmark
from recipes import Recipe
from report.charts import histogram, line_chart
from report.markup import join, table, tag
from search.reranks import RERANKS
from utils import format_duration

NUM_GLDV2_TESTS = 117_577
MAX_LEFT_OUT = 200  # lines of what was left out
# Re-scored on ground truth v2.1. Source: Weyand et al., arXiv:2004.01804
RESCORED_2019 = [  # team, score, Public, Private
    ["smlyaka", "GAP", "0.6585", "0.6939"], ["JL", "GAP", "0.6186", "0.6653"],
    ["Cookpad", "GAP", "0.3112", "0.3366"], ["ods.ai", "GAP", "0.2228", "0.2402"],
    ["smlyaka", "mAP@100", "0.3563", "0.3714"], ["imagesearch", "mAP@100", "0.3204", "0.3438"],
    ["VRG Prague", "mAP@100", "0.2371", "0.2548"], ["JL", "mAP@100", "0.2273", "0.2498"],
]  # fmt: skip
MEANINGS = {
    "GAP": "Global average precision: all predictions are ranked by confidence, and each right one "
    "earns the precision down to its rank. 1 is perfect. A landmark named with confidence where "
    "there is none costs everything ranked below it.",
    "mAP@100": "Mean average precision of the 100 nearest index images of each query that has any. "
    "1 is perfect: all images of its landmark come first.",
}
THRESHOLD = (
    "identify.py says “probably no landmark” below {threshold:.3f}. That was chosen on "
    "{num_chosen_on:,} Public images. On {num_checked_on:,} Private ones it keeps {kept:.0%} of "
    "what is named rightly and refuses {refused:.0%} of what shows no landmark. The submission "
    "does not depend on it."
)
USAGES = ("Public", "Private", "all")
NEAR = {  # by is_right: frame, alt, mark
    True: ("right", "same landmark", tag("span", "✓ ", class_="mark yes")),
    False: ("wrong", "another landmark", tag("span", "✗ ", class_="mark no")),
    None: ("", "neighbor", None),
}
SPREAD_COLORS = {"named rightly": "green", "named wrongly": "orange", "no landmark in it": "blue"}


def tiles(all_facts):
    """Writes the last score of each run, large."""
    tiles = []
    for facts in all_facts.values():
        compared = _compared([*all_facts.values(), facts])  # its own win
        for score in facts.get("scores", [])[-1:]:
            others = dict(score["usages"])
            whole = f"{others.pop('all'):.4f}"
            text = ", ".join(f"{usage} {value:.4f}" for usage, value in others.items())
            for what, usages in compared.items():
                if what.startswith(score["name"].split()[0]) and "all" in usages:
                    text += f"; {what.partition(' ')[2]} {usages['all']:.4f}"
            about = tag("span", text, class_="quiet")
            tiles.append(tag("li", score["name"], tag("b", whole), about))
    return tag("ul", *tiles, class_="tiles") if tiles else None


def scores(all_facts):
    """Writes the table of all scores and what they mean."""
    scored = [
        (one["name"], one["usages"])
        for facts in all_facts.values()
        for one in facts.get("scores", [])
    ]
    if not scored:
        return tag("p", "The source has no ground truth, so that nothing is scored.")
    lines = [
        [name, *(f"{usages[u]:.4f}" if u in usages else "-" for u in USAGES)]
        for name, usages in (*scored, *_compared(all_facts.values()).items())
    ]
    names = {name.split()[0] for name, _ in scored}
    told = [tag("p", tag("b", name), ": ", MEANINGS[name]) for name in MEANINGS if name in names]
    whole = table(["score", *USAGES], lines, numeric=(1, 2, 3))
    return join(whole, *told, _counts(all_facts), _rescored(all_facts, names))


def _compared(runs):
    """Gives what to compare with, of the last run that has it: "GAP by chance" -> scores."""
    kinds = {"untrained": "before training", "chance": "by chance"}
    return {
        f"{name} {words}": usages
        for kind, words in kinds.items()
        for facts in runs
        for name, usages in facts.get(kind, {}).items()
    }


def _counts(all_facts):
    """Says how many test images each leaderboard has."""
    lines = [
        "Public and Private are the two leaderboards of the challenge; test images that are marked "
        "Ignored count for neither."
    ]
    for facts in all_facts.values():
        counts = [f"{rows:,} {usage} ({answers:,} of them with an answer)"
                  for usage, (rows, answers) in facts.get("usages", {}).items()
                  if rows]  # fmt: skip
        if counts:
            lines.append(f"{facts['title']}: {', '.join(counts)}.")
    return tag("p", " ".join(lines), class_="quiet")


def _rescored(all_facts, names):
    num_tests = max(sum(rows for rows, _ in facts.get("usages", {}).values())
                    for facts in all_facts.values())  # fmt: skip
    compares = "The same test set as here."
    if num_tests != NUM_GLDV2_TESTS:
        compares = (
            f"They are of Google Landmarks v2 and its {NUM_GLDV2_TESTS:,} test images; this run "
            f"had {num_tests:,} others, so that its scores do not compare with them."
        )
    header = ["team of 2019", "score", "Public", "Private"]
    return tag(
        "details",
        tag("summary", "The teams of 2019, scored again on the same ground truth v2.1"),
        tag("p", compares, " Source: Weyand et al., arXiv:2004.01804.", class_="quiet"),
        table(header, [row for row in RESCORED_2019 if row[1] in names], numeric=(2, 3)),
        open=num_tests == NUM_GLDV2_TESTS,
    )


def training(facts):
    """Writes the curves of the training."""
    history = facts.get("history")
    if not history or not history["mini_epoch"]:
        return None
    steps = history["mini_epoch"]

    def chart(title, unit, highest, *lines):
        series = [(name, color, steps, history[key], *dots) for name, color, key, *dots in lines]
        return line_chart(title, ("mini-epoch", unit), series, counts=True, ylim=(0, highest))

    charts = [
        chart("Loss", "loss", None,
              ("train", "blue", "loss"), ("held out", "orange", "valid_loss", "o-")),
        chart("Accuracy", "accuracy", 1,
              ("train", "blue", "accuracy"), ("held out", "orange", "valid_accuracy", "o-")),
        chart("Images a second", "images/s", None, ("images/s", "green", "images_per_s")),
    ]  # fmt: skip
    seconds, waited = (sum(filter(None, history[name])) for name in ("seconds", "waited_s"))
    share, took = waited / max(seconds, 1e-9), format_duration(seconds)
    text = f"{len(steps):,} mini-epochs, {sum(history['images']):,} images in {took}, of which "
    text += f"{share:.0%} was waiting for data."
    if held_out := [value for value in history["valid_accuracy"] if value is not None]:
        text += f" At the end {held_out[-1]:.1%} of the held-out images were named rightly."
    if facts["recipe"]["loss"] in ("arcface", "cosface"):
        text += " The margin makes the loss of the train images larger than that of the held-out "
        text += "ones."
    return join(tag("p", text), tag("div", *charts, class_="charts"))


def confidence(facts):
    """Writes how far confidences can be trusted."""
    curve = facts.get("curve")
    if not curve or not curve["confidence"]:
        return None
    x, labels = curve["confidence"], ("confidence of the prediction", "share")
    lines = [("precision", "blue", x, curve["precision"])]
    lines.append(("GAP collected", "green", x, curve["gap"]))
    limits = {"xlim": (max(x), min(x)) if max(x) > min(x) else None, "ylim": (0, 1)}
    charts = [line_chart("Precision down to a confidence", labels, lines, **limits)]
    calibration, spread = facts.get("calibration"), facts["spread"]
    line = (calibration["threshold"], "threshold") if calibration else None
    groups = [(f"{kind} ({sum(counts):,})", SPREAD_COLORS[kind], counts)
              for kind, counts in spread["counts"].items()]  # fmt: skip
    labels = ("confidence", "share of its kind")
    charts.append(histogram("Landmarks and non-landmarks", labels, spread["edges"], groups, line))
    text = (
        "The first chart goes from the surest prediction downwards: how many so far are right, and "
        "how much of the GAP they have earned. Where the green line is flat, predictions add "
        "nothing. The second shows the confidences of what was named rightly, of what was named "
        "wrongly, and of what shows no landmark."
    )
    told = tag("p", THRESHOLD.format(**calibration)) if calibration else None
    return join(tag("p", text), tag("div", *charts, class_="charts"), told)


def mistakes(facts):
    """Writes what was mistaken most often, and most surely."""
    parts = []
    if cards := [_pair(facts, pair) for pair in facts.get("pairs", ())]:
        parts += [tag("h3", "Landmarks taken for another most often"),
                  tag("div", *cards, class_="cards")]  # fmt: skip
    pictures = []
    for one in facts.get("false_alarms", ()):
        name, confidence = _name(facts, one["named"]), f"{one['confidence']:.2f}"
        shown = one["picture"], f"named {name}", f"{confidence} {name}", "wrong"
        pictures.append(_picture(facts, *shown))
    if pictures:
        parts += [tag("h3", "No landmark in it, but named with the highest confidence"),
                  tag("div", *pictures, class_="pictures")]  # fmt: skip
    return join(*parts)


def _pair(facts, pair):
    shown, named = (_name(facts, pair[kind]) for kind in ("shown", "named"))
    times = f"{pair['times']} times" if pair["times"] > 1 else "once"
    confidence, of_kind = f"mistaken, {pair['confidence']:.2f}", pair["pictures"]
    pictures = [_picture(facts, of_kind["mistaken"], "the mistaken one", confidence, "wrong")]
    for kind, name in (("shown", shown), ("named", named)):
        caption = f"{name}{'' if of_kind[kind] else ', never named rightly'}"
        pictures.append(_picture(facts, of_kind[kind], caption, caption, "right"))
    words = tag("p", tag("b", shown), " taken for ", tag("b", named), f" {times}")
    return tag("div", words, tag("div", *pictures, class_="pictures"), class_="card")


def _picture(facts, image_id, alt, caption, frame=""):
    shown = tag("div", "no picture", class_="frame missing")
    if data := facts.get("pictures", {}).get(image_id):
        shown = tag("img", src=f"data:image/jpeg;base64,{data}", alt=f"image {image_id}: {alt}",
                    class_=f"frame {frame}".strip())  # fmt: skip
    return tag("figure", shown, tag("figcaption", caption))


def _name(facts, landmark):
    return name_landmark(str(landmark), facts.get("categories", {}))


def queries(facts):
    """Writes the best, median and worst queries with what was found for them."""
    if not facts.get("rows"):
        return None
    measure = RERANKS.get(facts.get("rerank"), RERANKS["none"]).measure
    text = (
        "The query comes first, then its nearest index images. ✓ shows the same landmark, ✗ does "
        f"not. Below each: {measure}, and the landmark that it is said to show."
    )
    parts = [tag("p", text)]
    if spread := facts.get("spread"):
        title, labels = "Average precision of the queries", ("average precision", "share")
        group = (f"{sum(spread['counts']):,} queries", "blue", spread["counts"])
        chart = histogram(title, labels, spread["edges"], [group])
        parts.append(tag("div", chart, class_="charts"))
    for row in facts["rows"]:
        query = row["query"]
        pictures = [_picture(facts, query["picture"], "query", " ".join(query["caption"]), "query")]
        for near in row["nearest"]:
            frame, alt, mark = NEAR[near["is_right"]]
            caption = join(mark, " ".join(near["caption"]))
            pictures.append(_picture(facts, near["picture"], alt, caption, frame))
        parts += [tag("h3", row["title"] or f"query {query['picture']}"),
                  tag("div", *pictures, class_="pictures")]  # fmt: skip
    return join(*parts)


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
        images, right, named = (one[key] for key in ("images", "right", "named"))
        numbers = [
            (images, "{:,}"), (right, "{:,}"), (right / images, "{:.0%}"), (named, "{:,}"),
            (right / named, "{:.0%}") if named else (-1, "-"),
            (one["confidence"], "{:.2f}") if named else (-9, "-"),
        ]  # fmt: skip
        rows.append([name, *((value, shown.format(value)) for value, shown in numbers)])
    header = ["landmark", "test images", "named rightly", "found", "named in all", "precision",
              "mean confidence"]  # fmt: skip
    num_truths = facts["num_truths"]
    most = f"the {len(rows):,} with the most test images of " if num_truths > len(rows) else ""
    text = (
        f"Of {most}{num_truths:,} landmarks in the ground truth; "
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
    lines = [[name, _shown(changed[name]), _shown(of_2019.get(name, "-"))] for name in changed]
    same = ", ".join(f"{name} {_shown(settings[name])}" for name in settings if name not in changed)
    return join(
        tag("p", "The recipe, where it is not that of 2019:"),
        table(["setting", "here", "2019"], lines),
        tag("details", tag("summary", "What is as in 2019"), tag("p", same)),
    )


def _shown(value):
    if isinstance(value, tuple):
        return ":".join(map(str, value))
    return ("no", "yes")[value] if isinstance(value, bool) else value
