"""How much memory this process has taken, and how much there is."""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path


def peak_memory() -> int | None:
    """The most memory that this process has held so far, in bytes; None where the system does not tell (Windows)."""
    if sys.platform == "win32":
        return None
    with contextlib.suppress(OSError):  # Linux; getrusage would also count what its parent held when it started this process
        if (found := re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)) is not None:
            return int(found[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_memory() -> int | None:
    """The memory that can still be taken without swapping, in bytes; None where the system does not tell (Linux does)."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def megabytes(size: int | None) -> str:
    """A size in bytes, or None, for people."""
    return "unknown" if size is None else f"{size / 1e6:.0f} MB"
