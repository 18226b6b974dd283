"""What FoldAttentionScale promises, on graphs small enough to read, run by onnxruntime itself, and on networks."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from vit_exporter.passes.fold_attention_scale import FoldAttentionScale
from vit_models import OUTPUT_NAMES, Rope

# Two heads of 3 channels; what is read of q is filled in.
MAIN = '<ir_version: 10, opset_import: ["": 18]> main (float[batch, 5, 6] x, float[6, 18] w, float[18] b, float[3] c) => '
PACKED = f"""{MAIN}(float[batch, 2, 5, 5] out)
<int64[5] shape = {{-1, 5, 3, 2, 3}}, int64 zero = {{0}}, int64 one = {{1}}, int64 two = {{2}}, float s = {{0.4}}, float r = {{0.3}},
 int64[1] start = {{0}}, int64[1] end = {{1}}, int64[1] axis = {{3}}, int64[1] last = {{3}}>
{{ p = MatMul(x, w)  l = Add(p, b)  h = Reshape(l, shape)  t = Transpose<perm = [2, 0, 3, 1, 4]>(h)
   q = Gather<axis = 0>(t, zero)  k = Gather<axis = 0>(t, one)  v = Gather<axis = 0>(t, two)
   QUERIES
   u = Transpose<perm = [0, 1, 3, 2]>(k)  z = MatMul(y, u)  a = Relu(v)  i = ReduceSum<keepdims = 1>(a)  out = Add(z, i) }}"""
QUERIES = {
    "as traced": "y = Mul(q, s)",
    "operands turned": "y = Mul(s, q)",
    "taken twice": "y1 = Mul(q, s)  q2 = Gather<axis = 0>(t, zero)  y2 = Mul(q2, s)  y = Sub(y1, y2)",
    "a row of it scaled elsewhere": """y1 = Mul(q, s)  f = Slice(q, start, end, axis)  g = Mul(f, s)
   y = Add(y1, g)""",
    "turned by constant angles": """f = Slice(q, start, end, axis)  g = Slice(q, end, last, axis)  n = Neg(f)  j = Concat<axis = 3>(g, n)
   d = Mul(q, c)  e = Mul(j, c)  m = Add(d, e)  y = Mul(m, s)""",
}
LEFT = {
    "not scaled": "y = Neg(q)",
    "two constants": "y1 = Mul(q, s)  y2 = Mul(q, r)  y = Add(y1, y2)",
    "read unscaled too": "y1 = Mul(q, s)  y = Add(y1, q)",
    "scaled by channel": "y = Mul(q, c)",
    "through another function": "e = Relu(q)  y = Mul(e, s)",
    "added to something else": "e = Add(q, c)  y = Mul(e, s)",
    "multiplied by itself": "e = Mul(q, q)  y = Mul(e, s)",
    "joined with something else": "o = Concat<axis = 3>(q, k)  e = Mul(o, s)  y = Slice(e, start, last, axis)",
    "in an index's place": "e = Cast<to = 7>(q)  y0 = ReduceSum<keepdims = 0>(e)  y1 = Cast<to = 1>(y0)  y = Mul(q, y1)",
    "the whole is read elsewhere": "y1 = Mul(q, s)  e = ReduceSum<keepdims = 0>(t)  y = Add(y1, e)",
    "the sum is read elsewhere": "y1 = Mul(q, s)  e = ReduceSum<keepdims = 0>(l)  y = Add(y1, e)",
    "the weight is read elsewhere": "y1 = Mul(q, s)  e = ReduceSum<keepdims = 0>(w)  y = Add(y1, e)",
    "the bias is read elsewhere": "y1 = Mul(q, s)  e = ReduceSum<keepdims = 0>(b)  y = Add(y1, e)",
    "taken by a list": "f = Gather<axis = 0>(t, start)  g = ReduceSum<keepdims = 0>(f)  y1 = Mul(q, s)  y = Add(y1, g)",
}
PROBE = """<ir_version: 10, opset_import: ["": 18]> main (float[batch, 6, 5] x, float[1, 1, 4] probe, float[4, 6] w, float[6] b) =>
(float[batch, 1, 5] out) <float[1] s = {0.4}> { p = MatMul(probe, w)  l = Add(p, b)  y = Mul(l, s)  out = MatMul(y, x) }"""


def packed(queries: str) -> str:
    return PACKED.replace("QUERIES", queries)


@pytest.mark.parametrize("queries", QUERIES.values(), ids=QUERIES)
def test_the_scale_goes_into_the_queries_columns(queries, weighted, run):
    model = weighted(packed(queries), "w b c")
    before, old = run(model), {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    constants = [node for node in model.graph if node.op_type == "Mul" and node.inputs[0].name != "c" and node.inputs[1].name != "c"]
    nodes = len(model.graph)
    assert FoldAttentionScale()(model).modified
    assert len(model.graph) == nodes - len(constants)
    for name in ("w", "b"):
        expected = old[name].copy()
        expected[..., :6] *= np.float32(0.4)
        np.testing.assert_array_equal(model.graph.initializers[name].const_value.numpy(), expected)  # rounded once, as here
    # Sums of some dozens of products around 1, each rounded to float32's 6e-8, then some of those multiplied.
    np.testing.assert_allclose(run(model)[0], before[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("queries", LEFT.values(), ids=LEFT)
def test_anything_else_is_left_alone(queries, weighted, run, written):
    model = weighted(packed(queries), "w b c")
    before, numbers = written(model), run(model)
    assert not FoldAttentionScale()(model).modified
    assert written(model) == before
    np.testing.assert_array_equal(run(model)[0], numbers[0])


@pytest.mark.unit
@pytest.mark.parametrize("output", ["q", "y", "t"])
def test_what_leaves_the_graph_is_not_scaled(output, weighted):
    model = weighted(packed("y = Mul(q, s)"), "w b c")
    model.graph.outputs.append(next(value for node in model.graph for value in node.outputs if value.name == output))
    assert not FoldAttentionScale()(model).modified


@pytest.mark.unit
@pytest.mark.parametrize("weights", ["w", "b"])
def test_a_weight_that_is_not_constant_is_left_alone(weights, weighted):
    assert not FoldAttentionScale()(weighted(packed("y = Mul(q, s)"), weights)).modified


def test_the_query_of_a_constant_probe_is_scaled_whole(weighted, run):
    model = weighted(PROBE, "probe w b")
    before = run(model)
    assert FoldAttentionScale()(model).modified
    assert Counter(node.op_type for node in model.graph) == {"MatMul": 2, "Add": 1}
    np.testing.assert_allclose(run(model)[0], before[0], rtol=0, atol=5e-6)  # sums of 24 products, each rounded to 6e-8


@pytest.mark.unit
def test_numbers_are_multiplied_only_when_somebody_reads_them(weighted):
    def read() -> ir.TensorProtocol:
        raise AssertionError("a weight was read")

    model = weighted(packed("y = Mul(q, s)"), "w b c")
    for name in ("w", "b"):
        value = model.graph.initializers[name]
        value.const_value = ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=value.shape, name=name)
    assert FoldAttentionScale()(model).modified


@pytest.mark.unit
def test_a_model_with_local_functions_is_refused_and_told_to_inline_first(with_function):
    with pytest.raises(ir.passes.PreconditionError, match="InlinePass"):
        FoldAttentionScale()(with_function(PROBE))


NETWORKS = {
    "every output": ({}, OUTPUT_NAMES, 3),  # the class token's attention has a scale of its own
    "no attention output": ({}, ("logits", "tokens"), 2),
    "rotary": ({"rope": Rope()}, OUTPUT_NAMES, 3),
    "relative positions": ({"rel_pos_bias": True}, OUTPUT_NAMES, 3),
    "query and key norms": ({"qk_norm": True}, OUTPUT_NAMES, 0),
    "map": ({"class_token": False, "pool": "map"}, ("logits", "tokens"), 3),
}


@pytest.mark.parametrize(("fields", "outputs", "scales"), NETWORKS.values(), ids=NETWORKS)
def test_a_network_computes_the_same_without_its_scales(fields, outputs, scales, random_network, simplified, worst_floors):
    model = random_network(outputs, **fields)
    graph = simplified(model, 23)  # test_fuse_attention.py takes the same graphs
    nodes = len(graph.graph)
    assert FoldAttentionScale()(graph).modified == (scales > 0)
    assert len(graph.graph) == nodes - scales
    assert worst_floors(model, graph) < 2  # half of what a file is held to
