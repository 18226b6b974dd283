"""What the provider "openvino" promises: onnxruntime's numbers, in the arithmetic that the file allows, or one line that says why not."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from export_cache import ExportCache
from helpers import assert_mentions, assert_refused_after_a_fork, copied, failed, inputs, one_line, run, with_manifest
from networks import TINY, initialized, source_of
from onnx import helper, numpy_helper

import vit_runtime as vit
from vit_runtime.errors import InputError, ModelError
from vit_runtime.images import ImageInput
from vit_runtime.manifest import read_manifest
from vit_runtime.model import Model
from vit_runtime.openvino_engine import Arithmetic, OpenVinoSession
from vit_runtime.parity import BATCH_SIZES, check_record, compare
from vit_runtime.providers import create_session, node_placement, placement, probe

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed; pip install 'vit-deploy[openvino]'")

HAS_BF16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
CPU_FLAGS = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
HAS_INT8 = any(flag in CPU_FLAGS for flag in ("avx512_vnni", "avx_vnni", "amx_int8"))
NO_GPU = len(onnxruntime.get_available_providers()) <= 2

# float32 sums in another order, with another number of threads: a few units in the last place of numbers around 1.
RTOL, ATOL = 1e-4, 1e-5


def executed(**changes: Any) -> Callable[[Any], object]:
    """A change of a manifest: the file wants to be run in another way."""
    return lambda document: document["execution"].update(changes)


# ---- loading -------------------------------------------------------------------------------------------------------------------------


def test_importing_the_runtime_loads_neither_openvino_nor_onnxruntime(tiny_openvino: Path):
    """Nor does any of its commands, and the provider "cpu" does not load openvino."""
    modules = ["vit_runtime", "vit_runtime.race", *(f"vit_runtime.cli.{name}" for name in ("bench", "doctor", "info", "parity", "predict"))]
    code = f"import sys, {', '.join(modules)}; print({{'openvino', 'onnxruntime'}} & set(sys.modules))\n"
    code += f"vit_runtime.load({str(tiny_openvino)!r}, 'cpu'); print({{'openvino', 'onnxruntime'}} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "set()\n{'onnxruntime'}\n"


def test_openvino_works():
    answer = probe("openvino")
    assert (answer.name, answer.status, answer.remedy) == ("openvino", "ok", "")


def test_a_model_tells_what_runs_it_node_by_node(float32: Model):
    """As OpenVINO fused them: products with their bias, and no constants, inputs or outputs."""
    assert (float32.provider, float32.threads) == ("openvino", 2)
    nodes = float32.placement()
    assert {node.provider for node in nodes} == {"openvino"}
    kinds = {node.op_type for node in nodes}
    assert "FullyConnected" in kinds
    assert not {"Const", "Constant", "Input", "Parameter", "Output", "Result"} & kinds
    assert len({node.name for node in nodes}) == len(nodes) > 20


def test_placement_counts_the_nodes(tiny_openvino_fp32: Path):
    session, chosen = create_session(tiny_openvino_fp32, "openvino")
    assert chosen == "openvino"
    assert placement(session) == {"openvino": len(node_placement(session))}


@pytest.mark.skipif(not NO_GPU, reason="auto may take the GPU")
def test_auto_takes_openvino_for_the_files_that_were_made_for_it_alone(
    tiny_model: Path, tiny_int8: Path, tiny_openvino: Path, tiny_openvino_fp32: Path
):
    found = [vit.load(path).provider for path in (tiny_model, tiny_int8, tiny_openvino, tiny_openvino_fp32)]
    assert found == ["cpu", "cpu", "openvino", "openvino"]


def test_what_onnxruntime_takes_only_is_refused(tiny_openvino: Path):
    with pytest.raises(InputError) as error:
        create_session(tiny_openvino, "openvino", provider_options={"device_id": "1"})
    assert_mentions(one_line(error), "'openvino'", "'cuda'", "'tensorrt'", "'tensorrt-rtx'")


# ---- the numbers ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_a_float32_file_computes_what_pytorch_computed_at_every_batch_size(threads: int, tiny_openvino_fp32: Path):
    """With two threads a batch of 1 runs on both, of 2 on one each, and of 3 and 7 in both ways. In bfloat16 it would be off by 10^4."""
    model = vit.load(tiny_openvino_fp32, "openvino", threads)
    report = check_record(model.run, model.manifest, model.provider, (1, 2, 3, 7))
    assert report.passed
    assert {(check.provider, check.batch_size) for check in report.checks} == {("openvino", batch) for batch in (1, 2, 3, 7)}


def test_a_float32_file_computes_what_onnxruntime_computes(tiny_openvino_fp32: Path, float32: Model):
    other = vit.load(tiny_openvino_fp32, "cpu")
    assert compare(other, float32, ("cpu", "openvino")).passed


def test_a_picture_gets_the_scores_that_it_gets_from_the_file_for_every_runtime(
    tiny_model: Path, float32: Model, photo: Path, tiny_int8: Path
):
    """Here the graph normalises it, there the runtime does; float32 rounds values of 255 after the one, of 1 before the other."""
    pictures: list[ImageInput] = [photo, np.random.default_rng(0).integers(0, 256, (60, 40, 3), dtype=np.uint8)]

    def logits_of(model: Model) -> np.ndarray:
        return np.stack([prediction.logits for prediction in model.predict(pictures)])

    expected = logits_of(vit.load(tiny_model, "cpu"))
    np.testing.assert_allclose(logits_of(float32), expected, RTOL, ATOL)
    np.testing.assert_allclose(logits_of(vit.load(tiny_int8, "cpu")), expected, atol=0.01)  # eight bits


def test_a_file_for_every_runtime_computes_the_same_here(tiny_model: Path):
    """With the images' normalisation outside the graph, and with tokens."""
    model = vit.load(tiny_model, "openvino")
    assert check_record(model.run, model.manifest, model.provider).passed


