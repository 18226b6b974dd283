"""OpenVINO as a provider: a second engine for CPUs, which reads the same files.

Its CPU plugin is fastest with a known shape and when each thread works on an image of its own. So a batch is not handed over as one: as
many images at once as there are threads run on a thread each, and what is left over, or a single image, runs on all of them.

On CPUs with AMX, OpenVINO 2026.4 returns wrong values without an error for images that run at the same time: the result depends on what
was in memory before (docs/runtime.md). There a batch runs image by image, each on all threads. Everywhere else a session compares images
that run at the same time with the same images alone, before it uses this form, and does without it if they differ.
Nothing here imports openvino before a session is asked for.
"""

from __future__ import annotations

import importlib
import threading
import warnings
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
CPUINFO = Path("/proc/cpuinfo")
# How far outputs of images that run at the same time may be from those of each image alone, as the root mean square of the difference
# relative to the output's. On CPUs without AMX they were the same bits (300 sessions); an engine that sums in another order may round
# bfloat16 by 1e-2; the wrong values on AMX had cosines of 0.31 to 0.67, which are differences of 0.8 to 1.2.
MAX_DIFFERENCE = 0.05
CHECK_ROUNDS = 2  # the first fills the engine's caches, the second uses them
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
        amx = _may_have_amx(self._core)
        # In bfloat16, weights in int8 whose inputs are not quantized as the network runs gave NaN on CPUs with AMX, also for one image.
        unsafe = amx and arithmetic.int8_group is None and _has_int8_weights_alone(self._model)
        self.precision = "bf16" if arithmetic.bf16 and _has_bf16(self._core) and not unsafe else "f32"
        self._config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": self.precision,  # by itself it takes bfloat16 wherever the CPU has it
            "INFERENCE_NUM_THREADS": threads,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": arithmetic.int8_group or 0,
            "ENABLE_CPU_PINNING": False,  # several processes would be put on the same cores
            **({"CACHE_DIR": str(cache_dir)} if cache_dir is not None else {}),
        }
        _, *sizes = self._model.inputs[0].partial_shape
        self._model.reshape([1, *sizes])
        self.streams = 1 if amx else threads  # images that run at the same time
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
        parallel = self._parallel(batch.shape[1:]) if self.streams > 1 and len(batch) >= self.streams else None
        together = len(batch) - len(batch) % self.streams if parallel else 0
        parts = [parallel.run(names, batch[:together])] if parallel else []
        parts += [self._with_streams(1).run(names, batch[together:])] if together < len(batch) else []
        return [np.concatenate(values) for values in zip(*parts, strict=True)]

    def nodes(self) -> list[tuple[str, str]]:
        """(name, type) of what runs, after the engine's own fusions."""
        operations = self._with_streams(1).model.get_runtime_model().get_ordered_ops()
        kinds = [(op.get_friendly_name(), str(op.get_rt_info()["layerType"].astype(str))) for op in operations]
        return [(name, kind) for name, kind in kinds if kind not in ("Const", "Input", "Output")]

    def _with_streams(self, streams: int) -> _Compiled:
        """The model compiled for this number of images at the same time."""
        with self._lock:
            if streams not in self._compiled:
                self._compiled[streams] = self._compile(streams)
            return self._compiled[streams]

    def _parallel(self, shape: tuple[int, ...]) -> _Compiled | None:
        """The form that runs as many images at the same time as there are threads, or None if its outputs are not those of one image alone.

        It is compiled and checked when the first batch asks for it.
        """
        with self._lock:
            if self.streams == 1:  # another thread has found a difference
                return None
            if self.streams not in self._compiled:
                parallel = self._compile(self.streams)
                difference = self._difference(parallel, shape)
                if not difference <= MAX_DIFFERENCE:
                    warnings.warn(
                        f"OpenVINO gives other values for {self.streams} images at the same time than for each image alone "
                        f"(relative difference {difference:.2g}) on this machine; images now run one after another, which may be slower",
                        RuntimeWarning,
                        stacklevel=2,
                    )
                    self.streams = 1
                    return None
                self._compiled[self.streams] = parallel
            return self._compiled[self.streams]

    def _compile(self, streams: int) -> _Compiled:
        return _Compiled(self._core.compile_model(self._model, DEVICE, {**self._config, "NUM_STREAMS": streams}), streams)

    def _difference(self, parallel: _Compiled, shape: tuple[int, ...]) -> float:
        """The largest relative difference of an output between images at the same time and the same images alone; NaN if one has NaN."""
        images = np.random.default_rng(0).uniform(0, 255, (self.streams, *shape)).astype(np.float32)
        alone = self._compiled[1].run(self.output_names, images)
        rounds = [parallel.run(self.output_names, images) for _ in range(CHECK_ROUNDS)]
        return float(max((_relative_difference(*pair) for found in rounds for pair in zip(alone, found, strict=True)), key=_nan_last))


def _relative_difference(expected: npt.NDArray[Any], found: npt.NDArray[Any]) -> float:
    """The root mean square of the difference of the worst image, relative to that of the expected values."""
    axes = tuple(range(1, expected.ndim))
    expected, found = expected.astype(np.float64), found.astype(np.float64)
    error, scale = (np.sqrt(np.mean(np.square(values), axis=axes)) for values in (found - expected, expected))
    return float(np.max(error / np.maximum(scale, np.finfo(np.float32).tiny)))


def _nan_last(value: float) -> float:
    """A sort key that puts NaN above every number."""
    return float("inf") if np.isnan(value) else value


def _has_int8_weights_alone(model: Any) -> bool:
    """Whether weights are stored in int8 and no activation is quantized with a fixed scale."""
    operations = model.get_ops()
    int8 = any(op.get_type_name() == "Constant" and op.get_element_type().get_type_name() in ("i8", "u8") for op in operations)
    return int8 and not any(op.get_type_name() == "FakeQuantize" for op in operations)


def _may_have_amx(core: Any) -> bool:
    """Whether the CPU has AMX: Linux says so, and elsewhere a CPU that computes in bfloat16 may have it."""
    if CPUINFO.is_file():
        return "amx_tile" in CPUINFO.read_text(encoding="utf-8", errors="replace").split()
    return _has_bf16(core)


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
