"""The aorta of one person and its branches: centrelines, radii, and where each branch leaves.

Places are LPS mm; the origin lies in front of the spine about where the coeliac trunk leaves.

Sources, of adults. Along the abdominal aorta: coeliac to superior mesenteric 14.3 +- 2.7, from
there to the inferior mesenteric artery 57.8 +- 8.0, from there to the bifurcation 35.2 +- 7.4 mm;
diameters 6.4 +- 1.6, 7.4 +- 1.7 and 3.6 +- 0.7 mm; several renal arteries in 16.8 % (Songur et al.
2010, 95 autopsies). Aorta at the left renal artery 20.1 +- 2.9 mm wide, and that artery 0.84 of
this below the superior mesenteric one (PMID 23262554, 20 aortas); either renal artery is the higher
one in about half of people. Ascending aorta 33.6 +- 4.1 mm (men), 31.1 +- 3.9 (women) (Mao et al.,
Acad Radiol 2008). At the arch: brachiocephalic trunk 12.5 +- 2.0, left common carotid 8.3 +- 1.5,
left subclavian artery 10.4 +- 2.2 mm (217 people on CT; Yan et al. 2017). Common iliac arteries 9.7
+- 1.8 (men), 8.5 +- 1.3 mm (women) (1340 people on CT; Ann Vasc Surg 2019,
10.1016/j.avsg.2019.05.030). Renal arteries 25 (right) and 29 mm2 (left) in section, which is 5.7
and 6.0 mm (202 people on CT; PMID 31106842). Left carotid and brachiocephalic arteries together
19.5 %, left vertebral artery from the arch 4 % (Medicina 2025, 61, 2059: 400 people on CT; the
former 13.6 % of 220 people, Tapia-Nanez et al., and 33.8 % of 164, Hosseinzadeh et al., 2024); of
the former 38 % share an ostium, the others' carotid leaves the trunk (Medwave 2015: 25 of 66). The
rest by eye and anatomy.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from jaxmark.core.anatomy import Scheme, Segment
from jaxmark.data.phantoms.curves import arc_lengths, resample, spline
from jaxmark.data.phantoms.lumen import Vessel

# Tan et al. (2019) have nine landmarks "at the bifurcation of the aorta and its main branches" and
# name none; these are the branches that an aorta has nine of.
_BRANCH_SEGMENTS = (
    "brachiocephalic trunk",
    "left common carotid artery",
    "left subclavian artery",
    "coeliac trunk",
    "superior mesenteric artery",
    "right renal artery",
    "left renal artery",
    "inferior mesenteric artery",
)
AORTA9 = Scheme(
    name="aorta9",
    landmarks=(*_BRANCH_SEGMENTS, "aortic bifurcation"),
    symmetric_pairs=(("right renal artery", "left renal artery"),),
    segments=(
        Segment("thoracic aorta", ("left subclavian artery", "coeliac trunk")),
        Segment("abdominal aorta", ("coeliac trunk", "aortic bifurcation")),
        *(
            Segment(name, (name,), may_be_missing=name.startswith("inferior"))
            for name in _BRANCH_SEGMENTS
        ),
        Segment("right common iliac artery", ("aortic bifurcation",)),
        Segment("left common iliac artery", ("aortic bifurcation",)),
    ),
    complete="all branches open",
)

SPACING_MM = 0.9  # along the curves
_SMALLEST_MM = 0.6
# Shares of a total of 16.8 % with a further renal artery: right, left, both sides.
_FURTHER_RENAL = (0.095, 0.042, 0.031)


@dataclass(frozen=True)
class Aorta:
    """A person's aorta with its branches; feeders come first."""

    vessels: tuple[Vessel, ...]
    # (9, 3) LPS mm in the scheme's order: where branches' centrelines leave the aorta's wall; NaN
    # for what the person lacks.
    landmarks_mm: np.ndarray
    segment_present: np.ndarray
    # The outer wall of an aneurysm: its lumen is narrower, the rest is thrombus. None: no aneurysm.
    aneurysm: Vessel | None
    arch: str
    annulus_mm: np.ndarray  # (3,) where the aorta starts
    # (2, 3) where the kidneys' middles lie, right and left
    kidneys_mm: np.ndarray


def spine_front(z: np.ndarray | float) -> np.ndarray:
    """y (mm) of the spine's front at a height: hollow at the chest, bulging at the waist."""
    return 4 + 14 * np.cos(np.pi * (np.asarray(z, float) - 140) / 200)


