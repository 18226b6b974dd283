"""The export, from a network to a file that proves itself: trace, passes, reference, write, verify, manifest."""

from __future__ import annotations

import dataclasses
import gc
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from vit_exporter.describe import build_of, manifest_of
from vit_exporter.passes.applying import apply, ops
from vit_exporter.passes.fold_normalization import FoldNormalization
from vit_exporter.passes.split_tokens import SplitTokens
from vit_exporter.precision.calibration import ImageSet, load_images
from vit_exporter.precision.reduce import Judge, Reduced, execution_of, reduce
from vit_exporter.precision.sensitivity import Budget
from vit_exporter.precision.speed import advice, times_faster
from vit_exporter.reference import float32_outputs, golden_record, golden_records, in_chunks, other_sizes, recorded_images
from vit_exporter.source import Source, VerificationError
from vit_exporter.spec import SEARCHED, ExportSpec
from vit_exporter.targets import SIMULATION, TARGETS, Target, check_split
from vit_exporter.trace import INPUT, trace
from vit_exporter.verification import ANY_EXACT, PassCheck, check_memory, describe_report, to_parity, verify
from vit_exporter.writer import ONE_FILE_LIMIT, append_metadata, check_out, staging, weight_bytes, write_model
from vit_models import ViT
from vit_models.memory import hand_back
from vit_runtime.errors import InputError
from vit_runtime.manifest import KEY, Golden, Judged, Manifest, read_manifest
from vit_runtime.memory import peak_memory
from vit_runtime.obstacle import Obstacle
from vit_runtime.openvino_engine import find_openvino
from vit_runtime.parity import Report
from vit_runtime.parity.record import resized
from vit_runtime.preprocess import Preprocessing, normalize

