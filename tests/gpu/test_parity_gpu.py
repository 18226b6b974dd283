"""A file computes on a GPU what float64 PyTorch computed, in every precision, at several batch sizes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import inputs, run_apart

import vit_runtime as vit
from vit_runtime.nvidia import Driver, find_driver
from vit_runtime.providers import placement
from vit_runtime.tensorrt import build
from vit_runtime.tensorrt.compilers import RTX, TENSORRT, is_there

# float32 sums in another order on another processor: a few units in the last place of values around 1.
RTOL, ATOL = 1e-4, 1e-5
SIZES = "1,2,3,7,8"


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *(("cuda", kind) for kind in ("fp32", "fp16", "bf16")),
        *((name, kind) for name in ("tensorrt", "tensorrt-rtx") for kind in ("fp32", "fp16", "bf16", "int8")),
    ],
)
def test_a_file_keeps_to_its_record(name: str, precision: str, needs: Callable[[str], None], exported: Callable[[str, str], Path]):
    """Without TF32, which TensorRT takes for float32 by itself: its 10 bits are thousands of times float32's own error."""
    needs(name)
    path = exported("cuda" if name == "cuda" else "tensorrt", precision)
    done = run_apart("vit-parity", path, "--providers", name, "--batch-sizes", SIZES, NVIDIA_TF32_OVERRIDE="0")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_portable_file_agrees_between_cpu_and_gpu(provider: str, tiny_model: Path):
    done = run_apart("vit-parity", tiny_model, "--providers", f"cpu,{provider}", "--batch-sizes", SIZES, NVIDIA_TF32_OVERRIDE="0")
    assert done.returncode == 0, done.stdout + done.stderr


def test_float32_on_cuda_is_float32_without_a_word_in_the_environment(cuda: str, tiny_model: Path):
    done = run_apart("vit-parity", tiny_model, "--providers", cuda)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_product_is_left_to_the_cpu(provider: str, tiny_model: Path):
    nodes = vit.load(tiny_model, provider).placement()
    assert {node.provider for node in nodes if node.op_type in ("MatMul", "Gemm", "Conv", "LayerNormalization")} <= {provider, "cuda"}
    assert nodes


def test_a_graph_gives_what_a_plain_run_gives(recorder: str, tiny_model: Path):
    plain, graph = vit.load(tiny_model, recorder), vit.load(tiny_model, recorder, cuda_graph=True)
    for batch in (*range(1, 9), 3, 1):
        expected = plain.run(inputs(batch, batch))
        for name, values in graph.run(inputs(batch, batch)).items():
            np.testing.assert_allclose(values, expected[name], rtol=RTOL, atol=ATOL)


def test_a_batch_on_the_gpu_and_one_in_page_locked_memory_give_the_same(recorder: str, tiny_model: Path):
    model = vit.load(tiny_model, recorder)
    expected, written = model.run(inputs(5)), model.empty(5)
    written[:] = inputs(5)
    for batch in (model.to_device(inputs(5)), written):
        for name, values in model.run(batch).items():
            np.testing.assert_array_equal(values, expected[name])


def test_a_stream_of_the_callers_serves(recorder: str, tiny_model: Path):
    import ctypes

    from vit_runtime.gpu_session import _cuda_runtime

    runtime, stream = _cuda_runtime(), ctypes.c_void_p(0)
    expected = vit.load(tiny_model, recorder).run(inputs(3))  # which has loaded the runtime
    runtime = runtime or _cuda_runtime()
    assert runtime.cudaStreamCreate(ctypes.byref(stream)) == 0
    for name, values in vit.load(tiny_model, recorder, stream=stream.value).run(inputs(3)).items():
        np.testing.assert_allclose(values, expected[name], rtol=RTOL, atol=ATOL)


def test_the_placement_counts_tensorrts_parts(tensorrt: str, tiny_model: Path):
    from vit_runtime.providers import create_session

    assert next(iter(placement(create_session(tiny_model, tensorrt)[0]))) == tensorrt


def test_an_engine_of_tensorrt_rtx_that_was_built_without_a_gpu_runs_on_one(needs: Callable[[str], None], tiny_model: Path, tmp_path: Path):
    needs("tensorrt-rtx")
    if not is_there(RTX):
        pytest.skip(f"{RTX.name} is not installed; run: {RTX.install}")
    driver = find_driver()
    assert isinstance(driver, Driver)
    major, minor = driver.gpus[0].capability
    path = tmp_path / "held.onnx"
    build(tiny_model, sm=10 * major + minor, out=path)
    done = run_apart("vit-parity", path, "--providers", "tensorrt-rtx", "--batch-sizes", SIZES, NVIDIA_TF32_OVERRIDE="0")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_an_engine_inside_of_a_file_gives_what_one_built_here_gives(tensorrt: str, cuda_graph: bool, tiny_model: Path, tmp_path: Path):
    if not is_there(TENSORRT):
        pytest.skip(f"{TENSORRT.name} is not installed; run: {TENSORRT.install}")
    path = tmp_path / "held.onnx"
    build(tiny_model, out=path)
    expected, model = vit.load(tiny_model, tensorrt).run(inputs(5)), vit.load(path, cuda_graph=cuda_graph, provider=tensorrt)
    assert {node.op_type for node in model.placement()} == {"EPContext"}
    for name, values in model.run(inputs(5)).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-2, atol=1e-3)  # TF32, and kernels chosen twice
