"""vit-export: from a network to a file that proves itself."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vit_exporter.options import CheckpointCommand, checkpoint_options, parse_options
from vit_exporter.triton import check_triton, write_triton
from vit_runtime.accuracy import Accuracy
from vit_runtime.cli.common import Console, output_options, table, whole_numbers
from vit_runtime.errors import InputError, MachineError
from vit_runtime.manifest import Limits
from vit_runtime.memory import megabytes
from vit_runtime.parity import Report
from vit_runtime.providers import load_onnxruntime

if TYPE_CHECKING:
    from vit_exporter.pipeline import ExportReport
    from vit_exporter.source import Source


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
@click.option(
    "--target",
    help="What the file is made for: portable, cpu (onnxruntime), openvino, cuda (onnxruntime on a GPU) or tensorrt [default: portable].",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8", "int8-static", "int4w", "fp8"]),
    help="Of weights and products; int8-static, and int8 and fp8 of tensorrt, measure scales on images [default: fp32].",
)
@click.option("--calibrate", type=click.Path(path_type=Path), help="A folder of images: every second one calibrates, the others judge.")
@click.option(
    "--max-drop",
    type=float,
    help="Keep layers in higher precision until at most this part of the images changes class and no embedding's cosine falls by more.",
)
@click.option("--keep", metavar="LAYER,...", help="Layers that stay in higher precision, by name, such as blocks.11.mlp.fc2.")
@click.option("--token-split", metavar="ROWS,...", help="Keep the tokens in pieces of so many; --tune finds out which pay.")
@click.option("--tune", is_flag=True, help="Export and time everything that may be fast on this machine, and keep the best.")
@click.option("--batch-sizes", metavar="N,...", help="With --tune: the batch sizes that count [default: 1].")
@click.option("--threads", type=click.IntRange(1), help="With --tune: CPU threads [default: the physical cores].")
@click.option("--opset", type=int, help="Version of the ONNX operators [default: the target's: 18 for portable, else 20].")
@click.option("--simplify/--no-simplify", default=True, show_default=True, help="Whether to simplify the graph.")
@click.option(
    "--verify/--no-verify", default=True, show_default=True, help="Whether to prove the file against float64 PyTorch and record it."
)
@click.option("--verify-passes", is_flag=True, help="Hold the graph against PyTorch after every exact pass too.")
@click.option("--external-data", is_flag=True, help="Put the weights in a file beside the model; above 2 GB this is always done.")
@click.option("--triton", type=click.Path(path_type=Path), metavar="DIR", help="Also add the file to this model repository of Triton.")
@click.option("--force", is_flag=True, help="Replace an existing file, and with --triton its models.")
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
    if options["triton"] is not None:
        check_triton(out, options["triton"], options["force"])
    gc.disable()  # for this short life: looking for garbage among all that torch imports takes a sixth of an export's time
    _need_packages("torch", "onnx", "onnx_ir", "onnxscript", "onnxsim", "safetensors")
    if options["precision"] == "int8-static":
        _need_packages("nncf", extra="quantize")
    if options["verify"]:
        load_onnxruntime()
    from vit_exporter.pipeline import export
    from vit_exporter.source import Changes, checkpoint_source, digits_source, random_source
    from vit_exporter.spec import ExportSpec
    from vit_models import DEFAULT_ARCH, DIGITS, find_arch

    gc.freeze()  # nor is it looked for at the end
    asked = parse_options(arch, **named)
    made: Callable[[], Source]
    classes = 0 if asked.drop_head else options["num_classes"]
    changes = Changes(asked.img_size, classes, asked.pool, options["dynamic_size"])
    split = tuple(whole_numbers(options["token_split"], "--token-split", once=False)) if options["token_split"] is not None else ()
    asked_for = ("opset", "simplify", "verify", "external_data", "force", "target", "precision", "calibrate", "max_drop", "verify_passes")
    keep = tuple(options["keep"].split(",")) if options["keep"] is not None else ()
    chosen = {name: options[name] for name in asked_for if options[name] is not None}
    if checkpoint is not None:
        made = partial(checkpoint_source, checkpoint, changes, names, labels, options=asked, sha256=options["sha256"])
    elif (name := find_arch(arch or DEFAULT_ARCH)) == DIGITS:
        made = partial(digits_source, changes, names, labels)
    else:
        made = partial(random_source, name, options["seed"], changes, names, labels)
        console.warn(f"no checkpoint, so {name} gets random weights from seed {options['seed']}: it runs, but it classifies nothing")
    if options["tune"]:
        return _tune(console, made, out, keep, split, options, chosen)
    if refused := [f"--{name.replace('_', '-')}" for name in ("batch_sizes", "threads") if options[name] is not None]:
        raise InputError(f"got {refused[0]} without --tune, which it is about; add --tune or leave it out")
    spec = ExportSpec(out, token_split=split, keep=keep, compare_speed=True, **chosen)
    report = export(made, spec, _teller(console))
    for note in report.notes:
        console.warn(note)
    _result(console, report.to_dict(), _summary(report), out, options)
    return None


def _tune(
    console: Console, made: Callable[[], Source], out: Path, keep: Sequence[str], split: Sequence[int], options: Mapping[str, Any],
    chosen: Mapping[str, Any],
) -> None:  # fmt: skip
    _need_packages("matplotlib", extra="tune")
    from vit_exporter.spec import ExportSpec
    from vit_exporter.tuning.report import to_lines, to_rows, write_report
    from vit_exporter.tuning.tune import TuneSpec, tune

    settled = {"--keep": keep, "--token-split": split, "--no-verify": not options["verify"], "--no-simplify": not options["simplify"]}
    if refused := [name for name, value in settled.items() if value]:
        raise InputError(f"got {refused[0]} with --tune, which decides that itself or needs it; leave one of them out")
    gc.enable()
    base = {name: chosen[name] for name in ("opset", "external_data", "force") if name in chosen}
    judged = {name: chosen[name] for name in ("calibrate", "max_drop") if name in chosen}
    sizes = tuple(whole_numbers(options["batch_sizes"] or "1", "--batch-sizes"))
    spec = TuneSpec(ExportSpec(out, **base), sizes, options["threads"], options["target"], options["precision"], **judged)
    with _progress(console) as tell:
        report = tune(made, spec, tell)
    files = write_report(report)
    winner = report.winner
    command = shlex.join(winner.candidate.options + (["--keep", ",".join(winner.kept)] if winner.kept else []))
    lines = [
        table(to_lines(report), indent=""),
        f"{out}: {winner.candidate.name}, {winner.score:.2f} times as fast as the default export, {report.size / 1e6:.1f} MB",
        f"to make it again without --tune: {command}",
        f"tables and picture: {', '.join(str(file) for file in files)}",
    ]
    document = {"out": str(out), "winner": winner.candidate.name, "times_faster": winner.score, "machine": dict(report.machine)}
    _result(console, {**document, "files": [str(file) for file in files], "rows": to_rows(report)}, "\n".join(lines), out, options)


def _result(console: Console, document: dict[str, Any], text: str, out: Path, options: Mapping[str, Any]) -> None:
    """The command's answer, after the file has become a model of Triton where that is asked for."""
    if options["triton"] is not None:
        repository = write_triton(out, options["triton"], options["force"])
        for note in repository.notes:
            console.warn(note)
        document = {**document, "triton": repository.to_dict()}
        models = " and ".join(str(repository.folder / name) for name in repository.models)
        text += f"\ntriton: {models}, {repository.kind}, batches up to {repository.max_batch_size}"
    console.result(document, text)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[int, int, str], None]]:
    """A bar with an estimate of what is left, on a terminal."""
    if console.quiet or not sys.stderr.isatty():
        yield lambda done, total, what: None
        return
    with click.progressbar(length=1, label="tuning", file=sys.stderr, show_pos=True, item_show_func=lambda what: what) as bar:

        def tell(done: int, total: int, what: str) -> None:
            bar.length = max(1, total)
            bar.update(done - bar.pos, what)

        yield tell


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


