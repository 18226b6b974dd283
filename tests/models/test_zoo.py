"""The named networks are the published ones, by the number of their parameters and of their multiplications."""

import dataclasses
from functools import cache

import pytest
import torch
from checkpoint_files import raises_mentioning

from vit_models import ARCHS, DEFAULT_ARCH, DIGITS, ConfigError, UnknownArchError, ViT, arch_names, find_arch

pytestmark = pytest.mark.unit

# With heads of 1000 classes, as timm, torchvision and the papers count them.
PUBLISHED = {
    "ViT-Ti/16": 5_717_416,
    "ViT-S/16": 22_050_664,
    "ViT-S/32": 22_878_952,
    "ViT-B/16": 86_567_656,
    "ViT-B/32": 88_224_232,
    "ViT-L/16": 304_326_632,
    "ViT-L/32": 306_535_400,
    "ViT-H/14": 632_045_800,
}


@cache
def parameters(arch: str) -> int:
    with torch.device("meta"):  # shapes without memory
        model = ViT(ARCHS[arch])
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("arch", PUBLISHED)
def test_a_named_network_has_exactly_the_published_parameters(arch):
    assert parameters(arch) == PUBLISHED[arch]


def test_the_giant_network_has_the_published_parameters():
    """1,012.6 million; it is published to a tenth of a million."""
    assert parameters("ViT-g/14") == pytest.approx(1012.6e6, abs=0.05e6)


@pytest.mark.parametrize("arch", ARCHS)
def test_networks_of_one_size_differ_in_patch_projection_and_positions_alone(arch):
    """So the counts that are published for one patch size hold for the others."""
    size = arch.split("/")[0]
    sibling = next(name for name in (*PUBLISHED, "ViT-g/14") if name.startswith(f"{size}/"))
    ours, theirs = ARCHS[arch], ARCHS[sibling]
    projection = 3 * ours.embed_dim * (ours.patch_size**2 - theirs.patch_size**2)
    positions = ours.embed_dim * (ours.num_tokens - theirs.num_tokens)
    assert parameters(arch) - parameters(sibling) == projection + positions


@pytest.mark.parametrize(
    ("arch", "gmacs"),
    [("ViT-B/16", 17.56), ("ViT-B/32", 4.41), ("ViT-L/16", 61.55), ("ViT-L/32", 15.38), ("ViT-H/14", 167.30)],
)
def test_the_cost_of_an_image_is_the_published_one(arch, gmacs):
    """torchvision's numbers; counts differ by under a per cent in whether norms and additions are in them."""
    assert ARCHS[arch].macs / 1e9 == pytest.approx(gmacs, rel=0.01)


def test_the_cost_of_the_head_and_of_the_pre_logits_layer_is_counted():
    base = ARCHS["ViT-B/16"]
    headless = dataclasses.replace(base, num_classes=0)
    assert base.macs - headless.macs == 768 * 1000
    assert dataclasses.replace(base, representation_size=32).macs - headless.macs == 768 * 32 + 32 * 1000


def test_the_default_and_the_trained_network_are_named():
    assert arch_names() == [*ARCHS, DIGITS]
    assert DEFAULT_ARCH in ARCHS


@pytest.mark.parametrize("name", [*ARCHS, DIGITS])
def test_every_name_is_found_whatever_its_case_and_marks(name):
    for spelling in (name, name.lower(), name.upper(), name.replace("-", "_").replace("/", "_"), name.replace("/", "-")):
        assert find_arch(spelling) == name


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("vit_b_16", "ViT-B/16"),
        ("vit_base_patch16", "ViT-B/16"),
        ("vit-tiny-patch16", "ViT-Ti/16"),
        ("ViT-Large/32", "ViT-L/32"),
        ("vit huge 14", "ViT-H/14"),
    ],
)
def test_spellings_of_other_libraries_are_understood(spelling, name):
    assert find_arch(spelling) == name


def test_an_unknown_name_lists_the_nearest():
    assert issubclass(UnknownArchError, ConfigError)
    with raises_mentioning(UnknownArchError, "'ViT-B/17'", "ViT-B/16"):
        find_arch("ViT-B/17")


@pytest.mark.parametrize("name", ["", "???", "zzzzzzzz"])
def test_a_name_that_is_like_no_other_leads_to_the_list(name):
    with raises_mentioning(UnknownArchError, f"{name!r}", "--list-archs"):
        find_arch(name)
