"""vit-info: what is in a file."""

import re
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
import pytest
from helpers import assert_mentions, document_of, run, with_manifest

from vit_runtime.manifest import Manifest, read_manifest


def labeled_lines(report: str) -> dict[str, str]:
    """The lines of a report by the label in their first column; lines without a label continue the one before and are left out."""
    return {line[:8].strip(): line for line in report.splitlines() if line[:1] not in ("", " ")}


def test_info_says_what_is_in_a_file(tiny_model: Path):
    result = run("vit-info", tiny_model)
    assert result.exit_code == 0
    lines = labeled_lines(result.stdout)
    assert_mentions(lines["model"], "0.0 M", 8, "cls")
    assert_mentions(lines["weights"], "random", 0)
    assert_mentions(lines["input"], "pixel_values float32 (batch, 3, 32, 32)")
    assert_mentions(lines["images"], "RGB", "32x32", "bilinear", "255", "mean 0.5", "std 0.5")
    assert_mentions(lines["output"], "logits float32 (batch, 10)")
    assert_mentions(lines["labels"], 10, "ant, bee, cat, dog, eel")
    assert_mentions(lines["graph"], 18, "portable", "fp32")
    assert_mentions(lines["ops"], "LayerNormalization 5")
    assert_mentions(lines["parity"], 48, "4x", "16x")


@pytest.mark.parametrize(
    ("fixture", "line", "fact"),
    [
        ("tiny_external", "file", "tiny.onnx.data"),
        ("tiny_unverified", "parity", "--no-verify"),
        ("tiny_embedder", "labels", "classes"),
        ("tiny_clip", "labels", "classes"),
        ("tiny_clip", "output", "logits float32 (batch, 24)"),
        ("tiny_projected", "labels", "none"),
        ("tiny_projected", "", "tokens float32 (batch, 65, 64)"),
    ],
)
def test_info_of_other_files(fixture: str, line: str, fact: str, request: pytest.FixtureRequest):
    result = run("vit-info", request.getfixturevalue(fixture))
    assert result.exit_code == 0
    assert any(fact in text for text in result.stdout.splitlines() if text[:8].strip() == line)


def test_info_of_a_reduced_file_says_how_near_it_is_to_pytorch(tiny_int8: Path):
    result = run("vit-info", tiny_int8)
    assert result.exit_code == 0
    lines = labeled_lines(result.stdout)
    assert_mentions(lines["graph"], 20, "cpu", "int8")
    assert_mentions(lines["images"], "255", "mean 0.5", "std 0.5", "graph")  # the normalization is part of the graph
    assert_mentions(lines["parity"], 48)
    assert_mentions(lines["accuracy"], 24, "cpu")
    manifest = read_manifest(tiny_int8)[0]
    assert manifest.parity is not None
    assert manifest.accuracy is not None
    rows = [line.split() for line in result.stdout.splitlines()]
    for measured in manifest.parity.measured:
        assert measured.nearness is not None
        row = next(row for row in rows if row[:5] == ["cpu", measured.output, str(measured.batch_size), "32x32", measured.inputs])
        golden = measured.inputs == "golden"  # others have no limit of their mean
        assert (row[5], row[7]) == (f"{measured.nearness.cosine:.5f}", f"{measured.nearness.cosine_mean:.5f}")
        assert len(row) == (8 + golden) + (2 if measured.output == "logits" else 0)
    found = manifest.accuracy.outputs["logits"]
    assert found.top1 is not None
    assert ["logits", f"{found.cosine_min:.5f}", f"{found.cosine_mean:.5f}", f"{found.top1:.1%}", f"{found.kl_mean:.1e}"] in rows
    found = manifest.accuracy.outputs["embedding"]
    assert ["embedding", f"{found.cosine_min:.5f}", f"{found.cosine_mean:.5f}"] in rows


