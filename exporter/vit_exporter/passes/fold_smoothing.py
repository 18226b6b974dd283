"""Let quantisation do the multiplication that smooths outlier channels."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vit_exporter.passes.matching import Numbers, constant, made_by, operands, refuse_functions, scalar, sizes


class FoldSmoothing(ir.passes.InPlacePass):
    """QuantizeLinear(x * s, scale) becomes QuantizeLinear(x, scale / s), with a scale for each channel of the last axis.

    That is how SmoothQuant leaves a graph (Xiao et al. 2023, sec. 4): each channel of an input is multiplied by a constant that its weight
    is divided by, so that outliers fit one scale. What is quantised is the same up to the rounding of a quotient; DequantizeLinear, which
    has one scale for all channels, stays. Left alone: factors that are not one for each channel or not above zero, scales that are one for
    each channel already.
    Raises: ir.passes.PreconditionError if the model has local functions.
    """

    def requires(self, model: ir.Model) -> None:
        refuse_functions(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in tuple(model.graph):
            modified |= (node.domain, node.op_type) == ("", "QuantizeLinear") and _fold(model.graph, node)
        if modified:
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified)


def _fold(graph: ir.Graph, node: ir.Node) -> bool:
    source, scale, zero_point = (*node.inputs, None)[:3]
    shape = source.shape if source is not None else None
    if shape is None or scale is None or zero_point is None or scalar(scale) is None or scalar(zero_point) is None:
        return False
    for value, factor in operands(made_by(source, "Mul")):
        factors = constant(factor)
        numbers = factors.numpy().reshape(-1) if factors is not None else np.zeros(0, np.float32)
        if (sizes(factors) or ())[-1:] != (numbers.size,) or numbers.min() <= 0:
            continue
        if value.shape is None or value.shape[-1] != numbers.size:
            continue
        parameters = []
        for old, compute in ((scale, partial(_divided, numbers)), (zero_point, partial(_repeated, numbers.size))):
            tensor = old.const_value
            assert tensor is not None  # scalar() saw it
            made = ir.tensor(compute(tensor.numpy()), name=f"{old.name}/{factor.name}")
            new = ir.Value(name=made.name, shape=ir.Shape(made.shape.numpy()), type=ir.TensorType(made.dtype), const_value=made)
            if new.name not in graph.initializers:
                graph.register_initializer(new)
            parameters.append(graph.initializers[made.name or ""])
        node.replace_input_with(0, value)
        node.replace_input_with(1, parameters[0])
        node.replace_input_with(2, parameters[1])
        node.attributes["axis"] = ir.AttrInt64("axis", len(shape) - 1)
        return True
    return False


def _divided(factors: Numbers, scale: Numbers) -> Numbers:
    return (scale.reshape(()) / factors).astype(scale.dtype)


def _repeated(channels: int, zero_point: Numbers) -> Numbers:
    return np.full(channels, zero_point.reshape(()), zero_point.dtype)