def draw_aorta(rng: np.random.Generator, aneurysms: float) -> Aorta:
    """The aorta of one person; `aneurysms` is the share of people with one below the kidneys."""
    size = float(np.exp(rng.normal(0, 0.05)))
    course, u = spline(_aortic_line(rng, age=float(rng.beta(2.2, 1.5))) * size)
    points = resample(course, 0.0, u[-1], SPACING_MM)
    places = _draw_places(rng, points, size)
    points = points[arc_lengths(points) <= places.end]
    along = arc_lengths(points)
    width = float(rng.normal(20.1, 2.4))
    radii = _draw_radii(rng, along, places, width)
    ill = bool(rng.random() < aneurysms)
    aneurysm = None
    if ill:
        radii, outer = _swollen(rng, along, radii, places.superior + 28, places.end)
        aneurysm = Vessel("aneurysm", -1, points, outer, along)

    tree = _Tree(rng, Vessel("aorta", -1, points, radii, along), size)
    arch = _grow_arch(rng, tree, places)
    # Thrombus closes the lower artery in some.
    kidneys = _grow_belly(rng, tree, places, width, closed=bool(ill and rng.random() < 0.3))
    _grow_legs(rng, tree)

    ends = {
        "thoracic aorta": (places.subclavian, places.coeliac),
        "abdominal aorta": (places.coeliac, along[-1]),
    }
    pieces = [_piece(tree.aorta, "ascending aorta and arch", 0.0, places.subclavian)]
    pieces += [_piece(tree.aorta, name, *span) for name, span in ends.items()]
    ostia = {**tree.ostia, "aortic bifurcation": points[-1]}
    there = {*tree.branches, *ends}
    return Aorta(
        vessels=(*pieces, *tree.branches.values()),
        landmarks_mm=np.stack([ostia.get(name, np.full(3, np.nan)) for name in AORTA9.landmarks]),
        segment_present=np.array([segment.name in there for segment in AORTA9.segments]),
        aneurysm=aneurysm,
        arch=arch,
        annulus_mm=points[0],
        kidneys_mm=kidneys,
    )


class _Places(NamedTuple):
    """Where branches leave: mm along the aorta from the annulus."""

    trunk: float
    carotid: float
    subclavian: float
    coeliac: float
    superior: float
    inferior: float
    end: float


