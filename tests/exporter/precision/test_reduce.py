"""A graph in reduced precision keeps the layers that its accuracy needs, judged on images that the search does not look at."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from export_cache import ExportCache
from helpers import assert_mentions, one_line
from networks import SHALLOW, TINY, randomized, source_of

from vit_exporter import ExportSpec, VerificationError, export
from vit_exporter.passes.applying import apply
from vit_exporter.passes.fold_normalization import FoldNormalization
from vit_exporter.passes.fuse_multi_head_attention import FuseMultiHeadAttention
from vit_exporter.precision.reduce import Judge, Reduced, execution_of, reduce
from vit_exporter.precision.sensitivity import Budget
from vit_exporter.reference import float32_outputs
from vit_exporter.targets import TARGETS
from vit_exporter.trace import trace
from vit_models import ViT
from vit_runtime.errors import InputError
from vit_runtime.golden import golden_images
from vit_runtime.manifest import Execution, read_manifest
from vit_runtime.preprocess import Preprocessing, normalize

PREPARED = Preprocessing.paper(32, 32)
SENSITIVE = "blocks.1.mlp.fc1"
OUTLIER = 300.0  # of which int8 has 127 steps and four bits have 8: the rest of a channel's weights become 0
BUDGET = Budget(0.05)
IMAGES = 8  # of each kind: enough for an average, few enough for dozens of networks


@dataclass(frozen=True)
class Network:
    """A network's exact graph, the same with attention spelled out, and judges: on images to search with, on others, and on third ones."""

    graph: ir.Model
    unfused: ir.Model
    judges: tuple[Judge, Judge]
    third: Judge


def pixel_values(seed: int) -> np.ndarray:
    return normalize(golden_images(seed, IMAGES, 32, 32), PREPARED)


def judge(model: ViT, seed: int) -> Judge:
    images = pixel_values(seed)
    return Judge("cpu", Execution(), images, float32_outputs(model, images), "logits")


def network(model: ViT, exports: ExportCache) -> Network:
    passes = [each for each in TARGETS["openvino"].passes(PREPARED) if not isinstance(each, FoldNormalization)]
    unfused, _ = apply(exports.graph("traced", model, 20, lambda: trace(model, 20)), passes)
    graph, _ = apply(unfused.clone(), [FuseMultiHeadAttention()])
    return Network(graph, unfused, (judge(model, 1), judge(model, 2)), judge(model, 3))


def with_outlier() -> ViT:
    """One channel of SENSITIVE's input is small and its weights are as much larger.

    The numbers stay what they were, but a scale that fits those weights fits no others of their output channel.
    """
    model = randomized(TINY)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in ("weight", "bias"):
            parameters[f"blocks.1.norm2.{name}"][5] /= OUTLIER
        parameters[f"{SENSITIVE}.weight"][:, 5] *= OUTLIER
    return model


@pytest.fixture(scope="module")
def planted(exports: ExportCache) -> Network:
    return network(with_outlier(), exports)


def reduced(made: Network, precision: str, budget: Budget | None = None, **options) -> Reduced:
    target = TARGETS[options.pop("target", "cpu")]
    judges, keep, tell = options.pop("judges", made.judges), options.pop("keep", ()), options.pop("tell", lambda text: None)
    assert not options
    return reduce(made.graph.clone(), target, precision, pixel_values(1), keep, judges, budget, tell)


def quantized_layers(graph: ir.Model) -> set[str]:
    kinds = (ir.DataType.INT8, ir.DataType.UINT8)
    weights = {name for name, value in graph.graph.initializers.items() if value.dtype in kinds}
    return {name.removesuffix(".weight") for name in weights if name.endswith(".weight")}


