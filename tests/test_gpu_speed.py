"""The benchmark that waits for a GPU: what it says without one, and what it writes, from results that are made up here."""

import subprocess
import sys
from pathlib import Path

import pytest
from gpu_speed import BEGIN, END, PAGE, entrants, gpu_median, table, written
from helpers import assert_mentions, failed, one_line

from vit_runtime.providers import probe

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu_speed.py"


def test_without_a_gpu_it_says_why_and_ends_with_4():
    answer = probe("cuda")
    if answer.works:
        pytest.skip("CUDA works here")
    result = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, timeout=120, check=False)
    assert_mentions(failed(result, 4), answer.reason, answer.remedy)


@pytest.mark.unit
@pytest.mark.parametrize("tensorrt", [False, True])
def test_each_engine_of_a_cell_is_named_once_and_without_tensorrt_there_is_none_of_it(tensorrt: bool, tmp_path: Path):
    for arch, name in (
        ("B", "checkpoint"),
        *(("B", f"ours-{kind}-{bits}.onnx") for kind in ("cuda", "tensorrt") for bits in ("fp32", "fp16")),
    ):
        (tmp_path / arch / name).mkdir(parents=True)
    by_name = dict(entrants("B", 8, tmp_path, tensorrt))
    assert len(by_name) == (12 if tensorrt else 8)
    assert any("tensorrt" in name for name in by_name) == tensorrt
    assert {entrant.batch_size for entrant in by_name.values()} == {8}


@pytest.mark.unit
def test_the_page_gets_the_tables_in_place_of_the_earlier_ones():
    page = PAGE.read_text()
    first = written(page, ["one", "two"])
    assert "\none\n\ntwo\n" in first
    assert written(written(page, ["earlier"]), ["one", "two"]) == first
    with pytest.raises(ValueError, match=BEGIN) as raised:
        written("a page", ["one"])
    assert_mentions(one_line(raised), BEGIN, END)


@pytest.mark.unit
def test_a_table_has_the_fastest_first_and_says_what_ran_it():
    rows = [
        {"name": name, "p50_ms": p50, "p95_ms": 2 * p50, "images_per_second": 8e3 / p50, "against_eager_fp16": 4 / p50, "load_s": 1.0}
        for name, p50 in (("torch eager fp16", 4.0), ("ours, tensorrt fp16", 2.0))
    ]
    document = {
        "arch": "B", "batch_size": 8, "rows": rows, "trtexec_gpu_ms": {"fp16": 1.5, "fp32": None}, "gpu": "L4, driver 580",
        "processor": "CPU", "versions": {"torch": "2.13"}, "date": "2026-11-26",
    }  # fmt: skip
    title, *rest = table(document).split("\n\n")
    assert_mentions(title, "ViT-B/16", 8)
    fastest = rest[0].split("\n")[2]
    assert [cell.strip() for cell in fastest.strip("|").split("|")] == [rows[1]["name"], "2.00", "4.00", "4000", "2.00x", "1.0"]
    assert_mentions(rest[1], "trtexec", "fp16", "1.50 ms")
    assert "fp32" not in rest[1]
    assert_mentions(rest[-1], "L4", 580, "CPU", "torch 2.13", "2026-11-26")


@pytest.mark.unit
def test_trtexecs_median_is_read_and_a_failure_has_none():
    text = "[I] GPU Compute Time: min = 1.2 ms, max = 1.9 ms, mean = 1.31 ms, median = 1.29 ms, percentile(90%) = 1.4 ms"
    assert gpu_median(f"[I] Latency: median = 9 ms\n{text}\n") == 1.29
    assert gpu_median("[E] Engine could not be created from network") is None
