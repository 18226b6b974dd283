"""How near a file was the last time: stored, and compared with now, so that a slow drift within the limits is seen too."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vit_runtime.errors import FileError
from vit_runtime.manifest import Limits
from vit_runtime.parity.judging import Report

SCHEMA = 1
NOISE = 3.0  # times what a figure scatters over the batch sizes
LEAST = 0.1  # of a figure: less is no drift, however little it scattered
SLOWER = 1.25  # times the stored latency that is told


@dataclass(frozen=True)
class Entry:
    """A figure of a file on a provider: floors, or in reduced precision what the least cosine is below 1; the largest over the batch sizes,
    and how much it scattered over them."""

    file: str
    compared: str
    output: str
    inputs: str
    unit: str
    figure: float
    scatter: float

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What has to be the same for two to be compared."""
        return self.file, self.compared, self.output, self.inputs, self.unit


@dataclass(frozen=True)
class Baseline:
    """The figures of a run, and the latency of one image in milliseconds by file and provider, on this processor."""

    entries: tuple[Entry, ...]
    latency: dict[str, float]
    processor: str

    def to_json(self) -> str:
        """The document."""
        document = {
            "schema": SCHEMA,
            "processor": self.processor,
            "latency": self.latency,
            "entries": [asdict(each) for each in self.entries],
        }
        return json.dumps(document, indent=1, sort_keys=True) + "\n"


@dataclass(frozen=True)
class Drift:
    """What is worse than it was beyond the noise, and what is slower or new, a line each."""

    worse: tuple[str, ...]
    told: tuple[str, ...]


def entries_of(file: str, reports: Sequence[Report]) -> list[Entry]:
    """The figures of a file's reports, which passed.

    Extreme images run at one batch size: what an output scatters is what it scatters on the images on which it does most. How pictures are
    resized scatters by nothing, and has its limit.
    """
    found = []
    for report in reports:
        unit = "floors" if isinstance(report.limits, Limits) else "below 1 the cosine"
        groups: dict[tuple[str, str, str], list[float]] = {}
        for check in report.checks:
            if check.inputs == "resizing":
                continue
            figure = check.rms_floors if isinstance(report.limits, Limits) else 1 - check.accuracy.cosine_min
            groups.setdefault((check.provider, check.output, check.inputs), []).append(figure)
        for key, values in groups.items():
            scatter = max(statistics.pstdev(others) for other, others in groups.items() if other[:2] == key[:2])
            found.append(Entry(file, *key, unit, max(values), scatter))
    return found


def read_baseline(path: Path) -> Baseline:
    """A stored one. Raises: FileError for what is none, or of a newer version."""
    mend = "delete it and run again to store a new one"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] > SCHEMA:
            raise FileError(f"{path} is a baseline of version {document['schema']}, this vit-deploy reads up to {SCHEMA}; upgrade it")
        entries = tuple(
            Entry(**{**each, "figure": float(each["figure"]), "scatter": float(each["scatter"])}) for each in document["entries"]
        )
        latency = {str(name): float(value) for name, value in document["latency"].items()}
        return Baseline(entries, latency, str(document["processor"]))
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path} cannot be read ({error}); {mend}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FileError(f"{path} is no baseline that vit-parity --baseline wrote ({error}); {mend}") from error


def drift(before: Baseline, now: Baseline) -> Drift:
    """What has changed for the worse."""
    known, worse, told = {each.key: each for each in before.entries}, list[str](), list[str]()
    for each in now.entries:
        old = known.pop(each.key, None)
        name = f"{each.file} on {each.compared}, {each.output}" + (f" of {each.inputs}" if each.inputs != "golden" else "")
        if old is None:
            told.append(f"{name}: not in the baseline")
        elif each.figure > old.figure + max(NOISE * max(old.scatter, each.scatter), LEAST * old.figure):
            worse.append(f"{name}: {each.figure:.3g} {each.unit}, was {old.figure:.3g}")
    told += [f"{key[0]} on {key[1]}, {key[2]}: in the baseline, and not measured now" for key in known]
    if before.processor == now.processor:
        for name, milliseconds in now.latency.items():
            if name in before.latency and milliseconds > SLOWER * before.latency[name]:
                told.append(f"{name}: {milliseconds:.1f} ms an image, was {before.latency[name]:.1f}")
    return Drift(tuple(worse), tuple(told))
