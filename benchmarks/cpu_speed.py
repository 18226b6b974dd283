"""How fast ViTs run on a CPU: PyTorch, plain exports and quantised ones on onnxruntime and OpenVINO, and what vit-export makes of the same
checkpoint.

Every engine has a process of its own; they run in turn, at least five rounds; ratios are within a round, medians over the rounds. The
limit is the time that an engine would take if all linear layers ran at the rate that it reaches in the same rounds on large products.
Each cell (network, batch size, threads) is written to its own file when it is done, and one that is there is not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, markdown
from cpu_files import checkpoint, layer_macs, ours, plain, product_macs, products

from vit_runtime.manifest import read_manifest
from vit_runtime.openvino_engine import FLOAT32, Arithmetic
from vit_runtime.race import Entrant, Result, race

RESULTS = Path(__file__).parent / "results" / "cpu"
IMAGE, PRODUCT = (3, 224, 224), (1, 1536, 768)
BF16 = Arithmetic(bf16=True)
SPLIT = "192,5"
KEEP: tuple[str, ...] = ()  # what the trained DINOv2-S needs to stay within the accuracy budget (int8_accuracy.py)
PACKAGES = ["vit-deploy", "torch", "transformers", "onnxruntime", "openvino", "nncf", "onnx", "numpy"]


@dataclass(frozen=True)
class Engine:
    """One line of the table. `kind`: peer, ours, or limit; `family`: the limit that it is held against."""

    name: str
    kind: str
    family: str
    entrant: Entrant


def engines(arch: str, batch: int, threads: int, folder: Path) -> Iterator[Engine]:
    """Everything that is raced in a cell."""

    def entrant(path: Path, provider: str, arithmetic: Arithmetic = FLOAT32, loader: str = "vit_runtime.race:load") -> Entrant:
        return Entrant(path, provider, threads, batch, IMAGE, arithmetic, loader)

    for name, loader in (("eager fp32", "torch_eager"), ("compile fp32", "torch_compile"), ("eager bf16", "torch_bf16")):
        yield Engine(f"torch {name}", "peer", "", entrant(checkpoint(arch, folder), "torch", loader=f"cpu_engines:{loader}"))
    dynamo, nncf = plain(arch, folder, "dynamo"), plain(arch, folder, "nncf")
    yield Engine("plain dynamo, ORT fp32", "peer", "ORT fp32", entrant(dynamo, "cpu"))
    yield Engine("plain TorchScript, ORT fp32", "peer", "ORT fp32", entrant(plain(arch, folder, "torchscript"), "cpu"))
    yield Engine("quantize_dynamic, ORT int8", "peer", "ORT int8", entrant(plain(arch, folder, "dynamic"), "cpu"))
    for name, path, arithmetic in (("fp32", dynamo, FLOAT32), ("bf16", dynamo, BF16), ("int8", nncf, BF16)):
        title = f"plain, OpenVINO {'NNCF ' if name == 'int8' else ''}{name}"
        yield Engine(title, "peer", f"OpenVINO {name}", entrant(path, "openvino", arithmetic, "cpu_engines:openvino_batch"))
        if batch > 1:  # the way that our runtime takes batches, for the plain file too
            yield Engine(f"{title}, an image a thread", "peer", f"OpenVINO {name}", entrant(path, "openvino", arithmetic))
    for precision in ("fp32", "int8"):
        yield Engine(f"ours, ORT {precision}", "ours", f"ORT {precision}", entrant(ours(arch, folder, "cpu", precision), "cpu"))
    splits: list[tuple[str, ...]] = [(), ("--token-split", SPLIT)] if batch == 1 else [()]
    for split in splits:
        for precision in ("fp32", "bf16", "int8", "int8-static"):
            path = ours(arch, folder, "openvino", precision, (*split, *(KEEP if precision == "int8-static" else ())))
            title = f"ours, OpenVINO {precision}{f', split {SPLIT}' if split else ''}"
            yield Engine(title, "ours", f"OpenVINO {precision.removesuffix('-static')}", entrant(path, "openvino", arithmetic_of(path)))
    for family, kind in (
        ("ORT fp32", "fp32"), ("ORT int8", "dynamic"), ("OpenVINO fp32", "fp32"), ("OpenVINO bf16", "fp32"), ("OpenVINO int8", "static"),
    ):  # fmt: skip
        provider, loader = ("cpu", "vit_runtime.race:load") if family.startswith("ORT") else ("openvino", "cpu_engines:openvino_batch")
        arithmetic = FLOAT32 if "fp32" in family else BF16
        yield Engine(
            f"limit, {family}", "limit", family, Entrant(products(folder, kind), provider, threads, 1, PRODUCT, arithmetic, loader)
        )


def arithmetic_of(path: Path) -> Arithmetic:
    """What the file's manifest allows."""
    return read_manifest(path)[0].execution.arithmetic


