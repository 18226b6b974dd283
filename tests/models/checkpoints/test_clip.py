"""Checkpoints with OpenAI's names give the numbers of transformers' CLIP, whose weights they are here under those names.

What open_clip adds is put into transformers' model module by module, so that one implementation is the reference for all of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from checkpoint_files import raises_mentioning
from helpers import assert_mentions
from safetensors.torch import save_file
from torch import Tensor, nn

from vit_models import CheckpointError, Options, inspect, load
from vit_models.checkpoints import openai_clip
from vit_models.checkpoints.plan import CheckpointFile, TensorInfo

pytestmark = pytest.mark.unit

# Both sides compute in float64 with the same float32 weights; folded tables and sums are rounded to float32.
TOLERANCE = 5e-6
CONFIG = "open_clip_config.json"
TEXT = {
    "positional_embedding": torch.zeros(6, 8),
    "token_embedding.weight": torch.zeros(9, 8),
    "transformer.resblocks.0.ln_1.weight": torch.zeros(8),
    "transformer.resblocks.7.attn.in_proj_weight": torch.zeros(24, 8),
    "ln_final.bias": torch.zeros(8),
    "text_projection": torch.zeros(8, 40),
    "logit_scale": torch.tensor(4.6),
}
NUMBERS = {name: torch.tensor(6) for name in ("input_resolution", "context_length", "vocab_size")}


def vision(**options: Any) -> Any:
    """A CLIP image tower of transformers, every parameter randomised, in float64."""
    sizes = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": 32,
        "patch_size": 8,
    }
    model: Any = hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**{**sizes, "projection_dim": 40, **options}))
    model.eval()
    generator = torch.Generator().manual_seed(len(str(options)))
    for value in model.parameters():
        noise = torch.randn(value.shape, generator=generator)
        value.data = 0.1 * noise if value.ndim > 1 else 1 + 0.3 * noise
    return model


def stored(model: Any, prefix: str = "visual.") -> dict[str, Tensor]:
    """The tower's weights under OpenAI's names."""
    found = {name.removeprefix("vision_model."): value for name, value in model.state_dict().items()}
    tensors = {
        "class_embedding": found["embeddings.class_embedding"],
        "positional_embedding": found["embeddings.position_embedding.weight"],
        "conv1.weight": found["embeddings.patch_embedding.weight"],
        "proj": found["visual_projection.weight"].t().contiguous(),
    }
    layers = {"ln_pre": "pre_layrnorm", "ln_post": "post_layernorm"}
    for index in range(model.config.num_hidden_layers):
        ours, theirs = f"transformer.resblocks.{index}", f"encoder.layers.{index}"
        for kind in ("weight", "bias"):
            tensors[f"{ours}.attn.in_proj_{kind}"] = torch.cat([found[f"{theirs}.self_attn.{part}_proj.{kind}"] for part in "qkv"])
        layers |= {f"{ours}.ln_1": f"{theirs}.layer_norm1", f"{ours}.ln_2": f"{theirs}.layer_norm2"}
        layers |= {f"{ours}.attn.out_proj": f"{theirs}.self_attn.out_proj"}
        layers |= {f"{ours}.mlp.c_fc": f"{theirs}.mlp.fc1", f"{ours}.mlp.c_proj": f"{theirs}.mlp.fc2"}
    for ours, theirs in layers.items():
        tensors |= {f"{ours}.{kind}": found[f"{theirs}.{kind}"] for kind in ("weight", "bias")}
    return {f"{prefix}{name}": value.clone() for name, value in tensors.items()}


def saved(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any] | None = None) -> Path:
    save_file(tensors, folder / "open_clip_model.safetensors")
    if config is not None:
        (folder / CONFIG).write_text(json.dumps(config))
    return folder


def configured(folder: Path, tensors: dict[str, Tensor], quick_gelu: Any = None, **vision_cfg: Any) -> Path:
    """A folder as open_clip pushes it."""
    sizes = {"layers": 3, "width": 48, "head_width": 16, "mlp_ratio": 80 / 48, "patch_size": 8, "image_size": 32}
    model: dict[str, Any] = {"embed_dim": 40, "vision_cfg": {**sizes, **vision_cfg}, "text_cfg": {}}
    if quick_gelu is not None:
        model["quick_gelu"] = quick_gelu
    return saved(folder, tensors, {"model_cfg": model, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}})


def compare(path: Path, model: Any, options: Options = Options(), pooled: Callable[[Tensor], Tensor] | None = None) -> None:
    """Logits, embedding and tokens against the model's, or against `pooled` of its un-normed tokens."""
    ours, spec = load(path, options, outputs=("logits", "embedding", "tokens"))
    images = torch.randn(2, 3, *spec.config.img_size, generator=torch.Generator().manual_seed(1)).double()
    model = model.double()
    with torch.no_grad():
        found = dict(zip(ours.outputs, ours.double()(images), strict=True))
        raw = model.vision_model(images).last_hidden_state
        normed = model.vision_model.post_layernorm(raw)
        expected = {"embedding": normed[:, 0], "tokens": normed} if pooled is None else {"embedding": pooled(raw)}
        expected["logits"] = model.visual_projection(expected["embedding"])
    assert spec.config.projection
    for name, value in expected.items():
        error = float((found[name] - value).abs().max())
        assert error <= TOLERANCE, f"{name}: {error}"


