"""Checks annotations against each other and against their scans, without training."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jaxmark.config import Data
from jaxmark.core.anatomy import scheme_of
from jaxmark.core.suspicion import (
    CERTAIN,
    LINE,
    MOST,
    Looks,
    Predictions,
    Shapes,
    Suspicion,
    distance_suspicions,
    doubled,
    doubled_looks,
    misfits,
    point_suspicions,
    predicted_suspicions,
    shape_suspicions,
    shapes_of,
)
from jaxmark.core.templates import alike, best_place, correlations, normalised
from jaxmark.data.annotated import Annotated
from jaxmark.data.looks import (
    NODES,
    SEARCHED,
    STEP,
    ExplainJob,
    Explanation,
    Look,
    LookJob,
    Source,
    explain,
    grid_shape,
    look,
)
from jaxmark.data.notes import first_few
from jaxmark.system.parallel import parallel, worker_pool

# Rows with less suspicion are not listed: a good cohort would have more than one of them.
LEAST = 0.0
# Suspicion that is added if another reading of a case's points fits its scan.
_EXPLAINED = 3.0
# At most this many other cases' points are tried in the scan of a case that does not fit.
_MAX_OTHERS = 60
# A patch is air if its mean is below _DARK (of the scan's range) and its contrast is below this
# share of what is usual there.
_DARK, _EVEN = 0.15, 0.3
# Largest suspicion of a missing point: it may be no mistake, so mistakes are listed before it.
_MAX_MISSING = 0.5


def check_annotations(
    annotated: Annotated, data: Data, predictions: Predictions | None = None
) -> list[Suspicion]:
    """All suspicions, the largest first; each scan is read once, doubtful ones twice.

    Raises:
      InputError, or an ExceptionGroup of them: scans cannot be read.
    """
    points, n = annotated.points_mm, len(annotated.cases)
    shapes = shapes_of(points, scheme_of(annotated.names).mirrored)
    with worker_pool(data.workers, n) as pool:
        jobs = _look_jobs(annotated, data, shapes)
        seen = parallel(pool, look, jobs, "looking at scans")
        if shapes is None:
            rows = _without_shapes(annotated, seen, predictions)
        else:
            looks, patches, weights = _looks(shapes, seen, data.planar)
            misfit = misfits(shapes, looks)
            whole = [row for row in shape_suspicions(shapes) if row.suspicion > LEAST]
            asked = np.flatnonzero(
                (-misfit - math.log10(n) > LINE) | _has(whole, n, ("size", "frame"), LINE)
            )
            if len(asked) and looks is not None:
                explain_jobs = [
                    _explain_job(int(i), jobs, shapes, looks, patches, weights) for i in asked
                ]
                found = parallel(pool, explain, explain_jobs, "reading doubtful cases again")
            else:
                found = []
            explained = dict(zip(map(int, asked), found, strict=False))
            rows = _with_shapes(shapes, looks, patches, misfit, whole, explained, predictions)
    rows += _copies(seen, rows) + missing(annotated)
    return sorted(rows, key=lambda row: (-row.suspicion, row.case, row.landmarks))


def check_points(points_mm: np.ndarray, names: Sequence[str]) -> list[Suspicion]:
    """The suspicions of points (N, K, 3) without scans."""
    shapes = shapes_of(points_mm, scheme_of(names).mirrored)
    if shapes is None:
        return distance_suspicions(points_mm, LEAST)
    rows = [row for row in shape_suspicions(shapes) if row.suspicion > LEAST]
    judged = ~_has(rows, len(points_mm), None, LINE) & np.isfinite(shapes.common.off_mm)
    rows += point_suspicions(shapes, None, judged, None, LEAST)
    rows += [
        Suspicion(case, (), "doubled landmarks", score, mm, other=first)
        for first, case, score, mm in doubled(shapes)
    ]
    return sorted(rows, key=lambda row: (-row.suspicion, row.case, row.landmarks))


def missing(annotated: Annotated) -> list[Suspicion]:
    """Cases that lack points which others have, without stating that the patient lacks them.

    A name that one case alone has is missing in no other. It is a row of kind "name", above the
    line where the case lacks a name that all others have: it is probably misspelt.
    """
    lacks = ~np.isfinite(annotated.points_mm).all(-1) & ~annotated.absent
    n = len(lacks)
    # Of three cases none can be told to be the odd one.
    lone = ((~lacks).sum(0) == 1) & (n > 3)
    unique = (lacks.sum(0) == 1) & (n > 3)
    found = []
    for case in range(n):
        which = np.flatnonzero(lacks[case] & (lacks.sum(0) < n) & ~lone)
        odd = np.flatnonzero(~lacks[case] & lone)
        if len(odd):
            meant = [k for k in which if unique[k]]
            which = np.setdiff1d(which, meant)
            detail = first_few(repr(annotated.names[k]) for k in meant)
            score = min(2 * math.log10(n), MOST) if meant else _MAX_MISSING
            found.append(Suspicion(case, tuple(map(int, odd)), "name", score, detail=detail))
        if len(which):
            rare = math.log10(n / max(int(lacks[:, which].sum(0).min()), 1))
            score = min(rare, _MAX_MISSING)
            found.append(Suspicion(case, tuple(map(int, which)), "missing", score))
    return found


def _look_jobs(annotated: Annotated, data: Data, shapes: Shapes | None) -> list[LookJob]:
    jobs = []
    for i, path in enumerate(annotated.scans):
        size = float(annotated.pixel_size_mm[i])
        source = Source(path, data.unit, size) if data.planar else Source(path)
        points = annotated.points_mm[i]
        to_shape, expected, step_mm = np.full((4, 4), np.nan), np.full_like(points, np.nan), 1.0
        if shapes is not None:
            to_shape, step_mm = shapes.common.maps[i], STEP * shapes.common.scale_mm
            if np.isfinite(to_shape).all():
                expected = shapes.common.back(i, shapes.moved[i] - shapes.expected.off[i])
        jobs.append(LookJob(source, points, expected, to_shape, step_mm))
    return jobs


def _looks(
    shapes: Shapes, seen: Sequence[Look], planar: bool
) -> tuple[Looks, np.ndarray, np.ndarray]:
    """The scans' evidence; all patches (N, K, P) normalised, and their weights (N, K)."""
    patches = np.stack([one.patches for one in seen]).astype(np.float32)
    like, weights = alike(patches)
    unit = normalised(patches)
    off = np.full((*like.shape, 3), np.nan)
    step_mm = STEP * shapes.common.scale_mm
    sides = grid_shape(NODES, planar), grid_shape(SEARCHED, planar)
    by_shape = shapes.expected.off
    for k in range(like.shape[1]):
        total = weights[:, k] @ unit[:, k]
        for i, one in enumerate(seen):
            block = one.blocks[k].astype(np.float32)
            if np.isnan(like[i, k]) or np.isnan(block).any():
                continue
            template = (total - weights[i, k] * unit[i, k]).reshape(sides[0])
            place, _ = best_place(correlations(template, block.reshape(sides[1])))
            off[i, k] = by_shape[i, k] - step_mm * place
    contrast, level = np.ptp(patches, axis=-1), patches.mean(-1)
    outside = np.stack([one.outside for one in seen])
    known = np.isfinite(contrast).any(0)
    columns = zip(contrast.T, known, strict=True)
    usual = np.array([np.nanmedian(column) if some else np.nan for column, some in columns])
    air = (contrast < _EVEN * usual) & (level < _DARK) & ~outside
    return Looks(like, off, outside, air), unit, weights


