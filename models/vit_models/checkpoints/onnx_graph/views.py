"""Where numbers go while they are only moved: reshapes, transposes, splits and slices, followed by moving indices through them.

So it does not matter how an exporter splits a packed Linear into heads: where each number ends up says which row of the weight it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vit_models.checkpoints.onnx_graph import kernels
from vit_models.checkpoints.onnx_graph.dataflow import BROKEN
from vit_models.checkpoints.onnx_graph.value import Value, ancestors
from vit_models.errors import CheckpointError

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class View:
    """A value that is `scale` times numbers of `root`, each moved from the place (counted row by row) that `index` tells."""

    root: Value
    index: npt.NDArray[Any]
    scale: float


def view(value: Value, root: Value | None = None) -> View:
    """The value as a view of what is before the last movements and scalings, or of `root`. Raises: CheckpointError."""
    steps, scale = list[Value](), 1.0
    while value is not root:
        if value.op in kernels.MOVEMENTS and not value.inputs[0].constant and all(arg.constant for arg in value.inputs[1:]):
            steps.append(value)
            value = value.inputs[0]
        elif (scaled := scaling(value)) is not None:
            value, factor = scaled
            scale *= factor
        else:
            break
    if value.shape is None:
        unknown = next((each for each in ancestors([value]) if each.shape is None), value)
        raise CheckpointError(
            f"no Vision Transformer that can be recovered: what the node {unknown} gives cannot be worked out from the images' size"
        )
    if math.prod(value.shape) > kernels.MAX_SIZE:
        raise CheckpointError(
            f"the node {value} gives {value.shape}, more numbers than are followed; export the file for fewer images at once"
        )
    index = np.arange(math.prod(value.shape), dtype=np.int64).reshape(value.shape)
    for step in reversed(steps):
        try:
            given = [index, *(arg.number if arg is not None else None for arg in step.args[1:])]
            index = kernels.run(step.op, step.attributes, given)[step.place]
        except BROKEN as error:
            raise CheckpointError(f"the node {step} cannot be worked out ({error}); export the file again") from error
    return View(value, index, scale)


def scaling(value: Value) -> tuple[Value, float] | None:
    """(x, factor) where the value is x times or by a known number, else None."""
    if value.op not in ("Mul", "Div") or len(value.inputs) != 2:
        return None
    for x, factor in (value.inputs, value.inputs[::-1]):
        if factor.scalar is not None and not x.constant and x.shape == value.shape:
            if value.op == "Mul":
                return x, factor.scalar
            if x is value.inputs[0] and factor.scalar:
                return x, 1 / factor.scalar
    return None


def channels(moved: View, layout: Ints) -> Ints | None:
    """Which of the root's channels stand where, given that everything else keeps its place, or None where it does not.

    `layout` has, for each number of the view in its own order, the token (of all images) that it has to come from; the result is the
    channel that each comes from, in the same shape.
    """
    width = moved.root.shape[-1] if moved.root.shape else 0
    if not width or moved.index.shape != layout.shape:
        return None
    tokens, found = np.divmod(moved.index, width)
    return found if np.array_equal(tokens, layout) else None
