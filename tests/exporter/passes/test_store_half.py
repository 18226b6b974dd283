"""What StoreHalf promises, on graphs small enough to read, run by onnxruntime itself, and on a network."""

from collections import Counter

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from vit_exporter.passes.store_half import StoreHalf
from vit_runtime.accuracy import cosines

KINDS = {"float16": (ir.DataType.FLOAT16, np.float16), "bfloat16": (ir.DataType.BFLOAT16, ml_dtypes.bfloat16)}
WEIGHTS = "c cb p w b h hb w2"


def graph(nodes: str, out: str = "float[5, 6]") -> str:
    """A graph of images x and tokens y, of the weights of a patch embedding c, a linear layer w and a head h, and of a table p."""
    return f"""<ir_version: 10, opset_import: ["": 18]> main (float[batch, 3, 2, 10] x, float[5, 8] y, float[8, 3, 2, 2] c, float[8] cb,
 float[1, 5, 8] p, float[8, 6] w, float[6] b, float[4, 30] h, float[4] hb, float[8, 8] w2) => ({out} out)
<int64[3] flat = {{0, 8, 5}}, int64[2] row = {{0, 30}}, double[8, 2] d = {{1, 2, 3, 4, 5, 6, 7, 8, 8, 7, 6, 5, 4, 3, 2, 1}}>
{{ {nodes} }}"""


LAYERS = graph(
    """i = Conv<strides = [2, 2]>(x, c, cb)  f = Reshape(i, flat)  t = Transpose<perm = [0, 2, 1]>(f)  a = Add(t, p)
   m = MatMul(a, w)  n = Add(m, b)  r = Reshape(n, row)  out = Gemm<transB = 1>(r, h, hb)""",
    "float[batch, 4]",
)
SHARED = {
    "two layers": graph("m = MatMul(y, w)  n = Neg(y)  k = MatMul(n, w)  out = Sub(m, k)"),
    "another node before": graph("k = ReduceMax(w)  m = MatMul(y, w)  out = Mul(m, k)"),
    "another node behind": graph("m = MatMul(y, w)  k = ReduceMax(w)  out = Mul(m, k)"),
    "one node twice": graph("m = MatMul(y, w)  q = Mul(w, w)  k = ReduceMax(q)  out = Mul(m, k)"),
}
LEFT = {
    "no layer": graph("m = ReduceMax(w)  out = Mul(y, m)", "float[5, 8]"),
    "a weight that is computed": graph("n = Neg(w)  out = MatMul(y, n)"),
    "a weight in front": graph("t = Transpose(y)  out = MatMul(w2, t)", "float[8, 5]"),
    "a vector": graph("out = MatMul(y, cb)", "float[5]"),
    "another type": graph("n = Cast<to = 11>(y)  out = MatMul(n, d)", "double[5, 2]"),
}


