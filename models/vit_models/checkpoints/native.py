"""This project's own checkpoints: one safetensors file that says what it is.

The tensors carry the names of `ViT.state_dict()`. The header's metadata has one key, `vit_deploy`, a JSON document:
{"config": {...ViTConfig...}, "labels": [...], "preprocessing": {...}}, the last two optional.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_models.checkpoints.documents import Document
from vit_models.checkpoints.plan import CheckpointFile, Options, Plan, take
from vit_models.checkpoints.preprocessing import resized
from vit_models.config import Rope, ViTConfig
from vit_models.errors import CheckpointError, OptionError
from vit_models.shapes import parameter_shapes

if TYPE_CHECKING:
    from vit_models.vit import ViT

NAME = "vit-deploy"
TITLE = "vit-deploy's own safetensors"
KEY = "vit_deploy"


def save_checkpoint(path: Path, model: ViT, labels: Sequence[str] | None = None, preprocessing: Mapping[str, Any] | None = None) -> None:
    """Write the model's weights with their configuration, labels and preprocessing to one safetensors file.

    Without `preprocessing`, the JSON form of `vit_runtime.Preprocessing`, pictures are prepared as in the ViT paper's code.
    """
    from safetensors.torch import save_file

    facts: dict[str, Any] = {"config": dataclasses.asdict(model.config)}
    if labels is not None:
        facts["labels"] = list(labels)
    if preprocessing is not None:
        facts["preprocessing"] = dict(preprocessing)
    save_file(dict(model.state_dict()), path, metadata={KEY: json.dumps(facts, sort_keys=True)})


def recognise(file: CheckpointFile) -> bool:
    """Whether `save_checkpoint` wrote it: nobody else's header has our key."""
    return file.container == "safetensors" and KEY in file.metadata


def plan(file: CheckpointFile, options: Options) -> Plan:
    """The network that the header describes; every tensor is a parameter. Raises: CheckpointError."""
    if given := [*(["--arch"] if options.arch else []), *(f"--model-arg {name}" for name in options.model_args)]:
        raise OptionError(f"got {', '.join(given)}, but {file.path} says itself what it is; leave it out")
    facts = _facts(file)
    config = _config(facts.child("config"))
    labels, preprocessing = facts.values.get("labels"), facts.values.get("preprocessing")
    if labels is not None and not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        raise facts.unlike("labels", "a list of names, one a class")
    if preprocessing is not None and not isinstance(preprocessing, dict):
        raise facts.unlike("preprocessing", "an object")
    if preprocessing is not None and options.img_size is not None:
        preprocessing = resized(Document(f"{facts.name}: preprocessing", preprocessing), config.img_size, options.img_size)
    steps = {name: take(name) for name in parameter_shapes(config)}
    return Plan(config, steps, {}, tuple(labels) if labels is not None else None, preprocessing)


def _facts(file: CheckpointFile) -> Document:
    try:
        return Document(f"{file.path}: the header's {KEY!r} entry", json.loads(file.metadata[KEY]))
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file.path} has no readable {KEY!r} entry in its header; expected a file that `save_checkpoint` wrote"
        ) from error


def _config(document: Document) -> ViTConfig:
    known = {field.name for field in dataclasses.fields(ViTConfig)}
    if unknown := sorted(document.values.keys() - known):
        raise CheckpointError(
            f"{document.name} has unknown entries {', '.join(map(repr, unknown[:3]))}; expected a file that `save_checkpoint` wrote"
        )
    values: dict[str, Any] = {**document.values, "img_size": document.size("img_size")}
    if document.has("rope"):
        rope = document.child("rope")
        span = rope.values.get("span")
        if span is not None and not (isinstance(span, list) and len(span) == 2 and all(isinstance(side, float) for side in span)):
            raise rope.unlike("span", "[down, across]")
        values["rope"] = Rope(rope.number("offset"), tuple(span) if span is not None else None, rope.number("start"))
    return ViTConfig(**values)
