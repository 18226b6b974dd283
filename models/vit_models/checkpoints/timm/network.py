"""What timm's three classes compute for their arguments, in the words of ViTConfig, and how they name and store it.

| | VisionTransformer | Eva | Beit |
| --- | --- | --- | --- |
| without being told, pools | the class token | the patches' mean | the patches' mean |
| final norm | norm; fc_norm for a mean | the same | the same |
| attn.qkv.bias | attn.qkv.bias | attn.q_bias, .v_bias; as VisionTransformer's with attn_type "rope" | attn.q_bias, .v_bias |
| attn.qkv in three | | attn.q_proj, .k_proj, .v_proj unless qkv_fused | |
| ls1.gamma, ls2.gamma | ls1.gamma, ls2.gamma | gamma_1, gamma_2 | gamma_1, gamma_2 |
| gated MLP | SwiGLUPacked: mlp.fc1; SwiGLU: mlp.fc1_g, .fc1_x | with scale_mlp or an alignment .fc1_g, .fc1_x, else .fc1 | .fc1_g, .fc1_x |
| positions | a table | a table, rotary angles, or both | a table, or attn.relative_position_bias_table |

VisionTransformerDistilled has dist_token and head_dist beside it, and gives the mean of both heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from vit_models.checkpoints.documents import Document
from vit_models.checkpoints.timm.archs import Arch, arguments
from vit_models.config import Rope
from vit_models.errors import CheckpointError

POOLS = {"token": "cls", "avg": "mean", "map": "map"}
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "silu": "silu", "swish": "silu", "relu": "relu"}
TABLE = "relative_position_bias_table"


class Turn(NamedTuple):
    """How rotary angles are stored: not at all. They are `scale * temperature ** -(i / n)`, i of n, n = head_dim / 4.

    `interleaved`: channels 2i and 2i + 1 turn together, not i and i + head_dim / 2. `columns_first`: the first angles are the columns'.
    """

    scale: float
    temperature: float
    interleaved: bool
    columns_first: bool


@dataclass(frozen=True)
class Names:
    """Where the parameters lie, and which biases there are; the names of a block's without the block."""

    qkv: tuple[str, ...] = ("attn.qkv.weight",)
    qkv_bias: tuple[str, ...] = ("attn.qkv.bias",)  # two are the queries' and the values'
    linear_bias: bool = True  # of attn.proj and of the MLP
    patch_bias: bool = True
    fc1: tuple[str, ...] = ("mlp.fc1",)
    scales: tuple[str, str] = ("ls1.gamma", "ls2.gamma")
    norm: str = "norm"
    prefix_has_positions: bool = True
    relative: tuple[str, ...] = ()  # tables of relative positions; one without "attn." is all blocks'
    turn: Turn | None = None


@dataclass(frozen=True)
class Network:
    """Fields of ViTConfig, less the image size; the names; and the image size that it is built for if nothing else is said."""

    fields: Mapping[str, Any]
    names: Names
    img_size: tuple[int, int]


def network(arch: Arch, *layers: Mapping[str, Any]) -> Network:
    """What an architecture computes for its class's arguments: its own, then the layers', the last one last.

    Raises: CheckpointError for arguments of the wrong kind, and for what ViTConfig cannot express.
    """
    cls, args = arch.cls, arguments(arch.cls, arch.args, *layers)
    fields, names = (_eva if cls == "Eva" else _beit if cls == "Beit" else _vision_transformer)(args)
    if cls == "VisionTransformerDistilled":
        _expect(args, "global_pool", "token")
        _expect(args, "fc_norm", None, False)
        _expect(args, "no_embed_class", False)
        _expect(args, "reg_tokens", 0)
        fields |= {"distilled": True, "pool": "cls_dist_mean"}
    return Network(_common(args) | fields | {"resample": arch.resample}, names, args.size("img_size"))


def _common(args: Document) -> dict[str, Any]:
    _expect(args, "norm_layer", None)
    patch_size = args.size("patch_size")
    if patch_size[0] != patch_size[1]:
        raise args.unlike("patch_size", "square patches; this network has no others")
    width = args.integer("embed_dim")
    return {
        "patch_size": patch_size[0],
        "embed_dim": width,
        "depth": args.integer("depth"),
        "num_heads": args.integer("num_heads"),
        "mlp_dim": int(width * args.number("mlp_ratio")),
        "num_classes": args.integer("num_classes"),
        "in_chans": args.integer("in_chans"),
        "layer_norm_eps": args.number("norm_eps"),
        "qk_norm": args.flag("qk_norm", False),
        **{"class_token": True, "distilled": False, "num_registers": 0, "rope": None, "rel_pos_bias": False},
        **{"pre_norm": False, "attn_norm": False},
    }


