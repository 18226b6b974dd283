"""open_clip: the image tower of a whole checkpoint, or that tower saved alone, by its `open_clip_config.json`.

Its own Vision Transformer has OpenAI's names (openai_clip.py) and these in addition:

| open_clip | here |
| --- | --- |
| visual.transformer.resblocks.0.ls_1.gamma, .ls_2 | blocks.0.ls1.gamma, .ls2 |
| ….attn.ln_q, .ln_k, .ln_inner | ….attn.q_norm, .k_norm, .norm |
| ….mlp.ln | ….mlp.norm |
| visual.trunk (a timm model), visual.head.proj | that model's own names (timm), head |

The configuration says what no shape does: heads (width / head_width), pooling, activation. Without it the published sizes are known, but
whether the activation is the exact GELU or QuickGELU has to be told. The position table is resampled bicubically with antialias.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from vit_models.checkpoints import bare, openai_clip, preprocessing, repairs, timm
from vit_models.checkpoints.documents import Document
from vit_models.checkpoints.openai_clip import CONFIG, has_tower, tower_sizes, tower_steps
from vit_models.checkpoints.plan import CheckpointFile, Options, Plan, Step, take
from vit_models.checkpoints.timm.archs import find
from vit_models.config import Activation, ViTConfig
from vit_models.errors import CheckpointError, OptionError

NAME = "open-clip"
TITLE = "open_clip"

TRUNK = "visual.trunk."
# (width, layers, MLP width) of open_clip's model configurations
HEAD_WIDTHS = {
    (384, 12, 1536): 64,
    (512, 12, 2048): 64,
    (768, 12, 3072): 64,
    (896, 12, 3584): 64,
    (1024, 24, 4096): 64,
    (1280, 32, 5120): 80,
    (1408, 40, 6144): 88,
    (1664, 48, 8192): 104,
    (1792, 56, 15360): 112,
}
# Attention and pooling that this network does not have; all are off unless the configuration turns them on.
REFUSED = ("attentional_pool", "scaled_cosine_attn", "scale_heads", "scale_attn")
ARGUMENTS: Mapping[str, Callable[[str], Any]] = {
    "quick_gelu": bare.flag,
    "head_width": bare.whole_number,
    "pool_type": str,
    "final_ln_after_pool": bare.flag,
}
# timm's classes, and how each is told to norm what is pooled
NORM_FLAGS = {"VisionTransformer": "fc_norm", "Eva": "use_fc_norm", "Beit": "use_fc_norm"}


def recognise(file: CheckpointFile) -> bool:
    """Whether the names are those of open_clip's towers, and not of OpenAI's archives."""
    return _prefix(file) is not None and not openai_clip.recognise(file)


def plan(file: CheckpointFile, options: Options) -> Plan:
    """How the image tower becomes the network; "logits" are the features in the space that images and texts share.

    Raises: CheckpointError for what the file does not tell, and for pooling and attention that this network does not have.
    """
    prefix = _prefix(file)
    if prefix is None:
        raise CheckpointError(
            f"the names are not those of an image tower of {TITLE}, visual.conv1.weight or {TRUNK}…; name another --format"
        )
    if options.arch is not None:
        raise OptionError(f"got --arch {options.arch}, but {TITLE}'s networks are told by {CONFIG} and --model-arg; leave it out")
    document = Document(CONFIG, file.documents[CONFIG]) if CONFIG in file.documents else None
    model = document.child("model_cfg") if document else None
    if prefix != TRUNK:
        given = bare.arguments(TITLE, options, ARGUMENTS)
        config = _configured(model, given) if model else _bare(file, prefix, options, given)
        steps = tower_steps(config, prefix) | _additions(config, prefix)
        made = options.img_size or (_image_size(model.child("vision_cfg")) if model else config.img_size)
    elif model:
        config, steps, _, made = _timm_tower(model.child("vision_cfg"), model.integer("embed_dim"), file, options)
    else:
        raise CheckpointError(f"{TRUNK}… is a timm model, whose name stands in {CONFIG}; put that file beside the weights")
    preprocess = document.child("preprocess_cfg", None) if document else None
    prepared, size = preprocessing.from_open_clip(preprocess.values if preprocess else {}, made), options.img_size or config.img_size
    return Plan(
        config,
        steps,
        ignored=_text_tower(file) if prefix else {},
        preprocessing=preprocessing.top_left(prepared, size),
        notes=bare.left_over(made, size, config.patch_size),
    )


def _prefix(file: CheckpointFile) -> str | None:
    """What stands before the image tower's names."""
    if any(name.startswith(TRUNK) for name in file.tensors):
        return TRUNK
    return next((prefix for prefix in ("visual.", "") if has_tower(file, prefix)), None)


