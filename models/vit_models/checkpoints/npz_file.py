"""NumPy's .npz: a zip of .npy members, each a short header and the numbers.

https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html. The header is a Python literal; it is matched, not evaluated, as
NumPy always writes it in one form. Pickled members are refused. bfloat16, which NumPy does not know, is written by JAX as `|V2`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vit_models.checkpoints.claims import check_shape, count, shown
from vit_models.checkpoints.mapped import DTYPES, MappedFile, MappedTensor, Stored, tensor_in
from vit_models.checkpoints.plan import TensorInfo
from vit_models.checkpoints.zip_file import Member

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER = 10_000
MAX_RATIO = 4  # trained weights hardly shrink; what grows more is a bomb
SLACK = 1 << 24
HEADER = re.compile(rb"\{'descr': '([^']{1,20})', 'fortran_order': (True|False), 'shape': \(([0-9, ]*)\),? *\}\s*")
NUMPY_DTYPES = {
    "f8": "F64", "f4": "F32", "f2": "F16", "V2": "BF16", "i8": "I64", "i4": "I32", "i2": "I16", "i1": "I8",
    "u8": "U64", "u4": "U32", "u2": "U16", "u1": "U8", "b1": "BOOL", "c8": "C64", "c16": "C128",
}  # fmt: skip


def read_npz(file: MappedFile, members: Mapping[str, Member]) -> dict[str, Stored]:
    """The arrays by name, without ".npy". Raises: CheckpointError."""
    arrays = {name.removesuffix(".npy"): member for name, member in members.items() if name.endswith(".npy")}
    claimed = sum(member.size for member in arrays.values())
    if claimed > MAX_RATIO * file.size + SLACK:
        raise file.bad(f"its arrays claim {claimed:,} bytes in a file of {file.size:,}; save it again with numpy.savez")
    return {name: _array(member) for name, member in arrays.items()}


def _array(member: Member) -> Stored:
    file, name = member.file, member.name
    head = member.head(12 + MAX_HEADER)
    wide = 4 if head[6:7] in (b"\2", b"\3") else 2
    begin = 8 + wide + int.from_bytes(head[8 : 8 + wide], "little")
    match = HEADER.fullmatch(head[8 + wide : begin])
    if not head.startswith(b"\x93NUMPY") or begin > len(head) or match is None:
        raise file.bad(f"its member {shown(name)} is not a plain array; save it again with numpy.savez, one array a name")
    descr, fortran, sizes = (part.decode("ascii", "replace") for part in match.groups())
    if descr[1:] == "O" or descr == "O":
        raise file.bad(f"its member {shown(name)} holds pickled Python objects, expected numbers; save it again with numpy.savez")
    dtype = NUMPY_DTYPES.get(descr[1:])
    if dtype is None or descr[0] not in "<|=":
        raise file.bad(f"its member {shown(name)} has the NumPy type {shown(descr)}, expected little-endian numbers; save it as float32")
    shape = check_shape(name, [_integer(size) for size in sizes.split(",") if size.strip()])
    info = TensorInfo(shape, dtype)
    if begin + count(shape) * DTYPES[dtype][1] != member.size:
        raise file.bad(
            f"its member {shown(name)} claims the shape {shape} of {dtype} and holds {member.size - begin:,} bytes; get the file again"
        )
    return NpyTensor(member, begin, info, _fortran_strides(shape) if fortran == "True" else None)


def _integer(digits: str) -> int:
    return int(digits) if len(digits.strip()) < 20 and digits.strip().isdigit() else -1  # which no shape has


def _fortran_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(count(shape[:axis]) for axis in range(len(shape)))


@dataclass(frozen=True, eq=False)
class NpyTensor(Stored):
    """The numbers of a .npy member, `begin` bytes into it: used where they lie, or unpacked when they are read."""

    member: Member
    begin: int
    info: TensorInfo
    strides: tuple[int, ...] | None

    def read(self, name: str) -> Tensor:
        if self.member.deflated:
            return tensor_in(self.member.file, name, memoryview(self.member.whole()), self.begin, self.info, self.strides)
        self.member.check()
        return self._mapped().read(name)

    def release(self) -> None:
        if not self.member.deflated:
            self._mapped().release()

    def _mapped(self) -> MappedTensor:
        return MappedTensor(self.member.file, self.member.start + self.begin, self.info, self.strides)
