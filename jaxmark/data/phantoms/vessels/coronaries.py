"""The coronary arteries of a drawn heart: centrelines on its surface, and radii.

Sources, of adults. Lumen diameters: left main 4.5 +- 0.5, proximal LAD 3.7 +- 0.4, distal LAD 1.9
+- 0.4; with right and left dominance proximal RCA 3.9 +- 0.6 and 2.8 +- 0.5, LCX 3.4 +- 0.5 and 4.2
+- 0.6 mm (Dodge et al., Circulation 1992). Left main: 10.5 +- 5.3 mm long; angle between LAD and
LCX 75 +- 23 degrees, 89 +- 21 with an intermediate artery (Medrano-Gracia et al., EuroIntervention
2016, 300 CT angiograms). Ostia above the bottoms of their sinuses: 12.6 +- 2.6 mm left, 13.2 +- 2.6
right (Cavalcanti et al. 2003, 51 hearts), and nearer to the non-coronary sinus than the middles of
their own: by 2 and 4.8 mm (PMID 11765479: distances to both commissures). Most LAD are 100 to 120,
most LCX 65 to 80 mm long, to where they can be followed (80 hearts; Gujarat). Dominance: 89.3 %
right, 5.2 % left, 5.5 % both (1500 people on CT; PMID 37402958). Intermediate artery 31 %, no left
main 0.4 % (700 people on CT; Diagn Interv Radiol 2009), 5 % in another 202 (PMID 18080097).
Branches by eye and anatomy.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from jaxmark.core.anatomy import Scheme, Segment
from jaxmark.data.phantoms.curves import arc_lengths, resample, spline
from jaxmark.data.phantoms.lumen import Vessel
from jaxmark.data.phantoms.solids import smooth_union
from jaxmark.data.phantoms.vessels.heart import (
    VESSEL_WALL_MM,
    Heart,
    chambers,
    great_vessels,
    in_frame,
    smooth_tube,
)
from jaxmark.data.phantoms.vessels.root import LEFT_SINUS, NON_CORONARY_SINUS

# The five cardiac landmarks of Tan et al. (2019). The paper does not say what the "origin of the
# non-coronary aortic valve commissure" is; here it is the lowest point at which the non-coronary
# leaflet is attached. The apex is the tip of the left ventricle's wall.
CORONARY5 = Scheme(
    name="coronary5",
    landmarks=(
        "left coronary ostium",
        "right coronary ostium",
        "non-coronary commissure",
        "left main bifurcation",
        "apex",
    ),
    # None is another's mirror image: a mirrored heart is no heart.
    symmetric_pairs=(),
    segments=(
        Segment("LM", ("left coronary ostium", "left main bifurcation"), may_be_missing=True),
        Segment("LAD", ("left main bifurcation",)),
        Segment("LCX", ("left main bifurcation",)),
        Segment("RCA", ("right coronary ostium",)),
    ),
    complete="a left main artery",
)

SPACING_MM = 0.45  # along the curves
_SMALLEST_MM = 0.4  # radius: about what a scan still shows
_RIGHT, _LEFT, _BOTH = "right", "left", "both"


@dataclass(frozen=True)
class Coronaries:
    """The arteries of one person, LPS mm; feeders come first."""

    vessels: tuple[Vessel, ...]
    veins: tuple[Vessel, ...]
    # (5, 3) in the scheme's order; NaN for what the person lacks.
    landmarks_mm: np.ndarray
    segment_present: np.ndarray  # (4,) bool
    dominance: str


class _Traits(NamedTuple):
    """How one person's arteries are laid out; lengths in the standard heart's mm."""

    dominance: str  # which artery reaches the inferior groove
    main_mm: float  # length of the left main artery; 0: there is none
    intermediate: bool
    girth: float  # factor of all radii
    left: "_Ostium"
    right: "_Ostium"


def draw_coronaries(rng: np.random.Generator, heart: Heart, no_left_main: float) -> Coronaries:
    """The arteries of a heart; `no_left_main` is the share of people who lack the left main."""
    traits = _draw_traits(rng, heart, no_left_main)
    tree = _Tree(rng, heart, traits.girth)
    bifurcation = _grow_left(rng, tree, traits)
    _grow_right(tree, traits)
    _grow_branches(rng, tree, traits)
    absent = traits.main_mm == 0
    landmarks = np.stack(
        [
            traits.left.place(heart),
            traits.right.place(heart),
            heart.root.wall(0.0, NON_CORONARY_SINUS),
            np.full(3, np.nan) if absent else bifurcation,
            heart.apex,
        ]
    )
    return Coronaries(
        vessels=tuple(_in_person(vessel, heart) for vessel in tree.vessels.values()),
        veins=(_in_person(_great_cardiac_vein(rng, tree.surface, heart), heart),),
        landmarks_mm=heart.to_lps(landmarks),
        segment_present=np.array([not absent, True, True, True]),
        dominance=traits.dominance,
    )


def _draw_traits(rng: np.random.Generator, heart: Heart, no_left_main: float) -> _Traits:
    dominance = str(rng.choice([_RIGHT, _LEFT, _BOTH], p=[0.893, 0.052, 0.055]))
    length = float(np.clip(rng.normal(10.5, 5.3), 2.5, 24.0)) / heart.size
    absent = bool(rng.random() < no_left_main)
    intermediate = bool(rng.random() < 0.31)
    girth = float(np.exp(rng.normal(0, 0.06)))
    heights = np.clip(rng.normal((12.6, 13.2), 2.6), 6, 20) / heart.size
    # 17 mm: about the sinuses' radius.
    left, right = rng.normal((LEFT_SINUS + 2.0 / 17, -4.8 / 17), 0.1)
    return _Traits(
        dominance=dominance,
        main_mm=0.0 if absent else length,
        intermediate=intermediate,
        girth=girth,
        left=_Ostium(float(heights[0]), float(left)),
        right=_Ostium(float(heights[1]), float(right)),
    )


def _grow_left(rng: np.random.Generator, tree: "_Tree", traits: _Traits) -> np.ndarray:
    """Left main, LAD and LCX; returns where the left main divides, or would.

    Left main and LAD are one curve, cut where the LCX leaves.
    """
    heart, surface = tree.heart, tree.surface
    ends = int(rng.choice(4, p=[0.3, 0.4, 0.2, 0.1]))  # most reach the apex, some go round it
    turn = rng.normal(0, 3)
    groove = [*_ANTERIOR_GROOVE, *_AROUND_APEX[:ends]]
    controls = [heart.on_ventricle(angle + turn, w, 3.0) for angle, w in groove]
    curve = surface.curve(traits.left.controls(heart), controls)
    cut = int(np.searchsorted(arc_lengths(curve), traits.main_mm))
    lad_radius = tree.radius(3.7, 0.4)
    if cut:
        main_radius = max(tree.radius(4.5, 0.5), 1.05 * lad_radius)
        tree.add("LM", curve[: cut + 1], main_radius, main_radius)
    tree.add("LAD", curve[cut:], lad_radius, tree.radius(1.9, 0.4))

    dominant = traits.dominance == _LEFT
    radius = tree.radius(4.2, 0.6) if dominant else tree.radius(3.4, 0.5)
    reach = {_RIGHT: rng.normal(208, 10), _BOTH: rng.normal(245, 8), _LEFT: 276.0}[traits.dominance]
    ring = [*np.arange(140.0, reach - 6, 16.0), reach]
    controls = [heart.on_ventricle(angle, -0.02, 4.0) for angle in ring]
    below = [heart.on_ventricle(a, w, 3.0) for a, w in _INFERIOR_GROOVE] if dominant else []
    if cut:
        angle = rng.normal(89, 21) if traits.intermediate else rng.normal(75, 23)
        ahead = _turned(curve, cut, controls[0], float(np.clip(angle, 35, 130)))
        start = [curve[cut], curve[cut] + 5.0 * ahead]
    else:
        # Beside the LAD's ostium, a little lower and further back.
        beside = traits.left.angle + rng.uniform(0.33, 0.42)
        start = _Ostium(traits.left.height - 1.5, beside).controls(heart)
    way, descending = _cut_at(surface.curve(start, [*controls, *below]), controls[-1])
    tree.add("LCX", way, radius, 0.55 * radius)
    if dominant:
        tree.add("PDA", descending, 0.5 * radius, 0.3 * radius)
    return curve[cut]


def _grow_right(tree: "_Tree", traits: _Traits) -> None:
    """The RCA, round the tricuspid valve, which the right ventricle's width moves; the PDA."""
    heart = tree.heart
    ring = [in_frame(30 + (s - 30) * heart.right, a, w) for s, a, w in _RIGHT_GROOVE]
    start = traits.right.controls(heart)
    if traits.dominance == _LEFT:
        radius = tree.radius(2.8, 0.5)
        tree.add("RCA", tree.surface.curve(start, ring[:4]), radius, 0.5 * radius)
        return
    radius = tree.radius(3.9, 0.6)
    below = [heart.on_ventricle(a, w, 3.0) for a, w in _INFERIOR_GROOVE]
    way, descending = _cut_at(tree.surface.curve(start, [*ring, *below]), ring[-1])
    tree.add("RCA", way, radius, 0.65 * radius)
    tree.add("PDA", descending, 0.55 * radius, 0.35 * radius)


