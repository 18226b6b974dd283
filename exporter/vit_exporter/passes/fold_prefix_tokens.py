"""Add the class token, and every other token in front of the patches, to the position table."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vit_exporter.passes.matching import Numbers, change, constant, made_by, only_reader, operands, put, refuse_functions, sizes


class FoldPrefixTokens(ir.passes.InPlacePass):
    """concat(expand(prefix), patches) + positions becomes pad(patches) + positions', which begins with prefix + positions.

    Pad puts rows of zeros in front, so the class token need not be copied for every image, nor the batch size be asked for: one node
    instead of six. The prefix may be of several tokens, each (1, n, D), and the positions (1, T, D) are one constant. The sums are the
    ones that the graph made, each rounded once. Left alone: a network without positions, or with positions that are computed in the
    graph, as for images of any size; a token or a table that something else reads.
    Raises: ir.passes.PreconditionError if the model has local functions.
    """

    def requires(self, model: ir.Model) -> None:
        refuse_functions(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in tuple(model.graph):
            modified |= node.op_type == "Concat" and _fold(model.graph, node)
        if modified:
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified)


def _fold(graph: ir.Graph, concat: ir.Node) -> bool:
    *prefix, patches = concat.inputs
    tokens = [token for value in prefix if (token := _token(value, concat)) is not None]
    table = _table(concat)
    if concat.domain != "" or concat.attributes.get_int("axis", 0) != 1 or not tokens or len(tokens) < len(prefix) or table is None:
        return False
    if any(token.dtype != table.dtype for token in tokens):
        return False
    change(table, partial(_with_tokens, tokens))
    rows = sum(token.shape.numpy()[1] for token in tokens)
    pads = ir.Value(name=f"{concat.outputs[0].name}/pads", const_value=ir.tensor(np.array([0, rows, 0, 0, 0, 0], np.int64)))
    graph.register_initializer(pads)
    put(graph, concat, [ir.node("Pad", [patches, pads])])
    return True


def _token(value: ir.Value | None, concat: ir.Node) -> ir.TensorProtocol | None:
    """The constant (1, n, D) that is expanded to the batch for the Concat alone."""
    expand = made_by(value, "Expand")
    if expand is None or value is None or only_reader(value, "Concat") is not concat:
        return None
    token, shape = constant(expand.inputs[0]), value.shape
    found = sizes(token)
    return token if found is not None and shape is not None and len(found) == len(shape) == 3 and found[0] == 1 else None


def _table(concat: ir.Node) -> ir.Value | None:
    """The constant (1, T, D) that is added to what the Concat makes, T and D its own."""
    joined = concat.outputs[0]
    if joined.shape is None or len(joined.shape) != 3:
        return None
    shape = (1, *tuple(joined.shape)[1:])
    found = [table for value, table in operands(only_reader(joined, "Add")) if value is joined and sizes(constant(table)) == shape]
    return found[0] if found and len(found[0].uses()) == 1 and not found[0].is_graph_output() else None


def _with_tokens(tokens: Sequence[ir.TensorProtocol], numbers: Numbers) -> Numbers:
    prefix = np.concatenate([token.numpy() for token in tokens], axis=1)
    return np.concatenate([prefix + numbers[:, : prefix.shape[1]], numbers[:, prefix.shape[1] :]], axis=1)
