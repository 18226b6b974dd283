"""Every target in every precision gives a file that its engine runs rightly, made of the ops and passes that were promised."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from export_cache import ExportCache
from helpers import assert_mentions, one_line
from networks import TINY, randomized, source_of
from target_files import IMAGES, Digits, options_of, shared_digits, write_images

import vit_runtime as vit
from vit_exporter import ExportReport, ExportSpec, VerificationError, digits_source, export
from vit_exporter.describe import manifest_of
from vit_exporter.passes.applying import apply
from vit_exporter.passes.fold_normalization import FoldNormalization
from vit_exporter.passes.fold_weight_transposes import FoldWeightTransposes
from vit_exporter.passes.simplify import Simplify
from vit_exporter.reference import golden_record
from vit_exporter.targets import TARGETS, Target, check_split, find_target
from vit_exporter.trace import trace
from vit_exporter.verification import PassCheck, check_exact
from vit_models import OUTPUT_NAMES, Rope
from vit_runtime.accuracy import cosines
from vit_runtime.errors import InputError
from vit_runtime.golden import golden_images
from vit_runtime.manifest import Execution, Limits, Manifest, read_manifest
from vit_runtime.parity import BATCH_SIZES, FLOAT32_LIMITS, check_record

SIDES = ("target", "precision")
HERE = [target for target in TARGETS.values() if not target.on_gpu]  # test_gpu_targets.py has the others
ALL = [(target.name, precision) for target in HERE for precision in target.precisions]
TWICE = {("portable", "fp16"), ("cpu", "fp16"), ("portable", "int8")}  # made as another target's are, so they may be left to the slow run
COMBINATIONS = [pytest.param(*each, marks=pytest.mark.slow) if each in TWICE else each for each in ALL]
STATIC_PORTABLE = ("portable", "int8-static")
REDUCED = [each for each, name in zip(COMBINATIONS, ALL, strict=True) if name[1] != "fp32"]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder of images, to calibrate with and to evaluate on."""
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def digits(exports: ExportCache, images: Path) -> Digits:
    """The file of the trained network for a target in a precision. Where the passes differ, each of them is verified."""
    return shared_digits(exports, images, lambda target, precision: precision == "fp32" or (target, precision) == STATIC_PORTABLE)


def weights(report: ExportReport) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in onnx.load(report.out).graph.initializer}


def provider_of(target: str) -> str:
    return "openvino" if target == "openvino" else "cpu"


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(SIDES, COMBINATIONS)
def test_the_file_passes_its_own_record_on_its_provider(digits, target, precision):
    model = vit.load(digits(target, precision).out, provider_of(target))
    report = check_record(model.run, model.manifest, model.provider)
    assert report.passed, report.worst
    assert (report.limits == FLOAT32_LIMITS) is (precision == "fp32")


@pytest.mark.parametrize(SIDES, COMBINATIONS)
def test_the_exporter_reports_that_the_file_passed(digits, target, precision):
    report = digits(target, precision).parity
    assert report.passed, report.worst
    assert {check.provider for check in report.checks} == {provider_of(target)}


@pytest.mark.parametrize("precision", TARGETS["openvino"].precisions)
def test_a_file_for_openvino_passes_on_onnxruntime_too(digits, precision):
    """Its ops are standard ones; where it allows lower precision, onnxruntime computes in float32."""
    model = vit.load(digits("openvino", precision).out, "cpu")
    report = check_record(model.run, model.manifest, model.provider)
    assert report.passed, report.worst


# Of images that were neither calibrated with nor golden. Half precision has 11 bits or 8, a rounding of 2^-12 or 2^-9; int8 has 7 and a
# scale for many numbers, four bits three. A cosine falls by half the square of what is off, added up at random over some dozen products.
NEAR = {"fp16": 1 - 1e-6, "bf16": 1 - 1e-4, "int8": 0.9995, "int8-static": 0.9990, "int4w": 0.99}


@pytest.mark.parametrize(SIDES, REDUCED)
def test_reduced_precision_is_as_near_on_other_images_as_its_bits_allow(digits, target, precision):
    judged = digits(target, precision).manifest.accuracy
    assert (judged.provider, judged.source, judged.images) == (provider_of(target), "photographs", IMAGES)
    assert judged.outputs.keys() == {"logits", "embedding"}
    for found in judged.outputs.values():
        assert NEAR[precision] < found.cosine_min <= found.cosine_mean < 1
    assert judged.outputs["logits"].top1 > 0.9
    assert judged.outputs["embedding"].top1 is None


