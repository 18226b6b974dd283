"""NVIDIA's TensorRT RTX as onnxruntime takes it: a provider in a library of its own, which onnxruntime loads when it is told to.

The wheel lies beside onnxruntime's and brings all that the library links against but the driver, without which it does not load. Nothing
of it is loaded before somebody names the provider.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import re
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from vit_runtime import nvidia
from vit_runtime.obstacle import Obstacle, one_line

EP_NAME = "NvTensorRTRTXExecutionProvider"  # the library goes by the name that it is registered under; NVIDIA's own is this
MODULE = "onnxruntime_ep_nv_tensorrt_rtx"
WHEEL = "onnxruntime-ep-nv-tensorrt-rtx-cu13"  # there is one for CUDA 12 as well, with the same files in it
EXTRA = "vit-deploy[ep-rtx]"


def takes_plugins(ort: Any) -> bool:
    """Whether this onnxruntime loads providers from libraries and tells which nodes they run: 1.24 and later."""
    needed = (
        (ort, "register_execution_provider_library"),
        (ort, "get_ep_devices"),
        (ort.SessionOptions, "add_provider_for_devices"),
        (ort.InferenceSession, "get_provider_graph_assignment_info"),
    )
    return all(hasattr(holder, name) for holder, name in needed)


def find_device(ort: Any, device_id: int) -> Any:
    """The GPU of that number, as CUDA numbers them, for a session's options (an OrtEpDevice); or the Obstacle in the way.

    Loads the library, and registers it with onnxruntime once in a process.
    """
    if importlib.util.find_spec(MODULE) is None:
        return Obstacle("missing", "TensorRT RTX, a plug-in of onnxruntime's, is not installed", f'run: pip install "{EXTRA}"')
    wheels = {name: version for name, version in nvidia.nvidia_wheels().items() if name.startswith(WHEEL[:-2])}
    who = " and ".join(f"{name} {version}" for name, version in wheels.items()) or MODULE
    reinstall = f'run: pip uninstall -y {" ".join(wheels) or WHEEL} && pip install "{EXTRA}"'
    if len(wheels) > 1:
        return Obstacle("broken", f"{who} are installed at once and overwrite each other's files", reinstall)
    driver, cuda = nvidia.find_driver(), int(next(iter(wheels), WHEEL)[-2:])
    if isinstance(driver, Obstacle):
        return driver
    for found in nvidia.driver_obstacles(who, cuda, (0, 0), driver, device_id):
        return found
    if cut := [name for wheel in wheels for name in _cut_short(wheel)]:
        return Obstacle("broken", f"{who} is damaged: {', '.join(cut)} has not the size that it was installed with", reinstall)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the package warns there of what onnxruntime then raises
            library = importlib.import_module(MODULE).get_library_path()
        _register(ort, library)
    except Exception as error:  # noqa: BLE001 (a damaged wheel fails in many ways: missing files, missing libraries, missing symbols)
        reason = one_line(re.sub(r"/\S+/", "", str(error)))  # without folders, which leave no room for what is wrong
        return Obstacle("broken", f"{who} does not load ({reason})", reinstall)
    gpu = driver.gpus[device_id]
    for device in ort.get_ep_devices():
        if device.ep_name == EP_NAME and device.device.metadata.get("pci_bus_id", "").lower() == gpu.bus.lower():
            return device
    return _unlisted(ort, who, gpu)


def _unlisted(ort: Any, who: str, gpu: nvidia.Gpu) -> Obstacle:
    """Why onnxruntime has no device for a GPU: the library leaves it out, or onnxruntime itself does not see it."""
    major, minor = gpu.capability
    if (major, minor) not in ((8, 6), (8, 9)) and major < 12:
        reason = f"GPU {gpu.index} ({gpu.name}) has compute capability {major}.{minor}, {who} takes 8.6, 8.9, and 12.0 or later"
        return Obstacle("missing", reason, "take one of those GPUs, or use provider 'cpu'")
    reason = f"onnxruntime {ort.__version__} does not list GPU {gpu.index} ({gpu.name}, {gpu.bus}), which it looks for in /sys"
    return Obstacle("missing", reason, "use provider 'cpu', or, where /sys has no NVIDIA GPU, as in WSL, 'cuda'")


def _cut_short(wheel: str) -> list[str]:
    """Its libraries whose size is not the one that pip recorded: loading one that is cut short ends the process."""
    libraries = [file for file in metadata.files(wheel) or () if ".so" in file.name and file.size is not None]
    return [file.name for file in libraries if not (path := Path(file.locate())).is_file() or path.stat().st_size != file.size]


@cache
def _register(ort: Any, library: str) -> None:
    """Raises: whatever onnxruntime does, but for a library that the program around us has registered already."""
    try:
        ort.register_execution_provider_library(EP_NAME, library)
    except Exception as error:
        if "already registered" not in str(error):
            raise
