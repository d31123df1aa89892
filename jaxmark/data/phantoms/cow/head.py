"""A head around the Circle of Willis: tissues as signed distances, and smooth random fields.

Anatomy is drawn in millimetres, so that a seed gives the same head on every grid. Distances are in
mm and negative inside; tissues are painted one over the other. Numbers without a source are chosen
by eye and anatomy.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxmark.core.anatomy import COW19
from jaxmark.data.phantoms.cow.anatomy import Anatomy
from jaxmark.data.phantoms.fields import interpolate, node_weights, nodes_around, random_field
from jaxmark.data.phantoms.grids import Grid
from jaxmark.data.phantoms.solids import ball, common, rod, union

# Where the skull base hangs on the arteries: left means of 560 people (Chen et al., MICCAI 2020)
# and, for C4/C5, anatomy. The basilar's lower end is not a landmark of the scheme.
_ANCHORS_MM = {
    "C4/C5": (9.6, -10.5, -8.1),
    "ICA/OA": (9.1, -8.9, -3.1),
    "ICA/PCoA": (10.7, -0.8, 0.5),
    "ICA terminus": (15.0, 0.0, 3.5),
    "BA tip": (0.0, 11.8, 0.3),
}
_VERTEBRAL_MM = (0.0, 14.4, -24.1)

# Centre and half axes of the ellipsoid that the skin over the brain lies on.
CRANIUM_MM = ((0.0, 15.0, 20.0), (82.0, 99.0, 79.0))
NODE_MM = 2.0  # spacing of the nodes at which tissues are shaped before they go onto the grid


class Head(NamedTuple):
    """Tissues at nodes every NODE_MM; the axes are relative to `centre` (LPS mm)."""

    centre: np.ndarray
    axes: list[np.ndarray]
    tissue: dict[str, np.ndarray]  # signed distances, mm; later ones lie over earlier ones
    fine: np.ndarray  # SD 1: textures of 3 and 24 mm
    coarse: np.ndarray


def draw_head(rng: np.random.Generator, grid: Grid, anatomy: Anatomy) -> Head:
    """The tissues around this anatomy's vessels, at nodes that cover the grid."""
    centre, axes, q = standard_places(rng, grid, anatomy, NODE_MM)
    rough, gyri, fine, coarse = (random_field(rng, mm, axes) for mm in (7.0, 6.5, 3.0, 24.0))
    x, y, z = q
    down = np.where(z < 20, 20 + (z - 20) / 3, z)  # face and neck go on below the brain
    outer = ball((x, y, down), *CRANIUM_MM)
    return Head(centre, axes, shape_tissues(q, outer, rough, gyri, fine), fine, coarse)


