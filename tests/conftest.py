"""Shared exports, one processor for each xdist worker, and the check that `unit` tests start nothing heavy."""

import gc
import importlib
import os
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest
from export_cache import ExportCache, remove_old
from networks import SHALLOW, make_source

from vit_exporter import Source
from vit_runtime.manifest import Manifest, read_manifest

pytest_plugins = ["reference_count"]  # prints the number of compared reference checkpoints

# What a test with the marker `unit` must not call: these take seconds, or start another process that may.
HEAVY = (("torch.onnx", "export"), ("onnxruntime", "InferenceSession"), ("openvino", "Core"), ("subprocess", "Popen"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-snapshots", action="store_true", help="write the files of tests/snapshots again")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        take_one_processor(config.workerinput)
    else:
        remove_old(config.cache.mkdir("exports"))


def take_one_processor(worker: dict[str, Any]) -> None:
    """Bind an xdist worker to a processor of its own.

    torch, onnxruntime, OpenVINO and child processes then start one thread each by default, instead of one for each processor in every
    worker. A test that needs more gives the number of threads.
    """
    if hasattr(os, "sched_setaffinity"):
        processors = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {processors[int(worker["workerid"].removeprefix("gw")) % len(processors)]})
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _unit_tests_start_nothing_heavy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("unit") is None:
        return
    assert "exports" not in request.fixturenames, "a test with the marker `unit` must not need an export"

    def refuse(*arguments: object, **options: object) -> NoReturn:
        raise AssertionError("a test with the marker `unit` must not export, start an engine or start a process")

    for module, name in HEAVY:
        if find_spec(module):
            monkeypatch.setattr(importlib.import_module(module), name, refuse)


def pytest_collection_finish() -> None:
    """Leave what is in memory now out of garbage collection: an export collects three times, and modules and tests are most of memory."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _garbage_collection() -> Iterator[None]:
    """vit-export switches garbage collection off for its own short life; this process lives longer."""
    yield
    gc.enable()


@pytest.fixture(scope="session")
def exports(pytestconfig: pytest.Config) -> ExportCache:
    """Exports that all tests and workers share."""
    assert pytestconfig.cache is not None
    return ExportCache(pytestconfig.cache.mkdir("exports"))


@pytest.fixture(scope="session")
def tiny_source() -> Source:
    """A network of two blocks for images of 32 x 32 pixels, with every output and ten labels. Do not change it."""
    return make_source()


@pytest.fixture(scope="session")
def tiny_model(exports: ExportCache, tiny_source: Source) -> Path:
    """The file that `tiny_source` is exported to, verified, all in one file. Copy it before you change it."""
    return exports.export(tiny_source, "tiny.onnx").out


@pytest.fixture(scope="session")
def tiny_external(exports: ExportCache, tiny_source: Source) -> Path:
    """The same network, its weights in a file beside it. Copy both files before you change one."""
    return exports.export(tiny_source, "tiny.onnx", external_data=True).out


@pytest.fixture(scope="session")
def tiny_unverified(exports: ExportCache, tiny_source: Source) -> Path:
    """The same network without a golden record."""
    return exports.export(tiny_source, "tiny.onnx", verify=False).out


@pytest.fixture(scope="session")
def tiny_embedder(exports: ExportCache) -> Path:
    """A network without a head: its file has an embedding and no logits."""
    return exports.export(make_source(replace(SHALLOW, num_classes=0), ("embedding",), None), "embedder.onnx").out


@pytest.fixture(scope="session")
def tiny_clip(exports: ExportCache) -> Path:
    """A network whose head projects into a space that images and texts share: 24 values per image, and no classes."""
    config = replace(SHALLOW, num_classes=24, pre_norm=True, projection=True)
    return exports.export(make_source(config, ("logits", "embedding"), None), "clip.onnx").out


@pytest.fixture(scope="session")
def tiny_projected(exports: ExportCache) -> Path:
    """A network with so many tokens (65 x 64 = 4,160 values per image) that its golden record contains their projection."""
    config = replace(SHALLOW, patch_size=4, embed_dim=64)
    return exports.export(make_source(config, ("logits", "tokens"), None), "projected.onnx").out


@pytest.fixture(scope="session")
def tiny_int8(exports: ExportCache, tiny_source: Source) -> Path:
    """The network of `tiny_source` in int8 for onnxruntime on a CPU, verified. Copy it before you change it."""
    return exports.export(tiny_source, "int8.onnx", target="cpu", precision="int8").out


@pytest.fixture(scope="session")
def tiny_openvino(exports: ExportCache, tiny_source: Source) -> Path:
    """The network of `tiny_source` in int8 for OpenVINO, verified. Copy it before you change it."""
    return exports.export(tiny_source, "openvino.onnx", target="openvino", precision="int8").out


@pytest.fixture(scope="session")
def tiny_openvino_fp32(exports: ExportCache, tiny_source: Source) -> Path:
    """The network of `tiny_source` in float32 for OpenVINO, verified. Copy it before you change it."""
    return exports.export(tiny_source, "openvino_fp32.onnx", target="openvino").out


@pytest.fixture(scope="session")
def tiny_manifest(tiny_model: Path) -> Manifest:
    """The manifest of `tiny_model`."""
    return read_manifest(tiny_model)[0]
