"""Where each parameter of the network lies in timm's weights, by `Names`."""

from __future__ import annotations

from functools import partial

from vit_models.checkpoints import repairs
from vit_models.checkpoints.plan import Step, take
from vit_models.checkpoints.timm import positions
from vit_models.checkpoints.timm.network import Names, Turn
from vit_models.config import ViTConfig

Grid = tuple[int, int]


def steps_of(config: ViTConfig, names: Names, stored: Grid, prefix: str = "") -> dict[str, Step]:
    """Every parameter of `ViT(config)`; `stored` is the grid of the tables of positions, `prefix` stands before all names."""
    width = config.embed_dim
    found = {"embeddings.patch_embed.proj.weight": take(f"{prefix}patch_embed.proj.weight")}
    found["embeddings.patch_embed.proj.bias"] = take(f"{prefix}patch_embed.proj.bias") if names.patch_bias else _zeros(width)
    if config.class_token:
        found["embeddings.cls_token"] = take(f"{prefix}cls_token")
    if config.distilled:
        found["embeddings.dist_token"] = take(f"{prefix}dist_token")
    if config.num_registers:
        found["embeddings.register_tokens"] = take(f"{prefix}reg_token")
    if config.pos_embed:
        found["embeddings.pos_embed"] = _positions(config, names, stored, f"{prefix}pos_embed")
    if names.turn is not None:
        angles = partial(repairs.inv_freq_of_temperature, names.turn.temperature, names.turn.scale, config.head_dim // 4)
        found["rope.inv_freq"] = Step((), angles)
    found |= _layer("pre_norm", f"{prefix}norm_pre") if config.pre_norm else {}
    for index in range(config.depth):
        found |= _block(config, names, stored, f"blocks.{index}", prefix)
    found |= _layer("norm", prefix + names.norm) if config.final_norm != "none" else {}
    if config.pool == "map":
        found["attn_pool.probe"] = take(f"{prefix}attn_pool.latent")
        for name in ("q", "kv", "proj", "norm", "mlp.fc1", "mlp.fc2"):
            found |= _layer(f"attn_pool.{name}", f"{prefix}attn_pool.{name}")
    if config.num_classes and config.distilled:
        found["head.weight"] = Step((f"{prefix}head.weight", f"{prefix}head_dist.weight"), repairs.average_heads)
        found["head.bias"] = Step((f"{prefix}head.bias", f"{prefix}head_dist.bias"), repairs.mean_of)
    elif config.num_classes:
        found |= _layer("head", f"{prefix}head")
    return found


def _block(config: ViTConfig, names: Names, stored: Grid, target: str, prefix: str) -> dict[str, Step]:
    width, source = config.embed_dim, f"{prefix}{target}."
    order = None if names.turn is None else _order(names.turn, config.head_dim)
    rows = config.mlp_dim * (2 if config.gated_mlp else 1)
    found = _layer("norm1", f"{source}norm1") | _layer("norm2", f"{source}norm2")
    if names.relative:
        tables = tuple((source if name.startswith("attn.") else prefix) + name for name in names.relative)
        found["attn.rel_pos_bias"] = Step(tables, partial(positions.bias, stored, config.grid_size))
    for part, parts in (("weight", names.qkv), ("bias", names.qkv_bias)):
        step = _packed(tuple(source + name for name in parts), 3 * width)
        found[f"attn.qkv.{part}"] = Step(step.sources, partial(repairs.reordered_heads, order, step.repair)) if order and parts else step
        if config.qk_norm:
            repair = partial(repairs.reordered, order) if order else repairs.as_is
            found |= {f"attn.{layer}.{part}": Step((f"{source}attn.{layer}.{part}",), repair) for layer in ("q_norm", "k_norm")}
        found[f"mlp.fc1.{part}"] = _packed(tuple(f"{source}{name}.{part}" for name in names.fc1), rows)
    found |= _layer("attn.norm", f"{source}attn.norm") if config.attn_norm else {}
    found |= _layer("mlp.norm", f"{source}mlp.norm") if config.mlp_norm else {}
    found |= _layer("attn.proj", f"{source}attn.proj") | _layer("mlp.fc2", f"{source}mlp.fc2")
    if not names.linear_bias:
        found |= {"attn.proj.bias": _zeros(width), "mlp.fc1.bias": _zeros(rows), "mlp.fc2.bias": _zeros(width)}
    if config.layer_scale:
        found |= {f"{name}.gamma": take(source + scale) for name, scale in zip(("ls1", "ls2"), names.scales, strict=True)}
    return {f"{target}.{name}": step for name, step in found.items()}


def _packed(sources: tuple[str, ...], rows: int) -> Step:
    """One tensor made of those, of two or three packed ones, or of queries' and values' biases; zeros of none."""
    if len(sources) == 2 and sources[0].endswith(("q_bias", "q_proj.bias")):
        return Step(sources, repairs.pack_bias_without_key)
    return _zeros(rows) if not sources else take(sources[0]) if len(sources) == 1 else Step(sources, repairs.pack)


def _positions(config: ViTConfig, names: Names, stored: Grid, source: str) -> Step:
    missing = 0 if names.prefix_has_positions else config.num_prefix
    if stored != config.grid_size:
        return Step((source,), partial(positions.resampled, missing, stored, config.grid_size, config.resample))
    return Step((source,), partial(repairs.with_zero_rows, at=0, count=missing)) if missing else take(source)


def _order(turn: Turn, head_dim: int) -> tuple[int, ...] | None:
    """Which of a head's channels comes where, so that i and i + head_dim / 2 turn together, rows first; None if all stay."""
    half, quarter = head_dim // 2, head_dim // 4
    angles = [(index + quarter * turn.columns_first) % half for index in range(half)]
    first = [2 * angle if turn.interleaved else angle for angle in angles]
    order = (*first, *(channel + (1 if turn.interleaved else half) for channel in first))
    return None if order == tuple(range(head_dim)) else order


def _layer(target: str, source: str) -> dict[str, Step]:
    return {f"{target}.{part}": take(f"{source}.{part}") for part in ("weight", "bias")}


def _zeros(size: int) -> Step:
    return Step((), partial(repairs.zeros, size))
