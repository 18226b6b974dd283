"""Does a file still compute what PyTorch computed? Judged by the noise floor (docs/parity.md).

The reference is PyTorch in float64; the floor is PyTorch's own float32 error against it. An artefact passes when its error stays
within a small multiple of the floor, at every batch size. In reduced precision it has to stay as near as it was when it was made:
by the cosine of each output, and by the divergence of probabilities. NaN or Inf anywhere fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vit_runtime.accuracy import Accuracy, accuracy
from vit_runtime.errors import InputError, ModelError
from vit_runtime.golden import golden_images, project
from vit_runtime.manifest import Error, Golden, Limits, Manifest, Nearness, ReducedLimits
from vit_runtime.preprocess import normalize

# One image, batches that divide nothing, and one that is no batch anybody traces with by habit.
BATCH_SIZES = (1, 2, 3, 7, 4)
# Another order of summation gives 0.8 to 1.4 times the floor; a real fault starts at hundreds. `max` is a single number's error,
# an extreme value, which scatters more than a mean does: 0.8 to 2.8 times its floor.
FLOAT32_LIMITS = Limits(rms=2.0, max=8.0)
ENOUGH = 500  # numbers that make the root mean square of an error steady to a few per cent

Array = npt.NDArray[Any]
Run = Callable[[npt.NDArray[np.float32]], Mapping[str, Array]]


@dataclass(frozen=True)
class Check:
    """One output at one batch size and image size: its error, the same in units of the floor, how near it is, and the verdict."""

    provider: str
    batch_size: int
    image_size: tuple[int, int]
    output: str
    error: Error
    rms_floors: float
    max_floors: float
    accuracy: Accuracy
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; a NaN, which JSON has not, is null."""
        return {
            "provider": self.provider,
            "batch_size": self.batch_size,
            "image_size": list(self.image_size),
            "output": self.output,
            "rms": _finite(self.error.rms),
            "max": _finite(self.error.max),
            "rms_floors": _finite(self.rms_floors),
            "max_floors": _finite(self.max_floors),
            "accuracy": self.accuracy.to_dict(),
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
        return min(self.checks, key=lambda check: check.accuracy.cosine_min if np.isfinite(check.accuracy.cosine_min) else -np.inf)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "passed": self.passed,
            "limits": asdict(self.limits)
            if isinstance(self.limits, Limits)
            else {name: asdict(near) for name, near in self.limits.items()},
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


def golden_inputs(manifest: Manifest, golden: Golden) -> npt.NDArray[np.float32]:
    """The golden images as pixel values, float32 (images, C, H, W)."""
    images = golden_images(golden.seed, golden.images, *golden.image_size, manifest.preprocessing.channels)
    return normalize(images, manifest.preprocessing)


def check_record(
    run: Run, manifest: Manifest, provider: str, batch_sizes: Sequence[int] = BATCH_SIZES, limits: Limits | ReducedLimits | None = None
) -> Report:
    """Run the file's golden inputs at each batch size and hold the outputs against its golden record.

    Each batch size runs until 500 numbers of every output, or every golden image, have been compared.
    A file that takes any image size is also checked at the other sizes that it has records of, there at the first two batch sizes.
    Raises: ModelError if the file has no golden record; InputError for a batch size below 1.
    """
    limits, checks = limits or (manifest.parity.limits if manifest.parity else FLOAT32_LIMITS), list[Check]()
    for golden, batch_size in _rounds(manifest, batch_sizes):
        inputs, rows = golden_inputs(manifest, golden), batches(golden, batch_size)
        outputs = [reduce_outputs(run(inputs[batch]), golden) for batch in rows]
        order = np.concatenate(rows)
        for name, expected in golden.expected.items():
            actual = np.concatenate([output[name] for output in outputs])
            error = measure(expected[order], actual, scale_of(expected))
            near = accuracy(expected[order], actual, name == manifest.class_scores)
            checks.append(judge(provider, batch_size, golden.image_size, name, error, golden.floor[name], near, limits))
    return Report(limits, tuple(checks))


def compare(run_a: Run, run_b: Run, manifest: Manifest, names: tuple[str, str], batch_sizes: Sequence[int] = BATCH_SIZES) -> Report:
    """Hold one provider's outputs for the golden inputs against another's, at the same sizes as `check_record`.

    Each may be as far from the truth as the limits allow, on either side of it, so twice that is allowed between them.
    Raises: ModelError if the file has no golden record; InputError for a batch size below 1.
    """
    limits, checks = _doubled(manifest.parity.limits if manifest.parity else FLOAT32_LIMITS), list[Check]()
    pair_name = " against ".join(reversed(names))
    for golden, batch_size in _rounds(manifest, batch_sizes):
        inputs, rows = golden_inputs(manifest, golden), batches(golden, batch_size)
        pairs = [(reduce_outputs(run_a(inputs[batch]), golden), reduce_outputs(run_b(inputs[batch]), golden)) for batch in rows]
        for name, expected in golden.expected.items():
            a, b = (np.concatenate([pair[side][name] for pair in pairs]) for side in (0, 1))
            error, near = measure(a, b, scale_of(expected)), accuracy(a, b, name == manifest.class_scores)
            checks.append(judge(pair_name, batch_size, golden.image_size, name, error, golden.floor[name], near, limits))
    return Report(limits, tuple(checks))


def _doubled(limits: Limits | ReducedLimits) -> Limits | ReducedLimits:
    """The limits at twice the distance. A cosine falls with the square of the distance, and so does a divergence."""
    if isinstance(limits, Limits):
        return Limits(2 * limits.rms, 2 * limits.max)
    return {name: Nearness(1 - 4 * (1 - near.cosine), None if near.kl is None else 4 * near.kl) for name, near in limits.items()}


def _rounds(manifest: Manifest, batch_sizes: Sequence[int]) -> list[tuple[Golden, int]]:
    """Which record is checked at which batch size."""
    if not manifest.goldens:
        raise ModelError("the file has no golden record, so it cannot be checked by itself; export it without --no-verify")
    if min(batch_sizes, default=0) < 1:
        raise InputError(f"got batch sizes {list(batch_sizes)}, expected whole numbers of at least 1")
    first, *others = manifest.goldens
    return [(first, size) for size in batch_sizes] + [(other, size) for other in others for size in batch_sizes[:2]]


def batches(golden: Golden, batch_size: int) -> list[Array]:
    """Which golden images make up each batch of a check; the images are taken round and round."""
    per_image = min(values[0].size for values in golden.expected.values())
    wanted = min(golden.images, -(-ENOUGH // per_image))
    count = -(-wanted // batch_size)
    return [np.arange(index * batch_size, (index + 1) * batch_size) % golden.images for index in range(count)]


def reduce_outputs(outputs: Mapping[str, Array], golden: Golden) -> dict[str, Array]:
    """The outputs as the golden record stores them: large ones projected. Raises: InputError if one is missing."""
    if missing := golden.expected.keys() - outputs.keys():
        raise InputError(f"got outputs {sorted(outputs)}, expected also {sorted(missing)}; compare files with the same outputs")
    return {
        name: project(outputs[name], golden.seed, name, golden.projected[name]) if name in golden.projected else outputs[name]
        for name in golden.expected
    }


def judge(
    provider: str, batch_size: int, image_size: tuple[int, int], output: str, error: Error, floor: Error, near: Accuracy,
    limits: Limits | ReducedLimits,
) -> Check:  # fmt: skip
    """The verdict on one output: within `limits`, NaN never."""
    rms, largest = error.rms / floor.rms, error.max / floor.max
    if isinstance(limits, Limits):
        passed = rms <= limits.rms and largest <= limits.max
    else:
        limit = limits[output]
        passed = near.cosine_min >= limit.cosine and (limit.kl is None or (near.kl_max is not None and near.kl_max <= limit.kl))
    return Check(provider, batch_size, image_size, output, error, rms, largest, near, bool(passed))


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
