"""Parity passes what computes the same as PyTorch, and fails every fault that an export could have."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import assert_mentions, one_line, with_array
from onnx import helper, numpy_helper

import vit_runtime as vit
from vit_runtime.accuracy import Accuracy
from vit_runtime.errors import InputError, ModelError
from vit_runtime.golden import golden_images
from vit_runtime.manifest import Error, Golden, Limits, Manifest, Nearness
from vit_runtime.model import Model
from vit_runtime.parity import (
    BATCH_SIZES,
    FLOAT32_LIMITS,
    Report,
    batches,
    check_record,
    golden_inputs,
    judge,
    measure,
    reduce_outputs,
    scale_of,
)
from vit_runtime.preprocess import normalize

Edit = Callable[[onnx.ModelProto], object]
FULL = pytest.mark.full
EQUAL = Accuracy(1.0, 1.0, 1.0, 0.0, 0.0)


@pytest.fixture
def edited(tiny_model: Path, tmp_path: Path) -> Callable[[Edit], Model]:
    """Loads a copy of the tiny file with its graph changed and its manifest as it was."""

    def make(edit: Edit) -> Model:
        proto = onnx.load(tiny_model)
        edit(proto)
        path = tmp_path / "edited.onnx"
        path.write_bytes(proto.SerializeToString())
        return vit.load(path, "cpu")

    return make


def check(model: Model, batch_sizes: tuple[int, ...] = BATCH_SIZES) -> Report:
    return check_record(model.run, model.manifest, model.provider, batch_sizes)


def weights(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in proto.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT and tensor.dims}


def set_weight(name: str, change: Callable[[np.ndarray], object]) -> Edit:
    def edit(proto: onnx.ModelProto) -> None:
        tensor = weights(proto)[name]
        values = numpy_helper.to_array(tensor).copy()
        change(values)
        tensor.CopyFrom(numpy_helper.from_array(values, name))

    return edit


def nudge(values: np.ndarray) -> None:
    """The first number, by half of the weights' standard deviation, which is 0.02."""
    values.reshape(-1)[0] += 0.01


def drop_bias(proto: onnx.ModelProto) -> None:
    node = next(node for node in proto.graph.node if "blocks.0.mlp.fc2.bias" in node.input)
    kept = next(name for name in node.input if name != "blocks.0.mlp.fc2.bias")
    node.CopyFrom(helper.make_node("Identity", [kept], node.output))


def other_epsilon(proto: onnx.ModelProto) -> None:
    """Another default's: 1e-3 where the network has 1e-6."""
    for node in proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == "LayerNormalization" and attribute.name == "epsilon":
                assert attribute.f == pytest.approx(1e-6)
                attribute.f = 1e-3


