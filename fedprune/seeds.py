"""Seeds that depend on names, never on arrival order, node ids or process state."""

import hashlib


def derive_seed(seed: int, *parts: str | int) -> int:
    """Return a seed for one purpose, derived from the run's seed.

    `seed`: the run's seed (`seed` in the configuration). `parts`: what the seed is for, for example
    ``"calibration", partition_id``. Returns a number in [0, 2**63), stable over processes,
    platforms and Python versions.
    """
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
