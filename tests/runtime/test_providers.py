"""What the provider side promises: what was asked for or one line that says why not, and not a word from onnxruntime."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest
from helpers import assert_mentions, one_line

import vit_runtime
from vit_runtime import providers
from vit_runtime.errors import InputError, MachineError, ModelError, ProviderError
from vit_runtime.providers import (
    PROBE_INPUT,
    PROBE_MODEL,
    PROBE_OUTPUT,
    PROVIDERS,
    Probe,
    create_session,
    find_provider,
    load_onnxruntime,
    node_placement,
    placement,
    probe,
)
from vit_runtime.threads import physical_cores

CPU_WHEEL = PROVIDERS["cuda"].ort_name not in ort.get_available_providers()
TELLS = hasattr(ort.InferenceSession, "get_provider_graph_assignment_info")
ASK = "from vit_runtime.providers import load_onnxruntime; load_onnxruntime()"


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "probe.onnx"
    path.write_bytes(PROBE_MODEL)
    return path


@cache
def probed(name: str) -> Probe:
    """The answer of one probe, for tests that are not about probing itself."""
    return probe(name)


class Site:
    """A site-packages folder of its own, in which only what is put there can be imported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for package in ("vit_runtime", "numpy", "numpy.libs", "click", "PIL"):
            self.link(package)

    def link(self, package: str) -> None:
        """Put an installed package there, without the record of its distribution."""
        folders = [Path(next(iter(vit_runtime.__path__))).parent, Path(np.__file__).parents[1], *map(Path, sys.path)]
        for source in (folder / package for folder in folders):
            if source.is_dir():
                (self.folder / package).symlink_to(source.resolve())
                return

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def record(self, name: str, version: str) -> None:
        """The record that pip leaves of an onnxruntime wheel."""
        self.write(f"{name}-{version}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n")
        self.write(f"{name}-{version}.dist-info/top_level.txt", "onnxruntime\n" if name.startswith("onnxruntime") else f"{name}\n")

    def python(self, code: str, *more: Path) -> "subprocess.CompletedProcess[str]":
        code = f"import sys; sys.path += {[str(self.folder), *map(str, more)]}; {code}"
        return subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=60)

    def refusal(self) -> str:
        """What load_onnxruntime says there."""
        answer = self.python(
            "from vit_runtime.errors import MachineError\n"
            "from vit_runtime.providers import load_onnxruntime\n"
            "try: load_onnxruntime()\n"
            "except MachineError as error: print(type(error).__name__, error.exit_code, error)"
        )
        assert (answer.returncode, answer.stderr) == (0, "")
        kind, exit_code, message = answer.stdout.rstrip("\n").split(" ", 2)
        assert (kind, exit_code) == ("MachineError", "4")
        assert "\n" not in message
        return message


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path / "site-packages")


# --- the wheel


def test_importing_the_providers_loads_no_engine_and_no_torch(site):
    answer = site.python(
        "import vit_runtime.providers, vit_runtime.doctor; print({'onnxruntime', 'openvino', 'torch', 'onnx', 'click'} & set(sys.modules))"
    )
    assert (answer.stdout, answer.stderr) == ("set()\n", "")


@pytest.mark.unit
def test_a_whole_onnxruntime_is_loaded():
    assert load_onnxruntime() is ort


def test_without_onnxruntime_the_message_names_both_extras(site):
    message = site.refusal()
    assert_mentions(message, "onnxruntime", 'pip install "vit-deploy[cpu]"', '"vit-deploy[gpu]"')


def test_two_wheels_at_once_are_refused_with_the_commands_that_mend_it(site):
    site.link("onnxruntime")
    site.record("onnxruntime", "1.32.0")
    site.record("onnxruntime_gpu", "1.31.1")
    message = site.refusal()
    command = 'pip uninstall -y onnxruntime onnxruntime-gpu && pip install "vit-deploy[gpu]"'
    assert_mentions(message, "onnxruntime 1.32.0", "onnxruntime-gpu 1.31.1", command)


def test_two_wheels_are_also_told_by_their_list_of_files(site):
    site.link("onnxruntime")
    site.record("onnxruntime", "1.32.0")
    site.write("onnxruntime_openvino-1.24.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: onnxruntime-openvino\nVersion: 1.24.1\n")
    site.write("onnxruntime_openvino-1.24.1.dist-info/RECORD", "onnxruntime/__init__.py,,\n")
    assert_mentions(site.refusal(), "onnxruntime 1.32.0", "onnxruntime-openvino 1.24.1")


def test_a_wheel_hidden_in_a_later_folder_is_no_conflict(site, tmp_path):
    site.link("onnxruntime")
    site.record("onnxruntime", ort.__version__)
    hidden = Site(tmp_path / "hidden")
    hidden.write("onnxruntime/__init__.py", "")
    hidden.record("onnxruntime_gpu", "1.31.1")
    answer = site.python(ASK, hidden.folder)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


