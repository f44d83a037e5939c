"""Charts of the report: SVG pictures in the colors of the page, which inverts them in the dark."""

import base64
import io

import numpy as np

from report.markup import tag

MAX_POINTS = 1000  # of a line: more than its pixels, and a run may have 200,000 mini-epochs
INK, LINES = "#55606a", "#80808050"
COLORS = {"blue": "#1f5fa8", "orange": "#b4560a", "green": "#17784a", "red": "#b3261e"}


def line_chart(title, labels, series, counts=False, **axes_options):
    """Draws lines; gives `Markup`.

    Args:
        labels: (below, beside) the axes.
        series: list of (name, color of `COLORS`, x, y, perhaps matplotlib's word for dots); None
            in y is no point. Of many points some are drawn, the first and the last among them.
        counts: whether the axis below has whole numbers alone.
        axes_options: of matplotlib's Axes, e.g. `ylim`.
    """
    figure, axes = _start(labels)
    for name, color, x, y, *dots in series:
        there = np.flatnonzero(~np.isnan(np.asarray(y, float)))
        places = np.linspace(0, len(there) - 1, min(len(there), MAX_POINTS)).astype(int)
        x, y = (np.asarray(values, float)[there[places]] for values in (x, y))
        axes.plot(x, y, *dots, color=COLORS[color], label=name, markersize=4, lw=1.8)
    axes.set(**axes_options)
    if counts:
        axes.xaxis.get_major_locator().set_params(integer=True)
    return _finish(figure, title, [name for name, *_ in series])


def histogram(title, labels, edges, groups, line=None):
    """Draws how values of several groups spread, each group as shares of its own; gives `Markup`.

    A group is (name, color of `COLORS`, counts between the edges); a line to mark (value, name).
    """
    figure, axes = _start(labels)
    for name, color, counts in groups:
        shares = np.array(counts) / max(1, sum(counts))
        axes.stairs(shares, edges, color=COLORS[color], label=name, lw=1.8)
        axes.stairs(shares, edges, color=COLORS[color], fill=True, alpha=0.14)
    names = [name for name, *_ in groups]
    if line:
        axes.axvline(line[0], color=INK, ls="--", lw=1.2, label=line[1])
        names.append(line[1])
    axes.set_ylim(0)
    return _finish(figure, title, names)


def _start(labels):
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


def _finish(figure, title, names):
    """Gives a figure as an <img> of SVG in a <figure> with its title; the legend is its alt."""
    import matplotlib

    if len(names) > 1:
        look = {"frameon": False, "labelcolor": INK, "fontsize": 8.5}
        figure.legend(loc="outside upper left", ncols=2, **look)
    buffer = io.BytesIO()
    options = {"transparent": True, "bbox_inches": "tight", "metadata": {"Date": None}}
    with matplotlib.rc_context({"svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", **options)
    picture = f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    image = tag("img", src=picture, alt=f"{title}: {', '.join(names)}")
    return tag("figure", tag("figcaption", title), image, class_="chart")
