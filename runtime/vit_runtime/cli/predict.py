"""vit-predict: classify or embed images."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from vit_runtime.cli.common import Command, Console, cache_option, check_place, gpu_arguments, output_options, shown, writing
from vit_runtime.errors import ImageError, InputError
from vit_runtime.gpu_options import GPU_PROVIDERS, GpuOptions
from vit_runtime.images import find_images
from vit_runtime.model import BATCH_SIZE, Model, Prediction, load, no_classes, no_features
from vit_runtime.preprocess import preprocess


@click.command(cls=Command)
@click.argument("model")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--provider",
    default="auto",
    show_default=True,
    help="cpu, openvino, cuda, tensorrt, tensorrt-rtx, or auto: the best that works here.",
)
@click.option("--topk", default=5, show_default=True, type=click.IntRange(1), help="How many classes to name for each image.")
@click.option("--batch-size", default=BATCH_SIZE, show_default=True, type=click.IntRange(1), help="Images that go through together.")
@click.option("--threads", type=int, help="CPU threads; by default the physical cores that this process may use.")
@cache_option
@gpu_arguments
@click.option(
    "--embeddings",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write what `embed` gives for each image to this .npz: paths, embeddings.",
)
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the predictions to this .csv: path, rank, label, probability.",
)
@output_options
def main(
    console: Console, model: str, images: tuple[str, ...], provider: str, topk: int, batch_size: int, threads: int | None,
    cache_dir: Path | None, gpu: GpuOptions, embeddings: Path | None, csv_file: Path | None,
) -> None:  # fmt: skip
    """Classify images (files, folders, globs) with an exported file, prepared as its manifest says.

    A file without classes (CLIP's, or one without a head) is for --embeddings.

    An image that cannot be read is named, the rest go on, and the exit code is 3.

    Example: vit-predict vit.onnx photo.jpg holiday/ --topk 3
    """
    check_place("--embeddings", embeddings)
    check_place("--csv", csv_file)
    paths = find_images(images)
    if provider in GPU_PROVIDERS:
        gpu = gpu.reaching(batch_size)
    loaded = load(model, provider, threads, cache_dir, tell=console.progress, **asdict(gpu))
    scores, features = loaded.manifest.class_scores, loaded.manifest.features
    if embeddings is not None and features is None:
        raise InputError(f"{model} {no_features(loaded.manifest, 'write')}")
    if scores is None and embeddings is None:
        raise InputError(f"{model} {no_classes(loaded.manifest, '--embeddings out.npz writes its embeddings')}")
    if scores is None and csv_file is not None:
        raise InputError(f"{model} {no_classes(loaded.manifest, 'leave --csv out')}")
    console.progress(f"{len(paths)} images on {loaded.provider}, {loaded.threads} threads")
    start, rows, vectors = time.perf_counter(), list[dict[str, Any]](), list[npt.NDArray[np.float32]]()
    for path, outputs in _outputs(loaded, paths, batch_size):
        if isinstance(outputs, ImageError):
            click.echo(f"error: {outputs}", err=True)
            rows.append({"image": str(path), "error": str(outputs)})
            continue
        predictions = []
        if scores is not None:
            top = Prediction(outputs[scores], loaded.manifest.labels).top(topk)
            predictions = [{"index": label.index, "label": label.name, "probability": label.probability} for label in top]
        if embeddings is not None and features is not None:
            vectors.append(outputs[features])
        rows.append({"image": str(path), "predictions": predictions})
        if not console.as_json and not console.quiet and predictions:
            click.echo(f"{shown(path)}: " + ", ".join(f"{p['label']} {p['probability']:.1%}" for p in predictions))
    if csv_file is not None:
        _write_csv(csv_file, rows)
    if embeddings is not None:
        _write_npz(embeddings, [row["image"] for row in rows if "error" not in row], vectors)
    seconds = time.perf_counter() - start
    document = {"model": model, "provider": loaded.provider, "threads": loaded.threads, "seconds": round(seconds, 3), "images": rows}
    if console.as_json:  # for people the lines stand there already
        console.result(document, "")
    console.progress(f"{len(paths) / seconds:.1f} images a second")
    if any("error" in row for row in rows):
        click.get_current_context().exit(ImageError.exit_code)


def _outputs(model: Model, paths: list[Path], batch_size: int) -> Iterator[tuple[Path, dict[str, Any] | ImageError]]:
    """Each image's outputs, or why it has none, in the order given."""
    for start in range(0, len(paths), batch_size):
        batch = paths[start : start + batch_size]
        prepared = [_prepare(model, path) for path in batch]
        good = [pixels for pixels in prepared if not isinstance(pixels, ImageError)]
        outputs = model.run(np.stack(good)) if good else {}
        row = 0
        for path, pixels in zip(batch, prepared, strict=True):
            if isinstance(pixels, ImageError):
                yield path, pixels
            else:
                yield path, {name: values[row] for name, values in outputs.items()}
                row += 1


def _prepare(model: Model, path: Path) -> npt.NDArray[np.float32] | ImageError:
    try:
        return preprocess(path, model.manifest.preprocessing)
    except ImageError as error:
        return error


def _write_npz(file: Path, paths: list[str], vectors: list[npt.NDArray[np.float32]]) -> None:
    if not vectors:
        return  # every image was broken, and said so
    with writing(file), file.open("wb") as handle:
        np.savez(handle, paths=paths, embeddings=np.stack(vectors))


def _write_csv(file: Path, rows: list[dict[str, Any]]) -> None:
    with writing(file), file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as handle:
        writer = csv.writer(handle)
        writer.writerow(["path", "rank", "label", "probability"])
        for row in rows:
            for rank, prediction in enumerate(row.get("predictions", []), start=1):
                writer.writerow([row["image"], rank, prediction["label"], f"{prediction['probability']:.6f}"])
