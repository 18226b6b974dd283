"""Compute the last block, and what follows it, only for the tokens that somebody looks at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vit_exporter.passes.building import Builder
from vit_exporter.passes.matching import ELEMENTWISE, constant, refuse_functions, same_size, sizes

Axes = Mapping[ir.Value, int]  # values of which only the first tokens are needed, and the axis that the tokens lie on


class PruneLastBlock(ir.passes.InPlacePass):
    """Where only the first n of T tokens leave the network, only they get a query, a projection and an MLP in the last block.

    Keys and values still come from all tokens: attention needs them. What is left is computed as before, so the result is exact. The
    class token is one such token, class and distillation token are two. Queries that come out of a packed linear layer are cut only behind
    it: UnpackHeads goes before. Left alone: networks whose tokens are an output, or averaged, or attended to by a probe, and images of
    any size.
    Raises: ir.passes.PreconditionError if the model has local functions.
    """

    def requires(self, model: ir.Model) -> None:
        refuse_functions(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = _looked_at(model.graph)
        if found is None:
            return ir.passes.PassResult(model, modified=False)
        tokens, kept = found
        needed = _needed(model.graph, tokens, kept)
        if needed:
            _narrow(model.graph, needed, kept)
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=bool(needed))


def _looked_at(graph: ir.Graph) -> tuple[int, int] | None:
    """(T, n) of the last sequence (B, T, D) of which nothing but the first n tokens is read."""
    for node in reversed(tuple(graph)):
        value = node.outputs[0]
        shape = value.shape
        if shape is None or len(shape) != 3 or not isinstance(shape[1], int) or value.is_graph_output() or not value.uses():
            continue
        ends = [_first(use.node) for use in value.uses()]
        read = [end[1] for end in ends if end is not None and end[0] == 1]
        if len(read) == len(ends) and max(read) < shape[1]:
            return shape[1], max(read)
    return None


def _first(node: ir.Node) -> tuple[int, int] | None:
    """(axis, n) where the node takes nothing but some of the first n along an axis."""
    if node.domain != "" or len(node.inputs) < 2:
        return None
    given = [constant(value) for value in node.inputs[1:]]
    numbers = [tensor.numpy().reshape(-1) for tensor in given if tensor is not None and tensor.dtype.is_integer()]
    if len(numbers) < len(given):
        return None
    if node.op_type == "Gather" and numbers[0].size and numbers[0].min() >= 0:
        return node.attributes.get_int("axis", 0), int(numbers[0].max()) + 1
    if node.op_type == "Slice" and len(numbers) >= 3 and all(each.size == 1 for each in numbers):
        start, end, axis, *step = (int(each[0]) for each in numbers)
        return (axis, end) if start == 0 and end > 0 and axis >= 0 and step in ([], [1]) else None
    return None


def _needed(graph: ir.Graph, tokens: int, kept: int) -> Axes:
    """Every value of which nobody needs more than the first `kept` of its `tokens` tokens, and whose node can make them alone."""
    found: dict[ir.Value, int] = {}
    for node in reversed(tuple(graph)):
        axes = {_axis_read(value, found, tokens, kept) for value in node.outputs}
        axis = axes.pop() if len(axes) == 1 else None
        if axis is not None and any(_sources(node, axis)):
            found |= dict.fromkeys(node.outputs, axis)
    return found


def _axis_read(value: ir.Value, found: Axes, tokens: int, kept: int) -> int | None:
    """The axis of this value along which all who read it need its first tokens alone, None where somebody needs more."""
    axes = {_axis_needed(user, position, found, kept) for user, position in value.uses()}
    axis = axes.pop() if len(axes) == 1 else None
    here = axis is not None and value.shape is not None and value.shape[axis] == tokens and not value.is_graph_output()
    return axis if here else None


def _axis_needed(user: ir.Node, position: int, found: Axes, kept: int) -> int | None:
    """The axis of this input along which the user needs its first tokens alone, None where it needs more."""
    first = _first(user)
    if first is not None and position == 0 and first[1] <= kept:
        return first[0]
    axes = {found.get(output) for output in user.outputs}
    axis = axes.pop() if len(axes) == 1 else None
    return dict(_sources(user, axis)).get(position) if axis is not None else None


def _sources(node: ir.Node, axis: int) -> Iterator[tuple[int, int]]:
    """(position, axis) of the inputs whose tokens become, one by one, the tokens of the node's output, which lie on `axis`."""
    shape, shapes = node.outputs[0].shape, [value.shape if value is not None else None for value in node.inputs]
    first = shapes[0] if shapes else None
    if node.domain != "" or shape is None or first is None:
        return
    own = node.attributes.get_int("axis", 0 if node.op_type in ("Gather", "Split", "Concat") else -1)
    own %= len(first) if node.op_type == "Gather" else len(shape)  # a Gather of one has an axis less than what it reads
    match node.op_type:
        case op if op in ELEMENTWISE:
            for position, each in enumerate(shapes):
                place = axis - len(shape) + len(each or ())
                if each is not None and place >= 0 and each[place] == shape[axis]:
                    yield position, place
        case "LayerNormalization" if axis < own:
            yield 0, axis
        case "Softmax" | "Split" if axis != own:
            yield 0, axis
        case "MatMul" if axis == len(shape) - 2 and len(first) == len(shape):
            yield 0, axis
        case "Transpose":
            yield 0, node.attributes.get_ints("perm", tuple(reversed(range(len(shape)))))[axis]
        case "Reshape" if len(first) > axis and all(same_size(first[place], shape[place]) for place in range(axis + 1)):
            yield 0, axis
        case "Concat" if axis != own:
            yield from ((position, axis) for position in range(len(node.inputs)))
        case "Slice" if _sliced(node) not in (None, axis):
            yield 0, axis
        case "Gather" if sizes(constant(node.inputs[1])) == ():
            yield 0, axis + (axis >= own)


