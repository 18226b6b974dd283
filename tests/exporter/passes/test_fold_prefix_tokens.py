"""What FoldPrefixTokens promises, on graphs small enough to read, run by onnxruntime itself, and on networks."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from vit_exporter.passes.fold_prefix_tokens import FoldPrefixTokens
from vit_models import OUTPUT_NAMES

MAIN = '<ir_version: 10, opset_import: ["": 18]> main (float[batch, 4, 3] x, float[1, 1, 3] c, float[1, 2, 3] r, float[1, {rows}, 3] p) => '
COPIES = "n = Shape<start = 0, end = 1>(x)  one = Constant<value_ints = [1]>()  w = Constant<value_ints = [3]>()  "


def stem(nodes: str, rows: int = 5, output: str = "out") -> str:
    """A graph that expands the class token c (and registers r) to the batch, in front of the patches x."""
    text = f"{MAIN.format(rows=rows)}(float[batch, {rows}, 3] {output}) {{ {COPIES} {nodes} }}"
    return text


ONE = stem("s = Concat<axis = 0>(n, one, w)  e = Expand(c, s)  z = Concat<axis = 1>(e, x)  t = Add(z, p)  out = Neg(t)")
TURNED = ONE.replace("Add(z, p)", "Add(p, z)")
TWO = stem(
    "two = Constant<value_ints = [2]>()  s = Concat<axis = 0>(n, one, w)  q = Concat<axis = 0>(n, two, w)  "
    "e = Expand(c, s)  f = Expand(r, q)  z = Concat<axis = 1>(e, f, x)  t = Add(z, p)  out = Neg(t)",
    rows=7,
)

LEFT = {
    "no positions": ONE.replace("t = Add(z, p)  out = Neg(t)", "out = Neg(z)"),
    "positions computed in the graph": ONE.replace("t = Add(z, p)", "a = Neg(p)  t = Add(z, a)"),
    "positions that something else reads": ONE.replace("out = Neg(t)", "u = Add(t, p)  out = Neg(u)"),
    "tokens behind the patches": ONE.replace("Concat<axis = 1>(e, x)", "Concat<axis = 1>(x, e)"),
    "a sequence that something else reads": ONE.replace("out = Neg(t)", "u = Add(t, z)  out = Neg(u)"),
    "a token that something else reads": ONE.replace("out = Neg(t)", "m = ReduceMean<keepdims = 0>(e)  out = Add(t, m)"),
    "a token that is not constant": ONE.replace(" e = Expand(c, s)", " k = Neg(c)  e = Expand(k, s)"),
    "positions one for all": ONE.replace("float[1, 5, 3] p", "float[1, 1, 3] p"),
    "a product": ONE.replace("Add(z, p)", "Mul(z, p)"),
}


@pytest.mark.parametrize(("text", "prefix"), [(ONE, "c"), (TURNED, "c"), (TWO, "c r")], ids=["one", "operands turned", "registers too"])
def test_the_tokens_go_into_the_positions(text, prefix, weighted, run):
    model = weighted(text, "c r p")
    before, old = run(model), {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    assert FoldPrefixTokens()(model).modified
    assert Counter(node.op_type for node in model.graph) == {"Pad": 1, "Add": 1, "Neg": 1}
    tokens = np.concatenate([old[name] for name in prefix.split()], axis=1)
    wanted = np.concatenate([tokens + old["p"][:, : tokens.shape[1]], old["p"][:, tokens.shape[1] :]], axis=1)
    np.testing.assert_array_equal(model.graph.initializers["p"].const_value.numpy(), wanted)
    np.testing.assert_array_equal(run(model)[0], before[0])  # the same sums


@pytest.mark.parametrize("text", LEFT.values(), ids=LEFT)
def test_anything_else_is_left_alone(text, weighted, run, written):
    model = weighted(text, "c r p")
    before, numbers = written(model), run(model)
    assert not FoldPrefixTokens()(model).modified
    assert written(model) == before
    np.testing.assert_array_equal(run(model)[0], numbers[0])


@pytest.mark.unit
def test_what_can_be_given_at_run_time_is_left_alone(weighted):
    for name in ("c", "p"):
        model = weighted(ONE, "c r p")
        model.graph.inputs.append(model.graph.initializers[name])
        assert not FoldPrefixTokens()(model).modified


@pytest.mark.unit
def test_local_functions_are_refused(with_function):
    with pytest.raises(ir.passes.PreconditionError, match="InlinePass"):
        FoldPrefixTokens()(with_function(ONE))


@pytest.mark.parametrize(
    ("fields", "modified"),
    [
        ({}, True),
        ({"num_registers": 3}, True),
        pytest.param({"distilled": True, "pool": "cls_dist"}, True, marks=pytest.mark.full),
        ({"class_token": False, "pool": "mean"}, False),
        pytest.param({"pos_embed": False}, False, marks=pytest.mark.full),
    ],
    ids=["class token", "registers", "distilled", "no class token", "no positions"],
)
def test_a_network_is_as_exact_as_before(fields, modified, random_network, simplified, worst_floors):
    model = random_network(**fields)
    graph = simplified(model, 18)
    assert FoldPrefixTokens()(graph).modified is modified
    assert worst_floors(model, graph) <= 2
    left = Counter(node.op_type for node in graph.graph)
    assert (left["Expand"] == 0 and left["Shape"] == 0) is (modified or "class_token" in fields)


def test_a_network_of_free_size_is_left_alone(random_network, simplified):
    assert not FoldPrefixTokens()(simplified(random_network(OUTPUT_NAMES, dynamic_size=True), 23)).modified
