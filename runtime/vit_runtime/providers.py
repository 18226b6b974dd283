"""Execution providers: which ones truly work here, and a session on exactly the one that was asked for.

All are onnxruntime's, but for `openvino`, an engine of its own for CPUs (openvino_engine.py).

onnxruntime itself is lenient. `get_available_providers()` lists what was compiled in, not what can load, and a session that is asked
for CUDA runs on the CPU where CUDA is missing, with a line in a log at most. So this module adds providers one by one through
`SessionOptions.add_provider`, which raises, forbids every fallback, and believes in a provider only when nodes have run on it.

`auto` takes the best provider that works: CUDA, then OpenVINO for a file that was made for it, then the CPU. TensorRT is taken only by
name, because it builds an engine for minutes, and so is TensorRT RTX, which is a plug-in (rtx_plugin.py). Nothing here ever imports torch
or onnx, and onnxruntime only inside functions.
"""

import contextlib
import difflib
import importlib
import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vit_runtime import nvidia, rtx_plugin
from vit_runtime.errors import InputError, MachineError, ModelError, ProviderError
from vit_runtime.gpu_options import GPU_PROVIDERS, GpuOptions, cuda_options, either
from vit_runtime.obstacle import Obstacle, one_line
from vit_runtime.openvino_engine import FLOAT32, REINSTALL, Arithmetic, OpenVinoSession, find_openvino
from vit_runtime.threads import physical_cores

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = [
    "AUTO",
    "PROVIDERS",
    "NodePlacement",
    "Probe",
    "Provider",
    "create_session",
    "find_provider",
    "load_onnxruntime",
    "node_placement",
    "placement",
    "probe",
    "require",
]

Status = Literal["ok", "missing", "broken"]


@dataclass(frozen=True)
class Provider:
    """An execution provider under the short name that users type."""

    name: str
    ort_name: str  # onnxruntime's name; empty where another engine runs it
    technology: str  # as it is called in messages
    extra: str  # the extra of vit-deploy that brings it


PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider("cpu", "CPUExecutionProvider", "CPU kernels", "cpu"),
        Provider("openvino", "", "OpenVINO", "openvino"),
        Provider("cuda", "CUDAExecutionProvider", "CUDA", "gpu"),
        Provider("tensorrt", "TensorrtExecutionProvider", "TensorRT", "gpu"),
        Provider("tensorrt-rtx", rtx_plugin.EP_NAME, "TensorRT RTX", "ep-rtx"),
    )
}
AUTO = ("cuda", "cpu")  # what `auto` takes, best first; before the last what the file was made for
MAX_THREADS = 1024  # onnxruntime's workers spin while they wait: with 5,000 of them a session is not even created within a minute
PROBE_TIMEOUT_S = 120


@dataclass(frozen=True)
class Probe:
    """What came of running three nodes on one provider.

    `missing` means that this machine lacks something (a wheel, a library, a GPU), `broken` that all is there and yet it fails.
    """

    name: str
    status: Status
    reason: str
    remedy: str  # the command or step that mends it; empty when it works

    @property
    def works(self) -> bool:
        return self.status == "ok"


@dataclass(frozen=True)
class NodePlacement:
    """Where onnxruntime put one node."""

    name: str
    op_type: str
    provider: str  # its short name; onnxruntime's own name for any other


# --- the onnxruntime wheel --------------------------------------------------------------------------------------------------------------


def load_onnxruntime() -> Any:
    """Import onnxruntime.

    Raises: MachineError, in one line with the command that mends it, where onnxruntime is missing, has been gutted (another of its
    wheels was uninstalled over it), cannot be imported, or is installed from several wheels at once, which overwrite each other's files.
    """
    found = find_onnxruntime()
    if isinstance(found, Obstacle):
        raise MachineError(str(found))
    return found


