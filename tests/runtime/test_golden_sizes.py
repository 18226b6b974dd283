"""A file that takes any image size carries records of several, and every one of them is held against what it computes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from export_cache import ExportCache
from helpers import assert_mentions, copied, one_line
from networks import SHALLOW, initialized, source_of
from onnx import numpy_helper

from vit_exporter.reference import other_sizes
from vit_runtime import InputError, Model, ModelError, check_record, load, read_manifest
from vit_runtime.manifest import Manifest, parse_manifest
from vit_runtime.parity import BATCH_SIZES

CONFIG = dataclasses.replace(SHALLOW, img_size=(32, 24))
SIZES = [(32, 24), (16, 24), (40, 48), (48, 40)]  # the default; flatter; one and three patches more; half as large again


@pytest.fixture(scope="module")
def path(exports: ExportCache) -> Path:
    """A network whose positions are resampled inside the graph."""
    return exports.export(source_of(initialized(CONFIG, ("logits", "tokens"), dynamic_size=True, seed=3), seed=3), "free.onnx").out


def check(path: Path) -> Any:
    model = load(path, provider="cpu")
    return check_record(model.run, model.manifest, model.provider)


def test_records_are_kept_of_several_sizes(path: Path) -> None:
    manifest, _ = read_manifest(path)
    assert [golden.image_size for golden in manifest.goldens] == SIZES
    assert other_sizes(CONFIG) == SIZES[1:]
    assert parse_manifest(json.loads(manifest.to_json())).to_json() == manifest.to_json()


def test_each_is_checked_at_several_batch_sizes(path: Path) -> None:
    report = check(path)
    assert report.passed
    found = {(check.image_size, check.batch_size) for check in report.checks if check.inputs != "resizing"}
    assert found == {(SIZES[0], batch) for batch in BATCH_SIZES} | {(size, batch) for size in SIZES[1:] for batch in BATCH_SIZES[:2]}


def test_a_fault_that_shows_only_at_another_size_is_found(path: Path, tmp_path: Path) -> None:
    """The kernel's constant for far entries: at the stored size every entry is its own neighbour, and it does not matter."""
    changed = list[str]()

    def change(proto: onnx.ModelProto) -> None:
        for tensor in proto.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.dtype == np.float32 and values.size == 1 and np.isclose(values, -0.75):
                tensor.CopyFrom(numpy_helper.from_array(values * np.float32(1.01), tensor.name))
                changed.append(tensor.name)

    checks = check(copied(path, tmp_path, change)).checks
    assert changed
    assert all(check.passed for check in checks if check.image_size == SIZES[0])
    assert not any(check.passed for check in checks if check.image_size == (40, 48) and check.output == "tokens")


def test_the_model_takes_multiples_of_the_patch_alone(path: Path) -> None:
    model: Model = load(path, provider="cpu")
    assert model.run(np.zeros((2, 3, 8, 80), np.float32))["tokens"].shape == (2, 11, 32)
    with pytest.raises(InputError) as error:
        model.run(np.zeros((2, 3, 12, 80), np.float32))
    assert_mentions(one_line(error), "(2, 3, 12, 80)", 8)


def refused(manifest: Manifest, **changes: Any) -> str:
    with pytest.raises(ModelError) as error:
        parse_manifest(json.loads(dataclasses.replace(manifest, **changes).to_json()))
    return one_line(error)


def test_records_that_do_not_fit_are_refused(path: Path) -> None:
    manifest, _ = read_manifest(path)
    assert manifest.golden is not None
    odd = dataclasses.replace(manifest.golden, image_size=(30, 24))
    assert_mentions(refused(manifest, golden_sizes=(odd,)), "golden", "multiples", 8)
    assert_mentions(refused(manifest, golden=manifest.golden_sizes[1]), "golden", "(40, 48)", "(32, 24)")
    assert_mentions(refused(manifest, golden_sizes=manifest.golden_sizes * 3), 9, "golden")
    assert_mentions(refused(manifest, golden=None, parity=None), 3, "golden")
