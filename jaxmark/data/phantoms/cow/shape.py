"""Where the landmarks of a synthetic person lie, and which segments that person lacks.

Positions of 14 landmarks follow a Gaussian fitted to those of 560 real people (`shape.json`, made
by `experiments/phantoms/fit_shape.py`); the others and the variants follow the literature.
"""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import special
from scipy.spatial.transform import Rotation

from jaxmark.core.anatomy import COW19
from jaxmark.data.phantoms.cow.anatomy import LEFT, RIGHT, Anatomy

MODEL_FILE = Path(__file__).with_name("shape.json")
# The lower end of the basilar artery: in the data, not in the scheme.
VERTEBRAL = "BA/VA"

# The tails of a Gaussian reach further than anatomy: one person in a hundred is drawn again, and
# so is one with a segment shorter than the shortest ACoA of the data (1.1 mm).
_LEAST_LIKELY = 0.01
_SHORTEST_MM = 1.0


class _Offset(NamedTuple):
    """A landmark that the data lacks, from one that it has; x points away from the midline."""

    landmark: str
    origin: str
    mean_mm: tuple[float, float, float]
    sd_mm: tuple[float, float, float]


# C4/C5 to ICA/OA is the clinoid segment, 5.5 +- 1.9 mm from ring to ring (14 sides;
# chjcana.com/EN/Y2012/V30/I1/8); it is the upper arm of the anterior genu.
# A2/A3 is the rostrum-genu junction (Fischer; Rhoton): by MNI coordinates about 20 mm before and
# 15 mm above the ACoA and 1 to 3 mm off the midline. No published offset was found.
# P2A/P2P is the posterior margin of the cerebral peduncle; P2A measures 20.1 (11 to 26) mm (Uz
# 2019, PMID 29623480). Direction: MNI coordinates of the peduncle.
_OFFSETS = (
    _Offset("C4/C5", "ICA/OA", (0.6, -1.5, -5.0), (1.0, 1.2, 1.3)),
    _Offset("A2/A3", "A1/A2", (0.7, -18.0, 16.0), (0.8, 3.0, 3.5)),
    _Offset("P2A/P2P", "P1/P2A", (11.0, 13.5, 4.5), (2.5, 2.5, 2.0)),
)
# The two sides of a person are alike: share of an offset's variance that they have in common.
_COMMON_TO_SIDES = 0.5

# Share of people by variant. PCoA: meta-analysis of 33 papers (Jones 2021): one missing 19.5 %,
# both 22.8 %. Fetal PCA: 923 healthy people on MRA (Gaigalaite 2019): one side 13.6 %, both
# 2.3 %; a fetal PCA needs its PCoA, so these are drawn among those who have them. A1 5.65 % and
# ACoA 15.66 %: 513 adults on TOF-MRA (PMID 30311936). An A2 needs its A1 or the ACoA, so that an
# A1 is only missing where the ACoA is there. Front and back vary nearly independently (2246 men
# on TOF-MRA, hindawi.com/journals/bmri/2015/976340: 3.9 % with only the front incomplete, 3.4 %
# if independent; tetrachoric correlation of ACoA and PCoA in the 560 people: 0.06).
_ONE_PCOA, _BOTH_PCOA = 0.195, 0.228
_ONE_FETAL, _BOTH_FETAL = 0.136, 0.023
_ACOA, _A1 = 0.157, 0.0565
# Of the 560 people's PCoA that were labelled, 42 of 485 had no P1: 41 % of the fetal ones above.
_P1_IF_FETAL = 0.41

# Where a segment is missing nothing pulls its ends any more: they move this share of the way to
# the line between their neighbours.
_STRAIGHTENING = 0.4


@functools.cache
def _model() -> tuple[list[str], np.ndarray, np.ndarray]:
    """Landmarks, mean (D,) and a square root (D, D) of the covariance."""
    tree = json.loads(MODEL_FILE.read_text())
    covariance = np.array(tree["covariance_mm2"])
    return tree["landmarks"], np.array(tree["mean_mm"]).ravel(), np.linalg.cholesky(covariance)


def draw_anatomy(
    rng: np.random.Generator, rotation_sd_degrees: float = 0.0, translation_sd_mm: float = 0.0
) -> Anatomy:
    """A synthetic person, in a frame whose origin is the mean of the real landmarks.

    `rotation_sd_degrees` about each axis and `translation_sd_mm` along each are of the head in
    this frame: what a registration leaves, or how a patient lies in the scanner.
    """
    landmarks, vertebral = _draw_landmarks(rng)
    present, fetal = draw_variants(rng)
    landmarks = _straighten(landmarks, vertebral, present)
    angles = rng.normal(0, 1, 3) * rotation_sd_degrees
    rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    shift = rng.normal(0, 1, 3) * translation_sd_mm
    return Anatomy(
        landmarks_mm=landmarks @ rotation.T + shift,
        vertebral_mm=vertebral @ rotation.T + shift,
        segment_present=present,
        fetal=fetal,
        rotation=rotation,
    )


