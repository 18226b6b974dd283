"""What `open_checkpoint` reads, what it refuses and in which words, and what that costs. Every broken file here is made by its test."""

import hashlib
import io
import json
import os
import pickle
import re
import resource
import struct
import subprocess
import sys
import time
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vit_models.checkpoints.files import check_sha256, open_checkpoint, sha256_of
from vit_models.checkpoints.plan import CheckpointFile
from vit_models.errors import CheckpointError

FIXTURES_BAD = Path(__file__).parents[3].parent / "shared" / "fixtures_bad"
WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.5, -2.0])}


@pytest.fixture(autouse=True)
def _fresh_folder(tmp_path, monkeypatch):
    """Every test runs in an empty folder, in which no hostile file may have made anything."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "PWNED").exists()


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


# ---- the shared collection ---------------------------------------------------------------------------------------------------------------

REFUSED = {
    "config_not_json": r"config\.json is not valid JSON",
    "config_only": r"only 'config\.json' in it, expected weights",
    "damaged_zip": r"'archive/data/\d+' is not where the zip directory says",
    "empty_safetensors": "is empty",
    "huge_header": r"header claims 4,611,686,018,427,387,904 bytes, but the file has 214",
    "npz_huge_shape": r"claims the shape \(1000000, 1000000\)",
    "npz_object_array": "pickled Python objects",
    "offsets_outside": r"'vit\.embeddings\.patch_embeddings\.projection\.bias' claims the bytes",
    "pickle_code": r"'builtins\.exec'.*torch\.save\(model\.state_dict\(\), path\)",
    "pickle_code_legacy": r"'io\.open'.*torch\.save\(model\.state_dict\(\), path\)",
    "pickle_code_plain": "plain pickle",
    "shard_missing": r"model-00002-of-00002\.safetensors is missing",
    "shard_path_escape": r"'\.\./outside\.safetensors'",
    "text_as_safetensors": "git lfs pull",
    "truncated_header": "header claims 4,184 bytes, but the file has 40",
    "truncated_safetensors": "cut off",
    "whole_model_pickle": r"VisionTransformer'.*torch\.save\(model\.state_dict\(\), path\)",
}
OPENED = {"not_a_vit": 9, "torchscript_archive": 20, "missing_key": 39, "config_missing": 40, "two_weight_files": 40, "nan_weights": 40}


@pytest.mark.skipif(not FIXTURES_BAD.exists(), reason="the shared collection of broken files is not beside this repository")
@pytest.mark.parametrize("case", [*REFUSED, *OPENED])
def test_the_shared_broken_files(case: str):
    """Those whose fault shows in the file itself are refused; the others open, for their fault is a format's to find."""
    if case in REFUSED:
        assert re.search(REFUSED[case], refusal(FIXTURES_BAD / case / "input"))
    else:
        assert len(read_all(open_checkpoint(FIXTURES_BAD / case / "input"))) == OPENED[case]


# ---- safetensors -------------------------------------------------------------------------------------------------------------------------


def test_safetensors_of_every_dtype():
    values = torch.arange(-3, 3)
    kinds = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    weights = {f"of.{kind}": values.to(getattr(torch, kind)) for kind in kinds} | {"empty": torch.zeros(0, 4), "scalar": torch.tensor(2.5)}
    save_file(weights, "model.safetensors", {"format": "pt"})
    file = open_checkpoint(Path("model.safetensors"))
    assert (file.container, file.metadata, file.tensors["of.bfloat16"].dtype) == ("safetensors", {"format": "pt"}, "BF16")
    assert_holds(file, weights)


def test_numbers_that_are_not_aligned_are_read():
    """The format lets a header have any length, and a byte before floats."""
    header = {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]}}
    path = write("model.safetensors", safetensors(header, b"\7" + struct.pack("<2f", 1.5, -2.5)))
    assert open_checkpoint(path).read("b").tolist() == [1.5, -2.5]


