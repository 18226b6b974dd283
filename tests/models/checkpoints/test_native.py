"""A checkpoint comes back as it was saved; a file that is damaged, foreign or contradicts itself is one clear error."""

import dataclasses
import hashlib
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import without_folder
from helpers import assert_mentions, one_line
from networks import TINY, initialized
from safetensors.torch import save_file
from torch import Tensor

from vit_models import CheckpointError, Rope, ViT, load, save_checkpoint

pytestmark = pytest.mark.unit

CONFIG = dataclasses.replace(TINY, img_size=(16, 24), embed_dim=16, mlp_dim=24, num_classes=4)
LABELS = ["zero", "one", "two", "três"]


@pytest.fixture
def model() -> ViT:
    return initialized(CONFIG)


@pytest.fixture
def path(tmp_path: Path, model: ViT) -> Path:
    save_checkpoint(tmp_path / "vit.safetensors", model, LABELS, {"mean": [0.5, 0.5, 0.5]})
    return tmp_path / "vit.safetensors"


def facts(**changes: Any) -> dict[str, str]:
    """The metadata of a file; None removes an entry."""
    entries = {"config": dataclasses.asdict(CONFIG), **changes}
    return {"vit_deploy": json.dumps({name: value for name, value in entries.items() if value is not None})}


def refused(path: Path) -> str:
    """The message of the error when the file is loaded: one line that contains the path, here without the test's folder."""
    with pytest.raises(CheckpointError) as error:
        load(path)
    message = one_line(error)
    assert str(path) in message
    return without_folder(message)


def raw(path: Path, header: bytes, length: int | None = None, data: bytes = b"") -> Path:
    """A safetensors file by hand: the header's length in 8 bytes, the header, the values."""
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def test_a_checkpoint_comes_back_as_it_was_saved(path, model):
    loaded, spec = load(path)
    assert spec.config == loaded.config == CONFIG
    assert spec.format == "vit-deploy"
    assert spec.labels == tuple(LABELS)
    assert spec.preprocessing == {"mean": [0.5, 0.5, 0.5]}
    assert spec.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, values in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], values)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_classes": 0},
        {"pool": "mean"},
        {"pool": "mean", "class_token": False},
        {"representation_size": 12},
        {"layer_norm_eps": 1e-5},
        {"img_size": (40, 16)},
        {"rope": Rope(0.5, (2.0, 2.0), -1.0), "pos_embed": False, "num_registers": 2, "layer_scale": True},
        {"rope": Rope()},
        {"pool": "map", "class_token": False, "activation": "gelu_tanh", "final_norm": "aside"},
    ],
    ids=str,
)
def test_every_kind_of_network_comes_back(tmp_path, changes):
    model = initialized(dataclasses.replace(CONFIG, **changes))
    save_checkpoint(tmp_path / "vit.safetensors", model)
    loaded, spec = load(tmp_path / "vit.safetensors")
    assert spec.config == model.config
    assert (spec.labels, spec.preprocessing) == (None, None)
    assert all(torch.equal(values, model.state_dict()[name]) for name, values in loaded.state_dict().items())


def test_saving_twice_gives_the_same_bytes(tmp_path, path, model):
    save_checkpoint(tmp_path / "again.safetensors", model, LABELS, {"mean": [0.5, 0.5, 0.5]})
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


# --- files that are no checkpoints ------------------------------------------------------------------------------------


def test_a_file_cut_short_anywhere_is_refused(tmp_path, path):
    content = path.read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in [*range(0, 64, 3), *range(64, len(content), 997), len(content) - 1]:
        cut.write_bytes(content[:length])
        refused(cut)


def test_bytes_after_the_end_are_refused(path):
    path.write_bytes(path.read_bytes() + b"\0")
    refused(path)


@pytest.mark.parametrize("length", [0, 1, 7, 1000, 2**31, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_header_that_lies_about_its_length_is_refused(tmp_path, path, length):
    content = path.read_bytes()
    refused(raw(tmp_path / "lie.safetensors", content[8:], length))


@pytest.mark.parametrize("inputs", [100, pytest.param(400, marks=pytest.mark.full)])
def test_a_header_changed_at_random_loads_or_is_refused_and_nothing_else(inputs: int, tmp_path: Path, path: Path) -> None:
    """The seed is fixed: every run tries the same damage."""
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    rng, damaged, refusals = random.Random(5), tmp_path / "damaged.safetensors", list[str]()
    for _ in range(inputs):
        octets = bytearray(content)
        for _ in range(rng.choice([1, 1, 2, 8])):
            octets[rng.randrange(end)] = rng.choice([rng.randrange(256), *b'0123456789{}[]",:-'])
        damaged.write_bytes(octets)
        try:
            load(damaged)
        except CheckpointError as error:
            refusals.append(str(error))
    assert [message for message in refusals if "\n" in message] == []
    assert len(refusals) > inputs / 2  # a changed label or digest may pass, most damage must not


def test_files_of_other_kinds_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "pickle.safetensors")
    refused(tmp_path / "pickle.safetensors")
    (tmp_path / "text.safetensors").write_text("not weights\n" * 50)
    refused(tmp_path / "text.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    refused(tmp_path / "folder.safetensors")
    refused(tmp_path / "absent.safetensors")


def test_a_pickle_is_never_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"weight": Trap()}, tmp_path / "trap.safetensors")
    refused(tmp_path / "trap.safetensors")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"vit_deploy": "{"}, {"vit_deploy": "[1]"}, {"vit_deploy": "[" * 200_000}])
