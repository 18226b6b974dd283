"""Put an .onnx file on disk: weights streamed one at a time, and everything or nothing.

A protocol buffer may be written in pieces: a message's length must be known before its bytes, and those of the weights are
known from their shapes. So no copy of the model is ever built in memory, which `onnx.save` and `onnx_ir.save` both do.
Appending a metadata entry to a finished file is valid for the same reason.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir as ir

from vit_exporter.passes.simplify import is_weight
from vit_runtime.errors import InputError, MachineError, no_folder
from vit_runtime.onnx_file import field_head, field_size

ONE_FILE_LIMIT = 2_000_000_000  # bytes; a protocol buffer ends at 2^31, and the manifest wants room
PAGE = 4096  # bytes; weights in an external file start on a page, so that a runtime can map them

_MODEL_GRAPH, _MODEL_METADATA, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = 7, 14, 5, 9  # fields of ONNX's protocol buffers


def data_name(out: Path) -> str:
    """The file beside `out` that holds external weights."""
    return f"{out.name}.data"


def weight_bytes(model: ir.Model) -> int:
    """What the weights take on disk."""
    return sum(value.const_value.nbytes for value in _weights(model) if value.const_value is not None)


def write_model(path: Path, model: ir.Model, external: bool) -> None:
    """Write the model, its weights inside or in `data_name(path)` beside it. Raises: OSError."""
    weights = _weights(model)
    proto = _without(model, weights)
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    offsets = _offsets(weights) if external else {}
    headers = [_header(value, data_name(path) if external else None, offsets) for value in weights]
    payloads = [0 if external else _tensor(value).nbytes for value in weights]
    sizes = [
        len(header) + (field_size(_TENSOR_RAW_DATA, size) if not external else 0) for header, size in zip(headers, payloads, strict=True)
    ]
    with path.open("wb") as file:
        file.write(proto.SerializeToString(deterministic=True))
        file.write(field_head(_MODEL_GRAPH, len(graph) + sum(field_size(_GRAPH_INITIALIZER, size) for size in sizes)))
        file.write(graph)
        for value, header, size, payload in zip(weights, headers, sizes, payloads, strict=True):
            file.write(field_head(_GRAPH_INITIALIZER, size))
            file.write(header)
            if not external:
                file.write(field_head(_TENSOR_RAW_DATA, payload))
                _write_numbers(file, value)
    if external:
        with path.with_name(data_name(path)).open("wb") as file:
            for value in weights:
                file.seek(offsets[value.name or ""])
                _write_numbers(file, value)


@contextlib.contextmanager
def written(model: ir.Model) -> Iterator[Path]:
    """A file of the model, for as long as it is needed; where one file cannot hold the weights, they are beside it. Raises: OSError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "graph.onnx")
        write_model(path, model, external=weight_bytes(model) > ONE_FILE_LIMIT)
        yield path


def append_metadata(path: Path, key: str, text: str) -> None:
    """Add one entry to a finished file's `metadata_props`. Raises: OSError."""
    entry = onnx.StringStringEntryProto(key=key, value=text).SerializeToString(deterministic=True)
    with path.open("ab") as file:
        file.write(field_head(_MODEL_METADATA, len(entry)))
        file.write(entry)


@contextlib.contextmanager
def staging(out: Path, force: bool, needed: int) -> Iterator[Path]:
    """A path to write the model to; when the block ends well it becomes `out`, with the data file that lies beside it.

    If the block fails or is interrupted, nothing is left behind and an earlier `out` is as it was. `needed` in bytes.
    Raises: InputError for an `out` that cannot be, MachineError where there is no room.
    """
    check_out(out, force)
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        room = f"{free / 1e6:.1f} MB free, expected at least {needed / 1e6:.1f} MB for {out.name}"
        raise MachineError(f"{out.parent} has {room}; make room or choose another folder")
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise InputError(f"--out {out} cannot be written ({error.strerror}); choose another name or folder") from error
    try:
        staged = folder / out.name
        yield staged
        check_out(out, force)
        _commit(staged, out)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            trouble = "allows no file so large as" if error.errno == errno.EFBIG else "ran full while it was written:"
            message = f"{out.parent} {trouble} {out.name}; nothing was left behind; make room or choose another folder"
            raise MachineError(message) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_out(out: Path, force: bool) -> None:
    """Whether a model may be written to `out`. Raises: InputError."""
    if os.path.isdir(out):  # unlike pathlib's, os.path's questions have an answer where a folder may not be entered or a name is too long
        raise InputError(f"--out {out} is a folder, expected a file name; try --out {out / 'vit.onnx'}")
    if out.suffix != ".onnx":
        raise InputError(f"--out {out} does not end in .onnx, which runtimes go by; try --out {out.with_name(out.name + '.onnx')}")
    if not os.path.isdir(out.parent):
        raise InputError(f"--out {out}: {no_folder(out.parent)}")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise InputError(f"--out {out}: the folder {out.parent} is not writable; choose another one")
    for file in (out, out.with_name(data_name(out))):
        if os.path.exists(file) and not force:
            raise InputError(f"{file} exists; --force replaces it")


def _commit(staged: Path, out: Path) -> None:
    """Move the staged files to their place, data first: a model is never seen without its weights.

    An earlier model's data goes with it.
    """
    data, final_data = staged.with_name(data_name(out)), out.with_name(data_name(out))
    kept = staged.with_name("earlier")
    if not data.exists():
        staged.replace(out)
        final_data.unlink(missing_ok=True)
        return
    try:
        if final_data.exists():
            final_data.replace(kept)
        data.replace(final_data)
        staged.replace(out)
    except BaseException:
        if staged.exists():  # the model did not move, so its weights go back
            if kept.exists():
                kept.replace(final_data)
            elif not data.exists():
                final_data.unlink(missing_ok=True)
        raise


def _weights(model: ir.Model) -> list[ir.Value]:
    return [value for value in model.graph.initializers.values() if is_weight(value)]


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None  # an initialiser has one
    return value.const_value


def _without(model: ir.Model, weights: list[ir.Value]) -> onnx.ModelProto:
    """The model's message with everything but the weights."""
    for value in weights:
        del model.graph.initializers[value.name or ""]
    try:
        return ir.to_proto(model)
    finally:
        for value in weights:
            model.graph.register_initializer(value)


def _header(value: ir.Value, location: str | None, offsets: dict[str, int]) -> bytes:
    """A TensorProto without its numbers."""
    tensor = _tensor(value)
    proto = onnx.TensorProto(name=value.name, dims=tensor.shape.numpy(), data_type=int(tensor.dtype))
    if location is not None:
        proto.data_location = onnx.TensorProto.EXTERNAL
        for key, text in (("location", location), ("offset", str(offsets[value.name or ""])), ("length", str(tensor.nbytes))):
            proto.external_data.add(key=key, value=text)
    return proto.SerializeToString(deterministic=True)


def _offsets(weights: list[ir.Value]) -> dict[str, int]:
    offsets, at = {}, 0
    for value in weights:
        offsets[value.name or ""] = at
        at += -(-_tensor(value).nbytes // PAGE) * PAGE
    return offsets


def _write_numbers(file: BinaryIO, value: ir.Value) -> None:
    numbers = np.ascontiguousarray(_tensor(value).numpy())
    file.write(numbers.reshape(-1).view(np.uint8).data)
