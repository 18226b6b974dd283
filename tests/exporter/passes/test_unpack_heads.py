"""What UnpackHeads promises, on graphs small enough to read, run by onnxruntime itself, and on networks."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from vit_exporter.passes.unpack_heads import UnpackHeads
from vit_models import OUTPUT_NAMES, Rope

# Two heads of 3 channels, 5 tokens, and at the end a sum that what else is read can be added to.
PACKED = """<ir_version: 10, opset_import: ["": 18]> main (float[batch, 5, 6] x, float[6, 18] w, float[18] b) => (float[batch, 5, 6] out)
<int64[5] shape = {-1, 5, 3, 2, 3}, int64[3] joined = {-1, 5, 6}, int64 zero = {0}, int64 one = {1}, int64 two = {2},
 int64 last = {-1}, int64[1] list = {1}, int64[2] cuts = {2, 1}>
{ p = MatMul(x, w)  l = Add(p, b)  h = Reshape(l, shape)  t = Transpose<perm = [2, 0, 3, 1, 4]>(h)
  q = Gather<axis = 0>(t, zero)  k = Gather<axis = 0>(t, one)  v = Gather<axis = 0>(t, two)
  u = Transpose<perm = [0, 1, 3, 2]>(k)  z = MatMul(q, u)  a = Softmax<axis = -1>(z)  m = MatMul(a, v)
  g = Transpose<perm = [0, 2, 1, 3]>(m)  j = Reshape(g, joined)  out = Neg(j) }"""


def also(nodes: str) -> str:
    """The graph with one more number e, made by these nodes, added to what it computes."""
    return PACKED.replace("out = Neg(j)", f"{nodes}  out = Sub(e, j)")


# After the pass: three linear layers, put into heads; attention, put out of heads; and what the rest is.
PARTS = Counter(MatMul=3, Add=3, Reshape=3, Transpose=3)
ATTENTION = Counter(MatMul=2, Softmax=1, Transpose=2, Reshape=1)
ACTS = {
    "as traced": (PACKED, PARTS + ATTENTION + Counter(Neg=1)),
    "bias first": (PACKED.replace("Add(p, b)", "Add(b, p)"), PARTS + ATTENTION + Counter(Neg=1)),
    "counted from behind": (PACKED.replace("(t, two)", "(t, last)"), PARTS + ATTENTION + Counter(Neg=1)),
    "another order": (
        PACKED.replace("(t, zero)", "(t, 9)").replace("(t, two)", "(t, zero)").replace("(t, 9)", "(t, two)"),
        PARTS + ATTENTION + Counter(Neg=1),
    ),
    "queries read elsewhere": (also("e = ReduceSum<keepdims = 0>(q)"), PARTS + ATTENTION + Counter(ReduceSum=1, Sub=1)),
    "queries taken twice": (
        also("q2 = Gather<axis = 0>(t, zero)  e = ReduceSum<keepdims = 0>(q2)"),
        PARTS + ATTENTION + Counter(ReduceSum=1, Sub=1),
    ),
    "keys read as they are too": (
        also("r = Relu(k)  e = ReduceSum<keepdims = 0>(r)"),
        PARTS + ATTENTION + Counter(Relu=1, ReduceSum=1, Sub=1),
    ),
    "keys turned twice": (
        also("u2 = Transpose<perm = [0, 1, 3, 2]>(k)  r = Relu(u2)  e = ReduceSum<keepdims = 0>(r)"),
        PARTS + ATTENTION + Counter(Transpose=1, Relu=1, ReduceSum=1, Sub=1),
    ),
    "keys turned otherwise": (
        also("u2 = Transpose<perm = [3, 1, 2, 0]>(k)  r = Relu(u2)  e = ReduceSum<keepdims = 0>(r)"),
        PARTS + ATTENTION + Counter(Transpose=1, Relu=1, ReduceSum=1, Sub=1),
    ),
    "queries multiplied by themselves": (
        also("r = Mul(q, q)  e = ReduceSum<keepdims = 0>(r)"),
        PARTS + ATTENTION + Counter(Mul=1, ReduceSum=1, Sub=1),
    ),
    "values that nobody reads": (
        PACKED.replace("m = MatMul(a, v)", "m = MatMul(a, q)"),
        Counter(MatMul=2, Add=2, Reshape=2, Transpose=2) + ATTENTION + Counter(Neg=1),
    ),
    "keys and values": (
        PACKED.replace("float[6, 18] w, float[18] b", "float[6, 12] w, float[12] b, float[1, 2, 5, 3] q")
        .replace("{-1, 5, 3, 2, 3}", "{-1, 5, 2, 2, 3}")
        .replace("q = Gather<axis = 0>(t, zero)", "")
        .replace("(t, one)", "(t, zero)")
        .replace("(t, two)", "(t, one)"),
        Counter(MatMul=2, Add=2, Reshape=2, Transpose=2) + ATTENTION + Counter(Neg=1),
    ),
}
LEFT = {
    "put in another order": PACKED.replace("perm = [2, 0, 3, 1, 4]", "perm = [2, 1, 3, 0, 4]"),
    "no parts": PACKED.replace("{-1, 5, 3, 2, 3}", "{-1, 5, 1, 6, 3}").replace("(t, one)", "(t, zero)").replace("(t, two)", "(t, zero)"),
    "tokens joined": PACKED.replace("{-1, 5, 3, 2, 3}", "{-1, 1, 3, 10, 3}"),
    "no bias": PACKED.replace("l = Add(p, b)", "l = Neg(p)"),
    "another sum": PACKED.replace("l = Add(p, b)", "l = Add(p, p)"),
    "parts taken by a list": also("f = Gather<axis = 0>(t, list)  e = ReduceSum<keepdims = 0>(f)"),
    "parts taken along another axis": also("f = Gather<axis = 2>(t, one)  e = ReduceSum<keepdims = 0>(f)"),
    "parts cut": also("f1, f2 = Split<axis = 0>(t, cuts)  e = ReduceSum<keepdims = 0>(f1)"),
    "the whole is read elsewhere": also("e = ReduceSum<keepdims = 0>(t)"),
    "the whole in another order": also("h2 = Neg(h)  e = ReduceSum<keepdims = 0>(h2)"),
    "taken apart twice": also("t2 = Transpose<perm = [2, 0, 3, 1, 4]>(h)  f = Gather<axis = 0>(t2, one)  e = ReduceSum<keepdims = 0>(f)"),
    "the sum is read elsewhere": also("e = ReduceSum<keepdims = 0>(l)"),
    "the product is read elsewhere": also("e = ReduceSum<keepdims = 0>(p)"),
    "the weight is read elsewhere": also("e = ReduceSum<keepdims = 0>(w)"),
    "the bias is read elsewhere": also("e = ReduceSum<keepdims = 0>(b)"),
}


@pytest.mark.parametrize(("text", "ops"), ACTS.values(), ids=ACTS)
def test_each_part_gets_a_linear_layer_of_its_own(text, ops, weighted, run):
    model = weighted(text, "w b")
    before = run(model)
    assert UnpackHeads()(model).modified
    assert Counter(node.op_type for node in model.graph) == ops
    assert not [value.name for node in model.graph for value in node.outputs if value.shape is None or len(value.shape) == 5]
    # Sums of 6 products around 1, then softmaxes; another kernel adds them in another order, each rounded to float32's 6e-8.
    np.testing.assert_allclose(run(model)[0], before[0], rtol=1e-5, atol=1e-5)


@pytest.mark.unit
def test_the_weights_are_cut_by_columns_and_named_after_their_part(weighted):
    model = weighted(PACKED, "w b")
    weight, bias = (model.graph.initializers[name] for name in ("w", "b"))
    whole = weight.const_value.numpy(), bias.const_value.numpy()
    weight.name, bias.name = "attn.qkv.weight", "attn.qkv.bias"
    UnpackHeads()(model)
    found = {name: value.const_value.numpy() for name, value in model.graph.initializers.items() if name.startswith("attn.")}
    assert list(found) == [f"attn.{part}.{kind}" for part in "qkv" for kind in ("weight", "bias")]
    for index, part in enumerate("qkv"):
        columns = slice(6 * index, 6 * index + 6)
        np.testing.assert_array_equal(found[f"attn.{part}.weight"], whole[0][:, columns])
        np.testing.assert_array_equal(found[f"attn.{part}.bias"], whole[1][columns])


@pytest.mark.unit
def test_the_keys_are_put_in_order_first_and_turned_for_the_scores_next_to_their_product(weighted):
    model = weighted(PACKED, "w b")
    UnpackHeads()(model)
    (softmax,) = [node for node in model.graph if node.op_type == "Softmax"]
    turned = softmax.inputs[0].producer().inputs[1].producer()
    ordered = turned.inputs[0].producer()
    assert [tuple(node.attributes["perm"].as_ints()) for node in (ordered, turned)] == [(0, 2, 1, 3), (0, 1, 3, 2)]
    assert ordered.inputs[0].producer().op_type == "Reshape"


@pytest.mark.parametrize("text", LEFT.values(), ids=LEFT)
def test_anything_else_is_left_alone(text, weighted, run, written):
    model = weighted(text, "w b")
    before, numbers = written(model), run(model)
    assert not UnpackHeads()(model).modified
    assert written(model) == before
    np.testing.assert_array_equal(run(model)[0], numbers[0])


@pytest.mark.unit
@pytest.mark.parametrize("output", ["l", "h", "t", "q"])
def test_what_leaves_the_graph_is_left_alone(output, weighted, written):
    model = weighted(PACKED, "w b")
    model.graph.outputs.append(next(value for node in model.graph for value in node.outputs if value.name == output))
    before = written(model)
    assert not UnpackHeads()(model).modified
    assert written(model) == before


def test_turned_keys_that_leave_the_graph_are_still_computed(weighted, run):
    model = weighted(PACKED, "w b")
    model.graph.outputs.append(next(value for node in model.graph for value in node.outputs if value.name == "u"))
    before = run(model)
    assert UnpackHeads()(model).modified
    assert model.graph.outputs[1].name == "u"
    np.testing.assert_allclose(run(model)[1], before[1], rtol=1e-5, atol=1e-5)  # sums of 6 products around 1, each rounded to 6e-8


@pytest.mark.unit
@pytest.mark.parametrize("weights", ["w", "b"])
def test_a_weight_that_is_not_constant_is_left_alone(weights, weighted):
    assert not UnpackHeads()(weighted(PACKED, weights)).modified


@pytest.mark.unit
def test_numbers_are_cut_only_when_somebody_reads_them(weighted):
    def read() -> ir.TensorProtocol:
        raise AssertionError("a weight was read")

    model = weighted(PACKED, "w b")
    for name in ("w", "b"):
        value = model.graph.initializers[name]
        value.const_value = ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=value.shape, name=name)
    assert UnpackHeads()(model).modified


@pytest.mark.unit
def test_a_model_with_local_functions_is_refused_and_told_to_inline_first(with_function):
    with pytest.raises(ir.passes.PreconditionError, match="InlinePass"):
        UnpackHeads()(with_function(PACKED))


NETWORKS = {
    "every output, rotary": ({"rope": Rope(0.5), "embed_dim": 48, "layer_scale": True}, OUTPUT_NAMES, 6),
    "map, norms and relative positions": (
        {"class_token": False, "pool": "map", "qk_norm": True, "rel_pos_bias": True, "depth": 1},
        ("logits", "tokens"),
        5,
    ),
}


@pytest.mark.parametrize(("fields", "outputs", "parts"), NETWORKS.values(), ids=NETWORKS)
def test_a_network_computes_the_same(fields, outputs, parts, random_network, simplified, worst_floors):
    model = random_network(outputs, **fields)
    graph = simplified(model, 20)
    assert UnpackHeads()(graph).modified
    assert not [node.name for node in graph.graph for value in node.outputs if len(value.shape) == 5]
    weights = [name for name in graph.graph.initializers if name.endswith((".q.weight", ".k.weight", ".v.weight"))]
    assert len(weights) == parts + (model.attn_pool is not None)  # the probe's query has a layer of its own as it is
    assert worst_floors(model, graph) < 2  # half of what a file is held to
