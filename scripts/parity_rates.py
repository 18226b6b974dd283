"""How often vit-parity is right: faults put into exported files of the trained network, and honest files that it must pass.

A fault counts if it matters: if on many other images (of other seeds, black, white and checkered ones) it moves an output by more than the
file's limits allow. Both rates, by kind of fault, and what was missed are printed and written; docs/parity.md has the table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

import vit_runtime as vit
from vit_exporter import ExportSpec, checkpoint_source, digits_source, export
from vit_runtime.accuracy import accuracy
from vit_runtime.errors import VitError
from vit_runtime.golden import ALL_EXTREMES, golden_images
from vit_runtime.manifest import KEY, Limits, Manifest, read_manifest
from vit_runtime.parity import check_record, extremes, measure, scale_of
from vit_runtime.parity.judging import limits_for
from vit_runtime.parity.locate import locate, part_of
from vit_runtime.preprocess import normalize, resize_and_crop

Array = npt.NDArray[Any]
Edit = Callable[[onnx.ModelProto], object]
OTHER_SEED, OTHERS, LARGER = 2_000_000, 96, 4


@dataclass(frozen=True)
class Fault:
    """What is done to a file; `place` is the part of the network that it is in, `kind` what the table counts it under."""

    kind: str
    place: str
    edit: Edit

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.place}"


# ---- what is edited ------------------------------------------------------------------------------------------------------------------


def tensor(proto: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(each for each in proto.graph.initializer if each.name == name)


def change(proto: onnx.ModelProto, name: str, edit: Callable[[Array], Array]) -> None:
    """A stored tensor's numbers, replaced by what `edit` makes of a copy of them."""
    found = tensor(proto, name)
    found.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(edit(numpy_helper.to_array(found).copy())), name))


def flip(bit: int, rank: float, values: Array) -> Array:
    """One bit of the number that is larger than the part `rank` of all."""
    place = np.unravel_index(np.argsort(np.abs(values), axis=None)[int(rank * (values.size - 1))], values.shape)
    kind = {4: np.uint32, 1: np.uint8}[values.dtype.itemsize]
    values.view(kind)[place] ^= kind(1 << bit)
    return values


def swap_parts(first: slice, second: slice, values: Array) -> Array:
    """Two ranges of the last axis."""
    values[..., first], values[..., second] = values[..., second].copy(), values[..., first].copy()
    return values


def nodes_of(proto: onnx.ModelProto, module: str, op_type: str) -> list[onnx.NodeProto]:
    return [node for node in proto.graph.node if node.op_type == op_type and node.name.rsplit("/", 1)[0] == module]


def set_epsilon(module: str, epsilon: float, proto: onnx.ModelProto) -> None:
    (node,) = nodes_of(proto, module, "LayerNormalization")
    next(attribute for attribute in node.attribute if attribute.name == "epsilon").f = epsilon


def tanh_gelu(module: str, proto: onnx.ModelProto) -> None:
    (node,) = nodes_of(proto, module, "Gelu")
    next(attribute for attribute in node.attribute if attribute.name == "approximate").s = b"tanh"


