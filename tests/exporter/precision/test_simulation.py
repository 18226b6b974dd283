"""The simulation gives what 16 bits give, number by number, and finds the first node that overflows or loses its way."""

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from helpers import assert_mentions, one_line
from onnx_graphs import in_words

from vit_exporter import VerificationError
from vit_exporter.passes.narrow import Narrow
from vit_exporter.passes.quantize_linears import QuantizeLinears
from vit_exporter.precision.simulation import Simulation
from vit_exporter.writer import write_model

KINDS = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
IMAGES = np.random.default_rng(0).standard_normal((3, 4, 8)).astype(np.float32)


@pytest.fixture
def file(tmp_path) -> Callable[..., Path]:
    """A file of x (batch, 4, 8) that goes through the nodes of `body`, in 16 bits but for islands; weights by name."""

    def make(body: str, kind: str = "float16", wide: tuple[str, ...] = (), **weights: np.ndarray) -> Path:
        model = in_words("batch, 4, 8", body, **weights)
        for node in model.graph:
            node.name = f"layer/{node.outputs[0].name}"
        Narrow(kind, wide)(model)
        path = tmp_path / "file.onnx"
        write_model(path, model, external=False)
        return path

    return make


def square(scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(1).standard_normal((8, 8)) * scale).astype(np.float32)


def outputs(path: Path, images: np.ndarray = IMAGES) -> np.ndarray:
    return Simulation(path).run(["out"], {"x": images})[0]


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_is_rounded_where_it_is_made(kind, file):
    """Done by hand: the image, the weights, the product and what comes of it, each rounded once, to the nearest."""
    path = file("p = MatMul(x, w)  s = Add(p, b)  out = Mul(s, s)", kind, w=square(), b=np.full(8, 0.3, np.float32))

    def half(values: np.ndarray) -> np.ndarray:
        return values.astype(KINDS[kind]).astype(np.float32)

    product = half(half(IMAGES).astype(np.float64) @ half(square()).astype(np.float64))
    total = half(product + half(np.array(0.3, np.float32)))
    expected = half(total * total)
    found = outputs(path)
    # A sum of eight products in float32 may be rounded to the neighbour of what float64 is rounded to; hardly any is.
    assert np.mean(found != expected) < 0.02
    np.testing.assert_allclose(found, expected, rtol=2.0 ** (-8 if kind == "float16" else -5))


def test_it_is_what_onnxruntime_gives_for_one_operation_in_float16(file):
    """Where its CPU has a kernel for float16 itself: the numbers of a Cast."""
    np.testing.assert_array_equal(
        outputs(file("p = MatMul(x, w)  out = Neg(p)", w=np.eye(8, dtype=np.float32))), -IMAGES.astype(np.float16)
    )


def test_an_island_is_not_rounded(file):
    path = file("p = MatMul(x, w)  s = Mul(p, f)  out = Mul(s, g)", wide=("layer/s", "layer/out"),
                w=np.eye(8, dtype=np.float32), f=np.array([1e6], np.float32), g=np.array([1e-6], np.float32))  # fmt: skip
    exact = IMAGES.astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(outputs(path), exact, rtol=1e-6)  # roundings of float32


def test_the_first_node_that_overflows_is_named(file):
    path = file("p = MatMul(x, w)  s = Mul(p, f)  t = Mul(s, f)  out = Softmax(t)", w=square(), f=np.array([300.0], np.float32))
    with pytest.raises(VerificationError) as raised:
        outputs(path, IMAGES * 10)
    assert_mentions(one_line(raised), 16, "layer/t", "--precision", "bf16", "fp32", "--calibrate")


def test_an_overflow_that_the_outputs_do_not_show_is_found_too(file):
    """A sigmoid of Inf is 1."""
    path = file("p = MatMul(x, w)  s = Mul(p, f)  out = Sigmoid(s)", w=square(), f=np.array([60000.0], np.float32))
    with pytest.raises(VerificationError, match=r"\blayer/s\b"):
        outputs(path)


def test_a_weight_that_overflows_is_seen_in_the_node_that_reads_it(file):
    path = file("p = MatMul(x, w)  out = Neg(p)", w=square(1e6))
    with pytest.raises(VerificationError, match=r"\blayer/p\b"):
        outputs(path)


def test_bfloat16_has_the_range_of_float32(file):
    assert np.isfinite(outputs(file("p = MatMul(x, w)  out = Neg(p)", "bfloat16", w=square(1e6)))).all()


def test_the_first_node_that_is_far_off_is_named(file):
    """Small differences of large numbers: 11 bits of 2048 are whole numbers, and what was behind the point is gone."""
    path = file("p = MatMul(x, w)  s = Add(p, c)  d = Sub(s, c)  out = Neg(d)", w=square(0.1), c=np.full(8, 4096, np.float32))
    assert Simulation(path).first_far(IMAGES) == "layer/d"


def test_where_nothing_is_far_off_no_node_is_named(file):
    assert Simulation(file("p = MatMul(x, w)  out = Neg(p)", w=square())).first_far(IMAGES) is None


def test_quantised_layers_are_rounded_to_8_bits_as_they_are_written(file, tmp_path):
    model = ir.load(file("p = MatMul(x, w)  out = Neg(p)", w=np.eye(8, dtype=np.float32)))
    QuantizeLinears("int8", {"w": 127.0})(model)
    path = tmp_path / "quantised.onnx"
    write_model(path, model, external=False)
    # A scale of 1 has whole numbers. That of the weights, 1 / 127, is rounded up to float16, by 2^-10 at most.
    np.testing.assert_allclose(outputs(path, np.full((1, 4, 8), 41.6, np.float32)), -42, rtol=2.0**-10)
