"""A loaded model: images in, predictions out, on one execution provider."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

from vit_runtime.engine_cache import named_folder, silent
from vit_runtime.errors import InputError, ModelError, ProviderError, SessionError
from vit_runtime.gpu_options import GPU_PROVIDERS, GpuOptions, check_options
from vit_runtime.gpu_session import DeviceBatch, GpuSession, check_placement, open_gpu
from vit_runtime.images import ImageInput
from vit_runtime.manifest import Manifest, read_manifest
from vit_runtime.nvidia import out_of_memory
from vit_runtime.obstacle import one_line
from vit_runtime.onnx_file import OnnxFile
from vit_runtime.preprocess import pixel_values
from vit_runtime.providers import NodePlacement, create_session, node_placement, probe
from vit_runtime.tensorrt.context import read_held
from vit_runtime.threads import physical_cores

Floats = npt.NDArray[np.float32]
Image = TypeVar("Image", bound=ImageInput)

BATCH_SIZE = 8  # images that `predict` and `embed` put through the network together


@dataclass(frozen=True)
class Label:
    """One class of a prediction; `name` is its number where the file has no labels."""

    index: int
    name: str
    probability: float


@dataclass(frozen=True, eq=False)
class Prediction:
    """One image's logits, float32 (num_classes,), and the names of the classes."""

    logits: Floats
    labels: tuple[str, ...] | None

    @property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """softmax(logits), float64 (num_classes,). Raises: SessionError for NaN or Inf in the logits."""
        if not np.isfinite(self.logits).all():
            raise SessionError("the network gave NaN or Inf for this image; see whether the file is sound with `vit-parity`")
        exponents = np.exp(self.logits.astype(np.float64) - self.logits.max())
        return np.asarray(exponents / exponents.sum())

    def top(self, k: int = 5) -> list[Label]:
        """The k likeliest classes, likeliest first; equal ones by number. Raises: InputError for k below 1; SessionError for NaN."""
        if k < 1:
            raise InputError(f"got top {k}, expected at least 1")
        probabilities = self.probabilities
        order = np.argsort(-probabilities, kind="stable")[:k]
        return [Label(int(i), self.labels[i] if self.labels else str(i), float(probabilities[i])) for i in order]


