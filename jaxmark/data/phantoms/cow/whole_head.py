"""A whole head: the face, the neck, and the vessels beyond the surroundings of the circle.

What could be taken for the circle is here: external carotids, cervical carotids and vertebrals,
the sinuses of the dura, jugular and cortical veins. Places are those of the standard head of
`head`, mm, chosen by eye and anatomy.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxmark.data.phantoms.cow.head import CRANIUM_MM
from jaxmark.data.phantoms.curves import resample, spline
from jaxmark.data.phantoms.lumen import Vessel
from jaxmark.data.phantoms.solids import ball, common, ellipsoid, rod, smooth_union, union

_SKIN_MM = 2.5
_TABLE_MM = 1.4  # compact bone over marrow
_VERTEBRA_MM, _DISK_MM = 18.0, 5.0
_SPACING_MM = 2.0  # of points along a centreline


def head_surface(q: np.ndarray) -> np.ndarray:
    """Signed distance of the skin at places q (3, a, b, c): cranium, face, nose, ears, neck."""
    x, y, z = q
    u = np.stack([np.abs(x), y, z])
    neck = common(np.float32(58) * (np.hypot(x / 58, (y - 30) / 62) - 1), z + 25)
    round_ = smooth_union(
        24.0, ellipsoid(q, *CRANIUM_MM), ellipsoid(q, (0, -36, -42), (63, 52, 62)), neck
    )
    return union(
        round_,
        ball(q, (0, -90, -28), (13, 17, 19)),
        ball(u, (78, 28, -16), (11, 15, 27)),
    )


def add_face_and_neck(
    q: np.ndarray, outer: np.ndarray, tissue: Mapping[str, np.ndarray], rough: np.ndarray
) -> dict[str, np.ndarray]:
    """The tissues of `shape_tissues` with what lies below the skull, skin and marrow.

    Args:
      q: places (3, a, b, c) in the standard head.
      outer: signed distance of the head's surface.
      rough: a random field of SD 1 that breaks up cavities.
    """
    x, y, z = q
    u = np.stack([np.abs(x), y, z])
    globes = ball(u, (31, -58, -8), (12, 12, 12))
    canal = common(np.hypot(x, y - 37) - 9, z + 38)
    cord = common(np.hypot(x / 1.3, y - 37) - 5, z + 34)
    air = union(
        tissue["air"],
        ball(u, (28, -54, -40), (13, 16, 16)) + rough,  # maxillary sinuses
        ball(u, (11, -74, 6), (11, 5, 9)) + rough,  # frontal ones
        common(ball(u, (8, -62, -36), (7, 30, 18)), 1.5 - 2 * np.abs(rough)),  # nose
        rod(q, (0, -14, -44), (0, -6, -72), 7),  # throat
        rod(q, (0, -6, -72), (0, -4, -130), 8),
        -outer,
    )
    bone = union(tissue["bone"], common(union(_jaws(q, u), _spine(q)), outer + 3))
    bone = common(bone, 0.8 - air, -canal, -globes)
    scalp = common(-5 - outer, tissue["muscle"])
    return {
        **tissue,
        "muscle": common(tissue["muscle"], -cord),
        "fat": common(union(tissue["fat"], scalp), -canal, -cord),
        "skin": -outer - np.float32(_SKIN_MM),
        "csf": common(union(tissue["csf"], canal, globes), -cord),
        "bone": bone,
        "marrow": bone + np.float32(_TABLE_MM),
        "air": air,
    }


def _jaws(q: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Lower and upper jaw with the teeth, cheek bones, palate and the bones of the nose."""
    return union(
        rod(u, (50, -2, -28), (46, -6, -78), 5.5),
        rod(u, (46, -6, -78), (9, -72, -94), 7),
        rod(u, (30, -46, -62), (8, -76, -62), 6),
        rod(u, (30, -44, -72), (8, -74, -74), 4),
        rod(u, (44, -58, -25), (67, -18, -24), 3),
        np.abs(ball(u, (28, -54, -40), (15, 18, 18))) - 1,
        rod(q, (0, -70, -52), (0, -35, -52), 3),
        rod(q, (0, -82, -8), (0, -88, -20), 3),
    )


