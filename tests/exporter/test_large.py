"""The large networks, marked slow: ViT-L/16 in one file, ViT-H/14 with external data, each verified and within its memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "external"), [("ViT-L/16", False), ("ViT-H/14", True)])
def test_a_large_network_is_exported_and_verified(arch, external, tmp_path):
    """Memory: the weights once, the interpreter and the graph, and what onnxruntime holds; not the weights three times."""
    out = tmp_path / "vit.onnx"
    report = run("vit-export", "--arch", arch, "--out", out)
    assert report["parity"]["passed"]
    assert report["external_files"] == (["vit.onnx.data"] if external else [])
    weights = 4 * report["manifest"]["model"]["parameters"]
    assert report["peak_memory"] < 2.2 * weights + 600e6
    assert run("vit-parity", out, "--batch-sizes", "1,5")["passed"]


def run(command, *arguments):
    done = subprocess.run([BIN / command, *map(str, arguments), "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
