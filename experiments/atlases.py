"""Landmarks without learning: registration transfers those of the training cases.

    python -m experiments.atlases --config=experiments/compare.py:small/Atlases --workdir=WORKDIR

The cohort is prepared as for training, so scans are registered as `config.data.register` says.
Atlases are training cases with their landmarks; a landmark's position is the median of those in all
atlases. With `mesh_mm` each atlas is first deformed onto the scan: a free-form deformation by cubic
B-splines (Rueckert et al., IEEE TMI 1999), fitted by SimpleITK to the squared difference of
intensities. The work dir then has the predictions, evaluation and report of a run. Radii come from
the disagreement of the atlases and are calibrated on the validation cases.
"""

import contextlib
import dataclasses
import functools
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import SimpleITK as sitk
from absl import app, flags, logging
from jax import Array
from ml_collections import config_flags

from experiments.commands import check_no_arguments, errors_on_one_line
from jaxmark.bounds import NOT_NEGATIVE, POSITIVE, Problem, setting, volumes_only
from jaxmark.config import SCHEMA_VERSION, from_json, validate
from jaxmark.data.cases import PreparedCase
from jaxmark.inference.predictor import Found
from jaxmark.methods.method import Method, Need, Prediction, State, Task, Variables
from jaxmark.registry import METHODS, PHANTOMS
from jaxmark.system.files import read_json
from jaxmark.system.parallel import parallel, worker_pool
from jaxmark.workflow import Run, evaluate, owned, predict, prepare, report


@dataclasses.dataclass
class Atlases:
    """Settings of the row without learning."""

    # Largest number of atlases, evenly spread over the sorted training cases.
    atlases: int = setting(100, POSITIVE)
    # Distance of the deformation's nodes; 0: no deformation. On phantoms' validation cases it
    # increases the error: a mesh as fine as the thin arteries follows other structures.
    mesh_mm: float = setting(0.0, NOT_NEGATIVE)
    iterations: int = setting(20, POSITIVE)

    decoders: ClassVar[tuple[str, ...]] = ("subvoxel",)
    metrics: ClassVar[Mapping[str, str]] = {}

    @property
    def needs(self) -> frozenset[Need]:
        """See `Settings`."""
        return frozenset()

    def misfits(self, task: Task) -> Iterator[Problem]:
        """See `Settings`."""
        yield from volumes_only(task.crop)

    def build(self, task: Task) -> Method:
        """A method without networks or training; see `AtlasRun`."""

        def init(key: Array) -> State:
            return State(step=jnp.zeros((), jnp.int32), params={}, optimizer={})

        return Method(init=init, phases=(), stages=())


@dataclasses.dataclass(frozen=True)
class AtlasRun(Run):
    """A run whose predictions come from registration."""

    def variables(self) -> tuple[int, Variables]:
        """Step 0, and no variables."""
        return 0, Variables({})

    def find(
        self, variables: Variables, cases: Sequence[PreparedCase], what: str
    ) -> Iterator[Found]:
        """Register each atlas to each case, in processes; the progress bar is called `what`."""
        settings = self.experiment.method
        training = self.prepared.split("train")
        chosen = np.linspace(0, len(training) - 1, min(settings.atlases, len(training)))
        atlases = [training[i] for i in np.rint(chosen).astype(int)]
        carry = functools.partial(
            carried, atlases=atlases, spacing_mm=self.experiment.data.spacing_mm, settings=settings
        )
        with worker_pool(self.experiment.data.workers, len(cases)) as pool:
            found = parallel(pool, carry, cases, what)
        return (
            Found(case.volume, prediction) for case, prediction in zip(cases, found, strict=True)
        )


def open_run(workdir: Path) -> Run:
    """The run of a work dir, with atlases or a trained model."""
    path, kinds = workdir / "config.json", {**METHODS, **PHANTOMS, "Atlases": Atlases}
    experiment = from_json(read_json(path, SCHEMA_VERSION), kinds, path)
    # Notes on the cohort were printed when the row was trained.
    with contextlib.redirect_stdout(io.StringIO()):
        run = prepare(experiment, workdir)
    return as_atlases(run) if isinstance(run.experiment.method, Atlases) else run


