"""TensorRT RTX through the whole runtime, in real sessions without a GPU: onnxruntime's own provider for CPUs is listed as a device too,
and stands in for the plug-in's. What keeps the plug-in from loading is in test_nvidia.py."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import QUICK, assert_mentions, document_of, inputs, one_line, run

import vit_runtime as vit
from vit_runtime import rtx_plugin
from vit_runtime.errors import InputError, ProviderError
from vit_runtime.model import Model
from vit_runtime.obstacle import Obstacle
from vit_runtime.providers import PROVIDERS, probe

ort = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(not rtx_plugin.takes_plugins(ort), reason="this onnxruntime takes no plug-ins")

CPU = "CPUExecutionProvider"
# float32 sums in another order at another batch size: a few units in the last place of numbers around 1.
RTOL, ATOL = 1e-4, 1e-5


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The GPUs that were asked for, with the CPU's device in the place of each."""
    (cpu,) = (device for device in ort.get_ep_devices() if device.ep_name == CPU)
    numbers = list[int]()

    def device(_: Any, device_id: int) -> Any:
        numbers.append(device_id)
        return cpu

    monkeypatch.setattr(rtx_plugin, "find_device", device)
    monkeypatch.setitem(PROVIDERS, "tensorrt-rtx", replace(PROVIDERS["tensorrt-rtx"], ort_name=CPU))
    return numbers


def test_a_file_runs_on_the_device_of_that_number_with_its_profile(asked: list[int], tiny_model: Path, honest: Model):
    model = vit.load(tiny_model, "tensorrt-rtx", device_id=1, max_batch=4)
    assert (model.provider, asked, {node.provider for node in model.placement()}) == ("tensorrt-rtx", [1, 1], {"tensorrt-rtx"})
    options = model._session.session.get_session_options()
    assert options.get_session_config_entry(f"ep.{CPU.lower()}.nv_profile_max_shapes") == "pixel_values:4x3x32x32"
    with pytest.raises(RuntimeError, match="device_id"):  # the plug-in does not know it, and refuses what it does not know
        options.get_session_config_entry(f"ep.{CPU.lower()}.device_id")
    for name, values in honest.run(inputs(4)).items():
        np.testing.assert_allclose(model.run(inputs(4))[name], values, RTOL, ATOL)
    with pytest.raises(InputError) as error:
        model.to_device(inputs(4))
    assert_mentions(one_line(error), "'tensorrt-rtx'", "'cuda'", "'tensorrt'")
    with pytest.raises(InputError) as error:
        model.run(inputs(5))
    assert_mentions(one_line(error), 5, 4, "max_batch")


def test_the_commands_take_it_and_make_room_for_their_batches(asked: list[int], tiny_model: Path, photo: Path):
    parity = run("vit-parity", tiny_model, "--providers", "cpu,tensorrt-rtx", "--batch-sizes", "1,9", "--json")
    assert document_of(parity)["passed"]
    timed = document_of(run("vit-bench", tiny_model, "--provider", "tensorrt-rtx", "--batch-sizes", "9", *QUICK, "--json"))
    assert timed["provider"] == "tensorrt-rtx"
    assert document_of(run("vit-predict", tiny_model, photo, "--provider", "tensorrt-rtx", "--json"))["provider"] == "tensorrt-rtx"
    assert asked


def test_auto_never_asks_for_it(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rtx_plugin, "find_device", lambda ort, device_id: pytest.fail("auto asked for the plug-in"))
    assert vit.load(tiny_model).provider != "tensorrt-rtx"


def test_a_device_that_is_gone_is_what_the_doctor_says(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    answer = probe("tensorrt-rtx")
    if answer.works:
        pytest.skip("tensorrt-rtx works here")
    answers = iter([None, Obstacle("missing", "it is gone", "look for it")])
    monkeypatch.setattr(rtx_plugin, "find_device", lambda ort, device_id: next(answers))
    with pytest.raises(ProviderError) as caught:
        vit.load(tiny_model, "tensorrt-rtx")
    assert_mentions(one_line(caught), "'tensorrt-rtx'", answer.reason, answer.remedy)
