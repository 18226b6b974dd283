"""A zip's members: where each lies in the file, so that numbers that are not compressed can be used where they are.

The standard library's zipfile copies what it reads and trusts some claims; this reads the directory alone and checks every offset
(APPNOTE.TXT 6.3.10, sections 4.3.7, 4.3.12 to 4.3.16 and 4.5.3).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from vit_models.checkpoints.claims import shown
from vit_models.checkpoints.mapped import MappedFile
from vit_models.errors import CheckpointError

MAX_DIRECTORY = 16 << 20  # 100,000 members
CHUNK = 1 << 16
STORED, DEFLATED = 0, 8
ENCRYPTED = 1
_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_FULL = 0xFFFFFFFF  # the number is in the zip64 field instead


@dataclass(frozen=True)
class Member:
    """`stored` bytes from `start` on, all inside the file; they become `size` bytes. `crc` is 0 where the writer left it out."""

    file: MappedFile
    name: str
    start: int
    stored: int
    size: int
    crc: int
    deflated: bool

    def head(self, length: int) -> bytes:
        """The first bytes. Raises: CheckpointError."""
        if not self.deflated:
            return self.file.copy(self.start, min(length, self.size))
        try:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(self.file.copy(self.start, min(self.stored, length + 1024)), length)
        except zlib.error as error:
            raise self.damaged() from error

    def whole(self) -> bytes | bytearray:
        """All its bytes, held against their CRC-32. The caller has checked that `size` is no fantasy. Raises: CheckpointError."""
        if not self.deflated:
            self.check()
            return self.file.copy(self.start, self.size)
        whole, filled, inflater = bytearray(self.size), 0, zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            for start in range(self.start, self.start + self.stored, CHUNK):
                piece = inflater.decompress(self.file.view[start : min(start + CHUNK, self.start + self.stored)])
                if filled + len(piece) > self.size:
                    raise self.damaged()
                whole[filled : filled + len(piece)] = piece
                filled += len(piece)
        except zlib.error as error:
            raise self.damaged() from error
        if filled != self.size or not inflater.eof or self.crc not in (0, zlib.crc32(whole)):
            raise self.damaged()
        return whole

    def check(self) -> None:
        """Hold bytes that are not compressed against their CRC-32. Raises: CheckpointError."""
        if self.crc not in (0, zlib.crc32(self.file.view[self.start : self.start + self.stored])):
            raise self.damaged()

    def damaged(self) -> CheckpointError:
        """The error for bytes that are not what was written."""
        return self.file.bad(f"its member {shown(self.name)} is damaged; get the file again")


def read_zip(file: MappedFile) -> dict[str, Member]:
    """The members by name, folders left out. Raises: CheckpointError."""
    start, size = _directory(file)
    if size > MAX_DIRECTORY:
        raise file.bad(f"its zip directory claims {size:,} bytes, expected at most {MAX_DIRECTORY:,}; the file is damaged, get it again")
    directory, members, position = file.copy(start, size), dict[str, Member](), 0
    while position < size:
        if len(directory) - position < _ENTRY.size:
            raise _damaged(file)
        fields = _ENTRY.unpack_from(directory, position)
        after = position + _ENTRY.size + fields[10] + fields[11] + fields[12]
        name_end = position + _ENTRY.size + fields[10]
        if fields[0] != b"PK\1\2" or after > size:
            raise _damaged(file)
        name = directory[position + _ENTRY.size : name_end].decode("utf-8", "backslashreplace")
        position = after
        if name.endswith("/"):
            continue
        if name in members:
            raise file.bad(f"its zip directory names {shown(name)} twice; get the file again")
        members[name] = _member(file, name, fields, directory[name_end : name_end + fields[11]], start)
    if sum(member.stored for member in members.values()) > file.size:
        raise file.bad("the members of its zip overlap; the file is damaged, get it again")
    return members


def _directory(file: MappedFile) -> tuple[int, int]:
    """Where the directory begins and how long it is."""
    end = file.rfind(b"PK\5\6", max(0, file.size - _END.size - 0xFFFF))
    if end < 0 or file.size - end < _END.size:
        raise file.bad("it begins as a zip and has no zip directory at its end; it was cut off, get it again")
    *_, size, start, _ = _END.unpack(file.copy(end, _END.size))
    locator = end - _END64_LOCATOR.size
    if locator >= 0 and file.copy(locator, 4) == b"PK\6\7":
        _, _, end, _ = _END64_LOCATOR.unpack(file.copy(locator, _END64_LOCATOR.size))
        if end + _END64.size > locator or file.copy(end, 4) != b"PK\6\6":
            raise _damaged(file)
        *_, size, start = _END64.unpack(file.copy(end, _END64.size))
    if start + size > end:
        raise _damaged(file)
    return start, size


def _member(file: MappedFile, name: str, fields: tuple[int, ...], extra: bytes, limit: int) -> Member:
    flags, method, crc, stored, size, offset = (fields[index] for index in (3, 4, 7, 8, 9, 16))
    if flags & ENCRYPTED or method not in (STORED, DEFLATED):
        raise file.bad(f"its member {shown(name)} is encrypted or packed in a way that no writer of weights uses; save the file again")
    wide = _zip64(extra)
    try:
        size = next(wide) if size == _FULL else size
        stored = next(wide) if stored == _FULL else stored
        offset = next(wide) if offset == _FULL else offset
    except StopIteration:
        raise _damaged(file) from None
    if offset + _LOCAL.size > limit:
        raise _damaged(file)
    local = _LOCAL.unpack(file.copy(offset, _LOCAL.size))
    start = offset + _LOCAL.size + local[9] + local[10]
    if local[0] != b"PK\3\4" or start + stored > limit or (method == STORED and size != stored):
        raise file.bad(f"its member {shown(name)} is not where the zip directory says; the file is damaged, get it again")
    return Member(file, name, start, stored, size, crc, method == DEFLATED)


def _zip64(extra: bytes) -> Iterator[int]:
    """The 64-bit numbers of the extra field with the identity 1."""
    while len(extra) >= 4:
        identity, length = struct.unpack_from("<2H", extra)
        if identity == 1:
            for position in range(4, min(4 + length, len(extra)) - 7, 8):
                yield int.from_bytes(extra[position : position + 8], "little")
            return
        extra = extra[4 + length :]


def _damaged(file: MappedFile) -> CheckpointError:
    return file.bad("its zip directory is damaged; get the file again")
