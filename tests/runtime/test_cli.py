"""The commands: what they print, where, and the exit code that a pipeline goes by."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper
from PIL import Image

import vit_runtime as vit
from vit_runtime.cli import bench, info, parity, predict
from vit_runtime.cli.common import table, whole_numbers
from vit_runtime.errors import InputError
from vit_runtime.manifest import KEY, Manifest, read_manifest

COMMANDS: dict[str, click.Command] = {
    "vit-predict": predict.main,
    "vit-parity": parity.main,
    "vit-bench": bench.main,
    "vit-info": info.main,
}
MODULES = {name: f"vit_runtime.cli.{name.removeprefix('vit-')}" for name in COMMANDS}
QUICK = ("--seconds", "0", "--warmup", "0")


def run(command: str, *arguments: str | Path) -> Result:
    """The command in this process. An exception that is not an exit is a traceback to users, so it ends the test."""
    result = CliRunner().invoke(COMMANDS[command], [str(argument) for argument in arguments], prog_name=command)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run_apart(command: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, its streams no terminals."""
    code = f"from {MODULES[command]} import main; main(prog_name={command!r})"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        capture_output=True, encoding="utf-8", timeout=120, env={**os.environ, **environment},
    )  # fmt: skip


def failed(result: Any, code: int) -> str:
    """The message of a failure: one line on stderr and nothing on stdout."""
    assert result.returncode == code if hasattr(result, "returncode") else result.exit_code == code, result.stderr
    assert result.stdout == ""
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr)
    return result.stderr.removeprefix("error: ").strip()


