"""timm's checkpoints: what each class computes, what a name stands for, what a bare state dict tells and what it has to be asked for.

The references are data/timm.npz, made by timm itself (data/make_timm.py): timm needs torchvision and is no dependency of this project.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import raises_mentioning
from helpers import assert_mentions
from safetensors.torch import save_file

from vit_models.checkpoints import timm
from vit_models.checkpoints.load import inspect, load
from vit_models.checkpoints.plan import CheckpointFile, Options, Plan, TensorInfo
from vit_models.checkpoints.timm.archs import find, parse, readable
from vit_models.checkpoints.timm.network import network
from vit_models.checkpoints.timm.steps import steps_of
from vit_models.config import ViTConfig
from vit_models.errors import CheckpointError, ConfigError
from vit_models.shapes import parameter_shapes

pytestmark = pytest.mark.unit

DATA = np.load(Path(__file__).parent / "data" / "timm.npz")
CASES = sorted({key.partition("/")[0] for key in DATA})
TOLERANCE = 5e-5  # float32 against float32 stays below 1e-5; a tanh GELU, or another epsilon, moves these by 2e-4 and more
PLAIN = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"input_size": [3, 32, 32], "fixed_input_size": True}}
SMALL = {"depth": 2, "embed_dim": 16, "num_heads": 2, "patch_size": 4, "num_classes": 3}


def config_of(case: str) -> dict[str, Any]:
    return json.loads(str(DATA[f"{case}/config"]))


def weights_of(case: str) -> dict[str, torch.Tensor]:
    flat, state = torch.from_numpy(DATA[f"{case}/weights"]), {}
    for name, shape in json.loads(str(DATA[f"{case}/names"])):
        count = int(np.prod(shape))
        state[name], flat = flat[:count].reshape(shape).clone(), flat[count:]
    return state


def sizes_of(case: str) -> list[tuple[int, int]]:
    """The network's own size, and the other one."""
    texts = dict.fromkeys(key.split("/")[1] for key in DATA if key.startswith(f"{case}/") and key.endswith("/images"))
    return [(int(height), int(width)) for height, width in (text.split("x") for text in texts)]


