"""vit-export: files that prove themselves, one clear line and an exit code for everything foreseeable, and never half a file."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from vit_exporter.cli import main
from vit_models import ARCHS, ViT, ViTConfig, init_weights, save_checkpoint
from vit_runtime.golden import golden_images
from vit_runtime.manifest import read_manifest

TINY = ViTConfig(img_size=(32, 32), patch_size=8, embed_dim=32, depth=1, num_heads=2, mlp_dim=64, num_classes=10)
DIGITS = ("--arch", "digits")  # the trained network: 17 tokens, four blocks
SMALL = ("--arch", "ViT-Ti/16", "--img-size", "32")  # the smallest named network on the smallest image that tells anything
NOBODY = 65534


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


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    save_checkpoint(tmp_path / "tiny.safetensors", init_weights(ViT(TINY), 2), [f"digit {n}" for n in range(10)])
    return tmp_path / "tiny.safetensors"


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception  # a traceback, which no user may see
    return result


def process(*arguments: object, before: str = "", **options) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, after the Python statements `before`."""
    code = f"{before}\nimport sys\nfrom vit_exporter.cli import main\nmain({[str(a) for a in arguments]!r})"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, **options)


def refused(result: Result | subprocess.CompletedProcess[str], exit_code: int) -> str:
    """The one line of an error, which is all that is printed."""
    code = result.exit_code if isinstance(result, Result) else result.returncode
    assert code == exit_code, result.stderr
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("warning: no checkpoint")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


# --- files that are written -------------------------------------------------------------------------------------------


def test_random_weights_are_exported_with_a_warning_and_what_was_done(out):
    result = run("--out", out, *SMALL, "--seed", 7)
    assert result.exit_code == 0, result.stderr
    assert "warning: no checkpoint, so ViT-Ti/16 gets random weights from seed 7" in result.stderr
    for word in ("random weights, seed 7", "opset 18", "passed", f"vit-parity {out}"):
        assert word in result.stdout
    manifest, _ = read_manifest(out)
    assert manifest.checkpoint == {"format": "random", "seed": 7, "sha256": None}
    assert (manifest.model["arch"], manifest.image_size) == ("ViT-Ti/16", (32, 32))
    assert [path.name for path in out.parent.iterdir()] == ["vit.onnx"]


