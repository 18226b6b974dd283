"""A parity check as one page of HTML that needs nothing else: the verdict, every figure, the images that are furthest off."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

from vit_runtime.manifest import Manifest
from vit_runtime.model import Model, Prediction
from vit_runtime.parity.judging import Array, Report, scale_of
from vit_runtime.parity.locate import Location
from vit_runtime.parity.pairs import run_in_batches
from vit_runtime.parity.record import golden_pixels, reduce_outputs
from vit_runtime.parity.reporting import Result, measured, rows

WORST = 3  # images that are shown of each file and provider
TOP = 5
BINS = 24

STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --paper: #fff; --line: #d1d9e0; --soft: #59636e }
:root { --good: #1a7f37; --bad: #cf222e; --bar: #0969da }
@media (prefers-color-scheme: dark) {
  :root { --text: #f0f6fc; --paper: #0d1117; --line: #3d444d; --soft: #9198a1 }
  :root { --good: #3fb950; --bad: #f85149; --bar: #4493f8 }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--paper) }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1, h2 { line-height: 1.2 }
h2 { margin-top: 2.5rem; overflow-wrap: anywhere }
.good { color: var(--good) }
.bad { color: var(--bad) }
.soft { color: var(--soft) }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem }
th, td { border-bottom: 1px solid var(--line); padding: 0.25rem 0.75rem; text-align: right }
th:first-child, td:first-child { text-align: left }
td { white-space: nowrap }
td:last-child { white-space: normal }
figure { display: inline-block; margin: 0 1.5rem 1rem 0; vertical-align: top; width: 10rem }
figcaption { font-size: 0.85rem }
img { image-rendering: pixelated; width: 10rem; border: 1px solid var(--line) }
svg text { fill: currentColor; font-size: 11px }
svg .bar { fill: var(--bar) }
svg .mark { fill: var(--bad) }
"""


@dataclass(frozen=True)
class Shown:
    """An image, PNG, how far off its outputs are, and the classes that are likeliest: as they should be and as they are."""

    png: bytes
    error: float
    expected: tuple[tuple[str, float], ...]
    actual: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Portrait:
    """A file on a provider: each golden image's error, relative to the outputs' root mean square, and the images that are furthest off."""

    label: str
    errors: tuple[float, ...]
    worst: tuple[Shown, ...]


def portrait(model: Model) -> Portrait:
    """Run the golden images one by one and hold each against the record. Raises: ModelError if the file has none."""
    manifest, golden = model.manifest, model.manifest.goldens[0]
    images = golden_pixels(manifest, golden)
    whole = run_in_batches(model, images, 1)
    outputs = reduce_outputs(whole, golden)
    errors = np.max([_by_image(golden.expected[name], outputs[name]) for name in golden.expected], axis=0)
    order = np.argsort(-np.nan_to_num(errors, nan=np.inf, posinf=np.inf), kind="stable")[:WORST]
    scores = manifest.class_scores
    shown = [
        Shown(
            _png(images[place]),
            float(errors[place]),
            _top(golden.expected[scores][place], manifest) if scores else (),
            _top(whole[scores][place], manifest) if scores else (),
        )
        for place in order
    ]
    return Portrait(f"{model.path} on {model.provider}", tuple(map(float, errors)), tuple(shown))


def page(results: Sequence[Result], portraits: Sequence[Portrait], located: Sequence[tuple[str, Location]]) -> str:
    """The whole page. What files and labels are called is text in it, never markup."""
    passed = all(result.passed for result in results)
    parts = [f"<h1>vit-parity: {_verdict(passed)}</h1>", _overview(results)]
    parts += [_growth(compared, location) for compared, location in located]
    parts += [_report(result.path, report) for result in results for report in result.reports]
    parts += [_portrait(each) for each in portraits]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>vit-parity</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _verdict(passed: bool) -> str:
    return '<span class="good">passed</span>' if passed else '<span class="bad">FAILED</span>'


def _overview(results: Sequence[Result]) -> str:
    lines = [["file", "on", "verdict", "checks", "worst"]]
    for result in results:
        for report in result.reports:
            worst, failed = measured(report.worst), sum(not check.passed for check in report.checks)
            counts = f"{len(report.checks)}, {failed} failed" if failed else str(len(report.checks))
            lines.append([escape(result.path), escape(report.checks[0].provider), _verdict(report.passed), counts, escape(worst)])
    return _table(lines)


