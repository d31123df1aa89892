"""Part (f): one convolution in all the forms that were tried, pass by pass.

`jaxmark.core.conv` holds the forms that won; the others live here, so that the choice can be made
again on another device.
"""

import concurrent.futures
import contextlib
import functools
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from experiments.benchmarks.common import Options, Row, Spec
from experiments.benchmarks.timing import Worker, WorkerError, interleave, job, median_ms
from jaxmark.core import conv, native
from jaxmark.core.conv import Form
from jaxmark.system.devices import local_mesh

METHOD = (
    "Same-padded stride-1 convolution, 3^3 in shapes of the finest two levels and 7^3 in that of "
    "a SpatialConfiguration-Net's spatial part (an eighth of the largest volume, 4 times the "
    "channels). Each form is jitted, compared with lax 3-D, and left out where it differs by more "
    "than rounding. All in one process (PyTorch in its own), interleaved; medians in ms. The input "
    "gradient is the value with channels swapped and a mirrored kernel. chosen: jaxmark.core.conv "
    "on this device, on a CPU with code that is compiled for it."
)
# Largest differences that are rounding, as shares of the largest value.
LIMITS = {"float32": 1e-3, "bfloat16": 3e-2}


def three_2d(x: Array, k: Array, flat: Form = conv.conv_2d) -> Array:
    """Three 2-D convolutions over all planes, shifted along X and summed."""
    n = x.shape[1]
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    parts = [flat(padded[:, i : i + n], k[i]) for i in range(3)]
    return functools.reduce(jnp.add, parts)


