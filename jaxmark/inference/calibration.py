"""Calibration: radii and probabilities of presence, from predictions of the validation cases.

`calibration.json` in the work dir holds the observations themselves, so that radii of any coverage
can be computed later. The usual shapes are in a file beside it (`inference.shapes`).
"""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxmark.core.calibration import (
    PresenceModel,
    SpreadRadius,
    conformal_radius,
    fit_presence,
    fit_spread_radius,
)
from jaxmark.core.metrics import radial_error_mm
from jaxmark.data.cases import PreparedCase
from jaxmark.inference.likeness import Usual, usual
from jaxmark.inference.predictor import Found
from jaxmark.inference.shapes import (
    UsualShape,
    load_shape,
    save_shapes,
    shapes_of,
    usual_shape,
)
from jaxmark.system.errors import InputError
from jaxmark.system.files import read_json, write_json

FILE = "calibration.json"
# A case failed if its median error is this many times the median of all cases.
_FAILED_RATIO = 2.5
SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What is known of a model's predictions of K landmarks.

    Files of earlier versions lack some fields, which are None then.
    """

    coverage: float
    radius_mm: np.ndarray  # (K,): holds the truth with probability `coverage`; infinite: unknown
    presence_model: PresenceModel | None  # None: no validation case lacked a landmark
    usual: Usual | None = None  # what usual scans look like
    # Radii from the spread of heatmaps; `radius_mm` is for predictions without spread.
    by_spread: SpreadRadius | None = None
    shape: UsualShape | None = None  # None also if there were too few cases
    evidence: np.ndarray | None = None  # (N, K) of the validation cases; None: no scan is refused

    def radii_mm(self, spread_mm: ArrayLike | None) -> np.ndarray:
        """(K,) radii of one prediction; `spread_mm` (K,) is that of its heatmaps, if known."""
        if self.by_spread is None or spread_mm is None:
            return self.radius_mm
        return self.by_spread.radius_mm(np.asarray(spread_mm, float))

    def presence(self, evidence: np.ndarray) -> np.ndarray | None:
        """(..., K) probability of presence; None if no validation case lacked a landmark."""
        model = self.presence_model
        return None if model is None else model.probability(evidence)

    @classmethod
    def unknown(cls, landmarks: int, coverage: float) -> "Calibration":
        """The calibration without validation cases: infinite radii, no presence."""
        return cls(coverage, np.full(landmarks, np.inf), None)


@dataclasses.dataclass(frozen=True)
class Observed:
    """Observations on predictions of the validation cases, as two files hold them."""

    figures: dict[str, Any]  # JSON types, of `calibration.json`
    shapes: dict[str, UsualShape]  # decoder -> usual shapes; empty: too few cases


def observe(
    found: Sequence[Found],
    cases: Sequence[PreparedCase],
    landmarks: Sequence[str],
    step: int,
    training: Sequence[PreparedCase],
    untrained: Sequence[str] = (),
    *,
    spacing_mm: np.ndarray,
    decoders: Sequence[str],
    shapes_mm: np.ndarray | None = None,
    any_look: bool = False,
) -> Observed:
    """Observations on the predictions `found` of the validation cases, in the same order.

    Usual scans are those of the validation cases or, if these are too few, of `training` cases.

    Args:
      spacing_mm: (3,) of the prepared volumes.
      decoders: the method's.
      shapes_mm: (N, K, 3) landmarks of people, NaN where missing, in the frame of the prepared
        volumes or any other of right-handed millimetres; None: those of the training cases.
      any_look: the model is for scans of all contrasts and fields of view, so no look is unusual.
    """
    shape = (len(cases), len(landmarks))
    truth = np.array([case.landmarks_mm for case in cases]).reshape(*shape, 3)
    present = np.array([case.present for case in cases], bool).reshape(shape)
    errors = {
        name: radial_error_mm(truth, np.stack([f.landmarks_mm(name) for f in found]), present)
        for name in (decoders if found else ())
    }
    evidence = np.array([f.prediction.evidence for f in found], float).reshape(shape)
    spreads = [f.prediction.spread_mm for f in found]
    known = evidence_of(evidence, landmarks, untrained)
    like = None if any_look else usual(cases, training, known)
    if shapes_mm is None:
        shapes_mm = np.array([case.landmarks_ijk * spacing_mm for case in training])
    figures = {
        "schema_version": SCHEMA_VERSION,
        "step": step,
        "landmarks": list(landmarks),
        "cases": [case.name for case in cases],
        "error_mm": {name: _with_none(table) for name, table in errors.items()},
        "evidence": evidence.tolist(),
        # null: the method has no spread.
        "spread_mm": None
        if any(spread is None for spread in spreads)
        else np.array(spreads, float).tolist(),
        "absent": [case.absent.tolist() for case in cases],
        **({} if like is None else {"usual": like.to_json()}),
    }
    shapes = {}
    for name in decoders:
        seen_mm = np.zeros((0, len(landmarks), 3))
        if found:
            seen_mm = shapes_of(found, spacing_mm, name)
            seen_mm = np.where(present[..., None], seen_mm, np.nan)
            seen_mm = seen_mm[well_predicted(errors[name])]
        if (one := usual_shape(shapes_mm, seen_mm)) is not None:
            shapes[name] = one
    return Observed(figures, shapes)


def well_predicted(errors: np.ndarray) -> np.ndarray:
    """(N,) which cases did not fail, from the errors (N, K) of their landmarks, NaN where unknown.

    A case failed if its median error is more than `_FAILED_RATIO` times the median of these
    medians. Failed predictions do not show what is usual.
    """
    known = np.isfinite(errors).any(1)
    medians = np.full(len(errors), np.nan)
    medians[known] = np.nanmedian(errors[known], axis=1)
    limit = _FAILED_RATIO * np.median(medians[known]) if known.any() else np.inf
    return ~(medians > limit)


def evidence_of(
    evidence: np.ndarray, landmarks: Sequence[str], untrained: Sequence[str]
) -> np.ndarray:
    """(...,) the mean of `evidence` (..., K) over the landmarks that some training case has."""
    return np.asarray(evidence, float)[..., ~np.isin(landmarks, untrained)].mean(-1)


def calibrate(observed: dict[str, Any], decoder: str, coverage: float) -> Calibration:
    """The calibration for a coverage; KeyError, TypeError or ValueError for damaged figures."""
    shape = (len(observed["cases"]), len(observed["landmarks"]))
    errors = np.array(observed["error_mm"][decoder] if shape[0] else [], float).reshape(shape)
    evidence = np.array(observed["evidence"], float).reshape(shape)
    absent = np.array(observed["absent"], bool).reshape(shape)
    known = errors[~np.isnan(errors)]
    if not ((0 <= known) & (known < 1e9)).all() or not (np.abs(evidence) < 1e9).all():
        raise ValueError("an error or evidence out of range")
    # Files of earlier versions have no spread.
    spread, by_spread = observed.get("spread_mm"), None
    if spread is not None and shape[0]:
        table = np.array(spread, float).reshape(shape)
        if not ((0 <= table) & (table < 1e9)).all():
            raise ValueError("a spread out of range")
        by_spread = fit_spread_radius(errors, table, coverage)
    return Calibration(
        coverage,
        radius_mm=conformal_radius(errors, coverage),
        presence_model=fit_presence(evidence, np.isfinite(errors), absent),
        usual=Usual.from_json(observed["usual"]) if "usual" in observed else None,
        by_spread=by_spread,
        evidence=evidence[well_predicted(errors)] if "spread_mm" in observed else None,
    )


def without(observed: dict[str, Any], cases: Collection[str]) -> dict[str, Any]:
    """The observations without some cases, for radii and presence."""
    kept = [n for n, case in enumerate(observed["cases"]) if case not in cases]

    def rows(table: list[Any] | None) -> list[Any] | None:
        return None if table is None else [table[n] for n in kept]

    tables = {name: rows(observed[name]) for name in ("cases", "evidence", "spread_mm", "absent")}
    errors = {decoder: rows(table) for decoder, table in observed["error_mm"].items()}
    # `usual` is dropped: it was found from all cases.
    return {**{k: v for k, v in observed.items() if k != "usual"}, **tables, "error_mm": errors}


def save(observed: Observed, workdir: Path) -> None:
    """Write the files that `load` reads, `calibration.json` last."""
    figures = observed.figures
    save_shapes(observed.shapes, figures["landmarks"], figures["step"], workdir)
    write_json(workdir / FILE, figures)


def load(
    workdir: Path, landmarks: Sequence[str], step: int, decoder: str, coverage: float
) -> Calibration:
    """The calibration of the model of this step; `Calibration.unknown` if there is no file.

    Raises:
      InputError: the file is damaged, or of another model.
    """
    path = workdir / FILE
    if not path.exists():
        return Calibration.unknown(len(landmarks), coverage)
    observed = read_json(path, SCHEMA_VERSION)
    try:
        if observed["step"] != step or observed["landmarks"] != list(landmarks):
            raise InputError(
                path,
                f"is of step {observed['step']}, the model of step {step}: run --mode=predict of "
                "the experiment, without --input, once more",
            )
        found = calibrate(observed, decoder, coverage)
        # Earlier versions wrote no shapes: beside their file, a file of shapes is another model's.
        shape = (
            load_shape(workdir, landmarks, step, decoder) if found.evidence is not None else None
        )
        return dataclasses.replace(found, shape=shape)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(path, f"lacks a field or has a wrong one ({error!r})") from error


def _with_none(table: np.ndarray) -> list[list[float | None]]:
    return [[float(v) if np.isfinite(v) else None for v in row] for row in table]
