"""What vit-parity flags and what it passes: faults in files of the trained network, and honest variants of them."""

import runpy
from pathlib import Path

import pytest

from vit_runtime.obstacle import Obstacle
from vit_runtime.openvino_engine import find_openvino

SUITE = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "parity_rates.py"))
PROVIDERS = ["cpu", *(["openvino"] if not isinstance(find_openvino(), Obstacle) else [])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("rates")


def shares(verdicts) -> tuple[int, int]:
    matter = [verdict for verdict in verdicts if verdict.matters]
    print(f"{sum(v.flagged for v in matter)} of {len(matter)} faults that matter are flagged, {len(verdicts)} were put in")
    return sum(verdict.flagged for verdict in matter), len(matter)


def well_located(verdicts) -> float:
    """The share of the faults that matter, and can be run, whose part of the network is named."""
    looked = [verdict for verdict in verdicts if verdict.matters and verdict.place is not None]
    print(f"{sum(v.located for v in looked)} of {len(looked)} are located rightly")
    return sum(verdict.located for verdict in looked) / len(looked)


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_every_fault_in_a_float32_file_that_matters_is_flagged(folder, step):
    verdicts = SUITE["try_faults"](folder, "portable", "fp32", step)
    flagged, matter = shares(verdicts)
    assert matter >= 0.9 * len(verdicts)  # an epsilon may change nothing; nearly everything else does
    assert [verdict.fault.name for verdict in verdicts if verdict.missed] == []
    assert flagged == matter
    assert well_located(verdicts) >= 0.95


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_every_fault_in_an_int8_file_that_matters_is_flagged(folder, step):
    verdicts = SUITE["try_faults"](folder, "cpu", "int8", step)
    flagged, matter = shares(verdicts)
    assert matter >= 20
    assert [verdict.fault.name for verdict in verdicts if verdict.missed] == []
    assert flagged == matter
    assert well_located(verdicts) >= 0.95


@pytest.mark.parametrize(
    "files",
    [
        [("portable", "fp32", 18), ("cpu", "fp32", 20), ("openvino", "fp32", 23), ("cpu", "int8", 20), ("openvino", "int8-static", 20)],
        pytest.param(SUITE["HONEST"], marks=pytest.mark.slow),
    ],
    ids=len,
)
def test_no_honest_variant_is_flagged(folder, files):
    variants = dict(SUITE["honest"](folder, PROVIDERS, files))
    assert len(variants) == len(files) * len(PROVIDERS) * 2 * 16
    assert [what for what, passed in variants.items() if not passed] == []


def test_what_matters_is_judged_by_other_images_than_the_golden_ones(folder):
    """A fault that changes nothing does not matter, and one that is seen on other images alone is a miss."""
    trial = SUITE["Trial"](SUITE["exported"](folder, "portable", "fp32"), "cpu", folder, 4)
    none = trial.judge(SUITE["Fault"]("nothing", "nowhere", lambda proto: None))
    assert (none.effect, none.flagged, none.missed) == (0, False, False)
    assert SUITE["Verdict"](none.fault, 1.5, flagged=False).missed
