"""The wheel with [cpu] alone: an environment where torch, onnx, onnxsim and the siblings' needs do not exist."""

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from vit_exporter import ExportSpec, digits_source, export

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from digits_data import load_digits  # noqa: E402 - the project's scripts are no package

ABSENT = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxsim", "safetensors", "transformers")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The project's wheel, built from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def edge(wheel, tmp_path_factory):
    """The Python of an environment with the wheel and [cpu], nothing else."""
    folder = tmp_path_factory.mktemp("edge") / "env"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "-c", ROOT / "constraints.txt", f"{wheel}[cpu]")
    return python


@pytest.fixture(scope="module")
def digits_onnx(tmp_path_factory):
    """The trained network, exported."""
    path = tmp_path_factory.mktemp("digits") / "digits.onnx"
    export(digits_source, ExportSpec(path))
    return path


@pytest.fixture(scope="module")
def digit_png(tmp_path_factory):
    """A held-out digit as a file, and its truth."""
    images, labels = load_digits("heldout")
    path = tmp_path_factory.mktemp("digit") / "digit.png"
    Image.fromarray(images[700]).save(path)
    return path, str(labels[700])


def test_the_wheel_holds_three_typed_packages_and_the_weights(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"{package}/py.typed" for package in ("vit_models", "vit_exporter", "vit_runtime")} <= names
    assert {"vit_models/digits.safetensors", "vit_runtime/manifest.schema.json"} <= names
    assert {f"vit_models/checkpoints/{name}" for name in ("imagenet_classes.txt", "timm/archs.json")} <= names
    assert not [name for name in names if name.startswith(("tests/", "scripts/", "examples/"))]


def test_the_heavy_packages_are_not_there(edge):
    found = run(edge, "-c", f"import importlib.util as u; print(*[p for p in {ABSENT} if u.find_spec(p)])")
    assert found.strip() == ""


def test_the_runtime_classifies_a_digit_there(edge, digits_onnx, digit_png):
    script = """
import json, sys
import vit_runtime as vit
model = vit.load(sys.argv[1])
best = model.predict(sys.argv[2]).top(1)[0]
print(json.dumps({"label": best.name, "provider": model.provider, "size": len(model.embed(sys.argv[2]))}))
"""
    path, truth = digit_png
    answer = json.loads(run(edge, "-c", script, digits_onnx, path))
    assert answer["label"] == truth
    assert answer["provider"] == "cpu"


@pytest.mark.parametrize("command", ["vit-predict", "vit-parity", "vit-bench", "vit-info", "vit-doctor", "vit-trt", "vit-export"])
def test_every_command_helps_there(edge, command):
    assert "Example:" in run(edge.parent / command, "--help")


def test_parity_and_prediction_by_command_there(edge, digits_onnx, digit_png):
    path, truth = digit_png
    assert json.loads(run(edge.parent / "vit-parity", digits_onnx, "--json"))["passed"]
    predicted = json.loads(run(edge.parent / "vit-predict", digits_onnx, path, "--json"))
    assert predicted["images"][0]["predictions"][0]["label"] == truth
    assert json.loads(run(edge.parent / "vit-doctor", "--json"))


def test_the_linter_works_there_and_the_compiler_s_extra_is_named(edge, digits_onnx):
    assert json.loads(run(edge.parent / "vit-info", digits_onnx, "--check", "tensorrt", "--json"))["ok"]
    done = subprocess.run([edge.parent / "vit-trt", digits_onnx], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "vit-deploy[rtx]" in done.stderr


def test_export_says_which_extra_it_needs_there(edge, tmp_path):
    done = subprocess.run([edge.parent / "vit-export", "--out", tmp_path / "vit.onnx"], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "vit-deploy[export,cpu]" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_type_checkers_read_the_installed_wheel(edge, checker, tmp_path):
    """Copied away from the tree, so that only the installed package can answer."""
    example = tmp_path / "runtime_api.py"
    example.write_text((ROOT / "tests" / "typing" / "runtime_api.py").read_text())
    assert type_check(checker, edge, example, tmp_path) == 0


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
@pytest.mark.parametrize("example", ["runtime_api.py", "exporter_api.py"])
def test_type_checkers_read_the_editable_install(checker, example, tmp_path):
    copy = tmp_path / example
    copy.write_text((ROOT / "tests" / "typing" / example).read_text())
    assert type_check(checker, Path(sys.executable), copy, tmp_path) == 0


def test_type_checkers_see_a_mistake(tmp_path):
    """The checks above can fail: a label is no number."""
    example = tmp_path / "wrong.py"
    example.write_text("import vit_runtime as vit\nx: int = vit.load('vit.onnx').predict('photo.jpg').top(1)[0].name\n")
    assert type_check("mypy", Path(sys.executable), example, tmp_path) != 0


def type_check(checker, python, file, folder):
    arguments = ["--strict", "--python-executable", python] if checker == "mypy" else ["--pythonpath", python]
    return subprocess.run([sys.executable, "-m", checker, *arguments, file], cwd=folder, capture_output=True, check=False).returncode


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