def _explain_job(
    case: int,
    jobs: Sequence[LookJob],
    shapes: Shapes,
    looks: Looks,
    unit: np.ndarray,
    weights: np.ndarray,
) -> ExplainJob:
    others = np.arange(len(jobs)) != case
    templates = normalised(np.einsum("nk,nkp->kp", weights[others], unit[others]))
    numbers = np.flatnonzero(others & np.isfinite(shapes.common.off_mm))[:_MAX_OTHERS]
    job = jobs[case]
    best = np.nanmedian(looks.like, axis=1)
    return ExplainJob(
        source=job.source,
        points_mm=job.points_mm,
        # The other process does not need the maps of all cases.
        common=dataclasses.replace(shapes.common, maps=shapes.common.maps[:0]),
        step_mm=job.step_mm,
        templates=templates,
        others=tuple((int(i), shapes.points_mm[i]) for i in numbers),
        like=float(np.nanmedian(best)),
    )


def _with_shapes(
    shapes: Shapes,
    looks: Looks,
    unit: np.ndarray,
    misfit: np.ndarray,
    whole: list[Suspicion],
    explained: dict[int, Explanation | None],
    predictions: Predictions | None,
) -> list[Suspicion]:
    n, log_n = len(misfit), math.log10(len(misfit))
    rows = []
    for case in range(n):
        own = [row for row in whole if row.case == case]
        score = max([-misfit[case] - log_n, *(row.suspicion for row in own)])
        if (reading := explained.get(case)) is not None:
            away = np.linalg.norm(shapes.points_mm[case] - reading.points_mm, axis=-1)
            rows.append(
                Suspicion(
                    case=case,
                    landmarks=(),
                    kind=reading.kind,
                    suspicion=float(min(score + _EXPLAINED, MOST)),
                    off_mm=float(np.nanmedian(away)),
                    other=reading.other,
                    detail=reading.detail,
                )
            )
            continue
        score = float(min(-misfit[case] - log_n, MOST))
        if score > LEAST and not any(row.suspicion >= score for row in own):
            known = np.isfinite(shapes.points_mm[case]).all(-1)
            outside = looks.outside[case].sum() > 0.5 * known.sum()
            detail = "most of them lie outside of it" if outside else ""
            own = [Suspicion(case, (), "misplaced", score, detail=detail)]
        rows += own
    judged = ~_has(rows, n, None, LINE) & np.isfinite(shapes.common.off_mm)
    rows += _twice(shapes, unit, misfit, rows)
    points = point_suspicions(shapes, looks, judged, predictions, LEAST)
    return [*rows, *points]


