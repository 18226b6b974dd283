"""What facebookresearch's Vision Transformers (DINO, DINOv2, DINOv3, MAE) have in common: their names, which timm uses too.

| stored | here |
| --- | --- |
| cls_token, patch_embed.proj | embeddings.cls_token, .patch_embed.proj |
| blocks.0.norm1, .attn.qkv, .attn.proj, .norm2, .mlp.fc1, .mlp.fc2 | the same; a Linear without bias gets zeros |
| blocks.0.ls1.gamma, .ls2.gamma | the same |
| norm, fc_norm | norm |
| linear_head | head, on the class token and the patches' mean side by side |

In a whole training checkpoint, and with a linear classifier, the network stands below `backbone.`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

from vit_models.checkpoints import bare, repairs
from vit_models.checkpoints.plan import CheckpointFile, Step, take
from vit_models.config import Pool, ViTConfig
from vit_models.errors import CheckpointError

LINEAR: Mapping[str, str] = {name: name for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
PROJECTION = r"(dino_|ibot_)?head\.(mlp|last_layer)\..+"
PLAIN = re.compile(
    r"cls_token|pos_embed|patch_embed\.proj\.(weight|bias)|norm\.(weight|bias)"
    r"|blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)"
)


def is_plain(file: CheckpointFile, prefix: str = "", beside: str = r"(?!)") -> bool:
    """Whether the file holds a class token's Vision Transformer without a head, and nothing else but names that match `beside`."""
    names = {name.removeprefix(prefix) for name in file.tensors if not re.fullmatch(beside, name)}
    whole = {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= names and all(PLAIN.fullmatch(name) for name in names)
    return whole and file.container != "onnx" and not file.documents


def prefix_of(file: CheckpointFile) -> str:
    """What stands before the network's names."""
    return "backbone." if "backbone.cls_token" in file.tensors else ""


def blocks_of(file: CheckpointFile, prefix: str) -> tuple[str, ...]:
    """The blocks' names in order; DINOv2's `block_chunks` puts a chunk's number before the block's, which counts through all chunks.

    Raises: CheckpointError.
    """
    return bare.indexed(file, rf"({re.escape(prefix)}blocks\.(?:\d{{1,4}}\.)?(\d{{1,4}}))\.norm1\.weight")


def patch_embed_of(file: CheckpointFile, prefix: str) -> tuple[int, int, int]:
    """Width, channels and patch size. Raises: CheckpointError."""
    name = f"{prefix}patch_embed.proj.weight"
    width, channels, *patch = bare.shape(file, name, "width", "channels", "P", "P")
    return width, channels, bare.square_patch(name, *patch)


def positions_of(file: CheckpointFile, prefix: str) -> int:
    """How many patches the position table has, the class token aside. Raises: CheckpointError."""
    return bare.shape(file, f"{prefix}pos_embed", "1", "tokens", "width")[1] - 1


def has_layer_scale(file: CheckpointFile, blocks: tuple[str, ...]) -> bool:
    """Whether the branches end with a learned factor."""
    return any(f"{block}.ls1.gamma" in file.tensors for block in blocks)


def head_of(file: CheckpointFile, prefix: str, width: int) -> tuple[str, int, Pool]:
    """The classifier's name, number of classes and pooling; ("", 0, "cls") without one.

    `head` reads the class token. `linear_head` is that of the published classifiers. Raises: CheckpointError.
    """
    if any(name.startswith("linear_head.") for name in file.tensors):
        classes, inputs = bare.shape(file, "linear_head.weight", "num_classes", "width")
        if inputs != 2 * width:
            raise CheckpointError(
                f"linear_head reads {inputs} features, expected {2 * width}: class token and patch mean of the last block; "
                "one that reads several blocks needs their tokens, which this network does not put out; use the one-layer classifier"
            )
        return "linear_head", classes, "cls_mean"
    if f"{prefix}head.weight" in file.tensors:
        return f"{prefix}head", bare.shape(file, f"{prefix}head.weight", "num_classes", "width")[0], "cls"
    return "", 0, "cls"


def layer(target: str, source: str) -> dict[str, Step]:
    """A layer's weight and bias, as they are."""
    return {f"{target}.{part}": take(f"{source}.{part}") for part in ("weight", "bias")}


def tower(
    file: CheckpointFile, prefix: str, blocks: tuple[str, ...], config: ViTConfig, linear: Mapping[str, str] = LINEAR
) -> dict[str, Step]:
    """The steps of class token, patches and blocks; `linear` has the names of the blocks' Linear layers here and in the file."""
    outputs = {"attn.qkv": 3 * config.embed_dim, "mlp.fc1": config.mlp_dim * (2 if config.gated_mlp else 1)}
    steps = {"embeddings.cls_token": take(f"{prefix}cls_token")} | layer("embeddings.patch_embed.proj", f"{prefix}patch_embed.proj")
    unbiased = {name for name, source in linear.items() if not any(f"{block}.{source}.bias" in file.tensors for block in blocks)}
    for index, block in enumerate(blocks):
        target = f"blocks.{index}"
        steps |= layer(f"{target}.norm1", f"{block}.norm1") | layer(f"{target}.norm2", f"{block}.norm2")
        for name, source in linear.items():
            steps |= layer(f"{target}.{name}", f"{block}.{source}")
        for name in unbiased:
            steps[f"{target}.{name}.bias"] = Step((), partial(repairs.zeros, outputs.get(name, config.embed_dim)))
        if config.layer_scale:
            steps |= {f"{target}.{name}.gamma": take(f"{block}.{name}.gamma") for name in ("ls1", "ls2")}
    return steps


def projection_heads(file: CheckpointFile) -> dict[str, str]:
    """What of self-supervised training no image representation passes through, to be ignored."""
    return {name: "projection head of the self-supervised training" for name in file.tensors if re.fullmatch(PROJECTION, name)}
