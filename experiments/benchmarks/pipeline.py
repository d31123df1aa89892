"""Part (b): does the input pipeline keep up with the step?"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from common import Options, Part, Row, Spec, Worker, example, interleave, median_ms, ratio, timed
from contenders import JaxContender

from jaxmark.config import Train
from jaxmark.data.cases import PreparedCase, save_case
from jaxmark.data.pipeline import HostBatch, training_batches
from jaxmark.methods.method import Batch
from jaxmark.training.sharding import put_batch

CASES = 8
METHOD = (
    f"{CASES} synthetic prepared cases (float16, crop and margin) in a temporary folder, read back "
    "from the page cache. Supply: training_batches, put on the device and waited for, nothing else "
    "running. Step: alone, on a batch held by the device. Loop: both, as in training. Interleaved, "
    "medians, in volumes/s."
)


class FedContender(JaxContender):
    """jaxmark with its input pipeline."""

    def __init__(self, spec: Spec, folder: str):
        super().__init__(spec, "jaxmark")
        train = Train()
        self._batches: Iterator[HostBatch] = training_batches(
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
        state, program = self.state(), self.compiled("step")
        batch: Batch | None = None
        begin = time.perf_counter()
        for _ in range(count):
            batch = Batch(**put_batch(self.mesh, next(self._batches)))
            if work == "loop":
                state, _ = program(state, batch, self.key)
        jax.block_until_ready((state, batch))
        seconds = time.perf_counter() - begin
        self._state = state
        return seconds


def write_cases(spec: Spec, folder: Path) -> list[PreparedCase]:
    """Prepared cases of noise, on disk."""
    one = {name: value[0] for name, value in example(spec).items()}
    cases = [
        PreparedCase(
            name=f"case{number}",
            folder=folder / f"case{number}",
            ijk_to_lps=np.diag([*spec.spacing_mm, 1.0]),
            landmarks_mm=one["landmarks_ijk"] * spec.spacing_mm,
            present=one["present"],
            quality=np.nan,
        )
        for number in range(CASES)
    ]
    for case in cases:
        save_case(case, one["image"][..., 0], folder)
    return cases


def measure(options: Options) -> Part:
    """One row a volume."""
    return Part("input pipeline", METHOD, [row(spec, options) for spec in options.specs()])


def row(spec: Spec, options: Options) -> Row:
    """Volumes/s of supply, step and both."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Worker("pipeline:FedContender", spec, folder) as worker,
    ):
        # Longer than what lies ready at the start of a repeat, which the one before has left.
        jobs = {work: timed(worker, work, 1.0)[0] for work in ("supply", "step", "loop")}
        times = interleave(jobs, options, f"{spec.size} pipeline")
    rates = {name: ratio(1e3 * spec.batch, median_ms(seconds)) for name, seconds in times.items()}
    return {
        "volume": spec.size,
        "batch": spec.batch,
        **{f"{name}_per_s": rate for name, rate in rates.items()},
        "supply/step": ratio(rates["supply"], rates["step"]),
        "loop/step": ratio(rates["loop"], rates["step"]),
        **{f"{name}_seconds": values for name, values in times.items()},
    }
