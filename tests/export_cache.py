"""Exports that tests and xdist workers share: each is made once, and again only when something that it depends on changes.

The key of an entry is a SHA-256 digest of everything that decides the bytes of the file: the source code of the three packages, the
versions of all installed packages, the network with its weights, the options, and the calibration images. Entries are read-only, and
an entry that a test changed all the same is an error in the next test that asks for it.
"""

import dataclasses
import hashlib
import pickle
import shutil
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from filelock import FileLock

import vit_exporter
import vit_models
import vit_runtime
from vit_exporter import ExportReport, ExportSpec, Source, export
from vit_models import ViT

REPORT = "report.pickle"


class ExportCache:
    """A folder of exports. Several processes may use it at the same time."""

    def __init__(self, root: Path) -> None:
        self.root = root / code_digest()[:16]
        self.root.mkdir(parents=True, exist_ok=True)

    def export(self, source: Source, name: str = "vit.onnx", **options: Any) -> ExportReport:
        """What `export` returns for `ExportSpec(name, **options)`; the file is shared, so copy it before you change it.

        `name` is the name of the file. A test that replaces a part of the exporter must call `export` itself.
        """
        source.fill()
        spec = ExportSpec(Path(name), **options)
        entry = self.root / _key(source, spec)
        with FileLock(entry.with_suffix(".lock")):
            if not entry.exists():
                self._make(entry, source, spec)
            report, digest = pickle.loads((entry / REPORT).read_bytes())
        if _digest_of(_files(entry), entry) != digest:
            raise RuntimeError(f"a test changed the shared export {entry}; copy the file before you change it, and delete the entry")
        return dataclasses.replace(report, out=entry / name)

    def graph(self, kind: str, model: ViT, opset: int, make: Callable[[], ir.Model]) -> ir.Model:
        """The graph that `make` returns, a copy of its own for each caller; one `kind` of graph is made in one way.

        A test that replaces a part of the exporter must call `make` itself.
        """
        path = self.root / f"{kind}-{_digest_of_network(model, opset)}.onnx"
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                staging = path.with_suffix(".new")
                staging.write_bytes(ir.to_proto(make()).SerializeToString())
                staging.rename(path)
        return ir.from_proto(onnx.load(path))

    def _make(self, entry: Path, source: Source, spec: ExportSpec) -> None:
        staging = entry.with_suffix(".new")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        report = export(lambda: source, dataclasses.replace(spec, out=staging / spec.out))
        files = _files(staging)
        for file in files:
            file.chmod(0o444)
        (staging / REPORT).write_bytes(pickle.dumps((report, _digest_of(files, staging))))
        staging.rename(entry)


def remove_old(root: Path) -> None:
    """Delete the exports of other versions of the code."""
    for folder in root.iterdir() if root.exists() else ():
        if folder.name != code_digest()[:16]:
            shutil.rmtree(folder, ignore_errors=True)


@cache
def code_digest() -> str:
    """Digest of the packages' files and of the names and versions of everything that is installed."""
    installed = sorted(f"{each.name} {each.version}" for each in distributions())
    digests = ["\n".join(installed)]
    for package in (vit_models, vit_exporter, vit_runtime):
        folder = Path(next(iter(package.__path__)))
        digests.append(_digest_of((path for path in folder.rglob("*") if "__pycache__" not in path.parts), folder))
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _key(source: Source, spec: ExportSpec) -> str:
    images = _digest_of(spec.calibrate.rglob("*"), spec.calibrate) if spec.calibrate else None
    facts = (source.arch, source.checkpoint, source.preprocessing, source.labels, source.notes)
    return _digest_of_network(source.model, *facts, {**vars(spec), "calibrate": None}, images)


def _digest_of_network(model: ViT, *facts: object) -> str:
    """Digest of the network, its weights, and what else decides the file."""
    digest = hashlib.sha256(repr((model.config, tuple(model.outputs), model.dynamic_size, *facts)).encode())
    for name, values in model.state_dict().items():
        digest.update(name.encode() + values.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _files(entry: Path) -> list[Path]:
    return [path for path in entry.iterdir() if path.name != REPORT]


def _digest_of(paths: Iterable[Path], folder: Path) -> str:
    """Digest of the names below `folder` and the contents of files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in paths if path.is_file()):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()} {len(data)}\n".encode() + data)
    return digest.hexdigest()
