"""A synthetic person before there is an image: what shape, vessels and images share."""

from dataclasses import dataclass

import numpy as np

RIGHT, LEFT = 0, 1


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


@dataclass(frozen=True)
class Vessel:
    """A tube around a centreline of N points, in the direction of the blood's flow."""

    name: str
    # Index into `COW19.segments`; -1: a vessel beyond the scheme.
    segment: int
    # (N, 3) LPS mm, at most 0.5 mm from point to point; neighbouring tubes share end points.
    points_mm: np.ndarray
    # (N,) mm
    radii_mm: np.ndarray
    # (N,) mm along the vessels from where the blood enters the standard head (neck arteries).
    travelled_mm: np.ndarray

    @property
    def tangents(self) -> np.ndarray:
        """(N, 3): unit vectors along the flow."""
        along = np.gradient(self.points_mm, axis=0)
        return along / np.linalg.norm(along, axis=1, keepdims=True)
