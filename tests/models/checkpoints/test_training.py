"""Which weights `unwrap` takes out of a training checkpoint, under which names, and what it says of it."""

import io
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import raises_mentioning
from helpers import assert_mentions
from reference_cases import IN_REPOSITORY

from vit_models.checkpoints.files import open_checkpoint
from vit_models.checkpoints.plan import CheckpointFile, Options
from vit_models.checkpoints.training import clean_names
from vit_models.errors import CheckpointError

pytestmark = pytest.mark.unit

MODEL = {"cls_token": torch.ones(1, 1, 2), "head.weight": torch.zeros(3, 2)}
EMA = {name: tensor + 7 for name, tensor in MODEL.items()}


def prefixed(prefix: str, weights: dict[str, torch.Tensor] = MODEL) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


Open = Callable[..., CheckpointFile]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Opens what torch.save makes of a value."""

    def opened(value: Any, weights: str | None = None) -> CheckpointFile:
        path = tmp_path / "checkpoint.pth"
        torch.save(value, path)
        return open_checkpoint(path, Options(weights=weights))

    return opened


def is_model(file: CheckpointFile) -> bool:
    """True for the model's weights, False for the EMA's; nothing else is allowed."""
    assert file.tensors.keys() == MODEL.keys()
    first = float(file.read("cls_token")[0, 0, 0])
    assert first in (1, 8)
    return first == 1


# ---- reference checkpoints ---------------------------------------------------------------------------------------------------------------

WRAPPED = {
    "plain_state_dict.pth": (),
    "deit_training.pth": ("model", "model_ema"),
    "model_optimizer_epoch.pth": ("model",),
    "ddp.pth.tar": ("state_dict",),
    "ddp_compiled.pth": (),
    "lightning.ckpt": ("state_dict",),
    "timm_train.pth.tar": ("state_dict", "state_dict_ema"),
    "ema_only.safetensors": (),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_every_wrapper_holds_the_same_weights(name: str):
    """The same names as in the plain state dict, and its numbers, or those of the EMA where they are asked for or the only ones."""
    folder, keys = IN_REPOSITORY / "timm__wrappers", WRAPPED[name]
    plain, ema = open_checkpoint(folder / "plain_state_dict.pth"), open_checkpoint(folder / "ema_only.safetensors")
    file = open_checkpoint(folder / name)
    expected = ema if name == "ema_only.safetensors" else plain
    assert file.tensors == expected.tensors
    assert all(torch.equal(file.read(weight), expected.read(weight)) for weight in expected.tensors)
    assert file.documents["config.json"]["architecture"] == "vit_tiny_patch16_224"
    if len(keys) == 2:
        (note,) = file.notes
        assert_mentions(note, f"'{keys[0]}'", f"'{keys[1]}'", "--weights ema")
        asked = open_checkpoint(folder / name, Options(weights="ema"))
        assert all(torch.equal(asked.read(weight), ema.read(weight)) for weight in ema.tensors)
    else:
        assert file.notes == ()
        with raises_mentioning(CheckpointError, "EMA", "--weights", *(f"'{key}'" for key in keys)):
            open_checkpoint(folder / name, Options(weights="ema"))


def test_what_training_scripts_tell_of_the_model_is_kept():
    folder = IN_REPOSITORY / "timm__wrappers"
    assert open_checkpoint(folder / "timm_train.pth.tar").extras["arch"] == "vit_tiny_patch16_224"
    args = {"model": "vit_tiny_patch16_224", "lr": 0.001, "epochs": 10, "output_dir": "out"}
    assert open_checkpoint(folder / "deit_training.pth").extras["args"] == args
    assert open_checkpoint(IN_REPOSITORY / "dino__full_checkpoint" / "full_checkpoint.pth").extras["args"]["patch_size"] == 8


def test_of_dino_the_teacher_is_taken_and_the_student_on_request():
    path = IN_REPOSITORY / "dino__full_checkpoint" / "full_checkpoint.pth"
    whole = torch.load(path, weights_only=False)  # a file of our own making
    teacher, student = open_checkpoint(path), open_checkpoint(path, Options(weights="model"))
    assert_mentions(teacher.notes[0], "'student'", "'teacher'", "--weights model")
    assert_mentions(student.notes[0], "'student'", "'teacher'", "--weights ema")
    assert_mentions(teacher.notes[1], "'dino_loss'")
    assert teacher.tensors.keys() == student.tensors.keys() == whole["teacher"].keys()
    for name in teacher.tensors:
        assert torch.equal(teacher.read(name), whole["teacher"][name])
        assert torch.equal(student.read(name), whole["student"][f"module.{name}"])


def test_backbones_with_other_heads_keep_their_names():
    for case, name, head in (
        ("dinov2__linear_classifier_1", "linear_classifier.pth", "linear_head."),
        ("dino__full_checkpoint", "full_checkpoint.pth", "head."),
    ):
        names = open_checkpoint(IN_REPOSITORY / case / name).tensors
        assert "backbone.cls_token" in names
        assert any(name.startswith(head) for name in names)


# ---- model or EMA ------------------------------------------------------------------------------------------------------------------------

PAIRS: list[dict[str, Any]] = [
    {"model": MODEL, "model_ema": EMA},
    {"state_dict": MODEL, "state_dict_ema": EMA, "epoch": 1},
    {"state_dict": MODEL, "ema_state_dict": EMA},
    {"model": prefixed("module."), "model_ema": prefixed("module.", EMA) | {"n_averaged": torch.tensor(3)}},
    {"model": MODEL, "ema": {"module": EMA, "decay": 0.99}},
    {"state_dict": prefixed("model.") | prefixed("model_ema.module.", EMA)},
]
TEACHERS: list[dict[str, Any]] = [
    {"student": MODEL, "teacher": EMA},
    {"model": prefixed("student.backbone.") | prefixed("teacher.backbone.", EMA)},
    {"encoder": prefixed("module."), "target_encoder": prefixed("module.", EMA)},
    prefixed("module.student.") | prefixed("module.teacher.", EMA),
]


@pytest.mark.parametrize("checkpoint", PAIRS)
def test_the_models_own_weights_are_taken_unless_the_ema_is_asked_for(opened: Open, checkpoint: dict[str, Any]) -> None:
    assert is_model(opened(checkpoint))
    assert is_model(opened(checkpoint, "model"))
    assert not is_model(opened(checkpoint, "ema"))
    assert_mentions(opened(checkpoint).notes[0], "--weights ema")
    assert_mentions(opened(checkpoint, "ema").notes[0], "--weights model")


@pytest.mark.parametrize("checkpoint", TEACHERS)
def test_the_teacher_is_taken_unless_the_model_is_asked_for(opened: Open, checkpoint: dict[str, Any]) -> None:
    assert not is_model(opened(checkpoint))
    assert not is_model(opened(checkpoint, "ema"))
    assert is_model(opened(checkpoint, "model"))
    assert_mentions(opened(checkpoint).notes[0], "--weights model")


def test_an_ema_alone_is_taken_and_said(opened: Open) -> None:
    checkpoint = {"teacher": EMA, "epoch": 3}
    assert not is_model(opened(checkpoint))
    (note,) = opened(checkpoint).notes
    assert_mentions(note, "EMA", "'teacher'")
    with raises_mentioning(CheckpointError, "--weights", "'teacher'"):
        opened(checkpoint, "model")


@pytest.mark.parametrize(("checkpoint", "facts"), [(MODEL, ()), ({"model": MODEL}, ("'model'",))])
def test_an_ema_that_is_not_there_is_not_given(opened: Open, checkpoint: dict[str, Any], facts: tuple[str, ...]) -> None:
    with raises_mentioning(CheckpointError, "EMA", "--weights", *facts):
        opened(checkpoint, "ema")
    assert is_model(opened(checkpoint, "model"))


def test_other_wishes_are_refused(opened: Open) -> None:
    with raises_mentioning(CheckpointError, "'best'", "ema", "model"):
        opened(MODEL, "best")


@pytest.mark.parametrize("checkpoint", [{"model": MODEL, "state_dict": EMA}, {"model": MODEL, "ema": EMA, "model_ema": EMA}])
def test_several_sets_of_weights_are_not_guessed_between(opened: Open, checkpoint: dict[str, Any]) -> None:
    with raises_mentioning(CheckpointError, "weights", *(f"'{name}'" for name in list(checkpoint)[-2:])):
        opened(checkpoint)


def test_a_name_of_weights_that_holds_none_is_no_candidate(opened: Open) -> None:
    assert is_model(opened({"model": "vit_tiny", "module": {}, "state_dict": MODEL, "ema": None}))


def test_weights_beside_those_taken_are_named(opened: Open) -> None:
    notes = opened({"model": MODEL, "head": {"weight": torch.ones(1)}, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}).notes
    (note,) = notes
    assert_mentions(note, "'model'", "'head'")
    assert "optimizer" not in note


def test_weights_under_another_key_are_asked_for(opened: Open) -> None:
    with raises_mentioning(CheckpointError, "'mine'", "'epoch'"):
        opened({"mine": MODEL, "epoch": 3})


def test_wrappers_around_wrappers_end(opened: Open) -> None:
    assert is_model(opened({"model": {"module": {"state_dict": MODEL}}}))
    nested: dict[str, Any] = MODEL
    for _ in range(30):
        nested = {"model": nested}
    with pytest.raises(CheckpointError):
        opened(nested)


# ---- names -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    [
        *("", "module.", "_orig_mod.", "model.", "backbone.", "net.", "_fsdp_wrapped_module."),
        *("module._orig_mod.", "_orig_mod.module.", "model._orig_mod.backbone.", "module.model.", "teacher.backbone.", "student.module."),
    ],
)
def test_prefixes_of_wrappers_go_in_any_order(opened: Open, prefix: str) -> None:
    assert is_model(opened(prefixed(prefix)))


@pytest.mark.parametrize(
    ("stored", "clean"),
    [
        (["backbone.a", "linear_head.b"], ["backbone.a", "linear_head.b"]),
        (["module.backbone.a", "module.head.b"], ["backbone.a", "head.b"]),
        (["model.a", "criterion.b"], ["model.a", "criterion.b"]),
        (["blocks.0._checkpoint_wrapped_module.a", "norm._orig_mod.b"], ["blocks.0.a", "norm.b"]),
        (["vision_model.a", "vision_model.b"], ["vision_model.a", "vision_model.b"]),
        (["model.", "model.a"], ["model.", "model.a"]),
        ([], []),
    ],
)
def test_names_that_differ_in_front_stay(stored, clean):
    assert clean_names(stored) == dict(zip(clean, stored, strict=True))


def test_two_names_that_become_one_are_refused():
    with raises_mentioning(CheckpointError, "'_orig_mod.a'", "'a'"):
        clean_names(["a", "_orig_mod.a"])


# ---- values ------------------------------------------------------------------------------------------------------------------------------


def test_plain_values_are_kept_and_the_rest_left_out(opened: Open) -> None:
    args = Namespace(size=[1, 2], inner={"a": (1, "b")}, array=np.ones(3), none=None)
    kept: dict[str, Any] = {"arch": "vit", "epoch": 3, "best": 0.5, "done": True}
    dropped: dict[Any, Any] = {"long": "x" * 5000, "many": list(range(5000)), "half": "\ud800", 7: "seven", "scaler": {}, "odd": {3: 4}}
    extras = opened({"model": MODEL, "args": args, **kept, **dropped}).extras
    assert extras == {"args": {"size": [1, 2], "inner": {"a": [1, "b"]}}, **kept}


def test_plain_values_of_endless_depth_and_number_are_left_out(opened: Open) -> None:
    deep: Any = "x"
    for _ in range(100):
        deep = [deep]
    shared: Any = ["y"]
    for _ in range(60):
        shared = [shared, shared]  # a pickle of some hundred bytes for 2^60 values
    extras = opened({"model": MODEL, "deep": deep, "shared": shared}).extras
    assert len(str(extras)) < 1000


def test_numbers_between_the_tensors_are_no_weights(opened: Open) -> None:
    assert is_model(opened({**MODEL, "input_resolution": 224, "name": "vit", "bias": None}))
    with raises_mentioning(CheckpointError, "'history'", "list"):
        opened({**MODEL, "history": [1]})


def test_numpy_arrays_are_not_taken_for_tensors(tmp_path):
    stream = io.BytesIO()
    torch.save({**MODEL, "array": np.ones(2)}, stream)
    (tmp_path / "a.pth").write_bytes(stream.getvalue())
    with raises_mentioning(CheckpointError, "'array'", "numpy"):
        open_checkpoint(tmp_path / "a.pth")
