"""vit-info: what is in a file."""

from __future__ import annotations

from pathlib import Path

import click

from vit_runtime.cli.common import Command, Console, output_options, table
from vit_runtime.manifest import Manifest, read_manifest
from vit_runtime.onnx_file import OnnxFile
from vit_runtime.preprocess import ExactResize, Preprocessing


@click.command(cls=Command)
@click.argument("model", type=click.Path(path_type=Path))
@output_options
def main(console: Console, model: Path) -> None:
    """Say what is in an exported file: input, preprocessing, outputs, where the weights came from, passes, recorded parity.

    Example: vit-info vit.onnx --json
    """
    manifest, file = read_manifest(model)
    document = {
        "file": {
            "path": str(file.path),
            "size": file.size,
            "external_files": list(file.external_files),
            "ir_version": file.ir_version,
            "opsets": dict(file.opsets),
            "nodes": file.nodes,
            "ops": dict(file.op_counts),
        },
        "manifest": manifest.to_dict(),
    }
    console.result(document, _text(manifest, file))


def _text(manifest: Manifest, file: OnnxFile) -> str:
    m, p = manifest.model, manifest.preprocessing
    height, width = manifest.image_size
    rows = [
        ["file", " with ".join([f"{file.path}, {file.size / 1e6:.1f} MB", *file.external_files])],
        ["model", f"{m['arch'] or 'custom'}, {m['parameters'] / 1e6:.1f} M parameters, patch {m['patch_size']}, pool {m['pool']}"],
        ["weights", _weights(manifest)],
        ["input", f"{manifest.input_name} float32 (batch, 3, {height}, {width})"],
        ["images", _images(p)],
    ]
    rows += [
        ["output" if i == 0 else "", f"{o.name} {o.dtype} ({', '.join(map(str, o.shape))}): {o.meaning}"]
        for i, o in enumerate(manifest.outputs)
    ]
    rows.append(["labels", _labels(manifest)])
    build = manifest.build
    rows.append(["graph", f"opset {build['opset']}, target {build['target']}, precision {build['precision']}, {file.nodes} nodes"])
    rows += [["pass", f"{step['name']}: {step['nodes_before']} -> {step['nodes_after']} nodes"] for step in build["passes"]]
    rows.append(["ops", ", ".join(f"{op} {count}" for op, count in file.op_counts.items())])
    rows.append(["tools", ", ".join(f"{name} {version}" for name, version in build["tools"].items() if version)])
    lines = [f"{name:<8} {text}" for name, text in rows]
    return "\n".join([*lines, *_parity(manifest)])


def _images(p: Preprocessing) -> str:
    if isinstance(p.resize, ExactResize):
        resize = f"resize to {p.resize.height}x{p.resize.width}"
    else:
        resize = f"resize the shorter edge to {p.resize.edge}"
    crop = f", crop {p.crop[0]}x{p.crop[1]}" if p.crop else ""
    return f"RGB, {resize} ({p.interpolation}){crop}, x{p.rescale:.6g}, mean {p.mean}, std {p.std}"


def _weights(manifest: Manifest) -> str:
    checkpoint = manifest.checkpoint
    if checkpoint["format"] == "random":
        return f"random, seed {checkpoint['seed']}"
    return f"{checkpoint['format']} checkpoint, SHA-256 {checkpoint['sha256']}"


def _labels(manifest: Manifest) -> str:
    if manifest.labels is None:
        return "none"
    shown = ", ".join(manifest.labels[:5])
    return f"{len(manifest.labels)}: {shown}{' ...' if len(manifest.labels) > 5 else ''}"


def _parity(manifest: Manifest) -> list[str]:
    if manifest.golden is None or manifest.parity is None:
        return ["parity   not verified: exported with --no-verify"]
    limits, golden = manifest.parity.limits, manifest.golden
    allowed = f"at most {limits.rms:g}x (rms) and {limits.max:g}x (largest) PyTorch's own float32 error"
    lines = [f"parity   {golden.images} golden images, {allowed}; at export:"]
    rows = [["provider", "output", "batch", "rms error", "floor", "ratio"]]
    for item in manifest.parity.measured:
        floor = golden.floor[item.output].rms
        rows.append(
            [item.provider, item.output, str(item.batch_size), f"{item.error.rms:.1e}", f"{floor:.1e}", f"{item.error.rms / floor:.2f}"]
        )
    return [*lines, table(rows, indent="         ")]
