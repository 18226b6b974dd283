"""A graph as values that come of one another, with everything that depends on no image already computed.

Exporters spell one network in many ways: Shape, Gather and Concat nodes that work out what a Reshape needs, constants as nodes or as
initialisers, LayerNorm and Linear in pieces. For images of a given size all of that becomes plain: shapes are numbers, Identity, Dropout
and Cast are gone, equal values are one value, a matrix product with a constant is a `Linear` and a normalisation a `LayerNorm`,
whatever it was made of. Large constants are not read: they stay formulas of the stored tensors.

`Linear` has the arguments (x, weight, bias or None); "transposed" says that the weight is stored (out, in).
`LayerNorm` has (x, weight or None, bias or None) and "eps".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vit_models.checkpoints.onnx_graph import kernels
from vit_models.checkpoints.onnx_graph.kernels import Array, TooLargeError
from vit_models.checkpoints.onnx_graph.plain import is_last, plain_form
from vit_models.checkpoints.onnx_graph.protobuf import Graph, Node, StoredTensor
from vit_models.checkpoints.onnx_graph.shapes import shape_of
from vit_models.checkpoints.onnx_graph.value import Shape, Value, ancestors
from vit_models.config import Resample
from vit_models.errors import CheckpointError

FLOATS = frozenset({1, 10, 11, 16})  # onnx.proto's codes
SMALL = 1 << 16  # numbers up to which a constant is worked out at once
READ = 4  # floats up to which an initialiser is read at once: scales and epsilons, not weights
BROKEN = (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError, TooLargeError)  # what numpy says of a broken graph


class Dataflow:
    """The values of a graph for images of one size, and who uses each.

    Raises: CheckpointError for a graph that contradicts itself.
    """

    def __init__(self, graph: Graph, images: Shape) -> None:
        self.values: dict[str, Value] = {}
        self._known: dict[Any, Value] = {}
        initializers = {name for name in graph.initializers if name}
        given = [info.name for info in graph.inputs if info.name not in initializers]
        if len(given) != 1:
            raise CheckpointError(f"got a graph with the inputs {', '.join(given[:5]) or 'none'}, expected one: the images")
        self.image = Value("Input", (), {})
        self.image.shape = images
        self._name(self.image, given[0])
        self._run(graph)
        if missing := [info.name for info in graph.outputs if info.name not in self.values]:
            raise CheckpointError(f"nothing in the graph computes its output {missing[0]}")
        self.outputs = [self.values[info.name] for info in graph.outputs]
        self.live = ancestors(self.outputs)  # in the order in which they are computed
        self.users: dict[Value, list[Value]] = {value: [] for value in self.live}
        for value in self.live:
            for arg in dict.fromkeys(value.inputs):
                self.users[arg].append(value)

    def _name(self, value: Value, name: str) -> None:
        if name:
            value.names.append(name)
            self.values[name] = value

    def _run(self, graph: Graph) -> None:
        for name, stored in graph.initializers.items():
            self._name(_leaf(stored), name)
        for node in graph.nodes:
            self._node(node)

    def _node(self, node: Node) -> None:
        unknown = [name for name in node.inputs if name and name not in self.values]
        if unknown:
            raise CheckpointError(f"the node {node} reads {unknown[0]}, which nothing before it computes; export the file again")
        args = tuple(self.values[name] if name else None for name in node.inputs)
        try:
            for value, name in zip(self._results(node, args), node.outputs, strict=False):
                self._name(value, name)
        except BROKEN as error:
            raise CheckpointError(f"the node {node} cannot be worked out ({error}); export the file again") from error

    def _results(self, node: Node, args: tuple[Value | None, ...]) -> list[Value]:
        attributes = node.attributes
        if node.op == "Constant":
            value = attributes.get("value")
            if isinstance(value, StoredTensor):
                return [_leaf(value)]
            kind = next(kind for kind in (*attributes, "value") if kind.startswith("value"))
            return [_number(np.asarray(attributes[kind], np.int64 if kind.startswith("value_int") else np.float32))]
        if node.op == "If" and args[0] is not None and args[0].number is not None:
            branch = attributes["then_branch" if args[0].number.reshape(-1)[0] else "else_branch"]
            self._run(branch)
            return [self.values[info.name] for info in branch.outputs]
        if node.op in ("Identity", "Dropout") and args[0] is not None:
            return [args[0]]
        if node.op == "Cast" and args[0] is not None and args[0].number is None and attributes["to"] in FLOATS:
            return [args[0]]
        if node.op in ("Shape", "Size") and args[0] is not None and args[0].shape is not None:
            shape = args[0].shape[slice(attributes.get("start", 0), attributes.get("end"))]
            return [_number(np.asarray(shape if node.op == "Shape" else math.prod(shape), np.int64))]
        known = [arg.number if arg is not None else None for arg in args]
        small = all(arg is None or (arg.number is not None and arg.number.size <= SMALL) for arg in args)
        if small and args and node.op in kernels.KERNELS:
            results = kernels.run(node.op, attributes, known)
            if all(result.size <= SMALL for result in results):
                return [_number(result) for result in results]
        return [self.make(node.op, args, attributes, place, node) for place in range(len(node.outputs))]

    def make(
        self, op: str, args: tuple[Value | None, ...], attributes: Mapping[str, Any], place: int = 0, node: Node | None = None
    ) -> Value:
        """A value of others, in its plainest form; the same one for the same arguments."""
        fixed = tuple((name, tuple(given) if isinstance(given, list) else given) for name, given in sorted(attributes.items()))
        key = (op, tuple(_identity(arg) for arg in args), repr(fixed), place)
        if key not in self._known:
            value = Value(op, args, attributes, place, node)
            plain = None if value.constant else self._split_linear(value) or plain_form(value)
            if isinstance(plain, Value):
                self._known[key] = plain
            elif plain is not None:
                self._known[key] = self.make(*plain, node=node)
            else:
                value.shape = shape_of(value)
                self._known[key] = value
        return self._known[key]

    def _split_linear(self, value: Value) -> Value | None:
        """A part of a Linear without bias, as onnxsim packs queries, keys and values, as the Linear that it is."""
        linear = value.inputs[0] if value.op == "Split" else None
        if linear is None or linear.op != "Linear" or linear.arg(2) is not None or not is_last(value.attributes.get("axis", 0), linear):
            return None
        axis = 0 if linear.attributes["transposed"] else 1
        part = self.make("Split", (linear.args[1], *value.args[1:]), {**value.attributes, "axis": axis}, value.place, value.node)
        return self.make("Linear", (linear.args[0], part, None), linear.attributes, node=value.node)


def _identity(value: Value | None) -> Any:
    """Equal for equal values: a known number's dtype, shape and bytes, or the value itself."""
    number = value.number if value is not None else None
    return value if number is None else (number.dtype.str, number.shape, number.tobytes())


