"""The search keeps as few layers as the budget needs, the guilty ones first; here on invented tables of accuracy."""

from collections.abc import Collection, Mapping

import numpy as np
import pytest
from helpers import assert_mentions

from vit_exporter.precision.sensitivity import Budget, Kept, mean_cosine, search
from vit_runtime.accuracy import Accuracy

pytestmark = pytest.mark.unit

NAN = float("nan")
COSTS = {"blocks.0.fc1": 0.010, "blocks.0.fc2": 0.080, "blocks.1.fc1": 0.001, "blocks.1.fc2": 0.040, "blocks.2.fc1": 0.020}
WORST_FIRST = sorted(COSTS, key=COSTS.__getitem__, reverse=True)


def accuracy(cosine: float, top1: float | None = None, least: float | None = None) -> Accuracy:
    return Accuracy(cosine if least is None else least, cosine, top1)


class Table:
    """A network whose mean cosine is told by the layers that are kept, and which layers were asked for."""

    def __init__(self, cosine_of) -> None:
        self.cosine_of, self.asked = cosine_of, list[frozenset[str]]()

    def __call__(self, kept: Collection[str]) -> Mapping[str, Accuracy]:
        assert len(set(kept)) == len(kept)
        self.asked.append(frozenset(kept))
        return {"embedding": accuracy(self.cosine_of(frozenset(kept)))}


def additive() -> Table:
    """Each layer costs the same, whatever else is kept."""
    return Table(lambda kept: 1 - sum(cost for layer, cost in COSTS.items() if layer not in kept))


def at_least(cosine: float):
    return lambda found: mean_cosine(found) >= cosine - 1e-12  # sums of costs in another order differ in the last digits


def quiet(text: str) -> None:
    pass


# --- the budget -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "within"),
    [
        ({"embedding": accuracy(1.0)}, True),
        ({"embedding": accuracy(0.99)}, True),  # on average a tenth of 0.1
        ({"embedding": accuracy(0.9899)}, False),
        ({"embedding": accuracy(0.995, least=0.9)}, True),
        ({"embedding": accuracy(0.995, least=0.8999)}, False),
        ({"logits": accuracy(1.0, top1=0.9)}, True),
        ({"logits": accuracy(1.0, top1=0.8999)}, False),
        ({"logits": accuracy(1.0, top1=1.0), "embedding": accuracy(0.98)}, False),
        ({"logits": accuracy(0.98, top1=1.0), "embedding": accuracy(1.0)}, False),
    ],
)
def test_a_budget_of_a_tenth_holds_classes_the_worst_image_and_the_average(found, within):
    assert Budget(0.1).within(found) is within


@pytest.mark.parametrize(
    "broken", [accuracy(NAN), accuracy(1.0, least=NAN), accuracy(NAN, top1=1.0, least=1.0), accuracy(1.0, top1=1.0, least=NAN)]
)
@pytest.mark.parametrize("first", [True, False])
def test_a_nan_is_within_no_budget_whichever_output_has_it(broken, first):
    good = {"logits": accuracy(1.0, top1=1.0)}
    assert not Budget(0.9).within({"embedding": broken, **good} if first else {**good, "embedding": broken})


# --- the search -------------------------------------------------------------------------------------------------------


def test_nothing_is_kept_and_nothing_tried_where_the_network_is_near_enough_already():
    table = additive()
    kept, found = search(list(COSTS), table, at_least(0.8), quiet)
    assert kept == []
    assert table.asked == [frozenset()]
    assert mean_cosine(found) == table.cosine_of(frozenset())


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_guilty_layers_are_kept_and_no_more_than_it_takes(count):
    expected = WORST_FIRST[:count]
    table = additive()
    enough = table.cosine_of(frozenset(expected))
    kept, found = search(list(COSTS), table, at_least(enough), quiet)
    assert [each.layer for each in kept] == expected
    assert mean_cosine(found) == table.cosine_of(frozenset(expected))


def test_of_each_layer_the_cosine_before_and_after_it_was_kept_is_told():
    table = additive()
    kept, found = search(list(COSTS), table, at_least(0.97), quiet)
    assert kept[0] == Kept(WORST_FIRST[0], table.cosine_of(frozenset()), table.cosine_of(frozenset(WORST_FIRST[:1])))
    assert [each.before for each in kept[1:]] == [each.after for each in kept[:-1]]
    assert kept[-1].after == mean_cosine(found)


