"""Memory that was freed, given back to the system."""

from __future__ import annotations

import sys


def hand_back() -> None:
    """Let the system have what was freed here: glibc keeps it otherwise. Does nothing with another C library."""
    if sys.platform == "linux":
        import ctypes

        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)
