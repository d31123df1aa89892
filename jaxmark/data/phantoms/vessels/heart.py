"""A heart: its chambers and great vessels as solids, in a frame in which its valves hardly move.

Places are millimetres with LPS axes; the origin of the standard heart is the middle of the aortic
annulus. `Heart.to_lps` puts it into a person. Numbers without a source are chosen by eye and
anatomy.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from jaxmark.data.phantoms.curves import spline
from jaxmark.data.phantoms.solids import common, ellipsoid, rod, smooth_union, union
from jaxmark.data.phantoms.vessels.root import Root

# Axes of the left ventricle: to the septum, to the anterior wall, to the apex. The apex points to
# the left, to the front and down, about 45 degrees from each.
_APEXWARD = np.array([0.62, -0.60, -0.50]) / np.linalg.norm([0.62, -0.60, -0.50])
_SEPTAL = np.array([-0.72, -0.69, -0.07]) - _APEXWARD * (_APEXWARD @ [-0.72, -0.69, -0.07])
_SEPTAL = _SEPTAL / np.linalg.norm(_SEPTAL)
_ANTERIOR = np.cross(_SEPTAL, _APEXWARD)
FRAME = np.stack([_SEPTAL, _ANTERIOR, _APEXWARD])
# Middle of the left ventricle's base.
_BASE_MM = np.array([9.0, 12.3, -13.5])
_WIDEST_MM = 20.0  # from the base to where the ventricle is widest
ATRIAL_WALL_MM, VESSEL_WALL_MM, RIGHT_WALL_MM = 2.0, 1.5, 3.5


@dataclass(frozen=True)
class Heart:
    """The sizes of one person's heart; lengths are the standard heart's mm, `size` scales them."""

    size: float
    rotation: np.ndarray  # (3, 3): standard axes -> the person's
    annulus_mm: np.ndarray  # (3,) LPS: where the origin lies
    root: Root
    length: float  # of the left ventricle, from its base to the apex outside
    radius: float  # of the left ventricle, outside
    wall: float  # of the left ventricle
    right: float  # factors of the widths of the right ventricle, left and right atrium
    left_atrium: float
    right_atrium: float

    def to_lps(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) standard places -> LPS mm."""
        return self.size * points @ self.rotation.T + self.annulus_mm

    def to_standard(self, q: np.ndarray) -> np.ndarray:
        """(3, ...) LPS mm -> standard places."""
        moved = q - self.annulus_mm.astype(q.dtype).reshape(3, *[1] * (q.ndim - 1))
        return np.tensordot((self.rotation.T / self.size).astype(q.dtype), moved, 1)

    def radius_at(self, w: np.ndarray | float) -> np.ndarray:
        """The left ventricle's outer radius at a distance from its base."""
        share = (np.asarray(w) - _WIDEST_MM) / (self.length - _WIDEST_MM)
        return self.radius * np.sqrt(np.clip(1 - share**2, 0, None))

    def on_ventricle(self, degrees: float, w: float, lift: float) -> np.ndarray:
        """(3,): above the left ventricle's surface; 0 degrees is the septum, 90 the anterior wall.

        `w` is the distance from the base in shares of the ventricle's length.
        """
        angle, along = np.radians(degrees), w * self.length
        r = self.radius_at(along) + lift
        return in_frame(r * np.cos(angle), r * np.sin(angle), along)

    @property
    def apex(self) -> np.ndarray:
        """(3,): the tip of the left ventricle's wall, outside."""
        return in_frame(0.0, 0.0, self.length)


def in_frame(septal: float, anterior: float, apexward: float) -> np.ndarray:
    """(3,): the standard place at these distances from the base of the left ventricle."""
    return _BASE_MM + np.array([septal, anterior, apexward]) @ FRAME


def draw_heart(rng: np.random.Generator, annulus_mm: np.ndarray) -> Heart:
    """A person's heart with the middle of its aortic annulus at `annulus_mm` (LPS)."""
    size = float(np.exp(rng.normal(0, 0.06)))
    rotation = Rotation.from_euler("xyz", rng.normal(0, (6, 7, 7)), degrees=True).as_matrix()
    return Heart(
        size=size,
        rotation=rotation,
        annulus_mm=annulus_mm,
        root=_draw_root(rng, size),
        length=float(rng.normal(92, 4)),
        radius=float(rng.normal(34, 2)),
        wall=float(np.clip(rng.normal(9, 1.3), 6.5, 14)),
        right=float(np.exp(rng.normal(0, 0.06))),
        left_atrium=float(np.exp(rng.normal(0, 0.09))),
        right_atrium=float(np.exp(rng.normal(0, 0.08))),
    )


