"""Tests of report.html: what it says, that nothing breaks it, and how a browser shows it."""

import base64
import json
import re
from types import SimpleNamespace

import browser
import numpy as np
import pytest
from PIL import Image
from synthetic import encode, make_image_id

from data.landmarks import format_image_id
from data.sources import Shard
from data.submissions import RecognitionTruth, RetrievalTruth
from metrics import global_average_precision
from recipes import Recipe
from report import charts, page, recognised, retrieved, run, sections, write
from report.markup import Markup, table, tag
from report.neighbors import NeighborRow, Picture, score_queries
from runs.session import REPORT, REPORT_FACTS, Session

NASTY = "<script>alert(1)</script>\"'&"

# ---------------------------------------------------------------------------------- what is there


def make_rows(rows):
    """Makes `Rows` of (confidence, named, true landmarks, usage), the ids in this order."""
    image_ids = np.arange(len(rows), dtype=np.uint64)
    found = SimpleNamespace(
        image_ids=image_ids,
        landmark_ids=np.array([row[1] for row in rows]),
        confidences=np.array([row[0] for row in rows], np.float32),
        places=np.zeros((len(rows), 3), np.int64),
    )
    truths = [RecognitionTruth(row[2], row[3]) for row in rows]
    solution = dict(zip(map(format_image_id, image_ids), truths, strict=True))
    return recognised.Rows(found, solution), found, solution


ROWS = [
    (0.9, 7, {7}, "Public"),
    (0.8, 7, set(), "Private"),
    (0.8, 8, {7, 9}, "Public"),
    (0.7, 8, {7}, "Private"),
    (0.6, 9, {9}, "Private"),
    (0.99, 9, {7}, "Ignored"),
    (0.1, 7, set(), "Public"),
]


def test_the_curve_ends_with_the_precision_and_the_gap_of_all():
    rows, found, solution = make_rows(ROWS)
    curve = rows.curve()
    scored = {
        key: truth.landmark_ids for key, truth in solution.items() if truth.usage != "Ignored"
    }
    predictions = {
        format_image_id(i): (landmark, confidence)
        for i, landmark, confidence in zip(
            found.image_ids, found.landmark_ids, found.confidences, strict=True
        )
        if format_image_id(i) in scored
    }
    gap = global_average_precision(predictions, scored)
    assert curve["gap"][-1] == pytest.approx(gap, abs=1e-5)
    assert curve["precision"] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 2 / 5, 2 / 6], abs=1e-5)
    assert curve["gap"] == pytest.approx(
        [1 / 4, 1 / 4, 1 / 4, 1 / 4, (1 + 2 / 5) / 4, (1 + 2 / 5) / 4], abs=1e-5
    )


def test_confidences_are_counted_by_what_the_image_shows():
    counts = make_rows(ROWS)[0].spread()["counts"]
    assert {kind: sum(values) for kind, values in counts.items()} == {
        "named rightly": 2, "named wrongly": 2, "no landmark in it": 2,
    }  # fmt: skip


def test_each_landmark_has_what_was_found_of_it_most_images_first():
    rows = make_rows(ROWS)[0].landmarks()
    assert [(one["landmark"], one["images"], one["right"], one["named"]) for one in rows] == [
        (7, 3, 1, 3), (9, 2, 1, 1),
    ]  # fmt: skip
    assert rows[0]["confidence"] == pytest.approx((0.9 + 0.8 + 0.1) / 3, abs=1e-4)


def test_mistaken_pairs_are_counted_with_a_picture_of_each():
    pairs = make_rows(ROWS)[0].confused()
    assert [(pair["shown"], pair["named"], pair["times"]) for pair in pairs] == [
        (7, 8, 2), (9, 8, 1),
    ]  # fmt: skip
    first, third, fifth = map(format_image_id, (0, 2, 4))
    assert pairs[0]["pictures"] == {"mistaken": third, "shown": first, "named": None}
    assert pairs[1]["pictures"] == {"mistaken": third, "shown": fifth, "named": None}


def test_the_surest_false_alarms_come_first():
    rows = make_rows(ROWS)[0].false_alarms()
    assert [row["picture"] for row in rows] == [format_image_id(1), format_image_id(6)]


