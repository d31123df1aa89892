"""The arterial tree of one synthetic person: centrelines and radii around the Circle of Willis.

The tables draw the left half of a mean head; a person's own landmarks move what lies between
them, and the right half is the mirror image. A chain of vessels through which the blood runs on
without a fork is one spline, cut at the landmarks: so no kink shows where a segment is missing.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scipy.interpolate import PchipInterpolator

from jaxmark.core.anatomy import COW19
from jaxmark.data.phantoms.cow.anatomy import LEFT, RIGHT, Anatomy
from jaxmark.data.phantoms.curves import arc_lengths, resample, spline
from jaxmark.data.phantoms.lumen import Vessel

_SPACING_MM = 0.45  # along the curve
_SMALLEST_MM = 0.35  # about what a scan still shows

# The left half of a mean head, and its middle: mm, x to the left, y to the back, z up. Averages of
# 560 people, but for C4/C5, A2/A3 and P2A/P2P (see shape.py); the courses below are drawn to them.
_MEAN_MM: Mapping[str, tuple[float, float, float]] = {
    "C4/C5 @": (9.7, -10.5, -8.1),
    "ICA/OA @": (9.1, -9.0, -3.1),
    "ICA/PCoA @": (10.7, -0.8, 0.5),
    "ICA terminus @": (15.0, 0.0, 3.5),
    "M1/M2 @": (28.6, -7.0, 3.6),
    "A1/A2 @": (1.6, -6.0, 5.6),
    "A2/A3 @": (2.3, -24.0, 21.6),
    "P1/P2A @": (6.8, 9.7, 1.8),
    "P2A/P2P @": (17.8, 23.2, 6.3),
    "BA tip": (0.0, 11.8, 0.3),
    "BA/VA": (0.0, 14.4, -24.1),
}

# Radius of each artery: mean, SD between people, mm. Halves of published diameters of the lumen:
# ICA 5.0 falling to 3.6, M1 3.1, M2 2.4, proximal PCA 2.2, BA 3.2, VA 2.8 (Rai et al. 2013, CT);
# A1 2.1, ACoA 1.5 (1.2 in a larger series), PCoA 1.2, P1 2.0 (Shatri et al. 2017, MR); SCA 1.5;
# OA 1.4; AICA 1.0; AChA 1.0; the others by Murray's law or by eye. The mean radii measured in 560
# segmentations of angiograms lie a fifth to a half higher (ICA 2.5, M1 1.8, A1 1.4, BA 1.9, P1
# 1.4, PCoA 1.0): a mask counts voxels that are half filled, and leaves out vessels that are hard
# to see. Beyond the circle they lie lower (0.8 to 0.9), being means over trees.
_RADIUS_MM: Mapping[str, tuple[float, float]] = {
    "ICA @": (2.40, 0.25),
    "C5 @": (2.20, 0.22),
    "C6 @": (2.00, 0.20),
    "C7 @": (1.80, 0.18),
    "M1 @": (1.48, 0.18),
    "A1 @": (1.05, 0.14),
    "A2 @": (1.00, 0.13),
    "A3 @": (0.80, 0.10),
    "ACoA": (0.70, 0.15),
    "PCoA @": (0.65, 0.15),
    "P1 @": (1.02, 0.16),
    "P2A @": (1.05, 0.14),
    "P2P @": (0.90, 0.11),
    "BA": (1.60, 0.22),
    "VA @": (1.40, 0.20),
    "ophthalmic @": (0.69, 0.10),
    "anterior choroidal @": (0.48, 0.06),
    "anterior temporal @": (0.60, 0.08),
    "callosomarginal @": (0.75, 0.10),
    "orbitofrontal @": (0.45, 0.06),
    "frontopolar @": (0.55, 0.07),
    "recurrent @": (0.38, 0.03),
    "posterior temporal @": (0.65, 0.08),
    "SCA @": (0.74, 0.09),
    "AICA @": (0.55, 0.09),
    "PICA @": (0.70, 0.10),
}
_PERSON_SD = 0.07  # of the logarithm of a factor that one person's radii share
_FREE_END = 0.65  # what is left of the radius where a vessel leaves the phantom

# What `lively` adds, so that the people are spread as 560 real ones are (Chen et al., MICCAI 2020).
# How far a course wanders between its ends: SD of each of three waves, in terms of the chord. Set
# so that arc over chord has their median.
_WANDER: Mapping[str, float] = {
    "M1 @": 0.029,
    "A1 @": 0.072,
    "ACoA": 0.088,
    "P1 @": 0.07,
    "PCoA @": 0.08,
    "BA": 0.036,
    "ICA @": 0.02,
    "C5 @": 0.03,
    "C6 @": 0.04,
    "C7 @": 0.04,
}
_WANDER_ELSE = 0.04
_LONGEST_WAVE_MM = 30.0  # from end to end of a course that wanders
_WANDER_SD = 0.45  # of the logarithm of a factor of each vessel
# SD of the logarithm of the right artery's radius over the left one's, beside what each draws.
_UNEVEN_SIDES: Mapping[str, float] = {"A1 @": 0.32, "PCoA @": 0.4, "VA @": 0.22}
# Mean and SD of the logarithm of a factor of all radii of a person: their segmentations are wider
# than lumens of the literature by a fifth to a half, and nobody knows which of both a scan shows.
_WIDER = (0.1, 0.12)

# SD of the place of each control point, and of each step of a branch, in terms of their distances.
_UNEVEN = 0.1

# A chain that would turn by more than this at a landmark that is no fork, for lack of a segment,
# makes a wide bend, past the control points that are this near.
_SHARP_DEGREES = 45.0
_WIDE_MM = 11.0


@dataclass(frozen=True)
class _Course:
    """The way of a vessel between two landmarks, or to or from where the phantom ends."""

    # Points of the mean head, "x y z, x y z", mm. They move along with the landmarks.
    controls: str = ""
    # What one SD of a random number, shared along a chain of vessels, adds to each control, mm.
    bend: str = ""
    # Where the blood enters and leaves; "" is beyond the phantom. Segments have the scheme's.
    ends: tuple[str, str] = ("", "")


_COURSES: Mapping[str, _Course] = {
    # Neck, petrous part, foramen lacerum, posterior genu, horizontal part. The bend closes the
    # siphon: its lower limb comes nearer to the upper one, and both genua go further out.
    "ICA @": _Course(
        "25 9 -61, 26 10 -46, 26 10 -35, 23.5 7.5 -28, 18.5 3.5 -25, 14 1.5 -21.5, "
        "12 3.2 -16.5, 11.1 0.8 -12.6, 10.4 -4.5 -12.4",
        "0 0 0, 0 0 0, 0 0 0, 0 0 0, 0 0 0, 0 0 0.5, 0 1 0.8, 0 1 1, 0 0 0.8",
        ends=("", "C4/C5 @"),
    ),
    "C5 @": _Course(),
    "C6 @": _Course("9.7 -5 -1.6", "0 0 0.4"),
    "C7 @": _Course(),
    "M1 @": _Course("19.4 -2 4.9, 24.2 -5 5.2", "0 0 1, 0 0 1.5"),
    "M2 superior @": _Course(
        "31.5 -9 6.8, 35 -8.5 13, 38 -4 21, 38 4 30, 42.5 8 34, 49 8 31.5, 56 11 36, 60 16 44",
        ends=("M1/M2 @", ""),
    ),
    "A1 @": _Course("11 -1.6 6, 5.8 -3.8 7", "0.3 -0.6 0.9, 0 -0.4 1.2"),
    "A2 @": _Course("1.9 -13 7.4, 2.1 -20 12.5", "0 -0.7 -0.9, 0 -1.1 -0.8"),
    "A3 @": _Course(
        "2.5 -25.3 29.5, 2.6 -20.5 37.5, 2.6 -10 43, 2.8 4 45.5, 2.8 18 46, 3 32 44, 3.5 45 40, "
        "4 59 38",
        ends=("A2/A3 @", ""),
    ),
    "ACoA": _Course("0 -6.4 5.8"),
    "PCoA @": _Course("10.9 2.8 -0.6, 8.6 6.8 -0.3", "0.9 0 -0.6, 0.8 0 -0.8"),
    "P1 @": _Course("3.6 9.6 1.5", "0 -0.7 0.4"),
    "P2A @": _Course("12 9.9 2.6, 17 12.8 3.4, 19.4 17.8 4.6", "0.4 -0.8 0, 0.8 -0.5 0, 0.7 0 0"),
    "P2P @": _Course(
        "16 28.5 8.3, 13.3 35 11, 11 42 12.5, 10.5 50 15, 9 61 17", ends=("P2A/P2P @", "")
    ),
    "BA": _Course(
        "0 13.6 -17.5, 0 12.6 -10, 0 12 -4.5",
        "0.8 -0.3 0, 1.4 -0.6 0, 0.6 -0.3 0",
        ends=("BA/VA", "BA tip"),
    ),
    "VA @": _Course(
        "22 20 -62, 21 26.5 -55, 14 28.5 -50, 9.5 24 -43, 4.6 17.8 -32", ends=("", "BA/VA")
    ),
}
# Instead of these, where vessels are lively: nearly a T where the carotid ends and at the basilar's
# tip, as label maps of real patients have it (the TopCoW challenge's; angles of 148 degrees between
# M1 and A1, of 141 between the P1).
_LIVELY_COURSES: Mapping[str, _Course] = {
    **_COURSES,
    "C7 @": _Course("13.6 -0.2 1.3"),
    "M1 @": _Course("19.4 -2 3.7, 24.2 -5 4.6", "0 0 1, 0 0 1.5"),
    "A1 @": _Course("11 -1.6 4.4, 5.8 -3.8 6", "0.3 -0.6 0.9, 0 -0.4 1.2"),
    "P1 @": _Course("3.8 10.6 1.0", "0 -0.7 0.4"),
}


@dataclass(frozen=True)
class _Site:
    """Where a branch may leave, and how often it does so there."""

    parent: str
    # mm along the parent, from its end where negative. A range keeps clear of both ends; two
    # equal numbers are that very place.
    at: tuple[float, float]
    chance: float = 1.0


@dataclass(frozen=True)
class _Branch:
    """A vessel beyond the scheme that leaves another one and ends freely."""

    # "x y z, x y z", mm from where it leaves, on the left.
    offsets: str
    # One of them is drawn. What their chances lack to 1 are people without the branch.
    sites: tuple[_Site, ...]
    # Of the parent's flow, r^3: the parent goes on with what is left (Murray's law). None: its
    # radius is in the table, and so are the parent's before and after.
    share: float | None = None


_START = (0.0, 0.0)
_END = (-1e-6, -1e-6)

# In an order in which parents come first. Most forks here are there to be mistaken for landmarks.
_BRANCHES: Mapping[str, _Branch] = {
    "ophthalmic @": _Branch(
        "1.2 -3 0.6, 3 -8 0.4, 7 -17 3, 10.5 -27 6, 9.5 -42 7", (_Site("C6 @", _START),)
    ),
    "anterior choroidal @": _Branch(
        "1.8 2.8 0, 4.5 7.5 1.6, 8.5 14 3.6, 13 20 4.5, 17 27 4", (_Site("C7 @", (2.5, 4.5)),)
    ),
    "anterior temporal @": _Branch(
        "2.2 -2.4 -2.6, 5.5 -5 -7, 12 -5 -11, 20 0 -15, 28 9 -19, 37 20 -20",
        (_Site("M1 @", (-12.0, -5.0), 0.5),),
    ),
    # The whole M1 runs on as the superior trunk, which gives off the others: two trunks at M1/M2
    # in most people, three in an eighth. Where the middle one leaves after 4 to 10 mm the
    # bifurcation appears double.
    "M2 inferior @": _Branch(
        "4 0.5 -1.8, 8 6.5 -1.2, 9.8 15 3.5, 10.5 25 9, 13 34 13, 20 40 12.5, 28 45 13, 33 52 17",
        (_Site("M2 superior @", _START),),
        share=0.5,
    ),
    "M2 middle @": _Branch(
        "3.6 3.2 2, 7 10 7, 8 18 13, 9 26 18, 15 30 19, 23 34 19, 31 41 24",
        (
            _Site("M2 superior @", _START, 0.12),
            _Site("M2 superior @", (4.0, 10.0), 0.2),
            _Site("M2 inferior @", (4.0, 10.0), 0.2),
            _Site("M2 superior @", (11.0, 20.0), 0.2),
            _Site("M2 inferior @", (11.0, 20.0), 0.2),
        ),
        share=0.4,
    ),
    "M2 prefrontal @": _Branch(
        "1.8 -4 3.4, 3.5 -9 9, 8 -12 14, 15 -15 16, 20 -20 23, 22 -26 31",
        (_Site("M2 superior @", (5.0, 22.0)),),
        share=0.35,
    ),
    "M2 temporal @": _Branch(
        "3 2.6 -3, 7 7 -6, 14 12 -7, 21 20 -10, 27 31 -12",
        (_Site("M2 inferior @", (6.0, 26.0)),),
        share=0.35,
    ),
    "M3 parietal @": _Branch(
        "1 4.5 2.6, 1.5 12 5, 7 18 6, 14 24 8, 19 32 16",
        (_Site("M2 superior @", (24.0, 40.0)),),
        share=0.45,
    ),
    "M3 angular @": _Branch(
        "1 4 3.4, 3 10 8, 10 16 10, 18 22 14, 22 30 22",
        (_Site("M2 inferior @", (28.0, 44.0)),),
        share=0.45,
    ),
    "recurrent @": _Branch(
        "2.4 -0.6 1.8, 7 0.6 3.2, 13 2.5 3.6, 18 4 6", (_Site("A2 @", (0.5, 3.0), 0.6),)
    ),
    "orbitofrontal @": _Branch(
        "0.8 -3.4 -2, 2 -10 -4, 3.5 -20 -4.5, 5 -32 -2, 6 -44 3", (_Site("A2 @", (3.5, 9.0), 0.9),)
    ),
    "frontopolar @": _Branch(
        "0.6 -3.6 -0.8, 1.6 -10 1, 2.2 -18 5, 3 -25 12, 4 -32 21",
        (_Site("A2 @", (11.0, 21.0), 0.9),),
    ),
    "callosomarginal @": _Branch(
        "1.2 -3.4 2.4, 2.4 -7 9, 2.8 -7 18, 2.8 -1 27, 3 9 32, 3.2 22 34, 3.6 36 34",
        (
            _Site("A3 @", _START, 0.6),
            _Site("A3 @", (1.0, 6.0), 0.2),
            _Site("A2 @", (-6.0, -1.0), 0.2),
        ),
    ),
    "internal frontal @": _Branch(
        "0.6 -4 2.2, 1.5 -10 7, 2.5 -15 14, 4 -18 24",
        (_Site("callosomarginal @", (6.0, 20.0)),),
        share=0.4,
    ),
    "posterior temporal @": _Branch(
        "3.2 2.4 -1.8, 9 8 -4.5, 15 16 -6, 20 26 -6, 25 40 -4",
        (
            _Site("P2P @", _START, 0.5),
            _Site("P2P @", (1.0, 6.0), 0.25),
            _Site("P2A @", (-6.0, -1.0), 0.25),
        ),
    ),
    "hippocampal @": _Branch(
        "2.6 -1.2 -1.8, 8 -0.5 -4, 15 3 -6, 22 9 -8",
        (_Site("P2A @", (7.0, 18.0), 0.35),),
        share=0.1,
    ),
    "parieto-occipital @": _Branch(
        "-0.4 3.6 3.4, -1.5 9 9, -2.5 15 17, -3 23 28",
        (_Site("P2P @", (18.0, 28.0)),),
        share=0.45,
    ),
    "SCA @": _Branch(
        "3.2 -1 -1.2, 8 -1.2 -2.4, 13.5 1 -2.4, 17 7 -1, 16 16 2.5, 12 25 6, 9 34 9.5, 10 47 10",
        (_Site("BA", (-4.0, -1.0)),),
    ),
    "AICA @": _Branch(
        "3.2 -0.8 -1.2, 9 2 -3, 16 7 -4, 21 10 -6, 23 17 -12, 25 30 -17",
        (_Site("BA", (5.0, 13.0), 0.9),),
    ),
    "PICA @": _Branch(
        "3 2 -1.5, 6 7 -6, 5 13 -8, 1.5 17 -3, 2 23 0, 5 33 -6",
        (_Site("VA @", (-22.0, -12.0), 0.7),),
    ),
}


def draw_vessels(
    rng: np.random.Generator, anatomy: Anatomy, *, pathology: bool = False, lively: bool = False
) -> list[Vessel]:
    """The arteries of one person, 55 to 60 mm around the Circle of Willis.

    Each segment that is present is one vessel, from landmark to landmark. What lies beyond the
    scheme leaves it at one of its points: at a landmark, or in between, like the superior
    cerebellar arteries just below the basilar tip.

    Args:
        rng: the result is a function of its state and `anatomy`.
        anatomy: landmarks etc. in LPS mm.
        pathology: one or two stenoses, and in half of the people an aneurysm.
        lively: courses wander, and radii and sides differ, as much as in real people.

    Returns:
        The vessels, each with (N, 3) points and (N,) radii in LPS mm; feeders come first.

    Raises:
        ValueError: a segment that can't be missing (A2, P2A) would get no blood.
    """
    present = {
        s.name: bool(p) for s, p in zip(COW19.segments, anatomy.segment_present, strict=True)
    }
    # Rows times a rotation: its inverse. All is drawn in the standard head's axes, turned last.
    landmarks = dict(zip(COW19.landmarks, anatomy.landmarks_mm @ anatomy.rotation, strict=True))
    landmarks["BA/VA"] = anatomy.vertebral_mm @ anatomy.rotation
    dominant = "RL"[rng.integers(2)]
    carotid_fed = _carotid_fed(present, anatomy.fetal)
    radii = _draw_radii(rng, present, carotid_fed, dominant)
    if lively:
        _vary_radii(rng, radii, dominant)
    forks = COW19.landmark_attributes(anatomy.segment_present)
    no_forks = {name for name, fork in zip(COW19.landmarks, forks, strict=True) if not fork}

    tree: dict[str, Vessel] = {}
    feeders: dict[str, Vessel] = {}
    for chain in _chains(present, carotid_fed, dominant):
        for vessel, landmark in _draw_chain(
            rng, chain, landmarks, no_forks, feeders, radii, lively
        ):
            tree[vessel.name] = vessel
            if landmark:
                feeders.setdefault(landmark, vessel)
    without_p1 = not (present["P1 R"] or present["P1 L"])
    for name, branch in _BRANCHES.items():
        if name == "SCA @" and without_p1:
            branch = replace(branch, sites=(_Site("BA", _END),))  # else the BA ends in a stump
        for side in "RL":
            _grow(rng, tree, name.replace("@", side), branch, radii, lively)
    if pathology:
        _add_stenoses(rng, tree)
        if rng.random() < 0.5:
            tree["aneurysm"] = _draw_aneurysm(rng, tree)
    return [replace(v, points_mm=v.points_mm @ anatomy.rotation.T) for v in tree.values()]


def _carotid_fed(present: Mapping[str, bool], fetal: np.ndarray) -> dict[str, bool]:
    """For either side, whether the blood of the P2A comes by way of the PCoA."""
    return {
        side: present[f"PCoA {side}"] and bool(fetal[index] or not present[f"P1 {side}"])
        for side, index in (("R", RIGHT), ("L", LEFT))
    }


def _chains(
    present: Mapping[str, bool], carotid_fed: Mapping[str, bool], dominant: str
) -> list[tuple[str, ...]]:
    """Vessels that run on into each other; each chain after the one that feeds it."""
    chains: list[tuple[str, ...]] = []
    for side in "RL":
        carotid, m1 = tuple(f"{name} {side}" for name in ("ICA", "C5", "C6", "C7")), f"M1 {side}"
        # With an A1 the carotid ends in a T; without it, it turns into the M1.
        chains += [carotid, (m1,)] if present[f"A1 {side}"] else [(*carotid, m1)]
        chains.append((f"M2 superior {side}",))
    frontal = {side: (f"A2 {side}", f"A3 {side}") for side in "RL"}
    with_a1 = [side for side in "RL" if present[f"A1 {side}"]]
    chains += [(f"A1 {side}", *frontal[side]) for side in with_a1]
    if present["ACoA"] and with_a1:
        lacking = [name for side in "RL" if side not in with_a1 for name in frontal[side]]
        chains.append(("ACoA", *lacking))

    # The P2A runs on from the P1, and where there is none from the PCoA. Where the PCoA feeds it
    # in spite of a P1 three vessels meet, at an angle.
    occipital = {side: (f"P2A {side}", f"P2P {side}") for side in "RL"}

    def of_sides(name: str) -> dict[str, tuple[str, ...]]:
        return {side: (f"{name} {side}",) for side in "RL" if present[f"{name} {side}"]}

    p1, pcoa = of_sides("P1"), of_sides("PCoA")
    for side in "RL":
        if not carotid_fed[side] and side in p1:
            p1[side] += occipital[side]
        elif carotid_fed[side] and side not in p1:
            pcoa[side] += occipital[side]
    only = next(iter(p1.values())) if len(p1) == 1 else ()
    chains += pcoa.values()
    chains += [(f"VA {dominant}", "BA", *only), (f"VA {'RL'.replace(dominant, '')}",)]
    chains += p1.values() if len(p1) == 2 else ()
    chains += [occipital[side] for side in "RL" if carotid_fed[side] and side in p1]
    for segment in COW19.segments:
        if not segment.may_be_missing and not any(segment.name in chain for chain in chains):
            raise ValueError(f"nothing feeds {segment.name}")
    return chains


def _draw_radii(
    rng: np.random.Generator,
    present: Mapping[str, bool],
    carotid_fed: Mapping[str, bool],
    dominant: str,
) -> dict[str, float]:
    """The mean radius, mm, of each of a person's vessels that the table has."""
    person = np.exp(rng.normal(0, _PERSON_SD))
    radii = {
        name.replace("@", side): mean * person * float(np.exp(rng.normal(0, sd / mean)))
        for name, (mean, sd) in _RADIUS_MM.items()
        for side in _sides(name)
    }
    for side, other in ("RL", "LR"):
        radii[f"VA {side}"] *= 1.1 if side == dominant else 0.75
        if not present[f"A1 {side}"]:  # the other one feeds both A2
            radii[f"A1 {other}"] *= 1.2
            radii["ACoA"] = 0.95 * radii[f"A2 {side}"]
        if carotid_fed[side]:
            radii[f"PCoA {side}"] = 1.02 * radii[f"P2A {side}"]
            radii[f"P1 {side}"] *= 0.55
    return radii


