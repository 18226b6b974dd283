"""From a picture to the model's input tensor, by the recipe that the model file carries: resize, crop, rescale, normalize.

Letters: B pictures, C channels, H x W the height and width that the model takes. Pillow resizes, on 8 bits, because the reference
pipelines do; the arithmetic after it has 256 possible inputs per channel, so it is a table, computed once in float64 and therefore the
same bits on every machine. Not here: decoding (images.py).
"""

import dataclasses
import os
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from vit_runtime.errors import ImageError, InputError, ModelError
from vit_runtime.images import ImageInput, open_rgb

if TYPE_CHECKING:
    import PIL.Image

__all__ = [
    "CoverResize",
    "ExactResize",
    "Preprocessing",
    "ShortestEdgeResize",
    "normalize",
    "pixel_values",
    "preprocess",
    "resize_and_crop",
]

COLORS = {"RGB": 3, "L": 1}  # channels by Pillow's name of the mode; "L" is grey, 0.299 R + 0.587 G + 0.114 B
ROUNDINGS = ("floor", "half_even")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")  # the names of Pillow's filters, in lower case
IN_GRAPH = ("rescale", "normalize")  # the steps that a graph can do itself, both or neither

MAX_SIDE = 65536
MAX_PIXELS = 2**26  # 8192 x 8192: no ViT comes near; a file that asks for more wants the machine's memory, not a prediction

Channels: TypeAlias = tuple[float, ...]


@dataclass(frozen=True)
class ExactResize:
    """Resize to `height` x `width` pixels, whatever the picture's aspect ratio."""

    height: int
    width: int

    def __post_init__(self) -> None:
        """Raises: InputError."""
        _check_size(self.height, self.width, "resize")

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing a picture of `height` x `width` pixels."""
        return self.height, self.width


@dataclass(frozen=True)
class ShortestEdgeResize:
    """Resize so that the shorter edge has `edge` pixels and the aspect ratio stays."""

    edge: int

    def __post_init__(self) -> None:
        """Raises: InputError."""
        _check_side(self.edge, "resize.edge")

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing a picture of `height` x `width` pixels; the longer edge is rounded down.

        torchvision's `Resize(edge)` and transformers' `get_resize_output_image_size(default_to_square=False)` round the same way.
        """
        if width <= height:
            return int(self.edge * height / width), self.edge
        return self.edge, int(self.edge * width / height)