def _spine(q: np.ndarray) -> np.ndarray:
    """Cervical vertebrae: bodies with disks between them, arches, spines."""
    x, y, z = q
    level = (z + 46) / _VERTEBRA_MM
    within = _VERTEBRA_MM * np.abs(level - np.rint(level)) - (_VERTEBRA_MM - _DISK_MM) / 2
    body = np.float32(10) * (np.hypot(x / 13, (y - 19) / 10) - 1)
    arch = np.abs(np.hypot(x, y - 37) - 12) - 3
    return common(union(body, arch, rod(q, (0, 53, -50), (0, 75, -130), 4)), within, z + 42)


class _Course(NamedTuple):
    """A vessel of the left half: "x y z, x y z" mm; "@" in its name is for both sides."""

    points: str
    radius_mm: float
    end: float = 0.7  # of the radius, where it ends
    chance: float = 1.0
    feeds: str = ""  # the vessel around the circle that goes on where this one ends


# The common carotid forks at the angle of the jaw or below it.
_ARTERIES: Mapping[str, _Course] = {
    "common carotid @": _Course("26 12 -135, 26 10 -115, 26 7 -94", 3.1, 1.0),
    "cervical carotid @": _Course("26 7 -94, 27 10 -84, 26 9 -72", 2.6, 0.9, feeds="ICA @"),
    "external carotid @": _Course(
        "26 7 -94, 28 -1 -82, 36 0 -68, 43 4 -52, 49 7 -36, 62 4 -24, 70 0 -8, 73 -4 12", 2.1, 0.55
    ),
    "frontal temporal @": _Course("73 -4 12, 71 -22 24, 64 -46 40, 52 -58 56", 0.9),
    "parietal temporal @": _Course("73 -4 12, 76 10 28, 74 20 52, 62 28 74", 0.9),
    "maxillary @": _Course("49 7 -36, 46 -6 -35, 38 -20 -38, 28 -36 -34, 18 -42 -28", 1.4),
    "middle meningeal @": _Course(
        "46 -6 -35, 37 -2 -27, 44 -8 -20, 56 -12 -8, 63 -8 12, 61 4 38, 50 14 62", 0.7
    ),
    "facial @": _Course(
        "28 -1 -82, 40 -20 -90, 50 -34 -84, 38 -62 -62, 24 -78 -44, 16 -74 -20", 1.2
    ),
    "lingual @": _Course("28 -1 -82, 20 -18 -84, 12 -44 -72, 6 -62 -70", 1.1),
    "occipital @": _Course("36 0 -68, 46 24 -44, 50 48 -34, 42 80 -14, 32 100 10, 24 98 38", 1.1),
    "vertebral @": _Course("20 8 -135, 18 16 -115, 17 18 -95, 18 18 -76", 1.5, 1.0, feeds="VA @"),
}
_VEINS: Mapping[str, _Course] = {
    "basal @": _Course("16 -3 8, 14 8 1, 20 20 5, 13 32 12, 2 39 16", 0.9),
    "internal cerebral @": _Course("2 -8 22, 2 8 22, 2 25 19, 1 37 16", 0.9),
    "straight sinus": _Course("0 36 15, 0 43 18, 0 52 26, 0 74 15, 0 94 0", 2.0, 1.2),
    "inferior sagittal sinus": _Course("0 -30 44, 0 0 52, 0 32 46, 0 50 27", 0.8),
    "superior sagittal sinus": _Course(
        "0 -62 16, 0 -58 40, 0 -40 62, 0 -12 78, 0 15 83, 0 50 77, 0 78 60, 0 96 32, 0 96 2",
        *(2.2, 1.9),
    ),
    "transverse sinus @": _Course(
        "0 95 1, 18 92 -3, 38 80 -5, 52 62 -6, 55 46 -10, 50 36 -22, 42 34 -34, 30 26 -40", 3.8, 1.0
    ),
    "jugular @": _Course("30 26 -40, 29 19 -46, 31 20 -62, 35 18 -90, 37 16 -135", 4.6, 1.1),
    "anterior jugular @": _Course("12 -40 -98, 14 -32 -112, 16 -26 -135", 1.6, chance=0.6),
    "facial vein @": _Course("20 -72 -22, 30 -66 -46, 44 -40 -76, 42 -8 -88, 36 14 -96", 1.4),
    "retromandibular @": _Course("70 4 -6, 58 6 -30, 52 6 -60, 46 8 -80, 38 14 -96", 1.8),
    "ophthalmic vein @": _Course("26 -66 4, 28 -50 2, 18 -26 -2, 13 -13 -5", 0.9),
    "middle cerebral vein @": _Course("58 12 18, 54 -8 8, 42 -22 2, 28 -20 -2, 17 -12 -5", 1.1),
    "upper petrosal @": _Course("14 8 -12, 26 18 -14, 42 28 -14, 53 44 -11", 1.1),
    "lower petrosal @": _Course("12 6 -18, 18 16 -28, 28 24 -38", 1.2),
    "Labbe @": _Course("56 6 14, 60 26 4, 58 44 -2, 54 56 -6", 1.3, chance=0.7),
    "Trolard @": _Course("60 8 20, 62 14 40, 48 16 62, 26 18 77, 3 22 82", 1.3, chance=0.7),
    "frontal bridging @": _Course("50 -34 40, 36 -36 54, 20 -28 68, 3 -12 78", 1.1),
    "parietal bridging @": _Course("58 48 40, 46 52 56, 28 54 68, 3 50 77", 1.1),
    "occipital bridging @": _Course("48 76 28, 34 84 36, 18 86 46, 3 80 58", 1.0, chance=0.7),
}
_RADIUS_SD = 0.15  # of a radius' logarithm
_WAVES, _WAVE_MM = 12, (18.0, 90.0)  # of the displacement that makes courses differ