def _vary_radii(rng: np.random.Generator, radii: dict[str, float], dominant: str) -> None:
    """Spread radii of a person, and of the two sides, as in real people."""
    wider = np.exp(rng.normal(*_WIDER))
    for name in radii:
        radii[name] *= wider
    for name, sd in _UNEVEN_SIDES.items():
        shift = rng.normal(0, sd / 2)
        for side, sign in (("R", 1), ("L", -1)):
            radii[name.replace("@", side)] *= np.exp(sign * shift)
    # `_draw_radii` makes one vertebral artery half as wide again as the other, which is more than
    # is found.
    radii[f"VA {dominant}"] *= 0.93
    radii[f"VA {'RL'.replace(dominant, '')}"] *= 1.17


def _wandering(rng: np.random.Generator, name: str, points: np.ndarray) -> np.ndarray:
    """A course (N, 3) that leaves its ends where they are, and their directions."""
    chord = points[-1] - points[0]
    length = float(np.linalg.norm(chord))
    sd = _WANDER.get(_sideless(name), _WANDER_ELSE) * np.exp(rng.normal(0, _WANDER_SD))
    reach = rng.normal(0, sd * min(length, _LONGEST_WAVE_MM), (3, 3))
    # Along the chord it would only bunch up.
    reach -= 0.7 * np.outer(reach @ chord, chord) / max(length**2, 1e-6)
    # Long courses have more waves of this size, not larger ones.
    waves = 2 * np.pi * np.arange(3) * max(1.0, length / _LONGEST_WAVE_MM)
    t = arc_lengths(points) / arc_lengths(points)[-1]
    shapes = np.cos(np.outer(t, waves) + rng.uniform(0, 2 * np.pi, 3) * (waves > 0))
    wandered = points + np.sin(np.pi * t)[:, None] ** 2 * (shapes @ reach)
    curve, u = spline(wandered)
    return resample(curve, 0.0, u[-1], _SPACING_MM)


