"""Files for an NVIDIA GPU: typed as the compiler wants them, safe in float16, and simulated before any GPU sees them."""

import functools
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from export_cache import ExportCache
from helpers import assert_mentions, one_line
from networks import TINY, randomized, source_of
from onnx import TensorProto, numpy_helper
from target_files import IMAGES, Digits, shared_digits, write_images
from torch import nn

import vit_runtime as vit
from vit_exporter import ExportReport, ExportSpec, VerificationError, digits_source, export
from vit_exporter.cli import main
from vit_exporter.precision import half as half_module
from vit_exporter.targets import TARGETS
from vit_exporter.tuning.candidates import candidates
from vit_models import ViT
from vit_models.vit import Block
from vit_runtime.errors import InputError
from vit_runtime.golden import golden_images
from vit_runtime.manifest import Execution, Limits, read_manifest
from vit_runtime.parity import check_record

SIDES = ("target", "precision")
ALL = [(target.name, precision) for target in TARGETS.values() if target.on_gpu for precision in target.precisions]
REDUCED = [each for each in ALL if each[1] != "fp32"]
EIGHT = [("tensorrt", "int8"), ("tensorrt", "fp8")]
DEPTH, LINEARS = 4, 6  # of the digits network: its blocks, and the linear layers of each
F32, F16, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16


def with_huge_layer() -> ViT:
    """What the second block's MLP adds is a hundred thousand times as large, in one layer's weights, and is made small again by none."""
    model = randomized()
    block = model.blocks[1]
    assert isinstance(block, Block)
    with torch.no_grad():
        block.mlp.fc2.weight.mul_(1e5)
        block.mlp.fc2.bias.mul_(1e5)
    return model


