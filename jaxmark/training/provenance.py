"""Which data a model was trained on: fingerprints of the data itself, whatever its paths."""

import contextlib
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmark.config import Experiment, to_json
from jaxmark.data.cases import PreparedCase
from jaxmark.methods.method import LandmarkSets
from jaxmark.system.errors import InputError
from jaxmark.training.checkpoints import Checkpoints, DamagedError

# Tolerance of `image_levels`: registration on another machine rounds differently.
_LEVEL_TOLERANCE = 0.01


def provenance(
    experiment: Experiment,
    landmarks: Sequence[str],
    cases: Sequence[PreparedCase],
    unpaired: LandmarkSets | None,
    *,
    streamed: bool = False,
) -> dict[str, Any]:
    """The part of a checkpoint's `meta` that identifies its run, as JSON types.

    Settings and the recipe's version identify cases that are drawn in training (`streamed`).
    """
    data = fingerprint(cases, unpaired)
    if streamed:
        data["drawn cases"] = f"recipe {experiment.phantom.label_recipe_version}"
    return {
        "landmarks": list(landmarks),
        "config": to_json(experiment),
        "data": data,
        "images": image_levels(cases),
    }


def fingerprint(cases: Sequence[PreparedCase], unpaired: LandmarkSets | None) -> dict[str, str]:
    """A digest each of the training cases and of the unpaired landmarks.

    It covers names and landmarks, to a thousandth of a millimetre. For methods with segments it
    also covers which segments exist and how many voxels each has. Paths and times of files do not
    count.
    """
    training, others = hashlib.sha256(), hashlib.sha256()
    for case in cases:
        training.update(case.name.encode())
        for numbers in (case.landmarks_mm, case.ijk_to_lps):
            # Adding zero turns minus zero into zero.
            training.update((np.round(np.nan_to_num(numbers), 3) + 0.0).tobytes())
        training.update(case.present.tobytes() + case.absent.tobytes())
        if case.segments is not None:
            known = case.segments
            training.update(known.present.tobytes() + known.absent.tobytes())
            # Voxels of the original label map: another machine resamples slightly differently.
            training.update(repr(known.voxels).encode())
    if unpaired is not None:
        others.update((np.round(unpaired.landmarks_ijk, 3) + 0.0).tobytes())
        others.update(unpaired.present.tobytes())
    return {"training cases": training.hexdigest(), "unpaired landmarks": others.hexdigest()}


def image_levels(cases: Sequence[PreparedCase]) -> list[list[float]]:
    """A few numbers of each case's image: the means of its octants, and its standard deviation."""
    levels = []
    for case in cases:
        image = case.volume.overview()[0].astype(np.float32)
        # A picture has one voxel along an axis.
        halves = [[slice(n // 2), slice(n // 2, n)][-min(n, 2) :] for n in image.shape]
        means = [image[part].mean() for part in itertools.product(*halves)]
        levels.append([round(float(level), 4) for level in (*means, image.std())])
    return levels


def check_data(
    saved: Mapping[str, Any],
    wanted: Mapping[str, Any],
    where: Path,
    than: str = "than those that are there now",
) -> None:
    """InputError where a checkpoint's `data` differs from the wanted `fingerprint`."""
    for what, value in wanted.items():
        if saved.get(what) != value:
            raise InputError(where, f"is of other {what} {than}; use another --workdir")


def check_moved(
    workdir: Path,
    landmarks: Sequence[str],
    cases: Sequence[PreparedCase],
    unpaired: LandmarkSets | None,
    changes: Sequence[str],
) -> str:
    """Check that the data at new paths is the training data of the model in a work dir; say so.

    Args:
      changes: the changed paths in words, from `config.moved`.

    Raises:
      InputError: the data is different.
    """
    checkpoints = Checkpoints(workdir)
    paths = "; ".join(changes)
    for step in reversed(checkpoints.steps()):
        # Damage is reported where the checkpoint is used.
        with contextlib.suppress(DamagedError):
            saved = checkpoints.meta(step)
            break
    else:
        return f"{paths}: the work dir has no checkpoint to compare the data with"
    if saved["landmarks"] != list(landmarks):
        raise InputError(workdir, f"is of other landmarks ({paths}); use another --workdir")
    check_data(saved["data"], fingerprint(cases, unpaired), workdir, f"({paths})")
    if "images" not in saved:
        return f"{paths}: the training cases are the same; earlier versions kept nothing of images"
    for case, old, new in zip(cases, saved["images"], image_levels(cases), strict=True):
        if not np.allclose(old, new, rtol=_LEVEL_TOLERANCE, atol=_LEVEL_TOLERANCE):
            problem = f"is of another image of training case {case.name!r} ({paths})"
            raise InputError(workdir, f"{problem}; use another --workdir")
    return f"{paths}: the training data is the same"
