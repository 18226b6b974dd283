"""Engines are kept whole or not at all, for exactly what they were built of, by processes that share a folder. What builds them here is a
function that writes a file; the processes, locks and folders are real."""

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import assert_mentions, one_line

import vit_runtime
from vit_runtime import engine_cache
from vit_runtime.engine_cache import EngineCache, default_folder, file_digest, key_id, named_folder
from vit_runtime.errors import MachineError, ProviderError, SessionError

KEY = {"file": "digest", "TensorRT": "10.14.1", "GPU": "L4"}
TIMING = {"timing of": "10.14.1"}
OTHER = {**KEY, "file": "another"}


class Engine:
    """Builds a file with a text in it, and counts how often it was asked for."""

    def __init__(self, content: str = "engine") -> None:
        self.content, self.builds, self.reuses, self.timings = content, 0, 0, list[str]()

    def build(self, folder: Path, times: Path) -> str:
        self.builds += 1
        self.timings += [path.read_text() for path in times.iterdir()]
        (folder / "vit.engine").write_text(self.content)
        (times / "times").write_text(f"timed {self.builds}")
        return self.content

    def reuse(self, folder: Path) -> str:
        self.reuses += 1
        return (folder / "vit.engine").read_text()


def opened(cache: EngineCache, engine: Engine, key: dict[str, str] = KEY, tell: Callable[[str], None] = lambda _: None) -> str:
    return cache.open(key, TIMING, "vit.onnx", engine.build, engine.reuse, tell)


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "made" / "cache")


@pytest.fixture
def engine() -> Engine:
    return Engine()


def entry_of(cache: EngineCache, key: dict[str, str] = KEY) -> Path:
    return cache.folder / "tensorrt" / key_id(key)


def used_at(cache: EngineCache, key: dict[str, str], seconds: int) -> None:
    os.utime(entry_of(cache, key) / "entry.json", (seconds, seconds))
    os.utime(entry_of(cache, key) / "vit.engine", (seconds, seconds))


# --- what an engine is kept for


@pytest.mark.unit
def test_the_order_of_a_keys_parts_does_not_matter_and_each_part_does():
    assert key_id(KEY) == key_id(dict(reversed(KEY.items())))
    for name in KEY:
        assert key_id({**KEY, name: "changed"}) != key_id(KEY)
    assert key_id({**KEY, "more": ""}) != key_id(KEY)


def test_the_digest_is_of_the_file_and_of_its_weights_elsewhere(tiny_external: Path, tmp_path: Path):
    for path in tiny_external.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    copy, weights = tmp_path / tiny_external.name, tmp_path / f"{tiny_external.name}.data"
    external = vit_runtime.read_manifest(copy)[1].external_files
    before = file_digest(copy, external)
    assert before == file_digest(tiny_external, external)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert file_digest(copy, external) != before
    assert file_digest(copy, ()) != file_digest(copy, external)


# --- building and reusing


@pytest.mark.unit
def test_the_first_builds_and_the_next_reuses(cache: EngineCache, engine: Engine):
    assert [opened(cache, engine), opened(cache, engine)] == ["engine", "engine"]
    assert (engine.builds, engine.reuses) == (1, 1)
    document = json.loads((entry_of(cache) / "entry.json").read_text())
    assert (document["model"], document["key"], list(document["files"])) == ("vit.onnx", KEY, ["vit.engine"])


@pytest.mark.unit
def test_another_key_is_another_engine(cache: EngineCache):
    assert opened(cache, Engine("one")) == "one"
    assert opened(cache, Engine("two"), OTHER) == "two"
    assert opened(cache, Engine()) == "one"


@pytest.mark.unit
def test_what_a_failed_build_raises_is_raised_and_nothing_is_kept(cache: EngineCache, engine: Engine):
    def fail(folder: Path, times: Path) -> str:
        (folder / "half").write_text("of an engine")
        raise SessionError("no kernel fits")

    with pytest.raises(SessionError, match="no kernel fits"):
        cache.open(KEY, TIMING, "vit.onnx", fail, engine.reuse)
    assert cache.entries() == []
    assert opened(cache, engine) == "engine"


