"""The reader of .onnx files sees what the onnx package sees, and answers every damaged or hostile file with a ModelError."""

import contextlib
import os
import random
import shutil
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from helpers import assert_mentions, one_line
from onnx import TensorProto, helper, numpy_helper

from vit_runtime import onnx_file
from vit_runtime.errors import ModelError
from vit_runtime.onnx_file import DTYPES, MAX_DEPTH, MAX_METADATA, NodeInfo, OnnxFile, TensorInfo, read_graph, read_onnx

FEW_AND_MANY = (pytest.param(400, marks=pytest.mark.unit), pytest.param(4000, marks=pytest.mark.full))

TEXTS = {
    "free and named dimensions": """<ir_version: 8, opset_import: ["": 18]> g (float[batch, 3, ?] x, int64 n) => (float[batch, 3] y)
        { y = ReduceMean<keepdims=0>(x, n) }""",
    "two domains": """<ir_version: 10, opset_import: ["": 21, "com.example": 3]> g (float16[2] x) => (float16[2] y, bool[] b)
        { a = Relu(x)  c = com.example.Twice(a)  y = com.example.Twice(c)  b = com.example.Any(y) }""",
    "initialisers": """<ir_version: 7, opset_import: ["": 13], producer_name: "somebody"> g (double[4] x) => (double[4] y)
        <double[4] w = {1, 2, 3, 4}> { a = Mul(x, w)  b = Mul(a, w)  y = Identity(b) }""",
    "no nodes": '<ir_version: 8, opset_import: ["": 18]> g (uint8[2] x) => (uint8[2] x) {}',
}


