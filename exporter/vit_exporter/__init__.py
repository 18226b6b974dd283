"""From a Vision Transformer in PyTorch to an ONNX file that carries its own proof."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit_exporter.pipeline import ExportReport, export
    from vit_exporter.source import Changes, Source, VerificationError, checkpoint_source, digits_source, random_source
    from vit_exporter.spec import ExportSpec
    from vit_exporter.triton import TritonRepository, write_triton

__all__ = [
    "Changes",
    "ExportReport",
    "ExportSpec",
    "Source",
    "TritonRepository",
    "VerificationError",
    "checkpoint_source",
    "digits_source",
    "export",
    "random_source",
    "write_triton",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `vit-export --help` runs without torch, and can say that it is missing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    modules = {
        "ExportReport": "pipeline",
        "export": "pipeline",
        "ExportSpec": "spec",
        "TritonRepository": "triton",
        "write_triton": "triton",
    }
    module = modules.get(name, "source")
    value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
    return value
