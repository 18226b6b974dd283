"""Where OpenVINO is not installed, broken, or takes its process down."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_mentions, failed

import vit_runtime as vit

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed; pip install 'vit-deploy[openvino]'")

INSTALL = 'pip install "vit-deploy[openvino]"'
REINSTALL = 'pip install --force-reinstall "vit-deploy[openvino]"'
FULL = pytest.mark.full
COMMANDS = {"vit-predict": "--provider", "vit-bench": "--provider", "vit-parity": "--providers"}


class Site:
    """A site-packages folder of its own: the runtime and what it needs, without OpenVINO but for what a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for package in ("vit_runtime", "numpy", "numpy.libs", "click", "PIL", "pillow.libs", "onnxruntime"):
            self.link(package)
        for name in ("numpy", "click", "pillow", "onnxruntime"):
            info = folder / f"{name}-{metadata.version(name)}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {metadata.version(name)}\n")
            (info / "top_level.txt").write_text(f"{name}\n")

    def link(self, package: str) -> None:
        folders = [Path(next(iter(vit.__path__))).parent, Path(np.__file__).parents[1], *map(Path, sys.path)]
        source = next((folder / package for folder in folders if (folder / package).is_dir()), None)
        if source is not None:  # not every release of a package has its libraries in a folder beside it
            (self.folder / package).symlink_to(source.resolve())

    def unlink(self, package: str) -> None:
        (self.folder / package).unlink()

    def stub(self, text: str) -> None:
        """An openvino package with this source."""
        (self.folder / "openvino").mkdir()
        (self.folder / "openvino" / "__init__.py").write_text(text)

    def gut(self) -> None:
        """OpenVINO without the library that computes on a CPU."""
        missing = [path.name for path in Path(openvino.__file__).parent.rglob("*openvino_intel_cpu_plugin*")]
        ignored = shutil.ignore_patterns("__pycache__", *missing)
        shutil.copytree(Path(openvino.__file__).parent, self.folder / "openvino", copy_function=os.symlink, ignore=ignored)

    def python(self, code: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
        code = f"import sys; sys.path.append({str(self.folder)!r})\n{code}"
        return subprocess.run(
            [sys.executable, "-I", "-S", "-c", code, *map(str, arguments)], capture_output=True, encoding="utf-8", timeout=120
        )

    def command(self, name: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
        return self.python(f"from vit_runtime.cli.{name.removeprefix('vit-')} import main; main(prog_name={name!r})", *arguments)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site-packages")


# How a test breaks OpenVINO, and what the reason mentions.
BROKEN: dict[str, tuple[Callable[[Site], object], tuple[str, ...]]] = {
    "cannot be imported": (
        lambda site: site.stub("raise ImportError('libtbb.so.12: cannot open shared object file\\nmore')"),
        ("openvino", "libtbb.so.12: cannot open shared object file more"),
    ),
    "lacks a module": (
        lambda site: site.stub("import openvino_of_another_release"),
        ("openvino", "No module named 'openvino_of_another_release'"),
    ),
    "leftovers": (
        lambda site: (site.folder / "openvino" / "libs").mkdir(parents=True),
        ("openvino", "Core"),
    ),
    "no CPU plugin": (Site.gut, ("OpenVINO", 'Device with "CPU" name is not registered in the OpenVINO Runtime')),
}


@pytest.mark.parametrize("command", ["vit-predict", *(pytest.param(name, marks=FULL) for name in ("vit-bench", "vit-parity"))])
def test_without_openvino_the_exit_code_is_4_and_the_extra_is_named(command: str, site: Site, tiny_openvino: Path, photo: Path):
    answer = site.command(command, tiny_openvino, *([photo] if command == "vit-predict" else []), COMMANDS[command], "openvino")
    assert_mentions(failed(answer, 4), "'openvino'", INSTALL)


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_openvino_is_exit_code_4_and_told_with_its_reason_and_remedy(how: str, site: Site, tiny_openvino: Path):
    damage, facts = BROKEN[how]
    damage(site)
    message = failed(site.command("vit-bench", tiny_openvino, "--provider", "openvino"), 4)
    assert_mentions(message, "'openvino'", *facts, REINSTALL)


@pytest.mark.parametrize("how", [*(pytest.param(how, marks=FULL) for how in ("not installed", "no CPU plugin")), "cannot be imported"])
def test_auto_takes_the_cpu_where_openvino_does_not_work_and_says_nothing(how: str, site: Site, tiny_openvino: Path):
    if how in BROKEN:
        BROKEN[how][0](site)
    answer = site.python("import vit_runtime; print(vit_runtime.load(sys.argv[1]).provider)", tiny_openvino)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "cpu\n", "")


def test_openvino_needs_no_onnxruntime(site: Site, tiny_openvino: Path, tiny_model: Path):
    """Nor does auto, for a file that was made for it; for another it says what is missing."""
    site.link("openvino")
    (site.folder / "onnxruntime").unlink()
    shutil.rmtree(next(site.folder.glob("onnxruntime-*.dist-info")))
    load = "import vit_runtime; print(*{vit_runtime.load(sys.argv[1], name).provider for name in sys.argv[2:]})"
    answer = site.python(load, tiny_openvino, "openvino", "auto")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "openvino\n", "")
    answer = site.python(f"try: {load}\nexcept vit_runtime.VitError as error: print(type(error).__name__, error)", tiny_model, "auto")
    assert answer.stdout.startswith("MachineError ")
    assert_mentions(answer.stdout, "onnxruntime", 'pip install "vit-deploy[cpu]"')


def test_to_the_doctor_a_missing_openvino_is_no_failure(site: Site):
    answer = site.command("vit-doctor")
    assert (answer.returncode, answer.stderr) == (0, "")
    (status,) = [line for line in answer.stdout.splitlines() if line.split()[:2] == ["missing", "openvino"]]
    assert "openvino" in status
    (remedy,) = [line for line in answer.stdout.splitlines() if INSTALL in line]
    assert_mentions(remedy, "openvino")


def test_to_the_doctor_a_broken_openvino_is_a_failure_with_its_remedy(site: Site):
    site.gut()
    answer = site.command("vit-doctor", "-q")
    assert (answer.returncode, answer.stdout) == (4, "")
    (line,) = answer.stderr.splitlines()
    assert_mentions(line, "openvino", 'Device with "CPU" name is not registered', REINSTALL)


@pytest.mark.skipif(os.name == "nt", reason="processes end by signals on POSIX only")
def test_an_openvino_that_crashes_takes_only_the_probe_down(site: Site, tiny_openvino: Path):
    site.stub("import os\nprint('a word on stdout', flush=True)\nos.abort()")
    answer = site.python(
        "import dataclasses, json; from vit_runtime import load, providers\n"
        "print(json.dumps([dataclasses.asdict(providers.probe('openvino')), load(sys.argv[1]).provider]))",
        tiny_openvino,
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    answered, chosen = json.loads(answer.stdout)
    assert (answered["status"], chosen) == ("broken", "cpu")
    assert_mentions(answered["reason"], "OpenVINO", "SIGABRT")
    assert_mentions(answered["remedy"], REINSTALL)


def test_an_openvino_that_hangs_is_given_up_and_its_own_remedy_is_named(site: Site):
    """Half a second stands for the two minutes that it gets."""
    site.stub("import time\ntime.sleep(60)")
    answer = site.python(
        "from vit_runtime import providers as p; p.PROBE_TIMEOUT_S = 0.5; found = p.probe('openvino'); print(found.reason, found.remedy)"
    )
    assert_mentions(answer.stdout, "OpenVINO", 0.5, REINSTALL)
