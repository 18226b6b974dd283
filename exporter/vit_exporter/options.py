"""What vit-export and vit-inspect both ask about a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vit_runtime.cli.common import Command
from vit_runtime.errors import InputError

if TYPE_CHECKING:
    from vit_models import Options

F = TypeVar("F", bound=Callable[..., Any])

POOLS = ("cls", "mean", "mean_all", "cls_mean", "map")

_CHECKPOINT = (
    click.option("--format", "format_name", metavar="NAME", help="Read the checkpoint as this format [default: told by its content]."),
    click.option(
        "--model-arg", "model_args", multiple=True, metavar="NAME=VALUE",
        help="What the checkpoint does not tell, by its own library's argument name, such as num_heads=6; may be repeated.",
    ),
    click.option("--weights", type=click.Choice(["ema", "model"]), help="Which of a training checkpoint's weights [default: the model's]."),
    click.option("--img-size", metavar="H[,W]", help="Image size in pixels, height first [default: the checkpoint's, or architecture's]."),
    click.option("--pool", type=click.Choice(POOLS), help="What represents the image [default: the checkpoint's, or architecture's]."),
    click.option("--drop-head", is_flag=True, help="Leave the head out."),
)  # fmt: skip


class CheckpointCommand(Command):
    """Knows the errors of the network's package too."""

    def foreign(self) -> tuple[tuple[type[Exception], int], ...]:
        """A configuration or an option that cannot be is wrong usage; a checkpoint that cannot be read is a bad file."""
        from vit_models.errors import CheckpointError, ConfigError, OptionError

        return ((ConfigError, 2), (OptionError, 2), (CheckpointError, 3))


def checkpoint_options(function: F) -> F:
    """Add the options that say of a checkpoint what it does not say itself."""
    for option in reversed(_CHECKPOINT):
        function = option(function)
    return function


def parse_size(text: str | None) -> tuple[int, int] | None:
    """--img-size: "224" or "224,384", height first. Raises: InputError."""
    if text is None:
        return None
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) not in (1, 2):
        raise InputError(f"got --img-size {text!r}, expected one whole number or height,width, such as 224 or 224,384")
    return sizes[0], sizes[-1]


def parse_options(
    arch: str | None,
    format_name: str | None,
    model_args: Sequence[str],
    weights: str | None,
    img_size: str | None,
    pool: Any,
    drop_head: bool,
) -> Options:
    """The command line's options as `vit_models.Options`. Raises: InputError."""
    from vit_models import Options

    named = dict[str, str]()
    for text in model_args:
        name, separator, value = text.partition("=")
        if not (separator and name and value):
            raise InputError(f"got --model-arg {text!r}, expected NAME=VALUE, such as num_heads=6")
        named[name] = value
    return Options(arch, parse_size(img_size), weights, named, format_name, pool, drop_head)