def test_every_confidence_is_in_the_histogram_a_cosine_below_0_too():
    rows = [(-0.3, 7, {7}, "Public"), (0.9, 8, {7}, "Public"), (1.1, 9, set(), "Public")]
    spread = make_rows(rows)[0].spread()
    assert [sum(counts) for counts in spread["counts"].values()] == [1, 1, 1]
    assert (spread["edges"][0], spread["edges"][-1]) == (-0.3, 1.1)


def test_nothing_in_the_report_grows_with_the_data_set():
    rng = np.random.default_rng(0)
    landmarks = rng.permutation(3000).tolist()
    rows = [
        (float(rng.random()), landmarks[i % 1500], {landmarks[i]}, "Public") for i in range(3000)
    ]
    made = make_rows(rows)[0]
    assert len(made.landmarks()) == recognised.MAX_LANDMARKS
    assert len(made.confused()) == recognised.MAX_PAIRS
    assert len(made.curve()["gap"]) == recognised.NUM_POINTS


def test_without_a_prediction_nothing_is_drawn():
    made = make_rows([(0.5, 7, {7}, "Ignored")])[0]
    assert made.curve() == {"confidence": [], "precision": [], "gap": []}
    assert (made.landmarks(), made.confused(), made.false_alarms()) == ([], [], [])


# ------------------------------------------------------------------------------------- the page


@pytest.fixture
def no_charts(monkeypatch):
    """Draws no charts, which take longer than all the rest."""
    for name in ("line_chart", "histogram"):
        monkeypatch.setattr(sections, name, lambda *_, **__: Markup(""))


class Pictures:
    """A source whose bytes at any place are a picture."""

    def read_range(self, shard, offset, size_bytes):
        pixels = np.random.default_rng(offset).integers(0, 256, (9, 12, 3), np.uint8)
        return encode(Image.fromarray(pixels))


def make_pictures(count):
    source, images = Pictures(), map(make_image_id, range(count))
    pictures = [Picture(image_id, Shard("test", 0), (i, 9), f"0.{i}\n{NASTY}", bool(i % 2))
                for i, image_id in enumerate(images)]  # fmt: skip
    return source, pictures


def make_facts(category=f"http://commons.wikimedia.org/wiki/Category:{NASTY}"):
    """Makes facts of a recognition and a retrieval with everything in them."""
    source, pictures = make_pictures(6)
    rows = make_rows(ROWS)[0]
    history = {name: [1, 2] for name in run.HISTORY_COLUMNS}
    history |= {"valid_loss": [None, 0.5], "loss": [2.0, None], "problem": [None, NASTY]}
    ran = {
        "source": NASTY, "started": "2026-11-25 09:00", "seconds": 75.2,
        "machine": NASTY, "versions": {"Python": "3.12"},
    }  # fmt: skip
    pairs = rows.confused()
    for pair in pairs:
        pair["pictures"] = {"mistaken": pictures[0].image_id, "shown": pictures[1].image_id,
                            "named": None}  # fmt: skip
    recognition = {
        "title": "Recognition", "num_landmarks": 3, "history": history, "empty_shards": [3],
        "recipe": Recipe().changed(epochs=4).settings(), "run": ran, "num_truths": 2,
        "scores": [{"name": "GAP", "usages": {"Public": 0.5, "Private": 0.25, "all": 0.3}}],
        "usages": {"Public": [3, 2], "Private": [3, 2], "Ignored": [1, 1]},
        "chance": {"GAP": {"Public": 0.25, "all": 0.125}},
        "calibration": {"threshold": 0.35, "num_chosen_on": 2, "num_checked_on": 3, "kept": 1.0,
                        "refused": 0.5},
        "curve": rows.curve(), "spread": rows.spread(), "landmarks": rows.landmarks(),
        "pairs": pairs, "categories": {"7": category},
        "false_alarms": [{"picture": pictures[2].image_id, "named": 7, "confidence": 0.5}],
        "pictures": run.encode_pictures(source, pictures),
    }  # fmt: skip
    found = {format_image_id(1): [format_image_id(3), format_image_id(4)]}
    solution = {format_image_id(1): RetrievalTruth({format_image_id(4)}, "Public")}
    merged = {
        "scores": [{"name": "mAP@100", "usages": {"Public": 0.5, "all": 0.5}}],
        "num_indexed": 2,
        "rerank": "divide",
        "untrained": {"GAP": {"all": 0.0625}, "mAP@100": {"all": 0.125}},
        "left_out": ["5 index images could not be searched."],
        "details": [["parts", 6], ["rerank", "squared distances within the landmark / 1.5"]],
    }
    retrieval = retrieved.gather(
        SimpleNamespace(source=source), merged,
        {"normalise": True, "descriptor_dtype": "float32", "top": 100},
        solution, score_queries([1], found, solution),
        [NeighborRow(pictures[0], "best: AP 1.00", tuple(pictures[1:]))],
    )  # fmt: skip
    return json.loads(
        json.dumps({"recognition": recognition, "retrieval": retrieval | {"run": ran}})
    )


