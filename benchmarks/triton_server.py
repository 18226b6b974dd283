"""NVIDIA's own Triton server on this machine, without a container: for the tests and benchmarks/triton_serving.py.

The wheel of nvidia-pytriton holds the real `tritonserver` with its Python backend, and tritonclient's wheel perf_analyzer. Both go into an
environment of their own under build/, with the runtime's dependencies, numpy 1.26 among them, which that tritonclient wants. The
server embeds Python, so the environment is made from the distribution's own interpreter, whose libpython it loads. All of it listens on
127.0.0.1 alone.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SERVER = "nvidia-pytriton==0.7.0"  # Triton 2.51
# The engine and the decoder are those of the tests' own environment, so that answers can be equal bit for bit.
CLIENT = ("tritonclient[http,grpc]==2.50.0", "numpy==1.26.4", *(f"{name}=={version(name)}" for name in ("onnxruntime", "pillow", "click")))
PYTHONS = ("3.11", "3.12", "3.10")  # numpy 1.26 has wheels for these, and the server a stub


class UnavailableError(Exception):
    """What this machine lacks to run the server."""


@dataclass(frozen=True)
class Triton:
    """An installed server: the environment's folder and what lies in it."""

    folder: Path
    packages: Path

    @property
    def python(self) -> Path:
        """The interpreter that has the clients."""
        return self.folder / "bin" / "python"

    @property
    def _home(self) -> Path:
        return self.packages / "pytriton" / "tritonserver"

    def environment(self) -> dict[str, str]:
        """Of the server and its clients: the environment's Python, by which the server finds packages, and perf_analyzer's libraries."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return {**kept, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "LD_LIBRARY_PATH": str(self.folder / "lib" / "triton")}

    def command(self, repository: Path, *options: str) -> list[str]:
        """The server on a repository; what its configurations leave out is an error and not guessed."""
        own = ("--model-repository", repository, "--backend-directory", self._home / "backends", "--disable-auto-complete-config")
        return [str(part) for part in (self._home / "bin" / "tritonserver", *own, *options)]


def install(folder: Path = ROOT / "build" / "triton") -> Triton:
    """The server and its clients in an environment, made where it does not stand yet. Raises: UnavailableError with the reason."""
    name = next((name for name in PYTHONS if _is_usable(name)), None)
    if name is None:
        raise UnavailableError(
            f"no /usr/bin/python3 of {', '.join(PYTHONS)} with its libpython: apt-get install python3.11-venv libpython3.11"
        )
    triton, done = Triton(folder, folder / "lib" / f"python{name}" / "site-packages"), folder / "installed.json"
    wanted = json.dumps([name, SERVER, *CLIENT])
    if done.is_file() and done.read_text() == wanted:
        return triton
    shutil.rmtree(folder, ignore_errors=True)
    _run(f"/usr/bin/python{name}", "-m", "venv", folder)
    pip = (triton.python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    _run(*pip, *CLIENT)
    _run(*pip, "--no-deps", SERVER)
    home = triton.packages / "pytriton" / "tritonserver"
    shutil.copy(home / "python_backend_stubs" / name / "triton_python_backend_stub", home / "backends" / "python")
    (triton.packages / "vit_runtime.pth").write_text(f"{ROOT / 'runtime'}\n")  # this tree's; the server takes no PYTHONPATH
    libraries = folder / "lib" / "triton"
    libraries.mkdir()
    for pattern, name in (("libb64-*", "libb64.so.0d"), ("libcudart-*", "libcudart.so.12")):  # as perf_analyzer calls them
        (libraries / name).symlink_to(next((triton.packages / "nvidia_pytriton.libs").glob(pattern)))
    done.write_text(wanted)
    return triton


def _is_usable(name: str) -> bool:
    try:
        ctypes.CDLL(f"libpython{name}.so.1.0")
    except OSError:
        return False
    return Path(f"/usr/bin/python{name}").exists()


def _run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnavailableError(f"{' '.join(map(str, command))} failed: {(done.stderr or done.stdout).strip().splitlines()[-1]}")


@dataclass(frozen=True)
class Server:
    """A running server: addresses of its two protocols, its log, and how long it took to be ready."""

    triton: Triton
    http: str
    grpc: str
    log: Path
    ready_seconds: float

    def get(self, path: str) -> Any:
        """A document of the HTTP protocol, such as "v2/models/NAME/stats"."""
        with urllib.request.urlopen(f"http://{self.http}/{path}", timeout=60) as answer:
            return json.loads(answer.read())

    def run(self, *command: object) -> str:
        """Run the clients' Python with these arguments; what it prints. Raises: RuntimeError with what it says, if it fails."""
        return self._run([self.triton.python, *command])

    def perf(self, model: str, images: Sequence[bytes], protocol: str, concurrency: int, requests: int) -> dict[str, float]:
        """perf_analyzer's p50 and p95 in ms, of single images by `concurrency` clients at once.

        Not its throughput: for a number of requests it divides by whole seconds.
        """
        with tempfile.TemporaryDirectory() as scratch:
            data, report = Path(scratch, "data.json"), Path(scratch, "report.csv")
            elements = [len(image).to_bytes(4, "little") + image for image in images]  # as Triton lays out BYTES
            content = [{"image": {"content": {"b64": base64.b64encode(element).decode()}, "shape": [1]}} for element in elements]
            data.write_text(json.dumps({"data": content}))
            address = self.http if protocol == "http" else self.grpc
            options = ["-m", model, "-i", protocol, "-u", address, "--input-data", data, "--shape", "image:1", "-f", report]
            load = ["--concurrency-range", concurrency, "--request-count", requests]
            self._run([self.triton.folder / "bin" / "perf_analyzer", *options, *load])
            (row,) = csv.DictReader(report.read_text().splitlines())
        return {"p50_ms": float(row["p50 latency"]) / 1000, "p95_ms": float(row["p95 latency"]) / 1000}

    def _run(self, command: Sequence[object]) -> str:
        arguments = [str(part) for part in command]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False, env=self.triton.environment())
        if done.returncode:
            raise RuntimeError(f"{arguments[:2]} ended with {done.returncode}\n{(done.stdout + done.stderr)[-2000:]}")
        return done.stdout


@contextlib.contextmanager
def serve(triton: Triton, repository: Path, models: Sequence[str], log: Path) -> Iterator[Server]:
    """A server of these models, stopped at the end of the block. Raises: RuntimeError with its last words if it does not get ready."""
    ports = _free_ports(2)
    options = ["--allow-metrics=false", "--model-control-mode=explicit", *(f"--load-model={model}" for model in models)]
    for protocol, port in zip(("http", "grpc"), ports, strict=True):
        options += [f"--{protocol}-address=127.0.0.1", f"--{protocol}-port={port}"]
    options.append(f"--backend-config=python,shm-region-prefix-name=vit_{os.getpid()}_{ports[0]}")
    with log.open("w") as file:
        start = time.perf_counter()
        process = subprocess.Popen(
            triton.command(repository, *options), stdout=file, stderr=file, env=triton.environment(), preexec_fn=_end_with_parent
        )
        try:
            http, grpc = (f"127.0.0.1:{port}" for port in ports)
            while not _is_ready(http):
                if process.poll() is not None or time.perf_counter() - start > 120:
                    raise RuntimeError(f"the server did not get ready:\n{log.read_text()[-4000:]}")
                time.sleep(0.05)
            yield Server(triton, http, grpc, log, time.perf_counter() - start)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _end_with_parent() -> None:
    """Linux then sends SIGTERM to this process when its parent dies, by whatever death."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/v2/health/ready", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
