"""The page of the report: facts -> one HTML document that needs nothing else."""

from report import sections
from report.markup import Markup, join, tag

STYLE = """
:root { color-scheme: light dark; --page: #faf9f6; --card: #ffffff; --ink: #1c242b;
  --ink-2: #55606a; --line: #dddfe0; --blue: #1f5fa8; --orange: #b4560a; --green: #17784a;
  --red: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --page: #13171b; --card: #1c2127; --ink: #e8eaec;
  --ink-2: #a9b3bc; --line: #353c44; --blue: #7fb2ef; --orange: #f0a35e; --green: #5fc78f;
  --red: #f28b82; } figure.chart img { filter: invert(1) hue-rotate(180deg); } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main, header, footer { max-width: 1440px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 28px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 1.3rem; line-height: 1.25; margin: 44px 0 8px; }
h3 { font-size: 1rem; margin: 24px 0 6px; }
p { margin: 0 0 12px; max-width: 72ch; }
.quiet, figcaption, footer { color: var(--ink-2); }
a { color: var(--blue); }
nav { margin: 14px 0 0; display: flex; flex-wrap: wrap; gap: 4px 18px; } nav a { padding: 4px 0; }
.tiles, .charts, .cards, .pictures { display: grid; gap: 14px; margin: 14px 0;
  grid-template-columns: repeat(auto-fit, minmax(min(var(--least), 100%), 1fr)); }
.cards, .pictures {
  grid-template-columns: repeat(auto-fill, minmax(min(var(--least), 100%), 1fr)); }
.tiles { --least: 190px; padding: 0; list-style: none; } .charts { --least: 330px; }
.cards { --least: 540px; } .pictures { --least: 160px; gap: 8px; margin: 0; }
.tiles li, .card, figure.chart { background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
.tiles li { padding: 12px 16px; }
.tiles b { display: block; font-size: 1.9rem; line-height: 1.2;
  font-variant-numeric: tabular-nums; }
figure { margin: 0; }
figure.chart { padding: 12px 12px 6px; }
figure.chart img { display: block; width: 100%; height: auto; }
figure.chart figcaption { font-weight: 600; color: var(--ink); margin-bottom: 4px; }
.scrolls { overflow-x: auto; margin: 10px 0; max-width: 100%; }
.tall { max-height: 32rem; overflow-y: auto; } .tall .scrolls { overflow: visible; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px 5px 0; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--ink-2); font-weight: 600; white-space: nowrap; }
.tall th { position: sticky; top: 0; background: var(--page); }
.number { text-align: right; }
th button { all: unset; cursor: pointer; text-decoration: underline dotted; }
th button:focus-visible { outline: 2px solid var(--blue); outline-offset: 2px; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
.card { padding: 12px; } .card p { margin: 0 0 8px; }
.pictures figcaption { font-size: .8rem; line-height: 1.25; overflow-wrap: anywhere; }
.frame { width: 100%; aspect-ratio: 1; display: block; object-fit: contain;
  background: var(--page); border: 3px solid var(--line); border-radius: 6px; }
.right { border-color: var(--green); } .wrong { border-color: var(--red); }
.query { border-color: var(--blue); }
.missing { display: grid; place-items: center; font-size: .8rem; color: var(--ink-2); }
.mark { font-weight: 700; } .mark.yes { color: var(--green); } .mark.no { color: var(--red); }
details { margin: 10px 0; } summary { cursor: pointer; }
footer { padding: 40px 20px 28px; font-size: .9rem; }
@media (max-width: 500px) { main, header, footer { padding-left: 14px; padding-right: 14px; }
  .pictures { --least: 96px; } table { font-size: .85rem; } th { white-space: normal; }
  th, td { padding-right: 9px; } }
"""

# Sorts the tables of the class `sorts`; without it they stand in the order of the most images.
SCRIPT = """
for (const table of document.querySelectorAll("table.sorts")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = row => row.cells[column].dataset.key, name = row => row.cells[column].textContent;
      const rows = [...body.rows].sort((a, b) =>
        key(a) ? key(a) - key(b) : name(a).localeCompare(name(b)));
      body.append(...(down ? rows.reverse() : rows));
    });
  });
}
"""


OF_A_RUN = {
    "Training": sections.training,
    "Confidence": sections.confidence,
    "Mistakes": sections.mistakes,
    "Queries and their nearest images": sections.queries,
    "Landmarks": sections.landmarks,
}


def render(all_facts):
    """Writes the page, a whole HTML document: str.

    `all_facts` is a dict, name of a script -> its facts: `title`, `run` as of `run.describe_run`,
    and what `recognised` or `retrieved` gathers; all but these two may be missing.
    """
    links, bodies = [], []
    for title, name, content in _parts(all_facts):
        links.append(tag("a", title, href=f"#{name}"))
        bodies.append(tag("section", tag("h2", title, id=name), content))
    titles = " and ".join(facts["title"].lower() for facts in all_facts.values())
    last = list(all_facts.values())[-1]["run"]
    head = join(
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy",
            content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
            "script-src 'unsafe-inline'"),
        tag("title", f"Landmarks: {titles}"),
        tag("style", Markup(STYLE)),
    )  # fmt: skip
    body = join(
        tag("header", tag("h1", f"Landmark {titles}"),
            tag("p", f"{last['source']}, {last['started']}", class_="quiet"),
            sections.tiles(all_facts), tag("nav", *links, aria_label="sections")),
        tag("main", *bodies),
        tag("footer", "This page is one file: it loads nothing and can be sent or kept as it is."),
        tag("script", Markup(SCRIPT)),
    )  # fmt: skip
    return f"<!doctype html>\n{tag('html', tag('head', head), tag('body', body), lang='en')}\n"


def _parts(all_facts):
    """Yields (title, name, content) of the sections that there are."""
    yield "Scores", "scores", sections.scores(all_facts)
    for title, write in OF_A_RUN.items():
        written = {name: write(facts) for name, facts in all_facts.items()}
        written = {name: content for name, content in written.items() if content}
        for name, content in written.items():
            of = f": {all_facts[name]['title'].lower()}" if len(written) > 1 else ""
            yield title + of, f"{title.split()[0].lower()}-{name}", content
    yield "Left out", "left-out", sections.left_out(all_facts)
    yield "What ran", "what-ran", sections.runs(all_facts)
