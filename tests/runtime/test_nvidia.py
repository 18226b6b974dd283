"""What is told of a machine whose NVIDIA driver, GPUs, libraries or wheels are not as they should be: one line for each.

The driver is a stand-in, written in C against the interface of the real one, and the libraries are files of the real ones' names.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_mentions

import vit_runtime
from vit_runtime import nvidia
from vit_runtime.onnx_file import read_onnx
from vit_runtime.tensorrt.context import Held, write_context

COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = pytest.mark.skipif(
    COMPILER is None or sys.platform != "linux", reason="without a C compiler on Linux there is no stand-in of the driver"
)

DRIVER = r"""
#include <stdlib.h>
#include <string.h>
static int setting(const char *name, int otherwise) { const char *text = getenv(name); return text ? atoi(text) : otherwise; }
int cuInit(unsigned flags) { return setting("FAKE_INIT", 0); }
int cuDeviceGetCount(int *count) { *count = setting("FAKE_GPUS", 1); return 0; }
int cuDriverGetVersion(int *version) { *version = setting("FAKE_CUDA", 13000); return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Stand-in", length); return 0; }
int cuDeviceGetPCIBusId(char *text, int length, int device) { strncpy(text, device ? "0000:B3:00.0" : "0000:65:00.0", length); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)8 << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  int capability = setting("FAKE_CAPABILITY", 89);
  *value = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : 0;
  return 0;
}
int getInferLibVersion(void) { return 101401; }
"""
CUDA = ("libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudnn.so.9")
TENSORRT = ("libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10")
ONNXRUNTIME = """
__version__, cuda_version = "1.31.1", "13.0"
class InferenceSession:
    get_provider_graph_assignment_info = None
def get_available_providers():
    return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
"""
NO_DRIVER = ("NVIDIA driver", "libcuda.so.1: cannot open shared object file", "nvidia-smi")
ASK = """
import json, os, sys
from vit_runtime.errors import MachineError
from vit_runtime.providers import require
answers, before = [], dict(os.environ)
for name, device, environment in json.loads(sys.argv[1]):
    os.environ.update(environment)
    try:
        require(name, device)
        answers.append("")
    except MachineError as error:
        answers.append(f"{type(error).__name__} {error.exit_code} {error}")
    for name in environment:
        os.environ.pop(name) if name not in before else os.environ.update({name: before[name]})
print(json.dumps(answers))
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(DRIVER)
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-o", folder / "driver.so", folder / "driver.c"], check=True)
    return folder / "driver.so"


