"""What Simplify promises, on graphs small enough to read, run by onnxruntime itself."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from vit_exporter.passes.simplify import Simplify, is_weight

MAIN = '<ir_version: 10, opset_import: ["": 18]> main'
HEAD = f"{MAIN} (float[batch, 6] x) => "
# A shape computed at run time where only the batch is free, a copy, a constant computed from constants, and a node nobody reads.
CLUTTER = f"""{HEAD}(float[batch, 2, 3] out) <int64[1] zero = {{0}}, int64[1] two = {{2}}, int64[1] three = {{3}}, float[1] half = {{0.5}}>
{{ shape = Shape(x)  rows = Gather(shape, zero)  target = Concat<axis = 0>(rows, two, three)
   copy = Identity(x)  cube = Reshape(copy, target)  one = Add(half, half)  out = Mul(cube, one)  unread = Neg(x) }}"""
TWICE = f"{HEAD}(float[batch, 6] out) {{ a = Exp(x)  b = Exp(x)  out = Add(a, b) }}"
LINEAR = f"""{MAIN} (float[batch, 6] x, float[4, 6] weight, float[4] bias) => (float[batch, 4] out)
{{ turned = Transpose<perm = [1, 0]>(weight)  product = MatMul(x, turned)  out = Add(product, bias) }}"""
# Slices with the bounds that torch writes where there is none, in front of one that cuts.
SLICES = f"""{HEAD}(float[batch, width] out) <int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] minus = {{-1}},
 int64[1] four = {{4}}, int64[1] six = {{6}}, int64[2] zeros = {{0, 0}}, int64[2] mixed = {{0, 1}}, int64[2] axes = {{0, 1}},
 int64[2] ones = {{1, 1}}, int64[2] steps = {{1, 2}}, int64[1] far = {{9223372036854775807}},
 int64[2] fars = {{9223372036854775807, 9223372036854775807}}, int64[2] nearer = {{9223372036854775807, 4}}>
{{ SLICE  out = Neg(y) }}"""
WHOLE = {
    "one axis": "y = Slice(x, zero, far, one, one)",
    "without steps": "y = Slice(x, zero, far, one)",
    "without axes": "y = Slice(x, zeros, fars)",
    "two axes": "y = Slice(x, zeros, fars, axes, ones)",
    "one behind the other": "a = Slice(x, zero, far, zero, one)  y = Slice(a, zero, far, one, one)",
    "of another node": "a = Exp(x)  y = Slice(a, zero, far, minus, one)",
}
CUT = {
    "from one on": "y = Slice(x, one, far, one, one)",
    "from the last on": "y = Slice(x, minus, far, one, one)",
    "up to four": "y = Slice(x, zero, four, one, one)",
    "up to the last": "y = Slice(x, zero, minus, one, one)",
    "in steps of two": "y = Slice(x, zero, far, one, two)",
    "one of two axes from one on": "y = Slice(x, mixed, fars, axes, ones)",
    "one of two axes up to four": "y = Slice(x, zeros, nearer, axes, ones)",
    "one of two axes in steps of two": "y = Slice(x, zeros, fars, axes, steps)",
    "from where it is computed": "s = Shape<start = 0, end = 1>(x)  a = Sub(s, one)  y = Slice(x, a, far, zero, one)",
}
WRONG = f"{MAIN} (float[batch, 6] x, float[4, 5] weight) => (float[batch, 5] out) {{ out = MatMul(x, weight) }}"


def run(model: ir.Model, rows: int) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["out"], {"x": np.arange(rows * 6, dtype=np.float32).reshape(rows, 6)})[0]


def ops(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def linear(text: str = LINEAR) -> ir.Model:
    """The graph with all inputs but the first as weights, under dotted names as a network's parameters have them."""
    model = ir.from_onnx_text(text)
    rng = np.random.default_rng(0)
    for value in list(model.graph.inputs)[1:]:
        model.graph.inputs.remove(value)
        value.name = f"head.{value.name}"
        assert value.shape is not None
        value.const_value = ir.tensor(rng.standard_normal(tuple(value.shape.numpy()), dtype=np.float32), name=value.name)
        model.graph.register_initializer(value)
    return model


def test_a_reshape_loses_the_computation_of_its_shape_and_keeps_the_batch_free():
    model = ir.from_onnx_text(CLUTTER)
    result = Simplify()(model)
    assert result.modified
    assert ops(result.model) == {"Reshape": 1, "Mul": 1}
    shape = result.model.graph.outputs[0].shape
    assert shape is not None
    assert [str(size) for size in shape] == ["batch", "2", "3"]
    for rows in (1, 2, 5):
        np.testing.assert_array_equal(run(result.model, rows), run(model, rows))  # nothing is computed anew, so no tolerance


