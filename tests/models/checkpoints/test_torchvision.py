"""torchvision's state dicts, against PyTorch's own encoder layers, which torchvision is made of."""

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import raises_mentioning
from torch import Tensor, nn
from torch.nn import functional as F

from vit_models.checkpoints import torchvision
from vit_models.checkpoints.load import load
from vit_models.checkpoints.plan import CheckpointFile, Options, Plan, TensorInfo
from vit_models.errors import CheckpointError

pytestmark = pytest.mark.unit

TOLERANCE = 5e-5  # ten times the error of float32; a tanh GELU is 2e-4 off, another epsilon 1e-3
HEADS = Options(model_args={"num_heads": "4"})


def state_dict(
    size: int = 24,
    patch: int = 8,
    width: int = 40,
    depth: int = 2,
    mlp: int = 72,
    classes: int = 5,
    channels: int = 3,
    representation: int = 0,
    names: tuple[str, str] = ("0", "3"),
) -> dict[str, Tensor]:
    """A torchvision state dict with every parameter drawn at random, small enough that epsilon shows."""
    shapes: dict[str, tuple[int, ...]] = {
        "class_token": (1, 1, width),
        "conv_proj.weight": (width, channels, patch, patch),
        "conv_proj.bias": (width,),
        "encoder.pos_embedding": (1, (size // patch) ** 2 + 1, width),
    }
    for index in range(depth):
        block = f"encoder.layers.encoder_layer_{index}"
        shapes |= {
            f"{block}.ln_1.weight": (width,),
            f"{block}.ln_1.bias": (width,),
            f"{block}.self_attention.in_proj_weight": (3 * width, width),
            f"{block}.self_attention.in_proj_bias": (3 * width,),
            f"{block}.self_attention.out_proj.weight": (width, width),
            f"{block}.self_attention.out_proj.bias": (width,),
            f"{block}.ln_2.weight": (width,),
            f"{block}.ln_2.bias": (width,),
            f"{block}.mlp.{names[0]}.weight": (mlp, width),
            f"{block}.mlp.{names[0]}.bias": (mlp,),
            f"{block}.mlp.{names[1]}.weight": (width, mlp),
            f"{block}.mlp.{names[1]}.bias": (width,),
        }
    shapes |= {"encoder.ln.weight": (width,), "encoder.ln.bias": (width,)}
    if representation:
        shapes |= {"heads.pre_logits.weight": (representation, width), "heads.pre_logits.bias": (representation,)}
    if classes:
        shapes |= {"heads.head.weight": (classes, representation or width), "heads.head.bias": (classes,)}
    generator = torch.Generator().manual_seed(7)
    state = {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: value + 1 if ".ln" in name and name.endswith("weight") else value for name, value in state.items()}


def reference(state: dict[str, Tensor], heads: int, images: Tensor) -> dict[str, Tensor]:
    """What torchvision computes, in float64, with `nn.TransformerEncoderLayer`."""
    state = {name: value.double() for name, value in state.items()}
    x = F.conv2d(images.double(), state["conv_proj.weight"], state["conv_proj.bias"], stride=state["conv_proj.weight"].shape[-1])
    x = torch.cat([state["class_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1) + state["encoder.pos_embedding"]
    theirs = {"ln_1": "norm1", "ln_2": "norm2", "self_attention": "self_attn", "mlp": ""}
    for index in range(sum(name.endswith("ln_1.weight") for name in state)):
        block = f"encoder.layers.encoder_layer_{index}."
        own = {}
        for name, value in state.items():
            if name.startswith(block):
                first, _, rest = name.removeprefix(block).partition(".")
                rest = rest.replace("linear_", "linear").replace("0.", "linear1.").replace("3.", "linear2.") if first == "mlp" else rest
                own[f"{theirs[first]}.{rest}".lstrip(".")] = value
        mlp, width = own["linear1.weight"].shape
        layer = nn.TransformerEncoderLayer(
            width, heads, mlp, dropout=0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True, dtype=torch.float64
        )
        layer.load_state_dict(own)
        x = layer(x)
    tokens = F.layer_norm(x, x.shape[-1:], state["encoder.ln.weight"], state["encoder.ln.bias"], eps=1e-6)
    pooled = tokens[:, 0]
    if "heads.pre_logits.weight" in state:
        pooled = F.linear(pooled, state["heads.pre_logits.weight"], state["heads.pre_logits.bias"]).tanh()
    found = {"embedding": pooled, "tokens": tokens}
    if "heads.head.weight" in state:
        found["logits"] = F.linear(pooled, state["heads.head.weight"], state["heads.head.bias"])
    return found


def check(state: dict[str, Tensor], path: Path, options: Options, expected: dict[str, Tensor], images: Tensor) -> None:
    """Save the state dict, load it, and compare every output with the reference."""
    torch.save(state, path / "vit.pth")
    model, spec = load(path / "vit.pth", options=options, outputs=tuple(expected))
    assert spec.format == "torchvision"
    with torch.inference_mode():
        outputs = dict(zip(expected, model(images), strict=True))
    for name, value in expected.items():
        torch.testing.assert_close(outputs[name].double(), value, atol=TOLERANCE, rtol=0)


def plan(state: dict[str, Tensor], options: Options = HEADS) -> Plan:
    """The plan for a state dict in memory."""
    return torchvision.plan(described({name: tuple(value.shape) for name, value in state.items()}), options)


def described(shapes: dict[str, tuple[int, ...]]) -> CheckpointFile:
    """A file of which only names and shapes are there."""
    return CheckpointFile(
        Path("vit.pth"), "torch", {name: TensorInfo(shape, "F32") for name, shape in shapes.items()}, lambda _: torch.empty(0)
    )


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, id="plain"),
        pytest.param({"size": 20, "patch": 4, "width": 24, "depth": 3, "mlp": 50}, id="another shape"),
        pytest.param({"channels": 1}, id="grey"),
        pytest.param({"representation": 28}, id="pre-logits layer"),
        pytest.param({"names": ("linear_1", "linear_2")}, id="first release's names"),
        pytest.param({"classes": 0}, id="no head"),
    ],
)
@torch.no_grad()
def test_the_network_computes_what_pytorchs_encoder_layers_compute(arguments: dict[str, Any], tmp_path: Path) -> None:
    state, size = state_dict(**arguments), arguments.get("size", 24)
    images = torch.randn(2, arguments.get("channels", 3), size, size, generator=torch.Generator().manual_seed(1))
    check(state, tmp_path, HEADS, reference(state, 4, images), images)


@torch.no_grad()
def test_a_linear_put_in_place_of_the_heads_is_the_head(tmp_path: Path) -> None:
    state = state_dict()
    images = torch.randn(2, 3, 24, 24)
    expected = reference(state, 4, images)
    for part in ("weight", "bias"):
        state[f"heads.{part}"] = state.pop(f"heads.head.{part}")
    check(state, tmp_path, HEADS, expected, images)


@torch.no_grad()
def test_another_image_size_is_resampled_with_the_corners_in_place(tmp_path: Path) -> None:
    state = state_dict()
    images = torch.randn(2, 3, 40, 40)
    table = state["encoder.pos_embedding"].double()
    grid = table[:, 1:].reshape(1, 3, 3, 40).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(5, 5), mode="bicubic", align_corners=True).permute(0, 2, 3, 1).reshape(1, 25, 40)
    expected = reference({**state, "encoder.pos_embedding": torch.cat([table[:, :1], grid], dim=1)}, 4, images)
    check(state, tmp_path, Options(img_size=(40, 40), model_args={"num_heads": "4"}), expected, images)


@pytest.mark.parametrize(
    ("arch", "size", "patch", "width", "depth", "mlp", "heads", "resize"),
    [
        ("vit_b_16", 224, 16, 768, 12, 3072, 12, 256),
        ("vit_b_32", 224, 32, 768, 12, 3072, 12, 256),
        ("vit_l_16", 224, 16, 1024, 24, 4096, 16, 242),
        ("vit_l_32", 224, 32, 1024, 24, 4096, 16, 256),
        ("vit_b_16", 384, 16, 768, 12, 3072, 12, 384),
        ("vit_h_14", 518, 14, 1280, 32, 5120, 16, 518),
    ],
)
def test_published_shapes_need_not_be_told(
    arch: str, size: int, patch: int, width: int, depth: int, mlp: int, heads: int, resize: int
) -> None:
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in meta_state(size, patch, width, depth, mlp).items()}
    file = described(shapes)
    assert torchvision.recognise(file)
    found = torchvision.plan(file, Options())
    assert (found.arch, found.config.num_heads, found.config.img_size) == (arch, heads, (size, size))
    assert found.labels is not None
    assert (found.labels[0], len(found.labels)) == ("tench", 1000)
    assert found.preprocessing is not None
    assert found.preprocessing["resize"] == {"mode": "shortest_edge", "edge": resize}
    assert found.preprocessing["interpolation"] == ("bicubic" if resize == size else "bilinear")