@pytest.mark.parametrize(SIDES, REDUCED)
def test_the_limits_are_what_was_lost_at_the_worst_of_the_batch_sizes_and_some_more(digits, target, precision):
    """Twice of an image, half as much again of the mean; extreme images make no mean."""
    report = digits(target, precision)
    parity = report.manifest.parity
    for name, limit in parity.limits.items():
        found = [check.accuracy for check in report.parity.checks if (check.output, check.inputs) == (name, "golden")]
        assert len(found) == len(BATCH_SIZES)
        assert 1 - limit.cosine == pytest.approx(max(1e-4, 2 * max(1 - each.cosine_min for each in found)), rel=0.06)  # of two digits
        assert 1 - limit.cosine_mean == pytest.approx(max(1e-5, 1.5 * max(1 - each.cosine_mean for each in found)), rel=0.06)
        assert parity.extremes[name].cosine_mean is None
    assert all(each.nearness.cosine_mean > each.nearness.cosine for each in parity.measured)


@pytest.mark.parametrize("target", [target.name for target in HERE])
def test_a_float32_file_is_not_judged_on_images(digits, target):
    report = digits(target, "fp32")
    assert report.manifest.accuracy is None
    assert isinstance(report.manifest.parity.limits, Limits)


# --- what is in the file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(SIDES, COMBINATIONS)
def test_only_files_for_onnxruntime_have_its_own_ops(digits, target, precision):
    path = digits(target, precision).out
    proto = onnx.load(path)
    assert {node.domain for node in proto.graph.node} == ({"", "com.microsoft"} if target == "cpu" else {""})
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    assert versions == {"": 18} if target == "portable" else {"": 20, **({"com.microsoft": 1} if target == "cpu" else {})}
    if target != "cpu":
        onnx.checker.check_model(str(path), full_check=True)


FOLDED = ["Simplify", "FoldWeightTransposes", "FoldPrefixTokens", "FoldLayerScale", "FoldAttentionScale"]
OWN = {
    "portable": ["FuseAttention"],
    "cpu": ["FoldNormalization", "UnpackHeads", "PruneLastBlock", "FuseMultiHeadAttention"],
    "openvino": ["FoldNormalization", "UnpackHeads", "PruneLastBlock"],
}
LAST = {
    "fp32": [],
    "fp16": ["StoreHalf"],
    "bf16": ["StoreHalf"],
    "int8": ["QuantizeDynamic"],
    "int8-static": ["SmoothProducts", "QuantizeStatic", "FoldSmoothing"],
    "int4w": ["QuantizeBlocks"],
}


def passes(target: str, precision: str) -> list[str]:
    if (target, precision) == ("openvino", "int8"):
        return [*FOLDED, *OWN[target], "QuantizeWeights"]
    if (target, precision) == ("portable", "int8-static"):
        return [*FOLDED, "UnpackHeads", *LAST[precision]]
    return [*FOLDED, *OWN[target], *LAST[precision]]


@pytest.mark.parametrize(SIDES, COMBINATIONS)
def test_the_manifest_says_what_it_is_for_and_what_was_done(digits, target, precision):
    report = digits(target, precision)
    manifest, _ = read_manifest(report.out)
    build = manifest.build
    assert (build["target"], build["precision"], build["token_split"], build["kept"]) == (target, precision, None, [])
    assert [each["name"] for each in build["passes"]] == passes(target, precision)
    assert build["passes"][0]["nodes_before"] == report.nodes_before == sum(build["traced"].values())
    for before, after in zip(build["passes"], build["passes"][1:], strict=False):
        assert after["nodes_before"] == before["nodes_after"]
    ops = build["passes"][-1]["ops"]
    nodes = onnx.load(report.out).graph.node
    assert ops == {op: sum(node.op_type == op for node in nodes) for op in ops}
    assert sum(ops.values()) == report.nodes_after == len(nodes)
    assert build["calibration"] == ({"source": "photographs", "images": IMAGES} if precision == "int8-static" else None)
    assert ("nncf" in build["tools"]) is (precision == "int8-static")
    assert ("openvino" in build["tools"]) is (target == "openvino")
    assert manifest.preprocessing.in_graph is (target != "portable")


