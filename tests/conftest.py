"""What many tests start from: one tiny network and the file that it is exported to, made once a session and then read-only."""

import gc
from collections.abc import Sequence
from pathlib import Path

import pytest

from vit_exporter import ExportSpec, Source, export
from vit_models import ViT, ViTConfig, init_weights
from vit_runtime.manifest import Manifest, read_manifest
from vit_runtime.preprocess import Preprocessing

TINY = ViTConfig(img_size=(32, 32), patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_dim=64, num_classes=10)
OUTPUTS = ("logits", "embedding", "tokens", "attention")
LABELS = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay")


def make_source(
    config: ViTConfig = TINY, outputs: Sequence[str] = OUTPUTS, labels: tuple[str, ...] | None = LABELS, seed: int = 0
) -> Source:
    """A network with random weights, as `export` takes it."""
    model = ViT(config, outputs)
    init_weights(model, seed)
    checkpoint = {"format": "random", "seed": seed, "sha256": None}
    return Source(model.eval(), None, checkpoint, Preprocessing.paper(*config.img_size), labels)


@pytest.fixture(scope="session")
def tiny_source() -> Source:
    """A network of two blocks for images of 32 x 32 pixels, with every output and ten labels. Do not change it."""
    return make_source()


@pytest.fixture(scope="session")
def tiny_model(tiny_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that `tiny_source` is exported to, verified, all in one file. Copy it before you change it."""
    out = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    export(lambda: tiny_source, ExportSpec(out))
    out.chmod(0o444)
    return out


@pytest.fixture(scope="session")
def tiny_external(tiny_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network, its weights in a file beside it. Copy both files before you change one."""
    out = tmp_path_factory.mktemp("external") / "tiny.onnx"
    export(lambda: tiny_source, ExportSpec(out, external_data=True))
    return out


@pytest.fixture(scope="session")
def tiny_unverified(tiny_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network without a golden record."""
    out = tmp_path_factory.mktemp("unverified") / "tiny.onnx"
    export(lambda: tiny_source, ExportSpec(out, verify=False))
    return out


@pytest.fixture(scope="session")
def tiny_embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network without a head: its file has an embedding and no logits."""
    config = ViTConfig(img_size=(32, 32), patch_size=8, embed_dim=32, depth=1, num_heads=2, mlp_dim=64, num_classes=0)
    out = tmp_path_factory.mktemp("embedder") / "embedder.onnx"
    export(lambda: make_source(config, ("embedding",), None), ExportSpec(out))
    return out


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network whose head projects into a space that images and texts share: 24 numbers an image, and no classes."""
    config = ViTConfig(
        img_size=(32, 32), patch_size=8, embed_dim=32, depth=1, num_heads=2, mlp_dim=64, num_classes=24, pre_norm=True, projection=True
    )
    out = tmp_path_factory.mktemp("clip") / "clip.onnx"
    export(lambda: make_source(config, ("logits", "embedding"), None), ExportSpec(out))
    return out


@pytest.fixture(scope="session")
def tiny_projected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with so many tokens (65 x 64 = 4,160 numbers an image) that its golden record holds their projection."""
    config = ViTConfig(img_size=(32, 32), patch_size=4, embed_dim=64, depth=1, num_heads=2, mlp_dim=64, num_classes=10)
    out = tmp_path_factory.mktemp("projected") / "projected.onnx"
    export(lambda: make_source(config, ("logits", "tokens"), None), ExportSpec(out))
    return out


@pytest.fixture(scope="session")
def tiny_int8(tiny_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network of `tiny_source` in int8 for onnxruntime on a CPU, verified. Copy it before you change it."""
    out = tmp_path_factory.mktemp("int8") / "int8.onnx"
    export(lambda: tiny_source, ExportSpec(out, target="cpu", precision="int8"))
    out.chmod(0o444)
    return out


@pytest.fixture(scope="session")
def tiny_openvino(tiny_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that `tiny_source` is exported to in int8 for OpenVINO, verified. Copy it before you change it."""
    out = tmp_path_factory.mktemp("openvino") / "openvino.onnx"
    export(lambda: tiny_source, ExportSpec(out, target="openvino", precision="int8"))
    out.chmod(0o444)
    return out


@pytest.fixture(scope="session")
def tiny_openvino_fp32(tiny_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in float32."""
    out = tmp_path_factory.mktemp("openvino_fp32") / "openvino_fp32.onnx"
    export(lambda: tiny_source, ExportSpec(out, target="openvino"))
    out.chmod(0o444)
    return out


@pytest.fixture(scope="session")
def tiny_manifest(tiny_model: Path) -> Manifest:
    """The manifest of `tiny_model`."""
    return read_manifest(tiny_model)[0]


@pytest.fixture(autouse=True)
def _garbage_collection():
    """vit-export switches it off for its own short life; this process lives longer."""
    yield
    gc.unfreeze()
    gc.enable()
