"""What QuantizeWeights promises, on graphs small enough to read, run by onnxruntime itself, and on a network."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from vit_exporter.passes.quantize_weights import QuantizeWeights
from vit_runtime.accuracy import cosines

MAIN = '<ir_version: 10, opset_import: ["": 18]> main (float[batch, 5, 8] x, float[8, 6] w, float[6] b, float[6, 4] w2) => '
TWO = f"{MAIN}(float[batch, 5, 4] out) {{ p = MatMul(x, w)  l = Add(p, b)  r = Relu(l)  out = MatMul(r, w2) }}"
WEIGHTS = "w b w2"
LEFT = {
    "a product of what is computed": f"{MAIN}(float[batch, 5, 5] out) {{ t = Transpose<perm = [0, 2, 1]>(x)  out = MatMul(x, t) }}",
    "a weight that is computed": f"{MAIN}(float[batch, 5, 6] out) {{ v = Neg(w)  out = MatMul(x, v) }}",
    "a weight that two products read": (
        f"{MAIN}(float[batch, 5, 6] out) {{ y = MatMul(x, w)  n = Neg(x)  z = MatMul(n, w)  out = Sub(y, z) }}"
    ),
}


def plain(model: ir.Model, x: np.ndarray) -> np.ndarray:
    """What onnxruntime computes of the nodes as they stand: with all its optimisations it rounds x as well."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.unit
def test_a_weight_is_restored_from_int8_before_its_product(weighted):
    model = weighted(TWO, WEIGHTS)
    assert QuantizeWeights()(model).modified
    assert Counter(node.op_type for node in model.graph) == Counter(DequantizeLinear=2, MatMul=2, Add=1, Relu=1)
    assert {node.domain for node in model.graph} == {""}
    for node in model.graph:
        if node.op_type == "MatMul":
            restored = node.inputs[1].producer()
            assert restored.op_type == "DequantizeLinear"
            assert restored.attributes["axis"].as_int() == 1
            assert [value.dtype for value in restored.inputs] == [ir.DataType.INT8, ir.DataType.FLOAT]


@pytest.mark.unit
def test_a_weight_has_a_scale_for_each_output_channel(weighted):
    model = weighted(TWO, WEIGHTS)
    before = {name: model.graph.initializers[name].const_value.numpy() for name in ("w", "w2")}
    QuantizeWeights()(model)
    for name, numbers in before.items():
        stored, scale = (model.graph.initializers[each].const_value.numpy() for each in (name, f"{name}_scale"))
        assert (stored.dtype, stored.shape, scale.dtype, scale.shape) == (np.int8, numbers.shape, np.float32, numbers.shape[1:])
        assert np.abs(stored).max(axis=0).tolist() == [127] * numbers.shape[1]  # the whole range, the same on both sides of zero
        assert np.all(np.abs(stored * scale - numbers) <= scale * 0.5001)  # half a step; float32 rounds the quotient by a millionth


def test_the_result_is_that_of_the_rounded_weights(weighted):
    model, rounded = weighted(TWO, WEIGHTS), weighted(TWO, WEIGHTS)
    QuantizeWeights()(model)
    for name in ("w", "w2"):
        stored, scale = (model.graph.initializers[each].const_value.numpy() for each in (name, f"{name}_scale"))
        rounded.graph.initializers[name].const_value = ir.tensor(stored * scale, name=name)
    x = np.random.default_rng(0).standard_normal((3, 5, 8), dtype=np.float32)
    np.testing.assert_array_equal(plain(model, x), plain(rounded, x))  # the same operations on the same numbers


def test_the_result_is_near_that_of_the_graph_before(weighted, run):
    model = weighted(TWO, WEIGHTS)
    before = run(model)
    QuantizeWeights()(model)
    # Each number is off by half a step at most, a 250th of the largest in size; the errors of some dozen products cancel in part.
    assert cosines(before[0], run(model)[0]).min() > 0.999


@pytest.mark.unit
@pytest.mark.parametrize("numbers", [[0.0, 0.0], [1e-45, -1e-45]], ids=["zeros", "the smallest numbers there are"])
def test_a_channel_too_small_to_divide_becomes_zero(numbers, weighted):
    model = weighted(TWO, WEIGHTS)
    weight = model.graph.initializers["w"]
    changed = weight.const_value.numpy().copy()
    changed[:, 1] = np.resize(np.array(numbers, np.float32), 8)
    weight.const_value = ir.tensor(changed, name="w")
    QuantizeWeights()(model)
    stored, scale = (model.graph.initializers[name].const_value.numpy() for name in ("w", "w_scale"))
    assert scale[1] == 1
    assert not stored[:, 1].any()
    assert np.all(np.abs(stored * scale - changed) <= scale * 0.5001)  # as above


@pytest.mark.unit
def test_a_layer_that_is_kept_stays_in_floating_point(weighted):
    model = weighted(TWO, WEIGHTS)
    for name in ("w", "w2"):
        model.graph.initializers[name].name = f"blocks.0.{name}.weight"
    kept = model.graph.initializers["blocks.0.w2.weight"]
    assert QuantizeWeights(["blocks.0.w2"])(model).modified
    assert model.graph.outputs[0].producer().inputs[1] is kept
    assert (kept.dtype, model.graph.initializers["blocks.0.w.weight"].dtype) == (ir.DataType.FLOAT, ir.DataType.INT8)


@pytest.mark.parametrize("text", LEFT.values(), ids=LEFT)
def test_anything_else_is_left_alone(text, weighted, run, written):
    model = weighted(text, WEIGHTS)
    before, numbers = written(model), run(model)
    assert not QuantizeWeights()(model).modified
    assert written(model) == before
    np.testing.assert_array_equal(run(model)[0], numbers[0])


@pytest.mark.unit
def test_with_every_layer_kept_there_is_nothing_to_do(weighted, written):
    model = weighted(TWO, WEIGHTS)
    before = written(model)
    assert not QuantizeWeights(["w", "w2"])(model).modified
    assert written(model) == before


@pytest.mark.unit
def test_a_weight_that_is_not_constant_is_left_alone(weighted):
    assert not QuantizeWeights()(weighted(TWO, "b")).modified


@pytest.mark.unit
def test_a_second_run_changes_nothing(weighted, written):
    model = weighted(TWO, WEIGHTS)
    QuantizeWeights()(model)
    before = written(model)
    assert not QuantizeWeights()(model).modified
    assert written(model) == before


@pytest.mark.unit
def test_numbers_are_rounded_only_when_somebody_reads_them(weighted):
    def read() -> ir.TensorProtocol:
        raise AssertionError("a weight was read")

    model = weighted(TWO, WEIGHTS)
    value = model.graph.initializers["w"]
    value.const_value = ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=value.shape, name="w")
    assert QuantizeWeights()(model).modified


@pytest.mark.unit
def test_a_model_with_local_functions_is_refused_and_told_to_inline_first(with_function):
    with pytest.raises(ir.passes.PreconditionError, match="InlinePass"):
        QuantizeWeights()(with_function(TWO))


def test_of_a_network_the_linear_layers_of_its_blocks_are_quantised(tiny_model, run):
    model = ir.load(tiny_model)
    before = run(model)
    assert QuantizeWeights()(model).modified
    layers = {f"blocks.{block}.{name}.weight" for block in range(2) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert {name for name, value in model.graph.initializers.items() if value.dtype == ir.DataType.INT8} == layers
    for found, expected in zip(run(model), before, strict=True):
        assert cosines(expected, found).min() > 0.9999  # each block adds little to its input, so errors of a 250th weigh little
