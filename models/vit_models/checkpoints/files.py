"""Opening a checkpoint, whatever it is, without trusting it: which files it consists of, and what tensors lie in them.

The content tells the container, never the name. Weights are mapped, so that opening costs no memory, and need torch only when they are
read. Nothing in a file is executed.

A folder's files are those in it. A symbolic link out of the folder is refused, as a checkpoint from elsewhere could name any file, but
one that the Hugging Face hub's cache makes: from snapshots/REVISION/NAME to blobs/HASH of the same repository.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_models.checkpoints.claims import count, parse_json, shown, some
from vit_models.checkpoints.mapped import DTYPES, MappedFile, Stored, open_regular
from vit_models.checkpoints.npz_file import read_npz
from vit_models.checkpoints.plan import CheckpointFile, Options
from vit_models.checkpoints.safetensors_file import read_safetensors
from vit_models.checkpoints.torch_file import is_scripted, is_torch, read_torch_legacy, read_torch_zip
from vit_models.checkpoints.training import unwrap
from vit_models.checkpoints.zip_file import read_zip
from vit_models.errors import CheckpointError, OptionError

if TYPE_CHECKING:
    from torch import Tensor

DOCUMENTS = ("config.json", "preprocessor_config.json", "processor_config.json", "open_clip_config.json")
MAX_DOCUMENT = 4 << 20
INDEX = ".index.json"
# What a folder is opened by, the first that is there.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".npz", ".tar", ".onnx", INDEX)
MAX_CLAIM, SLACK = 2, 1 << 20  # tensors may share a storage, but not all of them many times


def open_checkpoint(path: Path, options: Options = Options()) -> CheckpointFile:
    """The checkpoint in a file or a folder; no weight is read yet.

    The documents are those in the folder, or beside the file. A file is taken for itself: a document beside it that cannot be read is
    left out with a note, in a folder it is an error.
    `read` gives a tensor in its stored dtype, mapped wherever it is not compressed; `release` gives its pages back.

    Raises: CheckpointError, in one line, for everything that is not a checkpoint, damaged, unsafe or not there.
    """
    with _clear_errors(path):
        chosen = _choose(path)
        documents, left_out = _documents(path)
        if chosen.index is None and _container(MappedFile(chosen.files[0])) == "onnx":
            from vit_models.checkpoints.onnx_graph import open_onnx

            return dataclasses.replace(open_onnx(chosen.files[0]), documents=documents, notes=(*chosen.notes, *left_out))
        content = _read_one(chosen.files[0]) if chosen.index is None else _read_shards(chosen.files, chosen.index)
        unwrapped = unwrap(content.tree, options.weights)
        state = unwrapped.state
        for name, tensor in state.items():
            tensor.check(name)
        if content.container == "torch":
            _check_claims(state, sum(file.stat().st_size for file in chosen.files))

    def stored(name: str) -> Stored:
        if name not in state:
            raise CheckpointError(f"{path} has no tensor {shown(name)}; expected one of its {len(state)} names")
        return state[name]

    def read(name: str) -> Tensor:
        with _clear_errors(path):
            return stored(name).read(name)

    return CheckpointFile(
        path=path,
        container=content.container,
        tensors={name: tensor.info for name, tensor in state.items()},
        read=read,
        documents=documents,
        metadata=content.metadata,
        extras=unwrapped.extras,
        notes=(*chosen.notes, *left_out, *content.notes, *unwrapped.notes),
        release=lambda name: stored(name).release(),
    )


def sha256_of(path: Path) -> str:
    """The SHA-256 of a checkpoint's weights, in hexadecimal.

    Of one file of weights it is that file's own, as sha256sum tells it, whether the file or its folder is named. Of shards it is that of
    the lines "NAME\\0SHA-256\\n", one a shard, sorted by name. Raises: CheckpointError.
    """
    with _clear_errors(path):
        digests = {file.name: _digest(file) for file in _choose(path).files}
    if len(digests) == 1:
        return next(iter(digests.values()))
    return hashlib.sha256("".join(f"{name}\0{digests[name]}\n" for name in sorted(digests)).encode()).hexdigest()


def check_sha256(path: Path, expected: str) -> None:
    """Hold a checkpoint against the SHA-256 that it has to have (see `sha256_of`).

    Raises: CheckpointError; OptionError for a text that is no SHA-256.
    """
    if not re.fullmatch(r"[0-9a-fA-F]{64}", expected):
        raise OptionError(f"got the SHA-256 {shown(expected)}, expected 64 hexadecimal digits, as sha256sum prints them")
    found = sha256_of(path)
    if found != expected.lower():
        raise CheckpointError(
            f"{path} has the SHA-256 {found}, expected {expected.lower()}; it is not the file that was pinned, get that one"
        )


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file or the system brings up into one line that names the path."""
    try:
        yield
    except CheckpointError as error:
        if str(error).startswith(str(path)):
            raise
        raise type(error)(f"{path}: {error}") from error
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or path} cannot be read ({error.strerror}); expected a file or folder of weights"
        ) from error
    except MemoryError as error:
        raise CheckpointError(f"{path} claims more than this machine's memory; the file is damaged, or needs a larger machine") from error
    except (ValueError, OverflowError, RecursionError, struct.error, zlib.error, EOFError, RuntimeError) as error:
        # Everything that is known to go wrong has its own message; this is for what a damaged file may still do to a library below.
        raise CheckpointError(f"{path} is damaged ({shown(str(error))}); get the file again") from error


