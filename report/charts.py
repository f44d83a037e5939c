"""Charts of the report as inline SVG, in colors that follow the page's light or dark scheme."""

import io
import re
import zlib

import numpy as np

from report.markup import Markup, tag

# Colors that stand for the page's own, see `page.STYLE`; matplotlib knows no CSS variables.
INK, LINES = "#010203", "#010204"
COLORS = {"blue": "#010205", "orange": "#010206", "green": "#010207", "red": "#010208"}
VARIABLES = {INK: "--ink-2", LINES: "--line"} | {
    color: f"--{name}" for name, color in COLORS.items()
}


def line_chart(title, labels, series, counts=False, **axes_options):
    """Draws lines.

    Args:
        title: of the chart.
        labels: (below, beside) the axes.
        series: list of (name, color of `COLORS`, x, y, marker or None).
        counts: whether the axis below has whole numbers alone.
        axes_options: of matplotlib's Axes, e.g. `ylim`.

    Returns:
        `Markup`.
    """
    figure, axes = _start(title, labels)
    for name, color, x, y, marker in series:
        axes.plot(x, y, color=COLORS[color], label=name, marker=marker, markersize=4, lw=1.8)
    axes.set(**axes_options)
    if counts:
        axes.xaxis.get_major_locator().set_params(integer=True)
    return _finish(figure, axes, title, [name for name, *_ in series])


def histogram(title, labels, groups, line=None):
    """Draws how values of several groups spread, each group as shares of its own.

    Args:
        title, labels: as of `line_chart`.
        groups: list of (name, color of `COLORS`, (edges, counts)).
        line: (value, name) to mark, or None.

    Returns:
        `Markup`.
    """
    figure, axes = _start(title, labels)
    for name, color, (edges, counts) in groups:
        shares = np.array(counts) / max(1, sum(counts))
        axes.stairs(shares, edges, color=COLORS[color], label=name, lw=1.8)
        axes.stairs(shares, edges, color=COLORS[color], fill=True, alpha=0.14)
    names = [name for name, *_ in groups]
    if line:
        axes.axvline(line[0], color=INK, ls="--", lw=1.2, label=line[1])
        names.append(line[1])
    axes.set_ylim(0)
    return _finish(figure, axes, title, names)


def _start(title, labels):
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(4.4, 2.9), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(labels[0], color=INK)
    axes.set_ylabel(labels[1], color=INK)
    axes.grid(color=LINES, lw=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0)
    for side, spine in axes.spines.items():
        spine.set(color=LINES, visible=side == "bottom")
    return figure, axes


def _finish(figure, axes, title, names):
    """Gives a figure as SVG in a <figure> with its title; the legend's names are in its label."""
    import matplotlib

    if len(names) > 1:
        figure.legend(
            loc="outside upper left", ncols=2, frameon=False, labelcolor=INK, fontsize=8.5
        )
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    text = re.sub(r" font-family: [^;\"]*;", "", text)  # the page's own font
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # would hold in the whole page
    # Ids are one space in a page: each chart gets its own.
    own = f"c{zlib.crc32(text.encode()):08x}"
    text = re.sub(r'\bid="', f'id="{own}-', text)
    text = re.sub(r'href="#', f'href="#{own}-', text)
    text = text.replace("url(#", f"url(#{own}-")
    described = f"{title}: {', '.join(names)}"
    opened = tag("svg", role="img", aria_label=described).removesuffix("></svg>")
    text = re.sub(r"<svg\b(.*?)\bwidth=\"[^\"]*\"", rf"{opened}\1", text, count=1, flags=re.DOTALL)
    text = re.sub(r"\sheight=\"[\d.]+pt\"", "", text, count=1)
    return tag("figure", tag("figcaption", title), Markup(text), class_="chart")
