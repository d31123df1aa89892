"""Part (f): one 3^3 convolution in all the forms that were tried, pass by pass.

`jaxmark.core.conv` holds the forms that won; the others live here, so that the choice can be made
again on another device.
"""

import functools
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from experiments.benchmarks.common import Options, Row, Spec
from experiments.benchmarks.timing import Worker, WorkerError, interleave, job, median_ms
from jaxmark.core import conv

METHOD = (
    "Same-padded stride-1 convolution in shapes of the finest two levels, each form jitted, all "
    "in one process (PyTorch in its own), interleaved; medians in ms. The input gradient is the "
    "value with channels swapped and a mirrored kernel. chosen: jaxmark.core.conv on this device."
)


def three_2d(x: Array, k: Array) -> Array:
    """Three 2-D convolutions over all planes, shifted along X and summed."""
    n = x.shape[1]
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    parts = [conv.conv_2d(padded[:, i : i + n], k[i]) for i in range(3)]
    return functools.reduce(jnp.add, parts)


def im2col(x: Array, k: Array, planes: int = 1) -> Array:
    """Columns of all 27 taps, `planes` along X at a time, times the kernel."""
    _, nx, ny, nz, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1), (0, 0)))
    weight = k.reshape(-1, k.shape[-1])

    def block(first: Array) -> Array:
        part = lax.dynamic_slice_in_dim(padded, first, planes + 2, axis=1)
        shifts = np.ndindex(3, 3, 3)
        taps = [part[:, i : i + planes, j : j + ny, m : m + nz] for i, j, m in shifts]
        return jnp.dot(jnp.concatenate(taps, axis=-1), weight)

    y = lax.map(block, planes * jnp.arange(nx // planes))
    return jnp.moveaxis(y, 0, 1).reshape(*x.shape[:4], -1)


# Winograd's F(2, 3): two outputs of a 3-tap filter by four products.
INPUT_2 = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
TAPS_2 = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2
OUTPUT_2 = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])


def winograd_xyz(x: Array, k: Array) -> Array:
    """F(2, 3) along all three axes: 64 matrix products for 8 voxels instead of 216."""
    b, nx, ny, nz, _ = x.shape
    t = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1), (0, 0)))
    for axis, n in zip((1, 3, 5), (nx, ny, nz), strict=True):
        cuts = [lax.slice_in_dim(t, i, i + n - 1, 2, axis) for i in range(4)]
        rows = [conv.combine(row, cuts) for row in INPUT_2]
        t = jnp.stack(rows, axis=axis)  # (..., 4, n / 2, ...)
    taps = jnp.einsum("ap,bq,cr,pqrio->abcio", *(TAPS_2.astype(np.float32),) * 3, k)
    y = jnp.einsum("zaibjckd,abcde->zaibjcke", t, taps.astype(x.dtype))
    y = jnp.einsum("pa,qb,rc,zaibjckd->zipjqkrd", *(OUTPUT_2.astype(x.dtype),) * 3, y)
    return y.reshape(b, nx, ny, nz, -1)


def weight_gradient_of(form: Callable[[Array, Array], Array], x: Array, dy: Array) -> Array:
    """What JAX and XLA make of a form's transposition."""
    kernel = jax.ShapeDtypeStruct((3, 3, 3, x.shape[-1], dy.shape[-1]), x.dtype)
    (dk,) = jax.linear_transpose(lambda k: form(x, k), kernel)(dy)
    return dk


