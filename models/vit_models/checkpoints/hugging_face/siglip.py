"""SigLIP's vision tower, and SigLIP 2's of a fixed resolution, which transformers loads with the same classes.

| the network's | transformers |
| --- | --- |
| embeddings.* | embeddings.position_embedding.weight (N, D), .patch_embedding |
| blocks.N and inside | as CLIP's |
| norm | post_layernorm |
| attn_pool.probe, .proj, .norm, .mlp | head.probe, .attention.out_proj, .layernorm, .mlp |
| attn_pool.q, attn_pool.kv | head.attention.in_proj_weight and in_proj_bias, q, k and v packed |
| head | classifier |

All but the classifier stand behind `vision_model.`, except where transformers 5 saved a bare SiglipVisionModel.
SiglipForImageClassification averages the tokens, and does not use the pooling head that it stores.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from vit_models.checkpoints import repairs
from vit_models.checkpoints.documents import Document
from vit_models.checkpoints.hugging_face import clip, common
from vit_models.checkpoints.plan import CheckpointFile, Options, Plan, Step, take
from vit_models.config import ViTConfig

CLASSIFIER = "SiglipForImageClassification"
CLASSES = ("SiglipModel", "SiglipVisionModel", CLASSIFIER)
IGNORED = {"text_model.": "the text tower"} | dict.fromkeys(("logit_scale", "logit_bias"), "scales the similarity of images and texts")


def plan(file: CheckpointFile, document: Document, options: Options) -> Plan:
    """Raises: CheckpointError, ConfigError."""
    saved = common.architecture(document, CLASSES, CLASSIFIER if "classifier.weight" in file.tensors else "SiglipVisionModel")
    vision = clip.tower(document)
    prefix = "vision_model." if common.has_prefix(file, "vision_model.") else ""
    fields = common.encoder(vision, common.BASE, eps=1e-6, activation="gelu_pytorch_tanh")
    common.square(vision, fields)
    fields |= {"class_token": False, "num_classes": 0, "pool": "map"}
    ignored = IGNORED | {f"{prefix}embeddings.position_ids": "numbers the positions"}
    labels, notes = None, tuple[str, ...]()
    if saved == CLASSIFIER:
        fields["pool"] = "mean"
        fields["num_classes"], labels = common.classes(document, file, "classifier")
        ignored[f"{prefix}head."] = f"{saved} averages the tokens instead of using the pooling head"
    elif not vision.flag("vision_use_head", True):
        fields["pool"] = "mean"
        notes = ("there is no pooling head (vision_use_head is false): the embedding is the mean of the tokens",)
    config = ViTConfig(**fields)
    steps = _steps(config, prefix)
    return common.finish(Plan(config, steps, common.ignore(file, ignored), labels, arch=saved, notes=notes), file, options, vision)


def _steps(config: ViTConfig, prefix: str) -> dict[str, Step]:
    steps = common.module("embeddings.patch_embed.proj", f"{prefix}embeddings.patch_embedding")
    steps["embeddings.pos_embed"] = Step((f"{prefix}embeddings.position_embedding.weight",), repairs.as_token)
    steps |= common.blocks(config, replace(clip.NAMES, layer=prefix + clip.NAMES.layer))
    steps |= common.module("norm", f"{prefix}post_layernorm")
    if config.pool == "map":
        steps |= _attention_pool(config.embed_dim, f"{prefix}head")
    return steps | (common.module("head", "classifier") if config.num_classes else {})


def _attention_pool(width: int, source: str) -> dict[str, Step]:
    steps = {"attn_pool.probe": take(f"{source}.probe")}
    for kind in ("weight", "bias"):
        packed = (f"{source}.attention.in_proj_{kind}",)
        steps[f"attn_pool.q.{kind}"] = Step(packed, partial(repairs.rows, 0, width))
        steps[f"attn_pool.kv.{kind}"] = Step(packed, partial(repairs.rows, width, None))
    steps |= common.module("attn_pool.proj", f"{source}.attention.out_proj")
    steps |= common.module("attn_pool.norm", f"{source}.layernorm")
    return steps | common.module("attn_pool.mlp.fc1", f"{source}.mlp.fc1") | common.module("attn_pool.mlp.fc2", f"{source}.mlp.fc2")
