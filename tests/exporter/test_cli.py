"""vit-export: files that prove themselves, one clear line and an exit code for everything foreseeable, and never half a file."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from export_commands import parse_export, refused
from export_commands import run_export as run
from helpers import assert_mentions
from networks import SHALLOW, initialized
from PIL import Image

import vit_exporter.pipeline
from vit_exporter import digits_source
from vit_models import ARCHS, save_checkpoint
from vit_runtime.golden import golden_images
from vit_runtime.manifest import read_manifest

DIGITS = ("--arch", "digits")  # the trained network: 17 tokens, four blocks
SMALL = ("--arch", "ViT-Ti/16", "--img-size", "32")  # the smallest named network, for the smallest images that are not one patch
NOBODY = 65534
TARGETS = ("portable", "cpu", "openvino", "cuda", "tensorrt")
SEARCHED = ("int8", "int8-static", "int4w", "fp8")


@pytest.fixture
def out(tmp_path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "vit.onnx"


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    save_checkpoint(tmp_path / "tiny.safetensors", initialized(SHALLOW, seed=2), [f"digit {n}" for n in range(10)])
    return tmp_path / "tiny.safetensors"


def process(*arguments: object, before: str = "", **options) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, after the Python statements `before`."""
    code = f"{before}\nimport sys\nfrom vit_exporter.cli import main\nmain({[str(a) for a in arguments]!r})"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, **options)


def warnings_of(stderr: str) -> list[str]:
    """The warnings, which are all that is printed."""
    lines = stderr.splitlines()
    assert all(line.startswith("warning: ") for line in lines), stderr
    return [line.removeprefix("warning: ") for line in lines]


# --- files that are written -------------------------------------------------------------------------------------------


def test_random_weights_are_exported_with_a_warning_and_what_was_done(out):
    result = run("--out", out, *SMALL, "--seed", 7)
    assert result.exit_code == 0, result.stderr
    (warning,) = warnings_of(result.stderr)
    assert_mentions(warning, "random", "ViT-Ti/16", 7)
    manifest, _ = read_manifest(out)
    assert_mentions(result.stdout, "ViT-Ti/16", 7, "portable", "fp32", 18, f"vit-parity {out}", f"vit-predict {out}")
    assert_mentions(result.stdout, f"{manifest.model['parameters'] / 1e6:.1f} M", f"{out.stat().st_size / 1e6:.1f} MB")
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


@pytest.mark.unit
def test_the_seed_decides_the_weights_and_nothing_else_does():
    weights = []
    for seed in (1, 1, 2):
        source = parse_export(*SMALL, "--seed", seed).source
        source.fill()
        weights.append(source.model.state_dict())
    first, same, other = weights
    assert all(torch.equal(values, same[name]) for name, values in first.items())
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_force_replaces_a_file_and_nothing_else_does(out, checkpoint):
    out.write_bytes(b"precious")
    assert_mentions(refused(run("--out", out, "--checkpoint", checkpoint), 2), out, "--force")
    assert out.read_bytes() == b"precious"
    assert run("--out", out, "--checkpoint", checkpoint, "--force", "--no-verify").exit_code == 0
    read_manifest(out)


@pytest.mark.unit
def test_quiet_leaves_warnings_out():
    assert warnings_of(parse_export(*SMALL).stderr) != []
    assert parse_export(*SMALL, "-q").stderr == ""


def test_notes_are_warnings_and_quiet_leaves_results_out(exports, tiny_source, monkeypatch):
    """What was done is a shared export; the command prints it."""
    report = replace(exports.export(tiny_source, "tiny.onnx"), notes=("first note", "second note"))
    monkeypatch.setattr(vit_exporter.pipeline, "export", lambda *_: report)
    result = run("--out", "tiny.onnx", *DIGITS)
    assert warnings_of(result.stderr) == ["first note", "second note"]
    assert_mentions(result.stdout, report.out)
    quiet = run("--out", "tiny.onnx", *DIGITS, "-q")
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "")
    document = json.loads(run("--out", "tiny.onnx", *DIGITS, "-q", "--json").stdout)
    assert (document["out"], document["notes"]) == (str(report.out), ["first note", "second note"])


