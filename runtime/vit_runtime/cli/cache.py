"""vit-cache: the engines and compiled models that are kept."""

from __future__ import annotations

import math
import time
from pathlib import Path

import click

from vit_runtime.cli.common import Command, Console, cache_option, output_options, table
from vit_runtime.engine_cache import MAX_BYTES, EngineCache, Entry, default_folder, named_folder
from vit_runtime.errors import InputError
from vit_runtime.memory import megabytes
from vit_runtime.model import load


@click.group()
def main() -> None:
    """See, build ahead and remove what TensorRT and OpenVINO compiled, so that loading a file is fast.

    It lies in --cache-dir, or the folder that the environment variable VIT_DEPLOY_CACHE names, or the system's folder for caches.

    Example: vit-cache warm vit.onnx --max-batch 32
    """


@main.command("list", cls=Command)
@cache_option
@output_options
def list_(console: Console, cache_dir: Path | None) -> None:
    """What is kept, the most recently used first.

    Example: vit-cache list --json
    """
    cache = _cache(cache_dir)
    entries = cache.entries()
    console.result(_document(cache, entries), _text(cache, entries))


@main.command(cls=Command)
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="MODEL...")
@click.option("--provider", default="tensorrt", show_default=True, help="tensorrt or openvino.")
@click.option("--device-id", type=click.IntRange(0), help="Which GPU; by default 0.")
@click.option("--max-batch", type=click.IntRange(1), help="The largest batch, as the model will be loaded with; by default 8.")
@cache_option
@output_options
def warm(
    console: Console, models: tuple[Path, ...], provider: str, device_id: int | None, max_batch: int | None, cache_dir: Path | None
) -> None:
    """Compile files now for this machine, so that programs find it done. The options must be those that they load the file with.

    Example: vit-cache warm vit.onnx --max-batch 32
    """
    if provider not in ("tensorrt", "openvino"):
        raise InputError(f"got provider {provider!r}, expected tensorrt or openvino, which keep what they compile")
    if provider == "openvino" and named_folder(cache_dir) is None:
        raise InputError("got no folder for what OpenVINO compiles, which it keeps only where one is named; use --cache-dir")
    cache, done = _cache(cache_dir), []
    for path in models:
        start = time.perf_counter()
        load(path, provider, None, cache_dir, device_id=device_id, max_batch=max_batch, tell=console.progress)
        done.append({"model": str(path), "provider": provider, "seconds": round(time.perf_counter() - start, 3)})
    lines = [f"{each['model']}: ready for {provider} in {each['seconds']:.1f} s" for each in done]
    console.result({"folder": str(cache.folder), "warmed": done}, "\n".join([*lines, f"kept in {cache.folder}"]))


@main.command(cls=Command)
@click.option("--max-gb", default=MAX_BYTES / 1e9, show_default=True, type=click.FloatRange(0), help="What may stay.")
@cache_option
@output_options
def prune(console: Console, max_gb: float, cache_dir: Path | None) -> None:
    """Remove what is damaged or left behind, then the least recently used until the rest fits. What is in use right now stays.

    Example: vit-cache prune --max-gb 2
    """
    if not math.isfinite(max_gb):
        raise InputError(f"got --max-gb {max_gb}, expected a finite number")
    cache = _cache(cache_dir)
    removed = cache.prune(round(max_gb * 1e9))
    left = cache.entries()
    document = {**_document(cache, left), "removed": [entry.to_dict() for entry in removed]}
    freed = f"removed {len(removed)} of {len(removed) + len(left)}, {megabytes(sum(entry.size for entry in removed))}"
    console.result(document, f"{freed}; {megabytes(sum(entry.size for entry in left))} stay in {cache.folder}")


def _cache(cache_dir: Path | None) -> EngineCache:
    return EngineCache(named_folder(cache_dir) or default_folder())


def _document(cache: EngineCache, entries: list[Entry]) -> dict[str, object]:
    total = sum(entry.size for entry in entries)
    return {"folder": str(cache.folder), "bytes": total, "entries": [entry.to_dict() for entry in entries]}


def _text(cache: EngineCache, entries: list[Entry]) -> str:
    if not entries:
        return f"nothing is kept in {cache.folder}"
    rows = [["what", "model", "for", "size", "last used", "state"]]
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        rows.append([entry.kind, entry.model, entry.key.get("GPU", ""), megabytes(entry.size), used, entry.state])
    return f"{cache.folder}, {megabytes(sum(entry.size for entry in entries))}\n{table(rows)}"
