"""What the precisions of `--target tensorrt` and `--target cuda` cost, simulated on the CPU: trained networks, and ViT-B/16.

The digits network classifies held-out digits, its scales and ranges measured on digits of the training set. DINOv2 ViT-S/14 looks at a
random crop of each of 22 photographs, calibrated with other crops of them, as somebody does who has images of the kind that will come, and
is judged by the cosine of the class token. ViT-B/16 has random weights and looks at generated images. All is held against float64 PyTorch.
Every value is rounded to what the file has it in; no GPU took part.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import machine, markdown
from int8_accuracy import OTHERS, random_crops
from PIL import Image

from vit_exporter import ExportSpec, Source, digits_source, export, random_source
from vit_exporter.precision.simulation import Simulation
from vit_exporter.reference import float64_outputs, in_chunks
from vit_exporter.source import Changes, checkpoint_source
from vit_exporter.targets import TARGETS
from vit_runtime.accuracy import cosines
from vit_runtime.golden import golden_images
from vit_runtime.manifest import read_manifest
from vit_runtime.preprocess import pixel_values

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    "digits": [("tensorrt", "fp16"), ("cuda", "fp16"), ("tensorrt", "bf16"), ("cuda", "bf16"), ("tensorrt", "int8"), ("tensorrt", "fp8")],
    "DINOv2 ViT-S/14": [("tensorrt", "fp16"), ("tensorrt", "bf16"), ("tensorrt", "int8"), ("tensorrt", "fp8")],
    "ViT-B/16 random": [("tensorrt", "fp16"), ("tensorrt", "bf16")],
}
CALIBRATED, JUDGED = 64, 4  # digits that calibrate, of 4,000 that are sorted; generated images that judge ViT-B/16
HELD_OUT, BATCH = 4, 8  # every fourth of the held-out digits; images that are run together

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Network:
    """A network, the images that judge it, the folder that calibrates it, and what the judging says beside the cosine."""

    name: str
    output: str
    make: Callable[[], Source]
    images: list[Image.Image]
    calibrate: Path
    measure: Callable[[Array, Array], dict[str, Any]] | None


def main() -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/float16_simulation.json"))
    parser.add_argument("--files", type=Path, default=Path("build/float16_simulation"))
    parser.add_argument("--dinov2", type=Path, default=Path("build/dinov2"), help="what examples/photographs.py wrote, or will write")
    args = parser.parse_args()
    args.files.mkdir(parents=True, exist_ok=True)
    rows = list[dict[str, Any]]()
    for network in (digits(args.files), dinov2(args.files, args.dinov2), vit_b(args.files)):
        source = network.make()
        source.fill()
        expected = in_chunks(float64_outputs, source.model, pixel_values(network.images, source.preprocessing))[network.output]
        del source
        for target, precision in FILES[network.name]:
            rows.append(
                {
                    "network": network.name,
                    "target": target,
                    "precision": precision,
                    **measured(network, target, precision, expected, args.files),
                }
            )
            print(rows[-1], flush=True)
        document = {**machine(["vit-deploy", "torch", "onnxruntime", "onnx", "numpy"]), "rows": rows}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(document, indent=1) + "\n")
    print(table(document))


def measured(network: Network, target: str, precision: str, expected: Array, files: Path) -> dict[str, Any]:
    """The numbers of one file."""
    path = files / f"{network.name.split()[0].replace('/', '')}-{target}-{precision}.onnx"
    calibrate = network.calibrate if TARGETS[target].measures(precision) else None
    spec = ExportSpec(path, target=target, precision=precision, calibrate=calibrate, verify=False, force=True)
    report = export(network.make, spec)
    session = Simulation(path)
    pixels = pixel_values(network.images, read_manifest(path)[0].preprocessing)
    batches = [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
    found = np.concatenate([session.run([network.output], {"pixel_values": batch})[0] for batch in batches])
    near = cosines(expected, found)
    return {
        "images": len(near),
        "cosine_min": round(float(near.min()), 7),
        "cosine_mean": round(float(near.mean()), 8),
        "islands": len(report.manifest.build["islands"]),
        "size_mb": round(report.size / 1e6, 1),
        **(network.measure(expected, found) if network.measure is not None else {}),
    }


def digits(files: Path) -> Network:
    """The embedded network and the digits that it was not trained on."""
    folder, heldout = files / "digits-train", files / "digits-heldout"
    for out, split, step in ((folder, "train", 4000 // CALIBRATED), (heldout, "heldout", HELD_OUT)):
        command = [sys.executable, str(ROOT / "scripts" / "digits_data.py"), str(out), "--split", split, "--every", str(step)]
        subprocess.run(command, check=True)
    paths = sorted(heldout.glob("*.png"))  # DIGIT-NUMBER.png
    labels = np.array([int(path.stem.split("-")[0]) for path in paths])

    def measure(expected: Array, found: Array) -> dict[str, Any]:
        same, right = (int((found.argmax(axis=1) == wanted).sum()) for wanted in (expected.argmax(axis=1), labels))
        return {"same_class": same, "right": right}

    return Network("digits", "logits", digits_source, [Image.open(path) for path in paths], folder, measure)


def dinov2(files: Path, found_in: Path) -> Network:
    """DINOv2 and crops of photographs."""
    checkpoint = found_in / "checkpoint" / "vit_s_focus.onnx"
    if not checkpoint.exists():
        subprocess.run([sys.executable, str(ROOT / "examples" / "photographs.py"), "--out", str(found_in)], check=True)
    photos = {path.stem: Image.open(path) for path in sorted((found_in / "photos").glob("*.png"))}
    folder = files / "crops"
    folder.mkdir(exist_ok=True)
    for seed, (name, photo) in enumerate(photos.items()):
        crop = random_crops(photo, OTHERS + seed)[0]
        crop.save(folder / f"{name}.png")
    asked = [random_crops(photo, seed)[0] for seed, photo in enumerate(photos.values())]
    make = partial(checkpoint_source, checkpoint, Changes(img_size=(224, 224)), ["embedding"], None)
    return Network("DINOv2 ViT-S/14", "embedding", make, asked, folder, None)


def vit_b(files: Path) -> Network:
    """ViT-B/16 with random weights and generated images."""
    folder = files / "generated"
    folder.mkdir(exist_ok=True)
    for number, pixels in enumerate(golden_images(1, 4, 224, 224)):
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    images = [Image.fromarray(pixels) for pixels in golden_images(2, JUDGED, 224, 224)]

    def measure(expected: Array, found: Array) -> dict[str, Any]:
        return {"same_class": int((found.argmax(axis=1) == expected.argmax(axis=1)).sum())}

    return Network("ViT-B/16 random", "logits", partial(random_source, "ViT-B/16", 0), images, folder, measure)


def table(document: dict[str, Any]) -> str:
    """For people."""
    lines = [["network", "target, precision", "cosine: least", "mean", "same class as float64", "nodes kept in float32", "MB"]]
    for each in document["rows"]:
        told = f"{each['same_class']} of {each['images']}" if "same_class" in each else f"no classes, {each['images']} images"
        told += f", right {each['right']}" if "right" in each else ""
        numbers = [f"{each['cosine_min']:.6f}", f"{each['cosine_mean']:.7f}", told, str(each["islands"]), str(each["size_mb"])]
        lines.append([each["network"], f"{each['target']} {each['precision']}", *numbers])
    return f"{markdown(lines)}\n\n{document['processor']}, {document['cores']} cores, {document['date']}, {document['versions']}"


if __name__ == "__main__":
    main()
