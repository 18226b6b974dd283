"""What QuantizeLinears promises: linear layers in 8 bits, symmetric, and nothing else."""

from collections import Counter

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_graphs import producer

from vit_exporter.passes.int8 import products
from vit_exporter.passes.narrow import Narrow
from vit_exporter.passes.quantize_linears import KINDS, QuantizeLinears, scale_of
from vit_runtime.accuracy import cosines

WEIGHTS = "q.weight k.weight o.weight q.bias"
# Two layers read x, a third reads what becomes of them; a product of two activations and a sum stay as they are.
TEXT = """<ir_version: 10, opset_import: ["": 20]> main (float[batch, 4, 8] x, float[8, 6] "q.weight", float[8, 6] "k.weight",
 float[6, 6] "o.weight", float[6] "q.bias") => (float[batch, 4, 6] out)
{ p = MatMul(x, "q.weight")  s = Add(p, "q.bias")  k = MatMul(x, "k.weight")  t = Transpose<perm = [0, 2, 1]>(k)
  a = MatMul(s, t)  w = Softmax(a)  m = MatMul(w, k)  o = MatMul(m, "o.weight")  out = Add(o, s) }"""
LARGEST = {"q": 5.0, "k": 5.0, "o": 8.0}  # of standard normal numbers, and of sums of a few


@pytest.fixture
def model(weighted) -> ir.Model:
    text = TEXT
    for name in WEIGHTS.split():  # the parser has no dots in names
        text = text.replace(f'"{name}"', name.replace(".", "_"))
    made = weighted(text, WEIGHTS.replace(".", "_"))
    for name in WEIGHTS.split():
        value = made.graph.initializers[name.replace(".", "_")]
        value.name = value.const_value.name = name
    return made


def quantized(graph: ir.Graph) -> dict[str, ir.Node]:
    """The products both of whose inputs come out of DequantizeLinear, by the weight."""
    found = dict[str, ir.Node]()
    for node in graph:
        sources = [value.producer() if value is not None else None for value in node.inputs]
        if node.op_type == "MatMul" and all(source is not None and source.op_type == "DequantizeLinear" for source in sources):
            weight = producer(node.inputs[1]).inputs[0]
            assert weight is not None
            assert weight.name is not None
            found[weight.name] = node
    return found


@pytest.mark.unit
@pytest.mark.parametrize("kind", KINDS)
def test_both_inputs_of_linear_layers_are_quantised_and_nothing_else(kind, model):
    before = Counter(node.op_type for node in model.graph)
    assert QuantizeLinears(kind, LARGEST)(model).modified
    assert quantized(model.graph).keys() == {"q.weight", "k.weight", "o.weight"}
    after = Counter(node.op_type for node in model.graph)
    assert after - before == Counter(QuantizeLinear=2, DequantizeLinear=5)  # q and k share theirs; a weight is stored as it is
    readers = {user.op_type for node in model.graph if node.op_type == "DequantizeLinear" for user, _ in node.outputs[0].uses()}
    assert readers == {"MatMul"}
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


@pytest.mark.unit
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_symmetric_with_a_scale_for_each_output_channel_of_a_weight(kind, model):
    QuantizeLinears(kind, LARGEST)(model)
    for weight, product in quantized(model.graph).items():
        restored = producer(product.inputs[1])
        assert restored.attributes.get_int("axis", 1) == 1
        scale = restored.inputs[1]
        assert scale is not None
        assert scale.shape == (6,)
        assert len(restored.inputs) == 2  # no zero point is a zero point of 0
        assert model.graph.initializers[weight].dtype == KINDS[kind].dtype
    zeros = {node.inputs[2].name for node in model.graph if node.op_type == "QuantizeLinear"}
    assert [float(model.graph.initializers[name].const_value.numpy().astype(np.float32)) for name in zeros] == [0]


@pytest.mark.unit
@pytest.mark.parametrize(("kind", "error"), [("int8", 1 / 2), ("fp8", 16)])
def test_a_weight_is_off_by_half_a_step_at_most_and_its_largest_not_at_all(kind, error, model):
    """A step of int8 is the scale; float8e4m3fn has 3 bits behind the point, between 256 and 448 a step of 32."""
    before = {name: model.graph.initializers[name].const_value.numpy() for name in ("q.weight", "o.weight")}
    QuantizeLinears(kind, LARGEST)(model)
    for name, exact in before.items():
        stored = model.graph.initializers[name].const_value.numpy().astype(np.float32)
        scale = model.graph.initializers[f"{name}_scale"].const_value.numpy()
        assert (np.abs(stored * scale - exact) <= error * scale * (1 + 1e-6)).all()
        np.testing.assert_array_equal(np.abs(stored).max(axis=0), KINDS[kind].largest)


