"""What the families of transformers share: how config.json spells a network, and the parts that every layer has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from vit_models.checkpoints import bare, preprocessing, repairs
from vit_models.checkpoints.documents import Document
from vit_models.checkpoints.plan import CheckpointFile, Options, Plan, Step, take
from vit_models.config import Activation, ViTConfig
from vit_models.errors import CheckpointError

# transformers' names of activations that the network has; the tanh forms differ in nothing but how they are computed.
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}

# How the published checkpoints of a family were evaluated, where that differs from the defaults of its image processor.
RECIPES = dict.fromkeys(("deit", "dinov2", "dinov2_with_registers", "vit_mae", "vit_msn", "ijepa"), "imagenet")


@dataclass(frozen=True)
class LayerNames:
    """What a family calls the parts of a layer; `layer` is the layer itself, with {} for its number.

    `fc1` is one Linear, or the gate and the value of a gated MLP. `scales` are the factors of both branches, where there are any.
    """

    layer: str
    norm1: str
    qkv: tuple[str, str, str]
    proj: str
    norm2: str
    fc1: tuple[str, ...]
    fc2: str
    scales: tuple[str, str] | None = None


# ---- config.json ---------------------------------------------------------------------------------------------------------------------


def architecture(document: Document, known: Sequence[str], default: str) -> str:
    """The class that the weights were saved from; `default` where config.json names none.

    Raises: CheckpointError for a class that is not `known`, because its head may compute anything.
    """
    if not document.has("architectures"):
        return default
    names = document.values["architectures"]
    if isinstance(names, list) and names and names[0] in known:
        return str(names[0])
    raise document.unlike("architectures", f"one of {', '.join(known)}")


def encoder(document: Document, sizes: Mapping[str, int], eps: float, activation: str = "gelu") -> dict[str, Any]:
    """The fields of ViTConfig that config.json spells alike in every family; `sizes`, `eps` and `activation` are for keys left out.

    An image size that the patches do not divide is cut down to one that they do: the patch convolution does not see the rest.

    Raises: CheckpointError for values of the wrong kind.
    """
    patch = document.size("patch_size", (sizes["patch_size"],) * 2)
    if patch[0] != patch[1] or not patch[0]:
        raise document.unlike("patch_size", "a whole number, or two equal ones")
    image = document.size("image_size", (224, 224))
    return {
        "img_size": bare.covered(image, patch[0]),
        "patch_size": patch[0],
        "embed_dim": document.integer("hidden_size", sizes["hidden_size"]),
        "depth": document.integer("num_hidden_layers", sizes["num_hidden_layers"]),
        "num_heads": document.integer("num_attention_heads", sizes["num_attention_heads"]),
        "mlp_dim": document.integer("intermediate_size", sizes["intermediate_size"]),
        "in_chans": document.integer("num_channels", 3),
        "layer_norm_eps": document.number("layer_norm_eps", eps),
        "activation": activation_named(document, "hidden_act", activation),
    }


BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "patch_size": 16}


def activation_named(document: Document, key: str, default: str) -> Activation:
    """The network's name of an activation."""
    name = document.text(key, default)
    if name not in ACTIVATIONS:
        raise document.unlike(key, f"one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def square(document: Document, fields: Mapping[str, Any]) -> None:
    """Refuse a position table of another shape: these families read every table as a square one."""
    if fields["img_size"][0] != fields["img_size"][1]:
        raise document.unlike("image_size", "a square one, because transformers takes this family's positions for a square")


def classes(document: Document, file: CheckpointFile, head: str) -> tuple[int, tuple[str, ...] | None]:
    """How many classes the Linear `head` tells apart, and their names, unless they are the placeholders LABEL_0, LABEL_1, ….

    Raises: CheckpointError where config.json names another number of classes than the head has rows.
    """
    names = label_names(document)
    default = 2 if names is None else len(names)  # transformers' number of classes where config.json says nothing
    info = file.tensors.get(f"{head}.weight")
    count = info.shape[0] if info is not None and info.shape else default
    if names is not None and len(names) != count:
        raise CheckpointError(
            f"{document.name}: id2label names {len(names)} classes, but {head}.weight has {count} rows; expected one name a row: "
            "take config.json and the weights from the same training"
        )
    if names is None or all(name == f"LABEL_{index}" for index, name in enumerate(names)):
        return count, None
    return count, names


def label_names(document: Document) -> tuple[str, ...] | None:
    """config.json's names of the classes, in their order. Raises: CheckpointError."""
    if not document.has("id2label"):
        return None
    given = document.child("id2label").values
    names = [given.get(str(index)) for index in range(len(given))]
    if any(isinstance(name, bool) or not isinstance(name, (str, int)) for name in names):
        raise document.unlike("id2label", 'a name for every number from 0: {"0": "cat", "1": "dog", …}')
    return tuple(str(name) for name in names)


# ---- steps ---------------------------------------------------------------------------------------------------------------------------


def module(target: str, source: str) -> dict[str, Step]:
    """A Linear, a convolution or a LayerNorm as it is."""
    return {f"{target}.weight": take(f"{source}.weight"), f"{target}.bias": take(f"{source}.bias")}


def linear(target: str, sources: Sequence[str], width: int, biases: Sequence[bool] = (True,)) -> dict[str, Step]:
    """One Linear made of several that read the same input, each `width` wide; `biases` says which of them have a bias."""
    packed = repairs.pack if len(sources) > 1 else repairs.as_is
    present = tuple(f"{source}.bias" for source, has in zip(sources, biases, strict=True) if has)
    repair = packed if all(biases) else partial(repairs.pack_present, tuple(biases), width)
    return {f"{target}.weight": Step(tuple(f"{source}.weight" for source in sources), packed), f"{target}.bias": Step(present, repair)}


def blocks(
    config: ViTConfig,
    names: LayerNames,
    qkv_bias: Sequence[bool] = (True, True, True),
    proj_bias: bool = True,
    mlp_bias: bool = True,
) -> dict[str, Step]:
    """Every layer of the encoder."""
    steps: dict[str, Step] = {}
    for index in range(config.depth):
        target, source = f"blocks.{index}", names.layer.format(index)
        steps |= module(f"{target}.norm1", f"{source}.{names.norm1}")
        steps |= linear(f"{target}.attn.qkv", [f"{source}.{name}" for name in names.qkv], config.embed_dim, qkv_bias)
        steps |= linear(f"{target}.attn.proj", [f"{source}.{names.proj}"], config.embed_dim, [proj_bias])
        steps |= module(f"{target}.norm2", f"{source}.{names.norm2}")
        width = config.mlp_dim * (2 if config.gated_mlp and len(names.fc1) == 1 else 1)
        steps |= linear(f"{target}.mlp.fc1", [f"{source}.{name}" for name in names.fc1], width, [mlp_bias] * len(names.fc1))
        steps |= linear(f"{target}.mlp.fc2", [f"{source}.{names.fc2}"], config.embed_dim, [mlp_bias])
        for branch, scale in enumerate(names.scales or (), 1):
            steps[f"{target}.ls{branch}.gamma"] = take(f"{source}.{scale}")
    return steps


def has_prefix(file: CheckpointFile, prefix: str) -> bool:
    """Whether any tensor's name begins so."""
    return any(name.startswith(prefix) for name in file.tensors)


def ignore(file: CheckpointFile, reasons: Mapping[str, str]) -> dict[str, str]:
    """The stored tensors that are left out, by the beginning of their names."""
    return {name: reason for name in file.tensors for prefix, reason in reasons.items() if name.startswith(prefix)}


# ---- around the network --------------------------------------------------------------------------------------------------------------


def finish(plan: Plan, file: CheckpointFile, options: Options, vision: Document) -> Plan:
    """The plan with its images' preparation, and what the user should hear; `vision` is the part of config.json that has the sizes."""
    config, notes = plan.config, list(plan.notes)
    image = vision.size("image_size", (224, 224))
    size = options.img_size or image
    model_type = Document("config.json", file.documents["config.json"]).text("model_type")
    given = image_processor(file)
    if given is not None:
        prepared = preprocessing.from_hugging_face(given.values, size, model_type, config.in_chans)
    else:
        notes.append("there is no preprocessor_config.json: images are prepared as for the family's published checkpoints")
        if model_type in RECIPES:
            prepared = preprocessing.recipe(RECIPES[model_type], size, config.in_chans)
        else:
            prepared = preprocessing.from_hugging_face({}, size, model_type, config.in_chans)
    prepared = preprocessing.top_left(prepared, options.img_size or config.img_size)
    if options.img_size is None:
        notes += bare.left_over(image, config.img_size, config.patch_size)
        made = _image_size(given) if given is not None else None
        if made is not None and made != image:
            notes.append(
                f"the weights were trained at {_by(image)} pixels, but preprocessor_config.json makes images of {_by(made)}: "
                f"give --img-size {made[0]},{made[1]} to run as transformers does"
            )
    return replace(plan, preprocessing=prepared, notes=tuple(notes))


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _image_size(given: Document) -> tuple[int, int] | None:
    """The size of the images that an image processor makes, where its document names it."""
    key = "crop_size" if given.flag("do_center_crop", False) else "size"
    if not isinstance(given.values.get(key), dict):
        return given.size(key, None)
    sides = given.child(key)
    return (sides.integer("height"), sides.integer("width")) if sides.has("height") and sides.has("width") else None


def image_processor(file: CheckpointFile) -> Document | None:
    """The image processor's document; transformers 5 keeps that of a model with a text tower inside processor_config.json."""
    if "preprocessor_config.json" in file.documents:
        return Document("preprocessor_config.json", file.documents["preprocessor_config.json"])
    if "processor_config.json" in file.documents:
        whole = Document("processor_config.json", file.documents["processor_config.json"])
        return whole.child("image_processor") if whole.has("image_processor") else None
    return None
