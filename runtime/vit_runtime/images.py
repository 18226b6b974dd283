"""From what users hand over (paths, encoded bytes, PIL images, arrays) to one upright RGB picture, or to one clear error.

Image files are hostile until decoded: Pillow raises whatever its parsers stumble over, so this file is the only place that decodes,
and nothing but `ImageError` and `InputError` leaves it. Pillow itself is imported when the first picture is opened, not before.
"""

import contextlib
import glob
import io
import os
import threading
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from vit_runtime.errors import ImageError, InputError

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["FORMATS", "ImageInput", "find_images", "open_rgb"]

ImageInput: TypeAlias = "str | os.PathLike[str] | bytes | PIL.Image.Image | npt.NDArray[np.uint8]"

#: Pillow's name of each format that is decoded, and the file suffixes that `find_images` takes for it. The list is closed because
#: Pillow's other readers are seldom needed and one starts a program (EPS, Ghostscript). Open those with Pillow and pass the PIL image.
FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "JPEG2000": (".jp2", ".j2k"),
    "AVIF": (".avif",),
}

_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262  # TIFF 6.0, section 8
_ORIENTATION_TAG = 0x0112  # EXIF 2.32, table 4; a value n means: undo it with the transposition _UPRIGHT[n]
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def open_rgb(image: ImageInput) -> "PIL.Image.Image":
    """Decode `image` to a new, upright PIL image of mode RGB, three channels of 8 bits.

    `image` is a path, the bytes of an encoded file, a PIL image, or a uint8 array (H, W, 3) in RGB order. Of files with several frames
    or pages the first one counts; of a PIL image the frame it stands at. What becomes of the less common kinds:

    - EXIF orientation is applied, to PIL images too, as `PIL.ImageOps.exif_transpose` does; EXIF data that nobody can parse is ignored.
    - Alpha is dropped: the colour stored under transparent pixels shows, as with `convert("RGB")` in timm, in torchvision's datasets and
      in the loader of Hugging Face's pipelines. (The CLIP processor of transformers 5 blends on white when it is given RGBA directly.)
    - Palettes, CMYK (Adobe's inverted one too), greyscale and 1 bit become RGB by Pillow's own conversion, colour profiles unread.
    - 16-bit greyscale is scaled so that 65535 becomes 255, rounded to nearest; Pillow's conversion would clip or cut it. Mode "I", as
      Pillow gives for 16-bit PGM, is read as 16 bits. (16-bit colour Pillow itself cuts to 8 while it decodes.)
    - Floats, integers on other scales, and modes which Pillow cannot convert are refused: what is white in them is anybody's guess.

    Raises:
        ImageError: the file is missing, a folder, empty, not an image, damaged, of a kind refused above, or has more than
            `PIL.Image.MAX_IMAGE_PIXELS` pixels (read from the header, before memory is taken; whoever opened a PIL image chose its limit).
        InputError: an array that is not (H, W, 3) uint8, or an object that is none of the kinds above.
    """
    from PIL import Image

    if isinstance(image, np.ndarray):
        return Image.fromarray(_rgb_array(image))
    if isinstance(image, Image.Image):
        return _decode_pil(image)
    if isinstance(image, bytes):
        return _decode_stream(io.BytesIO(image), f"{len(image)} bytes")
    if isinstance(image, (str, os.PathLike)):
        return _decode_path(image)
    raise InputError(
        f"got an image of type {type(image).__qualname__}, expected a path, bytes, a PIL image or a uint8 array (H, W, 3); "
        "convert it, for example with numpy.asarray"
    )


