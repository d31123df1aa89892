"""Part (d): time to the first step, with and without JAX's persistent compilation cache."""

import dataclasses
import tempfile
import time

from common import Options, Part, Row, Spec, Worker, interleave, median_ms

METHOD = (
    "A fresh process from its start to the end of its first training step (interpreter, imports, "
    "backend, initial state, compilation, step): without cache, with an empty one "
    "(jax_compilation_cache_dir), and with one that the run before has filled. Interleaved medians."
)
AT_MOST = 3  # rounds: each starts three processes for a volume


def measure(options: Options) -> Part:
    """One row a volume."""
    return Part("time to first step", METHOD, [row(spec, options) for spec in options.specs()])


def row(spec: Spec, options: Options) -> Row:
    """Seconds to the first step by state of the cache."""
    with tempfile.TemporaryDirectory() as parent:
        cache = [parent]

        def fill() -> float:
            cache[0] = tempfile.mkdtemp(dir=parent)
            return first_step(spec, cache[0])

        jobs = {
            "none": lambda: first_step(spec, ""),
            "empty": fill,
            "filled": lambda: first_step(spec, cache[0]),
        }
        few = min(options.repeats, AT_MOST)
        times = interleave(jobs, dataclasses.replace(options, repeats=few), f"{spec.size} startup")
    medians = {name: (median_ms(seconds) or 0) / 1e3 for name, seconds in times.items()}
    return {
        "volume": spec.size,
        **{f"{name}_s": value for name, value in medians.items()},
        "none/filled": medians["none"] / medians["filled"],
        **{f"{name}_seconds": values for name, values in times.items()},
    }


def first_step(spec: Spec, cache: str) -> float:
    """Seconds from starting a process to the end of its first step."""
    env = {
        "JAX_COMPILATION_CACHE_DIR": cache,
        # JAX's own bounds would keep what compiles within a second out of the cache.
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    begin = time.perf_counter()
    with Worker("contenders:JaxContender", spec, "jaxmark", env=env) as worker:
        worker.call("run_afresh")
        return time.perf_counter() - begin
