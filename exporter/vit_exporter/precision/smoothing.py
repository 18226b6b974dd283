"""How much of an outlier channel goes into the weight: SmoothQuant's factors (Xiao et al. 2023, sec. 4), its alpha chosen layer by layer.

s = max|x|^alpha / max|w|^(1 - alpha) for each channel of a product's input. A large alpha makes every channel of the input as large as the
others, and leaves no room for an image on which one is larger than on those that were measured. So alpha is chosen by the error of the
product in int8 on images that its ranges were not measured on: each half of the images judges the other. What one alpha for all costs
stands in docs/performance.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vit_exporter.passes.int8 import Product, products_by_source
from vit_exporter.writer import written
from vit_runtime.providers import create_session

ALPHAS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
TOKENS = 1024  # that each half is judged by
STEPS, LARGEST = 255, 127  # of an input with an offset, of a weight without

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Range:
    """The smallest and the largest number of each channel, float32 (C,), and some of the tokens, float32 (tokens, C)."""

    low: Floats
    high: Floats
    tokens: Floats


def smoothing_factors(graph: ir.Model, pixel_values: Floats, symmetric: bool = False) -> dict[str, Floats]:
    """The factors, float32 (C,), of every value that products by weights read, by its name.

    pixel_values float32 (B, C, H, W) are run through onnxruntime, one by one. `symmetric`: inputs are quantised without an offset too.
    """
    groups, middle = products_by_source(graph.graph), len(pixel_values) // 2
    halves = [pixel_values[:middle], pixel_values[middle:]] if middle else [pixel_values, pixel_values]
    ranges = _observe(graph, list(groups), halves)
    return {name: _factors(group, [ranges[name, half] for half in range(2)], symmetric) for name, group in groups.items()}


def _observe(graph: ir.Model, names: list[str], halves: list[Floats]) -> dict[tuple[str, int], Range]:
    """What the values of these names are for each half of the images."""
    tapped, found = graph.clone(), {}
    outputs = {value.name for value in tapped.graph.outputs}
    values = {value.name: value for node in tapped.graph for value in node.outputs}
    tapped.graph.outputs.extend(values[name] for name in names if name not in outputs)
    with written(tapped) as path:
        session, _ = create_session(path, "cpu")
        for half, images in enumerate(halves):
            draw, count = np.random.default_rng(half), -(-TOKENS // len(images))
            lows, highs, tokens = ({name: list[Floats]() for name in names} for _ in range(3))
            for image in images:
                for name, value in zip(names, session.run(names, {graph.graph.inputs[0].name or "": image[None]}), strict=True):
                    rows = value.reshape(-1, value.shape[-1])
                    lows[name].append(rows.min(axis=0))
                    highs[name].append(rows.max(axis=0))
                    tokens[name].append(rows[draw.permutation(len(rows))[:count]])
            for name in names:
                found[name, half] = Range(np.min(lows[name], axis=0), np.max(highs[name], axis=0), np.concatenate(tokens[name]))
    return found


def _factors(group: list[Product], halves: list[Range], symmetric: bool) -> Floats:
    """Those with the alpha that leaves the least error in the products of one input."""
    weights = [product.weight.const_value.numpy() for product in group if product.weight.const_value is not None]
    in_weights = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)

    def error(alpha: float) -> float:
        total = 0.0
        for measured, judging in (halves, halves[::-1]):
            s = _smoothing(measured.low, measured.high, in_weights, alpha)
            low, high = float(np.min(measured.low / s)), float(np.max(measured.high / s))
            largest = max(-low, high)
            rounded = _rounded(judging.tokens / s, *((-largest, largest) if symmetric else (low, high)))
            for weight in weights:
                exact = judging.tokens @ weight
                total += float(np.mean((rounded @ _rounded_weight(weight * s[:, None]) - exact) ** 2) / max(np.var(exact), 1e-30))
        return total

    low, high = np.minimum(halves[0].low, halves[1].low), np.maximum(halves[0].high, halves[1].high)
    return _smoothing(low, high, in_weights, min(ALPHAS, key=error))


def _smoothing(low: Floats, high: Floats, in_weights: Floats, alpha: float) -> Floats:
    """SmoothQuant's equation 4; 1 for a channel that is always zero, or that no weight reads."""
    largest = np.maximum(np.abs(low), np.abs(high))
    used = (largest > 0) & (in_weights > 0)
    s = np.where(used, largest, 1) ** alpha / np.where(used, in_weights, 1) ** (1 - alpha)
    return np.where(used, s, 1).astype(np.float32)


def _rounded(values: Floats, low: float, high: float) -> Floats:
    """As int8 with one scale and an offset holds them; 0 is one of its numbers."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / STEPS or 1.0
    offset = np.rint(-low / scale)
    return ((np.clip(np.rint(values / scale) + offset, 0, STEPS) - offset) * scale).astype(np.float32)


def _rounded_weight(weight: Floats) -> Floats:
    """As int8 with a scale for each output holds it."""
    largest = np.abs(weight).max(axis=0)
    scale = np.where(largest > 0, largest, 1) / np.float32(LARGEST)
    return (np.rint(weight / scale) * scale).astype(np.float32)
