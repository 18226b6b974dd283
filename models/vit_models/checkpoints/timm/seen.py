"""What the names and shapes of a state dict tell by themselves, and where the rest comes from.

The number of heads, the activation, the epsilon, the pooling and rotary angles leave no trace. They come from `--arch`, from
`--model-arg`, from the published architectures whose weights have exactly these names and sizes (if they agree), and last from what
VisionTransformer does by default.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from vit_models.checkpoints import bare
from vit_models.checkpoints.documents import Document
from vit_models.checkpoints.plan import CheckpointFile, Options
from vit_models.checkpoints.timm.archs import Arch, defaults, readable
from vit_models.checkpoints.timm.network import TABLE, Names, Network, network
from vit_models.errors import CheckpointError, OptionError

SIZES = ("embed_dim", "depth", "mlp_dim")
PARTS = (
    *("class_token", "distilled", "num_registers", "pos_embed", "pre_norm", "qk_norm", "attn_norm", "mlp_norm"),
    *("layer_scale", "gated_mlp", "rel_pos_bias"),
)

Size = tuple[int, int]


def look(file: CheckpointFile, trained: Size | None, run: Size | None) -> Network:
    """The network as far as names and shapes tell it; `trained` and `run` are image sizes, where somebody said them.

    Raises: CheckpointError for weights that are not a timm vision transformer's.
    """
    tensors = file.tensors
    width, channels, *patch = bare.shape(file, "patch_embed.proj.weight", "width", "channels", "P", "P")
    patch_size = bare.square_patch("patch_embed.proj.weight", *patch)
    blocks = bare.indexed(file, r"(blocks\.(\d{1,4}))\.norm1\.weight")
    inside = {name.removeprefix(f"{blocks[0]}.") for name in tensors if name.startswith(f"{blocks[0]}.")}
    fc1 = ("mlp.fc1_g", "mlp.fc1_x") if "mlp.fc1_g.weight" in inside else ("mlp.fc1",)
    hidden = bare.shape(file, f"{blocks[0]}.mlp.fc2.weight", "width", "mlp_dim")[1]
    rows = bare.shape(file, f"{blocks[0]}.{fc1[0]}.weight", "mlp_dim", "width")[0]
    registers = bare.shape(file, "reg_token", "1", "registers", "width")[1] if "reg_token" in tensors else 0
    fused, gammas = "attn.qkv.weight" in inside, "gamma_1" in inside
    biases = [f"attn.{name}" for name in ("qkv.bias", "q_bias", "v_bias", "q_proj.bias", "k_proj.bias", "v_proj.bias")]
    relative = tuple(name for name in (f"attn.{TABLE}", f"rel_pos_bias.{TABLE}") if name in inside or name in tensors)
    pool, final_norm, norm = _pooling(file)
    fields: dict[str, Any] = {
        "patch_size": patch_size,
        "embed_dim": width,
        "depth": len(blocks),
        "mlp_dim": hidden,
        "num_classes": bare.shape(file, "head.weight", "num_classes", "width")[0] if "head.weight" in tensors else 0,
        "in_chans": channels,
        "class_token": "cls_token" in tensors,
        "distilled": "dist_token" in tensors,
        "num_registers": registers,
        "pos_embed": "pos_embed" in tensors,
        "pre_norm": "norm_pre.weight" in tensors,
        "qk_norm": "attn.q_norm.weight" in inside,
        "attn_norm": "attn.norm.weight" in inside,
        "mlp_norm": "mlp.norm.weight" in inside,
        "layer_scale": gammas or "ls1.gamma" in inside,
        "gated_mlp": len(fc1) == 2 or rows == 2 * hidden,
        "rel_pos_bias": bool(relative),
        "pool": pool,
        "final_norm": final_norm,
    }
    if fields["qk_norm"]:
        fields["num_heads"] = width // bare.shape(file, f"{blocks[0]}.attn.q_norm.weight", "head_dim")[0]
    elif relative:
        name = relative[0] if relative[0] in tensors else f"{blocks[0]}.{relative[0]}"
        fields["num_heads"] = bare.shape(file, name, "offsets", "heads")[1]
    names = Names(
        qkv=("attn.qkv.weight",) if fused else tuple(f"attn.{part}_proj.weight" for part in "qkv"),
        qkv_bias=tuple(name for name in biases if name in inside),
        linear_bias="attn.proj.bias" in inside,
        patch_bias="patch_embed.proj.bias" in tensors,
        fc1=fc1,
        scales=("gamma_1", "gamma_2") if gammas else ("ls1.gamma", "ls2.gamma"),
        norm=norm,
        prefix_has_positions=_prefix_has_positions(file, fields, trained, run),
        relative=relative,
    )
    return Network(fields, names, (0, 0))


def _pooling(file: CheckpointFile) -> tuple[str, str, str]:
    """Pooling, the place of the final norm and its name."""
    if "fc_norm.weight" in file.tensors:
        return "map" if "attn_pool.latent" in file.tensors else "mean", "pooled", "fc_norm"
    final_norm = "tokens" if "norm.weight" in file.tensors else "none"
    if "attn_pool.latent" in file.tensors:
        return "map", final_norm, "norm"
    if "dist_token" in file.tensors:
        return "cls_dist_mean", final_norm, "norm"
    return "cls" if "cls_token" in file.tensors else "mean", final_norm, "norm"


def _prefix_has_positions(file: CheckpointFile, fields: Mapping[str, Any], trained: Size | None, run: Size | None) -> bool:
    """Whether the position table has rows for the tokens before the patches: by the size, by what makes a square, by the size to run at."""
    prefix = int(fields["class_token"]) + int(fields["distilled"]) + fields["num_registers"]
    if not prefix or not fields["pos_embed"]:
        return True
    rows, patch_size = bare.shape(file, "pos_embed", "1", "tokens", "width")[1], fields["patch_size"]
    areas = [(size[0] // patch_size) * (size[1] // patch_size) if size else 0 for size in (trained, run)]
    for fits in (areas[0].__eq__, _is_square, areas[1].__eq__):
        if fits(rows - prefix) or fits(rows):
            return bool(fits(rows - prefix))
    return True


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def complete(file: CheckpointFile, options: Options, arch: Arch | None, given: Mapping[str, Any]) -> tuple[Network, list[Arch]]:
    """The whole network of a state dict, and the published ones that it may be; `given` is what --model-arg says.

    Raises: CheckpointError that asks for what cannot be told, or says what does not go together.
    """
    seen = look(file, Document("--model-arg", dict(given)).size("img_size", None), options.img_size)
    if arch is None:
        published = _published(seen, given)
        if published is None:
            return _finished(seen, _unnamed(seen, given), given), []
        return _finished(seen, published[0], given), published
    plain = network(arch)
    if "num_heads" not in given and "num_heads" not in seen.fields and any(plain.fields[key] != seen.fields[key] for key in SIZES):
        raise CheckpointError(
            f"timm's {arch.name} has {_spell(plain)}, but the file has {_spell(seen)}; name its own architecture with --arch, "
            f"or, if it was built with other arguments, say how many heads it has (--model-arg num_heads={plain.fields['num_heads']})"
        )
    return _finished(seen, arch, given), [arch]


def _finished(seen: Network, arch: Arch, given: Mapping[str, Any]) -> Network:
    """The architecture with the arguments that the file shows. Raises: OptionError where what is told does not fit it."""
    found = network(arch, _arguments(seen, arch, given), given)
    for key in (*SIZES, *PARTS, "patch_size", "in_chans", "num_classes", "final_norm"):
        if found.fields[key] != seen.fields[key]:
            raise OptionError(
                f"as told, timm's {arch.cls} has {key} {found.fields[key]}, the file has {seen.fields[key]}; correct --arch or --model-arg"
            )
    return replace(found, names=replace(seen.names, turn=found.names.turn))


def _arguments(seen: Network, arch: Arch, given: Mapping[str, Any]) -> dict[str, Any]:
    """The class's arguments that make the network which the file shows."""
    fields, names, gated = seen.fields, seen.names, seen.fields["gated_mlp"]
    split = len(names.fc1) == 2
    heads = {"num_heads": fields["num_heads"]} if "num_heads" in fields else {}
    rows = 2 * fields["mlp_dim"] if gated and not split and arch.cls != "Eva" else fields["mlp_dim"]
    args: dict[str, Any] = {key: fields[key] for key in ("patch_size", "embed_dim", "depth", "num_classes", "in_chans")} | heads
    args["mlp_ratio"] = (rows + 0.5) / fields["embed_dim"]  # rounded down to the row
    args |= {"init_values": 1.0 if fields["layer_scale"] else None, "qkv_bias": bool(names.qkv_bias)}
    plain, shows_pool = network(arch), fields["final_norm"] != "none" or fields["pool"] == "map"
    other = shows_pool and _pooling_parts(plain) != _pooling_parts(seen) and not given.keys() & {"fc_norm", "use_fc_norm"}
    if not arch.name or other or (plain.fields["pool"] == "cls" and not fields["class_token"]):
        args["global_pool"] = {"mean": "avg", "map": "map"}.get(fields["pool"], "token")
    pooled, normed = fields["final_norm"] == "pooled", fields["final_norm"] != "none"
    if arch.cls == "Beit":
        tables = {
            "use_rel_pos_bias": f"attn.{TABLE}" in names.relative,
            "use_shared_rel_pos_bias": f"rel_pos_bias.{TABLE}" in names.relative,
        }
        return (
            args
            | tables
            | {"use_abs_pos_emb": fields["pos_embed"], "swiglu_mlp": gated, "scale_mlp": fields["mlp_norm"], "use_fc_norm": pooled}
        )
    args |= {"class_token": fields["class_token"], "qk_norm": fields["qk_norm"], "no_embed_class": not names.prefix_has_positions}
    if arch.cls == "Eva":
        return args | {
            "num_reg_tokens": fields["num_registers"],
            "use_abs_pos_emb": fields["pos_embed"],
            "use_pre_transformer_norm": fields["pre_norm"],
            "scale_attn_inner": fields["attn_norm"],
            "swiglu_mlp": gated,
            "swiglu_align_to": int(split),
            "scale_mlp": fields["mlp_norm"],
            "qkv_fused": len(names.qkv) == 1,
            "use_fc_norm": pooled,
            "use_post_transformer_norm": normed and not pooled,
        }
    return args | {
        "reg_tokens": fields["num_registers"],
        "pos_embed": "learn" if fields["pos_embed"] else "none",
        "pre_norm": fields["pre_norm"],
        "scale_attn_norm": fields["attn_norm"],
        "scale_mlp_norm": fields["mlp_norm"],
        "mlp_layer": "SwiGLU" if split else "SwiGLUPacked" if gated else "Mlp",
        "proj_bias": names.linear_bias,
        "fc_norm": pooled,
        "final_norm": normed,
    }