def _grow_branches(rng: np.random.Generator, tree: "_Tree", traits: _Traits) -> None:
    """What leaves the great arteries: at a share of the parent's way, and where to."""
    on = tree.heart.on_ventricle
    for number, (share, w) in enumerate(((0.24, 0.62), (0.38, 0.76))):
        if rng.random() < 0.9:
            angle = 120 - 14 * number + rng.normal(0, 6)
            course = [on(angle - 8, w - 0.2, 2.5), on(angle, w, 2.0)]
            tree.branch("LAD", f"D{number + 1}", share, course, (2.1, 0.3))
    for number, (share, angle) in enumerate(((0.3, 152.0), (0.6, 188.0))):
        if rng.random() < 0.9:
            angle += rng.normal(0, 7)
            course = [on(angle + 4, w, 2.5) for w in (0.22, 0.45, 0.68)]
            tree.branch("LCX", f"OM{number + 1}", share, course, (2.1, 0.3))
    if traits.intermediate:
        course = [on(a, w, 2.5) for a, w in ((126, 0.2), (132, 0.42), (136, 0.66))]
        parent, share = ("LM", 1.0) if traits.main_mm else ("LAD", 0.02)
        tree.branch(parent, "ramus", share, course, (2.2, 0.3))
    course = [in_frame(62, -4, 24), in_frame(54, -14, 46), in_frame(40, -14, 62)]
    tree.branch("RCA", "acute marginal", 0.5, course, (1.9, 0.3))
    tree.branch("RCA", "conus", 0.08, [in_frame(36, 36, 14), in_frame(28, 42, 24)], (1.5, 0.2))
    if traits.dominance != _LEFT:
        course = [on(-108, 0.14, 2.5), on(-122, 0.36, 2.5)]
        tree.branch("RCA", "posterolateral", 1.0, course, (2.0, 0.3))
    course = [on(64, 0.3, -2.0), on(48, 0.34, -6.0), on(30, 0.38, -7.0)]
    tree.branch("LAD", "S1", 0.3, course, (1.3, 0.2), inside=True)


