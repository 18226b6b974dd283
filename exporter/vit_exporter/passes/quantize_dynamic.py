"""Products in int8, their inputs quantised as the network runs."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from vit_exporter.passes.building import Builder
from vit_exporter.passes.int8 import products, quantized_weight
from vit_exporter.passes.matching import refuse_functions


class QuantizeDynamic(ir.passes.InPlacePass):
    """x @ weight becomes DynamicQuantizeLinear(x), MatMulInteger, Cast and the scales, all standard ops.

    A weight is stored in int8, symmetric, with a scale for each output channel. An input is quantised to uint8 with one scale and zero
    point for all of its numbers, which are measured in every run: no calibration. An input that several products read, as queries, keys
    and values do, is quantised once. onnxruntime makes one kernel of these nodes.
    Left alone: layers whose names are in `kept`, and products without a constant weight: attention's own.
    Raises: ir.passes.PreconditionError if the model has local functions.
    """

    def __init__(self, kept: Collection[str] = ()) -> None:
        super().__init__()
        self.kept = frozenset(kept)

    def requires(self, model: ir.Model) -> None:
        refuse_functions(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        quantized: dict[ir.Value, tuple[ir.Value, ...]] = {}
        modified = False
        for product in products(model.graph):
            if product.layer in self.kept:
                continue
            node, source = product.node, product.source
            new = Builder(model.graph, node, node.outputs[0])
            weight, scale = quantized_weight(model.graph, product)
            if source not in quantized:
                assert source.shape is not None  # products() saw it
                made = new.nodes("DynamicQuantizeLinear", [source], None, [tuple(source.shape), (), ()])
                made[0].type = made[2].type = ir.TensorType(ir.DataType.UINT8)
                quantized[source] = tuple(made)
            integers, input_scale, zero_point = quantized[source]
            shape = tuple(node.outputs[0].shape or ())
            summed = new.node("MatMulInteger", [integers, weight, zero_point], None, shape)
            summed.type = ir.TensorType(ir.DataType.INT32)
            numbers = new.node("Cast", [summed], {"to": int(ir.DataType.FLOAT)}, shape)
            scales = new.node("Mul", [input_scale, scale], None, tuple(scale.shape or ()))
            new.replace(node, new.node("Mul", [numbers, scales], None, shape))
            modified = True
        return ir.passes.PassResult(model, modified)
