"""The proof that a recovered network computes what the original file computes: it passes when it does, and only then."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import onnx
import pytest
import torch
from helpers import assert_mentions, one_line
from networks import TINY, randomized

from vit_exporter.recovered import prove
from vit_models import CheckpointError, Options, ViT, load
from vit_runtime.errors import InputError

CONFIG = dataclasses.replace(TINY, img_size=(32, 48), num_registers=2)


def save(path, config=CONFIG, outputs=("logits",), batch=2, half=False):
    """A network as torch's TorchScript exporter writes it; the batch is fixed unless it is None."""
    model = randomized(config, outputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = None if batch else {"images": {0: "batch"}}
        images = torch.randn(batch or 2, 3, *config.img_size)
        torch.onnx.export(model, (images,), str(path), dynamo=False, opset_version=17, input_names=["images"], dynamic_axes=axes)
    return model


@pytest.mark.parametrize("batch", [None, 3])
def test_a_faithful_network_passes_within_a_few_floors(batch, tmp_path):
    save(tmp_path / "model.onnx", batch=batch)
    photographs = np.random.default_rng(5).random((2, 3, 32, 48), np.float32)
    proof = prove(tmp_path / "model.onnx", pixel_values=photographs)
    assert proof.passed
    assert [comparison.output for comparison in proof.comparisons] == ["tokens", "embedding", "logits"]
    assert max(comparison.rms_floors for comparison in proof.comparisons) < 3
    assert proof.images == len(proof.cosines) == 10
    assert min(proof.cosines) > 1 - 1e-9
    assert_mentions(str(proof), 10, "tokens", "embedding", "logits")


def test_weights_beside_the_file_are_found(tmp_path):
    save(tmp_path / "whole.onnx")
    original = onnx.load(tmp_path / "whole.onnx")
    onnx.save(original, tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert prove(tmp_path / "model.onnx").passed


@pytest.mark.parametrize(
    "mistake",
    [{"activation": "gelu_tanh"}, {"layer_norm_eps": 1e-3}, {"num_heads": 4}, {"activation": "quick_gelu"}],
    ids=["tanh", "epsilon", "heads", "quick"],
)
def test_a_network_that_is_nearly_the_same_fails_by_hundreds_of_floors(mistake, tmp_path):
    save(tmp_path / "model.onnx")
    recovered, _ = load(tmp_path / "model.onnx")
    wrong = ViT(dataclasses.replace(recovered.config, **mistake))
    wrong.load_state_dict(recovered.state_dict())
    proof = prove(tmp_path / "model.onnx", wrong.eval())
    assert not proof.passed
    assert min(comparison.rms_floors for comparison in proof.comparisons) > 100
    assert_mentions(str(proof), *(comparison.output for comparison in proof.comparisons))


def test_what_the_user_changed_is_not_compared(tmp_path):
    save(tmp_path / "model.onnx")
    bare, _ = load(tmp_path / "model.onnx", Options(drop_head=True))
    repooled, _ = load(tmp_path / "model.onnx", Options(drop_head=True, pool="mean"))
    assert [each.output for each in prove(tmp_path / "model.onnx", bare).comparisons] == ["tokens", "embedding"]
    assert [each.output for each in prove(tmp_path / "model.onnx", repooled).comparisons] == ["tokens"]


def test_another_image_size_than_the_file_runs_at_is_refused(tmp_path):
    save(tmp_path / "model.onnx")
    larger, _ = load(tmp_path / "model.onnx", Options(img_size=(64, 64)))
    with pytest.raises(InputError) as raised:
        prove(tmp_path / "model.onnx", larger)
    assert_mentions(one_line(raised), "(64, 64)", "(32, 48)", "model.onnx")
    right, _ = load(tmp_path / "model.onnx")
    with pytest.raises(InputError) as raised:
        prove(tmp_path / "model.onnx", right, np.zeros((1, 3, 48, 32), np.float32))
    assert_mentions(one_line(raised), "float32", "(1, 3, 48, 32)", "3, 32, 48")


@pytest.mark.unit
def test_a_file_that_is_no_vision_transformer_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(CheckpointError):
        prove(tmp_path / "model.onnx")


def test_a_file_that_we_exported_comes_back_bit_for_bit(tiny_model, tiny_source):
    recovered, spec = load(tiny_model, Options(format="onnx"))
    assert spec.config == tiny_source.model.config
    for name, value in tiny_source.model.state_dict().items():
        if name not in ("embeddings.cls_token", "embeddings.pos_embed"):  # the class token comes back with its position added
            torch.testing.assert_close(recovered.state_dict()[name], value, rtol=0, atol=0)
    assert prove(tiny_model).passed
