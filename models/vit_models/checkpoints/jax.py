"""Google's JAX checkpoints: .npz files of google-research/vision_transformer and of big_vision.

| google-research/vision_transformer | big_vision | here |
| --- | --- | --- |
| embedding, cls | the same | embeddings.patch_embed.proj, .cls_token |
| Transformer/posembed_input/pos_embedding | pos_embedding, or none | embeddings.pos_embed |
| Transformer/encoderblock_0/LayerNorm_0, LayerNorm_2 | LayerNorm_0, LayerNorm_1 | blocks.0.norm1, .norm2 |
| …/MultiHeadDotProductAttention_1 | …_0 | blocks.0.attn |
| …/MlpBlock_3/Dense_0, Dense_1 | MlpBlock_0/… | blocks.0.mlp.fc1, .fc2 |
| Transformer/encoder_norm | the same | norm |
| | MAPHead_0 | attn_pool |
| pre_logits, head | the same | pre_logits (a tanh follows), head |

Google's newer files have big_vision's names inside a block. In big_vision's files positions are added before the class token joins, so
the table has no row for it; without a table they are fixed sines and cosines; and `Transformer/encoderblock` holds all blocks stacked
along the first axis (`scan`). The whole may stand below `params/` or `opt/target/`, with the optimizer's state beside it, and there, in
a file of image and text towers, below `img/`, where a head is the projection into their common space.

Kernels are input-first: Dense (in, out), query, key and value (in, heads, head_dim), out (heads, head_dim, out), convolution
(height, width, in, out). GELU is the tanh form and eps 1e-6, both defaults of Flax. Both sources resample the table by
`scipy.ndimage.zoom` of order 1: bilinear, corners kept in place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from vit_models.checkpoints import bare, repairs
from vit_models.checkpoints.bare import Sizes
from vit_models.checkpoints.imagenet import imagenet_labels
from vit_models.checkpoints.plan import CheckpointFile, Options, Plan, Step, take
from vit_models.checkpoints.preprocessing import recipe
from vit_models.config import ViTConfig
from vit_models.errors import CheckpointError, OptionError

if TYPE_CHECKING:
    from torch import Tensor

NAME = "jax"
TITLE = "Google JAX"

PREFIXES = ("", "img/", "params/", "params/img/", "opt/target/", "opt/target/img/")
POSITIONS = ("pos_embedding", "Transformer/posembed_input/pos_embedding", "Transformer/pos_embedding")
IGNORED = {  # what may stand beside the image tower
    r"(params/|opt/target/)?txt/.+": "text tower",
    r"(params/|opt/target/)?[tb]": "temperature and bias of the comparison with texts",
    r"opt/(?!target/).+": "optimizer state",
    r"extra/.+": "training counters",
}
ARGUMENTS: bare.Known = dict.fromkeys(("patch_size", "width", "depth", "mlp_dim", "num_heads", "num_classes"), bare.whole_number)
VARIANTS: Mapping[tuple[int, int, int], str] = {
    (192, 12, 768): "Ti",
    (384, 12, 1536): "S",
    (768, 12, 3072): "B",
    (1024, 24, 4096): "L",
    (1152, 27, 4304): "So400m",
    (1280, 32, 5120): "H",
    (1408, 40, 6144): "g",
    (1664, 48, 8192): "G",
}
SINCOS_SIZES = {Sizes(16, 384, 12, 1536): (224, 224)}  # "Better plain ViT baselines for ImageNet-1k": S/16 without a stored table


@dataclass(frozen=True)
class _Tower:
    """Where the image tower lies in a file: before its names, its blocks', and whether these are stacked in one tensor an axis."""

    prefix: str
    blocks: tuple[str, ...]
    stacked: bool
    norm2: str
    attention: str
    mlp: str


def recognise(file: CheckpointFile) -> bool:
    """Whether the names are Flax's of a Vision Transformer."""
    return _prefix(file) is not None


