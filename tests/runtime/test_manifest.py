"""The manifest: what is written is what is read, the published schema describes it, and nothing in it is taken on trust."""

import base64
import copy
import dataclasses
import json
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from helpers import assert_mentions, one_line

from vit_exporter.writer import append_metadata
from vit_runtime.errors import ModelError
from vit_runtime.golden import GENERATOR
from vit_runtime.manifest import (
    KEY,
    SCHEMA_FILE,
    SCHEMA_VERSION,
    Error,
    Execution,
    Limits,
    Manifest,
    Measured,
    Nearness,
    parse_manifest,
    read_manifest,
    record_digest,
)
from vit_runtime.preprocess import Preprocessing, ShortestEdgeResize

Document = dict[str, Any]
Place = tuple[str | int, ...]
FILES = ["tiny_model", "tiny_external", "tiny_unverified", "tiny_embedder", "tiny_projected", "tiny_int8", "tiny_openvino"]
# Values of every JSON type, and numbers that Python reads from JSON but floats and files cannot hold.
VALUES: tuple[Any, ...] = (None, -1, 0, 1.5, "x", [], {}, True, [None], 10**400, float("nan"), float("inf"), "\ud800")
ACTED_UPON = (
    "schema_version",
    "input",
    "preprocessing",
    "outputs",
    "labels",
    "execution",
    "golden",
    "golden_extremes",
    "resized",
    "parity",
)


@pytest.fixture(scope="session")
def schema() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))


def shortened(manifest: Manifest) -> Document:
    """A manifest as JSON values, to be damaged; short, so that thousands of variants are parsed in a second."""
    document: Document = json.loads(manifest.to_json())
    document["parity"]["measured"] = document["parity"]["measured"][:1]
    document["parity"]["measured"][0]["output"] = "logits"
    document["build"]["passes"] = document["build"]["passes"][:1]
    document["build"]["traced"] = document["build"]["passes"][0]["ops"] = {"Add": 3, "MatMul": 2}
    for name in ("tokens", "attention"):
        document["outputs"] = [output for output in document["outputs"] if output["name"] != name]
        for record in (document["golden"], document["golden_extremes"]):
            record["outputs"].pop(name, None)
        for limits in (document["parity"]["limits"], document["parity"]["extremes"] or {}):
            limits.pop(name, None)
    return fitting(document)


@pytest.fixture
def document(tiny_manifest: Manifest) -> Document:
    """Of a float32 file."""
    return shortened(tiny_manifest)


@pytest.fixture
def reduced(tiny_int8: Path) -> Document:
    """Of a file in int8, with everything that one in reduced precision can have."""
    document = shortened(read_manifest(tiny_int8)[0])
    document["build"].update(
        token_split=[9, 8],
        calibration={"source": "photographs", "images": 16},
        islands=[{"node": "blocks.0.mlp.fc2/MatMul", "value": "blocks.0.mlp.fc2/MatMul", "largest": 81200.0, "reason": "overflow"}],
        kept=[{"layer": "blocks.0.mlp.fc2", "before": 0.97, "after": 0.99}, {"layer": "blocks.1.mlp.fc2", "before": None, "after": None}],
    )
    document["build"]["passes"][0]["floors"] = 1.25
    document["parity"]["measured"][0]["nearness"]["kl"] = 0.001
    return document


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    """Every entry of a document, by the keys and positions that lead to it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*place, key)
        yield from places(inner, (*place, key))


def parent(document: Any, place: Place) -> Any:
    for key in place[:-1]:
        document = document[key]
    return document


def changed(document: Document, place: Place, value: Any) -> Document:
    """A copy with another value at `place`; the golden record's digest is made to fit, as who forges one would do."""
    result = copy.deepcopy(document)
    parent(result, place)[place[-1]] = value
    return fitting(result)


def without(document: Document, place: Place) -> Document:
    result = copy.deepcopy(document)
    del parent(result, place)[place[-1]]
    return fitting(result)


def fitting(document: Document) -> Document:
    for name in ("golden", "golden_extremes", "resized"):
        record = document.get(name)
        if isinstance(record, dict) and isinstance(record.get("sha256"), str):
            record["sha256"] = record_digest(record)
    return document