def find_onnxruntime() -> Any:
    """The onnxruntime module, or the Obstacle in its way."""
    wheels = onnxruntime_wheels()
    if len(wheels) > 1:
        listed = " and ".join(f"{name} {version}" for name, version in wheels.items())
        return Obstacle("broken", f"{listed} are installed at once and overwrite each other's files", reinstall(wheels))
    try:
        module = importlib.import_module("onnxruntime")
    except Exception as error:  # noqa: BLE001 (a damaged wheel fails in many ways: missing files, missing libraries, numpy's ABI)
        if isinstance(error, ModuleNotFoundError) and error.name == "onnxruntime":
            return Obstacle("missing", "onnxruntime is not installed", reinstall([]))
        return Obstacle("broken", f"onnxruntime cannot be imported ({one_line(error)})", reinstall(wheels or ["onnxruntime"]))
    if not hasattr(module, "InferenceSession"):
        if not wheels:  # a folder with leftovers, which Python takes for a namespace package
            return Obstacle("missing", "onnxruntime is not installed", reinstall([]))
        reason = "onnxruntime is gutted (it has no InferenceSession): another of its wheels was uninstalled over it"
        return Obstacle("broken", reason, reinstall(wheels))
    return module


@cache
def onnxruntime_wheels() -> Mapping[str, str]:
    """The installed distributions (name: version) that own the `onnxruntime` package which Python would import.

    A wheel in another folder (user site, a parent environment) is hidden rather than overwritten, so it does not count.
    """
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or not spec.submodule_search_locations:
        return {}
    folder = Path(next(iter(spec.submodule_search_locations))).resolve()
    wheels = {}
    for distribution in metadata.distributions():
        name = _name(distribution)
        if not name.startswith(("onnxruntime", "ort-")) or not _owns_onnxruntime(distribution):
            continue
        if Path(str(distribution.locate_file("onnxruntime"))).resolve() == folder:
            wheels[name] = distribution.version
    return dict(sorted(wheels.items()))


def _name(distribution: metadata.Distribution) -> str:
    """Its name as pip writes it; empty where a broken installation has left a folder without a name."""
    fields = distribution.metadata
    return str(fields["Name"]).lower().replace("_", "-") if "Name" in fields else ""


def _owns_onnxruntime(distribution: metadata.Distribution) -> bool:
    top_level = distribution.read_text("top_level.txt")
    if top_level is not None:
        return "onnxruntime" in top_level.split()
    return any(file.parts[0] == "onnxruntime" for file in distribution.files or ())


def reinstall(wheels: Iterable[str]) -> str:
    """The command that leaves exactly one whole onnxruntime wheel."""
    installed = " ".join(wheels)
    first, other = ("gpu", "cpu") if "gpu" in installed else ("cpu", "gpu")
    uninstall = f"pip uninstall -y {installed} && " if installed else ""
    return f'run: {uninstall}pip install "vit-deploy[{first}]" (or "vit-deploy[{other}]", never both)'


# --- what a provider needs --------------------------------------------------------------------------------------------------------------


