"""Write timm.npz beside this file: small networks of timm's classes with random weights, and what timm computes with them.

    pip install timm==1.0.31        # not a dependency of this project; it brings torchvision
    python tests/models/checkpoints/data/make_timm.py

A case has `config`, the config.json of its folder; `names`, those of its weights with their shapes, and `weights`, all of them one after
the other (float16, to which they had been rounded before timm ran); and for two image sizes, the network's own and another one that
timm's `set_input_size` made of it, `images`, `embedding` and `logits`; for its own, `tokens` too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

COMMON = {"depth": 2, "embed_dim": 16, "num_heads": 2, "patch_size": 4, "mlp_ratio": 1.25, "num_classes": 3}
SIZES = ((16, 16), (20, 12)), ((8, 16), (16, 12))  # a square network, and one that is not
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "beit_shared": ("beit_base_patch16_224", {"use_shared_rel_pos_bias": True, "use_abs_pos_emb": True}),
    "beit_swiglu": ("beit_base_patch16_224", {"swiglu_mlp": True, "scale_mlp": True, "global_pool": "token"}),
    "deit_distilled": ("deit_tiny_distilled_patch16_224", {"qkv_bias": False, "init_values": 0.1}),
    "deit3": ("deit3_small_patch16_224", {}),
    "eva_giant": ("eva_giant_patch14_224", {}),
    "eva02_map": ("eva02_tiny_patch14_224", {"global_pool": "map", "swiglu_mlp": False}),
    "eva02_sub_norms": ("eva02_base_patch14_224", {"qk_norm": True, "num_reg_tokens": 2}),
    "eva02_turned": ("eva02_tiny_patch14_224", {"rope_grid_indexing": "xy", "ref_feat_shape": [7, 5], "rope_grid_offset": 0.5}),
    "dinov3": ("vit_small_patch16_dinov3", {"rope_grid_indexing": "xy"}),
    "dinov3_interleaved": ("vit_small_plus_patch16_dinov3", {"rope_rotate_half": False, "use_abs_pos_emb": True, "qk_norm": True}),
    "rope_gap": ("vit_betwixt_patch16_rope_reg4_gap_256", {}),
    "pe": ("vit_pe_lang_large_patch14_448", {"init_values": None}),
    "vit_avg": ("vit_tiny_patch16_224", {"global_pool": "avg", "pool_include_prefix": True, "reg_tokens": 3, "act_layer": "relu"}),
    "vit_bare_biases": ("vit_tiny_patch16_224", {"qkv_bias": False, "proj_bias": False, "in_chans": 1, "num_classes": 0}),
    "vit_clip": ("vit_base_patch16_clip_quickgelu_224", {"act_layer": "gelu_tanh", "norm_layer": "layernorm"}),
    "vit_map": ("vit_base_patch16_siglip_512", {"fc_norm": True}),
    "vit_no_positions": ("vit_tiny_patch16_224", {"pos_embed": "none", "no_embed_class": True, "final_norm": False}),
    "vit_norms": ("vit_small_patch16_224", {"scale_attn_norm": True, "scale_mlp_norm": True, "qk_norm": True, "fc_norm": True}),
    "vit_swiglu": ("vit_giant_patch14_reg4_dinov2", {"act_layer": "silu"}),
}


def main() -> None:
    """Write the file."""
    arrays: dict[str, Any] = {}
    for number, (name, (arch, special)) in enumerate(CASES.items()):
        torch.manual_seed(number)
        size, other = SIZES[number % 2]
        args = {**COMMON, "img_size": list(size), **special}
        model = timm.create_model(arch, **{key: tuple(value) if isinstance(value, list) else value for key, value in args.items()}).eval()
        randomise(model)
        cfg = {"input_size": [model.in_chans, *size], "fixed_input_size": True, "mean": [0.5] * 3, "std": [0.5] * 3}
        arrays[f"{name}/config"] = json.dumps({"architecture": arch, "model_args": args, "pretrained_cfg": cfg})
        state = {key: value.numpy().astype(np.float16) for key, value in model.state_dict().items()}
        arrays[f"{name}/names"] = json.dumps([(key, value.shape) for key, value in state.items()])
        arrays[f"{name}/weights"] = np.concatenate([value.ravel() for value in state.values()])
        for place in (size, other):
            model.set_input_size(place)
            images = torch.randn(1, model.in_chans, *place).half().float()
            with torch.no_grad():
                tokens = model.forward_features(images)
                found = {"tokens": tokens, "embedding": model.forward_head(tokens, pre_logits=True), "logits": model(images)}
            key = f"{name}/{place[0]}x{place[1]}"
            arrays[f"{key}/images"] = images.numpy().astype(np.float16)
            kept = ["embedding"] + ["logits"] * (model.num_classes > 0) + ["tokens"] * (place == size)
            arrays |= {f"{key}/{output}": found[output].numpy() for output in kept}
    np.savez_compressed(Path(__file__).with_name("timm.npz"), **arrays)


def randomise(model: torch.nn.Module) -> None:
    """Every parameter drawn anew, so that none is zeros or ones, and two of the same shape differ."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 and "weight" in name else 0.3
            around = 1.0 if name.endswith((".weight", "gamma", "gamma_1", "gamma_2")) and parameter.ndim == 1 else 0.0
            parameter.copy_((around + scale * torch.randn_like(parameter)).half())


if __name__ == "__main__":
    main()
