"""An engine inside an .onnx file, for GPUs of one kind: built once, where there is time, and loaded in seconds.

The file's graph is one node, EPContext of com.microsoft, which onnxruntime hands to the provider that the engine is for. Inputs, outputs
and manifest are those of the file that the engine was built from; what it was built for stands in an entry of its own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vit_runtime.errors import InputError, MachineError, ModelError, ProviderError
from vit_runtime.manifest import KEY
from vit_runtime.onnx_file import DTYPES, OnnxFile, TensorInfo, field, field_head, int_field

ENTRY = f"{KEY}.engine"
MAX_BYTES = (1 << 31) - 1  # of a protocol buffer
# By the compiler: the provider that runs its engines, and onnxruntime's name for that.
RUN_BY = {
    "tensorrt": ("tensorrt", "TensorrtExecutionProvider"),
    "tensorrt-rtx": ("tensorrt-rtx", "NvTensorRTRTXExecutionProvider"),
}


@dataclass(frozen=True)
class Held:
    """What the engine in a file was built by and for. `sm` None: every GPU from Ampere on; `max_batch` None: a fixed batch."""

    compiler: str
    version: str
    sm: int | None
    max_batch: int | None

    @property
    def provider(self) -> str:
        """The one that runs it."""
        return RUN_BY[self.compiler][0]

    def __str__(self) -> str:
        gpus = f"SM {self.sm}" if self.sm is not None else "GPUs from Ampere on"
        return f"an engine of {self.compiler} {self.version} for {gpus}"


def read_held(file: OnnxFile) -> Held | None:
    """The engine that a file holds; None for one that holds none. Raises: ModelError for a damaged entry."""
    text = file.metadata.get(ENTRY)
    if text is None:
        return None
    try:
        entry = json.loads(text)
        held = Held(entry["compiler"], entry["version"], entry["sm"], entry["max_batch"])
        numbers = [value for value in (held.sm, held.max_batch) if value is not None]
        sound = held.compiler in RUN_BY and isinstance(held.version, str) and all(type(value) is int and value > 0 for value in numbers)
    except (ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise ModelError(f"{file.path}: its entry {ENTRY} is damaged; build it again with `vit-trt`")
    return held


def write_context(source: OnnxFile, engine: Path, held: Held, out: Path) -> None:
    """Write the engine in the file `engine` as an .onnx file, for `source`, which it was built from. Raises: InputError, MachineError."""
    size = engine.stat().st_size
    document = json.dumps(asdict(held), sort_keys=True)
    metadata = {KEY: source.metadata[KEY], ENTRY: document} if KEY in source.metadata else {ENTRY: document}
    head = _head(source, held, metadata, size)
    if len(head) + size > MAX_BYTES:
        raise InputError(
            f"the engine has {size / 1e9:.1f} GB, an .onnx file holds 2.1 at most; give --out another ending for the bare engine"
        )
    try:
        with engine.open("rb") as reading, out.open("wb") as writing:
            writing.write(head)
            shutil.copyfileobj(reading, writing, 1 << 20)
    except OSError as error:
        raise MachineError(f"{out.parent} has no room for it ({error.strerror or error}); choose another place for --out") from error


def check_held(path: Path, held: Held, version: str, capability: tuple[int, int], gpu: str) -> None:
    """Whether this engine runs on this GPU with this release of TensorRT ("" if it does not tell). Raises: ProviderError."""
    major, minor = capability
    here = 10 * major + minor
    if held.sm != here if held.sm is not None else here < 80:
        raise ProviderError(f"{path} holds {held}, and {gpu} is SM {here}; build one for it with `vit-trt`")
    if version and version.split(".")[:3] != held.version.split(".")[:3]:
        raise ProviderError(f"{path} holds {held}, and provider {held.provider!r} brings {version} here; build it again with `vit-trt`")


def _head(source: OnnxFile, held: Held, metadata: Mapping[str, str], size: int) -> bytes:
    """Everything of the file before the engine's bytes, which are its last (onnx/onnx.proto; EPContext in onnxruntime's contrib ops)."""
    opsets = {"": source.opsets.get("", 1), "com.microsoft": 1}
    model = int_field(1, source.ir_version) + field(2, b"vit-deploy")
    model += b"".join(field(8, field(1, domain.encode()) + int_field(2, version)) for domain, version in opsets.items())
    model += b"".join(field(14, field(1, key.encode()) + field(2, text.encode())) for key, text in metadata.items())
    graph = field(2, b"engine") + _values(11, source.inputs) + _values(12, source.outputs)
    node = b"".join(field(1, info.name.encode()) for info in source.inputs)
    node += b"".join(field(2, info.name.encode()) for info in source.outputs)
    node += field(3, b"engine") + field(4, b"EPContext") + field(7, b"com.microsoft")
    texts = {
        "source": RUN_BY[held.compiler][1],
        "ep_sdk_version": held.version,
        "hardware_architecture": str(held.sm) if held.sm is not None else "80+",
        "onnx_model_filename": source.path.name,
        "partition_name": "engine",
    }
    node += b"".join(field(5, field(1, name.encode()) + int_field(20, 3) + field(4, text.encode())) for name, text in texts.items())
    node += b"".join(field(5, field(1, name) + int_field(20, 2) + int_field(3, 1)) for name in (b"embed_mode", b"main_context"))
    head = field_head(4, size)
    for outer, before in ((5, field(1, b"ep_cache_context") + int_field(20, 3)), (1, node), (7, graph)):
        head = before + head
        head = field_head(outer, len(head) + size) + head
    return model + head


def _values(kind: int, infos: Sequence[TensorInfo]) -> bytes:
    """Inputs or outputs of a graph."""
    types = {name: key for key, name in DTYPES.items()}
    written = b""
    for info in infos:
        sizes = (int_field(1, size) if isinstance(size, int) else field(2, size.encode()) for size in info.shape)
        shape = b"".join(field(1, each) for each in sizes)
        tensor = field(1, int_field(1, types[info.dtype]) + field(2, shape))
        written += field(kind, field(1, info.name.encode()) + field(2, tensor))
    return written