def in_half(layer: str, factor: float, proto: onnx.ModelProto) -> None:
    """The layer's input goes through float16, multiplied by `factor` before and divided by it after."""
    place, node = next((place, node) for place, node in enumerate(proto.graph.node) if f"{layer}.weight" in node.input)
    source = node.input[0]
    proto.graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float32), "fault/factor"))
    made = [
        helper.make_node("Mul", [source, "fault/factor"], ["fault/large"]),
        helper.make_node("Cast", ["fault/large"], ["fault/half"], to=onnx.TensorProto.FLOAT16),
        helper.make_node("Cast", ["fault/half"], ["fault/single"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Div", ["fault/single", "fault/factor"], ["fault/out"]),
    ]
    node.input[0] = "fault/out"
    for offset, each in enumerate(made):
        proto.graph.node.insert(place + offset, each)


def in_manifest(edit: Callable[[dict[str, Any]], object], proto: onnx.ModelProto) -> None:
    entry = next(entry for entry in proto.metadata_props if entry.key == KEY)
    document = json.loads(entry.value)
    edit(document)
    entry.value = json.dumps(document)


def freeze_batch(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def read_another_token(proto: onnx.ModelProto) -> None:
    """Where the class token is taken out of all tokens, the next one is."""
    (gather,) = nodes_of(proto, "vit", "Gather")
    proto.graph.initializer.append(numpy_helper.from_array(np.array(1, np.int64), "fault/token"))
    gather.input[1] = "fault/token"


# ---- the faults ----------------------------------------------------------------------------------------------------------------------


def in_float32(proto: onnx.ModelProto, blocks: Iterable[int], heads: int) -> Iterator[Fault]:
    """Those of a portable float32 file of opset 20."""
    for block in (f"blocks.{number}" for number in blocks):
        qkv, width = f"{block}.attn.qkv", numpy_helper.to_array(tensor(proto, f"{block}.attn.proj.bias")).size
        q, k, v = (slice(part * width, (part + 1) * width) for part in range(3))
        for layer in (qkv, f"{block}.attn.proj", f"{block}.mlp.fc1", f"{block}.mlp.fc2"):
            for kind, bit, rank in (
                ("sign of the largest weight", 31, 1.0), ("sign of a middling weight", 31, 0.5),
                ("exponent of the largest weight, by 1", 23, 1.0), ("exponent of a middling weight, by 8", 26, 0.5),
                ("exponent of a middling weight, its top bit", 30, 0.5),
            ):  # fmt: skip
                yield Fault(kind, layer, partial(change, name=f"{layer}.weight", edit=partial(flip, bit, rank)))
            yield Fault("bias dropped", layer, partial(change, name=f"{layer}.bias", edit=np.zeros_like))
        one, other = slice(0, width // heads), slice(width // heads, 2 * width // heads)
        for kind, first, second in (
            ("two heads of the queries swapped", one, other),
            ("two heads of the values swapped", shifted(one, 2 * width), shifted(other, 2 * width)),
            ("queries and keys swapped", q, k), ("keys and values swapped", k, v),
        ):  # fmt: skip
            yield Fault(kind, qkv, partial(on_layer, qkv, partial(swap_parts, first, second)))
        yield Fault("scale forgotten", qkv, partial(on_layer, qkv, partial(times, q, (width // heads) ** 0.5)))
        yield Fault("square weight transposed", f"{block}.attn.proj", partial(change, name=f"{block}.attn.proj.weight", edit=np.transpose))
        for norm in (f"{block}.norm1", f"{block}.norm2"):
            yield from of_norm(norm)
        yield Fault("GELU by tanh", f"{block}.mlp", partial(tanh_gelu, f"{block}.mlp"))
        for layer in (f"{block}.mlp.fc1", f"{block}.mlp.fc2"):
            yield Fault("input in float16", layer, partial(in_half, layer, 1.0))
            yield Fault("input in float16, overflowing", layer, partial(in_half, layer, 3e5))
    yield from of_norm("norm")
    yield from around(proto, pruned=False)


def around(proto: onnx.ModelProto, pruned: bool) -> Iterator[Fault]:
    """Those in front of the blocks, behind them, and in what the manifest says; a `pruned` file has no other tokens behind them."""
    table, patches = "embeddings.pos_embed", "embeddings.patch_embed.proj"
    kind: str
    edit: Callable[[Array], Array]
    for kind, edit in (
        ("position rows shifted", partial(np.roll, shift=1, axis=1)), ("two position rows swapped", partial(swap_rows, 2, 3)),
        ("positions dropped", np.zeros_like), ("class token dropped", partial(zero_row, 0)),
    ):  # fmt: skip
        yield Fault(kind, "embeddings", partial(change, name=table, edit=edit))
    for kind, edit in (
        ("BGR for RGB", lambda values: values[:, ::-1]), ("patches mirrored", lambda values: values[..., ::-1]),
        ("patches transposed", partial(np.swapaxes, axis1=2, axis2=3)), ("sign of the largest weight", partial(flip, 31, 1.0)),
    ):  # fmt: skip
        yield Fault(kind, "embeddings", partial(change, name=f"{patches}.weight", edit=edit))
    yield Fault("bias dropped", "embeddings", partial(change, name=f"{patches}.bias", edit=np.zeros_like))
    if any(each.name == "head.weight" for each in proto.graph.initializer):
        yield Fault("bias dropped", "head", partial(change, name="head.bias", edit=np.zeros_like))
        yield Fault("sign of the largest weight", "head", partial(change, name="head.weight", edit=partial(flip, 31, 1.0)))
        yield Fault("two classes swapped", "head", partial(change, name="head.weight", edit=partial(swap_first, 0, 1)))
    if not pruned:
        yield Fault("class token read from the wrong place", "norm", read_another_token)
    yield Fault("batch dimension frozen", "input", freeze_batch)
    for kind, entry, values in (
        ("wrong mean", "mean", [0.485, 0.456, 0.406]), ("wrong std", "std", [0.229, 0.224, 0.225]), ("wrong rescale", "rescale", 1.0),
        ("wrong interpolation", "interpolation", "nearest"),
    ):  # fmt: skip
        yield Fault(kind, "preprocessing", partial(in_manifest, partial(set_preprocessing, entry, values)))


def of_norm(norm: str) -> Iterator[Fault]:
    for epsilon in (1e-5, 1e-12):
        yield Fault(f"epsilon {epsilon:g} for 1e-6", norm, partial(set_epsilon, norm, epsilon))
    yield Fault("bias dropped", norm, partial(change, name=f"{norm}.bias", edit=np.zeros_like))
    yield Fault("scale dropped", norm, partial(change, name=f"{norm}.weight", edit=np.ones_like))


def in_int8(proto: onnx.ModelProto, blocks: Iterable[int]) -> Iterator[Fault]:
    """Those of a file in int8, whichever engine it is for: weights in int8, a scale for each output channel."""
    names = {each.name for each in proto.graph.initializer}
    for block in (f"blocks.{number}" for number in blocks):
        for layer in (f"{block}.{part}" for part in ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2")):
            for kind, edit in (
                ("scale twice as large", double),
                ("scale half as large", halve),
                ("one channel's scale doubled", double_one),
            ):
                yield Fault(kind, layer, partial(change, name=f"{layer}.weight_scale", edit=edit))
            for kind, bit, rank in (("sign of the largest weight", 7, 1.0), ("top bit of a middling weight", 6, 0.5)):
                yield Fault(kind, layer, partial(change, name=f"{layer}.weight", edit=partial(flip, bit, rank)))
            if f"{layer}.bias" in names:
                yield Fault("bias dropped", layer, partial(change, name=f"{layer}.bias", edit=np.zeros_like))
        yield Fault("square weight transposed", f"{block}.attn.proj", partial(change, name=f"{block}.attn.proj.weight", edit=np.transpose))
        yield Fault("GELU by tanh", f"{block}.mlp", partial(tanh_gelu, f"{block}.mlp"))
        for norm in (f"{block}.norm1", f"{block}.norm2"):
            yield from of_norm(norm)
    yield from of_norm("norm")
    yield from around(proto, pruned=True)


def shifted(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def on_layer(layer: str, edit: Callable[[Array], Array], proto: onnx.ModelProto) -> None:
    for kind in ("weight", "bias"):
        change(proto, f"{layer}.{kind}", edit)


def times(part: slice, factor: float, values: Array) -> Array:
    values[..., part] *= np.float32(factor)
    return values


def swap_rows(first: int, second: int, values: Array) -> Array:
    values[:, [first, second]] = values[:, [second, first]]
    return values


def swap_first(first: int, second: int, values: Array) -> Array:
    values[[first, second]] = values[[second, first]]
    return values


def zero_row(row: int, values: Array) -> Array:
    values[:, row] = 0
    return values


def double(values: Array) -> Array:
    return values * values.dtype.type(2)


def halve(values: Array) -> Array:
    return values / values.dtype.type(2)


def double_one(values: Array) -> Array:
    values[values.size // 2] *= 2
    return values


def set_preprocessing(entry: str, value: Any, document: dict[str, Any]) -> None:
    document["preprocessing"][entry] = value


# ---- the verdicts --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """How far a fault moves an output on other images, in what is allowed, whether it was flagged, and the part where it was located.

    `place` is None for a file that cannot be loaded or run: it tells so itself.
    """

    fault: Fault
    effect: float
    flagged: bool
    place: str | None = None

    @property
    def located(self) -> bool:
        """In the right part. What is wrong before the network shows at its beginning, and what its last norm gives wrong in the outputs."""
        part = part_of(self.fault.place)
        return self.place == part or (part, self.place) in (("preprocessing", "embeddings"), ("norm", "vit"))

    @property
    def matters(self) -> bool:
        return self.effect > 1

    @property
    def missed(self) -> bool:
        return self.matters and not self.flagged


class Trial:
    """An honest file that faults are put into, and what it gives for other images."""

    def __init__(self, path: Path, provider: str, folder: Path, count: int = OTHERS) -> None:
        self.path, self.provider, self.folder, self.count = path, provider, folder, count
        self.manifest, _ = read_manifest(path)
        self.honest = vit.load(path, provider)
        self.healthy = self._outputs(self.honest, self.manifest)

    def try_fault(self, fault: Fault) -> Verdict:
        """Put it in, look whether it is flagged, and what it does to other images."""
        path = self.folder / "faulty.onnx"
        proto = onnx.load(self.path)
        fault.edit(proto)
        path.write_bytes(proto.SerializeToString())
        try:
            model = vit.load(path, self.provider)
            flagged = not check_record(model.run, model.manifest, model.provider).passed
        except VitError:
            return Verdict(fault, np.inf, True)
        place = locate(self.honest, model).place if flagged else None
        return Verdict(fault, self._effect(self._outputs(model, model.manifest)), flagged, place)

    def _effect(self, outputs: Mapping[str, Array]) -> float:
        """How far the worst output is from the healthy file's, in what is allowed: on images like golden ones, and on extreme ones."""
        parts = slice(0, -ALL_EXTREMES), slice(-ALL_EXTREMES, None)
        return max(self._worst(outputs, part, inputs) for part, inputs in zip(parts, ("golden", "extremes"), strict=True))

    def _worst(self, outputs: Mapping[str, Array], part: slice, inputs: str) -> float:
        golden = self.manifest.golden_extremes if inputs == "extremes" else self.manifest.golden
        assert golden is not None
        limits, worst = limits_for(self.manifest.parity, inputs), 0.0
        healthy, found = ({name: values[part] for name, values in each.items()} for each in (self.healthy, outputs))
        for name, truth in healthy.items():
            if isinstance(limits, Limits):
                error, floor = measure(truth, found[name], scale_of(truth)), golden.floor[name]
                share = max(error.rms / floor.rms / limits.rms, error.max / floor.max / limits.max)
            else:
                near, limit = accuracy(truth, found[name], name == self.manifest.class_scores), limits[name]
                share = (1 - near.cosine_min) / (1 - limit.cosine)
                share = max(share, near.kl_max / limit.kl if near.kl_max is not None and limit.kl is not None else 0)
            worst = max(worst, share if np.isfinite(share) else np.inf)
        return worst

    def _outputs(self, model: vit.Model, manifest: Manifest) -> dict[str, Array]:
        """For other images than the golden ones, as the file prepares them."""
        images = other_images(manifest, self.count)
        with np.errstate(all="ignore"):
            parts = [model.run(normalize(images[at : at + 8], manifest.preprocessing)) for at in range(0, len(images), 8)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def other_images(manifest: Manifest, count: int) -> Array:
    """Images that are not golden: `count` of another seed, some larger ones of a third as the file resizes them, and last the extremes."""
    height, width = manifest.image_size
    made = golden_images(OTHER_SEED, count, height, width, manifest.preprocessing.channels)
    larger = golden_images(OTHER_SEED + 1, LARGER, 2 * height + 3, 2 * width + 7)
    resized = np.stack([resize_and_crop(image, manifest.preprocessing) for image in larger])
    return np.concatenate([made, resized, extremes(manifest).images])


# ---- the suite -----------------------------------------------------------------------------------------------------------------------

TRIED = (("portable", "fp32"), ("cpu", "int8"))
HONEST = [
    *((target, "fp32", opset) for target in ("portable", "cpu", "openvino") for opset in (18, 20, 22, 23)),
    *((target, "int8", opset) for target in ("portable", "cpu", "openvino") for opset in (20, 23)),
    *((target, "int8-static", opset) for target in ("portable", "openvino") for opset in (18, 20)),
]
HONEST_SIZES = range(1, 17)
SAMPLE_SEED = 0


def exported(folder: Path, target: str, precision: str, opset: int = 20, checkpoint: Path | None = None) -> Path:
    """The trained network of the digits, or that of a checkpoint, exported once."""
    out = folder / f"{target}-{precision}-opset{opset}.onnx"
    if not out.exists():
        make = digits_source if checkpoint is None else partial(checkpoint_source, checkpoint)
        export(make, ExportSpec(out, target=target, precision=precision, opset=opset))
    return out


def one_of_each_kind(faults: Iterable[Fault], count: int) -> list[Fault]:
    """Faults of `count` different kinds; the kinds, and the place of each fault, are chosen by a fixed seed."""
    by_kind, draw = dict[str, list[Fault]](), random.Random(SAMPLE_SEED)
    for fault in faults:
        by_kind.setdefault(fault.kind, []).append(fault)
    return [draw.choice(of_kind) for of_kind in draw.sample(list(by_kind.values()), count)]


def try_faults(
    folder: Path,
    target: str,
    precision: str,
    step: int = 1,
    checkpoint: Path | None = None,
    others: int = OTHERS,
    count: int | None = None,
) -> list[Verdict]:
    """Every `step`-th fault that can be put into the file, or `count` faults of different kinds."""
    path = exported(folder, target, precision, checkpoint=checkpoint)
    manifest, _ = read_manifest(path)
    proto, blocks = onnx.load(path), range(manifest.model["depth"])
    faults = list(in_float32(proto, blocks, manifest.model["num_heads"]) if precision == "fp32" else in_int8(proto, blocks))
    trial = Trial(path, "cpu", folder, others)
    return [trial.try_fault(fault) for fault in (faults[::step] if count is None else one_of_each_kind(faults, count))]


def honest(
    folder: Path,
    providers: Sequence[str],
    files: Sequence[tuple[str, str, int]] = HONEST,
    sizes: Sequence[int] = HONEST_SIZES,
    thread_counts: Sequence[int] = (1, 2),
) -> Iterator[tuple[str, bool]]:
    """What other passes, precisions, opsets, threads, providers and batch sizes make of the same network, and whether it passes."""
    for file, provider, threads in itertools.product(files, providers, thread_counts):
        path = exported(folder, *file)
        model = vit.load(path, provider, threads)
        for size in sizes:
            what = f"{path.stem} on {provider}, {threads} threads, batch size {size}"
            yield what, check_record(model.run, model.manifest, model.provider, [size]).passed


def table(verdicts: Mapping[str, list[Verdict]]) -> str:
    """A line for each kind of fault: how many were put in, how many of them matter, and how many of those are flagged."""
    lines = [["fault", *(f"{name}: {what}" for name in verdicts for what in ("put in", "matter", "flagged"))]]
    kinds = dict.fromkeys(verdict.fault.kind for found in verdicts.values() for verdict in found)
    for kind in [*kinds, None]:
        cells = ["all" if kind is None else kind]
        for found in verdicts.values():
            counted = [verdict for verdict in found if kind in (None, verdict.fault.kind)]
            matter = [verdict for verdict in counted if verdict.matters]
            numbers = (len(counted), len(matter), sum(verdict.flagged for verdict in matter))
            cells += [str(number) if counted else "" for number in numbers]
        lines.append(cells)
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Put in every fault, run every honest file, print both rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file for the verdicts")
    parser.add_argument("--checkpoint", type=Path, help="of another network than the one of the digits; its honest variants are not tried")
    parser.add_argument("--step", type=int, default=1, help="put in every so many-th fault")
    parser.add_argument("--others", type=int, default=OTHERS, help="how many other images say what matters")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        options = (args.step, args.checkpoint, args.others)
        verdicts = {f"{target} {precision}": try_faults(Path(name), target, precision, *options) for target, precision in TRIED}
        variants = dict(honest(Path(name), ("cpu", "openvino"))) if args.checkpoint is None else {}
    print(table(verdicts))
    rows = [
        {"file": file, "fault": v.fault.name, "effect": v.effect if np.isfinite(v.effect) else None, "flagged": v.flagged, "place": v.place}
        for file, found in verdicts.items()
        for v in found
    ]
    missed = [
        f"{file}, {v.fault.name}: {v.effect:.1f} times what is allowed" for file, found in verdicts.items() for v in found if v.missed
    ]
    wrong = [what for what, passed in variants.items() if not passed]
    looked = [(file, v) for file, found in verdicts.items() for v in found if v.matters and v.place is not None]
    lost = [f"{file}, {v.fault.name}: in {v.place}" for file, v in looked if not v.located]
    for title, lines in (("missed", missed), ("flagged though honest", wrong), (f"of {len(looked)} not located rightly", lost)):
        print("\n".join([f"{len(lines)} {title}", *lines]))
    print(f"{len(variants)} honest variants")
    if args.out:
        args.out.write_text(
            json.dumps({"missed": missed, "honest": len(variants), "honest_flagged": wrong, "faults": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
