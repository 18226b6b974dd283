"""What the provider "openvino" promises: onnxruntime's numbers, in the arithmetic that the file allows, or one line that says why not."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper
from PIL import Image

import vit_runtime as vit
from vit_exporter import ExportSpec, Source, export
from vit_models import ViT, ViTConfig, init_weights
from vit_runtime.cli import bench, parity, predict
from vit_runtime.errors import InputError, MachineError, ModelError, SessionError
from vit_runtime.manifest import KEY, read_manifest
from vit_runtime.model import Model
from vit_runtime.openvino_engine import Arithmetic
from vit_runtime.parity import BATCH_SIZES, check_record, compare
from vit_runtime.preprocess import Preprocessing
from vit_runtime.providers import create_session, node_placement, placement, probe

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed; pip install 'vit-deploy[openvino]'")

INSTALL = 'run: pip install "vit-deploy[openvino]"'
REINSTALL = 'run: pip install --force-reinstall "vit-deploy[openvino]"'
COMMANDS: dict[str, tuple[click.Command, str]] = {
    "vit-predict": (predict.main, "--provider"),
    "vit-bench": (bench.main, "--provider"),
    "vit-parity": (parity.main, "--providers"),
}
HAS_BF16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
CPU_FLAGS = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
HAS_INT8 = any(flag in CPU_FLAGS for flag in ("avx512_vnni", "avx_vnni", "amx_int8"))
NO_GPU = len(onnxruntime.get_available_providers()) <= 2

# float32 sums in another order, with another number of threads: a few units in the last place of numbers around 1.
SAME_BUT_FOR_ORDER = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="session")
def float32(tiny_openvino_fp32: Path) -> Model:
    return vit.load(tiny_openvino_fp32, "openvino", threads=2)


@pytest.fixture(scope="session")
def int8(tiny_openvino: Path) -> Model:
    return vit.load(tiny_openvino, "openvino", threads=2)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(path)
    return path


def inputs(count: int, seed: int = 0) -> np.ndarray:
    """What a network takes that has its images' normalisation in the graph: 0 to 255."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32)).astype(np.float32)


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def edited(source: Path, folder: Path, edit: Callable[[onnx.ModelProto], object]) -> Path:
    proto = onnx.load(source)
    edit(proto)
    path = folder / "edited.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def with_execution(source: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a file that wants to be run in another way."""

    def edit(proto: onnx.ModelProto) -> None:
        entry = next(entry for entry in proto.metadata_props if entry.key == KEY)
        document = json.loads(entry.value)
        document["execution"].update(changes)
        entry.value = json.dumps(document)

    return edited(source, folder, edit)


# ---- loading -------------------------------------------------------------------------------------------------------------------------


def test_importing_the_runtime_loads_neither_openvino_nor_onnxruntime():
    """Nor does any of its commands."""
    modules = ["vit_runtime", "vit_runtime.race", *(f"vit_runtime.cli.{name}" for name in ("bench", "doctor", "info", "parity", "predict"))]
    code = f"import sys, {', '.join(modules)}; print({{'openvino', 'onnxruntime'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_the_cpu_does_not_load_openvino(tiny_openvino: Path):
    code = f"import sys, vit_runtime; vit_runtime.load({str(tiny_openvino)!r}, 'cpu'); print('openvino' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


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
    with pytest.raises(InputError, match="expected them with 'cuda' or 'tensorrt' only") as error:
        create_session(tiny_openvino, "openvino", provider_options={"device_id": "1"})
    one_line(error)


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
    assert compare(other.run, float32.run, float32.manifest, ("cpu", "openvino")).passed


def test_a_picture_gets_the_scores_that_it_gets_from_the_file_for_every_runtime(
    tiny_model: Path, float32: Model, photo: Path, tiny_int8: Path
):
    """Here the graph normalises it, there the runtime does; float32 rounds values of 255 after the one, of 1 before the other."""
    pictures = [photo, np.random.default_rng(0).integers(0, 256, (60, 40, 3), dtype=np.uint8)]
    expected = [found.logits for found in vit.load(tiny_model, "cpu").predict(pictures)]
    np.testing.assert_allclose([found.logits for found in float32.predict(pictures)], expected, **SAME_BUT_FOR_ORDER)
    np.testing.assert_allclose([found.logits for found in vit.load(tiny_int8, "cpu").predict(pictures)], expected, atol=0.01)  # eight bits


