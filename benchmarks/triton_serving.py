"""What Triton adds to the runtime: NVIDIA's server with the Python model of `vit-export --triton`, asked by perf_analyzer on loopback."""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, markdown
from PIL import Image
from triton_server import CLIENT, SERVER, install, serve

import vit_runtime as vit
from vit_exporter import ExportSpec, digits_source, export, random_source, write_triton

MODELS = {"digits": digits_source, "ViT-Ti_16": lambda: random_source("ViT-Ti/16", 0)}
SIZES = {"digits": (28, 28), "ViT-Ti_16": (375, 500)}  # of the images that are sent: a digit, and a photograph's usual size
CLIENTS = (1, 8)


def main() -> None:
    """Measure, print tables and the server's log, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/triton_serving.json"))
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--requests", type=int, default=200, help="of each kind")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        results, log = measure(Path(scratch), args.starts, args.requests)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=2) + "\n")
    print("\n\n".join([log, *tables(results)]))
    print(f"\n{json.dumps(results['machine'])}\n{args.out}")


def measure(folder: Path, starts: int, requests: int) -> tuple[dict[str, Any], str]:
    """Every figure, and what the server said when it started last."""
    triton, load = install(), os.getloadavg()[0]  # what else ran here spoils a figure
    images = {name: jpeg(size) for name, size in SIZES.items()}
    library = {}
    for name, source in MODELS.items():
        export(source, ExportSpec(folder / f"{name}.onnx"))
        write_triton(folder / f"{name}.onnx", folder / "models")
        library[name] = in_process(vit.load(folder / f"{name}.onnx", "cpu"), images[name], requests)
    served = [f"{name}_image" for name in MODELS]
    ready = []
    for _ in range(starts):
        with serve(triton, folder / "models", served, folder / "server.log") as server:
            ready.append(server.ready_seconds)
    rows = []
    with serve(triton, folder / "models", served, folder / "server.log") as server:
        for name in MODELS:
            for protocol in ("http", "grpc"):
                for clients in CLIENTS:
                    before = batches(server.get(f"v2/models/{name}_image/stats"))
                    found = server.perf(f"{name}_image", [images[name]], protocol, clients, requests)
                    after = batches(server.get(f"v2/models/{name}_image/stats"))
                    mean = (after[0] - before[0]) / (after[1] - before[1])
                    rows.append({"model": name, "protocol": protocol, "clients": clients, **found, "images_a_run": mean})
        log = (folder / "server.log").read_text()
    kept = [line.partition("] ")[2] for line in log.splitlines() if "model_lifecycle" in line or "Started" in line]
    about = machine(["onnxruntime", "pillow", "numpy"])
    about["server"], about["load_before"] = [SERVER, *CLIENT], load
    return {"machine": about, "requests": requests, "ready_seconds": ready, "library": library, "served": rows}, "\n".join(kept)


def jpeg(size: tuple[int, int]) -> bytes:
    """Smooth noise, which compresses about as a photograph does."""
    stream = io.BytesIO()
    small = np.random.default_rng(0).integers(0, 256, (size[0] // 4, size[1] // 4, 3), np.uint8)
    Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def in_process(model: vit.Model, image: bytes, runs: int) -> dict[str, float]:
    """p50 and p95 of `predict` without a server, in ms."""
    times = []
    for _ in range(10 + runs):
        start = time.perf_counter()
        _ = model.predict(image).probabilities
        times.append(1000 * (time.perf_counter() - start))
    cuts = statistics.quantiles(times[10:], n=20)
    return {"p50_ms": statistics.median(times[10:]), "p95_ms": cuts[-1]}


def batches(stats: dict[str, Any]) -> tuple[int, int]:
    """Images and runs so far."""
    (model,) = stats["model_stats"]
    return model["inference_count"], model["execution_count"]


def tables(results: dict[str, Any]) -> list[str]:
    """For the documents."""
    rows = [["model", "asked", "clients", "p50 ms", "p95 ms", "images a run"]]
    for name, found in results["library"].items():
        rows.append([name, "in process", "1", f"{found['p50_ms']:.1f}", f"{found['p95_ms']:.1f}", "1.0"])
        for row in (row for row in results["served"] if row["model"] == name):
            figures = [f"{row[key]:.1f}" for key in ("p50_ms", "p95_ms", "images_a_run")]
            rows.append([name, row["protocol"], str(row["clients"]), *figures])
    ready = results["ready_seconds"]
    return [f"ready after {statistics.median(ready):.1f} s (median of {len(ready)}; {min(ready):.1f} to {max(ready):.1f})", markdown(rows)]


if __name__ == "__main__":
    main()
