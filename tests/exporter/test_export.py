"""An exported file computes what float64 PyTorch computes, at every batch size; one that does not is never written."""

import re
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from export_cache import ExportCache
from helpers import assert_mentions, one_line
from networks import TINY, initialized, source_of
from torch import Tensor, nn
from torch.nn import functional as F

import vit_exporter
from vit_exporter import ExportReport, ExportSpec, Source, VerificationError, export
from vit_exporter.reference import UNIT_ROUNDOFF, float32_outputs, float64_outputs
from vit_exporter.spec import MAX_OPSET, MIN_OPSET
from vit_models import OUTPUT_NAMES, Rope, ViT, ViTConfig, init_weights
from vit_models.vit import Block, Mlp
from vit_runtime.accuracy import accuracy
from vit_runtime.errors import InputError
from vit_runtime.manifest import Error, read_manifest
from vit_runtime.parity import FLOAT32_LIMITS, check_record, judge, measure, scale_of

NO_TOKEN = {"class_token": False, "pool": "mean"}
ROTARY = {"rope": Rope(0.5, (2.0, 2.0), -1.0)}
THREE = ("logits", "embedding", "tokens")
# Each network is traced with a batch of 2. Neither 3 nor 7 is a multiple of it.
BATCH_SIZES = (1, 3, 7)
ALL_BATCH_SIZES = (1, 2, 3, 5, 7, 16)
# 840 logits. From 500 values on the root mean square of an error is steady to a few percent (`vit_runtime.parity.judging.ENOUGH`).
IMAGES = 84


@dataclass(frozen=True)
class Case:
    """A network, how it is exported, and the batch sizes at which it runs."""

    fields: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] | None = None
    opset: int = 18
    simplify: bool = True
    dynamic_size: bool = False
    batch_sizes: tuple[int, ...] = BATCH_SIZES

    @property
    def config(self) -> ViTConfig:
        return replace(TINY, **self.fields)