def check(path: Path, options: Options, case: str, size: tuple[int, int]) -> None:
    """The network of that path computes what timm computed."""
    key = f"{case}/{size[0]}x{size[1]}"
    wanted = [output for output in ("tokens", "embedding", "logits") if f"{key}/{output}" in DATA]
    model, _ = load(path, options, outputs=wanted)
    with torch.no_grad():
        found = model(torch.from_numpy(DATA[f"{key}/images"]).float())
    for output, value in zip(wanted, found, strict=True):
        np.testing.assert_allclose(value.numpy(), DATA[f"{key}/{output}"], rtol=0, atol=TOLERANCE, err_msg=f"{key}/{output}")


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a case as its hub folder."""

    def write(case: str) -> Path:
        save_file(weights_of(case), tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(config_of(case)))
        return tmp_path

    return write


# ---- the same numbers as timm --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_a_hub_folder_computes_what_timm_computes(case: str, folder: Callable[[str], Path]) -> None:
    path, (own, _) = folder(case), sizes_of(case)
    assert inspect(path).config.img_size == own
    check(path, Options(), case, own)


@pytest.mark.parametrize("case", CASES)
def test_at_another_size_it_computes_what_timm_makes_of_it(case: str, folder: Callable[[str], Path]) -> None:
    other = sizes_of(case)[1]
    check(folder(case), Options(img_size=other), case, other)


# What the weights do not show has to be given with the name and the heads: the reader of a state dict has no model_args.
UNSEEN = (
    *("global_pool", "pool_include_prefix", "act_layer", "norm_layer", "fc_norm", "rope_grid_indexing", "ref_feat_shape"),
    *("rope_grid_offset", "rope_rotate_half", "num_heads", "img_size"),
)


@pytest.mark.parametrize("case", CASES)
def test_a_bare_state_dict_needs_only_what_leaves_no_trace(case: str, tmp_path: Path) -> None:
    config = config_of(case)
    torch.save({"state_dict": weights_of(case), "arch": config["architecture"], "epoch": 3}, tmp_path / "last.pth.tar")
    told = {key: json.dumps(value).strip('"[]') for key, value in config["model_args"].items() if key in UNSEEN}
    check(tmp_path / "last.pth.tar", Options(model_args=told), case, sizes_of(case)[0])


def test_a_table_is_resampled_to_the_size_that_timm_builds_and_this_is_said(folder: Callable[[str], Path]) -> None:
    """Without model_args and a fixed size, timm builds for the architecture's own size and resamples the table on loading."""
    path, config = folder("vit_norms"), config_of("vit_norms")
    (height, width), args = sizes_of("vit_norms")[0], config["model_args"]
    del args["img_size"]
    config["pretrained_cfg"]["fixed_input_size"] = False
    (path / "config.json").write_text(json.dumps(config))
    spec = inspect(path)
    assert spec.config.img_size == (224, 224)
    assert f"{height}x{width}" in spec.notes[0]
    model, _ = load(path)
    again, _ = load(path, Options(img_size=(224, 224)))  # from the stored table at once
    torch.testing.assert_close(model.embeddings.pos_embed, again.embeddings.pos_embed, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arch", "arguments"),
    [
        ("vit_tiny_patch16_224", {"mode": "bicubic", "antialias": True}),
        ("flexivit_small", {"mode": "bilinear"}),
        ("vit_large_patch16_radio_v3", {"mode": "bilinear"}),
        ("vit_base_patch16_radio_v3", {"mode": "bilinear", "align_corners": True}),
    ],
)
@pytest.mark.parametrize("size", [32, 16])
def test_some_architectures_have_their_own_way_to_resample_a_table_on_loading(arch: str, arguments: dict[str, Any], size: int) -> None:
    """torch's interpolation with the arguments that timm gives it; where the config takes another size, and where --img-size does."""
    args = {**SMALL, "no_embed_class": True, "reg_tokens": 0}
    config = {"architecture": arch, "model_args": args, "pretrained_cfg": {"input_size": [3, size, size], "fixed_input_size": True}}
    table = torch.randn(1, 36, 16, generator=torch.Generator().manual_seed(0))
    plan = timm.plan(shaped({"pos_embed": (1, 36, 16)}, {"config.json": config}), Options())
    grid = torch.nn.functional.interpolate(table.reshape(1, 6, 6, 16).permute(0, 3, 1, 2), size=(size // 4, size // 4), **arguments)
    found = plan.steps["embeddings.pos_embed"].repair(table)
    torch.testing.assert_close(found[0, 1:], grid.flatten(2)[0].T, rtol=0, atol=1e-6)
    assert plan.config.resample == f"{arguments['mode']}{'_antialias' * ('antialias' in arguments)}" + "_align_corners" * (
        "align_corners" in arguments
    )


@pytest.mark.parametrize(("fixed", "crop_pct", "edge"), [(True, 0.9, 33), (True, 1.0, 30), (False, 0.9, 33)])
def test_images_that_the_patches_do_not_divide_are_prepared_whole_and_then_cut(fixed: bool, crop_pct: float, edge: int) -> None:
    """As for vit_so400m_patch14_siglip_384: timm's patches of 14 cover 378 of its 384 pixels, the top left."""
    args = {**SMALL, "patch_size": 8, "pos_embed": "learn" if fixed else "none"}
    cfg = {"input_size": [3, 30, 30], "fixed_input_size": fixed, "crop_pct": crop_pct}
    config = {"architecture": "vit_tiny_patch16_224", "model_args": args, "pretrained_cfg": cfg}
    plan = timm.plan(shaped({"pos_embed": (1, 10, 16)}, {"config.json": config}), Options())
    assert plan.preprocessing is not None
    assert plan.config.img_size == (24, 24)
    assert plan.preprocessing["resize"] == {"mode": "shortest_edge", "edge": edge}
    assert plan.preprocessing["crop"] == {"height": 24, "width": 24, "rounding": "half_even", "of": {"height": 30, "width": 30}}
    (note,) = plan.notes
    assert_mentions(note, 8, "24 x 24", "30 x 30")
    asked = timm.plan(shaped({"pos_embed": (1, 10, 16)}, {"config.json": config}), Options(img_size=(32, 32)))
    assert asked.preprocessing is not None
    assert asked.preprocessing["crop"] == {"height": 32, "width": 32, "rounding": "half_even", "of": None}


def test_a_size_that_timm_builds_for_may_be_one_that_the_patches_do_not_divide() -> None:
    """The table is resampled to the patches that fit."""
    config = {**PLAIN, "model_args": {**SMALL, "patch_size": 8}, "pretrained_cfg": {"input_size": [3, 30, 30], "fixed_input_size": True}}
    plan = timm.plan(shaped({"pos_embed": (1, 17, 16)}, {"config.json": config}), Options())
    assert plan.config.img_size == (24, 24)
    assert any("32x32" in note for note in plan.notes)


def test_the_heads_of_a_distilled_network_are_averaged(folder: Callable[[str], Path]) -> None:
    model, _ = load(folder("deit_distilled"), outputs=["tokens", "logits"])
    with torch.no_grad():
        tokens, logits = model(torch.randn(2, 3, *model.config.img_size))
    state = {name: value.float() for name, value in weights_of("deit_distilled").items()}
    heads = [tokens[:, index] @ state[f"{name}.weight"].T + state[f"{name}.bias"] for index, name in enumerate(("head", "head_dist"))]
    torch.testing.assert_close(logits, (heads[0] + heads[1]) / 2)


# ---- names -----------------------------------------------------------------------------------------------------------------------------


def test_every_readable_name_builds_a_network_or_is_refused_for_a_reason() -> None:
    built, refused = 0, []
    for arch in readable():
        try:
            found = network(arch)
        except CheckpointError as error:
            refused.append(str(error))
            continue
        config = ViTConfig(img_size=found.img_size, **found.fields)
        assert steps_of(config, found.names, config.grid_size).keys() == parameter_shapes(config).keys(), arch.name
        built += 1
    assert (built, len(refused)) == (210, 55)
    reasons = (
        *("block_fn", "attn_layer", "embed_layer", "embed_norm_layer", "norm_layer", "use_post_norm", "attn_only_layer_scale"),
        *("rope_type", "attn_pool_num_heads", "global_pool"),
    )
    assert all(any(reason in message for reason in reasons) for message in refused)


# timm's own counts: sum(p.numel() for p in create_model(name).parameters())
PARAMETERS = {
    "vit_tiny_patch16_224": 5_717_416,
    "vit_small_patch16_224": 22_050_664,
    "vit_base_patch16_224": 86_567_656,
    "vit_large_patch16_384": 304_715_752,
    "vit_small_patch14_dinov2": 22_056_192,
    "vit_giant_patch14_reg4_dinov2": 1_136_483_840,
    "vit_base_patch16_clip_224": 86_568_424,
    "vit_so400m_patch14_siglip_224": 427_680_704,
    "vit_little_patch16_reg4_gap_256": 22_516_008,
    "deit3_base_patch16_224": 86_585_320,
    "eva02_tiny_patch14_224": 5_502_144,
    "eva02_large_patch14_448": 305_080_232,
    "eva_giant_patch14_336": 1_013_005_672,
    "vit_large_patch16_dinov3": 303_079_424,
    "vit_huge_plus_patch16_dinov3": 840_509_440,
    "vit_base_patch16_rope_reg1_gap_256": 86_425_576,
}


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_published_networks_have_as_many_parameters_as_timms(name: str, parameters: int) -> None:
    arch = find(name)
    assert arch.setting is not None
    size = {"img_size": arch.setting["input_size"][1:]} if arch.setting["fixed_input_size"] else {}
    found = network(arch, size, {"num_classes": arch.setting["num_classes"]})
    config = ViTConfig(img_size=found.img_size, **found.fields)
    steps = steps_of(config, found.names, config.grid_size)
    count = 0
    for target, shape in parameter_shapes(config).items():
        count += int(np.prod(shape)) if steps[target].sources else 0
        if target.endswith("qkv.bias") and len(steps[target].sources) == 2:
            count -= config.embed_dim  # the key's bias is not stored
        if target == "embeddings.pos_embed" and not found.names.prefix_has_positions:
            count -= config.num_prefix * config.embed_dim
    assert count == parameters


def test_a_name_may_have_a_tag_an_owner_or_be_of_an_earlier_timm() -> None:
    assert find("vit_base_patch16_224") == find("timm/vit_base_patch16_224.augreg2_in21k_ft_in1k")
    assert find("hf-hub:timm/vit_base_patch16_224.dino").setting == find("vit_base_patch16_224_dino").setting
    mean = [(find(f"vit_base_patch16_224.{tag}").setting or {})["mean"] for tag in ("augreg_in21k", "dino")]
    assert mean == [[0.5, 0.5, 0.5], [0.485, 0.456, 0.406]]


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("vit_tinny_patch16_224", ("vit_tiny_patch16_224",)),
        ("vit_relpos_base_patch16_224", ("VisionTransformerRelPos", "VisionTransformer", "Eva", "Beit")),
        ("samvit_base_patch16", ("VisionTransformerSAM",)),
        ("naflexvit_base_patch16_gap", ("NaFlexVit",)),
    ],
)
def test_a_name_that_cannot_be_read_is_refused_by_name(name: str, facts: tuple[object, ...]) -> None:
    with raises_mentioning(CheckpointError, name, *facts):
        find(name)


