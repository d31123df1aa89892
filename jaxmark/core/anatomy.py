"""Anatomical schemes: landmarks, and the vessel segments that join them.

A scheme is a value: another anatomy needs another value, not other code.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Segment:
    """A stretch of vessel; both ends are landmarks, or one lies beyond the scheme."""

    name: str
    ends: tuple[str, ...]
    may_be_missing: bool = False


@dataclass(frozen=True)
class Variant:
    """The meaning of a missing segment if the segments `others` are present."""

    missing: str
    others: tuple[str, ...]
    meaning: str


@dataclass(frozen=True)
class Scheme:
    """K landmarks and the S segments between them."""

    name: str
    # In the order of every array of landmarks.
    landmarks: tuple[str, ...]
    # (right, left) landmarks that a mirror exchanges; the others lie in the middle.
    symmetric_pairs: tuple[tuple[str, str], ...]
    # In the order of every array of segments; a segmentation's labels count from 1.
    segments: tuple[Segment, ...]
    variants: tuple[Variant, ...] = ()
    # The variant of a person who lacks no segment.
    complete: str = "no segment missing"

    def __post_init__(self) -> None:
        names = [name for pair in self.symmetric_pairs for name in pair]
        names += [end for segment in self.segments for end in segment.ends]
        for name in names:
            if name not in self.landmarks:
                raise ValueError(f"{self.name}: {name!r} is not one of its landmarks")

    def landmark(self, name: str) -> int:
        """Index of a landmark; ValueError where there is none of that name."""
        return self.landmarks.index(name)

    def segment(self, name: str) -> int:
        """Index of a segment; ValueError where there is none of that name."""
        return [segment.name for segment in self.segments].index(name)

    @cached_property
    def incidence(self) -> np.ndarray:
        """(S, K) bool: which segments meet at which landmarks."""
        return np.array(
            [[name in segment.ends for name in self.landmarks] for segment in self.segments]
        )

    @cached_property
    def may_be_missing(self) -> np.ndarray:
        """(S,) bool: segments that some people lack."""
        return np.array([segment.may_be_missing for segment in self.segments])

    @cached_property
    def may_change(self) -> np.ndarray:
        """(K,) bool: landmarks whose attribute can be false."""
        return self.incidence[self.may_be_missing].any(0)

    @cached_property
    def mirrored(self) -> np.ndarray:
        """(K,) int: index of each landmark's mirror image, its own for one in the middle."""
        twin = dict(self.symmetric_pairs) | {left: right for right, left in self.symmetric_pairs}
        return np.array([self.landmark(twin.get(name, name)) for name in self.landmarks])

    @cached_property
    def mirrored_segments(self) -> np.ndarray:
        """(S,) int: index of each segment's mirror image, its own for one in the middle.

        Two segments whose names differ in R and L, or right and left, are mirror images; else the
        mirror image is the only segment between the mirrored landmarks.
        """
        names = [segment.name for segment in self.segments]
        twin = dict(_pairs(names))
        twin |= {left: right for right, left in twin.items()}
        ends = [frozenset(self.landmark(end) for end in s.ends) for s in self.segments]
        found = []
        for i, name in enumerate(names):
            image = frozenset(int(self.mirrored[end]) for end in ends[i])
            known = ends.count(image) == 1 == ends.count(ends[i])
            other = names.index(twin[name]) if name in twin else ends.index(image) if known else i
            found.append(i if name not in twin and names[other] in twin else other)
        return np.array(found, int)

    def forks(self, present: Any, absent: Any) -> tuple[Any, Any]:
        """Landmarks known to be bifurcations, and landmarks known to be none.

        Args:
          present, absent: (..., S) bool, of NumPy or JAX: segments known to be present, and known
            to be absent; segments that are neither are unknown.

        Returns:
          Two (..., K) bool. The bifurcation attribute of Tan et al. (ISBI 2022), section 2.1, is
          false where a segment that meets the landmark is missing; it is true where all segments
          that may be missing are present; else it is unknown.
        """
        uncertain = self.incidence & self.may_be_missing[:, None]
        smooth = (absent[..., :, None] & self.incidence).any(-2)
        unsure = (~present[..., :, None] & uncertain).any(-2)
        return ~smooth & ~unsure, smooth

    def variant(self, present: np.ndarray | Sequence[bool]) -> str:
        """The anatomical variant of someone with these segments, (S,) bool, in words."""
        names = [segment.name for segment in self.segments]
        there = {name for name, here in zip(names, present, strict=True) if here}
        meanings = {v.missing: v.meaning for v in self.variants if there.issuperset(v.others)}
        missing = [
            f"{name} missing" + (f": {meanings[name]}" if name in meanings else "")
            for name in names
            if name not in there
        ]
        return "; ".join(missing) or self.complete

    def landmark_attributes(self, segment_present: np.ndarray | Sequence[bool]) -> np.ndarray:
        """(..., S) bool -> (..., K) bool: no segment is missing that meets the landmark.

        The bifurcation attribute of Tan et al. (ISBI 2022), section 2.1: where a segment is
        missing, its ends lie on smooth stretches of vessel and look like no bifurcation.
        """
        present = np.asarray(segment_present, bool)
        forks: np.ndarray = self.forks(present, ~present)[0]
        return forks


