"""What Narrow promises, on graphs small enough to read, run by onnxruntime itself, and on a network."""

from collections import Counter

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_graphs import stored

from vit_exporter.passes.narrow import Narrow
from vit_runtime.accuracy import cosines

F16, BF16, F32 = ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT
KINDS = {"float16": (F16, np.float16), "bfloat16": (BF16, ml_dtypes.bfloat16)}
WEIGHTS = "c w v b g h m"


def graph(nodes: str, out: str = "float[batch, 6] out", opset: int = 20) -> str:
    """A graph of images x, of the weights of a patch embedding c, layers w and v, a bias b, a norm's scale g and shift h, and a mean m."""
    return f"""<ir_version: 10, opset_import: ["": {opset}]> main (float[batch, 3, 4, 4] x, float[8, 3, 4, 4] c, float[8, 6] w,
 float[6, 6] v, float[6] b, float[6] g, float[6] h, float[1, 3, 1, 1] m) => ({out})
<int64[2] rows = {{-1, 8}}, float one = {{1.0}}> {{ {nodes} }}"""


CHAIN = graph(
    """d = Sub(x, m)  i = Conv(d, c)  r = Reshape(i, rows)  p = MatMul(r, w)  s = Add(p, b)  n = LayerNormalization(s, g, h)
   q = MatMul(n, v)  out = Add(q, s)"""
)
TWICE = graph(
    "i = Conv(x, c)  r = Reshape(i, rows)  first = MatMul(r, w)  out = MatMul(first, v)", "float[batch, 6] first, float[batch, 6] out"
)
SIZES = graph(
    "i = Conv(x, c)  r = Reshape(i, rows)  p = MatMul(r, w)  z = Shape(x)  f = Cast<to = 1>(z)  e = ReduceMax(f)  out = Mul(p, e)"
)


def named(model: ir.Model) -> dict[str, ir.Node]:
    """The nodes by the name of what they make, which the graphs above give."""
    return {str(node.outputs[0].name): node for node in model.graph}


def name_nodes(model: ir.Model) -> ir.Model:
    for node in model.graph:
        node.name = f"layer/{node.outputs[0].name}"
    return model


def types(model: ir.Model) -> dict[str, ir.DataType | None]:
    return {name: node.outputs[0].dtype for name, node in named(model).items()}


def checked(model: ir.Model) -> None:
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


@pytest.mark.unit
def test_what_is_computed_from_the_image_is_in_float16_and_what_prepares_it_is_not(weighted):
    model = name_nodes(weighted(CHAIN, WEIGHTS))
    assert Narrow("float16")(model).modified
    found = types(model)
    assert found["d"] == F32
    assert {found[name] for name in ("i", "r", "p", "s", "n", "q")} == {F16}
    assert Counter(node.op_type for node in model.graph)["Cast"] == 2  # behind the mean, and in front of the output
    assert {name: value.dtype for name, value in model.graph.initializers.items() if name in WEIGHTS.split()} == {
        "m": F32,
        **dict.fromkeys("cwvbgh", F16),
    }
    checked(model)


@pytest.mark.unit
def test_inputs_and_outputs_stay_float32_under_their_names(weighted):
    model = name_nodes(weighted(TWICE, WEIGHTS))
    Narrow("float16")(model)
    assert [(value.name, value.dtype) for value in model.graph.inputs] == [("x", F32)]
    assert [(value.name, value.dtype) for value in model.graph.outputs] == [("first", F32), ("out", F32)]
    ((second, _),) = model.graph.initializers["v"].uses()
    assert [value.dtype for value in second.inputs if value is not None] == [
        F16,
        F16,
    ]  # an output that is read within the graph is read as it was computed
    checked(model)


@pytest.mark.unit
def test_in_bfloat16_an_op_that_the_standard_has_not_in_it_stays_float32(weighted):
    """Conv has it from opset 22 on, and what only moves its numbers on has its type."""
    older, newer = name_nodes(weighted(CHAIN, WEIGHTS)), name_nodes(weighted(CHAIN.replace('"": 20', '"": 22'), WEIGHTS))
    for model in (older, newer):
        Narrow("bfloat16")(model)
        checked(model)
    assert [types(older)[name] for name in ("i", "r", "p")] == [F32, F32, BF16]
    assert [types(newer)[name] for name in ("i", "r", "p")] == [BF16, BF16, BF16]


@pytest.mark.unit
def test_ops_that_are_not_among_those_given_stay_float32(weighted):
    model = name_nodes(weighted(CHAIN, WEIGHTS))
    Narrow("bfloat16", ops={"MatMul", "Add"})(model)
    assert {name: dtype for name, dtype in types(model).items() if name in "psnq"} == {"p": BF16, "s": BF16, "n": F32, "q": BF16}
    checked(model)


