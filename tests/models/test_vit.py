"""The network computes what the paper says, and what an independent implementation computes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import raises_mentioning
from networks import TINY, randomized
from torch import Tensor
from transformers import ViTConfig as TheirConfig
from transformers import ViTForImageClassification, ViTModel

from vit_models import ARCHS, OUTPUT_NAMES, ConfigError, ViT, ViTConfig, check_outputs, init_weights
from vit_models.vit import Attention, Block, attention_weights

pytestmark = pytest.mark.unit


def changed(**fields: Any) -> ViTConfig:
    return dataclasses.replace(TINY, **fields)


def random_model(config: ViTConfig, outputs: Sequence[str] | None = None) -> ViT:
    """A network in float64, with parameters so large that a tensor in the wrong place changes the first digit."""
    return randomized(config, outputs, seed=7).double()


def images(config: ViTConfig, count: int = 3) -> Tensor:
    return torch.randn(count, 3, *config.img_size, generator=torch.Generator().manual_seed(11), dtype=torch.float64)


def run(model: ViT, pixel_values: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return dict(zip(model.outputs, model(pixel_values), strict=True))


# --- shapes -----------------------------------------------------------------------------------------------------------


def test_every_step_of_the_base_network_has_the_papers_shape():
    """ViT paper, sec. 3.1 and fig. 1, for an image of 224 pixels in patches of 16."""
    with torch.device("meta"):
        model = ViT(ARCHS["ViT-B/16"], OUTPUT_NAMES).eval()
        pixel_values = torch.empty(1, 3, 224, 224)
    shapes = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _, __, out, name=name: shapes.update({name: out} if name == "" else {name: tuple(out.shape)}))
    logits, embedding, tokens, attention = model(pixel_values)
    assert shapes["embeddings.patch_embed.proj"] == (1, 768, 14, 14)
    assert shapes["embeddings.patch_embed"] == (1, 196, 768)  # N patches
    assert shapes["embeddings"] == (1, 197, 768)  # class token in front
    for block in range(12):
        assert shapes[f"blocks.{block}.norm1"] == (1, 197, 768)
        assert shapes[f"blocks.{block}.attn.qkv"] == (1, 197, 3 * 768)
        assert shapes[f"blocks.{block}.attn"] == (1, 197, 768)
        assert shapes[f"blocks.{block}.mlp.fc1"] == (1, 197, 3072)
        assert shapes[f"blocks.{block}.mlp"] == (1, 197, 768)
        assert shapes[f"blocks.{block}"] == (1, 197, 768)
    assert "blocks.12" not in shapes
    assert shapes["norm"] == tuple(tokens.shape) == (1, 197, 768)
    assert tuple(embedding.shape) == (1, 768)
    assert tuple(logits.shape) == (1, 1000)
    assert tuple(attention.shape) == (1, 12, 196)


def test_queries_keys_and_values_are_twelve_heads_of_64():
    with torch.device("meta"):
        attention = Attention(ARCHS["ViT-B/16"])
        q, k, v = attention.heads(torch.empty(5, 197, 768))
    assert tuple(q.shape) == tuple(k.shape) == tuple(v.shape) == (5, 12, 197, 64)
    assert tuple(attention_weights(q, k).shape) == (5, 12, 197, 197)


# --- against transformers ---------------------------------------------------------------------------------------------


def their_config(config: ViTConfig, attention: str = "sdpa") -> TheirConfig:
    fields: dict[str, Any] = {
        "hidden_size": config.embed_dim, "num_hidden_layers": config.depth, "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim, "hidden_act": "gelu", "layer_norm_eps": config.layer_norm_eps, "image_size": config.img_size,
        "patch_size": config.patch_size, "num_labels": config.num_classes, "pooler_output_size": config.representation_size,
        "attn_implementation": attention,
    }  # fmt: skip
    return TheirConfig(**fields)


def their_weights(model: ViT) -> dict[str, Tensor]:
    """Our weights under transformers' names, without a prefix; it has one Linear each for queries, keys and values."""
    ours = model.state_dict()
    weights = {
        "embeddings.cls_token": ours["embeddings.cls_token"],
        "embeddings.position_embeddings": ours["embeddings.pos_embed"],
    }
    pairs = {"embeddings.patch_embeddings.projection": "embeddings.patch_embed.proj", "layernorm": "norm", "pooler.dense": "pre_logits"}
    for block in range(model.config.depth):
        theirs, mine = f"layers.{block}", f"blocks.{block}"
        pairs |= {f"{theirs}.layernorm_before": f"{mine}.norm1", f"{theirs}.layernorm_after": f"{mine}.norm2"}
        pairs |= {f"{theirs}.mlp.fc1": f"{mine}.mlp.fc1", f"{theirs}.mlp.fc2": f"{mine}.mlp.fc2"}
        pairs |= {f"{theirs}.attention.o_proj": f"{mine}.attn.proj"}
        for kind in ("weight", "bias"):
            for name, part in zip("qkv", ours[f"{mine}.attn.qkv.{kind}"].chunk(3), strict=True):
                weights[f"{theirs}.attention.{name}_proj.{kind}"] = part
    for theirs, mine in pairs.items():
        for kind in ("weight", "bias"):
            if f"{mine}.{kind}" in ours:
                weights[f"{theirs}.{kind}"] = ours[f"{mine}.{kind}"]
    return weights


