"""How a parameter is made of a graph's stored tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_models.checkpoints import repairs
from vit_models.checkpoints.onnx_graph.blocks import Projection
from vit_models.checkpoints.onnx_graph.dataflow import evaluate
from vit_models.checkpoints.onnx_graph.kernels import Array
from vit_models.checkpoints.onnx_graph.protobuf import StoredTensor
from vit_models.checkpoints.onnx_graph.value import Value, ancestors
from vit_models.checkpoints.plan import Step, take

if TYPE_CHECKING:
    from torch import Tensor

Named = Iterable[tuple[str, Step]]


def made(repair: Callable[..., Array], *values: Value, bound: Mapping[Value, Array] | None = None) -> Step:
    """A parameter that `repair` makes of the numbers of these values, which are constants once `bound` are given."""
    stored = [each.stored for each in ancestors(values, frozenset(bound or {})) if each.stored is not None and each.number is None]
    names = tuple(dict.fromkeys(tensor.name for tensor in stored))

    def make(*tensors: Tensor) -> Tensor:
        import torch

        given = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}

        def load(tensor: StoredTensor) -> Array:
            return given[tensor.name]

        numbers = [evaluate(value, bound or {}, load) for value in values]
        return torch.from_numpy(np.array(repair(*numbers), np.float32))

    return Step(names, make)


def constant(value: Value) -> Step:
    """A constant of the graph: a stored tensor as it is, or what the graph makes of stored ones."""
    return take(value.stored.name) if value.stored is not None else made(np.asarray, value)


def vector(value: Value | None, width: int, without: float) -> Step:
    """A vector, all `without` where the graph has none."""
    if value is None:
        return Step((), partial(_filled, width, without))
    if value.shape == (width,):
        return constant(value)
    return made(lambda numbers: np.broadcast_to(np.ravel(numbers), width), value)


def norm(name: str, value: Value) -> Named:
    """A LayerNorm's parameters."""
    width = value.sizes[-1]
    yield f"{name}.weight", vector(value.arg(1), width, 1.0)
    yield f"{name}.bias", vector(value.arg(2), width, 0.0)


def linear(name: str, value: Value) -> Named:
    """A Linear's parameters."""
    weight = value.inputs[1]
    yield f"{name}.weight", constant(weight) if value.attributes["transposed"] else made(np.transpose, weight)
    yield f"{name}.bias", vector(value.arg(2), value.sizes[-1], 0.0)


def mixed(name: str, value: Value, columns: Array) -> Named:
    """The parameters of the Linear after the heads, its input channels in our heads' order."""
    if np.array_equal(columns, np.arange(len(columns))):
        yield from linear(name, value)
        return
    order, turned = np.argsort(columns), value.attributes["transposed"]
    yield f"{name}.weight", made(lambda weight: (weight if turned else weight.T)[:, order], value.inputs[1])
    yield f"{name}.bias", vector(value.arg(2), len(columns), 0.0)


def projected(name: str, parts: Sequence[tuple[Projection, float]]) -> Named:
    """The parameters of one Linear from rows of others, one part after the other, each times its factor."""
    linears = [part.linear for part, _ in parts]
    picked = [(part.rows.reshape(-1), factor) for part, factor in parts]
    whole = np.array_equal(np.concatenate([rows for rows, _ in picked]), np.arange(linears[0].sizes[-1]))
    if whole and len(set(linears)) == 1 and all(factor == 1 for _, factor in picked):
        yield from linear(name, linears[0])
        return
    turned = [value.attributes["transposed"] for value in linears]
    biases = [value.arg(2) for value in linears]

    def pack_weights(*weights: Array) -> Array:
        outputs_first = [weight if out else weight.T for weight, out in zip(weights, turned, strict=True)]
        return np.concatenate([weight[rows] * np.float32(factor) for weight, (rows, factor) in zip(outputs_first, picked, strict=True)])

    def pack_biases(*given: Array) -> Array:
        left = iter(given)
        parts = []
        for value, bias, (rows, factor) in zip(linears, biases, picked, strict=True):
            numbers = np.zeros(value.sizes[-1]) if bias is None else np.ravel(next(left))
            parts.append(numbers[rows] * np.float32(factor))
        return np.concatenate(parts)

    yield f"{name}.weight", made(pack_weights, *(value.inputs[1] for value in linears))
    yield f"{name}.bias", made(pack_biases, *(bias for bias in biases if bias is not None))


def averaged(name: str, heads: Sequence[Value]) -> Named:
    """Two heads whose mean is put out, as one that reads both tokens side by side."""
    parts = [dict(linear(name, head)) for head in heads]
    for parameter, repair in ((f"{name}.weight", repairs.average_heads), (f"{name}.bias", repairs.mean_of)):
        first, second = (part[parameter] for part in parts)
        yield parameter, Step((*first.sources, *second.sources), partial(_both, first, second, repair))


def _both(first: Step, second: Step, repair: Callable[[Tensor, Tensor], Tensor], *tensors: Tensor) -> Any:
    count = len(first.sources)
    return repair(first.repair(*tensors[:count]), second.repair(*tensors[count:]))


def _filled(width: int, number: float) -> Tensor:
    import torch

    return torch.full((width,), number)