# ---- what is refused -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "args", "facts"),
    [
        ("vit_tiny_patch16_224", {"global_pool": "avgmax"}, ("global_pool", "'avgmax'", "token", "avg", "map")),
        ("vit_tiny_patch16_224", {"global_pool": ""}, ("--model-arg global_pool=token",)),
        ("vit_tiny_patch16_224", {"global_pool": "map"}, ("global_pool", "tokens", "patches")),
        ("vit_tiny_patch16_224", {"class_token": False, "pos_embed": "none"}, ("'cls'", "class token")),
        ("vit_tiny_patch16_224", {"norm_layer": "rmsnorm"}, ("norm_layer", "'rmsnorm'")),
        ("vit_tiny_patch16_224", {"act_layer": "mish"}, ("act_layer", "'mish'", "gelu")),
        ("vit_tiny_patch16_224", {"attn_layer": "diff"}, ("attn_layer", "'diff'")),
        ("vit_tiny_patch16_224", {"patch_size": [4, 8]}, ("patch_size", "[4, 8]", "square")),
        ("vit_tiny_patch16_224", {"heads": 3}, ("'heads'", "VisionTransformer")),
        ("vit_tiny_patch16_224", {"embed_dim": 16.5}, ("embed_dim", 16.5)),
        ("vit_tiny_patch16_224", {"depth": 10**8}, ("depth", 10**8)),
        ("vit_tiny_patch16_224", {"num_heads": 5}, ("embed_dim", 16, 5)),
        ("vit_base_patch16_siglip_224", {"mlp_layer": "SwiGLU"}, ("probe", "MLP")),
        ("vit_base_patch16_rpn_224", {}, ("block_fn", "'ResPostBlock'", "Block")),
        ("vit_base_r50_s16_224", {}, ("embed_layer", "'HybridEmbed'", "PatchEmbed")),
        ("deit_tiny_distilled_patch16_224", {"reg_tokens": 2}, ("reg_tokens", 2, 0)),
        ("eva02_tiny_patch14_224", {"rope_type": "mixed"}, ("rope_type", "'mixed'", "cat", "dinov3")),
        ("eva02_tiny_patch14_224", {"use_post_norm": True}, ("use_post_norm", "True")),
        ("eva02_tiny_patch14_224", {"num_kv_heads": 1, "attn_type": "rope"}, ("num_kv_heads", 1)),
        ("eva02_tiny_patch14_224", {"use_fc_norm": True, "use_post_transformer_norm": True}, ("use_fc_norm", "True")),
        ("eva02_tiny_patch14_224", {"ref_feat_shape": [1, 2, 3]}, ("ref_feat_shape",)),
        ("eva02_tiny_patch14_224", {"embed_dim": 18, "num_heads": 3}, ("rotary", 6, 4)),
        ("beit_base_patch16_224", {"global_pool": "map"}, ("global_pool", "'map'", "token", "avg")),
    ],
)
def test_what_the_network_cannot_compute_is_refused_by_name(arch: str, args: dict[str, Any], facts: tuple[object, ...]) -> None:
    config = {**PLAIN, "architecture": arch, "model_args": {**SMALL, **args}}
    with raises_mentioning((CheckpointError, ConfigError), *facts):
        timm.plan(shaped({"pos_embed": (1, 65, 16)}, {"config.json": config}), Options(img_size=(32, 32)))


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"architecture": "resnet50"}, ("resnet50", "timm")),
        ({"model_args": 7}, ("model_args", 7, "JSON")),
        ({"pretrained_cfg": []}, ("pretrained_cfg", "JSON")),
        ({"pretrained_cfg": {"input_size": 224}}, ("input_size", 224, "[channels, height, width]")),
        ({"pretrained_cfg": {"input_size": ["a", 224, 224]}}, ("in_chans", "'a'")),
        ({"num_classes": "ten"}, ("num_classes", "'ten'")),
        ({"label_names": "cat"}, ("label_names", "'cat'")),
        ({"model_args": {"img_size": -3}}, ("img_size", -3)),
    ],
)
def test_a_config_of_the_wrong_kind_is_one_clear_line(change: dict[str, Any], facts: tuple[object, ...]) -> None:
    tensors = {"patch_embed.proj.weight": (192, 3, 16, 16), "pos_embed": (1, 5, 192)}
    with raises_mentioning(CheckpointError, *facts):
        timm.plan(shaped(tensors, {"config.json": {**PLAIN, **change}}), Options())


