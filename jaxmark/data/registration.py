"""Registers any scan to a template scan by intensities; landmarks are not used.

A search over rotations at a coarse level gives starts. Gauss-Newton steps on the normalised
cross-correlation refine them from coarse to fine, and each level keeps fewer. The steps are inverse
compositional (Baker & Matthews, IJCV 2004): the derivatives are the template's, so that a step
costs one interpolation of the moving scan.

Matrices (4, 4) map LPS millimetres to LPS millimetres unless their name says `ijk`. The same scans
give the same result on any number of cores: sums over points are `einsum`s, because BLAS would
split them over threads, and rounding would depend on the split.
"""

import dataclasses
from typing import Literal, get_args

import numpy as np
from scipy import ndimage

from jaxmark.core.geometry import (
    apply_affine,
    compose_affine,
    rotation_angle_degrees,
    spread_rotations,
)
from jaxmark.data.resampling import BACKGROUND_PERCENTILE
from jaxmark.data.scans import Scan

Kind = Literal["none", "center", "rigid", "similarity", "affine"]

# The percentile of a scan's voxels that stands for its brightest tissue.
_BRIGHTEST_PERCENTILE = 99.5
# Every rotation is at most 19 degrees away from one of this many.
_ROTATIONS = 1000
# At each level: voxels along the longest side of the template, and the number of its voxels that
# are compared.
_COARSE, _MIDDLE, _FINE = (16, 1500), (32, 4000), (128, 40000)
# `smaller` leaves at least this many voxels along an axis.
_MIN_SIDE = 256
# Starts refined at the coarse and at the middle level; the fine level refines the best only.
_KEEP_COARSE, _KEEP_MIDDLE = 96, 16
# Gauss-Newton steps end when the quality gains less than this, or no step of this length gains.
_MAX_STEPS, _MIN_GAIN, _MIN_LENGTH = 40, 1e-5, 0.1
# Largest step, in radians, relative scale, or template sizes: derivatives hold only nearby.
_MAX_STEP = 0.5
# Results whose rotations differ by less count as the same.
_DISTINCT_DEGREES = 15.0


@dataclasses.dataclass(frozen=True)
class Registration:
    """Where a scan lies relative to the template, and how certain that is.

    Attributes:
        fixed_to_moving: (4, 4), LPS mm of the template to LPS mm of the scan.
        quality: normalised cross-correlation over the part of the template that the scan covers,
            times that part's share of the template's contrast (the root of its sum of squares).
            At most 1; comparable over the scans of a cohort.
        lead: the result's quality minus that of the best result with another rotation, at the
            middle level. Near 0: ambiguous. Infinite if there is no other result.
    """

    fixed_to_moving: np.ndarray
    quality: float
    lead: float