def _draw_chain(
    rng: np.random.Generator,
    chain: tuple[str, ...],
    landmarks: Mapping[str, np.ndarray],
    no_forks: Set[str],
    feeders: Mapping[str, Vessel],
    radii: Mapping[str, float],
    lively: bool,
) -> list[tuple[Vessel, str]]:
    """The vessels of a chain, each with the landmark where it ends."""
    ends = [_ends(name) for name in chain]
    for i, (this, after) in enumerate(pairwise(ends)):
        if this[1] != after[0]:  # the ACoA, when the left A1 feeds the right A2
            ends[i] = this[::-1]
    bend = rng.normal()
    knots = [landmarks[ends[0][0]]] if ends[0][0] else []
    cuts = [0]
    for name, (start, end) in zip(chain, ends, strict=True):
        knots += list(_controls(rng, name, start, end, bend, landmarks, lively))
        knots += [landmarks[end]] if end else []
        cuts.append(len(knots) - 1)
    joints = [cut for cut, (_, end) in zip(cuts[1:-1], ends, strict=False) if end in no_forks]
    kept = _kept(np.array(knots), cuts, joints)
    curve, u = spline(np.array(knots)[kept])
    marks = u[np.searchsorted(kept, cuts)]
    courses = [resample(curve, a, b, _SPACING_MM) for a, b in pairwise(marks)]
    if lively:
        courses = [_wandering(rng, *pair) for pair in zip(chain, courses, strict=True)]

    along = [arc_lengths(points) for points in courses]
    starts = np.cumsum([0.0, *(a[-1] for a in along)])
    feeder = feeders.get(ends[0][0])
    thick = feeder.radii_mm[-1] if feeder else np.inf
    means = [radii.get(name, thick) for name in chain]
    nodes = np.array([0.0, *(starts[:-1] + starts[1:]) / 2, starts[-1]])
    last = 0.95 if ends[-1][1] else _FREE_END
    radius = PchipInterpolator(nodes, [min(1.05 * means[0], thick), *means, last * means[-1]])
    blood = feeder.travelled_mm[-1] if feeder else 0.0
    return [
        (_vessel(name, points, radius(start + a), blood + start + a), end)
        for name, points, a, start, (_, end) in zip(
            chain, courses, along, starts[:-1], ends, strict=True
        )
    ]


