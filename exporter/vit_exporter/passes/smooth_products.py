"""Move outlier channels from what products read into their weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vit_exporter.passes.building import Builder
from vit_exporter.passes.int8 import products_by_source
from vit_exporter.passes.matching import Numbers, change, refuse_functions


class SmoothProducts(ir.passes.InPlacePass):
    """x @ weight becomes (x * (1 / s)) @ (s * weight), s one number above zero for each channel of x (Xiao et al. 2023, sec. 4).

    `factors` gives s, float32 (channels,), for values by name; every product by a weight that reads such a value is changed, so that they
    go on sharing one input. Exact but for roundings. The weights are multiplied when somebody reads them. Left alone: what has no factor.
    Raises: ir.passes.PreconditionError for factors that are not one above zero for each channel, or if the model has local functions.
    """

    def __init__(self, factors: Mapping[str, npt.NDArray[np.float32]]) -> None:
        super().__init__()
        self.factors = factors

    def requires(self, model: ir.Model) -> None:
        refuse_functions(model)
        for name, group in products_by_source(model.graph).items():
            factors = self.factors.get(name, np.ones(0, np.float32))
            if name in self.factors and (factors.shape != tuple(group[0].source.shape or ())[-1:] or not factors.min() > 0):
                raise ir.passes.PreconditionError(f"got factors {factors.shape} for {name}, expected one above zero for each channel")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for name, group in products_by_source(model.graph).items():
            if name not in self.factors:
                continue
            source, factors, first = group[0].source, self.factors[name], group[0]
            assert source.shape is not None  # products() saw it
            new = Builder(model.graph, first.node, source)
            smoothed = new.node("Mul", [source, new.constant(f"{first.layer}.smoothing", 1 / factors)], None, tuple(source.shape))
            for product in group:
                product.node.replace_input_with(0, smoothed)
                change(product.weight, partial(_multiplied, factors))
            modified = True
        return ir.passes.PassResult(model, modified)


def _multiplied(factors: npt.NDArray[np.float32], weight: Numbers) -> Numbers:
    return weight * factors[:, None]
