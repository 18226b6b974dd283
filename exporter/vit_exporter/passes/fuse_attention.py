"""One Attention for the nodes that compute it from a packed linear layer, from the opset on that has it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vit_exporter.passes.matching import (
    Packed,
    constant,
    made_by,
    only_reader,
    operands,
    opset_of,
    ordering,
    part_of,
    put,
    refuse_functions,
    same_size,
    scalar,
    sizes,
)

SINCE = 23  # the opset in which Attention begins


@dataclass(frozen=True)
class Found:
    """softmax(scale * q k^T + bias) v of a packed value (B, T, 3D); q, k and v are its parts of these numbers."""

    packed: Packed
    parts: tuple[int, int, int]
    scale: float
    bias: ir.Value | None
    last: ir.Node  # the Reshape that makes (B, T, D) of the heads


class FuseAttention(ir.passes.InPlacePass):
    """Reshape, Transpose, Gather, MatMul, Softmax, MatMul, Transpose and Reshape become Split and the standard op Attention.

    The op's `scale` is what the queries are multiplied by, 1 where that is folded into their weights, and its `attn_mask` a constant
    bias (1, H, T, T), as relative positions give. What else reads the queries or keys, as the class token's attention does, keeps
    its nodes. Left alone: below opset 23; queries or keys that are normalised or turned; attention whose scores or weights something
    else reads; attention of one learned query to many tokens.
    Raises: ir.passes.PreconditionError if the model has local functions.
    """

    def requires(self, model: ir.Model) -> None:
        refuse_functions(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in tuple(model.graph) if opset_of(model) >= SINCE else ():
            found = _find(node)
            if found is not None:
                _fuse(model.graph, found)
                modified = True
        if modified:
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified)


def _fuse(graph: ir.Graph, found: Found) -> None:
    split = ir.node("Split", [found.packed.source], {"axis": -1, "num_outputs": 3}, num_outputs=3)  # (B, T, 3D) -> 3 x (B, T, D)
    for value in split.outputs:
        value.shape, value.type = found.last.outputs[0].shape, found.last.outputs[0].type
    inputs = [*(split.outputs[part] for part in found.parts), *([found.bias] if found.bias is not None else [])]
    heads = {"q_num_heads": found.packed.heads, "kv_num_heads": found.packed.heads, "scale": found.scale}
    put(graph, found.last, [split, ir.node("Attention", inputs, heads)])


def _find(node: ir.Node) -> Found | None:
    """The attention that has this Softmax."""
    if (node.domain, node.op_type) != ("", "Softmax") or node.attributes.get_int("axis", -1) not in (-1, 3):
        return None
    mixed = only_reader(node.outputs[0], "MatMul")
    heads_back = only_reader(mixed.outputs[0], "Transpose") if mixed is not None and mixed.inputs[0] is node.outputs[0] else None
    heads_back = ordering(heads_back, (0, 2, 1, 3))
    last = only_reader(heads_back.outputs[0], "Reshape") if heads_back is not None else None
    scores, bias = _scores(node.inputs[0])
    turned = ordering(made_by(scores.inputs[1], "Transpose"), (0, 1, 3, 2)) if scores is not None else None
    if mixed is None or last is None or scores is None or turned is None:
        return None
    q, scale = _unscaled(scores.inputs[0])
    found = [part_of(made_by(value, "Gather")) for value in (q, turned.inputs[0], mixed.inputs[1])]
    parts = [part for part in found if part is not None]
    if len(parts) < 3 or any(part[0] != parts[0][0] for part in parts):
        return None
    packed, indices = parts[0][0], (parts[0][1], parts[1][1], parts[2][1])
    if packed.parts != 3 or not _restores(packed, last) or (bias is not None and not _is_bias(packed, bias)):
        return None
    return Found(packed, indices, scale, bias, last)


def _scores(value: ir.Value | None) -> tuple[ir.Node | None, ir.Value | None]:
    """The MatMul that makes the scores, and what is added to them, if nothing else reads them."""
    if value is None or only_reader(value, "Softmax") is None:
        return None, None
    for scores, bias in operands(made_by(value, "Add")):
        if constant(bias) is not None and only_reader(scores, "Add") is not None:
            return made_by(scores, "MatMul"), bias
    return made_by(value, "MatMul"), None


def _unscaled(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    for inner, factor in operands(made_by(value, "Mul")):
        number = scalar(factor)
        if number is not None:
            return inner, number
    return value, 1.0


def _restores(packed: Packed, last: ir.Node) -> bool:
    """Whether the heads end side by side, one row a token, as Attention writes them."""
    source, shape = packed.source.shape, last.outputs[0].shape
    if source is None or shape is None or len(shape) != 3:
        return False
    return shape[2] == packed.heads * packed.head_dim and same_size(shape[1], source[1])


def _is_bias(packed: Packed, bias: ir.Value) -> bool:
    tokens = packed.source.shape[1] if packed.source.shape is not None else None
    return sizes(constant(bias)) == (1, packed.heads, tokens, tokens) and bias.dtype == packed.source.dtype
