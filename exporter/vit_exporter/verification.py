"""Does the graph, or the finished file, compute what PyTorch computes? Held against the golden record, by onnxruntime or OpenVINO."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vit_exporter.passes.fold_normalization import FoldNormalization
from vit_exporter.precision.simulation import Simulation
from vit_exporter.source import VerificationError
from vit_exporter.targets import SIMULATION
from vit_exporter.trace import INPUT
from vit_exporter.writer import written
from vit_models import ViTConfig
from vit_runtime.accuracy import Accuracy
from vit_runtime.errors import MachineError
from vit_runtime.golden import golden_images
from vit_runtime.manifest import Error, Execution, Limits, Manifest, Measured, Nearness, Parity, ReducedLimits
from vit_runtime.memory import available_memory
from vit_runtime.parity import FLOAT32_LIMITS, Check, Report, check_record
from vit_runtime.preprocess import normalize
from vit_runtime.providers import create_session

# Of reduced precision: a file may lose twice as much on another machine as it did when it was made, and this much at least: of the cosine,
# and of the divergence in nats, which grows with the size of the logits where the cosine does not. A mean over images scatters less.
SLACK, LEAST_LOSS, LEAST_DIVERGENCE = 2.0, 1e-4, 1e-3
MEAN_SLACK, LEAST_MEAN_LOSS = 1.5, 1e-5
ANY_EXACT = Execution()  # float32, whichever provider runs it
USELESS = 0.5  # a mean cosine below which a network computes something else
HALVES = {"fp16": 0.999, "bf16": 0.99}  # and below which 11 or 8 bits everywhere were too few for this one


def check_memory(config: ViTConfig) -> None:
    """Whether this machine can verify such a network: attention over very long sequences outgrows any weights.

    The largest states are one block's attention, twice (scores and softmax): float64 for the reference's 4 images at a time, float32
    for a batch of 7. Raises: MachineError.
    """
    needed, available = 2 * config.num_heads * config.num_tokens**2 * max(4 * 8, 7 * 4), available_memory()
    if available is not None and needed > available:
        what = f"verifying a network of {config.num_tokens} tokens takes about {needed / 1e9:.0f} GB"
        raise MachineError(f"{what}, this machine has {available / 1e9:.0f} GB available; use a smaller --img-size, or --no-verify")


class PassCheck:
    """Holds the graph against float64 PyTorch after a pass, by onnxruntime, which runs every target's graph."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    def __call__(self, graph_pass: ir.passes.PassBase, graph: ir.Model) -> float:
        """The worst error in floors. Raises: VerificationError that names the pass after which the graph is wrong."""
        if isinstance(graph_pass, FoldNormalization) and graph_pass.folded:  # from here on the images' normalisation is in the graph
            prepared = dataclasses.replace(self.manifest.preprocessing, in_graph=True)
            self.manifest = dataclasses.replace(self.manifest, preprocessing=prepared)
        try:
            return round(check_exact(graph, self.manifest, "cpu").worst.rms_floors, 3)
        except VerificationError as error:
            raise VerificationError(f"after the pass {type(graph_pass).__name__} {error}") from error


def check_exact(graph: ir.Model, manifest: Manifest, provider: str) -> Report:
    """The graph in float32 against the golden record. Raises: VerificationError."""
    with written(graph) as path:
        return verify(path, dataclasses.replace(manifest, execution=ANY_EXACT), provider, reduced=False)


