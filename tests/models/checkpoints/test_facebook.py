"""DINO, DINOv2, DINOv3 and MAE state dicts, against their equations written out in PyTorch, in float64."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import raises_mentioning
from torch import Tensor
from torch.nn import functional as F

from vit_models.checkpoints import dino, dinov2, dinov3, mae
from vit_models.checkpoints.load import Spec, load
from vit_models.checkpoints.plan import CheckpointFile, Options, TensorInfo
from vit_models.errors import CheckpointError

pytestmark = pytest.mark.unit

TOLERANCE = 5e-5  # ten times the error of float32; a tanh GELU is 2e-4 off, another epsilon 1e-3
HEADS = {"num_heads": "4"}
SIZES = {"dino": dict[str, Any](), "wide": {"width": 56, "depth": 3, "mlp": 40, "patch": 4, "size": 12}, "grey": {"channels": 1}}
Shapes = dict[str, tuple[int, ...]]


def shapes(width: int = 40, depth: int = 2, mlp: int = 72, patch: int = 8, size: int = 24, channels: int = 3) -> Shapes:
    """The names and shapes of a network without a head, as in DINO, MAE and timm."""
    found: Shapes = {"cls_token": (1, 1, width), "pos_embed": (1, (size // patch) ** 2 + 1, width)}
    found |= {"patch_embed.proj.weight": (width, channels, patch, patch), "patch_embed.proj.bias": (width,)}
    for index in range(depth):
        block = f"blocks.{index}"
        found |= linear(f"{block}.attn.qkv", width, 3 * width) | linear(f"{block}.attn.proj", width, width)
        found |= linear(f"{block}.mlp.fc1", width, mlp) | linear(f"{block}.mlp.fc2", mlp, width)
        found |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", width)
    return found | norm("norm", width)


def norm(name: str, width: int) -> Shapes:
    """A LayerNorm's."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    """A Linear's."""
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def swiglu(found: Shapes, layers: Mapping[str, tuple[int, int]]) -> Shapes:
    """The same network with other layers in its MLPs, each with (inputs, outputs)."""
    blocks = sorted({name.split(".mlp.")[0] for name in found if ".mlp." in name})
    found = {name: shape for name, shape in found.items() if ".mlp." not in name}
    for block in blocks:
        for layer, (inputs, outputs) in layers.items():
            found |= linear(f"{block}.mlp.{layer}", inputs, outputs)
    return found


def with_scales(found: Shapes, width: int = 40) -> Shapes:
    """The same network with LayerScale and a mask token, as in DINOv2 and DINOv3."""
    blocks = {name.split(".norm1")[0] for name in found if ".norm1" in name}
    return found | {f"{block}.{name}.gamma": (width,) for block in blocks for name in ("ls1", "ls2")} | {"mask_token": (1, width)}


def drawn(found: Shapes, seed: int = 3) -> dict[str, Tensor]:
    """Random values for every parameter, so small that a wrong epsilon changes the outputs."""
    generator = torch.Generator().manual_seed(seed)
    values = {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in found.items()}
    return {name: value + 1 if "norm" in name and name.endswith("weight") else value for name, value in values.items()}


def pictures(height: int = 24, width: int = 24, channels: int = 3) -> Tensor:
    """Two random images."""
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(9))


def reference(
    state: dict[str, Tensor], images: Tensor, heads: int = 4, eps: float = 1e-6, table: Tensor | None = None
) -> dict[str, Tensor]:
    """Embedding, tokens before the last norm and tokens, of any of the four; `table` in place of the stored positions."""
    p = {name: value.double() for name, value in state.items()}

    def apply(name: str, x: Tensor) -> Tensor:
        return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0)

    def normed(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], eps)

    x = F.conv2d(images.double(), p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], p["patch_embed.proj.weight"].shape[-1])
    rows, columns = x.shape[2:]
    x = torch.cat([p["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    if "pos_embed" in p:
        x = x + (p["pos_embed"] if table is None else table)
    registers = p.get("register_tokens", p.get("storage_tokens", x[:1, :0])).expand(len(x), -1, -1)
    x = torch.cat([x[:, :1], registers, x[:, 1:]], dim=1)
    for index in range(sum(name.endswith("norm1.weight") for name in p)):
        block = f"blocks.{index}"
        packed = normed(f"{block}.norm1", x) @ p[f"{block}.attn.qkv.weight"].T
        packed = packed + p.get(f"{block}.attn.qkv.bias", torch.zeros(1)) * p.get(f"{block}.attn.qkv.bias_mask", torch.ones(1))
        q, k, v = (part.reshape(*part.shape[:2], heads, -1).transpose(1, 2) for part in packed.chunk(3, dim=2))
        if "rope_embed.periods" in p:
            q, k = (turned(part, p["rope_embed.periods"], rows, columns) for part in (q, k))
        mixed = apply(f"{block}.attn.proj", F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + mixed * p.get(f"{block}.ls1.gamma", 1)
        y = normed(f"{block}.norm2", x)
        if f"{block}.mlp.w12.weight" in p:
            gate, value = apply(f"{block}.mlp.w12", y).chunk(2, dim=2)
            y = apply(f"{block}.mlp.w3", F.silu(gate) * value)
        elif f"{block}.mlp.w1.weight" in p:
            y = apply(f"{block}.mlp.w3", F.silu(apply(f"{block}.mlp.w1", y)) * apply(f"{block}.mlp.w2", y))
        else:
            y = apply(f"{block}.mlp.fc2", F.gelu(apply(f"{block}.mlp.fc1", y)))
        x = x + y * p.get(f"{block}.ls2.gamma", 1)
    if "fc_norm.weight" in p:
        return {"embedding": normed("fc_norm", x[:, 1:].mean(dim=1)), "tokens": x}
    tokens = normed("norm", x)
    return {"embedding": tokens[:, 0], "tokens": tokens}


def turned(x: Tensor, periods: Tensor, rows: int, columns: int) -> Tensor:
    """DINOv3's rotation of the patches, with complex numbers; x (B, heads, tokens, head_dim)."""
    down, across = ((torch.arange(n).double() + 0.5) / n * 2 - 1 for n in (rows, columns))
    places = torch.stack(torch.meshgrid(down, across, indexing="ij"), dim=-1).reshape(-1, 2, 1)
    angles = (2 * torch.pi * places / periods).flatten(1)  # (patches, head_dim / 2)
    angles = torch.cat([torch.zeros(x.shape[2] - len(angles), angles.shape[1]), angles])
    first, second = x.chunk(2, dim=3)
    rotated = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([rotated.real, rotated.imag], dim=3)


