"""The trunk around an aorta: tissues as signed distances at nodes, and what CT shows of each.

Places are LPS mm in the aorta's frame. Numbers without a source are chosen by eye and anatomy.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from jaxmark.data.phantoms.fields import nodes_around, random_field
from jaxmark.data.phantoms.solids import (
    common,
    ellipsoid,
    paint,
    rod,
    smooth_union,
    tube,
    union,
)
from jaxmark.data.phantoms.vessels.branches import Aorta, spine_front
from jaxmark.data.phantoms.vessels.heart import (
    Heart,
    chambers,
    draw_heart,
    great_vessels,
    smooth_tube,
)
from jaxmark.data.phantoms.vessels.painting import Tissues

NODE_MM = 3.0  # spacing of the nodes at which tissues are shaped before they go onto the grid
_REACH_MM = 12.0
_DIAPHRAGM_MM = 62.0  # height of its right dome


class AortaContrast(NamedTuple):
    """HU of blood and organs in the arterial phase; for arteries see `thorax.Contrast`."""

    artery: float
    right: float  # right heart and pulmonary arteries
    vein: float
    cortex: float  # of the kidneys
    spleen: float
    liver: float


def draw_aorta_contrast(rng: np.random.Generator) -> AortaContrast:
    """How the contrast medium has spread when the scan begins."""
    artery = float(np.clip(rng.normal(350, 60), 230, 520))
    return AortaContrast(
        artery=artery,
        right=artery * rng.uniform(0.4, 0.95),
        vein=rng.uniform(60, 150),
        cortex=rng.uniform(140, 215),
        spleen=rng.uniform(100, 160),
        liver=rng.uniform(62, 95),
    )


def draw_trunk(
    rng: np.random.Generator, axes_mm: list[np.ndarray], aorta: Aorta, contrast: AortaContrast
) -> Tissues:
    """The tissues around this aorta at nodes that cover a grid with these voxel centres."""
    axes = [nodes_around(axis, NODE_MM).astype(np.float32) for axis in axes_mm]
    q = np.stack(np.meshgrid(*axes, indexing="ij"))
    rough, fine, bowel, coarse = (random_field(rng, mm, axes) for mm in (8.0, 4.0, 14.0, 30.0))
    heart = replace(draw_heart(rng, aorta.annulus_mm), size=0.97)
    build, spin = float(np.exp(rng.normal(0, 0.05))), float(rng.uniform(0, 32))

    inside = chambers(heart, heart.to_standard(q))
    vessels = {
        name: tube(axes, heart.to_lps(points), radii, _REACH_MM)
        for name, (points, radii) in (
            (name, smooth_tube(*line, 5.0))
            for name, line in great_vessels(heart).items()
            if name != "aorta"
        )
    }
    main = [vessel for vessel in aorta.vessels if "aorta" in vessel.name]
    wall = union(*(tube(axes, v.points_mm[::4], v.radii_mm[::4] + 1.8, _REACH_MM) for v in main))
    clot = np.full_like(q[0], _REACH_MM)
    if aorta.aneurysm is not None:
        outer = aorta.aneurysm
        clot = tube(axes, outer.points_mm[::4], outer.radii_mm[::4], _REACH_MM)
    body = _body(q, build, spin, rough)
    organs = _organs(q, aorta, build, rough)

    soft = _soft_tissue(body, organs, contrast, (rough, fine, coarse))
    _paint_bowel(soft, q, body, organs, bowel, coarse)
    left = union(inside["left ventricle"], inside["left atrium"], *_veins_of_lung(vessels))
    right = union(
        inside["right ventricle"],
        inside["right atrium"],
        *(solid for name, solid in vessels.items() if "vein" not in name and "vena" not in name),
        _upper_cava(axes, heart),
    )
    cava = common(_lower_cava(axes, heart), 1.0 - wall, 1.0 - clot)
    around = smooth_union(14.0, inside["heart"] - 3, wall - 2)
    lungs = common(body["chest"], 2.0 - around, 2.0 - wall, 2.0 - right, 0.5 - body["mediastinum"])
    thread = np.clip(1.8 - np.hypot(rough, fine) / 0.42, 0, 1)
    lung_hu = -860 + 25 * coarse + (720 + 0.4 * contrast.artery) * thread
    bone = common(body["bone"], 2.0 - wall)
    bone_hu = 170 + 80 * fine + 430 * np.clip(1 + (bone + 3.0) / 3, 0, 1)
    return Tissues(
        axes=axes,
        soft=soft.astype(np.float32),
        layers=[
            (lungs, lung_hu.astype(np.float32)),
            (common(around, body["chest"]), -90.0),
            (inside["heart"], 95.0),
            (cava, contrast.vein),
            (right, contrast.right),
            (left, 0.97 * contrast.artery),
            (clot, 45.0),
            (wall, 55.0),
            (bone, bone_hu.astype(np.float32)),
        ],
        streaks=np.zeros_like(soft, np.float32),
    )


def _veins_of_lung(vessels: dict[str, np.ndarray]) -> list[np.ndarray]:
    return [solid for name, solid in vessels.items() if "pulmonary vein" in name]


def _upper_cava(axes: list[np.ndarray], heart: Heart) -> np.ndarray:
    """The superior vena cava: from the neck down the mediastinum to the right atrium."""
    atrium = heart.to_lps(np.array([[-32.0, 4.0, 4.0], [-29.0, 3.0, 28.0]]))
    points = np.vstack(
        [atrium, [(-25.0, -46.0, 225.0), (-23.0, -46.0, 260.0), (-30.0, -34.0, 320.0)]]
    )
    line = smooth_tube(points, np.array([9.5, 9.0, 8.5, 8.0, 7.0]), 5.0)
    return tube(axes, *line, _REACH_MM)


def _lower_cava(axes: list[np.ndarray], heart: Heart) -> np.ndarray:
    """The inferior vena cava: from both legs up the spine's right side, through the liver."""
    atrium = heart.to_lps(np.array([[-33.0, 18.0, -24.0]]))[0]
    heights = np.array([-112.0, -60.0, 0.0, 45.0])
    forward = np.array([11.0, 11.0, 14.0, 28.0])
    up = np.stack([[-19, -20, -22, -26], spine_front(heights) - forward, heights], 1)
    lines = [(np.vstack([up, atrium]), np.array([9.5, 9.5, 10.5, 11.5, 12.0]))]
    for x in (-40.0, 36.0):
        legs = np.array([up[0], (0.5 * x - 8, -8.0, -145.0), (x, 4.0, -190.0)])
        lines.append((legs, np.array([8.0, 7.0, 6.0])))
    return union(*(tube(axes, *smooth_tube(*line, 5.0), _REACH_MM) for line in lines))


