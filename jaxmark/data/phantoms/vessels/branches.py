"""The aorta of one person and its branches: centrelines, radii, and where each branch leaves.

Places are LPS mm; the origin lies in front of the spine about where the coeliac trunk leaves.

Sources, of adults. Along the abdominal aorta: coeliac to superior mesenteric 14.3 +- 2.7, from there
to the inferior mesenteric artery 57.8 +- 8.0, from there to the bifurcation 35.2 +- 7.4 mm;
diameters 6.4 +- 1.6, 7.4 +- 1.7 and 3.6 +- 0.7 mm; several renal arteries in 16.8 % (Songur et al.
2010, 95 autopsies). Aorta at the left renal artery 20.1 +- 2.9 mm wide, and that artery 0.84 of this
below the superior mesenteric one (PMID 23262554, 20 aortas); either renal artery is the higher one
in about half of people. Ascending aorta 33.6 +- 4.1 mm (men), 31.1 +- 3.9 (women) (Mao et al., Acad
Radiol 2008). Left carotid and brachiocephalic arteries together 19.5 %, left vertebral artery from
the arch 4 % (Medicina 2025, 61, 2059: 400 people on CT); of the former 38 % share an ostium, the
others' carotid leaves the trunk (Medwave 2015: 25 of 66). The rest by eye and anatomy.
"""

