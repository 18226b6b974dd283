"""How long `vit-parity vit.onnx` takes, the whole command, and how much memory: ViT-Ti, S and B at 224 px on a CPU."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from common import machine, markdown, timed

BIN = Path(sys.executable).parent
ARCHS = ("ViT-Ti/16", "ViT-S/16", "ViT-B/16")


def main() -> None:
    """Export where the files are not there yet, measure in turn, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/parity_time.json"))
    parser.add_argument("--files", type=Path, default=Path("build/parity"))
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    args.files.mkdir(parents=True, exist_ok=True)
    commands: dict[str, list[str | Path]] = {}
    for arch in ARCHS:
        out = args.files / f"{arch.replace('/', '-')}.onnx"
        if not out.exists():
            timed([BIN / "vit-export", "--arch", arch, "--out", out])
        commands[arch] = [BIN / "vit-parity", out]
    runs: dict[str, list[tuple[float, float]]] = {arch: [] for arch in ARCHS}
    for number in range(args.rounds + 1):  # the first round fills the caches of files, and is not counted
        for arch, command in commands.items():
            run = timed(command)
            runs[arch] += [run] if number else []
    rows = list[dict[str, Any]]()
    for arch, found in runs.items():
        seconds = sorted(run[0] for run in found)
        rows.append(
            {
                "arch": arch,
                "p50_s": round(statistics.median(seconds), 2),
                "p95_s": round(seconds[int(0.95 * (len(seconds) - 1))], 2),
                "peak_mb": round(statistics.median(run[1] for run in found)),
                "runs": len(found),
            }
        )
    document = {**machine(["vit-deploy", "onnxruntime", "numpy"]), "rows": rows}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(document, indent=1) + "\n")
    lines = [["vit-parity", "p50 s", "p95 s", "peak MB"]]
    lines += [[row["arch"], f"{row['p50_s']:.2f}", f"{row['p95_s']:.2f}", str(row["peak_mb"])] for row in rows]
    print(f"{markdown(lines)}\n\n{document['processor']}, {document['cores']} cores, {document['date']}, {document['versions']}")


if __name__ == "__main__":
    main()
