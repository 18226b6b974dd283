"""The reference checkpoints: what each is, how to load it, and how far our outputs are from the reference implementation's.

A case is a folder with a checkpoint, `case.json` (what it is) and `case.npz` (inputs, and outputs computed in float64 by the reference
implementation). The repository contains some cases; the environment variable VIT_DEPLOY_FIXTURES names the folder of the whole set.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vit_models import Options, Spec, ViT, ViTConfig, load

TOLERANCE = 5e-5  # absolute: a GELU of the wrong kind changes outputs by 2e-4, a wrong epsilon by 1e-3
IN_REPOSITORY = Path(__file__).resolve().parents[1] / "tests" / "data" / "checkpoints"
VARIABLE = "VIT_DEPLOY_FIXTURES"
OUTPUTS = {"logits": "logits", "pooled": "embedding", "tokens": "tokens", "attention_last": "attention"}
# What a bare state dict does not contain, by the name that its own library uses: `case.json` has the values.
NEEDED_ARGUMENTS = {"torchvision": ("num_heads",), "dino": ("num_heads",), "dinov2": ("num_heads",), "mae": ("num_heads",)}
FORMATS = {"dino": "dino"}  # timm has the same names, and resamples positions in another way

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Case:
    """One reference checkpoint, the options that load it, and which of the stored outputs belong to it."""

    name: str
    path: Path
    folder: Path
    options: Options
    suffix: str = ""  # of the stored outputs' names


@dataclass(frozen=True)
class Row:
    """One comparison: the largest absolute error of each output, and the largest error relative to the float32 noise floor.

    The noise floor is the distance between our network in float32 and in float64.
    """

    case: Case
    spec: Spec
    errors: dict[str, float]
    floors: float

    @property
    def worst(self) -> float:
        """The largest absolute error of all outputs."""
        return max(self.errors.values())


def cases(root: Path) -> Iterator[Case]:
    """Every checkpoint in the folders of `root`, in alphabetical order."""
    for folder in sorted(path.parent for path in root.glob("*/case.json")):
        facts = json.loads((folder / "case.json").read_text())
        size = _size(facts)
        library = folder.name.partition("__")[0]
        arguments = {name: str(facts["arguments"][name]) for name in NEEDED_ARGUMENTS.get(library, ())}
        if facts.get("variants") and len(facts["variants"]) > 1:
            for name, variant in facts["variants"].items():
                suffix = "_ema" if variant["weights"] == "ema" else ""
                yield Case(f"{folder.name}/{name}", folder / name, folder, Options(img_size=size), suffix)
                if "ema_key" in variant:
                    yield Case(f"{folder.name}/{name} (ema)", folder / name, folder, Options(img_size=size, weights="ema"), "_ema")
        else:
            weights = [path for path in folder.iterdir() if path.suffix != ".json" and path.name != "case.npz"]
            options = Options(img_size=size, model_args=arguments, format=FORMATS.get(library))
            yield Case(folder.name, weights[0] if len(weights) == 1 else folder, folder, options)


def available_cases() -> dict[str, Case]:
    """The cases of the folder that VIT_DEPLOY_FIXTURES names, or those in the repository if it is not set, by name."""
    folder = os.environ.get(VARIABLE)
    if folder is not None and not Path(folder).is_dir():
        raise NotADirectoryError(f"{VARIABLE} is {folder!r}, which is not a folder; set it to the folder of the cases, or unset it")
    return {case.name: case for case in cases(IN_REPOSITORY if folder is None else Path(folder))}


def reference(case: Case, config: ViTConfig) -> tuple[Array, dict[str, Array]]:
    """The images of a case, and the outputs that the reference implementation computed, by the names of our outputs."""
    with np.load(case.folder / "case.npz") as stored:
        expected = {ours: stored[theirs + case.suffix] for theirs, ours in OUTPUTS.items() if theirs + case.suffix in stored}
        images = stored["pixel_values"]
    if "attention" in expected:
        expected["attention"] = expected["attention"][:, :, 0, config.num_prefix :]
    if not config.class_token:
        expected.pop("attention", None)
    return images, {name: values.astype(np.float64) for name, values in expected.items()}


def measure(case: Case) -> Row:
    """Load the checkpoint and compare each output that is stored for it. Raises: CheckpointError."""
    model, spec = load(case.path, case.options)
    images, expected = reference(case, spec.config)
    single = ViT(spec.config, list(expected))
    single.load_state_dict(model.state_dict())
    pixels = torch.from_numpy(images)
    with torch.no_grad():
        ours = dict(zip(single.outputs, (value.numpy() for value in single.eval()(pixels)), strict=True))
        exact = dict(zip(single.outputs, (value.numpy() for value in single.double()(pixels.double())), strict=True))
    errors = {name: float(np.abs(ours[name] - values).max()) for name, values in expected.items()}
    floors = max(rms(ours[name] - values) / rms(ours[name] - exact[name]) for name, values in expected.items())
    return Row(case, spec, errors, floors)


def rms(values: Array) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values.astype(np.float64)))))


def _size(facts: dict[str, Any]) -> tuple[int, int] | None:
    size = facts.get("resample", {}).get("run_at") or facts["image_size_input"]
    return (int(size[0]), int(size[1])) if size else None
