"""What the tests of the targets export: the trained digits network, judged on pictures, and a small one of random numbers."""

from pathlib import Path

import torch
from PIL import Image

from vit_exporter import ExportSpec, Source
from vit_models import ViT, ViTConfig
from vit_runtime.golden import golden_images
from vit_runtime.preprocess import Preprocessing

IMAGES = 8  # that judge, and as many that calibrate
TINY = ViTConfig(img_size=(32, 32), patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_dim=64, num_classes=10)
PREPARED = Preprocessing.paper(32, 32)


def draw(config: ViTConfig = TINY, outputs: tuple[str, ...] | None = None, dynamic_size: bool = False) -> ViT:
    """A network all of whose parameters are random numbers, as large in the blocks as in front of them, as training leaves them."""
    model, numbers = ViT(config, outputs, dynamic_size).eval(), torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=numbers) * (0.2 if parameter.ndim > 1 else 0.5))
    return model


def source(model: ViT | None = None) -> Source:
    return Source(model or draw(), None, {"format": "random", "seed": 0, "sha256": None}, PREPARED, None)


def pictures(folder: Path) -> Path:
    """The folder, with pictures to calibrate with and to judge on."""
    for number, pixels in enumerate(golden_images(9, 2 * IMAGES, 28, 28)):
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


def spec_of(folder: Path, images: Path, target: str, precision: str) -> ExportSpec:
    calibrate = images if precision != "fp32" else None
    return ExportSpec(folder / f"{target}-{precision}.onnx", target=target, precision=precision, calibrate=calibrate)