def with_tiny_norm() -> ViT:
    """Its last norm gives values of which float16 leaves a bit or none, and the head makes them large again."""
    model = randomized()
    assert isinstance(model.norm, nn.LayerNorm)
    assert model.head is not None
    with torch.no_grad():
        model.norm.weight.mul_(1e-7)
        model.norm.bias.mul_(1e-7)
        model.head.weight.mul_(1e4)
    return model


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder of images, to calibrate with and to evaluate on."""
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def digits(exports: ExportCache, images: Path) -> Digits:
    """The file of the trained network for a target in a precision."""
    return shared_digits(exports, images)


@functools.cache
def loaded(path: Path) -> onnx.ModelProto:
    return onnx.load(path)


def graph(report: ExportReport) -> onnx.GraphProto:
    return loaded(report.out).graph


def stored(report: ExportReport) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in graph(report).initializer}


def made_by(report: ExportReport) -> dict[str, onnx.NodeProto]:
    return {name: node for node in graph(report).node for name in node.output}


def types(report: ExportReport) -> dict[str, int]:
    """The type of every value."""
    found = {
        value.name: value.type.tensor_type.elem_type for value in (*graph(report).value_info, *graph(report).input, *graph(report).output)
    }
    return {**found, **{tensor.name: tensor.data_type for tensor in graph(report).initializer}}


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(SIDES, [each for each in ALL if each[1] != "bf16"])
def test_the_file_passes_its_own_record_on_the_cpu(digits, target, precision):
    """onnxruntime widens float16 there; of bfloat16 it has no kernels."""
    model = vit.load(digits(target, precision).out, "cpu")
    report = check_record(model.run, model.manifest, model.provider)
    assert report.passed, report.worst


def test_of_a_bfloat16_file_the_cpu_says_that_it_has_no_kernels(digits):
    with pytest.raises(vit.ModelError) as raised:
        vit.load(digits("tensorrt", "bf16").out, "cpu")
    assert_mentions(one_line(raised), "kernel", "Could not find an implementation")  # the last are onnxruntime's own words


@pytest.mark.parametrize(SIDES, ALL)
def test_float32_is_verified_on_the_cpu_and_what_is_less_is_simulated(digits, target, precision):
    report = digits(target, precision)
    assert {each.provider for each in report.manifest.parity.measured} == {"cpu" if precision == "fp32" else "simulation"}
    assert isinstance(report.manifest.parity.limits, Limits) is (precision == "fp32")
    assert report.parity.passed


# Of images that were neither calibrated with nor golden. Half precision has 11 bits or 8, an error of 2^-12 or 2^-9 in each of some hundred
# operations; int8 has 7 and one scale for all channels, float8 4. A cosine falls by half the square of what is off.
NEAR = {"fp16": 1 - 2e-6, "bf16": 1 - 2e-4, "int8": 0.995, "fp8": 0.99}


@pytest.mark.parametrize(SIDES, REDUCED)
def test_reduced_precision_is_as_near_on_other_images_as_its_bits_allow(digits, target, precision):
    judged = digits(target, precision).manifest.accuracy
    assert (judged.provider, judged.source, judged.images) == ("simulation", "photographs", IMAGES)
    for found in judged.outputs.values():
        assert NEAR[precision] < found.cosine_min <= found.cosine_mean < 1
    assert judged.outputs["logits"].top1 > 0.8


# --- what is in the file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(SIDES, ALL)
def test_inputs_and_outputs_are_float32_and_the_batch_is_free(digits, target, precision):
    values = [*graph(digits(target, precision)).input, *graph(digits(target, precision)).output]
    assert [value.name for value in values] == ["pixel_values", "logits", "embedding"]
    for value in values:
        assert value.type.tensor_type.elem_type == F32
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.parametrize("precision", TARGETS["tensorrt"].precisions)
def test_a_file_for_tensorrt_has_standard_ops_only_and_none_that_it_refuses(digits, precision):
    report = digits("tensorrt", precision)
    proto = loaded(report.out)
    assert {node.domain for node in proto.graph.node} == {""}
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 20)]
    refused = {"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul", "Attention"}
    assert refused.isdisjoint(node.op_type for node in proto.graph.node)
    assert TensorProto.UINT8 not in types(report).values()
    onnx.checker.check_model(str(report.out), full_check=True)


@pytest.mark.parametrize(SIDES, ALL)
def test_layer_normalization_is_one_op_whose_sums_are_float32(digits, target, precision):
    norms = [node for node in graph(digits(target, precision)).node if node.op_type == "LayerNormalization"]
    assert len(norms) == 2 * DEPTH + 1
    for node in norms:
        assert {attribute.name: attribute.i for attribute in node.attribute}.get("stash_type", 1) == 1  # the standard's word for it


@pytest.mark.parametrize(("target", "precision", "kind"), [("tensorrt", "fp16", F16), ("tensorrt", "bf16", BF16), ("cuda", "fp16", F16)])
def test_in_16_bits_all_that_is_computed_is_in_them(digits, target, precision, kind):
    report = digits(target, precision)
    found = types(report)
    for name, tensor in stored(report).items():
        if name.startswith(("blocks.", "norm.", "head.")) and tensor.data_type != TensorProto.INT64:  # an index
            assert tensor.data_type == kind, name
    for node in graph(report).node:
        if node.name.startswith(("blocks.", "norm/", "head/")) and node.op_type != "Cast":
            assert {found[name] for name in node.output} == {kind}, node.name
    assert report.manifest.build["islands"] == []


def test_for_cuda_attention_is_onnxruntimes_own_op_but_in_bfloat16_which_it_has_not(digits):
    for precision, count in (("fp32", DEPTH), ("fp16", DEPTH), ("bf16", 0)):
        nodes = graph(digits("cuda", precision)).node
        assert sum((node.domain, node.op_type) == ("com.microsoft", "MultiHeadAttention") for node in nodes) == count


def test_for_cuda_no_op_is_in_bfloat16_that_its_provider_has_no_kernel_for(digits):
    report = digits("cuda", "bf16")
    found = types(report)
    narrow = {node.op_type for node in graph(report).node if BF16 in {found.get(name) for name in (*node.input, *node.output)}}
    assert narrow - {"Cast"} <= half_module.BFLOAT16_ON_CUDA
    assert {"MatMul", "LayerNormalization", "Gelu", "Softmax"} <= narrow


@pytest.mark.parametrize(SIDES, EIGHT)
def test_in_8_bits_are_the_linear_layers_of_the_blocks_and_nothing_else(digits, target, precision):
    report = digits(target, precision)
    makers, tensors = made_by(report), stored(report)
    kind = TensorProto.INT8 if precision == "int8" else TensorProto.FLOAT8E4M3FN
    quantized = 0
    for node in graph(report).node:
        sources = [makers.get(name) for name in node.input]
        restored = [each is not None and each.op_type == "DequantizeLinear" for each in sources]
        assert node.op_type in ("MatMul", "DequantizeLinear") or not any(restored), node.name  # no sum, norm, softmax, convolution
        if any(restored) and node.op_type == "MatMul":
            assert all(restored)
            dequantize = sources[1]
            assert dequantize is not None
            weight = tensors[dequantize.input[0]]
            assert weight.name.startswith("blocks.")
            assert weight.data_type == kind
            assert tensors[dequantize.input[1]].dims == [weight.dims[1]]  # a scale for each output channel
            quantized += 1
    assert quantized == DEPTH * LINEARS
    assert {name for name, tensor in tensors.items() if tensor.data_type == kind and name.endswith(".weight")} == {
        f"blocks.{block}.{layer}.weight"
        for block in range(DEPTH)
        for layer in ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2")
    }


def test_int8_is_symmetric(digits):
    report = digits("tensorrt", "int8")
    tensors = stored(report)
    for node in graph(report).node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2:
            assert numpy_helper.to_array(tensors[node.input[2]]).tolist() == 0
    for name, tensor in tensors.items():
        if tensor.data_type == TensorProto.INT8 and tensor.dims:
            assert numpy_helper.to_array(tensor).min() >= -127, name


@pytest.mark.parametrize(SIDES, ALL)
def test_the_manifest_says_what_it_is_for_and_what_was_done(digits, target, precision):
    manifest, _ = read_manifest(digits(target, precision).out)
    assert (manifest.build["target"], manifest.build["precision"]) == (target, precision)
    assert manifest.execution == Execution(target)
    measured = precision not in ("fp32", "bf16")
    assert manifest.build["calibration"] == ({"source": "photographs", "images": IMAGES} if measured else None)
    names = [each["name"] for each in manifest.build["passes"]]
    last = {
        "fp32": [],
        "fp16": ["Narrow"],
        "bf16": ["Narrow"],
        "int8": ["SmoothProducts", "Narrow", "QuantizeLinears"],
        "fp8": ["Narrow", "QuantizeLinears"],
    }
    fused = ["FuseMultiHeadAttention"] if target == "cuda" and precision != "bf16" else []
    assert names[-len([*last[precision], *fused]) :] == [*last[precision], *fused] or not [*last[precision], *fused]
    assert manifest.preprocessing.in_graph


@pytest.mark.full
def test_the_same_call_gives_the_same_bytes(digits, images, tmp_path):
    spec = ExportSpec(tmp_path / "again.onnx", target="tensorrt", precision="int8", calibrate=images)
    assert export(digits_source, spec).out.read_bytes() == digits("tensorrt", "int8").out.read_bytes()


# --- islands and overflow ---------------------------------------------------------------------------------------------


def test_what_would_overflow_stays_in_float32_and_is_reported(tmp_path, monkeypatch):
    """Printed, in the manifest, and typed so in the graph; the command's network is replaced by one that overflows."""
    monkeypatch.setattr("vit_exporter.source.random_source", lambda *_: source_of(with_huge_layer()))
    out = tmp_path / "vit.onnx"
    result = CliRunner().invoke(main, ["--arch", "ViT-Ti/16", "--target", "cuda", "--precision", "fp16", "--out", str(out)])
    assert result.exit_code == 0, result.output
    manifest, _ = read_manifest(out)
    islands = manifest.build["islands"]
    (line,) = (line for line in result.stdout.splitlines() if "float16" in line)
    assert_mentions(line, len(islands))
    first = islands[0]
    assert re.search(rf"{re.escape(first['value'])}\b.*\b{re.escape(str(first['largest']))}\b.*\boverflow\b", result.stdout)
    assert "blocks.1.mlp.fc2/MatMul" in {each["node"] for each in islands}
    assert {each["node"].split("/")[0] for each in islands} <= {"blocks.1.mlp.fc2", "blocks.1", "norm", "vit"}  # and what reads it
    assert all(each["reason"] == "overflow" and each["largest"] > 65504 / 4 for each in islands)
    tensors = {tensor.name: tensor.data_type for tensor in onnx.load(out).graph.initializer}
    assert [tensors[f"blocks.{block}.mlp.fc2.weight"] for block in range(2)] == [F16, F32]
    assert manifest.parity is not None
    assert not isinstance(manifest.parity.limits, Limits)
    assert manifest.parity.limits["logits"].cosine == 1 - 1e-4  # the least that a limit allows: it lost no more than half of that
    assert manifest.parity.limits["logits"].cosine_mean is None  # which no engine has shown


