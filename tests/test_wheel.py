"""The wheel with [cpu] only: an environment where torch, onnx, onnxsim and the needs of the other two packages do not exist."""

import json
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from digits_data import load_digits
from export_cache import ExportCache
from filelock import FileLock
from helpers import assert_mentions
from PIL import Image

from vit_exporter import digits_source

ROOT = Path(__file__).parent.parent
ABSENT = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxsim", "safetensors", "transformers")
COMMANDS = ("vit-predict", "vit-parity", "vit-bench", "vit-info", "vit-doctor", "vit-trt", "vit-export")
WRONG = "import vit_runtime as vit\nx: int = vit.load('vit.onnx').predict('photo.jpg').top(1)[0].name\n"  # a label is no number


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this run use."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def wheel(shared_folder: Path) -> Path:
    """The project's wheel, built from this tree."""
    folder = shared_folder / "wheel"
    with FileLock(shared_folder / "wheel.lock"):
        if not folder.exists():
            run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def edge(wheel: Path, shared_folder: Path) -> Path:
    """The Python of an environment that has the wheel with [cpu] and nothing else."""
    folder = shared_folder / "edge"
    python = folder / "bin" / "python"
    with FileLock(shared_folder / "edge.lock"):
        if not folder.exists():
            venv.create(folder)
            pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
            run(*pip, "install", "--quiet", "--no-compile", "-c", ROOT / "constraints.txt", f"{wheel}[cpu]")
    return python


@pytest.fixture(scope="module")
def digits_onnx(exports: ExportCache) -> Path:
    """The file that the trained network is exported to."""
    return exports.export(digits_source(), "digits.onnx").out


@pytest.fixture(scope="module")
def digit_png(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A held-out digit as a file, and its label."""
    images, labels = load_digits("heldout")
    path = tmp_path_factory.mktemp("digit") / "digit.png"
    Image.fromarray(images[700]).save(path)
    return path, str(labels[700])


def test_the_wheel_holds_three_typed_packages_and_the_weights(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"{package}/py.typed" for package in ("vit_models", "vit_exporter", "vit_runtime")} <= names
    assert {"vit_models/digits.safetensors", "vit_runtime/manifest.schema.json"} <= names
    assert {f"vit_models/checkpoints/{name}" for name in ("imagenet_classes.txt", "timm/archs.json")} <= names
    assert not [name for name in names if name.startswith(("tests/", "scripts/", "examples/"))]


def test_the_source_distribution_contains_everything_that_the_tests_read(tmp_path: Path):
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, ROOT)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        contained = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"Makefile", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "action.yml", "constraints.txt", "pyproject.toml"}
    for folder in ("models", "exporter", "runtime", "tests", "scripts", "benchmarks", "examples", "docs", ".github"):
        files = [path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file()]
        assert files
        wanted |= {path.as_posix() for path in files if not {"__pycache__", ".ruff_cache"} & {*path.parts}}
    assert wanted - contained == set()


def test_the_heavy_packages_are_not_there(edge: Path):
    found = run(edge, "-c", f"import importlib.util as u; print(*[p for p in {ABSENT} if u.find_spec(p)])")
    assert found.strip() == ""


def test_the_runtime_classifies_a_digit_there(edge: Path, digits_onnx: Path, digit_png: tuple[Path, str]):
    script = """
import json, sys
import vit_runtime as vit
model = vit.load(sys.argv[1])
best = model.predict(sys.argv[2]).top(1)[0]
print(json.dumps({"label": best.name, "provider": model.provider, "size": len(model.embed(sys.argv[2]))}))
"""
    path, label = digit_png
    answer = json.loads(run(edge, "-c", script, digits_onnx, path))
    assert answer["label"] == label
    assert answer["provider"] == "cpu"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps_there(edge: Path, command: str):
    assert_mentions(run(edge.parent / command, "--help"), command)


def test_parity_and_prediction_by_command_there(edge: Path, digits_onnx: Path, digit_png: tuple[Path, str]):
    path, label = digit_png
    assert json.loads(run(edge.parent / "vit-parity", digits_onnx, "--json"))["passed"]
    predicted = json.loads(run(edge.parent / "vit-predict", digits_onnx, path, "--json"))
    assert predicted["images"][0]["predictions"][0]["label"] == label
    assert json.loads(run(edge.parent / "vit-doctor", "--json"))


def test_the_linter_works_there_and_the_compiler_s_extra_is_named(edge: Path, digits_onnx: Path):
    assert json.loads(run(edge.parent / "vit-info", digits_onnx, "--check", "tensorrt", "--json"))["ok"]
    result = subprocess.run([edge.parent / "vit-trt", digits_onnx], capture_output=True, text=True, check=False)
    assert result.returncode == 4
    assert_mentions(result.stderr, "vit-deploy[rtx]")


def test_export_says_which_extra_it_needs_there(edge: Path, tmp_path: Path):
    result = subprocess.run([edge.parent / "vit-export", "--out", tmp_path / "vit.onnx"], capture_output=True, text=True, check=False)
    assert result.returncode == 4
    assert_mentions(result.stderr, "vit-deploy[export,cpu]")
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("checker", ["mypy", pytest.param("pyright", marks=pytest.mark.full)])
def test_type_checkers_read_the_installed_wheel(edge: Path, checker: str, tmp_path: Path):
    """The examples are copied out of the tree, so that only the installed package can answer."""
    assert files_with_errors(checker, edge, tmp_path, "runtime_api.py") == {"wrong.py"}


@pytest.mark.parametrize("checker", [pytest.param("mypy", marks=pytest.mark.full), "pyright"])
def test_type_checkers_read_the_editable_install(checker: str, tmp_path: Path):
    assert files_with_errors(checker, Path(sys.executable), tmp_path, "runtime_api.py", "exporter_api.py") == {"wrong.py"}


def files_with_errors(checker: str, python: Path, folder: Path, *examples: str) -> set[str]:
    """Which of the examples, and of a file with a mistake, the type checker reports."""
    for name in examples:
        (folder / name).write_text((ROOT / "tests" / "typing" / name).read_text())
    (folder / "wrong.py").write_text(WRONG)
    arguments: list[str | Path] = ["--strict", "--python-executable", python] if checker == "mypy" else ["--pythonpath", python]
    command = [sys.executable, "-m", checker, *arguments, *examples, "wrong.py"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stdout + result.stderr
    return set(re.findall(r"(\w+\.py):\d+:[\d: -]*error", result.stdout))


def run(*command: str | Path) -> str:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
