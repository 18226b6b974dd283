"""What RepeatBlock promises: one traced block, repeated, is the network of that depth."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from helpers import assert_mentions, one_line
from networks import TINY, initialized
from onnx_graphs import stored

from vit_exporter.passes.name_by_module import SCOPES, NameByModule
from vit_exporter.passes.repeat_block import RepeatBlock
from vit_exporter.trace import trace
from vit_models import OUTPUT_NAMES, ViT

# A stem, one block (residual around a linear layer), and a node behind it that also reads the block's input.
GRAPH = """<ir_version: 10, opset_import: ["": 18]> main (float[b, 2] x) => (float[b, 2] out, float[b, 2] change)
<float[2, 2] w = {0.5, -1.0, 2.0, 0.25}, float[2] b = {1.0, -2.0}, float one = {1.0}>
{ stem = Add(x, one)  product = MatMul(stem, w)  biased = Add(product, b)  left = Add(stem, biased)
  out = Identity(left)  change = Sub(left, stem) }"""
SCOPE = "['', 'blocks.0', 'blocks.0.proj', 'node']"
BLOCK = ("product", "biased", "left")


def one_block(block: tuple[str, ...] = BLOCK, scope: str = SCOPE) -> ir.Model:
    """The graph as a trace leaves it: notes on the block's nodes, dotted names on its weights."""
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(GRAPH)))
    for node in model.graph:
        if node.outputs[0].name in block:
            node.metadata_props[SCOPES] = scope
    NameByModule()(model)
    for old, new in (("w", "blocks.0.proj.weight"), ("b", "blocks.0.proj.bias")):
        model.graph.initializers[old].name = new
    return model


def set_weights(model: ir.Model, depth: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    weights = []
    for block in range(depth):
        w, b = rng.standard_normal((2, 2), dtype=np.float32), rng.standard_normal(2, dtype=np.float32)
        model.graph.initializers[f"blocks.{block}.proj.weight"].const_value = ir.tensor(w)
        model.graph.initializers[f"blocks.{block}.proj.bias"].const_value = ir.tensor(b)
        weights.append((w, b))
    return weights


def run(model: ir.Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    names = [str(value.name) for value in model.graph.outputs]
    return dict(zip(names, session.run(names, inputs), strict=True))


X = np.array([[0.5, -1.0], [2.0, 3.0], [0.0, 0.25]], np.float32)


@pytest.mark.parametrize("depth", [1, 2, 3, 12])
def test_blocks_follow_one_another_each_with_weights_of_its_own(depth):
    model = one_block()
    assert RepeatBlock(depth)(model).modified == (depth > 1)
    assert len(model.graph) == 3 + 3 * depth
    weights = set_weights(model, depth)
    state = entry = X.astype(np.float64) + 1
    for w, b in weights:
        entry, state = state, state + state @ w + b
    found = run(model, {"x": X})
    scale = np.abs(state).max()  # sums of terms up to this size, each rounded to float32's 6e-8
    np.testing.assert_allclose(found["out"], state, rtol=0, atol=1e-5 * scale)
    # What lies behind the blocks and read the block's input reads the last block's.
    np.testing.assert_allclose(found["change"], state - entry, rtol=0, atol=1e-5 * scale)


@pytest.mark.unit
def test_nodes_values_and_weights_are_numbered_by_block_in_order():
    model = one_block()
    RepeatBlock(3)(model)
    names = [node.name for node in model.graph if str(node.name).startswith("blocks.")]
    assert names == [f"blocks.{block}.proj/{op}" for block in range(3) for op in ("MatMul", "Add", "Add_2")]
    assert len({value.name for node in model.graph for value in node.outputs}) == len(model.graph)
    expected = {f"blocks.{block}.proj.{kind}" for block in range(3) for kind in ("weight", "bias")} | {"one"}
    assert set(model.graph.initializers) == expected


@pytest.mark.unit
def test_a_depth_of_one_leaves_the_graph_alone():
    model = one_block()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert not RepeatBlock(1)(model).modified
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.unit
def test_a_graph_without_a_block_is_refused():
    with pytest.raises(ir.passes.PreconditionError) as raised:
        RepeatBlock(3)(one_block(block=()))
    assert_mentions(one_line(raised), "blocks.0", 1)  # the depth to trace at


@pytest.mark.unit
def test_a_graph_with_two_blocks_is_refused():
    model = one_block()
    next(node for node in model.graph if node.op_type == "Sub").metadata_props[SCOPES] = "['', 'blocks.1', 'node']"
    with pytest.raises(ir.passes.PreconditionError) as raised:
        RepeatBlock(3)(model)
    assert_mentions(one_line(raised), "blocks.0", "blocks.1")


@pytest.mark.unit
def test_a_block_that_reads_two_values_is_refused():
    with pytest.raises(ir.passes.PreconditionError) as raised:
        RepeatBlock(3)(one_block(block=("left",)))
    assert_mentions(one_line(raised), 2, 1)


@pytest.mark.unit
def test_a_block_that_writes_two_values_is_refused():
    with pytest.raises(ir.passes.PreconditionError) as raised:
        RepeatBlock(3)(one_block(block=("product", "biased", "left", "stem")))
    assert_mentions(one_line(raised), 1, 2)


# --- on the network itself --------------------------------------------------------------------------------------------

DEEP = replace(TINY, img_size=(16, 24), depth=3)


def traced_whole(model: ViT) -> ir.Model:
    """All of its blocks traced by torch's exporter, without RepeatBlock."""
    program = torch.onnx.export(
        model, (torch.zeros(2, 3, *model.config.img_size),), dynamo=True, dynamic_shapes={"pixel_values": {0: "batch"}},
        opset_version=18, input_names=["pixel_values"], output_names=list(model.outputs), optimize=False, verbose=False,
    )  # fmt: skip
    assert program is not None
    return program.model


@pytest.mark.filterwarnings("ignore::FutureWarning")  # raised by torch's exporter about its own calls
@pytest.mark.parametrize(
    ("fields", "outputs"),
    [
        ({}, OUTPUT_NAMES),
        pytest.param({"final_norm": "none"}, ("tokens",), marks=pytest.mark.full),
        ({"final_norm": "pooled"}, ("attention", "tokens")),
        pytest.param(
            {"class_token": False, "pool": "mean", "representation_size": 8}, ("logits", "embedding", "tokens"), marks=pytest.mark.full
        ),
    ],
    ids=str,
)
def test_the_repeated_graph_computes_what_the_graph_of_all_blocks_computes(fields, outputs):
    """Including the class token's attention, which reads the input of the last block."""
    model = initialized(replace(DEEP, **fields), outputs)
    pixel_values = {"pixel_values": np.random.default_rng(1).standard_normal((5, 3, 16, 24), dtype=np.float32)}
    repeated, whole = run(trace(model, 18), pixel_values), run(traced_whole(model), pixel_values)
    assert tuple(repeated) == tuple(whole) == outputs
    for name, values in repeated.items():
        # The same sums; a runtime that fused them differently would round by some units of float32's 6e-8.
        np.testing.assert_allclose(values, whole[name], rtol=0, atol=1e-6 * np.abs(whole[name]).max(), err_msg=name)


def test_every_parameter_of_the_network_is_bound_under_its_own_name():
    model = initialized(DEEP)
    graph = trace(model, 18)
    for name, values in model.state_dict().items():
        np.testing.assert_array_equal(stored(graph, name), values)  # the same numbers, so no tolerance