# ---- bare state dicts -------------------------------------------------------------------------------------------------------------------


def shaped(tensors: Mapping[str, tuple[int, ...]], documents: Mapping[str, Any] | None = None, **extras: Any) -> CheckpointFile:
    """A file of names and shapes alone."""
    infos = {name: TensorInfo(tuple(shape), "F32") for name, shape in tensors.items()}
    return CheckpointFile(Path("x.pth"), "torch", infos, lambda name: torch.zeros(infos[name].shape), documents or {}, {}, extras)


def vit_state(
    width: int, depth: int, mlp: int, patch: int = 16, grid: int = 14, classes: int = 10, more: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, Any]:
    """The names and shapes of timm's plain VisionTransformer; `more` are other tensors of each block."""
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, grid * grid + 1, width), "patch_embed.proj.weight": (width, 3, patch, patch)}
    shapes |= {"patch_embed.proj.bias": (width,), "norm.weight": (width,), "norm.bias": (width,)}
    shapes |= {"head.weight": (classes, width), "head.bias": (classes,)} if classes else {}
    for index in range(depth):
        for name, rows, columns in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", mlp, width),
            ("mlp.fc2", width, mlp),
        ):
            shapes |= {f"blocks.{index}.{name}.weight": (rows, columns), f"blocks.{index}.{name}.bias": (rows,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{index}.{name}.weight": (width,), f"blocks.{index}.{name}.bias": (width,)}
        shapes |= {f"blocks.{index}.{name}": shape for name, shape in (more or {}).items()}
    return shapes


def planned(tensors: Mapping[str, tuple[int, ...]], **options: Any) -> Plan:
    return timm.plan(shaped(tensors), Options(**options))


@pytest.mark.parametrize(
    ("sizes", "heads"),
    [
        ((192, 12, 768), 3),
        ((384, 12, 1536), 6),
        ((768, 12, 3072), 12),
        ((1024, 24, 4096), 16),
        ((1280, 32, 5120), 16),
        ((1408, 40, 6144), 16),
    ],
)
def test_published_sizes_tell_the_number_of_heads(sizes: tuple[int, int, int], heads: int) -> None:
    found = planned(vit_state(*sizes)).config
    assert (found.num_heads, found.pool, found.activation, found.layer_norm_eps) == (heads, "cls", "gelu", 1e-6)
    assert (found.num_classes, found.img_size, found.resample) == (10, (224, 224), "bicubic_antialias")
    assert planned(vit_state(*sizes, patch=4, grid=8)).config.num_heads == heads  # whatever the patches are


def test_another_size_is_asked_for_in_one_line_and_then_read() -> None:
    tensors = vit_state(48, 2, 100, patch=4, grid=6)
    with raises_mentioning(CheckpointError, 48, 2, 100, "--model-arg num_heads=6", "--arch"):
        planned(tensors)
    config = planned(tensors, model_args={"num_heads": "4"}).config
    assert (config.num_heads, config.mlp_dim, config.patch_size, config.img_size) == (4, 100, 4, (24, 24))


def test_the_heads_are_told_by_query_norms() -> None:
    norms = {f"attn.{name}.{part}": (8,) for name in ("q_norm", "k_norm") for part in ("weight", "bias")}
    assert planned(vit_state(48, 2, 96, more=norms)).config.num_heads == 6


def test_what_is_pooled_is_told_by_the_final_norm() -> None:
    tensors = {
        name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: shape for name, shape in vit_state(192, 12, 768).items()
    }
    plan = planned(tensors)
    assert (plan.config.pool, plan.config.final_norm, plan.steps["norm.weight"].sources) == ("mean", "pooled", ("fc_norm.weight",))
    del tensors["cls_token"]
    tensors |= {"pos_embed": (1, 196, 192), "norm.weight": (192,), "norm.bias": (192,)}
    tensors = {name: shape for name, shape in tensors.items() if not name.startswith("fc_norm.")}
    assert (planned(tensors).config.pool, planned(tensors).config.final_norm) == ("mean", "tokens")


def test_positions_of_the_patches_alone_are_told_by_a_square() -> None:
    tensors = vit_state(192, 12, 768) | {"pos_embed": (1, 196, 192), "reg_token": (1, 4, 192)}
    plan = planned(tensors)
    assert plan.config.num_registers == 4
    table = plan.steps["embeddings.pos_embed"].repair(torch.ones(1, 196, 192))
    assert table.shape == (1, 201, 192)
    assert table[0].sum(dim=1).tolist() == [0.0] * 5 + [192.0] * 196


def test_a_table_that_is_no_square_needs_its_image_size() -> None:
    tensors = vit_state(192, 12, 768) | {"pos_embed": (1, 1 + 2 * 5, 192)}
    with raises_mentioning(CheckpointError, "--model-arg img_size=H,W"):
        planned(tensors)
    assert planned(tensors, model_args={"img_size": "80,32"}).config.img_size == (80, 32)
    assert planned(tensors, img_size=(32, 80)).config.img_size == (32, 80)
    assert planned(tensors, model_args={"img_size": "(80, 32)"}, img_size=(32, 32)).config.img_size == (80, 32)


def test_a_square_table_stays_one_at_a_size_to_run_at_that_has_as_many_patches() -> None:
    tensors = vit_state(192, 12, 768, grid=16)
    assert planned(tensors, img_size=(128, 512)).config.img_size == (256, 256)


def clip_state() -> dict[str, Any]:
    tensors = vit_state(768, 12, 3072) | {"norm_pre.weight": (768,), "norm_pre.bias": (768,)}
    del tensors["patch_embed.proj.bias"]
    return tensors


def test_networks_that_only_differ_in_what_leaves_no_trace_are_asked_for() -> None:
    with raises_mentioning(CheckpointError, "vit_base_patch16_clip_224", "vit_base_patch16_clip_quickgelu_224"):
        planned(clip_state())
    config = planned(clip_state(), arch="vit_base_patch16_clip_quickgelu_224.metaclip_2pt5b").config
    assert (config.activation, config.layer_norm_eps, config.pre_norm) == ("quick_gelu", 1e-5, True)
    assert planned(clip_state(), model_args={"act_layer": "gelu"}).config.activation == "gelu"


def test_rotary_positions_of_no_published_size_are_asked_for() -> None:
    tensors = vit_state(64, 2, 128, more={"gamma_1": (64,), "gamma_2": (64,)})
    with raises_mentioning(CheckpointError, "rotary"):
        planned(tensors, model_args={"num_heads": "4"})
    told = {"num_heads": "4", "global_pool": "token"}
    config = planned(tensors, arch="vit_medium_patch16_rope_reg1_gap_256", model_args=told).config
    assert config.rope is not None
    assert (config.rope.span, config.pool, config.num_registers, config.layer_scale) == ((16.0, 16.0), "cls", 0, True)


def test_a_gate_of_no_published_size_is_asked_for() -> None:
    tensors = vit_state(64, 2, 128) | {f"blocks.{index}.mlp.fc2.weight": (64, 64) for index in range(2)}
    with raises_mentioning(CheckpointError, "act_layer=silu"):
        planned(tensors, model_args={"num_heads": "4"})
    config = planned(tensors, model_args={"num_heads": "4", "act_layer": "silu"}).config
    assert (config.gated_mlp, config.mlp_dim, config.activation) == (True, 64, "silu")


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"arch": "vit_small_patch16_224"}, ("vit_small_patch16_224", 384, 12, 1536, 192)),
        ({"arch": "deit_tiny_distilled_patch16_224"}, ("VisionTransformerDistilled", "distilled", "True", "False")),
        ({"model_args": {"depth": "3"}}, ("depth", 3, 12)),
        ({"model_args": {"heads": "3"}}, ("--model-arg heads", "timm")),
        ({"model_args": {"rope_type": "cat"}}, ("rope_type", "VisionTransformer")),
        ({"model_args": {"num_heads": "five"}}, ("num_heads", "'five'")),
    ],
)
def test_what_the_user_says_has_to_fit_the_file(options: dict[str, Any], facts: tuple[object, ...]) -> None:
    with raises_mentioning(CheckpointError, *facts):
        planned(vit_state(192, 12, 768), **options)


