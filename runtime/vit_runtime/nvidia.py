"""NVIDIA's side of this machine: the driver, its GPUs, the CUDA and TensorRT libraries, and in one line what keeps onnxruntime from them.

All of it is asked for in C, through ctypes: no package of NVIDIA's is imported, and nothing is loaded before somebody asks.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from vit_runtime.obstacle import Obstacle

TENSORRT_WHEEL = "tensorrt-cu13>=10.13.2,<11"  # onnxruntime-gpu is linked against TensorRT 10; `pip install tensorrt` brings 11
INSTALL_DRIVER = "install NVIDIA's driver until `nvidia-smi` lists a GPU (a container needs `--gpus all` as well)"
OLDEST_GPU = {12: (5, 0), 13: (7, 5)}  # compute capability that the kernels of a CUDA release start at

# What cuInit answers instead of 0, and no GPU being there.
CU_INIT = {
    34: (
        "libcuda.so.1 is the stub of the CUDA toolkit, not the driver's",
        "take the toolkit's stubs folder out of LD_LIBRARY_PATH, and " + INSTALL_DRIVER,
    ),
    802: ("NVIDIA's driver is not ready (cuInit: system not ready)", "start nvidia-fabricmanager, which machines with NVSwitch need"),
    803: ("libcuda.so.1 and NVIDIA's kernel module are of different releases", "reboot, or start the container anew, after an update"),
    804: (
        "this GPU does not take CUDA's forward-compatibility libraries",
        "take the compat folder out of LD_LIBRARY_PATH, or start a container of an older CUDA",
    ),
    999: ("NVIDIA's driver does not start (cuInit: unknown error)", "see what `dmesg` says of NVRM; reboot"),
}
NO_DEVICE = 100
_NAME, _MAJOR, _MINOR = 256, 75, 76  # length of a GPU's name; cuDeviceGetAttribute's numbers


@dataclass(frozen=True)
class Gpu:
    """A GPU as CUDA numbers it: within CUDA_VISIBLE_DEVICES, from 0."""

    index: int
    name: str
    capability: tuple[int, int]
    memory: int  # bytes
    bus: str  # its place among PCI's, such as "0000:65:00.0"

    def __str__(self) -> str:
        return f"{self.index}: {self.name}, compute capability {self.capability[0]}.{self.capability[1]}, {self.memory >> 20} MiB"


@dataclass(frozen=True)
class Driver:
    """The driver's release ("" where the kernel does not show it), the newest CUDA that it runs, and its GPUs."""

    release: str
    cuda: tuple[int, int]
    gpus: tuple[Gpu, ...]


def find_driver() -> Driver | Obstacle:
    """Ask NVIDIA's driver itself, or say why it cannot be asked."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError as error:
        return Obstacle("missing", f"there is no NVIDIA driver ({str(error).removesuffix(': No such file or directory')})", INSTALL_DRIVER)
    code, number = cuda.cuInit(0), ctypes.c_int(0)
    if code not in (0, NO_DEVICE):
        other = (f"NVIDIA's driver does not start (cuInit: {code})", "see whether `nvidia-smi` answers")
        return Obstacle("broken", *CU_INIT.get(code, other))
    if code == 0:
        cuda.cuDeviceGetCount(ctypes.byref(number))
    if number.value == 0:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            return Obstacle("missing", "the NVIDIA driver finds no GPU", INSTALL_DRIVER)
        return Obstacle("missing", f"CUDA_VISIBLE_DEVICES={visible!r} leaves no GPU visible", "unset it, or name a GPU in it")
    gpus = tuple(_gpu(cuda, index) for index in range(number.value))
    cuda.cuDriverGetVersion(ctypes.byref(number))
    return Driver(driver_release(), (number.value // 1000, number.value % 1000 // 10), gpus)


def driver_release() -> str:
    """Such as "580.65.06", as the kernel shows it; a container may hide it, and Windows has no such file."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(errors="replace")
    except OSError:
        return ""
    found = re.search(r"\b\d{3}\.\d+(?:\.\d+)?\b", text)
    return found[0] if found else ""


