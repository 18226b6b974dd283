"""What QuantizeDynamic promises, on graphs small enough to read, run by onnxruntime itself, and on a network."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from vit_exporter.passes.quantize_dynamic import QuantizeDynamic
from vit_runtime.accuracy import cosines


def graph(nodes: str, out: str = "float[batch, 5, 6]") -> str:
    """A graph of an input x, of 5 tokens of 8 channels, and weights."""
    return f"""<ir_version: 10, opset_import: ["": 18]> main (float[batch, 5, 8] x, float[8, 6] w, float[6] b, float[6, 4] w2,
 float[8, 6] v, float[6, 6] u, float[1, 8, 6] w3) => ({out} out)
<int64[1] one = {{1}}, double[8, 2] d = {{1, 2, 3, 4, 5, 6, 7, 8, 8, 7, 6, 5, 4, 3, 2, 1}}>
{{ {nodes} }}"""


WEIGHTS = "w b w2 v u w3"
ONE = graph("out = MatMul(x, w)  same = Identity(x)").replace("6] out)", "6] out, float[batch, 5, 8] same)")  # what x was
TWO = graph("p = MatMul(x, w)  l = Add(p, b)  r = Relu(l)  out = MatMul(r, w2)", "float[batch, 5, 4]")
THREE = graph("p = MatMul(x, w)  q = MatMul(x, v)  s = Add(p, q)  r = MatMul(s, u)  out = Relu(r)")
LEFT = {
    "a product of what is computed": graph("t = Transpose<perm = [0, 2, 1]>(x)  out = MatMul(x, t)", "float[batch, 5, 5]"),
    "a weight that is computed": graph("n = Neg(w)  out = MatMul(x, n)"),
    "a weight of three axes": graph("out = MatMul(x, w3)"),
    "a weight in front": graph("t = Transpose<perm = [0, 2, 1]>(x)  n = Transpose(w)  out = MatMul(n, t)", "float[batch, 6, 5]"),
    "a weight that two products read": graph("y = MatMul(x, w)  n = Neg(x)  z = MatMul(n, w)  out = Sub(y, z)"),
    "a weight that something else reads": graph("y = MatMul(x, w)  m = ReduceMax(w)  out = Add(y, m)"),
    "another type": graph("y = Cast<to = 11>(x)  out = MatMul(y, d)", "double[batch, 5, 2]"),
    "another op": graph("y = ReduceMean<keepdims = 0>(x, one)  out = Gemm(y, w, b)", "float[batch, 6]"),
}


def quantized(x: np.ndarray) -> np.ndarray:
    """What is left of x after DynamicQuantizeLinear, by that op's definition: 256 steps from its least to its largest number, or zero."""
    low, high = min(x.min(), np.float32(0)), max(x.max(), np.float32(0))
    step = (high - low) / np.float32(255)
    zero_point = np.clip(np.rint(-low / step), 0, 255)
    return step * (np.clip(np.rint(x / step) + zero_point, 0, 255) - zero_point)


@pytest.mark.unit
def test_a_product_is_one_of_integers(weighted):
    model = weighted(TWO, WEIGHTS)
    assert QuantizeDynamic()(model).modified
    products = Counter(DynamicQuantizeLinear=2, MatMulInteger=2, Cast=2, Mul=4)
    assert Counter(node.op_type for node in model.graph) == products + Counter(Add=1, Relu=1)
    assert {node.domain for node in model.graph} == {""}
    assert [value.name for value in model.graph.outputs] == ["out"]


def test_the_result_is_that_of_the_rounded_numbers(weighted, run):
    model = weighted(ONE, WEIGHTS)
    QuantizeDynamic()(model)
    weight, scale = (model.graph.initializers[name].const_value.numpy() for name in ("w", "w_scale"))
    out, x = run(model)
    # Sums of 8 products of integers are exact; scales around 0.02 are multiplied in another order, each rounded to float32's 6e-8.
    np.testing.assert_allclose(out, quantized(x) @ (weight * scale), rtol=0, atol=1e-5)


def test_the_result_is_near_that_of_the_graph_before(weighted, run):
    model = weighted(TWO, WEIGHTS)
    before = run(model)
    QuantizeDynamic()(model)
    found = run(model)
    # Each number is off by half a step at most, a 250th of the largest in size; the errors of some dozen products cancel in part.
    assert cosines(before[0], found[0]).min() > 0.999
    assert not np.array_equal(found[0], before[0])


