"""Where a file's time goes on OpenVINO, by kind of operation: the sum over a run of what each of the engine's own nodes took."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from common import machine, markdown
from cpu_files import ours

from vit_runtime.manifest import read_manifest

RUNS = 30


def main() -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=Path, help="by default ViT-B/16 in int8-static, in one piece and split")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu_profile.json"))
    parser.add_argument("--files", type=Path, default=Path("build/cpu"))
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    default = [ours("B", args.files, "openvino", "int8-static", split) for split in ((), ("--token-split", "192,5"))]
    found = {path.stem: profile(path, args.threads) for path in args.models or default}
    document = {**machine(["vit-deploy", "openvino", "numpy"]), "threads": args.threads, "milliseconds": found}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(document, indent=1) + "\n")
    kinds = sorted(
        {kind for kinds in found.values() for kind in kinds}, key=lambda kind: -max(kinds.get(kind, 0) for kinds in found.values())
    )
    lines = [["operation, ms", *found]]
    lines += [[kind, *(f"{kinds.get(kind, 0):.2f}" for kinds in found.values())] for kind in kinds]
    lines.append(["all", *(f"{sum(kinds.values()):.2f}" for kinds in found.values())])
    print(f"{markdown(lines)}\n\n{document['processor']}, {args.threads} threads, batch size 1, {document['date']}, {document['versions']}")


def profile(path: Path, threads: int) -> dict[str, float]:
    """Milliseconds by kind and precision, medians of the runs."""
    import openvino

    core, manifest = openvino.Core(), read_manifest(path)[0]
    model = core.read_model(path)
    _, *sizes = model.inputs[0].partial_shape
    model.reshape([1, *sizes])
    config = {
        "INFERENCE_PRECISION_HINT": "bf16" if manifest.execution.bf16 else "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": manifest.execution.int8_group or 0,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERF_COUNT": True,
    }
    request = core.compile_model(model, "CPU", config).create_infer_request()
    image = np.random.default_rng(0).standard_normal((1, *(size.get_length() for size in sizes))).astype(np.float32)
    runs = []
    for number in range(RUNS + 3):
        request.infer({0: image})
        sums: dict[str, float] = defaultdict(float)
        for node in request.get_profiling_info():
            kind = f"{node.node_type}, {node.exec_type.rsplit('_', 1)[-1]}"
            sums[kind] += node.real_time.total_seconds() * 1e3
        runs += [sums] if number >= 3 else []
    return {kind: round(float(np.median([run.get(kind, 0.0) for run in runs])), 3) for kind in runs[0] if runs[0][kind] > 0}


if __name__ == "__main__":
    main()