def test_all_layers_are_kept_if_nothing_suffices():
    kept, found = search(list(COSTS), additive(), lambda found: False, quiet)
    assert [each.layer for each in kept] == WORST_FIRST
    assert mean_cosine(found) == 1


def test_layers_that_help_only_together_are_both_kept():
    table = Table(lambda kept: 1.0 if {"a", "b"} <= kept else 0.9)
    kept, found = search(["x", "a", "b", "y"], table, at_least(1.0), quiet)
    assert {"a", "b"} <= {each.layer for each in kept}
    assert mean_cosine(found) == 1


def test_the_output_that_suffers_most_decides():
    """The embedding is hurt by `a` and the logits by `b`, a little less: first the embedding's layer is kept, then the logits'."""

    def evaluate(kept: Collection[str]) -> Mapping[str, Accuracy]:
        return {"embedding": accuracy(1.0 if "a" in kept else 0.8), "logits": accuracy(1.0 if "b" in kept else 0.9, top1=1.0)}

    kept, _ = search(["b", "a", "c"], evaluate, at_least(1.0), quiet)
    assert [(each.layer, each.before, each.after) for each in kept] == [("a", 0.8, 0.9), ("b", 0.9, 1.0)]


def test_a_layer_that_makes_nan_of_everything_is_the_first_to_be_kept():
    table = Table(lambda kept: NAN if "broken" not in kept else 1 - 0.01 * ("a" not in kept))
    kept, _ = search(["a", "broken", "b"], table, at_least(1.0), quiet)
    assert [each.layer for each in kept] == ["broken", "a"]
    assert [each.before for each in kept] == [-1.0, 0.99]  # numbers all of them: the manifest's JSON has no NaN


def test_who_watches_hears_each_layers_name_and_how_far_it_is():
    messages = list[str]()
    search(list(COSTS), additive(), at_least(0.97), messages.append)
    for number, layer in enumerate(COSTS, 1):
        assert_mentions(messages[number - 1], number, len(COSTS), layer)
    assert_mentions(messages[len(COSTS)], 0, WORST_FIRST[0])  # layers that are kept so far, and the next one


# --- lazily -----------------------------------------------------------------------------------------------------------

LAYERS = 20


def coverage(seed: int) -> Table:
    """What layers mend overlaps: a fault is mended as soon as one of the layers that share it is kept.

    The gain of a layer then never grows as others are kept: the function is submodular, the case that lazy search is exact for. Each layer
    has a fault of its own as well, so that no two layers help equally.
    """
    draw = np.random.default_rng(seed)
    shared = np.concatenate([draw.random((LAYERS, 40)) < 0.15, np.eye(LAYERS, dtype=bool)], axis=1)
    weights = np.asarray(draw.random(shared.shape[1]))
    weights /= 2 * weights.sum()

    def cosine_of(kept: frozenset[str]) -> float:
        mended = shared[[int(name) for name in sorted(kept)]].any(axis=0)
        return float(1 - weights[~mended].sum())

    return Table(cosine_of)


def exhaustive(layers: list[str], table: Table, enough) -> list[str]:
    """In each round every layer is tried."""
    kept = list[str]()
    while len(kept) < len(layers) and not enough(table(kept)):
        kept.append(max((layer for layer in layers if layer not in kept), key=lambda layer: table.cosine_of(frozenset([*kept, layer]))))
    return kept


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("cosine", [0.8, 0.95, 0.999])
def test_lazy_search_keeps_what_trying_every_layer_in_every_round_keeps(seed, cosine):
    table, layers = coverage(seed), [str(number) for number in range(LAYERS)]
    kept, _ = search(layers, table, at_least(cosine), quiet)
    assert [each.layer for each in kept] == exhaustive(layers, coverage(seed), at_least(cosine))
    assert len(kept) > 1  # or there would be nothing to be lazy about


def test_lazy_search_judges_half_the_networks_at_most():
    layers = [str(number) for number in range(LAYERS)]
    asked = rounds = 0
    for seed in range(12):
        table = coverage(seed)
        kept, _ = search(layers, table, at_least(0.95), quiet)
        asked += len(set(table.asked))
        rounds += sum(LAYERS - number for number in range(len(kept)))
    assert asked < rounds / 2
