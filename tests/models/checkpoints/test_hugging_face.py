"""Checkpoints of Hugging Face transformers give transformers' own numbers, at shapes that no fixture has, and say why when they cannot."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from checkpoint_files import raises_mentioning
from helpers import assert_mentions
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers_models import MODELS, VIT, output_names, randomize

from vit_models import CheckpointError, ConfigError, Options, ViT, inspect, load
from vit_models.checkpoints import hugging_face
from vit_models.checkpoints.plan import CheckpointFile, Plan, TensorInfo
from vit_runtime.preprocess import Preprocessing, preprocess

pytestmark = pytest.mark.unit

# Both sides compute in float64; resampled tables and rotary angles are rounded to float32 all the same.
TOLERANCE = 5e-6


@pytest.mark.parametrize("old_names", [True, False], ids=["old names", "new names"])
@pytest.mark.parametrize("name", MODELS)
def test_the_network_gives_the_numbers_of_transformers(name: str, old_names: bool, tmp_path: Path) -> None:
    """Logits, embedding and tokens, at the trained size and at others, whichever names the weights were saved under."""
    case = MODELS[name]
    source = case.model().eval()
    randomize(source, seed=len(name))
    source.save_pretrained(tmp_path, save_original_format=old_names)
    options = Options(img_size=case.size if case.resampled else None)
    ours, spec = load(tmp_path, options, outputs=output_names(inspect(tmp_path, options).config.num_classes))
    assert spec.config.img_size == case.size
    assert spec.arch == type(source).__name__
    rows, columns = case.size
    images = torch.randn(2, spec.config.in_chans, rows + case.cut, columns + case.cut, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        expected = case.outputs(copy.deepcopy(source).double(), images)
        found = dict(zip(ours.outputs, ours.double()(images[:, :, :rows, :columns]), strict=True))
    assert found.keys() == expected.keys()
    for output, value in expected.items():
        torch.testing.assert_close(found[output], value, rtol=0, atol=TOLERANCE, msg=f"{output} differs")


@pytest.mark.parametrize("name", ["clip, vision model", "siglip, vision model"])
def test_a_bare_tower_may_have_the_prefix_that_transformers_4_wrote(name: str, tmp_path: Path) -> None:
    MODELS[name].model().save_pretrained(tmp_path)
    plain = load(tmp_path)[0].state_dict()
    weights = load_file(tmp_path / "model.safetensors")
    assert not any(name.startswith("vision_model.") for name in weights)
    save_file({f"vision_model.{name}": value for name, value in weights.items()}, tmp_path / "model.safetensors")
    torch.testing.assert_close(load(tmp_path)[0].state_dict(), plain, rtol=0, atol=0)


def test_the_attention_is_that_of_the_last_layer(tmp_path: Path) -> None:
    """With relative positions, whose bias the class token's row has, too."""
    source = MODELS["beit"].model().eval()
    source.set_attn_implementation("eager")
    randomize(source, seed=3)
    source.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = source(images, output_attentions=True).attentions[-1][:, :, 0, 1:]
        found = load(tmp_path, outputs=["attention"])[0](images)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


# ---- config.json ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A classifier of five classes, on its way to the hub."""
    config = hf.ViTConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, image_size=16, patch_size=8)
    config.num_labels = 5
    hf.ViTForImageClassification(config).save_pretrained(tmp_path)
    return tmp_path


def edit(folder: Path, **changes: Any) -> None:
    """Other values in config.json; None leaves a key out."""
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def test_labels_are_the_names_of_id2label(saved: Path) -> None:
    names = ["ant", "bee", "cat", "dog", "eel"]
    edit(saved, id2label={str(index): name for index, name in enumerate(names)})
    assert inspect(saved).labels == tuple(names)


def test_placeholders_are_no_labels(saved: Path) -> None:
    edit(saved, id2label={str(index): f"LABEL_{index}" for index in range(5)})
    assert inspect(saved).labels is None
    edit(saved, id2label=None)
    assert inspect(saved).labels is None


