"""vit-cache: what is kept, compiled ahead, and removed."""

import errno
import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from helpers import assert_mentions, document_of, failed

import vit_runtime as vit
from vit_runtime.cli.cache import main
from vit_runtime.engine_cache import EngineCache, key_id
from vit_runtime.providers import probe

GPU = "NVIDIA L4, compute capability 8.9"


def run(*arguments: object) -> Result:
    """The command in this process. An exception that is not an exit is a traceback to users, so it ends the test."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="vit-cache")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two engines, the second used last, and a model that OpenVINO compiled long ago."""
    folder = tmp_path / "cache"
    for number in (1, 2):
        key = {"file": str(number), "GPU": GPU}

        def build(engine: Path, times: Path) -> None:
            (engine / "vit.engine").write_bytes(bytes(1_000_000))

        EngineCache(folder).open(key, {}, f"vit{number}.onnx", build, lambda engine: None)
        for path in (folder / "tensorrt" / key_id(key)).iterdir():
            os.utime(path, (1_700_000_000 + number,) * 2)
    (folder / "42.blob").write_bytes(bytes(500_000))
    os.utime(folder / "42.blob", (1_600_000_000,) * 2)
    return folder


@pytest.mark.unit
def test_the_list_names_model_gpu_size_and_state_the_last_used_first(folder: Path):
    lines = run("list", "--cache-dir", folder).stdout.split("\n")
    assert_mentions(lines[0], folder, "3 MB")
    for line, model in zip(lines[2:4], ("vit2.onnx", "vit1.onnx"), strict=True):
        assert_mentions(line, "engine", model, GPU, "1 MB", "ok")
    assert_mentions(lines[4], "openvino")


@pytest.mark.unit
def test_the_list_is_one_document_with_json(folder: Path):
    document = document_of(run("list", "--json", "--cache-dir", folder))
    assert [entry["model"] for entry in document["entries"]] == ["vit2.onnx", "vit1.onnx", ""]
    assert document["entries"][0]["key"] == {"file": "2", "GPU": GPU}
    assert document["entries"][0]["used"] == "2023-11-14T22:13:22Z"
    assert document["bytes"] == sum(entry["bytes"] for entry in document["entries"])


@pytest.mark.unit
def test_an_empty_cache_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VIT_DEPLOY_CACHE", str(tmp_path / "none"))
    result = run("list")
    assert result.exit_code == 0
    assert_mentions(result.stdout, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.unit
def test_pruning_leaves_what_was_used_last(folder: Path):
    document = document_of(run("prune", "--max-gb", "0.0011", "--json", "--cache-dir", folder))
    assert Path(document["removed"][0]["path"]).name == "42.blob"
    assert [entry["model"] for entry in document["removed"]][1:] == ["vit1.onnx"]
    assert [entry["model"] for entry in document["entries"]] == ["vit2.onnx"]
    assert_mentions(run("prune", "--max-gb", "0", "--cache-dir", folder).stdout, 1, "1 MB", "0 MB", folder)


@pytest.mark.unit
def test_what_somebody_else_has_put_there_is_listed_as_damaged(folder: Path):
    for number, text in enumerate(
        ('{"format": 1, "kind": 5, "model": [1], "key": {"GPU": 5}, "files": {"a": [1, "b"]}}', "[]", '{"format": 1}')
    ):
        entry = folder / "tensorrt" / f"{number:032}"
        entry.mkdir()
        (entry / "entry.json").write_text(text)
    (folder / "tensorrt" / "notes").mkdir()
    assert len(re.findall(r"\bdamaged\b", run("list", "--cache-dir", folder).stdout)) == 3
    assert [entry["state"] for entry in document_of(run("prune", "--json", "--cache-dir", folder))["removed"]] == ["damaged"] * 3


@pytest.mark.unit
def test_pruning_what_cannot_be_locked_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch):
    fcntl = pytest.importorskip("fcntl")

    def flock(number: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    message = failed(run("prune", "--max-gb", "0", "--cache-dir", folder), 4)
    assert_mentions(message, folder, "No locks available")
    assert [entry["kind"] for entry in document_of(run("list", "--json", "--cache-dir", folder))["entries"]] == ["engine"] * 2


@pytest.mark.unit
@pytest.mark.parametrize("most", ["nan", "inf"])
def test_a_size_that_is_no_number_is_refused(most: str, folder: Path):
    assert_mentions(failed(run("prune", "--max-gb", most, "--cache-dir", folder), 2), "--max-gb", most)


def test_warming_for_tensorrt_without_it_says_what_the_doctor_says(tiny_model: Path, tmp_path: Path):
    answer = probe("tensorrt")
    if answer.works:
        pytest.skip("TensorRT works here")
    message = failed(run("warm", tiny_model, "--cache-dir", tmp_path), 4)
    assert_mentions(message, "'tensorrt'", answer.reason, answer.remedy)
    document = document_of(run("warm", tiny_model, "--cache-dir", tmp_path, "--json"), 4)
    assert document == {"error": message, "exit_code": 4}
    assert list(tmp_path.iterdir()) == []


def test_warming_for_openvino_compiles_into_the_folder_that_is_named(
    tiny_openvino_fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("openvino")
    monkeypatch.delenv("VIT_DEPLOY_CACHE", raising=False)
    arguments = ["warm", tiny_openvino_fp32, "--provider", "openvino"]
    assert_mentions(failed(run(*arguments), 2), "--cache-dir")
    document = document_of(run(*arguments, "--cache-dir", tmp_path / "cache", "--json"))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [
        entry.path.name for entry in EngineCache(tmp_path / "cache").entries()
    ]
    assert (document["warmed"][0]["model"], document["warmed"][0]["provider"]) == (str(tiny_openvino_fp32), "openvino")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    vit.load(tiny_openvino_fp32, "openvino", cache_dir=tmp_path / "cache")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == kept
    assert [entry.kind for entry in EngineCache(tmp_path / "cache").entries()] == ["openvino"] * len(kept)


@pytest.mark.parametrize("provider", ["cpu", "cuda", "auto"])
def test_only_what_compiles_can_be_warmed(provider: str, tiny_model: Path):
    assert_mentions(failed(run("warm", tiny_model, "--provider", provider), 2), repr(provider), "tensorrt", "openvino")


@pytest.mark.unit
@pytest.mark.parametrize("command", [(), ("list",), ("warm",), ("prune",)])
def test_help_has_an_example(command: tuple[str, ...]):
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert result.stdout.count(" ".join(["vit-cache", *command])) >= 2  # in the usage line and in the example
