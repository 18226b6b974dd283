"""Where two files part: the part of the network, and the op in it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import assert_mentions, copied, document_of, failed, one_line, run, with_array

import vit_runtime as vit
from vit_runtime.errors import InputError, ModelError
from vit_runtime.model import Model
from vit_runtime.onnx_file import read_nodes, read_onnx, with_outputs
from vit_runtime.parity.locate import Tap, _most_growth, locate, part_of

ALONG = ["embeddings/Add", "blocks.0/Add", "blocks.0/Add_2", "blocks.1/Add", "blocks.1/Add_2", "tokens"]


def stretch(values: np.ndarray) -> None:
    values *= 1.5


@pytest.mark.parametrize(
    ("array", "place", "first"),
    [
        ("embeddings.patch_embed.proj.bias", "embeddings", "embeddings.patch_embed.proj/Conv"),
        ("embeddings.pos_embed", "embeddings", "embeddings/Add"),
        ("blocks.0.norm1.weight", "blocks.0", "blocks.0.norm1/LayerNormalization"),
        ("blocks.0.attn.qkv.weight", "blocks.0", "blocks.0.attn.qkv/MatMul"),
        ("blocks.1.attn.proj.weight", "blocks.1", "blocks.1.attn.proj/MatMul"),
        ("blocks.1.mlp.fc2.weight", "blocks.1", "blocks.1.mlp.fc2/MatMul"),
        ("norm.weight", "norm", "tokens"),
        ("head.weight", "head", "logits"),
    ],
)
def test_a_changed_weight_is_found_in_its_part_and_at_its_op(array: str, place: str, first: str, honest: Model, tmp_path: Path):
    found = locate(honest, vit.load(with_array(honest.path, tmp_path, array, stretch), "cpu"))
    assert found.place == place
    assert found.first is not None
    assert found.first.value == first
    assert [tap.value for tap in found.along][: len(ALONG)] == ALONG


def test_a_file_and_itself_part_nowhere(honest: Model):
    found = locate(honest, honest)
    assert (found.parted, found.first, found.place, found.inside) == (None, None, None, ())
    assert {tap.error for tap in found.along} == {0.0}


def test_a_nan_is_found_where_it_appears(honest: Model, tmp_path: Path):
    other = vit.load(with_array(honest.path, tmp_path, "blocks.1.mlp.fc1.bias", lambda values: values.fill(np.nan)), "cpu")
    found = locate(honest, other)
    assert found.place == "blocks.1"
    assert found.first is not None
    assert found.first.value == "blocks.1.mlp.fc1/Add"
    assert found.to_dict()["first"]["error"] is None  # JSON has no NaN


def test_a_file_for_another_engine_is_compared_at_what_both_have(tiny_model: Path, tiny_openvino_fp32: Path, tmp_path: Path):
    """Queries, keys and values are taken apart in one of them, and the last block is computed for one token."""
    pytest.importorskip("openvino")
    bad = with_array(tiny_openvino_fp32, tmp_path, "blocks.0.mlp.fc1.weight", stretch)
    found = locate(vit.load(tiny_model, "cpu"), vit.load(bad, "openvino"))
    assert found.place == "blocks.0"
    assert found.first is not None
    assert found.first.value == "blocks.0.mlp.fc1/MatMul"


def test_weights_beside_the_file_are_refused(tiny_external: Path):
    model = vit.load(tiny_external, "cpu")
    with pytest.raises(InputError) as error:
        locate(model, model)
    assert_mentions(one_line(error), tiny_external, "--external-data")


def test_files_without_a_name_in_common_cannot_be_told_apart(honest: Model, tmp_path: Path):
    def rename(proto: onnx.ModelProto) -> None:
        names = {
            value: f"other/{value}"
            for node in proto.graph.node
            for value in node.output
            if value not in {o.name for o in proto.graph.output}
        }
        for node in proto.graph.node:
            node.input[:] = [names.get(value, value) for value in node.input]
            node.output[:] = [names.get(value, value) for value in node.output]

    found = locate(honest, vit.load(copied(honest.path, tmp_path, rename), "cpu"))
    assert {tap.value for tap in found.along} == {output.name for output in honest.manifest.outputs}


# ---- small parts ---------------------------------------------------------------------------------------------------------------------


def tap(error: float) -> Tap:
    return Tap("v", "blocks.0", "Add", error)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("errors", "place"),
    [
        ((0.0, 0.0, 1e-3, 2e-3), 2),
        ((3e-7, 4e-7, 5e-7, 1e-3), 3),  # an honest difference of engines, then a fault
        ((3e-7, 1e-5, 1e-4, 1e-3), 1),
        ((0.0, float("nan"), 1.0), 1),
        ((0.0, float("inf"), 1.0), 1),
        ((0.0, 3e-8, 5e-8), None),  # less than float32 rounds
        ((), None),
    ],
)
def test_they_part_where_the_difference_grows_most(errors: tuple[float, ...], place: "int | None"):
    taps = [tap(error) for error in errors]
    found = _most_growth(taps)
    assert found is (taps[place] if place is not None else None)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("module", "part"),
    [("blocks.3.attn.qkv", "blocks.3"), ("blocks.11", "blocks.11"), ("embeddings.patch_embed.proj", "embeddings"), ("norm", "norm")],
)
def test_a_module_belongs_to_a_part(module: str, part: str):
    assert part_of(module) == part


def test_outputs_are_added_without_touching_what_is_there(tiny_model: Path, tmp_path: Path):
    long = "x" * 300  # a length of two bytes
    path = tmp_path / "tapped.onnx"
    path.write_bytes(with_outputs(tiny_model, ["blocks.0/Add", long]))
    proto, before = onnx.load(path), onnx.load(tiny_model)
    assert [value.name for value in proto.graph.output] == [*(value.name for value in before.graph.output), "blocks.0/Add", long]
    del proto.graph.output[-2:]
    assert proto == before
    with pytest.raises(ModelError) as error:
        read_onnx(path)
    assert_mentions(one_line(error), path, "graphs")


def test_nodes_are_read_in_their_order(tiny_model: Path):
    expected = [(node.name, node.op_type, tuple(node.output)) for node in onnx.load(tiny_model).graph.node]
    assert [(node.name, node.op, node.outputs) for node in read_nodes(tiny_model)] == expected


# ---- the command ---------------------------------------------------------------------------------------------------------------------


def test_the_command_names_the_part_and_draws_the_way(tiny_model: Path, tmp_path: Path):
    bad = with_array(tiny_model, tmp_path, "blocks.1.attn.proj.weight", stretch)
    result = run("vit-parity", tiny_model, bad, "--batch-sizes", "1", "--locate")
    assert result.exit_code == 1
    (line,) = [line for line in result.stdout.splitlines() if "blocks.1.attn.proj/MatMul" in line]
    assert_mentions(line, bad, "cpu", tiny_model, "blocks.1", "blocks.1.attn.proj/MatMul", "MatMul")
    rows = [line.split() for line in result.stdout.splitlines() if line.startswith("  ") and "/" in line]
    assert [row[0] for row in rows] == [value for value in ALONG if "/" in value]
    assert [row[0] for row in rows if len(row) > 2] == ["blocks.1/Add"]  # the row with the mark
    (place,) = document_of(run("vit-parity", tiny_model, bad, "--batch-sizes", "1", "--locate", "--json"), 1)["located"]
    assert (place["place"], place["first"]["value"]) == ("blocks.1", "blocks.1.attn.proj/MatMul")


def test_where_they_agree_nothing_is_located(tiny_model: Path, tiny_openvino_fp32: Path):
    pytest.importorskip("openvino")
    assert (
        document_of(run("vit-parity", tiny_model, "--providers", "cpu,openvino", "--batch-sizes", "1", "--locate", "--json"))["located"]
        == []
    )


def test_with_nothing_to_compare_it_is_refused(tiny_model: Path):
    assert_mentions(failed(run("vit-parity", tiny_model, "--locate"), 2), "--locate", "provider")


def test_weights_beside_a_file_are_told_before_the_work(tiny_external: Path, tiny_model: Path):
    message = failed(run("vit-parity", tiny_model, tiny_external, "--locate"), 2)
    assert_mentions(message, tiny_external, "--external-data")
