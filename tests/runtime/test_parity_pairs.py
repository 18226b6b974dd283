"""One file against another, one provider against another, an image in a batch against the image alone."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from helpers import assert_mentions, document_of, failed, one_line, run, with_array, with_manifest
from PIL import Image

import vit_runtime as vit
from vit_runtime.errors import InputError, ModelError
from vit_runtime.manifest import Error, Limits, Nearness
from vit_runtime.model import Model
from vit_runtime.parity import BATCH_SIZES, FLOAT32_LIMITS, between, compare, extremes, photographs, steady
from vit_runtime.parity.judging import limits_for
from vit_runtime.parity.pairs import MAX_PHOTOS
from vit_runtime.preprocess import Preprocessing


def changed(model: Model, folder: Path, name: str, change: Callable[[np.ndarray], object]) -> Model:
    return vit.load(with_array(model.path, folder, name, change), model.provider)


def stretch(values: np.ndarray) -> None:
    values *= 1.5


Outputs = dict[str, np.ndarray]


class ChangedModel(Model):
    """A model whose outputs are changed by a function of the batch and the outputs."""

    change: Callable[[np.ndarray, Outputs], Outputs]

    def run(self, pixel_values: Any) -> Outputs:
        return self.change(pixel_values, super().run(pixel_values))


def with_run(model: Model, change: Callable[[np.ndarray, Outputs], Outputs]) -> Model:
    other = ChangedModel(model.path, model.manifest, model.file, model._session, model.provider, model.threads)
    other.change = change
    return other


def by_output(limits: Limits | Mapping[str, Nearness]) -> Mapping[str, Nearness]:
    """The limits of reduced precision."""
    assert not isinstance(limits, Limits)
    return limits


# ---- one against another -------------------------------------------------------------------------------------------------------------


def test_two_levels_of_graph_optimisation_agree(honest: Model):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(honest.path, options, providers=["CPUExecutionProvider"])
    plain = Model(honest.path, honest.manifest, honest.file, session, "cpu", 1)
    report = compare(plain, honest, ("plain", "optimized"))
    assert report.passed
    assert report.worst.error.rms > 0  # they are not the same
    (label,) = {c.provider for c in report.checks}
    assert_mentions(label, "plain", "optimized")
    assert report.limits == Limits(2 * FLOAT32_LIMITS.rms, 2 * FLOAT32_LIMITS.max)
    assert {(c.batch_size, c.inputs) for c in report.checks} == {(size, "golden") for size in BATCH_SIZES}


def test_a_model_agrees_with_itself_to_the_last_bit(honest: Model):
    report = compare(honest, honest, ("a", "b"), pictures=[extremes(honest.manifest)])
    assert report.passed
    assert report.worst.error == Error(0.0, 0.0)
    assert {(c.batch_size, c.inputs) for c in report.checks if c.inputs != "golden"} == {(1, "extremes"), (7, "extremes")}


def test_another_network_does_not_agree(honest: Model, tmp_path: Path):
    other = changed(honest, tmp_path, "blocks.0.attn.qkv.weight", stretch)
    for a, b in ((honest, other), (other, honest)):
        report = compare(a, b, ("a", "b"))
        assert not report.passed
        assert report.worst.rms_floors > 100


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_two_models_that_agree_on_nan_do_not_pass(value: float, honest: Model, tmp_path: Path):
    broken = changed(honest, tmp_path, "head.bias", lambda bias: bias.__setitem__(3, value))
    report = compare(broken, broken, ("a", "b"))
    assert {c.output for c in report.checks if not c.passed} == {"logits"}


def test_what_golden_images_do_not_show_others_may(honest: Model):
    """Faults that act on one kind of images alone: all of one color, and a photograph that was asked for."""

    def blind(batch: np.ndarray, outputs: Outputs) -> Outputs:
        flat = batch.reshape(len(batch), -1)
        outputs["logits"][flat.min(axis=1) == flat.max(axis=1)] += 1
        return outputs

    white = with_run(honest, blind)
    assert compare(honest, white, ("a", "b")).passed
    report = compare(honest, white, ("a", "b"), pictures=[extremes(honest.manifest)])
    assert {(c.inputs, c.output) for c in report.checks if not c.passed} == {("extremes", "logits")}


def test_a_file_for_every_runtime_and_one_that_takes_the_pixels_as_they_are_agree(tiny_model: Path, tiny_openvino_fp32: Path):
    """Each gets its images the way that it wants them."""
    pytest.importorskip("openvino")
    plain, prepared = vit.load(tiny_model, "cpu"), vit.load(tiny_openvino_fp32, "openvino")
    assert plain.manifest.preprocessing.in_graph is not prepared.manifest.preprocessing.in_graph
    report = compare(plain, prepared, ("cpu", "openvino"), (1, 3), [extremes(plain.manifest)])
    assert report.passed, report.worst


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (lambda m: m["labels"].__setitem__(2, "cow"), ("labels", 10, 1)),
        (lambda m: m.__setitem__("labels", None), ("labels", 10, 0)),
        (lambda m: m["preprocessing"].__setitem__("interpolation", "nearest"), ("bilinear", "nearest")),
    ],
)
def test_networks_that_differ_in_what_they_are_asked_for_are_not_compared(
    change: Any, facts: tuple[object, ...], honest: Model, tmp_path: Path
):
    other = vit.load(with_manifest(honest.path, tmp_path, change), "cpu")
    with pytest.raises(InputError) as error:
        compare(honest, other, ("a.onnx", "b.onnx"))
    assert_mentions(one_line(error), other.path, honest.path, *facts)


def test_files_with_other_outputs_are_not_compared(honest: Model, tiny_embedder: Path):
    with pytest.raises(InputError) as error:
        compare(honest, vit.load(tiny_embedder, "cpu"), ("a", "b"))
    assert_mentions(one_line(error), tiny_embedder, honest.path, "outputs", "[logits, embedding, tokens, attention]", "[embedding]")


def test_without_a_golden_record_there_are_no_floors(tiny_unverified: Path):
    model = vit.load(tiny_unverified, "cpu")
    for check in (lambda: compare(model, model, ("cpu", "cpu")), lambda: steady(model, extremes(model.manifest), 3)):
        with pytest.raises(ModelError) as error:
            check()
        assert_mentions(one_line(error), "golden", "--no-verify")


# ---- what may lie between ------------------------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_between_two_float32_files_both_distances_may_lie():
    assert between(Limits(2, 8), Limits(3, 9)) == Limits(5, 17)


@pytest.mark.unit
def test_angles_add_up_and_cosines_fall_with_their_square():
    limit = by_output(between({"logits": Nearness(0.99, 0.01, 0.9984)}, {"logits": Nearness(0.96, 0.04, 0.9999)}))["logits"]
    assert limit.cosine == pytest.approx(1 - (0.1 + 0.2) ** 2)
    assert limit.kl == pytest.approx((0.1 + 0.2) ** 2)
    assert limit.cosine_mean == pytest.approx(1 - (0.04 + 0.01) ** 2)


@pytest.mark.unit
def test_a_mean_that_one_of_two_files_is_not_held_to_is_no_limit_of_both():
    for a, b in ((0.999, None), (None, 0.999)):
        assert by_output(between({"x": Nearness(0.99, None, a)}, {"x": Nearness(0.99, None, b)}))["x"].cosine_mean is None


@pytest.mark.unit
def test_beside_reduced_precision_a_float32_file_is_the_truth():
    near = {"logits": Nearness(0.99, 0.01, 0.999), "embedding": Nearness(0.98, None)}
    for limits in map(by_output, (between(near, FLOAT32_LIMITS), between(FLOAT32_LIMITS, near))):
        assert {name: limit.cosine for name, limit in limits.items()} == pytest.approx({"logits": 0.99, "embedding": 0.98})
        assert limits["logits"].kl == pytest.approx(0.01)
        assert limits["logits"].cosine_mean == pytest.approx(0.999)
        assert limits["embedding"].kl is None


def test_in_reduced_precision_extremes_without_limits_of_their_own_are_held_to_little(reduced: Model):
    """What a file loses on pictures says nothing about them; its own limits do, where it has some."""
    parity = reduced.manifest.parity
    assert parity is not None
    assert parity.extremes is not None
    own = {name: replace(near, cosine=near.cosine / 2) for name, near in parity.extremes.items()}
    assert limits_for(replace(parity, extremes=own), "extremes") == own
    limits = by_output(parity.limits)
    assert limits_for(replace(parity, extremes=None), "extremes") == dict.fromkeys(limits, Nearness(0.875, None))
    assert all(near.cosine_mean for near in limits.values())
    assert limits_for(parity, "images") == {name: replace(near, cosine_mean=None) for name, near in limits.items()}
    large = with_run(reduced, lambda _, outputs: outputs)
    large.manifest = replace(reduced.manifest, parity=replace(parity, extremes=None), golden_extremes=None)
    report = compare(large, large, ("a", "b"), (1, 3), [extremes(large.manifest)])
    held = [check.limit.cosine for check in report.checks if check.inputs == "extremes" and isinstance(check.limit, Nearness)]
    assert held == pytest.approx([0.5] * 2 * len(limits))


def test_extremes_are_measured_in_their_own_floors(honest: Model):
    """Where the file has a record of them."""
    manifest = honest.manifest
    assert manifest.golden is not None
    assert manifest.golden_extremes is not None
    off = with_run(honest, lambda _, outputs: {name: values * (1 + 1e-6) for name, values in outputs.items()})
    report = compare(honest, off, ("a", "b"), (1,), [extremes(manifest)])
    for check in report.checks:
        record = manifest.golden_extremes if check.inputs == "extremes" else manifest.golden
        assert check.rms_floors == pytest.approx(check.error.rms / record.floor[check.output].rms)


def test_a_file_in_int8_agrees_with_itself_and_with_the_float32_file_within_its_limits(reduced: Model):
    report = compare(reduced, reduced, ("a", "b"))
    assert report.passed
    assert report.worst.error == Error(0.0, 0.0)
    for name, limit in by_output(limits_for(reduced.manifest.parity)).items():
        assert 1 - by_output(report.limits)[name].cosine == pytest.approx(4 * (1 - limit.cosine))


def test_one_engine_agrees_with_the_other_on_a_file_in_int8(reduced: Model):
    pytest.importorskip("openvino")
    other = vit.load(reduced.path, "cpu" if reduced.provider == "openvino" else "openvino")
    report = compare(reduced, other, (reduced.provider, other.provider), pictures=[extremes(reduced.manifest)])
    assert report.passed
    assert report.worst.error.rms > 0  # they are not the same
    (label,) = {c.provider for c in report.checks}
    assert_mentions(label, other.provider, reduced.provider)


def test_a_changed_file_in_int8_does_not_agree_with_the_one_it_was(reduced: Model, tmp_path: Path):
    other = changed(reduced, tmp_path, "blocks.0.attn.v.weight_scale", stretch)
    for a, b in ((reduced, other), (other, reduced)):
        assert not compare(a, b, ("a", "b"), (1, 3)).passed


# ---- an image alone and in a batch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fixture", ["tiny_model", "tiny_int8"])
@pytest.mark.parametrize("batch_size", [2, 7, *(pytest.param(size, marks=pytest.mark.full) for size in (4, 6, 9))])
def test_an_image_gives_in_a_batch_what_it_gives_alone(fixture: str, batch_size: int, request: pytest.FixtureRequest):
    model = vit.load(request.getfixturevalue(fixture), "cpu")
    report = steady(model, extremes(model.manifest), batch_size)
    assert report.passed, report.worst
    ((size, inputs, label),) = {(c.batch_size, c.inputs, c.provider) for c in report.checks}
    assert (size, inputs) == (batch_size, "extremes")
    assert_mentions(label, "cpu")
    assert label != "cpu"  # which is the label of a comparison with the record
    assert {c.output for c in report.checks} == {output.name for output in model.manifest.outputs}


def test_a_network_that_mixes_images_is_not_steady(honest: Model):
    mixed = with_run(honest, lambda _, outputs: {name: values + values.mean(axis=0) * 1e-3 for name, values in outputs.items()})
    assert not steady(mixed, extremes(honest.manifest), 3).passed


# ---- pictures ------------------------------------------------------------------------------------------------------------------------


def test_extremes_are_what_no_camera_makes(honest: Model):
    found = extremes(honest.manifest)
    pixel, checkers, white, black, negative, faint = found.images
    assert found.images.dtype == np.uint8
    assert (found.name, found.images.shape) == ("extremes", (6, 32, 32, 3))
    assert (int(black.max()), int(white.min())) == (0, 255)
    assert (int(np.count_nonzero(pixel)), int(pixel.max())) == (3, 255)
    assert np.array_equal(negative, 255 - checkers)
    np.testing.assert_array_equal(checkers[::8, ::8, 0], [[0, 255, 0, 255], [255, 0, 255, 0]] * 2)
    assert (int(faint.min()), int(faint.max())) == (127, 128)


@pytest.mark.unit
def test_photographs_are_prepared_as_the_file_says_and_broken_ones_are_told(images: Path, tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    paths = [images / "a.png", tmp_path / "broken.png", images / "b.jpg"]
    found, broken = photographs(paths, Preprocessing.paper(32, 32))
    assert (found.name, found.images.shape) == ("images", (2, 32, 32, 3))
    (unreadable,) = broken
    assert_mentions(str(unreadable), tmp_path / "broken.png")
    with pytest.raises(InputError) as error:
        photographs([tmp_path / "broken.png"], Preprocessing.paper(32, 32))
    assert_mentions(one_line(error), 1, tmp_path / "broken.png")


@pytest.mark.unit
def test_of_very_many_photographs_some_are_taken_evenly(tmp_path: Path):
    for shade in range(8):
        Image.fromarray(np.full((32, 32, 3), shade, np.uint8)).save(tmp_path / f"{shade}.png")
    paths = [tmp_path / f"{number * 8 // (3 * MAX_PHOTOS)}.png" for number in range(3 * MAX_PHOTOS)]
    found, _ = photographs(paths, Preprocessing.paper(32, 32))
    assert [len(found.images), *found.images[::32, 0, 0, 0]] == [MAX_PHOTOS, *range(8)]


# ---- the command ---------------------------------------------------------------------------------------------------------------------


def test_the_command_holds_files_against_the_first(tiny_model: Path, edited: Callable[[float], Path]):
    path = edited(0.5)
    reports = document_of(run("vit-parity", tiny_model, path, "--batch-sizes", "1,2", "--json"), 1)["models"][1]["reports"]
    alone, pair = [report["checks"][0]["provider"] for report in reports]
    assert alone == "cpu"
    assert_mentions(pair, "cpu", tiny_model)
    assert [report["passed"] for report in reports] == [False, False]
    failed_ones = {(c["inputs"], c["output"]) for c in reports[1]["checks"] if not c["passed"]}
    assert failed_ones == {("golden", "logits"), ("extremes", "logits")}


def test_the_command_compares_on_images_too(tiny_model: Path, images: Path):
    arguments = ("vit-parity", tiny_model, "--images", images, "--batch-sizes", "1,3")
    result = run(*arguments)
    assert result.exit_code == 0
    _, steady_line = [line for line in result.stdout.splitlines() if line.startswith(str(tiny_model))]
    assert_mentions(steady_line, "cpu", 8, 32)
    _, report = document_of(run(*arguments, "--json"))["models"][0]["reports"]
    assert {(check["inputs"], check["batch_size"]) for check in report["checks"]} == {("images", 3)}


def test_an_image_that_cannot_be_read_is_named_counted_and_makes_the_exit_code_3(tiny_model: Path, images: Path):
    (images / "broken.png").write_bytes(b"no picture")
    result = run("vit-parity", tiny_model, "--images", images, "--batch-sizes", "1,3")
    assert result.exit_code == 3
    assert str(tiny_model) in result.stdout  # the others were compared
    first, last = result.stderr.splitlines()
    assert_mentions(first, "error:", images / "broken.png")
    assert_mentions(last, "error:", 1, 6)


def test_files_of_two_networks_are_exit_code_2(tiny_model: Path, tiny_embedder: Path):
    message = failed(run("vit-parity", tiny_model, tiny_embedder, "--batch-sizes", "1"), 2)
    assert_mentions(message, tiny_embedder, tiny_model, "outputs", "[logits, embedding, tokens, attention]", "[embedding]")