def register(
    fixed: Scan, moving: Scan, kind: Kind = "rigid", search_degrees: float = 180.0
) -> Registration:
    """Finds the map from the template `fixed` to the scan `moving`.

    Args:
        kind: "none" (the identity), "center" (the translation between the centres of mass of the
            intensities), "rigid", "similarity" (rigid and one scale) or "affine".
        search_degrees: how far the scan may be turned from the template, in their world frames:
            180 is any way, 30 suits scans whose headers roughly agree.

    Raises:
        ValueError: the kind is unknown, or a scan has no contrast.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"unknown registration {kind!r}, expected one of {get_args(Kind)}")
    longest_mm = float((np.array(fixed.voxels.shape) * fixed.spacing_mm).max())
    coarse, middle, fine = (
        _level(fixed, moving, longest_mm / n, count) for n, count in (_COARSE, _MIDDLE, _FINE)
    )
    if kind in ("none", "center"):
        matrix = np.eye(4) if kind == "none" else _starts(coarse, 0.0)[1]
        return Registration(matrix, float(_quality(fine, matrix)), np.inf)

    starts = _starts(coarse, search_degrees)
    starts = starts[np.argsort(-_quality(coarse, starts), kind="stable")[:_KEEP_COARSE]]
    results = distinct([_refine(coarse, start, "rigid") for start in starts])[:_KEEP_MIDDLE]
    results = distinct(
        [_refine(middle, _refine(middle, matrix, "rigid")[1], kind) for _, matrix in results]
    )
    lead = results[0][0] - results[1][0] if len(results) > 1 else np.inf
    quality, matrix = _refine(fine, results[0][1], kind)
    return Registration(matrix, quality, lead)


@dataclasses.dataclass(frozen=True)
class _Level:
    """Both scans at one resolution, and the sample of the template that is compared.

    `points` (N, 3) are in LPS mm of the template, `values` (N,) its intensities there.
    `normalised` (4, 4) takes the points to mean 0 and unit size, where steps are well
    conditioned, and `gradients` (N, 3) are the derivatives of the values there.
    """

    fixed: Scan
    moving: Scan
    points: np.ndarray
    values: np.ndarray
    gradients: np.ndarray
    normalised: np.ndarray


def _level(fixed: Scan, moving: Scan, spacing_mm: float, count: int) -> _Level:
    fixed, moving = _coarsen(fixed, spacing_mm), _coarsen(moving, spacing_mm)
    chosen = np.random.default_rng(0).permutation(fixed.voxels.size)[:count]
    ijk = np.stack(np.unravel_index(chosen, fixed.voxels.shape), -1)
    points = apply_affine(fixed.ijk_to_lps, ijk)
    center = points.mean(0)
    size_mm = np.sqrt(((points - center) ** 2).sum(1).mean())
    by_ijk = np.zeros((len(chosen), 3))
    # A picture has no gradient along z.
    for axis in np.flatnonzero(np.array(fixed.voxels.shape) > 1):
        by_ijk[:, axis] = np.gradient(fixed.voxels, axis=axis).ravel()[chosen]
    return _Level(
        fixed=fixed,
        moving=moving,
        points=points,
        values=fixed.voxels.ravel()[chosen],
        gradients=by_ijk @ np.linalg.inv(fixed.ijk_to_lps[:3, :3]) * size_mm,
        normalised=compose_affine(np.eye(3) / size_mm, -center / size_mm),
    )


def _coarsen(scan: Scan, spacing_mm: float) -> Scan:
    """The scan at about this spacing, smoothed by one such spacing, intensities in [0, 1].

    Means over blocks do most of it, which is fast; at least four voxels remain along an axis that
    has as many.
    """
    low, high = contrast_limits(scan.voxels)
    most = np.maximum(np.array(scan.voxels.shape) // 4, 1)
    blocks = np.clip(np.rint(spacing_mm / scan.spacing_mm).astype(int), 1, most)
    voxels = np.pad(
        np.clip(scan.voxels, low, high),
        [(0, -n % block) for n, block in zip(scan.voxels.shape, blocks, strict=True)],
        mode="edge",
    )
    for axis, block in enumerate(blocks):
        split = (*voxels.shape[:axis], -1, block, *voxels.shape[axis + 1 :])
        voxels = voxels.reshape(split).mean(axis + 1)
    voxels = ndimage.gaussian_filter(
        voxels, spacing_mm / (scan.spacing_mm * blocks), mode="nearest"
    )
    block_to_ijk = compose_affine(np.diag(blocks), (blocks - 1) / 2)
    return Scan((voxels - low) / (high - low), scan.ijk_to_lps @ block_to_ijk)


def smaller(scan: Scan) -> Scan:
    """Means over blocks, in float32: a large scan has 256 to 511 voxels along an axis then.

    Registration uses fewer. An incomplete last block along an axis is dropped.
    """
    blocks = np.maximum(np.array(scan.voxels.shape) // _MIN_SIDE, 1)
    x, y, z = (n // block for n, block in zip(scan.voxels.shape, blocks, strict=True))
    i, j, k = blocks
    voxels = np.empty((x, y, z), np.float32, order="F")
    for plane in range(z):
        part = scan.voxels[: x * i, : y * j, plane * k : (plane + 1) * k]
        voxels[..., plane] = part.reshape(x, i, y, j, k).mean((1, 3, 4), dtype=np.float32)
    block_to_ijk = compose_affine(np.diag(blocks), (blocks - 1) / 2)
    return Scan(voxels, scan.ijk_to_lps @ block_to_ijk, scan.notes)


def contrast_limits(voxels: np.ndarray) -> tuple[float, float]:
    """Values of background and brightest tissue; if equal, the smallest and largest value."""
    low, high = np.percentile(voxels[::2, ::2, ::2], [BACKGROUND_PERCENTILE, _BRIGHTEST_PERCENTILE])
    if low == high:
        low, high = voxels.min(), voxels.max()
    if not low < high:
        raise ValueError("a scan without contrast cannot be registered")
    return float(low), float(high)


def _starts(level: _Level, search_degrees: float) -> np.ndarray:
    """Maps (S, 4, 4): the identity; then maps that join the centres of mass, unturned and turned.

    The rotations are dense enough for the refinement, so principal axes are not needed.
    """
    fixed_mm, moving_mm = (
        apply_affine(scan.ijk_to_lps, np.array(ndimage.center_of_mass(scan.voxels)))
        for scan in (level.fixed, level.moving)
    )
    rotations = spread_rotations(_ROTATIONS)
    near = rotations[rotation_angle_degrees(rotations) <= search_degrees]
    turned = [compose_affine(r, moving_mm - r @ fixed_mm) for r in (np.eye(3), *near)]
    return np.stack([np.eye(4), *turned])


def _generators(kind: Kind) -> np.ndarray:
    """(P, 4, 4): the maps of `kind` are the matrix exponentials of sums of these."""
    entries = np.eye(16).reshape(4, 4, 4, 4)  # entries[i, j] is 1 at (i, j) alone
    translations = list(entries[:3, 3])
    if kind == "affine":
        return np.stack([*translations, *entries[:3, :3].reshape(9, 4, 4)])
    turns = [entries[i, j] - entries[j, i] for i, j in ((0, 1), (1, 2), (2, 0))]
    return np.stack([*translations, *turns, *[np.diag([1.0, 1, 1, 0])] * (kind == "similarity")])


def _exponential(matrix: np.ndarray) -> np.ndarray:
    """The matrix exponential, exact to rounding for the norms below 1 of steps.

    A series, because `scipy.linalg.expm` wakes BLAS threads for every 4 by 4 matrix, which takes
    longer than the rest of a registration.
    """
    total = term = np.eye(len(matrix))
    for order in range(1, 18):
        term = term @ matrix / order
        total = total + term
    return total


def _sample(level: _Level, matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values (..., N) of the moving scan at the mapped points, and bool: they lie inside of it."""
    to_ijk = np.linalg.inv(level.moving.ijk_to_lps) @ matrices
    ijk = np.einsum("...ij,nj->i...n", to_ijk[..., :3, :3], level.points)
    ijk += np.moveaxis(to_ijk[..., :3, 3:], -2, 0)
    last = np.array(level.moving.voxels.shape).reshape(3, *[1] * (ijk.ndim - 1)) - 1
    inside = ((ijk >= -0.5) & (ijk <= last + 0.5)).all(0)
    return ndimage.map_coordinates(level.moving.voxels, ijk, order=1, mode="nearest"), inside