@pytest.mark.unit
def test_a_build_that_leaves_nothing_is_not_kept(cache: EngineCache, engine: Engine):
    assert cache.open(KEY, TIMING, "vit.onnx", lambda folder, times: "in memory only", engine.reuse) == "in memory only"
    assert not entry_of(cache).exists()


@pytest.mark.unit
def test_the_next_build_starts_from_the_timings_of_the_last(cache: EngineCache, engine: Engine):
    opened(cache, engine)
    opened(cache, engine, OTHER)
    assert engine.timings == ["timed 1"]
    (entry_of(cache, TIMING) / "times").write_text("torn 2!")
    opened(cache, engine, {"file": "a third"})
    assert engine.timings == ["timed 1"]  # what is damaged is not handed on
    assert (entry_of(cache, TIMING) / "times").read_text() == "timed 3"


@pytest.mark.unit
def test_a_build_that_takes_long_says_how_long(cache: EngineCache, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_cache, "BEAT_S", 0.01)
    messages = list[str]()
    cache.open(KEY, TIMING, "vit.onnx", lambda folder, times: time.sleep(0.2), lambda folder: None, messages.append)
    assert_mentions(messages[0], "TensorRT", "vit.onnx")
    assert_mentions(messages[1], "TensorRT", "vit.onnx", "0 s")


# --- damage


def damage_entry(name: str) -> Callable[[Path], None]:
    def cut(entry: Path) -> None:
        (entry / "vit.engine").write_text("eng")

    def foreign(entry: Path) -> None:
        (entry / "vit.engine").write_text("ENGINE")

    def gone(entry: Path) -> None:
        (entry / "vit.engine").unlink()

    def link(entry: Path) -> None:
        (entry / "vit.engine").rename(entry.parent / "elsewhere")
        (entry / "vit.engine").symlink_to(entry.parent / "elsewhere")

    def outside(entry: Path) -> None:
        document = json.loads((entry / "entry.json").read_text())
        document["files"] = {f"../{entry.name}/vit.engine": next(iter(document["files"].values()))}
        (entry / "entry.json").write_text(json.dumps(document))

    def unsealed(entry: Path) -> None:
        (entry / "entry.json").unlink()

    def garbage(entry: Path) -> None:
        (entry / "entry.json").write_bytes(b"\xff{")

    def later(entry: Path) -> None:
        (entry / "entry.json").write_text('{"format": 99, "files": {"vit.engine": [6, ""]}}')

    def shapes(entry: Path) -> None:
        (entry / "entry.json").write_text('{"format": 1, "files": {"vit.engine": 6}, "key": []}')

    return {function.__name__: function for function in (cut, foreign, gone, link, outside, unsealed, garbage, later, shapes)}[name]


@pytest.mark.unit
@pytest.mark.parametrize("damage", ["cut", "foreign", "gone", "link", "outside", "unsealed", "garbage", "later", "shapes"])
def test_a_damaged_engine_is_told_in_one_line_and_built_again(cache: EngineCache, engine: Engine, damage: str):
    opened(cache, engine)
    damage_entry(damage)(entry_of(cache))
    assert cache.entries()  # which looks at it too
    messages = list[str]()
    assert opened(cache, engine, tell=messages.append) == "engine"
    assert_mentions(messages[0], entry_of(cache), "damaged")
    assert engine.builds == 2
    assert opened(cache, engine) == "engine"
    assert engine.builds == 2


@pytest.mark.unit
def test_an_engine_that_the_library_refuses_is_built_again(cache: EngineCache, engine: Engine):
    opened(cache, engine)

    def refuse(folder: Path) -> str:
        raise RuntimeError("could not deserialize\nengine")

    messages = list[str]()
    assert cache.open(KEY, TIMING, "vit.onnx", engine.build, refuse, messages.append) == "engine"
    assert_mentions(messages[0], entry_of(cache), "could not deserialize engine")
    assert engine.builds == 2


def failing_with(error: Exception) -> Callable[[Path], str]:
    def fail(folder: Path) -> str:
        raise error

    return fail