def find_provider(name: str) -> Provider:
    """The provider of that short name.

    Raises: InputError for any other name, with the known ones and the nearest.
    """
    if name in PROVIDERS:
        return PROVIDERS[name]
    nearest = difflib.get_close_matches(str(name).lower().removesuffix("executionprovider"), PROVIDERS, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise InputError(f"got provider {name!r}, expected one of auto, {', '.join(PROVIDERS)}{hint}")


def _obstacle(ort: Any, provider: Provider, device_id: int = 0) -> Obstacle | None:
    """What `provider` evidently lacks here, found without a line from onnxruntime. Loads the libraries that it will need."""
    if provider.name == "tensorrt-rtx":
        if not rtx_plugin.takes_plugins(ort):
            reason = f"onnxruntime {ort.__version__} takes no providers as plug-ins, expected 1.24 or later"
            return Obstacle("missing", reason, f"run: pip install --upgrade {' '.join(onnxruntime_wheels()) or 'onnxruntime'}")
        device = rtx_plugin.find_device(ort, device_id)
        return device if isinstance(device, Obstacle) else None
    if provider.ort_name not in ort.get_available_providers():
        wheels = onnxruntime_wheels()
        built = " ".join(f"{name} {version}" for name, version in wheels.items()) or f"onnxruntime {ort.__version__}"
        remedy = f'run: pip uninstall -y {" ".join(wheels) or "onnxruntime"} && pip install "vit-deploy[{provider.extra}]"'
        return Obstacle("missing", f"{built} was built without {provider.technology}", remedy)
    if provider.name == "cpu":
        return None
    if not hasattr(ort.InferenceSession, "get_provider_graph_assignment_info"):
        reason = f"onnxruntime {ort.__version__} cannot say where nodes run, expected 1.27 or later"
        return Obstacle("missing", reason, f'run: pip install --upgrade "vit-deploy[{provider.extra}]"')
    if sys.platform == "win32":
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()
    found = list(nvidia.obstacles(ort, provider.name == "tensorrt", device_id))
    if not found:
        return None
    status: Literal["missing", "broken"] = "broken" if any(obstacle.status == "broken" for obstacle in found) else "missing"
    return Obstacle(status, ", and ".join(obstacle.reason for obstacle in found), "; then ".join(obstacle.remedy for obstacle in found))


# --- probing ----------------------------------------------------------------------------------------------------------------------------

# A patch embedding in miniature: y = (Conv(x, k) @ m) + b, ONNX IR version 8, opset 18, made with onnx.helper. Conv runs on cuDNN,
# MatMul on cuBLAS and Add on onnxruntime's own kernels, the three that a Vision Transformer needs; all values are small integers, which
# reduced precisions such as TF32 hold exactly too.
PROBE_MODEL = bytes.fromhex(
    "08083ae101"  # ir_version 8, graph of 225 bytes
    "0a150a01780a016b1201631a04636f6e762204436f6e76"  # Conv(x, k) -> c
    "0a190a01630a016d1201701a066d61746d756c22064d61744d756c"  # MatMul(c, m) -> p
    "0a130a01700a01621201791a036164642203416464"  # Add(p, b) -> y
    "120570726f6265"  # its name: probe
    "2a2f0802080108020802100142016b4a20"  # k (2, 1, 2, 2):
    "0000803f0000004000004040000080400000803f00000000000000000000803f"  # 1 2 3 4 and 1 0 0 1
    "2a1308010802100142016d4a080000004000004040"  # m (1, 2) = 2 3
    "2a11080210014201624a080000803f00000040"  # b (2) = 1 2
    "5a1b0a017812160a14080112100a0208010a0208010a0208020a020802"  # input x float32 (1, 1, 2, 2)
    "621b0a017912160a14080112100a0208010a0208020a0208010a020802"  # output y float32 (1, 2, 1, 2)
    "42040a001012"  # opset 18
)
PROBE_INPUT = np.array([[[[1, 2], [3, 4]]]], np.float32)
PROBE_OUTPUT = np.array([[[[61, 92]], [[11, 17]]]], np.float32)

_CHILD = "import json, sys; sys.path[:] = json.load(sys.stdin); from vit_runtime import providers; providers._report(sys.argv[1])"


def probe(name: str) -> Probe:
    """Run three nodes on the provider of that name and look at the numbers and at where they ran.

    It runs in a child process, so that a crash in a damaged library becomes a reason, and so that neither onnxruntime's log lines nor a
    GPU context stay behind in this one. A tenth of a second for the CPU, seconds for CUDA, longer for TensorRT, which builds an engine.

    Raises: InputError for an unknown name. What fails is told in the Probe, not raised.
    """
    provider = find_provider(name)
    interpreter = _interpreter()
    found = _attempt(provider) if interpreter is None else _attempt_in_child(provider, interpreter)
    if found is None:
        return Probe(name, "ok", "Conv, MatMul and Add ran on it and gave the right numbers", "")
    return Probe(name, found.status, found.reason, found.remedy)


def _interpreter() -> str | None:
    """The Python to start a child with; None in a frozen or embedded program, where `sys.executable` is the program itself."""
    named_python = Path(sys.executable or "").name.lower().startswith(("python", "pypy"))
    return sys.executable if named_python and not getattr(sys, "frozen", False) else None


def _attempt_in_child(provider: Provider, interpreter: str) -> Obstacle | None:
    remedy = f'run: pip install --force-reinstall "vit-deploy[{provider.extra}]"'
    try:
        child = subprocess.run(
            [interpreter, "-I", "-c", _CHILD, provider.name],
            input=json.dumps([str(entry) for entry in sys.path]),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=PROBE_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        reason = f"no answer from {provider.technology} within {PROBE_TIMEOUT_S} s"
        return Obstacle("broken", reason, "see whether `nvidia-smi` answers" if provider.name in GPU_PROVIDERS else remedy)
    except OSError as error:
        return Obstacle("broken", f"the probe could not be started ({one_line(error)})", "let this process start others")
    if child.returncode != 0:
        ending = f"signal {signal.Signals(-child.returncode).name}" if child.returncode < 0 else f"exit code {child.returncode}"
        last = one_line((child.stderr.strip().splitlines() or ["nothing on stderr"])[-1])
        return Obstacle("broken", f"{provider.technology} took its process down ({ending}: {last})", remedy)
    answer = re.search(r"^probe: (.*)$", child.stdout, re.MULTILINE)  # around it stands what the libraries may have printed
    fields = json.loads(answer[1]) if answer else asdict(Obstacle("broken", "the probe ended without an answer", remedy))
    if fields is None:
        return None
    found = Obstacle(**fields)
    unloaded = re.search(r"Failed to load library .* with error: (.+)", child.stderr)  # the reason stands only in onnxruntime's log
    return Obstacle("broken", f"{provider.technology} does not load ({one_line(unloaded[1])})", found.remedy) if unloaded else found


def _report(name: str) -> None:
    """The child's whole task: one line of JSON."""
    found = _attempt(PROVIDERS[name])
    print("\nprobe: " + json.dumps(None if found is None else asdict(found)))


def _attempt(provider: Provider) -> Obstacle | None:
    """Run PROBE_MODEL on `provider` in this process."""
    if provider.name == "openvino":
        return _attempt_openvino()
    ort = find_onnxruntime()
    if isinstance(ort, Obstacle):
        return ort
    if found := _obstacle(ort, provider):
        return found
    remedy = f'run: pip install --force-reinstall "vit-deploy[{provider.extra}]"'
    if provider.name != "cpu":
        remedy = f"compare `nvidia-smi` with what onnxruntime {ort.__version__} needs, or {remedy}"
    options = {"trt_min_subgraph_size": "1"} if provider.name == "tensorrt" else {}  # by default it leaves so few nodes to CUDA
    try:
        session = _open(ort, PROBE_MODEL, provider, threads=1, options=options)
        (output,) = session.run(None, {"x": PROBE_INPUT})
        placed = {"cpu"} if provider.name == "cpu" else set(placement(session))  # before 1.24 only this can be known without asking
    except Exception as error:  # noqa: BLE001 (any failure of foreign code is the answer here)
        return Obstacle("broken", f"{provider.technology} failed ({one_line(error)})", remedy)
    if not np.array_equal(output, PROBE_OUTPUT):
        return Obstacle("broken", f"{provider.technology} gave {output.ravel().tolist()}, expected {PROBE_OUTPUT.ravel().tolist()}", remedy)
    if placed != {provider.name}:
        return Obstacle("broken", f"nodes meant for {provider.technology} ran on {', '.join(sorted(placed))}", remedy)
    return None


def _attempt_openvino() -> Obstacle | None:
    found = find_openvino()
    if isinstance(found, Obstacle):
        return found
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "probe.onnx")
        path.write_bytes(PROBE_MODEL)
        try:
            (output,) = OpenVinoSession(path, threads=1).run(["y"], {"x": PROBE_INPUT})
        except Exception as error:  # noqa: BLE001 (any failure of foreign code is the answer here)
            return Obstacle("broken", f"OpenVINO failed ({one_line(error)})", REINSTALL)
    if not np.array_equal(output, PROBE_OUTPUT):
        return Obstacle("broken", f"OpenVINO gave {output.ravel().tolist()}, expected {PROBE_OUTPUT.ravel().tolist()}", REINSTALL)
    return None


@cache
def _works(name: str) -> bool:
    """Whether a provider works, asked once in a process."""
    return probe(name).works


# --- sessions ---------------------------------------------------------------------------------------------------------------------------


def create_session(
    model_path: str | os.PathLike[str],
    provider: str = "auto",
    threads: int | None = None,
    provider_options: Mapping[str, str] | None = None,
    *,
    made_for: str = "cpu",
    arithmetic: Arithmetic = FLOAT32,
    cache_dir: Path | None = None,
) -> "tuple[InferenceSession | OpenVinoSession, str]":
    """Open a model on exactly the provider that was asked for.

    Args:
        model_path: an .onnx file.
        provider: "cpu", "openvino", "cuda", "tensorrt", "tensorrt-rtx", or "auto": CUDA where a probe shows that it works (once in a
            process, a second or two), else OpenVINO where it works and the file is `made_for` it, else the CPU. "auto" never takes
            TensorRT, whose engine takes minutes to build, nor TensorRT RTX. Below TensorRT, CUDA takes the nodes that TensorRT cannot,
            below TensorRT RTX the CPU; `placement` tells.
        threads: for the work inside one node; by default the physical cores that this process may use. Nodes run one after another.
        provider_options: onnxruntime's own options for a GPU's provider, such as gpu_options.py makes; without any, GPU 0. "cuda" computes
            in float32 unless they say otherwise.
        arithmetic: what the file allows OpenVINO to compute in.
        cache_dir: where OpenVINO keeps what it compiled, for a faster start the next time; nowhere without. The folder is made; one that
            cannot be written to, and what is damaged in it, is passed over.

    Returns: the session and the provider's short name. The session never falls back, neither now nor while it runs.

    Raises: InputError for an unknown provider, options without their provider, or threads out of range; ModelError for a file that
    the engine cannot load; MachineError without a whole onnxruntime, or for a cache_dir that cannot be made; ProviderError where the
    provider does not run here, with what is missing and what mends it.
    """
    chosen = None if provider == "auto" else find_provider(provider)
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= MAX_THREADS):
        raise InputError(f"got {threads!r} threads, expected a whole number from 1 to {MAX_THREADS}, or none for the physical cores")
    if provider_options and (chosen is None or chosen.name in ("cpu", "openvino")):
        raise InputError(f"got provider_options for provider {provider!r}, expected them with {either(GPU_PROVIDERS)} only")
    path = os.fsdecode(model_path)
    if not Path(path).is_file():
        raise ModelError(f"{path}: no such file, expected an .onnx model")
    chosen = chosen or _best(made_for)
    if chosen.name == "openvino":
        return _open_openvino(path, threads or physical_cores(), arithmetic, cache_dir), chosen.name
    options = dict(provider_options or {})
    if chosen.name == "cuda":
        options = {**cuda_options(GpuOptions()), **options}
    ort = require(chosen.name, int(options.get("device_id", 0)))
    try:
        session = _open(ort, path, chosen, threads or physical_cores(), options)
    except _AddProviderError as error:
        asked = probe(chosen.name)  # its reason is better: onnxruntime tells its own in its log only
        reason, remedy = (error, "check provider_options") if asked.works else (asked.reason, asked.remedy)
        raise ProviderError(f"provider {chosen.name!r} does not run here: {reason}; {remedy}") from error.__cause__
    except Exception as error:
        raise _blame(ort, path, chosen, error) from error
    first = session.get_providers()[0]
    if first != chosen.ort_name:
        raise ProviderError(f"asked for {chosen.ort_name}, got a session on {first}; run `vit-doctor`")
    return session, chosen.name


