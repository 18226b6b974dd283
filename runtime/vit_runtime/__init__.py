"""Run exported Vision Transformers anywhere onnxruntime runs; no torch.

import vit_runtime as vit
model = vit.load("vit.onnx")
print(model.predict("photo.jpg").top(5))
"""

from vit_runtime.errors import (
    FileError,
    ImageError,
    InputError,
    MachineError,
    ModelError,
    ProviderError,
    SessionError,
    VitError,
)
from vit_runtime.manifest import Manifest, read_manifest
from vit_runtime.model import Label, Model, Prediction, load
from vit_runtime.parity import Report, check_record, compare

__all__ = [
    "FileError",
    "ImageError",
    "InputError",
    "Label",
    "MachineError",
    "Manifest",
    "Model",
    "ModelError",
    "Prediction",
    "ProviderError",
    "Report",
    "SessionError",
    "VitError",
    "check_record",
    "compare",
    "load",
    "read_manifest",
]
