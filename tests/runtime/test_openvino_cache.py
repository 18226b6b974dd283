"""What OpenVINO compiled, kept in a folder: the same numbers with it and without, whatever has happened to it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import QUICK, assert_mentions, copied, failed, inputs, one_line, run
from onnx import numpy_helper

import vit_runtime as vit
from vit_runtime.errors import InputError, MachineError
from vit_runtime.model import Model
from vit_runtime.openvino_engine import Arithmetic
from vit_runtime.providers import create_session

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed; pip install 'vit-deploy[openvino]'")


def entries(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("fixture", ["tiny_openvino", pytest.param("tiny_openvino_fp32", marks=pytest.mark.full)])
def test_what_was_compiled_is_kept_and_used_the_next_time(fixture: str, tmp_path: Path, request: pytest.FixtureRequest):
    """What the cache has not is written into it: by the first load, and nothing by the second, which gives the same numbers."""
    path, folder = request.getfixturevalue(fixture), tmp_path / "made" / "cache"
    first = vit.load(path, "openvino", threads=2, cache_dir=folder).run(inputs(3))
    kept = entries(folder)
    assert kept
    second = vit.load(str(path), "openvino", threads=2, cache_dir=str(folder)).run(inputs(3))
    assert entries(folder) == kept
    for name, values in vit.load(path, "openvino", threads=2).run(inputs(3)).items():
        np.testing.assert_array_equal(first[name], values)
        np.testing.assert_array_equal(second[name], values)


def test_without_a_folder_nothing_is_kept(tiny_openvino_fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    vit.load(tiny_openvino_fp32, "openvino", threads=2).run(inputs(3))
    assert not list(tmp_path.iterdir())


def test_files_that_share_a_cache_do_not_get_one_anothers_numbers(tiny_openvino_fp32: Path, tmp_path: Path):
    """One number in one weight is all that differs."""

    def nudge(proto: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == "blocks.0.mlp.fc2.weight")
        values = numpy_helper.to_array(tensor).copy()
        values.reshape(-1)[values.size // 2] += 0.5
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    other, folder = copied(tiny_openvino_fp32, tmp_path, nudge), tmp_path / "cache"
    found = [vit.load(path, "openvino", 1, folder).run(inputs(1))["embedding"] for path in (tiny_openvino_fp32, other)]
    assert np.abs(found[0] - found[1]).max() > 1e-4
    np.testing.assert_array_equal(found[1], vit.load(other, "openvino", 1).run(inputs(1))["embedding"])


@pytest.mark.parametrize("arithmetic", [Arithmetic(bf16=True), Arithmetic(int8_group=16), Arithmetic()])
def test_a_file_in_another_arithmetic_does_not_get_the_numbers_of_the_first(arithmetic: Arithmetic, tiny_openvino: Path, tmp_path: Path):
    def run(arithmetic: Arithmetic, folder: Path | None) -> Any:
        return create_session(tiny_openvino, "openvino", 1, arithmetic=arithmetic, cache_dir=folder)[0].run(["logits"], {"x": inputs(1)})[0]

    run(Arithmetic(int8_group=32), tmp_path)
    np.testing.assert_array_equal(run(arithmetic, tmp_path), run(arithmetic, None))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        pytest.param(lambda data: data[:10], marks=pytest.mark.full),
        pytest.param(lambda data: b"junk" * 99, marks=pytest.mark.full),
        lambda data: b"",
    ],
)
def test_a_damaged_cache_is_made_again_without_a_word(
    damage: Callable[[bytes], bytes], tiny_openvino_fp32: Path, float32: Model, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """As it is left behind by a process that was killed, or a disk that ran full."""
    vit.load(tiny_openvino_fp32, "openvino", 2, tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(damage(path.read_bytes()))
    damaged = entries(tmp_path)
    model = vit.load(tiny_openvino_fp32, "openvino", 2, tmp_path)
    np.testing.assert_array_equal(model.run(inputs(3))["logits"], float32.run(inputs(3))["logits"])
    assert entries(tmp_path) != damaged
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="this system has no folder in which nobody, root included, can make a file")
def test_a_folder_that_cannot_be_written_to_is_passed_over(tiny_openvino_fp32: Path, float32: Model, capfd: pytest.CaptureFixture[str]):
    model = vit.load(tiny_openvino_fp32, "openvino", 2, "/proc/self")
    np.testing.assert_array_equal(model.run(inputs(3))["logits"], float32.run(inputs(3))["logits"])
    assert capfd.readouterr() == ("", "")


def test_a_cache_folder_that_cannot_be_made_is_told_and_no_fault_of_the_file(tiny_openvino_fp32: Path, tmp_path: Path):
    """A file in its place, and a file on the way to it."""
    (tmp_path / "file").write_text("no folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(MachineError) as error:
            vit.load(tiny_openvino_fp32, "openvino", cache_dir=folder)
        assert_mentions(one_line(error), folder, "cache_dir")


@pytest.mark.parametrize("command", ["vit-predict", "vit-bench"])
def test_the_commands_keep_what_was_compiled_in_the_folder_that_they_are_given(
    command: str, tiny_openvino_fp32: Path, photo: Path, tmp_path: Path
):
    options: list[str | Path] = [photo] if command == "vit-predict" else [*QUICK, "--batch-sizes", "1"]
    arguments = [tiny_openvino_fp32, *options, "--provider", "openvino", "-q", "--cache-dir"]
    assert run(command, *arguments, tmp_path / "cache").exit_code == 0
    assert entries(tmp_path / "cache")
    message = failed(run(command, *arguments, photo / "below"), 4)
    assert_mentions(message, photo / "below", "cache")


def test_the_variable_names_the_folder_where_the_argument_does_not(
    tiny_openvino_fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("VIT_DEPLOY_CACHE", str(tmp_path / "variable"))
    vit.load(tiny_openvino_fp32, "openvino", threads=2, cache_dir=tmp_path / "argument")
    assert not (tmp_path / "variable").exists()
    vit.load(tiny_openvino_fp32, "openvino", threads=2)
    assert entries(tmp_path / "variable")


def test_a_provider_that_compiles_nothing_refuses_a_cache(tiny_openvino_fp32: Path, tmp_path: Path):
    with pytest.raises(InputError) as error:
        vit.load(tiny_openvino_fp32, "cpu", cache_dir=tmp_path / "cache")
    assert_mentions(one_line(error), "'cpu'", "'openvino'", "'tensorrt'")
