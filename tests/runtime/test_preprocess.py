"""What the preprocessing in a model file does to images, compared with Pillow. test_reference_pixels.py has Hugging Face's processors."""

import dataclasses
import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from helpers import assert_mentions, one_line
from PIL import Image

from vit_runtime.errors import ImageError, InputError, ModelError
from vit_runtime.images import ImageInput
from vit_runtime.preprocess import (
    INTERPOLATIONS,
    MAX_PIXELS,
    MAX_SIDE,
    CoverResize,
    ExactResize,
    Preprocessing,
    ShortestEdgeResize,
    normalize,
    pixel_values,
    preprocess,
    resize_and_crop,
)

pytestmark = pytest.mark.unit

Pixels = npt.NDArray[np.uint8]
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}


def spec(**changes: Any) -> Preprocessing:
    fields = {"resize": ExactResize(24, 32), "interpolation": "bilinear", "crop": None, "rescale": 1 / 255, **IMAGENET}
    return Preprocessing(**{**fields, **changes})


def synthetic(height: int, width: int, seed: int = 0) -> Pixels:
    """A photograph's spectrum: every wavelength, the long ones strong; with a hard edge and noise on it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [
        np.sin(2 * np.pi * (fy * y + fx * x) + phase) / np.hypot(fx, fy)
        for fx, fy, phase in zip(rng.uniform(-40, 40, 60), rng.uniform(-40, 40, 60), rng.uniform(0, 6, 60), strict=True)
    ]
    grey = np.sum(waves, axis=0) * 60 + 128 + 60 * (x > 0.4)
    return np.clip(np.stack([grey, 255 - grey, grey * y * 2], axis=-1) + rng.normal(0, 4, (height, width, 3)), 0, 255).astype(np.uint8)


# ---- resize, crop, normalize ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INTERPOLATIONS)
def test_every_interpolation_is_pillows_filter_of_that_name(name: str) -> None:
    """The resized pixels are Pillow's, to the bit."""
    image = Image.fromarray(synthetic(90, 70))
    expected = np.asarray(image.resize((32, 24), Image.Resampling[name.upper()]))
    np.testing.assert_array_equal(resize_and_crop(image, spec(interpolation=name)), expected)


def test_a_crop_larger_than_the_picture_is_surrounded_by_zeros() -> None:
    """White 3 x 3 in 6 x 4: of an odd difference the larger part is above and left."""
    ours = spec(resize=ExactResize(3, 3), crop=(6, 4))
    result = resize_and_crop(np.full((9, 9, 3), 255, np.uint8), ours)
    expected = np.zeros((6, 4, 3), np.uint8)
    expected[2:5, 1:4] = 255
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    ("rounding", "starts"),
    [
        ("floor", {-3: -2, -2: -1, -1: -1, 0: 0, 1: 0, 2: 1, 3: 1, 5: 2}),
        ("half_even", {-3: -1, -2: -1, -1: 0, 0: 0, 1: 0, 2: 1, 3: 2, 5: 2}),
    ],
)
def test_the_rounding_says_where_a_crop_of_an_odd_difference_begins(rounding: str, starts: dict[int, int]) -> None:
    """Pixels that carry their own place, 20 wide; negative where zeros come first."""
    places = np.tile(np.arange(100, 120, dtype=np.uint8)[None, :, None], (20, 1, 3))
    for difference, start in starts.items():
        width = 20 - difference
        ours = spec(resize=ExactResize(20, 20), crop=(20, width), crop_rounding=rounding)
        expected = np.zeros(width, np.uint8)
        inside = np.arange(width) + start
        shown = (inside >= 0) & (inside < 20)
        expected[shown] = 100 + inside[shown]
        np.testing.assert_array_equal(resize_and_crop(places, ours)[0, :, 0], expected)