# Degrees around the left ventricle and shares of its length: the groove between the ventricles in
# front, round the apex, and below; and, in the ventricle's frame, the groove between right atrium
# and ventricle as far as the crux.
_ANTERIOR_GROOVE = (
    *((98, 0.13), (92, 0.19), (78, 0.28), (67, 0.40)),
    *((60, 0.54), (56, 0.70), (53, 0.85)),
)
_AROUND_APEX = ((45, 0.95), (-55, 0.98), (-75, 0.93))
_INFERIOR_GROOVE = ((-80, 0.10), (-76, 0.28), (-73, 0.48), (-70, 0.66))
_RIGHT_GROOVE = (
    *((45, 25, -1), (58, 12, 4), (62, -3, 6), (60, -17, 7), (50, -30, 6)),
    *((30, -37, 3), (8, -37, 1)),
)


@dataclass(frozen=True)
class _Ostium:
    """Where an artery leaves the root: height above the annulus (standard mm), angle (rad)."""

    height: float
    angle: float

    def place(self, heart: Heart) -> np.ndarray:
        return heart.root.wall(self.height, self.angle)

    def controls(self, heart: Heart) -> list[np.ndarray]:
        """The ostium, and a point further out: arteries leave the wall about at right angles."""
        place = self.place(heart)
        return [place, place + 5.0 * heart.root.outward(self.angle) + 0.6 * heart.root.axis]