# Together these have every value of every option: a test below checks that. The other combinations are in `MORE` and `SLOW`.
CASES = {
    "default": Case(batch_sizes=ALL_BATCH_SIZES),
    "every output at depth 3, not square, opset 19": Case({"depth": 3, "img_size": (16, 40)}, OUTPUT_NAMES, opset=19),
    "attention alone": Case({}, ("attention",)),
    "one large patch, one head, another width, no head, another order": Case(
        {"img_size": (16, 16), "patch_size": 16, "num_heads": 1, "embed_dim": 48, "num_classes": 0}, ("tokens", "attention", "embedding")
    ),
    "pre-logits on the mean, depth 1, one channel": Case(
        {"representation_size": 24, "pool": "mean", "depth": 1, "in_chans": 1, "activation": "relu"}
    ),
    "map pooling, gated MLP, opset 21": Case(
        {**NO_TOKEN, "pool": "map", "gated_mlp": True, "mlp_norm": True, "activation": "silu"}, THREE, opset=21
    ),
    "deit": Case({"distilled": True, "pool": "cls_dist"}, OUTPUT_NAMES),
    "deit, mean of both tokens, opset 20": Case(
        {"distilled": True, "pool": "cls_dist_mean", "num_registers": 1, "layer_scale": True}, OUTPUT_NAMES, opset=20
    ),
    "dinov3, opset 23": Case(
        {**ROTARY, "depth": 3, "num_registers": 3, "pos_embed": False, "layer_scale": True},
        OUTPUT_NAMES,
        opset=23,
        batch_sizes=ALL_BATCH_SIZES,
    ),
    "eva": Case({"rope": Rope(), "attn_norm": True, "mlp_norm": True, "gated_mlp": True, "activation": "silu"}, OUTPUT_NAMES),
    "beit, opset 23": Case(
        {"rel_pos_bias": True, "pos_embed": False, "final_norm": "pooled", "pool": "mean", "layer_scale": True}, OUTPUT_NAMES, opset=23
    ),
    "clip, pooled without the last norm": Case(
        {"pre_norm": True, "activation": "quick_gelu", "projection": True, "final_norm": "aside", "pool": "mean"}, OUTPUT_NAMES
    ),
    "query and key norms, no last norm, many heads, other epsilon, opset 20": Case(
        {"qk_norm": True, "final_norm": "none", "pool": "mean_all", "num_heads": 8, "layer_norm_eps": 1e-3, "mlp_dim": 40},
        OUTPUT_NAMES,
        opset=20,
    ),
    "dinov2 classifier, opset 22": Case(
        {"pool": "cls_mean", "layer_scale": True, "num_registers": 2, "activation": "gelu_tanh"}, OUTPUT_NAMES, opset=22
    ),
    "free size, opset 23": Case({}, OUTPUT_NAMES, opset=23, dynamic_size=True, batch_sizes=ALL_BATCH_SIZES),
    "free size, antialias, rotary without a span": Case(
        {"resample": "bicubic_antialias", "rope": Rope(), "num_registers": 2}, OUTPUT_NAMES, dynamic_size=True
    ),
    "free size, corners, no class token, opset 20": Case(
        {**NO_TOKEN, "resample": "bicubic_align_corners"}, THREE, opset=20, dynamic_size=True
    ),
    "not simplified, mean, opset 23": Case({"depth": 3, **NO_TOKEN}, ("logits", "tokens"), opset=23, simplify=False),
}
MORE = {
    "every output": Case({}, OUTPUT_NAMES),
    "every output at depth 1": Case({"depth": 1}, OUTPUT_NAMES),
    "every output at depth 3, not square": Case({"depth": 3, "img_size": (16, 40)}, OUTPUT_NAMES),
    "outputs in another order": Case({}, ("tokens", "attention", "logits")),
    "mean with class token": Case({"pool": "mean"}, OUTPUT_NAMES),
    "mean without class token": Case(NO_TOKEN, THREE),
    "pre-logits": Case({"representation_size": 24}),
    "pre-logits on the mean, depth 1": Case({"representation_size": 24, "pool": "mean", "depth": 1}),
    "no head": Case({"num_classes": 0}, ("embedding", "tokens")),
    "one patch": Case({"img_size": (8, 8)}, OUTPUT_NAMES),
    "one head, large patches": Case({"num_heads": 1, "patch_size": 16}),
    "many heads, other epsilon": Case({"num_heads": 8, "layer_norm_eps": 1e-3, "mlp_dim": 40}),
    "map pooling, gated MLP": Case({**NO_TOKEN, "pool": "map", "gated_mlp": True, "mlp_norm": True, "activation": "silu"}, THREE),
    "deit, mean of both tokens": Case({"distilled": True, "pool": "cls_dist_mean"}, OUTPUT_NAMES),
    "dinov3": Case({**ROTARY, "depth": 3, "num_registers": 3, "pos_embed": False, "layer_scale": True}, OUTPUT_NAMES),
    "beit": Case({"rel_pos_bias": True, "pos_embed": False, "final_norm": "pooled", "pool": "mean", "depth": 3}, OUTPUT_NAMES),
    "clip": Case({"pre_norm": True, "activation": "quick_gelu", "projection": True}, OUTPUT_NAMES),
    "clip classifier": Case({"pre_norm": True, "final_norm": "aside", "pool": "mean"}, OUTPUT_NAMES),
    "query and key norms, no last norm": Case({"qk_norm": True, "final_norm": "none", "pool": "mean_all"}, OUTPUT_NAMES),
    "dinov2 classifier": Case({"pool": "cls_mean", "layer_scale": True, "num_registers": 2, "activation": "gelu_tanh"}, OUTPUT_NAMES),
    "free size": Case({"depth": 3}, OUTPUT_NAMES, dynamic_size=True),
    "free size, antialias": Case({"resample": "bicubic_antialias", "num_registers": 2}, THREE, dynamic_size=True),
    "free size, corners": Case({"resample": "bicubic_align_corners"}, THREE, dynamic_size=True),
    "free size, dinov3": Case({**ROTARY, "pos_embed": False, "num_registers": 1}, OUTPUT_NAMES, dynamic_size=True),
    "free size, rotary without a span": Case({"rope": Rope()}, OUTPUT_NAMES, dynamic_size=True),
    "free size, depth 3, opset 23": Case({"depth": 3}, OUTPUT_NAMES, opset=23, dynamic_size=True),
    "opset 20": Case({}, OUTPUT_NAMES, opset=20),
    "opset 23": Case({}, OUTPUT_NAMES, opset=23),
    "opset 20, dinov2": Case({"layer_scale": True, "num_registers": 2, "activation": "gelu_tanh"}, OUTPUT_NAMES, opset=20),
    "opset 23, dinov3": Case({**ROTARY, "pos_embed": False, "layer_scale": True}, OUTPUT_NAMES, opset=23),
    "opset 23, beit": Case({"rel_pos_bias": True, "pos_embed": False, "pool": "mean", "layer_scale": True}, OUTPUT_NAMES, opset=23),
    "opset 23, map pooling": Case({**NO_TOKEN, "pool": "map"}, THREE, opset=23),
    "not simplified": Case({"depth": 3}, OUTPUT_NAMES, simplify=False),
}
# Three of the ways to resample the position table: each takes long to trace, and the network's own tests compare it with its reference.
SLOW = {
    "free size, offset": Case({"resample": "bicubic_offset", "img_size": (16, 40)}, THREE, dynamic_size=True),
    "free size, bilinear": Case({"resample": "bilinear"}, THREE, dynamic_size=True),
    "free size, bilinear corners": Case({**NO_TOKEN, "resample": "bilinear_align_corners"}, THREE, dynamic_size=True),
}
ALL_CASES = {**CASES, **MORE, **SLOW}