from dataclasses import dataclass, replace

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
    # --- the aorta's own line, wider and more winding with age
    age = float(rng.beta(2.2, 1.5))
    size = float(np.exp(rng.normal(0, 0.05)))
    line = _aortic_line(rng, age) * size
    course, u = spline(line)
    points = resample(course, 0.0, u[-1], SPACING_MM)
    along = arc_lengths(points)
    coeliac = float(along[np.abs(points[:, 2] - size * rng.normal(0, 4)).argmin()])
    gaps = rng.normal((14.3, 57.8, 35.2), (2.7, 8.0, 7.4))
    gaps = np.maximum(gaps, (8, 35, 18))
    superior = coeliac + gaps[0]
    inferior = superior + gaps[1]
    end = inferior + gaps[2]
    points, along = points[along <= end], along[along <= end]
    start_arch = float(along[points[: len(points) // 2, 2].argmax()]) - rng.uniform(16, 24) * size
    carotid = start_arch + rng.normal(13.5, 2.0)
    subclavian = carotid + rng.normal(14.5, 3.0)

    width = rng.normal(20.1, 2.4) / 2
    man = rng.random() < 0.6
    ascending = rng.normal(33.6, 3.6) / 2 if man else rng.normal(31.1, 3.4) / 2
    knots = np.array([0, 14, 30, 60, start_arch, subclavian + 15, coeliac - 40, superior + 17, end])
    sizes = np.array([0.74, 1.0, 0.86, 1.0, 0.93, 0.80, 0.0, 0.0, 0.0]) * ascending
    sizes[6:] = width * np.array([1.18, 1.0, 0.86])
    radii = np.interp(along, knots, sizes)
    ill = bool(rng.random() < aneurysms)
    aneurysm = None
    if ill:
        radii, outer = _swollen(rng, along, radii, superior + 28, end)
        aneurysm = Vessel("aneurysm", -1, points, outer, along)

    # --- branches, on the wall of what they leave
    tree: dict[str, Vessel] = {}
    aorta = Vessel("aorta", -1, points, radii, along)
    found: dict[str, np.ndarray] = {}

    def leave(
        name: str, parent: Vessel, at: float, offsets: str, radius: float, free_end: float = 0.8
    ) -> Vessel:
        """A branch that leaves at `at` mm along its parent, by offsets "x y z, ..." from there."""
        i = int(np.abs(parent.travelled_mm - at).argmin())
        steps = np.diff(_points(offsets) * size, axis=0, prepend=[(0, 0, 0)])
        steps += rng.normal(0, 0.10, steps.shape) * np.linalg.norm(steps, axis=1, keepdims=True)
        knots = parent.points_mm[i] + np.cumsum([(0, 0, 0), *steps], axis=0)
        curve, v = spline(knots)
        way = resample(curve, 0.0, v[-1], SPACING_MM)
        # It starts on the centreline, so that the lumen is one; the ostium is where it is outside.
        apart = np.linalg.norm(way[:, None] - parent.points_mm, axis=2) - parent.radii_mm
        ostium = int(np.argmax(apart.min(1) > 0))
        if name in AORTA9.landmarks:
            found[name] = way[ostium]
        length = arc_lengths(way)
        tapered = radius * (1 - (1 - free_end) * length / length[-1])
        names = [segment.name for segment in AORTA9.segments]
        index = names.index(name) if name in names else -1
        tree[name] = Vessel(name, index, way, np.maximum(tapered, _SMALLEST_MM), length)
        return tree[name]

    def girth(mean: float, sd: float) -> float:
        return max(0.5 * mean, rng.normal(mean, sd)) / 2

    arch = str(
        rng.choice(["usual", "common ostium", "carotid from trunk"], p=[0.805, 0.074, 0.121])
    )
    trunk = leave(
        "brachiocephalic trunk",
        aorta,
        start_arch,
        "-3 -1 14, -9 0 28, -16 4 42",
        girth(12.5, 1.3),
        0.9,
    )
    leave(
        "right common carotid artery",
        trunk,
        trunk.travelled_mm[-1],
        "-2 -3 9, -5 -3 26, -6 2 60",
        girth(7.2, 0.7),
    )
    leave(
        "right subclavian artery",
        trunk,
        trunk.travelled_mm[-1],
        "-8 5 6, -22 12 12, -42 8 10, -66 -2 -2, -90 -10 -8",
        girth(9, 0.9),
    )
    neck = girth(7.2, 0.7)
    if arch == "usual":
        leave("left common carotid artery", aorta, carotid, "2 0 13, 4 2 28, 8 2 48, 14 3 80", neck)
    else:
        up = 15.0 if arch == "common ostium" else 24.0
        leave("left common carotid artery", trunk, up, "6 1 5, 14 1 16, 21 2 36, 26 3 70", neck)
    left = leave(
        "left subclavian artery",
        aorta,
        subclavian,
        "3 3 14, 7 6 32, 12 8 48, 26 8 58, 48 0 54, 74 -10 46",
        girth(9.5, 1.0),
    )
    if rng.random() < 0.04:
        leave(
            "left vertebral artery",
            aorta,
            (carotid + subclavian) / 2,
            "3 3 13, 6 6 34, 9 14 60, 11 18 85",
            girth(4.2, 0.6),
        )
        arch += ", left vertebral artery"
    else:
        leave("left vertebral artery", left, 52.0, "1 4 10, -2 10 26, -3 12 50", girth(3.8, 0.6))

    trunk = leave(
        "coeliac trunk", aorta, coeliac, "-1 -13 0, 0 -20 -6, 1 -31 -7", girth(6.4, 1.2), 0.95
    )
    leave(
        "splenic artery",
        trunk,
        trunk.travelled_mm[-1],
        "7 -2 5, 18 4 12, 30 10 6, 44 22 14, 58 34 10, 72 44 16",
        girth(5.2, 0.6),
    )
    leave(
        "common hepatic artery",
        trunk,
        trunk.travelled_mm[-1],
        "-7 -4 -4, -18 -6 -8, -30 -4 2, -40 0 18, -52 -2 30",
        girth(4.8, 0.6),
    )
    leave(
        "superior mesenteric artery",
        aorta,
        superior,
        "1 -14 -3, 1 -22 -14, -1 -27 -34, -4 -31 -62, -12 -34 -92, -22 -36 -118",
        girth(7.4, 1.2),
        0.5,
    )
    left_renal = superior + 0.84 * 2 * width + rng.normal(0, 3)
    right_renal = left_renal + rng.normal(0, 6)
    extra = int(rng.choice(4, p=[*_FURTHER_RENAL, 1 - sum(_FURTHER_RENAL)]))
    kidneys = []
    for side, at, name in ((-1, right_renal, "right"), (1, left_renal, "left")):
        offsets = "{} -3 -1, {} 2 -4, {} 10 -8, {} 17 -9".format(
            *(side * x for x in (13, 24, 36, 46))
        )
        renal = leave(f"{name} renal artery", aorta, at, offsets, girth(5.6, 0.7), 0.85)
        kidneys.append(renal.points_mm[-1] + size * np.array([side * 14.0, 6.0, -2.0]))
        if extra in (2, 0 if side < 0 else 1):
            lower = "{} -2 0, {} 4 6, {} 14 10, {} 20 8".format(
                *(side * x for x in (12, 24, 40, 52))
            )
            leave(
                f"further {name} renal artery",
                aorta,
                at + rng.uniform(12, 32),
                lower,
                girth(3.4, 0.5),
            )
    # Thrombus closes it in some.
    if not (ill and rng.random() < 0.3):
        leave(
            "inferior mesenteric artery",
            aorta,
            inferior,
            "3 -11 -4, 7 -15 -14, 13 -17 -34, 17 -17 -60",
            girth(3.6, 0.6),
            0.6,
        )
    for side, name in ((-1, "right"), (1, "left")):
        spread = float(np.clip(rng.normal(1.0, 0.25), 0.5, 1.6))
        offsets = [(5.5, 1, -11), (13, 4, -26), (22, 10, -46), (32, 13, -64), (42, 6, -92)]
        text = ", ".join(f"{side * (spread * x)} {y} {z}" for x, y, z in offsets)
        common = leave(
            f"{name} common iliac artery", aorta, along[-1], text, girth(10.0, 1.2), 0.85
        )
        internal = f"{side * 3} 7 -8, {side * 2} 18 -22, {side * 4} 26 -40"
        leave(f"{name} internal iliac artery", common, 56.0, internal, girth(6.0, 0.8))
    found["aortic bifurcation"] = points[-1]

    ends = {"thoracic aorta": (subclavian, coeliac), "abdominal aorta": (coeliac, along[-1])}
    pieces = [_piece(aorta, "ascending aorta and arch", -1, 0.0, subclavian)]
    pieces += [
        _piece(aorta, name, index, *ends[name])
        for index, name in enumerate(("thoracic aorta", "abdominal aorta"))
    ]
    missing = np.full(3, np.nan)
    there = {*tree, "thoracic aorta", "abdominal aorta"}
    return Aorta(
        vessels=(*pieces, *tree.values()),
        landmarks_mm=np.stack([found.get(name, missing) for name in AORTA9.landmarks]),
        segment_present=np.array([segment.name in there for segment in AORTA9.segments]),
        aneurysm=aneurysm,
        arch=arch,
        annulus_mm=points[0],
        kidneys_mm=np.stack(kidneys),
    )


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


def _piece(vessel: Vessel, name: str, segment: int, first: float, last: float) -> Vessel:
    """What of a vessel lies between two places along it."""
    near = (vessel.travelled_mm >= first - SPACING_MM) & (vessel.travelled_mm <= last + SPACING_MM)
    return replace(
        vessel,
        name=name,
        segment=segment,
        points_mm=vessel.points_mm[near],
        radii_mm=vessel.radii_mm[near],
        travelled_mm=vessel.travelled_mm[near],
    )


def _points(table: str) -> np.ndarray:
    """(n, 3): the points "x y z, x y z"."""
    return np.array([row.split() for row in table.split(",")], float)
