"""The file on disk is what onnx itself would have written, the same from call to call, and there whole or not at all."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from helpers import assert_mentions, one_line
from networks import TINY, initialized
from onnx import numpy_helper

from vit_exporter.passes.fold_weight_transposes import FoldWeightTransposes
from vit_exporter.passes.simplify import Simplify
from vit_exporter.trace import trace
from vit_exporter.writer import PAGE, _commit, append_metadata, check_out, data_name, staging, weight_bytes, write_model
from vit_models import ViT
from vit_runtime.errors import InputError, MachineError


@pytest.fixture(scope="module")
def graph() -> ir.Model:
    model = Simplify()(trace(initialized(), 18)).model
    return FoldWeightTransposes()(model).model


def initializers(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def without_initializers(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The rest, without the notes that onnx_ir adds on the initialisers' types, which they have themselves."""
    rest, names = onnx.ModelProto(), initializers(proto)
    rest.CopyFrom(proto)
    rest.graph.ClearField("initializer")
    rest.graph.ClearField("value_info")
    rest.graph.value_info.extend(info for info in proto.graph.value_info if info.name not in names)
    return rest


def run(path, rows: int = 3) -> list[np.ndarray]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    batch = np.random.default_rng(0).standard_normal((rows, 3, 32, 32), dtype=np.float32)
    return session.run(None, {"pixel_values": batch})


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("external", [False, True])
def test_the_file_means_what_onnx_itself_would_have_written(tmp_path, graph, external):
    path = tmp_path / "vit.onnx"
    write_model(path, graph, external)
    onnx.checker.check_model(str(path), full_check=True)
    ours, theirs = onnx.load(path), ir.to_proto(graph)
    assert without_initializers(ours) == without_initializers(theirs)
    mine, expected = initializers(ours), initializers(theirs)
    assert mine.keys() == expected.keys()
    for name, values in expected.items():
        assert (mine[name].dtype, mine[name].shape) == (values.dtype, values.shape)
        np.testing.assert_array_equal(mine[name], values)  # the same bytes, so no tolerance


def test_writing_leaves_the_graph_as_it_was(tmp_path, graph):
    before = initializers(ir.to_proto(graph))
    write_model(tmp_path / "vit.onnx", graph, external=False)
    after = initializers(ir.to_proto(graph))
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[name], values) for name, values in before.items())


@pytest.mark.parametrize("external", [False, True])
def test_the_same_graph_is_the_same_bytes(tmp_path, graph, external):
    files = [tmp_path / folder / "vit.onnx" for folder in ("a", "b")]
    for path in files:
        path.parent.mkdir()
        write_model(path, graph, external)
    for name in ("vit.onnx", "vit.onnx.data")[: 1 + external]:
        assert files[0].with_name(name).read_bytes() == files[1].with_name(name).read_bytes()


def test_external_weights_lie_on_pages_and_come_back(tmp_path, graph):
    path, whole = tmp_path / "vit.onnx", tmp_path / "whole.onnx"
    write_model(path, graph, external=True)
    write_model(whole, graph, external=False)
    data, end = path.with_name(data_name(path)), 0
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            assert "." not in tensor.name or "/" in tensor.name  # the graph's own constants stay inside
            continue
        where = {entry.key: entry.value for entry in tensor.external_data}
        assert where["location"] == "vit.onnx.data"
        offset, length = int(where["offset"]), int(where["length"])
        assert offset % PAGE == 0
        assert offset >= end  # none overlaps another
        end = offset + length
    assert data.stat().st_size == end
    assert path.stat().st_size < 60_000 < weight_bytes(graph)
    for ours, theirs in zip(run(path), run(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)  # the same graph and numbers, so no tolerance


def test_weight_bytes_is_what_the_weights_take(graph):
    assert weight_bytes(graph) == 4 * sum(parameter.numel() for parameter in ViT(TINY).parameters())


def test_metadata_appended_to_a_finished_file_is_read_by_onnx_and_onnxruntime(tmp_path, graph):
    path = tmp_path / "vit.onnx"
    write_model(path, graph, external=False)
    texts = {"vit_deploy": '{"labels": ["três"]}', "empty": "", "long": "x" * 300_000}
    for key, text in texts.items():
        append_metadata(path, key, text)
    onnx.checker.check_model(str(path), full_check=True)
    proto = onnx.load(path)
    assert {entry.key: entry.value for entry in proto.metadata_props} == texts
    assert initializers(proto).keys() == initializers(ir.to_proto(graph)).keys()
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == texts


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from networks import make_source
from vit_exporter import ExportSpec, export
export(make_source, ExportSpec(Path(sys.argv[2])))
"""


def test_two_processes_write_the_same_bytes(tmp_path, tiny_model):
    """The order of Python's sets, which differs between processes, has no influence."""
    path, tests = tmp_path / "again.onnx", Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", SCRIPT, tests, path], check=True, timeout=120, env={**os.environ, "PYTHONHASHSEED": "1"})
    assert path.read_bytes() == tiny_model.read_bytes()


# --- all or nothing ---------------------------------------------------------------------------------------------------


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def put(staged, text: bytes, data: bytes | None = None) -> None:
    staged.write_bytes(text)
    if data is not None:
        staged.with_name(data_name(staged)).write_bytes(data)


@pytest.mark.unit
@pytest.mark.parametrize("data", [None, b"weights"])
def test_a_block_that_ends_well_leaves_the_files_and_nothing_else(tmp_path, data):
    with staging(tmp_path / "vit.onnx", force=False, needed=7) as staged:
        put(staged, b"model", data)
        assert not (tmp_path / "vit.onnx").exists()  # not before it is whole
    assert contents(tmp_path) == {"vit.onnx": b"model", **({"vit.onnx.data": data} if data else {})}


@pytest.mark.unit
@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit, OSError])
@pytest.mark.parametrize("data", [None, b"weights"])
@pytest.mark.parametrize("earlier", [{}, {"vit.onnx": b"old"}, {"vit.onnx": b"old", "vit.onnx.data": b"old weights"}], ids=len)
def test_a_block_that_fails_leaves_nothing_and_keeps_what_was_there(tmp_path, failure, data, earlier):
    for name, content in earlier.items():
        (tmp_path / name).write_bytes(content)

    def attempt() -> None:
        with staging(tmp_path / "vit.onnx", force=True, needed=7) as staged:
            put(staged, b"model", data)
            raise failure

    with pytest.raises(failure):
        attempt()
    assert contents(tmp_path) == earlier