ALL = {
    *(f"blocks.{block}.{layer}" for block in range(2) for layer in ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2")),
}


# --- a budget ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["int8", "int4w"])
def test_without_a_budget_every_layer_is_quantised_and_the_planted_outlier_shows(planted, precision):
    found = reduced(planted, precision)
    assert found.kept == ()
    assert quantized_layers(found.graph) == ALL
    assert not BUDGET.within(planted.third(found.graph))


def test_with_a_budget_the_guilty_layer_alone_is_kept_and_other_images_are_within_it(planted):
    found = reduced(planted, "int8", BUDGET)
    assert [each.layer for each in found.kept] == [SENSITIVE]
    assert quantized_layers(found.graph) == ALL - {SENSITIVE}
    assert BUDGET.within(planted.judges[1](found.graph))
    assert BUDGET.within(planted.third(found.graph))
    (kept,) = found.kept
    assert kept.before is not None
    assert kept.after is not None
    assert kept.before < 1 - BUDGET.drop / 10 <= kept.after


def test_four_bits_keep_the_guilty_layer_first_and_others_as_far_as_it_takes(planted):
    budget = Budget(0.02)  # on average 0.002, and all but the guilty layer in four bits leave about as much
    found = reduced(planted, "int4w", budget)
    assert found.kept[0].layer == SENSITIVE
    assert 1 < len(found.kept) < len(ALL)
    assert quantized_layers(found.graph) == ALL - {each.layer for each in found.kept}
    assert budget.within(planted.judges[1](found.graph))


def test_a_budget_that_is_kept_without_help_keeps_no_layer(planted):
    assert reduced(planted, "int8", Budget(0.9)).kept == ()


def test_a_budget_that_nothing_keeps_leaves_every_layer_in_float32(planted):
    """Not even float32 summed in another order is within 1e-15."""
    found = reduced(planted, "int8", Budget(1e-15))
    assert {each.layer for each in found.kept} == ALL
    assert quantized_layers(found.graph) == set()


def test_where_other_images_need_more_than_the_searched_ones_more_layers_are_kept(planted):
    """Images of a quarter of the contrast, which leave a cosine of 0.9968 where the others leave 0.9978: a budget between them."""
    budget, flat = Budget(0.03), planted.third.pixel_values / 4
    other = Judge("cpu", Execution(), flat, outputs(planted.graph, flat), "logits")
    assert len(reduced(planted, "int4w", budget).kept) == 1
    found = reduced(planted, "int4w", budget, judges=(planted.judges[0], other))
    assert 1 < len(found.kept) < len(ALL)
    assert budget.within(other(found.graph))


def test_a_search_whose_own_images_show_nothing_ends_with_every_layer_kept(planted):
    """As with a head of one class: its cosine is 1 or -1, and where it is 1 for every image searched, no layer is guilty."""
    blind = planted.judges[0]
    blind = Judge("cpu", Execution(), blind.pixel_values, outputs(reduced(planted, "int4w").graph, blind.pixel_values), "logits")
    found = reduced(planted, "int4w", BUDGET, judges=(blind, planted.judges[1]))
    assert {each.layer for each in found.kept} == ALL


def test_who_watches_hears_of_the_search(planted):
    messages = list[str]()
    reduced(planted, "int8", BUDGET, tell=messages.append)
    for number, text in enumerate(messages[:12], 1):
        assert_mentions(text, number, 12)
    assert_mentions(messages[11], SENSITIVE.replace("fc1", "fc2"))
    assert_mentions(messages[12], 0, SENSITIVE)  # layers that are kept so far, and the next one


def outputs(graph: ir.Model, images: np.ndarray) -> dict[str, np.ndarray]:
    """What a graph makes of the images, one by one, as a judge runs them."""
    session = ort.InferenceSession(ir.to_proto(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    names = [str(value.name) for value in graph.graph.outputs]
    parts = [session.run(names, {"pixel_values": image[None]}) for image in images]
    return {name: np.concatenate([part[place] for part in parts]) for place, name in enumerate(names)}


# --- layers that the caller keeps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["int8", "int4w"])
def test_layers_to_keep_stay_in_float32_without_a_search(planted, precision):
    keep = ("blocks.0.attn.v", SENSITIVE)
    found = reduced(planted, precision, keep=keep, judges=None)
    assert [(each.layer, each.before, each.after) for each in found.kept] == [(name, None, None) for name in keep]
    assert quantized_layers(found.graph) == ALL - set(keep)


def test_a_search_begins_with_the_layers_to_keep(planted):
    """With the guilty one among them there is nothing left to find."""
    assert [each.layer for each in reduced(planted, "int8", BUDGET, keep=(SENSITIVE,)).kept] == [SENSITIVE]
    found = reduced(planted, "int8", BUDGET, keep=("blocks.0.attn.v",))
    assert [each.layer for each in found.kept] == ["blocks.0.attn.v", SENSITIVE]


def test_a_layer_that_is_not_there_is_refused_with_the_nearest(planted):
    with pytest.raises(InputError) as raised:
        reduced(planted, "int8", keep=("blocks.1.mlp.fc3",))
    message = one_line(raised)
    assert_mentions(message, "--keep", "blocks.1.mlp.fc3")
    assert any(name in message for name in ("blocks.1.mlp.fc1", "blocks.1.mlp.fc2"))  # the nearest names


# --- every precision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "precision", "passes"),
    [
        ("portable", "fp16", ["StoreHalf"]),
        ("openvino", "bf16", ["StoreHalf"]),
        ("portable", "int8", ["QuantizeDynamic"]),
        ("cpu", "int8", ["QuantizeDynamic"]),
        ("openvino", "int8", ["QuantizeWeights"]),
        ("cpu", "int4w", ["QuantizeBlocks"]),
        ("portable", "int8-static", ["SmoothProducts", "QuantizeStatic", "FoldSmoothing"]),
    ],
)
def test_what_makes_a_precision_is_told_with_the_nodes_before_and_after(unfused, target, precision, passes):
    found = reduce(unfused, TARGETS[target], precision, pixel_values(1), (), None, None, lambda text: None)
    assert [each["name"] for each in found.passes] == passes
    assert found.passes[0]["nodes_before"] == len(unfused.graph)
    assert found.passes[-1]["nodes_after"] == len(found.graph.graph) == sum(found.passes[-1]["ops"].values())
    assert found.kept == ()


@pytest.fixture
def unfused(planted) -> ir.Model:
    """The network with attention spelled out, which every precision takes."""
    return planted.unfused.clone()


def test_the_graph_that_is_reduced_stays_as_it_was(unfused):
    """The pipeline has others made of it."""
    before = ir.to_proto(unfused).SerializeToString(deterministic=True)
    for target, precision in (("portable", "fp16"), ("cpu", "int8"), ("openvino", "int8"), ("cpu", "int4w")):
        reduce(unfused, TARGETS[target], precision, pixel_values(1), (), None, None, lambda text: None)
        assert ir.to_proto(unfused).SerializeToString(deterministic=True) == before, precision


@pytest.mark.unit
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "int8-static", "int4w"])
@pytest.mark.parametrize("target", ["portable", "cpu", "openvino"])
def test_only_openvino_is_told_what_to_compute_in(target, precision):
    found = execution_of(TARGETS[target], precision, 32)
    if target != "openvino":
        assert found == Execution("cpu", bf16=False, int8_group=None)
    else:
        narrow = precision.startswith("int8")
        assert found == Execution("openvino", bf16=narrow or precision == "bf16", int8_group=32 if narrow else None)


