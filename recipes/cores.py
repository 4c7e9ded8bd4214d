"""How many cores this process may use, which may be fewer than the machine has."""

import math
import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""A container's share of the processors (cgroup v2): microseconds of work, or `max`, in a period of
so many microseconds."""


def usable_cores() -> int:
    """The cores to which the process's affinity and its container's quota limit it; at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)  # there is none on macOS and Windows
    count = (os.cpu_count() or 1) if affinity is None else len(affinity(0))
    return max(1, min(count, _quota(QUOTA) or count))


def _quota(path: Path) -> int | None:
    """The cores of a quota, rounded up; None without one."""
    try:
        work, period = path.read_text().split()
    except (OSError, ValueError):
        return None
    return None if work == "max" else math.ceil(int(work) / int(period))
