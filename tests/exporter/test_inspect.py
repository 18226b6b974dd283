"""vit-inspect: what a checkpoint is, in words and as data, without torch and without reading a weight."""

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from export_commands import parse_export
from helpers import assert_mentions
from reference_cases import cases

from vit_exporter.inspect import main
from vit_models import Options, inspect

ROOT = Path(__file__).parents[2]
CARRIED = ROOT / "tests" / "data" / "checkpoints"
CASES = {case.name: case for case in cases(CARRIED)}
TORCHVISION = CARRIED / "torchvision__vit_interpolate" / "vit_interpolate.pth"


@pytest.fixture(autouse=True)
def own_signals():
    """The command answers SIGTERM in its own way; the tests' process gets its old way back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception  # a traceback, which no user may see
    return result


def text_of(*arguments: object) -> str:
    result = run(*arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def row_of(text: str, name: str) -> str:
    """The lines that belong to a row, without its name."""
    match = re.search(rf"^  {name:<9} (.*(?:\n {{12}}.*)*)$", text, re.MULTILINE)
    assert match, text
    return re.sub(r"\n +", "\n", match[1])


def arguments_of(options: Options) -> list[str]:
    words = [f"--img-size={options.img_size[0]},{options.img_size[1]}"] if options.img_size else []
    words += [f"--format={options.format}"] if options.format else []
    words += [f"--weights={options.weights}"] if options.weights else []
    return words + [f"--model-arg={name}={value}" for name, value in options.model_args.items()]


def refused(*arguments: object, exit_code: int) -> str:
    """The one line of an error, which is all that is printed."""
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (exit_code, ""), result.stderr
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr)
    return result.stderr


# ---- in words ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_every_row_says_what_the_checkpoint_is():
    path = CARRIED / "hf__dinov2_registers_cls"
    text = text_of(path)
    title, *_, last = text.splitlines()
    assert_mentions(title, path, "Dinov2WithRegistersForImageClassification")
    assert_mentions(row_of(text, "network"), 2, 44, 4, "8 x 8", 88, "GELU", "1e-06", "LayerScale", "42,250", "473,968")
    assert_mentions(row_of(text, "image"), "24 x 24", 3)
    assert_mentions(row_of(text, "tokens"), 2, "registers", 9)
    assert_mentions(row_of(text, "pooling"), "class", "mean", "LayerNorm")
    assert_mentions(row_of(text, "head"), 10, "class_0", "class_1")
    pixels = row_of(text, "pixels")
    assert_mentions(pixels, "RGB", "shorter", 24, "bicubic", "24x24", 255, "0.485 0.456 0.406", "0.229 0.224 0.225")
    assert_mentions(row_of(text, "converted"), 45, "float32")
    assert_mentions(row_of(text, "ignored"), "dinov2_with_registers.embeddings.mask_token")
    assert_mentions(last, f"vit-export --checkpoint {path} --out vit.onnx")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("path", "row", "facts"),
    [
        ("openai_clip__vit/clip_state_dict.pt", "network", (2, 64, 1, "8 x 8", 256, "quick GELU", "1e-05", "pre-norm")),
        ("openai_clip__vit/clip_state_dict.pt", "head", (40, "projection")),
        ("openai_clip__vit/clip_state_dict.pt", "converted", (32, "float16")),
        ("openai_clip__vit/clip_state_dict.pt", "ignored", ("transformer.resblocks.0.attn.in_proj_weight", 14, "text")),
        ("hf__vit_cls_bf16", "converted", (40, "bfloat16")),
        ("hf__deit_teacher", "tokens", ("class", "distillation", 24)),
        ("hf__deit_teacher", "image", ("48 x 32", 3)),
        ("hf__deit_teacher", "pooling", ("class", "distillation", "LayerNorm")),
        ("hf__dinov3_vit", "tokens", (4, "registers", 16, "rotary")),
        ("hf__dinov3_vit", "head", (48,)),
        ("hf__dinov3_vit", "note", ("--img-size 32,48", "transformers")),
        ("hf__siglip_cls", "ignored", ("vision_model.head.attention.out_proj.bias", 8, "SiglipForImageClassification")),
        ("big_vision__siglip2_scan/siglip2_scan.npz", "pooling", ("probe", "LayerNorm")),
        ("google_vit__prelogits/prelogits.npz", "pooling", ("pre-logits", 48, "LayerNorm")),
        ("timm__beit_nonsquare", "tokens", (24, "relative")),
        ("timm__eva02_tiny", "tokens", (16, "rotary", "table")),
        ("timm__eva02_tiny", "network", (72, "SiLU", "gated")),
        ("timm__vit_inchans", "image", ("32 x 32", 1)),
        ("timm__vit_inchans", "pixels", (35, "bicubic", "32x32", 255, 0.5)),
        ("timm__wrappers/timm_train.pth.tar", "note", ("state_dict", "--weights ema", "state_dict_ema")),
    ],
)
def test_a_row_tells_what_is_particular(path, row, facts):
    """Several rows may have the same name."""
    rows = re.findall(rf"^  {row:<9} (.*(?:\n {{12}}.*)*)$", text_of(CARRIED / path), re.MULTILINE)
    (found,) = (text for text in rows if str(facts[0]) in text)
    assert_mentions(found, *facts)


@pytest.mark.parametrize("name", CASES)
def test_every_reference_checkpoint_is_described_in_rows(name):
    case = CASES[name]
    text = text_of(case.path, *arguments_of(case.options))
    title, *rows, last = text.splitlines()
    assert_mentions(title, case.path)
    kinds = [kind for row in rows if (kind := row[2:11].strip())]
    assert kinds[:7] == ["network", "image", "tokens", "pooling", "head", "pixels", "converted"]
    assert set(kinds[7:]) <= {"ignored", "note"}
    assert_mentions(last, "vit-export --checkpoint")
    for oddity in ("None", "1 heads", "1 classes", "1 patches", "0.0 M", "F32", "('", "[", "{"):
        assert oddity not in text
    assert ("projection" in row_of(text, "head")) == inspect(case.path, case.options).config.projection


@pytest.mark.unit
def test_the_document_shows_what_is_printed(monkeypatch):
    """docs/checkpoints.md has a whole example."""
    monkeypatch.chdir(ROOT)
    document = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    example = re.search(r"^\$ vit-inspect (tests/.*)\n((?:.*\n)*?)```", document, re.MULTILINE)
    assert example
    assert text_of(*example[1].split()) == example[2]


@pytest.mark.unit
def test_the_next_command_repeats_what_was_asked_for_and_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my model.pth").write_bytes(TORCHVISION.read_bytes())
    asked = ["--model-arg", "num_heads=4", "--img-size", "48,32", "--pool", "mean", "--drop-head"]
    last = text_of("my model.pth", *asked).splitlines()[-1]
    words = shlex.split(last[last.index("vit-export") :])
    assert words[:3] == ["vit-export", "--checkpoint", "my model.pth"]
    assert sorted(words[3:-2]) == sorted(asked)
    parsed = parse_export(*words[1:])
    assert parsed.spec.out == Path("vit.onnx")
    config = parsed.source.model.config
    assert (config.num_heads, config.img_size, config.pool, config.num_classes) == (4, (48, 32), "mean", 0)


# ---- as data -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_the_document_holds_what_python_gets(name):
    case = CASES[name]
    document, spec = json.loads(text_of(case.path, *arguments_of(case.options), "--json")), inspect(case.path, case.options)
    assert (document["format"], document["title"], document["arch"]) == (spec.format, spec.title, spec.arch)
    assert document["config"]["img_size"] == list(spec.config.img_size)
    assert (document["config"]["num_heads"], document["config"]["projection"]) == (spec.config.num_heads, spec.config.projection)
    assert (document["parameters"], document["macs"]) == (spec.parameters, spec.config.macs)
    assert document["preprocessing"] == spec.preprocessing
    assert (document["converted"], document["ignored"]) == (list(spec.converted), dict(spec.ignored))
    assert (document["notes"], document["trained_size"]) == (list(spec.notes), list(spec.trained_size))


@pytest.mark.unit
def test_the_documents_values_are_right():
    document = json.loads(text_of(TORCHVISION, "--model-arg", "num_heads=4", "--img-size", 48, "--json"))
    assert (document["path"], document["format"], document["title"], document["arch"]) == (
        str(TORCHVISION), "torchvision", "torchvision", None,
    )  # fmt: skip
    config = document["config"]
    assert [config[key] for key in ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_dim", "num_classes")] == [
        [48, 48], 8, 40, 2, 4, 80, 7,
    ]  # fmt: skip
    assert (document["trained_size"], document["dtypes"], document["labels"]) == ([32, 32], ["F32"], None)
    assert (document["preprocessing"]["crop"]["height"], document["preprocessing"]["interpolation"]) == (48, "bilinear")
    patches, block = 3 * 64 * 40 + 40, 4 * 40 + 3 * 40 * 40 + 3 * 40 + 40 * 40 + 40 + 2 * 40 * 80 + 80 + 40
    assert document["parameters"] == patches + 40 + 37 * 40 + 2 * block + 2 * 40 + 40 * 7 + 7
    assert (len(document["converted"]), document["ignored"]) == (32, {})
    (note,) = document["notes"]
    assert_mentions(note, "32 x 32", "48 x 48", "bicubic_align_corners")


@pytest.mark.unit
def test_quiet_prints_nothing():
    assert text_of(CARRIED / "timm__vit_map", "-q") == ""


# ---- errors --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize(
    ("path", "options", "facts"),
    [
        ("absent", [], ("absent", "No such file or directory")),
        ("timm__wrappers", [], ("timm__wrappers", "several")),
        ("timm__wrappers/case.json", [], ("case.json", "safetensors", "ONNX")),
        ("torchvision__vit_interpolate/vit_interpolate.pth", [], ("--model-arg num_heads=6", "--arch")),
        ("dino__vit_interpolate/vit_interpolate.pth", [], ("timm", "DINO", "MAE", "--format")),
    ],
)
def test_a_file_that_cannot_be_told_is_one_line_and_exit_code_3(path, options, facts):
    assert_mentions(refused(CARRIED / path, *options, exit_code=3), *facts)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("path", "options", "facts"),
    [
        ("hf__vit_cls_bf16", ["--format", "tim"], ("tim", "vit-deploy", "hugging-face", "timm")),
        ("hf__vit_cls_bf16", ["--format", "timm"], ("timm", "Hugging Face transformers", "--format")),
        ("hf__vit_cls_bf16", ["--format", "onnx"], ("ONNX", "Hugging Face transformers", "--format")),
        ("hf__vit_cls_bf16", ["--arch", "vit"], ("--arch", "config.json")),
        ("hf__vit_cls_bf16", ["--img-size", "30"], (30, 8, 24, 32)),
        ("hf__beit_cls", ["--img-size", "30"], (30, 8, 24, 32)),
        ("timm__vit_map", ["--arch", "vit_bas"], ("vit_bas", "timm")),
        ("timm__vit_map", ["--model-arg", "heads=4"], ("--model-arg", "heads", "timm")),
        ("timm__vit_map", ["--model-arg", "num_heads=7"], (40, 7, "heads")),
        ("timm__vit_map", ["--model-arg", "num_heads"], ("--model-arg", "num_heads", "NAME=VALUE")),
        ("timm__wrappers/plain_state_dict.pth", ["--weights", "ema"], ("EMA",)),
        ("google_vit__prelogits/prelogits.npz", ["--arch", "B/16"], ("--arch", "B/16")),
        ("openai_clip__vit/clip_state_dict.pt", ["--model-arg", "width=4"], ("--model-arg", "width", "OpenAI CLIP")),
        ("openai_clip__vit/clip_state_dict.pt", ["--pool", "map"], ("map", "probe")),
        ("big_vision__gap_bf16/gap_bf16.npz", ["--pool", "cls"], ("pool", "cls")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_option_that_cannot_be_is_one_line_and_exit_code_2(path, options, facts):
    """The user corrects the command, not the file."""
    assert_mentions(refused(CARRIED / path, *options, exit_code=2), *facts)


@pytest.mark.unit
def test_an_error_with_json_is_a_document_too():
    result = run(CARRIED / "absent", "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == document["exit_code"] == 3
    assert result.stderr == f"error: {document['error']}\n"


@pytest.mark.unit
def test_what_click_refuses_is_exit_code_2():
    assert run().exit_code == run(TORCHVISION, "--pool", "max").exit_code == run(TORCHVISION, "--weights", "mine").exit_code == 2


# ---- what it costs -------------------------------------------------------------------------------------------------------------------

COST = """
import resource, sys
from vit_exporter.inspect import main
for path in sys.argv[1:]:
    main([path], standalone_mode=False)
