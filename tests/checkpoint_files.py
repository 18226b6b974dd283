"""What the tests of checkpoints share: small weights, files of them, and how one is read or refused."""

import io
import json
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_mentions, one_line

from vit_models.checkpoints.files import open_checkpoint
from vit_models.checkpoints.plan import CheckpointFile
from vit_models.errors import CheckpointError

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.5, -2.0])}


def read_all(file: CheckpointFile) -> dict[str, torch.Tensor]:
    return {name: file.read(name) for name in file.tensors}


def assert_holds(file: CheckpointFile, expected: dict[str, torch.Tensor]) -> None:
    assert file.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        found = file.read(name)
        assert found.dtype == tensor.dtype
        assert file.shape(name) == tuple(found.shape) == tuple(tensor.shape)
        torch.testing.assert_close(found, tensor.detach(), rtol=0, atol=0)


def refusal(path: Path) -> str:
    """The message of the error when a file is opened and read: one line that contains the path, here without the test's folder."""
    with pytest.raises(CheckpointError) as error:
        read_all(open_checkpoint(path))
    message = one_line(error)
    assert str(path) in message
    return without_folder(message)


def without_folder(message: str) -> str:
    """The message without the path of the test's folder, whose words and numbers are no facts."""
    return re.sub(r"[^\s'(]*/pytest-\d+/(popen-gw\d+/)?[^/\s:]*/?", "", message)


@contextmanager
def raises_mentioning(kind: type[Exception] | tuple[type[Exception], ...], *facts: object) -> Iterator[None]:
    """The block raises that exception, with a message of one line that mentions the facts."""
    with pytest.raises(kind) as error:
        yield
    assert_mentions(without_folder(one_line(error)), *facts)


def write(name: str, data: bytes) -> Path:
    path = Path.cwd() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def torch_bytes(value: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()
