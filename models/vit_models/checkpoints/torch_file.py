"""What torch.save writes, and TorchScript archives: pickled structure, with the numbers beside it.

Three containers: a zip with PREFIX/data.pkl and one member a storage (torch 1.6 and later), the same with code (TorchScript), and a row
of pickles followed by the storages (before 1.6). torch.load(weights_only=True) refuses what training checkpoints carry of argparse and
NumPy unless their real classes are allowed, which then do run; it also has to copy the old container into memory. Here the pickle is
read as data (see pickle_data.py): nothing is imported, called or executed, not even torch, and every storage stays where it lies.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vit_models.checkpoints.claims import MAX_ELEMENTS, check_name, check_shape, shown
from vit_models.checkpoints.mapped import DTYPES, MappedFile, MappedTensor, Stored, span
from vit_models.checkpoints.pickle_data import Name, Opaque, Record, read_pickle
from vit_models.checkpoints.plan import TensorInfo
from vit_models.checkpoints.zip_file import Member

if TYPE_CHECKING:
    from torch import Tensor

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
MAX_DEPTH, MAX_MODULES = 40, 100_000  # of a TorchScript module

# The storage class, or the dtype, that a pickle names: the dtype's name in safetensors.
STORAGES = {
    "torch.DoubleStorage": "F64", "torch.FloatStorage": "F32", "torch.HalfStorage": "F16", "torch.BFloat16Storage": "BF16",
    "torch.LongStorage": "I64", "torch.IntStorage": "I32", "torch.ShortStorage": "I16", "torch.CharStorage": "I8",
    "torch.ByteStorage": "U8", "torch.BoolStorage": "BOOL", "torch.ComplexFloatStorage": "C64", "torch.ComplexDoubleStorage": "C128",
    "torch.UntypedStorage": "U8", "torch.storage.UntypedStorage": "U8",
}  # fmt: skip
TORCH_DTYPES = {f"torch.{torch_name}": dtype for dtype, (torch_name, _) in DTYPES.items()}

# What else a checkpoint may name, and what comes of it here: the function itself is never looked up. Long arguments are passed on and
# not copied (but by OrderedDict, which read_pickle counts), as a file may name one long value many times.
MAKERS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda pairs=(): _from_pairs(pairs),
    "collections.defaultdict": lambda factory=None: {},
    "collections.Counter": lambda counts: counts,
    "argparse.Namespace": lambda: Record(),
    "types.SimpleNamespace": lambda: Record(),
    "copyreg._reconstructor": lambda kind, base, state: Record(),
    # Lightning's dict of hyperparameters
    "pytorch_lightning.utilities.parsing.AttributeDict": lambda: {},
    "lightning_fabric.utilities.data.AttributeDict": lambda: {},
    "lightning.fabric.utilities.data.AttributeDict": lambda: {},
    "builtins.set": lambda items=(): items,
    "torch.Size": lambda sizes: sizes,
    "torch.torch_version.TorchVersion": lambda version: version,
    "torch.jit._pickle.build_intlist": lambda items: items,
    "torch.jit._pickle.build_doublelist": lambda items: items,
    "torch.jit._pickle.build_boollist": lambda items: items,
    "torch.jit._pickle.build_tensorlist": lambda items: items,
    "torch.jit._pickle.restore_type_tag": lambda value, kind: value,
    "torch._utils._rebuild_tensor": lambda storage, offset, shape, strides: _tensor(storage, offset, shape, strides),
    "torch._utils._rebuild_tensor_v2": lambda storage, offset, shape, strides, gradient, hooks, bits=None: (
        Opaque("a conjugate or negated view") if bits else _tensor(storage, offset, shape, strides)
    ),
    "torch._utils._rebuild_tensor_v3": lambda storage, offset, shape, strides, gradient, hooks, dtype, bits=None: (
        Opaque("a conjugate or negated view") if bits else _tensor(storage, offset, shape, strides, dtype)
    ),
    "torch._tensor._rebuild_from_type_v2": lambda *parts: Opaque("a subclass of Tensor"),
    "torch._utils._rebuild_parameter": lambda tensor, gradient, hooks: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, gradient, hooks, state: tensor,
}
# Values that no reader here uses: they become markers, and only a marker among the weights is an error.
UNUSED = {
    "_codecs.encode",
    *(f"builtins.{name}" for name in ("bool", "bytearray", "complex", "dict", "float", "frozenset", "int", "list", "object", "range")),
    *(f"builtins.{name}" for name in ("slice", "str", "tuple")),
    *(f"datetime.{name}" for name in ("date", "datetime", "timedelta")),
    *(f"numpy.{name}" for name in ("dtype", "ndarray", "_core.multiarray.scalar", "_core.multiarray._reconstruct")),
    "numpy._core.numeric._frombuffer",
    *(f"pathlib.{name}" for name in ("Path", "PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath")),
    *(f"torch.{name}" for name in ("Tensor", "device", "nn.parameter.Parameter", "per_channel_affine", "per_tensor_affine")),
    *(f"torch.{name}" for name in ("QInt8Storage", "QUInt8Storage", "QInt32Storage", "serialization._get_layout")),
    *(f"torch._utils._rebuild_{name}" for name in ("qtensor", "sparse_tensor", "sparse_csr_tensor", "nested_tensor")),
    *(f"torch._utils._rebuild_{name}" for name in ("meta_tensor_no_storage", "device_tensor_from_numpy")),
}
QUANTISED = {"torch.QInt8Storage": 1, "torch.QUInt8Storage": 1, "torch.QInt32Storage": 4}
RENAMED = (("__builtin__.", "builtins."), ("copy_reg.", "copyreg."), ("numpy.core.", "numpy._core."), ("pathlib._local.", "pathlib."))


@dataclass(eq=False)
class Storage:
    """A row of numbers that tensors are views of. `dtype` is None for quantised ones. `start` is None until it is found in the file."""

    file: MappedFile
    dtype: str | None
    item_size: int
    elements: int
    start: int | None = None
    length: int = 0
    member: Member | None = None
    checked: bool = False


@dataclass(eq=False)
class TorchTensor(Stored):
    """A view of a storage. `offset`, `shape` and `strides` are what the file claims until `check` has been called."""

    storage: Storage
    offset: int
    info: TensorInfo
    strides: tuple[int, ...]

    def check(self, name: str) -> None:
        storage, size = self.storage, DTYPES[self.info.dtype][1]
        start = storage.start
        if start is None:
            raise storage.file.bad(f"the numbers of {shown(name)} are not in the file; it was cut off or damaged, get it again")
        if span(self.info, self.strides) + self.offset * size > min(storage.length, storage.elements * storage.item_size):
            raise storage.file.bad(f"{shown(name)} claims more numbers than are stored; the file is damaged, get it again")

    def read(self, name: str) -> Tensor:
        if self.storage.member is not None and not self.storage.checked:
            self.storage.member.check()
            self.storage.checked = True
        return self._mapped().read(name)

    def release(self) -> None:
        self._mapped().release()

    def _mapped(self) -> MappedTensor:
        start = (self.storage.start or 0) + self.offset * DTYPES[self.info.dtype][1]
        return MappedTensor(self.storage.file, start, self.info, self.strides)


def is_torch(members: Mapping[str, Member]) -> bool:
    """Whether a zip is torch's."""
    return any(name == "data.pkl" or name.endswith("/data.pkl") for name in members)