def _draw_root(rng: np.random.Generator, size: float) -> Root:
    """Diameters at the sinuses: 31 (women) and 35 mm (men), spread of either 2.6 (Devereux et al.,
    Am J Cardiol 2012: the regression on body surface and age, at 50 years and 1.7 and 1.9 m2).

    The ascending aorta: 33.6 +- 4.1 mm (men) and 31.1 +- 3.9 (women) in 1442 people on CT (Mao et
    al., Acad Radiol 2008). Annulus, junction and height by eye.
    """
    man = rng.random() < 0.6
    sinus = rng.normal(34.8 if man else 31.2, 2.6)
    annulus = 0.36 * sinus * np.exp(rng.normal(0, 0.05))
    junction = 0.425 * sinus * np.exp(rng.normal(0, 0.05))
    ascending = (33.6 if man else 31.1) / 2 + 0.35 * (sinus - 33) + rng.normal(0, 1.4)
    height = rng.normal(20.5 if man else 18.5, 1.8)
    axis = np.array([-0.42, -0.12, 0.90]) + rng.normal(0, 0.07, 3)
    axis = axis / np.linalg.norm(axis)
    turn = np.radians(rng.normal(-14, 8))
    ahead = np.array([np.sin(turn), -np.cos(turn), 0.0])
    front = ahead - axis * (axis @ ahead)
    front = front / np.linalg.norm(front)
    return Root(
        axis=axis,
        front=front,
        left=np.cross(axis, front),
        annulus=annulus / size,
        # From the middle of a sinus to the commissure opposite.
        bulge=max(sinus - annulus - junction, 3.0) / size,
        junction=junction / size,
        ascending=max(ascending, 1.02 * junction) / size,
        height=float(np.clip(height, 15, 26)) / size,
    )


# --- chambers ---------------------------------------------------------------------------------


def chambers(heart: Heart, q: np.ndarray) -> dict[str, np.ndarray]:
    """Signed distances of the blood in each chamber, and of what is around it, at places (3, ...).

    "left ventricle", "right ventricle", "left atrium" and "right atrium" are blood; "ventricle" is
    the left ventricle with its wall, "heart" all chambers with their walls.
    """
    base = _BASE_MM.astype(q.dtype).reshape(3, *[1] * (q.ndim - 1))
    frame = FRAME.astype(q.dtype)
    u = np.tensordot(frame, q - base, 1)
    half = heart.length - _WIDEST_MM
    middle = (0.0, 0.0, _WIDEST_MM)
    outside = ellipsoid(u, middle, (heart.radius, heart.radius, half))
    ventricle = common(outside, -1.0 - u[2])
    inner = heart.radius - heart.wall
    cavity = union(
        common(ellipsoid(u, middle, (inner, inner, half - 0.9 * heart.wall)), -u[2]),
        rod(u, (-9, -9, -10), (-9, -9, 6), 13.0),  # through the mitral valve
        rod(q, -9 * heart.root.axis, in_frame(0, 0, 24), 0.9 * heart.root.annulus),  # to the aorta
    )
    widths = (34 * heart.right, 34 * heart.right, 48.0)
    right = ellipsoid(u, (28.0, -2.0, 28.0), widths)
    right_blood = union(
        common(right + RIGHT_WALL_MM, 1.0 - outside),
        # Through the tricuspid valve.
        common(rod(u, (36, -8, -8), (36, -7, 12), 14.0), 3.0 - outside),
    )

    f = heart.left_atrium
    # The atrium grows backwards and to the sides; its front keeps to the aortic root.
    left_atrium = union(
        ellipsoid(q, (3.0, 17 + 18 * f, 4.0), (29 * f, 18 * f, 24 * f)),
        ellipsoid(u, (-6.0, -6.0, -6.0), (17, 17, 14)),
        _appendage(q, ((24, 26, 15), (36, 18, 21), (41, 9, 24)), (9, 8, 5.5)),
    )
    f = heart.right_atrium
    right_atrium = union(
        ellipsoid(q, (-14 - 22 * f, 8.0, -14.0), (22 * f, 28 * f, 31 * f)),
        ellipsoid(u, (36.0, -8.0, 0.0), (17, 18, 13)),
        _appendage(q, ((-30, -8, 6), (-23, -17, 14), (-15, -22, 19)), (9, 8, 5)),
    )
    left_atrium = common(left_atrium, ATRIAL_WALL_MM - ventricle, 2.0 - heart.root.lumen(q))
    right_atrium = common(right_atrium, 2.5 - left_atrium, 2.0 - ventricle, 2.5 - right)
    walls = union(left_atrium - ATRIAL_WALL_MM, right_atrium - ATRIAL_WALL_MM)
    return {
        "left ventricle": cavity,
        "right ventricle": right_blood,
        "left atrium": left_atrium,
        "right atrium": right_atrium,
        "ventricle": ventricle,
        "heart": smooth_union(3.0, ventricle, right, walls),
    }