def im2col(x: Array, k: Array, planes: int = 1) -> Array:
    """Columns of all taps, `planes` along X at a time, times the kernel."""
    _, nx, ny, nz, _ = x.shape
    size = k.shape[:3]
    padded = jnp.pad(x, ((0, 0), *((n // 2, n // 2) for n in size), (0, 0)))
    weight = k.reshape(-1, k.shape[-1])

    def block(first: Array) -> Array:
        part = lax.dynamic_slice_in_dim(padded, first, planes + size[0] - 1, axis=1)
        taps = [part[:, i : i + planes, j : j + ny, m : m + nz] for i, j, m in np.ndindex(*size)]
        return jnp.dot(jnp.concatenate(taps, axis=-1), weight)

    y = lax.map(block, planes * jnp.arange(nx // planes))
    return jnp.moveaxis(y, 0, 1).reshape(*x.shape[:4], -1)


def plain_2d(x: Array, k: Array) -> Array:
    """`conv.conv_2d` without what XLA for CPUs needs."""
    b, nx = x.shape[:2]
    return conv.conv_direct(x.reshape(b * nx, *x.shape[2:]), k).reshape(*x.shape[:4], -1)


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


def fft_xyz(x: Array, k: Array) -> Array:
    """Fourier transforms along all three axes, jnp.fft's; what wraps around meets zeros."""
    inner, rim = x.shape[1:4], [n // 2 for n in k.shape[:3]]
    period = [n + r for n, r in zip(inner, rim, strict=True)]
    seen = jnp.fft.rfftn(x.astype(jnp.float32), period, axes=(1, 2, 3))
    taps = jnp.fft.rfftn(k.astype(jnp.float32), period, axes=(0, 1, 2))
    y = jnp.einsum("bxyzi,xyzio->bxyzo", seen, taps.conj())
    y = jnp.roll(jnp.fft.irfftn(y, period, axes=(1, 2, 3)), rim, (1, 2, 3))
    return y[:, : inner[0], : inner[1], : inner[2]].astype(x.dtype)


def dft_of_kernel_xyz(x: Array, k: Array) -> Array:
    """The same with the kernel's transform, the larger, as products of complex matrices."""
    inner, size = x.shape[1:4], k.shape[:3]
    period = [n + t // 2 for n, t in zip(inner, size, strict=True)]
    waves = (period[0], period[1], period[2] // 2 + 1)
    seen = jnp.fft.rfftn(x.astype(jnp.float32), period, axes=(1, 2, 3))
    matrices = [
        np.exp(2j * np.pi * np.outer(np.arange(w), np.arange(t) - t // 2) / p)
        for w, t, p in zip(waves, size, period, strict=True)
    ]
    taps = jnp.einsum("zt,pqtio->pqzio", matrices[2].astype(np.complex64), k)
    taps = jnp.einsum("yt,ptzio->pyzio", matrices[1].astype(np.complex64), taps)
    taps = jnp.einsum("xt,tyzio->xyzio", matrices[0].astype(np.complex64), taps)
    y = jnp.fft.irfftn(jnp.einsum("bxyzi,xyzio->bxyzo", seen, taps), period, axes=(1, 2, 3))
    return y[:, : inner[0], : inner[1], : inner[2]].astype(x.dtype)


def weight_gradient_of(form: Form, x: Array, dy: Array, side: int) -> Array:
    """What JAX and XLA make of a form's transposition."""
    kernel = jax.ShapeDtypeStruct((side, side, side, x.shape[-1], dy.shape[-1]), x.dtype)
    (dk,) = jax.linear_transpose(lambda k: form(x, k), kernel)(dy)
    return dk


def weight_gradient_by_taps(x: Array, dy: Array, side: int) -> Array:
    """One matrix product a tap."""
    rim = side // 2
    padded = jnp.pad(x, ((0, 0), *[(rim, rim)] * 3, (0, 0)))
    nx, ny, nz = x.shape[1:4]
    taps = [
        jnp.einsum("bxyzi,bxyzo->io", padded[:, i : i + nx, j : j + ny, m : m + nz], dy)
        for i, j, m in np.ndindex(side, side, side)
    ]
    return jnp.stack(taps).reshape(side, side, side, x.shape[-1], -1)


def chosen_weight_gradient(x: Array, dy: Array, side: int) -> Array:
    """Of `conv.conv_same`."""
    kernel = jnp.zeros((side, side, side, x.shape[-1], dy.shape[-1]), x.dtype)
    return jax.vjp(conv.conv_same, x, kernel)[1](dy)[1]


# By kernel side.
VALUES: dict[int, dict[str, Form]] = {
    3: {
        "chosen": conv.conv_same,
        "lax 3-D": conv.conv_direct,
        "three 2-D": three_2d,
        "planes in": conv.planes_as_inputs,
        "planes out": conv.planes_as_outputs,
        "im2col": im2col,
        "Winograd X": conv.winograd,
        "Winograd XYZ": winograd_xyz,
    },
    7: {
        "chosen": conv.conv_same,
        "lax 3-D": conv.conv_direct,
        "planes out": conv.planes_as_outputs,
        "im2col": im2col,
        "FFT XYZ": fft_xyz,
        "DFT XYZ of kernel": dft_of_kernel_xyz,
        "DFT YZ": conv.conv_by_dft,
    },
}
# Of 3^3 on a GPU.
GPU_VALUES: dict[str, Form] = {
    "chosen": conv.conv_same,
    "lax 3-D": conv.conv_direct,
    "channels last": conv.conv_direct,
    "three 2-D": functools.partial(three_2d, flat=plain_2d),
    "planes in": functools.partial(conv.plane_groups, planes=1),
    "groups of 2": functools.partial(conv.plane_groups, planes=2),
    "groups of 4": functools.partial(conv.plane_groups, planes=4),
}
# XLA's options of a form.
COMPILED_WITH = {"channels last": {"xla_gpu_force_conv_nhwc": True}}
# Those of them whose transposition, made by JAX, is tried as a weight gradient.
TRANSPOSED = {
    3: ("lax 3-D", "planes in", "planes out"),
    7: ("lax 3-D", "FFT XYZ", "DFT XYZ of kernel", "DFT YZ"),
}


def forms(direction: str, side: int, platform: str) -> dict[str, Form]:
    """Of "value" (volume, kernel) or of "weight gradient" (volume, gradient of the value)."""
    values = VALUES[side] if platform == "cpu" else GPU_VALUES
    if direction == "value":
        return values
    names = TRANSPOSED[side] if platform == "cpu" else [n for n in values if n != "chosen"]

    def columns(x: Array, dy: Array) -> Array:
        return conv.weight_gradient_by_columns(x, dy, (side,) * 3)

    found: dict[str, Form] = {"chosen": functools.partial(chosen_weight_gradient, side=side)}
    for name in names:
        found[name] = functools.partial(weight_gradient_of, values[name], side=side)
    if platform != "cpu":
        return found
    return {
        **found,
        "columns": columns,
        "product a tap": functools.partial(weight_gradient_by_taps, side=side),
    }


def shapes(spec: Spec, largest: Spec) -> list[tuple[tuple[int, ...], int, int, int]]:
    """What is measured: voxels, kernel side, channels in and out."""
    fine, coarse = spec.volume, tuple(n // 2 for n in spec.volume)
    eighth = tuple(-(-n // 8) for n in largest.volume)
    c = spec.widths
    large = [(eighth, 7, 4 * c[0], 4 * c[0])] if spec.platform == "cpu" else []
    return [
        (fine, 3, c[0], c[0]),
        (fine, 3, 2 * c[0], c[0]),
        (coarse, 3, 2 * c[0], 2 * c[0]),
        (fine, 3, 1, c[0]),
        *large,
    ]


def rows(spec: Spec, options: Options) -> Iterator[Row | str]:
    """Times of every form, pass by pass."""
    here = "experiments.benchmarks.convolutions:"
    with contextlib.ExitStack() as stack:
        jax_worker = stack.enter_context(Worker(here + "JaxForms", spec.platform))
        torch_worker = None
        with contextlib.suppress(WorkerError):  # without PyTorch
            torch_worker = stack.enter_context(Worker(here + "TorchForms"))
        for volume, side, c_in, c_out in shapes(spec, options.volumes[-1]):
            data = (spec.batch, *volume, c_in), (side, side, side, c_in, c_out)
            size = "x".join(map(str, volume))
            what = f"{size}, {side}^3, {c_in} to {c_out}"
            for direction in ("value", "weight gradient"):
                workers = dict.fromkeys(forms(direction, side, spec.platform), jax_worker)
                if torch_worker:
                    workers["PyTorch"] = torch_worker
                for worker in set(workers.values()):
                    worker.call("load", *data, spec.dtype, direction)
                jobs = {}
                for name, worker in workers.items():
                    try:
                        error = 0.0 if name == "PyTorch" else worker.call("error", name)
                        if not error <= LIMITS[spec.dtype]:
                            raise WorkerError(f"differs by {error:.1e} of the largest value")
                        worker.call("run", name, 1)
                        jobs[name] = job(worker, name, 0.05)
                    except WorkerError as problem:
                        yield f"{what}: {direction}: {name} is not timed: {problem}"
                times = interleave(jobs, options, f"{what} {direction}")
                yield {
                    "volume": size,
                    "kernel": f"{side}^3",
                    "channels": f"{c_in} to {c_out}",
                    "pass": direction,
                    "ms": ", ".join(f"{name} {median_ms(times[name]):.3g}" for name in times),
                    "seconds": dict(times),
                }


class JaxForms:
    """All forms of one pass; lives in a `timing.Worker`."""

    def __init__(self, platform: str):
        self._platform = platform
        native.use(local_mesh())

    def load(self, x: tuple[int, ...], kernel: tuple[int, ...], dtype: str, direction: str) -> None:
        """Compile all for data of these shapes. One that can't be compiled fails when it is run."""
        second = kernel if direction == "value" else (*x[:4], kernel[-1])
        keys = jax.random.split(jax.random.key(0))
        self._data = [
            jax.random.normal(key, shape, jnp.dtype(dtype))
            for key, shape in zip(keys, (x, second), strict=True)
        ]
        found = forms(direction, kernel[0], self._platform)
        self._forms = {
            name: jax.jit(form, compiler_options=COMPILED_WITH.get(name))
            for name, form in found.items()
        }
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for form in self._forms.values():
                pool.submit(lambda form: jax.block_until_ready(form(*self._data)), form)

    def error(self, form: str) -> float:
        """The largest difference to the textbook, as a share of its largest value."""
        found, expected = (
            self._forms[name](*self._data).astype(jnp.float32) for name in (form, "lax 3-D")
        )
        return float(jnp.abs(found - expected).max() / jnp.abs(expected).max())

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

    def __init__(self) -> None:
        import torch  # Optional, and a process of its own loads it.

        self._torch: Any = torch

    def load(self, x: tuple[int, ...], kernel: tuple[int, ...], dtype: str, direction: str) -> None:
        """Data of these shapes."""
        torch = self._torch
        gpu = torch.cuda.is_available()
        place = {"device": "cuda" if gpu else "cpu", "dtype": getattr(torch, dtype)}
        last = torch.channels_last_3d
        b, *volume, c_in = x
        self._wait = torch.cuda.synchronize if gpu else lambda: None
        image = torch.randn(b, c_in, *volume, **place).contiguous(memory_format=last)
        side = kernel[0]
        weight = torch.randn(kernel[-1], c_in, *kernel[:3], **place).contiguous(memory_format=last)
        gradient = torch.randn(b, kernel[-1], *volume, **place).contiguous(memory_format=last)

        def value() -> object:
            with torch.inference_mode():
                return torch.nn.functional.conv3d(image, weight, padding=side // 2)

        def weight_gradient() -> object:
            return torch.nn.grad.conv3d_weight(image, weight.shape, gradient, padding=side // 2)

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
