"""HTML in strings: what is not `Markup` is escaped, so that no name or file can break a page."""

import html


class Markup(str):
    """Text that is HTML already."""


def tag(name, /, *children, **attributes):
    """Writes an element, e.g. `tag("td", 12, class_="number")`; gives `Markup`.

    Args:
        children: `Markup`, or anything else, which is escaped; None is left out.
        attributes: a `_` at the end is dropped, others become `-`; None and False leave an
            attribute out, True gives it no value.
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{html.escape(str(value))}"')
    if name in ("img", "meta", "br"):
        return Markup(f"<{' '.join(words)}>")
    return Markup(f"<{' '.join(words)}>{join(*children)}</{name}>")


def join(*children):
    """Writes children one after another: `Markup` as it is, anything else escaped."""
    return Markup("".join(child if isinstance(child, Markup) else html.escape(str(child))
                          for child in children if child is not None))  # fmt: skip


def table(header, rows, numeric=(), **attributes):
    """Writes a table that scrolls by itself where the screen is narrow.

    Args:
        rows: list of lists of cells; a cell may be (value to sort by, what is shown).
        numeric: places of the columns of numbers, which are set to the right.
    """
    kinds = ["number" if column in numeric else None for column in range(len(header))]
    heads = [tag("th", name, scope="col", class_=kind)
             for name, kind in zip(header, kinds, strict=True)]  # fmt: skip
    lines = []
    for row in rows:
        cells = []
        for cell, kind in zip(row, kinds, strict=True):
            key, shown = cell if isinstance(cell, tuple) else (None, cell)
            cells.append(tag("td", shown, class_=kind, data_key=key))
        lines.append(tag("tr", *cells))
    body = join(tag("thead", tag("tr", *heads)), tag("tbody", *lines))
    return tag("div", tag("table", body, **attributes), class_="scrolls", tabindex="0",
               role="region", aria_label=f"table: {', '.join(map(str, header))}")  # fmt: skip
