"""Linear layers in 8 bits with scales from images, as TensorRT reads them: QuantizeLinear and DequantizeLinear in front of a product."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vit_exporter.passes.building import Builder
from vit_exporter.passes.int8 import LARGEST, Product, products
from vit_exporter.passes.matching import refuse_functions

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

Numbers = npt.NDArray[Any]


@dataclass(frozen=True)
class Kind:
    """A type of 8 bits: its largest number, and whether it has whole numbers only."""

    dtype: ir.DataType
    numbers: np.dtype[Any]
    largest: float
    whole: bool


KINDS = {
    "int8": Kind(ir.DataType.INT8, np.dtype(np.int8), LARGEST, True),
    "fp8": Kind(ir.DataType.FLOAT8E4M3FN, np.dtype(ml_dtypes.float8_e4m3fn), 448, False),
}


class QuantizeLinears(ir.passes.InPlacePass):
    """x @ weight becomes DequantizeLinear(QuantizeLinear(x)) @ DequantizeLinear(weight), both in int8 or float8e4m3fn, symmetric.

    x has one scale, from `largest`, its largest magnitude by the layer's name; layers that read the same x share its two nodes. The weight
    is stored in 8 bits with a scale for each output channel. Scales have the type that the layer is computed in, float16 or float32, and
    are rounded up to it, so that nothing is cut off. Nothing else is quantised: no sum, norm, softmax, product of attention, no patch
    embedding and no head. Left alone: layers whose names are in `kept`, or that `largest` does not know.
    Raises: ir.passes.PreconditionError if the model has local functions.
    """

    def __init__(self, kind: str, largest: Mapping[str, float], kept: Collection[str] = ()) -> None:
        super().__init__()
        self.kind, self.largest, self.kept = KINDS[kind], largest, frozenset(kept)

    def requires(self, model: ir.Model) -> None:
        refuse_functions(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        restored = dict[ir.Value, ir.Value]()
        for product in tuple(products(model.graph, FLOATS)):
            if product.layer in self.kept or product.layer not in self.largest:
                continue
            source, new = product.source, Builder(model.graph, product.node, product.source)
            if source not in restored:
                restored[source] = self._through(new, source, product.layer)
            product.node.replace_input_with(0, restored[source])
            product.node.replace_input_with(1, self._weight(new, product))
        return ir.passes.PassResult(model, modified=bool(restored))

    def _through(self, new: Builder, source: ir.Value, layer: str) -> ir.Value:
        """What is left of the layer's input after 8 bits."""
        largest, shape = self.largest[layer], tuple(source.shape or ())
        scale = new.constant(f"{layer}.input_scale", scale_of(np.array(largest), source, self.kind))
        zero = new.constant(f"{self.kind.dtype.name.lower()}/0", np.zeros((), self.kind.numbers))
        stored = new.node("QuantizeLinear", [source, scale, zero], None, shape)
        stored.type = ir.TensorType(self.kind.dtype)
        return new.node("DequantizeLinear", [stored, scale, zero], None, shape)

    def _weight(self, new: Builder, product: Product) -> ir.Value:
        """The weight out of 8 bits; they and the scales are computed when somebody reads them."""
        old, tensor, kind = product.weight, product.weight.const_value, self.kind
        assert tensor is not None  # products() saw it
        assert tensor.dtype is not None
        shape, name = ir.Shape(tensor.shape.numpy()), old.name or ""
        del new.graph.initializers[name]
        stored = ir.LazyTensor(partial(_stored, tensor, old, kind), dtype=kind.dtype, shape=shape, name=name)
        scales = ir.LazyTensor(partial(_scales, tensor, old, kind), dtype=tensor.dtype, shape=ir.Shape([shape[1]]), name=f"{name}_scale")
        made = []
        for lazy in (stored, scales):
            value = ir.Value(name=lazy.name, shape=lazy.shape, type=ir.TensorType(lazy.dtype), const_value=lazy)
            new.graph.register_initializer(value)
            made.append(value)
        return new.node("DequantizeLinear", made, {"axis": 1}, tuple(shape))


def scale_of(largest: Numbers, like: ir.Value, kind: Kind) -> Numbers:
    """largest / kind.largest in the type of `like`, rounded up; 1 where there is nothing but zeros."""
    assert like.dtype is not None  # its shape and type are known
    exact = np.where(largest > 0, largest, kind.largest).astype(np.float32) / np.float32(kind.largest)
    rounded = exact.astype(like.dtype.numpy())
    up = np.nextafter(rounded, np.array(np.inf, rounded.dtype))
    return np.asarray(np.where(rounded.astype(np.float32) < exact, up, rounded))


def _scale(tensor: ir.TensorProtocol, like: ir.Value, kind: Kind) -> Numbers:
    return scale_of(np.abs(tensor.numpy().astype(np.float32)).max(axis=0), like, kind)


def _scales(tensor: ir.TensorProtocol, like: ir.Value, kind: Kind) -> ir.TensorProtocol:
    return ir.Tensor(_scale(tensor, like, kind))


def _stored(tensor: ir.TensorProtocol, like: ir.Value, kind: Kind) -> ir.TensorProtocol:
    exact = tensor.numpy().astype(np.float32) / _scale(tensor, like, kind).astype(np.float32)
    clipped = np.clip(np.rint(exact) if kind.whole else exact, -kind.largest, kind.largest)
    return ir.Tensor(clipped.astype(kind.numbers), dtype=kind.dtype)