def evaluate(value: Value, bound: Mapping[Value, Array], load: Callable[[StoredTensor], Array] | None = None) -> Array:
    """The value's numbers, given those of `bound` and, by `load`, the stored tensors'.

    Raises: CheckpointError where something in between is not simple arithmetic.
    """
    found: dict[Value, Array] = dict(bound)
    for step in ancestors([value], frozenset(bound)):
        if step in found:
            continue
        if step.number is not None:
            found[step] = step.number
        elif step.stored is not None and load is not None:
            found[step] = load(step.stored)
        elif step.op == "Resize":
            found[step] = _resize(step, found[step.inputs[0]])
        elif step.op in kernels.KERNELS:
            try:
                args = [None if arg is None else found[arg] for arg in step.args]
                found[step] = kernels.run(step.op, step.attributes, args)[step.place]
            except BROKEN as error:
                raise CheckpointError(f"the node {step} cannot be worked out ({error}); export the file again") from error
        else:
            raise CheckpointError(f"the node {step} is in the way: it is none that a Vision Transformer has there")
    return found[value]


def resize_method(value: Value) -> Resample:
    """Which of `vit_models.resample`'s methods a Resize node of a position table (1, D, h, w) is. Raises: CheckpointError."""
    given, source, shape = value.attributes, value.inputs[0].shape, value.shape
    mode, places = given.get("mode"), given.get("coordinate_transformation_mode", "half_pixel")
    if mode == "linear" and places == "align_corners":
        return "bilinear_align_corners"
    if mode == "cubic" and places == "align_corners" and given.get("cubic_coeff_a", -0.75) == -0.75:
        return "bicubic_align_corners"
    if mode == "cubic" and places in ("half_pixel", "pytorch_half_pixel") and source is not None and shape is not None:
        scales = value.arg(2)
        factors = scales.number.tolist()[2:] if scales is not None and scales.number is not None and scales.number.size == 4 else None
        stretched = [factor * old for factor, old in zip(factors, source[2:], strict=True)] if factors else list(shape[2:])
        off = [found - new for found, new in zip(stretched, shape[2:], strict=True)]
        if given.get("antialias") and all(abs(each) < 1e-3 for each in off):
            return "bicubic_antialias"
        if abs(given.get("cubic_coeff_a", -0.75) + 0.75) < 1e-6 and all(abs(each) < 1e-3 for each in off):
            return "bicubic"
        if all(abs(each - 0.1) < 1e-2 for each in off):
            return "bicubic_offset"
    raise CheckpointError(f"the node {value} resamples positions by {mode} with {places}, expected a published network's way")


def _resize(value: Value, table: Array) -> Array:
    shape = value.shape
    if shape is None or len(shape) != 4 or shape[:2] != table.shape[:2] or table.shape[0] != 1:
        raise CheckpointError(f"the node {value} resizes something other than a position table")
    if shape == table.shape:
        return table
    if not table.any():  # zeros stay zeros: planning needs no torch
        return np.zeros(shape)
    import torch

    from vit_models.resample import resample_table

    grid = torch.from_numpy(np.ascontiguousarray(table[0].transpose(1, 2, 0)))
    return resample_table(grid, (shape[2], shape[3]), resize_method(value)).permute(2, 0, 1).unsqueeze(0).numpy()


def _leaf(stored: StoredTensor) -> Value:
    value = Value("Stored", (), {})
    value.constant, value.stored, value.shape = True, stored, stored.shape
    whole = not stored.dtype.startswith(("F", "BF"))
    if stored.size <= (SMALL if whole else READ) and stored.dtype != "BF16":
        value.number = stored.array()
    return value


def _number(number: Array) -> Value:
    value = Value("Number", (), {})
    value.constant, value.number, value.shape = True, number, number.shape
    return value