def _vision_transformer(args: Document) -> tuple[dict[str, Any], Names]:
    _expect(args, "block_fn", "Block")
    _expect(args, "attn_layer", "Attention", "attn", "")
    _expect(args, "embed_layer", "PatchEmbed")
    _expect(args, "embed_norm_layer", None)
    _expect(args, "mlp_layer", "Mlp", "SwiGLUPacked", "SwiGLU")
    _expect(args, "pos_embed", "learn", "none", "")
    mlp, pool, linear_bias, pre_norm = args.text("mlp_layer"), _pool(args), args.flag("proj_bias"), args.flag("pre_norm")
    gated, class_token, registers = mlp != "Mlp", args.flag("class_token"), args.integer("reg_tokens")
    pooled = args.flag("fc_norm", pool == "mean")
    if pool == "map" and (class_token or registers) and not args.flag("pool_include_prefix"):
        raise args.unlike("global_pool", "token or avg, because the learned probe would leave the tokens before the patches out")
    if pool == "map" and (gated or args.flag("scale_mlp_norm")):
        raise args.unlike("global_pool", "token or avg, because the probe's MLP would differ from the blocks'")
    fields: dict[str, Any] = {
        "class_token": class_token,
        "num_registers": registers,
        "pos_embed": args.text("pos_embed") == "learn",
        "pool": "mean_all" if pool == "mean" and args.flag("pool_include_prefix") else pool,
        "final_norm": ("pooled" if pooled else "tokens") if args.flag("final_norm") else "none",
        "pre_norm": pre_norm,
        "attn_norm": args.flag("scale_attn_norm"),
        "mlp_norm": args.flag("scale_mlp_norm"),
        "layer_scale": bool(args.number("init_values", 0.0)),
        "gated_mlp": gated,
        "activation": _activation(args),
    }
    if mlp == "SwiGLUPacked":
        fields["mlp_dim"] = int(args.integer("embed_dim") * args.number("mlp_ratio")) // 2
    names = Names(
        qkv_bias=("attn.qkv.bias",) if args.flag("qkv_bias") else (),
        linear_bias=linear_bias,
        patch_bias=not pre_norm,
        fc1=("mlp.fc1_g", "mlp.fc1_x") if mlp == "SwiGLU" else ("mlp.fc1",),
        norm="fc_norm" if pooled else "norm",
        prefix_has_positions=not args.flag("no_embed_class"),
    )
    return fields, names


def _eva(args: Document) -> tuple[dict[str, Any], Names]:
    _expect(args, "use_post_norm", False)
    _expect(args, "attn_only_layer_scale", False)
    _expect(args, "num_kv_heads", None, args.integer("num_heads"))
    _expect(args, "attn_type", "eva", "rope")
    pool, gated, scale_mlp, fused = _pool(args), args.flag("swiglu_mlp"), args.flag("scale_mlp"), args.flag("qkv_fused")
    width, align_to, pre_norm = args.integer("embed_dim"), args.integer("swiglu_align_to"), args.flag("use_pre_transformer_norm")
    hidden = int(width * args.number("mlp_ratio"))
    if gated and align_to:
        hidden += -hidden % align_to
    pooled = args.flag("use_fc_norm", args.text("global_pool") == "avg")
    normed = args.flag("use_post_transformer_norm", not pooled)
    if pooled and normed:
        raise args.unlike("use_fc_norm", "one norm after the blocks, on the tokens or after pooling")
    if pool == "map":
        _expect(args, "attn_pool_num_heads", None, 0, args.integer("num_heads"))
        if gated or scale_mlp or int(width * (args.number("attn_pool_mlp_ratio", 0.0) or args.number("mlp_ratio"))) != hidden:
            raise args.unlike("global_pool", "token or avg, because the probe's MLP would differ from the blocks'")
    rope, turn = _rope(args) if args.flag("use_rot_pos_emb") else (None, None)
    fields = {
        "mlp_dim": hidden,
        "class_token": args.flag("class_token"),
        "num_registers": args.integer("num_reg_tokens"),
        "pos_embed": args.flag("use_abs_pos_emb"),
        "rope": rope,
        "pool": pool,
        "final_norm": "pooled" if pooled else "tokens" if normed else "none",
        "pre_norm": pre_norm,
        "attn_norm": args.flag("scale_attn_inner"),
        "mlp_norm": scale_mlp,
        "layer_scale": args.has("init_values"),
        "gated_mlp": gated,
        "activation": "silu" if gated else "gelu",
    }
    parts = ("q", "k", "v") if args.text("attn_type") == "rope" else ("q", "v")
    packed = ("attn.qkv.bias",) if len(parts) == 3 else ("attn.q_bias", "attn.v_bias")
    bias = packed if fused else tuple(f"attn.{part}_proj.bias" for part in parts)
    names = Names(
        qkv=("attn.qkv.weight",) if fused else tuple(f"attn.{part}_proj.weight" for part in "qkv"),
        qkv_bias=bias if args.flag("qkv_bias") else (),
        patch_bias=not pre_norm,
        fc1=("mlp.fc1_g", "mlp.fc1_x") if gated and (scale_mlp or align_to) else ("mlp.fc1",),
        scales=("gamma_1", "gamma_2"),
        norm="fc_norm" if pooled else "norm",
        prefix_has_positions=not args.flag("no_embed_class"),
        turn=turn,
    )
    return fields, names


