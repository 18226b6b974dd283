"""The Vision Transformer, in the order in which the paper tells it (Dosovitskiy et al. 2021, sec. 3.1, fig. 1).

Letters: B images, C channels, P patch size, N patches, T tokens (patches and the prefix: class token, registers), D width, H heads,
D_h = D / H. What later papers added stands where it acts, and is not there unless the configuration asks for it.

Written to be traced as it is: shapes other than B are Python numbers, attention is spelled out as
MatMul - Softmax - MatMul (eq. 6-7), and nothing is patched or swapped for export.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vit_models.config import Activation, Rope, ViTConfig
from vit_models.errors import ConfigError
from vit_models.resample import resample_table

OUTPUT_NAMES = ("logits", "embedding", "tokens", "attention")

Rotation = tuple[Tensor, Tensor]  # cosines and sines of every token's angles, each (T, D_h)


class PatchEmbed(nn.Module):
    """Cuts the image into P x P patches and projects each one linearly (E in eq. 1).

    A convolution with kernel and stride P and no padding is that projection.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.in_chans, config.embed_dim, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.proj(pixel_values).flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, D, H/P, W/P) -> (B, N, D)


class Embeddings(nn.Module):
    """The sequence z_0: class token in front, learnable 1-D positions added (eq. 1).

    With `dynamic_size` the positions are resampled to the image's own grid of patches inside the graph.
    """

    def __init__(self, config: ViTConfig, dynamic_size: bool = False) -> None:
        super().__init__()
        self.config, self.dynamic_size = config, dynamic_size
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim)) if config.class_token else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim)) if config.distilled else None
        self.register_tokens = nn.Parameter(torch.zeros(1, config.num_registers, config.embed_dim)) if config.num_registers else None
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_tokens, config.embed_dim)) if config.pos_embed else None

    def forward(self, pixel_values: Tensor) -> Tensor:
        tokens = self.patch_embed(pixel_values)  # (B, N, D)
        prefix = [token for token in (self.cls_token, self.dist_token, self.register_tokens) if token is not None]
        if prefix:
            tokens = torch.cat([*(token.expand(tokens.shape[0], -1, -1) for token in prefix), tokens], dim=1)  # (B, T, D)
        return tokens if self.pos_embed is None else tokens + self.positions(self.pos_embed, pixel_values)

    def positions(self, table: Tensor, pixel_values: Tensor) -> Tensor:
        """The position table (1, T, D), on the image's own grid where the size is free."""
        if not self.dynamic_size:
            return table
        prefix, patches = table[:, : self.config.num_prefix], table[0, self.config.num_prefix :]
        grid = patches.reshape(*self.config.grid_size, -1)
        grid = resample_table(grid, grid_of(pixel_values, self.config), self.config.resample)
        return torch.cat([prefix, grid.flatten(0, 1).unsqueeze(0)], dim=1)