@dataclass(frozen=True)
class CoverResize:
    """Resize to the smallest picture of the same aspect ratio that `height` x `width` pixels fit into."""

    height: int
    width: int

    def __post_init__(self) -> None:
        """Raises: InputError."""
        _check_size(self.height, self.width, "resize")

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing a picture of `height` x `width` pixels, halves rounded to even.

        timm's and open_clip's `ResizeKeepRatio` divide in this order and round the same way.
        """
        ratio = min(height / self.height, width / self.width)
        return round(height / ratio), round(width / ratio)


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an RGB picture before the model sees it; checked when built.

    resize: `ExactResize`, or `ShortestEdgeResize` or `CoverResize`, which need a crop: without one the size would depend on the picture.
    interpolation: one of `INTERPOLATIONS`, Pillow's filters, which widen their support when they shrink (antialias).
    crop: (height, width) cut from the middle after resizing, zeros around where the picture is smaller; None leaves it out.
    rescale, mean, std: a channel's value v, 0..255, becomes (v * rescale - mean) / std; mean and std in the order R, G, B.
    color: "RGB", or "L" for one grey channel, made before resizing; mean and std then have one number.
    crop_rounding: what becomes of the half pixel where an odd difference has no middle. "floor", as transformers: a crop lies up and
        left, a picture that zeros surround down and right. "half_even", as torchvision: a crop's offset is rounded to the even
        number, a picture that zeros surround lies up and left.
    crop_of: (height, width) that is cut from the middle where the crop is no more than its top left; None where the crop is all of it.
        So a source whose patches leave pixels below and on the right over cuts its pictures.
    in_graph: whether the network rescales and normalises itself, so that a value stays v, as a float.

    Raises: InputError, naming the field, what was given and what was expected.
    """

    resize: ExactResize | ShortestEdgeResize | CoverResize
    interpolation: str
    crop: tuple[int, int] | None
    rescale: float
    mean: Channels
    std: Channels
    color: str = "RGB"
    crop_rounding: str = "floor"
    crop_of: tuple[int, int] | None = None
    in_graph: bool = False

    def __post_init__(self) -> None:
        """Raises: InputError."""
        for field, name, known in (
            ("color", self.color, COLORS),
            ("interpolation", self.interpolation, INTERPOLATIONS),
            ("crop.rounding", self.crop_rounding, ROUNDINGS),
        ):
            if name not in known:
                raise _unlike(field, name, f"one of {', '.join(known)}")
        if self.crop is not None:
            _check_size(*self.crop, "crop")
        elif not isinstance(self.resize, ExactResize):
            raise _unlike("crop", None, "a height and width, because the resizing alone leaves the size to the picture")
        if self.crop_of is not None:
            _check_size(*self.crop_of, "crop.of")
            if self.crop is None or self.crop[0] > self.crop_of[0] or self.crop[1] > self.crop_of[1]:
                raise _unlike("crop.of", self.crop_of, f"what has room for the crop {self.crop}")
        for field, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise _unlike(field, values, f"{self.channels} numbers for color {self.color}")
            for index, value in enumerate(values):
                _check_number(value, f"{field}[{index}]", nonzero=field == "std")
        _check_number(self.rescale, "rescale", nonzero=True)
        if not np.isfinite(self.table).all():
            raise _unlike("rescale, mean and std", (self.rescale, self.mean, self.std), "values that float32 can hold after normalizing")

    @classmethod
    def paper(cls, height: int, width: int, channels: int = 3) -> "Preprocessing":
        """The recipe of the ViT paper's own code and of Hugging Face's ViT: squeeze to size, bilinear, [-1, 1]; `channels` 3 or 1, grey.

        Raises: InputError.
        """
        color = next((color for color, number in COLORS.items() if number == channels), None)
        if color is None:
            raise InputError(f"got images of {channels} channels, expected 3 (RGB) or 1 (grey), as pictures have them")
        half = (0.5,) * channels
        return cls(ExactResize(height, width), "bilinear", None, 1 / 255, half, half, color)

    @classmethod
    def from_dict(cls, document: object) -> "Preprocessing":
        """Read the JSON form that `to_dict` writes, trusting nothing in it: every key has to be there, and no other.

        Raises: ModelError, naming the field, what was found and what was expected.
        """
        try:
            return _parse(document)
        except InputError as error:
            raise ModelError(f"the model file's preprocessing cannot be used: {error}; export the file again") from error

    def to_dict(self) -> dict[str, object]:
        """The JSON form that a model file carries; `from_dict` gives back an equal object."""
        crop = None
        if self.crop is not None:
            of = None if self.crop_of is None else {"height": self.crop_of[0], "width": self.crop_of[1]}
            crop = {"height": self.crop[0], "width": self.crop[1], "rounding": self.crop_rounding, "of": of}
        return {
            "color": self.color,
            "resize": {"mode": _MODES[type(self.resize)], **vars(self.resize)},
            "interpolation": self.interpolation,
            "crop": crop,
            "rescale": self.rescale,
            "mean": list(self.mean),
            "std": list(self.std),
            "in_graph": list(IN_GRAPH) if self.in_graph else [],
        }

    @property
    def channels(self) -> int:
        """C, 3 for red, green and blue, or 1 for grey."""
        return COLORS[self.color]

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of what comes out, the same for every picture."""
        if self.crop is not None:
            return self.crop
        return self.resize.size_of(1, 1)  # ExactResize, for which the picture's size does not matter

    @cached_property
    def table(self) -> npt.NDArray[np.float32]:
        """Float32 (C, 256), read-only: what each 8-bit value becomes in each channel. Computed in float64, rounded once at the end."""
        values = np.arange(256, dtype=np.float64)
        mean, std = np.array(self.mean, np.float64)[:, None], np.array(self.std, np.float64)[:, None]  # (C, 1)
        with np.errstate(all="ignore"):  # what overflows here is refused when the object is built
            table = ((values * self.rescale - mean) / std).astype(np.float32)  # (C, 256)
        table.flags.writeable = False
        return table


_MODES: dict[type[ExactResize | ShortestEdgeResize | CoverResize], str] = {
    ExactResize: "exact",
    ShortestEdgeResize: "shortest_edge",
    CoverResize: "cover",
}


def resize_and_crop(image: ImageInput, spec: Preprocessing) -> npt.NDArray[np.uint8]:
    """Decode, resize and crop one picture; returns uint8 (H, W, C), what `normalize` takes.

    Raises: ImageError, InputError as `open_rgb`; ImageError too where a very thin picture would grow beyond `MAX_PIXELS`.
    """
    from PIL import Image

    picture = open_rgb(image).convert(spec.color)
    height, width = spec.resize.size_of(picture.height, picture.width)
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"got a picture of {picture.width} x {picture.height} pixels, which would be {width} x {height} once its shorter edge fits, "
            f"expected at most {MAX_PIXELS} pixels; crop it to a less extreme aspect ratio first"
        )
    picture = picture.resize((width, height), Image.Resampling[spec.interpolation.upper()])
    if spec.crop is not None:
        picture = _crop(picture, spec.crop, spec.crop_of or spec.crop, spec.crop_rounding)
    pixels: npt.NDArray[np.uint8] = np.array(picture, dtype=np.uint8)
    return pixels.reshape(*pixels.shape[:2], spec.channels)  # (H, W, C)


def normalize(pixels: npt.NDArray[np.uint8], spec: Preprocessing, out: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
    """Rescale and normalize pictures that have the model's size; uint8 (B, H, W, C) to a contiguous float32 (B, C, H, W), `out` if given.

    Where the network does that itself, the values stay 0 to 255.

    Raises: InputError for another shape or dtype.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != spec.channels:
        raise InputError(
            f"got pixels of shape {pixels.shape} and dtype {pixels.dtype}, expected (B, H, W, {spec.channels}) uint8; "
            "make them with vit_runtime.preprocess.resize_and_crop"
        )
    batch, height, width, channels = pixels.shape
    values = np.empty((batch, channels, height, width), np.float32) if out is None else out
    if spec.in_graph:
        np.copyto(values, pixels.transpose(0, 3, 1, 2))
        return values
    for image in range(batch):  # a plane at a time stays in the cache: five times faster than the whole batch at once
        for channel in range(channels):
            # a uint8 is always inside the table, so "wrap" never wraps: it spares the bounds check and a copy of the output
            np.take(spec.table[channel], pixels[image, :, :, channel], out=values[image, channel], mode="wrap")
    return values  # (B, C, H, W)


