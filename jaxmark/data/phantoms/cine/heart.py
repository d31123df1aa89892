"""Sizes of a person's heart, healthy or ill, and how they change from end-diastole to end-systole.

Sources, all of adults; SDs are between people:

- LV diameter 47.6 (SD 4) mm, walls 6 to 10 mm, RV basal diameter 33 (4) mm: Lang et al., J Am Soc
  Echocardiogr 2015, men and women together.
- Mitral annulus 29 (4) mm in men and 26 (4) mm in women from front to back, tricuspid annulus 31
  (5) mm in four chambers: Ricci et al., J Cardiovasc Magn Reson 2020. The mitral annulus is a
  saddle, wider from side to side; ours is 32 (3) mm.
- The mitral plane moves by 12 to 16 mm: the usual range of mitral annular plane systolic excursion.

What illness does to them (wall of 15 mm and more, a dilated LV that hardly shortens, an enlarged
RV) follows the groups of Bernard et al., IEEE Trans Med Imaging 2018; by how much is ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

# Share of people with each illness, by scanner: B's hospital sees more of the ill.
GROUPS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "A": {"healthy": 0.64, "hypertrophic": 0.10, "dilated": 0.10, "RV": 0.06, "infarct": 0.10},
        "B": {"healthy": 0.20, "hypertrophic": 0.20, "dilated": 0.20, "RV": 0.20, "infarct": 0.20},
    }
)
# Where the LV is widest: a share of the way from the mitral plane to the apex.
WIDEST = 0.42
# Share of the LV's wall that its apex has, and that the RV's free wall is thick.
APEX_WALL = 0.6
RV_WALL_MM = 3.0


@dataclass(frozen=True)
class Heart:
    """A person's heart at end-diastole, and what its beat does; mm and degrees."""

    group: str
    lv_diameter: float  # inner, where it is widest
    wall: float
    # Thickness of the septum by that of the other walls.
    septum: float
    length: float  # from the mitral plane to the cavity's apex
    annulus: float  # mitral
    # Share of the inner diameter that is lost at end-systole.
    shortening: float
    mapse: float  # how far the mitral plane moves to the apex
    rv: float  # from the septum to the free wall, at the base
    # Share of it that is lost at end-systole.
    rv_shortening: float
    rv_arc: float  # between the insertion points, seen from the LV's centre
    # A scar: direction of its middle, half its width (0: none), share of the wall that is left.
    scar: tuple[float, float, float]
    left_atrium: float  # diameter
    fat: float  # epicardial, mean thickness


@dataclass(frozen=True)
class Moment:
    """The heart at one contraction, 0 (end-diastole) to 1 (end-systole); mm."""

    heart: Heart
    contraction: float
    radius: float  # inner, where the LV is widest
    wall: float
    plane: float  # how far the mitral plane has come
    length: float  # from it to the cavity's apex
    annulus: float
    rv: float
    left_atrium: float

    def inner_radius(self, level: float) -> float:
        """The cavity's radius at a share of the way from the mitral plane to the apex."""
        return float(cavity_width(np.array(level), 1.0, self.annulus / 2, self.radius))


def cavity_width(s: np.ndarray, length: float, base: float, widest: float) -> np.ndarray:
    """Half the width of a chamber at `s` (mm) from its base: `base` there, 0 at `length`."""
    u = np.clip(s / length, 0, 1)
    swell = base + (widest - base) * np.sin(np.pi / 2 * np.clip(u / WIDEST, 0, 1))
    taper = widest * np.sqrt(np.clip(1 - ((u - WIDEST) / (1 - WIDEST)) ** 2, 0, 1))
    return np.where(u < WIDEST, swell, taper)


def draw_heart(rng: np.random.Generator, scanner: str) -> Heart:
    """A person of the hospital where this scanner stands."""
    shares = GROUPS[scanner]
    group = str(rng.choice(list(shares), p=list(shares.values())))
    size = rng.normal(1.0, 0.07)  # of the whole person
    diameter = 47.6 * size * rng.normal(1.0, 0.05)
    wall = np.clip(rng.normal(7.8, 1.0) * size, 6.0, 10.0)
    septum, shortening = rng.normal(1.05, 0.05), rng.normal(0.35, 0.03)
    mapse, rv, arc = rng.normal(14.0, 1.2), 33 * size * rng.normal(1, 0.09), rng.normal(101, 12)
    rv_shortening, atrium = rng.normal(0.32, 0.04), rng.normal(37, 3.5) * size
    scar = (0.0, 0.0, 1.0)
    if group == "hypertrophic":
        wall, septum, diameter = wall * rng.uniform(1.4, 1.9), rng.uniform(1.0, 1.5), diameter * 0.9
        shortening, mapse, atrium = shortening * 1.12, mapse * 0.75, atrium * 1.2
    elif group == "dilated":
        diameter, wall = diameter * rng.uniform(1.25, 1.5), wall * rng.uniform(0.85, 1.0)
        shortening, mapse = rng.uniform(0.08, 0.18), rng.uniform(4, 8)
        rv_shortening, atrium = rv_shortening * 0.7, atrium * 1.25
    elif group == "RV":
        rv, arc = rv * rng.uniform(1.3, 1.65), arc + rng.uniform(5, 20)
        rv_shortening *= 0.6
    elif group == "infarct":
        # Away from the RV, whose insertion points are read from the labels of living muscle.
        scar = (rng.uniform(-120, 120), rng.uniform(25, 50), rng.uniform(0.45, 0.75))
        shortening, mapse = shortening * rng.uniform(0.55, 0.85), mapse * rng.uniform(0.6, 0.85)
        diameter *= rng.uniform(1.0, 1.2)
    return Heart(
        group=group,
        lv_diameter=float(diameter),
        wall=float(wall),
        septum=float(septum),
        length=float(rng.normal(88, 5) * size),
        annulus=float(np.clip(rng.normal(32, 2.5) * size, 24, 0.95 * diameter)),
        shortening=float(np.clip(shortening, 0.05, 0.5)),
        mapse=float(np.clip(mapse, 3, 18)),
        rv=float(rv),
        rv_shortening=float(rv_shortening),
        rv_arc=float(np.clip(arc, 62, 140)),
        scar=scar,
        left_atrium=float(atrium),
        fat=float(rng.gamma(3.0, 1.1)),
    )


def at_contraction(heart: Heart, contraction: float) -> Moment:
    """The heart when `contraction` of its beat is done.

    Muscle keeps its volume: its cross-section grows as the LV's length shrinks, so that the wall
    thickens by about a half in the healthy.
    """
    plane = contraction * heart.mapse
    length = heart.length - plane
    before = heart.lv_diameter / 2
    radius = before * (1 - contraction * heart.shortening)
    muscle = ((before + heart.wall) ** 2 - before**2) * heart.length / length
    return Moment(
        heart=heart,
        contraction=contraction,
        radius=radius,
        wall=float(np.sqrt(radius**2 + muscle) - radius),
        plane=plane,
        length=length,
        # Ricci et al.: 3 to 4 mm wider at end-systole, when the healthy LV is narrower than it.
        annulus=min(heart.annulus + 3.5 * contraction, 2.5 * radius),
        rv=heart.rv * (1 - contraction * heart.rv_shortening),
        left_atrium=heart.left_atrium * (0.88 + 0.12 * contraction),
    )