def test_a_file_for_every_runtime_computes_the_same_here(tiny_model: Path):
    """With the images' normalisation outside the graph, and with tokens."""
    model = vit.load(tiny_model, "openvino")
    assert check_record(model.run, model.manifest, model.provider).passed


@pytest.mark.parametrize("fixture", ["tiny_openvino", "tiny_int8"])
@pytest.mark.parametrize("threads", [1, 2])
def test_an_int8_file_is_as_near_as_its_record_says(fixture: str, threads: int, request: pytest.FixtureRequest):
    """OpenVINO also runs the file that was made for onnxruntime, with its fused attention."""
    model = vit.load(request.getfixturevalue(fixture), "openvino", threads)
    report = check_record(model.run, model.manifest, model.provider)
    assert report.passed
    assert {check.batch_size for check in report.checks} == set(BATCH_SIZES)


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 16])
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
            np.testing.assert_allclose(values[0], together[name][row], **SAME_BUT_FOR_ORDER)


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
def test_a_network_that_takes_any_size_does_so_here(tmp_path: Path):
    """At every size that it has a record of. Its positions are resampled inside the graph, and such a graph is slow to trace."""
    config = ViTConfig(img_size=(32, 24), patch_size=8, embed_dim=32, depth=1, num_heads=2, mlp_dim=64, num_classes=10)
    network = init_weights(ViT(config, ("logits",), dynamic_size=True), 3)
    checkpoint = {"format": "random", "seed": 3, "sha256": None}
    path = tmp_path / "free.onnx"
    export(lambda: Source(network, None, checkpoint, Preprocessing.paper(32, 24), None), ExportSpec(path, target="openvino"))
    model = vit.load(path, "openvino", threads=2)
    report = check_record(model.run, model.manifest, model.provider, (3, 1))
    assert report.passed
    assert len({check.image_size for check in report.checks}) == 4
    with pytest.raises(InputError, match="in multiples of 8"):
        model.run(np.zeros((1, 3, 20, 24), np.float32))


# ---- the arithmetic ------------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bfloat16")
def test_bfloat16_is_for_files_that_allow_it_alone(tiny_openvino_fp32: Path, tiny_openvino: Path, float32: Model, tmp_path: Path):
    """OpenVINO by itself takes it for every file. Eight bits are off by parts in a thousand, float32 by parts in ten million."""
    expected = vit.load(tiny_openvino_fp32, "cpu").run(inputs(4))["embedding"]
    assert np.abs(float32.run(inputs(4))["embedding"] - expected).max() < 1e-5
    allowed = vit.load(with_execution(tiny_openvino_fp32, tmp_path, bf16=True), "openvino")
    assert 1e-3 < np.abs(allowed.run(inputs(4))["embedding"] - expected).max() < 0.1
    assert not check_record(allowed.run, allowed.manifest, "openvino", (1,)).passed
    assert [read_manifest(path)[0].execution.bf16 for path in (tiny_openvino_fp32, tiny_openvino)] == [False, True]


@pytest.mark.parametrize("allowed", [False, True])
def test_a_session_tells_the_precision_that_it_took(allowed: bool, tiny_openvino_fp32: Path):
    session, _ = create_session(tiny_openvino_fp32, "openvino", arithmetic=Arithmetic(bf16=allowed))
    assert session.precision == ("bf16" if allowed and HAS_BF16 else "f32")


