"""A loaded model: images in, predictions out, on one execution provider."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

from vit_runtime.errors import InputError, ModelError, SessionError
from vit_runtime.images import ImageInput
from vit_runtime.manifest import Manifest, read_manifest
from vit_runtime.obstacle import one_line
from vit_runtime.onnx_file import OnnxFile
from vit_runtime.openvino_engine import Arithmetic
from vit_runtime.preprocess import pixel_values
from vit_runtime.providers import NodePlacement, create_session, node_placement
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

    def run(self, pixel_values: Floats) -> dict[str, npt.NDArray[Any]]:
        """Every output of the file, by name, for pixel values that are ready for the network.

        pixel_values float32 (B, C, H, W), finite; H and W as in the manifest, or multiples of its `multiple_of` where it has one.
        Raises: InputError for another dtype or shape, NaN or Inf; SessionError after a fork, or if the provider fails; ModelError if an
        output has another shape than the file says.
        """
        if not isinstance(pixel_values, np.ndarray) or pixel_values.dtype != np.float32:
            got = pixel_values.dtype if isinstance(pixel_values, np.ndarray) else type(pixel_values).__name__
            raise InputError(f"got pixel values of {got}, expected a numpy array of float32; use .astype(np.float32)")
        if not self._takes(pixel_values.shape):
            wanted = f"({', '.join(map(str, self.manifest.input_shape))})"
            if self.manifest.multiple_of is not None:
                wanted += f" with height and width in multiples of {self.manifest.multiple_of}"
            raise InputError(f"got pixel values of shape {pixel_values.shape}, expected {wanted}; `predict` resizes images")
        if not np.isfinite(pixel_values).all():
            raise InputError("got pixel values with NaN or Inf in them, expected finite numbers; check how they were prepared")
        if os.getpid() != self._process:
            raise SessionError(
                "this model was loaded before the process forked, and its threads stayed behind; call vit_runtime.load in the child"
            )
        names = [output.name for output in self.manifest.outputs]
        try:
            values = self._session.run(names, {self.manifest.input_name: pixel_values})
        except Exception as error:
            raise SessionError(
                f"{self.provider} failed on a batch of {len(pixel_values)}: {one_line(error)}; try a smaller batch"
            ) from error
        for output, value in zip(self.manifest.outputs, values, strict=True):
            shape = (len(pixel_values), *output.shape[1:])
            if not _fits(value.shape, shape):
                raise ModelError(f"{self.path} gave {output.name} of shape {value.shape}, its manifest says {shape}; export it again")
        return dict(zip(names, values, strict=True))

    @overload
    def predict(self, images: ImageInput, batch_size: int = ...) -> Prediction: ...
    @overload
    def predict(self, images: list[Image] | tuple[Image, ...], batch_size: int = ...) -> list[Prediction]: ...
    @overload
    def predict(self, images: Iterator[Image], batch_size: int = ...) -> Iterator[Prediction]: ...
    def predict(self, images: Any, batch_size: int = BATCH_SIZE) -> Any:
        """Classify images: one gives a Prediction, a list a list, an iterator an iterator that reads on as it is read.

        An image is a path, encoded bytes, a PIL image, or an array uint8 (H, W, 3) in RGB.
        Raises: ImageError, InputError (also where the file has no classes: no logits, or a head that projects, as CLIP's).
        """
        if self.manifest.class_scores is None:
            raise InputError(f"{self.path} {no_classes(self.manifest, 'use `embed`')}")
        return self._apply(images, batch_size, lambda batch: [Prediction(row, self.manifest.labels) for row in self.run(batch)["logits"]])

    @overload
    def embed(self, images: ImageInput, batch_size: int = ...) -> Floats: ...
    @overload
    def embed(self, images: list[Image] | tuple[Image, ...], batch_size: int = ...) -> list[Floats]: ...
    @overload
    def embed(self, images: Iterator[Image], batch_size: int = ...) -> Iterator[Floats]: ...
    def embed(self, images: Any, batch_size: int = BATCH_SIZE) -> Any:
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
        return node_placement(self._session)

    def _takes(self, shape: tuple[int, ...]) -> bool:
        multiple = self.manifest.multiple_of or 1
        return _fits(shape, self.manifest.input_shape) and 0 not in shape and not any(side % multiple for side in shape[2:])

    def _apply(self, images: Any, batch_size: int, network: Any) -> Any:
        if batch_size < 1:
            raise InputError(f"got batch size {batch_size}, expected at least 1")
        if isinstance(images, Iterator):
            return self._stream(images, batch_size, network)
        if isinstance(images, (list, tuple)):
            return list(self._stream(iter(images), batch_size, network))
        return next(self._stream(iter([images]), 1, network))

    def _stream(self, images: Iterator[ImageInput], batch_size: int, network: Any) -> Iterator[Any]:
        while batch := list(islice(images, batch_size)):
            yield from network(pixel_values(batch, self.manifest.preprocessing))


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
) -> Model:
    """Load an exported file.

    `provider` is "cpu", "openvino", "cuda" or "tensorrt", which then runs or raises, or "auto": the best that truly works here.
    `threads` of a CPU; by default the physical cores that this process may use. `cache_dir` is a folder in which OpenVINO keeps what it
    compiled, for a faster start the next time.
    Raises: ModelError, ProviderError, MachineError, InputError.
    """
    file_path = Path(path)
    manifest, file = read_manifest(file_path)
    wanted, folder = manifest.execution, Path(cache_dir) if cache_dir is not None else None
    arithmetic = Arithmetic(wanted.bf16, wanted.int8_group)
    session, chosen = create_session(file_path, provider, threads, made_for=wanted.provider, arithmetic=arithmetic, cache_dir=folder)
    return Model(file_path, manifest, file, session, chosen, threads or physical_cores())
