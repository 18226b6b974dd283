"""The sources' documents become recipes that the runtime takes, for the network's own size, or are refused by the entry that is wrong."""

from typing import Any

import pytest
from checkpoint_files import raises_mentioning

from vit_models.checkpoints.documents import Document
from vit_models.checkpoints.imagenet import imagenet_labels
from vit_models.checkpoints.preprocessing import IMAGENET, OPENAI, from_hugging_face, from_open_clip, from_timm, recipe, resized, top_left
from vit_models.errors import CheckpointError
from vit_runtime.preprocess import CoverResize, ExactResize, Preprocessing, ShortestEdgeResize

pytestmark = pytest.mark.unit

BIT = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}


def read(document: dict[str, Any], size: tuple[int, int]) -> Preprocessing:
    """Through the runtime, there and back: what it reads is what was meant, and the pictures have the network's size."""
    spec = Preprocessing.from_dict(document)
    assert spec.to_dict() == document
    assert spec.output_size == size
    return spec


@pytest.mark.parametrize("size", [(224, 224), (256, 192), (518, 518)])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_source_gives_a_recipe_of_the_networks_size(size: tuple[int, int], channels: int) -> None:
    """Whatever size and channels the document is about."""
    documents = [recipe(name, size, channels) for name in ("paper", "siglip", "imagenet", "imagenet_bilinear", "clip")]
    documents += [from_timm({"mean": [0.5] * 3, "std": [0.5], "crop_mode": mode}, size, channels) for mode in ("center", "squash")]
    documents += [from_hugging_face(document, size, channels=channels) for document in ({}, {"image_processor_type": "DeiTImageProcessor"})]
    if channels == 3:
        documents += [from_open_clip({"resize_mode": mode}, size) for mode in ("shortest", "squash")]
        documents += [from_hugging_face(BIT, size), from_hugging_face({}, size, "clip")]
    for document in documents:
        assert read(document, size).channels == channels


def test_another_size_shows_the_same_part_of_the_picture() -> None:
    """The resize keeps its ratio to the crop; a size that is not square is covered."""
    assert read(from_hugging_face(BIT, (448, 448)), (448, 448)).resize == ShortestEdgeResize(512)
    assert read(from_hugging_face(BIT, (224, 336)), (224, 336)).resize == CoverResize(256, 384)
    assert read(from_hugging_face({"image_processor_type": "DeiTFeatureExtractor"}, (112, 336)), (112, 336)).resize == ExactResize(128, 384)
    assert read(from_timm({"crop_pct": 0.9}, (384, 384)), (384, 384)).resize == ShortestEdgeResize(426)
    assert read(from_timm({"crop_pct": 0.9}, (32, 48)), (32, 48)).resize == CoverResize(35, 53)
    assert read(from_timm({"crop_pct": 0.9, "crop_mode": "squash"}, (32, 48)), (32, 48)).resize == ExactResize(35, 53)
    assert read(recipe("imagenet", (518, 518)), (518, 518)).resize == ShortestEdgeResize(592)


@pytest.mark.parametrize("size", [(30, 30), (30, 46)])
def test_what_patches_do_not_cover_is_cut_off_below_and_on_the_right(size: tuple[int, int]) -> None:
    """Of every source's images; at another size, which the patches divide, nothing is."""
    seen = (24, 40) if size[0] != size[1] else (24, 24)
    for document in [
        from_timm({"crop_pct": 0.9}, size),
        from_timm({"crop_pct": 1.0, "crop_mode": "squash"}, size),
        from_open_clip({"resize_mode": "squash"}, size),
        from_hugging_face({}, size, "siglip"),
        from_hugging_face(BIT, size),
    ]:
        assert top_left(document, size) == document
        spec = read(top_left(document, seen), seen)
        assert spec.crop_of == size
        whole = Preprocessing.from_dict(document)
        assert (spec.resize, spec.interpolation) == (whole.resize, whole.interpolation)
        larger = (size[0] * 2, size[1] * 2)
        again = read(resized(Document("x", top_left(document, seen)), seen, larger), larger)
        assert again.crop_of is None
        assert again == read({**resized(Document("x", document), size, larger), "crop": again.to_dict()["crop"]}, larger)


def test_a_document_of_the_networks_own_size_is_taken_as_it_stands() -> None:
    """A crop that is not square, and one that is larger than the edge: transformers computes them, so nothing is made even."""
    document = {**BIT, "size": {"shortest_edge": 40}, "crop_size": {"height": 48, "width": 32}}
    spec = read(from_hugging_face(document, (48, 32)), (48, 32))
    assert (spec.resize, spec.crop_rounding) == (ShortestEdgeResize(40), "floor")


def test_what_a_document_leaves_out_is_as_the_library_has_it() -> None:
    """timm: bicubic, 0.875, ImageNet's statistics; Hugging Face: by the processor, and by the model's type where none is named."""
    spec = read(from_timm({}, (224, 224)), (224, 224))
    assert (spec.resize, spec.interpolation, spec.mean, spec.std) == (ShortestEdgeResize(256), "bicubic", *IMAGENET)
    assert spec.crop_rounding == "half_even"
    for model_type, size, interpolation, mean in [
        ("vit", ExactResize(224, 224), "bilinear", (0.5, 0.5, 0.5)),
        ("deit", ExactResize(256, 256), "bicubic", (0.5, 0.5, 0.5)),
        ("clip", ShortestEdgeResize(224), "bicubic", OPENAI[0]),
        ("siglip", ExactResize(224, 224), "bicubic", (0.5, 0.5, 0.5)),
        ("dinov2", ShortestEdgeResize(224), "bicubic", OPENAI[0]),
        ("dinov3_vit", ExactResize(224, 224), "bilinear", IMAGENET[0]),
    ]:
        spec = read(from_hugging_face({}, (224, 224), model_type), (224, 224))
        assert (spec.resize, spec.interpolation, spec.mean) == (size, interpolation, mean), model_type