def test_a_training_checkpoint_names_its_architecture() -> None:
    for extras in ({"arch": "vit_base_patch32_clip_224"}, {"args": {"model": "vit_base_patch32_clip_224"}}):
        plan = timm.plan(shaped(clip_state(), **extras), Options())
        assert (plan.arch, plan.config.layer_norm_eps) == ("vit_base_patch32_clip_224", 1e-5)
        assert plan.preprocessing is not None
        np.testing.assert_allclose(plan.preprocessing["mean"], [0.48145466, 0.4578275, 0.40821073])
    elsewhere = timm.plan(shaped(vit_state(192, 12, 768), arch="vit_tiny", args={"model": ["?"]}), Options())
    assert elsewhere.config.num_heads == 3


def test_a_network_without_a_head_is_left_to_who_knows_it_unless_it_is_said_to_be_timms() -> None:
    tensors = vit_state(384, 12, 1536, classes=0)
    with raises_mentioning(CheckpointError, "timm", "DINO", "MAE"):
        planned(tensors)
    assert planned(tensors, format="timm").config == planned(tensors, arch="vit_small_patch16_224").config


def test_a_network_that_several_names_fit_is_prepared_as_the_most_of_their_weights_and_this_is_said() -> None:
    """DeiT's and the augreg weights have the same names and sizes; of another table's size are the names of that size."""
    plan = planned(vit_state(192, 12, 768))
    assert plan.preprocessing is not None
    assert (plan.arch, plan.preprocessing["mean"], plan.assumed) == (None, [0.5, 0.5, 0.5], True)
    assert_mentions(plan.notes[0], "vit_tiny_patch16_224", "deit_tiny_patch16_224", "--arch")
    told = planned(vit_state(192, 12, 768), arch="deit_tiny_patch16_224")
    assert told.preprocessing is not None
    assert (told.preprocessing["mean"], told.notes, told.assumed) == ([0.485, 0.456, 0.406], (), False)
    large = planned(vit_state(192, 12, 768, grid=24))
    assert large.preprocessing is not None
    assert (large.preprocessing["resize"], large.notes) == ({"mode": "shortest_edge", "edge": 384}, ())
    assert planned(vit_state(48, 2, 100), model_args={"num_heads": "4"}).preprocessing is None


