"""From process start to the first prediction from an image file, and the process's peak memory: ViT-B/16 at 224 px on a CPU.

PyTorch reads the same checkpoint memory-mapped; everything decodes and resizes the same picture in the same way.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from common import machine, markdown, timed
from cpu_files import checkpoint, ours
from PIL import Image

from vit_runtime.golden import golden_images

RUNTIME = """
import sys, vit_runtime as vit
vit.load(sys.argv[1], provider=sys.argv[3], threads=2, cache_dir=sys.argv[4] if len(sys.argv) > 4 else None).predict(sys.argv[2])
"""
TORCH = """
import sys, torch
from vit_models import load
from vit_runtime.preprocess import Preprocessing, pixel_values
torch.set_num_threads(2)
model, spec = load(sys.argv[1])
with torch.inference_mode():
    model.eval()(torch.from_numpy(pixel_values([sys.argv[2]], Preprocessing.paper(224, 224))))
"""
TRANSFORMERS = """
import sys, torch
from transformers import ViTForImageClassification
from vit_runtime.preprocess import Preprocessing, pixel_values
torch.set_num_threads(2)
model = ViTForImageClassification.from_pretrained(sys.argv[1]).eval()
with torch.inference_mode():
    model(torch.from_numpy(pixel_values([sys.argv[2]], Preprocessing.paper(224, 224))))
"""


def main() -> None:
    """Measure in turn, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu_cold_start.json"))
    parser.add_argument("--files", type=Path, default=Path("build/cpu"))
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    source, image, cache = checkpoint("B", args.files), args.files / "image.png", args.files / "cache"
    Image.fromarray(golden_images(0, 1, 480, 640)[0]).save(image)
    static = ours("B", args.files, "openvino", "int8-static")
    commands: dict[str, list[Any]] = {
        "transformers, torch eager": [TRANSFORMERS, source, image],
        "torch eager, memory-mapped checkpoint": [TORCH, source, image],
        "vit_runtime, onnxruntime, fp32": [RUNTIME, ours("B", args.files, "cpu", "fp32"), image, "cpu"],
        "vit_runtime, onnxruntime, int8": [RUNTIME, ours("B", args.files, "cpu", "int8"), image, "cpu"],
        "vit_runtime, OpenVINO, int8-static": [RUNTIME, static, image, "openvino"],
        "the same with a cache folder": [RUNTIME, static, image, "openvino", cache],
    }
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for number in range(args.rounds + 1):  # the first round fills the caches of files, and is not counted
        for name, (script, *arguments) in commands.items():
            run = timed([sys.executable, "-c", script, *map(str, arguments)])
            runs[name] += [run] if number else []
    base = runs["torch eager, memory-mapped checkpoint"]
    rows = list[dict[str, Any]]()
    for name, found in runs.items():
        seconds, memory = sorted(run[0] for run in found), statistics.median(run[1] for run in found)
        rows.append(
            {
                "name": name,
                "p50_s": round(statistics.median(seconds), 2),
                "p95_s": round(seconds[int(0.95 * (len(seconds) - 1))], 2),
                "of_torch": round(statistics.median(run[0] / other[0] for run, other in zip(found, base, strict=True)), 3),
                "peak_mb": round(memory),
                "memory_of_torch": round(memory / statistics.median(run[1] for run in base), 3),
                "runs": len(found),
            }
        )
    document = {**machine(["vit-deploy", "torch", "transformers", "onnxruntime", "openvino", "numpy"]), "rows": rows}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(document, indent=1) + "\n")
    lines = [["ViT-B/16, process start to first prediction", "p50 s", "p95 s", "of torch's time", "peak MB", "of torch's memory"]]
    for row in rows:
        numbers = [f"{row['p50_s']:.2f}", f"{row['p95_s']:.2f}", f"{row['of_torch']:.2f}"]
        lines.append([row["name"], *numbers, str(row["peak_mb"]), f"{row['memory_of_torch']:.2f}"])
    print(f"{markdown(lines)}\n\n{document['processor']}, {document['cores']} cores, {document['date']}, {document['versions']}")


if __name__ == "__main__":
    main()
