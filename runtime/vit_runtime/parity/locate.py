"""Where two files, or one file on two providers, part: the place along the network at which their difference grows most.

The residual stream has the same names in every file of a network, whatever was fused in between: `embeddings/Add`, for each block
`blocks.N/Add` behind attention and `blocks.N/Add_2` behind the MLP, `norm`, the outputs. Both graphs are built with these as outputs. Then
the same is done for every value of the block where they part that both graphs have, which names the op.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vit_runtime.errors import InputError
from vit_runtime.golden import golden_images
from vit_runtime.model import Model
from vit_runtime.onnx_file import NodeInfo, read_nodes, with_outputs
from vit_runtime.parity.judging import Array
from vit_runtime.preprocess import normalize
from vit_runtime.providers import create_session

IMAGES = 4
LEAST = 2.0**-24  # a relative error that float32 makes anywhere
STREAM = re.compile(r"(embeddings|blocks\.\d+)/Add(_\d+)?|norm/LayerNormalization")


@dataclass(frozen=True)
class Tap:
    """A value on the way: the module and op that make it, and how far apart it is, as part of its root mean square."""

    value: str
    module: str
    op: str
    error: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; a NaN, which JSON has not, is null."""
        return {"value": self.value, "module": self.module, "op": self.op, "error": self.error if np.isfinite(self.error) else None}


@dataclass(frozen=True)
class Location:
    """The taps along the network and inside the part where the two part; `parted` and `first` are where the difference grows most.

    `parted` is None where they do not part at all, `first` where nothing inside can be told apart.
    """

    along: tuple[Tap, ...]
    parted: Tap | None
    inside: tuple[Tap, ...]
    first: Tap | None

    @property
    def place(self) -> str | None:
        """The part of the network: embeddings, blocks.N, norm, head."""
        return part_of(self.parted.module) if self.parted is not None else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "place": self.place,
            "parted": self.parted.to_dict() if self.parted else None,
            "first": self.first.to_dict() if self.first else None,
            "along": [tap.to_dict() for tap in self.along],
            "inside": [tap.to_dict() for tap in self.inside],
        }


def locate(a: Model, b: Model) -> Location:
    """Where `b` parts from `a`, on four golden images.

    Raises: InputError for files with weights beside them, or that have no value of one name in common.
    """
    nodes = {model: {value: node for node in read_nodes(model.path) for value in node.outputs if value} for model in (a, b)}
    shared = {value: node for value, node in nodes[a].items() if value in nodes[b]}
    outputs = {output.name for output in a.manifest.outputs}
    along = _taps(a, b, {value: node for value, node in shared.items() if STREAM.fullmatch(value) or value in outputs})
    if not along:
        raise InputError(f"{a.path} and {b.path} have no value of one name in common on the way, so where they part cannot be told")
    parted = _most_growth(along)
    if parted is None:
        return Location(along, None, (), None)
    part = part_of(parted.module)
    within = {value: node for value, node in shared.items() if part_of(_module(node)) == part}
    inside = _taps(a, b, within)
    return Location(along, parted, inside, _most_growth(inside))


def check_inside(model: Model) -> None:
    """Raises: InputError for a file that cannot be built with more outputs, because its weights lie beside it."""
    if model.file.external_files:
        raise InputError(
            f"{model.path} has its weights in a file beside it, expected one file to look inside; export it without --external-data"
        )


def part_of(module: str) -> str:
    """The part of the network that a module belongs to: blocks.3.attn.qkv to blocks.3, embeddings.patch_embed to embeddings."""
    names = module.split(".")
    return ".".join(names[: 2 if names[0] == "blocks" else 1])


def _most_growth(taps: Sequence[Tap]) -> Tap | None:
    """The tap whose error is the largest multiple of the one before it; NaN and Inf are beyond any. None if none exceeds float32's own."""
    before, best, found = 0.0, 1.0, None
    for tap in taps:
        if not np.isfinite(tap.error):
            return tap
        growth = tap.error / max(before, LEAST)
        if growth > best:
            best, found = growth, tap
        before = tap.error
    return found


def _taps(a: Model, b: Model, wanted: dict[str, NodeInfo]) -> tuple[Tap, ...]:
    """How far apart these values are, in a's order; those that are no floats, or of another shape, are left out."""
    first, second = (_values(model, list(wanted)) for model in (a, b))
    taps = []
    for value, node in wanted.items():
        x, y = first.get(value), second.get(value)
        if x is not None and y is not None and x.shape == y.shape:
            with np.errstate(all="ignore"):
                difference = np.sqrt(np.mean((y.astype(np.float64) - x) ** 2)) / max(
                    float(np.sqrt(np.mean(x.astype(np.float64) ** 2))), 1e-30
                )
            taps.append(Tap(value, _module(node), node.op, float(difference)))
    return tuple(taps)


def _values(model: Model, names: list[str]) -> dict[str, Array]:
    manifest = model.manifest
    check_inside(model)
    already = {output.name for output in manifest.outputs}
    images = golden_images(0, IMAGES, *manifest.image_size, manifest.preprocessing.channels)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tapped.onnx")
        path.write_bytes(with_outputs(model.path, [name for name in names if name not in already]))
        session, _ = create_session(path, model.provider, model.threads, model.device, arithmetic=manifest.execution.arithmetic)
        values = session.run(names, {manifest.input_name: normalize(images, manifest.preprocessing)})
    return {name: value for name, value in zip(names, values, strict=True) if np.issubdtype(value.dtype, np.floating)}


def _module(node: NodeInfo) -> str:
    return node.name.rsplit("/", 1)[0]
