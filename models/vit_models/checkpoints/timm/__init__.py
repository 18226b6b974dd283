"""timm's vision transformers: VisionTransformer, its distilled kind, Eva and Beit.

| timm | here |
| --- | --- |
| cls_token, dist_token, reg_token | embeddings.cls_token, .dist_token, .register_tokens |
| pos_embed; with no_embed_class its rows are the patches' alone | embeddings.pos_embed, rows of zeros for the tokens before them |
| patch_embed.proj, without bias where a norm follows | embeddings.patch_embed.proj |
| norm_pre | pre_norm |
| blocks.0.norm1, .attn, .norm2, .mlp, .ls1 | the same; what differs by class is in `network.py` |
| norm, or fc_norm for what is pooled | norm |
| attn_pool.latent, .q, .kv, .proj, .norm, .mlp | attn_pool.probe, the rest the same |
| head; head_dist beside it | head, which reads both tokens |

Three kinds of source: a folder as on the hub (config.json with `architecture`, `model_args` and `pretrained_cfg`), a training checkpoint
that names its `arch`, and a bare state dict. Constructor arguments decide what is computed, so a folder is taken at its word: the
architecture's arguments by name (`archs.py`), then config.json's, then `--model-arg`. Of a state dict the names and shapes tell most
(`seen.py`).

timm resamples position tables bicubically with antialias, and relative ones by a rule of its own (`positions.py`). Where a folder
does not say that its size is fixed, it builds the network for the architecture's own size and resamples the table when it loads it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vit_models.checkpoints import bare, facebook
from vit_models.checkpoints.documents import Document
from vit_models.checkpoints.imagenet import NUM_CLASSES, imagenet_labels
from vit_models.checkpoints.plan import CheckpointFile, Options, Plan, Step
from vit_models.checkpoints.preprocessing import by_channel, from_timm, top_left
from vit_models.checkpoints.timm.archs import WITHOUT_EFFECT, Arch, check_known, find, is_known, parse
from vit_models.checkpoints.timm.network import TABLE, Network, network
from vit_models.checkpoints.timm.seen import complete
from vit_models.checkpoints.timm.steps import steps_of
from vit_models.config import ViTConfig
from vit_models.errors import CheckpointError, OptionError

NAME = "timm"
TITLE = "timm"

# Of the same names in facebookresearch's files, by which those are recognised.
NOT_TIMM = ("mask_token", "storage_tokens", "register_tokens", "rope_embed.periods", "decoder_pos_embed", "linear_head.weight")
DINO_ARGUMENTS = {"num_heads", "patch_size", "embed_dim", "depth"}

Size = tuple[int, int]


class Built(NamedTuple):
    """The configuration of the weights as they are stored, the steps for all parameters of `ViT(config)`, what the user should hear of it,
    and the size of the images that timm prepares, which may have more pixels than the patches cover.
    """

    config: ViTConfig
    steps: dict[str, Step]
    notes: tuple[str, ...]
    made: Size


def recognise(file: CheckpointFile) -> bool:
    """Whether config.json names a timm architecture, or the tensors have timm's names."""
    if _is_hub_config(file.documents.get("config.json")):
        return True
    whole = {"patch_embed.proj.weight", "blocks.0.norm1.weight", "blocks.0.attn.proj.weight", "blocks.0.mlp.fc2.weight"}
    beit = any(name.endswith(TABLE) for name in file.tensors)
    return whole <= file.tensors.keys() and (beit or not any(name in file.tensors for name in NOT_TIMM)) and file.container != "onnx"


def plan(file: CheckpointFile, options: Options) -> Plan:
    """How a hub folder, a training checkpoint or a bare state dict becomes the network.

    Raises: CheckpointError, also to ask for what a state dict cannot tell; ConfigError.
    """
    document = file.documents.get("config.json")
    if _is_hub_config(document):
        return _hub(file, Document("config.json", document), options)
    given = _given(options)
    name = _trained_arch(file)
    arch = _asked(options.arch) if options.arch else find(name) if name else None
    if arch is None and given.keys() <= DINO_ARGUMENTS and options.img_size is None and options.format != NAME and facebook.is_plain(file):
        raise CheckpointError(
            "a network without a head looks alike from timm, DINO and MAE; say where it is from with --format or what with --arch NAME, "
            "and the number of heads with --model-arg num_heads=6 if its size is not a published one"
        )
    found, archs = complete(file, options, arch, given)
    told = found.img_size if "img_size" in given else None
    hint = told or (_usual_size(archs[0]) if len(archs) == 1 else None) or found.img_size
    config, steps, notes, _ = _built(found, file, "", options, hint, None)
    preparations = _preparations(archs, config, told, options)
    if len(preparations) > 1:
        notes += (
            f"these weights fit timm's {' and '.join(preparations)}, which prepare images differently: they are prepared as for the first, "
            "of which most weights are published; --arch NAME decides",
        )
    return Plan(
        config,
        steps,
        _ignored(file),
        imagenet_labels() if config.num_classes == NUM_CLASSES else None,
        next(iter(preparations.values()), None),
        archs[0].name if len(archs) == 1 else None,
        notes,
        assumed=len(preparations) > 1,
    )