def _pooling_parts(found: Network) -> tuple[Any, ...]:
    final_norm = found.fields["final_norm"]
    return found.fields["pool"] == "map", final_norm, found.names.norm if final_norm != "none" else None


def _visible(found: Network, exact: bool) -> tuple[Any, ...]:
    """What of a network a state dict shows; if not `exact`, less what DeiT III's own files and other patches change."""
    names = replace(found.names, turn=None, scales=("", ""), prefix_has_positions=True)
    strict = (found.fields["patch_size"], found.names.scales, found.names.prefix_has_positions) if exact else ()
    return *(found.fields[key] for key in (*SIZES, *PARTS)), names, _pooling_parts(found), strict


def _untold(found: Network) -> tuple[Any, ...]:
    return *(found.fields[key] for key in ("num_heads", "activation", "layer_norm_eps", "pool", "rope")), found.names.turn


def _published(seen: Network, given: Mapping[str, Any]) -> list[Arch] | None:
    """The published architectures with these names and sizes, None without any.

    Raises: CheckpointError if they are of several kinds.
    """
    networks = list(_networks(given))
    for exact in (True, False):
        shown, kinds = _visible(seen, exact), dict[tuple[Any, ...], list[Arch]]()
        for arch, candidate in networks:
            heads = candidate.fields["num_heads"]
            if _visible(candidate, exact) == shown and heads == seen.fields.get("num_heads", heads):
                kinds.setdefault(_untold(candidate), []).append(arch)
        if len(kinds) > 1:
            some = " and ".join(archs[0].name for archs in kinds.values())
            raise CheckpointError(f"these weights fit timm's {some}, which compute different things; say which with --arch NAME")
        if kinds:
            return next(iter(kinds.values()))
    return None


