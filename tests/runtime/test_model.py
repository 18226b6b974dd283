"""A loaded model takes images in every form that users have them in, one or many, and refuses what it cannot use in one line."""

import dataclasses
import io
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import assert_mentions, assert_refused_after_a_fork, one_line
from onnx import numpy_helper
from PIL import Image

import vit_runtime as vit
import vit_runtime.model
from vit_runtime.errors import ImageError, InputError, ModelError, ProviderError, SessionError
from vit_runtime.manifest import KEY, Manifest
from vit_runtime.model import BATCH_SIZE, Model, Prediction
from vit_runtime.preprocess import pixel_values
from vit_runtime.providers import create_session
from vit_runtime.threads import physical_cores


def assert_close(actual: Any, expected: Any) -> None:
    """The same but for float32 sums in another order at another batch size: a few units in the last place of numbers around 1."""
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="session")
def model(tiny_model: Path) -> Model:
    return vit.load(tiny_model, "cpu")


@pytest.fixture(scope="session")
def embedder(tiny_embedder: Path) -> Model:
    return vit.load(tiny_embedder, "cpu")


@pytest.fixture(scope="session")
def pictures() -> list[np.ndarray]:
    """21 pictures of different sizes, uint8 (H, W, 3)."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (rng.integers(20, 60), rng.integers(20, 60), 3), dtype=np.uint8) for _ in range(21)]


def inputs(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, 32, 32)).astype(np.float32)


def prediction(*logits: float, labels: tuple[str, ...] | None = None) -> Prediction:
    return Prediction(np.array(logits, np.float32), labels)


# ---- loading -------------------------------------------------------------------------------------------------------------------------


def test_a_loaded_model_knows_its_file_its_manifest_and_what_runs_it(model: Model, tiny_model: Path, tiny_manifest: Manifest):
    assert model.path == tiny_model
    assert model.manifest.to_json() == tiny_manifest.to_json()
    assert model.file.metadata[KEY] == tiny_manifest.to_json()
    assert model.provider == "cpu"
    assert model.threads == physical_cores()


def test_a_path_may_be_text(tiny_model: Path):
    assert vit.load(str(tiny_model), "cpu").path == tiny_model


def test_threads_are_those_asked_for(tiny_model: Path, model: Model):
    single = vit.load(tiny_model, "cpu", threads=1)
    assert single.threads == 1
    assert_close(single.run(inputs(3))["logits"], model.run(inputs(3))["logits"])


@pytest.mark.parametrize("threads", [0, -1, 10**6, 1.5, True])
def test_impossible_numbers_of_threads_are_refused(threads: Any, tiny_model: Path):
    with pytest.raises(InputError) as error:
        vit.load(tiny_model, "cpu", threads)
    assert_mentions(one_line(error), "threads", threads)


def test_every_node_runs_on_the_cpu(model: Model):
    placement = model.placement()
    assert placement
    assert {node.provider for node in placement} == {"cpu"}


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_does_not_run_here_is_an_error_and_no_fallback(provider: str, tiny_model: Path):
    ort = pytest.importorskip("onnxruntime")
    if len(ort.get_available_providers()) > 2:
        pytest.skip("this onnxruntime was built with GPU providers")
    with pytest.raises(ProviderError) as error:
        vit.load(tiny_model, provider)
    assert_mentions(one_line(error), repr(provider), "pip")


def test_an_unknown_provider_is_refused_with_those_that_there_are(tiny_model: Path):
    with pytest.raises(InputError) as error:
        vit.load(tiny_model, "cuba")
    assert_mentions(one_line(error), "'cuba'", "auto, cpu, openvino, cuda, tensorrt, tensorrt-rtx", "'cuda'")


@pytest.mark.parametrize(("fixture", "provider"), [("tiny_int8", "cpu"), ("tiny_openvino", "openvino")])
def test_auto_leaves_a_gpu_that_would_run_a_part_of_the_file_on_the_cpu(
    fixture: str, provider: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
):
    """The session that is said to be CUDA's has all of its nodes on the CPU."""
    if provider == "openvino":
        pytest.importorskip("openvino")
    asked = list[str]()

    def opened(path: Path, name: str, threads: int | None, **options: Any) -> tuple[Any, str]:
        asked.append(name)
        return (create_session(path, "cpu", threads)[0], "cuda") if name == "auto" else create_session(path, name, threads, **options)

    monkeypatch.setattr(vit_runtime.model, "create_session", opened)
    assert vit.load(request.getfixturevalue(fixture)).provider == provider
    assert asked == ["auto", provider]


