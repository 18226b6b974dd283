"""What vit-doctor tells about this machine, and about installations that are broken: folders written by each test."""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import assert_mentions

import vit_runtime
from vit_runtime.cli.doctor import main
from vit_runtime.doctor import Diagnosis, Finding, diagnose
from vit_runtime.providers import PROVIDERS, Probe
from vit_runtime.threads import cpu_budget


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    return diagnose()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder from which vit-doctor runs, with numpy, click and pillow but no onnxruntime; the tests add to it."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    installed = [Path(next(iter(vit_runtime.__path__))).parent, Path(np.__file__).parents[1]]
    for package in ("vit_runtime", "numpy", "numpy.libs", "click", "PIL"):
        if source := next((path / package for path in installed if (path / package).is_dir()), None):
            (folder / package).symlink_to(source.resolve())
    for package in ("numpy", "click", "pillow"):
        record(folder, package, metadata.version(package))
    return folder


def record(folder: Path, name: str, version: str, top_level: str = "") -> None:
    """The record that pip leaves of a package."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n")
    (info / "top_level.txt").write_text(f"{top_level or name}\n")


def module(folder: Path, name: str, source: str = "Builder = OnnxParser = None") -> None:
    """A package that loads as TensorRT's do."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(f"{source}\n")


def link_onnxruntime(folder: Path) -> None:
    (folder / "onnxruntime").symlink_to(Path(np.__file__).parents[1] / "onnxruntime")


