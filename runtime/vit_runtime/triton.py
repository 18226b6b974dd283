"""What Triton's Python backend runs of a repository that `vit-export --triton` wrote: encoded images in, outputs and probabilities out.

The repository's model.py imports `TritonPythonModel` from here. `triton_python_backend_utils` exists only inside of the server.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vit_runtime.errors import ImageError, InputError, VitError
from vit_runtime.model import Floats, Prediction, load
from vit_runtime.preprocess import pixel_values

IMAGE = "image"  # the input: encoded images, bytes (B, 1)
PROBABILITIES = "probabilities"  # the output that is not the file's own: softmax of the logits, float64 (B, num_classes)

Answer = dict[str, npt.NDArray[Any]] | VitError  # outputs by name, a row an image


class TritonPythonModel:
    """One instance of the model; the server gives it a process of its own. Its methods are named as the server calls them."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model.onnx of this version on the provider that config.pbtxt names. Raises: VitError, which the server tells."""
        config = json.loads(args["model_config"])
        options: dict[str, Any] = {}
        if args["model_instance_kind"] == "GPU":
            options = {"device_id": int(args["model_instance_device_id"]), "max_batch": config["max_batch_size"]}
        path = Path(args["model_repository"], args["model_version"], "model.onnx")
        self._model = load(path, config["parameters"]["provider"]["string_value"], **options)
        self._scores = self._model.manifest.class_scores

    def execute(self, requests: list[Any]) -> list[Any]:
        """A response to each request, all of their images put through the network as one batch.

        An image that cannot be used fails its own request and no other.
        """
        prepared = [self._prepare(request) for request in requests]
        answers = iter(self._run([each for each in prepared if not isinstance(each, VitError)]))
        return [
            _failure(each) if isinstance(each, VitError) else self._response(request, next(answers))
            for request, each in zip(requests, prepared, strict=True)
        ]

    def _prepare(self, request: Any) -> Floats | VitError:
        """The pixel values of a request's images, or why there are none."""
        import triton_python_backend_utils as backend

        images = backend.get_input_tensor_by_name(request, IMAGE).as_numpy().reshape(-1)
        pixels = []
        for number, image in enumerate(images, 1):
            try:
                pixels.append(pixel_values([image], self._model.manifest.preprocessing))
            except VitError as error:
                return type(error)(f"image {number} of {len(images)}: {error}")
        return np.concatenate(pixels)

    def _run(self, batches: list[Floats]) -> list[Answer]:
        """What the network says to each batch, or why it says nothing."""
        if not batches:
            return []
        try:
            found = self._model.run(np.concatenate(batches))
        except VitError as error:
            return [error] * len(batches)
        ends = np.cumsum([len(batch) for batch in batches])
        return [{name: values[end - len(batch) : end] for name, values in found.items()} for batch, end in zip(batches, ends, strict=True)]

    def _response(self, request: Any, answer: Answer) -> Any:
        """The outputs that the request asks for."""
        import triton_python_backend_utils as backend

        if isinstance(answer, VitError):
            return _failure(answer)
        names = request.requested_output_names()
        try:
            if PROBABILITIES in names and self._scores is not None:
                answer[PROBABILITIES] = np.stack([Prediction(row, None).probabilities for row in answer[self._scores]])
        except VitError as error:
            return _failure(error)
        return backend.InferenceResponse([backend.Tensor(name, answer[name]) for name in names])


def _failure(error: VitError) -> Any:
    """The error as the server tells it to the client: HTTP 400 and INVALID_ARGUMENT for what was sent, 500 and INTERNAL for the rest."""
    import triton_python_backend_utils as backend

    sent = isinstance(error, (ImageError, InputError))
    code = backend.TritonError.INVALID_ARG if sent else backend.TritonError.INTERNAL
    return backend.InferenceResponse(error=backend.TritonError(str(error), code))