def _standardised(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Values (..., N) with mean 0 and norm 1 over the points inside, and 0 at the others.

    Points that the scan does not cover add nothing to the correlation, so covering less costs
    quality.
    """
    mean = (values * inside).sum(-1, keepdims=True) / np.maximum(inside.sum(-1, keepdims=True), 1)
    centred = (values - mean) * inside
    return centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-12)


def _quality(level: _Level, matrices: np.ndarray) -> np.ndarray:
    """`Registration.quality` (...) of maps (..., 4, 4)."""
    everywhere = np.ones(len(level.values), bool)
    fixed = _standardised(level.values, everywhere)
    return np.einsum("...n,n->...", _standardised(*_sample(level, matrices)), fixed)


def _refine(level: _Level, start: np.ndarray, kind: Kind) -> tuple[float, np.ndarray]:
    """The best quality, and its map, among the Gauss-Newton steps within `kind`."""
    generators = _generators(kind)
    points = apply_affine(level.normalised, level.points)
    points = np.concatenate([points, np.ones((len(points), 1))], 1)
    moved = np.einsum("pij,nj->pni", generators[:, :3], points)
    jacobian = np.einsum("pni,ni->pn", moved, level.gradients)
    fixed = _standardised(level.values, np.ones(len(points), bool))
    denormalised = np.linalg.inv(level.normalised)

    best, matrix, trial, length = -np.inf, start, start, 1.0
    for _ in range(_MAX_STEPS):
        values, inside = _sample(level, trial)
        quality = float(np.einsum("n,n", _standardised(values, inside), fixed))
        gain = quality - best
        if gain > 0:
            best, matrix, length = quality, trial, 1.0
            step = _step(jacobian, level.values, values, inside)
        else:
            length /= 2
        if 0 < gain < _MIN_GAIN or length < _MIN_LENGTH:
            break
        # The step warps the template to the sampled scan; its inverse is applied to the scan's map.
        warp = _exponential(-length * np.tensordot(step, generators, 1))
        trial = matrix @ denormalised @ warp @ level.normalised
    return best, matrix


def _step(
    jacobian: np.ndarray, fixed: np.ndarray, moving: np.ndarray, inside: np.ndarray
) -> np.ndarray:
    """Coefficients (P,) of the generators that, to first order, warp the template to the scan.

    Least squares of `standardised(fixed + jacobian @ step) - standardised(moving)`, inside.
    """
    if inside.sum() <= len(jacobian):
        return np.zeros(len(jacobian))
    f, m = _standardised(fixed, inside)[inside], _standardised(moving, inside)[inside]
    j = jacobian[:, inside]
    j -= j.mean(1, keepdims=True)
    j -= np.einsum("pn,n->p", j, f)[:, None] * f
    norm = np.einsum("n,n", f, fixed[inside])
    hessian, slope = np.einsum("pn,qn->pq", j, j), np.einsum("pn,n->p", j, m - f)
    step = np.linalg.lstsq(hessian, slope, rcond=1e-8)[0] * norm
    return step * _MAX_STEP / max(_MAX_STEP, float(np.linalg.norm(step)))


def distinct(results: list[tuple[float, np.ndarray]]) -> list[tuple[float, np.ndarray]]:
    """Qualities and maps, best first, without those whose rotation is near a better one's."""
    kept: list[tuple[float, np.ndarray]] = []
    rotations: list[np.ndarray] = []
    for quality, matrix in sorted(results, key=lambda result: -result[0]):
        u, _, vt = np.linalg.svd(matrix[:3, :3])
        if all(rotation_angle_degrees(u @ vt @ r.T) >= _DISTINCT_DEGREES for r in rotations):
            kept.append((quality, matrix))
            rotations.append(u @ vt)
    return kept