def test_an_int8_file_whose_inputs_must_not_be_quantised_computes_with_its_stored_weights(tiny_openvino: Path, tmp_path: Path):
    """Against onnxruntime without its optimisations, which would quantise them too. In float32 it is off by parts in ten million."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    (expected,) = onnxruntime.InferenceSession(tiny_openvino, options).run(["embedding"], {"pixel_values": inputs(4)})
    plain = vit.load(with_execution(tiny_openvino, tmp_path, bf16=False, int8_group=None), "openvino")
    np.testing.assert_allclose(plain.run(inputs(4))["embedding"], expected, **SAME_BUT_FOR_ORDER)


@pytest.mark.skipif(not HAS_INT8, reason="this CPU has no products in int8, or the system does not tell")
def test_an_int8_file_has_the_inputs_of_its_products_quantised_in_the_groups_that_it_names(tiny_openvino: Path, tmp_path: Path):
    """Every choice gives other numbers; eight bits are off by parts in a thousand."""
    found = []
    for group in (None, 16, 32):
        model = vit.load(with_execution(tiny_openvino, tmp_path, bf16=False, int8_group=group), "openvino")
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
    float32.run(inputs(3))  # its threads are at work
    with warnings.catch_warnings():
        if sys.version_info >= (3, 12):
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking a process with threads, which is the point here
        child = os.fork()
    if child == 0:
        code = 1
        try:
            float32.run(inputs(3))
        except SessionError as error:
            code = 42 if "load in the child" in str(error) else 2
        except BaseException:  # noqa: BLE001 - nothing may leave the child but its exit code
            code = 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    float32.run(inputs(3))  # and the parent goes on


def test_a_model_does_not_need_its_file_after_it_was_loaded(tiny_openvino_fp32: Path, float32: Model, tmp_path: Path):
    """Not even for its second way of running, which is compiled when a batch asks for it."""
    path = Path(shutil.copyfile(tiny_openvino_fp32, tmp_path / "gone.onnx"))
    copy = vit.load(path, "openvino", threads=2)
    path.unlink()
    for batch in (1, 2):
        np.testing.assert_array_equal(copy.run(inputs(batch))["logits"], float32.run(inputs(batch))["logits"])


# ---- the cache -----------------------------------------------------------------------------------------------------------------------


def entries(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("fixture", ["tiny_openvino", "tiny_openvino_fp32"])
def test_what_was_compiled_is_kept_and_used_the_next_time(fixture: str, tmp_path: Path, request: pytest.FixtureRequest):
    """What the cache has not is written into it: by the first load, and nothing by the second, which gives the same numbers."""
    path, folder = request.getfixturevalue(fixture), tmp_path / "made" / "cache"
    first = vit.load(path, "openvino", threads=2, cache_dir=folder).run(inputs(3))
    kept = entries(folder)
    assert kept
    second = vit.load(str(path), "openvino", threads=2, cache_dir=str(folder)).run(inputs(3))
    assert entries(folder) == kept
    for name, values in vit.load(path, "openvino", threads=2).run(inputs(3)).items():
        np.testing.assert_array_equal(first[name], values)
        np.testing.assert_array_equal(second[name], values)


def test_without_a_folder_nothing_is_kept(tiny_openvino_fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    vit.load(tiny_openvino_fp32, "openvino", threads=2).run(inputs(3))
    assert not list(tmp_path.iterdir())


def test_files_that_share_a_cache_do_not_get_one_anothers_numbers(tiny_openvino_fp32: Path, tmp_path: Path):
    """One number in one weight is all that differs."""

    def nudge(proto: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == "blocks.0.mlp.fc2.weight")
        values = numpy_helper.to_array(tensor).copy()
        values.reshape(-1)[values.size // 2] += 0.5
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    other, folder = edited(tiny_openvino_fp32, tmp_path, nudge), tmp_path / "cache"
    found = [vit.load(path, "openvino", 1, folder).run(inputs(1))["embedding"] for path in (tiny_openvino_fp32, other)]
    assert np.abs(found[0] - found[1]).max() > 1e-4
    np.testing.assert_array_equal(found[1], vit.load(other, "openvino", 1).run(inputs(1))["embedding"])


@pytest.mark.parametrize("arithmetic", [Arithmetic(bf16=True), Arithmetic(int8_group=16), Arithmetic()])
def test_a_file_in_another_arithmetic_does_not_get_the_numbers_of_the_first(arithmetic: Arithmetic, tiny_openvino: Path, tmp_path: Path):
    def run(arithmetic: Arithmetic, folder: Path | None) -> Any:
        return create_session(tiny_openvino, "openvino", 1, arithmetic=arithmetic, cache_dir=folder)[0].run(["logits"], {"x": inputs(1)})[0]

    run(Arithmetic(int8_group=32), tmp_path)
    np.testing.assert_array_equal(run(arithmetic, tmp_path), run(arithmetic, None))


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: data[:10], lambda data: b"junk" * 99, lambda data: b""]
)
def test_a_damaged_cache_is_made_again_without_a_word(
    damage: Callable[[bytes], bytes], tiny_openvino_fp32: Path, float32: Model, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """As it is left behind by a process that was killed, or a disk that ran full."""
    vit.load(tiny_openvino_fp32, "openvino", 2, tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(damage(path.read_bytes()))
    damaged = entries(tmp_path)
    model = vit.load(tiny_openvino_fp32, "openvino", 2, tmp_path)
    np.testing.assert_array_equal(model.run(inputs(3))["logits"], float32.run(inputs(3))["logits"])
    assert entries(tmp_path) != damaged
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="this system has no folder in which nobody, root included, can make a file")
def test_a_folder_that_cannot_be_written_to_is_passed_over(tiny_openvino_fp32: Path, float32: Model, capfd: pytest.CaptureFixture[str]):
    model = vit.load(tiny_openvino_fp32, "openvino", 2, "/proc/self")
    np.testing.assert_array_equal(model.run(inputs(3))["logits"], float32.run(inputs(3))["logits"])
    assert capfd.readouterr() == ("", "")


def test_a_cache_folder_that_cannot_be_made_is_told_and_no_fault_of_the_file(tiny_openvino_fp32: Path, tmp_path: Path):
    """A file in its place, and a file on the way to it."""
    (tmp_path / "file").write_text("no folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(MachineError, match="choose another folder, or leave cache_dir out") as error:
            vit.load(tiny_openvino_fp32, "openvino", cache_dir=folder)
        assert one_line(error).startswith(f"the cache folder {folder} cannot be made (")


def test_bench_keeps_what_was_compiled_in_the_folder_that_it_is_given(tiny_openvino_fp32: Path, tmp_path: Path):
    arguments = [str(tiny_openvino_fp32), "--provider", "openvino", "--seconds", "0", "--warmup", "0", "--batch-sizes", "1", "--cache-dir"]
    assert CliRunner().invoke(bench.main, [*arguments, str(tmp_path / "cache"), "-q"]).exit_code == 0
    assert entries(tmp_path / "cache")
    (tmp_path / "file").write_text("no folder")
    answer = CliRunner().invoke(bench.main, [*arguments, str(tmp_path / "file" / "below")])
    assert (answer.exit_code, answer.stdout) == (4, "")
    assert answer.stderr.startswith(f"error: the cache folder {tmp_path / 'file' / 'below'} cannot be made (")


def test_another_provider_needs_no_cache(tiny_openvino_fp32: Path, tmp_path: Path):
    assert vit.load(tiny_openvino_fp32, "cpu", cache_dir=tmp_path / "cache").provider == "cpu"
    assert not (tmp_path / "cache").exists()


# ---- files that it cannot run --------------------------------------------------------------------------------------------------------


@pytest.fixture
def foreign(tiny_int8: Path, tmp_path: Path) -> Path:
    """A file for onnxruntime on a CPU, with an op at its end that onnxruntime has and OpenVINO has not."""

    def edit(proto: onnx.ModelProto) -> None:
        next(node for node in proto.graph.node if "logits" in node.output).output[0] = "scores"
        proto.graph.initializer.append(numpy_helper.from_array(np.eye(10, dtype=np.float32), "eye"))
        proto.graph.node.append(helper.make_node("TransposeMatMul", ["scores", "eye"], ["logits"], domain="com.microsoft"))

    return edited(tiny_int8, tmp_path, edit)


def test_a_file_that_openvino_cannot_compile_is_told_in_one_line_with_what_to_do(foreign: Path, capfd: pytest.CaptureFixture[str]):
    assert vit.load(foreign, "cpu").provider == "cpu"
    with pytest.raises(ModelError) as error:
        vit.load(foreign, "openvino")
    message = one_line(error)
    assert message.startswith(f"{foreign}: OpenVINO cannot load it (")
    assert "com.microsoft.TransposeMatMul" in message
    assert message.endswith("; export it with --target openvino, or use provider 'cpu'")
    assert "src/" not in message
    assert len(message) < 400 + len(str(foreign))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_to_the_commands_such_a_file_is_exit_code_3(command: str, foreign: Path, photo: Path):
    main, arguments = COMMANDS[command]
    answer = CliRunner().invoke(main, [str(foreign), *([str(photo)] if command == "vit-predict" else []), arguments, "openvino"])
    assert (answer.exit_code, answer.stdout) == (3, "")
    assert answer.stderr.startswith(f"error: {foreign}: OpenVINO cannot load it (")
    assert answer.stderr.count("\n") == 1


def test_a_file_that_is_no_model_is_a_model_error(tmp_path: Path):
    (tmp_path / "junk.onnx").write_bytes(b"not a model " * 9)
    with pytest.raises(ModelError, match=r"junk\.onnx: OpenVINO cannot load it \(") as error:
        create_session(tmp_path / "junk.onnx", "openvino")
    one_line(error)
    with pytest.raises(ModelError, match="no such file"):
        create_session(tmp_path / "no.onnx", "openvino")


# ---- without OpenVINO, or with a broken one ------------------------------------------------------------------------------------------


class Site:
    """A site-packages folder of its own: the runtime and what it needs, without OpenVINO but for what a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for package in ("vit_runtime", "numpy", "numpy.libs", "click", "PIL", "pillow.libs", "onnxruntime"):
            self.link(package)
        for name in ("numpy", "click", "pillow", "onnxruntime"):
            info = folder / f"{name}-{metadata.version(name)}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {metadata.version(name)}\n")
            (info / "top_level.txt").write_text(f"{name}\n")

    def link(self, package: str) -> None:
        folders = [Path(next(iter(vit.__path__))).parent, Path(np.__file__).parents[1], *map(Path, sys.path)]
        source = next((folder / package for folder in folders if (folder / package).is_dir()), None)
        if source is not None:  # not every release of a package has its libraries in a folder beside it
            (self.folder / package).symlink_to(source.resolve())

    def unlink(self, package: str) -> None:
        (self.folder / package).unlink()

    def stub(self, text: str) -> None:
        """An openvino of these words."""
        (self.folder / "openvino").mkdir()
        (self.folder / "openvino" / "__init__.py").write_text(text)

    def gut(self) -> None:
        """OpenVINO without the library that computes on a CPU."""
        missing = [path.name for path in Path(openvino.__file__).parent.rglob("*openvino_intel_cpu_plugin*")]
        ignored = shutil.ignore_patterns("__pycache__", *missing)
        shutil.copytree(Path(openvino.__file__).parent, self.folder / "openvino", copy_function=os.symlink, ignore=ignored)

    def python(self, code: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
        code = f"import sys; sys.path.append({str(self.folder)!r})\n{code}"
        return subprocess.run(
            [sys.executable, "-I", "-S", "-c", code, *map(str, arguments)], capture_output=True, encoding="utf-8", timeout=120
        )

    def command(self, name: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
        return self.python(f"from vit_runtime.cli.{name.removeprefix('vit-')} import main; main(prog_name={name!r})", *arguments)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site-packages")


BROKEN: dict[str, tuple[Callable[[Site], object], str]] = {
    "cannot be imported": (
        lambda site: site.stub("raise ImportError('libtbb.so.12: cannot open shared object file\\nmore')"),
        "openvino cannot be imported (libtbb.so.12: cannot open shared object file more)",
    ),
    "lacks a module": (
        lambda site: site.stub("import openvino_of_another_release"),
        "openvino cannot be imported (No module named 'openvino_of_another_release')",
    ),
    "leftovers": (lambda site: (site.folder / "openvino" / "libs").mkdir(parents=True), "openvino cannot be imported (its folder holds leftovers without a Core)"),
    "no CPU plugin": (Site.gut, 'OpenVINO failed (Device with "CPU" name is not registered in the OpenVINO Runtime'),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_without_openvino_the_exit_code_is_4_and_the_extra_is_named(command: str, site: Site, tiny_openvino: Path, photo: Path):
    answer = site.command(command, tiny_openvino, *([photo] if command == "vit-predict" else []), COMMANDS[command][1], "openvino")
    assert (answer.returncode, answer.stdout) == (4, "")
    assert answer.stderr == f"error: provider 'openvino' does not run here: openvino is not installed; {INSTALL}\n"


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_openvino_is_exit_code_4_and_told_with_its_reason_and_remedy(how: str, site: Site, tiny_openvino: Path):
    breaking, words = BROKEN[how]
    breaking(site)
    answer = site.command("vit-bench", tiny_openvino, "--provider", "openvino")
    assert (answer.returncode, answer.stdout) == (4, "")
    assert answer.stderr.startswith(f"error: provider 'openvino' does not run here: {words}")
    assert answer.stderr.endswith(f"; {REINSTALL}\n")
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize("how", ["not installed", "cannot be imported", "no CPU plugin"])
def test_auto_takes_the_cpu_where_openvino_does_not_work_and_says_nothing(how: str, site: Site, tiny_openvino: Path):
    if how in BROKEN:
        BROKEN[how][0](site)
    answer = site.python("import vit_runtime; print(vit_runtime.load(sys.argv[1]).provider)", tiny_openvino)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "cpu\n", "")


def test_openvino_needs_no_onnxruntime(site: Site, tiny_openvino: Path, tiny_model: Path):
    """Nor does auto, for a file that was made for it; for another it says what is missing."""
    site.link("openvino")
    (site.folder / "onnxruntime").unlink()
    shutil.rmtree(next(site.folder.glob("onnxruntime-*.dist-info")))
    load = "import vit_runtime; print(*{vit_runtime.load(sys.argv[1], name).provider for name in sys.argv[2:]})"
    answer = site.python(load, tiny_openvino, "openvino", "auto")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "openvino\n", "")
    answer = site.python(f"try: {load}\nexcept Exception as error: print(type(error).__name__, error)", tiny_model, "auto")
    assert answer.stdout.startswith("MachineError onnxruntime is not installed; run: pip install")


def test_to_the_doctor_a_missing_openvino_is_no_failure(site: Site):
    answer = site.command("vit-doctor")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert re.search(r"^  missing  openvino +openvino is not installed$", answer.stdout, re.MULTILINE)
    assert f"  openvino: {INSTALL}\n" in answer.stdout


def test_to_the_doctor_a_broken_openvino_is_a_failure_with_its_remedy(site: Site):
    site.gut()
    answer = site.command("vit-doctor", "-q")
    assert (answer.returncode, answer.stdout) == (4, "")
    assert answer.stderr.startswith('openvino: OpenVINO failed (Device with "CPU" name is not registered')
    assert answer.stderr.endswith(f"; {REINSTALL}\n")
    assert answer.stderr.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="processes end by signals on POSIX only")
def test_an_openvino_that_crashes_takes_only_the_probe_down(site: Site, tiny_openvino: Path):
    site.stub("import os\nprint('a word on stdout', flush=True)\nos.abort()")
    answer = site.python(
        "from vit_runtime import load, providers; print(providers.probe('openvino')); print(load(sys.argv[1]).provider)", tiny_openvino
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    tried, chosen = answer.stdout.splitlines()
    assert "status='broken'" in tried
    assert "OpenVINO took its process down (signal SIGABRT" in tried
    assert REINSTALL in tried
    assert chosen == "cpu"


def test_an_openvino_that_hangs_is_given_up_and_its_own_remedy_is_named(site: Site):
    """Half a second stands for the two minutes that it gets."""
    site.stub("import time\ntime.sleep(60)")
    answer = site.python(
        "from vit_runtime import providers as p; p.PROBE_TIMEOUT_S = 0.5; found = p.probe('openvino'); print(found.reason, found.remedy)"
    )
    assert answer.stdout == f"no answer from OpenVINO within 0.5 s {REINSTALL}\n"