def tanh_gelu(proto: onnx.ModelProto) -> None:
    """GELU's approximation: erf(z) as tanh((2 z + 4 * 0.044715 z^3) / sqrt(pi))."""
    for name, value in (("c1", 2 / math.sqrt(math.pi)), ("c3", 4 * 0.044715 / math.sqrt(math.pi))):
        proto.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    nodes = list[onnx.NodeProto]()
    for node in proto.graph.node:
        if node.op_type != "Erf":
            nodes.append(node)
            continue
        (z,), (out,) = node.input, node.output
        steps = [("Mul", z, z), ("Mul", f"{out}/0", "c3"), ("Add", f"{out}/1", "c1"), ("Mul", f"{out}/2", z)]
        nodes += [helper.make_node(op, [a, b], [f"{out}/{index}"]) for index, (op, a, b) in enumerate(steps)]
        nodes.append(helper.make_node("Tanh", [f"{out}/3"], [out]))
    assert len(nodes) > len(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def bgr(proto: onnx.ModelProto) -> None:
    """Red and blue exchanged in the patch embedding."""
    set_weight(next(name for name in weights(proto) if "patch_embed.proj.weight" in name), lambda w: w.__setitem__(..., w[:, ::-1].copy()))(
        proto
    )


# ---- an honest file ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 7, *(pytest.param(size, marks=FULL) for size in (2, 4, 5, 8, 11, 16, 17, 33, 64))])
def test_an_honest_file_passes_at_every_batch_size(batch_size: int, honest: Model):
    report = check(honest, (batch_size,))
    assert report.passed
    names = sorted(("logits", "embedding", "tokens", "attention"))
    assert [(c.output, c.inputs) for c in report.checks] == [
        *((name, inputs) for inputs in ("golden", "extremes") for name in names),
        ("pixels", "resizing"),
    ]
    assert {(c.batch_size, c.provider) for c in report.checks if c.inputs != "resizing"} == {(batch_size, "cpu")}


@pytest.mark.parametrize("fixture", ["tiny_model", "tiny_external", "tiny_embedder", "tiny_projected"])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_exported_file_passes_with_one_thread_and_with_two(fixture: str, threads: int, request: pytest.FixtureRequest):
    report = check(vit.load(request.getfixturevalue(fixture), "cpu", threads))
    assert report.passed
    assert report.limits == FLOAT32_LIMITS
    assert report.worst.rms_floors < FLOAT32_LIMITS.rms


def test_what_is_measured_now_is_what_was_recorded_at_export(honest: Model):
    """The same machine and runtime: apart from rounding to two digits the numbers are the same."""
    assert honest.manifest.parity is not None
    now = {(c.batch_size, c.inputs, c.output): c.error for c in check(honest).checks}
    for then in honest.manifest.parity.measured:
        assert then.error.rms == pytest.approx(now[then.batch_size, then.inputs, then.output].rms, rel=0.1)


def test_the_golden_inputs_are_the_golden_images_prepared_as_the_manifest_says(tiny_manifest: Manifest):
    golden = tiny_manifest.golden
    assert golden is not None
    inputs = golden_inputs(tiny_manifest, golden)
    assert inputs.shape == (golden.images, 3, 32, 32)
    np.testing.assert_array_equal(inputs, normalize(golden_images(golden.seed, golden.images, 32, 32), tiny_manifest.preprocessing))


# ---- faults --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", [drop_bias, other_epsilon, tanh_gelu, bgr], ids=["a bias dropped", "epsilon 1e-3", "GELU by tanh", "BGR for RGB"]
)
def test_a_fault_of_an_export_fails(fault: Edit, edited: Callable[[Edit], Model]):
    report = check(edited(fault))
    assert not report.passed
    assert report.worst.rms_floors > 5 * FLOAT32_LIMITS.rms  # no close call


@pytest.mark.parametrize(
    ("parts", "least"), [(("embeddings", "blocks.0", "norm", "head"), 16), pytest.param(("blocks.1",), 10, marks=FULL)]
)
def test_one_value_changed_in_any_weight_fails(parts: tuple[str, ...], least: int, tiny_model: Path, edited: Callable[[Edit], Model]):
    names = [name for name in weights(onnx.load(tiny_model)) if name.startswith(tuple(f"{part}." for part in parts))]
    assert len(names) >= least
    passed = [name for name in names if check(edited(set_weight(name, nudge)), (3,)).passed]
    assert not passed


def test_only_the_outputs_behind_a_fault_fail(edited: Callable[[Edit], Model]):
    report = check(edited(set_weight("head.bias", nudge)))
    assert {c.output for c in report.checks if not c.passed} == {"logits"}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_or_inf_in_a_weight_fails(value: float, edited: Callable[[Edit], Model]):
    report = check(edited(set_weight("head.bias", lambda bias: bias.__setitem__(3, value))))
    assert not report.passed
    assert not report.worst.passed
    assert report.worst.output == "logits"
    assert not math.isfinite(report.worst.rms_floors)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("fixture", ["tiny_model", "tiny_projected"])
def test_a_single_nan_or_inf_in_an_output_fails_also_in_a_projected_one(value: float, fixture: str, request: pytest.FixtureRequest):
    model = vit.load(request.getfixturevalue(fixture), "cpu")

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        outputs = model.run(batch)
        outputs["tokens"][-1, -1, -1] = value
        return outputs

    report = check_record(run, model.manifest, "cpu")
    assert {c.output for c in report.checks if not c.passed} == {"tokens"}
    document = report.to_dict()
    assert document["passed"] is False
    assert None in [entry["rms"] for entry in document["checks"]]  # JSON has no NaN