@pytest.mark.unit
@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_are_kept_and_those_nothing_was_measured_of_are_left_alone(kind, model):
    QuantizeLinears(kind, {name: LARGEST[name] for name in ("q", "k")}, kept=["k"])(model)
    assert quantized(model.graph).keys() == {"q.weight"}
    assert {model.graph.initializers[name].dtype for name in ("k.weight", "o.weight")} == {ir.DataType.FLOAT}


@pytest.mark.unit
@pytest.mark.parametrize("kind", KINDS)
def test_in_float16_the_scales_are_float16(kind, model):
    for node in model.graph:
        node.name = f"layer/{node.outputs[0].name}"
    Narrow("float16", wide=["layer/o"])(model)
    QuantizeLinears(kind, LARGEST)(model)
    found = {name: node.outputs[0].dtype for name, node in quantized(model.graph).items()}
    assert found["o.weight"] == ir.DataType.FLOAT  # an island
    assert found["k.weight"] == ir.DataType.FLOAT16
    for product in quantized(model.graph).values():
        assert len({value.dtype for value in (*product.inputs, *product.outputs) if value is not None}) == 1
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


@pytest.mark.unit
@pytest.mark.parametrize("largest", [1e-5, 1.0, 3.3333, 448.0, 60000.0])
@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_scale_is_rounded_up_so_that_the_largest_number_is_not_cut_off(kind, dtype, largest):
    like = ir.Value(type=ir.TensorType(dtype))
    scale = scale_of(np.array(largest), like, KINDS[kind])
    assert scale.dtype == dtype.numpy()
    exact = np.float32(largest) / np.float32(KINDS[kind].largest)
    assert exact <= np.float32(scale) < exact * (1 + 2.0**-10) + 2.0**-24  # the next float16, or the next of the smallest of them


@pytest.mark.unit
def test_a_channel_of_zeros_has_the_scale_1(model):
    value = model.graph.initializers["q.weight"]
    changed = value.const_value.numpy().copy()
    changed[:, 2] = 0
    value.const_value = ir.tensor(changed, name="q.weight")
    QuantizeLinears("int8", LARGEST)(model)
    assert model.graph.initializers["q.weight_scale"].const_value.numpy()[2] == 1
    assert not model.graph.initializers["q.weight"].const_value.numpy()[:, 2].any()


@pytest.mark.parametrize(("kind", "cosine"), [("int8", 0.999), ("fp8", 0.997)])  # 7 bits, and 4 of each number
def test_onnxruntime_runs_it_and_the_numbers_are_near(kind, cosine, model, run):
    before = run(model)[0]
    QuantizeLinears(kind, LARGEST)(model)
    assert cosine < cosines(before, run(model)[0]).min() < 1


def test_what_is_beyond_the_range_is_cut_off_at_its_end(model, run):
    """Photographs are as the images that were measured; one that is not gives the nearest number there is, in float8 too."""
    for kind in KINDS:
        copy = model.clone()
        QuantizeLinears(kind, dict.fromkeys(LARGEST, 0.01))(copy)
        assert np.isfinite(run(copy)[0]).all()


@pytest.mark.unit
def test_a_graph_without_linear_layers_and_a_second_run_change_nothing(model, written):
    QuantizeLinears("int8", LARGEST)(model)
    before = written(model)
    assert not QuantizeLinears("int8", LARGEST)(model).modified
    assert written(model) == before
    assert not list(products(model.graph, (ir.DataType.FLOAT,)))


@pytest.mark.unit
def test_float8_has_the_numbers_that_its_name_says():
    assert KINDS["fp8"].largest == float(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).max)


@pytest.mark.unit
def test_a_model_with_local_functions_is_refused_and_told_to_inline_first(with_function):
    text = '<ir_version: 10, opset_import: ["": 20]> main (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = Identity(x) }'
    with pytest.raises(ir.passes.PreconditionError, match="InlinePass"):
        QuantizeLinears("int8", {})(with_function(text))
