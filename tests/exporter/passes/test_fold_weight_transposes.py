"""What FoldWeightTransposes promises, on graphs small enough to read, run by onnxruntime itself."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from vit_exporter.passes.fold_weight_transposes import FoldWeightTransposes, transposed

HEAD = '<ir_version: 10, opset_import: ["": 18]> main '
LINEAR = f"{HEAD}(float[3, 4] x, float[2, 4] w) => (float[3, 2] out) {{ t = Transpose<perm = [1, 0]>(w)  out = MatMul(x, t) }}"
SQUARE = f"{HEAD}(float[2, 3] x, float[3, 3] w) => (float[2, 3] out) {{ t = Transpose<perm = [1, 0]>(w)  out = MatMul(x, t) }}"
FOUR_AXES = f"""{HEAD}(float[5, 2, 4, 3] x, float[2, 3, 4, 5] w) => (float[5, 2, 4, 3] out)
{{ t = Transpose<perm = [3, 0, 2, 1]>(w)  out = Add(x, t) }}"""
CHAIN = f"""{HEAD}(float[4, 2, 3] x, float[2, 3, 4] w) => (float[4, 2, 3] out)
{{ s = Transpose<perm = [0, 2, 1]>(w)  t = Transpose<perm = [1, 0, 2]>(s)  out = Add(x, t) }}"""
READ_TWICE = f"""{HEAD}(float[3, 3] x, float[3, 3] w) => (float[3, 3] out)
{{ t = Transpose<perm = [1, 0]>(w)  p = MatMul(x, t)  out = MatMul(p, w) }}"""
ACTIVATION = (
    f"{HEAD}(float[4, 3] x, float[2, 4] w) => (float[2, 3] out) {{ t = Transpose<perm = [1, 0]>(x)  u = Transpose<perm = [1, 0]>(t)"
)
ACTIVATION += "  out = MatMul(w, u) }"
OUTPUT = f"{HEAD}(float[3] x, float[2, 4] w) => (float[4, 2] t, float[3] out) {{ t = Transpose<perm = [1, 0]>(w)  out = Neg(x) }}"
NO_PERM = f"{HEAD}(float[3, 4] x, float[2, 4] w) => (float[3, 2] out) {{ t = Transpose(w)  out = MatMul(x, t) }}"


def graph(text: str) -> ir.Model:
    model = ir.from_onnx_text(text)
    weight = model.graph.inputs.pop()  # the last input of the text is the weight
    assert weight.shape is not None
    numbers = np.arange(np.prod(weight.shape.numpy()), dtype=np.float32).reshape(weight.shape.numpy())
    weight.const_value = ir.tensor(numbers, name="w")
    model.graph.register_initializer(weight)
    return model


def run(model: ir.Model) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape
    return session.run(["out"], {"x": np.arange(np.prod(shape), dtype=np.float32).reshape(shape)})[0]


@pytest.mark.parametrize(("text", "shape"), [(LINEAR, [4, 2]), (SQUARE, [3, 3]), (FOUR_AXES, [5, 2, 4, 3]), (CHAIN, [4, 2, 3])])
def test_a_transposed_weight_is_stored_the_way_it_is_read(text, shape):
    model = graph(text)
    before = run(model)
    assert FoldWeightTransposes()(model).modified
    assert not [node for node in model.graph if node.op_type == "Transpose"]
    stored_shape = model.graph.initializers["w"].shape  # under the same name
    assert stored_shape is not None
    assert list(stored_shape.numpy()) == shape
    np.testing.assert_array_equal(run(model), before)  # small whole numbers, exact in float32, so no tolerance


@pytest.mark.parametrize("text", [READ_TWICE, ACTIVATION, OUTPUT, NO_PERM], ids=["read twice", "activation", "output", "no perm"])
def test_what_is_not_a_weight_read_by_one_transpose_is_left_alone(text):
    model = graph(text)
    before, numbers = ir.to_proto(model).SerializeToString(deterministic=True), run(model)
    assert not FoldWeightTransposes()(model).modified
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    np.testing.assert_array_equal(run(model), numbers)


@pytest.mark.unit
def test_numbers_are_moved_only_when_somebody_reads_them():
    reads = []

    def read() -> ir.TensorProtocol:
        reads.append(1)
        return ir.tensor(np.arange(8, dtype=np.float32).reshape(2, 4))

    model = graph(LINEAR)
    model.graph.initializers["w"].const_value = ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=ir.Shape([2, 4]), name="w")
    FoldWeightTransposes()(model)
    assert not reads
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), np.arange(8).reshape(2, 4).T)
    assert reads


@pytest.mark.unit
@pytest.mark.parametrize("perm", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)])
def test_a_tensor_and_its_permutation_agree_with_numpy(perm):
    numbers = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    moved = transposed(ir.tensor(numbers, name="w"), perm)
    assert tuple(moved.shape.numpy()) == numbers.transpose(perm).shape
    assert (moved.dtype, moved.name) == (ir.DataType.FLOAT, "w")
    np.testing.assert_array_equal(moved.numpy(), numbers.transpose(perm))
