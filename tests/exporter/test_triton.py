"""vit-export --triton: a repository of two models that holds the proven file, and appears whole or not at all."""

import dataclasses
import filecmp
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner
from helpers import assert_mentions, copied, one_line, with_manifest
from pbtxt import read_config

from vit_exporter import write_triton
from vit_exporter.cli import main
from vit_exporter.triton import check_triton, network_config
from vit_runtime.errors import InputError, MachineError, ModelError
from vit_runtime.images import open_rgb
from vit_runtime.manifest import read_manifest

NOBODY = 65534


@pytest.fixture
def repository(tmp_path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def own_signals():
    """The command answers SIGTERM in its own way; the tests' process gets its old way back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def made_for(source: Path, folder: Path, target: str, precision: str = "fp32") -> Path:
    """A copy of a file that says that it was made for another target."""
    path = with_manifest(source, folder, lambda document: document["build"].update(target=target, precision=precision))
    return path.rename(folder / "vit.onnx")


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


# --- what is in it ----------------------------------------------------------------------------------------------------


def test_a_repository_has_a_model_for_pixels_and_one_for_images(tiny_model, repository):
    written = write_triton(tiny_model, repository)
    assert written.models == ("tiny", "tiny_image")
    assert files(repository / "tiny") == {"config.pbtxt", "labels.txt", "1/model.onnx"}
    assert files(repository / "tiny_image") == {"config.pbtxt", "labels.txt", "1/model.onnx", "1/model.py", "warmup/grey"}
    assert sorted(path.name for path in repository.iterdir()) == ["tiny", "tiny_image"]


def test_both_hold_the_proven_bytes_and_the_disk_holds_them_once(tiny_model, repository):
    write_triton(tiny_model, repository)
    network, image = (repository / name / "1" / "model.onnx" for name in ("tiny", "tiny_image"))
    assert network.read_bytes() == tiny_model.read_bytes()
    assert network.samefile(image)
    assert not network.samefile(tiny_model)  # whoever changes that one changes no model


def test_a_server_that_runs_as_somebody_else_can_read_it(tiny_model, repository):
    before = os.umask(0o022)
    try:
        write_triton(tiny_model, repository)
    finally:
        os.umask(before)
    for path in (repository, *repository.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path


def test_where_a_disk_has_no_hard_links_there_are_two_copies(tiny_model, repository, monkeypatch):
    def refuse(source, target):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write_triton(tiny_model, repository)
    network, image = (repository / name / "1" / "model.onnx" for name in ("tiny", "tiny_image"))
    assert not network.samefile(image)
    assert filecmp.cmp(network, image, shallow=False)


def test_weights_in_a_file_of_their_own_come_along_under_the_name_that_the_graph_has_for_them(tiny_model, tmp_path, repository):
    proto = onnx.load(tiny_model)
    onnx.save(proto, tmp_path / "vit.onnx", save_as_external_data=True, location="vit.onnx.data", size_threshold=0)
    write_triton(tmp_path / "vit.onnx", repository)
    for name in ("vit", "vit_image"):
        _, file = read_manifest(repository / name / "1" / "model.onnx")  # which looks for its weights
        assert file.external_files == ("vit.onnx.data",)
        assert (repository / name / "1" / "vit.onnx.data").read_bytes() == (tmp_path / "vit.onnx.data").read_bytes()


def test_the_network_takes_and_gives_what_the_file_does(tiny_model, repository):
    write_triton(tiny_model, repository)
    zeros = {"data_type": "TYPE_FP32", "dims": [3, 32, 32], "zero_data": True}
    assert read_config(repository / "tiny" / "config.pbtxt") == {
        "name": "tiny",
        "platform": "onnxruntime_onnx",
        "max_batch_size": 8,
        "input": [{"name": "pixel_values", "data_type": "TYPE_FP32", "dims": [3, 32, 32]}],
        "output": [
            {"name": "logits", "data_type": "TYPE_FP32", "dims": [10], "label_filename": "labels.txt"},
            {"name": "embedding", "data_type": "TYPE_FP32", "dims": [32]},
            {"name": "tokens", "data_type": "TYPE_FP32", "dims": [17, 32]},
            {"name": "attention", "data_type": "TYPE_FP32", "dims": [2, 16]},
        ],
        "instance_group": [{"kind": "KIND_CPU", "count": 1}],
        "dynamic_batching": {"preferred_batch_size": [4, 8], "max_queue_delay_microseconds": 2000},
        "model_warmup": [
            {"name": "one", "batch_size": 1, "inputs": {"pixel_values": zeros}},
            {"name": "largest", "batch_size": 8, "inputs": {"pixel_values": zeros}},
        ],
    }


def test_the_image_model_takes_bytes_and_gives_probabilities_too(tiny_model, repository):
    write_triton(tiny_model, repository)
    config = read_config(repository / "tiny_image" / "config.pbtxt")
    assert (config["name"], config["backend"], config["max_batch_size"]) == ("tiny_image", "python", 8)
    assert config["input"] == [{"name": "image", "data_type": "TYPE_STRING", "dims": [1]}]
    assert [output["name"] for output in config["output"]] == ["logits", "embedding", "tokens", "attention", "probabilities"]
    assert config["output"][-1] == {"name": "probabilities", "data_type": "TYPE_FP64", "dims": [10], "label_filename": "labels.txt"}
    assert config["parameters"] == {"provider": {"string_value": "cpu"}}
    assert [sample["batch_size"] for sample in config["model_warmup"]] == [1, 8]


def test_the_warm_up_request_is_one_image_as_triton_lays_out_bytes(tiny_model, repository):
    write_triton(tiny_model, repository)
    content = (repository / "tiny_image" / "warmup" / "grey").read_bytes()
    assert int.from_bytes(content[:4], "little") == len(content) - 4
    assert open_rgb(content[4:]).getpixel((0, 0)) == (128, 128, 128)


def test_labels_are_a_line_each(tiny_model, tmp_path, repository):
    names = ["ant", "two\nlines", "a: colon", "grüner Baumpython", *"efghij"]
    path = with_manifest(tiny_model, tmp_path, lambda document: document.update(labels=names))
    write_triton(path, repository)
    lines = (repository / "copied" / "labels.txt").read_text(encoding="utf-8").split("\n")
    assert lines == ["ant", "two lines", "a: colon", "grüner Baumpython", *"efghij", ""]


def test_a_file_without_labels_is_served_with_numbers_and_that_is_said(tiny_model, tmp_path, repository):
    path = with_manifest(tiny_model, tmp_path, lambda document: document.update(labels=None))
    (note,) = write_triton(path, repository).notes
    assert_mentions(note, "--labels")
    assert not list(repository.rglob("labels.txt"))
    for name in ("copied", "copied_image"):
        assert "label_filename" not in (repository / name / "config.pbtxt").read_text()


def test_a_file_that_does_not_classify_has_neither_probabilities_nor_labels_nor_a_note(tiny_model, tmp_path, repository):
    """A head that projects, as CLIP's."""
    path = with_manifest(tiny_model, tmp_path, lambda document: (document["model"].update(projection=True), document.update(labels=None)))
    assert write_triton(path, repository).notes == ()
    config = read_config(repository / "copied_image" / "config.pbtxt")
    assert [output["name"] for output in config["output"]] == ["logits", "embedding", "tokens", "attention"]
    assert not any("label_filename" in output for output in config["output"])


def test_an_input_of_free_size_stays_free(tiny_manifest, tmp_path):
    (tokens,) = (output for output in tiny_manifest.outputs if output.name == "tokens")
    outputs = (dataclasses.replace(tokens, shape=("batch", "tokens", 32)),)
    build, proven = {**tiny_manifest.build, "target": "tensorrt"}, dataclasses.replace(tiny_manifest.golden, image_size=(48, 24))
    free = dataclasses.replace(tiny_manifest, multiple_of=8, outputs=outputs, build=build, golden_sizes=(proven,))
    (tmp_path / "config.pbtxt").write_text(network_config("free", free))
    config = read_config(tmp_path / "config.pbtxt")
    assert config["input"][0]["dims"] == [3, -1, -1]
    assert config["output"] == [{"name": "tokens", "data_type": "TYPE_FP32", "dims": [-1, 32]}]
    assert config["model_warmup"][0]["inputs"]["pixel_values"]["dims"] == [3, 32, 32]  # a request has a size
    (tensorrt,) = config["optimization"]["execution_accelerators"]["gpu_execution_accelerator"]
    assert list(tensorrt["parameters"].values()) == [f"pixel_values:{shape}" for shape in ("1x3x32x24", "32x3x32x32", "32x3x48x32")]


@pytest.mark.parametrize("target", ["portable", "cpu", "openvino", "cuda", "tensorrt"])
def test_instances_provider_and_batches_follow_from_the_target(tiny_model, tmp_path, repository, target):
    written = write_triton(made_for(tiny_model, tmp_path, target), repository)
    gpu = target in ("cuda", "tensorrt")
    assert (written.kind, written.max_batch_size) == (("KIND_GPU", 32) if gpu else ("KIND_CPU", 8))
    for name in written.models:
        config = read_config(repository / name / "config.pbtxt")
        assert config["instance_group"][0]["kind"] == written.kind
        assert config["max_batch_size"] == written.max_batch_size == config["dynamic_batching"]["preferred_batch_size"][-1]
        assert config["model_warmup"][-1]["batch_size"] == written.max_batch_size
        assert ("optimization" in config) == (gpu and name == "vit")
    image = read_config(repository / "vit_image" / "config.pbtxt")
    assert image["parameters"]["provider"]["string_value"] == ("cpu" if target == "portable" else target)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_tensorrt_is_told_the_batches_of_its_one_engine_and_reads_the_precision_in_the_file(tiny_model, tmp_path, repository, precision):
    write_triton(made_for(tiny_model, tmp_path, "tensorrt", precision), repository)
    profile = {f"trt_profile_{bound}_shapes": f"pixel_values:{n}x3x32x32" for bound, n in (("min", 1), ("opt", 32), ("max", 32))}
    accelerators = read_config(repository / "vit" / "config.pbtxt")["optimization"]["execution_accelerators"]
    assert accelerators == {"gpu_execution_accelerator": [{"name": "tensorrt", "parameters": profile}]}


def test_cuda_is_told_to_compute_float32_in_float32(tiny_model, tmp_path, repository):
    write_triton(made_for(tiny_model, tmp_path, "cuda"), repository)
    accelerators = read_config(repository / "vit" / "config.pbtxt")["optimization"]["execution_accelerators"]
    assert accelerators == {"gpu_execution_accelerator": [{"name": "cuda", "parameters": {"use_tf32": "0"}}]}


def test_the_same_file_gives_the_same_repository(tiny_model, tmp_path):
    for name in ("first", "second"):
        write_triton(tiny_model, tmp_path / name)
    assert files(tmp_path / "first") == files(tmp_path / "second")
    for name in files(tmp_path / "first"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


# --- whole or not at all ----------------------------------------------------------------------------------------------


def test_other_models_in_the_repository_stay(tiny_model, tmp_path, repository):
    write_triton(tiny_model, repository)
    before = (repository / "tiny" / "config.pbtxt").stat()
    write_triton(shutil.copy(tiny_model, tmp_path / "other.onnx"), repository)
    assert sorted(path.name for path in repository.iterdir()) == ["other", "other_image", "tiny", "tiny_image"]
    assert (repository / "tiny" / "config.pbtxt").stat() == before


def test_an_existing_model_is_replaced_only_by_force_and_then_whole(tiny_model, repository):
    write_triton(tiny_model, repository)
    (repository / "tiny" / "2").mkdir()
    with pytest.raises(InputError) as raised:
        write_triton(tiny_model, repository)
    assert_mentions(one_line(raised), repository / "tiny", "--force")
    assert (repository / "tiny" / "2").exists()
    write_triton(tiny_model, repository, force=True)
    assert files(repository / "tiny") == {"config.pbtxt", "labels.txt", "1/model.onnx"}
    assert sorted(path.name for path in repository.iterdir()) == ["tiny", "tiny_image"]


@pytest.mark.parametrize("kind", ["documents", "somebody else's model", "link"])
def test_force_leaves_alone_what_vit_export_did_not_write(tiny_model, tmp_path, repository, kind):
    write_triton(tiny_model, tmp_path / "other")
    repository.mkdir()
    victim = repository / "tiny_image"
    if kind == "link":
        victim.symlink_to(tmp_path / "other" / "tiny_image")
    else:
        victim.mkdir()
        (victim / ("config.pbtxt" if "model" in kind else "thesis.txt")).write_text('name: "tiny_image"\n')
    before = files(victim)
    with pytest.raises(InputError) as raised:
        write_triton(tiny_model, repository, force=True)
    assert_mentions(one_line(raised), victim, "vit-export", "--force")
    assert files(victim) == before
    assert [path.name for path in repository.iterdir()] == ["tiny_image"]


def test_when_the_second_model_cannot_move_the_first_goes_back(tiny_model, tmp_path, repository, monkeypatch):
    write_triton(tiny_model, repository)
    before = {name: (repository / name).read_bytes() for name in files(repository)}
    other = with_manifest(tiny_model, tmp_path, lambda document: document.update(labels=None)).rename(tmp_path / "tiny.onnx")
    rename, calls = Path.rename, list[Path]()

    def failing(self, target):
        calls.append(self)
        if len(calls) == 4:  # earlier first, new first, earlier second: the new second one
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(InputError) as raised:
        write_triton(other, repository, force=True)
    assert_mentions(one_line(raised), "--triton", repository, "Input/output error")
    assert {name: (repository / name).read_bytes() for name in files(repository)} == before


def test_a_full_disk_leaves_nothing_behind(tiny_model, repository, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(MachineError) as raised:
        write_triton(tiny_model, repository)
    assert_mentions(one_line(raised), repository)
    assert not re.search(r"\d MB", str(raised.value))  # that is the error of a disk that has too little room from the start
    assert not repository.exists()


def test_too_little_room_is_told_before_anything_is_written(tiny_model, repository, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(MachineError) as raised:
        write_triton(tiny_model, repository)
    assert_mentions(one_line(raised), repository, "0.0 MB", f"{tiny_model.stat().st_size / 1e6:.1f} MB")
    assert not repository.exists()


def test_a_terminated_command_leaves_no_half_model(tiny_model, repository):
    """SIGTERM in the middle of copying."""
    code = f"""
import shutil, sys, time
from pathlib import Path
import vit_exporter.triton as t
from vit_runtime.cli.common import Command
import click
def slow(source, target):
    print("copying", flush=True)
    time.sleep(60)
shutil.copyfile = slow
@click.command(cls=Command)
def main():
    t.write_triton({str(tiny_model)!r}, {str(repository)!r})
main()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "copying\n"
    assert list(repository.iterdir())
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    process.stdout.close()
    assert not repository.exists()


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize("name", ["my model", "vit/..", "größe", "-vit", ".vit", "a:b", "vit%20"])
def test_a_name_that_triton_cannot_serve_is_refused(tmp_path, name):
    stem = Path(f"{name}.onnx").stem
    with pytest.raises(InputError) as raised:
        check_triton(tmp_path / f"{name}.onnx", tmp_path, force=False)
    assert_mentions(one_line(raised), repr(stem), "'.'", "'_'", "'-'")


@pytest.mark.unit
@pytest.mark.parametrize("name", ["vit", "ViT-B_16.fp16", "3"])
def test_a_name_that_it_can_serve_is_taken(tmp_path, name):
    check_triton(tmp_path / f"{name}.onnx", tmp_path, force=False)


def test_a_repository_that_is_a_file_or_has_no_parent_is_refused(tiny_model, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError) as raised:
        write_triton(tiny_model, tmp_path / "file")
    assert_mentions(one_line(raised), "--triton", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(InputError) as raised:
        write_triton(tiny_model, tmp_path / "no" / "models")
    assert_mentions(one_line(raised), "--triton", f"mkdir -p {tmp_path / 'no'}")


def test_a_folder_that_may_not_be_written_is_refused(tmp_path):
    """Root may write everywhere, so the process gives root's rights up first."""
    script = f"""
import os, sys
from pathlib import Path
from vit_exporter.triton import check_triton, network_config
from vit_runtime.errors import InputError
if os.getuid() == 0:
    os.setuid({NOBODY})
for folder in sys.argv[1:]:
    try:
        check_triton(Path("vit.onnx"), Path(folder), False)
    except InputError as error:
        print(error)
"""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o555)
        folders = (Path(name), Path(name, "models"))
        done = subprocess.run([sys.executable, "-c", script, *folders], capture_output=True, text=True, check=True)
        for folder, message in zip(folders, done.stdout.splitlines(), strict=True):
            assert_mentions(message, f"--triton {folder}", name)
            assert "mkdir" not in message  # which is the error of a folder that is absent


def test_a_file_without_a_manifest_is_refused(tiny_model, tmp_path, repository):
    path = copied(tiny_model, tmp_path, lambda proto: proto.ClearField("metadata_props"))
    with pytest.raises(ModelError) as raised:
        write_triton(path, repository)
    assert_mentions(one_line(raised), path, "vit_deploy")
    assert not repository.exists()


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("own_signals")
def test_the_command_writes_file_and_repository_and_says_where(tmp_path, repository):
    out = tmp_path / "digits.onnx"
    result = CliRunner().invoke(main, ["--arch", "digits", "--out", str(out), "--triton", str(repository), "--no-verify", "--json"])
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)["triton"]
    assert document["models"] == ["digits", "digits_image"]
    assert (repository / "digits" / "1" / "model.onnx").read_bytes() == out.read_bytes()


@pytest.mark.usefixtures("own_signals")
def test_the_command_refuses_before_it_works(tmp_path, repository):
    (repository / "digits").mkdir(parents=True)
    out = tmp_path / "digits.onnx"
    result = CliRunner().invoke(main, ["--arch", "digits", "--out", str(out), "--triton", str(repository)])
    assert result.exit_code == 2
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr)
    assert_mentions(result.stderr, repository / "digits", "--force")
    assert not out.exists()
