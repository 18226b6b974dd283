"""The parameters that a configuration promises are those that the network has: one entry for every kind of network."""

import dataclasses
from typing import Any

import pytest
import torch
from checkpoint_files import raises_mentioning

from vit_models import ConfigError, Rope, ViT, ViTConfig
from vit_models.shapes import parameter_shapes

pytestmark = pytest.mark.unit

BASE = ViTConfig(img_size=(32, 48), patch_size=8, embed_dim=32, depth=2, num_heads=4, mlp_dim=40, num_classes=5)
KINDS: dict[str, dict[str, Any]] = {
    "paper": {},
    "map": {"pool": "map", "class_token": False},
    "map, swiglu": {"pool": "map", "gated_mlp": True, "mlp_norm": True, "activation": "silu"},
    "deit": {"distilled": True, "pool": "cls_dist"},
    "deit of timm": {"distilled": True, "pool": "cls_dist_mean"},
    "dinov3": {"num_registers": 3, "rope": Rope(0.5, (2.0, 2.0), -1.0), "pos_embed": False, "layer_scale": True},
    "beit": {"rel_pos_bias": True, "final_norm": "pooled", "pool": "mean", "pos_embed": False},
    "every norm": {"pre_norm": True, "qk_norm": True, "attn_norm": True, "layer_scale": True, "rope": Rope()},
    "dinov2 classifier": {"pool": "cls_mean", "representation_size": 24},
    "no last norm": {"final_norm": "none", "pool": "mean_all", "activation": "quick_gelu"},
    "clip classifier": {"final_norm": "aside", "pool": "mean", "in_chans": 1, "activation": "gelu_tanh"},
    "no head": {"num_classes": 0},
}


@pytest.mark.parametrize("kind", KINDS)
def test_names_shapes_and_order(kind: str) -> None:
    config = dataclasses.replace(BASE, **KINDS[kind])
    with torch.device("meta"):
        state = ViT(config).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == parameter_shapes(config)
    assert list(state) == list(parameter_shapes(config))


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_have_the_promised_shapes(kind: str) -> None:
    config = dataclasses.replace(BASE, **KINDS[kind])
    outputs = ["embedding", "tokens", *["logits"] * bool(config.num_classes), *["attention"] * config.class_token]
    with torch.device("meta"):
        found = ViT(config, outputs)(torch.empty(2, config.in_chans, *config.img_size))
    shapes = {
        "embedding": (2, config.embedding_dim),
        "tokens": (2, config.num_tokens, 32),
        "logits": (2, 5),
        "attention": (2, 4, config.num_patches),
    }
    assert [tuple(value.shape) for value in found] == [shapes[name] for name in outputs]


@pytest.mark.parametrize(
    ("fields", "facts"),
    [
        ({"pool": "cls_mean", "class_token": False}, ("'cls_mean'", "class token")),
        ({"pool": "cls_dist"}, ("'cls_dist'", "distillation token")),
        ({"pool": "nothing"}, ("'nothing'", "cls", "mean")),
        ({"final_norm": "first"}, ("'first'", "tokens", "pooled")),
        ({"activation": "tanh"}, ("'tanh'", "gelu")),
        ({"resample": "nearest"}, ("'nearest'", "bicubic")),
        ({"final_norm": "pooled", "pool": "cls_mean"}, ("final_norm", "'tokens'", "'cls_mean'")),
        ({"layer_scale": 1}, ("layer_scale", 1, "True", "False")),
        ({"num_registers": -1}, ("num_registers", -1)),
        ({"in_chans": 7}, ("in_chans", 7, 1, 4)),
        ({"rope": Rope(float("nan"))}, ("Rope", "nan")),
        ({"rope": Rope(), "num_heads": 16}, ("rotary", 2, 4)),
        ({"rope": {"offset": 0.0}}, ("rope", "{'offset': 0.0}", "Rope")),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], facts: tuple[object, ...]) -> None:
    with raises_mentioning(ConfigError, *facts):
        dataclasses.replace(BASE, **fields)


def test_a_free_size_needs_positions_that_can_follow_it() -> None:
    with raises_mentioning(ConfigError, "relative position", "--img-size"):
        ViT(dataclasses.replace(BASE, rel_pos_bias=True), dynamic_size=True)
