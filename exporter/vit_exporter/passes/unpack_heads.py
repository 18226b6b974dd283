"""Queries, keys and values from linear layers of their own, in the order that attention reads them."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vit_exporter.passes.building import Builder, cut_linear
from vit_exporter.passes.matching import Packed, layer_of, only_reader, ordering, packed_of, part_of, refuse_functions

NAMES = {2: ("k", "v"), 3: ("q", "k", "v")}


class UnpackHeads(ir.passes.InPlacePass):
    """A packed linear layer, Reshape, Transpose and Gather become a linear layer, Reshape and Transpose for each part.

    One product of three times the width is no faster than three on the engines measured, and its output needs not be cut up. The keys are
    transposed once, as the scores' product reads them. Weights are cut by columns, so the numbers are the same.
    Left alone: a packed layer whose parts something else reads than Gather, or whose weight or output something else reads.
    Raises: ir.passes.PreconditionError if the model has local functions.
    """

    def requires(self, model: ir.Model) -> None:
        refuse_functions(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in tuple(model.graph):
            packed = packed_of(node)
            modified |= packed is not None and _unpack(model.graph, node, packed)
        if modified:
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified)


def _unpack(graph: ir.Graph, transpose: ir.Node, packed: Packed) -> bool:
    layer, readers = layer_of(packed.source.producer()), [user for user, _ in packed.taken_apart.uses()]
    parts = [part_of(user) for user in readers]
    shape, reshape = packed.source.shape, only_reader(packed.source, "Reshape")
    if layer is None or packed.parts not in NAMES or shape is None or reshape is None or packed.taken_apart.is_graph_output():
        return False
    if only_reader(reshape.outputs[0], "Transpose") is not transpose:
        return False
    if any(part is None or reader.outputs[0].is_graph_output() for part, reader in zip(parts, readers, strict=True)):
        return False
    width, sizes = packed.heads * packed.head_dim, (packed.heads, packed.head_dim)
    new = Builder(graph, transpose, packed.source)
    stem = (layer.linear.weight.name or "").removesuffix("weight").removesuffix("qkv.").removesuffix("kv.")
    for index, name in enumerate(NAMES[packed.parts]):
        columns = cut_linear(new, layer.source, layer.linear, f"{stem}{name}", slice(index * width, (index + 1) * width))
        heads = new.node("Reshape", [columns, new.integers([0, 0, *sizes])], None, (shape[0], shape[1], *sizes))
        gathers = [reader for reader, part in zip(readers, parts, strict=True) if part is not None and part[1] == index]
        _put_in_order(new, heads, [use for gather in gathers for use in gather.outputs[0].uses()])
    return True


def _put_in_order(new: Builder, heads: ir.Value, uses: Sequence[tuple[ir.Node, int]]) -> None:
    """(B, T, H, D_h) as they want it who read (B, H, T, D_h): with the last two turned where they are turned next."""
    assert heads.shape is not None  # as it was built
    batch, tokens, count, width = heads.shape
    turned = [user for user, _ in uses if ordering(user, (0, 1, 3, 2)) is not None and not user.outputs[0].is_graph_output()]
    if turned:
        keys = new.node("Transpose", [heads], {"perm": [0, 2, 3, 1]}, (batch, count, width, tokens))
        for user in turned:
            user.outputs[0].replace_all_uses_with(keys)
    if len(turned) < len(uses):
        straight = new.node("Transpose", [heads], {"perm": [0, 2, 1, 3]}, (batch, count, tokens, width))
        for user, position in uses:
            if user not in turned:
                user.replace_input_with(position, straight)