def test_packages_that_only_begin_with_the_same_name_are_no_conflict(site):
    site.link("onnxruntime")
    site.record("onnxruntime", ort.__version__)
    site.record("onnxruntime_extensions", "0.14.0")
    site.write("onnxruntime_extensions-0.14.0.dist-info/top_level.txt", "onnxruntime_extensions\n")
    (site.folder / "onnxruntime_nameless-1.0.dist-info").mkdir()
    answer = site.python(ASK)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


def test_a_gutted_onnxruntime_is_told_from_a_missing_one(site):
    site.record("onnxruntime_gpu", "1.31.1")
    site.write("onnxruntime/capi/leftover.txt", "uninstalling another wheel took the rest away")
    message = site.refusal()
    assert_mentions(message, "onnxruntime", "InferenceSession", 'pip uninstall -y onnxruntime-gpu && pip install "vit-deploy[gpu]"')


def test_leftovers_of_no_wheel_at_all_count_as_missing(site, tmp_path):
    site.write("onnxruntime/capi/leftover.txt", "")
    assert site.refusal() == Site(tmp_path / "empty").refusal()


def test_an_onnxruntime_that_cannot_be_imported_is_named_with_its_reason(site):
    site.record("onnxruntime", "1.32.0")
    site.write("onnxruntime/__init__.py", "raise ImportError('libstdc++.so.6: version GLIBCXX_9 not found\\nmore')")
    message = site.refusal()
    assert_mentions(
        message, "libstdc++.so.6: version GLIBCXX_9 not found more", 'pip uninstall -y onnxruntime && pip install "vit-deploy[cpu]"'
    )


# --- names


@pytest.mark.unit
@pytest.mark.parametrize("name", PROVIDERS)
def test_a_provider_is_found_by_its_short_name(name):
    assert find_provider(name).name == name


@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("CUDA", "cuda"),
        ("tensort", "tensorrt"),
        ("OpenVino", "openvino"),
        ("CUDAExecutionProvider", "cuda"),
        ("TensorRTExecutionProvider", "tensorrt"),
        ("NvTensorRTRTXExecutionProvider", "tensorrt-rtx"),
        ("OpenVINOExecutionProvider", "openvino"),
        ("CPUExecutionProvider", "cpu"),
    ],
)
def test_a_misspelt_provider_is_answered_with_the_nearest(name, meant):
    with pytest.raises(InputError) as error:
        find_provider(name)
    assert_mentions(one_line(error), repr(name), repr(meant), "auto", *PROVIDERS)


@pytest.mark.unit
@pytest.mark.parametrize("name", ["", "ExecutionProvider", "tpu-v5"])
def test_a_provider_like_no_other_gets_the_list_alone(name):
    with pytest.raises(InputError) as error:
        find_provider(name)
    assert_mentions(one_line(error), repr(name), "auto", *PROVIDERS)
    assert not any(repr(provider) in str(error.value) for provider in PROVIDERS)


# --- probing


@pytest.mark.unit
def test_the_embedded_model_is_the_one_that_its_comments_describe():
    onnx = pytest.importorskip("onnx")
    embedded = onnx.load_model_from_string(PROBE_MODEL)
    onnx.checker.check_model(embedded, full_check=True)
    assert (embedded.ir_version, embedded.opset_import[0].version) == (8, 18)
    assert [node.op_type for node in embedded.graph.node] == ["Conv", "MatMul", "Add"]
    k, m, b = (onnx.numpy_helper.to_array(tensor) for tensor in embedded.graph.initializer)
    conv = (PROBE_INPUT * k[:, 0]).sum((2, 3)).reshape(1, 2, 1, 1)  # kernel and image are of one size
    np.testing.assert_array_equal(conv @ m + b, PROBE_OUTPUT)  # small integers: exact


def test_the_cpu_works():
    answer = probed("cpu")
    assert (answer.name, answer.status, answer.works, answer.remedy) == ("cpu", "ok", True, "")


@pytest.mark.parametrize("name", PROVIDERS)
def test_probing_prints_nothing_and_gives_a_reason_and_a_remedy_for_what_does_not_work(name, capfd):
    answer = probe(name)
    assert capfd.readouterr() == ("", "")
    assert answer.works == (answer.remedy == "")
    assert "\n" not in answer.reason + answer.remedy


