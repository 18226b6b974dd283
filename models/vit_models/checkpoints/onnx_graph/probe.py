"""Pooling by a learned probe that attends to all tokens ("Scaling Vision Transformers", sec. 3.2; SigLIP), found in a graph.

The probe's queries depend on no image, so the graph has them as a constant, and what they were made of may be gone. They are recovered
as they are: as the bias of the query's Linear.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vit_models.checkpoints.onnx_graph.blocks import Blocks, Mlp, Projection, unexpected
from vit_models.checkpoints.onnx_graph.kernels import MOVEMENTS
from vit_models.checkpoints.onnx_graph.value import Value, same_rows
from vit_models.checkpoints.onnx_graph.views import Ints, view
from vit_models.errors import CheckpointError


@dataclass(frozen=True)
class Probe:
    """softmax(scale q k^T) v with constant queries, (H, 1, D_h), a Linear, and an MLP beside it; `pooled` is what comes out."""

    queries: Value
    scale: float
    keys: Projection
    values: Projection
    proj: Value
    columns: Ints
    norm: Value
    mlp: Mlp
    pooled: Value


def find_probe(blocks: Blocks, tokens: Value) -> Probe | None:
    """The pooling by a probe that reads these tokens, or None."""
    for softmax in blocks.flow.live:
        if softmax.op == "Softmax" and softmax.shape and softmax.shape[-2] == 1:
            try:
                return _probe(blocks, softmax, tokens)
            except CheckpointError:
                continue  # told as left out
    return None


def _probe(blocks: Blocks, softmax: Value, tokens: Value) -> Probe:
    product, scale, bias = blocks.scores(softmax)
    queries, k = product.inputs[0], view(product.inputs[1])
    mixed = blocks.user(softmax, "MatMul", "a product with the values")
    v, shape = view(mixed.inputs[1]), mixed.sizes
    if not queries.constant or bias is not None or v.scale != 1 or len(shape) < 3 or blocks.images != 1:
        unexpected(product, "the scores of a constant probe")
    heads, width, length = math.prod(shape[:-2]), shape[-1], (tokens.shape or (0, 0))[1]
    layout = (1, heads, length, width)
    keys = blocks.projection(k, k.index.swapaxes(-1, -2), layout)
    values = blocks.projection(v, v.index, layout)
    if keys.source is not tokens or values.source is not tokens or keys.norm is not None:
        unexpected(product, "keys and values of the tokens after the last norm")
    proj, columns = blocks.output(mixed, (1, heads, 1, width))
    added, norm, mlp = _beside(blocks, proj)
    pooled = added
    while len(pooled.sizes) != 2:
        pooled = next((user for user in blocks.flow.users[pooled] if user.op in MOVEMENTS), added)
        if pooled is added:
            unexpected(added, "the one pooled token to be taken")
    return Probe(queries, scale * k.scale, keys, values, proj, columns, norm, mlp, pooled)


def _beside(blocks: Blocks, proj: Value) -> tuple[Value, Value, Mlp]:
    """The sum of the Linear's output and of an MLP of its norm, that norm, and the MLP."""
    for added in blocks.flow.live:
        if added.op != "Add" or len(added.inputs) != 2:
            continue
        for stream, branch in (added.inputs, added.inputs[::-1]):
            fc2 = same_rows(branch)
            if same_rows(stream) is proj and fc2.op == "Linear" and fc2 is not proj:
                mlp = blocks.mlp(fc2)
                if mlp.source.op == "LayerNorm" and same_rows(mlp.source.inputs[0]) is proj:
                    return added, mlp.source, mlp
    unexpected(proj, "an MLP beside it")
