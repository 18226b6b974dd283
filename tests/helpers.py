"""What several test files do: change a file's graph or manifest, run a command in this process, and fork."""

import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

from vit_runtime.cli import bench, info, parity, predict, trt
from vit_runtime.errors import SessionError
from vit_runtime.manifest import KEY

COMMANDS: dict[str, click.Command] = {
    "vit-predict": predict.main,
    "vit-parity": parity.main,
    "vit-bench": bench.main,
    "vit-info": info.main,
    "vit-trt": trt.main,
}
MODULES = {name: f"vit_runtime.cli.{name.removeprefix('vit-')}" for name in COMMANDS}
QUICK = ("--seconds", "0", "--warmup", "0")


def run(command: str, *arguments: str | Path) -> Result:
    """A command of the runtime in this process. An exception that is not an exit is a traceback to users, so it ends the test."""
    result = CliRunner().invoke(COMMANDS[command], [str(argument) for argument in arguments], prog_name=command)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run_apart(command: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, its streams no terminals."""
    code = f"from {MODULES[command]} import main; main(prog_name={command!r})"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        capture_output=True, encoding="utf-8", timeout=120, env={**os.environ, **environment},
    )  # fmt: skip


def failed(result: Result | subprocess.CompletedProcess[str], code: int) -> str:
    """The message of a failure: one line on stderr and nothing on stdout."""
    exit_code = result.exit_code if isinstance(result, Result) else result.returncode
    assert exit_code == code, result.stderr
    assert result.stdout == ""
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr)
    return result.stderr.removeprefix("error: ").strip()


def assert_mentions(message: str, *facts: object) -> None:
    """Each fact (an option, a name, a value, a command to run) is in the message, and not as a part of a longer word or number."""
    for fact in map(str, facts):
        assert re.search(rf"(?<![\w.]){re.escape(fact)}(?![\w])", message), f"expected {fact!r} in: {message}"


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    """The message of an exception."""
    assert "\n" not in str(error.value)
    return str(error.value)


def document_of(result: Result, code: int = 0) -> Any:
    """The one JSON document on stdout."""
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def inputs(count: int, seed: int = 0) -> np.ndarray:
    """What a tiny network takes that has its images' normalisation in the graph: 0 to 255."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32)).astype(np.float32)


def copied(source: Path, folder: Path, edit: Callable[[onnx.ModelProto], object]) -> Path:
    """A copy of a file, changed."""
    proto = onnx.load(source)
    edit(proto)
    path = folder / "copied.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def with_manifest(source: Path, folder: Path, change: Callable[[Any], object]) -> Path:
    """A copy of a file whose manifest was changed."""

    def edit(proto: onnx.ModelProto) -> None:
        entry = next(entry for entry in proto.metadata_props if entry.key == KEY)
        document = json.loads(entry.value)
        change(document)
        entry.value = json.dumps(document)

    return copied(source, folder, edit)


def assert_refused_after_a_fork(use: Callable[[], object]) -> None:
    """A child process that does this gets a SessionError that names the remedy, at once; here it still works."""
    use()  # threads are at work
    with warnings.catch_warnings():
        if sys.version_info >= (3, 12):
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking a process with threads, which is the point here
        child = os.fork()
    if child == 0:
        code = 1
        try:
            use()
        except SessionError as error:
            code = 42 if "load in the child" in str(error) else 2
        except BaseException:  # noqa: BLE001 - nothing may leave the child but its exit code
            code = 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    use()


def with_array(source: Path, folder: Path, name: str, change: Callable[[np.ndarray], object]) -> Path:
    """A copy of a file with one of its stored arrays changed in place and its manifest as it was."""

    def edit(proto: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == name)
        values = numpy_helper.to_array(tensor).copy()
        change(values)
        tensor.CopyFrom(numpy_helper.from_array(values, name))

    return copied(source, folder, edit)