def test_names_of_which_one_has_indivisible_images_are_prepared_each_in_its_own_way() -> None:
    """so400m_384's 384 pixels and so400m_378's 378 make one table."""
    found = network(find("vit_so400m_patch14_siglip_378"), {"num_classes": 0})
    config = ViTConfig(img_size=(378, 378), **found.fields)
    steps = steps_of(config, found.names, config.grid_size)
    tensors = {steps[target].sources[0]: shape for target, shape in parameter_shapes(config).items()}
    plan = planned(tensors)
    assert plan.preprocessing is not None
    assert (plan.config.img_size, plan.preprocessing["crop"]["of"], plan.assumed) == ((378, 378), None, True)
    plan = planned(tensors, arch="vit_so400m_patch14_siglip_384")
    assert plan.preprocessing is not None
    assert plan.preprocessing["resize"] == {"mode": "shortest_edge", "edge": 426}
    assert plan.preprocessing["crop"] == {"height": 378, "width": 378, "rounding": "half_even", "of": {"height": 384, "width": 384}}


def test_a_grey_network_has_the_mean_of_its_architectures_statistics() -> None:
    """The architecture's are of colours; a folder of its own has to say its own."""
    for arch, mean in [("deit_tiny_patch16_224", (0.485 + 0.456 + 0.406) / 3), ("vit_tiny_patch16_224", 0.5)]:
        plan = planned(vit_state(192, 12, 768) | {"patch_embed.proj.weight": (192, 1, 16, 16)}, arch=arch)
        assert plan.preprocessing is not None
        assert (plan.preprocessing["color"], plan.preprocessing["mean"]) == ("L", [mean])


