"""What gpu_speed.py races: PyTorch on the GPU, and exported files on our runtime. Each function is given an entrant in its own process and
returns what takes a batch from the CPU's memory and gives the logits back there, so that all copy the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

import vit_runtime as vit
from vit_runtime.race import Entrant

Run = Callable[[npt.NDArray[np.float32]], object]


def torch_eager_fp32(entrant: Entrant) -> Run:
    """transformers' own network in float32; products in float32 too, as PyTorch has it."""
    return _torch(entrant, half=False, compiled=False)


def torch_compile_fp32(entrant: Entrant) -> Run:
    """The same through torch.compile, with CUDA graphs."""
    return _torch(entrant, half=False, compiled=True)


def torch_eager_fp16(entrant: Entrant) -> Run:
    """The same with weights and arithmetic in float16."""
    return _torch(entrant, half=True, compiled=False)


def torch_compile_fp16(entrant: Entrant) -> Run:
    """The same through torch.compile, with CUDA graphs."""
    return _torch(entrant, half=True, compiled=True)


def _torch(entrant: Entrant, half: bool, compiled: bool) -> Run:
    import torch
    from transformers import ViTForImageClassification

    model: Any = ViTForImageClassification.from_pretrained(entrant.path).eval().to("cuda", torch.float16 if half else torch.float32)
    model = torch.compile(model, mode="reduce-overhead") if compiled else model

    def run(batch: npt.NDArray[np.float32]) -> object:
        with torch.inference_mode():
            pixel_values = torch.from_numpy(batch).to("cuda", model.dtype)
            return model(pixel_values).logits.float().cpu().numpy()

    return run


def ours(entrant: Entrant) -> Run:
    """An exported file on the entrant's provider, as `load` has it."""
    return vit.load(entrant.path, entrant.provider, entrant.threads, max_batch=entrant.batch_size).run


def ours_with_graph(entrant: Entrant) -> Run:
    """The same with CUDA graphs."""
    return vit.load(entrant.path, entrant.provider, entrant.threads, max_batch=entrant.batch_size, cuda_graph=True).run