def refused(document: Any) -> str:
    """The message that a document is refused with, one line; "" if it is accepted. Any other exception ends the test."""
    try:
        parse_manifest(document)
    except ModelError as error:
        if "\n" in str(error):
            pytest.fail(f"more than one line: {error}")
        return str(error)
    return ""


def file_with(model: Path, folder: Path, text: str) -> Path:
    """A copy of `model` with this text for a manifest."""
    proto = onnx.load(model)
    del proto.metadata_props[:]
    proto.metadata_props.add(key=KEY, value=text)
    path = folder / "changed.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


# ---- writing and reading -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fixture", FILES)
def test_every_exported_manifest_fits_the_published_schema_and_is_the_same_text_when_written_again(
    fixture: str, schema: jsonschema.Draft202012Validator, request: pytest.FixtureRequest
):
    manifest, file = read_manifest(request.getfixturevalue(fixture))
    schema.validate(json.loads(file.metadata[KEY]))
    assert manifest.to_json() == file.metadata[KEY]
    assert parse_manifest(json.loads(manifest.to_json())).to_json() == manifest.to_json()


def test_the_golden_numbers_survive_bit_for_bit(tiny_manifest: Manifest):
    assert tiny_manifest.golden is not None
    again = parse_manifest(json.loads(tiny_manifest.to_json())).golden
    assert again is not None
    for name, values in tiny_manifest.golden.expected.items():
        assert values.dtype == np.float32
        assert again.expected[name].tobytes() == values.tobytes()
    assert again.floor == tiny_manifest.golden.floor


def test_large_outputs_are_recorded_as_projections(tiny_projected: Path):
    golden = read_manifest(tiny_projected)[0].golden
    assert golden is not None
    assert golden.projected == {"tokens": 256}
    assert golden.expected["tokens"].shape == (golden.images, 256)


def test_a_manifest_with_a_crop_and_names_in_any_script_survives(
    tiny_manifest: Manifest, schema: jsonschema.Draft202012Validator, tiny_model: Path, tmp_path: Path
):
    steps = Preprocessing(
        ShortestEdgeResize(36), "bicubic", (32, 32), 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), crop_of=(34, 32)
    )
    labels = ("Ameise", "ñandú", "猫", "🐕", "", 'with "quotes"', "a\ttab", "ß", "ω", "-")
    manifest = dataclasses.replace(tiny_manifest, preprocessing=steps, labels=labels)
    schema.validate(json.loads(manifest.to_json()))
    read, _ = read_manifest(file_with(tiny_model, tmp_path, manifest.to_json()))
    assert read.labels == labels
    assert read.preprocessing == steps


def test_the_same_manifest_is_the_same_bytes_whatever_the_order_of_its_entries(document: Document):
    def reverse(value: Any) -> Any:
        return {key: reverse(inner) for key, inner in reversed(value.items())} if isinstance(value, dict) else value

    assert list(reverse(document)) != list(document)
    assert parse_manifest(reverse(document)).to_json() == parse_manifest(document).to_json()


@pytest.mark.parametrize("fixture", ["tiny_external", "tiny_projected", "tiny_int8"])
def test_no_path_host_name_or_time_is_in_a_manifest(fixture: str, request: pytest.FixtureRequest):
    path: Path = request.getfixturevalue(fixture)
    manifest, _ = read_manifest(path)
    document = manifest.to_dict()
    for output in [output for name in ("golden", "golden_extremes") for output in (document[name] or {"outputs": {}})["outputs"].values()]:
        output["data"] = ""  # base64 has slashes and any letters
    document["resized"] = None
    text = json.dumps(document)
    assert socket.gethostname() not in text
    assert not re.search(r"\b(19|20)\d\d-\d\d-\d\d|\b\d\d:\d\d:\d\d\b|\b1[5-9]\d{8}\b", text)
    for word in (str(path.parent), str(Path.home()), "/tmp", ".onnx", "\\\\"):
        assert word not in text


def test_a_manifest_can_be_read_with_the_onnx_package_alone(tiny_model: Path, tiny_manifest: Manifest):
    model = onnx.load(tiny_model, load_external_data=False)
    assert json.loads(next(entry.value for entry in model.metadata_props if entry.key == "vit_deploy")) == tiny_manifest.to_dict()