def test_an_island_is_computed_in_float32_from_float32_weights_with_casts_around(weighted):
    model, plain = name_nodes(weighted(CHAIN, WEIGHTS)), weighted(CHAIN, WEIGHTS)
    Narrow("float16", wide=["layer/n", "layer/q"])(model)
    found = types(model)
    assert [found[name] for name in ("s", "n", "q")] == [F16, F32, F32]
    assert model.graph.initializers["v"].dtype == model.graph.initializers["g"].dtype == F32
    np.testing.assert_array_equal(stored(model, "v"), stored(plain, "v"))
    assert {value.dtype for value in named(model)["n"].inputs if value is not None} == {F32}
    checked(model)


@pytest.mark.unit
def test_a_value_that_several_islands_read_is_widened_once(weighted):
    text = graph("i = Conv(x, c)  r = Reshape(i, rows)  p = MatMul(r, w)  a = MatMul(p, v)  e = Neg(p)  out = Add(a, e)")
    model = name_nodes(weighted(text, WEIGHTS))
    Narrow("float16", wide=["layer/a", "layer/e", "layer/out"])(model)
    assert Counter(node.op_type for node in model.graph)["Cast"] == 2  # x and p; the output is float32 already
    checked(model)


@pytest.mark.unit
def test_a_weight_that_is_read_in_both_is_stored_in_both(weighted):
    text = graph("i = Conv(x, c)  r = Reshape(i, rows)  p = MatMul(r, w)  a = MatMul(p, v)  out = MatMul(a, v)")
    model = name_nodes(weighted(text, WEIGHTS))
    Narrow("float16", wide=["layer/out"])(model)
    assert model.graph.initializers["v"].dtype == F32
    assert model.graph.initializers["v/float16"].dtype == F16
    checked(model)


@pytest.mark.unit
def test_what_depends_on_the_size_alone_stays_float32(weighted):
    """In float16 the grid of a large image would lose its places."""
    model = name_nodes(weighted(SIZES, WEIGHTS))
    Narrow("float16")(model)
    found = types(model)
    assert [found[name] for name in ("f", "e", "p")] == [F32, F32, F16]
    checked(model)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_rounded_to_the_nearest_when_somebody_reads_them(kind, weighted):
    model, plain = weighted(CHAIN, WEIGHTS), weighted(CHAIN, WEIGHTS)
    Narrow(kind)(model)
    stored = model.graph.initializers["w"].const_value
    np.testing.assert_array_equal(stored.numpy(), plain.graph.initializers["w"].const_value.numpy().astype(KINDS[kind][1]))


@pytest.mark.unit
def test_a_weight_beyond_float16_becomes_inf_for_the_simulation_to_find(weighted):
    model = weighted(CHAIN, WEIGHTS)
    model.graph.initializers["w"].const_value = ir.tensor(np.full((8, 6), 1e5, np.float32), name="w")
    Narrow("float16")(model)
    assert np.isinf(model.graph.initializers["w"].const_value.numpy()).all()


def test_onnxruntime_runs_the_float16_graph_and_the_numbers_are_near(weighted, run):
    model = name_nodes(weighted(CHAIN, WEIGHTS))
    before = run(model)[0]
    Narrow("float16")(model)
    (found,) = run(model)
    assert found.dtype == np.float32
    # Each of a few operations is off by 2^-12 of itself at most, root mean square; ten of them are 2^-9.
    assert 0 < np.linalg.norm(found - before) / np.linalg.norm(before) < 2.0**-9


@pytest.mark.unit
def test_a_graph_without_products_of_the_image_is_left_alone(weighted, written):
    model = weighted(graph("z = Shape(x)  out = Cast<to = 1>(z)", "float[4] out"), WEIGHTS)
    before = written(model)
    assert not Narrow("float16")(model).modified
    assert written(model).count(b"float16") == before.count(b"float16") == 0


@pytest.mark.unit
def test_a_model_with_local_functions_is_refused_and_told_to_inline_first(with_function):
    with pytest.raises(ir.passes.PreconditionError, match="InlinePass"):
        Narrow("float16")(with_function(CHAIN))


@pytest.mark.parametrize(("kind", "cosine"), [("float16", 1 - 1e-6)])
def test_of_a_network_everything_between_the_casts_is_narrow(kind, cosine, tiny_model, run):
    model = ir.load(tiny_model)
    before = run(model)
    Narrow(kind)(model)
    widths = {value.dtype for name, value in model.graph.initializers.items() if "." in name and value.dtype in (F16, F32)}
    assert widths == {F16}
    assert {node.op_type for node in model.graph if node.outputs[0].dtype == F32} <= {"Cast", "Sub"}
    for found, expected in zip(run(model), before, strict=True):
        assert cosines(expected, found).min() > cosine
