"""What drifts within the limits: figures that were stored, and figures now."""

import dataclasses
import json
from pathlib import Path

import pytest
from helpers import assert_mentions, document_of, failed, one_line, run

from vit_runtime.errors import FileError
from vit_runtime.parity.baseline import Baseline, Entry, drift, read_baseline

ENTRY = Entry("vit.onnx", "cpu", "logits", "golden", "floors", 1.2, 0.02)
BEFORE = Baseline((ENTRY,), {"vit.onnx on cpu": 10.0}, "a processor")


def now(entry: Entry = ENTRY, latency: float = 10.0, processor: str = "a processor") -> Baseline:
    return Baseline((entry,), {"vit.onnx on cpu": latency}, processor)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("figure", "scatter", "worse"),
    [(1.2, 0.02, False), (0.9, 0.0, False), (1.31, 0.0, False), (1.33, 0.0, True), (1.33, 0.05, False), (1.36, 0.05, True)],
)
def test_a_figure_is_worse_when_it_grew_by_more_than_a_tenth_and_than_it_scatters(figure: float, scatter: float, worse: bool):
    found = drift(BEFORE, now(dataclasses.replace(ENTRY, figure=figure, scatter=scatter)))
    assert (len(found.worse), found.told) == (int(worse), ())
    for line in found.worse:
        assert_mentions(line, "vit.onnx", "cpu", "logits", f"{figure:.3g}", 1.2)


@pytest.mark.unit
def test_figures_of_another_unit_are_not_compared():
    """A file that is in int8 now and was in float32, or the other way round."""
    found = drift(BEFORE, now(dataclasses.replace(ENTRY, unit="another", figure=1e-4)))
    assert found.worse == ()
    new, missing = found.told
    assert new != missing
    for line in found.told:
        assert_mentions(line, "vit.onnx", "cpu", "logits")


@pytest.mark.unit
def test_what_is_new_or_missing_is_told_and_is_no_failure():
    found = drift(BEFORE, now(dataclasses.replace(ENTRY, output="embedding", inputs="images")))
    assert found.worse == ()
    new, missing = found.told
    assert_mentions(new, "vit.onnx", "cpu", "embedding", "images")
    assert_mentions(missing, "vit.onnx", "cpu", "logits")


@pytest.mark.unit
@pytest.mark.parametrize(("latency", "processor", "told"), [(12.4, "a processor", 0), (12.6, "a processor", 1), (99.0, "another one", 0)])
def test_what_is_slower_on_the_same_processor_is_told(latency: float, processor: str, told: int):
    found = drift(BEFORE, now(latency=latency, processor=processor))
    assert (found.worse, len(found.told)) == ((), told)
    for line in found.told:
        assert_mentions(line, "vit.onnx", "cpu", f"{latency:.1f}", "10.0", "ms")


@pytest.mark.unit
def test_it_is_read_as_it_was_written(tmp_path: Path):
    (tmp_path / "baseline.json").write_text(BEFORE.to_json())
    assert read_baseline(tmp_path / "baseline.json") == BEFORE


@pytest.mark.unit
@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("no json", ("--baseline", "Expecting value")),
        ("[]", ("--baseline", "list indices")),
        ("{}", ("--baseline", "'schema'")),
        (BEFORE.to_json().replace('"figure": 1.2', '"figure": "x"'), ("--baseline", "could not convert string to float: 'x'")),
        (BEFORE.to_json().replace('"unit"', '"ant"'), ("--baseline", "unexpected keyword argument 'ant'")),
        (BEFORE.to_json().replace('"schema": 1', '"schema": 2'), (2, 1)),
        ("[" * 99_999, ("--baseline", "recursion")),
    ],
)
def test_what_is_none_is_refused(text: str, facts: tuple[object, ...], tmp_path: Path):
    path = tmp_path / "baseline.json"
    path.write_text(text)
    with pytest.raises(FileError) as error:
        read_baseline(path)
    assert_mentions(one_line(error), path)
    assert_mentions(str(error.value).removeprefix(str(path)), *facts)


def test_the_command_stores_it_the_first_time_and_compares_the_next(tiny_model: Path, tmp_path: Path):
    path = tmp_path / "baseline.json"
    arguments: list[str | Path] = [tiny_model, "--batch-sizes", "1,3", "--baseline", path]
    first = run("vit-parity", *arguments)
    assert first.exit_code == 0
    (warning,) = first.stderr.splitlines()
    assert_mentions(warning, "warning:", path)
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
    (line,) = [line for line in again.stdout.splitlines() if str(path) in line]
    assert_mentions(line, tiny_model, "cpu", "tokens")
    assert path.read_bytes() == stored


def test_a_check_that_failed_stores_nothing(edited, tmp_path: Path):
    path = tmp_path / "baseline.json"
    assert run("vit-parity", edited(0.5), "--batch-sizes", "1", "--baseline", path).exit_code == 1
    assert not path.exists()


def test_a_file_that_is_no_baseline_is_exit_code_3_before_the_work(tiny_model: Path, tmp_path: Path):
    (tmp_path / "baseline.json").write_text("no json")
    message = failed(run("vit-parity", tiny_model, "--baseline", tmp_path / "baseline.json"), 3)
    assert_mentions(message, tmp_path / "baseline.json", "--baseline", "Expecting value")
