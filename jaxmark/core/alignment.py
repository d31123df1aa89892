"""Maps from one scan to another by landmarks that both have. numpy and scipy, on the host.

A map takes points of the fixed scan to points of the moving scan, as ITK's transforms do and as
sampling the moving scan on the fixed scan's grid needs it. `K` landmarks; all lengths are mm.
`variance` is (K,) mm^2 along each axis, of a pair's difference without gross errors; pairs weigh
1 / variance. None: it is unknown, and all pairs weigh the same.
"""

import dataclasses
import math
from typing import Literal, get_args

import numpy as np
from scipy import special

from jaxmark.core.geometry import apply_affine, compose_affine, fit_rigid

Kind = Literal["rigid", "similarity", "affine", "thin_plate"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# Pairs that determine a map, if they do not lie on one line (rigid, similarity) or in one plane.
LEAST_PAIRS: dict[Kind, int] = {"rigid": 3, "similarity": 3, "affine": 4, "thin_plate": 4}

# Degrees of freedom of the t distribution that errors of landmarks are taken to have.
_FREEDOM = 4.0
# Half of such errors, of scale 1 along each axis, are longer.
_MEDIAN = math.sqrt(3 * special.fdtri(3.0, _FREEDOM, 0.5))
_STEPS = 20
# Smoothing of a spline that goes through its targets: above 0, so that two in one place do no harm.
_THROUGH_MM = 1e-6
# Smaller residuals are rounding, which differs between CPUs: they do not change a pair's trust.
_EXACT_MM = 1e-6
# The smallest radius that is believed.
_LEAST_RADIUS_MM = 1e-3
# Points that lie this near to a plane, relative to their extent, lie in it.
_FLAT = 1e-6


@dataclasses.dataclass(frozen=True)
class Transform:
    """An affine map plus the bend of a thin-plate spline: `A p - sum_c |p - c| w_c`."""

    matrix: np.ndarray  # (4, 4)
    centres: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 3)))  # (C, 3) mm
    coefficients: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 3)))  # (C, 3)

    @property
    def is_linear(self) -> bool:
        """Whether the map is affine."""
        return not len(self.centres)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 3) of the fixed scan -> points of the moving one."""
        mapped = apply_affine(self.matrix, points)
        # One centre after the other: an array of all distances would be C volumes large.
        for centre, coefficient in zip(self.centres, self.coefficients, strict=True):
            mapped -= np.linalg.norm(points - centre, axis=-1, keepdims=True) * coefficient
        return mapped

    def jacobian(self, points: np.ndarray) -> np.ndarray:
        """(..., 3, 3): row i is the gradient of coordinate i; at a centre its bend counts as 0."""
        gradient = np.broadcast_to(self.matrix[:3, :3], (*points.shape[:-1], 3, 3)).copy()
        for centre, coefficient in zip(self.centres, self.coefficients, strict=True):
            away = points - centre
            distance = np.linalg.norm(away, axis=-1, keepdims=True)
            direction = np.divide(away, distance, out=np.zeros_like(away), where=distance > 0)
            gradient -= coefficient[:, None] * direction[..., None, :]
        return gradient

    def pulled_back(self, points: np.ndarray, near: np.ndarray) -> np.ndarray:
        """Points of the moving scan (..., 3) in the fixed one, to first order about `near`.

        `near` (..., 3) are points of the fixed scan that map close to `points`. Exact for linear
        maps that have an inverse.
        """
        step = np.linalg.pinv(self.jacobian(near)) @ (points - self(near))[..., None]
        return near + step[..., 0]


@dataclasses.dataclass(frozen=True)
class Fit:
    """A map, and the weight of each pair of landmarks in it."""

    transform: Transform
    weights: np.ndarray  # (K,), sum 1
    # (K,): how well a pair agrees with the others, from 1 down to 0 (far off); a factor of its
    # weight, but where a spline goes through all landmarks.
    trust: np.ndarray
    # mm per mm^2 of variance, of a smoothed spline alone
    smoothing: float | None = None


def variance_of_radii(radius_mm: np.ndarray, coverage: float) -> np.ndarray:
    """(K,) squared scale along each axis of errors that stay in `radius_mm` with this probability.

    Errors of detected landmarks have heavy tails (most are small, a few are of another vessel), so
    they are taken to follow the multivariate t distribution with 4 degrees of freedom, as `fit`
    does: a third of their squared length, over the squared scale, follows F with 3 and 4.

    Args:
      radius_mm: (K,); infinite: not known, which counts as the largest known one. All infinite: the
        result is, too.
      coverage: in (0, 1).
    """
    known = radius_mm[np.isfinite(radius_mm)]
    radius = np.where(np.isfinite(radius_mm), radius_mm, known.max() if len(known) else np.inf)
    radius = np.maximum(radius, _LEAST_RADIUS_MM)
    return radius**2 / (3 * special.fdtri(3.0, _FREEDOM, coverage))


def fit_affine(
    source: np.ndarray, target: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """The affine map of least squared error, `min sum_k w_k |A source_k + t - target_k|^2`.

    Args:
      source, target: (K, 3).
      weights: (K,) positive; None is all ones.

    Returns:
      (4, 4), source to target.

    Raises:
      ValueError: there are fewer than 4 points, or they lie in one plane.
    """
    weights = np.ones(len(source)) if weights is None else weights
    share = (weights / weights.sum())[:, None]
    source_mean, target_mean = (share * source).sum(0), (share * target).sum(0)
    x, y = np.sqrt(share) * (source - source_mean), np.sqrt(share) * (target - target_mean)
    _check_solid(x)
    linear = np.linalg.lstsq(x, y, rcond=None)[0].T
    return compose_affine(linear, target_mean - linear @ source_mean)


def fit_thin_plate(source: np.ndarray, target: np.ndarray, smoothing: np.ndarray) -> Transform:
    """The thin-plate spline with kernel |r| (Duchon 1977; Wahba 1990, chapter 2.4).

    Minimises `sum_k |f(source_k) - target_k|^2 / smoothing_k` plus the bending energy, which for
    this kernel is a multiple of the integral of all squared second derivatives.

    Args:
      source, target: (K, 3); no two of the source in one place where they have no smoothing.
      smoothing: (K,) mm, not negative. 0: the spline goes through this target.

    Raises:
      ValueError: there are fewer than 4 points, or they lie in one plane.
    """
    count, middle = len(source), source.mean(0)
    _check_solid(source - middle)
    kernel = -_distances(source) + np.diag(smoothing)
    affine = np.column_stack([np.ones(count), source - middle])
    system = np.block([[kernel, affine], [affine.T, np.zeros((4, 4))]])
    solution = np.linalg.solve(system, np.concatenate([target, np.zeros((4, 3))]))
    shift, linear = solution[count], solution[count + 1 :].T
    matrix = compose_affine(linear, shift - linear @ middle)
    return Transform(matrix, source.copy(), solution[:count])


def choose_smoothing(source: np.ndarray, target: np.ndarray, variance: np.ndarray) -> float:
    """How much smoothing (mm per mm^2 of variance) makes the targets most likely.

    The spline is the posterior mean of a random field with covariance -a |r|, of which pairs are
    seen with their variances; smoothing is 1 / a (Wahba 1990, chapters 1.5 and 4.8). The likelihood
    is that of what no affine map explains. Where the variances alone explain that, smoothing is so
    large that the spline is the affine map.

    Args:
      source, target: (K, 3).
      variance: (K,) positive, mm^2.
    """
    rest = _contrasts(source)
    if not rest.shape[1]:
        return 1.0
    whiten = np.linalg.inv(np.linalg.cholesky(rest.T @ (variance[:, None] * rest)))
    bending, axes = np.linalg.eigh(-whiten @ rest.T @ _distances(source) @ rest @ whiten.T)
    squared = ((axes.T @ whiten @ rest.T @ target) ** 2).sum(1)
    # From the stiffest on, so that of equally likely ones this is the first.
    candidates = bending.max() * np.geomspace(1e4, 1e-6, 300)[:, None]
    spread = 1 + np.maximum(bending, 0) / candidates
    surprise = (squared / spread + 3 * np.log(spread)).sum(1)
    # Rounded: a difference in the last digits means nothing.
    return float(candidates[np.round(surprise, 6).argmin(), 0])


def fit(
    kind: Kind, source: np.ndarray, target: np.ndarray, variance: np.ndarray | None = None
) -> Fit:
    """The map from fixed landmarks to moving ones, which single pairs far off bend little.

    Pairs weigh 1 / variance, times `trust`. A thin-plate spline is smoothed as the variances, and
    `choose_smoothing`, ask for; where no variance is known, it goes through all landmarks.

    Args:
      source, target: (K, 3) landmarks of the fixed and the moving scan.

    Raises:
      ValueError: they are too few, or lie on one line (rigid, similarity) or in one plane.
    """
    if len(source) < LEAST_PAIRS[kind]:
        raise ValueError(f"{kind} needs {LEAST_PAIRS[kind]} landmarks, got {len(source)}")
    spread = np.ones(len(source)) if variance is None else variance
    trust = _trust(kind, source, target, spread, floor=_EXACT_MM if variance is None else 1.0)
    if kind == "thin_plate" and variance is None:
        transform = fit_thin_plate(source, target, np.full(len(source), _THROUGH_MM))
        return Fit(transform, np.full(len(source), 1 / len(source)), trust, None)
    weights = trust / spread / (trust / spread).sum()
    if kind == "thin_plate":
        smoothing = choose_smoothing(source, target, spread / trust)
        transform = fit_thin_plate(source, target, smoothing * spread / trust)
        return Fit(transform, weights, trust, smoothing)
    return Fit(Transform(_fit_linear(kind, source, target, weights)), weights, trust)


def leave_one_out_mm(
    kind: Kind, source: np.ndarray, target: np.ndarray, variance: np.ndarray | None = None
) -> np.ndarray:
    """(K,) mm: how far the map of all other pairs takes each landmark from its target.

    NaN where the others do not determine a map.
    """
    errors = np.full(len(source), np.nan)
    for k in range(len(source)):
        others = np.arange(len(source)) != k
        part = None if variance is None else variance[others]
        try:
            transform = fit(kind, source[others], target[others], part).transform
        except ValueError:
            continue
        errors[k] = np.linalg.norm(transform(source[k]) - target[k])
    return errors


def _fit_linear(
    kind: Kind, source: np.ndarray, target: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    if kind in ("rigid", "similarity"):
        return fit_rigid(source, target, weights, scale=kind == "similarity")
    return fit_affine(source, target, weights)


def _trust(
    kind: Kind, source: np.ndarray, target: np.ndarray, variance: np.ndarray, floor: float
) -> np.ndarray:
    """(K,) in (0, 1]: factors of the weights, small for pairs that contradict the others.

    An MM-estimate (Yohai 1987): least absolute residuals give a scale that a few pairs far off do
    not change; with it, weights of the multivariate t distribution (Lange, Little & Taylor 1989).
    Residuals are in units of the roots of `variance`, and their scale is at least `floor`. A
    spline would follow what is far off: its pairs are judged by the affine map.
    """
    count, weights = len(source), 1 / variance

    def residuals(factors: np.ndarray) -> np.ndarray:
        matrix = _fit_linear(kind, source, target, factors * weights)
        lengths = np.linalg.norm(apply_affine(matrix, source) - target, axis=1)
        return lengths / np.sqrt(variance)

    # A fit leaves no residual to as many pairs as it has parameters.
    fitted = {"rigid": 2, "similarity": 2}.get(kind, 4)
    far = residuals(np.ones(count))
    if count <= fitted or far.max() <= floor:
        return np.ones(count)
    for _ in range(_STEPS):
        far = residuals(1 / np.maximum(far, 1e-3 * far.mean()))
    scale = max(float(np.median(np.sort(far)[fitted:])) / _MEDIAN, floor, 1e-3 * far.mean())
    trust = np.ones(count)
    for _ in range(_STEPS):
        # Not above 1: how well a pair agrees by chance is no reason to trust it more.
        trust = np.minimum(1.0, (_FREEDOM + 3) / (_FREEDOM + (far / scale) ** 2))
        far = residuals(trust)
    return trust


def _contrasts(points: np.ndarray) -> np.ndarray:
    """(K, K - 4) orthonormal columns: what no affine function of the points (K, 3) explains."""
    affine = np.column_stack([np.ones(len(points)), points - points.mean(0)])
    return np.linalg.qr(affine, mode="complete")[0][:, 4:]


def _distances(points: np.ndarray) -> np.ndarray:
    """(K, K) between points (K, 3)."""
    return np.linalg.norm(points[:, None] - points, axis=-1)


def _check_solid(centred: np.ndarray) -> None:
    """ValueError where points (K, 3) about their mean lie in one plane."""
    singular = np.linalg.svd(centred, compute_uv=False)
    if len(centred) < 4 or singular[2] <= _FLAT * singular[0]:
        raise ValueError("an affine fit needs 4 points that do not lie in one plane")
