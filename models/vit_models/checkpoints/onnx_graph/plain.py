"""The plain forms of what exporters write in pieces: Linear and LayerNorm."""

from __future__ import annotations

from typing import Any

from vit_models.checkpoints.onnx_graph.value import Value, is_vector

Made = tuple[str, tuple[Value | None, ...], dict[str, Any]]


def plain_form(value: Value) -> Made | Value | None:
    """The plainer form of an operation on what depends on the image, or None where it has none."""
    if value.op == "MatMul" and _is_constant(value.args[1], 2):
        return "Linear", (*value.args, None), {"transposed": False}
    if value.op == "Gemm" and _is_constant(value.args[1], 2):
        given, factors = value.attributes, {"alpha", "beta"} if value.arg(2) is not None else {"alpha"}
        if not given.get("transA") and all(given.get(factor, 1.0) == 1.0 for factor in factors):
            return "Linear", (value.args[0], value.args[1], value.arg(2)), {"transposed": bool(value.attributes.get("transB", 0))}
    if value.op == "LayerNormalization" and is_last(value.attributes.get("axis", -1), value.args[0]):
        return "LayerNorm", (value.args[0], value.args[1], value.arg(2)), {"eps": float(value.attributes.get("epsilon", 1e-5))}
    if value.op in ("Div", "Mul") and (found := _normalised(value)):
        return found
    if value.op == "Where" and value.inputs[0].op == "IsNaN":  # a softmax over nothing, which an attention without a mask never has
        return value.inputs[2]
    if value.op in ("Mul", "Add"):
        return _scaled_or_shifted(value)
    return None


def _scaled_or_shifted(value: Value) -> Made | None:
    for x, constant in (value.inputs, value.inputs[::-1]):
        if x.op not in ("Linear", "LayerNorm") or not constant.constant or x.shape is None or not is_vector(constant, x.shape[-1]):
            continue
        start, weight, bias = x.args
        if value.op == "Add" and bias is None and (x.op == "Linear" or weight is not None):
            return x.op, (start, weight, constant), dict(x.attributes)
        if value.op == "Mul" and x.op == "LayerNorm" and weight is None and bias is None:
            return x.op, (start, constant, None), dict(x.attributes)
    return None


def _normalised(value: Value) -> Made | None:
    """(x - mean) / sqrt(variance + eps), by division or by multiplication with the reciprocal."""
    pairs = [value.inputs] if value.op == "Div" else [value.inputs, value.inputs[::-1]]
    for centred, spread in pairs:
        if value.op == "Mul":
            spread = _inverted(spread) or spread
        elif spread.op != "Sqrt":
            continue
        if centred.op != "Sub" or spread.op != "Sqrt" or spread.inputs[0].op != "Add":
            continue
        x, mean = centred.inputs
        for variance, eps in (spread.inputs[0].inputs, spread.inputs[0].inputs[::-1]):
            squares = variance.inputs[0] if _is_mean(variance) else None
            if squares is None or eps.scalar is None or not (_is_mean(mean) and mean.inputs[0] is x):
                continue
            base, power = squares.inputs if len(squares.inputs) == 2 else (None, None)
            if base is centred and (
                (squares.op == "Pow" and power is not None and power.scalar == 2) or (squares.op == "Mul" and power is centred)
            ):
                return "LayerNorm", (x, None, None), {"eps": eps.scalar}
    return None


def _inverted(value: Value) -> Value | None:
    """What `value` is one over."""
    if value.op == "Reciprocal":
        return value.inputs[0]
    return value.inputs[1] if value.op == "Div" and value.inputs[0].scalar == 1 else None


def _is_mean(value: Value) -> bool:
    """Whether it is the mean over the last axis, kept."""
    axes = value.attributes.get("axes")
    if (given := value.arg(1)) is not None and given.number is not None:
        axes = given.number.tolist()
    kept = value.attributes.get("keepdims", 1)
    return value.op == "ReduceMean" and bool(kept) and axes is not None and len(axes) == 1 and is_last(axes[0], value.inputs[0])


def is_last(axis: int, value: Value | None) -> bool:
    return axis == -1 or (value is not None and value.shape is not None and axis == len(value.shape) - 1)


def _is_constant(value: Value | None, rank: int) -> bool:
    return value is not None and value.constant and value.shape is not None and len(value.shape) == rank