def test_who_knows_the_preparation_goes_before_who_assumes_one(tmp_path: Path) -> None:
    """At its own size a bare encoder is the same network for timm, which has several of that size, and DINO, which has one."""
    state = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in vit_state(192, 12, 768, classes=0).items()}
    torch.save(state, tmp_path / "bare.pth")
    spec = inspect(tmp_path / "bare.pth", Options(img_size=(224, 224)))
    assert spec.preprocessing is not None
    assert (spec.format, spec.preprocessing["mean"], spec.notes) == ("dino", [0.485, 0.456, 0.406], ())


# ---- the rest ---------------------------------------------------------------------------------------------------------------------------


def test_it_recognises_names_and_documents_but_not_others_files() -> None:
    assert timm.recognise(shaped(vit_state(192, 12, 768)))
    assert timm.recognise(shaped({}, {"config.json": PLAIN}))
    assert not timm.recognise(shaped(vit_state(192, 12, 768) | {"mask_token": (1, 192)}))  # DINOv2
    assert not timm.recognise(shaped(vit_state(192, 12, 768) | {"decoder_pos_embed": (1, 197, 512)}))  # MAE
    assert not timm.recognise(shaped({"embeddings.cls_token": (1, 1, 192)}, {"config.json": {"model_type": "vit"}}))
    assert not timm.recognise(replace(shaped(vit_state(192, 12, 768)), container="onnx"))


