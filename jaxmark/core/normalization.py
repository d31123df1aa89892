"""Group normalisation (Wu and He, ECCV 2018) and rectifier, with gradients that keep little.

Normalisation is, both ways, two sums and one affine map a channel, which XLA fuses with whatever
stands around them; only the input is kept for the gradient. Sums over a group's channels and
voxels at once, the usual way, run four to five times slower than sums a channel on a CPU.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

EPSILON = 1e-6


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def group_norm(x: Array, scale: Array, bias: Array, group: int) -> Array:
    """Mean 0 and variance 1 for every `group` neighbouring channels of a volume, then an affine.

    Args:
      x: (B, X, Y, Z, C) or (B, X, Y, C) of any float type; statistics are float32 or better.
      scale, bias: (C,).
      group: channels a group; divides C.

    Returns:
      Like `x`.
    """
    return _forward(x, scale, bias, group)[0]


def _forward(
    x: Array, scale: Array, bias: Array, group: int
) -> tuple[Array, tuple[Array, Array, Array, Array, Array]]:
    mean, square = _group_means(_channel_means(x), _channel_means(x, x), group)
    rstd = jax.lax.rsqrt(jnp.maximum(square - mean**2, 0) + EPSILON)
    slope = rstd * scale
    return _affine(x, slope, bias - mean * slope), (x, scale, bias, mean, rstd)


def _backward(
    group: int, saved: tuple[Array, Array, Array, Array, Array], dy: Array
) -> tuple[Array, Array, Array]:
    x, scale, bias, mean, rstd = saved
    voxels = x[0, ..., 0].size
    # With n = (x - mean) rstd, of a channel: the means of dy and of dy n.
    dy_mean = _channel_means(dy)
    dyn_mean = (_channel_means(dy, x) - mean * dy_mean) * rstd
    dbias = (dy_mean * voxels).sum(0).astype(bias.dtype)
    dscale = (dyn_mean * voxels).sum(0).astype(scale.dtype)
    # dx = rstd (scale dy - m - n mn), where m and mn are the group's means of scale dy (n).
    m, mn = _group_means(scale * dy_mean, scale * dyn_mean, group)
    factor = -(rstd**2) * mn
    dx = _affine(dy, rstd * scale, -rstd * m - factor * mean) + _affine(x, factor, 0 * factor)
    return dx.astype(x.dtype), dscale, dbias


group_norm.defvjp(_forward, _backward)


@jax.custom_vjp
def relu(x: Array) -> Array:
    """max(x, 0). Kept for the gradient is the result, which the next layer keeps anyway."""
    return jnp.maximum(x, 0)


def _relu_forward(x: Array) -> tuple[Array, Array]:
    y = relu(x)
    return y, y


def _relu_backward(y: Array, dy: Array) -> tuple[Array]:
    return (jnp.where(y > 0, dy, 0),)


relu.defvjp(_relu_forward, _relu_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def leaky_relu(x: Array, slope: float) -> Array:
    """x where positive, else `slope` x (positive, too). Kept for the gradient is the result."""
    return jnp.where(x > 0, x, slope * x)


def _leaky_relu_forward(x: Array, slope: float) -> tuple[Array, Array]:
    y = leaky_relu(x, slope)
    return y, y


def _leaky_relu_backward(slope: float, y: Array, dy: Array) -> tuple[Array]:
    return (jnp.where(y > 0, dy, slope * dy),)


leaky_relu.defvjp(_leaky_relu_forward, _leaky_relu_backward)


def _channel_means(*factors: Array) -> Array:
    """Means over the voxels of a product of volumes: (B, C)."""
    precise = [_precise(f) for f in factors]
    return functools.reduce(jnp.multiply, precise).mean(tuple(range(1, factors[0].ndim - 1)))


def _precise(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _group_means(first: Array, second: Array, group: int) -> tuple[Array, Array]:
    """Means over a group's channels, given to each of them again; (B, C) each."""
    pair = jnp.stack([first, second])
    means = pair.reshape(2, first.shape[0], -1, group).mean(-1)
    spread = jnp.repeat(means, group, axis=-1)
    return spread[0], spread[1]


def _affine(x: Array, slope: Array, offset: Array) -> Array:
    """`slope` and `offset` are (B, C)."""
    spread = (slice(None), *(None,) * (x.ndim - 2))
    return (_precise(x) * slope[spread] + offset[spread]).astype(x.dtype)
