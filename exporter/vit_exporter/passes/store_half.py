"""Weights stored in 16 bits."""

from __future__ import annotations

from functools import partial

import ml_dtypes
import numpy as np
import onnx_ir as ir

from vit_exporter.passes.building import Builder
from vit_exporter.passes.matching import constant, refuse_functions, sizes

LAYERS = {"MatMul", "Gemm", "Conv"}
KINDS = {"float16": (ir.DataType.FLOAT16, np.dtype(np.float16)), "bfloat16": (ir.DataType.BFLOAT16, np.dtype(ml_dtypes.bfloat16))}


class StoreHalf(ir.passes.InPlacePass):
    """A layer's weight becomes Cast(weight in float16 or bfloat16), half the bytes; biases, norms and tables stay in float32.

    Engines widen it when they load the file, or compute in it where they can. Numbers beyond float16's range are kept at its ends.
    Raises: ir.passes.PreconditionError if the model has local functions.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def requires(self, model: ir.Model) -> None:
        refuse_functions(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        dtype, numbers = KINDS[self.kind]
        modified = False
        for node in tuple(model.graph):
            weight = node.inputs[1] if node.op_type in LAYERS and node.domain == "" else None
            tensor = constant(weight)
            if weight is None or tensor is None or tensor.dtype != ir.DataType.FLOAT or len(sizes(tensor) or ()) < 2:
                continue
            users = tuple(weight.uses())
            readers = {user for user, _ in users}
            first = next(each for each in model.graph if each in readers)
            narrowed = partial(_narrowed, tensor, numbers, dtype)
            weight.const_value = ir.LazyTensor(narrowed, dtype=dtype, shape=ir.Shape(tensor.shape.numpy()), name=weight.name)
            like = ir.Value(type=ir.TensorType(ir.DataType.FLOAT))
            widened = Builder(model.graph, first, like).node("Cast", [weight], {"to": int(ir.DataType.FLOAT)}, tuple(weight.shape or ()))
            weight.type = ir.TensorType(dtype)
            for user, position in users:
                user.replace_input_with(position, widened)
            modified = True
        return ir.passes.PassResult(model, modified)


def _narrowed(tensor: ir.TensorProtocol, numbers: np.dtype[np.generic], dtype: ir.DataType) -> ir.TensorProtocol:
    values = tensor.numpy()
    if dtype == ir.DataType.FLOAT16:
        limit = np.finfo(np.float16).max
        values = np.clip(values, -limit, limit)
    return ir.Tensor(values.astype(numbers), dtype=dtype)
