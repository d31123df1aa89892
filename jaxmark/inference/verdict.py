"""Is this a scan that the model can say anything of? Where it is not, its landmarks are hidden."""

import numpy as np

from jaxmark.core.calibration import unusual_above
from jaxmark.inference.likeness import LEAST_CASES, Usual
from jaxmark.inference.shapes import UsualShape

# How probable each of the two parts of a verdict is in a good scan, at most; so is the verdict.
LEVEL = 0.001


def refusal(
    points_mm: np.ndarray,
    judged: np.ndarray,
    evidence: np.ndarray,
    profile: np.ndarray,
    *,
    usual_evidence: np.ndarray,
    usual: Usual | None,
    shape: UsualShape | None,
) -> str:
    """Why a scan is probably not one of those the model is for, or not where it looks; "" else.

    Two of three have to agree: landmarks that lie to each other as in nobody, a network that sees
    less of them than in any good scan, and other intensities. A scan of another contrast may be
    read rightly, and one that is turned or cut off shows less. Where shapes are known they are one
    of the two: positions that make a body are not refused.

    Args:
      points_mm: (K, 3) as in `UsualShape.doubts`.
      judged: (K,) which landmarks are taken to be there, within the scan.
      evidence: (K,) of the scan; `usual_evidence` (N, K) of the validation cases.
      profile: of the scan's intensities.
    """
    if not judged.any():
        # Nothing lies in the scan: all count.
        judged = np.ones_like(judged)
    found = [_little_evidence(evidence[judged], usual_evidence[:, judged])]
    found.append("" if usual is None else usual.other_intensities(profile, LEVEL))
    if shape is not None:
        unlike = shape.unlikely_whole(np.where(judged[:, None], points_mm, np.nan))
        if not unlike:
            return ""
        found.insert(0, unlike)
    reasons = [reason for reason in found if reason]
    if len(reasons) < 2:
        return ""
    return (
        f"probably not such a scan, or not in its place: {'; '.join(reasons)} (this is said of "
        f"fewer than {1000 * LEVEL:g} in 1000 good scans)"
    )


def _little_evidence(own: np.ndarray, usual: np.ndarray) -> str:
    """Of landmarks (J,), and of the same ones in N cases (N, J)."""
    if len(usual) < LEAST_CASES:
        return ""
    mean, theirs = float(own.mean()), usual.mean(1)
    if not mean < -unusual_above(-theirs, LEVEL):
        return ""
    return (
        f"the network sees less of them than in any validation case (evidence {mean:.2f}, theirs "
        f"{theirs.min():.2f} or more)"
    )
