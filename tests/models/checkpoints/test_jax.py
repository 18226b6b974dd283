"""Google's .npz files, against the paper's equations written out in NumPy with Flax's kernels as they lie (input first)."""

from collections.abc import Callable
from dataclasses import dataclass
from math import pi
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from checkpoint_files import raises_mentioning

from vit_models.checkpoints import jax
from vit_models.checkpoints.load import load
from vit_models.checkpoints.plan import CheckpointFile, Options, TensorInfo
from vit_models.errors import CheckpointError

pytestmark = pytest.mark.unit

Array = npt.NDArray[Any]
TOLERANCE = 5e-5  # ten times the error of float32; an exact GELU is 2e-4 off, another epsilon 1e-3
AUGREG = {"LayerNorm_1": "LayerNorm_2", "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1", "MlpBlock_0": "MlpBlock_3"}


@dataclass(frozen=True)
class Shape:
    """Sizes of a test's network."""

    grid: tuple[int, int] = (3, 3)
    patch: int = 8
    width: int = 40
    depth: int = 2
    heads: int = 5
    mlp: int = 72
    classes: int = 6
    representation: int = 0
    channels: int = 3

    @property
    def size(self) -> tuple[int, int]:
        return self.grid[0] * self.patch, self.grid[1] * self.patch


