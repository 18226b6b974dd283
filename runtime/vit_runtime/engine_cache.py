"""Engines that took minutes to build, kept in a folder: whole or not at all, for exactly what they were built of, shared by processes.

    FOLDER/                 cache_dir, or $VIT_DEPLOY_CACHE, or the system's folder for caches
        tensorrt/
            KEY/            what one build left: entry.json (what it was built of, sizes and digests) and the engine
            KEY.lock        held by whoever builds KEY, shared by those who read it; the system frees it if they die
            .KEY.PID.…/     a build under way; left behind by a process that died, it goes with the next build
        *.blob              OpenVINO's own, which it names and checks itself; only where a folder is named

A KEY is the digest of everything that makes an engine stale, so a stale one is never looked at again, and goes when room is needed: the
least recently used first. TensorRT's timing cache, which makes the next build of another model faster, is an entry of the same kind.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vit_runtime.errors import MachineError

VARIABLE = "VIT_DEPLOY_CACHE"
MAX_BYTES = 10_000_000_000
FORMAT = 1
BEAT_S = 5.0  # between two words about a build that goes on

T = TypeVar("T")
Tell = Callable[[str], None]
Key = Mapping[str, str]


def silent(_: str) -> None:
    """Nobody listens."""


def named_folder(cache_dir: Path | None) -> Path | None:
    """The cache folder that the user names, by argument or in the environment; None for neither."""
    named = os.environ.get(VARIABLE)
    return cache_dir or (Path(named) if named else None)


def default_folder() -> Path:
    """The system's folder for caches."""
    home = Path.home()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "vit-deploy" / "cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "vit-deploy"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "vit-deploy"


def file_digest(path: Path, external_files: Sequence[str]) -> str:
    """SHA-256 over an .onnx file and the files beside it that hold its weights. Raises: OSError."""
    digest = hashlib.sha256()
    for name in ("", *sorted(external_files)):
        part = path.with_name(name) if name else path
        digest.update(f"{name}\0{part.stat().st_size}\0".encode())
        _update(digest, part)
    return digest.hexdigest()