def verify(path: Path, manifest: Manifest, provider: str, reduced: bool) -> Report:
    """The file at `path` against the golden record of what will be its manifest, on that provider or simulated.

    In reduced precision the report's limits are made of what it found. Raises: VerificationError.
    """
    session = open_session(path, provider, manifest.execution)
    names = [output.name for output in manifest.outputs]

    def run(batch: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
        values: list[Any] = list(session.run(names, {INPUT: batch}))
        return dict(zip(names, values, strict=True))

    if reduced:
        anything = {name: Nearness(-1.0, math.inf if name == manifest.class_scores else None) for name in names}
        report = check_record(run, manifest, provider, limits=anything)
        return _held_to_itself(report, manifest, session if isinstance(session, Simulation) else None)
    report = check_record(run, manifest, provider, limits=FLOAT32_LIMITS)
    if not report.passed:
        worst = next(check for check in report.checks if not check.passed)
        size = f" of {worst.image_size[0]}x{worst.image_size[1]}" if manifest.golden_sizes else ""
        images = "" if worst.inputs == "golden" else f" on {worst.inputs}"
        where = f"{worst.output} at batch size {worst.batch_size}{size}{images} {_fault(worst, FLOAT32_LIMITS)}"
        raise VerificationError(f"the graph does not compute what PyTorch computes: {where}; nothing was written")
    return report


def open_session(path: Path, provider: str, execution: Execution) -> Any:
    """What runs the file as it is to be judged: a session on the provider, or the simulation."""
    if provider == SIMULATION:
        return Simulation(path)
    return create_session(path, provider, arithmetic=execution.arithmetic)[0]


def _held_to_itself(report: Report, manifest: Manifest, simulation: Simulation | None) -> Report:
    """The checks with limits made of what they found. Raises: VerificationError for a network that is of no use."""
    held, least = list[Check](), HALVES.get(manifest.build["precision"], USELESS) if simulation is not None else USELESS
    for check in report.checks:
        if isinstance(check.limit, Limits):  # of the images' resizing
            held.append(check)
            continue
        if not check.accuracy.cosine_mean >= least or not np.isfinite(check.error.max):
            far = simulation.first_far(_golden_input(manifest)) if simulation is not None else None
            raise VerificationError(
                f"{check.output} at batch size {check.batch_size} has {'too ' if least > USELESS else ''}little to do with PyTorch's: "
                f"a mean cosine of {check.accuracy.cosine_mean:.3g}, expected at least {least:g}"
                f"{f' ({far} is the first node to be off by a tenth)' if far else ''}; nothing was written: take another precision"
            )
        same = [each.accuracy for each in report.checks if (each.output, each.inputs) == (check.output, check.inputs)]
        loss = max(SLACK * (1 - each.cosine_min) for each in same)
        divergences = [each.kl_max for each in same if each.kl_max is not None]
        kl = _rounded(max(LEAST_DIVERGENCE, SLACK * max(divergences))) if divergences else None
        mean = None
        if check.inputs == "golden" and simulation is None:  # six images make no mean, and what a simulation loses no engine has shown
            mean = 1 - _rounded(max(LEAST_MEAN_LOSS, *(MEAN_SLACK * (1 - each.cosine_mean) for each in same)))
        held.append(dataclasses.replace(check, limit=Nearness(1 - _rounded(max(LEAST_LOSS, loss)), kl, mean)))
    return Report(_limits_of(held, "golden"), tuple(held))


def _limits_of(checks: Sequence[Check], inputs: str) -> ReducedLimits:
    return {check.output: check.limit for check in checks if check.inputs == inputs and isinstance(check.limit, Nearness)}


def _golden_input(manifest: Manifest) -> npt.NDArray[np.float32]:
    """The first golden image as the graph takes it."""
    assert manifest.golden is not None  # the report was made of it
    return normalize(golden_images(manifest.golden.seed, 1, *manifest.image_size, manifest.preprocessing.channels), manifest.preprocessing)


def describe_report(report: Report) -> str:
    """What the verification found, in one line."""
    worst, batches = report.worst, ", ".join(_sizes(report))
    if isinstance(report.limits, Limits):
        return f"worst {worst.rms_floors:.2f}x PyTorch's own float32 error, at batch sizes {batches}"
    return f"golden images: cosine at least {worst.accuracy.cosine_min:.4f} ({worst.output}), at batch sizes {batches}"


def _fault(check: Check, limits: Limits) -> str:
    if not np.isfinite(check.rms_floors):
        return "holds NaN or Inf, or PyTorch's own outputs do"
    found, limit, what = (
        (check.rms_floors, limits.rms, "") if check.rms_floors > limits.rms else (check.max_floors, limits.max, " at worst")
    )
    return f"is off by {found:.3g}x PyTorch's own float32 error{what}, expected at most {limit:g}x"


def to_parity(report: Report) -> Parity:
    """For the manifest, the numbers rounded to two digits."""
    measured = tuple(
        Measured(
            c.provider,
            c.batch_size,
            c.output,
            Error(_rounded(c.error.rms), _rounded(c.error.max)),
            c.image_size,
            None if isinstance(report.limits, Limits) else _nearness(c.accuracy),
            c.inputs,
        )
        for c in report.checks
        if c.inputs != "resizing"  # which the record and the check computed alike just now
    )
    extremes = None if isinstance(report.limits, Limits) else _limits_of(report.checks, "extremes")
    return Parity(report.limits, measured, extremes or None)


def _nearness(near: Accuracy) -> Nearness:
    return Nearness(1 - _rounded(1 - near.cosine_min), _rounded(near.kl_max), 1 - _rounded(1 - near.cosine_mean))


def _rounded(value: float | None) -> Any:
    """To two digits: the same file should come of the same call, and further digits differ between machines."""
    return None if value is None else float(f"{value:.2g}")


def _sizes(report: Report) -> list[str]:
    return list(dict.fromkeys(str(check.batch_size) for check in report.checks))
