"""What the passes that look for patterns share: who makes and reads a value, what is constant, where the linear layers are.

What to do with a pattern is never decided here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

# A constant that torch wrote, the root of 2 say, is the nearest float32, which is within 6e-8 of it; no other number of a network is.

Numbers = npt.NDArray[Any]

# What computes each number of its output from the numbers of its inputs in the same place.
ELEMENTWISE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Neg", "Sqrt", "Erf", "Gelu", "Sigmoid", "Tanh", "Relu", "Cast", "Identity"}
)


@dataclass(frozen=True)
class Linear:
    """x @ weight + bias; weight (in, width) and bias (width,) are initialisers that nothing else reads."""

    weight: ir.Value
    bias: ir.Value
    sum: ir.Value
    width: int


@dataclass(frozen=True)
class Layer:
    """A linear layer, what it reads, and its product without the bias."""

    source: ir.Value
    product: ir.Value
    linear: Linear


@dataclass(frozen=True)
class Packed:
    """A value (B, T, parts * H * D_h), taken apart into (parts, B, H, T, D_h)."""

    source: ir.Value
    taken_apart: ir.Value
    parts: int
    heads: int
    head_dim: int


def refuse_functions(model: ir.Model) -> None:
    """For a pass's `requires`: patterns are looked for in the graph alone.

    Raises: ir.passes.PreconditionError if the model has local functions.
    """
    if names := [function.name for function in model.functions.values()]:
        raise ir.passes.PreconditionError(f"got local functions {names}, expected none; run onnx_ir's InlinePass first")


def opset_of(model: ir.Model) -> int:
    """The version of the standard ops, 0 for a graph without any."""
    return model.graph.opset_imports.get("", 0)


def made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that makes the value, if it is this standard op."""
    node = value.producer() if value is not None else None
    return node if node is not None and (node.domain, node.op_type) == ("", op_type) else None


def only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    """The one node that reads the value, once, if it is this standard op and the value is no output of the graph."""
    uses = tuple(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    node = uses[0].node
    return node if (node.domain, node.op_type) == ("", op_type) else None


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The numbers of an initialiser that nobody can override from outside."""
    return value.const_value if value is not None and value.is_initializer() and not value.is_graph_input() else None


def sizes(tensor: ir.TensorProtocol | None) -> tuple[int, ...] | None:
    """A tensor's shape, None without a tensor."""
    return tuple(int(size) for size in tensor.shape.numpy()) if tensor is not None else None


def scalar(value: ir.Value | None) -> float | None:
    """The number that the value is everywhere and always."""
    tensor = constant(value)
    return float(tensor.numpy().reshape(-1)[0]) if tensor is not None and sizes(tensor) in ((), (1,)) else None


def operands(node: ir.Node | None) -> Iterator[tuple[ir.Value, ir.Value]]:
    """The two inputs of an Add or a Mul, in both orders."""
    if node is not None and len(node.inputs) == 2:
        first, second = node.inputs
        if first is not None and second is not None:
            yield first, second
            yield second, first


def linear_of(add: ir.Node | None) -> Linear | None:
    """The linear layer that this Add ends, if nothing else reads its product."""
    for product, bias in operands(add):
        matmul = made_by(product, "MatMul")
        if matmul is None or add is None or only_reader(product, "Add") is not add:
            continue
        weight = matmul.inputs[1]
        shape = sizes(_own(weight))
        if weight is not None and shape is not None and len(shape) == 2 and sizes(_own(bias)) == shape[1:]:
            return Linear(weight, bias, add.outputs[0], shape[1])
    return None


def layer_of(add: ir.Node | None) -> Layer | None:
    """The linear layer that this Add ends, with what it reads."""
    linear = linear_of(add)
    if linear is None or add is None:
        return None
    product = next(value for value in add.inputs if value is not None and value is not linear.bias)
    matmul = made_by(product, "MatMul")
    source = matmul.inputs[0] if matmul is not None else None
    return Layer(source, product, linear) if source is not None else None


def packed_of(transpose: ir.Node | None) -> Packed | None:
    """What this Transpose ends the taking apart of."""
    transpose = ordering(transpose, (2, 0, 3, 1, 4))
    reshape = made_by(transpose.inputs[0], "Reshape") if transpose is not None else None
    if transpose is None or reshape is None or reshape.inputs[0] is None:
        return None
    source, shape = reshape.inputs[0], reshape.outputs[0].shape
    if source.shape is None or shape is None or len(source.shape) != 3 or len(shape) != 5:
        return None
    counts = [size for size in tuple(shape)[2:] if isinstance(size, int)]
    if len(counts) != 3 or source.shape[2] != math.prod(counts) or not same_size(source.shape[1], shape[1]):
        return None
    return Packed(source, transpose.outputs[0], *counts)


def part_of(gather: ir.Node | None) -> tuple[Packed, int] | None:
    """The packed value that this Gather takes a part of, and which part."""
    if gather is None or (gather.domain, gather.op_type) != ("", "Gather") or gather.attributes.get_int("axis", 0) != 0:
        return None
    packed, index = packed_of(made_by(gather.inputs[0], "Transpose")), constant(gather.inputs[1])
    if packed is None or index is None or sizes(index) != ():
        return None
    return packed, int(index.numpy()) % packed.parts


def ordering(node: ir.Node | None, perm: tuple[int, ...]) -> ir.Node | None:
    """The Transpose, if it orders the axes this way."""
    return node if node is not None and _perm(node) == perm else None


def same_size(one: int | ir.SymbolicDim, other: int | ir.SymbolicDim) -> bool:
    """Whether two axes are known to be equally long."""
    return one == other and (isinstance(one, int) or one.value is not None)


def change(value: ir.Value, compute: Callable[[Numbers], Numbers]) -> None:
    """Let an initialiser's numbers be computed from what they are now, of the same shape and type, whenever somebody reads them."""
    tensor = value.const_value
    assert tensor is not None  # an initialiser has one

    def evaluate() -> ir.TensorProtocol:
        return ir.Tensor(compute(tensor.numpy()))

    value.const_value = ir.LazyTensor(evaluate, dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name)


def bypass(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Let everyone who reads the node's output read the value instead, and drop the node; the output must not be the graph's."""
    node.outputs[0].replace_all_uses_with(value)
    graph.remove(node, safe=True)


def put(graph: ir.Graph, last: ir.Node, nodes: list[ir.Node]) -> None:
    """Put the nodes where `last` is, let the last of them make what it made, and name them after its module.

    What nobody reads any more stays: onnx_ir's RemoveUnusedNodesPass is for that.
    """
    module = (last.name or "vit").rsplit("/", 1)[0]
    taken = {node.name for node in graph}
    for node in nodes:
        stem = node.name = f"{module}/{node.op_type}"
        number = 1
        while node.name in taken:
            number += 1
            node.name = f"{stem}_{number}"
        taken.add(node.name)
        for index, value in enumerate(node.outputs):
            value.name = node.name if index == 0 else f"{node.name}:{index}"
    graph.insert_before(last, nodes)
    (old,), (new,) = last.outputs, nodes[-1].outputs
    new.shape, new.type = old.shape, old.type
    if old.is_graph_output():
        new.name, old.name = old.name, new.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(last, safe=True)


def _own(value: ir.Value | None) -> ir.TensorProtocol | None:
    return constant(value) if value is not None and len(value.uses()) == 1 and not value.is_graph_output() else None


def _perm(node: ir.Node) -> tuple[int, ...]:
    return tuple(node.attributes.get_ints("perm", ()))