@pytest.mark.parametrize("rounding", ["floor", "half_even"])
def test_a_crop_may_be_the_top_left_of_what_is_cut_from_the_middle(rounding: str) -> None:
    """As where patches leave pixels below and on the right over; the middle may reach beyond the picture, and the crop with it."""
    image = Image.fromarray(synthetic(37, 29))
    for height, width in [(21, 12), (20, 29), (40, 30), (37, 29)]:
        whole = spec(resize=ExactResize(37, 29), crop=(height, width), crop_rounding=rounding)
        ours = dataclasses.replace(whole, crop=(16, 8), crop_of=(height, width))
        assert ours.output_size == (16, 8)
        np.testing.assert_array_equal(resize_and_crop(image, ours), resize_and_crop(image, whole)[:16, :8])
    with pytest.raises(InputError) as error:
        spec(crop_of=(16, 8))
    assert_mentions(one_line(error), "crop.of", (16, 8), None)


def test_a_picture_that_covers_keeps_its_aspect_ratio_and_fills_the_size() -> None:
    """By the side that has less to spare, halves to even."""
    cover = CoverResize(40, 60)
    assert [cover.size_of(*size) for size in [(80, 120), (80, 60), (400, 1000), (1, 1)]] == [(40, 60), (80, 60), (40, 100), (60, 60)]
    assert CoverResize(10, 10).size_of(20, 45) == (10, 22)  # 22.5
    for height, width in [(31, 17), (97, 1001), (333, 500), (1, 5)]:
        resized = CoverResize(33, 47).size_of(height, width)
        assert resized[0] == 33 or resized[1] == 47
        assert resized[0] >= 33
        assert resized[1] >= 47


