"""What an export costs, beside `optimum-cli export onnx` for the same architecture: seconds and peak memory.

Each run is a process of its own; the tools take turns, round by round. optimum gets a virtual environment of its own (it wants an
older transformers) and a local Hugging Face folder with random weights, as nothing is downloaded. Ours runs twice: with its
verification, as a user gets it, and with --no-verify. optimum's own validation is on, its default.
"""

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

BIN = Path(sys.executable).parent
OPTIMUM = ["torch==2.13.0", "optimum-onnx==0.1.0", "transformers==4.57.6", "onnxruntime==1.32.0", "onnx==1.23.2"]
FOLDER = """
import sys
from transformers import ViTConfig, ViTForImageClassification
width, depth, heads, mlp, patch = map(int, sys.argv[2:])
sizes = dict(hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=mlp, patch_size=patch)
ViTForImageClassification(ViTConfig(**sizes, num_labels=1000)).save_pretrained(sys.argv[1])
"""


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/export_cost.json"))
    parser.add_argument("--archs", default="ViT-Ti/16,ViT-B/16,ViT-L/16,ViT-H/14")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--environment", type=Path, help="keep optimum's environment here and use it again")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        optimum = optimum_environment(args.environment or folder / "optimum")
        results = [measure(arch, args.rounds, optimum, folder) for arch in args.archs.split(",")]
    packages = ["vit-deploy", "torch", "onnx", "onnxscript", "onnxsim", "onnxruntime"]
    document = {**machine(packages), "optimum": OPTIMUM, "rounds": args.rounds, "results": results}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(document, indent=1) + "\n")
    print(table(document))


def measure(arch: str, rounds: int, optimum: Path, folder: Path) -> dict[str, Any]:
    """Every round: ours, ours without verification, optimum."""
    from vit_models import ARCHS

    config = ARCHS[arch]
    source = folder / "source"
    sizes = [config.embed_dim, config.depth, config.num_heads, config.mlp_dim, config.patch_size]
    subprocess.run([optimum / "python", "-c", FOLDER, source, *map(str, sizes)], check=True, capture_output=True)
    ours: list[str | Path] = [BIN / "vit-export", "--arch", arch, "--out", folder / "ours.onnx", "--force", "-q"]
    theirs: list[str | Path] = [
        optimum / "optimum-cli",
        "export",
        "onnx",
        "--model",
        source,
        "--task",
        "image-classification",
        folder / "theirs",
    ]
    commands = {"ours": ours, "ours_unverified": [*ours, "--no-verify"], "optimum": theirs}
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            runs[name].append(timed(command))
            print(f"{arch} {name}: {runs[name][-1][0]:.1f} s, {runs[name][-1][1]:.0f} MB", file=sys.stderr)
    medians = {name: {"seconds": median(values, 0), "peak_mb": median(values, 1)} for name, values in runs.items()}
    seconds = [a[0] / b[0] for a, b in zip(runs["ours"], runs["optimum"], strict=True)]
    ratios = {
        "seconds": round(statistics.median(seconds), 3),
        "memory": round(medians["ours"]["peak_mb"] / medians["optimum"]["peak_mb"], 3),
        "memory_unverified": round(medians["ours_unverified"]["peak_mb"] / medians["optimum"]["peak_mb"], 3),
    }
    return {"arch": arch, "median": medians, "ratio_to_optimum": ratios, "runs": runs}


def median(values: list[tuple[float, float]], index: int) -> float:
    """The median of one figure, to three digits after the point."""
    return round(statistics.median(value[index] for value in values), 3)


def optimum_environment(folder: Path) -> Path:
    """The programs' folder of an environment with optimum, made if it is not there."""
    if not (folder / "bin" / "optimum-cli").exists():
        venv.create(folder, with_pip=True)
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *OPTIMUM], check=True)
    return folder / "bin"


def table(document: dict[str, Any]) -> str:
    """The medians, and the ratios of the rounds."""
    figures = ["vit-export: s, MB", "with --no-verify: s, MB", "optimum-cli: s, MB"]
    rows = [["architecture", *figures, "time ratio", "memory ratio", "the same, --no-verify"]]
    for result in document["results"]:
        medians = [result["median"][name] for name in ("ours", "ours_unverified", "optimum")]
        ratio = result["ratio_to_optimum"]
        cells = [f"{m['seconds']:.1f}, {m['peak_mb']:.0f}" for m in medians]
        rows.append([result["arch"], *cells, *(f"{ratio[name]:.2f}" for name in ("seconds", "memory", "memory_unverified"))])
    facts = f"{document['processor']}, {document['cores']} cores, Python {document['python']}, {document['date']}"
    facts += f"; median of {document['rounds']} rounds"
    return f"{markdown(rows)}\n\n{facts}"


if __name__ == "__main__":
    main()