def plan(file: CheckpointFile, options: Options) -> Plan:
    """How an .npz checkpoint becomes the network.

    Raises: CheckpointError, also for a hybrid's ResNet stem, and to ask for the image size of positions that are not stored.
    """
    given = bare.arguments(TITLE, options, ARGUMENTS)
    tower = _tower(file)
    prefix = tower.prefix
    if f"{prefix}conv_root/kernel" in file.tensors:
        raise CheckpointError(
            f"{prefix}conv_root is a ResNet in front of the patches (a hybrid, R+ViT), expected a plain Vision Transformer"
        )
    rows, columns, channels, width = bare.shape(file, f"{prefix}embedding/kernel", "P", "P", "channels", "width")
    stack = ("depth",) if tower.stacked else ()
    *depth, _, mlp_dim = bare.shape(file, f"{tower.blocks[0]}{tower.mlp}/Dense_0/kernel", *stack, "width", "mlp_dim")
    *_, heads, _ = bare.shape(file, f"{tower.blocks[0]}{tower.attention}/query/kernel", *stack, "width", "heads", "head_dim")
    sizes = Sizes(bare.square_patch(f"{prefix}embedding/kernel", rows, columns), width, depth[0] if depth else len(tower.blocks), mlp_dim)
    table = next((f"{prefix}{name}" for name in POSITIONS if f"{prefix}{name}" in file.tensors), None)
    class_token, probe = f"{prefix}cls" in file.tensors, f"{prefix}MAPHead_0/probe" in file.tensors
    row_of_class_token = class_token and table != f"{prefix}pos_embedding"
    config = ViTConfig(
        img_size=_img_size(file, options, sizes, table, row_of_class_token),
        patch_size=sizes.patch_size,
        embed_dim=width,
        depth=sizes.depth,
        num_heads=heads,
        mlp_dim=mlp_dim,
        num_classes=_outputs(file, f"{prefix}head"),
        class_token=class_token,
        pool="map" if probe else "cls" if class_token else "mean",
        representation_size=_outputs(file, f"{prefix}pre_logits") or None,
        in_chans=channels,
        resample="bilinear_align_corners",
        activation="gelu_tanh",
        projection=prefix.endswith("img/") and _outputs(file, f"{prefix}head") > 0,
    )
    told = {"patch_size": sizes.patch_size, "width": width, "depth": sizes.depth, "mlp_dim": mlp_dim, "num_heads": heads}
    bare.check_told(given, told | {"num_classes": config.num_classes})
    variant = VARIANTS.get(sizes[1:])
    arch = f"{variant}/{sizes.patch_size}" if variant else None
    if options.arch not in (None, arch):
        raise OptionError(f"got --arch {options.arch}, but by its shapes it is {arch or 'no published network'}; leave it out")
    sincos = "the file holds no positions: fixed sines and cosines were computed, as big_vision's posemb='sincos2d' does"
    return Plan(
        config,
        _steps(file, tower, config, table, row_of_class_token),
        _ignored(file),
        labels=imagenet_labels() if config.num_classes == 1000 and not config.projection else None,
        preprocessing=recipe("paper", options.img_size or config.img_size, channels),
        arch=arch,
        notes=() if table else (sincos,),
        one_size="" if table else "its positions are sines and cosines that are computed for one size",
    )


# ---- what the file says --------------------------------------------------------------------------------------------------------------


def _prefix(file: CheckpointFile) -> str | None:
    names = ("embedding/kernel", "Transformer/encoder_norm/scale")
    return next((prefix for prefix in PREFIXES if all(prefix + name in file.tensors for name in names)), None)


def _tower(file: CheckpointFile) -> _Tower:
    prefix = _prefix(file)
    if prefix is None:
        raise CheckpointError("embedding/kernel and Transformer/encoder_norm/scale are missing, expected them in a JAX Vision Transformer")
    stacked = f"{prefix}Transformer/encoderblock/LayerNorm_0/scale" in file.tensors
    if stacked:
        blocks: tuple[str, ...] = (f"{prefix}Transformer/encoderblock/",)
    else:
        blocks = bare.indexed(file, rf"({re.escape(prefix)}Transformer/encoderblock_(\d{{1,4}})/)LayerNorm_0/scale")
    if f"{blocks[0]}LayerNorm_2/scale" in file.tensors:
        return _Tower(prefix, blocks, stacked, "LayerNorm_2", "MultiHeadDotProductAttention_1", "MlpBlock_3")
    return _Tower(prefix, blocks, stacked, "LayerNorm_1", "MultiHeadDotProductAttention_0", "MlpBlock_0")