def test_a_fault_at_one_batch_size_alone_fails_there(honest: Model):
    """As a batch size that was baked into the graph would show: at 3, two images are exchanged."""

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        outputs = honest.run(batch)
        return {name: values[[1, 0, 2]] if len(batch) == 3 else values for name, values in outputs.items()}

    report = check_record(run, honest.manifest, "cpu")
    assert {c.batch_size for c in report.checks if not c.passed} == {3}


def test_float16_weights_do_not_pass_for_float32(edited: Callable[[Edit], Model]):
    def halve(proto: onnx.ModelProto) -> None:
        for name in weights(proto):
            set_weight(name, lambda values: values.__setitem__(..., values.astype(np.float16)))(proto)

    assert not check(edited(halve)).passed


# ---- limits --------------------------------------------------------------------------------------------------------------------------


def test_a_file_is_held_to_its_own_limits_unless_others_are_given(honest: Model):
    parity = honest.manifest.parity
    assert parity is not None
    tight = dataclasses.replace(honest.manifest, parity=dataclasses.replace(parity, limits=Limits(1e-3, 1e-3)))
    assert not check_record(honest.run, tight, "cpu", (1,)).passed
    assert check_record(honest.run, tight, "cpu", (1,), limits=FLOAT32_LIMITS).passed


def test_without_a_golden_record_there_is_nothing_to_go_by(tiny_unverified: Path):
    model = vit.load(tiny_unverified, "cpu")
    with pytest.raises(ModelError) as error:
        check(model)
    assert_mentions(one_line(error), "golden", "--no-verify")


@pytest.mark.parametrize("batch_sizes", [(), (0,), (1, -2)])
def test_impossible_batch_sizes_are_refused(batch_sizes: tuple[int, ...], honest: Model):
    with pytest.raises(InputError) as error:
        check(honest, batch_sizes)
    assert_mentions(one_line(error), list(batch_sizes), 1)


# ---- reduced precision ---------------------------------------------------------------------------------------------------------------


def changed(model: Model, folder: Path, name: str, change: Callable[[np.ndarray], object]) -> Model:
    return vit.load(with_array(model.path, folder, name, change), model.provider)


def limits_of(model: Model) -> dict[str, Nearness]:
    assert model.manifest.parity is not None
    limits = model.manifest.parity.limits
    assert not isinstance(limits, Limits)
    return dict(limits)


def flip_all(values: np.ndarray) -> None:
    values *= -1


def flip_largest(values: np.ndarray) -> None:
    flat = values.reshape(-1)
    flat[np.abs(flat.astype(np.int32)).argmax()] *= -1


def stretch(values: np.ndarray) -> None:
    values *= 1.5


def test_a_file_in_int8_is_as_near_as_it_was_at_any_batch_size(reduced: Model):
    report = check(reduced, (1, 2, 3, 7, 16))
    assert report.passed
    assert {c.batch_size for c in report.checks} == {1, 2, 3, 7, 16}
    assert report.limits == limits_of(reduced)
    report = dataclasses.replace(report, checks=tuple(c for c in report.checks if c.inputs != "resizing"))
    assert {(c.output, c.provider) for c in report.checks} == {(output.name, reduced.provider) for output in reduced.manifest.outputs}
    assert report.worst.rms_floors > FLOAT32_LIMITS.rms  # it is no float32 file, which the limits in floors would tell
    for c in report.checks:
        assert (c.accuracy.kl_max is not None) == (c.accuracy.top1 is not None) == (c.output == "logits")


def test_the_limits_are_twice_what_was_measured_and_at_least_a_ten_thousandth_or_of_the_divergence_a_thousandth(reduced: Model):
    parity = reduced.manifest.parity
    assert parity is not None
    for name, limit in limits_of(reduced).items():
        found = [measured.nearness for measured in parity.measured if (measured.output, measured.inputs) == (name, "golden")]
        assert len(found) == len(BATCH_SIZES)
        loss = max(1 - near.cosine for near in found if near is not None)
        assert 1 - limit.cosine == pytest.approx(max(2 * loss, 1e-4), rel=0.1)  # each was rounded to two digits
        assert (limit.kl is None) == (name != "logits")
        if limit.kl is not None:
            divergence = max(near.kl for near in found if near is not None and near.kl is not None)
            assert limit.kl == pytest.approx(max(2 * divergence, 1e-3), rel=0.1)


