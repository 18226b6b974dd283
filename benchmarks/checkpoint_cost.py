"""What reading a checkpoint costs: peak memory and time of vit_models.load, vit-inspect and vit-export for large synthetic ones.

The checkpoints have the published sizes and random numbers, in the layouts that need most repair (separate q, k and v that are packed;
input-first matrices that are turned), and in float32 and bfloat16.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, markdown, timed

BIN = Path(sys.executable).parent
SIZES = {"ViT-L/16": (1024, 24, 4096, 16, 16), "ViT-H/14": (1280, 32, 5120, 16, 14)}
LOAD = "import sys; from pathlib import Path; from vit_models import load; load(Path(sys.argv[1]))"


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/checkpoint_cost.json"))
    parser.add_argument("--write", nargs=3, metavar=("ARCH", "KIND", "PATH"), help="only write that checkpoint")
    args = parser.parse_args()
    if args.write:
        return write(args.write[0], args.write[1], Path(args.write[2]))
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for arch in SIZES:
            for kind in ("Hugging Face, float32", "Hugging Face, bfloat16", "JAX, float32"):
                rows.append(measure(arch, kind, Path(scratch)))
    document = {**machine(["vit-deploy", "torch", "safetensors", "numpy"]), "rows": rows}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(document, indent=1) + "\n")
    head = ["checkpoint", "file", "vit-export --no-verify: peak", "1.3x the file + 300 MB", "load: peak", "load", "vit-inspect"]
    print(
        markdown(
            [head]
            + [
                [
                    f"{row['arch']}, {row['kind']}", f"{row['file_mb']:.0f} MB", f"{row['export_mb']:.0f} MB",
                    f"{1.3 * row['file_mb'] + 300:.0f} MB", f"{row['load_mb']:.0f} MB", f"{row['load_s']:.1f} s",
                    f"{row['inspect_s']:.2f} s",
                ]
                for row in rows
            ]
        )
    )  # fmt: skip


def measure(arch: str, kind: str, scratch: Path) -> dict[str, Any]:
    """One checkpoint: written, measured, removed."""
    path = scratch / ("vit.npz" if kind.startswith("JAX") else "vit")
    # In a process of its own: a child's peak memory counts from its parent's.
    subprocess.run([sys.executable, __file__, "--write", arch, kind, str(path)], check=True)
    file = path if path.is_file() else path / "model.safetensors"
    load_s, load_mb = timed([sys.executable, "-c", LOAD, path])
    inspect_s, _ = timed([BIN / "vit-inspect", path])
    _, export_mb = timed([BIN / "vit-export", "--checkpoint", path, "--out", scratch / "vit.onnx", "--no-verify", "--force"])
    size = file.stat().st_size / 1e6
    file.unlink()
    row = {
        "file_mb": size,
        "load_mb": load_mb,
        "load_s": load_s,
        "inspect_s": inspect_s,
        "export_mb": export_mb,
    }
    return {"arch": arch, "kind": kind, **{name: round(value, 2) for name, value in row.items()}}


def write(arch: str, kind: str, path: Path) -> None:
    """A synthetic checkpoint."""
    if kind.startswith("JAX"):
        write_jax(path, *SIZES[arch])
    else:
        write_hugging_face(path, *SIZES[arch], "bfloat16" if "bfloat16" in kind else "float32")


def numbers(*shape: int) -> Any:
    """Small random numbers, float32."""
    return np.random.default_rng(0).random(shape, np.float32) * np.float32(0.05)


def write_hugging_face(folder: Path, width: int, depth: int, mlp: int, heads: int, patch: int, dtype: str) -> None:
    """A ViTForImageClassification folder."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    tokens = (224 // patch) ** 2 + 1
    state = {
        "vit.embeddings.cls_token": numbers(1, 1, width),
        "vit.embeddings.position_embeddings": numbers(1, tokens, width),
        "vit.embeddings.patch_embeddings.projection.weight": numbers(width, 3, patch, patch),
        "vit.embeddings.patch_embeddings.projection.bias": numbers(width),
    }
    shapes = {
        "attention.attention.query": (width, width), "attention.attention.key": (width, width), "attention.attention.value": (width, width),
        "attention.output.dense": (width, width), "intermediate.dense": (mlp, width), "output.dense": (width, mlp),
        "layernorm_before": (width,), "layernorm_after": (width,),
    }  # fmt: skip
    for index in range(depth):
        for name, shape in shapes.items():
            state[f"vit.encoder.layer.{index}.{name}.weight"] = numbers(*shape)
            state[f"vit.encoder.layer.{index}.{name}.bias"] = numbers(shape[0])
    state |= {"vit.layernorm.weight": numbers(width), "vit.layernorm.bias": numbers(width)}
    state |= {"classifier.weight": numbers(1000, width), "classifier.bias": numbers(1000)}
    save_file({name: torch.from_numpy(value).to(getattr(torch, dtype)) for name, value in state.items()}, folder / "model.safetensors")
    config = {
        "model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": width, "num_hidden_layers": depth,
        "num_attention_heads": heads, "intermediate_size": mlp, "patch_size": patch, "image_size": 224,
        "id2label": {str(index): f"class {index}" for index in range(1000)},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def write_jax(path: Path, width: int, depth: int, mlp: int, heads: int, patch: int) -> None:
    """An augreg .npz, one array at a time."""
    arrays = {
        "cls": (1, 1, width), "Transformer/posembed_input/pos_embedding": (1, (224 // patch) ** 2 + 1, width),
        "embedding/kernel": (patch, patch, 3, width), "embedding/bias": (width,),
        "Transformer/encoder_norm/scale": (width,), "Transformer/encoder_norm/bias": (width,),
        "head/kernel": (width, 1000), "head/bias": (1000,),
    }  # fmt: skip
    for index in range(depth):
        block, attention = f"Transformer/encoderblock_{index}", f"Transformer/encoderblock_{index}/MultiHeadDotProductAttention_1"
        for name in ("query", "key", "value"):
            arrays |= {f"{attention}/{name}/kernel": (width, heads, width // heads), f"{attention}/{name}/bias": (heads, width // heads)}
        arrays |= {f"{attention}/out/kernel": (heads, width // heads, width), f"{attention}/out/bias": (width,)}
        arrays |= {f"{block}/{name}/{part}": (width,) for name in ("LayerNorm_0", "LayerNorm_2") for part in ("scale", "bias")}
        arrays |= {f"{block}/MlpBlock_3/Dense_0/kernel": (width, mlp), f"{block}/MlpBlock_3/Dense_0/bias": (mlp,)}
        arrays |= {f"{block}/MlpBlock_3/Dense_1/kernel": (mlp, width), f"{block}/MlpBlock_3/Dense_1/bias": (width,)}
    with zipfile.ZipFile(path, "w") as archive:
        for name, shape in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, numbers(*shape))


if __name__ == "__main__":
    main()
