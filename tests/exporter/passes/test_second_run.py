"""A pass that has run has nothing left to do. RepeatBlock is not among them: it repeats what it is given."""

import dataclasses

import onnx_ir as ir
import pytest

from vit_exporter.passes.fold_weight_transposes import FoldWeightTransposes
from vit_exporter.passes.name_by_module import NameByModule
from vit_exporter.passes.simplify import Simplify
from vit_exporter.pipeline import PASSES
from vit_exporter.trace import trace
from vit_models import OUTPUT_NAMES, ViT, ViTConfig, init_weights

TINY = ViTConfig(img_size=(16, 16), patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_dim=24, num_classes=3)


@pytest.mark.parametrize(
    "graph_pass", [NameByModule(), Simplify(), FoldWeightTransposes()], ids=lambda graph_pass: type(graph_pass).__name__
)
def test_a_second_run_changes_nothing(graph_pass):
    first = graph_pass(trace(init_weights(ViT(TINY, OUTPUT_NAMES)), 18))
    assert first.modified
    before = ir.to_proto(first.model).SerializeToString(deterministic=True)
    second = graph_pass(first.model)
    assert not second.modified
    assert ir.to_proto(second.model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("opset", [18, 20, 23])
def test_after_all_passes_there_is_nothing_left_for_any(opset):
    model = trace(init_weights(ViT(dataclasses.replace(TINY, layer_scale=True), OUTPUT_NAMES)), opset)
    acted = set()
    for make in PASSES:
        result = make()(model)
        model = result.model
        acted |= {make.__name__} if result.modified else set()
    # torch's exporter writes Gelu itself where there is one.
    assert acted == {make.__name__ for make in PASSES} - ({"FuseAttention"} if opset < 23 else set())
    assert not [make.__name__ for make in PASSES if make()(model).modified]