def require(name: str, device_id: int = 0) -> Any:
    """The onnxruntime module, with all loaded that the provider needs.

    Raises: MachineError without a whole onnxruntime; ProviderError for what the provider evidently lacks, before any file is looked at.
    """
    ort = load_onnxruntime()
    if found := _obstacle(ort, find_provider(name), device_id):
        raise ProviderError(f"provider {name!r} does not run here: {found}")
    return ort


def _best(made_for: str) -> Provider:
    """What "auto" takes for a file that was made for this provider."""
    *fast, last = AUTO
    for name in [*fast, *([made_for] if made_for == "openvino" else [])]:
        if _is_there(PROVIDERS[name]) and _works(name):
            return PROVIDERS[name]
    return PROVIDERS[last]


def _is_there(provider: Provider) -> bool:
    """Whether it is worth asking if the provider works: its engine is installed, and was built with it."""
    if provider.name == "openvino":
        return importlib.util.find_spec("openvino") is not None
    ort = find_onnxruntime()
    return not isinstance(ort, Obstacle) and provider.ort_name in ort.get_available_providers()


def _open_openvino(path: str, threads: int, arithmetic: Arithmetic, cache_dir: Path | None) -> OpenVinoSession:
    found = find_openvino()
    if isinstance(found, Obstacle):
        raise ProviderError(f"provider 'openvino' does not run here: {found}")
    try:
        if cache_dir is not None:
            cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"the cache folder {cache_dir} cannot be made ({error.strerror or error})"
        raise MachineError(f"{reason}; choose another folder, or leave cache_dir out") from error
    try:
        return OpenVinoSession(Path(path), threads, arithmetic, cache_dir)
    except Exception as error:
        asked = probe("openvino")
        if not asked.works:
            raise ProviderError(f"provider 'openvino' does not run here: {asked.reason}; {asked.remedy}") from error
        raise ModelError(
            f"{path}: OpenVINO cannot load it ({one_line(error)}); export it with --target openvino, or use provider 'cpu'"
        ) from error


