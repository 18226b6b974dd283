"""vit-info: what is in a file."""

from __future__ import annotations

from pathlib import Path

import click

from vit_runtime.cli.common import Command, Console, output_options, table
from vit_runtime.manifest import Manifest, read_manifest
from vit_runtime.onnx_file import OnnxFile
from vit_runtime.preprocess import CoverResize, ExactResize, Preprocessing


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
    shape = f"({', '.join(map(str, manifest.input_shape))})"
    multiples = f", in multiples of {manifest.multiple_of}" if manifest.multiple_of is not None else ""
    rows = [
        ["file", " with ".join([f"{file.path}, {file.size / 1e6:.1f} MB", *file.external_files])],
        ["model", f"{m['arch'] or 'custom'}, {m['parameters'] / 1e6:.1f} M parameters, patch {m['patch_size']}, pool {m['pool']}"],
        ["weights", _weights(manifest)],
        ["input", f"{manifest.input_name} float32 {shape}{multiples}"],
        ["images", describe_images(p)],
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


def describe_images(p: Preprocessing) -> str:
    """What is done to a picture, in one line."""
    if isinstance(p.resize, ExactResize):
        resize = f"resize to {p.resize.height}x{p.resize.width}"
    elif isinstance(p.resize, CoverResize):
        resize = f"resize to cover {p.resize.height}x{p.resize.width}"
    else:
        resize = f"resize the shorter edge to {p.resize.edge}"
    crop = f", crop {p.crop[0]}x{p.crop[1]}" if p.crop else ""
    crop += f" of {p.crop_of[0]}x{p.crop_of[1]}" if p.crop_of else ""
    color = "grey" if p.color == "L" else p.color
    return f"{color}, {resize} ({p.interpolation}){crop}, / {1 / p.rescale:.6g}, mean {_numbers(p.mean)}, std {_numbers(p.std)}"


def _numbers(values: tuple[float, ...]) -> str:
    """One number where all channels have the same."""
    return " ".join(map(str, dict.fromkeys(values) if len(set(values)) == 1 else values))


def _weights(manifest: Manifest) -> str:
    checkpoint = manifest.checkpoint
    if checkpoint["format"] == "random":
        return f"random, seed {checkpoint['seed']}"
    return f"{checkpoint['format']} checkpoint, SHA-256 {checkpoint['sha256']}"


def _labels(manifest: Manifest) -> str:
    if manifest.labels is None:
        return "none" if manifest.class_scores else "none, as there are no classes"
    shown = ", ".join(manifest.labels[:5])
    return f"{len(manifest.labels)}: {shown}{' ...' if len(manifest.labels) > 5 else ''}"


def _parity(manifest: Manifest) -> list[str]:
    if manifest.golden is None or manifest.parity is None:
        return ["parity   not verified: exported with --no-verify"]
    limits, golden = manifest.parity.limits, manifest.golden
    allowed = f"at most {limits.rms:g}x (rms) and {limits.max:g}x (largest) PyTorch's own float32 error"
    lines = [f"parity   {golden.images} golden images, {allowed}; at export:"]
    rows = [["provider", "output", "batch", "size", "rms error", "floor", "ratio"]]
    floors = {golden.image_size: golden.floor for golden in manifest.goldens}
    for item in manifest.parity.measured:
        floor = floors[item.image_size][item.output].rms
        where = [item.provider, item.output, str(item.batch_size), f"{item.image_size[0]}x{item.image_size[1]}"]
        rows.append([*where, f"{item.error.rms:.1e}", f"{floor:.1e}", f"{item.error.rms / floor:.2f}"])
    return [*lines, table(rows, indent="         ")]