def with_markers(names: Iterable[str]) -> list[Any]:
    """The names of cases as parameters, with the marker of the run that each is in."""
    markers = {**dict.fromkeys(MORE, pytest.mark.full), **dict.fromkeys(SLOW, pytest.mark.slow)}
    return [pytest.param(name, marks=[markers[name]] if name in markers else []) for name in names]


@dataclass(frozen=True)
class Exported:
    case: Case
    source: Source
    report: ExportReport

    @property
    def path(self) -> Path:
        return self.report.out


@pytest.fixture(scope="module", params=with_markers(ALL_CASES))
def exported(request: pytest.FixtureRequest, exports: ExportCache) -> Exported:
    case = ALL_CASES[request.param]
    source = source_of(initialized(case.config, case.outputs, case.dynamic_size))
    return Exported(case, source, exports.export(source, opset=case.opset, simplify=case.simplify))


@pytest.mark.unit
def test_the_ordinary_cases_have_every_value_of_every_option():
    """Every value of a choice, and at least two of a number. `resample` acts on free sizes only, and three of its values are slow."""
    cases = CASES.values()
    for name, kind in get_type_hints(ViTConfig).items():
        values = {getattr(case.config, name) for case in cases}
        if name == "resample":
            values = {case.config.resample for case in (*cases, *SLOW.values()) if case.dynamic_size}
        expected = set(get_args(kind)) if get_origin(kind) is Literal else {True, False} if kind is bool else None
        assert len(values) > 1 if expected is None else values == expected, name
    assert {case.opset for case in cases} == set(range(MIN_OPSET, MAX_OPSET + 1))
    assert {case.simplify for case in cases} == {case.dynamic_size for case in cases} == {True, False}
    assert {name for case in cases for name in case.outputs or ()} == set(OUTPUT_NAMES)


