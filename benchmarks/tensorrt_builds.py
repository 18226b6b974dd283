"""What NVIDIA's compiler makes of our files: network x precision x GPU, whether it builds, the engine's size, time and memory.

It builds with tensorrt-rtx, which needs no GPU; what an engine then computes and how fast, only a GPU can tell.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import machine, markdown
from PIL import Image

from vit_runtime.golden import golden_images

BIN = Path(sys.executable).parent
MODELS = {"digits": "digits", "Ti/16": "ViT-Ti/16", "B/16": "ViT-B/16"}
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
SMS = (75, 80, 86, 89, 120, 121)


def main() -> None:
    """Export, build each for each GPU, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tensorrt_builds.json"))
    parser.add_argument("--files", type=Path, default=Path("build/tensorrt"), help="where the exported files are kept")
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--precisions", nargs="*", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--batch", default="1,8,32")
    args = parser.parse_args()
    args.files.mkdir(parents=True, exist_ok=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    head, rows = machine(["vit-deploy", "tensorrt-rtx", "onnx", "torch"]), list[dict[str, Any]]()
    for model in args.models:
        for precision in args.precisions:
            path = export(model, precision, args.files)
            for sm in SMS:
                rows.append({"model": model, "precision": precision, "sm": sm, "file_mb": size(path), **build(path, sm, args.batch)})
            args.out.write_text(json.dumps({**head, "batch": args.batch, "rows": rows}, indent=1) + "\n")
    print(table(rows))


def export(model: str, precision: str, folder: Path) -> Path:
    """The file, made once."""
    path = folder / f"{MODELS[model].replace('/', '-')}-{precision}.onnx"
    if not path.exists():
        command = [BIN / "vit-export", "--arch", MODELS[model], "--target", "tensorrt", "--precision", precision, "--out", path]
        more = ["--calibrate", images(folder)] if precision in ("int8", "fp8") else []
        subprocess.run([*map(str, [*command, *more]), "--no-verify", "-q"], check=True)
    return path


def images(folder: Path) -> Path:
    """Generated ones to measure scales on: which numbers stand in the file does not change what is built."""
    made = folder / "images"
    made.mkdir(exist_ok=True)
    for number, pixels in enumerate(golden_images(0, 16, 224, 224)):
        Image.fromarray(pixels).save(made / f"{number}.png")
    return made


def size(path: Path) -> float:
    """Of the file, in MB."""
    return round(path.stat().st_size / 1e6, 1)


def build(path: Path, sm: int, batch: str) -> dict[str, Any]:
    """What vit-trt says: sizes in MB, time in seconds; or why there is no engine."""
    command = [sys.executable, "-m", "vit_runtime.cli.trt", str(path), "--sm", str(sm), "--batch", batch, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    answer = json.loads(done.stdout)
    if done.returncode:
        return {"built": False, "exit_code": done.returncode, "error": answer["error"]}
    return {
        "built": True,
        "engine_mb": round(answer["size"] / 1e6, 1),
        "seconds": round(answer["seconds"], 1),
        "peak_mb": round(answer["peak_memory"] / 1e6),
        "nodes": answer["nodes"],
        "layers": len(answer["layers"]),
        "fused": answer["fused"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """A line a network and precision, a column a GPU: megabytes of the engine and seconds."""
    head = ["network", "precision", "file", *(f"SM {sm}" for sm in SMS), "nodes, layers"]
    lines = []
    for model, precision in dict.fromkeys((row["model"], row["precision"]) for row in rows):
        own = {row["sm"]: row for row in rows if (row["model"], row["precision"]) == (model, precision)}
        built = next((row for row in own.values() if row["built"]), None)
        cells = [f"{row['engine_mb']} MB, {row['seconds']} s" if row["built"] else "refused" for row in own.values()]
        kernels = f"{built['nodes']}, {built['layers']}" if built else ""
        lines.append([model, precision, f"{next(iter(own.values()))['file_mb']} MB", *cells, kernels])
    return markdown([head, *lines])


if __name__ == "__main__":
    main()
