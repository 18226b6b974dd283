"""What a graph does with the tokens after the blocks: the last norm, pooling, pre-logits and head.

Pooling is told by what it computes: random tokens are sent through the graph's slices and means and held against each way to pool.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from vit_models.checkpoints.onnx_graph.blocks import Blocks, Numbers
from vit_models.checkpoints.onnx_graph.dataflow import Dataflow, evaluate
from vit_models.checkpoints.onnx_graph.kernels import MOVEMENTS
from vit_models.checkpoints.onnx_graph.probe import Probe, find_probe
from vit_models.checkpoints.onnx_graph.value import Value, same_rows
from vit_models.checkpoints.onnx_graph.views import scaling
from vit_models.config import FinalNorm, Pool
from vit_models.errors import CheckpointError

Way = Pool | Literal["dist"]

# What may stand between tokens and their pooled representation.
POOLING = MOVEMENTS | {"ReduceMean", "ReduceSum", "Concat", "Mul", "Div", "Add"}
# What may follow a head without making it another one.
AFTER_HEAD = frozenset({"Softmax", "Sigmoid", "ArgMax", "TopK", "LogSoftmax", "Cast"})


@dataclass(frozen=True)
class Tail:
    """How the network ends. `head` has one Linear, or the class and the distillation token's; `outputs` says which value is which output.

    `ended` is whether the graph itself ends here, or goes on with what is not recovered.
    """

    pool: Pool
    final_norm: FinalNorm
    norm: Value | None
    probe: Probe | None = None
    pre_logits: Value | None = None
    head: tuple[Value, ...] = ()
    outputs: dict[str, Value] = field(default_factory=dict)


def read_tail(blocks: Blocks, stream: Value, prefix: int) -> Tail:
    """What follows the stream after the last block; `prefix` tokens stand before the patches."""
    flow = blocks.flow
    norms = [user for user in flow.users[stream] if user.op == "LayerNorm"]
    norm = norms[0] if norms else None
    found = list[Tail]()
    if norm is not None:
        if probe := find_probe(blocks, norm):
            found.append(_end(flow, probe.pooled, Tail("map", "tokens", norm, probe, outputs={"tokens": norm})))
        found += _ends(flow, norm, prefix, "tokens", norm, {"tokens": norm})
    tokens = {"tokens": norm or stream}
    found += _ends(flow, stream, prefix, "aside" if norm is not None else "none", norm, tokens)
    plain = Tail("cls" if prefix else "mean", "tokens" if norm is not None else "none", norm, outputs=tokens)
    return max([*found, plain], key=lambda tail: (len(tail.head), tail.probe is not None, tail.pre_logits is not None, len(tail.outputs)))


def _ends(flow: Dataflow, tokens: Value, prefix: int, final_norm: FinalNorm, norm: Value | None, outputs: dict[str, Value]) -> list[Tail]:
    """Every way on from these tokens over a pooled representation."""
    found = list[Tail]()
    pooled = _pooled(flow, tokens, prefix)
    found += _distilled(flow, pooled, final_norm, norm, outputs)
    for value, pool in pooled.items():
        if pool == "dist":
            continue
        if final_norm == "tokens":
            found.append(_end(flow, value, Tail(pool, final_norm, norm, outputs=outputs)))
            continue
        for user in flow.users[value]:
            if user.op == "LayerNorm" and pool in ("cls", "mean", "mean_all"):  # of the pooled representation alone
                found.append(_end(flow, user, Tail(pool, "pooled", user, outputs={"tokens": tokens})))
        if final_norm == "none" or any(user.op == "Linear" for user in flow.users[value]):
            found.append(_end(flow, value, Tail(pool, final_norm, norm, outputs=outputs)))
    return found


def _end(flow: Dataflow, embedding: Value, tail: Tail) -> Tail:
    """The tail with what follows its pooled representation."""
    pre_logits, outputs = None, {**tail.outputs, "embedding": embedding}
    for user in flow.users[embedding]:
        if user.op == "Linear" and (tanh := [each for each in flow.users[user] if each.op == "Tanh"]):
            pre_logits, outputs["embedding"] = user, tanh[0]
    for user in flow.users[outputs["embedding"]]:
        if user.op == "Linear" and user is not pre_logits and _is_end(flow, user):
            return replace(tail, pre_logits=pre_logits, head=(user,), outputs={**outputs, "logits": user})
    if pre_logits is not None and not _is_end(flow, outputs["embedding"]):
        return replace(tail, outputs={**tail.outputs, "embedding": embedding})
    return replace(tail, pre_logits=pre_logits, outputs=outputs)


def _distilled(
    flow: Dataflow, pooled: dict[Value, Way], final_norm: FinalNorm, norm: Value | None, outputs: dict[str, Value]
) -> list[Tail]:
    """The mean of two heads, one on the class and one on the distillation token (DeiT, sec. 4)."""
    for value in flow.live:
        halved = scaling(value)
        if halved is None or halved[1] != 0.5 or halved[0].op != "Add" or not _is_end(flow, value):
            continue
        heads = halved[0].inputs
        kinds = [pooled.get(head.inputs[0]) for head in heads if head.op == "Linear"]
        if sorted(kind or "" for kind in kinds) == ["cls", "dist"]:
            ordered = heads if kinds[0] == "cls" else heads[::-1]
            return [Tail("cls_dist_mean", final_norm, norm, head=ordered, outputs={**outputs, "logits": value})]
    return []


def _is_end(flow: Dataflow, value: Value) -> bool:
    """Whether the graph puts it out, or only makes probabilities of it."""
    if value in flow.outputs:
        return True
    users = flow.users[value]
    return (
        bool(users)
        and all(user.op in AFTER_HEAD or (user.op == "Reshape" and same_rows(user) is value) for user in users)
        and all(_is_end(flow, user) for user in users)
    )


def _pooled(flow: Dataflow, tokens: Value, prefix: int) -> dict[Value, Way]:
    """The values that are the tokens pooled, (B, width), each with its kind; "dist" is the distillation token alone."""
    shape = tokens.sizes
    numbers = np.random.default_rng(0).standard_normal(shape)
    ways = _ways(numbers, prefix)
    found: dict[Value, Way] = {}
    reached = {tokens}
    for value in flow.live:
        if value in reached or value.op not in POOLING or not any(arg in reached for arg in value.inputs):
            continue
        if not all(arg in reached or arg.constant for arg in value.inputs) or value.shape is None:
            continue
        reached.add(value)
        if len(value.shape) == 2:
            try:
                result = evaluate(value, {tokens: numbers})
            except CheckpointError:
                continue  # of weights, which are not read here: then it is none of these
            for kind, expected in ways.items():
                if result.shape == expected.shape and np.allclose(result, expected, rtol=0, atol=1e-6):
                    found[value] = kind
                    break
    return found


def _ways(tokens: Numbers, prefix: int) -> dict[Way, Numbers]:
    mean = tokens[:, prefix:].mean(axis=1)
    ways: dict[Way, Numbers] = {"mean": mean, "mean_all": tokens.mean(axis=1)}
    if prefix:
        ways["cls"] = tokens[:, 0]
        ways["cls_mean"] = np.concatenate([tokens[:, 0], mean], axis=1)
    if prefix > 1:
        ways["dist"] = tokens[:, 1]
        ways["cls_dist"] = tokens[:, :2].reshape(len(tokens), -1)
    return ways
