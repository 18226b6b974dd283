"""What parity is judged by: the noise floor, and in reduced precision the nearness (docs/parity.md).

The reference is PyTorch in float64; the floor is PyTorch's own float32 error against it. An artefact passes when its error stays
within a small multiple of the floor, at every batch size. In reduced precision it has to stay as near as it was when it was made:
by the cosine of each output, and by the divergence of probabilities. NaN or Inf anywhere fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from vit_runtime.accuracy import Accuracy, accuracy
from vit_runtime.errors import InputError
from vit_runtime.manifest import Error, Limits, Manifest, Nearness, Parity, ReducedLimits, limits_to_dict

# One image, batches that divide nothing, and one that is no batch anybody traces with by habit.
BATCH_SIZES = (1, 2, 3, 7, 4)
# Another order of summation gives 0.8 to 1.4 times the floor, OpenVINO's own functions up to 2.2; a real fault starts at hundreds. `max`
# is a single number's error, an extreme value, which scatters more than a mean does: 0.8 to 2.8 times its floor.
FLOAT32_LIMITS = Limits(rms=4.0, max=16.0)
# On extreme images, where the loss of reduced precision was not measured at export: between two such files it makes 0.5, below which a
# network computes something else.
UNMEASURED = Nearness(0.875, None)
ENOUGH = 500  # numbers that make the root mean square of an error steady to a few per cent
TOP = 5

Array = npt.NDArray[Any]
Run = Callable[[npt.NDArray[np.float32]], Mapping[str, Array]]


@dataclass(frozen=True)
class Ranks:
    """What an error did to the order of classes, counted in images.

    `top5` have the same five on top, in any order; 0 to 1. `changed` have another class on top; in `near_ties` of these the two classes
    were expected to be closer than twice the error that a score may have, so the change is none to speak of.
    """

    top5: float
    changed: int
    near_ties: int


@dataclass(frozen=True)
class Check:
    """One output at one batch size and image size: its error, the same in units of the floor, how near it is, and the verdict.

    `inputs` names the images: "golden", "extremes", "images", or "resizing" for what is done to a picture before the network sees it.
    `limit` is what it was held to; `ranks` are there where the output scores classes.
    """

    provider: str
    batch_size: int
    image_size: tuple[int, int]
    output: str
    error: Error
    rms_floors: float
    max_floors: float
    accuracy: Accuracy
    limit: Limits | Nearness
    passed: bool
    inputs: str = "golden"
    ranks: Ranks | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; a NaN, which JSON has not, is null."""
        return {
            "provider": self.provider,
            "batch_size": self.batch_size,
            "image_size": list(self.image_size),
            "output": self.output,
            "inputs": self.inputs,
            "rms": _finite(self.error.rms),
            "max": _finite(self.error.max),
            "rms_floors": _finite(self.rms_floors),
            "max_floors": _finite(self.max_floors),
            "accuracy": self.accuracy.to_dict(),
            "ranks": asdict(self.ranks) if self.ranks else None,
            "passed": self.passed,
        }


@dataclass(frozen=True)
class Report:
    """Every check, and the limits that they were judged by: multiples of the floor, or how near each output has to be."""

    limits: Limits | ReducedLimits
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether there were checks and each of them passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def worst(self) -> Check:
        """The check with the largest error in floors, or in reduced precision with the least cosine; a NaN counts as worst."""
        if isinstance(self.limits, Limits):
            return max(self.checks, key=lambda check: check.rms_floors if np.isfinite(check.rms_floors) else np.inf)
        outputs = [check for check in self.checks if isinstance(check.limit, Nearness)]  # and not how images are resized
        return min(outputs, key=lambda check: check.accuracy.cosine_min if np.isfinite(check.accuracy.cosine_min) else -np.inf)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "passed": self.passed,
            "limits": limits_to_dict(self.limits),
            "checks": [check.to_dict() for check in self.checks],
        }


def measure(expected: Array, actual: Array, scale: float) -> Error:
    """The error of `actual` against `expected`, arrays of one shape, in units of `scale`; NaN or Inf in them gives NaN or Inf.

    Raises: InputError for different shapes.
    """
    if np.shape(expected) != np.shape(actual):
        raise InputError(f"got numbers of shape {np.shape(actual)}, expected {np.shape(expected)}; compare outputs of the same network")
    with np.errstate(invalid="ignore"):  # Inf against Inf is NaN, which fails every limit
        difference = np.asarray(actual, np.float64) - np.asarray(expected, np.float64)
    return Error(float(np.sqrt(np.mean(np.square(difference)))) / scale, float(np.max(np.abs(difference), initial=0.0)) / scale)


def scale_of(expected: Array) -> float:
    """The root mean square of a reference, the unit of its errors."""
    return float(np.sqrt(np.mean(np.square(np.asarray(expected, np.float64))))) or 1.0


def between(a: Limits | ReducedLimits, b: Limits | ReducedLimits) -> Limits | ReducedLimits:
    """What two files may be apart that are each as far from the truth as they may be, on either side of it.

    An angle adds up, and a cosine falls with its square; so does a divergence. Beside reduced precision a float32 file is the truth.
    """
    if isinstance(a, Limits) and isinstance(b, Limits):
        return Limits(a.rms + b.rms, a.max + b.max)
    first, second = ({} if isinstance(limits, Limits) else limits for limits in (a, b))
    found = dict[str, Nearness]()
    for name in {**first, **second}:
        near = [limits[name] for limits in (first, second) if name in limits]
        kls = [each.kl for each in near if each.kl is not None]
        means = [1 - each.cosine_mean for each in near if each.cosine_mean is not None]
        mean = 1 - _added(means) if len(means) == len(near) else None  # what one of them has no limit for, both have none for
        found[name] = Nearness(1 - _added([1 - each.cosine for each in near]), _added(kls) if kls else None, mean)
    return found


