"""The pytest plugin in a test run of its own: a test for each file and provider, with the doctor's reason where one does not work."""

from collections.abc import Callable
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

TEST = """
def test_the_file_is_right(vit_parity):
    report = vit_parity.check(batch_sizes=(1, 3))
    assert report.passed
    assert {check.batch_size for check in report.checks} == {1, 3}
    assert vit_parity.model.provider == vit_parity.provider
"""


OPTIONS = ("-p", "no:randomly", "-p", "no:xdist", "-rs", "-v")


@pytest.fixture
def run(pytester: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    """pytest in a process of its own, where the plugin is found as an installed one is."""
    pytester.makepyfile(TEST)
    return lambda *arguments: pytester.runpytest_subprocess(*OPTIONS, *map(str, arguments))


@pytest.fixture
def run_here(pytester: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    """pytest in this process, for what loads no file."""
    pytester.makepyfile(TEST)
    return lambda *arguments: pytester.runpytest_inprocess(*OPTIONS, *map(str, arguments))


def test_a_test_runs_for_each_file_and_each_provider_that_works(
    run, tiny_model: Path, tiny_int8: Path, edited: Callable[[float], Path], tmp_path: Path
):
    """A wrong file fails with what was measured, and the error for a missing one names it."""
    models = [tiny_model, tiny_int8, edited(0.5), tmp_path / "no.onnx"]
    result = run(*(argument for model in models for argument in ("--vit-model", model)), "--vit-providers", "cpu")
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(
        [
            f"*[[]{tiny_model.name}-cpu[]] PASSED*",
            f"*[[]{tiny_int8.name}-cpu[]] PASSED*",
            "*[[]edited.onnx-cpu[]] FAILED*",
            "*[[]no.onnx-cpu[]] FAILED*",
            "*logits, batch size 1, 32x32*floors*",
            "*ModelError: *no.onnx*",
        ]
    )


def test_a_provider_that_does_not_work_is_skipped_with_the_doctors_reason(
    run, pytester: pytest.Pytester, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    """OpenVINO in a broken state, whatever this machine has."""
    pytester.makepyfile(openvino="raise ImportError('libtbb.so.12: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(pytester.path))
    result = run("--vit-model", tiny_model, "--vit-providers", "cpu,openvino")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*SKIPPED*openvino*libtbb.so.12: cannot open shared object file*pip install*"])


def test_a_provider_of_no_name_is_an_error_that_lists_them(run_here, tiny_model: Path):
    result = run_here("--vit-model", tiny_model, "--vit-providers", "gpu")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*InputError: *'gpu'*cpu, openvino, cuda*"])


def test_without_a_file_the_test_is_skipped_and_told_how_to_give_one(run_here):
    result = run_here()
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*SKIPPED*--vit-model FILE*"])


def test_tests_that_do_not_ask_for_it_are_left_alone(pytester: pytest.Pytester, tiny_model: Path):
    pytester.makepyfile("def test_other(): pass")
    pytester.runpytest_inprocess(*OPTIONS, "--vit-model", tiny_model).assert_outcomes(passed=1)