# ---- the schema ----------------------------------------------------------------------------------------------------------------------


def test_the_schema_and_its_page_describe_every_entry(schema: jsonschema.Draft202012Validator):
    jsonschema.Draft202012Validator.check_schema(schema.schema)

    def properties(node: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(node, dict):
            if isinstance(node.get("additionalProperties"), bool):
                yield from node["properties"].items()
            for inner in node.values():
                yield from properties(inner)
        elif isinstance(node, list):
            for inner in node:
                yield from properties(inner)

    entries = list(properties(schema.schema))
    assert len(entries) > 60
    assert not [name for name, entry in entries if not entry.get("description", "").strip()]
    words = set(re.findall(r"\w+", (Path(__file__).parents[2] / "docs" / "manifest.md").read_text(encoding="utf-8")))
    assert {name for name, _ in entries} <= words


def test_the_schema_has_the_version_and_generator_that_are_written(schema: jsonschema.Draft202012Validator, document: Document):
    assert (document["schema_version"], document["golden"]["generator"]) == (SCHEMA_VERSION, GENERATOR)
    schema.validate(document)


def is_open(place: Place) -> bool:
    """Whether the names of the entries there are free: packages, outputs, ops."""
    return place in {
        ("build", "tools"),
        ("build", "traced"),
        ("golden", "outputs"),
        ("golden_extremes", "outputs"),
        ("accuracy", "outputs"),
        ("parity", "limits"),
        ("parity", "extremes"),
    } or (place[:2] == ("build", "passes") and place[-1] == "ops")


@pytest.mark.parametrize("fixture", ["document", "reduced"])
def test_the_schema_refuses_a_document_without_any_one_of_its_entries(
    fixture: str, schema: jsonschema.Draft202012Validator, request: pytest.FixtureRequest
):
    document = request.getfixturevalue(fixture)
    schema.validate(document)
    by_output = document["parity"]["kind"] == "nearness"
    for place in places(document):
        free = is_open(place[:-1]) and (by_output or place[0] != "parity")
        if isinstance(place[-1], str) and not free:
            assert not schema.is_valid(without(document, place)), place


@pytest.mark.parametrize("fixture", ["document", "reduced"])
def test_the_schema_refuses_entries_that_it_does_not_know(
    fixture: str, schema: jsonschema.Draft202012Validator, request: pytest.FixtureRequest
):
    document = request.getfixturevalue(fixture)
    for place in [(), *places(document)]:
        holder = document if not place else parent(document, place)[place[-1]]
        if isinstance(holder, dict) and place not in {("build", "tools"), ("golden", "outputs"), ("golden_extremes", "outputs")}:
            assert not schema.is_valid(changed(document, (*place, "junk"), "1")), place


def test_the_schema_lets_more_tools_be_named(schema: jsonschema.Draft202012Validator, document: Document):
    for version in ("1.2", None):
        assert schema.is_valid(changed(document, ("build", "tools", "something"), version))
    assert not schema.is_valid(changed(document, ("build", "tools", "something"), 1))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("parity", "kind"), "floors"),
        (("parity", "limits"), {"rms": 2, "max": 8}),
        (("parity", "limits"), {}),
        (("parity", "limits", "logits", "cosine"), 1.5),
        (("parity", "limits", "logits", "kl"), -0.1),
        (("accuracy", "source"), "web"),
        (("accuracy", "images"), 0),
        (("accuracy", "outputs", "logits", "cosine_min"), None),
    ],
)
def test_the_schema_refuses_values_that_cannot_be_in_reduced_precision(
    place: Place, value: object, schema: jsonschema.Draft202012Validator, reduced: Document
):
    assert not schema.is_valid(changed(reduced, place, value))