def _gpu(cuda: Any, index: int) -> Gpu:
    name, bus = ctypes.create_string_buffer(_NAME), ctypes.create_string_buffer(_NAME)
    memory, number = ctypes.c_size_t(0), ctypes.c_int(0)
    cuda.cuDeviceGetName(name, _NAME, index)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), index)
    cuda.cuDeviceGetPCIBusId(bus, _NAME, index)
    capability = list[int]()
    for attribute in (_MAJOR, _MINOR):
        cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, index)
        capability.append(number.value)
    return Gpu(index, name.value.decode(errors="replace"), (capability[0], capability[1]), memory.value, bus.value.decode(errors="replace"))


def obstacles(ort: Any, tensorrt: bool, device_id: int) -> Iterator[Obstacle]:
    """Whatever evidently keeps this onnxruntime from that GPU. Loads the libraries that it will need."""
    needed, driver = cuda_version(ort), find_driver()
    if isinstance(driver, Obstacle):
        yield driver
    else:
        oldest = OLDEST_GPU.get(needed[0], (0, 0))
        yield from driver_obstacles(f"onnxruntime {ort.__version__}", needed[0], oldest, driver, device_id)
    if sys.platform != "win32" and needed[0]:
        yield from _library_obstacles(ort, needed[0], tensorrt)


def cuda_version(ort: Any) -> tuple[int, int]:
    """The CUDA release that this onnxruntime was built for; (0, 0) where it does not say."""
    numbers = re.findall(r"\d+", str(getattr(ort, "cuda_version", "")))
    return (int(numbers[0]), int(numbers[1])) if len(numbers) > 1 else (0, 0)


def driver_obstacles(who: str, cuda: int, oldest: tuple[int, int], driver: Driver, device_id: int) -> Iterator[Obstacle]:
    """What keeps `who`, which needs this CUDA release and compute capability, from the GPU of that number."""
    if driver.cuda[0] < cuda:  # within a major release, minor versions are compatible
        offered = f"CUDA {driver.cuda[0]}.{driver.cuda[1]}"
        yield Obstacle("missing", f"the NVIDIA driver offers {offered}, {who} needs CUDA {cuda}", "update NVIDIA's driver")
    if device_id >= len(driver.gpus):
        there = "; ".join(map(str, driver.gpus))
        yield Obstacle("missing", f"got device_id {device_id}, but the GPUs here are {there}", "give one of these numbers")
        return
    gpu = driver.gpus[device_id]
    if gpu.capability < oldest:
        reason = f"GPU {gpu.index} ({gpu.name}) has compute capability {gpu.capability[0]}.{gpu.capability[1]}"
        yield Obstacle(
            "missing", f"{reason}, the kernels of {who} start at {oldest[0]}.{oldest[1]}", "take a newer GPU, or use provider 'cpu'"
        )


def _library_obstacles(ort: Any, major: int, tensorrt: bool) -> Iterator[Obstacle]:
    """Load what onnxruntime links against: first from the wheels that pip installs, which the loader does not search, then from the system.

    A library that is loaded once is found again by its name, so this also takes the place of `onnxruntime.preload_dlls()`, which prints
    to stdout and leaves TensorRT out.
    """
    if (found := wheel_conflict(major, tensorrt)) is not None:
        yield found
        return
    _failures([f"libnvrtc.so.{major}"])  # cuDNN uses it where it is there
    cuda = [f"{name}.so.{major}" for name in ("libcudart", "libcublasLt", "libcublas")]  # each after the ones it needs itself
    others = sorted(name for name in nvidia_wheels() if name.startswith("nvidia-") and _major(name) not in (None, major))
    why = f" (the installed {', '.join(others[:3])} {'are' if len(others) > 1 else 'is'} not for CUDA {major})" if others else ""
    yield from _loading("CUDA", [*cuda, "libcurand.so.10", "libcudnn.so.9"], why, "vit-deploy[gpu]")
    if tensorrt:
        yield from _loading("TensorRT 10", ["libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10"], "", TENSORRT_WHEEL)


