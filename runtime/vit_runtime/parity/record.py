"""A file against its own golden record: what float64 PyTorch gave when it was exported."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from vit_runtime.accuracy import accuracy
from vit_runtime.errors import InputError, ModelError
from vit_runtime.golden import EXTREMES, extreme_images, golden_images, project
from vit_runtime.manifest import MAX_RESIZED_SIDE, Error, Golden, Limits, Manifest, ReducedLimits, Resized
from vit_runtime.parity.judging import (
    BATCH_SIZES,
    ENOUGH,
    FLOAT32_LIMITS,
    Array,
    Check,
    Report,
    Run,
    hold,
    judge,
    limits_for,
    measure,
    scale_of,
)
from vit_runtime.preprocess import Preprocessing, normalize, resize_and_crop

PIXELS = 512  # numbers of a resized picture that are recorded
GREY_LEVEL = 1 / 255
# Pillow computes in whole numbers, so another version of it may round a pixel elsewhere: half a level in all, and two for one of them,
# are allowed. Another interpolation or crop moves pixels by dozens.
RESIZING_FLOOR = Error(GREY_LEVEL / 8, GREY_LEVEL / 8)


def check_record(
    run: Run, manifest: Manifest, provider: str, batch_sizes: Sequence[int] = BATCH_SIZES, limits: Limits | ReducedLimits | None = None
) -> Report:
    """Run the file's golden inputs at each batch size and hold the outputs against its golden record, by its own limits or by `limits`.

    Each batch size runs until 500 numbers of every output, or every golden image, have been compared; in reduced precision, where an
    image counts by itself, the first one runs them all.
    A file that takes any image size is also checked at the other sizes that it has records of, there at the first two batch sizes.
    Extreme images run at the first batch size, in reduced precision at each: where a batch as a whole is quantised as the network runs,
    what one loses depends on the others. How a picture is resized and cropped is held against what it was, by float32's limits.
    Raises: ModelError if the file has no golden record; InputError for a batch size below 1.
    """
    checks, rounds = list[Check](), golden_rounds(manifest, batch_sizes)
    if manifest.golden_extremes is not None:
        exact = isinstance(limits_for(manifest.parity) if limits is None else limits, Limits)
        rounds += [(manifest.golden_extremes, size) for size in (batch_sizes[:1] if exact else batch_sizes)]
    for golden, batch_size in rounds:
        held = limits_for(manifest.parity, inputs_of(golden)) if limits is None else limits
        whole = batch_size == batch_sizes[0] and golden.image_size == manifest.image_size
        everything = golden.generator == EXTREMES or (whole and not isinstance(held, Limits))
        inputs, rows = golden_inputs(manifest, golden), batches(golden, batch_size, everything)
        outputs = [reduce_outputs(run(inputs[batch]), golden) for batch in rows]
        expected = {name: values[np.concatenate(rows)] for name, values in golden.expected.items()}
        actual = {name: np.concatenate([output[name] for output in outputs]) for name in expected}
        scales = {name: scale_of(values) for name, values in golden.expected.items()}
        what = (manifest.class_scores, inputs_of(golden))
        checks += hold(provider, batch_size, golden.image_size, expected, actual, golden.floor, held, *what, scales)
    if manifest.resized is not None:
        checks.append(_check_resizing(provider, manifest.resized, manifest.preprocessing))
    return Report(limits_for(manifest.parity) if limits is None else limits, tuple(checks))


def resized(preprocessing: Preprocessing) -> Resized:
    """What this preprocessing makes of a golden image half as high again as the network's and twice as wide."""
    height, width = preprocessing.output_size
    size = min(MAX_RESIZED_SIDE, height * 3 // 2 + 1), min(MAX_RESIZED_SIDE, width * 2 + 1)
    row, step = width * preprocessing.channels, -(-height * width * preprocessing.channels // PIXELS)
    while math.gcd(step, row) > 1:  # else they would all be of one channel, or of a few columns
        step += 1
    return Resized(size, step, _every(step, size, preprocessing))


def _every(step: int, size: tuple[int, int], preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    return resize_and_crop(golden_images(0, 1, *size)[0], preprocessing).reshape(-1)[::step]


def _check_resizing(provider: str, record: Resized, preprocessing: Preprocessing) -> Check:
    """In units of white, as the floor is."""
    made = _every(record.step, record.image_size, preprocessing)
    expected, actual = record.pixels[None] * GREY_LEVEL, made[None] * GREY_LEVEL
    if expected.shape != actual.shape:
        raise ModelError(f"the golden record has {expected.size} pixels, the preprocessing makes {actual.size}; export the model again")
    error, near = measure(expected, actual, 1.0), accuracy(expected, actual, scores=False)
    return judge(provider, 1, record.image_size, "pixels", error, RESIZING_FLOOR, near, FLOAT32_LIMITS, "resizing")


def golden_inputs(manifest: Manifest, golden: Golden) -> npt.NDArray[np.float32]:
    """The record's images as pixel values, float32 (images, C, H, W)."""
    return normalize(golden_pixels(manifest, golden), manifest.preprocessing)


def golden_pixels(manifest: Manifest, golden: Golden) -> npt.NDArray[np.uint8]:
    """The record's images, uint8 (images, H, W, C)."""
    channels = manifest.preprocessing.channels
    if golden.generator == EXTREMES:
        return extreme_images(golden.images, *golden.image_size, int(manifest.model["patch_size"]), channels)
    return golden_images(golden.seed, golden.images, *golden.image_size, channels)


def inputs_of(golden: Golden) -> str:
    """What a check calls the record's images."""
    return "extremes" if golden.generator == EXTREMES else "golden"


def golden_rounds(manifest: Manifest, batch_sizes: Sequence[int]) -> list[tuple[Golden, int]]:
    """Which record of golden images is checked at which batch size.

    Raises: ModelError if the file has none; InputError for a batch size below 1.
    """
    if not manifest.goldens:
        raise ModelError("the file has no golden record, so it cannot be checked by itself; export it without --no-verify")
    if min(batch_sizes, default=0) < 1:
        raise InputError(f"got batch sizes {list(batch_sizes)}, expected whole numbers of at least 1")
    first, *others = manifest.goldens
    return [(first, size) for size in batch_sizes] + [(other, size) for other in others for size in batch_sizes[:2]]


def batches(golden: Golden, batch_size: int, everything: bool = False) -> list[Array]:
    """Which of the record's images make up each batch of a check, enough of them or all; they are taken round and round."""
    per_image = min(values[0].size for values in golden.expected.values())
    wanted = golden.images if everything else min(golden.images, -(-ENOUGH // per_image))
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