def test_a_class_that_is_not_named_is_told_by_its_head(saved: Path) -> None:
    edit(saved, architectures=None)
    assert inspect(saved).arch == "ViTForImageClassification"


def test_a_bare_encoder_has_no_labels_and_no_head(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "image_size": 14, "num_labels": 4}
    hf.Dinov2Model(hf.Dinov2Config(**fields)).save_pretrained(tmp_path)
    spec = inspect(tmp_path)
    assert (spec.labels, spec.config.num_classes) == (None, 0)
    assert spec.ignored.keys() == {"embeddings.mask_token"}


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"model_type": "bert"}, ("model_type", "'bert'", "vit", "deit")),
        ({"model_type": "siglip2"}, ("NaFlex", "siglip")),
        ({"model_type": 7}, ("model_type", 7, "text")),
        ({"model_type": None}, ("config.json", "model_type")),
        ({"architectures": ["ViTForDepth"]}, ("architectures", "['ViTForDepth']", "ViTModel", "ViTForImageClassification")),
        ({"architectures": "ViTModel"}, ("architectures", "'ViTModel'", "ViTForImageClassification")),
        ({"hidden_act": "gelu_magic"}, ("hidden_act", "'gelu_magic'", "gelu")),
        ({"hidden_act": {"name": "gelu"}}, ("hidden_act", "{'name': 'gelu'}", "text")),
        ({"layer_norm_eps": "tiny"}, ("layer_norm_eps", "'tiny'")),
        ({"layer_norm_eps": 0}, ("layer_norm_eps", "0.0")),
        ({"qkv_bias": "yes"}, ("qkv_bias", "'yes'", "true", "false")),
        ({"qkv_bias": False}, ("unexpected", "vit.encoder.layer.0.attention.attention.key.bias")),
        ({"id2label": {"0": "ant", "1": "bee"}}, ("id2label", 2, "classifier.weight", 5)),
        ({"id2label": {"0": "ant", "2": "bee"}}, ("id2label", "{'0': 'ant', '2': 'bee'}", 0)),
        ({"id2label": ["ant", "bee"]}, ("id2label", "JSON")),
        ({"patch_size": [8, 4]}, ("patch_size", "[8, 4]")),
        ({"patch_size": 0}, ("patch_size", 0)),
        ({"image_size": [16, 16, 3]}, ("image_size", "[16, 16, 3]", "[height, width]")),
        ({"image_size": 4}, ("height", 0)),
        ({"image_size": 32}, ("vit.embeddings.position_embeddings", "(1, 5, 24)", "(1, 17, 24)")),
        ({"num_attention_heads": 5}, ("embed_dim", 24, 5)),
        ({"num_hidden_layers": 1}, ("unexpected", "vit.encoder.layer.1.attention.attention.key.bias")),
        ({"num_hidden_layers": 3}, ("missing", "vit.encoder.layer.2.attention.attention.key.bias")),
        ({"num_hidden_layers": 10**9}, ("depth", 10**9)),
        ({"hidden_size": 10**12}, ("hidden_size", 10**12)),
    ],
)  # fmt: skip
def test_a_config_that_no_network_has_is_refused_by_name(saved: Path, changes: dict[str, Any], facts: tuple[object, ...]) -> None:
    edit(saved, **changes)
    with raises_mentioning(CheckpointError, *facts):
        load(saved)


def test_weights_without_a_config_are_refused(saved: Path) -> None:
    (saved / "config.json").unlink()
    with raises_mentioning(CheckpointError, "config.json"):
        inspect(saved)