@pytest.mark.parametrize(
    ("fixture", "threads"),
    [
        ("tiny_openvino", 2),
        ("tiny_int8", 1),
        pytest.param("tiny_openvino", 1, marks=pytest.mark.full),
        pytest.param("tiny_int8", 2, marks=pytest.mark.full),
    ],
)
def test_an_int8_file_is_as_near_as_its_record_says(fixture: str, threads: int, request: pytest.FixtureRequest):
    """OpenVINO also runs the file that was made for onnxruntime, with its fused attention."""
    model = vit.load(request.getfixturevalue(fixture), "openvino", threads)
    report = check_record(model.run, model.manifest, model.provider)
    assert report.passed
    assert {check.batch_size for check in report.checks} == set(BATCH_SIZES)


@pytest.mark.parametrize("batch", [1, 3, pytest.param(16, marks=pytest.mark.full)])
@pytest.mark.parametrize("fixture", ["float32", "int8"])
def test_run_gives_every_output_by_name_for_any_batch(fixture: str, batch: int, request: pytest.FixtureRequest):
    outputs = request.getfixturevalue(fixture).run(inputs(batch))
    assert {name: values.shape for name, values in outputs.items()} == {
        "logits": (batch, 10), "embedding": (batch, 32), "tokens": (batch, 17, 32), "attention": (batch, 2, 16)
    }  # fmt: skip
    assert all(values.dtype == np.float32 for values in outputs.values())


@pytest.mark.parametrize("precision", ["tiny_openvino", "tiny_openvino_fp32"])
def test_on_one_thread_an_image_gets_the_same_bits_in_any_company(precision: str, request: pytest.FixtureRequest):
    """Each image is computed by itself, in the same way."""
    model, batch = vit.load(request.getfixturevalue(precision), "openvino", threads=1), inputs(7)
    together = model.run(batch)
    for row in range(7):
        for name, values in model.run(batch[row : row + 1]).items():
            np.testing.assert_array_equal(values[0], together[name][row])


def test_on_two_threads_an_image_gets_the_same_numbers_in_any_company(float32: Model):
    """Alone it runs on both threads, in a batch on one of them; the last of seven is left over."""
    together, batch = float32.run(inputs(7)), inputs(7)
    for row in range(7):
        for name, values in float32.run(batch[row : row + 1]).items():
            np.testing.assert_allclose(values[0], together[name][row], RTOL, ATOL)


def test_what_a_run_gave_stays_as_it_is(float32: Model):
    """The engine's own memory is used again by the next run."""
    first = float32.run(inputs(2))
    kept = {name: values.copy() for name, values in first.items()}
    float32.run(inputs(2, seed=1))
    for name, values in first.items():
        np.testing.assert_array_equal(values, kept[name])


