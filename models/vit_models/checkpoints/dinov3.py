"""facebookresearch/dinov3: rotary positions in place of a table; names as in `facebook.py`, and what is its own.

| DINOv3 | here |
| --- | --- |
| storage_tokens | embeddings.register_tokens |
| rope_embed.periods, (head_dim / 4,): the angle is 2 pi * coordinate / period | rope.inv_freq = 2 pi / period |
| blocks.0.attn.qkv.bias * .bias_mask, which is 0 for the keys | blocks.0.attn.qkv.bias |
| mlp.w1, mlp.w2, mlp.w3 (SwiGLU, w1's half is activated) | mlp.fc1 packs w1 and w2; mlp.fc2 |
| mask_token, local_cls_norm | left out: only training masks patches and crops them |

The coordinates run from -1 to 1 along each axis (`pos_embed_rope_normalize_coords` "separate"), at patch centres. The periods tell the
number of heads. eps is 1e-5, that of the published `layernormbf16`; GELU is the exact one. There is no size that it was trained at to
be read, and none is needed: 224 where the user says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from vit_models.checkpoints import bare, facebook, repairs
from vit_models.checkpoints.bare import Sizes
from vit_models.checkpoints.imagenet import imagenet_labels
from vit_models.checkpoints.plan import CheckpointFile, Options, Plan, Step, take
from vit_models.checkpoints.preprocessing import recipe
from vit_models.config import Rope, ViTConfig
from vit_models.errors import CheckpointError

NAME = "dinov3"
TITLE = "facebookresearch DINOv3"

ARCHS: Mapping[str, Sizes] = {
    "dinov3_vits16": Sizes(16, 384, 12, 1536),
    "dinov3_vitb16": Sizes(16, 768, 12, 3072),
    "dinov3_vitl16": Sizes(16, 1024, 24, 4096),
}
GATED_ARCHS: Mapping[str, Sizes] = {
    "dinov3_vits16plus": Sizes(16, 384, 12, 1536),
    "dinov3_vitl16plus": Sizes(16, 1024, 24, 4096),
    "dinov3_vith16plus": Sizes(16, 1280, 32, 5120),
    "dinov3_vit7b16": Sizes(16, 4096, 40, 8192),
}
EPS = {"layernormbf16": 1e-5, "layernorm": 1e-6}


def _norm_layer(text: str) -> float:
    if text not in EPS:
        raise ValueError(f"one of {', '.join(EPS)}; this network has no other norm")
    return EPS[text]


ARGUMENTS: bare.Known = {
    **dict.fromkeys(("num_heads", "patch_size", "embed_dim", "depth", "n_storage_tokens"), bare.whole_number),
    "norm_layer": _norm_layer,
}


def recognise(file: CheckpointFile) -> bool:
    """Whether this has DINOv3's rotary periods and a class token."""
    prefix = facebook.prefix_of(file)
    return {f"{prefix}cls_token", f"{prefix}rope_embed.periods"} <= file.tensors.keys() and file.container != "onnx"


def plan(file: CheckpointFile, options: Options) -> Plan:
    """How a DINOv3 state dict becomes the network.

    Raises: CheckpointError, also for a network that norms class token and patches apart.
    """
    given = bare.arguments(TITLE, options, ARGUMENTS)
    prefix = facebook.prefix_of(file)
    if f"{prefix}cls_norm.weight" in file.tensors:
        raise CheckpointError(
            f"{prefix}cls_norm norms the class token apart from the patches (untie_cls_and_patch_norms), expected one norm for all; "
            "this network has no second one"
        )
    blocks = facebook.blocks_of(file, prefix)
    width, channels, patch_size = facebook.patch_embed_of(file, prefix)
    gated = f"{blocks[0]}.mlp.w1.weight" in file.tensors
    mlp_dim, _ = bare.shape(file, f"{blocks[0]}.mlp.{'w1' if gated else 'fc1'}.weight", "mlp_dim", "width")
    sizes = Sizes(patch_size, width, len(blocks), mlp_dim)
    (periods,) = bare.shape(file, f"{prefix}rope_embed.periods", "head_dim / 4")
    if width % (4 * periods):
        raise CheckpointError(
            f"{prefix}rope_embed.periods has {periods} periods, a quarter of a head, which width {width} is no multiple of"
        )
    registers = f"{prefix}storage_tokens"
    num_registers = bare.shape(file, registers, "1", "registers", "width")[1] if registers in file.tensors else 0
    head, num_classes, pool = facebook.head_of(file, prefix, width)
    config = ViTConfig(
        img_size=options.img_size or (224, 224),
        patch_size=patch_size,
        embed_dim=width,
        depth=len(blocks),
        num_heads=width // (4 * periods),
        mlp_dim=mlp_dim,
        num_classes=num_classes,
        pool=pool,
        layer_norm_eps=given.get("norm_layer", EPS["layernormbf16"]),
        in_chans=channels,
        num_registers=num_registers,
        pos_embed=False,
        rope=Rope(offset=0.5, span=(2.0, 2.0), start=-1.0),
        layer_scale=facebook.has_layer_scale(file, blocks),
        activation="silu" if gated else "gelu",
        gated_mlp=gated,
    )
    told = {"patch_size": patch_size, "embed_dim": width, "depth": len(blocks), "n_storage_tokens": num_registers}
    bare.check_told(given, told | {"num_heads": config.num_heads})
    return Plan(
        config,
        _steps(file, prefix, blocks, config, head),
        _ignored(file, prefix),
        labels=imagenet_labels() if num_classes == 1000 else None,
        preprocessing=recipe("imagenet", config.img_size, channels),
        arch=bare.known_arch(options, sizes, GATED_ARCHS if gated else ARCHS),
    )


def _ignored(file: CheckpointFile, prefix: str) -> dict[str, str]:
    reasons = {
        f"{prefix}mask_token": "only training masks patches",
        f"{prefix}local_cls_norm.weight": "only training has local crops",
        f"{prefix}local_cls_norm.bias": "only training has local crops",
    }
    return {name: reason for name, reason in reasons.items() if name in file.tensors} | facebook.projection_heads(file)


def _steps(file: CheckpointFile, prefix: str, blocks: tuple[str, ...], config: ViTConfig, head: str) -> dict[str, Step]:
    gated = {"mlp.fc1": "mlp.w1", "mlp.fc2": "mlp.w3"} if config.gated_mlp else {}
    steps = facebook.tower(file, prefix, blocks, config, {**facebook.LINEAR, **gated}) | facebook.layer("norm", f"{prefix}norm")
    steps["rope.inv_freq"] = Step((f"{prefix}rope_embed.periods",), repairs.inv_freq_of_periods)
    if config.num_registers:
        steps["embeddings.register_tokens"] = take(f"{prefix}storage_tokens")
    masked = any(f"{block}.attn.qkv.bias_mask" in file.tensors for block in blocks)
    for index, block in enumerate(blocks):
        for part in ("weight", "bias") if config.gated_mlp else ():
            if steps[f"blocks.{index}.mlp.fc1.{part}"].sources:
                steps[f"blocks.{index}.mlp.fc1.{part}"] = Step((f"{block}.mlp.w1.{part}", f"{block}.mlp.w2.{part}"), repairs.pack)
        if masked:
            bias = f"{block}.attn.qkv.bias"
            steps[f"blocks.{index}.attn.qkv.bias"] = Step((bias, f"{bias}_mask"), repairs.masked)
    return steps | (facebook.layer("head", head) if head else {})
