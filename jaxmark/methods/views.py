"""Random views of a batch: image, landmarks and all targets move together, on the device."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxmark.core.augmentation import (
    View,
    bend_controls,
    change_intensities,
    random_view,
    view_image,
    view_labels,
    view_points,
    view_values,
)
from jaxmark.methods.method import BY_SEGMENT, LABELS, Batch, Task


def draw_view(task: Task, key: Array, count: int) -> View:
    """Random views of so many volumes, as `config.Augment` has them."""
    most = task.augment.translation_voxels
    return random_view(
        key,
        count,
        # There is nowhere to go along an axis without a margin.
        translation_voxels=[min(most, margin) for margin in task.margin],
        rotation_degrees=task.augment.rotation_degrees,
        scale=task.augment.scale,
        flip=task.augment.flip,
        elastic_mm=task.augment.elastic_mm,
        controls=bend_controls(task.crop, task.spacing_mm, task.augment.elastic_grid_mm),
        flat=task.planar,
    )


def view_landmarks(
    task: Task, view: View, landmarks_ijk: Array, *masks: Array
) -> tuple[Array, ...]:
    """Landmarks (B, K, 3) in voxels of the views' crops, and masks (B, K) of them.

    Those of pictures lie in the picture's plane, however far above it a file puts them.
    """
    mirrored = task.scheme.mirrored
    moved = view_points(
        landmarks_ijk,
        view,
        crop=task.crop,
        margin=task.margin,
        spacing_mm=task.spacing_mm,
        mirrored=mirrored,
    )
    if task.planar:
        moved = moved * jnp.array([1.0, 1.0, 0.0])
    return moved, *(view_values(mask, view, mirrored) for mask in masks)


def augmented(task: Task, batch: Batch, key: Array) -> Batch:
    """A random view of every case: volumes of the crop's shape, and all else as it lies there.

    The image is float32. In a mirror image right and left are exchanged: landmarks, what is known
    of them, labels and values of segments.
    """
    k_view, *k_intensities = jax.random.split(key, 4)
    view = draw_view(task, k_view, batch.image.shape[0])
    landmarks_ijk, present, absent = view_landmarks(
        task, view, batch.landmarks_ijk, batch.present, batch.absent
    )
    place: dict[str, Any] = {"margin": task.margin, "spacing_mm": task.spacing_mm}
    image = view_image(batch.image.astype(jnp.float32), view, **place)
    strengths = task.augment
    image = change_intensities(
        k_intensities,
        image,
        contrast=strengths.contrast,
        brightness=strengths.brightness,
        noise=strengths.noise,
    )
    segments = task.scheme.mirrored_segments

    def moved(name: str, target: Array) -> Array:
        kind = task.targets[name]
        if kind == LABELS:
            return view_labels(target, view, mirrored=segments, **place)
        return view_values(target, view, segments if kind == BY_SEGMENT else task.scheme.mirrored)

    targets = {name: moved(name, target) for name, target in batch.targets.items()}
    return Batch(image, landmarks_ijk, present, absent, targets)
