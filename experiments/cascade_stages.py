"""Errors of each stage of a trained cascade, and a picture of one case.

    python -m experiments.cascade_stages --workdir=runs/vessel_cascade --output=stages.png

Predicts the evaluated split and prints mean radial errors with paired intervals: of the first stage
(voxel of the maximum, and sub-voxel position) and of the second stage after each look, up to
--looks. Draws some landmarks of one case: a patch around the truth (ring), the first stage's voxel
(cross) and the final position (dot). Without --case this is the case with the median error.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
from absl import app, flags, logging
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.commands import check_no_arguments, errors_on_one_line
from jaxmark.core import metrics
from jaxmark.core.geometry import apply_affine
from jaxmark.data.cases import PreparedCase
from jaxmark.data.multiscale import first_voxels
from jaxmark.inference.predictor import Predictor
from jaxmark.methods.cascade import FIRST, Cascade
from jaxmark.results.figures.style import MARK, PREDICTION, STYLE, TRUTH, rendered
from jaxmark.system.errors import InputError
from jaxmark.system.files import replacing
from jaxmark.trained import get_config
from jaxmark.workflow import Run, prepare, task_of

MOST_COLUMNS = 6


def main(argv: Sequence[str]) -> None:
    """See above; exit code 1 for a work dir that holds no trained cascade."""
    values = flags.FLAGS
    with errors_on_one_line():
        check_no_arguments(argv)
        # Libraries log every file that they read.
        logging.set_verbosity(logging.ERROR)
        workdir = Path(values.workdir)
        experiment = get_config(str(workdir))
        method = experiment.method
        if not isinstance(method, Cascade):
            raise InputError(workdir, f"is of {type(method).__name__}, not of Cascade")
        run = prepare(experiment, workdir)
        _, cases = run.evaluated()
        looks = max(values.looks, method.looks)
        found_mm = {name: place for n in range(looks) for name, place in places(run, cases, n + 1)}
        truth, present = np.stack([c.landmarks_mm for c in cases]), [c.present for c in cases]
        errors = {
            name: metrics.radial_error_mm(truth, place, np.stack(present))
            for name, place in found_mm.items()
        }
        final = name_of(method.looks)
        print(as_text(errors, final))
        row = chosen_case([case.name for case in cases], errors[final], values.case)
        shown = {TRUTH: truth[row], MARK: found_mm[FIRST[0]][row], PREDICTION: found_mm[final][row]}
        picture = draw(
            cases[row],
            shown,
            [errors[name][row] for name in (FIRST[0], final)],
            run.prepared.landmarks,
            experiment.data.spacing_mm,
            method.patch,
        )
        with replacing(Path(values.output)) as temporary:
            temporary.write_bytes(picture)
        print(f"picture of {cases[row].name}: {values.output}")


def name_of(looks: int) -> str:
    """The name of a prediction with this number of looks of the second stage."""
    return f"stage2, {looks} look{'s' * (looks > 1)}"


def places(run: Run, cases: Sequence[PreparedCase], looks: int) -> list[tuple[str, np.ndarray]]:
    """Names and positions (N, K, 3) mm: of the first stage, and of the second after some looks."""
    method = dataclasses.replace(run.experiment.method, looks=looks)
    task = task_of(run.experiment, run.scheme, run.mesh)
    predictor = Predictor(method.build(task), run.experiment.predict.batch, run.mesh)
    _, variables = run.variables()
    found = list(predictor(variables, (case.volume for case in cases)))
    names = {**{name: name for name in FIRST}, "subvoxel": name_of(looks)}
    return [
        (name, np.stack([one.landmarks_mm(decoder) for one in found]))
        for decoder, name in names.items()
    ]


def as_text(error_mm: Mapping[str, np.ndarray], final: str) -> str:
    """Markdown: each prediction's mean error, and `final` minus it; arrays (N, K) mm."""
    lines = [f"| | MRE (mm) | median | {final}, minus this (95 %) |", "|---|---|---|---|"]
    for name, errors in error_mm.items():
        difference = ""
        if name != final:
            test = metrics.paired_comparison(error_mm[final], errors, 0)
            low, high = test["interval"] or (np.nan, np.nan)
            difference = f"{test['difference']:.3f} ({low:.3f} to {high:.3f})"
        middle = f"{np.nanmean(errors):.3f} | {np.nanmedian(errors):.3f}"
        lines.append(f"| {name} | {middle} | {difference} |")
    return "\n".join(lines)


