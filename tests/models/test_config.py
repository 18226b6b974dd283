"""A configuration is either one that a Vision Transformer can have, or an error of one line."""

import dataclasses
from typing import Any

import pytest
from checkpoint_files import raises_mentioning

from vit_models import ConfigError, ModelError, ViTConfig

pytestmark = pytest.mark.unit


def test_the_defaults_are_the_papers_base_network() -> None:
    """ViT paper, table 1: 12 layers, width 768, MLP 3072, 12 heads; 16 pixel patches of a 224 pixel image."""
    config = ViTConfig()
    assert (config.depth, config.embed_dim, config.mlp_dim, config.num_heads) == (12, 768, 3072, 12)
    assert (config.grid_size, config.num_patches, config.num_tokens, config.head_dim) == ((14, 14), 196, 197, 64)


def test_without_a_class_token_the_sequence_is_the_patches() -> None:
    assert ViTConfig(class_token=False, pool="mean").num_tokens == 196


def test_height_comes_first() -> None:
    config = ViTConfig(img_size=(224, 384), patch_size=32)
    assert (config.grid_size, config.num_patches) == ((7, 12), 84)


def test_a_config_does_not_change_and_equal_ones_are_equal() -> None:
    config: Any = ViTConfig()  # a type checker refuses the assignment
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.depth = 3
    assert config == ViTConfig()
    assert hash(config) == hash(ViTConfig())


@pytest.mark.parametrize(
    ("size", "patch", "facts"),
    [
        ((225, 224), 16, ("height", 225, 16, 224, 240)),
        ((224, 230), 16, ("width", 230, 16, 224, 240)),
        ((224, 224), 14 * 3, ("height", 224, 42, 210, 252)),
        ((10, 224), 16, ("height", 10, 16, 32)),
    ],
)
def test_a_size_that_patches_do_not_divide_names_the_two_nearest_that_work(
    size: tuple[int, int], patch: int, facts: tuple[object, ...]
) -> None:
    with raises_mentioning(ConfigError, *facts):
        ViTConfig(img_size=size, patch_size=patch)


# Fields that no network can have, and what the message mentions.
BAD: list[tuple[dict[str, Any], tuple[object, ...]]] = [
    ({"patch_size": 0}, ("patch_size", "0")),
    ({"patch_size": -16}, ("patch_size", "-16")),
    ({"patch_size": 16.0}, ("patch_size", "16.0")),
    ({"embed_dim": 0}, ("embed_dim", "0")),
    ({"embed_dim": 10**12}, ("embed_dim", "1000000000000")),
    ({"embed_dim": 770}, ("embed_dim", 770, 12)),
    ({"depth": 0}, ("depth", "0")),
    ({"depth": True}, ("depth", "True")),
    ({"depth": "12"}, ("depth", "'12'")),
    ({"depth": 60_000}, ("depth", "60000")),
    ({"num_heads": 0}, ("num_heads", "0")),
    ({"mlp_dim": None}, ("mlp_dim", "None")),
    ({"num_classes": -1}, ("num_classes", "-1")),
    ({"num_classes": 10**9}, ("num_classes", "1000000000")),
    ({"representation_size": 0}, ("representation_size", "0")),
    ({"img_size": 224}, ("img_size", "224")),
    ({"img_size": [224, 224]}, ("img_size", "[224, 224]")),
    ({"img_size": (224,)}, ("img_size", "(224,)")),
    ({"img_size": (224, 224, 3)}, ("img_size", "(224, 224, 3)")),
    ({"img_size": (0, 224)}, ("height", "0")),
    ({"img_size": (224, -224)}, ("width", "-224")),
    ({"img_size": (224, 2**17)}, ("width", "131072")),
    ({"img_size": (224.0, 224)}, ("height", "224.0")),
    ({"img_size": (2**15, 2**15)}, (4194304,)),
    ({"pool": "max"}, ("pool", "'max'")),
    ({"pool": "cls", "class_token": False}, ("'cls'", "'mean'", "class token")),
    ({"class_token": "no"}, ("class_token", "'no'")),
    ({"class_token": 2}, ("class_token", "2")),
    ({"layer_norm_eps": 0.0}, ("layer_norm_eps", "0.0")),
    ({"layer_norm_eps": 1.0}, ("layer_norm_eps", "1.0")),
    ({"layer_norm_eps": float("nan")}, ("layer_norm_eps", "nan")),
    ({"layer_norm_eps": "1e-6"}, ("layer_norm_eps", "'1e-6'")),
]


@pytest.mark.parametrize(("fields", "facts"), BAD, ids=[str(fields) for fields, _ in BAD])
def test_a_bad_config_is_an_error_of_one_line_that_names_the_field_and_the_value(fields: dict[str, Any], facts: tuple[object, ...]) -> None:
    with raises_mentioning(ConfigError, *facts):
        ViTConfig(**fields)


def test_a_config_error_is_a_value_error_of_this_package() -> None:
    assert issubclass(ConfigError, ModelError)
    assert issubclass(ModelError, ValueError)
