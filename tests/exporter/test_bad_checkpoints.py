"""Broken and hostile checkpoints: one clear line, exit code 3, nothing written and nothing executed.

The cases are in tests/data/bad_checkpoints; what the readers refuse of files that the tests make themselves is in
tests/models/checkpoints.
"""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from export_commands import run_export
from helpers import assert_mentions

from vit_exporter.inspect import main as inspect

CASES = Path(__file__).parents[1] / "data" / "bad_checkpoints"
# These are accepted with a warning that names this. Everything else must be refused.
ACCEPTED = {"two_weight_files": "model.safetensors"}
# What the line has to name.
NAMED = {
    "text_as_safetensors": "git lfs pull",
    "whole_model_pickle": "state_dict",
    "missing_key": "layer.0.attention.attention.value.weight",
    "missing_head": "classifier.weight",
    "unexpected_key": "rel_bias",
    "wrong_shape": "intermediate.dense.weight",
    "transposed_weight": "intermediate.dense.weight",
    "config_unknown_act": "hidden_act",
    "config_not_json": "config.json",
    "shard_missing": "model-00002-of-00002.safetensors",
    "nan_weights": "NaN",
    "inf_weights": "Inf",
    "integer_weights": "I64",
}


def names() -> list[str]:
    return sorted(path.parent.name for path in CASES.glob("*/case.json"))


@pytest.fixture
def given(request, tmp_path, monkeypatch) -> Path:
    """A copy of the case's input in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "given"
    source = CASES / request.param / "input"
    if source.is_dir():
        shutil.copytree(CASES / request.param, folder)
    (folder / "input").mkdir(parents=True, exist_ok=True)  # of the empty folder, which version control does not keep
    files = sorted((folder / "input").iterdir())
    single = len(files) == 1 and files[0].suffix in (".pth", ".pt", ".bin", ".npz") and files[0].name != "pytorch_model.bin"
    return files[0] if single else folder / "input"


@pytest.mark.parametrize(("given", "name"), [(name, name) for name in names()], indirect=["given"])
def test_is_met_with_one_clear_line(given, name, tmp_path) -> None:
    out = tmp_path / "out" / "vit.onnx"
    out.parent.mkdir()
    result = run_export("--checkpoint", given, "--out", out, "--no-verify")
    assert not list(tmp_path.rglob("PWNED"))
    if name in ACCEPTED:
        assert result.exit_code == 0
        assert_mentions(result.stderr, ACCEPTED[name])
        return
    assert result.exit_code == 3, result.output
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1
    assert NAMED.get(name, "") in lines[0]
    assert len(lines[0]) < 700
    assert not list(out.parent.iterdir())


@pytest.mark.unit
@pytest.mark.parametrize(("given", "name"), [(name, name) for name in names()], indirect=["given"])
def test_is_inspected_without_harm(given, name, tmp_path) -> None:
    """Numbers are not read, so a file with NaN in it can be described; the rest is refused as by the export."""
    result = CliRunner().invoke(inspect, [str(given), "--json"])
    assert not list(tmp_path.rglob("PWNED"))
    assert result.exit_code in (0, 3)
    json.loads(result.stdout)