def _outputs(file: CheckpointFile, name: str) -> int:
    """The width of a Dense layer's output, 0 where there is no such layer."""
    return bare.shape(file, f"{name}/kernel", "in", "out")[1] if {f"{name}/kernel", f"{name}/bias"} & file.tensors.keys() else 0


def _img_size(file: CheckpointFile, options: Options, sizes: Sizes, table: str | None, row_of_class_token: bool) -> tuple[int, int]:
    if table:
        return bare.trained_size(bare.shape(file, table, "1", "tokens", "width")[1] - row_of_class_token, sizes.patch_size, options)
    size = options.img_size or SINCOS_SIZES.get(sizes)
    if size is None:
        raise CheckpointError("the file holds no positions, so they are computed for an image size; give it with --img-size H,W")
    if sizes.embed_dim % 4 or sizes.embed_dim < 8:
        raise CheckpointError(f"the file holds no positions, and sines and cosines along two axes do not fit width {sizes.embed_dim}")
    return size


def _ignored(file: CheckpointFile) -> dict[str, str]:
    return {name: reason for name in file.tensors for pattern, reason in IGNORED.items() if re.fullmatch(pattern, name)}


# ---- where each parameter comes from -------------------------------------------------------------------------------------------------


def _steps(file: CheckpointFile, tower: _Tower, config: ViTConfig, table: str | None, row_of_class_token: bool) -> dict[str, Step]:
    prefix = tower.prefix
    steps = {"embeddings.pos_embed": _positions(config, table, row_of_class_token)}
    if config.class_token:
        steps["embeddings.cls_token"] = take(f"{prefix}cls")
    steps["embeddings.patch_embed.proj.weight"] = Step((f"{prefix}embedding/kernel",), convolution)
    steps["embeddings.patch_embed.proj.bias"] = take(f"{prefix}embedding/bias")
    for index in range(config.depth):
        block = tower.blocks[0] if tower.stacked else tower.blocks[index]
        steps |= {f"blocks.{index}.{name}": step for name, step in _block(file, tower, block, index, config).items()}
    steps |= _norm("norm", f"{prefix}Transformer/encoder_norm")
    if config.pool == "map":
        steps |= _map_head(file, f"{prefix}MAPHead_0/", config)
    if config.representation_size:
        steps |= _dense("pre_logits", f"{prefix}pre_logits")
    if config.num_classes:
        steps |= _dense("head", f"{prefix}head")
    return steps


def _positions(config: ViTConfig, table: str | None, row_of_class_token: bool) -> Step:
    if table is None:
        return Step((), partial(sines_and_cosines, *config.grid_size, config.embed_dim, config.num_prefix))
    if config.class_token and not row_of_class_token:
        return Step((table,), partial(repairs.with_zero_rows, at=0, count=1))
    return take(table)


def _block(file: CheckpointFile, tower: _Tower, block: str, index: int, config: ViTConfig) -> dict[str, Step]:
    attention = f"{block}{tower.attention}"
    _check_heads(file, attention, config, tower.stacked)
    steps = _norm("norm1", f"{block}LayerNorm_0") | _norm("norm2", f"{block}{tower.norm2}")
    steps |= _heads("attn.qkv", attention, "query", "key", "value") | _heads_out("attn.proj", attention)
    steps |= _dense("mlp.fc1", f"{block}{tower.mlp}/Dense_0") | _dense("mlp.fc2", f"{block}{tower.mlp}/Dense_1")
    if tower.stacked:
        return {name: Step(step.sources, partial(of_block, index, step.repair)) for name, step in steps.items()}
    return steps


