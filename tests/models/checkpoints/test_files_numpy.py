"""What is read of NumPy's files, and what is refused. Every broken file here is made by its test."""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import assert_holds, refusal, write
from helpers import assert_mentions

from vit_models.checkpoints.files import open_checkpoint

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("fresh_folder")]

ARRAYS: dict[str, np.ndarray] = {
    "Transformer/a/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.array([1, 2], np.float16),
    "fortran": np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
    "scalar": np.array(3.0),
    "empty": np.zeros((0, 3), np.float32),
    "flag": np.array([True, False]),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_members_are_read_as_numpy_reads_them(save):
    save("weights.npz", **ARRAYS)
    file = open_checkpoint(Path("weights.npz"))
    assert file.container == "npz"
    assert_holds(file, {name: torch.from_numpy(array.copy()) for name, array in ARRAYS.items()})
    file.release("b")
    assert file.read("b").tolist() == [1, 2]


def test_bfloat16_is_what_jax_writes_as_v2():
    numbers = torch.tensor([1.0, -2.5, 3e38], dtype=torch.bfloat16)
    np.savez("weights.npz", a=numbers.view(torch.uint16).numpy().view("V2"))
    assert_holds(open_checkpoint(Path("weights.npz")), {"a": numbers})


def npz(header: bytes, data: bytes = bytes(4), method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("a.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + data)
    return stream.getvalue()


NPY = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n"


@pytest.mark.parametrize(
    ("data", "facts"),
    [
        (npz(NPY.replace(b"(1,)", b"(1000000000000,)")), ("(1000000000000,)",)),
        (npz(NPY.replace(b"(1,)", b"(2,)")), ("(2,)", "F32")),
        (npz(NPY.replace(b"(1,)", b"(" + b"9" * 5000 + b",)")), ("shape",)),
        (npz(NPY.replace(b"(1,)", b"(1 1,)")), ("shape",)),
        (npz(NPY.replace(b"<f4", b"|O")), ("Python objects",)),
        (npz(NPY.replace(b"<f4", b">f4")), ("little-endian",)),
        (npz(NPY.replace(b"'<f4'", b"[('x', '<f4')]")), ("array",)),
        (npz(NPY.replace(b"(1,)", b"__import__('os').system('touch PWNED')")), ("array",)),
        (npz(NPY, bytes(1 << 25), zipfile.ZIP_DEFLATED), ("33,554,500",)),
        (npz(NPY).replace(b"PK\1\2", b"PK\1\3"), ("zip directory",)),
        (npz(NPY)[:-30], ("cut off",)),
        (npz(NPY, bytes(4)).replace(b"NUMPY", b"NUMPI"), ("array",)),
    ],
)
def test_an_npz_that_lies_is_refused(data: bytes, facts: tuple[str, ...]):
    assert_mentions(refusal(write("weights.npz", data)), *facts)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_numbers_in_a_zip_are_noticed(method: int):
    numbers = np.random.default_rng(0).standard_normal(1000, dtype=np.float32)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive, archive.open("a.npy", "w") as member:
        np.save(member, numbers)
    data = bytearray(stream.getvalue())
    data[1000] ^= 1
    path = write("weights.npz", bytes(data))
    assert open_checkpoint(path).shape("a") == (1000,)
    assert_mentions(refusal(path), "'a.npy'", "damaged")