def _need_packages(*packages: str, extra: str = "export,cpu") -> None:
    """Complain before the work starts, not in the middle of it."""
    for package in packages:
        try:
            found = (
                importlib.import_module(package) if package != "onnxsim" else importlib.util.find_spec(package)
            )  # that one is loaded late
            if found is None:
                raise ModuleNotFoundError(f"No module named {package!r}")
        except ImportError as error:
            mend = f"install it with `pip install 'vit-deploy[{extra}]'`"
            raise MachineError(f"vit-export needs the package {package}, which cannot be imported ({error}); {mend}") from error


def _teller(console: Console) -> Any:
    """A line a step: its name while it runs, overwritten by its result."""
    if console.quiet or not sys.stderr.isatty():
        return lambda name, detail, done: None

    def tell(name: str, detail: str, done: bool) -> None:
        click.echo(f"\r\033[K  {name:<10} {detail or '...'}", err=True, nl=done)

    return tell


def _summary(report: ExportReport) -> str:
    manifest = report.manifest
    from vit_exporter.source import describe_weights

    what = f"{manifest.model['arch'] or 'checkpoint'}, {manifest.model['parameters'] / 1e6:.1f} M parameters"
    build = manifest.build
    kind = f"opset {build['opset']}, target {build['target']}, {build['precision']}"
    lines = [
        f"{report.out}: {what}, {describe_weights(manifest.checkpoint)}",
        f"  graph   {kind}, {report.nodes_before} -> {report.nodes_after} nodes",
        f"  size    {report.size / 1e6:.1f} MB{' with ' + ', '.join(report.external_files) if report.external_files else ''}",
    ]
    if "proof" in manifest.checkpoint:
        lines.append(f"  proof   {manifest.checkpoint['proof']}")
    if report.parity:
        lines.append(f"  parity  {_parity(report.parity, sizes=bool(manifest.golden_sizes))}")
    else:
        lines.append("  parity  not verified (--no-verify): vit-parity will have nothing to go by")
    if manifest.accuracy is not None:
        what = "photographs" if manifest.accuracy.source == "photographs" else "generated images"
        lines.append(f"  images  {manifest.accuracy.images} {what} on {manifest.accuracy.provider}: {_accuracy(manifest.accuracy.outputs)}")
    for kept in manifest.build["kept"]:
        gain = f": mean cosine {kept['before']:.5f} -> {kept['after']:.5f}" if kept["before"] is not None else ""
        lines.append(f"  kept    {kept['layer']} in higher precision{gain}")
    lines += _islands(manifest.build["islands"])
    lines.append(f"  cost    {report.seconds:.1f} s, peak memory {megabytes(report.peak_memory)}")
    out = shlex.quote(str(report.out))
    embeddings = " --embeddings out.npz" if manifest.class_scores is None and manifest.features else ""
    lines.append(f"next: vit-predict {out} IMAGE{embeddings}   or   vit-parity {out}")
    return "\n".join(lines)


