"""What a file says of itself, held against what can be: shapes, JSON and names, before anything is done by them."""

from __future__ import annotations

import json
import re
import reprlib
from typing import Any

from vit_models.errors import CheckpointError

MAX_DIMENSIONS = 16
MAX_ELEMENTS = 1 << 48
MAX_DIGITS = 30  # of an integer in JSON: more take quadratic time and mean nothing
MAX_NAME = 512
# A value of JSON takes up to thirty times its text in memory. The labels of ImageNet-21k, both ways, have 150,000 commas.
MAX_VALUES = 250_000
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class _Short(reprlib.Repr):
    """Bounded in depth, width and work, whatever a hostile file nests or shares."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring, self.maxlevel = 120, 3

    def repr_instance(self, x: object, level: int) -> str:
        return type(x).__name__


def shown(value: object) -> str:
    """A value out of a file for a message: quoted, short, on one line."""
    return _Short().repr(value)


def some(names: list[str]) -> str:
    """The first few names, and how many more."""
    more = len(names) - 3
    return ", ".join(shown(name) for name in names[:3]) + (f" and {more} more" if more > 0 else "")


def check_shape(name: str, shape: Any) -> tuple[int, ...]:
    """A shape as a file claims it: a short list of whole numbers, not negative, whose product is no fantasy. Raises: CheckpointError."""
    if not isinstance(shape, (list, tuple)) or len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(f"{shown(name)} claims the shape {shown(shape)}, expected at most {MAX_DIMENSIONS} whole numbers")
    elements = 1
    for size in shape:
        if type(size) is not int or not 0 <= size <= MAX_ELEMENTS:
            raise CheckpointError(f"{shown(name)} claims the shape {shown(shape)}, expected whole numbers")
        elements *= max(size, 1)
    if elements > MAX_ELEMENTS:
        raise CheckpointError(f"{shown(name)} claims the shape {shown(shape)}, which is more than any file holds; the file is damaged")
    return tuple(shape)


def count(shape: tuple[int, ...]) -> int:
    """How many elements a shape has."""
    elements = 1
    for size in shape:
        elements *= size
    return elements


def check_name(name: object) -> str:
    """A tensor's name: a text that can be printed. Raises: CheckpointError."""
    if not isinstance(name, str) or len(name) > MAX_NAME or not name.isprintable():
        raise CheckpointError(f"a tensor has the name {shown(name)}, expected a printable text of at most {MAX_NAME} characters")
    return name


def parse_json(what: str, data: bytes) -> Any:
    """The value of a JSON text in UTF-8; objects must not name a key twice. Raises: CheckpointError, where `what` names the text."""
    if sum(map(data.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise CheckpointError(
            f"{what} has more than {MAX_VALUES:,} commas and brackets, which no Vision Transformer's has; get the file again"
        )
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object, parse_int=_integer)
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode()  # half a character, which no output could take
        return value
    except RecursionError:
        raise CheckpointError(f"{what} is nested too deeply to be read; get the file again") from None
    except ValueError as error:  # JSONDecodeError and Unicode errors are ValueErrors
        raise CheckpointError(f"{what} is not valid JSON ({shown(str(error))}); get the file again") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict[str, Any]()
    for name, value in pairs:
        if name in entries:
            raise ValueError(f"{shown(name)} is named twice")
        entries[name] = value
    return entries


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)