@pytest.fixture(scope="module")
def whole_page():
    return page.render(make_facts())


def test_the_page_has_every_section_and_links_to_it(whole_page):
    titles = re.findall(r'<h2 id="([\w-]+)">([^<]+)</h2>', whole_page)
    assert [title for _, title in titles] == [
        "Scores", "Training", "Confidence", "Mistakes", "Queries and their nearest images",
        "Landmarks", "Left out", "What ran",
    ]  # fmt: skip
    assert re.findall(r'<a href="#([\w-]+)">', whole_page) == [name for name, _ in titles]
    ids = re.findall(r'\bid="([^"]+)"', whole_page)
    assert len(ids) == len(set(ids))


def test_beside_each_score_stands_what_chance_and_an_untrained_network_score(whole_page):
    # One of two index images: it stands first or second.
    assert '<td>mAP@100 by chance</td><td class="number">0.7500</td>' in whole_page
    assert '<td>GAP by chance</td><td class="number">0.2500</td>' in whole_page
    assert "Private 0.2500; before training 0.0625; by chance 0.1250</span>" in whole_page
    assert "Public 0.5000; before training 0.1250; by chance 0.7500</span>" in whole_page


def test_beside_the_score_of_a_run_stands_the_chance_of_that_run():
    # nearest.py knows landmarks of which the network has none, so that its chance is another one.
    def facts_of(chance):
        scores = [{"name": "GAP", "usages": {"all": 0.5}}]
        return {"scores": scores, "chance": {"GAP": {"all": chance}}}

    runs = {"recognition": facts_of(0.25), "nearest": facts_of(0.125)}
    told = re.findall(r"by chance ([\d.]+)", str(sections.tiles(runs)))
    assert told == ["0.2500", "0.1250"]


def test_no_name_or_file_can_break_the_page(whole_page):
    assert whole_page.count("<script") == whole_page.count("</script>") == 1
    assert NASTY not in whole_page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in whole_page


@pytest.mark.parametrize("address", ["javascript:alert(1)", "http://x/Category:Tower", ""])
def test_only_addresses_on_commons_become_links(address):
    facts = make_facts(address)
    assert f'href="{address}' not in sections.landmarks(facts["recognition"])


def test_the_page_says_what_was_left_out(whole_page):
    text = whole_page[whole_page.index('id="left-out"') :]
    assert "test shard 003: none of its images is described." in text
    assert "5 index images could not be searched." in text
    assert "train shard 002: &lt;script&gt;" in text


def test_the_numbers_below_the_images_are_those_of_the_rerank(no_charts):
    facts = make_facts()["retrieval"]
    assert "divided where query and image" in sections.queries(facts)
    text = sections.queries(facts | {"rerank": "agreement"})
    assert "landmarks go up" in text and "divided" not in text
    assert "divided" not in sections.queries(facts | {"rerank": "none"})


def test_scores_of_other_test_sets_are_not_compared():
    facts = make_facts()
    assert "do not compare" in sections.scores(facts)
    facts["recognition"]["usages"]["Public"][0] = sections.NUM_GLDV2_TESTS - 4
    assert "do not compare" not in sections.scores(facts)


def test_public_stands_before_private_here_and_for_the_teams_of_2019():
    text = re.sub("<[^>]*>", " ", sections.scores(make_facts()))
    words = " ".join(text.split())
    assert "score Public Private all GAP 0.5000 0.2500 0.3000" in words
    assert "team of 2019 score Public Private smlyaka GAP 0.6585 0.6939" in words
    assert "smlyaka mAP@100 0.3563 0.3714" in words


