"""What is read of torch's files without running anything in them, and what is refused. Every broken file here is made by its test."""

import io
import os
import pickle
import struct
import time
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import WEIGHTS, assert_holds, refusal, torch_bytes, write
from helpers import assert_mentions

from vit_models.checkpoints.files import open_checkpoint

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("fresh_folder")]


def state_dict() -> dict[str, torch.Tensor]:
    """Tensors of every layout that torch.save tells apart."""
    base = torch.arange(24.0).reshape(4, 6)
    return OrderedDict(
        {
            "plain": base.clone(),
            "transposed": base.t(),
            "slice": base[1:3, 2:5],
            "shared": base[0],
            "expanded": torch.ones(1, 1).expand(3, 2),
            "scalar": torch.tensor(7.5),
            "empty": torch.zeros(0, 2),
            "parameter": torch.nn.Parameter(torch.ones(2)),
            "half": torch.ones(3, dtype=torch.float16),
            "bfloat": torch.ones(3, dtype=torch.bfloat16),
            "double": torch.ones(3, dtype=torch.float64),
            "long": torch.arange(3),
            "flags": torch.tensor([True, False]),
        }
    )


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_torch_saves_is_read_as_torch_reads_it(protocol: int, zipped: bool):
    weights = state_dict()
    torch.save(weights, "model.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    file = open_checkpoint(Path("model.pth"))
    assert file.container == "torch"
    assert_holds(file, weights)
    for name in weights:
        file.release(name)
    assert_holds(file, weights)


def test_tensors_with_attributes_and_new_dtypes_are_read_as_their_numbers():
    """torch writes both in ways of their own."""
    tagged: Any = torch.arange(4.0)  # tensors declare no attribute "tag"
    parameter: Any = torch.nn.Parameter(torch.ones(2))
    tagged.tag = parameter.tag = "kept"
    weights = {"tagged": tagged, "parameter": parameter, "short": torch.arange(3).to(torch.uint16)}
    assert_holds(open_checkpoint(write("model.pth", torch_bytes(weights))), weights)


def test_leftovers_of_training_scripts_are_read_past():
    leftovers = {
        "args": Namespace(model="vit", drop=0.1, output=PurePosixPath("out"), sizes=[1, 2]),
        "best": np.float64(0.5),
        "history": np.arange(3.0),
        "rng": np.random.RandomState(0).get_state(),
        "device": torch.device("cpu"),
        "size": torch.Size([1, 2]),
        "dtype": torch.float16,
        "kinds": {1, 2},
        "raw": b"bytes",
        "epoch": 3,
    }
    file = open_checkpoint(write("model.pth", torch_bytes({"model": WEIGHTS, **leftovers})))
    assert_holds(file, WEIGHTS)
    assert file.extras["args"] == {"model": "vit", "drop": 0.1, "sizes": [1, 2]}
    assert file.extras["epoch"] == 3


def test_a_file_saved_without_checksums_is_read():
    torch.serialization.set_crc32_options(False)
    try:
        data = torch_bytes(WEIGHTS)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_holds(open_checkpoint(write("model.pth", data)), WEIGHTS)


class Hostile:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, Any]:
        return self.call


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "hidden", [lambda evil: evil, lambda evil: {"model": WEIGHTS, "args": evil}, lambda evil: {**WEIGHTS, "x": [evil]}]
)
@pytest.mark.parametrize(
    ("evil", "named"),
    [
        (Hostile(exec, "open('PWNED', 'w')"), "builtins.exec"),
        (Hostile(os.system, "touch PWNED"), f"{os.name}.system"),
        (Hostile(getattr, Path("PWNED"), "touch"), "builtins.getattr"),
        (Hostile(io.open, "PWNED", "w"), "io.open"),
    ],
)
def test_a_pickle_that_would_run_code_is_refused_by_name(zipped: bool, hidden: Any, evil: Hostile, named: str):
    message = refusal(write("model.pth", torch_bytes(hidden(evil), _use_new_zipfile_serialization=zipped)))
    assert_mentions(message, f"'{named}'", "torch.save(model.state_dict(), path)")


def test_a_whole_model_is_refused_with_the_way_out():
    message = refusal(write("model.pth", torch_bytes(torch.nn.Linear(2, 2))))
    assert_mentions(message, "'torch.nn.modules.linear.Linear'", "torch.save(model.state_dict(), path)")


def test_a_plain_pickle_is_refused():
    assert "pickle" in refusal(write("model.bin", pickle.dumps({"a": 1})))


