"""What has to be done to stored tensors so that they fit the network: one named function a difference.

Importing this needs no torch; a function takes stored tensors, widened to float32, and returns the parameter.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def as_is(tensor: Tensor) -> Tensor:
    """The stored tensor is the parameter."""
    return tensor


def zeros(*shape: int) -> Tensor:
    """A bias that the source leaves out: zeros."""
    import torch

    return torch.zeros(shape)


def pack(*tensors: Tensor) -> Tensor:
    """Separate q, k and v (or k and v, or gate and value) put one after the other along the output axis."""
    import torch

    return torch.cat(tensors)


def pack_bias_without_key(query: Tensor, value: Tensor) -> Tensor:
    """A q and a v bias packed with zeros for the key's, which the source leaves out."""
    import torch

    return torch.cat([query, torch.zeros_like(query), value])


def as_token(tensor: Tensor) -> Tensor:
    """A token or a table of any rank as (1, tokens, width)."""
    return tensor.reshape(1, -1, tensor.shape[-1])


def transpose(tensor: Tensor) -> Tensor:
    """An input-first matrix (in, out) turned to (out, in)."""
    return tensor.t().contiguous()


def with_zero_rows(table: Tensor, at: int, count: int) -> Tensor:
    """A position table (1, rows, width) with `count` rows of zeros put in at `at`: prefix tokens that have no position."""
    import torch

    return torch.cat([table[:, :at], table.new_zeros(1, count, table.shape[2]), table[:, at:]], dim=1)


def masked(tensor: Tensor, mask: Tensor) -> Tensor:
    """What a stored mask of zeros and ones leaves of a parameter."""
    return tensor * mask


def inv_freq_of_periods(periods: Tensor) -> Tensor:
    """Rotary periods, in units of coordinate, as radians for a unit."""
    return 2 * math.pi / periods


def pack_present(present: tuple[bool, ...], width: int, *biases: Tensor) -> Tensor:
    """The biases that are there, each (width,), packed with zeros for those that the source leaves out."""
    import torch

    given = iter(biases)
    return torch.cat([next(given) if there else torch.zeros(width) for there in present])


def rows(start: int, stop: int | None, tensor: Tensor) -> Tensor:
    """Some of a packed tensor's rows."""
    return tensor[start:stop]


def average_heads(first: Tensor, second: Tensor) -> Tensor:
    """Two heads, each with its own token, as one that reads both tokens side by side and gives the mean of both answers."""
    import torch

    return torch.cat([first, second], dim=1) / 2


def mean_of(first: Tensor, second: Tensor) -> Tensor:
    """The mean of two tensors: the bias that goes with `average_heads`."""
    return (first + second) / 2


def inv_freq_of_temperature(temperature: float, scale: float, count: int) -> Tensor:
    """Rotary frequencies scale * temperature^(-i / count), (count,), which the source computes and does not store."""
    import torch

    return scale * temperature ** (-torch.arange(count) / count)


def reordered(order: tuple[int, ...], tensor: Tensor) -> Tensor:
    """A head's channels in another order."""
    return tensor[list(order)]


def reordered_heads(order: tuple[int, ...], packing: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """q, k and v as `packing` makes one of them, and each head's channels of q and k in another order: attention does not see it."""
    import torch

    q, k, v = packing(*tensors).chunk(3)
    q, k = (part.reshape(-1, len(order), *part.shape[1:])[:, list(order)].reshape(part.shape) for part in (q, k))
    return torch.cat([q, k, v])
