"""A Vision Transformer in a graph: patches, positions, blocks and what follows, each recognised by what it computes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vit_models.checkpoints.onnx_graph.blocks import Block, Blocks, unexpected
from vit_models.checkpoints.onnx_graph.dataflow import Dataflow, evaluate, resize_method
from vit_models.checkpoints.onnx_graph.kernels import MAX_SIZE
from vit_models.checkpoints.onnx_graph.protobuf import Graph, StoredTensor
from vit_models.checkpoints.onnx_graph.tail import Tail, read_tail
from vit_models.checkpoints.onnx_graph.value import Value, ancestors
from vit_models.errors import CheckpointError

MAX_SIDE = 1 << 14
FLOATS = ("F32", "F16", "BF16", "F64")


@dataclass(frozen=True)
class Structure:
    """What a graph computes, as a Vision Transformer.

    `embedded` are the tokens before the first block (before `pre_norm`, where there is one), for images of `img_size`. `table` is what
    the graph resamples for that size, where it does: the Resize node. `prefix` counts the tokens before the patches.
    """

    img_size: tuple[int, int]
    conv: Value
    embedded: Value
    table: Value | None
    prefix: int
    pre_norm: Value | None
    blocks: tuple[Block, ...]
    tail: Tail
    flow: Dataflow

    @property
    def patch_size(self) -> int:
        """P."""
        return int(_known(self.conv.inputs[1])[2])

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across in images of `img_size`."""
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size


def own_size(graph: Graph) -> tuple[int, int] | None:
    """The image size that the file is fixed to, (height, width), None where it is free."""
    shape = _image_shape(graph)
    return (shape[2], shape[3]) if shape[2] and shape[3] else None


def recognise_structure(graph: Graph) -> Structure:
    """Raises: CheckpointError that names the first node at which the structure is not that of a Vision Transformer."""
    batch, chans, *_ = _image_shape(graph)
    size = own_size(graph)
    error: CheckpointError | None = None
    for given in [size] if size else _likely_sizes(graph):
        try:
            return _recognise(Dataflow(graph, (batch or 1, chans or 3, *given)), given)
        except CheckpointError as caught:
            error = error or caught
    assert error is not None  # there is always a size to look at
    raise error


def _image_shape(graph: Graph) -> tuple[int | None, ...]:
    given = [info for info in graph.inputs if info.name not in graph.initializers]
    if len(given) != 1 or len(given[0].shape) != 4:
        listed = ", ".join(f"{info.name} {list(info.shape)}" for info in given[:5])
        raise CheckpointError(
            f"got a graph with the inputs {listed or 'none'}, expected one input (batch, channels, height, width): images"
        )
    if any(size is not None and size > MAX_SIDE for size in given[0].shape):
        raise CheckpointError(f"got images of {list(given[0].shape)}, expected at most {MAX_SIDE} pixels a side")
    return given[0].shape


def _likely_sizes(graph: Graph) -> list[tuple[int, int]]:
    """Sizes at which a graph with free height and width may be looked at: those that a table of positions fits, then common ones."""
    strides = [node.attributes.get("strides") or [1] for node in graph.nodes if node.op == "Conv"][:1]
    patch = strides[0][0] if strides else 1
    if patch < 2:
        return [(224, 224)]  # no patches: one look tells which node is in the way
    lengths = [stored.shape[-2] for stored in graph.initializers.values() if len(stored.shape) in (2, 3) and stored.dtype in FLOATS]
    sides = [math.isqrt(length - prefix) for length in lengths for prefix in range(min(6, length)) if _is_square(length - prefix)]
    likely = [*[side for side in dict.fromkeys(sides) if 2 <= side <= 128][:8], 14, 16]
    return [(side * patch, side * patch) for side in dict.fromkeys(likely)]


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


def _recognise(flow: Dataflow, size: tuple[int, int]) -> Structure:
    conv = _patches(flow)
    images = _known(conv)[0]
    blocks = Blocks(flow, images)
    stream = blocks.first_stream()
    pre_norm = stream if stream.op == "LayerNorm" else None
    embedded = pre_norm.inputs[0] if pre_norm is not None else stream
    prefix = _prefix(embedded, conv)
    found, last = blocks.walk(stream)
    tables = [value for value in ancestors([embedded], frozenset({conv})) if value.op == "Resize"]
    if len(tables) > 1:
        unexpected(tables[1], "one table of positions to be resampled")
    if tables:
        resize_method(tables[0])
    return Structure(
        size, conv, embedded, tables[0] if tables else None, prefix, pre_norm, tuple(found), read_tail(blocks, last, prefix), flow
    )


def _patches(flow: Dataflow) -> Value:
    """The convolution that cuts the images into patches."""
    convs = [value for value in flow.users.get(flow.image, []) if value.op == "Conv"]
    if not convs:
        users = flow.users.get(flow.image, [])
        unexpected(
            users[0] if users else flow.image, "a convolution of the images as they are; leave resizing and normalising to the runtime"
        )
    conv = convs[0]
    given, kernel = conv.attributes, conv.inputs[1].sizes[2:]
    plain = given.get("group", 1) == 1 and not any(given.get("pads", [])) and set(given.get("dilations", [1])) == {1}
    strides = tuple(given.get("strides", (1, 1)))
    if not plain or len(kernel) != 2 or kernel[0] != kernel[1] or strides != kernel or kernel[0] < 2 or not conv.shape:
        unexpected(conv, f"square patches side by side, got a kernel of {kernel} with strides {strides}")
    if not all(arg.constant for arg in conv.inputs[1:]):
        unexpected(conv, "constant weights")
    return conv


def _prefix(embedded: Value, conv: Value) -> int:
    """How many tokens come before the patches, which have to be in order and as they are but for constants added."""
    images, width, rows, columns = _known(conv)
    shape = _known(embedded)
    if math.prod(shape) > MAX_SIZE:
        unexpected(embedded, f"at most {MAX_SIZE} numbers; export the file for fewer images at once")
    prefix = shape[1] - rows * columns if len(shape) == 3 else -1
    if shape != (images, shape[1], width) or prefix < 0:
        unexpected(embedded, f"a sequence of {rows * columns} patches of width {width} and a few tokens before them")
    marks = np.arange(1.0, rows * columns * width + 1).reshape(rows * columns, width)
    patches = np.broadcast_to(marks.T.reshape(width, rows, columns), (images, width, rows, columns))
    empty, marked = (evaluate(embedded, {conv: given}, _no_numbers) for given in (np.zeros_like(patches), patches))
    expected = np.concatenate([np.zeros((prefix, width)), marks])
    if not np.array_equal(np.broadcast_to(marked - empty, shape), np.broadcast_to(expected, shape)):
        unexpected(embedded, "the patches row by row, after the other tokens, with nothing but positions added")
    return prefix


def _no_numbers(stored: StoredTensor) -> npt.NDArray[Any]:
    """Zeros in a stored tensor's place, of floats; whole numbers are read."""
    return np.zeros(stored.shape, np.float32) if stored.dtype.startswith(("F", "BF")) else stored.array()


def _known(value: Value) -> tuple[int, ...]:
    if value.shape is None:
        unexpected(value, "a shape that can be worked out")
    return value.shape
