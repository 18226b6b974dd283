"""Checkpoints that the reference implementations wrote give the outputs that those computed, through the network and through ONNX.

The project carries some; where the whole set lies beside the project, all of it is run. scripts/checkpoint_table.py says what a case is.
"""

import runpy
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from vit_exporter import Changes, ExportSpec, checkpoint_source, export
from vit_models import inspect
from vit_models.config import ViTConfig

ROOT = Path(__file__).parents[3]
WHOLE = ROOT.parent / "shared" / "fixtures"
TABLE = runpy.run_path(str(ROOT / "scripts" / "checkpoint_table.py"))
CARRIED = {case.name: case for case in TABLE["cases"](TABLE["CARRIED"])}
CASES = {case.name: case for case in TABLE["cases"](WHOLE)} if WHOLE.is_dir() else CARRIED
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


def test_the_project_carries_every_family() -> None:
    """A clone on its own tests one of each at least, in at most 8 MB."""
    families = {"big_vision", "dino", "dinov2", "dinov3", "google_vit", "hf", "mae", "open_clip", "openai_clip", "timm", "torchvision"}
    assert {name.partition("__")[0] for name in CARRIED} == families
    assert sum(path.stat().st_size for path in TABLE["CARRIED"].rglob("*")) < 8e6
    assert CASES.keys() >= CARRIED.keys()


@pytest.mark.parametrize("name", CASES)
def test_gives_what_the_reference_implementation_gives(name, cover) -> None:
    row = TABLE["measure"](CASES[name])
    assert row.worst < TABLE["TOLERANCE"], row.errors
    assert row.floors < 2  # nothing but float32 rounding stands between the two
    assert row.errors.keys() & {"embedding", "logits", "tokens"}
    cover(name)


@pytest.mark.parametrize("name", CASES)
def test_is_recognised_and_described_without_reading_a_weight(name) -> None:
    case = CASES[name]
    spec = inspect(case.path, case.options)
    assert isinstance(spec.config, ViTConfig)
    assert spec.preprocessing is not None
    assert spec.converted


def check_export(case, out: Path) -> None:
    with np.load(case.folder / "case.npz") as stored:
        reference = {name: stored[name] for name in stored.files}
    spec = inspect(case.path, case.options)
    outputs = [ours for theirs, ours in TABLE["OUTPUTS"].items() if theirs + case.suffix in reference]
    if not spec.config.class_token:
        outputs = [name for name in outputs if name != "attention"]
    changes = Changes(img_size=case.options.img_size)
    export(lambda: checkpoint_source(case.path, changes, outputs, options=case.options), ExportSpec(out))
    session = ort.InferenceSession(out, providers=["CPUExecutionProvider"])
    found = dict(zip(outputs, session.run(outputs, {"pixel_values": reference["pixel_values"]}), strict=True))
    for theirs, ours in TABLE["OUTPUTS"].items():
        if ours in found:
            expected = reference[theirs + case.suffix]
            expected = expected[:, :, 0, spec.config.num_prefix :] if ours == "attention" else expected
            np.testing.assert_allclose(found[ours], expected, rtol=0, atol=TABLE["TOLERANCE"], err_msg=ours)


@pytest.mark.parametrize("name", EXPORTED)
def test_the_exported_file_gives_it_too(name, tmp_path) -> None:
    check_export(CARRIED[name], tmp_path / "vit.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES.keys() - set(EXPORTED)))
def test_every_exported_file_gives_it_too(name, tmp_path) -> None:
    check_export(CASES[name], tmp_path / "vit.onnx")


def test_the_documents_table_has_every_case() -> None:
    """All that were there when it was made; scripts/checkpoint_table.py makes it again."""
    text = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    rows = dict.fromkeys(line.split("|")[1].strip() for line in text.partition(TABLE["BEGIN"])[2].splitlines() if line.startswith("| "))
    assert rows.keys() >= CASES.keys()


@pytest.mark.slow
def test_the_documents_table_is_what_its_script_measures() -> None:
    """Every figure within a half of what another machine's sums may give."""
    text = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    written = {line.split("|")[1].strip(): float(line.split("|")[-2]) for line in text.splitlines() if line.count(" x ") and line[0] == "|"}
    for name, case in CASES.items():
        assert TABLE["measure"](case).floors == pytest.approx(written[name], rel=0.5)
    for name, _, _, floors in TABLE["shapes"]():
        assert floors == pytest.approx(written[name], rel=0.5)