def test_a_trunk_inside_another_model_is_planned_by_its_prefix() -> None:
    tensors = {f"visual.trunk.{name}": shape for name, shape in vit_state(192, 12, 768, classes=0).items()}
    config, steps, *_ = timm.plan_network(
        "vit_tiny_patch16_224", {"num_classes": 0, "global_pool": "token"}, shaped(tensors), "visual.trunk.", Options()
    )
    assert (config.num_classes, config.img_size) == (0, (224, 224))
    assert {source for step in steps.values() for source in step.sources} == tensors.keys()


@pytest.mark.parametrize(
    ("case", "pool", "norm"),
    [
        ("beit_shared", "token", "fc_norm"),
        ("eva_giant", "token", "fc_norm"),
        ("beit_swiglu", "avg", "norm"),
        ("beit_shared", "", "fc_norm"),
    ],
)
def test_open_clip_pools_a_trunk_as_it_says_and_leaves_the_norm_where_it_was(case: str, pool: str, norm: str, tmp_path: Path) -> None:
    """With a Linear behind it, open_clip changes the pooling of a trunk that is built already."""
    config, weights = config_of(case), {name: value.float() for name, value in weights_of(case).items() if not name.startswith("head.")}
    height, width = sizes_of(case)[0]
    key = f"{case}/{height}x{width}"
    projection = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    state = {f"visual.trunk.{name}": value for name, value in weights.items()} | {"visual.head.proj.weight": projection}
    save_file(state, tmp_path / "open_clip_model.safetensors")
    args = {
        name: json.dumps(value).strip('"[]') for name, value in config["model_args"].items() if name not in ("global_pool", "num_classes")
    }
    vision = {"timm_model_name": config["architecture"], "timm_pool": pool, "timm_proj": "linear", "image_size": [height, width]}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 5, "vision_cfg": vision}}))
    model, _ = load(tmp_path, Options(model_args=args), outputs=["tokens", "embedding", "logits"])
    with torch.no_grad():
        tokens, embedding, logits = model(torch.from_numpy(DATA[f"{key}/images"]).float())
    np.testing.assert_allclose(tokens.numpy(), DATA[f"{key}/tokens"], rtol=0, atol=TOLERANCE)
    pooled = tokens[:, 0] if pool == "token" else tokens[:, 1:].mean(dim=1)
    if norm == "fc_norm":
        pooled = torch.nn.functional.layer_norm(pooled, (16,), weights["fc_norm.weight"], weights["fc_norm.bias"], 1e-6)
    torch.testing.assert_close(embedding, pooled, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(logits, pooled @ projection.T, rtol=0, atol=TOLERANCE)


def test_labels_are_those_of_the_folder_or_imagenets() -> None:
    tensors = {"pos_embed": (1, 5, 192)}
    labels = ["cat", "dog", "owl"]
    assert timm.plan(shaped(tensors, {"config.json": {**PLAIN, "num_classes": 3, "label_names": labels}}), Options()).labels == tuple(
        labels
    )
    thousand = timm.plan(shaped(tensors, {"config.json": PLAIN}), Options()).labels
    assert thousand is not None
    assert (len(thousand), thousand[0]) == (1000, "tench")
    assert timm.plan(shaped(tensors, {"config.json": {**PLAIN, "num_classes": 5}}), Options()).labels is None


def test_buffers_and_mask_tokens_are_left_out_with_their_reason() -> None:
    config = {**PLAIN, "architecture": "beit_base_patch16_224", "model_args": {"depth": 1}}
    tensors = {
        name: (732, 12) if name.endswith("table") else (197, 197)
        for name in map("blocks.0.attn.relative_position_{}".format, ("bias_table", "index"))
    }
    plan = timm.plan(shaped({**tensors, "mask_token": (1, 1, 768)}, {"config.json": config}), Options())
    assert plan.ignored.keys() == {"blocks.0.attn.relative_position_index", "mask_token"}
    assert all(plan.ignored.values())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("6", 6), ("1e-5", 1e-5), ("true", True), ("False", False), ("None", None), ("null", None), ("32,48", [32, 48])],
        *[("(32, 48)", [32, 48]), ("[7]", [7]), ("avg", "avg"), ("", ""), ("[" * 100_000, "[" * 100_000)],
    ],
)
def test_model_args_are_read_as_json_or_python_writes_them(text: str, value: Any) -> None:
    assert parse(text) == value