# ---- which files -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """The files of weights. Several are shards, and then `index` tells the shard of each tensor."""

    files: tuple[Path, ...]
    index: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()


def _choose(path: Path) -> Chosen:
    if not path.is_dir():
        return _indexed(path) if path.name.endswith(INDEX) else Chosen((path,))
    names = sorted(entry.name for entry in path.iterdir())
    known = [name for name in WEIGHTS if name in names]
    notes = (f"{' and '.join(known)} are there: took {known[0]}; name another file to take that",) if len(known) > 1 else ()
    if not known:
        known = [name for name in names if name.endswith(SUFFIXES)]
        shards = {file.name for name in known if name.endswith(INDEX) for file in _indexed(_inside(path, name)).files}
        known = [name for name in known if name not in shards]
        if len(known) > 1 and len(models := [name for name in known if not name.endswith(".npz")]) == 1:
            known, notes = models, (f"took {models[0]}, and the .npz files beside it for data; name one of them if it is meant",)
        if len(known) > 1:
            raise CheckpointError(f"{path} has several files of weights, {some(known)}; name the one that is meant")
    if not known:
        there = f"only {some(names)}" if names else "nothing"
        raise CheckpointError(f"{path} has {there} in it, expected weights such as model.safetensors or pytorch_model.bin")
    weights = _inside(path, known[0])
    return dataclasses.replace(_indexed(weights), notes=notes) if weights.name.endswith(INDEX) else Chosen((weights,), notes=notes)


def _indexed(index: Path) -> Chosen:
    """The shards that an index names."""
    document = parse_json(str(index), _document(index))
    shards = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise CheckpointError(f"{index} has no weight_map that names a file for each tensor; get the file again")
    return Chosen(tuple(_inside(index.parent, name) for name in sorted(set(shards.values()))), shards)


def _inside(folder: Path, name: str) -> Path:
    """A file of a folder: a plain name, and no link to elsewhere (see the module's text)."""
    if not name.isprintable() or name in ("", ".", "..") or re.search(r"[/\\:]", name):
        raise CheckpointError(f"{folder} names the file {shown(name)}, expected a plain name of a file in the same folder; it is not safe")
    path = folder / name
    if not path.exists():
        raise CheckpointError(f"{path} is missing; get the complete checkpoint")
    home, target = folder.resolve(), path.resolve().parent
    in_hub_cache = home.parent.name == "snapshots" and target == home.parent.parent / "blobs"
    if target != home and not in_hub_cache:
        raise CheckpointError(f"{path} is a link out of its folder, to {path.resolve()}; if that is meant, name that file or copy it")
    return path