def test_a_missing_head_is_missed_by_name(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    save_file({name: value for name, value in weights.items() if "classifier" not in name}, saved / "model.safetensors")
    with raises_mentioning(CheckpointError, "missing", "classifier.bias", "classifier.weight"):
        inspect(saved)


def test_what_config_json_says_is_not_asked_for(saved: Path) -> None:
    with raises_mentioning(CheckpointError, "--model-arg num_heads", "config.json"):
        inspect(saved, Options(model_args={"num_heads": "3"}))


@pytest.mark.parametrize(
    ("model", "facts"),
    [
        (lambda: hf.ViTModel(hf.ViTConfig(**VIT, image_size=8, pooler_act="relu")), ("pooler_act", "'relu'", "tanh")),
        (lambda: hf.Dinov2Model(hf.Dinov2Config(**VIT, image_size=[8, 16])), ("image_size", "[8, 16]", "square")),
    ],
)
def test_a_model_that_the_network_cannot_be_is_refused(
    model: Callable[[], hf.PreTrainedModel], facts: tuple[object, ...], tmp_path: Path
) -> None:
    model().save_pretrained(tmp_path)
    with raises_mentioning(CheckpointError, *facts):
        inspect(tmp_path)


def test_a_pooler_that_the_classifier_does_not_read_is_ignored(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    save_file(weights | {"vit.pooler.dense.weight": torch.ones(24, 24)}, saved / "model.safetensors")
    ignored = inspect(saved).ignored
    assert ignored.keys() == {"vit.pooler.dense.weight"}
    assert_mentions(ignored["vit.pooler.dense.weight"], "ViTForImageClassification", "pooler")


# ---- images --------------------------------------------------------------------------------------------------------------------------


def test_images_are_prepared_as_preprocessor_config_says_at_the_size_to_run_at(saved: Path) -> None:
    hf.ViTImageProcessor(size={"height": 16, "width": 16}, resample=3, image_mean=[0.1, 0.2, 0.3]).save_pretrained(saved)
    spec = inspect(saved, Options(img_size=(24, 32)))
    assert spec.preprocessing is not None
    assert spec.preprocessing["resize"] == {"mode": "exact", "height": 24, "width": 32}
    assert (spec.preprocessing["interpolation"], spec.preprocessing["mean"]) == ("bicubic", [0.1, 0.2, 0.3])
    (note,) = spec.notes
    assert_mentions(note, "16 x 16", "24 x 32")


def test_images_are_prepared_as_the_processor_of_both_towers_says() -> None:
    """transformers 5 saves it inside processor_config.json."""
    nested = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224}, "image_std": [0.1, 0.2, 0.3]}
    documents = {"config.json": {"model_type": "clip"}, "processor_config.json": {"image_processor": nested}}
    file = CheckpointFile(Path("hub"), "safetensors", {}, lambda name: torch.zeros(1), documents)
    prepared = hugging_face.plan(file, Options()).preprocessing
    assert prepared is not None
    assert prepared["std"] == [0.1, 0.2, 0.3]


def test_a_folder_without_a_preparation_gets_its_familys_and_says_so(saved: Path) -> None:
    spec = inspect(saved)
    assert spec.preprocessing is not None
    assert (spec.preprocessing["interpolation"], spec.preprocessing["mean"]) == ("bilinear", [0.5, 0.5, 0.5])
    assert any("preprocessor_config.json" in note for note in spec.notes)


def test_images_of_another_size_than_the_trained_one_are_told_of(saved: Path) -> None:
    """As in facebook/dinov2-base, trained at 518 and fed 224."""
    processor = {"do_center_crop": True, "crop_size": {"height": 8, "width": 24}, "size": {"shortest_edge": 32}}
    (saved / "preprocessor_config.json").write_text(json.dumps(processor))
    (note,) = inspect(saved).notes
    assert_mentions(note, "16 x 16", "preprocessor_config.json", "8 x 24", "--img-size 8,24")
    (note,) = inspect(saved, Options(img_size=(8, 24))).notes
    assert_mentions(note, "16 x 16", "8 x 24")