def test_a_run_of_very_many_mini_epochs_has_a_page_that_opens():
    facts, count = make_facts()["recognition"], 20_000
    facts["history"] = {
        name: [str(number) if name == "problem" else number for number in range(count)]
        for name in run.HISTORY_COLUMNS
    }
    text = page.render({"recognition": facts})
    assert len(text) < 500_000
    assert f"{count:,} mini-epochs" in text and "and 19,8" in text
    assert "train shard 007: 7" in text


def test_facts_without_ground_truth_or_history_make_a_page():
    whole = make_facts()["recognition"]
    facts = {key: whole[key] for key in ("title", "run", "recipe")} | {"history": {}}
    text = page.render({"recognition": facts})
    assert "nothing is scored" in text
    assert "Left out" in text and "Training" not in text


def test_a_script_that_the_report_does_not_know_is_shown_too(no_charts):
    facts = make_facts()
    facts["nearest"] = {"title": "Nearest", "run": facts["recognition"]["run"]}
    facts["nearest"]["scores"] = [{"name": "GAP by votes", "usages": {"all": 0.7}}]
    text = page.render(facts)
    assert "GAP by votes" in text and "0.7000" in text


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_has_the_contrast_that_wcag_asks_for(scheme):
    variables = [dict(re.findall(r"--([\w-]+):\s*#(\w{6})", part))
                 for part in page.STYLE.split("@media", 1)]  # fmt: skip

    def luminance(color):
        shares = [int(color[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        shares = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        return np.dot(shares, (0.2126, 0.7152, 0.0722))

    colors = variables[scheme]
    for ink in ("ink", "ink-2", "blue", "green", "red", "orange"):
        for ground in ("page", "card"):
            lighter, darker = sorted(map(luminance, (colors[ink], colors[ground])), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (ink, ground)


# ------------------------------------------------------------------------------- markup, charts


def test_children_and_attributes_are_escaped_unless_they_are_markup():
    made = tag("p", "a<b", tag("b", 1), None, class_="x", title='"', hidden=True, id=None)
    assert made == '<p class="x" title="&quot;" hidden>a&lt;b<b>1</b></p>'
    assert isinstance(made, Markup)
    assert 'data-key="2.5">&lt;' in table(["a"], [[(2.5, "<")]])


def test_charts_are_pictures_in_the_colors_of_the_page_with_words_in_their_place():
    series = [(name, "blue", [1, 2], [1, 2]) for name in ("train", "<held out>")]
    chart = charts.line_chart("Loss", ("x", "y"), series)
    assert chart == charts.line_chart("Loss", ("x", "y"), series)
    assert 'alt="Loss: train, &lt;held out&gt;"' in chart
    drawn = base64.b64decode(re.search('base64,([^"]+)"', chart)[1])
    assert b"<svg" in drawn and charts.COLORS["blue"].encode() in drawn
    light = page.STYLE.partition("@media")[0]
    assert all(f"--{name}: {color};" in light for name, color in charts.COLORS.items())
    assert f"--ink-2: {charts.INK};" in light


# ------------------------------------------------------------------------------------ the files


def make_session(folder):
    return Session(folder, SimpleNamespace(location="x"), None)


def test_the_report_grows_with_each_script_and_replaces_what_ran_again(tmp_path, capsys, no_charts):
    session, facts = make_session(tmp_path), make_facts()
    write.write_report(session, "retrieval", lambda: facts["retrieval"])
    assert "Landmark retrieval" in (tmp_path / REPORT).read_text()
    write.write_report(session, "recognition", lambda: facts["recognition"])
    write.write_report(session, "recognition", lambda: facts["recognition"])
    assert "Landmark recognition and retrieval" in (tmp_path / REPORT).read_text()
    assert list(json.loads((tmp_path / REPORT_FACTS).read_text())) == ["recognition", "retrieval"]
    assert capsys.readouterr().out.splitlines() == 3 * [str(tmp_path / REPORT)]


def test_a_report_that_cannot_be_drawn_is_told_in_a_line_and_costs_nothing(tmp_path, capsys):
    def fail():
        raise ZeroDivisionError("of\nnothing")

    write.write_report(make_session(tmp_path), "recognition", fail)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == f"{tmp_path / REPORT}: not drawn: ZeroDivisionError: of nothing\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"recognition": 3}', '{"recognition": {}}', "[" * 100_000,
     '{"recognition": {"run": {"source": "x"}}}'],
)  # fmt: skip
def test_damaged_facts_of_an_earlier_run_are_left_out(tmp_path, capsys, no_charts, content):
    (tmp_path / REPORT_FACTS).write_text(content)
    write.write_report(make_session(tmp_path), "retrieval", lambda: make_facts()["retrieval"])
    assert (tmp_path / REPORT).exists()
    assert f"{tmp_path / REPORT_FACTS}: " in capsys.readouterr().err
    assert list(json.loads((tmp_path / REPORT_FACTS).read_text())) == ["retrieval"]


def test_facts_of_another_kernel_are_taken_and_ones_own_count_more(tmp_path, monkeypatch):
    from runs import session

    facts = make_facts()
    other = tmp_path / "input" / REPORT_FACTS
    other.parent.mkdir()
    other.write_text(json.dumps(facts))
    own = {"retrieval": facts["retrieval"] | {"title": "Own"}}
    (tmp_path / REPORT_FACTS).write_text(json.dumps(own))
    monkeypatch.setattr(session.kernel, "find_inputs", lambda name: [other])
    found = write.read_facts(make_session(tmp_path))
    assert {name: one["title"] for name, one in found.items()} == {
        "recognition": "Recognition", "retrieval": "Own",
    }  # fmt: skip


def test_a_finished_recognition_has_a_report_of_its_own_data(recognition_run):
    path = recognition_run.output / REPORT
    assert recognition_run.stdout.splitlines()[-1] == str(path)
    text = path.read_text()
    assert len(text) < 5_000_000
    score = re.search(r"GAP: .* all ([\d.]+)", recognition_run.stdout)[1]
    assert f"<b>{score}</b>" in text
    facts = json.loads((recognition_run.output / REPORT_FACTS).read_text())["recognition"]
    assert len(facts["history"]["loss"]) == 6
    assert facts["curve"]["gap"][-1] == pytest.approx(float(score), abs=1e-4)
    assert facts["recipe"]["epochs"] == 2


# ---------------------------------------------------------------------------------- the browser


@pytest.fixture(scope="module")
def opened(tmp_path_factory, whole_page):
    """A page in a browser, and the report's file."""
    if browser.find_browser() is None:
        pytest.skip(f"no browser: none of {', '.join(browser.NAMES)} is installed")
    path = tmp_path_factory.mktemp("browser") / "report.html"
    path.write_text(whole_page, encoding="utf-8")
    with browser.open_page() as tab:
        yield tab, path


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390, 320])
def test_a_browser_shows_all_of_it_and_fetches_nothing(opened, width, dark):
    tab, path = opened
    tab.open(path, width=width, dark=dark)
    images = tab.evaluate("[...document.images].map(i => [i.naturalWidth, i.alt])")
    assert len(images) == 11 + 6 and all(size > 0 and alt for size, alt in images)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(19, 23, 27)") is dark
    for told in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
        assert tab.told(told) == []
    asked = [one["request"]["url"] for one in tab.told("Network.requestWillBeSent")]
    assert {url.partition(":")[0] for url in asked} == {"file", "data"}
    assert [url for url in asked if url.startswith("file")] == [path.as_uri()]


def test_the_table_of_landmarks_sorts_by_a_click(opened):
    tab, path = opened
    tab.open(path)
    column = (
        "[...document.querySelectorAll('table.sorts tbody tr')].map(r => r.cells[%d].innerText)"
    )
    assert tab.evaluate(column % 1) == ["3", "2"]
    click = "document.querySelectorAll('table.sorts th button')[%d].click()"
    tab.evaluate(click % 3)
    assert tab.evaluate(column % 3) == ["50%", "33%"]
    tab.evaluate(click % 3)
    assert tab.evaluate(column % 3) == ["33%", "50%"]
    assert tab.evaluate("document.querySelector('th[aria-sort]').innerText.trim()") == "found"


def test_without_scripts_all_is_there_but_the_sorting(opened):
    tab, path = opened
    tab.open(path, scripts=False)
    assert tab.evaluate("document.querySelectorAll('table.sorts th button').length") == 0
    assert tab.evaluate("document.querySelectorAll('table.sorts tbody tr').length") == 2
    assert tab.evaluate("[...document.images].every(i => i.naturalWidth > 0)")
