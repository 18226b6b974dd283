"""The export, from a network to a file that proves itself: trace, passes, reference, write, verify, manifest."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx import defs

from vit_exporter.passes.fold_attention_scale import FoldAttentionScale
from vit_exporter.passes.fold_layer_scale import FoldLayerScale
from vit_exporter.passes.fold_prefix_tokens import FoldPrefixTokens
from vit_exporter.passes.fold_weight_transposes import FoldWeightTransposes
from vit_exporter.passes.fuse_attention import FuseAttention
from vit_exporter.passes.simplify import Simplify
from vit_exporter.reference import golden_record, other_sizes
from vit_exporter.source import Source, VerificationError
from vit_exporter.trace import BATCH, INPUT, PATCHES, TOKENS, trace
from vit_exporter.writer import ONE_FILE_LIMIT, append_metadata, check_out, staging, weight_bytes, write_model
from vit_models import ViT, ViTConfig
from vit_models.memory import hand_back
from vit_runtime.errors import InputError, MachineError
from vit_runtime.manifest import KEY, Error, Golden, Limits, Manifest, Measured, Output, Parity, read_manifest
from vit_runtime.memory import available_memory, peak_memory
from vit_runtime.parity import FLOAT32_LIMITS, Check, Report, check_record
from vit_runtime.providers import create_session

# torch's exporter writes its graphs in opset 18 and later. 18 is the default because it is the oldest of them:
# LayerNormalization is one op from 17 on, which keeps it exact in reduced precision, nothing that the network needs came later, and
# every older runtime that can read a newer opset reads this one too.
MIN_OPSET, DEFAULT_OPSET = 18, 18
MAX_OPSET = 23  # the newest that torch's exporter is tested with

# In this order: the folds read weights as FoldWeightTransposes leaves them, and what is folded is out of the fusions' way.
PASSES: tuple[type[ir.passes.PassBase], ...] = (
    Simplify,
    FoldWeightTransposes,
    FoldPrefixTokens,
    FoldLayerScale,
    FoldAttentionScale,
    FuseAttention,
)

MEANINGS = {
    "logits": "unnormalised score of each class; softmax gives probabilities",
    "embedding": "image representation, the head's input",
    "tokens": "final state of every token after the last norm, class token first",
    "attention": "attention of the last block's class token to each patch, by head, row by row",
}


@dataclass(frozen=True)
class ExportSpec:
    """How to export. `out` ends in .onnx; `external_data` puts the weights beside it even below 2 GB.

    Raises: InputError for an opset that the exporter does not write.
    """

    out: Path
    opset: int = DEFAULT_OPSET
    simplify: bool = True
    verify: bool = True
    external_data: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        newest = min(MAX_OPSET, defs.onnx_opset_version())
        why = f"{newest} is the newest that torch's exporter is tested with"
        if self.opset < MIN_OPSET:
            why = "torch's exporter starts at 18, and LayerNormalization as one op at 17"
        if not MIN_OPSET <= self.opset <= newest:
            raise InputError(f"got opset {self.opset}, expected {MIN_OPSET} to {newest}: {why}; leave --opset out for {DEFAULT_OPSET}")


@dataclass(frozen=True)
class ExportReport:
    """What was done: the file, the graph before and after, and what it cost."""

    out: Path
    manifest: Manifest
    size: int
    external_files: tuple[str, ...]
    nodes_before: int
    nodes_after: int
    parity: Report | None
    seconds: float
    steps: tuple[tuple[str, float], ...]
    peak_memory: int | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; sizes in bytes, times in seconds."""
        return {
            "out": str(self.out),
            "size": self.size,
            "external_files": list(self.external_files),
            "nodes_before": self.nodes_before,
            "nodes_after": self.nodes_after,
            "seconds": round(self.seconds, 3),
            "steps": {name: round(seconds, 3) for name, seconds in self.steps},
            "peak_memory": self.peak_memory,
            "notes": list(self.notes),
            "parity": self.parity.to_dict() if self.parity else None,
            "manifest": _without_golden(self.manifest),
        }


