"""Random views of a batch: image, landmarks and all targets move together, on the device."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxmark.core.appearance import appearance
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
from jaxmark.core.tissues import TARGET
from jaxmark.methods.method import BY_SEGMENT, LABELS, Batch, Task
from jaxmark.system.errors import InputError


def draw_view(task: Task, key: Array, count: int) -> View:
    """Random views of `count` volumes, drawn as `config.Augment` says."""
    most = task.augment.translation_voxels
    return random_view(
        key,
        count,
        # Along an axis without a margin views can't move.
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
    """Landmarks (B, K, 3) in voxels of the views' crops, and their masks (B, K).

    Landmarks of pictures are put into the picture's plane, k = 0.
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
    """A random view of every case: the image (float32), landmarks and targets in the crop's shape.

    A mirrored view exchanges right and left in landmarks, their masks, labels and values of
    segments. With `config.Appearance` the image is drawn from the batch's shares of arteries and
    its tissues; the view has no tissues.
    """
    drawn = task.augment.appearance.drawn
    if drawn and TARGET not in batch.targets:
        problem = "needs batches of label maps, which hold tissues; these hold images"
        raise InputError("config.augment.appearance.drawn", problem)
    k_view, *k_intensities = jax.random.split(key, 4)
    view = draw_view(task, k_view, batch.image.shape[0])
    landmarks_ijk, present, absent = view_landmarks(
        task, view, batch.landmarks_ijk, batch.present, batch.absent
    )
    place: dict[str, Any] = {"margin": task.margin, "spacing_mm": task.spacing_mm}
    image = view_image(batch.image.astype(jnp.float32), view, **place)
    strengths, targets = task.augment, dict(batch.targets)
    if drawn:
        tissues = view_labels(targets.pop(TARGET), view, mirrored=(), **place)
        share = image / 255 if batch.image.dtype == jnp.uint8 else image
        image, present, stranger = _with_appearance(
            task, k_intensities[0], share, tissues, landmarks_ijk, present
        )
        present, absent = present & ~stranger, absent | stranger
    else:
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

    targets = {name: moved(name, target) for name, target in targets.items()}
    return Batch(image, landmarks_ijk, present, absent, targets)


def _with_appearance(
    task: Task, key: Array, lumen: Array, tissues: Array, landmarks_ijk: Array, present: Array
) -> tuple[Array, Array, Array]:
    """Images drawn from a view's label maps, present landmarks (B, K), and strangers (B, 1).

    A landmark outside of the drawn field of view is no longer present. A landmark that is absent
    stays absent. For strangers see `config.Appearance.strangers`.
    """
    settings = task.augment.appearance
    last = jnp.array(task.crop) - 1
    # Fields of view lie around the landmarks.
    known = present[..., None]
    sum_ijk, count = jnp.where(known, landmarks_ijk, 0).sum(1), known.sum(1)
    middle_ijk = jnp.where(count > 0, sum_ijk / jnp.maximum(count, 1), last / 2)
    image, seen, stranger = appearance(key, lumen, tissues, settings, task.spacing_mm, middle_ijk)
    if not settings.hide_unseen:
        return image, present, stranger[:, None]
    nearest = jnp.clip(jnp.rint(landmarks_ijk), 0, last).astype(jnp.int32)
    inside = jax.vmap(lambda mask, ijk: mask[tuple(ijk.T)])(seen, nearest)
    return image, present & inside, stranger[:, None]