class RotaryEmbedding(nn.Module):
    """The angles by which every block turns queries and keys of the patch tokens (RoFormer, sec. 3.4.2, along both axes).

    `inv_freq` (D_h / 4,) are radians for a coordinate's unit; `Rope` says what the coordinates are. Channels i and i + D_h / 2 turn
    together; the first half of the angles are the rows', the second the columns'. The prefix tokens are not turned.
    """

    def __init__(self, config: ViTConfig, rope: Rope, dynamic_size: bool = False) -> None:
        super().__init__()
        self.config, self.rope, self.dynamic_size = config, rope, dynamic_size
        self.inv_freq = nn.Parameter(torch.zeros(config.head_dim // 4))

    def forward(self, pixel_values: Tensor) -> Rotation:
        rows, columns = grid_of(pixel_values, self.config) if self.dynamic_size else self.config.grid_size
        down, across = self.angles(rows, 0), self.angles(columns, 1)  # (rows, D_h / 4), (columns, D_h / 4)
        down = down.unsqueeze(1).expand(-1, columns, -1)
        across = across.unsqueeze(0).expand(rows, -1, -1)
        angles = torch.cat([down, across, down, across], dim=-1).flatten(0, 1)  # (N, D_h)
        unturned = torch.zeros(self.config.num_prefix, self.config.head_dim, dtype=angles.dtype, device=angles.device)
        angles = torch.cat([unturned, angles])  # (T, D_h)
        return angles.cos(), angles.sin()

    def angles(self, count: int, axis: int) -> Tensor:
        """Of `count` patches along an axis, (count, D_h / 4)."""
        places = torch.arange(count, device=self.inv_freq.device).to(self.inv_freq.dtype) + self.rope.offset
        if self.rope.span is not None:
            places = places * (self.rope.span[axis] / count)
        return (places + self.rope.start).unsqueeze(1) * self.inv_freq


class Attention(nn.Module):
    """Multi-head self-attention with q, k and v in one packed Linear (appendix A, eq. 5-8)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim)
        self.q_norm = nn.LayerNorm(config.head_dim, eps=config.layer_norm_eps) if config.qk_norm else None
        self.k_norm = nn.LayerNorm(config.head_dim, eps=config.layer_norm_eps) if config.qk_norm else None
        shape = (1, config.num_heads, config.num_tokens, config.num_tokens)
        self.rel_pos_bias = nn.Parameter(torch.zeros(shape)) if config.rel_pos_bias else None
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps) if config.attn_norm else None
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        q, k, v = self.heads(x, rotation)
        mixed = (attention_weights(q, k, self.rel_pos_bias) @ v).transpose(1, 2).flatten(2)  # (B, H, T, D_h) -> (B, T, D)
        return self.proj(mixed if self.norm is None else self.norm(mixed))

    def heads(self, x: Tensor, rotation: Rotation | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The queries, keys and values of every head, each (B, H, T, D_h)."""
        packed = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim))  # (B, T, 3D) -> (B, T, 3, H, D_h)
        packed = packed.permute(2, 0, 3, 1, 4)  # (3, B, H, T, D_h)
        q, k, v = packed[0], packed[1], packed[2]
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        return q, k, v


def attention_weights(q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D_h) + bias) over the keys, (B, H, queries, keys) (eq. 6)."""
    scale = float(q.shape[-1]) ** -0.5
    scores = (q * scale) @ k.transpose(2, 3)
    return (scores if bias is None else scores + bias).softmax(dim=-1)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn channels i and i + D_h / 2 of each token by its i-th angle (RoFormer, eq. 34); x (B, H, T, D_h)."""
    cosines, sines = rotation
    half = x.shape[-1] // 2
    first, second = x.narrow(3, 0, half), x.narrow(3, half, half)
    return x * cosines + torch.cat([-second, first], dim=-1) * sines


class Mlp(nn.Module):
    """Two layers with a GELU between them, the exact one by the error function (sec. 3.1)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.activation: Activation = config.activation
        self.gated = config.gated_mlp
        self.fc1 = nn.Linear(config.embed_dim, config.mlp_dim * (2 if config.gated_mlp else 1))
        self.norm = nn.LayerNorm(config.mlp_dim, eps=config.layer_norm_eps) if config.mlp_norm else None
        self.fc2 = nn.Linear(config.mlp_dim, config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        if self.gated:
            half = x.shape[-1] // 2
            gate, value = x.narrow(-1, 0, half), x.narrow(-1, half, half)  # SwiGLU (Shazeer 2020, eq. 6)
            x = activate(gate, self.activation) * value
        else:
            x = activate(x, self.activation)
        return self.fc2(x if self.norm is None else self.norm(x))


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The MLP's activation function, by name."""
    if activation == "gelu":
        return F.gelu(x, approximate="none")
    if activation == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    if activation == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)  # "Gaussian Error Linear Units", sec. 2
    return F.silu(x) if activation == "silu" else F.relu(x)


class LayerScale(nn.Module):
    """A learned factor a channel (CaiT, sec. 2.1)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(config.embed_dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """LayerNorm, self-attention, residual (eq. 2); LayerNorm, MLP, residual (eq. 3)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.attn = Attention(config)
        self.ls1 = LayerScale(config) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)
        self.ls2 = LayerScale(config) if config.layer_scale else nn.Identity()

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), rotation))
        return x + self.ls2(self.mlp(self.norm2(x)))


