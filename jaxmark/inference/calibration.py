"""What a trained model's predictions promise: presence and radius, from its validation cases.

`calibration.json` in the work dir holds what was observed there, so that any stated coverage can
be asked of it later.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmark.core.calibration import PresenceModel, conformal_radius, fit_presence
from jaxmark.core.metrics import radial_error_mm
from jaxmark.data.cases import PreparedCase
from jaxmark.inference.likeness import Usual, usual
from jaxmark.inference.predictor import Found
from jaxmark.system.errors import InputError
from jaxmark.system.files import read_json, write_json

FILE = "calibration.json"
SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Promises about K landmarks."""

    coverage: float
    radius_mm: np.ndarray  # (K,): holds the truth with this probability; infinite: not known
    presence_model: PresenceModel | None  # None: no validation case lacked a landmark
    usual: Usual | None = None  # what the cases were like; None: an earlier version observed them

    def presence(self, evidence: np.ndarray) -> np.ndarray | None:
        """(..., K) probability that a landmark is there; None where nothing is known of absence."""
        model = self.presence_model
        return None if model is None else model.probability(evidence)

    @classmethod
    def unknown(cls, landmarks: int, coverage: float) -> "Calibration":
        """Where there are no validation cases."""
        return cls(coverage, np.full(landmarks, np.inf), None)


def observe(
    found: Sequence[Found],
    cases: Sequence[PreparedCase],
    landmarks: Sequence[str],
    step: int,
    training: Sequence[PreparedCase],
    untrained: Sequence[str] = (),
) -> dict[str, Any]:
    """What predictions of validation cases, in the same order, show of a model; JSON types.

    Where these are too few to say what is usual, `training` cases say it; there may be none.
    """
    shape = (len(cases), len(landmarks))
    truth = np.array([case.landmarks_mm for case in cases]).reshape(*shape, 3)
    present = np.array([case.present for case in cases], bool).reshape(shape)
    decoders = found[0].prediction.positions_ijk if found else ()
    errors = {
        name: radial_error_mm(truth, np.stack([f.landmarks_mm(name) for f in found]), present)
        for name in decoders
    }
    evidence = np.array([f.prediction.evidence for f in found], float).reshape(shape)
    known = evidence_of(evidence, landmarks, untrained)
    like = usual(cases, training, known)
    return {
        "schema_version": SCHEMA_VERSION,
        "step": step,
        "landmarks": list(landmarks),
        "cases": [case.name for case in cases],
        "error_mm": {name: _with_none(table) for name, table in errors.items()},
        "evidence": evidence.tolist(),
        "absent": [case.absent.tolist() for case in cases],
        **({} if like is None else {"usual": like.to_json()}),
    }


def evidence_of(
    evidence: np.ndarray, landmarks: Sequence[str], untrained: Sequence[str]
) -> np.ndarray:
    """(...,) mean of (..., K) over the landmarks that were trained."""
    return np.asarray(evidence, float)[..., ~np.isin(landmarks, untrained)].mean(-1)


def calibrate(observed: dict[str, Any], decoder: str, coverage: float) -> Calibration:
    """Promises of a stated coverage; KeyError, TypeError or ValueError for damaged observations."""
    shape = (len(observed["cases"]), len(observed["landmarks"]))
    errors = np.array(observed["error_mm"][decoder] if shape[0] else [], float).reshape(shape)
    evidence = np.array(observed["evidence"], float).reshape(shape)
    absent = np.array(observed["absent"], bool).reshape(shape)
    known = errors[~np.isnan(errors)]
    if not ((0 <= known) & (known < 1e9)).all() or not (np.abs(evidence) < 1e9).all():
        raise ValueError("an error or evidence that cannot be")
    model = fit_presence(evidence, np.isfinite(errors), absent)
    like = Usual.from_json(observed["usual"]) if "usual" in observed else None
    return Calibration(coverage, conformal_radius(errors, coverage), model, like)


def save(observed: dict[str, Any], workdir: Path) -> None:
    """The file that `load` reads."""
    write_json(workdir / FILE, observed)


def load(
    workdir: Path, landmarks: Sequence[str], step: int, decoder: str, coverage: float
) -> Calibration:
    """What is known of the model of this step; nothing, where there is no file.

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
        return calibrate(observed, decoder, coverage)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(path, f"lacks a field or has a wrong one ({error!r})") from error


def _with_none(table: np.ndarray) -> list[list[float | None]]:
    return [[float(v) if np.isfinite(v) else None for v in row] for row in table]
