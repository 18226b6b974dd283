"""What is said of passes that run one after the other, on graphs small enough to read."""

import onnx_ir as ir
import pytest
from onnx_ir.passes.common import IdentityEliminationPass, RemoveUnusedNodesPass

from vit_exporter.passes.applying import apply, entry_of, ops
from vit_exporter.passes.simplify import Simplify

pytestmark = pytest.mark.unit

# A copy, two nodes that nobody reads, and what is computed.
TEXT = """<ir_version: 10, opset_import: ["": 18]> main (float[batch, 3] x) => (float[batch, 3] out)
{ a = Identity(x)  b = Neg(a)  c = Relu(b)  d = Neg(b)  out = Neg(d) }"""


def test_each_pass_is_told_of_in_its_order():
    model, applied = apply(ir.from_onnx_text(TEXT), [IdentityEliminationPass(), RemoveUnusedNodesPass(), RemoveUnusedNodesPass()])
    assert [node.op_type for node in model.graph] == ["Neg", "Neg", "Neg"]
    assert applied == [
        {"name": "IdentityEliminationPass", "nodes_before": 5, "nodes_after": 4, "ops": {"Neg": 3, "Relu": 1}, "floors": None},
        {"name": "RemoveUnusedNodesPass", "nodes_before": 4, "nodes_after": 3, "ops": {"Neg": 3}, "floors": None},
        {"name": "RemoveUnusedNodesPass", "nodes_before": 3, "nodes_after": 3, "ops": {"Neg": 3}, "floors": None},
    ]


def test_no_passes_leave_the_model():
    given = ir.from_onnx_text(TEXT)
    assert apply(given, []) == (given, [])


def test_a_pass_that_makes_a_new_model_hands_it_on():
    given = ir.from_onnx_text(TEXT)
    model, applied = apply(given, [Simplify(), RemoveUnusedNodesPass()])
    assert model is not given
    assert len(given.graph) == 5
    assert [(entry["nodes_before"], entry["nodes_after"]) for entry in applied] == [(5, 3), (3, 3)]


def test_every_graph_is_checked_after_its_pass():
    seen = []

    def check(graph_pass: ir.passes.PassBase, model: ir.Model) -> float:
        seen.append((type(graph_pass), len(model.graph)))
        return len(model.graph) / 8

    _, applied = apply(ir.from_onnx_text(TEXT), [IdentityEliminationPass(), RemoveUnusedNodesPass()], check)
    assert seen == [(IdentityEliminationPass, 4), (RemoveUnusedNodesPass, 3)]
    assert [entry["floors"] for entry in applied] == [0.5, 0.375]


def test_a_check_that_fails_stops_before_the_next_pass():
    class FaultError(Exception):
        pass

    def check(graph_pass: ir.passes.PassBase, model: ir.Model) -> float:
        raise FaultError

    model = ir.from_onnx_text(TEXT)
    with pytest.raises(FaultError):
        apply(model, [IdentityEliminationPass(), RemoveUnusedNodesPass()], check)
    assert len(model.graph) == 4  # the copy is gone, the unread node is not


def test_a_step_that_is_no_pass_is_told_of_the_same_way():
    model = ir.from_onnx_text(TEXT)
    assert entry_of("QuantizeStatic", 7, model, 0.25) == {
        "name": "QuantizeStatic",
        "nodes_before": 7,
        "nodes_after": 5,
        "ops": {"Neg": 3, "Identity": 1, "Relu": 1},
        "floors": 0.25,
    }


def test_kinds_of_nodes_come_most_first_and_by_name():
    text = TEXT.replace("out = Neg(d)", "e = Tanh(d)  f = Tanh(e)  g = Tanh(f)  h = Relu(g)  out = Abs(h)")
    assert list(ops(ir.from_onnx_text(text)).items()) == [("Tanh", 3), ("Neg", 2), ("Relu", 2), ("Abs", 1), ("Identity", 1)]


def test_a_graph_without_nodes_has_no_kinds():
    assert ops(ir.from_onnx_text('<ir_version: 10, opset_import: ["": 18]> main (float[1] x) => (float[1] x) {}')) == {}