def _appendage(
    q: np.ndarray, points: tuple[tuple[float, float, float], ...], radii: tuple[float, ...]
) -> np.ndarray:
    return union(*(ellipsoid(q, p, (r, r, r)) for p, r in zip(points, radii, strict=True)))


# --- great vessels ----------------------------------------------------------------------------

# Points and radii, standard mm; the pulmonary trunk leaves the right ventricle before the aorta.
_GREAT_VESSELS: Mapping[str, tuple[str, str]] = {
    "outflow": ("8 -33 -22, 12 -31 -6, 14 -27 12", "16, 14.5, 13"),
    "pulmonary trunk": ("14 -27 12, 18 -17 26, 19 -4 38, 17 8 46", "13, 13.5, 13.5, 13"),
    "left pulmonary artery": (
        "17 8 46, 27 22 52, 40 34 50, 54 40 42, 70 42 30",
        "11, 10.5, 9, 7, 4",
    ),
    "right pulmonary artery": (
        "17 8 46, 4 17 46, -14 19 44, -32 20 40, -48 22 32, -62 24 18",
        "10.5, 10, 10, 9, 7, 4",
    ),
    "left superior pulmonary vein": ("22 34 16, 34 36 22, 48 30 32, 60 24 42", "7.5, 6.5, 6, 4"),
    "left inferior pulmonary vein": ("22 42 2, 36 50 -2, 50 58 -10, 66 64 -22", "7, 6.5, 6, 4"),
    "right superior pulmonary vein": (
        "-18 32 16, -34 30 22, -50 26 30, -62 20 40",
        "7.5, 7, 6, 4",
    ),
    "right inferior pulmonary vein": (
        "-18 40 2, -34 46 0, -50 54 -8, -66 60 -20",
        "7.5, 6.5, 6, 4",
    ),
    "superior vena cava": (
        "-32 4 6, -29 3 30, -27 0 60, -25 -2 90, -24 -4 130",
        "10, 9.5, 9, 9, 9",
    ),
    "inferior vena cava": ("-34 18 -30, -31 22 -50, -30 24 -75, -30 26 -120", "13, 12.5, 12, 12"),
}


def great_vessels(heart: Heart) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> points (N, 3) and radii (N,) of the blood in each, standard mm.

    The aorta starts where the root's tube is round; it goes over the arch and down beside the
    spine.
    """
    drawn = {
        name: (np.array([row.split() for row in points.split(",")], float), _numbers(radii))
        for name, (points, radii) in _GREAT_VESSELS.items()
    }
    root = heart.root
    start = (root.height + 6.0) * root.axis
    arch = np.array([(-13, -8, 66), (-6, 2, 88), (6, 22, 98), (17, 44, 94), (22, 57, 76)], float)
    first = start + 16 * (root.axis + (0.1, 0, 0.15))
    descending = np.array([(23, 58, 50), (23, 57, 0), (20, 56, -50), (14, 55, -110)], float)
    points = np.vstack([start, first, arch, descending])
    ascending = root.ascending
    radii = ascending * np.array([0.97, 1, 1, 0.95, 0.88, 0.82, 0.78, 0.76, 0.74, 0.71, 0.68])
    drawn["aorta"] = points, radii
    return drawn


def smooth_tube(
    points: np.ndarray, radii: np.ndarray, spacing_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """Points and radii of the smooth tube through these, at most about `spacing_mm` apart."""
    course, u = spline(points)
    at = np.linspace(0, u[-1], int(np.ceil(u[-1] / spacing_mm)) + 1)
    return course(at), np.interp(at, u, radii)


def _numbers(row: str) -> np.ndarray:
    return np.array(row.split(","), float)
