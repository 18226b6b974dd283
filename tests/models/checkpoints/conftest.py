"""At the end of a run, say how many of the reference checkpoints were covered: a part of them travels with the project."""

import pytest

covered = pytest.StashKey[set[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[covered] = set()


@pytest.fixture
def cover(request: pytest.FixtureRequest):
    """Note a reference checkpoint as covered."""
    return request.config.stash[covered].add


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if names := config.stash[covered]:
        folders = {name.partition("/")[0] for name in names}
        terminalreporter.write_line(f"reference checkpoints: {len(names)} files of {len(folders)} models matched")


@pytest.fixture
def fresh_folder(tmp_path, monkeypatch):
    """Every test runs in an empty folder, in which no hostile file may have made anything."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "PWNED").exists()