@pytest.mark.unit
@pytest.mark.parametrize("junk", [None, [], {}, {"schema_version": 1}])
def test_the_schema_refuses_junk(junk: object, schema: jsonschema.Draft202012Validator):
    assert not schema.is_valid(junk)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("schema_version",), 2),
        (("input", "shape"), ["batch", 3, 32]),
        (("input", "layout"), "NHWC"),
        (("outputs",), []),
        (("outputs", 0, "shape"), [1, 10]),
        (("preprocessing", "std"), [0.5, 0, 0.5]),
        (("preprocessing", "resize"), {"mode": "shortest_edge", "edge": 36}),
        (("preprocessing", "interpolation"), "nearest-ish"),
        (("checkpoint", "sha256"), "ABC"),
        (("model", "pool"), "max"),
        (("golden", "images"), 65),
        (("golden", "outputs", "logits", "data"), "no base64!"),
        (("golden", "outputs", "logits", "floor", "rms"), 0),
        (("golden",), None),
        (("parity", "limits"), {"logits": {"cosine": 0.9, "kl": 0.1}}),
        (("parity", "kind"), "nearness"),
        (("preprocessing", "in_graph"), ["rescale"]),
        (("execution", "int8_group"), 0),
        (("execution", "bf16"), None),
        (("build", "traced", "Add"), "3"),
        (("build", "passes", 0, "floors"), -1),
        (("build", "token_split"), [17]),
        (("build", "calibration"), {"source": "web", "images": 3}),
        (("build", "islands"), [{"node": "x", "value": "y", "largest": 1.0, "reason": "none"}]),
        (("build", "kept"), [{"layer": "x", "before": 2, "after": 0.9}]),
    ],
)
def test_the_schema_refuses_values_that_cannot_be(place: Place, value: object, schema: jsonschema.Draft202012Validator, document: Document):
    assert not schema.is_valid(changed(document, place, value))


# ---- damaged and hostile manifests ---------------------------------------------------------------------------------------------------


def test_a_newer_version_is_told_to_upgrade(document: Document):
    for newer in ({"schema_version": 2}, changed(document, ("schema_version",), 2)):
        assert_mentions(refused(newer), 2, 1, "pip install -U vit-deploy")
    assert_mentions(refused(changed(document, ("schema_version",), 0)), 0, 1)


@pytest.mark.parametrize("fixture", ["document", "reduced"])
def test_an_entry_that_is_missing_is_named_and_never_a_surprise(fixture: str, request: pytest.FixtureRequest):
    document = request.getfixturevalue(fixture)
    for place in places(document):
        message = refused(without(document, place))
        if place[0] in ACTED_UPON and isinstance(place[-1], str) and len(place) > 1 and place[0] != "preprocessing":
            assert message, place
        if len(place) == 1:
            assert str(place[0]) in message, place


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.full)], ids=["a quarter", "all"])
@pytest.mark.parametrize("fixture", ["document", "reduced"])
def test_an_entry_of_another_kind_is_refused_or_used_and_never_a_surprise(fixture: str, step: int, request: pytest.FixtureRequest):
    """Each place gets every fourth of the values, and the next place the next ones, so that each value is tried at a quarter of them."""
    document, tried = request.getfixturevalue(fixture), 0
    for number, place in enumerate(places(document)):
        for value in VALUES[number % step :: step]:
            tried += 1
            refused(changed(document, place, value))
    assert tried > 1000 // step


@pytest.mark.unit
@pytest.mark.parametrize("junk", [None, True, 3, "text", [1], {}])
def test_json_that_is_no_manifest_is_refused(junk: object):
    assert refused(junk)


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, '{"schema_version": 1e999}', "9" * 10_000, "NaN", "null", "\0"], ids=lambda text: text[:8]
)
def test_text_that_is_no_manifest_is_refused_with_the_files_name(text: str, tiny_model: Path, tmp_path: Path):
    path = file_with(tiny_model, tmp_path, text)
    with pytest.raises(ModelError) as error:
        read_manifest(path)
    assert_mentions(one_line(error), path, "manifest")


def test_an_onnx_file_that_is_not_ours_is_told_apart(tiny_model: Path, tmp_path: Path):
    model = onnx.load(tiny_model)
    del model.metadata_props[:]
    path = tmp_path / "other.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError) as error:
        read_manifest(path)
    assert_mentions(one_line(error), path, "vit_deploy", "manifest", "vit-export")


