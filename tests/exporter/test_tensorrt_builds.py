"""NVIDIA's compiler takes the files that `--target tensorrt` makes, in every precision, for every GPU that has it."""

from pathlib import Path

import pytest
from export_cache import ExportCache
from target_files import Digits, options_of, shared_digits, write_images

from vit_exporter import random_source
from vit_exporter.targets import TARGETS
from vit_runtime.tensorrt import Profile, RefusedError, build, lint

PRECISIONS = TARGETS["tensorrt"].precisions
SMS = (75, 80, 86, 89, 120, 121)
LACKING = {"fp32": {75}, "bf16": {75}, "fp8": {75, 80, 86}}  # GPUs without matrix multiplications in that precision


def matrix(ordinary: int, lacking: bool) -> list:
    """Pairs of a precision and a GPU that has it, or lacks it. One GPU for each precision is in the ordinary run."""
    pairs = [(precision, sm) for precision in PRECISIONS for sm in SMS if (sm in LACKING.get(precision, ())) == lacking]
    return [pair if pair[1] == ordinary else pytest.param(*pair, marks=pytest.mark.full) for pair in pairs]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def digits(exports: ExportCache, images: Path) -> Digits:
    return shared_digits(exports, images)


def exported(exports: ExportCache, images: Path, arch: str, precision: str) -> Path:
    path = exports.export(random_source(arch), verify=False, **options_for(images, precision)).out
    assert lint(path) == ()
    return path


def options_for(images: Path, precision: str) -> dict:
    """Without verification only static scales look at images."""
    options = options_of(images, "tensorrt", precision)
    return options if precision in ("int8", "fp8") else {**options, "calibrate": None}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_rules_find_nothing_in_the_embedded_network(precision: str, digits: Digits):
    assert lint(digits("tensorrt", precision).out) == ()


@pytest.mark.parametrize(("precision", "sm"), matrix(89, lacking=False))
def test_the_embedded_network_builds_for_gpus_that_have_the_precision(precision: str, sm: int, digits: Digits):
    built = build(digits("tensorrt", precision).out, sm=sm)
    assert (built.precision, built.profile) == (precision, Profile(1, 8, 32))
    assert 0 < len(built.layers) < built.nodes


@pytest.mark.parametrize(("precision", "sm"), matrix(75, lacking=True))
def test_the_embedded_network_is_refused_for_gpus_that_lack_the_precision(precision: str, sm: int, digits: Digits):
    with pytest.raises(RefusedError):
        build(digits("tensorrt", precision).out, sm=sm)


@pytest.mark.full
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_vit_ti_builds(precision: str, exports: ExportCache, images: Path):
    assert build(exported(exports, images, "ViT-Ti/16", precision), sm=89).fused


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_vit_b_builds_with_batches_of_1_to_32(precision: str, exports: ExportCache, images: Path):
    path = exported(exports, images, "ViT-B/16", precision)
    for sm in set(SMS) - LACKING.get(precision, set()):
        assert build(path, profile=Profile(1, 8, 32), sm=sm).fused
