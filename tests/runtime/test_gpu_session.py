"""Batches, buffers and recordings of a GPU's session, run by onnxruntime where it allocates on the CPU; nothing but the device differs."""

import ctypes
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from helpers import assert_mentions, assert_refused_after_a_fork, inputs, one_line

import vit_runtime as vit
from vit_runtime.errors import InputError, ModelError, ProviderError
from vit_runtime.gpu_options import NOTHING_ASKED, GpuOptions
from vit_runtime.gpu_session import KEPT_BLOCKS, GpuSession, PageLocked, check_placement, open_gpu
from vit_runtime.manifest import read_manifest
from vit_runtime.model import Model
from vit_runtime.providers import PROVIDERS, NodePlacement, _blame, create_session


def assert_close(actual: Any, expected: Any) -> None:
    """The same but for float32 sums in another order at another batch size: a few units in the last place of numbers around 1."""
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def on_cpu(path: Path, provider: str = "cuda", options: GpuOptions = NOTHING_ASKED) -> Model:
    """The file as a GPU's provider would run it, on the CPU."""
    manifest, file = read_manifest(path)
    session, _ = create_session(path, "cpu", threads=2)
    return Model(path, manifest, file, GpuSession(session, provider, manifest, file, options, device="cpu"), provider, 2)


@pytest.fixture(scope="module")
def plain(tiny_model: Path) -> Model:
    return on_cpu(tiny_model)


@pytest.fixture(scope="module")
def recorded(tiny_model: Path) -> Model:
    return on_cpu(tiny_model, options=GpuOptions(cuda_graph=True, max_batch=6))


# --- batches


def test_a_batch_from_the_cpu_runs_as_ever(plain: Model, honest: Model):
    for name, values in honest.run(inputs(3)).items():
        assert_close(plain.run(inputs(3))[name], values)


def test_a_batch_on_the_device_gives_the_same_as_often_as_it_is_run(plain: Model):
    expected = plain.run(inputs(3))
    batch = plain.to_device(inputs(3))
    assert (len(batch), batch.shape) == (3, (3, 3, 32, 32))
    for _ in range(2):
        for name, values in plain.run(batch).items():
            np.testing.assert_array_equal(values, expected[name])


def test_a_batch_is_checked_before_it_is_put_on_the_device(plain: Model):
    with pytest.raises(InputError) as error:
        plain.to_device(inputs(1).astype(np.float64))
    assert_mentions(one_line(error), "float64", "float32")
    with pytest.raises(InputError) as error:
        plain.to_device(np.full((1, 3, 32, 32), np.nan, np.float32))
    assert_mentions(one_line(error), "NaN", "Inf")


def test_without_a_gpu_there_is_no_device_to_put_a_batch_on(honest: Model, plain: Model):
    with pytest.raises(InputError) as error:
        honest.to_device(inputs(1))
    assert_mentions(one_line(error), "GPU", "'cpu'", "'cuda'", "'tensorrt'")
    with pytest.raises(InputError) as error:
        honest.run(plain.to_device(inputs(1)))
    assert_mentions(one_line(error), "GPU", "'cpu'", "numpy", "float32")


def test_a_batch_on_the_device_of_another_shape_is_refused(plain: Model):
    batch = replace(plain.to_device(inputs(1)), shape=(1, 3, 40, 32))
    with pytest.raises(InputError) as error:
        plain.run(batch)
    assert_mentions(one_line(error), "(1, 3, 40, 32)", "(batch, 3, 32, 32)")


def test_a_batch_that_cannot_be_put_on_the_device_is_one_line(tiny_model: Path):
    """As one that a GPU has no room for: onnxruntime for CPUs has no GPU at all."""
    manifest, file = read_manifest(tiny_model)
    session = GpuSession(create_session(tiny_model, "cpu")[0], "cuda", manifest, file, NOTHING_ASKED, device="cuda")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime was built with CUDA")
    with pytest.raises(vit.SessionError) as error:
        Model(tiny_model, manifest, file, session, "cuda", 1).to_device(inputs(2))
    assert_mentions(one_line(error), "cuda", 2, "vit-doctor")