def test_a_second_manifest_is_refused(tiny_model: Path, tiny_manifest: Manifest, tmp_path: Path):
    path = Path(shutil.copyfile(tiny_model, tmp_path / "two.onnx"))
    append_metadata(path, KEY, tiny_manifest.to_json())
    with pytest.raises(ModelError) as error:
        read_manifest(path)
    assert_mentions(one_line(error), path, "entries", repr(KEY))


# ---- the golden record ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("seed",), 1),
        (("outputs", "logits", "floor", "rms"), 1.0),
        (("outputs", "logits", "shape"), [10, 16]),
        (("sha256",), "0" * 64),
    ],
)
def test_a_golden_record_that_was_edited_no_longer_fits_its_digest(place: Place, value: object, document: Document):
    parent(document["golden"], place)[place[-1]] = value
    assert_mentions(refused(document), "golden", "SHA-256")


def test_one_changed_bit_in_the_golden_numbers_does_not_fit_the_digest(document: Document):
    entry = document["golden"]["outputs"]["embedding"]
    data = bytearray(base64.b64decode(entry["data"]))
    data[100] ^= 1
    entry["data"] = base64.b64encode(data).decode()
    assert_mentions(refused(document), "golden", "SHA-256")


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (lambda entry: entry.update(data=entry["data"][:-4]), (1917, 1920)),
        (lambda entry: entry.update(data="!" + entry["data"][1:]), ("base64",)),
        (lambda entry: entry.update(data="ä" + entry["data"][1:]), ("base64",)),
        (lambda entry: entry.update(shape=[48, 11]), ("[48, 11]", "[48, 10]")),
        (lambda entry: entry.update(shape=[]), ("[]", "[48, 10]")),
        (lambda entry: entry.update(shape=[48], projected=True), ("[48]", "[48, 0]")),
        (lambda entry: entry.update(shape=[48, 2, 5], projected=True), ("[48, 2, 5]", "[48, 0]")),
        (lambda entry: entry.update(shape=[48, 1 << 31], projected=True), (1920, 4 * 48 << 31)),
        (lambda entry: entry.update(data=base64.b64encode(np.full(480, np.nan, "<f4").tobytes()).decode()), ("NaN", "Inf")),
        (lambda entry: entry["floor"].update(rms=0), ("floor", 0)),
    ],
)
def test_a_forged_golden_record_is_refused_for_what_is_wrong_in_it(
    change: Callable[[Any], None], facts: tuple[object, ...], document: Document
):
    """With a digest that fits: the digest finds damage, these checks keep a hostile record from doing any."""
    change(document["golden"]["outputs"]["logits"])
    assert_mentions(refused(fitting(document)), "golden", "logits", *facts)


def test_a_floor_below_zero_is_refused(document: Document):
    assert_mentions(refused(changed(document, ("golden", "outputs", "logits", "floor", "max"), -1e-9)), "floor.max", "'-1e-09'", 0)


def test_a_golden_record_of_an_unknown_generator_is_told_to_upgrade(document: Document):
    assert_mentions(refused(changed(document, ("golden", "generator"), "shapes-2")), "'shapes-2'", "'shapes-1'", "upgrade")


@pytest.mark.parametrize(
    ("place", "value", "facts"),
    [
        (("golden_extremes", "generator"), "shapes-1", ("'shapes-1'", "'extremes-1'", "upgrade")),
        (("golden_extremes", "images"), 7, ("embedding", "[6, 32]", "[7, 32]")),
        (("golden_extremes", "image_size"), [32, 40], (6, "(32, 40)", "(32, 32)")),
        (("resized", "pixels"), "!!!!", ("pixels", "base64")),
        (("resized", "pixels"), "", ("7th", 0, "(49, 65)")),
        (("resized", "pixels"), "A" * 8192, ("7th", 6144, "(49, 65)")),
        (("resized", "step"), 0, ("0th", 439)),
        (("resized", "image_size"), [49, 5000], ("(49, 5000)",)),
    ],
)
def test_a_forged_record_of_extremes_or_of_resizing_is_refused(place: Place, value: Any, facts: tuple[object, ...], document: Document):
    assert_mentions(refused(changed(document, place, value)), *facts)


@pytest.mark.parametrize("name", ["golden_extremes", "resized"])
def test_a_record_that_was_changed_does_not_fit_its_digest(name: str, document: Document):
    document[name]["image_size"] = [32, 33]
    assert_mentions(refused(document), "SHA-256")