def _kept(knots: np.ndarray, cuts: list[int], joints: list[int]) -> np.ndarray:
    """Indices of a chain's knots without the controls that make it turn sharply at its `joints`.

    Controls beside a landmark suit a fork there. A PCoA that becomes the P2A, because there is no
    P1, turns less abruptly.
    """
    dropped: set[int] = set()
    for i in joints:
        before, after = knots[i] - knots[i - 1], knots[i + 1] - knots[i]
        cosine = before @ after / (np.linalg.norm(before) * np.linalg.norm(after))
        if cosine < np.cos(np.radians(_SHARP_DEGREES)):
            near = np.linalg.norm(knots - knots[i], axis=1) < _WIDE_MM
            dropped |= set(np.flatnonzero(near).tolist()) - set(cuts)
    return np.array([i for i in range(len(knots)) if i not in dropped])


def _ends(name: str) -> tuple[str, str]:
    """The landmarks, "" where there is none, at which a vessel begins and ends."""
    ends = _COURSES[_sideless(name)].ends
    start, end = ends if any(ends) else COW19.segments[COW19.segment(name)].ends
    return start.replace("@", name[-1]), end.replace("@", name[-1])


def _controls(
    rng: np.random.Generator,
    name: str,
    start: str,
    end: str,
    bend: float,
    landmarks: Mapping[str, np.ndarray],
    lively: bool,
) -> np.ndarray:
    """(n, 3) mm: a person's control points of one vessel."""
    course = (_LIVELY_COURSES if lively else _COURSES)[_sideless(name)]
    mean = _points(course.controls)
    ends = [_MEAN_MM.get(_sideless(landmark)) for landmark in (start, end)]
    line = np.vstack([p for p in (ends[0], mean, ends[1]) if p is not None])
    sd = _UNEVEN * arc_lengths(line)[-1] / (len(line) - 1)
    mean = mean + rng.normal(0, sd, mean.shape)
    if course.bend:
        mean += bend * _points(course.bend)
    # How far the landmarks are from the mean head's; a free end moves like the other one.
    moved = [
        landmarks[landmark] - _mirror(landmark) * point
        for landmark, point in zip((start, end), ends, strict=True)
        if point is not None
    ]
    t = np.linspace(0, 1, len(mean) + 2)[1:-1, None]
    return _mirror(name) * mean + (1 - t) * moved[0] + t * moved[-1]


