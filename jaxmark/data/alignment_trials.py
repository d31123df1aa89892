"""How near does a registration bring landmarks to each other? Tried on some training cases.

No method is told where landmarks are: they only judge what intensities alone have found.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import cast

import numpy as np

from jaxmark.core.geometry import (
    apply_affine,
    compose_affine,
    fit_rigid,
    pick_template,
    rotation_angle_degrees,
)
from jaxmark.data.cohort import RawCase
from jaxmark.data.looks import Source
from jaxmark.data.mutual_information import register_mutual_information
from jaxmark.data.registration import Kind, register, smaller
from jaxmark.data.scans import Scan
from jaxmark.data.survey import Survey, evenly, spread
from jaxmark.system.errors import about
from jaxmark.system.parallel import parallel, worker_pool

# With fewer landmarks no case is the most typical one.
LEAST_TO_CHOOSE = 3
# Cases that are registered to the template in a trial.
TRIED = 10
# Fewer landmarks do not say how a volume is turned; of a picture one less.
LEAST_POINTS = 3
# Scans with more voxels are made smaller first.
_LARGE = 2**25


@dataclasses.dataclass(frozen=True)
class Trial:
    """What a way to bring scans together does to the landmarks of M cases."""

    register: str
    metric: str
    search_degrees: float
    # (M, K, 3) in the common frame.
    points: np.ndarray
    spread: float  # see `survey.spread`
    seconds: float  # a case

    @property
    def words(self) -> str:
        """How the way is called."""
        by = " by mutual information" * (self.metric == "mutual_information")
        return f"{self.register}{by}"


@dataclasses.dataclass(frozen=True)
class Poses:
    """How cases lie to one of them by their landmarks, each with at least `LEAST_POINTS`."""

    degrees: np.ndarray  # (M,) how far each is turned
    scales: np.ndarray  # (M,) relative sizes
    # (M, K, 3) landmarks, moved, turned and, if asked, scaled onto that one's.
    points: np.ndarray

    @property
    def spread(self) -> float:
        """What such transforms cannot take away."""
        return spread(self.points)


@dataclasses.dataclass(frozen=True)
class _Job:
    fixed: Source
    moving: Source
    register: Kind
    metric: str
    search_degrees: float


def tried_cases(survey: Survey) -> list[RawCase]:
    """The template, which is the most typical case, and `TRIED` others.

    Where no case has three landmarks the template is the first case with the most.
    """
    present = np.isfinite(survey.points).all(-1)
    counts = present.sum(1)
    few = counts.max() < LEAST_TO_CHOOSE
    template = int(counts.argmax()) if few else pick_template(survey.points, present)
    chosen = survey.train[template]
    others = [case for case in survey.train if case is not chosen and case.present.any()]
    return [chosen, *evenly(others, TRIED)]


def as_they_are(survey: Survey, cases: Sequence[RawCase]) -> Trial:
    """Nothing is moved: the world frames of the scans."""
    points = np.stack([case.landmarks_mm for case in cases if case.present.any()])
    return Trial("none", "correlation", 180.0, points, spread(points), 0.0)


def by_middles(survey: Survey, cases: Sequence[RawCase]) -> Trial:
    """Middles of the volumes are brought together, as a native grid of pictures does."""
    known = [case for case in cases if case.name in survey.facts and case.present.any()]
    points = np.stack([case.landmarks_mm - survey.facts[case.name].middle for case in known])
    return Trial("middle", "correlation", 180.0, points, spread(points), 0.0)


def registered(
    survey: Survey,
    cases: Sequence[RawCase],
    register: str,
    metric: str = "correlation",
    search_degrees: float = 180.0,
    workers: int = 0,
) -> Trial:
    """The others of the cases are registered to the first; landmarks in its frame."""
    template, *others = cases
    fixed = survey.source(template)
    jobs = [
        _Job(fixed, survey.source(case), cast(Kind, register), metric, search_degrees)
        for case in others
    ]
    begin = time.perf_counter()
    with worker_pool(workers, len(jobs)) as pool:
        found = parallel(pool, _matrix, jobs, f"trying {register} registration")
    seconds = (time.perf_counter() - begin) / max(len(jobs), 1)
    moved = [
        apply_affine(np.linalg.inv(matrix), case.landmarks_mm)
        for matrix, case in zip(found, others, strict=True)
    ]
    points = np.stack([template.landmarks_mm, *moved])
    return Trial(register, metric, search_degrees, points, spread(points), seconds)


def _matrix(job: _Job) -> np.ndarray:
    """(4, 4) LPS mm of the template to those of the scan."""
    fixed, moving = (source.read() for source in (job.fixed, job.moving))
    by_information = job.metric == "mutual_information"
    match = register_mutual_information if by_information else register
    with about(job.moving.path):
        return match(_seen(fixed), _seen(moving), job.register, job.search_degrees).fixed_to_moving


def _seen(scan: Scan) -> Scan:
    return smaller(scan) if scan.voxels.size > _LARGE else scan


def poses(points: np.ndarray, *, onto: int | None = None, scaled: bool = True) -> Poses | None:
    """How cases (N, K, 3) lie to one of them; None where under two can be compared.

    That is case `onto`, or else the one with the most landmarks, of several the first.
    """
    if onto is None:
        onto = int(np.isfinite(points).all(-1).sum(1).argmax())
    fixed = points[onto]
    flat = float(np.nanmax(points[..., 2]) - np.nanmin(points[..., 2])) == 0.0
    degrees, scales, moved = [], [], []
    for case in points:
        both = np.isfinite(case).all(-1) & np.isfinite(fixed).all(-1)
        if both.sum() < LEAST_POINTS - flat:
            continue
        source, target, weights = case, fixed, both.astype(float)
        if flat:
            # A picture must not be turned over.
            above = np.array([0.0, 0.0, float(np.ptp(case[both], axis=0).max()) or 1.0])
            source, target = (np.concatenate([p, p + above]) for p in (case, fixed))
            weights = np.concatenate([weights, weights])
        try:
            rigid = fit_rigid(source, target, weights)
            fitted = (
                fit_rigid(case, fixed, both, scale=True) if not flat else _planar(case, fixed, both)
            )
        except ValueError:
            continue
        degrees.append(float(rotation_angle_degrees(rigid[:3, :3])))
        scales.append(float(np.linalg.norm(fitted[:3, 0])))
        moved.append(apply_affine(fitted if scaled else rigid, case))
    if len(moved) < 2:
        return None
    return Poses(np.array(degrees), np.array(scales), np.stack(moved))


def _planar(case: np.ndarray, fixed: np.ndarray, both: np.ndarray) -> np.ndarray:
    """(4, 4) the similarity transform within the plane that brings points (K, 3) onto others.

    As complex numbers: it is the quotient of the products.
    """
    p, q = (points[both, 0] + 1j * points[both, 1] for points in (case, fixed))
    p0, q0 = p.mean(), q.mean()
    factor = np.vdot(p - p0, q - q0) / np.vdot(p - p0, p - p0).real
    linear = np.diag([abs(factor)] * 3)
    linear[:2, :2] = [[factor.real, -factor.imag], [factor.imag, factor.real]]
    moved = q0 - factor * p0
    return compose_affine(linear, np.array([moved.real, moved.imag, 0.0]))
