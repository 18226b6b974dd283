"""vit-export's options for checkpoints: what the file does not say is said on the command line, and what cannot be is one line."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from export_commands import parse_export, run_export
from helpers import assert_mentions, one_line

import vit_runtime as vit
from vit_exporter import Source
from vit_models import Options, load
from vit_runtime.cli import parity
from vit_runtime.errors import InputError
from vit_runtime.manifest import Manifest, read_manifest

CARRIED = Path(__file__).parents[1] / "data" / "checkpoints"
TORCHVISION = CARRIED / "torchvision__vit_interpolate" / "vit_interpolate.pth"
CLIP = CARRIED / "openai_clip__vit" / "clip_state_dict.pt"
HEADS = ("--model-arg", "num_heads=4")
# The exported graph compared with torch: float32 sums in another order, of outputs around 1.
RTOL, ATOL = 1e-4, 1e-5


@pytest.fixture
def out(tmp_path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "vit.onnx"


def run(out: Path, checkpoint: Path, *arguments: object, verify: bool = False) -> Result:
    return run_export("--out", out, "--checkpoint", checkpoint, *([] if verify else ["--no-verify"]), *arguments)


def exported(out: Path, checkpoint: Path, *arguments: object) -> Manifest:
    """The manifest of a file that was exported without a warning."""
    result = run(out, checkpoint, *arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    return read_manifest(out)[0]


def source_of(checkpoint: Path, *arguments: object) -> Source:
    """The network that the command would export, with its weights."""
    parsed = parse_export("--checkpoint", checkpoint, *arguments)
    assert parsed.stderr == ""
    parsed.source.fill()
    return parsed.source


def refused(out: Path, checkpoint: Path, *arguments: object, exit_code: int) -> str:
    """The one line of an error, which is all that is printed; nothing is written."""
    result = run(out, checkpoint, *arguments)
    assert (result.exit_code, result.stdout) == (exit_code, ""), result.stderr
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr)
    assert not list(out.parent.iterdir())
    return result.stderr


def outputs_of(source: Source, pixel_values: np.ndarray) -> dict[str, np.ndarray]:
    with torch.no_grad():
        values = source.model(torch.from_numpy(pixel_values.astype(np.float32)))
    return {name: value.numpy() for name, value in zip(source.model.outputs, values, strict=True)}


def reference(case: str) -> Mapping[str, np.ndarray]:
    with np.load(CARRIED / case / "case.npz") as stored:
        return {name: stored[name] for name in stored.files}


def state_dict(layout: str, classes: int = 1000) -> dict[str, torch.Tensor]:
    """A network of two blocks of width 48 for 32 x 32 pixels, by timm's or torchvision's names, every number drawn."""
    draw = torch.Generator().manual_seed(1)
    block, names = ("blocks.{}", TIMM) if layout == "timm" else ("encoder.layers.encoder_layer_{}", OF_TORCHVISION)
    linear = {"qkv": (144, 48), "proj": (48, 48), "fc1": (96, 48), "fc2": (48, 96)}
    shapes = {names["cls_token"]: (1, 1, 48), names["pos_embed"]: (1, 17, 48), f"{names['patch']}.weight": (48, 3, 8, 8)}
    shapes |= {f"{names[part]}.{kind}": (48,) for part, kind in (("patch", "bias"), ("norm", "weight"), ("norm", "bias"))}
    shapes |= {f"{names['head']}.weight": (classes, 48), f"{names['head']}.bias": (classes,)}
    for index in range(2):
        for part, shape in linear.items():
            weight, bias = names[part].split() if " " in names[part] else (f"{names[part]}.weight", f"{names[part]}.bias")
            shapes |= {f"{block.format(index)}.{weight}": shape, f"{block.format(index)}.{bias}": shape[:1]}
        shapes |= {f"{block.format(index)}.{names[part]}.{kind}": (48,) for part in ("norm1", "norm2") for kind in ("weight", "bias")}
    return {name: torch.randn(shape, generator=draw) * 0.1 for name, shape in shapes.items()}


TIMM = {part: part for part in ("cls_token", "pos_embed", "norm", "head", "norm1", "norm2")}
TIMM |= {"patch": "patch_embed.proj", "qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
OF_TORCHVISION = {"cls_token": "class_token", "pos_embed": "encoder.pos_embedding", "patch": "conv_proj", "norm": "encoder.ln"}
OF_TORCHVISION |= {
    "head": "heads.head",
    "norm1": "ln_1",
    "norm2": "ln_2",
    "fc1": "mlp.0",
    "fc2": "mlp.3",
    "proj": "self_attention.out_proj",
}
OF_TORCHVISION |= {"qkv": "self_attention.in_proj_weight self_attention.in_proj_bias"}


# ---- what the file does not say ------------------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_heads_are_asked_for_and_then_given(out):
    line = refused(out, TORCHVISION, exit_code=3)
    assert_mentions(line, "heads", "--model-arg num_heads=6", "--arch")
    source = source_of(TORCHVISION, *HEADS)
    assert (source.model.config.num_heads, source.checkpoint["format"], source.notes) == (4, "torchvision", ())


@pytest.mark.unit
def test_a_named_architecture_says_how_pictures_are_prepared(tmp_path):
    torch.save(state_dict("timm", classes=5), tmp_path / "mine.pth")
    (note,) = source_of(tmp_path / "mine.pth", "--model-arg", "num_heads=3").notes
    assert_mentions(note, "RGB", "32x32")
    source = source_of(tmp_path / "mine.pth", "--arch", "vit_tiny_patch16_224", "--model-arg", "num_heads=3")
    assert source.notes == ()
    assert (source.arch, source.model.config.patch_size) == ("vit_tiny_patch16_224", 8)
    assert (source.preprocessing.interpolation, source.preprocessing.crop) == ("bicubic", (32, 32))  # 224 of 248 pixels, as timm
    assert source.preprocessing.resize.size_of(35, 35) == (35, 35)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["--format", "tim"], ("tim", "vit-deploy", "hugging-face", "timm", "torchvision")),
        (["--format", "timm"], ("timm", "torchvision", "--format")),
        (["--arch", "vit_b_17"], ("--arch", "vit_b_17", "vit_b_16")),
        (["--arch", "vit_b_16"], ("--arch", "vit_b_16", 16, 768, 12, 3072)),
        (["--model-arg", "num_heads"], ("--model-arg", "num_heads", "NAME=VALUE")),
        (["--model-arg", "=4"], ("--model-arg", "=4", "NAME=VALUE")),
        (["--model-arg", "heads=4"], ("--model-arg", "heads", "torchvision", "image_size", "patch_size")),
        (["--model-arg", "num_heads=four"], ("--model-arg", "num_heads=four")),
        (["--model-arg", "num_heads=7"], (40, 7, "heads")),
        ([*HEADS, "--model-arg", "patch_size=16"], ("--model-arg", "patch_size=16", 8)),
        ([*HEADS, "--weights", "ema"], ("EMA", "--weights")),
        ([*HEADS, "--img-size", "50"], ("height", 50, 8, 48, 56)),
        ([*HEADS, "--pool", "map"], ("map", "probe")),
        ([*HEADS, "--num-classes", "5"], (7, "--num-classes", "--drop-head")),
        ([*HEADS, "--sha256", "12345"], ("12345", 64)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_option_that_cannot_be_is_one_line_and_exit_code_2(out, arguments, facts):
    assert_mentions(refused(out, TORCHVISION, *arguments, exit_code=2), *facts)


@pytest.mark.unit
def test_the_right_format_changes_nothing():
    plain, named = source_of(TORCHVISION, *HEADS), source_of(TORCHVISION, *HEADS, "--format", "torchvision")
    assert (plain.arch, plain.checkpoint, plain.preprocessing, plain.labels) == (
        named.arch, named.checkpoint, named.preprocessing, named.labels,
    )  # fmt: skip
    assert plain.model.config == named.model.config
    for name, values in plain.model.state_dict().items():
        assert torch.equal(values, named.model.state_dict()[name])


@pytest.mark.unit
@pytest.mark.parametrize(("weights", "suffix"), [("ema", "_ema"), ("model", "")])
def test_the_weights_that_are_asked_for_are_taken_and_said_aloud(weights, suffix):
    expected = reference("timm__wrappers")
    source = source_of(CARRIED / "timm__wrappers" / "timm_train.pth.tar", "--weights", weights)
    (note,) = (note for note in source.notes if "--weights" in note)
    assert_mentions(note, f"state_dict{suffix}", f"--weights {'model' if suffix else 'ema'}")
    outputs = outputs_of(source, expected["pixel_values"])
    np.testing.assert_allclose(outputs["logits"], expected[f"logits{suffix}"], rtol=0, atol=5e-5)  # a swapped set shows at 0.1


@pytest.mark.unit
def test_a_checkpoint_is_pinned_by_its_sha256(out):
    digest = hashlib.sha256(TORCHVISION.read_bytes()).hexdigest()
    assert_mentions(refused(out, TORCHVISION, *HEADS, "--sha256", digest[::-1], exit_code=3), digest, digest[::-1])
    assert source_of(TORCHVISION, *HEADS, "--sha256", digest.upper()).checkpoint["sha256"] == digest


# ---- head, pooling, labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize("arguments", [["--drop-head"], ["--num-classes", "0"], ["--drop-head", "--num-classes", "7"]], ids=" ".join)
def test_the_head_can_be_left_out(arguments):
    source = source_of(TORCHVISION, *HEADS, *arguments)
    assert (source.model.outputs, source.model.config.num_classes, source.labels) == (("embedding",), 0, None)
    pixels = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
    model, _ = load(TORCHVISION, Options(model_args={"num_heads": "4"}), outputs=["embedding"])
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels))[0].numpy()
    np.testing.assert_array_equal(outputs_of(source, pixels)["embedding"], expected)  # the same operations, so no tolerance


@pytest.mark.unit
def test_another_pooling_is_said_aloud_and_refused_where_the_head_cannot_read_it(out):
    source = source_of(TORCHVISION, *HEADS, "--pool", "mean")
    (note,) = source.notes
    assert_mentions(note, "mean", "cls")
    assert source.model.config.pool == "mean"
    line = refused(out, CARRIED / "hf__dinov2_registers_cls", "--pool", "cls", exit_code=2)
    assert_mentions(line, "cls_mean", "--pool", "--drop-head")
    source = source_of(CARRIED / "hf__dinov2_registers_cls", "--pool", "cls", "--drop-head")
    assert source.model.config.embedding_dim == 44


@pytest.mark.unit
def test_labels_are_the_checkpoints_own_unless_a_file_gives_others(out, tmp_path):
    path = CARRIED / "hf__vit_cls_bf16"
    own = json.loads((path / "config.json").read_text())["id2label"]
    assert source_of(path).labels == tuple(own[str(index)] for index in range(7))
    (tmp_path / "labels.txt").write_text("".join(f"kind {index}\n" for index in range(7)))
    assert source_of(path, "--labels", tmp_path / "labels.txt").labels == tuple(f"kind {index}" for index in range(7))
    (tmp_path / "labels.txt").write_text("one\ntwo\n")
    assert_mentions(refused(out, path, "--labels", tmp_path / "labels.txt", exit_code=2), "labels", 2, 7)


@pytest.mark.unit
@pytest.mark.parametrize(("path", "arguments"), [(CLIP, []), (TORCHVISION, [*HEADS, "--drop-head"])], ids=["projection", "no head"])
def test_there_is_nothing_to_label_without_classes(out, tmp_path, path, arguments):
    (tmp_path / "labels.txt").write_text("name\n" * 40)
    line = refused(out, path, *arguments, "--labels", tmp_path / "labels.txt", exit_code=2)
    assert_mentions(line, 40, "--labels")


@pytest.mark.unit
@pytest.mark.parametrize("layout", ["timm", "torchvision"])
def test_a_thousand_classes_without_names_are_those_of_imagenet(tmp_path, layout):
    torch.save(state_dict(layout), tmp_path / "thousand.pth")
    labels = source_of(tmp_path / "thousand.pth", "--model-arg", "num_heads=3").labels
    assert labels is not None
    assert (len(labels), labels[0], labels[207], labels[999]) == (1000, "tench", "golden retriever", "toilet tissue")


def test_a_projection_has_no_labels_and_no_classes(out):
    result = run(out, CLIP)
    assert result.exit_code == 0
    assert_mentions(result.stdout, "vit-predict", "--embeddings")
    manifest, _ = read_manifest(out)
    assert (manifest.model["projection"], manifest.labels, manifest.class_scores) == (True, None, None)
    model, expected = vit.load(out, "cpu"), reference("openai_clip__vit")
    found = model.run(expected["pixel_values"].astype(np.float32))["logits"]
    np.testing.assert_allclose(found, expected["logits"], rtol=0, atol=5e-5)
    assert model.embed(np.zeros((40, 50, 3), np.uint8)).shape == (40,)


# ---- image size ----------------------------------------------------------------------------------------------------------------------


RESAMPLED = [
    pytest.param(TORCHVISION, HEADS, ("32 x 32", "48 x 40", "bicubic_align_corners"), id="table"),
    pytest.param(CARRIED / "google_vit__prelogits" / "prelogits.npz", (), ("48 x 40", "bilinear_align_corners"), id="another table"),
    pytest.param(CARRIED / "dinov3__vit" / "vit.pth", (), None, id="rotary"),
    pytest.param(CARRIED / "hf__beit_cls", (), None, id="relative"),
]


@pytest.mark.unit
@pytest.mark.parametrize(("path", "options", "facts"), RESAMPLED)
def test_a_resampled_table_is_said_aloud(path, options, facts):
    source = source_of(path, *options, "--img-size", "48,40")
    assert (source.model.config.img_size, source.preprocessing.output_size) == ((48, 40), (48, 40))
    assert len(source.notes) == (0 if facts is None else 1)
    for note in source.notes:
        assert_mentions(note, *facts)


@pytest.mark.parametrize(
    ("path", "options"),
    [pytest.param(*param.values[:2], marks=() if param.id == "table" else pytest.mark.full, id=param.id) for param in RESAMPLED],
)
def test_another_image_size_is_exported(out, path, options):
    result = run(out, path, *options, "--img-size", "48,40")
    assert result.exit_code == 0
    manifest, _ = read_manifest(out)
    assert (manifest.image_size, manifest.preprocessing.output_size) == ((48, 40), (48, 40))
    model, _ = load(path, Options(img_size=(48, 40), model_args=dict(option.split("=") for option in options[1:])), outputs=["embedding"])
    pixels = np.random.default_rng(0).standard_normal((2, 3, 48, 40), np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels))[0].numpy()
    np.testing.assert_allclose(vit.load(out, "cpu").run(pixels)["embedding"], expected, rtol=RTOL, atol=ATOL)


@pytest.fixture(scope="module")
def free(tmp_path_factory) -> tuple[Path, str]:
    """A file with free height and width, made of a checkpoint with a position table, and what the command said."""
    out = tmp_path_factory.mktemp("free") / "vit.onnx"
    result = run(out, CARRIED / "hf__dinov2_registers_cls", "--dynamic-size", verify=True)
    assert (result.exit_code, result.stderr) == (0, "")
    return out, result.stdout


def test_a_free_size_is_proven_at_several_sizes(free):
    out, said = free
    sizes = {f"{height}x{width}" for height, width in (golden.image_size for golden in read_manifest(out)[0].goldens)}
    assert len(sizes) == 4
    assert_mentions(said, "1, 2, 3, 7, 4", *sizes)
    result = CliRunner().invoke(parity.main, [str(out), "--batch-sizes", "1"])
    assert result.exit_code == 0
    assert sizes == set(re.findall(r"^  \w+ +1 +(\d+x\d+) +golden ", result.stdout, re.MULTILINE))


def test_a_free_size_takes_multiples_of_the_patch_and_refuses_others_in_one_line(free):
    model = vit.load(free[0], "cpu")
    assert (model.manifest.multiple_of, model.manifest.image_size) == (8, (24, 24))
    for size in ((24, 24), (8, 8), (40, 16), (64, 72)):
        pixels = np.random.default_rng(1).standard_normal((2, 3, *size), np.float32)
        network, _ = load(CARRIED / "hf__dinov2_registers_cls", Options(img_size=size))
        with torch.no_grad():
            expected = dict(zip(network.outputs, network(torch.from_numpy(pixels)), strict=True))
        for name, values in model.run(pixels).items():
            np.testing.assert_allclose(values, expected[name].numpy(), rtol=RTOL, atol=ATOL)
    for shape in ((24, 25), (12, 24), (0, 24), (24,), (24, 24, 1)):
        with pytest.raises(InputError) as error:
            model.run(np.zeros((1, 3, *shape), np.float32))
        assert_mentions(one_line(error), "height", "width", 8, *shape)
    assert model.predict(np.zeros((50, 30, 3), np.uint8)).logits.shape == (10,)


@pytest.mark.unit
def test_a_network_of_one_size_cannot_have_a_free_one(out):
    assert_mentions(refused(out, CARRIED / "hf__beit_cls", "--dynamic-size", exit_code=2), "relative", "--img-size")


# ---- what is said aloud --------------------------------------------------------------------------------------------------------------


def test_notes_are_warnings_on_stderr_and_a_list_in_the_document(out):
    result = run(out, TORCHVISION, *HEADS, "--img-size", "48", "--pool", "mean", "--json")
    assert result.exit_code == 0
    notes = json.loads(result.stdout)["notes"]
    assert len(notes) == 2
    assert_mentions(notes[0], "mean", "cls")
    assert_mentions(notes[1], "32 x 32", "48 x 48")
    assert result.stderr == "".join(f"warning: {note}\n" for note in notes)