print(sorted({'torch', 'onnx', 'onnxruntime', 'transformers'} & set(sys.modules)), file=sys.stderr)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024), file=sys.stderr)
"""


def cost_of(*paths: Path) -> tuple[str, str, int]:
    """What is said of a checkpoint by a process of its own, the heavy packages that it imported, and its peak memory in bytes."""
    done = subprocess.run([sys.executable, "-c", COST, *map(str, paths)], capture_output=True, text=True, timeout=120, check=True)
    packages, peak = done.stderr.splitlines()
    return done.stdout, packages, int(peak)


def test_safetensors_are_inspected_without_torch():
    names = ("hf__vit_cls_bf16", "hf__vit_cls_sharded", "timm__eva02_tiny", "open_clip__vit_quickgelu")
    assert cost_of(*(CARRIED / name for name in names))[1] == "[]"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no getrusage, and files are not sparse by themselves")
def test_a_large_file_takes_no_memory(tmp_path):
    """A ViT-L of 1.2 GB as Hugging Face names it, all holes on the disk: only its header is read."""
    tiny = CARRIED / "hf__vit_cls_bf16"
    config = json.loads((tiny / "config.json").read_text())
    sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    config |= sizes | {"image_size": 224, "patch_size": 16, "architectures": ["ViTForImageClassification"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for name, shape in vit_large(len(config["id2label"])).items():
        size = 4
        for side in shape:
            size *= side
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    assert end > 1_200_000_000
    said, packages, peak = cost_of(tmp_path)
    assert_mentions(said, "303.3 M")
    assert packages == "[]"
    assert peak < cost_of(tiny)[2] + 16_000_000  # the header's 30 kB, and what two runs differ by


def vit_large(classes: int) -> dict[str, list[int]]:
    """The shapes of ViTForImageClassification's large network, by name."""
    width, mlp = 1024, 4096
    linear = {"attention.attention.query": (width, width), "attention.attention.key": (width, width)}
    linear |= {"attention.attention.value": (width, width), "attention.output.dense": (width, width)}
    linear |= {"intermediate.dense": (mlp, width), "output.dense": (width, mlp)}
    shapes = {"vit.embeddings.cls_token": [1, 1, width], "vit.embeddings.position_embeddings": [1, 197, width]}
    shapes["vit.embeddings.patch_embeddings.projection.weight"] = [width, 3, 16, 16]
    for layer in range(24):
        block = f"vit.encoder.layer.{layer}"
        for name, (rows, columns) in linear.items():
            shapes |= {f"{block}.{name}.weight": [rows, columns], f"{block}.{name}.bias": [rows]}
        shapes |= {f"{block}.layernorm_{place}.{part}": [width] for place in ("before", "after") for part in ("weight", "bias")}
    shapes |= {"vit.embeddings.patch_embeddings.projection.bias": [width], "vit.layernorm.weight": [width], "vit.layernorm.bias": [width]}
    return shapes | {"classifier.weight": [classes, width], "classifier.bias": [classes]}
