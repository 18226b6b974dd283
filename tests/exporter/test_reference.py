"""The reference is float64 PyTorch, computed without a second set of weights; the floor is float32 PyTorch's distance from it."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from networks import TINY, initialized

from vit_exporter import reference
from vit_exporter.reference import (
    PROJECTED,
    UNIT_ROUNDOFF,
    extreme_count,
    float32_outputs,
    float64_outputs,
    golden_count,
    golden_record,
    golden_records,
)
from vit_models import ARCHS, OUTPUT_NAMES, ViT, ViTConfig
from vit_runtime.golden import ALL_EXTREMES, EXTREMES, extreme_images, golden_images
from vit_runtime.manifest import MAX_GOLDEN_IMAGES
from vit_runtime.parity import measure, scale_of
from vit_runtime.preprocess import Preprocessing, normalize

pytestmark = pytest.mark.unit
CONFIG = dataclasses.replace(TINY, img_size=(32, 48))
KINDS = [{}, {"representation_size": 24}, {"pool": "mean"}, {"pool": "mean", "class_token": False, "layer_norm_eps": 1e-3}]


def network(**fields) -> ViT:
    config = dataclasses.replace(CONFIG, **fields)
    return initialized(config, [name for name in OUTPUT_NAMES if name != "attention" or config.class_token], seed=3)


def pixel_values(count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, *CONFIG.img_size), dtype=np.float32)


@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_float64_outputs_equal_those_of_a_network_turned_to_float64(fields):
    model = network(**fields)
    found = float64_outputs(model, pixel_values())
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(torch.from_numpy(pixel_values()).double())
    assert tuple(found) == model.outputs
    for name, values in zip(model.outputs, expected, strict=True):
        assert found[name].dtype == np.float64
        # The same float64 operations; 1e-12 is thousands of float64's roundings and a fifty-thousandth of a float32 one.
        np.testing.assert_allclose(found[name], values, rtol=1e-12, atol=1e-12, err_msg=name)


def test_the_model_stays_as_it_was():
    model = network()
    before = copy.deepcopy(model.state_dict())
    float64_outputs(model, pixel_values())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for name, values in model.state_dict().items():
        assert torch.equal(values, before[name])
    assert all(value.dtype == np.float32 for value in float32_outputs(model, pixel_values()).values())


@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_the_floor_is_of_the_size_of_float32s_rounding(fields):
    """Half a unit in float32's last place is 6e-8; some hundred roundings that add up at random stay below 1e-5."""
    record = golden_record(network(**fields), Preprocessing.paper(*CONFIG.img_size))
    for name, floor in record.floor.items():
        assert 1e-8 < floor.rms < 1e-5, name
        assert floor.rms <= floor.max < 1e-4, name


def test_a_lucky_network_gets_no_floor_below_float32s_own_resolution():
    """With a head of zeros PyTorch is exact, which another runtime could only match, not come near."""
    model = network(num_classes=50)
    assert model.head is not None
    with torch.no_grad():
        model.head.weight.zero_()
    assert golden_record(model, Preprocessing.paper(*CONFIG.img_size)).floor["logits"].rms == pytest.approx(UNIT_ROUNDOFF, rel=0.005)


def test_a_few_logits_get_no_floor_below_that_of_what_they_are_made_of():
    """16 images of two classes are 32 numbers: how exact those are is chance."""
    model = network(num_classes=2)
    record = golden_record(model, Preprocessing.paper(*CONFIG.img_size))
    assert record.floor["logits"].rms >= record.floor["embedding"].rms
    assert model.head is not None
    with torch.no_grad():
        model.head.weight.zero_()
    luckiest = golden_record(model, Preprocessing.paper(*CONFIG.img_size))
    assert luckiest.floor["logits"] == luckiest.floor["embedding"]
    alone = ViT(model.config, ["logits"])
    alone.load_state_dict(model.state_dict())
    assert golden_record(alone.eval(), Preprocessing.paper(*CONFIG.img_size)).floor == {"logits": luckiest.floor["logits"]}


def test_the_record_holds_what_float64_computes_for_the_golden_images():
    model, preprocessing = network(), Preprocessing.paper(*CONFIG.img_size)
    record = golden_record(model, preprocessing)
    exact = float64_outputs(model, normalize(golden_images(record.seed, record.images, *CONFIG.img_size), preprocessing))
    assert record.projected == {}
    for name, expected in record.expected.items():
        assert expected.dtype == np.float32
        # Stored as float32: half a unit in the last place. In one batch or in several, float64 differs far below that.
        assert measure(exact[name], expected, scale_of(exact[name])).max < 1e-6, name


def test_the_record_is_the_same_from_call_to_call():
    first, second = (golden_record(network(), Preprocessing.paper(*CONFIG.img_size)) for _ in range(2))
    assert first.floor == second.floor
    for name, values in first.expected.items():
        np.testing.assert_array_equal(values, second.expected[name])


def test_outputs_too_large_to_store_are_projected():
    model = network(patch_size=4, embed_dim=64)  # 97 tokens of 64 numbers: 6,208 an image
    record = golden_record(model, Preprocessing.paper(*CONFIG.img_size))
    assert record.projected == {"tokens": PROJECTED}
    assert record.expected["tokens"].shape == (record.images, PROJECTED)
    assert 1e-8 < record.floor["tokens"].rms < 1e-5


def test_extreme_images_have_a_record_but_for_the_largest_networks(monkeypatch: pytest.MonkeyPatch):
    preprocessing = Preprocessing.paper(*CONFIG.img_size)
    golden, record = golden_records(network(), preprocessing)
    assert record is not None
    alone = golden_record(network(), preprocessing)
    for name, values in alone.expected.items():
        np.testing.assert_array_equal(golden.expected[name], values)
    assert (record.generator, record.images, record.image_size) == (EXTREMES, ALL_EXTREMES, CONFIG.img_size)
    truth = float64_outputs(network(), normalize(extreme_images(6, *CONFIG.img_size, 8), preprocessing))
    np.testing.assert_array_equal(record.expected["logits"], truth["logits"].astype(np.float32))
    assert [extreme_count(ARCHS[name]) for name in ("ViT-S/16", "ViT-B/16")] == [6, 0]
    monkeypatch.setattr(reference, "EXTREMES_UP_TO", 0)
    assert golden_records(network(), preprocessing)[1] is None


def test_larger_networks_get_fewer_golden_images():
    configs = sorted([CONFIG, *ARCHS.values()], key=lambda config: config.macs)
    counts = [golden_count(config) for config in configs]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > golden_count(ARCHS["ViT-B/16"]) > counts[-1]


def test_every_network_gets_at_least_two_images_and_a_small_one_no_more_than_the_manifest_allows():
    """Two, so that a batch of different images is checked; the manifest's own limit is 64."""
    huge = dataclasses.replace(ARCHS["ViT-g/14"], img_size=(1400, 1400))
    smallest = ViTConfig(img_size=(1, 1), patch_size=1, embed_dim=1, depth=1, num_heads=1, mlp_dim=1, num_classes=1)
    assert golden_count(huge) >= 2
    assert golden_count(smallest) <= MAX_GOLDEN_IMAGES
