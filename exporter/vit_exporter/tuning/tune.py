"""`--tune`: export every candidate, time it beside the default export, keep the fastest of those within the accuracy budget."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vit_exporter.describe import TOOLS, package_version
from vit_exporter.pipeline import export
from vit_exporter.precision.sensitivity import Budget
from vit_exporter.source import Source, VerificationError
from vit_exporter.spec import SEARCHED, ExportSpec, check_drop
from vit_exporter.tuning.candidates import BASELINE, Candidate, candidates
from vit_exporter.writer import check_out
from vit_runtime.cli.common import write_whole
from vit_runtime.errors import MachineError, SessionError
from vit_runtime.images import find_images
from vit_runtime.manifest import Manifest, read_manifest
from vit_runtime.race import Entrant, race
from vit_runtime.threads import physical_cores, processor

ROUNDS, SECONDS = 5, 1.0
BASELINE_FILE = "baseline.onnx"
MAX_DROP = 0.01  # the budget where the user gives none
PACKAGES = (*TOOLS, "openvino", "nncf", "numpy")

Tell = Callable[[int, int, str], None]  # done, all, what is being done


@dataclass(frozen=True)
class TuneSpec:
    """What to tune for: `base` says where the file goes and how it is written, the rest what it is timed and judged by.

    `target` and `precision` narrow the candidates down, None leaves them free. `threads` None: the physical cores. `calibrate` is a folder
    of images that reduced precision is calibrated with and judged on, `max_drop` the budget (`ExportSpec` says of what).
    Raises: InputError for a budget that is none.
    """

    base: ExportSpec
    batch_sizes: tuple[int, ...] = (1,)
    threads: int | None = None
    target: str | None = None
    precision: str | None = None
    calibrate: Path | None = None
    max_drop: float = MAX_DROP

    def __post_init__(self) -> None:
        check_drop(self.max_drop)

    @property
    def folder(self) -> Path:
        """Where the records and the tables go: vit.tune beside vit.onnx."""
        return self.base.out.with_suffix(".tune")

    def export_spec(self, candidate: Candidate, out: Path, keep: Sequence[str] | None = None) -> ExportSpec:
        """How to export the candidate: with a search for the layers to keep, or with the layers that one has found."""
        searched = candidate.precision in SEARCHED
        drop = self.max_drop if searched and keep is None else None
        return dataclasses.replace(
            self.base,
            out=out,
            target=candidate.target,
            precision=candidate.precision,
            token_split=candidate.token_split,
            calibrate=self.calibrate if candidate.precision != "fp32" else None,
            max_drop=drop,
            keep=tuple(keep) if keep and searched else (),
            compare_speed=False,
            force=True,
        )


@dataclass(frozen=True)
class Timing:
    """One batch size: milliseconds a batch, images a second, and how many times faster than the default export in the same rounds."""

    batch_size: int
    p50_ms: float
    p95_ms: float
    images_per_second: float
    times_faster: float
    load_seconds: float
    peak_memory: int | None


@dataclass(frozen=True)
class Record:
    """What was found of one candidate; `obstacle` says why it is out of the race, and then there may be no numbers.

    `size` in bytes; `loss` is 1 - the mean cosine of the output that suffers most, 0 for float32; `drop` the part of the images that change
    class, None for what scores no classes.
    """

    candidate: Candidate
    provider: str
    size: int | None
    loss: float | None
    worst_cosine: float | None
    drop: float | None
    kept: tuple[str, ...]
    timings: tuple[Timing, ...]
    obstacle: str | None

    @property
    def score(self) -> float:
        """How many times faster than the default export, the geometric mean over the batch sizes."""
        return math.prod(timing.times_faster for timing in self.timings) ** (1 / len(self.timings)) if self.timings else 0.0


@dataclass(frozen=True)
class TuneReport:
    """Everything that was tried, best first, what won, and where it is."""

    spec: TuneSpec
    records: tuple[Record, ...]
    winner: Record
    manifest: Manifest
    size: int
    machine: Mapping[str, Any]


def tune(make_source: Callable[[], Source], spec: TuneSpec, tell: Tell = lambda done, total, what: None) -> TuneReport:
    """Write the fastest file that is accurate enough to `spec.base.out`, and what was measured to `spec.folder`.

    What an interrupted call has measured there is taken up again, if the network, the options, the machine and the packages are the same.
    Raises: what `export` raises, for the default export; a candidate that fails is out of the race, with its reason.
    """
    check_out(spec.base.out, spec.base.force)
    source = make_source()
    tried = candidates(source.model.config, source.model.dynamic_size, spec.target, spec.precision)
    machine = describe_machine(spec)
    key = _key(source, spec, machine)
    del source
    spec.folder.mkdir(exist_ok=True)
    known = {candidate: _read(spec, candidate, key) for candidate in tried}
    todo = [candidate for candidate in tried if known[candidate] is None]
    records = [record for record in known.values() if record is not None]
    with tempfile.TemporaryDirectory(prefix=".tune.", dir=spec.base.out.parent) as scratch:
        if todo:
            tell(0, len(todo), f"{BASELINE.name}: exporting")
            export(make_source, spec.export_spec(BASELINE, Path(scratch, BASELINE_FILE)))
        for done, candidate in enumerate(todo):
            found = [record.kept for record in records if record.candidate == dataclasses.replace(candidate, token_split=())]
            keep = found[0] if candidate.token_split and found else None  # a split changes no number: what was kept holds for it too
            telling = partial(_tell_of, tell, done, len(todo), candidate)
            record = _try(candidate, make_source, spec, Path(scratch), keep, telling)
            _write(spec, record, key)
            records.append(record)
        best = max((record for record in records if record.obstacle is None), key=lambda record: record.score)
        tell(len(todo), len(todo), f"{best.candidate.name}: writing {spec.base.out.name}")
        final = dataclasses.replace(spec.export_spec(best.candidate, spec.base.out, best.kept), force=spec.base.force)
        export(make_source, final)
    manifest, file = read_manifest(spec.base.out)
    ranked = sorted(records, key=lambda record: (record.obstacle is not None, -record.score))
    return TuneReport(spec, tuple(ranked), best, manifest, file.size, machine)


def _tell_of(tell: Tell, done: int, total: int, candidate: Candidate, what: str) -> None:
    tell(done, total, f"{candidate.name}: {what}")


def _try(
    candidate: Candidate, make_source: Callable[[], Source], spec: TuneSpec, scratch: Path, keep: Sequence[str] | None,
    tell: Callable[[str], None],
) -> Record:  # fmt: skip
    """Export and time one candidate; the baseline is there already."""
    nothing = Record(candidate, "", None, None, None, None, (), (), None)
    baseline = scratch / BASELINE_FILE
    out = baseline if candidate == BASELINE else scratch / "candidate.onnx"
    try:
        if out != baseline:
            export(make_source, spec.export_spec(candidate, out, keep), lambda step, detail, done: tell(f"{step} {detail}".strip()))
    except (VerificationError, MachineError) as error:
        return dataclasses.replace(nothing, obstacle=str(error))
    manifest, file = read_manifest(out)
    record = _accuracy(dataclasses.replace(nothing, provider=manifest.execution.provider, size=file.size), manifest)
    if (over := _beyond(manifest, spec.max_drop)) is not None:
        return dataclasses.replace(record, obstacle=over)
    timings = list[Timing]()
    try:
        for batch_size in spec.batch_sizes:
            tell(f"timing batches of {batch_size}")
            timings.append(_time(out, baseline, manifest, batch_size, spec.threads or physical_cores()))
    except SessionError as error:
        return dataclasses.replace(record, obstacle=str(error))
    return dataclasses.replace(record, timings=tuple(timings))


def _accuracy(record: Record, manifest: Manifest) -> Record:
    kept = tuple(each["layer"] for each in manifest.build["kept"])
    if manifest.accuracy is None:
        return dataclasses.replace(record, loss=0.0, worst_cosine=1.0, kept=kept)
    outputs = manifest.accuracy.outputs.values()
    same = [each.top1 for each in outputs if each.top1 is not None]
    return dataclasses.replace(
        record,
        loss=max(0.0, 1 - min(each.cosine_mean for each in outputs)),
        worst_cosine=min(each.cosine_min for each in outputs),
        drop=1 - min(same) if same else None,
        kept=kept,
    )


def _beyond(manifest: Manifest, drop: float) -> str | None:
    """Why the file is out, if it is not within the budget."""
    if manifest.accuracy is None or Budget(drop).within(manifest.accuracy.outputs):
        return None
    return f"beyond the accuracy budget of {drop:g}"


def _time(path: Path, baseline: Path, manifest: Manifest, batch_size: int, threads: int) -> Timing:
    """The file beside the default export, in turn."""
    image, execution = (manifest.preprocessing.channels, *manifest.image_size), manifest.execution
    slow, fast = race(
        [
            Entrant(baseline, "cpu", threads, batch_size, image),
            Entrant(path, execution.provider, threads, batch_size, image, execution.arithmetic),
        ],
        ROUNDS,
        SECONDS,
    )
    p50, p95 = fast.percentile(50), fast.percentile(95)
    return Timing(batch_size, p50, p95, 1e3 * batch_size / p50, fast.times_faster(slow), fast.load_seconds, fast.peak_memory)


def _key(source: Source, spec: TuneSpec, machine: Mapping[str, Any]) -> str:
    """What makes a record out of date: another network, other options, other images, another machine or other packages."""
    images = [(path.name, path.stat().st_size) for path in find_images((str(spec.calibrate),))] if spec.calibrate is not None else []
    facts = {
        "network": asdict(source.model.config),
        "outputs": source.model.outputs,
        "dynamic_size": source.model.dynamic_size,
        "checkpoint": source.checkpoint,
        "images": images,
        "max_drop": spec.max_drop,
        "batch_sizes": spec.batch_sizes,
        "machine": dict(machine),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def describe_machine(spec: TuneSpec) -> dict[str, Any]:
    """The processor, the threads and the versions, for the table."""
    return {
        "processor": processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": spec.threads or physical_cores(),
        "versions": {name: found for name in PACKAGES if (found := package_version(name))},
    }


def _read(spec: TuneSpec, candidate: Candidate, key: str) -> Record | None:
    """The candidate's record, if there is one that still holds."""
    try:
        document = json.loads(spec.folder.joinpath(f"{candidate.name}.json").read_text(encoding="utf-8"))
        if document["key"] != key:
            return None
        fields = document["record"]
        timings = tuple(Timing(**timing) for timing in fields.pop("timings"))
        fields["kept"] = tuple(fields["kept"])
        return Record(candidate=candidate, timings=timings, **{name: value for name, value in fields.items() if name != "candidate"})
    except (OSError, ValueError, KeyError, TypeError):  # none, or half of one: it is measured again
        return None


def _write(spec: TuneSpec, record: Record, key: str) -> None:
    write_whole(spec.folder / f"{record.candidate.name}.json", json.dumps({"key": key, "record": asdict(record)}, indent=1) + "\n")
