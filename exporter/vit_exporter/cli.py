"""vit-export: from a network to a file that proves itself."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vit_exporter.options import CheckpointCommand, checkpoint_options, parse_options
from vit_runtime.cli.common import Console, output_options, table
from vit_runtime.errors import InputError, MachineError
from vit_runtime.memory import megabytes
from vit_runtime.providers import load_onnxruntime

if TYPE_CHECKING:
    from vit_exporter.pipeline import ExportReport


@click.command(cls=CheckpointCommand)
@click.option("--out", type=click.Path(path_type=Path), help="The .onnx file to write.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Weights: a file or folder in any public format.")
@click.option(
    "--arch",
    metavar="NAME",
    help="A named architecture [default: ViT-B/16]; 'digits' is small and trained. With --checkpoint: its own name.",
)
@checkpoint_options
@click.option("--sha256", metavar="HEX", help="Refuse a checkpoint that has another SHA-256.")
@click.option("--dynamic-size", is_flag=True, help="Leave height and width free, in multiples of the patch size.")
@click.option("--num-classes", type=click.IntRange(0), help="Classes of a random head, 0 for no head [default: the architecture's].")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1), help="Of the random weights.")
@click.option("--outputs", help="Some of logits,embedding,tokens,attention [default: logits,embedding].")
@click.option("--labels", type=click.Path(path_type=Path), help="A text file with one class name a line, in the order of the logits.")
@click.option("--opset", default=18, show_default=True, help="Version of the ONNX operators.")
@click.option("--simplify/--no-simplify", default=True, show_default=True, help="Whether to simplify the graph.")
@click.option(
    "--verify/--no-verify", default=True, show_default=True, help="Whether to prove the file against float64 PyTorch and record it."
)
@click.option("--external-data", is_flag=True, help="Put the weights in a file beside the model; above 2 GB this is always done.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--list-archs", is_flag=True, help="List the named architectures and exit.")
@output_options
def main(console: Console, list_archs: bool, out: Path | None, arch: str | None, checkpoint: Path | None, **options: Any) -> None:
    """Export a Vision Transformer to a verified ONNX file.

    Without a checkpoint the weights are random: good for timing and trying, not for classifying.

    Example: vit-export --arch digits --out digits.onnx
    """
    if list_archs:
        _need_packages("torch", "safetensors")
        return _list_archs(console)
    if out is None:
        raise InputError("got no --out, expected the .onnx file to write; try --out vit.onnx")
    named = {name: options.pop(name) for name in ("format_name", "model_args", "weights", "img_size", "pool", "drop_head")}
    names = options["outputs"].split(",") if options["outputs"] is not None else None
    about = {"format_name": "--format", "model_args": "--model-arg", "weights": "--weights", "sha256": "--sha256"}
    if checkpoint is None and (given := [option for name, option in about.items() if {**named, **options}[name]]):
        raise InputError(f"got {given[0]} without --checkpoint, which it is about; add one or leave it out")
    labels = _labels(options["labels"])
    gc.disable()  # for this short life: looking for garbage among all that torch imports takes a sixth of an export's time
    _need_packages("torch", "onnx", "onnx_ir", "onnxscript", "onnxsim", "safetensors")
    if options["verify"]:
        load_onnxruntime()
    from vit_exporter.pipeline import ExportSpec, export
    from vit_exporter.source import Changes, checkpoint_source, digits_source, random_source
    from vit_models import DEFAULT_ARCH, DIGITS, find_arch

    gc.freeze()  # nor is it looked for at the end
    asked = parse_options(arch, **named)
    classes = 0 if asked.drop_head else options["num_classes"]
    changes = Changes(asked.img_size, classes, asked.pool, options["dynamic_size"])
    spec = ExportSpec(out, options["opset"], options["simplify"], options["verify"], options["external_data"], options["force"])
    if checkpoint is not None:
        sha256 = options["sha256"]
        report = export(lambda: checkpoint_source(checkpoint, changes, names, labels, options=asked, sha256=sha256), spec, _teller(console))
    elif (name := find_arch(arch or DEFAULT_ARCH)) == DIGITS:
        report = export(lambda: digits_source(changes, names, labels), spec, _teller(console))
    else:
        report = export(lambda: random_source(name, options["seed"], changes, names, labels), spec, _teller(console))
        console.warn(f"no checkpoint, so {name} got random weights from seed {options['seed']}: it runs, but it classifies nothing")
    for note in report.notes:
        console.warn(note)
    console.result(report.to_dict(), _summary(report))
    return None


def _list_archs(console: Console) -> None:
    from vit_models.zoo import ARCHS, DIGITS

    archs = [
        {
            "name": name,
            "width": c.embed_dim,
            "depth": c.depth,
            "heads": c.num_heads,
            "mlp": c.mlp_dim,
            "tokens": c.num_tokens,
            "gmacs": round(c.macs / 1e9, 1),
        }
        for name, c in ARCHS.items()
    ]
    rows = [["name", "width", "depth", "heads", "mlp", "tokens", "GMAC an image"]]
    rows += [[str(value) for value in arch.values()] for arch in archs]
    text = f"{table(rows, indent='')}\n{DIGITS}: a small network trained on handwritten digits, weights included"
    console.result({"archs": archs, "trained": [DIGITS]}, text)


def _labels(path: Path | None) -> list[str] | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--labels {path} cannot be read ({error}); expected a text file with one class name a line") from error


def _need_packages(*packages: str) -> None:
    """Complain before the work starts, not in the middle of it."""
    for package in packages:
        try:
            found = (
                importlib.import_module(package) if package != "onnxsim" else importlib.util.find_spec(package)
            )  # that one is loaded late
            if found is None:
                raise ModuleNotFoundError(f"No module named {package!r}")
        except ImportError as error:
            mend = "install it with `pip install 'vit-deploy[export,cpu]'`"
            raise MachineError(f"vit-export needs the package {package}, which cannot be imported ({error}); {mend}") from error


def _teller(console: Console) -> Any:
    """A line a step: its name while it runs, overwritten by its result."""
    if console.quiet or not sys.stderr.isatty():
        return lambda name, detail: None

    def tell(name: str, detail: str) -> None:
        click.echo(f"\r\033[K  {name:<10} {detail or '...'}", err=True, nl=bool(detail))

    return tell


def _summary(report: ExportReport) -> str:
    manifest = report.manifest
    from vit_exporter.source import describe_weights

    what = f"{manifest.model['arch'] or 'checkpoint'}, {manifest.model['parameters'] / 1e6:.1f} M parameters"
    lines = [
        f"{report.out}: {what}, {describe_weights(manifest.checkpoint)}",
        f"  graph   opset {manifest.build['opset']}, {report.nodes_before} -> {report.nodes_after} nodes",
        f"  size    {report.size / 1e6:.1f} MB{' with ' + ', '.join(report.external_files) if report.external_files else ''}",
    ]
    if "proof" in manifest.checkpoint:
        lines.append(f"  proof   {manifest.checkpoint['proof']}")
    if report.parity:
        worst = report.parity.worst
        batches = ", ".join(dict.fromkeys(str(check.batch_size) for check in report.parity.checks))
        sizes = ", ".join(dict.fromkeys(f"{height}x{width}" for height, width in (check.image_size for check in report.parity.checks)))
        lines.append(
            f"  parity  passed: at most {worst.rms_floors:.2f}x PyTorch's own float32 error ({worst.output}, batch {worst.batch_size}; "
            f"limit {report.parity.limits.rms:g}x) at batch sizes {batches}{f' and image sizes {sizes}' if manifest.golden_sizes else ''}"
        )
    else:
        lines.append("  parity  not verified (--no-verify): vit-parity will have nothing to go by")
    lines.append(f"  cost    {report.seconds:.1f} s, peak memory {megabytes(report.peak_memory)}")
    out = shlex.quote(str(report.out))
    embeddings = " --embeddings out.npz" if manifest.class_scores is None and manifest.features else ""
    lines.append(f"next: vit-predict {out} IMAGE{embeddings}   or   vit-parity {out}")
    return "\n".join(lines)
