"""Label maps of vessel segments: agreement of two maps, and volume and radius of each segment.

A label map is (X, Y, Z) unsigned integers: 0, or 1 + index of one of S segments. The vessel tree is
all voxels with a label. Voxels are neighbours if they share a face, an edge or a corner. Measures
of a segment that neither map has are NaN; if one map has it, measures of overlap are 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.morphology import skeletonize

Box = tuple[slice, ...]
_NEIGHBOURS = np.ones((3, 3, 3), bool)


@dataclass(frozen=True)
class Agreement:
    """Agreement of two label maps of a scan: (S,) for segments, numbers for the vessel tree.

    `dice` as in `dice`, `cldice` as in `centreline_dice`. `betti0_error`: the absolute difference
    of the numbers of connected pieces.
    """

    dice: np.ndarray
    cldice: np.ndarray
    betti0_error: np.ndarray
    tree_dice: float
    tree_cldice: float
    tree_betti0_error: float


@dataclass(frozen=True)
class Sizes:
    """Sizes of the S segments of one label map, (S,) each.

    The radius of a segment that is empty or fills the scan is NaN.
    """

    volume_mm3: np.ndarray
    mean_radius_mm: np.ndarray


def agreement(truth: np.ndarray, predicted: np.ndarray, segments: int) -> Agreement:
    """All measures of two label maps (X, Y, Z); ValueError where they do not fit each other."""
    _check(truth, segments)
    _check(predicted, segments)
    if truth.shape != predicted.shape:
        raise ValueError(f"label maps of shapes {truth.shape} and {predicted.shape}")
    box = _box_of((truth > 0) | (predicted > 0))
    truth, predicted = truth[box], predicted[box]
    both = _boxes(truth, segments), _boxes(predicted, segments)
    boxes = [_hull(*pair) for pair in zip(*both, strict=True)]
    pairs = [
        (np.zeros((1, 1, 1), bool),) * 2
        if near is None
        else (truth[near] == label, predicted[near] == label)
        for label, near in enumerate(boxes, start=1)
    ]
    tree = truth > 0, predicted > 0
    (tree_dice,) = dice(tree[0].view(np.uint8), tree[1].view(np.uint8), 1)
    return Agreement(
        dice=dice(truth, predicted, segments),
        cldice=np.array([centreline_dice(*pair) for pair in pairs]),
        betti0_error=np.array([_betti0_error(*pair) for pair in pairs]),
        tree_dice=float(tree_dice),
        tree_cldice=centreline_dice(*tree),
        tree_betti0_error=_betti0_error(*tree),
    )


def dice(truth: np.ndarray, predicted: np.ndarray, segments: int) -> np.ndarray:
    """(S,) twice the voxels that both maps give a segment, over the sum of what each gives it."""
    count = segments + 1
    pairs = truth.ravel().astype(np.intp) * count + predicted.ravel()
    table = np.bincount(pairs, minlength=count * count).reshape(count, count)
    total = (table.sum(0) + table.sum(1))[1:]
    return np.divide(
        2.0 * table.diagonal()[1:], total, out=np.full(segments, np.nan), where=total > 0
    )


def centreline_dice(truth: np.ndarray, predicted: np.ndarray) -> float:
    """clDice of two masks (X, Y, Z), Shit et al. (CVPR 2021), equations 1 and 2.

    The harmonic mean of the share of the predicted skeleton in the true mask (topology precision)
    and of the true skeleton in the predicted mask (topology sensitivity).
    """
    if not (truth.any() and predicted.any()):
        return 0.0 if truth.any() or predicted.any() else np.nan
    precision = float(truth[skeleton(predicted)].mean())
    sensitivity = float(predicted[skeleton(truth)].mean())
    return 2 * precision * sensitivity / (precision + sensitivity) if precision else 0.0


def skeleton(mask: np.ndarray) -> np.ndarray:
    """(X, Y, Z) bool: the centrelines of a mask, one voxel thin (Lee, Kashyap and Chu, 1994)."""
    box = _box_of(mask)
    pieces, count = ndimage.label(mask[box], _NEIGHBOURS)
    thin = skeletonize(mask[box], method="lee") > 0
    # Thinning eats up pieces that are an even number of voxels wide: these stay as they are.
    lost = np.ones(count + 1, bool)
    lost[pieces[thin]] = lost[0] = False
    whole = np.zeros(mask.shape, bool)
    whole[box] = thin | lost[pieces]
    return whole


def betti0(mask: np.ndarray) -> int:
    """The number of connected pieces of a mask, its zeroth Betti number."""
    return int(ndimage.label(mask, _NEIGHBOURS)[1])


def voxels(labels: np.ndarray, segments: int) -> np.ndarray:
    """(S,) how many voxels each segment of a label map (X, Y, Z) has."""
    _check(labels, segments)
    # Counting takes eight bytes a voxel.
    near = labels[_box_of(labels > 0)]
    return np.bincount(near.ravel(), minlength=segments + 1)[1:]


def sizes(labels: np.ndarray, segments: int, spacing_mm: np.ndarray) -> Sizes:
    """Volumes and radii of the segments of a label map (X, Y, Z).

    The mean radius is the mean distance from the voxels of a segment's skeleton to the centre of
    the nearest voxel of no vessel. That centre lies beyond the wall, and the skeleton beside the
    middle: of straight tubes at least two voxels wide, at any angle, the figure is 0 to 0.4 voxels
    too small (tested); of a thinner one it means little.
    """
    near = labels[_grown(_box_of(labels > 0))]
    return Sizes(
        volume_mm3=voxels(near, segments) * float(np.prod(spacing_mm)),
        mean_radius_mm=np.array(
            [
                np.nan if box is None else _mean_radius_mm(near, label, box, spacing_mm)
                for label, box in enumerate(_boxes(near, segments), start=1)
            ]
        ),
    )


def _mean_radius_mm(labels: np.ndarray, label: int, box: Box, spacing_mm: np.ndarray) -> float:
    # A segment ends where others go on, or the scan does: neither is a wall. With a voxel on each
    # side all walls of its own are in the box.
    near = labels[_grown(box)]
    vessel = near > 0
    if vessel.all():
        return np.nan
    distance = ndimage.distance_transform_edt(vessel, sampling=spacing_mm)
    return float(distance[skeleton(near == label)].mean())


def _betti0_error(truth: np.ndarray, predicted: np.ndarray) -> float:
    if not (truth.any() or predicted.any()):
        return np.nan
    return float(abs(betti0(predicted) - betti0(truth)))


def _boxes(labels: np.ndarray, segments: int) -> Sequence[Box | None]:
    """(S,) the smallest box around each segment; None of an empty one."""
    return ndimage.find_objects(labels, max_label=segments)


def _box_of(mask: np.ndarray) -> Box:
    """The smallest box around a mask; one voxel where it is empty."""
    (box,) = _boxes(mask.view(np.uint8), 1)
    return (slice(0, 1),) * 3 if box is None else box


def _grown(box: Box) -> Box:
    """With a voxel more on each side, where there is one."""
    return tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in box)


def _hull(first: Box | None, second: Box | None) -> Box | None:
    """The smallest box around two."""
    if first is None or second is None:
        return first or second
    return tuple(
        slice(min(a.start, b.start), max(a.stop, b.stop))
        for a, b in zip(first, second, strict=True)
    )


def _check(labels: np.ndarray, segments: int) -> None:
    if labels.ndim != 3 or not np.issubdtype(labels.dtype, np.unsignedinteger):
        raise ValueError(f"a label map of shape {labels.shape} and type {labels.dtype}")
    if labels.max(initial=0) > segments:
        raise ValueError(f"label {labels.max()}, of {segments} segments")
