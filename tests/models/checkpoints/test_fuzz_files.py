"""Damaged and hostile files by the thousand: `open_checkpoint` returns a checkpoint or raises one clear line, soon and in little memory.

Seeds are fixed, so a failure repeats: its message has the container and the number of the input. `make test` takes 100 inputs of each
container, `make test-full` 300, and `make test-slow` FUZZ_INPUTS (20,000 without that variable).
"""

import io
import json
import os
import random
import resource
import struct
import sys
import time
import tracemalloc
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import torch_bytes
from safetensors.torch import save

from vit_models.checkpoints.files import open_checkpoint
from vit_models.checkpoints.plan import Options
from vit_models.errors import CheckpointError

SECONDS = 5.0  # for one input; an ordinary one takes a millisecond, the longest pickle allowed two seconds
MEBIBYTES = 150  # for all inputs of a container together; each file has less than 0.1
ALLOWED = 48 << 20  # bytes beside twice the file, for the most that a header or a document of the largest size can be made to take

Mutation = Callable[[random.Random, bytes], bytes]
WEIGHTS = {f"blocks.{n}.weight": torch.arange(12.0).reshape(3, 4) + n for n in range(4)} | {"half": torch.ones(5, dtype=torch.bfloat16)}
CHECKPOINT = {
    "model": WEIGHTS,
    "model_ema": WEIGHTS,
    "epoch": 3,
    "args": Namespace(lr=0.1, name="vit"),
    "best": np.float64(1),
    "on": {1, 2},
}
INTERESTING = [
    0,
    1,
    2,
    7,
    8,
    127,
    128,
    255,
    256,
    65535,
    1 << 24,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
    (1 << 63) - 1,
    (1 << 64) - 1,
]
ODD_VALUES: list[Any] = [
    *(None, True, -1, 0, 1, 3.5, 1e400, 2**31, 2**63, 2**64, 10**12, 10**40, "", "F32", "F64", "I4", "../x", "\ud800", "\n\x1b[2J"),
    *([], {}, [[]], [0], [0, 4], [4, 0], [10**6, 10**6], [2**62, 4], [-1], [1] * 40, ["0"], {"dtype": "F32"}, "x" * 3000),
]


# ---- mutations of bytes ----------------------------------------------------------------------------------------------------------------


def flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def number(rng: random.Random, data: bytes) -> bytes:
    width = rng.choice([1, 2, 4, 8])
    at = rng.randrange(max(1, len(data) - width))
    return data[:at] + (rng.choice(INTERESTING) % (1 << 8 * width)).to_bytes(width, "little") + data[at + width :]


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def splice(rng: random.Random, data: bytes) -> bytes:
    a, b, c = sorted(rng.randrange(len(data)) for _ in range(3))
    return rng.choice([data[:a] + data[b:], data[:b] + data[a:], data[:a] + data[b:c] + data[a:b] + data[c:], data + data[a:b]])


