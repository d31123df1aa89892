"""Predictions of segments in one scan: a label map, and which segments the person has."""

import dataclasses
import functools

import numpy as np

from jaxmark.core.anatomy import Scheme
from jaxmark.core.grids import Grid, nearest_labels
from jaxmark.core.segmentation import Sizes, sizes
from jaxmark.inference.predictor import Found
from jaxmark.methods.method import FORKS, SEGMENTATION, SEGMENTS_PRESENT


@dataclasses.dataclass(frozen=True)
class ScanSegments:
    """The S segments of a scheme in one scan; maps are computed on first use.

    Fields are None that the method does not predict (`Method.tells`).
    """

    scheme: Scheme
    grid: Grid  # of the scan itself
    present: np.ndarray | None  # (S,) probability that the person has the segment
    forks: np.ndarray | None  # (K,) probability that arteries fork at the landmark
    prepared: np.ndarray | None  # (x, y, z) uint8 as the network sees the scan: 0, or 1 + index
    prepared_to_lps: np.ndarray  # (4, 4), of those voxels

    @classmethod
    def of(cls, found: Found, scheme: Scheme, grid: Grid) -> "ScanSegments | None":
        """The segments of a prediction, for a scan with this grid; None without segments."""
        prediction = found.prediction
        told = {**prediction.maps, **prediction.probabilities}
        present, forks, labels = (
            np.asarray(told[name]) if name in told else None
            for name in (SEGMENTS_PRESENT, FORKS, SEGMENTATION)
        )
        if present is None and forks is None and labels is None:
            return None
        return cls(scheme, grid, present, forks, labels, found.volume.ijk_to_lps)

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        """(X, Y, Z) uint8 on the scan's own grid: 0, or 1 + index of the segment."""
        if self.prepared is None:
            return None
        seen = Grid(self.prepared.shape, self.prepared_to_lps)
        return nearest_labels(self.prepared, seen, self.grid)

    @functools.cached_property
    def sizes(self) -> Sizes | None:
        """The sizes of the segments in `labels`."""
        if self.labels is None:
            return None
        spacing_mm = np.linalg.norm(self.grid.ijk_to_lps[:3, :3], axis=0)
        return sizes(self.labels, len(self.scheme.segments), spacing_mm)

    @property
    def variant(self) -> str:
        """Which segments are missing (probability under 0.5), and what that means, in words.

        Empty for a method that does not predict presence of segments.
        """
        return "" if self.present is None else self.scheme.variant(self.present >= 0.5)