def is_scripted(members: Mapping[str, Member]) -> bool:
    """Whether torch's zip is a TorchScript archive."""
    return any(name.endswith("constants.pkl") for name in members)


def read_torch_zip(file: MappedFile, members: Mapping[str, Member]) -> Any:
    """The value that torch.save was given, with `TorchTensor`s in it; of a TorchScript archive its tensors by name.

    Raises: CheckpointError.
    """
    pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise file.bad(f"it has {len(pickles)} members named data.pkl, expected one; save it again with torch.save")
    prefix = pickles[0].removesuffix("data.pkl")
    used = [name for name in members if name == pickles[0] or name.startswith(f"{prefix}data/")]
    if packed := [name for name in used if members[name].deflated]:
        raise file.bad(f"its member {shown(packed[0])} is compressed, which torch does not do; save it again with torch.save")
    order = members.get(f"{prefix}byteorder")
    if order is not None and order.head(8) != b"little":
        raise file.bad("its numbers are not little-endian; load it where it was written and save it as safetensors")
    scripted = is_scripted(members)
    world = _World(file, scripted)
    tree = read_pickle(io.BytesIO(members[pickles[0]].whole()), world)
    for key, storage in world.storages.items():
        member = members.get(f"{prefix}data/{key}")
        if member is not None:
            storage.start, storage.length, storage.member = member.start, member.size, member
    return _module_tensors(file, tree) if scripted else tree


