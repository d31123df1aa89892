"""Label maps of synthetic heads, from which images of any scanner can be made.

`cohort` writes scans. This module draws their ingredients on any grid, in a fraction of the time:
the share of each voxel that lies in arteries, and the tissues around them.
"""

from dataclasses import replace

import numpy as np

from jaxmark.core.anatomy import COW19
from jaxmark.core.geometry import apply_affine
from jaxmark.core.tissues import TARGET, TISSUES
from jaxmark.data.cases import HostBatch
from jaxmark.data.phantoms.cow.anatomy import Anatomy
from jaxmark.data.phantoms.cow.head import shape_tissues, standard_places
from jaxmark.data.phantoms.cow.shape import draw_anatomy
from jaxmark.data.phantoms.cow.vessels import draw_vessels
from jaxmark.data.phantoms.cow.whole_head import (
    add_face_and_neck,
    draw_neck_arteries,
    draw_veins,
    head_surface,
)
from jaxmark.data.phantoms.fields import interpolate, node_weights, random_field
from jaxmark.data.phantoms.grids import Grid
from jaxmark.data.phantoms.lumen import Vessel, coverage

# Streams of random numbers of a seed, other than those of `cohort`: so people drawn here are not in
# the cohort. A person is the same on every grid.
_ANATOMY, _HEAD = 3, 4
# Largest relative change of the person's size, and of the head's width, length and height.
_SIZE, _STRETCH = 0.08, 0.06
# Distance of the nodes at which tissues are shaped; a voxel's size where that is larger.
_NODE_MM = 2.0
# A voxel is a vein if this share of it lies in one; so thin veins show too.
_VEIN_SHARE = 0.25
# The cortex is this much thinner than in `shape_tissues`, where folds need a thick one.
_THINNER_MM = 1.3
# Tissues in the order in which they are painted over white matter; veins and air follow.
_LAYERS = ("grey", "muscle", "fat", "skin", "sinus", "csf", "bone", "marrow")


def draw_labels(
    grid: Grid,
    seed: int,
    number: int,
    *,
    rotation_sd_degrees: float = 8.0,
    translation_sd_mm: float = 3.0,
    pathology: float = 0.0,
) -> HostBatch:
    """Case `number` on a grid; it depends on the seed and the number only.

    On another grid it is the same person in the same place. People differ in size by up to 8 %,
    uniformly, and their heads in each direction by up to 6 % more.

    Args:
      rotation_sd_degrees, translation_sd_mm: of the person's pose, normal, about and along each
        axis.
      pathology: share of people with stenoses, half of them with an aneurysm.

    Returns:
      One case's part of a batch: `image` (X, Y, Z, 1) uint8, the share of each voxel that lies in
      arteries, times 255; `landmarks_ijk` (19, 3) float32; (19,) bool `present`, where arteries
      fork, and `absent`, where they do not because a segment is missing, both false outside of the
      grid; in `targets` the `tissues` (X, Y, Z) uint8, indices into `TISSUES`.
    """
    rng = np.random.default_rng([seed, _ANATOMY, number])
    size = rng.uniform(1 - _SIZE, 1 + _SIZE)
    # A larger person on this grid is a person of the usual size on a smaller grid.
    scaled = np.diag([size, size, size, 1.0])
    small = Grid(grid.shape, np.linalg.inv(scaled) @ grid.ijk_to_lps)
    anatomy = draw_anatomy(rng, rotation_sd_degrees, translation_sd_mm / size)
    vessels = draw_vessels(rng, anatomy, pathology=rng.random() < pathology, lively=True)
    lumen, tissues = _draw_head(seed, number, small, anatomy, vessels)

    ijk = apply_affine(np.linalg.inv(small.ijk_to_lps), anatomy.landmarks_mm)
    inside = np.all((ijk >= 0) & (ijk <= np.array(grid.shape) - 1), axis=1)
    forks = COW19.landmark_attributes(anatomy.segment_present)
    return {
        "image": np.rint(255 * lumen).astype(np.uint8)[..., None],
        "landmarks_ijk": np.where((inside & forks)[:, None], ijk, 0).astype(np.float32),
        "present": inside & forks,
        "absent": inside & ~forks,
        "targets": {TARGET: tissues},
    }


def _draw_head(
    seed: int, number: int, grid: Grid, anatomy: Anatomy, vessels: list[Vessel]
) -> tuple[np.ndarray, np.ndarray]:
    """(X, Y, Z): the arteries' share of each voxel, and the tissues."""
    rng = np.random.default_rng([seed, _HEAD, number])
    stretch = rng.uniform(1 - _STRETCH, 1 + _STRETCH, 3)
    node_mm = max(_NODE_MM, float(grid.spacing_mm.mean()))
    centre, axes, q = standard_places(rng, grid, anatomy, node_mm, stretch)
    rough, gyri, fine = (random_field(rng, mm, axes) for mm in (7.0, 6.5, 3.0))
    outer = head_surface(q) + 0.4 * rough
    tissue = add_face_and_neck(q, outer, shape_tissues(q, outer, rough, gyri, fine), rough)

    # From the standard head's places to this person's, and back.
    to_lps = anatomy.rotation * stretch
    starts = {
        vessel.name: np.linalg.solve(to_lps, vessel.points_mm[0] - centre)
        for vessel in vessels
        if vessel.name in ("ICA R", "ICA L", "VA R", "VA L")
    }
    neck, veins = (
        [replace(tube, points_mm=centre + tube.points_mm @ to_lps.T) for tube in tubes]
        for tubes in (draw_neck_arteries(rng, starts), draw_veins(rng))
    )
    weights = [
        node_weights(axis - middle, nodes)
        for axis, middle, nodes in zip(grid.axes_mm, centre, axes, strict=True)
    ]
    labels = np.full(grid.shape, TISSUES.index("white"), np.uint8)
    tissue["grey"] += np.float32(_THINNER_MM)
    for name in _LAYERS:
        labels[interpolate(tissue[name], weights) < 0] = TISSUES.index(name)
    labels[coverage(veins, grid) > _VEIN_SHARE] = TISSUES.index("vein")
    labels[interpolate(tissue["air"], weights) < 0] = TISSUES.index("air")
    return coverage([*vessels, *neck], grid), labels