def test_auto_takes_what_works(tiny_model: Path):
    assert vit.load(tiny_model).provider in ("cpu", "cuda")


@pytest.mark.parametrize("content", [b"", b"no model", None])
def test_a_file_that_cannot_be_read_is_a_model_error(content: bytes | None, tmp_path: Path):
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError) as error:
        vit.load(path, "cpu")
    assert_mentions(one_line(error), path)


def test_external_weights_give_the_same_numbers(model: Model, tiny_external: Path):
    other = vit.load(tiny_external, "cpu")
    for name, values in model.run(inputs(3)).items():
        np.testing.assert_array_equal(other.run(inputs(3))[name], values)


# ---- run -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_run_gives_every_output_by_name_for_any_batch(batch: int, model: Model):
    outputs = model.run(inputs(batch))
    shapes = {"logits": (batch, 10), "embedding": (batch, 32), "tokens": (batch, 17, 32), "attention": (batch, 2, 16)}
    assert {name: values.shape for name, values in outputs.items()} == shapes
    assert all(values.dtype == np.float32 for values in outputs.values())


def test_an_image_gets_the_same_numbers_in_any_company(model: Model):
    together, batch = model.run(inputs(5)), inputs(5)
    for row in range(5):
        for name, values in model.run(batch[row : row + 1]).items():
            assert_close(values[0], together[name][row])


