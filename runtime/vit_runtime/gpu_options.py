"""What is asked of an NVIDIA GPU, as onnxruntime's own options: functions from data to data, so that they can be tested without a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from vit_runtime.errors import InputError
from vit_runtime.manifest import Manifest

GPU_PROVIDERS = ("cuda", "tensorrt", "tensorrt-rtx")
TENSORRT_PROVIDERS = ("tensorrt", "tensorrt-rtx")  # they build an engine for a range of batches and sizes
TAKEN_BY = {"device_id": GPU_PROVIDERS, "max_batch": GPU_PROVIDERS, "cuda_graph": ("cuda", "tensorrt"), "stream": ("cuda", "tensorrt")}
MAX_BATCH = 8  # of an engine, and of CUDA graphs, unless the user says more


@dataclass(frozen=True)
class GpuOptions:
    """Which GPU, and how; None and False for what nobody asked for.

    device_id: as CUDA numbers them, within CUDA_VISIBLE_DEVICES.
    max_batch: the largest batch that `run` takes. TensorRT's engine is built for 1 to so many images and tuned for so many.
    cuda_graph: launch the network as a whole, from a recording for each of `buckets`; a batch is filled up to the next of them.
    stream: the address of a CUDA stream of the caller's to run on.
    """

    device_id: int | None = None
    max_batch: int | None = None
    cuda_graph: bool = False
    stream: int | None = None

    @property
    def device(self) -> int:
        return self.device_id or 0

    @property
    def largest(self) -> int:
        return self.max_batch or MAX_BATCH

    def reaching(self, batch: int) -> GpuOptions:
        """The same for a command that is asked for such batches: they fit, unless the user has set a smaller max_batch."""
        return replace(self, max_batch=self.max_batch or max(batch, MAX_BATCH))


NOTHING_ASKED = GpuOptions()


def check_options(provider: str, options: GpuOptions, cache_dir: object = None) -> None:
    """Raises: InputError for an option that the provider does not have, and for a value that makes no sense."""
    for name, value, least in (("device_id", options.device_id, 0), ("max_batch", options.max_batch, 1), ("stream", options.stream, 1)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise InputError(f"got {name} {value!r}, expected a whole number of at least {least}")
    asked = {**asdict(options), "cuda_graph": options.cuda_graph or None}
    lacking = [name for name, value in asked.items() if value is not None and provider not in TAKEN_BY[name]]
    if lacking:
        having = [name for name in GPU_PROVIDERS if all(name in TAKEN_BY[option] for option in lacking)]
        raise InputError(f"got {', '.join(lacking)} for provider {provider!r}, expected that with {either(having)} only")
    if options.cuda_graph and options.stream is not None:
        raise InputError("got cuda_graph and stream, expected one of them; a recording runs on a stream of its own")
    if cache_dir is not None and provider in ("cpu", "cuda", "tensorrt-rtx"):
        raise InputError(
            f"got a cache_dir for provider {provider!r}, expected it with 'openvino' or 'tensorrt', which keep what they compile"
        )


def either(names: Sequence[str]) -> str:
    """ "'cuda', 'tensorrt' or 'tensorrt-rtx'"; of at least two names."""
    *others, last = map(repr, names)
    return f"{', '.join(others)} or {last}"


def buckets(provider: str, max_batch: int) -> tuple[int, ...]:
    """The batch sizes that are recorded as CUDA graphs: powers of two below `max_batch`, and itself.

    onnxruntime's TensorRT provider holds one recording a session, so there every batch is filled up to `max_batch`.
    """
    if provider == "tensorrt":
        return (max_batch,)
    return (*(1 << power for power in range((max_batch - 1).bit_length())), max_batch)


def cuda_options(options: GpuOptions) -> dict[str, str]:
    """For the CUDA provider. Products of float32 stay float32: TF32, its own default, keeps 10 bits of the 23."""
    return {
        "device_id": str(options.device),
        "use_tf32": "0",
        **({"enable_cuda_graph": "1"} if options.cuda_graph else {}),
        **({"user_compute_stream": str(options.stream)} if options.stream is not None else {}),
    }


def tensorrt_options(options: GpuOptions) -> dict[str, str]:
    """For the TensorRT provider, all that is no matter of the engine; of switches it takes no other words than True and False."""
    return {
        "device_id": str(options.device),
        **({"trt_cuda_graph_enable": "True"} if options.cuda_graph else {}),
        **({"user_compute_stream": str(options.stream)} if options.stream is not None else {}),
    }


def engine_options(options: GpuOptions, manifest: Manifest) -> dict[str, str]:
    """What TensorRT is to build. Precision is the file's: with no flag of fp16 or int8 onnxruntime has it type the network strictly."""
    low, best, high = profile(options, manifest)
    return {"trt_profile_min_shapes": low, "trt_profile_opt_shapes": best, "trt_profile_max_shapes": high}


def rtx_options(options: GpuOptions, manifest: Manifest) -> dict[str, str]:
    """For TensorRT RTX, and which of onnxruntime's devices it gets. Precision is the file's: its networks are always strongly typed."""
    low, best, high = profile(options, manifest)
    shapes = {"nv_profile_min_shapes": low, "nv_profile_opt_shapes": best, "nv_profile_max_shapes": high}
    return {"device_id": str(options.device), **shapes}


def cache_options(engine: str, timing: str | None) -> dict[str, str]:
    """Where TensorRT finds or leaves the engine, and for a build its timing cache."""
    found = {"trt_engine_cache_enable": "True", "trt_engine_cache_path": engine}
    return {**found, **({"trt_timing_cache_enable": "True", "trt_timing_cache_path": timing} if timing is not None else {})}


def profile(options: GpuOptions, manifest: Manifest) -> tuple[str, str, str]:
    """The smallest, best and largest input shape of the engine, as TensorRT's options write them.

    The batch goes from 1 to `largest`, the one that it is tuned for. Height and width of a file that takes several go from the least to
    the most that its record proves.
    """
    (least, default, most), channels = image_sizes(manifest), manifest.preprocessing.channels
    shapes = ((1, *least), (options.largest, *default), (options.largest, *most))
    low, best, high = (f"{manifest.input_name}:{batch}x{channels}x{height}x{width}" for batch, height, width in shapes)
    return low, best, high


def image_sizes(manifest: Manifest) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """The least, default and greatest (height, width) of the golden record; all the same for a file of one size."""
    sizes = [manifest.image_size, *(golden.image_size for golden in manifest.goldens if manifest.multiple_of is not None)]
    heights, widths = [height for height, _ in sizes], [width for _, width in sizes]
    return (min(heights), min(widths)), manifest.image_size, (max(heights), max(widths))


def engine_key(wanted: Mapping[str, str], name: str, file_digest: str, versions: Mapping[str, str]) -> dict[str, str]:
    """Everything that makes an engine stale. `wanted` are its `engine_options`, `versions` names onnxruntime, TensorRT, the driver and the
    GPU; which of equal GPUs runs it, on which stream, and whether its launch is recorded, does not matter. The file's `name` does:
    onnxruntime names the engine after it."""
    return {"name": name, "file": file_digest, **versions, **wanted}


def timing_key(versions: Mapping[str, str]) -> dict[str, str]:
    """What a timing cache depends on: TensorRT and the GPU."""
    return {"timing of": versions["TensorRT"], "GPU": versions["GPU"]}