# ---- OpenAI --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 64, "num_attention_heads": 1},
        {"hidden_size": 192, "num_attention_heads": 3, "num_hidden_layers": 2, "image_size": 42, "patch_size": 14},
        {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512, "projection_dim": 24, "image_size": 64},
    ],
)
def test_an_archives_state_dict_gives_the_numbers_of_transformers(sizes: dict[str, Any], tmp_path: Path) -> None:
    """Heads of 64, QuickGELU, whatever the size; the text tower and the three numbers are left out with their reasons."""
    model = vision(hidden_act="quick_gelu", **sizes)
    path = saved(tmp_path, {**stored(model), **TEXT, **NUMBERS})
    compare(path, model)
    spec = inspect(path)
    assert (spec.format, spec.config.activation, spec.config.head_dim) == ("openai-clip", "quick_gelu", 64)
    assert spec.ignored.keys() == {*TEXT, *NUMBERS}
    assert_mentions(spec.ignored["transformer.resblocks.7.attn.in_proj_weight"], "text")
    assert spec.preprocessing is not None
    assert spec.preprocessing["mean"][0] == 0.48145466


def test_half_precision_is_widened_exactly(tmp_path: Path) -> None:
    """As the archives store it."""
    model = vision(hidden_act="quick_gelu", hidden_size=64, num_attention_heads=1).half()
    path = saved(tmp_path, {**stored(model), **TEXT, **NUMBERS})
    compare(path, model)


def test_a_published_shape_is_known_by_its_name() -> None:
    """ViT-B/32, at a fraction of its image size; another name contradicts it."""
    sizes: dict[str, Any] = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "patch_size": 32,
    }
    with torch.device("meta"):
        shapes = stored(hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(image_size=64, projection_dim=8, **sizes)))
    tensors = {name: TensorInfo(tuple(value.shape), "F16") for name, value in shapes.items()} | {
        name: TensorInfo((), "I64") for name in NUMBERS
    }
    file = CheckpointFile(Path("clip.pt"), "torch", tensors, lambda name: NUMBERS[name])
    assert openai_clip.recognise(file)
    plan = openai_clip.plan(file, Options())
    assert (plan.arch, plan.config.img_size) == ("ViT-B/32", (64, 64))
    with raises_mentioning(CheckpointError, "--arch ViT-B/16", 16):
        openai_clip.plan(file, Options(arch="ViT-B/16"))


