"""What a reader of a format says before any weight is read: the configuration, and where each parameter comes from.

A format's module looks at names, shapes and documents alone (`CheckpointFile`), so recognising and planning need no torch, and
`vit-inspect` can tell what would be converted of a file of any size. Weights are read one parameter at a time, by the plan's steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_models.checkpoints import repairs
from vit_models.config import Pool, ViTConfig

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TensorInfo:
    """A stored tensor's shape and dtype ("F32", "F16", "BF16", "F64", "I64", …: safetensors' names)."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint as it lies on the disk: names and shapes now, numbers when `read` is called.

    `documents` has the parsed JSON files of its folder by name ("config.json", "preprocessor_config.json", "open_clip_config.json");
    `metadata` the safetensors header's; `extras` the plain values beside the weights of a training checkpoint ("arch", "args", …).
    `notes` are what the user should be told of how the file was read. `release` gives back the memory that a tensor's pages of the file
    take, when its numbers have been copied elsewhere; the tensor stays valid and would be read from the disk again.
    """

    path: Path
    container: str  # "safetensors", "torch", "npz" or "onnx"
    tensors: Mapping[str, TensorInfo]
    read: Callable[[str], Tensor]
    documents: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    release: Callable[[str], None] = lambda name: None

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor that is there."""
        return self.tensors[name].shape


@dataclass(frozen=True)
class Options:
    """What the user says of a checkpoint beyond what the file says.

    `arch` is the source's name of the architecture. `img_size` is the size to run at, (height, width). `weights` chooses "ema" or "model"
    where a training checkpoint has both. `model_args` are the source library's own constructor arguments, as text.
    `format` is a name in `formats()`. `pool` overrides what represents the image. `drop_head` leaves the head out.
    """

    arch: str | None = None
    img_size: tuple[int, int] | None = None
    weights: str | None = None
    model_args: Mapping[str, str] = field(default_factory=dict)
    format: str | None = None
    pool: Pool | None = None
    drop_head: bool = False


@dataclass(frozen=True)
class Step:
    """One parameter of the network: the tensors that it is made of, and the repair that makes it."""

    sources: tuple[str, ...]
    repair: Callable[..., Tensor] = repairs.as_is


def take(name: str) -> Step:
    """The tensor of that name, as it is."""
    return Step((name,))


@dataclass(frozen=True)
class Plan:
    """How a checkpoint becomes the network.

    `config` is that of the weights as they are stored: the position table is resampled afterwards. Relative position tables are
    expanded by the plan's own steps, so there `config.img_size` is already the size to run at.
    `steps` has every parameter of `ViT(config)` by name. `ignored` names the stored tensors that do not take part, each with the reason.
    `preprocessing` is the JSON form of `vit_runtime.Preprocessing.to_dict()`, for the size to run at; `assumed` says that it is but the
    likeliest of several that the file may be meant for, as a note then tells. `run_size` is that size if nobody
    says another, where it is not the stored table's. `one_size` is why the network cannot take every image size, where that is the
    source's own doing.
    """

    config: ViTConfig
    steps: Mapping[str, Step]
    ignored: Mapping[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    preprocessing: Mapping[str, Any] | None = None
    arch: str | None = None
    notes: tuple[str, ...] = ()
    assumed: bool = False
    run_size: tuple[int, int] | None = None
    one_size: str = ""
