"""This project's own checkpoints: one safetensors file that says what it is.

The tensors carry the names of `ViT.state_dict()`. The header's metadata has one key, `vit_deploy`, a JSON document:
{"config": {...ViTConfig...}, "labels": [...], "preprocessing": {...}}, the last two optional.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vit_models.config import ViTConfig
from vit_models.errors import CheckpointError, ConfigError
from vit_models.vit import ViT

KEY = "vit_deploy"


@dataclass(frozen=True)
class Checkpoint:
    """A network's weights, memory-mapped float32, and what their file says about them."""

    config: ViTConfig
    state_dict: Mapping[str, Tensor]
    labels: tuple[str, ...] | None
    preprocessing: Mapping[str, Any] | None
    sha256: str


def save_checkpoint(path: Path, model: ViT, labels: Sequence[str] | None = None, preprocessing: Mapping[str, Any] | None = None) -> None:
    """Write the model's weights with their configuration, labels and preprocessing to one safetensors file."""
    facts: dict[str, Any] = {"config": dataclasses.asdict(model.config)}
    if labels is not None:
        facts["labels"] = list(labels)
    if preprocessing is not None:
        facts["preprocessing"] = dict(preprocessing)
    save_file(dict(model.state_dict()), path, metadata={KEY: json.dumps(facts, sort_keys=True)})


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a file that `save_checkpoint` wrote; names, shapes and dtypes must be exactly the configuration's.

    Raises: CheckpointError.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = _facts(path, file.metadata())
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors checkpoint that can be read ({error}); expected a file that `save_checkpoint` wrote"
        ) from error
    config = _config(path, facts.get("config"))
    _check_tensors(path, config, state)
    labels, preprocessing = facts.get("labels"), facts.get("preprocessing")
    if labels is not None and not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        raise CheckpointError(f"{path}: its labels are not a list of names; expected one name a class")
    if labels is not None and len(labels) != config.num_classes:
        raise CheckpointError(f"{path} has {len(labels)} labels for {config.num_classes} classes; expected one name a class")
    if preprocessing is not None and not isinstance(preprocessing, dict):
        raise CheckpointError(f"{path}: its preprocessing is not an object; expected a file that `save_checkpoint` wrote")
    return Checkpoint(config, state, tuple(labels) if labels is not None else None, preprocessing, _sha256(path))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _facts(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    try:
        facts = json.loads((metadata or {})[KEY])
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} has no readable {KEY!r} entry in its header; expected a file that `save_checkpoint` wrote"
        ) from error
    if not isinstance(facts, dict):
        raise CheckpointError(f"{path}: the header's {KEY!r} entry is not an object; expected a file that `save_checkpoint` wrote")
    return facts


def _config(path: Path, fields: Any) -> ViTConfig:
    try:
        return ViTConfig(**{**fields, "img_size": tuple(fields["img_size"])})
    except (TypeError, KeyError, ConfigError) as error:
        raise CheckpointError(f"{path}: its configuration is not a Vision Transformer's ({error})") from error


def _check_tensors(path: Path, config: ViTConfig, state: Mapping[str, Tensor]) -> None:
    with torch.device("meta"):
        expected = ViT(config).state_dict()
    wrong = [f"{name} is missing" for name in expected.keys() - state.keys()]
    wrong += [f"{name} is not expected" for name in state.keys() - expected.keys()]
    for name in expected.keys() & state.keys():
        given, wanted = state[name], expected[name]
        if given.shape != wanted.shape or given.dtype != wanted.dtype:
            wrong.append(f"{name} is {given.dtype} {tuple(given.shape)}, expected {wanted.dtype} {tuple(wanted.shape)}")
        elif not given.isfinite().all():
            wrong.append(f"{name} holds NaN or Inf")
    if wrong:
        first, more = "; ".join(sorted(wrong)[:3]), len(wrong) - 3
        raise CheckpointError(
            f"{path}: {first}{f'; and {more} more' if more > 0 else ''}; the weights do not fit the file's own configuration"
        )