def theirs(path: Path) -> OnnxFile:
    """The same as the onnx package reads it."""
    model = onnx.load(path, load_external_data=False)
    initializers = {tensor.name for tensor in model.graph.initializer}

    def info(value: onnx.ValueInfoProto) -> TensorInfo:
        tensor = value.type.tensor_type
        shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim)
        return TensorInfo(value.name, DTYPES[tensor.elem_type], shape)

    files = {entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"}
    return OnnxFile(
        path=path,
        size=sum(file.stat().st_size for file in (path, *(path.parent / name for name in files))),
        ir_version=model.ir_version,
        opsets={opset.domain: opset.version for opset in model.opset_import},
        inputs=tuple(info(value) for value in model.graph.input if value.name not in initializers),
        outputs=tuple(info(value) for value in model.graph.output),
        op_counts=Counter(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in model.graph.node),
        external_files=tuple(sorted(files)),
        metadata={entry.key: entry.value for entry in model.metadata_props},
    )


def small_model(tmp_path: Path) -> Path:
    """Under a kilobyte, with every kind of field that the reader looks at."""
    model = onnx.parser.parse_model(TEXTS["initialisers"])
    model.graph.initializer.append(numpy_helper.from_array(np.arange(6, dtype=np.float32), "raw"))
    model.metadata_props.add(key="vit_deploy", value='{"schema_version":1}')
    path = tmp_path / "small.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def refusal(path: Path, read: Callable[[Path], object] = read_onnx) -> str:
    """The message of the ModelError for a file."""
    with pytest.raises(ModelError) as error:
        read(path)
    return one_line(error)


def external_model(folder: Path, **entries: str) -> Path:
    """A graph with one weight of 16 values in another file; `entries` replaces what it says of that file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[16], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "small.data", "offset": "0", "length": "64", **entries}.items():
        tensor.external_data.add(key=key, value=value)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [16]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [tensor])
    path = folder / "small.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString())
    return path


def reads_or_refuses(path: Path) -> bool:
    """Whether the file was read; anything but a ModelError of one line ends the test."""
    try:
        read_onnx(path)
    except ModelError as error:
        if "\n" in str(error):
            pytest.fail(f"more than one line: {error}")
        return False
    return True


def varint(value: int) -> bytes:
    octets = bytearray()
    while value >= 0x80:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*octets, value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


# ---- what onnx reads -----------------------------------------------------------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_it_reads_what_onnx_reads(text: str, tmp_path: Path):
    path = tmp_path / "small.onnx"
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    assert read_onnx(path) == theirs(path)


@pytest.mark.parametrize("fixture", ["tiny_model", "tiny_external", "tiny_unverified", "tiny_embedder", "tiny_projected"])
def test_it_reads_exported_files_as_onnx_does(fixture: str, request: pytest.FixtureRequest):
    path = request.getfixturevalue(fixture)
    assert read_onnx(path) == theirs(path)


def test_an_exported_file_is_what_onnx_calls_a_model(tiny_model: Path, tiny_external: Path):
    onnx.checker.check_model(tiny_model, full_check=True)
    onnx.checker.check_model(tiny_external, full_check=True)
    assert read_onnx(tiny_external).external_files == ("tiny.onnx.data",)
    assert read_onnx(tiny_model).external_files == ()


@pytest.mark.unit
def test_initialisers_that_are_listed_as_inputs_are_no_inputs(tmp_path: Path):
    """Files of before IR version 4 list every weight among the inputs."""
    model = onnx.parser.parse_model(TEXTS["initialisers"])
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.DOUBLE, [4]))
    path = tmp_path / "old.onnx"
    path.write_bytes(model.SerializeToString())
    assert [info.name for info in read_onnx(path).inputs] == ["x"]
    assert read_onnx(path) == theirs(path)


@pytest.mark.unit
def test_an_unknown_type_is_shown_by_its_number_and_a_negative_size_as_free(tmp_path: Path):
    model = onnx.parser.parse_model(TEXTS["no nodes"])
    model.graph.input[0].type.tensor_type.elem_type = 99
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    path = tmp_path / "odd.onnx"
    path.write_bytes(model.SerializeToString())
    assert read_onnx(path).inputs == (TensorInfo("x", "type 99", ("?",)),)


def test_nodes_are_those_of_the_main_graph(tiny_model: Path):
    assert read_onnx(tiny_model).nodes == len(onnx.load(tiny_model).graph.node)


@pytest.mark.parametrize("fixture", ["tiny_model", "tiny_external", "tiny_int8"])
def test_nodes_and_types_are_read_as_onnx_does(fixture: str, request: pytest.FixtureRequest):
    path = request.getfixturevalue(fixture)
    model, graph = onnx.load(path, load_external_data=False), read_graph(path)
    assert graph.nodes == tuple(
        NodeInfo(
            name=node.name,
            op=f"{node.domain}.{node.op_type}" if node.domain else node.op_type,
            inputs=tuple(node.input),
            outputs=tuple(node.output),
            numbers={attribute.name: attribute.i for attribute in node.attribute if attribute.type == onnx.AttributeProto.INT},
            constant=None,
        )
        for node in model.graph.node
    )
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    weights = {tensor.name: DTYPES[tensor.data_type] for tensor in model.graph.initializer}
    assert graph.dtypes == {value.name: DTYPES[value.type.tensor_type.elem_type] for value in values} | weights
    assert graph.stored == weights.keys()
    assert (graph.inner, graph.functions) == ((), frozenset())
    full = onnx.load(path)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in full.graph.initializer}
    assert graph.nonzero == {name for name, array in arrays.items() if weights[name] in ("int8", "uint8", "bool") and array.any()}


@pytest.mark.unit
def test_nodes_in_branches_and_functions_are_read_too(tmp_path: Path):
    text = """<ir_version: 10, opset_import: ["": 20, "local": 1]> g (bool c, float[2] x) => (float[2] y)
        { y = If (c) <then_branch = t () => (float[2] a) { a = Relu(x) }, else_branch = e () => (float[2] b) { b = local.Twice(x) }> }
        <domain: "local", opset_import: ["": 20]> Twice (a) => (b) { k = Constant<value = int8[2] {0, -1}>()  b = Add(a, a) }"""
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    graph = read_graph(path)
    assert [node.op for node in graph.nodes] == ["If"]
    assert sorted(node.op for node in graph.inner) == ["Add", "Constant", "Relu", "local.Twice"]
    assert graph.functions == {"local.Twice"}
    assert {node.constant for node in graph.inner} == {None, "int8"}


@pytest.mark.parametrize("files", FEW_AND_MANY)
def test_the_graph_of_a_mutated_file_is_read_or_refused_and_nothing_else(files: int, tmp_path: Path):
    content, path = small_model(tmp_path).read_bytes(), tmp_path / "mutated.onnx"
    draw = random.Random(0)
    for _ in range(files):
        mutated = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            mutated[draw.randrange(len(mutated))] = draw.randrange(256)
        path.write_bytes(mutated)
        with contextlib.suppress(ModelError):
            read_graph(path)


@pytest.mark.unit
def test_more_names_and_nodes_than_memory_is_for_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = small_model(tmp_path)
    for limit, word in (("MAX_NODES", "nodes"), ("MAX_NAMES", "names")):
        with monkeypatch.context() as patch:
            patch.setattr(onnx_file, limit, 2)
            assert_mentions(refusal(path, read_graph), path, 2, word)


@pytest.mark.unit
def test_weights_are_not_read(tmp_path: Path):
    """A file of 2 GiB with a hole for the weights costs milliseconds and kilobytes."""
    size = 2 << 30
    tensor = TensorProto(name="w", data_type=1, dims=[size // 4]).SerializeToString() + varint(9 << 3 | 2) + varint(size)
    model = onnx.parser.parse_model(TEXTS["no nodes"])
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    length = len(tensor) + size
    start = field(5, b"")[:1] + varint(length) + tensor
    path = tmp_path / "large.onnx"
    with path.open("wb") as file:
        file.write(model.SerializeToString() + varint(7 << 3 | 2) + varint(len(graph) + len(start) + size) + graph + start)
        file.truncate(file.tell() + size)
    tracemalloc.start()
    begun = time.perf_counter()
    try:
        assert read_onnx(path).size > size
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - begun < 2


# ---- no such file, no whole file -----------------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_a_missing_file_is_told_how_to_be_made(tmp_path: Path):
    path = tmp_path / "no.onnx"
    assert_mentions(refusal(path), path, f"vit-export --out {path}")


@pytest.mark.unit
def test_an_empty_file_a_folder_and_a_pipe_are_called_by_their_names(tmp_path: Path):
    (tmp_path / "empty.onnx").touch()
    os.mkfifo(tmp_path / "pipe.onnx")
    for name, word in {"empty.onnx": "empty", "": "folder", "pipe.onnx": "pipe"}.items():
        assert_mentions(refusal(tmp_path / name).removeprefix(f"{tmp_path / name} "), word)


@pytest.mark.unit
@pytest.mark.parametrize("name", ["a\0b.onnx", "x" * 5000, "file.txt/model.onnx", "loop.onnx"])
def test_impossible_paths_are_refused(name: str, tmp_path: Path):
    (tmp_path / "file.txt").write_text("a file, no folder")
    (tmp_path / "loop.onnx").symlink_to("loop.onnx")
    assert not reads_or_refuses(tmp_path / name)


@pytest.mark.unit
@pytest.mark.parametrize(
    "content",
    [
        b"These are no weights but words.\n" * 20,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 346000000\n",
        b"<!DOCTYPE html><html><body>404</body></html>",
        b"PK\x03\x04" + bytes(100),
        bytes(1000),
        b"\xff" * 1000,
        b"\n",
    ],
    ids=["text", "Git LFS pointer", "web page", "zip", "zeros", "ones", "one line feed"],
)
def test_what_is_no_onnx_file_is_refused(content: bytes, tmp_path: Path):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert_mentions(refusal(path), path, ".onnx")


@pytest.mark.unit
def test_random_bytes_are_refused(tmp_path: Path):
    rng, path = random.Random(0), tmp_path / "model.onnx"
    for _ in range(300):
        path.write_bytes(rng.randbytes(rng.randrange(1, 2000)))
        assert not reads_or_refuses(path)


def test_a_file_that_was_cut_off_anywhere_is_refused(tiny_unverified: Path, tmp_path: Path):
    """Everywhere but between the last fields, where what is left is a whole file without its manifest."""
    whole, path = tiny_unverified.read_bytes(), tmp_path / "cut.onnx"
    read = []
    for stop in sorted({len(whole) * k // 200 for k in range(200)} | set(range(0, 60, 7)) | {len(whole) - 1}):
        path.write_bytes(whole[:stop])
        if reads_or_refuses(path):
            read.append(stop)
    assert not read


@pytest.mark.unit
def test_a_small_file_that_was_cut_off_at_any_byte_is_read_only_if_onnx_reads_it_too(tmp_path: Path):
    path = small_model(tmp_path)
    whole = path.read_bytes()
    for stop in range(len(whole)):
        path.write_bytes(whole[:stop])
        if reads_or_refuses(path):
            assert read_onnx(path) == theirs(path)


# ---- hostile files -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", FEW_AND_MANY)
def test_mutated_files_are_read_or_refused_and_nothing_else(files: int, tmp_path: Path):
    """Each has a few bytes changed, put in, taken out or doubled."""
    path = small_model(tmp_path)
    whole, rng, read = path.read_bytes(), random.Random(1), 0
    changes: tuple[Callable[[bytearray, int], object], ...] = (
        lambda data, at: data.__setitem__(at, rng.randrange(256)),
        lambda data, at: data.__setitem__(at, data[at] ^ 1 << rng.randrange(8)),
        lambda data, at: data.insert(at, rng.choice((0, 0x7F, 0x80, 0xFF))),
        lambda data, at: data.pop(at),
        lambda data, at: data.__setitem__(slice(at, at), data[at : at + rng.randrange(40)]),
    )
    tracemalloc.start()
    try:
        for _ in range(files):
            data = bytearray(whole)
            for _ in range(rng.randrange(1, 5)):
                rng.choice(changes)(data, rng.randrange(len(data)))
            path.write_bytes(data)
            read += reads_or_refuses(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert 0 < read < files


@pytest.mark.parametrize("files", FEW_AND_MANY)
def test_what_a_mutated_file_is_read_as_is_what_onnx_reads(files: int, tmp_path: Path):
    """Where both accept a file they agree on its interface: nobody can show one graph here and run another one."""
    path = small_model(tmp_path)
    whole, rng, compared = path.read_bytes(), random.Random(2), 0
    for _ in range(files):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            ours = read_onnx(path)
            model = onnx.load(path, load_external_data=False)
        except Exception:  # noqa: BLE001 - protobuf's and ours: only what both accept is compared
            continue
        compared += 1
        assert [info.name for info in ours.outputs] == [value.name for value in model.graph.output]
        assert ours.nodes == len(model.graph.node)
        assert ours.metadata == {entry.key: entry.value for entry in model.metadata_props}
    assert compared > files / 15


@pytest.mark.unit
@pytest.mark.parametrize("claimed", [1 << 20, 1 << 31, 1 << 32, (1 << 63) - 1, (1 << 64) - 1, (1 << 69) - 1])
@pytest.mark.parametrize("number", [1, 2, 7, 8, 14, 25])
def test_a_length_beyond_the_end_is_refused_at_once(number: int, claimed: int, tmp_path: Path):
    path = small_model(tmp_path)
    path.write_bytes(path.read_bytes() + varint(number << 3 | 2) + varint(claimed) + b"abc")
    assert_mentions(refusal(path), path, "field")


@pytest.mark.unit
def test_a_length_may_not_reach_out_of_the_field_around_it(tmp_path: Path):
    """A node that claims more bytes than its graph has, though the file has them."""
    path = tmp_path / "model.onnx"
    graph = varint(1 << 3 | 2) + varint(50) + b"abc"
    path.write_bytes(b"\x08\x08" + field(7, graph) + field(8, b"\x10\x12") + field(14, b"\x0a" + bytes([200]) + bytes(200)))
    assert not reads_or_refuses(path)


@pytest.mark.unit
def test_a_number_without_an_end_is_refused(tmp_path: Path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08" + b"\x80" * 100)
    assert_mentions(refusal(path), path, "number")


@pytest.mark.unit
def test_two_graphs_or_two_entries_of_one_name_are_refused(tmp_path: Path):
    """Readers of protocol buffers merge the first and keep both of the second: what was checked would not be what runs."""
    path = small_model(tmp_path)
    whole = path.read_bytes()
    for more, facts in ((field(7, b""), ("graphs",)), (field(14, field(1, b"vit_deploy")), ("metadata", "'vit_deploy'"))):
        path.write_bytes(whole + more)
        assert_mentions(refusal(path), path, *facts)


@pytest.mark.unit
def test_very_many_nodes_are_counted_in_reasonable_time(tmp_path: Path):
    """Also when each has an operator of its own."""
    nodes = b"".join(field(1, field(4, b"op%d" % index)) for index in range(30_000))
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x08" + field(7, nodes) + field(8, b"\x10\x12"))
    begun = time.perf_counter()
    assert read_onnx(path).nodes == 30_000
    assert time.perf_counter() - begun < 5  # it takes a third of a second; minutes if the time grew with the square


@pytest.mark.unit
def test_a_huge_name_or_metadata_entry_is_refused(tmp_path: Path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x08" + field(7, field(1, field(4, b"x" * 70_000))) + field(8, b"\x10\x12"))
    assert_mentions(refusal(path), path, 70000)
    with path.open("wb") as file:  # a hole, not 64 MiB of bytes
        size = MAX_METADATA + 1
        content = varint(2 << 3 | 2) + varint(size)
        file.write(b"\x08\x08" + field(7, b"") + field(8, b"\x10\x12") + varint(14 << 3 | 2) + varint(len(content) + size) + content)
        file.truncate(file.tell() + size)
    assert_mentions(refusal(path), path, size)


# ---- weights in another file ---------------------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_external_weights_are_checked_to_be_whole(tmp_path: Path):
    path = external_model(tmp_path)
    missing = refusal(path)
    assert_mentions(missing, path, "small.data", "weights")
    data = tmp_path / "small.data"
    data.write_bytes(bytes(63))
    assert_mentions(refusal(path), data, 63, 64)
    data.write_bytes(bytes(64))
    assert read_onnx(path) == theirs(path)
    data.unlink()
    data.mkdir()
    assert refusal(path) == missing


def test_an_exported_file_needs_its_whole_data_file(tiny_external: Path, tmp_path: Path):
    path = Path(shutil.copyfile(tiny_external, tmp_path / "tiny.onnx"))
    assert_mentions(refusal(path), path, "tiny.onnx.data")
    weights, data = tiny_external.with_name("tiny.onnx.data").read_bytes(), tmp_path / "tiny.onnx.data"
    data.write_bytes(weights[:-1])
    assert_mentions(refusal(path), data, len(weights) - 1, len(weights))


@pytest.mark.unit
@pytest.mark.parametrize(
    "location", ["../small.data", "/etc/hostname", "sub/small.data", "sub/../../small.data", "", ".", "..", "a\0b", "loop", "x" * 5000]
)
def test_weights_outside_the_folder_are_refused(location: str, tmp_path: Path):
    """Whoever writes a model file must not be able to read other files of whoever loads it."""
    folder = tmp_path / "models"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path, folder / "sub"):
        (place / "small.data").write_bytes(bytes(64))
    (folder / "loop").symlink_to("loop")
    assert not reads_or_refuses(external_model(folder, location=location))


@pytest.mark.unit
def test_weights_outside_the_folder_are_refused_wherever_in_the_file_they_are(tmp_path: Path):
    """In a Constant, sparse, in a branch of an If, in a function."""
    weight = onnx.load(external_model(tmp_path, location="../secret"), load_external_data=False).graph.initializer[0]
    sparse = onnx.SparseTensorProto(values=weight, dims=[16])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [16]) for name in "xy")
    plain = helper.make_node("Relu", ["x"], ["y"])
    constant, thin = helper.make_node("Constant", [], ["w"], value=weight), helper.make_node("Constant", [], ["w"], sparse_value=sparse)
    branch = helper.make_graph([plain], "branch", [], [y], [weight])
    nested = helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)], "outer", [], [y])
    opset = helper.make_opsetid("", 18)
    function = helper.make_function("local", "f", ["x"], ["y"], [constant, plain], [opset])
    graphs = {
        "Constant": helper.make_graph([constant, plain], "g", [x], [y]),
        "sparse Constant": helper.make_graph([thin, plain], "g", [x], [y]),
        "sparse": helper.make_graph([plain], "g", [x], [y], sparse_initializer=[sparse]),
        "If": helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)], "g", [x], [y]),
        "If in If": helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=nested, else_branch=nested)], "g", [x], [y]),
        "function": helper.make_graph([plain], "g", [x], [y]),
    }
    path = tmp_path / "model.onnx"
    for name, graph in graphs.items():
        model = helper.make_model(graph, opset_imports=[opset], functions=[function] if name == "function" else [])
        path.write_bytes(model.SerializeToString())
        assert_mentions(refusal(path), path, "'../secret'")


@pytest.mark.unit
def test_graphs_in_graphs_without_end_are_refused(tmp_path: Path):
    node = field(4, b"If")
    for _ in range(2000):
        node = field(4, b"If") + field(5, field(6, field(1, node)))
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x08" + field(7, field(1, node)) + field(8, b"\x10\x12"))
    assert_mentions(refusal(path), path, MAX_DEPTH)


@pytest.mark.unit
def test_a_link_out_of_the_folder_is_refused_and_one_within_it_is_not(tmp_path: Path):
    folder = tmp_path / "models"
    folder.mkdir()
    path = external_model(folder)
    for place in (tmp_path, folder):
        (place / "secret").write_bytes(bytes(64))
    (folder / "small.data").symlink_to(tmp_path / "secret")
    assert_mentions(refusal(path), path, "'small.data'", "folder")
    (folder / "small.data").unlink()
    (folder / "small.data").symlink_to("secret")
    assert read_onnx(path).external_files == ("small.data",)


@pytest.mark.unit
@pytest.mark.parametrize("key", ["offset", "length"])
@pytest.mark.parametrize("value", ["-64", "x", "1e3", "", "9" * 5000, "٣", "1_0"])
def test_a_place_that_is_no_number_is_refused(key: str, value: str, tmp_path: Path):
    (tmp_path / "small.data").write_bytes(bytes(64))
    assert not reads_or_refuses(external_model(tmp_path, **{key: value}))


@pytest.mark.unit
@pytest.mark.parametrize(("offset", "length"), [("1", "64"), ("64", "1"), (str(1 << 62), "64"), ("0", str(1 << 62))])
def test_a_place_beyond_the_data_file_is_refused(offset: str, length: str, tmp_path: Path):
    (tmp_path / "small.data").write_bytes(bytes(64))
    assert_mentions(refusal(external_model(tmp_path, offset=offset, length=length)), 64, int(offset) + int(length))
