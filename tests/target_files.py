"""The trained digits network for each target and precision, and the images that calibrate and evaluate it."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from export_cache import ExportCache
from PIL import Image

from vit_exporter import ExportReport, digits_source
from vit_runtime.golden import golden_images

IMAGES = 8  # that evaluate, and as many that calibrate
Digits = Callable[[str, str], ExportReport]


def write_images(folder: Path) -> Path:
    """The folder, with images to calibrate with and to evaluate on."""
    for number, pixels in enumerate(golden_images(9, 2 * IMAGES, 28, 28)):
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


def options_of(images: Path, target: str, precision: str) -> dict[str, Any]:
    """The options of `ExportSpec` for a target and a precision."""
    return {"target": target, "precision": precision, "calibrate": images if precision != "fp32" else None}


def shared_digits(
    exports: ExportCache, images: Path, verify_passes: Callable[[str, str], bool] = lambda target, precision: False
) -> Digits:
    """A function from a target and a precision to the shared export of the digits network."""

    @cache
    def digits(target: str, precision: str) -> ExportReport:
        options = {**options_of(images, target, precision), "verify_passes": verify_passes(target, precision)}
        return exports.export(digits_source(), "digits.onnx", **options)

    return digits
