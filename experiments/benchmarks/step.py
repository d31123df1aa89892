"""Part (a): training step and inference against PyTorch and against textbook Flax."""

import contextlib
import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np
from common import (
    Options,
    Part,
    Row,
    Spec,
    Weights,
    Worker,
    WorkerError,
    interleave,
    median_ms,
    ratio,
    relative,
    timed,
)

WORKS = ("step", "step+translation", "inference")
METHOD = (
    "One step (crop, targets, loss of Eq. 2, gradient, its norm, Adam) or inference (network and "
    "argmax) on data held by the device; each contender in a process of its own with all cores, "
    "interleaved; medians and their ratios; same weights, shown equal before. GPU: bfloat16 for "
    "all, torch.compile, channels_last_3d; CPU: float32, PyTorch eager, channels_last_3d."
)
# Largest differences to jaxmark that are rounding. Adam's first step is a rate times the sign of
# the gradient, so where a gradient is near 0 rounding moves a weight as far as anything can: the
# update is compared as a whole (root mean square).
LIMITS = {"heatmaps": 1e-3, "loss": 1e-3, "gradient": 1e-3, "update": 2e-2}


def measure(options: Options) -> Part:
    """Equality, then times of every volume."""
    part = Part("step and inference", METHOD, [])
    if importlib.util.find_spec("torch") is None:
        part.notes.append("PyTorch is not installed: its column is empty (pip install '.[bench]')")
    for spec in options.specs():
        with contextlib.ExitStack() as stack:
            workers = contenders(spec, stack, part.notes)
            outcomes = {name: worker.call("outcome") for name, worker in workers.items()}
            start = workers["jaxmark"].call("weights")
            for name in list(outcomes)[1:]:
                found = differences(outcomes[name], outcomes["jaxmark"], start)
                part.notes.append(f"{spec.size}: {name} against jaxmark: {agreement(found)}")
                if any(not found[key] <= limit for key, limit in LIMITS.items()):
                    raise WorkerError(f"not timed, for they disagree: {part.notes[-1]}")
            del outcomes  # heatmaps of a gigabyte
            part.rows.extend(row(spec, work, workers, options) for work in WORKS)
    return part


def contenders(spec: Spec, stack: contextlib.ExitStack, notes: list[str]) -> dict[str, Worker]:
    """Workers that hold the same weights; jaxmark is the first. PyTorch only if it is installed."""
    workers = {"jaxmark": stack.enter_context(Worker("contenders:JaxContender", spec, "jaxmark"))}
    if importlib.util.find_spec("torch") is not None:
        weights = workers["jaxmark"].call("weights")
        workers["torch"] = stack.enter_context(Worker("twin:TorchTwin", spec, weights))
    workers["naive"] = stack.enter_context(Worker("contenders:JaxContender", spec, "naive"))
    return workers


def differences(
    found: Mapping[str, Any], expected: Mapping[str, Any], start: Weights
) -> dict[str, float]:
    """How far two outcomes of one float32 step are apart, as shares of the expected one.

    `gradient` is the worst parameter's; `update` the root mean square over all weights.
    """
    names = list(start)
    gap, moved = (
        np.concatenate([(expected["weights"][n] - other[n]).ravel() for n in names])
        for other in (found["weights"], start)
    )
    return {
        "heatmaps": relative(found["heatmaps"], expected["heatmaps"]),
        "loss": relative(found["loss"], expected["loss"]),
        "gradient": max(relative(found["gradient"][n], expected["gradient"][n]) for n in names),
        "update": float(np.linalg.norm(gap) / np.linalg.norm(moved)),
        "same_argmax": float((found["argmax_ijk"] == expected["argmax_ijk"]).all(-1).mean()),
    }


def agreement(found: Mapping[str, float]) -> str:
    """One line of the differences."""
    return ", ".join(f"{name} {value:.1e}" for name, value in found.items())


def row(spec: Spec, work: str, workers: Mapping[str, Worker], options: Options) -> Row:
    """Medians in ms, ratios to jaxmark's, and every repeat in seconds."""
    jobs, first = {}, {}
    for name, worker in workers.items():
        jobs[name], first[name] = timed(worker, work)
    times = interleave(jobs, options, f"{spec.size} {work}")
    medians = {name: median_ms(times.get(name)) for name in ("jaxmark", "torch", "naive")}
    return {
        "volume": spec.size,
        "work": work,
        **{f"{name}_ms": value for name, value in medians.items()},
        "torch/jaxmark": ratio(medians["torch"], medians["jaxmark"]),
        "naive/jaxmark": ratio(medians["naive"], medians["jaxmark"]),
        "repeats": len(times["jaxmark"]),
        **{f"{name}_seconds": values for name, values in times.items()},
        **{f"{name}_first_seconds": [value] for name, value in first.items()},
    }