@pytest.mark.unit
@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_of_layers_take_half_the_bytes(kind, weighted):
    model = weighted(LAYERS, WEIGHTS)
    before = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    nodes = Counter(node.op_type for node in model.graph)
    assert StoreHalf(kind)(model).modified
    assert Counter(node.op_type for node in model.graph) == nodes + Counter(Cast=3)
    dtype, numbers = KINDS[kind]
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if name in ("c", "w", "h"):
            assert (value.dtype, tensor.dtype, tensor.nbytes) == (dtype, dtype, before[name].nbytes // 2)
            np.testing.assert_array_equal(tensor.numpy(), before[name].astype(numbers))  # the nearest number there is
        else:
            np.testing.assert_array_equal(tensor.numpy(), before[name])
            assert tensor.numpy().dtype == before[name].dtype


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_that_of_the_rounded_weights(kind, weighted, run):
    model, rounded = weighted(LAYERS, WEIGHTS), weighted(LAYERS, WEIGHTS)
    StoreHalf(kind)(model)
    for name in ("c", "w", "h"):
        value = rounded.graph.initializers[name]
        value.const_value = ir.tensor(value.const_value.numpy().astype(KINDS[kind][1]).astype(np.float32), name=name)
    np.testing.assert_array_equal(run(model)[0], run(rounded)[0])  # the same operations on the same numbers


@pytest.mark.parametrize(("kind", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_the_result_is_near_that_of_the_graph_before(kind, bits, weighted, run):
    model = weighted(LAYERS, WEIGHTS)
    before = run(model)[0]
    StoreHalf(kind)(model)
    found = run(model)[0]
    # Each weight is off by 2 ** -bits of itself at most, three layers one after the other by some of that, root mean square.
    assert 0 < np.linalg.norm(found - before) / np.linalg.norm(before) < 2 * 2.0**-bits


@pytest.mark.unit
def test_numbers_beyond_float16_are_kept_at_its_ends(weighted):
    model = weighted(LAYERS, WEIGHTS)
    weight = model.graph.initializers["w"]
    changed = weight.const_value.numpy().copy()
    changed[:2, 0], changed[:2, 1] = (1e6, -1e6), (np.inf, -65519)
    weight.const_value = ir.tensor(changed, name="w")
    StoreHalf("float16")(model)
    stored = model.graph.initializers["w"].const_value.numpy()
    np.testing.assert_array_equal(stored[:2, :2], [[65504, 65504], [-65504, -65504]])  # float16's largest number


@pytest.mark.unit
def test_bfloat16_has_the_range_of_float32(weighted):
    model = weighted(LAYERS, WEIGHTS)
    weight = model.graph.initializers["w"]
    weight.const_value = ir.tensor(np.full((8, 6), 1e30, np.float32), name="w")
    StoreHalf("bfloat16")(model)
    stored = model.graph.initializers["w"].const_value.numpy().astype(np.float32)
    np.testing.assert_allclose(stored, 1e30, rtol=2.0**-8)  # bfloat16 has 8 bits


@pytest.mark.parametrize("text", SHARED.values(), ids=SHARED)
def test_a_weight_that_others_read_is_widened_once_for_all(text, weighted, run):
    model, rounded = weighted(text, WEIGHTS), weighted(text, WEIGHTS)
    assert StoreHalf("float16")(model).modified
    assert [node.op_type for node in model.graph].count("Cast") == 1
    value = rounded.graph.initializers["w"]
    value.const_value = ir.tensor(value.const_value.numpy().astype(np.float16).astype(np.float32), name="w")
    np.testing.assert_array_equal(run(model)[0], run(rounded)[0])  # the same operations on the same numbers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", LEFT.values(), ids=LEFT)
def test_anything_else_is_left_alone(kind, text, weighted, run, written):
    model = weighted(text, WEIGHTS)
    before, numbers = written(model), run(model)
    assert not StoreHalf(kind)(model).modified
    assert written(model) == before
    np.testing.assert_array_equal(run(model)[0], numbers[0])


@pytest.mark.unit
def test_a_weight_that_is_not_constant_is_left_alone(weighted):
    assert not StoreHalf("float16")(weighted(LAYERS, "cb p b hb w2")).modified


@pytest.mark.unit
@pytest.mark.parametrize("kind", KINDS)
def test_a_second_run_changes_nothing(kind, weighted, written):
    model = weighted(LAYERS, WEIGHTS)
    StoreHalf(kind)(model)
    before = written(model)
    assert not StoreHalf(kind)(model).modified
    assert written(model) == before


@pytest.mark.unit
def test_numbers_are_rounded_only_when_somebody_reads_them(weighted):
    def read() -> ir.TensorProtocol:
        raise AssertionError("a weight was read")

    model = weighted(LAYERS, WEIGHTS)
    for name in ("c", "w", "h"):
        value = model.graph.initializers[name]
        value.const_value = ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=value.shape, name=name)
    assert StoreHalf("float16")(model).modified


@pytest.mark.unit
def test_a_model_with_local_functions_is_refused_and_told_to_inline_first(with_function):
    with pytest.raises(ir.passes.PreconditionError, match="InlinePass"):
        StoreHalf("float16")(with_function(LAYERS))


@pytest.mark.parametrize(("kind", "cosine"), [("float16", 1 - 1e-6), ("bfloat16", 1 - 1e-4)])  # errors of 2 ** -11 and 2 ** -8, squared
def test_of_a_network_every_layers_weight_is_halved_and_nothing_else(kind, cosine, tiny_model, run):
    model = ir.load(tiny_model)
    before = run(model)
    assert StoreHalf(kind)(model).modified
    layers = {f"blocks.{block}.{name}.weight" for block in range(2) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    halved = {name for name, value in model.graph.initializers.items() if value.dtype == KINDS[kind][0]}
    assert halved == layers | {"embeddings.patch_embed.proj.weight", "head.weight"}
    for found, expected in zip(run(model), before, strict=True):
        assert cosines(expected, found).min() > cosine
