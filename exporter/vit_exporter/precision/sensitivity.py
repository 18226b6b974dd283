"""Which layers cost most of the accuracy, and how few of them have to stay in higher precision."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from vit_runtime.accuracy import Accuracy


@dataclass(frozen=True)
class Budget:
    """What reduced precision may cost.

    At most `drop` of the images get another class, no image's cosine falls by more than it, and on average by a tenth of it at most.
    """

    drop: float

    def within(self, found: Mapping[str, Accuracy]) -> bool:
        """Whether all outputs are; with a NaN they are not."""
        worst = [each.top1 for each in found.values() if each.top1 is not None] + [each.cosine_min for each in found.values()]
        return all(each >= 1 - self.drop for each in worst) and mean_cosine(found) >= 1 - self.drop / 10


@dataclass(frozen=True)
class Kept:
    """A layer that stays in higher precision, and the mean cosine with and without it quantised; None where nobody measured it."""

    layer: str
    before: float | None
    after: float | None


Evaluate = Callable[[Collection[str]], Mapping[str, Accuracy]]


def search(
    layers: Sequence[str], evaluate: Evaluate, enough: Callable[[Mapping[str, Accuracy]], bool], tell: Callable[[str], None]
) -> tuple[list[Kept], Mapping[str, Accuracy]]:
    """The layers to keep until `enough` says so, worst first; `evaluate` judges the network with such layers kept.

    First each layer is kept alone. Then the one that helped most is kept for good, and what the others still help is measured
    again only as far as they might be next: what a layer helps seldom grows as others are kept (lazy greedy search, Minoux 1978).
    """
    found = evaluate(())
    kept: list[Kept] = []
    if enough(found):
        return kept, found
    queue = list[tuple[float, int, str]]()
    for number, layer in enumerate(layers):
        tell(f"layer {number + 1} of {len(layers)}: {layer}")
        queue.append((mean_cosine(found) - mean_cosine(evaluate((layer,))), 0, layer))
    heapq.heapify(queue)
    while queue and not enough(found):
        _, seen, layer = heapq.heappop(queue)
        names = [each.layer for each in kept]
        tell(f"{len(kept)} layers kept, next perhaps {layer}")
        trial = evaluate((*names, layer))
        gain = mean_cosine(trial) - mean_cosine(found)
        if seen < len(kept) and queue and -gain > queue[0][0]:  # it helps less than the next one may
            heapq.heappush(queue, (-gain, len(kept), layer))
            continue
        kept.append(Kept(layer, mean_cosine(found), mean_cosine(trial)))
        found = trial
    return kept, found


def mean_cosine(found: Mapping[str, Accuracy]) -> float:
    """Of the output that suffers most; a NaN counts as the opposite direction."""
    return min(each.cosine_mean if math.isfinite(each.cosine_mean) else -1.0 for each in found.values())
