"""Where a network comes from: a named architecture with seeded random weights, or a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vit_models import (
    ARCHS,
    DIGITS,
    Checkpoint,
    ConfigError,
    Pool,
    ViT,
    check_outputs,
    digits_checkpoint,
    find_arch,
    init_weights,
    load_checkpoint,
)
from vit_runtime.errors import InputError
from vit_runtime.preprocess import Preprocessing


@dataclass(frozen=True)
class Source:
    """A network with weights, and what its manifest will say of where they came from."""

    model: ViT
    arch: str | None
    checkpoint: dict[str, Any]
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None

    def describe(self) -> str:
        """One line for people."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        weights = f"random weights, seed {self.checkpoint['seed']}" if self.checkpoint["format"] == "random" else "trained weights"
        return f"{self.arch or 'checkpoint'}, {parameters / 1e6:.1f} M parameters, {weights}"


@dataclass(frozen=True)
class Changes:
    """What the caller wants other than the architecture has it; None leaves it."""

    img_size: tuple[int, int] | None = None
    num_classes: int | None = None
    pool: Pool | None = None

    def given(self) -> dict[str, Any]:
        """The changes that were asked for."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


def random_source(
    arch: str, seed: int = 0, changes: Changes = Changes(), outputs: Sequence[str] | None = None, labels: Sequence[str] | None = None
) -> Source:
    """A named architecture with random weights. Raises: ConfigError, InputError."""
    config = dataclasses.replace(ARCHS[find_arch(arch)], **changes.given())
    check_outputs(config, outputs)
    with torch.device("meta"):
        model = ViT(config, outputs)
    init_weights(model.to_empty(device="cpu"), seed)
    checkpoint = {"format": "random", "seed": seed, "sha256": None}
    return Source(model, find_arch(arch), checkpoint, Preprocessing.paper(*config.img_size), _labels(labels, None, config.num_classes))


def checkpoint_source(
    path: Path, changes: Changes = Changes(), outputs: Sequence[str] | None = None, labels: Sequence[str] | None = None
) -> Source:
    """The network of a checkpoint. Raises: CheckpointError, ConfigError, InputError; ModelError for its preprocessing."""
    return _from_checkpoint(load_checkpoint(path), None, changes, outputs, labels)


def digits_source(changes: Changes = Changes(), outputs: Sequence[str] | None = None, labels: Sequence[str] | None = None) -> Source:
    """The trained network that comes with this package. Raises: ConfigError, InputError."""
    return _from_checkpoint(load_checkpoint(digits_checkpoint()), DIGITS, changes, outputs, labels)


def _from_checkpoint(
    checkpoint: Checkpoint, arch: str | None, changes: Changes, outputs: Sequence[str] | None, labels: Sequence[str] | None
) -> Source:
    config = checkpoint.config
    for name, value in changes.given().items():
        if value != getattr(config, name):
            raise ConfigError(
                f"got {name} {value}, but these weights were trained with {getattr(config, name)}; leave --{name.replace('_', '-')} out"
            )
    with torch.device("meta"):
        model = ViT(config, outputs)
    model.load_state_dict(dict(checkpoint.state_dict), assign=True)
    given = Preprocessing.from_dict(dict(checkpoint.preprocessing)) if checkpoint.preprocessing else Preprocessing.paper(*config.img_size)
    facts = {"format": "vit-deploy", "seed": None, "sha256": checkpoint.sha256}
    return Source(model.eval(), arch, facts, given, _labels(labels, checkpoint.labels, config.num_classes))


def _labels(given: Sequence[str] | None, own: Sequence[str] | None, num_classes: int) -> tuple[str, ...] | None:
    labels = given if given is not None else own
    if labels is not None and len(labels) != num_classes:
        raise InputError(f"got {len(labels)} labels, expected {num_classes}, one for each class in the order of the logits")
    return tuple(labels) if labels is not None else None