class _AddProviderError(Exception):
    """A provider that onnxruntime would not take, before it has looked at any model."""


def _open(ort: Any, model: str | bytes, provider: Provider, threads: int, options: Mapping[str, str]) -> Any:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.log_severity_level = 4  # what goes wrong is raised as well; the log would say it twice, and on the terminal
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")  # for placement(); older releases ignore it
    if provider.name == "cpu":  # always loads, so the way that older releases know too is as strict
        return ort.InferenceSession(model, settings, providers=[provider.ort_name], enable_fallback=0)
    try:
        if provider.name == "tensorrt-rtx":
            device = rtx_plugin.find_device(ort, int(options.get("device_id", "0")))  # an Obstacle by now is refused as no device
            settings.add_provider_for_devices([device], {name: value for name, value in options.items() if name != "device_id"})
        else:
            settings.add_provider(provider.ort_name, dict(options))
        if provider.name == "tensorrt":
            shared = {name: options[name] for name in ("device_id", "user_compute_stream") if name in options}
            settings.add_provider(PROVIDERS["cuda"].ort_name, {**cuda_options(GpuOptions()), **shared})
    except Exception as error:
        raise _AddProviderError(one_line(error)) from error
    return ort.InferenceSession(model, settings, enable_fallback=0)


def _blame(ort: Any, path: str, provider: Provider, error: Exception) -> ModelError | ProviderError:
    """Whose fault it is that a session could not be made: the file's if the CPU cannot load it either, else the provider's."""
    if provider.name in GPU_PROVIDERS and nvidia.out_of_memory(error):
        remedy = "free what `nvidia-smi` shows in use, take a smaller max_batch, or a file in half precision"
        return ProviderError(f"{path}: the GPU has not enough free memory to load it on {provider.name} ({one_line(error)}); {remedy}")
    if provider.name != "cpu":
        try:
            _open(ort, path, PROVIDERS["cpu"], threads=1, options={})
        except Exception as same:  # noqa: BLE001 (onnxruntime's errors have no root of their own)
            error = same
        else:
            return ProviderError(f"{path}: {provider.name} cannot run this model, the cpu can ({one_line(error)}); use provider 'cpu'")
    reason = one_line(str(error).replace(f"Load model from {path} failed:", ""))
    if "Could not find an implementation" in reason:  # bfloat16, for one
        missing = f"{path}: onnxruntime {ort.__version__} has no kernel for it on this provider ({reason})"
        return ModelError(f"{missing}; use the provider that it was made for, or export it for this one with --target")
    return ModelError(f"{path}: onnxruntime {ort.__version__} cannot load it ({reason}); export it again, or update onnxruntime")


