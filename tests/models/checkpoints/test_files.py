"""What `open_checkpoint` reads, and what it refuses. Every broken file here is made by its test."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from checkpoint_files import WEIGHTS, assert_holds, raises_mentioning, refusal, write
from helpers import assert_mentions
from safetensors.torch import save_file

from vit_models.checkpoints.claims import shown
from vit_models.checkpoints.files import check_sha256, open_checkpoint, sha256_of
from vit_models.errors import CheckpointError

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("fresh_folder")]


# ---- files that are something else -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "fact"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"\x1f\x8b" + bytes(30), "compressed"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (bytes(257) + b"ustar" + bytes(300), "tar"),
        (b"\x93NUMPY\1\0", "numpy.savez"),
        (b"hello", "b'hello'"),
        (b"PK\3\4", "zip directory"),
        (b"\x80\2", "pickle"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_named_for_what_it_is(data: bytes, fact: str):
    assert_mentions(refusal(write("model.safetensors", data)), fact)


def test_the_name_does_not_matter():
    save_file(WEIGHTS, "weights.pth")
    torch.save(WEIGHTS, "weights.safetensors")
    assert open_checkpoint(Path("weights.pth")).container == "safetensors"
    assert open_checkpoint(Path("weights.safetensors")).container == "torch"


def test_a_path_without_a_regular_file_is_refused():
    assert_mentions(refusal(Path.cwd() / "nothing"), os.strerror(errno.ENOENT))
    os.mkfifo("pipe")
    assert_mentions(refusal(Path.cwd() / "pipe"), "regular file")


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
    (note,) = file.notes
    assert_mentions(note, "model.safetensors", "pytorch_model.bin")


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
    assert_mentions(refusal(home), "'a.pth'", "'b.pth'")


def test_an_empty_folder_is_refused():
    assert_mentions(refusal(folder()), "nothing", "model.safetensors")


def test_a_folder_without_weights_is_refused_with_what_is_in_it():
    home = folder()
    (home / "config.json").write_text("{}")
    assert_mentions(refusal(home), "'config.json'")


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
    assert_mentions(refusal(home), shown(name), "folder")


@pytest.mark.parametrize("document", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": ["a"]}'])
def test_an_index_without_a_map_is_refused(document: str):
    home = folder()
    (home / "model.safetensors.index.json").write_text(document)
    assert_mentions(refusal(home), "weight_map")


def test_an_index_that_disagrees_with_its_shards_is_refused():
    home = folder()
    sharded(home)
    save_file({"layer.2": torch.ones(1), "more": torch.ones(1)}, home / "two.safetensors")
    assert_mentions(refusal(home), "two.safetensors", "'layer.3'", "'more'")
    (home / "two.safetensors").unlink()
    assert_mentions(refusal(home), "two.safetensors", "missing")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_link_out_of_the_folder_is_refused(name: str):
    home = folder()
    save_file(WEIGHTS, home / "model.safetensors")
    (home / "config.json").write_text("{}")
    (home / name).rename(Path.cwd() / name)
    (home / name).symlink_to(Path.cwd() / name)
    assert_mentions(refusal(home), name, "link")


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
    ("text", "facts"),
    [
        (b"{", ("JSON",)),
        (b"\xff\xfe", ("JSON",)),
        (b"[" * 100_000, ("nested",)),
        (b"", ("empty",)),
        (b" " * (5 << 20), ("JSON", "4,194,304")),
        (b'{"id2label": {"0": "\\udc00"}}', ("JSON",)),
    ],
)
def test_a_broken_document_is_an_error_in_a_folder_and_a_note_beside_a_file(text: bytes, facts: tuple[str, ...]):
    home = folder()
    save_file(WEIGHTS, home / "model.safetensors")
    (home / "config.json").write_bytes(text)
    assert_mentions(refusal(home), "config.json", *facts)
    file = open_checkpoint(home / "model.safetensors")
    assert_holds(file, WEIGHTS)
    assert file.documents == {}
    assert_mentions(file.notes[0], "config.json", *facts)


# ---- SHA-256 -----------------------------------------------------------------------------------------------------------------------------


def test_the_sha256_is_that_of_the_file_or_of_the_list_of_shards():
    home = folder("one")
    save_file(WEIGHTS, home / "model.safetensors")
    expected = hashlib.sha256((home / "model.safetensors").read_bytes()).hexdigest()
    assert sha256_of(home) == sha256_of(home / "model.safetensors") == expected
    check_sha256(home, expected.upper())
    with raises_mentioning(CheckpointError, "SHA-256", expected, "0" * 64):
        check_sha256(home, "0" * 64)
    with raises_mentioning(CheckpointError, 64, "hexadecimal"):
        check_sha256(home, "abc")
    many = folder("many")
    sharded(many)
    lines = [f"{name}\0{hashlib.sha256((many / name).read_bytes()).hexdigest()}\n" for name in ("one.safetensors", "two.safetensors")]
    assert sha256_of(many) == hashlib.sha256("".join(lines).encode()).hexdigest()
