"""The manifest: one JSON document inside the .onnx file that says how to use it and what proves it (docs/manifest.md).

It lies in the file's `metadata_props` under `vit_deploy`. `manifest.schema.json` beside this module is its published schema.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from vit_runtime.accuracy import Accuracy
from vit_runtime.errors import ModelError
from vit_runtime.golden import ALL_EXTREMES, EXTREMES, GENERATOR
from vit_runtime.onnx_file import OnnxFile, read_onnx
from vit_runtime.openvino_engine import Arithmetic
from vit_runtime.preprocess import MAX_PIXELS, MAX_SIDE, Preprocessing

KEY = "vit_deploy"
SCHEMA_VERSION = 1
SCHEMA_FILE = Path(__file__).with_name("manifest.schema.json")
MAX_GOLDEN_IMAGES = 64
MAX_GOLDEN_SIZES = 8
MAX_GOLDEN_PIXELS = 2 * MAX_PIXELS  # of all images of a record, which are made at once
MAX_RESIZED, MAX_RESIZED_SIDE = 4096, 2048  # numbers, and pixels along a side
MAX_INT = (1 << 63) - 1
FREE_SIZE = ("height", "width")  # in an input's shape: both are free

T = TypeVar("T")


@dataclass(frozen=True)
class Output:
    """A graph output and what it means; `shape` starts with "batch", and a size that follows the image's has a name as well."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    meaning: str


@dataclass(frozen=True)
class Error:
    """How far values are from the float64 reference, in units of that reference's root mean square.

    `rms` over all numbers, `max` of a single one. NaN or Inf in the values makes both NaN or Inf, which pass no limit.
    """

    rms: float
    max: float


@dataclass(frozen=True)
class Golden:
    """A golden record: what float64 PyTorch computes for images that `golden_images(seed, images, *image_size)` makes again, or of
    generator "extremes-1" `extreme_images(images, *image_size, patch_size)`.

    `expected` has one float32 array an output, (images, ...) or, where `projected` has the output's name,
    (images, projected[name]) through `vit_runtime.golden.project`. `floor` is PyTorch's own float32 error.
    """

    seed: int
    images: int
    expected: Mapping[str, npt.NDArray[np.float32]]
    projected: Mapping[str, int]
    floor: Mapping[str, Error]
    image_size: tuple[int, int]
    generator: str = GENERATOR


@dataclass(frozen=True)
class Resized:
    """What the preprocessing made, before normalising, of the golden image of seed 0 and of `image_size`: some of its pixels.

    `pixels`, uint8 (n,), are every `step`-th of all numbers of the result (H, W, C), from the first.
    """

    image_size: tuple[int, int]
    step: int
    pixels: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Limits:
    """What a float32 artefact's error may be, in multiples of the floor."""

    rms: float
    max: float


@dataclass(frozen=True)
class Nearness:
    """How near one output of reduced precision has to be, or is: the least cosine of an image, the largest KL divergence where it scores
    classes, and the mean cosine of the golden images; None where nothing is asked of it."""

    cosine: float
    kl: float | None
    cosine_mean: float | None = None


ReducedLimits = Mapping[str, Nearness]  # by output, of an artefact in reduced precision


@dataclass(frozen=True)
class Measured:
    """One output's error at one batch size and image size, as the exporter measured it; how near it is, in reduced precision."""

    provider: str
    batch_size: int
    output: str
    error: Error
    image_size: tuple[int, int]
    nearness: Nearness | None = None
    inputs: str = "golden"


@dataclass(frozen=True)
class Parity:
    """The limits that the file is held to, and what was measured when it was made.

    A file in reduced precision has limits of its own on extreme images, `extremes`: it loses more there, or less.
    """

    limits: Limits | ReducedLimits
    measured: tuple[Measured, ...]
    extremes: ReducedLimits | None = None


@dataclass(frozen=True)
class Execution:
    """How the file wants to be run: the provider that it was made for, and what OpenVINO may compute in."""

    provider: str = "cpu"
    bf16: bool = False
    int8_group: int | None = None

    @property
    def arithmetic(self) -> Arithmetic:
        """The part that is OpenVINO's."""
        return Arithmetic(self.bf16, self.int8_group)


