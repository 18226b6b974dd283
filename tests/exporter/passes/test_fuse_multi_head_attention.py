"""What FuseMultiHeadAttention promises, on graphs small enough to read, run by onnxruntime itself, and on networks."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from vit_exporter.passes.fold_attention_scale import FoldAttentionScale
from vit_exporter.passes.fuse_multi_head_attention import FuseMultiHeadAttention
from vit_exporter.passes.prune_last_block import PruneLastBlock
from vit_exporter.passes.unpack_heads import UnpackHeads
from vit_models import OUTPUT_NAMES

# Two heads of 3 channels, 5 tokens; queries, keys and values from layers of their own.
APART = """<ir_version: 10, opset_import: ["": 20]> main (float[batch, 5, 6] x, float[batch, 4, 6] x2, float[1, 5, 6] p, float[batch, 6] x3,
 float[6, 6] qw, float[6] qb, float[6, 6] kw, float[6] kb, float[6, 6] vw, float[6] vb, float[6, 8] vw2, float[8] vb2, float[3] c,
 float[1, 2, 5, 5] bias, float[5, 5] bias2, float[1, 2, 1, 5] bias3, float[batch, 2, 5, 5] bias4) => (float[batch, tokens, width] out)
<int64[4] heads = {0, 0, 2, 3}, int64[4] thin = {0, 0, 2, 4}, int64[4] long = {0, 10, 1, 3}, int64[4] apart = {-1, 5, 2, 3},
 int64[3] back = {0, 0, 6}, int64[3] single = {-1, 1, 6}, int64[3] joined = {0, 1, 30}, int64[3] other = {0, 2, 15},
 int64[3] thinback = {0, 0, 8}, int64[3] fives = {0, 5, 6}, int64[4] halves = {-1, 5, 1, 3}, int64[3] whole = {-1, 5, 6},
 float s = {0.4}>
{ q1 = MatMul(x, qw)  q2 = Add(q1, qb)  q3 = Reshape(q2, heads)  q = Transpose<perm = [0, 2, 1, 3]>(q3)
  k1 = MatMul(x, kw)  k2 = Add(k1, kb)  k3 = Reshape(k2, heads)  k0 = Transpose<perm = [0, 2, 1, 3]>(k3)
  k = Transpose<perm = [0, 1, 3, 2]>(k0)
  v1 = MatMul(x, vw)  v2 = Add(v1, vb)  v3 = Reshape(v2, heads)  v = Transpose<perm = [0, 2, 1, 3]>(v3)
  y = Mul(q, s)  z = MatMul(y, k)  a = Softmax<axis = -1>(z)  m = MatMul(a, v)
  g = Transpose<perm = [0, 2, 1, 3]>(m)  j = Reshape(g, back)  out = Neg(j) }"""
WEIGHTS = "p qw qb kw kb vw vb vw2 vb2 c bias bias2 bias3"


def but(*changes: tuple[str, str]) -> str:
    """The graph with these changes."""
    text = APART
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


def also(value: str) -> str:
    """The graph with the sum of this value added to what it computes."""
    return but(("out = Neg(j)", f"e = ReduceSum<keepdims = 0>({value})  out = Sub(e, j)"))


BIASED = but(("a = Softmax<axis = -1>(z)", "e = Add(z, bias)  a = Softmax<axis = -1>(e)"))
FUSED = Counter(MatMul=3, MultiHeadAttention=1, Neg=1)
ACTS = {
    "as traced": (APART, 0.4, FUSED),
    "the scale folded": (but(("y = Mul(q, s)", ""), ("MatMul(y, k)", "MatMul(q, k)")), 1.0, FUSED),
    "the scale first": (but(("Mul(q, s)", "Mul(s, q)")), 0.4, FUSED),
    "the softmax's axis counted from the front": (but(("axis = -1", "axis = 3")), 0.4, FUSED),
    "the softmax's axis by default": (but(("Softmax<axis = -1>", "Softmax")), 0.4, FUSED),
    "a bias": (BIASED, 0.4, FUSED),
    "a bias first": (BIASED.replace("Add(z, bias)", "Add(bias, z)"), 0.4, FUSED),
    "a layer's bias first": (but(("Add(k1, kb)", "Add(kb, k1)")), 0.4, FUSED),
    "an output of the graph": (but(("j = Reshape(g, back)  out = Neg(j)", "out = Reshape(g, back)")), 0.4, FUSED - Counter(Neg=1)),
    "keys and values of another sequence": (but(("MatMul(x, kw)", "MatMul(x2, kw)"), ("MatMul(x, vw)", "MatMul(x2, vw)")), 0.4, FUSED),
}
LEFT = {
    "queries changed": but(("y = Mul(q, s)", "r = Relu(q)  y = Mul(r, s)")),
    "queries normalised": but(("y = Mul(q, s)", "r = LayerNormalization<axis = -1>(q, c)  y = Mul(r, s)")),
    "queries scaled by channel": but(("Mul(q, s)", "Mul(q, c)")),
    "queries scaled twice": but(("y = Mul(q, s)", "r = Mul(q, s)  y = Mul(r, s)")),
    "queries in another order": but(
        ("q = Transpose<perm = [0, 2, 1, 3]>(q3)", "q0 = Transpose<perm = [0, 2, 3, 1]>(q3)  q = Transpose<perm = [0, 1, 3, 2]>(q0)")
    ),
    "keys changed": but(("MatMul(y, k)", "MatMul(y, r)"), ("y = Mul(q, s)", "y = Mul(q, s)  r = Relu(k)")),
    "keys turned in one step": but(("(k3)\n  k = Transpose<perm = [0, 1, 3, 2]>(k0)", "(k3)\n  k = Transpose<perm = [0, 2, 3, 1]>(k3)")),
    "keys turned otherwise": but(
        ("k = Transpose<perm = [0, 1, 3, 2]>(k0)", "k2b = Transpose<perm = [3, 1, 2, 0]>(k0)  k = Transpose<perm = [2, 1, 0, 3]>(k2b)")
    ),
    "values changed": but(("m = MatMul(a, v)", "r = Relu(v)  m = MatMul(a, r)")),
    "queries without a bias": but(("q2 = Add(q1, qb)", "q2 = Neg(q1)")),
    "heads of other tokens": but(
        ("(q2, heads)", "(q2, long)"),
        ("(k2, heads)", "(k2, long)"),
        ("(v2, heads)", "(v2, long)"),
        ("(g, back)", "(g, fives)"),
    ),
    "heads as images": but(
        ("(q2, heads)", "(q2, halves)"), ("(k2, heads)", "(k2, halves)"), ("(v2, heads)", "(v2, halves)"), ("(g, back)", "(g, whole)")
    ),
    "images that are told apart in the heads": but(
        ("MatMul(x, qw)", "MatMul(x3, qw)"),
        ("MatMul(x, kw)", "MatMul(x3, kw)"),
        ("MatMul(x, vw)", "MatMul(x3, vw)"),
        ("(q2, heads)", "(q2, apart)"),
        ("(k2, heads)", "(k2, apart)"),
        ("(v2, heads)", "(v2, apart)"),
    ),
    "values of another width": but(
        ("MatMul(x, vw)  v2 = Add(v1, vb)  v3 = Reshape(v2, heads)", "MatMul(x, vw2)  v2 = Add(v1, vb2)  v3 = Reshape(v2, thin)"),
        ("(g, back)", "(g, thinback)"),
    ),
    "the same queries for all images": but(("MatMul(x, qw)", "MatMul(p, qw)")),
    "values before weights": but(
        ("m = MatMul(a, v)", "b = Transpose<perm = [0, 1, 3, 2]>(v)  m0 = MatMul(b, a)  m = Transpose<perm = [0, 1, 3, 2]>(m0)")
    ),
    "scores added to themselves": but(("a = Softmax<axis = -1>(z)", "e = Add(z, z)  a = Softmax<axis = -1>(e)")),
    "a bias without heads": but(("a = Softmax<axis = -1>(z)", "e = Add(z, bias2)  a = Softmax<axis = -1>(e)")),
    "a bias for all queries": but(("a = Softmax<axis = -1>(z)", "e = Add(z, bias3)  a = Softmax<axis = -1>(e)")),
    "a bias that is computed": but(("a = Softmax<axis = -1>(z)", "e = Add(z, bias4)  a = Softmax<axis = -1>(e)")),
    "a bias on the weights": but(("m = MatMul(a, v)", "e = Add(a, bias)  m = MatMul(e, v)")),
    "scores that are a product by a constant": but(("a = Softmax<axis = -1>(z)", "e = Mul(z, bias)  a = Softmax<axis = -1>(e)")),
    "a softmax over the queries": but(("axis = -1", "axis = 2")),
    "no softmax": but(("Softmax<axis = -1>", "Sigmoid")),
    "heads that stay apart": but(
        ("g = Transpose<perm = [0, 2, 1, 3]>(m)", "g = Transpose<perm = [0, 1, 2, 3]>(m)"),
        ("(g, back)", "(g, other)"),
    ),
    "tokens joined": but(("(g, back)", "(g, joined)")),
    "tokens as images": but(("(g, back)", "(g, single)")),
}
VALUES = ("q1", "q2", "k2", "k3", "v3", "q", "y", "k0", "k", "v", "z", "a", "m", "g")  # of every step on the way


@pytest.mark.parametrize(("text", "scale", "ops"), ACTS.values(), ids=ACTS)
def test_the_nodes_become_one(text, scale, ops, weighted, run):
    model = weighted(text, WEIGHTS)
    before = run(model)
    assert FuseMultiHeadAttention()(model).modified
    assert Counter(node.op_type for node in model.graph) == ops
    (attention,) = [node for node in model.graph if node.op_type == "MultiHeadAttention"]
    assert (attention.domain, model.graph.opset_imports["com.microsoft"]) == ("com.microsoft", 1)
    assert attention.attributes["scale"].as_float() == pytest.approx(scale)
    assert attention.attributes["num_heads"].as_int() == 2
    assert [value and value.name for value in attention.inputs[4:]] == ([None, "bias"] if "e = Add" in text else [])
    # Sums of 6 products around 1, then softmaxes and sums of 5 numbers; another kernel adds them in another order, each rounded to 6e-8.
    np.testing.assert_allclose(run(model)[0], before[0], rtol=1e-5, atol=1e-5)


@pytest.mark.unit
def test_the_biases_go_one_after_the_other(weighted):
    model = weighted(APART, WEIGHTS)
    biases = [model.graph.initializers[name] for name in ("qb", "kb", "vb")]
    numbers = np.concatenate([value.const_value.numpy() for value in biases])
    for value, part in zip(biases, "qkv", strict=True):
        value.name = f"blocks.0.attn.{part}.bias"
    FuseMultiHeadAttention()(model)
    assert [name for name in model.graph.initializers if name.startswith("blocks")] == ["blocks.0.attn.qkv.bias"]
    np.testing.assert_array_equal(model.graph.initializers["blocks.0.attn.qkv.bias"].const_value.numpy(), numbers)


@pytest.mark.parametrize("text", LEFT.values(), ids=LEFT)
def test_anything_else_is_left_alone(text, weighted, run, written):
    model = weighted(text, WEIGHTS)
    before, numbers = written(model), run(model)
    assert not FuseMultiHeadAttention()(model).modified
    assert written(model) == before
    np.testing.assert_array_equal(run(model)[0], numbers[0])


@pytest.mark.unit
@pytest.mark.parametrize("value", [*VALUES, "kw", "vb"])
def test_what_something_else_reads_is_left_alone(value, weighted, written):
    model = weighted(also(value), WEIGHTS)
    before = written(model)
    assert not FuseMultiHeadAttention()(model).modified
    assert written(model) == before


@pytest.mark.unit
def test_scores_that_something_else_reads_before_their_bias_are_left_alone(weighted, written):
    for text in (BIASED.replace("out = Neg(j)", "r = ReduceSum<keepdims = 0>(z)  out = Add(j, r)"), BIASED):
        model = weighted(text, WEIGHTS)
        if text is BIASED:
            model.graph.outputs.append(next(value for node in model.graph for value in node.outputs if value.name == "z"))
        before = written(model)
        assert not FuseMultiHeadAttention()(model).modified
        assert written(model) == before


@pytest.mark.unit
@pytest.mark.parametrize("output", VALUES)
def test_what_leaves_the_graph_is_still_computed(output, weighted, written):
    model = weighted(APART, WEIGHTS)
    model.graph.outputs.append(next(value for node in model.graph for value in node.outputs if value.name == output))
    before = written(model)
    assert not FuseMultiHeadAttention()(model).modified
    assert written(model) == before


@pytest.mark.unit
@pytest.mark.parametrize("weights", ["qw", "kb", "vw"])
def test_a_weight_that_is_not_constant_is_left_alone(weights, weighted):
    assert not FuseMultiHeadAttention()(weighted(APART, " ".join(set(WEIGHTS.split()) - {weights}))).modified


@pytest.mark.unit
def test_numbers_are_put_together_only_when_somebody_reads_them(weighted):
    def read() -> ir.TensorProtocol:
        raise AssertionError("a bias was read")

    model = weighted(APART, WEIGHTS)
    for name in ("qb", "kb", "vb"):
        value = model.graph.initializers[name]
        value.const_value = ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=value.shape, name=name)
    assert FuseMultiHeadAttention()(model).modified


@pytest.mark.unit
def test_a_second_run_changes_nothing(weighted, written):
    model = weighted(BIASED, WEIGHTS)
    assert FuseMultiHeadAttention()(model).modified
    before = written(model)
    assert not FuseMultiHeadAttention()(model).modified
    assert written(model) == before


@pytest.mark.unit
def test_a_model_with_local_functions_is_refused_and_told_to_inline_first(with_function):
    with pytest.raises(ir.passes.PreconditionError, match="InlinePass"):
        FuseMultiHeadAttention()(with_function(APART))


NETWORKS = {
    "every output, relative positions": ({"rel_pos_bias": True, "depth": 3}, OUTPUT_NAMES, 2),  # the class token's attention reads the rest
    "the last block pruned, relative positions": ({"rel_pos_bias": True, "distilled": True, "pool": "cls_dist"}, None, 2),
    "map": ({"class_token": False, "pool": "map"}, ("logits", "tokens"), 2),  # whose probe is one for all images
}


@pytest.mark.parametrize(("fields", "outputs", "count"), NETWORKS.values(), ids=NETWORKS)
def test_a_network_computes_the_same(fields, outputs, count, random_network, simplified, worst_floors):
    model = random_network(outputs, **fields)
    graph = simplified(model, 20)
    for graph_pass in [UnpackHeads()] if outputs is OUTPUT_NAMES else [FoldAttentionScale(), UnpackHeads(), PruneLastBlock()]:
        graph_pass(graph)
    softmaxes = Counter(node.op_type for node in graph.graph)["Softmax"]
    assert FuseMultiHeadAttention()(graph).modified == (count > 0)
    ops = Counter(node.op_type for node in graph.graph)
    assert (ops["MultiHeadAttention"], ops["Softmax"]) == (count, softmaxes - count)
    assert worst_floors(model, graph) < 2  # half of what a file is held to
