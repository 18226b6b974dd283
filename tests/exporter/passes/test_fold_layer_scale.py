"""What FoldLayerScale promises, on graphs small enough to read, run by onnxruntime itself, and on a network."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from vit_exporter.passes.fold_layer_scale import FoldLayerScale

MAIN = '<ir_version: 10, opset_import: ["": 18]> main (float[batch, 5, 4] x, float[4, 3] w, float[3] b, float[3] g) => '
LINEAR = f"{MAIN}(float[batch, 5, 3] out) {{ p = MatMul(x, w)  s = Add(p, b)  m = Mul(s, g)  out = Neg(m) }}"
TURNED = LINEAR.replace("Add(p, b)", "Add(b, p)").replace("Mul(s, g)", "Mul(g, s)")
TWO = LINEAR.replace("out = Neg(m)", "q = Mul(x, x)  r = Add(m, g)  out = Neg(r)")  # which reads g too


def read_by(node: str) -> str:
    """The layer with another reader of one of its values."""
    return LINEAR.replace("out = Neg(m)", f"{node}  r = ReduceSum<keepdims = 0>(t)  out = Add(m, r)")


LEFT = {
    "the product is read twice": read_by("t = Neg(p)"),
    "the sum is read twice": read_by("t = Neg(s)"),
    "the sum is multiplied by itself": LINEAR.replace("Mul(s, g)", "Mul(s, s)"),
    "the weight is read twice": read_by("t = MatMul(x, w)"),
    "the bias is read twice": read_by("t = Neg(b)"),
    "the product is an output": LINEAR.replace("(float[batch, 5, 3] out)", "(float[batch, 5, 3] out, float[batch, 5, 3] p)"),
    "the sum is an output": LINEAR.replace("(float[batch, 5, 3] out)", "(float[batch, 5, 3] out, float[batch, 5, 3] s)"),
    "the result is an output": LINEAR.replace("m = Mul(s, g)  out = Neg(m)", "out = Mul(s, g)"),
    "a number a row": LINEAR.replace("float[3] g", "float[5, 1] g"),
    "one number for all": LINEAR.replace("float[3] g", "float[1] g"),
    "another function between": LINEAR.replace("Mul(s, g)", "Mul(r, g)").replace("m =", "r = Relu(s)  m ="),
    "no bias": LINEAR.replace("s = Add(p, b)  m = Mul(s, g)", "m = Mul(p, g)"),
    "a bias a row": LINEAR.replace("float[3] b", "float[5, 3] b"),
    "a stack of weights": LINEAR.replace("float[4, 3] w", "float[1, 4, 3] w"),
    "no Mul": LINEAR.replace("Mul(s, g)", "Div(s, g)"),
}


@pytest.mark.parametrize("text", [LINEAR, TURNED], ids=["as traced", "operands turned"])
def test_the_factors_go_into_weight_and_bias_under_their_names(text, weighted, run):
    model = weighted(text, "w b g")
    before, old = run(model), {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    assert FoldLayerScale()(model).modified
    assert Counter(node.op_type for node in model.graph) == {"MatMul": 1, "Add": 1, "Neg": 1}
    assert set(model.graph.initializers) == {"w", "b"}
    for name in ("w", "b"):
        np.testing.assert_array_equal(model.graph.initializers[name].const_value.numpy(), old[name] * old["g"])  # rounded once, as here
    # Sums of four products around 1, each rounded to float32's 6e-8, once more or less than before.
    np.testing.assert_allclose(run(model)[0], before[0], rtol=0, atol=2e-6)


def test_factors_that_something_else_reads_stay(weighted, run):
    model = weighted(TWO, "w b g")
    before = run(model)
    assert FoldLayerScale()(model).modified
    assert "g" in model.graph.initializers
    np.testing.assert_allclose(run(model)[0], before[0], rtol=0, atol=2e-6)  # as above


@pytest.mark.parametrize("text", LEFT.values(), ids=LEFT)
def test_anything_else_is_left_alone(text, weighted, run, written):
    model = weighted(text, "w b g")
    before, numbers = written(model), run(model)
    assert not FoldLayerScale()(model).modified
    assert written(model) == before
    np.testing.assert_array_equal(run(model)[0], numbers[0])


@pytest.mark.unit
@pytest.mark.parametrize("weights", ["w b", "w g", "b g"])
def test_what_is_not_constant_is_left_alone(weights, weighted):
    assert not FoldLayerScale()(weighted(LINEAR, weights)).modified


@pytest.mark.unit
def test_factors_that_can_be_given_at_run_time_are_left_alone(weighted):
    model = weighted(LINEAR, "w b g")
    model.graph.inputs.append(model.graph.initializers["g"])
    assert not FoldLayerScale()(model).modified


@pytest.mark.unit
def test_numbers_are_multiplied_only_when_somebody_reads_them(weighted):
    def read() -> ir.TensorProtocol:
        raise AssertionError("a weight was read")

    model = weighted(LINEAR, "w b g")
    for value in model.graph.initializers.values():
        value.const_value = ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=value.shape, name=value.name)
    assert FoldLayerScale()(model).modified


@pytest.mark.unit
def test_a_model_with_local_functions_is_refused_and_told_to_inline_first(with_function):
    with pytest.raises(ir.passes.PreconditionError, match="InlinePass"):
        FoldLayerScale()(with_function(LINEAR))


def test_a_network_computes_the_same_and_has_no_factors_left(random_network, simplified, worst_floors):
    model = random_network(layer_scale=True)
    graph = simplified(model, 18)
    nodes = len(graph.graph)
    assert FoldLayerScale()(graph).modified
    assert len(graph.graph) == nodes - 2 * model.config.depth
    assert not [name for name in graph.graph.initializers if name.endswith("gamma")]
    assert worst_floors(model, graph) < 2  # half of what a file is held to