def _body(q: np.ndarray, build: float, spin: float, rough: np.ndarray) -> dict[str, np.ndarray]:
    """Signed distances of the outline, the cavities and the bones."""
    x, y, z = q
    u = np.stack([np.abs(x), y, z])
    front = spine_front(z).astype(np.float32)
    spine = np.hypot(x / 1.2, y - front - 17) - 17
    skin = ellipsoid(q, (0, -30, 60), (172 * build, 118 * build, 900))
    dome = union(
        ellipsoid(q, (-68, -25, -20), (80, 88, _DIAPHRAGM_MM + 20)),
        ellipsoid(q, (66, -20, -30), (72, 84, 82)),
        ellipsoid(q, (0, -50, -20), (80, 70, 68)),
    )
    ribcage = ellipsoid(q, (0, -26, 95), (135 * build, 92 * build, 215))
    chest = common(ribcage, 1.0 - dome, 4.0 - spine, -z + 20 + 0.6 * (y - 30))
    belly = common(ellipsoid(q, (0, -42, -40), (128 * build, 82 * build, 230)), 3.0 - spine, -chest)
    mediastinum = union(
        ellipsoid(q, (0, -28, 268), (36, 52, 66)) + 1.5 * rough,
        common(np.abs(x - 3) - 4, y + 70),
        common(ellipsoid(q, (6, 0, 130), (20, 30, 130)), y + 2),
    )
    level = (z - 0.5 * y + 0.4 * np.abs(x) + spin) / 30
    ring = 30 * np.abs(level - np.rint(level)) * 0.85
    ribs = common(np.hypot(ribcage - 7, 0.7 * ring) - 4.5, 12.0 - u[0], 5.0 - z)
    disc = (z + spin) / 31
    disc = 31 * np.abs(disc - np.rint(disc))
    vertebrae = common(spine, 4.0 - disc)
    behind = y - front - 40
    arches = union(
        np.hypot(u[0] - 15, behind) - 6,
        common(np.abs(x) - 4, np.abs(behind - 16) - 13, 7 - disc),
        common(np.hypot(behind + 2, disc - 8) - 5, u[0] - 42),
    )
    canal = np.hypot(x, behind + 1) - 9
    wings = ellipsoid(u, (78, 10, -205), (52, 70, 78))
    pelvis = union(
        common(np.abs(wings) - 4, 50.0 - u[0], -20.0 - y),  # iliac wings
        common(spine - 5, z + 128),  # sacrum
    )
    sternum = common(np.abs(x) - 17, np.abs(y + 116 - 0.06 * (z - 120)) - 5, 60 - z, z - 235)
    bone = union(vertebrae, ribs, common(arches, -canal), pelvis, sternum) + 0.5 * rough
    return {
        "skin": skin,
        "chest": chest,
        "belly": belly,
        "dome": dome,
        "spine": spine,
        "mediastinum": mediastinum,
        "bone": bone.astype(np.float32),
    }