def session_of(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    "first", ["vit_exporter.pipeline", *(pytest.param(name, marks=pytest.mark.full) for name in ("vit_exporter", "vit_exporter.cli"))]
)
def test_public_names_are_there_whichever_module_is_imported_first(first):
    """`export` among them, which is a function."""
    code = f"import {first}\nimport vit_exporter\nfrom vit_exporter import *\nassert export.__name__ == 'export'\n"
    code += "assert all(hasattr(vit_exporter, name) for name in vit_exporter.__all__)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.unit
def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        vit_exporter.nonsense  # noqa: B018 - asking is the test


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_random_images_give_what_float64_pytorch_gives_at_every_batch_size(exported):
    """Within the limits of files, which are multiples of PyTorch's own float32 error."""
    model, session = exported.source.model, session_of(exported.path)
    images = np.random.default_rng(4).standard_normal((IMAGES, model.config.in_chans, *model.config.img_size), dtype=np.float32)
    reference, single = float64_outputs(model, images), float32_outputs(model, images)
    for batch_size in exported.case.batch_sizes:
        batches = [session.run(list(model.outputs), {"pixel_values": images[at : at + batch_size]}) for at in range(0, IMAGES, batch_size)]
        for index, name in enumerate(model.outputs):
            actual, scale = np.concatenate([batch[index] for batch in batches]), scale_of(reference[name])
            assert actual.dtype == np.float32
            assert actual.shape == reference[name].shape
            floor = noise_floor(reference[name], single[name])
            nearness = accuracy(reference[name], actual, scores=name == "logits")
            error = measure(reference[name], actual, scale)
            check = judge("cpu", batch_size, model.config.img_size, name, error, floor, nearness, FLOAT32_LIMITS)
            assert check.passed, check


def noise_floor(reference: np.ndarray, single: np.ndarray) -> Error:
    """The error of PyTorch in float32, which is never taken to be below the resolution of float32."""
    error = measure(reference, single, scale_of(reference))
    return Error(max(error.rms, UNIT_ROUNDOFF), max(error.max, UNIT_ROUNDOFF))


def test_the_file_passes_its_own_record_at_every_batch_size(exported):
    manifest, _ = read_manifest(exported.path)
    names, session, sizes = [output.name for output in manifest.outputs], session_of(exported.path), exported.case.batch_sizes
    report = check_record(lambda batch: dict(zip(names, session.run(names, {"pixel_values": batch}), strict=True)), manifest, "cpu", sizes)
    assert report.passed, report.worst
    assert {(check.inputs, check.batch_size, check.output) for check in report.checks} == {
        *(("golden", size, name) for size in sizes for name in names),
        *(("extremes", sizes[0], name) for name in names),
        ("resizing", 1, "pixels"),
    }


OTHER_SIZES = ((16, 16), (40, 24), (8, 64), (32, 32))


@pytest.mark.parametrize("exported", with_markers(name for name, case in ALL_CASES.items() if case.dynamic_size), indirect=True)
def test_a_free_size_is_right_at_every_size(exported):
    model, session = exported.source.model, session_of(exported.path)
    for size in OTHER_SIZES:
        images = np.random.default_rng(5).standard_normal((24, 3, *size), dtype=np.float32)
        reference, single = float64_outputs(model, images), float32_outputs(model, images)
        for name, actual in zip(model.outputs, session.run(list(model.outputs), {"pixel_values": images}), strict=True):
            error = measure(reference[name], actual, scale_of(reference[name]))
            floor = noise_floor(reference[name], single[name])
            nearness = accuracy(reference[name], actual, scores=name == "logits")
            check = judge("cpu", 24, size, name, error, floor, nearness, FLOAT32_LIMITS)
            assert check.passed, (size, check)


# --- the graph --------------------------------------------------------------------------------------------------------


def shape(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)


