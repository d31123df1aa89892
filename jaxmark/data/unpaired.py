"""Landmarks of people without scans, from another cohort, moved into prepared volumes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxmark.config import Data
from jaxmark.core.geometry import apply_affine, fit_rigid
from jaxmark.data.cases import PreparedCase
from jaxmark.data.frame import Frame
from jaxmark.data.labels import choose_names, read_labels
from jaxmark.data.notes import Note, summed_up
from jaxmark.system.errors import InputError

# A point this far from its target gets half the weight in a fit.
_HALF_WEIGHT_MM = 5.0


def read_unpaired(
    data: Data, names: Sequence[str], said: list[str] | None = None
) -> tuple[Path, dict[str, np.ndarray]]:
    """The file or folder that was read, and case -> landmarks (K, 3) LPS mm, NaN where absent.

    Reads `data.unpaired`, or `unpaired.csv` in the cohort's folder.

    Args:
      said: gets lines on what was guessed or left out, as `Cohort.notes`.

    Raises:
      InputError: there is no such file or folder, or no case in it; a name is not one of `names`;
        see also `read_labels`.
    """
    path = Path(data.unpaired or Path(data.root) / "unpaired.csv").expanduser()
    if not path.exists():
        raise InputError(
            "config.data.unpaired",
            f"there is no {path}, and config.method.real = 'both' needs landmarks of another "
            "cohort; 'images' does without",
        )
    labels = read_labels(path, data)
    notes: list[Note] = [*labels.notes]
    choose_names(names, labels.cases, notes)
    sets = {}
    for case, (_, given, _) in labels.cases.items():
        positions = [given.get(name) for name in names]
        sets[case] = np.array([np.full(3, np.nan) if xyz is None else xyz for xyz in positions])
    if not sets:
        raise InputError(path, "holds no landmarks")
    if said is not None:
        said += summed_up(notes)
    return path, sets


def place_unpaired(
    sets: dict[str, np.ndarray],
    train: Sequence[PreparedCase],
    frame: Frame,
    align: str,
    where: Path,
) -> np.ndarray:
    """Landmarks (U, K, 3) in voxels of the prepared volumes, NaN where absent or outside of them.

    With `align` "none" the sets are in the common frame of the prepared cases. Else each set is
    fitted (rigid, or "similarity": with a scale) to the landmarks of a training case, in turn. So
    poses vary as in training; a discriminator could tell sets with one pose from predictions. Fits
    tolerate gross outliers (Cauchy weights).

    Raises:
      InputError: a set shares fewer than three landmarks with the training cases.
    """
    to_ijk = np.linalg.inv(frame.grid_to_common)
    placed = []
    for number, (case, landmarks_mm) in enumerate(sets.items()):
        if align == "none":
            ijk = apply_affine(to_ijk, landmarks_mm)
        else:
            target = train[number % len(train)].landmarks_ijk
            # In mm of the grid, since a rotation is none in anisotropic voxels.
            target_mm = apply_affine(frame.grid_to_common, target)
            try:
                fit = _robust_fit(landmarks_mm, target_mm, scale=align == "similarity")
            except ValueError as error:
                raise InputError(where, f"case {case!r} can't be aligned: {error}") from None
            ijk = apply_affine(to_ijk @ fit, landmarks_mm)
        inside = ((ijk >= 0) & (ijk <= np.asarray(frame.shape) - 1)).all(-1, keepdims=True)
        placed.append(np.where(inside, ijk, np.nan))
    return np.stack(placed)


def _robust_fit(source: np.ndarray, target: np.ndarray, *, scale: bool) -> np.ndarray:
    """`fit_rigid` of the points that both have, with weights that fall for outliers."""
    both = np.isfinite(source).all(-1) & np.isfinite(target).all(-1)
    weight = both.astype(float)
    for _ in range(10):
        fit = fit_rigid(source, target, weight, scale=scale)
        distance = np.linalg.norm(apply_affine(fit, source) - target, axis=-1)
        weight = np.where(both, 1 / (1 + (distance / _HALF_WEIGHT_MM) ** 2), 0.0)
    return fit
