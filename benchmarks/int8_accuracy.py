"""What reduced precision costs a trained network: DINOv2 ViT-S/14 on random crops of 22 photographs.

Judged are the cosine of the class token with PyTorch's float32, crop by crop, and retrieval: of which photograph is a crop, by the nearest
of six views of each. Files that are calibrated are judged twice: calibrated with other crops of the same photographs, as somebody does who
has images of the kind that will come; and with crops of one half of the photographs, judged on the other half, as if anything may come.
Beside ours stands what others make of the float32 file: NNCF's int8 for transformers by its defaults, and quantize_dynamic.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import machine, markdown
from PIL import Image

from vit_runtime.accuracy import cosines
from vit_runtime.manifest import read_manifest
from vit_runtime.openvino_engine import FLOAT32, Arithmetic
from vit_runtime.preprocess import pixel_values
from vit_runtime.providers import create_session

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
CROPS = 6  # of each photograph, to judge on, and as many others to calibrate with
OTHERS = 1000  # the first seed of those
VIEWS = (
    (0, 0, 1, 1),
    (0, 0, 0.6, 0.6),
    (0.4, 0, 1, 0.6),
    (0, 0.4, 0.6, 1),
    (0.4, 0.4, 1, 1),
    (0.2, 0.2, 0.8, 0.8),
)  # as parts of its sides
OUTPUT = "embedding"

Array = npt.NDArray[Any]
Crops = dict[str, list[Image.Image]]


@dataclass(frozen=True)
class Variant:
    """A line of the table: options of vit-export, or a peer's recipe."""

    name: str
    options: tuple[str, ...] = ()
    peer: str | None = None

    @property
    def calibrated(self) -> bool:
        """Whether what it is calibrated with makes a difference."""
        return self.peer == "nncf" or "int8-static" in self.options


VARIANTS = (
    Variant("the float32 file, quantize_dynamic, onnxruntime", peer="dynamic"),
    Variant("the float32 file, NNCF int8 by default, OpenVINO bf16", peer="nncf"),
    Variant("ours, OpenVINO bf16", ("--target", "openvino", "--precision", "bf16")),
    Variant("ours, onnxruntime int8", ("--target", "cpu", "--precision", "int8")),
    Variant("ours, OpenVINO int8", ("--target", "openvino", "--precision", "int8")),
    Variant("ours, OpenVINO int8-static", ("--target", "openvino", "--precision", "int8-static")),
)


def main() -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/int8_accuracy.json"))
    parser.add_argument("--files", type=Path, default=Path("build/dinov2"))
    args = parser.parse_args()
    subprocess.run([sys.executable, str(ROOT / "examples" / "photographs.py"), "--out", str(args.files)], check=True)
    photos: dict[str, Image.Image] = {path.stem: Image.open(path) for path in sorted((args.files / "photos").glob("*.png"))}
    crops, views = {name: random_crops(photo, seed) for seed, (name, photo) in enumerate(photos.items())}, gallery(photos)
    halves = [list(photos)[start::2] for start in range(2)]
    for folder, names in (("all", list(photos)), ("half-0", halves[0]), ("half-1", halves[1])):
        (args.files / folder).mkdir(exist_ok=True)
        for seed, name in enumerate(photos):
            for index, crop in enumerate(random_crops(photos[name], OTHERS + seed) if name in names else ()):
                crop.save(args.files / folder / f"{name}-{index}.png")
    exact = export(args.files, "fp32", ("--target", "portable"))
    rows = list[dict[str, Any]]()
    for variant in (Variant("float32"), *VARIANTS):
        same = make(variant, args.files, "all")
        measured = {"same": judge(variant, [(same, list(photos))], crops, views, exact)}
        if variant.calibrated:
            others = [(make(variant, args.files, f"half-{1 - number}"), half) for number, half in enumerate(halves)]
            measured["others"] = judge(variant, others, crops, views, exact)
        rows.append({"name": variant.name, "size_mb": round(same.stat().st_size / 1e6, 1), **measured})
        print(rows[-1], flush=True)
        write(args.out, photos, rows)
    print(table(write(args.out, photos, rows)))


