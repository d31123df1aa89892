"""Convolution, pooling and up-sampling in 3-D and 2-D, in the forms that XLA runs fast.

XLA's 3-D convolution on a CPU reaches a tenth of what its 2-D convolution and its matrix product
reach, and a transposed convolution (dilated on the left) is slower still, on GPUs as well. The
functions here equal the textbook definitions; how they compute is chosen at trace time by platform,
shape and pass. docs/performance.md has the times of the forms that were tried, and
`experiments/benchmarks/convolutions.py` measures them again.

Volumes are `(B, X, Y, Z, C)`, their kernels `(kx, ky, kz, C_in, C_out)`; pictures `(B, X, Y, C)`,
their kernels `(kx, ky, C_in, C_out)`.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxmark.core import native

# Of a volume and a kernel.
Form = Callable[[Array, Array], Array]

# Winograd's F(4, 3): four outputs of a 3-tap filter by six products instead of twelve, as
# y = OUTPUT ((TAPS k) * (INPUT x)). Lavin and Gray, CVPR 2016.
INPUT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
TAPS = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
OUTPUT = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
)

# With fewer multiplications every form is fast, and the plainer one compiles faster.
WINOGRAD_FROM = 5e7
# Planes of fewer voxels than this are too small for a product each: one for the volume is faster.
LOOP_FROM_ROWS = 200
# Voxels, at most, whose columns are made at once.
ROWS_AT_ONCE = 4096
# Values of pictures' columns that are made at once, at most: 128 MiB.
VALUES_AT_ONCE = 2**25
# Kernels of so many taps in a plane go by Fourier transforms of planes of at most so many voxels:
# as matrix products, transforms cost the square of those.
DFT_FROM_TAPS = 49
DFT_TO_ROWS = 500
# Products of a transform whose part of the kernel is made at once.
PRODUCTS_AT_ONCE = 64
# Values of a block that are less than this share below its maximum count as equal to it.
ROUNDING = 1e-5


def conv_same(x: Array, kernel: Array) -> Array:
    """Stride-1 convolution (cross-correlation) with zero padding that keeps the shape; odd kernels.

    Forward, input gradient and weight gradient are each written out; reverse mode only.
    """
    if max(kernel.shape[:-2]) == 1:
        return matmul(x, kernel[(0,) * (kernel.ndim - 2)])
    return _conv(x, kernel)


# Checkpointed, so that only the plain volume is kept for the gradient, not the padded one.
@jax.checkpoint
def conv_reflect(x: Array, kernel: Array) -> Array:
    """`conv_same` with the volume mirrored at its outermost voxels instead of zeros around it.

    Convolving the rim with zeros and cutting it off costs little, unless the volume is hardly
    larger than its kernel.
    """
    rim = [n // 2 for n in kernel.shape[:-2]]
    padded = jnp.pad(x, [(0, 0), *((r, r) for r in rim), (0, 0)], mode="reflect")
    inner = (slice(r, r + n) for r, n in zip(rim, x.shape[1:-1], strict=True))
    return conv_same(padded, kernel)[:, *inner]


@jax.custom_vjp
def _conv(x: Array, kernel: Array) -> Array:
    return lax.platform_dependent(
        x, kernel, cpu=conv_on_cpu, cuda=conv_on_cuda, default=conv_direct
    )


def _conv_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _conv(x, kernel), (x, kernel)


def _conv_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return _input_gradient(dy, kernel), _weight_gradient(x, dy, kernel.shape[:-2])


_conv.defvjp(_conv_forward, _conv_backward)


def _input_gradient(dy: Array, kernel: Array) -> Array:
    axes = range(kernel.ndim - 2)
    return _conv(dy, lax.rev(kernel, axes).swapaxes(-2, -1))


# With its own derivative: penalties on gradients need it, and forms may be foreign code.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _weight_gradient(x: Array, dy: Array, size: tuple[int, ...]) -> Array:
    return lax.platform_dependent(
        x,
        dy,
        cpu=functools.partial(weight_gradient_on_cpu, size=size),
        cuda=functools.partial(weight_gradient_on_cuda, size=size),
        default=functools.partial(weight_gradient_direct, size=size),
    )


def _weight_gradient_forward(
    x: Array, dy: Array, size: tuple[int, ...]
) -> tuple[Array, tuple[Array, Array]]:
    return _weight_gradient(x, dy, size), (x, dy)


def _weight_gradient_backward(
    size: tuple[int, ...], saved: tuple[Array, Array], kernel: Array
) -> tuple[Array, Array]:
    # It is linear in both; `kernel` has the place of one.
    x, dy = saved
    return _input_gradient(dy, kernel), _conv(x, kernel)


_weight_gradient.defvjp(_weight_gradient_forward, _weight_gradient_backward)


def conv_direct(x: Array, kernel: Array, stride: int = 1) -> Array:
    """The textbook, for platforms with convolutions of their own (cuDNN)."""
    axes = "XYZ"[: x.ndim - 2]
    numbers = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    strides = (stride,) * len(axes)
    return lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=numbers)


def weight_gradient_direct(x: Array, dy: Array, size: Sequence[int]) -> Array:
    like = jax.ShapeDtypeStruct((*size, x.shape[-1], dy.shape[-1]), x.dtype)
    (dk,) = jax.linear_transpose(lambda kernel: conv_direct(x, kernel), like)(dy)
    return dk


def conv_on_cuda(x: Array, kernel: Array) -> Array:
    """Few channels in half precision: `plane_groups`; all else the textbook."""
    planes = planes_at_once(x, *kernel.shape)
    return plane_groups(x, kernel, planes) if planes else conv_direct(x, kernel)


def weight_gradient_on_cuda(x: Array, dy: Array, size: Sequence[int]) -> Array:
    """Gradient of the kernel of `conv_on_cuda`, in the same form."""
    planes = planes_at_once(x, *size, x.shape[-1], dy.shape[-1])
    if not planes:
        return weight_gradient_direct(x, dy, size)
    like = jax.ShapeDtypeStruct((*size, x.shape[-1], dy.shape[-1]), x.dtype)
    (dk,) = jax.linear_transpose(lambda kernel: plane_groups(x, kernel, planes), like)(dy)
    return dk


def planes_at_once(x: Array, *kernel: int) -> int:
    """For `plane_groups`; 0 where that is not the form for x and a kernel of this shape.

    As measured on an H200 (docs/performance.md).
    """
    *size, c_in, c_out = kernel
    if size != [3, 3, 3] or x.dtype.itemsize != 2 or min(c_in, c_out) > 32:
        return 0
    choices = (4, 2) if c_in < 8 else (2,) if max(c_in, c_out) <= 64 else ()
    return next((planes for planes in choices if x.shape[1] % planes == 0), 0)


def plane_groups(x: Array, kernel: Array, planes: int) -> Array:
    """One 2-D convolution that makes `planes` planes along X at a time.

    Its input channels hold all planes that these need, so that few channels become as many as
    tensor cores are made for, at the price of products with zeros: (planes + 2) / 3 times as many
    for a kernel of 3. And cuDNN has 2-D channels last, where XLA transposes 3-D ones.
    """
    b, nx, ny, nz, c_in = x.shape
    kx, ky, kz, _, c_out = kernel.shape
    padded = _pad(x, (kx // 2, kx // 2))
    last = nx - planes + 1
    seen = [padded[:, i : i + last : planes] for i in range(planes + kx - 1)]
    inputs = jnp.concatenate(seen, axis=-1).reshape(b * nx // planes, ny, nz, -1)
    # Plane p of the output takes tap t from plane p + t of the input.
    rows = [jnp.pad(kernel, ((p, planes - 1 - p), *[(0, 0)] * 4)) for p in range(planes)]
    weight = jnp.stack(rows, axis=-2).transpose(1, 2, 0, 3, 4, 5)
    weight = weight.reshape(ky, kz, (planes + kx - 1) * c_in, planes * c_out)
    y = conv_direct(inputs, weight).reshape(b, nx // planes, ny, nz, planes, c_out)
    return jnp.moveaxis(y, 4, 2).reshape(b, nx, ny, nz, c_out)


def conv_on_cpu(x: Array, kernel: Array) -> Array:
    """Sums over Y and Z by 2-D convolutions over all planes; the sum over X as is cheapest.

    Those of large kernels by Fourier transforms. A picture is the one plane of a volume. Kernels of
    3 voxels a side go by compiled code where that is in use (see `native`).
    """
    if native.suits(x, kernel.shape[:-2], kernel.shape[-1]):
        return native.convolve(x, kernel)
    if x.ndim == 4:
        return conv_on_cpu(x[:, None], kernel[None])[:, 0]
    kx, _, _, c_in, _ = kernel.shape
    dtype = x.dtype
    x, kernel = _at_least_float32(x), _at_least_float32(kernel)
    if suits_dft(x.shape, kernel.shape[:3]):
        y = conv_by_dft(x, kernel)
    elif c_in < 8:
        y = planes_as_inputs(x, kernel)
    elif kx == 3 and x.size * kernel.size / c_in >= WINOGRAD_FROM:
        y = winograd(x, kernel)
    else:
        y = planes_as_outputs(x, kernel)
    return y.astype(dtype)


def _at_least_float32(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _pad(x: Array, x_pad: tuple[int, int], y_pad: int = 0, z_pad: int = 0) -> Array:
    return jnp.pad(x, ((0, 0), x_pad, (y_pad, y_pad), (z_pad, z_pad), (0, 0)))


def conv_2d(x: Array, kernel: Array) -> Array:
    """Same-padded 2-D convolution of every plane: `(B, X, Y, Z, C_in)`, `(ky, kz, C_in, C_out)`.

    One row more than asked for is computed and cut off. XLA gives a convolution to YNNPACK unless
    its output is larger than its input, and then to Eigen, which is up to twice as fast here.
    """
    b, nx, ny, nz, c_in = x.shape
    ky, kz, _, c_out = kernel.shape
    extra = int(max(c_in, c_out) > 16)  # YNNPACK leaves smaller ones to Eigen anyway.
    y = lax.conv_general_dilated(
        x.reshape(b * nx, ny, nz, c_in),
        kernel,
        window_strides=(1, 1),
        padding=((ky // 2 + extra, ky // 2), (kz // 2, kz // 2)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(b, nx, ny + extra, nz, c_out)[:, :, extra:]


def planes_as_inputs(x: Array, kernel: Array) -> Array:
    """One 2-D convolution whose input channels hold the kx planes around each plane."""
    kx, ky, kz, c_in, c_out = kernel.shape
    padded = _pad(x, (kx // 2, kx // 2))
    planes = jnp.concatenate([padded[:, i : i + x.shape[1]] for i in range(kx)], axis=-1)
    return conv_2d(planes, kernel.transpose(1, 2, 0, 3, 4).reshape(ky, kz, kx * c_in, c_out))


def planes_as_outputs(x: Array, kernel: Array) -> Array:
    """One 2-D convolution whose output channels hold what each plane gives to the kx around it."""
    kx, ky, kz, c_in, c_out = kernel.shape
    given = conv_2d(x, kernel.transpose(1, 2, 3, 0, 4).reshape(ky, kz, c_in, kx * c_out))
    given = _pad(given, (kx // 2, kx // 2))
    parts = [given[:, i : i + x.shape[1], ..., i * c_out : (i + 1) * c_out] for i in range(kx)]
    return functools.reduce(jnp.add, parts)


def winograd(x: Array, kernel: Array) -> Array:
    """Six 2-D convolutions of sums of planes make four planes, where the definition takes twelve.

    In float32 it loses about two bits against the definition.
    """
    b, nx, ny, nz, _ = x.shape
    tiles = -(-nx // 4)
    padded = _pad(x, (1, 4 * tiles - nx + 1))
    planes = [padded[:, i : i + 4 * tiles - 3 : 4] for i in range(6)]
    taps = jnp.einsum("ij,j...->i...", TAPS.astype(kernel.dtype), kernel)
    products = [conv_2d(combine(row, planes), tap) for row, tap in zip(INPUT, taps, strict=True)]
    y = jnp.stack([combine(row, products) for row in OUTPUT], axis=2)
    return y.reshape(b, 4 * tiles, ny, nz, -1)[:, :nx]


def combine(weights: np.ndarray, arrays: Sequence[Array]) -> Array:
    terms = [a if w == 1 else float(w) * a for w, a in zip(weights, arrays, strict=True) if w]
    return functools.reduce(jnp.add, terms)


def suits_dft(volume: Sequence[int], size: Sequence[int]) -> bool:
    """Whether `conv_by_dft` is the form for x of this shape and a kernel of this size.

    Not where planes are smaller than the kernel: some of its taps meet nothing but zeros there, and
    their gradients should be 0, not rounding, which Adam would take for a direction.
    """
    (_, _, ny, nz, _), (_, ky, kz) = volume, size
    large = ky * kz >= DFT_FROM_TAPS
    return large and ny >= ky and nz >= kz and ny * nz <= DFT_TO_ROWS


def conv_by_dft(x: Array, kernel: Array) -> Array:
    """The sums over Y and Z by Fourier transforms of planes, the sum over X by columns.

    A plane's voxel then takes about 1.5 products for all taps in the plane, or a little more for
    its rim, and transforms, too, are products of matrices. In a loop over frequencies: the kernel's
    transform is many times the kernel, and would leave the cache. Rounding is about that of the
    direct sums, but relative to the largest value of all, not to each.
    """
    kx, ky, kz, c_in, c_out = kernel.shape
    b, nx, ny, nz, _ = x.shape
    voxels = x.reshape(b * nx, ny * nz, c_in).swapaxes(0, 1).reshape(ny * nz, -1)
    taps = kernel.reshape(kx, ky * kz, -1).swapaxes(0, 1).reshape(ky * kz, -1)

    def add_products(total: Array, matrices: tuple[Array, ...]) -> tuple[Array, None]:
        of_voxels, of_taps, back = matrices
        seen = jnp.dot(of_voxels, voxels).reshape(-1, b, nx, c_in)
        seen = jnp.pad(seen, ((0, 0), (0, 0), (kx // 2, kx // 2), (0, 0)))
        columns = jnp.concatenate([seen[:, :, i : i + nx] for i in range(kx)], axis=-1)
        weights = jnp.dot(of_taps, taps).reshape(-1, kx * c_in, c_out)
        products = jnp.einsum("mni,mio->mno", columns.reshape(-1, b * nx, kx * c_in), weights)
        return total + jnp.dot(back.T, products.reshape(-1, b * nx * c_out)), None

    zero = jnp.zeros((ny * nz, b * nx * c_out), x.dtype)
    matrices = [jnp.asarray(m, x.dtype) for m in dft_matrices((ny, nz), (ky, kz))]
    y, _ = lax.scan(add_products, zero, tuple(matrices))
    return y.reshape(ny * nz, b * nx, c_out).swapaxes(0, 1).reshape(b, nx, ny, nz, c_out)


def dft_matrices(plane: tuple[int, int], size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """V, T and W of y = W^T ((T k) * (V x)), planes x convolved with kernels k of `size`.

    Their rows, one for each product, are in blocks of `PRODUCTS_AT_ONCE`, zeros at the end. Planes
    repeat with a period that is longer by half a kernel, so that what wraps around is 0. Of a
    frequency and its negative, one stands for both. A product of complex numbers is three real
    ones instead of four (Gauss); the sums and differences that these take are in the matrices.
    """
    period = np.add(plane, np.array(size) // 2)
    wave = np.indices(period).reshape(2, -1).T
    number, negative = wave @ [period[1], 1], -wave % period @ [period[1], 1]
    real = (number == negative)[number <= negative]
    wave = wave[number <= negative]

    def angles(shape: tuple[int, int], origin: np.ndarray) -> np.ndarray:
        points = np.indices(shape).reshape(2, -1) - origin[:, None]
        return 2 * np.pi * (wave / period) @ points

    def blocks(of_real: np.ndarray, *others: np.ndarray) -> np.ndarray:
        rows = np.concatenate([of_real[real], *(rows[~real] for rows in others)])
        rows = np.pad(rows, ((0, -len(rows) % PRODUCTS_AT_ONCE), (0, 0)))
        return rows.reshape(-1, PRODUCTS_AT_ONCE, rows.shape[1])

    voxel, tap = angles(plane, np.zeros(2)), angles(size, np.array(size) // 2)
    # x becomes a + ib, k becomes c + id. Their product is p - r and i (p + q) of p = c (a + b),
    # q = a (d - c), r = b (c + d).
    a, b, c, d = np.cos(voxel), -np.sin(voxel), np.cos(tap), np.sin(tap)
    return (
        blocks(a, a + b, a, b),
        blocks(c, c, d - c, c + d),
        blocks(a, 2 * (a + b), 2 * b, -2 * a) / period.prod(),
    )


def weight_gradient_on_cpu(x: Array, dy: Array, size: Sequence[int]) -> Array:
    """Gradient of the kernel of `conv_on_cpu`: by columns, Fourier transforms or compiled code."""
    if native.suits(x, size, dy.shape[-1]):
        return native.weight_gradient(x, dy, size)
    if x.ndim == 4:
        # A picture is one plane of a volume.
        return weight_gradient_on_cpu(x[:, None], dy[:, None], (1, *size))[0]
    dtype = x.dtype
    x, dy = _at_least_float32(x), _at_least_float32(dy)
    if suits_dft(x.shape, size):
        kernel = jax.ShapeDtypeStruct((*size, x.shape[-1], dy.shape[-1]), x.dtype)
        (dk,) = jax.linear_transpose(functools.partial(conv_by_dft, x), kernel)(dy)
    elif x.shape[1] == size[0] == 1:
        dk = weight_gradient_of_pictures(x[:, 0], dy[:, 0], size[1:])[None]
    else:
        dk = weight_gradient_by_columns(x, dy, size)
    return dk.astype(dtype)


def weight_gradient_of_pictures(x: Array, dy: Array, size: Sequence[int]) -> Array:
    """Pixels of `dy`, shifted over X, times pixels of `x`, shifted over Y: one matrix product.

    Of both sides the one with fewer channels is `x`. Large batches picture by picture.
    """
    if dy.shape[-1] < x.shape[-1]:
        return weight_gradient_of_pictures(dy, x, size)[::-1, ::-1].swapaxes(-2, -1)
    kx, ky = size
    b, nx, ny, c_in = x.shape
    dy = jnp.pad(dy, ((0, 0), (kx // 2, kx // 2), (0, 0), (0, 0)))
    x = jnp.pad(x, ((0, 0), (0, 0), (ky // 2, ky // 2), (0, 0)))

    def product(x: Array, dy: Array) -> Array:
        left = jnp.concatenate([dy[:, i : i + nx] for i in range(kx)], axis=-1)
        right = jnp.concatenate([x[:, :, j : j + ny] for j in range(ky)], axis=-1)
        pixels = (0, 1, 2)
        return lax.dot_general(left, right, ((pixels, pixels), ((), ())))

    if max(kx * dy.size, ky * x.size) <= VALUES_AT_ONCE:
        total = product(x, dy)
    else:
        zero = jnp.zeros((kx * dy.shape[-1], ky * c_in), x.dtype)
        one_by_one = x[:, None], dy[:, None]
        total, _ = lax.scan(lambda t, one: (t + product(*one), None), zero, one_by_one)
    return total.reshape(kx, -1, ky, c_in)[::-1].transpose(0, 2, 3, 1)


def weight_gradient_by_columns(x: Array, dy: Array, size: Sequence[int]) -> Array:
    """Shifted planes of `dy` times columns of `x`, as matrix products.

    The shifts over X are on the side of `dy`, those over Y and Z on that of `x`, which makes both
    factors wide; the other way round where `dy` has fewer channels. Planes or parts of them in a
    loop: all columns together would leave the cache.
    """
    if dy.shape[-1] < x.shape[-1]:
        return weight_gradient_by_columns(dy, x, size)[::-1, ::-1, ::-1].swapaxes(-2, -1)
    kx, ky, kz = size
    b, nx, ny, nz, c_in = x.shape
    c_out = dy.shape[-1]
    rows = ny * nz
    padded = _pad(x, (0, 0), ky // 2, kz // 2).reshape(b * nx, ny + ky - 1, nz + kz - 1, c_in)
    # One transposition of all planes, so that no product needs one; shifts are then slices.
    shifted = dy.reshape(b, nx, rows, c_out).swapaxes(2, 3)
    shifted = jnp.pad(shifted, ((0, 0), (kx // 2, kx // 2), (0, 0), (0, 0)))

    def columns(planes: Array) -> Array:
        high = planes.shape[1] - ky + 1
        taps = [planes[:, j : j + high, k : k + nz] for j in range(ky) for k in range(kz)]
        return jnp.concatenate(taps, axis=-1).reshape(-1, ky * kz * c_in)

    if rows < LOOP_FROM_ROWS:
        taps = jnp.stack([shifted[:, i : i + nx] for i in range(kx)])
        left = taps.transpose(0, 3, 1, 2, 4).reshape(kx * c_out, b * nx * rows)
        total = jnp.dot(left, columns(padded))
    else:
        flat = shifted.reshape(-1, c_out, rows)
        fits = (n for n in range(1, ny) if ny % n == 0 and rows // n <= ROWS_AT_ONCE)
        parts = next(fits, ny)
        height = ny // parts

        def add_part(total: Array, number: Array) -> tuple[Array, None]:
            plane, part = number // parts, number % parts
            start = plane + plane // nx * (kx - 1), 0, part * height * nz
            left = lax.dynamic_slice(flat, start, (kx, c_out, height * nz))
            corner = plane, part * height, 0, 0
            right = lax.dynamic_slice(padded, corner, (1, height + ky - 1, *padded.shape[2:]))
            return total + jnp.dot(left.reshape(kx * c_out, -1), columns(right)), None

        zero = jnp.zeros((kx * c_out, ky * kz * c_in), x.dtype)
        total, _ = lax.scan(add_part, zero, jnp.arange(b * nx * parts))
    dk = total.reshape(kx, c_out, ky, kz, c_in)[::-1]
    return dk.transpose(0, 2, 3, 4, 1)


@jax.custom_vjp
def matmul(x: Array, weight: Array) -> Array:
    """`(..., M)` by `(M, N)`; the gradient of `weight` transposes the narrower of its factors."""
    return jnp.dot(x, weight)


def _matmul_forward(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return jnp.dot(x, weight), (x, weight)


def _matmul_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, weight = saved
    dy = lax.optimization_barrier(dy)  # Else XLA writes rearranged gradients out once per use.
    rows = tuple(range(x.ndim - 1))
    if x.shape[-1] <= dy.shape[-1]:
        dw = lax.dot_general(x, dy, ((rows, rows), ((), ())))
    else:
        dw = lax.dot_general(dy, x, ((rows, rows), ((), ()))).T
    return jnp.dot(dy, weight.T), dw


matmul.defvjp(_matmul_forward, _matmul_backward)


def to_blocks(x: Array) -> Array:
    """Blocks of 2 x 2 x 2 voxels into channels: `(B, 2X, 2Y, 2Z, C)` to `(B, X, Y, Z, 8 C)`.

    Of pictures, blocks of 2 x 2 into 4 C channels.
    """
    halves = _in_blocks(x)
    places, inside = range(1, halves.ndim - 1, 2), _inside(x)
    order = (0, *places, *inside, halves.ndim - 1)
    return halves.transpose(order).reshape(x.shape[0], *(n // 2 for n in x.shape[1:-1]), -1)


def from_blocks(x: Array) -> Array:
    """The inverse of `to_blocks`."""
    b, *sides, c = x.shape
    axes = len(sides)
    halves = x.reshape(b, *sides, *(2,) * axes, c // 2**axes)
    order = [place for axis in range(1, axes + 1) for place in (axis, axes + axis)]
    halves = halves.transpose(0, *order, halves.ndim - 1)
    return halves.reshape(b, *(2 * n for n in sides), c // 2**axes)


def conv_strided_2(x: Array, kernel: Array) -> Array:
    """Convolution with a kernel of 2 voxels a side and stride 2: halves every side (even ones)."""
    return matmul(to_blocks(x), kernel.reshape(-1, kernel.shape[-1]))


def conv_halving(x: Array, kernel: Array) -> Array:
    """Convolution with a kernel of 3 voxels a side and stride 2; sides are halved, rounded up.

    Zeros stand where `lax`'s "SAME" has them: of an even side after its end alone.
    """
    return _by_platform(halving_on_cpu, halving_direct)(x, kernel)


def conv_doubled(x: Array, kernel: Array) -> Array:
    """`conv_same` of `upsample_2(x, "nearest")`, with a kernel of 3 voxels a side."""
    return _by_platform(doubled_on_cpu, doubled_direct)(x, kernel)


@functools.cache
def _by_platform(cpu: Form, default: Form) -> Form:
    """One of two equal forms of a convolution, its gradients those of that form."""

    @jax.custom_vjp
    def convolve(x: Array, kernel: Array) -> Array:
        return lax.platform_dependent(x, kernel, cpu=cpu, default=default)

    def forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
        return convolve(x, kernel), (x, kernel)

    def gradients(form: Form, x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
        return jax.vjp(form, x, kernel)[1](dy)

    def backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
        return lax.platform_dependent(
            *saved,
            dy,
            cpu=functools.partial(gradients, cpu),
            default=functools.partial(gradients, default),
        )

    convolve.defvjp(forward, backward)
    return convolve


def halving_direct(x: Array, kernel: Array) -> Array:
    """The textbook, for platforms with convolutions of their own (cuDNN)."""
    return conv_direct(x, kernel, stride=2)


def halving_on_cpu(x: Array, kernel: Array) -> Array:
    """Columns of all taps times the kernel: of n values there are only n (3 / 2)^axes columns."""
    if any(n % 2 for n in x.shape[1:-1]):
        return halving_direct(x, kernel)
    axes, channels = x.ndim - 2, x.shape[-1]
    blocks = to_blocks(x)
    padded = jnp.pad(blocks, [(0, 0), *[(0, 1)] * axes, (0, 0)])
    taps = []
    for tap in np.ndindex(*(3,) * axes):
        # Of an axis, tap t is place t % 2 of the block t // 2 further on.
        place = int(np.ravel_multi_index(np.mod(tap, 2), (2,) * axes))
        taps.append(_part(padded, [t // 2 for t in tap], blocks.shape, place, channels))
    return matmul(jnp.concatenate(taps, axis=-1), kernel.reshape(-1, kernel.shape[-1]))


def doubled_direct(x: Array, kernel: Array) -> Array:
    """The textbook."""
    return conv_same(upsample_2(x, "nearest"), kernel)


# Of an axis: for the first and the second voxel that one becomes, which taps meet the former and
# the latter of two neighbours.
MEETS = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])


def doubled_on_cpu(x: Array, kernel: Array) -> Array:
    """One matrix product before the doubling: taps that meet the same voxel are summed first.

    Of pictures it takes 16 multiplications a channel instead of 36, of volumes 64 instead of 216.
    """
    axes, (c_in, c_out) = x.ndim - 2, kernel.shape[-2:]
    padded = jnp.pad(x, [(0, 0), *[(1, 1)] * axes, (0, 0)])
    places = list(np.ndindex(*(2,) * axes))
    corners = (len(x), *(n + 1 for n in x.shape[1:-1]))
    near = jnp.concatenate([_part(padded, place, corners, 0, c_in) for place in places], axis=-1)
    meets = [MEETS.astype(kernel.dtype)] * axes
    summed = ("pat,tio->aipo", "pat,qbu,tuio->abipqo", "pat,qbu,rcv,tuvio->abcipqro")[axes - 1]
    weight = jnp.einsum(summed, *meets, kernel).reshape(-1, len(places) * c_out)
    y = matmul(near, weight)
    parts = [_part(y, place, x.shape, i, c_out) for i, place in enumerate(places)]
    return from_blocks(jnp.concatenate(parts, axis=-1))


def _part(x: Array, start: Sequence[int], like: Sequence[int], place: int, channels: int) -> Array:
    """From `start` on as many voxels as `like` has, and the channels of one place of a block."""
    sides = (slice(s, s + n) for s, n in zip(start, like[1:], strict=False))
    return x[:, *sides, place * channels : (place + 1) * channels]


# A call by itself, so that other engines can take their own operation for it.
@jax.jit
def conv_transpose_2(x: Array, kernel: Array) -> Array:
    """Transposed convolution with a kernel of 2 voxels a side, stride 2: voxels become blocks.

    out[2i + a, 2j + b, 2k + c] = x[i, j, k] @ kernel[a, b, c]: one matrix product, then blocks are
    laid out in space.
    """
    columns = jnp.moveaxis(kernel, -2, 0).reshape(x.shape[-1], -1)
    return from_blocks(matmul(x, columns))


@jax.custom_vjp
def max_pool_2(x: Array) -> Array:
    """Maximum over blocks of 2 voxels a side, all even. Equals share the gradient.

    So do values that differ from the maximum by rounding (`ROUNDING`).
    """
    return _in_blocks(x).max(_inside(x))


def _max_pool_forward(x: Array) -> tuple[Array, tuple[Array, Array]]:
    y = max_pool_2(x)
    return y, (x, y)


def _max_pool_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array]:
    x, y = saved
    one = jnp.expand_dims(y, _inside(x)).shape
    # XLA may compute x once more for this, rounded otherwise, and then none equals the maximum:
    # without a margin a block's gradient is lost, where JAX's own division by the number of equals
    # makes it NaN.
    largest = _in_blocks(x) >= (y - ROUNDING * jnp.abs(y)).reshape(one)
    share = dy / jnp.maximum(largest.sum(_inside(x)), 1).astype(dy.dtype)
    return (jnp.where(largest, share.reshape(one), 0).reshape(x.shape),)


max_pool_2.defvjp(_max_pool_forward, _max_pool_backward)


def _in_blocks(x: Array, size: int = 2) -> Array:
    """(B, 2X, 2Y, 2Z, C) as (B, X, 2, Y, 2, Z, 2, C), or with another `size` than 2."""
    b, *sides, c = x.shape
    return x.reshape(b, *(part for n in sides for part in (n // size, size)), c)


def _inside(x: Array) -> tuple[int, ...]:
    """The axes of `_in_blocks(x)` that are places inside of a block."""
    return tuple(range(2, 2 * x.ndim - 3, 2))


def avg_pool(x: Array, size: int) -> Array:
    """Mean over blocks of `size` voxels a side, which must divide every side."""
    return _in_blocks(x, size).mean(_inside(x))


def avg_pool_2(x: Array) -> Array:
    """Mean over blocks of 2 voxels a side; every side must be even."""
    return avg_pool(x, 2)


def upsample_2(x: Array, method: str = "trilinear") -> Array:
    """Twice the voxels a side, `nearest` or `trilinear` (half-pixel centres, edges repeated).

    Of pictures, `trilinear` is bilinear.
    """
    for axis in range(1, x.ndim - 1):
        if method == "nearest":
            low = high = x
        elif method == "trilinear":
            n = x.shape[axis]
            before = lax.slice_in_dim(x, 0, n - 1, axis=axis)
            after = lax.slice_in_dim(x, 1, n, axis=axis)
            first = lax.slice_in_dim(x, 0, 1, axis=axis)
            last = lax.slice_in_dim(x, n - 1, n, axis=axis)
            low = 0.75 * x + 0.25 * jnp.concatenate([first, before], axis)
            high = 0.75 * x + 0.25 * jnp.concatenate([after, last], axis)
        else:
            raise ValueError(f"method must be nearest or trilinear, not {method!r}")
        shape = (*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])
        x = jnp.stack([low, high], axis + 1).reshape(shape)
    return x
