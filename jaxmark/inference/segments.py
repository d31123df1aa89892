"""What a model that knows of segments says of one scan: a label map, and what the person has."""

import dataclasses
import functools

import numpy as np

from jaxmark.core.anatomy import Scheme
from jaxmark.core.grids import Grid, nearest_labels
from jaxmark.core.segmentation import Sizes, sizes
from jaxmark.inference.predictor import Found
from jaxmark.methods.method import (
    FORKS,
    LABEL_MAPS,
    SEGMENTATION,
    SEGMENTS,
    SEGMENTS_PRESENT,
    Settings,
)


def knows_segments(method: Settings) -> bool:
    """Whether a method says which segments there are, and where."""
    return bool(method.needs & {SEGMENTS, LABEL_MAPS})


@dataclasses.dataclass(frozen=True)
class ScanSegments:
    """The S segments of a scheme in one scan; maps are made when they are asked for."""

    scheme: Scheme
    grid: Grid  # of the scan itself
    present: np.ndarray  # (S,) probability that the person has the segment
    forks: np.ndarray  # (K,) probability that arteries fork at the landmark
    prepared: np.ndarray  # (x, y, z) uint8 as the network sees the scan: 0, or 1 + index
    prepared_grid: Grid

    @classmethod
    def of(cls, found: Found, scheme: Scheme, grid: Grid) -> "ScanSegments | None":
        """What a network found in a scan with this grid; None of one that knows no segments."""
        prediction = found.prediction
        if SEGMENTATION not in prediction.maps:
            return None
        labels = np.asarray(prediction.maps[SEGMENTATION])
        return cls(
            scheme=scheme,
            grid=grid,
            present=np.asarray(prediction.probabilities[SEGMENTS_PRESENT]),
            forks=np.asarray(prediction.probabilities[FORKS]),
            prepared=labels,
            prepared_grid=Grid(labels.shape, found.volume.ijk_to_lps),
        )

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """(X, Y, Z) uint8 on the scan's own grid: 0, or 1 + index of the segment."""
        return nearest_labels(self.prepared, self.prepared_grid, self.grid)

    @functools.cached_property
    def sizes(self) -> Sizes:
        """Of the segments in `labels`."""
        spacing_mm = np.linalg.norm(self.grid.ijk_to_lps[:3, :3], axis=0)
        return sizes(self.labels, len(self.scheme.segments), spacing_mm)

    @property
    def variant(self) -> str:
        """Which segments are missing, and what that means, in words; 0.5 decides."""
        return self.scheme.variant(self.present >= 0.5)