@pytest.mark.parametrize(SIDES, COMBINATIONS)
def test_the_manifest_says_how_the_file_wants_to_be_run(digits, target, precision):
    narrow = target == "openvino" and precision in ("int8", "int8-static")
    bf16 = narrow or precision == "bf16"
    # A group has a scale of its own: as wide as a token, 128 channels, of which the MLP's 384 are three.
    expected = Execution(provider_of(target), bf16, 128 if narrow else None)
    assert read_manifest(digits(target, precision).out)[0].execution == expected


STORED = {
    "fp32": onnx.TensorProto.FLOAT,
    "fp16": onnx.TensorProto.FLOAT16,
    "bf16": onnx.TensorProto.BFLOAT16,
    "int8": onnx.TensorProto.INT8,
    "int8-static": onnx.TensorProto.INT8,
    "int4w": onnx.TensorProto.UINT8,  # two to a byte
}


@pytest.mark.parametrize(SIDES, COMBINATIONS)
def test_weights_are_stored_in_the_precision_asked_for(digits, target, precision):
    found = weights(digits(target, precision))
    packed = target == "portable" and precision != "int8-static"
    for layer in [*(["attn.qkv"] if packed else ["attn.q", "attn.k", "attn.v"]), "attn.proj", "mlp.fc1", "mlp.fc2"]:
        assert {found[f"blocks.{block}.{layer}.weight"].data_type for block in range(4)} == {STORED[precision]}, layer
    half = precision in ("fp16", "bf16")
    for name in ("embeddings.patch_embed.proj.weight", "head.weight"):
        assert found[name].data_type == (STORED[precision] if half else onnx.TensorProto.FLOAT)
    for name in ("embeddings.pos_embed", "blocks.0.norm1.weight", "head.bias"):
        assert found[name].data_type == onnx.TensorProto.FLOAT


# Of a float32 file's bytes. Positions, norms and biases stay in float32, and so does all in front of the blocks and behind them in int8;
# the manifest with its record comes on top: a few hundredths of so small a network, which has 0.7 M parameters.
SHARE = {"fp16": (0.5, 0.54), "bf16": (0.5, 0.54), "int8": (0.25, 0.33), "int8-static": (0.25, 0.35), "int4w": (0.125, 0.22)}


@pytest.mark.parametrize(SIDES, REDUCED)
def test_a_file_is_as_small_as_its_precision_promises(digits, target, precision):
    least, most = SHARE[precision]
    report = digits(target, precision)
    assert report.size == report.out.stat().st_size
    assert least < report.size / digits(target, "fp32").size < most


# --- every pass -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(SIDES, [*((target.name, "fp32") for target in HERE), STATIC_PORTABLE])
def test_after_every_exact_pass_the_graph_was_within_the_floor(digits, target, precision):
    exact = [each for each in digits(target, precision).manifest.build["passes"] if each["name"] not in LAST[precision]]
    assert [each["name"] for each in exact] == passes(target, precision)[: len(exact)]
    for each in exact:
        assert 0 < each["floors"] <= FLOAT32_LIMITS.rms, each


def test_unless_it_is_asked_for_passes_are_not_verified_one_by_one(digits):
    assert {each["floors"] for each in digits("cpu", "int8").manifest.build["passes"]} == {None}


class ShiftNorm(ir.passes.InPlacePass):
    """A pass that is wrong: it adds a hundredth to the last norm's bias."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        value = model.graph.initializers["norm.bias"]
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() + np.float32(0.01), name=value.name)
        return ir.passes.PassResult(model, modified=True)


def test_the_pass_that_is_wrong_is_named_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(Target, "passes", lambda *_: [Simplify(), ShiftNorm(), FoldWeightTransposes()])
    with pytest.raises(VerificationError) as raised:
        export(lambda: source_of(randomized()), ExportSpec(tmp_path / "vit.onnx", verify_passes=True))
    assert_mentions(one_line(raised), "ShiftNorm")
    assert not list(tmp_path.iterdir())


# --- every kind of network --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A network, and how many tokens the last block's MLP should compute of it; None: no MLP at all."""

    fields: dict[str, Any]
    outputs: tuple[str, ...] | None
    last: int | None


