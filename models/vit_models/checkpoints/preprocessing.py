"""How a source's own documents prepare a picture, as the JSON form of `vit_runtime.Preprocessing.to_dict()`.

Every function takes `size`, (height, width) of the network's input, which may be another one than the document's: what is resized
then grows or shrinks by the same ratio, so that the crop shows the same part of the picture.

transformers resizes to the size as it stands or by the shortest edge, and rounds the offset of its crop down. timm, open_clip,
torchvision and facebookresearch's code resize the shortest edge (for a network that is not square: to the smallest picture that
covers it) and round the offset half to even. The paper's JAX code and SigLIP squeeze the picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vit_models.checkpoints.documents import Document
from vit_models.errors import CheckpointError

Size = tuple[int, int]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's filters, each at its number
MAX_SIDE = 65536  # as vit_runtime.preprocess: a size far above every network's wants the machine's memory


def recipe(name: str, size: Size, channels: int = 3) -> dict[str, Any]:
    """The preparation of a family whose checkpoints carry none.

    "paper": the ViT paper's code. "imagenet": DINO's, DINOv2's, DeiT's and MAE's evaluation (256 to 224, bicubic).
    "imagenet_bilinear": torchvision's ViT weights (256 to 224, bilinear). "clip": OpenAI's. "siglip": big_vision's SigLIP.

    Raises: CheckpointError for a size that cannot be made.
    """
    if name == "paper":
        return _document("bilinear", _exact(size), None, HALF, channels)
    if name == "siglip":
        return _document("bicubic", _exact(size), None, HALF, channels)
    interpolation, (numerator, denominator), statistics = _RECIPES[name]
    scaled = (size[0] * numerator // denominator, size[1] * numerator // denominator)
    return _document(interpolation, _covering(scaled), _crop(size, "half_even"), statistics, channels)


_RECIPES = {
    "imagenet": ("bicubic", (256, 224), IMAGENET),
    "imagenet_bilinear": ("bilinear", (256, 224), IMAGENET),
    "clip": ("bicubic", (1, 1), OPENAI),
}


def from_timm(pretrained_cfg: Mapping[str, Any], size: Size, channels: int | None = None) -> dict[str, Any]:
    """timm's evaluation transform for a `pretrained_cfg`; without `channels`, those of its input_size.

    Raises: CheckpointError for values of the wrong kind, and for crop_mode "border", which nothing here expresses.
    """
    document = Document("pretrained_cfg", dict(pretrained_cfg))
    channels = channels or _channels(document)
    crop_pct = document.number("crop_pct", 0.0) or 0.875  # timm takes 0 for "not given", too
    if not 0 < crop_pct < 16:
        raise document.unlike("crop_pct", "a number above 0, and 1 at most where nothing is to be padded")
    mode = document.text("crop_mode", "center") or "center"
    if mode not in ("center", "squash"):
        raise document.unlike("crop_mode", "center or squash")
    scaled = (math.floor(size[0] / crop_pct), math.floor(size[1] / crop_pct))
    statistics = _values(document, "mean", channels, IMAGENET[0]), _values(document, "std", channels, IMAGENET[1])
    resize = _exact(scaled) if mode == "squash" else _covering(scaled)
    return _document(_interpolation(document), resize, _crop(size, "half_even"), statistics, channels)


def from_open_clip(preprocess_cfg: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """open_clip's evaluation transform for a `preprocess_cfg`.

    Raises: CheckpointError for values of the wrong kind, and for resize_mode "longest", which nothing here expresses.
    """
    document = Document("preprocess_cfg", dict(preprocess_cfg))
    mode = document.text("resize_mode", "shortest")
    if mode not in ("shortest", "squash"):
        raise document.unlike("resize_mode", "shortest or squash")
    statistics = _values(document, "mean", 3, OPENAI[0]), _values(document, "std", 3, OPENAI[1])
    interpolation = _interpolation(document)
    if mode == "squash":
        return _document(interpolation, _exact(size), None, statistics, 3)
    return _document(interpolation, _covering(size), _crop(size, "half_even"), statistics, 3)


def top_left(document: dict[str, Any], size: Size) -> dict[str, Any]:
    """A preparation for a source's images, cut to the top left `size` that its patches cover of them; as it is if that is all."""
    whole = document["crop"] or {**document["resize"], "rounding": "floor"}
    if (whole["height"], whole["width"]) == size:
        return document
    return {**document, "crop": {**_crop(size, whole["rounding"]), "of": {"height": whole["height"], "width": whole["width"]}}}


