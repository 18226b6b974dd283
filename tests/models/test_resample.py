"""Position tables on another grid: each family's method, compared with the code that the family itself calls."""

from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vit_models.config import Resample
from vit_models.resample import resample_table

pytestmark = pytest.mark.unit

GRIDS = [((4, 4), (5, 6)), ((37, 37), (16, 16)), ((14, 14), (24, 9)), ((3, 5), (1, 20)), ((2, 2), (7, 7))]


def by_torch(table: Tensor, size: tuple[int, int], method: Resample) -> Tensor:
    """What the sources compute: torch's own interpolation, with the arguments that each of them gives it."""
    grid = table.permute(2, 0, 1).unsqueeze(0)
    if method == "bicubic_offset":
        scale = tuple((new + 0.1) / old for new, old in zip(size, table.shape, strict=False))
        out = F.interpolate(grid, scale_factor=scale, mode="bicubic")
    else:
        mode = "bicubic" if method.startswith("bicubic") else "bilinear"
        out = F.interpolate(grid, size=size, mode=mode, antialias="antialias" in method, align_corners="align_corners" in method or None)
    assert out.shape[2:] == size
    return out[0].permute(1, 2, 0)


@pytest.mark.parametrize(("old", "new"), GRIDS)
@pytest.mark.parametrize("method", get_args(Resample))
def test_equals_what_the_source_computes(method: Resample, old: tuple[int, int], new: tuple[int, int]) -> None:
    table = torch.randn(*old, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(resample_table(table, new, method), by_torch(table, new, method), rtol=0, atol=1e-13)


@pytest.mark.parametrize("method", get_args(Resample))
def test_leaves_a_table_of_that_size_alone(method: Resample) -> None:
    table = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resample_table(table, (5, 3), method), table)


def test_methods_differ() -> None:
    table = torch.randn(4, 4, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = [resample_table(table, (6, 6), method) for method in get_args(Resample)]
    for index, one in enumerate(found):
        assert all((one - other).abs().max() > 1e-3 for other in found[index + 1 :])