Tell = Callable[[str, str, bool], None]


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
    """Times the steps of an export and tells them to whoever watches: (name, detail, done), the detail empty when a step starts."""

    def __init__(self, tell: Tell) -> None:
        self.tell, self.done = tell, list[tuple[str, float]]()

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Inside the block, append the detail that is told at its end."""
        self.tell(name, "", False)
        detail, start = list[str](), time.perf_counter()
        yield detail
        seconds = time.perf_counter() - start
        self.done.append((name, seconds))
        self.tell(name, f"{', '.join(detail)} ({seconds:.1f} s)", True)


def export(make_source: Callable[[], Source], spec: ExportSpec, tell: Tell = lambda name, detail, done: None) -> ExportReport:
    """Write the network to `spec.out` as an ONNX file with a manifest, verified against float64 PyTorch.

    `make_source` builds the network: it is called here, and let go before the file is verified, so that the weights are not held twice.
    Raises: VerificationError; InputError, MachineError and the errors of vit_models for what cannot be exported.
    Same call, same bytes.
    """
    start, steps, target = time.perf_counter(), Steps(tell), TARGETS[spec.target]
    check_out(spec.out, spec.force)
    with steps.step("build") as detail:
        source = make_source()
        detail.append(source.describe())
    _check_network(source.model, spec, target)
    images = load_images(spec.calibrate, source.preprocessing) if spec.reduced else None  # a folder that is none is told before the work
    goldens, extremes = list[Golden](), None
    if spec.verify_passes:
        source.fill()
        goldens, extremes = _references(source, steps)
    with steps.step("trace") as detail:
        graph = trace(source.model, spec.written_opset, source.read)
        traced, nodes_before = ops(graph), len(graph.graph)
        detail.append(f"opset {spec.written_opset}, {nodes_before} nodes")
    with steps.step("simplify") as detail:
        check = PassCheck(_with_goldens(manifest_of(source, source.preprocessing), goldens)) if goldens else None
        passes = target.passes(source.preprocessing, spec.precision) if spec.simplify else []
        graph, applied = apply(graph, passes, check)
        detail.append(f"{nodes_before} -> {len(graph.graph)} nodes" if applied else "left out")
    gc.collect()
    hand_back()
    if not spec.verify_passes and (spec.verify or source.read is None or target.measures(spec.precision)):
        source.fill()  # else the weights are read one at a time, while they are written
    if spec.verify:
        goldens, extremes = (goldens, extremes) if goldens else _references(source, steps)
    notes, checkpoint = _prove(source, spec, steps)
    prepared = dataclasses.replace(
        source.preprocessing, in_graph=any(isinstance(each, FoldNormalization) and each.folded for each in passes)
    )
    execution = execution_of(target, spec.precision, math.gcd(source.model.config.embed_dim, source.model.config.mlp_dim))
    manifest = dataclasses.replace(
        _with_goldens(manifest_of(source, prepared, execution), goldens),
        golden_extremes=extremes,
        resized=resized(prepared) if spec.verify else None,
        checkpoint=checkpoint,
    )
    provider = target.verifier(spec.precision)
    if provider == "openvino" and spec.verify and isinstance(find_openvino(), Obstacle):
        provider = "cpu"
        notes = (*notes, "OpenVINO is not installed here, so onnxruntime verified the file; pip install 'vit-deploy[openvino]'")
    reduced, judge = Reduced(graph, (), ()), None
    with ExitStack() as stack:
        exact = Path(stack.enter_context(tempfile.TemporaryDirectory()), "exact.onnx")
        if images is not None:
            if spec.verify or target.measures(spec.precision):  # else nothing looks at them
                notes = (*notes, *images.notes)
            if spec.verify:
                _check_exact(exact, graph, manifest, spec, provider, steps)
            reduced, judge = _reduce(graph, source, images, manifest, spec, provider, steps)
        graph, split = apply(reduced.graph, _split(spec))
        done = [*applied, *reduced.passes, *split]
        manifest = dataclasses.replace(manifest, build=build_of(spec, traced, done, reduced.kept, reduced.islands, images))
        nodes_after, needed = len(graph.graph), weight_bytes(graph)
        external = spec.external_data or needed > ONE_FILE_LIMIT
        with staging(spec.out, spec.force, needed) as staged:
            with steps.step("write") as detail:
                write_model(staged, graph, external)
                detail.append(f"{needed / 1e6:.1f} MB of weights{' in a file beside it' if external else ''}")
            del source, graph, reduced
            gc.collect()
            report = None
            if spec.verify:
                with steps.step("verify") as detail:
                    report = verify(staged, manifest, provider, spec.reduced)
                    judged = _judged(staged, judge, images, spec) if judge is not None and images is not None else None
                    manifest = dataclasses.replace(manifest, parity=to_parity(report), accuracy=judged)
                    detail.append(describe_report(report))
            append_metadata(staged, KEY, manifest.to_json())
            read_manifest(staged)
            if spec.compare_speed and exact.exists() and not target.on_gpu:
                with steps.step("compare") as detail:
                    faster = times_faster(exact, staged, provider, manifest)
                    detail.append(f"{faster:.2f} times as fast as in float32")
                    told = advice(spec.precision, faster, staged.stat().st_size, exact.stat().st_size)
                    notes = (*notes, told) if told else notes
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


def _check_network(model: ViT, spec: ExportSpec, target: Target) -> None:
    """Raises: InputError for options that this network is not for, MachineError where verifying it takes more memory than there is."""
    check_split(target, spec.token_split, model.config.num_tokens)
    if model.dynamic_size and (spec.token_split or (target.measures(spec.precision) and spec.precision in SEARCHED)):
        raise InputError("got a free image size with --token-split or static scales, which are for one size; give --img-size instead")
    if spec.verify:
        check_memory(model.config)


def _references(source: Source, steps: Steps) -> tuple[list[Golden], Golden | None]:
    """What float64 PyTorch computes, at the network's own size first; and for extreme images."""
    with steps.step("reference") as detail:
        first, extremes = golden_records(source.model, source.preprocessing)
        goldens = [first]
        detail.append(f"float64 PyTorch on {goldens[0].images} golden images")
        if source.model.dynamic_size:
            goldens += [golden_record(source.model, source.preprocessing, size) for size in other_sizes(source.model.config)]
            detail.append(f"and at {len(goldens) - 1} other sizes")
    return goldens, extremes


def _with_goldens(manifest: Manifest, goldens: Sequence[Golden]) -> Manifest:
    return dataclasses.replace(manifest, golden=goldens[0] if goldens else None, golden_sizes=tuple(goldens[1:]))