def read_torch_legacy(file: MappedFile) -> Any:
    """The value that torch.save of torch before 1.6 was given, with `TorchTensor`s in it. Raises: CheckpointError."""
    if MAGIC.to_bytes(10, "little") not in file.copy(0, 32):
        raise file.bad("it is a plain pickle, not what torch.save writes; save the weights with torch.save(model.state_dict(), path)")
    stream, world = file.stream(), _World(file)
    if read_pickle(stream, world) != MAGIC or read_pickle(stream, world) != PROTOCOL:
        raise file.bad("it is of another version of torch's old format; load it where it was written and save it as safetensors")
    system = read_pickle(stream, world)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise file.bad("its numbers are not little-endian; load it where it was written and save it as safetensors")
    tree = read_pickle(stream, world)
    keys, position = read_pickle(stream, world), stream.tell()
    for key in keys if isinstance(keys, list) else [keys]:
        storage = world.storages.get(key) if isinstance(key, str) else None
        if storage is None or storage.start is not None:
            raise file.bad("its list of storages does not fit its tensors; the file is damaged, get it again")
        elements = int.from_bytes(file.copy(position, 8), "little")
        storage.start, storage.length = position + 8, elements * storage.item_size
        position = storage.start + storage.length
        if position > file.size:
            raise file.bad("it ends in the middle of its numbers; it was cut off, get it again")
    return tree


class _World:
    """What torch's pickles may name."""

    def __init__(self, file: MappedFile, scripted: bool = False) -> None:
        self.file = file
        self.scripted = scripted
        self.storages: dict[str, Storage] = {}

    def name(self, text: str) -> Name:
        for old, new in RENAMED:
            if text.startswith(old):
                text = new + text.removeprefix(old)
        if text in MAKERS or text in UNUSED or text in STORAGES or text in TORCH_DTYPES or self._is_module(text):
            return Name(text)
        raise self.file.bad(
            f"it holds a Python object, {shown(text)}, and nothing but tensors and plain values is read from a pickle; "
            "if you trust the file, load it with torch.load(path, weights_only=False) elsewhere and save its weights alone: "
            "torch.save(model.state_dict(), path)"
        )

    def call(self, name: Name, arguments: tuple[Any, ...]) -> Any:
        if name.text == "torch._tensor._rebuild_from_type_v2":  # a subclass of Tensor: how, which, of what, and its attributes
            match arguments:
                case (Name() as function, _, tuple(inner), _) if function != name:
                    return self.call(function, inner)
        if self._is_module(name.text):
            return Record()
        if name.text in UNUSED:
            return Opaque(name.text)
        try:
            return MAKERS[name.text](*arguments)
        except (TypeError, KeyError) as error:  # another number of arguments, or no maker
            raise self.file.bad(
                f"its pickle calls {name.text} with what torch does not write; the file is damaged, get it again"
            ) from error

    def persistent(self, identity: Any) -> Storage:
        match identity:
            case ("storage", Name(text), str(key), str(), int(elements), *view) if elements >= 0 and view in ([], [None]):
                size = QUANTISED[text] if text in QUANTISED else DTYPES[STORAGES.get(text, "U8")][1]
                return self.storages.setdefault(key, Storage(self.file, STORAGES.get(text), size, elements))
        raise self.file.bad("its pickle describes a storage as torch does not; save it again with torch.save(model.state_dict(), path)")

    def _is_module(self, text: str) -> bool:
        return self.scripted and text.startswith("__torch__.")


def _from_pairs(pairs: Any) -> dict[Any, Any]:
    """An OrderedDict's argument in pickles of Python 2."""
    if not all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        raise TypeError
    return dict(pairs)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, dtype: Any = None) -> TorchTensor | Opaque:
    stored = TORCH_DTYPES.get(dtype.text) if isinstance(dtype, Name) else storage.dtype if isinstance(storage, Storage) else None
    if stored is None and isinstance(storage, Storage):
        return Opaque("a dtype that is not read here")
    shape = check_shape("a tensor", shape)
    numbers = (offset, *strides) if isinstance(strides, tuple) and len(strides) == len(shape) else (-1,)
    if stored is None or not all(type(number) is int and 0 <= number <= MAX_ELEMENTS for number in numbers):
        raise TypeError
    return TorchTensor(storage, offset, TensorInfo(shape, stored), strides)


def _module_tensors(file: MappedFile, root: Any) -> dict[str, TorchTensor]:
    """A TorchScript module's tensors under the names that its state dict gives them."""
    tensors, modules, seen = dict[str, TorchTensor](), [("", root, 0)], 0
    while modules:
        prefix, module, depth = modules.pop()
        seen += 1
        if not isinstance(module, Record) or depth > MAX_DEPTH or seen > MAX_MODULES:
            raise file.bad("its TorchScript archive is not a module; save the weights: torch.save(torch.jit.load(path).state_dict(), path)")
        for name, value in module.items():
            if isinstance(value, TorchTensor):
                tensors[check_name(f"{prefix}{name}")] = value
            elif isinstance(value, Record):
                modules.append((check_name(f"{prefix}{name}."), value, depth + 1))
    return tensors
