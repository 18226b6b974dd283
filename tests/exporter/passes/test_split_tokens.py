"""What SplitTokens promises, on graphs small enough to read, run by onnxruntime itself, and on networks."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from vit_exporter.passes.applying import apply
from vit_exporter.passes.fold_normalization import FoldNormalization
from vit_exporter.passes.split_tokens import SplitTokens
from vit_exporter.targets import TARGETS
from vit_exporter.trace import trace
from vit_models import OUTPUT_NAMES, Rope
from vit_runtime.preprocess import Preprocessing

ROWS = (3, 2)
# A sequence x of 5 tokens of 6 channels, what is made of it, and at the end a sum over each image, which needs all tokens.
SEQUENCE = """<ir_version: 10, opset_import: ["": 20]> main (float[batch, 5, 6] x, float[1, 5, 6] p, float[5, 6] p2, float[6, 6] w,
 float[5, 5] mix, float[6] c, float[1, 1, 6] d, float[1, 6] e, float[batch, 6, 6] n) => (float[batch, ROWS, width] out)
<float half = {0.5}, float step = {0.02}, uint8 middle = {128}, int8[6, 6] stored = {STORED},
 float[6] scales = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6}, uint8[6] middles = {128, 128, 128, 128, 128, 128},
 float[5] steps = {0.01, 0.02, 0.03, 0.04, 0.05}, uint8[5] centres = {128, 128, 128, 128, 128},
 int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] three = {3}, int64[1] four = {4}, int64[1] five = {5},
 int64[1] behind = {-1}, int64[2] some = {0, 2}, int64[2] ends = {0, -1}, int64[2] axes = {1, 2},
 int64[2] images = {0, 1}, int64[1] front = {-9}, int64[2] cuts = {2, 4}, int64[4] heads = {0, 0, 2, 3},
 int64[2] origin = {0, 0}, int64[2] corner = {2, 6},
 int64[3] origins = {0, 0, 0}, int64[3] corners = {99, 2, 6}>
{ NODES  END }""".replace("STORED", ", ".join(str(number % 23 - 11) for number in range(36)))
WEIGHTS = "p p2 w mix c d e"
SUM = "out = ReduceSum<keepdims = 1>(t, one)"


def sequence(nodes: str, end: str = SUM, rows: int = 1) -> str:
    return SEQUENCE.replace("NODES", nodes).replace("END", end).replace("ROWS", str(rows))


# What is done for each piece, and how many nodes of each kind there are then, beside one Split, Concat and ReduceSum.
ACTS = {
    "a function": ("t = Relu(x)", Counter(Relu=2)),
    "a number": ("t = Mul(half, x)", Counter(Mul=2)),
    "a factor a channel": ("t = Mul(x, c)", Counter(Mul=2)),
    "a factor a channel, of two axes": ("t = Mul(x, e)", Counter(Mul=2)),
    "a factor a channel, of three axes": ("t = Mul(x, d)", Counter(Mul=2)),
    "a factor a channel, computed": ("f = Neg(c)  t = Mul(x, f)", Counter(Neg=1, Mul=2)),
    "a norm": ("t = LayerNormalization<axis = -1, epsilon = 0.1>(x, c, c)", Counter(LayerNormalization=2)),
    "a norm, counted from the front": ("t = LayerNormalization<axis = 2>(x, c)", Counter(LayerNormalization=2)),
    "a linear layer": ("m = MatMul(x, w)  t = Add(c, m)", Counter(MatMul=2, Add=2)),
    "a linear layer with a stored weight": ("s = Cast<to = 1>(stored)  t = MatMul(x, s)", Counter(Cast=1, MatMul=2)),
    "a residual": ("a = Relu(x)  t = Add(a, x)", Counter(Relu=2, Add=2)),
    "channels": ("a = Slice(x, zero, two, two)  b = Slice(x, one, three, behind, one)  t = Mul(a, b)", Counter(Slice=4, Mul=2)),
    "integers": (
        "i = QuantizeLinear(x, step, middle)  t = DequantizeLinear(i, step, middle)",
        Counter(QuantizeLinear=2, DequantizeLinear=2),
    ),
    "integers with a step for each channel": (
        "i = QuantizeLinear<axis = 2>(x, scales, middles)  t = DequantizeLinear<axis = -1>(i, scales, middles)",
        Counter(QuantizeLinear=2, DequantizeLinear=2),
    ),
}
# Tokens that are read out of t, then changed, and which nodes are left; the second piece is computed only where it is read.
FIRST, BOTH = Counter(Split=1, Relu=1, Neg=1), Counter(Split=1, Relu=2, Concat=1, Neg=1)
READS = {
    "the first": (1, "Gather<axis = 1>(t, zero)", FIRST + Counter(Gather=1)),
    "two of the first piece": (2, "Gather<axis = 1>(t, some)", FIRST + Counter(Gather=1)),
    "one of the second piece": (1, "Gather<axis = 1>(t, three)", BOTH + Counter(Gather=1)),
    "the last too": (2, "Gather<axis = 1>(t, ends)", BOTH + Counter(Gather=1)),
    "all of the first piece": (3, "Slice(t, zero, three, one)", FIRST + Counter(Slice=1)),
    "one more": (4, "Slice(t, zero, four, one)", BOTH + Counter(Slice=1)),
    "all but the last": (4, "Slice(t, zero, behind, one)", BOTH + Counter(Slice=1)),
    "every second": (3, "Slice(t, zero, five, one, two)", BOTH + Counter(Slice=1)),
    "some channels of some tokens": (2, "Slice(t, origin, corner, axes)", BOTH + Counter(Slice=1)),
    "some tokens of some images": (2, "Slice(t, origins, corners)", BOTH + Counter(Slice=1)),
}
LEFT = {
    "a table": "t = Add(x, p)",
    "a table without images": "t = Add(x, p2)",
    "a table that is computed": "a = Neg(p2)  t = Add(x, a)",
    "a matrix for each image": "t = MatMul(x, n)",
    "a product over tokens": "t = MatMul(mix, x)",
    "numbers of all images": "m = ReduceMean<keepdims = 0>(x, images)  t = Sub(x, m)",
    "numbers of each image": "m = ReduceMean<keepdims = 1>(x, axes)  t = Sub(x, m)",
    "a softmax over tokens": "t = Softmax<axis = 1>(x)",
    "a norm over tokens": "t = LayerNormalization<axis = 1>(x, p2, p2)",
    "a norm over tokens with a factor a channel": "t = LayerNormalization<axis = 1>(x, e, e)",
    "integers with a step for each token": (
        "i = QuantizeLinear<axis = 1>(x, steps, centres)  t = DequantizeLinear<axis = -2>(i, steps, centres)"
    ),
    "integers with a step for each token, by default": "i = QuantizeLinear(x, steps, centres)  t = DequantizeLinear(i, steps, centres)",
    "tokens in another order": "t = Slice(x, behind, front, one, behind)",
    "tokens cut": "t = Slice(x, one, four, one)",
    "tokens and channels cut": "t = Slice(x, origin, corner, axes)",
    "every axis cut": "t = Slice(x, origins, corners)",
    "channels from where it is computed": "s = Shape<start = 0, end = 1>(x)  m = Sub(s, s)  t = Slice(x, m, five, two)",
    "channels split": "a, b = Split<axis = 2>(x, cuts)  t = Concat<axis = 2>(b, a)",
    "another number of axes": "h = Reshape(x, heads)  f = Relu(h)  t = ReduceSum<keepdims = 0>(f, two)",
}


@pytest.mark.parametrize(("nodes", "ops"), ACTS.values(), ids=ACTS)
def test_what_is_done_for_each_token_is_done_for_each_piece(nodes, ops, weighted, run):
    model = weighted(sequence(nodes), WEIGHTS)
    before = run(model)
    assert SplitTokens(ROWS)(model).modified
    assert Counter(node.op_type for node in model.graph) == ops + Counter(Split=1, Concat=1, ReduceSum=1)
    sizes = [value.shape[1] for node in model.graph for value in node.outputs if len(value.shape) == 3]
    assert sizes == [*ROWS * (1 + sum(count // 2 for count in ops.values())), 5, 1]
    np.testing.assert_allclose(run(model)[0], before[0], rtol=0, atol=2e-6)  # sums of 5 numbers around 1, each rounded to 6e-8


@pytest.mark.parametrize(("rows", "read", "ops"), READS.values(), ids=READS)
def test_tokens_are_read_out_of_the_first_piece_where_it_has_them(rows, read, ops, weighted, run):
    model = weighted(sequence("t = Relu(x)", f"y = {read}  out = Neg(y)", rows), WEIGHTS)
    before = run(model)
    assert SplitTokens(ROWS)(model).modified
    assert Counter(node.op_type for node in model.graph) == ops
    np.testing.assert_array_equal(run(model)[0], before[0])  # numbers are only moved


def test_channels_that_leave_the_graph_are_those_of_all_tokens(weighted, run):
    model = weighted(sequence("t = Relu(x)", "out = Slice(t, zero, two, two)", 5), WEIGHTS)
    before = run(model)
    SplitTokens(ROWS)(model)
    assert Counter(node.op_type for node in model.graph) == Counter(Split=1, Relu=2, Concat=1, Slice=1)
    np.testing.assert_array_equal(run(model)[0], before[0])  # numbers are only moved


def test_the_whole_is_put_together_once_for_all_who_need_it(weighted, run):
    model = weighted(sequence("t = Relu(x)", "a = Softmax<axis = 1>(t)  b = ReduceMean<keepdims = 1>(t, one)  out = Sub(a, b)", 5), WEIGHTS)
    before = run(model)
    SplitTokens(ROWS)(model)
    assert Counter(node.op_type for node in model.graph) == Counter(Split=1, Relu=2, Concat=1, Softmax=1, ReduceMean=1, Sub=1)
    np.testing.assert_array_equal(run(model)[0], before[0])  # numbers are only moved


@pytest.mark.parametrize("rows", [(5,), (2, 1, 2), (1, 1, 1, 1, 1)])
def test_there_are_as_many_pieces_as_are_asked_for(rows, weighted, run):
    model = weighted(sequence("a = LayerNormalization(x, c, c)  m = MatMul(a, w)  t = Add(m, x)"), WEIGHTS)
    before = run(model)
    SplitTokens(rows)(model)
    assert [node.outputs[0].shape[1] for node in model.graph if node.op_type == "MatMul"] == list(rows)
    np.testing.assert_allclose(run(model)[0], before[0], rtol=0, atol=5e-6)  # sums of 30 products around 1, each rounded to 6e-8


@pytest.mark.unit
def test_all_pieces_read_the_same_weight(weighted):
    model = weighted(sequence("m = MatMul(x, w)  t = Add(m, c)"), WEIGHTS)
    weights = {name: model.graph.initializers[name] for name in ("w", "c")}
    SplitTokens(ROWS)(model)
    assert [len(value.uses()) for value in weights.values()] == [2, 2]
    assert all(model.graph.initializers[name] is value for name, value in weights.items())


@pytest.mark.unit
def test_a_weight_stored_in_int8_is_restored_once(weighted):
    model = weighted(sequence("s = DequantizeLinear<axis = 1>(stored, scales)  t = MatMul(x, s)"), WEIGHTS)
    SplitTokens(ROWS)(model)
    products = [node for node in model.graph if node.op_type == "MatMul"]
    assert [node.outputs[0].shape[1] for node in products] == list(ROWS)
    assert {node.inputs[1].name for node in products} == {"s"}


@pytest.mark.parametrize("nodes", LEFT.values(), ids=LEFT)
def test_anything_else_is_left_alone(nodes, weighted, run, written):
    model = weighted(sequence(nodes), WEIGHTS)
    before, numbers = written(model), run(model)
    assert not SplitTokens(ROWS)(model).modified
    assert written(model) == before
    np.testing.assert_array_equal(run(model)[0], numbers[0])


@pytest.mark.unit
@pytest.mark.parametrize("rows", [(3, 3), (4,)])
def test_another_number_of_tokens_is_left_alone(rows, weighted, written):
    model = weighted(sequence("t = Relu(x)"), WEIGHTS)
    before = written(model)
    assert not SplitTokens(rows)(model).modified
    assert written(model) == before


@pytest.mark.unit
def test_a_free_number_of_tokens_is_left_alone(weighted, written):
    model = weighted(sequence("t = Relu(x)").replace("float[batch, 5, 6] x", "float[batch, tokens, 6] x"), WEIGHTS)
    before = written(model)
    assert not SplitTokens(ROWS)(model).modified
    assert written(model) == before


def test_what_leaves_the_graph_stays_whole(weighted, run):
    model = weighted(sequence("a = Relu(x)  t = Sigmoid(a)"), WEIGHTS)
    model.graph.outputs.append(next(value for node in model.graph for value in node.outputs if value.name == "t"))
    before = run(model)
    assert SplitTokens(ROWS)(model).modified
    assert Counter(node.op_type for node in model.graph) == Counter(Split=1, Relu=2, Concat=1, Sigmoid=1, ReduceSum=1)
    for found, expected in zip(run(model), before, strict=True):
        np.testing.assert_array_equal(found, expected)  # numbers are only moved


@pytest.mark.unit
def test_a_second_run_changes_nothing(weighted, written):
    model = weighted(sequence("m = MatMul(x, w)  t = Add(m, x)"), WEIGHTS)
    SplitTokens(ROWS)(model)
    before = written(model)
    assert not SplitTokens(ROWS)(model).modified
    assert written(model) == before


@pytest.mark.unit
def test_a_model_with_local_functions_is_refused_and_told_to_inline_first(with_function):
    with pytest.raises(ir.passes.PreconditionError, match="InlinePass"):
        SplitTokens(ROWS)(with_function(sequence("t = Relu(x)")))


NORMS = {
    "pre_norm": True,
    "qk_norm": True,
    "attn_norm": True,
    "mlp_norm": True,
    "layer_scale": True,
    "gated_mlp": True,
    "activation": "silu",
}
POSITIONS = {"num_registers": 2, "rel_pos_bias": True, "rope": Rope(0.5), "embed_dim": 48}
NETWORKS = {
    "the paper's": ({}, None, 7),
    "every output and extra": ({"pool": "cls_mean", **NORMS, **POSITIONS}, OUTPUT_NAMES, 9),
}


@pytest.mark.parametrize(("fields", "outputs", "tokens"), NETWORKS.values(), ids=NETWORKS)
def test_a_network_computes_the_same_in_pieces(fields, outputs, tokens, random_network, worst_floors):
    model = random_network(outputs, **fields)
    passes = [each for each in TARGETS["openvino"].passes(Preprocessing.paper(16, 24)) if not isinstance(each, FoldNormalization)]
    graph, _ = apply(trace(model, 20), passes)
    assert SplitTokens((tokens - 2, 2))(graph).modified
    sizes = set[object]()  # of the chunks that linear layers compute
    for node in graph.graph:
        if node.op_type == "MatMul" and node.inputs[1] in set(graph.graph.initializers.values()):
            shape = node.outputs[0].shape
            assert shape is not None
            sizes.add(shape[1])
    assert tokens - 2 in sizes
    assert sizes <= {tokens - 2, 2, 1}  # where only the class token is left it is one
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)  # that the shapes are what they are said to be
    assert worst_floors(model, graph) < 2  # half of what a file is held to
