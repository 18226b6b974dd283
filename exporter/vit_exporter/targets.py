"""What a file is made for: the passes of each target, in their order, and the precisions that pay there.

A pass is in a target's list if the engine is no slower with it, measured (docs/performance.md): fused attention is for onnxruntime alone,
LayerNorm's scale and shift stay where they are everywhere. All passes here are exact; reduced precision comes after them.
No GPU has timed the passes of `cuda` and `tensorrt`: they are those that leave less to compute, and the one op that CUDA has a kernel for.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from vit_exporter.passes.fold_attention_scale import FoldAttentionScale
from vit_exporter.passes.fold_layer_scale import FoldLayerScale
from vit_exporter.passes.fold_normalization import FoldNormalization
from vit_exporter.passes.fold_prefix_tokens import FoldPrefixTokens
from vit_exporter.passes.fold_weight_transposes import FoldWeightTransposes
from vit_exporter.passes.fuse_attention import FuseAttention
from vit_exporter.passes.fuse_multi_head_attention import FuseMultiHeadAttention
from vit_exporter.passes.prune_last_block import PruneLastBlock
from vit_exporter.passes.simplify import Simplify
from vit_exporter.passes.unpack_heads import UnpackHeads
from vit_runtime.errors import InputError
from vit_runtime.preprocess import Preprocessing

SIMULATION = "simulation"  # what reports name in a provider's place


@dataclass(frozen=True)
class Target:
    """A target, the provider that runs its files best, the opset that it is written in by default, and its precisions."""

    name: str
    about: str
    provider: str
    opset: int
    precisions: tuple[str, ...]

    @property
    def on_gpu(self) -> bool:
        """Whether its files are made for an NVIDIA GPU: reduced precision is in the graph's types then, and simulated."""
        return self.provider in ("cuda", "tensorrt")

    def measures(self, precision: str) -> bool:
        """Whether images are looked at while the file is made, and not only when it is judged."""
        return precision == "int8-static" or (self.on_gpu and precision in ("fp16", "int8", "fp8"))

    def verifier(self, precision: str) -> str:
        """The provider that verifies its files where they are made."""
        if not self.on_gpu:
            return self.provider
        return "cpu" if precision == "fp32" else SIMULATION

    def passes(self, preprocessing: Preprocessing, precision: str = "fp32") -> list[ir.passes.PassBase]:
        """The exact passes, in this order: the folds read weights as FoldWeightTransposes leaves them, and go before what fuses.

        For static scales queries, keys and values are taken apart everywhere: packed, they would have one scale for all. In 16 bits
        attention is fused after the graph has its types: where its scores need float32, it stays spelled out.
        """
        first: list[ir.passes.PassBase] = [Simplify(), FoldWeightTransposes(), FoldPrefixTokens(), FoldLayerScale(), FoldAttentionScale()]
        if self.name == "portable":
            return [*first, UnpackHeads() if precision == "int8-static" else FuseAttention()]
        normalization = FoldNormalization(preprocessing.rescale, preprocessing.mean, preprocessing.std)
        own = [normalization, UnpackHeads(), PruneLastBlock()]
        fused = self.name == "cpu" or (self.name, precision) == ("cuda", "fp32")
        return [*first, *own, *([FuseMultiHeadAttention()] if fused else [])]


# torch's exporter writes opset 18 and later; 18 is what the oldest runtimes read. From 20 on GELU is one op.
TARGETS = {
    target.name: target
    for target in (
        Target("portable", "standard ops, runs everywhere", "cpu", 18, ("fp32", "fp16", "int8", "int8-static")),
        Target("cpu", "onnxruntime on a CPU", "cpu", 20, ("fp32", "fp16", "int8", "int4w")),
        Target("openvino", "OpenVINO on a CPU", "openvino", 20, ("fp32", "fp16", "bf16", "int8", "int8-static")),
        Target("cuda", "onnxruntime on an NVIDIA GPU", "cuda", 20, ("fp32", "fp16", "bf16")),
        Target("tensorrt", "TensorRT 10 and 11", "tensorrt", 20, ("fp32", "fp16", "bf16", "int8", "fp8")),
    )
}
DEFAULT_TARGET = "portable"

PRECISIONS = {
    "fp32": "float32",
    "fp16": "weights stored in float16",
    "bf16": "weights stored in bfloat16, computed in it where the CPU can",
    "int8": "weights in int8, inputs of products quantised as the network runs",
    "int8-static": "weights and inputs of products in int8, scales from calibration images",
    "int4w": "weights in 4 bits, for the smallest file",
    "fp8": "linear layers in float8, scales from calibration images, the rest in float16",
}


def find_target(name: str) -> Target:
    """The target of that name. Raises: InputError with the known ones and the nearest."""
    if name not in TARGETS:
        nearest = difflib.get_close_matches(name.lower(), TARGETS, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise InputError(f"got target {name!r}, expected one of {', '.join(TARGETS)}{hint}")
    return TARGETS[name]


def check_precision(target: Target, precision: str) -> None:
    """Raises: InputError for a precision that the target has not, with those that it has."""
    if precision not in target.precisions:
        others = [other.name for other in TARGETS.values() if precision in other.precisions]
        instead = f"; --target {' or '.join(others)} has it" if others else ""
        raise InputError(f"got precision {precision!r} for target {target.name}, expected one of {', '.join(target.precisions)}{instead}")


def check_split(target: Target, rows: Sequence[int], tokens: int) -> None:
    """Raises: InputError for pieces that are not those of the network's tokens, or a target that they are not for."""
    if rows and target.name != "openvino":
        raise InputError(f"got --token-split for target {target.name}, expected it with --target openvino, the only one that it pays on")
    if rows and (sum(rows) != tokens or min(rows) < 1):
        raise InputError(
            f"got --token-split {','.join(map(str, rows))}, expected whole numbers that add up to the network's {tokens} tokens"
        )
