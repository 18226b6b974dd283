"""What PruneLastBlock promises, on graphs small enough to read, run by onnxruntime itself, and on networks."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from vit_exporter.passes.prune_last_block import PruneLastBlock
from vit_exporter.passes.unpack_heads import UnpackHeads
from vit_models import Rope

INTEGERS = """int64 none = {0}, int64 one = {1}, int64 last = {4}, int64 behind = {-1}, int64[2] both = {0, 1}, int64[1] second = {1},
 int64[1] zero = {0}, int64[1] two = {2}, int64[1] third = {2}, int64[1] four = {4}, int64[1] minus = {-1}, int64[1] five = {5},
 int64[1] far = {-9}, int64[1] before = {-2}, int64[2] cuts = {2, 4},
 int64[2] zeros = {0, 0}, int64[2] ends = {1, 3}, int64[2] axes = {1, 2},
 int64[1] flat = {-1}, int64[3] whole = {-1, 5, 6}"""
# A sequence x of 5 tokens of 6 channels, what is made of it, and at the end what is read of the sequence t.
SEQUENCE = f"""<ir_version: 10, opset_import: ["": 20]> main (float[batch, 5, 6] x, float[1, 5, 6] p, float[5, 6] p2, float[6, 6] w,
 float[6] c, float[batch] n, float[1, 5, 1] r, float[1, 1, 6] probe, float[5, 5] mix) => (float[batch, READ, 6] out)
<{INTEGERS}, int64[4] heads = {{0, 5, 2, 3}}, int64[4] kept = {{0, 0, 2, 3}}, int64[3] back = {{0, 5, 6}}, int64[3] rest = {{0, 0, -1}},
 int64[3] column = {{0, 0, 1}}>
{{ NODES  TAKE }}"""
READS = {
    "the first": (1, "y = Gather<axis = 1>(t, zero)  out = Neg(y)"),
    "the first two": (2, "y = Gather<axis = 1>(t, both)  out = Neg(y)"),
    "the second": (2, "y = Gather<axis = 1>(t, second)  out = Neg(y)"),
    "a slice": (2, "y = Slice(t, zero, two, second)  out = Neg(y)"),
    "a slice with steps": (2, "y = Slice(t, zero, two, second, second)  out = Neg(y)"),
    "a slice that leaves the graph": (2, "out = Slice(t, zero, two, second)"),
    "two ways": (2, "y = Slice(t, zero, two, second)  a = Gather<axis = 1>(t, zero)  out = Add(y, a)"),
    "two slices": (4, "y = Slice(t, zero, four, second)  a = Slice(t, zero, second, second)  out = Add(y, a)"),
}
# What one token is made of: with which nodes, beside the Gather and the Neg that read it.
NODES = {
    "a function": ("t = Relu(x)", Counter(Slice=1, Relu=1)),
    "two functions of one sequence": ("a = Relu(x)  b = Sigmoid(x)  t = Mul(a, b)", Counter(Slice=1, Relu=1, Sigmoid=1, Mul=1)),
    "a table": ("t = Add(x, p)", Counter(Slice=1, Add=1)),
    "a table without images": ("t = Add(p2, x)", Counter(Slice=1, Add=1)),
    "a table that is computed": ("a = Exp(p2)  t = Add(x, a)", Counter(Slice=2, Exp=1, Add=1)),
    "a factor a channel": ("t = Mul(c, x)", Counter(Slice=1, Mul=1)),
    "a factor a token": ("a = Mul(x, r)  t = Relu(a)", Counter(Slice=1, Mul=1, Relu=1)),
    "a norm": ("t = LayerNormalization<axis = -1>(x, c, c)", Counter(Slice=1, LayerNormalization=1)),
    "a product": ("t = MatMul(x, w)", Counter(Slice=1, MatMul=1)),
    "a softmax over channels": ("t = Softmax<axis = -1>(x)", Counter(Slice=1, Softmax=1)),
    "channels cut": ("a, b = Split<axis = 2>(x, cuts)  t = Concat<axis = -1>(b, a)", Counter(Slice=1, Split=1, Concat=1)),
    "some channels": (
        "a = Slice(x, two, four, two)  b = Slice(x, zero, four, minus)  t = Concat<axis = 2>(a, b)",
        Counter(Slice=3, Concat=1),
    ),
    "heads, and out of them": (
        """h = Reshape(x, heads)  a = Transpose<perm = [0, 2, 1, 3]>(h)  r2 = Relu(a)  b = Transpose<perm = [0, 2, 1, 3]>(r2)
           t = Reshape(b, back)""",
        Counter(Slice=1, Reshape=2, Transpose=2, Relu=1),
    ),
    "heads whose sizes follow": ("h = Reshape(x, kept)  a = Relu(h)  t = Reshape(a, rest)", Counter(Slice=1, Reshape=2, Relu=1)),
    "axes turned round": ("a = Transpose<perm = [2, 1, 0]>(x)  b = Neg(a)  t = Transpose(b)", Counter(Slice=1, Transpose=2, Neg=1)),
    "one head of two": (
        "h = Reshape(x, kept)  a = Gather<axis = 2>(h, one)  t = Concat<axis = 2>(a, a)",
        Counter(Slice=1, Reshape=1, Gather=1, Concat=1),
    ),
    "one channel": (
        "a = Gather<axis = 2>(x, one)  f = Reshape(a, column)  t = Mul(x, f)",
        Counter(Slice=1, Gather=1, Reshape=1, Mul=1),
    ),
    "one part of two": (
        "h = Reshape(x, kept)  p0 = Transpose<perm = [2, 0, 1, 3]>(h)  a = Gather<axis = 0>(p0, one)  t = Concat<axis = 2>(a, a)",
        Counter(Slice=1, Reshape=1, Transpose=1, Gather=1, Concat=1),
    ),
    "tokens mixed on the last axis": (
        "a = Transpose<perm = [0, 2, 1]>(x)  m = MatMul(a, mix)  t = Transpose<perm = [0, 2, 1]>(m)",
        Counter(Transpose=2, MatMul=1, Slice=1),
    ),
    "a later token is read elsewhere": (
        "a = Relu(x)  g = Gather<axis = 1>(a, third)  t = Add(a, g)",
        Counter(Relu=1, Gather=1, Slice=1, Add=1),
    ),
    "mixed with other tokens": ("s = Softmax<axis = 1>(x)  t = Add(x, s)", Counter(Slice=2, Softmax=1, Add=1)),
    "another part is read whole": (
        "a, b = Split<axis = 2>(x, cuts)  m = ReduceMean<keepdims = 1>(b)  u = Concat<axis = 2>(a, a, a)  t = Add(u, m)",
        Counter(Split=1, ReduceMean=1, Slice=1, Concat=1, Add=1),
    ),
}
# One block: two heads of 3 channels, queries, keys and values from layers of their own, the class token read at the end.
LAYERS = "float[6, 6] qw, float[6] qb, float[6, 6] kw, float[6] kb, float[6, 6] vw, float[6] vb, float[6, 6] pw, float[6] pb"
BLOCK = f"""<ir_version: 10, opset_import: ["": 20]> main (float[batch, 5, 6] x, float[6] s, float[6] b, {LAYERS}, float[6, 8] fw,
 float[8] fb, float[8, 6] gw, float[6] gb, float[1, 2, 5, 5] bias) => (float[batch, 6] out)
