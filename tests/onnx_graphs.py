"""Small graphs: those that TensorRT takes and those that it does not, from `x` (batch, 16, 32) to `y`, and graphs in words."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.helper import make_node as node

FLOAT, HALF, INT8, UINT8, INT32 = (
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32
)  # fmt: skip
FP8 = TensorProto.FLOAT8E4M3FN
WEIGHT = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)


def tensor(name: str, values: Any, kind: int = FLOAT) -> TensorProto:
    """A weight; kinds that numpy has not are given as plain numbers."""
    array = np.asarray(values)
    return helper.make_tensor(name, kind, array.shape, array.ravel())


def graph(
    nodes: Sequence[NodeProto],
    weights: Sequence[TensorProto] = (),
    kind: int = FLOAT,
    opset: int = 20,
    domains: Sequence[str] = (),
    sizes: Sequence[int | str] = ("batch", 16, 32),
) -> ModelProto:
    """A model of these nodes whose input and output have this type."""
    made = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, sizes)], [helper.make_tensor_value_info("y", kind, None)], weights
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def product(kind: int = FLOAT) -> ModelProto:
    """x @ w."""
    return graph([node("MatMul", ["x", "w"], ["y"], name="product")], [tensor("w", WEIGHT, kind)], kind)


def quantized(kind: int = INT8, zero: int = 0, weight_kind: int = INT8, weight_zero: int = 0, kept: bool = True) -> ModelProto:
    """Both sides of a product through QuantizeLinear and DequantizeLinear; zero points are left out where they are not `kept`."""
    points = (["z"], ["zw"]) if kept else ([], [])
    nodes = [
        node("QuantizeLinear", ["x", "s", *points[0]], ["xq"], name="quantize"),
        node("DequantizeLinear", ["xq", "s", *points[0]], ["xd"], name="dequantize"),
        node("DequantizeLinear", ["wq", "sw", *points[1]], ["wd"], name="weights"),
        node("MatMul", ["xd", "wd"], ["y"], name="product"),
    ]
    whole = np.clip(WEIGHT * 20, -127, 127).astype(int) + (128 if weight_kind == UINT8 else 0)
    weights = [tensor("s", np.float32(0.1)), tensor("wq", whole, weight_kind), tensor("sw", np.float32(0.05))]
    return graph(nodes, [*weights, *([tensor("z", zero, kind), tensor("zw", weight_zero, weight_kind)] if kept else [])])


def quantized_bias() -> ModelProto:
    """x plus a bias in INT32."""
    weights = [tensor("b", np.arange(32), INT32), tensor("s", np.float32(0.1))]
    return graph([node("DequantizeLinear", ["b", "s"], ["bd"], name="bias"), node("Add", ["x", "bd"], ["y"])], weights)


def attention(kind: int) -> ModelProto:
    """The op of opset 23, two heads of 16; its type is not in the file for any value but the input."""
    nodes = [
        node("MatMul", ["x", "w"], ["q"]),
        node("MatMul", ["x", "v"], ["k"]),
        node("Attention", ["q", "k", "x"], ["y"], name="attention", q_num_heads=2, kv_num_heads=2),
    ]
    return graph(nodes, [tensor("w", WEIGHT, kind), tensor("v", WEIGHT.T, kind)], kind, opset=23)


def layer_norm(kind: int, square: str = "Pow") -> ModelProto:
    """In pieces, as exporters wrote it before opset 17."""
    last = ["c", "two"] if square == "Pow" else ["c", "c"]
    nodes = [
        node("ReduceMean", ["x"], ["m"], name="mean", axes=[-1]),
        node("Sub", ["x", "m"], ["c"]),
        node(square, last, ["p"]),
        node("ReduceMean", ["p"], ["v"], name="variance", axes=[-1]),
        node("Sqrt", ["v"], ["d"]),
        node("Div", ["c", "d"], ["y"]),
    ]
    return graph(nodes, [tensor("two", np.float32(2), kind)], kind, opset=17)


def constants(model: ModelProto) -> ModelProto:
    """The same with its weights in Constant nodes."""
    made = [node("Constant", [], [weight.name], value=weight) for weight in model.graph.initializer]
    nodes = [*made, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def branches(inner: NodeProto) -> ModelProto:
    """A node inside of an If."""
    value = helper.make_tensor_value_info("t", FLOAT, None)
    then = helper.make_graph([inner], "then", [], [value])
    other = helper.make_graph([node("Identity", ["x"], ["t"])], "other", [], [value])
    truth = numpy_helper.from_array(np.array(True), "c")
    return graph([node("If", ["c"], ["y"], name="if", then_branch=then, else_branch=other)], [truth], domains=["com.microsoft"])


def stored(model: ir.Model, name: str) -> np.ndarray:
    """The values of an initializer."""
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def producer(value: ir.Value | None) -> ir.Node:
    """The node that computes the value."""
    assert value is not None
    node = value.producer()
    assert node is not None
    return node


def in_words(shape: str, body: str, **weights: np.ndarray) -> ir.Model:
    """x float of that shape through nodes in ONNX's text form, to out of the same shape, every value typed; weights by name."""
    declared = "".join(f", float[{','.join(map(str, numbers.shape))}] {name}" for name, numbers in weights.items())
    text = f'<ir_version: 10, opset_import: ["": 20]> main (float[{shape}] x{declared}) => (float[{shape}] out) {{ {body} }}'
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text), strict_mode=True, data_prop=True))
    for value in list(model.graph.inputs)[1:]:
        assert value.name is not None
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(weights[str(value.name)], name=value.name)
        model.graph.register_initializer(value)
    return model
