"""HTML from Python: whatever is not markup already is escaped, so nothing from outside can be."""

import html
from collections.abc import Iterable

_SHAPES = frozenset({"rect", "line", "circle"})


class Html(str):
    """Text that is markup; every other text is escaped where it is put into a page."""

    __slots__ = ()


Content = Html | str | int | None


def tag(name: str, *content: Content, **attributes: str | float | None) -> Html:
    """Return an element.

    Parameters
    ----------
    name : str
        Of the element, HTML or SVG.
    *content : Html, str, int or None
        What is in it; None is nothing.
    **attributes : str, float or None
        A trailing underscore is dropped and inner ones become hyphens; None leaves one out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name == "meta":
        return Html(f"<meta{written}>")
    if name in _SHAPES and not content:
        return Html(f"<{name}{written}/>")
    return Html(f"<{name}{written}>{join(content)}</{name}>")


def join(parts: Iterable[Content]) -> Html:
    """Return parts one after another, those that are no markup escaped."""
    return Html("".join(part if isinstance(part, Html) else _escaped(part) for part in parts))


def _escaped(part: str | int | None) -> str:
    return "" if part is None else html.escape(str(part))


def _plain(value: str | float) -> str:
    """Return an attribute's value; coordinates need no more than two decimals."""
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)


def prose(text: str) -> Html:
    """Return a sentence; what stands between backticks is code."""
    parts = text.split("`")
    return join(tag("code", part) if place % 2 else part for place, part in enumerate(parts))
