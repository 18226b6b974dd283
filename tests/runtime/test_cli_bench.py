"""vit-bench: latencies, as lines and as data."""

import re
from pathlib import Path

import pytest
from helpers import QUICK, assert_mentions, document_of, run


def test_bench_times_each_batch_size(tiny_model: Path):
    result = run("vit-bench", tiny_model, "--batch-sizes", "1,3", "--threads", "1", *QUICK)
    assert result.exit_code == 0
    assert_mentions(result.stdout, tiny_model, "cpu")
    assert re.findall(r"^  (\d+) ", result.stdout, re.MULTILINE) == ["1", "3"]
    assert re.search(r"\b\d+\.\d+ s\b.*\b\d+ MB\b", result.stdout)  # time to load, peak memory


def test_bench_gives_the_same_as_data(tiny_model: Path):
    document = document_of(run("vit-bench", tiny_model, "--batch-sizes", "2,1", "--json", *QUICK))
    assert document["passed"] is True
    assert document["provider"] == "cpu"
    assert document["peak_memory"] > 10 << 20
    assert [timing["batch_size"] for timing in document["timings"]] == [2, 1]
    for timing in document["timings"]:
        assert timing["runs"] >= 5
        assert 0 < timing["p50_ms"] <= timing["p95_ms"] <= timing["p99_ms"]
        assert timing["images_per_second"] == pytest.approx(1000 * timing["batch_size"] / timing["p50_ms"])


def test_bench_fails_below_its_bar_with_exit_code_1(tiny_model: Path):
    result = run("vit-bench", tiny_model, "--max-p50-ms", "0.000001", *QUICK)
    assert result.exit_code == 1
    assert re.search(r"FAILED.*\b\d+\.\d+ ms\b.*\b1e-06 ms\b", result.stdout)
    assert document_of(run("vit-bench", tiny_model, "--max-p50-ms", "0.000001", "--json", *QUICK), 1)["passed"] is False
    assert run("vit-bench", tiny_model, "--max-p50-ms", "1000000", *QUICK).exit_code == 0


@pytest.mark.parametrize(
    "arguments", [("--seconds", "-1"), ("--warmup", "-1"), ("--max-p50-ms", "0"), ("--max-p50-ms", "nan"), ("--seconds", "nan")]
)
def test_bench_refuses_what_cannot_be_timed(arguments: tuple[str, ...], tiny_model: Path):
    result = run("vit-bench", tiny_model, *arguments)
    assert result.exit_code == 2
    assert_mentions(result.stderr, arguments[0])