class _Surface:
    """What the arteries of a heart run on."""

    def __init__(self, rng: np.random.Generator, heart: Heart) -> None:
        self._rng = rng
        self._heart = heart
        dense = [smooth_tube(*line, 3.0) for line in great_vessels(heart).values()]
        self._line = np.vstack([points for points, _ in dense])
        self._radii = np.concatenate([radii for _, radii in dense])

    def distance(self, points: np.ndarray) -> np.ndarray:
        """(N,): signed distance of (N, 3) places from chambers and great vessels with walls."""
        found = chambers(self._heart, points.T)["heart"]
        square = (points**2).sum(1)[:, None] + (self._line**2).sum(1) - 2 * points @ self._line.T
        apart = np.sqrt(np.maximum(square, 0)) - self._radii
        vessels = np.minimum(apart.min(1), self._heart.root.lumen(points.T))
        return smooth_union(2.0, found, vessels - VESSEL_WALL_MM)

    def _gradient(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) unit vectors away from the surface."""
        shifts = 0.5 * np.vstack([np.eye(3), -np.eye(3)])
        around = self.distance((points + shifts[:, None]).reshape(-1, 3)).reshape(2, 3, -1)
        gradient = (around[0] - around[1]).T
        return gradient / np.maximum(np.linalg.norm(gradient, axis=1, keepdims=True), 1e-6)

    def curve(self, start: list[np.ndarray], controls: list[np.ndarray]) -> np.ndarray:
        """(N, 3): from `start`, which stays, along controls that are moved onto the surface.

        Between them the curve winds a little, and stays 2.5 mm above the surface.
        """
        course, u = spline(np.array([*start, *controls]))
        points = course(np.linspace(0, u[-1], max(4, int(u[-1] / 4))))
        free = np.clip((arc_lengths(points) - 6) / 6, 0, 1)[:, None]
        points = points + free * self._rng.normal(0, 0.6, points.shape)
        for _ in range(4):
            miss = 2.5 - self.distance(points)
            points = points + 0.7 * free * np.clip(miss, -4, 4)[:, None] * self._gradient(points)
        smooth = points.copy()
        smooth[1:-1] = (points[:-2] + 2 * points[1:-1] + points[2:]) / 4
        points = points + free * (smooth - points)
        course, u = spline(points)
        return resample(course, 0.0, u[-1], SPACING_MM)


def _turned(curve: np.ndarray, at: int, target: np.ndarray, degrees: float) -> np.ndarray:
    """(3,): a unit vector that leaves a curve at this angle, on the side where `target` lies."""
    along = curve[min(at + 12, len(curve) - 1)] - curve[at]
    along = along / np.linalg.norm(along)
    across = target - curve[at]
    across = across - along * (along @ across)
    angle = np.radians(degrees)
    return np.cos(angle) * along + np.sin(angle) * across / np.linalg.norm(across)


def _cut_at(points: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A curve as far as it is nearest to a place, and what follows; they share that point."""
    nearest = int(np.linalg.norm(points - place, axis=1).argmin())
    return points[: nearest + 1], points[nearest:]


class _Tree:
    """The arteries that have grown on a heart, in the standard frame; feeders come first."""

    def __init__(self, rng: np.random.Generator, heart: Heart, girth: float) -> None:
        self._rng = rng
        self._girth = girth
        self.heart = heart
        self.surface = _Surface(rng, heart)
        self.vessels: dict[str, Vessel] = {}

    def radius(self, mean: float, sd: float) -> float:
        """Of a person's artery, from mean and spread of its diameter, mm."""
        return self._girth * max(0.5 * mean, self._rng.normal(mean, sd)) / 2

    def add(self, name: str, points: np.ndarray, first: float, last: float) -> Vessel:
        """An artery whose radius falls from one value to the other."""
        self.vessels[name] = _tapered(name, points, first, last)
        return self.vessels[name]

    def branch(
        self,
        parent: str,
        name: str,
        share: float,
        controls: list[np.ndarray],
        diameter: tuple[float, float],
        inside: bool = False,
    ) -> None:
        """A branch that leaves at a share of its parent's way; `inside`: within the muscle."""
        stem = self.vessels[parent]
        at = round(share * (len(stem.points_mm) - 1))
        start = stem.points_mm[at]
        if inside:
            course, u = spline(np.array([start, *controls]))
            points = resample(course, 0.0, u[-1], SPACING_MM)
        else:
            points = self.surface.curve([start], controls)
        radius = min(self.radius(*diameter), 0.9 * float(stem.radii_mm[at]))
        drawn = self.add(name, points, radius, 0.5 * radius)
        way = stem.travelled_mm[at] + drawn.travelled_mm
        self.vessels[name] = replace(drawn, travelled_mm=way)


def _tapered(name: str, points: np.ndarray, first: float, last: float) -> Vessel:
    along = arc_lengths(points)
    radii = first + (last - first) * along / max(along[-1], 1e-6)
    names = [segment.name for segment in CORONARY5.segments]
    segment = names.index(name) if name in names else -1
    return Vessel(name, segment, points, np.maximum(radii, _SMALLEST_MM), along)


def _great_cardiac_vein(rng: np.random.Generator, surface: _Surface, heart: Heart) -> Vessel:
    """The vein beside the LAD, round the left groove to the coronary sinus."""
    groove = ((66, 0.72), (72, 0.5), (84, 0.3), (106, 0.12))
    beside = [heart.on_ventricle(a, w, 4.0) for a, w in groove]
    ring = [heart.on_ventricle(a, -0.08, 6.0) for a in range(128, 269, 20)]
    points = surface.curve(beside[:1], [*beside[1:], *ring, in_frame(16, -20, -8)])
    return _tapered("great cardiac vein", points, 1.2, rng.uniform(3.0, 4.5))


def _in_person(vessel: Vessel, heart: Heart) -> Vessel:
    """From the standard frame to LPS; radii were drawn in mm."""
    return replace(
        vessel,
        points_mm=heart.to_lps(vessel.points_mm),
        travelled_mm=heart.size * vessel.travelled_mm,
    )
