"""What a run left as it was: parts that text never reaches, matrices that stayed dense."""

from collections.abc import Mapping
from typing import Any


def left_as_stored(results: Mapping[str, Any]) -> str:
    """Return the parts that were left alone, with their sizes, as text; "" if there are none."""
    parts = results["model"].get("unread") or ()
    return ", ".join(f"{one['name']} ({one['kind']}, {one['parameters']:,})" for one in parts)


def left_dense(coverage: Mapping[str, Any]) -> list[str]:
    """Return the matrices in the blocks that stayed dense, each with the reason if it is known."""
    why = coverage.get("why", {})
    return [f"{name} ({why[name]})" if name in why else name for name in coverage["dense"]]
