"""What timm's names of vision transformers stand for: archs.json, which `scripts/timm_archs.py` writes from timm itself."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vit_models.checkpoints.documents import Document
from vit_models.config import Resample
from vit_models.errors import CheckpointError, OptionError

# Arguments of timm's constructors and factory that change nothing in a trained network.
WITHOUT_EFFECT = {
    *("weight_init", "fix_init", "head_init_scale", "dynamic_img_size", "dynamic_img_pad", "strict_img_size", "device", "dtype"),
    *("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "drop_block_rate"),
    *("rope_shift_coords", "rope_jitter_coords", "rope_rescale_coords", "pretrained", "scriptable", "exportable", "no_jit", "cache_dir"),
}
LAYER_NORMS = ("layernorm", "layernormfp32")


@dataclass(frozen=True)
class Arch:
    """A name's class, the constructor arguments that differ from the class's defaults, the `pretrained_cfg` of its weights, if any, and
    how many weights are published under the name.
    """

    name: str
    cls: str
    args: Mapping[str, Any]
    setting: Mapping[str, Any] | None = None
    weights: int = 0

    @property
    def resample(self) -> Resample:
        """How timm resamples this network's table of positions when it loads it."""
        if self.name in ("vit_base_patch16_radio_v3", "vit_huge_patch16_radio_v3"):
            return "bilinear_align_corners"
        return "bilinear" if "flexi" in self.name or "radio" in self.name else "bicubic_antialias"


def find(name: str) -> Arch:
    """The architecture of a name, with or without the tag of its weights ("vit_base_patch16_224.augreg_in1k") and the hub's owner.

    Raises: CheckpointError for a name that timm does not have, and for a class of network that cannot be read.
    """
    table, (base, tag) = _table(), _split(name)
    if base not in table["archs"]:
        near = ", ".join(difflib.get_close_matches(base, table["archs"], 3, 0))
        raise CheckpointError(
            f"got the architecture {name!r}, which is no vision transformer of timm {table['timm']}; the nearest are {near}"
        )
    cls, *rest = table["archs"][base]
    if not rest:
        raise CheckpointError(f"timm's {base} is a {cls}, expected a VisionTransformer, Eva or Beit; this network computes no other")
    args, weights = rest
    place = weights.get(tag, next(iter(weights.values()), None))
    setting = None if place is None else {**table["settings"][0], **table["settings"][place]}
    return Arch(base, cls, args, setting, len(weights))


def is_known(name: object) -> bool:
    """Whether timm has a vision transformer of that name."""
    return isinstance(name, str) and _split(name)[0] in _table()["archs"]


@cache
def readable() -> tuple[Arch, ...]:
    """Every architecture of the classes that can be read."""
    return tuple(find(name) for name, entry in _table()["archs"].items() if len(entry) > 1)


def arguments(cls: str, *layers: Mapping[str, Any]) -> Document:
    """A class's arguments: its defaults, and what the layers say, the last one last.

    Beside timm's own there is `norm_eps`, that of `norm_layer`.

    Raises: CheckpointError for an argument that the class does not have.
    """
    known = defaults(cls)
    values = dict(known)
    for layer in layers:
        for key, value in layer.items():
            if key in WITHOUT_EFFECT:
                continue
            if key not in known:
                raise CheckpointError(
                    f"got the model argument {key!r}, which timm's {cls} does not have; expected some of {', '.join(known)}"
                )
            if key == "norm_layer" and isinstance(value, str) and value.replace("_", "").lower() in LAYER_NORMS:
                values |= {"norm_layer": None, "norm_eps": known["norm_eps"]}
            else:
                values[key] = value
    return Document(f"timm's {cls}", values)


def defaults(cls: str) -> Mapping[str, Any]:
    """A class's arguments and their defaults."""
    return _table()["classes"][cls.removesuffix("Distilled")]


def check_known(names: Iterable[str]) -> None:
    """Raises: OptionError for an argument that no class has."""
    known = dict.fromkeys(key for cls in _table()["classes"] for key in defaults(cls))
    for name in names:
        if name not in known:
            near = ", ".join(difflib.get_close_matches(name, known, 5, 0))
            raise OptionError(f"got --model-arg {name}, which none of timm's classes has; the nearest of their arguments are {near}")


def parse(text: str) -> Any:
    """A --model-arg's value: a number, true or false, null, a list ("32,48"), or the text itself."""
    plain = {"True": True, "False": False, "None": None}
    if text in plain:
        return plain[text]
    listed = text.replace("(", "[").replace(")", "]")
    try:
        return json.loads(f"[{listed}]" if "," in listed and "[" not in listed else listed)
    except (ValueError, RecursionError):
        return text


def _split(name: str) -> tuple[str, str]:
    """The architecture and the tag of its weights, under the names of today."""
    name = name.rpartition("/")[2].rpartition(":")[2]
    base, _, tag = _table()["renamed"].get(name, name).partition(".")
    return base, tag


@cache
def _table() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("archs.json").read_text(encoding="utf-8"))
