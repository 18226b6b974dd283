"""The blocks of a Vision Transformer, found along the stream that they add to: eq. 2 and 3 of the paper, read backwards.

A block's two branches end in an Add to the stream. From there back stand LayerScale, a Linear, and either the product of a softmax with
values (attention) or a function of single numbers (the MLP); both begin at a LayerNorm of the stream.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from vit_models.checkpoints.onnx_graph.dataflow import Dataflow, evaluate
from vit_models.checkpoints.onnx_graph.kernels import ELEMENTWISE, MOVEMENTS
from vit_models.checkpoints.onnx_graph.value import Value, is_vector, same_rows
from vit_models.checkpoints.onnx_graph.views import Ints, View, channels, scaling, view
from vit_models.config import Activation
from vit_models.errors import CheckpointError

Numbers = npt.NDArray[np.float64]

# A tanh GELU is off the exact one by 4.7e-4 at most, SiLU and quick GELU by more; constants rounded to float16 move one by 2e-5.
SAME_FUNCTION = 1e-4


@dataclass(frozen=True)
class Projection:
    """Rows of a Linear's output, by head and channel, (H, D_h), and the LayerNorm that follows for queries and keys, where there is one."""

    linear: Value
    rows: Ints
    norm: Value | None

    @property
    def source(self) -> Value:
        """What the Linear reads."""
        return same_rows(self.linear.inputs[0])


@dataclass(frozen=True)
class Attention:
    """softmax(scale q k^T + bias) v, and the Linear whose input channel j is number `columns[j]` of all heads' channels."""

    queries: Projection
    keys: Projection
    values: Projection
    scale: float
    bias: Value | None
    proj: Value
    columns: Ints
    softmax: Value

    @property
    def source(self) -> Value:
        """What the queries' Linear reads."""
        return self.queries.source


@dataclass(frozen=True)
class Mlp:
    """`inner` has the rows of fc1, one Linear's or the gate's and the value's."""

    inner: tuple[Projection, ...]
    activation: Activation
    fc2: Value

    @property
    def source(self) -> Value:
        """What fc1 reads."""
        return self.inner[0].source


@dataclass(frozen=True)
class Block:
    """One block; the factors are LayerScale's, where there is any."""

    norm1: Value
    attention: Attention
    factor1: Value | None
    norm2: Value
    mlp: Mlp
    factor2: Value | None


def unexpected(value: Value, expected: str) -> NoReturn:
    """Raises: CheckpointError that names the node at which the structure ends."""
    raise CheckpointError(f"no Vision Transformer that can be recovered: at the node {value} expected {expected}")