def test_input_that_is_not_contiguous_is_taken_as_it_is(model: Model):
    channels_last = np.ascontiguousarray(inputs(2).transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(model.run(channels_last)["logits"], model.run(inputs(2))["logits"])


@pytest.mark.parametrize(
    ("given", "facts"),
    [
        (inputs(1).astype(np.float64), ("float64", "float32")),
        (inputs(1).astype(np.float16), ("float16", "float32")),
        (inputs(1).astype(">f4"), (">f4", "float32")),
        (np.zeros((1, 3, 32, 32), np.uint8), ("uint8", "float32")),
        (inputs(1).tolist(), ("list", "float32")),
        (None, ("NoneType", "float32")),
        (inputs(1)[0], ("(3, 32, 32)", "(batch, 3, 32, 32)")),
        (inputs(1)[:, :1], ("(1, 1, 32, 32)", "(batch, 3, 32, 32)")),
        (inputs(1)[..., :31], ("(1, 3, 32, 31)", "(batch, 3, 32, 32)")),
        (inputs(0), ("(0, 3, 32, 32)", "(batch, 3, 32, 32)")),
        (np.float32(1), ("float32", "numpy")),
    ],
    ids=["float64", "float16", "big-endian", "uint8", "list", "None", "one image", "grey", "narrow", "no image", "scalar"],
)
def test_input_of_another_type_or_shape_is_refused(given: Any, facts: tuple[str, ...], model: Model):
    with pytest.raises(InputError) as error:
        model.run(given)
    assert_mentions(one_line(error), *facts)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_is_refused(bad: float, model: Model):
    batch = inputs(3)
    batch[2, 1, 30, 7] = bad
    with pytest.raises(InputError) as error:
        model.run(batch)
    assert_mentions(one_line(error), "NaN", "Inf")


def test_a_graph_whose_output_has_another_shape_than_it_declares_is_found_out(tiny_model: Path, tmp_path: Path):
    """onnxruntime itself only logs it."""
    proto = onnx.load(tiny_model)
    node = next(node for node in proto.graph.node if "logits" in node.output)
    node.output[0] = "narrow"
    proto.graph.initializer.append(numpy_helper.from_array(np.arange(9), "nine"))
    proto.graph.node.append(onnx.helper.make_node("Gather", ["narrow", "nine"], ["logits"], axis=1))
    path = tmp_path / "liar.onnx"
    path.write_bytes(proto.SerializeToString())
    try:
        model = vit.load(path, "cpu")
    except ModelError:
        return  # a runtime that looks at shapes when it loads
    with pytest.raises(ModelError) as error:
        model.run(inputs(2))
    assert_mentions(one_line(error), path, "logits", "(2, 9)", "(2, 10)")


# ---- predict and embed ---------------------------------------------------------------------------------------------------------------


def test_an_image_is_the_same_in_every_form(model: Model, pictures: list[np.ndarray], tmp_path: Path):
    path, buffer = tmp_path / "image.png", io.BytesIO()
    Image.fromarray(pictures[0]).save(path)
    Image.fromarray(pictures[0]).save(buffer, "PNG")
    expected = model.predict(pictures[0])
    assert isinstance(expected, Prediction)
    for form in (path, str(path), buffer.getvalue(), Image.fromarray(pictures[0])):
        found = model.predict(form)
        assert isinstance(found, Prediction)
        np.testing.assert_array_equal(found.logits, expected.logits)
        np.testing.assert_array_equal(model.embed(form), model.embed(pictures[0]))


def test_one_gives_one_and_a_list_or_tuple_a_list(model: Model, pictures: list[np.ndarray]):
    alone = model.predict(pictures[3])
    for many in (pictures[:5], tuple(pictures[:5])):
        found = model.predict(many)
        assert isinstance(found, list)
        assert len(found) == 5
        assert_close(found[3].logits, alone.logits)
    embeddings = model.embed(pictures[:5])
    assert isinstance(embeddings, list)
    assert [vector.shape for vector in embeddings] == [(32,)] * 5
    assert model.embed(pictures[0]).shape == (32,)
    assert model.embed(pictures[0]).dtype == np.float32


@pytest.mark.parametrize("empty", [[], ()])
def test_no_images_give_no_predictions(empty: Any, model: Model):
    assert model.predict(empty) == []
    assert model.embed(empty) == []
    assert list(model.predict(iter(empty))) == []


def test_predictions_are_what_run_gives_for_the_prepared_images(model: Model, pictures: list[np.ndarray]):
    batch = model.run(pixel_values(pictures, model.manifest.preprocessing))
    predictions, embeddings = model.predict(pictures, batch_size=21), model.embed(pictures, batch_size=21)
    np.testing.assert_array_equal([found.logits for found in predictions], batch["logits"])
    np.testing.assert_array_equal(embeddings, batch["embedding"])


@pytest.mark.parametrize("batch_size", [1, 8, 20, 100])  # 21 images: whole batches, a rest of 5 and of 1, one batch
def test_the_batch_size_changes_nothing_but_the_speed(batch_size: int, model: Model, pictures: list[np.ndarray]):
    found = [prediction.logits for prediction in model.predict(pictures, batch_size)]
    assert_close(found, [prediction.logits for prediction in model.predict(pictures)])


@pytest.mark.parametrize("method", ["predict", "embed"])
@pytest.mark.parametrize("batch_size", [1, 4, BATCH_SIZE])
def test_an_iterator_is_read_on_only_a_batch_at_a_time(method: str, batch_size: int, model: Model, pictures: list[np.ndarray]):
    read = 0

    def source() -> Iterator[np.ndarray]:
        nonlocal read
        for picture in pictures:
            read += 1
            yield picture

    results = getattr(model, method)(source(), batch_size)
    assert read == 0
    for index, _ in enumerate(results):
        assert read == min(len(pictures), (index // batch_size + 1) * batch_size)
    assert read == index + 1 == len(pictures)


def test_an_endless_iterator_can_be_left(model: Model, pictures: list[np.ndarray]):
    def forever() -> Iterator[np.ndarray]:
        while True:
            yield pictures[0]

    assert isinstance(next(model.predict(forever())), Prediction)


def test_an_iterator_gives_all_before_the_broken_image(model: Model, pictures: list[np.ndarray]):
    images: list[np.ndarray | bytes] = [*pictures[:4], b"broken", *pictures[4:]]
    results = model.predict(iter(images), batch_size=2)
    assert [isinstance(next(results), Prediction) for _ in range(4)] == [True] * 4
    with pytest.raises(ImageError):
        next(results)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one_is_refused_before_anything_is_read(batch_size: int, model: Model):
    methods: tuple[Callable[..., object], ...] = (model.predict, model.embed)
    for method in methods:
        with pytest.raises(InputError) as error:
            method(iter([]), batch_size)
        assert_mentions(one_line(error), batch_size, 1)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (np.zeros((2, 8, 8, 3), np.uint8), InputError),
        (np.zeros((8, 8, 3), np.float32), InputError),
        (12, InputError),
        (None, InputError),
        ({"image": 1}, InputError),
        ("missing.jpg", ImageError),
        (b"\xff\xd8\xff", ImageError),
    ],
    ids=["batch", "floats", "number", "None", "dictionary", "missing", "broken"],
)
def test_what_is_no_image_is_refused(image: Any, kind: type[Exception], model: Model):
    for given in (image, [image]):
        with pytest.raises(kind) as error:
            model.predict(given)
        one_line(error)


def test_a_file_without_logits_embeds_and_says_so(embedder: Model, pictures: list[np.ndarray]):
    assert embedder.embed(pictures[0]).shape == (32,)
    with pytest.raises(InputError) as error:
        embedder.predict(iter([]))  # at once, not when the iterator is read
    assert_mentions(one_line(error), embedder.path, "embedding", "logits", "embed")


def test_a_file_without_an_embedding_says_how_to_get_one(tiny_projected: Path, pictures: list[np.ndarray]):
    model = vit.load(tiny_projected, "cpu")
    assert len(model.predict(pictures[0]).top(3)) == 3
    with pytest.raises(InputError) as error:
        model.embed(pictures[0])
    assert_mentions(one_line(error), tiny_projected, "logits, tokens", "--outputs embedding")


def test_a_file_whose_head_projects_embeds_what_it_projects_and_classifies_nothing(tiny_clip: Path, pictures: list[np.ndarray]):
    model = vit.load(tiny_clip, "cpu")
    projected = model.run(pixel_values(pictures, model.manifest.preprocessing))
    assert projected["embedding"].shape == (21, 32)
    np.testing.assert_array_equal(model.embed(pictures, batch_size=21), projected["logits"])
    assert model.embed(pictures[0]).shape == (24,)
    with pytest.raises(InputError) as error:
        model.predict(iter([]))
    assert_mentions(one_line(error), tiny_clip, "classes", "projects", "embed")


def test_what_stands_for_an_image_is_the_projection_where_it_is_put_out_else_the_embedding(tiny_manifest: Manifest):
    """The head's output is class scores or a representation, never both."""

    def of(projection: bool, *names: str) -> tuple[str | None, str | None]:
        outputs = tuple(output for output in tiny_manifest.outputs if output.name in names)
        model = {**tiny_manifest.model, "projection": projection}
        manifest = dataclasses.replace(tiny_manifest, model=model, outputs=outputs, labels=None)
        return manifest.class_scores, manifest.features

    assert of(False, "logits", "embedding") == ("logits", "embedding")
    assert of(False, "logits") == ("logits", None)
    assert of(False, "embedding", "tokens") == (None, "embedding")
    assert of(True, "logits", "embedding") == (None, "logits")
    assert of(True, "embedding") == (None, "embedding")
    assert of(True, "tokens") == (None, None)


# ---- predictions ---------------------------------------------------------------------------------------------------------------------


def test_labels_are_those_of_the_file_and_numbers_where_it_has_none(model: Model, tiny_projected: Path, pictures: list[np.ndarray]):
    top = model.predict(pictures[0]).top(10)
    assert model.manifest.labels is not None
    assert [label.name for label in top] == [model.manifest.labels[label.index] for label in top]
    bare = vit.load(tiny_projected, "cpu").predict(pictures[0]).top(10)
    assert [label.name for label in bare] == [str(label.index) for label in bare]


def test_probabilities_sum_to_one(model: Model, pictures: list[np.ndarray]):
    for found in model.predict(pictures):
        probabilities = found.probabilities
        assert probabilities.dtype == np.float64
        assert probabilities.shape == (10,)
        assert (probabilities > 0).all()
        assert abs(probabilities.sum() - 1) < 1e-12  # ten roundings of float64


@pytest.mark.unit
def test_probabilities_are_the_softmax_also_of_extreme_logits():
    np.testing.assert_allclose(prediction(0, np.log(3)).probabilities, [0.25, 0.75], rtol=1e-7)  # the logarithm is rounded to float32
    np.testing.assert_array_equal(prediction(3e38, 0, -3e38).probabilities, [1, 0, 0])
    np.testing.assert_array_equal(prediction(-3e38).probabilities, [1])


@pytest.mark.unit
def test_top_is_sorted_and_equal_ones_come_by_number():
    assert [label.index for label in prediction(1, 3, 2, 3, 1).top(5)] == [1, 3, 2, 0, 4]
    assert [label.index for label in prediction(*[0.0] * 1000).top(4)] == [0, 1, 2, 3]
    probabilities = [label.probability for label in prediction(1, 3, 2, 3, 1).top(5)]
    assert probabilities == sorted(probabilities, reverse=True)


@pytest.mark.unit
def test_top_of_more_classes_than_there_are_gives_them_all():
    assert [label.name for label in prediction(0, 1, labels=("no", "yes")).top()] == ["yes", "no"]


@pytest.mark.unit
@pytest.mark.parametrize("k", [0, -3])
def test_top_of_no_class_is_refused(k: int):
    with pytest.raises(InputError) as error:
        prediction(0, 1).top(k)
    assert_mentions(one_line(error), k, 1)


@pytest.mark.unit
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_give_no_prediction(bad: float):
    with pytest.raises(SessionError) as error:
        prediction(0, bad, 1).top()
    assert_mentions(one_line(error), "NaN", "Inf")


# ---- threads and processes -----------------------------------------------------------------------------------------------------------


def test_several_threads_at_once_get_the_numbers_of_one(model: Model, pictures: list[np.ndarray]):
    batches = [inputs(3, seed) for seed in range(6)]
    expected, images = [model.run(batch) for batch in batches], model.predict(pictures[:4])
    failures = list[str]()
    barrier = threading.Barrier(6)

    def work(index: int) -> None:
        barrier.wait()
        for _ in range(10):
            for name, values in model.run(batches[index]).items():
                if not np.array_equal(values, expected[index][name]):
                    failures.append(f"{name} of thread {index}")
        if any(not np.array_equal(a.logits, b.logits) for a, b in zip(model.predict(pictures[:4]), images, strict=True)):
            failures.append(f"predictions of thread {index}")

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert not failures


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_model_that_was_loaded_before_a_fork_says_so_instead_of_hanging(model: Model):
    assert_refused_after_a_fork(lambda: model.run(inputs(1)))


def test_a_model_does_not_need_its_file_after_it_was_loaded(tiny_model: Path, model: Model, tmp_path: Path):
    path = Path(shutil.copyfile(tiny_model, tmp_path / "gone.onnx"))
    copy = vit.load(path, "cpu")
    path.unlink()
    np.testing.assert_array_equal(copy.run(inputs(2))["logits"], model.run(inputs(2))["logits"])
