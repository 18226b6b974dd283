"""What `open_checkpoint` reads, what it refuses and in which words, and what that costs. Every broken file here is made by its test."""

import hashlib
import json
import os
import re
import resource
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import WEIGHTS, assert_holds, read_all, refusal, safetensors, write
from safetensors.torch import save_file

from vit_models.checkpoints.files import check_sha256, open_checkpoint, sha256_of
from vit_models.errors import CheckpointError

FIXTURES_BAD = Path(__file__).parents[3].parent / "shared" / "fixtures_bad"
pytestmark = pytest.mark.usefixtures("fresh_folder")


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
