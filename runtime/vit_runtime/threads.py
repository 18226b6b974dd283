"""How many threads this process can use: physical cores, within its affinity and its cgroup's CPU quota.

onnxruntime's own default counts the cores of the machine. In a container that is limited to a part of it, the surplus threads wait
for one another and a prediction takes several times as long.
"""

import math
import os
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CpuBudget", "cpu_budget", "physical_cores", "processor"]


@dataclass(frozen=True)
class CpuBudget:
    """What this process may use of the machine's processors."""

    logical: int  # logical CPUs in the affinity mask (hyper-threads count one each)
    physical: int  # the distinct cores behind them
    quota: float | None  # CPU seconds a second that the tightest cgroup grants; None: no limit

    @property
    def cores(self) -> int:
        """Threads worth starting: the physical cores, or the quota rounded down if that is less, and never less than 1.

        Rounded down, because one thread more than the quota pays for gets the whole process throttled in every period.
        """
        return self.physical if self.quota is None else max(1, min(self.physical, math.floor(self.quota)))


def physical_cores() -> int:
    """Physical cores that this process can use: see `CpuBudget.cores`."""
    return cpu_budget().cores


def processor() -> str:
    """The processor's name, as figures say what they were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cpu_budget(root: Path = Path("/"), cpus: Iterable[int] | None = None) -> CpuBudget:
    """Read affinity, core topology and cgroup quota.

    Args:
        root: the folder that holds `proc` and `sys`.
        cpus: numbers of the logical CPUs; by default this process's affinity mask, or all CPUs where the system has none.

    What cannot be read (macOS and Windows have neither folder) limits nothing: each logical CPU then counts as a core of its own.
    """
    available = set(_affinity() if cpus is None else cpus)
    cores = {_core(root, cpu) for cpu in available}
    return CpuBudget(logical=len(available), physical=len(cores), quota=min(_quotas(root), default=None))


def _affinity() -> Iterable[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def _core(root: Path, cpu: int) -> tuple[str, ...]:
    """A name that hyper-thread siblings share: the list of their numbers, or else package, die and core number."""
    topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    if siblings := _read(topology / "thread_siblings_list"):
        return (siblings,)
    package, die, core = (_read(topology / name) for name in ("physical_package_id", "die_id", "core_id"))
    return (package, die, core) if core else (f"cpu{cpu}",)


def _quotas(root: Path) -> Iterator[float]:
    """Every CPU limit on this process: its own cgroup's and those of the cgroups above it, of version 2 and of version 1.

    /proc/self/cgroup gives the path as the host sees it. Inside a container that path often does not exist, and the container's own
    limit stands at the top of the mounted tree, where the walk upwards ends.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            mounts = ["unified", ""]  # beside version 1's controllers, or alone
        elif "cpu" in controllers.split(","):
            mounts = [controllers, "cpu"]
        else:
            continue
        parts = [] if ".." in path else [part for part in path.split("/") if part]
        for mount in dict.fromkeys(mounts):
            for depth in range(len(parts), -1, -1):
                quota = _quota(root.joinpath("sys/fs/cgroup", mount, *parts[:depth]))
                if quota is not None:
                    yield quota


def _quota(folder: Path) -> float | None:
    """The limit that one cgroup folder sets, if it sets one."""
    fields = _read(folder / "cpu.max").split() or [_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")]
    try:
        quota, period = (int(field) for field in fields)  # "max" and "" are no numbers: no limit
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None  # version 1 writes -1 for no limit


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
