"""How fast ViTs run on an NVIDIA GPU: PyTorch eager and compiled, exported files on CUDA and TensorRT with and without CUDA graphs, and
trtexec, which runs TensorRT's engine with nothing around it. Writes benchmarks/results/gpu/ and the tables of docs/performance-gpu.md.

Every engine but trtexec has a process of its own; they run in turn, round after round, and ratios are within a round. All take a batch from
the CPU's memory and give the logits back there; trtexec's time is the GPU's alone. Without a GPU it says why, and ends with exit code 4.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import machine, markdown
from cpu_files import checkpoint, ours

from vit_runtime import nvidia
from vit_runtime.errors import MachineError
from vit_runtime.providers import Probe, probe
from vit_runtime.race import Entrant, race

RESULTS = Path(__file__).parent / "results" / "gpu"
PAGE = Path(__file__).parents[1] / "docs" / "performance-gpu.md"
BEGIN, END = "<!-- tables: gpu_speed.py -->", "<!-- end -->"
IMAGE = (3, 224, 224)
PACKAGES = ["vit-deploy", "torch", "transformers", "onnxruntime-gpu", "numpy"]
PRECISIONS = ("fp32", "fp16")


def entrants(arch: str, batch: int, folder: Path, tensorrt: bool) -> Iterator[tuple[str, Entrant]]:
    """Everything that is raced in a cell, by name."""
    for precision in PRECISIONS:
        for kind in ("eager", "compile"):
            loader = f"gpu_engines:torch_{kind}_{precision}"
            yield f"torch {kind} {precision}", Entrant(checkpoint(arch, folder), "cuda", 1, batch, IMAGE, loader=loader)
        for provider in ("cuda", *(["tensorrt"] if tensorrt else [])):
            path = ours(arch, folder, provider, precision)
            for loader, title in (("ours", ""), ("ours_with_graph", ", CUDA graph")):
                entrant = Entrant(path, provider, 1, batch, IMAGE, loader=f"gpu_engines:{loader}")
                arithmetic = "fp32 as TF32" if (provider, precision) == ("tensorrt", "fp32") else precision  # no switch in onnxruntime
                yield f"ours, {provider} {arithmetic}{title}", entrant


def trtexec(path: Path, batch: int) -> float | None:
    """Milliseconds a batch on the GPU, the median that trtexec prints; None where it is not installed."""
    command = shutil.which("trtexec")
    if command is None:
        return None
    shapes = f"pixel_values:{batch}x{'x'.join(map(str, IMAGE))}"
    arguments = [f"--onnx={path}", "--stronglyTyped", f"--minShapes={shapes}", f"--optShapes={shapes}", f"--maxShapes={shapes}"]
    done = subprocess.run([command, *arguments], capture_output=True, text=True, check=False)
    return gpu_median(done.stdout)


def gpu_median(text: str) -> float | None:
    """The median of "GPU Compute Time" in what trtexec printed; None where it failed."""
    found = re.search(r"GPU Compute Time: .*?median = ([\d.]+) ms", text)
    return float(found[1]) if found else None


def cell(arch: str, batch: int, folder: Path, tensorrt: bool, rounds: int, seconds: float) -> dict[str, Any]:
    """Race one network at one batch size."""
    names, entered = zip(*entrants(arch, batch, folder, tensorrt), strict=True)
    results = race(entered, rounds, seconds, lambda done: print(f"  round {done} of {rounds}", file=sys.stderr, flush=True))
    rows = [
        {
            "name": name,
            "p50_ms": round(result.percentile(50), 4),
            "p95_ms": round(result.percentile(95), 4),
            "images_per_second": round(1e3 * batch / result.percentile(50), 1),
            "against_eager_fp16": round(result.times_faster(results[names.index("torch eager fp16")]), 3),
            "load_s": round(result.load_seconds, 2),
            "runs": sum(map(len, result.rounds)),
        }
        for name, result in zip(names, results, strict=True)
    ]
    alone = {precision: trtexec(ours(arch, folder, "tensorrt", precision), batch) for precision in PRECISIONS} if tensorrt else {}
    return {**machine(PACKAGES), "gpu": gpu(), "arch": arch, "batch_size": batch, "rounds": rounds, "rows": rows, "trtexec_gpu_ms": alone}


def gpu() -> str:
    """The GPU and its driver, to stand beside every figure."""
    driver = nvidia.find_driver()
    if not isinstance(driver, nvidia.Driver):
        raise MachineError(str(driver))
    return f"{driver.gpus[0].name}, driver {driver.release or 'unknown'}, CUDA {driver.cuda[0]}.{driver.cuda[1]}"


def table(document: dict[str, Any]) -> str:
    """A cell for people."""
    lines = [["engine", "p50 ms a batch", "p95", "images/s", "against torch eager fp16", "load s"]]
    for row in sorted(document["rows"], key=lambda row: row["p50_ms"]):
        numbers = [f"{row['p50_ms']:.2f}", f"{row['p95_ms']:.2f}", f"{row['images_per_second']:.0f}", f"{row['against_eager_fp16']:.2f}x"]
        lines.append([row["name"], *numbers, f"{row['load_s']:.1f}"])
    alone = [f"{precision} {ms:.2f} ms" for precision, ms in document["trtexec_gpu_ms"].items() if ms is not None]
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    texts = [f"**ViT-{document['arch']}/16, batch size {document['batch_size']}**", markdown(lines)]
    texts += [f"trtexec, the GPU's time alone: {', '.join(alone)}."] if alone else []
    return "\n\n".join([*texts, f"{document['gpu']}; {document['processor']}; {versions}; {document['date']}"])


def written(page: str, tables: list[str]) -> str:
    """The page with these tables in place of those between its marks. Raises: ValueError for a page without them."""
    before, _, rest = page.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"the page has no {BEGIN} with {END} after it")
    return f"{before}{BEGIN}\n" + "\n\n".join(tables) + f"\n{END}{after}"


def no_gpu(answer: Probe) -> str:
    """Why there is nothing to measure."""
    return f"error: no GPU to measure on: {answer.reason}; {answer.remedy}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", default="Ti,B", help="of Ti, S, B")
    parser.add_argument("--batch-sizes", default="1,8,32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each engine in a round")
    parser.add_argument("--files", type=Path, default=Path("build/gpu"), help="where checkpoints and exported files are kept")
    arguments = parser.parse_args()
    if not (answer := probe("cuda")).works:
        print(no_gpu(answer), file=sys.stderr)
        sys.exit(MachineError.exit_code)
    import torch

    if not torch.cuda.is_available():
        print(f"error: torch {torch.__version__} finds no GPU, expected a build for CUDA to race against", file=sys.stderr)
        sys.exit(MachineError.exit_code)
    if not (tensorrt := probe("tensorrt")).works:
        print(f"without TensorRT: {tensorrt.reason}; {tensorrt.remedy}", file=sys.stderr)
    RESULTS.mkdir(parents=True, exist_ok=True)
    tables = []
    for arch in arguments.archs.split(","):
        for batch in map(int, arguments.batch_sizes.split(",")):
            print(f"ViT-{arch}/16, batch size {batch}", file=sys.stderr, flush=True)
            document = cell(arch, batch, arguments.files, tensorrt.works, arguments.rounds, arguments.seconds)
            (RESULTS / f"{arch}-{batch}.json").write_text(json.dumps(document, indent=1) + "\n")
            tables.append(table(document))
    PAGE.write_text(written(PAGE.read_text(), tables))
    print("\n\n".join(tables))


if __name__ == "__main__":
    main()