def weight_gradient_27(x: Array, dy: Array) -> Array:
    """One matrix product a tap."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1), (0, 0)))
    nx, ny, nz = x.shape[1:4]
    taps = [
        jnp.einsum("bxyzi,bxyzo->io", padded[:, i : i + nx, j : j + ny, m : m + nz], dy)
        for i, j, m in np.ndindex(3, 3, 3)
    ]
    return jnp.stack(taps).reshape(3, 3, 3, x.shape[-1], -1)


def chosen_weight_gradient(x: Array, dy: Array) -> Array:
    """Of `conv.conv_same`."""
    kernel = jnp.zeros((3, 3, 3, x.shape[-1], dy.shape[-1]), x.dtype)
    return jax.vjp(conv.conv_same, x, kernel)[1](dy)[1]


FORMS: dict[str, dict[str, Callable[[Array, Array], Array]]] = {
    "value": {
        "chosen": conv.conv_same,
        "lax 3-D": conv.conv_direct,
        "three 2-D": three_2d,
        "planes in": conv.planes_as_inputs,
        "planes out": conv.planes_as_outputs,
        "im2col": im2col,
        "Winograd X": conv.winograd,
        "Winograd XYZ": winograd_xyz,
    },
    "weight gradient": {
        "chosen": chosen_weight_gradient,
        "lax 3-D": functools.partial(weight_gradient_of, conv.conv_direct),
        "planes in": functools.partial(weight_gradient_of, conv.planes_as_inputs),
        "planes out": functools.partial(weight_gradient_of, conv.planes_as_outputs),
        "27 products": weight_gradient_27,
    },
}


def rows(spec: Spec, options: Options) -> Iterator[Row | str]:
    """Times of every form for shapes of this volume's two finest levels."""
    fine, coarse = spec.volume, tuple(n // 2 for n in spec.volume)
    c = spec.widths
    for volume, c_in, c_out in ((fine, 1, c[0]), (fine, c[0], c[0]), (fine, 2 * c[0], c[0]),
                                (coarse, c[1], c[1])):  # fmt: skip
        shapes = (spec.batch, *volume, c_in), (3, 3, 3, c_in, c_out)
        for direction, forms in FORMS.items():
            here = "experiments.benchmarks.convolutions:"
            places = {name: (here + "JaxForms", name) for name in forms}
            places["PyTorch"] = (here + "TorchForms", "")
            workers: dict[str, Worker] = {}
            jobs = {}
            try:
                for name, (factory, form) in places.items():
                    if factory not in workers:
                        try:
                            workers[factory] = Worker(factory, *shapes, spec.dtype, direction)
                        except WorkerError:
                            continue  # without PyTorch
                    try:
                        workers[factory].call("run", form, 1)
                        jobs[name] = job(workers[factory], form, 0.05)
                    except WorkerError as error:
                        yield f"{volume}, {c_in} to {c_out}: {name}: {error}"
                times = interleave(jobs, options, f"{c_in} to {c_out} {direction}")
            finally:
                for worker in workers.values():
                    worker.__exit__()
            size = "x".join(map(str, volume))
            yield {
                "volume": size,
                "channels": f"{c_in} to {c_out}",
                "pass": direction,
                "ms": ", ".join(f"{name} {median_ms(times[name]):.3g}" for name in times),
                "seconds": dict(times),
            }


class JaxForms:
    """All forms of one pass, compiled when first asked for; lives in a `timing.Worker`."""

    def __init__(self, x: tuple[int, ...], kernel: tuple[int, ...], dtype: str, direction: str):
        second = kernel if direction == "value" else (*x[:4], kernel[-1])
        keys = jax.random.split(jax.random.key(0))
        self._data = [
            jax.random.normal(key, shape, jnp.dtype(dtype))
            for key, shape in zip(keys, (x, second), strict=True)
        ]
        self._forms = {name: jax.jit(form) for name, form in FORMS[direction].items()}

    def run(self, form: str, count: int) -> float:
        """Seconds of `count` in a row, after one: whoever runs first finds the caches cold."""
        function = self._forms[form]
        jax.block_until_ready(function(*self._data))
        begin = time.perf_counter()
        for _ in range(count):
            result = function(*self._data)
        jax.block_until_ready(result)
        return time.perf_counter() - begin


class TorchForms:
    """PyTorch's own, channels last; lives in a `timing.Worker`."""

    def __init__(self, x: tuple[int, ...], kernel: tuple[int, ...], dtype: str, direction: str):
        import torch  # Optional, and a process of its own loads it.

        gpu = torch.cuda.is_available()
        place = {"device": "cuda" if gpu else "cpu", "dtype": getattr(torch, dtype)}
        last = torch.channels_last_3d
        b, *volume, c_in = x
        self._wait = torch.cuda.synchronize if gpu else lambda: None
        image = torch.randn(b, c_in, *volume, **place).contiguous(memory_format=last)
        weight = torch.randn(kernel[-1], c_in, 3, 3, 3, **place).contiguous(memory_format=last)
        gradient = torch.randn(b, kernel[-1], *volume, **place).contiguous(memory_format=last)

        def value() -> object:
            with torch.inference_mode():
                return torch.nn.functional.conv3d(image, weight, padding=1)

        def weight_gradient() -> object:
            return torch.nn.grad.conv3d_weight(image, weight.shape, gradient, padding=1)

        self._function = value if direction == "value" else weight_gradient

    def run(self, form: str, count: int) -> float:
        """Seconds of `count` in a row, after one; there is one form."""
        del form
        self._function()
        self._wait()
        begin = time.perf_counter()
        for _ in range(count):
            self._function()
        self._wait()
        return time.perf_counter() - begin