def _draw_places(rng: np.random.Generator, points: np.ndarray, size: float) -> _Places:
    along = arc_lengths(points)
    coeliac = float(along[np.abs(points[:, 2] - size * rng.normal(0, 4)).argmin()])
    gaps = np.maximum(rng.normal((14.3, 57.8, 35.2), (2.7, 8.0, 7.4)), (8, 35, 18))
    below = coeliac + np.cumsum(gaps)
    top = float(along[points[: len(points) // 2, 2].argmax()])
    trunk = top - rng.uniform(16, 24) * size
    carotid = trunk + rng.normal(13.5, 2.0)
    return _Places(trunk, carotid, carotid + rng.normal(14.5, 3.0), coeliac, *below.tolist())


def _draw_radii(
    rng: np.random.Generator, along: np.ndarray, places: _Places, width: float
) -> np.ndarray:
    """(N,) of the lumen; `width` is the aorta's at the left renal artery."""
    mean, sd = (33.6, 3.6) if rng.random() < 0.6 else (31.1, 3.4)
    ascending = rng.normal(mean, sd) / 2
    above = {0.0: 0.74, 14.0: 1.0, 30.0: 0.86, 60.0: 1.0, places.trunk: 0.93}
    above[places.subclavian + 15] = 0.80
    below = {places.coeliac - 40: 1.18, places.superior + 17: 1.0, places.end: 0.86}
    radii = [share * ascending for share in above.values()]
    radii += [share * width / 2 for share in below.values()]
    return np.interp(along, [*above, *below], radii)


class _Tree:
    """An aorta and the branches that have grown on it."""

    def __init__(self, rng: np.random.Generator, aorta: Vessel, size: float) -> None:
        self._rng = rng
        self._size = size
        self.aorta = aorta
        self.branches: dict[str, Vessel] = {}
        # Where the centreline of each comes out of its parent's wall, LPS mm.
        self.ostia: dict[str, np.ndarray] = {}

    def grow(
        self,
        name: str,
        parent: Vessel,
        at: float,
        offsets: str | np.ndarray,
        diameter: tuple[float, float],
        free_end: float = 0.8,
    ) -> Vessel:
        """A branch.

        Args:
          at: mm along the parent; it starts there on the parent's centreline, so that the lumen is
            one.
          offsets: points "x y z, ..." from there, mm.
          diameter: mean and spread between people where it leaves.
          free_end: what is left of the radius where it ends.
        """
        offsets = _points(offsets) if isinstance(offsets, str) else offsets
        steps = np.diff(offsets * self._size, axis=0, prepend=[(0, 0, 0)])
        lengths = np.linalg.norm(steps, axis=1, keepdims=True)
        steps += self._rng.normal(0, 0.10, steps.shape) * lengths
        start = parent.points_mm[np.abs(parent.travelled_mm - at).argmin()]
        curve, u = spline(start + np.cumsum([(0, 0, 0), *steps], axis=0))
        points = resample(curve, 0.0, u[-1], SPACING_MM)
        apart = np.linalg.norm(points[:, None] - parent.points_mm, axis=2) - parent.radii_mm
        self.ostia[name] = points[np.argmax(apart.min(1) > 0)]
        along = arc_lengths(points)
        mean, sd = diameter
        radius = max(0.5 * mean, self._rng.normal(mean, sd)) / 2
        radii = radius * (1 - (1 - free_end) * along / along[-1])
        radii = np.maximum(radii, _SMALLEST_MM)
        self.branches[name] = Vessel(name, _segment(name), points, radii, along)
        return self.branches[name]


def _grow_arch(rng: np.random.Generator, tree: _Tree, places: _Places) -> str:
    """The arch's branches; returns which variant it is."""
    kinds = ("usual", "common ostium", "carotid from trunk")
    kind = str(rng.choice(kinds, p=[0.805, 0.074, 0.121]))
    offsets = "-3 -1 14, -9 0 28, -16 4 42"
    trunk = tree.grow("brachiocephalic trunk", tree.aorta, places.trunk, offsets, (12.5, 1.3), 0.9)
    fork = float(trunk.travelled_mm[-1])
    offsets = "-2 -3 9, -5 -3 26, -6 2 60"
    tree.grow("right common carotid artery", trunk, fork, offsets, (7.2, 0.7))
    offsets = "-8 5 6, -22 12 12, -42 8 10, -66 -2 -2, -90 -10 -8"
    tree.grow("right subclavian artery", trunk, fork, offsets, (9.0, 0.9))
    if kind == "usual":
        stem, at, offsets = tree.aorta, places.carotid, "2 0 13, 4 2 28, 8 2 48, 14 3 80"
    else:
        at = 15.0 if kind == "common ostium" else 24.0
        stem, offsets = trunk, "6 1 5, 14 1 16, 21 2 36, 26 3 70"
    tree.grow("left common carotid artery", stem, at, offsets, (8.3, 1.1))
    offsets = "3 3 14, 7 6 32, 12 8 48, 26 8 58, 48 0 54, 74 -10 46"
    left = tree.grow("left subclavian artery", tree.aorta, places.subclavian, offsets, (10.4, 1.6))
    if rng.random() < 0.04:
        at = (places.carotid + places.subclavian) / 2
        offsets = "3 3 13, 6 6 34, 9 14 60, 11 18 85"
        tree.grow("left vertebral artery", tree.aorta, at, offsets, (4.2, 0.6))
        return f"{kind}, left vertebral artery"
    tree.grow("left vertebral artery", left, 52.0, "1 4 10, -2 10 26, -3 12 50", (3.8, 0.6))
    return kind


def _grow_belly(
    rng: np.random.Generator, tree: _Tree, places: _Places, width: float, closed: bool
) -> np.ndarray:
    """The belly's branches, without the lower mesenteric one if it is closed.

    Returns:
      (2, 3) the middles of the right and the left kidney.
    """
    aorta = tree.aorta
    offsets = "-1 -13 0, 0 -20 -6, 1 -31 -7"
    trunk = tree.grow("coeliac trunk", aorta, places.coeliac, offsets, (6.4, 1.6), 0.95)
    fork = float(trunk.travelled_mm[-1])
    offsets = "7 -2 5, 18 4 12, 30 10 6, 44 22 14, 58 34 10, 72 44 16"
    tree.grow("splenic artery", trunk, fork, offsets, (5.2, 0.6))
    offsets = "-7 -4 -4, -18 -6 -8, -30 -4 2, -40 0 18, -52 -2 30"
    tree.grow("common hepatic artery", trunk, fork, offsets, (4.8, 0.6))
    offsets = "1 -14 -3, 1 -22 -14, -1 -27 -34, -4 -31 -62, -12 -34 -92, -22 -36 -118"
    name = "superior mesenteric artery"
    tree.grow(name, aorta, places.superior, offsets, (7.4, 1.7), 0.5)
    if not closed:
        offsets = "3 -11 -4, 7 -15 -14, 13 -17 -34, 17 -17 -60"
        name = "inferior mesenteric artery"
        tree.grow(name, aorta, places.inferior, offsets, (3.6, 0.7), 0.6)

    left = places.superior + 0.84 * width + rng.normal(0, 3)
    right = left + rng.normal(0, 6)
    further = int(rng.choice(4, p=[*_FURTHER_RENAL, 1 - sum(_FURTHER_RENAL)]))
    kidneys = []
    for number, (side, at, name) in enumerate(((-1, right, "right"), (1, left, "left"))):
        mirror = np.array([side, 1, 1])
        way = np.array([(13, -3, -1), (24, 2, -4), (36, 10, -8), (46, 17, -9)]) * mirror
        renal = tree.grow(f"{name} renal artery", aorta, at, way, (5.8, 0.7), 0.85)
        kidneys.append(renal.points_mm[-1] + np.array([14.0, 6.0, -2.0]) * mirror)
        if further in (number, 2):
            way = np.array([(12, -2, 0), (24, 4, 6), (40, 14, 10), (52, 20, 8)]) * mirror
            at += rng.uniform(12, 32)
            tree.grow(f"further {name} renal artery", aorta, at, way, (3.4, 0.5))
    return np.stack(kidneys)


def _grow_legs(rng: np.random.Generator, tree: _Tree) -> None:
    """The iliac arteries of both sides."""
    end = float(tree.aorta.travelled_mm[-1])
    for side, name in ((-1, "right"), (1, "left")):
        mirror = np.array([side * np.clip(rng.normal(1.0, 0.25), 0.5, 1.6), 1, 1])
        way = [(5.5, 1, -11), (13, 4, -26), (22, 10, -46), (32, 13, -64), (42, 6, -92)]
        common = tree.grow(
            f"{name} common iliac artery",
            tree.aorta,
            end,
            np.array(way) * mirror,
            (9.3, 1.3),
            0.85,
        )
        way = [(3, 7, -8), (2, 18, -22), (4, 26, -40)]
        tree.grow(f"{name} internal iliac artery", common, 56.0, np.array(way) * mirror, (6.0, 0.8))


# The mean aorta from the annulus; below the diaphragm and in the chest it lies on the spine.
_ASCENDING_MM = "-1 -52 150, -8 -56 171, -14 -57 196, -13 -50 222, -4 -34 242, 9 -13 246, 20 6 236"
_ON_SPINE_MM = ((25, 210, 2), (25, 180, 3), (22, 140, 5), (18, 95, 8), (13, 50, 10), (9, 10, 12))
_BELOW_MM = ((7, -25, 13), (6, -60, 13), (4, -90, 13), (3, -120, 13), (2, -160, 13))


def _aortic_line(rng: np.random.Generator, age: float) -> np.ndarray:
    """(n, 3) points of a person's aorta, longer than it is; `age` from 0 to 1 makes it wind."""
    down = np.array([(x, spine_front(z) - gap, z) for x, z, gap in (*_ON_SPINE_MM, *_BELOW_MM)])
    up = _points(_ASCENDING_MM)
    up = up + rng.normal(0, (3, 3, 2), 3) * np.linspace(1, 0.3, len(up))[:, None]
    up[3:6, 2] += rng.normal(4 * age, 5)  # how high the arch is
    z = down[:, 2]
    for period, amount in ((230.0, 5.0), (120.0, 3.0)):
        sway = amount * (0.3 + age) * rng.normal(0, 1, 2)
        phase = rng.uniform(0, 2 * np.pi, 2)
        wave = (
            np.sin(2 * np.pi * z[:, None] / period + phase)
            * sway
            * np.clip((230 - z) / 60, 0, 1)[:, None]
        )
        down[:, 0] += wave[:, 0]
        down[:, 1] -= np.abs(wave[:, 1])  # it cannot sink into the spine
    return np.vstack([up, down])


def _swollen(
    rng: np.random.Generator, along: np.ndarray, radii: np.ndarray, first: float, last: float
) -> tuple[np.ndarray, np.ndarray]:
    """Radii of lumen and outer wall with an aneurysm between two places along the aorta."""
    middle = rng.uniform(first + 0.4 * (last - first), last - 12)
    half = min(middle - first, rng.uniform(22, 40))
    bump = np.exp(-2.2 * ((along - middle) / half) ** 2)
    outer = radii + rng.uniform(6, 18) * bump
    lumen = radii + rng.uniform(0.25, 0.9) * (outer - radii)
    return lumen, outer


def _piece(vessel: Vessel, name: str, first: float, last: float) -> Vessel:
    """What of a vessel lies between two places along it."""
    near = (vessel.travelled_mm >= first - SPACING_MM) & (vessel.travelled_mm <= last + SPACING_MM)
    return replace(
        vessel,
        name=name,
        segment=_segment(name),
        points_mm=vessel.points_mm[near],
        radii_mm=vessel.radii_mm[near],
        travelled_mm=vessel.travelled_mm[near],
    )


def _segment(name: str) -> int:
    """Index into the scheme's segments; -1 for what is none."""
    names = [segment.name for segment in AORTA9.segments]
    return names.index(name) if name in names else -1


def _points(table: str) -> np.ndarray:
    """(n, 3): the points "x y z, x y z"."""
    return np.array([row.split() for row in table.split(",")], float)
