"""Repeat the one block that was traced until the network has its depth.

The paper's blocks are equal but for their weights, so tracing twelve or forty of them is the same work again and again:
three quarters of the time of tracing ViT-H. The whole network is what verification compares the file with.
"""

from __future__ import annotations

import onnx_ir as ir

from vit_exporter.passes.name_by_module import scopes_of

TRACED = "blocks.0"
SHARED = "rope"


class RepeatBlock(ir.passes.InPlacePass):
    """Put copies of block 0 in front of it, so that the traced block becomes the last of `depth`.

    Nodes outside the block that read its input (the class token's attention does) then read the last block's input.
    The angles of rotary positions are the same for every block.
    Weights and names follow: `blocks.0.attn.proj.bias` gives `blocks.1.attn.proj.bias` and so on.
    What the block writes is what nodes outside it read; where none does, the output of the same shape as what it reads.
    Raises: ir.passes.PreconditionError unless the graph has exactly one block that reads and writes one float value.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.depth = depth

    def requires(self, model: ir.Model) -> None:
        found = {scope for node in model.graph for scope in scopes_of(node) if scope.count(".") == 1 and scope.startswith("blocks.")}
        if found != {TRACED}:
            raise ir.passes.PreconditionError(f"got {sorted(found)}, expected {TRACED} alone; trace the network at depth 1")
        block = _block(model)
        reads = _reads(block)
        writes = _writes(block, reads)
        if len(reads) != 1 or len(writes) != 1:
            raise ir.passes.PreconditionError(f"got a block that reads {len(reads)} and writes {len(writes)} values, expected one of each")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        block = _block(model)
        (entry,) = reads = _reads(block)
        (leaving,) = _writes(block, reads)
        last, copies, current = self.depth - 1, list[ir.Node](), entry
        for node in block:  # the traced block becomes the last one, and the copies are made from that
            _rename(node, last)
        for index in range(last):
            replaced = {id(entry): current}
            for node in block:
                copies.append(_copy(model, node, last, index, replaced))
            current = replaced[id(leaving)]
        model.graph.insert_before(block[0], copies)
        copied = {id(node) for node in copies}
        for user, position in tuple(entry.uses()):
            if id(user) not in copied:
                user.replace_input_with(position, current)
        return ir.passes.PassResult(model, modified=last > 0)


def _block(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if TRACED in scopes_of(node)]


def _reads(block: list[ir.Node]) -> list[ir.Value]:
    """What the block computes with but does not make: floats that are no weights and not the angles that all blocks share."""
    inside = {id(node) for node in block}
    values = {id(value): value for node in block for value in node.inputs if value is not None and not value.is_initializer()}
    floats = [value for value in values.values() if value.dtype == ir.DataType.FLOAT and id(value.producer()) not in inside]
    return [value for value in floats if not _is_shared(value.producer())]


def _is_shared(node: ir.Node | None) -> bool:
    return node is not None and SHARED in scopes_of(node)


def _writes(block: list[ir.Node], reads: list[ir.Value]) -> list[ir.Value]:
    inside, made = {id(node) for node in block}, [value for node in block for value in node.outputs]
    read = [value for value in made if any(id(user) not in inside for user, _ in value.uses())]
    return read or [value for value in made if value.is_graph_output() and value.shape == reads[0].shape] if reads else []


def _rename(node: ir.Node, index: int) -> None:
    for value in node.inputs:
        if value is not None and value.is_initializer():
            value.name = _renumber(value.name, 0, index)  # onnx_ir keeps the graph's table of initialisers in step
    node.name = _renumber(node.name, 0, index)
    for value in node.outputs:
        value.name = _renumber(value.name, 0, index)


def _copy(model: ir.Model, node: ir.Node, source: int, index: int, replaced: dict[int, ir.Value]) -> ir.Node:
    """The node again, for block `index`; `replaced` leads from the source's values to this block's and grows."""
    inputs = [value and (replaced.get(id(value)) or _weight(model, value, source, index)) for value in node.inputs]
    name = _renumber(node.name, source, index)
    copy = ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), num_outputs=len(node.outputs), name=name)
    for old, new in zip(node.outputs, copy.outputs, strict=True):
        new.name, new.shape, new.type = name if old.is_graph_output() else _renumber(old.name, source, index), old.shape, old.type
        replaced[id(old)] = new
    return copy


def _weight(model: ir.Model, value: ir.Value, source: int, index: int) -> ir.Value:
    name = _renumber(value.name, source, index)
    if name is None or name == value.name or not value.is_initializer():
        return value
    if name not in model.graph.initializers:
        model.graph.register_initializer(ir.Value(name=name, shape=value.shape, type=value.type, const_value=value.const_value))
    return model.graph.initializers[name]


def _renumber(name: str | None, source: int, index: int) -> str | None:
    prefix = f"blocks.{source}"
    if name is None or not name.startswith((f"{prefix}.", f"{prefix}/")):
        return name
    return f"blocks.{index}{name[len(prefix) :]}"