def _organs(q: np.ndarray, aorta: Aorta, build: float, rough: np.ndarray) -> dict[str, np.ndarray]:
    """Signed distances of the organs of the belly."""
    x, y, z = q
    u = np.stack([np.abs(x), y, z])
    liver = union(
        ellipsoid(q, (-72, -25, -5), (64 * build, 76, 62)),
        ellipsoid(q, (-10, -62, 22), (62, 34, 30)),
    )
    kidneys, pelves = [], []
    for middle, side in zip(aorta.kidneys_mm, (-1, 1), strict=True):
        # Turned: their lower ends lie further from the spine.
        lean = (z - middle[2]) * 0.22 * side
        shape = ellipsoid((x + lean, y, z), middle, (24, 27, 52))
        kidneys.append(shape)
        pelves.append(ellipsoid((x + lean, y, z), middle - (side * 11.0, 0, 0), (15, 13, 27)))
    psoas = common(
        np.hypot((u[0] - 34 + 0.06 * z) / 1.0, (y - spine_front(z) - 14) / 1.3) - (15 - 0.05 * z),
        z + 10,
    )
    kidney = union(*kidneys)
    return {
        "liver": common(liver + 0.5 * rough, 2.0 - kidney),
        "spleen": common(ellipsoid(q, (88, 8, 18), (24, 40, 44)), 2.0 - kidney),
        "stomach": common(ellipsoid(q, (52, -55, 18), (38, 34, 40)), 2.0 - liver),
        "pancreas": common(rod(q, (-22, -50, -28), (58, -14, 2), 9.0) + 0.8 * rough, 2.0 - kidney),
        "kidney": kidney,
        "kidney pelvis": union(*pelves),
        "psoas": psoas.astype(np.float32),
    }


def _soft_tissue(
    body: dict[str, np.ndarray],
    organs: dict[str, np.ndarray],
    contrast: AortaContrast,
    fields: Sequence[np.ndarray],
) -> np.ndarray:
    """HU at the nodes: air around the body, fat, muscle and organs."""
    rough, fine, coarse = fields
    soft = (-100 + 5 * fine + 4 * coarse).astype(np.float32)
    inner = union(body["belly"], body["chest"])
    layers = 2.5 * np.abs(coarse + 0.3 * rough) - 1.0
    trunk_wall = common(inner - 15 - 2 * coarse, -inner, -layers + 1.6)
    edge = NODE_MM
    paint(soft, 55 + 6 * fine, trunk_wall, edge)
    paint(soft, 55 + 6 * fine, common(body["spine"] - 24, -body["belly"], -body["chest"]), edge)
    paint(soft, 55.0, organs["psoas"], edge)
    paint(soft, contrast.liver + 6 * fine, common(organs["liver"], body["dome"]), edge)
    spleen = contrast.spleen + 22 * coarse  # in the arterial phase it is enhanced in stripes
    paint(soft, spleen, organs["spleen"], edge)
    paint(soft, 80.0, organs["pancreas"], edge)
    paint(soft, contrast.cortex, organs["kidney"], edge)
    paint(soft, 0.55 * contrast.cortex + 10 * fine, organs["kidney"] + 6, edge)
    paint(soft, -60.0, organs["kidney pelvis"], edge)
    paint(soft, -1000.0, -body["skin"], edge)
    return soft


def _paint_bowel(
    soft: np.ndarray,
    q: np.ndarray,
    body: dict[str, np.ndarray],
    organs: dict[str, np.ndarray],
    bowel: np.ndarray,
    coarse: np.ndarray,
) -> None:
    """Loops of bowel in the front of the belly, and the stomach: walls, fluid, gas above it."""
    x, y, z = q
    solid = union(*(organs[name] for name in organs if name not in ("stomach", "kidney pelvis")))
    room = common(body["belly"] + 4, y - spine_front(z) + 36 + 5 * coarse, z - 5, 4 - solid)
    loops = common(8.0 * (0.3 - np.abs(bowel)), room).astype(np.float32)
    inner = loops + 2.5
    content = np.where(bowel > 0, 20.0, 90.0).astype(np.float32)
    paint(soft, 65.0, loops, NODE_MM)
    paint(soft, content, inner, NODE_MM)
    paint(soft, -900.0, common(inner, 4.0 * coarse + y + 66).astype(np.float32), NODE_MM)
    stomach = organs["stomach"]
    paint(soft, 70.0, stomach, NODE_MM)
    paint(soft, 20.0, stomach + 4, NODE_MM)
    paint(soft, -950.0, common(stomach + 4, y + 62), NODE_MM)
