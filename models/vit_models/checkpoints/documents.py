"""Values out of untrusted JSON documents: of the right kind, or one clear line."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from vit_models.errors import CheckpointError

REQUIRED: Any = object()
MAX_VALUE = 1 << 31


class Document:
    """A JSON object from a file named `name`; `where` says that to the user.

    Every getter raises CheckpointError where the value is of another kind, or is missing and has no default. null counts as missing.
    """

    def __init__(self, name: str, values: Any) -> None:
        if not isinstance(values, dict):
            raise CheckpointError(f"{name} holds {reprlib.repr(values)}, expected a JSON object; get the file again")
        self.name: str = name
        self.values: Mapping[str, Any] = values

    def has(self, key: str) -> bool:
        """Whether there is a value other than null."""
        return self.values.get(key) is not None

    def integer(self, key: str, default: Any = REQUIRED) -> int:
        """A whole number from 0 to 2^31."""
        value = self._get(key, default)
        if value is default or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_VALUE):
            return value
        raise self.unlike(key, "a whole number")

    def number(self, key: str, default: Any = REQUIRED) -> float:
        """A finite number."""
        value = self._get(key, default)
        if value is default:
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30:
            return float(value)
        raise self.unlike(key, "a number")

    def flag(self, key: str, default: Any = REQUIRED) -> bool:
        """true or false."""
        value = self._get(key, default)
        if value is default or isinstance(value, bool):
            return value
        raise self.unlike(key, "true or false")

    def text(self, key: str, default: Any = REQUIRED) -> str:
        """A string."""
        value = self._get(key, default)
        if value is default or isinstance(value, str):
            return value
        raise self.unlike(key, "a text")

    def size(self, key: str, default: Any = REQUIRED) -> tuple[int, int]:
        """(height, width) from one whole number or a list of two."""
        value = self._get(key, default)
        if value is default:
            return value
        pair = value if isinstance(value, list) else [value, value]
        if len(pair) == 2 and all(isinstance(side, int) and not isinstance(side, bool) and 0 < side <= MAX_VALUE for side in pair):
            return pair[0], pair[1]
        raise self.unlike(key, "a whole number or [height, width]")

    def child(self, key: str, default: Any = REQUIRED) -> Document:
        """An object inside this one."""
        value = self._get(key, default)
        return default if value is default else Document(f"{self.name}: {key}", value)

    def unlike(self, key: str, expected: str) -> CheckpointError:
        """The error for a value that is not what was expected."""
        return CheckpointError(f"{self.name}: {key} is {reprlib.repr(self.values.get(key))}, expected {expected}")

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is REQUIRED:
            raise CheckpointError(f"{self.name} has no {key}, which is needed to build the network; get the complete file")
        return default
