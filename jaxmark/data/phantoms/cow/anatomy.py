"""A synthetic person before there is an image: what shape, vessels and images share."""

from dataclasses import dataclass

import numpy as np

from jaxmark.core.anatomy import COW19

RIGHT, LEFT = 0, 1

# Label of a vessel beyond the scheme; the scheme's own are 1 + the index into COW19.segments.
BEYOND = len(COW19.segments) + 1


@dataclass(frozen=True)
class Anatomy:
    """Where the landmarks of `COW19` are, and which segments exist. LPS mm, any origin."""

    # (19, 3): all of them; where a segment is missing its ends are on a smooth stretch of vessel.
    landmarks_mm: np.ndarray
    # (3,): where the vertebral arteries join, the lower end of the basilar artery.
    vertebral_mm: np.ndarray
    # (20,) bool
    segment_present: np.ndarray
    # (2,) bool, right and left: the PCoA feeds the PCA (fetal type), the P1 is thin or missing.
    fetal: np.ndarray
    # (3, 3): turns the standard head's axes into this person's.
    rotation: np.ndarray
