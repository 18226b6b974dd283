"""Write models/vit_models/checkpoints/timm/archs.json: what timm's names of vision transformers stand for.

    pip install timm==1.0.31        # not a dependency of this project; it brings torchvision
    python scripts/timm_archs.py models/vit_models/checkpoints/timm/archs.json

No network is built and no weight is fetched: each of timm's entry functions is called with a recorder in the place of the function that
would build the network. The same timm writes the same file. It has

- "classes": the arguments of each class that can be read, with their defaults, less those that matter to training alone;
- "settings": how the images of published weights are prepared, and their number of classes; each combination once. The first is timm's
  default, and the others say only what differs from it;
- "archs": name -> [class, the arguments that differ from the class's defaults, its published weights by tag as places in "settings",
  the tag that the name alone stands for first]. Of classes that cannot be read, the name alone;
- "renamed": names of earlier versions of timm.

Arguments that are code stand as names: the class's, or timm's own text for an activation; a LayerNorm stands as its `norm_eps`.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import timm
from timm.layers import get_act_layer, get_norm_layer
from timm.models import _registry as registry
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

# The class that can be read, and the one whose signature has its arguments.
READ = {VisionTransformer: VisionTransformer, VisionTransformerDistilled: VisionTransformer, Eva: Eva, Beit: Beit}
MODULES = (
    "vision_transformer",
    "deit",
    "eva",
    "beit",
    "vision_transformer_hybrid",
    "vision_transformer_relpos",
    "vision_transformer_sam",
    "naflexvit",
)
# What the factory takes, and what matters to training or to how an image of another size is met.
LEFT_OUT = (
    "pretrained_filter_fn", "pretrained_strict", "feature_cfg", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir",
    "weight_init", "fix_init", "head_init_scale", "dynamic_img_size", "dynamic_img_pad", "device", "dtype",
    "rope_shift_coords", "rope_jitter_coords", "rope_rescale_coords",
)  # fmt: skip
SETTING = ("input_size", "fixed_input_size", "num_classes", "mean", "std", "interpolation", "crop_pct", "crop_mode")
ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "silu", "relu")


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    modules = {name: importlib.import_module(f"timm.models.{name}") for name in MODULES}
    for module in modules.values():
        module.build_model_with_cfg = recorded  # type: ignore[attr-defined]  # that is the recorder's place
    settings = [setting(timm.models.PretrainedCfg())]
    archs = {name: arch(name, module, settings) for key, module in modules.items() for name in timm.list_models(module=key)}
    document = {
        "timm": timm.__version__,
        "classes": {cls.__name__: defaults(cls) for cls in READ.values()},
        "settings": [settings[0], *({key: value for key, value in one.items() if value != settings[0][key]} for one in settings[1:])],
        "archs": dict(sorted(archs.items())),
        "renamed": {old: new for old, new in sorted(registry._deprecated_models.items()) if new and new.partition(".")[0] in archs},
    }
    out.write_text(as_text(document), encoding="utf-8")


def recorded(model_class: type, variant: str, pretrained: bool, **arguments: Any) -> SimpleNamespace:
    """In the place of timm's `build_model_with_cfg`."""
    return SimpleNamespace(model_class=model_class, arguments=arguments)


def arch(name: str, module: ModuleType, settings: list[dict[str, Any]]) -> list[Any]:
    """A name's class, arguments and published weights."""
    call = timm.create_model(name)
    if call.model_class not in READ:
        return [call.model_class.__name__]
    known = defaults(READ[call.model_class])
    told = {name: value for key, given in sorted(call.arguments.items()) for name, value in facts(key, given).items()}
    arguments = {key: value for key, value in told.items() if value != known.get(key)}
    published = module.default_cfgs[name] if name in module.default_cfgs else timm.models.DefaultCfg()
    weights = {tag: place(setting(published.cfgs[tag]), settings) for tag in published.tags}
    return [call.model_class.__name__, arguments, weights]


def defaults(model_class: type) -> dict[str, Any]:
    """A class's arguments with their defaults."""
    found: dict[str, Any] = {"norm_eps": 1e-6, "norm_layer": None}
    for key, parameter in inspect.signature(model_class).parameters.items():
        found |= facts(key, parameter.default)
    return found


def facts(key: str, value: Any) -> dict[str, Any]:
    """An argument as JSON can hold it; nothing for those left out."""
    if key in LEFT_OUT or key.endswith(("drop_rate", "drop_path_rate")):
        return {}
    if key == "act_layer" and value is not None:
        kinds = {get_act_layer(name): name for name in ACTIVATIONS} | {nn.GELU: "gelu"}
        return {key: kinds[get_act_layer(value)]}
    if key == "norm_layer" and value is not None:
        layer = get_norm_layer(value)(8)
        return {"norm_eps": layer.eps} if isinstance(layer, nn.LayerNorm) else {key: type(layer).__name__}
    if key == "mlp_layer":
        layer = value(8, 16)
        return {key: "SwiGLUPacked" if getattr(layer, "gate_last", True) is False else type(layer).__name__}
    while isinstance(value, partial):
        value = value.func
    return {key: value.__name__ if callable(value) else list(value) if isinstance(value, tuple) else value}


def setting(published: Any) -> dict[str, Any]:
    """What published weights say of their images and classes."""
    return {name: list(value) if isinstance(value := getattr(published, name), tuple) else value for name in SETTING}


def place(value: dict[str, Any], values: list[dict[str, Any]]) -> int:
    """Where it stands in the list, at the end if it is new."""
    if value not in values:
        values.append(value)
    return values.index(value)


def as_text(document: dict[str, Any]) -> str:
    """JSON with a line an entry, so that a diff reads well."""
    parts = []
    for key, value in document.items():
        if isinstance(value, (dict, list)):
            keys = [f"{json.dumps(name)}: " for name in value] if isinstance(value, dict) else [""] * len(value)
            entries = value.values() if isinstance(value, dict) else value
            lines = [f"{name}{json.dumps(entry, separators=(',', ':'))}" for name, entry in zip(keys, entries, strict=True)]
            brackets = "{}" if isinstance(value, dict) else "[]"
            parts.append(f"{json.dumps(key)}: {brackets[0]}\n" + ",\n".join(lines) + f"\n{brackets[1]}")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main()
