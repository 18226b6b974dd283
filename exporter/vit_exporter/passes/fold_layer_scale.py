"""Multiply LayerScale into the linear layer before it, where it costs nothing."""

from __future__ import annotations

from functools import partial

import onnx_ir as ir

from vit_exporter.passes.matching import (
    Numbers,
    bypass,
    change,
    constant,
    linear_of,
    made_by,
    only_reader,
    operands,
    refuse_functions,
    sizes,
)


class FoldLayerScale(ir.passes.InPlacePass):
    """(x @ weight + bias) * gamma becomes x @ (weight * gamma) + bias * gamma, gamma a constant for each output channel.

    Weight and bias keep their names; gamma goes when nobody else reads it. The numbers are multiplied when the file is written,
    one weight at a time, each rounded once. Left alone: a product or a sum that something else reads, or that is an output of the
    graph; a weight or a bias that something else reads; a factor that is not constant, or not one for each channel.
    Raises: ir.passes.PreconditionError if the model has local functions.
    """

    def requires(self, model: ir.Model) -> None:
        refuse_functions(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in tuple(model.graph):
            modified |= node.op_type == "Mul" and _fold(model.graph, node)
        return ir.passes.PassResult(model, modified)


def _fold(graph: ir.Graph, node: ir.Node) -> bool:
    for value, gamma in operands(node):
        linear, factors = linear_of(made_by(value, "Add")), constant(gamma)
        if linear is None or factors is None or only_reader(value, "Mul") is not node or node.outputs[0].is_graph_output():
            continue
        if sizes(factors) != (linear.width,) or factors.dtype != linear.weight.dtype:
            continue
        for parameter in (linear.weight, linear.bias):
            change(parameter, partial(_multiplied, factors))
        bypass(graph, node, value)
        if not gamma.uses() and not gamma.is_graph_output() and gamma.name is not None:
            del graph.initializers[gamma.name]
        return True
    return False


def _multiplied(factors: ir.TensorProtocol, numbers: Numbers) -> Numbers:
    return numbers * factors.numpy()