def insert(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(rng.choice([1, 4, 100])) + data[at:]


def digits(rng: random.Random, data: bytes) -> bytes:
    places = [place for place, byte in enumerate(data[:4000]) if 48 <= byte <= 57]
    if not places:
        return flip(rng, data)
    at = rng.choice(places)
    return data[:at] + str(rng.choice(INTERESTING)).encode() + data[at + 1 :]


BYTES: list[Mutation] = [flip, number, cut, splice, insert, digits]


def head(mutation: Mutation) -> Mutation:
    """The mutation within the first 300 bytes, where formats keep their numbers."""
    return lambda rng, data: mutation(rng, data[:300]) + data[300:]


def tail(mutation: Mutation) -> Mutation:
    """The mutation within the last 600 bytes, where a zip keeps its directory."""
    return lambda rng, data: data[:-600] + mutation(rng, data[-600:])


# ---- mutations of structure --------------------------------------------------------------------------------------------------------------


def odd_json(rng: random.Random, value: Any) -> Any:
    """A JSON value with one or more places changed."""
    if rng.random() < 0.15:
        return rng.choice(ODD_VALUES)
    if isinstance(value, dict) and value:
        key = rng.choice(list(value))
        changed = {**value, key: odd_json(rng, value[key])}
        if rng.random() < 0.3:
            changed[rng.choice(["", "a\0b", "\u202e", "x" * 2000, "module.a", key + ".", "__metadata__"])] = changed.pop(key)
        return changed
    if isinstance(value, list) and value:
        at = rng.randrange(len(value))
        return [*value[:at], odd_json(rng, value[at]), *value[at + 1 :]]
    return rng.choice(ODD_VALUES)


def safetensors_header(rng: random.Random, data: bytes) -> bytes:
    length = struct.unpack("<Q", data[:8])[0]
    text = json.dumps(odd_json(rng, json.loads(data[8 : 8 + length]))).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def in_member(ending: str, mutations: list[Mutation]) -> Mutation:
    """A change within one member of a zip, which is written anew with right checksums."""

    def change(rng: random.Random, data: bytes) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w", rng.choice([0, 0, 8])) as new:
            chosen = rng.choice([name for name in old.namelist() if name.endswith(ending)])
            for name in old.namelist():
                content = old.read(name)
                new.writestr(name, rng.choice(mutations)(rng, content or b"\0") if name == chosen else content)
        return stream.getvalue()

    return change


# What a pickle may be made to do: name things, call them, build, copy, repeat.
FRAGMENTS = [
    *(
        b"cos\nsystem\n",
        b"cbuiltins\nexec\n",
        b"X\4\0\0\0exit\x85R",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"cargparse\nNamespace\n)\x81",
    ),
    *(b"ccollections\nOrderedDict\n)R", b"ctorch\nFloatStorage\n", b"cnumpy\ndtype\n", b"c__torch__.a\nB\n)\x81", b"ctorch\nSize\n"),
    *(b"}", b"]", b")", b"(", b"t", b"\x85", b"\x86", b"\x87", b"R", b"\x81", b"b", b"s", b"u", b"a", b"e", b"Q", b"0", b"2", b"1", b"."),
    *(b"h\0", b"h\1", b"q\0", b"q\5", b"\x94", b"N", b"\x88", b"K\7", b"J\xff\xff\xff\xff", b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"\x93"),
    *(b"B\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 8, b"X\xff\xff\xff\xff", b"r\xff\xff\xff\xff", b"\x95" + b"\xff" * 8, b"I1\n", b"\x82\1"),
]


def opcodes(rng: random.Random, data: bytes) -> bytes:
    for _ in range(rng.choice([1, 1, 2, 5, 30])):
        at = rng.randrange(2, len(data)) if len(data) > 2 else 0
        data = data[:at] + rng.choice(FRAGMENTS) * rng.choice([1, 1, 1, 3, 1000]) + data[at + rng.choice([0, 0, 1, 2]) :]
    return data


def index(rng: random.Random, data: bytes) -> bytes:
    document = odd_json(rng, json.loads(data))
    return rng.choice([json.dumps(document).encode(), json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")])


# ---- the containers --------------------------------------------------------------------------------------------------------------------


def npz_bytes(save_npz: Any) -> bytes:
    stream = io.BytesIO()
    save_npz(stream, **{f"Transformer/{name}": tensor.float().numpy() for name, tensor in WEIGHTS.items()})
    return stream.getvalue()


def scripted_bytes() -> bytes:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)), torch.ones(1, 3)), stream)
    return stream.getvalue()


ZIP = [*BYTES, *map(tail, BYTES), *map(head, BYTES)]
PICKLE = [*BYTES, opcodes, opcodes, opcodes]
CONTAINERS: dict[str, tuple[Callable[[], list[bytes]], list[Mutation]]] = {
    "safetensors": (lambda: [save(WEIGHTS, {"format": "pt"})], [*map(head, BYTES), *BYTES, *[safetensors_header] * 12]),
    "npz": (lambda: [npz_bytes(np.savez), npz_bytes(np.savez_compressed)], [*ZIP, *[in_member(".npy", list(map(head, BYTES)))] * 12]),
    "torch": (
        lambda: [torch_bytes(CHECKPOINT), torch_bytes(WEIGHTS, pickle_protocol=4)],
        [*ZIP, *[in_member("data.pkl", PICKLE)] * 30, in_member("", BYTES)],
    ),
    "torchscript": (lambda: [scripted_bytes()], [*ZIP, *[in_member("data.pkl", PICKLE)] * 30]),
    "legacy": (
        lambda: [torch_bytes(CHECKPOINT, _use_new_zipfile_serialization=False)],
        [*BYTES, *map(head, BYTES), *[opcodes] * 6, *[head(opcodes)] * 3],
    ),
    "index": (lambda: [json.dumps({"weight_map": dict.fromkeys(WEIGHTS, "one.safetensors")}).encode()], [*BYTES, *[index] * 6]),
    "config": (lambda: [b'{"hidden_size": 4, "id2label": {"0": "cat"}}'], [*BYTES, *[index] * 6]),
}


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1 << 20)