def provider_error(cause: str) -> ProviderError:
    """As `create_session` raises it: the cause is cut to a line in its text, and whole behind it."""
    error = ProviderError("the GPU has not enough free memory to load it")
    error.__cause__ = RuntimeError(cause)
    return error


@pytest.mark.unit
@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA failure 2: out of memory"), MemoryError(), provider_error("[TensorRT] OutOfMemory (requested 9 GiB)")],
    ids=["text", "MemoryError", "cause"],
)
def test_memory_that_ran_out_is_raised_and_the_engine_stays(cache: EngineCache, engine: Engine, error: Exception):
    opened(cache, engine)
    messages = list[str]()
    with pytest.raises(type(error)) as caught:
        cache.open(KEY, TIMING, "vit.onnx", engine.build, failing_with(error), messages.append)
    assert caught.value is error
    assert messages == []
    assert opened(cache, engine) == "engine"
    assert engine.builds == 1


@pytest.mark.unit
def test_an_engine_of_no_use_to_one_stays_where_no_other_can_be_built(cache: EngineCache, engine: Engine):
    """A driver that fails here and now must not cost everybody else the engine. It is tried once, and told once."""
    opened(cache, engine)
    tries = list[Path]()

    def refuse(folder: Path) -> str:
        tries.append(folder)
        raise RuntimeError("the device is busy")

    def fail(folder: Path, times: Path) -> str:
        assert {entry.state for entry in cache.entries()} == {"ok", "unfinished"}
        raise SessionError("and still is")

    messages = list[str]()
    with pytest.raises(SessionError, match="and still is"):
        cache.open(KEY, TIMING, "vit.onnx", fail, refuse, messages.append)
    assert tries == [entry_of(cache)]
    assert [line for line in messages if "the device is busy" in line] == messages[:1]
    assert opened(cache, engine) == "engine"
    assert engine.builds == 1


@pytest.mark.unit
def test_an_engine_that_another_process_put_in_place_of_a_useless_one_is_tried(cache: EngineCache, monkeypatch: pytest.MonkeyPatch):
    """Before we have the lock to build. The other process is played here, without locks: it would wait until the old one is let go."""
    fcntl = pytest.importorskip("fcntl")
    opened(cache, Engine("old"))

    def refuse_the_old(folder: Path) -> str:
        content = (folder / "vit.engine").read_text()
        if content == "old":
            raise RuntimeError("could not deserialize")
        return content

    def tell(line: str) -> None:
        if "could not deserialize" in line:
            with monkeypatch.context() as patch:
                patch.setattr(fcntl, "flock", lambda number, how: None)
                other = Engine("new")
                cache.open(KEY, TIMING, "vit.onnx", other.build, refuse_the_old)
                assert other.builds == 1

    mine = Engine("mine")
    assert cache.open(KEY, TIMING, "vit.onnx", mine.build, refuse_the_old, tell) == "new"
    assert mine.builds == 0


@pytest.mark.unit
def test_a_file_in_the_entrys_place_is_no_entry(cache: EngineCache, engine: Engine):
    entry_of(cache).parent.mkdir(parents=True)
    entry_of(cache).write_text("foreign")
    messages = list[str]()
    assert opened(cache, engine, tell=messages.append) == "engine"
    assert_mentions(messages[-1], cache.folder)
    assert entry_of(cache).read_text() == "foreign"


# --- folders


@pytest.mark.unit
@pytest.mark.parametrize("place", ["file", "file/below", "/proc/self/below"])
def test_a_folder_that_cannot_be_written_to_is_told_in_one_line(tmp_path: Path, engine: Engine, place: str):
    """Not root either can make these: a file in its place, a file on the way, and a folder of the system."""
    (tmp_path / "file").write_text("no folder")
    folder = tmp_path / place
    with pytest.raises(MachineError) as caught:
        opened(EngineCache(folder), engine)
    assert_mentions(one_line(caught), folder, "cache_dir", "VIT_DEPLOY_CACHE")
    assert engine.builds == 0