def test_inputs_and_outputs_are_named_as_asked_and_only_the_batch_is_free(exported):
    graph, config, outputs = onnx.load(exported.path).graph, exported.case.config, exported.source.model.outputs
    free = exported.case.dynamic_size
    size = ("height", "width") if free else config.img_size
    assert {value.name: shape(value) for value in graph.input} == {"pixel_values": ("batch", config.in_chans, *size)}
    shapes = {
        "logits": ("batch", config.num_classes),
        "embedding": ("batch", config.embedding_dim),
        "tokens": ("batch", "tokens" if free else config.num_tokens, config.embed_dim),
        "attention": ("batch", config.num_heads, "patches" if free else config.num_patches),
    }
    assert [(value.name, shape(value)) for value in graph.output] == [(name, shapes[name]) for name in outputs]
    assert all(value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT for value in (*graph.input, *graph.output))


def test_only_standard_ops_of_the_opset_asked_for_are_used(exported):
    proto = onnx.load(exported.path)
    assert {(entry.domain, entry.version) for entry in proto.opset_import} == {("", exported.case.opset)}
    assert {node.domain for node in proto.graph.node} == {""}
    assert not proto.functions
    onnx.checker.check_model(str(exported.path), full_check=True)


def folded(model: ViT) -> dict[str, np.ndarray]:
    """Parameters as the passes leave them: the prefix in the positions, LayerScale in the layer before, attention's scale in q."""
    state = {name: values.numpy() for name, values in model.state_dict().items()}
    if model.config.pos_embed and not model.dynamic_size:
        names = ("cls_token", "dist_token", "register_tokens")
        prefix = [state.pop(f"embeddings.{name}") for name in names if f"embeddings.{name}" in state]
        if prefix:
            table = state["embeddings.pos_embed"] = state["embeddings.pos_embed"].copy()
            table[:, : model.config.num_prefix] += np.concatenate(prefix, axis=1)
    width, scale = model.config.embed_dim, np.float32(model.config.head_dim**-0.5)
    queries = {"attn_pool.q": slice(None)}
    for index in range(model.config.depth):
        for gamma, layer in (("ls1.gamma", "attn.proj"), ("ls2.gamma", "mlp.fc2")):
            if model.config.layer_scale:
                factors = state.pop(f"blocks.{index}.{gamma}")
                state[f"blocks.{index}.{layer}.weight"] = state[f"blocks.{index}.{layer}.weight"] * factors[:, None]
                state[f"blocks.{index}.{layer}.bias"] = state[f"blocks.{index}.{layer}.bias"] * factors
        if not model.config.qk_norm:
            queries[f"blocks.{index}.attn.qkv"] = slice(0, width)
    for layer, rows in queries.items():
        for name in (f"{layer}.weight", f"{layer}.bias"):
            if name in state:
                state[name] = state[name].copy()
                state[name][rows] *= scale
    return state


def test_initialisers_are_named_after_the_networks_parameters(exported):
    """All that are not folded into others are there, with what is folded into them, turned as a MatMul reads them."""
    model = exported.source.model
    state = folded(model) if exported.case.simplify else {name: values.numpy() for name, values in model.state_dict().items()}
    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(exported.path).graph.initializer}
    if exported.case.outputs == ("attention",):  # which needs neither the last block's values nor what follows it
        assert found.keys() & state.keys()
        state = {name: values for name, values in state.items() if name in found}
    assert state.keys() <= found.keys()
    for name, values in state.items():
        turned = found[name].shape != values.shape or not np.array_equal(found[name], values)
        np.testing.assert_array_equal(found[name].T if turned else found[name], values, err_msg=name)
    constants = sum(found[name].size for name in found.keys() - state.keys())
    assert constants < 200  # shapes, axes and scales, and no weight among them


def test_node_and_value_names_are_unique(exported):
    nodes = onnx.load(exported.path).graph.node
    assert len({node.name for node in nodes}) == len(nodes)
    values = [value for node in nodes for value in node.output if value]
    assert len(set(values)) == len(values)


