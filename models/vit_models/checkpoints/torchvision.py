"""torchvision's `VisionTransformer`: a state dict of vit_b_16 and its family.

| torchvision | here |
| --- | --- |
| class_token, encoder.pos_embedding, conv_proj | embeddings.cls_token, .pos_embed, .patch_embed.proj |
| encoder.layers.encoder_layer_0.ln_1, .ln_2 | blocks.0.norm1, .norm2 |
| ….self_attention.in_proj_weight, .in_proj_bias | ….attn.qkv.weight, .bias: q, k and v packed, as here |
| ….self_attention.out_proj | ….attn.proj |
| ….mlp.0, .mlp.3; in the published files .mlp.linear_1, .mlp.linear_2 | ….mlp.fc1, .fc2 |
| encoder.ln | norm |
| heads.pre_logits, heads.head (or heads, where a user put a Linear there) | pre_logits (a tanh follows), head |

eps is 1e-6, GELU the exact one. The number of heads is not in the file. The table is square, as the constructor's one `image_size`, and
`interpolate_embeddings` resamples it bicubically with the corners kept in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_models.checkpoints import bare
from vit_models.checkpoints.bare import Sizes
from vit_models.checkpoints.imagenet import imagenet_labels
from vit_models.checkpoints.plan import CheckpointFile, Options, Plan, Step, take
from vit_models.checkpoints.preprocessing import from_timm, recipe
from vit_models.config import ViTConfig
from vit_models.errors import CheckpointError

NAME = "torchvision"
TITLE = "torchvision"

ARCHS: Mapping[str, Sizes] = {
    "vit_b_16": Sizes(16, 768, 12, 3072),
    "vit_b_32": Sizes(32, 768, 12, 3072),
    "vit_l_16": Sizes(16, 1024, 24, 4096),
    "vit_l_32": Sizes(32, 1024, 24, 4096),
    "vit_h_14": Sizes(14, 1280, 32, 5120),
}
WHOLE_PICTURE = {("vit_b_16", 384), ("vit_l_16", 512), ("vit_h_14", 518), ("vit_h_14", 224)}  # only SWAG's weights have these sizes
ARGUMENTS: bare.Known = {
    **dict.fromkeys(("image_size", "patch_size", "num_layers", "num_heads"), bare.whole_number),
    **dict.fromkeys(("hidden_dim", "mlp_dim", "num_classes", "representation_size"), bare.whole_number),
}
BLOCK = r"(encoder\.layers\.encoder_layer_(\d{1,4}))\.ln_1\.weight"


def recognise(file: CheckpointFile) -> bool:
    """Whether the names are torchvision's."""
    return file.container != "onnx" and {"class_token", "encoder.pos_embedding", "encoder.ln.weight"} <= file.tensors.keys()


def plan(file: CheckpointFile, options: Options) -> Plan:
    """How a torchvision state dict becomes the network.

    Raises: CheckpointError for a convolutional stem, and for a number of heads that has to be told.
    """
    if "conv_proj.0.0.weight" in file.tensors:
        raise CheckpointError(
            "conv_proj is a stem of several convolutions, expected one (`conv_stem_configs=None`); this network has no other"
        )
    given = bare.arguments(TITLE, options, ARGUMENTS)
    blocks = bare.indexed(file, BLOCK)
    fc1, fc2 = ("linear_1", "linear_2") if f"{blocks[0]}.mlp.linear_1.weight" in file.tensors else ("0", "3")
    width, channels, *patch = bare.shape(file, "conv_proj.weight", "width", "channels", "P", "P")
    _, rows, _ = bare.shape(file, "encoder.pos_embedding", "1", "tokens", "width")
    mlp_dim, _ = bare.shape(file, f"{blocks[0]}.mlp.{fc1}.weight", "mlp_dim", "width")
    sizes = Sizes(bare.square_patch("conv_proj.weight", *patch), width, len(blocks), mlp_dim)
    head = next((name for name in ("heads.head", "heads") if {f"{name}.weight", f"{name}.bias"} & file.tensors.keys()), None)
    pre_logits = "heads.pre_logits.weight" in file.tensors
    arch = bare.known_arch(options, sizes, ARCHS)
    config = ViTConfig(
        img_size=bare.trained_size(rows - 1, sizes.patch_size, options),
        patch_size=sizes.patch_size,
        embed_dim=width,
        depth=len(blocks),
        num_heads=bare.num_heads(sizes, given),
        mlp_dim=mlp_dim,
        num_classes=bare.shape(file, f"{head}.weight", "num_classes", "width")[0] if head else 0,
        representation_size=bare.shape(file, "heads.pre_logits.weight", "size", "width")[0] if pre_logits else None,
        in_chans=channels,
        resample="bicubic_align_corners",
    )
    told = {
        "image_size": config.img_size[0],
        "patch_size": config.patch_size,
        "num_layers": config.depth,
        "hidden_dim": width,
        "mlp_dim": mlp_dim,
        "num_classes": config.num_classes,
        "representation_size": config.representation_size,
    }
    bare.check_told(given, told)
    return Plan(
        config,
        _steps(config, blocks, fc1, fc2, head or ""),
        labels=imagenet_labels() if config.num_classes == 1000 else None,
        preprocessing=_preprocessing(arch, config, options),
        arch=arch,
    )


def _preprocessing(arch: str | None, config: ViTConfig, options: Options) -> dict[str, Any]:
    """What the weights of that architecture and trained size come with; at 224 those that torchvision trained itself."""
    size, trained = options.img_size or config.img_size, (arch, config.img_size[0])
    if trained in WHOLE_PICTURE:
        return from_timm({"crop_pct": 1.0, "interpolation": "bicubic"}, size, config.in_chans)
    if trained == ("vit_l_16", 224):
        return from_timm({"crop_pct": 224 / 242, "interpolation": "bilinear"}, size, config.in_chans)
    return recipe("imagenet_bilinear", size, config.in_chans)


def _steps(config: ViTConfig, blocks: tuple[str, ...], fc1: str, fc2: str, head: str) -> dict[str, Step]:
    steps = {"embeddings.cls_token": take("class_token"), "embeddings.pos_embed": take("encoder.pos_embedding")}
    steps |= _layer("embeddings.patch_embed.proj", "conv_proj")
    for index, block in enumerate(blocks):
        target = f"blocks.{index}"
        steps |= _layer(f"{target}.norm1", f"{block}.ln_1")
        steps[f"{target}.attn.qkv.weight"] = take(f"{block}.self_attention.in_proj_weight")
        steps[f"{target}.attn.qkv.bias"] = take(f"{block}.self_attention.in_proj_bias")
        steps |= _layer(f"{target}.attn.proj", f"{block}.self_attention.out_proj")
        steps |= _layer(f"{target}.norm2", f"{block}.ln_2")
        steps |= _layer(f"{target}.mlp.fc1", f"{block}.mlp.{fc1}") | _layer(f"{target}.mlp.fc2", f"{block}.mlp.{fc2}")
    steps |= _layer("norm", "encoder.ln")
    if config.representation_size:
        steps |= _layer("pre_logits", "heads.pre_logits")
    if config.num_classes:
        steps |= _layer("head", head)
    return steps


def _layer(target: str, source: str) -> dict[str, Step]:
    return {f"{target}.{part}": take(f"{source}.{part}") for part in ("weight", "bias")}