def _loading(what: str, names: list[str], why: str, package: str) -> Iterator[Obstacle]:
    """Load these libraries; what is missing, and what is there but does not load."""
    failures = _failures(names)
    if missing := [name for name, reason in failures.items() if not reason]:
        yield Obstacle("missing", f"{what} libraries are missing: {', '.join(missing)}{why}", f'run: pip install "{package}"')
    if broken := [f"{name} ({reason})" for name, reason in failures.items() if reason]:
        remedy = f'run: pip install --force-reinstall "{package}"'
        yield Obstacle("broken", f"{what} libraries do not load: {', '.join(broken)}", remedy)


def wheel_conflict(major: int, tensorrt: bool) -> Obstacle | None:
    """Wheels that share their files and are not all of this CUDA release: cuDNN's and TensorRT's have one library name for every CUDA.

    Those of CUDA itself have the release in their names and get along.
    """
    wheels = nvidia_wheels()
    for stem in ("nvidia-cudnn", *(["tensorrt"] if tensorrt else [])):
        parts = [name for name in wheels if re.fullmatch(rf"{stem}-cu\d+(-libs|-bindings)?", name)]
        names = [name for name in parts if re.search(r"\d$", name)] or parts
        if {_major(name) for name in parts} <= {major}:
            continue
        listed = " and ".join(f"{name} {wheels[name]}" for name in names)
        wrong = "are installed at once and overwrite each other's files" if len(names) > 1 else f"is not for CUDA {major}"
        right = f'"{TENSORRT_WHEEL}"' if stem == "tensorrt" else f"nvidia-cudnn-cu{major}"
        return Obstacle(
            "broken",
            f"{listed} {wrong}; onnxruntime-gpu needs CUDA {major}'s",
            f"run: pip uninstall -y {' '.join(parts)} && pip install {right}",
        )
    return None


def nvidia_wheels() -> dict[str, str]:
    """Installed distributions of NVIDIA's (name: version), sorted."""
    found = dict[str, str]()
    for distribution in metadata.distributions():
        fields = distribution.metadata
        name = str(fields["Name"]).lower().replace("_", "-") if "Name" in fields else ""
        if name.startswith(("nvidia-", "tensorrt-cu", "onnxruntime-ep-nv-")):
            found.setdefault(name, distribution.version)
    return dict(sorted(found.items()))


def _major(wheel: str) -> int | None:
    found = re.search(r"-cu(\d\d)(?:-|$)", wheel)
    return int(found[1]) if found else None


def _failures(names: list[str]) -> dict[str, str]:
    """Those of the libraries that cannot be loaded, and why; "" for one that is not there."""
    found = {}
    for name in names:
        patterns = (f"nvidia/*/lib/{name}", f"tensorrt_libs/{name}")
        paths = [str(path) for entry in sys.path for pattern in patterns for path in Path(entry).glob(pattern)]
        try:
            ctypes.CDLL((paths or [name])[0])
        except OSError as error:
            missing = str(error) == f"{name}: cannot open shared object file: No such file or directory"
            found[name] = "" if missing else str(error).rpartition("/")[2].removeprefix(f"{name}: ")
    return found


def tensorrt_version() -> str:
    """Of the library that is loaded, such as "10.14.1"; "" where there is none."""
    try:
        number = int(ctypes.CDLL("nvinfer_10.dll" if sys.platform == "win32" else "libnvinfer.so.10").getInferLibVersion())
    except (OSError, AttributeError):
        return ""
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


_OUT_OF_MEMORY = re.compile(r"out of memory|OutOfMemory|Failed to allocate memory|ALLOC_FAILED|bad allocation|bad_alloc", re.IGNORECASE)


def out_of_memory(error: object) -> bool:
    """Whether the text of an error of onnxruntime, CUDA, cuBLAS, cuDNN or TensorRT says that memory ran out."""
    return _OUT_OF_MEMORY.search(str(error)) is not None
