"""What is asked of a GPU becomes onnxruntime's options, and whatever a provider does not have is refused."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import assert_mentions, failed, one_line, run

import vit_runtime as vit
from vit_runtime.errors import InputError
from vit_runtime.gpu_options import (
    NOTHING_ASKED,
    GpuOptions,
    buckets,
    cache_options,
    check_options,
    cuda_options,
    engine_key,
    engine_options,
    image_sizes,
    profile,
    rtx_options,
    tensorrt_options,
    timing_key,
)
from vit_runtime.manifest import Golden, Manifest

VERSIONS = {"onnxruntime": "1.31.1", "TensorRT": "10.14.1", "driver": "580.65.06, CUDA 13.0", "GPU": "L4, compute capability 8.9"}


# --- what is refused

ASKED: list[dict[str, Any]] = [{"device_id": 0}, {"max_batch": 4}, {"cuda_graph": True}, {"stream": 1}]


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: next(iter(asked)))
@pytest.mark.parametrize("provider", ["auto", "cpu", "openvino"])
def test_an_option_of_a_gpu_is_refused_without_one(provider: str, asked: dict[str, Any], tiny_model: Path):
    """GPU 0 as well: who asks for one by number wants a GPU."""
    name = next(iter(asked))
    with pytest.raises(InputError) as error:
        vit.load(tiny_model, provider, **asked)
    assert_mentions(one_line(error), name, repr(provider), "'cuda'", "'tensorrt'")
    assert ("'tensorrt-rtx'" in one_line(error)) == (name in ("device_id", "max_batch"))


@pytest.mark.unit
@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: next(iter(asked)))
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_gpus_provider_has_them_all(provider: str, asked: dict[str, Any]):
    check_options(provider, GpuOptions(**asked))


@pytest.mark.unit
def test_tensorrt_rtx_has_a_gpu_and_a_largest_batch_and_refuses_what_it_has_not():
    check_options("tensorrt-rtx", GpuOptions(device_id=1, max_batch=4))
    for name, options in (("cuda_graph", GpuOptions(device_id=1, cuda_graph=True)), ("stream", GpuOptions(max_batch=4, stream=1))):
        with pytest.raises(InputError) as error:
            check_options("tensorrt-rtx", options)
        assert_mentions(one_line(error), name, "'tensorrt-rtx'", "'cuda'", "'tensorrt'")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("asked", "facts"),
    [
        ({"device_id": -1}, ("device_id", -1, 0)),
        ({"device_id": "0"}, ("device_id", "'0'")),
        ({"device_id": True}, ("device_id", True)),
        ({"max_batch": 0}, ("max_batch", 0, 1)),
        ({"max_batch": 1.5}, ("max_batch", 1.5)),
        ({"stream": 0}, ("stream", 0)),
        ({"cuda_graph": True, "stream": 4096}, ("cuda_graph", "stream")),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(asked: dict[str, Any], facts: tuple[object, ...]):
    with pytest.raises(InputError) as error:
        check_options("cuda", GpuOptions(**asked))
    assert_mentions(one_line(error), *facts)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("provider", "taken"),
    [("cpu", False), ("cuda", False), ("tensorrt", True), ("tensorrt-rtx", False), ("openvino", True), ("auto", True)],
)
def test_a_cache_is_for_providers_that_keep_what_they_compile(provider: str, taken: bool):
    if taken:
        check_options(provider, GpuOptions(), "folder")
    else:
        with pytest.raises(InputError) as error:
            check_options(provider, GpuOptions(), "folder")
        assert_mentions(one_line(error), "cache_dir", repr(provider), "'openvino'", "'tensorrt'")


@pytest.mark.parametrize("command", ["vit-predict", "vit-bench", "vit-parity"])
@pytest.mark.parametrize("option", [("--device-id", "0"), ("--max-batch", "4"), ("--cuda-graph",)])
def test_the_commands_refuse_them_too(command: str, option: tuple[str, ...], tiny_model: Path, photo: Path):
    more = [photo] if command == "vit-predict" else []
    provider = "--providers" if command == "vit-parity" else "--provider"
    message = failed(run(command, tiny_model, *more, provider, "cpu", *option), 2)
    assert_mentions(message, option[0].removeprefix("--").replace("-", "_"), "'cpu'", "'cuda'", "'tensorrt'")
    assert ("'tensorrt-rtx'" in message) == (option != ("--cuda-graph",))


# --- CUDA


@pytest.mark.unit
def test_cuda_computes_float32_in_float32_on_the_first_gpu_by_default():
    assert cuda_options(GpuOptions()) == {"device_id": "0", "use_tf32": "0"}


@pytest.mark.unit
def test_cuda_takes_a_gpu_a_graph_or_a_stream():
    assert cuda_options(GpuOptions(device_id=1, cuda_graph=True)) == {"device_id": "1", "use_tf32": "0", "enable_cuda_graph": "1"}
    assert cuda_options(GpuOptions(stream=4096))["user_compute_stream"] == "4096"


@pytest.mark.unit
@pytest.mark.parametrize(
    ("provider", "largest", "expected"),
    [("cuda", 1, (1,)), ("cuda", 2, (1, 2)), ("cuda", 8, (1, 2, 4, 8)), ("cuda", 12, (1, 2, 4, 8, 12)), ("tensorrt", 12, (12,))],
)
def test_graphs_are_recorded_for_powers_of_two_and_the_largest_batch(provider: str, largest: int, expected: tuple[int, ...]):
    assert buckets(provider, largest) == expected


@pytest.mark.unit
@pytest.mark.parametrize(("asked", "batch", "expected"), [(None, 3, 8), (None, 32, 32), (4, 32, 4), (64, 32, 64)])
def test_a_command_makes_room_for_its_batches_unless_told_otherwise(asked: int | None, batch: int, expected: int):
    assert GpuOptions(max_batch=asked).reaching(batch).largest == expected


# --- TensorRT


def test_the_profile_goes_from_one_image_to_the_largest_batch(tiny_manifest: Manifest):
    low, best, high = profile(GpuOptions(max_batch=32), tiny_manifest)
    assert (low, best, high) == ("pixel_values:1x3x32x32", "pixel_values:32x3x32x32", "pixel_values:32x3x32x32")
    assert profile(GpuOptions(), tiny_manifest)[2] == "pixel_values:8x3x32x32"


def test_the_profile_of_a_file_for_several_sizes_spans_those_that_its_record_proves(tiny_manifest: Manifest):
    golden = tiny_manifest.golden
    assert isinstance(golden, Golden)
    sizes = tuple(replace(golden, image_size=size) for size in ((16, 48), (64, 24)))
    manifest = replace(tiny_manifest, multiple_of=8, golden_sizes=sizes)
    assert image_sizes(manifest) == ((16, 24), (32, 32), (64, 48))
    low, best, high = profile(GpuOptions(max_batch=4), manifest)
    assert (low, best, high) == ("pixel_values:1x3x16x24", "pixel_values:4x3x32x32", "pixel_values:4x3x64x48")


def test_tensorrt_gets_all_three_shapes_and_no_word_about_precision(tiny_manifest: Manifest):
    asked = GpuOptions(device_id=1, max_batch=4, cuda_graph=True)
    assert engine_options(asked, tiny_manifest) == {
        "trt_profile_min_shapes": "pixel_values:1x3x32x32",
        "trt_profile_opt_shapes": "pixel_values:4x3x32x32",
        "trt_profile_max_shapes": "pixel_values:4x3x32x32",
    }
    assert tensorrt_options(asked) == {"device_id": "1", "trt_cuda_graph_enable": "True"}  # not "1", which onnxruntime refuses here
    assert tensorrt_options(GpuOptions(stream=4096))["user_compute_stream"] == "4096"


def test_tensorrt_rtx_gets_the_same_shapes_under_its_own_names(tiny_manifest: Manifest):
    assert rtx_options(GpuOptions(device_id=1, max_batch=4), tiny_manifest) == {
        "device_id": "1",
        "nv_profile_min_shapes": "pixel_values:1x3x32x32",
        "nv_profile_opt_shapes": "pixel_values:4x3x32x32",
        "nv_profile_max_shapes": "pixel_values:4x3x32x32",
    }


@pytest.mark.unit
def test_a_build_gets_both_caches_and_a_reuse_the_engine_alone():
    engine = {"trt_engine_cache_enable": "True", "trt_engine_cache_path": "/engine"}
    assert cache_options("/engine", None) == engine
    assert cache_options("/engine", "/times") == {**engine, "trt_timing_cache_enable": "True", "trt_timing_cache_path": "/times"}


# --- what an engine is kept for


def key(
    tiny_manifest: Manifest,
    options: GpuOptions = NOTHING_ASKED,
    name: str = "vit.onnx",
    digest: str = "d",
    versions: Mapping[str, str] = VERSIONS,
) -> dict[str, str]:
    return engine_key(engine_options(options, tiny_manifest), name, digest, versions)


@pytest.mark.parametrize("name", VERSIONS)
def test_another_version_of_anything_is_another_key(name: str, tiny_manifest: Manifest):
    assert key(tiny_manifest, versions={**VERSIONS, name: "another"}) != key(tiny_manifest)


def test_another_file_or_profile_is_another_key(tiny_manifest: Manifest):
    assert key(tiny_manifest, digest="another") != key(tiny_manifest)
    assert key(tiny_manifest, name="another.onnx") != key(tiny_manifest)
    assert key(tiny_manifest, GpuOptions(max_batch=4)) != key(tiny_manifest)


@pytest.mark.parametrize(
    "options", [GpuOptions(device_id=1), GpuOptions(stream=4096), GpuOptions(cuda_graph=True), GpuOptions(max_batch=8)]
)
def test_what_does_not_change_the_engine_does_not_change_the_key(options: GpuOptions, tiny_manifest: Manifest):
    """The GPU's name stands in the key, so an equal GPU of another number takes the same engine."""
    assert key(tiny_manifest, options) == key(tiny_manifest)


@pytest.mark.unit
def test_timings_are_kept_for_tensorrt_and_the_gpu():
    assert timing_key(VERSIONS) == timing_key({**VERSIONS, "driver": "another", "onnxruntime": "another"})
    assert timing_key(VERSIONS) != timing_key({**VERSIONS, "GPU": "another"})
    assert timing_key(VERSIONS) != timing_key({**VERSIONS, "TensorRT": "another"})
