"""What the tests of checkpoint containers share: small weights, files of them, and how one is read or refused."""

import io
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

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
    """What is said of a file when it is opened and read; one line, with the path in it."""
    with pytest.raises(CheckpointError) as caught:
        read_all(open_checkpoint(path))
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


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
