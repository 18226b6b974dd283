"""OpenVINO as a provider: a second engine for CPUs, which reads the same files.

Its CPU plugin is fastest with a known shape and when each thread works on an image of its own. So a batch is not handed over as one: as
many images at once as there are threads run on a thread each, and what is left over, or a single image, runs on all of them.
Nothing here imports openvino before a session is asked for.
"""

from __future__ import annotations

import importlib
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, LifoQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from vit_runtime.obstacle import Obstacle, one_line

DEVICE = "CPU"
INSTALL = 'run: pip install "vit-deploy[openvino]"'
REINSTALL = 'run: pip install --force-reinstall "vit-deploy[openvino]"'


@dataclass(frozen=True)
class Arithmetic:
    """What a file allows the engine to compute in.

    bf16: products and what lies between them in bfloat16, where the CPU has it; else float32.
    int8_group: of weights that are stored in int8, the inputs are quantised as the network runs, so many channels of a token with a scale
        of their own; None leaves them as they are.
    """

    bf16: bool = False
    int8_group: int | None = None


FLOAT32 = Arithmetic()


def find_openvino() -> Any:
    """The openvino module, or the Obstacle in its way."""
    try:
        module = importlib.import_module("openvino")
    except Exception as error:  # noqa: BLE001 (a damaged wheel fails in many ways: missing files, missing libraries, numpy's ABI)
        if isinstance(error, ModuleNotFoundError) and error.name == "openvino":
            return Obstacle("missing", "openvino is not installed", INSTALL)
        return Obstacle("broken", f"openvino cannot be imported ({one_line(error)})", REINSTALL)
    if not hasattr(module, "Core"):
        return Obstacle("broken", "openvino cannot be imported (its folder holds leftovers without a Core)", REINSTALL)
    return module


def has_bf16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this machine; openvino must be there."""
    return _has_bf16(importlib.import_module("openvino").Core())


class OpenVinoSession:
    """A model on OpenVINO's CPU plugin, with the one method of onnxruntime's sessions that is used here.

    Calls may come from several threads. Raises whatever OpenVINO raises, for the caller to tell in one line.
    """

    def __init__(self, path: Path, threads: int, arithmetic: Arithmetic = FLOAT32, cache_dir: Path | None = None) -> None:
        openvino = importlib.import_module("openvino")
        self._core = openvino.Core()
        self._model, self.threads = self._core.read_model(path), threads
        self.precision = "bf16" if arithmetic.bf16 and _has_bf16(self._core) else "f32"
        self._config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": self.precision,  # by itself it takes bfloat16 wherever the CPU has it
            "INFERENCE_NUM_THREADS": threads,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": arithmetic.int8_group or 0,
            "ENABLE_CPU_PINNING": False,  # several processes would be put on the same cores
            **({"CACHE_DIR": str(cache_dir)} if cache_dir is not None else {}),
        }
        _, *sizes = self._model.inputs[0].partial_shape
        self._model.reshape([1, *sizes])
        self._compiled: dict[int, _Compiled] = {}
        self._lock = threading.Lock()
        self._with_streams(1)  # what cannot be compiled is told now

    @property
    def output_names(self) -> list[str]:
        """The outputs, in the file's order."""
        return [str(output.get_any_name()) for output in self._model.outputs]

    def run(self, names: Sequence[str], feed: Mapping[str, npt.NDArray[np.float32]]) -> list[npt.NDArray[Any]]:
        """These outputs for one batch (B, C, H, W)."""
        (batch,) = feed.values()
        together = len(batch) - len(batch) % self.threads if self.threads > 1 else 0
        parts = [self._with_streams(self.threads).run(names, batch[:together])] if together else []
        parts += [self._with_streams(1).run(names, batch[together:])] if together < len(batch) else []
        return [np.concatenate(values) for values in zip(*parts, strict=True)]

    def nodes(self) -> list[tuple[str, str]]:
        """(name, type) of what runs, after the engine's own fusions."""
        operations = self._with_streams(1).model.get_runtime_model().get_ordered_ops()
        kinds = [(op.get_friendly_name(), str(op.get_rt_info()["layerType"].astype(str))) for op in operations]
        return [(name, kind) for name, kind in kinds if kind not in ("Const", "Input", "Output")]

    def _with_streams(self, streams: int) -> _Compiled:
        """The model compiled for so many images at once; the second way only when a batch asks for it."""
        with self._lock:
            if streams not in self._compiled:
                config = {**self._config, "NUM_STREAMS": streams}
                self._compiled[streams] = _Compiled(self._core.compile_model(self._model, DEVICE, config), streams)
            return self._compiled[streams]


def _has_bf16(core: Any) -> bool:
    return "BF16" in core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")


class _Compiled:
    """A compiled model and its requests, of which each serves one image at a time."""

    def __init__(self, model: Any, streams: int) -> None:
        self.model, self.streams = model, streams
        self._free: LifoQueue[Any] = LifoQueue()

    def run(self, names: Sequence[str], batch: npt.NDArray[np.float32]) -> list[npt.NDArray[Any]]:
        results: list[list[npt.NDArray[Any]]] = []
        running: deque[Any] = deque()
        try:
            for image in range(len(batch)):
                if len(running) == self.streams:
                    self._collect(running, names, results)
                request = self._request()
                running.append(request)
                request.start_async({0: batch[image : image + 1]})
            while running:
                self._collect(running, names, results)
        finally:
            for request in running:  # of a batch that failed: they may still be at work
                request.cancel()
        return [np.concatenate(parts) for parts in zip(*results, strict=True)]

    def _request(self) -> Any:
        try:
            return self._free.get_nowait()
        except Empty:
            return self.model.create_infer_request()

    def _collect(self, running: deque[Any], names: Sequence[str], results: list[list[npt.NDArray[Any]]]) -> None:
        request = running.popleft()
        request.wait()
        results.append([np.array(request.get_tensor(name).data) for name in names])
        self._free.put(request)
