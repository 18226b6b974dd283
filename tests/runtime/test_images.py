"""What open_rgb makes of real files, written by Pillow here and now, and what find_images makes of real folders."""

import io
import os
import random
import subprocess
import sys
import tempfile
import threading
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from helpers import assert_mentions, one_line
from PIL import Image, ImageFile

from vit_runtime.errors import ImageError, InputError
from vit_runtime.images import FORMATS, ImageInput, find_images, open_rgb

Pixels = npt.NDArray[np.uint8]
ORIENTATION = 0x0112


def picture(height: int = 40, width: int = 56) -> Pixels:
    """A smooth uint8 (H, W, 3) without any symmetry, so that a flip or a turn shows, and gentle enough for JPEG."""
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width])[:, None, None]
    return np.stack([255 * x, 200 * y, 120 * x * x + 120 * (1 - y)], axis=-1).astype(np.uint8)


def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def opened(image: ImageInput) -> Pixels:
    rgb = open_rgb(image)
    assert rgb.mode == "RGB"
    return np.asarray(rgb)


def refusal(image: ImageInput, error: type[Exception] = ImageError) -> str:
    """The message with which `image` is refused, a single line."""
    with pytest.raises(error) as caught:
        open_rgb(image)
    return one_line(caught)


# ---- the four ways to give a picture -------------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_a_path_its_bytes_a_pil_image_and_an_array_give_the_same_pixels(tmp_path: Path) -> None:
    """Whatever the picture comes in, a lossless one arrives as it was."""
    data = encode(Image.fromarray(picture()), "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for given in (path, str(path), data, Image.open(io.BytesIO(data)), picture()):
        np.testing.assert_array_equal(opened(given), picture())


@pytest.mark.unit
@pytest.mark.parametrize("file_format", ["PNG", "BMP", "PPM", "TIFF", "WEBP", "JPEG2000"])
def test_lossless_formats_arrive_as_they_were(file_format: str) -> None:
    """The formats of the list are really read."""
    options = {"lossless": True} if file_format == "WEBP" else {}
    np.testing.assert_array_equal(opened(encode(Image.fromarray(picture()), file_format, **options)), picture())


@pytest.mark.unit
def test_arrays_need_not_be_contiguous() -> None:
    """Views, flips and slices are copied first."""
    np.testing.assert_array_equal(opened(picture()[::-1, ::2]), picture()[::-1, ::2])


@pytest.mark.unit
def test_the_given_pil_image_is_left_alone_and_never_handed_back() -> None:
    """Drawing on the result does not draw on the caller's picture."""
    given = Image.fromarray(picture())
    result = open_rgb(given)
    result.paste((0, 0, 0), (0, 0, *result.size))
    np.testing.assert_array_equal(np.asarray(given), picture())


@pytest.mark.unit
def test_the_file_may_be_deleted_once_it_was_opened(tmp_path: Path) -> None:
    """The picture is decoded, not lazily tied to an open file."""
    path = tmp_path / "a.tiff"
    path.write_bytes(encode(Image.fromarray(picture()), "TIFF", compression="tiff_lzw"))
    rgb = open_rgb(path)
    path.unlink()
    np.testing.assert_array_equal(np.asarray(rgb), picture())


# ---- kinds of pictures ---------------------------------------------------------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize(
    ("file_format", "orientation"),
    [*(("JPEG", orientation) for orientation in range(1, 9)), ("PNG", 3), ("PNG", 6), ("TIFF", 5), ("TIFF", 6), ("WEBP", 4), ("WEBP", 8)],
)
def test_every_exif_orientation_is_shown_upright(orientation: int, file_format: str) -> None:
    """A camera held in any of eight ways stores what, undone, is the same upright picture."""
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),  # row 0 of the file is the right-hand side of the scene
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation](picture())
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encode(Image.fromarray(np.ascontiguousarray(stored)), file_format, exif=exif, quality=95)
    # JPEG and WebP are lossy: about 1 of 255 on average here, where any wrong turn of this picture costs more than 50
    assert np.abs(opened(data).astype(int) - picture()).mean() < 2
    if file_format != "TIFF":  # Pillow turns a TIFF by itself while it loads
        np.testing.assert_array_equal(opened(Image.open(io.BytesIO(data))), opened(data))