def check(
    saved: Any, path: Path, expected: dict[str, Tensor], images: Tensor, format: str | None = None, img_size: tuple[int, int] | None = None,
    model_args: Mapping[str, str] = HEADS,
) -> Spec:  # fmt: skip
    """Save the checkpoint, load it, and compare every output with the reference. Returns what the file was found to be."""
    torch.save(saved, path / "vit.pth")
    options = Options(format=format, img_size=img_size, model_args=model_args)
    model, spec = load(path / "vit.pth", options=options, outputs=tuple(expected))
    with torch.inference_mode():
        outputs = dict(zip(expected, model(images), strict=True))
    for name, value in expected.items():
        torch.testing.assert_close(outputs[name].double(), value, atol=TOLERANCE, rtol=0)
    return spec


def described(found: Shapes) -> CheckpointFile:
    """A file of which only names and shapes are there."""
    tensors = {name: TensorInfo(shape, "F32") for name, shape in found.items()}
    return CheckpointFile(Path("vit.pth"), "torch", tensors, lambda _: torch.empty(0))


def below(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """All names below a prefix."""
    return {f"{prefix}{name}": value for name, value in state.items()}


def resized(table: Tensor, rows: int, columns: int, **how: Any) -> Tensor:
    """A position table of 3 x 3 patches on another grid, as `F.interpolate` does it."""
    grid = table[:, 1:].double().reshape(1, 3, 3, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, mode="bicubic", **({"size": (rows, columns)} | how if "scale_factor" not in how else how))
    return torch.cat([table[:, :1].double(), grid.flatten(2).transpose(1, 2)], dim=1)


# ---- DINO ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_a_dino_network_alone(sizes: dict[str, int], tmp_path: Path) -> None:
    state = drawn(shapes(**sizes))
    images = pictures(sizes.get("size", 24), sizes.get("size", 24), sizes.get("channels", 3))
    spec = check(state, tmp_path, reference(state, images), images, "dino")
    assert spec.config.pool == "cls"


def test_the_teacher_of_dinos_training_without_its_projection_head(tmp_path: Path) -> None:
    state = drawn(shapes())
    head = drawn(linear("head.mlp.0", 40, 16) | {"head.last_layer.weight_g": (8, 1), "head.last_layer.weight_v": (8, 16)})
    images = pictures()
    spec = check({"teacher": below("backbone.", state) | head, "epoch": 2}, tmp_path, reference(state, images), images)
    assert spec.format == "dino"
    assert set(spec.ignored) == set(head)


def test_dino_resamples_by_a_scale_factor_with_a_tenth_more(tmp_path: Path) -> None:
    state, images = drawn(shapes()), pictures(32, 40)
    table = resized(state["pos_embed"], 4, 5, scale_factor=(4.1 / 3, 5.1 / 3))
    check(state, tmp_path, reference(state, images, table=table), images, "dino", (32, 40))


def test_a_network_without_query_biases_gets_zeros(tmp_path: Path) -> None:
    state, images = drawn({name: shape for name, shape in shapes().items() if not name.endswith("qkv.bias")}), pictures()
    check(state, tmp_path, reference(state, images), images, "dino")


def test_published_dino_networks_need_not_be_told() -> None:
    plan = dino.plan(described(shapes(384, 12, 1536, 16, 224)), Options())
    assert (plan.arch, plan.config.num_heads, plan.config.resample) == ("dino_vits16", 6, "bicubic_offset")
    assert plan.preprocessing is not None
    assert (plan.preprocessing["interpolation"], plan.preprocessing["resize"]["edge"]) == ("bicubic", 256)


def test_other_networks_heads_are_asked_for() -> None:
    for module in (dino, dinov2, mae):
        with raises_mentioning(CheckpointError, "--model-arg num_heads=6"):
            module.plan(described(shapes()), Options())


# ---- DINOv2 --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("registers", [0, 3])
def test_dinov2_with_its_blocks_in_chunks(registers: int, tmp_path: Path) -> None:
    state = drawn(with_scales(shapes(depth=4)) | ({"register_tokens": (1, registers, 40)} if registers else {}))
    images = pictures()
    chunked = {
        re.sub(r"^blocks\.(\d)", lambda match: f"blocks.{int(match[1]) // 2}.{match[1]}", name): value for name, value in state.items()
    }
    heads = drawn(linear("dino_head.mlp.0", 40, 16) | linear("ibot_head.mlp.0", 40, 16))
    teacher = {"teacher": below("backbone.", chunked) | heads}
    spec = check(teacher, tmp_path, reference(state, images), images, model_args={**HEADS, "block_chunks": "2"})
    assert (spec.format, spec.config.num_registers) == ("dinov2", registers)
    assert set(spec.ignored) == {*heads, "backbone.mask_token"}


def test_dinov2_with_swiglu_and_without_layer_scale(tmp_path: Path) -> None:
    state = drawn(swiglu(shapes(), {"w12": (40, 64), "w3": (32, 40)}) | {"mask_token": (1, 40)})
    images = pictures()
    spec = check(state, tmp_path, reference(state, images), images)
    assert (spec.format, spec.config.mlp_dim) == ("dinov2", 32)


@pytest.mark.parametrize(
    ("registers", "arguments", "how"),
    [
        (0, {}, {"scale_factor": (4.1 / 3, 5.1 / 3)}),
        (2, {}, {"antialias": True}),
        (0, {"interpolate_antialias": "True", "interpolate_offset": "0.0"}, {"antialias": True}),
        (2, {"interpolate_antialias": "false"}, {}),
        (2, {"interpolate_antialias": "false", "interpolate_offset": "0.1"}, {"scale_factor": (4.1 / 3, 5.1 / 3)}),
    ],
)
def test_dinov2_resamples_as_the_published_networks_or_as_told(
    registers: int, arguments: dict[str, str], how: dict[str, Any], tmp_path: Path
) -> None:
    state = drawn(with_scales(shapes()) | ({"register_tokens": (1, registers, 40)} if registers else {}))
    images = pictures(32, 40)
    expected = reference(state, images, table=resized(state["pos_embed"], 4, 5, **how))
    check(state, tmp_path, expected, images, img_size=(32, 40), model_args=HEADS | arguments)


def test_an_offset_that_no_network_has_is_refused() -> None:
    with raises_mentioning(CheckpointError, "interpolate_antialias=False", "interpolate_offset=0.5"):
        dinov2.plan(described(with_scales(shapes())), Options(model_args=HEADS | {"interpolate_offset": "0.5"}))


@pytest.mark.parametrize("registers", [0, 2])
def test_dinov2s_linear_classifier_reads_class_token_and_patch_mean(registers: int, tmp_path: Path) -> None:
    state = drawn(with_scales(shapes()) | ({"register_tokens": (1, registers, 40)} if registers else {}))
    head, images = drawn(linear("linear_head", 80, 7)), pictures()
    found = reference(state, images)
    embedding = torch.cat([found["embedding"], found["tokens"][:, 1 + registers :].mean(dim=1)], dim=1)
    logits = embedding @ head["linear_head.weight"].double().T + head["linear_head.bias"]
    expected = {"logits": logits, "embedding": embedding, "tokens": found["tokens"]}
    check(below("backbone.", state) | head, tmp_path, expected, images)


def test_a_classifier_of_four_blocks_is_refused() -> None:
    file = described(below("backbone.", with_scales(shapes())) | linear("linear_head", 200, 7))
    with raises_mentioning(CheckpointError, "linear_head", 200, 80):
        dinov2.plan(file, Options(model_args=HEADS))


def test_a_head_trained_on_the_class_token_is_the_head(tmp_path: Path) -> None:
    state, images = drawn(with_scales(shapes()) | linear("head", 40, 7)), pictures()
    found = reference(state, images)
    logits = found["embedding"] @ state["head.weight"].double().T + state["head.bias"]
    check(state, tmp_path, {"logits": logits, **found}, images)


@pytest.mark.parametrize(
    ("sizes", "registers", "arch", "heads"),
    [
        ((384, 12, 1536), 0, "dinov2_vits14", 6),
        ((768, 12, 3072), 4, "dinov2_vitb14_reg", 12),
        ((1024, 24, 4096), 0, "dinov2_vitl14", 16),
        ((1536, 40, 4096), 4, "dinov2_vitg14_reg", 24),
    ],
)
def test_published_dinov2_networks_need_not_be_told(sizes: tuple[int, int, int], registers: int, arch: str, heads: int) -> None:
    width, depth, mlp = sizes
    found = with_scales(shapes(width, depth, mlp, 14, 518), width) | ({"register_tokens": (1, 4, width)} if registers else {})
    file = described(swiglu(found, {"w12": (width, 2 * mlp), "w3": (mlp, width)}) if width == 1536 else found)
    assert dinov2.recognise(file)
    plan = dinov2.plan(file, Options())
    assert (plan.arch, plan.config.num_heads, plan.config.img_size) == (arch, heads, (518, 518))
    assert plan.config.resample == ("bicubic_antialias" if registers else "bicubic_offset")


# ---- DINOv3 --------------------------------------------------------------------------------------------------------------------------


def dinov3_state(gated: bool, width: int = 48, head_dim: int = 12) -> dict[str, Tensor]:
    """A DINOv3 network; the key's bias is masked out, as in the published files."""
    found = with_scales(shapes(width=width), width) | {"storage_tokens": (1, 3, width)}
    del found["pos_embed"]
    found |= {f"blocks.{index}.attn.qkv.bias_mask": (3 * width,) for index in range(2)}
    if gated:
        found = swiglu(found, {"w1": (width, 56), "w2": (width, 56), "w3": (56, width)})
    state = drawn(found)
    for index in range(2):
        state[f"blocks.{index}.attn.qkv.bias_mask"] = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(width)
        state[f"blocks.{index}.attn.qkv.bias"] *= 20  # so that an unmasked key's bias shows through the rotation
    return state | {"rope_embed.periods": 100.0 ** (torch.arange(head_dim // 4) / (head_dim / 4))}


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_dinov3_at_a_size_that_is_no_square(gated: bool, prefix: str, tmp_path: Path) -> None:
    state, images = dinov3_state(gated), pictures(24, 40)
    unused = drawn(norm("local_cls_norm", 48))
    heads = drawn(linear("dino_head.mlp.0", 48, 16)) if prefix else {}
    spec = check(below(prefix, state | unused) | heads, tmp_path, reference(state, images, eps=1e-5), images, None, (24, 40), {})
    assert (spec.format, spec.config.num_heads) == ("dinov3", 4)
    assert set(spec.ignored) == {f"{prefix}{name}" for name in ("mask_token", *unused)} | heads.keys()


def test_dinov3_without_query_biases_and_with_the_other_epsilon(tmp_path: Path) -> None:
    state = {name: value for name, value in dinov3_state(True).items() if ".qkv.bias" not in name}
    images = pictures()
    arguments = {"norm_layer": "layernorm", "num_heads": "4"}
    check(state, tmp_path, reference(state, images), images, None, (24, 24), arguments)


def test_dinov3_with_a_norm_of_its_own_for_the_class_token_is_refused() -> None:
    file = described({name: tuple(value.shape) for name, value in dinov3_state(False).items()} | norm("cls_norm", 48))
    with raises_mentioning(CheckpointError, "cls_norm"):
        dinov3.plan(file, Options())


@pytest.mark.parametrize(
    ("width", "depth", "mlp", "gated", "arch", "heads"),
    [
        (384, 12, 1536, False, "dinov3_vits16", 6),
        (1280, 32, 5120, True, "dinov3_vith16plus", 20),
        (4096, 40, 8192, True, "dinov3_vit7b16", 32),
    ],
)
def test_published_dinov3_networks_are_named(width: int, depth: int, mlp: int, gated: bool, arch: str, heads: int) -> None:
    found = with_scales(shapes(width, depth, mlp, 16, 224), width) | {"rope_embed.periods": (width // heads // 4,)}
    del found["pos_embed"]
    file = described(swiglu(found, {"w1": (width, mlp), "w2": (width, mlp), "w3": (mlp, width)}) if gated else found)
    plan = dinov3.plan(file, Options())
    assert (plan.arch, plan.config.num_heads, plan.config.img_size) == (arch, heads, (224, 224))


def test_periods_that_fit_no_head_are_refused() -> None:
    file = described({name: tuple(value.shape) for name, value in dinov3_state(False).items()} | {"rope_embed.periods": (5,)})
    with raises_mentioning(CheckpointError, "periods", 5, 48):
        dinov3.plan(file, Options())


def test_a_norm_that_the_network_does_not_have_is_refused() -> None:
    file = described({name: tuple(value.shape) for name, value in dinov3_state(False).items()})
    with raises_mentioning(CheckpointError, "--model-arg norm_layer=rmsnorm", "layernormbf16", "layernorm"):
        dinov3.plan(file, Options(model_args={"norm_layer": "rmsnorm"}))


# ---- MAE -----------------------------------------------------------------------------------------------------------------------------


def test_maes_encoder_without_its_decoder(tmp_path: Path) -> None:
    state, images = drawn(shapes()), pictures()
    decoder = drawn({"mask_token": (1, 1, 16), "decoder_pos_embed": (1, 10, 16)} | linear("decoder_embed", 40, 16))
    decoder |= drawn(linear("decoder_blocks.0.attn.qkv", 16, 48) | norm("decoder_norm", 16) | linear("decoder_pred", 16, 192))
    spec = check({"model": state | decoder}, tmp_path, reference(state, images), images)
    assert (spec.format, set(spec.ignored)) == ("mae", set(decoder))


def test_mae_fine_tuned_norms_the_patches_mean(tmp_path: Path) -> None:
    found = {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: shape for name, shape in shapes().items()}
    state, images = drawn(found | linear("head", 40, 7)), pictures()
    expected = reference(state, images)
    expected["logits"] = expected["embedding"] @ state["head.weight"].double().T + state["head.bias"]
    check({"model": state}, tmp_path, expected, images, "mae")


def test_mae_resamples_to_the_size(tmp_path: Path) -> None:
    state, images = drawn(shapes()), pictures(40, 40)
    expected = reference(state, images, table=resized(state["pos_embed"], 5, 5))
    check({"model": state}, tmp_path, expected, images, "mae", (40, 40))


def test_published_mae_networks_need_not_be_told() -> None:
    plan = mae.plan(described(shapes(1280, 32, 5120, 14, 224) | linear("head", 1280, 1000)), Options())
    assert (plan.arch, plan.config.num_heads) == ("vit_huge_patch14", 16)
    assert plan.labels is not None
    assert len(plan.labels) == 1000


# ---- which is which ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "names"),
    [
        pytest.param(shapes(), {"dino", "mae"}, id="network alone"),
        pytest.param(shapes() | linear("head", 40, 7), set(), id="timm's with a head"),
        pytest.param(below("backbone.", shapes()) | linear("head.mlp.0", 40, 8), {"dino"}, id="DINO's teacher"),
        pytest.param(shapes() | {"decoder_pos_embed": (1, 10, 16), "mask_token": (1, 1, 16)}, {"mae"}, id="MAE's pre-training"),
        pytest.param(with_scales(shapes()), {"dinov2"}, id="DINOv2"),
        pytest.param(shapes() | {"blocks.0.ls1.gamma": (40,)}, set(), id="timm's with LayerScale"),
        pytest.param(shapes() | {"register_tokens": (1, 4, 40)}, {"dinov2"}, id="DINOv2 without its mask token"),
        pytest.param(shapes() | {"reg_token": (1, 4, 40)}, set(), id="timm's with registers"),
        pytest.param(shapes() | {"rope_embed.periods": (3,)}, {"dinov3"}, id="DINOv3"),
    ],
)
def test_each_file_is_claimed_by_those_that_could_have_written_it(found: Shapes, names: set[str]) -> None:
    assert {module.NAME for module in (dino, dinov2, dinov3, mae) if module.recognise(described(found))} == names


def test_a_headless_network_is_ambiguous_only_where_it_is_resampled(tmp_path: Path) -> None:
    state, images = drawn(shapes()), pictures()
    check(state, tmp_path, reference(state, images), images)
    with raises_mentioning(CheckpointError, "DINO", "--format dino", "--format mae"):
        load(tmp_path / "vit.pth", options=Options(img_size=(32, 32), model_args=HEADS))