def resized(document: Document, old: Size, new: Size) -> dict[str, Any]:
    """A preparation for images of `old` pixels made one for `new`: every size in it grows or shrinks by the same ratio.

    Raises: CheckpointError for a document that is not one.
    """
    resize, crop = document.child("resize"), None
    if document.has("crop"):
        part = document.child("crop")
        if part.has("of"):  # of the new size nothing is left over
            of = part.child("of")
            old = _side(of.integer("height")), _side(of.integer("width"))
        crop = {**part.values, **_crop(new, part.text("rounding"))}
    sides = {"height": new[0] / old[0], "width": new[1] / old[1], "edge": min(new) / min(old)}
    given = {name: _side(round(resize.integer(name) * ratio)) for name, ratio in sides.items() if resize.has(name)}
    return {**document.values, "resize": {**resize.values, **given}, "crop": crop}


# ---- Hugging Face --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Processor:
    """What an image processor of transformers does about keys that its document leaves out."""

    resample: int
    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    size: int | dict[str, int]
    crop: bool = False
    square: bool = True  # what a single number in `size` means: both sides, or the shortest edge


# By the class's name without ImageProcessor or FeatureExtractor. DINOv3ViT's rescales before it resizes: the same but for rounding.
_PROCESSORS = {
    "ViT": _Processor(2, HALF, 224),
    "DeiT": _Processor(3, HALF, 256, crop=True),
    "Beit": _Processor(3, HALF, 224),
    "CLIP": _Processor(3, OPENAI, 224, crop=True, square=False),
    "Bit": _Processor(3, OPENAI, 224, crop=True, square=False),
    "Siglip": _Processor(3, HALF, {"height": 224, "width": 224}, square=False),
    "DINOv3ViT": _Processor(2, IMAGENET, 224),
}
# Which one transformers takes for a document that does not say it, by config.json's model_type.
_PROCESSOR_OF = {
    "vit": "ViT",
    "vit_mae": "ViT",
    "vit_msn": "ViT",
    "ijepa": "ViT",
    "deit": "DeiT",
    "beit": "Beit",
    "clip": "CLIP",
    "clip_vision_model": "CLIP",
    "siglip": "Siglip",
    "siglip_vision_model": "Siglip",
    "siglip2": "Siglip",
    "siglip2_vision_model": "Siglip",
    "dinov2": "Bit",
    "dinov2_with_registers": "Bit",
    "dinov3_vit": "DINOv3ViT",
}


def from_hugging_face(document: Mapping[str, Any], size: Size, model_type: str = "vit", channels: int = 3) -> dict[str, Any]:
    """What transformers' slow image processor does for a `preprocessor_config.json`; `model_type` decides where it names no processor.

    Raises: CheckpointError for values of the wrong kind, for processors other than the vision transformers', and for documents that
    leave the size of the image to the picture.
    """
    given = Document("preprocessor_config.json", dict(document))
    processor = _processor(given, model_type)
    resize = _hugging_face_size(given, "size", processor.size, processor.square) if given.flag("do_resize", True) else None
    crop = _hugging_face_size(given, "crop_size", 224, True) if given.flag("do_center_crop", processor.crop) else None
    if given.flag("do_pad", False):
        raise given.unlike("do_pad", "false, because an image of one size needs no padding")
    code = given.integer("resample", processor.resample)
    if code >= len(INTERPOLATIONS):
        raise given.unlike("resample", "Pillow's number of a filter, 0 to 5")
    statistics: tuple[Any, Any] = (0.0,) * channels, (1.0,) * channels
    if given.flag("do_normalize", True):
        mean, std = processor.statistics
        statistics = _values(given, "image_mean", channels, mean), _values(given, "image_std", channels, std)
    rescale = given.number("rescale_factor", 1 / 255) if given.flag("do_rescale", True) else 1.0
    return _document(INTERPOLATIONS[code], *_fit(given, resize, crop, size), statistics, channels, rescale)


def _processor(given: Document, model_type: str) -> _Processor:
    name = given.text("image_processor_type", None) or given.text("feature_extractor_type", None)
    kind = _PROCESSOR_OF.get(model_type, "ViT") if name is None else name
    for ending in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
        kind = kind.removesuffix(ending)
    if kind not in _PROCESSORS:
        known = ", ".join(f"{processor}ImageProcessor" for processor in _PROCESSORS)
        raise CheckpointError(
            f"{given.name} wants the image processor {name}, expected one of {known}; "
            "remove the file to convert the network with its family's own preparation"
        )
    return _PROCESSORS[kind]


