"""Classify a folder of digits with the runtime alone, and draw a contact sheet: what an edge app would do.

Needs `pip install vit-deploy[cpu]` and nothing else; it fails if torch or onnx were loaded.
Truth is taken from the file names, DIGIT-NUMBER.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import vit_runtime as vit

CELL, PICTURE, COLUMNS, SHOWN = 104, 84, 10, 40
INK, GREY, GREEN, RED = "#1f2328", "#656d76", "#1a7f37", "#cf222e"


def main() -> None:
    """Write predictions.json and contact_sheet.png to the output folder; print the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--out", type=Path, default=Path())
    args = parser.parse_args()
    model = vit.load(args.model)
    paths = sorted(args.images.glob("*.png"), key=lambda path: int(path.stem.split("-")[1]))
    rows = []
    for path, prediction in zip(paths, model.predict(iter(paths), batch_size=32), strict=True):
        best = prediction.top(1)[0]
        rows.append({"image": str(path), "truth": path.stem.split("-")[0], "label": best.name, "probability": best.probability})
    heavy = sorted({"torch", "onnx", "onnxsim", "vit_models", "vit_exporter"} & set(sys.modules))
    if heavy:
        raise SystemExit(f"the runtime loaded {', '.join(heavy)}, which it must do without")
    right = sum(row["truth"] == row["label"] for row in rows)
    result = {"model": str(args.model), "provider": model.provider, "images": len(rows), "right": right, "accuracy": right / len(rows)}
    (args.out / "predictions.json").write_text(json.dumps({**result, "predictions": rows}, indent=1))
    contact_sheet(rows).save(args.out / "contact_sheet.png")
    print(f"{right} of {len(rows)} held-out digits right ({right / len(rows):.2%}) on {model.provider}, without torch")


def contact_sheet(rows: list[dict[str, object]]) -> Image.Image:
    """A sample at even steps, then every mistake: picture, prediction, probability, truth."""
    mistakes = [row for row in rows if row["truth"] != row["label"]]
    step = max(1, len(rows) // SHOWN)
    parts = [
        (f"Every {step}th of {len(rows)} held-out digits", rows[::step][:SHOWN]),
        (f"All {len(mistakes)} mistakes among {len(rows)}", mistakes),
    ]
    height = sum(44 + -(-len(part) // COLUMNS) * (CELL + 34) for _, part in parts) + 12
    sheet = Image.new("RGB", (COLUMNS * CELL + 24, height), "white")
    draw, top = ImageDraw.Draw(sheet), 12
    for title, part in parts:
        draw.text((12, top), title, fill=INK, font=ImageFont.load_default(20))
        top += 36
        for index, row in enumerate(part):
            left, line = 12 + index % COLUMNS * CELL, top + index // COLUMNS * (CELL + 34)
            with Image.open(str(row["image"])) as image:
                sheet.paste(image.convert("RGB").resize((PICTURE, PICTURE), Image.Resampling.NEAREST), (left, line))
            right = row["truth"] == row["label"]
            text = f"{row['label']}  {row['probability']:.1%}"
            draw.text((left, line + PICTURE + 2), text, fill=GREEN if right else RED, font=ImageFont.load_default(16))
            draw.text((left, line + PICTURE + 22), f"truth {row['truth']}", fill=GREY, font=ImageFont.load_default(14))
        top += -(-len(part) // COLUMNS) * (CELL + 34) + 8
    return sheet


if __name__ == "__main__":
    main()
