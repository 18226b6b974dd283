"""Fold what is constant and drop what is unused, with onnxsim; check the result and infer its shapes."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    IdentityEliminationPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
)

from vit_exporter.passes.matching import constant

FAR_AWAY = (1 << 63) - 1  # how torch says that a slice has no end


class Simplify(ir.passes.FunctionalPass):
    """Fold constants, make shapes static where only the batch is free, remove copies, whole slices, unused and repeated nodes.

    onnxsim's own optimisers are left out: they turn MatMul + Add into Reshape + Gemm + Reshape, which is
    no faster and hides the linear layers from later passes. Weights are not handed to it: they stand in as graph inputs,
    so a network of any size costs the same, and no weight can change.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        import onnxsim  # here, so that its 35 MB come after what tracing took has been given back

        before = len(model.graph)
        weights = {name: value.const_value for name, value in model.graph.initializers.items() if is_weight(value)}
        _weights_to_inputs(model, weights)
        try:
            proto = ir.to_proto(model)
        finally:
            _inputs_to_weights(model, weights)  # the given model stays as it was
        proto, _ = onnxsim.simplify(proto, perform_optimization=False)
        simple = ir.from_proto(proto)
        simple.metadata_props.clear()  # onnxsim notes its settings there
        for cleanup in (
            IdentityEliminationPass(),
            RemoveUnusedNodesPass(),
            LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            _WholeSliceElimination(),
            DeduplicateInitializersPass(),
            CommonSubexpressionEliminationPass(),
            RemoveUnusedNodesPass(),
        ):
            cleanup(simple)
        simple = ir.from_proto(_checked(ir.to_proto(simple)))
        _inputs_to_weights(simple, weights)
        return ir.passes.PassResult(simple, modified=len(simple.graph) != before)


class _WholeSliceElimination(ir.passes.InPlacePass):
    """Remove each Slice that takes everything, as torch writes one for every axis before the one that is cut."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in tuple(model.graph):
            value = _taken_whole(node)
            if value is not None and not node.outputs[0].is_graph_output():
                node.outputs[0].replace_all_uses_with(value)
                model.graph.remove(node, safe=True)
                modified = True
        return ir.passes.PassResult(model, modified)


def _taken_whole(node: ir.Node) -> ir.Value | None:
    """What a Slice takes, if it takes all of it."""
    bounds = [constant(value) for value in node.inputs[1:]]
    if (node.domain, node.op_type) != ("", "Slice") or len(bounds) < 2 or any(bound is None for bound in bounds):
        return None
    starts, ends, *more = ({int(number) for number in bound.numpy().reshape(-1)} for bound in bounds if bound is not None)
    return node.inputs[0] if starts == {0} and ends == {FAR_AWAY} and more[1:] in ([], [{1}]) else None


def is_weight(value: ir.Value) -> bool:
    """Whether an initialiser came from the network's parameters, which have dotted names."""
    return value.name is not None and "." in value.name and "/" not in value.name


def _weights_to_inputs(model: ir.Model, weights: dict[str, ir.TensorProtocol | None]) -> None:
    for name in weights:
        value = model.graph.initializers.pop(name)
        value.const_value = None
        model.graph.inputs.append(value)


def _inputs_to_weights(model: ir.Model, weights: dict[str, ir.TensorProtocol | None]) -> None:
    for value in tuple(model.graph.inputs):
        if value.name in weights:
            model.graph.inputs.remove(value)
            value.const_value = weights[value.name]
            model.graph.register_initializer(value)


def _checked(proto: onnx.ModelProto) -> onnx.ModelProto:
    onnx.checker.check_model(proto, full_check=True)
    return onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