@pytest.mark.unit
@pytest.mark.parametrize("exif", [b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40])
def test_exif_that_nobody_can_parse_leaves_the_picture_as_it_is_stored(exif: bytes) -> None:
    """Photo collections hold files with broken EXIF; their pixels are fine."""
    assert opened(encode(Image.fromarray(picture()), "JPEG", exif=exif)).shape == picture().shape


@pytest.mark.unit
@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation: int) -> None:
    """Only 2 to 8 mean something."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    np.testing.assert_array_equal(opened(encode(Image.fromarray(picture()), "PNG", exif=exif)), picture())


@pytest.mark.unit
def test_cmyk_jpegs_come_back_in_their_colours() -> None:
    """Pillow writes CMYK as Adobe does, inverted, and reads it back the right way round."""
    data = encode(Image.fromarray(picture()).convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data
    assert np.abs(opened(data).astype(int) - picture()).mean() < 3  # JPEG loss; an inverted picture is off by 100


@pytest.mark.unit
def test_transparent_palettes_show_the_stored_colour() -> None:
    """Both kinds of palette transparency, one colour or a table of alphas, are dropped, and Pillow's warning about it stays in."""
    indexed = Image.fromarray(picture()).quantize(32)
    colours = np.asarray(indexed.convert("RGB"))
    for transparency in (3, bytes(range(0, 256, 8))):
        np.testing.assert_array_equal(opened(encode(indexed, "PNG", transparency=transparency)), colours)


@pytest.mark.unit
def test_alpha_is_dropped_and_not_blended() -> None:
    """Fully transparent red is red, in RGBA as in LA."""
    rgba = Image.fromarray(picture()).convert("RGBA")
    rgba.putalpha(0)
    np.testing.assert_array_equal(opened(encode(rgba, "PNG")), picture())
    grey = Image.fromarray(picture()[..., 0])
    grey_alpha = Image.merge("LA", (grey, Image.new("L", grey.size, 7)))
    np.testing.assert_array_equal(opened(encode(grey_alpha, "PNG")), np.stack([picture()[..., 0]] * 3, axis=-1))


@pytest.mark.unit
def test_grey_and_one_bit_pictures_get_three_equal_channels() -> None:
    """L stays as it is, and a set bit is 255."""
    grey = picture()[..., 0]
    np.testing.assert_array_equal(opened(encode(Image.fromarray(grey), "PNG")), np.stack([grey] * 3, axis=-1))
    bits = Image.fromarray(grey > 128)
    assert bits.mode == "1"
    np.testing.assert_array_equal(opened(encode(bits, "PNG")), np.stack([np.where(grey > 128, 255, 0)] * 3, axis=-1))


EVERY_16_BIT_VALUE = np.arange(65536, dtype=np.uint16).reshape(256, 256)
ROUNDED = np.rint(EVERY_16_BIT_VALUE / 65535 * 255).astype(np.uint8)  # no value is halfway, so the rule for halves plays no part