def meta_state(size: int, patch: int, width: int, depth: int, mlp: int) -> dict[str, Tensor]:
    """Names and shapes of a published network, taken from a narrow one's."""
    narrow = state_dict(size=2 * patch, patch=patch, width=2, depth=depth, mlp=3, classes=1000)
    swap = {2: width, 6: 3 * width, 3: mlp}
    state = {name: torch.empty([swap.get(axis, axis) for axis in value.shape]) for name, value in narrow.items()}
    state["conv_proj.weight"] = torch.empty(width, 3, patch, patch)
    state["encoder.pos_embedding"] = torch.empty(1, (size // patch) ** 2 + 1, width)
    return state


def test_the_number_of_heads_is_asked_for() -> None:
    with raises_mentioning(CheckpointError, "--model-arg num_heads=6", "--arch"):
        plan(state_dict(), Options())


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (Options(model_args={"heads": "4"}), ("--model-arg heads", "torchvision", "image_size")),
        (Options(model_args={"num_heads": "four"}), ("--model-arg num_heads=four",)),
        (Options(model_args={"num_heads": "4", "patch_size": "16"}), ("--model-arg patch_size=16", 8)),
        (Options(arch="vit_b_8", model_args={"num_heads": "4"}), ("--arch vit_b_8", "vit_b_16")),
        (Options(arch="vit_b_16", model_args={"num_heads": "4"}), ("--arch vit_b_16", 16, 768)),
    ],
)
def test_what_the_user_says_has_to_fit(options: Options, facts: tuple[object, ...]) -> None:
    with raises_mentioning(CheckpointError, *facts):
        plan(state_dict(), options)


