"""Files timed against one another: what is told, what goes wrong and is told, and that nothing is left running. Never how long it took."""

import contextlib
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import assert_mentions, one_line

from vit_runtime.errors import SessionError
from vit_runtime.openvino_engine import Arithmetic
from vit_runtime.providers import PROBE_MODEL, PROVIDERS, create_session
from vit_runtime.race import Entrant, Result, load, race

SHORT = 0.01  # seconds a round: one run, or a few more


def children() -> set[int]:
    """The processes that this one has started and not yet seen the end of."""
    found = set[int]()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            found |= {int(child) for child in (task / "children").read_text().split()}
    return found


@pytest.fixture(autouse=True)
def _nothing_left_running() -> Iterator[None]:
    """After every test here there are no more processes than before."""
    if not Path("/proc/self/task").is_dir():  # no Linux: the tests run, this is not looked at
        yield
        return
    before = children()
    yield
    assert children() <= before


@pytest.fixture
def tiny(tiny_model: Path) -> Entrant:
    return Entrant(tiny_model, "cpu", threads=1, batch_size=1, image=(3, 32, 32))


@pytest.fixture
def probe(tmp_path: Path) -> Entrant:
    """A file of three nodes that takes images of 1 x 2 x 2."""
    path = tmp_path / "probe.onnx"
    path.write_bytes(PROBE_MODEL)
    return Entrant(path, "cpu", threads=1, batch_size=1, image=(1, 2, 2))


@pytest.fixture
def loader(probe: Entrant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Entrant]:
    """An entrant that is loaded by code of the test's own, a module on the path."""

    def make(body: str) -> Entrant:
        (tmp_path / "own_loader.py").write_text(f"runs = 0\ndef load(entrant):\n    def run(batch):\n        {body}\n    return run\n")
        monkeypatch.syspath_prepend(tmp_path)
        return dataclasses.replace(probe, loader="own_loader:load")

    return make


def result(*rounds: tuple[float, ...]) -> Result:
    return Result(rounds, load_seconds=1.0, peak_memory=None)


def failure(entrants: list[Entrant]) -> str:
    """The message of a race that fails."""
    with pytest.raises(SessionError) as error:
        race(entrants, 2, SHORT)
    return one_line(error)


# ---- results -------------------------------------------------------------------------------------------------------------------------


def test_every_entrant_has_latencies_of_every_round(tiny: Entrant, probe: Entrant):
    rounds = list[int]()
    results = race([tiny, probe], 3, SHORT, rounds.append)
    assert rounds == [1, 2, 3]
    assert len(results) == 2
    for result in results:
        assert len(result.rounds) == 3
        assert all(result.rounds)
        assert all(latency > 0 for latencies in result.rounds for latency in latencies)
        assert len(result.medians) == 3
        assert result.percentile(0) <= result.percentile(50) <= result.percentile(100)
        assert result.load_seconds > 0
        assert result.peak_memory is None or result.peak_memory > 10 << 20


def test_results_come_in_the_order_of_the_entrants(tiny: Entrant, probe: Entrant):
    """Three nodes against sixty: no machine gets that the wrong way round."""
    slow, fast = race([tiny, probe], 2, SHORT)
    assert fast.times_faster(slow) > 1
    assert slow.times_faster(fast) < 1


def test_a_round_has_one_run_at_least_and_as_many_as_its_time_allows(probe: Entrant):
    """Three nodes take microseconds: in a fifth of a second there is room for a second run on any machine."""
    (result,) = race([probe], 2, 0)
    assert [len(latencies) for latencies in result.rounds] == [1, 1]
    (result,) = race([probe], 1, 0.2)
    assert len(result.rounds[0]) > 1


def test_openvino_runs_beside_onnxruntime(tiny_openvino_fp32: Path):
    pytest.importorskip("openvino")
    entrant = Entrant(tiny_openvino_fp32, "openvino", threads=2, batch_size=3, image=(3, 32, 32))
    results = race([entrant, dataclasses.replace(entrant, provider="cpu")], 1, 0)
    assert [len(result.rounds[0]) for result in results] == [1, 1]


@pytest.mark.parametrize(
    "arithmetic", [pytest.param(Arithmetic(), marks=pytest.mark.full), Arithmetic(int8_group=32), Arithmetic(bf16=True)]
)
def test_a_file_is_loaded_as_it_is_elsewhere_in_the_arithmetic_asked_for(arithmetic: Arithmetic, tiny_openvino: Path):
    """Each gives other numbers, on a CPU that has it."""
    pytest.importorskip("openvino")
    batch = np.random.default_rng(0).standard_normal((3, 3, 32, 32), np.float32)
    session, _ = create_session(tiny_openvino, "openvino", 2, arithmetic=arithmetic)
    expected: Any = session.run(["logits", "embedding", "tokens", "attention"], {"pixel_values": batch})
    found: Any = load(Entrant(tiny_openvino, "openvino", 2, 3, (3, 32, 32), arithmetic))(batch)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_loader_is_given_the_entrant_and_its_run_the_batch(loader: Callable[[str], Entrant]):
    """What does not fit ends the race."""
    wanted = "(4, 1, 2, 2), 'float32', 'own_loader:load', 4, (1, 2, 2)"
    entrant = loader(
        f"assert (batch.shape, batch.dtype.name, entrant.loader, entrant.batch_size, entrant.image) == ({wanted}), batch.shape"
    )
    assert race([dataclasses.replace(entrant, batch_size=4)], 1, 0)
    assert_mentions(failure([dataclasses.replace(entrant, batch_size=3)]), (3, 1, 2, 2))


