"""NVIDIA's compiler takes the files that `--target tensorrt` makes, in every precision, for every GPU that has it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vit_exporter import ExportSpec, Source, digits_source, export, random_source
from vit_runtime.golden import golden_images
from vit_runtime.tensorrt import Profile, RefusedError, build, lint

SMS = (75, 80, 86, 89, 120, 121)
LACKING = {"fp32": {75}, "bf16": {75}, "fp8": {75, 80, 86}}  # GPUs without products in that precision
NETWORKS: dict[str, Callable[[], Source]] = {
    "digits": digits_source,
    "ViT-Ti/16": lambda: random_source("ViT-Ti/16"),
    "ViT-B/16": lambda: random_source("ViT-B/16"),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number, pixels in enumerate(golden_images(0, 16, 64, 64)):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def exported(network: str, precision: str, folder: Path, images: Path) -> Path:
    out, calibrate = folder / "vit.onnx", images if precision in ("int8", "fp8") else None
    export(NETWORKS[network], ExportSpec(out, target="tensorrt", precision=precision, verify=False, calibrate=calibrate))
    assert lint(out) == ()
    return out


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
def test_the_embedded_network_builds_for_gpus_that_have_the_precision(precision: str, tmp_path: Path, images: Path):
    path = exported("digits", precision, tmp_path, images)
    for sm in SMS:
        if sm in LACKING.get(precision, ()):
            with pytest.raises(RefusedError):
                build(path, sm=sm)
        else:
            built = build(path, sm=sm)
            assert (built.precision, built.profile) == (precision, Profile(1, 8, 32))
            assert 0 < len(built.layers) < built.nodes


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_vit_ti_builds(precision: str, tmp_path: Path, images: Path):
    assert build(exported("ViT-Ti/16", precision, tmp_path, images), sm=89).fused


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
def test_vit_b_builds_with_batches_of_1_to_32(precision: str, tmp_path: Path, images: Path):
    path = exported("ViT-B/16", precision, tmp_path, images)
    for sm in set(SMS) - LACKING.get(precision, set()):
        assert build(path, profile=Profile(1, 8, 32), sm=sm).fused