@pytest.mark.unit
@pytest.mark.parametrize("data", [None, b"weights"])
@pytest.mark.parametrize("earlier", [{"vit.onnx": b"old"}, {"vit.onnx": b"old", "vit.onnx.data": b"old weights"}], ids=len)
def test_force_replaces_both_files(tmp_path, data, earlier):
    """An earlier model's weights go with it, also where the new one keeps its weights inside."""
    for name, content in earlier.items():
        (tmp_path / name).write_bytes(content)
    with staging(tmp_path / "vit.onnx", force=True, needed=7) as staged:
        put(staged, b"model", data)
    assert contents(tmp_path) == {"vit.onnx": b"model", **({"vit.onnx.data": data} if data else {})}


@pytest.mark.unit
@pytest.mark.parametrize("earlier", [{}, {"vit.onnx.data": b"old weights"}], ids=len)
def test_weights_go_back_when_the_model_cannot_follow_them(tmp_path, earlier):
    """A folder has taken the model's name at the last moment, and no file can replace it."""
    for name, content in earlier.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "staged").mkdir()
    put(tmp_path / "staged" / "vit.onnx", b"model", b"weights")
    (tmp_path / "vit.onnx").mkdir()
    with pytest.raises(OSError, match="directory"):
        _commit(tmp_path / "staged" / "vit.onnx", tmp_path / "vit.onnx")
    (tmp_path / "vit.onnx").rmdir()
    shutil.rmtree(tmp_path / "staged")
    assert contents(tmp_path) == earlier


@pytest.mark.unit
@pytest.mark.parametrize("name", ["vit.onnx", "vit.onnx.data"])
def test_without_force_an_existing_file_is_refused_and_kept(tmp_path, name):
    (tmp_path / name).write_bytes(b"old")
    with pytest.raises(InputError) as raised, staging(tmp_path / "vit.onnx", False, 7):
        raise AssertionError("the block must not run")
    assert_mentions(one_line(raised), tmp_path / name, "--force")
    assert contents(tmp_path) == {name: b"old"}


@pytest.mark.unit
def test_a_file_that_appears_meanwhile_is_kept(tmp_path):

    def attempt() -> None:
        with staging(tmp_path / "vit.onnx", False, 7) as staged:
            put(staged, b"model")
            (tmp_path / "vit.onnx").write_bytes(b"theirs")

    with pytest.raises(InputError) as raised:
        attempt()
    assert_mentions(one_line(raised), tmp_path / "vit.onnx", "--force")
    assert contents(tmp_path) == {"vit.onnx": b"theirs"}


@pytest.mark.unit
def test_too_little_room_is_seen_before_anything_is_written(tmp_path):
    with pytest.raises(MachineError) as raised, staging(tmp_path / "vit.onnx", False, 10**18):
        raise AssertionError("the block must not run")
    assert_mentions(one_line(raised), tmp_path, "1000000000000.0 MB")
    assert contents(tmp_path) == {}


@pytest.mark.unit
def test_a_name_that_the_file_system_does_not_take_is_refused_in_one_line(tmp_path):
    for length in (249, 400):  # with room for .onnx and not for the staging folder's own letters; with room for neither
        out = tmp_path / f"{'v' * length}.onnx"
        with pytest.raises(InputError) as raised, staging(out, False, 7):
            raise AssertionError("the block must not run")
        assert_mentions(one_line(raised), "--out", out, os.strerror(errno.ENAMETOOLONG))
    assert contents(tmp_path) == {}


@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("", "--out {folder}/vit.onnx"),
        ("vit", "--out {folder}/vit.onnx"),
        ("vit.pt", "--out {folder}/vit.pt.onnx"),
        ("absent/vit.onnx", "mkdir -p {folder}/absent"),
    ],
)
def test_an_out_that_cannot_be_is_refused(tmp_path, name, remedy):
    with pytest.raises(InputError) as raised:
        check_out(tmp_path / name, force=True)
    assert_mentions(one_line(raised), "--out", tmp_path / name, remedy.format(folder=tmp_path))


@pytest.mark.unit
def test_the_file_gets_the_rights_that_any_new_file_gets(tmp_path):
    (tmp_path / "plain").touch()
    with staging(tmp_path / "vit.onnx", False, 7) as staged:
        put(staged, b"model")
    assert (tmp_path / "vit.onnx").stat().st_mode == (tmp_path / "plain").stat().st_mode
