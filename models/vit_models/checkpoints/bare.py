"""What a state dict without a configuration says by its shapes, and how the user says the rest.

The number of heads is in no shape, and a position table does not say which way it is laid out. Published sizes are known here;
for others the user is asked, in the source library's own words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vit_models.checkpoints.plan import CheckpointFile, Options
from vit_models.errors import CheckpointError, OptionError

Known = Mapping[str, Callable[[str], Any]]  # a source's argument names, each with what reads its text


class Sizes(NamedTuple):
    """What the shapes of a Vision Transformer's weights tell."""

    patch_size: int
    embed_dim: int
    depth: int
    mlp_dim: int


# (embed_dim, depth, mlp_dim) of the published networks; a gated MLP's width is that of one half
HEADS: Mapping[tuple[int, int, int], int] = {
    (192, 12, 768): 3,
    (384, 12, 1536): 6,
    (768, 12, 3072): 12,
    (1024, 24, 4096): 16,
    (1280, 32, 5120): 16,
    (1408, 40, 6144): 16,
    (1536, 40, 4096): 24,
}


def whole_number(text: str) -> int:
    """A --model-arg's value as a whole number; ValueError if it is none."""
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ValueError("a whole number")
    return int(text)


def number(text: str) -> float:
    """A --model-arg's value as a finite number; ValueError if it is none."""
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        raise ValueError("a number")
    return float(text)


def flag(text: str) -> bool:
    """A --model-arg's value as true or false; ValueError if it is neither."""
    if text.lower() not in ("true", "false"):
        raise ValueError("True or False")
    return text.lower() == "true"


def arguments(title: str, options: Options, known: Known) -> dict[str, Any]:
    """The user's --model-arg values, read by `known`'s functions.

    Raises: OptionError for a name that the source does not have, or a value of another kind.
    """
    values = {}
    for name, text in options.model_args.items():
        if name not in known:
            some = f"one of {', '.join(known)}" if known else "none"
            raise OptionError(f"got --model-arg {name}, which {title} does not read; expected {some}")
        try:
            values[name] = known[name](text)
        except ValueError as error:
            raise OptionError(f"got --model-arg {name}={text}, expected {error}") from error
    return values


def check_told(given: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    """Raises: OptionError where the user says one thing and the file another."""
    for name, value in told.items():
        if name in given and given[name] != value:
            raise OptionError(f"got --model-arg {name}={given[name]}, but it is {value} by the file's own shapes; leave it out")


def known_arch(options: Options, sizes: Sizes, archs: Mapping[str, Sizes]) -> str | None:
    """The name of the published architecture that has these sizes, if one has; --arch has to agree.

    Raises: OptionError.
    """
    if options.arch is None:
        return next((name for name, known in archs.items() if known == sizes), None)
    if options.arch not in archs:
        raise OptionError(f"got --arch {options.arch}, expected one of {', '.join(archs)}")
    if archs[options.arch] != sizes:
        raise OptionError(f"got --arch {options.arch}, which has {_spell(archs[options.arch])}, but the file has {_spell(sizes)}")
    return options.arch


def num_heads(sizes: Sizes, given: Mapping[str, Any]) -> int:
    """The number of heads: what the user gave as num_heads, or that of the published network of these sizes.

    Raises: CheckpointError that asks for it.
    """
    heads = given.get("num_heads", HEADS.get(sizes[1:]))
    if heads is None:
        raise CheckpointError(
            f"the number of heads is not in the file, and no published network has {_spell(sizes)}; "
            "give it with --model-arg num_heads=6, or --arch NAME if it is a published one"
        )
    return heads


def trained_size(patches: int, patch_size: int, options: Options) -> tuple[int, int]:
    """The image size (height, width) of a position table: a square, or --img-size where that fits a table that is no square.

    Raises: CheckpointError that asks for it.
    """
    side = math.isqrt(max(patches, 0))
    if side and side * side == patches:
        return side * patch_size, side * patch_size
    if patches > 0 and options.img_size is not None:
        height, width = options.img_size
        if height % patch_size == width % patch_size == 0 and height * width == patches * patch_size**2:
            return height, width
    raise CheckpointError(
        f"the position table has {patches} patches, which make no square; "
        f"give the image size that it was trained at, in multiples of {patch_size}, with --img-size H,W"
    )


def covered(size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """What whole patches cover of an image: a convolution without padding does not see the pixels below and on the right of it."""
    return size[0] - size[0] % (patch_size or 1), size[1] - size[1] % (patch_size or 1)


def left_over(size: tuple[int, int], seen: tuple[int, int], patch_size: int) -> tuple[str, ...]:
    """What the user should hear where a source's images, of `size`, have more pixels than the patches cover; nothing where not."""
    if seen == size:
        return ()
    whole, part = (f"{height} x {width}" for height, width in (size, seen))
    return (f"patches of {patch_size} cover {part} of the {whole} pixels of the source's images, which are prepared whole and then cut",)


def shape(file: CheckpointFile, name: str, *axes: str) -> tuple[int, ...]:
    """The shape of a stored tensor that has these axes.

    Raises: CheckpointError if it is missing, has other axes or is empty.
    """
    if name not in file.tensors:
        raise CheckpointError(f"{name} is missing; the file is incomplete, or it is not of the format it is taken for")
    found = file.shape(name)
    if len(found) != len(axes) or 0 in found:
        raise CheckpointError(f"{name} is {found}, expected ({', '.join(axes)})")
    return found


def square_patch(name: str, height: int, width: int) -> int:
    """The patch size of a patch embedding. Raises: CheckpointError where a patch is no square."""
    if height != width:
        raise CheckpointError(f"{name} cuts patches of {height} x {width}, expected square ones; this network has no others")
    return height


def indexed(file: CheckpointFile, pattern: str) -> tuple[str, ...]:
    """The blocks that names of this pattern belong to, in order; group 1 is the block's name and group 2 its index.

    Raises: CheckpointError where an index is missing or used twice.
    """
    found = sorted((int(match[2]), match[1]) for match in (re.fullmatch(pattern, name) for name in file.tensors) if match)
    if [index for index, _ in found] != list(range(len(found))) or not found:
        some = ", ".join(name for _, name in found[:4])
        raise CheckpointError(f"its blocks ({some}, …) are not numbered 0, 1, 2, …; the file is incomplete, or two were put together")
    return tuple(name for _, name in found)


def _spell(sizes: Sizes) -> str:
    return f"patches of {sizes.patch_size}, width {sizes.embed_dim}, depth {sizes.depth} and MLP width {sizes.mlp_dim}"