def scheme_of(landmarks: Sequence[str], segments: Sequence[Segment] = ()) -> Scheme:
    """The scheme of a cohort's landmarks, and of the segments in its label table.

    `COW19` if they are the same; else pairs are names that differ in R or L, or in the words right
    and left, in upper or lower case and anywhere in the name.
    """
    if tuple(landmarks) == COW19.landmarks and tuple(segments) in ((), COW19.segments):
        return COW19
    return Scheme("own", tuple(landmarks), tuple(_pairs(landmarks)), tuple(segments))


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """(right, left) among names."""
    twins = {name: _left_of(name) for name in names}
    return [(name, twin) for name, twin in twins.items() if twin is not None and twin in twins]


# Words, or letters by themselves, that say where something is.
_RIGHT = re.compile(r"(?<![A-Za-z])(?:right|r)(?![A-Za-z])", re.IGNORECASE)
_LEFT = {"right": "left", "Right": "Left", "RIGHT": "LEFT", "r": "l", "R": "L"}


def _left_of(name: str) -> str | None:
    """The name with left in place of right; None where it has not just one such word."""
    found = _RIGHT.findall(name)
    if len(found) != 1 or found[0] not in _LEFT:
        return None
    return _RIGHT.sub(_LEFT[found[0]], name)


def _sides(*segments: Segment) -> tuple[Segment, ...]:
    """Each segment on the right and on the left: `@` in a name stands for the side."""
    return tuple(
        Segment(
            segment.name.replace("@", side),
            tuple(end.replace("@", side) for end in segment.ends),
            segment.may_be_missing,
        )
        for segment in segments
        for side in "RL"
    )


# The Circle of Willis with 19 landmarks and 20 segments, after Tan et al. (ISBI 2022 and 2023).
# The papers print the scheme as a figure; the order here is consistent with all that they say.
COW19 = Scheme(
    name="cow19",
    landmarks=(
        *("C4/C5 R", "C4/C5 L"),
        *("ICA terminus R", "ICA terminus L"),
        *("M1/M2 R", "M1/M2 L"),
        *("A1/A2 R", "A1/A2 L"),
        *("A2/A3 R", "A2/A3 L"),
        "BA tip",
        *("P2A/P2P R", "P2A/P2P L"),
        *("P1/P2A R", "P1/P2A L"),
        *("ICA/PCoA R", "ICA/PCoA L"),
        *("ICA/OA R", "ICA/OA L"),
    ),
    symmetric_pairs=(
        ("C4/C5 R", "C4/C5 L"),
        ("ICA terminus R", "ICA terminus L"),
        ("M1/M2 R", "M1/M2 L"),
        ("A1/A2 R", "A1/A2 L"),
        ("A2/A3 R", "A2/A3 L"),
        ("P2A/P2P R", "P2A/P2P L"),
        ("P1/P2A R", "P1/P2A L"),
        ("ICA/PCoA R", "ICA/PCoA L"),
        ("ICA/OA R", "ICA/OA L"),
    ),
    segments=(
        *_sides(
            Segment("C5 @", ("C4/C5 @", "ICA/OA @")),
            Segment("C6 @", ("ICA/OA @", "ICA/PCoA @")),
            Segment("C7 @", ("ICA/PCoA @", "ICA terminus @")),
            Segment("M1 @", ("ICA terminus @", "M1/M2 @")),
            Segment("A1 @", ("ICA terminus @", "A1/A2 @"), may_be_missing=True),
            Segment("A2 @", ("A1/A2 @", "A2/A3 @")),
            Segment("PCoA @", ("ICA/PCoA @", "P1/P2A @"), may_be_missing=True),
            Segment("P1 @", ("BA tip", "P1/P2A @"), may_be_missing=True),
            Segment("P2A @", ("P1/P2A @", "P2A/P2P @")),
        ),
        Segment("ACoA", ("A1/A2 R", "A1/A2 L"), may_be_missing=True),
        Segment("BA", ("BA tip",)),
    ),
    variants=(
        # The posterior cerebral artery comes from the carotid one, as before birth.
        Variant("P1 R", ("PCoA R", "P2A R"), "fetal PCA right"),
        Variant("P1 L", ("PCoA L", "P2A L"), "fetal PCA left"),
        Variant("A1 R", ("A1 L", "ACoA", "A2 R", "A2 L"), "both A2 from the left"),
        Variant("A1 L", ("A1 R", "ACoA", "A2 R", "A2 L"), "both A2 from the right"),
    ),
    complete="complete circle",
)