def test_after_a_fork_a_gpus_model_says_so(plain: Model):
    assert_refused_after_a_fork(lambda: plain.run(inputs(1)))
    assert_refused_after_a_fork(lambda: plain.empty(1))  # as predict does, into the parent's page-locked memory


@pytest.mark.parametrize("model", ["honest", "plain", "recorded"])
def test_a_batch_can_be_written_in_place_and_run(model: str, request: pytest.FixtureRequest):
    loaded: Model = request.getfixturevalue(model)
    batch = loaded.empty(3)
    assert batch.shape == (3, 3, 32, 32)
    assert batch.dtype == np.float32
    assert batch.flags.c_contiguous
    batch[:] = inputs(3)
    assert_close(loaded.run(batch)["logits"], loaded.run(inputs(3))["logits"])


def test_the_placement_is_the_sessions(plain: Model, honest: Model):
    assert plain.placement() == honest.placement()


# --- the largest batch


@pytest.mark.parametrize(
    ("provider", "options", "largest"),
    [
        ("cuda", GpuOptions(), None),
        ("cuda", GpuOptions(max_batch=3), 3),
        ("cuda", GpuOptions(cuda_graph=True), 8),
        ("tensorrt", GpuOptions(), 8),
        ("tensorrt", GpuOptions(max_batch=12), 12),
        ("tensorrt-rtx", GpuOptions(), 8),
    ],
)
def test_a_batch_beyond_the_largest_is_refused_before_it_runs(provider: str, options: GpuOptions, largest: int | None, tiny_model: Path):
    model = on_cpu(tiny_model, provider, options)
    if largest is None:
        assert len(model.run(inputs(40))["logits"]) == 40
        return
    assert len(model.run(inputs(largest))["logits"]) == largest
    with pytest.raises(InputError) as error:
        model.run(inputs(largest + 1))
    assert_mentions(one_line(error), largest + 1, largest, "max_batch")


def test_predicting_many_images_keeps_to_it(tiny_model: Path, honest: Model):
    images = list(np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8))
    model = on_cpu(tiny_model, options=GpuOptions(max_batch=2))
    expected = [prediction.top(1)[0].name for prediction in honest.predict(images)]
    assert [prediction.top(1)[0].name for prediction in model.predict(images)] == expected
    with pytest.raises(InputError) as error:
        model.predict(images, batch_size=3)
    assert_mentions(one_line(error), 3, 2, "max_batch")


# --- recordings


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 6])
def test_a_recording_gives_what_a_plain_run_gives_at_every_batch_size(recorded: Model, honest: Model, batch: int):
    """3 and 5 are filled up to 4 and 6, with what an earlier batch left there."""
    recorded.run(inputs(6, seed=1))
    found = recorded.run(inputs(batch))
    for name, values in honest.run(inputs(batch)).items():
        assert found[name].shape == values.shape
        assert_close(found[name], values)


def test_results_are_the_callers_own(recorded: Model):
    """The next run writes into the same buffers."""
    first = recorded.run(inputs(2))
    copies = {name: values.copy() for name, values in first.items()}
    recorded.run(inputs(2, seed=9))
    for name, values in first.items():
        np.testing.assert_array_equal(values, copies[name])


