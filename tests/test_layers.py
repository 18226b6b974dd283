"""Dependence runs one way: exporter -> models, exporter -> runtime; runtime and models know neither each other nor exporter."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "runtime": {"torch", "onnx", "onnx_ir", "onnxscript", "onnxsim", "safetensors", "vit_models", "vit_exporter"},
    "models": {"onnx", "onnx_ir", "onnxruntime", "vit_runtime", "vit_exporter"},
}


@pytest.mark.unit
@pytest.mark.parametrize("folder", FORBIDDEN)
def test_no_module_imports_what_its_layer_must_not(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    wrong = [f"{file.name}: {name}" for file in files for name in imported(file) if name.split(".")[0] in FORBIDDEN[folder]]
    assert not wrong


@pytest.mark.parametrize(("folder", "line"), [("runtime/vit_runtime", "import torch"), ("models/vit_models", "import vit_runtime")])
def test_the_linter_refuses_a_forbidden_import(folder, line):
    """The linter is given the place where the file would be."""
    check = [sys.executable, "-m", "ruff", "check", "--select", "TID251", "--stdin-filename", f"{folder}/made_up.py", "-"]
    done = subprocess.run(check, input=f"{line}\n", text=True, capture_output=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert "TID251" in done.stdout


def test_importing_the_runtime_loads_no_heavy_package():
    script = "import sys, vit_runtime; print(*sorted({'click', 'PIL', 'onnxruntime', 'torch', 'onnx'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], text=True, capture_output=True, check=True).stdout.strip() == ""


@pytest.mark.unit
def test_the_public_names_are_these():
    """A name that users import is added or removed on purpose, here and in the changelog."""
    import vit_exporter
    import vit_models
    import vit_runtime

    assert vit_runtime.__all__ == [
        "FileError", "ImageError", "InputError", "Label", "MachineError", "Manifest", "Model", "ModelError", "Prediction", "ProviderError",
        "Report", "SessionError", "VitError", "check_record", "compare", "load", "read_manifest",
    ]  # fmt: skip
    assert vit_exporter.__all__ == [
        "Changes", "ExportReport", "ExportSpec", "Source", "TritonRepository", "VerificationError", "checkpoint_source", "digits_source",
        "export", "random_source", "write_triton",
    ]  # fmt: skip
    assert vit_models.__all__ == [
        "ARCHS", "DEFAULT_ARCH", "DIGITS", "OUTPUT_NAMES", "CheckpointError", "ConfigError", "ModelError", "OptionError", "Options",
        "Pool", "Rope", "Spec", "UnknownArchError", "ViT", "ViTConfig", "arch_names", "check_outputs", "digits_checkpoint",
        "find_arch", "formats", "init_weights", "inspect", "load", "save_checkpoint",
    ]  # fmt: skip


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names
