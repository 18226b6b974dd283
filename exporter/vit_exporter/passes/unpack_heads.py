"""Queries, keys and values from linear layers of their own, in the order that attention reads them."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vit_exporter.passes.building import Builder, cut_linear
from vit_exporter.passes.matching import Packed, layer_of, only_reader, packed_of, part_of, refuse_functions

NAMES = {2: ("k", "v"), 3: ("q", "k", "v")}


class UnpackHeads(ir.passes.InPlacePass):
    """A packed linear layer, Reshape, Transpose and Gather become a linear layer, Reshape and Transpose for each part.

    One product of three times the width is no faster than three on the engines measured, and its output needs not be cut up. That the keys
    are turned once more for the scores stays as it is: OpenVINO makes that a property of its product, and is slower where both are one
    Transpose. Weights are cut by columns, so the numbers are the same.
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
        ordered = new.node("Transpose", [heads], {"perm": [0, 2, 1, 3]}, (shape[0], packed.heads, shape[1], packed.head_dim))
        for reader, part in zip(readers, parts, strict=True):
            if part is not None and part[1] == index:
                reader.outputs[0].replace_all_uses_with(ordered)
    return True
