"""Compute in 16 bits what is computed from the images, and say so in the graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx import defs

from vit_exporter.passes.building import Builder
from vit_exporter.passes.matching import refuse_functions
from vit_exporter.passes.store_half import KINDS

# What only moves numbers has the type of what it reads, so that no Cast stands where nothing is computed.
MOVERS = frozenset({"Concat", "Expand", "Gather", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"})
PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})
SIZES = frozenset({"Shape", "Size"})  # what they give depends on an image's size alone


class Narrow(ir.passes.InPlacePass):
    """What is computed from the graph's input is computed in float16 or bfloat16, with Casts behind the input and in front of the outputs.

    Weights, biases and tables are stored in it; a number beyond float16's range becomes Inf, so what has one belongs into `wide`. In
    float32 stay, with Casts around: nodes named in `wide`; ops that are not among `ops`, if that is given, or that the standard has not in
    this type; what the input goes through before the first product, such as a mean that is subtracted; and what depends on the size of an
    image alone, such as the grid of a free image size. Inputs and outputs stay float32.
    Raises: ir.passes.PreconditionError if the model has local functions.
    """

    def __init__(self, kind: str, wide: Collection[str] = (), ops: Collection[str] | None = None) -> None:
        super().__init__()
        self.kind, self.wide, self.ops = kind, frozenset(wide), ops
        self.dtype, self.numbers = KINDS[kind]

    def requires(self, model: ir.Model) -> None:
        refuse_functions(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = computed_nodes(model.graph)
        narrow = dict[ir.Value, bool]()  # of the values that are computed from the input, before any of them changes its type
        chosen = set[ir.Node]()
        for node in nodes:
            sources = [narrow.get(value, False) for value in node.inputs if value is not None and value in narrow]
            unprepared = any(value.is_graph_input() for value in node.inputs if value is not None)
            moved = node.op_type in MOVERS and not any(sources)
            if not (moved or (unprepared and node.op_type not in PRODUCTS)) and self._narrows(node, model.graph.opset_imports):
                chosen.add(node)
            narrow |= {value: node in chosen for value in node.outputs if value.dtype == ir.DataType.FLOAT}
        casts = _Casts(model.graph, self.dtype, self.numbers)
        for node in nodes:
            wanted = self.dtype if node in chosen else ir.DataType.FLOAT
            for position, value in enumerate(node.inputs):
                if value is not None and value.dtype in (ir.DataType.FLOAT, self.dtype) and value.dtype != wanted:
                    node.replace_input_with(position, casts.of(value, wanted, node))
            for value in node.outputs if node in chosen else ():
                if value.dtype == ir.DataType.FLOAT:
                    value.type = ir.TensorType(self.dtype)
        for place, value in enumerate(model.graph.outputs):
            if value.dtype == self.dtype:
                model.graph.outputs[place] = _widened(model.graph, value)
        for name, value in tuple(model.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del model.graph.initializers[name]
        return ir.passes.PassResult(model, modified=bool(chosen))

    def _narrows(self, node: ir.Node, opsets: Mapping[str, int]) -> bool:
        """Whether it may be computed in 16 bits."""
        if node.name in self.wide or (self.ops is not None and node.op_type not in self.ops):
            return False
        return _allows(node, opsets.get(node.domain, 0), self.kind)


def computed_nodes(graph: ir.Graph) -> list[ir.Node]:
    """The nodes whose floating point numbers depend on the input's numbers, and not on an image's size alone."""
    found, live = list[ir.Node](), set[ir.Value](graph.inputs)
    for node in graph:
        if node.op_type not in SIZES and any(value in live for value in node.inputs):
            live |= set(node.outputs)
            if any(value.dtype == ir.DataType.FLOAT for value in node.outputs):
                found.append(node)
    return found


class _Casts:
    """Values in the other type, made once each: a Cast, or for an initialiser a second one if it is read in both."""

    def __init__(self, graph: ir.Graph, dtype: ir.DataType, numbers: np.dtype[np.generic]) -> None:
        self.graph, self.dtype, self.numbers = graph, dtype, numbers
        self.made = dict[ir.Value, ir.Value]()

    def of(self, value: ir.Value, wanted: ir.DataType, reader: ir.Node) -> ir.Value:
        """The value in the type that the reader wants."""
        if value not in self.made:
            self.made[value] = self._stored(value) if value.is_initializer() else self._cast(value, wanted, reader)
        return self.made[value]

    def _cast(self, value: ir.Value, wanted: ir.DataType, reader: ir.Node) -> ir.Value:
        like = ir.Value(type=ir.TensorType(wanted))
        return Builder(self.graph, reader, like).node("Cast", [value], {"to": int(wanted)}, tuple(value.shape or ()))

    def _stored(self, value: ir.Value) -> ir.Value:
        tensor, name = value.const_value, f"{value.name}/{self.dtype.name.lower()}"
        assert tensor is not None  # an initialiser has one
        if len(value.uses()) == 1:  # the usual weight keeps its name
            name = value.name or ""
            del self.graph.initializers[name]
        shape = ir.Shape(tensor.shape.numpy())
        lazy = ir.LazyTensor(partial(_rounded, tensor, self.numbers, self.dtype), dtype=self.dtype, shape=shape, name=name)
        stored = ir.Value(name=name, shape=shape, type=ir.TensorType(self.dtype), const_value=lazy)
        self.graph.register_initializer(stored)
        return stored


def _widened(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """The graph's output in float32, under its name; what reads it within the graph goes on reading the narrow one."""
    producer, name = value.producer(), value.name
    assert producer is not None  # it is computed
    node = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=f"{(producer.name or 'vit').rsplit('/', 1)[0]}/{name}/Cast")
    value.name = f"{name}/{value.dtype.name.lower() if value.dtype is not None else ''}"
    wide = node.outputs[0]
    wide.name, wide.shape, wide.type = name, value.shape, ir.TensorType(ir.DataType.FLOAT)
    graph.append(node)
    return wide


def _allows(node: ir.Node, opset: int, kind: str) -> bool:
    """Whether the standard has the op in this type, for each of its inputs and outputs that is float32 here."""
    if node.domain:
        return True
    schema = defs.get_schema(node.op_type, opset)
    types = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}
    formal = [schema.inputs[min(place, len(schema.inputs) - 1)] for place in range(len(node.inputs))]
    formal += [schema.outputs[min(place, len(schema.outputs) - 1)] for place in range(len(node.outputs))]
    values = (*node.inputs, *node.outputs)
    wanted = f"tensor({kind})"
    return all(
        wanted in types.get(each.type_str, [each.type_str])
        for each, value in zip(formal, values, strict=True)
        if value is not None and value.dtype == ir.DataType.FLOAT
    )


def _rounded(tensor: ir.TensorProtocol, numbers: npt.DTypeLike, dtype: ir.DataType) -> ir.TensorProtocol:
    with np.errstate(over="ignore"):  # what is beyond float16 becomes Inf, and the simulation finds it
        return ir.Tensor(tensor.numpy().astype(numbers), dtype=dtype)
