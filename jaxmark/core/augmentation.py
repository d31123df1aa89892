"""Random changes of volumes on the device, volume and landmarks together.

Prepared volumes have a margin around the crop, so that a moved window still shows real voxels.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.scipy.ndimage import map_coordinates


def centre_crop(image: Array, margin: Sequence[int]) -> Array:
    """The crop `(B, X, Y, Z, C)` without its margin, a number of voxels for each axis."""
    x, y, z = (slice(m, -m or None) for m in margin)
    return image[:, x, y, z]


def random_affines(
    key: Array, batch: int, *, degrees: float, scale: float, flat: bool = False
) -> Array:
    """Matrices (B, 3, 3) in millimetre axes: rotation about a random axis, times a scale.

    The angle is uniform in [-degrees, degrees], the factor in [1 - scale, 1 + scale]. With `flat`,
    of pictures with X and Y alone, the axis is Z.
    """
    k_axis, k_angle, k_scale = jax.random.split(key, 3)
    axis = jax.random.normal(k_axis, (batch, 3))
    if flat:
        axis = axis * jnp.array([0.0, 0.0, 1.0])
    axis = axis / jnp.linalg.norm(axis, axis=-1, keepdims=True)
    angle = jnp.deg2rad(jax.random.uniform(k_angle, (batch, 1, 1), minval=-degrees, maxval=degrees))
    # Rodrigues' formula with the cross-product matrix of the axis.
    x, y, z = axis[:, 0], axis[:, 1], axis[:, 2]
    o = jnp.zeros_like(x)
    cross = jnp.stack([o, -z, y, z, o, -x, -y, x, o], axis=-1).reshape(batch, 3, 3)
    rotation = jnp.eye(3) + jnp.sin(angle) * cross + (1 - jnp.cos(angle)) * cross @ cross
    factor = jax.random.uniform(k_scale, (batch, 1, 1), minval=1 - scale, maxval=1 + scale)
    return rotation * factor


@struct.dataclass
class View:
    """The place of the crop in a volume with a margin, for each volume of a batch."""

    # (B, 3, 3) from the crop to the volume, in millimetre axes, about the crop's centre. None: the
    # crop is not turned, and `offset` is whole voxels.
    affine: Array | None
    offset: Array  # (B, 3) voxels from the crop to the volume, 0 for its centre
    # (B,) bool: the crop is mirrored along X, right to left. None: none is.
    flipped: Array | None = None
    # (B, mx, my, mz, 3) mm, coefficients of `displacements` u in the crop: voxel x shows what the
    # unbent crop shows at x + u(x). None: nothing is bent. With `bend` there is an `affine`.
    bend: Array | None = None


def random_view(
    key: Array,
    batch: int,
    *,
    translation_voxels: Sequence[int],
    rotation_degrees: float,
    scale: float,
    flip: float = 0.0,
    elastic_mm: float = 0.0,
    controls: Sequence[int] = (),
    flat: bool = False,
) -> View:
    """Uniform translations of up to `translation_voxels` along each axis, rotations and scales.

    `flip` is the probability of a mirror image; `flat` as in `random_affines`. The coefficients of
    a bend are uniform in [-elastic_mm, elastic_mm]; `controls` is their number along each axis, see
    `bend_controls`.
    """
    k_move, k_turn = jax.random.split(key)
    most = np.asarray(translation_voxels)
    flipped = None
    if flip:
        flipped = jax.random.bernoulli(jax.random.fold_in(key, 2), flip, (batch,))
    bend = None
    if elastic_mm:
        shape = (batch, *controls, 3)
        bend = jax.random.uniform(
            jax.random.fold_in(key, 3), shape, minval=-elastic_mm, maxval=elastic_mm
        )
        bend = bend * jnp.array([1.0, 1.0, 0.0]) if flat else bend
    if not (rotation_degrees or scale or elastic_mm):
        moved = jax.random.randint(k_move, (batch, 3), -most, most + 1)
        return View(affine=None, offset=moved, flipped=flipped)
    far = most.astype(np.float32)
    return View(
        affine=random_affines(k_turn, batch, degrees=rotation_degrees, scale=scale, flat=flat),
        offset=jax.random.uniform(k_move, (batch, 3), minval=-far, maxval=far),
        flipped=flipped,
        bend=bend,
    )


# Fixed-point steps of `unbent`. Within the bounds of `config.Augment` each leaves at most 3/4 of
# the error, so that all leave 2e-4 of it.
_UNBENDING = 30


def bend_controls(
    crop: Sequence[int], spacing_mm: Sequence[float], grid_mm: float
) -> tuple[int, int, int]:
    """Number of a bend's coefficients along each axis, at least `grid_mm` apart.

    1 along an axis shorter than that: the bend is constant along it.
    """
    intervals = (int((n - 1) * s / grid_mm) for n, s in zip(crop, spacing_mm, strict=True))
    x, y, z = (count + 3 if count else 1 for count in intervals)
    return x, y, z


def displacements(bend: Array, *bases: Array) -> Array:
    """Uniform cubic B-splines u(x) of each volume, in mm (Rueckert et al., IEEE TMI 1999, Eq. 3).

    Args:
      bend: (B, mx, my, mz, 3) coefficients.
      bases: `spline_basis` of the coordinates along X, Y and Z: (n, m) each, for a grid, which
        gives (B, nx, ny, nz, 3); or (B, K, m) each, for points, which gives (B, K, 3).
    """
    if bases[0].ndim == 2:
        return jnp.einsum("xi,yj,zk,bijkc->bxyzc", *bases, bend)
    return jnp.einsum("bni,bnj,bnk,bijkc->bnc", *bases, bend)


def spline_basis(voxels: Array, side: int, controls: int) -> Array:
    """Weights (..., controls) of the coefficients at places (...) along an axis of `side` voxels.

    Places beyond the first and the last voxel get the weights of that voxel.
    """
    if controls == 1:
        return jnp.ones((*voxels.shape, 1))
    place = jnp.clip(voxels / (side - 1), 0, 1) * (controls - 3)
    return cubic_spline(place[..., None] + 1 - jnp.arange(controls))


def cubic_spline(distance: Array) -> Array:
    """The uniform cubic B-spline at distances from its middle, in intervals."""
    u = jnp.abs(distance)
    return jnp.where(u < 1, 2 / 3 - u**2 + u**3 / 2, jnp.maximum(2 - u, 0) ** 3 / 6)


def unbent(
    points_ijk: Array, bend: Array, crop: Sequence[int], spacing_mm: Sequence[float]
) -> Array:
    """The places y of points x (B, K, 3) of a crop after it is bent: y + u(y) = x.

    Iterates y <- x - u(y), which converges because u changes by less than its argument does.
    """
    spacing = jnp.asarray(spacing_mm, jnp.float32)
    sides = list(zip(crop, bend.shape[1:4], strict=True))

    def closer(_: int, moved: Array) -> Array:
        bases = (spline_basis(moved[..., a], *sides[a]) for a in range(3))
        return points_ijk - displacements(bend, *bases) / spacing

    return jax.lax.fori_loop(0, _UNBENDING, closer, points_ijk)


def view_points(
    landmarks_ijk: Array,
    view: View,
    *,
    crop: Sequence[int],
    margin: Sequence[int],
    spacing_mm: Sequence[float],
    mirrored: Sequence[int] | np.ndarray,
) -> Array:
    """Landmarks (B, K, 3) in voxels of a volume with its margin -> in voxels of the view's crop.

    `mirrored` (K,): index of each landmark's mirror image.
    """
    moved = landmarks_ijk - jnp.asarray(margin, jnp.float32)
    moved = moved - view.offset[:, None].astype(jnp.float32)
    if view.affine is not None:
        centre = _centre(crop)
        back = jnp.linalg.inv(_in_voxels(view.affine, spacing_mm))
        moved = jnp.einsum("bij,bkj->bki", back, moved - centre) + centre
    if view.bend is not None:
        moved = unbent(moved, view.bend, crop, spacing_mm)
    if view.flipped is None:
        return moved
    mirror = moved * jnp.array([-1.0, 1, 1]) + jnp.array([crop[0] - 1.0, 0, 0])
    return jnp.where(view.flipped[:, None, None], mirror[:, jnp.asarray(mirrored)], moved)


def view_values(values: Array, view: View, mirrored: Sequence[int] | np.ndarray) -> Array:
    """(B, N) values of landmarks or segments; right and left are exchanged in mirror images."""
    if view.flipped is None:
        return values
    return jnp.where(view.flipped[:, None], values[:, jnp.asarray(mirrored)], values)


def view_labels(
    labels: Array,
    view: View,
    *,
    margin: Sequence[int],
    spacing_mm: Sequence[float],
    mirrored: Sequence[int] | np.ndarray,
) -> Array:
    """The view's crop (B, X, Y, Z) of label maps with a margin: the nearest voxel's label.

    Labels are 0, or 1 + an index (of a segment, say). `mirrored` holds the index in a mirror image
    for each index; larger labels keep their value there.
    """
    image = labels[..., None]
    cut = view_image(image, view, margin=margin, spacing_mm=spacing_mm, order=0)[..., 0]
    cut = cut.astype(labels.dtype)
    if view.flipped is None or not len(mirrored):
        return cut
    count = len(mirrored)
    names = jnp.arange(256).at[1 : count + 1].set(jnp.asarray(mirrored, jnp.int32) + 1)
    renamed = names[cut.astype(jnp.int32)].astype(labels.dtype)
    return jnp.where(view.flipped[:, None, None, None], renamed, cut)


def view_image(
    image: Array,
    view: View,
    *,
    margin: Sequence[int],
    spacing_mm: Sequence[float],
    order: int = 1,
) -> Array:
    """The view's crop (B, X, Y, Z, C) of volumes with a margin.

    A crop that is turned or bent is sampled: trilinear (`order` 1) or nearest voxel (0).
    """
    crop = tuple(n - 2 * m for n, m in zip(image.shape[1:4], margin, strict=True))
    corner = jnp.asarray(margin)

    def cut(volume: Array, offset: Array) -> Array:
        return jax.lax.dynamic_slice(volume, (*(corner + offset), 0), (*crop, volume.shape[-1]))

    if view.affine is None:
        found = jax.vmap(cut)(image, view.offset)
    else:
        centre = _centre(crop)
        axes = (jnp.arange(n) - c for n, c in zip(crop, centre, strict=True))
        grid = jnp.stack(jnp.meshgrid(*axes, indexing="ij"))

        def turn(volume: Array, matrix: Array, offset: Array, bent: Array | None) -> Array:
            start = (centre + corner + offset)[:, None, None, None]
            shown = grid if bent is None else grid + bent
            source = jnp.einsum("ij,jxyz->ixyz", matrix, shown) + start
            sample = jax.vmap(
                lambda channel: map_coordinates(channel, list(source), order=order, mode="nearest"),
                in_axes=-1,
                out_axes=-1,
            )
            return sample(volume)

        bent = None
        if view.bend is not None:
            sides = zip(crop, view.bend.shape[1:4], strict=True)
            bases = (spline_basis(jnp.arange(float(n)), n, m) for n, m in sides)
            field_mm = displacements(view.bend, *bases)
            bent = jnp.moveaxis(field_mm / jnp.asarray(spacing_mm, jnp.float32), -1, 1)
        found = jax.vmap(turn)(image, _in_voxels(view.affine, spacing_mm), view.offset, bent)
    if view.flipped is None:
        return found
    return jnp.where(view.flipped[:, None, None, None, None], found[:, ::-1], found)


def change_intensities(
    keys: Sequence[Array], image: Array, *, contrast: float, brightness: float, noise: float
) -> Array:
    """Volumes (B, X, Y, Z, C) with random contrast, brightness and noise; see `config.Augment`.

    `keys` are three, one for each.
    """
    k_contrast, k_brightness, k_noise = keys
    shape = (image.shape[0], 1, 1, 1, 1)
    if contrast:
        image = image * jax.random.uniform(
            k_contrast, shape, minval=1 - contrast, maxval=1 + contrast
        )
    if brightness:
        image = image + jax.random.uniform(
            k_brightness, shape, minval=-brightness, maxval=brightness
        )
    return image + noise * jax.random.normal(k_noise, image.shape) if noise else image


def _in_voxels(affine: Array, spacing_mm: Sequence[float]) -> Array:
    """Matrices in millimetre axes as the same maps in voxels."""
    spacing = jnp.asarray(spacing_mm, jnp.float32)
    return affine * spacing[None, None, :] / spacing[None, :, None]


def _centre(crop: Sequence[int]) -> Array:
    return jnp.asarray([(n - 1) / 2 for n in crop], jnp.float32)
