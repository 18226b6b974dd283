"""At the end of a run, print how many reference checkpoints it compared: the repository contains only a part of them.

The name of the checkpoint is a property of the test's report, which xdist workers send to the controller.
"""

import pytest

PROPERTY = "reference_checkpoint"


def count(name: str, request: pytest.FixtureRequest) -> None:
    """Count the reference checkpoint if the test passes."""
    request.node.user_properties.append((PROPERTY, name))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    passed = terminalreporter.getreports("passed")
    names = {value for report in passed for key, value in report.user_properties if key == PROPERTY}
    if names:
        folders = {str(name).partition("/")[0] for name in names}
        terminalreporter.write_line(f"reference checkpoints: {len(names)} files of {len(folders)} models compared")
