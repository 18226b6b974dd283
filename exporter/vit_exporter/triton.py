"""A model repository for NVIDIA's Triton Inference Server, from a file that vit-export wrote: everything it needs stands in the manifest.

Two models go into the repository, named after the file:

    NAME/         the network on Triton's onnxruntime backend: pixel values in, the file's outputs out
    NAME_image/   the same file in the Python backend, run by vit_runtime: encoded images in, outputs and probabilities out

Both hold the file byte for byte. What the fields of config.pbtxt mean: Triton's model_config.proto.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_runtime.errors import InputError, MachineError, no_folder
from vit_runtime.gpu_options import GpuOptions, profile
from vit_runtime.manifest import Manifest, Output, read_manifest
from vit_runtime.onnx_file import OnnxFile
from vit_runtime.triton import IMAGE, PROBABILITIES

HEADER = "# written by vit-export"  # the first line of config.pbtxt; --force replaces nothing that starts otherwise
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # what a folder, a URL and a metric's label all take
VERSION = "1"
LABELS, WARMUP = "labels.txt", "grey"
MODEL_PY = '''"""Encoded images in, what the network says of them out; the file beside this one says how (vit_runtime.triton)."""

from vit_runtime.triton import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
# One grey pixel as a PPM picture, which resizing makes as large as need be.
GREY = b"P6 1 1 255\n\x80\x80\x80"

PROVIDERS = {"openvino": "openvino", "cuda": "cuda", "tensorrt": "tensorrt"}  # by target; every other one is for onnxruntime's CPU


@dataclass(frozen=True)
class Batching:
    """The largest batch, the sizes to go for, and how long a request may wait for others, in microseconds."""

    largest: int
    preferred: tuple[int, ...]
    delay: int


# A CPU gains little from more than a few images at once, a GPU is not full before some dozens. The delay is small beside a batch's time.
CPU, GPU = Batching(8, (4, 8), 2000), Batching(32, (8, 16, 32), 1000)


@dataclass(frozen=True)
class TritonRepository:
    """What was written: the folder, its two models, the kind of their instances, their largest batch."""

    folder: Path
    models: tuple[str, str]
    kind: str
    max_batch_size: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        document = {"folder": str(self.folder), "models": list(self.models), "kind": self.kind, "max_batch_size": self.max_batch_size}
        return {**document, "notes": list(self.notes)}


def write_triton(model: str | os.PathLike[str], folder: str | os.PathLike[str], force: bool = False) -> TritonRepository:
    """Add the file's two models to the repository `folder`, which is made where it does not exist; other models in it stay.

    Each model appears whole, and both or none. `force` replaces models that this function wrote.
    Raises: ModelError for a file that is not ours; InputError for a name or folder that cannot be; MachineError without room.
    """
    path, folder = Path(model), Path(folder)
    manifest, file = read_manifest(path)
    check_triton(path, folder, force)
    names = _names(path)
    made = not folder.exists()
    try:
        folder.mkdir(exist_ok=True)
        _check_room(folder, file)
        with tempfile.TemporaryDirectory(prefix=f".{path.stem}.", dir=folder) as scratch:
            _write(Path(scratch), names, manifest, file)
            check_triton(path, folder, force)
            _commit(Path(scratch), folder, names)
    except BaseException as error:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise _told(error, folder) from error
        raise
    unnamed = manifest.class_scores is not None and manifest.labels is None
    notes = ("the file has no labels, so Triton tells classes by their numbers; export with --labels FILE",) if unnamed else ()
    return TritonRepository(folder, names, _kind(manifest), _batching(manifest).largest, notes)


def check_triton(model: Path, folder: Path, force: bool) -> None:
    """Whether `model` may become models of the repository `folder`; the file need not exist yet. Raises: InputError."""
    if not NAME.fullmatch(model.stem):
        raise InputError(
            f"got the name {model.stem!r} for a Triton model, expected letters, digits, '.', '_' and '-', a letter or digit first; "
            "rename the .onnx file, after which models are named"
        )
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise InputError(f"--triton {folder} is a file, expected a folder; choose another name")
    place = folder if os.path.isdir(folder) else folder.parent
    if not os.path.isdir(place):
        raise InputError(f"--triton {folder}: {no_folder(place)}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"--triton {folder}: the folder {place} is not writable; choose another one")
    for name in _names(model):
        earlier = folder / name
        if os.path.lexists(earlier) and not force:
            raise InputError(f"{earlier} exists; --force replaces it")
        if os.path.lexists(earlier) and not _is_ours(earlier):
            raise InputError(f"{earlier} exists and is no model that vit-export wrote, so --force leaves it alone; choose another folder")


def _names(model: Path) -> tuple[str, str]:
    return model.stem, f"{model.stem}_image"


def _is_ours(folder: Path) -> bool:
    try:
        with (folder / "config.pbtxt").open(encoding="utf-8", errors="replace") as config:
            return not folder.is_symlink() and config.readline().startswith(HEADER)
    except OSError:
        return False


def _check_room(folder: Path, file: OnnxFile) -> None:
    free = shutil.disk_usage(folder).free
    if free < file.size:
        raise MachineError(
            f"{folder} has {free / 1e6:.1f} MB free, expected at least {file.size / 1e6:.1f} MB; make room or choose another folder"
        )


def _told(error: OSError, folder: Path) -> InputError | MachineError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return MachineError(f"{folder} ran full while the repository was written; nothing was left behind; make room")
    return InputError(f"--triton {folder} cannot be written ({error.strerror or error}); choose another folder")


def _write(scratch: Path, names: tuple[str, str], manifest: Manifest, file: OnnxFile) -> None:
    network, image = (scratch / name for name in names)
    for folder, config in ((network, network_config(names[0], manifest)), (image, image_config(names[1], manifest))):
        (folder / VERSION).mkdir(parents=True)
        (folder / "config.pbtxt").write_text(config, encoding="utf-8")
        if manifest.labels is not None:
            lines = [" ".join(label.splitlines()) for label in manifest.labels]  # a line each
            (folder / LABELS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for source in (file.path, *(file.path.parent / name for name in file.external_files)):
        name = source.name if source != file.path else "model.onnx"  # a file knows its weights by their name
        shutil.copyfile(source, network / VERSION / name)
        try:
            os.link(network / VERSION / name, image / VERSION / name)  # gigabytes need not lie there twice
        except OSError:
            shutil.copyfile(source, image / VERSION / name)
    (image / VERSION / "model.py").write_text(MODEL_PY, encoding="utf-8")
    (image / "warmup").mkdir()
    (image / "warmup" / WARMUP).write_bytes(len(GREY).to_bytes(4, "little") + GREY)  # as Triton lays out an element of type BYTES


def _commit(scratch: Path, folder: Path, names: tuple[str, str]) -> None:
    """Move the models to their places; if one cannot move, everything is as it was."""
    moved: list[tuple[Path, Path]] = []
    try:
        for name in names:
            for source, target in ((folder / name, scratch / f"{name}.earlier"), (scratch / name, folder / name)):
                if source.exists():
                    source.rename(target)
                    moved.append((source, target))
    except BaseException:
        for source, target in reversed(moved):
            target.rename(source)
        raise


def network_config(name: str, manifest: Manifest) -> str:
    """config.pbtxt of the network on Triton's onnxruntime backend."""
    batching, channels = _batching(manifest), manifest.preprocessing.channels
    sides = manifest.image_size if manifest.multiple_of is None else (-1, -1)
    zeros = f"data_type: TYPE_FP32 dims: {_list((channels, *manifest.image_size))} zero_data: true"
    lines = [
        f'platform: "onnxruntime_onnx"\nmax_batch_size: {batching.largest}',
        _block("input", [f"name: {_quoted(manifest.input_name)} data_type: TYPE_FP32 dims: {_list((channels, *sides))}"]),
        _block("output", [_output(output, manifest) for output in manifest.outputs]),
        _scheduling(manifest),
        *_accelerators(manifest),
        _warmup(manifest.input_name, zeros, batching),
    ]
    return _document(name, manifest, lines)


