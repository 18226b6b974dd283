"""Where a network comes from: a named architecture with seeded random weights, or a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vit_models import (
    ARCHS,
    DIGITS,
    CheckpointError,
    ConfigError,
    Options,
    Pool,
    Spec,
    ViT,
    ViTConfig,
    check_outputs,
    digits_checkpoint,
    find_arch,
    init_weights,
)
from vit_models.checkpoints import native, onnx_graph
from vit_models.checkpoints.load import prepare
from vit_runtime.cli.info import describe_images
from vit_runtime.errors import InputError, VitError
from vit_runtime.preprocess import Preprocessing


class VerificationError(VitError):
    """The file, or the network that it is made from, does not compute what it should; nothing was written."""

    exit_code = 1


@dataclass(frozen=True)
class Source:
    """A network with weights, and what its manifest will say of where they came from.

    Tracing and simplifying need no weights: `fill` gives them to the model when they are needed, so that the two are not in memory at once.
    `read` gives one parameter by name without the others, float32, for a file that is written without a look at what it computes.
    `notes` are what the user should hear of how a checkpoint was read. `proof` holds a network that was recovered from an ONNX graph
    against that graph, and says in one line how they compare, or raises VerificationError.
    """

    model: ViT
    arch: str | None
    checkpoint: dict[str, Any]
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None
    notes: tuple[str, ...] = ()
    fill: Callable[[], object] = lambda: None
    read: Callable[[str], torch.Tensor] | None = None
    proof: Callable[[], str] | None = None

    def describe(self) -> str:
        """One line for people."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return f"{self.arch or 'checkpoint'}, {parameters / 1e6:.1f} M parameters, {describe_weights(self.checkpoint)}"


@dataclass(frozen=True)
class Changes:
    """What the caller wants other than the architecture or checkpoint has it; None leaves it.

    `dynamic_size` frees height and width, in multiples of the patch.
    """

    img_size: tuple[int, int] | None = None
    num_classes: int | None = None
    pool: Pool | None = None
    dynamic_size: bool = False

    def of_config(self) -> dict[str, Any]:
        """The changes of the configuration that were asked for."""
        values = {"img_size": self.img_size, "num_classes": self.num_classes, "pool": self.pool}
        return {name: value for name, value in values.items() if value is not None}


def random_source(
    arch: str, seed: int = 0, changes: Changes = Changes(), outputs: Sequence[str] | None = None, labels: Sequence[str] | None = None
) -> Source:
    """A named architecture with random weights. Raises: ConfigError, InputError."""
    config = dataclasses.replace(ARCHS[find_arch(arch)], **changes.of_config())
    check_outputs(config, outputs)
    with torch.device("meta"):
        model = ViT(config, outputs, changes.dynamic_size)
    checkpoint = {"format": "random", "seed": seed, "sha256": None}
    names, pixels = _labels(labels, None, config), Preprocessing.paper(*config.img_size)
    return Source(model, find_arch(arch), checkpoint, pixels, names, fill=lambda: init_weights(model.to_empty(device="cpu"), seed))


def checkpoint_source(
    path: Path,
    changes: Changes = Changes(),
    outputs: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    *,
    options: Options = Options(),
    sha256: str | None = None,
) -> Source:
    """The network of a checkpoint in any format of `vit_models.formats()`; size, pooling and head are those of `changes`.

    Raises: CheckpointError, ConfigError, InputError; ModelError for its preprocessing.
    """
    drop_head = options.drop_head or changes.num_classes == 0
    options = dataclasses.replace(options, img_size=changes.img_size, pool=changes.pool, drop_head=drop_head)
    prepared = prepare(path, options, sha256=sha256, outputs=outputs, dynamic_size=changes.dynamic_size)
    model, spec = prepared.model, prepared.spec
    if not drop_head and changes.num_classes not in (None, spec.config.num_classes):
        raise ConfigError(
            f"got num_classes {changes.num_classes}, but these weights have a head of {spec.config.num_classes}; "
            "leave --num-classes out, or give --drop-head"
        )
    source = dataclasses.replace(_of_spec(model, spec, labels), fill=prepared.fill, read=prepared.read)
    return dataclasses.replace(source, proof=partial(_prove_recovered, path, model)) if spec.format == onnx_graph.NAME else source


def digits_source(changes: Changes = Changes(), outputs: Sequence[str] | None = None, labels: Sequence[str] | None = None) -> Source:
    """The trained network that comes with this package. Raises: ConfigError, InputError."""
    return dataclasses.replace(checkpoint_source(digits_checkpoint(), changes, outputs, labels), arch=DIGITS)


def _prove_recovered(path: Path, model: ViT) -> str:
    from vit_exporter.recovered import prove

    fixed = onnx_graph.open_onnx(path).extras["img_size"]
    proof = prove(path, model if fixed in (None, model.config.img_size) else None)
    if not proof.passed:
        raise VerificationError(f"the network that was recovered from {path} is not what that file computes: {proof}; nothing was written")
    return str(proof)


def describe_weights(checkpoint: Mapping[str, Any]) -> str:
    """Where the weights come from, for people, of a manifest's `checkpoint`."""
    if checkpoint["format"] == "random":
        return f"random weights, seed {checkpoint['seed']}"
    return f"weights from a checkpoint ({checkpoint['format']}, SHA-256 {checkpoint['sha256'][:12]}…)"


def _of_spec(model: ViT, spec: Spec, labels: Sequence[str] | None) -> Source:
    config, notes = spec.config, spec.notes
    if config.in_chans not in (1, 3):
        raise CheckpointError(
            f"{spec.path} takes images of {config.in_chans} channels, expected 3 (RGB) or 1 (grey), as pictures have them"
        )
    given = Preprocessing.paper(*config.img_size, config.in_chans)
    if spec.preprocessing:
        given = Preprocessing.from_dict(dict(spec.preprocessing))
    elif spec.format not in (native.NAME, onnx_graph.NAME):  # one leaves it out where it is the paper's, the other has said so
        notes = (*notes, f"nothing says how pictures are prepared for these weights: took the paper's way, {describe_images(given)}")
    facts = {"format": spec.format, "seed": None, "sha256": spec.sha256}
    return Source(model, spec.arch, facts, given, _labels(labels, spec.labels, config), notes)


def _labels(given: Sequence[str] | None, own: Sequence[str] | None, config: ViTConfig) -> tuple[str, ...] | None:
    labels = given if given is not None else own
    if labels is not None and (config.projection or not config.num_classes):
        raise InputError(f"got {len(labels)} labels, but this network has no classes; leave --labels out")
    if labels is not None and len(labels) != config.num_classes:
        raise InputError(f"got {len(labels)} labels, expected {config.num_classes}, one for each class in the order of the logits")
    return tuple(labels) if labels is not None else None