def key_id(key: Key) -> str:
    """The name of a key's entry: the same for the same key, whatever the order of its parts."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Entry:
    """One thing that is kept. `kind` is "engine", "timing" or "openvino"; `key` what it was made of, as far as it tells; `used` in seconds
    since 1970; `state` is "ok", "damaged", or "unfinished" for a build that a process has left behind or is at."""

    path: Path
    kind: str
    model: str
    key: Key
    size: int
    used: float
    state: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "model": self.model,
            "key": dict(self.key),
            "bytes": self.size,
            "used": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.used)),
            "state": self.state,
        }


class _UnwritableError(OSError):
    """The folder of the cache cannot be made or written to."""


class EngineCache:
    """The engines in one folder; `max_bytes` is what they may take together after a build."""

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._engines = folder / "tensorrt"

    def open(
        self, key: Key, timing: Key, model: str, build: Callable[[Path, Path], T], reuse: Callable[[Path], T], tell: Tell = silent
    ) -> T:
        """What `reuse` makes of the engine that is kept for `key`, or else what `build` makes, which leaves the engine in the folder given.

        `build` is given two folders: an empty one, and one with the timing cache that is kept for `timing`. Of processes that ask for the
        same key at once one builds, and the others wait and use what it built. An engine that is damaged, or that `reuse` fails on, is
        built again. Whatever `build` raises is raised, and nothing is kept.
        Raises: MachineError for a folder that cannot be written to and does not hold the engine.
        """
        name = key_id(key)
        entry = self._engines / name
        try:
            with self._locked(name, shared=True, tell=tell):
                found = self._reused(entry, reuse, tell)
            if found is None:
                with self._locked(name, tell=tell):
                    found = self._reused(entry, reuse, silent)  # whoever had the lock may have built it
                    if found is None:
                        found = (self._built(entry, key, timing, model, build, tell),)
                self.prune(self.max_bytes, keep=entry)
        except _UnwritableError as error:
            found = self._reused(entry, reuse, tell)  # a folder that may only be read, such as an image's, does for what is in it
            if found is None:
                reason = f"the cache folder {self.folder} cannot be written to ({error.strerror or error})"
                raise MachineError(f"{reason}; choose another with cache_dir or {VARIABLE}") from error
        return found[0]

    def entries(self) -> list[Entry]:
        """All that is kept, the most recently used first; sizes are compared, contents not read. What is not ours is left out."""
        found = [self._entry(path) for path in _listed(self._engines) if path.is_dir()]
        found += [Entry(path, "openvino", "", {}, *_size_and_time([path]), "ok") for path in _listed(self.folder) if path.suffix == ".blob"]
        return sorted((entry for entry in found if entry is not None), key=lambda entry: entry.used, reverse=True)

    def prune(self, max_bytes: int, keep: Path | None = None) -> list[Entry]:
        """Remove what is damaged or unfinished, then the least recently used until the rest takes no more than `max_bytes`.

        What somebody builds or reads right now stays, and so does `keep`. Returns what was removed.
        """
        entries = self.entries()
        total, removed = sum(entry.size for entry in entries), []
        for entry in sorted(entries, key=lambda entry: (entry.state == "ok", entry.used)):
            if entry.path != keep and (entry.state != "ok" or total > max_bytes) and self._removed(entry):
                removed.append(entry)
                total -= entry.size
        for path in _listed(self._engines):
            if path.suffix == ".lock" and not (self._engines / path.stem).exists():
                with contextlib.suppress(OSError), self._locked(path.stem, wait=False):
                    path.unlink()
        return removed

    def _reused(self, entry: Path, reuse: Callable[[Path], T], tell: Tell) -> tuple[T] | None:
        """What `reuse` makes of the entry; None for one that is not there, damaged, or of no use to it."""
        if not entry.is_dir():
            return None
        if _sealed(entry, contents=True) is None:
            tell(f"{entry} is damaged: the engine is built again")
            return None
        try:
            found = reuse(entry)
        except Exception as error:  # noqa: BLE001 (whatever the engine is refused for, building it again tells whether that helps)
            tell(f"{entry} is of no use ({' '.join(str(error).split())[:120]}): the engine is built again")
            with contextlib.suppress(OSError):
                (entry / "entry.json").unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(entry / "entry.json")  # when it was used last
        return (found,)

    def _built(self, entry: Path, key: Key, timing: Key, model: str, build: Callable[[Path, Path], T], tell: Tell) -> T:
        """Build in a folder of its own, which becomes the entry when whole. The lock is held. Raises: _UnwritableError before that."""
        for left in self._engines.glob(f".{entry.name}.*"):
            shutil.rmtree(left, ignore_errors=True)
        try:
            staged = Path(tempfile.mkdtemp(prefix=f".{entry.name}.{os.getpid()}.", dir=self._engines))
        except OSError as error:
            raise _UnwritableError(*error.args) from error
        try:
            engine, times, kept = staged / "engine", staged / "timing", self._engines / key_id(timing)
            engine.mkdir()
            times.mkdir()
            with contextlib.suppress(OSError), self._locked(kept.name, shared=True, wait=False):
                for name in _sealed(kept, contents=True) or ():
                    shutil.copy(kept / name, times)
            with _beating(tell, f"building the TensorRT engine of {model}"):
                found = build(engine, times)
            try:
                self._kept(engine, entry, "engine", model, key)
                with self._locked(kept.name, wait=False):
                    self._kept(times, kept, "timing", "", timing)
            except BlockingIOError:
                pass  # somebody else's timings are as good
            except OSError as error:  # the session is there; only the next one has to build again
                tell(f"the engine cannot be kept in {self.folder} ({error.strerror or error})")
            return found
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def _kept(self, staged: Path, entry: Path, kind: str, model: str, key: Key) -> None:
        """Make a folder with files the entry of that key, in place of what is there. The lock is held."""
        files = {path.name: [path.stat().st_size, _digest(path)] for path in sorted(staged.iterdir()) if path.is_file()}
        if not files:
            return
        document = {"format": FORMAT, "kind": kind, "model": model, "key": dict(key), "files": files}
        with (staged / "entry.json").open("w", encoding="utf-8") as file:
            json.dump(document, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        if entry.exists():
            shutil.rmtree(entry)
        staged.rename(entry)

    def _entry(self, path: Path) -> Entry | None:
        if path.name.startswith("."):
            return Entry(path, "engine", "", {}, *_size_and_time(_listed(path / "engine") + _listed(path / "timing")), "unfinished")
        if len(path.name) != 32:
            return None
        sealed, document = _sealed(path, contents=False), _document(path)
        size, used = _size_and_time(_listed(path))
        kind, model = (str(document.get(name, "")) for name in ("kind", "model"))
        key = document.get("key")
        texts = {str(name): str(value) for name, value in key.items()} if isinstance(key, dict) else {}
        return Entry(path, kind or "engine", model, texts, size, used, "damaged" if sealed is None else "ok")

    def _removed(self, entry: Entry) -> bool:
        """Whether it could be removed: nobody is at it."""
        try:
            if entry.kind == "openvino":
                entry.path.unlink()
                return True
            with self._locked(entry.path.name.lstrip(".").partition(".")[0], wait=False):
                shutil.rmtree(entry.path)
            return True
        except OSError:
            return False

    @contextlib.contextmanager
    def _locked(self, name: str, shared: bool = False, wait: bool = True, tell: Tell = silent) -> Iterator[None]:
        """Hold the lock of a key. Raises: BlockingIOError if it is taken and we do not `wait`; _UnwritableError, both OSErrors."""
        path = self._engines / f"{name}.lock"
        while True:
            try:
                self._engines.mkdir(mode=0o700, parents=True, exist_ok=True)  # what lies there is run
                number = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            except OSError as error:
                raise _UnwritableError(*error.args) from error
            try:
                try:
                    _lock(number, shared, wait=False)
                except BlockingIOError:
                    if not wait:
                        raise
                    tell("another process builds this engine; waiting for it")
                    _lock(number, shared, wait=True)
                if _same_file(number, path):  # else it was pruned between opening and locking
                    yield
                    return
            finally:
                os.close(number)  # which frees the lock


if sys.platform == "win32":
    import msvcrt

    def _lock(number: int, shared: bool, wait: bool) -> None:
        """Readers exclude one another too: the system has no other kind."""
        while True:
            try:
                os.lseek(number, 0, os.SEEK_SET)
                msvcrt.locking(number, msvcrt.LK_NBLCK, 1)
                return
            except OSError as error:
                if not wait:
                    raise BlockingIOError from error
                time.sleep(0.1)
else:
    import fcntl

    def _lock(number: int, shared: bool, wait: bool) -> None:
        fcntl.flock(number, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))


def _same_file(number: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(number), path.stat())
    except FileNotFoundError:
        return False


def _sealed(entry: Path, contents: bool) -> Mapping[str, Sequence[Any]] | None:
    """The files of an entry by name, if they are those that were put there: their sizes, and with `contents` their digests."""
    files = _document(entry).get("files")
    if not isinstance(files, dict) or not files:
        return None
    try:
        for name, (size, digest) in files.items():
            path = entry / name
            if Path(name).name != name or path.is_symlink() or path.stat().st_size != size or (contents and _digest(path) != digest):
                return None
    except (OSError, ValueError, TypeError):
        return None
    return files


def _document(entry: Path) -> dict[str, Any]:
    """entry.json; empty where it is missing, no JSON, or another format's."""
    try:
        document = json.loads((entry / "entry.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) and document.get("format") == FORMAT else {}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    _update(digest, path)
    return digest.hexdigest()


def _update(digest: Any, path: Path) -> None:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _size_and_time(paths: Sequence[Path]) -> tuple[int, float]:
    """Their bytes together, and when the last of them was changed; what vanishes meanwhile counts nothing."""
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            found.append(path.stat())
    return sum(status.st_size for status in found), max((status.st_mtime for status in found), default=0.0)


@contextlib.contextmanager
def _beating(tell: Tell, what: str) -> Iterator[None]:
    """Say what is being done, and every few seconds for how long."""
    done, start = threading.Event(), time.monotonic()

    def beat() -> None:
        while not done.wait(BEAT_S):
            tell(f"{what}: {time.monotonic() - start:.0f} s")

    tell(f"{what}, which can take minutes")
    thread = threading.Thread(target=beat, daemon=True)
    if tell is not silent:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if thread.is_alive():
            thread.join()