class Machine:
    """Folders with the libraries and the packages of a machine on which all is as it should be, for tests to spoil."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.libraries, self.site = folder / "lib", folder / "site-packages"
        self.libraries.mkdir()
        for name in ("libcuda.so.1", *CUDA, *TENSORRT):
            shutil.copy(library, self.libraries / name)
        (self.site / "onnxruntime").mkdir(parents=True)
        (self.site / "onnxruntime" / "__init__.py").write_text(ONNXRUNTIME)
        for package, home in (("vit_runtime", next(iter(vit_runtime.__path__))), ("numpy", Path(np.__file__).parent)):
            (self.site / package).symlink_to(Path(home).resolve())
        libs = Path(np.__file__).parents[1] / "numpy.libs"
        if libs.is_dir():
            (self.site / "numpy.libs").symlink_to(libs)
        self.wheel("onnxruntime-gpu", "1.31.1", "onnxruntime")

    def wheel(self, name: str, version: str, top_level: str = "nvidia") -> None:
        """The record that pip leaves."""
        info = self.site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "top_level.txt").write_text(f"{top_level}\n")

    def python(self, code: str, *arguments: str, **environment: str) -> str:
        code = f"import sys; sys.path.append({str(self.site)!r})\n{code}"
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("CUDA", "LD_"))}
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", code, *arguments],
            env={**clean, "LD_LIBRARY_PATH": str(self.libraries), **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.rstrip("\n")

    def refusal(self, provider: str = "cuda", device_id: int = 0, **environment: str) -> str:
        """The one line that the provider is refused with, which names it; "" where nothing is in its way."""
        return self.refusals([environment], provider, device_id)[0]

    def refusals(self, environments: Sequence[Mapping[str, str]], provider: str = "cuda", device_id: int = 0) -> list[str]:
        """The same for several environments, one after the other in a single process."""
        queries = [(provider, device_id, environment) for environment in environments]
        answers: list[str] = json.loads(self.python(ASK, json.dumps(queries)))
        for answer in filter(None, answers):
            assert "\n" not in answer
            assert answer.startswith("ProviderError 4 ")
            assert_mentions(answer, repr(provider))
        return [answer.removeprefix("ProviderError 4 ") for answer in answers]


@pytest.fixture
def machine(tmp_path: Path, library: Path) -> Machine:
    return Machine(tmp_path, library)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_where_all_is_there_nothing_is_in_the_way(machine: Machine, provider: str):
    assert machine.refusal(provider) == ""


def test_the_driver_tells_its_gpus(machine: Machine):
    code = "from vit_runtime.nvidia import find_driver\nfound = find_driver(); print(found.cuda); print(*found.gpus, sep='\\n')"
    gpu = "Stand-in, compute capability 8.9, 8192 MiB"
    assert machine.python(code, FAKE_GPUS="2").split("\n") == ["(13, 0)", f"0: {gpu}", f"1: {gpu}"]


def test_the_version_of_tensorrt_is_the_librarys_own(machine: Machine):
    assert machine.python("from vit_runtime.nvidia import tensorrt_version; print(tensorrt_version())") == "10.14.1"
    (machine.libraries / "libnvinfer.so.10").unlink()
    assert machine.python("from vit_runtime.nvidia import tensorrt_version; print(repr(tensorrt_version()))") == "''"


# --- the doctor

DOCTOR = "from vit_runtime.doctor import _nvidia; found = _nvidia(False); print(found.status, found.detail, found.remedy, sep='; ')"


def test_the_doctor_names_driver_and_gpus(machine: Machine):
    line = machine.python(DOCTOR, FAKE_GPUS="2", CUDA_VISIBLE_DEVICES="0,1")
    assert line.startswith("ok; ")
    gpus = (f"{number}: Stand-in, compute capability 8.9, 8192 MiB" for number in range(2))
    assert_mentions(line, "CUDA 13.0", *gpus, "CUDA_VISIBLE_DEVICES='0,1'")


def test_a_driver_that_does_not_start_is_broken_where_the_wheel_is_for_gpus(machine: Machine):
    line = machine.python(DOCTOR, FAKE_INIT="803")
    assert line.startswith("broken; ")
    assert_mentions(line, "libcuda.so.1", "kernel module", "reboot", "CPU")
    shutil.rmtree(next(machine.site.glob("onnxruntime_gpu-*")))
    machine.wheel("onnxruntime", "1.32.0", "onnxruntime")
    assert machine.python(DOCTOR, FAKE_INIT="803") == line.replace("broken; ", "missing; ", 1)


# --- the driver


def test_without_a_driver_the_line_says_so(machine: Machine):
    (machine.libraries / "libcuda.so.1").unlink()
    assert_mentions(machine.refusal(), *NO_DRIVER)


CODES = {  # what cuInit returns: facts of the message
    34: ("libcuda.so.1", "stub", "LD_LIBRARY_PATH"),
    803: ("libcuda.so.1", "kernel module", "reboot"),
    802: ("cuInit: system not ready", "nvidia-fabricmanager"),
    804: ("forward-compatibility", "compat", "LD_LIBRARY_PATH"),
    3: ("cuInit: 3", "nvidia-smi"),
    999: ("cuInit: unknown error", "dmesg", "NVRM"),
    100: ("GPU", "nvidia-smi", "--gpus all"),
}


def test_a_driver_that_does_not_start_says_why(machine: Machine):
    messages = machine.refusals([{"FAKE_INIT": str(code)} for code in CODES])
    for message, facts in zip(messages, CODES.values(), strict=True):
        assert_mentions(message, *facts)


def test_a_driver_too_old_for_this_cuda_is_named_with_both_releases(machine: Machine):
    assert_mentions(machine.refusal(FAKE_CUDA="12080"), "CUDA 12.8", "onnxruntime 1.31.1", "CUDA 13", "update")


def test_a_variable_that_hides_all_gpus_is_named(machine: Machine):
    environments = [
        {"CUDA_VISIBLE_DEVICES": hidden, **answer} for hidden in ("", "-1", "7") for answer in ({"FAKE_INIT": "100"}, {"FAKE_GPUS": "0"})
    ]
    for environment, message in zip(environments, machine.refusals(environments), strict=True):
        assert_mentions(message, f"CUDA_VISIBLE_DEVICES={environment['CUDA_VISIBLE_DEVICES']!r}", "unset")


# --- the GPU


def test_a_gpu_that_is_not_there_is_answered_with_those_that_are(machine: Machine):
    assert_mentions(machine.refusal(device_id=2), "device_id 2", "0: Stand-in, compute capability 8.9, 8192 MiB")
    assert machine.refusal(device_id=1, FAKE_GPUS="2") == ""


def test_a_gpu_older_than_the_kernels_is_told_before_they_fail_on_it(machine: Machine):
    older, oldest = machine.refusals([{"FAKE_CAPABILITY": "61"}, {"FAKE_CAPABILITY": "75"}])
    assert_mentions(older, "GPU 0", "Stand-in", "compute capability 6.1", "onnxruntime 1.31.1", 7.5)
    assert oldest == ""


# --- libraries


def test_missing_libraries_are_named_with_the_extra_that_brings_them(machine: Machine):
    for name in ("libcublas.so.13", "libcudnn.so.9"):
        (machine.libraries / name).unlink()
    message = machine.refusal()
    assert_mentions(message, "CUDA", "libcublas.so.13", "libcudnn.so.9", 'pip install "vit-deploy[gpu]"')
    assert "libcudart" not in message  # which is there


def test_wheels_of_another_cuda_explain_what_is_missing(machine: Machine):
    (machine.libraries / "libcublas.so.13").unlink()
    machine.wheel("nvidia-cublas-cu12", "12.8.4.1")
    assert_mentions(machine.refusal(), "libcublas.so.13", "nvidia-cublas-cu12", "CUDA 13", "pip install")


@pytest.mark.parametrize("content", [b"", pytest.param(b"\x7fELF", marks=pytest.mark.full), b"no library at all, " * 99])
def test_a_library_that_does_not_load_is_broken_and_not_missing(machine: Machine, content: bytes):
    (machine.libraries / "libcublas.so.13").write_bytes(content)
    assert_mentions(machine.refusal(), "CUDA", "libcublas.so.13", 'pip install --force-reinstall "vit-deploy[gpu]"')


def test_a_library_in_a_wheel_comes_before_the_systems(machine: Machine):
    shutil.move(machine.libraries / "libcudnn.so.9", machine.libraries / "elsewhere")
    (machine.site / "nvidia" / "cudnn" / "lib").mkdir(parents=True)
    shutil.move(machine.libraries / "elsewhere", machine.site / "nvidia" / "cudnn" / "lib" / "libcudnn.so.9")
    assert machine.refusal() == ""


def test_without_tensorrt_only_tensorrt_is_refused(machine: Machine):
    for name in TENSORRT:
        (machine.libraries / name).unlink()
    assert machine.refusal("cuda") == ""
    assert_mentions(machine.refusal("tensorrt"), "TensorRT 10", *TENSORRT, f'pip install "{nvidia.TENSORRT_WHEEL}"')


def test_several_obstacles_are_one_line(machine: Machine):
    (machine.libraries / "libcuda.so.1").unlink()
    (machine.libraries / "libcublas.so.13").unlink()
    assert_mentions(machine.refusal(), *NO_DRIVER, "libcublas.so.13", 'pip install "vit-deploy[gpu]"')


# --- wheels


def test_cudnn_for_two_cudas_at_once_is_a_conflict_with_the_command_that_ends_it(machine: Machine):
    machine.wheel("nvidia-cudnn-cu12", "9.10.2.21")
    machine.wheel("nvidia-cudnn-cu13", "9.28.1.4")
    command = "pip uninstall -y nvidia-cudnn-cu12 nvidia-cudnn-cu13 && pip install nvidia-cudnn-cu13"
    wheels = ("nvidia-cudnn-cu12 9.10.2.21", "nvidia-cudnn-cu13 9.28.1.4")
    assert_mentions(machine.refusal(), *wheels, "onnxruntime-gpu", "CUDA 13", command)


def test_cudnn_for_another_cuda_alone_is_refused_though_its_library_has_the_right_name(machine: Machine):
    machine.wheel("nvidia-cudnn-cu12", "9.10.2.21")
    command = "pip uninstall -y nvidia-cudnn-cu12 && pip install nvidia-cudnn-cu13"
    assert_mentions(machine.refusal(), "nvidia-cudnn-cu12 9.10.2.21", "onnxruntime-gpu", "CUDA 13", command)


def test_tensorrt_for_another_cuda_is_no_matter_of_cudas(machine: Machine):
    machine.wheel("tensorrt-cu12", "10.9.0.34", "tensorrt")
    assert machine.refusal("cuda") == ""
    assert_mentions(machine.refusal("tensorrt"), "tensorrt-cu12 10.9.0.34", "CUDA 13")


def test_of_tensorrts_wheels_those_with_the_libraries_go_too(machine: Machine):
    """The wheel that is asked for brings them, and pip leaves them when it goes."""
    for name in ("tensorrt-cu12", "tensorrt-cu12-bindings", "tensorrt-cu12-libs", "tensorrt-cu13"):
        machine.wheel(name, "10.9.0.34")
    command = "pip uninstall -y tensorrt-cu12 tensorrt-cu12-bindings tensorrt-cu12-libs tensorrt-cu13 && pip install"
    assert_mentions(machine.refusal("tensorrt"), "tensorrt-cu12 10.9.0.34", "tensorrt-cu13 10.9.0.34", command)
    for name in ("tensorrt-cu12", "tensorrt-cu12-bindings"):
        shutil.rmtree(machine.site / f"{name.replace('-', '_')}-10.9.0.34.dist-info")
    assert_mentions(machine.refusal("tensorrt"), "tensorrt-cu12-libs")


def test_the_right_wheels_and_cudas_own_of_two_releases_get_along(machine: Machine):
    for name, version in (("nvidia-cudnn-cu13", "9.28.1.4"), ("nvidia-cublas", "13.10.0"), ("nvidia-cublas-cu12", "12.8.4.1")):
        machine.wheel(name, version)
    assert machine.refusal() == ""


# --- TensorRT RTX, a plug-in of onnxruntime

PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
RTX = "onnxruntime-ep-nv-tensorrt-rtx-cu13"
TAKES_PLUGINS = """
import ctypes, os
from types import SimpleNamespace
__version__ = "1.32.0"
class SessionOptions:
    add_provider_for_devices = None