F4 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (safetensors({"a": F4}, bytes(4), length=1 << 62), "header claims"),
        (safetensors({"a": F4}, bytes(4), length=200), "header claims 200 bytes, but the file has"),
        (safetensors({"a": F4}, b"\0\0\0"), "cut off"),
        (safetensors({"a": F4}, bytes(5)), "its tensors take 4 bytes, but 5 follow"),
        (safetensors({"a": F4 | {"data_offsets": [4, 8]}}, bytes(8)), "'a' begins at byte 4, expected 0"),
        (safetensors({"a": F4, "b": F4}, bytes(4)), "'b' begins at byte 0, expected 4"),
        (safetensors({"a": F4 | {"data_offsets": [4, 0]}}, bytes(4)), "expected dtype, shape and data_offsets"),
        (safetensors({"a": F4 | {"data_offsets": [0, 4.0]}}, bytes(4)), "expected dtype, shape and data_offsets"),
        (safetensors({"a": {"dtype": "F32"}}, bytes(4)), "expected dtype, shape and data_offsets"),
        (safetensors({"a": F4 | {"shape": [-1]}}, bytes(4)), "expected whole numbers"),
        (safetensors({"a": F4 | {"shape": [True]}}, bytes(4)), "expected whole numbers"),
        (safetensors({"a": F4 | {"shape": [10**6, 10**6]}}, bytes(4)), "claims the shape (1000000, 1000000)"),
        (safetensors({"a": F4 | {"shape": [2**40, 2**40]}}, bytes(4)), "more than any file holds"),
        (safetensors({"a": F4 | {"shape": [1] * 100}}, bytes(4)), "at most 16 whole numbers"),
        (safetensors({"a": F4 | {"dtype": "F99"}}, bytes(4)), "dtype 'F99'"),
        (safetensors(b'{"a":1,"a":2}'), "named twice"),
        (safetensors(b"{" + b'"a":[' * 9000), "not valid JSON"),
        (safetensors(b'{"a":' + b"[" * 200_000), "nested too deeply"),
        (safetensors(b'{"a\xff":1}'), "not valid JSON"),
        (safetensors(b'{"a":' + b"9" * 5000 + b"}"), "a whole number of 5000 digits"),
        (safetensors(b'{"\\ud800":1}'), "not valid JSON"),
        (safetensors({"__metadata__": {"a": 1}}), "metadata are not texts"),
        (safetensors({}), "no weights"),
        (safetensors({"a\nb": F4}, bytes(4)), r"'a\nb', expected a printable text"),
        (safetensors({"x" * 1000: F4}, bytes(4)), "at most 512 characters"),
        (safetensors(b"{" + b" " * (5 << 20) + b"}"), "expected at most 1,048,576"),
    ],
)
def test_a_safetensors_header_that_lies_is_refused(data: bytes, said: str):
    assert said in refusal(write("model.safetensors", data))


def test_dtypes_that_no_network_takes_are_listed_and_refused_when_read():
    save_file({"eight": torch.ones(2).to(torch.float8_e4m3fn), "a": torch.ones(2)}, "model.safetensors")
    file = open_checkpoint(Path("model.safetensors"))
    assert file.read("a").tolist() == [1, 1]
    with pytest.raises(CheckpointError, match="eight is stored as float8_e4m3fn, expected plain floats"):
        file.read("eight")


def test_a_name_that_is_not_there_is_an_error():
    save_file(WEIGHTS, "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors has no tensor 'b'; expected one of its 2 names"):
        open_checkpoint(Path("model.safetensors")).read("b")


# ---- NumPy -------------------------------------------------------------------------------------------------------------------------------