def test_extremes_beside_no_golden_record_are_refused(document: Document):
    document.update(golden=None, parity=None)
    assert_mentions(refused(document), 6, "(32, 32)", "golden")


@pytest.mark.parametrize("images", [0, 65, 10**9])
def test_the_number_of_golden_images_is_bounded(images: int, document: Document):
    assert_mentions(refused(changed(document, ("golden", "images"), images)), images, 1, 64)


def test_golden_images_that_would_take_all_memory_are_refused(document: Document):
    record = document["golden"]
    record.update(image_size=[65536, 65536])
    record["sha256"] = record_digest(record)
    assert_mentions(refused(document), 48, "65536x65536", "memory")


def test_a_measurement_of_an_output_without_a_record_is_refused(tiny_manifest: Manifest):
    assert tiny_manifest.parity is not None
    stray = dataclasses.replace(tiny_manifest.parity, measured=(Measured("cpu", 1, "nothing", Error(0.0, 0.0), (32, 32)),))
    assert_mentions(refused(dataclasses.replace(tiny_manifest, parity=stray).to_dict()), "parity", "'nothing'", "golden")
    assert_mentions(refused(dataclasses.replace(tiny_manifest, golden=None).to_dict()), "parity", "golden")


# ---- reduced precision ---------------------------------------------------------------------------------------------------------------


def test_how_a_file_wants_to_be_run_and_what_it_is_held_to_survive(tiny_int8: Path, tiny_openvino: Path, tiny_manifest: Manifest):
    int8, openvino = (read_manifest(path)[0] for path in (tiny_int8, tiny_openvino))
    assert tiny_manifest.execution == int8.execution == Execution("cpu", bf16=False, int8_group=None)
    assert openvino.execution == Execution("openvino", bf16=True, int8_group=32)
    assert (tiny_manifest.preprocessing.in_graph, int8.preprocessing.in_graph, openvino.preprocessing.in_graph) == (False, True, True)
    assert tiny_manifest.accuracy is None
    for manifest in (int8, openvino):
        assert manifest.parity is not None
        assert not isinstance(manifest.parity.limits, Limits)
        assert manifest.parity.limits.keys() == {output.name for output in manifest.outputs}
        assert manifest.accuracy is not None
        assert (manifest.accuracy.provider, manifest.accuracy.source) == (manifest.execution.provider, "synthetic")
        assert manifest.accuracy.outputs["logits"].top1 is not None
        assert manifest.accuracy.outputs["embedding"].top1 is None


def test_a_reduced_manifest_is_what_its_document_says(reduced: Document):
    manifest = parse_manifest(reduced)
    assert manifest.parity is not None
    assert not isinstance(manifest.parity.limits, Limits)
    assert {name: dataclasses.asdict(near) for name, near in manifest.parity.limits.items()} == reduced["parity"]["limits"]
    near = reduced["parity"]["measured"][0]["nearness"]
    assert manifest.parity.measured[0].nearness == Nearness(near["cosine"], 0.001, near["cosine_mean"])
    assert manifest.to_dict() == reduced


LIMIT = ("parity", "limits", "logits")
NEAR = ("parity", "measured", 0, "nearness")
JUDGED = ("accuracy", "outputs", "logits")


