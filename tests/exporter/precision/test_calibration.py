"""Reduced precision is measured and judged on a folder's images, every second one each, or on generated ones that it owns up to."""

from pathlib import Path

import numpy as np
import pytest
from helpers import assert_mentions, one_line
from PIL import Image

from vit_exporter.precision import calibration
from vit_exporter.precision.calibration import FEW, GENERATED, MAX_IMAGES, SYNTHETIC, ImageSet, load_images
from vit_runtime.errors import InputError
from vit_runtime.golden import golden_images
from vit_runtime.preprocess import Preprocessing

pytestmark = pytest.mark.unit

PREPARED = Preprocessing.paper(8, 12)


def picture(path: Path, number: int) -> Path:
    """An image of one colour, which no resizing changes and which tells its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 7), (number // 256, number % 256, 0)).save(path)
    return path


def pictures(folder: Path, count: int) -> Path:
    for number in range(count):
        picture(folder / f"{number:04}.png", number)
    return folder


def numbers(images: np.ndarray) -> list[int]:
    """Which of `pictures` these are."""
    assert all((image == image[0, 0]).all() for image in images)
    return [int(image[0, 0, 0]) * 256 + int(image[0, 0, 1]) for image in images]


# --- a folder ---------------------------------------------------------------------------------------------------------


def test_every_second_image_calibrates_and_the_others_judge(tmp_path):
    images = load_images(pictures(tmp_path, 9), PREPARED)
    assert numbers(images.calibrate) == [0, 2, 4, 6, 8]
    assert numbers(images.judge) == [1, 3, 5, 7]
    assert (images.source, images.notes) == ("photographs", ())
    assert images.to_dict() == {"source": "photographs", "images": 5}


def test_images_have_the_networks_size_and_are_not_normalised_yet(tmp_path):
    images = load_images(pictures(tmp_path, 8), PREPARED)
    for pixels in (images.calibrate, images.judge):
        assert pixels.shape == (4, 8, 12, 3)
        assert pixels.dtype == np.uint8


def test_a_grey_network_gets_grey_images(tmp_path):
    assert load_images(pictures(tmp_path, 8), Preprocessing.paper(8, 12, 1)).judge.shape == (4, 8, 12, 1)


def test_folders_below_it_count_too_in_the_order_of_their_paths(tmp_path):
    for number, name in enumerate(["cat/1.png", "cat/2.PNG", "dog/1.jpg", "dog/x/2.bmp", "eel/1.png", "eel/2.png", "fox.png", "gnu.png"]):
        Image.new("RGB", (5, 7), (0, number, 0)).save(picture(tmp_path / name, 0))
    found = load_images(tmp_path, PREPARED)
    # A JPEG keeps its colour only nearly: by a level or two of 256.
    np.testing.assert_allclose(found.calibrate[:, 0, 0, 1], [0, 2, 4, 6], atol=2)
    np.testing.assert_allclose(found.judge[:, 0, 0, 1], [1, 3, 5, 7], atol=2)


@pytest.mark.parametrize("count", [1, 2, FEW - 1])
def test_few_images_do_both_and_this_is_said(tmp_path, count):
    images = load_images(pictures(tmp_path, count), PREPARED)
    assert numbers(images.calibrate) == numbers(images.judge) == list(range(count))
    (note,) = images.notes
    assert_mentions(note, count, FEW)  # how many there are, and how many there should be


def test_images_that_cannot_be_read_are_left_out_and_counted_and_the_first_named(tmp_path):
    pictures(tmp_path, 8)
    for name in ("0000a.png", "0001a.jpg", "0002a.png", "0003a.gif"):
        (tmp_path / name).write_bytes(b"no image")
    images = load_images(tmp_path, PREPARED)
    assert numbers(images.calibrate) == [0, 2, 4, 6]
    assert numbers(images.judge) == [1, 3, 5, 7]
    (note,) = images.notes
    assert_mentions(note, 4, tmp_path, "0000a.png", "0001a.jpg", "0002a.png")
    assert "0003a.gif" not in note


def test_both_notes_are_made_where_broken_images_leave_few(tmp_path):
    pictures(tmp_path, 3)
    (tmp_path / "broken.png").write_bytes(b"")
    images = load_images(tmp_path, PREPARED)
    broken, few = images.notes
    assert_mentions(broken, 1, "broken.png")
    assert_mentions(few, 3, FEW)


# --- more than are wanted ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [1, 44, 2 * MAX_IMAGES - 1])
def test_of_too_many_images_some_are_taken_from_all_of_them(tmp_path, more):
    """Not the first ones: folders are often sorted by class."""
    count = 2 * MAX_IMAGES + more
    images = load_images(pictures(tmp_path, count), PREPARED)
    assert (len(images.calibrate), len(images.judge)) == (MAX_IMAGES, MAX_IMAGES)
    taken = sorted(numbers(images.calibrate) + numbers(images.judge))
    assert len(set(taken)) == 2 * MAX_IMAGES
    assert taken[0] == 0
    assert count - taken[-1] <= 2  # the step is at most 2, so the last one taken is one of the last two
    assert max(np.diff(taken)) <= 2


@pytest.mark.parametrize(("limit", "each"), [(6, 5), (5.5, 5), (4, 4)])
def test_large_images_are_fewer_so_that_they_fit_the_memory_for_them(tmp_path, monkeypatch, limit, each):
    monkeypatch.setattr(calibration, "MAX_BYTES", int(limit * 8 * 12 * 3))
    images = load_images(pictures(tmp_path, 10), PREPARED)
    assert (len(images.calibrate), len(images.judge)) == (each, each)


def test_an_image_beyond_the_limit_is_still_one_of_each_kind(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "MAX_BYTES", 1)
    images = load_images(pictures(tmp_path, 10), PREPARED)
    assert numbers(images.calibrate) == numbers(images.judge) == [0, 5]


# --- none -------------------------------------------------------------------------------------------------------------


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as raised:
        load_images(folder, PREPARED)
    return one_line(raised)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    assert_mentions(refusal(tmp_path / "absent"), "--calibrate", tmp_path / "absent")


def test_a_file_is_no_folder(tmp_path):
    assert_mentions(refusal(picture(tmp_path / "one.png", 1)), "--calibrate", tmp_path / "one.png")


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    assert ".jpg" in refusal(tmp_path)


def test_a_folder_of_broken_images_is_refused(tmp_path):
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(b"no image")
    assert_mentions(refusal(tmp_path), "--calibrate", tmp_path, 2)


# --- generated --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generated() -> ImageSet:
    return load_images(None, PREPARED)


def test_without_a_folder_images_are_generated_and_this_is_said(generated):
    assert generated.calibrate.shape == generated.judge.shape == (SYNTHETIC, 8, 12, 3)
    assert generated.notes == (GENERATED,)
    assert_mentions(GENERATED, "--calibrate")
    assert generated.to_dict() == {"source": "synthetic", "images": SYNTHETIC}


def test_what_judges_is_neither_what_calibrated_nor_the_golden_images(generated):
    golden = golden_images(0, SYNTHETIC, 8, 12)
    kinds = [{image.tobytes() for image in images} for images in (generated.calibrate, generated.judge, golden)]
    assert len(set.union(*kinds)) == 3 * SYNTHETIC


def test_they_are_the_same_in_every_call(generated):
    again = load_images(None, PREPARED)
    np.testing.assert_array_equal(generated.calibrate, again.calibrate)
    np.testing.assert_array_equal(generated.judge, again.judge)