def image_config(name: str, manifest: Manifest) -> str:
    """config.pbtxt of the Python model that takes encoded images."""
    batching, scores = _batching(manifest), manifest.class_scores
    outputs = [_output(output, manifest) for output in manifest.outputs]
    for output in manifest.outputs:
        if output.name == scores:
            outputs.append(f"name: {_quoted(PROBABILITIES)} data_type: TYPE_FP64 dims: {_list(output.shape[1:])}{_labelled(manifest)}")
    provider = PROVIDERS.get(manifest.build.get("target", ""), "cpu")
    lines = [
        f'backend: "python"\nmax_batch_size: {batching.largest}',
        _block("input", [f"name: {_quoted(IMAGE)} data_type: TYPE_STRING dims: [1]"]),
        _block("output", outputs),
        _scheduling(manifest),
        f'parameters {{ key: "provider" value {{ string_value: {_quoted(provider)} }} }}',
        _warmup(IMAGE, f"data_type: TYPE_STRING dims: [1] input_data_file: {_quoted(WARMUP)}", batching),
    ]
    return _document(name, manifest, lines)


def _document(name: str, manifest: Manifest, parts: Sequence[str]) -> str:
    made = f"{HEADER}: target {manifest.build.get('target')}, {manifest.build.get('precision')}"
    return "\n".join([" ".join(made.splitlines()), f"name: {_quoted(name)}", *parts]) + "\n"


