"""What the benchmarks share: a child process's time and peak memory, and the machine that a figure came from."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vit_runtime.threads import processor


def timed(command: list[str | Path], env: dict[str, str] | None = None) -> tuple[float, float]:
    """Run a command; wall seconds, and the peak memory of its largest process in MB (the operating system's own count)."""
    with open(os.devnull, "w") as null:
        start = time.perf_counter()
        child = subprocess.Popen([str(part) for part in command], stdout=null, stderr=subprocess.PIPE, env={**os.environ, **(env or {})})
        assert child.stderr is not None
        errors = child.stderr.read().decode()
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {child.returncode}\n{errors[-2000:]}")
    return seconds, usage.ru_maxrss * 1024 / 1e6


def machine(packages: list[str]) -> dict[str, Any]:
    """Processor, memory, versions and date, to stand beside every figure."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory / 1e9, 1),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {package: version(package) for package in packages},
    }


def markdown(rows: list[list[str]]) -> str:
    """Rows as a Markdown table, the first one its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{' --- |' * len(rows[0])}", *lines[1:]])
