"""What a file will say of itself: the manifest's parts that are known before it is verified."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from vit_exporter.precision.calibration import ImageSet
from vit_exporter.precision.ranges import Island
from vit_exporter.precision.sensitivity import Kept
from vit_exporter.source import Source
from vit_exporter.spec import ExportSpec
from vit_exporter.targets import TARGETS
from vit_exporter.trace import BATCH, INPUT, PATCHES, TOKENS
from vit_models import ViT, ViTConfig
from vit_runtime.manifest import Execution, Manifest, Output
from vit_runtime.preprocess import Preprocessing

ANYWHERE = Execution()
TOOLS = ("vit-deploy", "torch", "onnx", "onnx-ir", "onnxscript", "onnxsim", "onnxruntime")

MEANINGS = {
    "logits": "unnormalised score of each class; softmax gives probabilities",
    "embedding": "image representation, the head's input",
    "tokens": "final state of every token after the last norm, class token first",
    "attention": "attention of the last block's class token to each patch, by head, row by row",
}


def manifest_of(source: Source, prepared: Preprocessing, execution: Execution = ANYWHERE) -> Manifest:
    """The manifest of a network whose images are `prepared` so, before anything was built or measured."""
    model = source.model
    outputs = tuple(Output(name, "float32", (BATCH, *_shape(model, name)), _meaning(model.config, name)) for name in model.outputs)
    config = {**dataclasses.asdict(model.config), "img_size": list(model.config.img_size)}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Manifest(
        model={"arch": source.arch, "parameters": parameters, **config},
        checkpoint=source.checkpoint,
        input_name=INPUT,
        image_size=model.config.img_size,
        preprocessing=prepared,
        outputs=outputs,
        labels=source.labels,
        build={},
        golden=None,
        parity=None,
        multiple_of=model.config.patch_size if model.dynamic_size else None,
        execution=execution,
    )


def build_of(
    spec: ExportSpec,
    traced: dict[str, int],
    passes: list[dict[str, Any]],
    kept: Sequence[Kept],
    islands: Sequence[Island],
    images: ImageSet | None,
) -> dict[str, Any]:
    """How the file was made, for people: `traced` are the ops as torch's exporter left them."""
    tools = [*TOOLS, *(["nncf"] if spec.precision == "int8-static" else []), *(["openvino"] if spec.target == "openvino" else [])]
    measured = TARGETS[spec.target].measures(spec.precision)
    return {
        "opset": spec.written_opset,
        "target": spec.target,
        "precision": spec.precision,
        "token_split": list(spec.token_split) or None,
        "calibration": images.to_dict() if images is not None and measured else None,
        "islands": [each.to_dict() for each in islands],
        "kept": [{"layer": each.layer, "before": _digits(each.before), "after": _digits(each.after)} for each in kept],
        "traced": traced,
        "passes": passes,
        "tools": {name: package_version(name) for name in tools},
    }


def _digits(cosine: float | None) -> float | None:
    return None if cosine is None else round(cosine, 5)


def _meaning(config: ViTConfig, output: str) -> str:
    if output == "logits" and config.projection:
        return "image representation in the space that images and texts share, not normalised"
    return MEANINGS[output]


def _shape(model: ViT, output: str) -> tuple[int | str, ...]:
    config = model.config
    tokens, patches = (TOKENS, PATCHES) if model.dynamic_size else (config.num_tokens, config.num_patches)
    shapes: dict[str, tuple[int | str, ...]] = {
        "logits": (config.num_classes,),
        "embedding": (config.embedding_dim,),
        "tokens": (tokens, config.embed_dim),
        "attention": (config.num_heads, patches),
    }
    return shapes[output]


def package_version(package: str) -> str | None:
    """The version of an installed package, None where it is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
