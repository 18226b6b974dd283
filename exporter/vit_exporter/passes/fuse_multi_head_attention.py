"""onnxruntime's own op for the nodes that compute multi-head attention."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vit_exporter.passes.matching import (
    Layer,
    constant,
    layer_of,
    made_by,
    only_reader,
    operands,
    ordering,
    put,
    refuse_functions,
    same_size,
    scalar,
    sizes,
)

DOMAIN = "com.microsoft"


@dataclass(frozen=True)
class Heads:
    """Queries, keys or values of `count` heads: all of a linear layer's output (B, T, D)."""

    layer: Layer
    count: int


class FuseMultiHeadAttention(ir.passes.InPlacePass):
    """Reshape, Transpose, MatMul, Softmax, MatMul, Transpose and Reshape become com.microsoft.MultiHeadAttention.

    The biases of queries, keys and values are the op's `bias`, which it adds while it puts the heads in order. Its `scale` is what the
    queries are multiplied by, 1 where that is folded into their weights, and its `attention_bias` a constant bias (1, H, T, T), as
    relative positions give. Packed linear layers have to be taken apart before (UnpackHeads).
    Left alone: queries or keys that are normalised or turned; queries, keys, values, scores or weights that something else reads;
    attention of one learned query to many tokens.
    Raises: ir.passes.PreconditionError if the model has local functions.
    """

    def requires(self, model: ir.Model) -> None:
        refuse_functions(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in tuple(model.graph):
            modified |= node.op_type == "Softmax" and _fuse(model.graph, node)
        if modified:
            model.graph.opset_imports[DOMAIN] = 1
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified)


def _fuse(graph: ir.Graph, softmax: ir.Node) -> bool:
    mixed = only_reader(softmax.outputs[0], "MatMul")
    heads_back = ordering(only_reader(mixed.outputs[0], "Transpose"), (0, 2, 1, 3)) if mixed is not None else None
    last = only_reader(heads_back.outputs[0], "Reshape") if heads_back is not None else None
    if mixed is None or last is None or mixed.inputs[0] is not softmax.outputs[0] or softmax.attributes.get_int("axis", -1) not in (-1, 3):
        return False
    scores, bias = _scores(softmax.inputs[0])
    if scores is None:
        return False
    queries, scale = _unscaled(scores.inputs[0])
    turned = ordering(made_by(scores.inputs[1], "Transpose"), (0, 1, 3, 2))
    if turned is None or only_reader(turned.outputs[0], "MatMul") is not scores:
        return False
    found = [_heads(value) for value in (queries, turned.inputs[0], mixed.inputs[1])]
    parts = [each for each in found if each is not None]
    shape, shapes = last.outputs[0].shape, [part.layer.source.shape for part in parts if part.layer.source.shape is not None]
    if len(shapes) < 3 or shape is None or len(shape) != 3 or not _may_be_equal(shape[1], shapes[0][1]):
        return False
    if any((each.count, each.layer.linear.width) != (parts[0].count, shape[2]) for each in parts):
        return False
    if not all(same_size(each[0], shapes[0][0]) for each in shapes):
        return False  # one query for all images
    inputs: list[ir.Value | None] = [each.layer.product for each in parts]
    inputs += [_biases(graph, [part.layer.linear.bias for part in parts]), *([None, bias] if bias is not None else [])]
    put(graph, last, [ir.node("MultiHeadAttention", inputs, {"num_heads": parts[0].count, "scale": scale}, domain=DOMAIN)])
    return True


def _biases(graph: ir.Graph, biases: list[ir.Value]) -> ir.Value:
    """The biases of queries, keys and values, one after the other."""
    tensors = [bias.const_value for bias in biases]

    def together() -> ir.TensorProtocol:
        return ir.Tensor(np.concatenate([tensor.numpy() for tensor in tensors if tensor is not None]))

    name = f"{(biases[0].name or '').removesuffix('bias').removesuffix('q.')}qkv.bias"
    shape = ir.Shape([sum(tensor.size for tensor in tensors if tensor is not None)])
    lazy = ir.LazyTensor(together, dtype=biases[0].dtype or ir.DataType.FLOAT, shape=shape, name=name)
    value = ir.Value(name=name, shape=shape, type=biases[0].type, const_value=lazy)
    graph.register_initializer(value)
    return value


def _scores(value: ir.Value | None) -> tuple[ir.Node | None, ir.Value | None]:
    """The MatMul that makes the scores, and the constant that is added to them, if nothing else reads them."""
    if value is None or only_reader(value, "Softmax") is None:
        return None, None
    for scores, bias in operands(made_by(value, "Add")):
        shape = tuple(scores.shape) if scores.shape is not None else ()
        if len(shape) == 4 and sizes(constant(bias)) == (1, *shape[1:]) and only_reader(scores, "Add") is not None:
            return made_by(scores, "MatMul"), bias
    return made_by(value, "MatMul"), None


def _unscaled(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    for inner, factor in operands(made_by(value, "Mul")):
        number = scalar(factor)
        if number is not None and value is not None and only_reader(value, "MatMul") is not None:
            return inner, number
    return value, 1.0


def _heads(value: ir.Value | None) -> Heads | None:
    """The linear layer that these queries, keys or values come from, if nothing else reads them."""
    if value is None or len(value.uses()) != 1 or value.is_graph_output():
        return None
    transpose = ordering(made_by(value, "Transpose"), (0, 2, 1, 3))
    reshape = made_by(transpose.inputs[0], "Reshape") if transpose is not None else None
    layer = layer_of(reshape.inputs[0].producer()) if reshape is not None and reshape.inputs[0] is not None else None
    if (
        reshape is None
        or layer is None
        or only_reader(reshape.outputs[0], "Transpose") is None
        or only_reader(layer.linear.sum, "Reshape") is None
    ):
        return None
    before, after = layer.source.shape, reshape.outputs[0].shape
    if before is None or after is None or len(before) != 3 or not _may_be_equal(before[1], after[1]):
        return None
    count, head_dim = after[2], after[3]
    if not isinstance(count, int) or not isinstance(head_dim, int) or count * head_dim != layer.linear.width:
        return None
    return Heads(layer, count)


def _may_be_equal(one: int | ir.SymbolicDim, other: int | ir.SymbolicDim) -> bool:
    """Whether two axes are not known to be of different length."""
    return one == other or not (isinstance(one, int) and isinstance(other, int))
