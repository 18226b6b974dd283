"""Models of Hugging Face transformers in shapes that no reference checkpoint has, and what each computes.

The tests of the reader compare them in float64, `checkpoint_table.py` lists their float32 errors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers as hf
from torch import Tensor, nn

OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "fc2", "down_proj")

Outputs = dict[str, Tensor]


class Reference(NamedTuple):
    """A model of transformers in a shape that no reference checkpoint has, and how to compute our outputs with it."""

    model: Callable[[], hf.PreTrainedModel]
    outputs: Callable[[Any, Tensor], Outputs]
    size: tuple[int, int]  # height and width of the images to run at
    resampled: bool = False  # whether that is another size than the trained one
    cut: int = 0  # pixels below and to the right of `size`, which transformers takes and its patches do not reach


def randomize(model: nn.Module, seed: int) -> None:
    """Give every parameter random values. The residual stream is so small that a wrong epsilon changes the outputs."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim > 1 and "embed" not in name.split(".")[-1] and "token" not in name and "probe" not in name:
            wide = value.shape[1:].numel() ** -0.5
            small = any(part in name for part in OUTPUT_PROJECTIONS) or "patch" in name
            noise = noise * wide * (0.05 if small else 1.0)
        elif name.endswith(("weight", "lambda1", "lambda_1", "lambda_2")) and value.ndim == 1:
            noise = 1 + 0.3 * noise
        else:
            noise = 0.05 * noise
        value.data = noise


def encoded(model: Any, images: Tensor, **options: Any) -> Any:
    """The outputs of the base model."""
    if isinstance(model, hf.DINOv3ViTModel):  # its base_model_prefix names the list of layers
        return model(images)
    return getattr(model, model.base_model_prefix, model)(images, **options)


def class_token(model: Any, images: Tensor, **options: Any) -> Outputs:
    """The embedding is the class token."""
    tokens = encoded(model, images, **options).last_hidden_state
    outputs = {"tokens": tokens, "embedding": tokens[:, 0]}
    return outputs | ({"logits": model(images, **options).logits} if hasattr(model, "classifier") else {})


def pooler(model: Any, images: Tensor, **options: Any) -> Outputs:
    """The embedding is the pooler's output."""
    out = encoded(model, images, **options)
    outputs = {"tokens": out.last_hidden_state, "embedding": out.pooler_output}
    return outputs | ({"logits": model(images, **options).logits} if hasattr(model, "classifier") else {})


def resized(outputs: Callable[..., Outputs]) -> Callable[[Any, Tensor], Outputs]:
    """The same outputs at another image size than the trained one."""
    return lambda model, images: outputs(model, images, interpolate_pos_encoding=True)


def teacher(model: Any, images: Tensor) -> Outputs:
    """The embedding is the class token and the distillation token."""
    tokens = encoded(model, images).last_hidden_state
    return {"tokens": tokens, "embedding": tokens[:, :2].flatten(1), "logits": model(images).logits}


def averaged(model: Any, images: Tensor, **options: Any) -> Outputs:
    """The embedding is the mean of all tokens."""
    tokens = encoded(model, images, **options).last_hidden_state
    outputs = {"tokens": tokens, "embedding": tokens.mean(dim=1)}
    return outputs | ({"logits": model(images, **options).logits} if hasattr(model, "classifier") else {})


def siglip_classifier(model: Any, images: Tensor) -> Outputs:
    """The classifier averages the tokens instead of using the pooler."""
    tokens = model.vision_model(images).last_hidden_state
    return {"tokens": tokens, "embedding": tokens.mean(dim=1), "logits": model(images).logits}


def unmasked(model: Any, images: Tensor) -> Outputs:
    """MAE with every patch, in order."""
    patches = (images.shape[2] // model.config.patch_size) * (images.shape[3] // model.config.patch_size)
    model.config.mask_ratio = 0.0
    order = torch.arange(patches).expand(len(images), -1).double()
    return class_token(model, images, noise=order)


def beside_mean(prefix: int) -> Callable[[Any, Tensor], Outputs]:
    """The embedding is the class token and the mean of the patches, which follow `prefix` other tokens."""

    def outputs(model: Any, images: Tensor) -> Outputs:
        tokens = encoded(model, images).last_hidden_state
        embedding = torch.cat([tokens[:, 0], tokens[:, prefix:].mean(dim=1)], dim=1)
        return {"tokens": tokens, "embedding": embedding, "logits": model(images).logits}

    return outputs


def clip_vision(model: Any, images: Tensor, **options: Any) -> Outputs:
    """CLIP's image tower, with or without its projection."""
    tower = getattr(model, "vision_model", model)
    out = tower(images, **options)
    outputs = {"tokens": tower.post_layernorm(out.last_hidden_state), "embedding": out.pooler_output}
    return outputs | ({"logits": model.visual_projection(out.pooler_output)} if hasattr(model, "visual_projection") else {})


def clip_classifier(model: Any, images: Tensor) -> Outputs:
    """The embedding is the mean of the patches before the last norm."""
    states = model.vision_model(images).last_hidden_state
    tokens = model.vision_model.post_layernorm(states)
    return {"tokens": tokens, "embedding": states[:, 1:].mean(dim=1), "logits": model(images).logits}


def beit_pretraining(model: Any, images: Tensor) -> Outputs:
    """The embedding is the mean of the patches."""
    tokens = model.beit(images).last_hidden_state
    return {"tokens": tokens, "embedding": tokens[:, 1:].mean(dim=1)}


VIT: dict[str, Any] = {
    "hidden_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "intermediate_size": 72,
    "patch_size": 4,
    "num_labels": 6,
}
WIDE: dict[str, Any] = {
    "hidden_size": 36,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 50,
    "patch_size": 6,
    "num_labels": 3,
}
TEXT: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20, "vocab_size": 30}
RELATIVE: dict[str, Any] = {"use_relative_position_bias": True, "layer_norm_eps": 1e-5}