class AttentionPool(nn.Module):
    """Pools by a learned probe that attends to all tokens, and an MLP ("Scaling Vision Transformers", sec. 3.2)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.probe = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.q = nn.Linear(config.embed_dim, config.embed_dim)
        self.kv = nn.Linear(config.embed_dim, 2 * config.embed_dim)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, T, D) to (B, D)."""
        q = self.q(self.probe).unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)  # (1, H, 1, D_h)
        packed = self.kv(tokens).unflatten(2, (2, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)  # (2, B, H, T, D_h)
        x = self.proj((attention_weights(q, packed[0]) @ packed[1]).transpose(1, 2).flatten(2))  # (B, 1, D)
        return (x + self.mlp(self.norm(x))).select(1, 0)


class ViT(nn.Module):
    """A Vision Transformer; the parameters are zeros until `init_weights` or a checkpoint fills them.

    `outputs` says what `forward` returns, a tuple in that order:
    "logits" (B, num_classes); "embedding" (B, `config.embedding_dim`), the image representation before the head, after the
    pre-logits layer where there is one; "tokens" (B, T, D) after the last norm where there is one for them, prefix first;
    "attention" (B, H, N), how the last block's class token attends to the patches.

    With `dynamic_size` H and W are free, in multiples of P, and N follows them.

    Raises: ConfigError for an output or a free size that this network does not have.
    """

    def __init__(self, config: ViTConfig, outputs: Sequence[str] | None = None, dynamic_size: bool = False) -> None:
        super().__init__()
        if dynamic_size and config.rel_pos_bias:
            raise ConfigError("got a free image size for relative position biases, which belong to one size; give --img-size instead")
        self.config, self.dynamic_size = config, dynamic_size
        self.outputs = check_outputs(config, outputs)
        self.embeddings = Embeddings(config, dynamic_size)
        self.rope = RotaryEmbedding(config, config.rope, dynamic_size) if config.rope else None
        self.pre_norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps) if config.final_norm != "none" else nn.Identity()
        self.attn_pool = AttentionPool(config) if config.pool == "map" else None
        self.pre_logits = nn.Linear(config.pooled_dim, config.representation_size) if config.representation_size else None
        self.head = nn.Linear(config.features_dim, config.num_classes) if config.num_classes else None

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """pixel_values float32 (B, C, H, W), normalised. Returns what `outputs` names, float32."""
        x = self.pre_norm(self.embeddings(pixel_values))  # (B, T, D)
        rotation = self.rope(pixel_values) if self.rope is not None else None
        last_input = x
        for block in self.blocks:
            last_input = x
            x = block(x, rotation)
        tokens = x if self.config.final_norm == "pooled" else self.norm(x)
        embedding = self.pool(x if self.config.final_norm == "aside" else tokens)  # (B, D)
        found = {"tokens": tokens, "embedding": embedding}
        if "logits" in self.outputs and self.head is not None:
            features = tokens[:, :2].flatten(1) if self.config.pool == "cls_dist_mean" else embedding
            found["logits"] = self.head(features)  # (B, num_classes)
        if "attention" in self.outputs:
            found["attention"] = self.class_attention(last_input, rotation)
        return tuple(found[name] for name in self.outputs)

    def pool(self, tokens: Tensor) -> Tensor:
        """The image representation y (eq. 4), (B, `config.embedding_dim`)."""
        pool, prefix = self.config.pool, self.config.num_prefix
        if self.attn_pool is not None:
            embedding = self.attn_pool(tokens)
        elif pool == "cls":
            embedding = tokens.select(1, 0)
        elif pool == "mean":
            embedding = tokens[:, prefix:].mean(dim=1)
        elif pool == "mean_all":
            embedding = tokens.mean(dim=1)
        elif pool == "cls_mean":
            embedding = torch.cat([tokens.select(1, 0), tokens[:, prefix:].mean(dim=1)], dim=1)
        elif pool == "cls_dist":
            embedding = tokens[:, :2].flatten(1)
        else:
            embedding = tokens[:, :2].mean(dim=1)
        if self.config.final_norm == "pooled":
            embedding = self.norm(embedding)
        return embedding if self.pre_logits is None else self.pre_logits(embedding).tanh()

    def class_attention(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        """How the last block's class token attends to each patch, by head, (B, H, N); x is that block's input."""
        block = self.blocks[-1]
        assert isinstance(block, Block)
        q, k, _ = block.attn.heads(block.norm1(x), rotation)
        bias = block.attn.rel_pos_bias
        weights = attention_weights(q.narrow(2, 0, 1), k, None if bias is None else bias.narrow(2, 0, 1))
        return weights.select(2, 0)[:, :, self.config.num_prefix :]


def grid_of(pixel_values: Tensor, config: ViTConfig) -> tuple[int, int]:
    """Patches down and across in these images."""
    return pixel_values.shape[2] // config.patch_size, pixel_values.shape[3] // config.patch_size


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
