"""The numbers that define one Vision Transformer, checked when they are put together."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from vit_models.errors import ConfigError

Pool = Literal["cls", "mean", "mean_all", "map", "cls_mean", "cls_dist", "cls_dist_mean"]
FinalNorm = Literal["tokens", "pooled", "aside", "none"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu"]
Resample = Literal["bicubic", "bicubic_antialias", "bicubic_offset", "bicubic_align_corners", "bilinear", "bilinear_align_corners"]

MAX_DIM = 1 << 16  # far above every published network; a corrupt file's 10^12 must not reach an allocator
MAX_TOKENS = 1 << 20
MAX_DEPTH = 1000  # a network is built, without memory, before its weights are held against it


@dataclass(frozen=True)
class Rope:
    """Where the patches lie for rotary positions (RoFormer, sec. 3.2, in two dimensions as in EVA-02 and DINOv3).

    Patch i of n along an axis has the coordinate `(i + offset) * span / n + start`, or `i + offset + start` without a span;
    `span` is (down, across). Its angles are that coordinate times the network's `rope.inv_freq`, in radians.
    """

    offset: float = 0.0
    span: tuple[float, float] | None = None
    start: float = 0.0


@dataclass(frozen=True)
class ViTConfig:
    """A Vision Transformer of "An Image is Worth 16x16 Words" (ViT paper, sec. 3.1 and table 1) and the published kinds that came after.

    Without more than the first eleven fields it is the paper's; every other default leaves something out.
    Sizes are in pixels, (height, width). `num_classes` 0 means no head: the network ends at the embedding.
    `representation_size` adds the pre-logits layer of the paper's pre-training (a Linear and a tanh before the head, sec. 3.1).

    `pool` says what represents the image, made of the tokens after the blocks:
    "cls", the class token (eq. 4); "mean", the mean of the patch tokens; "mean_all", the mean of all tokens; "map", a learned probe
    that attends to all tokens (multihead attention pooling, "Scaling Vision Transformers", sec. 3.2); "cls_mean", class token and
    patch mean side by side (DINOv2's classifiers); "cls_dist", class and distillation token side by side; "cls_dist_mean", their mean,
    while the head still reads them side by side (DeiT).
    `final_norm` says what the last LayerNorm is for: "tokens" (the paper's eq. 4), "pooled" (the image representation alone),
    "aside" (the tokens that are put out, but not what is pooled), or "none".

    The sequence is class token, distillation token, `num_registers` registers ("Vision Transformers Need Registers"), patches.
    `pos_embed`: whether a learned table is added to the whole sequence; a prefix token that has no position has a row of zeros.
    `resample`: how the table follows another image size, see `vit_models.resample`.
    `rope`: rotary positions of the patch tokens in every block. `rel_pos_bias`: a learned bias on every block's scores (BEiT, sec. 2.4).
    `pre_norm`: a LayerNorm between positions and blocks (CLIP). `qk_norm`: a LayerNorm over each head's queries and keys.
    `attn_norm`, `mlp_norm`: a LayerNorm before the last Linear of the attention and of the MLP (EVA-02's sub-LN).
    `layer_scale`: a learned factor a channel at the end of both branches (CaiT, sec. 2.1).
    `gated_mlp`: fc1 is twice as wide, and the activated first half multiplies the second (SwiGLU with "silu").
    `projection`: the head is no classifier but projects into the space that images and texts share (CLIP).

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
    in_chans: int = 3
    distilled: bool = False
    num_registers: int = 0
    pos_embed: bool = True
    resample: Resample = "bicubic"
    rope: Rope | None = None
    rel_pos_bias: bool = False
    pre_norm: bool = False
    qk_norm: bool = False
    attn_norm: bool = False
    mlp_norm: bool = False
    layer_scale: bool = False
    activation: Activation = "gelu"
    gated_mlp: bool = False
    final_norm: FinalNorm = "tokens"
    projection: bool = False

    def __post_init__(self) -> None:
        for name in ("patch_size", "embed_dim", "num_heads", "mlp_dim"):
            _check_int(name, getattr(self, name), 1, MAX_DIM)
        _check_int("depth", self.depth, 1, MAX_DEPTH)
        _check_int("in_chans", self.in_chans, 1, 4)
        _check_int("num_registers", self.num_registers, 0, MAX_DIM)
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
        for name, kind in (("pool", Pool), ("final_norm", FinalNorm), ("activation", Activation), ("resample", Resample)):
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(f"got {name} {getattr(self, name)!r}, expected one of {', '.join(get_args(kind))}")
        for field in fields(self):
            if field.type == "bool" and not isinstance(getattr(self, field.name), bool):
                raise ConfigError(f"got {field.name} {getattr(self, field.name)!r}, expected True or False")
        if self.pool.startswith("cls") and not self.class_token:
            raise ConfigError(f"got pool {self.pool!r} without a class token, expected pool 'mean'")
        if "dist" in self.pool and not self.distilled:
            raise ConfigError(f"got pool {self.pool!r} without a distillation token, expected pool 'cls' or 'mean'")
        if self.final_norm == "pooled" and self.pool in ("cls_mean", "cls_dist", "cls_dist_mean"):
            raise ConfigError(f"got pool {self.pool!r} with final_norm 'pooled', expected final_norm 'tokens'")
        if self.pool == "cls_dist_mean" and self.representation_size:
            raise ConfigError("got pool 'cls_dist_mean' with a pre-logits layer, expected one of them")
        if self.rope is not None:
            self._check_rope(self.rope)
        if not isinstance(self.layer_norm_eps, float) or not 0 < self.layer_norm_eps < 1:
            raise ConfigError(f"got layer_norm_eps {self.layer_norm_eps!r}, expected a number between 0 and 1")

    def _check_rope(self, rope: Rope) -> None:
        if not isinstance(rope, Rope):
            raise ConfigError(f"got rope {rope!r}, expected a Rope")
        numbers = (rope.offset, rope.start, *(rope.span or (0.0, 0.0)))
        if len(numbers) != 4 or not all(isinstance(number, float) and abs(number) < 1e6 for number in numbers):
            raise ConfigError(f"got {rope}, expected finite numbers below a million, span as (down, across)")
        if self.head_dim % 4:
            raise ConfigError(f"got rotary positions with heads of {self.head_dim}, expected a multiple of 4")

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches down and across."""
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size

    @property
    def num_patches(self) -> int:
        """N = HW / P^2 (ViT paper, sec. 3.1)."""
        return self.grid_size[0] * self.grid_size[1]

    @property
    def num_prefix(self) -> int:
        """Tokens in front of the patches: class token, distillation token, registers."""
        return int(self.class_token) + int(self.distilled) + self.num_registers

    @property
    def num_tokens(self) -> int:
        """Length of the sequence: the patches and what stands in front of them."""
        return self.num_patches + self.num_prefix

    @property
    def pooled_dim(self) -> int:
        """Width of the pooled tokens."""
        return self.embed_dim * (2 if self.pool in ("cls_mean", "cls_dist") else 1)

    @property
    def embedding_dim(self) -> int:
        """Width of the image representation."""
        return self.representation_size or self.pooled_dim

    @property
    def features_dim(self) -> int:
        """Width of what the head reads."""
        return self.embed_dim * 2 if self.pool == "cls_dist_mean" else self.embedding_dim

    @property
    def head_dim(self) -> int:
        """D_h = D / heads (ViT paper, appendix A)."""
        return self.embed_dim // self.num_heads

    @property
    def macs(self) -> int:
        """Multiply-accumulates that one image costs in the matrix products and the patch convolution."""
        n, d, m = self.num_tokens, self.embed_dim, self.mlp_dim
        mlp = d * m * (3 if self.gated_mlp else 2)
        block = n * (4 * d * d + mlp) + 2 * n * n * d
        stem = self.num_patches * self.in_chans * self.patch_size**2 * d
        probe = n * 2 * d * d + 2 * d * d + 2 * n * d + 2 * d * m if self.pool == "map" else 0
        pre_logits = d * (self.representation_size or 0)
        return stem + self.depth * block + probe + pre_logits + self.features_dim * self.num_classes


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"got {name} {value!r}, expected a whole number from {low} to {high}")


def _check_divisible(name: str, size: int, patch: int) -> None:
    if size % patch == 0:
        return
    below, above = size // patch * patch, (size // patch + 1) * patch
    nearest = f"{below} and {above}" if below else f"{above} and {above + patch}"
    raise ConfigError(f"got image {name} {size}, which patches of {patch} do not divide; the nearest sizes that work are {nearest}")