def test_info_names_kept_layers_pieces_of_tokens_and_photographs(tiny_int8: Path, tmp_path: Path):
    def change(document: Any) -> None:
        document["build"]["token_split"] = [9, 8]
        document["build"]["kept"] = [{"layer": "blocks.0.mlp.fc2", "before": 0.97, "after": 0.99}]
        document["accuracy"]["source"] = "photographs"

    result = run("vit-info", with_manifest(tiny_int8, tmp_path, change))
    assert result.exit_code == 0
    lines = labeled_lines(result.stdout)
    assert_mentions(lines["graph"], "9, 8")
    assert_mentions(lines["kept"], "blocks.0.mlp.fc2")
    assert_mentions(lines["accuracy"], 24, "photographs", "cpu")


def test_info_of_a_float32_file_names_neither(tiny_model: Path):
    result = run("vit-info", tiny_model)
    assert result.exit_code == 0
    lines = labeled_lines(result.stdout)
    assert not {"kept", "accuracy"} & lines.keys()
    assert not re.search(r"\b\d+, \d", lines["graph"])  # no sizes of chunks of tokens
    assert "graph" not in lines["images"]


def test_info_shows_the_ops_before_and_after_each_pass(tiny_int8: Path):
    """A column a pass, a dot where it left the number as it was; the last number of each row is what the graph has now."""
    result = run("vit-info", tiny_int8, "--graph")
    assert result.exit_code == 0
    build = read_manifest(tiny_int8)[0].build
    title, header, *rows = result.stdout.splitlines()
    assert_mentions(title, tiny_int8, 20, "cpu", "int8")
    count = len(build["passes"])
    assert header.split() == ["traced", *(str(number) for number in range(1, count + 1))]
    assert rows[-count:] == [f"  {number}  {step['name']}" for number, step in enumerate(build["passes"], start=1)]
    (totals,) = (row.split() for row in rows if row.startswith("  nodes "))
    assert totals == ["nodes", str(sum(build["traced"].values())), *(str(step["nodes_after"]) for step in build["passes"])]
    stages = [build["traced"], *(step["ops"] for step in build["passes"])]
    table_rows = [row.split() for row in rows[: rows.index(next(row for row in rows if row.startswith("  nodes ")))]]
    assert {name for name, *_ in table_rows} == {op for ops in stages for op in ops}
    for name, first, *changes in table_rows:
        now = [int(first)]
        for change in changes:
            now.append(now[-1] if change == "." else int(change))
        assert now == [ops.get(name, 0) for ops in stages], name
    assert [row[1:] for row in table_rows if row[0] == "MatMulInteger"] == [["0", *["."] * (count - 1), "12"]]


def test_info_shows_errors_of_passes_where_they_were_measured(tiny_int8: Path, tmp_path: Path):
    def change(document: Any) -> None:
        document["build"]["passes"][0]["floors"] = 1.234
        document["build"]["passes"][-1]["floors"] = 40

    assert "floors" not in run("vit-info", tiny_int8, "--graph").stdout
    result = run("vit-info", with_manifest(tiny_int8, tmp_path, change), "--graph")
    assert re.search(r"floors +1\.23 +40\.00$", result.stdout, re.MULTILINE)


def test_info_shows_the_graph_of_a_file_whose_passes_were_left_out(tiny_model: Path, tmp_path: Path):
    result = run("vit-info", with_manifest(tiny_model, tmp_path, lambda document: document["build"].update(passes=[])), "--graph")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1].split() == ["traced"]


def test_the_graph_as_data_is_the_whole_manifest_too(tiny_int8: Path):
    assert document_of(run("vit-info", tiny_int8, "--graph", "--json")) == document_of(run("vit-info", tiny_int8, "--json"))


