"""The golden images and projections are the same bits everywhere, and look enough like pictures to exercise a network."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

from vit_runtime.golden import GENERATOR, golden_images, project, projection_signs

pytestmark = pytest.mark.unit
RECIPE = Path(__file__).parents[2] / "docs" / "manifest.md"

# seed, count, height, width: SHA-256 of the pixels. If one of them changes, GENERATOR needs a new name: files in the field hold records.
PINNED = {
    (0, 1, 1, 1): "ce5ad97426e4ca5bcff0980ee41695a20c280d5d6207e40069408621a9f9e24d",
    (0, 16, 32, 32): "9ca273d2342397f96262939e10456c683f5106b5a02f7967f09fe443680a2a9b",
    (0, 3, 224, 224): "51b258ffc7f50ebfad8fbbe86a7b557e98d353e96009b527645340ae44b5f21a",
    (7, 8, 16, 48): "c74399c1701251e61b5fa729ccdfab3387dbd406f0e2376a35c8aed387068036",
    (2**63 - 1, 2, 5, 3): "45118f50f4974fa28a7e753690996b013a3cb0272cdbb4f18207cf57f5481d5d",
}


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


def by_the_book(seed: int, index: int, height: int, width: int) -> bytes:
    """docs/manifest.md in plain Python, pixel by pixel, without numpy."""

    def stream(text: str, length: int) -> bytes:
        return hashlib.shake_256(f"vit-deploy/shapes-1/{text}".encode("ascii")).digest(length)

    draw = stream(f"{seed}/{index}", 512)
    grain = stream(f"{seed}/{index}/grain", height * width)
    strength = 8 + draw[12] % 25
    pixels = bytearray()
    for y in range(height):
        for x in range(width):
            v, u = y * 256 // height, x * 256 // width
            pixel = []
            for channel in range(3):
                c0, c1, c2, c3 = (draw[3 * corner + channel] for corner in range(4))
                top, bottom = c0 * (256 - u) + c1 * u, c2 * (256 - u) + c3 * u
                pixel.append((top * (256 - v) + bottom * v) // 65536)
            for j in range(6 + index % 7):
                p = draw[16 + 8 * j : 24 + 8 * j]
                dy, dx, radius = y - p[2] * height // 256, x - p[3] * width // 256, 1 + p[4] * min(height, width) // 640
                square = dy * dy + dx * dx
                box = abs(dy) <= radius and abs(dx) <= 1 + radius * (1 + p[1] % 4) // 2
                inside = (
                    square <= radius * radius,
                    box,
                    box and (dy * (p[1] % 5 - 2) + dx * (1 + p[0] % 3)) // (2 + radius // 6) % 2 == 0,
                    dy <= radius and abs(dx) * 2 <= dy + radius,
                    radius * radius >= square and square * 4 >= radius * radius,
                )[p[0] % 5]
                if inside:
                    opacity = 128 + p[1] // 2
                    pixel = [(old * (256 - opacity) + new * opacity) // 256 for old, new in zip(pixel, p[5:8], strict=True)]
            added = (grain[y * width + x] - 128) * strength // 256
            pixels += bytes(min(255, max(0, value + added)) for value in pixel)
    return bytes(pixels)


# ---- images --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("what", "digest"), PINNED.items())
def test_images_are_pinned_bit_for_bit(what: tuple[int, int, int, int], digest: str):
    assert GENERATOR == "shapes-1"
    assert sha256(golden_images(*what)) == digest


@pytest.mark.parametrize(("seed", "count", "height", "width"), [(0, 14, 24, 24), (3, 2, 17, 40), (12345, 1, 41, 9)])
def test_the_published_recipe_gives_the_same_images(seed: int, count: int, height: int, width: int):
    images = golden_images(seed, count, height, width)
    assert [image.tobytes() for image in images] == [by_the_book(seed, index, height, width) for index in range(count)]


def test_the_digests_in_the_published_recipe_are_right():
    rows = re.findall(r"^\| (\d+) x (\d+) \| `([0-9a-f]{64})` \|$", RECIPE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) >= 3
    for height, width, digest in rows:
        assert sha256(golden_images(0, 1, int(height), int(width))[0]) == digest


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1), (28, 28), (33, 64), (224, 224)])
def test_images_are_8_bit_colour_of_the_size_asked_for(height: int, width: int):
    images = golden_images(5, 2, height, width)
    assert images.dtype == np.uint8
    assert images.shape == (2, height, width, 3)


def test_the_first_images_of_a_longer_series_are_the_same():
    np.testing.assert_array_equal(golden_images(0, 12, 20, 30)[:5], golden_images(0, 5, 20, 30))


def test_images_of_another_seed_or_index_are_different():
    images = [*golden_images(0, 8, 16, 16), *golden_images(1, 8, 16, 16)]
    assert len({image.tobytes() for image in images}) == 16


def test_images_use_the_whole_range_of_grey_levels():
    images = golden_images(0, 16, 64, 64)
    assert images.min() == 0
    assert images.max() == 255
    assert len(np.unique(images)) > 200


@pytest.mark.parametrize("axis", [1, 2])
def test_images_are_no_noise_neighbouring_pixels_go_together(axis: int):
    """In noise the correlation is 0 within 0.01 at this size; in photographs it is above 0.9."""
    for image in golden_images(0, 16, 96, 96).astype(np.float64):
        a, b = np.delete(image, -1, axis - 1), np.delete(image, 0, axis - 1)
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.5


def test_images_differ_from_place_to_place_and_from_channel_to_channel():
    """A network that loses a position or swaps channels must notice: neither is an image uniform nor grey."""
    for image in golden_images(0, 16, 64, 64).astype(np.float64):
        assert image.std() > 20
        assert abs(image[..., 0] - image[..., 2]).mean() > 5
        patches = image.reshape(4, 16, 4, 16, 3).mean(axis=(1, 3)).reshape(16, 3)
        assert len(np.unique(patches.round(), axis=0)) > 12


# ---- projections ---------------------------------------------------------------------------------------------------------------------


def test_signs_are_pinned():
    signs = projection_signs(0, "tokens", 12608)
    assert signs.dtype == np.int8
    assert signs[:16].tolist() == [-1, -1, -1, 1, 1, -1, 1, -1, 1, 1, -1, 1, -1, -1, 1, -1]
    assert sha256(signs) == "6594e0c1ec48214dce3f5e0f5391f7f16be5f6d49771f76305b572fc8272974f"


def test_signs_follow_the_published_recipe():
    octets = hashlib.shake_256(b"vit-deploy/shapes-1/7/projection/attention").digest(13)
    expected = [1 if octets[k // 8] >> k % 8 & 1 else -1 for k in range(100)]
    assert projection_signs(7, "attention", 100).tolist() == expected


def test_signs_are_as_often_plus_as_minus_and_differ_by_name_and_seed():
    signs = projection_signs(0, "tokens", 10_000)
    assert abs(signs.mean()) < 0.05  # five standard deviations
    for other in (projection_signs(0, "attention", 10_000), projection_signs(1, "tokens", 10_000)):
        assert abs((signs * other).mean()) < 0.05


def test_a_projection_sums_every_size_th_number_with_its_sign():
    values = np.arange(2 * 3 * 5, dtype=np.float32).reshape(2, 3, 5)
    signs, expected = projection_signs(4, "tokens", 15), np.zeros((2, 4))
    for row in range(2):
        for k, value in enumerate(values[row].ravel()):
            expected[row, k % 4] += int(signs[k]) * float(value)
    projected = project(values, 4, "tokens", 4)
    assert projected.dtype == np.float64
    np.testing.assert_array_equal(projected, expected)  # small integers, so exact


def test_a_projection_is_linear():
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-1000, 1000, (3, 70, 9)).astype(np.float64) for _ in range(2))  # whole numbers, so exact
    np.testing.assert_array_equal(project(2 * a - 3 * b, 0, "x", 64), 2 * project(a, 0, "x", 64) - 3 * project(b, 0, "x", 64))


def test_a_change_anywhere_changes_one_sum_by_as_much():
    values = np.zeros((1, 300))
    for k in (0, 63, 64, 299):
        changed = values.copy()
        changed[0, k] = 2.5
        sums = project(changed, 0, "x", 64)
        assert np.flatnonzero(sums[0]).tolist() == [k % 64]
        assert abs(sums[0, k % 64]) == 2.5


def test_an_image_is_projected_alone():
    values = np.random.default_rng(0).normal(size=(4, 500))
    np.testing.assert_array_equal(project(values, 0, "x", 32)[2:3], project(values[2:3], 0, "x", 32))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_stay_visible_in_a_projection(bad: float):
    values = np.ones((1, 300))
    values[0, [5, 69]] = bad
    assert not np.isfinite(project(values, 0, "x", 64)).all()