NO_TOKEN: dict[str, Any] = {"class_token": False, "pool": "mean"}
SWIGLU: dict[str, Any] = {"gated_mlp": True, "mlp_norm": True, "attn_norm": True, "activation": "silu"}
KINDS = {
    "class and distillation token": Kind({"distilled": True, "pool": "cls_dist", "num_registers": 2, "layer_scale": True}, None, 2),
    "every output": Kind({"num_registers": 2}, OUTPUT_NAMES, 16 + 3),
    "tokens alone": Kind({**NO_TOKEN, "pre_norm": True, "activation": "quick_gelu"}, ("tokens",), 16),
    "attention alone": Kind({}, ("attention",), None),
    "rotary, gated": Kind({**SWIGLU, "rope": Rope(0.5, (2.0, 2.0), -1.0), "pos_embed": False, "num_registers": 1}, None, 1),
    "relative positions, mean": Kind({"rel_pos_bias": True, "pos_embed": False, "final_norm": "pooled", "pool": "mean"}, None, 16 + 1),
    "map pooling": Kind({**NO_TOKEN, "pool": "map"}, None, 16),
    "query and key norms, mean of all": Kind({"qk_norm": True, "final_norm": "none", "pool": "mean_all"}, None, 16 + 1),
}


def traced(kind: Kind) -> tuple[ir.Model, Manifest]:
    """The network as torch's exporter leaves it, and a manifest with its golden record."""
    source = source_of(randomized(replace(TINY, **kind.fields), kind.outputs))
    golden = golden_record(source.model, source.preprocessing)
    return trace(source.model, 20), replace(manifest_of(source, source.preprocessing), golden=golden)


# Where the graph is right in the end, each pass was right, unless two mistakes cancel out. So one network is checked after every pass.
FIRST, *OTHERS = KINDS
AFTER_EVERY_PASS = [pytest.param(name, True, marks=pytest.mark.full) for name in OTHERS]


@pytest.mark.parametrize(("name", "every_pass"), [(FIRST, True), *((name, False) for name in OTHERS), *AFTER_EVERY_PASS])
def test_every_kind_of_network_is_exact_after_every_pass_and_pruned_where_it_can_be(name, every_pass):
    """For OpenVINO, and with one pass more for onnxruntime. The check raises where a graph is wrong."""
    kind = KINDS[name]
    graph, manifest = traced(kind)
    every = TARGETS["cpu"].passes(manifest.preprocessing)
    own = every[: len(TARGETS["openvino"].passes(manifest.preprocessing))]
    graph, applied = apply(graph, own, PassCheck(manifest) if every_pass else None)
    assert any(isinstance(graph_pass, FoldNormalization) and graph_pass.folded for graph_pass in own)
    manifest = replace(manifest, preprocessing=replace(manifest.preprocessing, in_graph=True))
    assert check_exact(graph, manifest, "openvino").passed
    assert tokens_in_last_block(graph) == kind.last
    graph, fused = apply(graph, every[len(own) :], PassCheck(manifest))
    assert [entry["name"] for entry in applied] == [*FOLDED, *OWN["openvino"]]
    assert [entry["name"] for entry in (*applied, *fused)] == [*FOLDED, *OWN["cpu"]]
    assert all(0 < entry["floors"] <= FLOAT32_LIMITS.rms for entry in ((*applied, *fused) if every_pass else fused))
    assert tokens_in_last_block(graph) == kind.last


def tokens_in_last_block(graph: ir.Model) -> object:
    """How many tokens the last block's MLP computes."""
    weight = graph.graph.initializers.get("blocks.1.mlp.fc1.weight")
    if weight is None:
        return None
    (use,) = weight.uses()
    shape = use.node.outputs[0].shape
    assert shape is not None
    return shape[1]


# --- pieces of tokens -------------------------------------------------------------------------------------------------


def outputs_of(path: Path, seed: int = 5, count: int = 12) -> list[np.ndarray]:
    """What onnxruntime makes of images that are in no record."""
    model = vit.load(path, "cpu")
    images = golden_images(seed, count, *model.manifest.image_size).transpose(0, 3, 1, 2).astype(np.float32)
    return list(model.run(images).values())


def test_in_pieces_tokens_give_the_same_within_the_floor(exports):
    """Every output, on OpenVINO; the record is PyTorch's, which splits nothing."""
    report = exports.export(source_of(randomized(TINY, OUTPUT_NAMES)), target="openvino", token_split=(9, 8))
    assert report.parity.worst.rms_floors <= FLOAT32_LIMITS.rms
    assert report.manifest.build["token_split"] == [9, 8]
    assert report.manifest.build["passes"][-1]["name"] == "SplitTokens"
    assert pieces(report.out, "blocks.0.mlp.fc1.weight") == [9, 8]


