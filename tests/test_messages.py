"""The wording of every command: its help, and what it prints for the most common mistakes.

Whole sentences are checked here and nowhere else. `pytest tests/test_messages.py --write-snapshots` writes the files of
`tests/snapshots` again; read the difference before you commit it. The exit codes are checked by the tests of each command as well.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from export_cache import ExportCache
from networks import TINY, make_source
from PIL import Image

from vit_exporter import cli as export
from vit_exporter import inspect
from vit_runtime.cli import bench, cache, doctor, info, parity, predict, trt

SNAPSHOTS = Path(__file__).parent / "snapshots"
COMMANDS: dict[str, click.Command] = {
    "vit-export": export.main,
    "vit-inspect": inspect.main,
    "vit-predict": predict.main,
    "vit-parity": parity.main,
    "vit-bench": bench.main,
    "vit-info": info.main,
    "vit-doctor": doctor.main,
    "vit-cache": cache.main,
    "vit-trt": trt.main,
}
# tiny.onnx is a file of ours, plain.onnx the same without a golden record, other.onnx another network, broken.onnx the first half of
# tiny.onnx, notes.txt no model and no image, empty a folder.
LINES: dict[str, Sequence[str]] = {
    "vit-export": (
        "--help",
        "",
        "--out vit.txt",
        "--out tiny.onnx",
        "--out missing/vit.onnx",
        "--out vit.onnx --arch ViT-Q/16",
        "--out vit.onnx --checkpoint missing.safetensors",
        "--out vit.onnx --checkpoint notes.txt",
        "--out vit.onnx --sha256 00",
        "--out vit.onnx --img-size 100",
        "--out vit.onnx --img-size big",
        "--out vit.onnx --arch digits --outputs logits,heat",
        "--out vit.onnx --labels missing.txt",
        "--out vit.onnx --target tpu",
        "--out vit.onnx --target cpu --precision bf16",
        "--out vit.onnx --opset 11",
        "--out vit.onnx --precision int8 --no-simplify",
        "--out vit.onnx --calibrate empty",
        "--out vit.onnx --arch digits --target cpu --precision int8 --calibrate empty",
        "--out vit.onnx --max-drop 2 --precision int8",
        "--out vit.onnx --keep head",
        "--out vit.onnx --batch-sizes 1,8",
        "--out vit.onnx --arch digits --target openvino --token-split 9,8 --dynamic-size",
    ),
    "vit-inspect": ("--help", "", "missing.safetensors", "notes.txt", "empty", "broken.onnx"),
    "vit-predict": (
        "--help",
        "",
        "tiny.onnx",
        "missing.onnx photo.png",
        "broken.onnx photo.png",
        "notes.txt photo.png",
        "tiny.onnx missing.png",
        "tiny.onnx notes.txt",
        "tiny.onnx empty",
        "tiny.onnx photo.png --provider tpu",
        "tiny.onnx photo.png --threads 0",
        "tiny.onnx photo.png --cuda-graph",
        "tiny.onnx photo.png --csv missing/out.csv",
    ),
    "vit-parity": (
        "--help",
        "",
        "missing.onnx",
        "broken.onnx",
        "plain.onnx",
        "tiny.onnx other.onnx",
        "tiny.onnx --providers tpu",
        "tiny.onnx --batch-sizes 0",
        "tiny.onnx --max-floors 2",
        "tiny.onnx --images missing.png",
        "tiny.onnx --checkpoint notes.txt",
        "tiny.onnx --baseline notes.txt",
        "tiny.onnx --junit missing/parity.xml",
    ),
    "vit-bench": ("--help", "", "missing.onnx", "tiny.onnx --batch-sizes 1,x", "tiny.onnx --provider tpu", "tiny.onnx --threads 0"),
    "vit-info": ("--help", "", "missing.onnx", "broken.onnx", "notes.txt", "tiny.onnx --check coreml"),
    "vit-doctor": ("--help", "now"),
    "vit-cache": ("--help", "list --help", "prune --help", "warm --help", "clean", "list --cache-dir missing", "warm missing.onnx"),
    "vit-trt": (
        "--help",
        "",
        "missing.onnx",
        "tiny.onnx --batch 8,1,32",
        "tiny.onnx --batch 1",
        "tiny.onnx --sm 10",
        "tiny.onnx --out missing/vit.engine",
    ),
}


@pytest.fixture(scope="module")
def folder(exports: ExportCache, tiny_model: Path, tiny_unverified: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the command lines name."""
    folder = tmp_path_factory.mktemp("messages")
    shutil.copy(tiny_model, folder / "tiny.onnx")
    shutil.copy(tiny_unverified, folder / "plain.onnx")
    shutil.copy(exports.export(make_source(replace(TINY, num_classes=5), labels=None), "other.onnx").out, folder / "other.onnx")
    (folder / "broken.onnx").write_bytes(tiny_model.read_bytes()[: tiny_model.stat().st_size // 2])
    (folder / "notes.txt").write_text("no model\n")
    (folder / "empty").mkdir()
    Image.new("RGB", (40, 30)).save(folder / "photo.png")
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_the_wording_is_as_in_the_snapshot(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("VIT_DEPLOY_CACHE", str(folder / "cache"))
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    parts = []
    for line in LINES[command]:
        result = CliRunner().invoke(COMMANDS[command], line.split(), prog_name=command, terminal_width=100)
        assert result.exception is None or isinstance(result.exception, SystemExit), (line, result.exception)
        parts.append(f"$ {command} {line}".rstrip() + f"\n{result.output}[exit code {result.exit_code}]\n")
    text = "\n".join(parts).replace(str(folder), "FOLDER")
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    snapshot = SNAPSHOTS / f"{command}.txt"
    if pytestconfig.getoption("--write-snapshots"):
        snapshot.parent.mkdir(exist_ok=True)
        snapshot.write_text(text, encoding="utf-8")
    assert text == snapshot.read_text(encoding="utf-8")
