"""Static int8 quantises linear layers and attention's scores and nothing else, under the names that the network has, without a word."""

import sys
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from export_cache import ExportCache
from helpers import assert_mentions, one_line
from networks import TINY, randomized
from onnx_graphs import stored

from vit_exporter.passes.applying import apply
from vit_exporter.precision.static import quantize_static, units, without
from vit_exporter.targets import TARGETS
from vit_exporter.trace import trace
from vit_runtime.accuracy import cosines
from vit_runtime.errors import MachineError
from vit_runtime.golden import golden_images
from vit_runtime.preprocess import Preprocessing, normalize

PREPARED = Preprocessing.paper(32, 32)
LINEAR = ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2")
LAYERS = [f"blocks.{block}.{layer}" for block in range(2) for layer in LINEAR]
SCORES = ["blocks.0.attn", "blocks.1.attn"]
PASSED_ON = {"Transpose", "Reshape"}  # which only move numbers


def pixel_values(seed: int, count: int) -> np.ndarray:
    return normalize(golden_images(seed, count, 32, 32), PREPARED)


@pytest.fixture(scope="module")
def exact(exports: ExportCache) -> ir.Model:
    """A network with a random value in every parameter, in float32, as the passes for static int8 leave it."""
    model = randomized(TINY)
    graph = exports.graph("traced", model, 18, lambda: trace(model, 18))
    return apply(graph, TARGETS["portable"].passes(PREPARED, "int8-static"))[0]


@pytest.fixture(scope="module")
def quantized(exact) -> ir.Model:
    """The same network in static int8. Clone it before you change it."""
    return quantize_static(exact.clone(), pixel_values(1, 8))


