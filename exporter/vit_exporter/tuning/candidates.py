"""What `--tune` tries: the targets, precisions and token splits that this machine has the engines for."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from vit_exporter.targets import TARGETS, check_precision, find_target
from vit_models import ViTConfig
from vit_runtime.errors import InputError
from vit_runtime.obstacle import Obstacle
from vit_runtime.openvino_engine import find_openvino, has_bf16

# The number of rows that a product of matrices is fast with is a multiple of the tiles that the engine cuts it into.
TILES = (64, 32, 16)
FEWEST = 16  # tokens below which there is nothing to cut


@dataclass(frozen=True)
class Candidate:
    """One way to build the file."""

    target: str
    precision: str
    token_split: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Short, also a file's name: cpu-int8, openvino-bf16-192+5."""
        return "-".join([self.target, self.precision, *(["+".join(map(str, self.token_split))] if self.token_split else [])])

    @property
    def options(self) -> list[str]:
        """The options of vit-export that make it."""
        split = ["--token-split", ",".join(map(str, self.token_split))] if self.token_split else []
        return ["--target", self.target, "--precision", self.precision, *split]


BASELINE = Candidate("portable", "fp32")


def candidates(config: ViTConfig, dynamic_size: bool, target: str | None = None, precision: str | None = None) -> list[Candidate]:
    """The baseline, and everything that may be faster here; `target` and `precision` narrow it down.

    Storing weights in 16 bits alone is not among them: engines widen them when they load the file and run as with float32.
    Raises: InputError for unknown names, and where nothing is left.
    """
    targets = [find_target(target)] if target is not None else [TARGETS["cpu"], TARGETS["openvino"]]
    if target is not None and precision is not None:
        check_precision(targets[0], precision)
    found = list[Candidate]()
    for each in targets:
        if each.on_gpu or (each.provider == "openvino" and isinstance(find_openvino(), Obstacle)):
            continue
        for one in each.precisions if precision is None else [precision]:
            if one in each.precisions and _is_tried(one, each.name, dynamic_size, asked=precision is not None):
                splits = _splits(config.num_tokens) if each.name == "openvino" and not dynamic_size else []
                found += [Candidate(each.name, one, split) for split in ((), *splits)]
    if not found:
        raise InputError(
            f"got --tune with target {target} and precision {precision}, of which this machine can try nothing; see vit-doctor"
        )
    return [BASELINE, *(candidate for candidate in found if candidate != BASELINE)]


def _is_tried(precision: str, target: str, dynamic_size: bool, asked: bool) -> bool:
    if precision == "bf16":
        return has_bf16()
    if precision == "int8-static":
        return not dynamic_size and importlib.util.find_spec("nncf") is not None
    return asked or precision != "fp16"


def _splits(tokens: int) -> Sequence[tuple[int, int]]:
    """The largest whole number of tiles, and what is left over."""
    whole = dict.fromkeys(tokens - tokens % tile for tile in TILES)
    return [(rows, tokens - rows) for rows in whole if FEWEST <= rows < tokens]
