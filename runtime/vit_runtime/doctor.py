"""What this machine offers, which providers truly work on it, what is broken, and the command that mends it."""

import os
import platform
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from vit_runtime.nvidia import TENSORRT_WHEEL, find_driver
from vit_runtime.obstacle import Obstacle
from vit_runtime.providers import PROVIDERS, Probe, Status, find_onnxruntime, onnxruntime_wheels, probe
from vit_runtime.tensorrt.compilers import COMPILERS, TENSORRT, installed, load
from vit_runtime.threads import cpu_budget

__all__ = ["Diagnosis", "Finding", "Machine", "diagnose"]

# What each part of vit-deploy needs, by the names that pip knows: the extra that brings it, and the packages.
NEEDED = {
    "": ("numpy", "click", "pillow"),
    "export": ("torch", "onnx", "onnx-ir", "onnxscript", "onnxsim", "safetensors", "ml-dtypes"),
    "quantize": ("nncf",),
    "tune": ("matplotlib",),
}


@dataclass(frozen=True)
class Machine:
    """The facts that speed and memory depend on."""

    python: str
    platform: str
    cpu: str
    logical_cpus: int  # in this process's affinity mask
    physical_cores: int  # behind them
    cpu_quota: float | None  # CPUs that the cgroup grants; None: no limit
    threads: int  # that a session starts by default
    memory_mib: int | None
    memory_available_mib: int | None


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: there, missing (nothing fails that does not need it), or broken."""

    name: str
    status: Status
    detail: str  # its version, or what is the matter
    remedy: str = ""  # the command or step that mends it; empty when it is ok


@dataclass(frozen=True)
class Diagnosis:
    """All that `vit-doctor` tells."""

    machine: Machine
    findings: tuple[Finding, ...]
    providers: tuple[Probe, ...]

    @property
    def everything(self) -> tuple[Finding, ...]:
        """The findings, and the providers as findings."""
        return (*self.findings, *(Finding(tried.name, tried.status, tried.reason, tried.remedy) for tried in self.providers))

    @property
    def failures(self) -> tuple[Finding, ...]:
        """What must be mended: all that is broken, and the CPU provider also if it is missing. Else, what is missing hurts nobody yet."""
        return tuple(item for item in self.everything if item.status == "broken" or (item.name == "cpu" and item.status != "ok"))

    @property
    def ok(self) -> bool:
        """The CPU provider works and nothing is broken."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """The same as data for JSON."""
        return {"ok": self.ok, **asdict(self)}


def diagnose() -> Diagnosis:
    """Look at everything and run three nodes on each provider; takes seconds, prints nothing, raises nothing."""
    probes = tuple(probe(name) for name in PROVIDERS)
    cuda_works = any(tried.works for tried in probes if tried.name == "cuda")
    return Diagnosis(_machine(), (*_packages(), *_onnxruntime(), *_tensorrt(), _nvidia(cuda_works)), probes)


def _machine() -> Machine:
    budget = cpu_budget()
    memory = dict(re.findall(r"^(\w+):\s+(\d+) kB$", _read("/proc/meminfo"), re.MULTILINE))
    total, available = (int(memory[key]) // 1024 if key in memory else None for key in ("MemTotal", "MemAvailable"))
    model = re.search(r"^(?:model name|Model|Hardware)\s*: (.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return Machine(
        python=f"{platform.python_implementation()} {platform.python_version()}",
        platform=platform.platform(),
        cpu=model[1] if model else platform.processor() or platform.machine(),
        logical_cpus=budget.logical,
        physical_cores=budget.physical,
        cpu_quota=budget.quota,
        threads=budget.cores,
        memory_mib=total,
        memory_available_mib=available,
    )


def _packages() -> Iterator[Finding]:
    """Versions as pip recorded them: nothing is imported, torch least of all."""
    yield _package("vit-deploy", "missing", "run: pip install vit-deploy")
    for extra, names in NEEDED.items():
        for name in names:
            if extra:
                yield _package(name, "missing", f'run: pip install "vit-deploy[{extra}]"')
            else:
                yield _package(name, "broken", "run: pip install --force-reinstall vit-deploy")


def _package(name: str, otherwise: Status, remedy: str) -> Finding:
    version = _version(name)
    return Finding(name, "ok", version) if version else Finding(name, otherwise, "not installed", remedy)


def _version(name: str) -> str:
    try:
        return metadata.version(name) or ""  # None where a broken installation has left an empty folder
    except metadata.PackageNotFoundError:
        return ""


def _onnxruntime() -> Iterator[Finding]:
    found = find_onnxruntime()
    if isinstance(found, Obstacle):
        yield Finding("onnxruntime", found.status, found.reason, found.remedy)
    else:
        for name, version in onnxruntime_wheels().items():
            yield Finding(name, "ok", version)


def _tensorrt() -> Iterator[Finding]:
    """NVIDIA's compilers are optional. What pip does not see: one that does not load, and TensorRT 11 beside onnxruntime-gpu."""
    for compiler in COMPILERS:
        if (found := load(compiler)) is not None:
            yield Finding(compiler.name, found.status, found.reason, found.remedy)
            continue
        wheels = installed(compiler)
        version = next(iter(wheels.values()), "installed without pip")
        major = re.match(r"\d+", version)
        if compiler is TENSORRT and major and int(major[0]) > 10 and "onnxruntime-gpu" in onnxruntime_wheels():
            remedy = f'run: pip uninstall -y {" ".join(wheels)} && pip install "{TENSORRT_WHEEL}"'
            yield Finding(compiler.name, "broken", f"{version} is installed, onnxruntime-gpu needs TensorRT 10", remedy)
        else:
            yield Finding(compiler.name, "ok", version)


def _nvidia(cuda_works: bool) -> Finding:
    """The driver and its GPUs, as the driver itself tells; what is in its way, where it cannot be asked."""
    found = find_driver()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    limit = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible!r})"
    if not isinstance(found, Obstacle):
        release = f"{found.release}, " if found.release else ""
        detail = f"{release}CUDA {found.cuda[0]}.{found.cuda[1]}; {'; '.join(map(str, found.gpus))}{limit}"
        return Finding("NVIDIA driver", "ok", detail)
    if cuda_works:
        return Finding("NVIDIA driver", "ok", f"it cannot be asked, but CUDA works{limit}")
    status = found.status if "onnxruntime-gpu" in onnxruntime_wheels() else "missing"  # who runs on the CPU has nothing to mend
    return Finding("NVIDIA driver", status, found.reason, f"{found.remedy}; not needed for the CPU")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