@dataclass(frozen=True)
class Judged:
    """How near a file of reduced precision comes to PyTorch's float32 on images other than the golden ones.

    `source` is "photographs" or "synthetic": the user's own images, or generated ones.
    """

    provider: str
    source: str
    images: int
    outputs: Mapping[str, Accuracy]


@dataclass(frozen=True)
class Manifest:
    """Everything that a file says about itself. `checkpoint`, `build`, `accuracy` and all of `model` but its `projection` are for people;
    the rest is acted upon.

    `image_size` is (height, width) of what the preprocessing makes and the golden record holds. With `multiple_of` the network takes
    every size whose sides are multiples of it, without it that size alone; `golden_sizes` then has records of other sizes.
    `golden_extremes` is a record of extreme images, `resized` of what is done to images before the network sees them.
    """

    model: Mapping[str, Any]
    checkpoint: Mapping[str, Any]
    input_name: str
    image_size: tuple[int, int]
    preprocessing: Preprocessing
    outputs: tuple[Output, ...]
    labels: tuple[str, ...] | None
    build: Mapping[str, Any]
    golden: Golden | None
    parity: Parity | None
    multiple_of: int | None = None
    golden_sizes: tuple[Golden, ...] = ()
    golden_extremes: Golden | None = None
    resized: Resized | None = None
    execution: Execution = Execution()
    accuracy: Judged | None = None

    @property
    def goldens(self) -> tuple[Golden, ...]:
        """The records of golden images, that of the default size first; none if the export was not verified."""
        return (self.golden, *self.golden_sizes) if self.golden is not None else ()

    @property
    def class_scores(self) -> str | None:
        """The output that scores classes; None where there is none: a head that projects (`model.projection`) knows no classes."""
        return "logits" if not self.model["projection"] and self._has("logits") else None

    @property
    def features(self) -> str | None:
        """The output that stands for an image: what a head that projects gives, else the embedding; None where there is neither."""
        if self.model["projection"] and self._has("logits"):
            return "logits"
        return "embedding" if self._has("embedding") else None

    @property
    def input_shape(self) -> tuple[int | str, ...]:
        """The input's shape as the graph has it."""
        return ("batch", self.preprocessing.channels, *(self.image_size if self.multiple_of is None else FREE_SIZE))

    def _has(self, name: str) -> bool:
        return any(output.name == name for output in self.outputs)

    def to_json(self) -> str:
        """The document, keys sorted, without white space: the same manifest is the same bytes."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

    def to_dict(self) -> dict[str, Any]:
        """The document as JSON values."""
        document: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "model": dict(self.model),
            "checkpoint": dict(self.checkpoint),
            "input": {
                "name": self.input_name,
                "dtype": "float32",
                "layout": "NCHW",
                "shape": list(self.input_shape),
                "multiple_of": self.multiple_of,
            },
            "preprocessing": self.preprocessing.to_dict(),
            "outputs": [{"name": o.name, "dtype": o.dtype, "shape": list(o.shape), "meaning": o.meaning} for o in self.outputs],
            "labels": list(self.labels) if self.labels is not None else None,
            "build": dict(self.build),
            "execution": asdict(self.execution),
            "accuracy": _judged_to_dict(self.accuracy) if self.accuracy else None,
            "golden": _golden_to_dict(self.golden) if self.golden else None,
            "golden_sizes": [_golden_to_dict(golden) for golden in self.golden_sizes],
            "golden_extremes": _golden_to_dict(self.golden_extremes) if self.golden_extremes else None,
            "resized": _resized_to_dict(self.resized) if self.resized else None,
            "parity": _parity_to_dict(self.parity) if self.parity else None,
        }
        return document


def read_manifest(path: Path) -> tuple[Manifest, OnnxFile]:
    """The manifest of a file, held against its graph.

    Raises: ModelError if the file is unreadable, not ours, from a newer version, or contradicts itself.
    """
    file = read_onnx(path)
    text = file.metadata.get(KEY)
    if text is None:
        raise ModelError(f"{path} is an ONNX file without a {KEY} manifest, expected one that `vit-export` wrote; export the model again")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: its manifest is not JSON ({error}); export the model again") from error
    try:
        manifest = parse_manifest(document)
        _check_against_graph(manifest, file)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    return manifest, file


def parse_manifest(document: Any) -> Manifest:
    """A manifest from its JSON document. Raises: ModelError that names the entry."""
    version = _get(document, "schema_version", int)
    if version > SCHEMA_VERSION:
        raise ModelError(
            f"got manifest version {version}, this vit-deploy reads up to {SCHEMA_VERSION}; upgrade with `pip install -U vit-deploy`"
        )
    if version < 1:
        raise ModelError(f"got manifest version {version}, expected 1; export the model again")
    shape = _get(document, "input.shape", list)
    multiple_of: Any = _get(document, "input.multiple_of", object)
    fixed = len(shape) == 4 and all(_is_size(size) for size in shape[2:])
    if shape[:2] not in (["batch", 3], ["batch", 1]) or not (fixed or shape[2:] == list(FREE_SIZE)):
        raise ModelError(f"the manifest's input.shape is {shape}, expected ['batch', channels, height, width]; export the model again")
    if not (multiple_of is None if fixed else _is_size(multiple_of)):
        wanted = "null for an input of one size" if fixed else "a whole number for an input of any size"
        raise ModelError(f"the manifest's input.multiple_of is {str(multiple_of)[:60]!r}, expected {wanted}; export the model again")
    for entry, wanted in (("input.dtype", "float32"), ("input.layout", "NCHW")):
        if (got := _get(document, entry, str)) != wanted:
            raise ModelError(f"the manifest's {entry} is {got!r}, expected {wanted!r}; export the model again")
    outputs = tuple(_output(item, fixed) for item in _get(document, "outputs", list))
    preprocessing = Preprocessing.from_dict(_get(document, "preprocessing", dict))
    labels = _get(document, "labels", object)
    if labels is not None and not (isinstance(labels, list) and all(_is_text(label) for label in labels)):
        raise ModelError("the manifest's labels are not a list of names; export the model again")
    golden, parity = _get(document, "golden", object), _get(document, "parity", object)
    extremes, resized = _get(document, "golden_extremes", object), _get(document, "resized", object)
    for entry, kind in _FOR_PEOPLE:
        _get(document, entry, kind)
    _check_build(document["build"])
    manifest = Manifest(
        model=_get(document, "model", dict),
        checkpoint=_get(document, "checkpoint", dict),
        input_name=_get(document, "input.name", str),
        image_size=(shape[2], shape[3]) if fixed else preprocessing.output_size,
        preprocessing=preprocessing,
        outputs=outputs,
        labels=tuple(labels) if labels is not None else None,
        build=_get(document, "build", dict),
        golden=_golden_from_dict(golden, outputs) if golden is not None else None,
        golden_sizes=tuple(_golden_from_dict(record, outputs) for record in _get(document, "golden_sizes", list)),
        golden_extremes=_golden_from_dict(extremes, outputs, EXTREMES) if extremes is not None else None,
        resized=_resized_from_dict(resized) if resized is not None else None,
        parity=_parity_from_dict(parity) if parity is not None else None,
        multiple_of=multiple_of,
        execution=_execution(_get(document, "execution", dict)),
        accuracy=_judged_from_dict(judged) if (judged := _get(document, "accuracy", object)) is not None else None,
    )
    if shape[1] != preprocessing.channels:
        images = f"images of {preprocessing.channels} channels, but its input has {shape[1]}"
        raise ModelError(f"its manifest prepares {images}; export the model again")
    _check_against_itself(manifest)
    return manifest


def _check_build(build: Any) -> None:
    """What is printed of it can be printed."""
    counts = [build["traced"]]
    for item in build["passes"]:
        for entry, kind in (("name", str), ("nodes_before", int), ("nodes_after", int)):
            _get(item, entry, kind)
        counts.append(_get(item, "ops", dict))
        _number_or_none(item, "floors")
    if not all(_is_int(count) for ops in counts for count in ops.values()):
        raise ModelError("the manifest's build counts nodes in something else than whole numbers; export the model again")
    for item in build["kept"]:
        _get(item, "layer", str)
        _number_or_none(item, "before")
        _number_or_none(item, "after")
    for item in build["islands"]:
        for entry in ("node", "value", "reason"):
            _get(item, entry, str)
        _number_or_none(item, "largest")
    split = build["token_split"]
    if split is not None and not (isinstance(split, list) and all(_is_size(rows) for rows in split)):
        raise ModelError(f"the manifest's build.token_split is {str(split)[:60]!r}, expected whole numbers or null; export the model again")


def record_digest(record: Mapping[str, Any]) -> str:
    """SHA-256 of a golden record's JSON without its own `sha256` entry: a record that was changed no longer fits it."""
    content = {key: value for key, value in record.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _golden_to_dict(golden: Golden) -> dict[str, Any]:
    outputs = {}
    for name, values in golden.expected.items():
        data = base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()
        floor = golden.floor[name]
        outputs[name] = {
            "shape": list(values.shape),
            "projected": name in golden.projected,
            "data": data,
            "floor": {"rms": floor.rms, "max": floor.max},
        }
    record: dict[str, Any] = {
        "generator": golden.generator,
        "seed": golden.seed,
        "images": golden.images,
        "image_size": list(golden.image_size),
        "outputs": outputs,
    }
    return {**record, "sha256": record_digest(record)}


def _resized_to_dict(resized: Resized) -> dict[str, Any]:
    record = {"image_size": list(resized.image_size), "step": resized.step, "pixels": base64.b64encode(resized.pixels.tobytes()).decode()}
    return {**record, "sha256": record_digest(record)}


def _resized_from_dict(record: Any) -> Resized:
    _check_digest(record)
    try:
        pixels = np.frombuffer(base64.b64decode(_get(record, "pixels", str), validate=True), np.uint8)
    except ValueError as error:
        raise ModelError("the golden record's pixels are not base64; export the model again") from error
    size, step = _image_size(record), _get(record, "step", int)
    if step < 1 or not 1 <= len(pixels) <= MAX_RESIZED or max(size) > MAX_RESIZED_SIDE:
        told = f"every {step}th of {len(pixels)} pixels of a picture of {size}"
        raise ModelError(f"the golden record has {told}, expected a few; export the model again")
    return Resized(size, step, pixels)


def _check_digest(record: Any) -> None:
    if _get(record, "sha256", str) != record_digest(record):
        raise ModelError("the golden record was changed after the export: its SHA-256 no longer fits; export the model again")


def _golden_from_dict(record: Any, outputs: Sequence[Output], wanted_generator: str = GENERATOR) -> Golden:
    if (generator := _get(record, "generator", str)) != wanted_generator:
        raise ModelError(
            f"the golden record's images come from generator {generator!r}, this vit-deploy has {wanted_generator!r}; upgrade vit-deploy"
        )
    _check_digest(record)
    images = _get(record, "images", int)
    if not 1 <= images <= MAX_GOLDEN_IMAGES:
        raise ModelError(f"the golden record has {images} images, expected 1 to {MAX_GOLDEN_IMAGES}; export the model again")
    height, width = _image_size(record)
    if images * height * width > MAX_GOLDEN_PIXELS:
        raise ModelError(f"the golden record has {images} images of {height}x{width}, which would take all memory; export the model again")
    shapes = {output.name: output.shape for output in outputs}
    expected, projected, floor = {}, {}, {}
    entries = _get(record, "outputs", dict)
    if entries.keys() != shapes.keys():
        raise ModelError(f"the golden record has outputs {sorted(entries)}, the file {sorted(shapes)}; export the model again")
    for name, entry in entries.items():
        shape = _get(entry, "shape", list)
        is_projected = _get(entry, "projected", bool)
        wanted = [images, *_fixed(shapes[name][1:], shape[1:])]
        if is_projected:
            projected[name] = shape[1] if len(shape) == 2 else 0
            wanted = [images, projected[name]]
        if shape != wanted or not all(_is_size(size) for size in shape):
            raise ModelError(f"the golden record's {name} has shape {shape}, expected {wanted}; export the model again")
        expected[name] = _array(name, _get(entry, "data", str), shape)
        floor[name] = _error(entry, "floor")
        if not (floor[name].rms and floor[name].max):
            raise ModelError(f"the golden record's {name} has a floor of 0, expected a larger number; export the model again")
    return Golden(_get(record, "seed", int), images, expected, projected, floor, (height, width), generator)


def _image_size(document: Any) -> tuple[int, int]:
    size = _get(document, "image_size", list)
    if len(size) != 2 or not all(_is_size(side) and side <= MAX_SIDE for side in size):
        raise ModelError(f"the manifest has an image_size of {str(size)[:60]}, expected [height, width]; export the model again")
    return size[0], size[1]


def _array(name: str, text: str, shape: list[int]) -> npt.NDArray[np.float32]:
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ModelError(f"the golden record's {name} is not base64; export the model again") from error
    if len(data) != 4 * math.prod(shape):
        raise ModelError(f"the golden record's {name} has {len(data)} bytes, expected {4 * math.prod(shape)}; export the model again")
    values = np.frombuffer(data, "<f4").reshape(shape).astype(np.float32)
    if not np.isfinite(values).all():
        raise ModelError(f"the golden record's {name} has NaN or Inf in it, expected finite numbers; export the model again")
    return values


def _parity_to_dict(parity: Parity) -> dict[str, Any]:
    measured = [
        {
            "provider": m.provider,
            "batch_size": m.batch_size,
            "image_size": list(m.image_size),
            "output": m.output,
            "rms": m.error.rms,
            "max": m.error.max,
            "nearness": asdict(m.nearness) if m.nearness else None,
            "inputs": m.inputs,
        }
        for m in parity.measured
    ]
    kind = "floors" if isinstance(parity.limits, Limits) else "nearness"
    extremes = limits_to_dict(parity.extremes) if parity.extremes is not None else None
    return {"kind": kind, "limits": limits_to_dict(parity.limits), "extremes": extremes, "measured": measured}


def limits_to_dict(limits: Limits | ReducedLimits) -> dict[str, Any]:
    """As JSON values."""
    return asdict(limits) if isinstance(limits, Limits) else {name: asdict(near) for name, near in limits.items()}


def _parity_from_dict(document: Any) -> Parity:
    kind = _get(document, "kind", str)
    if kind not in ("floors", "nearness"):
        raise ModelError(f"the manifest's parity.kind is {kind[:60]!r}, expected floors or nearness; export the model again")
    limits: Limits | ReducedLimits
    if kind == "floors":
        limits = Limits(_positive(document, "limits.rms"), _positive(document, "limits.max"))
    else:
        limits = {name: _nearness(near) for name, near in _get(document, "limits", dict).items()}
    extremes: Any = _get(document, "extremes", object)
    if extremes is not None:
        extremes = {name: _nearness(near) for name, near in _get(document, "extremes", dict).items()}
    measured = tuple(
        Measured(
            _get(item, "provider", str),
            _get(item, "batch_size", int),
            _get(item, "output", str),
            Error(_positive(item, "rms"), _positive(item, "max")),
            _image_size(item),
            _nearness(near) if (near := _get(item, "nearness", object)) is not None else None,
            _get(item, "inputs", str),
        )
        for item in _get(document, "measured", list)
    )
    return Parity(limits, measured, extremes)


def _nearness(document: Any) -> Nearness:
    divergence, mean = _get(document, "kl", object), _get(document, "cosine_mean", object)
    return Nearness(
        _at_most_one(document, "cosine"),
        _positive(document, "kl") if divergence is not None else None,
        _at_most_one(document, "cosine_mean") if mean is not None else None,
    )


def _execution(document: Any) -> Execution:
    group: Any = _get(document, "int8_group", object)
    if group is not None and not _is_size(group):
        raise ModelError(
            f"the manifest's execution.int8_group is {str(group)[:60]!r}, expected a whole number or null; export the model again"
        )
    return Execution(_get(document, "provider", str), _get(document, "bf16", bool), group)


def _judged_to_dict(judged: Judged) -> dict[str, Any]:
    outputs = {name: found.to_dict() for name, found in judged.outputs.items()}
    return {"provider": judged.provider, "source": judged.source, "images": judged.images, "outputs": outputs}


def _judged_from_dict(document: Any) -> Judged:
    outputs = {}
    for output, found in _get(document, "outputs", dict).items():
        classes = [_number_or_none(found, name) for name in ("top1", "kl_mean", "kl_max")]
        outputs[output] = Accuracy(_number(found, "cosine_min"), _number(found, "cosine_mean"), *classes)
    return Judged(_get(document, "provider", str), _get(document, "source", str), _get(document, "images", int), outputs)


def _fixed(shape: Sequence[int | str], like: list[Any]) -> list[Any]:
    """An output's shape with its free sizes taken from the numbers of a golden record."""
    return [other if isinstance(size, str) else size for size, other in zip(shape, like, strict=False)] + list(shape[len(like) :])


def _output(item: Any, fixed: bool) -> Output:
    shape = _get(item, "shape", list)
    if not shape or shape[0] != "batch" or not all(_is_size(size) or (_is_text(size) and not fixed) for size in shape[1:]):
        raise ModelError(f"the manifest has an output of shape {shape}, expected ['batch', sizes ...]; export the model again")
    return Output(_get(item, "name", str), _get(item, "dtype", str), tuple(shape), _get(item, "meaning", str))


def _check_against_itself(manifest: Manifest) -> None:
    if manifest.preprocessing.output_size != manifest.image_size:
        sizes = f"images of {manifest.preprocessing.output_size}, but its input is {manifest.image_size}"
        raise ModelError(f"its manifest prepares {sizes}; export the model again")
    if manifest.multiple_of is not None and any(side % manifest.multiple_of for side in manifest.image_size):
        sizes = f"images of {manifest.image_size}, which are no multiples of {manifest.multiple_of}"
        raise ModelError(f"its manifest prepares {sizes}; export the model again")
    if manifest.golden is not None and manifest.golden.image_size != manifest.image_size:
        sizes = f"golden images of {manifest.golden.image_size}, but its input is {manifest.image_size}"
        raise ModelError(f"its manifest has {sizes}; export the model again")
    if manifest.golden_sizes and (manifest.golden is None or manifest.multiple_of is None or len(manifest.golden_sizes) > MAX_GOLDEN_SIZES):
        wanted = f"none, or at most {MAX_GOLDEN_SIZES} of a network that takes any size"
        raise ModelError(
            f"its manifest has {len(manifest.golden_sizes)} golden records of other sizes, expected {wanted}; export the model again"
        )
    if any(side % (manifest.multiple_of or 1) for golden in manifest.goldens for side in golden.image_size):
        raise ModelError(f"its manifest has golden images that are no multiples of {manifest.multiple_of}; export the model again")
    for output in manifest.outputs:
        if output.name in ("logits", "embedding") and (len(output.shape) != 2 or not _is_int(output.shape[1])):
            raise ModelError(f"its manifest has {output.name} of shape {output.shape}, expected one row an image; export the model again")
    classes = next((output.shape[-1] for output in manifest.outputs if output.name == "logits"), None)
    if manifest.labels is not None and len(manifest.labels) != classes:
        raise ModelError(f"its manifest has {len(manifest.labels)} labels for {classes} logits; export the model again")
    extremes, patch = manifest.golden_extremes, manifest.model["patch_size"]
    if manifest.parity and not isinstance(manifest.parity.limits, Limits):
        for output in manifest.outputs:
            for limits in (manifest.parity.limits, *([manifest.parity.extremes or {}] if extremes is not None else [])):
                limit = limits.get(output.name)
                if limit is None or (output.name == manifest.class_scores and limit.kl is None):
                    raise ModelError(f"its manifest has no limit for {output.name}; export the model again")
    for item in manifest.parity.measured if manifest.parity else ():
        records = manifest.goldens if item.inputs == "golden" else [extremes] if item.inputs == "extremes" and extremes is not None else []
        if not any(item.image_size == golden.image_size and item.output in golden.floor for golden in records):
            raise ModelError(f"its manifest has a parity of {item.output!r} without a golden record of it; export the model again")
    if extremes is not None and (manifest.golden is None or extremes.image_size != manifest.image_size or extremes.images > ALL_EXTREMES):
        raise ModelError(
            f"its manifest has a record of {extremes.images} extreme images of {extremes.image_size}, expected at most {ALL_EXTREMES} of "
            f"{manifest.image_size} beside golden ones; export the model again"
        )
    if not _is_size(patch):
        raise ModelError(f"its manifest has a patch_size of {patch}, expected at least 1; export the model again")


def _check_against_graph(manifest: Manifest, file: OnnxFile) -> None:
    claimed: list[tuple[str, str, tuple[int | str, ...]]] = [(manifest.input_name, "float32", manifest.input_shape)]
    claimed += [(output.name, output.dtype, output.shape) for output in manifest.outputs]
    found = [(info.name, info.dtype, info.shape) for info in (*file.inputs, *file.outputs)]
    for ours, theirs in zip(claimed, found, strict=False):
        if ours != theirs:
            raise ModelError(f"its manifest says {_tensor(*ours)}, its graph has {_tensor(*theirs)}; export the model again")
    if len(claimed) != len(found):
        raise ModelError(f"its manifest names {len(claimed)} inputs and outputs, its graph has {len(found)}; export the model again")


def _tensor(name: str, dtype: str, shape: Sequence[int | str]) -> str:
    return f"{name} {dtype} ({', '.join(map(str, shape))})"


def _get(document: Any, path: str, kind: type[T]) -> T:
    value = document
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            raise ModelError(f"the manifest has no {path}; export the model again")
        value = value[key]
    if not isinstance(value, kind) or (kind is int and not _is_int(value)):
        raise ModelError(f"the manifest's {path} is {str(value)[:60]!r}, expected a JSON {_KINDS[kind]}; export the model again")
    return value


_FOR_PEOPLE: tuple[tuple[str, type], ...] = (
    ("model.arch", object),
    ("model.parameters", int),
    ("model.patch_size", int),
    ("model.pool", str),
    ("model.projection", bool),
    ("checkpoint.format", str),
    ("checkpoint.seed", object),
    ("checkpoint.sha256", object),
    ("build.opset", int),
    ("build.target", str),
    ("build.precision", str),
    ("build.islands", list),
    ("build.kept", list),
    ("build.calibration", object),
    ("build.token_split", object),
    ("build.traced", dict),
    ("build.passes", list),
    ("build.tools", dict),
)
_KINDS: dict[type, str] = {int: "whole number", str: "text", list: "list", dict: "object", bool: "true or false"}


def _positive(document: Any, path: str) -> float:
    value = document
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= sys.float_info.max:
        raise ModelError(f"the manifest's {path} is {str(value)[:60]!r}, expected a number of at least 0; export the model again")
    return float(value)


def _at_most_one(document: Any, path: str) -> float:
    value = _number(document, path)
    if value > 1:
        raise ModelError(f"the manifest's {path} is {value}, expected a number of at most 1; export the model again")
    return value


def _number(document: Any, path: str) -> float:
    value: Any = _get(document, path, object)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise ModelError(f"the manifest's {path} is {str(value)[:60]!r}, expected a number; export the model again")
    return float(value)


def _number_or_none(document: Any, path: str) -> float | None:
    return None if _get(document, path, object) is None else _number(document, path)


def _error(document: Any, path: str) -> Error:
    return Error(_positive(document, f"{path}.rms"), _positive(document, f"{path}.max"))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -MAX_INT <= value <= MAX_INT


def _is_text(value: Any) -> bool:
    """Whether it is text that can be written out: JSON's escapes can spell half a character."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _is_size(value: Any) -> bool:
    return _is_int(value) and 1 <= value <= 1 << 31
