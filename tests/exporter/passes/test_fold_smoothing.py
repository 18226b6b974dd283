"""What FoldSmoothing promises, on graphs small enough to read, run by onnxruntime itself."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from vit_exporter.passes.fold_smoothing import FoldSmoothing

# Six tokens of six channels; powers of 2 as factors and others, and what is no factor of a channel.
MAIN = """<ir_version: 10, opset_import: ["": 18]> main (float[batch, 6, 6] x, float[batch, 6, 1] y, float[6] computed, float[6, 4] w) =>
(float[batch, 6, width] out) <float[6] s = {0.5, 2, 1, 0.25, 4, 0.125}, float[1, 1, 6] s3 = {0.5, 2, 1, 0.25, 4, 0.125},
 float[6] odd = {0.3, 1.7, 1, 0.11, 3.9, 0.77}, float[6] odder = {0.4, 1.1, 2, 0.13, 2.9, 0.17},
 float[6] zero = {0.5, 2, 0, 0.25, 4, 0.125}, float[6] negative = {0.5, 2, 1, -0.25, 4, 0.125}, float one = {0.5}, float[1] vector = {0.5},
 float[6, 1] rows = {0.5, 2, 1, 0.25, 4, 0.125}, float[1, 6, 1] rows3 = {0.5, 2, 1, 0.25, 4, 0.125}, float[6, 6] table = {TABLE},
 float scale = {0.02}, float[1] scale1 = {0.02}, float other = {0.03}, float[6] scales = {0.02, 0.03, 0.04, 0.05, 0.06, 0.07},
 uint8 middle = {120}, uint8[1] middle1 = {120}, int8 none = {0}, uint8[6] middles = {120, 120, 120, 120, 120, 120}> """.replace(
    "TABLE", ", ".join(str((number + 1) / 8) for number in range(36))
)
QDQ = f"{MAIN}{{ m = Mul(x, s)  q = QuantizeLinear(m, scale, middle)  d = DequantizeLinear(q, scale, middle)  out = MatMul(d, w) }}"


def but(*changes: tuple[str, str]) -> str:
    """The graph with these changes."""
    text = QDQ
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


FOLDED = Counter(QuantizeLinear=1, DequantizeLinear=1, MatMul=1)
ACTS = {
    "factors first": (but(("Mul(x, s)", "Mul(s, x)")), FOLDED),
    "factors of three axes": (but(("Mul(x, s)", "Mul(x, s3)")), FOLDED),
    "signed": (but((", middle)", ", none)")), FOLDED),
    "a scale of one axis": (but(("(m, scale, middle)", "(m, scale1, middle1)")), FOLDED),
    "an axis that said nothing": (but(("QuantizeLinear(m", "QuantizeLinear<axis = 0>(m")), FOLDED),
    "the product is read elsewhere": (
        but(("out = MatMul(d, w)", "e = MatMul(d, w)  r = ReduceSum<keepdims = 0>(m)  out = Add(e, r)")),
        FOLDED + Counter(Mul=1, ReduceSum=1, Add=1),
    ),
    "quantised twice": (
        but(
            (
                "out = MatMul(d, w)",
                "q2 = QuantizeLinear(m, other, middle)  d2 = DequantizeLinear(q2, other, middle)  e = Add(d, d2)  out = MatMul(e, w)",
            )
        ),
        Counter(QuantizeLinear=2, DequantizeLinear=2, Add=1, MatMul=1),
    ),
    "two products with one scale": (
        but(
            (
                "out = MatMul(d, w)",
                "m2 = Mul(x, odder)  q2 = QuantizeLinear(m2, scale, middle)  d2 = DequantizeLinear(q2, scale, middle)  e = Add(d, d2)"
                "  out = MatMul(e, w)",
            )
        ),
        Counter(QuantizeLinear=2, DequantizeLinear=2, Add=1, MatMul=1),
    ),
}
LEFT = {
    "one factor for all": but(("Mul(x, s)", "Mul(x, one)")),
    "one factor for all, of one axis": but(("Mul(x, s)", "Mul(x, vector)")),
    "a factor for each token": but(("Mul(x, s)", "Mul(x, rows)")),
    "a factor for each token, of three axes": but(("Mul(x, s)", "Mul(x, rows3)")),
    "a factor for each number": but(("Mul(x, s)", "Mul(x, table)")),
    "channels made by the factors": but(("Mul(x, s)", "Mul(y, s)")),
    "a factor of zero": but(("Mul(x, s)", "Mul(x, zero)")),
    "a factor below zero": but(("Mul(x, s)", "Mul(x, negative)")),
    "factors that are computed": but(("Mul(x, s)", "Mul(x, computed)")),
    "another function": but(("Mul(x, s)", "Div(x, s)")),
    "a scale for each channel": but(("QuantizeLinear(m, scale, middle)", "QuantizeLinear<axis = 2>(m, scales, middles)")),
    "no zero point": but(("QuantizeLinear(m, scale, middle)", "QuantizeLinear(m, scale)"), ("(q, scale, middle)", "(q, scale)")),
    "a scale that is computed": but(
        ("m = Mul(x, s)", "m = Mul(x, s)  t = Neg(scale)  u = Neg(t)"), ("(m, scale, middle)", "(m, u, middle)")
    ),
    "nothing quantised": but(("q = QuantizeLinear(m, scale, middle)  d = DequantizeLinear(q, scale, middle)", "d = Neg(m)")),
}


@pytest.mark.unit
def test_the_factors_go_into_the_scales(weighted):
    model = weighted(QDQ, "w")
    assert FoldSmoothing()(model).modified
    quantize, restore, _ = model.graph
    assert (quantize.op_type, quantize.inputs[0].name, quantize.attributes["axis"].as_int()) == ("QuantizeLinear", "x", 2)
    scales, zero_points = (value.const_value.numpy() for value in quantize.inputs[1:])
    np.testing.assert_array_equal(scales, np.float32(0.02) / np.array([0.5, 2, 1, 0.25, 4, 0.125], np.float32))  # divided by powers of 2
    assert (zero_points.dtype, zero_points.tolist()) == (np.uint8, [120] * 6)
    assert (restore.op_type, [value.name for value in restore.inputs[1:]]) == ("DequantizeLinear", ["scale", "middle"])


@pytest.mark.parametrize(("text", "ops"), [(QDQ, FOLDED), *ACTS.values()], ids=["as left by NNCF", *ACTS])
def test_what_is_quantised_is_the_same(text, ops, weighted, run):
    model = weighted(text, "w")
    before = run(model)
    assert FoldSmoothing()(model).modified
    assert Counter(node.op_type for node in model.graph) == ops
    # Without rounding of quotients, for dividing by powers of 2, the integers are the same; sums may be added in another order.
    tolerance = 0.1 if "odder" in text else 1e-5  # other factors may move a number by one step, times a weight of up to 3
    np.testing.assert_allclose(run(model)[0], before[0], rtol=0, atol=tolerance)


def test_other_factors_move_a_number_by_one_step_at_most_and_seldom(weighted, run):
    text = but(("Mul(x, s)", "Mul(x, odd)"), ("out = MatMul(d, w)", "out = Cast<to = 1>(q)"))
    model = weighted(text, "w")
    before = run(model)[0]
    assert FoldSmoothing()(model).modified
    difference = np.abs(run(model)[0] - before)
    assert difference.max() <= 1
    assert difference.mean() < 0.01  # only where x * s / scale is within a few millionths of a half


@pytest.mark.parametrize("text", LEFT.values(), ids=LEFT)
def test_anything_else_is_left_alone(text, weighted, run, written):
    model = weighted(text, "w")
    before, numbers = written(model), run(model)
    assert not FoldSmoothing()(model).modified
    assert written(model) == before
    np.testing.assert_array_equal(run(model)[0], numbers[0])


@pytest.mark.unit
def test_a_scale_that_can_be_given_at_run_time_is_left_alone(weighted):
    for name in ("s", "scale", "middle"):
        model = weighted(QDQ, "w")
        model.graph.inputs.append(model.graph.initializers[name])
        assert not FoldSmoothing()(model).modified


@pytest.mark.unit
def test_a_second_run_changes_nothing(weighted, written):
    model = weighted(QDQ, "w")
    FoldSmoothing()(model)
    before = written(model)
    assert not FoldSmoothing()(model).modified
    assert written(model) == before


@pytest.mark.unit
def test_a_model_with_local_functions_is_refused_and_told_to_inline_first(with_function):
    with pytest.raises(ir.passes.PreconditionError, match="InlinePass"):
        FoldSmoothing()(with_function(QDQ))