@pytest.mark.parametrize(
    ("place", "value", "facts"),
    [
        (("parity", "kind"), "cosine", ("parity.kind", "'cosine'", "floors", "nearness")),
        (("parity", "kind"), None, ("kind", "'None'")),
        (("parity", "kind"), "floors", ("limits.rms", "'None'")),
        (("parity", "limits"), {"rms": 2.0, "max": 8.0}, ("kl",)),
        (("parity", "limits"), {}, ("limit", "logits")),
        (("parity", "limits"), [], ("limits", "'[]'")),
        ((*LIMIT, "kl"), None, ("limit", "logits")),
        ((*LIMIT, "cosine"), 1.0000001, ("cosine", 1.0000001, 1)),
        ((*LIMIT, "cosine"), None, ("cosine", "'None'")),
        ((*LIMIT, "cosine"), True, ("cosine", "'True'")),
        ((*LIMIT, "cosine"), "0.9", ("cosine", "'0.9'")),
        ((*LIMIT, "cosine"), float("nan"), ("cosine", "'nan'")),
        ((*LIMIT, "kl"), -1e-9, ("kl", "'-1e-09'", 0)),
        ((*LIMIT, "kl"), float("inf"), ("kl", "'inf'", 0)),
        ((*LIMIT, "cosine_mean"), 1.5, ("cosine_mean", 1.5, 1)),
        ((*NEAR, "cosine"), 2, ("cosine", 2.0, 1)),
        ((*NEAR, "kl"), "x", ("kl", "'x'")),
        (("execution", "bf16"), 1, ("bf16", "'1'")),
        (("execution", "provider"), None, ("provider", "'None'")),
        (("execution", "int8_group"), 0, ("execution.int8_group", "'0'")),
        (("execution", "int8_group"), 16.0, ("execution.int8_group", "'16.0'")),
        ((*JUDGED, "cosine_min"), None, ("cosine_min", "'None'")),
        ((*JUDGED, "kl_mean"), float("inf"), ("kl_mean", "'inf'")),
        (("accuracy", "images"), 1.5, ("images", "'1.5'")),
        (("preprocessing", "in_graph"), ["normalize"], ("in_graph", "['normalize']", "['rescale', 'normalize']")),
        (("build", "traced", "Add"), "3", ("build", "nodes")),
        (("build", "passes", 0, "ops", "Add"), None, ("build", "nodes")),
        (("build", "passes", 0, "floors"), "1", ("floors", "'1'")),
        (("build", "islands", 0), "blocks.0", ("node",)),
        (("build", "islands", 0, "largest"), "much", ("largest", "'much'")),
        (("build", "kept", 0), "blocks.0", ("layer",)),
        (("build", "token_split"), 17, ("build.token_split", "'17'")),
        (("build", "token_split", 0), 0, ("build.token_split", "'[0, 8]'")),
    ],
)
def test_a_value_that_cannot_be_in_reduced_precision_is_refused_by_its_name(
    place: Place, value: object, facts: tuple[object, ...], reduced: Document
):
    assert_mentions(refused(changed(reduced, place, value)), "export", *facts)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("accuracy",), None),
        ((*JUDGED, "top1"), None),
        (NEAR, None),
        (("execution", "int8_group"), 64),
        (("execution", "bf16"), True),
        (("execution", "provider"), "one of tomorrow"),
        (("build", "islands"), []),
        (("build", "islands", 0, "largest"), None),
        (("build", "kept"), []),
        (("build", "passes", 0, "floors"), None),
        (("parity", "limits", "embedding", "kl"), 0.5),
        ((*LIMIT, "cosine_mean"), None),
    ],
)
def test_what_may_be_absent_or_otherwise_is_taken(place: Place, value: object, reduced: Document):
    document = changed(reduced, place, value)
    assert not refused(document)
    assert parse_manifest(document).to_dict() == document


def test_every_output_has_to_have_a_limit_and_the_class_scores_one_of_their_divergence(reduced: Document):
    for name in ("logits", "embedding"):
        assert_mentions(refused(without(reduced, ("parity", "limits", name))), "limit", name)
    assert_mentions(refused(changed(reduced, (*LIMIT, "kl"), None)), "limit", "logits")
    projecting = changed(changed(reduced, (*LIMIT, "kl"), None), ("model", "projection"), True)
    assert not refused(projecting)  # its logits score no classes


