"""What an .onnx file says about itself, read without onnx and without its weights.

An .onnx file is a protocol buffer (onnx/onnx.proto, message ModelProto). This walks its fields through a memory map, so a file
of gigabytes costs milliseconds, and trusts nothing: every length is checked against what is there.
"""

from __future__ import annotations

import mmap
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vit_runtime.errors import ModelError

MAX_NODES = 1_000_000
MAX_DEPTH = 16  # graphs in graphs
MAX_NAMES = 16_000_000  # of values, in all nodes together
MAX_METADATA = 64 << 20  # bytes of one metadata entry; a manifest with 20,000 labels and 16 golden images has under 4 MiB

T = TypeVar("T")

DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16", 17: "float8e4m3fn",
    18: "float8e4m3fnuz", 19: "float8e5m2", 20: "float8e5m2fnuz", 21: "uint4", 22: "int4", 23: "float4e2m1",
}  # fmt: skip
ONE_BYTE = {2, 3, 9, 17, 18, 19, 20}


@dataclass(frozen=True)
class TensorInfo:
    """A graph input or output; a dimension without a fixed size is its name, or "?"."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class OnnxFile:
    """What is in the file; sizes in bytes, `size` with the external data."""

    path: Path
    size: int
    ir_version: int
    opsets: Mapping[str, int]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    op_counts: Mapping[str, int]
    external_files: tuple[str, ...]
    metadata: Mapping[str, str]

    @property
    def nodes(self) -> int:
        """Nodes of the main graph."""
        return sum(self.op_counts.values())


@dataclass(frozen=True)
class NodeInfo:
    """A node: its name, op (after its domain and a dot, where that is not the standard one), the values that it takes and makes.

    `numbers` are its attributes that are whole numbers, `constant` the type of the tensor that it holds.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    numbers: Mapping[str, int]
    constant: str | None


@dataclass(frozen=True)
class GraphInfo:
    """The nodes, those of the main graph first and in the file's order, and what the file tells of the main graph's values.

    `inner` are the nodes of graphs in nodes and of functions, `functions` their ops. `dtypes` has the types of weights, inputs, outputs
    and of what else has one in the file; `stored` are the names of weights, `nonzero` those of one byte a number that are not all zero.
    """

    nodes: tuple[NodeInfo, ...]
    inner: tuple[NodeInfo, ...]
    functions: frozenset[str]
    dtypes: Mapping[str, str]
    stored: frozenset[str]
    nonzero: frozenset[str]


def read_onnx(path: Path) -> OnnxFile:
    """Walk the file. Raises: ModelError if it is missing, empty, truncated, not ONNX, or points outside its folder."""
    return _walk(path, _read)


def read_nodes(path: Path) -> tuple[NodeInfo, ...]:
    """The main graph's nodes. Raises: ModelError as `read_onnx`."""
    return _walk(path, _nodes)


def read_graph(path: Path) -> GraphInfo:
    """All nodes and types. Raises: ModelError as `read_onnx`."""
    return _walk(path, _graph)


def with_outputs(path: Path, names: Sequence[str]) -> bytes:
    """The file with these values as outputs of its graph too, untyped, as engines take them.

    A protocol buffer's messages that come twice are merged by whoever reads them, so it is enough to add a graph of nothing but outputs.
    Only for files that fit one protocol buffer.
    """
    graph = b"".join(field(12, field(1, name.encode())) for name in names)
    return path.read_bytes() + field(7, graph)


def field(key: int, content: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    return field_head(key, len(content)) + content


def field_head(key: int, size: int) -> bytes:
    """How a length-delimited field of so many bytes begins."""
    return _varint(key << 3 | 2) + _varint(size)


def field_size(key: int, size: int) -> int:
    """How many bytes such a field takes in all."""
    return len(field_head(key, size)) + size


def int_field(key: int, value: int) -> bytes:
    """A field that is a whole number, not negative."""
    return _varint(key << 3) + _varint(value)


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])


def _walk(path: Path, reader: Callable[[Path, mmap.mmap], T]) -> T:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ModelError(f"{path} is a folder, expected an .onnx file")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for somebody to write
            raise ModelError(f"{path} is a pipe or device, expected an .onnx file; copy it to a file first")
        with path.open("rb") as file:
            if not status.st_size:
                raise ModelError(f"{path} is empty, expected an .onnx file; it was probably cut off while it was copied")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return reader(path, data)
    except FileNotFoundError as error:
        raise ModelError(f"{path} does not exist; `vit-export --out {path}` makes one") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:  # of a path with a null character in it, or of a file cut to nothing after it was opened
        raise ModelError(f"{str(path)!r} cannot be read ({error})") from error
    except _MalformedError as error:
        raise ModelError(f"{path} is not a whole .onnx file ({error}); copy it again or export it again") from error


