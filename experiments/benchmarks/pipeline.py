"""Part (b): does the input pipeline keep up with the step?"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh

from experiments.benchmarks.common import Options, Row, Spec, example
from experiments.benchmarks.contenders import JaxContender
from experiments.benchmarks.timing import Worker, interleave, job, median_ms, ratio
from jaxmark.config import Train
from jaxmark.data.cases import PreparedCase, save_case
from jaxmark.data.pipeline import training_batches
from jaxmark.methods.method import Batch
from jaxmark.system.devices import put_batch

CASES = 8
METHOD = (
    f"{CASES} synthetic prepared cases (float16, crop and margin) in a temporary folder, read back "
    "from the page cache. Supply: training_batches, put on the device and waited for, nothing else "
    "running. Step: alone, on a batch held by the device. Loop: both, as in training. Interleaved, "
    "medians, in volumes/s."
)


def rows(spec: Spec, options: Options) -> Iterator[Row]:
    """Volumes/s of supply, step and both."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Worker("experiments.benchmarks.pipeline:FedContender", spec, folder) as worker,
    ):
        worker.call("run", "loop", 1)  # compiles
        # Longer than what lies ready at the start of a repeat, which the one before has left.
        jobs = {work: job(worker, work, 1.0) for work in ("supply", "step", "loop")}
        times = interleave(jobs, options, f"{spec} pipeline")
    rates = {name: ratio(1e3 * spec.batch, median_ms(seconds)) for name, seconds in times.items()}
    yield {
        **spec.columns,
        **{f"{name}_per_s": rate for name, rate in rates.items()},
        "supply/step": ratio(rates["supply"], rates["step"]),
        "loop/step": ratio(rates["loop"], rates["step"]),
        "seconds": times,
    }


class FedContender(JaxContender):
    """jaxmark with its input pipeline."""

    def __init__(self, spec: Spec, folder: str):
        super().__init__(spec, "jaxmark")
        flags.FLAGS.mark_as_parsed()  # Grain reads absl's flags
        self._mesh = Mesh(jax.devices()[:1], ("data",))
        train = Train()
        self._batches = training_batches(
            write_cases(spec, Path(folder)),
            batch=spec.batch,
            seed=0,
            threads=train.loader_threads,
            prefetch=train.prefetch,
        )

    def run(self, work: str, count: int) -> float:
        """As JaxContender's, and "supply" and "loop"."""
        if work not in ("supply", "loop"):
            return super().run(work, count)
        program = self.program("step", self.spec.dtype)
        state = jax.block_until_ready(self.state)
        batch: Batch | None = None
        begin = time.perf_counter()
        for _ in range(count):
            batch = Batch(**put_batch(self._mesh, next(self._batches)))
            if work == "loop":
                state, _ = program(state, batch, self.key)
        jax.block_until_ready((state, batch))
        seconds = time.perf_counter() - begin
        self.state = state
        return seconds


def write_cases(spec: Spec, folder: Path) -> list[PreparedCase]:
    """Prepared cases of noise, on disk."""
    one = {name: value[0] for name, value in example(spec).items()}
    cases = []
    for number in range(CASES):
        case = PreparedCase(
            name=f"case{number}",
            folder=folder / f"case{number}",
            ijk_to_lps=np.diag([*spec.spacing_mm, 1.0]),
            landmarks_mm=one["landmarks_ijk"] * spec.spacing_mm,
            present=one["present"],
            absent=one["absent"],
        )
        save_case(case, one["image"][..., 0], folder)
        cases.append(case)
    return cases
