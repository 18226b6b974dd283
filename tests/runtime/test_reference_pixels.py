"""The pixels of the sources' own preprocessing, on photographs: transformers' slow processors, timm's and torchvision's eval steps.

transformers itself is the reference for its processors. The other references are written here with Pillow alone, step by step: resize,
center crop, rescale to [0, 1], normalize. The tests compare the network's input, in gray levels. A limit of one level would hide a crop
that is one pixel off in an even part of an image, so all are limited to float32's rounding, except DINOv3, whose source does not round
after resizing.
"""

import copy
import importlib
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from vit_models.checkpoints.preprocessing import from_hugging_face, from_open_clip, from_timm, recipe, top_left
from vit_runtime.images import find_images, open_rgb
from vit_runtime.preprocess import Preprocessing, ShortestEdgeResize, preprocess, resize_and_crop

Floats = npt.NDArray[np.floating[Any]]
Size = tuple[int, int]
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
CLIP = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
FLOAT32 = 1e-4  # gray levels: inputs of up to 2.7 carry 2^-23, rounded after each of three steps, times 255 * std of at most 0.5


def whole_photographs() -> list[Image.Image]:
    """scikit-learn's two photographs of 640 x 427 pixels."""
    return [Image.fromarray(pixels) for pixels in importlib.import_module("sklearn.datasets").load_sample_images().images]


@pytest.fixture(scope="module", params=["small", pytest.param("whole", marks=pytest.mark.full)])
def photographs(request: pytest.FixtureRequest) -> list[Image.Image]:
    """Photographs, and parts of them: wide, tall, odd, square, narrow, and smaller than the network's input."""
    temple, flower = whole_photographs()
    cuts = [(0, 0, 301, 225), (120, 40, 347, 426), (10, 10, 411, 411), (300, 5, 341, 405), (200, 200, 231, 223), (300, 200, 305, 201)]
    if request.param == "small":
        temple, flower = temple.crop((240, 100, 400, 207)), flower.crop((240, 100, 400, 207))
        cuts = [(0, 0, 75, 57), (30, 10, 87, 106), (10, 3, 111, 104), (60, 2, 71, 102), (50, 50, 81, 73), (80, 50, 85, 51)]
    return [temple, flower, flower.transpose(Image.Transpose.ROTATE_90), *(temple.crop(box) for box in cuts)]


def check(document: dict[str, Any], reference: Callable[[Image.Image], Floats], pictures: list[Image.Image], limit: float) -> None:
    spec = Preprocessing.from_dict(document)
    for picture in pictures:
        ours, theirs = preprocess(picture, spec), reference(picture)
        assert ours.shape == theirs.shape
        levels = np.abs(ours - theirs) * np.asarray(spec.std)[:, None, None] / spec.rescale
        assert levels.max() <= limit, f"{picture.size}: {levels.max()} gray levels"


# ---- transformers --------------------------------------------------------------------------------------------------------------------