def preprocess(image: ImageInput, spec: Preprocessing) -> npt.NDArray[np.float32]:
    """One picture as the model wants it; returns a contiguous float32 (C, H, W). Raises ImageError and InputError as `open_rgb`."""
    values: npt.NDArray[np.float32] = normalize(resize_and_crop(image, spec)[None], spec)[0]
    return values  # (C, H, W)


def pixel_values(
    images: Iterable[ImageInput], spec: Preprocessing, empty: Callable[[int], npt.NDArray[np.float32]] | None = None
) -> npt.NDArray[np.float32]:
    """Pictures, of any sizes, as one batch; returns a contiguous float32 (B, C, H, W), which `empty`, if given, makes for B pictures.

    Raises: ImageError and InputError as `open_rgb`; InputError for no picture at all, or for one that is not in a list.
    """
    from PIL import Image

    if isinstance(images, (str, bytes, os.PathLike, Image.Image)):
        raise InputError(f"got a single image of type {type(images).__qualname__}, expected a list of images; put it in a list")
    pixels = [resize_and_crop(image, spec) for image in images]
    if not pixels:
        raise InputError("got no images, expected at least one; check what the list was made from")
    return normalize(np.stack(pixels), spec, empty(len(pixels)) if empty is not None else None)


def _crop(image: "PIL.Image.Image", size: tuple[int, int], of: tuple[int, int], rounding: str) -> "PIL.Image.Image":
    """Cut the top left `size`, (height, width), of the middle `of`; where the picture is smaller, zeros surround it."""
    left, top = _offset(image.width - of[1], rounding), _offset(image.height - of[0], rounding)
    return image.crop((left, top, left + size[1], top + size[0]))  # Pillow fills what lies outside with zeros