def cell(arch: str, batch: int, threads: int, folder: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Race one cell."""
    start = time.perf_counter()
    entered = list(engines(arch, batch, threads, folder))
    results = race([engine.entrant for engine in entered], rounds, seconds, lambda done: print(f"  round {done} of {rounds}", flush=True))
    rows = [to_row(engine, result, 1 if engine.kind == "limit" else batch) for engine, result in zip(entered, results, strict=True)]
    limits = {row["family"]: np.array(row["round_ms"]) * layer_macs(arch) / product_macs() for row in rows if row["kind"] == "limit"}
    for row in rows:
        if row["kind"] != "limit" and row["family"]:
            row["times_the_limit"] = round(float(np.median(np.array(row["round_ms"]) / limits[row["family"]])), 3)
    facts = {"arch": arch, "batch_size": batch, "threads": threads, "rounds": rounds, "seconds_a_round": seconds}
    return {**machine(PACKAGES), **facts, "took_s": round(time.perf_counter() - start), "rows": rows}


def to_row(engine: Engine, result: Result, images: int) -> dict[str, Any]:
    """An engine's numbers, milliseconds an image."""
    return {
        "name": engine.name,
        "kind": engine.kind,
        "family": engine.family,
        "p50_ms": round(result.percentile(50) / images, 3),
        "p95_ms": round(result.percentile(95) / images, 3),
        "round_ms": [round(float(median) / images, 4) for median in result.medians],
        "runs": sum(map(len, result.rounds)),
        "load_s": round(result.load_seconds, 2),
        "peak_mb": round(result.peak_memory / 1e6) if result.peak_memory else None,
    }


def ratio(slow: dict[str, Any], fast: dict[str, Any]) -> float:
    """How many times faster, within the rounds."""
    return float(np.median(np.array(slow["round_ms"]) / np.array(fast["round_ms"])))


def best(rows: list[dict[str, Any]], kind: str, *words: str) -> dict[str, Any]:
    """The fastest of the peers, or of ours, whose name has one of the words."""
    found = [row for row in rows if row["kind"] == kind and (not words or any(word in row["name"] for word in words))]
    return min(found, key=lambda row: float(np.median(row["round_ms"])))


def table(document: dict[str, Any]) -> str:
    """A cell for people."""
    rows, peer = document["rows"], best(document["rows"], "peer")
    lines = [["engine", "p50 ms an image", "p95", "against the best peer", "times its limit", "load s", "peak MB"]]
    for row in sorted(rows, key=lambda row: float(np.median(row["round_ms"]))):
        if row["kind"] != "limit":
            numbers = [f"{row['p50_ms']:.1f}", f"{row['p95_ms']:.1f}", f"{ratio(peer, row):.2f}x", f"{row.get('times_the_limit', '')}"]
            lines.append([row["name"], *numbers, f"{row['load_s']:.1f}", str(row["peak_mb"])])
    rates = [f"{row['family']} {product_macs() / row['p50_ms'] / 1e6:.0f}" for row in rows if row["kind"] == "limit"]
    where = f"ViT-{document['arch']}/16, batch size {document['batch_size']}, {document['threads']} threads"
    return f"**{where}**\n\n{markdown(lines)}\n\nBest rates on large products, GMAC/s: {', '.join(rates)}."


def bars(cells: dict[tuple[str, int, int], dict[str, Any]]) -> list[list[str]]:
    """The figures of ViT-B/16 that sum it up, each a ratio within one run."""
    lines = [["ViT-B/16 at 224 px", "measured"]]
    for (arch, batch, threads), document in sorted(cells.items(), key=lambda item: (item[0][0], -item[0][2], item[0][1])):
        if arch != "B":
            continue
        rows, where = document["rows"], f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}"
        pairs = [
            ("int8 against NNCF int8 of the plain export on OpenVINO", best(rows, "peer", "NNCF"), best(rows, "ours", "int8")),
            ("int8 on onnxruntime against quantize_dynamic", best(rows, "peer", "quantize_dynamic"), best(rows, "ours", "ORT int8")),
            ("fp32 against the fastest of the others", best(rows, "peer", "fp32"), best(rows, "ours", "fp32")),
            ("bf16 against OpenVINO bf16 of the plain export", best(rows, "peer", "OpenVINO bf16"), best(rows, "ours", "bf16")),
            ("best against torch eager fp32", best(rows, "peer", "eager fp32"), best(rows, "ours")),
        ]
        lines += [[f"{what}, {where}", f"{ratio(slow, fast):.2f}x ({fast['name']})"] for what, slow, fast in pairs]
        fast = best(rows, "ours", "int8")
        lines.append([f"int8 against the limit of its engine, {where}", f"{fast['times_the_limit']:.2f}x the limit ({fast['name']})"])
    return lines


