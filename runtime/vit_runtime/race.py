"""Files timed against one another: each in a process of its own, in turn, round after round.

One process after the other would compare a quiet minute of the machine with a busy one, and engines in one process slow each other down:
the threads of each go on spinning after its run. So every file is loaded once, in its own process, and they run in turn for a moment
each; what slows the machine slows them all, and ratios within a round hold.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vit_runtime.errors import SessionError
from vit_runtime.memory import peak_memory
from vit_runtime.openvino_engine import FLOAT32, Arithmetic, OpenVinoSession
from vit_runtime.providers import create_session

WARMUP = 2
_CHILD = "import json, sys; sys.path[:] = json.loads(sys.stdin.readline()); from vit_runtime.race import work; work()"


@dataclass(frozen=True)
class Entrant:
    """A file, how it is run, and the images that it gets: (C, H, W) each.

    `loader` names the function, "module:name", that is given the entrant in its process and returns what takes a batch, float32
    (batch_size, C, H, W). By default the file runs on `provider`, with its own `arithmetic`.
    """

    path: Path
    provider: str
    threads: int
    batch_size: int
    image: tuple[int, int, int]
    arithmetic: Arithmetic = FLOAT32
    loader: str = "vit_runtime.race:load"


@dataclass(frozen=True)
class Result:
    """An entrant's latencies in milliseconds a batch, round by round; seconds from its file to the first answer, and its process's peak
    memory in bytes, None where the system does not tell."""

    rounds: tuple[tuple[float, ...], ...]
    load_seconds: float
    peak_memory: int | None

    @property
    def medians(self) -> npt.NDArray[np.float64]:
        """The median of each round."""
        return np.array([np.median(latencies) for latencies in self.rounds])

    def percentile(self, percent: float) -> float:
        """Of all latencies."""
        return float(np.percentile(np.concatenate(self.rounds), percent))

    def times_faster(self, other: Result) -> float:
        """How many times faster than the other: the median of the rounds' ratios."""
        return float(np.median(other.medians / self.medians))


def race(entrants: Sequence[Entrant], rounds: int, seconds: float, tell: Callable[[int], None] = lambda done: None) -> list[Result]:
    """Time them in turn, in `rounds` rounds of `seconds` each; every other round runs backwards. `tell` hears how many rounds are done.

    Raises: SessionError if one cannot be loaded or fails, with its reason.
    """
    found: list[list[tuple[float, ...]]] = [[] for _ in entrants]
    with ExitStack() as stack:
        runners = [stack.enter_context(_Runner(entrant)) for entrant in entrants]
        for number in range(rounds):
            order = range(len(runners))
            for index in reversed(order) if number % 2 else order:
                found[index].append(tuple(runners[index].run(seconds)))
            tell(number + 1)
        costs = [runner.cost() for runner in runners]
    return [Result(tuple(latencies), *cost) for latencies, cost in zip(found, costs, strict=True)]


class _Runner:
    """The process of one entrant."""

    def __init__(self, entrant: Entrant) -> None:
        self.entrant = entrant
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._say(json.dumps([str(entry) for entry in sys.path]))
        self._say(json.dumps({**asdict(entrant), "path": str(entrant.path)}))

    def __enter__(self) -> _Runner:
        try:
            self._answer()
        except BaseException:
            self.__exit__()  # which a `with` leaves out where it has not begun
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def run(self, seconds: float) -> list[float]:
        """Latencies of one round."""
        self._say(str(seconds))
        return [float(value) for value in json.loads(self._answer())]

    def cost(self) -> tuple[float, int | None]:
        """Seconds that loading took, and the most memory so far."""
        self._say("cost")
        seconds, memory = json.loads(self._answer())
        return seconds, memory

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None  # it is a pipe
        with suppress(BrokenPipeError):  # _answer tells why it has ended
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _answer(self) -> str:
        assert self._process.stdout is not None  # it is a pipe
        for line in self._process.stdout:  # around the answers stands what libraries may have printed
            kind, _, text = line.rstrip("\n").partition(": ")
            if kind == "race":
                return text
            if kind == "race failed":
                raise SessionError(text if str(self.entrant.path) in text else f"{self.entrant.path} on {self.entrant.provider}: {text}")
        _, errors = self._process.communicate()
        last = (errors.strip().splitlines() or ["nothing on stderr"])[-1][:240]
        raise SessionError(f"{self.entrant.path} on {self.entrant.provider} took its process down ({last}); try it alone with vit-bench")


def work() -> None:
    """The child's task: load, then answer each line with a number of seconds by the latencies of a round, and "cost" by what it took."""
    spec = json.loads(sys.stdin.readline())
    try:
        entrant = Entrant(
            **{**spec, "path": Path(spec["path"]), "image": tuple(spec["image"]), "arithmetic": Arithmetic(**spec["arithmetic"])}
        )
        batch = np.random.default_rng(0).standard_normal((entrant.batch_size, *entrant.image), np.float32)
        module, name = entrant.loader.split(":")
        start = time.perf_counter()
        run = getattr(importlib.import_module(module), name)(entrant)
        run(batch)
        load_seconds = time.perf_counter() - start
        for _ in range(WARMUP - 1):
            run(batch)
    except Exception as error:  # noqa: BLE001 (whatever it is, the parent tells it)
        print(f"race failed: {' '.join(str(error).split())}", flush=True)
        return
    print("race: ready", flush=True)
    for line in sys.stdin:
        if line == "cost\n":
            print(f"race: {json.dumps([load_seconds, peak_memory()])}", flush=True)
            continue
        latencies, seconds = list[float](), float(line)
        first = _timed(run, batch)
        if first >= 1e3 * seconds:
            latencies.append(first)
        end = time.perf_counter() + seconds  # the first run is not counted if there is time for more: the processor has done other things
        while not latencies or (first < 1e3 * seconds and time.perf_counter() < end):
            latencies.append(_timed(run, batch))
        print(f"race: {json.dumps(latencies)}", flush=True)


def _timed(run: Callable[[npt.NDArray[np.float32]], object], batch: npt.NDArray[np.float32]) -> float:
    """Milliseconds of one run."""
    start = time.perf_counter()
    run(batch)
    return 1e3 * (time.perf_counter() - start)


def load(entrant: Entrant) -> Callable[[npt.NDArray[np.float32]], object]:
    """The file on its provider."""
    session, _ = create_session(entrant.path, entrant.provider, entrant.threads, arithmetic=entrant.arithmetic)
    if isinstance(session, OpenVinoSession):
        names, input_name = session.output_names, "images"  # there is but one input, and it takes what it is given
    else:
        names, input_name = [output.name for output in session.get_outputs()], session.get_inputs()[0].name
    return lambda values: session.run(names, {input_name: values})