@pytest.mark.parametrize("name", ["SiglipImageProcessor", "CLIPImageProcessor"])
def test_pixels_that_no_patch_covers_are_cut_off_the_prepared_image(name: str, tmp_path: Path) -> None:
    """As in google/siglip-so400m-patch14-384: 27 patches of 14 cover 378 pixels. From the photograph on, the pixels are transformers'."""
    source = hf.SiglipVisionModel(hf.SiglipVisionConfig(**(VIT | {"patch_size": 8}), image_size=30)).eval()
    randomize(source, seed=5)
    source.save_pretrained(tmp_path)
    sizes = {"size": {"height": 30, "width": 30}} if "Siglip" in name else {"size": {"shortest_edge": 33}, "crop_size": 30}
    processor = (getattr(hf, f"{name}Pil", None) or getattr(hf, name))(**sizes)
    processor.save_pretrained(tmp_path)
    model, spec = load(tmp_path, outputs=["embedding"])
    assert spec.config.img_size == (24, 24)
    (note,) = spec.notes
    assert_mentions(note, 8, "24 x 24", "30 x 30")
    pixels = torch.randint(256, (70, 53, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8).numpy()
    theirs = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    ours = torch.from_numpy(preprocess(pixels, Preprocessing.from_dict(spec.preprocessing)))[None]
    torch.testing.assert_close(ours, theirs[:, :, :24, :24], rtol=0, atol=2e-6)  # float32's rounding after each of three steps
    with torch.no_grad():
        torch.testing.assert_close(model(ours)[0], source(theirs).pooler_output, rtol=0, atol=1e-5)  # in float32
    with raises_mentioning(ConfigError, 30, 8, 24, 32):
        inspect(tmp_path, Options(img_size=(30, 30)))
    asked = inspect(tmp_path, Options(img_size=(32, 32))).preprocessing
    assert asked is not None
    assert Preprocessing.from_dict(asked).crop_of is None


# ---- published configurations --------------------------------------------------------------------------------------------------------


def planned(config: dict[str, Any], *names: str) -> Plan:
    """The plan for a config.json and a few of the tensors beside it."""
    tensors = {name: TensorInfo((1,), "F32") for name in names}
    file = CheckpointFile(Path("hub"), "safetensors", tensors, lambda name: torch.zeros(1), {"config.json": config})
    return hugging_face.plan(file, Options())


def test_an_old_clip_config_means_its_vision_config_dict() -> None:
    """transformers takes openai/clip-vit-large-patch14's second document over the first, and its defaults where it is silent."""
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14}
    config = {"model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": 768, "vision_config": {"hidden_size": 512}}
    plan = planned(config | {"vision_config_dict": sizes}, "vision_model.embeddings.class_embedding")
    found = plan.config
    assert (found.embed_dim, found.depth, found.num_heads, found.mlp_dim, found.patch_size) == (1024, 24, 16, 4096, 14)
    assert (found.activation, found.layer_norm_eps, found.num_classes, found.projection) == ("quick_gelu", 1e-5, 768, True)


def test_what_config_json_leaves_out_has_the_default_of_its_model_type() -> None:
    """As in google/siglip2-base-patch16-224, whose vision_config holds next to nothing."""
    found = planned({"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model"}}).config
    assert (found.embed_dim, found.depth, found.img_size, found.patch_size) == (768, 12, (224, 224), 16)
    assert (found.activation, found.layer_norm_eps, found.pool) == ("gelu_tanh", 1e-6, "map")
    assert planned({"model_type": "vit"}).config.layer_norm_eps == 1e-12
    assert planned({"model_type": "vit_msn"}).config.layer_norm_eps == 1e-6
    assert planned({"model_type": "dinov2"}).config.patch_size == 14
    assert planned({"model_type": "dinov3_vit"}).config.embed_dim == 384


def test_buffers_of_older_versions_are_ignored() -> None:
    """position_ids and relative_position_index, which transformers once saved."""
    clip_plan = planned({"model_type": "clip"}, "vision_model.embeddings.position_ids", "text_model.embeddings.position_ids")
    assert clip_plan.ignored.keys() == {"vision_model.embeddings.position_ids", "text_model.embeddings.position_ids"}
    assert_mentions(clip_plan.ignored["text_model.embeddings.position_ids"], "text")
    index = "beit.encoder.layer.0.attention.attention.relative_position_bias.relative_position_index"
    assert planned({"model_type": "beit", "use_relative_position_bias": True}, index).ignored.keys() == {index}


def test_weights_are_shared_by_no_two_parameters(saved: Path) -> None:
    model, _ = load(saved)
    assert isinstance(model, ViT)
    assert len({value.data_ptr() for value in model.parameters()}) == len(list(model.parameters()))