<{INTEGERS}, int64[4] heads = {{0, 0, 2, 3}}, int64[3] back = {{0, 5, 6}}>
{{ n = LayerNormalization(x, s, b)
   q1 = MatMul(n, qw)  q2 = Add(q1, qb)  q3 = Reshape(q2, heads)  q = Transpose<perm = [0, 2, 1, 3]>(q3)
   k1 = MatMul(n, kw)  k2 = Add(k1, kb)  k3 = Reshape(k2, heads)  k = Transpose<perm = [0, 2, 3, 1]>(k3)
   v1 = MatMul(n, vw)  v2 = Add(v1, vb)  v3 = Reshape(v2, heads)  v = Transpose<perm = [0, 2, 1, 3]>(v3)
   z = MatMul(q, k)  e = Add(z, bias)  a = Softmax(e)  m = MatMul(a, v)  g = Transpose<perm = [0, 2, 1, 3]>(m)  j = Reshape(g, back)
   p1 = MatMul(j, pw)  p2 = Add(p1, pb)  r = Add(x, p2)
   n2 = LayerNormalization(r, s, b)  f1 = MatMul(n2, fw)  f2 = Add(f1, fb)  f3 = Gelu(f2)  f4 = MatMul(f3, gw)  f5 = Add(f4, gb)
   t = Add(r, f5)  y = Gather<axis = 1>(t, none)  out = Neg(y) }}"""
BLOCK_WEIGHTS = "s b qw qb kw kb vw vb pw pb fw fb gw gb bias"
WEIGHTS = "p p2 w c r probe mix"


def sequence(nodes: str, read: str = "y = Gather<axis = 1>(t, zero)  out = Neg(y)", rows: int = 1) -> str:
    return SEQUENCE.replace("NODES", nodes).replace("TAKE", read).replace("READ", str(rows))


LEFT = {
    "all tokens": sequence("t = Relu(x)", "y = Slice(t, zero, five, second)  out = Neg(y)", 5),
    "the last": sequence("t = Relu(x)", "y = Gather<axis = 1>(t, minus)  out = Neg(y)"),
    "some behind the first": sequence("t = Relu(x)", "y = Slice(t, second, four, second)  out = Neg(y)", 3),
    "up to one from behind": sequence("t = Relu(x)", "y = Slice(t, zero, minus, second)  out = Neg(y)", 4),
    "every second": sequence("t = Relu(x)", "y = Slice(t, zero, four, second, two)  out = Neg(y)", 2),
    "an axis from behind": sequence("t = Relu(x)", "y = Slice(t, zero, two, before)  out = Neg(y)", 2),
    "tokens and channels at once": sequence("t = Relu(x)", "y = Slice(t, zeros, ends, axes)  out = Concat<axis = 2>(y, y)"),
    "channels": sequence("t = Relu(x)", "y = Slice(t, zero, two, two)  out = Concat<axis = 2>(y, y, y)", 5),
    "images": sequence("t = Relu(x)", "y = Gather(t, zero)  out = Neg(y)", 5),
    "a token that is computed": sequence("t = Relu(x)", "i = ArgMax<axis = 0, keepdims = 1>(n)  y = Gather<axis = 1>(t, i)  out = Neg(y)"),
    "a mean": sequence("t = Relu(x)", "y = ReduceMean<keepdims = 1>(t, second)  out = Neg(y)"),
    "a mean beside the first": sequence(
        "t = Relu(x)", "y = ReduceMean<keepdims = 1>(t, second)  a = Gather<axis = 1>(t, zero)  out = Add(a, y)"
    ),
    "a probe": sequence("t = Relu(x)", "u = Transpose<perm = [0, 2, 1]>(t)  z = MatMul(probe, u)  a = Softmax(z)  out = MatMul(a, t)"),
    "tokens mixed": sequence("t = MatMul(mix, x)"),
    "tokens put side by side": sequence(
        "a = Slice(x, second, five, second)  b = Slice(x, zero, second, second)  t = Concat<axis = 1>(a, b)"
    ),
    "a softmax over tokens": sequence("t = Softmax<axis = 1>(x)"),
    "a norm over tokens": sequence("t = LayerNormalization<axis = 1>(x, p2, p2)"),
    "something unknown": sequence("t = Exp(x)"),
    "something unknown that is sliced": sequence("t = Exp(x)", "y = Slice(t, zero, two, second)  out = Neg(y)", 2),
    "tokens in another order": sequence("t = Slice(x, minus, far, second, minus)"),
    "tokens on no axis of their own": sequence("a = Reshape(x, flat)  b = Neg(a)  t = Reshape(b, whole)"),
    "the images' size is free": sequence("t = Relu(x)").replace("float[batch, 5, 6] x", "float[batch, tokens, 6] x"),
    "the tokens leave the graph": sequence("t = Relu(x)").replace("6] out)", "6] out, float[batch, 5, 6] t)"),
}


def rows(node: ir.Node) -> int | ir.SymbolicDim:
    """The size of axis 1 of what the node computes: the number of tokens in a sequence."""
    shape = node.outputs[0].shape
    assert shape is not None
    return shape[1]


def right_side(product: ir.Node) -> str:
    """The name of the second input of a MatMul."""
    assert product.inputs[1] is not None
    return str(product.inputs[1].name)


@pytest.mark.parametrize(("kept", "read"), READS.values(), ids=READS)
def test_so_many_tokens_are_computed_as_are_read(kept, read, weighted, run):
    rows = 1 if "(t, second)" in read else kept
    model = weighted(sequence("t = Relu(x)", read, rows), WEIGHTS)
    before = run(model)
    assert PruneLastBlock()(model).modified
    (relu,) = [node for node in model.graph if node.op_type == "Relu"]
    assert [str(size) for size in relu.outputs[0].shape] == ["batch", str(kept), "6"]
    assert relu.inputs[0].producer().op_type == "Slice"
    np.testing.assert_array_equal(run(model)[0], before[0])  # the same operations on the same numbers


@pytest.mark.unit
@pytest.mark.parametrize("read", ["y = Slice(t, zero, two, second)  out = Neg(y)", "y = Slice(t, zero, two, second, second)  out = Neg(y)"])
def test_a_slice_of_what_is_left_goes(read, weighted):
    model = weighted(sequence("t = Relu(x)", read, 2), WEIGHTS)
    PruneLastBlock()(model)
    assert [node.op_type for node in model.graph] == ["Slice", "Relu", "Neg"]


@pytest.mark.parametrize(("nodes", "ops"), NODES.values(), ids=NODES)
def test_a_token_is_cut_out_of_what_it_is_made_of(nodes, ops, weighted, run):
    model = weighted(sequence(nodes), WEIGHTS)
    before = run(model)
    assert PruneLastBlock()(model).modified
    assert Counter(node.op_type for node in model.graph) == ops + Counter(Gather=1, Neg=1)
    np.testing.assert_allclose(run(model)[0], before[0], rtol=0, atol=2e-6)  # another kernel may add 6 products in another order


def test_of_a_block_only_keys_and_values_are_computed_for_all_tokens(weighted, run):
    model = weighted(BLOCK, BLOCK_WEIGHTS)
    before = run(model)
    assert PruneLastBlock()(model).modified
    assert Counter(node.op_type for node in model.graph)["Slice"] == 2  # of what the queries are made of, and of the residual
    whole = {right_side(node) for node in model.graph if node.op_type == "MatMul" and rows(node) == 5}
    assert whole == {"kw", "vw"}
    (softmax,) = [node for node in model.graph if node.op_type == "Softmax"]
    assert [str(size) for size in softmax.outputs[0].shape] == ["batch", "2", "1", "5"]
    # Sums of some dozens of products around 1, each rounded to float32's 6e-8; another kernel adds them in another order.
    np.testing.assert_allclose(run(model)[0], before[0], rtol=0, atol=2e-5)


@pytest.mark.unit
def test_a_bias_on_the_scores_is_cut_when_the_pass_runs(weighted):
    model = weighted(BLOCK, BLOCK_WEIGHTS)
    bias = model.graph.initializers["bias"].const_value.numpy()
    PruneLastBlock()(model)
    assert "bias" not in model.graph.initializers
    (cut,) = [value.const_value.numpy() for name, value in model.graph.initializers.items() if "bias" in name]
    np.testing.assert_array_equal(cut, bias[:, :, :1])


def test_what_leaves_the_graph_on_the_way_stays_whole(weighted, run):
    model = weighted(sequence("a = Relu(x)  t = Sigmoid(a)"), WEIGHTS)
    model.graph.outputs.append(next(value for node in model.graph for value in node.outputs if value.name == "a"))
    before = run(model)
    assert PruneLastBlock()(model).modified
    assert [node.op_type for node in model.graph] == ["Relu", "Slice", "Sigmoid", "Gather", "Neg"]
    for found, expected in zip(run(model), before, strict=True):
        np.testing.assert_array_equal(found, expected)  # the same operations on the same numbers


@pytest.mark.parametrize("text", LEFT.values(), ids=LEFT)
def test_anything_else_is_left_alone(text, weighted, run, written):
    model = weighted(text, WEIGHTS)
    before, numbers = written(model), run(model)
    assert not PruneLastBlock()(model).modified
    assert written(model) == before
    np.testing.assert_array_equal(run(model)[0], numbers[0])


@pytest.mark.unit
@pytest.mark.parametrize("text", [sequence("t = Relu(x)"), BLOCK], ids=["a sequence", "a block"])
def test_a_second_run_changes_nothing(text, weighted, written):
    model = weighted(text, f"{WEIGHTS} {BLOCK_WEIGHTS}")
    assert PruneLastBlock()(model).modified
    before = written(model)
    assert not PruneLastBlock()(model).modified
    assert written(model) == before


@pytest.mark.unit
def test_a_model_with_local_functions_is_refused_and_told_to_inline_first(with_function):
    with pytest.raises(ir.passes.PreconditionError, match="InlinePass"):
        PruneLastBlock()(with_function(BLOCK))


ALL = {"gated_mlp": True, "activation": "silu", "attn_norm": True, "mlp_norm": True, "layer_scale": True}
NETWORKS = {
    "the paper's": ({}, ("logits", "embedding")),
    "two tokens, rotary, every extra": ({"distilled": True, "pool": "cls_dist", "rope": Rope(0.5), "embed_dim": 48, **ALL}, None),
    "its attention, norms and relative positions": (
        {"num_registers": 3, "qk_norm": True, "rel_pos_bias": True, "final_norm": "pooled", "representation_size": 20},
        ("logits", "attention"),
    ),
    "one block": (
        {"depth": 1, "pre_norm": True, "final_norm": "aside", "distilled": True, "pool": "cls_dist_mean", "activation": "quick_gelu"},
        None,
    ),
}


@pytest.mark.parametrize(("fields", "outputs"), NETWORKS.values(), ids=NETWORKS)
def test_a_network_computes_the_same_with_all_tokens_for_keys_and_values_alone(fields, outputs, random_network, simplified, worst_floors):
    model = random_network(outputs, **fields)
    graph = UnpackHeads()(simplified(model, 20)).model
    assert PruneLastBlock()(graph).modified
    last, tokens = f"blocks.{model.config.depth - 1}.", model.config.num_tokens
    tokens_of = {right_side(node): rows(node) for node in graph.graph if node.op_type == "MatMul"}
    assert [name for name, count in tokens_of.items() if name.startswith(last) and count == tokens] == [
        f"{last}attn.{part}.weight" for part in "kv"
    ]
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)  # that the shapes are what they are said to be
    assert worst_floors(model, graph) < 2  # half of what a file is held to