def as_atlases(run: Run) -> AtlasRun:
    """The same run with predictions by registration."""
    fields: Iterable[dataclasses.Field[Any]] = dataclasses.fields(Run)
    return AtlasRun(**{f.name: getattr(run, f.name) for f in fields})


def carried(
    case: PreparedCase,
    atlases: Sequence[PreparedCase],
    spacing_mm: Sequence[float],
    settings: Atlases,
) -> Prediction:
    """The median over atlases of their landmarks in the case, in voxels of the prepared volume."""
    image = case.image()
    places = []
    for atlas in atlases:
        points = np.where(atlas.present[:, None], atlas.landmarks_ijk, np.nan)
        if settings.mesh_mm:
            bend = fitted(atlas.image(), image, spacing_mm, settings)
            points_mm = np.nan_to_num(points) * spacing_mm
            moved = np.array([bend.TransformPoint(point) for point in points_mm.tolist()])
            points = np.where(np.isnan(points), np.nan, moved / spacing_mm)
        places.append(points)
    middle, spread_mm = consensus(np.stack(places), spacing_mm)
    # The score of every landmark is the case's agreement with the template.
    score = np.full(len(middle), np.nan_to_num(case.quality))
    return Prediction(
        positions_ijk={"subvoxel": middle.astype(np.float32)},  # type: ignore[dict-item]
        score=score,  # type: ignore[arg-type]
        evidence=score,  # type: ignore[arg-type]
        spread_mm=spread_mm,  # type: ignore[arg-type]
    )


def consensus(places: np.ndarray, spacing_mm: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Median (K, 3) of places (A, K, 3), NaN where an atlas lacks the landmark; its spread (K,) mm.

    A landmark that no atlas has gets the middle of the others and a spread of 0; it is not
    evaluated.
    """
    seen = np.isfinite(places).all(-1).any(0)
    middle = np.zeros(places.shape[1:])
    middle[seen] = np.nanmedian(places[:, seen], axis=0)
    middle[~seen] = middle[seen].mean(0)
    away_mm = np.linalg.norm((places - middle) * spacing_mm, axis=-1)
    spread_mm = np.zeros(len(middle))
    spread_mm[seen] = np.sqrt(np.nanmean(away_mm[:, seen] ** 2, axis=0))
    return middle, spread_mm


def fitted(
    atlas: np.ndarray, case: np.ndarray, spacing_mm: Sequence[float], settings: Atlases
) -> sitk.Transform:
    """The map from points of the atlas to points of the case, in mm."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    fixed, moving = (_image(voxels, spacing_mm) for voxels in (atlas, case))
    extent_mm = np.multiply(atlas.shape, spacing_mm)
    mesh = np.maximum(np.rint(extent_mm / settings.mesh_mm), 1).astype(int).tolist()
    bend = sitk.BSplineTransformInitializer(fixed, mesh)
    fit = sitk.ImageRegistrationMethod()
    # Its gradient is local, unlike a correlation's, which makes a step far faster.
    fit.SetMetricAsMeanSquares()
    fit.SetMetricSamplingStrategy(fit.RANDOM)
    fit.SetMetricSamplingPercentage(0.25, seed=1)
    fit.SetInterpolator(sitk.sitkLinear)
    fit.SetShrinkFactorsPerLevel([4, 2])
    fit.SetSmoothingSigmasPerLevel([4 * max(spacing_mm), 2 * max(spacing_mm)])
    fit.SetOptimizerAsLBFGSB(numberOfIterations=settings.iterations)
    fit.SetInitialTransform(bend, inPlace=True)
    fit.Execute(fixed, moving)
    return bend


def _image(voxels: np.ndarray, spacing_mm: Sequence[float]) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T, np.float32))
    image.SetSpacing([float(mm) for mm in spacing_mm])
    return image


def main(argv: Sequence[str]) -> None:
    """Prepare, transfer landmarks, evaluate and report, as `jaxmark.main` does."""
    logging.set_verbosity(logging.FATAL)
    values: Any = flags.FLAGS
    with errors_on_one_line():
        check_no_arguments(argv)
        workdir = Path(values.workdir)
        with owned(workdir):
            run = as_atlases(prepare(validate(values.config), workdir))
            predict(run)
            evaluate(run)
            report(run)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", lock_config=True)
    flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    app.run(main)
