"""What every command shares: errors as one line and an exit code, --json, -q, progress for people."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from vit_runtime.errors import InputError, MachineError, VitError, no_folder
from vit_runtime.gpu_options import GpuOptions

F = TypeVar("F", bound=Callable[..., Any])
INTERRUPTED = 130  # what a shell reports for Ctrl-C


@dataclass(frozen=True)
class Console:
    """Where a command's words go: results to stdout, progress and warnings to stderr."""

    as_json: bool
    quiet: bool

    def result(self, document: dict[str, Any], text: str) -> None:
        """The command's answer: one JSON document, or text for people unless they want quiet."""
        if self.as_json:
            click.echo(json.dumps(document, indent=2, allow_nan=False))
        elif not self.quiet:
            click.echo(text)

    def progress(self, text: str) -> None:
        """A line while the command works, where somebody watches."""
        if not self.quiet and sys.stderr.isatty():
            click.echo(text, err=True)

    def warn(self, text: str) -> None:
        """A line that must not be missed."""
        if not self.quiet:
            click.echo(f"warning: {text}", err=True)


class Command(click.Command):
    """A command whose foreseeable errors are one line on stderr (with --json also a document on stdout) and an exit code."""

    def make_context(self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any) -> click.Context:
        """Parse. What click itself finds wrong is told as click does, with --json also as a document."""
        as_json = "--json" in args
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            if as_json:
                click.echo(_error_document(error.format_message(), error.exit_code))
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run it. A VitError gives its own exit code, those of `foreign` theirs."""
        warnings.filterwarnings("ignore", category=Warning, module="PIL")
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what is half written is cleaned up
        try:
            return super().invoke(ctx)
        except VitError as error:
            _fail(ctx, error, error.exit_code)
        except KeyboardInterrupt as error:
            _fail(ctx, "interrupted", INTERRUPTED, error)
        except Exception as error:
            for kind, code in self.foreign():
                if isinstance(error, kind):
                    _fail(ctx, error, code)
            raise

    def foreign(self) -> tuple[tuple[type[Exception], int], ...]:
        """Other packages' errors that are foreseeable here, with their exit codes."""
        return ()


def output_options(function: F) -> F:
    """Add --json and -q, handed over as `console`."""

    @functools.wraps(function)
    def wrapped(*, as_json: bool, quiet: bool, **options: Any) -> Any:
        return function(console=Console(as_json, quiet), **options)

    quietly = click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors, and with --json the document.")
    as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout and nothing else there.")
    return cast(F, as_json(quietly(wrapped)))


def gpu_arguments(function: F) -> F:
    """Add --device-id, --max-batch and --cuda-graph, handed over as `gpu`."""

    @functools.wraps(function)
    def wrapped(*, device_id: int | None, max_batch: int | None, cuda_graph: bool, **options: Any) -> Any:
        return function(gpu=GpuOptions(device_id, max_batch, cuda_graph), **options)

    device = click.option("--device-id", type=click.IntRange(0), help="Which GPU; by default 0.")
    largest = click.option(
        "--max-batch",
        type=click.IntRange(1),
        help="The largest batch that a GPU's model takes; by default 8, or the largest asked for. TensorRT's engine is built for it.",
    )
    graph = click.option("--cuda-graph", is_flag=True, help="Launch the network on the GPU as a whole, as a CUDA graph.")
    return cast(F, device(largest(graph(wrapped))))


cache_option = click.option(
    "--cache-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where OpenVINO and TensorRT keep what they compiled, in place of what VIT_DEPLOY_CACHE names.",
)


def shown(path: object) -> str:
    """A path as it can be printed: bytes in its name that are no text become question marks in a box."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def check_place(option: str, file: Path | None) -> None:
    """Before the work that it is to hold the result of. Raises: InputError for a file whose folder does not exist."""
    if file is not None and not file.resolve().parent.is_dir():
        raise InputError(f"{option} {file}: {no_folder(file.parent)}")


@contextlib.contextmanager
def writing(file: Path) -> Iterator[None]:
    """Around writing a result. Raises: MachineError where that fails."""
    try:
        yield
    except OSError as error:
        raise MachineError(f"{file} cannot be written ({error.strerror or error}); choose another file or make room") from error


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a result that appears whole or not at all; pipes and devices take it as it comes. Raises: MachineError where that fails."""
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    with writing(file):
        if file.exists() and not file.is_file():
            file.write_bytes(data)
            return
        part = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            part.write_bytes(data)
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)


def whole_numbers(text: str, what: str, once: bool = True) -> list[int]:
    """ "1,8,32" as numbers of at least 1, each `once`. Raises: InputError."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"got {what} {text!r}, expected whole numbers with commas between them, such as 1,8,32") from error
    if min(numbers) < 1 or (once and len(set(numbers)) < len(numbers)):
        raise InputError(f"got {what} {text!r}, expected numbers of at least 1{', each once' if once else ''}")
    return numbers


def table(rows: list[list[str]], indent: str = "  ") -> str:
    """Rows of text in columns, the first column to the left and the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(indent + "  ".join(cells).rstrip())
    return "\n".join(lines)


def _error_document(message: str, code: int) -> str:
    return json.dumps({"error": message, "exit_code": code}, indent=2)


def _fail(ctx: click.Context, error: Exception | str, code: int, cause: BaseException | None = None) -> None:
    if ctx.params.get("as_json"):
        click.echo(_error_document(str(error), code))
    click.echo(f"error: {error}", err=True)
    ctx.exit(code)