def processor(document: dict[str, Any]) -> Any:
    """transformers' processor on Pillow images for a document; version 4 has it under the plain name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other packages, while they are imported
        transformers = pytest.importorskip("transformers")
        options = {key: value for key, value in document.items() if not key.endswith("_type")}
        name = document["image_processor_type"]
        return (getattr(transformers, name + "Pil", None) or getattr(transformers, name))(**options)


HUGGING_FACE: list[tuple[dict[str, Any], Size]] = [
    ({"image_processor_type": "ViTImageProcessor"}, (224, 224)),
    ({"image_processor_type": "ViTImageProcessor", "size": 97, "resample": 3, "do_normalize": False}, (97, 97)),
    ({"image_processor_type": "ViTImageProcessor", "size": {"height": 48, "width": 33}, "image_mean": 0.4, "image_std": 0.3}, (48, 33)),
    ({"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 101}, "do_center_crop": True, "crop_size": 96}, (96, 96)),
    ({"image_processor_type": "DeiTImageProcessor"}, (224, 224)),
    ({"image_processor_type": "DeiTImageProcessor", "size": 53, "crop_size": {"height": 48, "width": 32}, "resample": 1}, (48, 32)),
    ({"image_processor_type": "BeitImageProcessor", "image_mean": IMAGENET["mean"], "image_std": IMAGENET["std"]}, (224, 224)),
    ({"image_processor_type": "BeitImageProcessor", "do_center_crop": True, "size": 256, "crop_size": 224}, (224, 224)),
    ({"image_processor_type": "CLIPImageProcessor"}, (224, 224)),
    ({"image_processor_type": "CLIPImageProcessor", "size": 56, "crop_size": 49}, (49, 49)),
    ({"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 40}, "crop_size": {"height": 48, "width": 63}}, (48, 63)),
    ({"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, (224, 224)),
    ({"image_processor_type": "SiglipImageProcessor"}, (224, 224)),
    ({"image_processor_type": "SiglipImageProcessor", "size": {"height": 64, "width": 80}, "rescale_factor": 1 / 127.5}, (64, 80)),
    ({"image_processor_type": "ViTImageProcessor", "do_rescale": False, "image_mean": 127.5, "image_std": 127.5}, (224, 224)),
]


@pytest.mark.parametrize(("document", "size"), HUGGING_FACE, ids=lambda value: str(value)[26:90] if isinstance(value, dict) else "")
def test_the_slow_processors_of_transformers(document: dict[str, Any], size: Size, photographs: list[Image.Image]) -> None:
    """Each kind, with its own defaults and with a document's values."""
    reference = processor(document)
    check(from_hugging_face(document, size), lambda image: reference(image, return_tensors="np")["pixel_values"][0], photographs, FLOAT32)


def cropped(edge: int, crop: Size, mean: list[float], std: list[float]) -> Preprocessing:
    """Bicubic, by the shortest edge."""
    return Preprocessing(ShortestEdgeResize(edge), "bicubic", crop, 1 / 255, tuple(mean), tuple(std))


def clip(edge: int, height: int, width: int) -> tuple[dict[str, Any], Preprocessing]:
    size = {"height": height, "width": width}
    document = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": edge}, "crop_size": size}
    return document, cropped(edge, (height, width), **CLIP)


HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
IMAGENET_OPTIONS = {"crop_pct": 0.875, "image_mean": IMAGENET["mean"], "image_std": IMAGENET["std"]}
BY_HAND: list[tuple[dict[str, Any], Preprocessing]] = [
    ({"image_processor_type": "ViTImageProcessor", "size": {"height": 30, "width": 47}, **HALF}, Preprocessing.paper(30, 47)),
    (  # resize to int(224 / 0.875) = 256, then crop 224: the evaluation transform of most ImageNet checkpoints
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}, **IMAGENET_OPTIONS},
        cropped(256, (224, 224), **IMAGENET),
    ),
    *(clip(*sizes) for sizes in [(64, 51, 40), (33, 32, 32)]),  # odd differences
    *(clip(*sizes) for sizes in [(40, 64, 48), (40, 30, 65), (41, 64, 64)]),  # crops that reach beyond the image on one side or on all
]