def _kind(manifest: Manifest) -> str:
    return "KIND_GPU" if manifest.build.get("target") in ("cuda", "tensorrt") else "KIND_CPU"


def _batching(manifest: Manifest) -> Batching:
    return GPU if _kind(manifest) == "KIND_GPU" else CPU


def _output(output: Output, manifest: Manifest) -> str:
    """Outputs are float32 whatever the network computes in."""
    labels = _labelled(manifest) if output.name == manifest.class_scores else ""
    return f"name: {_quoted(output.name)} data_type: TYPE_FP32 dims: {_list(output.shape[1:])}{labels}"


def _labelled(manifest: Manifest) -> str:
    return f" label_filename: {_quoted(LABELS)}" if manifest.labels is not None else ""


def _scheduling(manifest: Manifest) -> str:
    batching = _batching(manifest)
    sizes = f"preferred_batch_size: {_list(batching.preferred)} max_queue_delay_microseconds: {batching.delay}"
    return f"instance_group [ {{ kind: {_kind(manifest)} count: 1 }} ]\ndynamic_batching {{ {sizes} }}"


def _accelerators(manifest: Manifest) -> list[str]:
    """What onnxruntime's providers for NVIDIA are told.

    CUDA: float32 stays float32, as in the file's record; TF32, the default, keeps 10 bits of the 23. TensorRT: one engine for all batches,
    as vit_runtime has it. It is told no precision, and so types the network as the file does.
    """
    target, parameters = manifest.build.get("target"), dict[str, str]()
    if target not in ("cuda", "tensorrt"):
        return []
    if target == "cuda":
        parameters["use_tf32"] = "0"
    else:
        shapes = profile(GpuOptions(max_batch=GPU.largest), manifest)
        parameters = {f"trt_profile_{bound}_shapes": shape for bound, shape in zip(("min", "opt", "max"), shapes, strict=True)}
    inner = "".join(f"\n    parameters {{ key: {_quoted(key)} value: {_quoted(value)} }}" for key, value in parameters.items())
    return [
        f"optimization {{ execution_accelerators {{\n  gpu_execution_accelerator [ {{\n    name: {_quoted(target)}{inner}\n  }} ]\n}} }}"
    ]


def _warmup(name: str, value: str, batching: Batching) -> str:
    """Before the server says that it is ready: the smallest batch and the largest, so that no client waits for memory or an engine."""
    samples = (("one", 1), ("largest", batching.largest))
    inputs = f"inputs {{ key: {_quoted(name)} value {{ {value} }} }}"
    return _block("model_warmup", [f"name: {_quoted(label)} batch_size: {size} {inputs}" for label, size in samples])


def _block(name: str, entries: Sequence[str]) -> str:
    return f"{name} [\n" + ",\n".join(f"  {{ {entry} }}" for entry in entries) + "\n]"


def _list(sizes: Sequence[int | str]) -> str:
    """Sizes; one with a name is free."""
    return f"[{', '.join(str(size if isinstance(size, int) else -1) for size in sizes)}]"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
