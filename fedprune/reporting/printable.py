"""Text that others chose, made harmless for a terminal."""

import unicodedata

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
