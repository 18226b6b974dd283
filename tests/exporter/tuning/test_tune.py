"""--tune: every candidate of this machine is built and timed, the fastest within the budget is kept, and an interrupted run is taken up."""

import csv
import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner
from export_cache import ExportCache
from helpers import assert_mentions, one_line
from networks import TINY, initialized
from PIL import Image

import vit_runtime as vit
from vit_exporter import ExportReport, ExportSpec, Source
from vit_exporter.cli import main
from vit_exporter.tuning import tune as tuning
from vit_exporter.tuning.candidates import BASELINE, Candidate, candidates
from vit_exporter.tuning.report import PICTURE, SHEET, TABLE, frontier, to_lines, to_rows, write_report
from vit_exporter.tuning.tune import Record, Timing, TuneReport, TuneSpec, tune
from vit_models import save_checkpoint
from vit_runtime.errors import InputError
from vit_runtime.golden import golden_images
from vit_runtime.manifest import Manifest, read_manifest
from vit_runtime.openvino_engine import has_bf16
from vit_runtime.parity import check_record
from vit_runtime.race import Entrant, Result

CONFIG = dataclasses.replace(TINY, img_size=(224, 224), patch_size=16)


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch, exports: ExportCache) -> None:
    """Candidates come from the shared exports."""

    def export(
        make_source: Callable[[], Source], spec: ExportSpec, tell: Callable[[str, str, int], None] = lambda step, detail, done: None
    ) -> ExportReport:
        tell("export", "", 0)
        options = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec) if field.name not in ("out", "force")}
        report = exports.export(make_source(), **options)
        shutil.copyfile(report.out, spec.out)
        return dataclasses.replace(report, out=spec.out)

    monkeypatch.setattr(tuning, "export", export)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, shared: None) -> None:
    """Candidates come from the shared exports and are not timed: the smaller a file, the faster it is here."""

    def race(entrants: Sequence[Entrant], rounds: int, seconds: float) -> list[Result]:
        return [Result(((entrant.path.stat().st_size / 1e4,),), load_seconds=0.5, peak_memory=10**8) for entrant in entrants]

    monkeypatch.setattr(tuning, "race", race)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network for images of 32 x 32 pixels, as the command takes it."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_checkpoint(path, initialized())
    return str(path)


def record(name: str, loss: float | None, times_faster: float | None, obstacle: str | None = None) -> Record:
    timings = () if times_faster is None else (Timing(1, 10 / times_faster, 12.0, 100.0, times_faster, 0.5, 10**8),)
    target, precision = name.split("-", 1)
    return Record(Candidate(target, precision), "cpu", 1000, loss, None if loss is None else 1 - 2 * loss, 0.0, (), timings, obstacle)


# ---- candidates ----------------------------------------------------------------------------------------------------------------------


def test_the_default_export_comes_first_and_nothing_comes_twice():
    found = candidates(CONFIG, dynamic_size=False)
    assert found[0] == BASELINE
    assert len({candidate.name for candidate in found}) == len(found)
    assert Candidate("cpu", "int8") in found
    assert Candidate("openvino", "int8-static", (192, 5)) in found
    assert (Candidate("openvino", "bf16") in found) == has_bf16()
    assert not [candidate.name for candidate in found if candidate.precision == "fp16"]  # it runs as float32 does


@pytest.mark.unit
@pytest.mark.parametrize(
    ("image", "patch", "splits"),
    [(224, 16, {(), (192, 5)}), (224, 14, {(), (256, 1)}), (224, 32, {(), (32, 18), (48, 2)}), (32, 8, {(), (16, 1)}), (16, 8, {()})],
)
def test_tokens_are_split_into_whole_tiles_and_the_rest(image, patch, splits):
    config = dataclasses.replace(CONFIG, img_size=(image, image), patch_size=patch)
    found = candidates(config, dynamic_size=False, target="openvino", precision="fp32")
    assert {candidate.token_split for candidate in found if candidate != BASELINE} == splits


def test_a_free_image_size_has_neither_splits_nor_static_scales():
    found = candidates(CONFIG, dynamic_size=True)
    assert not [candidate for candidate in found if candidate.token_split or candidate.precision == "int8-static"]


