"""Landmarks of prepared cases and of raw scans, in each scan's own LPS millimetres."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from jaxmark.config import Experiment, check_same
from jaxmark.core.errors import InputError
from jaxmark.core.files import read_json
from jaxmark.data.landmarks import Landmarks, write_mrk_json, write_table
from jaxmark.data.prepare import load_frame, prepare_scan
from jaxmark.data.scans import case_name, find_scans, read_scan
from jaxmark.methods.method import Method, Params
from jaxmark.training.checkpoints import Checkpoints
from jaxmark.training.inference import Found, Predictor, Volume

DECODERS = ("argmax", "subvoxel")


def load_params(
    method: Method, experiment: Experiment, workdir: Path, mesh: Mesh
) -> tuple[Params, int]:
    """The parameters that `config.predict.checkpoint` names ("best" or "last"), and their step."""
    checkpoints = Checkpoints(workdir, read_only=True)
    best = experiment.predict.checkpoint == "best"
    step = checkpoints.best_step() if best else checkpoints.latest_step()
    if step is None:
        raise InputError(checkpoints.folder, "holds no finished checkpoint: train first")
    abstract = jax.eval_shape(method.init, jax.random.key(0))
    params = checkpoints.restore_params(step, abstract.params, mesh)
    checkpoints.close()
    return params, step


def predict(
    predictor: Predictor,
    params: Params,
    volumes: Iterable[Volume],
    *,
    total: int,
    landmarks: Sequence[str],
    decoder: str,
    folder: Path,
) -> list[Found]:
    """Find the landmarks of `volumes` and write them into `folder`.

    A `<case>.mrk.json` each, with the decoder asked for, and for every decoder one table,
    `landmarks_<decoder>.csv`.
    """
    bar = tqdm(predictor(params, volumes), total=total, desc="predicting", unit="scan")
    found = []
    for result in bar:
        scores = dict(zip(landmarks, result.score.tolist(), strict=True))
        write_mrk_json(
            folder / f"{result.name}.mrk.json",
            _named(landmarks, result.landmarks_mm(decoder)),
            descriptions={name: f"score {score:.3f}" for name, score in scores.items()},
        )
        found.append(result)
    for name in DECODERS:
        write_table(
            folder / f"landmarks_{name}.csv",
            {f.name: _named(landmarks, f.landmarks_mm(name)) for f in found},
            {f.name: dict(zip(landmarks, f.score.tolist(), strict=True)) for f in found},
        )
    return found


def predict_scans(
    experiment: Experiment,
    workdir: Path,
    scans: Path,
    folder: Path,
    mesh: Mesh,
    build: Callable[[Experiment, tuple[str, ...]], Method],
) -> int:
    """Find landmarks in raw scans: a file, a DICOM folder, or a folder of these; how many."""
    check_same(read_json(workdir / "config.json"), experiment, workdir, parts=("method",))
    frame, landmarks = load_frame(workdir / "preparation")
    data = experiment.data
    if frame.shape != tuple(n + 2 * data.margin for n in data.crop):
        raise InputError(
            "config.data.crop", f"with its margin is not {frame.shape}, the model's in {workdir}"
        )
    method = build(experiment, landmarks)
    params, _ = load_params(method, experiment, workdir, mesh)
    sources = scans_at(scans)

    def volumes() -> Iterator[Volume]:
        for name, path in sources.items():
            image, ijk_to_lps = prepare_scan(read_scan(path), frame)
            yield Volume(name, image.astype(np.float16), ijk_to_lps)

    predict(
        Predictor(method, experiment, mesh),
        params,
        volumes(),
        total=len(sources),
        landmarks=landmarks,
        decoder=experiment.predict.decoder,
        folder=folder,
    )
    return len(sources)


def scans_at(path: Path) -> dict[str, Path]:
    """Name -> scan: the scan at `path`, or those in it."""
    if not path.is_dir():
        return {case_name(path) or path.name: path}
    return find_scans(path) or {path.name: path}


def _named(landmarks: Sequence[str], positions: np.ndarray) -> Landmarks:
    return dict(zip(landmarks, positions, strict=True))