ARRAYS = {
    "Transformer/a/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.float16([1, 2]),
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
    ("data", "said"),
    [
        (npz(NPY.replace(b"(1,)", b"(1000000000000,)")), "claims the shape (1000000000000,)"),
        (npz(NPY.replace(b"(1,)", b"(2,)")), "claims the shape (2,) of F32"),
        (npz(NPY.replace(b"(1,)", b"(" + b"9" * 5000 + b",)")), "expected whole numbers"),
        (npz(NPY.replace(b"(1,)", b"(1 1,)")), "expected whole numbers"),
        (npz(NPY.replace(b"<f4", b"|O")), "pickled Python objects"),
        (npz(NPY.replace(b"<f4", b">f4")), "expected little-endian numbers"),
        (npz(NPY.replace(b"'<f4'", b"[('x', '<f4')]")), "not a plain array"),
        (npz(NPY.replace(b"(1,)", b"__import__('os').system('touch PWNED')")), "not a plain array"),
        (npz(NPY, bytes(1 << 25), zipfile.ZIP_DEFLATED), "claim 33,554,500 bytes in a file of"),
        (npz(NPY).replace(b"PK\1\2", b"PK\1\3"), "zip directory is damaged"),
        (npz(NPY)[:-30], "it was cut off"),
        (npz(NPY, bytes(4)).replace(b"NUMPY", b"NUMPI"), "not a plain array"),
    ],
)
def test_an_npz_that_lies_is_refused(data: bytes, said: str):
    assert said in refusal(write("weights.npz", data))


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
    assert "'a.npy' is damaged" in refusal(path)


# ---- torch -------------------------------------------------------------------------------------------------------------------------------


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
    tagged, parameter = torch.arange(4.0), torch.nn.Parameter(torch.ones(2))
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
    assert f"'{named}'" in message
    assert "torch.save(model.state_dict(), path)" in message


def test_a_whole_model_is_refused_with_the_way_out():
    message = refusal(write("model.pth", torch_bytes(torch.nn.Linear(2, 2))))
    assert "'torch.nn.modules.linear.Linear'" in message
    assert "torch.save(model.state_dict(), path)" in message


def test_a_plain_pickle_is_refused():
    assert "plain pickle" in refusal(write("model.bin", pickle.dumps({"a": 1})))


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.ones(2, 2).to_sparse(), "_rebuild_sparse_tensor, expected a dense tensor"),
        (torch.ones(2, dtype=torch.complex64), "complex64, expected plain floats"),
    ],
)
def test_tensors_that_are_not_dense_floats_are_refused_by_name(tensor: torch.Tensor, said: str):
    message = refusal(write("model.pth", torch_bytes({"model": {**WEIGHTS, "odd": tensor}})))
    assert "odd" in message
    assert said in message


def test_quantised_tensors_are_refused_by_name(recwarn: pytest.WarningsRecorder):
    odd = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)  # warns that it will go
    assert "'odd' is stored as torch._utils._rebuild_qtensor" in refusal(write("model.pth", torch_bytes({**WEIGHTS, "odd": odd})))


def changed(data: bytes, member: str, change: Any) -> bytes:
    """A zip with one member changed, its checksums right."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name.endswith(member) else content)
    return stream.getvalue()


BIG = torch_bytes({"a": torch.arange(100.0)})  # 100 is written as K and one byte
RUN = b"\x80\x02" + b"(" * 10 + b"t" * 10 + b"."


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (changed(BIG, "data.pkl", lambda p: p.replace(b"Kd", b"K\xff")), "'a' claims more numbers than are stored"),
        (changed(BIG, "data/0", lambda p: p[:-4]), "'a' claims more numbers than are stored"),
        (changed(BIG, "data.pkl", lambda p: p[:-5]), "pickle is damaged"),
        (changed(BIG, "data.pkl", lambda p: b"\x80\x02e."), "pickle is damaged"),
        (changed(BIG, "data.pkl", lambda p: b"\x80\x02I10\n."), "opcode INT, which torch does not write"),
        (changed(BIG, "data.pkl", lambda p: b"\x80\x02" + b"]" * 600_000 + b"."), "more than 500,000 steps"),
        (changed(BIG, "data.pkl", lambda p: b"\x80\x02K\1K\2R."), "calls what is no name"),
        (changed(BIG, "data.pkl", lambda p: b"\x80\x02K\1K\2K\3s."), "entries into what is no dict"),
        (changed(BIG, "data.pkl", lambda p: RUN), "expected a state dict"),
        (changed(BIG, "data.pkl", lambda p: b"\x80\x02}" + b"(" * 500 + b"}" + b"t" * 500 + b"K\1s."), "no weights"),
        (changed(BIG, "byteorder", lambda p: b"big"), "not little-endian"),
        (changed(BIG, "version", lambda p: p).replace(b"data.pkl", b"data.pkk"), "a zip of"),
        (torch_bytes({"a": torch.ones(9)}, _use_new_zipfile_serialization=False)[:-1], "it ends in the middle of its numbers"),
        (torch_bytes({1: torch.ones(9)}), "the name 1, expected a printable text"),
        (torch_bytes([torch.ones(9)]), "it holds a list, expected a state dict"),
        (torch_bytes({"a": torch.ones(9), "b": [1]}), "'b' is a list among tensors"),
        (torch_bytes({"a": torch.ones(1).expand(1 << 40)}), "claim 4,398,046,511,104 bytes"),
    ],
)
def test_a_torch_file_that_lies_is_refused(data: bytes, said: str):
    assert said in refusal(write("model.pth", data))


def test_a_pickle_that_copies_the_same_long_value_forever_is_stopped():
    """A dict of 100,000 entries merged into an object again and again is 100,000 steps each time, not one."""
    entries = b"".join(b"J" + struct.pack("<i", n) + b"N" for n in range(100_000))
    again = b"h\0h\1b0" * 10_000
    program = b"\x80\x02cargparse\nNamespace\n)\x81q\x00}(" + entries + b"uq\1" + again + b"."
    began = time.perf_counter()
    assert "more than 500,000 steps" in refusal(write("model.pth", changed(BIG, "data.pkl", lambda p: program)))
    assert time.perf_counter() - began < 20


def test_the_tensors_of_a_torchscript_archive_are_read_and_its_code_is_not(recwarn: pytest.WarningsRecorder):
    """OpenAI publishes CLIP so. The names are those of the module's state dict."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.BatchNorm1d(4))).eval()
    torch.jit.save(torch.jit.trace(module, torch.ones(1, 3)), "model.pt")  # warns that TorchScript will go
    file = open_checkpoint(Path("model.pt"))
    assert_holds(file, dict(module.state_dict()))
    assert "its code plays no part" in file.notes[0]


