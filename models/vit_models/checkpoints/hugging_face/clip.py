"""CLIP's vision tower, of a whole CLIPModel or saved by itself.

| the network's | transformers |
| --- | --- |
| embeddings.* | embeddings.class_embedding (D,), .position_embedding.weight (T, D), .patch_embedding (no bias) |
| pre_norm | pre_layrnorm |
| blocks.N | encoder.layers.N |
| norm1, norm2 | layer_norm1, layer_norm2 |
| attn.qkv, attn.proj | self_attn.{q_proj, k_proj, v_proj}, self_attn.out_proj |
| mlp.fc1, mlp.fc2 | mlp.fc1, mlp.fc2 |
| norm | post_layernorm |
| head | visual_projection (no bias) or classifier |

All but the heads stand behind `vision_model.`, except where transformers 5 saved a bare CLIPVisionModel. transformers norms the class token
alone and hands out the other tokens without a norm; the network's tokens are all normed. CLIPForImageClassification averages the patches
without a norm and never uses post_layernorm, so there the norm is for the tokens alone ("aside").
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from vit_models.checkpoints import repairs
from vit_models.checkpoints.documents import Document
from vit_models.checkpoints.hugging_face import common
from vit_models.checkpoints.hugging_face.common import LayerNames
from vit_models.checkpoints.plan import CheckpointFile, Options, Plan, Step, take
from vit_models.config import ViTConfig

NAMES = LayerNames(
    layer="encoder.layers.{}",
    norm1="layer_norm1",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    proj="self_attn.out_proj",
    norm2="layer_norm2",
    fc1=("mlp.fc1",),
    fc2="mlp.fc2",
)
BASE, CLASSIFIER = "CLIPVisionModel", "CLIPForImageClassification"
PROJECTED = ("CLIPModel", "CLIPVisionModelWithProjection")
IGNORED = {
    "text_model.": "the text tower",
    "text_projection.": "the text tower's projection",
    "logit_scale": "scales the similarity of images and texts",
}


def plan(file: CheckpointFile, document: Document, options: Options) -> Plan:
    """Raises: CheckpointError, ConfigError."""
    default = "CLIPVisionModelWithProjection" if "visual_projection.weight" in file.tensors else BASE
    default = CLASSIFIER if "classifier.weight" in file.tensors else default
    saved = common.architecture(document, (BASE, CLASSIFIER, *PROJECTED), default)
    vision = tower(document)
    fields = common.encoder(vision, {**common.BASE, "patch_size": 32}, eps=1e-5, activation="quick_gelu")
    common.square(vision, fields)
    fields |= {"pre_norm": True, "num_classes": 0}
    labels = None
    if saved in PROJECTED:
        fields |= {"num_classes": document.integer("projection_dim", 512), "projection": True}
    elif saved == CLASSIFIER:
        fields |= {"pool": "mean", "final_norm": "aside"}
        fields["num_classes"], labels = common.classes(document, file, "classifier")
    config = ViTConfig(**fields)
    prefix = "vision_model." if common.has_prefix(file, "vision_model.") else ""
    steps = _steps(config, prefix)
    ignored = IGNORED | {f"{prefix}embeddings.position_ids": "numbers the positions"}
    return common.finish(Plan(config, steps, common.ignore(file, ignored), labels, arch=saved), file, options, vision)


def tower(document: Document) -> Document:
    """The vision tower's part of config.json; a `vision_config_dict`, which old files have, wins over `vision_config`."""
    if document.text("model_type").endswith("_vision_model"):
        return document
    key = "vision_config_dict" if document.has("vision_config_dict") else "vision_config"
    return document.child(key, Document(f"{document.name}: {key}", {}))


def _steps(config: ViTConfig, prefix: str) -> dict[str, Step]:
    steps = {
        "embeddings.patch_embed.proj.weight": take(f"{prefix}embeddings.patch_embedding.weight"),
        "embeddings.patch_embed.proj.bias": Step((), partial(repairs.zeros, config.embed_dim)),
        "embeddings.cls_token": Step((f"{prefix}embeddings.class_embedding",), repairs.as_token),
        "embeddings.pos_embed": Step((f"{prefix}embeddings.position_embedding.weight",), repairs.as_token),
    }
    steps |= common.module("pre_norm", f"{prefix}pre_layrnorm")
    steps |= common.blocks(config, replace(NAMES, layer=prefix + NAMES.layer))
    steps |= common.module("norm", f"{prefix}post_layernorm")
    if config.projection:
        steps |= common.linear("head", ["visual_projection"], config.num_classes, [False])
    elif config.num_classes:
        steps |= common.module("head", "classifier")
    return steps