def test_safetensors_without_our_facts_are_refused(tmp_path, model, metadata):
    save_file(dict(model.state_dict()), tmp_path / "foreign.safetensors", metadata=metadata)
    refused(tmp_path / "foreign.safetensors")


# --- files that contradict themselves ---------------------------------------------------------------------------------


def contradicted(tmp_path: Path, model: ViT, change: Callable[[dict[str, Tensor]], object], metadata: dict[str, str] | None = None) -> str:
    state = {name: values.clone() for name, values in model.state_dict().items()}
    change(state)
    save_file(state, tmp_path / "wrong.safetensors", metadata=metadata or facts())
    return refused(tmp_path / "wrong.safetensors")


def test_a_missing_tensor_is_named(tmp_path, model):
    message = contradicted(tmp_path, model, lambda state: state.pop("blocks.1.attn.qkv.bias"))
    assert_mentions(message, "missing", "blocks.1.attn.qkv.bias")


def test_an_unexpected_tensor_is_named(tmp_path, model):
    message = contradicted(tmp_path, model, lambda state: state.update({"blocks.0.ls1.gamma": torch.ones(16)}))
    assert_mentions(message, "unexpected", "blocks.0.ls1.gamma")


def test_a_misshapen_tensor_is_named_with_both_shapes(tmp_path, model):
    message = contradicted(tmp_path, model, lambda state: state.update({"norm.weight": torch.ones(17)}))
    assert_mentions(message, "norm.weight", "(17,)", "(16,)")


@pytest.mark.parametrize(("dtype", "name"), [(torch.int32, "I32"), (torch.bool, "BOOL"), (torch.float8_e4m3fn, "F8_E4M3")])
def test_a_tensor_that_holds_no_floats_is_named(tmp_path, model, dtype, name):
    message = contradicted(tmp_path, model, lambda state: state.update({"norm.weight": torch.ones(16).to(dtype)}))
    assert_mentions(message, "float", "norm.weight", name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_widened_or_rounded_to_float32(tmp_path, model, dtype):
    save_file({name: values.to(dtype) for name, values in model.state_dict().items()}, tmp_path / "half.safetensors", metadata=facts())
    loaded, spec = load(tmp_path / "half.safetensors")
    for name, values in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], values.to(dtype).float())
    assert any("float64" in note for note in spec.notes) == (dtype == torch.float64)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_single_number_that_is_none_is_found(tmp_path, model, value):
    message = contradicted(tmp_path, model, lambda state: state["blocks.0.mlp.fc1.weight"].view(-1)[137].fill_(value))
    assert_mentions(message, "blocks.0.mlp.fc1.weight", "NaN", "Inf")


def test_many_faults_are_summed_up_in_one_line(tmp_path, model):
    def change(state: dict[str, Tensor]) -> None:
        for name in list(state)[:9]:
            del state[name]

    removed = sorted(list(model.state_dict())[:9])
    message = contradicted(tmp_path, model, change)
    assert_mentions(message, *removed[:3], 6)
    assert not any(name in message for name in removed[3:])


def config(**changes: Any) -> dict[str, Any]:
    return {**dataclasses.asdict(CONFIG), **changes}


@pytest.mark.parametrize(
    "entries",
    [
        {"config": None},
        {"config": 3},
        {"config": []},
        {"config": "ViT-B/16"},
        {"config": {}},
        {"config": config(depth=3)},
        {"config": config(depth=10**9)},
        {"config": config(depth=50_000)},
        {"config": config(embed_dim=2**16, num_heads=1)},
        {"config": config(num_heads=3)},
        {"config": config(img_size=[17, 24])},
        {"config": config(img_size=16)},
        {"config": config(img_size=None)},
        {"config": config(img_size="16")},
        {"config": config(class_token="no")},
        {"config": config(class_token=False)},
        {"config": config(pool=["cls"])},
        {"config": config(pool=None)},
        {"config": config(layer_norm_eps="small")},
        {"config": config(layer_norm_eps=None)},
        {"config": config(num_classes=5)},
        {"config": config(dropout=0.1)},
        {"labels": LABELS[:3]},
        {"labels": [0, 1, 2, 3]},
        {"labels": "four"},
        {"labels": 4},
        {"labels": {"a": 0, "b": 1, "c": 2, "d": 3}},
        {"preprocessing": 3},
        {"preprocessing": ["mean"]},
    ],
    ids=str,
)
def test_facts_that_do_not_fit_the_weights_or_one_another_are_refused(tmp_path, model, entries):
    contradicted(tmp_path, model, lambda state: None, facts(**entries))
