"""Part (j): where a step's time goes, kernel by kernel."""

import collections
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from experiments.benchmarks import hlo
from experiments.benchmarks.common import Options, Row, Spec
from experiments.benchmarks.compiled import WORKS
from experiments.benchmarks.methods import MethodContender
from experiments.benchmarks.timing import Worker, WorkerError, ratio

METHOD = (
    "Kernels of one program as jax.profiler times them, means of a few runs: those that take "
    "longest, and sums by kind. MB: what each reads and writes, counted from the compiled program "
    "as in part compiled; GB/s: MB over ms, to be held against part roofline's bandwidth. On a GPU "
    "without command buffers, in which kernels would lose their names."
)
HERE = "experiments.benchmarks.profile:ProfiledContender"
ENVIRONMENT = {"XLA_FLAGS": "--xla_gpu_enable_command_buffer="}
RUNS = 5
LONGEST = 20


def rows(spec: Spec, options: Options) -> Iterator[Row | str]:
    """The longest kernels of every program, then the sums."""
    for work, (name, program) in WORKS.items():
        try:
            with Worker(HERE, spec, name, env=ENVIRONMENT) as worker:
                keep = options.keep / work if options.keep else None
                found = worker.call("kernels", program, keep)
        except WorkerError as error:
            yield f"{spec}: {work} is left out: {error}"
            continue
        total = sum(one["ms"] for one in found) or 1.0
        sums: dict[str, dict[str, float]] = {}
        for one in found:
            part = sums.setdefault(one["kind"], {"ms": 0.0, "MB": 0.0})
            part["ms"] += one["ms"]
            part["MB"] += one["MB"]
        found.sort(key=lambda one: -one["ms"])
        shown = found[:LONGEST]
        shown += [{"kernel": "all", "kind": kind, "from": "", **sums[kind]} for kind in sums]
        for one in shown:
            yield {
                "work": work,
                "kernel": one["kernel"],
                "kind": one["kind"],
                "ms": one["ms"],
                "share_%": 100 * one["ms"] / total,
                "MB": one["MB"],
                "GB/s": ratio(one["MB"], one["ms"]),
                "from": one["from"][-70:],
            }


class ProfiledContender(MethodContender):
    """A method's programs under the profiler; lives in a `timing.Worker`."""

    def kernels(self, work: str, keep: Path | None = None) -> list[dict[str, Any]]:
        """Name, kind, ms and MB of each kernel, by one run of the program.

        `keep`: a folder for the trace and XLA's text of the program.
        """
        self.prepare(work)
        self.run(work, 1)
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                self.run(work, RUNS)
            ms = milliseconds(Path(folder))
            if keep:
                shutil.copytree(folder, keep, dirs_exist_ok=True)
        text = self.program(work, self.spec.dtype).as_text()
        if keep:
            (keep / "program.txt").write_text(text)
        return [
            {
                "kernel": kernel.name,
                "kind": kernel.kind,
                "ms": ms[kernel.name] / RUNS,
                "MB": kernel.moved / 1e6,
                "from": kernel.source,
            }
            for kernel in hlo.kernels(text)
            if kernel.name in ms
        ]


def milliseconds(folder: Path) -> Mapping[str, float]:
    """Of all runs of each instruction in a folder that `jax.profiler.trace` has written."""
    found: dict[str, float] = collections.defaultdict(float)
    for path in folder.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                for event in line.events:
                    name = dict(event.stats).get("hlo_op")
                    if name and not event.name.startswith("end: "):
                        found[str(name)] += event.duration_ns / 1e6
    return found
