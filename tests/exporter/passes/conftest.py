"""Small graphs for the passes: their weights and outputs, and a network before and after a pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from export_cache import ExportCache
from networks import TINY, randomized

from vit_exporter.passes.fold_weight_transposes import FoldWeightTransposes
from vit_exporter.passes.simplify import Simplify
from vit_exporter.reference import float32_outputs, float64_outputs
from vit_exporter.trace import trace
from vit_models import ViT
from vit_runtime.parity import measure, scale_of

BATCH = 5  # divides nothing
FUNCTION = '<domain: "local", opset_import: ["": 18]> f (a) => (b) { b = Identity(a) }'


def _random(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.fixture(scope="session")
def weighted() -> Callable[..., ir.Model]:
    """Parses a graph, with shapes inferred; the inputs that are `weights` become initializers with random values."""

    def make(text: str, weights: str) -> ir.Model:
        model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text), strict_mode=True, data_prop=True))
        for value in list(model.graph.inputs):
            if value.name in weights.split():
                model.graph.inputs.remove(value)
                assert value.shape is not None
                values = _random(tuple(value.shape.numpy()), sum(value.name.encode()))
                value.const_value = ir.tensor(values, name=value.name)
                model.graph.register_initializer(value)
        return model

    return make


@pytest.fixture(scope="session")
def run() -> Callable[[ir.Model], list[np.ndarray]]:
    """Gives the graph's outputs for random inputs, by onnxruntime itself."""

    def numbers(model: ir.Model) -> list[np.ndarray]:
        proto = ir.to_proto(model)
        onnx.checker.check_model(proto, full_check=True)
        session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        shapes = {value.name: [BATCH if isinstance(size, str) else size for size in value.shape] for value in session.get_inputs()}
        return session.run(None, {name: _random(tuple(shape), index + 1) for index, (name, shape) in enumerate(shapes.items())})

    return numbers


@pytest.fixture(scope="session")
def written() -> Callable[[ir.Model], bytes]:
    """The graph's bytes, to tell whether it changed."""
    return lambda model: ir.to_proto(model).SerializeToString(deterministic=True)


@pytest.fixture(scope="session")
def with_function() -> Callable[[str], ir.Model]:
    """The graph beside a local function."""
    return lambda text: ir.from_onnx_text(text + FUNCTION)


@pytest.fixture(scope="session")
def simplified(exports: ExportCache) -> Callable[[ViT, int], ir.Model]:
    """The network's graph as the first passes leave it; each network is traced once."""

    def simplify(model: ViT, opset: int) -> ir.Model:
        return exports.graph("simplified", model, opset, lambda: FoldWeightTransposes()(Simplify()(trace(model, opset)).model).model)

    return simplify


@pytest.fixture(scope="session")
def random_network() -> Callable[..., ViT]:
    """A network with a random value in every parameter, so that a lost parameter changes the outputs."""

    def make(outputs: tuple[str, ...] | None = None, dynamic_size: bool = False, **fields: Any) -> ViT:
        return randomized(
            replace(TINY, **{"img_size": (16, 24), "embed_dim": 36, "num_heads": 3, "mlp_dim": 40, **fields}), outputs, dynamic_size
        )

    return make


@pytest.fixture(scope="session")
def worst_floors() -> Callable[[ViT, ir.Model], float]:
    """The graph's error against float64 PyTorch, as a multiple of float32 PyTorch's own error, root mean square; files are limited to 4.

    The worst of the outputs, over 60 images in batches of 5.
    """

    def judge(model: ViT, graph: ir.Model) -> float:
        session = ort.InferenceSession(ir.to_proto(graph).SerializeToString(), providers=["CPUExecutionProvider"])
        images = _random((60, 3, *model.config.img_size), 4)
        truth, single = float64_outputs(model, images), float32_outputs(model, images)
        batches = [session.run(list(model.outputs), {"pixel_values": images[at : at + BATCH]}) for at in range(0, len(images), BATCH)]
        worst = 0.0
        for index, name in enumerate(model.outputs):
            found, scale = np.concatenate([batch[index] for batch in batches]), scale_of(truth[name])
            worst = max(worst, measure(truth[name], found, scale).rms / measure(truth[name], single[name], scale).rms)
        return worst

    return judge
