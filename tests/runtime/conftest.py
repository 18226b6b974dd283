"""Models, pictures and changed files that the runtime's tests share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

import vit_runtime as vit
from vit_runtime.model import Model


@pytest.fixture(scope="session")
def float32(tiny_openvino_fp32: Path) -> Model:
    return vit.load(tiny_openvino_fp32, "openvino", threads=2)


@pytest.fixture(scope="session")
def int8(tiny_openvino: Path) -> Model:
    return vit.load(tiny_openvino, "openvino", threads=2)


@pytest.fixture(scope="session")
def honest(tiny_model: Path) -> Model:
    """The float32 file on the CPU."""
    return vit.load(tiny_model, "cpu")


@pytest.fixture(params=[("tiny_int8", "cpu"), ("tiny_openvino", "openvino")], ids=["cpu", "openvino"])
def reduced(request: pytest.FixtureRequest) -> Model:
    """A file in int8 on the provider that it was made for."""
    fixture, provider = request.param
    if provider == "openvino":
        pytest.importorskip("openvino")
    return vit.load(request.getfixturevalue(fixture), provider)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with five pictures, one of them in a folder below, and a text file."""
    rng, folder = np.random.default_rng(0), tmp_path / "images"
    for name in ("a.png", "b.jpg", "c.PNG", "d.bmp", "below/e.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def edited(tiny_model: Path, tmp_path: Path) -> Callable[[float], Path]:
    """A copy of the tiny file whose first class has this bias."""

    def make(bias: float) -> Path:
        proto = onnx.load(tiny_model)
        tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == "head.bias")
        values = numpy_helper.to_array(tensor).copy()
        values[0] = bias
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        path = tmp_path / "edited.onnx"
        path.write_bytes(proto.SerializeToString())
        return path

    return make


@pytest.fixture
def broken(tiny_model: Path, tmp_path: Path) -> Path:
    """The first half of the tiny file."""
    path = tmp_path / "broken.onnx"
    path.write_bytes(tiny_model.read_bytes()[: tiny_model.stat().st_size // 2])
    return path