def clip(**vision: Any) -> hf.CLIPConfig:
    """A configuration of both towers."""
    return hf.CLIPConfig(text_config=TEXT, vision_config=vision, projection_dim=22)


MODELS = {
    "vit, wide images, gelu_new": Reference(
        lambda: hf.ViTForImageClassification(hf.ViTConfig(**VIT, image_size=[12, 20], hidden_act="gelu_new", layer_norm_eps=1e-5)),
        class_token,
        (12, 20),
    ),
    "vit, odd image, relu, one channel": Reference(
        lambda: hf.ViTForImageClassification(hf.ViTConfig(**WIDE, image_size=21, hidden_act="relu", num_channels=1)),
        class_token,
        (18, 18),
        cut=3,
    ),
    "vit, another size": Reference(
        lambda: hf.ViTForImageClassification(hf.ViTConfig(**VIT, image_size=20, qkv_bias=False)), resized(class_token), (28, 12), True
    ),
    "vit with a pooler, silu": Reference(
        lambda: hf.ViTModel(hf.ViTConfig(**VIT, image_size=16, pooler_output_size=24, hidden_act="silu")), pooler, (16, 16)
    ),
    "vit without a pooler": Reference(
        lambda: hf.ViTModel(hf.ViTConfig(**WIDE, image_size=12, hidden_act="quick_gelu"), add_pooling_layer=False), class_token, (12, 12)
    ),
    "deit and its teacher": Reference(
        lambda: hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**VIT, image_size=[20, 8], layer_norm_eps=1e-4)), teacher, (20, 8)
    ),
    "deit, another size": Reference(
        lambda: hf.DeiTForImageClassification(hf.DeiTConfig(**WIDE, image_size=18)), resized(class_token), (24, 12), True
    ),
    "deit, base model": Reference(lambda: hf.DeiTModel(hf.DeiTConfig(**VIT, image_size=12)), pooler, (12, 12)),
    "mae, base model": Reference(lambda: hf.ViTMAEModel(hf.ViTMAEConfig(**VIT, image_size=16)), unmasked, (16, 16)),
    "mae, with its decoder": Reference(
        lambda: hf.ViTMAEForPreTraining(
            hf.ViTMAEConfig(**WIDE, image_size=12, decoder_hidden_size=8, decoder_num_hidden_layers=2, decoder_num_attention_heads=2)
        ),
        unmasked,
        (12, 12),
    ),
    "msn": Reference(lambda: hf.ViTMSNForImageClassification(hf.ViTMSNConfig(**VIT, image_size=16)), resized(class_token), (24, 8), True),
    "ijepa": Reference(lambda: hf.IJepaForImageClassification(hf.IJepaConfig(**VIT, image_size=12)), resized(averaged), (8, 20), True),
    "ijepa, base model": Reference(lambda: hf.IJepaModel(hf.IJepaConfig(**WIDE, image_size=[12, 18])), averaged, (12, 18)),
    "dinov2, swiglu": Reference(
        lambda: hf.Dinov2ForImageClassification(hf.Dinov2Config(**VIT, image_size=16, mlp_ratio=3, use_swiglu_ffn=True)),
        beside_mean(1),
        (16, 16),
    ),
    "dinov2, odd image": Reference(lambda: hf.Dinov2Model(hf.Dinov2Config(**WIDE, image_size=23)), class_token, (18, 18), cut=5),
    "dinov2, another size": Reference(
        lambda: hf.Dinov2Model(hf.Dinov2Config(**WIDE, image_size=30, qkv_bias=False, hidden_act="gelu_pytorch_tanh")),
        class_token,
        (24, 42),
        True,
    ),
    "dinov2, registers, another size": Reference(
        lambda: hf.Dinov2WithRegistersForImageClassification(hf.Dinov2WithRegistersConfig(**VIT, image_size=24, num_register_tokens=3)),
        beside_mean(4),
        (12, 32),
        True,
    ),
    "dinov2, registers, swiglu": Reference(
        lambda: hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**WIDE, image_size=12, use_swiglu_ffn=True)), class_token, (12, 12)
    ),
    "dinov3": Reference(
        lambda: hf.DINOv3ViTModel(
            hf.DINOv3ViTConfig(**VIT, image_size=16, num_register_tokens=2, key_bias=True, proj_bias=False, rope_theta=50.0)
        ),
        pooler,
        (12, 24),
        True,
    ),
    "dinov3, odd image": Reference(lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**VIT, image_size=15)), pooler, (12, 12), cut=3),
    "dinov3, gated, no registers": Reference(
        lambda: hf.DINOv3ViTModel(
            hf.DINOv3ViTConfig(
                **(VIT | {"num_attention_heads": 2}), image_size=8, query_bias=False, mlp_bias=False, use_gated_mlp=True, hidden_act="silu"
            )
        ),
        pooler,
        (8, 8),
    ),
    "clip, vision model": Reference(
        lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**VIT, image_size=16, hidden_act="silu")), resized(clip_vision), (12, 20), True
    ),
    "clip, projected": Reference(
        lambda: hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**WIDE, image_size=20, projection_dim=14, layer_norm_eps=1e-3)),
        clip_vision,
        (18, 18),
        cut=2,
    ),
    "clip, both towers": Reference(lambda: hf.CLIPModel(clip(**VIT, image_size=12)), resized(clip_vision), (16, 8), True),
    "clip, classifier": Reference(
        lambda: hf.CLIPForImageClassification(clip(**(VIT | {"num_labels": 2}), image_size=12)), clip_classifier, (12, 12)
    ),
    "siglip, vision model": Reference(
        lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**(VIT | {"patch_size": 8}), image_size=30, hidden_act="gelu")),
        pooler,
        (24, 24),
        cut=6,
    ),
    "siglip, both towers": Reference(
        lambda: hf.SiglipModel(hf.SiglipConfig(text_config=TEXT, vision_config={**WIDE, "image_size": 12})),
        lambda model, images: pooler(model.vision_model, images, interpolate_pos_encoding=True),
        (18, 24),
        True,
    ),
    "siglip without a pooling head": Reference(
        lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**WIDE, image_size=12, vision_use_head=False)), averaged, (12, 12)
    ),
    "siglip, classifier": Reference(
        lambda: hf.SiglipForImageClassification(hf.SiglipConfig(text_config=TEXT, vision_config={**VIT, "image_size": 12})),
        siglip_classifier,
        (12, 12),
    ),
    "beit": Reference(lambda: hf.BeitForImageClassification(hf.BeitConfig(**VIT, **RELATIVE, image_size=20)), pooler, (20, 20)),
    "beit, odd image": Reference(
        lambda: hf.BeitModel(hf.BeitConfig(**VIT, **RELATIVE, image_size=18, use_absolute_position_embeddings=True)),
        pooler,
        (16, 16),
        cut=2,
    ),
    "beit, wide images": Reference(
        lambda: hf.BeitForImageClassification(hf.BeitConfig(**VIT, **RELATIVE, image_size=[8, 20])), pooler, (8, 20)
    ),
    "beit, another size": Reference(
        lambda: hf.BeitForImageClassification(hf.BeitConfig(**WIDE, **RELATIVE, image_size=24, hidden_act="relu")), pooler, (18, 36), True
    ),
    "beit, every kind of positions, another size": Reference(
        lambda: hf.BeitModel(
            hf.BeitConfig(
                **VIT, **RELATIVE, image_size=16, use_shared_relative_position_bias=True, use_absolute_position_embeddings=True,
                layer_scale_init_value=0.0, use_mean_pooling=False,
            )
        ),
        pooler,
        (12, 24),
        True,
    ),
    "beit, learned positions, another size": Reference(
        lambda: hf.BeitModel(hf.BeitConfig(**WIDE, image_size=24, use_absolute_position_embeddings=True)), pooler, (30, 18), True
    ),
    "beit, before fine-tuning": Reference(
        lambda: hf.BeitForMaskedImageModeling(
            hf.BeitConfig(**VIT, image_size=12, use_shared_relative_position_bias=True, use_mask_token=True, vocab_size=11)
        ),
        beit_pretraining,
        (12, 12),
    ),
}  # fmt: skip


def output_names(num_classes: int) -> tuple[str, ...]:
    """The outputs that are compared."""
    return (("logits",) if num_classes else ()) + ("embedding", "tokens")
