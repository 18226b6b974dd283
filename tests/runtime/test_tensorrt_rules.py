"""What the linter says of small graphs, and that the real compiler agrees."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from export_cache import ExportCache
from helpers import assert_mentions, one_line, with_manifest
from onnx import ModelProto, TensorProto, helper
from onnx.helper import make_node as node
from onnx_graphs import (
    FLOAT,
    FP8,
    HALF,
    UINT8,
    WEIGHT,
    attention,
    branches,
    constants,
    graph,
    layer_norm,
    product,
    quantized,
    quantized_bias,
    tensor,
)

from vit_exporter import Source
from vit_runtime.errors import ModelError
from vit_runtime.tensorrt import Problem, RefusedError, build, engine, lint

MICROSOFT = "com.microsoft"
GOOD: dict[str, Callable[[], ModelProto]] = {
    "float32": product,
    "float16": lambda: product(HALF),
    "bfloat16": lambda: product(TensorProto.BFLOAT16),
    "int8": quantized,
    "int8 in Constant nodes": lambda: constants(quantized()),
    "fp8": lambda: quantized(FP8, weight_kind=FP8),
    "Attention in float16": lambda: attention(HALF),
    "LayerNorm in pieces in float32": lambda: layer_norm(FLOAT),
    "LayerNormalization in float16": lambda: graph(
        [node("LayerNormalization", ["x", "s", "b"], ["y"])], [tensor("s", np.ones(32), HALF), tensor("b", np.zeros(32), HALF)], HALF
    ),
}
# What the compiler refuses too: the graph, facts of what the linter finds, the nodes that it names, and facts of the reason.
BAD: dict[str, tuple[Callable[[], ModelProto], tuple[str, ...], tuple[str, ...], tuple[object, ...]]] = {
    "uint8 activations": (
        lambda: quantized(UINT8, 128), ("UINT8",), ("quantize", "dequantize"), ("INT8", 127)
    ),
    "uint8 weights": (lambda: quantized(weight_kind=UINT8, weight_zero=128), ("UINT8",), ("weights",), ("INT8", 127)),
    "a zero point": (lambda: quantized(zero=3), ("zero",), ("quantize", "dequantize"), (0,)),
    "a zero point of weights": (lambda: quantized(weight_zero=-1), ("zero",), ("weights",), (0,)),
    "a zero point in a Constant node": (
        lambda: constants(quantized(zero=3)), ("zero",), ("quantize", "dequantize"), (0,)
    ),
    "a quantised bias": (quantized_bias, ("DequantizeLinear", "INT32"), ("bias",), ("biases",)),
    "dynamic quantisation": (
        lambda: graph([node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="d"), node("DequantizeLinear", ["q", "s", "z"], ["y"])]),
        ("DynamicQuantizeLinear",), ("d",), ("QuantizeLinear", "DequantizeLinear", "INT8"),
    ),
    "com.microsoft": (
        lambda: graph([node("FusedMatMul", ["x", "w"], ["y"], name="f", domain=MICROSOFT)], [tensor("w", WEIGHT)], domains=[MICROSOFT]),
        ("com.microsoft.FusedMatMul",), ("f",), ("onnxruntime",),
    ),
    "another domain": (
        lambda: graph([node("Twice", ["x"], ["y"], domain="com.example")], domains=["com.example"]),
        ("com.example.Twice",), ("node_of_y",), ("TensorRT",),
    ),
    "com.microsoft in a branch": (
        lambda: branches(node("FastGelu", ["x"], ["t"], name="inner", domain=MICROSOFT)),
        ("com.microsoft.FastGelu",), ("inner",), ("onnxruntime",),
    ),
    "Attention in float32": (lambda: attention(FLOAT), ("Attention",), ("attention",), ("float32",)),
    "int16": (lambda: quantized(TensorProto.INT16), ("int16",), ("z",), ("TensorRT",)),
    "fp8 of the other kind": (
        lambda: quantized(TensorProto.FLOAT8E5M2, weight_kind=TensorProto.FLOAT8E5M2), ("float8e5m2",), ("wq", "z", "zw"), ("TensorRT",)
    ),
    "uint4": (
        lambda: graph(
            [node("DequantizeLinear", ["w", "s"], ["d"], axis=0, block_size=16), node("MatMul", ["x", "d"], ["y"])],
            [tensor("w", np.ones((32, 32), int), TensorProto.UINT4), tensor("s", np.ones((2, 32)))], opset=21,
        ),
        ("uint4",), ("w",), ("TensorRT",),
    ),
}  # fmt: skip


def saved(model: ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def only(problems: tuple[Problem, ...]) -> Problem:
    (problem,) = problems
    return problem


# --- small graphs


# The compiler needs a process of its own for each graph; `make test-full` asks it about the others too.
COMPILED = ("int8", "fp8", "LayerNorm in pieces in float32", "a zero point", "dynamic quantisation", "com.microsoft", "uint4")


def compiled(names: Iterable[str]) -> list[Any]:
    return [name if name in COMPILED else pytest.param(name, marks=pytest.mark.full) for name in names]


@pytest.mark.unit
@pytest.mark.parametrize("name", GOOD)
def test_the_linter_finds_nothing_in_what_tensorrt_takes(name: str, tmp_path: Path):
    assert lint(saved(GOOD[name](), tmp_path)) == ()


@pytest.mark.parametrize("name", compiled(GOOD))
def test_what_the_linter_passes_the_compiler_builds(name: str, tmp_path: Path):
    assert build(saved(GOOD[name](), tmp_path), sm=89).size > 0


@pytest.mark.unit
@pytest.mark.parametrize("name", BAD)
def test_what_the_linter_refuses_it_names(name: str, tmp_path: Path):
    make, facts, names, reason = BAD[name]
    problem = only(lint(saved(make(), tmp_path)))
    assert (problem.count, problem.names) == (len(names), names)
    assert_mentions(problem.what, *facts)
    assert_mentions(problem.reason, *reason)
    assert_mentions(problem.remedy, "vit-export --target tensorrt")
    assert "\n" not in str(problem)


@pytest.mark.parametrize("name", compiled(BAD))
def test_what_the_linter_refuses_the_compiler_refuses_too(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make, *_ = BAD[name]
    monkeypatch.setattr(engine, "lint", lambda path: ())
    with pytest.raises(RefusedError):
        build(saved(make(), tmp_path), sm=89)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("make", "facts", "name"),
    [
        (lambda: quantized(UINT8), ("UINT8",), "quantize"),
        (lambda: quantized(kept=False), ("UINT8",), "quantize"),
        (lambda: layer_norm(HALF), ("ReduceMean", "float16"), "variance"),
        (lambda: layer_norm(HALF, "Mul"), ("ReduceMean", "float16"), "variance"),
    ],
    ids=["uint8 with a zero point of 0", "no zero point, which means uint8", "LayerNorm in pieces, Pow", "LayerNorm in pieces, Mul"],
)
def test_what_the_compiler_would_build_and_compute_wrongly_is_refused(
    make: Callable[[], ModelProto], facts: tuple[str, ...], name: str, tmp_path: Path
):
    problem = only(lint(saved(make(), tmp_path)))
    assert_mentions(problem.what, *facts)
    assert problem.names[0] == name


@pytest.mark.unit
def test_the_first_nodes_are_named_and_all_are_counted(tmp_path: Path):
    nodes = [node("Gelu", [f"v{i}" if i else "x"], [f"v{i + 1}"], name=f"gelu{i}", domain=MICROSOFT) for i in range(7)]
    problem = only(lint(saved(graph([*nodes, node("Identity", ["v7"], ["y"])], domains=[MICROSOFT]), tmp_path)))
    assert (problem.count, problem.names) == (7, ("gelu0", "gelu1", "gelu2"))
    assert_mentions(str(problem), 7, "com.microsoft.Gelu", "gelu0", "gelu1", "gelu2")
    assert "gelu3" not in str(problem)


@pytest.mark.unit
def test_every_kind_of_problem_is_told_at_once(tmp_path: Path):
    nodes = [
        node("Gelu", ["x"], ["g"], domain=MICROSOFT),
        node("DynamicQuantizeLinear", ["g"], ["q", "s", "z"]),
        node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    found = [problem.what for problem in lint(saved(graph(nodes, domains=[MICROSOFT]), tmp_path))]
    assert found == ["com.microsoft.Gelu", "DynamicQuantizeLinear"]


def test_a_function_that_the_file_brings_is_no_foreign_op(tmp_path: Path):
    model = graph([node("Twice", ["x"], ["y"], domain="local")], domains=["local"])
    body = [node("Add", ["a", "a"], ["b"])]
    model.functions.append(helper.make_function("local", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 20)]))
    path = saved(model, tmp_path)
    assert lint(path) == ()
    assert build(path, sm=89).size > 0


@pytest.mark.unit
def test_a_foreign_op_in_a_function_is_found(tmp_path: Path):
    model = graph([node("Twice", ["x"], ["y"], domain="local")], domains=["local"])
    body = [node("Gelu", ["a"], ["b"], name="inner", domain=MICROSOFT)]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model.functions.append(helper.make_function("local", "Twice", ["a"], ["b"], body, opsets))
    assert only(lint(saved(model, tmp_path))).names == ("inner",)


def test_zero_points_in_a_data_file_are_read_there(tmp_path: Path):
    for zero, count in ((0, 0), (5, 1)):
        path = tmp_path / f"zero{zero}.onnx"
        model = quantized(zero=zero)
        for weight in model.graph.initializer:
            weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight), weight.name))  # as bytes
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=0)
        assert len(lint(path)) == count
    assert build(tmp_path / "zero0.onnx", sm=89).size > 0


# --- our own files


def test_a_portable_file_is_taken(tiny_model: Path, tiny_external: Path):
    assert lint(tiny_model) == ()
    assert lint(tiny_external) == ()


@pytest.mark.parametrize(
    ("fixture", "target", "options"),
    [
        ("tiny_int8", "cpu", "--precision int8 --calibrate FOLDER"),
        ("tiny_openvino_fp32", "openvino", "--precision fp32"),
    ],
)
def test_a_file_for_another_target_is_told_which_command_makes_the_right_one(
    fixture: str, target: str, options: str, request: pytest.FixtureRequest
):
    first, *_ = lint(request.getfixturevalue(fixture))
    assert_mentions(first.what, target)
    assert f"`vit-export --target tensorrt {options}`" in first.remedy


def test_the_command_names_the_architecture_where_the_manifest_does(tiny_int8: Path, tmp_path: Path):
    first, *_ = lint(with_manifest(tiny_int8, tmp_path, lambda document: document["model"].update(arch="ViT-B/16")))
    assert "`vit-export --target tensorrt --precision int8 --calibrate FOLDER --arch ViT-B/16`" in first.remedy


def test_the_command_asks_for_the_checkpoint_where_the_weights_came_from_one(tiny_int8: Path, tmp_path: Path):
    """The architecture alone would make a network of random weights."""

    def change(document: dict[str, Any]) -> None:
        document["model"].update(arch="ViT-B/16")
        document["checkpoint"].update(format="transformers")

    first, *_ = lint(with_manifest(tiny_int8, tmp_path, change))
    assert "`vit-export --target tensorrt --precision int8 --calibrate FOLDER --checkpoint PATH`" in first.remedy


def test_a_portable_file_in_int8_is_refused(tiny_source: Source, exports: ExportCache):
    """Its scales are computed as the network runs."""
    out = exports.export(tiny_source, "int8.onnx", precision="int8", verify=False).out
    assert {problem.what for problem in lint(out)} == {"DynamicQuantizeLinear", "MatMulInteger"}


@pytest.mark.unit
def test_a_file_that_is_no_onnx_file_is_refused(tmp_path: Path):
    path = tmp_path / "text.onnx"
    path.write_text("no model")
    with pytest.raises(ModelError) as error:
        lint(path)
    assert_mentions(one_line(error), path, ".onnx")


def test_a_manifest_that_contradicts_its_graph_is_refused(tiny_model: Path, tmp_path: Path):
    path = with_manifest(tiny_model, tmp_path, lambda document: document["input"].update(name="other"))
    with pytest.raises(ModelError):
        lint(path)


@pytest.mark.unit
def test_types_that_the_file_does_not_tell_follow_from_those_that_it_does(tmp_path: Path):
    """A Cast before the op decides, whatever the input is."""
    nodes = [
        node("Cast", ["x"], ["h"], to=HALF),
        node("MatMul", ["h", "w"], ["q"]),
        node("Attention", ["q", "h", "h"], ["a"], name="attention", q_num_heads=2, kv_num_heads=2),
        node("Cast", ["a"], ["y"], to=FLOAT),
    ]
    assert lint(saved(graph(nodes, [tensor("w", WEIGHT, HALF)], opset=23), tmp_path)) == ()
    nodes[0].attribute[0].i = FLOAT
    assert only(lint(saved(graph(nodes, [tensor("w", WEIGHT, FLOAT)], opset=23), tmp_path))).what == "Attention"
