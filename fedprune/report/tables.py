"""Tables, with small bars in their cells, and what folds away."""

from collections.abc import Sequence

from fedprune.report.markup import Content, Html, tag

Row = Sequence[Content]


def table(caption: str, header: Sequence[str], rows: Sequence[Row], marked: int = -1) -> Html:
    """Return a table in a box that scrolls by itself; the first cell of a row is its header.

    Parameters
    ----------
    caption : str
        Names it for those who do not see it.
    header : sequence of str
        Of the columns.
    rows : sequence of sequences
        Cells; the first of each is text, the others are figures.
    marked : int
        The row to stand out, if any.
    """
    head = tag("tr", *(tag("th", name, scope="col") for name in header))
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            *(tag("td", cell) for cell in row[1:]),
            class_="marked" if place == marked else None,
        )
        for place, row in enumerate(rows)
    ]
    whole = tag(
        "table",
        tag("caption", caption, class_="unseen"),
        tag("thead", head),
        tag("tbody", *body),
    )
    return scrolling(caption, whole)


def scrolling(label: str, content: Html) -> Html:
    """Return a box that scrolls sideways, also from the keyboard."""
    return tag("div", content, class_="scroll", role="region", aria_label=label, tabindex="0")


def folded(title: str, *content: Content, class_: str | None = None) -> Html:
    """Return what is shown on demand."""
    return tag("details", tag("summary", title), *content, class_=class_)


def with_bar(text: str, share: float, kind: str = "") -> Html:
    """Return a cell's text beside a bar of this share of the cell."""
    bar = tag("rect", width=f"{100 * min(max(share, 0.0), 1.0):.2f}%", height="10", rx="2")
    return _beside(tag("svg", bar, class_=f"bar {kind}".strip(), aria_hidden="true"), text)


def with_dot(text: str, at: float, line: float | None) -> Html:
    """Return a cell's text beside a dot on a scale from 0 to 1, and a line to compare it with."""
    parts = [tag("line", x1="2%", x2="98%", y1="5", y2="5", class_="rail")]
    if line is not None:
        where = _inside(line)
        parts.append(tag("line", x1=where, x2=where, y1="0", y2="10", class_="goal"))
    parts.append(tag("circle", cx=_inside(at), cy="5", r="4"))
    return _beside(tag("svg", *parts, class_="dot", aria_hidden="true"), text)


def _beside(drawing: Html, text: str) -> Html:
    return tag("div", drawing, tag("span", text), class_="beside")


def _inside(at: float) -> str:
    return f"{2 + 96 * min(max(at, 0.0), 1.0):.2f}%"