@pytest.mark.parametrize("layer", ["attn.v", "attn.proj", "mlp.fc1", "mlp.fc2"])
@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize(("stored", "fault"), [("weight", flip_all), ("weight_scale", stretch)], ids=["signs flipped", "scales stretched"])
def test_a_fault_in_one_layers_integers_or_scales_fails(
    layer: str, block: int, stored: str, fault: Callable[[np.ndarray], object], tiny_int8: Path, tmp_path: Path
):
    """Of all layers but those of queries and keys: with random weights attention is so even that they hardly matter."""
    report = check(changed(vit.load(tiny_int8, "cpu"), tmp_path, f"blocks.{block}.{layer}.{stored}", fault), (1, 3))
    assert not report.passed
    assert 1 - report.worst.accuracy.cosine_min > 1e-3  # ten times what is allowed


def test_one_large_integer_with_the_other_sign_fails(reduced: Model, tmp_path: Path):
    report = check(changed(reduced, tmp_path, "blocks.1.attn.proj.weight", flip_largest), (1,))
    failed = {c.output for c in report.checks if not c.passed}
    assert {"embedding", "logits"} <= failed
    assert "attention" not in failed  # which is computed before it


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_or_inf_in_a_scale_fails(value: float, reduced: Model, tmp_path: Path):
    report = check(changed(reduced, tmp_path, "blocks.1.mlp.fc2.weight_scale", lambda scales: scales.__setitem__(3, value)), (3,))
    assert not report.passed
    assert not math.isfinite(report.worst.accuracy.cosine_min)
    document = report.to_dict()
    assert None in [entry["accuracy"]["cosine_min"] for entry in document["checks"]]  # JSON has no NaN


@pytest.mark.parametrize("output", ["embedding", "logits"])
def test_a_reduced_file_is_held_to_each_of_its_own_limits_unless_others_are_given(output: str, reduced: Model):
    parity, limits = reduced.manifest.parity, limits_of(reduced)
    assert parity is not None
    tight = {**limits, output: dataclasses.replace(limits[output], cosine=1 - 1e-12)}
    manifest = dataclasses.replace(reduced.manifest, parity=dataclasses.replace(parity, limits=tight))
    report = check_record(reduced.run, manifest, "cpu", (1,))
    assert {c.output for c in report.checks if not c.passed} == {output}
    assert check_record(reduced.run, manifest, "cpu", (1,), limits=limits).passed
    assert not check_record(reduced.run, manifest, "cpu", (1,), limits=FLOAT32_LIMITS).passed


def test_probabilities_are_held_to_their_limit_too(reduced: Model):
    limits = limits_of(reduced)
    report = check_record(reduced.run, reduced.manifest, "cpu", (1,), limits={**limits, "logits": Nearness(limits["logits"].cosine, 1e-12)})
    assert {c.output for c in report.checks if not c.passed} == {"logits"}


@pytest.mark.unit
@pytest.mark.parametrize(
    ("cosine", "kl", "limit", "passed"),
    [
        (0.99, 0.01, Nearness(0.99, 0.01), True),
        (0.9899, 0.0, Nearness(0.99, 0.01), False),
        (1.0, 0.0101, Nearness(0.99, 0.01), False),
        (1.0, math.inf, Nearness(0.99, None), True),
        (1.0, None, Nearness(0.99, None), True),
        (1.0, None, Nearness(0.99, 0.01), False),
        (math.nan, 0.0, Nearness(-1.0, math.inf), False),
        (1.0, math.nan, Nearness(-1.0, math.inf), False),
    ],
)
def test_the_verdict_of_reduced_precision_is_on_cosine_and_divergence(cosine: float, kl: float | None, limit: Nearness, passed: bool):
    """A limit is still good, an error of any size in floors is too; a divergence that is limited has to be there."""
    near = Accuracy(cosine, 1.0, 1.0, 0.0, kl)
    found = judge("cpu", 1, (8, 8), "logits", Error(1.0, 1.0), Error(1e-9, 1e-9), near, limit)
    assert found.passed is passed


