"""The graph in the precision asked for, with as many layers in a higher one as the accuracy needs."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vit_exporter.passes.applying import apply, entry_of
from vit_exporter.passes.fold_smoothing import FoldSmoothing
from vit_exporter.passes.int8 import products
from vit_exporter.passes.quantize_blocks import QuantizeBlocks, fits_blocks
from vit_exporter.passes.quantize_dynamic import QuantizeDynamic
from vit_exporter.passes.quantize_weights import QuantizeWeights
from vit_exporter.passes.smooth_products import SmoothProducts
from vit_exporter.passes.store_half import StoreHalf
from vit_exporter.precision import static
from vit_exporter.precision.half import half
from vit_exporter.precision.ranges import Island
from vit_exporter.precision.sensitivity import Budget, Kept, search
from vit_exporter.precision.smoothing import smoothing_factors
from vit_exporter.targets import Target
from vit_exporter.verification import open_session
from vit_exporter.writer import written
from vit_runtime.accuracy import Accuracy, accuracies
from vit_runtime.errors import InputError
from vit_runtime.manifest import Execution

MARGIN = 0.8  # of the budget is what the search aims at on its own images, so that others stay within it
FINEST = 1e-12  # of a budget: a cosine tells no less apart
SEARCHED = 24  # images that a search looks at for each layer

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Reduced:
    """A graph in reduced precision, the passes that made it so, the layers that were kept in a higher one, and the islands in float32."""

    graph: ir.Model
    passes: tuple[dict[str, Any], ...]
    kept: tuple[Kept, ...]
    islands: tuple[Island, ...] = ()


@dataclass(frozen=True)
class Judge:
    """Images and what PyTorch's float32 makes of them, to hold a graph against; `class_scores` is the output that scores classes."""

    provider: str
    execution: Execution
    pixel_values: Floats
    expected: Mapping[str, Array]
    class_scores: str | None

    def __call__(self, graph: ir.Model) -> Mapping[str, Accuracy]:
        """How near the graph comes to them, on its provider."""
        with written(graph) as path:
            return self.of_file(path, graph.graph.inputs[0].name or "")

    def of_file(self, path: Path, input_name: str) -> Mapping[str, Accuracy]:
        """How near a file comes to them."""
        session = open_session(path, self.provider, self.execution)
        parts = [session.run(list(self.expected), {input_name: image[None]}) for image in self.pixel_values]
        actual = {name: np.concatenate([part[place] for part in parts]) for place, name in enumerate(self.expected)}
        return accuracies(self.expected, actual, self.class_scores)

    def first(self, count: int) -> Judge:
        """The same with so many of the images, taken evenly."""
        chosen = np.unique(np.linspace(0, len(self.pixel_values) - 1, min(count, len(self.pixel_values))).astype(int))
        expected = {name: values[chosen] for name, values in self.expected.items()}
        return Judge(self.provider, self.execution, self.pixel_values[chosen], expected, self.class_scores)


def execution_of(target: Target, precision: str, width: int) -> Execution:
    """How a file of this target and precision wants to be run; `width` is that of a token."""
    openvino = target.name == "openvino"
    bf16 = openvino and precision in ("bf16", "int8", "int8-static")
    return Execution(target.provider, bf16, width if openvino and precision in ("int8", "int8-static") else None)


def reduce(
    graph: ir.Model,
    target: Target,
    precision: str,
    calibrate: Floats,
    keep: Sequence[str],
    judges: tuple[Judge, Judge] | None,
    budget: Budget | None,
    tell: Callable[[str], None],
    golden: Floats | None = None,
) -> Reduced:
    """The graph in that precision, its scales and ranges measured on the images `calibrate`, float32 (B, C, H, W).

    On a GPU no image of `golden` overflows in 16 bits either; these are what the file is held against.
    The layers of `keep` stay in higher precision. With a budget, others do so too until the first judge finds the network within it, with
    a margin, and the second, whose images the search does not look at, does so as well.
    Raises: InputError for a name in `keep` that is no layer of the graph, MachineError where a package for it is missing.
    """
    halved = None
    if target.on_gpu:
        tell("measuring ranges")
        halved = half(graph, target, precision, calibrate, calibrate if golden is None else golden)
        base, layers, first = halved.graph, list(halved.largest), list(halved.passes)
    elif precision == "int8-static":
        tell("measuring scales")
        smooth, first = apply(graph.clone(), [SmoothProducts(smoothing_factors(graph, calibrate))])
        base = static.quantize_static(smooth, calibrate)
        layers = static.units(base)
        first.append(entry_of("QuantizeStatic", len(smooth.graph), base))
    else:
        fitting = [product for product in products(graph.graph) if precision != "int4w" or fits_blocks(product)]
        base, layers, first = graph, [product.layer for product in fitting], []

    def make(kept: Collection[str]) -> tuple[ir.Model, list[dict[str, Any]]]:
        if halved is not None:
            model, applied = apply(base.clone(), halved.last(kept))
            return model, [*first, *applied]
        if precision != "int8-static":
            return apply(base.clone(), [_pass_of(target, precision, kept)])
        model, applied = apply(static.without(base, kept), [FoldSmoothing()])
        return model, [*first, *applied]

    _check_names(keep, layers)
    kept = [Kept(layer, None, None) for layer in keep]
    if judges is not None and budget is not None:
        others = [layer for layer in layers if layer not in keep]
        kept += _kept(others, lambda names: make([*keep, *names])[0], judges, budget, tell)
    model, passes = make([each.layer for each in kept])
    return Reduced(model, tuple(passes), tuple(kept), halved.islands if halved is not None else ())


def _check_names(keep: Sequence[str], layers: Sequence[str]) -> None:
    for name in keep:
        if name not in layers:
            nearest = difflib.get_close_matches(name, layers, n=1) or layers[:1]
            raise InputError(
                f"got --keep {name}, expected the name of a layer that is quantised, such as {nearest[0] if nearest else 'none'}"
            )


def _pass_of(target: Target, precision: str, kept: Collection[str]) -> ir.passes.PassBase:
    match precision:
        case "fp16":
            return StoreHalf("float16")
        case "bf16":
            return StoreHalf("bfloat16")
        case "int4w":
            return QuantizeBlocks(kept)
        case _:
            return QuantizeWeights(kept) if target.name == "openvino" else QuantizeDynamic(kept)


def _kept(
    layers: Sequence[str],
    make: Callable[[Collection[str]], ir.Model],
    judges: tuple[Judge, Judge],
    budget: Budget,
    tell: Callable[[str], None],
) -> list[Kept]:
    """The layers that have to stay in higher precision."""
    judge, other = judges[0].first(SEARCHED), judges[1]
    known: dict[frozenset[str], Mapping[str, Accuracy]] = {}

    def evaluate(names: Collection[str]) -> Mapping[str, Accuracy]:
        if frozenset(names) not in known:
            known[frozenset(names)] = judge(make(names))
        return known[frozenset(names)]

    tried: list[str] | None = None
    drop = budget.drop * MARGIN
    while True:
        kept, _ = search(layers, evaluate, Budget(drop).within, tell)
        names = [each.layer for each in kept]
        if len(kept) == len(layers) or (names != tried and budget.within(other(make(names)))):
            return kept
        tried = names
        drop = drop * MARGIN if drop > FINEST else -1.0  # which nothing is within: every layer
