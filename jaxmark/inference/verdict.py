"""Decides whether the model is for a scan; if not, the scan is refused and its landmarks hidden."""

import numpy as np

from jaxmark.core.calibration import unusual_above
from jaxmark.inference.likeness import LEAST_CASES, Usual
from jaxmark.inference.shapes import UsualShape

# Largest probability of each reason, and so of a refusal, in a good scan.
LEVEL = 0.001
# Evidence alone refuses a scan if it lies this many times farther below the usual mean than the
# limit of `LEVEL`. Models for scans of any contrast, which have no usual intensities, use the
# second number.
_FAR_BELOW, _FAR_BELOW_ANY_CONTRAST = 3.0, 2.0


def verdict(
    points_mm: np.ndarray,
    there: np.ndarray,
    inside: np.ndarray,
    evidence: np.ndarray,
    profile: np.ndarray,
    *,
    usual_evidence: np.ndarray,
    usual: Usual | None,
    shape: UsualShape | None,
) -> tuple[str, str]:
    """Two lines: why the scan is refused, and that the network sees little; "" where not.

    A scan is refused if the network sees next to nothing of the landmarks, or if two of three
    reasons agree: an arrangement of landmarks as in nobody, less evidence than in any good scan,
    and other intensities. Where usual shapes are known, the arrangement must be one of the two: a
    scan of another contrast may be predicted well, and a turned or cut scan has less evidence.

    Args:
      points_mm: (K, 3) as in `UsualShape.doubts`.
      there: (K,) landmarks that are predicted as present.
      inside: (K,) landmarks whose position lies within the scan. Shapes are judged by landmarks
        that are both; by all present ones if that is less than half of them. Evidence is judged by
        landmarks inside: in an empty scan none is present.
      evidence: (K,) of the scan; `usual_evidence` (N, K) of the validation cases.
      profile: of the scan's intensities.
    """
    judged = there & inside
    if 2 * judged.sum() < there.sum() or not judged.any():
        judged = there if there.any() else np.ones_like(there)
    seen = inside if inside.any() else np.ones_like(inside)
    little, times = little_evidence(evidence[seen], usual_evidence[:, seen])
    other = "" if usual is None else usual.other_intensities(profile, LEVEL)
    unlike = ""
    if shape is not None:
        unlike = shape.unlikely_whole(np.where(judged[:, None], points_mm, np.nan))
    reasons = [reason for reason in (unlike, little, other) if reason]
    agree = len(reasons) > 1 and (bool(unlike) or shape is None)
    if not (agree or times > (_FAR_BELOW_ANY_CONTRAST if usual is None else _FAR_BELOW)):
        return "", little
    refused = (
        f"probably not such a scan, or not in its place: {'; '.join(reasons)} (fewer than "
        f"{1000 * LEVEL:g} in 1000 scans like the validation cases are refused)"
    )
    return refused, little


def little_evidence(own: np.ndarray, usual: np.ndarray) -> tuple[str, float]:
    """A line if evidence `own` (J,) is less than usual, of the same landmarks in N cases (N, J).

    Also how far it lies below the cases' mean, in units of the limit's distance; 0 if it is usual.
    """
    if len(usual) < LEAST_CASES:
        return "", 0.0
    mean, theirs = float(own.mean()), usual.mean(1)
    limit = -unusual_above(-theirs, LEVEL)
    if not mean < limit:
        return "", 0.0
    line = (
        "the network sees less of the landmarks than in any validation case (evidence "
        f"{mean:.2f}, theirs {theirs.min():.2f} or more)"
    )
    return line, (theirs.mean() - mean) / max(theirs.mean() - limit, 1e-9)