def standard_places(
    rng: np.random.Generator,
    grid: Grid,
    anatomy: Anatomy,
    node_mm: float,
    stretch: Sequence[float] | np.ndarray = (1.0, 1.0, 1.0),
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """What place of the standard head is seen at nodes that cover the grid.

    Args:
      node_mm: distance of the nodes.
      stretch: how much wider, longer and higher than the standard head this one is.

    Returns:
      The head's centre (3,) LPS mm, the axes of the nodes relative to it, and (3, a, b, c) mm.
    """
    own, standard = _anchors(anatomy, np.array(stretch))
    centre = (own - standard).mean(0)
    axes = [
        nodes_around(axis - middle, node_mm)
        for axis, middle in zip(grid.axes_mm, centre, strict=True)
    ]
    place = _follow(rng, axes, own - centre, standard)
    turn = anatomy.rotation.T / np.array(stretch)[:, None]
    q = (turn.astype(np.float32) @ place.reshape(3, -1)).reshape(place.shape)
    return centre, axes, q


def _anchors(anatomy: Anatomy, stretch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """This person's anchors (9, 3) LPS mm, and the standard head's, turned like this person's."""
    own, standard = [anatomy.vertebral_mm], [_VERTEBRAL_MM]
    for base, (x, y, z) in _ANCHORS_MM.items():
        for name, place in ((f"{base} R", (-x, y, z)), (f"{base} L", (x, y, z)), (base, (x, y, z))):
            if name in COW19.landmarks:
                own.append(anatomy.landmarks_mm[COW19.landmark(name)])
                standard.append(place)
    return np.array(own), np.array(standard) * stretch @ anatomy.rotation.T


def _follow(
    rng: np.random.Generator, axes: Sequence[np.ndarray], own: np.ndarray, standard: np.ndarray
) -> np.ndarray:
    """(3, a, b, c): the place of the turned standard head that is seen at each node, mm.

    Near the anchors (A, 3) it is as far from the standard's as they are; elsewhere smooth random
    displacement makes heads differ. All relative to the head's centre.
    """
    reach_mm, shyness = 7.0, 0.3  # of the anchors' pull; how soon it ends
    coarse = [nodes_around(axis, 8.0) for axis in axes]
    x, y, z = (
        np.exp(-((nodes[:, None] - places) ** 2) / (2 * reach_mm**2))
        for nodes, places in zip(coarse, own.T, strict=True)
    )
    share = np.einsum("ak,bk,ck->kabc", x, y, z)
    share /= shyness + share.sum(0)
    pull = np.einsum("kd,kabc->dabc", standard - own, share).astype(np.float32)
    weights = [
        node_weights(axis, nodes, cubic=True) for axis, nodes in zip(axes, coarse, strict=True)
    ]
    place = np.stack(np.meshgrid(*(axis.astype(np.float32) for axis in axes), indexing="ij"))
    for part, moved in zip(place, pull, strict=True):
        part += interpolate(moved, weights) + np.float32(1.5) * random_field(rng, 30.0, axes)
    return place


def shape_tissues(
    q: np.ndarray, outer: np.ndarray, rough: np.ndarray, gyri: np.ndarray, fine: np.ndarray
) -> dict[str, np.ndarray]:
    """Signed distances of the standard head's tissues at places q (3, a, b, c), in mm.

    `outer` is that of the head's surface. The cavity of the skull is a union of fossae, bone a
    shell around it with what sticks out. The fields of SD 1 roughen surfaces, fold the cortex and
    break up muscles and air cells.
    """
    x, y, z = q
    u = np.stack([np.abs(x), y, z])  # both sides at once
    orbit = ball(u, (27, -48, -9), (15, 26, 14))
    clivus = -0.93 * (y - 2) - 0.37 * z  # falls backwards from the dorsum sellae
    # The back of the petrous bones, below the ridge from (15, 12, -15) to (45, 25, -12).
    petrous = -0.85 * (y - 12) + 0.37 * (u[0] - 15) - 0.45 * (z + 13)
    cavity = union(
        common(ball(q, (0, 15, 20), (68, 85, 65)), -2.5 - z),  # on the anterior fossa's floor
        ball(u, (34, -1, -6), (20, 18, 13)),  # middle fossae
        common(ball(q, (0, 50, -22), (52, 46, 42)), clivus, petrous),  # posterior fossa
        ball(q, (0, -3, -6), (6.5, 5.5, 5.5)),  # sella
    )
    cavity = common(cavity, 2.5 - orbit) + 0.5 * rough
    sinus = ball(u, (11.7, -4, -8), (5, 10, 6))
    cells = 2.5 * np.abs(fine)
    air = union(
        ball(u, (4.5, -9, -20), (6.5, 10, 7)) + 0.5 * rough,  # sphenoid
        ball(q, (0, -38, -20), (12, 15, 13)) + cells - 1,  # ethmoid
        ball(u, (46, 28, -22), (10, 9, 10)) + cells,  # mastoid
    )
    thickness = 3.5 + np.clip(z / 10, 0, 2.5) + 0.7 * rough
    bone = union(
        cavity - thickness,
        np.abs(orbit) - 1,
        ball(q, (0, -8, -18), (15, 15, 12)),  # body of the sphenoid
        rod(q, (0, -1, -14), (0, 9, -36), 8),  # clivus
        rod(u, (46, 27, -22), (47, 30, -24), 12),  # mastoids
    )
    bone = union(
        common(bone, -cavity),
        ball(q, (0, 3.5, -3), (8, 2, 4.5)),  # dorsum sellae
        ball(u, (12.5, -10, -2), (2.3, 4.5, 2.2)),  # anterior clinoid processes
        rod(u, (13, -13, -1), (42, -26, -1), 2.2),  # lesser wings
        rod(u, (15, 12, -18), (46, 27, -17), 6) + 0.7 * rough,  # petrous bones
    )

    # Midbrain, pons; open upwards to the thalamus, and backwards to the cerebellum.
    stem = union(ball(q, (0, 23, 6), (14, 10.5, 22)), ball(q, (0, 29, -20), (16, 12.5, 15)))
    stem += 0.7 * rough
    # Sheets along which a random field is 0, as far into the brain as sulci go.
    sulci = 3.0 * np.abs(gyri) - 0.7 + np.maximum(0, -cavity - 20) / 5
    csf = union(
        -cavity - 1.8 - 0.6 * rough,  # under the skull
        common(sulci, 3 - stem),
        common(stem - 3.5, -stem, y - 36 - 0.5 * z, z - 11),  # ambient, prepontine
        ball(q, (0, -1, 2.5), (12, 11, 5.5)) + 0.7 * rough,  # suprasellar
        ball(q, (0, 11, 0), (4.5, 5, 6)),  # interpeduncular
        rod(u, (14, 0, 4), (30, -6, 4), 3),  # Sylvian fissures
        ball(u, (38, -1, 11), (3, 15, 15)) + rough,
        common(np.abs(x + rough) - 1.3, -ball(q, (0, 8, 12), (90, 30, 22))),  # above the callosum
        ball(q, (0, 7, 13), (2, 11, 8)),  # third ventricle
        ball(u, (9, -4, 25), (4.5, 20, 6)) + 0.5 * rough,  # lateral ventricles
        ball(u, (20, 26, 20), (5, 8, 10)) + 0.5 * rough,
        ball(q, (0, 40, -19), (5, 3.5, 9)),  # fourth ventricle
    )
    pituitary = ball(q, (0, -3, -7), (6, 4.5, 4))
    nerves = union(
        *(rod(u, (17, -24, -3), tip, 2) for tip in ((27, -60, -6), (38, -55, -7), (27, -52, 3)))
    )
    planes = 5 * np.abs(rough) - 1.7  # fat between the muscles of the face
    nuclei = union(ball(u, (9, 12, 14), (7, 13, 8)), ball(u, (22, -2, 12), (6, 14, 8)))
    return {
        "grey": union(sulci - 3, -cavity - 4.5, nuclei, pituitary),
        "muscle": -cavity,
        "fat": common(union(orbit, planes, -6 - outer), -nerves, -cavity),
        "sinus": sinus,
        "csf": common(csf, cavity, -sinus, -pituitary),
        "bone": common(bone, -sinus, 0.8 - air, outer),
        "air": union(air, -outer),
    }