@pytest.mark.parametrize("value", [None, "x", [None], {}], ids=["null", "text", "list", "object"])
def test_info_prints_whatever_a_manifest_says_or_refuses_it(value: object, tiny_int8: Path, tmp_path: Path):
    """Of how the file was made and judged: no entry of another kind is a traceback."""
    build = ["token_split", "calibration", "islands", "kept", "traced", "passes"]
    places: list[list[str | int]] = [["build", entry] for entry in build]
    places += [["build", "traced", "Add"], ["build", "kept", 0], ["build", "kept", 0, "layer"], ["build", "kept", 0, "before"]]
    places += [["build", "islands", 0], ["build", "islands", 0, "node"], ["build", "islands", 0, "largest"]]
    places += [["build", "passes", 0, entry] for entry in ("name", "ops", "floors", "nodes_before")] + [
        ["build", "passes", 0, "ops", "Add"]
    ]
    places += [["accuracy"], ["accuracy", "outputs"], ["accuracy", "source"], ["accuracy", "images"]]
    places += [["accuracy", "outputs", "logits", entry] for entry in ("cosine_min", "cosine_mean", "top1", "kl_mean", "kl_max")]
    places += [["parity", "measured", 0, "nearness"], ["parity", "limits"], ["parity", "measured"]]
    for place in places:

        def change(document: Any, place: list[str | int] = place) -> None:
            document["build"]["kept"] = [{"layer": "blocks.0.mlp.fc2", "before": None, "after": None}]
            document["build"]["islands"] = [
                {"node": "blocks.0.mlp.fc2/MatMul", "value": "blocks.0.mlp.fc2/MatMul", "largest": 81200.0, "reason": "overflow"}
            ]
            *above, last = place
            for key in above:
                document = document[key]
            document[last] = value

        path = with_manifest(tiny_int8, tmp_path, change)
        for more in ((), ("--graph",)):
            assert run("vit-info", path, *more).exit_code in (0, 3), place


def test_info_gives_the_whole_manifest_as_data(tiny_model: Path, tiny_manifest: Manifest):
    document = document_of(run("vit-info", tiny_model, "--json"))
    assert document["manifest"] == tiny_manifest.to_dict()
    assert document["file"]["path"] == str(tiny_model)
    assert document["file"]["size"] == tiny_model.stat().st_size
    assert document["file"]["nodes"] == sum(document["file"]["ops"].values()) == len(onnx.load(tiny_model).graph.node)


# --- --check tensorrt


def test_check_passes_a_file_that_tensorrt_can_take(tiny_model: Path):
    result = run("vit-info", tiny_model, "--check", "tensorrt")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1
    assert_mentions(result.stdout, tiny_model, "TensorRT")
    document = document_of(run("vit-info", tiny_model, "--check", "tensorrt", "--json"))
    assert document == {"model": str(tiny_model), "check": "tensorrt", "ok": True, "problems": []}


def test_check_fails_with_a_line_for_each_problem(tiny_int8: Path):
    result = run("vit-info", tiny_int8, "--check", "tensorrt")
    assert result.exit_code == 1
    title, *lines = result.stdout.splitlines()
    assert_mentions(title, tiny_int8, "TensorRT")
    assert_mentions(lines[0], "target cpu", "vit-export --target tensorrt")
    assert any("12 x MatMulInteger (" in line for line in lines)
    document = document_of(run("vit-info", tiny_int8, "--check", "tensorrt", "--json"), 1)
    assert not document["ok"]
    assert len(document["problems"]) == len(lines)


def test_check_takes_files_of_others_and_asks_no_compiler(tmp_path: Path):
    path = tmp_path / "foreign.onnx"
    path.write_bytes(
        onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["": 18]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
        ).SerializeToString()
    )
    assert run("vit-info", path).exit_code == 3
    assert run("vit-info", path, "--check", "tensorrt").exit_code == 0


def test_check_of_an_unreadable_file_is_no_failed_check(tmp_path: Path):
    (tmp_path / "text.onnx").write_text("no model")
    assert run("vit-info", tmp_path / "text.onnx", "--check", "tensorrt").exit_code == 3