def _unnamed(seen: Network, given: Mapping[str, Any]) -> Arch:
    """A network of no published size, of which only the number of heads has to be told.

    Raises: CheckpointError that asks for what cannot be told.
    """
    cls = "Beit" if seen.fields["rel_pos_bias"] else "VisionTransformerDistilled" if seen.fields["distilled"] else "VisionTransformer"
    like_eva = len(seen.names.qkv) == 3 or len(seen.names.qkv_bias) == 2 or seen.names.scales[0] == "gamma_1"
    if cls != "Beit" and like_eva:
        raise CheckpointError(
            "these weights look like those of timm's Eva, whose rotary positions are not in the file, and are of no published size; "
            "say which it is with --arch NAME, and with --model-arg what else it was built with"
        )
    heads = {seen.fields["num_heads"]} if "num_heads" in seen.fields else _published_heads(seen)
    if "num_heads" not in given and len(heads) != 1:
        raise CheckpointError(
            f"the number of heads is not in the file, and no published network has {_spell(seen)}; "
            "give it with --model-arg num_heads=6, or --arch NAME if it is a published one"
        )
    if cls != "Beit" and seen.fields["gated_mlp"] and "act_layer" not in given:
        raise CheckpointError(
            "the activation that gates its MLP is not in the file; give it with --model-arg act_layer=silu, or --arch NAME"
        )
    return Arch("", cls, {"num_heads": next(iter(heads))} if heads else {})


def _published_heads(seen: Network) -> set[int]:
    """The numbers of heads of the published networks of these sizes, whatever else they are."""
    return {found.fields["num_heads"] for _, found in _networks({}) if all(found.fields[key] == seen.fields[key] for key in SIZES)}


def _networks(given: Mapping[str, Any]) -> Iterator[tuple[Arch, Network]]:
    """The published architectures that can be computed and take the arguments."""
    for arch in readable():
        if given.keys() <= defaults(arch.cls).keys():
            with contextlib.suppress(CheckpointError):  # of those that this network cannot compute
                yield arch, network(arch, given)


def _spell(found: Network) -> str:
    return "width {}, depth {} and MLP width {}".format(*(found.fields[key] for key in SIZES))