@pytest.mark.skipif(not CPU_WHEEL, reason="this onnxruntime was built with CUDA")
@pytest.mark.parametrize(("name", "technology"), [("cuda", "CUDA"), ("tensorrt", "TensorRT")])
def test_on_the_cpu_wheel_a_gpu_provider_is_missing_and_the_remedy_swaps_the_wheel(name, technology):
    answer = probed(name)
    assert answer.status == "missing"
    assert_mentions(answer.reason, f"onnxruntime {ort.__version__}", technology)
    assert_mentions(answer.remedy, 'pip uninstall -y onnxruntime && pip install "vit-deploy[gpu]"')


def test_probing_an_unknown_provider_is_an_input_error():
    with pytest.raises(InputError) as error:
        probe("cuda12")
    assert_mentions(one_line(error), "'cuda12'", "'cuda'")


@pytest.mark.skipif(os.name == "nt", reason="processes end by signals on POSIX only")
def test_a_library_that_crashes_takes_only_the_probe_down(site):
    site.record("onnxruntime", "1.32.0")
    site.write("onnxruntime/__init__.py", "import os\nprint('a word on stdout', flush=True)\nos.abort()")
    answer = site.python(
        "from vit_runtime.providers import probe; import dataclasses, json; print(json.dumps(dataclasses.asdict(probe('cpu'))))"
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    answered = json.loads(answer.stdout)
    assert answered["status"] == "broken"
    assert_mentions(answered["reason"], "SIGABRT")


def test_what_libraries_print_does_not_disturb_the_answer(site):
    site.write("onnxruntime/__init__.py", "import atexit\nprint('probe')\natexit.register(print, 'bye')")
    site.record("onnxruntime", "1.32.0")
    answer = site.python("from vit_runtime.providers import probe; print(probe('cpu').reason)")
    assert_mentions(answer.stdout, "onnxruntime", "InferenceSession")
    assert answer.stderr == ""


def test_without_an_interpreter_to_start_the_probe_runs_in_this_process():
    """A frozen program is its own `sys.executable`: starting that again would start the program again."""
    code = "import sys; sys.executable = '/opt/app/classifier'; from vit_runtime.providers import probe; print(probe('cpu').status)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert (answer.stdout, answer.stderr) == ("ok\n", "")


# --- sessions


@pytest.mark.parametrize("provider", ["cpu", pytest.param("auto", marks=pytest.mark.skipif(not CPU_WHEEL, reason="auto may take the GPU"))])
def test_a_session_on_the_cpu_computes_and_says_where(model, provider, capfd):
    session, chosen = create_session(model, provider)
    assert isinstance(session, ort.InferenceSession)
    np.testing.assert_array_equal(session.run(None, {"x": PROBE_INPUT})[0], PROBE_OUTPUT)  # small integers: exact
    assert (chosen, session.get_providers()) == ("cpu", ["CPUExecutionProvider"])
    assert capfd.readouterr() == ("", "")


def test_a_path_may_be_text(model):
    assert create_session(str(model), "cpu")[1] == "cpu"


def test_a_session_uses_the_physical_cores_unless_told_otherwise(model):
    for threads, expected in ((None, physical_cores()), (3, 3)):
        session, _ = create_session(model, "cpu", threads)
        assert isinstance(session, ort.InferenceSession)
        options = session.get_session_options()
        assert (options.intra_op_num_threads, options.inter_op_num_threads) == (expected, 1)


@pytest.mark.parametrize("threads", [0, -1, 1025, 1.5, "2", True])
def test_a_thread_count_that_makes_no_sense_is_an_input_error(model, threads):
    with pytest.raises(InputError) as error:
        create_session(model, "cpu", threads=threads)
    assert_mentions(one_line(error), repr(threads), "threads", 1, 1024)


def test_an_unknown_provider_is_an_input_error_even_when_the_file_is_missing(tmp_path):
    with pytest.raises(InputError) as error:
        create_session(tmp_path / "no.onnx", "CPU")
    assert_mentions(one_line(error), "'CPU'", "'cpu'")


@pytest.mark.parametrize("provider", ["cpu", "auto"])
def test_provider_options_need_the_provider_that_they_are_for(model, provider):
    with pytest.raises(InputError) as error:
        create_session(model, provider, provider_options={"device_id": "1"})
    assert_mentions(one_line(error), repr(provider), "'cuda'", "'tensorrt'", "'tensorrt-rtx'")


@pytest.mark.parametrize("options", [None, {}, {"device_id": "0"}, {"enable_cuda_graph": "1"}])
def test_float32_on_cuda_is_float32_whatever_else_is_asked_for(model, options, monkeypatch):
    """A stand-in of the session's maker: TF32 is onnxruntime's own default there."""
    asked = dict[str, str]()

    def opened(module, path, provider, threads, options):
        asked.update(options)
        return SimpleNamespace(get_providers=lambda: ["CUDAExecutionProvider"])

    monkeypatch.setattr(providers, "require", lambda name, device_id: ort)
    monkeypatch.setattr(providers, "_open", opened)
    create_session(model, "cuda", provider_options=options)
    assert asked == {"device_id": "0", "use_tf32": "0", **(options or {})}


@pytest.mark.parametrize("name", [name for name in PROVIDERS if name != "cpu"])
def test_a_provider_that_does_not_run_here_is_an_error_and_never_another_provider(model, name, capfd):
    answer = probed(name)
    if answer.works:
        pytest.skip(f"{name} works here")
    with pytest.raises(ProviderError) as caught:
        create_session(model, name)
    assert caught.value.exit_code == 4
    assert_mentions(one_line(caught), repr(name), answer.reason, answer.remedy)
    assert capfd.readouterr().out == ""


def test_a_missing_file_and_a_folder_are_model_errors(tmp_path):
    for path in (tmp_path / "no.onnx", tmp_path):
        with pytest.raises(ModelError) as caught:
            create_session(path, "cpu")
        assert caught.value.exit_code == 3
        assert_mentions(one_line(caught), path, "file")
        assert "onnxruntime" not in str(caught.value).removeprefix(str(path))  # which has not seen it


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "No graph was found|does not have a graph"),
        (b"not a model " * 9, "Protobuf parsing failed"),
        (PROBE_MODEL[:100], "Protobuf parsing failed"),
        (PROBE_MODEL.replace(b"Conv", b"Nope"), "No Op registered for Nope"),
        (PROBE_MODEL.replace(b"\x08\x08", b"\x08\x63", 1), "Unsupported model IR version: 99"),
        (PROBE_MODEL.replace(b"\x01m\x12", b"\x01q\x12", 1), "Node input 'q' is not a graph input"),
    ],
)
def test_a_file_that_onnxruntime_cannot_load_is_a_model_error_of_one_line(model, content, reason, capfd):
    model.write_bytes(content)
    with pytest.raises(ModelError, match=reason) as caught:
        create_session(model, "cpu")
    message = one_line(caught)
    assert_mentions(message, model, f"onnxruntime {ort.__version__}")
    assert "ONNXRuntimeError" not in message
    assert "onnxruntime_src" not in message
    assert len(message) < 400 + len(str(model))
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not TELLS, reason="onnxruntime before 1.24 does not tell")
def test_placement_tells_every_node(model):
    session, _ = create_session(model, "cpu")
    nodes = node_placement(session)
    assert {node.provider for node in nodes} == {"cpu"}
    assert "Conv" in {node.op_type for node in nodes}  # MatMul and Add have become one Gemm by then
    assert placement(session) == {"cpu": len(nodes)}