@pytest.mark.parametrize(
    ("tensor", "fact"),
    [
        (torch.ones(2, 2).to_sparse(), "_rebuild_sparse_tensor"),
        (torch.ones(2, dtype=torch.complex64), "complex64"),
    ],
)
def test_tensors_that_are_not_dense_floats_are_refused_by_name(tensor: torch.Tensor, fact: str):
    message = refusal(write("model.pth", torch_bytes({"model": {**WEIGHTS, "odd": tensor}})))
    assert "odd" in message
    assert fact in message


def test_quantised_tensors_are_refused_by_name(recwarn: pytest.WarningsRecorder):
    odd = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)  # warns that it will go
    assert_mentions(refusal(write("model.pth", torch_bytes({**WEIGHTS, "odd": odd}))), "'odd'", "torch._utils._rebuild_qtensor")


def changed(data: bytes, member: str, change: Any) -> bytes:
    """A zip with one member changed, its checksums right."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name.endswith(member) else content)
    return stream.getvalue()


def without_local_header(data: bytes, member: bytes) -> bytes:
    """A zip in which the 30 bytes before the member's first name, its local header, are zeros."""
    end = data.index(member)
    return data[: end - 30] + bytes(30) + data[end:]


BIG = torch_bytes({"a": torch.arange(100.0)})  # 100 is written as K and one byte
RUN = b"\x80\x02" + b"(" * 10 + b"t" * 10 + b"."


@pytest.mark.parametrize(
    ("data", "facts"),
    [
        (changed(BIG, "data.pkl", lambda p: p.replace(b"Kd", b"K\xff")), ("'a'", "stored")),
        (changed(BIG, "data/0", lambda p: p[:-4]), ("'a'", "stored")),
        (changed(BIG, "data.pkl", lambda p: p[:-5]), ("pickle", "damaged")),
        (changed(BIG, "data.pkl", lambda p: b"\x80\x02e."), ("pickle", "damaged")),
        (changed(BIG, "data.pkl", lambda p: b"\x80\x02I10\n."), ("opcode", "INT")),
        pytest.param(
            changed(BIG, "data.pkl", lambda p: b"\x80\x02" + b"]" * 600_000 + b"."), ("500,000",), marks=pytest.mark.full
        ),  # seconds
        (changed(BIG, "data.pkl", lambda p: b"\x80\x02K\1K\2R."), ("pickle", "calls")),
        (changed(BIG, "data.pkl", lambda p: b"\x80\x02K\1K\2K\3s."), ("pickle", "dict")),
        (changed(BIG, "data.pkl", lambda p: RUN), ("state dict",)),
        (changed(BIG, "data.pkl", lambda p: b"\x80\x02}" + b"(" * 500 + b"}" + b"t" * 500 + b"K\1s."), ("weights",)),
        (changed(BIG, "byteorder", lambda p: b"big"), ("little-endian",)),
        (changed(BIG, "version", lambda p: p).replace(b"data.pkl", b"data.pkk"), ("zip",)),
        (without_local_header(BIG, b"archive/data/0"), ("'archive/data/0'", "zip directory")),
        (torch_bytes({"a": torch.ones(9)}, _use_new_zipfile_serialization=False)[:-1], ("ends",)),
        (torch_bytes({1: torch.ones(9)}), ("name", 1, "printable")),
        (torch_bytes([torch.ones(9)]), ("list", "state dict")),
        (torch_bytes({"a": torch.ones(9), "b": [1]}), ("'b'", "list")),
        (torch_bytes({"a": torch.ones(1).expand(1 << 40)}), ("4,398,046,511,104",)),
    ],
)
def test_a_torch_file_that_lies_is_refused(data: bytes, facts: tuple[object, ...]):
    assert_mentions(refusal(write("model.pth", data)), *facts)


def test_a_pickle_that_copies_the_same_long_value_forever_is_stopped():
    """A dict of 100,000 entries merged into an object again and again is 100,000 steps each time, not one."""
    entries = b"".join(b"J" + struct.pack("<i", n) + b"N" for n in range(100_000))
    again = b"h\0h\1b0" * 10_000
    program = b"\x80\x02cargparse\nNamespace\n)\x81q\x00}(" + entries + b"uq\1" + again + b"."
    began = time.perf_counter()
    assert_mentions(refusal(write("model.pth", changed(BIG, "data.pkl", lambda p: program))), "500,000")
    assert time.perf_counter() - began < 20


def test_the_tensors_of_a_torchscript_archive_are_read_and_its_code_is_not(recwarn: pytest.WarningsRecorder):
    """OpenAI publishes CLIP so. The names are those of the module's state dict."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.BatchNorm1d(4))).eval()
    torch.jit.save(torch.jit.trace(module, torch.ones(1, 3)), "model.pt")  # warns that TorchScript will go
    file = open_checkpoint(Path("model.pt"))
    assert_holds(file, dict(module.state_dict()))
    assert "code" in file.notes[0]
