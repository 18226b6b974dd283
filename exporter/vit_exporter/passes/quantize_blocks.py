"""Weights stored in four bits, for the smallest file."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vit_exporter.passes.building import Builder
from vit_exporter.passes.int8 import Product, products
from vit_exporter.passes.matching import refuse_functions, sizes

DOMAIN = "com.microsoft"
BLOCK = 32  # weights of one output channel that share a scale
ZERO = 8  # what the op takes for zero, of 0 to 15


class QuantizeBlocks(ir.passes.InPlacePass):
    """x @ weight becomes com.microsoft.MatMulNBits: four bits a weight, and a float32 scale for each 32 inputs of an output channel.

    The number of largest size in a block is kept exactly, as -8 of its scale. x stays as it is.
    Left alone: layers whose names are in `kept`, weights whose inputs 32 does not divide, products without a constant weight.
    Raises: ir.passes.PreconditionError if the model has local functions.
    """

    def __init__(self, kept: Collection[str] = ()) -> None:
        super().__init__()
        self.kept = frozenset(kept)

    def requires(self, model: ir.Model) -> None:
        refuse_functions(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for product in products(model.graph):
            tensor, name = product.weight.const_value, product.weight.name or ""
            rows, columns = sizes(tensor) or (0, 0)
            if product.layer in self.kept or not fits_blocks(product) or tensor is None:
                continue
            new = Builder(model.graph, product.node, product.node.outputs[0])
            del model.graph.initializers[name]
            stored = _parameter(model.graph, name, partial(_packed, tensor), ir.DataType.UINT8, (columns, rows // BLOCK, BLOCK // 2))
            scales = _parameter(model.graph, f"{name}_scale", partial(_scales, tensor), ir.DataType.FLOAT, (columns * rows // BLOCK,))
            attributes = {"K": rows, "N": columns, "bits": 4, "block_size": BLOCK}
            shape = tuple(product.node.outputs[0].shape or ())
            new.replace(product.node, new.node("MatMulNBits", [product.source, stored, scales], attributes, shape, domain=DOMAIN))
            modified = True
        if modified:
            model.graph.opset_imports[DOMAIN] = 1
        return ir.passes.PassResult(model, modified)


def fits_blocks(product: Product) -> bool:
    """Whether the weight's inputs make whole blocks."""
    return product.weight.shape is not None and product.weight.shape[0] % BLOCK == 0


def _parameter(graph: ir.Graph, name: str, compute: Any, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
    lazy = ir.LazyTensor(compute, dtype=dtype, shape=ir.Shape(shape), name=name)
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=lazy)
    graph.register_initializer(value)
    return value


def _blocks(tensor: ir.TensorProtocol) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The weight (out, blocks, 32), and what each block is divided by: 1 where its numbers are zeros, or too small to divide."""
    numbers = np.ascontiguousarray(tensor.numpy().T)
    numbers = numbers.reshape(len(numbers), -1, BLOCK)
    scales = np.take_along_axis(numbers, np.abs(numbers).argmax(axis=2, keepdims=True), axis=2)[..., 0] / np.float32(-ZERO)
    return numbers, np.where(scales != 0, scales, 1).astype(np.float32)


def _scales(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(_blocks(tensor)[1].reshape(-1))


def _packed(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Two to a byte, the lower half first."""
    numbers, scales = _blocks(tensor)
    found = np.clip(np.rint(numbers / scales[..., None]) + ZERO, 0, 2 * ZERO - 1).astype(np.uint8)
    return ir.Tensor(found[..., 0::2] | found[..., 1::2] << 4)