# ---- files that are something else -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"\x1f\x8b" + bytes(30), "compressed (unpack it)"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (bytes(257) + b"ustar" + bytes(300), "a tar archive"),
        (b"\x93NUMPY\1\0", "numpy.savez"),
        (b"hello", "begins with b'hello'"),
        (b"PK\3\4", "no zip directory"),
        (b"\x80\2", "plain pickle"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_named_for_what_it_is(data: bytes, said: str):
    assert said in refusal(write("model.safetensors", data))


def test_the_name_does_not_matter():
    save_file(WEIGHTS, "weights.pth")
    torch.save(WEIGHTS, "weights.safetensors")
    assert open_checkpoint(Path("weights.pth")).container == "safetensors"
    assert open_checkpoint(Path("weights.safetensors")).container == "torch"


def test_a_path_without_a_regular_file_is_refused():
    assert "cannot be read (No such file" in refusal(Path.cwd() / "nothing")
    os.mkfifo("pipe")
    assert "not a regular file" in refusal(Path.cwd() / "pipe")


# ---- folders -----------------------------------------------------------------------------------------------------------------------------


def folder(name: str = "checkpoint") -> Path:
    path = Path.cwd() / name
    path.mkdir(parents=True)
    return path


def test_a_folder_prefers_safetensors_and_says_so():
    home = folder()
    torch.save({"a": torch.zeros(1)}, home / "pytorch_model.bin")
    save_file({"a": torch.ones(1)}, home / "model.safetensors")
    file = open_checkpoint(home)
    assert file.read("a").tolist() == [1]
    assert file.notes == ("model.safetensors and pytorch_model.bin are there: took model.safetensors; name another file to take that",)


@pytest.mark.parametrize("name", ["weights.safetensors", "last.ckpt", "checkpoint.pth.tar", "clip.pt", "open_clip_pytorch_model.bin"])
def test_a_folder_with_one_other_file_is_that_file(name: str):
    home = folder()
    torch.save(WEIGHTS, home / name)
    (home / "README.md").write_text("text")
    assert_holds(open_checkpoint(home), WEIGHTS)


def test_a_folder_with_several_other_files_asks_for_one():
    home = folder()
    for name in ("a.pth", "b.pth"):
        torch.save(WEIGHTS, home / name)
    assert "several files of weights, 'a.pth', 'b.pth'; name the one" in refusal(home)


def test_an_empty_folder_is_refused():
    assert "nothing in it, expected weights such as model.safetensors" in refusal(folder())


def sharded(home: Path) -> dict[str, torch.Tensor]:
    weights = {f"layer.{n}": torch.full((2,), float(n)) for n in range(4)}
    names = list(weights)
    for part, held in (("one.safetensors", names[:2]), ("two.safetensors", names[2:])):
        save_file({name: weights[name] for name in held}, home / part)
    shards = dict.fromkeys(names[:2], "one.safetensors") | dict.fromkeys(names[2:], "two.safetensors")
    (home / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    return weights


def test_shards_are_one_checkpoint():
    home = folder()
    weights = sharded(home)
    assert_holds(open_checkpoint(home), weights)
    assert_holds(open_checkpoint(home / "model.safetensors.index.json"), weights)
    (home / "model.safetensors.index.json").rename(home / "odd.safetensors.index.json")
    assert_holds(open_checkpoint(home), weights)


def test_shards_of_torch_are_one_checkpoint():
    home = folder()
    torch.save({"a": torch.ones(1)}, home / "one.bin")
    torch.save({"b": torch.zeros(1)}, home / "two.bin")
    (home / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "one.bin", "b": "two.bin"}}))
    assert_holds(open_checkpoint(home), {"a": torch.ones(1), "b": torch.zeros(1)})


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "..", "", "a/b.safetensors", "C:x", "a\\b", "a\0b"])
def test_an_index_names_plain_files_of_its_folder_only(name: str):
    home = folder()
    save_file(WEIGHTS, "outside.safetensors")
    (home / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert "expected a plain name of a file in the same folder" in refusal(home)


@pytest.mark.parametrize("document", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": ["a"]}'])
def test_an_index_without_a_map_is_refused(document: str):
    home = folder()
    (home / "model.safetensors.index.json").write_text(document)
    assert "no weight_map" in refusal(home)


def test_an_index_that_disagrees_with_its_shards_is_refused():
    home = folder()
    sharded(home)
    save_file({"layer.2": torch.ones(1), "more": torch.ones(1)}, home / "two.safetensors")
    assert "two.safetensors and its index disagree about 'layer.3', 'more'" in refusal(home)
    (home / "two.safetensors").unlink()
    assert "two.safetensors is missing" in refusal(home)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_link_out_of_the_folder_is_refused(name: str):
    home = folder()
    save_file(WEIGHTS, home / "model.safetensors")
    (home / "config.json").write_text("{}")
    (home / name).rename(Path.cwd() / name)
    (home / name).symlink_to(Path.cwd() / name)
    assert "is a link out of its folder" in refusal(home)


def test_links_of_the_hub_cache_and_inside_the_folder_are_followed():
    home = folder("models--me--vit/snapshots/0123abc")
    blobs = folder("models--me--vit/blobs")
    save_file(WEIGHTS, blobs / "aa")
    (blobs / "bb").write_text('{"hidden_size": 4}')
    (home / "model.safetensors").symlink_to("../../blobs/aa")
    (home / "config.json").symlink_to("../../blobs/bb")
    for path in (home, home / "model.safetensors"):
        file = open_checkpoint(path)
        assert_holds(file, WEIGHTS)
        assert file.documents == {"config.json": {"hidden_size": 4}}
    plain = folder("plain")
    save_file(WEIGHTS, plain / "weights.safetensors")
    (plain / "model.safetensors").symlink_to("weights.safetensors")
    assert_holds(open_checkpoint(plain), WEIGHTS)


def test_documents_are_those_of_the_folder_or_beside_the_file():
    home = folder()
    save_file(WEIGHTS, home / "model.safetensors")
    for name in ("config.json", "preprocessor_config.json", "open_clip_config.json", "other.json"):
        (home / name).write_text(json.dumps({"name": name}))
    for path in (home, home / "model.safetensors"):
        documents = open_checkpoint(path).documents
        assert documents == {name: {"name": name} for name in ("config.json", "preprocessor_config.json", "open_clip_config.json")}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"{", "config.json is not valid JSON"),
        (b"\xff\xfe", "config.json is not valid JSON"),
        (b"[" * 100_000, "config.json is nested too deeply"),
        (b"", "config.json: it is empty"),
        (b" " * (5 << 20), "expected a JSON document of at most 4,194,304"),
        (b'{"id2label": {"0": "\\udc00"}}', "config.json is not valid JSON"),
    ],
)
def test_a_broken_document_is_an_error_in_a_folder_and_a_note_beside_a_file(text: bytes, said: str):
    home = folder()
    save_file(WEIGHTS, home / "model.safetensors")
    (home / "config.json").write_bytes(text)
    assert said in refusal(home)
    file = open_checkpoint(home / "model.safetensors")
    assert_holds(file, WEIGHTS)
    assert file.documents == {}
    assert said in file.notes[0]


