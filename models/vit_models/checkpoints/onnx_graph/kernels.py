"""What the graph's small arithmetic computes, in numpy: shapes, indices, movements of data and functions of one number.

The heavy operations are not here: they are recognised, not run. A kernel takes a node's attributes and its inputs (None for one that
is left out) and returns its outputs. Opsets 11 to 20 differ in what is an attribute and what an input: both are understood.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vit_models.checkpoints.onnx_graph.protobuf import DTYPES, StoredTensor

Array = npt.NDArray[Any]
Attributes = Mapping[str, Any]
Kernel = Callable[[Attributes, Sequence[Any]], list[Array]]

MAX_SIZE = 1 << 26  # numbers in one result: above any index of a Vision Transformer, below what a corrupt file could ask for

# What only moves numbers: the first input's, as the others say.
MOVEMENTS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Split", "Slice", "Gather", "Expand", "Tile"})
# What acts on each number alone.
ELEMENTWISE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Neg", "Reciprocal", "Sqrt", "Exp", "Erf", "Tanh", "Sigmoid", "Relu", "Gelu", "Max", "Min"}
)

_erf = np.vectorize(math.erf, otypes=[np.float64])


class TooLargeError(Exception):
    """A result that no Vision Transformer's arithmetic has."""


def run(op: str, attributes: Attributes, inputs: Sequence[Any]) -> list[Array]:
    """The outputs of one operation. Raises: KeyError for one that has no kernel, TooLargeError."""
    with np.errstate(all="ignore"):
        return KERNELS[op](attributes, inputs)


def check_size(*shape: int) -> tuple[int, ...]:
    """The shape of something about to be made. Raises: TooLargeError."""
    if math.prod(shape) > MAX_SIZE or any(dimension < 0 for dimension in shape):
        raise TooLargeError(f"a result of shape {shape}")
    return shape


def _axes(attributes: Attributes, inputs: Sequence[Any], place: int = 1) -> list[int] | None:
    """Axes, which became an input in opset 13 (18 for the means)."""
    if len(inputs) > place and inputs[place] is not None:
        return [int(axis) for axis in inputs[place].reshape(-1)]
    return attributes.get("axes")


def _reshape(attributes: Attributes, inputs: Sequence[Any]) -> list[Array]:
    data, wanted = inputs[0], [int(size) for size in inputs[1].reshape(-1)]
    if not attributes.get("allowzero"):
        wanted = [data.shape[index] if size == 0 else size for index, size in enumerate(wanted)]
    return [data.reshape(wanted)]


def _flatten(attributes: Attributes, inputs: Sequence[Any]) -> list[Array]:
    axis = attributes.get("axis", 1) % (inputs[0].ndim + 1)
    return [inputs[0].reshape(math.prod(inputs[0].shape[:axis]), -1)]


def _squeeze(attributes: Attributes, inputs: Sequence[Any]) -> list[Array]:
    axes = _axes(attributes, inputs)
    return [np.squeeze(inputs[0], tuple(axes) if axes is not None else None)]


def _unsqueeze(attributes: Attributes, inputs: Sequence[Any]) -> list[Array]:
    return [np.expand_dims(inputs[0], tuple(_axes(attributes, inputs) or ()))]


