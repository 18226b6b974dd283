"""An ONNX file's graph, read without its weights and without the onnx package.

An .onnx file is a protocol buffer (onnx/onnx.proto, message ModelProto). This walks its fields through a memory map and notes where
each tensor's numbers lie; they are read when somebody asks, one tensor at a time. Every length is checked against what is there.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vit_models.errors import CheckpointError

MAX_NODES = 200_000
MAX_DEPTH = 8  # graphs in graphs
MAX_TEXT = 1 << 16

# onnx.proto's TensorProto.DataType: safetensors' name, and numpy's type of the stored numbers.
DTYPES = {
    1: ("F32", "<f4"),
    2: ("U8", "<u1"),
    3: ("I8", "<i1"),
    5: ("I16", "<i2"),
    6: ("I32", "<i4"),
    7: ("I64", "<i8"),
    9: ("BOOL", "?"),
    10: ("F16", "<f2"),
    11: ("F64", "<f8"),
    16: ("BF16", "<u2"),
}


class MalformedError(Exception):
    """The bytes are not the message that they should be."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's numbers lie: in `file` from `offset` on, or decoded in `numbers` where the file lists them one by one."""

    name: str
    dtype: str  # safetensors' name
    shape: tuple[int, ...]
    file: Path
    offset: int = 0
    numbers: npt.NDArray[Any] | None = None

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    def array(self) -> npt.NDArray[Any]:
        """The numbers, in memory of their own; bfloat16 as the uint16 of its bits."""
        kind = np.dtype(next(numpy for name, numpy in DTYPES.values() if name == self.dtype))
        if self.numbers is not None:
            return self.numbers.astype(kind).reshape(self.shape)
        values = np.empty(self.shape, kind)
        with self.file.open("rb") as file:
            file.seek(self.offset)
            if file.readinto(values.reshape(-1).view(np.uint8).data) != values.nbytes:
                raise CheckpointError(f"{self.file} ends within the tensor {self.name}; copy it again")
        return values


@dataclass(frozen=True)
class Node:
    """An operation; its attributes are numbers, texts, lists of them, a StoredTensor or a Graph."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.name or ', '.join(self.outputs)} ({self.op})"


@dataclass(frozen=True)
class ValueInfo:
    """A graph's input or output; a dimension without a fixed size is None."""

    name: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Graph:
    """The nodes in the order in which they run, and where the weights lie."""

    nodes: tuple[Node, ...]
    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]
    initializers: Mapping[str, StoredTensor]
    opset: int = 0
    producer: str = ""


def read_graph(path: Path) -> Graph:
    """Walk the file. Raises: CheckpointError if it is unreadable, truncated, not ONNX, or its weights are not in its own folder."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _model(path, data)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise CheckpointError(f"{path} cannot be read ({error}); expected an .onnx file") from error
    except MalformedError as error:
        raise CheckpointError(f"{path} is not a whole .onnx file ({error}); copy it again or export it again") from error


@dataclass(frozen=True)
class _Span:
    """A message's or a text's place in the file."""

    data: mmap.mmap
    start: int
    stop: int

    def bytes(self) -> bytes:
        return self.data[self.start : self.stop]

    def text(self) -> str:
        if self.stop - self.start > MAX_TEXT:
            raise MalformedError(f"a name of {self.stop - self.start} bytes")
        try:
            return self.bytes().decode()
        except UnicodeDecodeError as error:
            raise MalformedError("a name that is not text") from error

    def varints(self) -> list[int]:
        """A packed list of whole numbers."""
        numbers, at = [], self.start
        while at < self.stop:
            value, at = self._varint(at)
            numbers.append(_signed(value))
        return numbers

    def fields(self) -> Iterator[tuple[int, int | float | _Span]]:
        """(field number, value): a number, a float (32 bits; those of 64 are passed over), or a span for what has a length."""
        at = self.start
        while at < self.stop:
            key, at = self._varint(at)
            number, kind = key >> 3, key & 7
            if number == 0 or kind not in (0, 1, 2, 5):
                raise MalformedError("a field of unknown kind")
            if kind == 0:
                value, at = self._varint(at)
                yield number, _signed(value)
                continue
            length = 8 if kind == 1 else 4
            if kind == 2:
                length, at = self._varint(at)
            if length > self.stop - at:
                raise MalformedError("it ends in the middle of a field")
            if kind == 2:
                yield number, _Span(self.data, at, at + length)
            elif kind == 5:
                yield number, struct.unpack("<f", self.data[at : at + 4])[0]
            at += length

    def _varint(self, at: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= self.stop:
                raise MalformedError("it ends in the middle of a number")
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
        raise MalformedError("a number that does not end")

    def by_number(self) -> dict[int, list[Any]]:
        """Every field's values, in order."""
        found: dict[int, list[Any]] = {}
        for number, value in self.fields():
            found.setdefault(number, []).append(value)
        return found


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _model(path: Path, data: mmap.mmap) -> Graph:
    fields = _Span(data, 0, len(data)).by_number()
    graphs, opsets = _messages(fields, 7), dict(_opset(span) for span in _messages(fields, 8))
    if len(graphs) != 1 or not opsets:
        raise MalformedError(f"{len(graphs)} graphs and {len(opsets)} opsets in it")
    if functions := _messages(fields, 25):
        what = f"{path} keeps its nodes in {len(functions)} functions of its own"
        raise CheckpointError(f"{what}, expected a flat graph; inline them first, with onnx.inliner.inline_local_functions")
    producer = " ".join(_texts(fields, 2) + _texts(fields, 3))
    return replace(_graph(path, graphs[0], 0), opset=opsets.get("", 0), producer=producer)


