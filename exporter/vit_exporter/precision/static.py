"""Static int8 by NNCF: scales of weights and of inputs measured once, on calibration images.

What is chosen here was measured on trained weights and photographs that were not calibrated with (docs/performance.md): the largest and
smallest number seen bound the range, because clipping a few outlier tokens costs more than a coarser step; what smooths is smoothing.py,
because NNCF's has one alpha for all layers; and only products are quantised: of attention's two the scores', while the softmax and its
product stay in floating point, as do residuals, norms, GELU, the patch embedding and the head.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Collection, Iterator

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vit_exporter.passes.matching import constant, made_by
from vit_runtime.errors import MachineError
from vit_runtime.providers import load_onnxruntime

KEPT_OPS = ("Conv", "Gemm", "Mul")
NO_SMOOTHING = -1  # NNCF's name for it
WARNING, FATAL = 2, 4  # onnxruntime's log levels
_STORED = re.compile(r"^(q_output|scale|zero_point)_(.+\.weight)_\d+$")
_SUFFIXES = {"q_output": "", "scale": "_scale", "zero_point": "_zero_point"}


def quantize_static(graph: ir.Model, pixel_values: npt.NDArray[np.float32]) -> ir.Model:
    """The graph in QDQ form, weights stored in int8; pixel_values float32 (B, C, H, W) are run through it one by one.

    Raises: MachineError where NNCF is missing.
    """
    try:
        import nncf
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet
    except ImportError as error:
        mend = "install it with `pip install 'vit-deploy[quantize]'`"
        raise MachineError(f"--precision int8-static needs the package nncf, which cannot be imported ({error}); {mend}") from error
    proto = ir.to_proto(graph)
    name = graph.graph.inputs[0].name
    present = [op for op in KEPT_OPS if any(node.op_type == op for node in proto.graph.node)]
    with _silent():
        quantized = nncf.quantize(
            proto,
            nncf.Dataset([{name: image[None]} for image in pixel_values]),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(pixel_values),
            ignored_scope=nncf.IgnoredScope(types=present),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=NO_SMOOTHING),
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            ),
        )
    del proto
    return _named(onnx.shape_inference.infer_shapes(quantized, strict_mode=True, data_prop=True))


def units(model: ir.Model) -> list[str]:
    """What can be left in floating point on its own: each linear layer by name, and each attention's scores."""
    return list(dict.fromkeys(_unit(node) for node in model.graph if any(_quantized_inputs(node))))


def without(model: ir.Model, kept: Collection[str]) -> ir.Model:
    """A copy in which the inputs of these units' products are not quantised. Their weights stay in int8."""
    model = model.clone()
    for node in tuple(model.graph):
        if _unit(node) in kept:
            for reader, position, quantize in tuple(_quantized_inputs(node)):
                reader.replace_input_with(position, quantize.inputs[0])
    RemoveUnusedNodesPass()(model)
    return model


def _quantized_inputs(node: ir.Node) -> Iterator[tuple[ir.Node, int, ir.Node]]:
    """(reader, position, QuantizeLinear) where a product's input is read out of int8, if need be before it is put in order."""
    if (node.domain, node.op_type) != ("", "MatMul"):
        return
    for start in range(2):
        reader, position = node, start
        while (mover := _mover(reader.inputs[position])) is not None:
            reader, position = mover, 0
        restored = made_by(reader.inputs[position], "DequantizeLinear")
        quantize = made_by(restored.inputs[0], "QuantizeLinear") if restored is not None else None
        if quantize is not None:
            yield reader, position, quantize


def _mover(value: ir.Value | None) -> ir.Node | None:
    return made_by(value, "Transpose") or made_by(value, "Reshape")


def _unit(node: ir.Node) -> str:
    """The name of the linear layer whose product this is, or of the module, where it has no weight."""
    restored = made_by(node.inputs[1], "DequantizeLinear") if len(node.inputs) > 1 else None
    weight = restored.inputs[0] if restored is not None else None
    if constant(weight) is not None and weight is not None:
        return (weight.name or "").removesuffix(".weight")
    return (node.name or "").rsplit("/", 1)[0]


def _named(proto: onnx.ModelProto) -> ir.Model:
    """The graph with the names that the network's parameters have elsewhere."""
    model = ir.from_proto(proto)
    for name, value in tuple(model.graph.initializers.items()):
        if found := _STORED.match(name):
            value.name = f"{found[2]}{_SUFFIXES[found[1]]}"
    model.metadata_props.clear()
    return model


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """NNCF tells of its progress on stdout, where a command's answer goes, and onnxruntime below it warns of what NNCF does."""
    logger, ort = logging.getLogger("nncf"), load_onnxruntime()
    level = logger.level
    logger.setLevel(logging.ERROR)
    ort.set_default_logger_severity(FATAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        ort.set_default_logger_severity(WARNING)  # its own default; it does not tell what it was
