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


def draw_coronaries(rng: np.random.Generator, heart: Heart, no_left_main: float) -> Coronaries:
    """The arteries of a heart; `no_left_main` is the share of people who lack the left main."""
    dominance = str(rng.choice([_RIGHT, _LEFT, _BOTH], p=[0.893, 0.052, 0.055]))
    length = float(np.clip(rng.normal(10.5, 5.3), 2.5, 24.0)) / heart.size
    absent = bool(rng.random() < no_left_main)
    intermediate = bool(rng.random() < 0.31)
    girth = float(np.exp(rng.normal(0, 0.06)))
    surface = _Surface(rng, heart)
    left_high, right_high = (float(np.clip(x, 6, 20)) for x in rng.normal((12.6, 13.2), 2.6))
    left_at, right_at = rng.normal((LEFT_SINUS + 2.0 / 17, -4.8 / 17), 0.1)
    left = _Ostium(left_high / heart.size, left_at)
    right = _Ostium(right_high / heart.size, right_at)

    def radius(mean: float, sd: float) -> float:
        return girth * max(0.5 * mean, rng.normal(mean, sd)) / 2

    # --- left: the left main and the LAD are one curve, cut where the LCX leaves
    groove = [(98, 0.13), (92, 0.19), (78, 0.28), (67, 0.40), (60, 0.54), (56, 0.70), (53, 0.85)]
    groove += [(45, 0.95), (-55, 0.98), (-75, 0.93)][: int(rng.choice(4, p=[0.3, 0.4, 0.2, 0.1]))]
    turn = rng.normal(0, 3)
    controls = [heart.on_ventricle(angle + turn, w, 3.0) for angle, w in groove]
    curve = surface.curve(left.controls(heart), controls)
    cut = 0 if absent else int(np.searchsorted(arc_lengths(curve), length))
    lad_radius, end_radius = radius(3.7, 0.4), radius(1.9, 0.4)
    main_radius = max(radius(4.5, 0.5), 1.05 * lad_radius)
    lad = _tapered("LAD", 1, curve[cut:], lad_radius, end_radius)

    lcx_radius = radius(4.2, 0.6) if dominance == _LEFT else radius(3.4, 0.5)
    reach = {_RIGHT: rng.normal(208, 10), _BOTH: rng.normal(245, 8), _LEFT: 276.0}[dominance]
    ring = np.arange(140.0, reach - 6, 16.0)
    controls = [heart.on_ventricle(angle, -0.02, 4.0) for angle in (*ring, reach)]
    groove_below = [heart.on_ventricle(a, w, 3.0) for a, w in _INFERIOR_GROOVE]
    crux = controls[-1]
    if dominance == _LEFT:
        controls += groove_below
    if absent:
        # Beside the LAD's, a little lower and further back.
        other = _Ostium(left.height - 1.5, left.angle + rng.uniform(0.33, 0.42))
        lcx_curve = surface.curve(other.controls(heart), controls)
    else:
        opening = rng.normal(89, 21) if intermediate else rng.normal(75, 23)
        ahead = _turned(curve, cut, controls[0], float(np.clip(opening, 35, 130)))
        lcx_curve = surface.curve([curve[cut], curve[cut] + 5.0 * ahead], controls)
    lcx_curve, below = _cut_at(lcx_curve, crux)
    lcx = _tapered("LCX", 2, lcx_curve, lcx_radius, 0.55 * lcx_radius)
    tree = {} if absent else {"LM": _tapered("LM", 0, curve[: cut + 1], main_radius, main_radius)}
    tree |= {"LAD": lad, "LCX": lcx}
    if dominance == _LEFT:
        tree["PDA"] = _tapered("PDA", -1, below, 0.5 * lcx_radius, 0.3 * lcx_radius)

    # --- right: round the tricuspid valve, which the right ventricle's width moves
    rca_radius = radius(2.8, 0.5) if dominance == _LEFT else radius(3.9, 0.6)
    controls = [in_frame(30 + (s - 30) * heart.right, a, w) for s, a, w in _RIGHT_GROOVE]
    if dominance == _LEFT:
        controls = controls[:4]
    crux = controls[-1]
    if dominance != _LEFT:
        controls += groove_below
    rca_curve, below = _cut_at(surface.curve(right.controls(heart), controls), crux)
    tree["RCA"] = _tapered("RCA", 3, rca_curve, rca_radius, 0.65 * rca_radius)
    if dominance != _LEFT:
        tree["PDA"] = _tapered("PDA", -1, below, 0.55 * rca_radius, 0.35 * rca_radius)

    # --- branches: where they leave (share of the parent's way), and where they go
    for number, (share, w) in enumerate(((0.24, 0.62), (0.38, 0.76))):
        if rng.random() < 0.9:
            angle = 120 - 14 * number + rng.normal(0, 6)
            course = [
                heart.on_ventricle(angle - 8, w - 0.2, 2.5),
                heart.on_ventricle(angle, w, 2.0),
            ]
            _branch(tree, surface, "LAD", f"D{number + 1}", share, course, radius(2.1, 0.3))
    for number, (share, angle) in enumerate(((0.3, 152), (0.6, 188))):
        if rng.random() < 0.9:
            angle += rng.normal(0, 7)
            course = [heart.on_ventricle(angle + 4, w, 2.5) for w in (0.22, 0.45, 0.68)]
            _branch(tree, surface, "LCX", f"OM{number + 1}", share, course, radius(2.1, 0.3))
    if intermediate:
        course = [heart.on_ventricle(a, w, 2.5) for a, w in ((126, 0.2), (132, 0.42), (136, 0.66))]
        parent = "LAD" if absent else "LM"
        _branch(tree, surface, parent, "ramus", 0.02 if absent else 1.0, course, radius(2.2, 0.3))
    marginal = [in_frame(62, -4, 24), in_frame(54, -14, 46), in_frame(40, -14, 62)]
    _branch(tree, surface, "RCA", "acute marginal", 0.5, marginal, radius(1.9, 0.3))
    conus = [in_frame(36, 36, 14), in_frame(28, 42, 24)]
    _branch(tree, surface, "RCA", "conus", 0.08, conus, radius(1.5, 0.2))
    if dominance != _LEFT:
        lower = [heart.on_ventricle(angle, w, 2.5) for angle, w in ((-108, 0.14), (-122, 0.36))]
        _branch(tree, surface, "RCA", "posterolateral", 1.0, lower, radius(2.0, 0.3))
    deep = [
        heart.on_ventricle(a, w, h) for a, w, h in ((64, 0.3, -2), (48, 0.34, -6), (30, 0.38, -7))
    ]
    _branch(tree, None, "LAD", "S1", 0.3, deep, radius(1.3, 0.2))

    root = heart.root
    landmarks = np.stack(
        [
            left.place(heart),
            right.place(heart),
            root.wall(0.0, NON_CORONARY_SINUS),
            np.full(3, np.nan) if absent else curve[cut],
            heart.apex,
        ]
    )
    return Coronaries(
        vessels=tuple(_in_person(vessel, heart) for vessel in tree.values()),
        veins=tuple(_in_person(vessel, heart) for vessel in _veins(rng, surface, heart)),
        landmarks_mm=heart.to_lps(landmarks),
        segment_present=np.array([not absent, True, True, True]),
        dominance=dominance,
    )