def _prove(source: Source, spec: ExportSpec, steps: Steps) -> tuple[tuple[str, ...], dict[str, Any]]:
    """What the user should hear, and what the manifest says of the checkpoint, after proving what can be proven of it."""
    if source.proof is None:
        return source.notes, source.checkpoint
    if not spec.verify:
        return (*source.notes, "recovered from a graph and not proven against it (--no-verify)"), source.checkpoint
    with steps.step("prove") as detail:
        proof = source.proof()
        detail.append(proof)
    return source.notes, {**source.checkpoint, "proof": proof}


def _split(spec: ExportSpec) -> list[ir.passes.PassBase]:
    return [SplitTokens(spec.token_split)] if spec.token_split else []


def _check_exact(path: Path, graph: ir.Model, manifest: Manifest, spec: ExportSpec, provider: str, steps: Steps) -> None:
    """Write the graph to `path` and verify it as it is, before it loses precision."""
    with steps.step("check") as detail:
        graph, _ = apply(graph.clone(), _split(spec))
        write_model(path, graph, external=weight_bytes(graph) > ONE_FILE_LIMIT)
        runs_on = "cpu" if provider == SIMULATION else provider
        report = verify(path, dataclasses.replace(manifest, execution=ANY_EXACT), runs_on, reduced=False)
        detail.append(f"in float32: {describe_report(report)}")


def _reduce(
    graph: ir.Model, source: Source, images: ImageSet, manifest: Manifest, spec: ExportSpec, provider: str, steps: Steps
) -> tuple[Reduced, Judge | None]:
    """The graph in reduced precision, and what judges the file."""
    judges, budget = None, Budget(spec.max_drop) if spec.max_drop is not None else None
    with steps.step("reduce") as detail:
        prepared = manifest.preprocessing
        if spec.verify:
            judges = _judges(source, images, prepared, provider, manifest)
        config = source.model.config
        calibrate, golden = (normalize(pixels, prepared) for pixels in (images.calibrate, recorded_images(config)))
        reduced = reduce(
            graph,
            TARGETS[spec.target],
            spec.precision,
            calibrate,
            spec.keep,
            judges,
            budget,
            lambda text: steps.tell("reduce", text, False),
            golden,
        )
        detail.append(f"{spec.precision}, {len(reduced.graph.graph)} nodes")
        detail += [f"{len(reduced.kept)} layers kept"] if budget or reduced.kept else []
        detail += [f"{len(reduced.islands)} of them kept in float32"] if reduced.islands else []
    return reduced, judges[1] if judges else None


def _judges(source: Source, images: ImageSet, prepared: Preprocessing, provider: str, manifest: Manifest) -> tuple[Judge, Judge]:
    """What holds a graph against PyTorch's float32 on the images that calibrate, and on those that judge."""
    made = []
    for pixels in (images.calibrate, images.judge):
        expected = in_chunks(float32_outputs, source.model, normalize(pixels, source.preprocessing))
        kept = {name: values for name, values in expected.items() if name in ("logits", "embedding")} or expected
        made.append(Judge(provider, manifest.execution, normalize(pixels, prepared), kept, manifest.class_scores))
    return made[0], made[1]


def _judged(path: Path, judge: Judge, images: ImageSet, spec: ExportSpec) -> Judged:
    """The finished file's accuracy. Raises: VerificationError where it is beyond the budget."""
    found = judge.of_file(path, INPUT)
    if spec.max_drop is not None and not Budget(spec.max_drop).within(found):
        worst = min(found.values(), key=lambda each: each.cosine_min)
        raise VerificationError(
            f"even with every layer kept the cosine falls to {worst.cosine_min:.4f} on other images, beyond --max-drop {spec.max_drop:g}; "
            "nothing was written"
        )
    return Judged(judge.provider, images.source, len(judge.pixel_values), found)


def _without_golden(manifest: Manifest) -> dict[str, Any]:
    document = manifest.to_dict()
    for record in (document["golden"], document["golden_extremes"]):
        for output in (record or {"outputs": {}})["outputs"].values():
            del output["data"]
    return document
