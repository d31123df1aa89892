"""Random changes of volumes on the device, volume and landmarks together.

Prepared volumes have a margin around the crop, so that a moved window still shows real voxels.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.scipy.ndimage import map_coordinates


def centre_crop(image: Array, margin: int) -> Array:
    """The crop `(B, X, Y, Z, C)` without its margin."""
    inner = slice(margin, -margin or None)
    return image[:, inner, inner, inner]


def random_affines(key: Array, batch: int, *, degrees: float, scale: float) -> Array:
    """Matrices (B, 3, 3) in millimetre axes: rotation about a random axis, times a scale.

    The angle is uniform in [-degrees, degrees], the factor in [1 - scale, 1 + scale].
    """
    k_axis, k_angle, k_scale = jax.random.split(key, 3)
    axis = jax.random.normal(k_axis, (batch, 3))
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
    """Where a crop is taken from a volume with a margin, for each volume of a batch."""

    # (B, 3, 3) from the crop to the volume, in millimetre axes, about the crop's centre. None: no
    # turning, and `offset` is whole voxels.
    affine: Array | None
    offset: Array  # (B, 3) voxels from the crop to the volume, 0 for its centre


def random_view(
    key: Array, batch: int, *, translation_voxels: int, rotation_degrees: float, scale: float
) -> View:
    """Uniform translations of up to so many voxels an axis, rotations and scales."""
    k_move, k_turn = jax.random.split(key)
    if not (rotation_degrees or scale):
        whole = jax.random.randint(k_move, (batch, 3), -translation_voxels, translation_voxels + 1)
        return View(affine=None, offset=whole)
    return View(
        affine=random_affines(k_turn, batch, degrees=rotation_degrees, scale=scale),
        offset=jax.random.uniform(
            k_move, (batch, 3), minval=-translation_voxels, maxval=translation_voxels
        ),
    )


def view_points(
    landmarks_ijk: Array,
    view: View,
    *,
    crop: Sequence[int],
    margin: int,
    spacing_mm: Sequence[float],
) -> Array:
    """Landmarks (B, K, 3) in voxels of a volume with its margin -> in voxels of the view's crop."""
    moved = landmarks_ijk - margin - view.offset[:, None].astype(jnp.float32)
    if view.affine is None:
        return moved
    centre = _centre(crop)
    back = jnp.linalg.inv(_in_voxels(view.affine, spacing_mm))
    return jnp.einsum("bij,bkj->bki", back, moved - centre) + centre


def view_image(image: Array, view: View, *, margin: int, spacing_mm: Sequence[float]) -> Array:
    """The view's crop (B, X, Y, Z, C) of volumes with a margin; trilinear where it is turned."""
    crop = tuple(n - 2 * margin for n in image.shape[1:4])

    def cut(volume: Array, offset: Array) -> Array:
        return jax.lax.dynamic_slice(volume, (*(margin + offset), 0), (*crop, volume.shape[-1]))

    if view.affine is None:
        return jax.vmap(cut)(image, view.offset)
    centre = _centre(crop)
    axes = (jnp.arange(n) - c for n, c in zip(crop, centre, strict=True))
    grid = jnp.stack(jnp.meshgrid(*axes, indexing="ij"))

    def turn(volume: Array, matrix: Array, offset: Array) -> Array:
        start = (centre + margin + offset)[:, None, None, None]
        source = jnp.einsum("ij,jxyz->ixyz", matrix, grid) + start
        sample = jax.vmap(
            lambda channel: map_coordinates(channel, list(source), order=1, mode="nearest"),
            in_axes=-1,
            out_axes=-1,
        )
        return sample(volume)

    return jax.vmap(turn)(image, _in_voxels(view.affine, spacing_mm), view.offset)


def _in_voxels(affine: Array, spacing_mm: Sequence[float]) -> Array:
    """Matrices in millimetre axes as the same maps in voxels."""
    spacing = jnp.asarray(spacing_mm, jnp.float32)
    return affine * spacing[None, None, :] / spacing[None, :, None]


def _centre(crop: Sequence[int]) -> Array:
    return jnp.asarray([(n - 1) / 2 for n in crop], jnp.float32)


def augment(
    key: Array,
    image: Array,
    landmarks_ijk: Array,
    *,
    margin: int,
    spacing_mm: Sequence[float],
    translation_voxels: int,
    rotation_degrees: float,
    scale: float,
    contrast: float,
    brightness: float,
    noise: float,
) -> tuple[Array, Array]:
    """A random view of each volume; the settings are those of `config.Augment`.

    Returns volumes (B, X, Y, Z, C) in float32 and landmarks (B, K, 3) in their voxels.
    """
    b = image.shape[0]
    k_view, k_contrast, k_brightness, k_noise = jax.random.split(key, 4)
    view = random_view(
        k_view,
        b,
        translation_voxels=translation_voxels,
        rotation_degrees=rotation_degrees,
        scale=scale,
    )
    crop = tuple(n - 2 * margin for n in image.shape[1:4])
    landmarks_ijk = view_points(
        landmarks_ijk, view, crop=crop, margin=margin, spacing_mm=spacing_mm
    )
    image = view_image(image.astype(jnp.float32), view, margin=margin, spacing_mm=spacing_mm)
    shape = (b, 1, 1, 1, 1)
    if contrast:
        image = image * jax.random.uniform(
            k_contrast, shape, minval=1 - contrast, maxval=1 + contrast
        )
    if brightness:
        image = image + jax.random.uniform(
            k_brightness, shape, minval=-brightness, maxval=brightness
        )
    if noise:
        image = image + noise * jax.random.normal(k_noise, image.shape)
    return image, landmarks_ijk