@pytest.mark.unit
def test_what_may_only_be_read_serves_for_what_is_in_it(cache: EngineCache, engine: Engine):
    """As in a container's image. A folder in the lock's place refuses root too."""
    opened(cache, engine)
    for key in (KEY, OTHER):
        lock = entry_of(cache, key).with_suffix(".lock")
        lock.unlink(missing_ok=True)
        lock.mkdir()
    assert opened(cache, engine) == "engine"
    assert (engine.builds, engine.reuses) == (1, 1)
    with pytest.raises(MachineError) as error:
        opened(cache, engine, OTHER)
    assert_mentions(one_line(error), cache.folder, "Is a directory")


AS_NOBODY = """
import os, sys
from pathlib import Path
from vit_runtime.engine_cache import EngineCache
from vit_runtime.errors import MachineError

cache, key = EngineCache(Path(sys.argv[1])), {"key": "1"}
os.umask(int(sys.argv[2], 8))

def build(engine, times):
    (engine / "vit.engine").write_text("engine")
    (times / "times").write_text("timed")
    return "built"

cache.open(key, {}, "vit.onnx", build, lambda engine: None)
for path, mode in zip(sys.argv[3::2], sys.argv[4::2]):
    (cache.folder / path).chmod(int(mode, 8))
os.setgroups([]), os.setgid(65534), os.setuid(65534)
try:
    print(len(cache.entries()), cache.open(key, {}, "vit.onnx", build, lambda engine: (engine / "vit.engine").read_text(), print))
except MachineError as error:
    print(error)
"""


