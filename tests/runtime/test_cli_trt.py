"""vit-trt: engines from the real compiler, tensorrt-rtx, which needs no GPU; and what cannot be built."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import Result
from helpers import MODULES, assert_mentions, copied, document_of, failed, one_line, run, run_apart
from onnx import TensorProto
from onnx.helper import make_node as node
from onnx_graphs import FP8, HALF, graph, product, quantized, tensor

from vit_runtime.errors import InputError, MachineError
from vit_runtime.manifest import read_manifest
from vit_runtime.onnx_file import read_graph
from vit_runtime.tensorrt import build, engine
from vit_runtime.tensorrt.compilers import COMPILERS, RTX, TENSORRT, is_there

STAND_IN = """
import json
from pathlib import Path

__version__ = "10.14.1.48"
SAW = Path(__file__).with_name("saw.json")

class ILogger:
    ERROR, INTERNAL_ERROR, WARNING = range(3)

class IProgressMonitor: ...

class NetworkDefinitionCreationFlag:
    STRONGLY_TYPED = 1

class ProfilingVerbosity:
    DETAILED = "detailed"

class MemoryPoolType:
    WORKSPACE = "workspace"

class OnnxParser:
    def __init__(self, network, log): ...
    def parse_from_file(self, path):
        return True

class Timings:
    def serialize(self):
        return b"timings"

class Profile:
    def set_shape(self, name, *shapes):
        self.name, self.shapes = name, shapes

class Config:
    def __init__(self, log):
        self.log, self.saw = log, {}
    def __setattr__(self, name, value):
        object.__setattr__(self, name, value)
        if name not in ("log", "saw", "progress_monitor"):
            self.saw[name] = value
    def set_memory_pool_limit(self, kind, size):
        self.saw[kind] = size
    def create_timing_cache(self, content):
        if content not in (b"", b"timings"):
            self.log.log(ILogger.WARNING, "not one of mine")
        return Timings()
    def set_timing_cache(self, cache, ignore_mismatch):
        return True
    def get_timing_cache(self):
        return Timings()
    def add_optimization_profile(self, profile):
        self.saw[profile.name] = profile.shapes
        return 0

class Builder:
    def __init__(self, log):
        self.log = log
    def create_network(self, flags):
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
    def create_builder_config(self):
        return Config(self.log)
    def create_optimization_profile(self):
        return Profile()
    def build_serialized_network(self, network, config):
        SAW.write_text(json.dumps(config.saw))
        self.log.layers = "Layers:"
        return memoryview(b"\\0trt, or so")
