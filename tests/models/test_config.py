"""A configuration is either one that a Vision Transformer can have, or an error of one line."""

import dataclasses

import pytest

from vit_models import ConfigError, ModelError, ViTConfig


def test_the_defaults_are_the_papers_base_network():
    """ViT paper, table 1: 12 layers, width 768, MLP 3072, 12 heads; 16 pixel patches of a 224 pixel image."""
    config = ViTConfig()
    assert (config.depth, config.embed_dim, config.mlp_dim, config.num_heads) == (12, 768, 3072, 12)
    assert (config.grid_size, config.num_patches, config.num_tokens, config.head_dim) == ((14, 14), 196, 197, 64)


def test_without_a_class_token_the_sequence_is_the_patches():
    assert ViTConfig(class_token=False, pool="mean").num_tokens == 196


def test_height_comes_first():
    config = ViTConfig(img_size=(224, 384), patch_size=32)
    assert (config.grid_size, config.num_patches) == ((7, 12), 84)


def test_a_config_does_not_change_and_equal_ones_are_equal():
    config = ViTConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.depth = 3
    assert config == ViTConfig()
    assert hash(config) == hash(ViTConfig())


@pytest.mark.parametrize(
    ("size", "patch", "message"),
    [
        ((225, 224), 16, "image height 225, which patches of 16 do not divide; the nearest sizes that work are 224 and 240"),
        ((224, 230), 16, "image width 230, which patches of 16 do not divide; the nearest sizes that work are 224 and 240"),
        ((224, 224), 14 * 3, "image height 224, which patches of 42 do not divide; the nearest sizes that work are 210 and 252"),
        ((10, 224), 16, "image height 10, which patches of 16 do not divide; the nearest sizes that work are 16 and 32"),
    ],
)
def test_a_size_that_patches_do_not_divide_names_the_two_nearest_that_work(size, patch, message):
    with pytest.raises(ConfigError) as raised:
        ViTConfig(img_size=size, patch_size=patch)
    assert str(raised.value) == f"got {message}"


BAD = [
    ({"patch_size": 0}, "patch_size 0"),
    ({"patch_size": -16}, "patch_size -16"),
    ({"patch_size": 16.0}, "patch_size 16.0"),
    ({"embed_dim": 0}, "embed_dim 0"),
    ({"embed_dim": 10**12}, "embed_dim 1000000000000"),
    ({"embed_dim": 770}, "770 with 12 heads"),
    ({"depth": 0}, "depth 0"),
    ({"depth": True}, "depth True"),
    ({"depth": "12"}, "depth '12'"),
    ({"depth": 60_000}, "depth 60000"),
    ({"num_heads": 0}, "num_heads 0"),
    ({"mlp_dim": None}, "mlp_dim None"),
    ({"num_classes": -1}, "num_classes -1"),
    ({"num_classes": 10**9}, "num_classes 1000000000"),
    ({"representation_size": 0}, "representation_size 0"),
    ({"img_size": 224}, "img_size 224"),
    ({"img_size": [224, 224]}, "img_size \\[224, 224\\]"),
    ({"img_size": (224,)}, "img_size \\(224,\\)"),
    ({"img_size": (224, 224, 3)}, "img_size \\(224, 224, 3\\)"),
    ({"img_size": (0, 224)}, "image height 0"),
    ({"img_size": (224, -224)}, "image width -224"),
    ({"img_size": (224, 2**17)}, "image width 131072"),
    ({"img_size": (224.0, 224)}, "image height 224.0"),
    ({"img_size": (2**15, 2**15)}, "4194304 patches"),
    ({"pool": "max"}, "pool 'max'"),
    ({"pool": "cls", "class_token": False}, "expected pool 'mean'"),
    ({"class_token": "no"}, "class_token 'no'"),
    ({"class_token": 2}, "class_token 2"),
    ({"layer_norm_eps": 0.0}, "layer_norm_eps 0.0"),
    ({"layer_norm_eps": 1.0}, "layer_norm_eps 1.0"),
    ({"layer_norm_eps": float("nan")}, "layer_norm_eps nan"),
    ({"layer_norm_eps": "1e-6"}, "layer_norm_eps '1e-6'"),
]


@pytest.mark.parametrize(("fields", "message"), BAD, ids=[str(fields) for fields, _ in BAD])
def test_a_bad_config_is_an_error_of_one_line_that_says_what_was_given_and_expected(fields, message):
    with pytest.raises(ConfigError, match=message) as raised:
        ViTConfig(**fields)
    text = str(raised.value)
    assert "\n" not in text
    assert text.startswith("got ")
    assert "expected" in text


def test_a_config_error_is_a_value_error_of_this_package():
    assert issubclass(ConfigError, ModelError)
    assert issubclass(ModelError, ValueError)