def attribution() -> dict[str, str]:
    """Whose data the shape model rests on, and under which licence."""
    tree = json.loads(MODEL_FILE.read_text())
    return {"source": tree["source"], "licence": tree["licence"]}


def draw_variants(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Which segments are there (20,) bool, and on which side the PCA is fetal (2,) bool."""
    present = np.ones(len(COW19.segments), bool)
    pcoa = ~_sides(rng, _ONE_PCOA, _BOTH_PCOA)
    fetal = np.zeros(2, bool)
    if pcoa.all():
        both = 1 - _ONE_PCOA - _BOTH_PCOA
        fetal = _sides(rng, _one_fetal(), _BOTH_FETAL / both)
    elif pcoa.any():
        fetal = pcoa & (rng.random() < _one_fetal())
    p1 = ~(fetal & (rng.random(2) < _P1_IF_FETAL))
    acoa = rng.random() >= _ACOA
    # Only people with an ACoA can lack an A1.
    a1 = ~_sides(rng, _A1 / (1 - _ACOA), 0.0) if acoa else np.ones(2, bool)
    present[COW19.segment("ACoA")] = acoa
    for side, letter in ((RIGHT, "R"), (LEFT, "L")):
        for name, there in (("PCoA", pcoa), ("P1", p1), ("A1", a1)):
            present[COW19.segment(f"{name} {letter}")] = there[side]
    return present, fetal


def _one_fetal() -> float:
    """P(fetal on one side) among those who have one PCoA or both, so that all people's is right."""
    return _ONE_FETAL / (1 - _BOTH_PCOA)


def _sides(rng: np.random.Generator, one: float, both: float) -> np.ndarray:
    """(2,) bool: true on one side with probability `one`, on both with `both`."""
    draw = rng.random()
    if draw < both:
        return np.array([True, True])
    if draw < both + one:
        return np.arange(2) == rng.integers(2)
    return np.zeros(2, bool)


def _draw_landmarks(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(19, 3) and (3,) mm: the landmarks of the scheme, and where the vertebral arteries join."""
    names, mean, root = _model()
    while True:
        z = rng.standard_normal(len(mean))
        drawn = dict(zip(names, (mean + root @ z).reshape(-1, 3), strict=True))
        drawn |= _draw_others(rng, drawn)
        landmarks = np.stack([drawn[name] for name in COW19.landmarks])
        pairs = np.array([np.flatnonzero(row) for row in COW19.incidence if row.sum() == 2])
        lengths = np.linalg.norm(landmarks[pairs[:, 0]] - landmarks[pairs[:, 1]], axis=1)
        if z @ z < special.chdtri(len(mean), _LEAST_LIKELY) and lengths.min() > _SHORTEST_MM:
            return landmarks, drawn[VERTEBRAL]


def _draw_others(rng: np.random.Generator, drawn: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The landmarks that the data lacks, from those it has."""
    others = {}
    for offset in _OFFSETS:
        common = rng.standard_normal(3)
        for side, letter in ((-1.0, "R"), (1.0, "L")):
            own = rng.standard_normal(3)
            z = np.sqrt(_COMMON_TO_SIDES) * common + np.sqrt(1 - _COMMON_TO_SIDES) * own
            away = (offset.mean_mm + z * offset.sd_mm) * np.array([side, 1.0, 1.0])
            others[f"{offset.landmark} {letter}"] = drawn[f"{offset.origin} {letter}"] + away
    return others


def _straighten(landmarks: np.ndarray, vertebral: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Landmarks (19, 3) with those moved that a missing segment no longer pulls."""
    moved = landmarks.copy()
    for k in np.flatnonzero(~COW19.landmark_attributes(present)):
        neighbours = []
        for s in np.flatnonzero(present & COW19.incidence[:, k]):
            others = np.flatnonzero(COW19.incidence[s])
            other = others[others != k]
            neighbours.append(landmarks[other[0]] if len(other) else vertebral)
        if len(neighbours) == 2:
            a, b = neighbours
            t = np.clip((landmarks[k] - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
            moved[k] += _STRAIGHTENING * (a + t * (b - a) - landmarks[k])
    return moved
