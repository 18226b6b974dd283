"""What vit-parity flags and what it passes: faults in files of the trained network, and honest variants of them."""

from pathlib import Path

import parity_rates
import pytest
from export_cache import ExportCache
from parity_rates import HONEST, HONEST_SIZES, Fault, Trial, Verdict, honest, try_faults

from vit_exporter import digits_source
from vit_runtime.obstacle import Obstacle
from vit_runtime.openvino_engine import find_openvino

PROVIDERS = ["cpu", *(["openvino"] if not isinstance(find_openvino(), Obstacle) else [])]
FILES = [("portable", "fp32", 18), ("cpu", "fp32", 20), ("openvino", "fp32", 23), ("cpu", "int8", 20), ("openvino", "int8-static", 20)]
FULL, SLOW = pytest.mark.full, pytest.mark.slow


@pytest.fixture(autouse=True)
def _shared_exports(exports: ExportCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the trained network come from the shared exports."""

    def exported(folder: Path, target: str, precision: str, opset: int = 20, checkpoint: Path | None = None) -> Path:
        return exports.export(
            digits_source(), f"{target}-{precision}-opset{opset}.onnx", target=target, precision=precision, opset=opset
        ).out

    monkeypatch.setattr(parity_rates, "exported", exported)


def shares(verdicts: list[Verdict]) -> tuple[int, int]:
    """How many of the faults that matter are flagged, and how many matter."""
    matter = [verdict for verdict in verdicts if verdict.matters]
    print(f"{sum(verdict.flagged for verdict in matter)} of {len(matter)} faults that matter are flagged, of {len(verdicts)} faults")
    return sum(verdict.flagged for verdict in matter), len(matter)


def well_located(verdicts: list[Verdict]) -> float:
    """The share of the faults that matter, in files that can be run, whose part of the network is named."""
    located = [verdict.located for verdict in verdicts if verdict.matters and verdict.place is not None]
    print(f"{sum(located)} of {len(located)} faults are located in the right part")
    return sum(located) / len(located)


# `count` faults of different kinds, each in one place, or every `step`-th of all faults in all places.
@pytest.mark.parametrize(
    ("step", "count"), [(1, 12), pytest.param(9, None, marks=FULL), pytest.param(1, None, marks=SLOW)], ids=["kinds", "some", "all"]
)
def test_every_fault_in_a_float32_file_that_matters_is_flagged(tmp_path: Path, step: int, count: int | None):
    verdicts = try_faults(tmp_path, "portable", "fp32", step, count=count)
    flagged, matter = shares(verdicts)
    assert matter >= (0.9 if count is None else 0.8) * len(verdicts)  # an epsilon may change nothing; nearly everything else does
    assert [verdict.fault.name for verdict in verdicts if verdict.missed] == []
    assert flagged == matter
    assert well_located(verdicts) >= 0.95


@pytest.mark.parametrize(
    ("step", "count", "least"),
    [(1, 12, 8), pytest.param(5, None, 20, marks=FULL), pytest.param(1, None, 20, marks=SLOW)],
    ids=["kinds", "some", "all"],
)
def test_every_fault_in_an_int8_file_that_matters_is_flagged(tmp_path: Path, step: int, count: int | None, least: int):
    verdicts = try_faults(tmp_path, "cpu", "int8", step, count=count)
    flagged, matter = shares(verdicts)
    assert matter >= least
    assert [verdict.fault.name for verdict in verdicts if verdict.missed] == []
    assert flagged == matter
    assert well_located(verdicts) >= 0.95


@pytest.mark.parametrize(
    ("files", "sizes", "thread_counts"),
    [
        (FILES, (1, 3, 7), (2,)),
        pytest.param(FILES, HONEST_SIZES, (1, 2), marks=FULL),
        pytest.param(HONEST, HONEST_SIZES, (1, 2), marks=SLOW),
    ],
    ids=["some sizes", "all sizes", "all files"],
)
def test_no_honest_variant_is_flagged(
    tmp_path: Path, files: list[tuple[str, str, int]], sizes: tuple[int, ...], thread_counts: tuple[int, ...]
):
    variants = dict(honest(tmp_path, PROVIDERS, files, sizes, thread_counts))
    assert len(variants) == len(files) * len(PROVIDERS) * len(sizes) * len(thread_counts)
    assert [what for what, passed in variants.items() if not passed] == []


def test_what_matters_is_judged_by_other_images_than_the_golden_ones(tmp_path: Path):
    """A fault that changes nothing does not matter, and one that shows on other images only is a miss."""
    trial = Trial(parity_rates.exported(tmp_path, "portable", "fp32"), "cpu", tmp_path, 4)
    none = trial.try_fault(Fault("nothing", "nowhere", lambda proto: None))
    assert (none.effect, none.flagged, none.missed) == (0, False, False)
    assert Verdict(none.fault, 1.5, flagged=False).missed