def _rope(args: Document) -> tuple[Rope, Turn]:
    """By a patch's place, stretched over `ref_feat_shape` if there is one ("cat"), or by its centre between -1 and 1 ("dinov3")."""
    _expect(args, "rope_type", "cat", "dinov3")
    _expect(args, "rope_grid_indexing", "ij", "xy")
    temperature, offset, centred = args.number("rope_temperature"), args.number("rope_grid_offset"), args.text("rope_type") == "dinov3"
    if temperature <= 0:
        raise args.unlike("rope_temperature", "a number above 0")
    turn = Turn(
        scale=2 * math.pi if centred else 1.0,
        temperature=temperature,
        interleaved=not args.flag("rope_rotate_half"),
        columns_first=args.text("rope_grid_indexing") == "xy",
    )
    if centred:
        return Rope(offset=0.5 + offset, span=(2.0, 2.0), start=-1.0), turn
    down, across = args.size("ref_feat_shape") if args.has("ref_feat_shape") else (0, 0)
    return Rope(offset=offset, span=(float(down), float(across)) if down else None), turn


def _beit(args: Document) -> tuple[dict[str, Any], Names]:
    pool, gated = _pool(args), args.flag("swiglu_mlp")
    if pool == "map":
        raise args.unlike("global_pool", "token or avg")
    pooled = args.flag("use_fc_norm", pool == "mean")
    own, shared = args.flag("use_rel_pos_bias"), args.flag("use_shared_rel_pos_bias")
    fields = {
        "pos_embed": args.flag("use_abs_pos_emb"),
        "rel_pos_bias": own or shared,
        "pool": pool,
        "final_norm": "pooled" if pooled else "tokens",
        "mlp_norm": args.flag("scale_mlp"),
        "layer_scale": bool(args.number("init_values", 0.0)),
        "gated_mlp": gated,
        "activation": "silu" if gated else "gelu",
    }
    names = Names(
        qkv_bias=("attn.q_bias", "attn.v_bias") if args.flag("qkv_bias") else (),
        fc1=("mlp.fc1_g", "mlp.fc1_x") if gated else ("mlp.fc1",),
        scales=("gamma_1", "gamma_2"),
        norm="fc_norm" if pooled else "norm",
        relative=(f"attn.{TABLE}",) * own + (f"rel_pos_bias.{TABLE}",) * shared,
    )
    return fields, names


def _pool(args: Document) -> str:
    name = args.text("global_pool")
    if name not in POOLS:
        raise args.unlike(
            "global_pool", f"one of {', '.join(POOLS)}; give --model-arg global_pool=token to have the class token's features"
        )
    return POOLS[name]


def _activation(args: Document) -> str:
    name = args.text("act_layer", None) or "gelu"
    if name not in ACTIVATIONS:
        raise args.unlike("act_layer", f"one of {', '.join(ACTIVATIONS)}; this network has no other")
    return ACTIVATIONS[name]


def _expect(args: Document, key: str, *allowed: Any) -> None:
    if args.values[key] not in allowed:
        names = " or ".join("none" if value is None else str(value) or "''" for value in allowed)
        raise CheckpointError(
            f"{args.name} has {key} {args.values[key]!r}, expected {names}; this network has no other, so convert one without it"
        )
