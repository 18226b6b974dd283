"""The factors that make a channel's outliers fit, and that they are chosen on images whose ranges were not measured."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_graphs import stored

from vit_exporter.passes.smooth_products import SmoothProducts
from vit_exporter.precision import smoothing
from vit_exporter.precision.smoothing import ALPHAS, smoothing_factors

TOKENS, CHANNELS = 16, 8
GRAPH = f"""<ir_version: 10, opset_import: ["": 18]> main (float[batch, 1, {TOKENS}, {CHANNELS}] x,
float[{CHANNELS}, 4] w, float[{CHANNELS}, 4] v) => (float[batch, 1, {TOKENS}, 4] out) """


def with_weights(nodes: str, **weights: np.ndarray) -> ir.Model:
    """A graph of these nodes; an image of one channel, 16 rows and 8 columns is 16 tokens."""
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(GRAPH + nodes)))
    for value in model.graph.inputs[1:]:
        model.graph.inputs.remove(value)
        if value.name in weights:
            value.const_value = ir.tensor(weights[value.name], name=value.name)
            model.graph.register_initializer(value)
    return model


def product(weight: np.ndarray) -> ir.Model:
    return with_weights("{ y = Identity(x)  out = MatMul(y, w) }", w=weight)


def images(count: int, spread: np.ndarray, seed: int = 0) -> np.ndarray:
    """Normal numbers, each column as large as its spread."""
    return np.random.default_rng(seed).standard_normal((count, 1, TOKENS, CHANNELS), np.float32) * spread.astype(np.float32)


def int8_error(model: ir.Model, x: np.ndarray, calibration: np.ndarray, factors: np.ndarray, symmetric: bool = False) -> float:
    """Of the product with both sides in int8, by the book and not by the code that is tested: relative, root mean square."""
    weight = stored(model, "w").astype(np.float64)
    measured, values = calibration / factors, x / factors
    low, high = min(measured.min(), 0), max(measured.max(), 0)
    low, high = (-max(-low, high), max(-low, high)) if symmetric else (low, high)
    step = (high - low) / 255
    zero = round(-low / step)
    rounded = (np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step
    scaled = weight * factors[:, None]
    scales = np.abs(scaled).max(axis=0) / 127
    return float(np.sqrt(np.mean((rounded @ (np.rint(scaled / scales) * scales) - x @ weight) ** 2) / np.mean((x @ weight) ** 2)))


@pytest.fixture
def weight() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((CHANNELS, 4)).astype(np.float32)


def test_they_are_smoothquants_for_one_of_the_alphas(weight):
    calibration = images(8, np.array([1, 1, 1, 50, 1, 1, 1, 1]))
    factors = smoothing_factors(product(weight), calibration)["y"]
    assert factors.dtype == np.float32
    assert factors.shape == (CHANNELS,)
    in_inputs, in_weights = np.abs(calibration).max(axis=(0, 1, 2)), np.abs(weight).max(axis=1)
    expected = [in_inputs**alpha / in_weights ** (1 - alpha) for alpha in ALPHAS]
    assert any(np.allclose(factors, each, rtol=1e-5) for each in expected)


@pytest.mark.parametrize("symmetric", [False, True])
def test_an_outlier_channel_costs_less_with_them(weight, symmetric):
    """One channel is fifty times as large as the others, which without factors are left with a handful of steps. Its weights are small, so
    that it counts no more than they do."""
    weight[3] /= 50
    spread = np.array([1, 1, 1, 50, 1, 1, 1, 1])
    model, calibration, others = product(weight), images(8, spread), images(8, spread, seed=9)
    factors = smoothing_factors(model, calibration, symmetric)["y"]
    with_them, without = (int8_error(model, others, calibration, each, symmetric) for each in (factors, np.ones(CHANNELS)))
    assert with_them < without / 2


def test_the_alpha_is_the_one_that_other_images_lose_least_with(weight):
    """Each half judges the other: the choice is that of the sum of both, and not of what the ranges were measured on."""
    model, calibration = product(weight), images(2, np.linspace(1, 30, CHANNELS))
    factors = smoothing_factors(model, calibration)["y"]
    in_weights = np.abs(weight).max(axis=1)

    def of(alpha: float, x: np.ndarray) -> np.ndarray:
        return np.abs(x).max(axis=(0, 1, 2)) ** alpha / in_weights ** (1 - alpha)

    def loss(alpha: float) -> float:
        halves = calibration[:1], calibration[1:]
        return sum(
            int8_error(model, judging, measured, of(alpha, measured)) ** 2 * np.mean((judging @ weight) ** 2) / np.var(judging @ weight)
            for measured, judging in (halves, halves[::-1])
        )

    best = min(ALPHAS, key=loss)
    np.testing.assert_allclose(factors, of(best, calibration), rtol=1e-5)
    assert best != min(ALPHAS)
    assert best != max(ALPHAS)


def test_products_of_one_input_share_their_factors():
    draw = np.random.default_rng(2)
    weights = {name: draw.standard_normal((CHANNELS, 4)).astype(np.float32) for name in "wv"}
    model = with_weights("{ y = Identity(x)  a = MatMul(y, w)  b = MatMul(y, v)  r = Relu(a)  out = Add(r, b) }", **weights)
    factors = smoothing_factors(model, images(4, np.ones(CHANNELS)))
    assert set(factors) == {"y"}
    largest = np.maximum(*(np.abs(weight).max(axis=1) for weight in weights.values()))
    in_inputs = np.abs(images(4, np.ones(CHANNELS))).max(axis=(0, 1, 2))
    assert any(np.allclose(factors["y"], in_inputs**alpha / largest ** (1 - alpha), rtol=1e-5) for alpha in ALPHAS)
    assert SmoothProducts(factors)(model).modified


def test_a_channel_that_is_always_zero_or_read_by_no_weight_is_left_as_it_is(weight):
    weight[2] = 0
    factors = smoothing_factors(product(weight), images(4, np.array([1, 0, 1, 1, 1, 1, 1, 1])))["y"]
    assert factors[1] == factors[2] == 1
    assert np.isfinite(factors).all()


@pytest.mark.parametrize("spread", [np.zeros(CHANNELS), np.full(CHANNELS, 1e-30), np.full(CHANNELS, 1e15)], ids=["zero", "tiny", "huge"])
def test_numbers_without_any_size_to_speak_of_give_factors_above_zero(weight, spread):
    factors = smoothing_factors(product(weight), images(2, spread))["y"]
    assert np.isfinite(factors).all()
    assert factors.min() > 0


def test_one_image_is_enough(weight):
    assert smoothing_factors(product(weight), images(1, np.ones(CHANNELS)))["y"].min() > 0


def test_no_more_tokens_are_kept_than_it_takes(weight, monkeypatch):
    """So that memory does not grow with the number of images."""
    monkeypatch.setattr(smoothing, "TOKENS", 6)
    seen = []
    monkeypatch.setattr(smoothing, "_factors", lambda group, halves, symmetric: seen.append([half.tokens.shape for half in halves]))
    smoothing_factors(product(weight), images(5, np.ones(CHANNELS)))
    assert seen == [[(6, CHANNELS), (6, CHANNELS)]]


def test_the_same_images_give_the_same_factors_and_the_graph_stays_as_it_is(weight):
    model = product(weight)
    first, second = (smoothing_factors(model, images(4, np.ones(CHANNELS)))["y"] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert [value.name for value in model.graph.outputs] == ["out"]
    np.testing.assert_array_equal(stored(model, "w"), weight)