def fuzz(container: str, folder: Path, inputs: int) -> dict[str, int]:
    """How many inputs were read and how many refused. Asserts that nothing else happens."""
    make, mutations = CONTAINERS[container]
    originals = make()
    name = {"index": "model.safetensors.index.json", "config": "config.json"}.get(container, "weights")
    if container != "config":
        (folder / "one.safetensors").write_bytes(save(WEIGHTS))
    else:
        (folder / "model.safetensors").write_bytes(save(WEIGHTS))
    target = folder if name.endswith(".json") else folder / name
    counts, before = {"read": 0, "refused": 0}, peak_mib()
    for n in range(inputs):
        rng = random.Random(f"{container} {n}")
        data = rng.choice(originals)
        data = rng.choice(mutations)(rng, data)
        for _ in range(rng.choice([0, 0, 0, 1, 2])):
            data = rng.choice(BYTES)(rng, data or b"\0")
        (folder / name).write_bytes(data)
        began = time.perf_counter()
        try:
            file = open_checkpoint(target, Options(weights=rng.choice([None, None, "ema", "model"])))
            for tensor in file.tensors:
                assert tuple(file.read(tensor).shape) == file.shape(tensor)
                file.release(tensor)
            counts["read"] += 1
            said = ""
        except CheckpointError as error:
            counts["refused"] += 1
            said = str(error)
        except BaseException as error:  # whatever it is, the message has to name the input; pytest.raises cannot
            raise AssertionError(f"{container} {n}: {error!r}") from error
        assert said.isprintable(), f"{container} {n}: {said}"
        assert time.perf_counter() - began < SECONDS, f"{container} {n}"
        assert peak_mib() - before < MEBIBYTES, f"{container} {n}"
        assert not (folder / "PWNED").exists(), f"{container} {n}"
    return counts


@pytest.mark.parametrize("inputs", [pytest.param(100, marks=pytest.mark.unit), pytest.param(300, marks=pytest.mark.full)])
@pytest.mark.parametrize("container", CONTAINERS)
def test_damaged_files_are_read_or_refused(container: str, inputs: int, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """TorchScript warns that it is deprecated, and zipfile of duplicate names."""
    counts = fuzz(container, tmp_path, inputs)
    assert counts["refused"] > inputs / 3


@pytest.mark.slow
@pytest.mark.parametrize("container", CONTAINERS)
def test_many_damaged_files_are_read_or_refused(container: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    counts = fuzz(container, tmp_path, int(os.environ.get("FUZZ_INPUTS", "20000")))
    print(f"{container}: {counts}")


# ---- the most expensive texts ----------------------------------------------------------------------------------------------------------


def header(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


def many_tensors() -> bytes:
    entries = ",".join(f'"{n:x}":{{"dtype":"U8","shape":[],"data_offsets":[{n},{n + 1}]}}' for n in range(16_000))
    return header(f"{{{entries}}}".encode(), b"\0" * 16_000)


def pickled(opcodes: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(torch_bytes({}))) as old, zipfile.ZipFile(stream, "w") as new:
        for name in old.namelist():
            new.writestr(name, b"\x80\2" + opcodes + b"." if name.endswith("data.pkl") else old.read(name))
    return stream.getvalue()


EXPENSIVE: dict[str, Callable[[], bytes]] = {
    "small objects": lambda: header(b'{"a":[' + b'{"":1},' * 120_000 + b"1]}"),
    "too many objects": lambda: header(b'{"a":[' + b"{}," * 300_000 + b"1]}"),
    "many tensors": many_tensors,
    "empty dicts": lambda: pickled(b"}" * 499_000),
    "remembered dicts": lambda: pickled(b"}r\0\0\0\0" * 249_000),
    "marks": lambda: pickled(b"(" * 499_000),
    "endless": lambda: pickled(b"}" * 4_000_000),
}


def said_and_peak(path: Path) -> tuple[str, int]:
    """What refuses the file, empty if nothing does, and the most memory in bytes that reading it took."""
    said = ""
    tracemalloc.start()
    try:
        open_checkpoint(path, Options())
    except CheckpointError as error:
        said = str(error)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return said, peak


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full) if name in ("empty dicts", "marks") else name for name in EXPENSIVE]
)
def test_the_most_expensive_texts_take_bounded_memory(name: str, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(EXPENSIVE[name]())
    said, peak = said_and_peak(tmp_path / "weights")
    assert said.isprintable()
    assert peak < 2 * (tmp_path / "weights").stat().st_size + ALLOWED


@pytest.mark.parametrize(("item", "number", "refused"), [(b'{"":1}', 120_000, False), (b"[]", 120_000, False), (b"{}", 130_000, True)])
def test_the_most_expensive_document_takes_bounded_memory(item: bytes, number: int, refused: bool, tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(save(WEIGHTS))
    (tmp_path / "config.json").write_bytes(b'{"a":[' + b",".join([item] * number) + b"]}")
    said, peak = said_and_peak(tmp_path)
    assert ("250,000" in said) is refused
    assert peak < 2 * (tmp_path / "config.json").stat().st_size + ALLOWED
