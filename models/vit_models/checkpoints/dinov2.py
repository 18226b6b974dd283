"""facebookresearch/dinov2: names as in `facebook.py`, and what is its own.

| DINOv2 | here |
| --- | --- |
| blocks.1.3, of `block_chunks`: chunk 1, and block 3 of the whole network | blocks.3 |
| register_tokens; they have no row in pos_embed | embeddings.register_tokens; rows of zeros |
| mlp.w12, mlp.w3 (SwiGLU, the activated half of w12 first) | mlp.fc1, .fc2 |
| mask_token, (1, D) | left out: only training masks patches |
| backbone.*, dino_head.*, ibot_head.* of a teacher's checkpoint | the backbone |
| backbone.*, linear_head of a classifier | the backbone and the head |

eps is 1e-6, GELU the exact one. `interpolate_pos_encoding` resamples the square table as its constructor says, which the file does
not: the published networks without registers by a scale factor of (new + 0.1) / old, those with registers to the size, with antialias.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from vit_models.checkpoints import bare, facebook, repairs
from vit_models.checkpoints.bare import Sizes
from vit_models.checkpoints.imagenet import imagenet_labels
from vit_models.checkpoints.plan import CheckpointFile, Options, Plan, Step, take
from vit_models.checkpoints.preprocessing import recipe
from vit_models.config import Resample, ViTConfig
from vit_models.errors import OptionError

NAME = "dinov2"
TITLE = "facebookresearch DINOv2"

_PUBLISHED: Mapping[str, Sizes] = {
    "dinov2_vits14": Sizes(14, 384, 12, 1536),
    "dinov2_vitb14": Sizes(14, 768, 12, 3072),
    "dinov2_vitl14": Sizes(14, 1024, 24, 4096),
    "dinov2_vitg14": Sizes(14, 1536, 40, 4096),
}
ARGUMENTS: bare.Known = {
    **dict.fromkeys(("num_heads", "patch_size", "embed_dim", "depth", "num_register_tokens", "block_chunks"), bare.whole_number),
    "interpolate_antialias": bare.flag,
    "interpolate_offset": bare.number,
}
# (interpolate_antialias, interpolate_offset)
RESAMPLE: Mapping[tuple[bool, float], Resample] = {
    (False, 0.1): "bicubic_offset",
    (True, 0.0): "bicubic_antialias",
    (False, 0.0): "bicubic",
}


def recognise(file: CheckpointFile) -> bool:
    """Whether this has DINOv2's class token, positions, and mask or register tokens."""
    prefix = facebook.prefix_of(file)
    names = file.tensors.keys()
    masks = f"{prefix}mask_token" in names and len(file.shape(f"{prefix}mask_token")) == 2
    own = masks or f"{prefix}register_tokens" in names
    return own and {f"{prefix}cls_token", f"{prefix}pos_embed"} <= names and file.container != "onnx"


def plan(file: CheckpointFile, options: Options) -> Plan:
    """How a DINOv2 state dict becomes the network.

    Raises: CheckpointError, also to ask for the number of heads, and for a classifier that reads several blocks.
    """
    given = bare.arguments(TITLE, options, ARGUMENTS)
    prefix = facebook.prefix_of(file)
    blocks = facebook.blocks_of(file, prefix)
    width, channels, patch_size = facebook.patch_embed_of(file, prefix)
    gated = f"{blocks[0]}.mlp.w12.weight" in file.tensors
    fc1 = bare.shape(file, f"{blocks[0]}.mlp.{'w12' if gated else 'fc1'}.weight", "mlp_dim", "width")[0]
    sizes = Sizes(patch_size, width, len(blocks), fc1 // 2 if gated else fc1)
    registers = f"{prefix}register_tokens"
    num_registers = bare.shape(file, registers, "1", "registers", "width")[1] if registers in file.tensors else 0
    head, num_classes, pool = facebook.head_of(file, prefix, width)
    archs = {f"{name}_reg" if num_registers == 4 else name: known for name, known in _PUBLISHED.items() if num_registers in (0, 4)}
    arch = bare.known_arch(options, sizes, archs)
    config = ViTConfig(
        img_size=bare.trained_size(facebook.positions_of(file, prefix), patch_size, options),
        patch_size=patch_size,
        embed_dim=width,
        depth=len(blocks),
        num_heads=bare.num_heads(sizes, given),
        mlp_dim=sizes.mlp_dim,
        num_classes=num_classes,
        pool=pool,
        in_chans=channels,
        num_registers=num_registers,
        resample=_resample(given, num_registers),
        layer_scale=facebook.has_layer_scale(file, blocks),
        activation="silu" if gated else "gelu",
        gated_mlp=gated,
    )
    chunks = {block.removeprefix(prefix).split(".")[1] for block in blocks if block.removeprefix(prefix).count(".") == 2}
    told = {"patch_size": patch_size, "embed_dim": width, "depth": len(blocks), "num_register_tokens": num_registers}
    bare.check_told(given, told | {"block_chunks": len(chunks)})
    masks = {name: "only training masks patches" for name in (f"{prefix}mask_token",) if name in file.tensors}
    return Plan(
        config,
        _steps(file, prefix, blocks, config, head),
        masks | facebook.projection_heads(file),
        labels=imagenet_labels() if num_classes == 1000 else None,
        preprocessing=recipe("imagenet", options.img_size or config.img_size, channels),
        arch=arch,
    )


def _resample(given: Mapping[str, Any], num_registers: int) -> Resample:
    way = given.get("interpolate_antialias", num_registers > 0), given.get("interpolate_offset", 0.0 if num_registers else 0.1)
    if way not in RESAMPLE:
        known = "; ".join(f"{antialias} with {offset}" for antialias, offset in RESAMPLE)
        raise OptionError(f"got interpolate_antialias={way[0]} with interpolate_offset={way[1]}, expected one of: {known}")
    return RESAMPLE[way]


def _steps(file: CheckpointFile, prefix: str, blocks: tuple[str, ...], config: ViTConfig, head: str) -> dict[str, Step]:
    gated = {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"} if config.gated_mlp else {}
    steps = facebook.tower(file, prefix, blocks, config, {**facebook.LINEAR, **gated}) | facebook.layer("norm", f"{prefix}norm")
    steps["embeddings.pos_embed"] = take(f"{prefix}pos_embed")
    if config.num_registers:
        rows = partial(repairs.with_zero_rows, at=1, count=config.num_registers)
        steps["embeddings.pos_embed"] = Step((f"{prefix}pos_embed",), rows)
        steps["embeddings.register_tokens"] = take(f"{prefix}register_tokens")
    return steps | (facebook.layer("head", head) if head else {})
