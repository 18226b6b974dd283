"""Which nodes float16 cannot hold: how large the numbers are on images, and what rounding would leave of them.

float16 ends at 65504 and has its 11 bits only down to 2^-14; below that it loses them one by one, and below 2^-25 everything. A node goes
into an island of float32 if what it reads, gives, or sums up on the way may be beyond the one end or is mostly beyond the other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vit_exporter.passes.matching import constant
from vit_exporter.passes.narrow import PRODUCTS, computed_nodes
from vit_exporter.precision.simulation import exact_session

LARGEST = 65504.0  # of float16
MARGIN = 4.0  # other images may give numbers so many times as large as those that were measured
LOST = 2.0**-8  # of a value's root mean square: rounding to float16 costs 2^-12, to bfloat16 as much as this

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Range:
    """The largest magnitude of a value on images, and what part of its root mean square rounding to float16 would cost."""

    largest: float
    lost: float = 0.0


@dataclass(frozen=True)
class Island:
    """A node that is left in float32, the value that is why, its largest magnitude, and the reason.

    `overflow`: it, or a sum of magnitudes on its way, may be beyond 65504. `underflow`: rounding would lose what it holds.
    """

    node: str
    value: str
    largest: float
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """For the manifest, three digits of the number, null where it is not finite."""
        return {**asdict(self), "largest": float(f"{self.largest:.3g}") if np.isfinite(self.largest) else None}


def measure(graph: ir.Model, pixel_values: Floats, only: Collection[str] | None = None) -> dict[str, Range]:
    """The range of every float32 value that is computed from the images, by name; pixel_values float32 (B, C, H, W) are run one by one.

    Of a product also that of the sums of its terms' magnitudes, by `sums` of its node: no order of summation exceeds it. With `only`, of
    the values of these names.
    """
    tapped = graph.clone()
    names = _tap(tapped.graph, only)
    session, source = exact_session(tapped), tapped.graph.inputs[0].name or ""
    asked = [f"{name}/{kind}" for name in names for kind in KINDS]
    found = np.array([session.run(asked, {source: image[None]}) for image in pixel_values], np.float64).reshape(-1, len(names), len(KINDS))
    largest, squares, errors = found[..., 0].max(axis=0), found[..., 1].sum(axis=0), found[..., 2].sum(axis=0)
    lost = np.sqrt(errors / np.where(squares > 0, squares, 1))
    return {name: Range(float(a), float(b)) for name, a, b in zip(names, largest, lost, strict=True)}


def sums(node: ir.Node) -> str:
    """What the sums of a product are called among the ranges."""
    return f"{node.name}/sums"


def together(one: Mapping[str, Range], other: Mapping[str, Range]) -> dict[str, Range]:
    """The ranges of two sets of images."""
    return {name: Range(max(each.largest, other[name].largest), max(each.lost, other[name].lost)) for name, each in one.items()}


def islands(graph: ir.Model, ranges: Mapping[str, Range]) -> list[Island]:
    """The nodes that float16 cannot hold, in the graph's order."""
    weights = dict[str, Range]()
    found = list[Island]()
    for node in computed_nodes(graph.graph):
        for name, each in _ranges(node, ranges, weights):
            if not each.largest * (1 if name in weights else MARGIN) <= LARGEST:
                found.append(Island(node.name or "", name, each.largest, "overflow"))
                break
            if each.lost > LOST:
                found.append(Island(node.name or "", name, each.largest, "underflow"))
                break
    return found


KINDS = ("largest", "square", "error")


def _tap(graph: ir.Graph, only: Collection[str] | None) -> list[str]:
    """Adds what is measured of each value, or of those, as outputs, each where the value is made, so that none has to be kept."""
    computed = computed_nodes(graph)
    names = list[str]()

    def add(after: ir.Node | None, name: str, value: ir.Value) -> ir.Node:
        narrow = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT16)})
        wide = ir.node("Cast", narrow.outputs, {"to": int(ir.DataType.FLOAT)})
        error = ir.node("Sub", [value, wide.outputs[0]])
        magnitude = ir.node("Abs", [value])
        reduced = [
            ir.node("ReduceMax", magnitude.outputs, {"keepdims": 0}),
            ir.node("ReduceSumSquare", [value], {"keepdims": 0}),
            ir.node("ReduceSumSquare", error.outputs, {"keepdims": 0}),
        ]
        for kind, node in zip(KINDS, reduced, strict=True):
            output = node.outputs[0]
            output.name, output.shape, output.type = f"{name}/{kind}", ir.Shape(()), ir.TensorType(ir.DataType.FLOAT)
            graph.outputs.append(output)
        nodes = [narrow, wide, error, magnitude, *reduced]
        for number, node in enumerate(nodes):
            node.name = f"{name}/measured{number}"
            node.outputs[0].name = node.outputs[0].name or node.name
        graph.insert_after(after, nodes) if after is not None else graph.insert_before(next(iter(graph)), nodes)
        names.append(name)
        return nodes[-1]

    source = graph.inputs[0]
    if only is None:
        add(None, source.name or "", source)
    for node in computed:
        last = node
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT and (only is None or value.name in only):
                last = add(last, value.name or "", value)
        if node.op_type in PRODUCTS and only is None:
            magnitudes = [ir.node("Abs", [value], name=f"{sums(node)}/abs{place}") for place, value in enumerate(node.inputs[:2])]
            for each in magnitudes:
                each.outputs[0].name = each.name
            total = ir.node(node.op_type, [each.outputs[0] for each in magnitudes], name=sums(node))
            total.attributes.update(node.attributes)
            total.outputs[0].name = sums(node)
            graph.insert_after(last, [*magnitudes, total])
            add(total, sums(node), total.outputs[0])
    return names


def _ranges(node: ir.Node, ranges: Mapping[str, Range], weights: dict[str, Range]) -> Iterator[tuple[str, Range]]:
    """Of all that the node reads, gives and sums up; those of initialisers are noted in `weights`."""
    for value in (*node.outputs, *node.inputs):
        name = value.name or "" if value is not None else ""
        if name in ranges:
            yield name, ranges[name]
        elif value is not None and value.dtype == ir.DataType.FLOAT and (tensor := constant(value)) is not None:
            if name not in weights:
                weights[name] = _range_of(tensor.numpy())
            yield name, weights[name]
    if sums(node) in ranges:
        yield sums(node), Range(ranges[sums(node)].largest)  # what may be lost of it stands in what the node gives


def _range_of(numbers: npt.NDArray[Any]) -> Range:
    if not numbers.size:
        return Range(0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.square(numbers - numbers.astype(np.float16).astype(np.float32), dtype=np.float64).sum()
    square = np.square(numbers, dtype=np.float64).sum()
    return Range(float(np.abs(numbers).max()), float(np.sqrt(error / (square or 1))))
