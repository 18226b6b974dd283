"""The files that cpu_speed.py races: a checkpoint of random weights, what people make of it, and what vit-export makes of it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from vit_runtime.golden import golden_images
from vit_runtime.preprocess import Preprocessing, normalize

BIN = Path(sys.executable).parent
SIZES = {"Ti": (192, 3), "S": (384, 6), "B": (768, 12)}  # width, heads: DeiT paper, table 1; ViT paper, table 1
CALIBRATION = 24  # images for NNCF, the same for the peer as for ours without --calibrate
ROWS, PAIRS = 1536, 2  # of the products that tell an engine's best rate: rows that fill whole tiles, and layers of 768 to 3072 to 768
WIDTH = 768


def checkpoint(arch: str, folder: Path) -> Path:
    """A ViT/16 for 224 px and 1,000 classes as transformers saves it, weights random but always the same."""
    path = folder / arch / "checkpoint"
    if not path.exists():
        import torch
        from transformers import ViTConfig, ViTForImageClassification

        width, heads = SIZES[arch]
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": 4 * width, "num_labels": 1000}
        ViTForImageClassification(ViTConfig(**sizes)).eval().save_pretrained(path)
    return path


def plain(arch: str, folder: Path, kind: str) -> Path:
    """The plain export by torch's exporter: `dynamo` or `torchscript`; `dynamic`: onnxruntime's quantize_dynamic of the first, which is
    what Optimum does; `nncf`: NNCF's post-training int8 of it for transformers."""
    path = folder / arch / f"plain-{kind}.onnx"
    if path.exists():
        return path
    part = path.with_name("part.onnx")
    if kind in ("dynamo", "torchscript"):
        _plain_export(checkpoint(arch, folder), part, dynamo=kind == "dynamo")
    elif kind == "dynamic":
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(plain(arch, folder, "dynamo"), part)
    else:
        _nncf(plain(arch, folder, "dynamo"), part)
    part.replace(path)
    return path


def ours(arch: str, folder: Path, target: str, precision: str, options: tuple[str, ...] = ()) -> Path:
    """What vit-export makes of the checkpoint, with the plain export's output alone; what it computes is not the question here."""
    name = "-".join([target, precision, *(option.strip("-").replace(",", "+") for option in options)])
    path = folder / arch / f"ours-{name}.onnx"
    if not path.exists():
        command = [BIN / "vit-export", "--checkpoint", checkpoint(arch, folder), "--target", target, "--precision", precision]
        subprocess.run([*map(str, command), *options, "--outputs", "logits", "--no-verify", "--out", str(path), "-q"], check=True)
    return path


def products(folder: Path, kind: str) -> Path:
    """Nothing but large products of matrices, `fp32`, `dynamic` (onnxruntime's kernels) or `static` (QDQ, for OpenVINO)."""
    path = folder / f"products-{kind}.onnx"
    if path.exists():
        return path
    import onnx

    nodes, weights, value, random = [], [], "pixel_values", np.random.default_rng(0)
    for layer in range(2 * PAIRS):
        shape = (WIDTH, 4 * WIDTH) if layer % 2 == 0 else (4 * WIDTH, WIDTH)
        numbers = (random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
        weights.append(onnx.numpy_helper.from_array(numbers, f"w{layer}"))
        nodes.append(onnx.helper.make_node("MatMul", [value, f"w{layer}"], [f"y{layer}"]))
        value = f"y{layer}"
    ends = [onnx.helper.make_tensor_value_info(name, 1, ["batch", 1, ROWS, WIDTH]) for name in ("pixel_values", value)]
    graph = onnx.helper.make_graph(nodes, "products", ends[:1], ends[1:], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    if kind == "dynamic":
        import onnx_ir as ir

        from vit_exporter.passes.quantize_dynamic import QuantizeDynamic

        quantized = ir.from_proto(onnx.shape_inference.infer_shapes(model))
        QuantizeDynamic(())(quantized)
        model = ir.to_proto(quantized)
    elif kind == "static":
        import nncf

        images = [{"pixel_values": random.standard_normal((1, 1, ROWS, WIDTH)).astype(np.float32)} for _ in range(2)]
        model = nncf.quantize(model, nncf.Dataset(images), model_type=nncf.ModelType.TRANSFORMER, subset_size=2)
    onnx.save(model, path)
    return path


def product_macs() -> int:
    """Multiplications of `products` for one image."""
    return 2 * PAIRS * ROWS * WIDTH * 4 * WIDTH


def layer_macs(arch: str) -> int:
    """Multiplications of a network's linear layers and patches for one image: what the limit counts. ViT-B/16: 16.9e9."""
    width, tokens, depth = SIZES[arch][0], 197, 12
    return depth * tokens * 12 * width**2 + 196 * 768 * width


def _plain_export(source: Path, path: Path, dynamo: bool) -> None:
    import torch
    from transformers import ViTForImageClassification

    class Logits(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.model(pixel_values).logits

    model, images = Logits(ViTForImageClassification.from_pretrained(source).eval()), torch.zeros(2, 3, 224, 224)
    names: dict[str, Any] = {"input_names": ["pixel_values"], "output_names": ["logits"], "external_data": False}
    free: dict[str, Any] = {"dynamic_axes": {"pixel_values": {0: "batch"}, "logits": {0: "batch"}}}
    if dynamo:
        free = {"dynamic_shapes": {"pixel_values": {0: torch.export.Dim("batch")}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript's exporter is deprecated: it is here because people use it
        torch.onnx.export(model, (images,), str(path), dynamo=dynamo, verbose=False, **names, **free)


def _nncf(source: Path, path: Path) -> None:
    import nncf
    import onnx

    pixels = normalize(golden_images(1, CALIBRATION, 224, 224), Preprocessing.paper(224, 224))
    data = nncf.Dataset([{"pixel_values": image[None]} for image in pixels])
    with tempfile.TemporaryDirectory():
        quantized = nncf.quantize(onnx.load(source), data, model_type=nncf.ModelType.TRANSFORMER, subset_size=CALIBRATION)
    onnx.save(quantized, path)
