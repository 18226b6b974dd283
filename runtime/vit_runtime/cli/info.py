"""vit-info: what is in a file."""

from __future__ import annotations

import sys
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import click

from vit_runtime.cli.common import Command, Console, output_options, table
from vit_runtime.manifest import Limits, Manifest, Measured, Parity, read_manifest
from vit_runtime.onnx_file import OnnxFile
from vit_runtime.parity.judging import limits_for
from vit_runtime.preprocess import CoverResize, ExactResize, Preprocessing
from vit_runtime.tensorrt.context import Held, read_held
from vit_runtime.tensorrt.rules import lint


@click.command(cls=Command)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--graph", is_flag=True, help="How many ops of each kind there were before and after each pass, in place of the rest.")
@click.option("--check", type=click.Choice(["tensorrt"]), help="Say only whether this engine can take the file; 1 is the exit code if not.")
@output_options
def main(console: Console, model: Path, graph: bool, check: str | None) -> None:
    """Say what is in an exported file: input, preprocessing, outputs, where the weights came from, passes, recorded parity.

    --check tensorrt also takes ONNX files of others, and needs neither TensorRT nor a GPU.

    Example: vit-info vit.onnx --json
    """
    if check:
        _check(console, model)
        return
    manifest, file = read_manifest(model)
    held = read_held(file)
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
        "engine": asdict(held) if held is not None else None,
        "manifest": manifest.to_dict(),
    }
    console.result(document, _graph(manifest, file) if graph else _text(manifest, file, held))


def _check(console: Console, model: Path) -> None:
    """Print what TensorRT cannot take of the file; exit code 1 where there is any."""
    problems = lint(model)
    found = [f"  {problem}" for problem in problems]
    text = "\n".join([f"{model}: TensorRT cannot take it", *found]) if problems else f"{model}: nothing in it that TensorRT cannot take"
    document = {"model": str(model), "check": "tensorrt", "ok": not problems, "problems": [problem.to_dict() for problem in problems]}
    console.result(document, text)
    if problems:
        sys.exit(1)


def _graph(manifest: Manifest, file: OnnxFile) -> str:
    """A column a pass, a row an op; a dot where the pass left the number as it was."""
    build = manifest.build
    stages = [("traced", build["traced"]), *((step["name"], step["ops"]) for step in build["passes"])]
    names = sorted({op for _, ops in stages for op in ops}, key=lambda op: (-stages[-1][1].get(op, 0), -build["traced"].get(op, 0), op))
    rows = [["", "traced", *(str(number) for number in range(1, len(stages)))]]
    for op in names:
        counts = [ops.get(op, 0) for _, ops in stages]
        changes = ["." if now == before else str(now) for before, now in pairwise(counts)]
        rows.append([op, str(counts[0]), *changes])
    rows.append(["nodes", *(str(sum(ops.values())) for _, ops in stages)])
    floors = [step["floors"] for step in build["passes"]]
    if any(value is not None for value in floors):
        rows.append(["error, floors", "", *("" if value is None else f"{value:.2f}" for value in floors)])
    listed = [f"  {number}  {name}" for number, (name, _) in enumerate(stages) if number]
    return "\n".join([f"{file.path}, opset {build['opset']}, target {build['target']}, {build['precision']}", table(rows), *listed])


def _text(manifest: Manifest, file: OnnxFile, held: Held | None) -> str:
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
    split = f", tokens in pieces of {', '.join(map(str, build['token_split']))}" if build["token_split"] else ""
    rows.append(["graph", f"opset {build['opset']}, target {build['target']}, precision {build['precision']}, {file.nodes} nodes{split}"])
    if held is not None:
        batches = f", batches up to {held.max_batch}" if held.max_batch is not None else ""
        rows.append(["engine", f"{str(held).removeprefix('an engine ')}{batches}, for provider {held.provider}"])
    rows += [["kept", f"{kept['layer']} in higher precision"] for kept in build["kept"]]
    rows += [
        ["float32", f"{each['node']}, for {each['value']} up to {each['largest'] or 'Inf'}: {each['reason']}"] for each in build["islands"]
    ]
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
    values = f"/ {1 / p.rescale:.6g}, mean {_numbers(p.mean)}, std {_numbers(p.std)}{' in the graph' if p.in_graph else ''}"
    return f"{color}, {resize} ({p.interpolation}){crop}, {values}"


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
    if not isinstance(limits, Limits):
        return _nearness(manifest, manifest.parity)
    allowed = f"at most {limits.rms:g}x (rms) and {limits.max:g}x (largest) PyTorch's own float32 error"
    lines = [f"parity   {golden.images} golden images, {allowed}; at export:"]
    rows = [["provider", "output", "batch", "size", "images", "rms error", "floor", "ratio"]]
    floors = {("golden", golden.image_size): golden.floor for golden in manifest.goldens}
    if manifest.golden_extremes is not None:
        floors["extremes", manifest.image_size] = manifest.golden_extremes.floor
    for item in manifest.parity.measured:
        floor = floors[item.inputs, item.image_size][item.output].rms
        rows.append([*_where(item), f"{item.error.rms:.1e}", f"{floor:.1e}", f"{item.error.rms / floor:.2f}"])
    return [*lines, table(rows, indent="         ")]


def _nearness(manifest: Manifest, parity: Parity) -> list[str]:
    rows = [["provider", "output", "batch", "size", "images", "least cosine", "limit", "mean", "limit", "largest KL", "limit"]]
    for item in parity.measured:
        limits, near = limits_for(parity, item.inputs), item.nearness
        if near is not None and not isinstance(limits, Limits):
            limit = limits[item.output]
            cosines = [_or_blank(value, ".5f") for value in (near.cosine, limit.cosine, near.cosine_mean, limit.cosine_mean)]
            rows.append([*_where(item), *cosines, _or_blank(near.kl, ".1e"), _or_blank(limit.kl, ".1e")])
    lines = [f"parity   {manifest.golden.images if manifest.golden else 0} golden images; at export:", table(rows, indent="         ")]
    if (judged := manifest.accuracy) is not None:
        what = "photographs" if judged.source == "photographs" else "generated images"
        lines.append(f"accuracy {judged.images} {what} on {judged.provider}, against PyTorch's float32:")
        rows = [["output", "least cosine", "mean", "same class", "mean KL"]]
        for name, found in judged.outputs.items():
            classes = [_or_blank(found.top1, ".1%"), _or_blank(found.kl_mean, ".1e")]
            rows.append([name, f"{found.cosine_min:.5f}", f"{found.cosine_mean:.5f}", *classes])
        lines.append(table(rows, indent="         "))
    return lines


def _or_blank(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _where(item: Measured) -> list[str]:
    return [item.provider, item.output, str(item.batch_size), f"{item.image_size[0]}x{item.image_size[1]}", item.inputs]