# ---- a manifest against its graph ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (lambda d: d["input"].update(name="image"), ("image float32", "pixel_values float32")),
        (lambda d: d["outputs"][0].update(name="scores"), ("golden", "'logits'", "'scores'")),
        (lambda d: d["outputs"][1].update(shape=["batch", 33]), ("golden", "embedding", "[48, 32]", "[48, 33]")),
        (lambda d: d["outputs"][1].update(dtype="float16"), ("embedding float16", "embedding float32")),
        (lambda d: d["outputs"].reverse(), ("attention float32", "logits float32")),
        (lambda d: (d["outputs"].pop(), d["golden"]["outputs"].pop("attention"), d.update(golden_extremes=None)), (4, 5)),
        (lambda d: d["outputs"].append({**d["outputs"][0]}), (6, 5)),
        (lambda d: d["labels"].pop(), (9, "labels", 10, "logits")),
        (lambda d: d["preprocessing"]["resize"].update(height=48), ("(48, 32)", "(32, 32)")),
        (lambda d: d["input"].update(shape=["batch", 3, 32, 48]), ("(32, 32)", "(32, 48)")),
        (lambda d: d["preprocessing"].update(color="BGR"), ("color", "'BGR'")),
    ],
)
def test_a_manifest_that_contradicts_its_graph_or_itself_is_refused(
    change: Callable[[Document], object], facts: tuple[object, ...], tiny_model: Path, tiny_manifest: Manifest, tmp_path: Path
):
    document: Document = json.loads(tiny_manifest.to_json())
    change(document)
    document["parity"]["measured"] = []
    path = file_with(tiny_model, tmp_path, json.dumps(fitting(document)))
    with pytest.raises(ModelError) as error:
        read_manifest(path)
    assert_mentions(one_line(error), path, "export", *facts)


def test_a_manifest_that_moved_to_another_graph_is_refused(tiny_projected: Path, tiny_manifest: Manifest, tmp_path: Path):
    path = file_with(tiny_projected, tmp_path, tiny_manifest.to_json())
    with pytest.raises(ModelError) as error:
        read_manifest(path)
    assert_mentions(one_line(error), path, "embedding float32 (batch, 32)", "tokens float32 (batch, 65, 64)")


@pytest.mark.parametrize("name", ["logits", "embedding"])
def test_logits_and_embedding_are_one_row_an_image(name: str, document: Document):
    document["golden"] = document["golden_extremes"] = document["parity"] = document["labels"] = None
    next(output for output in document["outputs"] if output["name"] == name)["shape"] = ["batch", 2, 5]
    assert_mentions(refused(document), name, "('batch', 2, 5)")


# ---- free image sizes ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def free(document: Document) -> Document:
    """The manifest of a network that takes every multiple of 8 pixels."""
    document["input"].update(shape=["batch", 3, "height", "width"], multiple_of=8)
    return document


def test_a_manifest_of_any_size_has_the_preprocessings_for_a_default(free: Document, schema: jsonschema.Draft202012Validator):
    schema.validate(free)
    manifest = parse_manifest(free)
    assert (manifest.image_size, manifest.multiple_of) == ((32, 32), 8)
    assert manifest.input_shape == ("batch", 3, "height", "width")
    assert manifest.to_dict() == free


@pytest.mark.parametrize(
    ("change", "facts", "by_schema"),
    [
        (lambda d: d["input"].update(multiple_of=None), ("input.multiple_of", "'None'"), True),
        (lambda d: d["input"].update(multiple_of=0), ("input.multiple_of", "'0'"), True),
        (lambda d: d["input"].update(multiple_of=12), ("(32, 32)", 12), False),
        (lambda d: d["input"].update(shape=["batch", 3, "width", "height"]), ("input.shape", "'width', 'height'"), True),
        (lambda d: d["input"].update(shape=["batch", 3, "height", 32]), ("input.shape", "'height', 32"), True),
        (lambda d: d["input"].update(shape=["batch", 3, 32, 32]), ("input.multiple_of", "'8'", "null"), True),
        (lambda d: d["outputs"][0].update(shape=["batch", "classes"]), ("logits", "('batch', 'classes')"), False),
    ],
)
def test_a_manifest_of_any_size_that_contradicts_itself_is_refused(
    change: Callable[[Document], object],
    facts: tuple[object, ...],
    by_schema: bool,
    free: Document,
    schema: jsonschema.Draft202012Validator,
):
    change(free)
    assert_mentions(refused(fitting(free)), *facts)
    assert schema.is_valid(free) is not by_schema


def test_a_named_size_belongs_to_an_input_of_any_size(document: Document):
    document["outputs"].append({"name": "tokens", "dtype": "float32", "shape": ["batch", "tokens", 32], "meaning": "tokens"})
    assert_mentions(refused(document), "output", "['batch', 'tokens', 32]")
