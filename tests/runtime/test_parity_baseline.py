"""What drifts within the limits: figures that were stored, and figures now."""

import dataclasses
import json
from pathlib import Path

import pytest
from helpers import document_of, failed, run

from vit_runtime.errors import FileError
from vit_runtime.parity.baseline import Baseline, Drift, Entry, drift, read_baseline

ENTRY = Entry("vit.onnx", "cpu", "logits", "golden", "floors", 1.2, 0.02)
BEFORE = Baseline((ENTRY,), {"vit.onnx on cpu": 10.0}, "a processor")


def now(entry: Entry = ENTRY, latency: float = 10.0, processor: str = "a processor") -> Baseline:
    return Baseline((entry,), {"vit.onnx on cpu": latency}, processor)


@pytest.mark.parametrize(
    ("figure", "scatter", "worse"),
    [(1.2, 0.02, False), (0.9, 0.0, False), (1.31, 0.0, False), (1.33, 0.0, True), (1.33, 0.05, False), (1.36, 0.05, True)],
)
def test_a_figure_is_worse_when_it_grew_by_more_than_a_tenth_and_than_it_scatters(figure: float, scatter: float, worse: bool):
    found = drift(BEFORE, now(dataclasses.replace(ENTRY, figure=figure, scatter=scatter)))
    assert found.worse == ((f"vit.onnx on cpu, logits: {figure:.3g} floors, was 1.2",) if worse else ())
    assert found.told == ()


def test_figures_of_another_unit_are_not_compared():
    """A file that is in int8 now and was in float32, or the other way round."""
    found = drift(BEFORE, now(dataclasses.replace(ENTRY, unit="below 1 the cosine", figure=1e-4)))
    assert found == Drift(
        (), ("vit.onnx on cpu, logits: not in the baseline", "vit.onnx on cpu, logits: in the baseline, and not measured now")
    )


def test_what_is_new_or_missing_is_told_and_is_no_failure():
    found = drift(BEFORE, now(dataclasses.replace(ENTRY, output="embedding", inputs="images")))
    assert found == Drift(
        (), ("vit.onnx on cpu, embedding of images: not in the baseline", "vit.onnx on cpu, logits: in the baseline, and not measured now")
    )


@pytest.mark.parametrize(("latency", "processor", "told"), [(12.4, "a processor", 0), (12.6, "a processor", 1), (99.0, "another one", 0)])
def test_what_is_slower_on_the_same_processor_is_told(latency: float, processor: str, told: int):
    found = drift(BEFORE, now(latency=latency, processor=processor))
    assert (found.worse, len(found.told)) == ((), told)
    assert all(line == f"vit.onnx on cpu: {latency:.1f} ms an image, was 10.0" for line in found.told)


def test_it_is_read_as_it_was_written(tmp_path: Path):
    (tmp_path / "baseline.json").write_text(BEFORE.to_json())
    assert read_baseline(tmp_path / "baseline.json") == BEFORE


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no json", "is no baseline that vit-parity --baseline wrote"),
        ("[]", "is no baseline that vit-parity --baseline wrote"),
        ("{}", "is no baseline that vit-parity --baseline wrote ('schema')"),
        (BEFORE.to_json().replace('"figure": 1.2', '"figure": "x"'), "is no baseline that vit-parity --baseline wrote"),
        (BEFORE.to_json().replace('"unit"', '"ant"'), "is no baseline that vit-parity --baseline wrote"),
        (BEFORE.to_json().replace('"schema": 1', '"schema": 2'), "is a baseline of version 2, this vit-deploy reads up to 1; upgrade it"),
        ("[" * 99_999, "is no baseline that vit-parity --baseline wrote"),
    ],
)
def test_what_is_none_is_refused(text: str, words: str, tmp_path: Path):
    path = tmp_path / "baseline.json"
    path.write_text(text)
    with pytest.raises(FileError) as error:
        read_baseline(path)
    assert str(error.value).startswith(f"{path} {words}")


def test_the_command_stores_it_the_first_time_and_compares_the_next(tiny_model: Path, tmp_path: Path):
    path = tmp_path / "baseline.json"
    arguments = [tiny_model, "--batch-sizes", "1,3", "--baseline", path]
    first = run("vit-parity", *arguments)
    assert first.exit_code == 0
    assert first.stderr == f"warning: {path} did not exist, so it was stored and nothing was compared with it\n"
    assert {entry["output"] for entry in json.loads(path.read_text())["entries"]} == {"logits", "embedding", "tokens", "attention"}
    assert document_of(run("vit-parity", *arguments, "--json"))["drift"]["worse"] == []

    document = json.loads(path.read_text())
    assert len({entry["scatter"] for entry in document["entries"] if entry["output"] == "tokens"}) == 1
    for entry in document["entries"]:
        entry["figure"] /= 2 if (entry["output"], entry["inputs"]) == ("tokens", "golden") else 1
    path.write_text(json.dumps(document))
    stored = path.read_bytes()
    again = run("vit-parity", *arguments)
    assert again.exit_code == 1
    (line,) = [line for line in again.stdout.splitlines() if line.startswith("WORSE")]
    assert line.startswith(f"WORSE than in {path}: {tiny_model} on cpu, tokens: ")
    assert path.read_bytes() == stored


def test_a_check_that_failed_stores_nothing(edited, tmp_path: Path):
    path = tmp_path / "baseline.json"
    assert run("vit-parity", edited(0.5), "--batch-sizes", "1", "--baseline", path).exit_code == 1
    assert not path.exists()


def test_a_file_that_is_no_baseline_is_exit_code_3_before_the_work(tiny_model: Path, tmp_path: Path):
    (tmp_path / "baseline.json").write_text("no json")
    assert "is no baseline" in failed(run("vit-parity", tiny_model, "--baseline", tmp_path / "baseline.json"), 3)
