"""How users of the exporter write it; type-checked, never run."""

from pathlib import Path

import vit_models
from vit_exporter import ExportSpec, export, random_source


def make(out: Path) -> int:
    """An export in Python."""
    config: vit_models.ViTConfig = vit_models.ARCHS["ViT-B/16"]
    report = export(lambda: random_source("ViT-Ti/16"), ExportSpec(out))
    return report.size + config.num_tokens
