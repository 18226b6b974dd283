"""The number of compared reference checkpoints is printed at the end of a run, with and without xdist workers."""

from pathlib import Path

import pytest
import reference_count

pytest_plugins = ["pytester"]

TEST = """
import pytest
from reference_count import count

@pytest.mark.parametrize("name", ["one/a", "one/b", "one/b", "two", "different"])
def test_case(name, request):
    count(name, request)
    assert name != "different"

def test_other():
    pass
"""


@pytest.fixture
def folder(pytester: pytest.Pytester) -> pytest.Pytester:
    """A folder of tests with the plugin, loaded as tests/conftest.py loads it."""
    pytester.makeini(f"[pytest]\npythonpath = {Path(reference_count.__file__).parent}")
    pytester.makeconftest('pytest_plugins = ["reference_count"]')
    return pytester


@pytest.mark.parametrize("workers", [0, 1])
def test_the_checkpoints_of_passed_tests_are_counted_once(workers: int, folder: pytest.Pytester) -> None:
    folder.makepyfile(TEST)
    run = folder.runpytest_subprocess if workers else folder.runpytest_inprocess
    result = run("-p", "no:randomly", "-n", str(workers), "--junitxml=report.xml", "-W", "error")
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines(["*reference checkpoints: 3 * 2 *"])


def test_a_run_without_reference_checkpoints_prints_no_count(folder: pytest.Pytester) -> None:
    folder.makepyfile("def test_other(): pass")
    result = folder.runpytest_inprocess("-p", "no:randomly", "-p", "no:xdist")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*reference checkpoints*")