def _image_size(cfg: Document) -> tuple[int, int]:
    """Of the images that open_clip prepares, which may have more pixels than the patches cover."""
    return cfg.size("image_size", (224, 224))


def _text_tower(file: CheckpointFile) -> dict[str, str]:
    return openai_clip.text_tower(file) | {name: "the text tower" for name in file.tensors if name.startswith("text.")}


# ---- open_clip's own Vision Transformer ----------------------------------------------------------------------------------------------


def _configured(model: Document, given: Mapping[str, Any]) -> ViTConfig:
    """From `open_clip_config.json`."""
    cfg = model.child("vision_cfg")
    if isinstance(cfg.values.get("layers"), list):
        raise CheckpointError(f"{cfg.name}: layers is a list, as ResNets have it, expected the number of a Vision Transformer's")
    for key in REFUSED:
        if cfg.values.get(key):
            raise CheckpointError(
                f"{cfg.name}: {key} is {cfg.values[key]!r}, which this network does not have; only models without it convert"
            )
    patch_size = cfg.integer("patch_size", 16)
    width, head_width = cfg.integer("width", 768), given.get("head_width", cfg.integer("head_width", 64))
    norm = cfg.child("norm_kwargs", None)
    return _config(
        given.get("pool_type", cfg.text("pool_type", "tok")),
        given.get("final_ln_after_pool", cfg.flag("final_ln_after_pool", False)),
        img_size=bare.covered(_image_size(cfg), patch_size),
        patch_size=patch_size,
        embed_dim=width,
        depth=cfg.integer("layers", 12),
        num_heads=_heads(width, head_width),
        mlp_dim=int(width * cfg.number("mlp_ratio", 4.0)),
        num_classes=model.integer("embed_dim"),
        layer_norm_eps=norm.number("eps", 1e-5) if norm else 1e-5,
        pre_norm=not cfg.flag("no_ln_pre", False),
        qk_norm=cfg.flag("qk_norm", False),
        attn_norm=cfg.flag("scale_attn_inner", False),
        mlp_norm=cfg.flag("scale_fc", False),
        layer_scale=cfg.has("ls_init_value"),
        activation=_activation(cfg, given.get("quick_gelu", model.flag("quick_gelu", False))),
    )


def _bare(file: CheckpointFile, prefix: str, options: Options, given: Mapping[str, Any]) -> ViTConfig:
    """From the shapes, what is known of published models, and what the user says."""
    sizes, tokens = tower_sizes(file, prefix)
    pre_norm, first = f"{prefix}ln_pre.weight" in file.tensors, f"{prefix}transformer.resblocks.0"
    head_width = given.get("head_width", HEAD_WIDTHS.get(sizes[1:]))
    if "quick_gelu" not in given:
        raise _ask("whether the activation is QuickGELU, as for OpenAI's weights and names that end in -quickgelu,", "quick_gelu=true")
    if head_width is None:
        raise _ask(f"the width of a head is unknown for width {sizes.embed_dim} and {sizes.depth} layers, and", "head_width=64")
    if not pre_norm and "pool_type" not in given:  # CLIPA, whose other models pool as usual
        raise _ask("there is no ln_pre, as in models that pool by their own ways, and pool_type", "pool_type=avg")
    return _config(
        given.get("pool_type", "tok"),
        given.get("final_ln_after_pool", False),
        img_size=bare.trained_size(tokens - 1, sizes.patch_size, options),
        patch_size=sizes.patch_size,
        embed_dim=sizes.embed_dim,
        depth=sizes.depth,
        num_heads=_heads(sizes.embed_dim, head_width),
        mlp_dim=sizes.mlp_dim,
        num_classes=bare.shape(file, f"{prefix}proj", "width", "features")[1],
        layer_norm_eps=1e-5,
        pre_norm=pre_norm,
        qk_norm=f"{first}.attn.ln_q.weight" in file.tensors,
        attn_norm=f"{first}.attn.ln_inner.weight" in file.tensors,
        mlp_norm=f"{first}.mlp.ln.weight" in file.tensors,
        layer_scale=f"{first}.ls_1.gamma" in file.tensors,
        activation="quick_gelu" if given["quick_gelu"] else "gelu",
    )


