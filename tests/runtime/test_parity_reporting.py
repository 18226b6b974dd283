"""What CI systems are given: JUnit's XML as its readers take it, and a summary that says the same."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
from helpers import assert_mentions, failed, run
from junitparser import JUnitXml

from vit_runtime.accuracy import Accuracy
from vit_runtime.manifest import Error, Limits, Nearness
from vit_runtime.parity import Check, Report
from vit_runtime.parity.reporting import FAILURES, Result, junit, summary

GOOD = Check("cpu", 2, (32, 24), "logits", Error(5e-7, 1e-6), 1.25, 2.5, Accuracy(0.9999, 1.0, 1.0, 1e-9, 2e-9), Limits(2.0, 8.0), True)
BAD = dataclasses.replace(GOOD, batch_size=3, rms_floors=812.04, passed=False)
EXACT = Limits(2.0, 8.0)
NEAR = {"logits": Nearness(0.998, 0.001)}


def result(path: str = "vit.onnx", *checks: Check, limits: Limits | Mapping[str, Nearness] = EXACT) -> Result:
    return Result(path, (Report(limits, checks or (GOOD,)),))


def rows(text: str) -> list[list[str]]:
    """The cells of a summary's table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [line.strip("| ").split(" | ") for line in lines[2:]]


@pytest.mark.unit
def test_a_reader_of_junit_finds_a_suite_for_each_report_and_a_case_for_each_check(tmp_path: Path):
    file = tmp_path / "parity.xml"
    file.write_text(junit([result("a.onnx", GOOD, BAD), result("b.onnx")]), encoding="utf-8")
    first, second = JUnitXml.fromfile(str(file))
    assert [(suite.name, suite.tests, suite.failures, suite.errors) for suite in (first, second)] == [
        ("a.onnx on cpu", 2, 1, 0),
        ("b.onnx on cpu", 1, 0, 0),
    ]
    passed, bad = first
    assert (passed.name, passed.classname, passed.is_passed) == ("logits, batch size 2, 32x24", "a.onnx on cpu", True)
    (failure,) = bad.result
    assert bad.name == "logits, batch size 3, 32x24"
    assert_mentions(failure.message, "812.04", "2.50", 2, 8)


@pytest.mark.unit
@pytest.mark.parametrize("path", ["a&b<c>.onnx", 'quoted "name".onnx', "bell\a and tab\t.onnx", "caf\udce9.onnx", "\ufffe\U0001f600.onnx"])
def test_every_name_of_a_file_makes_a_document(path: str, tmp_path: Path):
    file = tmp_path / "parity.xml"
    file.write_text(junit([result(path)]), encoding="utf-8")
    (suite,) = JUnitXml.fromfile(str(file))
    assert suite.name.endswith(".onnx on cpu")
    summary([result(path)]).encode("utf-8", "replace")


@pytest.mark.unit
def test_in_reduced_precision_the_cosine_and_the_divergence_are_told():
    check = dataclasses.replace(BAD, accuracy=Accuracy(0.91, 0.95, 0.5, 0.1, 0.25), limit=NEAR["logits"])
    results = [result("vit.onnx", check, limits=NEAR)]
    (case,) = next(iter(JUnitXml.fromstring(junit(results).encode())))
    assert_mentions(case.result[0].message, "cosine", "0.91000", 0.998, "KL", "2.5e-01", 0.001)
    (line,) = [line for line in summary(results).splitlines() if line.startswith("- ")]
    assert_mentions(line, "vit.onnx", "cpu", "logits", 3, "32x24", "0.91000", 0.998, "2.5e-01", 0.001)
    check = dataclasses.replace(check, limit=Nearness(0.9, 1.0, 0.99))
    (case,) = next(iter(JUnitXml.fromstring(junit([result("vit.onnx", check, limits=NEAR)]).encode())))
    assert_mentions(case.result[0].message, "0.91000", 0.9, "mean", "0.95000", 0.99, "2.5e-01", 1)


@pytest.mark.unit
def test_the_summary_names_the_worst_check_of_each_report():
    text = summary([result("a.onnx", GOOD, dataclasses.replace(GOOD, batch_size=7, rms_floors=1.5)), result("b.onnx")])
    first, second = rows(text)
    assert first[:2] == ["a.onnx", "cpu"]
    assert first[3] == "2"  # checks
    assert_mentions(first[4], "logits", 7, "32x24", "1.50", "2.50", 2, 8)
    assert second[:2] == ["b.onnx", "cpu"]
    assert "FAILED" not in text
    assert not [line for line in text.splitlines() if line.startswith("- ")]


@pytest.mark.unit
def test_the_summary_of_a_failure_says_so_first_and_lists_what_failed():
    text = summary([result("a.onnx"), result("b.onnx", GOOD, BAD)])
    assert "FAILED" in text.splitlines()[0]
    good, bad = rows(text)
    assert good[2] != bad[2] == "**FAILED**"
    assert (bad[0], bad[1], bad[3]) == ("b.onnx", "cpu", "2")
    (line,) = [line for line in text.splitlines() if line.startswith("- ")]
    assert_mentions(line, "b.onnx", "cpu", "logits", 3, "32x24", "812.04", "2.50", 2, 8)


@pytest.mark.unit
def test_a_summary_stays_short():
    text = summary([result("a.onnx", *[BAD] * (FAILURES + 5))])
    failures = [line for line in text.splitlines() if line.startswith("- ")]
    assert len(failures) == FAILURES + 1
    assert all("a.onnx" in line for line in failures[:-1])
    assert_mentions(failures[-1], 5)


@pytest.mark.unit
def test_a_name_cannot_break_the_table():
    (line,) = [line for line in summary([result("a|b\n`c`.onnx")]).splitlines() if "onnx" in line]
    assert line.startswith(r"| a\|b?\`c\`.onnx | cpu |")


def test_the_command_writes_both(tiny_model: Path, edited, tmp_path: Path):
    xml, markdown = tmp_path / "parity.xml", tmp_path / "summary.md"
    answer = run("vit-parity", tiny_model, edited(0.5), "--batch-sizes", "1,2", "--junit", xml, "--summary", markdown, "-q")
    assert (answer.exit_code, answer.stdout) == (1, "")
    assert [(suite.tests, suite.failures) for suite in JUnitXml.fromfile(str(xml))] == [(13, 0), (13, 3), (16, 4)]
    assert "FAILED" in markdown.read_text().splitlines()[0]


@pytest.mark.parametrize("option", ["--junit", "--summary"])
def test_a_place_that_cannot_be_written_is_told_before_and_a_full_disk_after(option: str, tiny_model: Path, tmp_path: Path):
    message = failed(run("vit-parity", tiny_model, option, tmp_path / "no" / "file"), 2)
    assert_mentions(message, option, tmp_path / "no" / "file", f"mkdir -p {tmp_path}/no")
    if Path("/dev/full").exists():
        message = failed(run("vit-parity", tiny_model, "--batch-sizes", "1", option, "/dev/full"), 4)
        assert_mentions(message, "/dev/full", "No space left on device")


def test_what_is_written_appears_whole_or_not_at_all(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A write that breaks off leaves the file that was there, and nothing beside it."""
    out = tmp_path / "parity.xml"
    out.write_text("the last one")

    def breaks(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", breaks)
    message = failed(run("vit-parity", tiny_model, "--batch-sizes", "1", "--junit", out), 4)
    assert_mentions(message, out, "No space left on device")
    assert out.read_text() == "the last one"
    assert [path.name for path in tmp_path.iterdir()] == ["parity.xml"]
