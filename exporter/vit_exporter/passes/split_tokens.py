"""Keep the tokens in pieces where they are treated one by one, so that each piece fits an engine's blocks of rows."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vit_exporter.passes.building import Builder
from vit_exporter.passes.matching import ELEMENTWISE, constant, refuse_functions, scalar, sizes

TOKENWISE = ELEMENTWISE | {"LayerNormalization", "MatMul", "Slice", "QuantizeLinear", "DequantizeLinear"}


class SplitTokens(ir.passes.InPlacePass):
    """Norms, linear layers, activations and residuals of T tokens become those of `rows[0]`, `rows[1]`, ... tokens each.

    Only attention needs all tokens together: in front of it the pieces are put side by side, behind it they are cut again. Every piece
    reads the same weights, so the result is exact; numbers, kernels and memory of the weights stay what they were. It pays where an
    engine works on blocks of rows and T is a few more than some blocks: 197 = 3 * 64 + 5.
    Left alone: a network of another number of tokens than the rows make, and images of any size.
    Raises: ir.passes.PreconditionError if the model has local functions.
    """

    def __init__(self, rows: Sequence[int]) -> None:
        super().__init__()
        self.rows = tuple(rows)

    def requires(self, model: ir.Model) -> None:
        refuse_functions(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        pieces: dict[ir.Value, Sequence[ir.Value]] = {}
        whole: dict[ir.Value, ir.Value] = {}
        modified = False
        for node in tuple(model.graph):
            if _is_tokenwise(node, sum(self.rows)):
                _split(model.graph, node, self.rows, pieces)
                modified = True
            elif (first := _first_piece(node, pieces, self.rows[0])) is not None:
                node.replace_input_with(0, first)
            else:
                for position, value in enumerate(node.inputs):
                    if value in pieces:
                        if value not in whole:
                            whole[value] = _join(model.graph, node, value, pieces[value])
                        node.replace_input_with(position, whole[value])
        if modified:
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified)


def _is_tokenwise(node: ir.Node, tokens: int) -> bool:
    """Whether it makes (B, T, .) of (B, T, .) and constants, each token for itself."""
    if node.domain != "" or node.op_type not in TOKENWISE or len(node.outputs) != 1 or node.outputs[0].is_graph_output():
        return False
    shape, given = node.outputs[0].shape, [value for value in node.inputs if value is not None]
    if shape is None or len(shape) != 3 or shape[1] != tokens or not node.inputs:
        return False
    if node.op_type == "Slice" and (len(given) < 4 or _is_not_channels(given[3])):
        return False
    if node.op_type == "MatMul" and not (_is_sequence(given[0], tokens) and len(given[1].shape or ()) == 2):
        return False
    if node.op_type == "LayerNormalization" and node.attributes.get_int("axis", -1) not in (-1, 2):
        return False
    if node.op_type.endswith("Linear") and node.attributes.get_int("axis", 1) not in (-1, 2) and scalar(given[1]) is None:
        return False
    others = [value for value in given if not _is_sequence(value, tokens)]
    return len(others) < len(given) and all(_is_for_all(value, node.op_type == "MatMul") for value in others)


def _is_not_channels(axes: ir.Value) -> bool:
    tensor = constant(axes)
    return tensor is None or tensor.numpy().tolist() not in ([2], [-1])


def _is_sequence(value: ir.Value, tokens: int) -> bool:
    return value.shape is not None and len(value.shape) == 3 and value.shape[1] == tokens and constant(value) is None


def _is_for_all(value: ir.Value, weight: bool) -> bool:
    """Whether it is the same for all tokens and images: made of parameters alone, and long along no axis but the last, or a weight."""
    shape = sizes(constant(value)) if constant(value) is not None else value.shape
    return shape is not None and (weight or all(size == 1 for size in tuple(shape)[-3:-1])) and _is_made_of_parameters(value)


def _is_made_of_parameters(value: ir.Value) -> bool:
    node = value.producer()
    return constant(value) is not None or (
        node is not None and all(given is None or _is_made_of_parameters(given) for given in node.inputs)
    )


def _split(graph: ir.Graph, node: ir.Node, rows: Sequence[int], pieces: dict[ir.Value, Sequence[ir.Value]]) -> None:
    tokens = sum(rows)
    for value in node.inputs:
        if value is not None and _is_sequence(value, tokens) and value not in pieces:
            assert value.shape is not None
            cut = Builder(graph, node, value)
            shapes = [(value.shape[0], count, value.shape[2]) for count in rows]
            pieces[value] = cut.nodes("Split", [value, cut.integers(rows)], {"axis": 1}, shapes)
    (output,) = node.outputs
    assert output.shape is not None
    new, made = Builder(graph, node, output), list[ir.Value]()
    for index, count in enumerate(rows):
        inputs = [pieces[value][index] if value in pieces else value for value in node.inputs]
        shape = (output.shape[0], count, output.shape[2])
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        made.append(new.node(node.op_type, inputs, attributes, shape))
    pieces[output] = made


def _first_piece(node: ir.Node, pieces: dict[ir.Value, Sequence[ir.Value]], rows: int) -> ir.Value | None:
    """The piece that has everything a Gather or Slice of tokens takes."""
    value = node.inputs[0] if node.inputs else None
    if value not in pieces or node.domain != "" or node.op_type not in ("Gather", "Slice"):
        return None
    numbers = [tensor.numpy() for given in node.inputs[1:] if (tensor := constant(given)) is not None]
    if len(numbers) < len(node.inputs) - 1 or any(each.size == 0 or each.min() < 0 for each in numbers):
        return None
    last = [int(each.max()) for each in numbers]
    if node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 1 and last[0] < rows:
        return pieces[value][0]
    if node.op_type == "Slice" and len(last) == 3 and last[2] == 1 and last[0] < last[1] <= rows:
        return pieces[value][0]
    return None


def _join(graph: ir.Graph, before: ir.Node, value: ir.Value, pieces: Sequence[ir.Value]) -> ir.Value:
    assert value.shape is not None
    return Builder(graph, before, value).node("Concat", pieces, {"axis": 1}, tuple(value.shape))