def plan_network(name: str, args: Mapping[str, Any], file: CheckpointFile, prefix: str, options: Options) -> Built:
    """The network of timm's `create_model(name, **args)`, whose weights stand in `file` below `prefix` ("visual.trunk.").

    `args` are timm's own arguments as JSON has them; `options.model_args` go before them. `num_classes` is timm's, 1000 if `args` do not
    say it: 0 leaves the head out. `img_size` in `args` is that of the stored table where this is not a square.

    Raises: CheckpointError, ConfigError.
    """
    arch = find(name)
    found = network(arch, _said(args), _given(options))
    return _built(found, file, prefix, options, found.img_size, None)


def _hub(file: CheckpointFile, document: Document, options: Options) -> Plan:
    arch = _asked(options.arch) if options.arch else find(document.text("architecture"))
    # Early folders have the pretrained_cfg's entries beside `architecture`.
    cfg = document.child("pretrained_cfg", None) or document
    saved, given = document.child("model_args", Document("config.json: model_args", {})), _given(options)
    input_size = _input_size(cfg)
    usual = {
        "num_classes": (document if document.has("num_classes") else cfg).values.get("num_classes"),
        "in_chans": None if input_size is None else cfg.values["input_size"][0],
    }
    found = network(arch, _said(usual), _said(saved.values), given)
    usual_size = input_size or network(arch).img_size
    fixed = cfg.flag("fixed_input_size", False) and not saved.flag("dynamic_img_size", False)
    stored = saved.size("img_size", usual_size)
    built = usual_size if fixed or not _has_table(found) else network(arch).img_size
    built = found.img_size if saved.has("img_size") or "img_size" in given else built
    config, steps, notes, made = _built(found, file, "", options, stored, built)
    preprocessing = _prepared(cfg.values, made, config, options)
    return Plan(config, steps, _ignored(file), _labels(document, cfg, config), preprocessing, arch.name, notes)


def _built(found: Network, file: CheckpointFile, prefix: str, options: Options, hint: Size, built: Size | None) -> Built:
    """`hint` is the table's size as far as is known, `built` the network's, None if that is the table's."""
    patch_size, stored, size = found.fields["patch_size"], None, hint
    if _has_table(found):
        stored = _stored_grid(found, file, prefix, hint, options)
        size = (stored[0] * patch_size, stored[1] * patch_size)
        if built is None:
            built = hint if bare.covered(hint, patch_size) == size else size
    made = options.img_size or built or hint
    run = options.img_size or bare.covered(made, patch_size)
    notes = bare.left_over(made, run, patch_size)
    if stored is None or found.fields["rel_pos_bias"]:
        size = run  # a relative table is expanded for the size to run at
    elif options.img_size is None and run != size:
        notes += (f"timm builds this network for {_spell(made)} and resamples its table of {_spell(size)}; --img-size says another size",)
        size = run
    config = ViTConfig(img_size=size, **found.fields)
    return Built(config, steps_of(config, found.names, stored or config.grid_size, prefix), notes, made)


def _prepared(cfg: Mapping[str, Any], made: Size, config: ViTConfig, options: Options) -> dict[str, Any]:
    """The preparation of a `pretrained_cfg`; `made` is the size of timm's images, where --img-size does not say another."""
    return top_left(from_timm(cfg, options.img_size or made, config.in_chans), options.img_size or config.img_size)