@pytest.mark.unit
def test_a_weight_is_stored_in_int8_with_a_scale_for_each_output_channel(weighted):
    model = weighted(TWO, WEIGHTS)
    before = {name: model.graph.initializers[name].const_value.numpy() for name in ("w", "w2")}
    QuantizeDynamic()(model)
    for name, numbers in before.items():
        stored, scale = (model.graph.initializers[each] for each in (name, f"{name}_scale"))
        assert (stored.dtype, stored.shape) == (ir.DataType.INT8, numbers.shape)
        assert (scale.dtype, scale.shape) == (ir.DataType.FLOAT, numbers.shape[1:])
        integers, steps = stored.const_value.numpy(), scale.const_value.numpy()
        assert integers.dtype == np.int8
        assert np.abs(integers).max(axis=0).tolist() == [127] * numbers.shape[1]  # the whole range, the same on both sides of zero
        assert np.all(np.abs(integers * steps - numbers) <= steps * 0.5001)  # half a step; float32 rounds the quotient by a millionth


def test_an_input_that_several_products_read_is_quantised_once(weighted, run):
    model = weighted(THREE, WEIGHTS)
    before = run(model)
    QuantizeDynamic()(model)
    assert Counter(node.op_type for node in model.graph)["DynamicQuantizeLinear"] == 2
    first, second, third = [node for node in model.graph if node.op_type == "MatMulInteger"]
    assert (first.inputs[0], first.inputs[2]) == (second.inputs[0], second.inputs[2])
    assert third.inputs[0] is not first.inputs[0]
    assert cosines(before[0], run(model)[0]).min() > 0.999  # as above


@pytest.mark.unit
def test_a_layer_that_is_kept_stays_in_floating_point(weighted):
    model = weighted(TWO, WEIGHTS)
    for name in ("w", "w2"):
        model.graph.initializers[name].name = f"blocks.0.{name}.weight"
    kept = model.graph.initializers["blocks.0.w2.weight"]
    assert QuantizeDynamic(["blocks.0.w2"])(model).modified
    assert Counter(node.op_type for node in model.graph)["MatMul"] == 1
    assert model.graph.outputs[0].producer().inputs[1] is kept
    assert kept.dtype == ir.DataType.FLOAT
    assert model.graph.initializers["blocks.0.w.weight"].dtype == ir.DataType.INT8


@pytest.mark.unit
def test_with_every_layer_kept_there_is_nothing_to_do(weighted, written):
    model = weighted(TWO, WEIGHTS)
    before = written(model)
    assert not QuantizeDynamic(["w", "w2"])(model).modified
    assert written(model) == before


@pytest.mark.parametrize("text", LEFT.values(), ids=LEFT)
def test_anything_else_is_left_alone(text, weighted, run, written):
    model = weighted(text, WEIGHTS)
    before, numbers = written(model), run(model)
    assert not QuantizeDynamic()(model).modified
    assert written(model) == before
    np.testing.assert_array_equal(run(model)[0], numbers[0])


@pytest.mark.unit
def test_a_weight_that_is_not_constant_is_left_alone(weighted):
    assert not QuantizeDynamic()(weighted(ONE, "b")).modified
    model = weighted(ONE, WEIGHTS)
    model.graph.inputs.append(model.graph.initializers["w"])  # a default that can be overridden
    assert not QuantizeDynamic()(model).modified


@pytest.mark.unit
def test_a_weight_that_leaves_the_graph_is_left_alone(weighted):
    model = weighted(ONE, WEIGHTS)
    model.graph.outputs.append(model.graph.initializers["w"])
    assert not QuantizeDynamic()(model).modified


@pytest.mark.unit
def test_an_input_of_unknown_shape_is_left_alone(weighted):
    model = weighted(ONE, WEIGHTS)
    model.graph.inputs[0].shape = None
    assert not QuantizeDynamic()(model).modified


@pytest.mark.unit
def test_a_second_run_changes_nothing(weighted, written):
    model = weighted(TWO, WEIGHTS)
    QuantizeDynamic()(model)
    before = written(model)
    assert not QuantizeDynamic()(model).modified
    assert written(model) == before


@pytest.mark.unit
def test_numbers_are_rounded_only_when_somebody_reads_them(weighted):
    def read() -> ir.TensorProtocol:
        raise AssertionError("a weight was read")

    model = weighted(ONE, WEIGHTS)
    value = model.graph.initializers["w"]
    value.const_value = ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=value.shape, name="w")
    assert QuantizeDynamic()(model).modified


@pytest.mark.unit
def test_a_model_with_local_functions_is_refused_and_told_to_inline_first(with_function):
    with pytest.raises(ir.passes.PreconditionError, match="InlinePass"):
        QuantizeDynamic()(with_function(TWO))


def test_of_a_network_the_linear_layers_of_its_blocks_are_quantised(tiny_model, run):
    model = ir.load(tiny_model)
    before = run(model)
    assert QuantizeDynamic()(model).modified
    layers = {f"blocks.{block}.{name}.weight" for block in range(2) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert {name for name, value in model.graph.initializers.items() if value.dtype == ir.DataType.INT8} == layers
    for found, expected in zip(run(model), before, strict=True):
        assert cosines(expected, found).min() > 0.9999  # each block adds little to its input, so errors of a 250th weigh little