@pytest.mark.unit
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


@pytest.mark.unit
@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["--arch", "ViT-B/17"], ("ViT-B/17", "ViT-B/16")),
        (["--arch", "resnet50"], ("resnet50",)),
        (["--img-size", "225"], ("height", 225, 16, 224, 240)),
        (["--img-size", "224,250"], ("width", 250, 16, 240, 256)),
        (["--img-size", "large"], ("--img-size", "large", "224", "224,384")),
        (["--img-size", ""], ("--img-size", "''")),
        (["--img-size", "1,2,3"], ("--img-size", "1,2,3")),
        (["--img-size", "224,"], ("--img-size", "224,")),
        (["--img-size", "0"], ("height", 0, 1)),
        (["--img-size", "-16"], ("height", -16, 1)),
        (["--img-size", "1000000"], ("height", 1000000)),
        (["--num-classes", "100000000"], ("num_classes", 100000000)),
        (["--outputs", "logits,scores"], ("scores", "logits", "embedding", "tokens", "attention")),
        (["--outputs", "logits,logits"], ("outputs", "logits,logits")),
        (["--outputs", ","], ("outputs", "','")),
        (["--outputs", ""], ("''", "logits", "attention")),
        (["--outputs", "logits", "--num-classes", "0"], ("logits", "head")),
        (["--opset", "17"], (17, 18, 23, "--opset")),
        (["--opset", "99"], (99, 18, 23, "--opset")),
        (["--format", "timm"], ("--format", "--checkpoint")),
        (["--model-arg", "num_heads=3"], ("--model-arg", "--checkpoint")),
        (["--weights", "ema"], ("--weights", "--checkpoint")),
        (["--sha256", "0" * 64], ("--sha256", "--checkpoint")),
        (["--batch-sizes", "1"], ("--batch-sizes", "--tune")),
        (["--threads", "1"], ("--threads", "--tune")),
        (["--checkpoint", "x.safetensors", "--model-arg", "num_heads"], ("--model-arg", "num_heads", "NAME=VALUE")),
        (["--labels", "absent.txt"], ("--labels", "absent.txt", "No such file or directory")),
        (["--labels", "."], ("--labels", "Is a directory")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_argument_that_cannot_be_is_one_line_and_exit_code_2(out, arguments, facts):
    assert_mentions(refused(run("--out", out, *arguments), 2), *facts)
    assert not list(out.parent.iterdir())


@pytest.mark.unit
def test_errors_with_json_are_a_document_too(out):
    result = run("--out", out, "--arch", "nonsense", "--json")
    assert result.exit_code == 2
    document = json.loads(result.stdout)
    assert document["exit_code"] == 2
    assert result.stderr == f"error: {document['error']}\n"


@pytest.mark.unit
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
    assert "Error: " in result.stderr  # click's own words
    result = run("--out", out, "--json", *arguments)
    assert result.exit_code == json.loads(result.stdout)["exit_code"] == 2


@pytest.mark.unit
@pytest.mark.parametrize("count", [0, 9, 11])
def test_labels_of_another_number_than_the_classes_are_refused(out, tmp_path, checkpoint, count):
    (tmp_path / "labels.txt").write_text("name\n" * count)
    assert_mentions(refused(run("--out", out, "--checkpoint", checkpoint, "--labels", tmp_path / "labels.txt"), 2), "labels", count, 10)


@pytest.mark.unit
def test_labels_that_are_no_text_are_refused(out, tmp_path):
    (tmp_path / "labels.txt").write_bytes(b"\xff\xfe\x00\x81")
    line = refused(run("--out", out, "--labels", tmp_path / "labels.txt"), 2)
    assert_mentions(line, "--labels", tmp_path / "labels.txt", "utf-8")


@pytest.mark.unit
def test_a_head_is_not_made_up(out, checkpoint):
    line = refused(run("--out", out, "--checkpoint", checkpoint, "--num-classes", 5), 2)
    assert_mentions(line, 5, 10, "--num-classes", "--drop-head")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("arguments", "facts"),
    [(["--img-size", 64], ("32 ?x ?32", "64 ?x ?64")), (["--pool", "mean"], ("mean", "cls"))],
)
def test_a_trained_network_is_not_changed_silently(checkpoint, arguments, facts):
    (note,) = parse_export("--checkpoint", checkpoint, *arguments).source.notes
    for fact in facts:
        assert re.search(rf"\b{fact}\b", note)


