"""What NameByModule promises, on a graph small enough to read and on a traced network."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from vit_exporter.passes.name_by_module import SCOPES, NameByModule, module_of, scopes_of

GRAPH = """<ir_version: 10, opset_import: ["": 18]> main (float[4] x) => (float[2] first, float[2] sum)
<float[4] weight = {1.0, 2.0, 3.0, 4.0}>
{ val_1 = Add(x, weight)  val_2 = Add(val_1, weight)  first, val_3 = Split<num_outputs = 2>(val_2)  sum = Add(val_3, val_3) }"""
NOTES = [
    "['', 'blocks.0', 'blocks.0.mlp', 'add_1']",
    "['', 'blocks.0', 'blocks.0.mlp', 'add_2']",
    "['', 'blocks.0', 'split']",
    None,  # a node that the exporter put in itself
]


def noted() -> ir.Model:
    """The graph with the notes that torch's exporter leaves on its nodes."""
    model = ir.from_onnx_text(GRAPH)
    for node, note in zip(model.graph, NOTES, strict=True):
        if note is not None:
            node.metadata_props[SCOPES] = note
    return model


def run(model: ir.Model) -> list[np.ndarray]:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["first", "sum"], {"x": np.arange(4, dtype=np.float32)})


def test_nodes_and_values_are_named_after_their_module_and_op_and_numbered():
    model = noted()
    before = run(model)
    assert NameByModule()(model).modified
    names = ["blocks.0.mlp/Add", "blocks.0.mlp/Add_2", "blocks.0/Split", "vit/Add"]
    assert [node.name for node in model.graph] == names
    first, second, split, _ = model.graph
    assert [value.name for value in (*first.outputs, *second.outputs)] == names[:2]
    assert [value.name for value in split.outputs] == ["first", "blocks.0/Split:1"]  # the first is an output of the graph
    for value, old in zip(run(model), before, strict=True):
        np.testing.assert_array_equal(value, old)  # only names change, so no tolerance


@pytest.mark.unit
def test_inputs_outputs_and_initialisers_keep_their_names():
    model = noted()
    NameByModule()(model)
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert [value.name for value in model.graph.outputs] == ["first", "sum"]
    assert list(model.graph.initializers) == ["weight"]


@pytest.mark.unit
def test_names_that_are_right_already_are_left_alone():
    model = noted()
    NameByModule()(model)
    assert not NameByModule()(model).modified


@pytest.mark.unit
def test_an_empty_graph_is_left_alone():
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["": 18]> main (float[4] x) => (float[4] x) { }')
    assert not NameByModule()(model).modified


@pytest.mark.unit
def test_the_note_is_read_without_the_network_itself_and_the_nodes_own_name():
    mlp, _, split, bare = noted().graph
    assert scopes_of(mlp) == ["blocks.0", "blocks.0.mlp"]
    assert (module_of(mlp), module_of(split), module_of(bare)) == ("blocks.0.mlp", "blocks.0", "")