class Model:
    """An exported file on one execution provider; make it with `load`. Its methods may be called from several threads."""

    def __init__(self, path: Path, manifest: Manifest, file: OnnxFile, session: Any, provider: str, threads: int) -> None:
        self.path, self.manifest, self.file = path, manifest, file
        self.provider, self.threads = provider, threads
        self._session, self._process = session, os.getpid()

    def run(self, pixel_values: Floats | DeviceBatch) -> dict[str, npt.NDArray[Any]]:
        """Every output of the file, by name, for pixel values that are ready for the network.

        pixel_values float32 (B, C, H, W), finite; H and W as in the manifest, or multiples of its `multiple_of` where it has one. Or a
        batch that `to_device` has put on the GPU.
        Raises: InputError for another dtype or shape, NaN or Inf, or a batch above max_batch; SessionError after a fork, or if the provider
        fails; ModelError if an output has another shape than the file says.
        """
        self._check(pixel_values)
        names = [output.name for output in self.manifest.outputs]
        try:
            values = self._session.run(names, {self.manifest.input_name: pixel_values})
        except Exception as error:
            raise self._failure(len(pixel_values), error) from error
        for output, value in zip(self.manifest.outputs, values, strict=True):
            shape = (len(pixel_values), *output.shape[1:])
            if not _fits(value.shape, shape):
                raise ModelError(f"{self.path} gave {output.name} of shape {value.shape}, its manifest says {shape}; export it again")
        return dict(zip(names, values, strict=True))

    def empty(self, batch: int) -> Floats:
        """Room for a batch at the file's own size, float32 (batch, C, H, W), values unset: fill it and `run` it.

        On "cuda" and "tensorrt" it is page-locked memory, from which the GPU fetches without a copy in between. Raises: SessionError
        there after a fork.
        """
        if isinstance(self._session, GpuSession):
            self._check_process()  # its memory is the parent's
            return self._session.empty(batch)
        return np.empty((batch, self.manifest.preprocessing.channels, *self.manifest.image_size), np.float32)

    def to_device(self, pixel_values: Floats) -> DeviceBatch:
        """Copy a batch to the GPU, where it stays as long as the result is held: for running it more than once, without cuda_graph.

        Raises: InputError and SessionError as `run`, InputError for another provider than "cuda" and "tensorrt".
        """
        if not isinstance(self._session, GpuSession) or self.provider == "tensorrt-rtx":
            raise InputError(f"got a batch to put on a GPU for provider {self.provider!r}, expected 'cuda' or 'tensorrt'")
        self._check(pixel_values)
        try:
            return self._session.to_device(pixel_values)
        except Exception as error:
            raise self._failure(len(pixel_values), error) from error

    def _check(self, pixel_values: Any) -> None:
        """Raises: InputError for what the network cannot take, SessionError after a fork."""
        on_device = isinstance(pixel_values, DeviceBatch)
        if on_device and not isinstance(self._session, GpuSession):
            raise InputError(f"got a batch on a GPU for provider {self.provider!r}, expected a numpy array of float32")
        if not on_device and (not isinstance(pixel_values, np.ndarray) or pixel_values.dtype != np.float32):
            got = pixel_values.dtype if isinstance(pixel_values, np.ndarray) else type(pixel_values).__name__
            raise InputError(f"got pixel values of {got}, expected a numpy array of float32; use .astype(np.float32)")
        if not self._takes(pixel_values.shape):
            wanted = f"({', '.join(map(str, self.manifest.input_shape))})"
            if self.manifest.multiple_of is not None:
                wanted += f" with height and width in multiples of {self.manifest.multiple_of}"
            raise InputError(f"got pixel values of shape {pixel_values.shape}, expected {wanted}; `predict` resizes images")
        if not on_device and not np.isfinite(pixel_values).all():
            raise InputError("got pixel values with NaN or Inf in them, expected finite numbers; check how they were prepared")
        if isinstance(self._session, GpuSession):
            self._session.check(pixel_values)
        self._check_process()

    def _check_process(self) -> None:
        """Raises: SessionError after a fork."""
        if os.getpid() != self._process:
            raise SessionError(
                "this model was loaded before the process forked, and its threads stayed behind; call vit_runtime.load in the child"
            )

    def _failure(self, batch: int, error: Exception) -> SessionError:
        """What the provider failed with on a batch, and what to do."""
        if self.provider not in GPU_PROVIDERS:
            return SessionError(f"{self.provider} failed on a batch of {batch}: {one_line(error)}; try a smaller batch")
        if not out_of_memory(error):
            return SessionError(f"{self.provider} failed on a batch of {batch}: {one_line(error)}; ask `vit-doctor`")
        smaller = f"run at most {batch // 2} images together, " if batch > 1 else ""
        remedy = f"{smaller}free what `nvidia-smi` shows in use, or export in half precision"
        return SessionError(f"{self.provider} ran out of memory on a batch of {batch} ({one_line(error)}); {remedy}")

    @overload
    def predict(self, images: ImageInput, batch_size: int | None = ...) -> Prediction: ...
    @overload
    def predict(self, images: list[Image] | tuple[Image, ...], batch_size: int | None = ...) -> list[Prediction]: ...
    @overload
    def predict(self, images: Iterator[Image], batch_size: int | None = ...) -> Iterator[Prediction]: ...
    def predict(self, images: Any, batch_size: int | None = None) -> Any:
        """Classify images: one gives a Prediction, a list a list, an iterator an iterator that reads on as it is read.

        An image is a path, encoded bytes, a PIL image, or an array uint8 (H, W, 3) in RGB. `batch_size` of them go through the network
        together: 8, or max_batch if that is less.
        Raises: ImageError, InputError (also where the file has no classes: no logits, or a head that projects, as CLIP's).
        """
        if self.manifest.class_scores is None:
            raise InputError(f"{self.path} {no_classes(self.manifest, 'use `embed`')}")
        return self._apply(images, batch_size, lambda batch: [Prediction(row, self.manifest.labels) for row in self.run(batch)["logits"]])

    @overload
    def embed(self, images: ImageInput, batch_size: int | None = ...) -> Floats: ...
    @overload
    def embed(self, images: list[Image] | tuple[Image, ...], batch_size: int | None = ...) -> list[Floats]: ...
    @overload
    def embed(self, images: Iterator[Image], batch_size: int | None = ...) -> Iterator[Floats]: ...
    def embed(self, images: Any, batch_size: int | None = None) -> Any:
        """The representation of images, float32 (D,) each; takes and gives one, a list or an iterator, as `predict` does.

        It is the output "embedding", the head's input. Where the head projects into a space that images and texts share (CLIP, SigLIP of
        some makers) and the file has its output, it is that one, "logits": what CLIP calls image_embeds, not normalised.
        Raises: ImageError, InputError (also where the file has neither).
        """
        features = self.manifest.features
        if features is None:
            raise InputError(f"{self.path} {no_features(self.manifest, 'embed with')}")
        return self._apply(images, batch_size, lambda batch: list(self.run(batch)[features]))

    def placement(self) -> tuple[NodePlacement, ...]:
        """Where each node of the graph runs. Raises: MachineError before onnxruntime 1.24, which does not tell."""
        return node_placement(self._session.session if isinstance(self._session, GpuSession) else self._session)

    @property
    def device(self) -> dict[str, str]:
        """The GPU, as an option of onnxruntime; empty without one."""
        return {"device_id": str(self._session.options.device)} if isinstance(self._session, GpuSession) else {}

    def _takes(self, shape: tuple[int, ...]) -> bool:
        multiple = self.manifest.multiple_of or 1
        return _fits(shape, self.manifest.input_shape) and 0 not in shape and not any(side % multiple for side in shape[2:])

    def _apply(self, images: Any, batch_size: int | None, network: Any) -> Any:
        if batch_size is None:
            most = self._session.max_batch if isinstance(self._session, GpuSession) else None
            batch_size = min(BATCH_SIZE, most or BATCH_SIZE)
        if batch_size < 1:
            raise InputError(f"got batch size {batch_size}, expected at least 1")
        if isinstance(images, Iterator):
            return self._stream(images, batch_size, network)
        if isinstance(images, (list, tuple)):
            return list(self._stream(iter(images), batch_size, network))
        return next(self._stream(iter([images]), 1, network))

    def _stream(self, images: Iterator[ImageInput], batch_size: int, network: Any) -> Iterator[Any]:
        while batch := list(islice(images, batch_size)):
            yield from network(pixel_values(batch, self.manifest.preprocessing, self.empty))