@pytest.mark.unit
def test_a_missing_out_is_asked_for():
    assert_mentions(refused(run(), 2), "--out")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "facts"),
    [
        (".", ("{folder}/vit.onnx",)),
        ("vit", ("{folder}/vit.onnx",)),
        ("vit.pt", ("{folder}/vit.pt.onnx",)),
        ("absent/vit.onnx", ("mkdir -p {folder}/absent",)),
    ],
)
def test_an_out_that_cannot_be_is_refused(out, checkpoint, name, facts):
    line = refused(run("--out", out.parent / name, "--checkpoint", checkpoint, "--no-verify"), 2)
    assert_mentions(line, "--out", *(fact.format(folder=out.parent) for fact in facts))
    assert not list(out.parent.iterdir())


def test_an_out_with_too_long_a_name_is_refused(out, checkpoint):
    line = refused(run("--out", out.parent / f"{'v' * 400}.onnx", "--checkpoint", checkpoint, "--no-verify"), 2)
    assert_mentions(line, "--out", "File name too long")
    assert not list(out.parent.iterdir())


# --- targets and precisions -------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder of twelve pictures."""
    (tmp_path / "images").mkdir()
    for number, pixels in enumerate(golden_images(9, 12, 28, 28)):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number:02}.png")
    return tmp_path / "images"


def test_reduced_precision_says_aloud_that_generated_images_were_used_and_what_was_kept(out):
    result = run("--out", out, *DIGITS, "--target", "cpu", "--precision", "int8", "--keep", "blocks.3.mlp.fc2")
    assert result.exit_code == 0, result.stderr
    assert [warning for warning in warnings_of(result.stderr) if "--calibrate" in warning]
    manifest, _ = read_manifest(out)
    assert manifest.accuracy is not None
    assert (manifest.accuracy.source, manifest.accuracy.images) == ("synthetic", 24)
    for name in ("logits", "embedding"):  # each number with its output
        found = manifest.accuracy.outputs[name]
        assert re.search(rf"\b{name}\b.*\b{found.cosine_min:.4f}\b.*\b{found.cosine_mean:.5f}\b", result.stdout), result.stdout
    assert_mentions(result.stdout, 20, "cpu", "int8", "24", "blocks.3.mlp.fc2", "100.0%")
    assert manifest.build["kept"] == [{"layer": "blocks.3.mlp.fc2", "before": None, "after": None}]


def test_a_folder_of_images_is_judged_on_and_json_has_the_accuracy(out, images):
    options = ["--target", "cpu", "--precision", "int8", "--calibrate", images, "--max-drop", 0.05]
    result = run("--out", out, *DIGITS, *options, "--json")
    assert result.exit_code == 0, result.stderr
    assert not [warning for warning in warnings_of(result.stderr) if "--calibrate" in warning]
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


def test_what_is_neither_measured_nor_judged_on_images_needs_no_word_about_them(exports):
    report = exports.export(digits_source(), "digits.onnx", precision="int8", verify=False)
    assert report.notes == ()
    assert report.manifest.accuracy is None
    assert report.manifest.build["precision"] == "int8"