def chosen_case(names: Sequence[str], errors_mm: np.ndarray, wanted: str) -> int:
    """Index of the case `wanted`; if empty, of the case with the median error."""
    annotated = np.flatnonzero(np.isfinite(errors_mm).any(1))
    if not wanted:
        ranked = annotated[np.argsort(np.nanmean(errors_mm[annotated], axis=1))]
        return int(ranked[(len(ranked) - 1) // 2])
    known = [names[index] for index in annotated.tolist()]
    if wanted not in known:
        raise InputError("--case", f"{wanted!r} is not one with landmarks: {', '.join(known)}")
    return names.index(wanted)


def shown_landmarks(errors_mm: np.ndarray) -> list[int]:
    """Indices of landmarks to draw: worst, best and some between; (K,) mm, NaN where absent."""
    ranked = np.argsort(-np.nan_to_num(errors_mm, nan=-1))[: int(np.isfinite(errors_mm).sum())]
    steps = np.linspace(0, len(ranked) - 1, min(MOST_COLUMNS, len(ranked)))
    return sorted(ranked[np.rint(steps).astype(int)].tolist())


def draw(
    case: PreparedCase,
    places_mm: Mapping[str, np.ndarray],
    errors_mm: Sequence[np.ndarray],
    landmarks: Sequence[str],
    spacing_mm: Sequence[float],
    side: int,
) -> bytes:
    """PNG: axial and coronal slices of patches through the truth, one column a landmark.

    `places_mm`: colour -> (K, 3) LPS mm of the scan. `errors_mm`: (K,) of first and final places.
    """
    shown = shown_landmarks(errors_mm[0])
    to_ijk = np.linalg.inv(case.ijk_to_lps)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.4 * len(shown), 5.4), dpi=100, layout="constrained")
        axes = figure.subplots(2, len(shown), squeeze=False)
        for column, k in enumerate(shown):
            marks = {color: apply_affine(to_ijk, place[k]) for color, place in places_mm.items()}
            corner = first_voxels(marks[TRUTH], side)
            cube = case.volume.patch(corner, side)
            first, final = (errors[k] for errors in errors_mm)
            axes[0, column].set_title(f"{landmarks[k]}\n{first:.2f} to {final:.2f} mm", size=9)
            for panel, upright in zip(axes[:, column], (1, 2), strict=True):
                _slice(panel, cube, upright, {c: p - corner for c, p in marks.items()}, spacing_mm)
        figure.supxlabel("ring: truth; cross: first stage; dot: second stage", size=9)
        return rendered(figure, "png")


def _slice(
    panel: Axes,
    cube: np.ndarray,
    upright: int,
    marks: Mapping[str, np.ndarray],
    spacing_mm: Sequence[float],
) -> None:
    """The slice along X and another axis through the truth; head, or face, is at the top."""
    through = 3 - upright
    at = int(np.clip(np.rint(marks[TRUTH][through]), 0, cube.shape[through] - 1))
    plane = np.take(cube, at, axis=through).T.astype(np.float32)
    origin: Literal["lower", "upper"] = "lower" if upright == 2 else "upper"
    aspect = spacing_mm[upright] / spacing_mm[0]
    panel.imshow(plane, cmap="gray", origin=origin, aspect=aspect)
    panel.plot(*marks[TRUTH][[0, upright]], "o", ms=9, mfc="none", mec=TRUTH, mew=1.6)
    panel.plot(*marks[MARK][[0, upright]], "x", ms=8, mec=MARK, mew=1.8)
    panel.plot(*marks[PREDICTION][[0, upright]], "o", ms=4, mfc=PREDICTION, mec="black", mew=0.5)
    # A position outside of the patch stays outside of the picture.
    panel.set_xlim(-0.5, plane.shape[1] - 0.5)
    limits = (-0.5, plane.shape[0] - 0.5)
    panel.set_ylim(limits if origin == "lower" else limits[::-1])
    panel.set_xticks([])
    panel.set_yticks([])


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Of a trained cascade.", required=True)
    flags.DEFINE_integer("looks", 1, "So many looks of the second stage at least.")
    flags.DEFINE_string("case", "", "Which case is drawn; empty: that with the median error.")
    flags.DEFINE_string("output", "stages.png", "Where the picture is written.")
    app.run(main)
