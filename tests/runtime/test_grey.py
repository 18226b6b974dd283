"""A network of one channel, from the export to a prediction: the manifest, the golden images, the checks and pictures of every kind."""

import dataclasses
import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from export_cache import ExportCache
from helpers import assert_mentions, one_line, run
from networks import SHALLOW, initialized, source_of
from PIL import Image

from vit_runtime import load
from vit_runtime.bench import benchmark
from vit_runtime.errors import InputError, ModelError
from vit_runtime.golden import golden_images
from vit_runtime.manifest import SCHEMA_FILE, parse_manifest, read_manifest
from vit_runtime.parity import check_record, golden_inputs
from vit_runtime.preprocess import CoverResize, Preprocessing, preprocess

CONFIG = dataclasses.replace(SHALLOW, img_size=(32, 48), patch_size=16, num_classes=4, in_chans=1)
STEPS = Preprocessing(CoverResize(35, 53), "bicubic", (32, 48), 1 / 255, (0.4,), (0.3,), "L", "half_even")


@pytest.fixture(scope="module")
def grey_model(exports: ExportCache) -> Path:
    """The file of a network of one channel."""
    source = dataclasses.replace(source_of(initialized(CONFIG, seed=0)), preprocessing=STEPS)
    return exports.export(source, "grey.onnx").out


def test_the_manifest_says_one_channel_and_fits_its_schema(grey_model: Path) -> None:
    manifest, _ = read_manifest(grey_model)
    assert manifest.input_shape == ("batch", 1, 32, 48)
    assert manifest.preprocessing == STEPS
    document = json.loads(manifest.to_json())
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))
    validator.validate(document)
    document["input"]["shape"][1] = 3
    assert not validator.is_valid(document)
    with pytest.raises(ModelError) as error:
        parse_manifest(document)
    assert_mentions(one_line(error), 1, "channels", 3)


def test_the_golden_images_are_the_red_of_the_coloured_ones(grey_model: Path) -> None:
    manifest, _ = read_manifest(grey_model)
    assert manifest.golden is not None
    inputs = golden_inputs(manifest, manifest.golden)
    colours = golden_images(manifest.golden.seed, manifest.golden.images, 32, 48)
    assert inputs.shape == (manifest.golden.images, 1, 32, 48)
    np.testing.assert_array_equal(inputs[:, 0], STEPS.table[0][colours[..., 0]])


def test_the_file_passes_its_own_check_and_can_be_timed(grey_model: Path) -> None:
    model = load(grey_model, provider="cpu")
    assert check_record(model.run, model.manifest, "cpu").passed
    assert benchmark(grey_model, "cpu", None, [1], seconds=0, warmup=0).timings[0].runs >= 5


def test_coloured_and_grey_pictures_are_predicted(grey_model: Path) -> None:
    """A coloured picture gives what its grey version gives."""
    model = load(grey_model, provider="cpu")
    colours = Image.fromarray(golden_images(3, 1, 90, 70)[0])
    first, second = model.predict([colours, colours.convert("L")])
    np.testing.assert_array_equal(first.logits, second.logits)
    np.testing.assert_array_equal(model.run(preprocess(colours, STEPS)[None])["logits"][0], first.logits)
    with pytest.raises(InputError) as error:
        model.run(np.zeros((1, 3, 32, 48), np.float32))
    assert_mentions(one_line(error), "(1, 3, 32, 48)", "(batch, 1, 32, 48)")


def test_vit_info_says_how_pictures_become_grey(grey_model: Path) -> None:
    result = run("vit-info", grey_model)
    assert result.exit_code == 0
    assert_mentions(result.stdout, "float32 (batch, 1, 32, 48)")
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("images "))
    assert_mentions(line, "35x53", "bicubic", "32x48")
    assert "RGB" not in line


def test_a_recipe_of_other_channels_than_the_network_is_refused(grey_model: Path) -> None:
    """Before anything runs."""
    manifest, _ = read_manifest(grey_model)
    coloured = dataclasses.replace(manifest, preprocessing=Preprocessing.paper(32, 48)).to_dict()
    assert coloured["input"]["shape"] == ["batch", 3, 32, 48]
    coloured["input"]["shape"] = ["batch", 1, 32, 48]
    with pytest.raises(ModelError) as error:
        parse_manifest(coloured)
    assert_mentions(one_line(error), 3, "channels", 1)