@pytest.mark.parametrize(("document", "spec"), BY_HAND)
def test_uint8_pixels_equal_those_of_transformers(document: dict[str, Any], spec: Preprocessing, photographs: list[Image.Image]) -> None:
    """Before rescaling all pixels are equal."""
    reference = processor(document)
    raw = copy.copy(reference)
    raw.do_rescale = raw.do_normalize = False
    for image in photographs:
        expected = raw(image, return_tensors="np")["pixel_values"][0]  # (3, H, W)
        assert expected.dtype == np.uint8
        np.testing.assert_array_equal(resize_and_crop(image, spec).transpose(2, 0, 1), expected, err_msg=str(image.size))
        # The pixels are equal. From there transformers rounds to float32 after every step, where our table rounds once: half a unit
        # in the last place for rescaling, mean and difference (values up to 1, 2.5 * 2^-25) divided by the smallest std of 0.225, for
        # std itself, and for both results of up to 2.7 (2 * 2^-23): together less than 7e-7.
        expected = reference(image, return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(preprocess(image, spec), expected, rtol=0, atol=1e-6, err_msg=str(image.size))


def test_files_are_read_as_by_the_loader_of_hugging_faces_pipelines(tmp_path: Path) -> None:
    """Turned by EXIF, transparent, with a palette, gray: the same RGB as transformers' load_image, to the bit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other packages, while they are imported
        pytest.importorskip("transformers")
        load_image = importlib.import_module("transformers.image_utils").load_image
    scene, exif = whole_photographs()[0].crop((0, 0, 61, 33)), Image.Exif()
    exif[0x0112] = 6
    transparent = scene.convert("RGBA")
    transparent.putalpha(90)
    scene.save(tmp_path / "turned.jpg", exif=exif)
    transparent.save(tmp_path / "transparent.png")
    scene.quantize(20).save(tmp_path / "palette.gif")
    scene.convert("L").save(tmp_path / "gray.webp")
    scene.convert("CMYK").save(tmp_path / "cmyk.jpg")
    for path in find_images(tmp_path):
        with Image.open(path) as image:
            np.testing.assert_array_equal(np.asarray(open_rgb(path)), np.asarray(load_image(image)), err_msg=path.name)


def test_dinov3_rescales_before_it_resizes(photographs: list[Image.Image]) -> None:
    """Its processor exists on tensors only: antialiased floats, which round to our 8 bits."""
    torch = pytest.importorskip("torch")
    spec = from_hugging_face({"image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": 64, "width": 48}}, (64, 48))

    def reference(image: Image.Image) -> Floats:
        pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1)[None] / 255.0)
        resized = torch.nn.functional.interpolate(pixels, size=(64, 48), mode="bilinear", antialias=True)[0].numpy()
        return normalized(resized, **IMAGENET)

    check(spec, reference, photographs, limit=1.0)


# ---- timm, open_clip, torchvision ----------------------------------------------------------------------------------------------------


def normalized(pixels: Floats, mean: list[float], std: list[float]) -> Floats:
    """(C, H, W) in [0, 1]."""
    return (pixels - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]


def shortest_edge(image: Image.Image, edge: int, filter: Image.Resampling) -> Image.Image:
    """torchvision's Resize with one number."""
    short, long = sorted(image.size)
    size = (edge, int(edge * long / short)) if image.width <= image.height else (int(edge * long / short), edge)
    return image.resize(size, filter)


def keep_ratio(image: Image.Image, height: int, width: int, filter: Image.Resampling) -> Image.Image:
    """timm's ResizeKeepRatio, by the side that has less to spare."""
    ratio = min(image.height / height, image.width / width)
    return image.resize((round(image.width / ratio), round(image.height / ratio)), filter)


def center_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """torchvision's CenterCrop: first pad what is too small, by the smaller half above and left, then cut."""
    padded = Image.new(image.mode, (max(image.width, width), max(image.height, height)))
    padded.paste(image, ((padded.width - image.width) // 2, (padded.height - image.height) // 2))
    top, left = round((padded.height - height) / 2.0), round((padded.width - width) / 2.0)
    return padded.crop((left, top, left + width, top + height))


def timm_eval(image: Image.Image, size: Size, cfg: dict[str, Any]) -> Floats:
    """The steps of timm's transforms_imagenet_eval."""
    filter = Image.Resampling[cfg["interpolation"].upper()]
    height, width = (math.floor(side / cfg["crop_pct"]) for side in size)
    if cfg.get("crop_mode") == "squash":
        image = image.resize((width, height), filter)
    elif height == width:
        image = shortest_edge(image, height, filter)
    else:
        image = keep_ratio(image, height, width, filter)
    pixels = np.asarray(center_crop(image, *size)) / 255
    return normalized(pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None], cfg["mean"], cfg["std"])


@pytest.mark.parametrize("size", [(224, 224), (33, 33), (32, 48), (97, 51)])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 0.95, 1.0, 1.1])
@pytest.mark.parametrize(("mode", "interpolation"), [("center", "bicubic"), ("center", "bilinear"), ("squash", "bicubic")])
def test_timms_eval_transform(size: Size, crop_pct: float, mode: str, interpolation: str, photographs: list[Image.Image]) -> None:
    """Square and not, with odd differences and with pictures that the crop reaches beyond."""
    cfg = {"input_size": [3, *size], "crop_pct": crop_pct, "crop_mode": mode, "interpolation": interpolation, **IMAGENET}
    check(from_timm(cfg, size), lambda image: timm_eval(image, size, cfg), photographs, FLOAT32)


