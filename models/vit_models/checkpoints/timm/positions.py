"""timm's tables of positions on another grid of patches, and relative ones as the dense bias that they stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from vit_models.config import Resample

Grid = tuple[int, int]


def resampled(missing: int, old: Grid, new: Grid, method: Resample, table: Tensor) -> Tensor:
    """A position table (1, rows, D) on a new grid, prefix rows as they are, and `missing` rows of zeros before them."""
    import torch

    from vit_models.resample import resample_table

    prefix = table.shape[1] - old[0] * old[1]
    grid = resample_table(table[0, prefix:].double().reshape(*old, -1), new, method).float()
    return torch.cat([table.new_zeros(missing, table.shape[2]), table[0, :prefix], grid.flatten(0, 1)]).unsqueeze(0)


def bias(old: Grid, new: Grid, *tables: Tensor) -> Tensor:
    """The sum of relative tables, each (offsets + 3, H), as a bias (1, H, T, T) on a new grid.

    A table has a row for every offset (down, across) between two patches, (2h - 1) (2w - 1), and one each for class token to patch,
    patch to class token and class token to itself (BEiT).
    """
    import torch

    (height, width), area = new, new[0] * new[1]
    summed = torch.stack([_on_grid(table, old, new) for table in tables]).sum(dim=0)
    offsets = summed[:-3].t().reshape(-1, 2 * height - 1, 2 * width - 1)
    down = torch.arange(height).unsqueeze(1) - torch.arange(height) + height - 1
    across = torch.arange(width).unsqueeze(1) - torch.arange(width) + width - 1
    dense = summed.new_empty(summed.shape[1], area + 1, area + 1)
    dense[:, 1:, 1:] = offsets[:, down[:, None, :, None], across[None, :, None, :]].reshape(-1, area, area)
    dense[:, 0, :] = summed[-3].unsqueeze(1)
    dense[:, :, 0] = summed[-2].unsqueeze(1)
    dense[:, 0, 0] = summed[-1]
    return dense.unsqueeze(0)


def _on_grid(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """A relative table for a new grid: read off linearly where the new offsets fall between the old ones.

    The old offsets are first spread to the new reach, each step by the same factor wider than the one before (as in BEiT's fine-tuning
    code), so that near neighbours keep their fine steps. Beyond the last one its value is kept.
    """
    import torch

    if old == new:
        return table
    offsets = table[:-3].reshape(2 * old[0] - 1, 2 * old[1] - 1, -1)
    for axis in (0, 1):
        places = torch.tensor(_spread(old[axis] - 1, new[axis] - 1))
        offsets = _read(offsets.transpose(0, axis), places, new[axis] - 1).transpose(0, axis)
    return torch.cat([offsets.flatten(0, 1), table[-3:]])


def _spread(old: int, new: int) -> list[float]:
    """The places of the offsets -old to old: steps q^0, q^1, …, where their sum is about `new`; q between 1.01 and 1.5, by bisection."""
    left, right = 1.01, 1.5
    q = left
    while right - left > 1e-6:
        q = (left + right) / 2
        if (1 - q**old) / (1 - q) > new:
            right = q
        else:
            left = q
    places = [0.0]
    for power in range(old):
        places.append(places[-1] + q**power)
    return [-place for place in reversed(places[1:])] + places


def _read(values: Tensor, places: Tensor, reach: int) -> Tensor:
    """The first axis of values, which stand at `places`, read at -reach to reach."""
    import torch

    if len(places) == 1:
        return values.expand(2 * reach + 1, -1, -1)
    wanted = torch.arange(-reach, reach + 1).to(values.dtype)
    right = torch.searchsorted(places, wanted).clamp(1, len(places) - 1)
    left = right - 1
    share = ((wanted - places[left]) / (places[right] - places[left])).clamp(0, 1)[:, None, None]
    return values[left] * (1 - share) + values[right] * share
