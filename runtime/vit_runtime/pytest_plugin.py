"""A pytest plugin: a test that asks for `vit_parity` runs for each file of --vit-model on each provider that works here.

    def test_the_file_is_right(vit_parity):
        vit_parity.check()

pytest --vit-model vit.onnx --vit-providers cpu,cuda
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vit_runtime.parity import BATCH_SIZES, Report, Result, check_record, summary
from vit_runtime.providers import PROVIDERS, find_provider, probe

if TYPE_CHECKING:
    from vit_runtime.model import Model

FIXTURE = "vit_parity"
NO_MODEL = "no file was given; run pytest with --vit-model FILE"


@dataclass(frozen=True)
class Parity:
    """A file on a provider; `model` is loaded when it is asked for."""

    path: Path
    provider: str

    @cached_property
    def model(self) -> Model:
        """The loaded file. Raises: ModelError, ProviderError."""
        from vit_runtime.model import load

        return load(self.path, self.provider)

    def check(self, batch_sizes: Sequence[int] = BATCH_SIZES) -> Report:
        """Hold the file against its golden record; the test fails with what was measured where it does not pass."""
        report = check_record(self.model.run, self.model.manifest, self.provider, batch_sizes)
        if not report.passed:
            pytest.fail(summary([Result(str(self.path), (report,))]), pytrace=False)
        return report


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --vit-model and --vit-providers."""
    group = parser.getgroup("vit-deploy", "exported Vision Transformers")
    group.addoption("--vit-model", action="append", default=[], metavar="FILE", help="a file that vit-export wrote; repeatable")
    providers = ",".join(PROVIDERS)
    group.addoption("--vit-providers", default=providers, help=f"those to check on, by default {providers}; what does not work is skipped")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that asks for the fixture each file on each provider."""
    if FIXTURE not in metafunc.fixturenames:
        return
    models, providers = metafunc.config.getoption("--vit-model"), metafunc.config.getoption("--vit-providers").split(",")
    cases: list[tuple[str, str] | None] = [(model, provider) for model in models for provider in providers]
    ids = [f"{Path(model).name}-{provider}" for model in models for provider in providers]
    metafunc.parametrize(FIXTURE, cases or [None], indirect=True, ids=ids or ["no model"], scope="session")


@pytest.fixture(scope="session")
def vit_parity(request: pytest.FixtureRequest) -> Parity:
    """A file on a provider. Skips where the provider does not work here, with the reason that vit-doctor gives."""
    if request.param is None:
        pytest.skip(NO_MODEL)
    path, provider = request.param
    find_provider(provider)
    found = probe(provider)
    if not found.works:
        pytest.skip(f"{provider} does not work here: {found.reason}; {found.remedy}")
    return Parity(Path(path), provider)
