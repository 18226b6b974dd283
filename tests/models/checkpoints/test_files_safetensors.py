"""What is read of safetensors, and what is refused. Every broken file here is made by its test."""

import struct
from pathlib import Path

import pytest
import torch
from checkpoint_files import WEIGHTS, assert_holds, raises_mentioning, refusal, safetensors, write
from helpers import assert_mentions
from safetensors.torch import save_file

from vit_models.checkpoints.files import open_checkpoint
from vit_models.errors import CheckpointError

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("fresh_folder")]


def test_safetensors_of_every_dtype():
    values = torch.arange(-3, 3)
    kinds = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    weights = {f"of.{kind}": values.to(getattr(torch, kind)) for kind in kinds} | {"empty": torch.zeros(0, 4), "scalar": torch.tensor(2.5)}
    save_file(weights, "model.safetensors", {"format": "pt"})
    file = open_checkpoint(Path("model.safetensors"))
    assert (file.container, file.metadata, file.tensors["of.bfloat16"].dtype) == ("safetensors", {"format": "pt"}, "BF16")
    assert_holds(file, weights)


def test_numbers_that_are_not_aligned_are_read():
    """The format lets a header have any length, and a byte before floats."""
    header = {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]}}
    path = write("model.safetensors", safetensors(header, b"\7" + struct.pack("<2f", 1.5, -2.5)))
    assert open_checkpoint(path).read("b").tolist() == [1.5, -2.5]


F4 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("data", "facts"),
    [
        (safetensors({"a": F4 | {"data_offsets": [0, 400]}}, bytes(4)), ("'a'", 400)),
        (safetensors({"a": F4}, bytes(4), length=1 << 62), ("header", f"{1 << 62:,}")),
        (safetensors({"a": F4}, bytes(4), length=200), ("header", 200)),
        (safetensors({"a": F4}, b"\0\0\0"), ("cut off",)),
        (safetensors({"a": F4}, bytes(5)), (4, 5)),
        (safetensors({"a": F4 | {"data_offsets": [4, 8]}}, bytes(8)), ("'a'", 4, 0)),
        (safetensors({"a": F4, "b": F4}, bytes(4)), ("'b'", 0, 4)),
        (safetensors({"a": F4 | {"data_offsets": [4, 0]}}, bytes(4)), ("'a'", "dtype", "shape", "data_offsets")),
        (safetensors({"a": F4 | {"data_offsets": [0, 4.0]}}, bytes(4)), ("'a'", "dtype", "shape", "data_offsets")),
        (safetensors({"a": {"dtype": "F32"}}, bytes(4)), ("'a'", "dtype", "shape", "data_offsets")),
        (safetensors({"a": F4 | {"shape": [-1]}}, bytes(4)), ("'a'", "shape", "whole numbers")),
        (safetensors({"a": F4 | {"shape": [True]}}, bytes(4)), ("'a'", "shape", "whole numbers")),
        (safetensors({"a": F4 | {"shape": [10**6, 10**6]}}, bytes(4)), ("(1000000, 1000000)",)),
        (safetensors({"a": F4 | {"shape": [2**40, 2**40]}}, bytes(4)), ("shape", "file")),
        (safetensors({"a": F4 | {"shape": [1] * 100}}, bytes(4)), ("shape", 16)),
        (safetensors({"a": F4 | {"dtype": "F99"}}, bytes(4)), ("dtype", "'F99'")),
        (safetensors(b'{"a":1,"a":2}'), ("twice",)),
        (safetensors(b"{" + b'"a":[' * 9000), ("JSON",)),
        (safetensors(b'{"a":' + b"[" * 200_000), ("nested",)),
        (safetensors(b'{"a\xff":1}'), ("JSON",)),
        (safetensors(b'{"a":' + b"9" * 5000 + b"}"), (5000,)),
        (safetensors(b'{"\\ud800":1}'), ("JSON",)),
        (safetensors({"__metadata__": {"a": 1}}), ("metadata",)),
        (safetensors({}), ("weights",)),
        (safetensors({"a\nb": F4}, bytes(4)), (r"'a\nb'", "printable")),
        (safetensors({"x" * 1000: F4}, bytes(4)), (512,)),
        (safetensors(b"{" + b" " * (5 << 20) + b"}"), ("1,048,576",)),
    ],
)
def test_a_safetensors_header_that_lies_is_refused(data: bytes, facts: tuple[object, ...]):
    assert_mentions(refusal(write("model.safetensors", data)), *facts)


def test_dtypes_that_no_network_takes_are_listed_and_refused_when_read():
    save_file({"eight": torch.ones(2).to(torch.float8_e4m3fn), "a": torch.ones(2)}, "model.safetensors")
    file = open_checkpoint(Path("model.safetensors"))
    assert file.read("a").tolist() == [1, 1]
    with raises_mentioning(CheckpointError, "eight", "float8_e4m3fn"):
        file.read("eight")


def test_a_name_that_is_not_there_is_an_error():
    save_file(WEIGHTS, "model.safetensors")
    with raises_mentioning(CheckpointError, "model.safetensors", "'b'", 2):
        open_checkpoint(Path("model.safetensors")).read("b")
