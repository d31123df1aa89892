"""Part (d): time to the first step, with and without JAX's persistent compilation cache."""

import dataclasses
import tempfile
import time
from collections.abc import Iterator

from experiments.benchmarks.common import JAX, Options, Row, Spec
from experiments.benchmarks.timing import Worker, interleave, median_ms

METHOD = (
    "A fresh process from its start to the end of its first training step (interpreter, imports, "
    "backend, initial state, compilation, step): without cache, with an empty one "
    "(jax_compilation_cache_dir), and with one that the run before has filled. Interleaved medians."
)
AT_MOST = 3  # rounds: each starts three processes for a volume


def rows(spec: Spec, options: Options) -> Iterator[Row]:
    """Seconds to the first step by state of the cache."""
    with tempfile.TemporaryDirectory() as parent:
        cache = ""

        def fill() -> float:
            nonlocal cache
            cache = tempfile.mkdtemp(dir=parent)
            return first_step(spec, cache)

        jobs = {
            "none": lambda: first_step(spec, None),
            "empty": fill,
            "filled": lambda: first_step(spec, cache),
        }
        few = dataclasses.replace(options, repeats=min(options.repeats, AT_MOST))
        times = interleave(jobs, few, f"{spec} startup")
    medians = {name: (median_ms(seconds) or 0) / 1e3 for name, seconds in times.items()}
    yield {
        **spec.columns,
        **{f"{name}_s": value for name, value in medians.items()},
        "none/filled": medians["none"] / medians["filled"],
        "seconds": times,
    }


def first_step(spec: Spec, cache: str | None) -> float:
    """Seconds from starting a process to the end of its first step."""
    env = {
        "JAX_ENABLE_COMPILATION_CACHE": str(cache is not None).lower(),
        "JAX_COMPILATION_CACHE_DIR": cache or "",
        # JAX's own bounds would keep what compiles within a second out of the cache.
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    begin = time.perf_counter()
    with Worker(JAX, spec, "jaxmark", env=env) as worker:
        worker.call("run_afresh")
        return time.perf_counter() - begin
