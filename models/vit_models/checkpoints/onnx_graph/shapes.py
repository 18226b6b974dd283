"""The shapes that operations give."""

from __future__ import annotations

import math

import numpy as np

from vit_models.checkpoints.onnx_graph import kernels
from vit_models.checkpoints.onnx_graph.kernels import ELEMENTWISE, MOVEMENTS, Array
from vit_models.checkpoints.onnx_graph.value import Shape, Value


def shape_of(value: Value) -> Shape | None:
    """The shape that an operation gives, None where it is not known; only the tail of a graph may have such."""
    shapes = [arg.shape if arg is not None else () for arg in value.args]
    if None in shapes or not shapes:
        return None
    known = [shape for shape in shapes if shape is not None]
    op, first = value.op, known[0]
    if op in ("Softmax", "LayerNorm", "Cast", "IsNaN"):
        return first
    if op == "Linear":
        return (*first[:-1], known[1][0 if value.attributes["transposed"] else 1])
    if op == "Gemm":
        return first[1 if value.attributes.get("transA") else 0], known[1][0 if value.attributes.get("transB") else 1]
    if op == "MatMul" and len(first) > 1 and len(known[1]) > 1:
        return (*np.broadcast_shapes(first[:-2], known[1][:-2]), first[-2], known[1][-1])
    if op == "Conv":
        return _conv_shape(value, first, known[1])
    if op == "Resize":
        return _resize_shape(value, first)
    if op in ELEMENTWISE or op == "Where":
        return np.broadcast_shapes(*known)
    if op in MOVEMENTS or op in ("Concat", "Pad", "ReduceMean", "ReduceSum"):
        return _moved_shape(value, known)
    return None


def _moved_shape(value: Value, shapes: list[Shape]) -> Shape | None:
    """By moving zeros, of one byte each."""
    inputs: list[Array | None] = []
    for arg, shape in zip(value.args, shapes, strict=True):
        index = (value.op in MOVEMENTS or value.op == "Pad") and arg is not value.args[0]
        if index and arg is not None and arg.number is None:
            return None
        zeros = np.zeros(kernels.check_size(*shape), np.int8) if not index and arg is not None else None
        inputs.append(arg.number if index and arg is not None else zeros)
    if value.op.startswith("Reduce") and len(value.args) > 1:
        inputs[1] = value.args[1].number if value.args[1] is not None else None
    return kernels.run(value.op, value.attributes, inputs)[value.place].shape


def _conv_shape(value: Value, image: Shape, weight: Shape) -> Shape | None:
    given = value.attributes
    spatial = len(weight) - 2
    strides, dilations, pads = (given.get(name, [fill] * (spatial * both)) for name, fill, both in CONV)
    if given.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or len(image) != spatial + 2:
        return None
    sizes = tuple(
        (image[2 + axis] + pads[axis] + pads[axis + spatial] - dilations[axis] * (weight[2 + axis] - 1) - 1) // strides[axis] + 1
        for axis in range(spatial)
    )
    return (image[0], weight[0], *sizes)


CONV = (("strides", 1, 1), ("dilations", 1, 1), ("pads", 0, 2))


def _resize_shape(value: Value, source: Shape) -> Shape | None:
    scales, sizes = value.arg(2), value.arg(3)
    if sizes is not None and sizes.number is not None and sizes.number.size == len(source):
        return tuple(int(size) for size in sizes.number)
    if scales is not None and scales.number is not None and scales.number.size == len(source):
        return tuple(math.floor(old * factor) for old, factor in zip(source, scales.number.tolist(), strict=True))
    return None
