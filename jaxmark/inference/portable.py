"""A trained model's prediction as one function of raw intensities, for programs without jaxmark.

The function takes a scan on the model's grid. It scales intensities as `data.frame.Frame` does,
runs the method's stage, and returns landmarks in voxels of the grid.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array

from jaxmark.core.intensities import clipped_between, percentiles
from jaxmark.data.frame import Frame
from jaxmark.methods.method import Method, Variables, read_image

Outputs = dict[str, Array]
# (variables, image (B, X, Y, Z), background (B,)) -> outputs.
Program = Callable[[Variables, Array, Array], Outputs]

# Inputs and outputs of the program, for B cases and K landmarks.
INPUTS = {
    "image": "float32 (B, X, Y, Z): raw intensities on the grid, NaN where it is outside the scan",
    "background": "float32 (B,): what is taken to be outside, a percentile of the whole scan",
}
OUTPUTS = {
    "positions_ijk": "float32 (B, K, 3): voxels of the grid, voxel centres at integers",
    "score": "float32 (B, K): near 1 for a certain landmark",
    "evidence": "float32 (B, K): what speaks for presence, see calibration.presence",
    "spread_mm": "float32 (B, K): how far the heatmap lies about the position",
}
PROBABILITIES = "float32: probabilities, in the order of the scheme"


def obstacle(method: Method, frame: Frame) -> str:
    """Why a model can't be such a program; empty if it can."""
    if frame.planar:
        return "it looks at pictures, and only models of volumes are exported"
    if len(method.stages) > 1 or method.stages[0].read is not read_image:
        return (
            f"it has {len(method.stages)} stages, and the host computes between them which part of "
            "the scan comes next"
        )
    return ""


def program_of(method: Method, frame: Frame, decoder: str) -> Program:
    """The program of a model without `obstacle`; its outputs are among `OUTPUTS`.

    Further outputs are the method's probabilities, by name. For an image without contrast all
    outputs are NaN or mean nothing.
    """
    (stage,) = method.stages

    def program(variables: Variables, image: Array, background: Array) -> Outputs:
        found = stage.run(variables, {"image": scaled(frame, image, background)[..., None]})
        # Maps are dropped: they need work of the host, which is no part of a program.
        found = jax.vmap(stage.finish)(found.replace(maps={}))  # type: ignore[attr-defined]
        outputs = {
            "positions_ijk": found.positions_ijk[decoder],
            "score": found.score,
            "evidence": found.evidence,
            **found.probabilities,
        }
        return outputs if found.spread_mm is None else {**outputs, "spread_mm": found.spread_mm}

    return program


def scaled(frame: Frame, image: Array, background: Array) -> Array:
    """Raw intensities (B, X, Y, Z), NaN outside of the scan, as `Frame.prepare` scales them."""
    inside = ~jnp.isnan(image[:, ::2, ::2, ::2])
    image = jnp.where(jnp.isnan(image), background[:, None, None, None], image)
    if frame.intensity == "window":
        low, high = (jnp.full_like(background, limit) for limit in frame.intensity_range)
    else:
        low, high = percentiles(image[:, ::2, ::2, ::2], inside, frame.intensity_range)
    return clipped_between(image, low, high, frame.most).astype(jnp.float16)


def weights_of(variables: Variables) -> dict[str, Array]:
    """The arrays of variables by their paths, "params/generator/.../kernel"."""
    leaves = jax.tree_util.tree_flatten_with_path(variables)[0]
    return {_name(path): leaf for path, leaf in leaves}


def variables_of(weights: Mapping[str, Array], like: Variables) -> Variables:
    """The inverse of `weights_of`; `like` gives the tree."""
    variables: Variables = jax.tree_util.tree_map_with_path(
        lambda path, _: weights[_name(path)], like
    )
    return variables


def _name(path: tuple[object, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