class InferenceSession:
    get_provider_graph_assignment_info = None
calls, registered = [], []
def register_execution_provider_library(name, path):
    calls.append(name)
    if name in registered:
        raise RuntimeError(f"library is already registered under {name}")
    ctypes.CDLL(path)
    registered.append(name)
def get_ep_devices():
    places = os.environ.get("FAKE_LISTED", "0000:65:00.0").split(",")
    gpus = [SimpleNamespace(metadata={"pci_bus_id": place}) for place in places] + [SimpleNamespace(metadata={})]
    return [SimpleNamespace(ep_name=name, device=gpu) for name in ["CPUExecutionProvider", *registered] for gpu in gpus]
"""
REQUIRE = "from vit_runtime import rtx_plugin; from vit_runtime.providers import require; ort = require('tensorrt-rtx')"


@pytest.fixture
def rtx(machine: Machine) -> Machine:
    """A machine with the driver, an onnxruntime that takes plug-ins, and the plug-in; of CUDA and TensorRT it has nothing else."""
    for name in (*CUDA, *TENSORRT):
        (machine.libraries / name).unlink()
    shutil.rmtree(next(machine.site.glob("onnxruntime_gpu-*")))
    machine.wheel("onnxruntime", "1.32.0", "onnxruntime")
    (machine.site / "onnxruntime" / "__init__.py").write_text(TAKES_PLUGINS)
    machine.wheel(RTX, "0.5.0", PLUGIN)
    (machine.site / PLUGIN).mkdir()
    library = machine.site / PLUGIN / "library.so"
    shutil.copy(machine.libraries / "libcuda.so.1", library)
    (machine.site / PLUGIN / "__init__.py").write_text(f"def get_library_path():\n    return {str(library)!r}\n")
    return machine


def test_the_plugin_needs_nothing_but_the_driver(rtx: Machine):
    assert rtx.refusal("tensorrt-rtx") == ""


def test_a_plugin_that_is_not_installed_is_named_with_its_extra(rtx: Machine):
    shutil.rmtree(rtx.site / PLUGIN)
    assert_mentions(rtx.refusal("tensorrt-rtx"), "TensorRT RTX", 'pip install "vit-deploy[ep-rtx]"')


@pytest.mark.parametrize(
    "lacking",
    [
        "get_ep_devices",
        pytest.param("add_provider_for_devices", marks=pytest.mark.full),
        pytest.param("get_provider_graph_assignment_info", marks=pytest.mark.full),
    ],
)
def test_an_onnxruntime_that_takes_no_plugins_is_to_be_updated(rtx: Machine, lacking: str):
    source = TAKES_PLUGINS.replace("1.32.0", "1.20.0").replace(lacking, "other")
    (rtx.site / "onnxruntime" / "__init__.py").write_text(source)
    assert_mentions(rtx.refusal("tensorrt-rtx"), "onnxruntime 1.20.0", 1.24, "pip install --upgrade onnxruntime")


def test_without_a_driver_the_plugin_is_not_even_loaded(rtx: Machine):
    (rtx.libraries / "libcuda.so.1").unlink()
    (rtx.site / PLUGIN / "__init__.py").write_text("raise SystemExit('loaded')")
    assert_mentions(rtx.refusal("tensorrt-rtx"), *NO_DRIVER)


def test_a_driver_too_old_for_the_plugin_is_named_with_its_wheel(rtx: Machine):
    assert_mentions(rtx.refusal("tensorrt-rtx", FAKE_CUDA="12080"), "CUDA 12.8", f"{RTX} 0.5.0", "CUDA 13", "update")


def test_the_wheel_for_cuda_12_needs_cuda_12(rtx: Machine):
    shutil.rmtree(next(rtx.site.glob("onnxruntime_ep_*.dist-info")))
    rtx.wheel(RTX.replace("13", "12"), "0.5.0", PLUGIN)
    right, older = rtx.refusals([{"FAKE_CUDA": "12080"}, {"FAKE_CUDA": "11080"}], "tensorrt-rtx")
    assert right == ""
    assert_mentions(older, "CUDA 11.8", "CUDA 12")


def test_wheels_of_the_plugin_for_two_cudas_are_a_conflict(rtx: Machine):
    other = RTX.replace("13", "12")
    rtx.wheel(other, "0.5.0", PLUGIN)
    command = f'pip uninstall -y {other} {RTX} && pip install "vit-deploy[ep-rtx]"'
    assert_mentions(rtx.refusal("tensorrt-rtx"), f"{other} 0.5.0", f"{RTX} 0.5.0", command)


def test_variables_and_numbers_of_gpus_are_told_as_for_cuda(rtx: Machine):
    assert_mentions(rtx.refusal("tensorrt-rtx", CUDA_VISIBLE_DEVICES="", FAKE_GPUS="0"), "CUDA_VISIBLE_DEVICES=''", "unset")
    assert_mentions(rtx.refusal("tensorrt-rtx", 2), "device_id 2", "0: Stand-in")


def test_a_gpu_that_the_plugin_leaves_out_is_told_with_those_that_it_takes(rtx: Machine):
    capabilities = (75, 80, 90, 103)
    environments = [{"FAKE_CAPABILITY": str(capability), "FAKE_LISTED": ""} for capability in capabilities]
    for capability, message in zip(capabilities, rtx.refusals(environments, "tensorrt-rtx"), strict=True):
        named = f"compute capability {capability / 10}"
        assert_mentions(message, "GPU 0", "Stand-in", named, f"{RTX} 0.5.0", 8.6, 8.9, "12.0")
    listed = [{"FAKE_CAPABILITY": str(capability)} for capability in capabilities]
    assert rtx.refusals(listed, "tensorrt-rtx") == [""] * len(capabilities)  # a later plug-in may take more


@pytest.mark.parametrize(
    "content",
    [pytest.param(b"", marks=pytest.mark.full), pytest.param(b"\x7fELF", marks=pytest.mark.full), b"no library at all, " * 99, None],
)
def test_a_damaged_plugin_is_one_line_and_its_warnings_are_not_repeated(rtx: Machine, content: bytes | None):
    """onnxruntime is the real one; None is a library that loads, and is no provider."""
    shutil.rmtree(rtx.site / "onnxruntime")
    (rtx.site / "onnxruntime").symlink_to(Path(np.__file__).parents[1] / "onnxruntime")
    if content is not None:
        (rtx.site / PLUGIN / "library.so").write_bytes(content)
    module = rtx.site / PLUGIN / "__init__.py"
    module.write_text(f"import logging\nlogging.getLogger(__name__).warning('it does not load')\n{module.read_text()}")
    message = rtx.refusal("tensorrt-rtx")
    cause = "undefined symbol: CreateEpFactories" if content is None else "library.so"
    assert_mentions(message, f"{RTX} 0.5.0", cause, f'pip uninstall -y {RTX} && pip install "vit-deploy[ep-rtx]"')
    assert str(rtx.site) not in message


@pytest.mark.parametrize("kept", [pytest.param(0, marks=pytest.mark.full), 5000, None])
def test_a_library_of_the_plugins_that_is_cut_short_is_not_loaded(rtx: Machine, kept: int | None):
    """Cut within its data, it would take the process down. None is a library that is gone."""
    library = rtx.site / PLUGIN / "library.so"
    record = next(rtx.site.glob("onnxruntime_ep_*.dist-info")) / "RECORD"
    record.write_text(f"{PLUGIN}/__init__.py,,1\n{PLUGIN}/library.so,,{library.stat().st_size}\n")
    assert rtx.refusal("tensorrt-rtx") == ""
    if kept is None:
        library.unlink()
    else:
        os.truncate(library, kept)
    command = f'pip uninstall -y {RTX} && pip install "vit-deploy[ep-rtx]"'
    assert_mentions(rtx.refusal("tensorrt-rtx"), f"{RTX} 0.5.0", "damaged", "library.so", command)


def test_a_gpu_that_onnxruntime_does_not_see_is_told_with_where_it_looks(rtx: Machine):
    environments = [{"FAKE_GPUS": "2", "FAKE_CAPABILITY": capability} for capability in ("86", "89", "120")]
    for message in rtx.refusals(environments, "tensorrt-rtx", 1):
        assert_mentions(message, "onnxruntime 1.32.0", "GPU 1", "Stand-in, 0000:B3:00.0", "/sys", "'cpu'")


def test_the_plugin_is_registered_once_in_a_process(rtx: Machine):
    assert rtx.python(f"{REQUIRE}; require('tensorrt-rtx'); print(ort.calls)") == "['NvTensorRTRTXExecutionProvider']"


def test_a_program_may_have_registered_the_plugin_itself(rtx: Machine):
    code = "import onnxruntime as ort; ort.registered.append('NvTensorRTRTXExecutionProvider')"
    assert rtx.python(f"{code}; {REQUIRE}; print(ort.calls)") == "['NvTensorRTRTXExecutionProvider']"


def test_the_device_is_the_gpu_that_cuda_gives_that_number(rtx: Machine):
    """onnxruntime lists them in another order, and writes their places as the kernel does."""
    code = f"{REQUIRE}; print(*[(found.ep_name, found.device.metadata) for found in map(rtx_plugin.find_device, [ort, ort], [0, 1])])"
    places = [("NvTensorRTRTXExecutionProvider", {"pci_bus_id": place}) for place in ("0000:65:00.0", "0000:b3:00.0")]
    assert rtx.python(code, FAKE_GPUS="2", FAKE_LISTED="0000:b3:00.0,0000:65:00.0") == " ".join(map(str, places))


# --- memory


@pytest.mark.unit
@pytest.mark.parametrize(
    "text",
    [
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=h ; file=cuda_allocator.cc",
        "Failed to allocate memory for requested buffer of size 4831838208",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
        "CUDNN failure 4002: CUDNN_STATUS_ALLOC_FAILED",
        "[virtualMemoryBuffer.cpp::resizePhysical::154] Error Code 2: OutOfMemory (Requested size was 805306368 bytes.)",
        "std::bad_alloc",
    ],
)
def test_memory_that_ran_out_is_recognised_in_the_words_of_each_library(text: str):
    assert nvidia.out_of_memory(RuntimeError(text))


@pytest.mark.unit
def test_other_failures_are_not_taken_for_it():
    assert not nvidia.out_of_memory(RuntimeError("CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED"))
    assert not nvidia.out_of_memory(RuntimeError("CUDA failure 209: no kernel image is available for execution on the device"))


# --- an engine inside of a file

LOAD = """
import sys
from pathlib import Path
from vit_runtime.errors import MachineError
from vit_runtime.gpu_options import GpuOptions
from vit_runtime.gpu_session import open_gpu
from vit_runtime.manifest import read_manifest
path = Path(sys.argv[1])
try:
    open_gpu(path, *read_manifest(path), "tensorrt", None, GpuOptions())
except MachineError as error:
    print(type(error).__name__, error)
"""


def test_an_engine_in_a_file_is_held_against_the_gpu_and_tensorrt_before_it_is_loaded(machine: Machine, tiny_model: Path, tmp_path: Path):
    (tmp_path / "bare").write_bytes(b"engine")
    path = tmp_path / "held.onnx"
    held = Held("tensorrt", "10.14.1.48", 89, 16)
    write_context(read_onnx(tiny_model), tmp_path / "bare", held, path)
    message = machine.python(LOAD, str(path), FAKE_CAPABILITY="86")
    assert_mentions(message, "ProviderError", path, "tensorrt 10.14.1.48", "SM 89", "Stand-in", "SM 86")
    taken = machine.python(LOAD, str(path))  # as far as the stand-in of onnxruntime goes, which opens nothing
    assert_mentions(taken, "ProviderError", path, "tensorrt 10.14.1.48", "SM 89", "vit-trt")
    assert "Stand-in" not in taken  # the GPU fits
    write_context(read_onnx(tiny_model), tmp_path / "bare", replace(held, version="10.9.0"), path)
    assert_mentions(machine.python(LOAD, str(path)), "ProviderError", path, "tensorrt 10.9.0", "'tensorrt'", "10.14.1")
