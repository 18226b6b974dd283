"""Engines that took minutes to build, kept in a folder: whole or not at all, for exactly what they were built of, shared by processes.

    FOLDER/                 cache_dir, or $VIT_DEPLOY_CACHE, or the system's folder for caches
        tensorrt/
            KEY/            what one build left: entry.json (what it was built of, sizes and digests) and the engine
            KEY.lock        held by whoever builds KEY, shared by those who read it; the system frees it if they die
            .KEY.PID.…/     a build under way; left behind by a process that died, it goes with the next build
        NUMBER.blob         OpenVINO's own, which it names and checks itself; only where a folder is named

What has another name is somebody else's, and is left alone: FOLDER may be any folder, and hold more than this. Everybody may read what is
kept, as far as the umask lets them, and nobody but its owner write it: it is run.

A KEY is the digest of everything that makes an engine stale, so a stale one is never looked at again, and goes when room is needed: the
least recently used first. TensorRT's timing cache, which makes the next build of another model faster, is an entry of the same kind.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
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
from vit_runtime.nvidia import out_of_memory

VARIABLE = "VIT_DEPLOY_CACHE"
MAX_BYTES = 10_000_000_000
FORMAT = 1
BEAT_S = 5.0  # between two words about a build that goes on

T = TypeVar("T")
Tell = Callable[[str], None]
Key = Mapping[str, str]
Files = Mapping[str, Sequence[Any]]  # name to size and digest

# The names that we and OpenVINO give.
_KEPT = re.compile(r"[0-9a-f]{32}")
_UNFINISHED = re.compile(r"\.[0-9a-f]{32}\..+")
_LOCK = re.compile(r"[0-9a-f]{32}\.lock")
_BLOB = re.compile(r"[0-9]{1,20}\.blob")  # a hash of 64 bits in decimal
_OTHERS_WRITE = 0o022


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


class _UnlockableError(_UnwritableError):
    """The file system of the cache's folder gives no locks."""


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
        built again, and stays until the new one takes its place. Whatever `build` raises is raised, and nothing is kept; so is what
        `reuse` raises where memory ran out, for which no engine is to blame.
        Raises: MachineError for a folder that cannot be written to, or gives no locks, and does not hold the engine.
        """
        name, useless = key_id(key), list[Files]()
        entry = self._engines / name
        try:
            with self._locked(name, shared=True, tell=tell):
                found = self._reused(entry, reuse, tell, useless)
            if found is None:
                with self._locked(name, tell=tell):
                    found = self._reused(entry, reuse, silent, useless)  # whoever had the lock may have built it
                    if found is None:
                        found = (self._built(entry, key, timing, model, build, tell),)
                if (hindrance := self._pruned(self.max_bytes, keep=entry)[1]) is not None:
                    tell(hindrance)
        except _UnwritableError as error:
            found = self._reused(entry, reuse, tell, useless)  # a folder that may only be read, such as an image's, does for what is in it
            if found is None:
                raise MachineError(f"{self._matter(error)}; choose another with cache_dir or {VARIABLE}") from error
        return found[0]

    def entries(self) -> list[Entry]:
        """All that is kept, the most recently used first; sizes are compared, contents not read. What is not ours is left out."""
        found = [self._entry(path) for path in _listed(self._engines) if os.path.isdir(path) and not path.is_symlink()]
        for path in _listed(self.folder):
            if _BLOB.fullmatch(path.name) and os.path.isfile(path):
                found.append(Entry(path, "openvino", "", {}, *_size_and_time([path]), "ok"))
        return sorted((entry for entry in found if entry is not None), key=lambda entry: entry.used, reverse=True)

    def prune(self, max_bytes: int) -> list[Entry]:
        """Remove what is damaged or unfinished, then the least recently used until the rest takes no more than `max_bytes`.

        What somebody builds or reads right now stays. Returns what was removed.
        Raises: MachineError for a folder that does not let all go that should; what it lets go is gone then.
        """
        removed, hindrance = self._pruned(max_bytes)
        if hindrance is not None:
            raise MachineError(hindrance)
        return removed

    def _pruned(self, max_bytes: int, keep: Path | None = None) -> tuple[list[Entry], str | None]:
        """As `prune`, except that `keep` stays, and that what hinders it is returned, in a line."""
        entries, hindrance = self.entries(), None
        total, removed = sum(entry.size for entry in entries), []
        for entry in sorted(entries, key=lambda entry: (entry.state == "ok", entry.used)):
            if entry.path == keep or (entry.state == "ok" and total <= max_bytes):
                continue
            try:
                self._remove(entry)
            except (BlockingIOError, FileNotFoundError):
                continue  # somebody is at it, or was faster
            except OSError as error:
                hindrance = f"{self._matter(error)}, and not all can go that should; remove the rest by hand while no program uses it"
                continue
            removed.append(entry)
            total -= entry.size
        for path in _listed(self._engines):
            if _LOCK.fullmatch(path.name) and not os.path.lexists(path.with_suffix("")):
                with contextlib.suppress(OSError), self._locked(path.stem, wait=False):
                    path.unlink()
        return removed, hindrance

    def _matter(self, error: OSError) -> str:
        """What is the matter with the folder, for the beginning of a message."""
        what = "lies on a file system that gives no locks" if isinstance(error, _UnlockableError) else "cannot be written to"
        return f"the cache folder {self.folder} {what} ({error.strerror or error})"

    def _reused(self, entry: Path, reuse: Callable[[Path], T], tell: Tell, useless: list[Files]) -> tuple[T] | None:
        """What `reuse` makes of the entry; None for one that is not there, not for us to read, damaged, or of no use to it.

        Those of no use go into `useless`, so that they are not tried again. The entry is left as it is: it may serve others.
        Raises: what `reuse` raises where memory ran out.
        """
        if not os.path.isdir(entry) or not os.access(entry, os.R_OK | os.X_OK) or _document(entry).get("files") in useless:
            return None
        files = _sealed(entry, contents=True)
        if files is None:
            tell(f"{entry} is damaged: the engine is built again")
            return None
        try:
            found = reuse(entry)
        except Exception as error:
            if isinstance(error, MemoryError) or out_of_memory(error) or out_of_memory(error.__cause__):  # its text may be cut short
                raise
            tell(f"{entry} is of no use ({' '.join(str(error).split())[:120]}): the engine is built again")
            useless.append(files)  # building it again tells whether that was to blame
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
            engine, times, kept = staged / "engine", staged / "timing", self._engines / key_id(timing)
            engine.mkdir(0o755)
            times.mkdir(0o755)
        except OSError as error:
            raise _UnwritableError(*error.args) from error
        try:
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
        for path in staged.iterdir():
            if (mode := path.stat().st_mode) & _OTHERS_WRITE:
                with contextlib.suppress(OSError):  # a file system that has no modes
                    path.chmod(mode & ~_OTHERS_WRITE)
        if entry.exists():
            shutil.rmtree(entry)
        staged.rename(entry)

    def _entry(self, path: Path) -> Entry | None:
        """What the folder is; None for one that is not ours."""
        if _UNFINISHED.fullmatch(path.name):
            return Entry(path, "engine", "", {}, *_size_and_time(_listed(path / "engine") + _listed(path / "timing")), "unfinished")
        if not _KEPT.fullmatch(path.name):
            return None
        sealed, document = _sealed(path, contents=False), _document(path)
        size, used = _size_and_time(_listed(path))
        kind, model = (str(document.get(name, "")) for name in ("kind", "model"))
        key = document.get("key")
        texts = {str(name): str(value) for name, value in key.items()} if isinstance(key, dict) else {}
        return Entry(path, kind or "engine", model, texts, size, used, "damaged" if sealed is None else "ok")

    def _remove(self, entry: Entry) -> None:
        """Raises: BlockingIOError while somebody is at it; OSError."""
        if not _BLOB.fullmatch(entry.path.name):
            with self._locked(entry.path.name.lstrip(".").partition(".")[0], wait=False):
                shutil.rmtree(entry.path)
            return
        try:
            entry.path.unlink()
        except PermissionError as error:
            if sys.platform == "win32" and error.winerror == 32:  # which keeps what is open
                raise BlockingIOError from error
            raise

    @contextlib.contextmanager
    def _locked(self, name: str, shared: bool = False, wait: bool = True, tell: Tell = silent) -> Iterator[None]:
        """Hold the lock of a key. Raises: BlockingIOError if it is taken and we do not `wait`; _UnwritableError, both OSErrors."""
        path = self._engines / f"{name}.lock"
        while True:
            try:
                for folder in (self.folder, self._engines):
                    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
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
        """As below, but readers exclude one another too: the system has no other kind."""
        while True:
            try:
                os.lseek(number, 0, os.SEEK_SET)
                msvcrt.locking(number, msvcrt.LK_NBLCK, 1)
                return
            except PermissionError as error:  # somebody has it
                if not wait:
                    raise BlockingIOError from error
                time.sleep(0.1)
            except OSError as error:
                raise _UnlockableError(*error.args) from error
else:
    import fcntl

    def _lock(number: int, shared: bool, wait: bool) -> None:
        """Raises: BlockingIOError if it is taken and we do not `wait`; _UnlockableError."""
        try:
            fcntl.flock(number, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError as error:
            raise _UnlockableError(*error.args) from error


def _same_file(number: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(number), path.stat())
    except FileNotFoundError:
        return False


def _sealed(entry: Path, contents: bool) -> Files | None:
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
