"""Part (e): the fastest that this device could do the step, by arithmetic and by traffic."""

import math
import time
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from experiments.benchmarks.common import JAX, WORKS, Options, Row, Spec
from experiments.benchmarks.timing import Worker, interleave, job, median_ms, ratio

Cost = tuple[int, int]  # FLOP, bytes
METHOD = (
    "Counted from the list of layers: each convolution's multiply-adds (2 FLOP; backward twice the "
    "forward, less where no input gradient is needed), and its traffic if all else is fused into "
    "it: forward reads its input and writes its output, backward reads the input and the output's "
    "gradient and writes the input's; Adam passes 8 times over the weights. A layer takes at least "
    "the longer of FLOP / peak and bytes / bandwidth; the floor is their sum. Both are measured on "
    "this device between the timed steps, best of the repeats: peak by a large matrix product of "
    "jnp.dot, bandwidth by a triad in place. Winograd's convolutions need fewer FLOP than counted, "
    "and what stays in a cache moves fewer bytes."
)


def costs(work: str, spec: Spec) -> list[Cost]:
    """What "inference" or "step" cannot do without: each layer's, then the optimiser's."""
    item = {"float32": 4, "bfloat16": 2}[spec.dtype]
    found, weights = [], 0

    def conv(voxels_in: int, voxels_out: int, taps: int, c_in: int, c_out: int) -> None:
        """Every kernel tap meets every input voxel once, at borders too."""
        nonlocal weights
        weights += taps * c_in * c_out
        flops = 2 * voxels_in * taps * c_in * c_out
        read, written = item * voxels_in * c_in, item * voxels_out * c_out
        found.append((flops, read + written))
        if work == "step":
            inner = c_in > 1  # the image needs no gradient
            found.append(((1 + inner) * flops, read + written + inner * read))

    axes = 2 if spec.planar else 3

    def block(voxels: int, c_in: int, c_out: int) -> None:
        conv(voxels, voxels, 3**axes, c_in, c_out)
        conv(voxels, voxels, 3**axes, c_out, c_out)
        if c_in != c_out:
            conv(voxels, voxels, 1, c_in, c_out)

    widths = spec.widths
    finest = spec.batch * math.prod(spec.volume)
    voxels = [finest // 2 ** (axes * level) for level in range(len(widths))]
    for n, c_in, c_out in zip(voxels, (1, *widths), widths, strict=False):
        block(n, c_in, c_out)
    for level in reversed(range(len(widths) - 1)):
        conv(voxels[level + 1], voxels[level], 2**axes, widths[level + 1], widths[level])
        block(voxels[level], 2 * widths[level], widths[level])
    conv(voxels[0], voxels[0], 1, widths[0], spec.head)
    conv(voxels[0], voxels[0], 1, spec.head, spec.landmarks)
    # float32: the gradient written and read, weights and two moments read and written.
    return [*found, (0, 8 * 4 * weights)] if work == "step" else found


def floor_seconds(needed: Sequence[Cost], peak: float, bandwidth: float) -> float:
    """Of costs one after the other; `peak` in FLOP/s, `bandwidth` in bytes/s."""
    return sum(max(flops / peak, size / bandwidth) for flops, size in needed)


def rows(spec: Spec, options: Options) -> Iterator[Row]:
    """Floor and measured time of training and inference."""
    with (
        Worker("experiments.benchmarks.roofline:Probe", spec) as probe,
        Worker(JAX, spec, "jaxmark") as contender,
    ):
        workers = {"dot": probe, "triad": probe} | dict.fromkeys(WORKS, contender)
        for name, worker in workers.items():
            worker.call("run", name, 1)  # compiles
        jobs = {name: job(worker, name) for name, worker in workers.items()}
        times = interleave(jobs, options, f"{spec} roofline")
        sizes = probe.call("sizes")
    peak, bandwidth = (sizes[name] / min(times[name]) for name in ("dot", "triad"))
    for work in WORKS:
        needed = costs(work, spec)
        flops, moved = (sum(column) for column in zip(*needed, strict=True))
        floor = 1e3 * floor_seconds(needed, peak, bandwidth)
        measured = median_ms(times[work])
        yield {
            **spec.columns,
            "work": work,
            "GFLOP": flops / 1e9,
            "GB": moved / 1e9,
            "peak_GFLOP/s": peak / 1e9,
            "bandwidth_GB/s": bandwidth / 1e9,
            "floor_ms": floor,
            "measured_ms": measured,
            "floor/measured": ratio(floor, measured),
            "reached_GFLOP/s": ratio(flops / 1e6, measured),
            "seconds": {name: times[name] for name in ("dot", "triad", work)},
        }


class Probe:
    """Measures what the device can do; lives in a `timing.Worker`."""

    def __init__(self, spec: Spec):
        side, length = (8192, 2**28) if spec.platform == "gpu" else (2048, 2**26)
        # Random: a GPU that multiplies ones draws less power and runs faster than with real data.
        self._a = jax.random.normal(jax.random.key(0), (side, side), jnp.dtype(spec.dtype))
        self._x, self._y = jnp.ones(length), jnp.ones(length)
        self._dot = jax.jit(jnp.dot)
        # In place: fresh pages would be measured otherwise.
        self._triad = jax.jit(lambda x, y: 0.5 * x + y, donate_argnums=0)

    def run(self, work: str, count: int) -> float:
        """Seconds of `count` matrix products ("dot") or triads ("triad")."""
        result = self._x.block_until_ready()
        begin = time.perf_counter()
        for _ in range(count):
            if work == "dot":
                result = self._dot(self._a, self._a)
            else:
                result = self._x = self._triad(self._x, self._y)
        result.block_until_ready()
        return time.perf_counter() - begin

    def sizes(self) -> dict[str, int]:
        """FLOP of a product, bytes of a triad (two reads, one write)."""
        return {"dot": 2 * self._a.shape[0] ** 3, "triad": 3 * self._x.nbytes}
