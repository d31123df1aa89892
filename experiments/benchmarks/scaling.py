"""Part (c): time and memory against volume, batch and number of landmarks."""

import dataclasses

from common import Options, Part, Row, Spec, Worker, WorkerError, interleave, median_ms, timed

NAMES = ("jaxmark", "naive")
METHOD = (
    "jaxmark (targets fused into the loss) and textbook Flax (targets held in memory), a fresh "
    "process each and row, interleaved medians. Temporary bytes of the compiled program by "
    "compiled.memory_analysis(); on a GPU also the most that the device held. One thing is changed "
    "at a time, batch and landmarks at the first volume."
)


def measure(options: Options) -> Part:
    """Two rows, training and inference, for each problem; one that fails is a note."""
    part = Part("scaling", METHOD, [])
    for spec in problems(options):
        try:
            part.rows.extend(rows(spec, options))
        except WorkerError as error:
            part.notes.append(f"{spec.size}, batch {spec.batch}, K {spec.landmarks}: {error}")
    return part


def problems(options: Options) -> list[Spec]:
    """All volumes, then all batches and all K at the first volume; none twice."""
    specs = options.specs()
    batches = [dataclasses.replace(specs[0], batch=batch) for batch in options.batches]
    counts = [dataclasses.replace(specs[0], landmarks=count) for count in options.landmarks]
    return list(dict.fromkeys([*specs, *batches, *counts]))


def rows(spec: Spec, options: Options) -> list[Row]:
    """Times in ms and bytes in MB of both contenders."""
    with (
        Worker("contenders:JaxContender", spec, "jaxmark") as own,
        Worker("contenders:JaxContender", spec, "naive") as naive,
    ):
        workers = dict(zip(NAMES, (own, naive), strict=True))
        found = []
        # Inference first: the device's peak never falls, and training needs more.
        for work in ("inference", "step"):
            jobs = {name: timed(worker, work)[0] for name, worker in workers.items()}
            label = f"{spec.size} batch {spec.batch} K {spec.landmarks} {work}"
            times = interleave(jobs, options, label)
            sizes = {name: worker.call("memory", work) for name, worker in workers.items()}
            peaks = {name: worker.call("peak_bytes") for name, worker in workers.items()}
            found.append(
                {
                    "volume": spec.size,
                    "batch": spec.batch,
                    "K": spec.landmarks,
                    "work": work,
                    **{f"{name}_ms": median_ms(times[name]) for name in NAMES},
                    **{f"{name}_temp_MB": sizes[name]["temp"] / 1e6 for name in NAMES},
                    **{f"{name}_all_MB": sizes[name]["all"] / 1e6 for name in NAMES},
                    **{f"{name}_peak_MB": p / 1e6 if p else None for name, p in peaks.items()},
                    **{f"{name}_seconds": values for name, values in times.items()},
                }
            )
    return found
