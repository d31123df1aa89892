"""Convolutions on a CPU by C++ that is compiled where it runs (`native/convolution.cc`).

XLA's forms write columns, sums of planes or padded copies to memory; this code keeps sums in
registers. It is used if there is a compiler and the shape suits, else XLA's forms are. Only on one
device: XLA does not split a call of foreign code over several.
"""

import contextlib
import dataclasses
import math
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxmark.system.compiler import (
    NO_COMPILER,
    NoLibrary,
    compiler_found,
    has_instructions,
    library,
)
from jaxmark.system.devices import platform
from jaxmark.system.messages import warn

SOURCE = Path(__file__).with_name("native") / "convolution.cc"
# With fewer multiplications any form is fast enough.
LEAST_PRODUCTS = 3e7
# The code is used if its results differ from the definition's by at most this share of the largest.
_TOLERANCE = 1e-4


@dataclasses.dataclass
class _Native:
    """Whether this process uses the code, and its names in XLA."""

    wanted: bool = True
    used: bool = False
    tried: bool = False
    why_not: str = ""
    value: str = ""
    gradient: str = ""


_native = _Native()
# Programs are traced by several threads.
_LOCK = threading.Lock()


def use(mesh: Mesh) -> None:
    """Programs traced from now on use the code if `mesh` is one CPU device, else they don't."""
    _native.used = _native.wanted and mesh.size == 1 and platform(mesh) == "cpu"


def forbid(forbidden: bool = True) -> None:
    """This process never uses the code: for comparisons, and for exported programs."""
    _native.wanted, _native.used = not forbidden, False


@contextlib.contextmanager
def unused() -> Iterator[None]:
    """In this block programs are traced without the code, to run on other machines."""
    used, _native.used = _native.used, False
    try:
        yield
    finally:
        _native.used = used


def state(mesh: Mesh) -> str:
    """Whether programs for these devices use it: "on", or "off" and why. Nothing is compiled."""
    if not _native.wanted:
        return "off"
    why = obstacle() if mesh.size == 1 else "needs one device"
    return f"off ({why})" if why else "on"


def obstacle() -> str:
    """Why the code can't be used on this machine; empty where nothing is known against it."""
    if _native.tried:
        return _native.why_not
    if not has_instructions("avx2", "fma"):
        return "needs a CPU with AVX2"
    return "" if compiler_found() else NO_COMPILER


def suits(x: Array, size: Sequence[int], c_out: int) -> bool:
    """Whether `convolve` and `weight_gradient` are the form for x, here and now.

    Args:
      x: a volume (B, X, Y, Z, C_in) or a picture (B, X, Y, C_in).
      size: voxels of the kernel along each axis.
    """
    c_in = x.shape[-1]
    return (
        _native.used
        and x.dtype == jnp.float32
        and all(n == 3 for n in size)
        and (c_in == 1 or c_in % 4 == 0)
        and c_out % 8 == 0
        and x.size * math.prod(size) * c_out >= LEAST_PRODUCTS
        and not obstacle()
        and _ready()
    )


def convolve(x: Array, kernel: Array) -> Array:
    """`conv.conv_same`, where `suits` says so."""
    if x.ndim == 4:
        # A picture's second axis is a volume's third: along the first and the third work is saved.
        return convolve(x[:, :, None], kernel[:, None])[:, :, 0]
    like = jax.ShapeDtypeStruct((*x.shape[:-1], kernel.shape[-1]), x.dtype)
    return _call(_native.value, like, x, kernel)


def weight_gradient(x: Array, dy: Array, size: Sequence[int]) -> Array:
    """The kernel's gradient of `convolve`."""
    if x.ndim == 4:
        return weight_gradient(x[:, :, None], dy[:, :, None], (size[0], 1, size[1]))[:, 0]
    like = jax.ShapeDtypeStruct((*size, x.shape[-1], dy.shape[-1]), x.dtype)
    return _call(_native.gradient, like, x, dy)


def _call(name: str, like: jax.ShapeDtypeStruct, *arrays: Array) -> Array:
    made: Array = jax.ffi.ffi_call(name, like, vmap_method="sequential")(*arrays)
    return made


def _ready() -> bool:
    """Compiles, loads and tries the code at first."""
    with _LOCK:
        if not _native.tried:
            _native.why_not = _loaded()
            _native.tried = True
            if _native.why_not:
                warn(f"convolutions are not compiled for this CPU: {_native.why_not}")
    return not _native.why_not


def _loaded() -> str:
    """Makes the code known to XLA; why it can't be used, or nothing."""
    try:
        code, digest = library(SOURCE)
    except NoLibrary as why:
        return str(why)
    # With the digest in the name, a program in XLA's cache calls the code that it was made with.
    _native.value = f"jaxmark_convolve_{digest}"
    _native.gradient = f"jaxmark_convolve_gradient_{digest}"
    for name, function in (
        (_native.value, code.jaxmark_convolve),
        (_native.gradient, code.jaxmark_convolve_gradient),
    ):
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(function), platform="cpu")
    return _failure()


def _failure() -> str:
    """Compares the compiled code with the definition in numpy; the problem, or ""."""
    rng = np.random.default_rng(0)
    for c_in, c_out in ((1, 16), (8, 8), (16, 32)):
        x = rng.normal(size=(1, 6, 5, 9, c_in)).astype(np.float32)
        kernel = rng.normal(size=(3, 3, 3, c_in, c_out)).astype(np.float32)
        dy = rng.normal(size=(*x.shape[:-1], c_out)).astype(np.float32)
        padded = np.pad(x, [(0, 0), *[(1, 1)] * 3, (0, 0)])
        value, gradient = np.zeros_like(dy), np.zeros_like(kernel)
        for i, j, k in np.ndindex(3, 3, 3):
            seen = padded[:, i : i + 6, j : j + 5, k : k + 9]
            value += seen @ kernel[i, j, k]
            gradient[i, j, k] = np.tensordot(seen, dy, ((0, 1, 2, 3), (0, 1, 2, 3)))
        with jax.ensure_compile_time_eval():
            found = convolve(jnp.asarray(x), jnp.asarray(kernel))
            found_gradient = weight_gradient(jnp.asarray(x), jnp.asarray(dy), (3, 3, 3))
        for mine, true in ((found, value), (found_gradient, gradient)):
            if not np.abs(np.asarray(mine) - true).max() <= _TOLERANCE * np.abs(true).max():
                return "what the compiler made gives wrong sums"
    return ""
