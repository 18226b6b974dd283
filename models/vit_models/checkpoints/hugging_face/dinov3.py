"""DINOv3.

| the network's | transformers |
| --- | --- |
| embeddings.* | embeddings.cls_token, .register_tokens, .patch_embeddings |
| blocks.N | layer.N; also model.layer.N |
| norm1, norm2, ls1.gamma, ls2.gamma | norm1, norm2, layer_scale1.lambda1, layer_scale2.lambda1 |
| attn.qkv, attn.proj | attention.{q_proj, k_proj, v_proj}, attention.o_proj |
| mlp.fc1, mlp.fc2 | mlp.up_proj, mlp.down_proj; gated: mlp.gate_proj and .up_proj, mlp.down_proj |
| norm | norm |
| rope.inv_freq | not stored: from rope_theta |

Positions are rotary: the patches' centres on [-1, 1] along both axes, in full turns (DINOv3, sec. 3.2). So the size is free.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from vit_models.checkpoints.documents import Document
from vit_models.checkpoints.hugging_face import common
from vit_models.checkpoints.hugging_face.common import LayerNames
from vit_models.checkpoints.plan import CheckpointFile, Options, Plan, Step, take
from vit_models.config import Rope, ViTConfig

if TYPE_CHECKING:
    from torch import Tensor

PLAIN = LayerNames(
    layer="layer.{}",
    norm1="norm1",
    qkv=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    proj="attention.o_proj",
    norm2="norm2",
    fc1=("mlp.up_proj",),
    fc2="mlp.down_proj",
    scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
)
GATED = replace(PLAIN, fc1=("mlp.gate_proj", "mlp.up_proj"))
SIZES = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536, "patch_size": 16}
ROPE = Rope(offset=0.5, span=(2.0, 2.0), start=-1.0)


def plan(file: CheckpointFile, document: Document, options: Options) -> Plan:
    """Raises: CheckpointError, ConfigError."""
    saved = common.architecture(document, ("DINOv3ViTModel",), "DINOv3ViTModel")
    gated = document.flag("use_gated_mlp", False)
    config = ViTConfig(
        **common.encoder(document, SIZES, eps=1e-5),
        num_classes=0,
        num_registers=document.integer("num_register_tokens", 0),
        pos_embed=False,
        rope=ROPE,
        layer_scale=True,
        gated_mlp=gated,
    )
    steps = common.module("embeddings.patch_embed.proj", "embeddings.patch_embeddings")
    steps["embeddings.cls_token"] = take("embeddings.cls_token")
    ignored = {"embeddings.mask_token": "stands in for masked patches in training"}
    if config.num_registers:
        steps["embeddings.register_tokens"] = take("embeddings.register_tokens")
    else:
        ignored["embeddings.register_tokens"] = "holds no token"
    steps["rope.inv_freq"] = Step((), partial(_frequencies, document.number("rope_theta", 100.0), config.head_dim))
    names, prefix = GATED if gated else PLAIN, "model." if common.has_prefix(file, "model.layer.") else ""
    steps |= common.blocks(
        config,
        replace(names, layer=prefix + names.layer),
        qkv_bias=(document.flag("query_bias", True), document.flag("key_bias", False), document.flag("value_bias", True)),
        proj_bias=document.flag("proj_bias", True),
        mlp_bias=document.flag("mlp_bias", True),
    )
    steps |= common.module("norm", "norm")
    return common.finish(Plan(config, steps, common.ignore(file, ignored), arch=saved), file, options, document)


def _frequencies(theta: float, head_dim: int) -> Tensor:
    """Radians per unit: 2 pi / theta^(4 i / D_h) (RoFormer, sec. 3.2.2), the power in float32 as transformers computes it."""
    import math

    import torch

    powers = theta ** torch.arange(0, 1, 4 / head_dim, dtype=torch.float32)
    return ((1 / powers).double() * (2 * math.pi)).float()
