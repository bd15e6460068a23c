"""Words for error messages: values shortened, and the names a user probably meant."""

import difflib
import reprlib
from collections.abc import Iterable

from fedprune.config.pattern import Pattern

MAX_NAMES = 3
"""More names than this are no hint."""


class _Short(reprlib.Repr):
    """Representations of bounded length, whatever arrives over the network."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 120

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to print numbers of thousands of digits.
        return repr(x) if x.bit_length() <= 64 else f"a number of {x.bit_length()} bits"


_SHORT = _Short()


def show(value: object) -> str:
    """Return a value as it is quoted in messages: as YAML spells it, shortened if it is long."""
    if value is None or isinstance(value, bool):
        return spelled(value)
    return _SHORT.repr(str(value) if isinstance(value, Pattern) else value)


def spelled(value: object) -> str:
    """Return a plain value as YAML and overrides spell it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean ...?" for the names closest to ``word``, or an empty text.

    Dotted names are also found by their last part alone, since that is what people remember:
    'seq-len' finds both `pruner.seq_len` and `evaluation.seq_len`.
    """
    names = {_plain(name): name for name in known}
    wanted = _plain(word)
    found = [name for plain, name in names.items() if _last(plain) == _last(wanted)]
    if not 0 < len(found) <= MAX_NAMES:
        found = _closest(wanted, names)
    found = found or _closest(_last(wanted), {_last(plain): name for plain, name in names.items()})
    return f" Did you mean {' or '.join(repr(name) for name in found)}?" if found else ""


def _closest(word: str, names: dict[str, str]) -> list[str]:
    return [names[plain] for plain in difflib.get_close_matches(word, names, n=1, cutoff=0.6)]


def _plain(word: str) -> str:
    return word.strip().lower().replace("-", "_").replace("/", ".")


def _last(plain: str) -> str:
    return plain.rpartition(".")[2]
