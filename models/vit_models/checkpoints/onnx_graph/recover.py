"""From the recognised structure to the network's configuration and parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from vit_models.checkpoints import repairs
from vit_models.checkpoints.onnx_graph.blocks import Block, unexpected
from vit_models.checkpoints.onnx_graph.dataflow import resize_method
from vit_models.checkpoints.onnx_graph.kernels import Array
from vit_models.checkpoints.onnx_graph.probe import Probe
from vit_models.checkpoints.onnx_graph.steps import Named, averaged, constant, linear, made, mixed, norm, projected, vector
from vit_models.checkpoints.onnx_graph.structure import Structure
from vit_models.checkpoints.onnx_graph.value import Value, ancestors
from vit_models.checkpoints.plan import CheckpointFile, Options, Plan, Step
from vit_models.config import ViTConfig
from vit_models.errors import CheckpointError

ARITHMETIC = "a number of the graph's own arithmetic"
AFTER = "used after the transformer, by what the network does not have"
MAX_EXPANDED = 1 << 28  # numbers in a bias that is given for all heads and pairs of tokens


def make_plan(file: CheckpointFile, structure: Structure, options: Options) -> Plan:
    """The plan for a recognised structure. Raises: CheckpointError for what the network cannot express."""
    config = _config(structure)
    if config.rel_pos_bias and options.img_size not in (None, config.img_size):
        raise CheckpointError(f"got image size {options.img_size} for a graph with a bias on its scores that fits {config.img_size} only")
    steps = dict(_steps(structure, config))
    used = {name for step in steps.values() for name in step.sources}
    left = _left_out(structure)
    after = _stored(left) - _stored(structure.tail.outputs.values())
    ignored = {name: AFTER if name in after else ARITHMETIC for name in file.tensors if name not in used}
    notes = list[str]()
    if structure.table is None and options.img_size not in (None, config.img_size):
        notes.append("the graph does not say how its positions follow another image size: they are resampled as Hugging Face does")
    if left:
        what = f"what follows the transformer, from the node {left[0]} on"
        notes.append(f"{what}, is left out (nodes: {len(left)}, tensors: {sum(name in after for name in ignored)})")
    return Plan(config, steps, ignored, notes=tuple(notes), run_size=file.extras["img_size"])


def _stored(values: Iterable[Value]) -> set[str]:
    """The stored tensors that these values are made of."""
    return {value.stored.name for value in ancestors(values) if value.stored is not None}


def _left_out(structure: Structure) -> list[Value]:
    """What the graph's outputs need beyond the network's own, sources first."""
    ends = frozenset(structure.tail.outputs.values())
    known = set(ancestors(ends))
    return [value for value in ancestors(structure.flow.outputs, ends) if value not in known and not value.constant]


# --- the configuration ------------------------------------------------------------------------------------------------------------------


def _config(structure: Structure) -> ViTConfig:
    """The network's configuration, with the image size of the stored positions. Raises: CheckpointError, ConfigError."""
    blocks, tail, patch = structure.blocks, structure.tail, structure.patch_size
    kinds = {_kind(block) for block in blocks}
    if len(kinds) != 1:
        raise CheckpointError(f"got blocks of {len(kinds)} kinds, expected one (heads, MLP width, activation, gate, norms) in all of them")
    first = blocks[0]
    weight = structure.conv.inputs[1].sizes
    grid = structure.grid if structure.table is None else structure.table.inputs[0].sizes[2:]
    head = [value.sizes[-1] for value in tail.head]
    return ViTConfig(
        img_size=(grid[0] * patch, grid[1] * patch),
        patch_size=patch,
        in_chans=weight[1],
        embed_dim=weight[0],
        depth=len(blocks),
        num_heads=first.attention.queries.rows.shape[0],
        mlp_dim=first.mlp.inner[0].rows.shape[1],
        num_classes=head[0] if head else 0,
        class_token=structure.prefix > 0,
        distilled="dist" in tail.pool,
        num_registers=max(0, structure.prefix - (2 if "dist" in tail.pool else 1)),
        pool=tail.pool,
        representation_size=tail.pre_logits.sizes[-1] if tail.pre_logits is not None else None,
        layer_norm_eps=_eps(structure),
        resample="bicubic" if structure.table is None else resize_method(structure.table),
        rel_pos_bias=any(block.attention.bias is not None for block in blocks),
        pre_norm=structure.pre_norm is not None,
        qk_norm=first.attention.queries.norm is not None,
        layer_scale=any(block.factor1 is not None or block.factor2 is not None for block in blocks),
        activation=first.mlp.activation,
        gated_mlp=len(first.mlp.inner) == 2,
        final_norm=tail.final_norm,
        projection=bool(tail.head) and all(value.arg(2) is None for value in tail.head),  # a classifier has a bias
    )


def _kind(block: Block) -> tuple[object, ...]:
    """What has to be the same in all blocks."""
    attention, mlp = block.attention, block.mlp
    queries, keys, values = attention.queries, attention.keys, attention.values
    if {keys.rows.shape, values.rows.shape} != {queries.rows.shape} or (keys.norm is None) != (queries.norm is None):
        unexpected(attention.softmax, "queries, keys and values of equally many heads, and both queries and keys normalised or neither")
    return queries.rows.shape, queries.norm is None, len(mlp.inner), mlp.inner[0].rows.shape, mlp.activation


