"""A pickle read as data: an interpreter of the pickle opcodes that imports nothing and calls nothing.

A pickle is a program for a stack machine, and Python's own machine runs what it names. This one knows lists, dicts, texts and numbers;
a name stays a `Name`, and what is done with it decides a `World`, which knows a handful of names and refuses every other.
The opcodes are those of protocols 2 to 5 (https://docs.python.org/3/library/pickletools.html), which is what torch writes.
"""

from __future__ import annotations

import mmap
import pickletools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any, Protocol, cast

from vit_models.errors import CheckpointError

MAX_STEPS = 500_000  # a second, 50 MB; a training checkpoint of a thousand tensors takes 100,000

_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_KEYS = (str, int, float, bytes, type(None))


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names: only its name, as "module.name"."""

    text: str


@dataclass(frozen=True, eq=False)
class Opaque:
    """A value that is harmless and of no use here: only what it was made by."""

    maker: str


class Record(dict[Any, Any]):
    """The attributes of an object, by name."""


class World(Protocol):
    """What a pickle may name, and what comes of it. Every method raises CheckpointError for what it does not know."""

    def name(self, text: str) -> Name: ...
    def call(self, name: Name, arguments: tuple[Any, ...]) -> Any: ...
    def persistent(self, identity: Any) -> Any: ...


def read_pickle(stream: IO[bytes] | mmap.mmap, world: World) -> Any:
    """The value of the pickle that begins where the stream stands; afterwards the stream stands behind it.

    Raises: CheckpointError.
    """
    machine = _Machine(world)
    try:
        for opcode, argument, _ in pickletools.genops(cast("IO[bytes]", stream)):
            machine.spend(1)
            machine.step(opcode.name, argument)
        return machine.stack.pop()
    except CheckpointError:
        raise
    except (ValueError, IndexError, KeyError, OverflowError, struct.error) as error:  # what genops says, and an empty stack or memo
        raise CheckpointError("its pickle is damaged; get the file again") from error


class _Machine:
    def __init__(self, world: World) -> None:
        self.world = world
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}
        self.steps = 0

    def spend(self, steps: int) -> None:
        """Count work: what a value is copied into may name the same long value again and again."""
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise CheckpointError(f"its pickle takes more than {MAX_STEPS:,} steps; save the weights alone with torch.save")

    def step(self, opcode: str, argument: Any) -> None:
        """Do one opcode. Raises: CheckpointError, or IndexError and KeyError where the pickle is damaged."""
        stack = self.stack
        match opcode:
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case _ if opcode in _VALUES:
                stack.append(argument)
            case _ if opcode in _CONSTANTS:
                stack.append(_CONSTANTS[opcode])
            case "MARK":
                self.marked.append(stack)
                self.stack = []
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self._replace(int(opcode[-1]), tuple)
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                self._push_items(tuple(stack))
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                self._push_items(_put({}, stack))
            case "SETITEM":
                self._replace(3, lambda items: _put(items[0], items[1:]))
            case "SETITEMS":
                items = self._unmark()
                _put(self.stack[-1], items)
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "LIST" | "FROZENSET":
                self._push_items(list(stack))
            case "APPEND":
                self._replace(2, lambda items: _extend(items[0], items[1:]))
            case "APPENDS" | "ADDITEMS":
                items = self._unmark()
                _extend(self.stack[-1], items)
            case "GLOBAL":
                stack.append(self.world.name(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                self._replace(2, lambda items: self.world.name(".".join(_texts(items))))
            case "REDUCE" | "NEWOBJ":
                self._replace(2, lambda items: self._call(*items))
            case "BUILD":
                self._replace(2, lambda items: self._build(*items))
            case "BINPERSID":
                self._replace(1, lambda items: self.world.persistent(items[0]))
            case "POP":
                stack.pop()
            case "DUP":
                stack.append(stack[-1])
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _:
                raise CheckpointError(f"its pickle has the opcode {opcode}, which torch does not write; save it again with torch.save")

    def _replace(self, number: int, make: Any) -> None:
        """Put what is made of the topmost values in their place."""
        if len(self.stack) < number:
            raise IndexError
        self.stack[-number:] = [make(self.stack[-number:])]

    def _unmark(self) -> list[Any]:
        """The values above the last mark, which go."""
        items = self.stack
        self.stack = self.marked.pop()
        return items

    def _push_items(self, value: Any) -> None:
        self._unmark()
        self.stack.append(value)

    def _call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise CheckpointError("its pickle calls what is no name; the file is damaged, get it again")
        self.spend(sum(len(argument) for argument in arguments if isinstance(argument, (list, dict, tuple))))
        return self.world.call(function, arguments)

    def _build(self, target: Any, state: Any) -> Any:
        """An object with its attributes: kept for a `Record`, of no use for others (an OrderedDict's, a tensor's)."""
        if isinstance(target, Record) and isinstance(state, dict):
            self.spend(len(state))
            target.update(state)
        return target


def _texts(items: Sequence[Any]) -> Sequence[str]:
    if not all(isinstance(item, str) for item in items):
        raise CheckpointError("its pickle names what is no text; the file is damaged, get it again")
    return items


def _put(target: Any, items: Sequence[Any]) -> Any:
    """The dict with keys and values from alternating items. A key that is no plain value stays as a marker: hashing it could recurse."""
    if isinstance(target, dict) and len(items) % 2 == 0:
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key if isinstance(key, _KEYS) else Opaque(type(key).__name__)] = value
    elif not isinstance(target, Opaque):
        raise CheckpointError("its pickle puts entries into what is no dict; the file is damaged, get it again")
    return target


def _extend(target: Any, items: Sequence[Any]) -> Any:
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Opaque):
        raise CheckpointError("its pickle appends to what is no list; the file is damaged, get it again")
    return target
