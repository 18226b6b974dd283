"""Which of NVIDIA's compilers are installed here, and whether they load."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata

from vit_runtime.obstacle import Obstacle, one_line

LOAD_TIMEOUT_S = 120


@dataclass(frozen=True)
class Compiler:
    """TensorRT, which builds for the GPU that is there, or TensorRT for RTX, which builds for any of its GPUs on any machine."""

    name: str
    module: str
    install: str


TENSORRT = Compiler("tensorrt", "tensorrt", 'pip install "vit-deploy[tensorrt]"')
RTX = Compiler("tensorrt-rtx", "tensorrt_rtx", 'pip install "vit-deploy[rtx]"')
COMPILERS = (TENSORRT, RTX)


def is_there(compiler: Compiler) -> bool:
    """Whether its package is installed; it may be broken."""
    return importlib.util.find_spec(compiler.module) is not None


def installed(compiler: Compiler) -> dict[str, str]:
    """Its wheels here (name: version): the one that is asked for, and those that it brings, in which the libraries lie."""
    found = dict[str, str]()
    for distribution in metadata.distributions():
        fields = distribution.metadata
        name = str(fields["Name"]).lower().replace("_", "-") if "Name" in fields else ""  # a broken installation leaves an empty folder
        if re.fullmatch(rf"{compiler.name}(-cu\d+)?(-libs|-bindings)?", name):
            found.setdefault(name, str(distribution.version))
    return dict(sorted(found.items()))


def load(compiler: Compiler) -> Obstacle | None:
    """Import it in a child process, which a damaged library may take down; the Obstacle where that fails."""
    if not is_there(compiler):
        return Obstacle("missing", f"{compiler.name} is not installed", f"run: {compiler.install}")
    names = " ".join(installed(compiler)) or compiler.name
    remedy = f"run: pip uninstall -y {names} && {compiler.install}"
    code = f"import json, sys; sys.path[:] = json.load(sys.stdin); import {compiler.module} as found; found.Builder, found.OnnxParser"
    try:
        child = subprocess.run(
            [sys.executable, "-I", "-c", code],
            input=json.dumps(sys.path),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=LOAD_TIMEOUT_S,
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        return Obstacle("broken", f"{compiler.name} cannot be tried ({one_line(error)})", remedy)
    if child.returncode == 0:
        return None
    return Obstacle("broken", f"{compiler.name} does not load ({ending(child.returncode, child.stderr)})", remedy)


def ending(code: int, stderr: str) -> str:
    """How a child process ended, in a few words: its signal, and the last thing that it said."""
    last = one_line((stderr.strip().splitlines() or ["nothing on stderr"])[-1])
    last = re.sub(r"^\w*Error: ", "", last)
    return f"{signal.Signals(-code).name}: {last}" if code < 0 else last