def doctor(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    code = f"import sys; sys.path.append({str(folder)!r}); from vit_runtime.cli.doctor import main; main(prog_name='vit-doctor')"
    return subprocess.run([sys.executable, "-I", "-S", "-c", code, *arguments], capture_output=True, text=True, timeout=120)


def findings(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in document["findings"]}


# --- this machine


def test_the_machine_is_described(diagnosis):
    budget = cpu_budget()
    machine = diagnosis.machine
    assert (machine.logical_cpus, machine.physical_cores, machine.threads) == (budget.logical, budget.physical, budget.cores)
    assert machine.cpu
    assert machine.python.endswith(".".join(map(str, sys.version_info[:3])))


def test_installed_packages_come_with_their_versions(diagnosis):
    found = {item.name: item for item in diagnosis.findings}
    for name in ("numpy", "click", "pillow"):
        assert found[name] == Finding(name, "ok", metadata.version(name))


def test_every_provider_is_probed(diagnosis):
    assert [tried.name for tried in diagnosis.providers] == list(PROVIDERS)
    assert diagnosis.providers[0].works


def test_whatever_is_not_ok_says_what_to_do(diagnosis):
    for item in diagnosis.everything:
        assert (item.status == "ok") == (item.remedy == "")


@pytest.fixture
def recorded_diagnosis(diagnosis: Diagnosis, monkeypatch: pytest.MonkeyPatch) -> Diagnosis:
    """The diagnosis of this machine, which the command prints without making it again."""
    monkeypatch.setattr("vit_runtime.cli.doctor.diagnose", lambda: diagnosis)
    return diagnosis


def test_the_command_agrees_with_the_diagnosis(recorded_diagnosis: Diagnosis):
    answer = CliRunner().invoke(main, [])
    assert answer.exit_code == (0 if recorded_diagnosis.ok else 4)
    assert answer.stderr == ""
    for item in recorded_diagnosis.everything:
        assert re.search(rf"\b{item.status} +{re.escape(item.name)}\b", answer.stdout)


def test_json_is_one_document_and_nothing_else(recorded_diagnosis: Diagnosis):
    answer = CliRunner().invoke(main, ["--json"])
    document = json.loads(answer.stdout)
    assert list(document) == ["ok", "machine", "findings", "providers"]
    assert document == json.loads(json.dumps(recorded_diagnosis.to_dict()))
    assert answer.exit_code == (0 if document["ok"] else 4)
    assert answer.stderr == ""


@pytest.mark.unit
def test_help_has_an_example():
    answer = CliRunner().invoke(main, ["--help"], prog_name="vit-doctor")
    assert answer.exit_code == 0
    assert answer.stdout.count("vit-doctor") >= 2  # in the usage line and in the example


# --- what counts as failure


def test_what_is_missing_is_no_failure_but_the_cpu_provider(diagnosis):
    missing, works = Finding("torch", "missing", "not installed", "install it"), Probe("cpu", "ok", "", "")
    assert Diagnosis(diagnosis.machine, (missing,), (works, Probe("cuda", "missing", "no GPU", "buy one"))).ok
    assert not Diagnosis(diagnosis.machine, (), (Probe("cpu", "missing", "no onnxruntime", "install it"),)).ok


def test_anything_broken_is_a_failure(diagnosis):
    works = Probe("cpu", "ok", "", "")
    assert not Diagnosis(diagnosis.machine, (), (works, Probe("cuda", "broken", "crashes", "reinstall"))).ok
    assert not Diagnosis(diagnosis.machine, (Finding("onnxruntime", "broken", "twice", "reinstall"),), (works,)).ok


# --- other installations


def test_with_onnxruntime_alone_all_is_well_and_the_extras_for_the_rest_are_named(site):
    link_onnxruntime(site)
    record(site, "onnxruntime", "1.32.0", "onnxruntime")
    answer = doctor(site)
    assert (answer.returncode, answer.stderr) == (0, "")
    extras = {
        "export": ("torch", "onnx", "onnx-ir", "onnxscript", "onnxsim", "safetensors", "ml-dtypes"),
        "quantize": ("nncf",),
        "tensorrt": ("tensorrt",),
        "rtx": ("tensorrt-rtx",),
    }
    for extra, names in extras.items():
        command = f'pip install "vit-deploy[{extra}]"'
        (line,) = (line for line in answer.stdout.splitlines() if command in line)
        assert_mentions(line, *names, command)
    assert doctor(site, "-q").stdout == ""


def test_without_onnxruntime_the_exit_code_is_4_and_the_extra_is_named(site):
    answer = doctor(site, "--json", "-q")
    assert answer.returncode == 4
    document = json.loads(answer.stdout)
    assert not document["ok"]
    assert findings(document)["onnxruntime"]["status"] == "missing"
    for tried in document["providers"]:
        if tried["name"] != "openvino":
            assert_mentions(tried["reason"], "onnxruntime")
    assert answer.stderr.count("\n") == 1
    assert_mentions(answer.stderr, "cpu", "onnxruntime", 'pip install "vit-deploy[cpu]"', '"vit-deploy[gpu]"')


def test_two_onnxruntime_wheels_are_broken_and_the_remedy_is_told_once(site):
    link_onnxruntime(site)
    record(site, "onnxruntime", "1.32.0", "onnxruntime")
    record(site, "onnxruntime_gpu", "1.31.1", "onnxruntime")
    answer = doctor(site)
    assert (answer.returncode, answer.stderr) == (4, "")
    assert answer.stdout.count("pip uninstall -y onnxruntime onnxruntime-gpu && pip install") == 1


def test_a_gutted_onnxruntime_is_broken(site):
    (site / "onnxruntime").mkdir()
    record(site, "onnxruntime", "1.32.0", "onnxruntime")
    answer = doctor(site, "--json")
    assert answer.returncode == 4
    found = findings(json.loads(answer.stdout))["onnxruntime"]
    assert found["status"] == "broken"
    assert_mentions(found["remedy"], "pip uninstall -y onnxruntime && pip install")


def test_tensorrt_11_beside_onnxruntime_gpu_is_a_conflict(site):
    link_onnxruntime(site)
    record(site, "onnxruntime_gpu", "1.31.1", "onnxruntime")
    record(site, "tensorrt", "11.1.0.106")
    module(site, "tensorrt")
    answer = doctor(site, "--json")
    assert answer.returncode == 4
    found = findings(json.loads(answer.stdout))["tensorrt"]
    assert found["status"] == "broken"
    assert_mentions(found["detail"], "11.1.0.106", "onnxruntime-gpu", "TensorRT 10")
    assert_mentions(found["remedy"], 'pip uninstall -y tensorrt && pip install "tensorrt-cu13>=10.13.2,<11"')


@pytest.mark.parametrize(
    ("source", "fact"),
    [
        ("import ctypes; ctypes.CDLL('libnvinfer.so.99')", "libnvinfer.so.99: cannot open shared object file: No such file or directory"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        pytest.param("", "has no attribute 'Builder'", marks=pytest.mark.full),
    ],
    ids=["a library is missing", "it crashes", "only a folder is left"],
)
def test_a_compiler_that_does_not_load_is_broken(source: str, fact: str, site: Path):
    link_onnxruntime(site)
    record(site, "onnxruntime", "1.32.0", "onnxruntime")
    record(site, "tensorrt_rtx", "1.7.1.116")
    module(site, "tensorrt_rtx", source)
    answer = doctor(site, "--json")
    assert (answer.returncode, answer.stderr) == (4, "")
    found = findings(json.loads(answer.stdout))["tensorrt-rtx"]
    assert found["status"] == "broken"
    assert_mentions(found["detail"], fact)
    assert_mentions(found["remedy"], 'pip uninstall -y tensorrt-rtx && pip install "vit-deploy[rtx]"')


def test_a_compiler_that_loads_is_ok_with_its_version(diagnosis):
    found = {item.name: item for item in diagnosis.findings}
    assert found["tensorrt-rtx"] == Finding("tensorrt-rtx", "ok", metadata.version("tensorrt-rtx"))


def test_a_missing_base_package_is_broken_and_tensorrt_11_beside_the_cpu_wheel_is_not(site):
    link_onnxruntime(site)
    record(site, "onnxruntime", "1.32.0", "onnxruntime")
    record(site, "tensorrt", "11.1.0.106")
    module(site, "tensorrt")
    for file in (info := next(site.glob("pillow-*.dist-info"))).iterdir():
        file.unlink()
    info.rmdir()
    answer = doctor(site, "--json")
    assert answer.returncode == 4
    found = {name: finding["status"] for name, finding in findings(json.loads(answer.stdout)).items()}
    assert (found["pillow"], found["tensorrt"]) == ("broken", "ok")
