"""Weights stored in int8, for engines that choose themselves how to multiply by them."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from vit_exporter.passes.building import Builder
from vit_exporter.passes.int8 import products, quantized_weight
from vit_exporter.passes.matching import refuse_functions


class QuantizeWeights(ir.passes.InPlacePass):
    """x @ weight becomes x @ DequantizeLinear(weight), the weight in int8, symmetric, with a scale for each output channel.

    OpenVINO then quantises x as the network runs, groups of a token's channels with a scale of their own, and multiplies in int8; other
    engines do as they see fit. Left alone: layers whose names are in `kept`, and products without a constant weight.
    Raises: ir.passes.PreconditionError if the model has local functions.
    """

    def __init__(self, kept: Collection[str] = ()) -> None:
        super().__init__()
        self.kept = frozenset(kept)

    def requires(self, model: ir.Model) -> None:
        refuse_functions(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for product in products(model.graph):
            if product.layer in self.kept:
                continue
            new = Builder(model.graph, product.node, product.node.outputs[0])
            weight, scale = quantized_weight(model.graph, product)
            restored = new.node("DequantizeLinear", [weight, scale], {"axis": 1}, tuple(weight.shape or ()))
            product.node.replace_input_with(1, restored)
            modified = True
        return ir.passes.PassResult(model, modified)
