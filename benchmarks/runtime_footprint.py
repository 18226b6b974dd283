"""What the runtime costs an edge app: size of an environment with the wheel and [cpu], import time, process start to first prediction."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

from common import machine, markdown, timed

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
FIRST = """
import sys, vit_runtime as vit
model = vit.load(sys.argv[1], provider="cpu")
model.predict(sys.argv[2])
"""


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/runtime_footprint.json"))
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT], check=True, capture_output=True
        )
        bare, edge = environment(folder / "bare", []), environment(folder / "edge", [f"{next(folder.glob('*.whl'))}[cpu]"])
        size = disk_mb(edge) - disk_mb(bare)
        packages = {path.name: disk_mb(path) for path in sorted(next(edge.glob("lib/python*/site-packages")).iterdir()) if path.is_dir()}
        python = edge / "bin" / "python"
        compile_all = [python, "-m", "compileall", "-q", next(edge.glob("lib/python*/site-packages"))]
        subprocess.run([str(part) for part in compile_all], check=True, capture_output=True)
        imports = rounds(args.rounds, [python, "-c", "import vit_runtime"], [python, "-c", "pass"])
        numpy_only = rounds(args.rounds, [python, "-c", "import numpy"], [python, "-c", "pass"])
        cold = {arch: cold_start(arch, python, folder, args.rounds) for arch in ("digits", "ViT-B/16")}
    document = {
        **machine(["vit-deploy", "onnxruntime", "numpy", "pillow", "click"]),
        "environment_mb": round(size, 1),
        "largest_packages_mb": {name: round(mb, 1) for name, mb in sorted(packages.items(), key=lambda item: -item[1])[:6]},
        "import_ms": imports,
        "import_numpy_ms": numpy_only,
        "first_prediction": cold,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(document, indent=1) + "\n")
    print(table(document))


def environment(folder: Path, packages: list[str]) -> Path:
    """A virtual environment with the packages, without pip's own weight counted twice."""
    venv.create(folder, with_pip=True)
    if packages:
        pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", *packages]
        subprocess.run([str(part) for part in pip], check=True)
    return folder


def disk_mb(folder: Path) -> float:
    """What the files of a folder take, links not followed."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()) / 1e6


def rounds(count: int, command: list[Any], base: list[Any]) -> dict[str, float]:
    """Milliseconds that `command` takes more than `base`, the two in turn."""
    more = sorted(1e3 * (timed(command)[0] - timed(base)[0]) for _ in range(count))
    return {"p50": round(statistics.median(more), 1), "p95": round(more[int(0.95 * (count - 1))], 1), "runs": count}


def cold_start(arch: str, python: Path, folder: Path, count: int) -> dict[str, float]:
    """Process start to the first prediction from an image file, and the process's peak memory."""
    from PIL import Image

    from vit_runtime.golden import golden_images

    model, image = folder / "model.onnx", folder / "image.png"
    subprocess.run([BIN / "vit-export", "--arch", arch, "--out", model, "--force", "-q"], check=True, capture_output=True)
    Image.fromarray(golden_images(0, 1, 480, 640)[0]).save(image)
    runs = sorted(timed([python, "-c", FIRST, model, image]) for _ in range(count))
    seconds = [run[0] for run in runs]
    return {
        "p50_s": round(statistics.median(seconds), 3),
        "p95_s": round(seconds[int(0.95 * (count - 1))], 3),
        "peak_mb": round(statistics.median(run[1] for run in runs)),
        "runs": count,
    }


def table(document: dict[str, Any]) -> str:
    """The figures for people."""
    rows = [["figure", "value"]]
    rows.append(["environment with vit-deploy[cpu], without pip", f"{document['environment_mb']:.0f} MB"])
    rows.append(["`import vit_runtime`, p50 / p95", f"{document['import_ms']['p50']:.0f} / {document['import_ms']['p95']:.0f} ms"])
    rows.append(["of that `import numpy`", f"{document['import_numpy_ms']['p50']:.0f} / {document['import_numpy_ms']['p95']:.0f} ms"])
    for arch, cold in document["first_prediction"].items():
        rows.append([f"process start to first prediction, {arch}", f"{cold['p50_s']:.2f} / {cold['p95_s']:.2f} s, {cold['peak_mb']} MB"])
    facts = f"{document['processor']}, {document['cores']} cores, Python {document['python']}, {document['date']}"
    return f"{markdown(rows)}\n\n{facts}"


if __name__ == "__main__":
    main()