@pytest.mark.unit
@pytest.mark.parametrize(
    ("mean", "limit", "passed"), [(0.99, 0.99, True), (0.9899, 0.99, False), (0.9, None, True), (math.nan, 0.9, False)]
)
def test_the_mean_of_the_images_is_held_to_its_own_limit(mean: float, limit: float | None, passed: bool):
    found = judge("cpu", 1, (8, 8), "x", Error(1.0, 1.0), Error(1.0, 1.0), Accuracy(0.9, mean), Nearness(0.5, None, limit))
    assert found.passed is passed


def test_a_little_more_lost_on_every_image_fails_though_each_is_within_its_limit(reduced: Model):
    """What a single weight of int8 with the wrong sign does."""
    name, golden = "embedding", reduced.manifest.golden
    assert golden is not None
    limits, truth = limits_of(reduced), golden.expected[name].astype(np.float64)
    wanted = 1 - (limits[name].cosine + (limits[name].cosine_mean or 0)) / 2  # of each image: the mean is beyond, no image is

    aside = np.roll(truth, 1, axis=1)  # at a right angle to it, and as long
    aside -= truth * (aside * truth).sum(axis=1, keepdims=True) / np.square(truth).sum(axis=1, keepdims=True)
    aside *= np.linalg.norm(truth, axis=1, keepdims=True) / np.linalg.norm(aside, axis=1, keepdims=True)
    turned = truth * (1 - wanted) + aside * math.sqrt(1 - (1 - wanted) ** 2)
    report = check_record(lambda batch: {**reduced.run(batch), name: turned}, reduced.manifest, "cpu", (golden.images,))
    checks = [each for each in report.checks if each.inputs == "golden"]
    failed = next(each for each in checks if not each.passed)
    assert [each.output for each in checks if not each.passed] == [name]
    assert isinstance(failed.limit, Nearness)
    assert failed.accuracy.cosine_min > failed.limit.cosine


@pytest.mark.unit
def test_the_worst_of_reduced_precision_has_the_least_cosine_and_nan_is_worst():
    limits = {"x": Nearness(0.5, None)}

    def found(cosine: float) -> Any:
        return judge("cpu", 1, (8, 8), "x", Error(1 / max(cosine, 0.1), 0.0), Error(1.0, 1.0), Accuracy(cosine, 1.0), limits["x"])

    good, bad, nan = found(0.9), found(0.6), found(math.nan)
    assert Report(limits, (good, bad)).worst is bad
    assert Report(limits, (good, nan, bad)).worst is nan
    assert Report(limits, (good, bad)).passed
    assert not Report(limits, (good, nan)).passed


def test_a_reduced_report_as_data_has_its_limits_by_output(reduced: Model):
    document = check(reduced, (3,)).to_dict()
    assert document["passed"] is True
    assert document["limits"] == {
        name: {"cosine": limit.cosine, "kl": limit.kl, "cosine_mean": limit.cosine_mean} for name, limit in limits_of(reduced).items()
    }
    for entry in document["checks"]:
        assert entry["accuracy"].keys() == {"cosine_min", "cosine_mean", "top1", "kl_mean", "kl_max"}
        assert entry["accuracy"]["cosine_min"] <= entry["accuracy"]["cosine_mean"] <= 1


# ---- the numbers ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_an_error_is_in_units_of_the_scale():
    assert measure(np.array([[3.0, 4.0]]), np.array([[3.0, 5.0]]), 2.0) == Error(math.sqrt(0.5) / 2, 0.5)
    assert measure(np.array([1.0, -1.0, 0.0, 0.0]), np.array([0.0, 0.0, 0.0, 0.0]), 1.0) == Error(math.sqrt(0.5), 1.0)
    assert measure(np.array([1.0, 2.0]), np.array([1.0, 2.0]), 5.0) == Error(0.0, 0.0)