def _hugging_face_size(given: Document, key: str, default: int | dict[str, int], square: bool) -> int | Size:
    """An edge's length, or (height, width)."""
    value = given.values[key] if given.has(key) else default
    if not isinstance(value, dict):
        side = Document(given.name, {key: value}).size(key)
        return side if square or isinstance(value, list) else side[0]
    sides = Document(f"{given.name}: {key}", value)
    if sides.has("height") and sides.has("width"):
        return sides.integer("height"), sides.integer("width")
    if sides.has("shortest_edge") and not sides.has("longest_edge") and key == "size":
        return sides.integer("shortest_edge")
    raise given.unlike(key, "height and width" + " or shortest_edge" * (key == "size"))


def _fit(given: Document, resize: int | Size | None, crop: int | Size | None, size: Size) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The document's resize and crop for another size, in its own ratio."""
    if crop is None:
        if isinstance(resize, int):
            raise CheckpointError(
                f"{given.name} resizes the shortest edge and crops nothing, so that every picture has another size; expected one size: "
                "set do_center_crop to true, or size to a height and width"
            )
        return _exact(size), None  # without resizing, too: pictures of that size stay as they are
    if resize is None or not isinstance(crop, tuple):
        raise CheckpointError(f"{given.name} crops without resizing, which cannot follow the size of a picture; set do_resize to true")
    if min(crop) < 1:
        raise given.unlike("crop_size", "a height and width above 0")
    cut = _crop(size, "floor")
    if isinstance(resize, tuple):
        return _exact((size[0] * resize[0] // crop[0], size[1] * resize[1] // crop[1])), cut
    if size == crop:
        return {"mode": "shortest_edge", "edge": _side(resize)}, cut
    edge = min(crop)
    return _covering((size[0] * resize // edge, size[1] * resize // edge)), cut


# ---- the parts of the document -------------------------------------------------------------------------------------------------------


def _document(
    interpolation: str,
    resize: dict[str, Any],
    crop: dict[str, Any] | None,
    statistics: tuple[Any, Any],
    channels: int,
    rescale: float = 1 / 255,
) -> dict[str, Any]:
    if channels not in (1, 3):
        raise CheckpointError(
            f"the network takes images of {channels} channels, expected 3 (red, green, blue) or 1 (grey); convert another one"
        )
    mean, std = (by_channel(values, channels) for values in statistics)
    if not rescale or not all(std):
        raise CheckpointError(
            f"the images are multiplied by {rescale} and divided by {std}, expected numbers other than 0; correct the file"
        )
    return {
        "color": "RGB" if channels == 3 else "L",
        "resize": resize,
        "interpolation": interpolation,
        "crop": crop,
        "rescale": rescale,
        "mean": mean,
        "std": std,
        "in_graph": [],
    }


def _exact(size: Size) -> dict[str, Any]:
    return {"mode": "exact", "height": _side(size[0]), "width": _side(size[1])}


def _covering(size: Size) -> dict[str, Any]:
    """The picture's aspect ratio kept, and nothing of `size` left empty: torchvision's Resize, or timm's for a size that is not square."""
    if size[0] == size[1]:
        return {"mode": "shortest_edge", "edge": _side(size[0])}
    return {**_exact(size), "mode": "cover"}


def _crop(size: Size, rounding: str) -> dict[str, Any]:
    return {"height": _side(size[0]), "width": _side(size[1]), "rounding": rounding, "of": None}


def _side(value: int) -> int:
    if not 1 <= value <= MAX_SIDE:
        raise CheckpointError(f"the images would be resized to a side of {value} pixels, expected 1 to {MAX_SIDE}; correct the file")
    return value


def _channels(document: Document) -> int:
    shape = document.values.get("input_size")
    if shape is None:
        return 3
    if isinstance(shape, list) and len(shape) == 3 and isinstance(shape[0], int):
        return shape[0]
    raise document.unlike("input_size", "[channels, height, width]")


def _interpolation(document: Document) -> str:
    name = document.text("interpolation", "bicubic") or "bicubic"
    if name not in INTERPOLATIONS:
        raise document.unlike("interpolation", f"one of {', '.join(INTERPOLATIONS)}")
    return name


def by_channel(values: Sequence[float], channels: int) -> list[float]:
    """A family's three values, of a grey image their mean: nobody has published others."""
    return list(values) if len(values) == channels else [math.fsum(values) / len(values)]


def _values(document: Document, key: str, channels: int, default: tuple[float, ...]) -> list[float]:
    """A mean or a standard deviation: one number a channel, or one for all; three equal ones do for a grey image."""
    value = document.values.get(key)
    if value is None:
        return by_channel(default, channels)
    listed = value if isinstance(value, (list, tuple)) else [value]
    numbers = [Document(document.name, {key: number}).number(key) for number in listed]
    if len(set(numbers)) == 1:
        return numbers[:1] * channels
    if len(numbers) == channels:
        return numbers
    raise document.unlike(key, f"one number for each of {channels} channels" + ", as the network was trained with" * (channels == 1))
