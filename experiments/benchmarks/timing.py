"""Processes to measure in, time in turns, and how figures are shown."""

import importlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from tqdm import tqdm

from experiments.benchmarks.common import Options, Row


class WorkerError(RuntimeError):
    """A worker failed or died."""


class Worker:
    """An object in a process of its own, which computes only while `call` waits for its answer.

    JAX and PyTorch each keep threads and a heap (on a GPU, memory), which would be in the other's
    way in one process: PyTorch's inference took a fifth longer there. So each contender has a
    process, and all cores when it is its turn.
    """

    def __init__(self, factory: str, *args: Any, env: Mapping[str, str] | None = None):
        """`factory` is "module:Class", imported in the child after `env` is set."""
        self._name = factory.split(":")[1]
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        self._do(_create, factory, args, env or {})

    def call(self, method: str, *args: Any) -> Any:
        """What the object's method returns; WorkerError if it raises or the process dies."""
        return self._do(_call, method, args)

    def cpu_ms(self, work: str) -> float:
        """Milliseconds of CPU, summed over all threads, of one `run(work, 1)`.

        Divided by the time it takes, the cores that are busy. Where others compute at the same
        time it says more than the time.
        """
        return self._do(_cpu_ms, work)

    def _do(self, function: Callable[..., Any], *args: Any) -> Any:
        try:
            return self._pool.submit(function, *args).result()
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise WorkerError(f"{self._name}: {type(error).__name__}: {reason}") from error

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()


_target: Any = None  # in a worker: its object


def _create(factory: str, args: Sequence[Any], env: Mapping[str, str]) -> None:
    global _target
    # Several processes share a GPU: none may take most of its memory at the start.
    os.environ.update({"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **env})
    module, name = factory.split(":")
    _target = getattr(importlib.import_module(module), name)(*args)


def _call(method: str, args: Sequence[Any]) -> Any:
    return getattr(_target, method)(*args)


def _cpu_ms(work: str) -> float:
    begin = time.process_time()
    _target.run(work, 1)
    return 1e3 * (time.process_time() - begin)


def job(worker: Worker, work: str, at_least: float = 0.2) -> Callable[[], float]:
    """For `interleave`: seconds of one `run(work, count)`, divided by count.

    The worker must be warm (`prepare`). A first run tells how many make a repeat of `at_least`
    seconds: on a GPU the host runs ahead of the device, and waiting for each single step would
    hide that. Before each repeat is one run that is not counted, since a loop runs one after
    another: after the others' turns the memory that a step asks for has gone back to the system,
    and to get it again took as long as the step (cardiac GAN, 256 x 256, batch 8: 0.7 and 1.6 s).
    """
    count = max(1, round(at_least / worker.call("run", work, 1)))

    def repeat() -> float:
        worker.call("run", work, 1)
        return worker.call("run", work, count) / count

    return repeat


def interleave(
    jobs: Mapping[str, Callable[[], float]], options: Options, label: str
) -> dict[str, list[float]]:
    """Seconds that each job returns, run in turn (A B C A B C ...): a slow minute slows all.

    A job that is far slower than the others runs out of `options.seconds` and is left out of later
    rounds; each has one repeat at least.
    """
    times: dict[str, list[float]] = {name: [] for name in jobs}
    spent = dict.fromkeys(jobs, 0.0)
    for number in tqdm(range(options.repeats), desc=label, unit="round", leave=False):
        for name, run in jobs.items():
            if number and spent[name] >= options.seconds:
                continue
            begin = time.perf_counter()
            times[name].append(run())
            spent[name] += time.perf_counter() - begin
    return times


def median_ms(seconds: Sequence[float]) -> float | None:
    """The median in milliseconds; None of nothing."""
    return 1e3 * statistics.median(seconds) if seconds else None


def ratio(a: float | None, b: float | None) -> float | None:
    """a / b where there are both."""
    return a / b if a and b else None


def table(rows: Sequence[Row]) -> str:
    """Rows under their keys; what a value holds several figures of is for the JSON alone."""
    flat = [{k: v for k, v in row.items() if not isinstance(v, dict)} for row in rows]
    lines = [list(flat[0]), *([_cell(v) for v in row.values()] for row in flat)] if flat else []
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.{0 if value >= 100 else 2}f}"
    return "-" if value is None else str(value)
