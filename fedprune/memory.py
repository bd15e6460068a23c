"""How much memory may still be used: a container often has less than its machine."""

from pathlib import Path

import psutil

_GROUP = Path("/sys/fs/cgroup")
_RECLAIMABLE = ("active_file", "inactive_file")  # read from the disk, and let go when need be


def free_memory(group: Path = _GROUP) -> int:
    """Return the bytes of memory that may still be used, a container's limit included.

    `group`: the process's control group, as Linux shows it in a container.
    """
    free = int(psutil.virtual_memory().available)
    try:
        limit = int((group / "memory.max").read_text(encoding="utf-8"))
        used = int((group / "memory.current").read_text(encoding="utf-8"))
        lines = (group / "memory.stat").read_text(encoding="utf-8").splitlines()
        counts = dict(line.split() for line in lines)
        used -= sum(int(counts[name]) for name in _RECLAIMABLE)
    except (OSError, ValueError, KeyError):  # no such limit, or "max"
        return free
    return max(0, min(free, limit - used))