def test_the_report_tells_what_was_done(exported):
    report = exported.report
    assert report.parity is not None
    assert report.parity.passed
    assert report.size == exported.path.stat().st_size
    assert report.nodes_after == len(onnx.load(exported.path).graph.node)
    assert report.nodes_after < report.nodes_before if exported.case.simplify else report.nodes_after == report.nodes_before
    names = ["Simplify", "FoldWeightTransposes", "FoldPrefixTokens", "FoldLayerScale", "FoldAttentionScale", "FuseAttention"]
    names = names if exported.case.simplify else []
    assert [entry["name"] for entry in report.manifest.build["passes"]] == names
    assert [name for name, _ in report.steps] == ["build", "trace", "simplify", "reference", "write", "verify"]


STEM = Counter(Conv=1, Reshape=1, Transpose=1, Pad=1, Add=1)  # Pad makes room for the class token
TOP = Counter(LayerNormalization=1, Gather=1, Gemm=1)
NORMS_AND_RESIDUALS = Counter(LayerNormalization=2, Add=2)
LINEAR = Counter(MatMul=4, Add=4)  # qkv, proj, fc1, fc2 and a bias each
SPELLED_OUT = Counter(
    Reshape=2,  # into heads and out of them
    Transpose=3,  # heads to the front, k^T, heads back
    Gather=3,  # q, k and v out of their packed tensor
    MatMul=2,  # q k^T, weights times v
    Softmax=1,
)
ATTENTION = {18: SPELLED_OUT, 20: SPELLED_OUT, 23: Counter(Split=1, Attention=1)}
GELU = {18: Counter(Div=1, Erf=1, Add=1, Mul=2), 20: Counter(Gelu=1), 23: Counter(Gelu=1)}


MORE_OPS = [pytest.param(*pair, marks=pytest.mark.full) for pair in ((18, True), (20, False), (23, True))]