def _twice(
    shapes: Shapes, unit: np.ndarray, misfit: np.ndarray, rows: list[Suspicion]
) -> list[Suspicion]:
    """Pairs of cases with the same scan or the same landmarks; removes rows that these explain."""
    found = []
    by_points = {(i, j): (score, mm) for i, j, score, mm in doubled(shapes)}
    by_looks = {(i, j): score for i, j, score, _ in doubled_looks(unit)}
    for pair in sorted({*by_points, *by_looks}):
        score, mm = by_points.get(pair, (0.0, math.nan))
        if pair in by_looks:
            kind, score = "doubled scan", min(score + by_looks[pair], MOST)
            first, case = pair
        else:
            kind = "doubled landmarks"
            # The case whose scan the landmarks do not fit has the other's landmarks.
            first, case = sorted(pair, key=lambda i: -misfit[i])
        rows[:] = [r for r in rows if r.case != case or r.kind not in ("misplaced", "other case")]
        found.append(Suspicion(case, (), kind, score, mm, other=first))
    return found


def _copies(seen: Sequence[Look], rows: list[Suspicion]) -> list[Suspicion]:
    """Cases with the same voxels as another case: certain; removes rows that were only likely."""
    first: dict[str, int] = {}
    found = []
    for case, one in enumerate(seen):
        other = first.setdefault(one.digest, case)
        if other == case:
            continue
        likely = [
            r for r in rows if r.kind == "doubled scan" and {r.case, r.other} == {case, other}
        ]
        rows[:] = [row for row in rows if row not in likely]
        off = likely[0].off_mm if likely else math.nan
        found.append(Suspicion(case, (), "doubled scan", CERTAIN, off, other=other))
    return found


def _without_shapes(
    annotated: Annotated, seen: Sequence[Look], predictions: Predictions | None
) -> list[Suspicion]:
    """Suspicions that need no common shape, for cohorts of few cases or few points."""
    rows = [
        Suspicion(case, (int(k),), "outside", CERTAIN)
        for case, one in enumerate(seen)
        for k in np.flatnonzero(one.outside)
    ]
    if predictions is not None:
        rows += predicted_suspicions(annotated.points_mm, predictions, LEAST)
    return rows + distance_suspicions(annotated.points_mm, LEAST)


def _has(
    rows: Sequence[Suspicion], n: int, kinds: Sequence[str] | None, least: float
) -> np.ndarray:
    """(N,) bool: cases with a row about the whole case, of these kinds, above `least`."""
    found = np.zeros(n, bool)
    for row in rows:
        if row.suspicion > least and (kinds is None or row.kind in kinds) and not row.landmarks:
            found[row.case] = True
    return found