def _map_head(file: CheckpointFile, head: str, config: ViTConfig) -> dict[str, Step]:
    attention = f"{head}MultiHeadDotProductAttention_0"
    _check_heads(file, attention, config, stacked=False)
    steps = {"attn_pool.probe": take(f"{head}probe")} | _norm("attn_pool.norm", f"{head}LayerNorm_0")
    steps |= _heads("attn_pool.q", attention, "query") | _heads("attn_pool.kv", attention, "key", "value")
    steps |= _heads_out("attn_pool.proj", attention)
    return steps | _dense("attn_pool.mlp.fc1", f"{head}MlpBlock_0/Dense_0") | _dense("attn_pool.mlp.fc2", f"{head}MlpBlock_0/Dense_1")


def _check_heads(file: CheckpointFile, attention: str, config: ViTConfig, stacked: bool) -> None:
    """Laid flat, (in, heads, head_dim) would no longer show another number of heads than the first block's."""
    inner, outer = (config.embed_dim, config.num_heads, config.head_dim), (config.num_heads, config.head_dim, config.embed_dim)
    for name, axes in (("query", inner), ("key", inner), ("value", inner), ("out", outer)):
        kernel, expected = f"{attention}/{name}/kernel", ((config.depth, *axes) if stacked else axes)
        if kernel in file.tensors and file.shape(kernel) != expected:
            raise CheckpointError(
                f"{kernel} is {file.shape(kernel)}, expected {expected}; the file is damaged, or blocks differ in their heads"
            )


def _norm(target: str, source: str) -> dict[str, Step]:
    return {f"{target}.weight": take(f"{source}/scale"), f"{target}.bias": take(f"{source}/bias")}


def _dense(target: str, source: str) -> dict[str, Step]:
    return {f"{target}.weight": Step((f"{source}/kernel",), repairs.transpose), f"{target}.bias": take(f"{source}/bias")}


def _heads(target: str, attention: str, *names: str) -> dict[str, Step]:
    kernels, biases = (tuple(f"{attention}/{name}/{part}" for name in names) for part in ("kernel", "bias"))
    return {f"{target}.weight": Step(kernels, into_heads), f"{target}.bias": Step(biases, flat)}


def _heads_out(target: str, attention: str) -> dict[str, Step]:
    return {f"{target}.weight": Step((f"{attention}/out/kernel",), out_of_heads), f"{target}.bias": take(f"{attention}/out/bias")}


# ---- repairs -------------------------------------------------------------------------------------------------------------------------


def convolution(kernel: Tensor) -> Tensor:
    """A convolution's kernel (height, width, in, out) turned to (out, in, height, width)."""
    return kernel.permute(3, 2, 0, 1).contiguous()


def into_heads(*kernels: Tensor) -> Tensor:
    """Kernels (in, heads, head_dim) of queries, keys and values, turned to (out, in) and put one after the other."""
    return repairs.pack(*(kernel.flatten(1).t() for kernel in kernels))


def out_of_heads(kernel: Tensor) -> Tensor:
    """The kernel (heads, head_dim, out) that mixes the heads, turned to (out, in)."""
    return repairs.transpose(kernel.flatten(0, 1))


def flat(*biases: Tensor) -> Tensor:
    """Biases (heads, head_dim) laid flat and put one after the other."""
    return repairs.pack(*(bias.flatten() for bias in biases))


def of_block(index: int, repair: Callable[..., Tensor], *stacks: Tensor) -> Tensor:
    """The repaired tensor of one block, out of tensors that hold all blocks along the first axis."""
    return repair(*(stack[index] for stack in stacks))


def sines_and_cosines(rows: int, columns: int, width: int, prefix: int) -> Tensor:
    """Fixed positions in two dimensions (MoCo v3, sec. 4): sin and cos of the column's angles, then of the row's; zeros for the prefix.

    (1, prefix + rows * columns, width), row by row; the frequencies fall geometrically from 1 to 1/10000.
    """
    import torch

    frequencies = 10_000.0 ** -torch.linspace(0, 1, width // 4, dtype=torch.float64)
    down, across = torch.meshgrid(torch.arange(rows).double(), torch.arange(columns).double(), indexing="ij")
    angles = [place.flatten().unsqueeze(1) * frequencies for place in (across, down)]
    table = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()
    return repairs.with_zero_rows(table.unsqueeze(0), at=0, count=prefix)
