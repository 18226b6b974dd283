"""vit-bench: how fast a file runs here."""

from __future__ import annotations

import math
from pathlib import Path

import click

from vit_runtime.bench import benchmark
from vit_runtime.cli.common import Command, Console, cache_option, gpu_arguments, output_options, table, whole_numbers
from vit_runtime.errors import InputError
from vit_runtime.gpu_options import GpuOptions
from vit_runtime.memory import megabytes


@click.command(cls=Command)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--provider",
    default="auto",
    show_default=True,
    help="cpu, openvino, cuda, tensorrt, tensorrt-rtx, or auto: the best that works here.",
)
@click.option("--batch-sizes", default="1,8", show_default=True, help="The batch sizes to time.")
@click.option("--threads", type=int, help="CPU threads; by default the physical cores that this process may use.")
@cache_option
@gpu_arguments
@click.option("--seconds", default=3.0, show_default=True, type=click.FloatRange(0), help="How long to time each batch size, at least.")
@click.option("--warmup", default=3, show_default=True, type=click.IntRange(0), help="Runs before the timing.")
@click.option(
    "--max-p50-ms", type=click.FloatRange(0, min_open=True), help="Fail with exit code 1 if the median at the first batch size is above."
)
@output_options
def main(
    console: Console,
    model: Path,
    provider: str,
    batch_sizes: str,
    threads: int | None,
    cache_dir: Path | None,
    gpu: GpuOptions,
    seconds: float,
    warmup: int,
    max_p50_ms: float | None,
) -> None:
    """Time an exported file: latency percentiles and throughput by batch size, time to load, peak memory.

    Example: vit-bench vit.onnx --batch-sizes 1,8,32
    """
    sizes = whole_numbers(batch_sizes, "--batch-sizes")
    for option, value in (("--seconds", seconds), ("--max-p50-ms", max_p50_ms)):
        if value is not None and not math.isfinite(value):  # nothing is slower than NaN
            raise InputError(f"got {option} {value}, expected a finite number")
    console.progress(f"about {seconds * len(sizes):.0f} s ...")
    result = benchmark(model, provider, threads, sizes, seconds, warmup, cache_dir, gpu, console.progress)
    slow = max_p50_ms is not None and result.timings[0].p50_ms > max_p50_ms
    rows = [["batch", "runs", "p50 ms", "p95 ms", "p99 ms", "images/s"]]
    rows += [
        [str(t.batch_size), str(t.runs), f"{t.p50_ms:.2f}", f"{t.p95_ms:.2f}", f"{t.p99_ms:.2f}", f"{t.images_per_second:.1f}"]
        for t in result.timings
    ]
    text = f"{model} on {result.provider}, {result.threads} threads\n{table(rows)}\n"
    text += f"loaded in {result.load_seconds:.2f} s, peak memory {megabytes(result.peak_memory)}"
    if slow:
        text += f"\nFAILED: the median is {result.timings[0].p50_ms:.2f} ms, the bar is {max_p50_ms:g} ms"
    console.result({**result.to_dict(), "passed": not slow}, text)
    click.get_current_context().exit(1 if slow else 0)