def _eps(structure: Structure) -> float:
    """The epsilon of every LayerNorm, which the network has once, as it was written before it became a float32."""
    tail = structure.tail
    norms = [structure.pre_norm, tail.norm, tail.probe.norm if tail.probe else None]
    for block in structure.blocks:
        norms += [block.norm1, block.norm2, block.attention.queries.norm, block.attention.keys.norm]
    found = {float(f"{value.attributes['eps']:.6g}") for value in norms if value is not None}
    if len(found) != 1:
        raise CheckpointError(f"got LayerNorms with the epsilons {', '.join(map(str, sorted(found)))}, expected the same in all of them")
    return found.pop()


# --- the parameters ---------------------------------------------------------------------------------------------------------------------


def _steps(structure: Structure, config: ViTConfig) -> Named:
    tail = structure.tail
    yield from _embeddings(structure, config)
    if structure.pre_norm is not None:
        yield from norm("pre_norm", structure.pre_norm)
    for number, block in enumerate(structure.blocks):
        yield from ((f"blocks.{number}.{name}", step) for name, step in _block(block, config))
    if tail.norm is not None:
        yield from norm("norm", tail.norm)
    if tail.probe is not None:
        yield from ((f"attn_pool.{name}", step) for name, step in _probe(tail.probe, config))
    if tail.pre_logits is not None:
        yield from linear("pre_logits", tail.pre_logits)
    if tail.head:
        yield from linear("head", tail.head[0]) if len(tail.head) == 1 else averaged("head", tail.head)


def _embeddings(structure: Structure, config: ViTConfig) -> Named:
    """The patches' Linear, and what the graph makes of an image whose patches are all zeros: tokens and positions, added up."""
    conv, embedded, prefix = structure.conv, structure.embedded, structure.prefix
    yield "embeddings.patch_embed.proj.weight", constant(conv.inputs[1])
    yield "embeddings.patch_embed.proj.bias", vector(conv.arg(2), config.embed_dim, 0.0)
    empty = {conv: np.zeros(conv.sizes, np.float32)}

    def rows(start: int, stop: int) -> Step:
        return made(lambda tokens: tokens[:1, start:stop], embedded, bound=empty)

    counts = {"cls_token": int(config.class_token), "dist_token": int(config.distilled), "register_tokens": config.num_registers}
    start = 0
    for name, count in counts.items():
        if count:
            yield f"embeddings.{name}", rows(start, start + count)
            start += count

    def positions(tokens: Array, table: Array | None = None, resampled: Array | None = None) -> Array:
        found = tokens[0, prefix:]
        if table is not None and resampled is not None:
            largest = float(np.abs(found).max())
            if not np.allclose(_as_rows(resampled), found, rtol=0, atol=1e-5 * largest):
                unexpected(embedded, "no more to be added to the patches than the positions that are resampled")
            found = _as_rows(table)
        return np.concatenate([np.zeros((prefix, config.embed_dim)), found])[None]  # the tokens before the patches have theirs in them

    tables = () if structure.table is None else (structure.table.inputs[0], structure.table)
    yield "embeddings.pos_embed", made(positions, embedded, *tables, bound=empty)


def _as_rows(table: Array) -> Array:
    """A table (1, D, h, w) as (h * w, D)."""
    return table[0].reshape(table.shape[1], -1).T


def _block(block: Block, config: ViTConfig) -> Named:
    attention = block.attention
    yield from norm("norm1", block.norm1)
    yield from norm("norm2", block.norm2)
    usual = config.head_dim**-0.5
    factor = 1.0 if math.isclose(attention.scale, usual, rel_tol=1e-5) else attention.scale / usual
    norms = attention.queries.norm, attention.keys.norm
    if factor != 1 and norms[0] is not None:
        unexpected(attention.softmax, "scores of normalised queries scaled by one over the root of the heads' width")
    yield from projected("attn.qkv", ((attention.queries, factor), (attention.keys, 1.0), (attention.values, 1.0)))
    for name, value in zip(("attn.q_norm", "attn.k_norm"), norms, strict=True):
        if value is not None:
            yield from norm(name, value)
    yield from mixed("attn.proj", attention.proj, attention.columns)
    if config.rel_pos_bias:
        yield "attn.rel_pos_bias", _bias(block, config)
    yield from projected("mlp.fc1", [(inner, 1.0) for inner in block.mlp.inner])
    yield from linear("mlp.fc2", block.mlp.fc2)
    if config.layer_scale:
        yield "ls1.gamma", vector(block.factor1, config.embed_dim, 1.0)
        yield "ls2.gamma", vector(block.factor2, config.embed_dim, 1.0)


def _bias(block: Block, config: ViTConfig) -> Step:
    shape = (1, config.num_heads, config.num_tokens, config.num_tokens)
    if math.prod(shape) > MAX_EXPANDED:
        unexpected(block.attention.softmax, f"a bias of at most {MAX_EXPANDED} numbers")
    given = block.attention.bias
    return made(lambda *bias: np.broadcast_to(bias[0] if bias else np.float32(0), shape), *([given] if given is not None else []))


def _probe(probe: Probe, config: ViTConfig) -> Named:
    """The queries as the bias of their Linear, with the scale that the network will take away again."""
    width, factor = config.embed_dim, probe.scale * config.head_dim**0.5
    yield "probe", Step((), lambda: repairs.zeros(1, 1, width))
    yield "q.weight", Step((), lambda: repairs.zeros(width, width))
    yield "q.bias", made(lambda queries: np.ravel(queries) * factor, probe.queries)
    yield from projected("kv", ((probe.keys, 1.0), (probe.values, 1.0)))
    yield from mixed("proj", probe.proj, probe.columns)
    yield from norm("norm", probe.norm)
    yield from projected("mlp.fc1", [(inner, 1.0) for inner in probe.mlp.inner])
    yield from linear("mlp.fc2", probe.mlp.fc2)
