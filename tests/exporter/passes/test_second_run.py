"""A pass that has run has nothing left to do. RepeatBlock is not among them: it repeats what it is given."""

from dataclasses import replace

import onnx_ir as ir
import pytest
from networks import TINY, initialized

from vit_exporter.passes.fold_weight_transposes import FoldWeightTransposes
from vit_exporter.passes.name_by_module import NameByModule
from vit_exporter.passes.simplify import Simplify
from vit_exporter.targets import TARGETS
from vit_exporter.trace import trace
from vit_models import OUTPUT_NAMES
from vit_runtime.preprocess import Preprocessing


@pytest.mark.parametrize(
    "graph_pass", [NameByModule(), Simplify(), FoldWeightTransposes()], ids=lambda graph_pass: type(graph_pass).__name__
)
def test_a_second_run_changes_nothing(graph_pass):
    first = graph_pass(trace(initialized(TINY, OUTPUT_NAMES), 18))
    assert first.modified
    before = ir.to_proto(first.model).SerializeToString(deterministic=True)
    second = graph_pass(first.model)
    assert not second.modified
    assert ir.to_proto(second.model).SerializeToString(deterministic=True) == before


# What has nothing to do: torch's exporter writes Gelu itself where there is one, and attention is one op from opset 23 on.
@pytest.mark.parametrize(
    ("target", "opset", "outputs", "idle"),
    [
        ("portable", 18, OUTPUT_NAMES, {"FuseAttention"}),
        pytest.param("portable", 20, OUTPUT_NAMES, {"FuseAttention"}, marks=pytest.mark.full),
        ("portable", 23, OUTPUT_NAMES, set()),
        ("cpu", 18, OUTPUT_NAMES, {"PruneLastBlock"}),
        ("cpu", 20, ("logits",), set()),
        ("openvino", 20, ("logits", "embedding"), set()),
    ],
)
def test_after_all_passes_there_is_nothing_left_for_any(target, opset, outputs, idle):
    model = trace(initialized(replace(TINY, layer_scale=True), outputs), opset)
    passes, acted = TARGETS[target].passes(Preprocessing.paper(32, 32)), set()
    for graph_pass in passes:
        result = graph_pass(model)
        model = result.model
        acted |= {type(graph_pass).__name__} if result.modified else set()
    names = [type(graph_pass).__name__ for graph_pass in passes]
    assert acted == set(names) - idle
    assert not [type(graph_pass).__name__ for graph_pass in passes if graph_pass(model).modified]
