"""How fast a file runs here: latency by batch size, throughput, time to load, memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vit_runtime.engine_cache import silent
from vit_runtime.golden import golden_images
from vit_runtime.gpu_options import GPU_PROVIDERS, NOTHING_ASKED, GpuOptions
from vit_runtime.memory import peak_memory
from vit_runtime.model import Model, load
from vit_runtime.preprocess import normalize


@dataclass(frozen=True)
class Timing:
    """One batch size: latencies of a batch in milliseconds, and images a second at the median."""

    batch_size: int
    runs: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    images_per_second: float


@dataclass(frozen=True)
class Benchmark:
    """A file's timings, the seconds that loading took, the process's peak memory in bytes, and what ran it."""

    model: str
    provider: str
    threads: int
    load_seconds: float
    peak_memory: int | None
    timings: tuple[Timing, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def benchmark(
    path: Path,
    provider: str,
    threads: int | None,
    batch_sizes: Sequence[int],
    seconds: float,
    warmup: int,
    cache_dir: Path | None = None,
    gpu: GpuOptions = NOTHING_ASKED,
    tell: Callable[[str], None] = silent,
) -> Benchmark:
    """Load the file and run it on golden images, at least 5 times and for at least `seconds` a batch size, after `warmup` runs.

    The network alone is timed: decoding and resizing images is not in it. Raises: the errors of `load` and `Model.run`.
    """
    start = time.perf_counter()
    if provider in GPU_PROVIDERS:
        gpu = gpu.reaching(max(batch_sizes))
    model = load(path, provider, threads, cache_dir, tell=tell, **asdict(gpu))
    load_seconds = time.perf_counter() - start
    timings = tuple(time_model(model, batch_size, seconds, warmup) for batch_size in batch_sizes)
    return Benchmark(str(path), model.provider, model.threads, load_seconds, peak_memory(), timings)


def time_model(model: Model, batch_size: int, seconds: float, warmup: int) -> Timing:
    """Run a loaded file on a golden image, at least 5 times and for at least `seconds`, after `warmup` runs."""
    image = golden_images(0, 1, *model.manifest.image_size, model.manifest.preprocessing.channels)
    batch = np.repeat(normalize(image, model.manifest.preprocessing), batch_size, axis=0)
    for _ in range(warmup):
        model.run(batch)
    latencies, begun = list[float](), time.perf_counter()
    while len(latencies) < 5 or time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        model.run(batch)
        latencies.append(1e3 * (time.perf_counter() - start))
    p50, p95, p99 = (float(value) for value in np.percentile(latencies, (50, 95, 99)))
    return Timing(batch_size, len(latencies), p50, p95, p99, 1e3 * batch_size / p50)