def _split(attributes: Attributes, inputs: Sequence[Any]) -> list[Array]:
    data: Array
    data, axis = inputs[0], attributes.get("axis", 0)
    sizes = inputs[1].tolist() if len(inputs) > 1 and inputs[1] is not None else attributes.get("split")
    if sizes is None:
        parts = attributes["num_outputs"]
        each = -(-data.shape[axis] // parts)
        sizes = [each] * (parts - 1) + [data.shape[axis] - each * (parts - 1)]
    return list(np.split(data, np.cumsum(sizes)[:-1].tolist(), axis))


def _slice(attributes: Attributes, inputs: Sequence[Any]) -> list[Array]:
    data, *given = inputs
    starts, ends = given[0].tolist(), given[1].tolist()
    axes = given[2].tolist() if len(given) > 2 and given[2] is not None else range(len(starts))
    steps = given[3].tolist() if len(given) > 3 and given[3] is not None else [1] * len(starts)
    index = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        # An end before the beginning, walking backwards, is spelled by a very negative number.
        index[axis] = slice(start, None if step < 0 and end < -data.shape[axis] else end, step)
    return [data[tuple(index)]]


def _expand(attributes: Attributes, inputs: Sequence[Any]) -> list[Array]:
    shape = np.broadcast_shapes(inputs[0].shape, tuple(int(size) for size in inputs[1]))
    return [np.broadcast_to(inputs[0], check_size(*shape))]


def _tile(attributes: Attributes, inputs: Sequence[Any]) -> list[Array]:
    check_size(*(size * int(times) for size, times in zip(inputs[0].shape, inputs[1], strict=True)))
    return [np.tile(inputs[0], inputs[1])]


def _concat(attributes: Attributes, inputs: Sequence[Any]) -> list[Array]:
    check_size(sum(part.size for part in inputs))
    return [np.concatenate(inputs, attributes.get("axis", 0))]


def _pad(attributes: Attributes, inputs: Sequence[Any]) -> list[Array]:
    """Numbers all around, of one value; the axes' beginnings first, then their ends."""
    data, pads = inputs[0], _given(attributes.get("pads"), inputs, 1)
    fill, axes = _given([attributes.get("value", 0)], inputs, 2), _given(range(data.ndim), inputs, 3)
    if attributes.get("mode", "constant") != "constant" or min(pads) < 0:
        raise ValueError("a Pad that mirrors or cuts")
    around = [(0, 0)] * data.ndim
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        around[axis] = (before, after)
    check_size(*(size + sum(each) for size, each in zip(data.shape, around, strict=True)))
    return [np.pad(data, around, constant_values=fill[0])]


def _given(attribute: Any, inputs: Sequence[Any], place: int) -> list[Any]:
    """What became an input in a later opset than the attribute's."""
    return list(inputs[place].reshape(-1).tolist() if len(inputs) > place and inputs[place] is not None else attribute)


def _constant_of_shape(attributes: Attributes, inputs: Sequence[Any]) -> list[Array]:
    value = attributes.get("value")
    fill = value.array().reshape(-1) if isinstance(value, StoredTensor) else np.zeros(1, np.float32)
    return [np.full(check_size(*inputs[0].tolist()), fill[0], fill.dtype)]


def _scatter_nd(attributes: Attributes, inputs: Sequence[Any]) -> list[Array]:
    data, indices, updates = inputs
    if attributes.get("reduction", "none") != "none":
        raise ValueError("a ScatterND that adds up")
    result = np.array(data)
    result[tuple(np.moveaxis(indices, -1, 0))] = updates
    return [result]


def _range(attributes: Attributes, inputs: Sequence[Any]) -> list[Array]:
    start, limit, delta = (value.reshape(-1)[0] for value in inputs)
    check_size(max(0, math.ceil((limit - start) / delta)))
    return [np.arange(start, limit, delta, dtype=inputs[0].dtype)]


def _where(attributes: Attributes, inputs: Sequence[Any]) -> list[Array]:
    condition, yes, no = inputs
    chosen: Array = np.where(condition, yes, no)
    return [chosen]


def _cast(attributes: Attributes, inputs: Sequence[Any]) -> list[Array]:
    kind = DTYPES[attributes["to"]]
    return [inputs[0].astype(np.float32 if kind[0] == "BF16" else kind[1])]


def _reduce(function: Callable[..., Array]) -> Kernel:
    def kernel(attributes: Attributes, inputs: Sequence[Any]) -> list[Array]:
        axes = _axes(attributes, inputs)
        return [function(inputs[0], axis=tuple(axes) if axes is not None else None, keepdims=bool(attributes.get("keepdims", 1)))]

    return kernel


def _divide(a: Array, b: Array) -> Array:
    if np.issubdtype(a.dtype, np.integer):  # rounded towards zero
        return np.trunc(a / b).astype(a.dtype)
    return a / b


def _gelu(attributes: Attributes, inputs: Sequence[Any]) -> list[Array]:
    x = inputs[0]
    if attributes.get("approximate") == "tanh":
        return [0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))]
    return [0.5 * x * (1 + _erf(x / math.sqrt(2)))]


def _matmul(attributes: Attributes, inputs: Sequence[Any]) -> list[Array]:
    check_size(*inputs[0].shape[:-1], inputs[1].shape[-1])
    return [inputs[0] @ inputs[1]]


def _gemm(attributes: Attributes, inputs: Sequence[Any]) -> list[Array]:
    a, b = (array.T if attributes.get(side) else array for array, side in zip(inputs, ("transA", "transB"), strict=False))
    product = attributes.get("alpha", 1.0) * _matmul({}, (a, b))[0]
    return [product if len(inputs) < 3 else product + attributes.get("beta", 1.0) * inputs[2]]


def _unary(function: Callable[[Array], Array]) -> Kernel:
    return lambda attributes, inputs: [function(inputs[0])]


def _binary(function: Callable[[Array, Array], Array]) -> Kernel:
    def kernel(attributes: Attributes, inputs: Sequence[Any]) -> list[Array]:
        check_size(*np.broadcast_shapes(inputs[0].shape, inputs[1].shape))
        return [np.asarray(function(inputs[0], inputs[1]))]

    return kernel


KERNELS: dict[str, Kernel] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": lambda attributes, inputs: [np.transpose(inputs[0], attributes.get("perm"))],
    "Split": _split,
    "Slice": _slice,
    "Gather": lambda attributes, inputs: [np.take(inputs[0], inputs[1], attributes.get("axis", 0))],
    "Expand": _expand,
    "Tile": _tile,
    "Concat": _concat,
    "Pad": _pad,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "ScatterND": _scatter_nd,
    "Cast": _cast,
    "Where": _where,
    "ReduceMean": _reduce(np.mean),
    "ReduceSum": _reduce(np.sum),
    "ReduceProd": _reduce(np.prod),
    "Gelu": _gelu,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Add": _binary(np.add),
    "Sub": _binary(np.subtract),
    "Mul": _binary(np.multiply),
    "Div": _binary(_divide),
    "Mod": _binary(np.mod),
    "Pow": _binary(np.power),
    "Max": _binary(np.maximum),
    "Min": _binary(np.minimum),
    "Equal": _binary(np.equal),
    "Greater": _binary(np.greater),
    "GreaterOrEqual": _binary(np.greater_equal),
    "Less": _binary(np.less),
    "LessOrEqual": _binary(np.less_equal),
    "And": _binary(np.logical_and),
    "Or": _binary(np.logical_or),
    "Not": _unary(np.logical_not),
    "Neg": _unary(np.negative),
    "Abs": _unary(np.abs),
    "Floor": _unary(np.floor),
    "Ceil": _unary(np.ceil),
    "Round": _unary(np.round),
    "Sqrt": _unary(np.sqrt),
    "Exp": _unary(np.exp),
    "Reciprocal": _unary(np.reciprocal),
    "Tanh": _unary(np.tanh),
    "Erf": _unary(_erf),
    "Sigmoid": _unary(lambda x: 1 / (1 + np.exp(-x))),
    "Relu": _unary(lambda x: np.maximum(x, 0)),
}