def their_classifier(model: ViT, attention: str = "sdpa") -> ViTForImageClassification:
    theirs = ViTForImageClassification(their_config(model.config, attention)).double().eval()
    state = {f"vit.{name}": value for name, value in their_weights(model).items() if not name.startswith("pooler.")}
    state |= {f"classifier.{kind}": model.state_dict()[f"head.{kind}"] for kind in ("weight", "bias")}
    theirs.load_state_dict(state)  # strict: every tensor of theirs gets one of ours, and none is left over
    return theirs


def assert_equal_in_float64(actual: Tensor, expected: Tensor) -> None:
    """Both are computed in float64, so they differ by the rounding of some hundred sums: about 1e-13.

    A swapped tensor, or a wrong epsilon or GELU, changes them by at least 1e-5.
    """
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


SHAPES: list[dict[str, Any]] = [
    {},
    {"img_size": (32, 48)},
    {"img_size": (64, 16), "patch_size": 16},
    {"depth": 4, "num_heads": 8, "mlp_dim": 40},
    {"depth": 1, "num_heads": 1, "embed_dim": 24, "num_classes": 3},
    {"layer_norm_eps": 1e-2},
]


@pytest.mark.parametrize("fields", SHAPES, ids=str)
def test_logits_equal_those_of_transformers(fields):
    model = random_model(changed(**fields), ["logits"])
    with torch.no_grad():
        theirs = their_classifier(model)(images(model.config)).logits
    assert_equal_in_float64(run(model, images(model.config))["logits"], theirs)


@pytest.mark.parametrize("fields", SHAPES, ids=str)
def test_tokens_equal_those_of_transformers(fields):
    model = random_model(changed(**{**fields, "num_classes": 0}), ["tokens", "embedding"])
    theirs = ViTModel(their_config(model.config), add_pooling_layer=False).double().eval()
    theirs.load_state_dict(their_weights(model))
    with torch.no_grad():
        tokens = theirs(images(model.config)).last_hidden_state
    ours = run(model, images(model.config))
    assert_equal_in_float64(ours["tokens"], tokens)
    np.testing.assert_array_equal(ours["embedding"], ours["tokens"][:, 0])  # the same numbers, so no tolerance


def test_the_pre_logits_layer_equals_the_pooler_of_transformers():
    """A Linear and a tanh (ViT paper, sec. 3.1)."""
    model = random_model(changed(representation_size=24), ["embedding", "logits"])
    theirs = ViTModel(their_config(model.config)).double().eval()
    theirs.load_state_dict(their_weights(model))
    with torch.no_grad():
        pooled = theirs(images(model.config)).pooler_output
        ours = run(model, images(model.config))
        assert tuple(ours["embedding"].shape) == (3, 24)
        assert_equal_in_float64(ours["embedding"], pooled)
        assert model.head is not None
        np.testing.assert_array_equal(ours["logits"], model.head(ours["embedding"]))  # the same call, so no tolerance


@pytest.mark.parametrize("fields", SHAPES, ids=str)
def test_attention_equals_that_of_transformers(fields):
    model = random_model(changed(**fields), ["attention"])
    with torch.no_grad():
        theirs = their_classifier(model, "eager")(images(model.config), output_attentions=True).attentions[-1]
    # transformers rounds each softmax to float32, by up to 6e-8 (half a unit in the last place of a number below 1).
    np.testing.assert_allclose(run(model, images(model.config))["attention"], theirs[:, :, 0, 1:], rtol=0, atol=1e-6)


# --- properties -------------------------------------------------------------------------------------------------------


def test_attention_rows_sum_to_what_the_class_token_leaves_for_the_patches():
    model = random_model(TINY, ["attention"])
    inputs: list[Tensor] = []
    block = model.blocks[-1]
    assert isinstance(block, Block)
    block.norm1.register_forward_hook(lambda _, __, out: inputs.append(out))
    attention = run(model, images(TINY))["attention"]
    with torch.no_grad():
        q, k, _ = block.attn.heads(inputs[0])
        own = attention_weights(q, k)[:, :, 0, 0]
    np.testing.assert_allclose(attention.sum(dim=-1), 1 - own, rtol=1e-12)  # float64 sums of 16 numbers
    assert (own > 1e-6).all()  # so the sums are not 1 by accident


