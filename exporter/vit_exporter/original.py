"""PyTorch in float64 from a checkpoint: what `vit-parity --checkpoint` holds files against.

The runtime finds it by its entry point, because it does not import this package.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vit_exporter.reference import float32_outputs, float64_outputs, floors, in_chunks
from vit_exporter.source import Changes, checkpoint_source
from vit_models.errors import CheckpointError, ConfigError, OptionError
from vit_runtime.errors import InputError, ModelError
from vit_runtime.manifest import Error, Manifest
from vit_runtime.preprocess import normalize

Pixels = npt.NDArray[np.uint8]
Truth = tuple[dict[str, npt.NDArray[np.float64]], dict[str, Error]]


def open_original(checkpoint: Path, manifest: Manifest) -> Callable[[Pixels], Truth]:
    """What computes the outputs of the manifest's network, and PyTorch's own float32 error, for images uint8 (B, H, W, C).

    Images are prepared as the checkpoint says, not as the file does, so that a wrong mean shows.
    Raises: InputError for a checkpoint that needs to be told more or has another network, ModelError for one that cannot be read.
    """
    classes = 0 if manifest.model["num_classes"] == 0 else None
    changes = Changes(manifest.image_size, classes, manifest.model["pool"], manifest.multiple_of is not None)
    names = [output.name for output in manifest.outputs]
    try:
        source = checkpoint_source(checkpoint, changes, names)
    except (ConfigError, OptionError) as error:
        raise InputError(str(error)) from error
    except CheckpointError as error:
        raise ModelError(str(error)) from error
    source.fill()

    def compute(images: Pixels) -> Truth:
        inputs = normalize(images, source.preprocessing)
        exact, single = (in_chunks(outputs, source.model, inputs) for outputs in (float64_outputs, float32_outputs))
        return exact, floors(exact, single)

    return compute
