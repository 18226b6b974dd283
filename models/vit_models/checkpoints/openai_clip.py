"""OpenAI's CLIP: the state dict of a published archive, of which the image tower is read.

| OpenAI CLIP | here |
| --- | --- |
| visual.class_embedding (D,), visual.positional_embedding (T, D) | embeddings.cls_token, .pos_embed |
| visual.conv1, without a bias | embeddings.patch_embed.proj |
| visual.ln_pre, visual.ln_post | pre_norm, norm |
| visual.transformer.resblocks.0.ln_1, .ln_2 | blocks.0.norm1, .norm2 |
| ….attn.in_proj_weight, .in_proj_bias, .out_proj | ….attn.qkv.weight, .bias, .proj: q, k and v packed, as here |
| ….mlp.c_fc, .c_proj | ….mlp.fc1, .fc2 |
| visual.proj (D, E), features @ proj | head.weight, the transpose |

Heads are always 64 wide, eps is 1e-5 and the activation x * sigmoid(1.702 x). Weights are float16. Beside them the archives hold three
whole numbers, `input_resolution`, `context_length` and `vocab_size`, which tell them from open_clip's files of the same names.
"""

from __future__ import annotations

from functools import partial

from vit_models.checkpoints import bare, preprocessing, repairs
from vit_models.checkpoints.plan import CheckpointFile, Options, Plan, Step, take
from vit_models.config import ViTConfig
from vit_models.errors import CheckpointError

NAME = "openai-clip"
TITLE = "OpenAI CLIP"

CONFIG = "open_clip_config.json"
NUMBERS = ("input_resolution", "context_length", "vocab_size")
TOWER = ("class_embedding", "positional_embedding", "conv1.weight", "ln_post.weight")
TEXT = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
HEAD_WIDTH = 64
BLOCK = r"({prefix}transformer\.resblocks\.(\d{{1,4}}))\.ln_1\.weight"

ARCHS = {
    "ViT-B/32": bare.Sizes(32, 768, 12, 3072),
    "ViT-B/16": bare.Sizes(16, 768, 12, 3072),
    "ViT-L/14": bare.Sizes(14, 1024, 24, 4096),
}


def recognise(file: CheckpointFile) -> bool:
    """Whether the names are OpenAI's, with the three numbers of its archives."""
    return CONFIG not in file.documents and has_tower(file, "visual.") and file.tensors.keys() >= set(NUMBERS)


def plan(file: CheckpointFile, options: Options) -> Plan:
    """How the image tower becomes the network; "logits" are the projected features.

    Raises: CheckpointError.
    """
    bare.arguments(TITLE, options, {})
    sizes, tokens = tower_sizes(file, "visual.")
    if sizes.embed_dim % HEAD_WIDTH:
        raise CheckpointError(
            f"visual.conv1.weight has width {sizes.embed_dim}, expected a multiple of {HEAD_WIDTH}: CLIP's heads are that wide"
        )
    config = ViTConfig(
        img_size=bare.trained_size(tokens - 1, sizes.patch_size, options),
        patch_size=sizes.patch_size,
        embed_dim=sizes.embed_dim,
        depth=sizes.depth,
        num_heads=sizes.embed_dim // HEAD_WIDTH,
        mlp_dim=sizes.mlp_dim,
        num_classes=bare.shape(file, "visual.proj", "width", "features")[1],
        layer_norm_eps=1e-5,
        resample="bicubic_antialias",  # OpenAI's code has one size a network; this is what open_clip does to the same weights
        pre_norm=True,
        activation="quick_gelu",
        projection=True,
    )
    return Plan(
        config,
        tower_steps(config, "visual."),
        ignored=text_tower(file) | dict.fromkeys(NUMBERS, "a number that the weights were made with"),
        preprocessing=preprocessing.recipe("clip", options.img_size or config.img_size),
        arch=bare.known_arch(options, sizes, ARCHS),
    )


# ---- what open_clip kept of it -------------------------------------------------------------------------------------------------------


def has_tower(file: CheckpointFile, prefix: str) -> bool:
    """Whether there is an image tower of these names."""
    return all(f"{prefix}{name}" in file.tensors for name in TOWER)


def tower_sizes(file: CheckpointFile, prefix: str) -> tuple[bare.Sizes, int]:
    """The tower's sizes and the length of its position table, by its shapes. Raises: CheckpointError."""
    blocks = bare.indexed(file, BLOCK.format(prefix=prefix))
    width, _, *patch = bare.shape(file, f"{prefix}conv1.weight", "width", "3", "P", "P")
    tokens, _ = bare.shape(file, f"{prefix}positional_embedding", "tokens", "width")
    mlp_dim, _ = bare.shape(file, f"{blocks[0]}.mlp.c_fc.weight", "mlp width", "width")
    return bare.Sizes(bare.square_patch(f"{prefix}conv1.weight", *patch), width, len(blocks), mlp_dim), tokens


def tower_steps(config: ViTConfig, prefix: str) -> dict[str, Step]:
    """Where every parameter comes from."""
    steps = {
        "embeddings.cls_token": Step((f"{prefix}class_embedding",), repairs.as_token),
        "embeddings.pos_embed": Step((f"{prefix}positional_embedding",), repairs.as_token),
        "embeddings.patch_embed.proj.weight": take(f"{prefix}conv1.weight"),
        "embeddings.patch_embed.proj.bias": Step((), partial(repairs.zeros, config.embed_dim)),
        "head.weight": Step((f"{prefix}proj",), repairs.transpose),
        "head.bias": Step((), partial(repairs.zeros, config.num_classes)),
    }
    layers = {"norm": "ln_post"} | ({"pre_norm": "ln_pre"} if config.pre_norm else {})
    for index in range(config.depth):
        target, source = f"blocks.{index}", f"transformer.resblocks.{index}"
        steps[f"{target}.attn.qkv.weight"] = take(f"{prefix}{source}.attn.in_proj_weight")
        steps[f"{target}.attn.qkv.bias"] = take(f"{prefix}{source}.attn.in_proj_bias")
        layers |= {
            f"{target}.norm1": f"{source}.ln_1",
            f"{target}.attn.proj": f"{source}.attn.out_proj",
            f"{target}.norm2": f"{source}.ln_2",
            f"{target}.mlp.fc1": f"{source}.mlp.c_fc",
            f"{target}.mlp.fc2": f"{source}.mlp.c_proj",
        }
    return steps | {f"{ours}.{part}": take(f"{prefix}{theirs}.{part}") for ours, theirs in layers.items() for part in ("weight", "bias")}


def text_tower(file: CheckpointFile) -> dict[str, str]:
    """The other half of a whole CLIP, which no image goes through."""
    ignored = {name: "the text tower" for name in file.tensors if name.startswith(TEXT)}
    return ignored | {name: "scales similarities, not features" for name in ("logit_scale", "logit_bias") if name in file.tensors}
