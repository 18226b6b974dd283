"""A file on an NVIDIA GPU: batches that stay there, input in page-locked memory, CUDA graphs, TensorRT's engine out of the cache."""

from __future__ import annotations

import ctypes
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vit_runtime import nvidia
from vit_runtime.engine_cache import EngineCache, default_folder, file_digest, named_folder, silent
from vit_runtime.errors import InputError, ModelError, ProviderError
from vit_runtime.gpu_options import (
    TENSORRT_PROVIDERS,
    GpuOptions,
    buckets,
    cache_options,
    cuda_options,
    engine_key,
    engine_options,
    image_sizes,
    rtx_options,
    tensorrt_options,
    timing_key,
)
from vit_runtime.manifest import Manifest
from vit_runtime.obstacle import Obstacle, one_line
from vit_runtime.onnx_file import OnnxFile
from vit_runtime.providers import NodePlacement, create_session, node_placement, require
from vit_runtime.tensorrt.context import Held, check_held, read_held
from vit_runtime.tensorrt.rules import lint

Floats = npt.NDArray[np.float32]
# What onnxruntime keeps on the CPU by itself, because it makes shapes out of shapes.
SHAPES = frozenset((
    "Cast", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Expand", "Gather", "Identity", "Mul", "Range", "Reshape", "Shape",
    "Slice", "Squeeze", "Unsqueeze", "Where",
))  # fmt: skip
PORTABLE = 1  # cudaHostAlloc: page-locked for every GPU
KEPT_BLOCKS = 4  # of page-locked memory that nobody uses, of one size


@dataclass(frozen=True, eq=False)
class DeviceBatch:
    """Pixel values that lie in a GPU's memory, (B, C, H, W); `Model.to_device` makes one, and `Model.run` takes it."""

    value: Any  # an onnxruntime.OrtValue
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0]


def open_gpu(
    path: Path,
    manifest: Manifest,
    file: OnnxFile,
    provider: str,
    threads: int | None,
    options: GpuOptions,
    cache_dir: Path | None = None,
    tell: Callable[[str], None] = silent,
) -> GpuSession:
    """The file on "cuda", "tensorrt" or "tensorrt-rtx"; `options` as `check_options` lets them through.

    Raises: InputError for CUDA graphs of a file that takes several sizes, or a max_batch beyond that of an engine in the file; ModelError
    for a file that TensorRT has no layers for; ProviderError for one that would run on the CPU in part, or an engine that is not for this
    machine; the errors of `create_session`; MachineError for a cache folder that cannot be used.
    """
    held = read_held(file)
    if held is not None:
        options = _within(held, options)
    elif provider in TENSORRT_PROVIDERS and (problems := lint(path)):
        raise ModelError(f"{path}: {problems[0]}, or use provider {'cuda' if provider == 'tensorrt' else 'cpu'!r}")
    if options.cuda_graph and manifest.multiple_of is not None:
        raise InputError(f"{path} takes images of several sizes, and a CUDA graph has one; load it without cuda_graph")
    if held is not None:
        session = _open_held(path, held, threads, options)
    elif provider == "cuda":
        session, _ = create_session(path, "cuda", threads, cuda_options(options))
    elif provider == "tensorrt-rtx":
        session, _ = create_session(path, "tensorrt-rtx", threads, rtx_options(options, manifest))
    else:
        session = _open_tensorrt(path, manifest, file, threads, options, cache_dir, tell)
    check_placement(path, provider, node_placement(session))
    try:
        return GpuSession(session, provider, manifest, file, options)
    except Exception as error:  # of the first runs, those that are recorded
        remedy = "take a smaller max_batch, or load it without cuda_graph"
        raise ProviderError(f"{path}: {provider} cannot record CUDA graphs of it ({one_line(error)}); {remedy}") from error


def check_placement(path: Path, provider: str, nodes: Sequence[NodePlacement]) -> None:
    """Raises: ProviderError for a file of which a GPU's session computes a part on the CPU, other than shapes, which belong there."""
    counts = Counter(node.op_type for node in nodes if node.provider == "cpu" and node.op_type not in SHAPES)
    if counts:
        left = ", ".join(f"{op} ({count})" for op, count in sorted(counts.items()))
        target = "cuda" if provider == "cuda" else "tensorrt"
        raise ProviderError(f"{path}: {provider} has no kernel for {left}, which would run on the CPU; export it with --target {target}")


def _within(held: Held, options: GpuOptions) -> GpuOptions:
    """With the largest batch of an engine that was built already."""
    if held.max_batch is None:
        return options
    if options.largest > held.max_batch and options.max_batch is not None:
        raise InputError(
            f"got max_batch {options.max_batch}, expected at most {held.max_batch}, for which the engine in the file was built"
        )
    return replace(options, max_batch=options.max_batch or held.max_batch)