# ---- SHA-256 -----------------------------------------------------------------------------------------------------------------------------


def test_the_sha256_is_that_of_the_file_or_of_the_list_of_shards():
    home = folder("one")
    save_file(WEIGHTS, home / "model.safetensors")
    expected = hashlib.sha256((home / "model.safetensors").read_bytes()).hexdigest()
    assert sha256_of(home) == sha256_of(home / "model.safetensors") == expected
    check_sha256(home, expected.upper())
    with pytest.raises(CheckpointError, match=f"has the SHA-256 {expected}, expected {'0' * 64}"):
        check_sha256(home, "0" * 64)
    with pytest.raises(CheckpointError, match="expected 64 hexadecimal digits"):
        check_sha256(home, "abc")
    many = folder("many")
    sharded(many)
    lines = [f"{name}\0{hashlib.sha256((many / name).read_bytes()).hexdigest()}\n" for name in ("one.safetensors", "two.safetensors")]
    assert sha256_of(many) == hashlib.sha256("".join(lines).encode()).hexdigest()


# ---- cost --------------------------------------------------------------------------------------------------------------------------------


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads the resident size from /proc")


def sparse_safetensors(path: Path, tensors: int, floats: int) -> None:
    """A file whose numbers are a hole in the file system: it takes no disk."""
    header = {f"t{n}": {"dtype": "F32", "shape": [floats], "data_offsets": [n * floats * 4, (n + 1) * floats * 4]} for n in range(tensors)}
    path.write_bytes(safetensors(header))
    os.truncate(path, path.stat().st_size + tensors * floats * 4)


