"""Files against PyTorch in float64 from the checkpoint that they were made from: `vit-parity --checkpoint`."""

from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from export_cache import ExportCache
from helpers import assert_mentions, document_of, failed, one_line, run, with_array, with_manifest
from PIL import Image

import vit_runtime as vit
from vit_exporter import digits_source
from vit_exporter.original import open_original
from vit_models import digits_checkpoint
from vit_runtime.errors import InputError, ModelError
from vit_runtime.golden import golden_images
from vit_runtime.parity import check_original, extremes, original


@pytest.fixture(scope="module")
def digits(exports: ExportCache) -> Path:
    return exports.export(digits_source(), "digits.onnx").out


def test_an_honest_file_computes_what_its_checkpoint_says_on_images_that_have_no_record(digits):
    model = vit.load(digits, "cpu")
    report = check_original(model, open_original(digits_checkpoint(), model.manifest), (1, 3), [extremes(model.manifest)])
    assert report.passed, report.worst
    assert {(check.inputs, check.batch_size) for check in report.checks} == {
        (name, size) for name in ("golden", "extremes") for size in (1, 3)
    }
    assert {check.provider for check in report.checks} == {"cpu, against the checkpoint"}


def test_the_truth_is_the_records_on_golden_images(digits):
    golden = vit.read_manifest(digits)[0].golden
    assert golden is not None
    exact, floor = open_original(digits_checkpoint(), vit.read_manifest(digits)[0])(golden_images(0, golden.images, 28, 28))
    for name, expected in golden.expected.items():
        np.testing.assert_array_equal(exact[name].astype(np.float32), expected)
    assert floor == dict(golden.floor)


def test_a_fault_is_seen_and_so_is_a_wrong_mean(digits, tmp_path):
    """Images are prepared as the checkpoint says."""
    changed = with_array(digits, tmp_path, "blocks.0.mlp.fc1.weight", lambda values: values.__imul__(1.1))
    assert run("vit-parity", changed, "--checkpoint", digits_checkpoint(), "--batch-sizes", "1").exit_code == 1
    mean = with_manifest(digits, tmp_path, lambda document: document["preprocessing"].update(mean=[0.5, 0.5, 0.5]))
    reports = document_of(run("vit-parity", mean, "--checkpoint", digits_checkpoint(), "--batch-sizes", "1", "--json"), 1)["models"][0][
        "reports"
    ]
    assert [report["passed"] for report in reports] == [False, False]


def test_a_file_without_a_record_can_be_checked_and_on_photographs(exports, tmp_path):
    out = exports.export(digits_source(), "digits.onnx", verify=False).out
    Image.fromarray(golden_images(5, 1, 60, 80)[0]).save(tmp_path / "photo.png")
    arguments = [out, "--checkpoint", digits_checkpoint(), "--images", tmp_path / "photo.png", "--batch-sizes", "1,2", "--json"]
    (report,) = document_of(run("vit-parity", *arguments))["models"][0]["reports"]
    assert {check["inputs"] for check in report["checks"]} == {"golden", "extremes", "images"}


def test_a_reduced_file_is_held_to_its_own_limits(exports):
    model = vit.load(exports.export(digits_source(), "digits.onnx", target="cpu", precision="int8").out, "cpu")
    report = check_original(model, open_original(digits_checkpoint(), model.manifest), (1, 2))
    assert report.passed, report.worst
    assert model.manifest.parity is not None
    assert report.limits == model.manifest.parity.limits


def test_a_reduced_file_without_limits_needs_them_given(exports):
    path = exports.export(digits_source(), "digits.onnx", target="cpu", precision="int8", verify=False).out
    ask = ("vit-parity", path, "--checkpoint", digits_checkpoint(), "--batch-sizes", "1")
    assert_mentions(failed(run(*ask), 2), "int8", "--min-cosine")
    assert run(*ask, "--min-cosine", "0.9").exit_code == 0
    assert run(*ask, "--min-cosine", "0.99999").exit_code == 1
    assert run(*ask, "--min-cosine", "0.9", "--max-kl", "1e-9").exit_code == 1


def test_a_checkpoint_of_another_network_is_refused(tiny_model: Path, digits):
    message = failed(run("vit-parity", tiny_model, "--checkpoint", digits_checkpoint(), "--batch-sizes", "1"), 2)
    assert_mentions(message, "height", 32, 7)  # which patches of 7 pixels do not divide


def test_what_is_no_checkpoint_is_refused(digits, tmp_path):
    (tmp_path / "junk.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError) as raised:
        open_original(tmp_path / "junk.safetensors", vit.read_manifest(digits)[0])
    assert_mentions(one_line(raised), "junk.safetensors")
    assert "junk.safetensors" in failed(run("vit-parity", digits, "--checkpoint", tmp_path / "junk.safetensors"), 3)


def test_other_shapes_than_the_files_are_told(digits):
    model = vit.load(digits, "cpu")
    compute = open_original(digits_checkpoint(), model.manifest)

    def fewer(images):
        exact, floor = compute(images)
        return {name: values[:, :3] for name, values in exact.items()}, floor

    with pytest.raises(InputError) as raised:
        check_original(model, fewer, (1,))
    assert_mentions(one_line(raised), "logits", "(3,)")


@pytest.mark.unit
def test_the_runtime_finds_the_exporter_by_its_entry_point():
    (found,) = metadata.entry_points(group=original.GROUP)
    assert found.load() is open_original


@pytest.mark.parametrize("broken", [False, True], ids=["not installed", "broken"])
def test_without_the_exporter_it_is_exit_code_4_with_the_remedy(broken, digits, monkeypatch):
    class Broken:
        def load(self):
            raise ImportError("libtorch.so: cannot open shared object file")

    monkeypatch.setattr(original, "entry_points", lambda group: [Broken()] if broken else [])
    message = failed(run("vit-parity", digits, "--checkpoint", digits_checkpoint()), 4)
    assert_mentions(message, "--checkpoint", "PyTorch", "pip install 'vit-deploy[export]'")
    assert ("libtorch.so" in message) is broken
