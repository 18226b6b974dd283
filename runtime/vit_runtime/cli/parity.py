"""vit-parity: does a file still compute what PyTorch computed?"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import click

from vit_runtime.cli.common import Command, Console, output_options, table, whole_numbers
from vit_runtime.errors import InputError
from vit_runtime.model import Model, load
from vit_runtime.parity import BATCH_SIZES, Report, check_record, compare


@click.command(cls=Command)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--providers",
    default="auto",
    show_default=True,
    help="Which to check, such as cpu,cuda,tensorrt; several are compared with one another too.",
)
@click.option("--batch-sizes", default=",".join(map(str, BATCH_SIZES)), show_default=True, help="The batch sizes to check at.")
@click.option("--threads", type=int, help="CPU threads; by default the physical cores that this process may use.")
@output_options
def main(console: Console, models: tuple[str, ...], providers: str, batch_sizes: str, threads: int | None) -> None:
    """Check files against what float64 PyTorch computed when they were exported. Needs nothing but the files.

    Exit code 0: every check passed. 1: one failed.

    Example: vit-parity vit.onnx --providers cpu,cuda
    """
    names, sizes = providers.split(","), whole_numbers(batch_sizes, "--batch-sizes")
    if len(set(names)) < len(names):
        raise InputError(f"got --providers {providers!r}, expected each provider once; one alone is checked against the record")
    results = [(path, _check(console, Path(path), names, sizes, threads)) for path in models]
    passed = all(report.passed for _, reports in results for report in reports)
    documents = [
        {"model": path, "passed": all(r.passed for r in reports), "reports": [r.to_dict() for r in reports]} for path, reports in results
    ]
    console.result({"passed": passed, "models": documents}, "\n".join(_text(path, reports) for path, reports in results))
    click.get_current_context().exit(0 if passed else 1)


def _check(console: Console, path: Path, names: list[str], sizes: list[int], threads: int | None) -> list[Report]:
    loaded = list[Model]()
    for name in names:
        console.progress(f"{path}: {name}")
        loaded.append(load(path, name, threads))
    reports = [check_record(model.run, model.manifest, model.provider, sizes) for model in loaded]
    for a, b in combinations(loaded, 2):
        reports.append(compare(a.run, b.run, a.manifest, (a.provider, b.provider), sizes))
    return reports


def _text(path: str, reports: list[Report]) -> str:
    lines = []
    for report in reports:
        rows = [["output", "batch", "size", "rms error", "in floors", "largest", "in floors", ""]]
        for c in report.checks:
            numbers = [f"{c.error.rms:.2e}", f"{c.rms_floors:.2f}", f"{c.error.max:.2e}", f"{c.max_floors:.2f}"]
            rows.append([c.output, str(c.batch_size), f"{c.image_size[0]}x{c.image_size[1]}", *numbers, "" if c.passed else "FAILED"])
        verdict = "passed" if report.passed else "FAILED"
        limits = f"limits: {report.limits.rms:g} and {report.limits.max:g} floors"
        lines.append(f"{path} on {report.checks[0].provider}: {verdict} ({limits})")
        lines.append(table(rows))
    lines.append("A floor is PyTorch's own float32 error against float64; errors are relative to the output's root mean square.")
    return "\n".join(lines)
