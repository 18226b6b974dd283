"""The working directory of tests that read hostile files."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def fresh_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty working directory, in which no hostile file may create `PWNED`."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "PWNED").exists()
