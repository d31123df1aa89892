"""What the parts share: what is measured, processes to measure in, and how figures are shown.

Nothing here imports JAX or PyTorch: a process loads only the one that it measures.
"""

import dataclasses
import importlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

# "ResidualBlock_0/Conv_1/kernel" -> array in the layout of the Flax parameters.
Weights = dict[str, np.ndarray]
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Spec:
    """One training problem; the network and loss of `HeatmapRegression` and its defaults."""

    volume: tuple[int, int, int]  # voxels
    batch: int = 1
    landmarks: int = 19
    widths: tuple[int, ...] = (16, 32, 64, 128)
    head: int = 64
    margin: int = 8
    translation: int = 4  # voxels, of the work "step+translation"; at most the margin
    spacing_mm: tuple[float, float, float] = (0.513, 0.513, 0.8)
    sigma_mm: float = 1.5
    alpha: float = 1000.0
    learning_rate: float = 1e-4
    platform: str = "cpu"  # "cpu" or "gpu", for JAX and PyTorch alike

    @property
    def dtype(self) -> str:
        """Arithmetic while timed; equality is always shown in float32."""
        return "float32" if self.platform == "cpu" else "bfloat16"

    @property
    def size(self) -> str:
        """The volume as people write it."""
        return "x".join(map(str, self.volume))


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    volumes: tuple[tuple[int, int, int], ...]
    repeats: int
    seconds: float  # after which no further repeat of one comparison is begun
    batches: tuple[int, ...] = (1, 2, 4)
    landmarks: tuple[int, ...] = (5, 19, 45)
    spec: Spec = Spec((0, 0, 0))  # all but the volume

    def specs(self) -> list[Spec]:
        """One for each volume."""
        return [dataclasses.replace(self.spec, volume=volume) for volume in self.volumes]


@dataclasses.dataclass(frozen=True)
class Part:
    """Figures and how they were got."""

    title: str
    method: str
    rows: list[Row]
    notes: list[str] = dataclasses.field(default_factory=list)


def cores() -> int:
    """That this process may use."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def example(spec: Spec) -> dict[str, np.ndarray]:
    """A batch of noise as the pipeline makes them: fields of `jaxmark.methods.method.Batch`.

    Landmarks lie anywhere in the crop, voxel fractions included; the last one is absent.
    """
    rng = np.random.default_rng(0)
    full = [n + 2 * spec.margin for n in spec.volume]
    points = rng.uniform(spec.margin, np.add(spec.volume, spec.margin) - 1, (spec.landmarks, 3))
    present = np.ones((spec.batch, spec.landmarks), bool)
    present[:, -1] = False
    return {
        "image": rng.random((spec.batch, *full, 1), np.float32).astype(np.float16),
        "landmarks_ijk": np.tile(points, (spec.batch, 1, 1)).astype(np.float32),
        "present": present,
    }


class WorkerError(RuntimeError):
    """A worker failed or died."""


class Worker:
    """An object in a process of its own, which computes only while `call` waits for its answer.

    JAX and PyTorch each keep a pool of threads and a heap; in one process they would disturb each
    other's. So each contender has a process, and all cores whenever it is its turn.
    """

    def __init__(self, factory: str, *args: Any, env: Mapping[str, str] | None = None):
        """`factory` is "module:Class", imported in the child."""
        context = multiprocessing.get_context("spawn")
        self._name = factory
        self._pipe, child = context.Pipe()
        # Several processes share a GPU: none may take most of its memory at the start.
        env = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **(env or {})}
        job = (child, factory, args, env)
        self._process = context.Process(target=_serve, args=job, daemon=True)
        self._process.start()
        child.close()
        self._answer()

    def call(self, method: str, *args: Any) -> Any:
        """What the method returns; WorkerError if it raises or the process dies."""
        self._pipe.send((method, args))
        return self._answer()

    def _answer(self) -> Any:
        try:
            error, value = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join(5)
            code = self._process.exitcode
            raise WorkerError(f"{self._name} died, exit code {code} (-9: out of memory)") from None
        if error:
            raise WorkerError(f"{self._name}: {error}")
        return value

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.terminate()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(pipe: Connection, factory: str, args: Sequence[Any], env: Mapping[str, str]) -> None:
    os.environ.update(env)  # before JAX is imported
    flags.FLAGS.mark_as_parsed()  # Grain reads absl's flags
    module, name = factory.split(":")
    # The first request is to exist, and has no answer but that.
    request: tuple[str, Sequence[Any]] | None = None
    target: Any = None
    while True:
        try:
            if request is None:
                target, value = getattr(importlib.import_module(module), name)(*args), None
            else:
                value = getattr(target, request[0])(*request[1])
            pipe.send((None, value))
        except Exception as error:
            pipe.send((f"{type(error).__name__}: {str(error)[:300]}", None))
        try:
            request = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return


def interleave(
    jobs: Mapping[str, Callable[[], float]], options: Options, label: str
) -> dict[str, list[float]]:
    """Seconds of each job, run in turn (A B C A B C ...): a slow minute slows all of them.

    A job returns its own seconds. At least one round, at most `repeats`; none begins late.
    """
    times: dict[str, list[float]] = {name: [] for name in jobs}
    begin = time.monotonic()
    for _ in tqdm(range(options.repeats), desc=label, unit="round", leave=False):
        for name, job in jobs.items():
            times[name].append(job())
        if time.monotonic() - begin > options.seconds:
            break
    return times


def timed(worker: Worker, work: str, at_least: float = 0.2) -> tuple[Callable[[], float], float]:
    """A job for `interleave`, seconds of one `run(work, count)`; and those of the first one.

    The first one compiles, the second tells how many make a repeat of `at_least` seconds: on a GPU
    the loop runs ahead of the device, and waiting for each single step would hide that.
    """
    first = worker.call("run", work, 1)
    count = max(1, round(at_least / worker.call("run", work, 1)))
    return lambda: worker.call("run", work, count) / count, first


def median_ms(seconds: Sequence[float] | None) -> float | None:
    """The median in milliseconds; None of nothing."""
    return 1e3 * statistics.median(seconds) if seconds else None


def ratio(a: float | None, b: float | None) -> float | None:
    """a / b where there are both."""
    return a / b if a and b else None


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference as a share of the largest value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def table(rows: Sequence[Row]) -> str:
    """Rows under their keys, right-aligned; lists (single times) are for the JSON alone."""
    shown = [{k: _cell(v) for k, v in row.items() if not isinstance(v, list)} for row in rows]
    lines = [list(shown[0]), *(list(row.values()) for row in shown)] if shown else []
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.{0 if value >= 100 else 2}f}"
    return "-" if value is None else str(value)
