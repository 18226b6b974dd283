"""The safetensors format: eight bytes with the header's length, the header in JSON, the numbers one tensor after the other.

https://github.com/huggingface/safetensors#format; read here without the library, so that listing a file takes neither torch nor time.
"""

from __future__ import annotations

from typing import Any

from vit_models.checkpoints.claims import check_shape, count, parse_json, shown
from vit_models.checkpoints.mapped import DTYPES, MappedFile, MappedTensor
from vit_models.checkpoints.plan import TensorInfo

# The format allows 100 MB. 1,000 tensors take 0.1 MB, and a parsed header takes up to thirty times its text in memory.
MAX_HEADER = 1 << 20


def read_safetensors(file: MappedFile) -> tuple[dict[str, MappedTensor], dict[str, str]]:
    """The tensors and the metadata of a file. Raises: CheckpointError."""
    length = int.from_bytes(file.copy(0, 8), "little")
    if length > file.size - 8:
        raise file.bad(f"its header claims {length:,} bytes, but the file has {file.size:,}; it was cut off or damaged, get it again")
    if length > MAX_HEADER:
        raise file.bad(f"its header claims {length:,} bytes, expected at most {MAX_HEADER:,}; the file is damaged, get it again")
    header = parse_json(f"{file.path}: the header", file.copy(8, length))
    if not isinstance(header, dict):
        raise file.bad("its header is not a JSON object; the file is damaged, get it again")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise file.bad("its metadata are not texts by name; the file is damaged, get it again")
    begin = 8 + length
    tensors, ends = dict[str, MappedTensor](), list[tuple[int, int, str]]()
    for name, entry in header.items():
        info, start, end = _entry(file, name, entry, file.size - begin)
        tensors[name] = MappedTensor(file, begin + start, info)
        ends.append((start, end, name))
    _check_contiguous(file, ends, file.size - begin)
    return tensors, metadata


def _entry(file: MappedFile, name: str, entry: Any, size: int) -> tuple[TensorInfo, int, int]:
    """What the header says of one tensor: its shape and dtype, and which of the `size` bytes after the header are its own."""
    match entry:
        case {"dtype": str(dtype), "shape": list(sizes), "data_offsets": [int(start), int(end)]} if len(entry) == 3 and 0 <= start <= end:
            pass
        case _:
            raise file.bad(f"the header says {shown(entry)} of {shown(name)}, expected dtype, shape and data_offsets; get the file again")
    if end > size:
        raise file.bad(
            f"{shown(name)} claims the bytes {start:,} to {end:,}, but the file holds {size:,}; it was cut off or damaged, get it again"
        )
    if dtype not in DTYPES:
        raise file.bad(f"{shown(name)} has the dtype {shown(dtype)}, expected one of {', '.join(DTYPES)}; save it as float32")
    info = TensorInfo(check_shape(name, sizes), dtype)
    if count(info.shape) * DTYPES[dtype][1] != end - start:
        raise file.bad(f"{shown(name)} claims the shape {info.shape} of {dtype}, but has {end - start:,} bytes; get the file again")
    return info, start, end


def _check_contiguous(file: MappedFile, ends: list[tuple[int, int, str]], size: int) -> None:
    """Each tensor begins where another ends, from the first byte to the last: none overlap and none hide something between them."""
    last = 0
    for start, end, name in sorted(ends):
        if start != last:
            raise file.bad(f"{shown(name)} begins at byte {start:,}, expected {last:,}, where another tensor ends; get the file again")
        last = end
    if last != size:
        raise file.bad(f"its tensors take {last:,} bytes, but {size:,} follow the header; get the file again")
