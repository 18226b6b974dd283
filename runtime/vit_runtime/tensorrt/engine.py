"""Build an engine, in a child process: a compiler that crashes, hangs or eats the memory becomes a message."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from vit_runtime import nvidia
from vit_runtime.errors import InputError, MachineError, ModelError
from vit_runtime.manifest import KEY, Manifest, read_manifest
from vit_runtime.memory import available_memory, megabytes
from vit_runtime.obstacle import Obstacle, one_line
from vit_runtime.onnx_file import OnnxFile, read_graph, read_onnx
from vit_runtime.tensorrt.compilers import RTX, TENSORRT, Compiler, ending, is_there, load
from vit_runtime.tensorrt.context import Held, write_context
from vit_runtime.tensorrt.rules import TARGETS, Problem, command, lint, node_name

DEFAULT_BATCH = (1, 8, 32)
MAX_ELEMENTS = (1 << 31) - 1  # of a tensor
TIMEOUT_S = 3600.0
MIN_MEMORY = 256 << 20  # bytes that the compiler has to leave to everybody else
_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from vit_runtime.tensorrt import worker; worker.main()"

Tell = Callable[[str, int, int], None]

# What the compiler says, and what to do about it; {same} is the command that exports this network again.
ADVICE: tuple[tuple[str, str], ...] = (
    (r"FP32 GEMM is not supported", "no products in float32 for SM 75: export with `--target tensorrt --precision fp16` or int8"),
    (r"HW-specific datatypes: fp8", "fp8 needs SM 89 or later: export with `--target tensorrt --precision int8` or fp16 for this GPU"),
    (r"HW-specific datatypes: b16", "bf16 needs SM 80 or later: export with `--target tensorrt --precision fp16` for this GPU"),
    (r"Attention operation was not supported", "the Attention op has no kernel like this: export with --opset 22 or earlier, or in fp16"),
    (r"same input types|identical types|must have type", "the file mixes types that must agree: {same}, or put a Cast before the node"),
    (r"Plugin not found|plugin creator", "TensorRT has not this op: {same}"),
    (r"[Uu]nsupported|Failed to import initializer|^false$", "TensorRT cannot take this node: {same}"),
)


@dataclass(frozen=True)
class Profile:
    """The batch sizes that an engine takes, and the one that it is best at. Raises: InputError where they are out of order."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise InputError(f"got batch sizes {self}, expected MIN,OPT,MAX with 1 <= MIN <= OPT <= MAX, such as 1,8,32")

    def __str__(self) -> str:
        return f"{self.min},{self.opt},{self.max}"


@dataclass(frozen=True)
class Layer:
    """What the engine runs as one: its name and kind in the compiler's words, and the nodes of the file that went into it."""

    name: str
    kind: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Build:
    """An engine that was built. Sizes and memory in bytes; `sm` None: for the GPU that is here, or tensorrt-rtx's every one."""

    compiler: str
    version: str
    sm: int | None
    profile: Profile | None
    precision: str | None
    size: int
    seconds: float
    peak_memory: int | None
    nodes: int
    layers: tuple[Layer, ...]
    warnings: tuple[str, ...]

    @property
    def fused(self) -> tuple[Layer, ...]:
        """The layers that hold several nodes."""
        return tuple(layer for layer in self.layers if len(layer.nodes) > 1)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "fused": len(self.fused)}


class RefusedError(ModelError):
    """A file that TensorRT cannot take; `problems` has a line each."""

    def __init__(self, path: Path, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(f"{path}: {problem}" for problem in problems))
        self.path, self.problems = path, tuple(problems)