def test_a_checkpoint_is_exported_as_it_says_and_without_a_warning(out, checkpoint):
    result = run("--out", out, "--checkpoint", checkpoint, "--outputs", "attention,logits", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert document["parity"]["passed"]
    manifest, _ = read_manifest(out)
    assert manifest.checkpoint["format"] == "vit-deploy"
    assert manifest.labels == tuple(f"digit {n}" for n in range(10))
    assert [output.name for output in manifest.outputs] == ["attention", "logits"]


def test_every_option_reaches_the_file(out, tmp_path):
    (tmp_path / "labels.txt").write_bytes("\ufeffone\r\ntwo\r\ntrês\r\n".encode())  # as Windows writes it
    options = ["--img-size", "32,48", "--num-classes", 3, "--pool", "mean", "--labels", tmp_path / "labels.txt", "--opset", 20]
    result = run("--out", out, "--arch", "vit_tiny_patch16", *options, "--no-simplify", "--no-verify", "--external-data", "--json", "-q")
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert document["nodes_before"] == document["nodes_after"]
    assert (document["parity"], document["external_files"]) == (None, ["vit.onnx.data"])
    manifest, _ = read_manifest(out)
    assert (manifest.image_size, manifest.model["pool"], manifest.build["opset"]) == ((32, 48), "mean", 20)
    assert manifest.labels == ("one", "two", "três")
    assert manifest.outputs[0].shape == ("batch", 3)
    assert (manifest.golden, manifest.build["passes"]) == (None, [])


def test_the_seed_decides_the_weights_and_nothing_else_does(tmp_path):
    files = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run("--out", tmp_path / f"{name}.onnx", *SMALL, "--no-verify", "--seed", seed).exit_code == 0
        files[name] = (tmp_path / f"{name}.onnx").read_bytes()
    assert files["a"] == files["b"]
    heads = [
        next(onnx.numpy_helper.to_array(t) for t in onnx.load_from_string(files[name]).graph.initializer if t.name == "head.weight")
        for name in ("a", "c")
    ]
    assert not np.array_equal(*heads)


def test_force_replaces_a_file_and_nothing_else_does(out, checkpoint):
    out.write_bytes(b"precious")
    assert "exists; --force replaces it" in refused(run("--out", out, "--checkpoint", checkpoint), 2)
    assert out.read_bytes() == b"precious"
    assert run("--out", out, "--checkpoint", checkpoint, "--force", "--no-verify").exit_code == 0
    read_manifest(out)


def test_quiet_leaves_warnings_out(out):
    result = run("--out", out, *SMALL, "--no-verify", "-q")
    assert (result.exit_code, result.stderr) == (0, "")


def test_the_architectures_are_listed_with_their_sizes():
    text = run("--list-archs")
    assert text.exit_code == 0
    for arch in ARCHS:
        assert arch in text.stdout
    document = json.loads(run("--list-archs", "--json").stdout)
    assert [arch["name"] for arch in document["archs"]] == list(ARCHS)
    base = next(arch for arch in document["archs"] if arch["name"] == "ViT-B/16")
    assert base == {"name": "ViT-B/16", "width": 768, "depth": 12, "heads": 12, "mlp": 3072, "tokens": 197, "gmacs": 17.6}


# --- arguments that cannot be -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "ViT-B/17"], "got architecture 'ViT-B/17', which is not known; the nearest are .*ViT-B/16"),
        (["--arch", "resnet50"], "got architecture 'resnet50', which is not known"),
        (["--img-size", "225"], "image height 225, which patches of 16 do not divide; the nearest sizes that work are 224 and 240"),
        (["--img-size", "224,250"], "image width 250, .* 240 and 256"),
        (["--img-size", "large"], "got --img-size 'large', expected one whole number or height,width, such as 224 or 224,384"),
        (["--img-size", ""], "got --img-size ''"),
        (["--img-size", "1,2,3"], "got --img-size '1,2,3'"),
        (["--img-size", "224,"], "got --img-size '224,'"),
        (["--img-size", "0"], "image height 0, expected a whole number from 1"),
        (["--img-size", "-16"], "image height -16"),
        (["--img-size", "1000000"], "image height 1000000"),
        (["--num-classes", "100000000"], "num_classes 100000000"),
        (["--outputs", "logits,scores"], "got output 'scores', expected some of logits, embedding, tokens, attention"),
        (["--outputs", "logits,logits"], "each name once"),
        (["--outputs", ","], "each name once"),
        (["--outputs", ""], "got output ''"),
        (["--outputs", "logits", "--num-classes", "0"], "without a head"),
        (["--opset", "17"], "got opset 17, expected 18 to 23"),
        (["--opset", "99"], "got opset 99, expected 18 to 23"),
        (["--format", "timm"], "got --format without --checkpoint"),
        (["--model-arg", "num_heads=3"], "got --model-arg without --checkpoint"),
        (["--weights", "ema"], "got --weights without --checkpoint"),
        (["--checkpoint", "x.safetensors", "--model-arg", "num_heads"], "expected NAME=VALUE"),
        (["--labels", "absent.txt"], "--labels absent.txt cannot be read .* one class name a line"),
        (["--labels", "."], "--labels . cannot be read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_argument_that_cannot_be_is_one_line_and_exit_code_2(out, arguments, message):
    line = refused(run("--out", out, *arguments), 2)
    assert pytest.raises(AssertionError, match=message).matches(AssertionError(line)), line
    assert not list(out.parent.iterdir())


def test_errors_with_json_are_a_document_too(out):
    result = run("--out", out, "--arch", "nonsense", "--json")
    assert result.exit_code == 2
    document = json.loads(result.stdout)
    assert document["exit_code"] == 2
    assert result.stderr == f"error: {document['error']}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--opset", "new"],
        ["--seed", "-1"],
        ["--pool", "max"],
        ["--num-classes", "-2"],
        ["--target"],
        ["x"],
        ["--precision", "int3"],
        ["--max-drop", "little"],
    ],
)
def test_what_click_refuses_is_exit_code_2_and_with_json_a_document(out, arguments):
    result = run("--out", out, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Error: " in result.stderr
    result = run("--out", out, "--json", *arguments)
    assert result.exit_code == json.loads(result.stdout)["exit_code"] == 2


@pytest.mark.parametrize("count", [0, 9, 11])
def test_labels_of_another_number_than_the_classes_are_refused(out, tmp_path, checkpoint, count):
    (tmp_path / "labels.txt").write_text("name\n" * count)
    line = refused(run("--out", out, "--checkpoint", checkpoint, "--labels", tmp_path / "labels.txt"), 2)
    assert f"got {count} labels, expected 10" in line


def test_labels_that_are_no_text_are_refused(out, tmp_path):
    (tmp_path / "labels.txt").write_bytes(b"\xff\xfe\x00\x81")
    assert "cannot be read" in refused(run("--out", out, "--labels", tmp_path / "labels.txt"), 2)


def test_a_head_is_not_made_up(out, checkpoint):
    line = refused(run("--out", out, "--checkpoint", checkpoint, "--num-classes", 5), 2)
    assert "these weights have a head of 10; leave --num-classes out, or give --drop-head" in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--img-size", 64], "stored for 32 x 32 and is resampled to 64 x 64"),
        (["--pool", "mean"], "pooled by 'mean' as asked, not by 'cls' as trained"),
    ],
)
def test_a_trained_network_is_not_changed_silently(out, checkpoint, arguments, said):
    result = run("--out", out, "--checkpoint", checkpoint, *arguments)
    assert result.exit_code == 0
    assert said in result.stderr