"""


@pytest.fixture
def tensorrt(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in of TensorRT 10, which needs a GPU; the file in which it leaves what it was asked for."""
    folder = tmp_path_factory.mktemp("stand-in")
    (folder / "tensorrt").mkdir()
    (folder / "tensorrt" / "__init__.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(folder)
    return folder / "tensorrt" / "saw.json"


def trt(model: Path, *arguments: str | Path, sm: int = 89) -> Result:
    return run("vit-trt", model, "--sm", str(sm), *arguments)


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def contents(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- an engine


def test_it_builds_and_says_what_was_fused(tiny_model: Path, tmp_path: Path):
    out = tmp_path / "tiny.engine"
    result = trt(tiny_model, "--out", out)
    assert (result.exit_code, result.stderr) == (0, "")
    assert contents(tmp_path) == {"tiny.engine"}
    lines = {line[:8].strip(): line for line in result.stdout.splitlines()}
    assert_mentions(lines["engine"], out)
    assert_mentions(lines["size"], f"{out.stat().st_size / 1e6:.1f} MB")
    assert_mentions(lines["for"], "SM 89", 1, 32, 8, "fp32")
    assert re.search(r"\btensorrt-rtx 1\.", lines["built"])
    # GELU is fused with the matrix multiplication before it.
    assert_mentions(result.stdout, "MatMul + Add + Div + Erf + Add + Mul + Mul", "blocks.0.mlp.fc1/MatMul")


def test_without_a_gpu_s_name_tensorrt_rtx_builds_for_every_one(tiny_model: Path):
    document = document_of(run("vit-trt", tiny_model, "--json"))
    assert (document["compiler"], document["sm"], document["profile"]) == ("tensorrt-rtx", None, {"min": 1, "opt": 8, "max": 32})


def test_as_data_it_has_every_layer_with_the_nodes_of_the_file(tiny_model: Path):
    document = document_of(trt(tiny_model, "--json", "--batch", "2,4,4"))
    assert document["profile"] == {"min": 2, "opt": 4, "max": 4}
    assert (document["compiler"], document["sm"], document["precision"], document["out"]) == ("tensorrt-rtx", 89, "fp32", None)
    assert document["nodes"] == len(onnx.load(tiny_model).graph.node)
    names = [node.name for node in read_graph(tiny_model).nodes]
    held = {name for layer in document["layers"] for name in layer["nodes"]}
    assert held <= set(names)
    assert {name for name in names if "MatMul" in name or "LayerNorm" in name or "Softmax" in name} <= held
    for layer in document["layers"]:
        assert layer["nodes"] == sorted(layer["nodes"], key=names.index)
    assert document["fused"] == sum(len(layer["nodes"]) > 1 for layer in document["layers"])


def test_without_out_nothing_is_written(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    result = trt(tiny_model)
    assert result.exit_code == 0
    assert_mentions(result.stdout, "--out")
    assert contents(tmp_path) == set()


def test_weights_beside_the_file_are_found(tiny_external: Path):
    assert trt(tiny_external).exit_code == 0


def test_the_profile_stands_in_the_engine(tiny_model: Path, tmp_path: Path):
    """A wider one makes an engine of another size."""
    narrow, wide = (document_of(trt(tiny_model, "--json", "--batch", batch))["size"] for batch in ("1,1,1", "1,8,32"))
    assert narrow != wide


def test_options_reach_the_compiler(tiny_model: Path, tensorrt: Path):
    assert run("vit-trt", tiny_model, "--optimization-level", "0", "--workspace", "512", "--batch", "1,2,4").exit_code == 0
    assert json.loads(tensorrt.read_text()) == {
        "profiling_verbosity": "detailed", "builder_optimization_level": 0, "workspace": 512 << 20,
        "pixel_values": [[1, 3, 32, 32], [2, 3, 32, 32], [4, 3, 32, 32]],
    }  # fmt: skip
    assert trt(tiny_model, "--optimization-level", "0", "--workspace", "512").exit_code == 0  # which the real one takes too


def test_an_engine_may_replace_what_a_link_points_to(tiny_model: Path, tmp_path: Path, tensorrt: Path):
    (tmp_path / "there").mkdir()
    (tmp_path / "x.engine").symlink_to(tmp_path / "there" / "y.engine")
    assert run("vit-trt", tiny_model, "--out", tmp_path / "x.engine").exit_code == 0
    assert (tmp_path / "there" / "y.engine").read_bytes()[1:4] == b"trt"
    assert (tmp_path / "x.engine").is_symlink()


def test_a_file_of_fixed_batch_has_no_profile(tmp_path: Path):
    path = saved(graph([node("Relu", ["x"], ["y"])], sizes=(4, 16, 32)), tmp_path)
    document = document_of(trt(path, "--json"))
    assert (document["profile"], document["precision"]) == (None, None)
    assert_mentions(failed(trt(path, "--batch", "4,4,4"), 2), path, 4, "--batch")


def test_a_free_image_size_is_built_for_the_default_one(tiny_model: Path, tmp_path: Path):
    def change(proto: onnx.ModelProto) -> None:
        for at, name in ((2, "height"), (3, "width")):
            proto.graph.input[0].type.tensor_type.shape.dim[at].dim_param = name
        entry = next(entry for entry in proto.metadata_props if entry.key == "vit_deploy")
        document = json.loads(entry.value)
        document["input"].update(shape=["batch", 3, "height", "width"], multiple_of=8)
        document["golden"] = document["golden_extremes"] = document["parity"] = None
        entry.value = json.dumps(document)

    path = copied(tiny_model, tmp_path, change)
    assert read_manifest(path)[0].multiple_of == 8
    assert document_of(trt(path, "--json"))["profile"] == {"min": 1, "opt": 8, "max": 32}


def test_somebody_who_watches_sees_how_far_it_is(tiny_model: Path):
    ours, theirs = os.openpty()
    code = f"from {MODULES['vit-trt']} import main; main(prog_name='vit-trt')"
    done = subprocess.run([sys.executable, "-c", code, str(tiny_model), "--sm", "89"], stdout=subprocess.PIPE, stderr=theirs, check=True)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how a terminal ends
        while piece := os.read(ours, 1 << 16):
            shown += piece
    os.close(ours)
    assert b"Building engine 0/" in shown  # the compiler's own name for its first phase
    assert shown.endswith(b"\r\x1b[K")  # and nothing of it stays
    assert b"Building" not in done.stdout


def test_what_the_compiler_prints_stays_out_of_stdout(tmp_path: Path):
    """It prints of this file by itself, past its logger."""
    path = saved(graph([node("Cast", ["x"], ["y"], to=TensorProto.INT16)], kind=TensorProto.INT16), tmp_path)
    result = run_apart("vit-trt", path, "--sm", "89", "--json")
    assert result.returncode == 3
    assert json.loads(result.stdout)["exit_code"] == 3
    assert all(line.startswith("error: ") for line in result.stderr.splitlines())


# --- where the engine goes


def test_an_engine_is_replaced_only_when_forced(tiny_model: Path, tmp_path: Path):
    out = tmp_path / "tiny.engine"
    out.write_text("mine")
    assert_mentions(failed(trt(tiny_model, "--out", out), 2), out, "--force")
    assert out.read_text() == "mine"
    assert trt(tiny_model, "--out", out, "--force").exit_code == 0
    assert out.read_bytes()[1:4] == b"trt"


def test_a_build_that_fails_leaves_nothing_behind(tmp_path: Path):
    path = saved(quantized(FP8, weight_kind=FP8), tmp_path)
    out = tmp_path / "model.engine"
    out.write_text("mine")
    assert trt(path, "--out", out, "--force", sm=86).exit_code == 3
    assert contents(tmp_path) == {"model.onnx", "model.engine"}
    assert out.read_text() == "mine"


def test_places_that_cannot_be_are_refused_before_the_build(tiny_model: Path, tmp_path: Path):
    assert_mentions(failed(trt(tiny_model, "--out", tmp_path), 2), "--out", tmp_path, f"--out {tmp_path / 'tiny.engine'}")
    assert_mentions(failed(trt(tiny_model, "--out", tmp_path / "no" / "x.engine"), 2), "--out", f"mkdir -p {tmp_path / 'no'}")
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file" / "x.engine", tmp_path / "file" / "deep" / "x.engine"):
        message = failed(trt(tiny_model, "--out", out), 2)
        assert_mentions(message, "--out", out, tmp_path / "file")
        assert "mkdir" not in message
    assert_mentions(failed(trt(tiny_model, "--out", os.devnull, "--force"), 2), "--out", os.devnull, "device")
    model = Path(shutil.copy(tiny_model, tmp_path / "model"))
    assert_mentions(failed(trt(model, "--out", model, "--force"), 2), "--out", model, model.with_suffix(".engine"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_full_disk_is_one_line(tiny_model: Path, tmp_path: Path):
    out = tmp_path / "tiny.engine"
    (tmp_path / f".tiny.engine.{os.getpid()}").symlink_to("/dev/full")
    assert_mentions(failed(trt(tiny_model, "--out", out), 4), "No space left on device")
    assert contents(tmp_path) == set()


# --- wrong profiles and machines


@pytest.mark.parametrize(
    ("batch", "facts"),
    [
        ("4,2,8", ("4,2,8", "1 <= MIN <= OPT <= MAX")),
        ("8,8,1", ("8,8,1", "1 <= MIN <= OPT <= MAX")),
        ("0,1,2", ("--batch", "'0,1,2'", 1)),
        ("1,8", ("--batch", "'1,8'", "MIN,OPT,MAX")),
        ("8", ("--batch", "'8'", "MIN,OPT,MAX")),
        ("a,b,c", ("--batch", "'a,b,c'")),
        ("1,8,1000000", ("1,8,1000000", 699050, 2147483647)),
    ],
)
def test_wrong_batch_sizes_are_refused(batch: str, facts: tuple[object, ...], tiny_model: Path):
    assert_mentions(failed(trt(tiny_model, "--batch", batch), 2), *facts)


def test_a_free_size_that_is_no_batch_is_refused(tmp_path: Path):
    path = saved(graph([node("Relu", ["x"], ["y"])], sizes=("batch", "tokens", 32)), tmp_path)
    assert_mentions(failed(trt(path), 3), path, "x", "tokens")


def test_an_sm_that_is_not_built_for_is_refused_with_those_that_are(tiny_model: Path):
    assert_mentions(failed(trt(tiny_model, sm=90), 2), 90, "75, 80, 86, 89, 120, 121")


def test_without_a_compiler_both_are_named(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine, "is_there", lambda compiler: False)
    assert_mentions(failed(run("vit-trt", tiny_model), 4), *(compiler.install for compiler in COMPILERS))
    assert_mentions(failed(trt(tiny_model), 4), RTX.install)


def test_what_the_linter_finds_is_told_where_no_compiler_is(tiny_int8: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine, "is_there", lambda compiler: False)
    assert run("vit-trt", tiny_int8).exit_code == 3


def test_a_compiler_that_does_not_load_is_the_machine_s_fault(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "tensorrt_rtx").mkdir()
    (tmp_path / "tensorrt_rtx" / "__init__.py").write_text("raise ImportError('libtensorrt_rtx.so.1: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    message = failed(trt(tiny_model), 4)
    assert_mentions(message, "tensorrt-rtx", "libtensorrt_rtx.so.1: cannot open shared object file", "pip uninstall")


def test_tensorrt_without_a_gpu_is_told_as_it_tells(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its builder's constructor gives nothing, and the reason stands in the log only."""
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.py").write_text(NO_GPU)
    monkeypatch.syspath_prepend(tmp_path)
    assert_mentions(failed(run("vit-trt", tiny_model), 4), "tensorrt", "CUDA error 35", "--sm")


NO_GPU = """
class ILogger:
    ERROR, INTERNAL_ERROR, WARNING = range(3)

class OnnxParser: ...

def Builder(log):
    log.log(ILogger.ERROR, "createInferBuilder: Error Code 6: (CUDA initialization failure with error: 35. Please check it)")
    raise TypeError("pybind11::init(): factory function returned nullptr")
"""


def test_timings_are_kept_for_the_next_build(tiny_model: Path, tmp_path: Path, tensorrt: Path):
    cache = tmp_path / "timing.cache"
    for _ in range(2):
        assert run("vit-trt", tiny_model, "--timing-cache", cache).exit_code == 0
        assert cache.read_bytes() == b"timings"
    assert contents(tmp_path) == {"timing.cache"}


def test_what_is_no_timing_cache_is_not_blamed_on_the_model(tiny_model: Path, tmp_path: Path, tensorrt: Path):
    cache = tmp_path / "timing.cache"
    cache.write_text("mine")
    message = failed(run("vit-trt", tiny_model, "--timing-cache", cache), 2)
    assert_mentions(message, cache, "timing cache")
    assert str(tiny_model) not in message
    assert cache.read_text() == "mine"
    cache.unlink()
    cache.mkdir()
    assert_mentions(failed(run("vit-trt", tiny_model, "--timing-cache", cache), 2), cache, "Is a directory")


def test_inside_of_an_onnx_file_its_engine_is_for_its_own_provider(tiny_model: Path, tmp_path: Path, tensorrt: Path):
    out = tmp_path / "x.onnx"
    assert run("vit-trt", tiny_model, "--out", out).exit_code == 0
    held = document_of(run("vit-info", out, "--json"))["engine"]
    assert (held["compiler"], held["version"], held["max_batch"]) == ("tensorrt", "10.14.1.48", 32)


def test_a_timing_cache_is_for_tensorrt_only(tiny_model: Path, tmp_path: Path):
    assert_mentions(failed(trt(tiny_model, "--timing-cache", tmp_path / "t.cache"), 2), "tensorrt-rtx", "--timing-cache")


def test_too_small_a_workspace_is_told(tmp_path: Path, tiny_model: Path):
    """Nothing of a tiny network needs more than a MiB but a large batch."""
    result = trt(tiny_model, "--workspace", "1", "--batch", "4096,4096,4096")
    assert_mentions(failed(result, 2), tiny_model, "--workspace")


# --- files that cannot be taken


def test_what_is_no_whole_model_is_refused(tiny_model: Path, tmp_path: Path):
    built = tmp_path / "tiny.engine"
    assert trt(tiny_model, "--out", built).exit_code == 0
    assert_mentions(failed(trt(built), 3), built, "engine")
    for name, content in (("cut", tiny_model.read_bytes()[:-2000]), ("garbage", os.urandom(5000)), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        failed(trt(tmp_path / name), 3)
    failed(trt(tmp_path / "none.onnx"), 3)
    failed(trt(tmp_path), 3)


def refusals(result: Result) -> list[str]:
    assert (result.exit_code, result.stdout) == (3, "")
    return result.stderr.splitlines()


def test_the_linter_s_lines_come_one_by_one(tiny_int8: Path):
    lines = refusals(trt(tiny_int8))
    assert len(lines) >= 3
    assert all(line.startswith("error: ") and str(tiny_int8) in line for line in lines)
    assert_mentions(lines[0], "target cpu")
    document = document_of(trt(tiny_int8, "--json"), 3)
    assert document["exit_code"] == 3
    assert document["problems"][0]["what"] == "target cpu"
    assert len(document["problems"]) == len(lines)


@pytest.mark.parametrize(
    ("model", "sm", "node_named", "advice"),
    [
        (product(), 75, "MatMul (product)", "--target tensorrt --precision fp16"),
        (product(TensorProto.BFLOAT16), 75, "graph", "SM 80"),
        (quantized(FP8, weight_kind=FP8), 86, "graph", "SM 89"),
        (graph([node("Foo", ["x"], ["y"], name="foo")]), 89, "Foo (foo)", "op"),
        (graph([node("Add", ["x", "w"], ["y"], name="sum")], [tensor("w", [1.0] * 32, HALF)]), 89, "Add (sum)", "Cast"),
        (graph([node("Add", ["x", "none"], ["y"])]), 89, "Add (node_of_y)", "vit-export --target tensorrt"),
    ],
    ids=["float32 on SM 75", "bfloat16 on SM 75", "fp8 on SM 86", "no such op", "mixed types", "a value that nobody makes"],
)  # fmt: skip
def test_what_the_compiler_refuses_names_the_node_and_what_to_change(
    model: onnx.ModelProto, sm: int, node_named: str, advice: str, tmp_path: Path
):
    (line,) = refusals(trt(saved(model, tmp_path), sm=sm))
    assert_mentions(line, node_named, "tensorrt-rtx", advice)
    assert "/_src/" not in line


def test_our_own_float32_file_is_refused_for_sm_75_and_built_for_the_others(tiny_model: Path):
    (line,) = refusals(trt(tiny_model, sm=75))
    assert_mentions(line, "FP32 GEMM", "SM 75")
    assert trt(tiny_model, sm=80).exit_code == 0  # the oldest that it takes
    assert trt(tiny_model, sm=121).exit_code == 0


# --- a compiler that breaks down


def crashing(folder: Path) -> Path:
    """tensorrt-rtx 1.7 ends with a segmentation fault over attention whose queries and keys are one value."""
    return saved(graph([node("Attention", ["x", "x", "x"], ["y"], q_num_heads=2, kv_num_heads=2)], kind=HALF, opset=23), folder)


def test_a_crash_of_the_compiler_is_one_line(tmp_path: Path):
    result = run_apart("vit-trt", crashing(tmp_path), "--sm", "89", "--json")
    assert result.returncode == 3
    assert result.stderr.count("\n") == 1
    assert_mentions(result.stderr, "tensorrt-rtx", "SIGSEGV")
    assert json.loads(result.stdout)["exit_code"] == 3


def fake(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that only this test has."""
    (folder / "tensorrt_rtx").mkdir()
    (folder / "tensorrt_rtx" / "__init__.py").write_text(f"class ILogger: ...\nclass OnnxParser: ...\ndef Builder(log):\n    {body}\n")
    monkeypatch.syspath_prepend(folder)


def test_a_compiler_that_hangs_is_ended(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake(tmp_path, f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)", monkeypatch)
    message = failed(trt(tiny_model, "--timeout", "1.5"), 4)
    assert_mentions(message, "1.5 s", "--timeout", "--optimization-level")
    assert not is_running(int((tmp_path / "pid").read_text()))


def test_a_compiler_that_is_killed_is_told_to_want_memory(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake(tmp_path, "import os; os.kill(os.getpid(), 9)", monkeypatch)
    assert_mentions(failed(trt(tiny_model), 4), "tensorrt-rtx", "killed", "memory")


def test_a_compiler_that_takes_all_memory_is_ended(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake(tmp_path, "import time; time.sleep(600)", monkeypatch)
    monkeypatch.setattr(engine, "available_memory", lambda: 1 << 20)
    with pytest.raises(MachineError) as error:
        build(tiny_model, sm=89)
    assert_mentions(one_line(error), "1 MB", "memory")


def test_an_interrupted_command_takes_the_compiler_with_it(tiny_model: Path, tmp_path: Path):
    (tmp_path / "tensorrt_rtx").mkdir()
    wait = f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    (tmp_path / "tensorrt_rtx" / "__init__.py").write_text(wait)
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a shell starts what is in its background deaf
    code = f"{heard}; from {MODULES['vit-trt']} import main; main(prog_name='vit-trt')"
    out = tmp_path / "x.engine"
    command = subprocess.Popen(
        [sys.executable, "-c", code, str(tiny_model), "--sm", "89", "--out", str(out)],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.pathsep.join(sys.path)}"},
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    command.send_signal(signal.SIGINT)
    assert re.fullmatch(r"error: [^\n]+\n", command.communicate(timeout=60)[1])
    assert command.returncode == 130
    assert not is_running(int((tmp_path / "pid").read_text()))
    assert contents(tmp_path) == {"tensorrt_rtx", "pid"}


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# --- a GPU


@pytest.mark.gpu
def test_tensorrt_builds_for_the_gpu_that_is_here(tiny_model: Path, tmp_path: Path):
    if not is_there(TENSORRT):
        pytest.skip("tensorrt is not installed")
    cache = tmp_path / "timing.cache"
    for _ in range(2):  # the second time with the timings of the first
        document: Any = document_of(run("vit-trt", tiny_model, "--json", "--timing-cache", cache))
        assert document["compiler"] == "tensorrt"
        assert document["layers"]
        assert cache.stat().st_size > 0
    cache.write_bytes(b"no cache")
    with pytest.raises(InputError) as error:
        build(tiny_model, timing_cache=cache)
    assert_mentions(one_line(error), cache, "timing cache")
