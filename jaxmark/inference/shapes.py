"""Compares the arrangement of landmarks with that in people; differences become doubts in words.

`shape.json` in the work dir holds a Gaussian of the training cases' shapes, and the distances of
the validation cases' predictions from it, which show how far is usual.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxmark.core.calibration import unusual_above
from jaxmark.core.shapes import LEAST_POINTS, LEAST_SHAPES, ShapeModel, fit_shapes
from jaxmark.data.notes import first_few
from jaxmark.inference.likeness import LEAST_CASES
from jaxmark.inference.predictor import Found
from jaxmark.system.errors import InputError
from jaxmark.system.files import read_sealed, sealed, write_json

FILE = "shape.json"
SCHEMA_VERSION = 1

# More shapes change little, and take time.
_MOST_SHAPES = 200
# Probability in a good scan that any landmark is doubted, and that the whole shape is.
_LEVEL, _LEVEL_OF_WHOLE = 0.01, 0.001
# A whole shape with `ShapeModel.as_a_whole` below this is never doubted: it occurs in people, even
# if the validation cases are more alike.
_LEAST_WHOLE = 2.0
# Exchanged sides explain a shape if they reduce its distance to less than this share.
_EXCHANGE_RATIO = 0.5


@dataclasses.dataclass(frozen=True)
class UsualShape:
    """A model of shapes, and the distances of N good ones from it."""

    of: str  # "validation" (predicted shapes) or "training" (annotated shapes)
    model: ShapeModel
    distance: np.ndarray  # (N, K), NaN where a landmark is missing
    whole: np.ndarray  # (N,) `ShapeModel.as_a_whole`; NaN for too few landmarks

    def doubts(
        self,
        points_mm: np.ndarray,
        judged: np.ndarray,
        landmarks: Sequence[str],
        mirrored: np.ndarray,
    ) -> list[str]:
        """Lines about landmarks that are arranged as in nobody.

        Args:
          points_mm: (K, 3) in any frame of right-handed millimetres.
          judged: (K,) landmarks that are predicted as present; only these are judged.
          mirrored: (K,) index of each landmark's twin on the other side; its own without a twin.
        """
        points = np.where(judged[:, None], points_mm, np.nan)
        if line := self.unlikely_whole(points):
            return [self._sides(points, mirrored) or line]
        limit = self._limit(judged)
        found = []
        worst = self.model.unlikely(points, limit)
        for k in list(worst):
            twin = int(mirrored[k])
            swapped = points.copy()
            swapped[[k, twin]] = points[[twin, k]]
            then = self.model.distances(swapped)
            if twin != k and k in worst and (then[[k, twin]] <= limit).all():
                points = swapped
                worst = [j for j in worst if j not in (k, twin)]
                found.append(f"{landmarks[k]} and {landmarks[twin]} are probably exchanged")
        names = [landmarks[k] for k in self.model.unlikely(points, limit)]
        if names:
            lie = "lies" if len(names) == 1 else "lie"
            found.append(
                f"{first_few(names)}: {lie} where the other landmarks make it unlikely "
                f"({100 * _LEVEL:g} % of good scans have such a doubt)"
            )
        return found

    def unlikely_whole(self, points_mm: np.ndarray) -> str:
        """A line if the whole shape (K, 3), NaN where not judged, is unlike all cases'; else ""."""
        own = self.model.as_a_whole(points_mm)
        if not own > self._whole_limit:
            return ""
        return (
            f"the landmarks are arranged as in none of the {self.of} cases (distance "
            f"{own:.1f}, theirs up to {np.nanmax(self.whole):.1f})"
        )

    def _sides(self, points: np.ndarray, mirrored: np.ndarray) -> str:
        """A line if a mirror image explains an unlikely whole shape; else ""."""
        own = self.model.as_a_whole(points)
        paired = (mirrored != np.arange(len(mirrored))).any()
        other = points[mirrored] if paired else points * np.array([-1.0, 1.0, 1.0])
        then = self.model.as_a_whole(other)
        if then < _EXCHANGE_RATIO * own and then <= self._whole_limit:
            what = "right and left are exchanged" if paired else "they are a mirror image"
            return f"the landmarks lie as if {what} (distance {own:.1f}, so {then:.1f})"
        return ""

    @functools.cached_property
    def _whole_limit(self) -> float:
        """The largest usual `as_a_whole`; rather too large for shapes with fewer landmarks."""
        known = self.whole[np.isfinite(self.whole)]
        limit = unusual_above(np.log(np.maximum(known, 1e-6)), _LEVEL_OF_WHOLE)
        # Too few cases give NaN, and then nothing is unlikely.
        return max(_LEAST_WHOLE, float(np.exp(limit))) if len(known) > 1 else np.inf

    def _limit(self, judged: np.ndarray) -> float:
        """The limit that the largest distance in a good scan exceeds with probability `_LEVEL`.

        Only judged landmarks count. Distances are skew; their logarithms hardly are.
        """
        rows = [row[judged & np.isfinite(row)] for row in self.distance]
        values = np.array([row.max() for row in rows if len(row) >= LEAST_POINTS])
        return float(np.exp(unusual_above(np.log(values), _LEVEL))) if len(values) > 1 else np.inf


