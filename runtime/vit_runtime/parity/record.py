"""A file against its own golden record: what float64 PyTorch gave when it was exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from vit_runtime.errors import InputError, ModelError
from vit_runtime.golden import golden_images, project
from vit_runtime.manifest import Golden, Limits, Manifest, ReducedLimits
from vit_runtime.parity.judging import BATCH_SIZES, ENOUGH, FLOAT32_LIMITS, Array, Check, Report, Run, hold, scale_of
from vit_runtime.preprocess import normalize


def check_record(
    run: Run, manifest: Manifest, provider: str, batch_sizes: Sequence[int] = BATCH_SIZES, limits: Limits | ReducedLimits | None = None
) -> Report:
    """Run the file's golden inputs at each batch size and hold the outputs against its golden record.

    Each batch size runs until 500 numbers of every output, or every golden image, have been compared.
    A file that takes any image size is also checked at the other sizes that it has records of, there at the first two batch sizes.
    Raises: ModelError if the file has no golden record; InputError for a batch size below 1.
    """
    limits, checks = limits or (manifest.parity.limits if manifest.parity else FLOAT32_LIMITS), list[Check]()
    for golden, batch_size in golden_rounds(manifest, batch_sizes):
        inputs, rows = golden_inputs(manifest, golden), batches(golden, batch_size)
        outputs = [reduce_outputs(run(inputs[batch]), golden) for batch in rows]
        expected = {name: values[np.concatenate(rows)] for name, values in golden.expected.items()}
        actual = {name: np.concatenate([output[name] for output in outputs]) for name in expected}
        scales = {name: scale_of(values) for name, values in golden.expected.items()}
        scores = manifest.class_scores
        checks += hold(provider, batch_size, golden.image_size, expected, actual, golden.floor, limits, scores, scales=scales)
    return Report(limits, tuple(checks))


def golden_inputs(manifest: Manifest, golden: Golden) -> npt.NDArray[np.float32]:
    """The golden images as pixel values, float32 (images, C, H, W)."""
    images = golden_images(golden.seed, golden.images, *golden.image_size, manifest.preprocessing.channels)
    return normalize(images, manifest.preprocessing)


def golden_rounds(manifest: Manifest, batch_sizes: Sequence[int]) -> list[tuple[Golden, int]]:
    """Which record is checked at which batch size.

    Raises: ModelError if the file has none; InputError for a batch size below 1.
    """
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
