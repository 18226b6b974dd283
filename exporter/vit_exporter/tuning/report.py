"""What `--tune` found, as JSON, as CSV and as a picture, each written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vit_exporter.tuning.candidates import BASELINE
from vit_exporter.tuning.tune import Record, TuneReport
from vit_runtime.cli.common import write_whole
from vit_runtime.memory import megabytes

TABLE, SHEET, PICTURE = "table.json", "table.csv", "latency_accuracy.png"
COLOURS = {"portable": "#656d76", "cpu": "#0969da", "openvino": "#bc4c00"}
GREEN = "#1a7f37"
LEAST_LOSS = 1e-7  # where float32 is drawn: what it loses is less
COLUMNS = (
    "candidate", "provider", "batch_size", "p50_ms", "p95_ms", "images_per_second", "times_faster", "load_seconds", "peak_memory", "size",
    "mean_cosine", "least_cosine", "changed_class", "kept", "frontier", "winner", "obstacle",
)  # fmt: skip


def write_report(report: TuneReport) -> tuple[Path, ...]:
    """Write the table and the picture to the tuning's folder; sizes in bytes."""
    folder, rows = report.spec.folder, to_rows(report)
    document = {"machine": dict(report.machine), "winner": report.winner.candidate.name, "rows": rows}
    sheet = io.StringIO()
    writer = csv.DictWriter(sheet, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows([{**row, "kept": " ".join(row["kept"])} for row in rows])
    texts = {TABLE: json.dumps(document, indent=1) + "\n", SHEET: sheet.getvalue()}
    for name, text in texts.items():
        write_whole(folder / name, text)
    write_whole(folder / PICTURE, draw(report))
    return tuple(folder / name for name in (*texts, PICTURE))


def to_rows(report: TuneReport) -> list[dict[str, Any]]:
    """A row for each candidate and batch size, best first; one without timings for a candidate that is out."""
    rows = []
    for record in report.records:
        common = {
            "candidate": record.candidate.name,
            "provider": record.provider,
            "size": record.size,
            "mean_cosine": None if record.loss is None else 1 - record.loss,
            "least_cosine": record.worst_cosine,
            "changed_class": record.drop,
            "kept": list(record.kept),
            "winner": record is report.winner,
            "obstacle": record.obstacle,
        }
        nothing = dict.fromkeys(COLUMNS)
        for index, timing in enumerate(record.timings):
            numbers = {name: getattr(timing, name) for name in COLUMNS if hasattr(timing, name)}
            rows.append({**nothing, **common, **numbers, "frontier": record in frontier(report, index)})
        if not record.timings:
            rows.append({**nothing, **common, "frontier": False})
    return rows


def frontier(report: TuneReport, index: int) -> list[Record]:
    """The records that no other is both faster and more accurate than, at one of the batch sizes; fastest first."""
    timed = [record for record in report.records if record.timings and record.loss is not None]
    best = list[Record]()
    for record in sorted(timed, key=lambda record: (-record.timings[index].times_faster, _loss(record))):
        if not best or _loss(record) < _loss(best[-1]):
            best.append(record)
    return best


def to_lines(report: TuneReport) -> list[list[str]]:
    """The table for people: a line for each candidate, the first batch size's latency and each one's speed."""
    sizes = report.spec.batch_sizes
    head = ["", "candidate", f"p50 ms, batch {sizes[0]}", *(f"faster, batch {size}" for size in sizes)]
    rows = [[*head, "mean cosine", "least", "MB", "memory", "kept"]]
    for record in report.records:
        name = [("*" if record is report.winner else ""), record.candidate.name]
        near = ["", ""] if record.loss is None or record.worst_cosine is None else [f"{1 - record.loss:.5f}", f"{record.worst_cosine:.4f}"]
        size = "" if record.size is None else f"{record.size / 1e6:.1f}"
        if record.timings:
            times = [f"{record.timings[0].p50_ms:.2f}", *(f"{timing.times_faster:.2f}x" for timing in record.timings)]
            memory = megabytes(record.timings[0].peak_memory)
        else:
            times, memory = [record.obstacle or "", *([""] * len(sizes))], ""
        rows.append([*name, *times, *near, size, memory, str(len(record.kept) or "")])
    return rows


def draw(report: TuneReport) -> bytes:
    """Latency against accuracy, a panel for each batch size, the frontier marked; a PNG.

    A latency is drawn as the default export's divided by how many times faster the candidate is, which holds where the machine was busy
    with something else in between.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = report.spec.batch_sizes
    timed = [record for record in report.records if record.timings and record.loss is not None]
    figure, panels = pyplot.subplots(1, len(sizes), figsize=(5.6 * len(sizes) + 2.2, 4.8), squeeze=False, layout="constrained")
    for index, (panel, size) in enumerate(zip(panels[0], sizes, strict=True)):
        places = {id(record): (_latency(report, record, index), _loss(record)) for record in timed}
        points = sorted(places[id(record)] for record in frontier(report, index))
        panel.plot(*zip(*points, strict=True), color=GREEN, linewidth=1.5, zorder=1)
        for number, record in enumerate(timed, 1):
            x, y = places[id(record)]
            won = record is report.winner
            panel.scatter(x, y, s=130 if won else 40, marker="*" if won else "o", color=COLOURS[record.candidate.target], zorder=2)
            panel.annotate(str(number), (x, y), xytext=(4, 5), textcoords="offset points", fontsize=8)
        panel.set_yscale("log")
        panel.set_ylim(LEAST_LOSS / 2, None)
        panel.margins(x=0.1, y=0.2)
        panel.set_xlabel(f"milliseconds an image, batch size {size}, {report.machine['threads']} threads")
        panel.grid(alpha=0.25)
    panels[0][0].set_ylabel("1 - mean cosine with PyTorch's float32")
    figure.legend(handles=_legend(timed, report), loc="outside right upper", fontsize=8, frameon=False)
    figure.suptitle(f"{report.spec.base.out.name} on {report.machine['processor']}; lower left is better", fontsize=11, x=0.01, ha="left")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    pyplot.close(figure)
    return picture.getvalue()


def _legend(timed: Sequence[Record], report: TuneReport) -> list[Any]:
    from matplotlib.lines import Line2D

    handles: list[Any] = []
    for number, record in enumerate(timed, 1):
        won = record is report.winner
        label = f"{number}  {record.candidate.name}{' (winner)' if won else ''}"
        handles.append(Line2D([], [], marker="*" if won else "o", linestyle="", color=COLOURS[record.candidate.target], label=label))
    return [*handles, Line2D([], [], color=GREEN, label="frontier: none is both faster and nearer")]


def _latency(report: TuneReport, record: Record, index: int) -> float:
    """Milliseconds an image at one of the batch sizes."""
    baseline = next(record for record in report.records if record.candidate == BASELINE)
    return baseline.timings[index].p50_ms / record.timings[index].times_faster / record.timings[index].batch_size


def _loss(record: Record) -> float:
    return max(record.loss or 0.0, LEAST_LOSS)