def test_positions_are_resampled_as_open_clip_resamples_the_same_weights(tmp_path: Path) -> None:
    """torch's own bicubic with antialias, larger, smaller and not square."""
    model = vision(hidden_act="quick_gelu", hidden_size=64, num_attention_heads=1, image_size=48)
    path = saved(tmp_path, {**stored(model), **NUMBERS})
    table = stored(model)["visual.positional_embedding"].double()
    for size in [(64, 64), (32, 32), (24, 80)]:
        network, spec = load(path, Options(img_size=size))
        grid = table[1:].reshape(1, 6, 6, 64).permute(0, 3, 1, 2)
        resized = nn.functional.interpolate(grid, size=(size[0] // 8, size[1] // 8), mode="bicubic", antialias=True, align_corners=False)
        expected = torch.cat([table[:1], resized.flatten(2)[0].t()])
        torch.testing.assert_close(network.state_dict()["embeddings.pos_embed"][0].double(), expected, rtol=0, atol=1e-6)
        assert spec.preprocessing is not None
        assert spec.preprocessing["crop"] == {"height": size[0], "width": size[1], "rounding": "half_even", "of": None}


# ---- open_clip -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["visual.", ""], ids=["whole", "tower alone"])
@pytest.mark.parametrize(
    ("sizes", "quick_gelu", "vision_cfg"),
    [
        ({}, None, {}),
        ({"hidden_act": "quick_gelu"}, True, {}),
        ({"hidden_act": "gelu_pytorch_tanh"}, False, {"act_kwargs": {"approximate": "tanh"}}),
        ({"layer_norm_eps": 1e-2}, None, {"norm_kwargs": {"eps": 1e-2}}),
        ({"num_attention_heads": 6, "intermediate_size": 209}, None, {"head_width": 8, "mlp_ratio": 4.3637}),
        ({"num_hidden_layers": 1, "image_size": 70, "patch_size": 10}, None, {"layers": 1, "image_size": [70, 70], "patch_size": 10}),
    ],
    ids=["gelu", "quick gelu", "tanh gelu", "eps", "heads of 8, odd mlp", "other sizes"],
)
def test_open_clips_configuration_decides(
    prefix: str, sizes: dict[str, Any], quick_gelu: bool | None, vision_cfg: dict[str, Any], tmp_path: Path
) -> None:
    """Activation, eps, heads and sizes; of the whole checkpoint and of the tower alone."""
    model = vision(**{"hidden_act": "gelu", **sizes})
    path = configured(tmp_path, {**stored(model, prefix), **(TEXT if prefix else {})}, quick_gelu, **vision_cfg)
    compare(path, model)
    spec = inspect(path)
    assert spec.format == "open-clip"
    assert spec.preprocessing is not None
    assert spec.preprocessing["std"] == [0.25] * 3


def test_images_that_the_patches_do_not_divide_are_cut(tmp_path: Path) -> None:
    """The convolution does not see what is left over below and on the right; at another size, which they divide, nothing is."""
    model = vision(hidden_act="gelu", image_size=37)
    path = configured(tmp_path, stored(model), image_size=37)
    ours, spec = load(path, outputs=("logits",))
    images = torch.randn(2, 3, 37, 37, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        torch.testing.assert_close(ours.double()(images[:, :, :32, :32])[0], model.double()(images).image_embeds, rtol=0, atol=TOLERANCE)
    assert spec.preprocessing is not None
    assert spec.preprocessing["resize"] == {"mode": "shortest_edge", "edge": 37}
    assert spec.preprocessing["crop"] == {"height": 32, "width": 32, "rounding": "half_even", "of": {"height": 37, "width": 37}}
    (note,) = spec.notes
    assert_mentions(note, 8, "32 x 32", "37 x 37")
    asked = inspect(path, Options(img_size=(40, 40))).preprocessing
    assert asked is not None
    assert asked["crop"]["of"] is None


@pytest.mark.parametrize("pool_type", ["tok", "avg"])
@pytest.mark.parametrize("norm_after_pool", [True, False])
def test_pooling_comes_before_or_after_the_last_norm(pool_type: str, norm_after_pool: bool, tmp_path: Path) -> None:
    """By the class token or the mean of the patches, which leaves it out; without ln_pre as well."""
    model = vision(hidden_act="gelu")
    tensors = {name: value for name, value in stored(model).items() if "ln_pre" not in name}
    model.vision_model.pre_layrnorm = nn.Identity()

    def pooled(tokens: Tensor) -> Tensor:
        norm = model.vision_model.post_layernorm
        tokens = tokens if norm_after_pool else norm(tokens)
        pooled = tokens[:, 0] if pool_type == "tok" else tokens[:, 1:].mean(dim=1)
        return norm(pooled) if norm_after_pool else pooled

    path = configured(tmp_path, tensors, no_ln_pre=True, pool_type=pool_type, final_ln_after_pool=norm_after_pool)
    compare(path, model, pooled=pooled)


class Scale(nn.Module):
    """LayerScale."""

    def __init__(self, gamma: Tensor) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma.to(x.dtype)


class PerHead(nn.Module):
    """A norm over the channels of each head."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.reshape(*x.shape[:-1], -1, self.norm.normalized_shape[0])).flatten(-2)


def randomised(width: int, seed: int) -> nn.LayerNorm:
    norm, generator = nn.LayerNorm(width, eps=1e-5), torch.Generator().manual_seed(seed)
    for value in norm.parameters():
        value.data = 1 + 0.3 * torch.randn(width, generator=generator)
    return norm


def test_layer_scale_and_additional_norms_act_where_open_clip_has_them(tmp_path: Path) -> None:
    """A factor at the end of each branch, norms over each head's queries and keys, and before both output layers."""
    model = vision(hidden_act="gelu")
    tensors = stored(model)
    for index, layer in enumerate(model.vision_model.encoder.layers):
        attention, mlp, block = layer.self_attn, layer.mlp, f"visual.transformer.resblocks.{index}"
        norms = {
            f"{block}.attn.ln_q": randomised(16, 4 * index),
            f"{block}.attn.ln_k": randomised(16, 4 * index + 1),
            f"{block}.attn.ln_inner": randomised(48, 4 * index + 2),
            f"{block}.mlp.ln": randomised(80, 4 * index + 3),
        }
        query, key, inner, hidden = norms.values()
        gammas = [randomised(48, 100 + 2 * index + branch).weight.data for branch in (0, 1)]
        attention.q_proj = nn.Sequential(attention.q_proj, PerHead(query))
        attention.k_proj = nn.Sequential(attention.k_proj, PerHead(key))
        attention.out_proj = nn.Sequential(inner, attention.out_proj, Scale(gammas[0]))
        mlp.fc2 = nn.Sequential(hidden, mlp.fc2, Scale(gammas[1]))
        tensors |= {f"{name}.{kind}": value.clone() for name, norm in norms.items() for kind, value in norm.state_dict().items()}
        tensors |= {f"{block}.ls_{branch + 1}.gamma": gamma for branch, gamma in enumerate(gammas)}
    flags = {"qk_norm": True, "scale_attn_inner": True, "scale_fc": True, "ls_init_value": 1e-4}
    compare(configured(tmp_path, tensors, **flags), model)
    (tmp_path / CONFIG).unlink()
    compare(tmp_path, model, Options(model_args={"quick_gelu": "false", "head_width": "16"}))


def test_without_a_configuration_the_user_is_asked_for_what_no_shape_tells(tmp_path: Path) -> None:
    """One argument after another, in open_clip's own names; then it converts."""
    model = vision(hidden_act="quick_gelu")
    path = saved(tmp_path, {**stored(model), **TEXT})
    with raises_mentioning(CheckpointError, "--model-arg quick_gelu=true"):
        inspect(path)
    with raises_mentioning(CheckpointError, 48, 3, "--model-arg head_width=64"):
        inspect(path, Options(model_args={"quick_gelu": "true"}))
    told = {"quick_gelu": "true", "head_width": "16"}
    compare(path, model, Options(model_args=told))
    with raises_mentioning(CheckpointError, "--model-arg heads", "open_clip", "quick_gelu"):
        inspect(path, Options(model_args={**told, "heads": "3"}))
    with raises_mentioning(CheckpointError, "head_width", 15, 48):
        inspect(path, Options(model_args={**told, "head_width": "15"}))
    with raises_mentioning(CheckpointError, "--arch ViT-B-32"):
        inspect(path, Options(arch="ViT-B-32"))


def test_a_tower_without_ln_pre_and_configuration_has_to_say_how_it_pools(tmp_path: Path) -> None:
    """CLIPA's, the published ones of that kind, average."""
    path = saved(tmp_path, {name: value for name, value in stored(vision()).items() if "ln_pre" not in name})
    told = {"quick_gelu": "false", "head_width": "16"}
    with raises_mentioning(CheckpointError, "--model-arg pool_type=avg"):
        inspect(path, Options(model_args=told))
    config = inspect(path, Options(model_args={**told, "pool_type": "avg", "final_ln_after_pool": "true"})).config
    assert (config.pool, config.final_norm, config.pre_norm) == ("mean", "pooled", False)


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"attentional_pool": True}, ("attentional_pool", "True")),
        ({"scaled_cosine_attn": True}, ("scaled_cosine_attn", "True")),
        ({"pool_type": "none"}, ("pool_type", "'none'", "tok", "avg")),
        ({"pool_type": 3}, ("pool_type", 3, "text")),
        ({"layers": [3, 4, 6, 3]}, ("layers", "ResNets")),
        ({"layers": "3"}, ("layers", "'3'")),
        ({"layers": 2}, ("unexpected", "visual.transformer.resblocks.2.attn.in_proj_bias")),
        ({"layers": 4}, ("missing", "visual.transformer.resblocks.3.attn.in_proj_bias")),
        ({"head_width": 0}, ("head_width", 0, 48)),
        ({"width": 10**9}, ("embed_dim", 10**9)),
        ({"mlp_ratio": "x"}, ("mlp_ratio", "'x'")),
        ({"image_size": [32]}, ("image_size", "[32]", "[height, width]")),
        ({"image_size": 7}, ("height", 0)),
        ({"patch_size": 0}, ("patch_size", 0)),
        ({"act_kwargs": {"approximate": "erf"}}, ("act_kwargs", "{'approximate': 'erf'}", "tanh", "none")),
        ({"norm_kwargs": {"eps": 0}}, ("layer_norm_eps", 0.0)),
        ({"timm_model_name": None, "no_ln_pre": "no"}, ("no_ln_pre", "'no'", "true", "false")),
        ({"qk_norm": True}, ("missing", "visual.transformer.resblocks.0.attn.ln_k.bias")),
    ],
)
def test_a_configuration_that_no_network_has_is_refused_by_the_entry(
    changes: dict[str, Any], facts: tuple[object, ...], tmp_path: Path
) -> None:
    """One line, whatever JSON stands there."""
    with raises_mentioning(CheckpointError, *facts):
        inspect(configured(tmp_path, stored(vision()), **changes))


@pytest.mark.parametrize(
    "config", [{}, [], 3, {"model_cfg": []}, {"model_cfg": {"vision_cfg": 3}}, {"model_cfg": {"vision_cfg": {}}, "preprocess_cfg": 1}]
)
def test_a_configuration_of_another_kind_is_refused(config: Any, tmp_path: Path) -> None:
    """It may hold anything."""
    path = saved(tmp_path, stored(vision()))
    (path / CONFIG).write_text(json.dumps(config))
    with raises_mentioning(CheckpointError, CONFIG):
        inspect(path)


def test_a_tower_of_another_kind_is_not_taken_for_one(tmp_path: Path) -> None:
    """A ResNet's names begin with visual., too."""
    path = saved(tmp_path, {"visual.conv1.weight": torch.zeros(8, 3, 3, 3), "visual.layer1.0.conv1.weight": torch.zeros(8, 8, 1, 1)})
    with raises_mentioning(CheckpointError, "Vision Transformer"):
        inspect(path)
