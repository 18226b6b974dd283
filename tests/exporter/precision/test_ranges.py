"""Numbers that float16 cannot hold are found by what they are on images: beyond its end, summed up beyond it, or lost below it."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx_graphs import in_words

from vit_exporter.precision.ranges import LARGEST, LOST, MARGIN, Island, Range, islands, measure, sums, together

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.standard_normal((3, 1, 4, 8)).astype(np.float32)


def graph(body: str, **weights: np.ndarray) -> ir.Model:
    """x float (batch, 1, 4, 8) through nodes named after what they make; weights by name."""
    model = in_words("batch, 1, 4, 8", body, **weights)
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


def weight(scale: float) -> np.ndarray:
    return (RANDOM.standard_normal((8, 8)) * scale).astype(np.float32)


def found(model: ir.Model) -> list[Island]:
    return islands(model, measure(model, IMAGES))


def test_ranges_are_the_largest_magnitudes_over_all_images():
    w = weight(1)
    model = graph("p = MatMul(x, w)  out = Neg(p)", w=w)
    ranges = measure(model, IMAGES)
    assert ranges.keys() == {"x", "p", "out", "p/sums"}
    assert ranges["x"].largest == np.abs(IMAGES).max()
    np.testing.assert_allclose(ranges["p"].largest, np.abs(IMAGES @ w).max(), rtol=1e-5)  # sums in another order
    np.testing.assert_allclose(ranges["p/sums"].largest, (np.abs(IMAGES) @ np.abs(w)).max(), rtol=1e-5)
    assert 0 < ranges["p"].lost < 2.0**-12  # of ordinary numbers rounding costs half a unit in the last place of 11 bits, at most


def test_an_ordinary_network_has_no_islands():
    assert found(graph("p = MatMul(x, w)  out = Softmax(p)", w=weight(1))) == []


def test_what_makes_and_what_reads_numbers_that_are_too_large_becomes_an_island():
    large = LARGEST / MARGIN * 1.01 / np.abs(IMAGES).max()
    model = graph(
        "p = Mul(x, s)  t = Transpose<perm=[0,1,2,3]>(p)  n = Mul(t, r)  out = Neg(n)",
        s=np.array([large], np.float32),
        r=np.array([0.01], np.float32),
    )
    assert [(each.node, each.value, each.reason) for each in found(model)] == [
        ("p", "p", "overflow"),
        ("t", "t", "overflow"),
        ("n", "t", "overflow"),
    ]


def test_within_the_margin_it_does_not():
    large = LARGEST / MARGIN * 0.99 / np.abs(IMAGES).max()
    assert found(graph("out = Mul(x, s)", s=np.array([large], np.float32))) == []


def test_a_product_whose_terms_cancel_is_an_island_for_the_sums_on_its_way():
    """The order of summation is the engine's."""
    w = np.zeros((8, 8), np.float32)
    w[0], w[1] = 30000, -30000
    images = np.ones((1, 1, 4, 8), np.float32)
    model = graph("p = MatMul(x, w)  out = Neg(p)", w=w)
    ranges = measure(model, images)
    assert (ranges["p"].largest, ranges[sums(next(iter(model.graph)))].largest) == (0, 60000)
    assert islands(model, ranges) == [Island("p", "p/sums", 60000.0, "overflow")]


def test_a_weight_beyond_float16_makes_an_island_without_a_margin_as_it_does_not_change():
    for scale, nodes in ((LARGEST, []), (LARGEST * 1.01, ["p"])):
        tiny = np.full((8, 8), 1e-6, np.float32)
        tiny[0, 0] = scale
        model = graph("c = Mul(x, small)  p = MatMul(c, w)  out = Neg(p)", small=np.array([1e-2], np.float32), w=tiny)
        ranges = {name: Range(1.0) for name in measure(model, IMAGES)}
        assert [each.node for each in islands(model, ranges)] == nodes


@pytest.mark.parametrize(("scale", "nodes"), [(1e-4, []), (1e-6, ["p"])])
def test_a_weight_that_rounding_would_lose_makes_an_island(scale, nodes):
    """Such are those of a layer that LayerScale has hardly let in. Below 2^-14 a float16 has a step of 2^-24, 6e-8, whatever its size."""
    model = graph("p = MatMul(x, w)  out = Mul(p, s)", w=weight(scale), s=np.array([1 / scale], np.float32))
    ranges = {name: Range(1.0) for name in measure(model, IMAGES)}
    given = islands(model, ranges)
    assert [each.node for each in given] == nodes + (["out"] if 1 / scale > LARGEST else [])
    assert [each.reason for each in given[:1]] == ["underflow"] * len(nodes)


def test_activations_that_rounding_would_lose_make_islands():
    model = graph("p = Mul(x, s)  q = Mul(p, r)  out = Mul(q, r)", s=np.array([1e-3], np.float32), r=np.array([1e-3], np.float32))
    ranges = measure(model, IMAGES)
    assert ranges["p"].lost < LOST < ranges["q"].lost
    assert [(each.node, each.value, each.reason) for each in found(model)] == [("q", "q", "underflow"), ("out", "out", "underflow")]


@pytest.mark.parametrize("number", [np.inf, np.nan])
def test_numbers_that_are_none_are_no_reason_to_be_silent(number):
    """A float32 network that gives Inf is refused elsewhere; here it must not pass for a small number."""
    model = graph("out = Mul(x, s)", s=np.array([number], np.float32))
    (island,) = found(model)
    assert (island.node, island.reason) == ("out", "overflow")
    assert island.to_dict()["largest"] is None


@pytest.mark.unit
def test_ranges_of_two_sets_of_images_are_the_larger_ones():
    one, other = {"a": Range(1.0, 0.1), "b": Range(3.0, 0.0)}, {"a": Range(2.0, 0.05), "b": Range(1.0, 0.2)}
    assert together(one, other) == {"a": Range(2.0, 0.1), "b": Range(3.0, 0.2)}


def test_the_graph_that_is_measured_stays_as_it_was():
    model = graph("p = MatMul(x, w)  out = Neg(p)", w=weight(1))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    measure(model, IMAGES)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.unit
def test_in_the_manifest_a_number_has_three_digits():
    assert Island("a", "b", 123456.7, "overflow").to_dict() == {"node": "a", "value": "b", "largest": 123000.0, "reason": "overflow"}