def _preparations(archs: Sequence[Arch], config: ViTConfig, told: Size | None, options: Options) -> dict[str, dict[str, Any]]:
    """The preparations that differ, each by an architecture's name, that of which most weights are published first.

    Of the architectures those count whose images are of the size of the stored table, if there are any.
    """
    sizes = {arch.name: told or _usual_size(arch) or config.img_size for arch in archs}
    fitting = [arch for arch in archs if bare.covered(sizes[arch.name], config.patch_size) == config.img_size]
    found, weights = dict[str, dict[str, Any]](), Counter[str]()
    for arch in fitting or archs:
        if arch.setting is None:
            continue
        statistics = {key: by_channel(arch.setting[key], config.in_chans) for key in ("mean", "std")}
        prepared = _prepared({**arch.setting, **statistics}, sizes[arch.name] if fitting else config.img_size, config, options)
        name = next((name for name, other in found.items() if other == prepared), arch.name)
        found[name] = prepared
        weights[name] += arch.weights
    return {name: found[name] for name, _ in weights.most_common()}


def _asked(name: str) -> Arch:
    """The architecture that the user names. Raises: OptionError."""
    try:
        return find(name)
    except CheckpointError as error:
        raise OptionError(str(error)) from error


def _has_table(found: Network) -> bool:
    return found.fields["pos_embed"] or found.fields["rel_pos_bias"]


def _stored_grid(found: Network, file: CheckpointFile, prefix: str, hint: Size, options: Options) -> Size:
    """The grid of the stored tables: the one that was said if it accounts for every row, a square, or that of --img-size."""
    patch_size, names = found.fields["patch_size"], found.names
    if found.fields["pos_embed"]:
        before = sum(found.fields[key] for key in ("class_token", "distilled", "num_registers")) if names.prefix_has_positions else 0
        rows = bare.shape(file, f"{prefix}pos_embed", "1", "tokens", "width")[1] - before
    else:
        table = names.relative[0]
        rows = bare.shape(file, f"{prefix}{'blocks.0.' * table.startswith('attn.')}{table}", "offsets", "heads")[0] - 3
    side = math.isqrt(max(rows, 0))
    side = side if found.fields["pos_embed"] else (side + 1) // 2
    sizes = (hint, options.img_size or hint)
    grids = [(height // patch_size, width // patch_size) for height, width in sizes]
    for grid in (grids[0], (side, side), grids[1]):
        if min(grid) > 0 and _rows(found, grid) == rows:
            return grid
    raise CheckpointError(
        f"the table of positions has {rows} rows for patches, which is neither that of {_spell(hint)} nor a square; "
        "give the image size that it was trained at with --model-arg img_size=H,W"
    )


def _rows(found: Network, grid: Size) -> int:
    return grid[0] * grid[1] if found.fields["pos_embed"] else (2 * grid[0] - 1) * (2 * grid[1] - 1)


def _ignored(file: CheckpointFile) -> dict[str, str]:
    ignored = {name: "derived from the sizes" for name in file.tensors if name.endswith(".relative_position_index")}
    return ignored | {name: "only training masks patches" for name in ("mask_token",) if name in file.tensors}


def _labels(document: Document, cfg: Document, config: ViTConfig) -> tuple[str, ...] | None:
    source = document if document.has("label_names") else cfg
    names = source.values.get("label_names")
    if names is None:
        return imagenet_labels() if config.num_classes == NUM_CLASSES else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise source.unlike("label_names", "a list of texts")
    return tuple(names)


def _trained_arch(file: CheckpointFile) -> str | None:
    """The architecture that a training checkpoint names: timm's `arch`, or `model` among the script's arguments (DeiT)."""
    args = file.extras.get("args")
    names = (file.extras.get("arch"), args.get("model") if isinstance(args, dict) else None)
    return next((name for name in names if is_known(name)), None)


def _is_hub_config(document: object) -> bool:
    return isinstance(document, dict) and isinstance(document.get("architecture"), str) and "model_type" not in document


def _given(options: Options) -> dict[str, Any]:
    given = _said({key: parse(value) for key, value in options.model_args.items()})
    check_known(given)
    return given


def _said(args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that say something: null says nothing in timm, and some matter to training alone."""
    return {key: value for key, value in args.items() if value is not None and key not in WITHOUT_EFFECT}


def _input_size(cfg: Document) -> Size | None:
    """(height, width) of input_size, [channels, height, width]."""
    value = cfg.values.get("input_size")
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 3:
        raise cfg.unlike("input_size", "[channels, height, width]")
    return Document(cfg.name, {"input_size": value[1:]}).size("input_size")


def _usual_size(arch: Arch) -> Size | None:
    """The size of the images that the published weights take."""
    return None if arch.setting is None else _input_size(Document("pretrained_cfg", dict(arch.setting)))


def _spell(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