@pytest.mark.parametrize(
    ("name", "shape", "facts"),
    [
        ("conv_proj.weight", (40, 3, 8, 4), ("conv_proj.weight", "8 x 4", "square")),
        ("conv_proj.weight", (40,), ("conv_proj.weight", "(40,)", "(width, channels, P, P)")),
        ("encoder.pos_embedding", (1, 8, 40), (7, "square", "--img-size")),
        ("encoder.pos_embedding", (1, 1, 40), (0, "square", "--img-size")),
        ("encoder.layers.encoder_layer_3.ln_1.weight", (40,), ("numbered", 0, 1, 2)),
        ("conv_proj.0.0.weight", (40, 3, 3, 3), ("stem", "convolutions")),
        ("encoder.layers.encoder_layer_0.mlp.0.weight", None, ("encoder.layers.encoder_layer_0.mlp.0.weight", "missing")),
    ],
)
def test_shapes_that_make_no_network_are_refused(name: str, shape: tuple[int, ...] | None, facts: tuple[object, ...]) -> None:
    state = state_dict()
    if shape is None:
        del state[name]
    else:
        state[name] = torch.empty(shape)
    with raises_mentioning(CheckpointError, *facts):
        plan(state)


def test_other_sources_are_not_taken_for_torchvisions() -> None:
    assert not torchvision.recognise(described({"cls_token": (1, 1, 8), "pos_embed": (1, 5, 8), "blocks.0.norm1.weight": (8,)}))