@pytest.mark.unit
def test_errors_are_computed_in_float64():
    """In float32, 1 + 2^-30 is 1 and the square of 10^-30 is 0."""
    assert measure(np.array([1.0]), np.array([1 + 2.0**-30]), 1.0) == Error(2.0**-30, 2.0**-30)
    assert measure(np.array([0], np.float32), np.array([1e-30], np.float32), 1.0).rms == pytest.approx(1e-30)


@pytest.mark.unit
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_error_of_nan_or_inf_is_no_number_that_a_limit_admits(bad: float):
    for expected, actual in (([1.0, 2.0], [1.0, bad]), ([1.0, bad], [1.0, bad])):
        error = measure(np.array(expected), np.array(actual), 1.0)
        assert not math.isfinite(error.rms)
        assert not math.isfinite(error.max)
        assert not judge("cpu", 1, (8, 8), "x", error, Error(1.0, 1.0), EQUAL, Limits(1e300, 1e300)).passed


@pytest.mark.unit
def test_arrays_of_different_shapes_are_not_measured():
    """numpy would stretch one over the other."""
    for shape in ((2, 1), (1, 2), (4,), ()):
        with pytest.raises(InputError) as error:
            measure(np.ones((2, 2)), np.ones(shape), 1.0)
        assert_mentions(one_line(error), shape, (2, 2))


@pytest.mark.unit
def test_the_scale_is_the_root_mean_square_and_one_for_zeros():
    assert scale_of(np.array([3.0, 4.0])) == math.sqrt(12.5)
    assert scale_of(np.array([[-2, 2], [2, -2]], np.float32)) == 2.0
    assert scale_of(np.zeros(3)) == 1.0


@pytest.mark.unit
@pytest.mark.parametrize(
    ("rms", "largest", "passed"), [(2.0, 4.0, True), (2.001, 1.0, False), (1.0, 4.001, False), (0.0, 0.0, True), (math.nan, 0.0, False)]
)
def test_the_verdict_is_on_both_errors_in_floors_and_a_limit_is_still_good(rms: float, largest: float, passed: bool):
    found = judge("cpu", 3, (8, 8), "logits", Error(rms * 0.5, largest * 0.25), Error(0.5, 0.25), EQUAL, Limits(2.0, 4.0))
    assert found.passed is passed
    np.testing.assert_equal((found.rms_floors, found.max_floors), (rms, largest))
    assert (found.provider, found.batch_size, found.output) == ("cpu", 3, "logits")


@pytest.mark.unit
def test_a_report_passes_if_there_are_checks_and_all_of_them_passed():
    good, bad = (judge("cpu", 1, (8, 8), "x", Error(rms, 0.0), Error(1.0, 1.0), EQUAL, Limits(2.0, 4.0)) for rms in (1.0, 3.0))
    assert Report(Limits(2.0, 4.0), (good,)).passed
    assert not Report(Limits(2.0, 4.0), (good, bad)).passed
    assert not Report(Limits(2.0, 4.0), ()).passed
    assert Report(Limits(2.0, 4.0), (good, bad)).worst is bad


@pytest.mark.unit
@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 16, 50])
@pytest.mark.parametrize(("images", "width"), [(16, 10), (16, 1000), (3, 1000), (1, 1)])
def test_a_check_covers_a_thousand_numbers_or_every_image_in_whole_batches(batch_size: int, images: int, width: int):
    expected = {"small": np.zeros((images, width), np.float32), "large": np.zeros((images, 9000), np.float32)}
    rows = batches(Golden(0, images, expected, {}, {}, (8, 8)), batch_size)
    assert {len(row) for row in rows} == {batch_size}
    seen = set(np.concatenate(rows).tolist())
    assert seen <= set(range(images))
    assert len(seen) == images or len(seen) * width >= 1000


def test_a_large_output_is_compared_by_its_projection(tiny_projected: Path):
    model = vit.load(tiny_projected, "cpu")
    golden = model.manifest.golden
    assert golden is not None
    outputs = model.run(golden_inputs(model.manifest, golden)[:2])
    reduced = reduce_outputs(outputs, golden)
    assert reduced["tokens"].shape == (2, 256)
    assert reduced["logits"] is outputs["logits"]
