"""Compares a scan with the cases of the calibration; differences become doubts in words.

A network predicts landmarks in any volume, but its errors are known only for volumes like the
validation cases. These are described by their intensities, their size, and how much of the
landmarks the network saw in them.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxmark.core.calibration import unusual_above
from jaxmark.data.cases import PreparedCase
from jaxmark.data.frame import PreparedScan, intensity_profile

# Fewer cases do not show what is usual.
LEAST_CASES = 4
# Of more cases an even selection is used.
_MOST_CASES = 200
# Probability of a doubt about a usual scan, for intensities and for evidence each.
_LEVEL = 0.004
# Doubts begin where field of view or voxels are this many times larger or smaller than in all
# cases, or where this much less of the prepared volume lies in the scan. Scanners and protocols
# differ by less, without harm.
_EXTENT_RATIO, _VOXEL_RATIO, _OVERLAP_LOSS = 1.4, 2.5, 0.1


@dataclasses.dataclass(frozen=True)
class Usual:
    """The look of N cases; NaN where a case's folder does not state a value."""

    of: str  # "validation" or "training"
    profile: np.ndarray  # (N, Q) see `intensity_profile`
    overlap: np.ndarray  # (N,) share of the prepared volume in the scan
    extent_mm: np.ndarray  # (N, 3) of the scan, sorted
    voxel_mm: np.ndarray  # (N, 3) sorted
    evidence: np.ndarray | None  # (N,) mean over landmarks; None for training cases

    def doubts(self, scan: PreparedScan, evidence: float, unit: str = "mm") -> list[str]:
        """Lines that say how a scan, or the network's evidence in it, differs from these cases.

        `unit` is the unit of lengths in the lines.
        """
        found = []
        count = len(self.profile)
        if line := self.other_intensities(scan.profile, _LEVEL):
            found.append(line)
        overlap = scan.overlap
        if overlap < np.nanmin(self.overlap) - _OVERLAP_LOSS:
            found.append(
                f"{100 * overlap:.0f} % of the prepared volume lies in the scan, in the {self.of} "
                f"cases at least {100 * np.nanmin(self.overlap):.0f} %"
            )
        voxels = "pixels" if scan.grid.shape[2] == 1 else "voxels"
        for what, own_mm, all_mm, factor in (
            ("a field of view", scan.extent_mm, self.extent_mm, _EXTENT_RATIO),
            (voxels, scan.voxel_mm, self.voxel_mm, _VOXEL_RATIO),
        ):
            low, high = _range(all_mm)
            # Comparisons with NaN (unknown) are false.
            if (own_mm < low / factor).any() or (own_mm > high * factor).any():
                found.append(
                    f"{what} of {_times(own_mm)} {unit}, in the {self.of} cases "
                    f"{' to '.join(dict.fromkeys([_times(low), _times(high)]))} {unit}"
                )
        if self.evidence is not None and count >= LEAST_CASES:
            if evidence < -unusual_above(-self.evidence, _LEVEL):
                found.append(
                    "the network sees less of the landmarks than in any validation case (evidence "
                    f"{evidence:.2f}, theirs {self.evidence.min():.2f} or more)"
                )
        return found

    def other_intensities(self, profile: np.ndarray, level: float) -> str:
        """A line if intensities differ more than in a share `level` of usual scans; else ""."""
        theirs, own = self._distances, _distance(profile, self.profile)
        # Distances are skew; their square roots hardly are.
        limit = unusual_above(np.sqrt(theirs), level) ** 2
        if len(self.profile) < LEAST_CASES or not own > limit:
            return ""
        return (
            f"intensities unlike the {self.of} cases' (distance {own:.2f}, theirs up to "
            f"{theirs.max():.2f})"
        )

    @functools.cached_property
    def _distances(self) -> np.ndarray:
        """(N,) distance of each case from the others."""
        rows = enumerate(self.profile)
        return np.array([_distance(row, np.delete(self.profile, i, 0)) for i, row in rows])

    def to_json(self) -> dict[str, Any]:
        """JSON types for `from_json`."""
        return {
            "of": self.of,
            "profile": np.round(self.profile, 5).tolist(),
            "overlap": self.overlap.tolist(),
            **{
                name: [row.tolist() if np.isfinite(row).all() else [None] * 3 for row in rows]
                for name, rows in (("extent_mm", self.extent_mm), ("voxel_mm", self.voxel_mm))
            },
            "evidence": None if self.evidence is None else self.evidence.tolist(),
        }

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> "Usual":
        """KeyError, TypeError or ValueError for what `to_json` did not write."""
        profile = np.array(tree["profile"], float)
        count = len(profile)
        arrays = {
            name: np.array(tree[name], float).reshape(shape)
            for name, shape in (
                ("overlap", (count,)),
                ("extent_mm", (count, 3)),
                ("voxel_mm", (count, 3)),
            )
        }
        evidence = tree["evidence"]
        if evidence is not None:
            evidence = np.array(evidence, float).reshape(count)
        if count < 1 or profile.shape != (count, PROFILE_SIZE):
            raise ValueError("a wrong number of intensities")
        for known in (profile, arrays["overlap"], np.zeros(0) if evidence is None else evidence):
            if not (np.abs(known) < 1e9).all():
                raise ValueError("a number out of range")
        if tree["of"] not in ("validation", "training"):
            raise ValueError(f"{tree['of']!r} cases")
        return cls(tree["of"], profile, evidence=evidence, **arrays)


PROFILE_SIZE = len(intensity_profile(np.zeros((1, 1, 1))))


def usual(
    validation: Sequence[PreparedCase],
    training: Sequence[PreparedCase],
    evidence: np.ndarray,
) -> Usual | None:
    """The look of the validation cases or, if these are too few, of the training cases.

    Training cases have no evidence, since the network has learned them by heart. None if there are
    no cases at all.

    Args:
      evidence: (N,) of the validation cases, mean over landmarks.
    """
    enough = len(validation) >= LEAST_CASES
    cases = list(validation if enough else training)
    kept = np.unique(np.linspace(0, len(cases) - 1, min(len(cases), _MOST_CASES)).astype(int))
    chosen = [cases[i] for i in kept]
    if not chosen:
        return None
    return Usual(
        of="validation" if enough else "training",
        profile=np.stack([intensity_profile(case.volume.overview()[0]) for case in chosen]),
        overlap=np.array([case.overlap for case in chosen]),
        extent_mm=np.stack([case.extent_mm for case in chosen]),
        voxel_mm=np.stack([case.voxel_mm for case in chosen]),
        evidence=np.asarray(evidence, float)[kept] if enough else None,
    )


def _distance(profile: np.ndarray, others: np.ndarray) -> float:
    centre = np.median(others, axis=0) if len(others) else profile
    return float(np.abs(profile - centre).mean())


def _range(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(3,) minimum and maximum of (N, 3); NaN if no case states a value."""
    known = rows[np.isfinite(rows).all(1)]
    unknown = np.full(3, np.nan)
    return (known.min(0), known.max(0)) if len(known) else (unknown, unknown)


def _times(lengths: np.ndarray) -> str:
    # A picture has no thickness.
    return " x ".join(f"{length:.3g}" for length in lengths if length != 0)
