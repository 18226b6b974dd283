"""What a server needs of a GPU: engines that are built once, memory that holds, threads, and errors of one line."""

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_mentions, failed, inputs, one_line, run

import vit_runtime as vit
from vit_runtime.engine_cache import EngineCache
from vit_runtime.gpu_options import GPU_PROVIDERS, TAKEN_BY, GpuOptions, cuda_options
from vit_runtime.gpu_session import GpuSession, _cuda_runtime
from vit_runtime.manifest import read_manifest
from vit_runtime.memory import peak_memory
from vit_runtime.model import Model
from vit_runtime.providers import create_session

# float32 sums in another order on another processor: a few units in the last place of values around 1.
RTOL, ATOL = 1e-4, 1e-5
LOAD = "import sys, vit_runtime as vit; vit.load(sys.argv[1], 'tensorrt', cache_dir=sys.argv[2], tell=print)"


def load_apart(path: Path, folder: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", LOAD, str(path), str(folder)], stdout=subprocess.PIPE, text=True, env=environment)


def engines(folder: Path) -> dict[Path, int]:
    """The engines and when each was built."""
    found = [entry.path for entry in EngineCache(folder).entries() if entry.kind == "engine"]
    return {file: file.stat().st_mtime_ns for path in found for file in path.glob("*.engine")}


def test_of_processes_one_builds_and_the_others_reuse(tensorrt: str, tiny_model: Path, tmp_path: Path):
    printed = [child.communicate(timeout=600)[0] for child in [load_apart(tiny_model, tmp_path) for _ in range(3)]]
    assert sum(tiny_model.name in text for text in printed) == 1  # one of them says that it builds
    kept = engines(tmp_path)
    assert kept
    assert load_apart(tiny_model, tmp_path).communicate(timeout=600)[0] == ""
    assert engines(tmp_path) == kept


def test_another_batch_is_another_engine_and_the_first_stays(tensorrt: str, tiny_model: Path, tmp_path: Path):
    vit.load(tiny_model, tensorrt, cache_dir=tmp_path)
    first = engines(tmp_path)
    vit.load(tiny_model, tensorrt, cache_dir=tmp_path, max_batch=4)
    assert len(engines(tmp_path)) == 2 * len(first)
    assert first.items() <= engines(tmp_path).items()


def test_no_batch_within_the_profile_builds_anew(tensorrt: str, tiny_model: Path, tmp_path: Path):
    model = vit.load(tiny_model, tensorrt, cache_dir=tmp_path)
    kept = engines(tmp_path)
    for batch in range(1, 9):
        model.run(inputs(batch))
    assert engines(tmp_path) == kept


@pytest.mark.parametrize("keep", [0, 1000])
def test_a_truncated_engine_is_built_again(tensorrt: str, tiny_model: Path, tmp_path: Path, keep: int):
    expected = vit.load(tiny_model, tensorrt, cache_dir=tmp_path).run(inputs(2))
    for path in engines(tmp_path):
        path.write_bytes(path.read_bytes()[:keep])
    notes = list[str]()
    damaged = engines(tmp_path)
    outputs = vit.load(tiny_model, tensorrt, cache_dir=tmp_path, tell=notes.append).run(inputs(2))
    assert str(tmp_path) in notes[0]  # the damaged entry
    assert engines(tmp_path) != damaged
    for name, values in outputs.items():
        np.testing.assert_allclose(values, expected[name], rtol=RTOL, atol=ATOL)


def free_memory() -> int:
    """Bytes that the GPU has left."""
    free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
    assert _cuda_runtime().cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)) == 0
    return free.value


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_memory_holds_over_10000_requests(recorder: str, cuda_graph: bool, tiny_model: Path):
    """A leak of one batch of 3 images a request, 36 kB, would be 370 MB on either side."""
    model = vit.load(tiny_model, recorder, cuda_graph=cuda_graph)
    batches = [inputs(size) for size in range(1, 9)]
    for number in range(500):
        model.run(batches[number % 8])
    free, peak = free_memory(), peak_memory()
    for number in range(10_000):
        model.run(batches[number % 8])
    assert free - free_memory() < 64 << 20
    if peak is not None:
        assert (peak_memory() or 0) - peak < 64 << 20


@pytest.mark.parametrize(
    ("name", "cuda_graph"), [*((name, False) for name in GPU_PROVIDERS), *((name, True) for name in TAKEN_BY["cuda_graph"])]
)
def test_two_threads_get_their_own_answers(name: str, cuda_graph: bool, needs: Callable[[str], None], tiny_model: Path):
    needs(name)
    model = vit.load(tiny_model, name, cuda_graph=cuda_graph)
    expected = {seed: model.run(inputs(3, seed))["logits"] for seed in range(2)}
    worst = dict[int, float]()

    def work(seed: int) -> None:
        worst[seed] = max(float(np.abs(model.run(inputs(3, seed))["logits"] - expected[seed]).max()) for _ in range(200))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(worst) == 2
    assert max(worst.values()) < 1e-4  # the other thread's answer is some tenths away


def test_a_gpu_that_is_not_there_is_one_line(provider: str, tiny_model: Path):
    message = failed(run("vit-bench", tiny_model, "--provider", provider, "--device-id", "99"), 4)
    assert_mentions(message, 99, 0)  # the number that is not there, and the first one that is


def test_a_gpu_without_room_is_one_line_with_the_batch(cuda: str, tiny_model: Path):
    manifest, file = read_manifest(tiny_model)
    session, _ = create_session(tiny_model, cuda, None, {**cuda_options(GpuOptions()), "gpu_mem_limit": str(16 << 20)})
    model = Model(tiny_model, manifest, file, GpuSession(session, cuda, manifest, file, GpuOptions()), cuda, 1)
    with pytest.raises(vit.SessionError) as raised:
        model.run(inputs(4096))
    assert_mentions(one_line(raised), "cuda", 4096, 2048)