def _report(path: str, report: Report) -> str:
    cells = [[_verdict(passed=False) if cell == "FAILED" else escape(cell) for cell in row] for row in rows(report)]
    return f"<h2>{escape(path)} on {escape(report.checks[0].provider)}: {_verdict(report.passed)}</h2>{_table(cells)}"


def _growth(compared: str, location: Location) -> str:
    """The difference along the network, a bar for each place, on a scale of powers of ten from a float32's rounding to one."""
    title = f"<h2>{escape(compared)}: where they part</h2>"
    if location.parted is None:
        return f"{title}<p>No part of the network differs by more than float32 rounds.</p>"
    first = f", first seen at <b>{escape(location.first.value)}</b> ({escape(location.first.op)})" if location.first else ""
    bars = []
    for row, tap in enumerate(location.along):
        error = tap.error if np.isfinite(tap.error) else 1e3
        width, kind = 60.0 * float(np.clip(np.log10(max(error, 1e-8)) + 8, 0, 9)), "mark" if tap is location.parted else "bar"
        bars.append(
            f'<text x="200" y="{row * 20 + 14}" text-anchor="end">{escape(tap.value)}</text>'
            f'<rect class="{kind}" x="210" y="{row * 20 + 3}" width="{max(width, 1):.0f}" height="14"/>'
            f'<text x="{216 + max(width, 1):.0f}" y="{row * 20 + 14}">{tap.error:.1e}</text>'
        )
    drawing = f'<svg role="img" aria-label="difference along the network" width="840" height="{20 * len(bars)}">{"".join(bars)}</svg>'
    return f'{title}<p>They part in <b>{escape(location.place or "")}</b>{first}.</p><div class="wide">{drawing}</div>'


def _portrait(each: Portrait) -> str:
    figures = []
    for shown in each.worst:
        source = base64.b64encode(shown.png).decode()
        sides = [f"{title}: {_classes(classes)}" for title, classes in (("expected", shown.expected), ("got", shown.actual)) if classes]
        caption = "<br>".join([f"error {shown.error:.2e}", *sides])
        figures.append(
            f'<figure><img alt="a golden image" src="data:image/png;base64,{source}"><figcaption>{caption}</figcaption></figure>'
        )
    title = f"<h2>{escape(each.label)}: golden images, the furthest off first</h2>"
    told = f'<p class="soft">Errors of all {len(each.errors)} golden images, as part of the outputs\' size:</p>'
    return f"{title}{''.join(figures)}{told}{_histogram(each.errors)}"


def _classes(classes: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{escape(name)} {probability:.1%}" for name, probability in classes)


def _histogram(errors: Sequence[float]) -> str:
    finite = np.log10(np.maximum([error for error in errors if np.isfinite(error)] or [1.0], 1e-12))
    low, high = np.floor(finite.min()), np.ceil(finite.max() + 1e-9)
    counts, _ = np.histogram(finite, BINS, (low, max(high, low + 1)))
    tallest = counts.max()
    bars = [
        f'<rect class="bar" x="{place * 20}" y="{80 - 70 * count / tallest:.0f}" width="18" height="{70 * count / tallest:.0f}"/>'
        for place, count in enumerate(counts)
    ]
    ends = f'<text x="0" y="96">1e{low:.0f}</text><text x="{BINS * 20}" y="96" text-anchor="end">1e{max(high, low + 1):.0f}</text>'
    size = f'width="{BINS * 20}" height="100"'
    return f'<div class="wide"><svg role="img" aria-label="histogram of errors" {size}>{"".join(bars)}{ends}</svg></div>'


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{cell}</th>" for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows[1:])
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _by_image(expected: Array, actual: Array) -> npt.NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        square = np.square(actual.astype(np.float64) - expected).reshape(len(expected), -1)
    return np.asarray(np.sqrt(square.mean(axis=1)) / scale_of(expected))


def _top(logits: Array, manifest: Manifest) -> tuple[tuple[str, float], ...]:
    if not np.isfinite(logits).all():
        return (("not a number", 1.0),)
    return tuple((label.name, label.probability) for label in Prediction(logits, manifest.labels).top(TOP))


def _png(image: npt.NDArray[np.uint8]) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(stream, "PNG")
    return stream.getvalue()