def test_every_other_round_runs_backwards(loader: Callable[[str], Entrant], tmp_path: Path):
    """Each run writes down whose it was. In the first round that begins with their loading, which has the same order."""
    path = tmp_path / "order.txt"
    entrants = [dataclasses.replace(loader("open(entrant.path, 'a').write(str(entrant.threads))"), path=path, threads=n) for n in (1, 2)]

    def end_round(done: int) -> None:
        path.write_text(path.read_text() + "|")

    race(entrants, 3, 0, end_round)
    assert ["".join(dict.fromkeys(turns)) for turns in path.read_text().split("|")] == ["12", "21", "12", ""]


def test_nobody_races_nobody():
    assert race([], 2, SHORT) == []


@pytest.mark.unit
def test_the_ratio_is_the_median_of_the_rounds_ratios():
    """4, 2 and 9 times; the second round was slow for both. Of all latencies together it would be 22 / 8."""
    fast, slow = result((1.0,), (10.0, 10.0, 40.0), (2.0,)), result((4.0,), (20.0,), (18.0,))
    np.testing.assert_array_equal(fast.medians, [1, 10, 2])
    assert fast.times_faster(slow) == 4
    assert slow.times_faster(fast) == 0.25
    assert fast.times_faster(fast) == 1


@pytest.mark.unit
def test_a_percentile_is_of_all_latencies():
    found = result((1.0, 2.0), (3.0,), (4.0, 5.0))
    assert [found.percentile(percent) for percent in (0, 25, 50, 100)] == [1, 2, 3, 5]


# ---- what goes wrong -----------------------------------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_loaded_is_named_once_with_the_reason(probe: Entrant, tmp_path: Path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(PROBE_MODEL[:100])
    message = failure([probe, dataclasses.replace(probe, path=broken), probe])
    assert_mentions(message, broken, "onnxruntime", "Protobuf parsing failed")
    assert message.count(str(broken)) == 1
    assert_mentions(failure([dataclasses.replace(probe, path=tmp_path / "no.onnx")]), tmp_path / "no.onnx", "file")


def test_a_provider_that_does_not_run_here_is_told_with_the_file_that_asked_for_it(probe: Entrant):
    assert_mentions(failure([dataclasses.replace(probe, provider="cuba")]), probe.path, "'cuba'", *PROVIDERS)


def test_images_that_the_network_does_not_take_are_told_with_the_file(probe: Entrant):
    assert_mentions(failure([dataclasses.replace(probe, image=(1, 3, 2))]), probe.path, "cpu", "Expected: 2")


@pytest.mark.skipif(os.name == "nt", reason="processes end by signals on POSIX only")
def test_a_process_that_dies_in_the_middle_is_told_with_its_file(tiny: Entrant, loader: Callable[[str], Entrant]):
    """As one does that the system takes for too greedy."""
    dying = loader("global runs; runs += 1\n        if runs == 5: import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert_mentions(failure([tiny, dying]), dying.path, "cpu", "stderr", "vit-bench")


@pytest.mark.skipif(os.name == "nt", reason="processes end by signals on POSIX only")
def test_a_library_that_crashes_is_told_with_the_file_and_its_last_words(probe: Entrant, tmp_path: Path):
    """An onnxruntime that aborts while it is imported, before any other on the path."""
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text(
        "import os, sys\nprint('a word')\nprint('first', file=sys.stderr)\nprint('cannot go on', file=sys.stderr, flush=True)\nos.abort()"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from pathlib import Path\nfrom vit_runtime.errors import SessionError\nfrom vit_runtime.race import Entrant, race\n"
        f"try: race([Entrant(Path({str(probe.path)!r}), 'cpu', 1, 1, (1, 2, 2))], 1, 0)\n"
        "except SessionError as error: print(error)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=60)
    assert (answer.returncode, answer.stderr) == (0, "")
    (message,) = answer.stdout.splitlines()
    assert_mentions(message, probe.path, "cpu", "cannot go on", "vit-bench")
    assert "a word" not in message
    assert "first" not in message


def test_a_run_that_fails_in_a_later_round_is_told_with_the_file_and_the_reason(loader: Callable[[str], Entrant]):
    entrant = loader("global runs; runs += 1\n        if runs == 5: raise RuntimeError('out of memory')")
    assert_mentions(failure([entrant]), entrant.path, "RuntimeError: out of memory", "vit-bench")


def test_an_interrupted_race_leaves_nothing_running(probe: Entrant):
    """What the caller raises goes through."""

    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        race([probe, probe], 5, SHORT, interrupt)
