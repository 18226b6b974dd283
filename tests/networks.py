"""The tiny networks that the tests share, and the `Source` objects that `export` takes."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from vit_exporter import Source
from vit_models import ViT, ViTConfig, init_weights
from vit_runtime.preprocess import Preprocessing

# Two blocks for images of 32 x 32 pixels: 16 patches, 17 tokens of 32 values. Other tests change a few fields with `replace`.
TINY = ViTConfig(img_size=(32, 32), patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_dim=64, num_classes=10)
SHALLOW = replace(TINY, depth=1)
OUTPUTS = ("logits", "embedding", "tokens", "attention")
LABELS = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay")


def initialized(config: ViTConfig = TINY, outputs: Sequence[str] | None = None, dynamic_size: bool = False, seed: int = 1) -> ViT:
    """A network with the weights that training starts from."""
    return init_weights(ViT(config, outputs, dynamic_size), seed).eval()


def randomized(config: ViTConfig = TINY, outputs: Sequence[str] | None = None, dynamic_size: bool = False, seed: int = 1) -> ViT:
    """A network with a random value in every parameter, biases and norms included, so that a lost parameter changes the outputs."""
    model, generator = ViT(config, outputs, dynamic_size).eval(), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * (0.2 if parameter.ndim > 1 else 0.5))
    return model


def source_of(model: ViT, labels: tuple[str, ...] | None = None, seed: int = 0) -> Source:
    """The network as `export` takes it, with the paper's preprocessing."""
    checkpoint = {"format": "random", "seed": seed, "sha256": None}
    config = model.config
    return Source(model.eval(), None, checkpoint, Preprocessing.paper(*config.img_size, config.in_chans), labels)


def make_source(
    config: ViTConfig = TINY, outputs: Sequence[str] | None = OUTPUTS, labels: tuple[str, ...] | None = LABELS, seed: int = 0
) -> Source:
    """A network with random weights and labels, as `export` takes it."""
    return source_of(initialized(config, outputs, seed=seed), labels, seed)
