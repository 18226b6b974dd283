"""What FoldNormalization promises, on graphs small enough to read, run by onnxruntime itself, and on a network."""

import dataclasses

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from vit_exporter.passes.fold_normalization import FoldNormalization
from vit_exporter.reference import float32_outputs, float64_outputs
from vit_runtime.golden import golden_images
from vit_runtime.parity import measure, scale_of
from vit_runtime.preprocess import Preprocessing, normalize

RESCALE, MEAN, STD = 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Images x of 4 x 6 pixels; in NORMALIZED what is folded is still in the graph.
MAIN = '<ir_version: 10, opset_import: ["": 18]> main (float[batch, 3, 4, 6] x, float[5, 3, 2, 2] w, float[5] b) => '
NORMALIZED = f"""{MAIN}(float[batch, 5, 2, 3] out) <float rescale = {{{RESCALE:.17f}}},
 float[1, 3, 1, 1] mean = {{0.485, 0.456, 0.406}}, float[1, 3, 1, 1] std = {{0.229, 0.224, 0.225}}>
{{ y = Mul(x, rescale)  z = Sub(y, mean)  n = Div(z, std)  out = Conv<strides = [2, 2]>(n, w, b) }}"""


def conv(nodes: str) -> str:
    return f"{MAIN}(float[batch, channels, rows, columns] out) {{ {nodes} }}"


ACTS = {
    "as traced": conv('out = Conv<group = 1, auto_pad = "NOTSET", pads = [0, 0, 0, 0], strides = [2, 2]>(x, w, b)'),
    "without attributes": conv("out = Conv<strides = [2, 2]>(x, w, b)"),
    "without padding, by name": conv('out = Conv<auto_pad = "VALID", strides = [2, 2]>(x, w, b)'),
}
LEFT = {
    "padded": conv("out = Conv<pads = [0, 0, 0, 1], strides = [2, 2]>(x, w, b)"),
    "padded to its size": conv('out = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, w, b)'),
    "without a bias": conv("out = Conv<strides = [2, 2]>(x, w)"),
    "in groups": conv("out = Conv<group = 3, strides = [2, 2]>(x, w, b)").replace("5, 3, 2, 2] w, float[5]", "6, 1, 2, 2] w, float[6]"),
    "of three axes": conv("out = Conv<strides = [2, 2, 2]>(x, w, b)")
    .replace("4, 6] x", "4, 6, 2] x")
    .replace("2, 2] w", "2, 2, 2] w")
    .replace("columns]", "columns, layers]"),
    "behind a function": conv("y = Relu(x)  out = Conv<strides = [2, 2]>(y, w, b)"),
    "another op": conv("out = MaxPool<kernel_shape = [2, 2]>(x)"),
    "images that something else reads": conv("y = Conv<strides = [2, 2]>(x, w, b)  m = ReduceMean<keepdims = 0>(x)  out = Add(y, m)"),
    "a weight that something else reads": conv("m = ReduceMean<keepdims = 0>(w)  y = Conv<strides = [2, 2]>(x, w, b)  out = Add(y, m)"),
    "a bias that something else reads": conv("m = ReduceMean<keepdims = 0>(b)  y = Conv<strides = [2, 2]>(x, w, b)  out = Add(y, m)"),
}


@pytest.mark.parametrize("text", ACTS.values(), ids=ACTS)
def test_the_convolution_takes_images_as_they_are(text, weighted, run):
    model = weighted(text, "w b")
    assert FoldNormalization(RESCALE, MEAN, STD)(model).modified
    assert [node.op_type for node in model.graph] == ["Sub", "Conv"]
    # Sums of a dozen numbers of up to 5, each rounded to float32's 6e-8.
    np.testing.assert_allclose(run(model)[0], run(weighted(NORMALIZED, "w b"))[0], rtol=0, atol=1e-5)


def test_who_asks_for_the_images_shape_reads_no_numbers(weighted, run):
    nodes = "n = Shape<start = 0, end = 1>(x)  f = Cast<to = 1>(n)  y = Conv<strides = [2, 2]>(x, w, b)  out = Div(y, f)"
    model = weighted(conv(nodes), "w b")
    assert FoldNormalization(RESCALE, MEAN, STD)(model).modified
    expected = run(weighted(NORMALIZED, "w b"))[0]
    # Sums of a dozen numbers of up to 5, each rounded to float32's 6e-8.
    np.testing.assert_allclose(run(model)[0], expected / len(expected), rtol=0, atol=1e-5)