@pytest.mark.unit
@pytest.mark.parametrize("kind", ["png", "tiff", "big-endian tiff", "pgm", "I", "I;16B"])
def test_16_bit_grey_is_scaled_and_rounded_never_clipped(kind: str) -> None:
    """All 65,536 values, from either byte order and from mode I, land on the nearest of 256."""
    given: ImageInput
    if kind == "pgm":
        given = b"P5 256 256 65535\n" + EVERY_16_BIT_VALUE.astype(">u2").tobytes()
    elif kind == "I":
        given = Image.fromarray(EVERY_16_BIT_VALUE.astype(np.int32))
    elif kind == "I;16B":
        given = Image.frombytes("I;16B", (256, 256), EVERY_16_BIT_VALUE.astype(">u2").tobytes())
    elif kind == "big-endian tiff":
        given = encode(Image.frombytes("I;16B", (256, 256), EVERY_16_BIT_VALUE.astype(">u2").tobytes()), "TIFF")
        assert given[:2] == b"MM"
    else:
        given = encode(Image.fromarray(EVERY_16_BIT_VALUE), kind.upper())
    np.testing.assert_array_equal(opened(given), np.stack([ROUNDED] * 3, axis=-1))


@pytest.mark.unit
def test_of_animations_and_pages_the_first_counts() -> None:
    """GIF, animated WebP and PNG, and TIFF with pages all open at their first picture."""
    frames = [Image.new("RGB", (8, 6), colour) for colour in ((200, 30, 30), (30, 200, 30), (30, 30, 200))]
    for file_format in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if file_format == "WEBP" else {}
        data = encode(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
        assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
        np.testing.assert_array_equal(opened(data), np.asarray(frames[0]))


@pytest.mark.unit
def test_a_pil_image_counts_at_the_frame_where_it_stands() -> None:
    """The caller may have chosen a frame."""
    frames = [Image.new("RGB", (8, 6), colour) for colour in ((200, 30, 30), (30, 200, 30))]
    animation = Image.open(io.BytesIO(encode(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    animation.seek(1)
    np.testing.assert_array_equal(opened(animation), np.asarray(frames[1]))


# ---- what is refused, and which facts the message names ------------------------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize(
    ("array", "advice"),
    [
        (np.zeros((4, 5, 3), np.float32), "array.astype(numpy.uint8)"),
        (np.zeros((4, 5, 3), np.int64), "array.astype(numpy.uint8)"),
        (np.zeros((3, 4, 5), np.uint8), "array.transpose(1, 2, 0)"),
        (np.zeros((4, 5), np.uint8), "numpy.stack([array] * 3, axis=-1)"),
        (np.zeros((4, 5, 4), np.uint8), "array[..., :3]"),
        (np.zeros((2, 4, 5, 3), np.uint8), "list"),
        (np.zeros((0, 5, 3), np.uint8), "(0, 5, 3)"),
        (np.zeros((), np.uint8), "()"),
    ],
)
def test_other_arrays_are_refused_with_shape_dtype_and_the_way_out(array: Pixels, advice: str) -> None:
    """The message names what was given and the expression that corrects it."""
    assert_mentions(refusal(array, InputError), array.shape, array.dtype, "(H, W, 3) uint8", advice)


@pytest.mark.unit
@pytest.mark.parametrize("thing", [None, 3, [[1, 2]], bytearray(b"x"), io.BytesIO(b"x")])
def test_other_objects_are_refused_by_their_type(thing: Any) -> None:
    """Nothing is guessed from an object of another kind."""
    assert_mentions(refusal(thing, InputError), type(thing).__qualname__, "(H, W, 3)")


@pytest.mark.unit
def test_a_missing_file_a_folder_and_an_impossible_name_are_refused(tmp_path: Path) -> None:
    """Paths that no image stands at."""
    missing = tmp_path / "missing.jpg"
    for path in (str(missing), "two\nlines.jpg"):
        assert_mentions(refusal(path), repr(path), "path")
    with pytest.raises(ImageError) as error:
        open_rgb(missing)
    assert isinstance(error.value.__cause__, FileNotFoundError)
    assert_mentions(refusal(tmp_path), repr(str(tmp_path)), "vit_runtime.images.find_images")
    assert_mentions(refusal("a\0b.jpg"), repr("a\0b.jpg"), "embedded null byte")
    assert_mentions(refusal("a" * 5000), "File name too long")


AS_NOBODY = """
import os, sys
import PIL.Image
from vit_runtime.errors import ImageError
from vit_runtime.images import open_rgb
PIL.Image.init()  # the decoders, while this user may still read them
if os.geteuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
for path in sys.argv[1:]:
    try:
        print(open_rgb(path).size)
    except ImageError as error:
        print(error)
"""


def test_a_file_without_permission_is_refused() -> None:
    """The system's reason is passed on. Root may read everything, so the test gives root's rights up first."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        readable, locked = Path(name) / "readable.png", Path(name) / "locked.png"
        for path, mode in ((readable, 0o644), (locked, 0)):
            path.write_bytes(encode(Image.fromarray(picture()), "PNG"))
            path.chmod(mode)
        done = subprocess.run([sys.executable, "-c", AS_NOBODY, readable, locked], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == "(56, 40)"
    assert_mentions(second, repr(str(locked)), "Permission denied")


@pytest.mark.unit
def test_files_that_are_not_images_are_refused(tmp_path: Path) -> None:
    """Empty, text under an image's suffix, and a format outside the list."""
    assert_mentions(refusal(b""), "0 bytes")
    (tmp_path / "a.jpg").write_text("not a picture")
    assert_mentions(refusal(tmp_path / "a.jpg"), repr(str(tmp_path / "a.jpg")), *FORMATS)
    eps = encode(Image.fromarray(picture()), "EPS")  # its reader would start Ghostscript
    assert_mentions(refusal(eps), f"{len(eps)} bytes", *FORMATS)


@pytest.mark.unit
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_truncated_files_are_refused_wherever_they_break_off(file_format: str) -> None:
    """In the header and in the pixels; nothing is filled up with grey."""
    data = encode(Image.fromarray(picture()), file_format)
    for kept in (4, 20, len(data) // 2, int(len(data) * 0.9)):
        refusal(data[:kept])
    if file_format in ("JPEG", "PNG"):
        assert_mentions(refusal(data[: int(len(data) * 0.9)]), "truncated")  # Pillow's own word


@pytest.mark.unit
def test_decompression_bombs_are_refused_from_their_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """More pixels than Pillow's limit: refused where Pillow only warns and where it raises, without decoding, and with no warning."""
    data = encode(Image.fromarray(picture()), "PNG")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("the pixels were decoded"))
    for limit in (40 * 56 - 1, 40 * 56 // 2 + 1, 40 * 56 // 3, 1):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert_mentions(refusal(data), f"{limit} pixels", "PIL.Image.MAX_IMAGE_PIXELS")


@pytest.mark.unit
def test_a_picture_of_exactly_the_limit_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit itself is allowed, and an application may switch it off."""
    data = encode(Image.fromarray(picture()), "PNG")
    for limit in (40 * 56, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        np.testing.assert_array_equal(opened(data), picture())


@pytest.mark.unit
def test_numbers_whose_white_nobody_states_are_refused() -> None:
    """Floats, 32-bit or signed integers, 12-bit and inverted 16-bit TIFF: guessing would give a black or a negative picture."""
    grey = EVERY_16_BIT_VALUE[:8, :8]
    assert "float" in refusal(encode(Image.fromarray(grey.astype(np.float32)), "TIFF"))
    assert_mentions(refusal(encode(Image.fromarray(grey.astype(np.int32)), "TIFF")), 0, 1799, "0..255")  # the values of `grey`
    assert_mentions(refusal(Image.new("I", (2, 2), -1)), -1, "0..255")
    assert_mentions(refusal(Image.new("I", (2, 2), 65536)), 65536, "0..255")
    tiff = encode(Image.fromarray(grey), "TIFF")
    bits, white = b"\x02\x01\x03\x00\x01\x00\x00\x00\x10\x00", b"\x06\x01\x03\x00\x01\x00\x00\x00\x01\x00"  # 258 = 16, 262 = 1
    assert tiff.count(bits) == tiff.count(white) == 1
    assert_mentions(refusal(tiff.replace(bits, bits[:-2] + b"\x0c\x00")), "8 or 16 bits", "0..255")
    assert_mentions(refusal(tiff.replace(white, white[:-2] + b"\x00\x00")), 0, 1799, "0..255")


@pytest.mark.unit
def test_pil_images_that_cannot_be_used_are_refused() -> None:
    """No pixels, a mode without a way to RGB, a file closed too early."""
    assert_mentions(refusal(Image.new("RGB", (0, 3))), "RGB", "0 x 3")
    assert_mentions(refusal(Image.new("La", (2, 2))), "La", "2 x 2")
    closed = Image.open(io.BytesIO(encode(Image.fromarray(picture()), "PNG")))
    closed.close()
    assert_mentions(refusal(closed), "56 x 40", "Operation on closed image")


KINDS = (
    "JPEG", "progressive JPEG", "CMYK JPEG", "PNG", "palette PNG", "animated PNG", "16-bit PNG",
    "GIF", "TIFF", "LZW TIFF", "WebP", "animated WebP", "BMP", "PGM",
)  # fmt: skip


@cache
def seeds() -> dict[str, bytes]:
    """A small picture of each kind."""
    image, exif = Image.fromarray(picture()), Image.Exif()
    exif[ORIENTATION] = 6
    more = {"save_all": True, "append_images": [image.rotate(90)]}
    return {
        "JPEG": encode(image, "JPEG", exif=exif),
        "progressive JPEG": encode(image, "JPEG", progressive=True),
        "CMYK JPEG": encode(image.convert("CMYK"), "JPEG"),
        "PNG": encode(image, "PNG", exif=exif),
        "palette PNG": encode(image.quantize(16), "PNG", transparency=bytes(16)),
        "animated PNG": encode(image, "PNG", **more),
        "16-bit PNG": encode(Image.fromarray(EVERY_16_BIT_VALUE[:40, :40]), "PNG"),
        "GIF": encode(image, "GIF", **more),
        "TIFF": encode(image, "TIFF", exif=exif),
        "LZW TIFF": encode(image, "TIFF", compression="tiff_lzw"),
        "WebP": encode(image, "WEBP", exif=exif),
        "animated WebP": encode(image, "WEBP", **more),
        "BMP": encode(image, "BMP"),
        "PGM": encode(image.convert("L"), "PPM"),
    }


def mutated(data: bytes, dice: random.Random) -> bytes:
    """`data` cut, with a part missing or doubled, or with a few bytes changed, in its header or anywhere."""
    result, (start, end) = bytearray(data), sorted(dice.randrange(len(data)) for _ in range(2))
    match dice.randrange(5):
        case 0:
            return data[:end]
        case 1:
            return data[:start] + data[end:]
        case 2:
            return data[:end] + data[start:]
        case reach:
            for _ in range(dice.randint(1, 12)):
                result[dice.randrange(min(len(data), 150) if reach == 3 else len(data))] = dice.choice((0, 127, 255, dice.randrange(256)))
            return bytes(result)


@pytest.mark.unit
@pytest.mark.unit
@pytest.mark.parametrize("kind", KINDS)
def test_hostile_files_are_decoded_or_refused_and_nothing_else(kind: str, tmp_path: Path) -> None:
    """Whatever Pillow stumbles over, only ImageError comes out, in one line and without a warning; from bytes and from a file."""
    data, dice, messages = seeds()[kind], random.Random(kind), []
    path = tmp_path / "image"
    for attempt in range(60):
        given = mutated(data, dice)
        path.write_bytes(given)
        try:
            assert open_rgb(path if attempt % 4 == 0 else given).mode == "RGB"
        except ImageError as error:
            messages.append(str(error))
    assert len(messages) > 10  # the mutations do hit
    assert not any("\n" in message for message in messages)


# ---- warnings ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_decoding_in_threads_leaks_no_warning_and_restores_the_filters() -> None:
    """Pillow warns about broken TIFF tags; many threads at once hear none of it, and afterwards the process filters as before."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\0\0\xff\xff\0\0\0\0\0\0"  # an entry that is larger than the file
    data = encode(Image.fromarray(picture()), "JPEG", exif=exif)
    with pytest.warns(UserWarning, match="Skipping tag|Truncated File Read"):
        Image.open(io.BytesIO(data)).getexif().get(ORIENTATION)

    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                open_rgb(data)
        except BaseException as error:
            failures.append(error)
            raise

    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    assert not caught
    assert list(warnings.filters) == before


# ---- find_images ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def album(tmp_path: Path) -> Path:
    for name in ("b.PNG", "a.jpg", "notes.txt", ".hidden.jpg", "cats/2.webp", "cats/1.tiff", "cats/.thumbs/1.jpg", "empty/readme.md"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path


@pytest.mark.unit
def test_a_folder_stands_for_the_images_below_it(album: Path) -> None:
    """Sorted, through subfolders, by suffix in either case; hidden files and folders are left out."""
    assert find_images([album]) == [album / name for name in ("a.jpg", "b.PNG", "cats/1.tiff", "cats/2.webp")]


@pytest.mark.unit
def test_files_stand_for_themselves_in_the_order_given(album: Path) -> None:
    """No suffix is asked of a file that was named, and what is named twice is listed once."""
    paths: list[str | Path] = [album / "notes.txt", str(album / "b.PNG"), album / "a.jpg", album / "b.PNG"]
    assert find_images(paths) == [album / "notes.txt", album / "b.PNG", album / "a.jpg"]
    assert find_images(album / "a.jpg") == [album / "a.jpg"]  # one path need not be in a list


@pytest.mark.unit
def test_patterns_are_expanded_where_the_shell_did_not(album: Path) -> None:
    """A star, a double star, and a folder among the matches."""
    assert find_images([f"{album}/*.jpg"]) == [album / "a.jpg"]
    assert find_images([f"{album}/**/*.tiff"]) == [album / "cats/1.tiff"]
    assert find_images([f"{album}/c*"]) == [album / "cats/1.tiff", album / "cats/2.webp"]


@pytest.mark.unit
def test_a_file_whose_name_looks_like_a_pattern_is_that_file(album: Path) -> None:
    """What exists is never expanded."""
    path = album / "a[1].jpg"
    path.write_bytes(b"")
    assert find_images([path]) == [path]


@pytest.mark.unit
@pytest.mark.parametrize("name", ["missing.jpg", "*.gif", "empty"])
def test_what_stands_for_no_image_is_refused_by_name(album: Path, name: str) -> None:
    """Even where another argument does: nothing asked for is left out in silence."""
    with pytest.raises(InputError) as caught:
        find_images([album / "a.jpg", album / name])
    assert_mentions(one_line(caught), repr(str(album / name)))


@pytest.mark.unit
def test_no_paths_are_refused() -> None:
    """An empty list is a mistake, not an empty answer."""
    with pytest.raises(InputError, match="paths"):
        find_images([])


@pytest.mark.unit
def test_every_suffix_of_the_list_belongs_to_a_format_that_pillow_reads() -> None:
    """FORMATS holds Pillow's names and suffixes; an older Pillow may lack AVIF, which it then refuses as no image."""
    Image.init()
    assert set(FORMATS) - set(Image.OPEN) <= {"AVIF"}
    for name, suffixes in FORMATS.items():
        assert all(Image.EXTENSION.get(suffix, name) == name for suffix in suffixes)


def test_importing_the_module_loads_no_pillow() -> None:
    """`import vit_runtime` has to stay light."""
    code = "import sys, vit_runtime.images, vit_runtime.preprocess; sys.exit('PIL' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