@pytest.mark.parametrize("class_token", [True, False])
def test_mean_pooling_is_the_mean_of_the_patch_tokens(class_token):
    model = random_model(changed(pool="mean", class_token=class_token), ["embedding", "tokens", "logits"])
    ours = run(model, images(TINY))
    patches = ours["tokens"][:, int(class_token) :]
    assert patches.shape[1] == 16
    np.testing.assert_allclose(ours["embedding"], patches.numpy().mean(axis=1), rtol=1e-12)  # float64 sums of 16 numbers
    with torch.no_grad():
        assert model.head is not None
        np.testing.assert_array_equal(ours["logits"], model.head(ours["embedding"]))  # the same call, so no tolerance


@pytest.mark.parametrize("fields", [{}, {"pool": "mean"}, {"pool": "mean", "class_token": False}, {"representation_size": 24}], ids=str)
def test_an_image_gives_the_same_numbers_alone_and_in_a_batch(fields):
    model = random_model(changed(**fields))
    together = run(model, images(TINY))
    for index in range(3):
        for name, values in run(model, images(TINY)[index : index + 1]).items():
            assert_equal_in_float64(values[0], together[name][index])


def test_outputs_come_as_asked_and_in_that_order():
    everything = run(random_model(TINY, OUTPUT_NAMES), images(TINY))
    asked = ["attention", "logits", "tokens"]
    model = random_model(TINY, asked)
    assert model.outputs == tuple(asked)
    for name, values in run(model, images(TINY)).items():
        np.testing.assert_array_equal(values, everything[name])  # what else is asked for changes nothing


def test_without_a_head_the_network_ends_at_the_embedding():
    model = ViT(changed(num_classes=0))
    assert model.outputs == ("embedding",)
    assert not any(name.startswith("head") for name, _ in model.named_parameters())
    assert ViT(TINY).outputs == ("logits", "embedding")


@pytest.mark.parametrize(
    ("fields", "outputs", "facts"),
    [
        ({}, [], ("outputs", "''")),
        ({}, ["logits", "logits"], ("outputs", "'logits,logits'")),
        ({}, ["logit"], ("'logit'", "logits", "embedding", "tokens", "attention")),
        ({"num_classes": 0}, ["logits"], ("'logits'", "head")),
        ({"class_token": False, "pool": "mean"}, ["attention"], ("'attention'", "class token")),
    ],
)
def test_an_output_that_the_network_does_not_have_is_refused(fields: dict[str, Any], outputs: list[str], facts: tuple[object, ...]) -> None:
    config = changed(**fields)
    with raises_mentioning(ConfigError, *facts):
        check_outputs(config, outputs)
    with raises_mentioning(ConfigError, *facts):
        ViT(config, outputs)


# --- random weights ---------------------------------------------------------------------------------------------------


def test_random_weights_are_the_same_for_the_same_seed_and_other_for_another():
    first, again, other = (init_weights(ViT(TINY), seed).state_dict() for seed in (3, 3, 4))
    for name, values in first.items():
        assert torch.equal(values, again[name])
        assert not torch.equal(values, other[name])


def test_random_weights_of_a_parameter_do_not_depend_on_the_other_parameters():
    """A deeper network with another head shares the values of what both have."""
    small = init_weights(ViT(TINY), 5).state_dict()
    large = init_weights(ViT(changed(depth=4, num_classes=0, representation_size=8)), 5).state_dict()
    shared = small.keys() & large.keys()
    assert len(shared) == len(small) - 2  # all but the head's weight and bias
    for name in shared:
        assert torch.equal(small[name], large[name])


def test_no_random_parameter_is_zero_and_each_has_values_of_its_own():
    """A bias of zeros could be lost by an export without anybody seeing it."""
    model = init_weights(ViT(changed(representation_size=24)))
    state = model.state_dict()
    seen = set()
    for name, values in state.items():
        assert (values != 0).float().mean() > 0.99, name
        seen.add(values.flatten()[:8].numpy().tobytes())
    assert len(seen) == len(state)
    assert not model.training


def test_random_weights_are_spread_as_documented():
    model = init_weights(ViT(ARCHS["ViT-Ti/16"]))
    weight = model.get_parameter("blocks.3.mlp.fc1.weight").detach().numpy()
    # 147,456 draws: the mean scatters by 0.02 / 384 = 5e-5 and the deviation by less, so ten times that is safe.
    assert abs(weight.mean()) < 5e-4
    assert weight.std() == pytest.approx(0.02, rel=0.01)
    assert model.get_parameter("norm.weight").detach().numpy().mean() == pytest.approx(1.0, abs=0.02)
