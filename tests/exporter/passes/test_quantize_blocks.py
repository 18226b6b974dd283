"""What QuantizeBlocks promises, on graphs small enough to read, run by onnxruntime itself, and on a network."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from onnx_graphs import stored

from vit_exporter.passes.quantize_blocks import QuantizeBlocks
from vit_runtime.accuracy import cosines


def graph(nodes: str, out: str = "float[batch, 5, 48]") -> str:
    """A graph of inputs x, of 64 channels, which are two blocks, and y, of 48, which no blocks of 32 make, and weights."""
    return f"""<ir_version: 10, opset_import: ["": 18]> main (float[batch, 5, 64] x, float[batch, 5, 48] y, float[64, 48] w, float[48] b,
 float[48, 3] w2) => ({out} out) {{ {nodes} }}"""


WEIGHTS = "w b w2"
TWO = graph("p = MatMul(x, w)  l = Add(p, b)  r = Relu(l)  out = MatMul(r, w2)", "float[batch, 5, 3]")
ONE = graph("out = MatMul(x, w)  same = Identity(x)").replace("48] out)", "48] out, float[batch, 5, 64] same)")  # what x was
LEFT = {
    "inputs that blocks do not divide": graph("out = MatMul(y, w2)", "float[batch, 5, 3]"),
    "a product of what is computed": graph("t = Transpose<perm = [0, 2, 1]>(x)  out = MatMul(x, t)", "float[batch, 5, 5]"),
    "a weight that is computed": graph("v = Neg(w)  out = MatMul(x, v)"),
    "a weight that two products read": graph("p = MatMul(x, w)  n = Neg(x)  q = MatMul(n, w)  out = Sub(p, q)"),
}


def restored(model: ir.Model, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A stored weight's numbers, and the step of each, both (in, out): two to a byte, the lower half first, 8 for zero."""
    packed, scales = (stored(model, each) for each in (name, f"{name}_scale"))
    columns, blocks, half = packed.shape
    integers = np.stack([packed & 15, packed >> 4], axis=-1).reshape(columns, blocks, 2 * half).astype(np.int8) - 8
    steps = np.broadcast_to(scales.reshape(columns, blocks, 1), integers.shape)
    return (integers * steps).reshape(columns, -1).T, steps.reshape(columns, -1).T


@pytest.mark.unit
def test_a_product_is_one_of_a_weight_in_four_bits(weighted):
    model = weighted(TWO, WEIGHTS)
    assert QuantizeBlocks()(model).modified
    assert Counter(node.op_type for node in model.graph) == Counter(MatMulNBits=1, Add=1, Relu=1, MatMul=1)
    (product,) = [node for node in model.graph if node.op_type == "MatMulNBits"]
    assert (product.domain, model.graph.opset_imports["com.microsoft"]) == ("com.microsoft", 1)
    assert {name: product.attributes[name].as_int() for name in ("K", "N", "bits", "block_size")} == {
        "K": 64,
        "N": 48,
        "bits": 4,
        "block_size": 32,
    }
    weight, scales = (model.graph.initializers[name] for name in ("w", "w_scale"))
    assert (weight.dtype, weight.shape) == (ir.DataType.UINT8, (48, 2, 16))
    assert (scales.dtype, scales.shape) == (ir.DataType.FLOAT, (96,))
    for value in (weight, scales):
        numbers = value.const_value.numpy()
        assert (numbers.dtype, numbers.shape) == (value.dtype.numpy(), value.shape)


@pytest.mark.unit
def test_a_weight_is_kept_to_half_a_step_and_the_largest_of_a_block_exactly(weighted):
    model = weighted(ONE, WEIGHTS)
    numbers = model.graph.initializers["w"].const_value.numpy()
    QuantizeBlocks()(model)
    found, steps = restored(model, "w")
    errors, quotients = np.abs(found - numbers), numbers / steps
    assert np.all(errors[quotients <= 7] <= np.abs(steps)[quotients <= 7] * 0.5001)  # float32 rounds the quotient by a millionth
    assert np.all(errors <= np.abs(steps) * 1.0001)  # what is nearly as large on the other side of zero than the largest
    for block in range(2):
        rows = slice(32 * block, 32 * block + 32)
        largest = np.abs(numbers[rows]).argmax(axis=0)
        columns = np.arange(48)
        np.testing.assert_array_equal(found[rows][largest, columns], numbers[rows][largest, columns])
        np.testing.assert_array_equal(quotients[rows][largest, columns], -8)


