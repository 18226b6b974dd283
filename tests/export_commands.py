"""vit-export in this process: the whole command, or what it would export after it has read its options."""

import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
from click.testing import CliRunner, Result

import vit_exporter.pipeline
from vit_exporter import ExportSpec, Source
from vit_exporter.cli import main


@dataclass(frozen=True)
class Parsed:
    """What the options of a command mean: the network and how it is exported; and what the command printed to stderr before."""

    source: Source
    spec: ExportSpec
    stderr: str


def run_export(*arguments: object) -> Result:
    """The whole command. An exception that is not an exit is a traceback to users, so it ends the test."""
    before = signal.getsignal(signal.SIGTERM)  # the command handles SIGTERM in its own way, and the tests in theirs
    try:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="vit-export")
    finally:
        signal.signal(signal.SIGTERM, before)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def parse_export(*arguments: object, out: Path = Path("vit.onnx")) -> Parsed:
    """What the command would export. It stops before it traces the network, so nothing is written."""
    parsed: list[tuple[Source, ExportSpec]] = []

    def stop(make_source: Any, spec: ExportSpec, tell: object) -> NoReturn:
        parsed.append((make_source(), spec))
        raise SystemExit(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vit_exporter.pipeline, "export", stop)
        result = run_export("--out", out, *arguments)
    assert result.exit_code == 0, result.stderr
    ((source, spec),) = parsed
    return Parsed(source, spec, result.stderr)


def refused(result: Result | subprocess.CompletedProcess[str], exit_code: int) -> str:
    """The error, which is one line and all that is printed, except for the warning that the weights are random."""
    code = result.exit_code if isinstance(result, Result) else result.returncode
    assert code == exit_code, result.stderr
    assert result.stdout == ""
    *warnings, line = result.stderr.splitlines()
    assert all(warning.startswith("warning: ") for warning in warnings), result.stderr
    assert line.startswith("error: ")
    return line