def find_images(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """List the image files that `paths`, one or several, stand for, in the order given, each once.

    A file stands for itself, whatever its suffix. A folder stands for all files below it whose suffix is in `FORMATS` (upper or lower
    case), sorted by path; hidden files and folders are left out and links to folders are not followed. A path that does not exist and
    holds `*`, `?` or `[` is expanded as a shell would (`**` crosses folders), and every match, sorted, is taken as if given.

    Raises:
        InputError: a path, folder or pattern that stands for no image, or an empty `paths`.
        ImageError: a folder that cannot be listed.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    found = [image for path in paths for image in _images_at(os.fspath(path))]
    if not found:
        raise InputError("got no paths, expected at least one image, folder or pattern; name one")
    return list(dict.fromkeys(found))


# ---- files and folders ---------------------------------------------------------------------------------------------------------------


def _images_at(path: str) -> list[Path]:
    if os.path.isdir(path):
        images = _images_below(path)
        if not images:
            suffixes = " ".join(suffix for group in FORMATS.values() for suffix in group)
            raise InputError(f"got the folder {path!r} without images, expected files that end in {suffixes}; name the files themselves")
        return images
    if os.path.exists(path):
        return [Path(path)]
    if not any(magic in path for magic in "*?["):
        raise InputError(f"got {path!r}, which does not exist, expected an image, a folder or a pattern; check the path")
    matches = sorted(glob.glob(path, recursive=True))
    if not matches:
        raise InputError(f"got the pattern {path!r}, which matches nothing, expected at least one image; check the pattern")
    return [image for match in matches for image in _images_at(match)]


def _images_below(folder: str) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise ImageError(
            f"got the folder {folder!r}, which cannot be listed ({_one_line(error)}), expected a readable one; check its permissions"
        ) from error

    suffixes = {suffix for group in FORMATS.values() for suffix in group}
    images = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        images += [Path(parent, name) for name in files if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes]
    return sorted(images)


# ---- decoding ------------------------------------------------------------------------------------------------------------------------


def _decode_path(path: str | os.PathLike[str]) -> "PIL.Image.Image":
    name = repr(os.fspath(path))
    if os.path.isdir(path):
        raise ImageError(f"got the folder {name}, expected an image file; list the images in it with vit_runtime.images.find_images")
    try:
        with open(path, "rb") as stream:
            return _decode_stream(stream, name)
    except FileNotFoundError as error:
        raise ImageError(f"got {name}, which does not exist, expected an image file; check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a null character in it
        raise ImageError(
            f"got {name}, which cannot be read ({_one_line(error)}), expected an image file; check the path and its permissions"
        ) from error


def _decode_stream(stream: IO[bytes], name: str) -> "PIL.Image.Image":
    """The first picture in `stream`; raises OSError where the stream itself cannot be read or rewound, and ImageError for the rest."""
    from PIL import Image, UnidentifiedImageError

    if not stream.read(1):
        raise ImageError(f"got {name}, which is empty, expected an encoded image; copy or download it again")
    stream.seek(0)
    try:
        with _SILENCE:
            image = Image.open(stream, formats=tuple(FORMATS))
            _check_pixels(image, name)
            image.load()
            _check_pixels(image, name)  # a GIF may grow when its first frame is read
            return _upright_rgb(image, name)
    except ImageError:
        raise
    except (UnidentifiedImageError, KeyError) as error:  # KeyError: a Pillow too old to know the last formats of the list
        raise ImageError(
            f"got {name}, which is not an image or breaks off in its header, expected one of {', '.join(FORMATS)}; "
            "check what it is, or copy it again"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(_too_large(name, _one_line(error))) from error
    except Exception as error:
        raise ImageError(
            f"got {name}, a damaged image ({_one_line(error)}), expected one that can be decoded to its end; copy or download it again"
        ) from error


def _decode_pil(image: "PIL.Image.Image") -> "PIL.Image.Image":
    name = f"a PIL image of mode {image.mode} and {image.width} x {image.height} pixels"
    try:
        with _SILENCE:
            image.load()
            return _upright_rgb(image, name)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(
            f"got {name} that cannot be decoded ({_one_line(error)}), expected one whose file is whole and still open; open it again"
        ) from error


def _rgb_array(array: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.size:
        return np.ascontiguousarray(array)
    if array.ndim == 4:
        advice = "pass the pictures of a batch one by one, as a list"
    elif array.ndim == 3 and array.shape[0] == 3:
        advice = "put the channels last with array.transpose(1, 2, 0)"
    elif array.ndim == 2:
        advice = "repeat the grey channel with numpy.stack([array] * 3, axis=-1)"
    elif array.ndim == 3 and array.shape[2] == 4:
        advice = "drop alpha with array[..., :3]"
    else:
        advice = "scale the values to 0..255, round them, and use array.astype(numpy.uint8)"
    raise InputError(f"got an array of shape {array.shape} and dtype {array.dtype}, expected (H, W, 3) uint8 in RGB order; {advice}")


# ---- one decoded picture -------------------------------------------------------------------------------------------------------------


def _upright_rgb(image: "PIL.Image.Image", name: str) -> "PIL.Image.Image":
    """`image`, loaded, as a new RGB image with its EXIF orientation applied; the given one is left as it is."""
    from PIL import Image

    if 0 in image.size:
        raise ImageError(f"got {name}, expected at least one pixel; check how it was made")
    turn = _UPRIGHT.get(_orientation(image))  # before the conversion, which may drop what holds it
    rgb = _sixteen_bit_to_rgb(image, name) if image.mode.startswith("I") else _eight_bit_to_rgb(image, name)
    return rgb if turn is None else rgb.transpose(Image.Transpose[turn])


def _orientation(image: "PIL.Image.Image") -> int:
    """The EXIF orientation, or 1, upright, where none can be read: EXIF is as hostile as the rest of the file."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # noqa: BLE001 - the parser raises anything; pixels that decoded are shown as stored, as any viewer does
        return 1
    return value if isinstance(value, int) else 1


def _eight_bit_to_rgb(image: "PIL.Image.Image", name: str) -> "PIL.Image.Image":
    if image.mode == "F":
        raise ImageError(
            f"got {name}, of floats whose range nobody states, expected 8 or 16 bits; scale it to 0..255 and pass a uint8 array (H, W, 3)"
        )
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ImageError(
            f"got {name}, of mode {image.mode}, which Pillow cannot convert, expected a picture that becomes RGB; convert and save it anew"
        ) from error


def _sixteen_bit_to_rgb(image: "PIL.Image.Image", name: str) -> "PIL.Image.Image":
    """Grey 0..65535 to RGB 0..255: v / 257 rounded to nearest. No ties exist, 257 being odd, so no rule for them is needed."""
    from PIL import Image

    values = np.asarray(image)  # (H, W) uint16 in either byte order, or int32 for mode "I"
    tiff = getattr(image, "tag_v2", {})
    if (
        (image.mode == "I" and (tiff or values.min() < 0 or values.max() > 65535))  # a TIFF of this mode is signed or has 32 bits
        or tiff.get(_TIFF_BITS, (16,)) != (16,)  # 12 bits come unscaled
        or tiff.get(_TIFF_PHOTOMETRIC, 1) != 1  # white is 0, and comes so
    ):
        raise ImageError(
            f"got {name}, of grey values from {values.min()} to {values.max()} on an unusual scale, expected 8 or 16 bits, unsigned, "
            "with black at 0; scale it to 0..255 and pass a uint8 array (H, W, 3)"
        )
    grey = (values.astype(np.uint32) + 128) // 257
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _check_pixels(image: "PIL.Image.Image", name: str) -> None:
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS  # None where the application has switched the limit off
    if limit is not None and image.width * image.height > limit:
        raise ImageError(_too_large(name, f"{image.width} x {image.height} pixels"))


def _too_large(name: str, what: str) -> str:
    from PIL import Image

    return (
        f"got {name}, too large to be decoded safely ({what}), expected at most {Image.MAX_IMAGE_PIXELS} pixels; scale it down first, "
        "or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
    )


def _one_line(error: BaseException) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split()) or type(error).__name__


class _Silence:
    """Keeps Pillow's own warnings in while any thread decodes: what matters in them is an `ImageError` here, the rest is noise.

    `warnings.catch_warnings` saves and restores one list for the whole process, so threads that overlap would put back each other's
    state. The first thread in sets the filter and the last one out removes it; it names Pillow's modules only.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._decoding = 0
        self._filters = contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._decoding == 0:
                self._filters.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._decoding += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._decoding -= 1
            if self._decoding == 0:
                self._filters.close()


_SILENCE = _Silence()