@LINUX
def test_opening_a_large_file_reads_none_of_its_numbers():
    path = Path("model.safetensors")
    sparse_safetensors(path, 300, 1 << 18)
    before = resident_mib()
    file = open_checkpoint(path)
    assert resident_mib() - before < 20
    assert len(file.tensors) == 300


@LINUX
@pytest.mark.parametrize("container", ["safetensors", "zip", "legacy", "npz"])
def test_released_tensors_take_no_memory(container: str):
    """Of a file of 128 MiB, read tensor by tensor, only one tensor at a time is resident."""
    weights = {f"t{n}": torch.full((1 << 20,), float(n)) for n in range(32)}
    path = Path("model")
    if container == "safetensors":
        save_file(weights, path)
    elif container == "npz":
        with path.open("wb") as stream:
            np.savez(stream, **{name: tensor.numpy() for name, tensor in weights.items()})
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=container == "zip")
    del weights
    file = open_checkpoint(path)
    before, peak = resident_mib(), 0.0
    for name in file.tensors:
        assert float(file.read(name).sum()) == float(name[1:]) * (1 << 20)
        peak = max(peak, resident_mib() - before)
        file.release(name)
    assert peak < 24


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / (1 << 20)


def test_listing_a_file_needs_no_torch_and_no_numpy():
    save_file(WEIGHTS, "a.safetensors")
    torch.save({"model": WEIGHTS, "args": Namespace(a=1)}, "b.pth")
    np.savez("c.npz", a=np.ones(2))
    program = (
        "import sys; from pathlib import Path; from vit_models.checkpoints.files import open_checkpoint;"
        "[print(open_checkpoint(Path(name)).tensors) for name in sys.argv[1:]];"
        "sys.exit(bool({'torch', 'numpy'} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", program, "a.safetensors", "b.pth", "c.npz"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