def build(
    path: Path,
    *,
    out: Path | None = None,
    profile: Profile | None = None,
    sm: int | None = None,
    workspace: int | None = None,
    optimization_level: int | None = None,
    timing_cache: Path | None = None,
    timeout: float = TIMEOUT_S,
    tell: Tell = lambda phase, step, steps: None,
) -> Build:
    """Build an engine of `path` with the compiler that is installed, and write it to `out` if there is one; it appears whole or not at all.

    Where `out` ends in .onnx the engine is written inside an .onnx file, which `load` takes (context.py).

    With `sm` (89 for compute capability 8.9) tensorrt-rtx builds for that GPU alone. Without it TensorRT builds for the GPU that is here,
    or where only tensorrt-rtx is installed, that for every GPU that it supports, from Ampere on.
    `profile` is for a free batch (DEFAULT_BATCH), `workspace` in MiB, `timeout` in seconds. What the linter finds is told before a compiler
    is asked. `tell` hears how far it is: (phase, step, steps).

    Raises: RefusedError for a file that the linter or the compiler does not take; ModelError for one that is unreadable;
    InputError for a profile that does not fit it, or an SM that is not built for; MachineError without a compiler, a GPU, or room.
    """
    head = _head(path)
    if head[1:4] == b"trt":
        raise ModelError(f"{path} is an engine that was built already, expected the .onnx file that it was built from")
    if problems := lint(path):
        raise RefusedError(path, problems)
    file = read_onnx(path)
    manifest = read_manifest(path)[0] if KEY in file.metadata else None
    shapes, profile = _shapes(file, manifest, profile)
    in_onnx = out is not None and out.suffix == ".onnx"
    if in_onnx and manifest is not None:
        _check_loadable(path, manifest, profile)
    compiler = _compiler(sm)
    if timing_cache is not None and compiler is RTX:
        raise InputError("got a timing cache for tensorrt-rtx, which times nothing while it builds; leave --timing-cache out")
    with tempfile.TemporaryDirectory(prefix="vit-trt-") as scratch:
        place = Path(scratch) if out is None else out.resolve().parent
        part = place / f".{(out or path).name}.{os.getpid()}"
        wrapped = part.with_name(f"{part.name}.onnx")
        cache_part = None if timing_cache is None else timing_cache.resolve().with_name(f".{timing_cache.name}.{os.getpid()}")
        request = {
            "model": str(path),
            "compiler": compiler.module,
            "sm": sm,
            "shapes": shapes,
            "workspace": workspace,
            "optimization_level": optimization_level,
            "timing_cache": None if timing_cache is None else str(timing_cache),
            "write": {"engine": str(part) if out is not None else None, "timing_cache": str(cache_part)},
        }
        try:
            answer = _run(request, compiler, timeout, tell)
            if "failed" in answer:
                raise _blame(answer["failed"], path, manifest, compiler)
            if out is not None:
                if in_onnx:
                    held = Held(compiler.name, answer["built"]["version"], sm or _sm_here(compiler), profile.max if profile else None)
                    write_context(file, part, held, wrapped)
                (wrapped if in_onnx else part).replace(out.resolve())
            if timing_cache is not None and cache_part is not None:
                cache_part.replace(timing_cache.resolve())
        finally:
            for each in (part, wrapped, cache_part):
                if each is not None:
                    each.unlink(missing_ok=True)
    found = answer["built"]
    order = {name: at for at, name in enumerate(node_name(node) for node in read_graph(path).nodes)}
    layers = tuple(
        Layer(item["name"], item["kind"], tuple(sorted(item["nodes"], key=lambda name: order.get(name, len(order)))))
        for item in found.pop("layers")
    )
    precision = None if manifest is None else str(manifest.build["precision"])
    found["warnings"] = tuple(one_line(text) for text in found["warnings"])
    return Build(compiler.name, sm=sm, profile=profile, precision=precision, nodes=file.nodes, layers=layers, **found)


def _head(path: Path) -> bytes:
    try:
        if path.is_file():
            with path.open("rb") as file:
                return file.read(4)
    except (OSError, ValueError):
        pass
    return b""  # what is the matter with it, read_onnx tells


