"""Proof that a network recovered from an ONNX file computes what that file computes, by running both on the same images.

Whether a graph was understood rightly cannot be seen by looking at it. So the original runs in onnxruntime, its inner values put out where
the network's outputs stand in it, and is held against the recovered network in float64. The unit is the network's own float32 error, as
everywhere in this project (docs/parity.md): a faithful original is about one such floor away, a mistaken constant hundreds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vit_exporter.reference import float32_outputs, float64_outputs
from vit_models import Options, ViT, ViTConfig, load
from vit_models.checkpoints.onnx_graph import landmarks, open_onnx, plan
from vit_models.checkpoints.onnx_graph.protobuf import Graph
from vit_runtime.errors import InputError, ModelError
from vit_runtime.golden import golden_images
from vit_runtime.manifest import Error
from vit_runtime.parity import FLOAT32_LIMITS, measure, scale_of
from vit_runtime.providers import load_onnxruntime

Array = npt.NDArray[Any]

SEED = 0
IMAGES = 4  # golden images, and as many of noise
CHUNK = 4
UNIT_ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11}  # no floor is taken to be below that of the original's own numbers


@dataclass(frozen=True)
class Comparison:
    """One output: the value of the original that it is, the original's error against the network in float64, and the same in floors."""

    output: str
    value: str
    error: Error
    rms_floors: float
    max_floors: float

    @property
    def passed(self) -> bool:
        """Whether both are within `FLOAT32_LIMITS`; NaN never is."""
        return bool(self.rms_floors <= FLOAT32_LIMITS.rms and self.max_floors <= FLOAT32_LIMITS.max)

    def __str__(self) -> str:
        return f"{self.output} {self.error.rms:.1e} relative rms, {self.rms_floors:.2f}x PyTorch's own float32 error"


@dataclass(frozen=True)
class Proof:
    """What came of running both. `cosines` are those of each image's first token (the class token), the caller's images first."""

    comparisons: tuple[Comparison, ...]
    images: int
    cosines: tuple[float, ...]

    @property
    def passed(self) -> bool:
        """Whether every output is within the limits."""
        return all(comparison.passed for comparison in self.comparisons)

    def __str__(self) -> str:
        verdict = "the original computes the same" if self.passed else "the original computes something else"
        return f"{verdict}, on {self.images} images: {'; '.join(map(str, self.comparisons))}"


def prove(path: Path, model: ViT | None = None, pixel_values: npt.NDArray[np.float32] | None = None) -> Proof:
    """Run the original file at `path` and the network recovered from it on the same images, and compare what both compute.

    `model` is the recovered network, at the size that the file is fixed to (any, where it is free); left out, it is loaded here and let
    go again. `pixel_values` are further images, normalised, float32 (B, C, H, W), such as photographs; golden images and noise are
    always run. Compared are the tokens, and the embedding and logits where the original has them and the model has not been told to pool
    or classify otherwise.

    Raises: InputError for a model or images of another size; CheckpointError for a file that is no recoverable Vision Transformer;
    ModelError for one that onnxruntime refuses; MachineError without onnxruntime.
    """
    file = open_onnx(path)
    fixed = file.extras["img_size"]
    if model is None:
        model, _ = load(path, Options(img_size=fixed))
    config = model.config
    if fixed not in (None, config.img_size):
        raise InputError(f"got a network for images of {config.img_size}, expected {fixed}, the only size at which {path.name} runs")
    found = landmarks(file)
    values = {name: found[name] for name in _unchanged(plan(file, Options()).config, config) if name in found}
    with torch.device("meta"):
        whole = ViT(config, tuple(values))
    whole.load_state_dict(model.state_dict(), assign=True)
    inputs = _inputs(config, pixel_values)
    theirs = _original(path, file.extras["graph"], values, inputs)
    exact, single = (_in_chunks(outputs, whole.eval(), inputs) for outputs in (float64_outputs, float32_outputs))
    comparisons = [_compare(name, values[name], exact[name], single[name], theirs[name]) for name in values]
    return Proof(tuple(comparisons), len(inputs), _cosines(exact["tokens"][:, 0], theirs["tokens"][:, 0]))


