"""A file mapped into memory, and the tensors that lie in it: read when they are asked for, with pages that can be given back.

The mapping is private: whatever is written into a tensor stays in memory and never reaches the file. Only `read` needs torch.
As with every mapping, the file must not be shortened by others meanwhile.
"""

from __future__ import annotations

import mmap
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from vit_models.checkpoints.claims import count
from vit_models.checkpoints.plan import TensorInfo
from vit_models.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

# safetensors' name of a dtype: torch's name, and bytes an element.
DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
    "C64": ("complex64", 8),
    "C128": ("complex128", 16),
}
UNREAD = ("F8_E4M3", "F8_E5M2", "C64", "C128")  # listed, but no network here takes them


class MappedFile:
    """The bytes of a regular file, as the system pages them in. Raises: CheckpointError for a path without one; OSError."""

    def __init__(self, path: Path) -> None:
        self.path: Path = path
        with open_regular(path) as file:
            self.size: int = os.fstat(file.fileno()).st_size
            if self.size == 0:
                raise self.bad("it is empty; get the file again")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.view: memoryview = memoryview(self._map)

    def bad(self, text: str) -> CheckpointError:
        """An error that begins with the file's path."""
        return CheckpointError(f"{self.path}: {text}")

    def copy(self, start: int, length: int) -> bytes:
        """A copy of a stretch, shorter where the file ends."""
        return bytes(self.view[start : start + length])

    def stream(self) -> mmap.mmap:
        """All bytes as a file that stands at its beginning."""
        self._map.seek(0)
        return self._map

    def rfind(self, pattern: bytes, start: int) -> int:
        """The last place of a pattern from `start` on, or -1."""
        return self._map.rfind(pattern, start)

    def release(self, start: int, length: int) -> None:
        """Give the pages of a stretch back to the system, where it offers that; they are read from the file when used again."""
        if hasattr(mmap, "MADV_DONTNEED") and length:
            first = start - start % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, first, start + length - first)


def open_regular(path: Path) -> BinaryIO:
    """The file, opened for reading. Raises: CheckpointError where it is none; OSError."""
    if not stat.S_ISREG(path.stat().st_mode):  # before it is opened: opening a pipe would wait for its writer
        raise CheckpointError(f"{path} is not a regular file; give a file of weights or a folder with one")
    return path.open("rb")


class Stored:
    """A tensor in a file: what it is now, its numbers when `read`."""

    info: TensorInfo

    def check(self, name: str) -> None:
        """Hold what it claims against the file, where listing it has not done so. Raises: CheckpointError, which tells `name`."""

    def read(self, name: str) -> Tensor:
        """The tensor in its stored dtype. Raises: CheckpointError, which tells `name`."""
        raise NotImplementedError

    def release(self) -> None:
        """Give back the memory that its pages of the file take; what is not mapped has none."""


@dataclass(frozen=True, eq=False)
class MappedTensor(Stored):
    """A tensor that lies in a file as it is, from the byte `start` on, inside the file; `strides` in elements, C order without."""

    file: MappedFile
    start: int
    info: TensorInfo
    strides: tuple[int, ...] | None = None

    def read(self, name: str) -> Tensor:
        return tensor_in(self.file, name, self.file.view, self.start, self.info, self.strides)

    def release(self) -> None:
        self.file.release(self.start, span(self.info, self.strides))


def tensor_in(file: MappedFile, name: str, data: memoryview, start: int, info: TensorInfo, strides: tuple[int, ...] | None) -> Tensor:
    """The tensor whose numbers begin at a byte of `data`, without a copy where they are aligned. Raises: CheckpointError."""
    import torch

    torch_name, size = DTYPES[info.dtype]
    if info.dtype in UNREAD:
        raise file.bad(f"{name} is stored as {torch_name}, expected plain floats; save it as float32, float16 or bfloat16")
    dtype, length = getattr(torch, torch_name), span(info, strides)
    if length == 0:
        return torch.empty(info.shape, dtype=dtype)
    view = data[start : start + length]
    flat = torch.frombuffer(view if start % size == 0 else bytearray(view), dtype=dtype)
    return flat.view(info.shape) if strides is None else flat.as_strided(info.shape, strides)


def span(info: TensorInfo, strides: tuple[int, ...] | None = None) -> int:
    """How many bytes a tensor takes from its first element to its last; `strides` in elements, C order without."""
    shape, size = info.shape, DTYPES[info.dtype][1]
    if strides is None or count(shape) == 0:
        return count(shape) * size
    return (1 + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))) * size
