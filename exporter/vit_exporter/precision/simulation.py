"""What a graph in 16 bits computes, found out in float32 on the CPU: every number is rounded where the graph has it in 16 bits.

Each op computes in float32, as NVIDIA's kernels do within one op (products, norms and softmax sum in float32), and what it gives is rounded
to float16 or bfloat16, to the nearest, ties to even: two Casts behind each node, and onnxruntime's optimisations switched off, so that none
of them goes away. Beyond 65504 float16 has only Inf: it and NaN are looked for in every value, not only in the outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vit_exporter.source import VerificationError
from vit_exporter.writer import written
from vit_runtime.providers import load_onnxruntime
from vit_runtime.threads import physical_cores

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
FAR = 0.1  # an error, as a part of the values, that is no rounding any more

Array = npt.NDArray[Any]


class Simulation:
    """The file at `path` in simulated 16 bits; `run` is used as a session's is. Raises: MachineError without onnxruntime."""

    def __init__(self, path: Path) -> None:
        self.path = path
        model, values = simulated(path)
        self.watched = _watch(model, values)
        self.session = exact_session(model)

    def run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """The outputs of these names. Raises: VerificationError that names the first node which gives Inf or NaN."""
        found = self.session.run([*names, *self.watched], dict(feeds))
        for (_, node), total in zip(self.watched.items(), found[len(names) :], strict=True):
            if not np.isfinite(total):
                raise VerificationError(
                    f"simulated in 16 bits, {node} gives Inf or NaN; nothing was written: take --precision bf16 or fp32, "
                    "or --calibrate with images on which this shows, so that it stays in float32"
                )
        return list(found[: len(names)])

    def first_far(self, pixel_values: Array) -> str | None:
        """The first node that is off by a tenth of what it gives without rounding, for images float32 (B, C, H, W)."""
        runs = []
        for rounded in (True, False):
            model, values = simulated(self.path, rounded)
            outputs = {value.name for value in model.graph.outputs}
            made = {value.name: value for node in model.graph for value in node.outputs}
            model.graph.outputs.extend(made[name] for name in values if name not in outputs)
            runs.append(exact_session(model).run(list(values), {model.graph.inputs[0].name: pixel_values}))
        for node, narrow, wide in zip(values.values(), *runs, strict=True):
            if not np.linalg.norm(narrow - wide) <= FAR * np.linalg.norm(wide):
                return node
        return None


def simulated(path: Path, rounded: bool = True) -> tuple[ir.Model, dict[str, str]]:
    """The file in float32, with what is in 16 bits rounded to them, or not; and its float values' names with those of their nodes."""
    model, found = ir.load(path), dict[str, str]()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if value.dtype in HALVES and tensor is not None:
            shape = ir.Shape(tensor.shape.numpy())
            value.const_value = ir.LazyTensor(partial(_widened, tensor), dtype=ir.DataType.FLOAT, shape=shape, name=value.name)
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in tuple(model.graph):
        if node.op_type == "Cast" and node.attributes.get_int("to", 0) in HALVES:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
        for value in node.outputs:
            kind, last = value.dtype, value
            if kind in HALVES:
                value.type = ir.TensorType(ir.DataType.FLOAT)
                last = _rounding(model.graph, node, value, kind) if rounded else value
            if last.dtype == ir.DataType.FLOAT:
                found[last.name or ""] = node.name or node.op_type
    return model, found


def exact_session(model: ir.Model) -> Any:
    """onnxruntime's session of exactly these nodes, on the CPU."""
    ort = load_onnxruntime()
    settings = ort.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = physical_cores(), 1
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.log_severity_level = 4  # what goes wrong is raised as well
    with written(model) as path:
        return ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


def _rounding(graph: ir.Graph, node: ir.Node, value: ir.Value, kind: ir.DataType) -> ir.Value:
    """The value rounded, which everybody reads instead of it."""
    uses, last, after = tuple(value.uses()), value, node
    for dtype, name in ((kind, "narrow"), (ir.DataType.FLOAT, "rounded")):
        cast = ir.node("Cast", [last], {"to": int(dtype)}, name=f"{value.name}/{name}")
        graph.insert_after(after, [cast])
        last, after = cast.outputs[0], cast
        last.name, last.shape, last.type = cast.name, value.shape, ir.TensorType(dtype)
    for user, position in uses:
        user.replace_input_with(position, last)
    return last


def _watch(model: ir.Model, values: Mapping[str, str]) -> dict[str, str]:
    """Adds an output for each value, the sum of its magnitudes, which is not finite if one of them is not; its name, and the node's."""
    found = dict[str, str]()
    for node in tuple(model.graph):
        for value in node.outputs:
            if value.name in values:
                total = ir.node("ReduceL1", [value], {"keepdims": 0}, name=f"{value.name}/total")
                model.graph.insert_after(node, [total])
                output = total.outputs[0]
                output.name, output.shape, output.type = total.name, ir.Shape(()), ir.TensorType(ir.DataType.FLOAT)
                model.graph.outputs.append(output)
                found[total.name or ""] = values[value.name or ""]
    return found


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(tensor.numpy().astype(np.float32))
