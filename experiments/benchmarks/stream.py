"""How fast label maps of synthetic people are drawn, and how long steps wait for them.

python -m experiments.benchmarks.stream --step_s=0.5

Phantoms a second are those that an idle reader gets, of processes that do nothing else. A step
computes meanwhile, here in NumPy on one core, and so competes for the cores as training does.

Last come the training steps of `cow_any.py:small`: with images drawn from label maps on the device,
and with the arteries' shares of the voxels in their place, in turns.
"""

import dataclasses
import functools
import time
from collections.abc import Callable

import jax
import numpy as np
from absl import app, flags

from experiments import cow_any
from jaxmark.core import native
from jaxmark.data.cases import HostBatch
from jaxmark.data.phantoms.cow.cohort import CirclePhantom
from jaxmark.data.pipeline import streamed_batches
from jaxmark.data.stream import Order, drawing_pool
from jaxmark.methods.method import Batch, Phase, State
from jaxmark.system.devices import local_mesh
from jaxmark.workflow import task_of

_WORKERS = flags.DEFINE_list("workers", ["1", "2"], "Numbers of processes.")
_REUSE = flags.DEFINE_list("reuse", ["1", "4"], "How often each is seen.")
_STEP_S = flags.DEFINE_float("step_s", 0.5, "CPU seconds of a step.")
_STEPS = flags.DEFINE_integer("steps", 48, "Steps that are counted, of two cases each.")
_PAIRS = flags.DEFINE_integer("pairs", 15, "Training steps with and without appearance.")

WINDOW, BATCH = 8, 2


def main(_: list[str]) -> None:
    """Print a line for each."""
    phantom = CirclePhantom()
    grids = {
        "circle, 80 x 72 x 64 of 1 mm": phantom.drawing((80, 72, 64), (1.0, 1.0, 1.0)),
        "head, 72 x 72 x 64 of 3.2 mm": phantom.drawing((72, 72, 64), (3.2, 3.2, 3.2), 15.0, 20.0),
    }
    for name, draw in grids.items():
        start = time.process_time()
        for number in range(8):
            draw(number)
        print(f"{name}: {(time.process_time() - start) / 8:.3f} CPU s each, in this process")
        for workers in [int(count) for count in _WORKERS.value]:
            seconds, _waits = read(draw, workers, 1, 0.0)
            print(f"  {workers} workers: {_STEPS.value * BATCH / seconds:.1f} a second")
            for reuse in [int(count) for count in _REUSE.value]:
                _seconds, waits = read(draw, workers, reuse, _STEP_S.value)
                middle, worst = np.percentile(waits, [50, 95])
                print(
                    f"    seen {reuse} times: a step waits {1e3 * np.mean(waits):.0f} ms in the "
                    f"mean, {1e3 * middle:.0f} in the median, {1e3 * worst:.0f} at 95 %"
                )

    print_steps(_PAIRS.value)


def print_steps(pairs: int) -> None:
    """A line for each phase of training."""
    (names, drawn), (_, plain) = (phases(drawn=choice) for choice in (True, False))
    for number, name in enumerate(names):
        seconds = np.array(
            [[one() for one in (drawn[number], plain[number])] for _ in range(pairs)]
        )
        # The first ones compile.
        with_it, without = 1e3 * np.median(seconds[1:], axis=0)
        print(
            f"{name} step: {with_it:.0f} ms, {without:.0f} with nothing drawn: "
            f"{100 * (with_it - without) / with_it:.0f} % are appearance"
        )


def phases(*, drawn: bool) -> tuple[list[str], list[Callable[[], float]]]:
    """Names, and what takes a step and tells its seconds."""
    native.use(local_mesh())
    experiment = cow_any.get_config("small")
    phantom = experiment.phantom
    experiment.augment.appearance.drawn = drawn
    task = dataclasses.replace(
        task_of(experiment, phantom.scheme, local_mesh()),
        shape_mm=phantom.shape_mm(),
        drawing=phantom.drawing,
    )
    method = experiment.method.build(task)
    state = method.init(jax.random.key(0))
    steps = [step_of(phase, state, drawn=drawn) for phase in method.phases]
    return [phase.name for phase in method.phases], steps


def step_of(phase: Phase, state: State, *, drawn: bool) -> Callable[[], float]:
    """Takes the same step of a phase again and again, and returns its seconds."""
    assert phase.draw is not None
    rows = [phase.draw(number) for number in range(BATCH)]
    if not drawn:
        # Images are the arteries' shares; nothing asks for tissues.
        rows = [{**row, "targets": {}} for row in rows]
    batch = Batch(**jax.tree.map(lambda *values: np.stack(values), *rows))
    run = functools.partial(jax.jit(phase.step), state, jax.device_put(batch), jax.random.key(1))

    def seconds() -> float:
        begin = time.monotonic()
        jax.block_until_ready(run())
        return time.monotonic() - begin

    return seconds


def read(
    draw: Callable[[int], HostBatch], workers: int, reuse: int, step_s: float
) -> tuple[float, list[float]]:
    """Seconds of all steps, and what each waited; after the first block, all of which is new."""
    waits: list[float] = []
    with drawing_pool(workers) as pool:
        order = Order(0, WINDOW, reuse)
        batches = streamed_batches(draw, order, pool, batch=BATCH, threads=4, prefetch=4)
        for _ in range(WINDOW * reuse // BATCH):
            next(batches)
        begin = time.monotonic()
        for _ in range(_STEPS.value):
            asked = time.monotonic()
            next(batches)
            waits.append(time.monotonic() - asked)
            busy(step_s)
        return time.monotonic() - begin, waits


def busy(seconds: float) -> None:
    """Compute for so many CPU seconds of this thread."""
    values, end = np.ones(100_000, np.float32), time.thread_time() + seconds
    while time.thread_time() < end:
        values = np.sqrt(values + 1)


if __name__ == "__main__":
    app.run(main)
