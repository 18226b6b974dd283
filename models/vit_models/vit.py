"""The Vision Transformer, in the order in which the paper tells it (Dosovitskiy et al. 2021, sec. 3.1, fig. 1).

Letters: B images, N patches, T tokens (N, or N + 1 with the class token), D width, H heads, D_h = D / H.

Written to be traced as it is: shapes other than B are Python numbers, attention is spelled out as
MatMul - Softmax - MatMul (eq. 6-7), and nothing is patched or swapped for export.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vit_models.config import ViTConfig
from vit_models.errors import ConfigError

OUTPUT_NAMES = ("logits", "embedding", "tokens", "attention")


class PatchEmbed(nn.Module):
    """Cuts the image into P x P patches and projects each one linearly (E in eq. 1).

    A convolution with kernel and stride P and no padding is that projection.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.embed_dim, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.proj(pixel_values).flatten(2).transpose(1, 2)  # (B, 3, H, W) -> (B, D, H/P, W/P) -> (B, N, D)


class Embeddings(nn.Module):
    """The sequence z_0: class token in front, learnable 1-D positions added (eq. 1)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim)) if config.class_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_tokens, config.embed_dim))

    def forward(self, pixel_values: Tensor) -> Tensor:
        tokens = self.patch_embed(pixel_values)  # (B, N, D)
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)  # (B, T, D)
        return tokens + self.pos_embed


class Attention(nn.Module):
    """Multi-head self-attention with q, k and v in one packed Linear (appendix A, eq. 5-8)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        return self.proj((attention_weights(q, k) @ v).transpose(1, 2).flatten(2))  # (B, H, T, D_h) -> (B, T, D)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The queries, keys and values of every head, each (B, H, T, D_h)."""
        packed = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim))  # (B, T, 3D) -> (B, T, 3, H, D_h)
        packed = packed.permute(2, 0, 3, 1, 4)  # (3, B, H, T, D_h)
        return packed[0], packed[1], packed[2]


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D_h)) over the keys, (B, H, queries, keys) (eq. 6)."""
    scale = float(q.shape[-1]) ** -0.5
    return ((q * scale) @ k.transpose(2, 3)).softmax(dim=-1)


class Mlp(nn.Module):
    """Two layers with a GELU between them, the exact one by the error function (sec. 3.1)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.embed_dim, config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="none"))


class Block(nn.Module):
    """LayerNorm, self-attention, residual (eq. 2); LayerNorm, MLP, residual (eq. 3)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A Vision Transformer; the parameters are zeros until `init_weights` or a checkpoint fills them.

    `outputs` says what `forward` returns, a tuple in that order:
    "logits" (B, num_classes); "embedding" (B, D), the image representation before the head, after the
    pre-logits layer where there is one; "tokens" (B, T, D) after the last norm, class token first;
    "attention" (B, H, N), how the last block's class token attends to the patches.

    Raises: ConfigError for an output that this network does not have.
    """

    def __init__(self, config: ViTConfig, outputs: Sequence[str] | None = None) -> None:
        super().__init__()
        self.config = config
        self.outputs = check_outputs(config, outputs)
        self.embeddings = Embeddings(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        width = config.representation_size or config.embed_dim
        self.pre_logits = nn.Linear(config.embed_dim, width) if config.representation_size else None
        self.head = nn.Linear(width, config.num_classes) if config.num_classes else None

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """pixel_values float32 (B, 3, H, W), normalised. Returns what `outputs` names, float32."""
        x = self.embeddings(pixel_values)  # (B, T, D)
        last_input = x
        for block in self.blocks:
            last_input = x
            x = block(x)
        tokens = self.norm(x)
        embedding = self.pool(tokens)  # (B, D)
        found = {"tokens": tokens, "embedding": embedding}
        if "logits" in self.outputs and self.head is not None:
            found["logits"] = self.head(embedding)  # (B, num_classes)
        if "attention" in self.outputs:
            found["attention"] = self.class_attention(last_input)
        return tuple(found[name] for name in self.outputs)

    def pool(self, tokens: Tensor) -> Tensor:
        """The image representation y (eq. 4), (B, D); with pool "mean", the mean over the patch tokens."""
        prefix = int(self.config.class_token)
        embedding = tokens.select(1, 0) if self.config.pool == "cls" else tokens[:, prefix:].mean(dim=1)
        return embedding if self.pre_logits is None else self.pre_logits(embedding).tanh()

    def class_attention(self, x: Tensor) -> Tensor:
        """How the last block's class token attends to each patch, by head, (B, H, N); x is that block's input."""
        block = self.blocks[-1]
        assert isinstance(block, Block)
        q, k, _ = block.attn.heads(block.norm1(x))
        return attention_weights(q.narrow(2, 0, 1), k).select(2, 0).narrow(2, 1, self.config.num_patches)


def check_outputs(config: ViTConfig, outputs: Sequence[str] | None = None) -> tuple[str, ...]:
    """The outputs asked for, or by default logits (where there is a head) and embedding.

    Raises: ConfigError for an unknown, repeated or missing output.
    """
    names = tuple(outputs) if outputs is not None else (("logits",) if config.num_classes else ()) + ("embedding",)
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"got outputs {','.join(names)!r}, expected at least one name and each name once")
    for name in names:
        if name not in OUTPUT_NAMES:
            raise ConfigError(f"got output {name!r}, expected some of {', '.join(OUTPUT_NAMES)}")
        if name == "logits" and not config.num_classes:
            raise ConfigError("got output 'logits' for a network without a head, expected 'embedding' or 'tokens'")
        if name == "attention" and not config.class_token:
            raise ConfigError("got output 'attention' for a network without a class token, whose attention it would be; leave it out")
    return names