def written(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


def run(model: ir.Model) -> list[np.ndarray]:
    """What the graph gives for images that it was not calibrated with."""
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    session = ort.InferenceSession(written(model), providers=["CPUExecutionProvider"])
    return session.run(None, {"pixel_values": pixel_values(2, 12)})


def sources(node: ir.Node) -> Iterator[str]:
    """What makes each input, past what only moves it: an op's name, "weight" for an initialiser."""
    for value in node.inputs:
        while value is not None and (producer := value.producer()) is not None and producer.op_type in PASSED_ON:
            value = producer.inputs[0]
        producer = value.producer() if value is not None else None
        yield producer.op_type if producer is not None else "weight"


def products(model: ir.Model) -> dict[str, list[str]]:
    """Every MatMul by its module's name, the two of attention told apart, and where its inputs come from."""
    found = {}
    for node in model.graph:
        if node.op_type == "MatMul":
            name = (node.name or "").rsplit("/", 1)[0]
            found[f"{name} values" if name in found else name] = list(sources(node))
    return found


# --- what is quantised ------------------------------------------------------------------------------------------------


def test_both_inputs_of_every_linear_layer_and_of_attentions_scores_are_in_int8(quantized):
    found = products(quantized)
    assert {name for name, inputs in found.items() if inputs == ["DequantizeLinear"] * 2} == {*LAYERS, *SCORES}


def test_of_the_softmax_and_its_product_with_the_values_nothing_is(quantized):
    found = products(quantized)
    assert {name for name, inputs in found.items() if inputs != ["DequantizeLinear"] * 2} == {f"{name} values" for name in SCORES}
    assert found["blocks.0.attn values"] == ["Softmax", "Add"]  # the values' layer ends in its bias


@pytest.mark.parametrize("op", ["Conv", "Gemm", "Softmax", "LayerNormalization", "Erf", "Add", "Mul", "Gather"])
def test_what_is_no_product_stays_in_floating_point(quantized, op):
    nodes = [node for node in quantized.graph if node.op_type == op]
    assert nodes
    for node in nodes:
        assert "DequantizeLinear" not in set(sources(node)), node.name


def test_weights_are_int8_and_everything_else_that_is_stored_is_float32(exact, quantized):
    kinds = {name: value.const_value.dtype for name, value in quantized.graph.initializers.items() if name in exact.graph.initializers}
    assert {name for name, kind in kinds.items() if kind == ir.DataType.INT8} == {f"{layer}.weight" for layer in LAYERS}
    assert set(kinds.values()) == {ir.DataType.INT8, ir.DataType.FLOAT, ir.DataType.INT64}
    assert kinds["head.weight"] == kinds["embeddings.patch_embed.proj.weight"] == ir.DataType.FLOAT


def test_weights_have_a_scale_for_each_output_channel_and_no_offset(exact, quantized):
    for layer in LAYERS:
        _, channels = stored(exact, f"{layer}.weight").shape
        assert stored(quantized, f"{layer}.weight_scale").shape == (channels,)
        assert not stored(quantized, f"{layer}.weight_zero_point").any()


# --- names ------------------------------------------------------------------------------------------------------------


def test_inputs_outputs_nodes_and_parameters_keep_their_names(exact, quantized):
    for side in ("inputs", "outputs"):
        kept = [(value.name, value.shape, value.dtype) for value in getattr(exact.graph, side)]
        assert [(value.name, value.shape, value.dtype) for value in getattr(quantized.graph, side)] == kept
    assert {node.name for node in exact.graph} <= {node.name for node in quantized.graph}
    assert set(exact.graph.initializers) <= set(quantized.graph.initializers)


def test_the_file_says_nothing_of_the_tool_that_quantised_it(quantized):
    assert not quantized.metadata_props
    assert {node.domain for node in quantized.graph} == {""}
    assert set(quantized.opset_imports) == {""}


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_other_images_give_nearly_the_same_as_in_float32(exact, quantized):
    """A step of int8 is a 127th of the largest number; a dozen products' roundings, added up at random, leave a cosine above 0.99."""
    for ours, theirs in zip(run(quantized), run(exact), strict=True):
        assert cosines(theirs, ours).min() > 0.99
        assert not np.array_equal(ours, theirs)


def test_the_same_images_give_the_same_bytes(exact, quantized):
    assert written(quantize_static(exact.clone(), pixel_values(1, 8))) == written(quantized)


def test_it_is_done_without_a_word(exact, capfd):
    """A command's answer is all that its stdout is for."""
    quantize_static(exact.clone(), pixel_values(1, 1))
    assert capfd.readouterr() == ("", "")


# --- layers that are kept ---------------------------------------------------------------------------------------------


def test_units_are_the_linear_layers_and_each_blocks_scores(quantized):
    assert sorted(units(quantized)) == sorted([*LAYERS, *SCORES])


@pytest.mark.parametrize("kept", [["blocks.1.mlp.fc2"], ["blocks.0.attn.k"], ["blocks.0.attn"], ["blocks.0.attn", "blocks.1.attn.proj"]])
def test_without_some_units_their_inputs_are_not_quantised_and_all_others_are(exact, quantized, kept):
    before = written(quantized)
    model = without(quantized, kept)
    assert sorted(units(model)) == sorted({*LAYERS, *SCORES} - set(kept))
    found, before_it = products(model), products(exact)
    for name in kept:
        assert found[name] == (before_it[name] if name in SCORES else [before_it[name][0], "DequantizeLinear"])
    assert written(quantized) == before  # it is a copy that was changed
    run(model)


def test_with_all_units_kept_only_weights_are_left_in_int8(exact, quantized):
    model = without(quantized, units(quantized))
    assert not [node for node in model.graph if node.op_type == "QuantizeLinear"]
    assert sum(node.op_type == "DequantizeLinear" for node in model.graph) == len(LAYERS)
    truth = run(exact)
    near, far = (min(cosines(theirs, ours).min() for ours, theirs in zip(run(each), truth, strict=True)) for each in (model, quantized))
    assert far < near < 1


def test_without_nothing_it_stays_as_it_is(quantized):
    assert written(without(quantized, [])) == written(quantized)


# --- a machine that lacks it ------------------------------------------------------------------------------------------


ABSENT = """raise ModuleNotFoundError("No module named 'nncf'", name="nncf")"""
BROKEN = """raise ImportError("libgomp.so.1: cannot open shared object file")"""
OTHERWISE = "VERSION = 1"


@pytest.fixture
def in_its_place(tmp_path, monkeypatch) -> Iterator[Callable[[str], None]]:
    """Puts a module of this content where NNCF would be found."""

    def put(content: str) -> None:
        tmp_path.joinpath("nncf.py").write_text(content)
        for name in [name for name in sys.modules if name.split(".")[0] == "nncf"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.syspath_prepend(tmp_path)

    yield put
    sys.modules.pop("nncf", None)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (ABSENT, "No module named 'nncf'"),
        (BROKEN, "libgomp.so.1: cannot open shared object file"),
        (OTHERWISE, "No module named 'nncf.quantization'; 'nncf' is not a package"),
    ],
)
def test_where_nncf_is_missing_or_broken_the_reason_and_the_remedy_are_told(exact, in_its_place, content, reason):
    in_its_place(content)
    with pytest.raises(MachineError) as raised:
        quantize_static(exact.clone(), pixel_values(1, 1))
    assert_mentions(one_line(raised), "--precision int8-static", "nncf", reason, "pip install 'vit-deploy[quantize]'")
