"""Is the file in reduced precision faster on this machine than the same graph in float32?"""

from __future__ import annotations

from pathlib import Path

from vit_runtime.manifest import Manifest
from vit_runtime.race import Entrant, race
from vit_runtime.threads import physical_cores

ROUNDS, SECONDS = 5, 0.4
PAYS = 1.05  # below this it is no gain: two runs of one file differ by as much


def times_faster(exact: Path, reduced: Path, provider: str, manifest: Manifest) -> float:
    """How many times faster the file at `reduced` is than the one at `exact`, batch size 1 on all physical cores, timed in turn.

    Raises: SessionError if one does not run.
    """
    image = (manifest.preprocessing.channels, *manifest.image_size)
    threads, execution = physical_cores(), manifest.execution
    entrants = [
        Entrant(exact, provider, threads, 1, image),
        Entrant(reduced, provider, threads, 1, image, execution.arithmetic),
    ]
    slow, fast = race(entrants, ROUNDS, SECONDS)
    return fast.times_faster(slow)


def advice(precision: str, faster: float, size: int, exact_size: int) -> str | None:
    """What the user should hear of a precision that brings no speed here; None where it does."""
    if faster >= PAYS:
        return None
    gain = f"it takes {size / 1e6:.1f} MB and not {exact_size / 1e6:.1f}, but " if size < 0.9 * exact_size else ""
    return (
        f"{precision} is no faster than float32 on this machine ({faster:.2f} times the speed at batch size 1): {gain}"
        "for speed --precision fp32 is the better one here; --tune looks for the fastest"
    )