def _grow(
    rng: np.random.Generator,
    tree: dict[str, Vessel],
    name: str,
    branch: _Branch,
    radii: Mapping[str, float],
    lively: bool,
) -> None:
    """Put a branch on the tree, or not, as chance has it; its parent thins where it leaves."""
    pick = np.searchsorted(np.cumsum([site.chance for site in branch.sites]), rng.random())
    if pick == len(branch.sites):
        return
    site = branch.sites[pick]
    parent = tree.get(site.parent.replace("@", name[-1]))
    if parent is None:
        return
    i = _place(rng, parent, site)
    steps = np.diff(_points(branch.offsets), axis=0, prepend=[(0, 0, 0)])
    steps += rng.normal(0, _UNEVEN, steps.shape) * np.linalg.norm(steps, axis=1, keepdims=True)
    knots = parent.points_mm[i] + _mirror(name) * np.cumsum([(0, 0, 0), *steps], axis=0)
    curve, u = spline(knots)
    points = resample(curve, 0.0, u[-1], _SPACING_MM)
    if lively:
        points = _wandering(rng, name, points)
    along = arc_lengths(points)
    thick = parent.radii_mm[i]
    if branch.share is None:
        radius = min(radii[name], 0.9 * thick)
    else:
        share = branch.share * np.exp(rng.normal(0, 0.2))
        radius = thick * np.cbrt(share)
        tree[parent.name] = _thinned(parent, i, np.cbrt(1 - share))
    tree[name] = _vessel(
        name,
        points,
        radius * (1 - (1 - _FREE_END) * along / along[-1]),
        parent.travelled_mm[i] + along,
    )


