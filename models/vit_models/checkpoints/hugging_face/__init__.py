"""Hugging Face transformers: a folder with config.json, the weights and mostly preprocessor_config.json.

config.json is the authority on the architecture (`model_type`), the class that was saved (`architectures`), the sizes, the activation and
the eps; what it leaves out has the default of that model_type in transformers, as in transformers itself. Tensors are named after the
modules of that class, so a classifier's file puts its encoder behind a prefix (`vit.`, `vision_model.`) that the bare encoder's lacks.
transformers 5 renamed modules but mostly saves under the older names; both are read.

| model_type | module | positions | what represents the image |
| --- | --- | --- | --- |
| vit, deit, vit_mae, vit_msn, ijepa | vit.py | learned table | class token; DeiT also two tokens; I-JEPA the mean |
| dinov2, dinov2_with_registers | dinov2.py | learned table, none for registers | class token; for the classifier with the mean beside it |
| dinov3_vit | dinov3.py | rotary | class token |
| clip, clip_vision_model | clip.py | learned table | class token, then the projection; for the classifier the mean |
| siglip, siglip_vision_model | siglip.py | learned table | attention pooling; for the classifier the mean |
| beit | beit.py | relative and learned tables | the mean, then a norm; or the class token |
"""

from __future__ import annotations

from collections.abc import Callable

from vit_models.checkpoints.documents import Document
from vit_models.checkpoints.hugging_face import beit, clip, dinov2, dinov3, siglip, vit
from vit_models.checkpoints.plan import CheckpointFile, Options, Plan
from vit_models.errors import CheckpointError, OptionError

NAME = "hugging-face"
TITLE = "Hugging Face transformers"

FAMILIES: dict[str, Callable[[CheckpointFile, Document, Options], Plan]] = {
    "vit": vit.plan,
    "deit": vit.plan,
    "vit_mae": vit.plan,
    "vit_msn": vit.plan,
    "ijepa": vit.plan,
    "dinov2": dinov2.plan,
    "dinov2_with_registers": dinov2.plan,
    "dinov3_vit": dinov3.plan,
    "clip": clip.plan,
    "clip_vision_model": clip.plan,
    "siglip": siglip.plan,
    "siglip_vision_model": siglip.plan,
    "beit": beit.plan,
}
MARKS = ("embeddings.patch_embeddings.", "embeddings.patch_embedding.")  # every family's patch convolution, and nobody else's


def recognise(file: CheckpointFile) -> bool:
    """Tensors under transformers' names; or a config.json of transformers for a network that is refused by name."""
    if any(mark in name for name in file.tensors for mark in MARKS):
        return True
    config = file.documents.get("config.json")
    return isinstance(config, dict) and config.get("model_type") not in (None, *FAMILIES) and "architecture" not in config


def plan(file: CheckpointFile, options: Options) -> Plan:
    """How the family of config.json's model_type becomes the network.

    Raises: CheckpointError without a config.json, for another model_type, and for values that no network has; ConfigError.
    """
    if "config.json" not in file.documents:
        raise CheckpointError(
            "there is no config.json beside the weights, and they do not tell the number of heads, the activation and the eps; "
            "put the model's config.json into the folder"
        )
    document = Document("config.json", file.documents["config.json"])
    if options.model_args or options.arch:
        given = ", ".join(["--arch"] * bool(options.arch) + [f"--model-arg {name}" for name in options.model_args])
        raise OptionError(f"got {given}, but config.json says what the network is; leave it out, or correct config.json")
    model_type = document.text("model_type")
    if model_type in ("siglip2", "siglip2_vision_model"):
        raise CheckpointError(
            "config.json: model_type is siglip2, whose images keep their aspect ratio, up to a number of patches (NaFlex); "
            "expected a SigLIP 2 of fixed resolution (model_type siglip), of which each size has a checkpoint"
        )
    if model_type not in FAMILIES:
        raise document.unlike("model_type", f"one of {', '.join(FAMILIES)}")
    return FAMILIES[model_type](file, document, options)