def no_classes(manifest: Manifest, instead: str) -> str:
    """Why a file does not classify and what to do `instead` if it has something that stands for an image; its path goes before it."""
    names = ", ".join(output.name for output in manifest.outputs)
    why = f"has outputs {names} and no logits to classify with"
    if manifest.model["projection"]:
        why = "has no classes: its head projects images into a space that they share with texts"
    return f"{why}; {instead if manifest.features else 'export it with --outputs logits, or embedding where it has no head'}"


def no_features(manifest: Manifest, verb: str) -> str:
    """Why a file has nothing that stands for an image, and what to do; its path goes before it."""
    names = ", ".join(output.name for output in manifest.outputs)
    return f"has outputs {names} and no embedding to {verb}; export it with --outputs embedding"


def _fits(shape: tuple[int, ...], wanted: tuple[int | str, ...]) -> bool:
    """Whether a shape has the sizes that are numbers in `wanted`, and as many as it."""
    return len(shape) == len(wanted) and all(isinstance(size, str) or size == found for found, size in zip(shape, wanted, strict=True))


def load(
    path: str | os.PathLike[str],
    provider: str = "auto",
    threads: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    device_id: int | None = None,
    max_batch: int | None = None,
    cuda_graph: bool = False,
    stream: int | None = None,
    tell: Callable[[str], None] = silent,
) -> Model:
    """Load an exported file.

    `provider` is "cpu", "openvino", "cuda", "tensorrt" or "tensorrt-rtx", which then runs or raises, or "auto": the best that truly works
    here and runs the whole file. A file with an engine inside wants the engine's own provider, by name.
    `threads` of a CPU; by default the physical cores that this process may use. `cache_dir` is a folder in which OpenVINO and TensorRT keep
    what they compiled; without it the one that the environment variable VIT_DEPLOY_CACHE names; without that OpenVINO keeps nothing, and
    TensorRT, which builds for minutes, uses the system's folder for caches.

    For a GPU only: `device_id`, by default 0; `max_batch`, the largest batch that `run` takes, for which TensorRT builds and tunes its
    engine (8 by default). For "cuda" and "tensorrt": `cuda_graph` to launch the network as a whole, recorded while it is loaded, with
    batches filled up to recorded sizes; `stream`, the address of a CUDA stream to run on. `tell` hears what takes long.
    Raises: ModelError, ProviderError, MachineError, InputError.
    """
    file_path, folder = Path(path), Path(cache_dir) if cache_dir is not None else None
    options = GpuOptions(device_id, max_batch, cuda_graph, stream)
    check_options(provider, options, cache_dir)
    manifest, file = read_manifest(file_path)
    if (held := read_held(file)) is not None and provider != held.provider:  # by name, as an engine is code, run as it lies there
        remedy = f"if you trust it, load it with provider {held.provider!r}"
        raise ProviderError(f"{path} holds {held}, which provider {provider!r} does not run; {remedy}")
    session: Any
    if provider in GPU_PROVIDERS:
        session, chosen = open_gpu(file_path, manifest, file, provider, threads, options, folder, tell), provider
    else:
        wanted = manifest.execution
        session, chosen = create_session(
            file_path, provider, threads, made_for=wanted.provider, arithmetic=wanted.arithmetic, cache_dir=named_folder(folder)
        )
        if chosen == "cuda":  # which "auto" has taken
            try:
                check_placement(file_path, chosen, node_placement(session))
                session = GpuSession(session, chosen, manifest, file, options)
            except ProviderError:  # a file for a CPU, some of whose ops CUDA has no kernels for: what runs it whole
                chosen = "openvino" if wanted.provider == "openvino" and probe("openvino").works else "cpu"
                session, _ = create_session(file_path, chosen, threads, arithmetic=wanted.arithmetic, cache_dir=named_folder(folder))
    return Model(file_path, manifest, file, session, chosen, threads or physical_cores())
