"""What FuseAttention promises, on graphs small enough to read, run by onnxruntime itself, and on networks."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from vit_exporter.passes.fold_attention_scale import FoldAttentionScale
from vit_exporter.passes.fuse_attention import FuseAttention
from vit_models import OUTPUT_NAMES, Rope

# Two heads of 3 channels, 5 tokens.
PACKED = """<ir_version: 11, opset_import: ["": 23]> main (float[batch, 5, 18] x, float[1, 2, 5, 5] bias) => (float[batch, 5, 6] out)
<int64[5] shape = {-1, 5, 3, 2, 3}, int64[3] joined = {-1, 5, 6}, int64 zero = {0}, int64 one = {1}, int64 two = {2}, float s = {0.4}>
{ h = Reshape(x, shape)  t = Transpose<perm = [2, 0, 3, 1, 4]>(h)
  q = Gather<axis = 0>(t, zero)  k = Gather<axis = 0>(t, one)  v = Gather<axis = 0>(t, two)
  y = Mul(q, s)  u = Transpose<perm = [0, 1, 3, 2]>(k)  z = MatMul(y, u)  w = Softmax<axis = -1>(z)  m = MatMul(w, v)
  g = Transpose<perm = [0, 2, 1, 3]>(m)  j = Reshape(g, joined)  out = Neg(j) }"""
UNSCALED = PACKED.replace("y = Mul(q, s)", "").replace("MatMul(y, u)", "MatMul(q, u)")
BIASED = PACKED.replace("w = Softmax<axis = -1>(z)", "e = Add(z, bias)  w = Softmax<axis = -1>(e)")
OTHER_ORDER = PACKED.replace("(t, zero)", "(t, 9)").replace("(t, two)", "(t, zero)").replace("(t, 9)", "(t, two)")
FUSED = Counter(Split=1, Attention=1, Neg=1)
ACTS = {
    "as traced": (PACKED, 0.4, FUSED),
    "the scale folded": (UNSCALED, 1.0, FUSED),
    "a bias": (BIASED, 0.4, FUSED),
    "queries last": (OTHER_ORDER, 0.4, FUSED),
    "an output of the graph": (PACKED.replace("j = Reshape(g, joined)  out = Neg(j)", "out = Reshape(g, joined)"), 0.4, FUSED),
    "queries read elsewhere": (
        PACKED.replace("out = Neg(j)", "r = ReduceSum<keepdims = 0>(q)  out = Add(j, r)"),
        0.4,
        Counter(Split=1, Attention=1, Reshape=1, Transpose=1, Gather=1, ReduceSum=1, Add=1),
    ),
}
LEFT = {
    "another opset": PACKED.replace('"": 23', '"": 22'),
    "queries changed": PACKED.replace("y = Mul(q, s)", "r = Relu(q)  y = Mul(r, s)"),
    "keys changed": PACKED.replace("u = Transpose<perm = [0, 1, 3, 2]>(k)", "r = Relu(k)  u = Transpose<perm = [0, 1, 3, 2]>(r)"),
    "values changed": PACKED.replace("m = MatMul(w, v)", "r = Relu(v)  m = MatMul(w, r)"),
    "scores read elsewhere": PACKED.replace("out = Neg(j)", "r = ReduceSum<keepdims = 0>(z)  out = Add(j, r)"),
    "weights read elsewhere": PACKED.replace("out = Neg(j)", "r = ReduceSum<keepdims = 0>(w)  out = Add(j, r)"),
    "scores added to themselves": PACKED.replace("w = Softmax<axis = -1>(z)", "e = Add(z, z)  w = Softmax<axis = -1>(e)"),
    "one bias for all heads": BIASED.replace("float[1, 2, 5, 5] bias", "float[5, 5] bias"),
    "softmax over the queries": PACKED.replace("Softmax<axis = -1>", "Softmax<axis = 2>"),
    "no Softmax": PACKED.replace("Softmax<axis = -1>", "Sigmoid"),
    "keys turned twice": PACKED.replace("u = Tr", "u2 = Transpose<perm = [1, 0, 3, 2]>(k)  u = Tr").replace(
        "u = Transpose<perm = [0, 1, 3, 2]>(k)", "u = Transpose<perm = [1, 0, 2, 3]>(u2)"
    ),
    "tokens and heads in another order": PACKED.replace("int64[3] joined = {-1, 5, 6}", "int64[3] joined = {-1, 2, 15}")
    .replace("float[batch, 5, 6] out", "float[batch, 2, 15] out")
    .replace("[0, 2, 1, 3]>(m)", "[0, 1, 2, 3]>(m)"),
    "tokens joined": PACKED.replace("{-1, 5, 6}", "{-1, 1, 30}").replace("float[batch, 5, 6] out", "float[batch, 1, 30] out"),
    "four parts": PACKED.replace("float[batch, 5, 18] x", "float[batch, 5, 24] x").replace("{-1, 5, 3, 2, 3}", "{-1, 5, 4, 2, 3}"),
    "values of another value": PACKED.replace("v = Gather<axis = 0>(t, two)", "t2 = Neg(t)  v = Gather<axis = 0>(t2, two)"),
}


@pytest.mark.parametrize(("text", "scale", "ops"), ACTS.values(), ids=ACTS)
def test_the_nodes_become_split_and_attention(text, scale, ops, weighted, run):
    model = weighted(text, "bias")
    before = run(model)
    assert FuseAttention()(model).modified
    assert Counter(node.op_type for node in model.graph) == ops - (Counter() if "Neg(j)" in text else Counter(Neg=1))
    (attention,) = [node for node in model.graph if node.op_type == "Attention"]
    assert attention.attributes["scale"].as_float() == pytest.approx(scale)
    assert [attention.attributes[name].as_int() for name in ("q_num_heads", "kv_num_heads")] == [2, 2]
    assert len(attention.inputs) == (4 if "e = Add" in text else 3)
    # Numbers around 1, their sums rounded to float32's 6e-8 a dozen times; one output adds up 30 of them for each image.
    np.testing.assert_allclose(run(model)[0], before[0], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("text", LEFT.values(), ids=LEFT)
def test_anything_else_is_left_alone(text, weighted, run, written):
    model = weighted(text, "bias")
    before, numbers = written(model), run(model)
    assert not FuseAttention()(model).modified
    assert written(model) == before
    np.testing.assert_array_equal(run(model)[0], numbers[0])


@pytest.mark.unit
def test_a_bias_that_is_not_constant_is_left_alone(weighted):
    assert not FuseAttention()(weighted(BIASED, "")).modified


@pytest.mark.unit
@pytest.mark.parametrize("output", ["z", "w", "m", "g"])
def test_what_leaves_the_graph_is_still_computed(output, weighted):
    model = weighted(PACKED, "bias")
    model.graph.outputs.append(next(value for node in model.graph for value in node.outputs if value.name == output))
    assert not FuseAttention()(model).modified


@pytest.mark.unit
def test_a_model_with_local_functions_is_refused_and_told_to_inline_first(with_function):
    with pytest.raises(ir.passes.PreconditionError, match="InlinePass"):
        FuseAttention()(with_function(PACKED))


NETWORKS = {
    "every output": ({}, OUTPUT_NAMES, False, 2),
    "no attention output": ({}, ("logits", "tokens"), False, 2),
    "relative positions": ({"rel_pos_bias": True}, OUTPUT_NAMES, False, 2),
    "free size": ({}, OUTPUT_NAMES, True, 2),
    "map": ({"class_token": False, "pool": "map"}, ("logits", "tokens"), False, 2),  # whose probe is one for all images
    "rotary": ({"rope": Rope()}, OUTPUT_NAMES, False, 0),
    "query and key norms": ({"qk_norm": True}, OUTPUT_NAMES, False, 0),
}


@pytest.mark.parametrize("fold", [True, False], ids=["scale folded", "scale left"])
@pytest.mark.parametrize(("fields", "outputs", "free", "count"), NETWORKS.values(), ids=NETWORKS)
def test_a_network_computes_the_same(fields, outputs, free, count, fold, random_network, simplified, worst_floors):
    model = random_network(outputs, free, **fields)
    graph = simplified(model, 23)
    if fold:
        FoldAttentionScale()(graph)
    assert FuseAttention()(graph).modified == (count > 0)
    ops = Counter(node.op_type for node in graph.graph)
    other = ("attention" in outputs) + (model.attn_pool is not None)
    assert (ops["Attention"], ops["Softmax"]) == (count, model.config.depth - count + other)
    assert worst_floors(model, graph) < 2  # half of what a file is held to
