"""Name every node and value after the module of the network that it came from."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

SCOPES = "pkg.torch.onnx.name_scopes"  # torch's exporter notes the stack of module names there, as a Python list's text


class NameByModule(ir.passes.InPlacePass):
    """`val_14` becomes `blocks.0.attn.qkv/MatMul`: readable in a profile, and the same from run to run.

    Names of inputs, outputs and initialisers stay. Nodes without the exporter's note are named after their op alone.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        kept = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
        seen: Counter[str] = Counter()
        modified = False
        for node in model.graph:
            stem = f"{module_of(node) or 'vit'}/{node.op_type}"
            seen[stem] += 1
            name = stem if seen[stem] == 1 else f"{stem}_{seen[stem]}"
            modified |= node.name != name
            node.name = name
            for index, value in enumerate(node.outputs):
                if value.name not in kept:
                    value.name = name if index == 0 else f"{name}:{index}"
        return ir.passes.PassResult(model, modified)


def module_of(node: ir.Node) -> str:
    """The innermost module's dotted name, "" for the network itself."""
    return scopes_of(node)[-1] if scopes_of(node) else ""


def scopes_of(node: ir.Node) -> list[str]:
    """The modules that the node lies in, outermost first, the network itself and the node's own name left out."""
    text = node.metadata_props.get(SCOPES, "[]")
    names = [part.strip(" '\"") for part in text.strip("[]").split(",")]
    return [name for name in names[:-1] if name and not name.startswith("_")]