def _islands(islands: Sequence[Mapping[str, Any]], shown: int = 3) -> list[str]:
    """What stays in float32, by the values that are why: a line each for the first of them."""
    if not islands:
        return []
    whys = dict.fromkeys((each["value"], each["largest"], each["reason"]) for each in islands)
    lines = [f"  float32 {len(islands)} nodes, because float16 cannot hold what they compute:"]
    lines += [f"          {value} up to {largest} ({reason})" for value, largest, reason in list(whys)[:shown]]
    return [*lines, *([f"          and {len(whys) - shown} other values; vit-info lists the nodes"] if len(whys) > shown else [])]


def _parity(report: Report, sizes: bool) -> str:
    worst = report.worst
    checks = [check for check in report.checks if check.inputs != "resizing"]
    batches = ", ".join(dict.fromkeys(str(check.batch_size) for check in checks))
    images = " of extreme images" if worst.inputs == "extremes" else ""
    where = f"({worst.output}{images}, batch {worst.batch_size}; limit"
    several = ", ".join(dict.fromkeys(f"{height}x{width}" for height, width in (check.image_size for check in checks)))
    at = f"at batch sizes {batches}{f' and image sizes {several}' if sizes else ''}"
    if isinstance(worst.limit, Limits):
        return f"passed: at most {worst.rms_floors:.2f}x PyTorch's own float32 error {where} {worst.limit.rms:g}x) {at}"
    from vit_exporter.targets import SIMULATION

    simulated = ", simulated on the CPU" if worst.provider == SIMULATION else ""
    return f"golden images{simulated}: cosine at least {worst.accuracy.cosine_min:.4f} {where} {worst.limit.cosine:g}) {at}"


def _accuracy(outputs: Mapping[str, Accuracy]) -> str:
    parts = []
    for name, found in outputs.items():
        parts.append(f"{name} cosine {found.cosine_min:.4f} at least, {found.cosine_mean:.5f} on average")
        if found.top1 is not None and found.kl_mean is not None:
            parts.append(f"top-1 agreement {found.top1:.1%}, KL {found.kl_mean:.1e}")
    return "; ".join(parts)
