"""Random changes of volumes on the device, volume and landmarks together.

Prepared volumes have a margin around the crop, so that a moved window still shows real voxels.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.ndimage import map_coordinates


def centre_crop(image: Array, margin: int) -> Array:
    """The crop `(B, X, Y, Z, C)` without its margin."""
    inner = slice(margin, -margin or None)
    return image[:, inner, inner, inner]


def translate(
    key: Array, image: Array, landmarks_ijk: Array, *, margin: int, voxels: int
) -> tuple[Array, Array]:
    """Crop at a random whole-voxel offset of up to `voxels` (<= margin) an axis, per volume."""
    b = image.shape[0]
    crop = tuple(n - 2 * margin for n in image.shape[1:4])
    offset = margin + jax.random.randint(key, (b, 3), -voxels, voxels + 1)

    def one(volume: Array, start: Array) -> Array:
        return jax.lax.dynamic_slice(volume, (*start, 0), (*crop, volume.shape[-1]))

    return jax.vmap(one)(image, offset), landmarks_ijk - offset[:, None].astype(jnp.float32)


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


def warp(
    image: Array,
    landmarks_ijk: Array,
    affine: Array,
    offset: Array,
    *,
    margin: int,
    spacing_mm: Sequence[float],
) -> tuple[Array, Array]:
    """Turn and scale volumes about the crop's centre, shift them, and crop: trilinear sampling.

    Args:
      image: (B, X + 2 margin, Y + 2 margin, Z + 2 margin, C).
      landmarks_ijk: (B, K, 3) in voxels of `image`.
      affine: (B, 3, 3), from output to input, in millimetre axes.
      offset: (B, 3), from output to input, in voxels.

    Returns:
      Volumes (B, X, Y, Z, C), and landmarks in their voxels.
    """
    crop = tuple(n - 2 * margin for n in image.shape[1:4])
    spacing = jnp.asarray(spacing_mm, jnp.float32)
    # The same map in voxels: out of voxels into mm, through the affine, back into voxels.
    linear = affine * spacing[None, None, :] / spacing[None, :, None]
    centre = jnp.asarray([(n - 1) / 2 for n in crop], jnp.float32)
    grid = jnp.stack(
        jnp.meshgrid(*(jnp.arange(n) - c for n, c in zip(crop, centre, strict=True)), indexing="ij")
    )

    def one(volume: Array, points: Array, m: Array, t: Array) -> tuple[Array, Array]:
        source = jnp.einsum("ij,jxyz->ixyz", m, grid) + (centre + margin + t)[:, None, None, None]
        sample = jax.vmap(
            lambda channel: map_coordinates(channel, list(source), order=1, mode="nearest"),
            in_axes=-1,
            out_axes=-1,
        )
        moved = jnp.einsum("ij,kj->ki", jnp.linalg.inv(m), points - centre - margin - t) + centre
        return sample(volume), moved

    return jax.vmap(one)(image, landmarks_ijk, linear, offset)


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
    k_move, k_turn, k_contrast, k_brightness, k_noise = jax.random.split(key, 5)
    image = image.astype(jnp.float32)
    if rotation_degrees or scale:
        affine = random_affines(k_turn, b, degrees=rotation_degrees, scale=scale)
        offset = jax.random.uniform(
            k_move, (b, 3), minval=-translation_voxels, maxval=translation_voxels
        )
        image, landmarks_ijk = warp(
            image, landmarks_ijk, affine, offset, margin=margin, spacing_mm=spacing_mm
        )
    else:
        image, landmarks_ijk = translate(
            k_move, image, landmarks_ijk, margin=margin, voxels=translation_voxels
        )
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
