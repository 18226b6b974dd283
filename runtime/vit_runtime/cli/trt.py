"""vit-trt: build a TensorRT engine, or say why there can be none."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections import Counter
from pathlib import Path

import click

from vit_runtime.cli.common import Command, Console, check_place, output_options, whole_numbers
from vit_runtime.errors import InputError, ModelError
from vit_runtime.memory import megabytes
from vit_runtime.onnx_file import read_graph
from vit_runtime.tensorrt import Build, Profile, RefusedError, build
from vit_runtime.tensorrt.compilers import TENSORRT
from vit_runtime.tensorrt.engine import DEFAULT_BATCH, TIMEOUT_S
from vit_runtime.tensorrt.rules import node_name

SHOWN, WIDTH = 12, 100  # kinds of fused layers in the text, and how long each may be

__all__ = ["main"]


@click.command(cls=Command)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--batch", help=f"MIN,OPT,MAX: batch sizes, OPT the one it is best at. [default: {','.join(map(str, DEFAULT_BATCH))}]")
@click.option("--sm", type=int, help="Build with tensorrt-rtx for this GPU alone: 75, 80, 86, 89, 120 or 121.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the engine here; NAME.onnx: inside of a file that `load` takes.")
@click.option("--force", is_flag=True, help="Replace --out if it exists.")
@click.option("--workspace", type=click.IntRange(min=1), help="At most so many MiB of GPU memory beside the weights for a layer.")
@click.option("--optimization-level", type=click.IntRange(0, 5), help="How long it looks for fast kernels: 0 least, 5 most. [default: 3]")
@click.option("--timing-cache", type=click.Path(path_type=Path), help="TensorRT reads and updates its timings here, for faster builds.")
@click.option("--timeout", type=click.FloatRange(min=1), default=TIMEOUT_S, show_default=True, help="Give up after so many seconds.")
@output_options
def main(
    console: Console,
    model: Path,
    batch: str | None,
    sm: int | None,
    out: Path | None,
    force: bool,
    workspace: int | None,
    optimization_level: int | None,
    timing_cache: Path | None,
    timeout: float,
) -> None:
    """Build a TensorRT engine of MODEL with the compiler that is installed, and say which layers were fused.

    TensorRT builds for the GPU that is here. tensorrt-rtx needs none: it builds for the GPU that --sm names, or for all from Ampere on.
    The precision is the file's. What TensorRT cannot take is told before the compiler is asked, as `vit-info --check tensorrt` does.

    An --out that ends in .onnx gets the engine inside of a file with the model's own manifest: it loads in seconds, on such a GPU only.

    Exit codes: 2 for a profile that does not fit the file, 3 for a file that TensorRT cannot take, 4 without a compiler or its GPU.

    Example: vit-trt vit.onnx --batch 1,8,32 --sm 89 --out vit.engine
    """
    profile = Profile(*_three(batch)) if batch is not None else None
    _check_out(out, model, force)
    check_place("--timing-cache", timing_cache)
    line = _Line(console)
    try:
        built = build(
            model,
            out=out,
            profile=profile,
            sm=sm,
            workspace=workspace,
            optimization_level=optimization_level,
            timing_cache=timing_cache,
            timeout=timeout,
            tell=line.show,
        )
    except RefusedError as error:
        line.clear()
        _refuse(error, console.as_json)
    finally:
        line.clear()
    document = {"model": str(model), "out": str(out) if out is not None else None, **built.to_dict()}
    console.result(document, _text(model, out, built))


class _Line:
    """The one line that shows how far the build is, where somebody watches."""

    def __init__(self, console: Console) -> None:
        self.wanted = not console.quiet and sys.stderr.isatty()
        self.shown = False

    def show(self, phase: str, step: int, steps: int) -> None:
        if self.wanted:
            click.echo(f"\r\x1b[Kbuilding: {phase} {step}/{steps}", nl=False, err=True)
            self.shown = True

    def clear(self) -> None:
        if self.shown:
            click.echo("\r\x1b[K", nl=False, err=True)
            self.shown = False


def _three(text: str) -> list[int]:
    numbers = whole_numbers(text, "--batch", once=False)
    if len(numbers) != 3:
        raise InputError(f"got --batch {text!r}, expected three numbers MIN,OPT,MAX, such as 1,8,32")
    return numbers


def _check_out(out: Path | None, model: Path, force: bool) -> None:
    """Raises: InputError for a place that the engine cannot be written to."""
    if out is None:
        return
    check_place("--out", out)
    if out.is_dir():
        raise InputError(f"--out {out} is a folder, expected a file name; try --out {out / model.with_suffix('.engine').name}")
    if out.exists() and model.exists() and os.path.samefile(out, model):
        raise InputError(f"--out {out} is the model itself, expected another file; try --out {model.with_suffix('.engine')}")
    if out.exists() and not out.is_file():
        raise InputError(f"--out {out} is a pipe or device, expected a file name")
    if out.exists() and not force:
        raise InputError(f"{out} exists; --force replaces it")


def _refuse(error: RefusedError, as_json: bool) -> None:
    """A line for each problem on stderr, and with --json the document."""
    if as_json:
        problems = [problem.to_dict() for problem in error.problems]
        click.echo(json.dumps({"error": str(error), "exit_code": ModelError.exit_code, "problems": problems}, indent=2))
    for problem in error.problems:
        click.echo(f"error: {error.path}: {problem}", err=True)
    sys.exit(ModelError.exit_code)


def _text(model: Path, out: Path | None, built: Build) -> str:
    everywhere = "the GPU that is here" if built.compiler == TENSORRT.name else "every RTX GPU from Ampere on"
    machine = f"SM {built.sm}" if built.sm is not None else everywhere
    batch = f"batch {built.profile.min} to {built.profile.max}, best at {built.profile.opt}" if built.profile else "its fixed batch"
    rows = [
        ["engine", str(out) if out is not None else "not kept; --out writes it"],
        ["size", f"{built.size / 1e6:.1f} MB"],
        ["for", f"{machine}, {batch}, {built.precision or 'the precision of the file'}"],
        ["built", f"in {built.seconds:.1f} s with {built.compiler} {built.version}, peak memory {megabytes(built.peak_memory)}"],
    ]
    if built.layers:
        rows.append(["layers", f"{built.nodes} nodes became {len(built.layers)} layers, {len(built.fused)} of them hold several nodes:"])
    lines = [f"{name:<8} {text}" for name, text in rows]
    return "\n".join([*lines, *_fusions(model, built), *(f"warning  {text}" for text in built.warnings)])


def _fusions(model: Path, built: Build) -> list[str]:
    """What was fused, the commonest first: how often, which ops, the first node of the first of them."""
    ops = {node_name(node): node.op for node in read_graph(model).nodes}
    patterns = [" + ".join(ops.get(name, name) for name in layer.nodes) for layer in built.fused]
    first = {pattern: layer.nodes[0] for pattern, layer in zip(reversed(patterns), reversed(built.fused), strict=True)}
    kinds = Counter(patterns)
    lines = [
        f"  {count:>5} x {textwrap.shorten(pattern, WIDTH, placeholder=' ...')} ({first[pattern]})"
        for pattern, count in kinds.most_common(SHOWN)
    ]
    return [*lines, *([f"          and {len(kinds) - SHOWN} kinds more; --json has them all"] if len(kinds) > SHOWN else [])]


if __name__ == "__main__":
    main()
