"""The Python model of a Triton repository, in a stand-in for the server's process; tests/test_triton_serving.py has the real server."""

import importlib.util
import io
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers import assert_mentions, copied, one_line, with_array
from PIL import Image

import vit_runtime as vit
from vit_exporter import write_triton
from vit_runtime.errors import InputError, ProviderError


class Tensor:
    """A named array, as the backend's."""

    def __init__(self, name: str, values: np.ndarray) -> None:
        self.name, self.values = name, values

    def as_numpy(self) -> np.ndarray:
        return self.values


class TritonError:
    """A message and a code."""

    INVALID_ARG, INTERNAL = "INVALID_ARG", "INTERNAL"

    def __init__(self, message: str, code: str) -> None:
        self.message, self.code = message, code


@dataclass
class InferenceResponse:
    """Tensors or an error."""

    tensors: list[Tensor] = field(default_factory=list)
    error: TritonError | None = None

    def __getitem__(self, name: str) -> np.ndarray:
        assert self.error is None, self.error.message
        return next(tensor.values for tensor in self.tensors if tensor.name == name)


@dataclass
class Request:
    """Encoded images, and the outputs that the client wants."""

    images: list[bytes]
    names: tuple[str, ...] = ("logits", "probabilities")

    def requested_output_names(self) -> list[str]:
        return list(self.names)


def get_input_tensor_by_name(request: Request, name: str) -> Tensor:
    """The only input there is, bytes (B, 1)."""
    assert name == "image"
    return Tensor(name, np.array(request.images, dtype=object).reshape(-1, 1))


@pytest.fixture(autouse=True)
def backend(monkeypatch):
    """The module that the server has and nobody else."""
    module: Any = ModuleType("triton_python_backend_utils")
    module.Tensor, module.TritonError, module.InferenceResponse = Tensor, TritonError, InferenceResponse
    module.get_input_tensor_by_name = get_input_tensor_by_name
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)


def started(path: Path, folder: Path, provider: str = "cpu", kind: str = "CPU", device: str = "0") -> Any:
    """The model of a file's repository, as the server starts it."""
    write_triton(path, folder / "models")
    place = folder / "models" / f"{path.stem}_image"
    spec = importlib.util.spec_from_file_location("model", place / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    config = json.dumps({"max_batch_size": 8, "parameters": {"provider": {"string_value": provider}}})
    given = {"model_repository": str(place), "model_version": "1", "model_instance_kind": kind, "model_instance_device_id": device}
    model.initialize({**given, "model_config": config})
    return model


def picture(seed: int, kind: str = "PNG") -> bytes:
    """An encoded image of its own size."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (30 + seed, 50 - seed, 3), np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


@pytest.fixture(scope="module")
def served(tiny_model, tmp_path_factory):
    return started(tiny_model, tmp_path_factory.mktemp("served"))


def test_an_image_gets_what_the_library_says(served, tiny_model):
    (answer,) = served.execute([Request([picture(1)])])
    expected = vit.load(tiny_model, "cpu").predict(picture(1))
    np.testing.assert_array_equal(answer["logits"], expected.logits[None])  # the same code on the same batch
    np.testing.assert_array_equal(answer["probabilities"], expected.probabilities[None])
    assert (answer["logits"].dtype, answer["probabilities"].dtype) == (np.float32, np.float64)


def test_requests_are_one_batch_and_each_gets_its_own_rows(served, tiny_model):
    sizes, seeds = (1, 3, 2), iter(range(6))
    requests = [
        Request([picture(next(seeds), kind) for _ in range(size)]) for size, kind in zip(sizes, ("PNG", "JPEG", "WEBP"), strict=True)
    ]
    answers = served.execute(requests)
    together = vit.load(tiny_model, "cpu").predict([image for request in requests for image in request.images], batch_size=6)
    np.testing.assert_array_equal(np.concatenate([answer["logits"] for answer in answers]), [each.logits for each in together])
    assert [len(answer["logits"]) for answer in answers] == list(sizes)


def test_only_the_outputs_that_are_asked_for_are_sent(served):
    (answer,) = served.execute([Request([picture(1)], ("attention", "embedding"))])
    assert [tensor.name for tensor in answer.tensors] == ["attention", "embedding"]


def test_a_broken_image_fails_its_own_request_and_says_which_it_was(served, tiny_model):
    requests = [Request([picture(1)]), Request([picture(2), picture(3)[:60]]), Request([b""]), Request([picture(4)])]
    first, second, third, last = served.execute(requests)
    assert_mentions(second.error.message, "image", 2)
    assert_mentions(third.error.message, "image", 1)
    assert {second.error.code, third.error.code} == {"INVALID_ARG"}
    assert "\n" not in second.error.message + third.error.message
    together = vit.load(tiny_model, "cpu").predict([picture(1), picture(4)])
    np.testing.assert_array_equal(np.concatenate([first["logits"], last["logits"]]), [each.logits for each in together])


def test_nothing_but_broken_images_is_no_batch_at_all(served):
    answers = served.execute([Request([b"no image"]), Request([b"nor this"])])
    assert all(answer.error is not None for answer in answers)


def test_nan_is_an_error_of_the_server_for_probabilities_and_passed_on_as_logits(tiny_model, tmp_path):
    import onnx

    name = next(tensor.name for tensor in onnx.load(tiny_model).graph.initializer if tuple(tensor.dims) == (10,))
    model = started(with_array(tiny_model, tmp_path, name, lambda values: values.fill(np.nan)), tmp_path)
    with_probabilities, without = model.execute([Request([picture(1)]), Request([picture(1)], ("logits",))])
    assert with_probabilities.error.code == "INTERNAL"
    assert_mentions(with_probabilities.error.message, "NaN", "vit-parity")
    assert np.isnan(without["logits"]).all()


def test_a_network_that_fails_fails_every_request_of_the_batch_but_says_of_a_broken_image_what_it_is(tiny_model, tmp_path):
    """A Reshape that no batch of 2 x 10 fits, which onnxruntime tells only when it runs."""
    from onnx import TensorProto, helper

    def trap(proto):
        graph = proto.graph
        graph.initializer.append(helper.make_tensor("wrong_shape", TensorProto.INT64, [2], [-1, 7]))
        node = next(node for node in graph.node if "logits" in node.output)
        node.output[list(node.output).index("logits")] = "before"
        graph.node.append(helper.make_node("Reshape", ["before", "wrong_shape"], ["logits"], name="trap"))

    model = started(copied(tiny_model, tmp_path, trap), tmp_path)
    answers = model.execute([Request([picture(1)]), Request([b"broken"]), Request([picture(2)])])
    assert [answer.error.code for answer in answers] == ["INTERNAL", "INVALID_ARG", "INTERNAL"]
    assert_mentions(answers[0].error.message, 2, "trap")


def test_a_provider_that_does_not_run_here_stops_the_model_and_does_not_fall_back(tiny_model, tmp_path):
    with pytest.raises(ProviderError) as error:
        started(tiny_model, tmp_path, provider="cuda", kind="GPU")
    assert_mentions(one_line(error), "'cuda'")


def test_an_instance_on_a_gpu_hands_on_which_one_and_its_largest_batch(tiny_model, tmp_path):
    """A provider that has no use for them says what it was given."""
    with pytest.raises(InputError) as error:
        started(tiny_model, tmp_path, kind="GPU", device="1")
    assert_mentions(one_line(error), "device_id", "max_batch", "'cpu'")
