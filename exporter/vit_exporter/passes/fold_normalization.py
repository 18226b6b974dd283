"""Give the network's first convolution the images' normalisation to do."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from vit_exporter.passes.building import Builder
from vit_exporter.passes.matching import Numbers, change, constant, refuse_functions, sizes

MIDDLE = 127.5


class FoldNormalization(ir.passes.InPlacePass):
    """conv((x * rescale - mean) / std) becomes conv'(x - 127.5), with factors in the weight and a constant in the bias: x is 0 to 255.

    Exact where the convolution pads nothing, as a patch embedding's does. Of pixels the subtraction is exact as well; without it large
    numbers of one sign would cancel in the products' sums, and cost a bit of precision. The new numbers are computed in float64 when the
    file is written, each rounded once. Left alone: images that something else reads too, other than for their shape; convolutions with
    padding or without a bias. `folded` says whether it was done: from then on the images must not be normalised before.
    Raises: ir.passes.PreconditionError if the model has local functions.
    """

    folded = False

    def __init__(self, rescale: float, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.factor = rescale / np.array(std, np.float64)
        self.shift = (np.array(mean, np.float64) - MIDDLE * rescale) / np.array(std, np.float64)

    def requires(self, model: ir.Model) -> None:
        refuse_functions(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        conv = _first_convolution(model.graph)
        if conv is None:
            return ir.passes.PassResult(model, modified=False)
        images, weight, bias = conv.inputs
        assert images is not None  # a convolution has them
        assert weight is not None  # as _first_convolution saw
        assert weight.const_value is not None
        assert bias is not None
        change(bias, partial(self._shifted, weight.const_value))
        change(weight, self._scaled)
        new = Builder(model.graph, conv, images)
        middle = new.constant("middle", np.array(MIDDLE, np.float32))
        conv.replace_input_with(0, new.node("Sub", [images, middle], None, tuple(images.shape or ())))
        self.folded = True
        return ir.passes.PassResult(model, modified=True)

    def _scaled(self, weight: Numbers) -> Numbers:
        return (weight.astype(np.float64) * self.factor[:, None, None]).astype(weight.dtype)

    def _shifted(self, weight: ir.TensorProtocol, bias: Numbers) -> Numbers:
        sums = np.einsum("dchw,c->d", weight.numpy().astype(np.float64), self.shift)
        return (bias.astype(np.float64) - sums).astype(bias.dtype)


def _first_convolution(graph: ir.Graph) -> ir.Node | None:
    """The convolution that reads the images, alone and without padding, if its parameters are its own."""
    readers = [use.node for use in graph.inputs[0].uses() if (use.node.domain, use.node.op_type) != ("", "Shape")]
    node = readers[0] if len(readers) == 1 else None
    if node is None or (node.domain, node.op_type) != ("", "Conv") or len(node.inputs) != 3:
        return None
    own = all(constant(value) is not None and value is not None and len(value.uses()) == 1 for value in node.inputs[1:])
    padded = any(node.attributes.get_ints("pads", ())) or node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    grouped = node.attributes.get_int("group", 1) != 1
    return node if own and not padded and not grouped and len(sizes(constant(node.inputs[1])) or ()) == 4 else None
