"""What TensorRT cannot take, or would compute wrongly, told from the file alone: before a compiler is asked, and where there is none.

Each rule was held against tensorrt-rtx 1.7, which behaves like TensorRT 11 with strong types (docs/vit-trt.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vit_runtime.manifest import KEY, Manifest, read_manifest
from vit_runtime.onnx_file import DTYPES, GraphInfo, NodeInfo, OnnxFile, read_graph, read_onnx

SHOWN = 3  # nodes that a line names
STANDARD = ("", "ai.onnx")  # domains
TARGETS = ("portable", "tensorrt")  # of vit-export, whose files are for TensorRT too
QUANTIZED = {"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv"}
STORED = {"float32", "float16", "bfloat16", "float64", "float8e4m3fn", "float4e2m1", "int64", "int32", "int8", "int4", "uint8", "bool"}
FLOATS = {"float32", "float16", "bfloat16", "float64"}
# Ops whose output has not the type of their first input of floating point.
LOGICAL = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not", "Xor", "IsNaN", "IsInf")
OF_ONE_TYPE = dict.fromkeys(("Shape", "Size", "NonZero", "ArgMax", "ArgMin"), "int64") | dict.fromkeys(LOGICAL, "bool")
EP_CONTEXT = "com.microsoft.EPContext"  # an engine inside an .onnx file
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
EXPORT = "vit-export --target tensorrt"


@dataclass(frozen=True)
class Problem:
    """One kind of thing that TensorRT cannot take: how many there are, the first few by name, why, and what to do."""

    what: str  # an op, a type, or the file's target
    count: int
    names: tuple[str, ...]  # at most SHOWN
    reason: str
    remedy: str

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.names) else ""
        where = f" ({', '.join(self.names)}{more})" if self.names else ""
        times = f"{self.count} x " if self.count > 1 else ""
        return f"{times}{self.what}{where}: {self.reason}; {self.remedy}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def lint(path: Path) -> tuple[Problem, ...]:
    """What in the file TensorRT cannot take; nothing of it where the tuple is empty.

    The file need not be ours. Raises: ModelError for one that is unreadable, unsafe, or contradicts itself.
    """
    file = read_onnx(path)
    manifest = read_manifest(path)[0] if KEY in file.metadata else None
    return tuple(_problems(file, read_graph(path), manifest))


def command(manifest: Manifest | None, precision: str = "") -> str:
    """What makes a file for TensorRT of this one's network, in this precision or in its own."""
    if manifest is not None and not precision:
        own = str(manifest.build["precision"])
        precision = {"int8-static": "int8", "int4w": "int8"}.get(own, own)
    images = " --calibrate FOLDER" if precision in ("int8", "fp8") else ""
    return f"`{EXPORT}{f' --precision {precision}' if precision else ''}{images}{_network(manifest)}`"


def _network(manifest: Manifest | None) -> str:
    """What makes it this network: its checkpoint, wherever that is, or a name that stands for weights too."""
    if manifest is None:
        return ""
    arch, made = manifest.model["arch"], manifest.checkpoint["format"] == "random"
    if not made and arch != "digits":  # whose weights come with the exporter
        return " --checkpoint PATH"
    return f" --arch {arch}" if arch else ""


def node_name(node: NodeInfo) -> str:
    """Its name, or as TensorRT calls a node without one."""
    return node.name or f"node_of_{node.outputs[0] if node.outputs else ''}"


def _problems(file: OnnxFile, graph: GraphInfo, manifest: Manifest | None) -> Iterator[Problem]:
    nodes = [*graph.nodes, *graph.inner]
    if engines := [node for node in nodes if node.op == EP_CONTEXT]:
        yield Problem(
            EP_CONTEXT,
            len(engines),
            tuple(map(node_name, engines[:SHOWN])),
            "it is an engine already",
            "take the file that it was built from",
        )
        return
    again = f"export it with {command(manifest)}"
    if manifest is not None and (target := str(manifest.build["target"])) not in TARGETS:
        yield Problem(f"target {target}", 1, (), "the file was made for another engine, with its ops and its arithmetic", again)
    for op in sorted({node.op for node in nodes if _domain(node.op) not in STANDARD and node.op not in graph.functions}):
        owner = "onnxruntime alone has it" if op.startswith("com.microsoft.") else "TensorRT knows standard ops only, others need a plugin"
        yield _found(op, [node for node in nodes if node.op == op], owner, again)
    for op in sorted(QUANTIZED & {node.op for node in nodes}):
        scaled = "TensorRT quantises with scales that are in the file, as QuantizeLinear and DequantizeLinear in INT8"
        yield _found(op, [node for node in nodes if node.op == op], scaled, f"export it with {command(manifest, 'int8')}")
    types = _types(file, graph)
    yield from _quantization(graph, types, command(manifest, "int8"))
    yield from _types_without_kernel(file, graph, again)
    attention = [node for node in graph.nodes if node.op == "Attention" and types.get(_first(node)) == "float32"]
    if attention:
        remedy = f"export it with --opset 22 or earlier, or with {command(manifest, 'fp16')}"
        yield _found("Attention", attention, "TensorRT has no kernel for this op in float32", remedy)
    halves = {name for name in _squares(graph) if types.get(name) == "float16"}
    variances = [node for node in graph.nodes if node.op == "ReduceMean" and _first(node) in halves]
    if variances:
        reason = "a LayerNorm in pieces squares what it normalises, and float16 ends at 65504"
        yield _found("ReduceMean of squares in float16", variances, reason, f"use one LayerNormalization op: {again}")


