"""vit-parity: whether a file is what its record says, as lines, as data and as exit code."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import assert_mentions, copied, document_of, failed, run, run_apart, with_manifest
from onnx import numpy_helper


def test_parity_passes_an_honest_file(tiny_model: Path):
    result = run("vit-parity", tiny_model)
    assert result.exit_code == 0
    assert_mentions(result.stdout.splitlines()[0], tiny_model, "cpu", "passed", 4, 16)
    assert "FAILED" not in result.stdout
    assert len(re.findall(r"^  (logits|embedding|tokens|attention) +[1-7] ", result.stdout, re.MULTILINE)) == 24


def test_parity_fails_a_changed_file_with_exit_code_1(tiny_model: Path, edited: Callable[[float], Path]):
    path = edited(0.5)
    result = run("vit-parity", tiny_model, path, "--batch-sizes", "1,4")
    assert result.exit_code == 1
    heads = [line for line in result.stdout.splitlines() if line.startswith("/")]
    for head, facts in zip(heads, ((tiny_model, "passed"), (path, "FAILED"), (path, tiny_model, "FAILED")), strict=True):
        assert_mentions(head, "cpu", *facts)
    assert re.findall(r"^  (\w+) .*FAILED$", result.stdout, re.MULTILINE) == ["logits"] * 7  # two sizes: record, first file, no camera's


def test_parity_gives_the_same_as_data(tiny_model: Path, edited: Callable[[float], Path]):
    path = edited(0.5)
    document = document_of(run("vit-parity", tiny_model, path, "--json", "--batch-sizes", "3"), 1)
    assert document["passed"] is False
    assert [(entry["model"], entry["passed"]) for entry in document["models"]] == [(str(tiny_model), True), (str(path), False)]
    report = document["models"][0]["reports"][0]
    assert report["limits"] == {"rms": 4.0, "max": 16.0}
    assert {check["batch_size"] for check in report["checks"] if check["inputs"] != "resizing"} == {3}
    assert all(check["rms_floors"] <= 2 for check in report["checks"])


def test_parity_of_nan_is_null_in_json_and_fails(edited: Callable[[float], Path]):
    document = document_of(run("vit-parity", edited(float("nan")), "--json"), 1)
    checks = document["models"][0]["reports"][0]["checks"]
    assert {check["rms"] for check in checks if check["output"] == "logits"} == {None}
    assert not any(check["passed"] for check in checks if check["output"] == "logits")


def test_parity_without_a_record_is_exit_code_3(tiny_unverified: Path):
    assert_mentions(failed(run("vit-parity", tiny_unverified), 3), "golden", "--no-verify")


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (("--providers", "cpu,cpu"), ("--providers", "'cpu,cpu'")),
        (("--providers", ""), ("auto", "cpu", "openvino")),
        (("--batch-sizes", ""), ("--batch-sizes", "''")),
        (("--batch-sizes", "1,x"), ("--batch-sizes", "'1,x'")),
        (("--batch-sizes", "0"), ("--batch-sizes", "'0'", 1)),
        (("--batch-sizes", "2,2"), ("--batch-sizes", "'2,2'", "once")),
    ],
)
def test_parity_refuses_what_cannot_be_checked(arguments: tuple[str, ...], facts: tuple[object, ...], tiny_model: Path):
    assert_mentions(failed(run("vit-parity", tiny_model, *arguments), 2), *facts)


def test_parity_of_a_reduced_file_tells_how_near_it_is(tiny_int8: Path):
    result = run("vit-parity", tiny_int8, "--batch-sizes", "1,4")
    assert (result.exit_code, result.stderr) == (0, "")
    first, *rows, last = result.stdout.splitlines()
    assert_mentions(first, tiny_int8, "cpu", "passed")
    for name in ("attention", "embedding", "logits", "tokens"):
        limits = re.search(rf"\b{name}\b([^;]*)", first)  # the limits of the least and the mean cosine; of logits the largest KL, too
        assert limits
        assert len(re.findall(r"\b0\.9\d+", limits[1])) == 2
        assert ("KL" in limits[1]) == (name == "logits")
    assert [row.split()[:4] for row in rows[1:-1]] == [
        [name, batch, "32x32", images]
        for batch, images in (("1", "golden"), ("4", "golden"), ("1", "extremes"), ("4", "extremes"))
        for name in ("attention", "embedding", "logits", "tokens")
    ]
    assert rows[-1].split()[:4] == ["pixels", "1", "49x65", "resizing"]
    assert all(re.search(r"  [01]\.\d{5}  [01]\.\d{5}(  +\d\.\de[-+]\d\d  +\d+%( \(\d+ near a tie\))?  +\d+%)?$", row) for row in rows[1:])
    assert [row.split()[0] for row in rows if "%" in row] == ["logits"] * 4
    assert_mentions(last, "float64")  # which the limits compare with


def test_parity_fails_a_changed_reduced_file_with_exit_code_1(tiny_int8: Path, tmp_path: Path):
    """The scales of one layer are half as large again. Attention is computed before it."""

    def stretch(proto: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == "blocks.1.attn.proj.weight_scale")
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.5), tensor.name))

    path = copied(tiny_int8, tmp_path, stretch)
    result = run("vit-parity", path, "--batch-sizes", "1")
    assert result.exit_code == 1
    assert_mentions(result.stdout.splitlines()[0], path, "cpu", "FAILED")
    assert re.findall(r"^  (\w+) .*FAILED$", result.stdout, re.MULTILINE) == ["embedding", "logits", "tokens"] * 2  # golden, extremes
    document = document_of(run("vit-parity", path, "--batch-sizes", "1", "--json"), 1)
    assert document["passed"] is False


def test_parity_fails_a_reduced_file_whose_limits_are_tighter_than_it_is_near(tiny_int8: Path, tmp_path: Path):
    def tighten(document: Any) -> None:
        document["parity"]["limits"]["embedding"]["cosine"] = 1.0

    result = run("vit-parity", with_manifest(tiny_int8, tmp_path, tighten), "--batch-sizes", "2")
    assert result.exit_code == 1
    assert_mentions(result.stdout.splitlines()[0], "embedding 1")  # the limit that was changed
    assert re.findall(r"^  (\w+) .*FAILED$", result.stdout, re.MULTILINE) == ["embedding"]


def test_parity_of_a_reduced_file_gives_the_same_as_data(tiny_int8: Path):
    document = document_of(run("vit-parity", tiny_int8, "--json", "--batch-sizes", "3"))
    (report,) = document["models"][0]["reports"]
    assert report["limits"].keys() == {"logits", "embedding", "tokens", "attention"}
    for check in report["checks"]:
        if check["inputs"] != "golden":
            continue  # those of extremes are in the manifest
        limit = report["limits"][check["output"]]
        assert limit["cosine"] <= check["accuracy"]["cosine_min"] <= 1
        assert (limit["kl"] is None) == (check["accuracy"]["kl_max"] is None) == (check["output"] != "logits")


@pytest.mark.parametrize("fixture", ["tiny_model", "tiny_int8", "tiny_openvino"])
def test_parity_holds_providers_against_the_record_and_against_one_another(fixture: str, request: pytest.FixtureRequest):
    pytest.importorskip("openvino")
    path = request.getfixturevalue(fixture)
    result = run("vit-parity", path, "--providers", "cpu,openvino", "--batch-sizes", "1,3")
    assert result.exit_code == 0
    heads = [line for line in result.stdout.splitlines() if line.startswith(str(path))]
    for head, providers in zip(heads, (("cpu",), ("openvino",), ("openvino", "cpu")), strict=True):
        assert_mentions(head, "passed", *providers)
    document = document_of(run("vit-parity", path, "--providers", "openvino,cpu", "--batch-sizes", "1", "--json"))
    reports = document["models"][0]["reports"]
    (first,), (second,), (pair,) = ({check["provider"] for check in report["checks"]} for report in reports)
    assert (first, second) == ("openvino", "cpu")
    assert_mentions(pair, "cpu", "openvino")
    alone, between = reports[0]["limits"], reports[2]["limits"]
    if fixture == "tiny_model":
        assert between == {"rms": 2 * alone["rms"], "max": 2 * alone["max"]}
    else:
        assert 1 - between["embedding"]["cosine"] == pytest.approx(4 * (1 - alone["embedding"]["cosine"]))


def test_parity_in_a_process_of_its_own_gives_its_exit_code(tiny_model: Path, edited: Callable[[float], Path]):
    assert run_apart("vit-parity", tiny_model, "--batch-sizes", "1").returncode == 0
    assert run_apart("vit-parity", edited(0.5), "--batch-sizes", "1", "--json").returncode == 1


def test_extremes_that_no_record_has_are_held_to_what_each_gives_alone(tiny_model: Path, tmp_path: Path):
    def drop(document: dict[str, Any]) -> None:
        document["golden_extremes"] = None
        document["parity"]["measured"] = [each for each in document["parity"]["measured"] if each["inputs"] != "extremes"]

    large = with_manifest(tiny_model, tmp_path, drop)
    reports = document_of(run("vit-parity", large, "--batch-sizes", "1,3", "--json"))["models"][0]["reports"]
    assert [{check["inputs"] for check in report["checks"]} for report in reports] == [{"golden", "resizing"}, {"extremes"}]
    (compared,) = {check["provider"] for check in reports[1]["checks"]}
    assert_mentions(compared, "cpu")
    assert compared != "cpu"  # but one batch compared with single images
    (whole,) = document_of(run("vit-parity", tiny_model, "--batch-sizes", "1,3", "--json"))["models"][0]["reports"]
    assert {check["inputs"] for check in whole["checks"]} == {"golden", "extremes", "resizing"}


# ---- limits of one's own -------------------------------------------------------------------------------------------------------------


def test_other_limits_take_the_place_of_a_float32_files_own(tiny_model: Path):
    report = document_of(run("vit-parity", tiny_model, "--batch-sizes", "1", "--max-floors", "1e-3,50", "--json"), 1)["models"][0][
        "reports"
    ][0]
    assert report["limits"] == {"rms": 1e-3, "max": 50}
    assert run("vit-parity", tiny_model, "--batch-sizes", "1", "--max-floors", "3,20").exit_code == 0


def test_other_limits_take_the_place_of_a_reduced_files_own(tiny_int8: Path):
    report = document_of(run("vit-parity", tiny_int8, "--batch-sizes", "1", "--min-cosine", "0.9", "--json"))["models"][0]["reports"][0]
    assert {near["cosine"] for near in report["limits"].values()} == {0.9}
    assert report["limits"]["logits"]["kl"] < 1
    result = document_of(run("vit-parity", tiny_int8, "--batch-sizes", "1", "--max-kl", "1e-12", "--json"), 1)
    assert {c["output"] for c in result["models"][0]["reports"][0]["checks"] if not c["passed"]} == {"logits"}


@pytest.mark.parametrize(
    ("fixture", "arguments", "facts"),
    [
        ("tiny_model", ("--min-cosine", "0.9"), ("float32", "cosine")),
        ("tiny_int8", ("--max-floors", "2,8"), ("--min-cosine", "--max-kl")),
        ("tiny_model", ("--max-floors", "2"), ("--max-floors", "'2'", "2,8")),
        ("tiny_model", ("--max-floors", "0,8"), ("--max-floors", "'0,8'")),
        ("tiny_model", ("--max-floors", "nan,8"), ("--max-floors", "'nan,8'")),
    ],
)
def test_limits_that_do_not_fit_are_refused(
    fixture: str, arguments: tuple[str, ...], facts: tuple[str, ...], request: pytest.FixtureRequest
):
    assert_mentions(failed(run("vit-parity", request.getfixturevalue(fixture), *arguments), 2), *facts)
