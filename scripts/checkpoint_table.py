"""Compare every reference checkpoint with the outputs of the implementation that made it, and write the table of docs/checkpoints.md.

Run: python scripts/checkpoint_table.py FOLDER [--write]
`reference_cases.py` describes the cases in FOLDER. The error of our float32 network is given as a multiple of the noise floor, the
distance between that network in float32 and in float64: about 1 means that float32 rounding explains all of the error.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from reference_cases import Row, cases, measure, rms
from transformers_models import MODELS, output_names, randomize

from vit_models import Options, inspect, load

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "checkpoints.md"
BEGIN, END = "<!-- table: made by scripts/checkpoint_table.py -->", "<!-- end of the table -->"


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = ["| case | read as | size | largest error | in noise floors |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        height, width = row.spec.config.img_size
        size = f"{height} x {width}" + (
            f" (stored for {row.spec.trained_size[0]})" if row.spec.trained_size != row.spec.config.img_size else ""
        )
        lines.append(f"| {row.case.name} | {row.spec.title} | {size} | {row.worst:.1e} | {row.floors:.2f} |")
    return "\n".join(lines)


def shapes() -> Iterator[tuple[str, tuple[int, int], float, float]]:
    """Models of transformers in shapes that no case has: name, image size, largest error, largest error in noise floors."""
    for name, reference in MODELS.items():
        source = reference.model().eval()
        randomize(source, seed=len(name))
        options = Options(img_size=reference.size if reference.resampled else None)
        with tempfile.TemporaryDirectory() as folder:
            source.save_pretrained(folder)
            outputs = output_names(inspect(folder, options).config.num_classes)
            model, spec = load(folder, options, outputs=outputs)
            rows, columns = reference.size
            size = (2, spec.config.in_chans, rows + reference.cut, columns + reference.cut)
            images = torch.randn(size, generator=torch.Generator().manual_seed(1))
            pixels = images[:, :, :rows, :columns]
            with torch.no_grad():
                expected = {output: value.numpy() for output, value in reference.outputs(source.double(), images.double()).items()}
                ours = dict(zip(outputs, (value.numpy() for value in model(pixels)), strict=True))
                exact = dict(zip(outputs, (value.numpy() for value in model.double()(pixels.double())), strict=True))
        error = max(float(np.abs(ours[output] - expected[output]).max()) for output in outputs)
        floors = max(rms(ours[output] - expected[output]) / rms(ours[output] - exact[output]) for output in outputs)
        yield name, reference.size, error, floors


def shape_table(rows: list[tuple[str, tuple[int, int], float, float]]) -> str:
    """The rows as Markdown."""
    lines = ["| model of transformers | size | largest error | in noise floors |", "| --- | --- | --- | --- |"]
    lines += [f"| {name} | {height} x {width} | {error:.1e} | {floors:.2f} |" for name, (height, width), error, floors in rows]
    return "\n".join(lines)


def main(root: Path, write: bool) -> None:
    """Print the tables, and with `write` put them into the document, too."""
    torch.set_num_threads(1)  # the order of sums decides the last bit
    rows, more = [measure(case) for case in cases(root)], list(shapes())
    text = f"{table(rows)}\n\nOther shapes, built with transformers by the tests, every parameter random:\n\n{shape_table(more)}"
    print(text)
    worst, floors = max(row.worst for row in rows), max(row.floors for row in rows)
    print(f"{len(rows)} checkpoints; largest error {worst:.1e}, at most {floors:.2f} noise floors")
    print(
        f"{len(more)} other shapes; largest error {max(row[2] for row in more):.1e}, at most {max(row[3] for row in more):.2f} noise floors"
    )
    if write:
        before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        DOCUMENT.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--write" in sys.argv)