# The groove between the ventricles below, and the one between right atrium and ventricle, to the
# crux: degrees and share of the length; distances in the left ventricle's frame.
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


def _branch(
    tree: dict[str, Vessel],
    surface: _Surface | None,
    parent: str,
    name: str,
    share: float,
    controls: list[np.ndarray],
    radius: float,
) -> None:
    """Put a branch on the tree; it leaves at a share of its parent's way. None: inside the wall."""
    stem = tree[parent]
    at = round(share * (len(stem.points_mm) - 1))
    start = stem.points_mm[at]
    if surface is None:
        course, u = spline(np.array([start, *controls]))
        points = resample(course, 0.0, u[-1], SPACING_MM)
    else:
        points = surface.curve([start], controls)
    radius = min(radius, 0.9 * float(stem.radii_mm[at]))
    drawn = _tapered(name, -1, points, radius, 0.5 * radius)
    tree[name] = replace(drawn, travelled_mm=stem.travelled_mm[at] + drawn.travelled_mm)


def _tapered(name: str, segment: int, points: np.ndarray, first: float, last: float) -> Vessel:
    along = arc_lengths(points)
    radii = first + (last - first) * along / max(along[-1], 1e-6)
    return Vessel(name, segment, points, np.maximum(radii, _SMALLEST_MM), along)


def _veins(rng: np.random.Generator, surface: _Surface, heart: Heart) -> list[Vessel]:
    """The great cardiac vein beside the LAD, round the left groove to the coronary sinus."""
    beside = [
        heart.on_ventricle(a, w, 4.0) for a, w in ((66, 0.72), (72, 0.5), (84, 0.3), (106, 0.12))
    ]
    ring = [heart.on_ventricle(a, -0.08, 6.0) for a in (128, 148, 168, 188, 208, 228, 248, 268)]
    points = surface.curve(beside[:1], [*beside[1:], *ring, in_frame(16, -20, -8)])
    return [_tapered("great cardiac vein", -1, points, 1.2, rng.uniform(3.0, 4.5))]


def _in_person(vessel: Vessel, heart: Heart) -> Vessel:
    """From the standard frame to LPS; radii were drawn in mm."""
    return replace(
        vessel,
        points_mm=heart.to_lps(vessel.points_mm),
        travelled_mm=heart.size * vessel.travelled_mm,
    )
