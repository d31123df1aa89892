"""Parts (a) and (c): training step and inference against PyTorch and against textbook Flax."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.benchmarks.common import JAX, WORKS, Options, Row, Spec, Weights
from experiments.benchmarks.timing import Worker, WorkerError, interleave, job, median_ms, ratio

NAMES = ("jaxmark", "torch", "xla", "naive")
TORCH = "experiments.benchmarks.twin:TorchTwin"
METHOD = (
    "One step (crop, targets, loss of Eq. 2, gradient, its norm, Adam) or inference (network and "
    "argmax) on data held by the device; each contender in a process of its own with all cores, "
    "interleaved; medians and their ratios; compilation and warm-up apart (prepare_s in the JSON). "
    "Same weights, outcomes compared before. GPU: bfloat16 for all, PyTorch with torch.compile, "
    "autocast and channels_last_3d; CPU: float32, PyTorch eager, channels_last_3d. naive: Flax's "
    "own layers, targets held in memory; of volumes alone. xla: jaxmark without convolutions that "
    "are compiled for this CPU. A contender that is far slower gets fewer repeats. MB of a step: "
    "what the compiled program needs at once, with weights, batch and optimiser "
    "(compiled.memory_analysis()); torch: the most that its allocator held, or on a CPU the growth "
    "of its process. cpu_ms: of one run, summed over the threads of the host."
)
# Largest differences to jaxmark that are rounding, by arithmetic. Where it moves one input of a
# rectifier across 0, a pixel's gradient comes or goes. One flip in PyTorch made 2e-3 of a kernel's
# gradient (48 x 40 x 24; jaxmark was within 2e-6 of float64). Where there are few pixels it makes
# more, it seems: in the cardiac GAN's discriminator at 128 x 128, batch 8, one channel of 256 was
# off by 2e-2 of the kernel's largest gradient in PyTorch, the others by less than 1e-5 (jaxmark was
# within 1e-3 of float64 everywhere; in float64 both are equal to 4e-14). So each parameter's
# gradient is compared as a whole (root mean square). Adam's first step is a rate times the sign of
# the gradient, so where that is near 0 a weight moves as far as anything can: all weights' updates
# are compared together. In bfloat16 gradients of single parameters say nothing.
LIMITS = {
    "float32": {"heatmaps": 1e-3, "loss": 1e-3, "gradient": 1e-2, "update": 1e-1},
    "bfloat16": {"heatmaps": 1e-1, "loss": 5e-2},
}


def rows(spec: Spec, options: Options) -> Iterator[Row | str]:
    """Equality, then times; a contender that fails or disagrees is a note and not timed."""
    others = {"xla": spec.platform == "cpu", "naive": not spec.planar}
    wanted = [name for name, possible in others.items() if possible and name in options.rivals]
    yield from compared(spec, options, JAX, TORCH, {name: (JAX, spec, name) for name in wanted})


def compared(
    spec: Spec,
    options: Options,
    own_factory: str,
    torch_factory: str,
    others: Mapping[str, tuple[Any, ...]],
    works: Sequence[str] = WORKS,
) -> Iterator[Row | str]:
    """Rows of jaxmark, PyTorch where it is installed, and others (arguments of `Worker`)."""
    # Once a volume, and only in the arithmetic that is timed: all would be compiled again.
    dtypes = [spec.dtype] if spec in options.volumes else []
    prepare: dict[str, dict[str, float]] = {}
    memory: dict[str, int] = {}
    jobs: dict[str, dict[str, Callable[[], float]]] = {}
    busy: dict[str, dict[str, float]] = {}

    def ready(name: str, worker: Worker) -> dict[str, dict[str, Any]]:
        """Outcomes by dtype."""
        prepare[name] = {work: worker.call("prepare", work) for work in works}
        memory[name] = worker.call("memory")
        jobs[name] = {work: job(worker, work) for work in works}
        busy[name] = {work: worker.cpu_ms(work) for work in works}
        return {dtype: worker.call("outcome", dtype) for dtype in dtypes}

    with contextlib.ExitStack() as stack:
        own = stack.enter_context(Worker(own_factory, spec, "jaxmark"))
        expected, weights = ready("jaxmark", own), own.call("weights")
        rivals = dict(others)
        if "torch" in options.rivals and importlib.util.find_spec("torch"):
            rivals["torch"] = (torch_factory, spec, weights)
        for name, arguments in rivals.items():
            try:
                outcomes = ready(name, stack.enter_context(Worker(*arguments)))
                for dtype, outcome in outcomes.items():
                    found = differences(outcome, expected[dtype], weights)
                    line = ", ".join(f"{key} {value:.1e}" for key, value in found.items())
                    yield f"{spec}: {name} against jaxmark in {dtype}: {line}"
                    if not agrees(found, dtype):
                        raise WorkerError("it disagrees with jaxmark")
            except WorkerError as error:  # out of memory, say
                jobs.pop(name, None)
                yield f"{spec}: {name} is not timed: {error}"
        expected.clear()  # heatmaps of a gigabyte
        for work in works:
            turns = {name: found[work] for name, found in jobs.items()}
            times = interleave(turns, options, f"{spec} {work}")
            yield {
                **row(spec, work, times, memory if work == "step" else {}),
                **{f"{name}_cpu_ms": busy[name][work] for name in times},
                "prepare_s": {name: found[work] for name, found in prepare.items()},
            }


def row(
    spec: Spec, work: str, times: Mapping[str, Sequence[float]], memory: Mapping[str, int]
) -> Row:
    """Medians in ms, ratios to jaxmark's, MB, and every repeat in seconds."""
    medians = {name: median_ms(times.get(name, ())) for name in NAMES}
    return {
        **spec.columns,
        "work": work,
        **{f"{name}_ms": value for name, value in medians.items()},
        "torch/jaxmark": ratio(medians["torch"], medians["jaxmark"]),
        "xla/jaxmark": ratio(medians["xla"], medians["jaxmark"]),
        "naive/jaxmark": ratio(medians["naive"], medians["jaxmark"]),
        "repeats": "/".join(str(len(times.get(name, ()))) for name in NAMES),
        **{f"{name}_MB": ratio(memory.get(name), 1e6) for name in NAMES},
        "seconds": dict(times),
    }


def differences(
    found: Mapping[str, Any], expected: Mapping[str, Any], start: Weights
) -> dict[str, float]:
    """How far two outcomes of one step are apart, as shares of the expected one.

    `gradient` (of the worst parameter) and `update` (of all weights together) are root mean
    squares, `heatmaps` and `loss` maxima; `same_argmax` is the share of landmarks.
    """
    names = list(start)
    gap, moved = (
        np.concatenate([(expected["weights"][n] - other[n]).ravel() for n in names])
        for other in (found["weights"], start)
    )
    return {
        "heatmaps": relative(found["heatmaps"], expected["heatmaps"]),
        "loss": relative(found["loss"], expected["loss"]),
        "gradient": max(
            share_of_norm(found["gradient"][n] - expected["gradient"][n], expected["gradient"][n])
            for n in names
        ),
        "update": share_of_norm(gap, moved),
        "same_argmax": float((found["argmax_ijk"] == expected["argmax_ijk"]).all(-1).mean()),
    }


def agrees(found: Mapping[str, float], dtype: str) -> bool:
    """Is what two outcomes differ in rounding?"""
    return all(found[name] <= limit for name, limit in LIMITS[dtype].items())


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference as a share of the largest value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def share_of_norm(gap: np.ndarray, whole: np.ndarray) -> float:
    """Root mean square of one as a share of the other's."""
    return float(np.linalg.norm(gap) / np.linalg.norm(whole))
