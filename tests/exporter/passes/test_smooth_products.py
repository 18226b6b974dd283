"""What SmoothProducts promises, on graphs small enough to read, run by onnxruntime itself."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from helpers import assert_mentions, one_line

from vit_exporter.passes.smooth_products import SmoothProducts

# Four channels; powers of 2 as factors, so that nothing is rounded.
FACTORS = np.array([0.5, 2, 1, 4], np.float32)
MAIN = """<ir_version: 10, opset_import: ["": 18]> main (float[batch, 6, 4] x, float[4, 5] w, float[4, 5] v, float[5, 4] u)
=> (float[batch, 6, width] out) """
ACTS = {
    "one product": ("{ out = MatMul(x, w) }", {"x": FACTORS}, Counter(Mul=1, MatMul=1)),
    "two of one input": ("{ a = MatMul(x, w)  b = MatMul(x, v)  out = Add(a, b) }", {"x": FACTORS}, Counter(Mul=1, MatMul=2, Add=1)),
    "an input that something else reads": (
        "{ r = Relu(x)  a = MatMul(r, w)  s = ReduceSum<keepdims = 1>(r)  out = Add(a, s) }",
        {"r": FACTORS},
        Counter(Relu=1, Mul=1, MatMul=1, ReduceSum=1, Add=1),
    ),
    "two after one another": (
        "{ a = MatMul(x, w)  b = MatMul(a, u)  out = MatMul(b, v) }",
        {"x": FACTORS, "b": 2 * FACTORS},
        Counter(Mul=2, MatMul=3),
    ),
}


@pytest.mark.parametrize(("nodes", "factors", "ops"), ACTS.values(), ids=ACTS)
def test_the_graph_computes_the_same_with_its_inputs_divided_and_its_weights_multiplied(weighted, run, nodes, factors, ops):
    before, after = (weighted(MAIN + nodes, "w v u") for _ in range(2))
    assert SmoothProducts(factors)(after).modified
    assert Counter(node.op_type for node in after.graph) == ops
    for ours, theirs in zip(run(after), run(before), strict=True):
        np.testing.assert_array_equal(ours, theirs)  # nothing is rounded where the factors are powers of 2


@pytest.mark.unit
def test_every_channel_of_the_input_is_divided_by_its_factor_and_its_row_of_the_weight_multiplied(weighted):
    nodes = MAIN + "{ out = MatMul(x, w) }"
    before, after = weighted(nodes, "w v u"), weighted(nodes, "w v u")
    SmoothProducts({"x": FACTORS})(after)
    (mul,) = [node for node in after.graph if node.op_type == "Mul"]
    np.testing.assert_array_equal(mul.inputs[1].const_value.numpy(), 1 / FACTORS)
    old, new = (model.graph.initializers["w"].const_value.numpy() for model in (before, after))
    np.testing.assert_array_equal(new, FACTORS[:, None] * old)


def test_any_factors_round_and_no_more(weighted, run):
    factors = np.array([0.3, 1.7, 0.011, 39.0], np.float32)
    nodes = MAIN + "{ a = MatMul(x, w)  b = MatMul(a, u)  out = MatMul(b, v) }"
    before, after = weighted(nodes, "w v u"), weighted(nodes, "w v u")
    SmoothProducts({"x": factors, "b": factors})(after)
    np.testing.assert_allclose(run(after)[0], run(before)[0], rtol=1e-5, atol=1e-4)  # three products of numbers around 1 to 10


LEFT = {
    "no factors": ("{ out = MatMul(x, w) }", {}),
    "factors of another value": ("{ r = Relu(x)  out = MatMul(r, w) }", {"x": FACTORS}),
    "a product of two inputs": ("{ t = Transpose<perm = [0, 2, 1]>(x)  out = MatMul(x, t) }", {"x": FACTORS}),
    "a weight that is read twice": ("{ a = MatMul(x, w)  b = MatMul(x, w)  out = Add(a, b) }", {"x": FACTORS}),
}


@pytest.mark.unit
@pytest.mark.parametrize(("nodes", "factors"), LEFT.values(), ids=LEFT)
def test_what_has_no_factors_stays_as_it_is(weighted, written, nodes, factors):
    model = weighted(MAIN + nodes, "w v u")
    before = written(model)
    assert not SmoothProducts(factors)(model).modified
    assert written(model) == before


@pytest.mark.unit
@pytest.mark.parametrize(
    "factors", [FACTORS[:3], FACTORS[:, None], np.float32(2), 0 * FACTORS, -FACTORS, np.full(4, np.nan, np.float32)], ids=str
)
def test_factors_that_are_not_one_above_zero_for_each_channel_are_refused(weighted, factors):
    with pytest.raises(ir.passes.PreconditionError) as raised:
        SmoothProducts({"x": np.asarray(factors)})(weighted(MAIN + "{ out = MatMul(x, w) }", "w v u"))
    assert_mentions(one_line(raised), "x", np.shape(factors))


@pytest.mark.unit
def test_a_model_with_local_functions_is_refused(with_function):
    with pytest.raises(ir.passes.PreconditionError, match="InlinePass"):
        SmoothProducts({})(with_function(MAIN + "{ out = MatMul(x, w) }"))