def test_a_missing_out_is_asked_for():
    assert "got no --out, expected the .onnx file to write" in refused(run(), 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".", "is a folder, expected a file name"),
        ("vit", "does not end in .onnx"),
        ("vit.pt", "does not end in .onnx"),
        ("absent/vit.onnx", "does not exist; make it with `mkdir -p"),
        (f"{'v' * 400}.onnx", "cannot be written"),
    ],
)
def test_an_out_that_cannot_be_is_refused(out, checkpoint, name, message):
    line = refused(run("--out", out.parent / name, "--checkpoint", checkpoint, "--no-verify"), 2)
    assert message in line
    assert not list(out.parent.iterdir())


# --- targets and precisions -------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder of twelve pictures."""
    (tmp_path / "images").mkdir()
    for number, pixels in enumerate(golden_images(9, 12, 28, 28)):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number:02}.png")
    return tmp_path / "images"


GENERATED = "warning: measured on generated images alone: give photographs of the kind that the network will see with --calibrate DIR"


def test_reduced_precision_says_aloud_that_generated_images_were_used_and_what_was_kept(out):
    result = run("--out", out, *DIGITS, "--target", "cpu", "--precision", "int8", "--keep", "blocks.3.mlp.fc2")
    assert result.exit_code == 0, result.stderr
    assert GENERATED in result.stderr.splitlines()
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert lines["graph"].startswith("  graph   opset 20, target cpu, int8, ")
    assert "golden images: cosine at least 0.99" in lines["parity"]
    assert lines["images"].startswith("  images  24 generated images on cpu: logits cosine 0.99")
    for word in ("at least", "on average", "top-1 agreement", "KL", "; embedding cosine 0.99"):
        assert word in lines["images"]
    assert lines["kept"] == "  kept    blocks.3.mlp.fc2 in higher precision"
    assert read_manifest(out)[0].build["kept"] == [{"layer": "blocks.3.mlp.fc2", "before": None, "after": None}]


def test_a_folder_of_images_is_judged_on_and_json_has_the_accuracy(out, images):
    options = ["--target", "cpu", "--precision", "int8", "--calibrate", images, "--max-drop", 0.05]
    result = run("--out", out, *DIGITS, *options, "--json")
    assert result.exit_code == 0, result.stderr
    assert GENERATED not in result.stderr
    document = json.loads(result.stdout)
    accuracy = document["manifest"]["accuracy"]
    assert (accuracy["provider"], accuracy["source"], accuracy["images"]) == ("cpu", "photographs", 6)
    assert accuracy["outputs"].keys() == {"logits", "embedding"}
    for found in accuracy["outputs"].values():
        assert 0.95 <= found["cosine_min"] <= found["cosine_mean"] < 1  # the budget, and it is no float32
    assert accuracy["outputs"]["logits"]["top1"] == 1
    assert document["manifest"]["parity"]["kind"] == "nearness"
    assert document["parity"]["passed"]
    assert document["steps"].keys() >= {"check", "reduce", "compare"}
    assert read_manifest(out)[0].to_dict()["accuracy"] == accuracy


