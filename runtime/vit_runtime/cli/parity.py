"""vit-parity: does a file still compute what PyTorch computed?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import combinations
from pathlib import Path

import click

from vit_runtime.bench import time_model
from vit_runtime.cli.common import Command, Console, check_place, gpu_arguments, output_options, table, whole_numbers, write_whole
from vit_runtime.errors import ImageError, InputError
from vit_runtime.gpu_options import GPU_PROVIDERS, GpuOptions, check_options
from vit_runtime.images import find_images
from vit_runtime.manifest import Limits, ReducedLimits
from vit_runtime.model import Model, load
from vit_runtime.parity import (
    BATCH_SIZES,
    Pictures,
    Report,
    Result,
    check_original,
    check_record,
    compare,
    extremes,
    junit,
    open_original,
    photographs,
    steady,
    summary,
)
from vit_runtime.parity.baseline import Baseline, Drift, drift, entries_of, read_baseline
from vit_runtime.parity.judging import overridden
from vit_runtime.parity.locate import Location, check_inside, locate
from vit_runtime.parity.page import Portrait, page, portrait
from vit_runtime.parity.reporting import rows
from vit_runtime.threads import processor


@click.command(cls=Command)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--providers",
    default="auto",
    show_default=True,
    help="Which to check, such as cpu,openvino,cuda,tensorrt-rtx; several are compared with one another too.",
)
@click.option("--batch-sizes", default=",".join(map(str, BATCH_SIZES)), show_default=True, help="The batch sizes to check at.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Also hold the files against float64 PyTorch, computed now from this checkpoint; needs the exporter.",
)
@click.option("--images", multiple=True, metavar="PATH", help="Also compare on these images: files, folders, globs; repeatable.")
@click.option(
    "--locate", "asked", is_flag=True, help="Where two that are compared do not agree, name the part of the network where they part."
)
@click.option("--threads", type=int, help="CPU threads; by default the physical cores that this process may use.")
@gpu_arguments
@click.option("--max-floors", metavar="RMS,LARGEST", help="Limits of float32 files in floors, in place of their own, such as 2,8.")
@click.option("--min-cosine", type=click.FloatRange(-1, 1), help="Limit of files in reduced precision, in place of their own.")
@click.option("--max-kl", type=click.FloatRange(0), help="The same for the divergence of probabilities, in nats.")
@click.option(
    "--baseline",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Store what was measured, or where the file is there already compare with it: what got worse fails, what got slower is told.",
)
@click.option(
    "--junit", "junit_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Also write the checks as JUnit's XML."
)
@click.option(
    "--summary", "summary_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Also write a summary in Markdown."
)
@click.option(
    "--html",
    "html_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also write a page to look at, in one file.",
)
@output_options
def main(
    console: Console,
    models: tuple[str, ...],
    providers: str,
    batch_sizes: str,
    checkpoint: Path | None,
    images: tuple[str, ...],
    asked: bool,
    threads: int | None,
    gpu: GpuOptions,
    max_floors: str | None,
    min_cosine: float | None,
    max_kl: float | None,
    baseline: Path | None,
    junit_file: Path | None,
    summary_file: Path | None,
    html_file: Path | None,
) -> None:
    """Check files against what float64 PyTorch computed when they were exported. Needs nothing but the files.

    With --checkpoint they are held against float64 PyTorch computed here, too, which a file without a record can be.

    Several files of one network are also held against the first, several providers against one another: on the golden images, on images
    that no camera makes, and on --images, where each is also held to what it gives alone.

    Exit code 0: every check passed. 1: one failed. 3: an image could not be read.

    Example: vit-parity vit.onnx --providers cpu,cuda
    """
    names, sizes = providers.split(","), whole_numbers(batch_sizes, "--batch-sizes")
    if len(set(names)) < len(names):
        raise InputError(f"got --providers {providers!r}, expected each provider once; one alone is checked against the record")
    if not set(names) & set(GPU_PROVIDERS):
        check_options(providers, gpu)
    check_place("--baseline", baseline)
    check_place("--junit", junit_file)
    check_place("--summary", summary_file)
    check_place("--html", html_file)
    paths = find_images(images) if images else []
    if asked and len(models) * len(names) < 2:
        raise InputError(
            "got --locate with one file and one provider, expected two to compare: give a file that is right, or another provider"
        )
    located, floors, latency = list[tuple[str, Location]](), _two_numbers(max_floors), dict[str, float]()
    portraits = list[Portrait]()
    before = read_baseline(baseline) if baseline is not None and baseline.exists() else None

    def open_one(path: Path, name: str) -> Model:
        console.progress(f"{path}: {name}")
        asked_of = asdict(gpu.reaching(max(sizes))) if name in GPU_PROVIDERS else {}
        model = load(path, name, threads, tell=console.progress, **asked_of)
        if asked:
            check_inside(model)
        if model.manifest.parity is not None or checkpoint is not None:
            model.manifest = replace(model.manifest, parity=overridden(model.manifest, floors, min_cosine, max_kl))
        if html_file is not None and model.manifest.goldens:
            portraits.append(portrait(model))
        if baseline is not None:
            latency[f"{path} on {model.provider}"] = round(time_model(model, batch_size=1, seconds=0, warmup=1).p50_ms, 3)
        return model

    results, broken = _check(open_one, models, names, sizes, checkpoint, paths, located if asked else None)
    for file, write in ((junit_file, junit), (summary_file, summary), (html_file, partial(page, portraits=portraits, located=located))):
        if file is not None:
            write_whole(file, write(results))
    passed, drifted = all(result.passed for result in results), Drift((), ())
    if passed and baseline is not None:
        now = Baseline(tuple(entry for result in results for entry in entries_of(result.path, result.reports)), latency, processor())
        drifted = _store(console, baseline, now) if before is None else drift(before, now)
        for line in drifted.told:
            console.warn(line)
    passed = passed and not drifted.worse
    documents = [
        {"model": result.path, "passed": result.passed, "reports": [report.to_dict() for report in result.reports]} for result in results
    ]
    places = [{"compared": compared, **location.to_dict()} for compared, location in located]
    document = {"passed": passed, "models": documents, **({"located": places} if asked else {})}
    if baseline is not None:
        document["drift"] = {"worse": list(drifted.worse), "told": list(drifted.told)}
    texts = [*(_text(result.path, result.reports) for result in results), *(_place(*each) for each in located)]
    texts += [f"WORSE than in {baseline}: {line}" for line in drifted.worse]
    console.result(document, "\n".join(texts))
    for error in broken:
        click.echo(f"error: {error}", err=True)
    if broken:
        click.echo(f"error: {len(broken)} of {len(paths)} images cannot be read; the others were compared", err=True)
    click.get_current_context().exit(1 if not passed else ImageError.exit_code if broken else 0)


def _store(console: Console, file: Path, now: Baseline) -> Drift:
    write_whole(file, now.to_json())
    console.warn(f"{file} did not exist, so it was stored and nothing was compared with it")
    return Drift((), ())


def _two_numbers(text: str | None) -> tuple[float, float] | None:
    try:
        rms, largest = map(float, text.split(",")) if text is not None else (1.0, 1.0)
    except ValueError as error:
        raise InputError(f"got --max-floors {text!r}, expected two numbers with a comma between them, such as 2,8") from error
    if not (rms > 0 and largest > 0):
        raise InputError(f"got --max-floors {text!r}, expected numbers above zero, such as 2,8")
    return (rms, largest) if text is not None else None


def _check(
    open_one: Callable[[Path, str], Model],
    models: Sequence[str],
    providers: Sequence[str],
    sizes: list[int],
    checkpoint: Path | None,
    paths: list[Path],
    located: list[tuple[str, Location]] | None,
) -> tuple[list[Result], tuple[ImageError, ...]]:
    """Every file against its record on every provider; the providers against one another; the files against the first.

    Where those that are compared part goes into `located`.
    """
    results, broken, firsts, pictures = list[Result](), tuple[ImageError, ...](), list[Model](), list[Pictures]()
    for path in models:
        loaded, reports = [open_one(Path(path), name) for name in providers], list[Report]()
        if paths and not pictures:
            photos, broken = photographs(paths, loaded[0].manifest.preprocessing)
            pictures = [photos]
        if checkpoint is None or loaded[0].manifest.goldens:
            reports += [check_record(model.run, model.manifest, model.provider, sizes) for model in loaded]
        if checkpoint is None:
            for model in loaded:  # of what no record says what is right, each image is at least held to what it gives alone
                unknown = [] if model.manifest.golden_extremes is not None else [extremes(model.manifest)]
                reports += [steady(model, each, max(sizes)) for each in (*unknown, *pictures)]
        else:  # which says what is right for every image, alone and in a batch
            original = open_original(checkpoint, loaded[0].manifest)
            reports += [check_original(model, original, sizes, [extremes(model.manifest), *pictures]) for model in loaded]
        pairs = [(a, b, a.provider) for a, b in combinations(loaded, 2)]
        pairs += [(a, b, str(a.path)) for a, b in zip(firsts, loaded, strict=False)]
        for a, b, name in pairs:
            reports.append(compare(a, b, (name, b.provider), sizes, [extremes(a.manifest), *pictures]))
            if located is not None and not reports[-1].passed:
                located.append((f"{path} on {reports[-1].checks[0].provider}", locate(a, b)))
        firsts = firsts or loaded
        results.append(Result(path, tuple(reports)))
    return results, broken


def _text(path: str, reports: Sequence[Report]) -> str:
    lines, floors = [], True
    for report in reports:
        verdict = "passed" if report.passed else "FAILED"
        floors = isinstance(report.limits, Limits)
        limits = _limits(report.limits)
        lines.append(f"{path} on {report.checks[0].provider}: {verdict} ({limits})")
        lines.append(table(rows(report)))
    if floors:
        lines.append("A floor is PyTorch's own float32 error against float64; errors are relative to the output's root mean square.")
    else:
        lines.append("Of reduced precision: an image may be twice as far from float64 PyTorch as the worst was when the file was made.")
    return "\n".join(lines)


def _place(compared: str, location: Location) -> str:
    """Where two part, and how their difference grows along the network."""
    if location.parted is None:
        return f"{compared}: no part of the network differs by more than float32 rounds"
    first = f", first seen at {location.first.value} ({location.first.op})" if location.first else ""
    lines = [["", "difference", ""]]
    for tap in location.along:
        mark = "<- here they part" if tap is location.parted else ""
        lines.append([tap.value, f"{tap.error:.1e}", mark])
    return f"{compared}: they part in {location.place}{first}\n{table(lines)}"


def _limits(limits: Limits | ReducedLimits) -> str:
    if isinstance(limits, Limits):
        return f"limits: {limits.rms:g} and {limits.max:g} floors"
    each = list[str]()
    for name, near in limits.items():
        mean = f", mean {near.cosine_mean:g}" if near.cosine_mean is not None else ""
        each.append(f"{name} {near.cosine:g}{mean}{f' and KL {near.kl:g}' if near.kl is not None else ''}")
    return f"least cosine: {'; '.join(each)}"
