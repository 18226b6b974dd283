"""The numbers that define one Vision Transformer, checked when they are put together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from vit_models.errors import ConfigError

Pool = Literal["cls", "mean"]

MAX_DIM = 1 << 16  # far above every published network; a corrupt file's 10^12 must not reach an allocator
MAX_TOKENS = 1 << 20
MAX_DEPTH = 1000  # a network is built, without memory, before its weights are held against it


@dataclass(frozen=True)
class ViTConfig:
    """A Vision Transformer of "An Image is Worth 16x16 Words" (ViT paper, sec. 3.1 and table 1).

    Sizes are in pixels, (height, width). `num_classes` 0 means no head: the network ends at the embedding.
    `pool` says what represents the image: "cls", the class token's final state (eq. 4), or "mean", the mean
    over all patch tokens. `representation_size` adds the pre-logits layer of the paper's pre-training
    (a Linear and a tanh before the head, sec. 3.1).

    Raises: ConfigError.
    """

    img_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    num_classes: int = 1000
    class_token: bool = True
    pool: Pool = "cls"
    representation_size: int | None = None
    layer_norm_eps: float = 1e-6  # the paper's code (Flax default); other families differ

    def __post_init__(self) -> None:
        for name in ("patch_size", "embed_dim", "num_heads", "mlp_dim"):
            _check_int(name, getattr(self, name), 1, MAX_DIM)
        _check_int("depth", self.depth, 1, MAX_DEPTH)
        _check_int("num_classes", self.num_classes, 0, MAX_TOKENS)
        if self.representation_size is not None:
            _check_int("representation_size", self.representation_size, 1, MAX_DIM)
        if not isinstance(self.img_size, tuple) or len(self.img_size) != 2:
            raise ConfigError(f"got img_size {self.img_size}, expected (height, width)")
        for name, size in zip(("height", "width"), self.img_size, strict=True):
            _check_int(f"image {name}", size, 1, MAX_DIM)
            _check_divisible(name, size, self.patch_size)
        if self.num_patches > MAX_TOKENS:
            raise ConfigError(f"got {self.num_patches} patches, expected at most {MAX_TOKENS}; use a larger patch or a smaller image")
        if self.embed_dim % self.num_heads:
            raise ConfigError(f"got embed_dim {self.embed_dim} with {self.num_heads} heads, expected a width that the heads divide evenly")
        if not isinstance(self.class_token, bool):
            raise ConfigError(f"got class_token {self.class_token!r}, expected True or False")
        if self.pool not in get_args(Pool):
            raise ConfigError(f"got pool {self.pool!r}, expected one of {', '.join(get_args(Pool))}")
        if self.pool == "cls" and not self.class_token:
            raise ConfigError("got pool 'cls' without a class token, expected pool 'mean'")
        if not isinstance(self.layer_norm_eps, float) or not 0 < self.layer_norm_eps < 1:
            raise ConfigError(f"got layer_norm_eps {self.layer_norm_eps!r}, expected a number between 0 and 1")

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches down and across."""
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size

    @property
    def num_patches(self) -> int:
        """N = HW / P^2 (ViT paper, sec. 3.1)."""
        return self.grid_size[0] * self.grid_size[1]

    @property
    def num_tokens(self) -> int:
        """Length of the sequence: the patches and, where there is one, the class token."""
        return self.num_patches + int(self.class_token)

    @property
    def head_dim(self) -> int:
        """D_h = D / heads (ViT paper, appendix A)."""
        return self.embed_dim // self.num_heads

    @property
    def macs(self) -> int:
        """Multiply-accumulates that one image costs in the matrix products and the patch convolution."""
        n, d = self.num_tokens, self.embed_dim
        block = n * (4 * d * d + 2 * d * self.mlp_dim) + 2 * n * n * d
        stem = self.num_patches * 3 * self.patch_size**2 * d
        pre_logits = d * (self.representation_size or 0)
        return stem + self.depth * block + pre_logits + (self.representation_size or d) * self.num_classes


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"got {name} {value!r}, expected a whole number from {low} to {high}")


def _check_divisible(name: str, size: int, patch: int) -> None:
    if size % patch == 0:
        return
    below, above = size // patch * patch, (size // patch + 1) * patch
    nearest = f"{below} and {above}" if below else f"{above} and {above + patch}"
    raise ConfigError(f"got image {name} {size}, which patches of {patch} do not divide; the nearest sizes that work are {nearest}")
