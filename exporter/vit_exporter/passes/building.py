"""What the passes that write new nodes share: nodes and constants, named, in their place, with shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vit_exporter.passes.matching import Linear

Size = int | ir.SymbolicDim


class Builder:
    """Puts nodes in front of a node, and constants into its graph.

    The nodes are named after `module`, by default that of the node; `like` has the element type of what they make.
    """

    def __init__(self, graph: ir.Graph, before: ir.Node, like: ir.Value, module: str | None = None) -> None:
        self.graph, self.before, self.type = graph, before, like.type
        self.module = module or (before.name or "vit").rsplit("/", 1)[0]
        self.taken = {node.name for node in graph}

    def node(
        self, op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any] | None = None, shape: Sequence[Size] = (), *,
        domain: str = "",
    ) -> ir.Value:  # fmt: skip
        """The output of a new node with one."""
        return self.nodes(op_type, inputs, attributes, [shape], domain=domain)[0]

    def nodes(
        self, op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any] | None, shapes: Sequence[Sequence[Size]], *,
        domain: str = "",
    ) -> Sequence[ir.Value]:  # fmt: skip
        """The outputs of a new node, of these shapes."""
        node = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=len(shapes), name=self._name(op_type))
        for index, (value, shape) in enumerate(zip(node.outputs, shapes, strict=True)):
            value.name = f"{node.name}:{index}" if index else node.name
            value.shape, value.type = ir.Shape(shape), self.type
        self.graph.insert_before(self.before, [node])
        return node.outputs

    def replace(self, node: ir.Node, value: ir.Value) -> None:
        """Let the value be what the node made, under its name if that is the graph's, and drop the node."""
        (old,) = node.outputs
        if old.is_graph_output():
            value.name, old.name = old.name, value.name
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)

    def integers(self, numbers: int | Sequence[int]) -> ir.Value:
        """A constant, int64; the same one for the same numbers."""
        return self.constant(f"int64/{numbers}".replace(" ", ""), np.array(numbers, np.int64))

    def constant(self, name: str, numbers: npt.NDArray[Any]) -> ir.Value:
        """A constant of this name, the one that there is if there is one."""
        name = f"constants/{name}"
        if name not in self.graph.initializers:
            tensor = ir.tensor(numbers, name=name)
            value = ir.Value(name=name, shape=ir.Shape(numbers.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
            self.graph.register_initializer(value)
        return self.graph.initializers[name]

    def _name(self, op_type: str) -> str:
        stem, number = f"{self.module}/{op_type}", 1
        name = stem
        while name in self.taken:
            number += 1
            name = f"{stem}_{number}"
        self.taken.add(name)
        return name


def cut_linear(new: Builder, source: ir.Value, whole: Linear, module: str, columns: slice) -> ir.Value:
    """These of a linear layer's outputs (B, T, columns), from a layer of its own."""
    weight, bias = (
        cut_parameter(new.graph, part, f"{module}.{kind}", columns) for part, kind in ((whole.weight, "weight"), (whole.bias, "bias"))
    )
    assert source.shape is not None  # that of what is made of it is known
    assert weight.shape is not None
    shape, own = (*tuple(source.shape)[:-1], weight.shape[1]), Builder(new.graph, new.before, source, module)
    return own.node("Add", [own.node("MatMul", [source, weight], None, shape), bias], None, shape)


def cut_parameter(graph: ir.Graph, whole: ir.Value, name: str, columns: slice) -> ir.Value:
    """These of a parameter's last axis as a parameter of this name, cut out only when somebody reads it."""
    tensor = whole.const_value
    assert tensor is not None  # an initialiser has one
    shape = list(tensor.shape.numpy())
    shape[-1] = len(range(*columns.indices(shape[-1])))
    lazy = ir.LazyTensor(partial(_cut, tensor, columns), dtype=tensor.dtype, shape=ir.Shape(shape), name=name)
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(tensor.dtype), const_value=lazy)
    graph.register_initializer(value)
    return value


def _cut(tensor: ir.TensorProtocol, columns: slice) -> ir.TensorProtocol:
    return ir.Tensor(np.ascontiguousarray(tensor.numpy()[..., columns]))