def usual_shape(shapes_mm: np.ndarray, found_mm: np.ndarray) -> UsualShape | None:
    """The usual shapes; None if there are too few cases.

    Args:
      shapes_mm: (N, K, 3) annotated, NaN where missing, of training cases or of similar people.
      found_mm: (M, K, 3) predictions of validation cases, NaN where nothing is annotated.
    """
    kept = np.unique(np.linspace(0, len(shapes_mm) - 1, min(len(shapes_mm), _MOST_SHAPES)))
    fitted = fit_shapes(shapes_mm[kept.astype(int)]) if len(shapes_mm) >= LEAST_SHAPES else None
    if fitted is None:
        return None
    model, left_out, whole = fitted
    if len(found_mm) < LEAST_CASES:
        return UsualShape("training", model, left_out, whole)
    return UsualShape(
        "validation",
        model,
        np.stack([model.distances(points) for points in found_mm]),
        np.array([model.as_a_whole(points) for points in found_mm]),
    )


def shapes_of(found: Sequence[Found], spacing_mm: np.ndarray, decoder: str) -> np.ndarray:
    """(N, K, 3) predicted landmarks in mm of the prepared volumes."""
    return np.stack([np.asarray(f.prediction.positions_ijk[decoder]) for f in found]) * spacing_mm


def save_shapes(
    usual: Mapping[str, UsualShape], landmarks: Sequence[str], step: int, workdir: Path
) -> None:
    """Write the file that `load_shape` reads: one model, and the distances of each decoder."""
    path = workdir / FILE
    if not usual:
        path.unlink(missing_ok=True)
        return
    first = next(iter(usual.values()))
    tree = {
        "schema_version": SCHEMA_VERSION,
        "step": step,
        "landmarks": list(landmarks),
        "of": first.of,
        "mean_mm": _with_none(first.model.mean, 4),
        "covariance_mm2": np.round(first.model.covariance, 5).tolist(),
        "distance": {name: _with_none(shape.distance, 4) for name, shape in usual.items()},
        "whole": {name: _with_none(shape.whole[None], 4)[0] for name, shape in usual.items()},
    }
    write_json(path, sealed(tree))


def load_shape(
    workdir: Path, landmarks: Sequence[str], step: int, decoder: str
) -> UsualShape | None:
    """The usual shapes of the model of this step; None if there is no file.

    Raises:
      InputError: the file is damaged, or of another model.
    """
    path = workdir / FILE
    if not path.exists():
        return None
    tree = read_sealed(path, SCHEMA_VERSION)
    try:
        if tree["step"] != step or tree["landmarks"] != list(landmarks):
            raise InputError(
                path,
                f"is of step {tree['step']}, the model of step {step}: run --mode=predict of the "
                "experiment, without --input, once more",
            )
        count = len(landmarks)
        mean = np.array(tree["mean_mm"], float).reshape(count, 3)
        covariance = np.array(tree["covariance_mm2"], float).reshape(3 * count, 3 * count)
        distance = np.array(tree["distance"][decoder], float).reshape(-1, count)
        whole = np.array(tree["whole"][decoder], float).reshape(len(distance))
        np.linalg.cholesky(covariance)
        negative = (distance < 0).any() or (whole < 0).any()
        if negative or tree["of"] not in ("validation", "training"):
            raise ValueError("no distances of cases")
        return UsualShape(tree["of"], ShapeModel(mean, covariance), distance, whole)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, np.linalg.LinAlgError) as error:
        raise InputError(path, f"lacks a field or has a wrong one ({error!r})") from error


def _with_none(table: np.ndarray, digits: int) -> list[list[float | None]]:
    """NaN becomes None, since JSON has no NaN."""
    rows = np.round(table, digits)
    return [[float(v) if np.isfinite(v) else None for v in row] for row in rows]
