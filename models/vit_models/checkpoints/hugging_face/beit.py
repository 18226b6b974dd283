"""BEiT: ViT's layers with relative positions, no key bias, and mostly the mean of the patches.

| the network's | transformers 4 and the hub | transformers 5 |
| --- | --- | --- |
| as ViT's, and: | | |
| ls1.gamma, ls2.gamma | lambda_1, lambda_2 (unless layer_scale_init_value is 0) | |
| attn.rel_pos_bias | attention.attention.relative_position_bias.relative_position_bias_table | relative_position_bias.… |
| the same, for all layers | encoder.relative_position_bias.relative_position_bias_table | shared_position_bias.… |
| norm | pooler.layernorm after the mean; layernorm, on the tokens, where use_mean_pooling is false | |
| head | classifier | |

A relative table has a row for every offset between two patches of the trained grid, (2h - 1)(2w - 1), and one each for class token to
patch, patch to class token and class token to itself. It is stored small and expanded here, for the size to run at.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from vit_models.checkpoints.documents import Document
from vit_models.checkpoints.hugging_face import common, vit
from vit_models.checkpoints.plan import CheckpointFile, Options, Plan, Step, take
from vit_models.config import ViTConfig

if TYPE_CHECKING:
    from torch import Tensor

BASE, CLASSIFIER, PRETRAINING = "BeitModel", "BeitForImageClassification", "BeitForMaskedImageModeling"
SCALES = ("lambda_1", "lambda_2")
TABLE = "relative_position_bias_table"

Grid = tuple[int, int]


def plan(file: CheckpointFile, document: Document, options: Options) -> Plan:
    """Raises: CheckpointError, ConfigError."""
    saved = common.architecture(document, (BASE, CLASSIFIER, PRETRAINING), CLASSIFIER if "classifier.weight" in file.tensors else BASE)
    prefix = "beit." if common.has_prefix(file, "beit.embeddings.") else ""
    fields = common.encoder(document, common.BASE, eps=1e-12)
    fields |= {
        "num_classes": 0,
        "layer_scale": document.number("layer_scale_init_value", 0.1) > 0,
        "pos_embed": document.flag("use_absolute_position_embeddings", False),
        "rel_pos_bias": document.flag("use_relative_position_bias", False) or document.flag("use_shared_relative_position_bias", False),
    }
    if fields["pos_embed"]:
        common.square(document, fields)
    labels, notes = None, tuple[str, ...]()
    ignored = {f"{prefix}embeddings.mask_token": "stands in for masked patches in training"}
    if document.flag("use_mean_pooling", True):
        pooled = saved == CLASSIFIER or common.has_prefix(file, f"{prefix}pooler.layernorm.")
        fields |= {"pool": "mean", "final_norm": "pooled" if pooled else "none"}
        if not pooled:
            notes = ("there is no norm after pooling: it was saved before fine-tuning, and the embedding is the plain mean of the patches",)
    if saved == CLASSIFIER:
        fields["num_classes"], labels = common.classes(document, file, "classifier")
    if saved == PRETRAINING:
        ignored |= {"lm_head.": "predicts visual tokens in training"} | ({"layernorm.": "the norm before lm_head"} if prefix else {})
    trained = ViTConfig(**fields)
    config = replace(trained, img_size=options.img_size) if trained.rel_pos_bias and options.img_size else trained
    steps = _steps(file, document, trained, config, prefix)
    left = common.ignore(file, ignored)
    left |= {name: "derived from the sizes" for name in file.tensors if name.endswith(".relative_position_index")}
    return common.finish(Plan(config, steps, left, labels, arch=saved, notes=notes), file, options, document)


def _steps(file: CheckpointFile, document: Document, trained: ViTConfig, config: ViTConfig, prefix: str) -> dict[str, Step]:
    new = common.has_prefix(file, f"{prefix}layers.")
    names = vit.NEW if new else vit.OLD
    names = replace(names, layer=prefix + names.layer, scales=SCALES if config.layer_scale else None)
    steps = common.module("embeddings.patch_embed.proj", f"{prefix}embeddings.patch_embeddings.projection")
    steps["embeddings.cls_token"] = take(f"{prefix}embeddings.cls_token")
    if config.pos_embed:
        repair = partial(_resampled, trained.grid_size, config.grid_size)
        steps["embeddings.pos_embed"] = Step((f"{prefix}embeddings.position_embeddings",), repair)
    steps |= common.blocks(config, names, qkv_bias=(True, False, True))
    for index in range(config.depth if config.rel_pos_bias else 0):
        tables = []
        if document.flag("use_relative_position_bias", False):
            inside = "relative_position_bias" if new else "attention.attention.relative_position_bias"
            tables.append(f"{names.layer.format(index)}.{inside}.{TABLE}")
        if document.flag("use_shared_relative_position_bias", False):
            tables.append(prefix + ("shared_position_bias" if new else "encoder.relative_position_bias") + f".{TABLE}")
        repair = partial(_expanded, trained.grid_size, config.grid_size)
        steps[f"blocks.{index}.attn.rel_pos_bias"] = Step(tuple(tables), repair)
    if config.final_norm != "none":
        steps |= common.module("norm", f"{prefix}pooler.layernorm" if config.final_norm == "pooled" else f"{prefix}layernorm")
    return steps | (common.module("head", "classifier") if config.num_classes else {})


def _expanded(old: Grid, new: Grid, *tables: Tensor) -> Tensor:
    """The sum of relative tables, each (offsets + 3, H), as a dense bias (1, H, T, T) on another grid.

    The offsets are resampled linearly (align_corners false), as in transformers. It takes their table for (2w - 1, 2h - 1) where it is
    (2h - 1, 2w - 1): for a grid that is not square this mixes rows and columns, and has to be done alike to get its numbers.
    """
    import torch
    from torch.nn import functional as F

    (rows, columns), (height, width) = old, new
    summed = torch.stack(tables).double().sum(dim=0)
    offsets = summed[:-3].reshape(1, 2 * columns - 1, 2 * rows - 1, -1).permute(0, 3, 1, 2)
    offsets = F.interpolate(offsets, size=(2 * height - 1, 2 * width - 1), mode="bilinear", align_corners=False)[0].float()
    down = torch.arange(height).unsqueeze(1) - torch.arange(height) + height - 1
    across = torch.arange(width).unsqueeze(1) - torch.arange(width) + width - 1
    area = height * width
    bias = offsets.new_empty(offsets.shape[0], area + 1, area + 1)
    bias[:, 1:, 1:] = offsets[:, down[:, None, :, None], across[None, :, None, :]].reshape(-1, area, area)
    bias[:, 0, :] = summed[-3].unsqueeze(1)
    bias[:, :, 0] = summed[-2].unsqueeze(1)
    bias[:, 0, 0] = summed[-1]
    return bias.unsqueeze(0)


def _resampled(old: Grid, new: Grid, table: Tensor) -> Tensor:
    """The learned table (1, 1 + N, D) on another grid; with relative tables beside it, it has to be at the size to run at, too."""
    import torch

    from vit_models.resample import resample_table

    if old == new:
        return table
    grid = resample_table(table[0, 1:].double().reshape(*old, -1), new, "bicubic")
    return torch.cat([table[0, :1], grid.flatten(0, 1).float()]).unsqueeze(0)