# --- the judge --------------------------------------------------------------------------------------------------------


def test_a_judge_finds_the_exact_graph_as_near_as_float32_is(planted):
    for found in planted.judges[0](planted.graph).values():
        # float32's rounding is 6e-8, and a cosine falls with the square of what is off
        assert found.cosine_min > 1 - 1e-9


def test_a_judge_of_fewer_images_takes_them_evenly_with_what_is_expected_of_them(planted):
    judge = planted.judges[0]
    fewer = judge.first(3)
    np.testing.assert_array_equal(fewer.pixel_values, judge.pixel_values[[0, 3, 7]])
    for name, values in judge.expected.items():
        np.testing.assert_array_equal(fewer.expected[name], values[[0, 3, 7]])
    assert len(judge.first(100).pixel_values) == IMAGES


def test_a_judge_of_a_file_finds_what_it_finds_of_the_graph(planted, tmp_path):
    ir.save(planted.graph, tmp_path / "graph.onnx")
    assert planted.third.of_file(tmp_path / "graph.onnx", "pixel_values") == planted.third(planted.graph)


# --- a whole export ---------------------------------------------------------------------------------------------------


def test_a_files_accuracy_is_within_the_budget_that_was_asked_for(exports: ExportCache):
    report = exports.export(source_of(with_outlier()), target="cpu", precision="int8", max_drop=BUDGET.drop)
    manifest = report.manifest
    assert [each["layer"] for each in manifest.build["kept"]] == [SENSITIVE]
    assert manifest.accuracy is not None
    assert BUDGET.within(manifest.accuracy.outputs)
    assert read_manifest(report.out)[0].accuracy == manifest.accuracy


def test_a_file_that_is_beyond_the_budget_with_every_layer_kept_is_not_written(tmp_path):
    """In static int8 weights are stored in int8 in any case, and their rounding alone costs more than a millionth."""
    (tmp_path / "vit.onnx").write_bytes(b"an earlier model")
    spec = ExportSpec(tmp_path / "vit.onnx", precision="int8-static", max_drop=1e-6, force=True)
    with pytest.raises(VerificationError) as raised:
        export(lambda: source_of(randomized(SHALLOW)), spec)
    assert_mentions(one_line(raised), "--max-drop 1e-06")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"vit.onnx": b"an earlier model"}