def draw_neck_arteries(rng: np.random.Generator, starts: Mapping[str, np.ndarray]) -> list[Vessel]:
    """Arteries outside of the skull, in places of the standard head.

    Args:
      starts: where "ICA R", "ICA L", "VA R" and "VA L" begin, (3,); what feeds them ends there.
    """
    return _draw(rng, _ARTERIES, 2.5, starts)


def draw_veins(rng: np.random.Generator) -> list[Vessel]:
    """Sinuses of the dura and large veins, in places of the standard head."""
    return _draw(rng, _VEINS, 1.5, {})


def _draw(
    rng: np.random.Generator,
    courses: Mapping[str, _Course],
    sd_mm: float,
    starts: Mapping[str, np.ndarray],
) -> list[Vessel]:
    """Tubes; a displacement that is a function of the place leaves forks joined."""
    direction = rng.normal(size=(_WAVES, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    shortest, longest = map(float, np.log(_WAVE_MM))
    waves = 2 * np.pi * direction / np.exp(rng.uniform(shortest, longest, (_WAVES, 1)))
    phases = rng.uniform(0, 2 * np.pi, _WAVES)
    reach = rng.normal(0, sd_mm * np.sqrt(2 / _WAVES), (_WAVES, 3))

    vessels = []
    for base, course in courses.items():
        for side in "RL" if "@" in base else " ":
            chance, size = rng.random(), np.exp(rng.normal(0, _RADIUS_SD))
            if chance >= course.chance:
                continue
            knots = np.array([row.split() for row in course.points.split(",")], float)
            knots *= (-1 if side == "R" else 1, 1, 1)
            knots += np.sin(knots @ waves.T + phases) @ reach
            if course.feeds:
                knots = np.vstack([knots, starts[course.feeds.replace("@", side)]])
            curve, u = spline(knots)
            points = resample(curve, 0.0, u[-1], _SPACING_MM)
            radii = course.radius_mm * size * np.linspace(1, course.end, len(points))
            name = base.replace("@", side)
            vessels.append(Vessel(name, -1, points, radii, np.zeros(len(points))))
    return vessels
