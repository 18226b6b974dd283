"""Passes run one after the other, and what each did to the graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir


def apply(
    model: ir.Model, passes: Sequence[ir.passes.PassBase], check: Callable[[ir.passes.PassBase, ir.Model], float] | None = None
) -> tuple[ir.Model, list[dict[str, Any]]]:
    """The model after these passes, and for the manifest what each did.

    `check` is given each pass and the graph after it; what it returns is the error there, in floors.
    """
    applied = []
    for graph_pass in passes:
        name, before = type(graph_pass).__name__, len(model.graph)
        model = graph_pass(model).model
        applied.append(entry_of(name, before, model, check(graph_pass, model) if check else None))
    return model, applied


def entry_of(name: str, before: int, model: ir.Model, floors: float | None = None) -> dict[str, Any]:
    """What the manifest says of a step that left this model of one with so many nodes."""
    return {"name": name, "nodes_before": before, "nodes_after": len(model.graph), "ops": ops(model), "floors": floors}


def ops(model: ir.Model) -> dict[str, int]:
    """How many nodes of each kind, most first, and by name."""
    counts = Counter(node.op_type for node in model.graph)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
