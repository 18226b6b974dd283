"""The parameters of a network by name and shape, from its configuration alone: what a checkpoint has to provide. Needs no torch."""

from __future__ import annotations

from vit_models.config import ViTConfig

Shape = tuple[int, ...]


def parameter_shapes(config: ViTConfig) -> dict[str, Shape]:
    """Name and shape of every parameter of `ViT(config)`, in the order of its `state_dict()`."""
    d, shapes = config.embed_dim, dict[str, Shape]()
    if config.class_token:
        shapes["embeddings.cls_token"] = (1, 1, d)
    if config.distilled:
        shapes["embeddings.dist_token"] = (1, 1, d)
    if config.num_registers:
        shapes["embeddings.register_tokens"] = (1, config.num_registers, d)
    if config.pos_embed:
        shapes["embeddings.pos_embed"] = (1, config.num_tokens, d)
    shapes["embeddings.patch_embed.proj.weight"] = (d, config.in_chans, config.patch_size, config.patch_size)
    shapes["embeddings.patch_embed.proj.bias"] = (d,)
    if config.rope:
        shapes["rope.inv_freq"] = (config.head_dim // 4,)
    if config.pre_norm:
        shapes |= _norm("pre_norm", d)
    block = _block(config)
    for index in range(config.depth):
        shapes |= {f"blocks.{index}.{name}": shape for name, shape in block.items()}
    if config.final_norm != "none":
        shapes |= _norm("norm", d)
    if config.pool == "map":
        shapes["attn_pool.probe"] = (1, 1, d)
        shapes |= _linear("attn_pool.q", d, d) | _linear("attn_pool.kv", d, 2 * d) | _linear("attn_pool.proj", d, d)
        shapes |= _norm("attn_pool.norm", d) | _mlp("attn_pool.mlp", config)
    if config.representation_size:
        shapes |= _linear("pre_logits", config.pooled_dim, config.representation_size)
    if config.num_classes:
        shapes |= _linear("head", config.features_dim, config.num_classes)
    return shapes


def _block(config: ViTConfig) -> dict[str, Shape]:
    d = config.embed_dim
    shapes = _norm("norm1", d)
    if config.rel_pos_bias:
        shapes["attn.rel_pos_bias"] = (1, config.num_heads, config.num_tokens, config.num_tokens)
    shapes |= _linear("attn.qkv", d, 3 * d)
    if config.qk_norm:
        shapes |= _norm("attn.q_norm", config.head_dim) | _norm("attn.k_norm", config.head_dim)
    if config.attn_norm:
        shapes |= _norm("attn.norm", d)
    shapes |= _linear("attn.proj", d, d)
    if config.layer_scale:
        shapes["ls1.gamma"] = (d,)
    shapes |= _norm("norm2", d) | _mlp("mlp", config)
    if config.layer_scale:
        shapes["ls2.gamma"] = (d,)
    return shapes


def _mlp(name: str, config: ViTConfig) -> dict[str, Shape]:
    shapes = _linear(f"{name}.fc1", config.embed_dim, config.mlp_dim * (2 if config.gated_mlp else 1))
    if config.mlp_norm:
        shapes |= _norm(f"{name}.norm", config.mlp_dim)
    return shapes | _linear(f"{name}.fc2", config.mlp_dim, config.embed_dim)


def _linear(name: str, inputs: int, outputs: int) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
