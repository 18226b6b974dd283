"""The child process that runs the compiler: TensorRT is imported here and nowhere else.

It reads one request from stdin and writes lines of JSON to what was its stdout: {"phase", "step", "steps"} while it builds, and at the
end {"built"} or {"failed"}. What the compiler itself prints goes to stderr, where nobody but a crash is looked up.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from vit_runtime.memory import peak_memory

LAYER = re.compile(r"^Name: (.*?), LayerType: (.*?), Inputs: .*?, Metadata: ?(.*)$", re.MULTILINE)
ONNX_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\x1f|\[|$)")
MIB = 1 << 20


class FailedError(Exception):
    """Why there is no engine.

    `kind` is what is to blame: "file", "usage", "machine" or "disk"; `node`, `op` and the node's `index` where the compiler tells them,
    and on a full disk `node` is the file.
    """

    def __init__(self, kind: str, reason: str, node: str = "", op: str = "", index: int = -1) -> None:
        super().__init__(reason)
        self.document = {"kind": kind, "reason": reason, "node": node, "op": op, "index": index}


def main() -> None:
    """Build what stdin asks for."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)

        def tell(document: dict[str, Any]) -> None:
            print(json.dumps(document), file=answers, flush=True)

        request = json.load(sys.stdin)
        try:
            tell({"built": _build(request, tell)})
        except FailedError as error:
            tell({"failed": error.document})


def _build(request: dict[str, Any], tell: Any) -> dict[str, Any]:
    trt = importlib.import_module(request["compiler"])
    log = _logger(trt)
    start = time.perf_counter()
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # pybind11's, of a constructor that gave nothing
        raise FailedError("machine", log.last()) from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(request["model"]):
        raise _refused(parser)
    config = _config(trt, builder, request, log)
    config.progress_monitor = _monitor(trt, tell)
    _add_profile(builder, config, network, request["shapes"], log)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise FailedError("file", log.last())
    seconds = time.perf_counter() - start
    if request["write"]["engine"]:
        _write(request["write"]["engine"], engine)
    if request["timing_cache"]:
        _write(request["write"]["timing_cache"], config.get_timing_cache().serialize())
    return {
        "version": trt.__version__,
        "size": engine.nbytes,
        "seconds": seconds,
        "peak_memory": peak_memory(),
        "layers": _layers(log.layers or _inspect(trt, engine, log)),
        "warnings": log.warnings,
    }


def _logger(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]  # TensorRT comes without types
        """Keeps errors, warnings and the list of layers; prints nothing."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors, self.warnings, self.layers = list[str](), list[str](), ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            elif severity == trt.ILogger.WARNING:
                self.warnings.append(message)
            elif message.startswith("Layers:"):
                self.layers = message

        def last(self) -> str:
            """The last error that is not an echo of there being no GPU, else the last one."""
            told = [message for message in self.errors if "catchCudaError" not in message]
            return (told or self.errors or ["it gives no reason"])[-1]

    return Log()


def _monitor(trt: Any, tell: Any) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Tells how far the build is; when nobody listens any more, it ends."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps = dict[str, int]()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            self.step_complete(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                tell({"phase": phase_name, "step": step, "steps": self.steps.get(phase_name, 0)})
            except OSError:
                os._exit(1)  # the command is gone
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()


def _config(trt: Any, builder: Any, request: dict[str, Any], log: Any) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if request["sm"]:
        known = {name.removeprefix("SM"): value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
        if str(request["sm"]) not in known:
            listed = ", ".join(sorted(known, key=int))
            raise FailedError("usage", f"got --sm {request['sm']}, expected one that tensorrt-rtx {trt.__version__} builds for: {listed}")
        config.num_compute_capabilities = 1
        config.set_compute_capability(known[str(request["sm"])], 0)
    if request["optimization_level"] is not None:
        config.builder_optimization_level = request["optimization_level"]
    if request["workspace"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace"] * MIB)
    if request["timing_cache"]:
        path = Path(request["timing_cache"])
        try:
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise FailedError("usage", f"{path} cannot be read ({error.strerror}), expected a timing cache; choose another file") from error
        before = len(log.warnings)
        cache = config.create_timing_cache(content)
        if len(log.warnings) > before or not config.set_timing_cache(cache, False):
            raise FailedError("usage", f"{path} is no timing cache of this TensorRT and this GPU; delete it, or choose another file")
    return config


def _add_profile(builder: Any, config: Any, network: Any, shapes: dict[str, list[list[int]]], log: Any) -> None:
    """The shapes (least, best, most) of each input; of inputs with a free size, without which there is no engine."""
    if not shapes:
        return
    profile = builder.create_optimization_profile()
    for name, (least, best, most) in shapes.items():
        profile.set_shape(name, least, best, most)
    if config.add_optimization_profile(profile) < 0:
        raise FailedError("usage", log.last())


def _write(path: str, content: Any) -> None:
    try:
        Path(path).write_bytes(content)
    except OSError as error:
        raise FailedError("disk", error.strerror or str(error), path) from error


def _refused(parser: Any) -> FailedError:
    error = parser.get_error(0)
    return FailedError("file", error.desc(), error.node_name(), error.node_operator(), error.node())


def _inspect(trt: Any, engine: Any, log: Any) -> str:
    """The same list from the engine itself, which only a machine with the GPU can open; empty where it cannot be had."""
    opened = trt.Runtime(log).deserialize_cuda_engine(engine)
    if opened is None:
        return ""
    return str(opened.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.ONELINE))


def _layers(text: str) -> list[dict[str, Any]]:
    """What the engine runs, in order: a name, a kind, and the ONNX nodes that went into it."""
    return [
        {"name": name, "kind": kind, "nodes": list(dict.fromkeys(ONNX_NODE.findall(metadata)))}
        for name, kind, metadata in LAYER.findall(text)
    ]
