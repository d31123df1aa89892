"""The chest around a heart: tissues as signed distances at nodes, and what CT shows of each.

Numbers without a source are chosen by eye and anatomy.
"""

from typing import NamedTuple

import numpy as np

from jaxmark.data.phantoms.fields import nodes_around, random_field
from jaxmark.data.phantoms.solids import ball, common, rod, smooth_union, tube, union
from jaxmark.data.phantoms.vessels.heart import (
    VESSEL_WALL_MM,
    Heart,
    chambers,
    great_vessels,
    smooth_tube,
)
from jaxmark.data.phantoms.vessels.painting import Tissues

NODE_MM = 2.0  # spacing of the nodes at which tissues are shaped before they go onto the grid
_REACH_MM = 16.0  # as far from a great vessel its distance is known

_LEFT = ("left ventricle", "left atrium")
_RIGHT = ("right ventricle", "right atrium")


class Contrast(NamedTuple):
    """HU of blood. Of arteries 321 +- 47 at 100 kVp, 436 +- 50 at 70 kVp (Korean J Radiol,
    kjr.2025.1520); a saline chaser leaves the right heart less, and the vena cava streaks.
    """

    artery: float
    right: float  # right ventricle and atrium
    lung: float  # pulmonary arteries
    upper: float  # superior vena cava
    vein: float  # cardiac veins, inferior vena cava
    muscle: float  # myocardium


def draw_contrast(rng: np.random.Generator) -> Contrast:
    """How the contrast medium has spread when the scan begins."""
    artery = float(np.clip(rng.normal(400, 65), 270, 560))
    right = artery * rng.uniform(0.3, 0.85)
    return Contrast(
        artery=artery,
        right=right,
        lung=artery * rng.uniform(0.55, 0.95),
        upper=right * rng.uniform(0.8, 2.2),
        vein=rng.uniform(80, 170),
        muscle=rng.uniform(85, 125),
    )


def draw_chest(
    rng: np.random.Generator, axes_mm: list[np.ndarray], heart: Heart, contrast: Contrast
) -> Tissues:
    """The tissues around this heart at nodes that cover a grid with these voxel centres."""
    axes = [nodes_around(axis, NODE_MM).astype(np.float32) for axis in axes_mm]
    q = np.stack(np.meshgrid(*axes, indexing="ij"))
    rough, fine, coarse = (random_field(rng, mm, axes) for mm in (7.0, 3.0, 24.0))
    trabeculae = random_field(rng, 4.5, axes)
    build = float(np.exp(rng.normal(0, 0.05)))
    fat = float(rng.uniform(2.5, 7.0))  # between the chambers and the pericardium
    spin, tilt = rng.uniform(0, 28), rng.normal(0, 0.02)
    streak_angles, streak_hu = rng.uniform(0, np.pi, 5), rng.normal(0, 1, 5)

    inside = chambers(heart, heart.to_standard(q))
    inside = {name: heart.size * solid for name, solid in inside.items()}
    # Papillary muscles and trabeculae; atria are smooth.
    for name, depth in (("left ventricle", 1.3), ("right ventricle", 1.6)):
        inside[name] = inside[name] + np.float32(depth) * np.abs(trabeculae) - np.float32(0.4)
    vessels = _great_vessels(heart, axes)
    root = heart.size * heart.root.lumen(heart.to_standard(q))
    aorta = union(vessels.pop("aorta"), root)

    left = [(inside[name], contrast.artery * k) for name, k in zip(_LEFT, (0.97, 1.0), strict=True)]
    left += [(vessels[name], contrast.artery) for name in vessels if "vein" in name]
    left.append((aorta, contrast.artery))
    right = [(inside[name], contrast.right) for name in _RIGHT]
    right += [(vessels["outflow"], 0.5 * (contrast.right + contrast.lung))]
    right += [
        (vessels[name], contrast.lung)
        for name in vessels
        if "pulmonary" in name and "vein" not in name
    ]
    right.append((vessels["superior vena cava"], contrast.upper))
    right.append((vessels["inferior vena cava"], contrast.vein))
    left_solid, left_hu = _blood(left)
    right_solid, right_hu = _blood(right)
    # Blood from the lower body brings no contrast, and mixes in the right atrium.
    right_hu = right_hu * (1 + 0.12 * coarse + 0.05 * fine)

    walls = union(
        inside["heart"],
        aorta - VESSEL_WALL_MM,
        *(vessels[name] - VESSEL_WALL_MM for name in vessels),
    )
    sac = smooth_union(20.0, inside["heart"], aorta - 1.0, vessels["pulmonary trunk"] - 1.0)
    sac = sac - fat - 1.5 * coarse + 0.3 * rough
    body = _body(q / build, rough, spin, tilt)
    lungs = common(
        body["cavity"],
        2.0 - sac,
        2.5 - walls,
        0.5 - body["mediastinum"],
        1.0 - body["diaphragm"],
    )
    # Muscle of the chest's wall, fat between its layers and under the skin, and in the mediastinum.
    muscle = common(body["cavity"] - 20 - 4 * coarse, 0.6 - np.abs(coarse + 0.3 * rough) * 4)
    muscle = common(muscle, -body["cavity"])
    soft = np.where(union(muscle, body["oesophagus"]) < 0, np.float32(52), np.float32(-97))
    soft = soft + 5 * coarse + 6 * fine
    organs = np.where(q[0] < 10, np.float32(75), np.float32(45))
    soft = np.where(common(body["diaphragm"], body["cavity"]) < 0, organs + 5 * fine, soft)

    bone = common(body["bone"], 2.5 - aorta)
    bone_hu = 190 + 90 * fine + 480 * np.clip(1 + (bone + 2.2) / 2, 0, 1)
    # Vessels of the lung are where two random fields are both about 0: that is along threads.
    thread = np.clip(1.8 - np.hypot(rough, trabeculae) / 0.45, 0, 1)
    lung_hu = -865 + 28 * coarse + (750 + 0.4 * contrast.lung) * thread
    return Tissues(
        axes=axes,
        soft=soft.astype(np.float32),
        layers=[
            (lungs, lung_hu.astype(np.float32)),
            (sac, -92.0),
            (np.abs(sac) - 0.6, 15.0),
            (walls, contrast.muscle),
            (right_solid, right_hu.astype(np.float32)),
            (left_solid, left_hu.astype(np.float32)),
            (bone, bone_hu.astype(np.float32)),
        ],
        streaks=_streaks(q, heart, contrast, streak_angles, streak_hu),
    )