def test_what_rounding_would_lose_stays_in_float32_too(exports):
    report = exports.export(source_of(with_tiny_norm()), target="tensorrt", precision="fp16")
    islands = report.manifest.build["islands"]
    assert ("norm/LayerNormalization", "underflow") in {(each["node"], each["reason"]) for each in islands}
    assert report.parity.worst.accuracy.cosine_min > 1 - 1e-5


def test_an_overflow_that_no_island_keeps_away_is_refused_with_the_first_node(tmp_path, monkeypatch):
    """As if the images that were measured had not shown it."""
    monkeypatch.setattr(half_module, "islands", lambda *_: [])
    with pytest.raises(VerificationError) as raised:
        export(lambda: source_of(with_huge_layer()), ExportSpec(tmp_path / "vit.onnx", target="tensorrt", precision="fp16"))
    assert_mentions(one_line(raised), "blocks.1.mlp.fc2/MatMul", "Inf", "NaN")
    assert not list(tmp_path.iterdir())


def test_a_loss_that_no_island_keeps_away_is_refused_with_the_first_node(tmp_path, monkeypatch):
    monkeypatch.setattr(half_module, "islands", lambda *_: [])
    with pytest.raises(VerificationError) as raised:
        export(lambda: source_of(with_tiny_norm()), ExportSpec(tmp_path / "vit.onnx", target="tensorrt", precision="fp16"))
    assert_mentions(one_line(raised), "norm/LayerNormalization", "0.999")
    assert not list(tmp_path.iterdir())


