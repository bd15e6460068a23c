"""A figure of the plotting library as part of a page: it takes its colours from the page's style.

The library writes styles into elements, which a page that may load nothing forbids, and colours
that suit one background. Here they become plain attributes and the names of the page's colours.
"""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FONT = re.compile(r"(?P<size>[\d.]+)px")
_DROPPED = frozenset({"metadata", "style", "clipPath"})
_KEPT = ("stroke-dasharray", "stroke-dashoffset", "stroke-width", "stroke-linecap", "text-anchor")


def inline_svg(
    figure: "Figure",
    name: str,
    colours: Mapping[str, str],
    titles: Mapping[str, Sequence[str]] | None = None,
) -> Markup:
    """Return a figure as an SVG element without styles, scripts, addresses or foreign ids.

    `name`: begins its ids, which have to be the page's only ones. `colours`: colour in the figure,
    "#rrggbb" -> that in the page, for example "var(--k0)". `titles`: group id of markers -> what
    each of them says to who points at it.
    """
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = dict(_attributes(element.attrib, colours))
    _prune(root)
    for group in root.iter("g"):
        uses = list(group.iter("use"))
        for use, title in zip(uses, (titles or {}).get(group.get("id", ""), ()), strict=False):
            ElementTree.SubElement(use, "title").text = title
    _name_ids(root, name)
    root.attrib = {"viewBox": root.attrib["viewBox"], "aria-hidden": "true"}
    # Its texts are escaped by the serialiser.
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _attributes(found: Mapping[str, str], colours: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    """Yield an element's attributes, what its style says among them."""
    for key, value in found.items():
        if key == "style":
            yield from _styled(value, colours)
        elif key not in ("clip-path", "class"):
            yield _local(key), value


def _styled(style: str, colours: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    for part in filter(None, style.split(";")):
        key, value = (text.strip() for text in part.split(":", 1))
        if key in ("stroke", "fill"):
            yield key, colours.get(value, value)
        elif key in ("font", "font-size") and (size := _FONT.search(value)):
            yield "font-size", size["size"]
        elif key in _KEPT:
            yield key, value


def _prune(root: ElementTree.Element) -> None:
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in _DROPPED or (child.tag in ("defs", "g") and len(child) == 0):
                parent.remove(child)


def _name_ids(root: ElementTree.Element, name: str) -> None:
    """Give the ids that are referred to names of their own, and drop the others."""
    used = {element.get("href", "")[1:] for element in root.iter("use")}
    for element in root.iter():
        identifier = element.attrib.pop("id", "")
        if identifier in used:
            element.set("id", f"{name}-{identifier}")
        if "href" in element.attrib:
            element.set("href", f"#{name}-{element.attrib['href'][1:]}")
