"""Multiply attention's scale, 1 / sqrt(D_h), into the linear layer that makes the queries."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vit_exporter.passes.matching import (
    Linear,
    Numbers,
    bypass,
    change,
    linear_of,
    only_reader,
    operands,
    packed_of,
    part_of,
    refuse_functions,
    scalar,
)

# f(c x) = c f(x) for these, as functions of their first input.
MOVING = {"Reshape", "Transpose", "Slice", "Gather", "Split", "Neg"}


class FoldAttentionScale(ir.passes.InPlacePass):
    """(x @ weight + bias) * c becomes x @ (weight * c) + bias * c, c one constant number.

    Of a packed linear layer only the queries' columns are multiplied. On the way to the product there may be what only moves numbers,
    and rotary positions, which add numbers after multiplying them by constants; the queries may be read more than once, as they are
    where the class token's attention is an output, if every way leads to the same constant. Weight and bias keep their names. The
    numbers are multiplied when the file is written, one weight at a time, each rounded once, and not at all where c is a power of 2.
    Left alone: queries that are normalised first, and a weight or a bias that something else reads.
    Raises: ir.passes.PreconditionError if the model has local functions.
    """

    def requires(self, model: ir.Model) -> None:
        refuse_functions(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in tuple(model.graph):
            linear = linear_of(node) if node.op_type == "Add" else None
            for columns, values in _parts(linear) if linear is not None else ():
                found = _scaled(values)
                if found is not None and linear is not None:
                    factor, products = found
                    _multiply(linear, columns, factor)
                    for product in products:
                        bypass(model.graph, product, next(value for value, other in operands(product) if scalar(other) == factor))
                    modified = True
        if modified:
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified)


def _parts(linear: Linear) -> Iterator[tuple[slice, list[ir.Value]]]:
    """The columns that are used on their own, and all values that hold them."""
    reshape = only_reader(linear.sum, "Reshape")
    packed = packed_of(only_reader(reshape.outputs[0], "Transpose")) if reshape is not None else None
    if packed is None:
        yield slice(0, linear.width), [linear.sum]
        return
    values: dict[int, list[ir.Value]] = {}
    for gather, _ in packed.taken_apart.uses():
        part = part_of(gather)
        if part is None or packed.taken_apart.is_graph_output():
            return
        values.setdefault(part[1], []).append(gather.outputs[0])
    width = packed.heads * packed.head_dim
    for index in sorted(values):
        yield slice(index * width, (index + 1) * width), values[index]


def _scaled(values: list[ir.Value]) -> tuple[float, list[ir.Node]] | None:
    """The one constant that all that is made of these values is multiplied by, and the nodes that do it."""
    derived, waiting, passed, products, factors = {id(value) for value in values}, list(values), list[ir.Node](), list[ir.Node](), set()
    while waiting:
        value = waiting.pop()
        if value.is_graph_output():
            return None
        for user, position in value.uses():
            factor = _factor(user, value)
            if factor is not None:
                products.append(user)
                factors.add(factor)
            elif user.domain == "" and (user.op_type in ("Add", "Concat", "Mul") or (user.op_type in MOVING and position == 0)):
                passed.append(user)
                waiting += [output for output in user.outputs if id(output) not in derived]
                derived |= {id(output) for output in user.outputs}
            else:
                return None
    for node in passed:
        scaled = sum(id(value) in derived for value in node.inputs)
        # A sum is scaled only if all of its terms are, a product if exactly one of its factors is.
        if node.op_type not in MOVING and scaled != (1 if node.op_type == "Mul" else len(node.inputs)):
            return None
    if len(factors) != 1 or any(product.outputs[0].is_graph_output() for product in products):
        return None
    return factors.pop(), products


def _factor(node: ir.Node, value: ir.Value) -> float | None:
    """The constant number that this node multiplies the value by."""
    if (node.domain, node.op_type) != ("", "Mul"):
        return None
    return next((scalar(other) for found, other in operands(node) if found is value), None)


def _multiply(linear: Linear, columns: slice, factor: float) -> None:
    def multiplied(numbers: Numbers) -> Numbers:
        changed = numbers.copy()
        changed[..., columns] *= numbers.dtype.type(factor)
        return changed

    change(linear.weight, multiplied)
    change(linear.bias, multiplied)
