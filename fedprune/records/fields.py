"""Single values of records, checked for type and range."""

from collections.abc import Mapping

from flwr.app import Array, ConfigRecord, MetricRecord

from fedprune.errors import ReplyRefusedError


def kebab(name: str) -> str:
    """Return a Python name as records spell it."""
    return name.replace("_", "-")


def typed(record: ConfigRecord, key: str, kind: type) -> object:
    """Return a setting, checked for its type; a bool is no number, a whole number no fraction."""
    value = record.get(key)
    if type(value) is not kind:
        raise ReplyRefusedError(f"'{key}' must be {kind.__name__}, got {type(value).__name__}.")
    return value


def figure(metrics: MetricRecord | Mapping[str, object], key: str) -> float:
    """Return a metric: a finite number of at least 0."""
    value = metrics.get(key)
    if not isinstance(value, int | float) or not 0 <= value < 2**62:
        raise ReplyRefusedError(f"'{shown(key, 80)}' must be a finite number of at least 0.")
    return float(value)


def shown(text: str, most: int) -> str:
    """Return text that somebody else chose as a log, a terminal or a page may have it.

    Line breaks become bars, and what a terminal would act upon or not show becomes its number; what
    is longer than ``most`` characters is cut.
    """
    lines = " | ".join(filter(None, map(str.strip, text[: 4 * most].splitlines())))
    plain = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in lines)
    return plain if len(plain) <= most else f"{plain[: most - 1]}…"


def byte_array(data: bytes, stype: str) -> Array:
    """Return bytes as the only kind of tensor that travels: uint8, its format in ``stype``."""
    return Array("uint8", (len(data),), stype, data)


def array_bytes(array: Array, stype: str, most: int | None = None) -> bytes:
    """Return the bytes of an array of one format.

    Raises ReplyRefusedError if it is of another format or type, of a false length, or longer than
    ``most`` bytes.
    """
    if array.stype != stype or array.dtype != "uint8" or array.shape != (len(array.data),):
        raise ReplyRefusedError(
            f"bytes travel as uint8 arrays of format '{stype}' with their true length."
        )
    if most is not None and len(array.data) > most:
        raise ReplyRefusedError(f"it takes at most {most} bytes, got {len(array.data)}.")
    return array.data
