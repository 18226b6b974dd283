"""What a file carries to be checked by: golden images, extreme ones, and what was made of a picture before the network saw it."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import assert_mentions, document_of, one_line, run, with_array, with_manifest

import vit_runtime as vit
from vit_runtime.golden import ALL_EXTREMES, EXTREMES, extreme_images
from vit_runtime.manifest import Manifest, Nearness
from vit_runtime.model import Model
from vit_runtime.parity import FLOAT32_LIMITS, check_record, golden_inputs, record
from vit_runtime.parity.record import PIXELS, resized
from vit_runtime.preprocess import CoverResize, ExactResize, Preprocessing, ShortestEdgeResize, normalize


def checks_of(model: Model, manifest: Manifest | None = None, inputs: str = "resizing"):
    report = check_record(model.run, manifest or model.manifest, model.provider, (2, 1))
    return [check for check in report.checks if check.inputs == inputs]


# ---- extreme images ------------------------------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_the_extreme_images_are_what_the_recipe_says():
    pixel, checkers, white, black, negative, faint = extreme_images(6, 12, 8, 4)[..., 0].astype(int)
    assert (pixel[6, 4], pixel.sum()) == (255, 255)
    assert checkers[:4, :4].max() == 0
    assert checkers[:4, 4:].min() == 255
    assert checkers[4:8, :4].min() == 255
    assert (white.min(), black.max()) == (255, 0)
    np.testing.assert_array_equal(checkers + negative, 255)
    assert set(np.unique(faint)) == {127, 128}
    assert (faint[0, 0], faint[0, 1], faint[1, 0]) == (127, 128, 128)


@pytest.mark.unit
@pytest.mark.parametrize("channels", [1, 3])
def test_extreme_images_are_grey_and_the_first_of_them_are_the_same(channels: int):
    images = extreme_images(ALL_EXTREMES, 9, 7, 2, channels)
    assert images.shape == (6, 9, 7, channels)
    assert images.dtype == np.uint8
    assert (images == images[..., :1]).all()
    np.testing.assert_array_equal(extreme_images(2, 9, 7, 2, channels), images[:2])


def test_a_record_of_extremes_is_held_at_the_first_batch_size(honest: Model):
    golden = honest.manifest.golden_extremes
    assert golden is not None
    assert (golden.generator, golden.images) == (EXTREMES, 6)
    inputs = normalize(extreme_images(6, 32, 32, 8), honest.manifest.preprocessing)
    np.testing.assert_array_equal(golden_inputs(honest.manifest, golden), inputs)
    found = checks_of(honest, inputs="extremes")
    assert [(check.output, check.batch_size) for check in found] == [(name, 2) for name in golden.expected]
    assert all(check.passed for check in found)


def test_a_fault_that_only_extreme_images_excite_is_seen(tiny_manifest: Manifest, honest: Model):
    """Whatever is wrong with white and black alone; no golden image is of one colour."""

    def run_wrong(batch: np.ndarray) -> dict[str, np.ndarray]:
        flat = batch.reshape(len(batch), -1).std(axis=1) == 0
        outputs = honest.run(batch)
        return {name: np.where(flat.reshape(-1, *[1] * (values.ndim - 1)), values * 1.01, values) for name, values in outputs.items()}

    report = check_record(run_wrong, tiny_manifest, "cpu", (1,))
    assert {check.inputs for check in report.checks if not check.passed} == {"extremes"}


def test_reduced_precision_has_limits_of_its_own_on_extremes(reduced: Model):
    parity = reduced.manifest.parity
    assert parity is not None
    assert parity.extremes is not None
    for check in checks_of(reduced, inputs="extremes"):
        assert check.limit == parity.extremes[check.output]
        assert check.passed
    strict = {name: Nearness(1.0, 0.0) for name in parity.extremes}
    manifest = dataclasses.replace(reduced.manifest, parity=dataclasses.replace(parity, extremes=strict))
    assert not any(check.passed for check in checks_of(reduced, manifest, "extremes"))
    assert all(check.passed for check in checks_of(reduced, manifest, "golden"))


def test_a_file_without_either_record_is_checked_by_the_golden_images_alone(honest: Model):
    manifest = dataclasses.replace(honest.manifest, golden_extremes=None, resized=None)
    report = check_record(honest.run, manifest, "cpu", (1,))
    assert {check.inputs for check in report.checks} == {"golden"}


def test_in_reduced_precision_the_first_batch_size_runs_every_golden_image(reduced: Model, monkeypatch: pytest.MonkeyPatch):
    """Where 100 numbers are enough, ten images of ten logits are; a worst image has to be looked for."""
    monkeypatch.setattr(record, "ENOUGH", 100)
    golden, seen = reduced.manifest.golden, list[int]()
    assert golden is not None

    def counted(batch: np.ndarray) -> dict[str, np.ndarray]:
        seen.append(len(batch))
        return dict(reduced.run(batch))

    manifest = dataclasses.replace(reduced.manifest, golden_extremes=None)
    check_record(counted, manifest, "cpu", (5, 7))
    assert (seen.count(5), seen.count(7)) == (-(-golden.images // 5), 2)
    seen.clear()
    check_record(counted, manifest, "cpu", (5, 7), limits=FLOAT32_LIMITS)
    assert (seen.count(5), seen.count(7)) == (2, 2)


def test_extremes_run_at_the_first_batch_size_and_in_reduced_precision_at_each(honest: Model, reduced: Model):
    for model, sizes in ((honest, [3]), (reduced, [3, 2])):
        checks = check_record(model.run, model.manifest, "cpu", (3, 2)).checks
        assert list(dict.fromkeys(check.batch_size for check in checks if check.inputs == "extremes")) == sizes


# ---- resizing ------------------------------------------------------------------------------------------------------------------------

PLAIN = Preprocessing.paper(32, 32)


@pytest.mark.parametrize(
    "fields",
    [
        {"interpolation": "bicubic"}, {"interpolation": "nearest"}, {"interpolation": "lanczos"}, {"interpolation": "box"},
        {"resize": ShortestEdgeResize(36), "crop": (32, 32)}, {"resize": CoverResize(32, 32), "crop": (32, 32)},
    ],
    ids=str,
)  # fmt: skip
def test_another_way_of_resizing_is_seen(fields: dict[str, Any], honest: Model):
    assert honest.manifest.resized is not None
    spec = honest.manifest.preprocessing
    assert (spec.interpolation, spec.resize) == ("bilinear", ExactResize(32, 32))
    (check,) = checks_of(honest, dataclasses.replace(honest.manifest, preprocessing=dataclasses.replace(spec, **fields)))
    assert not check.passed
    assert check.error.max > 10 / 255


def test_the_command_flags_a_wrong_interpolation(tiny_model: Path, tiny_int8: Path, tmp_path: Path):
    for path in (tiny_model, tiny_int8):
        changed = with_manifest(path, tmp_path, lambda document: document["preprocessing"].update(interpolation="bicubic"))
        (report,) = document_of(run("vit-parity", changed, "--batch-sizes", "1", "--json"), 1)["models"][0]["reports"]
        assert {check["inputs"] for check in report["checks"] if not check["passed"]} == {"resizing"}


def test_another_pillow_may_round_a_pixel_elsewhere(honest: Model):
    """By one grey level at some of them; by three it would not be rounding."""
    record = honest.manifest.resized
    assert record is not None
    for step, passed in ((1, True), (3, False)):
        pixels = record.pixels.copy()
        pixels[::20] = np.where(pixels[::20] > 128, pixels[::20] - step, pixels[::20] + step)
        manifest = dataclasses.replace(honest.manifest, resized=dataclasses.replace(record, pixels=pixels))
        (check,) = checks_of(honest, manifest)
        assert check.passed is passed
        assert check.limit == FLOAT32_LIMITS


@pytest.mark.unit
@pytest.mark.parametrize("size", [(28, 28), (32, 48), (224, 224), (518, 518), (16, 8)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_pixels_that_are_recorded_are_few_and_of_every_channel_and_column(size: tuple[int, int], channels: int):
    spec = Preprocessing.paper(*size, channels)
    record = resized(spec)
    total = size[0] * size[1] * channels
    assert len(record.pixels) == -(-total // record.step) <= PIXELS
    places = np.arange(0, total, record.step)
    if record.step > 1:
        assert {int(place % channels) for place in places} == set(range(channels))
        assert len({int(place // channels % size[1]) for place in places}) > size[1] // 2


def test_a_record_of_another_size_than_the_preprocessing_makes_is_refused(honest: Model):
    record = honest.manifest.resized
    assert record is not None
    manifest = dataclasses.replace(honest.manifest, resized=dataclasses.replace(record, step=record.step + 1))
    with pytest.raises(vit.ModelError) as error:
        checks_of(honest, manifest)
    total = 32 * 32 * 3
    assert_mentions(one_line(error), len(record.pixels), -(-total // (record.step + 1)))


def test_faults_in_weights_do_not_touch_the_pixels(tiny_model: Path, tmp_path: Path):
    model = vit.load(with_array(tiny_model, tmp_path, "head.bias", lambda values: values.__iadd__(1)), "cpu")
    (check,) = checks_of(model)
    assert check.passed