def test_the_result_is_that_of_the_rounded_weight(weighted, run):
    model = weighted(ONE, WEIGHTS)
    QuantizeBlocks()(model)
    out, x = run(model)
    # Sums of 64 products around 1, added in another order, each rounded to float32's 6e-8.
    np.testing.assert_allclose(out, x @ restored(model, "w")[0], rtol=0, atol=5e-5)


def test_the_result_is_near_that_of_the_graph_before(weighted, run):
    model = weighted(TWO, WEIGHTS)
    before = run(model)
    QuantizeBlocks()(model)
    # Errors of up to half a step, spread evenly, are a tenth of such weights in mean square root; a tenth aside is a cosine of 0.995.
    assert cosines(before[0], run(model)[0]).min() > 0.98


@pytest.mark.unit
@pytest.mark.parametrize("numbers", [[0.0, 0.0], [1e-45, -1e-45]], ids=["zeros", "the smallest numbers there are"])
def test_a_block_too_small_to_divide_becomes_zero(numbers, weighted):
    model = weighted(ONE, WEIGHTS)
    weight = model.graph.initializers["w"]
    changed = weight.const_value.numpy().copy()
    changed[32:, 1] = np.resize(np.array(numbers, np.float32), 32)
    weight.const_value = ir.tensor(changed, name="w")
    QuantizeBlocks()(model)
    found, steps = restored(model, "w")
    assert set(steps[32:, 1]) == {1}
    assert not found[32:, 1].any()
    assert np.all(np.abs(found - changed) <= np.abs(steps) * 1.0001)  # as above


@pytest.mark.unit
def test_a_layer_that_is_kept_stays_in_floating_point(weighted, written):
    model = weighted(TWO, WEIGHTS)
    model.graph.initializers["w"].name = "blocks.0.mlp.fc1.weight"
    before = written(model)
    assert not QuantizeBlocks(["blocks.0.mlp.fc1"])(model).modified
    assert written(model) == before


@pytest.mark.parametrize("text", LEFT.values(), ids=LEFT)
def test_anything_else_is_left_alone(text, weighted, run, written):
    model = weighted(text, WEIGHTS)
    before, numbers = written(model), run(model)
    assert not QuantizeBlocks()(model).modified
    assert written(model) == before
    np.testing.assert_array_equal(run(model)[0], numbers[0])


@pytest.mark.unit
def test_a_weight_that_is_not_constant_is_left_alone(weighted):
    assert not QuantizeBlocks()(weighted(ONE, "b")).modified


@pytest.mark.unit
def test_an_output_of_the_graph_keeps_its_name(weighted):
    model = weighted(ONE, WEIGHTS)
    QuantizeBlocks()(model)
    assert [value.name for value in model.graph.outputs] == ["out", "same"]
    assert model.graph.outputs[0].producer().op_type == "MatMulNBits"


@pytest.mark.unit
def test_a_second_run_changes_nothing(weighted, written):
    model = weighted(TWO, WEIGHTS)
    QuantizeBlocks()(model)
    before = written(model)
    assert not QuantizeBlocks()(model).modified
    assert written(model) == before


@pytest.mark.unit
def test_numbers_are_rounded_only_when_somebody_reads_them(weighted):
    def read() -> ir.TensorProtocol:
        raise AssertionError("a weight was read")

    model = weighted(ONE, WEIGHTS)
    value = model.graph.initializers["w"]
    value.const_value = ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=value.shape, name="w")
    assert QuantizeBlocks()(model).modified


@pytest.mark.unit
def test_a_model_with_local_functions_is_refused_and_told_to_inline_first(with_function):
    with pytest.raises(ir.passes.PreconditionError, match="InlinePass"):
        QuantizeBlocks()(with_function(TWO))


def test_of_a_network_the_linear_layers_of_its_blocks_are_quantised(tiny_model, run):
    model = ir.load(tiny_model)
    before = run(model)
    assert QuantizeBlocks(["blocks.0.mlp.fc2"])(model).modified
    layers = {f"blocks.{block}.{name}.weight" for block in range(2) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    quantized = {name for name, value in model.graph.initializers.items() if value.dtype == ir.DataType.UINT8}
    assert quantized == layers - {"blocks.0.mlp.fc2.weight"}
    for found, expected in zip(run(model), before, strict=True):
        assert cosines(expected, found).min() > 0.999  # each block adds little to its input, so errors of a tenth weigh little
