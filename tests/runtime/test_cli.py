"""The commands: what all of them share, what they print, where, and the exit code that a pipeline goes by."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import onnx
import pytest
from helpers import COMMANDS, MODULES, QUICK, assert_mentions, document_of, failed, one_line, run, run_apart

from vit_runtime.cli.common import table, whole_numbers
from vit_runtime.errors import InputError


@pytest.mark.unit
@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_and_every_option(command: str):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert_mentions(result.stdout, f"{command} vit.onnx", "--json", "-q, --quiet")
    for parameter in COMMANDS[command].params:
        if isinstance(parameter, click.Option):
            assert parameter.help


IMPORTED_BY_HELP = """
import importlib, sys
for module in sys.argv[1:]:
    importlib.import_module(module).main(["--help"], standalone_mode=False)
    heavy = [name for name in ("onnxruntime", "torch", "onnx", "PIL", "vit_models", "vit_exporter") if name in sys.modules]
    print("imported:", module, *heavy)
"""


def test_help_is_quick_it_imports_neither_onnxruntime_nor_torch_nor_pillow():
    modules = list(MODULES.values())
    command = [sys.executable, "-c", IMPORTED_BY_HELP, *modules]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, check=True)
    assert [line for line in result.stdout.splitlines() if line.startswith("imported:")] == [f"imported: {module}" for module in modules]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_is_damaged_missing_or_not_ours_is_exit_code_3(command: str, broken: Path, images: Path, tmp_path: Path):
    more = [images] if command == "vit-predict" else []
    assert_mentions(failed(run(command, broken, *more), 3), broken, "copy", "export")
    assert_mentions(failed(run(command, tmp_path / "no.onnx", *more), 3), f"vit-export --out {tmp_path / 'no.onnx'}")
    assert_mentions(failed(run(command, tmp_path, *more), 3), tmp_path, "folder")
    other = tmp_path / "other.onnx"
    other.write_bytes(
        onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 18]> g (float[2] x) => (float[2] x) {}').SerializeToString()
    )
    if command != "vit-trt":  # which takes others' files too
        assert_mentions(failed(run(command, other, *more), 3), other, "vit_deploy", "manifest", "vit-export")


@pytest.mark.unit
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("arguments", [(), ("--nonsense",)])
def test_wrong_usage_is_exit_code_2_and_points_to_help(command: str, arguments: tuple[str, ...]):
    result = run(command, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert_mentions(result.stderr, f"{command} --help")


@pytest.mark.unit
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("arguments", "fact"), [(("--json",), "MODEL"), (("--nonsense", "--json"), "--nonsense")])
def test_wrong_usage_is_a_document_too(command: str, arguments: tuple[str, ...], fact: str):
    document = document_of(run(command, *arguments), 2)
    assert document["exit_code"] == 2
    assert_mentions(document["error"], fact)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_error_is_a_document_on_stdout_and_a_line_on_stderr(command: str, broken: Path, images: Path):
    result = run(command, broken, *([images] if command == "vit-predict" else []), "--json")
    document = document_of(result, 3)
    assert document == {"error": document["error"], "exit_code": 3}
    assert result.stderr == f"error: {document['error']}\n"


@pytest.mark.parametrize("command", ["vit-predict", "vit-parity", "vit-bench"])
def test_a_provider_that_this_machine_lacks_is_exit_code_4(command: str, tiny_model: Path, images: Path):
    ort = pytest.importorskip("onnxruntime")
    if len(ort.get_available_providers()) > 2:
        pytest.skip("this onnxruntime was built with GPU providers")
    image: list[str | Path] = [images] if command == "vit-predict" else []
    more = [*image, "--providers" if command == "vit-parity" else "--provider"]
    assert_mentions(failed(run(command, tiny_model, *more, "cuda"), 4), "'cuda'")
    assert document_of(run(command, tiny_model, *more, "cuda", "--json"), 4)["exit_code"] == 4
    assert_mentions(failed(run(command, tiny_model, *more, "gpu"), 2), "'gpu'", "auto, cpu, openvino, cuda, tensorrt")


@pytest.mark.parametrize("command", ["vit-predict", "vit-parity", "vit-bench"])
def test_an_impossible_number_of_threads_is_exit_code_2(command: str, tiny_model: Path, images: Path):
    more = [images] if command == "vit-predict" else []
    assert_mentions(failed(run(command, tiny_model, *more, "--threads", "0"), 2), "threads", 0)


@pytest.mark.parametrize(
    "command",
    [
        "vit-predict",
        "vit-trt",  # which has a line of progress of its own
        *(pytest.param(command, marks=pytest.mark.full) for command in ("vit-parity", "vit-bench", "vit-info")),
    ],
)
def test_in_a_pipe_there_is_no_progress(command: str, tiny_model: Path, images: Path):
    more: dict[str, tuple[str | Path, ...]] = {"vit-predict": (images,), "vit-bench": QUICK, "vit-trt": ("--sm", "89")}
    result = run_apart(command, tiny_model, *more.get(command, ()))
    assert result.returncode == 0
    assert result.stderr == ""
    assert result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_quiet_prints_nothing_but_errors_and_the_document(command: str, tiny_model: Path, broken: Path, images: Path):
    more: dict[str, tuple[str | Path, ...]] = {"vit-predict": (images,), "vit-bench": QUICK, "vit-trt": ("--sm", "89")}
    quiet = run(command, tiny_model, *more.get(command, ()), "-q")
    assert (quiet.exit_code, quiet.output) == (0, "")
    assert document_of(run(command, tiny_model, *more.get(command, ()), "-q", "--json"))
    failed(run(command, broken, *more.get(command, ()), "-q"), 3)


def test_quiet_still_gives_the_exit_code_of_a_failed_check(tiny_model: Path, edited: Callable[[float], Path]):
    parity = run("vit-parity", edited(0.5), "--batch-sizes", "1", "-q")
    bench = run("vit-bench", tiny_model, "--max-p50-ms", "0.000001", "-q", *QUICK)
    for result in (parity, bench):
        assert (result.exit_code, result.output) == (1, "")


def test_errors_in_a_process_of_its_own_are_one_line_without_a_traceback(broken: Path, tiny_model: Path, tmp_path: Path):
    failed(run_apart("vit-info", broken), 3)
    failed(run_apart("vit-predict", tiny_model, tmp_path / "no.jpg"), 2)


@pytest.mark.unit
@pytest.mark.parametrize("text", ["", "1,", "a", "1.5", "0", "-1", "1,1"])
def test_numbers_that_are_none_are_refused_under_their_option(text: str):
    with pytest.raises(InputError) as error:
        whole_numbers(text, "--sizes")
    assert_mentions(one_line(error), "--sizes", repr(text))


@pytest.mark.unit
def test_numbers_are_split_at_commas():
    assert whole_numbers("8, 1,32", "--sizes") == [8, 1, 32]


@pytest.mark.unit
def test_numbers_may_be_repeated_where_that_means_something():
    assert whole_numbers("99,99,1", "--pieces", once=False) == [99, 99, 1]
    with pytest.raises(InputError) as error:
        whole_numbers("99,0", "--pieces", once=False)
    assert_mentions(one_line(error), "--pieces", "'99,0'", 1)


@pytest.mark.unit
def test_a_table_is_as_wide_as_its_longest_cells():
    assert table([["a", "bb"], ["ccc", "d"]]) == "  a    bb\n  ccc   d"