def test_threads_that_share_recordings_get_their_own_answers(recorded: Model):
    expected = {seed: recorded.run(inputs(2, seed))["logits"] for seed in range(4)}
    wrong = list[int]()

    def work(seed: int) -> None:
        for _ in range(20):
            if not np.array_equal(recorded.run(inputs(2, seed))["logits"], expected[seed]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_tensorrt_has_one_recording_that_every_batch_is_filled_up_to(tiny_model: Path, honest: Model):
    model = on_cpu(tiny_model, "tensorrt", GpuOptions(cuda_graph=True, max_batch=3))
    assert_close(model.run(inputs(1))["logits"], honest.run(inputs(1))["logits"])


def test_a_recording_reads_no_batch_of_the_callers(recorded: Model):
    with pytest.raises(InputError) as error:
        recorded.run(recorded.to_device(inputs(1)))
    assert_mentions(one_line(error), "GPU", "cuda_graph", "numpy")


def test_a_file_of_several_sizes_is_not_recorded(tiny_model: Path):
    manifest, file = read_manifest(tiny_model)
    with pytest.raises(InputError) as error:
        open_gpu(tiny_model, replace(manifest, multiple_of=8), file, "cuda", None, GpuOptions(cuda_graph=True))
    assert_mentions(one_line(error), tiny_model, "sizes", "cuda_graph")


# --- files for other engines


@pytest.mark.parametrize(("provider", "instead"), [("tensorrt", "cuda"), ("tensorrt-rtx", "cpu")])
def test_a_file_for_another_engine_is_refused_by_tensorrt_before_anything_is_built(provider: str, instead: str, tiny_int8: Path):
    with pytest.raises(ModelError) as caught:
        vit.load(tiny_int8, provider)
    assert_mentions(one_line(caught), tiny_int8, "target cpu", "vit-export --target tensorrt --precision int8", repr(instead))


def test_a_file_that_would_run_on_the_cpu_in_part_is_refused_unless_that_part_makes_shapes(tiny_model: Path, honest: Model):
    nodes = [NodePlacement("", "Shape", "cpu"), NodePlacement("", "MatMul", "cuda"), NodePlacement("", "MatMulInteger", "cpu")]
    check_placement(tiny_model, "cuda", nodes[:2])
    with pytest.raises(ProviderError) as caught:
        check_placement(tiny_model, "cuda", [*nodes, nodes[2]])
    assert_mentions(one_line(caught), tiny_model, "cuda", "MatMulInteger (2)", "--target cuda")
    assert "MatMul " not in one_line(caught)  # which runs on the GPU
    for provider in ("tensorrt", "tensorrt-rtx"):
        with pytest.raises(ProviderError) as caught:
            check_placement(tiny_model, provider, honest.placement())
        assert_mentions(one_line(caught), tiny_model, provider, "LayerNormalization (5)", "--target tensorrt")


# --- sizes


@pytest.mark.parametrize("provider", ["tensorrt", "tensorrt-rtx"])
def test_sizes_that_the_engine_was_not_built_for_are_refused(provider: str, tiny_model: Path):
    manifest, file = read_manifest(tiny_model)
    assert manifest.golden is not None
    wide = replace(manifest, multiple_of=8, golden_sizes=(replace(manifest.golden, image_size=(64, 32)),))
    session = GpuSession(create_session(tiny_model, "cpu")[0], provider, wide, file, GpuOptions(), device="cpu")
    session.check(np.zeros((1, 3, 64, 32), np.float32))
    for size in ((72, 32), (64, 40), (24, 32)):
        with pytest.raises(InputError) as error:
            session.check(np.zeros((1, 3, *size), np.float32))
        assert_mentions(one_line(error), f"{size[0]} x {size[1]}", "TensorRT", "32 x 32", "64 x 32")


# --- memory


class Runtime:
    """The three functions of the CUDA runtime that are used, on the C library's memory."""

    def __init__(self) -> None:
        self.held = set[int]()
        self.answer = 0
        self._c = ctypes.CDLL(None)
        self._c.malloc.restype, self._c.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        self._c.free.argtypes = [ctypes.c_void_p]

    def cudaSetDevice(self, device: int) -> int:  # noqa: N802 (CUDA's name)
        return 0

    def cudaHostAlloc(self, address: "ctypes._Pointer[ctypes.c_void_p]", size: ctypes.c_size_t, flags: int) -> int:  # noqa: N802
        if self.answer == 0:
            ctypes.cast(address, ctypes.POINTER(ctypes.c_void_p))[0] = self._c.malloc(size.value)
            self.held.add(ctypes.cast(address, ctypes.POINTER(ctypes.c_void_p))[0])
        return self.answer

    def cudaFreeHost(self, address: ctypes.c_void_p) -> int:  # noqa: N802
        self.held.remove(address.value or 0)
        self._c.free(address)
        return 0


@pytest.mark.unit
def test_a_block_serves_the_next_array_when_nobody_holds_the_first():
    runtime = Runtime()
    memory = PageLocked(runtime, 0)
    first = memory.empty((2, 3, 4))
    first[:] = 7
    address = first.ctypes.data
    part = first[1:]
    del first
    assert memory.empty((2, 3, 4)).ctypes.data != address  # a part of it is still held
    assert (part == 7).all()
    del part
    assert memory.empty((2, 3, 4)).ctypes.data == address
    assert len(runtime.held) == 2


@pytest.mark.unit
def test_of_blocks_that_nobody_uses_a_few_are_kept():
    runtime = Runtime()
    memory = PageLocked(runtime, 0)
    arrays = [memory.empty((8,)) for _ in range(KEPT_BLOCKS + 3)]
    assert len(runtime.held) == KEPT_BLOCKS + 3
    del arrays
    assert len(runtime.held) == KEPT_BLOCKS


@pytest.mark.unit
def test_with_its_model_all_of_it_goes():
    """A server that loads a model anew would lose what it kept for the old one."""
    runtime = Runtime()
    memory = PageLocked(runtime, 0)
    first, second = memory.empty((8,)), memory.empty((2, 2))
    del first
    assert len(runtime.held) == 2
    del memory
    second[:] = 1  # whose block stays as long as somebody has it
    assert len(runtime.held) == 2
    del second
    assert runtime.held == set()


@pytest.mark.unit
def test_without_page_locked_memory_arrays_are_ordinary_ones():
    full = Runtime()
    full.answer = 2  # out of memory
    for memory in (PageLocked(None, 0), PageLocked(full, 0)):
        array = memory.empty((2, 2))
        array[:] = 1
        assert array.sum() == 4


# --- what goes wrong


class OutOfMemory:
    """A session that fails as onnxruntime does when a GPU is full, which takes a GPU to see."""

    def run(self, names: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        raise onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException(
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running MatMul node. "
            "Failed to allocate memory for requested buffer of size 4831838208"
        )


@pytest.mark.parametrize(("batch", "facts"), [(4, (4, 2, "nvidia-smi")), (1, (1, "nvidia-smi"))])
def test_a_gpu_that_runs_out_of_memory_is_one_line_with_the_batch_and_what_to_do(tiny_model: Path, batch: int, facts: tuple[object, ...]):
    manifest, file = read_manifest(tiny_model)
    model = Model(tiny_model, manifest, file, OutOfMemory(), "cuda", 1)
    with pytest.raises(vit.SessionError) as caught:
        model.run(inputs(batch))
    assert_mentions(one_line(caught), "cuda", "memory", *facts)


def test_a_gpu_without_room_for_the_file_itself_is_told_so_and_the_file_is_not_blamed(tiny_model: Path):
    error = RuntimeError("CUDA failure 2: out of memory ; GPU=0 ; hostname=h ; file=cuda_allocator.cc ;")
    found = _blame(onnxruntime, str(tiny_model), PROVIDERS["cuda"], error)
    assert isinstance(found, ProviderError)
    assert "\n" not in str(found)
    assert_mentions(str(found), tiny_model, "cuda", "CUDA failure 2: out of memory", "nvidia-smi")


class NoKernel:
    """A session on a GPU that is older than its kernels."""

    def run(self, names: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        raise RuntimeError("CUDA failure 209: no kernel image is available for execution on the device ; GPU=0 ; hostname=h ; file=f ;")


def test_another_failure_of_a_gpu_is_what_it_says_and_sends_to_the_doctor(tiny_model: Path):
    manifest, file = read_manifest(tiny_model)
    with pytest.raises(vit.SessionError) as caught:
        Model(tiny_model, manifest, file, NoKernel(), "cuda", 1).run(inputs(1))
    cause = "CUDA failure 209: no kernel image is available for execution on the device"
    assert_mentions(one_line(caught), "cuda", 1, cause, "vit-doctor")
    assert "GPU=0" not in one_line(caught)
