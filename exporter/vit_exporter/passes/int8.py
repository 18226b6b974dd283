"""What the passes that quantise share: which products have weights, and a weight in int8 with its scales."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from vit_exporter.passes.matching import constant, sizes

LARGEST = 127  # -128 is left out, so that the range is symmetric


@dataclass(frozen=True)
class Product:
    """source @ weight, the weight (in, out) an initialiser that nothing else reads; `layer` is its name without ".weight"."""

    node: ir.Node
    source: ir.Value
    weight: ir.Value
    layer: str


def products(graph: ir.Graph, dtypes: Collection[ir.DataType] = (ir.DataType.FLOAT,)) -> Iterator[Product]:
    """Every product of a sequence by a weight of its own that is of one of these types."""
    for node in tuple(graph):
        if (node.domain, node.op_type) != ("", "MatMul"):
            continue
        source, weight = node.inputs
        tensor = constant(weight)
        if source is None or weight is None or tensor is None or source.shape is None or tensor.dtype not in dtypes:
            continue
        if len(sizes(tensor) or ()) == 2 and len(weight.uses()) == 1 and not weight.is_graph_output():
            yield Product(node, source, weight, (weight.name or "").removesuffix(".weight"))


def products_by_source(graph: ir.Graph) -> dict[str, list[Product]]:
    """The products, those together that read the same value, by its name."""
    found: dict[str, list[Product]] = {}
    for product in products(graph):
        found.setdefault(product.source.name or "", []).append(product)
    return found


def quantized_weight(graph: ir.Graph, product: Product) -> tuple[ir.Value, ir.Value]:
    """The product's weight as int8 (in, out) and float32 scales (out,), in the weight's place; computed when somebody reads them."""
    name, tensor = product.weight.name or "", product.weight.const_value
    assert tensor is not None  # products() saw it
    shape = ir.Shape(tensor.shape.numpy())
    del graph.initializers[name]
    stored = ir.LazyTensor(partial(_integers, tensor), dtype=ir.DataType.INT8, shape=shape, name=name)
    scales = ir.LazyTensor(partial(_scales, tensor), dtype=ir.DataType.FLOAT, shape=ir.Shape([shape[1]]), name=f"{name}_scale")
    made = []
    for lazy in (stored, scales):
        value = ir.Value(name=lazy.name, shape=lazy.shape, type=ir.TensorType(lazy.dtype), const_value=lazy)
        graph.register_initializer(value)
        made.append(value)
    return made[0], made[1]


def _scales(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(_scale(tensor))


def _integers(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    rounded = np.rint(tensor.numpy() / _scale(tensor))
    return ir.Tensor(np.clip(rounded, -LARGEST, LARGEST).astype(np.int8))


def _scale(tensor: ir.TensorProtocol) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """One for each output channel; 1 for a channel of zeros, or of numbers too small to divide."""
    scale = np.abs(tensor.numpy()).max(axis=0) / np.float32(LARGEST)
    return np.where(scale > 0, scale, 1).astype(np.float32)