def _place(rng: np.random.Generator, parent: Vessel, site: _Site) -> int:
    """Index of the parent's point at which a branch leaves."""
    along = arc_lengths(parent.points_mm)
    length = along[-1]
    places = np.array(site.at) + (length if site.at[0] < 0 else 0.0)
    if places[0] < places[1]:
        clear = min(1.0, 0.2 * length)
        places = np.clip(places, clear, length - clear)
    at = rng.uniform(*places)
    return int(np.abs(along - at).argmin())


def _thinned(vessel: Vessel, i: int, factor: float) -> Vessel:
    """The vessel with its radius multiplied by `factor` after point i, within 3 mm."""
    along = arc_lengths(vessel.points_mm)
    t = np.clip((along - along[i]) / 3, 0, 1) if i else np.ones_like(along)
    radii = vessel.radii_mm * (1 + (factor - 1) * t * t * (3 - 2 * t))
    return replace(vessel, radii_mm=np.maximum(radii, _SMALLEST_MM))


# Where stenoses and aneurysms are typical.
_STENOSIS_SITES = ("M1 @", "C5 @", "C6 @", "BA", "P2A @", "M2 superior @", "M2 inferior @")
# Parent, place along it as a fraction, direction of the dome on the left.
_ANEURYSM_SITES: tuple[tuple[str, float, tuple[float, float, float]], ...] = (
    ("ACoA", 0.5, (0.3, -0.8, 0.5)),
    ("C6 @", 1.0, (0.5, 0.8, -0.3)),
    ("M1 @", 1.0, (0.9, -0.4, -0.2)),
    ("BA", 1.0, (0.0, -0.2, 1.0)),
)