def _sliced(node: ir.Node) -> int | None:
    """The one axis that a Slice cuts."""
    axes = constant(node.inputs[3]) if len(node.inputs) > 3 else None
    return int(axes.numpy()[0]) % len(node.outputs[0].shape or (0,)) if axes is not None and axes.size == 1 else None


def _narrow(graph: ir.Graph, needed: Axes, kept: int) -> None:
    """Cut what is needed in part where it comes from what is needed as a whole."""
    cut: dict[tuple[ir.Value, int], ir.Value] = {}
    for node in tuple(graph):
        axis = needed.get(node.outputs[0])
        if axis is None:
            continue
        new = Builder(graph, node, node.outputs[0])
        for position, place in tuple(_sources(node, axis)):
            value = node.inputs[position]
            if value is not None and value not in needed:
                if (value, place) not in cut:
                    cut[value, place] = _cut(new, value, place, kept)
                node.replace_input_with(position, cut[value, place])
        if node.op_type == "Reshape":
            shape = constant(node.inputs[1])
            assert shape is not None  # or its output's shape would not be known
            wanted = [int(size) for size in shape.numpy()]  # a 0 stands for the input's own size
            node.replace_input_with(1, new.integers([kept if place == axis and size else size for place, size in enumerate(wanted)]))
    for value, axis in needed.items():
        value.shape = _shape(value, axis, kept)
        for user, _ in tuple(value.uses()):
            if user.op_type == "Slice" and _first(user) == (axis, kept) and not user.outputs[0].is_graph_output():
                user.outputs[0].replace_all_uses_with(value)
                graph.remove(user, safe=True)


def _cut(new: Builder, value: ir.Value, axis: int, kept: int) -> ir.Value:
    """The first tokens of a value."""
    tensor = constant(value)
    if tensor is not None:
        return new.constant(f"{value.name}/{axis}/{kept}", np.take(tensor.numpy(), range(kept), axis))
    return new.node("Slice", [value, new.integers([0]), new.integers([kept]), new.integers([axis])], None, tuple(_shape(value, axis, kept)))


def _shape(value: ir.Value, axis: int, kept: int) -> ir.Shape:
    assert value.shape is not None  # or its tokens would not be known
    return ir.Shape([kept if place == axis else size for place, size in enumerate(value.shape)])
