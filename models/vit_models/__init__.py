"""The Vision Transformer of "An Image is Worth 16x16 Words", its named sizes and their weights."""

from vit_models.checkpoints.native import Checkpoint, load_checkpoint, save_checkpoint
from vit_models.config import Pool, ViTConfig
from vit_models.errors import CheckpointError, ConfigError, ModelError, UnknownArchError
from vit_models.init import init_weights
from vit_models.vit import OUTPUT_NAMES, ViT, check_outputs
from vit_models.zoo import ARCHS, DEFAULT_ARCH, DIGITS, arch_names, digits_checkpoint, find_arch

__all__ = [
    "ARCHS",
    "DEFAULT_ARCH",
    "DIGITS",
    "OUTPUT_NAMES",
    "Checkpoint",
    "CheckpointError",
    "ConfigError",
    "ModelError",
    "Pool",
    "UnknownArchError",
    "ViT",
    "ViTConfig",
    "arch_names",
    "check_outputs",
    "digits_checkpoint",
    "find_arch",
    "init_weights",
    "load_checkpoint",
    "save_checkpoint",
]
