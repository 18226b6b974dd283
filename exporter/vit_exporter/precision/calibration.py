"""The images that reduced precision is calibrated with and judged on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vit_runtime.errors import ImageError, InputError
from vit_runtime.golden import golden_images
from vit_runtime.images import find_images
from vit_runtime.preprocess import Preprocessing, resize_and_crop

MAX_IMAGES = 128  # of each kind
MAX_BYTES = 256 << 20  # of each kind, as pixels
FEW = 8  # below so many, all images do both
SYNTHETIC = 24  # generated images of each kind
CALIBRATION_SEED, JUDGING_SEED = 1, 2  # the golden images are of seed 0

GENERATED = "measured on generated images alone: give photographs of the kind that the network will see with --calibrate DIR"

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ImageSet:
    """Images of the network's size, uint8 (B, H, W, C), to calibrate with and to judge on, and what is to be said of them."""

    source: Literal["photographs", "synthetic"]
    calibrate: Pixels
    judge: Pixels
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {"source": self.source, "images": len(self.calibrate)}


def load_images(folder: Path | None, preprocessing: Preprocessing) -> ImageSet:
    """The images under `folder`, every second one to calibrate with and the others to judge on; generated ones without a folder.

    Raises: InputError for a folder that is none or has no image that can be read.
    """
    if folder is None:
        height, width = preprocessing.output_size
        calibrate, judge = (
            golden_images(seed, SYNTHETIC, height, width, preprocessing.channels) for seed in (CALIBRATION_SEED, JUDGING_SEED)
        )
        return ImageSet("synthetic", calibrate, judge, (GENERATED,))
    if not folder.is_dir():
        raise InputError(f"got --calibrate {folder}, expected a folder with images")
    pixels, broken, paths = list[Pixels](), list[Path](), find_images((str(folder),))
    side = min(MAX_IMAGES, max(1, MAX_BYTES // (preprocessing.output_size[0] * preprocessing.output_size[1] * preprocessing.channels)))
    wanted = min(len(paths), 2 * side)
    for path in (paths[place * len(paths) // wanted] for place in range(wanted)):  # from all of them, if there are more than are wanted
        try:
            pixels.append(resize_and_crop(path, preprocessing))
        except ImageError:
            broken.append(path)
    if not pixels:
        raise InputError(f"got --calibrate {folder} with {len(paths)} images of which none can be read, expected photographs")
    notes = []
    if broken:
        names = ", ".join(path.name for path in broken[:3])
        notes.append(f"{len(broken)} images under {folder} cannot be read and were left out: {names}")
    images = np.stack(pixels)
    if len(images) < FEW:
        notes.append(
            f"{len(images)} images both calibrate and judge, because they are so few: give at least {FEW} for a judgement on others"
        )
        return ImageSet("photographs", images, images, tuple(notes))
    return ImageSet("photographs", images[0::2], images[1::2], tuple(notes))
