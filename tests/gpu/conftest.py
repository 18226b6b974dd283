"""Models on a GPU; where there is none, every test here skips with the doctor's reason."""

from collections.abc import Callable
from pathlib import Path

import pytest
from export_cache import ExportCache

from vit_exporter import Source
from vit_runtime.gpu_options import GPU_PROVIDERS, TAKEN_BY
from vit_runtime.providers import Probe, probe


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The marker, for every test below this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def needs() -> Callable[[str], None]:
    """Skip with the doctor's reason where a provider does not work."""
    answers = dict[str, Probe]()

    def check(provider: str) -> None:
        if provider not in answers:
            answers[provider] = probe(provider)
        if not answers[provider].works:
            pytest.skip(f"{answers[provider].reason}; {answers[provider].remedy}")

    return check


@pytest.fixture(params=GPU_PROVIDERS)
def provider(request: pytest.FixtureRequest, needs: Callable[[str], None]) -> str:
    """Each provider of a GPU that works here."""
    needs(request.param)
    return str(request.param)


@pytest.fixture(params=TAKEN_BY["cuda_graph"])
def recorder(request: pytest.FixtureRequest, needs: Callable[[str], None]) -> str:
    """Each of them that records CUDA graphs, runs on a stream of the caller's and takes batches on the GPU."""
    needs(request.param)
    return str(request.param)


@pytest.fixture
def cuda(needs: Callable[[str], None]) -> str:
    needs("cuda")
    return "cuda"


@pytest.fixture
def tensorrt(needs: Callable[[str], None]) -> str:
    needs("tensorrt")
    return "tensorrt"


@pytest.fixture(scope="session")
def exported(tiny_source: Source, exports: ExportCache) -> Callable[[str, str], Path]:
    """The file that the tiny network is exported to for a target in a precision."""
    return lambda target, precision: exports.export(tiny_source, f"{target}-{precision}.onnx", target=target, precision=precision).out


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines of these tests, in a folder of their own, shared by them."""
    monkeypatch.setenv("VIT_DEPLOY_CACHE", str(tmp_path_factory.getbasetemp() / "engines"))