WHOLE: list[tuple[Size, float, str, str]] = [
    ((224, 224), 0.875, "center", "bicubic"),
    ((97, 51), 1.1, "center", "bilinear"),
    ((33, 33), 0.95, "squash", "bicubic"),
]


@pytest.mark.parametrize(("size", "crop_pct", "mode", "interpolation"), WHOLE)
def test_timms_eval_transform_on_whole_photographs(size: Size, crop_pct: float, mode: str, interpolation: str) -> None:
    """Three cases at 640 x 427 pixels; `make test-full` has the others."""
    cfg = {"input_size": [3, *size], "crop_pct": crop_pct, "crop_mode": mode, "interpolation": interpolation, **IMAGENET}
    check(from_timm(cfg, size), lambda image: timm_eval(image, size, cfg), whole_photographs(), FLOAT32)


@pytest.mark.parametrize(("size", "seen"), [((30, 30), (24, 24)), ((97, 51), (96, 48)), ((384, 384), (378, 378))])
@pytest.mark.parametrize("crop_pct", [0.9, 1.0])
@pytest.mark.parametrize("mode", ["center", "squash"])
def test_what_patches_see_of_timms_images(size: Size, seen: Size, crop_pct: float, mode: str, photographs: list[Image.Image]) -> None:
    """Where they do not divide them: the top left of what timm's eval transform makes."""
    cfg = {"crop_pct": crop_pct, "crop_mode": mode, "interpolation": "bicubic", **IMAGENET}
    check(top_left(from_timm(cfg, size), seen), lambda image: timm_eval(image, size, cfg)[:, : seen[0], : seen[1]], photographs, FLOAT32)


def test_timms_eval_transform_on_gray_pictures(photographs: list[Image.Image]) -> None:
    """A network of one channel sees the picture converted to gray before anything else."""
    cfg = {"input_size": [1, 40, 40], "crop_pct": 0.9, "interpolation": "bicubic", "mean": [0.4], "std": [0.3]}
    check(from_timm(cfg, (40, 40)), lambda image: timm_eval(image.convert("L"), (40, 40), cfg), photographs, FLOAT32)


@pytest.mark.parametrize("size", [(224, 224), (64, 41)])
@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_open_clips_eval_transform(size: Size, mode: str, photographs: list[Image.Image]) -> None:
    """timm's steps with nothing cut off the edge; squashed pictures are not cut at all."""
    cfg = {"crop_pct": 1.0, "crop_mode": mode, "interpolation": "bicubic", **CLIP}
    check(from_open_clip({"resize_mode": mode}, size), lambda image: timm_eval(image, size, cfg), photographs, FLOAT32)


RECIPES: list[tuple[str, Size, dict[str, Any]]] = [
    ("imagenet", (224, 224), {"crop_pct": 224 / 256, "interpolation": "bicubic", **IMAGENET}),
    ("imagenet_bilinear", (224, 224), {"crop_pct": 224 / 256, "interpolation": "bilinear", **IMAGENET}),
    ("imagenet_bilinear", (384, 384), {"crop_pct": 224 / 256, "interpolation": "bilinear", **IMAGENET}),
    ("clip", (224, 224), {"crop_pct": 1.0, "interpolation": "bicubic", **CLIP}),
    ("paper", (32, 48), {"crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3}),
    ("siglip", (32, 48), {"crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}),
]


@pytest.mark.parametrize(("name", "size", "cfg"), RECIPES, ids=lambda value: value if isinstance(value, str) else "")
def test_the_recipes_of_families_without_a_document(name: str, size: Size, cfg: dict[str, Any], photographs: list[Image.Image]) -> None:
    """Each is a case of the same steps."""
    check(recipe(name, size), lambda image: timm_eval(image, size, cfg), photographs, FLOAT32)
