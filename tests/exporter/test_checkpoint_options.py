"""vit-export's options for checkpoints: what the file does not say is said on the command line, and what cannot be is one line."""

import hashlib
import json
import re
import signal
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import vit_runtime as vit
from vit_exporter.cli import main
from vit_models import Options, load
from vit_runtime.cli import parity
from vit_runtime.errors import InputError
from vit_runtime.manifest import Manifest, read_manifest

CARRIED = Path(__file__).parents[1] / "data" / "checkpoints"
TORCHVISION = CARRIED / "torchvision__vit_interpolate" / "vit_interpolate.pth"
CLIP = CARRIED / "openai_clip__vit" / "clip_state_dict.pt"
HEADS = ("--model-arg", "num_heads=4")
# The exported graph against torch: float32 sums in another order, of outputs around 1.
SAME_BUT_FOR_ORDER = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(autouse=True)
def own_signals():
    """The command answers SIGTERM in its own way; the tests' process gets its old way back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def out(tmp_path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "vit.onnx"


def run(out: Path, checkpoint: Path, *arguments: object, verify: bool = False) -> Result:
    words = ["--out", out, "--checkpoint", checkpoint, *([] if verify else ["--no-verify"]), *arguments]
    result = CliRunner().invoke(main, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception  # a traceback, which no user may see
    return result


def exported(out: Path, checkpoint: Path, *arguments: object) -> Manifest:
    """The manifest of a file that was exported without a word of warning."""
    result = run(out, checkpoint, *arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    return read_manifest(out)[0]


def refused(out: Path, checkpoint: Path, *arguments: object, exit_code: int) -> str:
    """The one line of an error, which is all that is printed; nothing is written."""
    result = run(out, checkpoint, *arguments)
    assert (result.exit_code, result.stdout) == (exit_code, ""), result.stderr
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr)
    assert not list(out.parent.iterdir())
    return result.stderr


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


def test_heads_are_asked_for_and_then_given(out):
    line = refused(out, TORCHVISION, exit_code=3)
    assert "the number of heads is not in the file" in line
    assert "give it with --model-arg num_heads=6, or --arch NAME" in line
    manifest = exported(out, TORCHVISION, *HEADS)
    assert (manifest.model["num_heads"], manifest.checkpoint["format"]) == (4, "torchvision")


def test_a_named_architecture_says_how_pictures_are_prepared(out, tmp_path):
    torch.save(state_dict("timm", classes=5), tmp_path / "mine.pth")
    result = run(out, tmp_path / "mine.pth", "--model-arg", "num_heads=3")
    assert result.exit_code == 0
    assert "warning: nothing says how pictures are prepared for these weights: took the paper's way, RGB, resize to 32x32" in result.stderr
    manifest = exported(out, tmp_path / "mine.pth", "--arch", "vit_tiny_patch16_224", "--model-arg", "num_heads=3", "--force")
    assert (manifest.model["arch"], manifest.model["patch_size"]) == ("vit_tiny_patch16_224", 8)
    assert (manifest.preprocessing.interpolation, manifest.preprocessing.crop) == ("bicubic", (32, 32))  # 224 of 248 pixels, as timm
    assert manifest.preprocessing.resize.size_of(35, 35) == (35, 35)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "tim"], "got format 'tim', expected one of vit-deploy, hugging-face, timm, torchvision, "),
        (["--format", "timm"], "is not laid out like timm, but like torchvision; leave --format out"),
        (["--arch", "vit_b_17"], "got --arch vit_b_17, expected one of vit_b_16, "),
        (["--arch", "vit_b_16"], "got --arch vit_b_16, which has patches of 16, width 768, depth 12 and MLP width 3072, but the file has "),
        (["--model-arg", "num_heads"], "got --model-arg 'num_heads', expected NAME=VALUE, such as num_heads=6"),
        (["--model-arg", "=4"], "got --model-arg '=4', expected NAME=VALUE"),
        (["--model-arg", "heads=4"], "got --model-arg heads, which torchvision does not read; expected one of image_size, patch_size, "),
        (["--model-arg", "num_heads=four"], "got --model-arg num_heads=four, expected a whole number"),
        (["--model-arg", "num_heads=7"], "got embed_dim 40 with 7 heads, expected a width that the heads divide evenly"),
        ([*HEADS, "--model-arg", "patch_size=16"], "got --model-arg patch_size=16, but it is 8 by the file's own shapes; leave it out"),
        ([*HEADS, "--weights", "ema"], "holds one set of weights and does not say that they are an EMA's; leave --weights out"),
        ([*HEADS, "--img-size", "50"], "got image height 50, which patches of 8 do not divide; the nearest sizes that work are 48 and 56"),
        ([*HEADS, "--pool", "map"], "got pool 'map', but these weights have no learned probe"),
        ([*HEADS, "--num-classes", "5"], "these weights have a head of 7; leave --num-classes out, or give --drop-head"),
        ([*HEADS, "--sha256", "12345"], "got the SHA-256 '12345', expected 64 hexadecimal digits, as sha256sum prints them"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_option_that_cannot_be_is_one_line_and_exit_code_2(out, arguments, words):
    assert words in refused(out, TORCHVISION, *arguments, exit_code=2)


def test_the_right_format_changes_nothing(out):
    exported(out, TORCHVISION, *HEADS)
    told = out.read_bytes()
    exported(out, TORCHVISION, *HEADS, "--format", "torchvision", "--force")
    assert out.read_bytes() == told


@pytest.mark.parametrize(("weights", "suffix"), [("ema", "_ema"), ("model", "")])
def test_the_weights_that_are_asked_for_are_taken_and_said_aloud(out, weights, suffix):
    expected = reference("timm__wrappers")
    result = run(out, CARRIED / "timm__wrappers" / "timm_train.pth.tar", "--weights", weights)
    assert result.exit_code == 0
    assert f"took 'state_dict{suffix}'; --weights {'model' if suffix else 'ema'} takes" in result.stderr
    outputs = vit.load(out, "cpu").run(expected["pixel_values"].astype(np.float32))
    np.testing.assert_allclose(outputs["logits"], expected[f"logits{suffix}"], rtol=0, atol=5e-5)  # a swapped set shows at 0.1


def test_a_checkpoint_is_pinned_by_its_sha256(out):
    digest = hashlib.sha256(TORCHVISION.read_bytes()).hexdigest()
    line = refused(out, TORCHVISION, *HEADS, "--sha256", digest[::-1], exit_code=3)
    assert f"has the SHA-256 {digest}, expected {digest[::-1]}; it is not the file that was pinned" in line
    assert exported(out, TORCHVISION, *HEADS, "--sha256", digest.upper()).checkpoint["sha256"] == digest


def test_options_about_a_checkpoint_need_one(out):
    words = ["--out", str(out), "--sha256", "0" * 64]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert result.stderr == "error: got --sha256 without --checkpoint, which it is about; add one or leave it out\n"


# ---- head, pooling, labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--drop-head"], ["--num-classes", "0"], ["--drop-head", "--num-classes", "7"]], ids=" ".join)
def test_the_head_can_be_left_out(out, arguments):
    manifest = exported(out, TORCHVISION, *HEADS, *arguments)
    assert [output.name for output in manifest.outputs] == ["embedding"]
    assert (manifest.model["num_classes"], manifest.labels) == (0, None)
    pixels = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
    model, _ = load(TORCHVISION, Options(model_args={"num_heads": "4"}), outputs=["embedding"])
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels))[0].numpy()
    np.testing.assert_allclose(vit.load(out, "cpu").run(pixels)["embedding"], expected, **SAME_BUT_FOR_ORDER)


def test_another_pooling_is_said_aloud_and_refused_where_the_head_cannot_read_it(out):
    result = run(out, TORCHVISION, *HEADS, "--pool", "mean")
    assert (result.exit_code, result.stderr) == (0, "warning: pooled by 'mean' as asked, not by 'cls' as trained\n")
    assert read_manifest(out)[0].model["pool"] == "mean"
    out.unlink()
    line = refused(out, CARRIED / "hf__dinov2_registers_cls", "--pool", "cls", exit_code=2)
    assert "the head was trained on pool 'cls_mean'; leave --pool or, with --drop-head, the head out" in line
    result = run(out, CARRIED / "hf__dinov2_registers_cls", "--pool", "cls", "--drop-head")
    assert result.exit_code == 0
    assert read_manifest(out)[0].outputs[0].shape == ("batch", 44)


def test_labels_are_the_checkpoints_own_unless_a_file_gives_others(out, tmp_path):
    source = CARRIED / "hf__vit_cls_bf16"
    own = json.loads((source / "config.json").read_text())["id2label"]
    assert exported(out, source).labels == tuple(own[str(index)] for index in range(7))
    (tmp_path / "labels.txt").write_text("".join(f"kind {index}\n" for index in range(7)))
    assert exported(out, source, "--labels", tmp_path / "labels.txt", "--force").labels == tuple(f"kind {index}" for index in range(7))
    out.unlink()
    (tmp_path / "labels.txt").write_text("one\ntwo\n")
    assert "got 2 labels, expected 7" in refused(out, source, "--labels", tmp_path / "labels.txt", exit_code=2)


@pytest.mark.parametrize(("path", "arguments"), [(CLIP, []), (TORCHVISION, [*HEADS, "--drop-head"])], ids=["projection", "no head"])
def test_there_is_nothing_to_label_without_classes(out, tmp_path, path, arguments):
    (tmp_path / "labels.txt").write_text("name\n" * 40)
    line = refused(out, path, *arguments, "--labels", tmp_path / "labels.txt", exit_code=2)
    assert "got 40 labels, but this network has no classes; leave --labels out" in line


@pytest.mark.parametrize("layout", ["timm", "torchvision"])
def test_a_thousand_classes_without_names_are_those_of_imagenet(out, tmp_path, layout):
    torch.save(state_dict(layout), tmp_path / "thousand.pth")
    result = run(out, tmp_path / "thousand.pth", "--model-arg", "num_heads=3")
    assert result.exit_code == 0, result.stderr
    labels = read_manifest(out)[0].labels
    assert labels is not None
    assert (len(labels), labels[0], labels[207], labels[999]) == (1000, "tench", "golden retriever", "toilet tissue")


def test_a_projection_has_no_labels_and_no_classes(out):
    result = run(out, CLIP)
    assert result.exit_code == 0
    assert "IMAGE --embeddings out.npz   or" in result.stdout
    manifest, _ = read_manifest(out)
    assert (manifest.model["projection"], manifest.labels, manifest.class_scores) == (True, None, None)
    model, expected = vit.load(out, "cpu"), reference("openai_clip__vit")
    found = model.run(expected["pixel_values"].astype(np.float32))["logits"]
    np.testing.assert_allclose(found, expected["logits"], rtol=0, atol=5e-5)
    assert model.embed(np.zeros((40, 50, 3), np.uint8)).shape == (40,)


# ---- image size ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "options", "note"),
    [
        (TORCHVISION, HEADS, "the position table was stored for 32 x 32 and is resampled to 48 x 40 (bicubic_align_corners)"),
        (CARRIED / "google_vit__prelogits" / "prelogits.npz", (), "resampled to 48 x 40 (bilinear_align_corners)"),
        (CARRIED / "dinov3__vit" / "vit.pth", (), None),
        (CARRIED / "hf__beit_cls", (), None),
    ],
    ids=["table", "another table", "rotary", "relative"],
)
def test_another_image_size_is_exported_and_a_resampled_table_said_aloud(out, path, options, note):
    result = run(out, path, *options, "--img-size", "48,40")
    assert result.exit_code == 0
    assert (result.stderr == "") if note is None else (note in result.stderr)
    manifest, _ = read_manifest(out)
    assert (manifest.image_size, manifest.preprocessing.output_size) == ((48, 40), (48, 40))
    model, _ = load(path, Options(img_size=(48, 40), model_args=dict(option.split("=") for option in options[1:])), outputs=["embedding"])
    pixels = np.random.default_rng(0).standard_normal((2, 3, 48, 40), np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels))[0].numpy()
    np.testing.assert_allclose(vit.load(out, "cpu").run(pixels)["embedding"], expected, **SAME_BUT_FOR_ORDER)


@pytest.fixture(scope="module")
def free(tmp_path_factory) -> tuple[Path, str]:
    """A file with free height and width, made of a checkpoint with a position table, and what the command said."""
    out = tmp_path_factory.mktemp("free") / "vit.onnx"
    result = run(out, CARRIED / "hf__dinov2_registers_cls", "--dynamic-size", verify=True)
    assert (result.exit_code, result.stderr) == (0, "")
    return out, result.stdout


def test_a_free_size_is_proven_at_several_sizes(free):
    out, said = free
    assert re.search(r"at batch sizes 1, 2, 3, 7, 4 and image sizes 24x24, \d+x\d+, \d+x\d+, \d+x\d+\n", said)
    result = CliRunner().invoke(parity.main, [str(out), "--batch-sizes", "1"])
    assert result.exit_code == 0
    sizes = set(re.findall(r"^  \w+ +1 +(\d+x\d+) +golden ", result.stdout, re.MULTILINE))
    assert sizes == {f"{height}x{width}" for height, width in (golden.image_size for golden in read_manifest(out)[0].goldens)}
    assert len(sizes) == 4


def test_a_free_size_takes_multiples_of_the_patch_and_refuses_others_in_one_line(free):
    model = vit.load(free[0], "cpu")
    assert (model.manifest.multiple_of, model.manifest.image_size) == (8, (24, 24))
    for size in ((24, 24), (8, 8), (40, 16), (64, 72)):
        pixels = np.random.default_rng(1).standard_normal((2, 3, *size), np.float32)
        network, _ = load(CARRIED / "hf__dinov2_registers_cls", Options(img_size=size))
        with torch.no_grad():
            expected = dict(zip(network.outputs, network(torch.from_numpy(pixels)), strict=True))
        for name, values in model.run(pixels).items():
            np.testing.assert_allclose(values, expected[name].numpy(), **SAME_BUT_FOR_ORDER)
    for size in ((24, 25), (12, 24), (0, 24), (24,), (24, 24, 1)):
        with pytest.raises(InputError, match=r"expected .*height, width.* with height and width in multiples of 8") as error:
            model.run(np.zeros((1, 3, *size), np.float32))
        assert "\n" not in str(error.value)
    assert model.predict(np.zeros((50, 30, 3), np.uint8)).logits.shape == (10,)


def test_a_network_of_one_size_cannot_have_a_free_one(out):
    line = refused(out, CARRIED / "hf__beit_cls", "--dynamic-size", exit_code=2)
    assert "relative position biases, which belong to one size; give --img-size instead" in line


# ---- what is said aloud --------------------------------------------------------------------------------------------------------------


def test_notes_are_warnings_on_stderr_and_a_list_in_the_document(out):
    result = run(out, TORCHVISION, *HEADS, "--img-size", "48", "--pool", "mean", "--json")
    assert result.exit_code == 0
    notes = json.loads(result.stdout)["notes"]
    assert [note.split(" ")[0] for note in notes] == ["pooled", "the"]
    assert result.stderr == "".join(f"warning: {note}\n" for note in notes)
    quiet = run(out, TORCHVISION, *HEADS, "--img-size", "48", "-q", "--force")
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "")
