"""Slices that are stacked into a volume: whether they are even, and what is done with tilted ones.

Where a CT's gantry was tilted, each slice is shifted along its plane against the one before: the
grid is even, but sheared. Slices are then shifted back onto a grid with right angles.
"""

import math
from pathlib import Path

import numpy as np

from jaxmark.core.geometry import compose_affine
from jaxmark.data.formats.safeguards import check_place, check_shape, rounded
from jaxmark.system.errors import InputError

# Gantries go to 30 degrees.
_MAX_TILT_DEGREES = 45.0
# A tilted volume needs a larger box, by no more than this.
_MAX_GROWTH = 4
# Shifts so near to a whole voxel are one, so that nothing is blurred by rounding.
_WHOLE = 1e-3


def check_steps(where: Path, origins: np.ndarray, normal: np.ndarray) -> np.ndarray | None:
    """Refuses slices that are not evenly stacked, which ITK takes any for.

    Args:
      origins: (N, 3) mm, in their order along `normal`, a unit vector.

    Returns:
      None where they are stacked along the normal, else the step (3,) from each to the next: the
      slices are tilted.

    Raises:
      InputError: the steps are uneven.
    """
    steps = np.diff(origins, axis=0)
    step = np.median(steps, axis=0)
    straight = np.median(steps @ normal) * normal
    # Positions in DICOM are decimal text, often with two or three digits after the point.
    allowed = 0.01 * np.linalg.norm(straight) + 0.01
    tilted = bool(np.linalg.norm(step - straight) > allowed)
    expected = step if tilted else straight
    off = np.linalg.norm(steps - expected, axis=1)
    worst = int(off.argmax())
    if not (np.linalg.norm(straight) > 0 and off[worst] <= allowed):
        raise InputError(
            where,
            f"the step from slice {worst + 1} to {worst + 2} is {rounded(steps[worst])} mm, "
            f"elsewhere {rounded(expected)}: a slice is missing or doubled, or the slices are "
            "uneven or tilted",
        )
    if not tilted:
        return None
    mean: np.ndarray = (origins[-1] - origins[0]) / len(steps)
    return mean


def stacked(first: np.ndarray, step: np.ndarray) -> np.ndarray:
    """(4, 4) ijk_to_lps of slices: of the first one's place `first` (4, 4) and their step (3,)."""
    return compose_affine(np.column_stack([first[:3, :2], step]), first[:3, 3])


def right_angled(
    where: Path, voxels: np.ndarray, ijk_to_lps: np.ndarray
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Voxels of tilted slices on a grid with right angles that holds them all, and a note.

    Each slice keeps its plane and is shifted in it, linearly between voxels; around it lies the
    volume's lowest value.

    Args:
      voxels: (X, Y, Z) float32.
      ijk_to_lps: (4, 4) of them; its third column is not at right angles to the first two.

    Raises:
      InputError: the slices are tilted by over 45 degrees, or the grid would be over 4 times as
        large.
    """
    columns = ijk_to_lps[:3, :3]
    along = np.linalg.pinv(columns[:, :2]) @ columns[:, 2]
    in_plane = columns[:, :2] @ along
    across = columns[:, 2] - in_plane
    degrees = math.degrees(math.atan2(np.linalg.norm(in_plane), np.linalg.norm(across)))
    if not degrees <= _MAX_TILT_DEGREES:
        problem = f"its slices are tilted by {degrees:.1f} degrees: each is shifted in its plane by"
        problem += f" {np.linalg.norm(in_plane):.3g} mm; up to {_MAX_TILT_DEGREES:g} are read"
        raise InputError(where, problem)
    # Of each slice in voxels, (Z, 2), from a new first voxel on.
    shifts = np.outer(np.arange(voxels.shape[2]), along)
    first = np.floor(shifts.min(0) + _WHOLE)
    shifts -= first
    x, y = (int(n) for n in np.ceil(shifts.max(0) - _WHOLE) + voxels.shape[:2])
    check_shape(where, (x, y, voxels.shape[2]))
    if x * y > _MAX_GROWTH * math.prod(voxels.shape[:2]):
        problem = f"its slices are tilted by {degrees:.1f} degrees: at right angles they would have"
        raise InputError(where, f"{problem} {(x, y, voxels.shape[2])} voxels, of {voxels.shape}")
    place = compose_affine(
        np.column_stack([columns[:, :2], across]), ijk_to_lps[:3, 3] + columns[:, :2] @ first
    )
    check_place(where, (x, y, voxels.shape[2]), place)
    lowest = voxels.min()
    box = np.full((x, y, voxels.shape[2]), lowest, np.float32, order="F")
    for k, (shift_x, shift_y) in enumerate(shifts):
        part, begin_x = _shifted(voxels[:, :, k], shift_x)
        part, begin_y = _shifted(part.T, shift_y)
        height, width = part.shape
        box[begin_x : begin_x + width, begin_y : begin_y + height, k] = part.T
    note = (
        f"its slices are tilted by {degrees:.1f} degrees (gantry): shifted onto right angles, "
        f"{voxels.shape} voxels became {box.shape}, filled up with {lowest:g}"
    )
    return box, place, (note,)


def _shifted(voxels: np.ndarray, shift: float) -> tuple[np.ndarray, int]:
    """Values at whole indices of an array moved along its first axis, and the first such index."""
    whole = math.floor(shift + _WHOLE)
    part = np.float32(shift - whole)
    if part < _WHOLE:
        return voxels, whole
    return voxels[1:] * (1 - part) + voxels[:-1] * part, whole + 1
