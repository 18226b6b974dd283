"""The golden images: inputs that any machine makes again, bit for bit, from a seed.

`golden_images` are gradients, shapes and grain; `extreme_images` are what no camera makes. All arithmetic is on integers, and all
randomness is the output of SHAKE-256 (FIPS 202), so neither numpy's version nor the machine matters. The recipe, for whoever writes it in
another language, is in docs/manifest.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

GENERATOR = "shapes-1"
EXTREMES = "extremes-1"
ALL_EXTREMES = 6

Pixels = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def golden_images(seed: int, count: int, height: int, width: int, channels: int = 3) -> Pixels:
    """`count` images, uint8 (count, height, width, channels): gradients, shapes and texture in colour; with one channel, their red.

    An image depends on the seed, its index and its size alone, so the first images of a longer series are the same.
    """
    return np.stack([_image(seed, index, height, width)[..., :channels] for index in range(count)])


def extreme_images(count: int, height: int, width: int, patch: int, channels: int = 3) -> Pixels:
    """The first `count` of six grey images that no camera makes, uint8 (count, height, width, channels).

    One bright pixel in black, checkers of a patch's size, white, black, the checkers' negative, hardly any contrast.
    """
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    checkers, pixel, black = (y // patch + x // patch) % 2 * 255, np.zeros_like(y), np.zeros_like(y)
    pixel[height // 2, width // 2] = 255
    grey = np.stack([pixel, checkers, black + 255, black, 255 - checkers, 127 + (x + y) % 2])[:count]
    return np.repeat(grey.astype(np.uint8)[..., None], channels, axis=3)


def projection_signs(seed: int, name: str, size: int) -> npt.NDArray[np.int8]:
    """`size` signs, +1 or -1, int8, from the bits of SHAKE-256, lowest bit of each byte first."""
    octets = np.frombuffer(_stream(f"{seed}/projection/{name}", -(-size // 8)), np.uint8)
    return np.unpackbits(octets, bitorder="little")[:size].astype(np.int8) * 2 - 1


def project(values: npt.NDArray[np.floating[Any]], seed: int, name: str, size: int) -> npt.NDArray[np.float64]:
    """Each image's numbers, (B, ...), as `size` signed sums, float64 (B, size): number i counts into sum i mod size.

    Linear, and a change anywhere changes a sum by as much.
    """
    flat = values.reshape(len(values), -1).astype(np.float64) * projection_signs(seed, name, values[0].size)
    padded = np.zeros((len(flat), -(-flat.shape[1] // size) * size))
    padded[:, : flat.shape[1]] = flat
    with np.errstate(invalid="ignore"):  # Inf minus Inf is NaN, and it is for the caller to see
        return padded.reshape(len(flat), -1, size).sum(axis=1)


def _stream(what: str, length: int) -> bytes:
    return hashlib.shake_256(f"vit-deploy/{GENERATOR}/{what}".encode()).digest(length)


def _image(seed: int, index: int, height: int, width: int) -> Pixels:
    draw = np.frombuffer(_stream(f"{seed}/{index}", 512), np.uint8).astype(np.int64)
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    image = _gradient(draw[0:12].reshape(4, 3), y * 256 // height, x * 256 // width)
    for shape in draw[16 : 16 + 8 * (6 + index % 7)].reshape(-1, 8):
        dy, dx = y - shape[2] * height // 256, x - shape[3] * width // 256  # from the shape's centre, in pixels
        radius = 1 + shape[4] * min(height, width) // 640
        inside = _SHAPES[int(shape[0]) % len(_SHAPES)](shape, dy, dx, radius)
        opacity = 128 + shape[1] // 2  # of 256
        image = np.where(inside[..., None], (image * (256 - opacity) + shape[5:8] * opacity) // 256, image)
    grain = np.frombuffer(_stream(f"{seed}/{index}/grain", height * width), np.uint8).astype(np.int64).reshape(height, width)
    strength = 8 + draw[12] % 25  # grey levels from the darkest to the brightest grain
    image += ((grain - 128) * strength // 256)[..., None]
    return image.clip(0, 255).astype(np.uint8)


def _gradient(corners: Ints, down: Ints, across: Ints) -> Ints:
    """Four colours, one a corner, blended over the image; down and across run from 0 to 255."""
    down, across = down[..., None], across[..., None]
    top = corners[0] * (256 - across) + corners[1] * across
    bottom = corners[2] * (256 - across) + corners[3] * across
    return (top * (256 - down) + bottom * down) // 65536


def _disc(shape: Ints, dy: Ints, dx: Ints, radius: int) -> Mask:
    return dy * dy + dx * dx <= radius * radius


def _ring(shape: Ints, dy: Ints, dx: Ints, radius: int) -> Mask:
    square = dy * dy + dx * dx
    return (square <= radius * radius) & (square * 4 >= radius * radius)


def _box(shape: Ints, dy: Ints, dx: Ints, radius: int) -> Mask:
    return (abs(dy) <= radius) & (abs(dx) <= 1 + radius * (1 + shape[1] % 4) // 2)


def _triangle(shape: Ints, dy: Ints, dx: Ints, radius: int) -> Mask:
    return (dy <= radius) & (abs(dx) * 2 <= dy + radius)


def _stripes(shape: Ints, dy: Ints, dx: Ints, radius: int) -> Mask:
    slanted = dy * (shape[1] % 5 - 2) + dx * (1 + shape[0] % 3)
    return _box(shape, dy, dx, radius) & (slanted // (2 + radius // 6) % 2 == 0)


_SHAPES: tuple[Callable[[Ints, Ints, Ints, int], Mask], ...] = (_disc, _box, _stripes, _triangle, _ring)