def as_nobody(umask: str, *modes: str) -> str:
    """What a user without rights gets out of a cache that root has warmed, with these modes of what is in it."""
    if sys.platform == "win32" or os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        folder = Path(name) / "cache"
        done = subprocess.run([sys.executable, "-c", AS_NOBODY, folder, umask, *modes], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.replace(str(folder), "FOLDER")


@pytest.mark.parametrize("umask", ["022", "000", "002"])
def test_what_root_has_warmed_serves_another_user(umask: str):
    """As in an image that is built as root and run as somebody else."""
    assert as_nobody(umask) == "2 engine\n"


@pytest.mark.parametrize(
    ("umask", "modes"), [("077", ()), ("022", ("tensorrt", "700")), ("022", ("tensorrt", "744")), ("022", (".", "700"))]
)
def test_what_another_user_may_not_read_is_not_there(umask: str, modes: tuple[str, ...]):
    assert_mentions(as_nobody(umask, *modes), "FOLDER", "Permission denied", "cache_dir", "VIT_DEPLOY_CACHE")


def test_an_entry_that_another_user_may_not_read_is_not_there_either():
    message = as_nobody("022", f"tensorrt/{key_id({'key': '1'})}", "700")
    assert_mentions(message, "FOLDER", "Permission denied", "cache_dir", "VIT_DEPLOY_CACHE")


@pytest.mark.unit
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes")
def test_only_the_owner_may_write_what_is_run(cache: EngineCache, engine: Engine):
    before = os.umask(0)
    try:
        opened(cache, engine)
    finally:
        os.umask(before)
    for path in (cache.folder, *cache.folder.rglob("*")):
        assert path.stat().st_mode & 0o022 == 0, path


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Switches locks off, as some network file systems and FUSE have none, and returns the system's message for it."""
    fcntl = pytest.importorskip("fcntl")

    def flock(number: int, how: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    def switch() -> str:
        monkeypatch.setattr(fcntl, "flock", flock)
        return os.strerror(request.param)

    return switch


@pytest.mark.unit
def test_a_file_system_without_locks_is_told_before_minutes_go_into_a_build(
    cache: EngineCache, engine: Engine, no_locks: Callable[[], str]
):
    reason = no_locks()
    with pytest.raises(MachineError) as caught:
        opened(cache, engine)
    assert_mentions(one_line(caught), cache.folder, reason, "cache_dir", "VIT_DEPLOY_CACHE")
    assert engine.builds == 0


@pytest.mark.unit
def test_what_a_file_system_without_locks_holds_serves_and_pruning_it_says_so(
    cache: EngineCache, engine: Engine, no_locks: Callable[[], str]
):
    opened(cache, engine)
    (cache.folder / "123.blob").write_bytes(b"0" * 100)
    reason = no_locks()
    assert opened(cache, engine) == "engine"
    assert cache.prune(10**9) == []  # nothing has to go
    with pytest.raises(MachineError) as caught:
        cache.prune(0)
    assert_mentions(one_line(caught), cache.folder, reason)
    assert [entry.kind for entry in cache.entries()].count("openvino") == 0  # which takes no lock
    assert entry_of(cache).exists()


@pytest.mark.unit
def test_what_cannot_be_removed_after_a_build_is_told_and_costs_no_session(cache: EngineCache, engine: Engine):
    opened(cache, engine)
    lock = entry_of(cache).with_suffix(".lock")
    lock.unlink()
    lock.mkdir()
    messages = list[str]()
    assert opened(EngineCache(cache.folder, max_bytes=0), Engine("another"), OTHER, messages.append) == "another"
    assert_mentions(messages[-1], cache.folder, "Is a directory")
    assert entry_of(cache, OTHER).exists()


@pytest.mark.unit
def test_the_folder_is_the_argument_then_the_variable_then_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("VIT_DEPLOY_CACHE", raising=False)
    assert named_folder(None) is None
    monkeypatch.setenv("VIT_DEPLOY_CACHE", str(tmp_path / "variable"))
    assert named_folder(None) == tmp_path / "variable"
    assert named_folder(tmp_path / "argument") == tmp_path / "argument"
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert default_folder() == tmp_path / "xdg" / "vit-deploy"
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert default_folder() == tmp_path / ".cache" / "vit-deploy"


# --- size


@pytest.mark.unit
def test_the_least_recently_used_goes_first_and_the_last_built_stays(cache: EngineCache):
    keys = [{"file": str(number)} for number in range(4)]
    for key in keys[:3]:
        opened(cache, Engine("x" * 1000), key)
    for age, key in enumerate(keys[:3]):
        used_at(cache, key, 1_000_000 + age)
    opened(cache, Engine(), keys[0])  # its use makes it the youngest
    EngineCache(cache.folder, max_bytes=4500).open(keys[3], TIMING, "vit.onnx", Engine("x" * 1000).build, Engine().reuse)
    assert [entry_of(cache, key).exists() for key in keys] == [True, False, True, True]
    EngineCache(cache.folder, max_bytes=0).open({"file": "last"}, TIMING, "vit.onnx", Engine("x" * 1000).build, Engine().reuse)
    assert [entry.key for entry in cache.entries()] == [{"file": "last"}]


@pytest.mark.unit
def test_pruning_takes_damage_and_openvinos_files_too_and_empty_locks(cache: EngineCache, engine: Engine):
    opened(cache, engine)
    opened(cache, engine, OTHER)
    (entry_of(cache) / "vit.engine").unlink()
    (cache.folder / "123.blob").write_bytes(b"0" * 100)
    (cache.folder / "notes.txt").write_text("not ours")
    assert {(entry.kind, entry.state) for entry in cache.entries()} == {
        ("engine", "ok"),
        ("engine", "damaged"),
        ("timing", "ok"),
        ("openvino", "ok"),
    }
    assert [entry.path for entry in cache.prune(10**9)] == [entry_of(cache)]
    assert not entry_of(cache).with_suffix(".lock").exists()
    cache.prune(0)
    assert cache.entries() == []
    assert (cache.folder / "notes.txt").exists()


@pytest.mark.unit
def test_what_is_not_ours_is_neither_listed_nor_removed(cache: EngineCache, engine: Engine):
    """The folder may be any, such as ~/src, in which tensorrt/ is a checkout."""
    foreign = cache.folder / "tensorrt"
    names = [
        ".git", ".github", ".venv.old", f".{'0' * 31}.1", f".{'0' * 32}", "a_folder_with_32_letters_in_name", "A" * 32, "0" * 33, "0" * 31
    ]  # fmt: skip
    files = [foreign / name / "file" for name in names]
    files += [foreign / name for name in ("poetry.lock", f"{'A' * 32}.lock", ".lock", "0.blob")]
    files += [cache.folder / name for name in ("model.blob", "1a.blob", "1" * 21 + ".blob", ".blob", "\u0663.blob", "4.blob/file")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("not ours")
    elsewhere = cache.folder / "elsewhere"
    elsewhere.mkdir()
    (foreign / ("e" * 32)).symlink_to(elsewhere)
    opened(EngineCache(cache.folder, max_bytes=0), engine)
    assert [entry.kind for entry in cache.entries()] == ["engine"]
    assert [entry.kind for entry in cache.prune(0)] == ["engine"]
    assert [file for file in files if not file.exists()] == []
    assert (foreign / ("e" * 32)).is_symlink()


# --- processes

CHILD = """
import os, sys, time
from pathlib import Path
from vit_runtime.engine_cache import EngineCache

folder, log, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])

def say(text):
    with log.open("a") as file:
        file.write(text + "\\n")

def build(engine, times):
    say("build")
    (engine / "vit.engine").write_text("engine")
    time.sleep(seconds)
    return "built"

def reuse(engine):
    assert (engine / "vit.engine").read_text() == "engine"
    say("reading")
    time.sleep(float(sys.argv[4]) if len(sys.argv) > 4 else 0)
    return "reused"

say(EngineCache(folder).open({"key": "1"}, {"timing": "1"}, "vit.onnx", build, reuse, say))
"""


def start(cache: EngineCache, log: Path, *arguments: float) -> "subprocess.Popen[bytes]":
    home = str(Path(next(iter(vit_runtime.__path__))).parent)
    environment = {**os.environ, "PYTHONPATH": home}
    return subprocess.Popen([sys.executable, "-c", CHILD, cache.folder, log, *map(str, arguments)], env=environment)


def wait_for(log: Path, line: str | None = None) -> None:
    """Wait until the log has this line, or any line."""
    for _ in range(3000):
        lines = log.read_text().split("\n")[:-1] if log.exists() else []
        if line in lines or (line is None and lines):
            return
        time.sleep(0.01)
    raise AssertionError(f"expected {line!r} in the log: {log.read_text() if log.exists() else 'there is none'}")


def test_of_processes_that_build_at_once_one_builds_and_the_others_reuse(cache: EngineCache, tmp_path: Path):
    log = tmp_path / "log"
    children = [start(cache, log, 0.5) for _ in range(4)]
    assert [child.wait(60) for child in children] == [0] * 4
    messages = log.read_text().split("\n")
    assert (messages.count("build"), messages.count("built"), messages.count("reused")) == (1, 1, 3)


def test_the_lock_of_a_builder_that_was_killed_is_taken_over(cache: EngineCache, tmp_path: Path):
    builder_log, heir_log = tmp_path / "builder", tmp_path / "heir"
    builder = start(cache, builder_log, 600)
    wait_for(builder_log, "build")
    heir = start(cache, heir_log, 0)
    wait_for(heir_log)  # it reports that it waits
    assert "build" not in heir_log.read_text().split("\n")
    assert [entry.state for entry in cache.entries()] == ["unfinished"]
    assert cache.prune(0) == []  # somebody is at it
    builder.send_signal(signal.SIGKILL)
    builder.wait(60)
    assert heir.wait(60) == 0
    assert "built" not in builder_log.read_text().split("\n")
    messages = heir_log.read_text().split("\n")
    assert (messages.count("build"), messages.count("built")) == (1, 1)
    assert {entry.state for entry in cache.entries()} == {"ok"}  # and what the dead one left is gone


def test_what_a_killed_builder_left_can_be_pruned(cache: EngineCache, tmp_path: Path):
    builder = start(cache, tmp_path / "log", 600)
    wait_for(tmp_path / "log", "build")
    builder.kill()
    builder.wait(60)
    assert [entry.state for entry in cache.prune(10**9)] == ["unfinished"]
    assert list((cache.folder / "tensorrt").iterdir()) == []


def test_an_engine_that_somebody_reads_is_not_pruned(cache: EngineCache, tmp_path: Path):
    log = tmp_path / "log"
    assert start(cache, log, 0).wait(60) == 0
    reader = start(cache, log, 0, 600)
    wait_for(log, "reading")
    assert cache.prune(0) == []
    assert entry_of(cache, {"key": "1"}).exists()
    reader.kill()
    reader.wait(60)
    assert [entry.kind for entry in cache.prune(0)] == ["engine"]
