"""OpenVINO gives the right values for images that run at the same time, or runs them one after another.

On CPUs with AMX, OpenVINO 2026.4 reads memory that nobody wrote when two images run at the same time, in int8 files of networks whose
linear layers have a number of inputs that is no multiple of 64. So these tests fill memory with NaN before they run.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from export_cache import ExportCache
from helpers import inputs
from networks import TINY, randomized, source_of

import vit_runtime as vit
from vit_runtime import openvino_engine
from vit_runtime.openvino_engine import MAX_DIFFERENCE, Arithmetic, OpenVinoSession, has_bf16

pytest.importorskip("openvino")
# A width and MLP width that are no multiples of 64, and the smallest cosine with onnxruntime that rounding to bfloat16 and int8 leaves:
# right values have 0.999 and more, the wrong ones that were seen 0.31 to 0.67.
WIDTHS = {"48, 96": (48, 96), "32, 64": (32, 64), "112, 448": (112, 448), "128, 176": (128, 176), "64, 128": (64, 128)}
MIN_COSINE = 0.99
PRECISIONS = ("int8", "bf16", "fp32")
FULL = pytest.mark.full


def fill_memory() -> None:
    """Leave NaN in the memory that the next allocations get."""
    junk = [np.full(count, np.nan, np.float32) for count in [3_000_000] * 20 + [3_000] * 200]
    del junk


def session_of(path: Path) -> OpenVinoSession:
    session = vit.load(path, "openvino", threads=2)._session
    assert isinstance(session, OpenVinoSession)
    return session


@pytest.mark.parametrize(
    ("widths", "precision"),
    [
        ("48, 96", "int8"),
        ("112, 448", "int8"),
        ("48, 96", "bf16"),
        ("48, 96", "fp32"),
        *(pytest.param(widths, precision, marks=FULL) for widths in ("32, 64", "128, 176", "64, 128") for precision in PRECISIONS),
        *(pytest.param("112, 448", precision, marks=FULL) for precision in ("bf16", "fp32")),
    ],
)
def test_batches_on_two_threads_are_right_whatever_was_in_memory(exports: ExportCache, widths: str, precision: str) -> None:
    width, mlp = WIDTHS[widths]
    config = replace(TINY, embed_dim=width, mlp_dim=mlp, num_heads=width // 16)
    source = source_of(randomized(config, ("embedding",)))
    path = exports.export(source, "vit.onnx", target="openvino", precision=precision, verify=False).out
    reference = exports.export(source, "vit.onnx", target="openvino", verify=False).out  # in float32
    images = inputs(6)
    expected = vit.load(reference, "cpu").run(images)["embedding"]
    for _ in range(3):
        fill_memory()
        found = vit.load(path, "openvino", threads=2).run(images)["embedding"]
        norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
        assert ((found * expected).sum(axis=1) / norms).min() > MIN_COSINE


def test_on_a_cpu_with_amx_images_run_one_after_another(tiny_openvino: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx512_bf16 amx_bf16 amx_tile amx_int8\n")
    monkeypatch.setattr(openvino_engine, "CPUINFO", tmp_path / "cpuinfo")
    images, session = inputs(5), session_of(tiny_openvino)
    found = session.run(["logits"], {"pixel_values": images})[0]
    assert (session.streams, list(session._compiled)) == (1, [1])
    alone = [session.run(["logits"], {"pixel_values": image[None]})[0] for image in images]
    np.testing.assert_array_equal(found, np.concatenate(alone))


@pytest.mark.parametrize(
    ("precision", "group", "expected"), [("int8", None, "f32"), ("int8", 16, "bf16"), ("bf16", None, "bf16"), ("int8-static", None, "bf16")]
)
def test_on_a_cpu_with_amx_int8_weights_alone_are_not_computed_in_bfloat16(
    exports: ExportCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, group: int | None, expected: str
) -> None:
    """With inputs that are not quantized as the network runs, OpenVINO gave NaN there even for one image."""
    path = exports.export(source_of(randomized(TINY, ("logits",))), target="openvino", precision=precision, verify=False).out
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx512_bf16 amx_bf16 amx_tile amx_int8\n")
    monkeypatch.setattr(openvino_engine, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(openvino_engine, "_has_bf16", lambda core: True)
    assert OpenVinoSession(path, 1, Arithmetic(bf16=True, int8_group=group)).precision == expected


def test_a_cpu_without_amx_runs_as_many_images_at_the_same_time_as_there_are_threads(
    tiny_openvino: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx512_bf16\n")
    monkeypatch.setattr(openvino_engine, "CPUINFO", tmp_path / "cpuinfo")
    assert session_of(tiny_openvino).streams == 2


def test_where_the_system_does_not_list_cpu_flags_a_cpu_with_bfloat16_counts_as_one_with_amx(
    tiny_openvino: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_engine, "CPUINFO", tmp_path / "missing")
    assert session_of(tiny_openvino).streams == (1 if has_bf16() else 2)


@pytest.mark.parametrize("fault", [2 * MAX_DIFFERENCE, np.nan])
def test_images_that_differ_at_the_same_time_run_one_after_another_with_a_warning(
    tiny_openvino_fp32: Path, monkeypatch: pytest.MonkeyPatch, fault: float
) -> None:
    """The engine's fault is put into the values of the second round of images that run at the same time."""
    right, rounds = openvino_engine._Compiled.run, []

    def run(compiled, names, batch):
        values = right(compiled, names, batch)
        if compiled.streams == 1:
            return values
        rounds.append(len(batch))
        return [value * (1 + fault) if len(rounds) == 2 else value for value in values]

    monkeypatch.setattr(openvino_engine, "_may_have_amx", lambda core: False)
    expected = session_of(tiny_openvino_fp32).run(["logits"], {"pixel_values": inputs(5)})[0]
    monkeypatch.setattr(openvino_engine._Compiled, "run", run)
    session = session_of(tiny_openvino_fp32)
    with pytest.warns(RuntimeWarning, match="OpenVINO"):
        found = session.run(["logits"], {"pixel_values": inputs(5)})[0]
    assert (session.streams, rounds) == (1, [2, 2])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)  # one stream may sum in another order than two
    rounds.clear()
    np.testing.assert_array_equal(session.run(["logits"], {"pixel_values": inputs(5)})[0], found)
    assert rounds == []