def overview(cells: dict[tuple[str, int, int], dict[str, Any]]) -> list[list[str]]:
    """A line for each cell: the fastest of the others and of ours, and how many times faster ours are, kind by kind."""
    lines = [
        [
            "network",
            "threads",
            "batch",
            "fastest of the others, ms an image",
            "ours",
            "faster",
            "fp32",
            "bf16",
            "int8 on onnxruntime",
            "limit",
        ]
    ]
    order = {arch: place for place, arch in enumerate(("B", "S", "Ti"))}
    for (arch, batch, threads), document in sorted(cells.items(), key=lambda item: (order[item[0][0]], -item[0][2], item[0][1])):
        rows = document["rows"]
        peer, fast = best(rows, "peer"), best(rows, "ours")
        pairs = [("peer", "fp32"), ("peer", "OpenVINO bf16"), ("peer", "quantize_dynamic")]
        others = [best(rows, *pair) for pair in pairs]
        mine = [best(rows, "ours", word) for word in ("fp32", "bf16", "ORT int8")]
        names = [f"{each['name'].removeprefix('ours, ').removeprefix('plain, ')}, {each['p50_ms']:.1f}" for each in (peer, fast)]
        ratios = [f"{ratio(slow, each):.2f}x" for slow, each in zip([peer, *others], [fast, *mine], strict=True)]
        lines.append([f"ViT-{arch}/16", str(threads), str(batch), *names, *ratios, f"{fast['times_the_limit']:.2f}"])
    return lines


def draw(arch: str, cells: dict[tuple[str, int, int], dict[str, Any]], path: Path) -> None:
    """Milliseconds an image by engine, a panel a cell, fastest at the top."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    mine = sorted((key, document) for key, document in cells.items() if key[0] == arch)
    mine.sort(key=lambda item: (-item[0][2], item[0][1]))
    columns = max(1, min(3, len(mine)))
    lines = -(-len(mine) // columns)
    figure, panels = pyplot.subplots(lines, columns, figsize=(6.4 * columns, 5.4 * lines), squeeze=False, layout="constrained")
    for panel in panels.flat[len(mine) :]:
        panel.axis("off")
    for panel, ((_, batch, threads), document) in zip(panels.flat, mine, strict=False):
        rows = sorted((row for row in document["rows"] if row["kind"] != "limit"), key=lambda row: -float(np.median(row["round_ms"])))
        values = [float(np.median(row["round_ms"])) for row in rows]
        colours = ["#0969da" if row["kind"] == "ours" else "#afb8c1" for row in rows]
        bars_drawn = panel.barh([row["name"] for row in rows], values, color=colours)
        panel.bar_label(bars_drawn, labels=[f"{value:.1f}" for value in values], padding=3, fontsize=7)
        limit = next(row for row in document["rows"] if row["name"] == "limit, OpenVINO int8")
        where = float(np.median(limit["round_ms"])) * layer_macs(arch) / product_macs()
        panel.axvline(where, color="#bc4c00", linestyle="--", linewidth=1)
        panel.text(where, -0.9, " limit of int8", color="#bc4c00", fontsize=7, va="top")
        panel.tick_params(axis="y", labelsize=8)
        panel.margins(x=0.12)
        panel.set_title(f"batch size {batch}, {threads} thread{'s' if threads > 1 else ''}", fontsize=10)
        panel.set_xlabel("milliseconds an image, median", fontsize=8)
    document = mine[0][1]
    figure.suptitle(f"ViT-{arch}/16 at 224 px, {document['processor']}, {document['date']}; ours in blue", fontsize=12)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def main() -> None:
    """Measure what is missing, print the tables, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archs", default="B,S,Ti")
    parser.add_argument("--batch-sizes", default="1,8,32")
    parser.add_argument("--threads", default="2,1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each engine in each round")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the cells")
    parser.add_argument("--files", type=Path, default=Path("build/cpu"), help="folder of the files that are raced")
    parser.add_argument("--draw", type=Path, help="folder for the plots")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sizes = [[int(part) for part in text.split(",")] for text in (args.threads, args.batch_sizes)]
    for arch in args.archs.split(","):
        for threads, batch in itertools.product(*sizes):
            path = args.out / f"{arch}-batch{batch}-threads{threads}.json"
            if not path.exists():
                print(f"ViT-{arch}/16, batch size {batch}, {threads} threads", flush=True)
                path.write_text(json.dumps(cell(arch, batch, threads, args.files, args.rounds, args.seconds), indent=1) + "\n")
    documents = [json.loads(path.read_text()) for path in sorted(args.out.glob("*-batch*.json"))]
    cells = {(document["arch"], document["batch_size"], document["threads"]): document for document in documents}
    everything = "\n\n".join(table(document) for document in cells.values())
    (args.out / "tables.md").write_text(f"{everything}\n")
    print(f"{everything}\n\n{markdown(overview(cells))}\n\n{markdown(bars(cells))}")
    for document in documents[:1]:
        print(f"\n{document['processor']}, {document['cores']} cores, {document['date']}, {document['versions']}")
    if args.draw:
        args.draw.mkdir(parents=True, exist_ok=True)
        for arch in dict.fromkeys(key[0] for key in cells):
            draw(arch, cells, args.draw / f"cpu_{arch}.png")


if __name__ == "__main__":
    main()
