"""vit-inspect: what a checkpoint is, told from names and shapes without reading a weight."""

from __future__ import annotations

import dataclasses
import gc
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vit_exporter.options import CheckpointCommand, checkpoint_options, parse_options
from vit_runtime.cli.common import Console, output_options
from vit_runtime.cli.info import describe_images
from vit_runtime.preprocess import Preprocessing

if TYPE_CHECKING:
    from vit_models import Options, Spec

POOLS = {
    "cls": "class token",
    "mean": "mean of the patch tokens",
    "mean_all": "mean of all tokens",
    "map": "a learned probe that attends to all tokens",
    "cls_mean": "class token and patch mean side by side",
    "cls_dist": "class and distillation token side by side",
    "cls_dist_mean": "mean of class and distillation token",
}
NORMS = {
    "tokens": "LayerNorm before pooling",
    "pooled": "LayerNorm after pooling",
    "aside": "LayerNorm for the tokens alone, not for what is pooled",
    "none": "no last LayerNorm",
}
ACTIVATIONS = {"gelu": "GELU", "gelu_tanh": "GELU by tanh", "quick_gelu": "quick GELU", "silu": "SiLU", "relu": "ReLU"}
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@click.command(cls=CheckpointCommand)
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--arch", metavar="NAME", help="The architecture's name in its own library, for a file that does not tell.")
@checkpoint_options
@output_options
def main(console: Console, path: Path, **options: Any) -> None:
    """Say what a checkpoint is: format, architecture, image size, pooling, head, labels, preprocessing, what is converted and what not.

    Example: vit-inspect dinov2-small/
    """
    gc.disable()  # for this short life: looking for garbage costs more than it finds
    from vit_models import inspect

    asked = parse_options(**options)
    spec = inspect(path, asked)
    console.result(_document(spec), _text(spec, asked))


def _document(spec: Spec) -> dict[str, Any]:
    return {
        "path": str(spec.path),
        "format": spec.format,
        "title": spec.title,
        "arch": spec.arch,
        "config": {**dataclasses.asdict(spec.config), "img_size": list(spec.config.img_size)},
        "trained_size": list(spec.trained_size),
        "parameters": spec.parameters,
        "macs": spec.config.macs,
        "dtypes": list(spec.dtypes),
        "labels": list(spec.labels) if spec.labels is not None else None,
        "preprocessing": dict(spec.preprocessing) if spec.preprocessing is not None else None,
        "converted": list(spec.converted),
        "ignored": dict(spec.ignored),
        "notes": list(spec.notes),
    }


def _text(spec: Spec, asked: Options) -> str:
    c = spec.config
    pre_logits = f"; pre-logits of {c.representation_size}" if c.representation_size else ""
    tensors = f"{len(spec.converted)} tensors, {' and '.join(DTYPES[dtype] for dtype in spec.dtypes)}"
    blocks = f"{_count(c.depth, 'block')} of width {c.embed_dim}, {_count(c.num_heads, 'head')}"
    mlp = f"MLP of {c.mlp_dim}, {ACTIVATIONS[c.activation]}{', gated' if c.gated_mlp else ''}"
    rows = [
        ("network", f"{blocks}, patches of {c.patch_size} x {c.patch_size}"),
        ("", f"{mlp}; LayerNorm eps {c.layer_norm_eps:g}{_extras(spec)}"),
        ("", f"{_large(spec.parameters)} parameters, {_large(c.macs)} multiply-accumulates an image"),
        ("image", _image(spec)),
        ("tokens", _tokens(spec)),
        ("pooling", f"{POOLS[c.pool]}; {NORMS[c.final_norm]}{pre_logits}"),
        ("head", _head(spec)),
        ("pixels", _pixels(spec)),
        ("converted", tensors),
    ]
    reasons: dict[str, list[str]] = {}
    for name, reason in spec.ignored.items():
        reasons.setdefault(reason, []).append(name)
    rows += [
        ("ignored", f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: {reason}")
        for reason, names in reasons.items()
    ]
    rows += [("note", note) for note in spec.notes]
    title = f"{spec.path}: {spec.title}{f', {spec.arch}' if spec.arch else ''}"
    command = ["vit-export", "--checkpoint", str(spec.path), *_asked_again(asked), "--out", "vit.onnx"]
    return "\n".join([title, *(f"  {name:<9} {text}" for name, text in rows), f"next: {shlex.join(command)}"])


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _large(number: int) -> str:
    """In units that leave one to three digits before the point."""
    for unit, size in (("G", 10**9), ("M", 10**6)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:,}"


def _extras(spec: Spec) -> str:
    c = spec.config
    words = {
        "pre-norm": c.pre_norm,
        "qk-norm": c.qk_norm,
        "norm in attention": c.attn_norm,
        "norm in MLP": c.mlp_norm,
        "LayerScale": c.layer_scale,
    }
    return "".join(f", {word}" for word, there in words.items() if there)


def _image(spec: Spec) -> str:
    height, width = spec.config.img_size
    return f"{height} x {width}{'' if height == width else ' (height x width)'}, {_count(spec.config.in_chans, 'channel')}"


def _tokens(spec: Spec) -> str:
    c = spec.config
    prefix = ["class token"] * c.class_token + ["distillation token"] * c.distilled
    prefix += [_count(c.num_registers, "register")] * (c.num_registers > 0)
    kinds = {"learned table": c.pos_embed, "rotary": c.rope is not None, "relative bias": c.rel_pos_bias}
    positions = [kind for kind, there in kinds.items() if there] or ["none"]
    patches = f"{c.num_patches} patch{'es' * (c.num_patches != 1)}"
    return f"{', '.join([*prefix, patches])}; positions: {' and '.join(positions)}"


def _pixels(spec: Spec) -> str:
    if spec.config.in_chans not in (1, 3):
        return f"none: pictures have no {spec.config.in_chans} channels, so vit-export does not take it"
    if spec.preprocessing is None:
        paper = Preprocessing.paper(*spec.config.img_size, spec.config.in_chans)
        return f"{describe_images(paper)}: the paper's, as nothing else is told"
    return describe_images(Preprocessing.from_dict(dict(spec.preprocessing)))


def _head(spec: Spec) -> str:
    c = spec.config
    if not c.num_classes:
        return f"none: the network ends at the embedding of {c.embedding_dim} numbers"
    if c.projection:
        return f"projection to {c.num_classes} numbers in a space that images and texts share; no classes"
    classes = "1 class" if c.num_classes == 1 else f"{c.num_classes} classes"
    if spec.labels is None:
        return f"{classes}, without names"
    return f"{classes}: {', '.join(spec.labels[:4])}{', …' * (len(spec.labels) > 4)}"


def _asked_again(asked: Options) -> list[str]:
    """The options as they were given."""
    size = asked.img_size
    given = {
        "--format": asked.format,
        "--arch": asked.arch,
        "--weights": asked.weights,
        "--img-size": None if size is None else str(size[0]) if size[0] == size[1] else f"{size[0]},{size[1]}",
        "--pool": asked.pool,
    }
    words = [word for option, value in given.items() if value is not None for word in (option, value)]
    words += [word for name, value in asked.model_args.items() for word in ("--model-arg", f"{name}={value}")]
    return words + ["--drop-head"] * asked.drop_head
