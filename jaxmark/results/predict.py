"""Landmarks of one case with all that is promised of them, and the files that say so."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from jaxmark.config import Experiment
from jaxmark.data.landmarks import Landmarks, write_fcsv, write_mrk_json, write_table
from jaxmark.inference.predictor import Found, Predictor, Volume
from jaxmark.methods.method import Method, Params
from jaxmark.results.calibration import Calibration
from jaxmark.system.errors import InputError
from jaxmark.system.files import read_json, write_json
from jaxmark.system.processes import from_primary, primary
from jaxmark.training.checkpoints import Checkpoints

DECODERS = ("argmax", "subvoxel")
# Columns behind the coordinates in tables of predictions.
COLUMNS = ("score", "presence", "radius_mm")
# In the folder of a split's predictions.
LEARNED = "learned.json"
# Of the points in 3D Slicer: seen on bright vessels and on dark brain.
COLOR = (0.30, 1.0, 0.42)


@dataclasses.dataclass(frozen=True)
class PredictedCase:
    """Landmarks of one scan in its own LPS millimetres; K of them, by name."""

    name: str
    landmarks: tuple[str, ...]
    positions_mm: np.ndarray  # (K, 3)
    score: np.ndarray  # (K,)
    presence: np.ndarray | None  # (K,) probability; None where nothing is known of absence
    radius_mm: np.ndarray  # (K,) holds the truth with probability `coverage`; infinite: not known
    coverage: float

    @classmethod
    def of(
        cls, found: Found, landmarks: Sequence[str], decoder: str, calibration: Calibration
    ) -> "PredictedCase":
        """What a network found, with what validation cases say of it."""
        return cls(
            name=found.name,
            landmarks=tuple(landmarks),
            positions_mm=found.landmarks_mm(decoder),
            score=found.score,
            presence=calibration.presence(found.evidence),
            radius_mm=calibration.radius_mm,
            coverage=calibration.coverage,
        )

    @property
    def hidden(self) -> tuple[str, ...]:
        """Landmarks that are rather not there."""
        if self.presence is None:
            return ()
        rows = zip(self.landmarks, self.presence, strict=True)
        return tuple(name for name, share in rows if share < 0.5)

    def points(self) -> Landmarks:
        """Positions by name."""
        return dict(zip(self.landmarks, self.positions_mm, strict=True))

    def columns(self) -> dict[str, dict[str, float | None]]:
        """Column -> landmark -> number, None where nothing is known."""
        values = {
            "score": self.score,
            "presence": np.full(len(self.landmarks), np.nan)
            if self.presence is None
            else self.presence,
            "radius_mm": self.radius_mm,
        }
        return {
            column: {
                name: float(value) if np.isfinite(value) else None
                for name, value in zip(self.landmarks, values[column], strict=True)
            }
            for column in COLUMNS
        }

    def descriptions(self) -> dict[str, str]:
        """Landmark -> a few words for a person."""
        columns = self.columns()
        words = {}
        for name in self.landmarks:
            said = []
            if (presence := columns["presence"][name]) is not None:
                said.append(f"presence {presence:.2f}")
            if (radius := columns["radius_mm"][name]) is not None:
                said.append(f"within {radius:.1f} mm ({100 * self.coverage:g} %)")
            words[name] = ", ".join([*said, f"score {columns['score'][name]:.3f}"])
        return words


def write_markups(case: PredictedCase, folder: Path, *, fcsv: bool) -> None:
    """`<case>.mrk.json` and, if asked for, `<case>.fcsv`, which 3D Slicer opens."""
    points, words, hidden = case.points(), case.descriptions(), case.hidden
    markups = folder / f"{case.name}.mrk.json"
    write_mrk_json(markups, points, descriptions=words, hidden=hidden, color=COLOR)
    if fcsv:
        write_fcsv(folder / f"{case.name}.fcsv", points, descriptions=words, hidden=hidden)


def write_predictions(path: Path, cases: Iterable[PredictedCase]) -> None:
    """One table of any number of cases."""
    listed = list(cases)
    columns = {column: {case.name: case.columns()[column] for case in listed} for column in COLUMNS}
    write_table(path, {case.name: case.points() for case in listed}, columns)


def load_params(
    method: Method, experiment: Experiment, workdir: Path, mesh: Mesh
) -> tuple[Params, int]:
    """The parameters that `config.predict.checkpoint` names ("best" or "last"), and their step."""
    checkpoints = Checkpoints(workdir)
    best = experiment.predict.checkpoint == "best"
    steps = from_primary(
        "model's step", checkpoints.best_first() if best else checkpoints.steps()[::-1]
    )
    abstract = jax.eval_shape(method.init, jax.random.key(0))
    found = checkpoints.first_whole(
        steps, lambda step: checkpoints.params(step, abstract.params, mesh)
    )
    if found is None:
        raise InputError(checkpoints.folder, "holds no finished checkpoint: train first")
    step, params = found
    return params, step


def write_learned(method: Method, params: Params, landmarks: Sequence[str], folder: Path) -> str:
    """What the method has learned of each landmark, as `learned.json`; a line for a person.

    Neither is there for a method that learns no such thing.
    """
    learned = {name: np.asarray(v, float) for name, v in method.learned(params).items()}
    if not learned:
        return ""
    write_json(
        folder / LEARNED,
        {
            "schema_version": 1,
            "landmarks": list(landmarks),
            "learned": {name: values.tolist() for name, values in learned.items()},
        },
    )
    return "learned: " + ", ".join(
        f"{name} {values.min():.3g} ({landmarks[int(values.argmin())]}) to {values.max():.3g} "
        f"({landmarks[int(values.argmax())]})"
        for name, values in learned.items()
    )


def read_learned(folder: Path, landmarks: Sequence[str]) -> dict[str, dict[str, float]]:
    """Number -> landmark -> value, as `write_learned` wrote it; nothing where there is no file.

    Raises InputError where it is damaged or of other landmarks.
    """
    path = folder / LEARNED
    if not path.exists():
        return {}
    tree = read_json(path, 1)
    if tree.get("landmarks") != list(landmarks):
        raise InputError(path, "is of other landmarks: run --mode=predict again")
    try:
        return {
            str(name): dict(zip(landmarks, map(float, values), strict=True))
            for name, values in tree["learned"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(path, f"lacks a field or has a wrong one ({error!r})") from error


def find(
    predictor: Predictor, params: Params, volumes: Iterable[Volume], total: int, what: str
) -> list[Found]:
    """Landmarks of prepared volumes, with a progress bar."""
    found = predictor(params, volumes)
    return list(tqdm(found, total=total, desc=what, unit="scan", disable=not primary()))


def write_split(
    found: Sequence[Found],
    landmarks: Sequence[str],
    decoder: str,
    calibrations: dict[str, Calibration],
    folder: Path,
) -> None:
    """Predictions of a cohort's split.

    A `<case>.mrk.json` each, with the decoder asked for, and for every decoder one table,
    `landmarks_<decoder>.csv`.
    """
    for name in DECODERS:
        cases = [PredictedCase.of(f, landmarks, name, calibrations[name]) for f in found]
        if name == decoder:
            for case in cases:
                write_markups(case, folder, fcsv=False)
        write_predictions(folder / f"landmarks_{name}.csv", cases)
