"""What the nodes of a graph put out, and where it comes from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from vit_models.checkpoints.onnx_graph.kernels import MOVEMENTS, Array
from vit_models.checkpoints.onnx_graph.protobuf import Node, StoredTensor

Shape = tuple[int, ...]


class Value:
    """What a node puts out, compared by identity. `number` is it where it is known, `stored` the tensor where it is one of the file's."""

    def __init__(
        self, op: str, args: tuple[Value | None, ...], attributes: Mapping[str, Any], place: int = 0, node: Node | None = None
    ) -> None:
        self.op, self.args, self.attributes, self.place, self.node = op, args, attributes, place, node
        self.names: list[str] = []
        self.stored: StoredTensor | None = None
        self.number: Array | None = None
        self.shape: Shape | None = None
        self.constant: bool = bool(args) and all(arg is None or arg.constant for arg in args)

    def __str__(self) -> str:
        return str(self.node) if self.node else (self.names or [self.op])[0]

    def arg(self, place: int) -> Value | None:
        """An argument, or None where it is left out."""
        return self.args[place] if place < len(self.args) else None

    @property
    def inputs(self) -> tuple[Value, ...]:
        """The arguments that are given."""
        return tuple(arg for arg in self.args if arg is not None)

    @property
    def sizes(self) -> Shape:
        """The shape, or that of a single number where it is unknown."""
        return self.shape or ()

    @property
    def scalar(self) -> float | None:
        """The number where it is one and known."""
        return float(self.number.reshape(-1)[0]) if self.number is not None and self.number.size == 1 else None


def ancestors(values: Iterable[Value], until: frozenset[Value] = frozenset()) -> list[Value]:
    """The values and all that they are computed from, sources first; what is before `until` is left out."""
    order: dict[Value, None] = {}
    stack = [(value, False) for value in values]
    while stack:
        value, done = stack.pop()
        if done:
            order[value] = None
        elif value not in order:
            stack.append((value, True))
            if value not in until:
                stack.extend((arg, False) for arg in value.inputs if arg not in order)
    return list(order)


def same_rows(value: Value) -> Value:
    """What is before movements that keep every row of channels, and the rows in their order."""
    while value.op in MOVEMENTS and _keeps_rows(value):
        value = value.inputs[0]
    return value


def _keeps_rows(value: Value) -> bool:
    before, after = value.inputs[0].shape, value.shape
    if not before or not after or before[-1] != after[-1] or math.prod(before) != math.prod(after) or value.inputs[0].constant:
        return False
    if value.op == "Transpose":  # of axes of one only
        moved = [axis for axis in value.attributes.get("perm", range(len(before))[::-1]) if before[axis] > 1]
        return moved == sorted(moved)
    return value.op in ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Slice")


def is_vector(value: Value, width: int) -> bool:
    """Whether it has `width` numbers along its last axis and no more."""
    return value.shape is not None and value.shape[-1:] == (width,) and math.prod(value.shape) == width