def _shapes(file: OnnxFile, manifest: Manifest | None, profile: Profile | None) -> tuple[dict[str, list[list[int]]], Profile | None]:
    """Least, best and most shape of every input with a free size; the profile that they were made of."""
    shapes = dict[str, list[list[int]]]()
    for info in file.inputs:
        free = [at for at, size in enumerate(info.shape) if isinstance(size, str)]
        if not free:
            continue
        sizes = list(info.shape)
        if manifest is not None and info.name == manifest.input_name and manifest.multiple_of is not None:
            sizes[2:] = manifest.image_size
        others = [str(size) for size in sizes[1:] if isinstance(size, str)]
        if others or 0 not in free:
            listed = ", ".join(others or [str(sizes[at]) for at in free])
            raise ModelError(f"{file.path}: input {info.name} has free sizes other than its batch ({listed}); export it with fixed ones")
        chosen = profile = profile or Profile(*DEFAULT_BATCH)
        shapes[info.name] = [[batch, *map(int, sizes[1:])] for batch in (chosen.min, chosen.opt, chosen.max)]
        elements = 1
        for size in shapes[info.name][2]:
            elements *= size
        if elements > MAX_ELEMENTS:
            most = MAX_ELEMENTS // (elements // chosen.max)
            raise InputError(f"got batch sizes {chosen}, expected at most {most}: TensorRT's tensors hold 2147483647 numbers at most")
    if profile is not None and not shapes:
        fixed = sorted({str(info.shape[0]) for info in file.inputs if info.shape})
        raise InputError(f"got batch sizes {profile} for {file.path}, whose batch is fixed to {', '.join(fixed)}; leave --batch out")
    return shapes, profile if shapes else None


def _check_loadable(path: Path, manifest: Manifest, profile: Profile | None) -> None:
    """Raises: InputError for an engine that could not do what the runtime does with a file: any batch from one image on, every size."""
    if profile is not None and profile.min > 1:
        raise InputError(f"got batch sizes {profile} for an engine inside an .onnx file, which must take single images; let MIN be 1")
    if manifest.multiple_of is not None:
        raise InputError(f"{path} takes images of several sizes, an engine one of them; give --out another ending for the bare engine")


def _sm_here(compiler: Compiler) -> int | None:
    """Of the GPU that TensorRT has built for; None for tensorrt-rtx, which builds for all."""
    driver = nvidia.find_driver()
    if compiler is RTX or isinstance(driver, Obstacle):
        return None
    major, minor = driver.gpus[0].capability
    return 10 * major + minor


def _compiler(sm: int | None) -> Compiler:
    """TensorRT where it is installed, else tensorrt-rtx; for a GPU by name, which only that can, always tensorrt-rtx."""
    if sm is not None:
        if not is_there(RTX):
            raise MachineError(f"only tensorrt-rtx builds for a GPU that is named, and it is not installed; run: {RTX.install}")
        return RTX
    for compiler in (TENSORRT, RTX):
        if is_there(compiler):
            return compiler
    installs = f"`{TENSORRT.install}` where the GPU is, `{RTX.install}` anywhere"
    raise MachineError(f"no TensorRT compiler is installed, expected tensorrt or tensorrt-rtx; run {installs}")


def _run(request: Mapping[str, Any], compiler: Compiler, timeout: float, tell: Tell) -> dict[str, Any]:
    """What the child answers. Raises: MachineError where it does not."""
    with tempfile.TemporaryFile() as said:
        try:
            child = subprocess.Popen(
                [sys.executable, "-I", "-c", _CHILD, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                start_new_session=True,  # so that Ctrl-C ends it through us
            )
        except OSError as error:
            raise MachineError(f"the compiler's process cannot be started ({one_line(error)}); let this process start others") from error
        assert child.stdin is not None  # for mypy: they are pipes
        assert child.stdout is not None
        lines = queue.SimpleQueue[bytes | None]()
        reader = threading.Thread(target=_read_lines, args=(child.stdout, lines), daemon=True)  # Windows waits for pipes only so
        reader.start()
        answer = None
        try:
            with contextlib.suppress(BrokenPipeError), child.stdin:  # it may end before it has read the request
                child.stdin.write(json.dumps(request).encode())
            answer = _listen(lines, timeout, tell)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=60)
        finally:
            child.kill()
            child.wait()
            reader.join()
            child.stdout.close()
        if answer is not None:
            return answer
        if found := load(compiler):
            raise MachineError(str(found))
        if child.returncode == -9:  # SIGKILL
            raise MachineError(f"{compiler.name} was killed while it built, most likely for want of memory; build on a machine with more")
        said.seek(0)
        how = ending(child.returncode, said.read().decode("utf-8", "replace"))
    raise ModelError(
        f"{request['model']}: {compiler.name} itself broke down over it ({how}); export it with `vit-export --target tensorrt`, "
        "or try another release of the compiler"
    )