def _documents(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The documents in a folder or beside a file, and notes of those left out."""
    folder = path if path.is_dir() else path.parent
    documents, left_out = dict[str, Any](), list[str]()
    for name in DOCUMENTS:
        if not (folder / name).exists():
            continue
        try:
            documents[name] = parse_json(str(folder / name), _document(_inside(folder, name)))
        except (CheckpointError, OSError) as error:
            if folder == path:
                raise
            left_out.append(f"left out {name}, which lies beside the file: {error}")
    return documents, left_out


def _document(path: Path) -> bytes:
    file = MappedFile(path)
    if file.size > MAX_DOCUMENT:
        raise file.bad(f"it has {file.size:,} bytes, expected a JSON document of at most {MAX_DOCUMENT:,}")
    return file.copy(0, file.size)


# ---- what is in them -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Content:
    """What a file of weights holds: tensors by name, or what a training script wrapped around them."""

    container: str
    tree: Any
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def _read_shards(files: tuple[Path, ...], index: Mapping[str, str]) -> Content:
    """The tensors of all shards. Each must be where the index says, and no other may be there."""
    contents = {file.name: _read_one(file) for file in files}
    tensors = dict[str, Any]()
    for shard, content in contents.items():
        expected = {name for name, file in index.items() if file == shard}
        found = set(content.tree) if isinstance(content.tree, dict) else set()
        if expected != found:
            wrong = some(sorted(map(str, expected ^ found)))
            raise CheckpointError(f"{shard} and its index disagree about {wrong}; get the complete checkpoint again")
        tensors |= content.tree
    first = contents[files[0].name]
    return dataclasses.replace(first, tree=tensors)


def _read_one(path: Path) -> Content:
    file = MappedFile(path)
    match _container(file):
        case "safetensors":
            return Content("safetensors", *read_safetensors(file))
        case "torch-legacy":
            return Content("torch", read_torch_legacy(file))
        case "zip":
            members = read_zip(file)
            if any(name.endswith(".npy") for name in members):
                return Content("npz", read_npz(file, members))
            if is_torch(members):
                notes = ("read the tensors of a TorchScript archive; its code plays no part",) if is_scripted(members) else ()
                return Content("torch", read_torch_zip(file, members), notes=notes)
            raise file.bad(f"it is a zip of {some(list(members)) or 'nothing'}, expected weights of torch or NumPy; unpack it first")
    raise file.bad(f"it is {_guess(file)}, expected weights in safetensors, torch, NumPy or ONNX format")


def _container(file: MappedFile) -> str:
    """What a file is by its first bytes: "safetensors", "zip", "torch-legacy", "onnx" or "" for anything else."""
    head = file.copy(0, 16)
    if head[8:9] == b"{":
        return "safetensors"
    if head.startswith(b"PK\3\4"):
        return "zip"
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "torch-legacy"
    # ModelProto: field 1, ir_version, a small number; then field 2 (producer), 3, 5, 7 (graph) or 8 (opsets)
    if head[:1] == b"\x08" and 0 < head[1] < 64 and head[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x28", b"\x32", b"\x3a", b"\x42"):
        return "onnx"
    return ""


def _guess(file: MappedFile) -> str:
    """What a file that is no checkpoint might be, and what to do."""
    head = file.copy(0, 512)
    text = head.lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself (fetch it with git lfs pull)"
    if text.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page (perhaps an error or login page was saved in the file's place; download it again)"
    if head[257:262] == b"ustar":
        return "a tar archive (unpack it; if torch before 0.2 wrote it, load it there and save it again)"
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return "compressed (unpack it)"
    if head.startswith(b"\x89HDF"):
        return "an HDF5 file (load it in Keras and save the weights as .npz or safetensors)"
    if head.startswith(b"\x93NUMPY"):
        return "a single NumPy array (save all weights with numpy.savez, one array a name)"
    return f"a file of {file.size:,} bytes that begins with {head[:16]!r}"


def _check_claims(state: Mapping[str, Stored], size: int) -> None:
    """Views may claim more numbers than are stored: that must stay an exception, not a way to fill the memory."""
    claimed = sum(count(tensor.info.shape) * DTYPES[tensor.info.dtype][1] for tensor in state.values())
    if claimed > MAX_CLAIM * size + SLACK:
        raise CheckpointError(f"its tensors claim {claimed:,} bytes in a file of {size:,}; save them with torch.save, each contiguous()")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