def _quantization(graph: GraphInfo, types: Mapping[str, str], remedy: str) -> Iterator[Problem]:
    unsigned, shifted, biases = list[NodeInfo](), list[NodeInfo](), list[NodeInfo]()
    for node in graph.nodes:
        if node.op not in (QUANTIZE, DEQUANTIZE):
            continue
        kind = _result(node, types) if node.op == QUANTIZE else types.get(_first(node))
        if kind == "uint8":
            unsigned.append(node)
        elif kind == "int32":
            biases.append(node)
        elif len(node.inputs) > 2 and node.inputs[2] in graph.nonzero:
            shifted.append(node)
    instead = f"export it with {remedy}, or quantise with symmetric INT8 activations and weights, and leave the biases"
    if unsigned:
        yield _found("UINT8 quantisation", unsigned, "TensorRT quantises to INT8 and cuts off what is above 127", instead)
    if shifted:
        yield _found("quantisation with a zero point", shifted, "TensorRT takes zero points of 0 only", instead)
    if biases:
        yield _found("DequantizeLinear of INT32", biases, "TensorRT takes biases as they are, not quantised", instead)


def _types_without_kernel(file: OnnxFile, graph: GraphInfo, remedy: str) -> Iterator[Problem]:
    stored = {name: kind for name, kind in graph.dtypes.items() if name in graph.stored}
    stored |= {info.name: info.dtype for info in (*file.inputs, *file.outputs)}
    stored |= {node_name(node): node.constant for node in (*graph.nodes, *graph.inner) if node.constant}
    for kind in sorted(set(stored.values()) - STORED - {"?"}):
        names = [name for name, dtype in stored.items() if dtype == kind]
        yield Problem(f"type {kind}", len(names), tuple(names[:SHOWN]), "TensorRT has not this type", remedy)


def _squares(graph: GraphInfo) -> frozenset[str]:
    """Values that are something times itself, or to a power."""
    return frozenset(
        name
        for node in graph.nodes
        if node.op == "Pow" or (node.op == "Mul" and len(node.inputs) == 2 and node.inputs[0] == node.inputs[1])
        for name in node.outputs
    )


def _types(file: OnnxFile, graph: GraphInfo) -> dict[str, str]:
    """The types of the main graph's values: what the file tells, and what follows from it where it is silent (nodes come in order)."""
    types = dict(graph.dtypes)
    for node in graph.nodes:
        known = _result(node, types)
        for name in node.outputs:
            if known and types.get(name, "?") == "?":
                types[name] = known
    return types


def _result(node: NodeInfo, types: Mapping[str, str]) -> str | None:
    if node.constant:
        return node.constant
    if node.op == "Cast":
        return DTYPES.get(node.numbers.get("to", 0))
    if node.op == QUANTIZE:
        number = node.numbers.get("output_dtype", 0)
        return types.get(node.inputs[2]) if len(node.inputs) > 2 else DTYPES.get(number, None if number else "uint8")
    if node.op == DEQUANTIZE:
        return types.get(node.inputs[1]) if len(node.inputs) > 1 else None
    if node.op in OF_ONE_TYPE:
        return OF_ONE_TYPE[node.op]
    inputs = [types.get(name, "?") for name in node.inputs]
    return next((kind for kind in inputs if kind in FLOATS), inputs[0] if len(set(inputs)) == 1 else None)


def _found(what: str, nodes: Iterable[NodeInfo], reason: str, remedy: str) -> Problem:
    names = [node_name(node) for node in nodes]
    return Problem(what, len(names), tuple(names[:SHOWN]), reason, remedy)


def _domain(op: str) -> str:
    return op.rpartition(".")[0]


def _first(node: NodeInfo) -> str:
    return node.inputs[0] if node.inputs else ""
