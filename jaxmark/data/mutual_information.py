"""Registers a scan to a template scan by mutual information, where the two differ in contrast.

Correlation (`registration`) needs tissues that are equally bright in both scans. In heads from
several scanners they are not, and in two modalities never. Mutual information needs only that the
brightness in one scan predicts the brightness in the other.

As in `registration`, rotations of every direction are scored at a coarse level, and the best are
refined from coarse to fine, fewer at each level. This module computes the scores; SimpleITK
refines, by Mattes' estimate and its gradient. A refined map counts only if its score is higher:
Mattes' estimate does not notice when the map leaves the scan.

The levels' spacings are shares of the template's extent, so scans of any spacing are compared at
the same one. The same scans give the same result on any number of cores: SimpleITK uses one thread,
and samples have fixed seeds.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import SimpleITK as sitk
from scipy import ndimage, special

from jaxmark.core.geometry import (
    apply_affine,
    compose_affine,
    rotation_angle_degrees,
    spread_rotations,
)
from jaxmark.data.registration import Kind, Registration, contrast_limits, distinct
from jaxmark.data.resampling import resample
from jaxmark.data.scans import Scan, to_image
from jaxmark.data.transforms import matrix_of

_Transform = sitk.Euler3DTransform | sitk.Similarity3DTransform | sitk.AffineTransform
# The identity among the maps of each kind.
_TRANSFORMS: dict[str, Callable[[], _Transform]] = {
    "rigid": sitk.Euler3DTransform,
    "similarity": sitk.Similarity3DTransform,
    "affine": lambda: sitk.AffineTransform(3),
}
# Every rotation is at most 19 degrees away from one of this many.
_ROTATIONS = 1000
# At each level: voxels along the longest side of the template, the number of its voxels that are
# compared, and the bins of a histogram (few where there are few voxels).
_COARSE, _MIDDLE, _FINE = (16, 2000, 16), (32, 5000, 24), (128, 40000, 32)
# Starts refined at the coarse and at the middle level; the fine level refines the best only.
_KEEP_COARSE, _KEEP_MIDDLE = 96, 16
# A refinement begins with steps of one voxel of its level and halves them where the gradient turns
# back. It ends at steps this short, in voxels, or after this many steps.
_MIN_STEP = 0.01
_MAX_STEPS = {"rigid": 50, "similarity": 100, "affine": 100}
# About the squared distance that a unit of each parameter moves the template, in its size.
_SCALES = {
    "rigid": [1.0] * 6,  # angles, translation
    "similarity": [4.0] * 3 + [1.0] * 4,  # sines of half the angles, translation, scale
    "affine": [1 / 3] * 9 + [1.0] * 3,  # matrix, translation
}
_SEED = 1


def register_mutual_information(
    fixed: Scan, moving: Scan, kind: Kind = "rigid", search_degrees: float = 180.0
) -> Registration:
    """Finds the map from the template `fixed` to the scan `moving`.

    The result's `quality` is the share of the template's information that the scan explains,
    `I(fixed; moving) / H(fixed)` over the voxels of the template that the scan covers, times the
    share of voxels covered. At most 1. The template's entropy is the same for all scans of a
    cohort, so their qualities are comparable (Studholme's and the symmetric ratios divide by each
    scan's entropy). It is far lower than a correlation: noise is information, too.

    Args:
        kind: "rigid", "similarity" (rigid and one scale) or "affine".
        search_degrees: how far the scan may be turned from the template, in their world frames:
            180 is any way, 30 suits scans whose headers roughly agree.

    Raises:
        ValueError: the kind is unknown, or a scan has no contrast.
    """
    if kind not in _TRANSFORMS:
        raise ValueError(f"unknown registration {kind!r}, expected one of {tuple(_TRANSFORMS)}")
    longest_mm = float((np.array(fixed.voxels.shape) * fixed.spacing_mm).max())
    coarse, middle, fine = (
        _level(fixed, moving, longest_mm / n, count, bins)
        for n, count, bins in (_COARSE, _MIDDLE, _FINE)
    )
    starts = _starts(coarse, search_degrees)
    qualities = np.array([_quality(coarse, start) for start in starts])
    starts = starts[np.argsort(-qualities, kind="stable")[:_KEEP_COARSE]]

    results = distinct([_refine(coarse, start, "rigid") for start in starts])[:_KEEP_MIDDLE]
    results = distinct([_refine(middle, matrix, "rigid") for _, matrix in results])
    if kind != "rigid":
        results = distinct([_refine(middle, matrix, kind) for _, matrix in results])
    lead = results[0][0] - results[1][0] if len(results) > 1 else np.inf
    quality, matrix = _refine(fine, results[0][1], kind)
    return Registration(matrix, quality, lead)


@dataclasses.dataclass(frozen=True)
class _Level:
    """Both scans at one resolution, and the sample of the template that a score compares.

    `points` (N, 3) are in LPS mm of the template, `labels` (N,) the bins of its intensities there,
    and `entropy` the entropy of these labels, in nats. `moving_voxels` are the scan's, in [0, 1];
    `lps_to_ijk` (4, 4) maps to their indices. The images and the level's `spacing` are in units of
    the template's size, `size_mm`: there a radian moves points about as far as a unit of
    translation does.
    """

    fixed: sitk.Image
    moving: sitk.Image
    size_mm: float
    spacing: float
    bins: int
    points: np.ndarray
    labels: np.ndarray
    entropy: float
    moving_voxels: np.ndarray
    lps_to_ijk: np.ndarray
    mass_centers: tuple[np.ndarray, np.ndarray]
    grid_centers: tuple[np.ndarray, np.ndarray]


def _level(fixed: Scan, moving: Scan, spacing_mm: float, count: int, bins: int) -> _Level:
    fixed, moving = _coarsen(fixed, spacing_mm), _coarsen(moving, spacing_mm)
    chosen = np.random.default_rng(_SEED).permutation(fixed.voxels.size)[:count]
    labels = _bin(fixed.voxels.ravel()[chosen], bins)
    ijk = np.stack(np.unravel_index(chosen, fixed.voxels.shape), -1)
    points = apply_affine(fixed.ijk_to_lps, ijk)
    size_mm = float(np.sqrt(points.var(0).sum()))
    lps_to_unit = np.diag([1 / size_mm, 1 / size_mm, 1 / size_mm, 1])
    return _Level(
        fixed=to_image(fixed.voxels, lps_to_unit @ fixed.ijk_to_lps),
        moving=to_image(moving.voxels, lps_to_unit @ moving.ijk_to_lps),
        size_mm=size_mm,
        spacing=spacing_mm / size_mm,
        bins=bins,
        points=points,
        labels=labels,
        entropy=_entropy(np.bincount(labels)),
        moving_voxels=moving.voxels,
        lps_to_ijk=np.linalg.inv(moving.ijk_to_lps),
        mass_centers=(_mass_center(fixed), _mass_center(moving)),
        grid_centers=(_grid_center(fixed), _grid_center(moving)),
    )


def _coarsen(scan: Scan, spacing_mm: float) -> Scan:
    """The scan at about this spacing, or at its spacing if coarser; intensities in [0, 1].

    It is smoothed no more than the spacing needs: a mixture of two tissues is often as bright as a
    third tissue, and that is another tissue in each modality.
    """
    low, high = contrast_limits(scan.voxels)
    voxels = (np.clip(scan.voxels, low, high) - low) / (high - low)
    shape = np.array(scan.voxels.shape)
    size = np.ceil(shape * np.minimum(scan.spacing_mm / spacing_mm, 1)).astype(int)
    size = np.maximum(size, np.minimum(shape, 4))
    step = shape / size
    ijk_to_lps = scan.ijk_to_lps @ compose_affine(np.diag(step), (step - 1) / 2)
    x, y, z = size.tolist()
    return Scan(resample(Scan(voxels, scan.ijk_to_lps), (x, y, z), ijk_to_lps), ijk_to_lps)


def _mass_center(scan: Scan) -> np.ndarray:
    """(3,) LPS mm."""
    return apply_affine(scan.ijk_to_lps, np.array(ndimage.center_of_mass(scan.voxels)))


def _grid_center(scan: Scan) -> np.ndarray:
    """(3,) LPS mm."""
    return apply_affine(scan.ijk_to_lps, (np.array(scan.voxels.shape) - 1) / 2)


def _starts(level: _Level, search_degrees: float) -> np.ndarray:
    """Maps (S, 4, 4): the identity; then maps that join the centres, unturned and turned.

    Centres of mass agree in scans with similar contrast; centres of the grids agree in scans of the
    same part of the body, with any contrast.
    """
    rotations = spread_rotations(_ROTATIONS)
    near = rotations[rotation_angle_degrees(rotations) <= search_degrees]
    turned = [
        compose_affine(r, moving_mm - r @ fixed_mm)
        for fixed_mm, moving_mm in (level.mass_centers, level.grid_centers)
        for r in (np.eye(3), *near)
    ]
    return np.stack([np.eye(4), *turned])


def _bin(values: np.ndarray, bins: int) -> np.ndarray:
    """The bin in 0 ... bins - 1 of intensities in [0, 1]."""
    return np.clip((values * bins).astype(np.int64), 0, bins - 1)


def _entropy(counts: np.ndarray) -> float:
    """The entropy of a histogram, in nats."""
    return -float(special.xlogy(counts, counts / max(counts.sum(), 1)).sum() / max(counts.sum(), 1))


def _quality(level: _Level, matrix: np.ndarray) -> float:
    """`Registration.quality` of a map (4, 4), as in `register_mutual_information`."""
    ijk = apply_affine(level.lps_to_ijk @ matrix, level.points)
    last = np.array(level.moving_voxels.shape) - 1
    inside = ((ijk >= -0.5) & (ijk <= last + 0.5)).all(1)
    values = ndimage.map_coordinates(level.moving_voxels, ijk[inside].T, order=1, mode="nearest")
    pairs = level.labels[inside] * level.bins + _bin(values, level.bins)
    joint = np.bincount(pairs, minlength=level.bins**2).reshape(level.bins, level.bins)
    information = _entropy(joint.sum(0)) + _entropy(joint.sum(1)) - _entropy(joint)
    return information / level.entropy * float(inside.mean())


def _refine(level: _Level, start: np.ndarray, kind: Kind) -> tuple[float, np.ndarray]:
    """Quality and map after refinement within `kind`; those of the start if it gained nothing.

    The optimised transform is applied before `start`. Its angles stay near 0, where they are well
    conditioned.
    """
    unit_to_lps = np.diag([level.size_mm, level.size_mm, level.size_mm, 1])
    lps_to_unit = np.linalg.inv(unit_to_lps)
    change = _TRANSFORMS[kind]()
    change.SetCenter(apply_affine(lps_to_unit, level.points.mean(0)).tolist())
    method = sitk.ImageRegistrationMethod()
    # Several work units would end in any order, and rounding of their sum depends on the order.
    method.SetNumberOfWorkUnits(1)
    method.SetMetricAsMattesMutualInformation(level.bins)
    # Random places between voxels: on a grid, some maps would need no interpolation, and their
    # sharper values would attract the optimiser.
    method.SetMetricSamplingStrategy(method.RANDOM)
    share = len(level.points) / level.fixed.GetNumberOfPixels()
    method.SetMetricSamplingPercentage(share, _SEED)
    # Compute derivatives at the samples only, not for the whole image.
    method.SetMetricUseMovingImageGradientFilter(False)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=level.spacing,
        minStep=_MIN_STEP * level.spacing,
        numberOfIterations=_MAX_STEPS[kind],
        gradientMagnitudeTolerance=1e-8,
    )
    method.SetOptimizerScales(_SCALES[kind])
    method.SetInitialTransform(change, inPlace=True)
    method.SetMovingInitialTransform(_transform(lps_to_unit @ start @ unit_to_lps))
    quality = _quality(level, start)
    try:
        method.Execute(level.fixed, level.moving)
    except RuntimeError:  # The scans do not overlap, or no longer.
        return quality, start
    matrix = start @ unit_to_lps @ matrix_of(change) @ lps_to_unit
    refined = _quality(level, matrix)
    return (refined, matrix) if refined > quality else (quality, start)


def _transform(matrix: np.ndarray) -> sitk.AffineTransform:
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(matrix[:3, :3].ravel().tolist())
    transform.SetTranslation(matrix[:3, 3].tolist())
    return transform
