"""What the network computes: float64 PyTorch, the reference, and how far float32 PyTorch is from it, the floor."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from vit_models import ViT, ViTConfig
from vit_runtime.golden import ALL_EXTREMES, EXTREMES, GENERATOR, extreme_images, golden_images, project
from vit_runtime.manifest import Error, Golden
from vit_runtime.parity.judging import ENOUGH, measure, scale_of
from vit_runtime.preprocess import Preprocessing, normalize

GOLDEN_SEED = 0
# How many golden images a network of so many multiply-accumulates an image gets: float64 runs at about 35 GMAC/s on two cores,
# and a record that takes minutes to make would be left out.
GOLDEN_IMAGES = ((0.5e9, 48), (10e9, 4), (50e9, 3), (float("inf"), 2))
EXTREMES_UP_TO = 10e9  # multiply-accumulates: as much again would make an export of larger networks half as long again
STORED = 4096  # numbers an image up to which an output is stored as it is; larger ones are projected
PROJECTED = 256
CHUNK = 4
UNIT_ROUNDOFF = 2.0**-24  # of float32: no floor is taken to be below it, however lucky PyTorch was


class _Widen(TorchFunctionMode):
    """Compute in float64: every float32 tensor is widened when an operation reads it, so no second set of weights is held."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(Tensor, lambda t: t.double() if t.dtype == torch.float32 else t, (args, kwargs or {}))
        return func(*args, **kwargs)


def float64_outputs(model: ViT, pixel_values: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float64]]:
    """The network's outputs computed in float64 from its float32 weights; pixel_values float32 (B, C, H, W)."""
    with torch.no_grad(), _Widen():
        values = model(torch.from_numpy(pixel_values))
    return {name: value.numpy() for name, value in zip(model.outputs, values, strict=True)}


def float32_outputs(model: ViT, pixel_values: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
    """The network's outputs as PyTorch gives them; pixel_values float32 (B, C, H, W)."""
    with torch.no_grad():
        values = model(torch.from_numpy(pixel_values))
    return {name: value.numpy() for name, value in zip(model.outputs, values, strict=True)}


def golden_count(config: ViTConfig) -> int:
    """How many golden images a network gets: the larger it is, the fewer."""
    return next(count for macs, count in GOLDEN_IMAGES if config.macs <= macs)


def golden_records(model: ViT, preprocessing: Preprocessing) -> tuple[Golden, Golden | None]:
    """The expected outputs for the golden images of the model's own size, and for extreme ones, which large networks have none of."""
    config, count = model.config, golden_count(model.config)
    exact, single = _computed(model, preprocessing, recorded_images(config))

    def part(rows: slice, generator: str) -> Golden:
        a, b = ({name: values[rows] for name, values in each.items()} for each in (exact, single))
        return _record(model, a, b, config.img_size, generator)

    return part(slice(0, count), GENERATOR), part(slice(count, None), EXTREMES) if extreme_count(config) else None


def recorded_images(config: ViTConfig) -> npt.NDArray[np.uint8]:
    """The images of the network's own size that a file is held against, uint8 (B, H, W, C): the golden ones, then the extreme ones."""
    golden = golden_images(GOLDEN_SEED, golden_count(config), *config.img_size, config.in_chans)
    return np.concatenate([golden, extreme_images(extreme_count(config), *config.img_size, config.patch_size, config.in_chans)])


def golden_record(model: ViT, preprocessing: Preprocessing, image_size: tuple[int, int] | None = None) -> Golden:
    """The expected outputs for the golden images, by default of the model's own size, and the floor."""
    size = image_size or model.config.img_size
    images = golden_images(GOLDEN_SEED, golden_count(model.config), *size, model.config.in_chans)
    return _record(model, *_computed(model, preprocessing, images), size, GENERATOR)


def extreme_count(config: ViTConfig) -> int:
    """How many images a network gets that no camera makes, and that excite what textures do not."""
    return ALL_EXTREMES if config.macs <= EXTREMES_UP_TO else 0


def _computed(
    model: ViT, preprocessing: Preprocessing, images: npt.NDArray[np.uint8]
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]:
    """The outputs, and the embedding, in float64 and in float32, of images uint8 (B, H, W, C)."""
    inputs = normalize(images, preprocessing)
    measured = copy.copy(model)  # the same modules, whatever they are
    measured.outputs = (*model.outputs, *{"embedding"}.difference(model.outputs))
    return in_chunks(float64_outputs, measured, inputs), in_chunks(float32_outputs, measured, inputs)


def _record(
    model: ViT, exact: dict[str, npt.NDArray[Any]], single: dict[str, npt.NDArray[Any]], size: tuple[int, int], generator: str
) -> Golden:
    """What is expected, and the floor.

    Expected outputs are rounded to float32: that adds a thirtieth of the floor, and makes the record the same on machines
    that sum in another order.
    """
    projected = {name: PROJECTED for name in exact if exact[name][0].size > STORED}
    for name in projected:
        exact[name], single[name] = (project(values[name], GOLDEN_SEED, name, PROJECTED) for values in (exact, single))
    floor = floors(exact, single)
    kept = model.outputs
    return Golden(
        GOLDEN_SEED,
        len(exact[kept[0]]),
        {name: exact[name].astype(np.float32) for name in kept},
        {name: projected[name] for name in kept if name in projected},
        {name: floor[name] for name in kept},
        size,
        generator,
    )


def floors(exact: Mapping[str, npt.NDArray[Any]], single: Mapping[str, npt.NDArray[Any]]) -> dict[str, Error]:
    """PyTorch's own float32 error of each output: `single` against `exact`.

    So few logits that they may be right by luck are no more exact than the embedding that they are made of, if that is there.
    """
    found = dict[str, Error]()
    for name, truth in exact.items():
        error = measure(truth, single[name].astype(np.float64), scale_of(truth))
        found[name] = Error(_rounded(max(error.rms, UNIT_ROUNDOFF)), _rounded(max(error.max, UNIT_ROUNDOFF)))
    if "embedding" in found and "logits" in exact and exact["logits"].size < ENOUGH:
        own, read = found["logits"], found["embedding"]
        found["logits"] = Error(max(own.rms, read.rms), max(own.max, read.max))
    return found


def other_sizes(config: ViTConfig) -> list[tuple[int, int]]:
    """Sizes at which a network that takes any is checked too: flatter, larger and not square, and half as large again."""
    (rows, columns), patch = config.grid_size, config.patch_size
    grids = [(-(-rows // 2), columns), (rows + 1, columns + 3), (-(-rows * 3 // 2), -(-columns * 3 // 2))]
    return [(down * patch, across * patch) for down, across in grids]


def in_chunks(
    outputs: Callable[..., dict[str, npt.NDArray[Any]]], model: ViT, inputs: npt.NDArray[np.float32]
) -> dict[str, npt.NDArray[Any]]:
    """The outputs of a few images at a time, which is as fast and keeps the states of the rest out of memory."""
    parts = [outputs(model, inputs[start : start + CHUNK]) for start in range(0, len(inputs), CHUNK)]
    return {name: np.concatenate([part[name] for part in parts]) for name in model.outputs}


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