def _config(pool_type: str, norm_after_pool: bool, **fields: Any) -> ViTConfig:
    if pool_type not in ("tok", "avg"):
        raise CheckpointError(f"got pool_type {pool_type!r}, expected tok or avg; this network pools to one vector")
    return ViTConfig(
        **fields,
        pool="cls" if pool_type == "tok" else "mean",
        final_norm="pooled" if norm_after_pool else "tokens",
        resample="bicubic_antialias",
        projection=True,
    )


def _heads(width: int, head_width: int) -> int:
    if not head_width or width % head_width:
        raise CheckpointError(f"got head_width {head_width} for width {width}, expected one that divides it")
    return width // head_width


def _activation(cfg: Document, quick_gelu: bool) -> Activation:
    arguments = cfg.child("act_kwargs", None)
    if arguments is None or not arguments.values:
        return "quick_gelu" if quick_gelu else "gelu"
    if not quick_gelu and dict(arguments.values) in ({"approximate": "tanh"}, {"approximate": "none"}):
        return "gelu_tanh" if arguments.values["approximate"] == "tanh" else "gelu"
    raise cfg.unlike("act_kwargs", "approximate: tanh or none, without quick_gelu")


def _ask(what: str, argument: str) -> CheckpointError:
    return CheckpointError(f"without {CONFIG}, {what} has to be told: give --model-arg {argument}, or put the file beside the weights")


def _additions(config: ViTConfig, prefix: str) -> dict[str, Step]:
    steps, norms = dict[str, Step](), dict[str, str]()
    for index in range(config.depth):
        target, source = f"blocks.{index}", f"{prefix}transformer.resblocks.{index}"
        if config.layer_scale:
            steps |= {f"{target}.ls{branch}.gamma": take(f"{source}.ls_{branch}.gamma") for branch in (1, 2)}
        if config.qk_norm:
            norms |= {f"{target}.attn.q_norm": f"{source}.attn.ln_q", f"{target}.attn.k_norm": f"{source}.attn.ln_k"}
        if config.attn_norm:
            norms[f"{target}.attn.norm"] = f"{source}.attn.ln_inner"
        if config.mlp_norm:
            norms[f"{target}.mlp.norm"] = f"{source}.mlp.ln"
    return steps | {f"{ours}.{part}": take(f"{theirs}.{part}") for ours, theirs in norms.items() for part in ("weight", "bias")}


# ---- a timm model as the tower -------------------------------------------------------------------------------------------------------


def _timm_tower(cfg: Document, features: int, file: CheckpointFile, options: Options) -> timm.Built:
    """The trunk as timm builds it, and open_clip's head on it: a Linear, the trunk's own classifier, or none."""
    name, pool, head = cfg.text("timm_model_name"), cfg.text("timm_pool", "avg"), cfg.text("timm_proj", "")
    if head not in ("linear", "", "none"):
        raise cfg.unlike("timm_proj", "linear, none or null")
    arguments: dict[str, Any] = {"num_classes": 0 if head else features, "img_size": list(_image_size(cfg))}
    if pool:
        arguments["global_pool"] = pool
    elif head != "linear":
        raise cfg.unlike("timm_pool", "token, avg or map")
    if flag := NORM_FLAGS.get(find(name).cls):  # not by the pooling: with a Linear that is changed when the norms are there already
        arguments[flag] = f"{TRUNK}fc_norm.weight" in file.tensors
    built = timm.plan_network(name, arguments, file, TRUNK, options)
    if head != "linear":
        return built._replace(config=dataclasses.replace(built.config, projection=built.config.num_classes > 0))
    bias = take("visual.head.proj.bias") if cfg.flag("timm_proj_bias", False) else Step((), partial(repairs.zeros, features))
    steps = built.steps | {"head.weight": take("visual.head.proj.weight"), "head.bias": bias}
    return built._replace(config=dataclasses.replace(built.config, num_classes=features, projection=True), steps=steps)