@pytest.mark.unit
def test_every_option_about_the_target_is_read(images):
    spec = parse_export(*DIGITS, "--target", "openvino", "--token-split", "9,8", "--verify-passes").spec
    assert (spec.target, spec.precision, spec.written_opset, spec.token_split) == ("openvino", "fp32", 20, (9, 8))
    assert (spec.verify, spec.simplify, spec.verify_passes, spec.compare_speed, spec.force) == (True, True, True, True, False)
    options = ["--target", "cpu", "--precision", "int8", "--max-drop", 0.05, "--keep", "blocks.0.mlp.fc1,blocks.1.mlp.fc2"]
    spec = parse_export(*DIGITS, *options, "--calibrate", images, "--force", "--external-data").spec
    assert (spec.precision, spec.max_drop, spec.keep) == ("int8", 0.05, ("blocks.0.mlp.fc1", "blocks.1.mlp.fc2"))
    assert (spec.calibrate, spec.force, spec.external_data) == (images, True, True)


INT8 = ("--precision", "int8")
SPLIT = ("--target", "openvino", "--token-split")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["--target", "cpuu"], ("cpuu", *TARGETS)),
        (["--target", ""], ("''", *TARGETS)),
        (["--precision", "int4w"], ("int4w", "portable", "fp32", "--target cpu")),
        (["--target", "cpu", "--precision", "bf16"], ("bf16", "cpu", "openvino", "cuda", "tensorrt")),
        (["--target", "cpu", "--opset", "17"], (17, 18, 23, "--opset", 20)),
        ([*INT8, "--no-simplify"], ("--no-simplify", "int8")),
        (["--calibrate", "."], ("--calibrate", "fp32")),
        ([*INT8, "--calibrate", "absent"], ("--calibrate", "absent")),
        ([*INT8, "--calibrate", "{empty}"], ("{empty}", ".jpg")),
        (["--max-drop", "0.01"], ("--max-drop", *SEARCHED)),
        ([*INT8, "--max-drop", "0.01", "--no-verify"], ("--max-drop", *SEARCHED)),
        ([*INT8, "--max-drop", "1"], ("--max-drop", 0, 1)),
        ([*INT8, "--max-drop", "nan"], ("--max-drop", "nan", 0, 1)),
        (["--keep", "blocks.0.mlp.fc1"], ("--keep", "fp32", *SEARCHED)),
        (["--token-split", "9,8"], ("--token-split", "portable", "--target openvino")),
        ([*SPLIT, "9,9"], ("--token-split", "9,9", 17)),
        ([*SPLIT, "9,x"], ("--token-split", "9,x")),
        ([*SPLIT, "17,0"], ("--token-split", "17,0", 1)),
        ([*SPLIT, ""], ("--token-split", "''")),
        ([*SPLIT, "9,8", "--dynamic-size"], ("--token-split", "--img-size")),
        (["--precision", "int8-static", "--dynamic-size"], ("--token-split", "--img-size")),
        (["--verify-passes", "--no-verify"], ("--verify-passes",)),
        (["--verify-passes", "--no-simplify"], ("--verify-passes",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_do_not_go_together_are_one_line_and_leave_the_file_as_it_was(out, tmp_path, arguments, facts):
    out.write_bytes(b"earlier")
    empty = tmp_path / "empty"
    empty.mkdir()
    arguments = [argument.format(empty=empty) for argument in arguments]
    line = refused(run("--out", out, *DIGITS, "--force", *arguments), 2)
    assert_mentions(line, *(str(fact).format(empty=empty) for fact in facts))
    assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == {"vit.onnx": b"earlier"}


def test_a_layer_to_keep_that_is_not_there_is_answered_with_the_nearest(out):
    out.write_bytes(b"earlier")
    line = refused(run("--out", out, *DIGITS, *INT8, "--keep", "blocks.3.mlp.fc3", "--no-verify", "--force"), 2)
    assert_mentions(line, "--keep", "blocks.3.mlp.fc3")
    assert re.search(r"\bblocks\.3\.mlp\.fc[12]\b", line)
    assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == {"vit.onnx": b"earlier"}


@pytest.mark.unit
def test_static_int8_without_nncf_is_exit_code_4_before_the_work_starts(out, monkeypatch):
    """Before the architecture is looked up, which is unknown."""
    monkeypatch.setitem(sys.modules, "nncf", None)  # as Python marks a module that cannot be imported
    line = refused(run("--out", out, "--arch", "nonsense", "--precision", "int8-static"), 4)
    assert_mentions(line, "nncf", "pip install 'vit-deploy[quantize]'")


# --- checkpoints and machines that are not as they should be ----------------------------------------------------------


@pytest.mark.unit
def test_a_truncated_checkpoint_is_exit_code_3(out, checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    assert_mentions(refused(run("--out", out, "--checkpoint", checkpoint), 3), checkpoint)
    assert not list(out.parent.iterdir())


@pytest.mark.unit
def test_an_absent_checkpoint_is_exit_code_3(out):
    absent = out.with_name("absent.safetensors")
    assert_mentions(refused(run("--out", out, "--checkpoint", absent), 3), absent)


@pytest.mark.unit
def test_a_checkpoint_with_strange_preprocessing_is_exit_code_3(out, tmp_path):
    save_checkpoint(tmp_path / "strange.safetensors", initialized(SHALLOW), None, {"mean": "grey"})
    assert_mentions(refused(run("--out", out, "--checkpoint", tmp_path / "strange.safetensors"), 3), "mean")


@pytest.mark.unit
@pytest.mark.parametrize("package", ["torch", "onnx", "onnxsim", "safetensors"])
def test_a_missing_package_is_exit_code_4_and_names_the_command_that_mends_it(out, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    assert_mentions(refused(run("--out", out, *SMALL), 4), package, "pip install 'vit-deploy[export,cpu]'")


@pytest.mark.unit
def test_without_onnxruntime_there_is_no_proof_and_so_no_file(out, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert_mentions(refused(run("--out", out, *SMALL), 4), "onnxruntime", "pip install")
    assert not list(out.parent.iterdir())


def test_without_torch_the_list_of_architectures_is_one_line_too():
    """In a process that has not imported torch before, as the command does not either."""
    line = refused(process("--list-archs", before="import sys\nsys.modules['torch'] = None"), 4)
    assert_mentions(line, "torch", "vit-deploy[export,cpu]")


def test_without_onnxruntime_an_unverified_export_still_works(out):
    result = process("--out", out, *DIGITS, "--no-verify", "-q", before="import sys\nsys.modules['onnxruntime'] = None")
    assert result.returncode == 0, result.stderr
    assert out.exists()


def test_help_has_an_example_and_imports_no_heavy_package():
    code = "import sys\nfrom vit_exporter.cli import main\nmain(['--help'], standalone_mode=False)\n"
    code += "print(sorted({'torch', 'onnx', 'onnx_ir', 'onnxruntime', 'vit_models'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert_mentions(result.stdout, "vit-export --arch digits --out digits.onnx")


# --- folders and disks ------------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_an_image_size_whose_attention_outgrows_the_machine_is_refused_before_the_work(out):
    """262,145 tokens: 2 x 3 heads x 262,145^2 x 32 bytes are 13 TB."""
    line = refused(run("--out", out, "--arch", "ViT-Ti/16", "--img-size", "8192", "-q"), 4)
    assert_mentions(line, 262145, "--no-verify", "--img-size")
    assert not out.exists()


AS_NOBODY = """
import os
import onnxscript, onnxsim, vit_exporter.cli, vit_exporter.pipeline, vit_exporter.source  # while this user may still read them
if os.getuid() == 0:
    os.setgroups([]), os.setgid({nobody}), os.setuid({nobody})
"""


def test_a_folder_that_may_not_be_written_or_entered_is_refused():
    """Root may write everywhere, so the command gives root's rights up first."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        folders = {mode: Path(name) / f"{mode:o}" for mode in (0o555, 0o000)}
        for mode, folder in folders.items():
            folder.mkdir(mode)
        paths = [str(folder / "vit.onnx") for folder in folders.values()]
        code = f"{AS_NOBODY.format(nobody=NOBODY)}\nfor path in {paths!r}:\n    try:\n"
        code += f"        vit_exporter.cli.main(['--out', path, *{SMALL!r}, '-q'])\n    except SystemExit as end:\n        print(end.code)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
        assert done.stdout.split() == ["2", "2"]
        for path, line in zip(paths, done.stderr.splitlines(), strict=True):
            assert line.startswith("error: ")
            assert_mentions(line, "--out", path)
        for folder in folders.values():
            folder.chmod(0o755)
            assert not list(folder.iterdir())


def test_a_file_system_that_takes_no_file_so_large_is_exit_code_4_and_nothing_is_left(out):
    """As FAT32 does above 4 GB; here the process's own limit on the size of files stands in for it."""
    out.write_bytes(b"earlier")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        line = refused(run("--out", out, *DIGITS, "--no-verify", "--force"), 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_mentions(line, out.parent, "vit.onnx")
    assert not re.search(r"\d MB", line)  # that is the error of a disk that has too little room from the start
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
    command = ["unshare", "-m", "sh", "-c", script, "sh", str(size), str(folder), sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "OUT": str(folder)})


def parameter_bytes() -> int:
    return 4 * sum(parameter.numel() for parameter in digits_source().model.parameters())


@pytest.mark.full  # test_writer.py shows the error, and other tests here its exit code
def test_too_small_a_disk_is_seen_before_anything_is_written(out):
    result = on_small_disk(out.parent, 1 << 20, "--out", out, *DIGITS, "--no-verify")
    line = refused(result, 4)  # and so `ls` printed nothing: no file is left
    assert_mentions(line, out.parent, "1.0 MB", f"{parameter_bytes() / 1e6:.1f} MB")


@pytest.mark.parametrize("external", [[], pytest.param(["--external-data"], marks=pytest.mark.full)], ids=["one file", "two files"])
def test_a_disk_that_runs_full_half_way_is_exit_code_4_and_nothing_is_left(out, external):
    """There is room for the weights, which the command checks beforehand, and not for the graph beside them."""
    page = resource.getpagesize()
    size = -(-parameter_bytes() // page) * page
    line = refused(on_small_disk(out.parent, size, "--out", out, *DIGITS, "--no-verify", *external), 4)
    assert_mentions(line, out.parent, "vit.onnx")
    assert not re.search(r"\d MB", line)


# --- interruptions ----------------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_control_c_is_exit_code_130_and_one_line(monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(vit_exporter.pipeline, "export", interrupt)
    result = run("--out", "vit.onnx", *DIGITS)
    assert (result.exit_code, result.stdout) == (130, "")
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr)


@pytest.mark.parametrize(("sent", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.full), (signal.SIGTERM, 143)])
def test_an_interruption_half_way_leaves_no_file_and_keeps_the_earlier_one(out, sent, code):
    out.write_bytes(b"earlier")
    # A shell that starts the tests in the background lets them ignore Ctrl-C, which children inherit.
    heed = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\nfrom vit_exporter.cli import main"
    command = f"{heed}\nmain(['--out', {str(out)!r}, *{SMALL!r}, '--force', '-q'])"
    running = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(list(out.parent.iterdir())) == 1 and running.poll() is None:  # the second entry is what is being written
        assert time.monotonic() < deadline
        time.sleep(0.002)
    running.send_signal(sent)
    stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == code, stderr
    assert stdout == ""
    assert re.fullmatch(r"error: [^\n]+\n" if sent == signal.SIGINT else "", stderr)
    assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == {"vit.onnx": b"earlier"}
