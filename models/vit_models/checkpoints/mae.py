"""facebookresearch/mae: the encoder of masked autoencoders, alone or fine-tuned, names as in `facebook.py`.

A pre-training checkpoint has the decoder beside the encoder; it is left out. A network fine-tuned with `global_pool` has `fc_norm` in
place of `norm`: the patches' mean is normed, not the tokens. The encoder alone looks like any other headless network.
eps is 1e-6, GELU the exact one, and `interpolate_pos_embed` resamples the square table bicubically.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from vit_models.checkpoints import bare, facebook
from vit_models.checkpoints.bare import Sizes
from vit_models.checkpoints.imagenet import imagenet_labels
from vit_models.checkpoints.plan import CheckpointFile, Options, Plan, take
from vit_models.checkpoints.preprocessing import recipe
from vit_models.config import ViTConfig

NAME = "mae"
TITLE = "facebookresearch MAE"

ARCHS: Mapping[str, Sizes] = {
    "vit_base_patch16": Sizes(16, 768, 12, 3072),
    "vit_large_patch16": Sizes(16, 1024, 24, 4096),
    "vit_huge_patch14": Sizes(14, 1280, 32, 5120),
}
ARGUMENTS: bare.Known = dict.fromkeys(("num_heads", "patch_size", "embed_dim", "depth", "num_classes"), bare.whole_number)
DECODER = r"mask_token|decoder_\w+(\..+)?"
POOLED = r"fc_norm\.(weight|bias)|head\.(weight|bias)"


def recognise(file: CheckpointFile) -> bool:
    """Whether this could be a MAE's encoder: with its decoder, fine-tuned with `fc_norm`, or alone."""
    if "decoder_pos_embed" in file.tensors:
        return facebook.is_plain(file, beside=DECODER)
    if "fc_norm.weight" in file.tensors and "norm.weight" not in file.tensors:
        return facebook.is_plain(file, beside=POOLED)
    return facebook.is_plain(file)


def plan(file: CheckpointFile, options: Options) -> Plan:
    """How a MAE state dict becomes the network.

    Raises: CheckpointError, also to ask for the number of heads.
    """
    given = bare.arguments(TITLE, options, ARGUMENTS)
    blocks = facebook.blocks_of(file, "")
    width, channels, patch_size = facebook.patch_embed_of(file, "")
    mlp_dim, _ = bare.shape(file, f"{blocks[0]}.mlp.fc1.weight", "mlp_dim", "width")
    sizes = Sizes(patch_size, width, len(blocks), mlp_dim)
    head, num_classes, _ = facebook.head_of(file, "", width)
    bare.check_told(given, {"patch_size": patch_size, "embed_dim": width, "depth": len(blocks), "num_classes": num_classes})
    norm = "fc_norm" if "fc_norm.weight" in file.tensors else "norm"
    arch = bare.known_arch(options, sizes, ARCHS)
    config = ViTConfig(
        img_size=bare.trained_size(facebook.positions_of(file, ""), patch_size, options),
        patch_size=patch_size,
        embed_dim=width,
        depth=len(blocks),
        num_heads=bare.num_heads(sizes, given),
        mlp_dim=mlp_dim,
        num_classes=num_classes,
        in_chans=channels,
        pool="mean" if norm == "fc_norm" else "cls",
        final_norm="pooled" if norm == "fc_norm" else "tokens",
        resample="bicubic",
    )
    steps = facebook.tower(file, "", blocks, config) | facebook.layer("norm", norm)
    steps["embeddings.pos_embed"] = take("pos_embed")
    if head:
        steps |= facebook.layer("head", head)
    decoder = {name: "MAE's decoder, which only pre-training needs" for name in file.tensors if re.fullmatch(DECODER, name)}
    return Plan(
        config,
        steps,
        decoder,
        labels=imagenet_labels() if num_classes == 1000 else None,
        preprocessing=recipe("imagenet", options.img_size or config.img_size, channels),
        arch=arch,
    )