def shapes_of(shape: Shape, cls: bool = False, table: str | None = "pos_embedding", probe: bool = False) -> dict[str, tuple[int, ...]]:
    """The shapes of a network's arrays by big_vision's names."""
    d, h = shape.width, shape.heads
    rows = shape.grid[0] * shape.grid[1] + (cls and table != "pos_embedding")
    shapes: dict[str, tuple[int, ...]] = {"embedding/kernel": (shape.patch, shape.patch, shape.channels, d), "embedding/bias": (d,)}
    shapes |= {"cls": (1, 1, d)} if cls else {}
    shapes |= {table: (1, rows, d)} if table else {}

    def norm(name: str) -> dict[str, tuple[int, ...]]:
        return {f"{name}/scale": (d,), f"{name}/bias": (d,)}

    def dense(name: str, *axes: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}/kernel": axes, f"{name}/bias": axes[1:]}

    def attention(name: str) -> dict[str, tuple[int, ...]]:
        inner = [dense(f"{name}/{part}", d, h, d // h) for part in ("query", "key", "value")]
        return inner[0] | inner[1] | inner[2] | {f"{name}/out/kernel": (h, d // h, d), f"{name}/out/bias": (d,)}

    def mlp(name: str) -> dict[str, tuple[int, ...]]:
        return dense(f"{name}/Dense_0", d, shape.mlp) | dense(f"{name}/Dense_1", shape.mlp, d)

    for index in range(shape.depth):
        block = f"Transformer/encoderblock_{index}"
        shapes |= norm(f"{block}/LayerNorm_0") | attention(f"{block}/MultiHeadDotProductAttention_0")
        shapes |= norm(f"{block}/LayerNorm_1") | mlp(f"{block}/MlpBlock_0")
    shapes |= norm("Transformer/encoder_norm")
    if probe:
        shapes |= {"MAPHead_0/probe": (1, 1, d)} | attention("MAPHead_0/MultiHeadDotProductAttention_0")
        shapes |= norm("MAPHead_0/LayerNorm_0") | mlp("MAPHead_0/MlpBlock_0")
    if shape.representation:
        shapes |= dense("pre_logits", d, shape.representation)
    if shape.classes:
        shapes |= dense("head", shape.representation or d, shape.classes)
    return shapes


def parameters(shape: Shape, cls: bool = False, table: str | None = "pos_embedding", probe: bool = False) -> dict[str, Array]:
    """A network's arrays with random values, so small that a wrong epsilon changes the outputs."""
    shapes = shapes_of(shape, cls, table, probe)
    random = np.random.default_rng(11)
    drawn = {name: 0.05 * random.standard_normal(axes) for name, axes in shapes.items()}
    return {name: (array + name.endswith("/scale")).astype(np.float32) for name, array in drawn.items()}


def reference(arrays: dict[str, Array], images: Array, positions: Array | None = None) -> dict[str, Array]:
    """What Flax computes of parameters by big_vision's names, in float64: logits, embedding and tokens.

    The table, or `positions` in its place, has a row for the class token or none.
    """
    p = {name: array.astype(np.float64) for name, array in arrays.items()}

    def norm(x: Array, name: str) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p[f"{name}/scale"] + p[f"{name}/bias"]

    def attention(x: Array, y: Array, name: str) -> Array:
        q = np.einsum("btd,dhk->bthk", x, p[f"{name}/query/kernel"]) + p[f"{name}/query/bias"]
        k, v = (np.einsum("btd,dhk->bthk", y, p[f"{name}/{part}/kernel"]) + p[f"{name}/{part}/bias"] for part in ("key", "value"))
        scores = np.exp(np.einsum("bqhk,bthk->bhqt", q, k) / np.sqrt(q.shape[-1]))
        mixed = np.einsum("bhqt,bthk->bqhk", scores / scores.sum(-1, keepdims=True), v)
        return np.einsum("bqhk,hkd->bqd", mixed, p[f"{name}/out/kernel"]) + p[f"{name}/out/bias"]

    def mlp(x: Array, name: str) -> Array:
        x = x @ p[f"{name}/Dense_0/kernel"] + p[f"{name}/Dense_0/bias"]
        x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / pi) * (x + 0.044715 * x**3)))
        return x @ p[f"{name}/Dense_1/kernel"] + p[f"{name}/Dense_1/bias"]

    kernel, count = p["embedding/kernel"], len(images)
    patch, channels = kernel.shape[0], images.shape[1]
    cut = images.astype(np.float64).reshape(count, channels, images.shape[2] // patch, patch, images.shape[3] // patch, patch)
    x = np.einsum("bcyiwj,ijcd->bywd", cut, kernel).reshape(count, -1, kernel.shape[-1]) + p["embedding/bias"]
    table = positions if positions is not None else next(array for name, array in p.items() if name.endswith("pos_embedding"))
    if table.shape[1] == x.shape[1]:
        x = x + table
    if "cls" in p:
        x = np.concatenate([np.repeat(p["cls"], count, axis=0), x], axis=1)
    if table.shape[1] == x.shape[1] and "cls" in p:
        x = x + table
    for index in range(sum(name.endswith("LayerNorm_1/scale") for name in p)):
        block = f"Transformer/encoderblock_{index}"
        y = norm(x, f"{block}/LayerNorm_0")
        x = x + attention(y, y, f"{block}/MultiHeadDotProductAttention_0")
        x = x + mlp(norm(x, f"{block}/LayerNorm_1"), f"{block}/MlpBlock_0")
    tokens = norm(x, "Transformer/encoder_norm")
    pooled = tokens[:, 0] if "cls" in p else tokens.mean(axis=1)
    if "MAPHead_0/probe" in p:
        x = attention(np.repeat(p["MAPHead_0/probe"], count, axis=0), tokens, "MAPHead_0/MultiHeadDotProductAttention_0")
        pooled = (x + mlp(norm(x, "MAPHead_0/LayerNorm_0"), "MAPHead_0/MlpBlock_0"))[:, 0]
    if "pre_logits/kernel" in p:
        pooled = np.tanh(pooled @ p["pre_logits/kernel"] + p["pre_logits/bias"])
    found = {"embedding": pooled, "tokens": tokens}
    return found | ({"logits": pooled @ p["head/kernel"] + p["head/bias"]} if "head/kernel" in p else {})


def check(arrays: dict[str, Array], path: Path, expected: dict[str, Array], images: Array, options: Options = Options()) -> Any:
    """Save the arrays, load them, and compare every output with the reference. Returns what the file was found to be."""
    np.savez(path / "vit.npz", allow_pickle=False, **arrays)
    model, spec = load(path / "vit.npz", options=options, outputs=tuple(expected))
    assert spec.format == "jax"
    with torch.inference_mode():
        outputs = dict(zip(expected, model(torch.from_numpy(images)), strict=True))
    for name, value in expected.items():
        np.testing.assert_allclose(outputs[name].numpy(), value, atol=TOLERANCE, rtol=0)
    return spec


def pictures(shape: Shape, size: tuple[int, int] | None = None) -> Array:
    """Two random images."""
    return np.random.default_rng(5).standard_normal((2, shape.channels, *(size or shape.size))).astype(np.float32)


def augreg(arrays: dict[str, Array]) -> dict[str, Array]:
    """The names from before Flax's linen, which number all of a block's layers together."""
    for new, old in AUGREG.items():
        arrays = {name.replace(f"/{new}/", f"/{old}/"): array for name, array in arrays.items()}
    return arrays


def below(prefix: str, arrays: dict[str, Array]) -> dict[str, Array]:
    """All names below a prefix."""
    return {prefix + name: array for name, array in arrays.items()}


def stacked(arrays: dict[str, Array]) -> dict[str, Array]:
    """All blocks' arrays as one with the block along the first axis, as `nn.scan` makes them."""
    first = "Transformer/encoderblock_0"
    depth = sum(name.endswith("LayerNorm_1/scale") for name in arrays)
    rest = {name: array for name, array in arrays.items() if "encoderblock_" not in name}
    for name in arrays:
        if name.startswith(first):
            part = name.removeprefix(first)
            rest[f"Transformer/encoderblock{part}"] = np.stack([arrays[f"Transformer/encoderblock_{i}{part}"] for i in range(depth)])
    return rest


GOOGLE = "Transformer/posembed_input/pos_embedding"
Layout = Callable[[dict[str, Array]], dict[str, Array]]


@pytest.mark.parametrize(
    ("shape", "made", "layout"),
    [
        pytest.param(Shape(), {"cls": True, "table": GOOGLE}, augreg, id="augreg"),
        pytest.param(Shape(representation=24), {"cls": True, "table": GOOGLE}, augreg, id="ImageNet-21k with pre-logits"),
        pytest.param(Shape(depth=3, heads=2, width=24, patch=4), {"cls": True, "table": GOOGLE}, dict, id="linen names"),
        pytest.param(Shape(), {"cls": False, "table": GOOGLE}, dict, id="Google's gap"),
        pytest.param(Shape(), {"cls": True, "table": "Transformer/pos_embedding"}, dict, id="table in the encoder"),
        pytest.param(Shape(channels=1, mlp=50), {}, dict, id="big_vision gap, grey"),
        pytest.param(Shape(), {"cls": True}, lambda arrays: below("params/", arrays), id="big_vision tok"),
        pytest.param(Shape(classes=0), {"probe": True}, lambda arrays: below("params/img/", arrays), id="SigLIP"),
        pytest.param(Shape(representation=16), {"probe": True}, lambda arrays: below("opt/target/", arrays), id="MAP with head"),
        pytest.param(Shape(depth=3, classes=0), {"probe": True}, lambda arrays: below("params/img/", stacked(arrays)), id="scan"),
    ],
)
def test_the_network_computes_what_flax_computes(shape: Shape, made: dict[str, Any], layout: Layout, tmp_path: Path) -> None:
    arrays = parameters(shape, **made)
    images = pictures(shape)
    check(layout(arrays), tmp_path, reference(arrays, images), images)


def test_a_table_that_is_no_square_takes_the_size_that_fits(tmp_path: Path) -> None:
    shape = Shape(grid=(2, 5))
    arrays, images = parameters(shape, cls=True), pictures(shape)
    check(arrays, tmp_path, reference(arrays, images), images, Options(img_size=(16, 40)))
    with raises_mentioning(CheckpointError, 10, "square", "--img-size"):
        load(tmp_path / "vit.npz")


@pytest.mark.parametrize(("cls", "table"), [(True, GOOGLE), (True, "pos_embedding"), (False, "pos_embedding")])
def test_another_image_size_is_resampled_linearly_with_the_corners_in_place(cls: bool, table: str, tmp_path: Path) -> None:
    shape = Shape(grid=(4, 4))
    arrays, images = parameters(shape, cls, table), pictures(shape, (56, 24))
    prefix, patches = np.split(arrays[table].astype(np.float64)[0], [arrays[table].shape[1] - 16])
    grid = stretched(stretched(patches.reshape(4, 4, 40), 7).swapaxes(0, 1), 3).swapaxes(0, 1)
    positions = np.concatenate([prefix, grid.reshape(21, 40)])[None]
    check(arrays, tmp_path, reference(arrays, images, positions), images, Options(img_size=(56, 24)))


def stretched(grid: Array, new: int) -> Array:
    """A grid interpolated linearly to `new` rows, the first and the last kept."""
    places = np.linspace(0, len(grid) - 1, new)
    low = np.minimum(places.astype(int), len(grid) - 2)
    share = (places - low)[:, None, None]
    return (1 - share) * grid[low] + share * grid[low + 1]


def test_positions_that_are_not_stored_are_computed_for_the_size_asked_for(tmp_path: Path) -> None:
    shape = Shape(grid=(3, 4), width=24, heads=3)
    arrays, images = parameters(shape, table=None), pictures(shape)
    positions = np.zeros((1, 12, 24))
    for row in range(3):
        for column in range(4):
            for channel in range(6):
                for quarter, (place, wave) in enumerate(((column, np.sin), (column, np.cos), (row, np.sin), (row, np.cos))):
                    positions[0, 4 * row + column, 6 * quarter + channel] = wave(place * 10_000 ** (-channel / 5))
    expected = reference(arrays, images, positions)
    spec = check(below("opt/target/", arrays), tmp_path, expected, images, Options(img_size=(24, 32)))
    assert any("posemb='sincos2d'" in note for note in spec.notes)
    with raises_mentioning(CheckpointError, "positions", "--img-size"):
        load(tmp_path / "vit.npz")


def test_bfloat16_which_numpy_stores_without_a_type_is_widened_exactly(tmp_path: Path) -> None:
    shape = Shape()
    halves = {name: (array.view(np.uint32) >> 16).astype(np.uint16) for name, array in parameters(shape).items()}
    widened = {name: (array.astype(np.uint32) << 16).view(np.float32) for name, array in halves.items()}
    images = pictures(shape)
    expected = reference(widened, images)
    spec = check({name: array.view("V2") for name, array in halves.items()}, tmp_path, expected, images)
    assert spec.dtypes == ("BF16",)


def test_what_stands_beside_the_image_tower_is_ignored_with_the_reason(tmp_path: Path) -> None:
    shape = Shape(classes=0)
    arrays, images = parameters(shape, probe=True), pictures(shape)
    beside = {"params/txt/head/kernel": np.ones((4, 4)), "params/t": np.ones(1), "params/b": np.ones(1)}
    beside |= {"opt/0/mu/img/embedding/kernel": np.ones(3), "opt/0/count": np.ones((), np.int32), "extra/chrono/steps": np.ones(())}
    spec = check({**below("params/img/", arrays), **beside}, tmp_path, reference(arrays, images), images)
    reasons = {
        "params/txt/head/kernel": "text",
        "params/t": "temperature",
        "params/b": "bias",
        "opt/0/mu/img/embedding/kernel": "optimizer",
        "opt/0/count": "optimizer",
        "extra/chrono/steps": "training",
    }
    assert spec.ignored.keys() == reasons.keys()
    assert all(reason in spec.ignored[name] for name, reason in reasons.items())


def test_the_head_of_an_image_tower_beside_texts_is_a_projection(tmp_path: Path) -> None:
    shape = Shape(classes=1000)
    arrays, images = parameters(shape, cls=True, table=GOOGLE), pictures(shape)
    spec = check(below("params/img/", arrays), tmp_path, reference(arrays, images), images)
    assert spec.config.projection
    assert spec.labels is None


def test_published_networks_are_named_and_an_imagenet_head_has_its_labels() -> None:
    file = described(shapes_of(Shape(grid=(14, 14), patch=16, width=192, depth=12, heads=3, mlp=768, classes=1000), True, GOOGLE))
    plan = jax.plan(file, Options())
    assert plan.arch == "Ti/16"
    assert plan.labels is not None
    assert plan.labels[:2] == ("tench", "goldfish")
    assert plan.preprocessing is not None
    assert plan.preprocessing["resize"] == {"mode": "exact", "height": 224, "width": 224}
    small = described(shapes_of(Shape(grid=(14, 14), patch=16, width=384, depth=12, heads=6, mlp=1536), table=None))
    assert jax.plan(small, Options()).config.img_size == (224, 224)


def described(shapes: dict[str, tuple[int, ...]]) -> CheckpointFile:
    """A file with names and shapes, and without values."""
    return CheckpointFile(
        Path("vit.npz"), "npz", {name: TensorInfo(shape, "F32") for name, shape in shapes.items()}, lambda _: torch.empty(0)
    )


@pytest.mark.parametrize(
    ("name", "shape", "facts"),
    [
        ("embedding/kernel", (8, 4, 3, 40), ("8 x 4", "square")),
        ("Transformer/encoderblock_1/MultiHeadDotProductAttention_0/query/kernel", (40, 4, 10), ("(40, 4, 10)", "(40, 5, 8)")),
        ("Transformer/encoderblock_1/MultiHeadDotProductAttention_0/out/kernel", (8, 5, 40), ("(8, 5, 40)", "(5, 8, 40)")),
        ("MAPHead_0/MultiHeadDotProductAttention_0/key/kernel", (40, 8, 5), ("(40, 8, 5)", "(40, 5, 8)")),
        ("Transformer/encoderblock_7/LayerNorm_0/scale", (40,), ("numbered", 0, 1, 2)),
        ("conv_root/kernel", (7, 7, 3, 64), ("hybrid", "R+ViT")),
        ("head/kernel", (40,), ("head/kernel", "(40,)", "(in, out)")),
    ],
)
def test_shapes_that_make_no_network_are_refused(name: str, shape: tuple[int, ...], facts: tuple[object, ...]) -> None:
    shapes = shapes_of(Shape(), probe=True) | {name: shape}
    with raises_mentioning(CheckpointError, *facts):
        jax.plan(described(shapes), Options())


def test_sines_and_cosines_need_a_width_that_they_fit() -> None:
    with raises_mentioning(CheckpointError, "width", 42):
        jax.plan(described(shapes_of(Shape(width=42, heads=2), table=None)), Options(img_size=(24, 24)))


def test_what_the_user_says_has_to_fit() -> None:
    file = described(shapes_of(Shape()))
    with raises_mentioning(CheckpointError, "--model-arg num_heads=4", 5):
        jax.plan(file, Options(model_args={"num_heads": "4"}))


def test_other_sources_are_not_taken_for_flax() -> None:
    assert not jax.recognise(described({"cls_token": (1, 1, 8), "Transformer/encoder_norm/scale": (8,)}))
