"""How near a network of reduced precision comes to the exact one, in terms of what its outputs are used for.

An embedding is compared by its angle, so what counts is the cosine; scores are compared by the class on top and by the probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Accuracy:
    """One output on some images, against the same output of the exact network.

    Cosine of an image's numbers, the least and the mean over the images. Of scores of classes also: how many images have the same class
    on top, 0 to 1, and the Kullback-Leibler divergence of the probabilities in nats, mean and largest over the images.
    """

    cosine_min: float
    cosine_mean: float
    top1: float | None = None
    kl_mean: float | None = None
    kl_max: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; a NaN, which JSON has not, is null."""
        return {name: value if value is None or np.isfinite(value) else None for name, value in asdict(self).items()}


def accuracy(expected: Array, actual: Array, scores: bool) -> Accuracy:
    """How near `actual` is to `expected`, arrays of one shape, images first; `scores` says whether they score classes."""
    angles = cosines(expected, actual)
    if not scores:
        return Accuracy(float(angles.min()), float(angles.mean()))
    divergence = kl_divergence(expected, actual)
    same = np.mean(expected.argmax(axis=1) == actual.argmax(axis=1))
    return Accuracy(float(angles.min()), float(angles.mean()), float(same), float(divergence.mean()), float(divergence.max()))


def accuracies(expected: Mapping[str, Array], actual: Mapping[str, Array], class_scores: str | None) -> dict[str, Accuracy]:
    """`accuracy` of every output of `expected`; `class_scores` is the one that scores classes."""
    return {name: accuracy(values, actual[name], name == class_scores) for name, values in expected.items()}


def cosines(expected: Array, actual: Array) -> npt.NDArray[np.float64]:
    """The cosine of each image's numbers with those expected, float64 (images,); NaN where there is NaN or Inf, or nothing but zeros."""
    a, b = (values.reshape(len(values), -1).astype(np.float64) for values in (expected, actual))
    with np.errstate(invalid="ignore"):
        angles = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return np.asarray(np.clip(angles, -1, 1))  # rounding makes some of them 1 + 2^-52


def kl_divergence(expected: Array, actual: Array) -> npt.NDArray[np.float64]:
    """KL(softmax(expected) || softmax(actual)) of each image in nats, float64 (images,); NaN or Inf where there is NaN or Inf."""
    with np.errstate(invalid="ignore"):  # Inf less Inf
        p, q = (_log_softmax(values) for values in (expected, actual))
        divergence = (np.exp(p) * (p - q)).sum(axis=1)
    return np.asarray(np.maximum(divergence, 0))  # rounding makes some of them -10^-15


def _log_softmax(logits: Array) -> Array:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