def _graph(path: Path, span: _Span, depth: int) -> Graph:
    if depth > MAX_DEPTH:
        raise MalformedError(f"graphs in graphs, {MAX_DEPTH} deep")
    fields = span.by_number()
    if 15 in fields:
        raise CheckpointError(f"{path} has sparse weights, expected dense ones; write it again without them")
    initializers, nodes = [_tensor(path, tensor) for tensor in _messages(fields, 5)], _messages(fields, 1)
    if len(nodes) > MAX_NODES:
        raise MalformedError(f"more than {MAX_NODES} nodes")
    return Graph(
        tuple(_node(path, node, depth) for node in nodes),
        tuple(_value_info(info) for info in _messages(fields, 11)),
        tuple(_value_info(info) for info in _messages(fields, 12)),
        {tensor.name: tensor for tensor in initializers},
    )


def _node(path: Path, span: _Span, depth: int) -> Node:
    fields = span.by_number()
    domain = "".join(_texts(fields, 7))
    op = "".join(_texts(fields, 4))
    if op == "EPContext":
        raise CheckpointError(f"{path} holds an engine, which gives no weights back; take the .onnx file that it was built from")
    attributes = dict(_attribute(path, attribute, depth) for attribute in _messages(fields, 5))
    name = "".join(_texts(fields, 3))
    outputs = tuple(_texts(fields, 2))
    if op == "Constant" and isinstance(attributes.get("value"), StoredTensor):  # its tensor goes by the name of its output
        attributes["value"] = replace(attributes["value"], name="".join(outputs))
    return Node(f"{domain}.{op}" if domain not in ("", "ai.onnx") else op, name, tuple(_texts(fields, 1)), outputs, attributes)


def _attribute(path: Path, span: _Span, depth: int) -> tuple[str, Any]:
    """An attribute's name and value, by its type (onnx.proto's AttributeProto.AttributeType)."""
    fields = span.by_number()
    name, kind = "".join(_texts(fields, 1)), fields.get(20, [0])[-1]
    if 21 in fields:
        raise MalformedError(f"the attribute {name} refers to a function's")
    if kind == 1:
        return name, float(fields.get(2, [0.0])[-1])
    if kind == 2:
        return name, int(fields.get(3, [0])[-1])
    if kind == 3:
        return name, "".join(_texts(fields, 4))
    if kind == 4:
        tensors = _messages(fields, 5)
        if not tensors:
            raise MalformedError(f"the attribute {name} without its tensor")
        return name, _tensor(path, tensors[-1])
    if kind == 5:
        return name, [_graph(path, graph, depth + 1) for graph in _messages(fields, 6)][-1]
    if kind == 6:
        return name, _floats(fields.get(7, []))
    if kind == 7:
        return name, _integers(fields.get(8, []))
    return name, None  # lists of texts, tensors, graphs: nothing that is understood here has them