def test_without_verification_islands_are_made_all_the_same(exports):
    report = exports.export(source_of(with_huge_layer()), target="tensorrt", precision="fp16", verify=False)
    assert report.parity is None
    assert "blocks.1.mlp.fc2/MatMul" in {each["node"] for each in report.manifest.build["islands"]}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_free_image_size_is_simulated_at_several(exports, precision):
    report = exports.export(source_of(randomized(dynamic_size=True)), target="tensorrt", precision=precision)
    assert len({check.image_size for check in report.parity.checks if check.inputs != "resizing"}) == 4
    assert report.parity.worst.accuracy.cosine_min > (1 - 1e-5 if precision == "fp16" else 0.999)


# --- what cannot be asked for -----------------------------------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_static_scales_without_images_are_refused(precision):
    with pytest.raises(InputError) as raised:
        ExportSpec(Path("vit.onnx"), target="tensorrt", precision=precision)
    assert_mentions(one_line(raised), "tensorrt", precision, "--calibrate")


@pytest.mark.unit
def test_bf16_measures_nothing_so_images_without_verification_are_refused():
    with pytest.raises(InputError) as raised:
        ExportSpec(Path("vit.onnx"), target="cuda", precision="bf16", calibrate=Path("photos"), verify=False)
    assert_mentions(one_line(raised), "--calibrate", "--no-verify", "bf16")


@pytest.mark.unit
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_static_scales_are_refused_for_a_free_image_size(tmp_path, images, precision):
    spec = ExportSpec(tmp_path / "vit.onnx", target="tensorrt", precision=precision, calibrate=images)
    with pytest.raises(InputError) as raised:
        export(lambda: source_of(randomized(dynamic_size=True)), spec)
    assert_mentions(one_line(raised), "--token-split", "--img-size")


@pytest.mark.unit
@pytest.mark.parametrize("target", ["cuda", "tensorrt"])
def test_tuning_times_what_this_machine_runs_and_so_no_file_for_a_gpu(target):
    with pytest.raises(InputError) as raised:
        candidates(TINY, dynamic_size=False, target=target)
    assert_mentions(one_line(raised), "--tune", target)


@pytest.mark.unit
def test_the_help_names_the_targets_and_precisions():
    assert_mentions(CliRunner().invoke(main, ["--help"]).output, "cuda", "tensorrt", "bf16", "fp8")


def test_numbers_of_a_batch_do_not_depend_on_its_size(digits):
    """The batch is free in fact, and not only in name."""
    model = vit.load(digits("tensorrt", "int8").out, "cpu")
    pixels = golden_images(5, 7, 28, 28).transpose(0, 3, 1, 2).astype(np.float32)
    np.testing.assert_allclose(model.run(pixels)["logits"][3:4], model.run(pixels[3:4])["logits"], rtol=0.05, atol=0.05)
