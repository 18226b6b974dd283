"""Store a weight the way its MatMul reads it, instead of transposing it at every start."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


class FoldWeightTransposes(ir.passes.InPlacePass):
    """Replace Transpose(weight), as `nn.Linear` leaves it in a trace, by the transposed weight under the same name.

    The numbers are moved when the file is written, one weight at a time. A weight that another node reads
    untransposed is left alone, and so is a graph output.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in tuple(model.graph):
            if node.op_type != "Transpose" or node.domain != "" or "perm" not in node.attributes:
                continue
            (weight,), (output,) = node.inputs, node.outputs
            if weight is None or not weight.is_initializer() or len(weight.uses()) > 1 or output.is_graph_output():
                continue
            perm = tuple(node.attributes["perm"].as_ints())
            tensor = weight.const_value
            assert tensor is not None  # an initialiser has one
            weight.const_value = transposed(tensor, perm)
            weight.shape = ir.Shape(weight.const_value.shape)
            output.replace_all_uses_with(weight)
            model.graph.remove(node, safe=True)
            modified = True
        return ir.passes.PassResult(model, modified)


def transposed(tensor: ir.TensorProtocol, perm: tuple[int, ...]) -> ir.LazyTensor:
    """The tensor with its axes permuted, moved only when somebody reads it."""
    sizes = tensor.shape.numpy()
    shape = ir.Shape([sizes[axis] for axis in perm])

    def evaluate() -> ir.TensorProtocol:
        return ir.Tensor(np.ascontiguousarray(tensor.numpy().transpose(perm)))

    return ir.LazyTensor(evaluate, dtype=tensor.dtype, shape=shape, name=tensor.name)
