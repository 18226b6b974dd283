"""What cpu_speed.py races besides files on our runtime: PyTorch, OpenVINO as its own documentation uses it, and products of matrices alone.

Each function is given an entrant in its own process and returns what takes a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from vit_runtime.race import Entrant

Run = Callable[[npt.NDArray[np.float32]], object]


def torch_eager(entrant: Entrant) -> Run:
    """transformers' own network, float32, with its default attention (scaled_dot_product_attention)."""
    return _torch(entrant, compiled=False, bf16=False)


def torch_compile(entrant: Entrant) -> Run:
    """The same through torch.compile with its default backend."""
    return _torch(entrant, compiled=True, bf16=False)


def torch_bf16(entrant: Entrant) -> Run:
    """The same with weights and arithmetic in bfloat16."""
    return _torch(entrant, compiled=False, bf16=True)


def _torch(entrant: Entrant, compiled: bool, bf16: bool) -> Run:
    import torch
    from transformers import ViTForImageClassification

    torch.set_num_threads(entrant.threads)
    model: Any = ViTForImageClassification.from_pretrained(entrant.path).eval()
    model = model.to(torch.bfloat16) if bf16 else model
    model = torch.compile(model) if compiled else model

    def run(batch: npt.NDArray[np.float32]) -> object:
        with torch.inference_mode():
            pixel_values = torch.from_numpy(batch)
            return model(pixel_values.to(torch.bfloat16) if bf16 else pixel_values).logits.float().numpy()

    return run


def openvino_batch(entrant: Entrant) -> Run:
    """A file on OpenVINO with the batch as its static shape and one request at a time."""
    import openvino

    core = openvino.Core()
    model = core.read_model(entrant.path)
    _, *sizes = model.inputs[0].partial_shape
    model.reshape([entrant.batch_size, *sizes])
    config = {
        "INFERENCE_PRECISION_HINT": "bf16" if entrant.arithmetic.bf16 else "f32",
        "INFERENCE_NUM_THREADS": entrant.threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(model, "CPU", config).create_infer_request()
    return lambda batch: request.infer({0: batch})
