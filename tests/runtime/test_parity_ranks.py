"""The order of classes: what changed, and which changes are near ties."""

import numpy as np
import pytest

from vit_runtime.manifest import Error, Limits, Nearness
from vit_runtime.model import Model
from vit_runtime.parity import check_record
from vit_runtime.parity.judging import Ranks, hold, ranks

SCORES = np.array([[9.0, 8.9, 5.0, 4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 9.0]])


def changed(row: int, **scores: float) -> np.ndarray:
    found = SCORES.copy()
    for name, value in scores.items():
        found[row, int(name[1:])] = value
    return found


def allowed(value: float) -> np.ndarray:
    return np.full(2, value)


@pytest.mark.unit
def test_the_same_scores_have_the_same_order():
    assert ranks(SCORES, SCORES, allowed(0.1)) == Ranks(1.0, 0, 0)


@pytest.mark.unit
def test_another_class_on_top_is_a_near_tie_where_both_may_be_off_by_as_much():
    swapped = changed(0, c1=9.05)
    assert ranks(SCORES, swapped, allowed(0.06)) == Ranks(1.0, 1, 1)
    assert ranks(SCORES, swapped, allowed(0.04)) == Ranks(1.0, 1, 0)


@pytest.mark.unit
def test_five_on_top_may_come_in_any_order_but_not_be_others():
    assert ranks(SCORES, changed(1, c6=5.5), allowed(0.01)).top5 == 1.0
    assert ranks(SCORES, changed(1, c0=5.5), allowed(0.01)).top5 == 0.5


@pytest.mark.unit
def test_three_classes_are_all_among_the_first_five():
    assert ranks(SCORES[:, :3], SCORES[:, 2::-1], allowed(0.01)) == Ranks(1.0, 2, 0)


@pytest.mark.unit
def test_not_a_number_is_no_tie():
    found = ranks(SCORES, changed(0, c2=np.nan), allowed(0.1))
    assert (found.changed, found.near_ties) == (1, 0)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("limit", "gap", "near"),
    [
        (Limits(2.0, 8.0), 1.5, 1),  # 8 floors of 0.1, for either class: 1.6
        (Limits(2.0, 8.0), 1.7, 0),
        (Nearness(0.98, None), 0.39, 1),  # sqrt(2 * 0.02) = 0.2 of the scores' size, which is 1
        (Nearness(0.98, None), 0.41, 0),
    ],
)
def test_how_near_a_tie_is_follows_from_the_limit(limit: Limits | Nearness, gap: float, near: int):
    a, b = 1.0, 1.0 - gap
    expected = np.array([[a, b, -np.sqrt(3 - a * a - b * b)]])  # of a root mean square of 1
    limits = limit if isinstance(limit, Limits) else {"logits": limit}
    truth, found = {"logits": expected}, {"logits": expected[:, [1, 0, 2]]}
    (check,) = hold("cpu", 1, (8, 8), truth, found, {"logits": Error(0.1, 0.1)}, limits, "logits", "golden", {"logits": 1.0})
    assert check.ranks == Ranks(1.0, 1, near)


def test_an_output_that_scores_no_classes_has_no_order(honest: Model):
    for check in check_record(honest.run, honest.manifest, "cpu", (2,)).checks:
        assert (check.ranks is not None) == (check.output == "logits")
        if check.ranks is not None:
            assert check.ranks == Ranks(1.0, 0, 0)
            assert check.to_dict()["ranks"] == {"top5": 1.0, "changed": 0, "near_ties": 0}
