"""facebookresearch/dino: Vision Transformers trained by self-distillation, names as in `facebook.py`.

Two files are about: the network alone, which has no head and no sign of its own (a headless timm or MAE network looks the same), and
whole training checkpoints, whose teacher has the network as `backbone.*` and a projection head as `head.mlp.*`, `head.last_layer.*`.
eps is 1e-6, GELU the exact one, and `interpolate_pos_encoding` resamples the square table by a scale factor of (new + 0.1) / old.
"""

from __future__ import annotations

from collections.abc import Mapping

from vit_models.checkpoints import bare, facebook
from vit_models.checkpoints.bare import Sizes
from vit_models.checkpoints.plan import CheckpointFile, Options, Plan, take
from vit_models.checkpoints.preprocessing import recipe
from vit_models.config import ViTConfig

NAME = "dino"
TITLE = "facebookresearch DINO"

ARCHS: Mapping[str, Sizes] = {
    "dino_vits16": Sizes(16, 384, 12, 1536),
    "dino_vits8": Sizes(8, 384, 12, 1536),
    "dino_vitb16": Sizes(16, 768, 12, 3072),
    "dino_vitb8": Sizes(8, 768, 12, 3072),
}
ARGUMENTS: bare.Known = dict.fromkeys(("num_heads", "patch_size", "embed_dim", "depth"), bare.whole_number)


def recognise(file: CheckpointFile) -> bool:
    """Whether this could be a DINO network, alone or in its training checkpoint."""
    return facebook.is_plain(file, facebook.prefix_of(file), facebook.PROJECTION)


def plan(file: CheckpointFile, options: Options) -> Plan:
    """How a DINO state dict becomes the network.

    Raises: CheckpointError, also to ask for the number of heads.
    """
    given = bare.arguments(TITLE, options, ARGUMENTS)
    prefix = facebook.prefix_of(file)
    blocks = facebook.blocks_of(file, prefix)
    width, channels, patch_size = facebook.patch_embed_of(file, prefix)
    mlp_dim, _ = bare.shape(file, f"{blocks[0]}.mlp.fc1.weight", "mlp_dim", "width")
    sizes = Sizes(patch_size, width, len(blocks), mlp_dim)
    bare.check_told(given, {"patch_size": patch_size, "embed_dim": width, "depth": len(blocks)})
    arch = bare.known_arch(options, sizes, ARCHS)
    config = ViTConfig(
        img_size=bare.trained_size(facebook.positions_of(file, prefix), patch_size, options),
        patch_size=patch_size,
        embed_dim=width,
        depth=len(blocks),
        num_heads=bare.num_heads(sizes, given),
        mlp_dim=mlp_dim,
        num_classes=0,
        in_chans=channels,
        resample="bicubic_offset",
    )
    steps = facebook.tower(file, prefix, blocks, config) | facebook.layer("norm", f"{prefix}norm")
    steps["embeddings.pos_embed"] = take(f"{prefix}pos_embed")
    return Plan(
        config,
        steps,
        facebook.projection_heads(file),
        preprocessing=recipe("imagenet", options.img_size or config.img_size, channels),
        arch=arch,
    )