@pytest.mark.parametrize(("opset", "layer_scale"), [(18, False), (20, True), (23, False), *MORE_OPS])
def test_a_simplified_network_of_two_blocks_has_exactly_these_ops(exports, opset, layer_scale):
    """Linear layers are MatMul + Add; only the head, which is two-dimensional, is one Gemm. Nothing is reshaped around them.

    Neither attention's scale nor LayerScale is left: both are in the weights.
    """
    source = source_of(initialized(replace(TINY, layer_scale=layer_scale)))
    nodes = onnx.load(exports.export(source, opset=opset).out).graph.node
    block = NORMS_AND_RESIDUALS + LINEAR + ATTENTION[opset] + GELU[opset]
    assert Counter(node.op_type for node in nodes) == block + block + STEM + TOP
    linear = [node for node in nodes if node.op_type == "MatMul" and "." in node.input[1] and "/" not in node.input[1]]
    names = [f"blocks.{b}.{layer}.weight" for b in range(2) for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    assert [node.input[1] for node in linear] == names
    readers = {value: node for node in nodes for value in node.input}
    for node in linear:
        assert readers[node.output[0]].op_type == "Add"
        assert node.input[1].replace(".weight", ".bias") in readers[node.output[0]].input


# --- how it is exported -----------------------------------------------------------------------------------------------


@pytest.mark.full  # test_writer.py compares the files of two processes
def test_the_same_call_gives_the_same_bytes(exports, tiny_source, tmp_path):
    again = export(lambda: tiny_source, ExportSpec(tmp_path / "again.onnx"))
    assert again.out.read_bytes() == exports.export(tiny_source, "tiny.onnx").out.read_bytes()


def test_weights_beside_the_model_give_the_same_numbers(exports, tiny_source):
    inside = exports.export(tiny_source, "tiny.onnx")
    beside = exports.export(tiny_source, "tiny.onnx", external_data=True)
    assert inside.external_files == ()
    assert beside.external_files == ("tiny.onnx.data",)
    batch = {"pixel_values": np.random.default_rng(0).standard_normal((3, 3, 32, 32), dtype=np.float32)}
    for ours, theirs in zip(session_of(inside.out).run(None, batch), session_of(beside.out).run(None, batch), strict=True):
        np.testing.assert_array_equal(ours, theirs)  # the same graph and weights, so no tolerance


def test_without_verification_the_file_says_that_nothing_was_proven(exports, tiny_source):
    report = exports.export(tiny_source, "tiny.onnx", verify=False)
    assert report.parity is None
    manifest, _ = read_manifest(report.out)
    assert (manifest.golden, manifest.parity) == (None, None)


def test_the_network_is_let_go_before_the_file_is_verified(tmp_path):
    """So that the weights are not held twice."""
    models: list[weakref.ref[ViT]] = []
    alive: dict[str, bool] = {}

    def make() -> Source:
        model = initialized()
        models.append(weakref.ref(model))
        return source_of(model)

    def observe(name: str, detail: str, done: bool) -> None:
        alive[name] = any(model() is not None for model in models)

    export(make, ExportSpec(tmp_path / "vit.onnx"), observe)
    assert alive["reference"]
    assert not alive["verify"]


@pytest.mark.unit
@pytest.mark.parametrize("opset", [MIN_OPSET - 1, MAX_OPSET + 1, 0, -1, 99])
def test_an_opset_that_is_not_written_is_refused_with_the_range(tmp_path, opset):
    with pytest.raises(InputError) as raised:
        ExportSpec(tmp_path / "vit.onnx", opset=opset)
    assert_mentions(one_line(raised), opset, 18, 23, "--opset")


# --- a graph that is wrong --------------------------------------------------------------------------------------------


class TanhMlp(Mlp):
    """The MLP with the other GELU, the tanh approximation, which the traced network does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def other_gelu() -> ViT:
    model, other = initialized(), TanhMlp(TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10)  # GELU's two forms differ by 1e-4 of values around 1, and hardly where all is near 0
    block = model.blocks[1]
    assert isinstance(block, Block)
    other.load_state_dict(block.mlp.state_dict())
    block.mlp = other
    return model


def not_a_number() -> ViT:
    model = initialized()
    assert isinstance(model.norm, nn.LayerNorm)
    with torch.no_grad():
        model.norm.bias[3] = float("nan")
    return model


def last_token() -> ViT:
    """The network pools the last patch instead of the class token."""

    class LastToken(ViT):
        def pool(self, tokens: Tensor) -> Tensor:
            return tokens.select(1, -1)

    return init_weights(LastToken(TINY), 1)


@pytest.mark.parametrize(("make", "external", "earlier"), [(other_gelu, False, None), (last_token, True, b"an earlier model")])
def test_a_graph_that_computes_something_else_is_not_written(tmp_path, make, external, earlier):
    """What is traced is the network of the configuration; this one is another, and verification must see it."""
    out = tmp_path / "vit.onnx"
    if earlier:
        out.write_bytes(earlier)
    with pytest.raises(VerificationError) as raised:
        export(lambda: source_of(make()), ExportSpec(out, force=True, external_data=external))
    message = one_line(raised)
    assert_mentions(message, "logits")
    limit, error = sorted(float(number) for number in re.findall(r"(\d[\d.e+]*)x", message))  # in multiples of the noise floor
    assert limit in (FLOAT32_LIMITS.rms, FLOAT32_LIMITS.max)
    assert error > limit
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == ({"vit.onnx": earlier} if earlier else {})


def test_the_same_wrong_graph_is_written_when_nobody_asks_for_proof(tmp_path):
    export(lambda: source_of(other_gelu()), ExportSpec(tmp_path / "vit.onnx", verify=False))
    assert (tmp_path / "vit.onnx").exists()


def test_a_network_that_gives_nan_is_not_written(tmp_path):
    with pytest.raises(VerificationError) as raised:
        export(lambda: source_of(not_a_number()), ExportSpec(tmp_path / "vit.onnx"))
    assert_mentions(one_line(raised), "NaN", "Inf")
    assert not list(tmp_path.iterdir())
