"""Small volumes with two landmarks, for the tests of methods."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmark.config import Augment
from jaxmark.core.anatomy import scheme_of
from jaxmark.core.heatmaps import gaussians
from jaxmark.methods.method import Batch, Task

CROP, MARGIN, SPACING = (16, 16, 8), 2, (1.0, 1.0, 2.0)
TASK = Task(
    scheme=scheme_of(("a", "b")),
    crop=CROP,
    margin=(MARGIN,) * 3,
    spacing_mm=SPACING,
    augment=Augment(translation_voxels=2),
)


def batch(count=4, seed=0, nearest=6):
    """Volumes with a large bright spot and a small dim one, the two landmarks.

    `nearest` voxels is how near they may be to the first faces.
    """
    rng = np.random.default_rng(seed)
    full = tuple(n + 2 * MARGIN for n in CROP)
    points = jnp.asarray(rng.uniform(nearest, np.array(full) - 6, (count, 2, 3)), jnp.float32)
    big = gaussians(points[:, :1], full, SPACING, 2.5)
    small = gaussians(points[:, 1:], full, SPACING, 1.2)
    return Batch(
        image=(big + 0.5 * small).astype(jnp.float16),
        landmarks_ijk=points,
        present=jnp.ones((count, 2), bool),
        absent=jnp.zeros((count, 2), bool),
    )


def predict(method, state, image):
    """What the method's only stage says of volumes with their margin, in voxels of the crop."""
    (stage,) = method.stages
    return jax.jit(stage.run)(state.variables, {"image": image})


def error_mm(prediction, landmarks_ijk):
    """Distances (B, K) of sub-voxel positions from landmarks in voxels of the volume."""
    moved = prediction.positions_ijk["subvoxel"] - (landmarks_ijk - MARGIN)
    return jnp.linalg.norm(moved * np.array(SPACING), axis=-1)