def test_a_grey_recipe_converts_before_it_resizes_and_has_one_channel() -> None:
    """Pillow's own conversion; grey files come out with the values they have."""
    ours = spec(color="L", mean=(0.5,), std=(0.25,))
    image = Image.fromarray(synthetic(90, 70))
    expected = np.asarray(image.convert("L").resize((32, 24), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resize_and_crop(image, ours), expected[..., None])
    values = pixel_values([image, image.convert("L")], ours)
    assert values.shape == (2, 1, 24, 32)
    np.testing.assert_array_equal(values[:, 0], np.float32((expected[None] / 255 - 0.5) / 0.25).repeat(2, axis=0))
    with pytest.raises(InputError) as error:
        normalize(np.zeros((1, 8, 8, 3), np.uint8), ours)
    assert_mentions(one_line(error), (1, 8, 8, 3), "(B, H, W, 1)", "uint8")


def test_the_table_is_the_exact_value_rounded_once() -> None:
    """Each of the 3 x 256 entries is the float32 nearest to the float64 formula, and nobody can overwrite it."""
    ours = spec()
    assert ours.table.dtype == np.float32
    assert ours.table.shape == (3, 256)
    for channel in range(3):
        for value in range(256):
            exact = (value * ours.rescale - ours.mean[channel]) / ours.std[channel]
            assert ours.table[channel, value] == np.float32(exact)
    with pytest.raises(ValueError, match="read-only"):
        ours.table[0, 0] = 1


def test_the_papers_recipe_maps_black_to_minus_one_and_white_to_one() -> None:
    """The ends of the range, exactly."""
    table = Preprocessing.paper(8, 8).table
    assert (table[:, 0] == -1).all()
    assert (table[:, 255] == 1).all()


def test_normalize_looks_every_pixel_up_in_its_channels_table() -> None:
    """Channels move first and stay apart; the result is contiguous, also from pixels that are not."""
    ours = spec()
    pixels = np.random.default_rng(1).integers(0, 256, (3, 10, 14, 3), dtype=np.uint8)[:, ::2, ::-1]
    values = normalize(pixels, ours)
    assert values.shape == (3, 3, 5, 14)
    assert values.dtype == np.float32
    assert values.flags.c_contiguous
    for channel in range(3):
        np.testing.assert_array_equal(values[:, channel], ours.table[channel][pixels[..., channel]])


def test_what_the_graph_does_itself_is_left_to_it() -> None:
    """The values are the pixels', 0 to 255, whatever the mean; only type and layout change, and what was resized stays resized."""
    ours = spec(in_graph=True)
    pixels = np.random.default_rng(1).integers(0, 256, (3, 10, 14, 3), dtype=np.uint8)[:, ::2, ::-1]
    values = normalize(pixels, ours)
    assert values.dtype == np.float32
    assert values.flags.c_contiguous
    np.testing.assert_array_equal(values, pixels.transpose(0, 3, 1, 2))
    image = synthetic(50, 40)
    np.testing.assert_array_equal(preprocess(image, ours), resize_and_crop(image, ours).transpose(2, 0, 1))
    np.testing.assert_array_equal(resize_and_crop(image, ours), resize_and_crop(image, spec()))
    np.testing.assert_array_equal(pixel_values([image, image], ours), [preprocess(image, ours)] * 2)


def test_grey_pictures_too_are_left_to_the_graph() -> None:
    """One channel."""
    ours = spec(color="L", mean=(0.4,), std=(0.3,), in_graph=True)
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(normalize(pixels, ours), np.arange(256).reshape(1, 1, 16, 16))


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("pixels", [np.zeros((8, 8, 3), np.uint8), np.zeros((1, 3, 8, 8), np.uint8), np.zeros((1, 8, 8, 3), np.float32)])
def test_normalize_refuses_other_shapes_and_dtypes(pixels: Pixels, in_graph: bool) -> None:
    """One picture without a batch, channels first, floats."""
    with pytest.raises(InputError) as error:
        normalize(pixels, spec(in_graph=in_graph))
    assert_mentions(one_line(error), pixels.shape, pixels.dtype, "(B, H, W, 3)", "uint8")


def test_a_batch_holds_the_same_numbers_as_its_pictures_one_by_one() -> None:
    """Pictures of different sizes and kinds, from a generator too."""
    images: list[ImageInput] = [synthetic(50, 40), Image.fromarray(synthetic(33, 61)), synthetic(24, 32)]
    for ours in (spec(), spec(resize=ShortestEdgeResize(30), crop=(24, 28))):
        batch = pixel_values((image for image in images), ours)
        assert batch.shape == (3, 3, *ours.output_size)
        assert batch.dtype == np.float32
        assert batch.flags.c_contiguous
        np.testing.assert_array_equal(batch, [preprocess(image, ours) for image in images])


def test_an_empty_batch_and_a_single_picture_are_refused() -> None:
    """A string would otherwise be taken letter by letter."""
    with pytest.raises(InputError) as error:
        pixel_values([], spec())
    assert_mentions(one_line(error), "images")
    singles: tuple[Any, ...] = ("photo.jpg", b"bytes", Image.new("RGB", (2, 2)))
    for single in singles:
        with pytest.raises(InputError) as error:
            pixel_values(single, spec())
        assert_mentions(one_line(error), type(single).__qualname__, "list")


def test_a_thread_of_a_picture_is_refused_before_it_fills_the_memory() -> None:
    """1 x 60,000 pixels with the shorter edge at 224 would be 3 billion."""
    with pytest.raises(ImageError) as error:
        preprocess(np.zeros((1, 60000, 3), np.uint8), spec(resize=ShortestEdgeResize(224), crop=(224, 224)))
    assert_mentions(one_line(error), 60000, 224 * 60000, MAX_PIXELS)


# ---- the JSON form -------------------------------------------------------------------------------------------------------------------

GOOD = [
    Preprocessing.paper(224, 384),
    spec(interpolation="lanczos", crop=(20, 20), rescale=1.0, **CLIP),
    spec(resize=ShortestEdgeResize(256), interpolation="bicubic", crop=(224, 192)),
    spec(resize=CoverResize(40, 60), crop=(32, 48), crop_rounding="half_even", crop_of=(35, 48), color="L", mean=(0.4,), std=(0.3,)),
    spec(in_graph=True),
]


@pytest.mark.parametrize("ours", GOOD)
def test_the_json_form_comes_back_equal(ours: Preprocessing) -> None:
    """Through text, with every bit of every float."""
    assert Preprocessing.from_dict(json.loads(json.dumps(ours.to_dict()))) == ours


def test_the_json_form_is_the_published_one() -> None:
    """Files that exist depend on these names."""
    assert GOOD[0].to_dict() == {
        "color": "RGB",
        "resize": {"mode": "exact", "height": 224, "width": 384},
        "interpolation": "bilinear",
        "crop": None,
        "rescale": 1 / 255,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "in_graph": [],
    }
    assert GOOD[2].to_dict()["resize"] == {"mode": "shortest_edge", "edge": 256}
    assert GOOD[2].to_dict()["crop"] == {"height": 224, "width": 192, "rounding": "floor", "of": None}
    assert GOOD[3].to_dict()["resize"] == {"mode": "cover", "height": 40, "width": 60}
    of = {"height": 35, "width": 48}
    assert GOOD[3].to_dict()["crop"] == {"height": 32, "width": 48, "rounding": "half_even", "of": of}
    assert (GOOD[3].to_dict()["color"], GOOD[3].to_dict()["mean"]) == ("L", [0.4])
    assert GOOD[4].to_dict() == {**spec().to_dict(), "in_graph": ["rescale", "normalize"]}


def test_the_size_that_comes_out_is_known_beforehand() -> None:
    """The crop's where there is one."""
    assert [ours.output_size for ours in GOOD] == [(224, 384), (20, 20), (224, 192), (32, 48), (24, 32)]


# The field of the document, its value, and what the message mentions: the field with the value, and what is allowed there.
BAD: list[tuple[str, object, tuple[object, ...]]] = [
    ("color", "BGR", ("color", "'BGR'", "RGB", "L")),
    ("color", "L", ("mean", (0.5, 0.5, 0.5), 1, "L")),
    ("color", ["L"], ("color", ["L"])),
    ("resize", None, ("resize", None, "exact", "shortest_edge", "cover")),
    ("resize", {"mode": "pad"}, ("resize", "'pad'", "exact", "shortest_edge", "cover")),
    ("resize", {"mode": ["exact"]}, ("resize", ["exact"], "shortest_edge", "cover")),
    ("resize", {"mode": "exact", "height": 224}, ("resize", "'width'")),
    ("resize", {"mode": "exact", "height": 224, "width": 224, "edge": 1}, ("resize", "'edge'")),
    ("resize", {"mode": "exact", "height": 0, "width": 224}, ("resize.height", 0, 1, MAX_SIDE)),
    ("resize", {"mode": "exact", "height": 224, "width": 65537}, ("resize.width", 65537, MAX_SIDE)),
    ("resize", {"mode": "exact", "height": 224.0, "width": 224}, ("resize.height", 224.0)),
    ("resize", {"mode": "exact", "height": True, "width": 224}, ("resize.height", True)),
    ("resize", {"mode": "exact", "height": 65536, "width": 65536}, ("resize", (65536, 65536), MAX_PIXELS)),
    ("resize", {"mode": "shortest_edge", "edge": -1}, ("resize.edge", -1)),
    ("resize", {"mode": "shortest_edge", "edge": 256}, ("crop", None)),
    ("resize", {"mode": "cover", "height": 4, "width": 4}, ("crop", None)),
    ("resize", {"mode": "cover", "height": 4}, ("resize", "'width'")),
    ("interpolation", "spline", ("interpolation", "'spline'", *INTERPOLATIONS)),
    ("interpolation", 2, ("interpolation", 2)),
    ("interpolation", ["bilinear"], ("interpolation", ["bilinear"])),
    ("crop", 224, ("crop", 224, "height", "width", "rounding", "of")),
    ("crop", {"height": 224, "rounding": "floor", "of": None}, ("crop", "'width'")),
    ("crop", {"height": 224, "width": 224}, ("crop", "'of'", "'rounding'")),
    ("crop", {"height": 224, "width": "224", "rounding": "floor", "of": None}, ("crop.width", "'224'")),
    ("crop", {"height": 65536, "width": 65536, "rounding": "floor", "of": None}, ("crop", (65536, 65536), MAX_PIXELS)),
    ("crop", {"height": 224, "width": 224, "rounding": "up", "of": None}, ("crop.rounding", "'up'", "floor", "half_even")),
    ("crop", {"height": 224, "width": 224, "rounding": None, "of": None}, ("crop.rounding", None)),
    ("crop", {"height": 224, "width": 224, "rounding": "floor", "of": 384}, ("crop.of", 384, "height", "width")),
    ("crop", {"height": 224, "width": 224, "rounding": "floor", "of": {"height": 224}}, ("crop.of", "'width'")),
    ("crop", {"height": 224, "width": 224, "rounding": "floor", "of": {"height": 384, "width": 0}}, ("crop.of.width", 0)),
    ("crop", {"height": 8, "width": 8, "rounding": "floor", "of": {"height": 9, "width": 7}}, ("crop.of", (9, 7), (8, 8))),
    ("crop", {"height": 8, "width": 8, "rounding": "floor", "of": {"height": 7, "width": 9}}, ("crop.of", (7, 9), (8, 8))),
    ("rescale", 0, ("rescale", 0)),
    ("rescale", None, ("rescale", None)),
    ("rescale", True, ("rescale", True)),
    ("rescale", float("nan"), ("rescale", "nan")),
    ("mean", 0.5, ("mean", 0.5)),
    ("mean", [0.5], ("mean", (0.5,), 3, "RGB")),
    ("mean", [0.5, 0.5], ("mean", [0.5, 0.5])),
    ("mean", [0.5, 0.5, "x"], ("mean[2]", "'x'")),
    ("mean", [0.5, float("inf"), 0.5], ("mean[1]", "inf")),
    ("mean", [10**400, 0, 0], ("mean[0]",)),
    ("std", [0.5, 0.0, 0.5], ("std[1]", 0.0)),
    ("std", [1e-300, 1, 1], ("std", 1e-300, "float32")),
    ("in_graph", ["rescale"], ("in_graph", ["rescale"], [], ["rescale", "normalize"])),
    ("in_graph", ["normalize"], ("in_graph", ["normalize"])),
    ("in_graph", ["normalize", "rescale"], ("in_graph", ["normalize", "rescale"])),
    ("in_graph", ["rescale", "normalize", "resize"], ("in_graph", ["rescale", "normalize", "resize"])),
    ("in_graph", None, ("in_graph", None)),
    ("in_graph", True, ("in_graph", True)),
]


@pytest.mark.parametrize(("field", "value", "facts"), BAD)
def test_a_bad_field_is_refused_by_its_name(field: str, value: object, facts: tuple[object, ...]) -> None:
    """The file is not trusted: the error says which field, what it holds and what it should, in one line."""
    document = {**GOOD[0].to_dict(), field: value}
    with pytest.raises(ModelError) as error:
        Preprocessing.from_dict(document)
    assert_mentions(one_line(error), *facts)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("document", [None, [], "exact", 3, {}])
def test_what_is_no_object_with_these_fields_is_refused(document: object) -> None:
    """The document itself may be anything."""
    with pytest.raises(ModelError) as error:
        Preprocessing.from_dict(document)
    assert_mentions(one_line(error), *GOOD[0].to_dict())


@pytest.mark.parametrize("field", list(GOOD[0].to_dict()))
def test_a_missing_field_is_never_filled_in(field: str) -> None:
    """Every key has to be there."""
    document = GOOD[0].to_dict()
    del document[field]
    with pytest.raises(ModelError) as error:
        Preprocessing.from_dict(document)
    assert_mentions(one_line(error), repr(field))


def test_an_unknown_field_is_never_ignored() -> None:
    """It may change what the others mean."""
    with pytest.raises(ModelError) as error:
        Preprocessing.from_dict({**GOOD[0].to_dict(), "pad": True})
    assert_mentions(one_line(error), "'pad'")


def test_building_a_recipe_in_python_is_checked_as_well() -> None:
    """With InputError, since no file is to blame."""
    changes: tuple[tuple[dict[str, Any], tuple[object, ...]], ...] = (
        ({"interpolation": "area"}, ("interpolation", "'area'")),
        ({"std": (1.0, 0.0, 1.0)}, ("std[1]", 0.0)),
        ({"mean": (0.5, 0.5)}, ("mean", (0.5, 0.5), 3, "RGB")),
        ({"resize": ShortestEdgeResize(9)}, ("crop", None)),
        ({"color": "L"}, ("mean", 1, "L")),
        ({"crop": (5, 0)}, ("crop.width", 0)),
    )
    for fields, facts in changes:
        with pytest.raises(InputError) as error:
            spec(**fields)
        assert_mentions(one_line(error), *facts)
    with pytest.raises(InputError) as error:
        ExactResize(0, 5)
    assert_mentions(one_line(error), "resize.height", 0)