def test_a_grey_network_has_the_mean_of_what_its_family_subtracts() -> None:
    """Where no document says other values; three equal ones are one."""
    for document in (recipe("imagenet", (32, 32), 1), from_timm({"input_size": [1, 32, 32]}, (32, 32))):
        spec = read(document, (32, 32))
        assert (spec.color, spec.mean, spec.std) == ("L", ((0.485 + 0.456 + 0.406) / 3,), ((0.229 + 0.224 + 0.225) / 3,))
    assert from_timm({"mean": [0.4] * 3, "std": [0.3]}, (32, 32), channels=1)["mean"] == [0.4]


def test_steps_that_a_document_switches_off_change_nothing() -> None:
    """Without resizing, pictures of the right size stay as they are; without normalising, they stay in [0, 1]."""
    spec = read(from_hugging_face({"do_resize": False, "do_normalize": False}, (32, 48)), (32, 48))
    assert (spec.resize, spec.crop, spec.mean, spec.std) == (ExactResize(32, 48), None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("document", "facts"),
    [
        ({"image_processor_type": "LevitImageProcessor"}, ("LevitImageProcessor", "ViTImageProcessor")),
        ({"image_processor_type": 3}, ("image_processor_type", 3, "text")),
        ({"size": "224"}, ("size", "'224'")),
        ({"size": {"shortest_edge": 224}}, ("shortest edge",)),
        ({"size": {"shortest_edge": 224, "longest_edge": 300}}, ("height", "width", "shortest_edge", 300)),
        ({"size": {"height": "x", "width": 3}}, ("height", "'x'")),
        ({"do_resize": False, "do_center_crop": True}, ("crops", "resizing")),
        ({"do_center_crop": True, "crop_size": {"shortest_edge": 3}}, ("crop_size", "height", "width", "{'shortest_edge': 3}")),
        ({"do_center_crop": True, "crop_size": {"height": 0, "width": 3}}, ("crop_size", "height", 0, 3)),
        ({"do_center_crop": True, "size": 2**30}, (65536,)),
        ({"do_pad": True}, ("do_pad", "True")),
        ({"do_resize": "yes"}, ("do_resize", "'yes'", "true", "false")),
        ({"resample": 9}, ("resample", 9, "Pillow")),
        ({"resample": [3]}, ("resample", "[3]")),
        ({"image_mean": [0.5, 0.4]}, ("image_mean", "[0.5, 0.4]", 3)),
        ({"image_mean": []}, ("image_mean", "[]", 3)),
        ({"image_mean": {"r": 1}}, ("image_mean", "{'r': 1}")),
        ({"image_std": [0.5, 0.0, 0.5]}, ("[0.5, 0.0, 0.5]", 0)),
        ({"rescale_factor": 0}, ("0.0",)),
        ({"rescale_factor": float("nan")}, ("rescale_factor", "nan")),
    ],
)
def test_what_no_hugging_face_document_may_say(document: dict[str, Any], facts: tuple[object, ...]) -> None:
    """One line that names the entry."""
    with raises_mentioning(CheckpointError, *facts):
        from_hugging_face(document, (32, 32))


@pytest.mark.parametrize(
    ("cfg", "facts"),
    [
        ({"crop_mode": "border"}, ("crop_mode", "'border'", "center", "squash")),
        ({"crop_pct": -1}, ("crop_pct", -1)),
        ({"crop_pct": 1e-9}, (65536,)),
        ({"interpolation": "random"}, ("interpolation", "'random'", "nearest")),
        ({"input_size": "3"}, ("input_size", "'3'", "channels", "height", "width")),
        ({"input_size": [2, 32, 32], "mean": [0.5], "std": [0.5]}, ("channels", 2, 3, 1)),
        ({"input_size": [1, 32, 32], "mean": [0.4, 0.5, 0.6]}, ("mean", "[0.4, 0.5, 0.6]", 1)),
        ({"mean": [0.1, "x", 0.3]}, ("mean", "'x'")),
    ],
)
def test_what_no_timm_configuration_may_say(cfg: dict[str, Any], facts: tuple[object, ...]) -> None:
    """Modes that the runtime does not have, and values of other kinds."""
    with raises_mentioning(CheckpointError, *facts):
        from_timm(cfg, (32, 32))


def test_open_clips_longest_edge_is_refused() -> None:
    """It pads."""
    with raises_mentioning(CheckpointError, "resize_mode", "'longest'", "shortest", "squash"):
        from_open_clip({"resize_mode": "longest"}, (32, 32))


def test_the_imagenet_classes_are_a_thousand_different_names_in_their_order() -> None:
    """By the numbers that everybody knows."""
    labels = imagenet_labels()
    assert len(set(labels)) == 1000
    assert {number: labels[number] for number in (0, 1, 207, 282, 291, 340, 388, 817, 999)} == {
        0: "tench",
        1: "goldfish",
        207: "golden retriever",
        282: "tiger cat",
        291: "lion",
        340: "zebra",
        388: "giant panda",
        817: "sports car",
        999: "toilet tissue",
    }
