"""ViT and what kept its layers: DeiT, ViT-MAE, ViT-MSN, I-JEPA.

| the network's | transformers 4 and the hub | transformers 5 |
| --- | --- | --- |
| embeddings.* | embeddings.cls_token, .distillation_token, .position_embeddings, .patch_embeddings.projection | |
| blocks.N | encoder.layer.N | layers.N |
| norm1, norm2 | layernorm_before, layernorm_after | |
| attn.qkv | attention.attention.{query, key, value} | attention.{q_proj, k_proj, v_proj} |
| attn.proj | attention.output.dense | attention.o_proj |
| mlp.fc1, mlp.fc2 | intermediate.dense, output.dense | mlp.fc1, mlp.fc2 |
| norm | layernorm | |
| pre_logits | pooler.dense | |
| head | classifier; cls_classifier and distillation_classifier (DeiT with its teacher) | |

All but the heads stand behind the prefix of the base model (`vit.`, `deit.`, `ijepa.`) unless the base model itself was saved.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vit_models.checkpoints import repairs
from vit_models.checkpoints.documents import Document
from vit_models.checkpoints.hugging_face import common
from vit_models.checkpoints.hugging_face.common import LayerNames
from vit_models.checkpoints.plan import CheckpointFile, Options, Plan, Step, take
from vit_models.config import ViTConfig

OLD = LayerNames(
    layer="encoder.layer.{}",
    norm1="layernorm_before",
    qkv=("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    proj="attention.output.dense",
    norm2="layernorm_after",
    fc1=("intermediate.dense",),
    fc2="output.dense",
)
NEW = replace(
    OLD,
    layer="layers.{}",
    qkv=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    proj="attention.o_proj",
    fc1=("mlp.fc1",),
    fc2="mlp.fc2",
)


@dataclass(frozen=True)
class Family:
    """The classes of a model_type by what they add to the encoder, and where its encoder differs."""

    prefix: str
    base: str
    classifier: str | None = None
    pretraining: str | None = None
    eps: float = 1e-12


FAMILIES = {
    "vit": Family("vit.", "ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling"),
    "deit": Family("deit.", "DeiTModel", "DeiTForImageClassification", "DeiTForMaskedImageModeling"),
    "vit_mae": Family("vit.", "ViTMAEModel", None, "ViTMAEForPreTraining"),
    "vit_msn": Family("vit.", "ViTMSNModel", "ViTMSNForImageClassification", eps=1e-6),
    "ijepa": Family("ijepa.", "IJepaModel", "IJepaForImageClassification"),
}
TEACHER = "DeiTForImageClassificationWithTeacher"


def plan(file: CheckpointFile, document: Document, options: Options) -> Plan:
    """Raises: CheckpointError, ConfigError."""
    model_type = document.text("model_type")
    family = FAMILIES[model_type]
    saved = _class(file, document, family)
    prefix = family.prefix if common.has_prefix(file, f"{family.prefix}embeddings.") else ""
    fields = common.encoder(document, common.BASE, family.eps)
    fields |= {"class_token": model_type != "ijepa", "distilled": model_type == "deit", "num_classes": 0}
    fields["pool"] = "cls" if fields["class_token"] else "mean"
    labels, ignored = None, {f"{prefix}embeddings.mask_token": "stands in for masked patches in training"}
    if saved == family.classifier:
        fields["num_classes"], labels = common.classes(document, file, "classifier")
        ignored[f"{prefix}pooler."] = f"{saved} does not read the pooler"
    elif saved == TEACHER:
        fields["num_classes"], labels = common.classes(document, file, "cls_classifier")
        fields["pool"] = "cls_dist"
    elif saved == family.pretraining:
        ignored["decoder."] = "reconstructs masked patches in training"
    else:
        fields |= _pooler(file, document, prefix)
    config = ViTConfig(**fields)
    return common.finish(
        Plan(config, _steps(file, document, config, prefix), common.ignore(file, ignored), labels, arch=saved), file, options, document
    )


def _class(file: CheckpointFile, document: Document, family: Family) -> str:
    known = [name for name in (family.base, family.classifier, family.pretraining) if name is not None]
    default = family.base
    if "classifier.weight" in file.tensors and family.classifier is not None:
        default = family.classifier
    if family.prefix == "deit.":
        known.append(TEACHER)
        default = TEACHER if "cls_classifier.weight" in file.tensors else default
    return common.architecture(document, known, default)


def _pooler(file: CheckpointFile, document: Document, prefix: str) -> dict[str, Any]:
    """A base model may have been saved without its pooler, which then represents no image."""
    if not common.has_prefix(file, f"{prefix}pooler."):
        return {}
    if document.text("pooler_act", "tanh") != "tanh":
        raise document.unlike("pooler_act", "tanh, the pre-logits layer's activation")
    return {"representation_size": document.integer("pooler_output_size", document.integer("hidden_size", 768))}


def _steps(file: CheckpointFile, document: Document, config: ViTConfig, prefix: str) -> dict[str, Step]:
    names = NEW if common.has_prefix(file, f"{prefix}layers.") else OLD
    if not common.has_prefix(file, "encoder.layer."):  # which is how transformers 5 saves ViTMSNForImageClassification, and its layers only
        names = replace(names, layer=prefix + names.layer)
    steps = common.module("embeddings.patch_embed.proj", f"{prefix}embeddings.patch_embeddings.projection")
    steps["embeddings.pos_embed"] = take(f"{prefix}embeddings.position_embeddings")
    if config.class_token:
        steps["embeddings.cls_token"] = take(f"{prefix}embeddings.cls_token")
    if config.distilled:
        steps["embeddings.dist_token"] = take(f"{prefix}embeddings.distillation_token")
    steps |= common.blocks(config, names, qkv_bias=(document.flag("qkv_bias", True),) * 3)
    steps |= common.module("norm", f"{prefix}layernorm")
    if config.representation_size:
        steps |= common.module("pre_logits", f"{prefix}pooler.dense")
    if config.pool == "cls_dist":
        heads = ("cls_classifier", "distillation_classifier")
        steps["head.weight"] = Step(tuple(f"{head}.weight" for head in heads), repairs.average_heads)
        steps["head.bias"] = Step(tuple(f"{head}.bias" for head in heads), repairs.mean_of)
    elif config.num_classes:
        steps |= common.module("head", "classifier")
    return steps