def _add_stenoses(rng: np.random.Generator, tree: dict[str, Vessel]) -> None:
    """Narrow one or two vessels, smoothly over 3 to 8 mm, to 30 to 60 % of their radius."""
    sites = [name.replace("@", side) for name in _STENOSIS_SITES for side in _sides(name)]
    sites = [name for name in sites if name in tree and arc_lengths(tree[name].points_mm)[-1] > 3]
    for name in rng.choice(sites, size=rng.integers(1, 3), replace=False):
        vessel = tree[name]
        along = arc_lengths(vessel.points_mm)
        # Within the vessel and, in a long one, near its beginning; its ends stay as they are.
        longest = min(8, along[-1])
        width = rng.uniform(max(3, 0.6 * longest), longest)
        middle = rng.uniform(width / 2, min(along[-1], 25) - width / 2)
        t = np.clip((along - middle) / width, -0.5, 0.5)
        narrow = 1 - (1 - rng.uniform(0.3, 0.6)) * np.cos(np.pi * t) ** 2
        tree[name] = replace(vessel, radii_mm=np.maximum(vessel.radii_mm * narrow, _SMALLEST_MM))


def _draw_aneurysm(rng: np.random.Generator, tree: Mapping[str, Vessel]) -> Vessel:
    """A sac on one of the typical forks: a short tube that bulges to a sphere."""
    sites = [
        (tree[name.replace("@", side)], fraction, direction)
        for name, fraction, direction in _ANEURYSM_SITES
        for side in _sides(name)
        if name.replace("@", side) in tree
    ]
    parent, fraction, direction = sites[rng.integers(len(sites))]
    i = round(fraction * (len(parent.points_mm) - 1))
    axis = _mirror(parent.name) * direction + rng.normal(0, 0.25, 3)
    size = rng.uniform(1.5, 4.0)
    length = 2 * size
    along = np.linspace(0, length, int(np.ceil(length / _SPACING_MM)) + 1)
    points = parent.points_mm[i] + along[:, None] * axis / np.linalg.norm(axis)
    sphere = size * np.sin(np.pi * (0.12 + 0.88 * along / length))  # from the neck to the top
    return _vessel("aneurysm", points, sphere, parent.travelled_mm[i] + along)


def _vessel(name: str, points: np.ndarray, radii: np.ndarray, travelled: np.ndarray) -> Vessel:
    names = [segment.name for segment in COW19.segments]
    segment = names.index(name) if name in names else -1
    return Vessel(name, segment, points, np.maximum(radii, _SMALLEST_MM), travelled)


def _sideless(name: str) -> str:
    return f"{name[:-1]}@" if name.endswith((" R", " L")) else name


def _sides(name: str) -> str:
    return "RL" if "@" in name else " "


def _mirror(name: str) -> np.ndarray:
    """(3,): what turns the left half of the mean head into the half that `name` lies in."""
    return np.array([-1.0 if name.endswith(" R") else 1.0, 1.0, 1.0])


def _points(table: str) -> np.ndarray:
    """(n, 3): the points "x y z, x y z"."""
    return np.array([row.split() for row in table.split(",") if row], float).reshape(-1, 3)
