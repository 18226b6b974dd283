"""Checkpoints that the reference implementations wrote give the outputs that those computed, through the network and through ONNX.

The repository contains some of them. Set VIT_DEPLOY_FIXTURES to the folder of the whole set to run all; see scripts/reference_cases.py.
"""

from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from checkpoint_table import BEGIN, DOCUMENT, shapes
from export_cache import ExportCache
from helpers import assert_mentions
from reference_cases import IN_REPOSITORY, TOLERANCE, VARIABLE, Case, Row, available_cases, cases, measure, reference
from reference_count import count

from vit_exporter import Changes, checkpoint_source
from vit_models import inspect
from vit_models.config import ViTConfig

REPOSITORY_CASES = {case.name: case for case in cases(IN_REPOSITORY)}
CASES = available_cases()
# One of each kind of structure; `make test-slow` exports them all.
EXPORTED = (
    "big_vision__siglip2_scan",
    "dino__vit_interpolate",
    "dinov3__vit",
    "hf__beit_cls",
    "hf__deit_teacher",
    "hf__dinov2_registers_cls",
    "open_clip__vit_quickgelu",
    "timm__eva02_tiny",
    "timm__vit_inchans",
)


@cache
def measured(name: str) -> Row:
    """The comparison of a case, made once in each process."""
    return measure(CASES[name])


@pytest.mark.unit
def test_the_repository_contains_a_case_of_every_family() -> None:
    """At least one of each, in at most 8 MB."""
    families = {"big_vision", "dino", "dinov2", "dinov3", "google_vit", "hf", "mae", "open_clip", "openai_clip", "timm", "torchvision"}
    assert {name.partition("__")[0] for name in REPOSITORY_CASES} == families
    assert sum(path.stat().st_size for path in IN_REPOSITORY.rglob("*")) < 8e6
    assert CASES.keys() >= REPOSITORY_CASES.keys()


@pytest.mark.unit
def test_the_variable_names_the_folder_of_the_cases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert available_cases() == REPOSITORY_CASES
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert available_cases() == {}
    monkeypatch.setenv(VARIABLE, str(tmp_path / "absent"))
    with pytest.raises(NotADirectoryError) as error:
        available_cases()
    assert_mentions(str(error.value), VARIABLE, tmp_path / "absent")


@pytest.mark.unit
@pytest.mark.parametrize("name", CASES)
def test_gives_what_the_reference_implementation_gives(name: str, request: pytest.FixtureRequest) -> None:
    row = measured(name)
    assert row.worst < TOLERANCE, row.errors
    assert row.floors < 2  # float32 rounding alone explains the error
    assert row.errors.keys() & {"embedding", "logits", "tokens"}
    count(name, request)


@pytest.mark.unit
@pytest.mark.parametrize("name", CASES)
def test_is_recognized_and_described_without_reading_a_weight(name: str) -> None:
    case = CASES[name]
    spec = inspect(case.path, case.options)
    assert isinstance(spec.config, ViTConfig)
    assert spec.preprocessing is not None
    assert spec.converted


def check_export(case: Case, exports: ExportCache, verify: bool) -> None:
    images, expected = reference(case, inspect(case.path, case.options).config)
    source = checkpoint_source(case.path, Changes(img_size=case.options.img_size), list(expected), options=case.options)
    session = ort.InferenceSession(exports.export(source, verify=verify).out, providers=["CPUExecutionProvider"])
    outputs = dict(zip(expected, session.run(list(expected), {"pixel_values": images}), strict=True))
    for name, values in expected.items():
        np.testing.assert_allclose(outputs[name], values, rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("name", EXPORTED)
def test_the_exported_file_gives_it_too(name: str, exports: ExportCache) -> None:
    check_export(REPOSITORY_CASES[name], exports, verify=False)  # the comparison with the reference takes its place


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_exported_file_gives_it_too(name: str, exports: ExportCache) -> None:
    check_export(CASES[name], exports, verify=True)


@pytest.mark.unit
def test_the_documents_table_has_every_case() -> None:
    """scripts/checkpoint_table.py makes it from the whole set."""
    text = DOCUMENT.read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip() for line in text.partition(BEGIN)[2].splitlines() if line.startswith("| ")}
    assert rows >= CASES.keys()


@pytest.mark.slow
def test_the_documents_table_is_what_its_script_measures() -> None:
    """Another machine sums in another order, so each value may differ by a half."""
    text = DOCUMENT.read_text(encoding="utf-8")
    written = {line.split("|")[1].strip(): float(line.split("|")[-2]) for line in text.splitlines() if line.count(" x ") and line[0] == "|"}
    for name in CASES:
        assert measured(name).floors == pytest.approx(written[name], rel=0.5)
    for name, _, _, floors in shapes():
        assert floors == pytest.approx(written[name], rel=0.5)