@pytest.mark.skipif(TELLS, reason="onnxruntime tells")
def test_before_onnxruntime_1_24_placement_asks_for_a_newer_one(model):
    with pytest.raises(MachineError) as error:
        placement(create_session(model, "cpu")[0])
    assert_mentions(one_line(error), f"onnxruntime {ort.__version__}", 1.24, "pip install --upgrade")


@pytest.mark.skipif(not TELLS, reason="onnxruntime before 1.24 does not tell")
def test_a_session_made_elsewhere_did_not_record_its_placement(model):
    with pytest.raises(InputError) as error:
        placement(ort.InferenceSession(str(model), providers=["CPUExecutionProvider"]))
    assert_mentions(one_line(error), "create_session")


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "options"), [("cuda", {"device_id": "0"}), ("tensorrt", {"trt_min_subgraph_size": "1"}), ("tensorrt-rtx", {"device_id": "0"})]
)
def test_a_gpu_provider_computes_every_node_itself(model, name, options, capfd):
    answer = probe(name)
    if not answer.works:
        pytest.skip(answer.reason)
    session, chosen = create_session(model, name, provider_options=options)
    assert isinstance(session, ort.InferenceSession)
    np.testing.assert_array_equal(session.run(None, {"x": PROBE_INPUT})[0], PROBE_OUTPUT)  # small integers: exact in TF32 and fp16 too
    assert (chosen, session.get_providers()[0]) == (name, PROVIDERS[name].ort_name)
    assert set(placement(session)) == {name}
    assert capfd.readouterr().out == ""


@pytest.mark.gpu
def test_auto_takes_the_gpu_where_it_works(model):
    answer = probe("cuda")
    if not answer.works:
        pytest.skip(answer.reason)
    assert create_session(model)[1] == "cuda"


@pytest.mark.gpu
def test_a_damaged_file_is_a_model_error_on_a_gpu_too(model):
    answer = probe("cuda")
    if not answer.works:
        pytest.skip(answer.reason)
    model.write_bytes(PROBE_MODEL.replace(b"Conv", b"Nope"))
    with pytest.raises(ModelError, match="No Op registered for Nope"):
        create_session(model, "cuda")
