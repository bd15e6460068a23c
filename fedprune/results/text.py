"""Figures as people read them, with their units, and text of others made harmless."""

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedprune.errors import listing

_HARMLESS = "\n\t"


def printable(text: str) -> str:
    """Return text without what a terminal acts upon or does not show, each such character a mark.

    Control and format characters, those that turn the direction of writing among them, and halves
    of surrogate pairs; line breaks and tabs stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if character not in _HARMLESS and unicodedata.category(character)[0] == "C"
        else character
        for character in text
    )


def setting_text(value: object) -> str:
    """Return a setting in one line such that two that differ look different.

    Text stands as it is unless it could be taken for something else: for no text, a number or
    nothing, or for another text whose difference nobody sees. Then it is quoted, in ASCII.
    """
    if not isinstance(value, str):
        return json.dumps(value)
    clear = value.isprintable() and value == unicodedata.normalize("NFC", value).strip()
    if clear and value and value[0] != '"':
        try:
            json.loads(value)
        except ValueError:
            return value
    return json.dumps(value)


def markdown_text(text: str) -> str:
    """Return text that Markdown shows as it is, in one line and in one cell of a table."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(printable(text).split()))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of texts in Markdown, whatever stands in them."""
    head, *body = ([*map(markdown_text, row)] for row in (header, *rows))
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *body))


def size_text(size: int) -> str:
    """Return a number of bytes in words, for example "1.2 MB" (decimal units)."""
    if size < 1000:
        return f"{size} B"
    value, unit = size / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.1f} {unit}"


def size_change(results: Mapping[str, Any]) -> str:
    """Return what a model with fewer units takes beside the dense one; its results say it."""
    parameters, sizes = results["smaller"]["parameters"], results["sizes"]
    return (
        f"{size_text(sizes['dense'])} of {size_text(sizes['base'])}, "
        f"{parameters['after']:,} of {parameters['before']:,} parameters"
    )


def duration_text(seconds: float) -> str:
    """Return a time in words of two digits or so: "40 s", "12 min", "3.5 h"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


NONE = "–"


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as a percentage; what is not all or nothing never reads as if it were."""
    if share is None:
        return NONE
    text = f"{share:.{digits}%}"
    least = 10.0**-digits
    if 0 < share < 1 and text in (f"{0:.{digits}%}", f"{1:.{digits}%}"):
        return f"<{least:g}%" if share < 0.5 else f">{100 - least:g}%"
    return text


def beside(factor: float) -> str:
    """Return where a figure lies beside another in words, from their quotient."""
    if abs(factor - 1) < 0.0005:
        return "level with"
    if factor >= 11:
        return f"{factor:,.0f} times"
    return f"{abs(factor - 1):.1%} {'above' if factor > 1 else 'below'}"


def rise(factor: float) -> str:
    """Return how far a figure is above or below another with a sign, from their quotient."""
    change = factor - 1
    if abs(change) >= 10:
        return f"{factor:,.0f} times"
    return f"{change:+.1%}".replace("-", "\N{MINUS SIGN}")


def figure(value: float | None) -> str:
    """Return a perplexity: two decimals, three digits of one that is destroyed."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:.2f}" if abs(value) < 1000 else f"{value:.2e}"


def size(count: float | None) -> str:
    """Return a number of bytes in decimal units."""
    return NONE if count is None else size_text(round(count))


def seconds(value: float | None) -> str:
    """Return a duration: seconds below two minutes, then minutes and hours."""
    if value is None:
        return NONE
    if value == 0:
        return "0 s"
    if value < 120:
        return f"{value:.1f} s" if value >= 0.95 else f"{value * 1000:.0f} ms"
    minutes, rest = divmod(round(value), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def count(number: int, one: str, more: str = "") -> str:
    """Return a number and its noun."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def short(name: str, longest: int) -> str:
    """Return a name, its middle left out where it is too long."""
    if len(name) <= longest:
        return name
    half = (longest - 1) // 2
    return f"{name[: longest - 1 - half]}…{name[-half:]}"


def spans(numbers: Sequence[int]) -> str:
    """Return ascending whole numbers with runs drawn together: 0-3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [str(r[0]) if len(r) == 1 else f"{r[0]}–{r[-1]}" for r in runs]
    return listing(texts, 12)