def test_input_that_is_not_contiguous_is_taken_as_it_is(float32: Model):
    channels_last = np.ascontiguousarray(inputs(3).transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert not channels_last.flags.c_contiguous
    np.testing.assert_array_equal(float32.run(channels_last)["logits"], float32.run(inputs(3))["logits"])


def test_a_graph_that_takes_images_of_any_size_takes_one_size_after_the_other(tmp_path: Path):
    """Sums and copies of whole numbers, so exact."""
    path = tmp_path / "free.onnx"
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]>
           free (float[batch,1,height,width] x) => (float[batch,1,1,1] sum, float[batch,1,height,width] same)
           { sum = ReduceSum(x, axes)  same = Relu(x) }"""
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
    path.write_bytes(proto.SerializeToString())
    session, _ = create_session(path, "openvino", threads=2)
    for shape in ((3, 1, 4, 6), (2, 1, 8, 2), (1, 1, 4, 6), (5, 1, 2, 2)):
        images = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
        total, same = session.run(["sum", "same"], {"x": images})
        np.testing.assert_array_equal(total, images.sum((2, 3), keepdims=True))
        np.testing.assert_array_equal(same, images)


@pytest.mark.slow
def test_a_network_that_takes_any_size_does_so_here(exports: ExportCache):
    """At every size that it has a record of. Its positions are resampled inside the graph, and such a graph is slow to trace."""
    network = initialized(replace(TINY, depth=1, img_size=(32, 24)), ("logits",), dynamic_size=True, seed=3)
    path = exports.export(source_of(network, seed=3), "free.onnx", target="openvino").out
    model = vit.load(path, "openvino", threads=2)
    report = check_record(model.run, model.manifest, model.provider, (3, 1))
    assert report.passed
    assert len({check.image_size for check in report.checks if check.inputs != "resizing"}) == 4
    with pytest.raises(InputError) as error:
        model.run(np.zeros((1, 3, 20, 24), np.float32))
    assert_mentions(one_line(error), 20, 8)


# ---- the arithmetic ------------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bfloat16")
def test_bfloat16_is_for_files_that_allow_it_alone(tiny_openvino_fp32: Path, tiny_openvino: Path, float32: Model, tmp_path: Path):
    """OpenVINO by itself takes it for every file. Eight bits are off by parts in a thousand, float32 by parts in ten million."""
    expected = vit.load(tiny_openvino_fp32, "cpu").run(inputs(4))["embedding"]
    assert np.abs(float32.run(inputs(4))["embedding"] - expected).max() < 1e-5
    allowed = vit.load(with_manifest(tiny_openvino_fp32, tmp_path, executed(bf16=True)), "openvino")
    assert 1e-3 < np.abs(allowed.run(inputs(4))["embedding"] - expected).max() < 0.1
    assert not check_record(allowed.run, allowed.manifest, "openvino", (1,)).passed
    assert [read_manifest(path)[0].execution.bf16 for path in (tiny_openvino_fp32, tiny_openvino)] == [False, True]


@pytest.mark.parametrize("allowed", [False, True])
def test_a_session_tells_the_precision_that_it_took(allowed: bool, tiny_openvino_fp32: Path):
    session, _ = create_session(tiny_openvino_fp32, "openvino", arithmetic=Arithmetic(bf16=allowed))
    assert isinstance(session, OpenVinoSession)
    assert session.precision == ("bf16" if allowed and HAS_BF16 else "f32")


def test_an_int8_file_whose_inputs_must_not_be_quantised_computes_with_its_stored_weights(tiny_openvino: Path, tmp_path: Path):
    """Against onnxruntime without its optimisations, which would quantise them too. In float32 it is off by parts in ten million."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    (expected,) = onnxruntime.InferenceSession(tiny_openvino, options).run(["embedding"], {"pixel_values": inputs(4)})
    plain = vit.load(with_manifest(tiny_openvino, tmp_path, executed(bf16=False, int8_group=None)), "openvino")
    np.testing.assert_allclose(plain.run(inputs(4))["embedding"], expected, RTOL, ATOL)


