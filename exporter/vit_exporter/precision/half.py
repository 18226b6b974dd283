"""The graph for an NVIDIA GPU in reduced precision: its types say what is computed in 16 bits, and its QuantizeLinears what in 8."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vit_exporter.passes.applying import apply
from vit_exporter.passes.fuse_multi_head_attention import FuseMultiHeadAttention
from vit_exporter.passes.int8 import products
from vit_exporter.passes.narrow import MOVERS, Narrow
from vit_exporter.passes.quantize_linears import KINDS as QUANTISED
from vit_exporter.passes.quantize_linears import QuantizeLinears
from vit_exporter.passes.smooth_products import SmoothProducts
from vit_exporter.precision.ranges import Island, islands, measure, together
from vit_exporter.precision.smoothing import smoothing_factors
from vit_exporter.targets import Target

# What onnxruntime's CUDA provider computes in bfloat16, of what a network may have (its docs/OperatorKernels.md): there is no way round a
# kernel that is missing. Pad, Expand and ReduceMean have none, nor has its MultiHeadAttention.
BFLOAT16_ON_CUDA = (MOVERS - {"Pad", "Expand"}) | {
    "Add", "Sub", "Mul", "Div", "Neg", "Sqrt", "MatMul", "Gemm", "Gelu", "Sigmoid", "Softmax", "LayerNormalization",
}  # fmt: skip

MOST = 16  # calibration images that every value of the graph is looked at for

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Halved:
    """The graph in 16 bits but for its islands, the passes that made it so, and the largest magnitude that each linear layer reads."""

    graph: ir.Model
    passes: tuple[dict[str, Any], ...]
    islands: tuple[Island, ...]
    largest: Mapping[str, float]
    target: Target
    precision: str

    def last(self, kept: Collection[str]) -> list[ir.passes.PassBase]:
        """What is done to it at the end, with these layers left in 16 bits."""
        if self.precision in QUANTISED:
            return [QuantizeLinears(self.precision, self.largest, kept)]
        return [FuseMultiHeadAttention()] if (self.target.name, self.precision) == ("cuda", "fp16") else []


def half(graph: ir.Model, target: Target, precision: str, calibrate: Floats, golden: Floats) -> Halved:
    """The graph with what is computed from the images in float16, or for bf16 in bfloat16.

    calibrate and golden float32 (B, C, H, W) are run through it one by one: in 8 bits all of calibrate give the scales, and no image of
    golden or of some of calibrate comes near an overflow. bfloat16 has the range of float32, so nothing is measured for it.
    """
    if precision == "bf16":
        model, applied = apply(graph.clone(), [Narrow("bfloat16", ops=BFLOAT16_ON_CUDA if target.name == "cuda" else None)])
        return Halved(model, tuple(applied), (), {}, target, precision)
    smooth = [SmoothProducts(smoothing_factors(graph, calibrate, symmetric=True))] if precision == "int8" else []
    base, first = apply(graph.clone(), smooth)
    some = calibrate[np.unique(np.linspace(0, len(calibrate) - 1, min(MOST, len(calibrate))).astype(int))]
    found = islands(base, together(measure(base, some), measure(base, golden)))
    sources = {product.layer: product.source.name or "" for product in products(base.graph)} if precision in QUANTISED else {}
    ranges = measure(base, calibrate, frozenset(sources.values())) if sources else {}
    largest = {layer: ranges[name].largest for layer, name in sources.items()}
    model, applied = apply(base, [Narrow("float16", [each.node for each in found])])
    return Halved(model, (*first, *applied), tuple(found), largest, target, precision)