def _unchanged(original: ViTConfig, config: ViTConfig) -> tuple[str, ...]:
    """The outputs that the model computes as the original does, whatever it was told to do otherwise."""
    pooled = all(getattr(original, name) == getattr(config, name) for name in ("pool", "final_norm", "representation_size"))
    classified = pooled and original.num_classes == config.num_classes > 0
    return ("tokens", *(("embedding",) if pooled else ()), *(("logits",) if classified else ()))


def _compare(name: str, value: str, exact: Array, single: Array, original: Array) -> Comparison:
    scale, least = scale_of(exact), UNIT_ROUNDOFF[str(original.dtype)]
    floor = measure(exact, single, scale)
    error = measure(exact, original.reshape(exact.shape), scale)
    return Comparison(name, value, error, error.rms / max(floor.rms, least), error.max / max(floor.max, least))


def _inputs(config: ViTConfig, pixel_values: npt.NDArray[np.float32] | None) -> npt.NDArray[np.float32]:
    """The caller's images, golden images with values from -1 to 1, and noise, float32 (B, C, H, W)."""
    shape = (config.in_chans, *config.img_size)
    given = np.empty((0, *shape), np.float32) if pixel_values is None else pixel_values
    if given.shape[1:] != shape or given.dtype != np.float32:
        raise InputError(f"got images {given.dtype} {given.shape}, expected float32 (any number, {', '.join(map(str, shape))})")
    noise = np.random.default_rng(SEED).standard_normal((IMAGES, *shape), np.float32)
    golden = golden_images(SEED, IMAGES, *config.img_size).astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1
    return np.concatenate([given, *([golden] if config.in_chans == 3 else []), noise])


def _original(path: Path, graph: Graph, values: Mapping[str, str], inputs: npt.NDArray[np.float32]) -> dict[str, Array]:
    """What the file computes for these values, by the network's names for them."""
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of initialisers that an exporter left unused
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent.resolve()))
    already = {info.name for info in graph.outputs}
    content = path.read_bytes() + b"".join(_output(value) for value in dict.fromkeys(values.values()) if value not in already)
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        given = session.get_inputs()[0]
        batch = given.shape[0] if isinstance(given.shape[0], int) else CHUNK
        dtype = np.float16 if "float16" in given.type else np.float32
        padded = inputs[np.arange(-(-len(inputs) // batch) * batch) % len(inputs)].astype(dtype)
        parts = [session.run(list(values.values()), {given.name: padded[start : start + batch]}) for start in range(0, len(padded), batch)]
    except Exception as error:  # onnxruntime has an error class a status code, all without a name that can be imported from it
        raise ModelError(f"{path}: onnxruntime does not run it ({str(error).splitlines()[0][:200]})") from error
    return {name: np.concatenate([part[place] for part in parts])[: len(inputs)] for place, name in enumerate(values)}


def _output(value: str) -> bytes:
    """Appended to an .onnx file, makes the value one of its outputs: readers of protocol buffers merge a second graph into the first.

    ModelProto's field 7 is the graph, GraphProto's field 12 an output, ValueInfoProto's field 1 its name (onnx/onnx.proto).
    """
    return _field(7, _field(12, _field(1, value.encode())))


def _field(number: int, content: bytes) -> bytes:
    length, size = b"", len(content)
    while size > 0x7F:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def _in_chunks(outputs: Any, model: ViT, inputs: npt.NDArray[np.float32]) -> dict[str, Array]:
    parts = [outputs(model, inputs[start : start + CHUNK]) for start in range(0, len(inputs), CHUNK)]
    return {name: np.concatenate([part[name] for part in parts]) for name in model.outputs}


def _cosines(a: Array, b: Array) -> tuple[float, ...]:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return tuple(((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).tolist())