def _added(losses: Sequence[float]) -> float:
    """What is quadratic in an angle."""
    return sum(loss**0.5 for loss in losses) ** 2


def overridden(manifest: Manifest, floors: tuple[float, float] | None, cosine: float | None, kl: float | None) -> Parity:
    """The limits with those that are given in place of a file's own: in floors for float32, cosine and divergence for reduced precision.

    A file without limits gets those of its precision: float32's, or what is given.
    Raises: InputError for limits of the other kind, and for reduced precision that neither has a limit nor is given one.
    """
    parity = manifest.parity or Parity(FLOAT32_LIMITS, ())
    if manifest.parity is None and (precision := manifest.build["precision"]) != "fp32":
        if cosine is None:
            missing = f"the file is in {precision} and was not verified, so it has no limits"
            raise InputError(f"{missing}; say what is near enough with --min-cosine")
        scores = manifest.class_scores
        given = {output.name: Nearness(cosine, kl if output.name == scores else None) for output in manifest.outputs}
        parity = Parity(given, (), given)
    if isinstance(parity.limits, Limits):
        if cosine is not None or kl is not None:
            raise InputError("got a cosine or a divergence as the limit of a float32 file, expected multiples of the floor (--max-floors)")
        return parity if floors is None else replace(parity, limits=Limits(*floors))
    if floors is not None:
        raise InputError("got floors as the limit of a file in reduced precision, expected --min-cosine or --max-kl")

    def held(limits: ReducedLimits) -> ReducedLimits:
        return {
            name: Nearness(
                near.cosine if cosine is None else cosine,
                near.kl if kl is None or near.kl is None else kl,
                near.cosine_mean if cosine is None else None,
            )
            for name, near in limits.items()
        }

    return replace(parity, limits=held(parity.limits), extremes=held(parity.extremes) if parity.extremes is not None else None)


def limits_for(parity: Parity | None, inputs: str = "golden") -> Limits | ReducedLimits:
    """What a file is held to by itself on such images. What it loses on extreme ones says little about others, and the other way round;
    what golden images lose in the mean says nothing about the mean of others."""
    if parity is None:
        return FLOAT32_LIMITS
    if inputs == "golden" or isinstance(parity.limits, Limits):
        return parity.limits
    if inputs == "extremes":
        return parity.extremes if parity.extremes is not None else dict.fromkeys(parity.limits, UNMEASURED)
    return {name: replace(near, cosine_mean=None) for name, near in parity.limits.items()}


def hold(
    provider: str, batch_size: int, image_size: tuple[int, int], expected: Mapping[str, Array], actual: Mapping[str, Array],
    floors: Mapping[str, Error], limits: Limits | ReducedLimits, class_scores: str | None, inputs: str = "golden",
    scales: Mapping[str, float] | None = None,
) -> list[Check]:  # fmt: skip
    """A check of each output of `expected`; errors are in units of `scales`, by default of the root mean square of what is expected."""
    found = []
    for name, values in expected.items():
        scale = scales[name] if scales is not None else scale_of(values)
        error, near = measure(values, actual[name], scale), accuracy(values, actual[name], name == class_scores)
        limit = limits if isinstance(limits, Limits) else limits[name]
        order = ranks(values, actual[name], _allowed(values, limit, floors[name], scale)) if name == class_scores else None
        found.append(judge(provider, batch_size, image_size, name, error, floors[name], near, limit, inputs, order))
    return found


def ranks(expected: Array, actual: Array, allowed: npt.NDArray[np.float64]) -> Ranks:
    """The order of classes in `actual` beside that in `expected`, (images, classes); a score may be off by `allowed`, (images,)."""
    rows, top = np.arange(len(expected)), min(TOP, expected.shape[1])
    best, found = expected.argmax(axis=1), actual.argmax(axis=1)
    fives = [np.sort(np.argsort(-values, axis=1, kind="stable")[:, :top]) for values in (expected, actual)]
    changed = best != found
    with np.errstate(invalid="ignore"):
        near = changed & (expected[rows, best] - expected[rows, found] <= 2 * allowed)
    return Ranks(float(np.mean((fives[0] == fives[1]).all(axis=1))), int(changed.sum()), int(near.sum()))


def _allowed(expected: Array, limit: Limits | Nearness, floor: Error, scale: float) -> npt.NDArray[np.float64]:
    """How far off a score of each image may be: by its limit, or as part of an angle that the limit allows, spread over the scores."""
    if isinstance(limit, Limits):
        return np.full(len(expected), limit.max * floor.max * scale)
    size = np.sqrt(np.mean(np.square(expected.astype(np.float64)), axis=1))
    return np.asarray(size * np.sqrt(2 * max(0.0, 1 - limit.cosine)))


def judge(
    provider: str, batch_size: int, image_size: tuple[int, int], output: str, error: Error, floor: Error, near: Accuracy,
    limit: Limits | Nearness, inputs: str = "golden", order: Ranks | None = None,
) -> Check:  # fmt: skip
    """The verdict on one output: within `limit`, NaN never."""
    rms, largest = error.rms / floor.rms, error.max / floor.max
    if isinstance(limit, Limits):
        passed = rms <= limit.rms and largest <= limit.max
    else:
        passed = near.cosine_min >= limit.cosine and (limit.kl is None or (near.kl_max is not None and near.kl_max <= limit.kl))
        passed &= limit.cosine_mean is None or near.cosine_mean >= limit.cosine_mean
    return Check(provider, batch_size, image_size, output, error, rms, largest, near, limit, bool(passed), inputs, order)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