def placement(session: "InferenceSession | OpenVinoSession") -> dict[str, int]:
    """How many nodes run on which provider, most first. See `node_placement`, also for what is raised."""
    return dict(Counter(node.provider for node in node_placement(session)).most_common())


def node_placement(session: "InferenceSession | OpenVinoSession") -> tuple[NodePlacement, ...]:
    """Where each node of a session from `create_session` runs.

    onnxruntime's nodes are those that it had when it divided the graph among providers: later fusions within a provider do not show.
    OpenVINO's are what runs, after its fusions.

    Raises: MachineError before onnxruntime 1.24, which does not tell; InputError for a session that did not record it.
    """
    if isinstance(session, OpenVinoSession):
        return tuple(NodePlacement(name, kind, "openvino") for name, kind in session.nodes())
    ort = load_onnxruntime()
    if not hasattr(session, "get_provider_graph_assignment_info"):
        reason = f"onnxruntime {ort.__version__} does not tell where nodes run, expected 1.24 or later"
        raise MachineError(f"{reason}; run: pip install --upgrade {' '.join(onnxruntime_wheels()) or 'onnxruntime'}")
    try:
        assigned = session.get_provider_graph_assignment_info()
    except Exception as error:
        raise InputError("this session did not record where its nodes run; make it with create_session") from error
    short = {provider.ort_name: provider.name for provider in PROVIDERS.values()}
    return tuple(
        NodePlacement(node.name, node.op_type, short.get(part.ep_name, str(part.ep_name))) for part in assigned for node in part.get_nodes()
    )
