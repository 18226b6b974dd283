"""How near one network's outputs come to another's: numbers that can be worked out by hand, and what is no number."""

import math
from typing import Any

import numpy as np
import pytest

from vit_runtime.accuracy import Accuracy, accuracies, accuracy, cosines, kl_divergence

pytestmark = pytest.mark.unit

THIRDS = math.log(2)  # softmax of (0, log 2) is (1/3, 2/3)


def rows(*values: Any) -> np.ndarray:
    return np.array(values, np.float32)


def random_rows(count: int = 2000, width: int = 100) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)


# ---- the cosine ----------------------------------------------------------------------------------------------------------------------


def test_a_cosine_is_that_of_the_angle_between_two_images_numbers():
    """The same, opposite, at a right angle, at 45 degrees, and 3-4-5 against 4-3-5."""
    a = rows([1, 0], [1, 0], [1, 0], [1, 0], [3, 4])
    b = rows([1, 0], [-1, 0], [0, 1], [1, 1], [4, 3])
    np.testing.assert_allclose(cosines(a, b), [1, -1, 0, math.sqrt(0.5), 0.96], rtol=0, atol=1e-15)  # a few roundings of float64


def test_a_cosine_knows_no_length():
    a = random_rows(20)
    np.testing.assert_allclose(cosines(a, a * np.float32(1024)), 1, rtol=1e-15)  # a power of two: exact but for the norms' roundings


def test_all_numbers_of_an_image_make_one_vector():
    a = random_rows(6, 24).reshape(2, 3, 24)
    b = random_rows(6, 24)[::-1].reshape(2, 3, 24)
    found = cosines(a, b)
    assert found.shape == (2,)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, cosines(a.reshape(2, 72), b.reshape(2, 72)))


def test_no_cosine_is_beyond_one_however_it_is_rounded():
    """A manifest that says 1.0000000000000002 would be refused."""
    a = random_rows()
    assert cosines(a, a).max() == 1
    assert cosines(a, -a).min() == -1


def test_float32_numbers_are_multiplied_in_float64():
    """1e30 squared is beyond float32, 1e-30 squared is 0 in it."""
    for size in (1e30, 1e-30):
        np.testing.assert_allclose(cosines(rows([size, 0]), rows([size, size])), math.sqrt(0.5), rtol=1e-15)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_or_inf_has_no_cosine_and_its_neighbours_keep_theirs(bad: float):
    a, b = rows([1, 2], [1, 0]), rows([1, bad], [1, 0])
    for found in (cosines(a, b), cosines(b, a), cosines(b, b)):
        np.testing.assert_array_equal(found, [np.nan, 1])


def test_nothing_but_zeros_has_no_cosine():
    for other in ([0, 0], [1, 2]):
        assert np.isnan(cosines(rows([0, 0]), rows(other))).all()


# ---- the divergence ------------------------------------------------------------------------------------------------------------------


def test_a_divergence_is_that_of_the_probabilities_in_nats():
    """Of (1/2, 1/2) against (1/3, 2/3): log(1/2) - (log(1/3) + log(2/3)) / 2 = log(9/8) / 2; and the other way round."""
    half, third = rows([0, 0]), rows([0, THIRDS])
    # log 2 is rounded to float32, which moves the probabilities by up to 2e-8.
    np.testing.assert_allclose(kl_divergence(half, third), math.log(9 / 8) / 2, rtol=0, atol=1e-7)
    np.testing.assert_allclose(kl_divergence(third, half), math.log(2 / 3) / 3 + 2 * math.log(4 / 3) / 3, rtol=0, atol=1e-7)


def test_a_constant_added_to_all_scores_changes_no_probability():
    a = rows([0, 1, 2], [3, 5, 4])
    np.testing.assert_array_equal(kl_divergence(a, a + np.float32(64)), [0, 0])


def test_extreme_scores_neither_overflow_nor_divide_by_zero():
    """All on the same class: nothing between them. On another: as many nats as the scores are apart."""
    a = rows([1e38, 0, -1e38], [1000, 0, 0])
    np.testing.assert_array_equal(kl_divergence(a, a), [0, 0])
    np.testing.assert_allclose(kl_divergence(rows([1000, 0]), rows([0, 1000])), 1000, rtol=1e-12)  # e^-1000 is 0


def test_no_divergence_is_negative_however_it_is_rounded():
    a = random_rows()
    near = a.astype(np.float64) + np.random.default_rng(1).normal(size=a.shape) * 1e-9  # far closer than any rounding of the sums
    found = kl_divergence(a, near)
    assert found.min() == 0
    assert found.max() < 1e-14  # the squares of 1e-9 are 1e-18; the rest are roundings of a hundred terms


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_divergence_of_nan_or_inf_is_no_number_that_a_limit_admits(bad: float):
    a, b = rows([1, 2, 3], [1, 0, 0]), rows([1, bad, 3], [1, 0, 0])
    for found in (kl_divergence(a, b), kl_divergence(b, a), kl_divergence(b, b)):
        assert not found[0] <= 1e300
        assert found[1] == 0


# ---- both, and the class on top ------------------------------------------------------------------------------------------------------


def test_scores_are_compared_by_the_class_on_top_too():
    """Three of four images keep theirs."""
    a = rows([3, 1, 2], [1, 3, 2], [1, 2, 3], [3, 2, 1])
    b = rows([9, 1, 2], [1, 9, 2], [1, 2, 9], [2, 3, 1])
    found = accuracy(a, b, scores=True)
    divergence = kl_divergence(a, b)
    assert found.top1 == 0.75
    assert (found.kl_mean, found.kl_max) == (divergence.mean(), divergence.max())
    assert found.cosine_min < found.cosine_mean < 1


def test_what_scores_no_classes_has_neither_classes_nor_probabilities():
    found = accuracy(rows([[1, 0]], [[3, 4]]), rows([[1, 0]], [[4, 3]]), scores=False)
    assert (found.top1, found.kl_mean, found.kl_max) == (None, None, None)
    assert found.cosine_min == pytest.approx(0.96, abs=1e-15)
    assert found.cosine_mean == pytest.approx(0.98, abs=1e-15)


def test_equal_outputs_are_as_near_as_can_be():
    a = random_rows(10)
    found = accuracy(a, a.copy(), scores=True)
    assert found == Accuracy(found.cosine_min, found.cosine_mean, 1.0, 0.0, 0.0)
    assert found.cosine_min == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_number_spoils_the_least_cosine_and_the_largest_divergence(bad: float):
    a = random_rows(5)
    b = a.copy()
    b[3, 7] = bad
    found = accuracy(a, b, scores=True)
    assert math.isnan(found.cosine_min)
    assert math.isnan(found.cosine_mean)
    assert found.kl_max is not None
    assert not found.kl_max <= 1e300
    assert None in found.to_dict().values()  # JSON has no NaN


def test_every_expected_output_is_compared_and_only_the_class_scores_as_scores():
    a = {"logits": random_rows(4, 10), "embedding": random_rows(4, 8)}
    found = accuracies(a, {**a, "tokens": random_rows()}, "logits")
    assert list(found) == ["logits", "embedding"]
    assert (found["logits"].top1, found["embedding"].top1) == (1.0, None)
    assert accuracies(a, a, None)["logits"].top1 is None


def test_as_data_it_has_every_number_by_name():
    assert Accuracy(0.5, 0.75).to_dict() == {"cosine_min": 0.5, "cosine_mean": 0.75, "top1": None, "kl_mean": None, "kl_max": None}
    assert Accuracy(0.5, 0.75, 1.0, 0.25, math.inf).to_dict()["kl_max"] is None