class _MalformedError(Exception):
    """The bytes are not the message that they should be."""


@dataclass(frozen=True)
class _Span:
    """A length-delimited field's place in the file."""

    data: mmap.mmap
    start: int
    stop: int

    def text(self, limit: int = 1 << 16) -> str:
        if self.stop - self.start > limit:
            raise _MalformedError(f"a name or text of {self.stop - self.start} bytes")
        try:
            return self.data[self.start : self.stop].decode()
        except UnicodeDecodeError as error:
            raise _MalformedError("a name that is not text") from error

    def fields(self) -> Iterator[tuple[int, int | _Span]]:
        """(field number, value) pairs: a number for varints, a span for what has a length; fixed-size numbers are passed over."""
        at = self.start
        while at < self.stop:
            key, at = self._varint(at)
            number, kind = key >> 3, key & 7
            if number == 0:
                raise _MalformedError("a field without a number")
            if kind == 0:
                value, at = self._varint(at)
                yield number, value
            elif kind in (1, 2, 5):
                length = 8 if kind == 1 else 4
                if kind == 2:
                    length, at = self._varint(at)
                if length > self.stop - at:
                    raise _MalformedError("it ends in the middle of a field")
                if kind == 2:
                    yield number, _Span(self.data, at, at + length)
                at += length
            else:
                raise _MalformedError("a field of unknown kind")

    def _varint(self, at: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= self.stop:
                raise _MalformedError("it ends in the middle of a number")
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
        raise _MalformedError("a number that does not end")


def _read(path: Path, data: mmap.mmap) -> OnnxFile:
    ir_version, opsets, metadata, graph = 0, dict[str, int](), dict[str, str](), None
    locations = set[str]()
    for number, value in _Span(data, 0, len(data)).fields():
        if number == 1 and isinstance(value, int):
            ir_version = value
        elif isinstance(value, _Span) and number == 7:
            if graph is not None:  # a reader of protocol buffers would merge them
                raise _MalformedError("two graphs in it")
            graph = value
        elif isinstance(value, _Span) and number == 8:
            opsets.update([_pair(value)])
        elif isinstance(value, _Span) and number == 14:
            key, text = _entry(value)
            if key in metadata:
                raise _MalformedError(f"two metadata entries {key[:60]!r} in it")
            metadata[key] = text
        elif isinstance(value, _Span) and number == 25:
            locations |= {_initializer(path, tensor)[1] for node in _messages(value, 7) for tensor in _node_tensors(node)}
    if graph is None or not ir_version or not opsets:
        raise _MalformedError("no graph, version or opset in it")
    inputs, outputs, ops = list[TensorInfo](), list[TensorInfo](), Counter[str]()
    initializers, nodes = set[str](), 0
    for number, value in graph.fields():
        if not isinstance(value, _Span):
            continue
        if number == 1:
            ops[_op(value)] += 1
            locations |= {_initializer(path, tensor)[1] for tensor in _node_tensors(value)}
            nodes += 1
            if nodes > MAX_NODES:
                raise _MalformedError(f"more than {MAX_NODES} nodes")
        elif number == 5:
            name, location = _initializer(path, value)
            initializers.add(name)
            locations.add(location)
        elif number == 15:
            locations |= {_initializer(path, tensor)[1] for part in (1, 2) for tensor in _messages(value, part)}
        elif number == 11:
            inputs.append(_tensor_info(value))
        elif number == 12:
            outputs.append(_tensor_info(value))
    external = tuple(sorted(locations - {""}))
    size = len(data) + sum((path.parent / name).stat().st_size for name in external)
    given = tuple(info for info in inputs if info.name not in initializers)
    return OnnxFile(path, size, ir_version, opsets, given, tuple(outputs), dict(ops.most_common()), external, metadata)


def _nodes(path: Path, data: mmap.mmap) -> tuple[NodeInfo, ...]:
    budget = _Budget()
    return tuple(_node(node, budget) for graph in _messages(_Span(data, 0, len(data)), 7) for node in _messages(graph, 1))


class _Budget:
    """Counts what is kept of a file, which may be made to fill the memory."""

    def __init__(self) -> None:
        self.nodes = self.names = 0

    def take(self, nodes: int, names: int) -> None:
        self.nodes, self.names = self.nodes + nodes, self.names + names
        if self.nodes > MAX_NODES:
            raise _MalformedError(f"more than {MAX_NODES} nodes")
        if self.names > MAX_NAMES:
            raise _MalformedError(f"more than {MAX_NAMES} names of values")


def _node(node: _Span, budget: _Budget) -> NodeInfo:
    texts = {1: list[str](), 2: list[str](), 3: list[str]()}  # inputs, outputs, name
    numbers, constant = dict[str, int](), None
    budget.take(1, 0)
    for number, value in node.fields():
        if number in texts and isinstance(value, _Span):
            budget.take(0, 1)
            texts[number].append(value.text())
        elif number == 5 and isinstance(value, _Span):
            budget.take(0, 1)
            name, whole, tensor = _attribute(value)
            if whole is not None:
                numbers[name] = whole
            constant = tensor or constant
    return NodeInfo("".join(texts[3][:1]), _op(node), tuple(texts[1]), tuple(texts[2]), numbers, constant)


def _attribute(span: _Span) -> tuple[str, int | None, str | None]:
    """Its name, and its value where that is a whole number, or the type of a tensor."""
    name, whole, tensor = "", None, None
    for number, value in span.fields():
        if number == 1 and isinstance(value, _Span):
            name = value.text()
        elif number == 3 and isinstance(value, int):
            whole = value if value < 1 << 63 else value - (1 << 64)
        elif number == 5 and isinstance(value, _Span):
            tensor = _dtype(value)
    return name, whole, tensor


def _graph(path: Path, data: mmap.mmap) -> GraphInfo:
    budget, dtypes, stored, nonzero = _Budget(), dict[str, str](), set[str](), set[str]()
    nodes, inner, functions = list[NodeInfo](), list[NodeInfo](), set[str]()
    model = _Span(data, 0, len(data))
    for graph in _messages(model, 7):
        for number, value in graph.fields():
            if not isinstance(value, _Span):
                continue
            if number == 1:
                nodes.append(_node(value, budget))
                inner += (_node(each, budget) for each in _inner_nodes(value))
                for tensor in _messages_of(value, 5, 5) if nodes[-1].constant else ():
                    nonzero |= {name for name in nodes[-1].outputs if _is_nonzero(path, tensor)}
            elif number in (11, 12, 13):
                budget.take(0, 1)
                info = _tensor_info(value)
                dtypes[info.name] = info.dtype
            elif number == 5:
                budget.take(0, 1)
                name, _ = _initializer(path, value)
                dtypes[name] = _dtype(value)
                stored.add(name)
                if _is_nonzero(path, value):
                    nonzero.add(name)
    for function in _messages(model, 25):
        functions.add(_op(function, domain=10, name=1))
        for node in _messages(function, 7):
            inner.append(_node(node, budget))
            inner += (_node(each, budget) for each in _inner_nodes(node))
    return GraphInfo(tuple(nodes), tuple(inner), frozenset(functions), dtypes, frozenset(stored), frozenset(nonzero))


def _inner_nodes(node: _Span, depth: int = 0) -> Iterator[_Span]:
    """The nodes of the graphs in a node."""
    if depth > MAX_DEPTH:
        raise _MalformedError(f"graphs in graphs, {MAX_DEPTH} deep")
    for part in (6, 11):
        for graph in _messages_of(node, 5, part):
            for inner in _messages(graph, 1):
                yield inner
                yield from _inner_nodes(inner, depth + 1)


def _dtype(tensor: _Span) -> str:
    """The type of a stored tensor."""
    number = next((value for number, value in tensor.fields() if number == 2 and isinstance(value, int)), 0)
    return DTYPES.get(number, f"type {number}")


def _is_nonzero(path: Path, tensor: _Span) -> bool:
    """Whether a stored tensor of one byte a number holds any other than zero."""
    kind, found, entries = 0, False, dict[str, str]()
    for number, value in tensor.fields():
        if number == 2 and isinstance(value, int):
            kind = value
        elif number in (5, 9):  # a list of numbers, packed or one by one, or bytes
            found |= _any(value) if isinstance(value, _Span) else bool(value)
        elif number == 13 and isinstance(value, _Span):
            entries.update([_entry(value)])
    if kind not in ONE_BYTE or not entries:
        return kind in ONE_BYTE and found
    _, location = _initializer(path, tensor)
    with (path.parent / location).open("rb") as file:
        file.seek(int(entries.get("offset", "0")))
        left = int(entries.get("length", 1 << 62))
        while not found and (piece := file.read(min(left, 1 << 16))):
            found, left = bool(piece.strip(b"\0")), left - len(piece)
    return found


def _any(span: _Span) -> bool:
    """Whether any byte is not zero."""
    return any(span.data[at : min(at + (1 << 16), span.stop)].strip(b"\0") for at in range(span.start, span.stop, 1 << 16))


def _pair(span: _Span) -> tuple[str, int]:
    domain, version = "", 0
    for number, value in span.fields():
        if number == 1 and isinstance(value, _Span):
            domain = value.text()
        elif number == 2 and isinstance(value, int):
            version = value
    return domain, version


def _entry(span: _Span) -> tuple[str, str]:
    texts = {1: "", 2: ""}
    for number, value in span.fields():
        if number in texts and isinstance(value, _Span):
            texts[number] = value.text(MAX_METADATA)
    return texts[1], texts[2]


def _op(node: _Span, domain: int = 7, name: int = 4) -> str:
    """What a node calls, by the numbers of the fields that tell."""
    texts = {domain: "", name: ""}
    for number, value in node.fields():
        if number in texts and isinstance(value, _Span):
            texts[number] = value.text()
    return f"{texts[domain]}.{texts[name]}" if texts[domain] else texts[name]


def _node_tensors(node: _Span, depth: int = 0) -> Iterator[_Span]:
    """The tensors inside of a node, such as a Constant's, and those of the graphs in it: they can point to other files too."""
    if depth > MAX_DEPTH:
        raise _MalformedError(f"graphs in graphs, {MAX_DEPTH} deep")
    for attribute in _messages(node, 5):
        for number, value in attribute.fields():
            if not isinstance(value, _Span):
                continue
            if number in (5, 10):
                yield value
            elif number in (22, 23):
                yield from (tensor for part in (1, 2) for tensor in _messages(value, part))
            elif number in (6, 11):
                yield from _messages(value, 5)
                yield from (tensor for sparse in _messages(value, 15) for part in (1, 2) for tensor in _messages(sparse, part))
                for inner in _messages(value, 1):
                    yield from _node_tensors(inner, depth + 1)


def _initializer(path: Path, tensor: _Span) -> tuple[str, str]:
    """A tensor's name and, where the numbers lie in another file, that file's name; checked to be whole and in the same folder."""
    name, entries = "", dict[str, str]()
    for number, value in tensor.fields():
        if number == 8 and isinstance(value, _Span):
            name = value.text()
        elif number == 13 and isinstance(value, _Span):
            entries.update([_entry(value)])
    if not entries:
        return name, ""
    location = entries.get("location", "")
    target = path.parent / location
    if not _is_beside(path, location):
        raise ModelError(f"{path} keeps weights in {location[:200]!r}, expected a file in its own folder; do not use this file")
    texts = (entries.get("offset", "0"), entries.get("length", "0"))
    if not all(text.isascii() and text.isdecimal() and len(text) < 20 for text in texts):
        raise _MalformedError("an offset or length that is not a number")
    end = sum(map(int, texts))
    if not target.is_file():
        raise ModelError(f"{path} keeps its weights in {location}, which is not beside it; copy both files")
    if target.stat().st_size < end:
        raise ModelError(f"{target} has {target.stat().st_size} bytes, expected at least {end}; copy both files again")
    return name, location


def _is_beside(path: Path, location: str) -> bool:
    """Whether `location` names something in the file's own folder, links followed."""
    if not location or "\0" in location or Path(location).is_absolute():
        return False
    try:
        return (path.parent / location).resolve().parent == path.parent.resolve()
    except RuntimeError:  # of links in a circle, before Python 3.13
        return False


def _tensor_info(span: _Span) -> TensorInfo:
    name, dtype, shape = "", "?", list[int | str]()
    for number, value in span.fields():
        if number == 1 and isinstance(value, _Span):
            name = value.text()
        elif number == 2 and isinstance(value, _Span):
            for tensor in _messages(value, 1):
                for part, inner in tensor.fields():
                    if part == 1 and isinstance(inner, int):
                        dtype = DTYPES.get(inner, f"type {inner}")
                    elif part == 2 and isinstance(inner, _Span):
                        shape = [_dimension(dimension) for dimension in _messages(inner, 1)]
    return TensorInfo(name, dtype, tuple(shape))


def _messages(span: _Span, wanted: int) -> Iterator[_Span]:
    for number, value in span.fields():
        if number == wanted and isinstance(value, _Span):
            yield value


def _messages_of(span: _Span, outer: int, wanted: int) -> Iterator[_Span]:
    for inner in _messages(span, outer):
        yield from _messages(inner, wanted)


def _dimension(span: _Span) -> int | str:
    for number, value in span.fields():
        if number == 1 and isinstance(value, int):
            return value if value < 1 << 63 else "?"  # a negative number: some exporters mean by -1 that it is free
        if number == 2 and isinstance(value, _Span):
            return value.text()
    return "?"
