"""From the network to an ONNX graph: torch's exporter, a free batch dimension, weights bound by name and moved last."""

from __future__ import annotations

import dataclasses
import gc
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import onnx_ir as ir
import torch
from onnx import helper
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, LiftConstantsToInitializersPass, RemoveUnusedNodesPass
from torch import Tensor
from torch.export import Dim

from vit_exporter.passes.name_by_module import NameByModule
from vit_exporter.passes.repeat_block import RepeatBlock
from vit_models import ViT, ViTConfig

INPUT, BATCH, HEIGHT, WIDTH, TOKENS, PATCHES = "pixel_values", "batch", "height", "width", "tokens", "patches"


def trace(model: ViT, opset: int, read: Callable[[str], Tensor] | None = None) -> ir.Model:
    """The network as an ONNX graph of standard ops, batch dimension free, and height and width where the network leaves them free.

    One block is traced, on torch's meta device, where there are shapes but no numbers, and repeated to the network's depth:
    neither time nor memory grows with the weights, which the graph's initialisers read from the model only when somebody asks. While a
    parameter of the model has no numbers, `read` gives them by its name.
    """
    with torch.device("meta"):
        # Attention alone needs nothing of what the last block computes: the tokens keep it in the trace until it is repeated.
        outputs = model.outputs if model.outputs != ("attention",) else ("attention", "tokens")
        shallow = ViT(dataclasses.replace(model.config, depth=1), outputs, model.dynamic_size).eval()
        example = torch.empty(2, model.config.in_chans, *model.config.img_size)  # 2: torch would take a batch of 1 for a constant
    free: dict[int, Any] = {0: Dim(BATCH)}
    if model.dynamic_size:
        free |= {2: model.config.patch_size * Dim("rows"), 3: model.config.patch_size * Dim("columns")}
    with warnings.catch_warnings(), _quiet("torch.onnx"), torch.no_grad():
        warnings.simplefilter("ignore", FutureWarning)  # raised by torch about its own calls
        program = torch.onnx.export(
            shallow, (example,), dynamo=True, dynamic_shapes={INPUT: free}, opset_version=opset,
            input_names=[INPUT], output_names=list(outputs), optimize=False, verbose=False,
        )  # fmt: skip
    assert program is not None  # it is None only when torch writes the file itself
    graph = program.model
    lift = LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)
    for step in (NameByModule(), lift, RepeatBlock(model.config.depth), ClearMetadataAndDocStringPass()):
        step(graph)
    if outputs != model.outputs:
        graph.graph.outputs.pop()
        RemoveUnusedNodesPass()(graph)
    _bind(graph, model, read)
    if model.dynamic_size:
        _name_free_sizes(graph, model.config)
    graph.metadata_props.clear()
    graph.graph.name = "vit"
    # The lowest version of the file format that has this opset, so that older runtimes read it.
    graph.ir_version = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
    del program
    gc.collect()  # torch's exporter leaves large cycles behind
    return graph


def _name_free_sizes(graph: ir.Model, config: ViTConfig) -> None:
    """What follows the image's size gets names that people read, instead of torch's formulas."""
    graph.graph.inputs[0].shape = ir.Shape([BATCH, config.in_chans, HEIGHT, WIDTH])
    shapes = {"tokens": ir.Shape([BATCH, TOKENS, config.embed_dim]), "attention": ir.Shape([BATCH, config.num_heads, PATCHES])}
    for value in graph.graph.outputs:
        value.shape = shapes.get(value.name or "", value.shape)


def _bind(graph: ir.Model, model: ViT, read: Callable[[str], Tensor] | None) -> None:
    """Let the graph's initialisers read the model's parameters of the same names, when somebody asks for their numbers."""
    for name, parameter in model.named_parameters():
        if name in graph.graph.initializers:
            shape = ir.Shape(parameter.shape)
            tensor = ir.LazyTensor(partial(_numbers, model, read, name), dtype=ir.DataType.FLOAT, shape=shape, name=name)
            graph.graph.initializers[name].const_value = tensor


def _numbers(model: ViT, read: Callable[[str], Tensor] | None, name: str) -> ir.TensorProtocol:
    parameter = model.get_parameter(name)
    return ir.Tensor((read(name) if read is not None and parameter.is_meta else parameter.detach()).numpy())


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a logger's warnings to itself: torch names every optional package that it does not find."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