def document_of(result: Result, code: int = 0) -> Any:
    """The one JSON document on stdout."""
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with five pictures, one of them in a folder below, and a text file."""
    rng, folder = np.random.default_rng(0), tmp_path / "images"
    for name in ("a.png", "b.jpg", "c.PNG", "d.bmp", "below/e.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def edited(tiny_model: Path, tmp_path: Path) -> Callable[[float], Path]:
    """A copy of the tiny file whose first class has this bias."""

    def make(bias: float) -> Path:
        proto = onnx.load(tiny_model)
        tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == "head.bias")
        values = numpy_helper.to_array(tensor).copy()
        values[0] = bias
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        path = tmp_path / "edited.onnx"
        path.write_bytes(proto.SerializeToString())
        return path

    return make


def copied(source: Path, folder: Path, edit: Callable[[onnx.ModelProto], object]) -> Path:
    """A copy of a file, changed."""
    proto = onnx.load(source)
    edit(proto)
    path = folder / "copied.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def with_manifest(source: Path, folder: Path, change: Callable[[Any], object]) -> Path:
    """A copy of a file whose manifest was changed."""

    def edit(proto: onnx.ModelProto) -> None:
        entry = next(entry for entry in proto.metadata_props if entry.key == KEY)
        document = json.loads(entry.value)
        change(document)
        entry.value = json.dumps(document)

    return copied(source, folder, edit)


@pytest.fixture
def broken(tiny_model: Path, tmp_path: Path) -> Path:
    """The first half of the tiny file."""
    path = tmp_path / "broken.onnx"
    path.write_bytes(tiny_model.read_bytes()[: tiny_model.stat().st_size // 2])
    return path


# ---- what all of them share ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_and_every_option(command: str):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert f"Example: {command} vit.onnx" in result.stdout
    for option in ("--json", "-q, --quiet"):
        assert option in result.stdout
    for parameter in COMMANDS[command].params:
        if isinstance(parameter, click.Option):
            assert parameter.help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_quick_it_imports_neither_onnxruntime_nor_torch_nor_pillow(command: str):
    code = (
        f"import sys; from {MODULES[command]} import main; main(['--help'], standalone_mode=False);"
        "print([name for name in ('onnxruntime', 'torch', 'onnx', 'PIL', 'vit_models', 'vit_exporter') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=60, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_is_damaged_missing_or_not_ours_is_exit_code_3(command: str, broken: Path, images: Path, tmp_path: Path):
    more = [images] if command == "vit-predict" else []
    assert "is not a whole .onnx file" in failed(run(command, broken, *more), 3)
    assert "does not exist" in failed(run(command, tmp_path / "no.onnx", *more), 3)
    assert "is a folder" in failed(run(command, tmp_path, *more), 3)
    other = tmp_path / "other.onnx"
    other.write_bytes(
        onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 18]> g (float[2] x) => (float[2] x) {}').SerializeToString()
    )
    assert "without a vit_deploy manifest" in failed(run(command, other, *more), 3)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("arguments", [(), ("--nonsense",)])
def test_wrong_usage_is_exit_code_2_and_points_to_help(command: str, arguments: tuple[str, ...]):
    result = run(command, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert f"Try '{command} --help' for help." in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("arguments", [("--json",), ("--nonsense", "--json")])
def test_wrong_usage_is_a_document_too(command: str, arguments: tuple[str, ...]):
    document = document_of(run(command, *arguments), 2)
    assert document["exit_code"] == 2
    assert document["error"].startswith(("Missing argument", "No such option"))


@pytest.mark.parametrize("command", COMMANDS)
def test_an_error_is_a_document_on_stdout_and_a_line_on_stderr(command: str, broken: Path, images: Path):
    result = run(command, broken, *([images] if command == "vit-predict" else []), "--json")
    document = document_of(result, 3)
    assert document == {"error": document["error"], "exit_code": 3}
    assert result.stderr == f"error: {document['error']}\n"


@pytest.mark.parametrize("command", ["vit-predict", "vit-parity", "vit-bench"])
def test_a_provider_that_this_machine_lacks_is_exit_code_4(command: str, tiny_model: Path, images: Path):
    ort = pytest.importorskip("onnxruntime")
    if len(ort.get_available_providers()) > 2:
        pytest.skip("this onnxruntime was built with GPU providers")
    more = {"vit-predict": [images, "--provider"], "vit-parity": ["--providers"], "vit-bench": ["--provider"]}[command]
    assert "provider 'cuda' does not run here" in failed(run(command, tiny_model, *more, "cuda"), 4)
    assert document_of(run(command, tiny_model, *more, "cuda", "--json"), 4)["exit_code"] == 4
    assert "expected one of auto, cpu, openvino, cuda, tensorrt" in failed(run(command, tiny_model, *more, "gpu"), 2)


@pytest.mark.parametrize("command", ["vit-predict", "vit-parity", "vit-bench"])
def test_an_impossible_number_of_threads_is_exit_code_2(command: str, tiny_model: Path, images: Path):
    more = [images] if command == "vit-predict" else []
    assert "threads" in failed(run(command, tiny_model, *more, "--threads", "0"), 2)


@pytest.mark.parametrize("command", COMMANDS)
def test_in_a_pipe_there_is_no_progress(command: str, tiny_model: Path, images: Path):
    more: dict[str, tuple[str | Path, ...]] = {"vit-predict": (images,), "vit-bench": QUICK}
    result = run_apart(command, tiny_model, *more.get(command, ()))
    assert result.returncode == 0
    assert result.stderr == ""
    assert result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_quiet_prints_nothing_but_errors_and_the_document(command: str, tiny_model: Path, broken: Path, images: Path):
    more: dict[str, tuple[str | Path, ...]] = {"vit-predict": (images,), "vit-bench": QUICK}
    quiet = run(command, tiny_model, *more.get(command, ()), "-q")
    assert (quiet.exit_code, quiet.output) == (0, "")
    assert document_of(run(command, tiny_model, *more.get(command, ()), "-q", "--json"))
    failed(run(command, broken, *more.get(command, ()), "-q"), 3)


def test_quiet_still_gives_the_exit_code_of_a_failed_check(tiny_model: Path, edited: Callable[[float], Path]):
    for arguments in (("vit-parity", edited(0.5), "-q"), ("vit-bench", tiny_model, "--max-p50-ms", "0.000001", "-q", *QUICK)):
        result = run(*arguments)
        assert (result.exit_code, result.output) == (1, "")


def test_errors_in_a_process_of_its_own_are_one_line_without_a_traceback(broken: Path, tiny_model: Path, tmp_path: Path):
    failed(run_apart("vit-info", broken), 3)
    failed(run_apart("vit-predict", tiny_model, tmp_path / "no.jpg"), 2)


# ---- vit-predict ---------------------------------------------------------------------------------------------------------------------


def test_predict_names_the_likeliest_classes_of_each_image(tiny_model: Path, images: Path):
    result = run("vit-predict", tiny_model, images / "a.png", images / "b.jpg", "--topk", "2", "--provider", "cpu")
    assert result.exit_code == 0
    expected = vit.load(tiny_model, "cpu").predict([images / "a.png", images / "b.jpg"])
    lines = [
        f"{path}: " + ", ".join(f"{label.name} {label.probability:.1%}" for label in found.top(2))
        for path, found in zip((images / "a.png", images / "b.jpg"), expected, strict=True)
    ]
    assert result.stdout.splitlines() == lines


def test_predict_takes_folders_and_patterns_and_each_image_once(tiny_model: Path, images: Path):
    found = document_of(run("vit-predict", tiny_model, images, images / "*.png", images / "a.png", "--json"))
    names = [str(Path(entry["image"]).relative_to(images)) for entry in found["images"]]
    assert names == ["a.png", "b.jpg", "below/e.png", "c.PNG", "d.bmp"]
    found = document_of(run("vit-predict", tiny_model, images / "**" / "*.png", "--json"))
    assert sorted(Path(entry["image"]).name for entry in found["images"]) == ["a.png", "e.png"]


def test_predict_gives_the_same_as_data(tiny_model: Path, images: Path, tiny_manifest: Manifest):
    document = document_of(run("vit-predict", tiny_model, images, "--json", "--topk", "10", "--provider", "cpu", "--threads", "1"))
    assert (document["model"], document["provider"], document["threads"]) == (str(tiny_model), "cpu", 1)
    assert document["seconds"] > 0
    for entry in document["images"]:
        assert tiny_manifest.labels is not None
        probabilities = [found["probability"] for found in entry["predictions"]]
        assert sum(probabilities) == pytest.approx(1)
        assert probabilities == sorted(probabilities, reverse=True)
        assert all(found["label"] == tiny_manifest.labels[found["index"]] for found in entry["predictions"])


@pytest.mark.parametrize("batch_size", ["1", "2", "100"])
def test_predict_gives_the_same_classes_at_any_batch_size(batch_size: str, tiny_model: Path, images: Path):
    plain, batched = (run("vit-predict", tiny_model, images, *more).stdout for more in ((), ("--batch-size", batch_size)))
    assert plain == batched


def test_predict_writes_a_csv(tiny_model: Path, images: Path, tmp_path: Path):
    path = tmp_path / "out.csv"
    document = document_of(run("vit-predict", tiny_model, images, "--topk", "3", "--csv", path, "--json"))
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "rank", "label", "probability"]
    assert rows == [
        [entry["image"], str(rank), found["label"], f"{found['probability']:.6f}"]
        for entry in document["images"]
        for rank, found in enumerate(entry["predictions"], start=1)
    ]
    assert len(rows) == 15


def test_predict_writes_embeddings(tiny_model: Path, images: Path, tmp_path: Path):
    path = tmp_path / "out.npz"
    assert run("vit-predict", tiny_model, images, "--embeddings", path, "--batch-size", "2").exit_code == 0
    with np.load(path, allow_pickle=False) as found:
        paths, embeddings = found["paths"], found["embeddings"]
        assert set(found) == {"paths", "embeddings"}
    assert embeddings.dtype == np.float32
    assert [Path(name).name for name in paths] == ["a.png", "b.jpg", "e.png", "c.PNG", "d.bmp"]
    expected = vit.load(tiny_model, "cpu").embed([Path(name) for name in paths], batch_size=2)
    np.testing.assert_array_equal(embeddings, expected)


def test_predict_writes_the_file_under_the_name_that_was_given(tiny_model: Path, images: Path, tmp_path: Path):
    assert run("vit-predict", tiny_model, images, "--embeddings", tmp_path / "vectors.bin").exit_code == 0
    assert [path.name for path in tmp_path.glob("vectors*")] == ["vectors.bin"]


def test_a_file_without_logits_is_for_embeddings(tiny_embedder: Path, images: Path, tmp_path: Path):
    words = failed(run("vit-predict", tiny_embedder, images), 2)
    assert "has outputs embedding and no logits to classify with; --embeddings out.npz writes its embeddings" in words
    document = document_of(run("vit-predict", tiny_embedder, images, "--embeddings", tmp_path / "out.npz", "--json"))
    assert [entry["predictions"] for entry in document["images"]] == [[]] * 5
    assert np.load(tmp_path / "out.npz")["embeddings"].shape == (5, 32)
    words = failed(run("vit-predict", tiny_embedder, images, "--embeddings", tmp_path / "out.npz", "--csv", tmp_path / "out.csv"), 2)
    assert "no logits to classify with; leave --csv out" in words


def test_a_file_whose_head_projects_has_no_classes_and_is_for_embeddings(tiny_clip: Path, images: Path, tmp_path: Path):
    words = failed(run("vit-predict", tiny_clip, images), 2)
    assert words.startswith(f"{tiny_clip} has no classes: its head projects images into a space that they share with texts; --embeddings ")
    words = failed(run("vit-predict", tiny_clip, images, "--embeddings", tmp_path / "out.npz", "--csv", tmp_path / "out.csv"), 2)
    assert words.endswith("; leave --csv out")
    assert not list(tmp_path.glob("out.*"))
    result = run("vit-predict", tiny_clip, images, "--embeddings", tmp_path / "out.npz")
    assert (result.exit_code, result.stdout) == (0, "")
    with np.load(tmp_path / "out.npz") as found:
        expected = vit.load(tiny_clip, "cpu").embed([Path(name) for name in found["paths"]])
        np.testing.assert_array_equal(found["embeddings"], expected)
        assert found["embeddings"].shape == (5, 24)
    document = document_of(run("vit-predict", tiny_clip, images, "--embeddings", tmp_path / "out.npz", "--json"))
    assert [entry["predictions"] for entry in document["images"]] == [[]] * 5


def test_a_file_without_an_embedding_has_none_to_write(tiny_projected: Path, images: Path, tmp_path: Path):
    words = failed(run("vit-predict", tiny_projected, images, "--embeddings", tmp_path / "out.npz"), 2)
    assert "has outputs logits, tokens and no embedding to write; export it with --outputs embedding" in words


@pytest.mark.parametrize("option", ["--csv", "--embeddings"])
def test_a_place_that_cannot_be_written_is_told_before_and_a_full_disk_after(option: str, tiny_model: Path, images: Path, tmp_path: Path):
    words = failed(run("vit-predict", tiny_model, images, option, tmp_path / "no" / "out"), 2)
    assert f"{option} {tmp_path}/no/out: the folder {tmp_path}/no does not exist" in words
    if Path("/dev/full").exists():
        result = run("vit-predict", tiny_model, images, option, "/dev/full")
        assert result.exit_code == 4
        assert "error: /dev/full cannot be written (No space left on device)" in result.stderr


def test_images_that_are_missing_or_broken_are_told_apart(tiny_model: Path, images: Path, tmp_path: Path):
    assert "which does not exist" in failed(run("vit-predict", tiny_model, images / "no.png"), 2)
    assert "matches nothing" in failed(run("vit-predict", tiny_model, images / "*.tiff"), 2)
    (tmp_path / "empty").mkdir()
    assert "without images" in failed(run("vit-predict", tiny_model, tmp_path / "empty"), 2)
    assert "not an image" in failed(run("vit-predict", tiny_model, images / "notes.txt"), 3)
    cut = images / "cut.png"
    cut.write_bytes((images / "a.png").read_bytes()[:500])
    assert "cut.png" in failed(run("vit-predict", tiny_model, cut), 3)


def test_a_broken_image_is_named_and_the_others_go_on(tiny_model: Path, images: Path, tmp_path: Path):
    (images / "cut.png").write_bytes((images / "a.png").read_bytes()[:500])
    npz, table = tmp_path / "out.npz", tmp_path / "out.csv"
    rows = document_of(run("vit-predict", tiny_model, images, "--json", "--embeddings", npz, "--csv", table), 3)["images"]
    broken = [row for row in rows if "error" in row]
    assert [Path(row["image"]).name for row in broken] == ["cut.png"]
    assert all(row["predictions"] for row in rows if row not in broken)
    kept = [row["image"] for row in rows if row not in broken]
    assert list(np.load(npz)["paths"]) == kept
    assert "cut.png" not in table.read_text()


def test_a_network_that_gives_nan_is_an_error_and_no_prediction(edited: Callable[[float], Path], images: Path):
    path = edited(float("nan"))
    assert "NaN or Inf" in failed(run("vit-predict", path, images), 1)
    assert document_of(run("vit-predict", path, images, "--json"), 1)["exit_code"] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a file name be any bytes")
def test_file_names_that_are_no_text_are_no_trouble(tiny_model: Path, images: Path, tmp_path: Path):
    name = os.fsdecode(b"caf\xe9.png")
    shutil.copy(images / "a.png", images / name)
    result = run_apart("vit-predict", tiny_model, images, "--csv", tmp_path / "out.csv", LC_ALL="C.UTF-8")
    assert (result.returncode, result.stderr) == (0, "")
    assert "caf\ufffd.png: " in result.stdout
    assert b"caf\xe9.png," in (tmp_path / "out.csv").read_bytes()
    found = json.loads(run_apart("vit-predict", tiny_model, images / name, "--json", LC_ALL="C.UTF-8").stdout)
    assert found["images"][0]["image"] == str(images / name)


# ---- vit-parity ----------------------------------------------------------------------------------------------------------------------


def test_parity_passes_an_honest_file(tiny_model: Path):
    result = run("vit-parity", tiny_model)
    assert result.exit_code == 0
    assert f"{tiny_model} on cpu: passed (limits: 2 and 8 floors)" in result.stdout
    assert "FAILED" not in result.stdout
    assert len(re.findall(r"^  (logits|embedding|tokens|attention) +[1-7] ", result.stdout, re.MULTILINE)) == 20


def test_parity_fails_a_changed_file_with_exit_code_1(tiny_model: Path, edited: Callable[[float], Path]):
    path = edited(0.5)
    result = run("vit-parity", tiny_model, path, "--batch-sizes", "1,4")
    assert result.exit_code == 1
    assert f"{tiny_model} on cpu: passed" in result.stdout
    assert f"{path} on cpu: FAILED" in result.stdout
    assert re.findall(r"^  (\w+) .*FAILED$", result.stdout, re.MULTILINE) == ["logits", "logits"]


def test_parity_gives_the_same_as_data(tiny_model: Path, edited: Callable[[float], Path]):
    path = edited(0.5)
    document = document_of(run("vit-parity", tiny_model, path, "--json", "--batch-sizes", "3"), 1)
    assert document["passed"] is False
    assert [(entry["model"], entry["passed"]) for entry in document["models"]] == [(str(tiny_model), True), (str(path), False)]
    report = document["models"][0]["reports"][0]
    assert report["limits"] == {"rms": 2.0, "max": 8.0}
    assert {check["batch_size"] for check in report["checks"]} == {3}
    assert all(check["rms_floors"] <= 2 for check in report["checks"])


def test_parity_of_nan_is_null_in_json_and_fails(edited: Callable[[float], Path]):
    document = document_of(run("vit-parity", edited(float("nan")), "--json"), 1)
    checks = document["models"][0]["reports"][0]["checks"]
    assert {check["rms"] for check in checks if check["output"] == "logits"} == {None}
    assert not any(check["passed"] for check in checks if check["output"] == "logits")


def test_parity_without_a_record_is_exit_code_3(tiny_unverified: Path):
    assert "no golden record" in failed(run("vit-parity", tiny_unverified), 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--providers", "cpu,cpu"), "expected each provider once"),
        (("--providers", ""), "expected one of auto"),
        (("--batch-sizes", ""), "expected whole numbers"),
        (("--batch-sizes", "1,x"), "expected whole numbers"),
        (("--batch-sizes", "0"), "at least 1, each once"),
        (("--batch-sizes", "2,2"), "at least 1, each once"),
    ],
)
def test_parity_refuses_what_cannot_be_checked(arguments: tuple[str, ...], words: str, tiny_model: Path):
    assert words in failed(run("vit-parity", tiny_model, *arguments), 2)


def test_parity_of_a_reduced_file_tells_how_near_it_is(tiny_int8: Path):
    result = run("vit-parity", tiny_int8, "--batch-sizes", "1,4")
    assert (result.exit_code, result.stderr) == (0, "")
    first, *rows, last = result.stdout.splitlines()
    limits = re.fullmatch(rf"{tiny_int8} on cpu: passed \(least cosine: (.+)\)", first)
    assert limits
    assert re.fullmatch(
        r"attention 0\.9\d+, embedding 0\.9\d+, logits 0\.9\d+ and KL [\d.e-]+, tokens 0\.9\d+", ", ".join(sorted(limits[1].split(", ")))
    )
    assert rows[0].split() == ["output", "batch", "size", "least", "cosine", "mean", "same", "class", "largest", "KL"]
    assert [row.split()[:3] for row in rows[1:]] == [
        [name, batch, "32x32"] for batch in ("1", "4") for name in ("attention", "embedding", "logits", "tokens")
    ]
    assert all(re.search(r"  [01]\.\d{5}  [01]\.\d{5}(  +\d+%  +\d\.\de-\d\d)?$", row) for row in rows[1:])
    assert [row.split()[0] for row in rows if "%" in row] == ["logits", "logits"]
    assert last == "Of reduced precision: each output may be twice as far from float64 PyTorch as it was when the file was made."


def test_parity_fails_a_changed_reduced_file_with_exit_code_1(tiny_int8: Path, tmp_path: Path):
    """The scales of one layer are half as large again. Attention is computed before it."""

    def stretch(proto: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == "blocks.1.attn.proj.weight_scale")
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.5), tensor.name))

    path = copied(tiny_int8, tmp_path, stretch)
    result = run("vit-parity", path, "--batch-sizes", "1")
    assert result.exit_code == 1
    assert f"{path} on cpu: FAILED (least cosine: " in result.stdout
    assert re.findall(r"^  (\w+) .*FAILED$", result.stdout, re.MULTILINE) == ["embedding", "logits", "tokens"]
    document = document_of(run("vit-parity", path, "--batch-sizes", "1", "--json"), 1)
    assert document["passed"] is False


def test_parity_fails_a_reduced_file_whose_limits_are_tighter_than_it_is_near(tiny_int8: Path, tmp_path: Path):
    def tighten(document: Any) -> None:
        document["parity"]["limits"]["embedding"]["cosine"] = 1.0

    result = run("vit-parity", with_manifest(tiny_int8, tmp_path, tighten), "--batch-sizes", "2")
    assert result.exit_code == 1
    assert "embedding 1," in result.stdout
    assert re.findall(r"^  (\w+) .*FAILED$", result.stdout, re.MULTILINE) == ["embedding"]


def test_parity_of_a_reduced_file_gives_the_same_as_data(tiny_int8: Path):
    document = document_of(run("vit-parity", tiny_int8, "--json", "--batch-sizes", "3"))
    (report,) = document["models"][0]["reports"]
    assert report["limits"].keys() == {"logits", "embedding", "tokens", "attention"}
    for check in report["checks"]:
        limit = report["limits"][check["output"]]
        assert limit["cosine"] <= check["accuracy"]["cosine_min"] <= 1
        assert (limit["kl"] is None) == (check["accuracy"]["kl_max"] is None) == (check["output"] != "logits")


@pytest.mark.parametrize("fixture", ["tiny_model", "tiny_int8", "tiny_openvino"])
def test_parity_holds_providers_against_the_record_and_against_one_another(fixture: str, request: pytest.FixtureRequest):
    pytest.importorskip("openvino")
    path = request.getfixturevalue(fixture)
    result = run("vit-parity", path, "--providers", "cpu,openvino", "--batch-sizes", "1,3")
    assert result.exit_code == 0
    heads = [line.partition(" (")[0] for line in result.stdout.splitlines() if line.startswith(str(path))]
    assert heads == [f"{path} on {what}: passed" for what in ("cpu", "openvino", "openvino against cpu")]
    document = document_of(run("vit-parity", path, "--providers", "openvino,cpu", "--batch-sizes", "1", "--json"))
    reports = document["models"][0]["reports"]
    assert [{check["provider"] for check in report["checks"]} for report in reports] == [{"openvino"}, {"cpu"}, {"cpu against openvino"}]
    alone, between = reports[0]["limits"], reports[2]["limits"]
    if fixture == "tiny_model":
        assert between == {"rms": 2 * alone["rms"], "max": 2 * alone["max"]}
    else:
        assert 1 - between["embedding"]["cosine"] == pytest.approx(4 * (1 - alone["embedding"]["cosine"]))


def test_parity_in_a_process_of_its_own_gives_its_exit_code(tiny_model: Path, edited: Callable[[float], Path]):
    assert run_apart("vit-parity", tiny_model, "--batch-sizes", "1").returncode == 0
    assert run_apart("vit-parity", edited(0.5), "--batch-sizes", "1", "--json").returncode == 1


# ---- vit-bench -----------------------------------------------------------------------------------------------------------------------


def test_bench_times_each_batch_size(tiny_model: Path):
    result = run("vit-bench", tiny_model, "--batch-sizes", "1,3", "--threads", "1", *QUICK)
    assert result.exit_code == 0
    assert f"{tiny_model} on cpu, 1 threads" in result.stdout
    assert re.findall(r"^  (\d+) ", result.stdout, re.MULTILINE) == ["1", "3"]
    assert re.search(r"loaded in \d+\.\d+ s, peak memory \d+ MB", result.stdout)


def test_bench_gives_the_same_as_data(tiny_model: Path):
    document = document_of(run("vit-bench", tiny_model, "--batch-sizes", "2,1", "--json", *QUICK))
    assert document["passed"] is True
    assert document["provider"] == "cpu"
    assert document["peak_memory"] > 10 << 20
    assert [timing["batch_size"] for timing in document["timings"]] == [2, 1]
    for timing in document["timings"]:
        assert timing["runs"] >= 5
        assert 0 < timing["p50_ms"] <= timing["p95_ms"] <= timing["p99_ms"]
        assert timing["images_per_second"] == pytest.approx(1000 * timing["batch_size"] / timing["p50_ms"])


def test_bench_fails_below_its_bar_with_exit_code_1(tiny_model: Path):
    result = run("vit-bench", tiny_model, "--max-p50-ms", "0.000001", *QUICK)
    assert result.exit_code == 1
    assert re.search(r"FAILED: the median is \d+\.\d+ ms, the bar is 1e-06 ms", result.stdout)
    assert document_of(run("vit-bench", tiny_model, "--max-p50-ms", "0.000001", "--json", *QUICK), 1)["passed"] is False
    assert run("vit-bench", tiny_model, "--max-p50-ms", "1000000", *QUICK).exit_code == 0


@pytest.mark.parametrize(
    "arguments", [("--seconds", "-1"), ("--warmup", "-1"), ("--max-p50-ms", "0"), ("--max-p50-ms", "nan"), ("--seconds", "nan")]
)
def test_bench_refuses_what_cannot_be_timed(arguments: tuple[str, ...], tiny_model: Path):
    result = run("vit-bench", tiny_model, *arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.stderr


# ---- vit-info ------------------------------------------------------------------------------------------------------------------------


def test_info_says_what_is_in_a_file(tiny_model: Path):
    result = run("vit-info", tiny_model)
    assert result.exit_code == 0
    for words in (
        "custom, 0.0 M parameters, patch 8, pool cls",
        "random, seed 0",
        "pixel_values float32 (batch, 3, 32, 32)",
        "RGB, resize to 32x32 (bilinear), / 255, mean 0.5, std 0.5\n",
        "logits float32 (batch, 10): unnormalised score",
        "10: ant, bee, cat, dog, eel ...",
        "opset 18, target portable, precision fp32",
        "LayerNormalization 5",
        "16 golden images, at most 2x (rms) and 8x (largest) PyTorch's own float32 error",
    ):
        assert words in result.stdout


@pytest.mark.parametrize(
    ("fixture", "words"),
    [
        ("tiny_external", "with tiny.onnx.data"),
        ("tiny_unverified", "not verified: exported with --no-verify"),
        ("tiny_embedder", "labels   none, as there are no classes\n"),
        ("tiny_clip", "labels   none, as there are no classes\n"),
        ("tiny_clip", "logits float32 (batch, 24): image representation in the space that images and texts share, not normalised"),
        ("tiny_projected", "labels   none\n"),
        ("tiny_projected", "tokens float32 (batch, 65, 64)"),
    ],
)
def test_info_of_other_files(fixture: str, words: str, request: pytest.FixtureRequest):
    result = run("vit-info", request.getfixturevalue(fixture))
    assert result.exit_code == 0
    assert words in result.stdout


def test_info_of_a_reduced_file_says_how_near_it_is_to_pytorch(tiny_int8: Path):
    result = run("vit-info", tiny_int8)
    assert result.exit_code == 0
    assert "graph    opset 20, target cpu, precision int8, " in result.stdout
    assert "/ 255, mean 0.5, std 0.5 in the graph\n" in result.stdout
    assert "parity   16 golden images; at export:\n" in result.stdout
    assert "accuracy 24 generated images on cpu, against PyTorch's float32:\n" in result.stdout
    manifest = read_manifest(tiny_int8)[0]
    assert manifest.parity is not None
    assert manifest.accuracy is not None
    lines = [line.split() for line in result.stdout.splitlines()]
    for measured in manifest.parity.measured:
        assert measured.nearness is not None
        row = next(row for row in lines if row[:4] == ["cpu", measured.output, str(measured.batch_size), "32x32"])
        assert row[4] == f"{measured.nearness.cosine:.5f}"
        assert len(row) == (8 if measured.output == "logits" else 6)
    found = manifest.accuracy.outputs["logits"]
    assert found.top1 is not None
    assert ["logits", f"{found.cosine_min:.5f}", f"{found.cosine_mean:.5f}", f"{found.top1:.1%}", f"{found.kl_mean:.1e}"] in lines
    found = manifest.accuracy.outputs["embedding"]
    assert ["embedding", f"{found.cosine_min:.5f}", f"{found.cosine_mean:.5f}"] in lines


def test_info_names_kept_layers_pieces_of_tokens_and_photographs(tiny_int8: Path, tmp_path: Path):
    def change(document: Any) -> None:
        document["build"]["token_split"] = [9, 8]
        document["build"]["kept"] = [{"layer": "blocks.0.mlp.fc2", "before": 0.97, "after": 0.99}]
        document["accuracy"]["source"] = "photographs"

    result = run("vit-info", with_manifest(tiny_int8, tmp_path, change))
    assert result.exit_code == 0
    assert " nodes, tokens in pieces of 9, 8\n" in result.stdout
    assert "kept     blocks.0.mlp.fc2 in higher precision" in result.stdout
    assert "accuracy 24 photographs on cpu" in result.stdout


def test_info_of_a_float32_file_names_neither(tiny_model: Path):
    result = run("vit-info", tiny_model)
    assert not re.search(r"^(kept|accuracy) |pieces of|in the graph", result.stdout, re.MULTILINE)


def test_info_shows_the_ops_before_and_after_each_pass(tiny_int8: Path):
    """A column a pass, a dot where it left the number as it was; the last number of each row is what the graph has now."""
    result = run("vit-info", tiny_int8, "--graph")
    assert result.exit_code == 0
    build = read_manifest(tiny_int8)[0].build
    title, header, *rows = result.stdout.splitlines()
    assert title == f"{tiny_int8}, opset 20, target cpu, int8"
    count = len(build["passes"])
    assert header.split() == ["traced", *(str(number) for number in range(1, count + 1))]
    assert rows[-count:] == [f"  {number}  {step['name']}" for number, step in enumerate(build["passes"], start=1)]
    (totals,) = (row.split() for row in rows if row.startswith("  nodes "))
    assert totals == ["nodes", str(sum(build["traced"].values())), *(str(step["nodes_after"]) for step in build["passes"])]
    stages = [build["traced"], *(step["ops"] for step in build["passes"])]
    table_rows = [row.split() for row in rows[: rows.index(next(row for row in rows if row.startswith("  nodes ")))]]
    assert {name for name, *_ in table_rows} == {op for ops in stages for op in ops}
    for name, first, *changes in table_rows:
        now = [int(first)]
        for change in changes:
            now.append(now[-1] if change == "." else int(change))
        assert now == [ops.get(name, 0) for ops in stages], name
    assert [row[1:] for row in table_rows if row[0] == "MatMulInteger"] == [["0", *["."] * (count - 1), "12"]]


def test_info_shows_errors_of_passes_where_they_were_measured(tiny_int8: Path, tmp_path: Path):
    def change(document: Any) -> None:
        document["build"]["passes"][0]["floors"] = 1.234
        document["build"]["passes"][-1]["floors"] = 40

    assert "error, floors" not in run("vit-info", tiny_int8, "--graph").stdout
    result = run("vit-info", with_manifest(tiny_int8, tmp_path, change), "--graph")
    assert re.search(r"^  error, floors +1\.23 +40\.00$", result.stdout, re.MULTILINE)


def test_info_shows_the_graph_of_a_file_whose_passes_were_left_out(tiny_model: Path, tmp_path: Path):
    result = run("vit-info", with_manifest(tiny_model, tmp_path, lambda document: document["build"].update(passes=[])), "--graph")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1].split() == ["traced"]


def test_the_graph_as_data_is_the_whole_manifest_too(tiny_int8: Path):
    assert document_of(run("vit-info", tiny_int8, "--graph", "--json")) == document_of(run("vit-info", tiny_int8, "--json"))


@pytest.mark.parametrize("value", [None, "x", [None], {}], ids=["null", "text", "list", "object"])
def test_info_prints_whatever_a_manifest_says_or_refuses_it(value: object, tiny_int8: Path, tmp_path: Path):
    """Of how the file was made and judged: no entry of another kind is a traceback."""
    build = ["token_split", "calibration", "kept", "traced", "passes"]
    places: list[list[str | int]] = [["build", entry] for entry in build]
    places += [["build", "traced", "Add"], ["build", "kept", 0], ["build", "kept", 0, "layer"], ["build", "kept", 0, "before"]]
    places += [["build", "passes", 0, entry] for entry in ("name", "ops", "floors", "nodes_before")] + [
        ["build", "passes", 0, "ops", "Add"]
    ]
    places += [["accuracy"], ["accuracy", "outputs"], ["accuracy", "source"], ["accuracy", "images"]]
    places += [["accuracy", "outputs", "logits", entry] for entry in ("cosine_min", "cosine_mean", "top1", "kl_mean", "kl_max")]
    places += [["parity", "measured", 0, "nearness"], ["parity", "limits"], ["parity", "measured"]]
    for place in places:

        def change(document: Any, place: list[str | int] = place) -> None:
            document["build"]["kept"] = [{"layer": "blocks.0.mlp.fc2", "before": None, "after": None}]
            *above, last = place
            for key in above:
                document = document[key]
            document[last] = value

        path = with_manifest(tiny_int8, tmp_path, change)
        for more in ((), ("--graph",)):
            assert run("vit-info", path, *more).exit_code in (0, 3), place


def test_info_gives_the_whole_manifest_as_data(tiny_model: Path, tiny_manifest: Manifest):
    document = document_of(run("vit-info", tiny_model, "--json"))
    assert document["manifest"] == tiny_manifest.to_dict()
    assert document["file"]["path"] == str(tiny_model)
    assert document["file"]["size"] == tiny_model.stat().st_size
    assert document["file"]["nodes"] == sum(document["file"]["ops"].values()) == len(onnx.load(tiny_model).graph.node)


# ---- small parts ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "1,", "a", "1.5", "0", "-1", "1,1"])
def test_numbers_that_are_none_are_refused_under_their_option(text: str):
    with pytest.raises(InputError, match=f"got --sizes {text!r}"):
        whole_numbers(text, "--sizes")


def test_numbers_are_split_at_commas():
    assert whole_numbers("8, 1,32", "--sizes") == [8, 1, 32]


def test_numbers_may_be_repeated_where_that_means_something():
    assert whole_numbers("99,99,1", "--pieces", once=False) == [99, 99, 1]
    with pytest.raises(InputError, match=r"got --pieces '99,0', expected numbers of at least 1$"):
        whole_numbers("99,0", "--pieces", once=False)


def test_a_table_is_as_wide_as_its_longest_cells():
    assert table([["a", "bb"], ["ccc", "d"]]) == "  a    bb\n  ccc   d"
