"""Is this a scan that the model can say anything of? Where it is not, its landmarks are hidden."""

import numpy as np

from jaxmark.core.calibration import unusual_above
from jaxmark.inference.likeness import LEAST_CASES, Usual
from jaxmark.inference.shapes import UsualShape

# How probable each part of a verdict is in a good scan, at most; so is the verdict.
LEVEL = 0.001
# Evidence so many times as far below the usual as a thousandth of good scans is says enough; of a
# model for scans of any contrast, of which nothing but evidence and shape speaks.
_NOTHING, _NOTHING_OF_ANY = 3.0, 2.0


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
    """Why a scan is refused, and whether the network sees little of its landmarks; "" if not.

    Refused is what is probably not one of the scans that the model is for, or not where it looks:
    if the network sees next to nothing of the landmarks, or two of three agree: landmarks that lie
    to each other as in nobody, a network that sees less of them than in any good scan, and other
    intensities. A scan of another contrast may be read rightly, and one that is turned or cut
    off shows less: where shapes are known they are one of the two.

    Args:
      points_mm: (K, 3) as in `UsualShape.doubts`.
      there: (K,) which landmarks are taken to be there, `inside` (K,) whose place lies within the
        scan. Shapes are judged by what is both, or all that is there where that is less than half;
        evidence by what is inside, since of nothing all seems to be absent.
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
    if not (agree or times > (_NOTHING_OF_ANY if usual is None else _NOTHING)):
        return "", little
    refused = (
        f"probably not such a scan, or not in its place: {'; '.join(reasons)} (this is said of "
        f"fewer than {1000 * LEVEL:g} in 1000 scans like the validation cases)"
    )
    return refused, little


def little_evidence(own: np.ndarray, usual: np.ndarray) -> tuple[str, float]:
    """Of landmarks (J,), and of the same ones in N cases (N, J); "" of as much as is usual.

    Also how many times as far below their mean it is as the least that is usual.
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
