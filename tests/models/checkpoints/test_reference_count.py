"""The number of compared reference checkpoints is printed at the end of a run, with and without xdist workers."""

import pytest

pytest_plugins = ["pytester"]

TEST = """
import pytest

@pytest.mark.parametrize("name", ["one/a", "one/b", "one/b", "two", "different"])
def test_case(name, record_property):
    record_property("reference_checkpoint", name)
    assert name != "different"

def test_other():
    pass
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_the_checkpoints_of_passed_tests_are_counted_once(workers: int, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TEST)
    result = pytester.runpytest_subprocess("-p", "reference_count", "-p", "no:randomly", "-n", str(workers))
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines(["*reference checkpoints: 3 * 2 *"])


def test_a_run_without_reference_checkpoints_prints_no_count(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_other(): pass")
    result = pytester.runpytest_inprocess("-p", "reference_count", "-p", "no:randomly", "-p", "no:xdist")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*reference checkpoints*")
