"""Position tables on another grid of patches, each family's way.

One formula serves conversion and the graph of a network with free height and width: resampling is linear and separable, so a
table (h, w, D) becomes `A @ table @ B^T` with one matrix an axis, and only the matrix differs between the families:

| method | who | taps and coordinates |
| --- | --- | --- |
| bicubic | Hugging Face | cubic kernel a = -0.75, pixel centres, edges repeated, no antialias |
| bicubic_antialias | timm, DINOv2 with registers | cubic kernel a = -0.5, pixel centres, widened when it shrinks, renormalised at edges |
| bicubic_offset | DINO, DINOv2 | as bicubic, but coordinates scaled by (n + 0.1) / m instead of n / m |
| bicubic_align_corners | torchvision | as bicubic, but first and last entry kept in place |
| bilinear | timm for FlexiViT and RADIO | linear kernel, pixel centres, edges repeated, no antialias |
| bilinear_align_corners | the paper's JAX code; timm for two of RADIO | linear kernel, first and last entry kept in place |
"""

from __future__ import annotations

import torch
from torch import Tensor

from vit_models.config import Resample


def resample_table(table: Tensor, size: tuple[int, int], method: Resample) -> Tensor:
    """A position table (h, w, D) on a grid of `size`, (height, width, D), by the family's `method`."""
    old_height, old_width, _ = table.shape
    down = resample_matrix(old_height, size[0], method, table)
    across = resample_matrix(old_width, size[1], method, table)
    if method == "bicubic_offset":  # its owners leave the table alone at its own size, where the offset would still move it
        same = _index_end(size[0], table).eq(old_height - 1) & _index_end(size[1], table).eq(old_width - 1)
        down, across = (torch.where(same, _copy_matrix(matrix), matrix) for matrix in (down, across))
    rows = (down @ table.reshape(old_height, -1)).reshape(-1, old_width, table.shape[2])  # (height, w, D)
    return across @ rows


def resample_matrix(old: int, new: int, method: Resample, like: Tensor) -> Tensor:
    """How each of `new` entries along an axis is made of `old` ones, (new, old), with the dtype and device of `like`."""
    index = torch.arange(new, device=like.device).to(like.dtype)
    grid = torch.arange(old, device=like.device).to(like.dtype)
    if method == "bicubic_antialias":
        scale = old / (index[-1] + 1)
        distance = (grid + 0.5 - (index.unsqueeze(1) + 0.5) * scale).abs() / scale.clamp(min=1)
        weights = _cubic(distance, -0.5)
        return weights / weights.sum(dim=1, keepdim=True)
    if method.endswith("align_corners"):
        source = index * ((old - 1) / index[-1].clamp(min=1))
    else:
        source = (index + 0.5) * (old / (index[-1] + (1.1 if method == "bicubic_offset" else 1.0))) - 0.5
    left, matrix = source.floor(), torch.zeros_like(index.unsqueeze(1) * grid)
    cubic = method.startswith("bicubic")
    for tap in (-1, 0, 1, 2) if cubic else (0, 1):
        distance = (source - (left + tap)).abs()
        weight = _cubic(distance, -0.75) if cubic else 1 - distance
        place = (left + tap).clamp(0, old - 1)  # the edge's entry is repeated beyond it
        matrix = matrix + weight.unsqueeze(1) * (place.unsqueeze(1) == grid).to(like.dtype)
    return matrix


def _index_end(size: int, like: Tensor) -> Tensor:
    """size - 1 as a tensor: free sizes have no number while a network is traced."""
    return torch.arange(size, device=like.device)[-1]


def _copy_matrix(like: Tensor) -> Tensor:
    """Ones where row and column are the same entry."""
    rows, columns = (torch.arange(length, device=like.device) for length in like.shape)
    return (rows.unsqueeze(1) == columns).to(like.dtype)


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution kernel at distances >= 0."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(distance)))