@pytest.mark.slow
def test_in_pieces_static_int8_gives_the_same_numbers(digits, images, tmp_path):
    spec = ExportSpec(tmp_path / "vit.onnx", token_split=(10, 7), **options_of(images, "openvino", "int8-static"))
    export(digits_source, spec)
    assert pieces(spec.out, "blocks.0.mlp.fc1.weight") == [10, 7]
    for ours, theirs in zip(outputs_of(spec.out), outputs_of(digits("openvino", "int8-static").out), strict=True):
        # Sums in another order may turn a rounding to int8 around here and there; a wrong piece would be another image.
        assert cosines(theirs, ours).min() > 1 - 1e-5


def pieces(path: Path, weight: str) -> list[int]:
    """How many tokens each product by this weight computes."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True).graph
    shapes = {value.name: [size.dim_value for size in value.type.tensor_type.shape.dim] for value in graph.value_info}
    made = {name: node.output[0] for node in graph.node if node.op_type == "DequantizeLinear" for name in node.input}
    return [shapes[node.output[0]][1] for node in graph.node if node.op_type == "MatMul" and node.input[1] in (weight, made.get(weight))]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("target", "rows", "facts"),
    [
        ("portable", (9, 8), ("portable", "--target openvino")),
        ("cpu", (9, 8), ("cpu", "--target openvino")),
        ("openvino", (9, 9), ("9,9", 17)),
        ("openvino", (17, 0), ("17,0", 17)),
        ("openvino", (20, -3), ("20,-3", 17)),
    ],
)
def test_pieces_that_cannot_be_are_refused(target, rows, facts):
    with pytest.raises(InputError) as raised:
        check_split(TARGETS[target], rows, 17)
    assert_mentions(one_line(raised), "--token-split", *facts)


@pytest.mark.unit
@pytest.mark.parametrize("rows", [(), (17,), (9, 8), (8, 1, 8)])
def test_pieces_that_add_up_are_not(rows):
    check_split(TARGETS["openvino"], rows, 17)


# --- a free image size ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["cpu", pytest.param("openvino", marks=pytest.mark.slow)])
def test_a_free_image_size_is_exact_in_float32_and_near_in_int8(exports, target):
    """Both at several sizes: before quantization the graph is compared with PyTorch within the float32 limits, and a fault raises."""
    source = source_of(randomized(replace(TINY, num_registers=1), dynamic_size=True))
    report = exports.export(source, target=target, precision="int8")
    assert [name for name, _ in report.steps][-4:] == ["check", "reduce", "write", "verify"]
    assert len({check.image_size for check in report.parity.checks if check.inputs != "resizing"}) == 4
    assert report.parity.worst.accuracy.cosine_min > 0.999  # some dozen matrix multiplications of 7 bits, as above
    assert report.manifest.multiple_of == 8


@pytest.mark.unit
@pytest.mark.parametrize("options", [{"token_split": (9, 8)}, {"precision": "int8-static"}])
def test_a_free_image_size_is_refused_where_one_size_is_needed(tmp_path, options):
    source = source_of(randomized(dynamic_size=True))
    with pytest.raises(InputError) as raised:
        export(lambda: source, ExportSpec(tmp_path / "vit.onnx", target="openvino", **options))
    assert_mentions(one_line(raised), "--token-split", "--img-size")
    assert not list(tmp_path.iterdir())


# --- the same call ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_static_int8_of_the_same_call_is_the_same_bytes(digits, images, tmp_path):
    """The precision with the most to go astray: another tool's measurements, and a judgement on images."""
    again = export(digits_source, ExportSpec(tmp_path / "again.onnx", **options_of(images, "openvino", "int8-static")))
    assert again.out.read_bytes() == digits("openvino", "int8-static").out.read_bytes()


ANOTHER_PROCESS = """
import sys
from pathlib import Path
from vit_exporter import ExportSpec, digits_source, export
folder, images = map(Path, sys.argv[1:])
for target, precision in {combinations!r}:
    export(digits_source, ExportSpec(folder / f"{{target}}-{{precision}}.onnx", target=target, precision=precision, calibrate=images))
"""


@pytest.mark.slow
def test_another_process_writes_the_same_bytes_in_every_precision(digits, images, tmp_path):
    """One that goes through sets in another order."""
    # The fixture has verified the passes of one of them, which the file says.
    combinations = [each for each in ALL if each[1] != "fp32" and each != STATIC_PORTABLE]
    code = ANOTHER_PROCESS.format(combinations=combinations)
    subprocess.run([sys.executable, "-c", code, tmp_path, images], check=True, timeout=600, env={**os.environ, "PYTHONHASHSEED": "7"})
    for target, precision in combinations:
        theirs = (tmp_path / f"{target}-{precision}.onnx").read_bytes()
        assert theirs == digits(target, precision).out.read_bytes(), (target, precision)