@pytest.mark.skipif(not HAS_INT8, reason="this CPU has no products in int8, or the system does not tell")
def test_an_int8_file_has_the_inputs_of_its_products_quantised_in_the_groups_that_it_names(tiny_openvino: Path, tmp_path: Path):
    """Every choice gives other numbers; eight bits are off by parts in a thousand."""
    found = []
    for group in (None, 16, 32):
        model = vit.load(with_manifest(tiny_openvino, tmp_path, executed(bf16=False, int8_group=group)), "openvino")
        found.append(model.run(inputs(4))["embedding"])
    assert read_manifest(tiny_openvino)[0].execution.int8_group == 32
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert 1e-4 < np.abs(found[a] - found[b]).max() < 0.1


# ---- threads and processes -----------------------------------------------------------------------------------------------------------


def test_several_threads_at_once_get_the_numbers_of_one(tiny_openvino_fp32: Path):
    """From the start: the first run of a model is also when its second way of running is compiled."""
    model = vit.load(tiny_openvino_fp32, "openvino", threads=2)
    batches = [inputs(size, size) for size in (1, 2, 3, 4, 5, 7)]
    failures, barrier, results = list[str](), threading.Barrier(6), dict[int, list[np.ndarray]]()

    def work(index: int) -> None:
        barrier.wait()
        try:
            results[index] = [model.run(batches[index])["logits"] for _ in range(10)]
        except Exception as error:  # noqa: BLE001 (whatever it is, it fails the test)
            failures.append(repr(error))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert not failures
    for index, batch in enumerate(batches):
        for values in results[index]:
            np.testing.assert_array_equal(values, model.run(batch)["logits"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_model_that_was_loaded_before_a_fork_says_so_instead_of_hanging(float32: Model):
    assert_refused_after_a_fork(lambda: float32.run(inputs(3)))


def test_a_model_does_not_need_its_file_after_it_was_loaded(tiny_openvino_fp32: Path, float32: Model, tmp_path: Path):
    """Not even for its second way of running, which is compiled when a batch asks for it."""
    path = Path(shutil.copyfile(tiny_openvino_fp32, tmp_path / "gone.onnx"))
    copy = vit.load(path, "openvino", threads=2)
    path.unlink()
    for batch in (1, 2):
        np.testing.assert_array_equal(copy.run(inputs(batch))["logits"], float32.run(inputs(batch))["logits"])


# ---- files that it cannot run --------------------------------------------------------------------------------------------------------


@pytest.fixture
def foreign(tiny_int8: Path, tmp_path: Path) -> Path:
    """A file for onnxruntime on a CPU, with an op at its end that onnxruntime has and OpenVINO has not."""

    def edit(proto: onnx.ModelProto) -> None:
        next(node for node in proto.graph.node if "logits" in node.output).output[0] = "scores"
        proto.graph.initializer.append(numpy_helper.from_array(np.eye(10, dtype=np.float32), "eye"))
        proto.graph.node.append(helper.make_node("TransposeMatMul", ["scores", "eye"], ["logits"], domain="com.microsoft"))

    return copied(tiny_int8, tmp_path, edit)


def test_a_file_that_openvino_cannot_compile_is_told_in_one_line_with_what_to_do(foreign: Path, capfd: pytest.CaptureFixture[str]):
    assert vit.load(foreign, "cpu").provider == "cpu"
    with pytest.raises(ModelError) as error:
        vit.load(foreign, "openvino")
    message = one_line(error)
    assert_mentions(message, foreign, "OpenVINO", "com.microsoft.TransposeMatMul", "--target openvino", "'cpu'")
    assert "src/" not in message
    assert len(message) < 400 + len(str(foreign))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("vit-predict", "--provider"),
        pytest.param("vit-bench", "--provider", marks=pytest.mark.full),
        pytest.param("vit-parity", "--providers", marks=pytest.mark.full),
    ],
)
def test_to_the_commands_such_a_file_is_exit_code_3(command: str, options: str, foreign: Path, photo: Path):
    message = failed(run(command, foreign, *([photo] if command == "vit-predict" else []), options, "openvino"), 3)
    assert_mentions(message, foreign, "OpenVINO", "com.microsoft.TransposeMatMul")


def test_a_file_that_is_no_model_is_a_model_error(tmp_path: Path):
    (tmp_path / "junk.onnx").write_bytes(b"not a model " * 9)
    for name, facts in (("junk.onnx", ("OpenVINO", "--target openvino")), ("no.onnx", ("file",))):
        with pytest.raises(ModelError) as error:
            create_session(tmp_path / name, "openvino")
        assert_mentions(one_line(error), tmp_path / name, *facts)
