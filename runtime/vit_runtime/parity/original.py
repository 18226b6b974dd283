"""A file against PyTorch in float64, computed from the checkpoint: on golden images, on images that no camera makes, on the user's own.

PyTorch is not part of the runtime. The exporter, where it is installed, is found by the entry point that it declares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vit_runtime.errors import InputError, MachineError
from vit_runtime.golden import golden_images
from vit_runtime.manifest import Error, Manifest
from vit_runtime.model import Model
from vit_runtime.parity.judging import BATCH_SIZES, Array, Check, Report, hold, limits_for
from vit_runtime.parity.pairs import Pictures, run_in_batches

GROUP = "vit_deploy.originals"
GOLDEN = 4  # images, unless the file has a record that says otherwise

Original = Callable[[npt.NDArray[np.uint8]], tuple[Mapping[str, Array], Mapping[str, Error]]]


def open_original(checkpoint: Path, manifest: Manifest) -> Original:
    """What computes the outputs of the manifest's network from a checkpoint, and PyTorch's own float32 error.

    Raises: MachineError where the exporter is not installed or broken; InputError, ModelError for the checkpoint.
    """
    mend = "run: pip install 'vit-deploy[export]'"
    found = list(entry_points(group=GROUP))
    if not found:
        raise MachineError(f"--checkpoint needs PyTorch and the exporter, which are not installed; {mend}")
    try:
        opener = found[0].load()
    except ImportError as error:
        raise MachineError(f"--checkpoint needs PyTorch and the exporter, which cannot be imported ({error}); {mend}") from error
    original: Original = opener(checkpoint, manifest)
    return original


def check_original(model: Model, original: Original, batch_sizes: Sequence[int] = BATCH_SIZES, pictures: Iterable[Pictures] = ()) -> Report:
    """Hold what the file gives against what the original computes in float64, in units of PyTorch's own error on the same images.

    Golden images at each batch size, `pictures` one by one and in the largest batches.
    Raises: InputError for an original whose outputs have other shapes.
    """
    manifest, checks = model.manifest, list[Check]()
    count = manifest.golden.images if manifest.golden else GOLDEN
    golden = Pictures("golden", golden_images(0, count, *manifest.image_size, manifest.preprocessing.channels))
    for each in (golden, *pictures):
        exact, floors = original(each.images)
        limits = limits_for(manifest.parity, each.name)
        for batch_size in batch_sizes if each is golden else dict.fromkeys((1, max(batch_sizes))):
            outputs = run_in_batches(model, each.images, batch_size)
            for name, expected in exact.items():
                if expected.shape != outputs[name].shape:
                    shapes = f"{outputs[name].shape[1:]} numbers an image in {name}, the checkpoint gives {expected.shape[1:]}"
                    raise InputError(f"{model.path} has {shapes}; compare it with the checkpoint that it was made from")
            label, scores = f"{model.provider}, against the checkpoint", manifest.class_scores
            checks += hold(label, batch_size, manifest.image_size, exact, outputs, floors, limits, scores, each.name)
    return Report(limits_for(manifest.parity), tuple(checks))
