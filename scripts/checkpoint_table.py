"""Hold every checkpoint fixture against the outputs of the implementation that made it, and write docs/checkpoints.md's table.

A fixture is a folder with a checkpoint, `case.json` (what it is) and `case.npz` (inputs, and outputs computed in float64 by the
reference implementation). Run: python scripts/checkpoint_table.py FOLDER [--write]

The error of our float32 network is given in units of the noise floor, which is that same network's distance from its own float64
self: about 1 means that nothing but float32 rounding stands between us and the reference.
"""

from __future__ import annotations

import json
import runpy
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vit_models import Options, Spec, ViT, inspect, load

TOLERANCE = 5e-5  # absolute: a GELU of the wrong kind shows at 2e-4, a wrong epsilon at 1e-3
ROOT = Path(__file__).resolve().parents[1]
CARRIED = ROOT / "tests" / "data" / "checkpoints"
DOCUMENT = ROOT / "docs" / "checkpoints.md"
BEGIN, END = "<!-- table: made by scripts/checkpoint_table.py -->", "<!-- end of the table -->"
OUTPUTS = {"logits": "logits", "pooled": "embedding", "tokens": "tokens", "attention_last": "attention"}
# What a bare state dict cannot tell, by the name that its own library gives it.
UNTOLD = {"torchvision": ("num_heads",), "dino": ("num_heads",), "dinov2": ("num_heads",), "mae": ("num_heads",)}
AMBIGUOUS = {"dino": "dino"}  # at another size than the stored one timm would resample the same names another way


@dataclass(frozen=True)
class Case:
    """One checkpoint of a fixture, how to ask for it, and which of the stored outputs belong to it."""

    name: str
    path: Path
    folder: Path
    options: Options
    suffix: str = ""  # of the stored outputs' names


@dataclass(frozen=True)
class Row:
    """What was measured: the largest absolute error of each output, and the worst error in noise floors."""

    case: Case
    spec: Spec
    errors: dict[str, float]
    floors: float

    @property
    def worst(self) -> float:
        """The largest absolute error of all outputs."""
        return max(self.errors.values())


def cases(root: Path) -> Iterator[Case]:
    """Every checkpoint under `root`, in alphabetical order."""
    for folder in sorted(path.parent for path in root.glob("*/case.json")):
        facts = json.loads((folder / "case.json").read_text())
        size = _size(facts)
        library = folder.name.partition("__")[0]
        told = {name: str(facts["arguments"][name]) for name in UNTOLD.get(library, ())}
        if facts.get("variants") and len(facts["variants"]) > 1:
            for name, variant in facts["variants"].items():
                yield Case(
                    f"{folder.name}/{name}", folder / name, folder, Options(img_size=size), "_ema" if variant["weights"] == "ema" else ""
                )
                if "ema_key" in variant:
                    yield Case(f"{folder.name}/{name} (ema)", folder / name, folder, Options(img_size=size, weights="ema"), "_ema")
        else:
            weights = [path for path in folder.iterdir() if path.suffix != ".json" and path.name != "case.npz"]
            options = Options(img_size=size, model_args=told, format=AMBIGUOUS.get(library))
            yield Case(folder.name, weights[0] if len(weights) == 1 else folder, folder, options)


def measure(case: Case) -> Row:
    """Load the checkpoint and compare each output that is stored for it. Raises: CheckpointError."""
    with np.load(case.folder / "case.npz") as stored:
        reference = {name: stored[name] for name in stored.files}
    model, spec = load(case.path, case.options)
    wanted = {
        ours: _reference(reference, theirs + case.suffix, model) for theirs, ours in OUTPUTS.items() if theirs + case.suffix in reference
    }
    if not spec.config.class_token:
        wanted.pop("attention", None)
    single = ViT(spec.config, list(wanted))
    single.load_state_dict(model.state_dict())
    pixels = torch.from_numpy(reference["pixel_values"])
    with torch.no_grad():
        ours = dict(zip(single.outputs, single.eval()(pixels), strict=True))
        exact = dict(zip(single.outputs, single.double()(pixels.double()), strict=True))
    errors = {name: float(np.abs(ours[name].numpy() - expected).max()) for name, expected in wanted.items()}
    floors = max(_rms(ours[name].numpy() - expected) / _rms((ours[name] - exact[name]).numpy()) for name, expected in wanted.items())
    return Row(case, spec, errors, floors)


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


def _size(facts: dict[str, Any]) -> tuple[int, int] | None:
    size = facts.get("resample", {}).get("run_at") or facts["image_size_input"]
    return (int(size[0]), int(size[1])) if size else None


def _reference(stored: dict[str, Any], name: str, model: ViT) -> Any:
    values = stored[name].astype(np.float64)
    return values[:, :, 0, model.config.num_prefix :] if name == "attention_last" else values


def _rms(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(values.astype(np.float64)))))


def shapes() -> Iterator[tuple[str, tuple[int, int], float, float]]:
    """Models of transformers in shapes that no fixture has, from its reader's tests: name, image size, largest error, noise floors."""
    tests = runpy.run_path(str(ROOT / "tests" / "models" / "checkpoints" / "test_hugging_face.py"))
    for name, case in tests["CASES"].items():
        source = case.model().eval()
        tests["randomise"](source, seed=len(name))
        options = Options(img_size=case.size if case.resampled else None)
        with tempfile.TemporaryDirectory() as folder:
            source.save_pretrained(folder)
            outputs = tests["_outputs"](inspect(folder, options).config.num_classes)
            model, spec = load(folder, options, outputs=outputs)
            rows, columns = case.size
            size = (2, spec.config.in_chans, rows + case.cut, columns + case.cut)
            images = torch.randn(size, generator=torch.Generator().manual_seed(1))
            pixels = images[:, :, :rows, :columns]
            with torch.no_grad():
                expected = {output: value.numpy() for output, value in case.outputs(source.double(), images.double()).items()}
                ours = dict(zip(outputs, (value.numpy() for value in model(pixels)), strict=True))
                exact = dict(zip(outputs, (value.numpy() for value in model.double()(pixels.double())), strict=True))
        error = max(float(np.abs(ours[output] - expected[output]).max()) for output in outputs)
        floors = max(_rms(ours[output] - expected[output]) / _rms(ours[output] - exact[output]) for output in outputs)
        yield name, case.size, error, floors


def shape_table(rows: list[tuple[str, tuple[int, int], float, float]]) -> str:
    """The rows as Markdown."""
    lines = ["| model of transformers | size | largest error | in noise floors |", "| --- | --- | --- | --- |"]
    lines += [f"| {name} | {height} x {width} | {error:.1e} | {floors:.2f} |" for name, (height, width), error, floors in rows]
    return "\n".join(lines)


def main(root: Path, write: bool) -> None:
    """Print the tables, or put them into the document."""
    torch.set_num_threads(1)  # the sums' order decides the last bit
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