def _read_lines(answers: IO[bytes], lines: queue.SimpleQueue[bytes | None]) -> None:
    """Pass lines on; None at the end."""
    for line in answers:
        lines.put(line)
    lines.put(None)


def _listen(lines: queue.SimpleQueue[bytes | None], timeout: float, tell: Tell) -> dict[str, Any] | None:
    """The child's answer, None if it ends without. Raises: MachineError when the time or the memory is up."""
    deadline = time.monotonic() + timeout
    while True:
        if time.monotonic() > deadline:
            raise MachineError(f"no engine within {timeout:g} s; give it more with --timeout, or lower --optimization-level")
        free = available_memory()
        if free is not None and free < MIN_MEMORY:
            raise MachineError(f"the compiler has left {megabytes(free)} of memory; build on a machine with more, or a smaller network")
        try:
            line = lines.get(timeout=0.5)
        except queue.Empty:
            continue
        if line is None or not line.endswith(b"\n"):  # it ended, in the middle of a line even
            return None
        document = json.loads(line)
        if "phase" not in document:
            return dict(document)
        tell(document["phase"], document["step"], document["steps"])


def _blame(failed: Mapping[str, Any], path: Path, manifest: Manifest | None, compiler: Compiler) -> Exception:
    reason = _plain(failed["reason"])
    if failed["kind"] == "usage":
        return InputError(reason)
    if failed["kind"] == "disk":
        return MachineError(f"{failed['node']} cannot be written ({reason}); choose another file or make room")
    if "workspace limit" in reason:
        return InputError(f"{path}: no kernel fits the workspace; give more with --workspace, or leave it out")
    if no_gpu := re.search(r"[Cc][Uu][Dd][Aa](?:Error| initialization failure with error:?) (\d+)(?:: ([^)]*))?", reason):
        named = f" builds for the GPU that is here, and none can be used ({(no_gpu[2] or f'CUDA error {no_gpu[1]}').strip()})"
        return MachineError(f"{compiler.name}{named}; on any machine tensorrt-rtx builds for the GPU that --sm names")
    if failed["kind"] == "machine":
        return MachineError(f"{compiler.name}: {reason}; run `vit-doctor`")
    ours = manifest is not None and manifest.build["target"] in TARGETS
    same = f"export it with {command(manifest)}"
    advice = next((text.format(same=same) for pattern, text in ADVICE if re.search(pattern, reason)), "")
    if not advice:
        advice = "please report it, with this line and the command that made the file" if ours else same
    name, op, nodes = failed["node"], failed["op"], read_graph(path).nodes
    if found := re.search(r"Cannot compile operation '([^']*?)(?:_U\d+)?'", reason):
        name = found[1]
        op = next((node.op for node in nodes if node_name(node) == name), "")
    elif not name and 0 <= failed["index"] < len(nodes) and nodes[failed["index"]].op == op:
        name = node_name(nodes[failed["index"]])
    return RefusedError(path, [Problem(op or "the graph", 1, (name,) if name else (), f"{compiler.name} says: {reason}", advice)])


def _plain(reason: str) -> str:
    """The compiler's message without source positions, codes, and the echoes of a missing GPU."""
    lines = [line for line in reason.splitlines() if "catchCudaError" not in line and not line.startswith("Invalid Node - ")]
    text = " ".join(lines) or reason
    text = re.sub(r"^I?\w+::\w+: (?:Error Code \d+: )?", "", text)
    text = re.sub(r"\s*\bIn \w+ at /\S+:\d+", "", text)
    text = re.sub(r"\[\w+\.(?:cpp|h):\d+: \w+\] |\w+\.cpp:\d+: ", "", text)
    text = re.sub(r"Assertion failed: (?:[^:]*\): |[^:\"]* && )?", "", text)
    return one_line(text)
