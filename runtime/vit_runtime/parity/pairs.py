"""Does one file compute what another does, or one provider what another, or one image alone what it gives in a batch?

Compared on the golden images, on images that no camera makes, and on the user's own, which need no record of what is right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vit_runtime.errors import ImageError, InputError, ModelError
from vit_runtime.golden import ALL_EXTREMES, extreme_images
from vit_runtime.manifest import Golden, Limits, Manifest, ReducedLimits
from vit_runtime.model import Model
from vit_runtime.parity.judging import BATCH_SIZES, Array, Check, Report, between, hold, limits_for
from vit_runtime.parity.record import batches, golden_pixels, golden_rounds, inputs_of, reduce_outputs
from vit_runtime.preprocess import Preprocessing, normalize, resize_and_crop

MAX_PHOTOS = 256  # of a folder
MAX_BYTES = 256 << 20  # of them, as pixels

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Pictures:
    """Images of a network's own size, uint8 (images, H, W, C), and what a report calls them."""

    name: str
    images: Pixels


def extremes(manifest: Manifest) -> Pictures:
    """Black, white, one bright pixel, checkers of a patch's size and their negative, and hardly any contrast."""
    patch, channels = int(manifest.model["patch_size"]), manifest.preprocessing.channels
    return Pictures("extremes", extreme_images(ALL_EXTREMES, *manifest.image_size, patch, channels))


def photographs(paths: Sequence[Path], preprocessing: Preprocessing) -> tuple[Pictures, tuple[ImageError, ...]]:
    """These images as the file's preprocessing makes them, and those that cannot be read. Of very many, some, evenly.

    Raises: InputError if none can be read.
    """
    height, width = preprocessing.output_size
    wanted = min(len(paths), MAX_PHOTOS, max(1, MAX_BYTES // (height * width * preprocessing.channels)))
    pixels, broken = list[Pixels](), list[ImageError]()
    for path in (paths[place * len(paths) // wanted] for place in range(wanted)):
        try:
            pixels.append(resize_and_crop(path, preprocessing))
        except ImageError as error:
            broken.append(error)
    if not pixels:
        raise InputError(f"got {len(broken)} images of which none can be read ({broken[0]}), expected photographs")
    return Pictures("images", np.stack(pixels)), tuple(broken)


def compare(
    a: Model, b: Model, names: tuple[str, str], batch_sizes: Sequence[int] = BATCH_SIZES, pictures: Iterable[Pictures] = ()
) -> Report:
    """Hold what `b` gives against what `a` gives: for a's golden images at each batch size, for `pictures` one by one and in batches.

    Each may be as far from the truth as its own limits allow, so between them both distances together are; floors are those of a's record.
    Raises: InputError for networks that differ in what they are asked for, ModelError if `a` has no golden record.
    """
    if found := differences(a.manifest, b.manifest):
        raise InputError(f"{b.path} and {a.path} are not of one network: {'; '.join(found)}; compare files of the same")
    label, checks, scores = f"{names[1]} against {names[0]}", list[Check](), a.manifest.class_scores
    for golden, batch_size in golden_rounds(a.manifest, batch_sizes):
        rows, images, limits = batches(golden, batch_size), golden_pixels(a.manifest, golden), _between(a, b, inputs_of(golden))
        outputs = [_outputs(model, [images[batch] for batch in rows], golden) for model in (a, b)]
        checks += hold(label, batch_size, golden.image_size, outputs[0], outputs[1], golden.floor, limits, scores)
    for each in pictures:
        limits = _between(a, b, each.name)
        for batch_size in dict.fromkeys((1, max(batch_sizes))):
            golden = _record(a, each.name)
            outputs = [_outputs(model, _batches(each.images, batch_size), golden) for model in (a, b)]
            checks += hold(label, batch_size, golden.image_size, outputs[0], outputs[1], golden.floor, limits, scores, each.name)
    return Report(_between(a, b), tuple(checks))


def steady(model: Model, pictures: Pictures, batch_size: int) -> Report:
    """Hold what each image gives in a batch of this size against what it gives alone.

    Raises: ModelError if the file has no golden record, whose floors are the unit.
    """
    limits, golden = _between(model, model, pictures.name), _record(model, pictures.name)
    alone, together = (_outputs(model, _batches(pictures.images, size), golden) for size in (1, batch_size))
    label = f"{model.provider}, together against alone"
    scores = model.manifest.class_scores
    checks = hold(label, batch_size, golden.image_size, alone, together, golden.floor, limits, scores, pictures.name)
    return Report(limits, tuple(checks))


def differences(a: Manifest, b: Manifest) -> list[str]:
    """In what two files differ that makes a comparison of their numbers senseless."""
    found = [
        f"{what} {_shown(one)} and {_shown(other)}"
        for what, one, other in (
            ("outputs", [output.name for output in a.outputs], [output.name for output in b.outputs]),
            ("shapes", [output.shape for output in a.outputs], [output.shape for output in b.outputs]),
            ("input sizes", a.input_shape, b.input_shape),
            ("resizing to", _resizing(a.preprocessing), _resizing(b.preprocessing)),
        )
        if one != other
    ]
    if a.labels != b.labels:
        changed = sum(one != other for one, other in zip(a.labels or (), b.labels or (), strict=False))
        counts = f"{len(a.labels or ())} and {len(b.labels or ())}"
        found.append(f"labels ({counts}, {changed} of the same number with another name)")
    return found


def _between(a: Model, b: Model, inputs: str = "golden") -> Limits | ReducedLimits:
    return between(limits_for(a.manifest.parity, inputs), limits_for(b.manifest.parity, inputs))


def _record(model: Model, inputs: str) -> Golden:
    """The one whose floors are the unit on such images."""
    golden, own = model.manifest.golden, model.manifest.golden_extremes
    if golden is None:
        raise ModelError(f"{model.path} has no golden record, whose floors are the unit of errors; export it without --no-verify")
    return own if inputs == "extremes" and own is not None else golden


def _outputs(model: Model, parts: Sequence[Pixels], golden: Golden) -> dict[str, Array]:
    found = [reduce_outputs(model.run(normalize(part, model.manifest.preprocessing)), golden) for part in parts]
    return {name: np.concatenate([part[name] for part in found]) for name in golden.expected}


def run_in_batches(model: Model, images: Pixels, size: int) -> dict[str, Array]:
    """Every output for these images, `size` at a time, prepared as the file says."""
    parts = [model.run(normalize(part, model.manifest.preprocessing)) for part in _batches(images, size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _batches(images: Pixels, size: int) -> list[Pixels]:
    return [images[start : start + size] for start in range(0, len(images), size)]


def _resizing(spec: Preprocessing) -> str:
    return f"{spec.color} {spec.resize} {spec.interpolation}"


def _shown(value: object) -> str:
    return str(value).replace("'", "")[:80]