def test_a_node_that_computes_what_another_computes_is_dropped():
    model = ir.from_onnx_text(TWICE)
    simple = Simplify()(model).model
    assert ops(simple) == {"Exp": 1, "Add": 1}
    np.testing.assert_array_equal(run(simple, 2), run(model, 2))  # the same operations, so no tolerance


def test_a_linear_layer_stays_matmul_and_add_and_its_weight_is_not_folded():
    model = linear()
    result = Simplify()(model)
    assert not result.modified
    assert ops(result.model) == {"Transpose": 1, "MatMul": 1, "Add": 1}
    assert set(result.model.graph.initializers) == {"head.weight", "head.bias"}
    np.testing.assert_array_equal(run(result.model, 3), run(model, 3))  # the same operations, so no tolerance


def test_the_given_model_is_left_as_it_was():
    model = linear()
    before, numbers = ir.to_proto(model).SerializeToString(deterministic=True), run(model, 3)
    Simplify()(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    np.testing.assert_array_equal(run(model, 3), numbers)


@pytest.mark.parametrize("nodes", WHOLE.values(), ids=WHOLE)
def test_a_slice_that_takes_everything_is_dropped(nodes):
    model = ir.from_onnx_text(SLICES.replace("SLICE", nodes))
    result = Simplify()(model)
    assert result.modified
    assert ops(result.model) == Counter(Neg=1, Exp=nodes.count("Exp"))
    np.testing.assert_array_equal(run(result.model, 3), run(model, 3))  # numbers are only moved


@pytest.mark.parametrize("nodes", CUT.values(), ids=CUT)
def test_a_slice_that_leaves_something_out_stays(nodes):
    model = ir.from_onnx_text(SLICES.replace("SLICE", nodes))
    simple = Simplify()(model).model
    assert ops(simple)["Slice"] == 1
    np.testing.assert_array_equal(run(simple, 3), run(model, 3))  # numbers are only moved


def test_a_whole_slice_in_front_of_one_that_cuts_is_dropped_alone():
    model = ir.from_onnx_text(SLICES.replace("SLICE", "a = Slice(x, zero, far, zero, one)  y = Slice(a, zero, four, one, one)"))
    simple = Simplify()(model).model
    assert ops(simple) == {"Slice": 1, "Neg": 1}
    assert simple.graph[0].inputs[0] is simple.graph.inputs[0]
    np.testing.assert_array_equal(run(simple, 3), run(model, 3))  # numbers are only moved


def test_a_whole_slice_that_leaves_the_graph_stays():
    model = ir.from_onnx_text(SLICES.replace("SLICE  out = Neg(y)", "out = Slice(x, zero, far, one, one)"))
    simple = Simplify()(model).model
    assert ops(simple) == {"Slice": 1}
    np.testing.assert_array_equal(run(simple, 3), run(model, 3))  # numbers are only moved


@pytest.mark.unit
def test_no_weight_is_read():
    """So the time and memory that it takes do not grow with the network."""

    def read() -> ir.TensorProtocol:
        raise AssertionError("a weight was read")

    model = linear()
    weight = model.graph.initializers["head.weight"]
    weight.const_value = ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=ir.Shape([4, 6]), name="head.weight")
    simple = Simplify()(model).model
    assert simple.graph.initializers["head.weight"].const_value is weight.const_value


@pytest.mark.unit
def test_equal_weights_stay_two():
    """Which of a network's parameters happen to be equal is no property of its graph."""
    text = (
        f"{MAIN} (float[batch, 6] x, float[6] scale, float[6] shift) => (float[batch, 6] out) {{ a = Mul(x, scale)  out = Add(a, shift) }}"
    )
    model = linear(text)
    for value in model.graph.initializers.values():
        value.const_value = ir.tensor(np.ones(6, np.float32), name=value.name)
    assert set(Simplify()(model).model.graph.initializers) == {"head.scale", "head.shift"}


@pytest.mark.unit
def test_a_graph_whose_shapes_do_not_fit_is_refused():
    with pytest.raises((onnx.checker.ValidationError, onnx.shape_inference.InferenceError), match="MatMul"):
        Simplify()(linear(WRONG))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "weight"),
    [("head.weight", True), ("blocks.0.attn.qkv.bias", True), ("blocks.0.attn/Constant_2", False), ("val_3", False), (None, False)],
)
def test_a_weight_is_told_from_the_graphs_own_constants_by_its_dotted_name(name, weight):
    assert is_weight(ir.Value(name=name)) is weight
