"""report.html: what the runs of an output folder found, on one page that needs nothing else.

Each finished run adds its facts to report.json and draws the page again, so that the page grows.
"""

import json

from report.page import render
from report.run import describe_run
from runs.pictures import draw_picture
from runs.session import REPORT, REPORT_FACTS
from utils import atomic_write, say

ORDER = ("recognition", "nearest", "retrieval")  # of the page; others follow


def write_report(session, name, gather):
    """Adds what a run found to the report, and prints its path; the run stands without it.

    `gather()` gives the facts, see `page.render`; those of an earlier run of the script, e.g.
    `recognition`, are replaced.
    """
    path = session.path(REPORT)
    if draw_picture(path, lambda: _add_to_report(session, name, gather)):
        print(path)


def _add_to_report(session, name, gather):
    all_facts = read_facts(session)
    all_facts[name] = gather() | {"run": describe_run(session)}
    all_facts = of_model(all_facts, all_facts[name].get("model"))
    names = sorted(all_facts, key=lambda one: (*ORDER, one).index(one))
    # As JSON gives them back, now and later.
    all_facts = {one: json.loads(json.dumps(all_facts[one])) for one in names}
    page = draw_page(session, name, all_facts)  # first: it may leave some facts out
    for file_name, content in ((REPORT_FACTS, json.dumps(all_facts)), (REPORT, page)):
        with atomic_write(session.path(file_name)) as temporary:
            temporary.write_text(content, encoding="utf-8")


def of_model(all_facts, model):
    """Keeps what is of this model, or names none, as that of earlier versions."""
    known = (None, model)
    return {one: facts for one, facts in all_facts.items() if facts.get("model") in known}


def draw_page(session, name, all_facts):
    """Draws the page; what earlier runs left is dropped from the facts where it cannot be drawn."""
    try:
        return render(all_facts)
    except Exception:
        for earlier in all_facts.keys() - {name}:
            try:
                render({earlier: all_facts[earlier]})
            except Exception as error:  # whatever somebody wrote into it
                say(
                    f"{session.path(REPORT_FACTS)}: what it says of {earlier} cannot be drawn "
                    f"({type(error).__name__}: {error}), left out; run {earlier} again"
                )
                del all_facts[earlier]
        return render(all_facts)


def read_facts(session):
    """Reads the facts that earlier runs left, here or in another kernel: dict, script -> facts."""
    all_facts = {}
    for path in reversed(session.find_all(REPORT_FACTS)):  # those of the output count
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            all_facts |= {name: facts for name, facts in found.items() if facts["run"]["source"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            say(f"{path}: {type(error).__name__}; not taken into the report")
    return all_facts