# --- a machine without OpenVINO ---------------------------------------------------------------------------------------


def test_where_openvino_is_missing_onnxruntime_verifies_and_this_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)  # as Python marks a module that cannot be imported
    report = export(lambda: source_of(randomized()), ExportSpec(tmp_path / "vit.onnx", target="openvino"))
    (note,) = report.notes
    assert_mentions(note, "OpenVINO", "onnxruntime", "pip install 'vit-deploy[openvino]'")
    assert report.manifest.parity is not None
    assert {measured.provider for measured in report.manifest.parity.measured} == {"cpu"}
    assert report.manifest.execution.provider == "openvino"


# --- what cannot be asked for -----------------------------------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "nearest"), [("cpuu", "cpu"), ("OpenVINO", "openvino"), ("Portable", "portable"), ("qnn", None), ("", None)]
)
def test_an_unknown_target_is_answered_with_those_there_are_and_the_nearest(name, nearest):
    with pytest.raises(InputError) as raised:
        find_target(name)
    message = one_line(raised)
    assert_mentions(message, repr(name))
    counts = {target: len(re.findall(rf"\b{target}\b", message)) for target in TARGETS}
    assert counts == {target: 2 if target == nearest else 1 for target in TARGETS}


@pytest.mark.unit
@pytest.mark.parametrize(
    ("target", "precision", "others"),
    [
        ("portable", "int4w", ["cpu"]),
        ("portable", "bf16", ["openvino", "cuda", "tensorrt"]),
        ("cpu", "int8-static", ["portable", "openvino"]),
        ("openvino", "int4w", ["cpu"]),
        ("cpu", "int3", []),
        ("tensorrt", "int4w", ["cpu"]),
        ("tensorrt", "int8-static", ["portable", "openvino"]),
        ("cuda", "int8", ["portable", "cpu", "openvino", "tensorrt"]),
        ("cpu", "fp8", ["tensorrt"]),
    ],
)
def test_a_precision_that_a_target_has_not_is_answered_with_who_has_it(target, precision, others):
    with pytest.raises(InputError) as raised:
        ExportSpec(Path("vit.onnx"), target=target, precision=precision)
    message = one_line(raised)
    assert_mentions(message, repr(precision), *TARGETS[target].precisions)
    assert [name for name in TARGETS if re.search(rf"\b{name}\b", message)] == [name for name in TARGETS if name in (target, *others)]


SEARCHED = ("int8", "int8-static", "int4w", "fp8")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"precision": "int8", "simplify": False}, ("--no-simplify", "int8")),
        ({"calibrate": Path("photos"), "precision": "int8", "verify": False}, ("--calibrate", "--no-verify", "int8")),
        ({"calibrate": Path("photos")}, ("--calibrate", "fp32")),
        ({"max_drop": 0.01}, ("--max-drop", *SEARCHED)),
        ({"max_drop": 0.01, "precision": "fp16"}, ("--max-drop", *SEARCHED)),
        ({"max_drop": 0.01, "precision": "int8", "verify": False}, ("--max-drop", *SEARCHED)),
        ({"max_drop": 0.0, "precision": "int8"}, ("--max-drop", "0", "1")),
        ({"max_drop": 1.0, "precision": "int8"}, ("--max-drop", "0", "1")),
        ({"max_drop": -0.1, "precision": "int8"}, ("--max-drop", "-0.1", "0", "1")),
        ({"max_drop": float("nan"), "precision": "int8"}, ("--max-drop", "nan", "0", "1")),
        ({"keep": ("head",)}, ("--keep", "fp32", *SEARCHED)),
        ({"keep": ("head",), "precision": "fp16"}, ("--keep", "fp16", *SEARCHED)),
        ({"verify_passes": True, "verify": False}, ("--verify-passes",)),
        ({"verify_passes": True, "simplify": False}, ("--verify-passes",)),
        ({"target": "cpu", "opset": 17}, (17, "18", "23", "--opset", "20")),
        ({"target": "openvino", "precision": "int8-static", "opset": 21}, ("21", "18", "20", "int8-static", "--opset")),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_anything_is_done(options, facts):
    with pytest.raises(InputError) as raised:
        ExportSpec(Path("vit.onnx"), **options)
    assert_mentions(one_line(raised), *facts)