@pytest.mark.unit
def test_target_and_precision_narrow_the_candidates_down():
    assert {candidate.target for candidate in candidates(CONFIG, False, target="cpu")} == {"portable", "cpu"}
    assert {candidate.precision for candidate in candidates(CONFIG, False, precision="int8")} == {"fp32", "int8"}
    assert Candidate("cpu", "fp16") in candidates(CONFIG, False, target="cpu", precision="fp16")


@pytest.mark.unit
def test_what_does_not_exist_is_refused_with_what_does():
    with pytest.raises(InputError) as raised:
        candidates(CONFIG, False, target="gpu")
    assert_mentions(one_line(raised), "gpu", "portable", "cpu", "openvino")
    with pytest.raises(InputError) as raised:
        candidates(CONFIG, False, target="openvino", precision="int4w")
    assert_mentions(one_line(raised), "int4w", "--target cpu")


def test_without_openvino_and_nncf_there_are_still_candidates(tmp_path):
    """As in an environment that has neither: imports of them fail."""
    for name in ("openvino", "nncf"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module named {name!r}', name={name!r})")
    code = (
        "from vit_exporter.tuning.candidates import candidates; from vit_models import ViTConfig;"
        "print(*[c.name for c in candidates(ViTConfig(), False)])"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["portable-fp32", "cpu-fp32", "cpu-int8", "cpu-int4w"]


# ---- tuning --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exporting", ["shared", pytest.param("anew", marks=pytest.mark.full)])
def test_the_winner_is_written_and_proven_and_the_tables_tell_of_all(
    exporting: str, request: pytest.FixtureRequest, tiny_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The race is a real one, in rounds so short that which of the files wins is a matter of luck."""
    if exporting == "shared":
        request.getfixturevalue("shared")
    monkeypatch.setattr(tuning, "ROUNDS", 2)
    monkeypatch.setattr(tuning, "SECONDS", 0.02)
    out, progress = tmp_path / "vit.onnx", list[tuple[int, int, str]]()
    spec = TuneSpec(ExportSpec(out), (1, 2), threads=1, target="cpu")
    report = tune(lambda: tiny_source, spec, lambda done, total, what: progress.append((done, total, what)))
    assert {record.candidate.name for record in report.records} == {"portable-fp32", "cpu-fp32", "cpu-int8", "cpu-int4w"}
    assert all(len(record.timings) == 2 or record.obstacle for record in report.records)
    assert report.winner.score == max(record.score for record in report.records if record.obstacle is None)
    manifest, _ = read_manifest(out)
    assert (manifest.build["target"], manifest.build["precision"]) == (report.winner.candidate.target, report.winner.candidate.precision)
    assert check_record(vit.load(out).run, manifest, "cpu").passed
    assert progress[0][:2] == (0, 4)
    assert progress[-1][:2] == (4, 4)
    assert [done for done, _, _ in progress] == sorted(done for done, _, _ in progress)
    files = write_report(report)
    assert [file.name for file in files] == [TABLE, SHEET, PICTURE]
    document = json.loads(files[0].read_text())
    with files[1].open(newline="") as file:
        sheet = list(csv.DictReader(file))
    assert [row["candidate"] for row in sheet] == [row["candidate"] for row in document["rows"]]
    assert document["winner"] == report.winner.candidate.name
    assert document["machine"]["threads"] == 1
    for row in document["rows"]:
        if row["obstacle"] is None:
            assert 0 < row["p50_ms"] <= row["p95_ms"]
            assert row["load_seconds"] > 0
            assert row["peak_memory"] > 10**7
            assert row["size"] > 10**4
    with Image.open(files[2]) as picture:
        assert picture.width > 800
        colors = picture.getcolors(1 << 20)
    assert colors is not None
    assert len(colors) > 50
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vit.onnx", "vit.tune"]


def test_the_command_calibrates_judges_and_searches_with_what_it_is_given(quick, checkpoint: str, tmp_path: Path):
    """As the README has it: photographs and a budget, for all candidates of reduced precision and none of the others."""
    (tmp_path / "photos").mkdir()
    for number, pixels in enumerate(golden_images(7, 16, 32, 32)):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number:02}.png")
    options = ["--checkpoint", checkpoint, "--tune", "--target", "cpu", "--precision", "int8", "--threads", "1"]
    images = ["--calibrate", str(tmp_path / "photos"), "--max-drop", "0.3"]
    answer = CliRunner().invoke(main, [*options, *images, "--out", str(tmp_path / "vit.onnx"), "--json"])
    assert answer.exit_code == 0, answer.output
    document = json.loads(answer.stdout)
    assert {row["candidate"] for row in document["rows"]} == {"portable-fp32", "cpu-int8"}
    assert all(row["obstacle"] is None for row in document["rows"])
    manifest, _ = read_manifest(tmp_path / "vit.onnx")
    assert manifest.build["precision"] == document["winner"].removeprefix("cpu-") == "int8"  # the smaller file
    assert manifest.accuracy is not None
    assert (manifest.accuracy.source, manifest.accuracy.images) == ("photographs", 8)


@pytest.mark.parametrize("options", [("--max-drop", "1.5"), ("--calibrate", "no such folder")], ids=lambda options: options[0])
def test_a_budget_or_a_folder_that_is_none_is_refused_before_the_work(options, tmp_path: Path):
    answer = CliRunner().invoke(main, ["--arch", "digits", "--tune", *options, "--out", str(tmp_path / "vit.onnx")])
    assert answer.exit_code == 2
    assert_mentions(answer.stderr, options[1])
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_is_taken_up_where_it_was(quick, tiny_source: Source, tmp_path: Path):
    out = tmp_path / "vit.onnx"
    spec = TuneSpec(ExportSpec(out), threads=1, target="cpu", precision="int8")

    def interrupt(done: int, total: int, what: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(lambda: tiny_source, spec, interrupt)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["portable-fp32.json", "vit.tune"]
    before = (spec.folder / "portable-fp32.json").read_bytes()
    progress = list[tuple[int, str]]()
    report = tune(lambda: tiny_source, spec, lambda done, total, what: progress.append((total, what)))
    assert {total for total, _ in progress} == {1}
    assert (spec.folder / "portable-fp32.json").read_bytes() == before
    assert len(report.records) == 2
    assert out.exists()


def test_a_record_of_another_network_or_of_other_options_or_half_a_record_does_not_count(quick, tiny_source: Source, tmp_path: Path):
    spec, totals = TuneSpec(ExportSpec(tmp_path / "vit.onnx"), (2,), threads=1, target="portable", precision="fp32"), list[int]()
    tune(lambda: tiny_source, spec)
    written = spec.folder / "portable-fp32.json"
    record = json.loads(written.read_text())
    again = dataclasses.replace(spec, base=dataclasses.replace(spec.base, force=True))

    def todo(source: Source, spec: TuneSpec) -> int:
        """How many candidates would be measured; the first progress message ends it."""
        totals.clear()

        def stop(done: int, total: int, what: str) -> None:
            totals.append(total)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            tune(lambda: source, spec, stop)
        return totals[0]

    assert todo(tiny_source, again) == 0
    assert todo(dataclasses.replace(tiny_source, checkpoint={**tiny_source.checkpoint, "seed": 7}), again) == 1
    assert todo(tiny_source, dataclasses.replace(again, batch_sizes=(1,))) == 1
    written.write_text(json.dumps(record)[:-40])
    assert todo(tiny_source, again) == 1


def test_a_candidate_beyond_the_budget_is_out_with_the_reason(quick, tiny_source: Source, tmp_path: Path):
    """16-bit storage can keep no layer in higher precision, so a budget below its rounding puts it out."""
    spec = TuneSpec(ExportSpec(tmp_path / "vit.onnx"), threads=1, target="cpu", precision="fp16", max_drop=1e-12)
    report = tune(lambda: tiny_source, spec)
    out = next(record for record in report.records if record.candidate.precision == "fp16")
    assert out.obstacle is not None
    assert_mentions(out.obstacle, "1e-12")
    assert not out.timings
    assert report.winner.candidate == BASELINE
    assert out.obstacle in to_lines(report)[-1]


@pytest.mark.unit
def test_an_existing_file_is_not_replaced_without_force(tiny_source: Source, tmp_path: Path):
    out = tmp_path / "vit.onnx"
    out.write_text("earlier")
    with pytest.raises(InputError) as raised:
        tune(lambda: tiny_source, TuneSpec(ExportSpec(out)))
    assert_mentions(one_line(raised), out, "--force")
    assert out.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [out]


# ---- the report ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_on_the_frontier_is_what_nothing_else_beats_in_both(tmp_path: Path):
    records = (
        record("openvino-int8", 1e-3, 4.0),
        record("openvino-bf16", 1e-4, 3.0),
        record("cpu-int8", 2e-3, 3.5),  # slower and farther than the first
        record("cpu-fp32", 0.0, 1.2),
        record("portable-fp32", 0.0, 1.0),  # as near as the one before, and slower
        record("openvino-int8-static", 5e-2, None, "beyond the accuracy budget of 0.01"),
    )
    spec = TuneSpec(ExportSpec(tmp_path / "vit.onnx"))
    no_manifest = cast(Manifest, None)  # which tables are not made of
    report = TuneReport(spec, records, records[0], no_manifest, 1000, {"threads": 2, "processor": "a processor"})
    assert [each.candidate.name for each in frontier(report, 0)] == ["openvino-int8", "openvino-bf16", "cpu-fp32"]
    rows = to_rows(report)
    assert [row["frontier"] for row in rows] == [True, True, False, True, False, False]
    assert [row["winner"] for row in rows] == [True, False, False, False, False, False]
    assert rows[-1]["p50_ms"] is None


@pytest.mark.unit
def test_a_score_is_the_geometric_mean_over_the_batch_sizes():
    timing = Timing(1, 1.0, 1.0, 1.0, 4.0, 1.0, None)
    both = dataclasses.replace(record("cpu-int8", 0.0, 4.0), timings=(timing, dataclasses.replace(timing, batch_size=8, times_faster=1.0)))
    assert both.score == pytest.approx(2.0)


# ---- the command ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["--tune", "--keep", "blocks.0.mlp.fc1"], ("--keep", "--tune")),
        (["--tune", "--token-split", "16,1"], ("--token-split", "--tune")),
        (["--tune", "--no-verify"], ("--no-verify", "--tune")),
        (["--batch-sizes", "1,8"], ("--batch-sizes", "--tune")),
        (["--threads", "2"], ("--threads", "--tune")),
        (["--tune", "--batch-sizes", "0"], ("--batch-sizes", 0, 1)),
        (["--tune", "--target", "gpu"], ("gpu", "portable", "cpu", "openvino")),
    ],
)
def test_options_that_do_not_go_together_are_refused_in_one_line(arguments: list[str], facts: tuple[Any, ...], tmp_path: Path):
    result = CliRunner().invoke(main, ["--arch", "digits", "--out", str(tmp_path / "vit.onnx"), *arguments])
    assert result.exit_code == 2
    assert_mentions(result.stderr, *facts)
    assert len(result.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_the_table_and_how_to_make_the_winner_again(quick, checkpoint: str, tmp_path: Path):
    out = tmp_path / "vit.onnx"
    arguments = ["--checkpoint", checkpoint, "--out", str(out), "--tune", "--target", "cpu", "--precision", "int8", "--threads", "1"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert_mentions(result.stdout, "cpu-int8", "portable-fp32", "--target cpu --precision int8")
    again = CliRunner().invoke(main, [*arguments, "--force", "--json"])
    document = json.loads(again.stdout)
    assert document["winner"] == "cpu-int8"
    assert len(document["rows"]) == 2


def test_matplotlib_is_asked_for_before_the_work_starts(tmp_path: Path):
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError('No module named matplotlib', name='matplotlib')")
    command = [sys.executable, "-m", "vit_exporter.cli", "--arch", "digits", "--tune", "--out", str(tmp_path / "vit.onnx")]
    code = f"import sys; sys.argv = {command[2:]!r}; from vit_exporter.cli import main; main()"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 4
    assert_mentions(result.stderr, "pip install 'vit-deploy[tune]'")
    assert not (tmp_path / "vit.tune").exists()


@pytest.mark.unit
def test_nncf_is_there_so_that_static_scales_were_tried():
    assert importlib.util.find_spec("nncf") is not None