def write(out: Path, photos: dict[str, Image.Image], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is measured so far."""
    packages = ["vit-deploy", "torch", "onnxruntime", "openvino", "nncf", "numpy", "pillow"]
    document = {**machine(packages), "photographs": len(photos), "crops": CROPS * len(photos), "rows": rows}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")
    return document


def random_crops(photo: Image.Image, seed: int) -> list[Image.Image]:
    """Squares of half to all of the shorter side, anywhere."""
    draw, made = np.random.default_rng(seed), []
    for _ in range(CROPS):
        side = draw.uniform(0.5, 1.0) * min(photo.size)
        left, top = draw.uniform(0, photo.width - side), draw.uniform(0, photo.height - side)
        made.append(photo.crop((round(left), round(top), round(left + side), round(top + side))))
    return made


def gallery(photos: dict[str, Image.Image]) -> Crops:
    """The views that stand for each photograph."""

    def view(photo: Image.Image, x0: float, y0: float, x1: float, y1: float) -> Image.Image:
        return photo.crop((round(x0 * photo.width), round(y0 * photo.height), round(x1 * photo.width), round(y1 * photo.height)))

    return {name: [view(photo, *box) for box in VIEWS] for name, photo in photos.items()}


def make(variant: Variant, files: Path, folder: str) -> Path:
    """The variant's file, calibrated with the images of a folder where it is calibrated at all."""
    name = "-".join([*variant.name.replace(",", "").split(), *([folder] if variant.calibrated else [])])
    original = export(files, "fp32", ("--target", "portable"))
    if variant.peer is None and variant.options:
        return export(files, name, (*variant.options, *(("--calibrate", str(files / folder)) if variant.calibrated else ())))
    path = files / f"{name}.onnx" if variant.peer else original
    if not path.exists():
        if variant.peer == "dynamic":
            from onnxruntime.quantization import quantize_dynamic

            quantize_dynamic(original, path)
        else:
            import nncf
            import onnx

            images = [Image.open(file) for file in sorted((files / folder).glob("*.png"))]
            pixels = pixel_values(images, read_manifest(original)[0].preprocessing)
            data = nncf.Dataset([{"pixel_values": image[None]} for image in pixels])
            onnx.save(nncf.quantize(onnx.load(original), data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(pixels)), path)
    return path


def export(files: Path, name: str, options: Sequence[str]) -> Path:
    """What vit-export makes of the network."""
    path = files / f"{name}.onnx"
    if not path.exists():
        command = [str(BIN / "vit-export"), "--checkpoint", str(files / "checkpoint" / "vit_s_focus.onnx"), "--img-size", "224"]
        print(f"$ vit-export {' '.join(options)}", flush=True)
        subprocess.run([*command, "--outputs", OUTPUT, *options, "--out", str(path), "-q"], check=True)
    return path


def judge(variant: Variant, files: list[tuple[Path, list[str]]], crops: Crops, views: Crops, exact: Path) -> dict[str, Any]:
    """The numbers of files, each on the crops of its photographs."""
    near, found = list[float](), 0
    for path, names in files:
        asked = [crop for name in names for crop in crops[name]]
        shown = [view for name in views for view in views[name]]
        values = embed(path, exact, variant, [*asked, *shown])
        near += list(cosines(embed(exact, exact, Variant("float32"), asked), values[: len(asked)]))
        unit = values / np.linalg.norm(values, axis=1, keepdims=True)
        scores = (unit[: len(asked)] @ unit[len(asked) :].T).reshape(len(asked), len(views), len(VIEWS)).max(axis=2)
        owners = [list(views).index(name) for name in names for _ in range(CROPS)]
        found += int((scores.argmax(axis=1) == owners).sum())
    return {
        "cosine_min": round(float(min(near)), 5),
        "cosine_median": round(float(np.median(near)), 6),
        "cosine_mean": round(float(np.mean(near)), 6),
        "found": found,
        "asked": len(near),
    }


def embed(path: Path, exact: Path, variant: Variant, images: list[Image.Image]) -> Array:
    """The class token of each image, (images, D), as the file's own preprocessing, or that of the float32 file, wants them."""
    manifest = read_manifest(path if variant.peer is None else exact)[0]
    provider, arithmetic = manifest.execution.provider, manifest.execution.arithmetic
    if variant.peer is not None:
        provider, arithmetic = ("openvino", Arithmetic(bf16=True)) if variant.peer == "nncf" else ("cpu", FLOAT32)
    session, _ = create_session(path, provider, arithmetic=arithmetic)
    pixels = pixel_values(images, manifest.preprocessing)
    return np.concatenate([session.run([OUTPUT], {"pixel_values": image[None]})[0] for image in pixels])


def table(document: dict[str, Any]) -> str:
    """For people."""
    lines = [
        ["file", "cosine: least", "median", "mean", "photograph found", "MB", "on other photographs: least", "median", "mean", "found"]
    ]
    for each in document["rows"]:
        same, others = (_numbers(each.get(kind)) for kind in ("same", "others"))
        lines.append([each["name"], *same, str(each["size_mb"]), *others])
    facts = f"{document['processor']}, {document['cores']} cores, {document['date']}, {document['versions']}"
    return f"{markdown(lines)}\n\n{document['photographs']} photographs, {document['crops']} crops; {facts}"


def _numbers(measured: dict[str, Any] | None) -> list[str]:
    if measured is None:
        return [""] * 4
    cosines = [f"{measured[f'cosine_{kind}']:.{digits}f}" for kind, digits in (("min", 4), ("median", 5), ("mean", 5))]
    return [*cosines, f"{measured['found']} of {measured['asked']}"]


if __name__ == "__main__":
    main()