@pytest.mark.unit
def test_the_numbers_are_computed_in_float64_and_rounded_once(weighted):
    model = weighted(ACTS["as traced"], "w b")
    weight, bias = (model.graph.initializers[name].const_value.numpy().astype(np.float64) for name in ("w", "b"))
    FoldNormalization(RESCALE, MEAN, STD)(model)
    scaled = np.stack([weight[:, channel] * (RESCALE / STD[channel]) for channel in range(3)], axis=1)
    shifted = bias - sum(weight[:, channel].sum(axis=(1, 2)) * ((MEAN[channel] - 127.5 * RESCALE) / STD[channel]) for channel in range(3))
    found = {name: model.graph.initializers[name].const_value.numpy() for name in ("w", "b")}
    np.testing.assert_array_equal(found["w"], scaled.astype(np.float32))
    np.testing.assert_allclose(found["b"], shifted, rtol=6e-8, atol=1e-15)  # half of float32's last place; float64 sums differ by 1e-16


@pytest.mark.unit
def test_where_the_middle_is_all_there_is_to_subtract_the_numbers_stay(weighted):
    model = weighted(ACTS["as traced"], "w b")
    before = {name: model.graph.initializers[name].const_value.numpy() for name in ("w", "b")}
    FoldNormalization(1.0, (127.5, 127.5, 127.5), (1.0, 1.0, 1.0))(model)
    for name, numbers in before.items():
        np.testing.assert_array_equal(model.graph.initializers[name].const_value.numpy(), numbers)


@pytest.mark.parametrize("text", LEFT.values(), ids=LEFT)
def test_anything_else_is_left_alone(text, weighted, run, written):
    model = weighted(text, "w b")
    before, numbers = written(model), run(model)
    assert not FoldNormalization(RESCALE, MEAN, STD)(model).modified
    assert written(model) == before
    np.testing.assert_array_equal(run(model)[0], numbers[0])


@pytest.mark.unit
@pytest.mark.parametrize("weights", ["w", "b"])
def test_a_weight_that_is_not_constant_is_left_alone(weights, weighted, written):
    model = weighted(ACTS["as traced"], weights)
    before = written(model)
    assert not FoldNormalization(RESCALE, MEAN, STD)(model).modified
    assert written(model) == before


@pytest.mark.unit
def test_numbers_are_multiplied_only_when_somebody_reads_them(weighted):
    def read() -> ir.TensorProtocol:
        raise AssertionError("a weight was read")

    model = weighted(ACTS["as traced"], "w b")
    for name in ("w", "b"):
        value = model.graph.initializers[name]
        value.const_value = ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=value.shape, name=name)
    assert FoldNormalization(RESCALE, MEAN, STD)(model).modified


@pytest.mark.unit
def test_a_second_run_finds_nothing(weighted, written):
    model = weighted(ACTS["as traced"], "w b")
    FoldNormalization(RESCALE, MEAN, STD)(model)
    before = written(model)
    again = FoldNormalization(RESCALE, MEAN, STD)
    assert not again(model).modified
    assert not again.folded
    assert written(model) == before


@pytest.mark.unit
def test_a_model_with_local_functions_is_refused_and_told_to_inline_first(with_function):
    with pytest.raises(ir.passes.PreconditionError, match="InlinePass"):
        FoldNormalization(RESCALE, MEAN, STD)(with_function(ACTS["as traced"]))


def test_a_network_computes_from_pixels_what_it_computed_from_normalised_images(random_network, simplified):
    model = random_network()
    graph = simplified(model, 18)
    prepared = dataclasses.replace(Preprocessing.paper(*model.config.img_size), rescale=RESCALE, mean=MEAN, std=STD)
    assert FoldNormalization(prepared.rescale, prepared.mean, prepared.std)(graph).modified
    pixels = golden_images(0, 60, *model.config.img_size)
    session = ort.InferenceSession(ir.to_proto(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(list(model.outputs), {"pixel_values": pixels.transpose(0, 3, 1, 2).astype(np.float32)})
    images = normalize(pixels, prepared)
    truth, single = float64_outputs(model, images), float32_outputs(model, images)
    for name, numbers in zip(model.outputs, found, strict=True):
        scale = scale_of(truth[name])
        assert measure(truth[name], numbers, scale).rms < 2 * measure(truth[name], single[name], scale).rms  # what every file is held to