def test_static_scales_come_from_the_folder_and_stdout_is_the_document_alone(out, images):
    result = run("--out", out, *DIGITS, "--precision", "int8-static", "--calibrate", images, "--no-verify", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert document["manifest"]["build"]["calibration"] == {"source": "photographs", "images": 6}
    assert document["manifest"]["accuracy"] is None


def test_what_is_neither_measured_nor_judged_on_images_needs_no_word_about_them(out):
    result = run("--out", out, *DIGITS, "--precision", "int8", "--no-verify")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "images" not in result.stdout
    assert read_manifest(out)[0].build["precision"] == "int8"


def test_target_pieces_and_the_check_of_every_pass_reach_the_file(out):
    result = run("--out", out, *DIGITS, "--target", "openvino", "--token-split", "9,8", "--verify-passes", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    build = json.loads(result.stdout)["manifest"]["build"]
    assert (build["target"], build["precision"], build["opset"], build["token_split"]) == ("openvino", "fp32", 20, [9, 8])
    *exact, split = build["passes"]
    assert all(0 < each["floors"] <= 2 for each in exact)
    assert (split["name"], split["floors"]) == ("SplitTokens", None)


INT8 = ("--precision", "int8")
SPLIT = ("--target", "openvino", "--token-split")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "cpuu"], "got target 'cpuu', expected one of portable, cpu, openvino, cuda, tensorrt; did you mean 'cpu'?"),
        (["--target", ""], "got target '', expected one of portable, cpu, openvino, cuda, tensorrt"),
        (["--precision", "int4w"], "got precision 'int4w' for target portable, expected one of fp32, .*; --target cpu has it"),
        (
            ["--target", "cpu", "--precision", "bf16"],
            "got precision 'bf16' for target cpu, .*; --target openvino or cuda or tensorrt has it",
        ),
        (["--target", "cpu", "--opset", "17"], "got opset 17, expected 18 to 23: .*; leave --opset out for 20"),
        ([*INT8, "--no-simplify"], "got --no-simplify with precision int8, expected one of them"),
        (["--calibrate", "."], "got --calibrate for precision fp32, .*; leave it out"),
        ([*INT8, "--calibrate", "absent"], "got --calibrate absent, expected a folder with images"),
        ([*INT8, "--calibrate", "{empty}"], "got the folder '.*' without images, expected files that end in .jpg"),
        (["--max-drop", "0.01"], "got --max-drop, expected it with verification and one of the precisions int8, int8-static, int4w"),
        ([*INT8, "--max-drop", "0.01", "--no-verify"], "got --max-drop, expected it with verification"),
        ([*INT8, "--max-drop", "1"], "got --max-drop 1, expected a number between 0 and 1, such as 0.01"),
        ([*INT8, "--max-drop", "nan"], "got --max-drop nan, expected a number between 0 and 1"),
        (["--keep", "blocks.0.mlp.fc1"], "got --keep for precision fp32, expected it with one of int8, int8-static, int4w"),
        (["--token-split", "9,8"], "got --token-split for target portable, expected it with --target openvino"),
        ([*SPLIT, "9,9"], "got --token-split 9,9, expected whole numbers that add up to the network's 17 tokens"),
        ([*SPLIT, "9,x"], "got --token-split '9,x', expected whole numbers with commas between them"),
        ([*SPLIT, "17,0"], "got --token-split '17,0', expected numbers of at least 1"),
        ([*SPLIT, ""], "got --token-split '', expected whole numbers"),
        ([*SPLIT, "9,8", "--dynamic-size"], "got a free image size with --token-split or static scales, which are for one size"),
        (["--precision", "int8-static", "--dynamic-size"], "got a free image size with --token-split or static scales"),
        (["--verify-passes", "--no-verify"], "got --verify-passes without verification or passes, expected both"),
        (["--verify-passes", "--no-simplify"], "got --verify-passes without verification or passes, expected both"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_do_not_go_together_are_one_line_and_leave_the_file_as_it_was(out, tmp_path, arguments, message):
    out.write_bytes(b"earlier")
    (tmp_path / "empty").mkdir()
    arguments = [argument.format(empty=tmp_path / "empty") for argument in arguments]
    line = refused(run("--out", out, *DIGITS, "--force", *arguments), 2)
    assert pytest.raises(AssertionError, match=f"^error: {message}").matches(AssertionError(line)), line
    assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == {"vit.onnx": b"earlier"}


def test_a_layer_to_keep_that_is_not_there_is_answered_with_the_nearest(out):
    out.write_bytes(b"earlier")
    line = refused(run("--out", out, *DIGITS, *INT8, "--keep", "blocks.3.mlp.fc3", "--no-verify", "--force"), 2)
    assert line.startswith("error: got --keep blocks.3.mlp.fc3, expected the name of a layer that is quantised, such as blocks.3.mlp.fc")
    assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == {"vit.onnx": b"earlier"}


def test_static_int8_without_nncf_is_exit_code_4_before_the_work_starts(out):
    """Sooner than an architecture that nobody knows is told."""
    missing = "import sys\nsys.modules['nncf'] = None"
    line = refused(process("--out", out, "--arch", "nonsense", "--precision", "int8-static", before=missing), 4)
    assert "needs the package nncf" in line
    assert "pip install 'vit-deploy[quantize]'" in line


# --- checkpoints and machines that are not as they should be ----------------------------------------------------------


def test_a_truncated_checkpoint_is_exit_code_3(out, checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    line = refused(run("--out", out, "--checkpoint", checkpoint), 3)
    assert "tiny.safetensors" in line
    assert not list(out.parent.iterdir())


def test_an_absent_checkpoint_is_exit_code_3(out):
    assert "absent.safetensors" in refused(run("--out", out, "--checkpoint", out.with_name("absent.safetensors")), 3)


def test_a_checkpoint_with_strange_preprocessing_is_exit_code_3(out, tmp_path):
    save_checkpoint(tmp_path / "strange.safetensors", init_weights(ViT(TINY)), None, {"mean": "grey"})
    refused(run("--out", out, "--checkpoint", tmp_path / "strange.safetensors"), 3)


@pytest.mark.parametrize("package", ["torch", "onnx", "onnxsim", "safetensors"])
def test_a_missing_package_is_exit_code_4_and_names_the_command_that_mends_it(out, package):
    result = process("--out", out, *SMALL, before=f"import sys\nsys.modules[{package!r}] = None")
    line = refused(result, 4)
    assert f"needs the package {package}" in line
    assert "pip install 'vit-deploy[export,cpu]'" in line


def test_without_onnxruntime_there_is_no_proof_and_so_no_file(out):
    line = refused(process("--out", out, *SMALL, before="import sys\nsys.modules['onnxruntime'] = None"), 4)
    assert "onnxruntime" in line
    assert "pip install" in line
    assert not list(out.parent.iterdir())


def test_without_torch_the_list_of_architectures_is_one_line_too():
    line = refused(process("--list-archs", before="import sys\nsys.modules['torch'] = None"), 4)
    assert "vit-deploy[export,cpu]" in line


def test_without_onnxruntime_an_unverified_export_still_works(out):
    result = process("--out", out, *SMALL, "--no-verify", "-q", before="import sys\nsys.modules['onnxruntime'] = None")
    assert result.returncode == 0, result.stderr
    assert out.exists()


def test_help_has_an_example_and_imports_no_heavy_package():
    code = "import sys\nfrom vit_exporter.cli import main\nmain(['--help'], standalone_mode=False)\n"
    code += "print(sorted({'torch', 'onnx', 'onnx_ir', 'onnxruntime', 'vit_models'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert "Example: vit-export --arch digits --out digits.onnx" in result.stdout


# --- folders and disks ------------------------------------------------------------------------------------------------


def test_an_image_size_whose_attention_outgrows_the_machine_is_refused_before_the_work():
    """262,145 tokens: 2 x 3 heads x 262,145^2 x 32 bytes are 13 TB."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "vit.onnx"
        line = refused(process("--out", out, "--arch", "ViT-Ti/16", "--img-size", "8192", "-q"), 4)
        assert "262145 tokens" in line
        assert "--no-verify" in line
        assert not out.exists()


AS_NOBODY = """
import os
import onnxscript, onnxsim, vit_exporter.cli, vit_exporter.pipeline, vit_exporter.source  # while this user may still read them
if os.getuid() == 0:
    os.setgroups([]), os.setgid({nobody}), os.setuid({nobody})
"""


@pytest.mark.parametrize(("mode", "message"), [(0o555, "is not writable; choose another one"), (0o000, "")])
def test_a_folder_that_may_not_be_written_or_entered_is_refused(mode, message):
    """Root may write everywhere, so the command gives root's rights up first."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        folder = Path(name) / "locked"
        folder.mkdir()
        folder.chmod(mode)
        before = AS_NOBODY.format(nobody=NOBODY)
        line = refused(process("--out", folder / "vit.onnx", *SMALL, before=before), 2)
        assert message in line
        folder.chmod(0o755)
        assert not list(folder.iterdir())


def test_a_file_system_that_takes_no_file_so_large_is_exit_code_4_and_nothing_is_left(out):
    """As FAT32 does above 4 GB; here the process's own limit on the size of files stands in for it."""
    before = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))"
    out.write_bytes(b"earlier")
    line = refused(process("--out", out, *SMALL, "--no-verify", "--force", before=before), 4)
    assert "allows no file so large as vit.onnx; nothing was left behind" in line
    assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == {"vit.onnx": b"earlier"}