class Steps:
    """Times the steps of an export and tells them to whoever watches: (name, detail), the detail empty when a step starts."""

    def __init__(self, tell: Callable[[str, str], None]) -> None:
        self.tell, self.done = tell, list[tuple[str, float]]()

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Inside the block, append the detail that is told at its end."""
        self.tell(name, "")
        detail, start = list[str](), time.perf_counter()
        yield detail
        seconds = time.perf_counter() - start
        self.done.append((name, seconds))
        self.tell(name, f"{', '.join(detail)} ({seconds:.1f} s)")


def export(
    make_source: Callable[[], Source], spec: ExportSpec, tell: Callable[[str, str], None] = lambda name, detail: None
) -> ExportReport:
    """Write the network to `spec.out` as an ONNX file with a manifest, verified against float64 PyTorch.

    `make_source` builds the network: it is called here, and let go before the file is verified, so that the weights are not held twice.
    Raises: VerificationError; InputError, MachineError and the errors of vit_models for what cannot be exported.
    Same call, same bytes.
    """
    start, steps = time.perf_counter(), Steps(tell)
    check_out(spec.out, spec.force)
    with steps.step("build") as detail:
        source = make_source()
        detail.append(source.describe())
    if spec.verify:
        check_memory(source.model.config)
    with steps.step("trace") as detail:
        graph = trace(source.model, spec.opset, source.read)
        nodes_before = len(graph.graph)
        detail.append(f"opset {spec.opset}, {nodes_before} nodes")
    passes = [make() for make in PASSES] if spec.simplify else []
    with steps.step("simplify") as detail:
        graph, applied = _apply(graph, passes)
        detail.append(f"{nodes_before} -> {len(graph.graph)} nodes" if passes else "left out")
    nodes_after = len(graph.graph)
    gc.collect()
    hand_back()
    if spec.verify or source.read is None:  # else the weights are read one at a time, while they are written
        source.fill()
    golden: Golden | None = None
    golden_sizes: tuple[Golden, ...] = ()
    if spec.verify:
        with steps.step("reference") as detail:
            golden = golden_record(source.model, source.preprocessing)
            detail.append(f"float64 PyTorch on {golden.images} golden images")
            if source.model.dynamic_size:
                sizes = other_sizes(source.model.config)
                golden_sizes = tuple(golden_record(source.model, source.preprocessing, size) for size in sizes)
                detail.append(f"and at {len(sizes)} other sizes")
    notes, checkpoint = source.notes, source.checkpoint
    if source.proof is not None and spec.verify:
        with steps.step("prove") as detail:
            checkpoint = {**checkpoint, "proof": source.proof()}
            detail.append(checkpoint["proof"])
    elif source.proof is not None:
        notes = (*notes, "recovered from a graph and not proven against it (--no-verify)")
    manifest = dataclasses.replace(_manifest(source, graph, spec, applied), checkpoint=checkpoint, golden=golden, golden_sizes=golden_sizes)
    needed = weight_bytes(graph)
    external = spec.external_data or needed > ONE_FILE_LIMIT
    with staging(spec.out, spec.force, needed) as staged:
        with steps.step("write") as detail:
            write_model(staged, graph, external)
            detail.append(f"{needed / 1e6:.1f} MB of weights{' in a file beside it' if external else ''}")
        del source, graph
        gc.collect()
        report = None
        if spec.verify:
            with steps.step("verify") as detail:
                report = _verify(staged, manifest)
                detail.append(
                    f"worst {report.worst.rms_floors:.2f}x PyTorch's own float32 error, at batch sizes {', '.join(_sizes(report))}"
                )
            manifest = dataclasses.replace(manifest, parity=_parity(report))
        append_metadata(staged, KEY, manifest.to_json())
        read_manifest(staged)
    _, file = read_manifest(spec.out)
    seconds = time.perf_counter() - start
    return ExportReport(
        spec.out,
        manifest,
        file.size,
        file.external_files,
        nodes_before,
        nodes_after,
        report,
        seconds,
        tuple(steps.done),
        peak_memory(),
        notes,
    )


def check_memory(config: ViTConfig) -> None:
    """Whether this machine can verify such a network: attention over very long sequences outgrows any weights.

    The largest states are one block's attention, twice (scores and softmax): float64 for the reference's 4 images at a time, float32
    for a batch of 7. Raises: MachineError.
    """
    needed, available = 2 * config.num_heads * config.num_tokens**2 * max(4 * 8, 7 * 4), available_memory()
    if available is not None and needed > available:
        what = f"verifying a network of {config.num_tokens} tokens takes about {needed / 1e9:.0f} GB"
        raise MachineError(f"{what}, this machine has {available / 1e9:.0f} GB available; use a smaller --img-size, or --no-verify")


def _apply(graph: ir.Model, passes: Sequence[ir.passes.PassBase]) -> tuple[ir.Model, list[dict[str, Any]]]:
    applied = []
    for graph_pass in passes:
        before = len(graph.graph)
        graph = graph_pass(graph).model
        applied.append({"name": type(graph_pass).__name__, "nodes_before": before, "nodes_after": len(graph.graph)})
    return graph, applied


def _verify(path: Path, manifest: Manifest) -> Report:
    session, provider = create_session(path, "cpu")
    names = [output.name for output in manifest.outputs]

    def run(batch: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
        values: list[Any] = list(session.run(names, {INPUT: batch}))
        return dict(zip(names, values, strict=True))

    report = check_record(run, manifest, provider, limits=FLOAT32_LIMITS)
    if not report.passed:
        worst = next(check for check in report.checks if not check.passed)
        size = f" of {worst.image_size[0]}x{worst.image_size[1]}" if manifest.golden_sizes else ""
        where = f"{worst.output} at batch size {worst.batch_size}{size} {_fault(worst, report.limits)}"
        raise VerificationError(f"the graph does not compute what PyTorch computes: {where}; nothing was written")
    return report


def _fault(check: Check, limits: Limits) -> str:
    if not np.isfinite(check.rms_floors):
        return "holds NaN or Inf, or PyTorch's own outputs do"
    found, limit, what = (
        (check.rms_floors, limits.rms, "") if check.rms_floors > limits.rms else (check.max_floors, limits.max, " at worst")
    )
    return f"is off by {found:.3g}x PyTorch's own float32 error{what}, expected at most {limit:g}x"


def _parity(report: Report) -> Parity:
    def rounded(value: float) -> float:
        return float(f"{value:.2g}")

    measured = tuple(
        Measured(c.provider, c.batch_size, c.output, Error(rounded(c.error.rms), rounded(c.error.max)), c.image_size) for c in report.checks
    )
    return Parity(report.limits, measured)


def _sizes(report: Report) -> list[str]:
    return list(dict.fromkeys(str(check.batch_size) for check in report.checks))


def _manifest(source: Source, graph: ir.Model, spec: ExportSpec, passes: list[dict[str, Any]]) -> Manifest:
    model = source.model
    outputs = tuple(Output(name, "float32", (BATCH, *_shape(model, name)), _meaning(model.config, name)) for name in model.outputs)
    build = {
        "opset": spec.opset,
        "target": "portable",
        "precision": "fp32",
        "passes": passes,
        "tools": {name: _version(name) for name in ("vit-deploy", "torch", "onnx", "onnx-ir", "onnxscript", "onnxsim", "onnxruntime")},
    }
    config = {**dataclasses.asdict(model.config), "img_size": list(model.config.img_size)}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Manifest(
        model={"arch": source.arch, "parameters": parameters, **config},
        checkpoint=source.checkpoint,
        input_name=INPUT,
        image_size=model.config.img_size,
        preprocessing=source.preprocessing,
        outputs=outputs,
        labels=source.labels,
        build=build,
        golden=None,
        parity=None,
        multiple_of=model.config.patch_size if model.dynamic_size else None,
    )


def _meaning(config: ViTConfig, output: str) -> str:
    if output == "logits" and config.projection:
        return "image representation in the space that images and texts share, not normalised"
    return MEANINGS[output]


def _shape(model: ViT, output: str) -> tuple[int | str, ...]:
    config = model.config
    tokens, patches = (TOKENS, PATCHES) if model.dynamic_size else (config.num_tokens, config.num_patches)
    shapes: dict[str, tuple[int | str, ...]] = {
        "logits": (config.num_classes,),
        "embedding": (config.embedding_dim,),
        "tokens": (tokens, config.embed_dim),
        "attention": (config.num_heads, patches),
    }
    return shapes[output]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _without_golden(manifest: Manifest) -> dict[str, Any]:
    document = manifest.to_dict()
    for output in (document["golden"] or {"outputs": {}})["outputs"].values():
        del output["data"]
    return document
