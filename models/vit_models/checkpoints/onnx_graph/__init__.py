"""A Vision Transformer out of an ONNX file that somebody else exported.

Names mean nothing in such a file: torch's TorchScript exporter calls a Linear's transposed weight `onnx::MatMul_1985`, and tools that
simplify a graph name things anew. So the structure is recognised by what the graph computes, and that says which number is what:

| here | in the graph |
| --- | --- |
| embeddings.patch_embed.proj | the convolution of the images |
| embeddings.cls_token, register_tokens, pos_embed | what the graph makes, before the first block, of patches that are all zeros |
| blocks.i.norm1, norm2 | LayerNormalization, or its pieces from ReduceMean to the last Add |
| blocks.i.attn.qkv | one, two or three MatMul + Add or Gemm; heads and order by following numbers to the softmax |
| blocks.i.ls1, ls2 | a Mul by a constant vector before the Add to the stream |
| norm, pre_logits, head | what reads the stream after the last such Add |

`protobuf` reads the file, `dataflow` makes plain values of its nodes, `blocks` and `tail` recognise, `recover` plans. Whether it was
recognised rightly is not believed but proven, by running both (`vit_exporter.recovered.prove`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vit_models.checkpoints.documents import Document
from vit_models.checkpoints.hugging_face.common import image_processor, label_names
from vit_models.checkpoints.onnx_graph.protobuf import Graph, StoredTensor, read_graph
from vit_models.checkpoints.onnx_graph.recover import make_plan
from vit_models.checkpoints.onnx_graph.structure import own_size, recognise_structure
from vit_models.checkpoints.plan import CheckpointFile, Options, Plan, TensorInfo
from vit_models.checkpoints.preprocessing import from_hugging_face
from vit_models.errors import CheckpointError, OptionError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NAME", "TITLE", "landmarks", "open_onnx", "plan", "recognise"]

NAME = "onnx"
TITLE = "an ONNX graph"


def open_onnx(path: Path) -> CheckpointFile:
    """An ONNX file as a checkpoint: its initialisers and its Constant nodes' tensors, read when asked for.

    `extras["graph"]` is the graph without its numbers, `extras["img_size"]` the (height, width) that the file is fixed to, or None.
    Raises: CheckpointError for a file that is unreadable, truncated, no ONNX, or keeps weights outside its own folder.
    """
    graph = read_graph(path)
    stored = dict(_tensors(graph))

    def read(name: str) -> Tensor:
        import torch

        tensor = stored[name]
        values = torch.from_numpy(tensor.array())
        return values.view(torch.bfloat16) if tensor.dtype == "BF16" else values

    extras = {"graph": graph, "img_size": own_size(graph) if _is_of_images(graph) else None}
    tensors = {name: TensorInfo(tensor.shape, tensor.dtype) for name, tensor in stored.items()}
    return CheckpointFile(path, "onnx", tensors, read, extras=extras)


def recognise(file: CheckpointFile) -> bool:
    """Whether it is an ONNX file: no other format is kept in one."""
    return file.container == "onnx"


def plan(file: CheckpointFile, options: Options) -> Plan:
    """How the graph's numbers become the network.

    Raises: CheckpointError that names the first node at which the graph is not a Vision Transformer that can be recovered.
    """
    if not recognise(file):
        raise CheckpointError("it is no ONNX file; name another --format")
    if given := [*options.model_args, *([f"--arch {options.arch}"] if options.arch else [])]:
        raise OptionError(f"got {', '.join(given)} for an ONNX file, expected none: the graph says it all; leave it out")
    found = make_plan(file, recognise_structure(file.extras["graph"]), options)
    return _with_documents(found, file, options.img_size or found.run_size or found.config.img_size)


def _with_documents(found: Plan, file: CheckpointFile, size: tuple[int, int]) -> Plan:
    """Labels and the images' preparation from what lies beside the file, as tools put it there that export from Hugging Face."""
    labels, prepared, notes = None, None, found.notes
    if "config.json" in file.documents:
        labels = label_names(Document("config.json", file.documents["config.json"]))
    if (processor := image_processor(file)) is not None:
        prepared = from_hugging_face(processor.values, size, channels=found.config.in_chans)
    else:
        notes = ("an ONNX file does not say what its pixel values are: those of the paper's code, from -1 to 1, are assumed", *notes)
    return dataclasses.replace(found, labels=labels if found.config.num_classes else None, preprocessing=prepared, notes=notes)


def landmarks(file: CheckpointFile) -> dict[str, str]:
    """Which value of the graph is which of the network's outputs: "tokens", and "embedding" and "logits" where the graph has them.

    Raises: CheckpointError as `plan` does.
    """
    tail = recognise_structure(file.extras["graph"]).tail
    return {name: value.names[0] for name, value in tail.outputs.items()}


def _is_of_images(graph: Graph) -> bool:
    given = [info for info in graph.inputs if info.name not in graph.initializers]
    return len(given) == 1 and len(given[0].shape) == 4


def _tensors(graph: Graph) -> Iterator[tuple[str, StoredTensor]]:
    """The initialisers, and the Constant nodes that could be weights."""
    yield from graph.initializers.items()
    for node in graph.nodes:
        for value in node.attributes.values():
            if isinstance(value, Graph):
                yield from _tensors(value)
            elif node.op == "Constant" and isinstance(value, StoredTensor) and value.shape and value.dtype.startswith(("F", "BF")):
                yield value.name, value
