"""Memory and imports that opening and reading a checkpoint costs."""

import os
import resource
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import WEIGHTS, safetensors
from safetensors.torch import save_file

from vit_models.checkpoints.files import open_checkpoint

pytestmark = pytest.mark.usefixtures("fresh_folder")

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads the resident size from /proc")


def sparse_safetensors(path: Path, tensors: int, floats: int) -> None:
    """A file whose values are a hole in the file system: it takes no disk."""
    header = {f"t{n}": {"dtype": "F32", "shape": [floats], "data_offsets": [n * floats * 4, (n + 1) * floats * 4]} for n in range(tensors)}
    path.write_bytes(safetensors(header))
    os.truncate(path, path.stat().st_size + tensors * floats * 4)


@LINUX
def test_opening_a_large_file_reads_none_of_its_values():
    path = Path("model.safetensors")
    sparse_safetensors(path, 300, 1 << 18)
    before = resident_mib()
    file = open_checkpoint(path)
    assert resident_mib() - before < 20
    assert len(file.tensors) == 300


@LINUX
@pytest.mark.parametrize("container", ["safetensors", "zip", "legacy", "npz"])
def test_released_tensors_take_no_memory(container: str):
    """Of a file of 128 MiB, read tensor by tensor, only one tensor at a time is resident."""
    weights = {f"t{n}": torch.full((1 << 20,), float(n)) for n in range(32)}
    path = Path("model")
    if container == "safetensors":
        save_file(weights, path)
    elif container == "npz":
        with path.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **{name: tensor.numpy() for name, tensor in weights.items()})
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=container == "zip")
    del weights
    file = open_checkpoint(path)
    before, peak = resident_mib(), 0.0
    for name in file.tensors:
        assert float(file.read(name).sum()) == float(name[1:]) * (1 << 20)
        peak = max(peak, resident_mib() - before)
        file.release(name)
    assert peak < 24


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / (1 << 20)


def test_listing_a_file_needs_no_torch_and_no_numpy():
    save_file(WEIGHTS, "a.safetensors")
    torch.save({"model": WEIGHTS, "args": Namespace(a=1)}, "b.pth")
    np.savez("c.npz", a=np.ones(2))
    program = (
        "import sys; from pathlib import Path; from vit_models.checkpoints.files import open_checkpoint;"
        "[print(open_checkpoint(Path(name)).tensors) for name in sys.argv[1:]];"
        "sys.exit(bool({'torch', 'numpy'} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", program, "a.safetensors", "b.pth", "c.npz"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