class Blocks:
    """Walks the blocks of a graph for `images` images and sequences of any length."""

    def __init__(self, flow: Dataflow, images: int) -> None:
        self.flow, self.images = flow, images

    def first_stream(self) -> Value:
        """What the first block adds to. Raises: CheckpointError."""
        softmax = next((value for value in self.flow.live if value.op == "Softmax"), None)
        if softmax is None:
            raise CheckpointError("no Vision Transformer that can be recovered: the graph has no Softmax, so no attention")
        source = self.attention(softmax).source
        if source.op != "LayerNorm":
            unexpected(source, "a LayerNorm before the attention")
        return same_rows(source.inputs[0])

    def walk(self, stream: Value) -> tuple[list[Block], Value]:
        """The blocks from this stream on, and the stream after them. Raises: CheckpointError."""
        blocks = list[Block]()
        while (half := self._attention_branch(stream)) is not None:
            middle, norm1, attention, factor1 = half
            after, norm2, mlp, factor2 = self._mlp_branch(middle)
            blocks.append(Block(norm1, attention, factor1, norm2, mlp, factor2))
            stream = after
        self._check_rest(blocks, stream)
        return blocks, stream

    def _check_rest(self, blocks: list[Block], stream: Value) -> None:
        """No attention over the same tokens may be left: a block that is built otherwise would be lost in silence."""
        used = {block.attention.softmax for block in blocks}
        for softmax in self.flow.live:
            if softmax.op == "Softmax" and softmax not in used:
                try:
                    attention = self.attention(softmax)
                except CheckpointError:
                    continue  # a decoder's, or a pooling head's: not one of these blocks, and told as left out
                source = attention.source
                if source.shape is not None and stream.shape is not None and source.shape[-1] == stream.shape[-1]:
                    unexpected(attention.proj, f"block {len(blocks) + 1} to add this, scaled at most, to the stream that it normalises")

    def _attention_branch(self, stream: Value) -> tuple[Value, Value, Attention, Value | None] | None:
        for added, linear, factor in self._branches(stream):
            before = view(linear.inputs[0]).root
            if before.op == "MatMul" and before.inputs[0].op == "Softmax":
                attention = self.attention(before.inputs[0])
                return added, self._norm_of(stream, attention.source), attention, factor
        return None

    def _mlp_branch(self, stream: Value) -> tuple[Value, Value, Mlp, Value | None]:
        for added, linear, factor in self._branches(stream):
            mlp = self.mlp(linear)
            return added, self._norm_of(stream, mlp.source), mlp, factor
        unexpected(stream, "an MLP's output to be added to this")

    def _norm_of(self, stream: Value, source: Value) -> Value:
        if source.op != "LayerNorm" or same_rows(source.inputs[0]) is not stream:
            unexpected(source, f"a LayerNorm of the stream at {stream}")
        return source

    def _branches(self, stream: Value) -> list[tuple[Value, Value, Value | None]]:
        """(the sum, the Linear, its factor) for everything that is added to the stream as a block's branch is."""
        found = []
        for user in self.flow.users[stream]:
            if user.op != "Add" or len(user.inputs) != 2 or user.inputs[0] is user.inputs[1]:
                continue
            value = same_rows(next(arg for arg in user.inputs if arg is not stream))
            factor = None
            if value.op == "Mul" and (shape := value.shape):
                for x, given in (value.inputs, value.inputs[::-1]):
                    if given.constant and (given.scalar is not None or is_vector(given, shape[-1])):
                        value, factor = same_rows(x), None if given.scalar == 1 else given
                        break
            if value.op == "Linear":
                found.append((user, value, factor))
        return found

    # --- attention ----------------------------------------------------------------------------------------------------------------------

    def attention(self, softmax: Value) -> Attention:
        """The attention around a Softmax. Raises: CheckpointError."""
        product, scale, bias = self.scores(softmax)
        q, k = view(product.inputs[0]), view(product.inputs[1])
        mixed = self.user(softmax, "MatMul", "a product with the values")
        v = view(mixed.inputs[1])
        shape = mixed.sizes
        if mixed.inputs[0] is not softmax or len(shape) < 3 or math.prod(shape[:-2]) % self.images:
            unexpected(mixed, "the attention weights times the values")
        heads, tokens, width = math.prod(shape[:-2]) // self.images, shape[-2], shape[-1]
        layout = (self.images, heads, tokens, width)
        if v.scale != 1:
            unexpected(mixed, "values that are not scaled")
        queries = self.projection(q, q.index, layout)
        keys = self.projection(k, k.index.swapaxes(-1, -2), layout)
        values = self.projection(v, v.index, layout)
        if len({each.source for each in (queries, keys, values)}) != 1:
            unexpected(softmax, "queries, keys and values of the same tokens")
        proj, columns = self.output(mixed, layout)
        return Attention(queries, keys, values, scale * q.scale * k.scale, bias, proj, columns, softmax)

    def scores(self, softmax: Value) -> tuple[Value, float, Value | None]:
        """The product of queries and keys, its factor, and the bias that is added."""
        shape = softmax.sizes
        if softmax.attributes.get("axis", -1) not in (-1, len(shape) - 1):
            unexpected(softmax, "a softmax over the last axis")
        value, scale, bias = softmax.inputs[0], 1.0, None
        while value.op != "MatMul":
            scaled = scaling(value)
            if scaled is not None and (bias is None or scaled[1] == 1):
                value, scale = scaled[0], scale * scaled[1]
            elif value.op == "Add" and any(arg.constant for arg in value.inputs):
                added = next(arg for arg in value.inputs if arg.constant)
                if not self._is_no_mask(added):
                    if bias is not None or math.prod(added.sizes[:-3]) > 1:
                        unexpected(value, "one bias on the scores at most, the same for all images")
                    bias = added
                value = next(arg for arg in value.inputs if arg is not added)
            elif value.op in ("Reshape", "Unsqueeze", "Squeeze") and not value.inputs[0].constant:
                value = value.inputs[0]
            else:
                unexpected(value, "the product of queries and keys")
        return value, scale, bias

    def _is_no_mask(self, added: Value) -> bool:
        """Whether it is the same for all heads and lets everything through."""
        if math.prod(added.sizes[-3:-2]) > 1 or added.op in ELEMENTWISE:
            return False
        return not evaluate(added, {}, lambda stored: stored.array()).any()

    def projection(self, moved: View, index: Ints, layout: tuple[int, ...]) -> Projection:
        images, _, tokens, width = layout
        if index.size != math.prod(layout):
            unexpected(moved.root, f"queries, keys and values of {layout[1]} heads of {width}")
        norm = None
        root = moved.root
        if root.op == "LayerNorm" and root.shape is not None and root.shape[-1] == width and moved.scale == 1:  # of each head's channels
            norm, before = root, view(root.inputs[0])
            index, root = before.index.reshape(-1)[index], before.root
            if before.scale != 1:
                unexpected(root, "queries and keys that are normalised as they are")
        if root.op != "Linear" or not root.shape:
            unexpected(root, "a Linear of the tokens as queries, keys or values")
        token = np.arange(images * tokens, dtype=np.int64).reshape(images, 1, tokens, 1)
        found = channels(View(root, index.reshape(layout), 1.0), np.broadcast_to(token, layout))
        if found is None or not np.array_equal(found, np.broadcast_to(found[:1, :, :1], layout)):
            unexpected(root, "each head to take the same channels of every token")
        return Projection(root, found[0, :, 0], norm)

    def output(self, mixed: Value, layout: tuple[int, ...]) -> tuple[Value, Ints]:
        """The Linear after the heads, and which head's channel each of its inputs is."""
        images, heads, tokens, width = layout
        value = mixed
        while value.op != "Linear":
            users = self.flow.users[value]
            if len(users) != 1 or (users[0].op not in MOVEMENTS and users[0].op != "Linear"):
                unexpected(users[0] if users else value, "the heads side by side and a Linear")
            value = users[0]
        index = view(value.inputs[0], mixed).index
        if index.size != math.prod(layout):
            unexpected(value, "a Linear of all heads")
        image, head, token, channel = np.unravel_index(index.reshape(images * tokens, heads * width), layout)
        columns = head * width + channel
        if not (image * tokens + token == np.arange(images * tokens)[:, None]).all() or not (columns == columns[:1]).all():
            unexpected(value, "a Linear of each token's heads side by side")
        return value, columns[0]

    def user(self, value: Value, op: str, expected: str) -> Value:
        """The only user, which has to be of that kind."""
        users = self.flow.users[value]
        if len(users) != 1 or users[0].op != op:
            unexpected(users[0] if users else value, expected)
        return users[0]

    # --- MLP ----------------------------------------------------------------------------------------------------------------------------

    def mlp(self, fc2: Value) -> Mlp:
        """The MLP that ends in this Linear. Raises: CheckpointError."""
        end = same_rows(fc2.inputs[0])
        sources = list[Value]()
        stack, seen = [end], set[Value]()
        while stack:
            value = stack.pop()
            if value in seen:
                continue
            seen.add(value)
            if value.op in ELEMENTWISE:
                stack.extend(arg for arg in value.inputs if not arg.constant)
            else:
                sources.append(value)
        if len(sources) not in (1, 2) or end in sources:
            unexpected(end, "an activation function of one Linear, or of one gated by another")
        inner = [self._rows(source) for source in sources]
        if len({each.source for each in inner}) != 1:
            unexpected(end, "gate and value of the same tokens")
        if len(sources) == 1:
            return Mlp(tuple(inner), self._activation(end, sources), fc2)
        for order in ((0, 1), (1, 0)):
            try:
                activation = self._activation(end, [sources[place] for place in order])
            except CheckpointError:
                continue
            return Mlp(tuple(inner[place] for place in order), activation, fc2)
        unexpected(end, "GELU, tanh GELU, quick GELU, SiLU or ReLU of the gate, times the value")

    def _rows(self, source: Value) -> Projection:
        moved = view(source)
        root, width = moved.root, moved.index.shape[-1]
        if root.op != "Linear" or moved.scale != 1:
            unexpected(root, "a Linear before the activation function")
        tokens = np.arange(moved.index.size // width, dtype=np.int64).reshape(*moved.index.shape[:-1], 1)
        found = channels(moved, np.broadcast_to(tokens, moved.index.shape))
        if found is None or not np.array_equal(found, np.broadcast_to(found.reshape(-1, width)[0], found.shape)):
            unexpected(root, "the same channels of every token")
        return Projection(root, found.reshape(-1, width)[:1], None)

    def _activation(self, end: Value, sources: list[Value]) -> Activation:
        """Told by what it computes, whatever it is made of."""
        x = np.linspace(-8.0, 8.0, 161)
        gate, value = np.meshgrid(x, x) if len(sources) == 2 else (x, np.ones_like(x))
        bound = dict(zip(sources, (gate, value), strict=False))
        found = np.asarray(evaluate(end, bound), np.float64)
        for name, function in ACTIVATIONS.items():
            if found.shape == gate.shape and np.allclose(
                found, function(gate) * value, rtol=0, atol=SAME_FUNCTION * float(np.abs(value).max())
            ):
                return name
        unexpected(end, "GELU, tanh GELU, quick GELU, SiLU or ReLU")


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


_erf = np.vectorize(math.erf, otypes=[np.float64])

ACTIVATIONS: dict[Activation, Any] = {
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x * _sigmoid(1.702 * x),
    "silu": lambda x: x * _sigmoid(x),
    "relu": lambda x: np.maximum(x, 0),
}
