"""DINOv2, without and with registers.

| the network's | transformers 4 and the hub | transformers 5 |
| --- | --- | --- |
| embeddings.* | embeddings.cls_token, .register_tokens, .position_embeddings, .patch_embeddings.projection | |
| blocks.N | encoder.layer.N | |
| norm1, norm2, ls1.gamma, ls2.gamma | norm1, norm2, layer_scale1.lambda1, layer_scale2.lambda1 | |
| attn.qkv | attention.attention.{query, key, value} | attention.{q_proj, k_proj, v_proj} |
| attn.proj | attention.output.dense | attention.o_proj |
| mlp.fc1, mlp.fc2 | mlp.fc1, mlp.fc2 | |
| the same, SwiGLU | mlp.weights_in (gate first), mlp.weights_out | mlp.gate_proj and .up_proj, mlp.down_proj |
| norm | layernorm | |
| head | classifier | |

The position table has rows for the class token and the patches, none for registers. The classifier reads the class token and the mean of
the patches side by side. A SwiGLU takes no notice of `hidden_act`.
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

OLD = LayerNames(
    layer="encoder.layer.{}",
    norm1="norm1",
    qkv=("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    proj="attention.output.dense",
    norm2="norm2",
    fc1=("mlp.fc1",),
    fc2="mlp.fc2",
    scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
)
NEW = replace(OLD, qkv=("attention.q_proj", "attention.k_proj", "attention.v_proj"), proj="attention.o_proj")
OLD_SWIGLU = replace(OLD, fc1=("mlp.weights_in",), fc2="mlp.weights_out")
NEW_SWIGLU = replace(NEW, fc1=("mlp.gate_proj", "mlp.up_proj"), fc2="mlp.down_proj")

CLASSES = {
    "dinov2": ("Dinov2Model", "Dinov2ForImageClassification"),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersForImageClassification"),
}


def plan(file: CheckpointFile, document: Document, options: Options) -> Plan:
    """Raises: CheckpointError, ConfigError."""
    model_type = document.text("model_type")
    registers = model_type == "dinov2_with_registers"
    base, classifier = CLASSES[model_type]
    saved = common.architecture(document, (base, classifier), classifier if "classifier.weight" in file.tensors else base)
    prefix = f"{model_type}." if common.has_prefix(file, f"{model_type}.embeddings.") else ""
    fields = common.encoder(document, {**common.BASE, "patch_size": 16 if registers else 14}, eps=1e-6)
    common.square(document, fields)
    hidden = int(fields["embed_dim"] * document.number("mlp_ratio", 4.0))
    gated = document.flag("use_swiglu_ffn", False)
    fields |= {
        "mlp_dim": (int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden,
        "gated_mlp": gated,
        "layer_scale": True,
        "num_classes": 0,
        "num_registers": document.integer("num_register_tokens", 4) if registers else 0,
        "resample": "bicubic_antialias" if registers else "bicubic",
    }
    if gated:
        fields["activation"] = "silu"
    labels = None
    if saved == classifier:
        fields["pool"] = "cls_mean"
        fields["num_classes"], labels = common.classes(document, file, "classifier")
    config = ViTConfig(**fields)
    ignored = {f"{prefix}embeddings.mask_token": "stands in for masked patches in training"}
    if registers and not config.num_registers:
        ignored[f"{prefix}embeddings.register_tokens"] = "holds no token"
    steps = _steps(file, document, config, prefix)
    return common.finish(Plan(config, steps, common.ignore(file, ignored), labels, arch=saved), file, options, document)


def _steps(file: CheckpointFile, document: Document, config: ViTConfig, prefix: str) -> dict[str, Step]:
    new = any(".attention.q_proj." in name for name in file.tensors)
    names = (NEW_SWIGLU if new else OLD_SWIGLU) if config.gated_mlp else NEW if new else OLD
    steps = common.module("embeddings.patch_embed.proj", f"{prefix}embeddings.patch_embeddings.projection")
    steps["embeddings.cls_token"] = take(f"{prefix}embeddings.cls_token")
    table = f"{prefix}embeddings.position_embeddings"
    if config.num_registers:
        steps["embeddings.register_tokens"] = take(f"{prefix}embeddings.register_tokens")
        steps["embeddings.pos_embed"] = Step((table,), partial(repairs.with_zero_rows, at=1, count=config.num_registers))
    else:
        steps["embeddings.pos_embed"] = take(table)
    qkv_bias = (document.flag("qkv_bias", True),) * 3
    steps |= common.blocks(config, replace(names, layer=prefix + names.layer), qkv_bias)
    steps |= common.module("norm", f"{prefix}layernorm")
    return steps | (common.module("head", "classifier") if config.num_classes else {})