def _offset(difference: int, rounding: str) -> int:
    """Where a crop begins in a picture that is longer by `difference`; negative where zeros come first.

    `//` rounds towards minus infinity: of an odd difference the larger half is cut off below and right, or padded above and left.
    """
    if rounding == "floor":
        return difference // 2  # transformers' `center_crop`
    return round(difference / 2) if difference > 0 else -(-difference // 2)  # torchvision's `center_crop`


# ---- an untrusted document -----------------------------------------------------------------------------------------------------------


def _parse(document: object) -> Preprocessing:
    fields = _object(document, "preprocessing", ("color", "resize", "interpolation", "crop", "rescale", "mean", "std", "in_graph"))
    if fields["in_graph"] not in ([], list(IN_GRAPH)):
        raise _unlike("in_graph", fields["in_graph"], f"[] or {list(IN_GRAPH)}")
    crop, rounding, of = None, ROUNDINGS[0], None
    if fields["crop"] is not None:
        sides = _object(fields["crop"], "crop", ("height", "width", "rounding", "of"))
        crop = (_check_side(sides["height"], "crop.height"), _check_side(sides["width"], "crop.width"))
        rounding = _string(sides["rounding"], "crop.rounding")
        if sides["of"] is not None:
            whole = _object(sides["of"], "crop.of", ("height", "width"))
            of = (_check_side(whole["height"], "crop.of.height"), _check_side(whole["width"], "crop.of.width"))
    return Preprocessing(
        resize=_parse_resize(fields["resize"]),
        interpolation=_string(fields["interpolation"], "interpolation"),
        crop=crop,
        rescale=_check_number(fields["rescale"], "rescale", nonzero=True),
        mean=_numbers(fields["mean"], "mean"),
        std=_numbers(fields["std"], "std"),
        color=_string(fields["color"], "color"),
        crop_rounding=rounding,
        crop_of=of,
        in_graph=bool(fields["in_graph"]),
    )


def _parse_resize(value: object) -> ExactResize | ShortestEdgeResize | CoverResize:
    mode = value.get("mode") if isinstance(value, dict) else None
    for kind, name in _MODES.items():
        if mode == name:
            keys = [field.name for field in dataclasses.fields(kind)]
            sides = _object(value, "resize", ("mode", *keys))
            return kind(*(_check_side(sides[key], f"resize.{key}") for key in keys))
    raise _unlike("resize", value, f"an object whose mode is one of {', '.join(_MODES.values())}")


def _object(value: object, field: str, keys: tuple[str, ...]) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _unlike(field, value, f"an object with {', '.join(keys)}")
    if set(value) != set(keys):
        missing, extra = sorted(set(keys) - set(value)), sorted(map(str, set(value) - set(keys)))
        raise InputError(f"got {field} without {missing or 'nothing'} and with unknown {extra or 'nothing'}, expected {', '.join(keys)}")
    return value


def _string(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise _unlike(field, value, "a string")
    return value


def _numbers(value: object, field: str) -> Channels:
    if not isinstance(value, list) or len(value) not in COLORS.values():
        raise _unlike(field, value, "a list of one number for each channel")
    return tuple(_check_number(item, f"{field}[{index}]", nonzero=False) for index, item in enumerate(value))


def _check_number(value: object, field: str, *, nonzero: bool) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e38 and (value or not nonzero):
        return float(value)  # 1e38: the largest float32, near enough; NaN fails the comparison
    raise _unlike(field, value, "a finite number" + " other than 0" * nonzero)


def _check_side(value: object, field: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_SIDE:
        return value
    raise _unlike(field, value, f"a whole number from 1 to {MAX_SIDE}")


def _check_size(height: object, width: object, field: str) -> None:
    if _check_side(height, f"{field}.height") * _check_side(width, f"{field}.width") > MAX_PIXELS:
        raise _unlike(field, (height, width), f"at most {MAX_PIXELS} pixels in all")


def _unlike(field: str, value: object, expected: str) -> InputError:
    return InputError(f"got {field} = {reprlib.repr(value)}, expected {expected}")
