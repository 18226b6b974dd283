"""Planning a checkpoint, which `vit-inspect` does, imports no torch."""

import subprocess
import sys

from reference_cases import IN_REPOSITORY

CODE = """
import json, pathlib, sys
sys.modules["torch"] = None
from vit_models.checkpoints import hugging_face, timm
from vit_models.checkpoints.plan import CheckpointFile, Options
document = json.loads(pathlib.Path(sys.argv[1]).read_text())
file = CheckpointFile(pathlib.Path("."), "safetensors", {}, lambda name: None, {"config.json": document})
print(hugging_face.recognise(file), hugging_face.plan(file, Options()).config.embed_dim)
print(timm.find("vit_tiny_patch16_224").setting is not None)
"""


def test_planning_needs_no_torch() -> None:
    config = IN_REPOSITORY / "hf__vit_cls_bf16" / "config.json"
    done = subprocess.run([sys.executable, "-c", CODE, str(config)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "48", "True"]