def _open_held(path: Path, held: Held, threads: int | None, options: GpuOptions) -> Any:
    """The engine in a file, once it is known to be for this machine."""
    provider = held.provider
    gpu = _opened(provider, options)[1].gpus[options.device]
    given, version = {"device_id": str(options.device)}, ""  # TensorRT RTX does not tell its version
    if provider == "tensorrt":
        given, version = tensorrt_options(options), nvidia.tensorrt_version()
    check_held(path, held, version, gpu.capability, gpu.name)
    try:
        return create_session(path, provider, threads, given)[0]
    except ModelError as error:  # which blames the file, as the CPU cannot load it either
        reason = one_line(error.__cause__ or error)
        raise ProviderError(f"{path}: {provider} does not take {held} ({reason}); build it again here with `vit-trt`") from error


def _opened(provider: str, options: GpuOptions) -> tuple[Any, nvidia.Driver]:
    """onnxruntime with all that the provider needs, and the driver. Raises: the errors of `require`."""
    ort, driver = require(provider, options.device), nvidia.find_driver()
    if isinstance(driver, Obstacle):  # it was there a moment ago
        raise ProviderError(f"provider {provider!r} does not run here: {driver}")
    return ort, driver


def _open_tensorrt(
    path: Path,
    manifest: Manifest,
    file: OnnxFile,
    threads: int | None,
    options: GpuOptions,
    cache_dir: Path | None,
    tell: Callable[[str], None],
) -> Any:
    ort, driver = _opened("tensorrt", options)
    given, wanted, gpu = tensorrt_options(options), engine_options(options, manifest), driver.gpus[options.device]
    versions = {
        "onnxruntime": str(ort.__version__),
        "TensorRT": nvidia.tensorrt_version(),
        "driver": f"{driver.release or 'of unknown release'}, CUDA {driver.cuda[0]}.{driver.cuda[1]}",
        "GPU": f"{gpu.name}, compute capability {gpu.capability[0]}.{gpu.capability[1]}",
    }
    try:
        digest = file_digest(path, file.external_files)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror or error})") from error

    def session(folder: Path, times: Path | None = None) -> Any:
        kept = cache_options(str(folder), str(times) if times else None)
        return create_session(path, "tensorrt", threads, {**given, **wanted, **kept})[0]

    cache = EngineCache(named_folder(cache_dir) or default_folder())
    return cache.open(engine_key(wanted, path.name, digest, versions), timing_key(versions), path.name, session, session, tell)


class GpuSession:
    """A session of onnxruntime on a GPU, and what is copied to and from it. Calls may come from several threads.

    With CUDA graphs all runs go through one thread, where onnxruntime has recorded them, one after another, and every batch through the
    buffers that the recording reads and writes. `device` is where onnxruntime allocates: "cuda", or in tests "cpu".
    """

    def __init__(self, session: Any, provider: str, manifest: Manifest, file: OnnxFile, options: GpuOptions, device: str = "cuda") -> None:
        self.session, self.options = session, options
        self.max_batch = options.largest if options.cuda_graph or provider in TENSORRT_PROVIDERS else options.max_batch
        self._sizes = image_sizes(manifest) if provider in TENSORRT_PROVIDERS else None
        self._device = (device, options.device)
        self._input, self._outputs = manifest.input_name, {info.name: (info.dtype, info.shape) for info in file.outputs}
        self._image = (manifest.preprocessing.channels, *manifest.image_size)
        self._memory = PageLocked(_cuda_runtime(), options.device)
        self._graphs = dict[int, _Graph]()
        if options.cuda_graph:
            from concurrent.futures import ThreadPoolExecutor  # which brings logging, that nothing else here needs

            self._worker = ThreadPoolExecutor(1, "cuda-graphs")
            for size in buckets(provider, options.largest):  # now, while no other thread allocates, which would spoil a recording
                self._graphs[size] = self._worker.submit(self._record, size).result()

    def check(self, batch: Floats | DeviceBatch) -> None:
        """Raises: InputError for a batch that is too large, for sizes that the engine was not built for, and for a batch on the GPU with
        CUDA graphs, which read from a place of their own."""
        shape = batch.shape
        if self._graphs and isinstance(batch, DeviceBatch):
            raise InputError("got a batch on the GPU for a model with cuda_graph, expected a numpy array; its recordings have their own")
        if self.max_batch is not None and shape[0] > self.max_batch:
            raise InputError(f"got a batch of {shape[0]}, expected at most {self.max_batch}; load the model with a larger max_batch")
        if self._sizes is not None:
            (height, width), _, (high, wide) = self._sizes
            if not (height <= shape[2] <= high and width <= shape[3] <= wide):
                raise InputError(
                    f"got images of {shape[2]} x {shape[3]}, the TensorRT engine takes {height} x {width} to {high} x {wide}; "
                    "use provider 'cuda' or 'cpu' for others"
                )

    def run(self, names: Sequence[str], feed: Mapping[str, Floats | DeviceBatch]) -> list[npt.NDArray[Any]]:
        """These outputs for one batch, from the CPU's memory or the GPU's. Raises whatever onnxruntime raises."""
        (batch,) = feed.values()
        if self._graphs and not isinstance(batch, DeviceBatch):
            size = min(size for size in self._graphs if size >= len(batch))
            return self._worker.submit(self._replay, self._graphs[size], names, batch).result()
        if not isinstance(batch, DeviceBatch):
            return list(self.session.run(list(names), {self._input: batch}))
        binding = self.session.io_binding()
        binding.bind_ortvalue_input(self._input, batch.value)
        for name in names:
            binding.bind_output(name, "cpu")
        self.session.run_with_iobinding(binding)
        return list(binding.copy_outputs_to_cpu())

    def empty(self, batch: int) -> Floats:
        """Page-locked memory for a batch, (batch, C, H, W): the GPU fetches from there without a copy in between."""
        return self._memory.empty((batch, *self._image))

    def to_device(self, pixel_values: Floats) -> DeviceBatch:
        """Copy a batch to the GPU."""
        return DeviceBatch(self._ort().OrtValue.ortvalue_from_numpy(pixel_values, *self._device), pixel_values.shape)

    def _ort(self) -> Any:
        return require("cpu")  # imported already

    def _record(self, size: int) -> _Graph:
        """Buffers for so many images, and the recording of a run on them."""
        ort, binding = self._ort(), self.session.io_binding()
        staging = self.empty(size)
        staging.fill(0)
        image = ort.OrtValue.ortvalue_from_numpy(staging, *self._device)
        binding.bind_ortvalue_input(self._input, image)
        outputs = {}
        for name, (dtype, shape) in self._outputs.items():
            fixed = [size, *shape[1:]]
            outputs[name] = ort.OrtValue.ortvalue_from_shape_and_type(fixed, np.dtype(dtype), *self._device)
            binding.bind_ortvalue_output(name, outputs[name])
        options = ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(size))
        graph = _Graph(staging, image, outputs, binding, options)
        self.session.run_with_iobinding(binding, options)
        return graph

    def _replay(self, graph: _Graph, names: Sequence[str], batch: Floats) -> list[npt.NDArray[Any]]:
        graph.staging[: len(batch)] = batch  # what follows is an earlier batch's, and its results are not read
        graph.image.update_inplace(graph.staging)
        self.session.run_with_iobinding(graph.binding, graph.options)
        return [graph.outputs[name].numpy()[: len(batch)].copy() for name in names]


