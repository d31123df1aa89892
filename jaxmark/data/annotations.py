"""Cases whose landmarks contradict the other cases', with one line of text for each."""

from collections.abc import Sequence

import numpy as np

from jaxmark.core.anatomy import scheme_of
from jaxmark.core.geometry import apply_affine
from jaxmark.core.plausibility import Contradiction, contradictions
from jaxmark.data.cases import PreparedCase

_NEGATED = np.array([-1.0, -1.0, 1.0])
# A line names this many landmarks and counts the others.
_MAX_NAMED = 3


def annotation_doubts(
    cases: Sequence[PreparedCase],
    landmarks: Sequence[str],
    grid_to_common: np.ndarray,
    unit: str = "mm",
) -> dict[str, str]:
    """Case -> a line on how its landmarks contradict the other cases', where they do.

    `unit` is the unit of lengths in the common frame.
    """
    to_common = [grid_to_common @ np.linalg.inv(case.ijk_to_lps) for case in cases]
    world = [case.landmarks_mm for case in cases]
    points, negated = (
        np.stack([apply_affine(m, p * signs) for m, p in zip(to_common, world, strict=True)])
        for signs in (1.0, _NEGATED)
    )
    found = contradictions(points, negated, scheme_of(landmarks).mirrored)
    return {cases[number].name: _words(one, landmarks, unit) for number, one in found.items()}


def _words(found: Contradiction, landmarks: Sequence[str], unit: str) -> str:
    names = [repr(landmarks[k]) for k in found.landmarks]
    if found.kind == "far":
        others = f"; so are {', '.join(names[1:_MAX_NAMED])}" if names[1:] else ""
        others += f" and {len(names) - _MAX_NAMED} more" * (len(names) > _MAX_NAMED)
        return (
            f"landmark {names[0]} is {found.off_mm:.1f} {unit} from where the other cases have it "
            f"(up to {found.then_mm:.1f} {unit} would be usual){others}"
        )
    what, then = {
        "negated": (
            "landmarks seem to be in another frame (RAS, LPS) than their file says",
            "with x and y negated",
        ),
        "sides": ("right and left seem to be exchanged", "with the sides exchanged"),
        "exchanged": (f"landmarks {' and '.join(names)} seem to be exchanged", "once exchanged"),
    }[found.kind]
    return (
        f"{what}: {found.off_mm:.1f} {unit} from where the other cases have them, "
        f"{found.then_mm:.1f} {unit} {then}"
    )
