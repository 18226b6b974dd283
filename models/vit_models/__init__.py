"""The Vision Transformer of "An Image is Worth 16x16 Words", its named sizes, and readers of everybody's weights.

Names are looked up when they are first asked for, so that what needs no torch (`inspect`, `ViTConfig`, the zoo) does not load it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit_models.checkpoints.load import Spec, formats, inspect, load
    from vit_models.checkpoints.native import save_checkpoint
    from vit_models.checkpoints.plan import Options
    from vit_models.config import Pool, Rope, ViTConfig
    from vit_models.errors import CheckpointError, ConfigError, ModelError, OptionError, UnknownArchError
    from vit_models.init import init_weights
    from vit_models.vit import OUTPUT_NAMES, ViT, check_outputs
    from vit_models.zoo import ARCHS, DEFAULT_ARCH, DIGITS, arch_names, digits_checkpoint, find_arch

_HOMES = {
    "checkpoints.load": ("Spec", "formats", "inspect", "load"),
    "checkpoints.native": ("save_checkpoint",),
    "checkpoints.plan": ("Options",),
    "config": ("Pool", "Rope", "ViTConfig"),
    "errors": ("CheckpointError", "ConfigError", "ModelError", "OptionError", "UnknownArchError"),
    "init": ("init_weights",),
    "vit": ("OUTPUT_NAMES", "ViT", "check_outputs"),
    "zoo": ("ARCHS", "DEFAULT_ARCH", "DIGITS", "arch_names", "digits_checkpoint", "find_arch"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ARCHS",
    "DEFAULT_ARCH",
    "DIGITS",
    "OUTPUT_NAMES",
    "CheckpointError",
    "ConfigError",
    "ModelError",
    "OptionError",
    "Options",
    "Pool",
    "Rope",
    "Spec",
    "UnknownArchError",
    "ViT",
    "ViTConfig",
    "arch_names",
    "check_outputs",
    "digits_checkpoint",
    "find_arch",
    "formats",
    "init_weights",
    "inspect",
    "load",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"vit_models.{_HOME_OF[name]}"), name)
