"""How users of the runtime write it; type-checked against the editable install and the wheel, never run."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

import vit_runtime as vit


def classify(photo: str) -> list[vit.Label]:
    """One image, a list, an iterator, an embedding."""
    model = vit.load("vit.onnx", provider="cpu", threads=1)
    one: vit.Prediction = model.predict(photo)
    several: list[vit.Prediction] = model.predict([photo, photo])
    names: list[str] = [prediction.top(1)[0].name for prediction in model.predict(iter([Path(photo)]))]
    vector: npt.NDArray[np.float32] = model.embed(b"encoded")
    assert len(several) == len(names) == len(vector)
    return one.top(5)


def serve(stream: int) -> dict[str, npt.NDArray[np.float32]]:
    """On a GPU: a batch written in place, one that stays there, a stream of one's own."""
    model = vit.load("vit.onnx", "cuda", device_id=0, max_batch=32, cuda_graph=True)
    batch = model.empty(32)
    model.run(batch)
    plain = vit.load("vit.onnx", "tensorrt", cache_dir="engines", stream=stream, tell=print)
    return plain.run(plain.to_device(batch))