def on_small_disk(folder: Path, size: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command with a file system of `size` bytes mounted on `folder`, in a mount namespace that ends with it.

    What is left in the folder is the last line of its stdout.
    """
    if not shutil.which("unshare") or os.getuid() != 0:
        pytest.skip("mounting a small file system needs root and `unshare`")
    probe = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", folder], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"mounting a small file system is not permitted here: {probe.stderr.strip()}")
    script = 'mount -t tmpfs -o size="$1" none "$2" || exit 99; shift 2; cd / ; "$@"; code=$?; ls -A "$OUT"; exit $code'
    code = f"from vit_exporter.cli import main\nmain({[str(a) for a in arguments]!r})"
    command = ["unshare", "-m", "sh", "-c", script, "sh", str(size), folder, sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "OUT": str(folder)})


def parameter_bytes() -> int:
    config = ViTConfig(**{**vars(ARCHS["ViT-Ti/16"]), "img_size": (32, 32)})
    return 4 * sum(parameter.numel() for parameter in ViT(config).parameters())


def test_too_small_a_disk_is_seen_before_anything_is_written(out):
    result = on_small_disk(out.parent, 4 << 20, "--out", out, *SMALL, "--no-verify")
    line = refused(result, 4)  # and so `ls` printed nothing: no file is left
    assert "4.2 MB free, expected at least" in line


@pytest.mark.parametrize("external", [[], ["--external-data"]], ids=["one file", "two files"])
def test_a_disk_that_runs_full_half_way_is_exit_code_4_and_nothing_is_left(out, external):
    """There is room for the weights, which is what is asked for beforehand, and not for the graph beside them."""
    page = resource.getpagesize()
    size = -(-parameter_bytes() // page) * page
    line = refused(on_small_disk(out.parent, size, "--out", out, *SMALL, "--no-verify", *external), 4)
    assert "ran full while it was written: vit.onnx; nothing was left behind" in line


# --- interruptions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_half_way_leaves_no_file_and_keeps_the_earlier_one(out, sent, code):
    out.write_bytes(b"earlier")
    # A shell that starts the tests in the background lets them ignore Ctrl-C, which children inherit.
    heed = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\nfrom vit_exporter.cli import main"
    command = f"{heed}\nmain(['--out', {str(out)!r}, '--arch', 'ViT-Ti/16', '--force', '-q'])"
    running = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(list(out.parent.iterdir())) == 1 and running.poll() is None:  # the second entry is what is being written
        assert time.monotonic() < deadline
        time.sleep(0.002)
    running.send_signal(sent)
    stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == code, stderr
    assert stdout == ""
    assert stderr == ("error: interrupted\n" if sent == signal.SIGINT else "")
    assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == {"vit.onnx": b"earlier"}