def _floats(values: list[Any]) -> list[float]:
    numbers = list[float]()
    for value in values:
        numbers += (
            np.frombuffer(value.bytes()[: (value.stop - value.start) // 4 * 4], "<f4").tolist() if isinstance(value, _Span) else [value]
        )
    return numbers


def _integers(values: list[Any]) -> list[int]:
    numbers = list[int]()
    for value in values:
        numbers += value.varints() if isinstance(value, _Span) else [int(value)]
    return numbers


def _tensor(path: Path, span: _Span) -> StoredTensor:
    fields = span.by_number()
    name, code = "".join(_texts(fields, 8)), fields.get(2, [0])[-1]
    shape = tuple(_integers(fields.get(1, [])))
    if code not in DTYPES:
        known = ", ".join(dtype for dtype, _ in DTYPES.values())
        raise CheckpointError(f"{path}: the tensor {name} has ONNX's data type {code}, expected one of {known}; use the unquantised file")
    dtype, numpy = DTYPES[code]
    if any(not 0 <= dimension < 1 << 40 for dimension in shape):
        raise MalformedError(f"the tensor {name} of shape {shape}")
    needed = math.prod(shape) * np.dtype(numpy).itemsize
    if 13 in fields:
        return _external(path, name, dtype, shape, needed, dict(_entry(entry) for entry in _messages(fields, 13)))
    for number in (9, 4, 10):  # raw_data, float_data and double_data all are the numbers one after the other
        spans = _messages(fields, number)
        if len(spans) == 1:
            if spans[0].stop - spans[0].start != needed:
                raise MalformedError(f"{spans[0].stop - spans[0].start} bytes for the tensor {name} of shape {shape}, expected {needed}")
            return StoredTensor(name, dtype, shape, path, spans[0].start)
    values: list[Any] = _floats(fields.get(4, [])) or _integers(fields.get(5, []) or fields.get(7, []))
    if len(values) != math.prod(shape):
        raise MalformedError(f"{len(values)} numbers for the tensor {name} of shape {shape}")
    bits = np.asarray(values, np.float64 if dtype in ("F32", "F64") else np.int64)
    if dtype == "F16":  # listed as the whole numbers of their bits
        bits = bits.astype(np.uint16).view(np.float16)
    return StoredTensor(name, dtype, shape, path, numbers=bits)


def _external(path: Path, name: str, dtype: str, shape: tuple[int, ...], needed: int, entries: dict[str, str]) -> StoredTensor:
    location = entries.get("location", "")
    if not _is_beside(path, location):
        raise CheckpointError(
            f"{path} keeps the tensor {name} in {location[:200]!r}, expected a file in its own folder; do not use this file"
        )
    target = path.parent / location
    texts = (entries.get("offset", "0"), entries.get("length", str(needed)))
    if not all(text.isascii() and text.isdecimal() and len(text) < 20 for text in texts):
        raise MalformedError(f"an offset or length of the tensor {name} that is not a number")
    offset, length = map(int, texts)
    if length != needed:
        raise MalformedError(f"{length} bytes for the tensor {name} of shape {shape}, expected {needed}")
    if not target.is_file():
        raise CheckpointError(f"{path} keeps its weights in {location}, which is not beside it; copy both files")
    if target.stat().st_size < offset + length:
        raise CheckpointError(f"{target} has {target.stat().st_size} bytes, expected at least {offset + length}; copy both files again")
    return StoredTensor(name, dtype, shape, target, offset)


def _is_beside(path: Path, location: str) -> bool:
    """Whether `location` names something in the file's own folder, links followed."""
    if not location or "\0" in location or Path(location).is_absolute():
        return False
    try:
        return (path.parent / location).resolve().parent == path.parent.resolve()
    except RuntimeError:  # of links in a circle, before Python 3.13
        return False


def _value_info(span: _Span) -> ValueInfo:
    fields = span.by_number()
    shape = [
        _dimension(dimension)
        for kind in _messages(fields, 2)
        for tensor in _messages(kind.by_number(), 1)
        for dimensions in _messages(tensor.by_number(), 2)
        for dimension in _messages(dimensions.by_number(), 1)
    ]
    return ValueInfo("".join(_texts(fields, 1)), tuple(shape))


def _dimension(span: _Span) -> int | None:
    value = span.by_number().get(1, [0])[-1]
    return value if isinstance(value, int) and value > 0 else None


def _opset(span: _Span) -> tuple[str, int]:
    fields = span.by_number()
    domain = "".join(_texts(fields, 1))
    return ("" if domain == "ai.onnx" else domain), fields.get(2, [0])[-1]


def _entry(span: _Span) -> tuple[str, str]:
    fields = span.by_number()
    return "".join(_texts(fields, 1)), "".join(_texts(fields, 2))


def _messages(fields: dict[int, list[Any]], number: int) -> list[_Span]:
    found = fields.get(number, [])
    if not all(isinstance(value, _Span) for value in found):
        raise MalformedError("a number where a message was expected")
    return found


def _texts(fields: dict[int, list[Any]], number: int) -> list[str]:
    return [span.text() for span in _messages(fields, number)]