@dataclass(frozen=True, eq=False)
class _Graph:
    """What one recording reads and writes."""

    staging: Floats
    image: Any
    outputs: Mapping[str, Any]
    binding: Any
    options: Any


class PageLocked:
    """Page-locked memory of the CUDA runtime for arrays; a block serves another array when nobody holds the first any more.

    Where there is no such memory to be had, arrays are ordinary ones, which the driver copies once more.
    """

    def __init__(self, runtime: Any, device: int) -> None:
        self._runtime, self._device = runtime, device
        self._free = dict[int, list[int]]()
        self._lock = threading.RLock()  # an array can be collected, and give its block back, in the middle of this
        weakref.finalize(self, _free_all, runtime, self._free).atexit = False

    def empty(self, shape: tuple[int, ...]) -> Floats:
        """An array whose values nobody has set."""
        count = int(np.prod(shape))
        address = self._allocate(4 * count)
        if address is None:
            return np.empty(shape, np.float32)
        block = (ctypes.c_float * count).from_address(address)
        weakref.finalize(block, self._give_back, 4 * count, address).atexit = False  # which holds us until the last array is gone
        return np.frombuffer(memoryview(block), np.float32).reshape(shape)

    def _allocate(self, size: int) -> int | None:
        with self._lock:
            if blocks := self._free.get(size):
                return blocks.pop()
        address = ctypes.c_void_p(0)
        if self._runtime is None or self._runtime.cudaSetDevice(self._device) != 0:
            return None
        if self._runtime.cudaHostAlloc(ctypes.byref(address), ctypes.c_size_t(size), PORTABLE) != 0:
            return None
        return address.value

    def _give_back(self, size: int, address: int) -> None:
        with self._lock:
            blocks = self._free.setdefault(size, [])
            if len(blocks) < KEPT_BLOCKS:
                blocks.append(address)
                return
        self._runtime.cudaFreeHost(ctypes.c_void_p(address))


def _free_all(runtime: Any, free: Mapping[int, Sequence[int]]) -> None:
    """Give back blocks that nobody will ask for any more."""
    for address in (address for blocks in free.values() for address in blocks):
        runtime.cudaFreeHost(ctypes.c_void_p(address))


def _cuda_runtime() -> Any:
    """The library that onnxruntime has loaded; None where there is none."""
    major = nvidia.cuda_version(require("cpu"))[0]
    try:
        return ctypes.CDLL(f"cudart64_{major}.dll" if sys.platform == "win32" else f"libcudart.so.{major}")
    except OSError:
        return None