def _blood(parts: list[tuple[np.ndarray, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Signed distance of several pools together, and at each node the HU of the nearest."""
    solid, hu = parts[0][0], np.full(parts[0][0].shape, parts[0][1], np.float32)
    for part, value in parts[1:]:
        # Neighbouring pools run into each other over some millimetres.
        share = np.clip(np.float32(0.5) + (solid - part) / np.float32(8), 0, 1)
        hu += share * (np.float32(value) - hu)
        solid = np.minimum(solid, part)
    return solid, hu


def _great_vessels(heart: Heart, axes: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Signed distances (mm) of the blood in each, up to `_REACH_MM`."""
    found = {}
    for name, line in great_vessels(heart).items():
        points, radii = smooth_tube(*line, 4.0)
        found[name] = tube(axes, heart.to_lps(points), heart.size * radii, _REACH_MM)
    return found


def _body(q: np.ndarray, rough: np.ndarray, spin: float, tilt: float) -> dict[str, np.ndarray]:
    """Signed distances of the chest of someone of average build, LPS mm about the annulus."""
    x, y, z = q
    u = np.stack([np.abs(x), y, z])
    cavity = ball(q, (0.0, 12.0, -20.0), (128.0, 84.0, 190.0))
    # The spine bulges into the cavity from behind.
    spine = np.hypot((x + 1) / 1.15, y - 84 - 6 * ((z + 10) / 100) ** 2) - 17
    cavity = common(cavity, 5.0 - spine, -66.0 - y + 0.10 * np.abs(x))
    mediastinum = union(
        # Above the heart: great vessels, fat. Behind it: oesophagus. The arch's left side is lung.
        common(ball(q, (-4.0, 10.0, 75.0), (34.0, 50.0, 60.0)), 25.0 - z),
        rod(q, (4, 62, -150), (0, 56, 120), 10.0),
        common(np.abs(x - 4 + 0.1 * z) - 3, y + 20),  # before the heart both pleurae meet
    )
    diaphragm = union(
        ball(q, (-62.0, 12.0, -106.0), (78.0, 82.0, 68.0)),
        ball(q, (66.0, 22.0, -122.0), (66.0, 74.0, 62.0)),
        ball(q, (0.0, -10.0, -134.0), (70.0, 70.0, 66.0)),
    )
    diaphragm = diaphragm + 0.6 * rough

    # Ribs: rings of 28 mm height in a shell outside the cavity, lower in front.
    shell = cavity - 8
    level = (z - (0.5 + tilt) * y + 0.4 * np.abs(x) + spin) / 28
    ring = 28 * np.abs(level - np.rint(level)) * 0.85
    ribs = common(np.hypot(shell, 0.7 * ring) - 4.2, -y - 62, 8 - np.abs(x))
    disc = (z + spin) / 27
    disc = 27 * np.abs(disc - np.rint(disc))
    vertebrae = common(spine, 3.2 - disc)
    arch = union(
        np.hypot(u[0] - 13, y - 104) - 5.5,
        common(np.abs(x) - 4, np.abs(y - 118) - 12),
        common(np.hypot(u[0] - 30, y - 100) - 6, np.abs(disc - 7) - 5),
    )
    canal = np.hypot(x, y - 105) - 7.5
    sternum = common(np.abs(x) - 17, np.abs(y + 76 - 0.05 * z) - 5, -95.0 - z) + 0.8 * rough
    bone = union(ribs, vertebrae, common(arch, -canal), sternum)
    return {
        "cavity": cavity,
        "mediastinum": mediastinum,
        "diaphragm": diaphragm,
        "oesophagus": rod(q, (4, 62, -150), (0, 58, 120), 6.5),
        "bone": bone.astype(np.float32),
    }


def _streaks(
    q: np.ndarray, heart: Heart, contrast: Contrast, angles: np.ndarray, strength: np.ndarray
) -> np.ndarray:
    """HU of the dark and bright rays around a vena cava that is full of contrast medium."""
    centre = heart.to_lps(np.array([[-29.0, 3.0, 30.0]]))[0].astype(np.float32)
    x, y = q[0] - centre[0], q[1] - centre[1]
    apart = np.hypot(x, y)
    excess = max(contrast.upper - 300, 0) / 300
    high = np.clip((q[2] - centre[2] + 28) / 8, 0, 1)
    rays = np.zeros_like(x)
    for angle, hu in zip(angles, strength, strict=True):
        across = np.abs(x * np.float32(np.sin(angle)) - y * np.float32(np.cos(angle)))
        rays += np.float32(hu) * np.exp(-((across / 3.5) ** 2))
    fade = np.exp(-apart / 40) * np.clip(apart / 9 - 0.8, 0, 1)
    return (55 * excess * high * fade * rays).astype(np.float32)
