"""Networks are rebuilt from ONNX files as every exporter writes them, with the outputs that the files have in onnxruntime.

The networks here are from transformers, and one written below in the manner of timm, all with random parameters.
"""

from __future__ import annotations

import json
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxsim
import pytest
import torch
import transformers as hf
from checkpoint_files import raises_mentioning
from helpers import assert_mentions
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

from vit_models import CheckpointError, Options, Spec, ViTConfig, inspect, load
from vit_models.checkpoints import onnx_graph
from vit_models.checkpoints.claims import shown

TOLERANCE = 2e-5  # of the original's root mean square: twenty times what onnxruntime and torch differ by; a tanh GELU is 1e-4 off


# --- networks ---------------------------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Packed qkv, unpacked as timm does, fused or spelled out; or in heads that lie the other way round."""

    def __init__(self, width, heads, fused, interleaved=False):
        super().__init__()
        self.heads, self.fused, self.interleaved = heads, fused, interleaved
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        batch, tokens, width = x.shape
        if self.interleaved:  # each head's queries, keys and values together
            q, k, v = self.qkv(x).reshape(batch, tokens, self.heads, 3, width // self.heads).permute(3, 0, 2, 1, 4).unbind(0)
        else:
            q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = ((q * (width // self.heads) ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    def __init__(self, width, heads, hidden, activation, scaled, fused, interleaved):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, fused, interleaved)
        self.fc1, self.fc2, self.activation = nn.Linear(width, hidden), nn.Linear(hidden, width), activation
        self.ls1, self.ls2 = (nn.Parameter(torch.ones(width)) if scaled else 1.0 for _ in range(2))

    def forward(self, x):
        x = x + self.attn(self.norm1(x)) * self.ls1
        return x + self.fc2(self.activation(self.fc1(self.norm2(x)))) * self.ls2


class Timm(nn.Module):
    """A Vision Transformer as timm tells it, images of 32 x 48."""

    def __init__(
        self, *, width=32, heads=4, hidden=56, depth=2, prefix=1, pool="token", fc_norm=False, classes=5, activation=None, scaled=False,
        fused=True, interleaved=False, no_embed=False,
    ):  # fmt: skip
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 8, 8)
        self.tokens = nn.Parameter(torch.zeros(1, prefix, width)) if prefix else None
        self.pos_embed = nn.Parameter(torch.zeros(1, 24 + (0 if no_embed else prefix), width))
        blocks = (Block(width, heads, hidden, activation or nn.GELU(), scaled, fused, interleaved) for _ in range(depth))
        self.blocks, self.pool, self.prefix, self.no_embed = nn.ModuleList(blocks), pool, prefix, no_embed
        self.norm = nn.Identity() if fc_norm else nn.LayerNorm(width, eps=1e-6)
        self.fc_norm = nn.LayerNorm(width, eps=1e-6) if fc_norm else nn.Identity()
        self.head = nn.Linear(width, classes) if classes else nn.Identity()

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = x + self.pos_embed if self.no_embed else x
        x = x if self.tokens is None else torch.cat([self.tokens.expand(x.shape[0], -1, -1), x], dim=1)
        x = x if self.no_embed else x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(self.fc_norm(x[:, 0] if self.pool == "token" else x[:, self.prefix :].mean(dim=1)))


class Tensors(nn.Module):
    """A transformers model whose outputs are its tensors."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return tuple(value for value in self.model(x).to_tuple() if torch.is_tensor(value))


class QuickGelu(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


WIDTHS: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL: dict[str, Any] = {**WIDTHS, "intermediate_size": 56, "image_size": 32, "patch_size": 8}
DINO: dict[str, Any] = {**WIDTHS, "mlp_ratio": 2, "image_size": 70, "patch_size": 14}
EAGER: dict[str, Any] = {"attn_implementation": "eager"}
CLASSES: dict[str, Any] = {"num_labels": 5}
NETWORKS = {
    "vit": lambda: Tensors(hf.ViTForImageClassification(hf.ViTConfig(**SMALL, **EAGER, **CLASSES))),
    "vit pooler": lambda: Tensors(hf.ViTModel(hf.ViTConfig(**SMALL, **EAGER, num_channels=1))),
    "deit": lambda: Tensors(hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**SMALL, **CLASSES))),
    "dinov2": lambda: Tensors(hf.Dinov2Model(hf.Dinov2Config(**DINO))),
    "dinov2 classifier": lambda: Tensors(hf.Dinov2ForImageClassification(hf.Dinov2Config(**DINO, **EAGER, **CLASSES))),
    "dinov2 swiglu": lambda: Tensors(hf.Dinov2Model(hf.Dinov2Config(**DINO, use_swiglu_ffn=True))),
    "dinov2 registers": lambda: Tensors(hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**DINO))),
    "clip": lambda: Tensors(hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**SMALL, projection_dim=24))),
    "siglip": lambda: Tensors(hf.SiglipVisionModel(hf.SiglipVisionConfig(**SMALL))),
    "beit": lambda: Tensors(hf.BeitForImageClassification(hf.BeitConfig(**SMALL, **CLASSES, use_relative_position_bias=True))),
    "timm": lambda: Timm(),
    "timm spelled out": lambda: Timm(fused=False, scaled=True, prefix=3, pool="avg", fc_norm=True),
    "timm interleaved": lambda: Timm(interleaved=True, fused=False, heads=8, depth=3),
    "timm no_embed": lambda: Timm(no_embed=True, prefix=5, activation=nn.SiLU()),
    "timm no prefix": lambda: Timm(prefix=0, pool="avg", activation=nn.GELU(approximate="tanh")),
    "timm embedder": lambda: Timm(classes=0, activation=QuickGelu(), width=48, heads=3),
}
SIZES = {"timm": (32, 48), "dinov2": (70, 70)}


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The network with every parameter random, and images for it."""
    torch.manual_seed(len(name))
    model = NETWORKS[name]().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model, torch.randn(2, 1 if name == "vit pooler" else 3, *SIZES.get(name.split()[0], (32, 32)))


def export(name: str, opset: int, path: Path, free: tuple[int, ...] = (0,)) -> Path:
    """The network as torch exports it, by TorchScript below opset 18, with these axes of the images free."""
    model, images = build(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing, and that TorchScript's exporter is old
        if opset < 18:
            axes = {"images": dict(zip(free, "bchw", strict=False))} if free else None
            torch.onnx.export(model, (images,), str(path), dynamo=False, opset_version=opset, input_names=["images"], dynamic_axes=axes)
        else:
            shapes = (dict.fromkeys(free, "batch"),)
            program = torch.onnx.export(model, (images,), dynamo=True, opset_version=opset, dynamic_shapes=shapes, verbose=False)
            assert program is not None
            program.save(path, external_data=False)
    return path


@pytest.fixture(scope="module")
def timm_file(tmp_path_factory):
    """The timm network at opset 17, batch free. Copy it before you change it."""
    return export("timm", 17, tmp_path_factory.mktemp("timm") / "timm.onnx")


def compare(path: Path) -> tuple[ViTConfig, Spec]:
    """The rebuilt configuration, after comparing every output with the original."""
    file = onnx_graph.open_onnx(path)
    assert onnx_graph.recognise(file)
    model, spec = load(path, Options(img_size=file.extras["img_size"]))
    places = onnx_graph.landmarks(file)
    original = onnx.load(path)
    already = {output.name for output in original.graph.output}
    original.graph.output.extend(onnx.ValueInfoProto(name=value) for value in set(places.values()) - already)
    session = onnxruntime.InferenceSession(original.SerializeToString(), providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    images = np.random.default_rng(0).standard_normal((2, model.config.in_chans, *model.config.img_size), np.float32)
    expected = dict(zip(places, session.run(list(places.values()), {given.name: images}), strict=True))
    whole = type(model)(model.config, tuple(places)).eval()
    whole.load_state_dict(model.state_dict())
    with torch.no_grad():
        found = dict(zip(whole.outputs, whole(torch.from_numpy(images)), strict=True))
    for name, numbers in expected.items():
        error = np.abs(found[name].numpy() - numbers).max() / np.sqrt(np.square(numbers).mean())
        assert error < TOLERANCE, (name, error)
    return model.config, spec


# --- what is rebuilt ------------------------------------------------------------------------------------------------------------------


# These are read a second time after onnxsim has rewritten the graph.
SIMPLIFIED = (("vit", 11), ("clip", 17), ("timm spelled out", 13), ("timm", 14), ("timm", 18))


@pytest.mark.parametrize(
    ("name", "opset", "expected"),
    [
        ("vit", 11, {"activation": "gelu", "layer_norm_eps": 1e-12, "pool": "cls", "num_classes": 5, "num_heads": 4}),
        ("vit pooler", 13, {"representation_size": 32, "num_classes": 0, "in_chans": 1}),
        ("deit", 14, {"distilled": True, "pool": "cls_dist_mean", "num_classes": 5}),
        ("dinov2", 14, {"layer_scale": True, "resample": "bicubic", "layer_norm_eps": 1e-6, "patch_size": 14}),
        ("dinov2 classifier", 17, {"pool": "cls_mean", "num_classes": 5}),
        ("dinov2 swiglu", 14, {"gated_mlp": True, "activation": "silu"}),
        ("clip", 17, {"pre_norm": True, "activation": "quick_gelu", "final_norm": "pooled", "projection": True, "num_classes": 24}),
        ("siglip", 14, {"pool": "map", "activation": "gelu_tanh", "class_token": False}),
        ("beit", 17, {"rel_pos_bias": True, "final_norm": "pooled", "pool": "mean"}),
        ("timm", 14, {"img_size": (32, 48), "mlp_dim": 56, "layer_scale": False, "projection": False}),
        ("timm spelled out", 13, {"pool": "mean", "final_norm": "pooled", "num_registers": 2, "layer_scale": True}),
        ("timm interleaved", 11, {"num_heads": 8, "depth": 3}),
        ("timm no_embed", 17, {"num_registers": 4, "activation": "silu"}),
        ("timm no prefix", 17, {"class_token": False, "activation": "gelu_tanh", "pool": "mean"}),
        ("timm embedder", 14, {"num_classes": 0, "embed_dim": 48, "num_heads": 3, "activation": "quick_gelu"}),
        ("timm", 18, {"depth": 2}),
        ("dinov2 registers", 20, {"num_registers": 4, "pool": "cls"}),
    ],
)
def test_a_network_is_rebuilt_with_its_outputs(name: str, opset: int, expected: dict[str, Any], tmp_path: Path) -> None:
    path = export(name, opset, tmp_path / "model.onnx")
    config, _ = compare(path)
    assert {field: getattr(config, field) for field in expected} == expected
    if (name, opset) in SIMPLIFIED:
        simplified, _ = onnxsim.simplify(onnx.load(path))
        onnx.save(simplified, tmp_path / "simplified.onnx")
        assert compare(tmp_path / "simplified.onnx")[0] == config


@pytest.mark.parametrize("free", [(), (0, 1, 2, 3)])
def test_a_file_fixed_to_two_images_or_free_in_everything_is_read_too(free, tmp_path):
    config, _ = compare(export("timm spelled out" if free == () else "dinov2", 17, tmp_path / "model.onnx", free))
    assert config.depth == 2


def test_positions_that_the_graph_resamples_are_taken_as_they_are_stored(tmp_path):
    """A table of 5 x 5 in a graph that is fixed to 7 x 4 patches: both its own size and the table's are there."""
    path, (model, _) = tmp_path / "model.onnx", build("dinov2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (torch.randn(1, 3, 98, 56),), str(path), dynamo=False, opset_version=17)
    assert onnx_graph.open_onnx(path).extras["img_size"] == (98, 56)
    recovered, spec = load(path, Options(img_size=(70, 70)))
    assert spec.trained_size == (70, 70)
    stored = model.get_parameter("model.embeddings.position_embeddings").detach()[:, 1:]
    torch.testing.assert_close(recovered.get_parameter("embeddings.pos_embed")[:, 1:], stored, rtol=0, atol=0)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(1).standard_normal((1, 3, 98, 56), np.float32)
    at_size, spec = load(path, outputs=("tokens",))
    assert spec.config.img_size == (98, 56)  # the size of the file itself
    with torch.no_grad():
        (tokens,) = at_size(torch.from_numpy(images))
    np.testing.assert_allclose(tokens.numpy(), session.run(None, {session.get_inputs()[0].name: images})[0], rtol=0, atol=TOLERANCE)


def test_weights_come_back_bit_for_bit(timm_file):
    source, _ = build("timm")
    recovered, _ = load(timm_file)
    theirs, ours = source.state_dict(), recovered.state_dict()
    for number in range(2):
        for mine, name in (
            ("attn.qkv", "attn.qkv"),
            ("attn.proj", "attn.proj"),
            ("mlp.fc1", "fc1"),
            ("mlp.fc2", "fc2"),
            ("norm2", "norm2"),
        ):
            for part in ("weight", "bias"):
                torch.testing.assert_close(ours[f"blocks.{number}.{mine}.{part}"], theirs[f"blocks.{number}.{name}.{part}"], rtol=0, atol=0)
    torch.testing.assert_close(ours["embeddings.patch_embed.proj.weight"], theirs["patch_embed.weight"], rtol=0, atol=0)
    torch.testing.assert_close(ours["embeddings.pos_embed"][:, 1:], theirs["pos_embed"][:, 1:], rtol=0, atol=0)
    torch.testing.assert_close(ours["embeddings.cls_token"][0], theirs["tokens"][0] + theirs["pos_embed"][0, :1], rtol=0, atol=0)


def test_float16_weights_are_widened(timm_file, tmp_path):
    model, halved = onnx.load(timm_file), {}
    for tensor in [each for each in model.graph.initializer if each.data_type == TensorProto.FLOAT and each.dims]:
        halved[tensor.name] = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(halved[tensor.name], tensor.name))
    for node in model.graph.node:
        node.input[:] = [f"{name}/wide" if name in halved else name for name in node.input]
    casts = [helper.make_node("Cast", [name], [f"{name}/wide"], to=TensorProto.FLOAT) for name in halved]
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, tmp_path / "half.onnx")
    _, spec = compare(tmp_path / "half.onnx")
    assert spec.dtypes == ("F16",)


def test_weights_in_a_file_beside_it_are_read_from_there(timm_file, tmp_path):
    onnx.save(onnx.load(timm_file), tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    recovered, _ = load(tmp_path / "model.onnx")
    expected, _ = load(timm_file)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(recovered.state_dict()[name], value, rtol=0, atol=0)


def test_what_follows_the_transformer_is_left_out_and_said(timm_file, tmp_path):
    model = onnx.load(timm_file)
    norm = next(node for node in reversed(model.graph.node) if node.op_type == "LayerNormalization")
    kernel = numpy_helper.from_array(np.ones((4, 32, 1), np.float32), "decoder.weight")
    model.graph.initializer.append(kernel)
    model.graph.node.append(helper.make_node("Transpose", [norm.output[0]], ["turned"], "decoder/turn", perm=[0, 2, 1]))
    model.graph.node.append(helper.make_node("Conv", ["turned", "decoder.weight"], ["map"], "decoder/conv"))
    model.graph.output.append(onnx.ValueInfoProto(name="map"))
    onnx.save(model, tmp_path / "model.onnx")
    _, spec = load(tmp_path / "model.onnx")
    assert_mentions(spec.ignored["decoder.weight"], "after")
    note = next(note for note in spec.notes if "decoder/turn (Transpose)" in note)
    assert_mentions(note, 2, 1)


# --- what is refused --------------------------------------------------------------------------------------------------------------------


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
        )

    def forward(self, x):
        return self.layers(x)


class PostNorm(nn.Module):
    """Patches, then blocks that normalise after the sum, as the first transformers did."""

    def __init__(self):
        super().__init__()
        self.patch_embed, self.attn, self.norm = nn.Conv2d(3, 32, 8, 8), Attention(32, 4, False), nn.LayerNorm(32)

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        return self.norm(x + self.attn(x))


class OddBlock(Timm):
    """A second block that adds the tanh of its attention."""

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        first, second = self.blocks
        assert self.tokens is not None
        assert isinstance(second, Block)
        x = torch.cat([self.tokens.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        x = first(x)
        x = x + torch.tanh(second.attn(second.norm1(x)))
        return self.norm(x)


TEXT: dict[str, Any] = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 56}


@pytest.mark.parametrize(
    ("model", "inputs", "facts"),
    [
        (ConvNet, (torch.randn(1, 3, 32, 32),), ("/layers/layers.0/Conv (Conv)", "patches")),
        (PostNorm, (torch.randn(1, 3, 32, 32),), ("LayerNorm", "attention")),
        (OddBlock, (torch.randn(1, 3, 32, 48),), ("/attn/proj/Add (Add)", "block 2")),
        (
            lambda: Tensors(hf.BertModel(hf.BertConfig(**TEXT))),
            (torch.zeros(1, 7, dtype=torch.int64),),
            ("input", "(batch, channels, height, width)"),
        ),
    ],
    ids=["convnet", "post-norm", "odd block", "bert"],
)
def test_another_network_is_refused_at_the_first_node_that_is_none_of_a_vit(model, inputs, facts, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model().eval(), inputs, str(tmp_path / "model.onnx"), dynamo=False, opset_version=17)
    with raises_mentioning(CheckpointError, *facts):
        load(tmp_path / "model.onnx")


def test_a_wish_that_an_onnx_file_leaves_no_room_for_is_refused(timm_file):
    with raises_mentioning(CheckpointError, "graph", "num_heads"):
        onnx_graph.plan(onnx_graph.open_onnx(timm_file), Options(model_args={"num_heads": "3"}))


@pytest.mark.parametrize("kept", [0, 1, 100, 5000, -1])
def test_a_truncated_file_is_refused(kept, timm_file, tmp_path):
    (tmp_path / "model.onnx").write_bytes(timm_file.read_bytes()[:kept])
    with raises_mentioning(CheckpointError, "model.onnx"):
        onnx_graph.open_onnx(tmp_path / "model.onnx")


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", "sub/../../weights.bin", "link", ""])
def test_weights_outside_of_the_folder_are_refused(location, timm_file, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(1 << 20))
    (folder / "link").symlink_to(tmp_path / "weights.bin")
    model = onnx.load(timm_file)
    tensor = next(each for each in model.graph.initializer if each.dims)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with raises_mentioning(CheckpointError, shown(location), "folder"):
        onnx_graph.open_onnx(folder / "model.onnx")


@pytest.mark.parametrize(("entries", "facts"), [({"length": "12"}, (12, "tensor")), ({"offset": "9999999"}, ("weights.bin",))])
def test_weights_beside_it_have_to_be_as_long_as_the_file_says(entries, facts, timm_file, tmp_path):
    onnx.save(onnx.load(timm_file), tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        entry.value = entries.get(entry.key, entry.value)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with raises_mentioning(CheckpointError, *facts):
        onnx_graph.open_onnx(tmp_path / "model.onnx")


def test_weights_that_are_not_beside_it_are_asked_for(timm_file, tmp_path):
    onnx.save(onnx.load(timm_file), tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    with raises_mentioning(CheckpointError, "weights.bin", "copy"):
        onnx_graph.open_onnx(tmp_path / "model.onnx")


@pytest.mark.parametrize("inputs", [60, pytest.param(200, marks=pytest.mark.full)])
def test_no_mutation_of_a_file_gives_anything_but_a_network_or_one_clear_error(inputs: int, timm_file: Path, tmp_path: Path) -> None:
    original, draw = timm_file.read_bytes(), random.Random(0)
    weights = [numpy_helper.to_array(tensor).tobytes() for tensor in onnx.load(timm_file).graph.initializer if len(tensor.raw_data) > 1000]
    places = list(range(len(original)))
    for content in weights:  # any values are valid: mutate what describes them
        start = original.find(content)
        places = [place for place in places if not start <= place < start + len(content)]
    path = tmp_path / "model.onnx"
    read, refusals = 0, list[str]()
    for _ in range(inputs):
        mutated = bytearray(original)
        for _ in range(draw.choice((1, 1, 2, 8))):
            mutated[draw.choice(places)] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
        path.write_bytes(mutated)
        try:
            onnx_graph.plan(onnx_graph.open_onnx(path), Options())
            read += 1
        except CheckpointError as error:
            refusals.append(str(error))
    assert read > 5
    assert len(refusals) > 5
    assert not [refusal for refusal in refusals if "\n" in refusal]


def test_labels_and_preprocessing_beside_it_are_taken(timm_file, tmp_path):
    """A folder that was exported from Hugging Face has both."""
    folder = tmp_path / "exported"
    folder.mkdir()
    shutil.copy(timm_file, folder / "model.onnx")
    alone = inspect(folder)
    assert alone.preprocessing is None
    assert any("pixel values" in note for note in alone.notes)
    names = [f"class {index}" for index in range(alone.config.num_classes)]
    (folder / "config.json").write_text(json.dumps({"model_type": "vit", "id2label": dict(enumerate(names))}))
    height, width = alone.config.img_size
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": height, "width": width}, "image_mean": [0.1, 0.2, 0.3]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    described = inspect(folder)
    assert described.labels == tuple(names)
    assert described.preprocessing is not None
    assert described.preprocessing["mean"] == [0.1, 0.2, 0.3]
    assert not any("pixel values" in note for note in described.notes)
